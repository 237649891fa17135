r"""Feynman-Kac weights: how a run of a sampler becomes a weighted run towards another law.

A network gives the score s of rho_t on a Gaussian path (`core.paths`: a, lam, w; b = a x + lam s).
Wanted are samples of another law p_t, known up to its normalisation,

    p_t ~ prod_i q_i,t^w_i e^h_t,      W = sum_i w_i,      sbar = sum_i w_i s_i.

No marginal dynamics of guided networks has this law, but for any drift u and any noise level eps

    dx = (u + eps grad log p) dt + sqrt(2 eps) dW,
    d log weight = (d_t log p + div u + u . grad log p) dt

has it in the weighted sense, and the mean of the weights is the ratio of normalisers (annealed
importance sampling in continuous time; Jarzynski 1997, Skreta et al. 2025 "Feynman-Kac
correctors"). The divergence of a network cancels in u = A x + lam sbar for every A(t). We take

    u = a x + lam sbar - (W - 1) lam s_r + k lam grad h,      s_r = -(x - beta m) / V,

with the score s_r of a Gaussian reference N(m, scale^2), V = beta^2 scale^2 + sigma^2. Then

    d log weight / dt = -(W - 1) dof (1/2 log V)'                                        [volume]
                      + lam (|sbar|^2 - sum_i w_i |s_i|^2 - (W - 1) s_r . sbar)          [product]
                      + d_t h + u_0 . grad h
                      + k lam (lap h + sbar . grad h + |grad h|^2),                      [tilt]

u_0 being u without h. scale = inf leaves the formulas of Skreta et al. The reference is what makes
them useful: of data that have the law of the reference every weight of q^W is 1, and of others the
rate is finite at both ends of every path, also at beta = 0, where theirs is infinite. Since the
weight does not depend on the noise level, eps is free; their weights have infinite variance already
for a one-dimensional Gaussian unless W < 2 or eps / lam is large (see `least_noise`).

With D_i the denoised states and r the reference's, s_i = s_r + (beta / sigma^2) (D_i - D_r); in
these differences nothing is infinite at beta = 0 and little cancels near the data. Rates are taken
in the clock phi, tan phi = scale beta / sigma, in which they are finite and smooth at both ends of
every path and which does not know how the path is timed:

    dt / dphi = (scale beta^2 + sigma^2 / scale) / w.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from driftworks.core.laws import Gaussian
from driftworks.core.paths import Path
from driftworks.core.predict import per_sample
from driftworks.core.spaces import Space, Symmetric
from driftworks.errors import UserError

__all__ = [
    "FAINTEST",
    "Level",
    "Move",
    "Reference",
    "dot",
    "least_noise",
    "product_move",
    "tilt_move",
]

FAINTEST, CLEAREST = 2.0 * math.log(1e-4), 2.0 * math.log(1e6)  # log SNR that formulas see


@dataclass(frozen=True)
class Reference:
    """The Gaussian N(mean, scale^2) of independent entries on a path; scale may be infinite."""

    mean: Tensor | float
    scale: float

    @classmethod
    def of(cls, given: float | Gaussian) -> Reference:
        if isinstance(given, Gaussian):
            if given.axes is not None or given.variances.numel() != 1:
                raise UserError("the Gaussian of a reference has one variance for all entries")
            mean: Tensor | float = given.mean if given.mean.ndim else given.mean.item()
            given = math.sqrt(given.variances.item())
        else:
            mean = 0.0
        if not given > 0.0:
            raise UserError(f"the scale of a reference must be positive, got {given}")
        return cls(mean, float(given))

    @property
    def unit(self) -> float:
        return self.scale if math.isfinite(self.scale) else 1.0

    def spread(self, path: Path, t: Any) -> Any:
        """V, the variance of x_t under the reference; sigma^2 at beta = 0."""
        return self.scale**2 * path.beta(t) ** 2 + path.sigma(t) ** 2

    def log_spread(self, path: Path, t: float) -> float:
        """log V up to a constant, at a float."""
        finite = math.isfinite(self.scale)
        value = self.spread(path, t) if finite else path.beta(t) ** 2
        return math.log(value) if value > 0.0 else -math.inf

    def speed(self, at: Level) -> Tensor:
        """w dt / dphi."""
        return self.unit * at.beta**2 + at.sigma**2 / self.unit

    def shift(self, x: Tensor) -> Tensor | float:
        return self.mean.to(x) if isinstance(self.mean, Tensor) else self.mean

    def centre(self, x: Tensor, beta: Tensor) -> Tensor:
        """x - beta m."""
        if isinstance(self.mean, float) and self.mean == 0.0:
            return x
        return x - per_sample(beta, x) * self.shift(x)


class Level(NamedTuple):
    """Numbers of a path at times t, float64 (B,); times beyond a log SNR are moved to it."""

    t: Tensor
    beta: Tensor
    sigma: Tensor
    wronskian: Tensor
    slope: Tensor  # sigma' / sigma

    @classmethod
    def at(cls, path: Path, t: Tensor, faintest: float = FAINTEST) -> Level:
        t = t.to(torch.float64)
        level = path.log_snr(t)
        inner = path.time_of_log_snr(level.clamp(FAINTEST, CLEAREST))
        t = torch.where((level < faintest) | (level > CLEAREST), inner, t)
        sigma = path.sigma(t)
        return cls(t, path.beta(t), sigma, path.wronskian(t), path.dsigma(t) / sigma)


def dot(space: Space, u: Tensor, v: Tensor) -> Tensor:
    """Inner product of two vectors of the space, float64 (B,); pairs count once."""
    total = (u * v).flatten(1).sum(1, dtype=torch.float64)
    return 0.5 * total if isinstance(space, Symmetric) else total


class Move(NamedTuple):
    """What is to be done at one time with one part of a state.

    ``flow`` = (x + sigma^2 / lam (u - a x)) / beta is the denoised state of the drift u, ``goal`` =
    (x + sigma^2 grad log p) / beta that of the target's score; they are one tensor where they
    agree. ``rate`` (B,), float64, is the derivative of the log-weight in the clock phi,
    without the volume.
    """

    flow: Tensor
    goal: Tensor
    rate: Tensor


def product_move(
    path: Path, space: Space, ref: Reference, weights: list[float], total: float,
    denoised: list[Tensor], x: Tensor, t: Tensor, mask: Tensor | None,
) -> Move:
    """The move of prod q_i^w_i, from the experts' denoised states inside the space.

    ``total`` is the sum of the weights; x (B, ...), t (B,).
    """
    at = Level.at(path, t, -math.inf)  # all of this but x / beta is finite at beta = 0
    if weights == [1.0]:
        return Move(denoised[0], denoised[0], torch.zeros_like(at.t))
    finite = math.isfinite(ref.scale)
    precision = 1.0 / ref.spread(path, at.t) if finite else torch.zeros_like(at.t)
    gain = at.beta * ref.scale**2 * precision if finite else 1.0 / at.beta
    z = ref.centre(x, at.beta)
    known = space.project(per_sample(gain, x) * z + ref.shift(x), mask)
    news = [d - known for d in denoised]
    mean = torch.stack([w * d for w, d in zip(weights, news, strict=True)]).sum(0)
    square = sum(w * dot(space, d, d) for w, d in zip(weights, news, strict=True))
    rate = at.beta / at.sigma**3 * (dot(space, mean, mean) - square)
    flow = goal = mean + known
    if total != 1.0:
        rate = rate - (total - 1.0) * precision / at.sigma * dot(space, z, mean)
        if finite:
            beta = Level.at(path, t).beta
            goal = flow + (total - 1.0) * (known - x / per_sample(beta, x))
    return Move(flow, goal, rate * ref.speed(at))


def tilt_move(
    path: Path, space: Space, ref: Reference, move: Move, x: Tensor, t: Tensor,
    slope: Tensor, elapsed: Tensor | float, drift: float, laplacian: Tensor | float,
) -> Move:
    """The move of a tilted target: ``rate`` is what h adds to the rate of ``move``.

    Args:
        slope: the gradient of h entry by entry, inside the space, as backpropagation gives it.
        elapsed: the derivative of h in t (B,); drift: k, in units of lam.
        laplacian: of h in this part (B,); matters where the drift is not 0.
    """
    at = Level.at(path, t)
    # the gradient belongs to the inner product of the space, in which mirrored entries count once
    grad = 2.0 * slope if isinstance(space, Symmetric) else slope
    pull = dot(space, grad, x)
    rate = elapsed + at.slope * pull + at.wronskian / at.sigma * dot(space, grad, move.flow)
    shift = per_sample(at.sigma**2 / at.beta, x) * grad
    goal = move.goal + shift
    if drift != 0.0:
        score = (at.beta * dot(space, grad, move.goal) - pull) / at.sigma**2
        lam = at.sigma * at.wronskian / at.beta
        rate = rate + drift * lam * (laplacian + score + dot(space, grad, grad))
    whole = drift == 1.0 and move.flow is move.goal
    flow = goal if whole else move.flow + drift * shift
    return Move(flow, goal, rate * ref.speed(at) / at.wronskian)


def least_noise(power: float) -> float:
    """The ratio eps / lam above which weights of q^power, power > 1, without reference have finite
    variance: the larger root z of ((1 + z) p - 1)^2 = 8 p (p - 1) z.

    It is the condition for the second moment of the weight of a Gaussian to have a fixed point in
    the long run, d log beta being the clock. p = 2: 2.914, p = 3: 3.886.
    """
    p = power
    if not p > 1.0:
        raise UserError(f"power must be above 1, got {power}")
    half = 4.0 * (p - 1.0) - (p - 1.0)
    return (half + math.sqrt(half * half - (p - 1.0) ** 2)) / p
