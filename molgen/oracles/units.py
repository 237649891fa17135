"""Atomic units in the units that chemists read (CODATA 2018)."""

from __future__ import annotations

__all__ = ["BOHR", "DEBYE", "HARTREE"]

#: 1 hartree [eV].
HARTREE = 27.211386245988
#: 1 bohr [angstrom].
BOHR = 0.529177210903
#: 1 e bohr [debye]; 1 debye is 1e-21 C m^2/s / c, exactly.
DEBYE = 2.541746473
