r"""Context prediction: a point's feature should also know what stands around it.

From the feature of each point a small head predicts its neighbourhood, a set of Q vectors that is
compared with the set of its n neighbours' vectors (Yang et al. 2023, "Improving diffusion-based
image synthesis with context prediction"). The comparison is optimal transport, so no order of the
neighbours is assumed, and Q and n may differ; it is sliced, which needs no assignment problem:

    d^2(p, q) = C E_theta W2^2(theta . p, theta . q),      theta uniform on the sphere of R^C,

each one-dimensional W2^2 exact (`distances.sorted_w2`). d^2 is 0 only for equal laws and |shift|^2
for translates. Lines are drawn anew for each sample and step.

The feature comes from `features.listening`, and the head is dropped after training: sampling costs
what it did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from driftworks.core.distances import sorted_w2
from driftworks.core.keys import Keys
from driftworks.errors import UserError

__all__ = ["ContextHead", "Neighbours", "context_loss", "nearest", "neighbours_of"]


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of each point: ``index`` (B, N, k) int64, and which are there, (B, N, k)."""

    index: Tensor
    present: Tensor


def nearest(points: Tensor, k: int, mask: Tensor | None = None) -> Neighbours:
    """The k nearest other points of each of ``points`` (B, N, D); fewer where there are fewer.

    ``mask`` (B, N) marks the points that exist. Equal distances are taken in the order of points.
    """
    gap = (points.unsqueeze(2) - points.unsqueeze(1)).square().sum(-1)
    there = ~torch.eye(points.shape[1], dtype=torch.bool, device=points.device)
    if mask is not None:
        there = there & mask.unsqueeze(1) & mask.unsqueeze(2)
    return _first(gap.masked_fill(~there, math.inf), k, there.expand_as(gap))


def neighbours_of(adjacency: Tensor, mask: Tensor | None = None) -> Neighbours:
    """All neighbours in a given graph: ``adjacency`` (B, N, N) bool, ``mask`` (B, N)."""
    there = adjacency
    if mask is not None:
        there = there & mask.unsqueeze(1) & mask.unsqueeze(2)
    most = int(there.sum(-1).max()) if there.numel() else 0
    return _first((~there).to(torch.float32), max(1, most), there)


def _first(rank: Tensor, k: int, there: Tensor) -> Neighbours:
    if k < 1:
        raise UserError(f"the number of neighbours must be at least 1, got {k}")
    order = rank.sort(dim=-1, stable=True).indices[..., :k]
    return Neighbours(order, there.gather(-1, order))


class ContextHead(nn.Module):
    """From features (B, N, ``width``) to predicted neighbourhoods (B, N, ``slots``, ``channels``).

    One hidden layer; used in training only.
    """

    def __init__(self, width: int, slots: int, channels: int, hidden: int | None = None):
        super().__init__()
        if min(width, slots, channels) < 1:
            raise UserError(
                f"width, slots and channels must be at least 1, got {width}, {slots}, {channels}"
            )
        self.slots, self.channels = slots, channels
        self.network = nn.Sequential(
            nn.Linear(width, hidden or 2 * width),
            nn.SiLU(),
            nn.Linear(hidden or 2 * width, slots * channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.network(features)
        return out.unflatten(-1, (self.slots, self.channels))


def context_loss(
    predicted: Tensor,
    values: Tensor,
    neighbours: Neighbours,
    keys: Keys,
    step: int = 0,
    directions: int = 16,
) -> Tensor:
    """The squared distance of predicted and actual neighbourhoods, mean over points, a scalar.

    Args:
        predicted: (B, N, Q, C), of a `ContextHead`.
        values: what a neighbour is: of the points themselves, (B, N, C), such as types as one-hot
            vectors; or of the pairs, (B, N, N, C), entry (i, j) being j as seen from i, such as
            distances. Data or features; no gradient is taken through them.
        neighbours: `nearest` or `neighbours_of`. Points without neighbours do not count.
        keys, step: the samples' keys (B,), for the random directions of this step.
        directions: lines the sets are projected on; the mean over steps is exact for any number.
    """
    channels = predicted.shape[-1]
    if values.shape[-1] != channels or values.ndim not in (3, 4):
        raise UserError(
            f"values must be (B, N, {channels}) or (B, N, N, {channels}) for predictions "
            f"{tuple(predicted.shape)}, got {tuple(values.shape)}"
        )
    index, present = neighbours.index, neighbours.present
    if values.ndim == 3:
        values = values.unsqueeze(1).expand(-1, values.shape[1], -1, -1)
    around = values.detach().gather(2, index.unsqueeze(-1).expand(*index.shape, channels))
    lines = keys.normal("context", step, (directions, channels), predicted.dtype)
    lines = nn.functional.normalize(lines, dim=-1).transpose(1, 2).unsqueeze(1)
    error = sorted_w2(
        (predicted @ lines).transpose(2, 3),
        (around.to(predicted.dtype) @ lines).transpose(2, 3),
        None,
        present.unsqueeze(2),
    )
    counts = present.any(-1)
    error = error.mean(-1).masked_fill(~counts, 0) * channels
    return error.sum() / counts.sum().clamp(min=1)
