"""Weights against closed forms, mostly without sampling.

For Gaussian experts and quadratic tilts the answer's denoised state is affine in x and the rate of
the log-weight quadratic, so the weighted law of a whole discretised run, quadrature included, is a
Gaussian times a number: `weighted_law` computes both from the guide, the population and the table
that a run would use. What is left to compare is the discretisation error, which must be of second
order with a solver of second order.
"""

from __future__ import annotations

import math
import random
import secrets
import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch

from driftworks.core import grids, solvers, steer, weigh
from driftworks.core.ctmc import Masking
from driftworks.core.feynman_kac import least_noise
from driftworks.core.guide import cfg
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, Mixture
from driftworks.core.particles import Resampling
from driftworks.core.paths import Path
from driftworks.core.predict import as_denoised
from driftworks.core.process import Part, Process
from driftworks.core.sample import sample
from driftworks.core.spaces import Centred, Flat, Symmetric, Tokens
from driftworks.core.warps import Power
from driftworks.errors import UserError

F = torch.float64
GROUPS, ENTRY = 16, torch.ones(1, dtype=F)
LINEAR, VP = Path.linear(), Path.vp()
PATHS = {
    "linear": LINEAR,
    "cosine": Path.cosine(),
    "vp": VP,
    "subvp": Path.subvp(),
    "ve": Path.ve(),
    "edm": Path.edm(20.0),
    "warped": Path.warped(LINEAR, Power(1.5)),
}


@dataclass
class Silent:
    """A target's clocks with nothing to add: leaves the quadrature's weights alone."""

    target: weigh.Target
    size: int

    def __getattr__(self, name):
        return getattr(self.target, name)

    def start(self, state, mask, t):
        return torch.zeros(self.size, dtype=F)

    def volumes(self, t):
        return [0.0]

    def dof(self, state, mask):
        return torch.zeros(1, self.size, dtype=F)


def quadrature(target, table):
    """How much the rate of each row counts in the log-weight, (R, rows): sample k has rate 1 in
    row k only."""
    rows, state = len(table), torch.zeros(len(table), 1, dtype=F)
    keys, count = Keys.for_samples(0, range(rows)), len(target.clocks(table.times[0]))
    weights = []
    for clock in range(count):
        particles = Resampling(ess=0.0).start(target.process, keys, state, None, table.times[0])
        for k, t in enumerate(table.times):
            rate = torch.zeros(count, rows, dtype=F)
            rate[clock, k] = 1.0
            particles.observe(k, t, weigh.Weighted(state, rate, Silent(target, rows)))
        weights.append(particles.finish(table.ends[-1]).log_weight)
    return torch.stack(weights)


def weighted_law(target, table, start, power=1.0, model=None):
    """(log E[W^power], mean, variance) of x under W^power at the end of a run in one dimension.

    ``start`` is the mean and variance of the first state; what the first state is worth is left
    out. power 0 is the law without weights; power 2 gives the second moment of the weight.
    """
    rows, guided = len(table), target(model)
    x = torch.tensor([-1.0, 0.0, 1.0], dtype=F).repeat_interleave(rows)[:, None]
    answer = guided(x, torch.tensor(table.times, dtype=F).repeat(3))
    denoised = answer.prediction.view(3, rows).numpy()
    counts = quadrature(target, table).repeat(1, 3)
    rate = power * (answer.rate * counts).sum(0).view(3, rows).numpy()
    slope, offset = (denoised[2] - denoised[0]) / 2, denoised[1]
    assert np.allclose(denoised[0] + denoised[2], 2 * offset, atol=1e-6 * np.abs(denoised).max())
    q2, q1, q0 = (rate[0] + rate[2]) / 2 - rate[1], (rate[2] - rate[0]) / 2, rate[1]
    memory = max(map(len, table.b)) - 1
    mean, cov = np.zeros(1 + memory), np.zeros((1 + memory, 1 + memory))
    mean[0], cov[0, 0] = start
    log = power * (target.volumes(table.ends[-1])[0] - target.volumes(table.times[0])[0])
    for k, (a, b, c) in enumerate(zip(table.a, table.b, table.c, strict=True)):
        # weigh: N(mean, cov) times exp of the quadratic in the first coordinate
        m, v = mean[0], cov[0, 0]
        left = 1.0 - 2.0 * q2[k] * v
        if left <= 0.0:
            return math.inf, math.nan, math.nan
        log += q0[k] - 0.5 * math.log(left)
        log += (m * m * q2[k] + m * q1[k] + 0.5 * q1[k] ** 2 * v) / left
        if v > 0.0:
            lean = cov[:, 0] / v
            mean = mean + lean * ((m + q1[k] * v) / left - m)
            cov = cov + np.outer(lean, lean) * (v / left - v)
        # move: the row of the table
        step, fixed = np.zeros_like(cov), np.zeros_like(mean)
        step[0, 0], fixed[0] = a[0] + b[0] * slope[k], b[0] * offset[k]
        step[0, 1 : len(b)] += b[1:]
        if memory:
            step[1, 0], fixed[1] = slope[k], offset[k]
        for j in range(1, memory):
            step[1 + j, j] = 1.0
        mean, cov = step @ mean + fixed, step @ cov @ step.T
        cov[0, 0] += c * c
    return log, mean[0], cov[0, 0]


def exact(path, weights, means, variances, t, rise=0.0, peak=0.0):
    """(log-normaliser, mean, variance) of prod N(beta m, V)^w exp(-rise (x - peak)^2) at t."""
    beta, noise = path.beta(t), path.sigma(t) ** 2
    spreads = [beta**2 * v + noise for v in variances]
    precision = sum(w / v for w, v in zip(weights, spreads, strict=True)) + 2 * rise
    pull = sum(w * beta * m / v for w, m, v in zip(weights, means, spreads, strict=True))
    pull += 2 * rise * peak
    log = 0.5 * math.log(2 * math.pi / precision) + 0.5 * pull**2 / precision - rise * peak**2
    for w, m, v in zip(weights, means, spreads, strict=True):
        log -= 0.5 * w * (math.log(2 * math.pi * v) + (beta * m) ** 2 / v)
    return log, pull / precision, 1.0 / precision


def one_part(path, space=None, predicts="denoised"):
    return Process(Part(space or Flat(), path, predicts))


def gaussian_product(path, weights, means, variances, **settings):
    laws = [Gaussian(m, v).on(path) for m, v in zip(means, variances, strict=True)]
    experts = {f"expert {i}": pair for i, pair in enumerate(zip(laws, weights, strict=True))}
    return weigh.product(one_part(path), experts, **settings)


def by_log_snr(path, t0, t1, steps):
    low, high = path.log_snr(t0), path.log_snr(t1)
    inner = [path.time_of_log_snr(low + (high - low) * k / steps) for k in range(1, steps)]
    return [t0, *inner, t1]


def extrapolated(run, steps):
    """Richardson's value of a second-order method, and the plain values at both step sizes."""
    coarse, fine = np.array(run(steps)), np.array(run(2 * steps))
    return fine + (fine - coarse) / 3.0, coarse, fine


PRODUCTS = {
    "anneal 2": ([2.0], [1.0], [0.5]),
    "anneal 3": ([3.0], [1.0], [0.5]),
    "anneal .5": ([0.5], [1.0], [0.5]),
    "product": ([1.0, 1.0], [1.0, -0.5], [0.5, 0.8]),
    "guidance 2": ([-1.0, 2.0], [0.0, 1.0], [1.0, 0.4]),
    "contrast": ([1.0, -0.3], [1.0, 0.0], [0.5, 1.0]),
}
GOLDEN = {  # linear, .01 -> .999: mean, variance, log Z; vp, 0 -> .999: log Z
    "anneal 2": (0.99900, 0.24950, 0.33755, 0.34651),
    "anneal 3": (0.99900, 0.16633, 0.67510, 0.69302),
    "anneal .5": (0.99900, 0.99800, -0.16877, -0.17325),
    "product": (0.42265, 0.30708, -0.65895, -0.64986),
    "guidance 2": (1.24875, 0.24950, 0.84804, 0.84800),
    "contrast": (1.17529, 0.58706, 0.08208, 0.07938),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize(("path", "begin"), [(LINEAR, 0.01), (VP, 0.0)], ids=["linear", "vp"])
def test_products_of_gaussians_have_the_golden_mean_variance_and_normaliser(name, path, begin):
    case = PRODUCTS[name]
    target = gaussian_product(path, *case, noise=1.0)
    start = exact(path, *case, begin)[1:]

    def run(steps):
        table = solvers.dpmpp(path, by_log_snr(path, begin, 0.999, steps), order=2, eta=1.0)
        return weighted_law(target, table, start)

    (log, mean, variance), coarse, fine = extrapolated(run, 120)
    if path is LINEAR:
        assert (mean, variance, log) == pytest.approx(GOLDEN[name][:3], abs=2e-4)
    assert log == pytest.approx(GOLDEN[name][-1 if path is VP else 2], abs=2e-4)
    assert np.abs(fine - coarse).max() < 0.02


def random_product(dice):
    """Weights, means and variances of a normalisable random product, and its kind."""
    kind = dice.choice(["anneal", "product", "guidance", "negative"])
    means = [dice.uniform(-1, 1), dice.uniform(-1, 1)]
    variances = [dice.uniform(0.3, 1.5), dice.uniform(0.3, 1.5)]
    if kind == "anneal":
        return [dice.uniform(0.4, 2.5)], means[:1], variances[:1]
    if kind == "product":
        return [dice.uniform(0.5, 1.5), dice.uniform(0.5, 1.5)], means, variances
    if kind == "guidance":
        w = dice.uniform(1.2, 3.0)
        return [w, 1.0 - w], means, [variances[0], variances[0] * dice.uniform(1.0, 2.0)]
    return [1.0, -dice.uniform(0.1, 0.5)], means, [variances[0], variances[0] * 1.5]


@pytest.mark.parametrize("name", PATHS)
def test_random_products_at_random_noise_are_exact_to_second_order(name):
    seed = random.SystemRandom().randrange(10**6)
    dice, path = random.Random(seed), PATHS[name]
    case, noise = random_product(dice), dice.choice([0.0, 0.3, 1.0, 2.5])
    scale = math.sqrt(sum(case[2]) / len(case[2])) * dice.uniform(0.8, 1.2)
    reference = Gaussian(case[1][0] * dice.uniform(0.5, 1.0), scale**2)
    print("seed", seed, case, "noise", noise, "scale", scale)
    begin = path.time_of_log_snr(-8.0)
    target = gaussian_product(path, *case, reference=reference, noise=noise)
    at_start, at_end = exact(path, *case, begin), exact(path, *case, 0.97)

    def run(steps):
        table = solvers.dpmpp(path, by_log_snr(path, begin, 0.97, steps), order=2, eta=noise)
        return weighted_law(target, table, at_start[1:])

    best, coarse, fine = extrapolated(run, 150)
    wanted = np.array([at_end[0] - at_start[0], *at_end[1:]])
    assert np.abs(best - wanted).max() < 1e-3
    assert np.abs(fine - wanted).max() < 1e-2


def test_without_weights_guidance_is_off_by_the_known_amount():
    """And the mean moves towards the right one, 1.25, with the noise."""
    case = PRODUCTS["guidance 2"]
    start, target = exact(LINEAR, *case, 0.01)[1:], gaussian_product(LINEAR, *case)
    found = []
    for noise in (0.0, 0.5, 1.0, 2.0, 4.0, 16.0):
        grid = by_log_snr(LINEAR, 0.01, 0.999, 300)
        table = solvers.dpmpp(LINEAR, grid, order=2, eta=noise)
        found.append(weighted_law(target, table, start, power=0.0)[1])
    assert found == pytest.approx([1.53, 1.45, 1.40, 1.35, 1.30, 1.26], abs=0.006)


def share_of_effective_samples(target, table, start, model=None):
    first = weighted_law(target, table, start, 1.0, model)[0]
    second = weighted_law(target, table, start, 2.0, model)[0]
    return math.exp(2 * first - second)


def test_effective_samples_of_guidance_are_the_golden_ones():
    case = PRODUCTS["guidance 2"]
    start, target = exact(LINEAR, *case, 0.01)[1:], gaussian_product(LINEAR, *case)
    found = []
    for noise in (0.0, 0.5, 1.0, 2.0, 4.0, 16.0):
        grid = by_log_snr(LINEAR, 0.01, 0.999, 300)
        table = solvers.dpmpp(LINEAR, grid, order=2, eta=noise)
        found.append(share_of_effective_samples(target, table, start))
    assert found == pytest.approx([0.26, 0.48, 0.61, 0.76, 0.86, 0.97], abs=0.008)


def test_without_reference_annealing_needs_much_noise_and_says_so():
    """Golden: effective samples per dimension .10 and .69 at 4 and 16 on VP; infinite variance
    below least_noise, 2.914 for squares."""
    root = least_noise(2.0)
    assert (2 * (1 + root) - 1) ** 2 == pytest.approx(16 * root)
    assert (least_noise(2.0), least_noise(3.0)) == pytest.approx((2.91, 3.89), abs=5e-3)
    case = PRODUCTS["anneal 2"]
    start = exact(VP, *case, 0.0)[1:]
    for noise, wanted in ((1.0, 0.0), (4.0, 0.10), (16.0, 0.69)):
        settings = {"reference": math.inf, "noise": noise}
        if noise < 2.9:
            with pytest.warns(RuntimeWarning, match="infinite variance"):
                target = gaussian_product(VP, *case, **settings)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                target = gaussian_product(VP, *case, **settings)
        steps = 300 if noise < 10 else 900
        grid = by_log_snr(VP, 0.0, 0.999, steps)
        table = solvers.dpmpp(VP, grid, order=2, eta=noise)
        assert share_of_effective_samples(target, table, start) == pytest.approx(wanted, abs=0.01)


def test_a_reference_multiplies_the_effective_samples():
    """Squares of N(1, .5) on VP: .10 without reference at noise 4; .74 with a reference of the
    wrong mean and variance, 1 with the right one at any noise."""
    case = PRODUCTS["anneal 2"]
    start = exact(VP, *case, 0.0)[1:]
    grid = by_log_snr(VP, 0.0, 0.999, 300)
    table = solvers.dpmpp(VP, grid, order=2, eta=4.0)
    rough = gaussian_product(VP, *case, reference=1.0, noise=4.0)
    assert share_of_effective_samples(rough, table, start) > 0.7
    right = gaussian_product(VP, *case, reference=Gaussian(1.0, 0.5), noise=0.0)
    table = solvers.dpmpp(VP, grid, order=2)
    assert share_of_effective_samples(right, table, start) == pytest.approx(1.0, abs=1e-9)


def peaked(x, t):
    return (-2.0 * t[:, None] ** 2 * (x - 2.0) ** 2).sum(1)


def curvature(x, t, mask):
    return -4.0 * t**2


@pytest.mark.parametrize(
    ("drift", "noise", "effective"),
    [(-1.0, 1.0, 0.22), (0.0, 1.0, 0.61), (1.0, 1.0, 0.85), (0.0, 4.0, 0.79)],
    ids=["c = 0", "c = eps", "c = 2 eps", "c = eps = 4 lam"],
)
def test_tilts_have_the_golden_moments_and_effective_samples(drift, noise, effective):
    settings = {} if drift == 0.0 else {"laplacian": curvature, "drift": drift}
    target = steer.tilt(one_part(LINEAR), peaked, noise=noise, **settings)
    case, model = ([1.0], [1.0], [0.5]), Gaussian(1.0, 0.5).on(LINEAR)
    start = exact(LINEAR, *case, 0.01, 2e-4, 2.0)[1:]

    def run(steps):
        grid = by_log_snr(LINEAR, 0.01, 0.999, steps)
        table = solvers.dpmpp(LINEAR, grid, order=2, eta=noise)
        law = weighted_law(target, table, start, model=model)
        return (*law, share_of_effective_samples(target, table, start, model))

    log, mean, variance, share = extrapolated(run, 250)[0]
    assert (mean, variance, log) == pytest.approx((1.665443, 0.166778, -1.215430), abs=5e-5)
    assert share == pytest.approx(effective, abs=0.006)


def test_tilts_of_products_are_exact_for_random_targets():
    seed = random.SystemRandom().randrange(10**6)
    dice = random.Random(seed)
    for name in dice.sample(sorted(PATHS), 3):
        path, case = PATHS[name], random_product(dice)
        noise, drift = dice.choice([0.0, 1.0, 2.5]), dice.choice([0.0, 0.5, 1.0])
        rise, peak = dice.uniform(0.2, 1.0), dice.uniform(-1, 1)
        print("seed", seed, name, case, "noise", noise, "drift", drift, "tilt", rise, peak)
        of = gaussian_product(path, *case, reference=Gaussian(case[1][0], case[2][0]), noise=noise)

        def level(t, path=path, rise=rise):
            known = path.beta(t) ** 2 / (path.beta(t) ** 2 + path.sigma(t) ** 2)
            return rise * known**2

        def h(x, t, level=level, peak=peak):
            return (-level(t)[:, None] * (x - peak) ** 2).sum(1)

        def lap(x, t, mask, level=level):
            return -2.0 * level(t)

        target = steer.tilt(of.process, h, laplacian=lap, drift=drift, of=of)
        begin = path.time_of_log_snr(-8.0)
        at_start = exact(path, *case, begin, level(begin), peak)
        at_end = exact(path, *case, 0.97, level(0.97), peak)

        def run(steps, path=path, noise=noise, target=target, begin=begin, at_start=at_start):
            table = solvers.dpmpp(path, by_log_snr(path, begin, 0.97, steps), order=2, eta=noise)
            return weighted_law(target, table, at_start[1:])

        best = extrapolated(run, 150)[0]
        wanted = np.array([at_end[0] - at_start[0], *at_end[1:]])
        assert np.abs(best - wanted).max() < 2e-3


def ragged(sizes, width):
    return torch.arange(width)[None] < torch.tensor(sizes)[:, None]


@pytest.mark.parametrize("space", [Flat(), Centred(), Symmetric()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["linear", "vp", "ve"])
def test_data_like_the_reference_have_equal_weights_and_the_exact_normaliser_per_dof(space, name):
    """Samples of several sizes in one run, each with the normaliser of its own dimension."""
    path, sizes = PATHS[name], [5, 3, 5, 4, 3, 5, 4, 4]
    shape = (8, 5, 5) if isinstance(space, Symmetric) else (8, 5, 3)
    dofs = {
        "Flat": {n: 3 * n for n in (3, 4, 5)},
        "Centred": {n: 3 * (n - 1) for n in (3, 4, 5)},
        "Symmetric": {n: n * (n - 1) // 2 for n in (3, 4, 5)},
    }[type(space).__name__]
    power, variance, noise = 1.8, 0.6, 0.0 if name == "linear" else 1.0
    process, mask = one_part(path, space), ragged(sizes, 5)
    target = weigh.anneal(process, power, reference=math.sqrt(variance), noise=noise)
    keys, like = Keys.for_samples(3, range(8)), torch.zeros(shape, dtype=F)
    out = sample(
        Gaussian(0.0, variance).on(path), process, keys, like, mask,
        solver=solvers.solver("dpmpp2", eta=noise), steps=25, guide=target,
        initial=target.prior(keys, like, mask), particles=Resampling(),
    )
    final = variance + path.sigma(1.0) ** 2
    entry = -0.5 * power * math.log(2 * math.pi * final)
    entry += 0.5 * math.log(2 * math.pi * final / power)
    weights = out.weights
    assert len(weights.log_normaliser) == 3
    for i, n in enumerate(sizes):
        found = weights.log_normaliser[weights.group[i]].item()
        assert found == pytest.approx(dofs[n] * entry, rel=1e-9)
    assert sorted(weights.ess.tolist()) == pytest.approx([2.0, 3.0, 3.0], abs=1e-9)
    assert weights.resamplings.tolist() == [0, 0, 0]


def test_parts_on_different_paths_add_their_weights():
    """Two parts with references of their own: equal weights again, the sum of two normalisers."""
    process = Process({
        "points": Part(Centred(), LINEAR, "velocity"),
        "pairs": Part(Symmetric(), Path.cosine(), "vparam"),
    })
    laws = {"points": Gaussian(0.0, 0.5), "pairs": Gaussian(0.3, 0.2)}
    oracles = {n: laws[n].on(p.path, p.predicts) for n, p in process.items()}

    def model(x, t, mask=None, cond=None, previous=None):
        return {name: oracle(x[name], t) for name, oracle in oracles.items()}

    target = weigh.anneal(process, 0.7, reference=laws, noise=0.0)
    keys = Keys.for_samples(1, range(6))
    # the order of a state's parts means nothing
    like = {"pairs": torch.zeros(6, 4, 4, dtype=F), "points": torch.zeros(6, 4, 3, dtype=F)}
    out = sample(
        model, process, keys, like, solver="ddim", steps=20, guide=target,
        initial=target.prior(keys, like), particles=Resampling(),
    )
    wanted = 0.0
    for dof, v in ((9, 0.5), (6, 0.2)):
        wanted += dof * (-0.35 * math.log(2 * math.pi * v) + 0.5 * math.log(2 * math.pi * v / 0.7))
    assert out.weights.log_normaliser.item() == pytest.approx(wanted, rel=1e-8)
    assert out.weights.ess.item() == pytest.approx(6.0, abs=1e-9)


ENTRY = torch.ones(1, dtype=F)
MIXTURE = Mixture([0.3, 0.7], [-2.0 * ENTRY, 1.5 * ENTRY], [0.09 * ENTRY, 0.25 * ENTRY])


def pooled(out, groups, *statistics):
    """log Z and the weighted means of functions of x over equal groups, each with its jackknife
    standard error."""
    log = out.weights.log_normaliser
    z = (log - log.max()).exp()
    means = torch.stack([out.weights.mean(f(out.x[:, 0])) for f in statistics])

    def estimate(z, means):
        level = z.mean().log() + log.max()
        return torch.cat((level[None], (means * z).sum(1) / z.sum()))

    left = torch.stack([
        estimate(z[keep], means[:, keep])
        for keep in (torch.arange(groups) != g for g in range(groups))
    ])
    spread = ((groups - 1) / groups * (left - left.mean(0)).square().sum(0)).sqrt()
    return list(zip(estimate(z, means).tolist(), spread.tolist(), strict=True))


def run_mixture(target, groups=16, size=256, noise=3.0, steps=120, **settings):
    process = target.process
    keys, like = Keys.for_samples(7, range(groups * size)), torch.zeros(groups * size, 1, dtype=F)
    return sample(
        MIXTURE.on(VP), process, keys, like, solver=solvers.solver("dpmpp2", eta=noise),
        steps=steps, guide=target, initial=target.prior(keys, like),
        particles=Resampling(groups=torch.arange(groups * size) // size), **settings,
    )


@pytest.mark.parametrize(
    ("power", "golden"),
    [
        (2.0, (-1.018652, 0.679687, 2.304431, 0.234383)),
        (0.5, (0.690483, 0.323277, 3.128767, 0.347172)),
        pytest.param(3.0, (-1.873163, 0.872010, 1.877358, 0.179426), marks=pytest.mark.slow),
    ],
)
def test_annealed_mixtures_have_the_golden_normaliser_moments_and_masses(power, golden):
    target = weigh.anneal(one_part(VP), power, reference=1.7, noise=3.0)
    log, mean, second, left = pooled(
        run_mixture(target), 16, lambda x: x, lambda x: x * x, lambda x: (x < 0).double()
    )
    wanted = (golden[0], golden[1], golden[2] + golden[1] ** 2, golden[3])
    for (found, spread), value in zip((log, mean, second, left), wanted, strict=True):
        assert 0.0 < spread < 0.1
        assert abs(found - value) < 4 * spread + 2e-3


def random_mixture(dice, narrowest=0.2, broadest=0.8):
    count = dice.choice([2, 3])
    return Mixture(
        [dice.uniform(0.3, 1.0) for _ in range(count)],
        [dice.gauss(0.0, 1.2) * ENTRY for _ in range(count)],
        [dice.uniform(narrowest, broadest) * ENTRY for _ in range(count)],
    )


@pytest.mark.parametrize("kind", ["anneal", "product", "guidance", "reward"])
def test_random_mixtures_have_the_moments_and_normaliser_of_a_numerical_integral(kind):
    seed = secrets.randbits(31)
    print(f"seed {seed}")
    dice = random.Random(seed)
    path = dice.choice([VP, Path.cosine(), LINEAR])
    process, law, other = one_part(path), random_mixture(dice), random_mixture(dice, 1.4, 2.0)
    model, second = law.on(path), other.on(path)
    w, cond = dice.uniform(0.5, 2.0), None
    if kind == "anneal":
        target, log = weigh.anneal(process, w, reference=1.5), lambda x: w * law.log_prob(x)
    elif kind == "product":
        target = weigh.product(process, {"a": (None, 1.0), "b": (second, w)}, reference=1.5)
        log = lambda x: law.log_prob(x) + w * other.log_prob(x)  # noqa: E731
    elif kind == "guidance":
        target, cond = weigh.guidance(process, w), torch.zeros(GROUPS * 400)
        log = lambda x: w * law.log_prob(x) + (1 - w) * other.log_prob(x)  # noqa: E731
        first = model

        def model(x, t, mask=None, cond=None, previous=None):
            return (second if cond is None else first)(x, t)
    else:
        target = steer.reward(process, lambda x: torch.sin(w * x[:, 0]), scale=1.5)
        log = lambda x: law.log_prob(x) + torch.sin(w * x[:, 0])  # noqa: E731

    keys = Keys.for_samples(seed, range(GROUPS * 400))
    out = sample(
        model, process, keys, torch.zeros(GROUPS * 400, 1, dtype=F), steps=150, guide=target,
        solver="euler_maruyama", grid=partial(grids.log_snr, path, low=0.02), cond=cond,
        particles=Resampling(groups=torch.arange(GROUPS * 400) // 400),
    )
    grid = torch.linspace(-12.0, 12.0, 8001, dtype=F)
    density = log(grid[:, None]).exp()
    z = torch.trapezoid(density, grid)
    moments = [torch.trapezoid(density * grid**k, grid).item() / z.item() for k in (1, 2)]
    # 16 groups: 5.5 deviations of Student's t are as rare as 4 of a normal number
    found = pooled(out, GROUPS, lambda x: x, lambda x: x * x)
    for (value, spread), wanted in zip(found, (z.log().item(), *moments), strict=True):
        assert abs(value - wanted) < 5.5 * spread + 0.02, (kind, path, found, z.log(), moments)


def test_a_reward_tilts_a_mixture_into_the_known_one():
    """exp(x) reweighs the components to .011806 and .988194 and moves them to -1.91 and 1.75."""
    target = steer.reward(one_part(VP), lambda x: x[:, 0], scale=1.7, noise=3.0)
    log, mean, left = pooled(
        run_mixture(target), 16, lambda x: x, lambda x: (x < 0).double()
    )
    wanted = (1.280201, 0.011806 * -1.91 + 0.988194 * 1.75, 0.011806 + 0.988194 * 0.00023)
    for (found, spread), value in zip((log, mean, left), wanted, strict=True):
        assert 0.0 < spread < 0.05
        assert abs(found - value) < 4 * spread + 2e-3


def test_a_linear_observation_gives_the_posterior_and_the_evidence():
    """Prior N(0, I2), x1 + x2 = 1 seen with variance .01: equal weights, no Monte Carlo error."""
    process, size = one_part(LINEAR), 4096
    keys, like = Keys.for_samples(2, range(size)), torch.zeros(size, 2, dtype=F)
    target = steer.linear_observation(
        process, torch.ones(1, 2), torch.ones(1), 0.01, reference=1.0
    )
    out = sample(
        Gaussian(0.0, 1.0).on(LINEAR), process, keys, like, solver="dpmpp2",
        grid=grids.log_snr(LINEAR, 60, low=0.01), guide=target, particles=Resampling(),
    )
    assert out.weights.log_normaliser.item() == pytest.approx(-1.516762, abs=1e-6)
    assert out.weights.ess.item() == pytest.approx(size, rel=1e-6)
    assert out.x.mean(0).tolist() == pytest.approx([0.497512] * 2, abs=4 * 0.71 / size**0.5)
    cov = torch.cov(out.x.T)
    assert cov[0, 0].item() == pytest.approx(0.502488, abs=4 * 0.72 / size**0.5)
    assert cov[0, 1].item() == pytest.approx(-0.497512, abs=4 * 0.72 / size**0.5)


def test_an_observation_of_data_unlike_the_reference_still_has_the_right_posterior():
    seed = random.SystemRandom().randrange(10**6)
    generator = torch.Generator().manual_seed(seed)
    print("seed", seed)
    root = torch.randn(3, 3, generator=generator, dtype=F)
    mean = 0.5 * torch.randn(3, generator=generator, dtype=F)
    cov = 0.3 * root @ root.T + 0.4 * torch.eye(3, dtype=F)
    matrix, y = torch.randn(2, 3, generator=generator, dtype=F), torch.tensor([0.3, -0.4], dtype=F)
    process, groups, size = one_part(VP), 16, 128
    keys = Keys.for_samples(seed, range(groups * size))
    like = torch.zeros(groups * size, 3, dtype=F)
    target = steer.linear_observation(process, matrix, y, 0.3, reference=0.8)
    out = sample(
        Gaussian(mean, cov).on(VP), process, keys, like, steps=100, guide=target,
        solver=solvers.solver("dpmpp2", eta=1.0),
        particles=Resampling(groups=torch.arange(groups * size) // size),
    )
    seen = matrix @ cov @ matrix.T + 0.3 * torch.eye(2, dtype=F)
    gain = torch.linalg.solve(seen, matrix @ cov).T
    evidence = Gaussian(matrix @ mean, seen).log_prob(y[None]).item()
    posterior = mean + gain @ (y - matrix @ mean)
    log = pooled(out, groups, lambda x: x)[0]
    assert abs(log[0] - evidence) < 4 * log[1] + 0.01
    found = out.weights.mean(out.x)
    spread = found.std(0) / groups**0.5
    assert ((found.mean(0) - posterior).abs() < 4.5 * spread + 0.02).all()


def test_many_steps_are_not_needed_for_the_normaliser_of_a_cube():
    """200 steps in 2-D, log Z = 1.386: the published weights, clamped, gave 2.5 to 4.7."""
    size, process = 512, one_part(VP)
    keys, like = Keys.for_samples(0, range(size)), torch.zeros(size, 2, dtype=F)
    target = weigh.anneal(process, 3.0, reference=Gaussian(0.7, 0.6), noise=1.0)
    out = sample(
        Gaussian(1.0, 0.5).on(VP), process, keys, like, steps=200, guide=target,
        solver=solvers.solver("dpmpp2", eta=1.0), initial=target.prior(keys, like),
        particles=Resampling(),
    )
    wanted = 2 * (-1.5 * math.log(2 * math.pi * 0.5) + 0.5 * math.log(2 * math.pi * 0.5 / 3))
    assert out.weights.log_normaliser.item() == pytest.approx(wanted, abs=0.1)


class Conditional:
    """One network with and without a condition, asked for both at once; counts its calls."""

    batched_guidance = True

    def __init__(self, path, predicts):
        self.given = Gaussian(1.0, 0.4).on(path, predicts)
        self.empty = Gaussian(0.0, 1.0).on(path, predicts)
        self.calls = 0

    def null(self, cond):
        return torch.zeros_like(cond)

    def __call__(self, x, t, mask=None, cond=None, previous=None):
        self.calls += 1
        return cond[:, None] * self.given(x, t) + (1 - cond[:, None]) * self.empty(x, t)


@pytest.mark.parametrize("predicts", ["denoised", "noise", "velocity", "score"])
def test_weighted_guidance_moves_as_plain_guidance_does(predicts):
    path = Path.cosine()
    model, process = Conditional(path, predicts), one_part(path, predicts=predicts)
    x = Keys.for_samples(5, range(6)).normal("x", 0, (3,), F)
    t, cond = torch.linspace(0.05, 0.95, 6, dtype=F), torch.ones(6, dtype=F)
    weighted = weigh.guidance(process, 2.5)(model)
    answer = weighted(x, t, cond=cond)
    assert model.calls == 1 and weighted.evaluations == 2
    plain = cfg(model, 2.5)(x, t, cond=cond)
    assert torch.allclose(answer.prediction, plain, atol=1e-9)
    gap = as_denoised(path, model.given(x, t), x, t, predicts)
    gap = gap - as_denoised(path, model.empty(x, t), x, t, predicts)
    beta, sigma = path.beta(t), path.sigma(t)
    # w (w - 1) lam |s_1 - s_0|^2, in the clock phi with tan phi = beta / sigma
    rate = 2.5 * 1.5 * beta / sigma**3 * gap.square().sum(1)
    assert torch.allclose(answer.rate[0], rate, rtol=1e-9)


def test_the_start_of_annealing_at_a_singular_end_is_finite():
    """Linear path from t = 0, where lam and a are infinite, in single precision."""
    process, size = one_part(LINEAR), 2048
    keys, like = Keys.for_samples(0, range(size)), torch.zeros(size, 1)
    target = weigh.anneal(process, 2.0, reference=0.7)
    out = sample(
        Gaussian(0.5, 0.5).on(LINEAR), process, keys, like, solver="euler_maruyama", steps=100,
        guide=target, particles=Resampling(),
    )
    weights, x = out.weights, out.x
    mean = weights.mean(x).item()
    variance = weights.mean((x - mean) ** 2).item()
    assert mean == pytest.approx(0.5, abs=4 * 0.5 / size**0.5 + 0.01)
    assert variance == pytest.approx(0.25, abs=0.06)
    wanted = -math.log(math.pi) + 0.5 * math.log(0.5 * math.pi)
    assert weights.log_normaliser.item() == pytest.approx(wanted, abs=0.1)


def test_noise_ratios_are_read_from_tables():
    grid = [0.05, 0.2, 0.5, 0.8, 1.0]
    for path in (LINEAR, VP):
        for name, options, wanted in (
            ("ddpm", {}, 1.0), ("dpmpp2", {"eta": 0.4}, 0.4), ("dpmpp1", {"eta": 3.0}, 3.0),
            ("ddim", {}, 0.0), ("heun", {}, 0.0),
        ):
            table = solvers.solver(name, **options)(path, grid)
            ratios = weigh.noise_ratios(path, table)
            assert ratios[:-1] == pytest.approx([wanted] * (len(ratios) - 1))
            assert ratios[-1] == 0.0
        table = solvers.euler_maruyama(path, grid, noise=2.0)
        wanted = [2.0 * path.beta(t) / (path.beta(t) + 0.01) for t in grid[:-2]]
        assert weigh.noise_ratios(path, table)[:-1] == pytest.approx(wanted)
    grid = [k / 1000 for k in range(1, 1000)]
    table = solvers.ddim(VP, grid, eta=0.5)
    assert weigh.noise_ratios(VP, table)[200] == pytest.approx(0.25, rel=0.05)


def test_a_weigher_that_follows_a_table_answers_as_one_that_is_told_its_noise():
    grid = [0.02, 0.3, 0.6, 0.8, 1.0]
    table = solvers.euler_maruyama(LINEAR, grid, noise=0.7)
    case = ([2.0], [1.0], [0.5])
    follower = gaussian_product(LINEAR, *case)(None)
    x = torch.tensor([[0.3], [-1.0]], dtype=F)
    with pytest.raises(UserError, match="noise = eps / lam"):
        follower(x, torch.full((2,), 0.02, dtype=F))
    for _ in range(2):
        follower.follow({"x": table})
        for t, ratio in zip(table.times, weigh.noise_ratios(LINEAR, table), strict=True):
            told = gaussian_product(LINEAR, *case, noise=ratio)(None)
            times = torch.full((2,), t, dtype=F)
            assert torch.equal(follower(x, times).prediction, told(x, times).prediction)
    with pytest.raises(UserError, match="no row left"):
        follower(x, times)
    silent = gaussian_product(LINEAR, *case, reference=math.inf)(None)
    with pytest.warns(RuntimeWarning, match="infinite variance"):
        silent.follow({"x": table})


@pytest.mark.parametrize("path", [LINEAR, Path.cosine()], ids=["linear", "cosine"])
def test_bounded_noise_starts_right_where_beta_is_zero(path):
    """Euler-Maruyama from t = 0, its noise read from the table: of first order, from the start."""
    case = ([2.0], [0.5], [0.5])
    start, end = exact(path, *case, 0.0), exact(path, *case, 1.0)
    wanted, errors = np.array([end[0] - start[0], *end[1:]]), []
    for steps in (100, 200):
        table = solvers.euler_maruyama(path, grids.uniform(steps))
        ratios = torch.tensor(weigh.noise_ratios(path, table), dtype=F).repeat(3)
        target = gaussian_product(path, *case, reference=0.7, noise=lambda t, r=ratios: r)
        errors.append(np.abs(np.array(weighted_law(target, table, start[1:])) - wanted).max())
    assert errors[0] < 5e-3
    assert errors[1] < 0.6 * errors[0]


def test_entries_with_noise_of_their_own_each_take_their_own_mixture():
    case, levels = ([2.0], [1.0], [0.5]), torch.tensor([[0.0, 1.0, 0.4]], dtype=F)
    grid = [0.02, 0.3, 0.6, 0.8, 1.0]
    follower = gaussian_product(LINEAR, *case)(None)
    follower.follow({"x": solvers.euler_maruyama(LINEAR, grid, noise=levels)})
    x = torch.tensor([[0.3, -1.0, 0.2], [0.5, 0.1, -0.4]], dtype=F)
    times = torch.full((2,), 0.02, dtype=F)
    found = follower(x, times).prediction
    for j, level in enumerate(levels[0].tolist()):
        table = solvers.euler_maruyama(LINEAR, grid, noise=level)
        noise = weigh.noise_ratios(LINEAR, table)[0]
        told = gaussian_product(LINEAR, *case, noise=noise)(None)(x, times).prediction
        assert torch.allclose(found[:, j], told[:, j], rtol=1e-12)
    cloud = Process(Part(Centred(), LINEAR))
    points = weigh.anneal(cloud, 2.0)(Gaussian(0.0, 1.0).on(LINEAR))
    points.follow({"x": solvers.euler_maruyama(LINEAR, grid, noise=levels[:, :, None])})
    with pytest.raises(UserError, match="centred cloud"):
        points(torch.zeros(2, 3, 3, dtype=F), times)


def test_infinite_noise_at_beta_zero_is_refused_where_it_makes_the_drift_infinite():
    keys, like = Keys.for_samples(0, range(4)), torch.zeros(4, 1, dtype=F)
    process, model = one_part(LINEAR), Gaussian(0.0, 1.0).on(LINEAR)
    for noise in (None, 1.0):
        target = weigh.anneal(process, 2.0, noise=noise)
        with pytest.raises(UserError, match="infinite at t = 0"):
            sample(
                model, process, keys, like, solver="ddpm", guide=target,
                initial=target.prior(keys, like), particles=Resampling(),
            )
    guided = weigh.guidance(process, 2.0)
    assert sample(model, process, keys, like, solver="ddpm", guide=guided).finite.all()


def test_the_prior_is_the_tempered_one_and_another_start_is_refused():
    process = one_part(VP, Centred())
    keys, like = Keys.for_samples(0, range(64)), torch.zeros(64, 6, 3, dtype=F)
    target = weigh.anneal(process, 2.0, noise=1.0)
    prior = process.prior(keys, like)
    assert torch.allclose(target.prior(keys, like), prior / math.sqrt(2.0), rtol=1e-4)
    assert torch.equal(weigh.guidance(process, 3.0).prior(keys, like), prior)
    settings = {"guide": target, "particles": Resampling(), "solver": "ddpm"}
    with pytest.raises(UserError, match="Target.prior"):
        sample(Gaussian(0.0, 1.0).on(VP), process, keys, like, initial=prior, **settings)


def test_settings_that_make_no_sense_name_the_value():
    process = one_part(LINEAR)
    tokens = Process({
        "x": Part(Flat(), LINEAR), "kind": Part(Tokens(4), Masking()),
    })
    with pytest.raises(UserError, match="part 'kind'"):
        weigh.anneal(tokens, 2.0)
    with pytest.raises(UserError, match="positive sum, got -0.3"):
        weigh.anneal(process, -0.3)
    with pytest.raises(UserError, match="at least one expert"):
        weigh.product(process, {})
    with pytest.raises(UserError, match="got nan"):
        weigh.anneal(process, math.nan)
    with pytest.raises(UserError, match="got -1"):
        weigh.anneal(process, 2.0, noise=-1.0)
    with pytest.raises(UserError, match="scale of a reference must be positive, got 0"):
        weigh.anneal(process, 2.0, reference=0.0)
    with pytest.raises(UserError, match="one variance"):
        weigh.anneal(process, 2.0, reference=Gaussian(torch.zeros(2), torch.eye(2)))
    with pytest.raises(UserError, match="the parts are x"):
        weigh.anneal(process, 2.0, reference={"y": 1.0})
    with pytest.raises(UserError, match="needs the Laplacian"):
        steer.tilt(process, peaked, drift=1.0)
    with pytest.raises(UserError, match="tilted already"):
        steer.tilt(process, peaked, of=steer.tilt(process, peaked))
    with pytest.raises(UserError, match="another process"):
        steer.tilt(process, peaked, of=weigh.anneal(one_part(LINEAR), 2.0))
    with pytest.raises(UserError, match="finite scale"):
        steer.reward(process, lambda x: x.sum(1), scale=math.inf)
    with pytest.raises(UserError, match="Flat"):
        steer.linear_observation(
            one_part(LINEAR, Centred()), torch.ones(1, 6), torch.ones(1), 0.1
        )
    with pytest.raises(UserError, match="do not fit"):
        steer.linear_observation(process, torch.ones(2, 3), torch.ones(3), 0.1)
    bad = steer.tilt(process, lambda x, t: x, noise=0.0)(Gaussian(0.0, 1.0).on(LINEAR))
    with pytest.raises(UserError, match="must be a tensor of shape"):
        bad(torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(UserError, match="infinite where beta = 0"):
        target = weigh.anneal(process, 1.5, reference=math.inf)
        target.start(torch.zeros(4, 1), None, 0.0)


def test_a_reward_that_cannot_be_differentiated_is_refused():
    process, keys = one_part(VP), Keys.for_samples(0, range(4))
    target = steer.reward(process, lambda x: x[:, 0].detach().round())
    with pytest.raises(UserError, match="must be differentiable with respect to x"):
        sample(Gaussian(0.0, 1.0).on(VP), process, keys, (1,), solver="ddpm", guide=target)
