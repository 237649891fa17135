"""Units of the properties that molecule tables carry.

Orbital energies (``homo``, ``lumo``, ``gap``) are in eV everywhere; total energies stay in Hartree,
lengths in angstrom, polarisabilities in bohr^3, dipoles in debye, heat capacities in cal/(mol K).
The Hartree is the CODATA 2018 value, E_h = 27.211386245988(53) eV.
"""

from __future__ import annotations

import re

from driftworks.errors import UserError

__all__ = ["EV_PER_HARTREE", "PROPERTY_UNITS", "conversion"]

EV_PER_HARTREE = 27.211386245988

PROPERTY_UNITS: dict[str, str] = {
    "mu": "debye",
    "alpha": "bohr^3",
    "homo": "eV",
    "lumo": "eV",
    "gap": "eV",
    "r2": "bohr^2",
    "zpve": "hartree",
    "u0": "hartree",
    "u298": "hartree",
    "h298": "hartree",
    "g298": "hartree",
    "cv": "cal/(mol K)",
    "A": "GHz",
    "B": "GHz",
    "C": "GHz",
}
"""Canonical unit of each property that QM9 defines."""

_BOHR_PER_ANGSTROM = 1.0 / 0.529177210903  # CODATA 2018
_DEBYE_PER_EBOHR = 2.541746473  # e a0 in debye, CODATA 2018

# factor to the first unit of each family; spellings are lower case without spaces
_FAMILIES: tuple[dict[str, float], ...] = (
    {
        "ev": 1.0,
        "mev": 1e-3,
        "hartree": EV_PER_HARTREE,
        "ha": EV_PER_HARTREE,
        "eh": EV_PER_HARTREE,
        "kcal/mol": EV_PER_HARTREE / 627.5094740631,
        "kj/mol": EV_PER_HARTREE / 2625.4996394799,
    },
    {"debye": 1.0, "d": 1.0, "ebohr": _DEBYE_PER_EBOHR, "e*bohr": _DEBYE_PER_EBOHR},
    {"bohr^3": 1.0, "a0^3": 1.0, "angstrom^3": _BOHR_PER_ANGSTROM**3, "a^3": _BOHR_PER_ANGSTROM**3},
    {"bohr^2": 1.0, "a0^2": 1.0, "angstrom^2": _BOHR_PER_ANGSTROM**2, "a^2": _BOHR_PER_ANGSTROM**2},
    {"cal/(molk)": 1.0, "cal/mol/k": 1.0, "j/(molk)": 1 / 4.184, "j/mol/k": 1 / 4.184},
    {"ghz": 1.0, "mhz": 1e-3},
)


def _normalise(unit: str) -> str:
    return re.sub(r"\s+", "", unit.lower().replace("å", "angstrom").replace("**", "^"))


def conversion(unit: str, to: str) -> float:
    """Factor that turns a value in `unit` into a value in `to`.

    Equal names convert with 1, whatever they mean. Raises `UserError` for a pair of units that are
    not known to measure the same quantity.
    """
    a, b = _normalise(unit), _normalise(to)
    if a == b:
        return 1.0
    for family in _FAMILIES:
        if a in family and b in family:
            return family[a] / family[b]
    matching = [sorted(family) for family in _FAMILIES if b in family]
    choices = f"; known for it: {', '.join(matching[0])}" if matching else ""
    raise UserError(f"cannot convert unit {unit!r} to {to!r}{choices}")
