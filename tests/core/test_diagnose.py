"""Diagnoses are calibrated where nothing is wrong, and find what is."""

from __future__ import annotations

import math
import random

import pytest
import torch
from scipy import stats

from driftworks.core.ctmc import Masking
from driftworks.core.diagnose import memorisation, ode_sde_gap, score_agreement
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, Mixture, w2
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.spaces import Centred, Flat, Tokens
from driftworks.errors import UserError


@pytest.fixture
def generator():
    seed = random.randrange(1 << 30)
    print("seed", seed)
    return torch.Generator().manual_seed(seed)


def normal(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


LEVELS = (0.1, 0.5, 0.9)


def test_two_gaussian_scores_agree_as_their_closed_form_says(generator):
    """N(0, v) against N(0, w): cosine 1 and error |V_w / V_v - 1|, whatever the sample."""
    path, n = Path.linear(), 40
    process = Process(Part(Flat(), path))
    x, keys = normal(generator, n, 3), Keys.for_samples(2, range(n))
    a, b = (Gaussian(0.0, v).on(path) for v in (0.5, 0.8))
    report = score_agreement(a, b, process, x, keys, LEVELS)
    for level, t in zip(report.levels, LEVELS, strict=True):
        ratio = (t**2 * 0.8 + (1 - t) ** 2) / (t**2 * 0.5 + (1 - t) ** 2)
        assert (level.t, level.count, level.part) == (t, n, "x")
        assert level.cosine == pytest.approx(1.0, abs=1e-9)
        assert level.error == pytest.approx(ratio - 1, rel=1e-6)
        assert level.error_stderr < 1e-6 and level.cosine_stderr < 1e-6
    assert len(str(report).splitlines()) == 4


def test_an_unrelated_answer_has_the_error_and_cosine_of_its_angle(generator):
    """b plus an orthogonal vector of length |b| tan(phi)."""
    path, n = Path.cosine(), 30
    process = Process(Part(Flat(), path, "score"))
    x, keys = normal(generator, n, 2), Keys.for_samples(2, range(n))
    truth = Gaussian(0.0, 1.0).on(path, "score")
    angles = torch.linspace(0.1, 1.2, n, dtype=torch.float64)

    def turned(x, t, **rest):
        b = truth(x, t)
        aside = torch.stack((-b[:, 1], b[:, 0]), 1)
        return b + angles.tan().unsqueeze(1) * aside

    (level,) = score_agreement(turned, truth, process, x, keys, [0.4]).levels
    assert level.cosine == pytest.approx(angles.cos().mean().item(), rel=1e-9)
    assert level.error == pytest.approx(angles.tan().mean().item(), rel=1e-9)
    assert level.error_stderr == pytest.approx((angles.tan().std() / math.sqrt(n)).item())
    assert level.cosine_stderr == pytest.approx((angles.cos().std() / math.sqrt(n)).item())


def test_parametrisations_masks_and_tokens_are_compared_alike(generator):
    parts = {"pos": Centred(), "kind": Tokens(3)}
    paths = {"pos": Path.vp(), "kind": Masking()}
    ours, theirs = (
        Process({"pos": Part(parts["pos"], paths["pos"], kind), "kind": Part(parts["kind"],
                                                                            paths["kind"])})
        for kind in ("denoised", "noise")
    )
    mask = torch.arange(4) < torch.tensor([4, 2, 3]).unsqueeze(1)
    x = {
        "pos": Centred().project(normal(generator, 3, 4, 2), mask),
        "kind": torch.randint(0, 3, (3, 4), generator=generator) * mask,
    }
    logits = normal(generator, 3, 4, 3)
    law = Gaussian(0.0, 0.6)

    def model(kind, rubbish, tilt):
        def answer(x, t, mask=None, **rest):
            pos = law.on(paths["pos"], kind)(x["pos"], t)
            return {"pos": pos + rubbish * ~mask.unsqueeze(-1), "kind": logits * tilt}
        return answer

    keys = Keys.for_samples(0, range(3))
    report = score_agreement(
        model("denoised", 0.0, 1.0), model("noise", 9.0, 1.0), ours, x, keys, [0.4, 0.7], mask,
        process_b=theirs,
    )
    for level in report.levels:
        assert level.error < 1e-9 and level.cosine == pytest.approx(1.0)
    report = score_agreement(
        model("denoised", 0.0, 2.0), model("denoised", 0.0, 1.0), ours, x, keys, [0.4], mask
    )
    hidden = ours.bridge(x, torch.full((3,), 0.4), keys, mask).hidden["kind"]
    p, q = (2.0 * logits).softmax(-1), logits.softmax(-1)
    errors = [
        ((p - q)[b][hidden[b]].norm() / q[b][hidden[b]].norm()).item()
        for b in range(3) if hidden[b].any()
    ]
    (level,) = [v for v in report.levels if v.part == "kind"]
    assert level.count == len(errors)
    assert level.error == pytest.approx(sum(errors) / len(errors))
    with pytest.raises(UserError, match="differ in the space or path"):
        score_agreement(None, None, ours, x, keys, [0.4],
                        process_b=Process({"pos": ours.parts["kind"]}))
    with pytest.raises(UserError, match="inside"):
        score_agreement(None, None, ours, x, keys, [0.0])


# A law with dense and thin regions, where plain distances differ by a factor of a hundred.
UNEVEN = Mixture([0.5, 0.5], [torch.zeros(3), torch.full((3,), 8.0)], [0.01, 4.0])


def test_ratios_are_those_of_a_loop(generator):
    mask = torch.arange(3) < torch.tensor([3, 2]).repeat(10).unsqueeze(1)
    train, x, held = (normal(generator, 20, 3, 2) for _ in range(3))
    few = torch.tensor([[True, False, False]])
    x, x_mask = torch.cat((x[:4], x[:1])), torch.cat((mask[:4], few))
    found = memorisation((x, x_mask), (train, mask), (held, mask), neighbours=3, level=0.2)
    for i in range(4):
        n = int(x_mask[i].sum())
        gaps = sorted(
            (x[i, :n] - train[j, :n]).norm().item() for j in range(20) if mask[j].sum() == n
        )
        assert found.ratios[i].item() == pytest.approx(gaps[0] / (sum(gaps[1:4]) / 3), rel=1e-12)
    assert found.ratios[4] == 1.0  # nothing of its size in the training data


def test_p_values_are_valid_when_nothing_is_copied(generator):
    """The tail p-value randomised within its steps, and the rank p-value, are uniform."""
    tails, ranks, shares = [], [], []
    for _ in range(200):
        train, held, drawn = (
            UNEVEN.sample((n, 3), generator) for n in (80, 60, 50)
        )
        found = memorisation(drawn, train, held, level=0.1)
        place = round(found.expected * 61)
        law = stats.betabinom(50, place, 61 - place)
        count = round(found.share * 50)
        assert found.p_value == pytest.approx(law.sf(count - 1))
        u = torch.rand((), generator=generator).item()
        tails.append(law.sf(count) + u * law.pmf(count))
        ranks.append(found.rank_p_value)
        shares.append(found.share)
        assert found.expected == pytest.approx(6 / 61)
    assert stats.kstest(tails, "uniform").pvalue > 1e-5
    assert stats.kstest(ranks, "uniform").pvalue > 1e-5
    error = stats.betabinom(50, 6, 55).std() / 50 / math.sqrt(200)
    assert abs(sum(shares) / 200 - 6 / 61) < 4.5 * error


def test_the_beta_binomial_is_the_law_of_the_count():
    """Brute force over all interleavings of 3 samples and 4 held-out ratios."""
    from itertools import combinations

    n, held, place = 3, 4, 2
    law = stats.betabinom(n, place, held + 1 - place)
    counts = [0] * (n + 1)
    for chosen in combinations(range(n + held), held):
        threshold = chosen[place - 1]
        counts[sum(i < threshold for i in range(n + held) if i not in chosen)] += 1
    for k, count in enumerate(counts):
        assert law.pmf(k) == pytest.approx(count / sum(counts))


@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_a_few_copies_are_found_and_named(noise, generator):
    train, held, drawn = (UNEVEN.sample((n, 3), generator) for n in (400, 300, 200))
    copies = torch.arange(0, 200, 5)
    drawn[copies] = train[:40] + noise * normal(generator, 40, 3)
    found = memorisation(drawn, train, held)
    assert found.p_value < 1e-3
    assert found.share > 1.5 * found.expected
    if noise == 0.0:
        assert set(copies.tolist()) <= set(found.suspects.tolist())
        assert set(found.suspects[:40].tolist()) == set(copies.tolist())
    assert "stand beside a training point" in str(found)


def test_wholesale_copies_move_the_ranks_and_duplicates_of_training_data_are_copies(generator):
    train, held = UNEVEN.sample((200, 3), generator), UNEVEN.sample((100, 3), generator)
    found = memorisation(train[:100] + 0.01 * normal(generator, 100, 3), train, held)
    assert found.closer > 0.6 and found.rank_p_value < 1e-3
    again = memorisation(train[:10], train[:10].repeat(8, 1), held[:30])
    assert (again.ratios == 0).all() and again.share == 1.0


def test_memorisation_refuses_too_little_data(generator):
    x = normal(generator, 10, 2)
    for wrong, message in (
        (lambda: memorisation(x, x[:5], x), "6 nearest states asked for"),
        (lambda: memorisation(x, x, x, level=0.05), "at least 19 reference"),
        (lambda: memorisation(x, x, x, level=1.5), r"inside|in \(0, 1\)"),
        (lambda: memorisation(x, x, x, neighbours=0), "at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()


def test_an_exact_score_has_no_gap_and_its_interval_covers_zero(generator):
    path = Path.cosine()
    a = normal(generator, 2, 2)
    oracle = Gaussian(normal(generator, 2), a @ a.T + 0.1 * torch.eye(2)).on(path)
    process = Process(Part(Flat(), path))
    seed = random.randrange(1 << 20)
    keys = Keys.for_samples(seed, range(10 * 40))
    report = ode_sde_gap(oracle, process, keys, (2,), steps=60, groups=10, dtype=torch.float64)
    # five standard errors instead of two: this runs on random seeds
    centre, half = report.excess, 2.5 * (report.high - report.excess)
    assert abs(centre) < half, report
    assert report.method == "exact" and report.size == 40 and 0 < report.floor
    assert 0.5 < report.gap / report.floor < 2.0


def test_an_inconsistent_score_has_a_gap_of_the_predicted_size():
    """A score too large by 1 + d: flow and SDE end at the variances of their own linear equations.

    On the linear path with data N(0, v): dx = (a - lam (1 + d) / V) x dt for the flow, and
    dx = (a - 2 lam (1 + d) / V) x dt + sqrt(2 lam) dW for the SDE, integrated here by small steps.
    """
    path, d, v = Path.vp(0.1, 10.0), 0.5, 1.0
    process = Process(Part(Flat(), path, "score"))

    def model(x, t, **rest):
        return -(1 + d) * x / (path.beta(t) ** 2 * v + path.sigma(t) ** 2).unsqueeze(1)

    variance = {"ode": path.sigma(0.0) ** 2, "sde": path.sigma(0.0) ** 2}
    count = 20_000
    for k in range(count):
        t = (k + 0.5) / count
        spread = path.beta(t) ** 2 * v + path.sigma(t) ** 2
        pull = path.a(t) - path.lam(t) * (1 + d) / spread
        variance["ode"] *= math.exp(2 * pull / count)
        pull = path.a(t) - 2 * path.lam(t) * (1 + d) / spread
        variance["sde"] = variance["sde"] * math.exp(2 * pull / count) + 2 * path.lam(t) / count
    wanted = abs(math.sqrt(variance["ode"]) - math.sqrt(variance["sde"]))
    keys = Keys.for_samples(3, range(8 * 150))
    report = ode_sde_gap(model, process, keys, (1,), steps=150, gaussian=True, dtype=torch.float64)
    assert report.found and report.method == "fitted Gaussians" and "a gap" in str(report)
    assert report.gap == pytest.approx(wanted, rel=0.2)
    assert report.floor < 0.3 * report.gap
    exact = ode_sde_gap(model, process, keys, (1,), steps=150, dtype=torch.float64)
    assert exact.found and exact.gap == pytest.approx(wanted, rel=0.25)


def test_gaps_of_masked_states_need_common_coordinates():
    path = Path.linear()
    process = Process(Part(Centred(), path))
    oracle = Gaussian(0.0, 0.5).on(path)
    keys = Keys.for_samples(3, range(2 * 20))
    alike = torch.tensor([True, True, True, False]).expand(40, 4)
    report = ode_sde_gap(oracle, process, keys, (4, 2), alike, steps=10, groups=2)
    assert report.gap > 0
    mixed = torch.arange(4) < (2 + torch.arange(40) % 3).unsqueeze(1)
    with pytest.raises(UserError, match="describe"):
        ode_sde_gap(oracle, process, keys, (4, 2), mixed, steps=10, groups=2)

    def radius(x, mask):
        return x.square().sum((1, 2)).div(2 * mask.sum(1)).unsqueeze(1)

    described = ode_sde_gap(oracle, process, keys, (4, 2), mixed, steps=10, groups=2,
                            describe=radius)
    assert 0 < described.gap < 1
    with pytest.raises(UserError, match="cannot be divided"):
        ode_sde_gap(oracle, process, keys[:39], (4, 2), steps=10, groups=2)


def test_gaussian_w2_of_fitted_samples_is_the_closed_form(generator):
    from driftworks.core.diagnose import _gaussian_w2

    a = normal(generator, 3, 3)
    p = Gaussian(normal(generator, 3), a @ a.T + 0.1 * torch.eye(3))
    q = Gaussian(normal(generator, 3), torch.eye(3))
    found = _gaussian_w2(p.sample((20_000, 3), generator), q.sample((20_000, 3), generator))
    assert found == pytest.approx(w2(p, q), rel=0.05)
