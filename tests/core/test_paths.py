"""Paths against the published formulas, automatic derivatives and each other."""

from __future__ import annotations

import math
import time

import pytest
import torch

from driftworks.core import grids, solvers
from driftworks.core.paths import Path
from driftworks.core.warps import Power, Sine
from driftworks.errors import UserError

WARPED = {
    "power 2 linear": Path.warped(Path.linear(), Power(2.0)),
    "power 1.5 cosine": Path.warped(Path.cosine(), Power(1.5)),
    "sine 2 linear": Path.warped(Path.linear(), Sine(2.0)),
    "sine 0.5 linear": Path.warped(Path.linear(), Sine(0.5)),
    "sine 1 vp": Path.warped(Path.vp(), Sine(1.0)),
    "sine 0.7 reverting": Path.warped(Path.mean_reverting(), Sine(0.7)),
    "power 3 ve": Path.warped(Path.ve(), Power(3.0)),
    "sine power vp": Path.warped(Path.warped(Path.vp(), Power(2.0)), Sine(1.0)),
    "power sine linear": Path.warped(Path.warped(Path.linear(), Sine(1.5)), Power(1.2)),
}
PATHS = {
    "linear": Path.linear(),
    "cosine": Path.cosine(),
    "vp": Path.vp(0.1, 20.0),
    "subvp": Path.subvp(0.1, 20.0),
    "ve": Path.ve(0.01, 50.0),
    "edm": Path.edm(80.0),
    "reverting": Path.mean_reverting(3.0, 0.1),
    **WARPED,
}
FORMULAS = (
    "beta", "sigma", "dbeta", "dsigma", "dvariance", "wronskian", "a", "lam", "log_snr",
)  # fmt: skip
INTERIOR = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def derivative(f, t):
    t = t.clone().requires_grad_()
    return torch.autograd.grad(f(t).sum(), t)[0]


@pytest.mark.parametrize(
    ("name", "beta", "sigma", "lam"),
    [
        ("linear", 0.5, 0.5, 1.0),
        ("cosine", 0.707107, 0.707107, 1.570796),
        ("vp", 0.281183, 0.959654, 5.025),
        ("subvp", 0.281183, 0.920936, 4.993588),
        ("ve", 1.0, 0.707107, 4.258597),
        ("edm", 1.0, 40.0, 3200.0),
        ("reverting", 0.223130, 0.097479, 0.03),
    ],
)
def test_every_path_has_its_golden_values_at_half_time(name, beta, sigma, lam):
    path = PATHS[name]
    assert path.beta(0.5) == pytest.approx(beta, abs=6e-7)
    assert path.sigma(0.5) == pytest.approx(sigma, abs=6e-7)
    assert path.lam(0.5) == pytest.approx(lam, abs=6e-7)


@pytest.mark.parametrize(
    ("name", "diffusion"),
    [
        ("linear", lambda u: 2 * u / (1 - u)),
        ("cosine", lambda u: math.pi * math.tan(math.pi * u / 2)),
        ("vp", lambda u: 0.1 + 19.9 * u),
        ("subvp", lambda u: (0.1 + 19.9 * u) * (1 - math.exp(-2 * (0.1 * u + 9.95 * u * u)))),
        ("ve", lambda u: 2 * math.log(5000) * (0.01 * 5000**u) ** 2),
        ("edm", lambda u: 2 * 6400 * u),
        ("reverting", lambda u: 0.06),
    ],
)
def test_twice_lam_is_the_squared_diffusion_of_the_published_sde(name, diffusion):
    for t in (0.03, 0.2, 0.5, 0.77, 0.98):
        assert 2 * PATHS[name].lam(t) == pytest.approx(diffusion(1 - t), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "variance", "velocity", "score", "denoised"),
    [
        ("linear", 0.312500, 0.760000, -0.640000, 1.080000),
        ("cosine", 0.625000, 1.117419, 0.011371, 0.997990),
        ("vp", 0.940702, 1.280282, -0.445218, 1.031297),
        ("subvp", 0.867889, 1.107746, -0.482570, 1.033923),
        ("ve", 0.750000, 1.703439, 0.400000, 0.900000),
        ("edm", 1600.25, 0.599906, 0.000187, 0.999953),
        ("reverting", 0.021949, 1.448209, -21.726370, 2.211952),
    ],
)
def test_gaussian_data_has_its_golden_answers_at_half_time(
    name, variance, velocity, score, denoised
):
    path, t, x = PATHS[name], 0.5, 0.7
    spread = path.beta(t) ** 2 * 0.25 + path.sigma(t) ** 2
    s = (path.beta(t) - x) / spread
    assert spread == pytest.approx(variance, abs=6e-7)
    assert s == pytest.approx(score, abs=6e-7)
    assert path.a(t) * x + path.lam(t) * s == pytest.approx(velocity, abs=6e-7)
    assert (x + path.sigma(t) ** 2 * s) / path.beta(t) == pytest.approx(denoised, abs=6e-7)


@every_path
def test_derivatives_agree_with_automatic_differentiation(path):
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(path.dbeta(INTERIOR), derivative(path.beta, INTERIOR), **close)
    torch.testing.assert_close(path.dsigma(INTERIOR), derivative(path.sigma, INTERIOR), **close)
    square = derivative(lambda t: path.sigma(t) ** 2, INTERIOR)
    torch.testing.assert_close(path.dvariance(INTERIOR), square, **close)


@every_path
def test_derived_rates_obey_their_definitions(path):
    t = INTERIOR
    beta, sigma, dbeta, dsigma = path.beta(t), path.sigma(t), path.dbeta(t), path.dsigma(t)
    wronskian = sigma * dbeta - dsigma * beta
    assert (wronskian > 0).all()
    torch.testing.assert_close(path.wronskian(t), wronskian, rtol=1e-12, atol=0)
    torch.testing.assert_close(path.a(t), dbeta / beta, rtol=1e-12, atol=0)
    lam = sigma**2 * dbeta / beta - sigma * dsigma
    torch.testing.assert_close(path.lam(t), lam, rtol=1e-11, atol=0)
    half = 0.5 * sigma**2 * derivative(path.log_snr, t)
    torch.testing.assert_close(path.lam(t), half, rtol=1e-9, atol=0)
    torch.testing.assert_close(path.log_snr(t), torch.log(beta**2 / sigma**2), rtol=0, atol=1e-11)


@every_path
@pytest.mark.parametrize("formula", FORMULAS)
def test_floats_and_tensors_of_any_shape_agree(path, formula):
    f = getattr(path, formula)
    times = torch.tensor([[0.0, 1e-9, 0.25], [0.5, 0.999, 1.0]], dtype=torch.float64)
    values = f(times)
    assert values.dtype == torch.float64 and values.shape == times.shape
    for t, value in zip(times.flatten().tolist(), values.flatten().tolist(), strict=True):
        assert isinstance(f(t), float)
        assert f(t) == pytest.approx(value, rel=1e-14, abs=1e-300)


@every_path
def test_low_precision_times_are_evaluated_in_float64(path):
    t = torch.rand(7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(path.sigma(t), path.sigma(t.double()))


INF = math.inf
ENDS = {  # formula: (value at 0, value at 1)
    "linear": {"beta": (0, 1), "sigma": (1, 0), "a": (INF, 1), "lam": (INF, 0),
               "wronskian": (1, 1), "log_snr": (-INF, INF), "dvariance": (-2, 0)},
    "cosine": {"beta": (0, 1), "sigma": (1, 0), "a": (INF, 0), "lam": (INF, 0),
               "wronskian": (math.pi / 2, math.pi / 2), "log_snr": (-INF, INF),
               "dvariance": (0, 0)},
    "vp": {"beta": (math.exp(-5.025), 1), "sigma": (math.sqrt(1 - math.exp(-10.05)), 0),
           "a": (10, 0.05), "lam": (10, 0.05), "dsigma": (-10 * math.exp(-10.05)
           / math.sqrt(1 - math.exp(-10.05)), -INF), "dvariance": (-20 * math.exp(-10.05), -0.1),
           "log_snr": (-math.log(math.expm1(10.05)), INF)},
    "subvp": {"beta": (math.exp(-5.025), 1), "sigma": (1 - math.exp(-10.05), 0),
              "dsigma": (-20 * math.exp(-10.05), -0.1), "lam": (10 * (1 - math.exp(-20.1)), 0)},
    "ve": {"beta": (1, 1), "sigma": (50, 0.01), "a": (0, 0),
           "lam": (2500 * math.log(5000), 1e-4 * math.log(5000))},
    "edm": {"beta": (1, 1), "sigma": (80, 0), "a": (0, 0), "lam": (6400, 0),
            "dvariance": (-12800, 0)},
    "reverting": {"beta": (math.exp(-3), 1), "sigma": (0.1 * math.sqrt(1 - math.exp(-6)), 0),
                  "a": (3, 3), "lam": (0.03, 0.03), "dvariance": (-0.06 * math.exp(-6), -0.06),
                  "wronskian": (0.3 * math.exp(-3) / math.sqrt(1 - math.exp(-6)), INF),
                  "log_snr": (-math.log(0.01 * math.expm1(6)), INF)},
    "power 2 linear": {"beta": (0, 1), "dbeta": (0, 2), "dsigma": (0, -2), "a": (INF, 2),
                       "lam": (INF, 0), "wronskian": (0, 2), "dvariance": (0, 0)},
    "power 1.5 cosine": {"a": (INF, 0), "lam": (INF, 0), "dsigma": (0, -0.75 * math.pi),
                         "wronskian": (0, 0.75 * math.pi)},
    "sine 2 linear": {"beta": (0, 1), "sigma": (1, 0), "dbeta": (0, 0), "dsigma": (0, 0),
                      "a": (INF, 0), "lam": (INF, 0), "wronskian": (0, 0)},
    "sine 0.5 linear": {"dbeta": (math.pi**2 / 4, 0), "wronskian": (math.pi**2 / 4, 0)},
    # sigma ~ sqrt(0.1 (1 - c)) and sqrt(1 - c) = cos(pi t / 2)
    "sine 1 vp": {"dsigma": (0, -0.5 * math.pi * math.sqrt(0.1)), "dvariance": (0, 0),
                  "wronskian": (0, 0.5 * math.pi * math.sqrt(0.1)), "lam": (0, 0)},
    "sine 0.7 reverting": {"dsigma": (0, -0.35 * math.pi * math.sqrt(0.06))},
    "power 3 ve": {"beta": (1, 1), "sigma": (50, 0.01), "dsigma": (0, -0.03 * math.log(5000))},
    "sine power vp": {"dsigma": (0, -0.5 * math.pi * math.sqrt(0.2))},
    "power sine linear": {"dsigma": (0, 0), "a": (INF, 0)},
}  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_ends_take_their_documented_values(name):
    for formula, wanted in ENDS[name].items():
        for t, value in zip((0, 1), wanted, strict=True):
            assert getattr(PATHS[name], formula)(t) == pytest.approx(value, rel=1e-12), (formula, t)


@every_path
def test_nothing_is_undefined_at_the_ends(path):
    ends = torch.tensor([0.0, 1.0])
    for formula in FORMULAS:
        assert not getattr(path, formula)(ends).isnan().any(), formula
    assert path.dvariance(ends).isfinite().all()


@pytest.mark.parametrize("name", PATHS)
def test_time_of_log_snr_inverts_log_snr(name):
    path, t = PATHS[name], INTERIOR
    if name in WARPED:  # a clock that nearly stands still cannot be read to all digits
        t = torch.linspace(0.1, 0.97, 50, dtype=torch.float64)
        level = path.log_snr(INTERIOR)
        again = path.log_snr(path.time_of_log_snr(level))
        torch.testing.assert_close(again, level, rtol=1e-10, atol=1e-10)
    else:
        early, late = 10.0 ** -torch.arange(3.0, 9.0), 1 - 10.0 ** -torch.arange(3.0, 7.0)
        t = torch.cat([t, early, late]).double()
    back = path.time_of_log_snr(path.log_snr(t))
    torch.testing.assert_close(back, t, rtol=1e-11, atol=1e-14)
    for time_ in t.tolist():
        assert path.time_of_log_snr(path.log_snr(time_)) == pytest.approx(time_, rel=1e-11)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("level", [40.0, 3e3, math.inf])
def test_extreme_levels_give_the_nearer_end(name, level):
    if name in WARPED and level == 40.0:
        level = 200.0  # the clock dwells near the ends
    path = PATHS[name]
    both = path.time_of_log_snr(torch.tensor([-level, level]))
    floats = [path.time_of_log_snr(-level), path.time_of_log_snr(level)]
    assert both.tolist() == pytest.approx([0.0, 1.0], abs=3e-8)
    assert floats == pytest.approx([0.0, 1.0], abs=3e-8)


@pytest.mark.parametrize("name", ["cosine", "vp"])
def test_variance_preserving_paths_preserve_variance(name):
    path = PATHS[name]
    total = path.beta(INTERIOR) ** 2 + path.sigma(INTERIOR) ** 2
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-15)


@every_path
def test_signal_rises_against_noise(path):
    assert (path.log_snr(torch.linspace(0, 1, 200)).diff() > 0).all()


@every_path
def test_a_float_costs_microseconds(path):
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        for k in range(200):
            path.lam(k / 200)
        best = min(best, (time.perf_counter() - start) / 200)
    assert best < 20e-6


def test_paths_compare_and_hash_by_value():
    assert Path.vp() == Path.vp(0.1, 20.0) != Path.vp(0.1, 10.0)
    assert Path.vp() != Path.subvp()
    assert len({Path.linear(), Path.linear(), Path.edm()}) == 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Path.vp(b0=0.0), "VP path: b0 must be a positive number, got 0.0"),
        (lambda: Path.subvp(b1=math.nan), "subVP path: b1 must be a positive number, got nan"),
        (lambda: Path.ve(2.0, 1.0), "VE path: smin must be below smax, got 2.0 >= 1.0"),
        (lambda: Path.edm(-80.0), "EDM path: smax must be a positive number, got -80.0"),
        (lambda: Path.mean_reverting(0.0), "mean-reverting path: theta must be a positive"),
        (lambda: Path.mean_reverting(1.0, -1.0), "mean-reverting path: noise must be a positive"),
        (lambda: Power(0.5), "Power warp: nu must be a number of at least 1, got 0.5"),
        (lambda: Sine(math.nan), "Sine warp: nu must be a number of at least 0.5, got nan"),
        (lambda: Path.warped(Path.linear(), 2.0), "made of a Path and a Warp, got .* and 2.0"),
    ],
)
def test_impossible_parameters_are_refused_by_name(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_mean_reversion_of_unit_noise_is_the_vp_path_of_constant_rate():
    reverting, vp = Path.mean_reverting(1.7, 1.0), Path.vp(3.4, 3.4)
    for formula in FORMULAS:
        torch.testing.assert_close(
            getattr(reverting, formula)(INTERIOR), getattr(vp, formula)(INTERIOR)
        )


def test_mean_reversion_has_the_moments_of_its_sde():
    theta, noise, x1, mu = 2.3, 0.4, 1.7, -0.6
    path, steps = Path.mean_reverting(theta, noise), 20000
    mean, variance = x1, 0.0
    for _ in range(steps):  # dx = theta (mu - x) du + sqrt(2 theta) noise dW, midpoint rule
        h = 1.0 / steps
        half = mean + 0.5 * h * theta * (mu - mean)
        mean += h * theta * (mu - half)
        middle = variance + 0.5 * h * (2 * theta * noise**2 - 2 * theta * variance)
        variance += h * (2 * theta * noise**2 - 2 * theta * middle)
    beta = path.beta(0.0)
    assert mean == pytest.approx(beta * x1 + (1 - beta) * mu, rel=1e-7)
    assert variance == pytest.approx(path.sigma(0.0) ** 2, rel=1e-7)


@pytest.mark.parametrize("nu", [1.0, 1.5, 2.0])
def test_sine_on_the_linear_path_is_the_cosine_interpolant_of_flowmol(nu):
    path = Path.warped(Path.linear(), Sine(nu))
    angle = 0.5 * math.pi * INTERIOR**nu
    torch.testing.assert_close(path.beta(INTERIOR), torch.sin(angle) ** 2, rtol=1e-13, atol=0)
    torch.testing.assert_close(path.sigma(INTERIOR), torch.cos(angle) ** 2, rtol=1e-9, atol=0)
    slope = nu * INTERIOR ** (nu - 1) * 0.5 * math.pi * torch.sin(2 * angle)
    torch.testing.assert_close(path.dbeta(INTERIOR), slope, rtol=1e-11, atol=0)


@pytest.mark.parametrize("warp", [Power(1.0), Power(2.7), Sine(0.5), Sine(0.8), Sine(2.0)], ids=str)
def test_a_warp_runs_from_0_to_1_and_back(warp):
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert warp.value(ends).tolist() == [0.0, 1.0] == [warp.value(0.0), warp.value(1.0)]
    assert warp.inverse(ends).tolist() == [0.0, 1.0] == [warp.inverse(0.0), warp.inverse(1.0)]
    assert warp.derivative(ends).isfinite().all()
    assert warp.derivative(ends).tolist() == [warp.derivative(0.0), warp.derivative(1.0)]
    value = warp.value(INTERIOR)
    torch.testing.assert_close(warp.inverse(value), INTERIOR, rtol=1e-11, atol=0)
    slope = derivative(warp.value, INTERIOR)
    torch.testing.assert_close(warp.derivative(INTERIOR), slope, rtol=1e-11, atol=0)
    # the slope of the root at the end, from a difference quotient
    h = 1e-5
    quotient = -math.sqrt(1.0 - warp.value(1.0 - h)) / h
    if math.isfinite(warp.root_slope):
        assert quotient == pytest.approx(warp.root_slope, rel=1e-4)
    else:
        assert quotient < -100.0


def test_the_identity_warp_changes_nothing():
    for path in (Path.linear(), Path.vp(), Path.ve()):
        warped = Path.warped(path, Power(1.0))
        for formula in FORMULAS:
            assert torch.equal(getattr(warped, formula)(INTERIOR), getattr(path, formula)(INTERIOR))


def test_two_powers_are_one():
    twice = Path.warped(Path.warped(Path.cosine(), Power(1.5)), Power(2.0))
    once = Path.warped(Path.cosine(), Power(3.0))
    for formula in FORMULAS:
        value, wanted = getattr(twice, formula)(INTERIOR), getattr(once, formula)(INTERIOR)
        torch.testing.assert_close(value, wanted, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("warp", [Power(2.0), Sine(0.8)], ids=str)
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp2"])
def test_an_exponential_solver_on_a_warped_path_is_the_solver_on_a_warped_grid(warp, solver):
    for path in (Path.linear(), Path.vp(), Path.ve()):
        grid = grids.uniform(9)
        warped = solvers.solver(solver)(Path.warped(path, warp), grid)
        native = solvers.solver(solver)(path, [warp.value(t) for t in grid])
        assert (warped.a, warped.b, warped.c) == (native.a, native.b, native.c)
