r"""Langevin rows: they move the state at one time, towards the law it should have there.

A row at time t with step d is x + d s(x) + sqrt(2 d) xi with s = grad log rho_t, which is
(beta D - x) / sigma^2. The step depends on the noise level only,

    d = 2 (r sigma_t)^2,           so x' = (1 - 2 r^2) x + 2 r^2 beta D + 2 r sigma xi,

never on the norm of score or noise: a step that depends on the state has another stationary law
(in 3 dimensions, variance 5.4 in place of 1), and one that depends on the batch couples samples.
The finite step has a price that is known on a Gaussian of variance V,

    langevin               stationary variance V / (1 - d / (2 V)); pure noise: 1 / (1 - r^2)
    leimkuhler_matthews    V: exact, at no extra cost

The second averages the noise of two rows, x + d s + sqrt(d / 2) (xi_k + xi_{k-1}). Its first row
has none to share, since the noise of the row before belongs to a step already taken; it is a plain
Langevin row of step d / 4, x + (d / 4) s + sqrt(d / 2) xi, which leaves x as the average needs it:
noise sqrt(d / 2) xi on top of variance V - d / 2 (up to d^2 / (16 V), forgotten at the rate of the
chain). So it takes two rows or more at a time to gain from it.

`corrected` puts such rows after every step of another table. Its bias depends on r and not on the
number of steps, hence the declared order 0; towards t = 1 it vanishes with d.

References: Roberts & Tweedie 1996 (ULA); Leimkuhler & Matthews 2013; Song et al. 2021 (predictor-
corrector, with the state-dependent step that is left out here).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from driftworks.core.paths import Path
from driftworks.core.tables import Coefficient, Row, Table
from driftworks.errors import UserError

__all__ = ["CORRECTORS", "Corrector", "corrected", "langevin", "leimkuhler_matthews"]

Corrector = Callable[[Path, float], Table]


def langevin(path: Path, t: float, steps: int = 1, ratio: float = 0.16) -> Table:
    """``steps`` rows of unadjusted Langevin dynamics at time t, of step 2 (ratio sigma)^2."""
    sigma, pull = _check(path, t, steps, ratio), 2.0 * ratio * ratio
    row = ((1.0 - pull,), (pull * path.beta(t),))
    return _standing("langevin", t, [row] * steps, [2.0 * ratio * sigma] * steps)


def leimkuhler_matthews(path: Path, t: float, steps: int = 1, ratio: float = 0.16) -> Table:
    """``steps`` rows at time t that share their noise in pairs, of step 2 (ratio sigma)^2."""
    sigma = _check(path, t, steps, ratio)
    rows: list[tuple[Row, Row]] = []
    for k in range(steps):
        pull = (2.0 if k else 0.5) * ratio * ratio
        rows.append(((1.0 - pull,), (pull * path.beta(t),)))
    noise = ratio * sigma
    table = _standing("leimkuhler_matthews", t, rows, [noise] * steps)
    return replace(table, d=(0.0, *[noise] * (steps - 1)))


CORRECTORS: dict[str, Callable[..., Table]] = {
    "langevin": langevin,
    "leimkuhler_matthews": leimkuhler_matthews,
}


def _check(path: Path, t: float, steps: int, ratio: float) -> float:
    """The noise level at t, if a corrector may stand there."""
    if isinstance(steps, bool) or steps != int(steps) or steps < 1:
        raise UserError(f"a corrector takes a whole number of steps, at least 1, got {steps!r}")
    if not 0.0 < ratio < 1.0:
        raise UserError(f"a corrector is stable for ratios between 0 and 1, got {ratio!r}")
    sigma = path.sigma(t)
    if not (0.0 <= t < 1.0 and sigma > 0.0):
        raise UserError(f"a corrector needs noise: a time in [0, 1) with sigma > 0, got {t!r}")
    return sigma


def _standing(name: str, t: float, rows: list[tuple[Row, Row]], noise: list[float]) -> Table:
    a, b = zip(*rows, strict=True)
    times = (float(t),) * len(rows)
    return Table(name, 0, times, times, a, b, tuple(noise))


def corrected(table: Table, path: Path, corrector: Corrector) -> Table:
    """The table with the corrector's rows after every step.

    A step is over where no later row reaches back to a state inside it, so methods with stages are
    corrected once a step, not once a stage. What multistep methods remember keeps its meaning: the
    rows between are skipped, with weight 0. After the step to t = 1 there is nothing to correct,
    the state being the data; everywhere else the step of the corrector shrinks with sigma, so no
    noise level is too small for it.

    Raises UserError for a table that keeps reaching back and so has no place for a corrector.
    """
    n = len(table)
    oldest = [n] * (n + 1)  # the oldest state that this or a later row reaches back to
    for k in reversed(range(n)):
        reach = max((j for j, weight in enumerate(table.a[k]) if _is(weight)), default=0)
        oldest[k] = min(oldest[k + 1], k - reach)
    earlier = table.d or (0.0,) * n
    place: list[int] = []  # where the rows of the table stand among all rows
    rows: list[tuple[float, float, Row, Row, Coefficient, Coefficient]] = []
    added = 0
    for k, (t, u) in enumerate(zip(table.times, table.ends, strict=True)):
        place.append(len(rows))
        a, b = _stretched(table.a[k], place), _stretched(table.b[k], place)
        rows.append((t, u, a, b, table.c[k], earlier[k]))
        over = oldest[k + 1] > k and (k + 1 == n or not _is(earlier[k + 1]))
        if over and u < 1.0 and path.sigma(u) > 0.0:
            block = corrector(path, u)
            d = block.d or (0.0,) * len(block)
            rows += zip(block.times, block.ends, block.a, block.b, block.c, d, strict=True)
            added += len(block)
    if not added and table.ends[0] < 1.0:
        raise UserError(f"{table.name} has no row after which a corrector could act")
    if not added:
        return table
    times, ends, a_rows, b_rows, fresh, shared = zip(*rows, strict=True)
    d = shared if any(map(_is, shared)) else ()
    return Table(f"corrected {table.name}", 0, times, ends, a_rows, b_rows, fresh, d)


def _is(weight: Coefficient) -> bool:
    """Whether a weight is there at all."""
    return isinstance(weight, Tensor) or weight != 0.0


def _stretched(weights: Row, place: list[int]) -> Row:
    """Weights of the last rows of the table, newest first, at those rows' new distances."""
    now = len(place) - 1
    weights = weights[: len(place)]
    row: list[Coefficient] = [0.0] * (place[now] - place[now - len(weights) + 1] + 1)
    for j, weight in enumerate(weights):
        row[place[now] - place[now - j]] = weight
    return tuple(row)
