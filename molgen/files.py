"""Libraries as files, by suffix.

    .sdf      3D structures; targets, index, seed and verdict as properties (1e-4 angstrom)
    .parquet  everything, lossless; the request in the schema's metadata
    .csv      one row a requested molecule with SMILES and verdict, no coordinates
    .smi      SMILES and index of what has a SMILES, no coordinates

The first two read back as the library that was written; the last two hold SMILES, which are
embedded anew (ETKDG). The first record of an SDF carries the request: how many were asked for and
what was lost. There is never half a library in a file; a record that cannot be read is counted and
listed, and the others are read.
"""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from driftworks.core.checkpoint import write_file
from driftworks.errors import UserError
from driftworks.molgen.library import ARRAYS, RESERVED, BadRecord, Library
from driftworks.molgen.molecule import Molecules, Unconvertible

if TYPE_CHECKING:
    from rdkit.Chem import Mol

__all__ = ["SUFFIXES", "read", "write"]

SUFFIXES = (".sdf", ".parquet", ".csv", ".smi")


def write(library: Library, path: Path) -> Path:
    """Write the library in the form its suffix names, whole or not at all.

    Raises `UserError` for another suffix and for a place that cannot be written.
    """
    writers = {".sdf": _sdf, ".parquet": _parquet, ".csv": _csv, ".smi": _smi}
    suffix = path.suffix.lower()
    if suffix not in writers:
        raise UserError(f"cannot write {path.name!r}: choose from {', '.join(SUFFIXES)}")
    write_file(path, writers[suffix](library))
    return path


def read(path: Path) -> Library:
    """Read a library, ours or a foreign SDF / CSV / SMILES file.

    Raises `UserError` when the file is missing, of another kind, or holds no molecule at all.
    """
    readers = {
        ".sdf": _read_sdf,
        ".parquet": _read_parquet,
        ".csv": _read_smiles,
        ".smi": _read_smiles,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise UserError(f"cannot read {path.name!r}: choose from {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        return readers[suffix](path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _request(library: Library) -> dict[str, Any]:
    return {
        "requested": library.requested,
        "seed": library.seed,
        "failures": dict(library.failures),
        "provenance": dict(library.provenance),
    }


def _sdf(library: Library) -> bytes:
    from rdkit import Chem, rdBase

    smiles = library.smiles()
    out = io.StringIO()
    with rdBase.BlockLogs():
        for i, mol in enumerate(library.molecules.rdkit_mols()):
            # Radicals are marked, or another program would fill the open valence with hydrogen.
            mol.UpdatePropertyCache(strict=False)
            Chem.AssignRadicals(mol)
            mol.SetProp("_Name", f"{library.indices[i]}")
            out.write(Chem.MolToMolBlock(mol, includeStereo=False, kekulize=False))
            fields = library.row(i)
            if smiles[i]:
                fields["smiles"] = smiles[i]
            if i == 0:
                fields["requested"] = library.requested
                fields["failures"] = _json(library.failures)
                fields["provenance"] = _json(library.provenance)
            for name, value in fields.items():
                out.write(f">  <{name}>\n{value}\n\n")
            out.write("$$$$\n")
    return out.getvalue().encode()


def _columns(library: Library) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "index": library.indices,
        "smiles": [smiles or "" for smiles in library.smiles()],
        "strict": np.array([v.strict for v in library.verdicts], np.int64),
        "reason": [v.reason for v in library.verdicts],
    }
    if library.seed is not None:
        columns["seed"] = np.full(len(library), library.seed, np.int64)
    columns |= {f"target_{name}": values for name, values in library.targets.items()}
    return columns | dict(library.properties)


def _csv(library: Library) -> bytes:
    """One line a requested molecule; what never became a molecule has a reason and no index."""
    columns = _columns(library)
    lost = [reason for reason, count in library.failures.items() for _ in range(count)]
    lost += ["unknown"] * ((library.requested or 0) - len(library) - len(lost))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for row in zip(*columns.values(), strict=True):
        cells = ("" if isinstance(x, float) and math.isnan(x) else x for x in row)
        writer.writerow(dict(zip(columns, cells, strict=True)))
    writer.writerows({"strict": 0, "reason": reason} for reason in lost)
    return out.getvalue().encode()


def _smi(library: Library) -> bytes:
    pairs = zip(library.smiles(), library.indices, strict=True)
    return "".join(f"{smiles} {index}\n" for smiles, index in pairs if smiles).encode()


def _parquet(library: Library) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    host = library.molecules.to("cpu")
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in ARRAYS}
    for i in range(len(host)):
        keep = host.mask[i]
        arrays["numbers"].append(host.numbers[i][keep].numpy())
        arrays["positions"].append(host.positions[i][keep].reshape(-1).float().numpy())
        arrays["charges"].append(host.charges[i][keep].numpy())
        bonds = host.bonds[i][keep][:, keep].triu(1)
        ends = bonds.nonzero()
        triples = torch.cat([ends, bonds[ends[:, 0], ends[:, 1]][:, None]], dim=1)
        arrays["bonds"].append(triples.reshape(-1).numpy())
    text = pa.string()
    columns = {
        name: pa.array(values, type=text if name in ("smiles", "reason") else None)
        for name, values in _columns(library).items()
    }
    for name, values in arrays.items():
        kind = pa.float32() if name == "positions" else pa.int32()
        columns[name] = pa.array(values, type=pa.list_(kind))
    table = pa.table(columns).replace_schema_metadata({b"driftworks": _json(_request(library))})
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def _collect(
    path: Path,
    records: Iterable[tuple[Mol | None, str, dict[str, str]]],
) -> Library:
    """A library of parsed records (molecule or None with a reason, and the record's fields)."""
    batches: list[Mol] = []
    rows: list[dict[str, str]] = []
    bad: list[BadRecord] = []
    request: dict[str, str] = {}
    for number, (mol, reason, fields) in enumerate(records, start=1):
        if number == 1:
            request = fields
        if mol is not None:
            try:
                Molecules.from_rdkit([mol])
            except Unconvertible as problem:
                mol, reason = None, problem.reason
        if mol is None:
            bad.append(BadRecord(number, reason))
        else:
            batches.append(mol)
            rows.append(fields)
    if not batches:
        listed = "; ".join(f"record {b.record}: {b.reason}" for b in bad[:3]) or "it is empty"
        raise UserError(f"no molecule in {path} ({listed})")
    failures: dict[str, int] = {}
    provenance: dict[str, Any] = {"file": path.name}
    requested = None
    try:
        failures = {str(k): int(v) for k, v in json.loads(request.get("failures", "{}")).items()}
        if "provenance" in request:
            provenance = dict(json.loads(request["provenance"]))
        requested = int(request["requested"]) if "requested" in request else None
    except (ValueError, TypeError, AttributeError):
        failures, provenance, requested = {}, {"file": path.name}, None
    for b in bad:
        failures[b.reason] = failures.get(b.reason, 0) + 1
    accounted = len(batches) + sum(failures.values())
    if requested is not None and requested > accounted:
        failures["missing from file"] = requested - accounted
    names = dict.fromkeys(name for fields in rows for name in fields)
    columns = {name: [_number(fields.get(name)) for fields in rows] for name in names}
    targets = {n[7:]: v for n, v in columns.items() if n.startswith("target_") and len(n) > 7}
    properties = {
        name: values
        for name, values in columns.items()
        if name not in RESERVED + ARRAYS
        and not name.startswith("target_")
        and not np.isnan(values).all()
    }
    indices = columns.get("index")
    whole = indices is not None and not np.isnan(indices).any()
    seeds = {s for s in columns.get("seed", []) if not math.isnan(s)}
    return Library(
        molecules=Molecules.from_rdkit(batches),
        targets=targets,
        seed=int(seeds.pop()) if len(seeds) == 1 else None,
        failures=failures,
        provenance=provenance,
        indices=np.array(indices, np.int64) if whole else None,
        properties=properties,
        bad_records=tuple(bad),
    )


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def _read_sdf(path: Path) -> Library:
    return _collect(path, (_parse_record(lines) for lines in _records(path)))


def _records(path: Path) -> Iterator[list[str]]:
    """The records of an SDF file as lines; blank space after the last `$$$$` is no record."""
    lines: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as handle:
        for line in handle:
            line = line.rstrip("\r\n")
            if line.startswith("$$$$"):
                yield lines
                lines = []
            else:
                lines.append(line)
    if any(line.strip() for line in lines):
        yield lines


def _parse_record(lines: list[str]) -> tuple[Mol | None, str, dict[str, str]]:
    from rdkit import Chem, rdBase

    fields: dict[str, str] = {}
    end = next((k for k, line in enumerate(lines) if line.startswith("M  END")), None)
    if end is None:
        return None, "no end of structure", fields
    name = None
    for line in lines[end + 1 :]:
        if line.startswith(">") and "<" in line:
            name = line[line.index("<") + 1 : line.rindex(">")].strip()
        elif name is not None and line.strip():
            fields[name] = f"{fields[name]}\n{line}" if name in fields else line
        elif not line.strip():
            name = None
    with rdBase.BlockLogs():
        try:
            block = "\n".join(lines[: end + 1]) + "\n"
            mol = Chem.MolFromMolBlock(block, sanitize=False, removeHs=False)
        except (RuntimeError, ValueError):
            mol = None
        if mol is None:
            return None, "malformed structure", fields
        if not mol.GetNumAtoms():
            return None, "empty", fields
        # A 3D record with hydrogens means what it says: an open valence in it is a radical. One
        # without any was drawn with implicit hydrogens, unless it is our own.
        if "strict" in fields or any(a.GetAtomicNum() == 1 for a in mol.GetAtoms()):
            for atom in mol.GetAtoms():
                atom.SetNoImplicit(True)
                atom.SetNumRadicalElectrons(0)
    return mol, "", fields


def _read_parquet(path: Path) -> Library:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        request = json.loads((table.schema.metadata or {})[b"driftworks"])
        failures = {str(k): int(v) for k, v in request["failures"].items()}
        arrays = {name: table.column(name).to_pylist() for name in ARRAYS}
        columns = {
            name: table.column(name).to_numpy()
            for name in table.column_names
            if name not in ARRAYS and name not in RESERVED
        }
        indices = table.column("index").to_numpy()
        counts = np.array([len(x) for x in arrays["numbers"]], np.int64)
        out = Molecules.empty(len(counts), int(counts.max(initial=0)))
        for k, n in enumerate(counts):
            out.numbers[k, :n] = torch.tensor(arrays["numbers"][k], dtype=torch.int64)
            out.positions[k, :n] = torch.tensor(arrays["positions"][k]).reshape(n, 3)
            out.charges[k, :n] = torch.tensor(arrays["charges"][k], dtype=torch.int64)
            out.mask[k, :n] = True
            for i, j, order in np.array(arrays["bonds"][k], np.int64).reshape(-1, 3):
                out.bonds[k, i, j] = out.bonds[k, j, i] = order
    except (pa.ArrowException, KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"{path} is damaged or no library of ours ({error!s:.80})") from error
    return Library(
        molecules=out,
        targets={k[7:]: v for k, v in columns.items() if k.startswith("target_")},
        requested=request["requested"],
        seed=request["seed"],
        failures=failures,
        provenance=request["provenance"],
        indices=indices,
        properties={k: v for k, v in columns.items() if not k.startswith("target_")},
    )


def _read_smiles(path: Path) -> Library:
    lost = "" if path.suffix.lower() == ".csv" else ", and molecules without a SMILES are not in it"
    warnings.warn(
        f"{path.name} holds no coordinates: they are made anew and say nothing of the original's"
        f"{lost}; write .sdf or .parquet to evaluate",
        stacklevel=4,
    )
    with path.open(encoding="utf-8", errors="replace", newline="") as handle:
        if path.suffix.lower() == ".csv":
            reader = csv.DictReader(handle)
            names = {name.lower(): name for name in reader.fieldnames or [] if name}
            if "smiles" not in names:
                found = ", ".join(names) or "none"
                raise UserError(f"{path} has no column 'smiles' (columns: {found})")
            try:
                rows = [{k: v for k, v in row.items() if k and v} for row in reader]
            except csv.Error as error:
                raise UserError(f"{path}, line {reader.line_num}: {error}") from error
            column = names["smiles"]
        else:
            words = [line.split(maxsplit=1) for line in handle if line.strip()]
            rows = [dict(zip(("smiles", "index"), w, strict=False)) for w in words]
            column = "smiles"
    return _collect(path, (_embedded(row, column) for row in rows))


def _embedded(row: dict[str, str], column: str) -> tuple[Mol | None, str, dict[str, str]]:
    """Coordinates by ETKDG with a fixed seed and a time limit; rows without SMILES say why."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDistGeom

    smiles = row.get(column, "").strip()
    fields = {k: v for k, v in row.items() if k != column}
    if not smiles:
        return None, fields.get("reason") or "no SMILES", fields
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        if mol is None:
            return None, "malformed SMILES", fields
        if not mol.GetNumAtoms():
            return None, "empty", fields
        mol = Chem.AddHs(mol)
        settings: Any = rdDistGeom.ETKDGv3()
        settings.randomSeed = 0
        settings.maxIterations = 20
        settings.timeout = 10
        placed = False
        for random in (False, True):  # cages need the start from random coordinates
            settings.useRandomCoords = random
            try:
                placed = placed or rdDistGeom.EmbedMolecule(mol, settings) == 0
            except (RuntimeError, ValueError):
                break
        if not placed:
            return None, "no 3D embedding", fields
    return mol, "", fields
