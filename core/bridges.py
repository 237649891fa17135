r"""Two-sided stochastic interpolants: from a source law to a target law, with a latent noise.

For a pair (x0, x1), drawn from any coupling of source and target, and z ~ N(0, I) of the space,

    x_t = I_t + gamma z,    I_t = alpha x0 + beta x1,    alpha(0) = beta(1) = 1,

all other ends being 0. The laws rho_t of x_t join the two (Albergo, Boffi & Vanden-Eijnden 2023,
"Stochastic interpolants"), and are carried by fields that are regressions on x_t:

    tangent   v = E[I'_t | x_t]
    noise     e = E[z | x_t]              score s = -e / gamma
    velocity  b = v + gamma' e            d rho/dt + div(rho b) = 0

For any eps_t >= 0 the law moves from 0 to 1, or backwards in r = 1 - t, by

    dx = (b + eps s) dt + sqrt(2 eps) dW,        dx = (-b + eps s) dr + sqrt(2 eps) dW.

==================  ====================  ====================
curve               alpha                 beta
==================  ====================  ====================
linear              1 - t                 t
trigonometric       cos(pi t / 2)         sin(pi t / 2)
encoding-decoding   cos^2(pi t), t < 1/2  cos^2(pi t), t > 1/2
==================  ====================  ====================

with gamma = a sqrt(t (1 - t)) ("root"), a sin^2(pi t) ("sine") or 0 ("none"). Linear with root is
the Brownian bridge: at eps = a^2 / 2 its SDE is the Schroedinger bridge if the pairs come from the
entropic coupling (`bridge_laws.schrodinger_covariance`). Pairs x0 = x1 give the mirror interpolant.

Ends. gamma' of "root" is infinite at both ends, gamma gamma' is not. Its velocity has a target of
infinite variance there, its tangent and noise do not: learn those two, `transport` joins them.

What is not recovered. A transport has the right law at every time, but not the coupling: from a
given x0, it does not end at its partners x1. For that the network must be given x0, as ``cond``, in
training and sampling; every source point then has its own law of targets, which only an SDE
(noise > 0) can spread out from a point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from driftworks.core.formula import formula, positive
from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.predict import per_sample
from driftworks.core.process import Part
from driftworks.core.spaces import Centred, Flat, Space
from driftworks.core.train import Loss
from driftworks.errors import UserError

__all__ = ["COUPLINGS", "HEADS", "Answer", "Draw", "TwoSided", "bridge_loss", "couple"]

HEADS = ("velocity", "tangent", "noise")
COUPLINGS = ("given", "independent", "optimal")
CURVES = ("linear", "trigonometric", "encoding-decoding")
LATENTS = ("root", "sine", "none")

Answer = Tensor | Mapping[str, Tensor]


def choice(what: str, value: str, choices: Sequence[str]) -> None:
    """UserError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f"unknown {what} {value!r}; choose one of {', '.join(choices)}")


def _sine(t: Any, m: Any) -> Any:
    """sin(pi t), exactly 0 at both ends."""
    return 2.0 * m.sin(0.5 * math.pi * t) * m.sin(0.5 * math.pi * (1.0 - t))


@dataclass(frozen=True)
class TwoSided:
    """x_t = alpha x0 + beta x1 + gamma z; build one with ``TwoSided.linear()`` and so on.

    ``noise`` is the factor a of gamma. alpha, beta, gamma, their derivatives and gamma_dgamma =
    gamma gamma' are formulas of time, for floats and tensors (`core.formula`).
    """

    curve: str
    latent: str
    noise: float

    def __post_init__(self) -> None:
        choice("curve", self.curve, CURVES)
        choice("latent", self.latent, LATENTS)
        if self.latent == "none":
            object.__setattr__(self, "noise", 0.0)
            if self.curve == "encoding-decoding":
                raise UserError("encoding-decoding passes through pure noise: it needs a latent")
        else:
            positive("two-sided interpolant", noise=self.noise)

    @staticmethod
    def linear(noise: float = 1.0, latent: str = "root") -> TwoSided:
        """I = (1 - t) x0 + t x1."""
        return TwoSided("linear", latent, noise)

    @staticmethod
    def trigonometric(noise: float = 1.0, latent: str = "root") -> TwoSided:
        """I = cos(pi t / 2) x0 + sin(pi t / 2) x1: keeps the variance of independent pairs."""
        return TwoSided("trigonometric", latent, noise)

    @staticmethod
    def encoding_decoding(noise: float = 1.0) -> TwoSided:
        """From x0 to pure noise at t = 1/2, and on to x1; the latent is a sine."""
        return TwoSided("encoding-decoding", "sine", noise)

    @staticmethod
    def brownian(noise: float) -> TwoSided:
        """The Brownian bridge of diffusion noise^2: gamma^2 = noise^2 t (1 - t) on lines."""
        return TwoSided("linear", "root", noise)

    @formula
    def alpha(self, t: Any, m: Any) -> Any:
        if self.curve == "linear":
            return 1.0 - t
        if self.curve == "trigonometric":
            return m.sin(0.5 * math.pi * (1.0 - t))
        return m.where(t < 0.5, m.sin(math.pi * (0.5 - t)) ** 2, 0.0)

    @formula
    def beta(self, t: Any, m: Any) -> Any:
        if self.curve == "linear":
            return 1.0 * t
        if self.curve == "trigonometric":
            return m.sin(0.5 * math.pi * t)
        return m.where(t > 0.5, m.sin(math.pi * (0.5 - t)) ** 2, 0.0)

    @formula
    def dalpha(self, t: Any, m: Any) -> Any:
        if self.curve == "linear":
            return -1.0 + 0.0 * t
        if self.curve == "trigonometric":
            return -0.5 * math.pi * self.beta(t)
        return m.where(t < 0.5, -2.0 * math.pi * _sine(t, m) * m.sin(math.pi * (0.5 - t)), 0.0)

    @formula
    def dbeta(self, t: Any, m: Any) -> Any:
        if self.curve == "linear":
            return 1.0 + 0.0 * t
        if self.curve == "trigonometric":
            return 0.5 * math.pi * self.alpha(t)
        return m.where(t > 0.5, -2.0 * math.pi * _sine(t, m) * m.sin(math.pi * (0.5 - t)), 0.0)

    @formula
    def gamma(self, t: Any, m: Any) -> Any:
        if self.latent == "root":
            return self.noise * m.sqrt(t * (1.0 - t))
        return self.noise * _sine(t, m) ** 2

    @formula
    def dgamma(self, t: Any, m: Any) -> Any:
        if self.latent == "root":
            return m.divide(self.gamma_dgamma(t), self.gamma(t))
        return self.noise * 2.0 * math.pi * _sine(t, m) * m.sin(math.pi * (0.5 - t))

    @formula
    def gamma_dgamma(self, t: Any, m: Any) -> Any:
        if self.latent == "root":
            return self.noise**2 * (0.5 - t)
        return self.gamma(t) * self.dgamma(t)

    def draw(
        self,
        x0: Tensor,
        x1: Tensor,
        t: Tensor,
        keys: Keys,
        mask: Tensor | None = None,
        space: Space | None = None,
        step: int = 0,
        stream: str = "bridge",
    ) -> Draw:
        """Draw x_t for the pairs ``x0``, ``x1`` (B, ...) at times ``t`` (B,).

        Both are projected onto the space (`Flat` by default), z is the space's keyed noise.
        UserError for shapes that differ, unless there is one key a pair, and for spaces of tokens
        or rotations.
        """
        space = real_space(space)
        if x0.shape != x1.shape:
            raise UserError(
                f"pairs have one shape, got x0 {tuple(x0.shape)} and x1 {tuple(x1.shape)}"
            )
        if len(x1) != len(keys):
            raise UserError(f"there are {len(x1)} pairs and {len(keys)} keys")
        x0, x1 = space.project(x0.to(x1), mask), space.project(x1, mask)
        z = space.noise(keys, stream, step, x1, mask)
        x_t = _sum(x1, (self.alpha(t), x0), (self.beta(t), x1), (self.gamma(t), z))
        return Draw(self, x_t, t, z, x0, x1, mask, space)


@dataclass(frozen=True)
class Draw:
    """A draw of x_t between x_0 and x_1 at times t (B,), and what a loss needs to know of it."""

    bridge: TwoSided
    x_t: Tensor
    t: Tensor
    z: Tensor
    x_0: Tensor
    x_1: Tensor
    mask: Tensor | None
    space: Space

    def target(self, head: str) -> Tensor:
        """What a network answers for one of `HEADS`; the root's velocity is infinite at ends."""
        choice("head", head, HEADS)
        if head == "noise":
            return self.z
        bridge, t = self.bridge, self.t
        terms = [(bridge.dalpha(t), self.x_0), (bridge.dbeta(t), self.x_1)]
        if head == "velocity":
            terms.append((bridge.dgamma(t), self.z))
        return _sum(self.x_t, *terms)


def real_space(space: Space | None) -> Space:
    """The space, `Flat` for None; UserError for one that follows no Gaussian path."""
    return Part(space or Flat(), Path.linear()).space


def _sum(like: Tensor, *terms: tuple[Any, Tensor]) -> Tensor:
    """Sum of per-sample numbers times tensors (B, ...), in the dtype of ``like``."""
    first, *rest = (per_sample(weight, like) * x for weight, x in terms)
    for term in rest:
        first = first + term
    return first


def bridge_loss(answer: Answer, drawn: Draw, weights: Mapping[str, float] | None = None) -> Loss:
    """The matching loss of a network's heads on a draw.

    ``answer`` maps heads (`HEADS`) to predictions shaped as x_t; a tensor is the velocity. The
    error of a head is the mean square over the entries that exist in the whole batch, on `Centred`
    the mean squared distance of points. ``weights`` gives heads weights, 1 where it names none.
    """
    heads = {"velocity": answer} if isinstance(answer, Tensor) else answer
    for name in (*heads, *(weights or {})):
        choice("head", name, HEADS)
    if unknown := (weights or {}).keys() - heads.keys():
        raise UserError(f"weights for {', '.join(sorted(unknown))}, which the model did not answer")
    entries = drawn.space.entry_mask(drawn.mask, drawn.x_t)
    losses, total = {}, torch.zeros((), device=drawn.x_t.device)
    for head, prediction in heads.items():
        prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
        if prediction.shape != drawn.x_t.shape:
            raise UserError(
                f"the model answered {head!r} in shape {tuple(prediction.shape)}, the state has "
                f"{tuple(drawn.x_t.shape)}"
            )
        gap = prediction - drawn.target(head)
        if entries is None:
            loss = gap.square().mean()
        else:  # cleared before it is squared: what stands in padding has no gradient either
            count = entries.expand_as(gap).to(gap.dtype).sum().clamp(min=1)
            loss = gap.masked_fill(~entries, 0).square().sum() / count
        if isinstance(drawn.space, Centred):
            loss = loss * drawn.x_t.shape[-1]
        losses[head] = loss.detach()
        total = total + (weights or {}).get(head, 1.0) * loss
    return Loss(total, losses)


def couple(
    x0: Tensor,
    x1: Tensor,
    how: str = "optimal",
    mask: Tensor | None = None,
    space: Space | None = None,
    keys: Keys | None = None,
    step: int = 0,
) -> Tensor:
    """The order of the sources: ``x0[couple(x0, x1)]`` are the partners of ``x1``, (B,) int64.

    "given" keeps the pairs; "independent" shuffles the sources by ``keys`` and ``step``; "optimal"
    is the exact transport of the batch, least sum of squared distances in the space (Pooladian et
    al. 2023; Tong et al. 2023). Targets stay where they are, and only sources of one mask trade
    places. With "optimal" and "independent" a pair depends on its batch.
    """
    choice("coupling", how, COUPLINGS)
    space, count = real_space(space), len(x1)
    if len(x0) != count:
        raise UserError(f"there are {len(x0)} sources for {count} targets")
    order = torch.arange(count, device=x1.device)
    if how == "given":
        return order
    group = torch.zeros_like(order)
    if mask is not None:
        group = torch.unique(mask.flatten(1), dim=0, return_inverse=True)[1]
    if how == "independent":
        if keys is None:
            raise UserError("the independent coupling needs keys to shuffle with")
        draws = keys.uniform("couple", step, (), torch.float64)
    else:
        first, last = (space.project(x.double(), mask).flatten(1) for x in (x0.to(x1), x1))
        if not bool(first.isfinite().all() and last.isfinite().all()):
            raise UserError("points that are not finite have no distance: nothing to couple")
    for number in group.unique().tolist():
        members = order[group == number]
        if how == "independent":
            order[members] = members[draws[members].argsort()]
        else:
            # differences, not products: near ties keep their digits
            distance = torch.cdist(
                last[members], first[members], compute_mode="donot_use_mm_for_euclid_dist"
            )
            order[members] = members[_assignment(distance.square())]
    return order


def _assignment(cost: Tensor) -> Tensor:
    """The column of each row in the assignment of least total cost (n, n)."""
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(columns, device=cost.device)
