"""Solver tables against closed forms: exact laws, constant data, measured orders, a reference."""

from __future__ import annotations

import math
import os
import random
from functools import partial

import numpy as np
import pytest
import torch

from driftworks.core import grids, solvers
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, Mixture, table_law, w2
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.sample import sample
from driftworks.core.spaces import Flat
from driftworks.errors import UserError

PATHS = {
    "linear": Path.linear(),
    "cosine": Path.cosine(),
    "vp": Path.vp(),
    "subvp": Path.subvp(),
    "ve": Path.ve(),
    "edm": Path.edm(),
    "mean_reverting": Path.mean_reverting(),
}
SEED = int.from_bytes(os.urandom(4))
RANDOM = random.Random(SEED)
GRIDS = ("uniform", "power", "karras", "log_snr")
SMOOTH = Mixture([0.4, 0.6], [-1.2, 1.0], [0.3, 0.4])
MIXTURE = Mixture([0.3, 0.7], [-2.0, 1.5], [0.09, 0.25])
EXPONENTIAL = {
    f"{name} eta={eta}": partial(build, eta=eta)
    for eta in (0.0, 0.5, 1.0)
    for name, build in {
        "ddim": solvers.ddim,
        "dpmpp1": partial(solvers.dpmpp, order=1),
        "dpmpp2": partial(solvers.dpmpp, order=2),
        "dpmpp3": partial(solvers.dpmpp, order=3),
    }.items()
}


def last_law(table, path, start=None):
    law = table_law(table, Gaussian(1.0, 0.25).on(path), start)[-1]
    return law.mean.item(), law.matrix(1).item()


@pytest.mark.parametrize(
    ("profile", "golden"),
    [
        (None, [0.136331, 0.185574, 0.215526, 0.235610, 0.242700, 0.249260]),
        ("sigma", [0.233554, 0.235835, 0.241384, 0.246165, 0.248016, 0.249795]),
        ("constant", [0.400000, 0.291869, 0.267353, 0.256298, 0.253055, 0.250297]),
    ],
)
def test_euler_and_euler_maruyama_have_the_golden_variances_on_the_linear_path(profile, golden):
    path = Path.linear()
    for n, variance in zip((5, 10, 20, 50, 100, 1000), golden, strict=True):
        table = (
            solvers.euler(path, grids.uniform(n))
            if profile is None
            else solvers.euler_maruyama(path, grids.uniform(n), 1.0, profile, denoise=False)
        )
        mean, measured = last_law(table, path)
        assert mean == pytest.approx(1.0, abs=1e-12)
        assert measured == pytest.approx(variance, abs=6e-7)


@pytest.mark.parametrize(
    ("eta", "golden"),
    [
        (0.0, [0.136701, 0.185942, 0.222138, 0.235605, 0.248487]),
        (1.0, [0.111178, 0.153280, 0.197218, 0.219212, 0.246110]),
    ],
)
def test_ddim_and_ddpm_have_the_golden_variances_on_the_vp_path(eta, golden):
    path = Path.vp()
    for n, variance in zip((10, 20, 50, 100, 1000), golden, strict=True):
        table = solvers.ddim(path, grids.uniform(n), eta)
        mean, measured = last_law(table, path, Gaussian(torch.zeros(1), torch.eye(1)))
        assert measured == pytest.approx(variance, abs=6e-7)
        if eta == 1.0:
            assert mean == pytest.approx(0.999989, abs=6e-7)


@pytest.mark.parametrize(
    ("eta", "golden"), [(0.0, [0.29102, 0.26696, 0.25205]), (1.0, [0.28224, 0.28810, 0.25613])]
)
def test_dpmpp2_has_the_golden_variances_on_the_karras_grid(eta, golden):
    path = Path.edm()
    for n, variance in zip((10, 20, 50), golden, strict=True):
        table = solvers.dpmpp(path, grids.karras(path, n, low=0.02, high=80.0), 2, eta)
        assert last_law(table, path)[1] == pytest.approx(variance, abs=6e-6)


def grid_of(path, name, steps):
    if name in ("karras", "log_snr"):
        return getattr(grids, name)(path, steps)
    return getattr(grids, name)(steps)


def permitted(name, path, grid):
    """The grid, moved off the start where the solver does not exist there."""
    infinite = name == "s4" and path.beta(grid[0]) == 0.0
    return (grid[0] + 0.5 * (grid[1] - grid[0]), *grid[1:]) if infinite else grid


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("name", solvers.SOLVERS)
def test_coefficients_are_finite_and_the_last_row_shows_the_data(path, name):
    chosen = [grid_of(path, g, n) for g in GRIDS for n in (2, 9)]
    for given in ((0.0, 1.0), (0.3, 0.9), *chosen):
        grid = permitted(name, path, given)
        table = solvers.solver(name)(path, grid)
        assert all(math.isfinite(v) for row in (*table.a, *table.b, table.c) for v in row)
        assert all(
            len(field) == table.evaluations == len(table)
            for field in (table.times, table.ends, table.a, table.b, table.c)
        )
        assert table.times[0] == grid[0] and table.ends[-1] == grid[-1]
        assert list(table.times[1:]) == list(table.ends[:-1]) == sorted(table.times[1:])
        if grid[-1] == 1.0:
            assert sum(table.a[-1]) == table.c[-1] == 0.0
            assert sum(table.b[-1]) == pytest.approx(path.beta(1.0), abs=1e-12)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("name", solvers.SOLVERS)
def test_the_law_of_many_steps_is_the_law_of_the_data(path, name):
    mean, deviation = RANDOM.uniform(-1.0, 1.0), RANDOM.uniform(0.3, 1.5)
    print(f"seed {SEED}: mean {mean}, deviation {deviation}")
    scale, errors = math.hypot(mean, deviation), []
    for n in (24, 96):
        grid = permitted(name, path, grids.karras(path, n))
        beta, sigma = path.beta(grid[0]), path.sigma(grid[0])
        start = Gaussian([beta * mean], [[(beta * deviation) ** 2 + sigma**2]])
        table = solvers.solver(name)(path, grid)
        law = table_law(table, Gaussian(mean, deviation**2).on(path), start)[-1]
        errors.append(w2(law, Gaussian([mean], [[deviation**2]])) / scale)
    assert errors[1] < 0.4 and errors[1] < 0.5 * errors[0] + 0.01, errors


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("build", EXPONENTIAL.values(), ids=EXPONENTIAL)
def test_exponential_solvers_are_exact_when_the_denoised_state_is_constant(path, build):
    grid = grids.uniform(13)
    table = build(path, grid)
    for t, u, a, b, c in zip(table.times, table.ends, table.a, table.b, table.c, strict=True):
        sigma = 0.0 if u == 1.0 else path.sigma(u)
        assert a[0] * path.beta(t) + sum(b) == pytest.approx(path.beta(u), abs=1e-12)
        assert math.hypot(a[0] * path.sigma(t), c) == pytest.approx(sigma, rel=1e-11, abs=1e-12)


def share_below(law, path, x, t):
    """The distribution function of a one-dimensional mixture at time t."""
    total = torch.zeros_like(x)
    for weight, part in zip(law.weights, law.components, strict=True):
        spread = path.beta(t) ** 2 * part.variances + path.sigma(t) ** 2 * (t < 1.0)
        total += weight * torch.special.ndtr((x - path.beta(t) * part.mean) / spread.sqrt())
    return total


def quantile(law, path, share, t):
    """Its inverse, by bisection."""
    high = torch.full_like(share, 20.0 * (1.0 + path.sigma(t)))
    low = -high
    for _ in range(80):
        middle = 0.5 * (low + high)
        below = share_below(law, path, middle, t) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def transport(law, path, x, t, u):
    """The flow's exact map from t to u: in one dimension it keeps the share of the law below x."""
    return quantile(law, path, share_below(law, path, x, t), u)


def follow(table, x, model):
    """The table carried out literally: the last state, from x."""
    states, answers = [x], []
    for t, a, b in zip(table.times, table.a, table.b, strict=True):
        answers.insert(0, model(states[0], t))
        new = sum(w * y for w, y in zip(a, states, strict=False))
        states.insert(0, new + sum(w * y for w, y in zip(b, answers, strict=False)))
        del states[5:], answers[5:]
    return states[0]


def flow_errors(path, name, low, high):
    """Mean error of 48 trajectories of a mixture's flow, for two numbers of steps.

    The leading error of abm is so small that others hide it until the steps are short.
    """
    counts = {"abm2": (240, 480), "abm3": (480, 960)}.get(name, (60, 120))
    law = SMOOTH if name == "abm3" else MIXTURE
    spread = math.sqrt(path.beta(low) ** 2 * 1.5 + path.sigma(low) ** 2)
    x = torch.randn(48, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * spread
    exact, model = transport(law, path, x, low, high), law.on(path)
    errors = []
    for n in counts:
        grid = [low + (high - low) * k / n for k in range(n)] + [high]
        found = follow(solvers.solver(name)(path, grid), x, model)
        errors.append((found - exact).abs().mean().item())
    return errors


DETERMINISTIC = [
    "euler", "heun", "midpoint", "rk4", "ddim", "dpmpp1", "dpmpp2", "dpmpp3", "abm2", "abm3",
]


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize(
    ("path", "low", "high"),
    [("linear", 0.05, 0.95), ("cosine", 0.05, 0.95), ("vp", 0.05, 0.95), ("ve", 0.1, 0.97)],
)
def test_deterministic_solvers_have_the_declared_order(path, low, high, name):
    declared = solvers.solver(name)(PATHS[path], (low, high)).order
    coarse, fine = flow_errors(PATHS[path], name, low, high)
    assert math.log2(coarse / fine) >= declared - 0.2, (coarse, fine)


@pytest.mark.parametrize("name", [n for n in DETERMINISTIC if not n.startswith("dpmpp")])
@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_the_jump_to_the_data_keeps_the_declared_order(path, name):
    declared = solvers.solver(name)(PATHS[path], (0.0, 1.0)).order
    coarse, fine = flow_errors(PATHS[path], name, 0.0, 1.0)
    assert math.log2(coarse / fine) >= declared - 0.2, (coarse, fine)


def test_a_first_row_without_memory_leaves_dpmpp3_at_order_two():
    path, low, high = Path.vp(), 0.4, 0.95
    x = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None]
    exact, errors = transport(MIXTURE, path, x, low, high), []
    for n in (120, 240):
        table = solvers.dpmpp(path, [low + (high - low) * k / n for k in range(n + 1)], 3)
        errors.append((follow(table, x, MIXTURE.on(path)) - exact).abs().mean().item())
    assert table.order == 2 and 1.8 < math.log2(errors[0] / errors[1]) < 2.5


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddpm", {}),
        ("dpmpp1", {"eta": 1.0}),
        ("dpmpp2", {"eta": 1.0}),
        ("dpmpp3", {"eta": 0.5}),
        ("euler_maruyama", {}),
        ("euler_maruyama", {"profile": "sigma", "noise": 2.0}),
        ("reverse_diffusion", {}),
        ("ancestral", {"variance": "forward"}),
        ("s4", {}),
    ],
)
def test_stochastic_solvers_have_the_declared_weak_order(name, options):
    path = Path.cosine()
    oracle = Gaussian(1.0, 0.25).on(path)

    def variance(t):
        return 0.25 * path.beta(t) ** 2 + path.sigma(t) ** 2

    start = Gaussian(torch.tensor([path.beta(0.1)]), torch.tensor([[variance(0.1)]]))
    errors = []
    for n in (160, 320):
        table = solvers.solver(name, **options)(path, [0.1 + 0.8 * k / n for k in range(n + 1)])
        law = table_law(table, oracle, start)[-1]
        errors.append(abs(law.matrix(1).item() - variance(0.9)))
    assert table.stochastic and math.log2(errors[0] / errors[1]) >= table.order - 0.2, errors


MATCHED = {
    "euler linear": ("euler", {}, "linear"),
    "heun cosine": ("heun", {}, "cosine"),
    "dpmpp2 linear": ("dpmpp2", {}, "linear"),
    "dpmpp3 edm": ("dpmpp3", {}, "edm"),
    "ddpm vp": ("ddpm", {}, "vp"),
    "ddim eta=.5 linear": ("ddim", {"eta": 0.5}, "linear"),
    "dpmpp2 eta=1 linear": ("dpmpp2", {"eta": 1.0}, "linear"),
    "dpmpp3 eta=1 ve": ("dpmpp3", {"eta": 1.0}, "ve"),
    "em linear": ("euler_maruyama", {"denoise": False}, "linear"),
    "abm3 vp": ("abm3", {}, "vp"),
    "rk4 linear": ("rk4", {}, "linear"),
    "reverse_diffusion subvp": ("reverse_diffusion", {}, "subvp"),
    "s4 vp": ("s4", {"ratio": 0.2}, "vp"),
    "predictor_corrector cosine": (
        "predictor_corrector", {"corrector": "leimkuhler_matthews", "steps": 2}, "cosine"
    ),
    "em sigma cosine": ("euler_maruyama", {"profile": "sigma", "noise": 2.0}, "cosine"),
}


@pytest.mark.parametrize(("name", "options", "path"), MATCHED.values(), ids=MATCHED)
def test_samples_match_the_exact_finite_step_law_within_four_standard_errors(name, options, path):
    path = PATHS[path]
    oracle = Gaussian(1.0, 0.25).on(path)
    grid = grids.karras(path, 12) if path in (Path.edm(), Path.ve()) else grids.uniform(12)
    build = solvers.solver(name, **options)
    law = table_law(build(path, grid), oracle)[-1]
    keys = Keys.for_samples(11, range(2000))
    x = sample(
        oracle, Process(Part(Flat(), path)), keys, (100,), solver=build, grid=grid,
        dtype=torch.float64,
    ).x
    n, mean, variance = x.numel(), law.mean.item(), law.matrix(1).item()
    assert n == 200_000
    assert abs(x.mean().item() - mean) < 4 * math.sqrt(variance / n)
    assert abs(x.var().item() - variance) < 4 * variance * math.sqrt(2 / n)


def test_the_law_of_a_correlated_gaussian_matches_samples_in_every_covariance():
    path = Path.linear()
    cov = torch.tensor([[1.0, 0.8, 0.0], [0.8, 0.8, 0.1], [0.0, 0.1, 0.3]], dtype=torch.float64)
    oracle = Gaussian(torch.tensor([0.5, -0.3, 1.0]), cov).on(path)
    build = solvers.solver("dpmpp2", eta=0.7)
    law = table_law(build(path, grids.uniform(9)), oracle)[-1]
    n = 40_000
    keys = Keys.for_samples(5, range(n))
    x = sample(
        oracle, Process(Part(Flat(), path)), keys, (3,), solver=build, steps=9, dtype=torch.float64
    ).x
    exact, measured = law.matrix(3), x.mT.cov()
    error = (exact.diag().outer(exact.diag()) + exact**2).div(n).sqrt()
    assert ((measured - exact).abs() < 4 * error).all()
    assert ((x.mean(0) - law.mean).abs() < 4 * (exact.diag() / n).sqrt()).all()


def test_table_law_gives_one_law_a_row_and_refuses_mixtures():
    path = Path.cosine()
    table = solvers.heun(path, grids.uniform(5))
    assert (table.evaluations, table.stochastic) == (9, False)
    assert len(table_law(table, Gaussian(0.0, 1.0).on(path))) == 9
    with pytest.raises(UserError, match="Gaussian"):
        table_law(table, Mixture([1.0], [0.0], [1.0]).on(path))


def test_dpmpp2_is_the_2m_method_in_sigma_form():
    path = Path.edm()
    grid = grids.karras(path, 20, low=0.02)
    oracle = Mixture([0.3, 0.7], [-2.0, 1.5], [0.09, 0.25]).on(path)
    keys = Keys.for_samples(2, range(64))
    x = keys.normal("start", 0, (5,), torch.float64) * 80.0
    ours = sample(
        oracle, Process(Part(Flat(), path)), keys, (5,), solver="dpmpp2", grid=grid, initial=x,
        dtype=torch.float64,
    ).x
    sigmas, old, last = [path.sigma(t) for t in grid], None, None
    for t, s, u in zip(grid, sigmas, sigmas[1:], strict=False):
        d = oracle.denoised(x, t)
        if u == 0.0:
            x = d
            break
        h = math.log(s / u)
        mixed = d if old is None else d * (1 + h / (2 * last)) - old * (h / (2 * last))
        x, old, last = u / s * x - math.expm1(-h) * mixed, d, h
    assert (ours - x).abs().max() < 1e-12


@pytest.mark.parametrize("z", [1e-5, 9.9e-4, 1.1e-3, 0.3, 4.0])
def test_the_third_order_row_integrates_parabolas_exactly(z):
    r0, r1 = 0.7, 1.9
    weights = solvers._extrapolated(z, 3, r0, r1)
    s = torch.linspace(0, 1, 20001, dtype=torch.float64)
    kernel = z * torch.exp(-z * (1 - s))
    for power in (0, 1, 2):
        values = [1.0, (-r0) ** power, (-r0 - r1) ** power] if power else [1.0, 1.0, 1.0]
        if power:
            values[0] = 0.0
        exact = torch.trapezoid(kernel * s**power, s).item()
        got = sum(w * v for w, v in zip(weights, values, strict=True))
        assert got == pytest.approx(exact, rel=1e-8)


def coordinate(path, t, scale):
    """The 1 - sin(theta) in which abm interpolates."""
    return 1.0 - scale * path.beta(t) / math.hypot(scale * path.beta(t), path.sigma(t))


@pytest.mark.parametrize(("order", "scale"), [(2, 1.0), (2, 0.3), (3, 1.0), (3, 2.5)])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_abm_integrates_polynomials_of_its_coordinate(path, order, scale):
    grid = grids.karras(path, 8, low=0.05)
    powers = [RANDOM.uniform(-1.0, 1.0) for _ in range(order)]
    print(f"seed {SEED}: {powers}")

    def denoised(t):
        return sum(p * coordinate(path, t, scale) ** j for j, p in enumerate(powers))

    def step(t, u):
        """The integral of D over d(beta / sigma), by Gauss-Legendre in beta / (beta + sigma)."""
        v = [path.beta(s) / (path.beta(s) + path.sigma(s)) for s in (t, u)]
        total, half = 0.0, 0.5 * (v[1] - v[0])
        for node, weight in zip(*np.polynomial.legendre.leggauss(40), strict=True):
            place = v[0] + half * (1.0 + node)
            time = path.time_of_log_snr(2.0 * math.log(place / (1.0 - place)))
            total += half * weight * denoised(time) / (1.0 - place) ** 2
        return total

    x, exact, gap, answers = 0.0, 0.0, 0.0, []
    table = solvers.abm(path, grid, order, scale)
    for k, (t, u) in enumerate(zip(grid[:-2], grid[1:-1], strict=True)):
        answers.insert(0, denoised(t))
        x = table.a[k][0] * x + sum(w * d for w, d in zip(table.b[k], answers, strict=False))
        exact += step(t, u)
        if k >= order:
            # what rows with less memory missed is carried along unchanged in x / sigma
            assert x / path.sigma(u) - exact == pytest.approx(gap, rel=1e-6, abs=1e-7 * abs(exact))
        gap = x / path.sigma(u) - exact
        if order == 2 and k:
            assert gap == pytest.approx(0.0, abs=1e-7 * abs(exact) + 1e-12)
    answers.insert(0, denoised(grid[-2]))
    last = sum(w * d for w, d in zip(table.b[-1], answers, strict=False))
    assert last == pytest.approx(path.beta(1.0) * powers[0], abs=1e-9)


def test_abm_needs_hardly_any_step_for_a_gaussian_of_its_scale():
    path, law = Path.linear(), Gaussian([1.0], [[0.25]])
    oracle, grid = Gaussian(1.0, 0.25).on(path), grids.uniform(6)
    ours = w2(table_law(solvers.abm(path, grid, 2, 0.5), oracle)[-1], law)
    theirs = w2(table_law(solvers.dpmpp(path, grid, 2), oracle)[-1], law)
    assert ours < 1e-4 and theirs > 0.01


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("path", ["linear", "cosine", "vp", "ve", "edm"])
def test_abm_is_nearer_to_the_mixture_than_dpmpp2_at_equal_evaluations(path, steps):
    path = PATHS[path]
    share = (torch.arange(400, dtype=torch.float64) + 0.5)[:, None] / 400
    start, exact = (quantile(MIXTURE, path, share, t) for t in (0.0, 1.0))

    def distance(name, grid):
        found = follow(solvers.solver(name)(path, grid), start, MIXTURE.on(path))
        return (found.sort(0).values - exact).square().mean().sqrt().item()

    grid_choices = [
        grids.karras(path, steps, 0.02, 20.0), grids.karras(path, steps), grids.linear(path, steps)
    ]
    theirs = [distance("dpmpp2", grid) for grid in grid_choices]
    ours = [distance("abm2", grid) for grid in grid_choices]
    assert all(mine < other for mine, other in zip(ours, theirs, strict=True)), (ours, theirs)
    assert ours[-1] < 0.25 * min(theirs), (ours, theirs)


def test_mistakes_name_the_choices():
    with pytest.raises(UserError, match="unknown solver 'dpm'; choose one of euler, heun, midp"):
        solvers.solver("dpm")
    with pytest.raises(UserError, match="'euler' does not take eta; it takes no options"):
        solvers.solver("euler", eta=1.0)
    with pytest.raises(UserError, match="'dpmpp2' does not take order; it takes eta"):
        solvers.solver("dpmpp2", order=1)
    with pytest.raises(UserError, match="profile 'flat'; choose one of reverse, sigma, constant"):
        solvers.solver("euler_maruyama", profile="flat")(Path.linear(), (0.0, 1.0))
    with pytest.raises(UserError, match="eta"):
        solvers.ddim(Path.linear(), (0.0, 1.0), eta=2.0)
    with pytest.raises(UserError, match="orders 1, 2 and 3, got 4"):
        solvers.dpmpp(Path.linear(), (0.0, 1.0), order=4)
    for grid in ((0.0,), (0.0, 0.5, 0.5, 1.0), (-0.1, 1.0), (0.0, 1.1), (0.0, math.nan, 1.0)):
        with pytest.raises(UserError, match="grid"):
            solvers.euler(Path.linear(), grid)
