r"""Gaussian paths from noise to data, with their derivatives, in closed form and float64.

A path joins noise e ~ N(0, I) at t = 0 to data x1 at t = 1,

    x_t = beta(t) x1 + sigma(t) e,                 SNR = beta^2 / sigma^2 rising with t.

Everything a sampler or a loss needs follows from beta, sigma and their derivatives in t:

    w   = sigma beta' - sigma' beta > 0            the Wronskian
    a   = beta' / beta
    lam = sigma w / beta = sigma^2 a - sigma sigma' = 1/2 sigma^2 d(log SNR)/dt

so that the velocity of the probability flow is b = a x + lam * score, and 2 lam = g^2 is the
squared diffusion of the classical reverse SDE (its own clock is u = 1 - t).

========  =======================  ==============================  ====================
path      beta                     sigma                           2 lam
========  =======================  ==============================  ====================
linear    t                        1 - t                           2 u / (1 - u)
cosine    sin(pi t / 2)            cos(pi t / 2)                   pi tan(pi u / 2)
VP        exp(-B / 2)              sqrt(1 - exp(-B))               B'(u)
subVP     exp(-B / 2)              1 - exp(-B)                     B'(u) (1 - exp(-2B))
VE        1                        smin (smax / smin)^u            2 ln(smax/smin) sigma^2
EDM       1                        smax u                          2 smax^2 u
reverting exp(-theta u)            noise sqrt(1 - exp(-2 theta u)) 2 theta noise^2
warped    beta(c(t))               sigma(c(t))                     c'(t) times the path's own
========  =======================  ==============================  ====================

with B(u) = b0 u + (b1 - b0) u^2 / 2 and a warp c of `core.warps`. Every formula takes a Python
float (plain ``math``, about a microsecond, for building tables) or a tensor of any shape (evaluated
and returned in float64), see `core.formula`.

Mean reversion. The process that forgets the data for a given mu (a degraded image, an apo
structure), dx = theta (mu - x) du + sqrt(2 theta) noise dW, is the three-term path
x_t = beta x1 + (1 - beta) mu + sigma e. It is the path of this table on x - mu; `charts.Shift`
carries data and models there. It ends near mu, at N(mu + beta(0) (x1 - mu), sigma(0)^2).

Ends. Both kinds of argument follow IEEE rules and never raise: ``a`` and ``lam`` of the linear and
cosine paths are inf at t = 0, where beta = 0; ``log_snr`` is -inf where beta = 0 and +inf where
sigma = 0; VP and mean reversion have dsigma(1) = -inf and wronskian(1) = inf (sigma falls as a
square root), while ``dvariance`` = d(sigma^2)/dt is finite on every path. beta and sigma are
exactly 0 where they should be. VP, subVP, VE and mean reversion start from beta(0) > 0, and VE ends
at sigma(1) = smin > 0. Warped paths take the limits: a clock that stands still at an end makes 0 of
a finite derivative, leaves ``a`` and ``lam`` infinite at t = 0, and a finite slope of VP's root.

References: Song et al. 2021 (VP, subVP, VE); Karras et al. 2022 (EDM); Lipman et al. 2023 and
Albergo, Boffi & Vanden-Eijnden 2023 (linear, cosine); Luo et al. 2023, "Image restoration with
mean-reverting stochastic differential equations".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from driftworks.core.formula import Formula, formula, positive
from driftworks.core.warps import Warp
from driftworks.errors import UserError

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Cosine",
    "Formula",
    "Linear",
    "MeanReverting",
    "Path",
    "SubVP",
    "Warped",
]


class Path:
    """A Gaussian path x_t = beta(t) x1 + sigma(t) e; build one with ``Path.linear()`` and so on.

    Paths are immutable and compare by value. All attributes below are formulas of time, see the
    module's docstring; ``time_of_log_snr`` inverts ``log_snr`` and answers with the nearer end for
    values the path never reaches.
    """

    beta: Formula
    sigma: Formula
    dbeta: Formula
    dsigma: Formula
    time_of_log_snr: Formula

    @formula
    def dvariance(self, t: Any, m: Any) -> Any:
        return 2.0 * self.sigma(t) * self.dsigma(t)

    @formula
    def wronskian(self, t: Any, m: Any) -> Any:
        return self.sigma(t) * self.dbeta(t) - self.dsigma(t) * self.beta(t)

    @formula
    def a(self, t: Any, m: Any) -> Any:
        return m.divide(self.dbeta(t), self.beta(t))

    @formula
    def lam(self, t: Any, m: Any) -> Any:
        return m.divide(self.sigma(t) * self.wronskian(t), self.beta(t))

    @formula
    def log_snr(self, t: Any, m: Any) -> Any:
        return 2.0 * (m.log(self.beta(t)) - m.log(self.sigma(t)))

    @staticmethod
    def linear() -> Linear:
        """x_t = t x1 + (1 - t) e: conditional optimal transport, rectified flow."""
        return Linear()

    @staticmethod
    def cosine() -> Cosine:
        """x_t = sin(pi t / 2) x1 + cos(pi t / 2) e: the variance preserving trigonometric path."""
        return Cosine()

    @staticmethod
    def vp(b0: float = 0.1, b1: float = 20.0) -> VP:
        """The variance preserving SDE with a linear rate from b0 (data end) to b1 (noise end)."""
        return VP(b0, b1)

    @staticmethod
    def subvp(b0: float = 0.1, b1: float = 20.0) -> SubVP:
        """The sub-VP SDE: beta of VP with sigma = 1 - beta^2."""
        return SubVP(b0, b1)

    @staticmethod
    def ve(smin: float = 0.01, smax: float = 50.0) -> VE:
        """The variance exploding SDE, sigma geometric from smax down to smin."""
        return VE(smin, smax)

    @staticmethod
    def edm(smax: float = 80.0) -> EDM:
        """EDM's path, sigma linear from smax down to 0."""
        return EDM(smax)

    @staticmethod
    def mean_reverting(theta: float = 3.0, noise: float = 0.1) -> MeanReverting:
        """The mean-reverting SDE on x - mu: total rate theta, stationary deviation noise."""
        return MeanReverting(theta, noise)

    @staticmethod
    def warped(path: Path, warp: Warp) -> Warped:
        """``path`` on the clock of a warp: ``Path.warped(Path.linear(), Sine(2.0))``."""
        return Warped(path, warp)


@dataclass(frozen=True)
class Linear(Path):
    """beta = t, sigma = 1 - t; w = 1."""

    @formula
    def beta(self, t: Any, m: Any) -> Any:
        return 1.0 * t

    @formula
    def sigma(self, t: Any, m: Any) -> Any:
        return 1.0 - t

    @formula
    def dbeta(self, t: Any, m: Any) -> Any:
        return 1.0 + 0.0 * t

    @formula
    def dsigma(self, t: Any, m: Any) -> Any:
        return -1.0 - 0.0 * t

    @formula
    def time_of_log_snr(self, level: Any, m: Any) -> Any:
        ratio = m.exp(-0.5 * abs(level))
        return m.where(level > 0.0, 1.0, ratio) / (1.0 + ratio)


@dataclass(frozen=True)
class Cosine(Path):
    """beta = sin(pi t / 2), sigma = cos(pi t / 2); w = pi / 2."""

    @formula
    def beta(self, t: Any, m: Any) -> Any:
        return m.sin(0.5 * math.pi * t)

    @formula
    def sigma(self, t: Any, m: Any) -> Any:
        # the sine of the complement, because cos(pi / 2) is not zero in floating point
        return m.sin(0.5 * math.pi * (1.0 - t))

    @formula
    def dbeta(self, t: Any, m: Any) -> Any:
        return 0.5 * math.pi * self.sigma(t)

    @formula
    def dsigma(self, t: Any, m: Any) -> Any:
        return -0.5 * math.pi * self.beta(t)

    @formula
    def time_of_log_snr(self, level: Any, m: Any) -> Any:
        angle = m.atan(m.exp(-0.5 * abs(level))) * (2.0 / math.pi)
        return m.where(level > 0.0, 1.0 - angle, angle)


@dataclass(frozen=True)
class _LinearRate(Path):
    """beta = exp(-B / 2) with B(u) = b0 u + (b1 - b0) u^2 / 2, u = 1 - t; B' is ``rate``."""

    b0: float = 0.1
    b1: float = 20.0

    def __post_init__(self) -> None:
        positive("VP path" if type(self) is VP else "subVP path", b0=self.b0, b1=self.b1)

    def integral(self, t: Any) -> Any:
        u = 1.0 - t
        return self.b0 * u + 0.5 * (self.b1 - self.b0) * u * u

    def rate(self, t: Any) -> Any:
        return self.b0 + (self.b1 - self.b0) * (1.0 - t)

    def time_of_integral(self, integral: Any, m: Any) -> Any:
        total = 0.5 * (self.b0 + self.b1)
        integral = m.clamp(integral, 0.0, total)
        root = m.sqrt(self.b0**2 + 2.0 * (self.b1 - self.b0) * integral)
        return m.clamp(1.0 - 2.0 * integral / (self.b0 + root), 0.0, 1.0)

    @formula
    def beta(self, t: Any, m: Any) -> Any:
        return m.exp(-0.5 * self.integral(t))

    @formula
    def dbeta(self, t: Any, m: Any) -> Any:
        return 0.5 * self.rate(t) * self.beta(t)


@dataclass(frozen=True)
class VP(_LinearRate):
    """sigma = sqrt(1 - beta^2), so beta^2 + sigma^2 = 1; lam = rate / 2."""

    @formula
    def sigma(self, t: Any, m: Any) -> Any:
        return m.sqrt(-m.expm1(-self.integral(t)))

    @formula
    def dsigma(self, t: Any, m: Any) -> Any:
        return m.divide(0.5 * self.dvariance(t), self.sigma(t))

    @formula
    def dvariance(self, t: Any, m: Any) -> Any:
        return -self.rate(t) * m.exp(-self.integral(t))

    @formula
    def a(self, t: Any, m: Any) -> Any:
        return 0.5 * self.rate(t)

    @formula
    def lam(self, t: Any, m: Any) -> Any:
        return 0.5 * self.rate(t)

    @formula
    def time_of_log_snr(self, level: Any, m: Any) -> Any:
        # SNR = 1 / (exp(B) - 1), so B = log(1 + exp(-level)), kept exact for both signs
        integral = m.log1p(m.exp(-abs(level))) + m.clamp(-level, 0.0, math.inf)
        return self.time_of_integral(integral, m)


@dataclass(frozen=True)
class SubVP(_LinearRate):
    """sigma = 1 - beta^2, never more noise than VP."""

    @formula
    def sigma(self, t: Any, m: Any) -> Any:
        return -m.expm1(-self.integral(t))

    @formula
    def dsigma(self, t: Any, m: Any) -> Any:
        return -self.rate(t) * m.exp(-self.integral(t))

    @formula
    def a(self, t: Any, m: Any) -> Any:
        return 0.5 * self.rate(t)

    @formula
    def time_of_log_snr(self, level: Any, m: Any) -> Any:
        # beta^2 = 1 - sigma turns SNR = beta^2 / sigma^2 into a quadratic in sigma; for strong
        # noise beta^2 comes from SNR sigma^2, which does not cancel
        snr = m.exp(level)
        sigma = 2.0 / (1.0 + m.sqrt(1.0 + 4.0 * snr))
        strong = -level - 2.0 * m.log(sigma)
        return self.time_of_integral(m.where(sigma > 0.5, strong, -m.log1p(-sigma)), m)


@dataclass(frozen=True)
class VE(Path):
    """beta = 1, sigma = smin (smax / smin)^u; sigma(1) = smin, so a sampler ends with a jump."""

    smin: float = 0.01
    smax: float = 50.0

    def __post_init__(self) -> None:
        positive("VE path", smin=self.smin, smax=self.smax)
        if self.smin >= self.smax:
            raise UserError(f"VE path: smin must be below smax, got {self.smin!r} >= {self.smax!r}")

    @property
    def _log_range(self) -> float:
        return math.log(self.smax / self.smin)

    @formula
    def beta(self, t: Any, m: Any) -> Any:
        return 1.0 + 0.0 * t

    @formula
    def sigma(self, t: Any, m: Any) -> Any:
        return self.smin * m.exp(self._log_range * (1.0 - t))

    @formula
    def dbeta(self, t: Any, m: Any) -> Any:
        return 0.0 * t

    @formula
    def dsigma(self, t: Any, m: Any) -> Any:
        return -self._log_range * self.sigma(t)

    @formula
    def time_of_log_snr(self, level: Any, m: Any) -> Any:
        u = (-0.5 * level - math.log(self.smin)) / self._log_range
        return m.clamp(1.0 - u, 0.0, 1.0)


@dataclass(frozen=True)
class EDM(Path):
    """beta = 1, sigma = smax u."""

    smax: float = 80.0

    def __post_init__(self) -> None:
        positive("EDM path", smax=self.smax)

    @formula
    def beta(self, t: Any, m: Any) -> Any:
        return 1.0 + 0.0 * t

    @formula
    def sigma(self, t: Any, m: Any) -> Any:
        return self.smax * (1.0 - t)

    @formula
    def dbeta(self, t: Any, m: Any) -> Any:
        return 0.0 * t

    @formula
    def dsigma(self, t: Any, m: Any) -> Any:
        return -self.smax - 0.0 * t

    @formula
    def time_of_log_snr(self, level: Any, m: Any) -> Any:
        return m.clamp(1.0 - m.exp(-0.5 * level) / self.smax, 0.0, 1.0)


@dataclass(frozen=True)
class MeanReverting(Path):
    """beta = exp(-theta u), sigma = noise sqrt(1 - exp(-2 theta u)); lam = theta noise^2.

    It moves x - mu (`charts.Shift`). ``theta`` is the rate integrated over the whole path.
    """

    theta: float = 3.0
    noise: float = 0.1

    def __post_init__(self) -> None:
        positive("mean-reverting path", theta=self.theta, noise=self.noise)

    @formula
    def beta(self, t: Any, m: Any) -> Any:
        return m.exp(-self.theta * (1.0 - t))

    @formula
    def sigma(self, t: Any, m: Any) -> Any:
        return self.noise * m.sqrt(-m.expm1(-2.0 * self.theta * (1.0 - t)))

    @formula
    def dbeta(self, t: Any, m: Any) -> Any:
        return self.theta * self.beta(t)

    @formula
    def dsigma(self, t: Any, m: Any) -> Any:
        return m.divide(0.5 * self.dvariance(t), self.sigma(t))

    @formula
    def dvariance(self, t: Any, m: Any) -> Any:
        return -2.0 * self.theta * self.noise**2 * m.exp(-2.0 * self.theta * (1.0 - t))

    @formula
    def a(self, t: Any, m: Any) -> Any:
        return self.theta + 0.0 * t

    @formula
    def lam(self, t: Any, m: Any) -> Any:
        return self.theta * self.noise**2 + 0.0 * t

    @formula
    def time_of_log_snr(self, level: Any, m: Any) -> Any:
        # noise^2 SNR = 1 / (exp(2 theta u) - 1), inverted as on VP
        level = level + 2.0 * math.log(self.noise)
        integral = m.log1p(m.exp(-abs(level))) + m.clamp(-level, 0.0, math.inf)
        return m.clamp(1.0 - integral / (2.0 * self.theta), 0.0, 1.0)


@dataclass(frozen=True)
class Warped(Path):
    """``path`` at the time c(t) of ``warp``; all rates by the chain rule, with their limits."""

    path: Path
    warp: Warp

    def __post_init__(self) -> None:
        if not (isinstance(self.path, Path) and isinstance(self.warp, Warp)):
            raise UserError(
                f"a warped path is made of a Path and a Warp, got {self.path!r} and {self.warp!r}"
            )

    @formula
    def beta(self, t: Any, m: Any) -> Any:
        return self.path.beta(self.warp.value(t))

    @formula
    def sigma(self, t: Any, m: Any) -> Any:
        return self.path.sigma(self.warp.value(t))

    @formula
    def log_snr(self, t: Any, m: Any) -> Any:
        return self.path.log_snr(self.warp.value(t))

    @formula
    def time_of_log_snr(self, level: Any, m: Any) -> Any:
        return self.warp.inverse(self.path.time_of_log_snr(level))

    @formula
    def dbeta(self, t: Any, m: Any) -> Any:
        return self.warp.derivative(t) * self.path.dbeta(self.warp.value(t))

    @formula
    def dvariance(self, t: Any, m: Any) -> Any:
        return self.warp.derivative(t) * self.path.dvariance(self.warp.value(t))

    # Where a clock stands still (c' = 0) and the path's own rate is infinite, their product has a
    # limit. At t = 0, beta grows with a power of t, so a and lam stay infinite. At t = 1, sigma^2
    # falls in proportion to 1 - c, and its root has the slope sqrt(-dvariance) d sqrt(1 - c) / dt.

    @formula
    def a(self, t: Any, m: Any) -> Any:
        rate, a = self.warp.derivative(t), self.path.a(self.warp.value(t))
        return m.where(_undecided(rate, a), math.inf, rate * a)

    @formula
    def lam(self, t: Any, m: Any) -> Any:
        rate, lam = self.warp.derivative(t), self.path.lam(self.warp.value(t))
        return m.where(_undecided(rate, lam), math.inf, rate * lam)

    @formula
    def dsigma(self, t: Any, m: Any) -> Any:
        rate, dsigma = self.warp.derivative(t), self.path.dsigma(self.warp.value(t))
        return m.where(_undecided(rate, dsigma), self._last_slope, rate * dsigma)

    @formula
    def wronskian(self, t: Any, m: Any) -> Any:
        rate, w = self.warp.derivative(t), self.path.wronskian(self.warp.value(t))
        last = -self._last_slope * self.path.beta(1.0)
        return m.where(_undecided(rate, w), last, rate * w)

    @property
    def _last_slope(self) -> float:
        """dsigma at t = 1 of a path whose sigma falls as a square root."""
        return math.sqrt(-self.path.dvariance(1.0)) * self.warp.root_slope


def _undecided(rate: Any, value: Any) -> Any:
    """Where rate * value is 0 * inf."""
    return (rate == 0.0) & (abs(value) == math.inf)
