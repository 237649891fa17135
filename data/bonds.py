"""Bonds and formal charges from atomic numbers and positions alone.

Two atoms are joined when they are closer than a cut-off of their pair of elements; the orders and
charges then follow from RDKit's valence search on that given graph. The cut-offs were fixed on QM9,
where they give back 130,606 of the 130,831 characterised molecules; RDKit's own `DetermineBonds`
fails on one in twenty because it also joins the 1,3-carbons of strained rings.

The search can take very long on an unlucky graph (rdkit issues 7922, 8006, 9227): call `perceive`
through `driftworks.data.isolate` for anything that is not known to be harmless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "CUTOFFS",
    "BondError",
    "Bonded",
    "connectivity",
    "flat_smiles",
    "perceive",
    "to_arrays",
]

CUTOFFS: dict[tuple[int, int], float] = {
    (1, 6): 1.35,
    (1, 7): 1.35,
    (1, 8): 1.30,
    (1, 9): 1.25,
    (6, 6): 1.73,
    (6, 7): 1.78,
    (6, 8): 1.78,
    (6, 9): 1.78,
    (7, 7): 1.73,
    (7, 8): 1.85,
    (7, 9): 1.78,
    (8, 8): 1.80,
    (8, 9): 1.78,
    (9, 9): 1.75,
}
"""Pair of atomic numbers -> distance [angstrom] below which they are bonded; H-H never is."""

ELEMENTS = frozenset({1, 6, 7, 8, 9})
MAX_ITERATIONS = 100_000  # valence combinations; the slowest QM9 molecule needs far fewer

_CUTOFF = np.zeros((10, 10))
for (_a, _b), _length in CUTOFFS.items():
    _CUTOFF[_a, _b] = _CUTOFF[_b, _a] = _length


class BondError(ValueError):
    """No Lewis structure was found for the geometry."""


@dataclass(frozen=True, eq=False)
class Bonded:
    """`charges` (N,) int8, `bonds` (E, 3) int16 rows (i, j, order 1..3), `smiles` without stereo"""

    charges: NDArray[np.int8]
    bonds: NDArray[np.int16]
    smiles: str


def connectivity(
    numbers: ArrayLike, positions: ArrayLike, stretch: float = 1.0
) -> NDArray[np.int64]:
    """Bonded pairs (E, 2), i < j, by `CUTOFFS` times `stretch`.

    numbers: (N,); positions: (N, 3) [angstrom]. Raises `BondError` for an element without cut-offs.
    """
    z = np.asarray(numbers, np.int64)
    x = np.asarray(positions, np.float64)
    strange = sorted(set(z.tolist()) - ELEMENTS)
    if strange:
        raise BondError(f"no bond lengths for atomic numbers {strange}")
    if not np.isfinite(x).all():
        raise BondError("positions are not finite")
    square = ((x[:, None] - x[None]) ** 2).sum(-1)
    near = np.triu(square < (stretch * _CUTOFF[z[:, None], z[None]]) ** 2, k=1)
    return np.argwhere(near)


def perceive(
    numbers: ArrayLike, positions: ArrayLike, charge: int = 0, stretch: float = 1.0
) -> Bonded:
    """Bond orders and formal charges of one molecule with all its hydrogens.

    numbers: (N,); positions: (N, 3) [angstrom]; charge: of the whole molecule; stretch: factor on
    the cut-offs. Raises `BondError` when the atoms are not all connected, or no closed-shell Lewis
    structure of that charge fits the connectivity.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDetermineBonds

    z = np.asarray(numbers, np.int64)
    pairs = connectivity(z, positions, stretch)
    mol = Chem.RWMol()
    for number in z.tolist():
        atom = Chem.Atom(number)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for i, j in pairs.tolist():
        mol.AddBond(i, j, Chem.BondType.SINGLE)
    fragments = len(Chem.GetMolFrags(mol))
    if fragments != 1:
        raise BondError(f"no Lewis structure: the atoms form {fragments} separate pieces")
    with rdBase.BlockLogs():
        try:
            rdDetermineBonds.DetermineBondOrders(
                mol,
                charge=charge,
                allowChargedFragments=True,
                embedChiral=False,
                maxIterations=MAX_ITERATIONS,
            )
            Chem.SanitizeMol(mol)
        except (ValueError, RuntimeError) as error:
            raise BondError(f"no Lewis structure: {_first_line(error)}") from error
        radicals = sum(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())
        if radicals:
            raise BondError(f"no Lewis structure: {radicals} unpaired electrons")
        if Chem.GetFormalCharge(mol) != charge:
            raise BondError(f"no Lewis structure of charge {charge}")
        charges, bonds = to_arrays(mol)
        return Bonded(charges, bonds, flat_smiles(mol))


def to_arrays(mol: Any) -> tuple[NDArray[np.int8], NDArray[np.int16]]:
    """Formal charges (N,) and kekulised bonds (E, 3) of an RDKit molecule, which is left as it was.

    Raises `BondError` for an order other than 1, 2, 3 (dative, quadruple).
    """
    from rdkit import Chem

    mol = Chem.Mol(mol)
    try:
        Chem.Kekulize(mol, clearAromaticFlags=True)
    except ValueError as error:
        raise BondError(_first_line(error)) from error
    rows = []
    for bond in mol.GetBonds():
        order = bond.GetBondTypeAsDouble()
        if order not in (1.0, 2.0, 3.0) or bond.GetBondType() == Chem.BondType.DATIVE:
            raise BondError(f"bond type {bond.GetBondType()} is not single, double or triple")
        rows.append((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), int(order)))
    charges = np.array([atom.GetFormalCharge() for atom in mol.GetAtoms()], np.int8)
    return charges, np.array(rows, np.int16).reshape(-1, 3)


def flat_smiles(mol: Any) -> str:
    """Canonical SMILES without hydrogens and stereo of a sanitised RDKit molecule."""
    from rdkit import Chem

    return Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
