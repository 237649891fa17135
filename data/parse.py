"""The reading of one SDF or SMILES record, as a task for `driftworks.data.isolate`."""

from __future__ import annotations

import re
from typing import Any

from driftworks.data.bonds import BondError, flat_smiles, to_arrays
from driftworks.data.isolate import Rejected

__all__ = ["parse_record"]

EMBEDDING_ATTEMPTS = 20
RELAXATION_STEPS = 500


def parse_record(record: dict[str, Any]) -> dict[str, Any]:
    """Task: ``kind`` "mol" or "smiles", ``text``, ``seed``, ``max_atoms`` -> lists of a molecule.

    Hydrogens are made explicit; coordinates of a 3D record are kept, any other record is embedded.
    Raises `Rejected` with the reason when the record is not one valid, closed-shell-describable
    molecule of RDKit.
    """
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        mol = _molecule(record["kind"], record["text"])
        if mol.GetNumAtoms() > record["max_atoms"]:
            raise Rejected(f"{mol.GetNumAtoms()} atoms, at most {record['max_atoms']} are read")
        try:
            Chem.SanitizeMol(mol)
        except ValueError as error:
            raise Rejected(f"not a valid molecule: {_short(error)}") from error
        strange = sorted({a.GetSymbol() for a in mol.GetAtoms() if not a.GetAtomicNum()})
        if strange:
            raise Rejected(f"dummy atoms or queries: {', '.join(strange)}")
        placed = _is_placed(mol)
        mol = Chem.AddHs(mol, addCoords=placed)
        if mol.GetNumAtoms() > record["max_atoms"]:
            raise Rejected(f"{mol.GetNumAtoms()} atoms, at most {record['max_atoms']} are read")
        if not placed:
            mol = _embedded(mol, record["seed"])
        try:
            charges, bonds = to_arrays(mol)
        except BondError as error:
            raise Rejected(str(error)) from error
        return {
            "numbers": [atom.GetAtomicNum() for atom in mol.GetAtoms()],
            "positions": mol.GetConformer().GetPositions().tolist(),
            "charges": charges.tolist(),
            "bonds": bonds.tolist(),
            "smiles": flat_smiles(mol),
        }


def _molecule(kind: str, text: str) -> Any:
    from rdkit import Chem

    if kind == "mol":
        try:
            mol = Chem.MolFromMolBlock(text, sanitize=False, removeHs=False, strictParsing=True)
        except Exception as error:
            raise Rejected(f"not a readable structure: {_short(error)}") from error
        if mol is None:
            raise Rejected("not a readable structure")
    else:
        options: Any = Chem.SmilesParserParams()
        options.sanitize = False
        options.removeHs = False
        if not text:
            raise Rejected("no SMILES")
        mol = Chem.MolFromSmiles(text, options)
        if mol is None:
            raise Rejected(f"not a readable SMILES: {text[:60]!r}")
    if not mol.GetNumAtoms():
        raise Rejected("a structure without atoms")
    return mol


def _is_placed(mol: Any) -> bool:
    """Has real 3D coordinates: finite, not all in the drawing plane, no two atoms in one place."""
    import numpy as np

    if not mol.GetNumConformers():
        return False
    where = mol.GetConformer().GetPositions()
    if not np.isfinite(where).all() or np.abs(where).max() > 1e4:
        raise Rejected("coordinates are not finite or beyond 10,000 angstrom")
    if len(where) == 1:
        return mol.GetConformer().Is3D()
    distance = np.linalg.norm(where[:, None] - where[None], axis=-1)
    if mol.GetConformer().Is3D() or np.ptp(where[:, 2]) > 1e-3:
        if distance[np.triu_indices(len(where), 1)].min() < 0.2:
            raise Rejected("two atoms lie within 0.2 angstrom of each other")
        return True
    return False


def _embedded(mol: Any, seed: int) -> Any:
    """The molecule with coordinates by ETKDG, relaxed with MMFF94 where it knows all atoms."""
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    settings: Any = rdDistGeom.ETKDGv3()
    settings.randomSeed = seed & 0x7FFFFFFF
    settings.maxIterations = EMBEDDING_ATTEMPTS
    if rdDistGeom.EmbedMolecule(mol, settings) < 0:
        settings.useRandomCoords = True
        if rdDistGeom.EmbedMolecule(mol, settings) < 0:
            raise Rejected("no 3D coordinates were found")
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        rdForceFieldHelpers.MMFFOptimizeMolecule(mol, maxIters=RELAXATION_STEPS)
    return mol


def _short(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:120] or type(error).__name__
