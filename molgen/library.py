"""A library: the molecules one request produced, the ones it failed to produce, and where from.

A request for n molecules yields `len(library)` molecules and `sum(failures.values())` counted
failures; together they are `requested`, the denominator of every figure. A row keeps the global
index of its sample, so that row, seed and weights identify a molecule.

Files are the subject of `driftworks.molgen.files`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from driftworks.errors import UserError
from driftworks.molgen.molecule import Molecules
from driftworks.molgen.validity import Verdict, check

if TYPE_CHECKING:
    from rdkit.Chem import Mol

__all__ = ["BadRecord", "Library"]

#: Names that mean something else in a file; a property must have another.
ARRAYS = ("numbers", "positions", "charges", "bonds")
RESERVED = ("index", "seed", "smiles", "strict", "reason", "requested", "failures", "provenance")


@dataclass(frozen=True)
class BadRecord:
    """A record that did not become a molecule: its number in the file (from 1) and why."""

    record: int
    reason: str


@dataclass(frozen=True, eq=False)
class Library:
    """B molecules, what was asked of them, and what was lost on the way.

    Attributes
    ----------
    molecules: the B molecules, valid or not
    targets: name -> (B,) float64, the value each molecule was steered to; a number serves for all
    requested: molecules asked for; at least B plus all failures, and that by default
    seed: of the request, None when unknown
    failures: reason -> how many requested molecules are missing for it
    provenance: JSON-able facts: model, weights hash, versions, settings
    indices: (B,) int64, the global sample index of each molecule; 0..B-1 by default
    properties: name -> (B,) float64, what is known about each molecule (NaN = unknown)
    bad_records: what could not be read, when the library came from a file

    Raises `UserError` where lengths or counts do not fit together.
    """

    molecules: Molecules
    targets: Mapping[str, Any] = field(default_factory=dict)
    requested: int | None = None
    seed: int | None = None
    failures: Mapping[str, int] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    indices: Any = None
    properties: Mapping[str, Any] = field(default_factory=dict)
    bad_records: tuple[BadRecord, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.molecules)

        def keep(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        for name in self.properties:
            if name in RESERVED or name.startswith("target_") or name in ARRAYS:
                raise UserError(f"a property cannot be called {name!r}; that name is taken")
        keep("targets", {k: _column(k, v, count) for k, v in self.targets.items()})
        keep("properties", {k: _column(k, v, count) for k, v in self.properties.items()})
        keep("failures", {k: int(v) for k, v in self.failures.items() if v})
        keep("provenance", dict(self.provenance))
        indices = np.arange(count) if self.indices is None else np.asarray(self.indices)
        if indices.shape != (count,):
            raise UserError(f"{indices.shape} indices for {count} molecules")
        keep("indices", indices.astype(np.int64))
        accounted = count + sum(self.failures.values())
        if self.requested is None:
            keep("requested", accounted)
        elif self.requested < accounted:
            raise UserError(
                f"requested = {self.requested}, but {count} molecules and "
                f"{accounted - count} failures are accounted for"
            )

    def __len__(self) -> int:
        return len(self.molecules)

    def __iter__(self) -> Iterator[Mol]:
        """RDKit molecules as `mol` gives them."""
        return (self.mol(i) for i in range(len(self)))

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> Library:
        """The chosen rows as a library of their own, in which nothing is missing."""
        if isinstance(index, (int, np.integer)):
            raise TypeError("a single molecule is library.mol(i); library[[i]] is a library of one")
        return self._rows(np.arange(len(self))[index], requested=None, failures={})

    def __repr__(self) -> str:
        strict = sum(v.strict for v in self.verdicts)
        parts = [f"{len(self)} molecules of {self.requested} requested", f"{strict} strictly valid"]
        if self.failures:
            lost = ", ".join(f"{k} {v}" for k, v in sorted(self.failures.items()))
            parts.append(f"failures: {lost}")
        for name, values in self.targets.items():
            low, high = np.nanmin(values, initial=np.inf), np.nanmax(values, initial=-np.inf)
            if low <= high:
                parts.append(f"{name} = {low:g}" if low == high else f"{name} = {low:g}..{high:g}")
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        return f"Library({'; '.join(parts)})"

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """`check` of every molecule, asked once."""
        return tuple(check(mol) for mol in self._raw)

    @cached_property
    def _raw(self) -> tuple[Mol, ...]:
        """The molecules as `Molecules.to_rdkit` gives them: not to be changed, not to be shown."""
        return tuple(self.molecules.rdkit_mols())

    def mol(self, index: int) -> Mol:
        """Molecule `index` with its target values, index and verdict as RDKit properties.

        Sanitised, with stereochemistry from its coordinates, where that changes nothing of what
        was generated; otherwise as it stands, fit to be written and drawn but not more.
        """
        from rdkit import Chem, rdBase

        verdict = self.verdicts[index]
        mol = Chem.Mol(self._raw[index])
        with rdBase.BlockLogs():
            if verdict.rdkit and verdict.valence:
                Chem.SanitizeMol(mol)
                if verdict.reason != "coordinates":
                    Chem.AssignStereochemistryFrom3D(mol)
            else:
                mol.UpdatePropertyCache(strict=False)
                Chem.FastFindRings(mol)
        for name, value in self.row(index).items():
            mol.SetProp(name, str(value))
        return mol

    def smiles(self, stereo: bool = False) -> list[str | None]:
        """Canonical SMILES, one a molecule; None for what RDKit cannot sanitise as it stands."""
        if not stereo:
            return list(self._flat_smiles)
        return [_smiles(self.mol(i), v, stereo=True) for i, v in enumerate(self.verdicts)]

    @cached_property
    def _flat_smiles(self) -> tuple[str | None, ...]:
        pairs = zip(self._raw, self.verdicts, strict=True)
        return tuple(_smiles(mol, verdict, stereo=False) for mol, verdict in pairs)

    def strict(self) -> Library:
        """The strictly valid molecules; the others join the failures under their reasons."""
        failures = dict(self.failures)
        for verdict in self.verdicts:
            if not verdict.strict:
                failures[verdict.reason] = failures.get(verdict.reason, 0) + 1
        keep = np.flatnonzero([v.strict for v in self.verdicts])
        return self._rows(keep, requested=self.requested, failures=failures)

    def with_properties(self, **properties: Any) -> Library:
        """The same library knowing more: name -> number or (B,) values."""
        return replace(self, properties={**self.properties, **properties})

    def _rows(
        self, rows: np.ndarray, requested: int | None, failures: Mapping[str, int]
    ) -> Library:
        return replace(
            self,
            molecules=self.molecules[rows],
            targets={k: v[rows] for k, v in self.targets.items()},
            properties={k: v[rows] for k, v in self.properties.items()},
            indices=self.indices[rows],
            requested=requested,
            failures=failures,
        )

    @staticmethod
    def cat(libraries: Sequence[Library]) -> Library:
        """Libraries of one request (same seed and provenance), one after the other."""
        if not libraries:
            return Library(Molecules.empty())
        first = libraries[0]
        failures: dict[str, int] = {}
        for library in libraries:
            for reason, count in library.failures.items():
                failures[reason] = failures.get(reason, 0) + count

        def columns(kind: str) -> dict[str, np.ndarray]:
            names = dict.fromkeys(name for x in libraries for name in getattr(x, kind))
            return {
                name: np.concatenate(
                    [getattr(x, kind).get(name, np.full(len(x), np.nan)) for x in libraries]
                )
                for name in names
            }

        return Library(
            molecules=Molecules.cat([x.molecules for x in libraries]),
            targets=columns("targets"),
            requested=sum(x.requested or 0 for x in libraries),
            seed=first.seed,
            failures=failures,
            provenance=first.provenance,
            indices=np.concatenate([x.indices for x in libraries]),
            properties=columns("properties"),
            bad_records=tuple(bad for x in libraries for bad in x.bad_records),
        )

    @staticmethod
    def from_rdkit(mols: Iterable[Mol | None], requested: int | None = None) -> Library:
        """RDKit molecules with coordinates; those that cannot be taken are counted failures."""
        failures: dict[str, int] = {}
        molecules = Molecules.from_rdkit(mols, failures)
        return Library(molecules, requested=requested, failures=failures)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the library in the form its suffix names, whole or not at all.

        Raises `UserError` for another suffix and for a place that cannot be written.
        """
        from driftworks.molgen.files import write

        return write(self, Path(path))

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Library:
        """Read a library, ours or a foreign SDF / CSV / SMILES file.

        Records that are no molecule are counted in `failures` and listed in `bad_records`.
        Raises `UserError` when the file is missing, of another kind, or holds no molecule at all.
        """
        from driftworks.molgen.files import read

        return read(Path(path))

    def row(self, index: int) -> dict[str, Any]:
        """What a file says of molecule `index` beside its structure; NaN values are left out."""
        verdict = self.verdicts[index]
        row: dict[str, Any] = {"index": int(self.indices[index])}
        if self.seed is not None:
            row["seed"] = self.seed
        row["strict"], row["reason"] = int(verdict.strict), verdict.reason
        named = [(f"target_{k}", v) for k, v in self.targets.items()] + [*self.properties.items()]
        return row | {k: float(v[index]) for k, v in named if not np.isnan(v[index])}


def _column(name: str, value: Any, count: int) -> np.ndarray:
    array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name}: {value!r} is no number and no array of {count} numbers")
    if array.ndim == 0:
        array = np.full(count, float(array))
    if array.shape != (count,):
        raise UserError(f"{name} has shape {array.shape} for {count} molecules")
    return array.astype(np.float64)


def _smiles(mol: Mol, verdict: Verdict, stereo: bool) -> str | None:
    """Canonical SMILES with implicit hydrogens, or None when RDKit will not have the molecule.

    None too where sanitisation would repair it into another molecule (five-valent nitrogen).
    """
    from rdkit import Chem, rdBase

    if not verdict.rdkit:
        return None
    with rdBase.BlockLogs():
        try:
            copy = Chem.Mol(mol)
            before = [a.GetFormalCharge() for a in copy.GetAtoms()]
            Chem.SanitizeMol(copy)
            if before != [a.GetFormalCharge() for a in copy.GetAtoms()]:
                return None
            return Chem.MolToSmiles(Chem.RemoveHs(copy), isomericSmiles=stereo)
        except (Chem.MolSanitizeException, RuntimeError, ValueError):
            return None
