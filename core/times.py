r"""Laws of training times: how often the network sees each noise level.

A law has a density p on (0, 1) and a quantile function Q; a time is t = Q(u) with u uniform.

    Uniform                 p = 1
    Beta(a, b)              p = t^(a-1) (1-t)^(b-1) / B(a, b)          late for a > b
    LogitNormal(m, s)       logit t ~ N(m, s^2)                        Esser et al. 2024
    LogNoiseNormal(m, s)    log(sigma / beta) ~ N(m, s^2)              Karras et al. 2022 (EDM)

The last one chooses noise levels and not times, so that one choice means the same on every path:
with n(t) = log(sigma / beta) the density of t is N(n; m, s^2) |n'|, |n'| = w / (sigma beta) and w
the path's Wronskian, cut to the levels that the path reaches (VP and VE begin at a finite one).

Importance. A law that is not uniform also changes what is minimised, E_p[L(t)] instead of the
integral of L. The weights q(t) / p(t) take the change back (`time_weight`): then only the variance
of the loss depends on the law. That variance is finite only where p does not vanish faster than
q^2 L^2; the weights of a narrow law are heavy-tailed.

Low discrepancy. Independent times leave gaps; n times that lie 1/n apart, moved together by one
uniform, integrate a smooth loss with far less noise (Kingma et al. 2021, "Variational diffusion
models", I.1). Such times are coupled. Here the coupled ones are a *group* of sample ids, id // n,
and not a batch: sample i of a seed has the same time whoever is drawn beside it.

Times stay 2^-24 away from both ends, so that they are inside (0, 1) in single precision too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.errors import UserError

__all__ = [
    "Beta",
    "LogNoiseNormal",
    "LogitNormal",
    "TimeLaw",
    "Uniform",
    "spread_uniform",
    "time_samples",
    "time_weight",
]

_EDGE = 2.0**-24


def spread_uniform(keys: Keys, step: int, group: int) -> Tensor:
    """Uniforms (B,), float64, evenly spaced within groups of ``group`` consecutive sample ids.

    Each is uniform on (0, 1) by itself and independent of other groups and steps; those of a group
    are u + rank / group modulo 1 with a common u. Raises UserError unless ``group`` is at least 1.
    """
    if group < 1:
        raise UserError(f"a group holds at least one sample, got {group}")
    number = torch.div(keys.ids, group, rounding_mode="floor")
    rank = (keys.ids - number * group).double()
    common = Keys.for_samples(keys.seed, number).uniform("time/group", step, (), torch.float64)
    return (common + rank / group).remainder(1.0)


@dataclass(frozen=True)
class TimeLaw:
    """A law of training times on (0, 1); formulas in float64 for tensors of any shape."""

    def density(self, t: Tensor) -> Tensor:
        """p(t)."""
        raise NotImplementedError

    def quantile(self, u: Tensor) -> Tensor:
        """The time below which the share u lies."""
        raise NotImplementedError

    def sample(self, keys: Keys, step: int = 0, group: int | None = None) -> Tensor:
        """One time a key (B,), float64, at training step ``step``.

        With ``group`` the times are of low discrepancy within groups of that many consecutive
        sample ids (`spread_uniform`); without, they are independent.
        """
        if group is None:
            u = keys.uniform("time", step, (), torch.float64)
        else:
            u = spread_uniform(keys, step, group)
        return self.quantile(u).clamp(_EDGE, 1.0 - _EDGE)


@dataclass(frozen=True)
class Uniform(TimeLaw):
    """All times alike."""

    def density(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def quantile(self, u: Tensor) -> Tensor:
        return u.double()


@dataclass(frozen=True)
class Beta(TimeLaw):
    """Beta(a, b): mean a / (a + b). Raises UserError unless both are positive."""

    a: float = 2.0
    b: float = 1.0

    def __post_init__(self) -> None:
        if not (0.0 < self.a < math.inf and 0.0 < self.b < math.inf):
            raise UserError(f"Beta times need two positive numbers, got {self.a!r}, {self.b!r}")

    def density(self, t: Tensor) -> Tensor:
        t = t.double()
        norm = math.lgamma(self.a + self.b) - math.lgamma(self.a) - math.lgamma(self.b)
        log = torch.special.xlogy(self.a - 1.0, t) + torch.special.xlog1py(self.b - 1.0, -t)
        return torch.exp(norm + log)

    def quantile(self, u: Tensor) -> Tensor:
        from scipy.special import betaincinv

        t = betaincinv(self.a, self.b, u.double().cpu().numpy())
        return torch.as_tensor(t, dtype=torch.float64, device=u.device)


def _normal(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


def _check_normal(law: str, mean: float, std: float) -> None:
    if not (math.isfinite(mean) and 0.0 < std < math.inf):
        raise UserError(f"{law} needs a finite mean and a positive std, got {mean!r}, {std!r}")


@dataclass(frozen=True)
class LogitNormal(TimeLaw):
    """logit t ~ N(mean, std^2): the middle of the way for mean 0, later for larger means.

    Raises UserError unless std is positive.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_normal("LogitNormal", self.mean, self.std)

    def density(self, t: Tensor) -> Tensor:
        t = t.double()
        p = _normal((torch.logit(t) - self.mean) / self.std) / (self.std * t * (1.0 - t))
        return torch.where((t > 0.0) & (t < 1.0), p, 0.0)

    def quantile(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.double()))


@dataclass(frozen=True)
class LogNoiseNormal(TimeLaw):
    """log(sigma / beta) ~ N(mean, std^2) on ``path``; EDM's (-1.2, 1.2) is for data of standard
    deviation 1/2.

    Raises UserError when std is not positive, and when the path hardly reaches those levels (less
    than 1e-6 of the law).
    """

    path: Path
    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        _check_normal("LogNoiseNormal", self.mean, self.std)
        low, high = self._limits()
        if not high - low > 1e-6:
            levels = f"{-0.5 * self.path.log_snr(1.0):.3g}..{-0.5 * self.path.log_snr(0.0):.3g}"
            raise UserError(
                f"the path's log noise levels are {levels}: a normal law around {self.mean} of "
                f"std {self.std} hardly meets them"
            )

    def _limits(self) -> tuple[float, float]:
        """Shares of the law below the least and the greatest level of the path."""
        ends = (-0.5 * self.path.log_snr(t) for t in (1.0, 0.0))
        low, high = (
            0.5 * math.erfc(-(level - self.mean) / (self.std * math.sqrt(2.0))) for level in ends
        )
        return low, high

    def density(self, t: Tensor) -> Tensor:
        t = t.double()
        low, high = self._limits()
        level = -0.5 * self.path.log_snr(t)
        speed = self.path.wronskian(t) / (self.path.sigma(t) * self.path.beta(t))
        p = _normal((level - self.mean) / self.std) * speed / (self.std * (high - low))
        return torch.where(level.isfinite() & speed.isfinite(), p, 0.0)

    def quantile(self, u: Tensor) -> Tensor:
        low, high = self._limits()
        share = high - (high - low) * u.double()
        level = self.mean + self.std * torch.special.ndtri(share)
        return self.path.time_of_log_snr(-2.0 * level)


def time_weight(t: Tensor, law: TimeLaw, target: TimeLaw | None = None) -> Tensor:
    """Importance weights q(t) / p(t), float64 of t's shape, for times drawn from ``law``.

    With them the mean of a loss has the expectation it has under ``target``, by default uniform
    times. Pass them to `train.matching_loss` as ``importance``.
    """
    return (target or Uniform()).density(t) / law.density(t)


def time_samples(uniform: Tensor, late: float = 0.5) -> Tensor:
    """Training times (B,) from uniforms (B, 2): a share ``late`` follows Beta(2, 1), the rest U.

    Late times decide whether a structure is valid, early ones what it is; Beta(2, 1) = sqrt(U).
    Times after 0.9995, where nothing is left to learn, are moved there.
    """
    u, coin = uniform[:, 0], uniform[:, 1]
    return torch.where(coin < late, u.sqrt(), u).clamp(max=0.9995)
