"""The basis set behind QM9: Gaussian's 6-31G(2df,p), with six Cartesian d and seven pure f.

The tables that go by this name elsewhere (PySCF, Basis Set Exchange) carry the polarisation
exponents of 6-311G and spherical d shells, and miss QM9's energies by millihartrees. Gaussian
used 6-31G plus d exponents 1.6 and 0.4 on C, N, O, F, an f exponent per element, and p 1.1 on H
(Basis Set Exchange issue 330 lists the same).

A Cartesian d shell is a spherical one plus r^2 exp(-a r^2), which is -d/da of an s Gaussian. With
PySCF's spherical shells we write it as the central difference

    r^2 e^{-a r^2}  ~  (e^{-a(1-h) r^2} - e^{-a(1+h) r^2}) / (2 h a),        h = 0.01,

one contracted s shell of two primitives, whose shape is off by O(h^2): 7e-5 in norm, less than a
microhartree in energy.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ELEMENTS", "basis"]

#: Atomic number -> symbol of the elements that QM9 contains.
ELEMENTS = {1: "H", 6: "C", 7: "N", 8: "O", 9: "F"}

_P_HYDROGEN = 1.1
_D = (1.6, 0.4)
_F = {"C": 0.8, "N": 1.0, "O": 1.4, "F": 1.85}
_STEP = 0.01


def basis(symbols: set[str]) -> dict[str, list[Any]]:
    """PySCF basis of the given elements, for a molecule with spherical functions.

    Raises:
        KeyError: an element that QM9 does not contain.
    """
    from pyscf.gto.basis import load

    table = {}
    for symbol in symbols:
        shells = list(load("6-31g", symbol))
        if symbol == "H":
            shells.append([1, [_P_HYDROGEN, 1.0]])
        else:
            shells += [[2, [a, 1.0]] for a in _D]
            shells.append([3, [_F[symbol], 1.0]])
            shells += [_trace_of_d(a) for a in _D]
        table[symbol] = shells
    return table


def _trace_of_d(exponent: float) -> list[Any]:
    """The s-like function r^2 exp(-exponent r^2) as a PySCF shell.

    Contraction coefficients refer to normalised primitives, whose norms go as exponent^(3/4).
    """
    low, high = 1 - _STEP, 1 + _STEP
    return [0, [exponent * low, low**-0.75], [exponent * high, -(high**-0.75)]]
