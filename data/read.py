"""A user's own molecules: SDF, SMILES or CSV files, with properties and their units.

The file is cut into records here, as text; every record is then read by RDKit in a child process
with a time limit, because a hostile or unlucky record can hang or crash a C++ parser. A record that
cannot be used is left out and listed in ``failures`` with its number and the reason. Molecules
without 3D coordinates get them by ETKDG (Riniker and Landrum 2015) from a fixed seed, relaxed with
MMFF94 where it has parameters.
"""

from __future__ import annotations

import csv
import gzip
import math
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from driftworks.data.ccd import molecule_from_parts
from driftworks.data.isolate import default_workers, isolated
from driftworks.data.progress import progress_bar
from driftworks.data.table import Failure, Molecule, MoleculeTable
from driftworks.data.units import PROPERTY_UNITS, conversion
from driftworks.errors import UserError

__all__ = ["read"]

MAX_FILE = 2 << 30  # bytes, after unpacking
MAX_LINE = 1 << 20  # bytes
MAX_RECORD = 4 << 20  # bytes of one SDF record
MAX_SMILES = 20_000  # characters
MAX_ATOMS = 1_000
SECONDS_PER_RECORD = 10.0
FORMATS = (".sdf", ".mol", ".smi", ".smiles", ".csv", ".tsv")
_TASK = "driftworks.data.parse:parse_record"
_TASK_IMPORTS = (
    "numpy",
    "rdkit.Chem",
    "rdkit.Chem.rdDistGeom",
    "rdkit.Chem.rdForceFieldHelpers",
)
_SMILES_NAMES = ("smiles", "canonical_smiles", "smi", "structure")
_ID_NAMES = ("id", "name", "title", "mol_id", "molecule_id", "identifier")
_MISSING = ("", "na", "nan", "none", "null", "-")


def read(
    path: str | os.PathLike[str],
    *,
    smiles_column: str | None = None,
    id_column: str | None = None,
    properties: Mapping[str, str] | Sequence[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> MoleculeTable:
    """Molecules of an SDF, SMILES or CSV file (each also as .gz), or of a saved table.

    Parameters
    ----------
    path: ``.sdf .mol .smi .smiles .csv .tsv``, or what `MoleculeTable.save` wrote
    smiles_column, id_column: columns of a CSV; by default those with a usual name
    properties: names of the columns or SDF fields to keep, or name -> unit in which they are given;
        by default every numeric one. A header may carry the unit, ``gap [hartree]``. Properties
        that QM9 knows (gap, mu, ...) are converted to the unit used here, others are left alone
    labels: CSV with further columns for the records of an SDF or SMILES file: joined by `id_column`
        when both have identifiers, else row by row
    limit: only the first so many records
    seed: of the 3D embedding
    workers: processes; by default one a core
    progress: show a bar

    Raises `UserError` when the file is not there, too large, of an unknown kind, lacks a column
    that was asked for, or holds no usable molecule.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no file {path}")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}")
    if path.is_dir() or path.suffix == ".npz":
        table = MoleculeTable.load(path)
        return table if limit is None else table.select(slice(limit))
    suffix = _suffix(path)
    wanted = _Wanted.of(properties)
    records: Iterator[_Entry]
    if suffix in (".csv", ".tsv"):
        if labels is not None:
            raise UserError("labels belong to an SDF or SMILES file; a CSV carries its own columns")
        records = _csv_entries(path, suffix, smiles_column, id_column, wanted)
    else:
        records = _sdf_entries(path) if suffix in (".sdf", ".mol") else _smiles_entries(path)
        if labels is not None:
            records = _joined(records, Path(labels), id_column, wanted)
    return _collect(path, islice(records, limit), wanted, seed, workers, progress)


@dataclass
class _Entry:
    """A record as text: an SDF block or a SMILES, and the fields that came with it."""

    number: int
    kind: str
    text: str
    name: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    reason: str | None = None


@dataclass
class _Wanted:
    """The properties to keep: all numeric ones, or some by name, with the units they come in."""

    units: dict[str, str | None]
    everything: bool

    @staticmethod
    def of(properties: Mapping[str, str] | Sequence[str] | None) -> _Wanted:
        if properties is None:
            return _Wanted({}, True)
        if isinstance(properties, str):
            properties = [properties]
        if isinstance(properties, Mapping):
            units: dict[str, str | None] = {name: unit for name, unit in properties.items()}
        else:
            units = {}
            for header in properties:
                name, unit = _split_header(header)
                units[name] = unit
        for name, given in units.items():
            if given is not None and name in PROPERTY_UNITS:
                conversion(given, PROPERTY_UNITS[name])
        return _Wanted(units, False)

    def demand(self, path: Path, headers: Sequence[str]) -> None:
        """`UserError` when a wanted name is none of the headers."""
        present = [_split_header(header)[0] for header in headers]
        for name in self.units:
            if name not in present:
                raise UserError(f"{path} has no column {name!r}; it has: {', '.join(present)}")


def _split_header(header: str) -> tuple[str, str | None]:
    """``gap [eV]`` or ``gap (eV)`` -> name and unit."""
    match = re.fullmatch(r"\s*(.*?)\s*[\[(]([^\[\]]+)[\])]\s*", header)
    return (match[1], match[2]) if match and match[1] else (header.strip(), None)


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in FORMATS:
        kind = f"unknown kind {suffix!r}" if suffix else "no suffix"
        raise UserError(f"{path} has {kind}; readable are: {', '.join(FORMATS)}, each also as .gz")
    return suffix


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file without their ends, within the caps on line and file size.

    A line beyond the cap is cut there, which makes its record fail and not the file.
    """
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    total = 0
    try:
        handle: IO[bytes]
        with opener(path, "rb") as handle:
            while line := handle.readline(MAX_LINE):
                total += len(line)
                if total > MAX_FILE:
                    raise UserError(f"{path} is larger than {MAX_FILE >> 30} GB")
                if not line.endswith(b"\n") and len(line) == MAX_LINE:
                    while rest := handle.readline(MAX_LINE):
                        total += len(rest)
                        if total > MAX_FILE:
                            raise UserError(f"{path} is larger than {MAX_FILE >> 30} GB")
                        if rest.endswith(b"\n"):
                            break
                yield line.decode("utf-8", errors="replace").rstrip("\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _sdf_entries(path: Path) -> Iterator[_Entry]:
    block: list[str] = []
    size, number = 0, 1
    for line in _lines(path):
        if line.startswith("$$$$"):
            yield _sdf_entry(number, block, size)
            block, size, number = [], 0, number + 1
        else:
            size += len(line) + 1
            if size <= MAX_RECORD:
                block.append(line)
    if any(line.strip() for line in block):
        yield _sdf_entry(number, block, size)


def _sdf_entry(number: int, block: list[str], size: int) -> _Entry:
    """A record: the structure up to ``M  END``, then ``> <name>`` fields each ended by a blank."""
    end = next((k for k, line in enumerate(block) if line.startswith("M  END")), len(block) - 1)
    fields: dict[str, str] = {}
    key, value = None, list[str]()
    for line in [*block[end + 1 :], ""]:
        match = re.match(r">[^<]*<([^>]*)>", line)
        if match or not line.strip():
            if key is not None:
                fields[key] = "\n".join(value).strip()
            key, value = (match[1].strip() if match else None), []
        elif key is not None:
            value.append(line)
    entry = _Entry(number, "mol", "\n".join(block[: end + 1]) + "\n", fields=fields)
    entry.name = block[0].strip() if block else ""
    if size > MAX_RECORD:
        entry.reason = f"the record is larger than {MAX_RECORD >> 20} MB"
    return entry


def _smiles_entries(path: Path) -> Iterator[_Entry]:
    """SMILES and, after a blank, a name; passes over blank lines, ``#`` comments and a header."""
    for number, line in enumerate(_lines(path), start=1):
        parts = line.split(maxsplit=1)
        if not parts or line.startswith("#") or (number == 1 and parts[0].lower() == "smiles"):
            continue
        yield _Entry(number, "smiles", parts[0], parts[1].strip() if len(parts) > 1 else "")


def _rows(path: Path, suffix: str) -> Iterator[tuple[int, list[str]]]:
    """Numbered rows of a CSV, the header first with number 0; a damaged row is empty."""
    delimiter = "\t" if suffix == ".tsv" else ","
    lines = (line.replace("\0", "\ufffd") for line in _lines(path))
    reader = csv.reader(lines, delimiter=delimiter)
    number = 0
    while True:
        try:
            row = next(reader)
            if not row:  # a blank line
                continue
        except StopIteration:
            return
        except csv.Error:
            row = []
        yield number, [value.lstrip("\ufeff") for value in row]
        number += 1


def _column(headers: Sequence[str], asked: str | None, usual: Sequence[str], path: Path) -> int:
    """Position of a column, -1 when it was not asked for and none has a usual name."""
    if asked is not None:
        if asked not in headers:
            raise UserError(f"{path} has no column {asked!r}; it has: {', '.join(headers)}")
        return list(headers).index(asked)
    lower = [header.strip().lower() for header in headers]
    return next((lower.index(name) for name in usual if name in lower), -1)


def _csv_entries(
    path: Path, suffix: str, smiles_column: str | None, id_column: str | None, wanted: _Wanted
) -> Iterator[_Entry]:
    rows = _rows(path, suffix)
    _, headers = next(rows, (0, []))
    if not headers:
        raise UserError(f"{path} is empty or damaged in its first line")
    smiles = _column(headers, smiles_column, _SMILES_NAMES, path)
    if smiles < 0:
        raise UserError(
            f"{path} has no column named smiles; say which of these it is: {', '.join(headers)}"
        )
    name = _column(headers, id_column, _ID_NAMES, path)
    values = [k for k in range(len(headers)) if k not in (smiles, name)]
    wanted.demand(path, [headers[k] for k in values])
    for number, row in rows:
        if len(row) != len(headers):
            reason = f"{len(row)} values in a row of {len(headers)} columns"
            yield _Entry(number, "smiles", "", reason=reason if row else "the row is damaged")
            continue
        yield _Entry(
            number,
            "smiles",
            row[smiles].strip(),
            row[name].strip() if name >= 0 else "",
            {headers[k]: row[k] for k in values},
        )


def _joined(
    records: Iterator[_Entry], path: Path, id_column: str | None, wanted: _Wanted
) -> Iterator[_Entry]:
    """The records with the columns of a CSV beside them."""
    if not path.exists():
        raise UserError(f"no file {path}")
    rows = _rows(path, _suffix(path))
    _, headers = next(rows, (0, []))
    if not headers:
        raise UserError(f"{path} is empty")
    key = _column(headers, id_column, _ID_NAMES, path)
    values = [k for k in range(len(headers)) if k != key]
    wanted.demand(path, [headers[k] for k in values])
    table = [(row, {headers[k]: row[k] for k in values if k < len(row)}) for _, row in rows]
    by_name = {row[key].strip(): fields for row, fields in table if 0 <= key < len(row)}
    for position, entry in enumerate(records):
        if by_name and entry.name:
            fields = by_name.get(entry.name)
        else:
            fields = table[position][1] if position < len(table) else None
        if fields is None and entry.reason is None:
            entry.reason = f"{path.name} has no row for it"
        entry.fields.update(fields or {})
        yield entry


def _collect(
    path: Path,
    entries: Iterator[_Entry],
    wanted: _Wanted,
    seed: int,
    workers: int | None,
    progress: bool,
) -> MoleculeTable:
    kept: list[_Entry] = []
    failures: list[Failure] = []
    seen = 0

    def tasks() -> Iterator[dict[str, Any]]:
        nonlocal seen
        for entry in entries:
            seen = entry.number
            if entry.kind == "smiles" and len(entry.text) > MAX_SMILES:
                entry.reason = f"a SMILES of {len(entry.text)} characters"
            if entry.reason is not None:
                failures.append(Failure(entry.number, entry.reason, entry.name[:80]))
                continue
            kept.append(entry)
            text, entry.text = entry.text, ""
            yield {"kind": entry.kind, "text": text, "seed": seed, "max_atoms": MAX_ATOMS}

    count = workers or default_workers()
    outcomes = isolated(
        _TASK, tasks(), limit=SECONDS_PER_RECORD, workers=count, imports=_TASK_IMPORTS
    )
    molecules: list[Molecule] = []
    fields: list[dict[str, str]] = []
    used: set[str] = set()
    with progress_bar(f"reading {path.name}", show=progress) as update:
        for outcome in outcomes:
            entry = kept[outcome.index]
            if outcome.reason is not None:
                failures.append(Failure(entry.number, outcome.reason, entry.name[:80]))
            else:
                name = _identifier(entry, used)
                molecules.append(molecule_from_parts(name, outcome.value))
                fields.append(entry.fields)
            update(seen, None)
    failures.sort()
    if not molecules:
        first = f"; record {failures[0].record}: {failures[0].reason}" if failures else ""
        raise UserError(f"{path} holds no usable molecule{first}")
    values, units = _properties(path, fields, wanted)
    table = MoleculeTable.from_molecules(molecules, source=str(path.name), failures=failures)
    return replace(table, properties=values, units=units)


def _identifier(entry: _Entry, used: set[str]) -> str:
    """The record's own name when it is usable and new, else its number."""
    name = " ".join(entry.name.split())[:200]
    if not name or name in used:
        name = f"{name or 'record'}:{entry.number}"
    used.add(name)
    return name


def _properties(
    path: Path, fields: list[dict[str, str]], wanted: _Wanted
) -> tuple[dict[str, Any], dict[str, str]]:
    """Numeric columns in canonical units, NaN where a value is missing or no number."""
    headers = list(dict.fromkeys(header for record in fields for header in record))
    if not wanted.everything:
        wanted.demand(path, headers)
    values: dict[str, Any] = {}
    units: dict[str, str] = {}
    for header in headers:
        name, unit = _split_header(header)
        if not wanted.everything:
            if name not in wanted.units:
                continue
            unit = wanted.units[name] or unit
        texts = [record.get(header, "") for record in fields]
        column = np.array([_float(text) for text in texts], np.float64)
        given = [text.strip() for text in texts if text.strip().lower() not in _MISSING]
        bad = len(given) - int(np.isfinite(column).sum())
        if wanted.everything and (not given or bad > len(given) // 2):
            continue
        if bad:
            message = f"{path.name}: {bad} values of {name!r} are no numbers and count as missing"
            warnings.warn(message, stacklevel=4)
        if name in PROPERTY_UNITS:
            if unit is None:
                message = f"{path.name}: {name!r} names no unit, taken as {PROPERTY_UNITS[name]}"
                warnings.warn(message, stacklevel=4)
            else:
                column *= conversion(unit, PROPERTY_UNITS[name])
            unit = PROPERTY_UNITS[name]
        if name in values:
            raise UserError(f"{path} gives {name!r} in two columns; name the one to keep")
        values[name], units[name] = column, unit or ""
    return values, units


def _float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
