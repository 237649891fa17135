r"""Which noisy graphs to learn from: those in rare numbers of pieces, more often than they come.

A model asked for an answer at x_t learns E[. | x_t], whatever the law the states x_t are drawn
from: pairs of data and noise drawn from p(x_1, x_t) h(x_t, t) have the same p(x_1 | x_t) for any
h > 0. So h may follow the states that a sampler meets rather than those that noise makes. They part
where data are always in one piece: of two communities with few links between them the noisy graph
at a late time has all but never come apart, while a sampler that missed the links has nothing but
such graphs to work with, and must know that a link is still to come.

Here h = (share of graphs at that time with that many pieces)^(-1/2): a state one in a hundred is
seen once in ten. Each of B graphs of a batch is chosen among ``POOL`` candidates of its own narrow
interval of time; shares are counted among those of eight neighbouring intervals.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["POOL", "choose", "pieces"]

#: Candidates for a place in the batch.
POOL = 32

_TOGETHER = 8  # intervals of time whose candidates are counted together


def pieces(edges: Tensor, mask: Tensor) -> Tensor:
    """(B,) numbers of connected components of graphs ``edges`` (B, n, n), classes, on ``mask``."""
    n = edges.shape[-1]
    joined = ((edges > 0) | torch.eye(n, dtype=torch.bool, device=edges.device)).float()
    joined = joined * (mask.unsqueeze(1) & mask.unsqueeze(2))
    length = 1
    while length < n - 1:  # paths of up to `length` edges; doubled until no path is longer
        joined, length = (joined @ joined).clamp(max=1.0), 2 * length
    of_node = joined.sum(-1)  # the size of the piece a node is in
    return torch.where(mask, 1.0 / of_node.clamp(min=1.0), 0.0).sum(-1).round().long()


def choose(edges: Tensor, mask: Tensor, uniform: Tensor) -> Tensor:
    """(B,) rows to keep of B * `POOL` candidates in order of time, one of every `POOL`.

    ``edges`` (B * POOL, n, n) classes of noisy edges; ``uniform`` (B * POOL,) in [0, 1).
    """
    count = pieces(edges, mask)
    each = POOL * _TOGETHER
    window = torch.arange(len(count), device=count.device) // each
    # a batch that does not divide: the last few are counted with the window before
    window = window.clamp(max=max(0, len(count) // each - 1))
    kind = window * (edges.shape[-1] + 1) + count
    seen = torch.bincount(kind)[kind].double()
    # the largest of log h + Gumbel noise is row i with probability h_i / sum h
    noise = -torch.log(-torch.log(uniform.double().clamp(1e-12, 1.0 - 1e-12)))
    best = (noise - 0.5 * seen.log()).view(-1, POOL).argmax(1)
    return best + torch.arange(len(best), device=best.device) * POOL
