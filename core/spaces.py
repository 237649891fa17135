r"""Spaces: where the entries of a state live, what noise means there, and how many are free.

| space | state | constraint | degrees of freedom |
|---|---|---|---|
| Flat | (B, ...) float | none | number of unmasked entries |
| Centred | (B, N, D) float | sum over N is zero | D (N - 1) |
| Symmetric | (B, N, N[, C]) float | x_ij = x_ji, x_ii = 0 | C N (N - 1) / 2 |
| Tokens | (B, N) int64 | classes 0..K-1, K is the mask token | - |
| PairTokens | (B, N, N) int64 | symmetric, diagonal 0 | - |

A space projects onto its constraint, draws keyed noise inside it, and says which entries a mask
keeps. A mask is bool: (B, N) marks the nodes that exist, and every space derives its own entry mask
from it; a mask with more axes is taken as the entry mask of its leading axes. Masked entries are
zero in every state, so they cannot leak: a projection overwrites them, whatever they held.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from driftworks.core.keys import Keys

__all__ = ["Centred", "Flat", "PairTokens", "Space", "Symmetric", "Tokens"]


def _trailing(mask: Tensor, ndim: int) -> Tensor:
    """Unsqueeze a mask of leading axes on the right until it has ``ndim`` axes."""
    if mask.ndim > ndim:
        raise ValueError(f"mask has {mask.ndim} axes, the state only {ndim}")
    return mask.view(*mask.shape, *(1,) * (ndim - mask.ndim))


@dataclass(frozen=True)
class Space:
    """Base of all spaces; itself flat and real."""

    discrete = False

    def entry_mask(self, mask: Tensor | None, x: Tensor) -> Tensor | None:
        """The entries of ``x`` (B, ...) that exist, bool, broadcastable to ``x``; None for all."""
        return None if mask is None else _trailing(mask, x.ndim)

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The nearest state inside the space, masked entries zero. Shape kept."""
        entries = self.entry_mask(mask, x)
        return x if entries is None else x.masked_fill(~entries, 0)

    def noise(
        self, keys: Keys, stream: str, step: int, like: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """A standard normal of the space, shaped as ``like`` (B, ...); keyed by sample."""
        return self.project(keys.normal(stream, step, tuple(like.shape[1:]), like.dtype), mask)

    def free_noise(
        self, keys: Keys, stream: str, step: int, like: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The normal behind ``noise``, before a constraint couples different entries."""
        return self.noise(keys, stream, step, like, mask)

    def dof(self, mask: Tensor | None, x: Tensor) -> Tensor:
        """Degrees of freedom of each sample, float64 (B,)."""
        entries = self.entry_mask(mask, x)
        ones = torch.ones(x.shape, dtype=torch.float64, device=x.device)
        return (ones if entries is None else ones * entries).flatten(1).sum(1)


@dataclass(frozen=True)
class Flat(Space):
    """Unconstrained entries, shape (B, ...)."""


@dataclass(frozen=True)
class Centred(Space):
    """Point clouds (B, N, D) with the centre of the unmasked points at the origin."""

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return x - x.mean(1, keepdim=True)
        entries = _trailing(mask, x.ndim)
        x = x.masked_fill(~entries, 0)
        count = entries.to(x.dtype).sum(1, keepdim=True).clamp(min=1)
        return (x - x.sum(1, keepdim=True) / count) * entries

    def free_noise(
        self, keys: Keys, stream: str, step: int, like: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        eps = keys.normal(stream, step, tuple(like.shape[1:]), like.dtype)
        return Space.project(self, eps, mask)

    def dof(self, mask: Tensor | None, x: Tensor) -> Tensor:
        entries = _trailing(mask, x.ndim) if mask is not None else x.new_ones((), dtype=torch.bool)
        points = entries.expand_as(x).to(torch.float64).sum(1)
        return (points - 1).clamp(min=0).flatten(1).sum(1)


def _pair_mask(mask: Tensor | None, x: Tensor) -> Tensor:
    """Entries (i, j), i != j, of nodes that exist: bool (B or 1, N, N, 1...)."""
    n = x.shape[1]
    pairs = ~torch.eye(n, dtype=torch.bool, device=x.device).unsqueeze(0)
    if mask is not None:
        both = mask if mask.ndim > 2 else mask.unsqueeze(1) & mask.unsqueeze(2)
        pairs = _trailing(pairs, both.ndim) & both
    return _trailing(pairs, x.ndim)


def _mirror_upper(x: Tensor) -> Tensor:
    """Copy the strict upper triangle of axes (1, 2) onto the lower one; zero diagonal."""
    n = x.shape[1]
    upper = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
    upper = _trailing(upper.unsqueeze(0), x.ndim)
    x = torch.where(upper, x, torch.zeros((), dtype=x.dtype, device=x.device))
    return x + x.transpose(1, 2)


@dataclass(frozen=True)
class Symmetric(Space):
    """Undirected pair values (B, N, N) or (B, N, N, C) with zero diagonal.

    The coordinates are the N (N - 1) / 2 pairs, each counted once: noise has unit variance per
    pair, not per matrix entry.
    """

    def entry_mask(self, mask: Tensor | None, x: Tensor) -> Tensor:
        return _pair_mask(mask, x)

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return ((x + x.transpose(1, 2)) * 0.5).masked_fill(~_pair_mask(mask, x), 0)

    def noise(
        self, keys: Keys, stream: str, step: int, like: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        eps = keys.normal(stream, step, tuple(like.shape[1:]), like.dtype)
        return _mirror_upper(eps) * _pair_mask(mask, like)

    def dof(self, mask: Tensor | None, x: Tensor) -> Tensor:
        return super().dof(mask, x) * 0.5


@dataclass(frozen=True)
class Tokens(Space):
    """Categorical entries (B, ...) with classes 0..K-1; the integer K is the mask token."""

    classes: int
    discrete = True

    def uniform(self, keys: Keys, stream: str, step: int, like: Tensor) -> Tensor:
        """Keyed uniforms in (0, 1) for the entries of ``like`` (B, ...), float32."""
        return keys.uniform(stream, step, tuple(like.shape[1:]))

    def noise(
        self, keys: Keys, stream: str, step: int, like: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The noise state of a masked chain: every entry that exists is the mask token."""
        return self.project(torch.full_like(like, self.classes), mask)


@dataclass(frozen=True)
class PairTokens(Tokens):
    """Categorical undirected pairs (B, N, N): symmetric, diagonal 0, class 0 meaning "none"."""

    def entry_mask(self, mask: Tensor | None, x: Tensor) -> Tensor:
        return _pair_mask(mask, x)

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The pairs i < j mirrored, everything else 0."""
        return super().project(_mirror_upper(x), mask)

    def uniform(self, keys: Keys, stream: str, step: int, like: Tensor) -> Tensor:
        """One uniform a pair, symmetric; the diagonal holds 0."""
        return _mirror_upper(super().uniform(keys, stream, step, like))
