r"""Property targets: what a user asks for, in units that are said aloud.

    {"mu": 4.0}                    a value, in the property's own unit
    {"gap": "0.25 hartree"}        a value with its unit
    {"homo": (-7.0, -6.0)}         a range: every molecule gets its own value in it
    {"alpha": "max"}               the far end of what the model was trained on (99th percentile)
    {"cv": np.array([...])}        a value for every molecule of the request

The size of a molecule depends on what is asked of it, so it is drawn from p(N | targets). For every
size the training properties are summarised as a normal distribution; any subset of targets then has
a closed-form likelihood, and Bayes' rule gives the sizes:

    p(N | k) ~ p(N) N(k; m_N, S_N)     restricted to the properties asked for.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from driftworks.data.units import EV_PER_HARTREE as HARTREE
from driftworks.data.units import PROPERTY_UNITS
from driftworks.errors import UserError

__all__ = ["HARTREE", "UNITS", "Target", "parse", "size_distribution"]

UNITS = {name: PROPERTY_UNITS[name] for name in ("alpha", "gap", "homo", "lumo", "mu", "cv")}

_FACTORS: dict[str, dict[str, float]] = {
    "eV": {"ev": 1.0, "mev": 1e-3, "hartree": HARTREE, "ha": HARTREE},
    "debye": {"debye": 1.0, "d": 1.0, "au": 2.541746473},
    "bohr^3": {"bohr^3": 1.0, "a0^3": 1.0, "au": 1.0, "angstrom^3": 1 / 0.529177210903**3},
    "cal/(mol K)": {
        "cal/(mol k)": 1.0, "cal/mol/k": 1.0, "j/(mol k)": 1 / 4.184, "j/mol/k": 1 / 4.184
    },
}


_NUMBER = r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)"


@dataclass(frozen=True)
class Target:
    """What is asked of one property: every molecule's value lies in [low, high], in ``unit``.

    ``each`` (n,) holds the molecules' values where the user gave them one by one.
    """

    name: str
    low: float
    high: float
    unit: str
    each: np.ndarray | None = None

    def values(self, uniform: np.ndarray) -> np.ndarray:
        """One value a molecule: the given ones, or by its keyed uniform in (0, 1)."""
        if self.each is None:
            return self.low + (self.high - self.low) * uniform
        if self.each.shape != uniform.shape:
            raise UserError(
                f"target {self.name}: {self.each.shape} values for {len(uniform)} molecules"
            )
        return self.each


def _number(name: str, value: Any) -> float:
    """A number in the property's unit, from a number or a text like '0.25 hartree'."""
    unit = UNITS.get(name, "")
    if isinstance(value, str):
        match = re.fullmatch(rf"\s*{_NUMBER}\s*(.*?)\s*", value)
        if not match:
            raise UserError(
                f"target {name}={value!r} is not a number; write e.g. {name}=4.0, "
                f"'{name}=4.0 {unit}', {name}=3.5..4.5, {name}=min or {name}=max"
            )
        number, said = match.groups()
        factors = _FACTORS.get(unit, {})
        if said and said.lower() not in factors:
            known = ", ".join(factors) or "none"
            raise UserError(f"target {name}: unknown unit {said!r}; known units are {known}")
        try:
            value = float(number) * (factors[said.lower()] if said else 1.0)
        except ValueError:
            raise UserError(f"target {name}={number!r} is not a number") from None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"target {name}={value!r} is not a number, range, 'min' or 'max'") from None
    if not math.isfinite(number):
        raise UserError(f"target {name}={value!r} is not a finite number")
    return number


def parse(targets: Mapping[str, Any] | None, ranges: Mapping[str, list[float]]) -> list[Target]:
    """Read targets as users write them; ``ranges`` are the model's [min, 1 %, 99 %, max].

    Raises `UserError` for an unknown property, unit or number; warns, with the range, about values
    outside what the model was trained on.
    """
    out = []
    for name, value in (targets or {}).items():
        if name not in ranges:
            raise UserError(
                f"unknown property {name!r}; this model can be asked for {', '.join(ranges)}"
            )
        least, low_tail, high_tail, most = ranges[name]
        unit = UNITS.get(name, "")
        each = None
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value.item()
        if isinstance(value, np.ndarray):
            try:
                each = value.astype(np.float64)
            except (TypeError, ValueError):
                raise UserError(f"target {name}: its values are not all numbers") from None
            if not np.isfinite(each).all() or each.size == 0:
                raise UserError(f"target {name}: its values are not all finite numbers")
            pair: tuple[Any, Any] = (float(each.min()), float(each.max()))
        elif isinstance(value, str) and value.strip().lower() in ("min", "max"):
            end = low_tail if value.strip().lower() == "min" else high_tail
            pair = (end, end)
        elif isinstance(value, str) and ".." in value:
            first, last = value.split("..", 1)
            bare = re.fullmatch(_NUMBER, first.strip())
            said = re.fullmatch(rf"\s*{_NUMBER}\s*(.*?)\s*", last)
            # 'a..b unit': the unit counts for both
            pair = (f"{first} {said.group(2)}" if bare and said else first, last)
        elif isinstance(value, tuple | list):
            if len(value) != 2:
                raise UserError(f"target {name}={value!r}: a range is a pair (low, high)")
            pair = (value[0], value[1])
        else:
            pair = (value, value)
        low, high = _number(name, pair[0]), _number(name, pair[1])
        if low > high:
            raise UserError(f"target {name}: the range {low:g}..{high:g} is empty")
        if low < least or high > most:
            warnings.warn(
                f"target {name} = {low:g}{'' if low == high else f'..{high:g}'} {unit} is outside "
                f"the trained range {least:.4g}..{most:.4g} {unit}; expect it to be missed",
                stacklevel=3,
            )
        out.append(Target(name, low, high, unit, each))
    return out


def _conditioned(covariance: np.ndarray) -> np.ndarray:
    """The matrix itself, or with the eigenvalues of its correlations raised to at least 0.01.

    gap = lumo - homo up to rounding: on that nearly empty axis the likelihood would compare
    rounding errors, and decide the size by them.
    """
    scale = np.sqrt(np.diag(covariance))
    scale = np.where(scale > 0, scale, 1.0)
    power, axes = np.linalg.eigh(covariance / np.outer(scale, scale))
    if power[0] >= 0.01:
        return covariance
    return (axes * power.clip(min=0.01)) @ axes.T * np.outer(scale, scale)


def size_distribution(statistics: Mapping[str, Any], names: list[str], properties: tuple[str, ...],
                      values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p(N | targets): (sizes (S,), probabilities (B, S)).

    ``statistics`` come from training (`train.size_statistics`), ``names`` are the properties asked
    for and ``values`` (B, len(names)) their values. Targets that contradict each other, such as a
    gap that is not lumo - homo, count as met to a tenth of a standard deviation.
    """
    sizes = np.asarray(statistics["sizes"])
    log_p = np.log(np.asarray(statistics["share"]))[None].repeat(len(values), 0)
    if names:
        which = [properties.index(name) for name in names]
        for column, (mean, covariance) in enumerate(
            zip(statistics["mean"], statistics["covariance"], strict=True)
        ):
            spread = _conditioned(np.asarray(covariance)[np.ix_(which, which)])
            gap = values - np.asarray(mean)[which]
            scaled = np.linalg.solve(spread, gap.T).T
            log_p[:, column] -= 0.5 * ((gap * scaled).sum(1) + np.linalg.slogdet(spread)[1])
    p = np.exp(log_p - log_p.max(1, keepdims=True))
    return sizes, p / p.sum(1, keepdims=True)
