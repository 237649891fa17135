r"""Time grids: where a sampler stops on its way from noise (t = 0) to data (t = 1).

A grid of n steps is a tuple of n + 1 increasing Python floats that begins with 0 and ends with 1.

    uniform    t_k = k / n
    power      t_k = (k / n)^p                           p < 1 refines the data end
    log        t_k = (1 - 10^(-d k/n)) / (1 - 10^(-d))   steps shrink d decades towards the data
    cosine     t_k = (1 - cos(pi k / n)) / 2             short steps at both ends
    karras     r_k = (R^(1/rho) + k/m (r^(1/rho) - R^(1/rho)))^rho
    log_snr    r_k = R (r / R)^(k / m)
    linear     1 / (1 + r_k) = (1 - k/n) / (1 + r_0) + k/n / (1 + r_n)

The last is the clock of the linear path: equal steps of the share beta / (beta + sigma) of data in
a sample, the whole way the path goes; on the linear path it is ``uniform``. Karras and log_snr are
laid out on the noise-to-data ratio sigma / beta, so that one choice of limits R
("high") and r ("low") means the same noise levels on every path. m = n - 1 steps lead from R to r
and one more jumps to t = 1. Limits beyond the path's own range are moved to its ends (VP and VE
begin at a finite ratio; VE ends at one, and then all n steps lead there). The first time is 0 also
on a path that begins above R.

References: Karras et al. 2022, eq. 5; Geffner et al. 2025, Proteina (log).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from driftworks.core.paths import Path
from driftworks.errors import UserError

__all__ = ["Grid", "check", "cosine", "karras", "linear", "log", "log_snr", "power", "uniform"]

Grid = tuple[float, ...]


def check(times: Sequence[float]) -> Grid:
    """Return ``times`` as a grid; UserError unless it increases strictly from 0 to 1."""
    grid = tuple(float(t) for t in times)
    if len(grid) < 2 or grid[0] != 0.0 or grid[-1] != 1.0:
        ends = f"from {grid[0]} to {grid[-1]}" if grid else "empty"
        raise UserError(f"a time grid runs from 0 to 1 in at least one step; this one is {ends}")
    for before, after in zip(grid[:-1], grid[1:], strict=True):
        if not before < after:
            raise UserError(f"a time grid must increase, got {after!r} after {before!r}")
    return grid


def uniform(steps: int) -> Grid:
    """Equal steps in t."""
    return tuple(_fractions(steps))


def power(steps: int, exponent: float = 0.5) -> Grid:
    """Times (k/n)^exponent: below 1 the data end is refined, above 1 the noise end."""
    exponent = _positive("exponent", exponent)
    return check([f**exponent for f in _fractions(steps)])


def log(steps: int, decades: float = 2.0) -> Grid:
    """Steps that shrink geometrically, by ``decades`` powers of ten, towards the data."""
    rate = math.log(10.0) * _positive("decades", decades)
    return check([math.expm1(-rate * f) / math.expm1(-rate) for f in _fractions(steps)])


def cosine(steps: int) -> Grid:
    """Half a cosine: steps are short at both ends and longest in the middle."""
    return check([math.sin(0.5 * math.pi * f) ** 2 for f in _fractions(steps)])


def karras(
    path: Path, steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0
) -> Grid:
    """Noise-to-data ratios equally spaced in ratio^(1/rho), from ``high`` down to ``low``."""
    root = 1.0 / _positive("rho", rho)
    return _by_ratio(path, steps, low, high, lambda r: r**root, lambda y: y**rho)


def log_snr(path: Path, steps: int, low: float = 0.002, high: float = 80.0) -> Grid:
    """Noise-to-data ratios equally spaced in log SNR, from ``high`` down to ``low``."""
    return _by_ratio(path, steps, low, high, math.log, math.exp)


def linear(path: Path, steps: int) -> Grid:
    """Equal steps of beta / (beta + sigma): the linear path's uniform steps on any path."""
    first, last = (1.0 / (1.0 + math.exp(-0.5 * path.log_snr(end))) for end in (0.0, 1.0))
    shares = [first + f * (last - first) for f in _fractions(steps)[1:-1]]
    times = [path.time_of_log_snr(2.0 * math.log(s / (1.0 - s))) for s in shares]
    return check([0.0, *times, 1.0])


def _by_ratio(
    path: Path,
    steps: int,
    low: float,
    high: float,
    scale: Callable[[float], float],
    unscale: Callable[[float], float],
) -> Grid:
    """Grid of ratios equally spaced after ``scale``, a monotone function of the ratio."""
    fractions = _fractions(steps)
    first, last = (math.exp(-0.5 * path.log_snr(end)) for end in (0.0, 1.0))
    high, low = min(_positive("high", high), first), max(_positive("low", low), last)
    if low >= high:
        raise UserError(f"noise-to-data ratios must fall, got high {high!r} and low {low!r}")
    if low > last:
        fractions = _fractions(steps - 1) if steps > 1 else [0.0]
    top, bottom = scale(high), scale(low)
    ratios = [unscale(top + f * (bottom - top)) for f in fractions[1:]]
    times = [path.time_of_log_snr(-2.0 * math.log(ratio)) for ratio in ratios]
    return check([0.0, *times, 1.0] if low > last else [0.0, *times[:-1], 1.0])


def _fractions(steps: int) -> list[float]:
    """The numbers 0, 1/n, ..., 1."""
    if isinstance(steps, bool) or steps != int(steps) or steps < 1:
        raise UserError(f"steps must be a whole number of at least 1, got {steps!r}")
    return [k / steps for k in range(int(steps) + 1)]


def _positive(name: str, value: float) -> float:
    if not 0.0 < value < math.inf:
        raise UserError(f"{name} must be a positive number, got {value!r}")
    return value
