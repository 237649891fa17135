"""Solver tables against closed forms: exact laws, constant data, measured orders, a reference."""

from __future__ import annotations

import math
from functools import lru_cache, partial

import pytest
import torch

from driftworks.core import grids, solvers
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, Mixture, table_law
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
}
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


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("name", solvers.SOLVERS)
def test_coefficients_are_finite_and_the_last_row_shows_the_data(path, name):
    for grid in (grids.uniform(1), grids.uniform(7), grids.karras(path, 9), (0.3, 0.9)):
        table = solvers.solver(name)(path, grid)
        assert all(math.isfinite(v) for row in (*table.a, *table.b, table.c) for v in row)
        assert all(
            len(field) == table.evaluations
            for field in (table.times, table.ends, table.a, table.b, table.c)
        )
        assert table.times[0] == grid[0] and table.ends[-1] == grid[-1]
        if grid[-1] == 1.0:
            assert (sum(table.a[-1]), table.b[-1], table.c[-1]) == (0.0, (path.beta(1.0),), 0.0)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("build", EXPONENTIAL.values(), ids=EXPONENTIAL)
def test_exponential_solvers_are_exact_when_the_denoised_state_is_constant(path, build):
    grid = grids.uniform(13)
    table = build(path, grid)
    for t, u, a, b, c in zip(table.times, table.ends, table.a, table.b, table.c, strict=True):
        sigma = 0.0 if u == 1.0 else path.sigma(u)
        assert a[0] * path.beta(t) + sum(b) == pytest.approx(path.beta(u), abs=1e-12)
        assert math.hypot(a[0] * path.sigma(t), c) == pytest.approx(sigma, rel=1e-11, abs=1e-12)


@lru_cache
def flow(path, name, low, high, n):
    """The end of 48 trajectories of the golden mixture's flow."""
    law = Mixture([0.3, 0.7], [-2.0, 1.5], [0.09, 0.25])
    model, process = law.on(path), Process(Part(Flat(), path))
    keys = Keys.for_samples(3, range(48))
    spread = math.sqrt(path.beta(low) ** 2 * 1.5 + path.sigma(low) ** 2)
    x = keys.normal("start", 0, (1,), torch.float64) * spread

    grid = [low + (high - low) * k / n for k in range(n)] + [high]
    return sample(
        model, process, keys, (1,), solver=name, grid=grid, initial=x, dtype=torch.float64
    ).x


def flow_error(path, name, low, high, counts):
    """Mean error over the batch, against a fine solution, for each count of steps."""
    reference = flow(path, "heun", low, high, 1500)
    return [(flow(path, name, low, high, n) - reference).abs().mean().item() for n in counts]


@pytest.mark.parametrize("name", ["euler", "heun", "ddim", "dpmpp1", "dpmpp2", "dpmpp3"])
@pytest.mark.parametrize(
    ("path", "low", "high"),
    [("linear", 0.05, 0.95), ("cosine", 0.05, 0.95), ("vp", 0.05, 0.95), ("ve", 0.1, 0.97)],
)
def test_deterministic_solvers_have_the_declared_order(path, low, high, name):
    declared = solvers.solver(name)(PATHS[path], (low, high)).order
    coarse, fine = flow_error(PATHS[path], name, low, high, (60, 120))
    assert math.log2(coarse / fine) >= declared - 0.2, (coarse, fine)


@pytest.mark.parametrize("name", ["euler", "heun", "ddim", "dpmpp3"])
@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_the_jump_to_the_data_keeps_the_declared_order(path, name):
    declared = solvers.solver(name)(PATHS[path], (0.0, 1.0)).order
    coarse, fine = flow_error(PATHS[path], name, 0.0, 1.0, (120, 240))
    assert math.log2(coarse / fine) >= declared - 0.2, (coarse, fine)


def test_dpmpp3_declares_order_three_only_where_it_has_it():
    three = [n for n, p in PATHS.items() if solvers.dpmpp(p, (0.05, 0.5, 0.95), 3).order == 3]
    assert three == ["vp", "subvp", "ve", "edm"]
    assert solvers.dpmpp(Path.vp(), (0.0, 0.5, 1.0), 3).order == 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddpm", {}),
        ("dpmpp1", {"eta": 1.0}),
        ("dpmpp2", {"eta": 1.0}),
        ("dpmpp3", {"eta": 0.5}),
        ("euler_maruyama", {}),
        ("euler_maruyama", {"profile": "sigma", "noise": 2.0}),
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


def test_mistakes_name_the_choices():
    with pytest.raises(UserError, match="unknown solver 'dpm'; choose one of euler, heun, ddim"):
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
