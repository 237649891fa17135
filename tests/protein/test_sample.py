"""Samplers against closed forms: no trained network is needed to know what they must give."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from driftworks.core import checkpoint, grids
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, Mixture, table_law, w2
from driftworks.core.likelihood import log_prob
from driftworks.core.paths import Path
from driftworks.errors import UserError
from driftworks.protein.designs import Designs
from driftworks.protein.network import NetConfig, build, build_jumping
from driftworks.protein.process import chain_process
from driftworks.protein.sample import LAST, annealed, generate, guided, low_temperature
from driftworks.protein.zoo import load

LINEAR = Path.linear()


def everyone(count, length):
    return Keys.for_samples(11, range(count)), torch.ones(count, length, dtype=torch.bool)


def test_at_gamma_one_the_sde_keeps_the_marginals_with_an_error_of_first_order():
    law = Gaussian(torch.tensor(0.7), torch.tensor(0.3))
    errors = []
    for steps in (100, 200, 400):
        grid = grids.log(steps)
        states = table_law(low_temperature(1.0)(LINEAR, grid), law.on(LINEAR))
        errors.append(
            max(
                w2(state, Gaussian(u * law.mean, u * u * 0.3 + (1 - u) ** 2))
                for u, state in zip(grid[1:-1], states[:-1], strict=True)
                if u > 0.5
            )
        )
    assert errors[-1] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.25)


@pytest.mark.parametrize("gamma", [0.0, 0.2, 0.45])
def test_at_low_temperature_the_spread_is_that_of_the_continuous_sde(gamma):
    """V' = 2 (b + g s) V + 2 g gamma with b, s the slopes of velocity and score of N(0, v)."""
    v = 0.4

    def slope(t, variance):
        total = t * t * v + (1 - t) ** 2
        velocity = (t * v - (1 - t)) / total
        g = 1 / (t + 0.01) if t <= LAST else 0.0
        return 2 * (velocity - g / total) * variance + 2 * g * gamma

    want = 1.0
    for begin, end in ((0.0, LAST), (LAST + 1e-12, 1.0)):
        run = solve_ivp(slope, (begin, end), [want], rtol=1e-9, atol=1e-12, method="LSODA")
        want = run.y[0, -1]
    got = table_law(low_temperature(gamma)(LINEAR, grids.log(400)), Gaussian(0.0, v).on(LINEAR))
    assert float(got[-1].variances) == pytest.approx(want, rel=0.01, abs=1e-4)
    if gamma > 0:
        assert want < v


def test_without_noise_the_chain_ends_where_the_published_loop_does():
    """x += (v + g (t v - x) / (1 - t)) dt to t = 0.99, then x += v dt, with many more steps."""
    g = torch.Generator().manual_seed(0)
    means = [torch.randn(6, 3, generator=g).double() for _ in range(3)]
    means = [m - m.mean(0) for m in means]
    oracle = Mixture([0.5, 0.3, 0.2], means, [0.05] * 3).on(LINEAR)
    keys, mask = everyone(6, 6)
    process = chain_process()
    times = []

    def watched(x, t, mask=None, cond=None, previous=None):
        times.append(float(t[0]))
        return oracle(x, t)

    out = generate(watched, process, keys, mask, 400, gamma=0.0, dtype=torch.float64)
    assert times == pytest.approx([(1 - 10 ** (-2 * k / 400)) / 0.99 for k in range(400)])
    assert out.nfe == 400
    x = process.prior(keys, torch.empty(6, 6, 3, dtype=torch.float64), mask)
    grid = [(1 - 10 ** (-2 * k / 3000)) / 0.99 for k in range(3001)]
    for t, u in zip(grid[:-1], grid[1:], strict=True):
        denoised = oracle(x, torch.full((6,), t, dtype=torch.float64))
        v = (denoised - x) / (1 - t)
        if t <= 0.99:
            v = v + (t * v - x) / (1 - t) / (t + 0.01)
        x = x + v * (u - t)
    assert torch.allclose(out.x, x - x.mean(1, keepdim=True), atol=0.02)


@pytest.mark.parametrize(("solver", "gamma"), [("ode", 1.0), ("sde", 1.0)])
def test_both_solvers_draw_the_modes_of_a_mixture_in_their_shares(solver, gamma):
    g = torch.Generator().manual_seed(3)
    means = [0.5 * torch.randn(8, 3, generator=g).double() for _ in range(3)]
    means = [m - m.mean(0) for m in means]
    weights = torch.tensor([0.6, 0.3, 0.1])
    oracle = Mixture(weights, means, [0.01] * 3).on(LINEAR)
    keys, mask = everyone(600, 8)
    x = generate(oracle, chain_process(), keys, mask, 100, solver=solver, gamma=gamma).x
    distance = torch.stack([(x - m.float()).square().mean((1, 2)) for m in means], 1)
    near, which = distance.min(1)
    share = torch.bincount(which, minlength=3) / 600
    assert (share - weights).abs().max() < 3.5 * math.sqrt(0.25 / 600)
    assert float(near.mean()) == pytest.approx(0.01 * 7 / 8, rel=0.1)  # seven free of eight points


def test_lower_gamma_sharpens_and_loses_rare_modes():
    g = torch.Generator().manual_seed(3)
    means = [0.5 * torch.randn(8, 3, generator=g).double() for _ in range(2)]
    means = [m - m.mean(0) for m in means]
    oracle = Mixture([0.7, 0.3], means, [0.03] * 2).on(LINEAR)
    keys, mask = everyone(300, 8)
    spreads = []
    for gamma in (1.0, 0.5, 0.2):
        x = generate(oracle, chain_process(), keys, mask, 100, gamma=gamma).x
        distance = torch.stack([(x - m.float()).square().mean((1, 2)) for m in means], 1)
        spreads.append(float(distance.min(1)[0].mean()))
    assert spreads[0] > 1.2 * spreads[1] > 1.2 * 1.2 * spreads[2]


def test_the_flow_has_the_likelihood_of_its_data():
    v, count, length = 0.35, 5, 6
    process = chain_process()
    g = torch.Generator().manual_seed(5)
    x = math.sqrt(v) * torch.randn(count, length, 3, generator=g, dtype=torch.float64)
    x = x - x.mean(1, keepdim=True)
    got = log_prob(Gaussian(0.0, v).on(LINEAR), process, x, times=(0.0, 1.0 - 1e-6))
    free = 3 * (length - 1)
    want = -0.5 * (x.square().sum((1, 2)) / v + free * math.log(2 * math.pi * v))
    assert torch.allclose(got.value, want, atol=2e-3)


class Conditional:
    """Gaussian data whose mean the label shifts along x; label 4 asks for nothing."""

    def __init__(self, shift):
        self.shift = shift

    def __call__(self, x, t, mask=None, cond=None, previous=None):
        push = torch.linspace(-1, 1, x.shape[1]).view(1, -1, 1) * (cond["label"] < 4).view(-1, 1, 1)
        return x * t.view(-1, 1, 1) + self.shift * push

    @staticmethod
    def null(cond):
        return {"label": torch.full_like(cond["label"], 4)}


@pytest.mark.parametrize("mix", [0.0, 0.4, 1.0])
def test_guidance_is_the_published_combination_of_three_models(mix):
    strong, weak = Conditional(1.0), Conditional(0.3)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([0.2, 0.7]), {"label": torch.tensor([1, 2])}
    w = 2.2
    got = guided(strong, w, weak, mix)(x, t, cond=cond)
    null = strong(x, t, cond=strong.null(cond))
    want = w * strong(x, t, cond=cond) + (1 - w) * (mix * weak(x, t, cond=cond) + (1 - mix) * null)
    assert torch.allclose(got, want, atol=1e-6)
    assert guided(strong, 1.0, weak, mix) is strong


def test_annealing_with_weights_samples_the_power_of_the_law():
    """q^2 of a mixture of two modes of equal width has the shares w_i^2, and half the variance."""
    shape = torch.tensor([[0.4, 0.1, 0.0], [-0.4, 0.1, 0.0], [0.0, -0.2, 0.0]]).double()
    oracle = Mixture([0.65, 0.35], [shape, -shape], [0.02, 0.02]).on(LINEAR)
    keys, mask = everyone(1500, 3)
    drawn, rows = annealed(oracle, chain_process(), keys, mask, 2.0, 150)
    x = drawn.x[rows]
    distance = torch.stack([(x - m).square().sum((1, 2)) for m in (shape, -shape)], 1)
    near, which = distance.min(1)
    want = 0.65**2 / (0.65**2 + 0.35**2)
    assert float((which == 0).float().mean()) == pytest.approx(want, abs=0.06)
    assert float(near.mean()) == pytest.approx(0.01 * 6, rel=0.12)


SMALL = NetConfig(width=32, pair_width=16, heads=4, layers=2, rounds=2, radial=8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A teacher, a student and a flow map with random weights, as checkpoints."""
    out = {}
    for role in ("teacher", "student", "flowmap"):
        net = (build_jumping if role == "flowmap" else build)(SMALL)
        g = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=g))
        out[role] = tmp_path_factory.mktemp(role)
        meta = {
            "kind": "protein",
            "role": role,
            "net": SMALL.model_dump(mode="json"),
            "lengths": [10, 30],
            "times": [0.3, 0.7, 0.9],
        }
        checkpoint.save(out[role], {k: v.half() for k, v in net.state_dict().items()}, meta)
    return out


SETTINGS = {"teacher": {"steps": 6}, "student": {}, "flowmap": {"steps": 3, "gamma": 0.5}}


@pytest.mark.parametrize("role", list(SETTINGS))
def test_a_sample_depends_on_its_key_and_length_alone(folders, role):
    model = load(folders[role], "cpu")
    lengths, labels = [12, 20, 12, 20, 17, 12, 20], [0, 4, 1, 4, 2, 3, 4]
    settings = {**SETTINGS[role], "seed": 5}
    whole = model.sample(lengths, label=labels, **settings)
    assert whole.finite.all() and whole.lengths.tolist() == lengths
    apart = model.sample(lengths, label=labels, batch_size=1, **settings)
    assert torch.equal(whole.ca, apart.ca) and torch.equal(whole.confidence, apart.confidence)
    tail = model.sample(lengths[4:], label=labels[4:], first=4, **settings)
    assert torch.equal(whole.ca[4:, :20], tail.ca)  # other neighbours, other padding
    one = model.sample(12, label=1, first=2, **settings)
    assert torch.equal(one.ca[0], whole.ca[2, :12])
    other = model.sample(lengths, label=labels, **{**settings, "seed": 6})
    assert (other.ca - whole.ca).abs().max() > 1.0
    warmer = model.sample(lengths, label=labels, **{**settings, "gamma": 0.9})
    assert (warmer.ca - whole.ca).abs().max() > 0.1


def test_designs_know_what_made_them(folders):
    student = load(folders["student"], "cpu")
    designs = student.sample([12, 20], seed=2)
    assert isinstance(designs, Designs)
    assert designs.provenance["network_calls"] == 3 and designs.provenance["role"] == "student"
    assert (designs.confidence[0, :12] > 0).all() and (designs.confidence[0, 12:] == 0).all()
    short = designs[[0]].trimmed()
    assert short.ca.shape == (1, 12, 3) and short.confidence.shape == (1, 12)
    assert torch.equal(short.confidence[0], designs.confidence[0, :12])
    assert student.sample([12], steps=7).provenance["network_calls"] == 7
    assert student.sample([12], steps=[0.5]).provenance["network_calls"] == 1


def test_confidence_follows_what_the_model_knows(folders):
    """A model that always answers the same chain is sure of it; noise around it says so."""
    teacher = load(folders["teacher"], "cpu")
    still = torch.zeros(1, 15, 3)
    still[0, :, 0] = torch.linspace(-1, 1, 15)
    shaky = torch.zeros(15, dtype=torch.bool)
    shaky[10:] = True

    def answer(x, t, mask=None, cond=None, previous=None):
        return torch.where(shaky.view(1, -1, 1), x, still)

    teacher.net = answer  # type: ignore[assignment]
    designs = teacher.sample([15] * 4, steps=5)
    sure, unsure = (
        designs.confidence[:, s].square().mean().sqrt() for s in (slice(10), slice(10, 15))
    )
    # x_t - x_1 = (1 - t) (x_0 - x_1): the shaky ones miss by the noise, 2 angstrom an axis
    assert 2.5 < float(unsure) < 6.0 and float(sure) < 0.2 * float(unsure)


@pytest.mark.parametrize(
    ("lengths", "settings", "message"),
    [
        ([1], {}, "at least 2"),
        ([0], {}, "at least 2"),
        ([], {}, "whole numbers"),
        ([12.5], {}, "whole numbers"),
        ("80", {}, "whole numbers"),
        ([12], {"steps": 0}, "at least 1"),
        ([12], {"gamma": -1.0}, "gamma"),
        ([12], {"gamma": math.nan}, "gamma"),
        ([12], {"label": "helical"}, "alpha, beta"),
        ([12], {"label": 7}, "alpha, beta"),
        ([12, 12], {"label": [1]}, "1 labels for 2"),
        ([12], {"guidance": 2.0}, "give one"),
        ([12], {"solver": "rk4"}, "sde, ode"),
        ([12], {"seed": "x"}, "seed"),
        ([12], {"batch_size": 0}, "batch_size"),
    ],
)
def test_requests_that_make_no_sense_are_refused(folders, lengths, settings, message):
    with pytest.raises(UserError, match=message):
        load(folders["teacher"], "cpu").sample(lengths, **settings)


def test_a_student_takes_no_guidance(folders):
    with pytest.raises(UserError, match="teachers"):
        load(folders["student"], "cpu").sample([12], guidance=2.0, label=1)


def test_lengths_outside_the_trained_range_are_warned_of(folders):
    model = load(folders["student"], "cpu")
    with pytest.warns(RuntimeWarning, match="10-30"):
        model.sample([40])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.sample([10, 30])


def test_broken_checkpoints_are_named(folders, tmp_path):
    tensors, meta = checkpoint.load(folders["teacher"])
    checkpoint.save(tmp_path / "a", {k: v * np.nan for k, v in tensors.items()}, meta)
    with pytest.raises(UserError, match="not finite"):
        load(tmp_path / "a")
    checkpoint.save(tmp_path / "b", tensors, {k: v for k, v in meta.items() if k != "net"})
    with pytest.raises(UserError, match="lacks"):
        load(tmp_path / "b")
    with pytest.raises(UserError, match="no model"):
        load(tmp_path / "nowhere")
