r"""Scaffolds around a motif, and given chains changed a little.

Scaffolding. The design x_1 is to hold m given points M (a motif) up to a rigid motion: its rows K
are R M + s, with a proper rotation R and a place s. A network that was shown motifs (`train`) knows
E[x_1 | x_t, x_1K = R M + s], rotation and place counted from the centre of the chain. These are no
part of the question, and a motif shown somewhere is answered there: a place chosen at first would
be the place for good. So in every row of the sampler at a time below 0.8,

    D_0 = E[x_1 | x_t]                          the network without the motif
    (R, s) = argmin |R M + s - D_0K|^2          over proper R: where the chain has it by itself
    D = E[x_1 | x_t, x_1K = R M + s]            the network again; its rows K become R M + s

and D, centred, is what the sampler is told. From 0.8 on the fold is settled, (R, s) stay, and the
network is asked once a row. The centre of the rows K thus moves as it would without a motif, with
the model's own law at the end, and the rest of the chain grows around it. For known rows R M + s
stands in for the denoised value: they go along their own bridge, as known entries do
(`core.movers`), and end on a copy of M. `hold` moves the finished design to where the motif lies in
its file and makes the copy exact. No reflection is ever used.

The same wrapper serves SDE, ODE, students and flow maps. All of them ask for denoised chains, or
for means of denoised chains on the way (`core.flowmap`), which for known rows are the same.

Variations. A chain x_1 is given noise to a time t, x_t = t x_1 + g (1 - t) e, and is finished by
the model from there (RFdiffusion calls it partial diffusion). The nearer t is to 1, the less
changes; the ODE changes less than the SDE, whose fresh noise makes it forget. g is 1, but for
students their gamma, which scales all noise that they see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.process import Masks, Process, State
from driftworks.core.sample import Model
from driftworks.core.spaces import Centred
from driftworks.protein.tm import superpose

__all__ = ["SETTLED", "Scaffolded", "asked_twice", "hold", "noised", "onward", "posed"]

#: From this time on a motif stays where it is.
SETTLED = 0.8


def posed(motif: Tensor, onto: Tensor, known: Tensor) -> Tensor:
    """The motif (B, L, 3) moved rigidly to where it is nearest ``onto`` (B, L, 3) at the rows
    ``known`` (B, L) bool; other rows mean nothing. By proper rotations only."""
    there = torch.where(onto.isfinite(), onto, 0.0)  # failed samples must not stop the others
    points, target, weight = (z.double().cpu().numpy() for z in (motif, there, known))
    rotation, shift = superpose(points, target, weight)
    moved = points @ np.swapaxes(rotation, -1, -2) + shift[:, None]
    return torch.from_numpy(moved).to(motif)


class Scaffolded:
    """A model whose answers hold a motif, told by the condition: rows ``known`` (B, L) are to be
    ``motif`` (B, L, 3) up to a rigid motion."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.evaluations = getattr(model, "evaluations", 1)

    def __call__(
        self, x: State, t: Tensor, mask: Masks = None, cond: Any = None,
        previous: State | None = None,
    ) -> State:
        known, place = cond["known"], previous
        if place is None or float(t[0]) < SETTLED:
            bare = {name: v for name, v in cond.items() if name not in ("known", "motif")}
            place = self.model(x, t, mask=mask, cond=bare, previous=previous)
            assert isinstance(place, Tensor)
            place = posed(cond["motif"], place, known)
        told = {**cond, "motif": place}
        answer = self.model(x, t, mask=mask, cond=told, previous=previous)
        assert isinstance(answer, Tensor) and isinstance(place, Tensor)
        assert mask is None or isinstance(mask, Tensor)
        return Centred().project(torch.where(known.unsqueeze(-1), place, answer), mask)


def asked_twice(times: Sequence[float]) -> int:
    """How many rows of a run at ``times`` ask a `Scaffolded` model's network a second time."""
    return max(1, sum(t < SETTLED for t in times))


def hold(
    ca: NDArray[np.floating], positions: NDArray[np.int64], motif: NDArray[np.floating]
) -> NDArray[np.float64]:
    """A chain (L, 3) moved rigidly so that its residues ``positions`` are those of ``motif``.

    They take the motif's values (m, 3) exactly; a chain that is not finite stays as it is.
    """
    out = np.array(ca, np.float64)
    if not np.isfinite(out).all():
        return out
    target = np.asarray(motif, np.float64)
    rotation, shift = superpose(out[positions], target)
    out = out @ rotation.T + shift
    out[positions] = target
    return out


def noised(
    process: Process, x: Tensor, t: float, keys: Keys, mask: Tensor, gamma: float = 1.0
) -> Tensor:
    """t x + gamma (1 - t) e for chains x (B, L, 3) of the process, e from the keys."""
    part = process.parts["x"]
    assert isinstance(part.path, Path)
    e = part.space.noise(keys, "vary/x", 0, x, mask)
    return x * part.path.beta(t) + e * (gamma * part.path.sigma(t))


def onward(times: Sequence[float], t: float) -> tuple[float, ...]:
    """The times of a grid from t on, t itself first."""
    return (t, *(u for u in times if u > t))
