"""A solver as data: the table of float64 coefficients that the sampling loop follows.

On a Gaussian path the network enters only through the denoised state D = E[x1 | x_t], and every
usual sampler is linear in past states, past D and fresh noise. Row k evaluates
D_k = D(x_k, times[k]) and moves to the time ends[k],

    x_{k+1} = sum_j a_kj x_{k-j} + sum_j b_kj D_{k-j} + c_k xi_k + d_k xi_{k-1},     xi ~ N(0, I).

One-evaluation methods have one row a step and a = (a0,). Methods with stages have one row a stage
and reach back to the state at the start of the step; a row that evaluates where it ends
(times = ends) does not move the clock, but ends never decrease. Because rows are linear,
`laws.table_law` returns the exact law of the output on Gaussian data.

The last step to t = 1 of nearly every method is the jump x = beta_1 D: sigma(1) is 0 or, on VE,
noise nobody wants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from driftworks.core.paths import Path
from driftworks.errors import UserError

__all__ = ["Coefficient", "Row", "Solver", "Table", "intervals", "jump", "nonnegative", "one_stage"]

Coefficient = float | Tensor
Times = tuple[float, ...]
Row = tuple[Coefficient, ...]
Step = tuple[Coefficient, Row, Coefficient]


@dataclass(frozen=True)
class Table:
    """The coefficients of one solver on one path and grid; see the module's formula.

    All fields but ``name`` and ``order`` have one member a row: the time of the network evaluation,
    the time of the state after the row, the weights of states and of denoised states, newest first,
    the standard deviation of the fresh noise, and the weight of the row before's fresh noise (``d``
    may be left empty, which is none).

    Coefficients are floats. Where entries of the state are treated differently, they are float64
    tensors with a leading axis of 1 or of the batch, whose axes are those of the state from the
    left: (1, N) or (1, N, 1) speaks of N nodes of a state (B, N, 3).
    """

    name: str
    order: int
    times: Times
    ends: Times
    a: tuple[Row, ...]
    b: tuple[Row, ...]
    c: Row
    d: Row = ()

    def __len__(self) -> int:
        return len(self.times)

    @property
    def evaluations(self) -> int:
        """Network evaluations from the first time to the last."""
        return len(self.times)

    @property
    def stochastic(self) -> bool:
        """Whether any row draws noise."""
        noise = (*self.c, *self.d)
        return any(bool(v.any()) if isinstance(v, Tensor) else v != 0.0 for v in noise)


Solver = Callable[[Path, Sequence[float]], Table]


def intervals(grid: Sequence[float]) -> list[tuple[float, float]]:
    """The steps (t, u) of an increasing grid within [0, 1]; UserError if it is not one."""
    if len(grid) < 2 or not (grid[0] >= 0.0 and grid[-1] <= 1.0):
        shown = str(list(grid)) if len(grid) < 5 else f"{grid[0]} ... {grid[-1]}"
        raise UserError(f"a time grid has at least two times within [0, 1], got {shown}")
    steps = list(zip(grid[:-1], grid[1:], strict=True))
    for t, u in steps:
        if not t < u:
            raise UserError(f"a time grid must increase, got {t} before {u}")
    return steps


def nonnegative(**values: float) -> None:
    """UserError unless every value is a finite number >= 0."""
    for name, value in values.items():
        if not 0.0 <= value < math.inf:
            raise UserError(f"{name} must be a finite number >= 0, got {value}")


def jump(path: Path) -> Step:
    """The step to t = 1 that ends on the denoised state."""
    return 0.0, (path.beta(1.0),), 0.0


def one_stage(
    name: str, order: int, steps: Sequence[tuple[float, float]], rows: Sequence[Step]
) -> Table:
    """The table of a method with one row (a, (b, ...), c) a step."""
    a, b, c = zip(*rows, strict=True)
    times, ends = zip(*steps, strict=True)
    return Table(name, order, times, ends, tuple((v,) for v in a), b, c)
