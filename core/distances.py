r"""Distances between two samples of states, with what they are worth.

A sample is a tensor (n, ...), or a pair of it with its mask (n, N). States with masks compare entry
by entry; two whose masks differ are infinitely far apart (molecules of different size have no
common coordinates), unless the caller turns states into descriptors first.

    W2          the optimal transport cost, exact by assignment for equal numbers of at most
                `EXACT` states: W2^2 = min over permutations of mean |x_i - y_pi(i)|^2
    sliced W2   for more: W2^2 >= sum over an orthonormal basis of W2^2 of the coordinates, averaged
                over random bases; exact for translates
    MMD         mean of k(x, x') + k(y, y') - 2 k(x, y) over distinct pairs, unbiased (Gretton et
                al. 2012, eq. 3), with a permutation p-value that is exact at any sample size

The MMD's kernel is a mean of three Gaussians, exp(-d^2 / 2 h^2) at half, once and twice the median
distance, times 1 or 0 for equal or different masks: a product and a sum of positive kernels.

W2 between finite samples of one law is not 0 but falls like n^(-1/d) or n^(-1/2): compare it with
the distance of two samples of one law (`diagnose.ode_sde_gap` does), and only at equal n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from driftworks.core.keys import Keys
from driftworks.errors import UserError

__all__ = ["EXACT", "MMD", "W2", "Sample", "mmd", "pairwise", "sorted_w2", "w2_samples"]

Sample = Tensor | tuple[Tensor, Tensor]

EXACT = 2000  # states up to which W2 is found by assignment (seconds)
_BLOCK = 1 << 22  # numbers of a block of distances


def _open(sample: Sample, name: str) -> tuple[Tensor, Tensor | None]:
    """The states flattened, (n, D) float64, masked entries 0, and the mask."""
    x, mask = sample if isinstance(sample, tuple) else (sample, None)
    if x.ndim < 1 or len(x) < 1 or not x.is_floating_point():
        raise UserError(f"{name} must hold real states (n, ...), got {x.dtype} {tuple(x.shape)}")
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != x.shape[: mask.ndim] or mask.ndim < 2:
            raise UserError(
                f"the mask of {name} must be bool over the leading axes of {tuple(x.shape)}, got "
                f"{mask.dtype} {tuple(mask.shape)}"
            )
        x = x.masked_fill(~mask.view(*mask.shape, *[1] * (x.ndim - mask.ndim)), 0)
        mask = mask.flatten(1)
    flat = x.detach().reshape(len(x), -1).double()
    if not bool(flat.isfinite().all()):
        raise UserError(f"{name} holds states that are not finite; leave failed samples out")
    return flat, mask


def _pair(
    x: Sample, y: Sample, names: tuple[str, str]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Both samples flattened, and a number for each state's mask where there are masks."""
    (a, mask_a), (b, mask_b) = _open(x, names[0]), _open(y, names[1])
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"states of {names[0]} hold {a.shape[1]} numbers and those of {names[1]} {b.shape[1]}; "
            "pad them alike"
        )
    if (mask_a is None) != (mask_b is None):
        raise UserError(f"give {names[0]} and {names[1]} both with masks or both without")
    if mask_a is None or mask_b is None:
        return a, b, None, None
    kinds = torch.unique(torch.cat((mask_a, mask_b)), dim=0, return_inverse=True)[1]
    return a, b, kinds[: len(a)], kinds[len(a) :]


def _gaps(a: Tensor, b: Tensor, kind_a: Tensor | None, kind_b: Tensor | None) -> Tensor:
    # differences and not products: the distance of a copy is 0 and not the root of a rounding
    gap = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    if kind_a is not None and kind_b is not None:
        gap = gap.masked_fill(kind_a[:, None] != kind_b, math.inf)
    return gap


def pairwise(x: Sample, y: Sample) -> Tensor:
    """Euclidean distances (n, m), float64, infinite between states whose masks differ."""
    return _gaps(*_pair(x, y, ("x", "y")))


def least(x: Sample, y: Sample, count: int, names: tuple[str, str]) -> Tensor:
    """The ``count`` smallest distances from each state of x to states of y, rising, (n, count)."""
    a, b, kind_a, kind_b = _pair(x, y, names)
    if count > len(b):
        raise UserError(f"{count} nearest states asked for, but {names[1]} holds {len(b)}")
    rows = max(1, _BLOCK // len(b))
    return torch.cat(
        [
            _gaps(a[i : i + rows], b, None if kind_a is None else kind_a[i : i + rows], kind_b)
            .topk(count, largest=False, sorted=True)
            .values
            for i in range(0, len(a), rows)
        ]
    )


@dataclass(frozen=True)
class W2:
    """A Wasserstein-2 distance and how it was found: ``exact`` or ``sliced``, from n and m states.
    """

    value: float
    method: str
    n: int
    m: int

    def __str__(self) -> str:
        return f"W2 = {self.value:.4g} ({self.method}, {self.n} and {self.m} states)"


def w2_samples(x: Sample, y: Sample, keys: Keys | None = None, bases: int = 16) -> W2:
    """Wasserstein-2 distance of two samples, in the unit of the states.

    Exact for equal numbers of at most `EXACT` states; otherwise sliced along ``bases`` random
    orthonormal bases drawn from the first of ``keys``, which is then needed: a lower bound, equal
    for translates. Raises UserError when masks occur in different numbers on the two sides, so that
    no finite plan exists.
    """
    a, b, kind_a, kind_b = _pair(x, y, ("x", "y"))
    if kind_a is not None and kind_b is not None:
        most = int(torch.cat((kind_a, kind_b)).max()) + 1
        share_a, share_b = (
            torch.bincount(kind, minlength=most).double() / len(kind) for kind in (kind_a, kind_b)
        )
        if not torch.allclose(share_a, share_b):
            raise UserError(
                "the two samples hold different shares of sizes (masks), so their distance is "
                "infinite; compare descriptors, or samples of equal sizes"
            )
        total = sum(
            float(share) * _w2(a[kind_a == k], b[kind_b == k], keys, bases)[0]
            for k, share in enumerate(share_a)
            if share > 0
        )
        exact = len(a) == len(b) and int(torch.bincount(kind_a).max()) <= EXACT
        return W2(math.sqrt(total), "exact" if exact else "sliced", len(a), len(b))
    square, method = _w2(a, b, keys, bases)
    return W2(math.sqrt(square), method, len(a), len(b))


def _w2(a: Tensor, b: Tensor, keys: Keys | None, bases: int) -> tuple[float, str]:
    if len(a) == len(b) and len(a) <= EXACT:
        from scipy.optimize import linear_sum_assignment

        cost = _gaps(a, b, None, None).square_().cpu().numpy()
        rows, columns = linear_sum_assignment(cost)
        return float(cost[rows, columns].mean()), "exact"
    if keys is None or len(keys) < 1:
        raise UserError(
            f"samples of {len(a)} and {len(b)} states are compared along random directions "
            f"(exactly only for equal numbers up to {EXACT}): give keys"
        )
    size = a.shape[1]
    frames = keys[:1].normal("distances/bases", 0, (bases, size, size), torch.float64)[0]
    lines = torch.linalg.qr(frames.to(a.device))[0]
    squares = [sorted_w2((a @ frame).T, (b @ frame).T).sum() for frame in lines]
    return float(torch.stack(squares).mean()), "sliced"


@dataclass(frozen=True)
class MMD:
    """The unbiased squared MMD, its permutation p-value, and the kernel's bandwidth (median)."""

    value: float
    p_value: float
    bandwidth: float
    permutations: int

    def __str__(self) -> str:
        return (
            f"MMD^2 = {self.value:.4g}, p = {self.p_value:.3g} "
            f"({self.permutations} permutations, bandwidth {self.bandwidth:.3g})"
        )


def kernel(gaps: Tensor, bandwidth: float) -> Tensor:
    """The positive kernel of distances (n, m), 1 at distance 0 and 0 where they are infinite."""
    scaled = gaps.square() / (2.0 * bandwidth**2)
    return torch.stack([torch.exp(-scaled / scale**2) for scale in (0.5, 1.0, 2.0)]).mean(0)


def mmd(x: Sample, y: Sample, keys: Keys, bandwidth: float | None = None) -> MMD:
    """Unbiased squared maximum mean discrepancy of two samples, with a test of equal laws.

    Args:
        x, y: at least two states each.
        keys: one permutation a key, 200 or more for a p-value; the least p-value is 1 / (1 + len).
        bandwidth: of the kernel, the median distance of the pooled states by default.
    """
    a, b, kind_a, kind_b = _pair(x, y, ("x", "y"))
    n, m = len(a), len(b)
    if n < 2 or m < 2:
        raise UserError(f"MMD needs at least two states on each side, got {n} and {m}")
    both = torch.cat((a, b))
    kinds = None if kind_a is None or kind_b is None else torch.cat((kind_a, kind_b))
    gaps = _gaps(both, both, kinds, kinds)
    if bandwidth is None:
        apart = gaps[torch.triu(torch.ones_like(gaps, dtype=torch.bool), 1)]
        apart = apart[apart.isfinite() & (apart > 0.0)]
        bandwidth = float(apart.median()) if len(apart) else 1.0
    if not 0.0 < bandwidth < math.inf:
        raise UserError(f"the kernel's bandwidth must be positive, got {bandwidth}")
    k = kernel(gaps, bandwidth).fill_diagonal_(0.0)
    words = keys.uniform("distances/mmd", 0, (n + m,), torch.float64)
    member = torch.zeros(len(keys) + 1, n + m, dtype=torch.float64, device=k.device)
    member[0, :n] = 1.0
    chosen = words.argsort(-1)[:, :n].to(k.device)
    member[1:].scatter_(1, chosen, 1.0)
    other = 1.0 - member
    from_x, from_y = member @ k, other @ k
    within_x, within_y = (from_x * member).sum(1), (from_y * other).sum(1)
    across = (from_x * other).sum(1)
    values = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2.0 * across / (n * m)
    # rounding must not decide about permutations that leave the sets as they are
    above = int((values[1:] >= values[0] - 1e-12).sum())
    return MMD(float(values[0]), (1 + above) / (1 + len(keys)), bandwidth, len(keys))


def sorted_w2(
    x: Tensor, y: Tensor, x_there: Tensor | None = None, y_there: Tensor | None = None
) -> Tensor:
    """Exact W2^2 between numbers x (..., n) and y (..., m), each of equal weight, (...).

    ``x_there`` and ``y_there`` (bool) say which numbers count; without any on a side the distance
    is 0. Differentiable in x and y.
    """
    x, n = _sorted(x, x_there)
    y, m = _sorted(y, y_there)
    if x_there is None and y_there is None and x.shape[-1] == y.shape[-1]:
        return (x - y).square().mean(-1)
    # steps i/n and j/m of the two quantile functions, as integers of n m, so that equal ones meet
    i = torch.arange(1, x.shape[-1] + 1, device=x.device).expand(x.shape)
    j = torch.arange(1, y.shape[-1] + 1, device=x.device).expand(y.shape)
    whole = n * m
    steps = torch.cat((torch.minimum(i * m, whole), torch.minimum(j * n, whole)), -1)
    steps = steps.sort(-1).values
    left = torch.cat((torch.zeros_like(steps[..., :1]), steps[..., :-1]), -1)
    share = (steps - left).to(x.dtype) / whole.clamp(min=1)
    from_x = x.gather(-1, torch.minimum(left // m.clamp(min=1), (n - 1).clamp(min=0)))
    from_y = y.gather(-1, torch.minimum(left // n.clamp(min=1), (m - 1).clamp(min=0)))
    return (from_x - from_y).square().mul(share).sum(-1)


def _sorted(x: Tensor, there: Tensor | None) -> tuple[Tensor, Tensor]:
    """The numbers that are there in order and zeros behind them, and how many, (..., 1)."""
    if there is None:
        count = torch.full((*x.shape[:-1], 1), x.shape[-1], dtype=torch.int64, device=x.device)
        return x.sort(-1).values, count
    there = there.expand_as(x)
    order = x.detach().masked_fill(~there, math.inf).argsort(-1)
    return x.masked_fill(~there, 0).gather(-1, order), there.sum(-1, keepdim=True)
