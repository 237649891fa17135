"""Training times follow their laws, weights undo them, and no time depends on the batch."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.times import (
    Beta,
    LogitNormal,
    LogNoiseNormal,
    Uniform,
    spread_uniform,
    time_weight,
)
from driftworks.errors import UserError

PATHS = {
    "linear": Path.linear(),
    "cosine": Path.cosine(),
    "vp": Path.vp(),
    "subvp": Path.subvp(),
    "ve": Path.ve(),
    "edm": Path.edm(),
}
LAWS = {
    "uniform": Uniform(),
    "beta": Beta(2.0, 1.0),
    "beta in the middle": Beta(1.7, 2.4),
    "logit normal": LogitNormal(0.3, 0.9),
    **{f"log noise {name}": LogNoiseNormal(path, -0.4, 1.3) for name, path in PATHS.items()},
}
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())


@every_law
def test_the_density_is_the_slope_of_the_quantiles(law):
    u = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
    h = 1e-5
    slope = (law.quantile(u + h) - law.quantile(u - h)) / (2 * h)
    torch.testing.assert_close(law.density(law.quantile(u)) * slope, torch.ones_like(u),
                               rtol=2e-6, atol=0)


@every_law
def test_the_density_is_a_density(law):
    lowest, median, highest = law.quantile(
        torch.tensor([1e-9, 0.5, 1 - 1e-9], dtype=torch.float64)
    ).tolist()
    assert 0.0 <= lowest < median < highest <= 1.0

    def density(t):
        return law.density(torch.tensor(t, dtype=torch.float64)).item()

    total = sum(
        integrate.quad(density, a, b, limit=400)[0]
        for a, b in ((lowest, median), (median, highest))
    )
    assert total == pytest.approx(1.0, abs=1e-6)


@every_law
@pytest.mark.parametrize("group", [None, 7])
def test_drawn_times_follow_the_law(law, group):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    keys = Keys.for_samples(seed, range(0, 7 * 3000, 7))  # one of each group: independent
    t = law.sample(keys, 3, group)
    assert t.shape == (3000,) and t.dtype == torch.float64 and 0 < t.min() and t.max() < 1
    assert t.float().max() < 1
    grid = law.quantile(torch.linspace(0, 1, 4001, dtype=torch.float64)[1:-1]).numpy()
    levels = torch.linspace(0, 1, 4001, dtype=torch.float64)[1:-1].numpy()

    def distribution(s):
        return np.interp(s, grid, levels)

    assert stats.kstest(t.numpy(), distribution).pvalue > 1e-5


def test_known_laws_agree_with_scipy():
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    for a, b in ((2.0, 1.0), (0.7, 3.2)):
        wanted = torch.from_numpy(stats.beta(a, b).pdf(t.numpy()))
        torch.testing.assert_close(Beta(a, b).density(t), wanted, rtol=1e-10, atol=0)
        wanted = torch.from_numpy(stats.beta(a, b).ppf(t.numpy()))
        torch.testing.assert_close(Beta(a, b).quantile(t), wanted, rtol=1e-10, atol=0)
    level = LogitNormal(-0.5, 0.7).quantile(t).logit()
    wanted = torch.from_numpy(stats.norm(-0.5, 0.7).ppf(t.numpy()))
    torch.testing.assert_close(level, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_log_noise_levels_are_a_truncated_normal_on_every_path(path):
    mean, std = 0.2, 0.8
    u = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    t = LogNoiseNormal(path, mean, std).quantile(u)
    level = (path.sigma(t) / path.beta(t)).log()
    low, high = ((-0.5 * path.log_snr(end) - mean) / std for end in (1.0, 0.0))
    wanted = stats.truncnorm(low, high, mean, std).ppf(1 - u.numpy())
    torch.testing.assert_close(level, torch.from_numpy(wanted), rtol=1e-6, atol=1e-7)


@every_law
@pytest.mark.parametrize("target", [None, Beta(1.5, 1.5)])
def test_weighted_losses_have_the_expectation_of_the_target(law, target):
    """E_p[q / p L] = E_q[L], by quadrature over the law's own quantiles."""
    def loss(t):
        return torch.sin(3 * t) ** 2 * t * (1 - t)  # vanishes where weights diverge

    edges = torch.tensor([1e-7, 1 - 1e-7], dtype=torch.float64)
    z = torch.linspace(-6.5, 6.5, 40_001, dtype=torch.float64)  # u = Phi(z): fine at both ends
    u = torch.special.ndtr(z)
    step = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    t = law.quantile(u)
    weighted = (time_weight(t, law, target) * loss(t)).nan_to_num(0.0)
    found = (weighted * step).sum()
    low, high = law.quantile(edges)
    s = low + (high - low) * (torch.arange(200_001, dtype=torch.float64) + 0.5) / 200_001
    plain = loss(s) * (target or Uniform()).density(s)
    wanted = plain.mean() * (high - low)
    assert found.item() == pytest.approx(wanted.item(), rel=2e-3)


def test_a_group_has_one_time_in_each_of_its_shares_and_no_sample_sees_its_batch():
    size = 16
    keys = Keys.for_samples(5, range(-32, 96))
    u = spread_uniform(keys, 2, size)
    assert (u >= 0).all() and (u < 1).all()
    for block in u.view(-1, size):
        gaps = block.sort().values.diff()
        torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / size), rtol=0, atol=1e-12)
    starts = u.view(-1, size)[:, 0]
    assert len(starts.unique()) == len(starts)  # groups are independent
    assert not torch.equal(u, spread_uniform(keys, 3, size))
    some = torch.tensor([100, 3, 57, 4])
    assert torch.equal(spread_uniform(keys[some], 2, size), u[some])
    for law in (Beta(), LogitNormal(), LogNoiseNormal(Path.edm())):
        whole = law.sample(keys, 2, size)
        assert torch.equal(law.sample(keys[some], 2, size), whole[some])
        assert torch.equal(law.sample(keys[some], 2), law.sample(keys, 2)[some])


def test_spread_times_integrate_with_less_noise():
    """The mean of f over a shifted grid errs by (f(1) - f(0)) (1/2 - u) / n to leading order."""
    size, groups = 32, 400
    keys = Keys.for_samples(11, range(size * groups))

    def noise(group):
        times = Uniform().sample(keys, 0, group)
        return torch.sin(4 * times).view(groups, size).mean(1).std().item()

    leading = abs(math.sin(4)) / (size * math.sqrt(12))
    assert noise(size) == pytest.approx(leading, rel=0.15)
    assert noise(size) < 0.15 * noise(None)


def test_laws_refuse_numbers_they_cannot_use():
    for build in (
        lambda: Beta(0.0, 1.0),
        lambda: Beta(1.0, math.inf),
        lambda: LogitNormal(0.0, 0.0),
        lambda: LogNoiseNormal(Path.linear(), math.nan, 1.0),
        lambda: LogNoiseNormal(Path.ve(0.01, 50.0), 60.0, 1.0),
    ):
        with pytest.raises(UserError):
            build()
    with pytest.raises(UserError, match="at least one sample"):
        spread_uniform(Keys.for_samples(0, range(3)), 0, 0)
