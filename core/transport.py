r"""Transport along a two-sided bridge, from source to target or back, by the one sampling loop.

With fields v (tangent), e (noise), b = v + gamma' e and s = -e / gamma of `core.bridges`, the law
of the interpolant is kept by

    forward     b + eps s  =  v + (gamma gamma' - eps) e / gamma
    backward   -b + eps s  = -v - (gamma gamma' + eps) e / gamma      in r = 1 - t

as drift, with sqrt(2 eps) dW besides, for any eps >= 0 in any entry at any time (Albergo, Boffi &
Vanden-Eijnden 2023). On the linear path of `core.paths` Euler's step is x + h velocity for any
field whatever, so the drift is handed to `core.sample` as a velocity, and fresh noise of deviation
sqrt(2 eps h) to its table: keys, masks, spaces and failing samples are treated there.

Ends. gamma vanishes at both, and e / gamma with it becomes 0 / 0. Where the bracket vanishes as
well nothing is lost: eps = gamma gamma' at the start is the Brownian bridge at eps = noise^2 / 2,
and eps falling with gamma (``noise=bridge.gamma``) is always good. Otherwise the drift holds the
score of the end itself, which no regression knows, and the fields of half a step further in take
its place; a network's error in e is then divided by a small gamma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from driftworks.core import grids, solvers
from driftworks.core.bridges import HEADS, Answer, TwoSided, choice, real_space
from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.sample import Samples, sample
from driftworks.core.spaces import Space
from driftworks.errors import UserError

__all__ = ["BridgeModel", "transport"]

Level = float | Tensor  # shared by all entries, or broadcast against the state (1 or B, ...)


class BridgeModel(Protocol):
    """What can be transported: fields at a state x (B, ...) and times t (B,).

    Answers the velocity as a tensor, or a mapping with "velocity" or "tangent", and "noise".
    """

    def __call__(
        self, x: Tensor, t: Tensor, mask: Tensor | None = None, cond: Any = None,
        previous: Any = None,
    ) -> Answer: ...  # fmt: skip


@dataclass(frozen=True)
class _Row:
    """When a row asks the model, and how much of its noise head it takes."""

    t: float
    weight: Level


class _Drift:
    """A bridge model as the velocity field that the sampling loop integrates."""

    def __init__(
        self, model: BridgeModel, predicts: str, sign: float, rows: Mapping[float, _Row]
    ) -> None:
        self.model, self.predicts, self.sign, self.rows = model, predicts, sign, rows
        self.evaluations = getattr(model, "evaluations", 1)

    def __call__(
        self, x: Any, t: Tensor, mask: Any = None, cond: Any = None, previous: Any = None
    ) -> Any:
        row = self.rows[t[0].item()]
        answer = self.model(x, torch.full_like(t, row.t), mask=mask, cond=cond, previous=None)
        heads = {"velocity": answer} if isinstance(answer, Tensor) else answer
        plain = not isinstance(row.weight, Tensor) and row.weight == 0.0
        needed = [self.predicts] if plain else [self.predicts, "noise"]
        for head in needed:
            if head not in heads:
                raise UserError(
                    f"the model answers {', '.join(heads)}, but this transport needs {head!r}"
                )
        drift = self.sign * heads[self.predicts]
        if plain:
            return drift
        weight = row.weight.to(drift) if isinstance(row.weight, Tensor) else row.weight
        return drift + weight * heads["noise"]


def transport(
    model: BridgeModel,
    bridge: TwoSided,
    keys: Keys,
    start: Tensor,
    mask: Tensor | None = None,
    *,
    space: Space | None = None,
    predicts: str = "velocity",
    noise: Level | Callable[[float], Level] = 0.0,
    direction: str = "forward",
    solver: str = "euler",
    steps: int = 50,
    grid: Sequence[float] | Callable[[int], Sequence[float]] | None = None,
    cond: Any = None,
    stream: str = "transport",
    callback: Callable[[int, float, Tensor], Any] | None = None,
    progress: bool | str = False,
) -> Samples:
    """Move states from one end of a bridge to the other.

    Args:
        model: see `BridgeModel`.
        bridge: the interpolant it was trained on.
        keys: the samples' keys (B,).
        start: x0 (B, ...) forward, x1 backward; projected onto the space.
        mask: the nodes that exist, (B, N) bool; passed on to the model.
        space: `Flat` by default.
        predicts: the first head, "velocity" or "tangent"; the second is "noise". A velocity alone
            suffices for the ordinary differential equation.
        noise: eps, a number or a function of t; ``bridge.gamma`` is a good one, 0 is the
            probability flow. Tensors with the axes of the state give entries their own level.
        direction: "forward" from source to target or "backward".
        solver: "euler" (weak order 1), or "heun" (order 2) without noise.
        steps, grid: times t from one end to the other, uniform by default; increasing also for
            "backward", which runs through them from the last to the first.
        cond: passed on to the model.
        stream: names the noise.
        callback: called after every row with (row, t, state).
        progress: show a progress bar.

    Returns `Samples`. UserError for unknown choices, noise below 0 or without a latent, Heun with
    noise, or an answer without the head that is needed.
    """
    choice("first head", predicts, HEADS[:2])
    choice("direction", direction, ("forward", "backward"))
    choice("solver", solver, ("euler", "heun"))
    space = real_space(space)
    forward = direction == "forward"
    times = (grid or grids.uniform)(steps) if grid is None or callable(grid) else grid
    clock = times if forward else [1.0 - t for t in reversed(times)]
    table = solvers.SOLVERS[solver](Path.linear(), clock)
    eps = [_level(noise, r if forward else 1.0 - r) for r in table.times]
    if not all(_all(level == 0.0) for level in eps):
        if solver != "euler":
            raise UserError("heun follows the probability flow only: noise takes the solver euler")
        if bridge.latent == "none":
            raise UserError("without a latent there is no score, and noise must be 0")
        spread = [
            (2.0 * level * (u - r)) ** 0.5
            for level, r, u in zip(eps, table.times, table.ends, strict=True)
        ]
        table = replace(table, name="euler_maruyama", c=tuple(spread))
    rows = {}
    for r, u, level in zip(table.times, table.ends, eps, strict=True):
        # the loop's clock has the precision of the state
        key = torch.tensor(r, dtype=start.dtype).item()
        rows[key] = _row(bridge, predicts == "tangent", forward, r, u, level)
    shown = None
    if callback is not None:

        def shown(row: int, r: float, state: Any, _: Any) -> Any:
            return callback(row, r if forward else 1.0 - r, state)

    return sample(
        _Drift(model, predicts, 1.0 if forward else -1.0, rows),
        Process(Part(space, Path.linear(), "velocity")),
        keys,
        start,
        mask,
        solver=lambda path, grid: table,
        grid=clock,
        initial=space.project(start, mask),
        cond=cond,
        stream=stream,
        callback=shown,
        progress=progress,
    )


def _all(condition: bool | Tensor) -> bool:
    return bool(condition.all()) if isinstance(condition, Tensor) else condition


def _level(noise: Level | Callable[[float], Level], t: float) -> Level:
    eps: Any = noise(t) if callable(noise) else noise
    eps = eps.double() if isinstance(eps, Tensor) else float(eps)
    if not _all((eps >= 0.0) & (eps < math.inf)):
        raise UserError(f"noise must be finite and >= 0, got {eps} at t = {t:g}")
    return eps


def _row(bridge: TwoSided, tangent: bool, forward: bool, r: float, u: float, eps: Level) -> _Row:
    """The row that leads from r to u on the loop's clock; see the module on the ends."""
    for place in (r, r + 0.5 * (u - r)):
        t = place if forward else 1.0 - place
        slope = bridge.gamma_dgamma(t) if tangent else 0.0
        excess = (slope if forward else -slope) - eps
        gamma = bridge.gamma(t)
        rounding: Any = 1e-12 * (abs(slope) + eps)
        if _all(abs(excess) <= rounding):
            return _Row(t, 0.0)
        if gamma > 0.0:
            break
    return _Row(t, excess / gamma)
