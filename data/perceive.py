"""The bond perception of one QM9 record, as a task for `driftworks.data.isolate`.

The perceived molecule is compared with the SMILES that came with the geometry (without stereo):
status 0 the same molecule, 1 another resonance form, in which case the form of the SMILES is put on
the atoms, 2 another connectivity. A bond that a strained cage stretches just beyond the cut-off
(seven molecules of QM9, by up to 2.5 %) is accepted when the cut-offs, lengthened by 3 %, give back
the SMILES exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftworks.data.bonds import Bonded, BondError, connectivity, flat_smiles, perceive, to_arrays
from driftworks.data.isolate import Rejected

__all__ = ["PERCEIVE", "compare", "perceive_record"]

PERCEIVE = f"{__name__}:_task"
STRETCH = 1.03


def perceive_record(
    numbers: NDArray[Any], positions: NDArray[Any], reference: str | None = None
) -> dict[str, Any]:
    """The argument of the task `PERCEIVE` for one molecule."""
    return {"numbers": numbers.tolist(), "positions": positions.tolist(), "reference": reference}


def compare(numbers: NDArray[Any], positions: NDArray[Any], reference: str) -> tuple[Bonded, int]:
    """Bonds of a geometry and their status against a SMILES of the same atoms.

    numbers: (N,); positions: (N, 3) [angstrom]. Raises `BondError` when there is no Lewis
    structure.
    """
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(reference)
        wanted = flat_smiles(mol) if mol is not None else ""
        failure: BondError | None = None
        found: Bonded | None = None
        try:
            found = perceive(numbers, positions)
        except BondError as error:
            failure = error
        if mol is None and found is not None:
            return found, 2
        if found is not None and found.smiles == wanted:
            return found, 0
        try:
            longer = perceive(numbers, positions, stretch=STRETCH)
        except BondError:
            pass
        else:
            if longer.smiles == wanted:
                return longer, 0
        if found is None:
            raise failure or BondError("no Lewis structure")
        resonant = _in_form_of(mol, numbers, positions)
        if resonant is not None:
            return Bonded(*resonant, wanted), 1
        return found, 2


def _in_form_of(
    mol: Any, numbers: NDArray[Any], positions: NDArray[Any]
) -> tuple[NDArray[np.int8], NDArray[np.int16]] | None:
    """Charges and bonds of `mol` on the atoms of the geometry when the skeletons are the same."""
    from rdkit import Chem

    def skeleton(elements: list[int], pairs: list[list[int]]) -> Any:
        bare = Chem.RWMol()
        for number in elements:
            atom = Chem.Atom(number)
            atom.SetNoImplicit(True)
            bare.AddAtom(atom)
        for i, j in pairs:
            bare.AddBond(i, j, Chem.BondType.SINGLE)
        return bare.GetMol()

    full = Chem.AddHs(mol)
    charges, bonds = to_arrays(full)
    theirs = skeleton([atom.GetAtomicNum() for atom in full.GetAtoms()], bonds[:, :2].tolist())
    ours = skeleton(numbers.tolist(), connectivity(numbers, positions).tolist())
    if ours.GetNumAtoms() != theirs.GetNumAtoms() or ours.GetNumBonds() != theirs.GetNumBonds():
        return None
    match = np.array(ours.GetSubstructMatch(theirs), int)  # their atom k is our atom match[k]
    if len(match) != len(numbers):
        return None
    moved = np.zeros(len(numbers), np.int8)
    moved[match] = charges
    rows = np.column_stack([match[bonds[:, 0]], match[bonds[:, 1]], bonds[:, 2]])
    return moved, rows.astype(np.int16)


def _task(record: dict[str, Any]) -> dict[str, Any]:
    numbers = np.array(record["numbers"], np.int64)
    positions = np.array(record["positions"], np.float64)
    try:
        if record["reference"] is None:
            found, status = perceive(numbers, positions), 0
        else:
            found, status = compare(numbers, positions, record["reference"])
    except BondError as error:
        raise Rejected(str(error)) from error
    return {
        "smiles": found.smiles,
        "charges": found.charges.tolist(),
        "bonds": found.bonds.tolist(),
        "status": status,
    }
