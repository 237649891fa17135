"""Time grids: from 0 to 1, increasing, and spaced as published."""

from __future__ import annotations

import math

import numpy as np
import pytest

from driftworks.core import grids
from driftworks.core.paths import Path
from driftworks.errors import UserError

PATHS = {
    "linear": Path.linear(),
    "cosine": Path.cosine(),
    "vp": Path.vp(),
    "subvp": Path.subvp(),
    "ve": Path.ve(),
    "edm": Path.edm(),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
PLAIN = {
    "uniform": grids.uniform,
    "power": grids.power,
    "power 3": lambda n: grids.power(n, 3.0),
    "log": grids.log,
    "cosine": grids.cosine,
}
COUNTS = (1, 2, 3, 7, 50, 1000)


def ratios(path, grid):
    return [path.sigma(t) / path.beta(t) for t in grid]


def assert_grid(grid, steps):
    assert isinstance(grid, tuple) and len(grid) == steps + 1
    assert all(type(t) is float for t in grid)
    assert grid[0] == 0.0 and grid[-1] == 1.0
    assert all(a < b for a, b in zip(grid[:-1], grid[1:], strict=True))


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("build", PLAIN.values(), ids=PLAIN.keys())
def test_plain_grids_increase_from_exactly_zero_to_exactly_one(build, steps):
    assert_grid(build(steps), steps)


@every_path
@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("build", [grids.karras, grids.log_snr])
def test_grids_of_a_path_increase_from_exactly_zero_to_exactly_one(build, path, steps):
    assert_grid(build(path, steps), steps)


def test_karras_on_the_edm_path_is_the_published_schedule():
    steps = np.arange(18)
    root = 80 ** (1 / 7) + steps / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))
    published = [*(root**7), 0.0]  # Karras et al. 2022, eq. 5, with their defaults
    grid = grids.karras(Path.edm(80.0), 18)
    # t = 1 - sigma / 80 keeps sigma to 80 units in the last place of 1
    assert ratios(Path.edm(80.0), grid) == pytest.approx(published, rel=1e-11)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_noise_schedule_means_the_same_levels_on_every_path(name):
    path, reference = PATHS[name], Path.edm(80.0)
    for build in (grids.karras, grids.log_snr):
        found = ratios(path, build(path, 20, 0.02, 80.0)[1:-1])
        wanted = ratios(reference, build(reference, 20, 0.02, 80.0)[1:-1])
        assert found == pytest.approx(wanted, rel=1e-10)


@every_path
def test_log_snr_grids_are_equally_spaced_in_log_snr(path):
    grid = grids.log_snr(path, 12, 0.02, 60.0)
    if math.isfinite(path.log_snr(1.0)):
        levels = [path.log_snr(t) for t in grid]  # VE: up to its own last ratio when low is below
        levels = levels[:-1] if path.sigma(1.0) < 0.02 else levels
    else:
        levels = [path.log_snr(t) for t in grid[:-1]]
    first = max(path.log_snr(0.0), -2 * math.log(60.0))
    levels[0] = first
    assert np.diff(levels) == pytest.approx(np.diff(levels)[0], rel=1e-9)
    assert levels[-1] == pytest.approx(-2 * math.log(0.02), abs=1e-9)


def test_limits_move_to_the_ends_of_a_path_that_does_not_reach_them():
    path = Path.ve(0.01, 50.0)  # asked for 80 down to 0.002
    found = ratios(path, grids.karras(path, 10))
    root = np.linspace(50 ** (1 / 7), 0.01 ** (1 / 7), 11)
    assert found == pytest.approx(list(root**7), rel=1e-10)
    assert grids.log_snr(path, 8) == pytest.approx(grids.uniform(8), abs=1e-12)


def test_log_grid_is_the_published_one():
    published = 1.0 - np.logspace(-2, 0, 41)[::-1]  # Proteina: shifted and scaled to [0, 1]
    published = (published - published.min()) / (published.max() - published.min())
    assert grids.log(40) == pytest.approx(published.tolist(), abs=1e-14)
    steps = np.diff(grids.log(40))
    assert steps[1:] / steps[:-1] == pytest.approx(10 ** (-2 / 40), rel=1e-9)


def test_power_and_cosine_grids_follow_their_formulas():
    assert grids.power(4, 2.0) == (0.0, 0.0625, 0.25, 0.5625, 1.0)
    assert grids.power(9, 0.5)[1] == pytest.approx(1 / 3)
    wanted = [(1 - math.cos(math.pi * k / 6)) / 2 for k in range(7)]
    assert grids.cosine(6) == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: grids.uniform(0), "steps must be a whole number of at least 1, got 0"),
        (lambda: grids.uniform(2.5), "steps must be a whole number of at least 1, got 2.5"),
        (
            lambda: grids.karras(Path.edm(), -3),
            "steps must be a whole number of at least 1, got -3",
        ),
        (lambda: grids.power(5, 0.0), "exponent must be a positive number, got 0.0"),
        (lambda: grids.log(5, math.nan), "decades must be a positive number, got nan"),
        (lambda: grids.karras(Path.edm(), 5, rho=-7.0), "rho must be a positive number, got -7.0"),
        (lambda: grids.log_snr(Path.edm(), 5, low=2.0, high=1.0), "high 1.0 and low 2.0"),
        (lambda: grids.log_snr(Path.ve(), 5, low=0.001, high=0.005), "high 0.005 and low 0.01"),
        (lambda: grids.check([]), "this one is empty"),
        (lambda: grids.check([0.0, 0.9]), "this one is from 0.0 to 0.9"),
        (lambda: grids.check([0.0, 0.5, 0.5, 1.0]), "must increase, got 0.5 after 0.5"),
        (lambda: grids.check([0.0, math.nan, 1.0]), "must increase, got nan after 0.0"),
    ],
)
def test_impossible_grids_are_refused_with_the_value(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_a_grid_of_ones_own_passes_through_the_check():
    assert grids.check([0, 0.5, 1]) == (0.0, 0.5, 1.0)
    assert grids.check(np.linspace(0, 1, 3)) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("path", [Path.linear(), Path.vp(), Path.ve(), Path.edm()], ids=str)
def test_the_linear_grid_takes_equal_steps_of_the_share_of_data(path):
    grid = grids.linear(path, 7)
    share = [path.beta(t) / (path.beta(t) + path.sigma(t)) for t in grid]
    assert np.diff(share) == pytest.approx((share[-1] - share[0]) / 7, rel=1e-6)


def test_the_linear_grid_of_the_linear_path_is_uniform():
    assert grids.linear(Path.linear(), 9) == pytest.approx(grids.uniform(9), abs=1e-12)
