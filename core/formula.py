"""Functions of time, written once for plain floats and for tensors.

A coefficient such as sqrt(1 - exp(-B)) is wanted as a Python float when a table is built (``math``,
about a microsecond) and as a float64 tensor when a loss has a time for every sample. ``formula``
turns one body into both:

    @formula
    def sigma(self, t, m):
        return m.sqrt(-m.expm1(-self.integral(t)))

where m is ``torch`` for a tensor and `Floats` for a float, the few functions of ``math`` with the
IEEE results that tensors give: log(0) = -inf and 1 / 0 = inf, where ``math`` would raise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, cast, overload

import torch
from torch import Tensor

from driftworks.errors import UserError

__all__ = ["Floats", "Formula", "formula", "positive"]


class Formula(Protocol):
    """A function of time: float -> float, tensor -> float64 tensor of the same shape."""

    @overload
    def __call__(self, t: float) -> float: ...
    @overload
    def __call__(self, t: Tensor) -> Tensor: ...


class Floats:
    """What formulas may use, for floats, with the results that ``torch`` gives at the ends."""

    sin, sqrt, expm1, atan = math.sin, math.sqrt, math.expm1, math.atan

    @staticmethod
    def exp(x: float) -> float:
        return math.exp(x) if x < 709.0 else math.inf

    @staticmethod
    def log(x: float) -> float:
        return math.log(x) if x > 0.0 else -math.inf

    @staticmethod
    def log1p(x: float) -> float:
        return math.log1p(x) if x > -1.0 else -math.inf

    @staticmethod
    def divide(x: float, y: float) -> float:
        if y != 0.0:
            return x / y
        return math.copysign(math.inf, x) if x != 0.0 else math.nan

    @staticmethod
    def where(condition: bool, x: float, y: float) -> float:
        return x if condition else y

    @staticmethod
    def clamp(x: float, low: float, high: float) -> float:
        return min(max(x, low), high)


def formula(body: Callable[[Any, Any, Any], Any]) -> Formula:
    """Let ``body(self, t, m)``, written once, serve floats (m = `Floats`) and tensors (torch)."""

    @wraps(body)
    def evaluate(self: Any, t: Any) -> Any:
        if isinstance(t, Tensor):
            return body(self, t.to(torch.float64), torch)
        return body(self, float(t), Floats)

    return cast(Formula, evaluate)


def positive(owner: str, **values: float) -> None:
    """UserError unless every value is a finite number above 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0.0):
            raise UserError(f"{owner}: {name} must be a positive number, got {value!r}")
