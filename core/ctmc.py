r"""Tokens in continuous time: the masked jump process, its exact discrete step, and no mask left.

Data tokens are hidden independently, x_t = x_1 with probability kappa(t), else the mask token. Run
towards data, a masked token is shown with its posterior p(x_1 | x_t) at rate kappa' / (1 - kappa).
Detailed-balance noise may be added: show faster and hide again, so that mistakes can be repaired
(Campbell et al. 2024, "Generative flows on discrete state-spaces"; the step of FlowMol). On the
clock k = kappa(t), one step k0 -> k1 of size dk hides and shows with probabilities

    hide = eta dk                   show = (dk / (1 - k0)) (1 + eta k0)

for which the share of masked tokens goes from 1 - k0 to exactly 1 - k1, whatever the step:

    (1 - k0)(1 - show) + k0 hide = 1 - k1.

Clipping ``show`` at 1 would break this, so eta is clipped instead, at the largest value that keeps
both probabilities at most 1:

    eta <= (1 - k1) / (k0 dk),      eta <= 1 / dk.

Near the end the first bound is the number of steps that remain: on a uniform grid the noise fades
linearly over the last eta steps, is 0 in the last one, and that one shows every token.

One uniform an entry is enough for the whole step. A masked token is the inverse of the cumulative
sum of (show p_1, ..., show p_K, 1 - show): its last cell, index K, is the mask token itself. A
shown token is hidden where the uniform lies below ``hide``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from driftworks.core.keys import Keys
from driftworks.core.spaces import PairTokens, Tokens
from driftworks.errors import UserError

__all__ = ["Masking", "fading", "masked_step"]


@dataclass(frozen=True)
class Masking:
    """The schedule of a token part: the share kappa(t) = warp(t) of tokens that is shown at t.

    ``warp`` takes a float or a tensor, rises from 0 at t = 0 to 1 at t = 1, and is t by default.
    """

    warp: Callable[[Any], Any] | None = None

    def kappa(self, t: Any) -> Any:
        """Share of shown tokens at ``t`` (float or tensor), same type and shape."""
        return t if self.warp is None else self.warp(t)

    def step(self, t0: float, t1: float, eta: float = 0.0) -> tuple[float, float]:
        """Probabilities (show, hide) of the step t0 -> t1 with noise ``eta`` >= 0 (see above)."""
        if not (eta >= 0.0 and t1 > t0):
            raise UserError(f"a token step needs eta >= 0 and t1 > t0, got {eta=}, {t0=}, {t1=}")
        k0, k1 = float(self.kappa(t0)), float(self.kappa(t1))
        if t1 >= 1.0 or k1 >= 1.0:
            return 1.0, 0.0
        dk = k1 - k0
        if dk <= 0.0:
            return 0.0, 0.0
        eta = min(eta, 1.0 / dk)
        if eta * k0 * dk >= 1.0 - k1:
            return 1.0, (1.0 - k1) / k0
        return dk / (1.0 - k0) * (1.0 + eta * k0), eta * dk


def fading(eta: float, over: float = 0.15) -> Callable[[float], float]:
    """A noise level that is ``eta`` and falls linearly to 0 over the last ``over`` of [0, 1]."""
    if not (eta >= 0.0 and 0.0 < over <= 1.0):
        raise UserError(f"fading needs eta >= 0 and 0 < over <= 1, got {eta=}, {over=}")
    return lambda t: eta * min(1.0, (1.0 - t) / over)


def masked_step(
    space: Tokens,
    x: Tensor,
    logits: Tensor,
    show: float,
    hide: float,
    keys: Keys,
    stream: str,
    step: int,
    mask: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """One step of the masked chain.

    Parameters: ``x`` int64 (B, ...), ``logits`` (B, ..., K) of p(x_1 | x_t), the probabilities of
    `Masking.step`, the address of the uniforms, the mask of the nodes that exist. ``show`` = 1
    leaves no mask token that was there before. Pairs are stepped once, for i > j, from the mean of
    the logits of (i, j) and (j, i), and mirrored. Entries outside the mask and the diagonal of
    pairs keep their value. Returns the new tokens, int64 (B, ...).
    """
    if not temperature > 0.0:
        raise UserError(f"temperature must be positive, got {temperature}")
    if logits.shape != (*x.shape, space.classes):
        raise ValueError(
            f"logits of tokens {tuple(x.shape)} with {space.classes} classes must have shape "
            f"{(*x.shape, space.classes)}, got {tuple(logits.shape)}"
        )
    entries = space.entry_mask(mask, x)
    if not isinstance(space, PairTokens):
        u = keys.uniform(stream, step, tuple(x.shape[1:]))
        new = _draw(x, logits, show, hide, u, temperature)
        return new if entries is None else torch.where(entries, new, x)
    # Pair (i, j), i > j, has number i (i - 1) / 2 + j: it does not depend on the padding.
    n = x.shape[1]
    i, j = torch.tril_indices(n, n, -1, device=x.device)
    upper, lower = j * n + i, i * n + j
    flat, flat_logits = x.flatten(1), logits.flatten(1, 2)
    mean = (flat_logits.index_select(1, lower) + flat_logits.index_select(1, upper)).mul_(0.5)
    u = keys.uniform(stream, step, (len(lower),))
    new = _draw(flat.index_select(1, lower), mean, show, hide, u, temperature)
    out = flat.index_copy(1, lower, new).index_copy_(1, upper, new).view_as(x)
    return torch.where(entries, out, x)  # type: ignore[arg-type]


def _draw(
    x: Tensor, logits: Tensor, show: float, hide: float, u: Tensor, temperature: float
) -> Tensor:
    """The step on independent entries: x (B, ...), logits (B, ..., K), uniforms (B, ...)."""
    classes = logits.shape[-1]
    # Classes first: reductions over a short last axis are several times slower.
    logits = logits.movedim(-1, 0).float().contiguous()
    if temperature != 1.0:
        logits = logits / temperature
    cumulative = logits.softmax(0).cumsum_(0).mul_(show)
    value = (cumulative <= u).sum(0)
    if show >= 1.0:
        # The sum of the probabilities may fall short of 1 by a rounding error.
        value.clamp_(max=classes - 1)
    hidden = x == classes
    if hide > 0.0:
        return torch.where(hidden, value, x.masked_fill(u < hide, classes))
    return torch.where(hidden, value, x)
