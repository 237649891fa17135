"""Paths against the published formulas, automatic derivatives and each other."""

from __future__ import annotations

import math
import time

import pytest
import torch

from driftworks.core.paths import Path
from driftworks.errors import UserError

PATHS = {
    "linear": Path.linear(),
    "cosine": Path.cosine(),
    "vp": Path.vp(0.1, 20.0),
    "subvp": Path.subvp(0.1, 20.0),
    "ve": Path.ve(0.01, 50.0),
    "edm": Path.edm(80.0),
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
    ],
)
def test_twice_lam_is_the_squared_diffusion_of_the_published_sde(name, diffusion):
    for t in (0.03, 0.2, 0.5, 0.77, 0.98):
        assert 2 * PATHS[name].lam(t) == pytest.approx(diffusion(1 - t), rel=1e-12)


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


@every_path
def test_time_of_log_snr_inverts_log_snr(path):
    t = torch.cat([INTERIOR, 10.0 ** -torch.arange(3.0, 9.0), 1 - 10.0 ** -torch.arange(3.0, 7.0)])
    back = path.time_of_log_snr(path.log_snr(t.double()))
    torch.testing.assert_close(back, t.double(), rtol=1e-11, atol=1e-14)
    for time_ in t.tolist():
        assert path.time_of_log_snr(path.log_snr(time_)) == pytest.approx(time_, rel=1e-11)


@every_path
@pytest.mark.parametrize("level", [40.0, 3e3, math.inf])
def test_extreme_levels_give_the_nearer_end(path, level):
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
    ],
)
def test_impossible_parameters_are_refused_by_name(build, message):
    with pytest.raises(UserError, match=message):
        build()
