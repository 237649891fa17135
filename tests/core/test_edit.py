"""Editing against exact flows and contractions, inpainting against conditionals, chains against
their targets. Targets are drawn anew each run where no number is published."""

from __future__ import annotations

import math
import secrets
from functools import partial

import pytest
import torch

from driftworks.core.ctmc import Masking, Replacing
from driftworks.core.edit import (
    code_edit,
    denoising_mcmc,
    inpaint,
    level_log_density,
    renoise,
)
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, Mixture
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.sample import sample
from driftworks.core.spaces import Centred, Flat, PairTokens, Symmetric, Tokens
from driftworks.errors import UserError

DOUBLE = torch.float64
LINEAR = Process(Part(Flat(), Path.linear(), "velocity"))


@pytest.fixture
def generator():
    seed = secrets.randbits(31)
    print(f"targets of seed {seed}")
    return torch.Generator().manual_seed(seed)


def normal(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=DOUBLE)


def random_gaussian(generator, size):
    axes, _ = torch.linalg.qr(normal(generator, size, size))
    variances = 0.1 + torch.rand(size, generator=generator, dtype=DOUBLE)
    return Gaussian(normal(generator, size), (axes * variances) @ axes.T)


# CODE


@pytest.mark.parametrize("path", [Path.linear(), Path.vp(), Path.edm(4.0)])
def test_editing_without_correction_returns_the_data(path, generator):
    law = random_gaussian(generator, 3)
    process, model = Process(Part(Flat(), path)), law.on(path)
    x = law.sample((4, 3), generator)
    out = code_edit(model, process, x, Keys.for_samples(0, range(4)), level=0.4, steps=0)
    assert (out.x - x).abs().max() < 1e-5
    assert torch.equal(out.latent, out.encoded) and (out.clipped == 0.0).all() and out.ok.all()


def test_steps_without_noise_contract_the_latent_by_the_known_factor(generator):
    path, law, level, ratio, steps = Path.vp(), random_gaussian(generator, 2), 0.6, 0.3, 4
    process, model = Process(Part(Flat(), path, "noise")), law.on(path, "noise")
    x = law.sample((3, 2), generator) + 2.0
    out = code_edit(
        model, process, x, Keys.for_samples(0, range(3)), level=level, steps=steps, ratio=ratio,
        noise=0.0,
    )
    beta, sigma = path.beta(level), path.sigma(level)
    variances = beta**2 * law.variances + sigma**2
    factors = (1.0 - 2.0 * (ratio * sigma) ** 2 / variances) ** steps
    away = (model.flow(x, 1.0, level) - beta * law.mean) @ law.axes
    latent = beta * law.mean + (away * factors) @ law.axes.T
    assert torch.allclose(out.encoded, model.flow(x, 1.0, level), atol=1e-5)
    assert torch.allclose(out.latent, latent, atol=1e-5)
    assert torch.allclose(out.x, model.flow(latent, level, 1.0), atol=1e-5)


def test_steps_with_noise_have_the_stationary_law_of_langevin_dynamics():
    path, variance, level, ratio, count = Path.linear(), 0.5, 0.5, 0.4, 3000
    model = Gaussian(1.0, variance).on(path, "velocity")
    x = torch.full((count, 1), 4.0, dtype=DOUBLE)
    keys = Keys.for_samples(3, range(count))
    out = code_edit(
        model, LINEAR, x, keys, level=level, steps=30, ratio=ratio, tolerance=1e-5
    )
    total = 0.25 * variance + 0.25
    d = 2.0 * (ratio * 0.5) ** 2
    stationary = total / (1.0 - d / (2.0 * total))
    shrunk = (1.0 - d / total) ** 30
    spread = stationary * (1.0 - shrunk**2)
    mean = 0.5 + shrunk * (out.encoded.mean().item() - 0.5)
    assert out.latent.mean().item() == pytest.approx(mean, abs=4.0 * math.sqrt(spread / count))
    assert out.latent.var().item() == pytest.approx(spread, rel=4.0 * math.sqrt(2.0 / count))


def test_clipping_moves_what_no_data_can_reach_and_nothing_else():
    path, level = Path.cosine(), 0.7
    process = Process(Part(Flat(), path, "velocity"))
    model = Gaussian(0.0, 0.3).on(path, "velocity")
    x = torch.tensor([[0.2, -0.9, 0.5, 12.0], [0.1, 0.0, -0.3, 0.6]], dtype=DOUBLE)
    keys = Keys.for_samples(0, range(2))
    out = code_edit(
        model, process, x, keys, level=level, steps=0, bounds=(-1.0, 1.0), deviations=2.0
    )
    bound = path.beta(level) + 2.0 * path.sigma(level)
    assert out.clipped.tolist() == [0.25, 0.0]
    assert out.encoded[0, 3] > bound and out.latent[0, 3].item() == pytest.approx(bound)
    assert torch.equal(out.latent[0, :3], out.encoded[0, :3])
    assert torch.allclose(out.x[1], x[1], atol=1e-5) and out.x[0, 3] < 6.0


def test_edited_states_stay_in_their_spaces_and_do_not_depend_on_the_batch(generator):
    process = Process(
        {
            "points": Part(Centred(), Path.linear(), "velocity"),
            "pairs": Part(Symmetric(), Path.cosine(), "denoised"),
        }
    )

    def model(x, t, mask=None, cond=None, previous=None):
        return {
            "points": torch.tanh(x["points"]) - cond[:, None, None] * x["points"],
            "pairs": 0.5 * x["pairs"],
        }

    keys, mask = Keys.for_samples(4, range(3)), torch.arange(5) < torch.tensor([[3], [5], [4]])
    x = {"points": normal(generator, 3, 5, 3), "pairs": normal(generator, 3, 5, 5)}
    cond = torch.tensor([0.1, 0.5, 0.9], dtype=DOUBLE)
    settings = dict(level=0.5, steps=3, bounds={"points": (-1.0, 1.0)}, tolerance=1e-5)
    out = code_edit(model, process, x, keys, mask, cond=cond, **settings)
    points, pairs = out.x["points"], out.x["pairs"]
    assert points.sum(1).abs().max() < 1e-12 and (points[~mask] == 0.0).all()
    assert torch.equal(pairs, pairs.transpose(1, 2)) and (pairs[0, 3:] == 0.0).all()
    one = {name: part[1:2] for name, part in x.items()}
    alone = code_edit(model, process, one, keys[1:2], mask[1:2], cond=cond[1:2], **settings)
    assert (alone.x["points"] - points[1:2]).abs().max() < 1e-9
    assert alone.clipped == out.clipped[1]


def test_code_settings_out_of_range_are_named():
    x, keys = torch.zeros(2, 3), Keys.for_samples(0, range(2))
    run = partial(code_edit, Gaussian(0.0, 1.0).on(Path.linear(), "velocity"), LINEAR, x, keys)
    with pytest.raises(UserError, match="level must be a time between 0 and 1, got 1.0"):
        run(level=1.0)
    with pytest.raises(UserError, match="steps must be a whole number of at least 0, got -1"):
        run(level=0.5, steps=-1)
    with pytest.raises(UserError, match=r"bounds of part 'x' must satisfy low <= high"):
        run(level=0.5, bounds=(1.0, -1.0))
    with pytest.raises(UserError, match=r"bounds of part 'x' must be \(low, high\), got 3"):
        run(level=0.5, bounds={"x": 3})
    with pytest.raises(UserError, match="bounds name unknown parts y"):
        run(level=0.5, bounds={"y": (0.0, 1.0)})
    tokens = Process({"types": Part(Tokens(3), Masking())})
    with pytest.raises(UserError, match="no probability flow"):
        code_edit(
            run.args[0], tokens, {"types": torch.zeros(2, 3, dtype=torch.int64)}, keys, level=0.5
        )


# Time travel


@pytest.mark.parametrize("path", [Path.linear(), Path.vp(), Path.ve(0.01, 5.0)])
@pytest.mark.parametrize(("u", "s"), [(0.5, 0.4), (1.0, 0.6), (0.5, 0.0)])
def test_noise_added_by_the_process_gives_the_law_of_the_earlier_time(path, u, s):
    count, law = 4000, Gaussian(0.7, 0.4)
    process, keys = Process(Part(Flat(), path)), Keys.for_samples(1, range(count))
    generator = torch.Generator().manual_seed(3)
    x1 = law.sample((count, 1), generator)
    level = 0.0 if u == 1.0 else path.sigma(u)
    x = path.beta(u) * x1 + level * normal(generator, count, 1)
    back = renoise(process, x, u, s, keys)
    variance = path.beta(s) ** 2 * 0.4 + path.sigma(s) ** 2
    assert back.mean().item() == pytest.approx(
        path.beta(s) * 0.7, abs=4.0 * math.sqrt(variance / count)
    )
    assert back.var().item() == pytest.approx(variance, rel=4.0 * math.sqrt(2.0 / count))
    joint = torch.cov(torch.cat([back, x1], 1).T)[0, 1].item()
    assert joint == pytest.approx(
        path.beta(s) * 0.4, abs=4.0 * math.sqrt(variance * 0.4 / count) + 1e-12
    )


def test_tokens_are_given_up_at_the_rate_of_their_process():
    count = 4000
    keys = Keys.for_samples(1, range(count))
    masking = Masking(lambda t: t**2)
    process = Process(
        {
            "masked": Part(Tokens(3), masking),
            "replaced": Part(Tokens(2), Replacing((0.75, 0.25))),
            "pairs": Part(PairTokens(3), masking),
        }
    )
    x = {
        "masked": torch.ones(count, 4, dtype=torch.int64),
        "replaced": torch.ones(count, 4, dtype=torch.int64),
        "pairs": torch.ones(count, 3, 3, dtype=torch.int64).triu(1),
    }
    x["pairs"] = x["pairs"] + x["pairs"].transpose(1, 2)
    back = renoise(process, x, 0.9, 0.6, keys)
    hidden = (back["masked"] == 3).double().mean().item()
    assert hidden == pytest.approx(1.0 - (0.6 / 0.9) ** 2, abs=0.02)
    changed = (back["replaced"] == 0).double().mean().item()
    assert changed == pytest.approx((1.0 - 0.6 / 0.9) * 0.75, abs=0.02)
    assert torch.equal(back["pairs"], back["pairs"].transpose(1, 2))
    assert (back["pairs"].diagonal(dim1=1, dim2=2) == 0).all()
    assert renoise(process, x, 1.0, 0.0, keys)["masked"].eq(3).all()


def test_time_travel_brings_inpainting_to_the_conditional_law():
    count, known, rho = 4000, 1.5, 0.9
    law = Gaussian([0.0, 0.0], [[1.0, rho], [rho, 1.0]])
    process = Process(Part(Flat(), Path.linear()))
    keys = Keys.for_samples(7, range(count))
    fixed = (torch.tensor([known, 0.0]), torch.tensor([True, False]).expand(count, 2))
    run = partial(
        inpaint, law.on(Path.linear()), process, keys, (2,), fixed, steps=40, dtype=DOUBLE
    )
    errors = []
    for passes in (1, 12):
        out = run(passes=passes, stretch=5, solver="ddim")
        assert torch.allclose(out.x[:, 0], torch.full((count,), known, dtype=DOUBLE))
        assert out.nfe == 40 * passes and out.finite.all()
        errors.append(out.x[:, 1].mean().item() - rho * known)
        variance = out.x[:, 1].var().item()
    assert abs(errors[0]) > 0.3 and abs(errors[1]) < 0.2 * abs(errors[0]), errors
    assert variance == pytest.approx(1.0 - rho**2, rel=0.2)


def test_one_pass_is_the_sampler_itself():
    process = Process(Part(Centred(), Path.linear()))
    keys, mask = Keys.for_samples(7, range(4)), torch.arange(5) < torch.tensor([[5], [3], [4], [2]])
    fixed = (torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)), mask & (
        torch.arange(5) < 2
    ))
    plain = sample(
        halve, process, keys, (5, 3), mask, fixed=fixed, steps=12, stream="inpaint"
    )
    again = inpaint(halve, process, keys, (5, 3), fixed, mask, steps=12, passes=1)
    assert torch.equal(plain.x, again.x) and plain.nfe == again.nfe


def test_every_pass_draws_its_own_noise(monkeypatch):
    streams, steps = [], []

    def recording(model, process, keys, shape, mask, **settings):
        streams.append(settings["stream"])
        return sample(model, process, keys, shape, mask, **settings)

    def back(process, x, u, s, keys, mask, *, stream, step):
        steps.append((stream, step, u, s))
        return renoise(process, x, u, s, keys, mask, stream=stream, step=step)

    monkeypatch.setattr("driftworks.core.edit.sample", recording)
    monkeypatch.setattr("driftworks.core.edit.renoise", back)
    fixed = (torch.zeros(3), torch.zeros(2, 3, dtype=torch.bool))
    process = Process(Part(Flat(), Path.linear()))
    inpaint(
        halve, process, Keys.for_samples(0, range(2)), (3,), fixed, grid=(0.0, 0.3, 0.7, 1.0),
        stretch=2, passes=3,
    )
    assert len(set(streams)) == len(streams) == 6
    assert len({step[:2] for step in steps}) == 4
    assert [step[2:] for step in steps] == [(0.7, 0.0)] * 2 + [(1.0, 0.7)] * 2


def halve(x, t, mask=None, cond=None, previous=None):
    return 0.5 * x


def test_inpainting_keeps_what_is_known_in_every_space_and_any_batch():
    process = Process(
        {
            "positions": Part(Centred(), Path.linear()),
            "couplings": Part(Symmetric(), Path.cosine()),
            "types": Part(Tokens(4), Masking()),
            "bonds": Part(PairTokens(3), Masking()),
        }
    )

    def model(x, t, mask=None, cond=None, previous=None):
        return {
            "positions": 0.5 * x["positions"],
            "couplings": 0.3 * x["couplings"] + 0.1,
            "types": torch.zeros(*x["types"].shape, 4),
            "bonds": torch.zeros(*x["bonds"].shape, 3),
        }

    generator = torch.Generator().manual_seed(1)
    shape = {"positions": (6, 3), "couplings": (6, 6), "types": (6,), "bonds": (6, 6)}
    mask = torch.arange(6) < torch.tensor([[6], [4], [5]])
    keys, known = Keys.for_samples(2, range(3)), torch.arange(6) < 3
    value = torch.randn(6, 3, generator=generator) + 5.0
    both = known[:, None] & known[None, :]
    coupling = torch.randn(6, 6, generator=generator)
    coupling = coupling + coupling.T
    fixed = {
        "positions": (value, known.expand(3, 6)),
        "couplings": (coupling, both.expand(3, 6, 6)),
        "types": (torch.tensor([1, 2, 3, 0, 0, 0]), known.expand(3, 6)),
        "bonds": (torch.ones(6, 6, dtype=torch.int64), both.expand(3, 6, 6)),
    }
    out = inpaint(model, process, keys, shape, fixed, mask, steps=9, stretch=4, passes=3)
    assert torch.allclose(out.x["positions"][:, :3], value[:3].expand(3, 3, 3), atol=1e-5)
    off = ~torch.eye(3, dtype=torch.bool)
    assert torch.allclose(out.x["couplings"][:, :3, :3][:, off], coupling[:3, :3][off], atol=1e-6)
    assert (out.x["types"][:, :3] == torch.tensor([1, 2, 3])).all()
    assert (out.x["bonds"][:, :3, :3][:, off] == 1).all() and (out.x["types"][mask] < 4).all()
    assert out.nfe == 27
    for name, part in out.x.items():
        assert (part[1, 4:] == 0).all()
        if name in ("couplings", "bonds"):
            assert torch.equal(part, part.transpose(1, 2))
    alone = inpaint(
        model, process, keys[1:2], shape,
        {name: (v, w[1:2]) for name, (v, w) in fixed.items()}, mask[1:2],
        steps=9, stretch=4, passes=3,
    )
    for name, part in alone.x.items():
        assert (part[0] - out.x[name][1]).abs().max() < 1e-6


def test_time_travel_repairs_tokens_that_were_shown_in_parallel():
    """Two tokens, equal in nine draws of ten: shown at once they agree in half the draws."""
    process = Process(Part(Tokens(2), Masking()))
    joint = torch.tensor([[0.45, 0.05], [0.05, 0.45]])
    count = 3000
    keys, nothing = Keys.for_samples(3, range(count)), torch.zeros(count, 2, dtype=torch.bool)

    def model(x, t, mask=None, cond=None, previous=None):
        seen = torch.cat([joint, joint.sum(0, keepdim=True)])  # given 0, 1 or nothing
        return (seen / seen.sum(1, keepdim=True)).log()[x.flip(1)]

    rates = []
    for passes in (1, 6):
        out = inpaint(
            model, process, keys, torch.zeros(count, 2, dtype=torch.int64),
            (torch.zeros(2, dtype=torch.int64), nothing), steps=4, stretch=2, passes=passes,
        )
        rates.append((out.x[:, 0] == out.x[:, 1]).double().mean().item())
    # the law of plain unmasking is known: its total variation is 0.4 / steps
    assert rates[0] == pytest.approx(0.9 - 0.4 / 4, abs=0.03)
    assert rates[1] > rates[0]


def test_inpainting_settings_are_checked():
    keys, fixed = Keys.for_samples(0, range(2)), (torch.zeros(3), torch.ones(2, 3).bool())
    process = Process(Part(Flat(), Path.linear()))
    with pytest.raises(UserError, match="passes must be a whole number of at least 1, got 0"):
        inpaint(halve, process, keys, (3,), fixed, passes=0)
    with pytest.raises(UserError, match="begins with noise at time 0"):
        inpaint(halve, process, keys, (3,), fixed, grid=(0.5, 1.0))
    with pytest.raises(UserError, match="from a time to an earlier one"):
        renoise(process, torch.zeros(2, 3), 0.3, 0.3, keys)


# Chains over noise levels


def times_of(path, radii):
    return [path.time_of_log_snr(-2.0 * math.log(r)) for r in radii]


@pytest.mark.parametrize("path", [Path.ve(), Path.vp(), Path.linear()])
def test_the_posterior_of_the_noise_level_has_its_golden_values(path):
    process = Process(Part(Flat(), path, "denoised"))
    model = Gaussian(0.0, 0.25).on(path)
    y = torch.full((1, 10), math.sqrt(0.8), dtype=DOUBLE)
    levels = times_of(path, (2.0, 1.0, 0.5, 0.1))
    posterior = level_log_density(model, process, y, levels).softmax(1)
    expected = [0.011463, 0.544107, 0.437291, 0.007139]
    assert posterior[0].tolist() == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize("space", ["flat", "centred", "symmetric", "masked"])
def test_densities_across_levels_are_exact_on_every_space(space, generator):
    path, levels = Path.cosine(), (0.1, 0.3, 0.6, 0.9)
    radii = torch.tensor([path.sigma(t) / path.beta(t) for t in levels], dtype=DOUBLE)
    variance, mask = 0.6, None
    y = normal(generator, 3, 4, 4)
    kind = {"flat": Flat(), "centred": Centred(), "symmetric": Symmetric(), "masked": Centred()}
    if space == "masked":
        mask = torch.arange(4) < torch.tensor([[4], [3], [2]])
    process = Process(Part(kind[space], path, "noise"))
    model = Gaussian(0.0, variance).on(path, "noise")
    out = level_log_density(model, process, y, levels, mask)
    y = kind[space].project(y, mask)
    dof = kind[space].dof(mask, y)[:, None]
    square = y.square().sum((1, 2))[:, None] / (2.0 if space == "symmetric" else 1.0)
    total = variance + radii**2
    exact = -0.5 * (square / total + dof * total.log())
    assert torch.allclose(out, exact - exact[:, :1], atol=1e-5)


def test_densities_across_levels_of_two_parts_add_up(generator):
    first, second = Path.linear(), Path.vp()
    process = Process({"a": Part(Flat(), first), "b": Part(Flat(), second)})
    laws = {"a": random_gaussian(generator, 2), "b": random_gaussian(generator, 3)}

    def model(x, t, mask=None, cond=None, previous=None):
        return {name: laws[name].on(process.parts[name].path)(x[name], t) for name in x}

    levels = (0.3, 0.5, 0.7)
    y = {"a": normal(generator, 4, 2), "b": normal(generator, 4, 3)}
    exact = sum(
        torch.stack(
            [
                law.log_prob(y[name], 1.0, path.sigma(t) / path.beta(t))
                for t in levels
                for path in [process.parts[name].path]
            ],
            1,
        )
        for name, law in laws.items()
    )
    out = level_log_density(model, process, y, levels)
    assert torch.allclose(out, exact - exact[:, :1], atol=1e-5)
    keys = Keys.for_samples(0, range(4))
    errors = torch.stack(
        [
            level_log_density(model, process, y, levels, keys=keys, probes=4, step=k) - out
            for k in range(24)
        ]
    )[..., 1:]
    assert (errors.mean(0).abs() < 5.0 * errors.std(0) / math.sqrt(24)).all()
    assert (errors.std(0) > 1e-6).all()


MODES = Mixture([0.3, 0.7], [[-3.0, 0.0], [3.0, 1.0]], [0.1, 0.2])
RADII = (5.0, 2.5, 1.2, 0.6, 0.3)


def test_a_chain_over_noise_levels_samples_the_data():
    path, count = Path.vp(), 800
    process, model = Process(Part(Flat(), path)), MODES.on(path)
    radii = torch.tensor(RADII, dtype=DOUBLE)

    def classifier(y):
        return torch.stack([MODES.log_prob(y, 1.0, r) for r in radii], 1)

    start = torch.tensor([-3.0, 0.0], dtype=DOUBLE).expand(count, 2)  # all in the smaller mode
    chain = denoising_mcmc(
        model, process, Keys.for_samples(2, range(count)), start, times_of(path, RADII),
        sweeps=60, steps=6, ratio=0.3, classifier=classifier, initial=start, tolerance=1e-3,
    )
    x = chain.x[0]
    right = x[:, 0] > 0.0
    assert chain.ok.all()
    assert right.double().mean().item() == pytest.approx(0.7, abs=4.0 * math.sqrt(0.21 / count))
    for inside, mean, variance in ((~right, [-3.0, 0.0], 0.1), (right, [3.0, 1.0], 0.2)):
        some, n = x[inside], int(inside.sum())
        assert some.mean(0).tolist() == pytest.approx(mean, abs=4.0 * math.sqrt(variance / n))
        assert some.var().item() != 0.0
        assert some.var(0).tolist() == pytest.approx([variance] * 2, rel=4.5 * math.sqrt(2.0 / n))
    shares = chain.level[0].bincount(minlength=5).double() / count
    assert (shares - 0.2).abs().max() < 4.5 * math.sqrt(0.16 / count)


def test_the_model_itself_tells_the_noise_levels_and_chains_can_be_resumed():
    path, count = Path.cosine(), 6
    process, model = Process(Part(Flat(), path)), MODES.on(path)
    levels, radii = times_of(path, RADII), torch.tensor(RADII, dtype=DOUBLE)
    keys, like = Keys.for_samples(2, range(count)), torch.zeros(count, 2, dtype=DOUBLE)

    def classifier(y):
        return torch.stack([MODES.log_prob(y, 1.0, r) for r in radii], 1)

    run = partial(denoising_mcmc, model, process, keys, like, levels, sweeps=2, steps=3)
    told, known = run(samples=2), run(samples=2, classifier=classifier)
    assert torch.allclose(told.x, known.x, atol=1e-5) and torch.equal(told.level, known.level)
    assert told.x.shape == (2, count, 2) and told.level.shape == (2, count)
    half = run(classifier=classifier)
    rest = run(classifier=classifier, resume=half)
    assert torch.allclose(torch.cat([half.x, rest.x]), known.x, atol=1e-9)
    assert rest.sweeps == 4 and torch.equal(rest.noisy, known.noisy)
    one = denoising_mcmc(
        model, process, keys[4:5], like[4:5], levels, sweeps=2, steps=3, classifier=classifier
    )
    assert torch.allclose(one.x[:, 0], half.x[:, 4], atol=1e-9)


def test_chains_stay_in_their_space():
    process = Process(Part(Centred(), Path.linear()))
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    chain = denoising_mcmc(
        halve, process, Keys.for_samples(0, range(2)), torch.zeros(2, 5, 3), (0.3, 0.6), mask,
        sweeps=2, steps=2, probes=1,
    )
    x = chain.x[0]
    assert x.sum(1).abs().max() < 1e-5 and (x[~mask] == 0.0).all() and x.dtype == torch.float32


def test_chain_settings_are_checked():
    process, keys = Process(Part(Flat(), Path.linear())), Keys.for_samples(0, range(2))
    run = partial(denoising_mcmc, halve, process, keys, torch.zeros(2, 3))
    with pytest.raises(UserError, match="level 0.0 of part 'x' needs both data and noise"):
        run((0.0, 0.5))
    with pytest.raises(UserError, match="levels must be two or more increasing times"):
        run((0.5, 0.3))
    with pytest.raises(UserError, match="stable for ratios between 0 and 1, got 2"):
        run((0.3, 0.5), ratio=2)
    with pytest.raises(UserError, match=r"the classifier must return \(2, 2\), got \(2, 3\)"):
        run((0.3, 0.5), sweeps=1, classifier=lambda y: torch.zeros(2, 3))
    with pytest.raises(UserError, match="3 keys for 2 chains"):
        denoising_mcmc(
            halve, process, Keys.for_samples(0, range(3)), torch.zeros(2, 3), (0.3, 0.5)
        )
    with pytest.raises(UserError, match="2 probes need keys"):
        level_log_density(halve, process, torch.zeros(2, 3), (0.3, 0.5), probes=2)
