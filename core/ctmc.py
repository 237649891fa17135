r"""Tokens in continuous time: jump processes from noise to data, with their exact discrete step.

Data tokens are given up independently, x_t = x_1 with probability kappa(t), else noise: the mask
token (`Masking`) or a class drawn from a fixed distribution m (`Replacing`). Run towards data, an
entry is replaced by a draw from its posterior p(x_1 | x_t) at rate kappa' / (1 - kappa). Noise in
detailed balance may be added: replace faster and return to noise again, so that mistakes can be
repaired (Campbell et al. 2024, "Generative flows on discrete state-spaces"; Gat et al. 2024,
"Discrete flow matching"). On the clock k = kappa(t), one step k0 -> k1 of size dk does so with

    hide = eta dk                   show = (dk + k0 hide) / (1 - k0)

for which the share of given-up tokens goes from 1 - k0 to exactly 1 - k1, whatever the step.
Clipping ``show`` at 1 would break this, so ``hide`` is clipped instead, at the largest value for
which show <= 1 (`Masking`, where the two concern different entries) or show + hide <= 1
(`Replacing`). Near the end that bound is the number of steps that remain: on a uniform grid the
noise fades over the last eta steps, is 0 in the last one, and that one shows every token.

One uniform an entry is enough for the whole step: the next class is the inverse of a cumulative
sum. `Masking` shows where the token is hidden, (show p_1, ..., show p_K, 1 - show), its last cell
being the mask token itself, and hides where it is not. `Replacing` cannot tell noise from data;
every entry moves by

    q = (1 - show - hide) [x] + show p(x_1 | x) + hide p(x_0 | x),
    p(x_0 | x) = [x] + p(x_1 = x | x) (1 - r) (m - [x]),      r = (1 - k) m_x / (k + (1 - k) m_x),

[x] being certainty of the present class and r the chance that a token which agrees with its data
is noise all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from driftworks.core.keys import Keys
from driftworks.core.predict import per_sample
from driftworks.core.spaces import PairTokens, Space, Tokens
from driftworks.errors import UserError

__all__ = ["Masking", "Replacing", "TokenRoute", "fading", "masked_step", "replacing_step"]


class TokenRoute:
    """What the two token processes share; a `process.Route`."""

    warp: Callable[[Any], Any] | None

    def kappa(self, t: Any) -> Any:
        """Share of data tokens at ``t`` (float or tensor), same type and shape."""
        return t if self.warp is None else self.warp(t)

    def accepts(self, space: Space, predicts: str) -> str:
        if not isinstance(space, Tokens):
            raise UserError(
                f"{type(space).__name__} cannot follow {type(self).__name__}: it is for Tokens and "
                "PairTokens; real spaces need a Path"
            )
        return "logits"

    def prior(
        self, space: Tokens, keys: Keys, stream: str, like: Tensor, mask: Tensor | None = None,
        step: int = 0,
    ) -> Tensor:
        """The tokens at t = 0, int64, shaped as ``like``."""
        raise NotImplementedError

    def hides(self, hide: Tensor, entries: Tensor | None) -> Tensor:
        """The entries a network is to find, of those given up and those that exist."""
        raise NotImplementedError

    def step(self, t0: float, t1: float, eta: float = 0.0) -> tuple[float, float]:
        """Probabilities (show, hide) of the step t0 -> t1 with noise ``eta`` >= 0."""
        raise NotImplementedError

    def move(
        self, space: Tokens, x: Tensor, logits: Tensor, t: float, show: float, hide: float,
        keys: Keys, stream: str, step: int, mask: Tensor | None, temperature: float,
    ) -> Tensor:
        """The tokens after a step from time ``t``."""
        raise NotImplementedError

    def bridge(
        self, space: Tokens, x_1: Tensor, t: Tensor, keys: Keys, stream: str, step: int,
        mask: Tensor | None, x_0: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw x_t; returns it, the noise, and the entries (bool) the network is to find."""
        u = space.uniform(keys, stream, step, x_1)
        hide = u >= per_sample(self.kappa(t), u)
        entries = space.entry_mask(mask, x_1)
        hide = hide if entries is None else hide & entries
        if x_0 is None:
            x_0 = self.prior(space, keys, stream, x_1, mask, step)
        return torch.where(hide, x_0, x_1), x_0, self.hides(hide, entries)

    def _clock(self, t0: float, t1: float, eta: float) -> tuple[float, float]:
        if not (eta >= 0.0 and t1 > t0):
            raise UserError(f"a token step needs eta >= 0 and t1 > t0, got {eta=}, {t0=}, {t1=}")
        return float(self.kappa(t0)), float(self.kappa(t1))


@dataclass(frozen=True)
class Masking(TokenRoute):
    """Noise is the mask token: the share kappa(t) = warp(t) of tokens is shown at t.

    ``warp`` takes a float or a tensor, rises from 0 at t = 0 to 1 at t = 1, and is t by default.
    """

    warp: Callable[[Any], Any] | None = None

    def prior(
        self, space: Tokens, keys: Keys, stream: str, like: Tensor, mask: Tensor | None = None,
        step: int = 0,
    ) -> Tensor:
        return space.noise(keys, stream, step, like, mask)

    def hides(self, hide: Tensor, entries: Tensor | None) -> Tensor:
        return hide

    def step(self, t0: float, t1: float, eta: float = 0.0) -> tuple[float, float]:
        """Probabilities (show, hide) of the step t0 -> t1 with noise ``eta`` >= 0 (see above)."""
        k0, k1 = self._clock(t0, t1, eta)
        if t1 >= 1.0 or k1 >= 1.0:
            return 1.0, 0.0
        dk = k1 - k0
        if dk <= 0.0:
            return 0.0, 0.0
        eta = min(eta, 1.0 / dk)
        if eta * k0 * dk >= 1.0 - k1:
            return 1.0, (1.0 - k1) / k0
        return dk / (1.0 - k0) * (1.0 + eta * k0), eta * dk

    def move(
        self, space: Tokens, x: Tensor, logits: Tensor, t: float, show: float, hide: float,
        keys: Keys, stream: str, step: int, mask: Tensor | None, temperature: float,
    ) -> Tensor:
        return masked_step(space, x, logits, show, hide, keys, stream, step, mask, temperature)


@dataclass(frozen=True)
class Replacing(TokenRoute):
    """Noise is a class drawn from ``marginal``, the K probabilities of the classes.

    With the marginal of the data the noise already looks like data to first order: sparse graphs
    start sparse (Vignac et al. 2023, "DiGress"). ``warp`` as for `Masking`. Raises `UserError` for
    numbers that are no distribution.
    """

    marginal: tuple[float, ...]
    warp: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        total = math.fsum(self.marginal)
        if not (all(p >= 0.0 for p in self.marginal) and abs(total - 1.0) < 1e-6):
            raise UserError(f"marginal must be probabilities that sum to 1, got {self.marginal}")

    def accepts(self, space: Space, predicts: str) -> str:
        name = super().accepts(space, predicts)
        assert isinstance(space, Tokens)
        if space.classes != len(self.marginal):
            raise UserError(
                f"marginal has {len(self.marginal)} probabilities for {space.classes} classes"
            )
        return name

    def prior(
        self, space: Tokens, keys: Keys, stream: str, like: Tensor, mask: Tensor | None = None,
        step: int = 0,
    ) -> Tensor:
        u = space.uniform(keys, f"{stream}/class", step, like)
        edges = torch.tensor(self.marginal, dtype=torch.float64).cumsum(0)[:-1]
        return space.project(torch.bucketize(u, edges.to(u), right=True), mask)

    def hides(self, hide: Tensor, entries: Tensor | None) -> Tensor:
        return torch.ones_like(hide) if entries is None else entries.expand_as(hide)

    def step(self, t0: float, t1: float, eta: float = 0.0) -> tuple[float, float]:
        """Probabilities (show, hide) of the step t0 -> t1 with noise ``eta`` >= 0 (see above)."""
        k0, k1 = self._clock(t0, t1, eta)
        if t1 >= 1.0 or k1 >= 1.0:
            return 1.0, 0.0
        dk = k1 - k0
        if dk <= 0.0:
            return 0.0, 0.0
        hide = min(eta * dk, 1.0 - k1)
        return (dk + k0 * hide) / (1.0 - k0), hide

    def move(
        self, space: Tokens, x: Tensor, logits: Tensor, t: float, show: float, hide: float,
        keys: Keys, stream: str, step: int, mask: Tensor | None, temperature: float,
    ) -> Tensor:
        return replacing_step(
            space, x, logits, float(self.kappa(t)), self.marginal, show, hide,
            keys, stream, step, mask, temperature,
        )


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
    def draw(x: Tensor, probabilities: Tensor, u: Tensor) -> Tensor:
        return _draw_masked(x, probabilities, show, hide, u)

    return _each(space, x, logits, draw, keys, stream, step, mask, temperature)


def replacing_step(
    space: Tokens,
    x: Tensor,
    logits: Tensor,
    kappa: float,
    marginal: tuple[float, ...],
    show: float,
    hide: float,
    keys: Keys,
    stream: str,
    step: int,
    mask: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """One step of the chain whose noise is a random class, from the share ``kappa`` of data on.

    Parameters otherwise as for `masked_step`; show + hide <= 1. Returns int64 (B, ...).
    """

    def draw(x: Tensor, probabilities: Tensor, u: Tensor) -> Tensor:
        return _draw_replacing(x, probabilities, kappa, marginal, show, hide, u)

    return _each(space, x, logits, draw, keys, stream, step, mask, temperature)


def _each(
    space: Tokens, x: Tensor, logits: Tensor, draw: Callable[[Tensor, Tensor, Tensor], Tensor],
    keys: Keys, stream: str, step: int, mask: Tensor | None, temperature: float,
) -> Tensor:
    """``draw`` for every entry that exists, pairs once; see `masked_step`."""
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
        new = draw(x, _probabilities(logits, temperature), u)
        return new if entries is None else torch.where(entries, new, x)
    # Pair (i, j), i > j, has number i (i - 1) / 2 + j: it does not depend on the padding.
    n = x.shape[1]
    i, j = torch.tril_indices(n, n, -1, device=x.device)
    upper, lower = j * n + i, i * n + j
    flat, flat_logits = x.flatten(1), logits.flatten(1, 2)
    mean = (flat_logits.index_select(1, lower) + flat_logits.index_select(1, upper)).mul_(0.5)
    u = keys.uniform(stream, step, (len(lower),))
    new = draw(flat.index_select(1, lower), _probabilities(mean, temperature), u)
    out = flat.index_copy(1, lower, new).index_copy_(1, upper, new).view_as(x)
    return torch.where(entries, out, x)  # type: ignore[arg-type]


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Class probabilities (K, B, ...): reductions over a short last axis are several times slower.
    """
    logits = logits.movedim(-1, 0).float().contiguous()
    return (logits if temperature == 1.0 else logits / temperature).softmax(0)


def _draw_masked(x: Tensor, p: Tensor, show: float, hide: float, u: Tensor) -> Tensor:
    """The step on independent entries: x (B, ...), p (K, B, ...), uniforms (B, ...)."""
    classes = len(p)
    value = (p.cumsum_(0).mul_(show) <= u).sum(0)
    if show >= 1.0:
        # The sum of the probabilities may fall short of 1 by a rounding error.
        value.clamp_(max=classes - 1)
    hidden = x == classes
    if hide > 0.0:
        return torch.where(hidden, value, x.masked_fill(u < hide, classes))
    return torch.where(hidden, value, x)


def _draw_replacing(
    x: Tensor, p: Tensor, kappa: float, marginal: tuple[float, ...], show: float, hide: float,
    u: Tensor,
) -> Tensor:
    """The step on independent entries: x (B, ...), p (K, B, ...), uniforms (B, ...)."""
    q = p * show
    leave = 1.0 - show - hide
    if hide > 0.0:
        m = torch.tensor(marginal, dtype=p.dtype, device=p.device)
        agrees = m.new_tensor(kappa) / (kappa + (1.0 - kappa) * m).clamp(min=1e-30)  # 1 - r
        noisy = hide * p.gather(0, x.unsqueeze(0)) * agrees[x]
        q = q + noisy * m.view(-1, *(1,) * x.ndim)
        stay = leave + hide - noisy
    else:
        stay = torch.full_like(p[:1], leave)
    q.scatter_add_(0, x.unsqueeze(0), stay)
    return (q.cumsum_(0) <= u).sum(0).clamp_(max=len(p) - 1)
