"""Reverse-SDE steps against the published formulas, moment recursions and integrated variances."""

from __future__ import annotations

import math
import os
import random

import pytest
import torch

from driftworks.core import grids, solvers
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, table_law, w2
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.reverse import ancestral, euler_maruyama, reverse_diffusion, s4
from driftworks.core.sample import sample
from driftworks.core.spaces import Flat
from driftworks.core.tables import jump
from driftworks.errors import UserError

SEED = int.from_bytes(os.urandom(4))
RANDOM = random.Random(SEED)
STARTED = {
    "vp": Path.vp(),
    "subvp": Path.subvp(),
    "ve": Path.ve(),
    "edm": Path.edm(),
    "mean_reverting": Path.mean_reverting(),
}
MEAN = torch.tensor([0.5, -0.3], dtype=torch.float64)
COV = torch.tensor([[1.0, 0.8], [0.8, 0.8]], dtype=torch.float64)


def random_law():
    mean, variance = RANDOM.uniform(-1.0, 1.0), RANDOM.uniform(0.1, 2.0)
    print(f"seed {SEED}: mean {mean}, variance {variance}")
    return mean, variance


def recursion(path, grid, mean, variance, move):
    """Mean and variance of x after each step but the last, from moments alone.

    ``move(t, u)`` gives the factors of x and of the score and the variance of the noise.
    """
    m, v, moments = 0.0, path.sigma(grid[0]) ** 2, []
    for t, u in zip(grid[:-2], grid[1:-1], strict=True):
        of_x, of_score, noise = move(t, u)
        spread = path.beta(t) ** 2 * variance + path.sigma(t) ** 2
        m = of_x * m - of_score * (m - path.beta(t) * mean) / spread
        v = (of_x - of_score / spread) ** 2 * v + noise
        moments.append((m, v))
    return moments


def assert_recursion(build, path, grid, move):
    mean, variance = random_law()
    laws = table_law(build(path, grid), Gaussian(mean, variance).on(path))
    for law, (m, v) in zip(laws, recursion(path, grid, mean, variance, move), strict=False):
        assert law.mean.item() == pytest.approx(m, rel=1e-9, abs=1e-9)
        assert law.variances.item() == pytest.approx(v, rel=1e-9)


def test_reverse_diffusion_is_the_published_predictor_on_vp_and_ve():
    vp, ve, grid = Path.vp(), Path.ve(), grids.uniform(25)

    def on_vp(t, u):
        rate = -math.expm1(vp.integral(u) - vp.integral(t))  # beta_i of the discrete chain
        return 2.0 - math.sqrt(1.0 - rate), rate, rate

    def on_ve(t, u):
        gain = ve.sigma(t) ** 2 - ve.sigma(u) ** 2
        return 1.0, gain, gain

    assert_recursion(reverse_diffusion, vp, grid, on_vp)
    assert_recursion(reverse_diffusion, ve, grid, on_ve)


def test_ancestral_sampling_is_the_published_predictor_on_vp_and_ve():
    vp, ve, grid = Path.vp(), Path.ve(), grids.uniform(25)

    def on_vp(t, u):
        rate = -math.expm1(vp.integral(u) - vp.integral(t))
        root = math.sqrt(1.0 - rate)
        return 1.0 / root, rate / root, rate

    def on_ve(t, u):
        gain = ve.sigma(t) ** 2 - ve.sigma(u) ** 2
        return 1.0, gain, gain * ve.sigma(u) ** 2 / ve.sigma(t) ** 2

    assert_recursion(lambda p, g: ancestral(p, g, "forward"), vp, grid, on_vp)
    assert_recursion(ancestral, ve, grid, on_ve)


@pytest.mark.parametrize("path", [Path.linear(), Path.cosine(), *STARTED.values()], ids=repr)
def test_ancestral_sampling_with_posterior_variance_is_ddpm(path):
    for grid in (grids.uniform(7), grids.karras(path, 9)):
        ours, ddpm = ancestral(path, grid), solvers.ddim(path, grid, 1.0)
        rows = (*ours.a, *ours.b, ours.c), (*ddpm.a, *ddpm.b, ddpm.c)
        for mine, wanted in zip(*rows, strict=True):
            assert mine == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("path", [Path.linear(), Path.cosine(), *STARTED.values()], ids=repr)
def test_posterior_variance_is_exact_for_a_single_data_point(path):
    mean = RANDOM.uniform(-2.0, 2.0)
    print(f"seed {SEED}: mean {mean}")
    grid = grids.karras(path, 5)
    beta, sigma = path.beta(0.0), path.sigma(0.0)
    start = Gaussian([beta * mean], [[sigma**2]])
    laws = table_law(ancestral(path, grid), Gaussian(mean, 0.0).on(path), start)
    for u, law in zip(grid[1:-1], laws, strict=False):
        assert law.mean.item() == pytest.approx(path.beta(u) * mean, rel=1e-9, abs=1e-9)
        assert law.variances.item() == pytest.approx(path.sigma(u) ** 2, rel=1e-8)


def test_forward_variance_is_exact_for_standard_data_on_vp():
    path, grid = Path.vp(), grids.uniform(6)
    start = Gaussian([0.0], [[1.0]])
    laws = table_law(ancestral(path, grid, "forward"), Gaussian(0.0, 1.0).on(path), start)
    for law in laws[:-1]:
        assert law.variances.item() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("path", STARTED.values(), ids=STARTED)
def test_s4_is_half_a_linear_step_a_kick_and_half_a_linear_step(path):
    mean, variance = random_law()
    grid = (0.1, 0.35, 0.6, 0.8, 0.9)

    def linear_half(m, v, t, u, steps=400):
        """Mean and variance of dx = a x dt + sqrt(2 lam) dW, integrated by the midpoint rule."""
        h = (u - t) / steps
        for k in range(steps):
            middle = t + (k + 0.5) * h
            a, lam = path.a(middle), path.lam(middle)
            m_half, v_half = m * (1 + 0.5 * h * path.a(t + k * h)), v
            v_half += 0.5 * h * (2 * path.a(t + k * h) * v + 2 * path.lam(t + k * h))
            m, v = m + h * a * m_half, v + h * (2 * a * v_half + 2 * lam)
        return m, v

    beta, sigma = path.beta(grid[0]), path.sigma(grid[0])
    start = Gaussian([beta * mean], [[beta**2 * variance + sigma**2]])
    laws = table_law(s4(path, grid), Gaussian(mean, variance).on(path), start)
    m, v = start.mean.item(), start.matrix(1).item()
    for law, t, u in zip(laws, grid, grid[1:], strict=False):
        middle = 0.5 * (t + u)
        spread = path.beta(t) ** 2 * variance + path.sigma(t) ** 2
        # x is carried as its weight on the start and what noise has added
        growth, fresh = linear_half(1.0, 0.0, t, middle)
        kick = 2.0 * path.lam(middle) * (u - t)
        weight, shift = growth - kick / spread, kick * path.beta(t) * mean / spread
        growth, noise = linear_half(1.0, fresh, middle, u)
        m = growth * (weight * m + shift)
        v = (growth * weight) ** 2 * v + noise
        assert law.mean.item() == pytest.approx(m, rel=1e-4, abs=1e-5)
        assert law.variances.item() == pytest.approx(v, rel=1e-4)


def test_the_linear_part_of_s4_spreads_backwards_and_not_forwards():
    path, n = Path.vp(), 100
    table = s4(path, grids.uniform(n))
    for t, u, c in zip(table.times, table.ends[:-1], table.c, strict=False):
        rate = path.integral(t) - path.integral(u)
        assert c**2 == pytest.approx(math.expm1(rate), rel=1e-9)
    # the variance of the forward half-step is a tenth smaller where the rate is largest
    first = 0.5 * (path.integral(0.0) - path.integral(1.0 / n))
    assert 1.0 + math.expm1(-first) / math.expm1(first) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("path", [Path.linear(), Path.cosine()], ids=repr)
def test_s4_says_where_it_cannot_start(path):
    with pytest.raises(UserError, match="cannot start where beta = 0.*start the grid later"):
        s4(path, grids.uniform(5))
    assert len(s4(path, (0.01, 0.5, 1.0))) == 2


def test_the_langevin_move_of_s4_comes_before_its_step():
    path, grid, ratio = Path.vp(), (0.2, 0.5, 0.7), 0.3
    mean, variance = random_law()

    def laws(r):
        beta, sigma = path.beta(0.2), path.sigma(0.2)
        start = Gaussian([beta * mean], [[beta**2 * variance + sigma**2]])
        return table_law(s4(path, grid, r), Gaussian(mean, variance).on(path), start)

    # in law: x + d s + sqrt(2 d) z first, then the plain step, whose score is still that of x
    plain, moved = s4(path, grid), s4(path, grid, ratio)
    for k, (t, u) in enumerate(zip(grid, grid[1:], strict=False)):
        growth, d = path.beta(u) / path.beta(t), 2.0 * (ratio * path.sigma(t)) ** 2
        of_score = growth * d / path.sigma(t) ** 2
        assert moved.a[k][0] == pytest.approx(plain.a[k][0] - of_score, rel=1e-12)
        assert moved.b[k][0] == pytest.approx(plain.b[k][0] + of_score * path.beta(t), rel=1e-12)
        assert moved.c[k] ** 2 == pytest.approx(plain.c[k] ** 2 + growth**2 * 2 * d, rel=1e-12)
    assert laws(ratio)[-1].variances.item() != pytest.approx(laws(0.0)[-1].variances.item())


@pytest.mark.parametrize("profile", ["reverse", "sigma", "constant"])
def test_noise_may_change_with_time(profile):
    path, grid = Path.linear(), grids.uniform(8)
    table = euler_maruyama(path, grid, lambda t: 1.0 + t * t, profile)
    for k, t in enumerate(grid[:-2]):
        alone = euler_maruyama(path, grid, 1.0 + t * t, profile)
        assert (table.a[k], table.b[k], table.c[k]) == (alone.a[k], alone.b[k], alone.c[k])


def moments(path, grid, level):
    """Mean and covariance of dx = (b + E s) dt + sqrt(2 E) dW by Euler, E = diag(level)."""
    eye = torch.eye(2, dtype=torch.float64)
    m, c = torch.zeros(2, dtype=torch.float64), path.sigma(grid[0]) ** 2 * eye
    for t, u in zip(grid[:-1], grid[1:], strict=True):
        h, beta = u - t, path.beta(t)
        spread = beta**2 * COV + path.sigma(t) ** 2 * eye
        change = 2 * beta * path.dbeta(t) * COV + path.dvariance(t) * eye
        e = torch.diag(torch.as_tensor(level(t), dtype=torch.float64))
        slope = (0.5 * change - e) @ spread.inverse()  # of the drift in x - beta m
        m = m + h * (path.dbeta(t) * MEAN + slope @ (m - beta * MEAN))
        move = eye + h * slope
        c = move @ c @ move.mT + 2.0 * h * e
    return m, c


def test_noise_may_differ_between_entries():
    path, grid = Path.cosine(), grids.uniform(12)[:-2]
    levels = torch.tensor([[0.0, 1.7]], dtype=torch.float64)
    for noise in (levels, lambda t: levels, lambda t: levels * (1.0 + t)):
        table = euler_maruyama(path, grid, noise, "sigma")
        law = table_law(table, Gaussian(MEAN, COV).on(path))[-1]

        def level(t, noise=noise):
            return path.sigma(t) * (noise(t) if callable(noise) else noise)[0]

        m, c = moments(path, grid, level)
        torch.testing.assert_close(law.mean, m, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(law.matrix(2), c, rtol=1e-9, atol=1e-9)


def test_noise_per_entry_leaves_every_marginal_as_it_is():
    path = Path.linear()
    law = Gaussian(MEAN, COV)
    errors = []
    for n in (200, 400):
        grid = grids.uniform(n)
        table = euler_maruyama(path, grid, torch.tensor([[0.0, 1.0]]), "sigma")
        errors.append(w2(table_law(table, law.on(path))[-1], law))
    assert errors[1] < 0.6 * errors[0] < 0.02


def test_entries_without_noise_follow_the_flow_and_the_others_the_sde():
    path, grid = Path.vp(), grids.karras(Path.vp(), 9)
    law = Gaussian(0.4, 0.3)
    table = euler_maruyama(path, grid, torch.tensor([[0.0, 1.0]]))
    both = table_law(table, law.on(path))
    ode = table_law(euler_maruyama(path, grid, 0.0), law.on(path))
    sde = table_law(euler_maruyama(path, grid, 1.0), law.on(path))
    for pair, first, second in zip(both, ode, sde, strict=True):
        matrix = pair.matrix(2)
        assert matrix[0, 0].item() == pytest.approx(first.matrix(1).item(), rel=1e-9)
        assert matrix[1, 1].item() == pytest.approx(second.matrix(1).item(), rel=1e-9)
        assert matrix[0, 1].item() == 0.0


def test_samples_with_noise_per_entry_have_the_exact_law():
    path, n = Path.linear(), 40_000
    oracle = Gaussian(MEAN, COV).on(path)
    build = solvers.solver("euler_maruyama", noise=torch.tensor([[0.2, 2.0]]), denoise=False)
    x = sample(
        oracle, Process(Part(Flat(), path)), Keys.for_samples(7, range(n)), (2,), solver=build,
        steps=8, dtype=torch.float64,
    ).x
    law = table_law(build(path, grids.uniform(8)), oracle)[-1]
    exact = law.matrix(2)
    error = (exact.diag().outer(exact.diag()) + exact**2).div(n).sqrt()
    assert ((x.mT.cov() - exact).abs() < 4 * error).all()
    assert ((x.mean(0) - law.mean).abs() < 4 * (exact.diag() / n).sqrt()).all()


def test_mistakes_are_named():
    path, grid = Path.linear(), (0.0, 0.5, 1.0)
    with pytest.raises(UserError, match="noise must be a finite number >= 0, got -1"):
        euler_maruyama(path, grid, -1.0)
    with pytest.raises(UserError, match="noise must be a finite number >= 0, got nan"):
        euler_maruyama(path, grid, lambda t: math.nan)
    with pytest.raises(UserError, match="noise per entry must be finite and >= 0"):
        euler_maruyama(path, grid, torch.tensor([[0.0, -0.1]]))
    with pytest.raises(UserError, match="variance 'small'; choose one of posterior, forward"):
        ancestral(path, grid, "small")
    with pytest.raises(UserError, match="ratio must be a finite number >= 0"):
        s4(Path.vp(), grid, -0.1)
    assert jump(Path.ve()) == (0.0, (1.0,), 0.0)
