"""Drug-like 3D molecules out of the PDB's Chemical Component Dictionary.

biotite carries the dictionary (wwPDB, CC0) inside its package: 49,000 ligands, residues and buffer
molecules with bonds, formal charges and idealised coordinates with hydrogens, so nothing is
downloaded. Kept are components with carbon, of the wanted elements and size, with coordinates for
every atom, that form one closed-shell molecule. The coordinates are of force-field quality.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftworks.data.bonds import BondError, flat_smiles, to_arrays
from driftworks.data.cache import cache_folder
from driftworks.data.isolate import Rejected, default_workers, isolated
from driftworks.data.progress import progress_bar
from driftworks.data.table import Failure, Molecule, MoleculeTable
from driftworks.errors import UserError

__all__ = ["ELEMENTS", "ccd", "molecule_from_parts"]

ELEMENTS = ("H", "B", "C", "N", "O", "F", "P", "S", "Cl", "Br", "I")
SOURCE = "PDB Chemical Component Dictionary (wwPDB, CC0), ideal coordinates"
_ORDERS = {"SING": "SINGLE", "DOUB": "DOUBLE", "TRIP": "TRIPLE"}
_TASK = f"{__name__}:_check"


def ccd(
    limit: int | None = None,
    *,
    max_heavy: int = 50,
    min_heavy: int = 1,
    elements: Sequence[str] = ELEMENTS,
    workers: int | None = None,
    progress: bool = True,
    cache: bool = True,
) -> MoleculeTable:
    """Molecules of the Chemical Component Dictionary, in the order of their identifiers.

    Parameters
    ----------
    limit: only the first so many suitable components; a few hundred take seconds, all of them
        minutes
    max_heavy, min_heavy: bounds on the number of atoms other than hydrogen
    elements: symbols allowed
    workers: processes; by default one a core
    progress: show a bar
    cache: keep the table in the cache folder, and take it from there the next time

    Components that had the right elements and size but are no usable molecule are in ``failures``
    with their row of the dictionary. Raises `UserError` for an unknown element, impossible bounds,
    or when biotite is not installed.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}")
    if not 0 <= min_heavy <= max_heavy:
        raise UserError(f"no molecule has between {min_heavy} and {max_heavy} heavy atoms")
    unknown = [symbol for symbol in elements if symbol not in ELEMENTS]
    if unknown:
        raise UserError(f"unknown element {unknown[0]!r}; choose from {', '.join(ELEMENTS)}")
    try:
        release = version("biotite")
    except PackageNotFoundError as error:
        raise UserError("the component dictionary needs biotite: pip install biotite") from error
    options = [release, limit, max_heavy, min_heavy, sorted(elements)]
    digest = hashlib.sha256(json.dumps(options).encode()).hexdigest()[:16]
    stored = cache_folder() / f"ccd-1-{digest}"
    if cache and (stored / "table.json").is_file():
        return MoleculeTable.load(stored)
    table = _build(limit, max_heavy, min_heavy, elements, workers or default_workers(), progress)
    if cache:
        table.save(stored)
    return table


def _build(
    limit: int | None,
    max_heavy: int,
    min_heavy: int,
    elements: Sequence[str],
    workers: int,
    progress: bool,
) -> MoleculeTable:
    dictionary = _Dictionary()
    suitable = dictionary.suitable(max_heavy, min_heavy, elements)
    failures: list[Failure] = []
    molecules: list[Molecule] = []
    parts = (dictionary.parts(k) for k in suitable)
    outcomes = isolated(_TASK, parts, workers=workers, imports=["rdkit.Chem"])
    with progress_bar("reading chemical components", show=progress) as update:
        for outcome in outcomes:
            k = suitable[outcome.index]
            name = f"ccd:{dictionary.ids[k]}"
            if outcome.reason is not None:
                failures.append(Failure(k + 1, outcome.reason, name))
            else:
                molecules.append(molecule_from_parts(name, outcome.value))
            update(len(molecules) if limit else outcome.index + 1, limit or len(suitable))
            if len(molecules) == limit:
                break
    return MoleculeTable.from_molecules(molecules, source=SOURCE, failures=failures)


class _Dictionary:
    """The atom and bond columns of the dictionary, and where each component begins."""

    def __init__(self) -> None:
        from biotite.structure.info import get_ccd

        block = get_ccd()
        atoms, bonds = block["chem_comp_atom"], block["chem_comp_bond"]
        self._symbol = _raw(atoms, "type_symbol")
        self._name = _raw(atoms, "atom_id")
        self._charge = _raw(atoms, "charge")
        axes = [f"pdbx_model_Cartn_{axis}_ideal" for axis in "xyz"]
        self._position = np.stack([_raw(atoms, axis) for axis in axes], axis=1)
        self._placed = np.logical_and.reduce([_present(atoms, axis) for axis in axes])
        self._ends = np.stack([_raw(bonds, f"atom_id_{k}") for k in (1, 2)], axis=1)
        self._order = _raw(bonds, "value_order")
        self.ids, self._atoms = _runs(_raw(atoms, "comp_id"))
        with_bonds, starts = _runs(_raw(bonds, "comp_id"))
        self._bonds = {
            name: (int(starts[k]), int(starts[k + 1])) for k, name in enumerate(with_bonds)
        }

    def suitable(self, max_heavy: int, min_heavy: int, elements: Sequence[str]) -> list[int]:
        """Rows of components of the right elements and size, with carbon, in order of their ids."""
        starts = self._atoms[:-1]
        allowed = np.isin(self._symbol, [symbol.upper() for symbol in elements])
        heavy = np.add.reduceat(self._symbol != "H", starts, dtype=np.int64)
        keep = np.logical_and.reduceat(allowed, starts)
        keep &= np.logical_or.reduceat(self._symbol == "C", starts)
        keep &= (heavy >= min_heavy) & (heavy <= max_heavy)
        return sorted(np.flatnonzero(keep).tolist(), key=lambda k: self.ids[k])

    def parts(self, k: int) -> dict[str, Any]:
        """Component k in plain lists, for the task `_check`."""
        atoms = slice(int(self._atoms[k]), int(self._atoms[k + 1]))
        bonds = slice(*self._bonds.get(self.ids[k], (0, 0)))
        number = {name: i for i, name in enumerate(self._name[atoms].tolist())}
        return {
            "symbols": self._symbol[atoms].tolist(),
            "charges": self._charge[atoms].tolist(),
            "positions": self._position[atoms].tolist(),
            "placed": bool(self._placed[atoms].all()),
            "bonds": [
                (number.get(a, -1), number.get(b, -1), order)
                for (a, b), order in zip(
                    self._ends[bonds].tolist(), self._order[bonds].tolist(), strict=True
                )
            ],
        }


def _raw(category: Any, name: str) -> NDArray[Any]:
    return np.asarray(category[name].data.array)


def _present(category: Any, name: str) -> NDArray[np.bool_]:
    column = category[name]
    if column.mask is None:
        return np.ones(len(column.data.array), bool)
    return np.asarray(column.mask.array) == 0  # 1 and 2 are "." and "?"


def _runs(column: NDArray[Any]) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the runs of equal entries, and where each begins, with the end appended."""
    starts = np.concatenate([[0], np.flatnonzero(column[1:] != column[:-1]) + 1, [len(column)]])
    return column[starts[:-1]].tolist(), starts


def molecule_from_parts(name: str, parts: dict[str, Any]) -> Molecule:
    """A `Molecule` from the lists ``numbers, positions, charges, bonds`` and its ``smiles``."""
    return Molecule(
        id=name,
        smiles=parts["smiles"],
        numbers=np.array(parts["numbers"], np.uint8),
        positions=np.array(parts["positions"], np.float32).reshape(-1, 3),
        charges=np.array(parts["charges"], np.int8),
        bonds=np.array(parts["bonds"], np.int16).reshape(-1, 3),
        properties=parts.get("properties", {}),
    )


def _check(parts: dict[str, Any]) -> dict[str, Any]:
    """Task: a component as a molecule, or the reason why it is none."""
    from rdkit import Chem, rdBase

    if not parts["placed"]:
        raise Rejected("an atom has no ideal coordinates")
    mol = Chem.RWMol()
    for symbol, charge in zip(parts["symbols"], parts["charges"], strict=True):
        atom = Chem.Atom(symbol.capitalize())
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for i, j, order in parts["bonds"]:
        if i < 0 or j < 0 or order not in _ORDERS:
            raise Rejected(f"bond of order {order} or to an unknown atom")
        mol.AddBond(i, j, getattr(Chem.BondType, _ORDERS[order]))
    with rdBase.BlockLogs():
        try:
            Chem.SanitizeMol(mol)
            charges, bonds = to_arrays(mol)
            smiles = flat_smiles(mol)
        except (BondError, ValueError) as error:
            reason = re.sub(r"\s+", " ", str(error)).strip()[:120]
            raise Rejected(f"not a valid molecule: {reason}") from error
    pieces = len(Chem.GetMolFrags(mol))
    if pieces > 1:
        raise Rejected(f"{pieces} separate pieces")
    if any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()):
        raise Rejected("unpaired electrons, or hydrogens are missing")
    return {
        "numbers": [atom.GetAtomicNum() for atom in mol.GetAtoms()],
        "positions": parts["positions"],
        "charges": charges.tolist(),
        "bonds": bonds.tolist(),
        "smiles": smiles,
    }
