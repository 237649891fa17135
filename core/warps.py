r"""Warps: another clock for a path, one a part.

A warp is a smooth increasing c with c(0) = 0 and c(1) = 1, and ``Path.warped(path, warp)`` follows
the path at the time c(t). With one part this only relabels time, which a grid does as well; with
several parts it decides which of them is settled first: a part with a large exponent stays noise
for longer.

======  ====================  =====================================
warp    c(t)                  c'(t)
======  ====================  =====================================
Power   t^nu                  nu t^(nu - 1)
Sine    sin^2(pi/2 t^nu)      pi/2 nu t^(nu - 1) sin(pi t^nu)
======  ====================  =====================================

Sine on the linear path is the "cosine" interpolant of FlowMol (Dunn & Koes 2024) and PropMolFlow.

Ends. c' is finite everywhere, which needs nu >= 1 (Power) and nu >= 1/2 (Sine): with less, the
velocity of the path would be infinite at t = 0, where no Euler step can start and no velocity be
learned. Sine stops at t = 1, c'(1) = 0, and for nu > 1/2 at t = 0 as well. The velocity is 0 there
and says nothing about the data, so parts on this warp better predict ``denoised``.

``1 - c`` is formed from c, so a time nearer to 1 than about 1e-8 is rounded to the end by Sine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from driftworks.core.formula import Formula, formula
from driftworks.errors import UserError

__all__ = ["Power", "Sine", "Warp"]


def _at_least(warp: str, nu: float, least: float) -> None:
    if not (math.isfinite(nu) and nu >= least):
        raise UserError(
            f"{warp} warp: nu must be a number of at least {least:g}, got {nu!r} (below it the "
            "clock starts with infinite speed)"
        )


class Warp:
    """An increasing clock c on [0, 1]: ``value`` c(t), ``derivative`` c'(t), ``inverse`` t(c).

    All three are formulas, for floats and tensors.
    """

    value: Formula
    derivative: Formula
    inverse: Formula

    @property
    def root_slope(self) -> float:
        """Slope of sqrt(1 - c) at t = 1: what the chain rule lacks where sigma is a root."""
        raise NotImplementedError


@dataclass(frozen=True)
class Power(Warp):
    """c = t^nu, nu >= 1."""

    nu: float = 2.0

    def __post_init__(self) -> None:
        _at_least("Power", self.nu, 1.0)

    @property
    def root_slope(self) -> float:
        return -math.inf

    @formula
    def value(self, t: Any, m: Any) -> Any:
        return t**self.nu

    @formula
    def derivative(self, t: Any, m: Any) -> Any:
        return self.nu * t ** (self.nu - 1.0)

    @formula
    def inverse(self, c: Any, m: Any) -> Any:
        return c ** (1.0 / self.nu)


@dataclass(frozen=True)
class Sine(Warp):
    """c = sin^2(pi/2 t^nu), nu >= 1/2."""

    nu: float = 1.0

    def __post_init__(self) -> None:
        _at_least("Sine", self.nu, 0.5)

    @property
    def root_slope(self) -> float:
        return -0.5 * math.pi * self.nu

    @formula
    def value(self, t: Any, m: Any) -> Any:
        s = t**self.nu
        first, last = m.sin(0.5 * math.pi * s), m.sin(0.5 * math.pi * (1.0 - s))
        # each square where it is the small one, so that both c and 1 - c keep their digits
        return m.where(s < 0.5, first * first, 1.0 - last * last)

    @formula
    def derivative(self, t: Any, m: Any) -> Any:
        # in terms of sin(s) / s, because t^(nu - 1) alone is infinite at 0 for nu < 1
        s = t**self.nu
        ratio = m.where(s == 0.0, 0.5 * math.pi, m.divide(m.sin(0.5 * math.pi * s), s))
        rest = m.sin(0.5 * math.pi * (1.0 - s))
        return math.pi * self.nu * t ** (2.0 * self.nu - 1.0) * ratio * rest

    @formula
    def inverse(self, c: Any, m: Any) -> Any:
        angle = m.atan(m.sqrt(m.divide(c, 1.0 - c)))
        return (angle * (2.0 / math.pi)) ** (1.0 / self.nu)
