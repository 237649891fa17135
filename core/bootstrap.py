"""Figures with intervals: the bootstrap over molecules.

Every figure here is a function f of column sums over the n requested molecules,

    value = f(sum_i x_i),        x_i in R^K the contributions of molecule i (0 for a failed one),

a mean, a ratio of sums, or a divergence of a summed histogram. One resample draws multinomial
weights w (n draws from n molecules) and gives f(sum_i w_i x_i): one matrix product serves all
figures and resamples. Divergences of finite samples are biased upward and a resample adds the bias
once more, so the resampled values are shifted to have the point estimate as their mean before
their 2.5 % and 97.5 % quantiles are taken (Efron & Tibshirani 1993, ch. 10). A proportion of
exactly 0 or 1 has no bootstrap spread; it gets the exact interval (Clopper & Pearson 1934).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Figure", "Statistic", "estimate", "mean", "ratio"]

LEVEL = 0.95
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval.

    `n` counts what it is a figure of and `of` says what that is; `unit` is "fraction", "bit" or the
    unit of a property. The interval is NaN where no resamples were asked for.
    """

    value: float
    low: float
    high: float
    n: int
    unit: str = "fraction"
    of: str = "requested"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; NaN becomes None."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        clean = {k: float(v) if np.isfinite(v) else None for k, v in numbers.items()}
        return {**clean, "n": self.n, "unit": self.unit, "of": self.of}

    def __str__(self) -> str:
        scale, places, sign = (100, 1, " %") if self.unit == "fraction" else (1, 4, "")
        value, low, high = (
            f"{x * scale:.{places}f}" if np.isfinite(x) else "-"
            for x in (self.value, self.low, self.high)
        )
        unit = sign if self.unit == "fraction" else f" {self.unit}"
        return f"{value}{unit} [{low}, {high}]"


@dataclass(frozen=True, eq=False)
class Statistic:
    """What `estimate` turns into a `Figure`.

    rows: (n,) or (n, K) contributions of each requested molecule
    reduce: (R, K) sums -> (R,) values
    bounds: values outside are impossible; a fraction at one of its bounds gets the exact interval
    """

    rows: np.ndarray
    reduce: Callable[[np.ndarray], np.ndarray]
    n: int
    unit: str = "fraction"
    of: str = "requested"
    bounds: tuple[float, float] = field(default=(0.0, 1.0))


def mean(rows: np.ndarray) -> Statistic:
    """The mean over the requested molecules."""
    n = len(rows)
    return Statistic(np.asarray(rows, float), lambda sums: sums[:, 0] / n, n)


def ratio(top: np.ndarray, bottom: np.ndarray, of: str, unit: str = "fraction") -> Statistic:
    """sum(top) / sum(bottom), which is at most 1 for a fraction; n is the denominator."""
    rows = np.stack([top, bottom], axis=1).astype(float)
    count = round(float(rows[:, 1].sum()))
    bounds = (0.0, 1.0 if unit == "fraction" else np.inf)

    def reduce(sums: np.ndarray) -> np.ndarray:
        empty = sums[:, 1] <= 0
        return np.where(empty, np.nan, sums[:, 0] / np.where(empty, 1.0, sums[:, 1]))

    return Statistic(rows, reduce, count, unit, of, bounds)


def estimate(
    statistics: dict[str, Statistic], resamples: int = 1000, seed: int = 0
) -> dict[str, Figure]:
    """All figures from one set of resampling weights; no resamples, no intervals."""
    rows = {name: _columns(s.rows) for name, s in statistics.items()}
    values = {
        name: float(s.reduce(rows[name].sum(axis=0, keepdims=True))[0])
        for name, s in statistics.items()
    }
    draws = _resampled(statistics, rows, resamples, seed) if resamples else {}
    figures = {}
    for name, s in statistics.items():
        low, high = _interval(s, values[name], draws.get(name))
        figures[name] = Figure(values[name], low, high, s.n, s.unit, s.of)
    return figures


def _columns(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, float)
    return rows[:, None] if rows.ndim == 1 else rows


def _resampled(
    statistics: dict[str, Statistic], rows: dict[str, np.ndarray], resamples: int, seed: int
) -> dict[str, np.ndarray]:
    names: Sequence[str] = list(statistics)
    if not names:
        return {}
    widths = np.cumsum([0] + [rows[name].shape[1] for name in names])
    stacked = np.concatenate([rows[name] for name in names], axis=1)
    n = len(stacked)
    rng = np.random.default_rng(seed)
    draws: dict[str, list[np.ndarray]] = {name: [] for name in names}
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        weights = rng.multinomial(n, np.full(n, 1.0 / n), size=count).astype(float)
        sums = weights @ stacked
        for k, name in enumerate(names):
            draws[name].append(statistics[name].reduce(sums[:, widths[k] : widths[k + 1]]))
    return {name: np.concatenate(parts) for name, parts in draws.items()}


def _interval(s: Statistic, value: float, draws: np.ndarray | None) -> tuple[float, float]:
    if draws is None or not np.isfinite(value):
        return np.nan, np.nan
    tail = (1 - LEVEL) / 2
    if s.unit == "fraction" and value in (0.0, 1.0) and s.n:
        # Atoms of one molecule are not independent trials; molecules are.
        reach = 1 - tail ** (1 / min(s.n, len(s.rows)))
        return (0.0, reach) if value == 0.0 else (1.0 - reach, 1.0)
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return np.nan, np.nan
    shifted = finite - finite.mean() + value
    low, high = np.clip(np.quantile(shifted, [tail, 1 - tail]), *s.bounds)
    return min(float(low), value), max(float(high), value)
