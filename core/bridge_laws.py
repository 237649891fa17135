r"""Exact two-sided bridges between Gaussians, and the coupling of Schroedinger's.

Let (x0, x1) be jointly normal with means m0, m1, covariances C0, C1 and K = cov(x0, x1). On
x_t = alpha x0 + beta x1 + gamma z (`core.bridges`), with m = alpha m0 + beta m1 and

    S = cov(x_t)        = alpha^2 C0 + beta^2 C1 + alpha beta (K + K') + gamma^2 I
    L = cov(I'_t, x_t)  = alpha' alpha C0 + beta' beta C1 + alpha' beta K + beta' alpha K'

    score s = -S^-1 (x - m)      noise    e = -gamma s
    tangent v = m' - L s         velocity b = v + gamma' e

L + gamma gamma' I differs from S'/2 by an antisymmetric part unless K is symmetric: that part moves
no probability, but it belongs to the conditional mean that a network learns. Given x0 as well, x1
is normal with mean m1 + K' C0^-1 (x0 - m0) and covariance C1 - K' C0^-1 K, and the same formulas
hold with C0 = K = 0.

Schroedinger's bridge with a Brownian motion of variance s^2 couples x0 and x1 by the entropic plan
with cost |x0 - x1|^2 / 2 and temperature s^2. Between Gaussians (Janati et al. 2020)

    K = (C0^1/2 (4 C0^1/2 C1 C0^1/2 + s^4 I)^1/2 C0^-1/2 - s^2 I) / 2,

in one dimension (sqrt(4 v0 v1 + s^4) - s^2) / 2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from driftworks.core.bridges import HEADS, TwoSided
from driftworks.errors import UserError

__all__ = ["GaussianBridge", "schrodinger_covariance"]

Time = float | Tensor


def _double(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).detach()


class GaussianBridge:
    """The exact fields of a bridge between Gaussians; callable as a `transport.BridgeModel`.

    Args:
        bridge: the interpolant.
        mean0, cov0, mean1, cov1: the ends: vectors (D,) and matrices (D, D), or all of them numbers
            for independent equal coordinates.
        cross: K = cov(x0, x1), a matrix or number like them.
        predicts: the first head of a call, "velocity" or "tangent"; the second is "noise".

    States are (B, ...) with D entries, or with any number of independent groups of D. Times are
    floats or (B,). Answers are computed in float64 and have the dtype of x. ``cond``, when given,
    is x0 (B, ...), and the answers are those given x0 as well.

    Raises UserError when the joint covariance is not symmetric and positive semi-definite.
    """

    def __init__(
        self, bridge: TwoSided, mean0: Any, cov0: Any, mean1: Any, cov1: Any, cross: Any = 0.0,
        predicts: str = "velocity",
    ) -> None:  # fmt: skip
        if predicts not in HEADS[:2]:
            raise UserError(f"unknown first head {predicts!r}; choose one of velocity, tangent")
        self.bridge, self.predicts = bridge, predicts
        c0, c1, k = _double(cov0), _double(cov1), _double(cross)
        size = max([1, *(c.shape[-1] for c in (c0, c1, k) if c.ndim)])
        eye = torch.eye(size, dtype=torch.float64)
        self.c0, self.c1, self.k = (c if c.ndim else c * eye for c in (c0, c1, k))
        self.m0, self.m1 = (_double(m).expand(size) for m in (mean0, mean1))
        joint = torch.cat([torch.cat([self.c0, self.k], 1), torch.cat([self.k.mT, self.c1], 1)])
        if not torch.allclose(joint, joint.mT, rtol=1e-10, atol=1e-12):
            raise UserError("a covariance is not symmetric")
        least = torch.linalg.eigvalsh(joint)[0].item()
        if least < -1e-10 * joint.abs().max().item():
            raise UserError(f"the joint covariance is not positive: least eigenvalue {least:.6g}")

    def __call__(
        self, x: Tensor, t: Time, mask: Any = None, cond: Tensor | None = None, previous: Any = None
    ) -> dict[str, Tensor]:
        """{"velocity" or "tangent", "noise"} at (x, t), of the shape of x."""
        law = self if cond is None else self.given(cond)
        score, tangent = law._fields(x, t)
        heads = {self.predicts: tangent, "noise": -_shaped(self.bridge.gamma(_time(t))) * score}
        if self.predicts == "velocity":
            heads["velocity"] = tangent - _shaped(self.bridge.gamma_dgamma(_time(t))) * score
        return {head: field.reshape(x.shape).to(x.dtype) for head, field in heads.items()}

    def given(self, x0: Tensor) -> GaussianBridge:
        """The bridge that starts in x0 (B, ...), a point for each sample."""
        law = GaussianBridge.__new__(GaussianBridge)
        law.bridge, law.predicts = self.bridge, self.predicts
        gain = torch.linalg.pinv(self.c0, hermitian=True) @ self.k
        x0 = self._groups(x0)
        law.m0, law.m1 = x0, self.m1 + (x0 - self.m0) @ gain
        law.c0 = law.k = torch.zeros_like(self.c0)
        law.c1 = self.c1 - self.k.mT @ gain
        return law

    def to(self, device: torch.device | str) -> GaussianBridge:
        """The same bridge with its laws on ``device``."""
        law = GaussianBridge.__new__(GaussianBridge)
        law.bridge, law.predicts = self.bridge, self.predicts
        law.m0, law.m1 = self.m0.to(device), self.m1.to(device)
        law.c0, law.c1, law.k = (c.to(device) for c in (self.c0, self.c1, self.k))
        return law

    def mean(self, t: float) -> Tensor:
        """E[x_t], (D,)."""
        return self.bridge.alpha(t) * self.m0 + self.bridge.beta(t) * self.m1

    def cov(self, t: float) -> Tensor:
        """S = cov(x_t), (D, D)."""
        return self._moments(t)[1]

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        """Log density of x_t at x, (B,)."""
        mean, spread, _, _ = self._moments(t)
        z = self._groups(x) - mean
        _, log_det = torch.linalg.slogdet(spread)
        norm = log_det + z.shape[-1] * math.log(2.0 * math.pi)
        square = (z * torch.linalg.solve(spread, z.mT).mT).sum(-1)
        return -0.5 * (square + norm.reshape(-1, 1)).sum(-1).to(x.dtype)

    def score(self, x: Tensor, t: Time) -> Tensor:
        """Gradient of ``log_prob``."""
        return self._fields(x, t)[0].reshape(x.shape).to(x.dtype)

    def noise(self, x: Tensor, t: Time) -> Tensor:
        """E[z | x_t]."""
        score, _ = self._fields(x, t)
        return (-_shaped(self.bridge.gamma(_time(t))) * score).reshape(x.shape).to(x.dtype)

    def tangent(self, x: Tensor, t: Time) -> Tensor:
        """E[I'_t | x_t]."""
        return self._fields(x, t)[1].reshape(x.shape).to(x.dtype)

    def velocity(self, x: Tensor, t: Time) -> Tensor:
        """The drift of the probability flow, finite at both ends."""
        score, tangent = self._fields(x, t)
        heat = _shaped(self.bridge.gamma_dgamma(_time(t))) * score
        return (tangent - heat).reshape(x.shape).to(x.dtype)

    def _groups(self, x: Tensor) -> Tensor:
        """x as (B, groups, D) in float64."""
        size = self.c0.shape[0]
        if x.ndim < 1 or x[:1].numel() % size:
            raise ValueError(f"states {tuple(x.shape)} do not consist of groups of {size} entries")
        return x.double().reshape(len(x), -1, size)

    def _moments(self, t: Time) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """m, S, m' and L, with a leading axis of times where there are several."""
        b, t = self.bridge, _time(t)
        alpha, beta, dalpha, dbeta, gamma = (
            _shaped(f(t)) for f in (b.alpha, b.beta, b.dalpha, b.dbeta, b.gamma)
        )
        k = self.k
        eye = torch.eye(len(k), dtype=torch.float64, device=k.device)
        spread = alpha**2 * self.c0 + beta**2 * self.c1 + alpha * beta * (k + k.mT)
        lean = dalpha * alpha * self.c0 + dbeta * beta * self.c1
        lean = lean + dalpha * beta * k + dbeta * alpha * k.mT
        mean, slope = alpha * self.m0 + beta * self.m1, dalpha * self.m0 + dbeta * self.m1
        return mean, spread + gamma**2 * eye, slope, lean

    def _fields(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Score and tangent, (B, groups, D)."""
        mean, spread, slope, lean = self._moments(t)
        # the pseudo-inverse, because a source of one point has no spread at its end
        z = self._groups(x) - mean
        score = -z @ torch.linalg.pinv(spread, hermitian=True)
        return score, slope - score @ lean.mT


def _time(t: Time) -> Time:
    """A float where all times are one, as in a sampler: one covariance to invert, not B."""
    if not isinstance(t, Tensor):
        return t
    first = t.flatten()[0]
    return first.item() if bool((t == first).all()) else t.double()


def _shaped(value: Any) -> Any:
    return value[:, None, None] if isinstance(value, Tensor) else value


def schrodinger_covariance(cov0: Any, cov1: Any, noise_variance: float) -> Any:
    """cov(x0, x1) of the Schroedinger bridge between Gaussians, for a Brownian motion.

    Variances give a float, matrices (D, D) a matrix in float64. ``noise_variance`` is s^2, the
    variance that the Brownian motion gathers from t = 0 to 1, noise^2 of ``TwoSided.brownian``.
    UserError unless all of them are positive.
    """
    c0, c1 = _double(cov0), _double(cov1)
    single = c0.ndim == 0 and c1.ndim == 0
    size = max([1, *(c.shape[-1] for c in (c0, c1) if c.ndim)])
    eye = torch.eye(size, dtype=torch.float64)
    c0, c1 = (c if c.ndim else c * eye for c in (c0, c1))
    values, axes = torch.linalg.eigh(c0)
    if not (values[0] > 0.0 and torch.linalg.eigvalsh(c1)[0] > 0.0 and noise_variance > 0.0):
        raise UserError(
            f"covariances and noise variance must be positive, got {cov0}, {cov1} and "
            f"{noise_variance}"
        )
    root, inverse = (axes * values**power @ axes.mT for power in (0.5, -0.5))
    values, axes = torch.linalg.eigh(4.0 * root @ c1 @ root + noise_variance**2 * eye)
    cross = 0.5 * (root @ (axes * values.sqrt() @ axes.mT) @ inverse - noise_variance * eye)
    return cross.item() if single else cross
