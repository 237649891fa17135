"""One table for many molecules: flat columns and offsets.

Molecule i owns the atoms ``atom_offsets[i]:atom_offsets[i+1]`` and the bonds
``bond_offsets[i]:bond_offsets[i+1]``; bond rows are (i, j, order) with atom numbers local to the
molecule. A gather of molecules is therefore a gather of flat rows and nothing is padded.

On disk a table is either one ``.npz`` (compressed, checked by CRC) or a folder of ``.npy`` columns
that are memory-mapped when read. Strings are stored as UTF-8 bytes joined by newlines, the rest of
the description as JSON, so neither form can hold a pickle. Both are written beside their final name
and renamed into place.
"""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from driftworks.errors import UserError

__all__ = ["SPLITS", "Failure", "Molecule", "MoleculeTable"]

SPLITS: dict[str, int] = {"train": 0, "valid": 1, "test": 2, "none": -1}

FORMAT = "driftworks-molecules-1"
_MANIFEST = "table.json"
_COLUMNS: dict[str, Any] = {
    "numbers": np.uint8,
    "positions": np.float32,
    "charges": np.int8,
    "atom_offsets": np.int64,
    "bonds": np.int16,
    "bond_offsets": np.int64,
    "split": np.int8,
    "status": np.int8,
    "uncharacterized": np.bool_,
}


class Failure(NamedTuple):
    """A record that did not become a whole molecule: its number in the source (from 1) and why."""

    record: int
    reason: str
    name: str = ""


@dataclass(frozen=True, eq=False)
class Molecule:
    """One row: arrays of N atoms and E bonds.

    `numbers` (N,) uint8, `positions` (N, 3) float32 [angstrom], `charges` (N,) int8,
    `bonds` (E, 3) int16 rows (i, j, order), `properties` in the table's units.
    """

    id: str
    smiles: str
    numbers: NDArray[np.uint8]
    positions: NDArray[np.float32]
    charges: NDArray[np.int8]
    bonds: NDArray[np.int16]
    properties: dict[str, float]

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True, eq=False)
class MoleculeTable:
    """M molecules with A atoms and E bonds in all.

    Attributes
    ----------
    numbers: (A,) uint8 atomic numbers, hydrogens explicit
    positions: (A, 3) float32 [angstrom]
    charges: (A,) int8 formal charges
    atom_offsets: (M+1,) int64
    bonds: (E, 3) int16 local (i, j, order), kekulised, order 1..3, each bond once
    bond_offsets: (M+1,) int64
    ids, smiles: M strings
    split: (M,) int8, 0 train, 1 valid, 2 test, -1 none
    status: (M,) int8, how the perceived bonds compare with the source's own SMILES: 0 the same,
        1 another resonance form, 2 another connectivity, 3 no Lewis structure; 0 where the source
        gives bonds itself
    uncharacterized: (M,) bool, the source doubts the record (QM9: relaxed to another molecule)
    properties: name -> (M,) float64, NaN where missing
    units: name -> unit of that property
    source: where the table comes from
    failures: records of the source that are not in the table, or are there without bonds

    Raises `UserError` when the columns do not fit together.
    """

    numbers: NDArray[np.uint8]
    positions: NDArray[np.float32]
    charges: NDArray[np.int8]
    atom_offsets: NDArray[np.int64]
    bonds: NDArray[np.int16]
    bond_offsets: NDArray[np.int64]
    ids: list[str]
    smiles: list[str]
    split: NDArray[np.int8]
    status: NDArray[np.int8]
    uncharacterized: NDArray[np.bool_]
    properties: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    source: str = ""
    failures: tuple[Failure, ...] = ()

    def __post_init__(self) -> None:
        for name, dtype in _COLUMNS.items():
            column = getattr(self, name)
            if column.dtype != dtype:
                raise UserError(f"molecule table: {name} is {column.dtype}, not {np.dtype(dtype)}")
        molecules, atoms = len(self.ids), len(self.numbers)
        shapes: dict[str, tuple[int, ...]] = {
            "positions": (atoms, 3),
            "charges": (atoms,),
            "atom_offsets": (molecules + 1,),
            "bonds": (len(self.bonds), 3),
            "bond_offsets": (molecules + 1,),
            "split": (molecules,),
            "status": (molecules,),
            "uncharacterized": (molecules,),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                found = getattr(self, name).shape
                raise UserError(f"molecule table: {name} has shape {found}, expected {shape}")
        if len(self.smiles) != molecules:
            raise UserError(f"molecule table: {len(self.smiles)} smiles for {molecules} ids")
        for name, total in (("atom_offsets", atoms), ("bond_offsets", len(self.bonds))):
            offsets = getattr(self, name)
            if offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
                raise UserError(f"molecule table: {name} must rise from 0 to {total}")
        if len(self.bonds):
            size = np.repeat(self.atom_counts, np.diff(self.bond_offsets))
            ends, order = self.bonds[:, :2], self.bonds[:, 2]
            if (ends < 0).any() or (ends.max(axis=1) >= size).any():
                raise UserError("molecule table: a bond names an atom outside its molecule")
            if (order < 1).any() or (order > 3).any():
                raise UserError("molecule table: bond orders must be 1, 2 or 3")
        if not np.isfinite(self.positions).all():
            raise UserError("molecule table: positions are not finite")
        for name, values in self.properties.items():
            if values.shape != (molecules,) or values.dtype != np.float64:
                raise UserError(f"molecule table: property {name!r} must be float64 ({molecules},)")
        if set(self.units) != set(self.properties):
            raise UserError("molecule table: units and properties must have the same names")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        names = ", ".join(f"{n} [{u}]" for n, u in self.units.items()) or "none"
        return (
            f"MoleculeTable({len(self)} molecules, {len(self.numbers)} atoms, "
            f"properties: {names}, failures: {len(self.failures)}, source: {self.source!r})"
        )

    def __iter__(self) -> Iterator[Molecule]:
        return (self.molecule(i) for i in range(len(self)))

    @property
    def atom_counts(self) -> NDArray[np.int64]:
        """Atoms of each molecule, (M,)."""
        return np.diff(self.atom_offsets)

    @property
    def bond_counts(self) -> NDArray[np.int64]:
        """Bonds of each molecule, (M,)."""
        return np.diff(self.bond_offsets)

    def property(self, name: str) -> NDArray[np.float64]:
        """Values of one property, (M,); `UserError` names the choices when it is not there."""
        if name not in self.properties:
            choices = ", ".join(self.properties) or "none"
            raise UserError(f"no property {name!r} in this table; it has: {choices}")
        return self.properties[name]

    def molecule(self, i: int) -> Molecule:
        """Row i as a small record; negative i counts from the end."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"molecule {i} of {len(self)}")
        i %= len(self)
        atoms = slice(self.atom_offsets[i], self.atom_offsets[i + 1])
        bonds = slice(self.bond_offsets[i], self.bond_offsets[i + 1])
        return Molecule(
            id=self.ids[i],
            smiles=self.smiles[i],
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            charges=self.charges[atoms],
            bonds=self.bonds[bonds],
            properties={name: float(values[i]) for name, values in self.properties.items()},
        )

    def rows(self, split: str | None = None, clean: bool = False) -> NDArray[np.int64]:
        """Row numbers of one split, of the clean molecules, or of both together.

        Clean: characterised, and the bonds are those of the source up to resonance (status < 2).
        """
        keep = np.ones(len(self), bool)
        if split is not None:
            if split not in SPLITS:
                raise UserError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
            keep &= self.split == SPLITS[split]
        if clean:
            keep &= ~self.uncharacterized & (self.status < 2)
        return np.flatnonzero(keep)

    def where(self, split: str | None = None, clean: bool = False) -> MoleculeTable:
        """The molecules of `rows` as a table."""
        return self.select(self.rows(split, clean))

    def select(self, which: slice | Sequence[int] | NDArray[Any]) -> MoleculeTable:
        """The molecules at the given rows, in that order, or where a (M,) bool mask is true."""
        if isinstance(which, slice):
            index = np.arange(len(self))[which]
        else:
            chosen = np.asarray(which)
            if chosen.dtype == bool:
                if chosen.shape != (len(self),):
                    raise UserError(f"mask of shape {chosen.shape} for a table of {len(self)} rows")
                chosen = np.flatnonzero(chosen)
            index = chosen.astype(np.int64)
            if index.size and (index.min() < -len(self) or index.max() >= len(self)):
                raise IndexError(f"row out of range for a table of {len(self)} molecules")
            index = index % max(len(self), 1)
        atoms, atom_offsets = _gather(self.atom_offsets, index)
        bonds, bond_offsets = _gather(self.bond_offsets, index)
        rows = index.tolist()
        return replace(
            self,
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            charges=self.charges[atoms],
            atom_offsets=atom_offsets,
            bonds=self.bonds[bonds],
            bond_offsets=bond_offsets,
            ids=[self.ids[i] for i in rows],
            smiles=[self.smiles[i] for i in rows],
            split=self.split[index],
            status=self.status[index],
            uncharacterized=self.uncharacterized[index],
            properties={name: values[index] for name, values in self.properties.items()},
        )

    @staticmethod
    def concat(tables: Sequence[MoleculeTable]) -> MoleculeTable:
        """All molecules of several tables; a property that one of them lacks is NaN there.

        `UserError` when two tables give one property in different units.
        """
        if not tables:
            return MoleculeTable.from_molecules([])
        units: dict[str, str] = {}
        for table in tables:
            for name, unit in table.units.items():
                if units.setdefault(name, unit) != unit:
                    raise UserError(f"property {name!r} comes in {units[name]!r} and in {unit!r}")

        def column(name: str) -> Any:
            return np.concatenate([getattr(table, name) for table in tables])

        def offsets(name: str) -> NDArray[np.int64]:
            return _offsets(np.concatenate([np.diff(getattr(table, name)) for table in tables]))

        def values(name: str) -> NDArray[np.float64]:
            missing = (np.full(len(table), np.nan) for table in tables)
            pairs = zip(tables, missing, strict=True)
            return np.concatenate([table.properties.get(name, nan) for table, nan in pairs])

        return MoleculeTable(
            **{name: column(name) for name in _COLUMNS if not name.endswith("offsets")},
            atom_offsets=offsets("atom_offsets"),
            bond_offsets=offsets("bond_offsets"),
            ids=[i for table in tables for i in table.ids],
            smiles=[s for table in tables for s in table.smiles],
            properties={name: values(name) for name in units},
            units=units,
            source="; ".join(dict.fromkeys(table.source for table in tables if table.source)),
            failures=tuple(failure for table in tables for failure in table.failures),
        )

    @staticmethod
    def from_molecules(
        molecules: Sequence[Molecule],
        *,
        units: Mapping[str, str] | None = None,
        source: str = "",
        failures: Sequence[Failure] = (),
        split: NDArray[np.int8] | None = None,
        status: NDArray[np.int8] | None = None,
        uncharacterized: NDArray[np.bool_] | None = None,
    ) -> MoleculeTable:
        """Collect single molecules; `units` names their properties (NaN where one is missing)."""
        units = dict(units or {})
        count = len(molecules)

        def flat(name: str, empty: tuple[int, ...]) -> Any:
            parts = [getattr(molecule, name) for molecule in molecules]
            dtype = _COLUMNS[name]
            return np.concatenate(parts).astype(dtype) if parts else np.zeros(empty, dtype)

        def values(name: str) -> NDArray[np.float64]:
            return np.array([m.properties.get(name, np.nan) for m in molecules], np.float64)

        return MoleculeTable(
            numbers=flat("numbers", (0,)),
            positions=flat("positions", (0, 3)),
            charges=flat("charges", (0,)),
            atom_offsets=_offsets([len(m.numbers) for m in molecules]),
            bonds=flat("bonds", (0, 3)),
            bond_offsets=_offsets([len(m.bonds) for m in molecules]),
            ids=[m.id for m in molecules],
            smiles=[m.smiles for m in molecules],
            split=np.full(count, -1, np.int8) if split is None else split,
            status=np.zeros(count, np.int8) if status is None else status,
            uncharacterized=np.zeros(count, bool) if uncharacterized is None else uncharacterized,
            properties={name: values(name) for name in units},
            units=units,
            source=source,
            failures=tuple(failures),
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table: one ``.npz`` when the name ends so, else a folder of columns.

        A reader never sees a half-written table: the new one is made beside the name and renamed.
        """
        path = Path(path)
        description = {
            "format": FORMAT,
            "properties": list(self.properties),
            "units": self.units,
            "source": self.source,
            "failures": [list(failure) for failure in self.failures],
        }
        columns: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in _COLUMNS}
        columns["ids"], columns["smiles"] = _pack(self.ids, "ids"), _pack(self.smiles, "smiles")
        for k, values in enumerate(self.properties.values()):
            columns[f"property_{k}"] = values
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".npz":
                _save_npz(path, columns, description)
            else:
                _save_folder(path, columns, description)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        return path

    def write_failures(self, path: str | os.PathLike[str]) -> Path:
        """Write the failures as a CSV file with columns record, name, reason."""
        path = Path(path)
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["record", "name", "reason"])
        rows.writerows([failure.record, failure.name, failure.reason] for failure in self.failures)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, lambda handle: handle.write(text.getvalue().encode()))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        return path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> MoleculeTable:
        """Read what `save` wrote; the columns of a folder are memory-mapped, copy on write.

        `UserError` when the file is missing, damaged, or not a molecule table.
        """
        path = Path(path)
        if not path.exists():
            raise UserError(f"no molecule table at {path}")
        try:
            columns, description = _load_folder(path) if path.is_dir() else _load_npz(path)
            if description.get("format") != FORMAT:
                raise UserError(f"{path} is not a molecule table of format {FORMAT}")
            names = [str(name) for name in description["properties"]]
            return MoleculeTable(
                **{name: columns[name] for name in _COLUMNS},
                ids=_unpack(columns["ids"]),
                smiles=_unpack(columns["smiles"]),
                properties={name: columns[f"property_{k}"] for k, name in enumerate(names)},
                units={str(name): str(unit) for name, unit in description["units"].items()},
                source=str(description["source"]),
                failures=tuple(
                    Failure(int(k), str(why), str(name)) for k, why, name in description["failures"]
                ),
            )
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except Exception as error:  # numpy, zipfile and zlib raise many kinds for damaged bytes
            raise UserError(f"{path} is damaged or not a molecule table ({error})") from error


def _offsets(counts: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _gather(
    offsets: NDArray[np.int64], index: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Flat rows that belong to the molecules `index`, and their new offsets."""
    counts = np.diff(offsets)[index]
    new = _offsets(counts)
    return np.arange(new[-1]) + np.repeat(offsets[:-1][index] - new[:-1], counts), new


def _pack(strings: Sequence[str], name: str) -> NDArray[np.uint8]:
    if any("\n" in string for string in strings):
        raise UserError(f"molecule table: {name} must not contain line breaks")
    # each string ends with a newline, so that [] and [""] differ
    return np.frombuffer("".join(f"{s}\n" for s in strings).encode(), np.uint8)


def _unpack(blob: NDArray[np.uint8]) -> list[str]:
    return bytes(blob).decode().split("\n")[:-1]


def _json_bytes(description: dict[str, Any]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(description).encode(), np.uint8)


def _replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file beside its final name, bring it to the disk, and rename it into place."""
    new = _beside(path)
    try:
        with open(new, "xb") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _beside(path: Path) -> Path:
    """A hidden name in the same folder that nothing else uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def _save_npz(path: Path, columns: dict[str, NDArray[Any]], description: dict[str, Any]) -> None:
    members: dict[str, Any] = dict(columns, description=_json_bytes(description))
    _replace(path, lambda handle: np.savez_compressed(handle, **members))


def _load_npz(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        if not isinstance(archive, np.lib.npyio.NpzFile) or "description" not in archive.files:
            raise UserError(f"not a molecule table of format {FORMAT}")
        columns = {name: archive[name] for name in archive.files}
    return columns, json.loads(bytes(columns.pop("description")))


def _save_folder(path: Path, columns: dict[str, NDArray[Any]], description: dict[str, Any]) -> None:
    if path.exists() and not (path / _MANIFEST).is_file():
        raise UserError(f"{path} exists and is not a molecule table; choose another name")
    new = _beside(path)
    new.mkdir()
    try:
        description = dict(description, columns=sorted(columns))
        for name, column in columns.items():
            with open(new / f"{name}.npy", "wb") as handle:
                np.save(handle, column, allow_pickle=False)
                handle.flush()
                os.fsync(handle.fileno())
        with open(new / _MANIFEST, "w", encoding="utf-8") as text:
            json.dump(description, text)
            text.flush()
            os.fsync(text.fileno())
        if path.exists():
            old = _beside(path)
            os.replace(path, old)
            os.replace(new, path)
            shutil.rmtree(old)
        else:
            os.replace(new, path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _load_folder(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    if not (path / _MANIFEST).is_file():
        raise UserError(f"not a molecule table: it has no {_MANIFEST}")
    description = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    known = {*_COLUMNS, "ids", "smiles"}
    columns: dict[str, NDArray[Any]] = {}
    for name in description["columns"]:
        if name not in known and not (name.startswith("property_") and name[9:].isdigit()):
            raise UserError(f"unknown column {name!r}")
        try:
            columns[name] = np.load(path / f"{name}.npy", mmap_mode="c", allow_pickle=False)
        except ValueError:
            # an empty column cannot be mapped
            columns[name] = np.load(path / f"{name}.npy", allow_pickle=False)
    return columns, description
