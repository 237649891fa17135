"""QM9: 133,885 molecules of up to nine C, N, O, F atoms at B3LYP/6-31G(2df,p).

R. Ramakrishnan, P. O. Dral, M. Rupp, O. A. von Lilienfeld, Sci. Data 1, 140022 (2014), CC0.

The public archive holds one extended XYZ text a molecule: geometry and fifteen properties, but no
bonds. These are perceived from the geometry (`driftworks.data.bonds`) and compared with the SMILES
that the same text gives; ``status`` tells how they compare. The split is the one most published
models use: ``RandomState(0).permutation`` of the 130,831 characterised molecules in gdb order, the
first 100,000 to train, the next 17,748 to validate, the last 13,083 to test (Anderson et al.,
Cormorant, 2019; Hoogeboom et al., EDM, 2022).
"""

from __future__ import annotations

import os
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftworks.data.cache import cache_folder
from driftworks.data.download import download
from driftworks.data.isolate import Outcome, default_workers, isolated
from driftworks.data.perceive import PERCEIVE, perceive_record
from driftworks.data.progress import progress_bar
from driftworks.data.table import Failure, Molecule, MoleculeTable
from driftworks.data.units import PROPERTY_UNITS, conversion
from driftworks.errors import UserError

__all__ = ["Record", "parse_xyz", "qm9", "standard_split", "uncharacterized_ids"]

SOURCE = "QM9 (Ramakrishnan 2014, doi:10.1038/sdata.2014.22, CC0)"
MOLECULES = 133_885
UNCHARACTERIZED = 3_054
SECONDS_PER_MOLECULE = 10.0


@dataclass(frozen=True)
class _Remote:
    url: str
    name: str
    size: int
    sha256: str


ARCHIVE = _Remote(
    "https://figshare.com/ndownloader/files/3195389",
    "dsgdb9nsd.xyz.tar.bz2",
    86_144_227,
    "3a63848ac80691bdb8d41834b575afad345b9300d7a2db0c38adb7f6eaa8360c",
)
EXCLUDED = _Remote(
    "https://figshare.com/ndownloader/files/3195404",
    "uncharacterized.txt",
    486_752,
    "3aa5115d540b356de94791d4a74c3bf1ed91c469ecf52a4f5d7cc0506fe02e24",
)


def qm9(
    path: str | os.PathLike[str] | None = None,
    *,
    labels: str | os.PathLike[str] | None = None,
    uncharacterized: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> MoleculeTable:
    """QM9 with bonds, labels and the standard split; homo, lumo and gap in eV.

    Parameters
    ----------
    path: None for the public archive, downloaded once and kept in the cache folder as a table; or
        a table written by `MoleculeTable.save`; the ``dsgdb9nsd.xyz.tar.bz2`` archive or a folder
        of its ``.xyz`` files; or an ``.npz`` of arrays ``index, n_atoms, n_bonds, z, pos, charge,
        bonds, smiles, status, uncharacterized, split``
    labels: for the array form, an ``.npz`` with ``index, names, units, values``; by default
        ``NAME_labels.npz`` beside it when there is one
    uncharacterized: list of doubtful molecules that belongs to an archive or a folder; by default
        ``uncharacterized.txt`` beside it
    limit: only the first so many molecules
    workers: processes that perceive bonds; by default one a core
    progress: show bars

    Records that cannot be read are left out and listed in ``failures``. Those without a Lewis
    structure stay, with status 3 and no bonds, and are listed too. Raises `UserError` when the
    source is not there or is not QM9.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}")
    if path is None:
        table = _public(workers, progress, limit)
    else:
        path = Path(path)
        if not path.exists():
            raise UserError(f"no QM9 file at {path}")
        if (path / "table.json").is_file() or _is_saved_table(path):
            table = MoleculeTable.load(path)
        elif path.suffix == ".npz":
            table = _from_arrays(path, Path(labels) if labels is not None else None)
        else:
            beside = (path if path.is_dir() else path.parent) / EXCLUDED.name
            excluded = Path(uncharacterized) if uncharacterized is not None else beside
            table = _from_xyz(path, excluded, workers, progress, limit)
    return table if limit is None or len(table) <= limit else table.select(slice(limit))


def _public(workers: int | None, progress: bool, limit: int | None) -> MoleculeTable:
    """The table in the cache, made from the downloads when it is not there yet."""
    folder = cache_folder()
    built = folder / "qm9-1"
    if (built / "table.json").is_file():
        return MoleculeTable.load(built)
    files = []
    for remote in (EXCLUDED, ARCHIVE):
        target = folder / "downloads" / remote.name
        files.append(
            download(remote.url, target, sha256=remote.sha256, size=remote.size, progress=progress)
        )
    table = _from_xyz(files[1], files[0], workers, progress, limit)
    if limit is None:
        table.write_failures(folder / "qm9-1-failures.csv")
        table.save(built)
    return table


def standard_split(
    uncharacterized: frozenset[int] | set[int], molecules: int = MOLECULES
) -> NDArray[np.int8]:
    """Split code of gdb numbers 1..molecules (entry i-1), -1 for the uncharacterised.

    100,000 train, 17,748 validation, the rest test, by `numpy.random.RandomState(0)`.
    """
    split = np.full(molecules, -1, np.int8)
    kept = np.array([i for i in range(molecules) if i + 1 not in uncharacterized])
    order = kept[np.random.RandomState(0).permutation(len(kept))]  # noqa: NPY002
    split[order[:100_000]] = 0
    split[order[100_000:117_748]] = 1
    split[order[117_748:]] = 2
    return split


def uncharacterized_ids(path: str | os.PathLike[str]) -> frozenset[int]:
    """The gdb numbers listed in ``uncharacterized.txt``: the first field of each numbered line."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f"no list of uncharacterised molecules at {path}; it is at {EXCLUDED.url}"
        ) from error
    found = frozenset(int(k) for k in re.findall(r"^\s*(\d{1,6})\s+\S", text, re.MULTILINE))
    if len(found) != UNCHARACTERIZED or not all(1 <= k <= MOLECULES for k in found):
        raise UserError(f"{path} lists {len(found)} molecules, not the {UNCHARACTERIZED} of QM9")
    return found


def _offsets(counts: NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _is_saved_table(path: Path) -> bool:
    if path.is_dir() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "description.npy" in archive.namelist()


def _read_npz(path: Path, needed: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in needed}
    except Exception as error:
        raise UserError(f"{path} is damaged or not a QM9 file ({error})") from error


def _from_arrays(path: Path, labels: Path | None) -> MoleculeTable:
    """Flat ``z, pos, charge, bonds`` with counts ``n_atoms, n_bonds``; the labels lie beside."""
    names = ("index", "n_atoms", "n_bonds", "z", "pos", "charge", "bonds", "smiles", "status")
    columns = _read_npz(path, (*names, "uncharacterized", "split"))
    properties: dict[str, NDArray[np.float64]] = {}
    beside = path.with_name(f"{path.stem}_labels.npz")
    if labels is None and beside.exists():
        labels = beside
    if labels is None:
        warnings.warn(f"no {beside.name} beside {path}: the table has no properties", stacklevel=3)
    else:
        properties = _labels(labels, columns["index"])
    return MoleculeTable(
        numbers=columns["z"].astype(np.uint8),
        positions=columns["pos"].astype(np.float32),
        charges=columns["charge"].astype(np.int8),
        atom_offsets=_offsets(columns["n_atoms"]),
        bonds=columns["bonds"].astype(np.int16),
        bond_offsets=_offsets(columns["n_bonds"]),
        ids=[f"qm9:{i:06d}" for i in columns["index"].tolist()],
        smiles=[s.decode() for s in columns["smiles"].tolist()],
        split=columns["split"].astype(np.int8),
        status=columns["status"].astype(np.int8),
        uncharacterized=columns["uncharacterized"].astype(bool),
        properties=properties,
        units={name: PROPERTY_UNITS[name] for name in properties},
        source=SOURCE,
    )


def _labels(path: Path, index: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Label columns in canonical units, put beside the molecules by their gdb number."""
    if not path.exists():
        raise UserError(f"no QM9 labels at {path}")
    columns = _read_npz(path, ("index", "names", "units", "values"))
    order = np.argsort(columns["index"], kind="stable")
    if not len(order):
        raise UserError(f"{path} has no labels")
    known = columns["index"][order]
    at = np.searchsorted(known, index).clip(max=len(known) - 1)
    found = known[at] == index
    properties = {}
    for k, (name, unit) in enumerate(zip(columns["names"], columns["units"], strict=True)):
        if str(name) not in PROPERTY_UNITS:
            raise UserError(f"{path}: unknown QM9 property {str(name)!r}")
        factor = conversion(str(unit), PROPERTY_UNITS[str(name)])
        values = columns["values"][order[at], k].astype(np.float64) * factor
        properties[str(name)] = np.where(found, values, np.nan)
    return properties


# order of the values in the second line of a record, after the tag and the number
_VALUES = "A B C mu alpha homo lumo gap r2 zpve u0 u298 h298 g298 cv".split()
_HARTREE_COLUMNS = ("homo", "lumo", "gap")
_SYMBOLS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}


@dataclass(frozen=True, eq=False)
class Record:
    """One text of the archive: `numbers` (N,), `positions` (N, 3) [angstrom], the properties in the
    table's units, and the SMILES from GDB and from the relaxed geometry.
    """

    index: int
    numbers: NDArray[np.uint8]
    positions: NDArray[np.float64]
    properties: dict[str, float]
    smiles: str
    relaxed_smiles: str


def parse_xyz(text: str) -> Record:
    """Read one extended XYZ text of QM9.

    Line 1 the number of atoms, line 2 ``gdb`` and sixteen numbers, then an atom a line (symbol,
    x, y, z, Mulliken charge), the frequencies, the two SMILES, the two InChI. Numbers may be
    written as Mathematica does, ``1.5*^-6``. Raises ValueError when the text is anything else.
    """
    lines = text.splitlines()
    if not lines or not lines[0].strip().isdigit():
        raise ValueError("the first line is not a number of atoms")
    atoms = int(lines[0])
    if atoms < 1 or len(lines) < atoms + 4:
        raise ValueError(f"{len(lines)} lines are too few for {atoms} atoms")
    head = lines[1].split()
    if len(head) != 2 + len(_VALUES) or head[0] != "gdb" or not head[1].isdigit():
        raise ValueError("the second line is not 'gdb', a number and fifteen properties")
    values = dict(zip(_VALUES, map(_number, head[2:]), strict=True))
    for name in _HARTREE_COLUMNS:
        values[name] *= conversion("hartree", PROPERTY_UNITS[name])
    numbers, positions = [], []
    for line in lines[2 : 2 + atoms]:
        fields = line.split()
        if len(fields) < 4 or fields[0] not in _SYMBOLS:
            raise ValueError(f"not an atom of QM9: {line[:60]!r}")
        numbers.append(_SYMBOLS[fields[0]])
        positions.append([_number(field) for field in fields[1:4]])
    smiles = lines[3 + atoms].split()
    if len(smiles) != 2:
        raise ValueError("the two SMILES are missing")
    where = np.array(positions)
    if not (np.isfinite(where).all() and np.isfinite(list(values.values())).all()):
        raise ValueError("a number is not finite")
    return Record(int(head[1]), np.array(numbers, np.uint8), where, values, smiles[0], smiles[1])


def _number(field: str) -> float:
    return float(field.replace("*^", "e"))


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of each ``.xyz`` of an archive or a folder, in the order of their names."""
    if path.is_dir():
        for file in sorted(path.glob("*.xyz")):
            yield file.name, file.read_text(encoding="utf-8", errors="replace")
        return
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                handle = archive.extractfile(member) if member.isfile() else None
                if handle is not None and member.name.endswith(".xyz"):
                    # the largest record has 3 kB
                    yield Path(member.name).name, handle.read(1 << 20).decode("utf-8", "replace")
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or not the archive of QM9 ({error})") from error


def _from_xyz(
    path: Path, excluded: Path, workers: int | None, progress: bool, limit: int | None
) -> MoleculeTable:
    doubtful = uncharacterized_ids(excluded)
    split = standard_split(doubtful)
    failures: list[Failure] = []
    records: list[Record] = []

    def readable() -> Iterator[dict[str, Any]]:
        for position, (name, text) in enumerate(_texts(path), start=1):
            try:
                record = parse_xyz(text)
                if not 1 <= record.index <= MOLECULES:
                    raise ValueError(f"gdb number {record.index} is not in QM9")
            except ValueError as error:
                failures.append(Failure(position, str(error), name))
                continue
            records.append(record)
            yield perceive_record(record.numbers, record.positions, reference=record.smiles)

    outcomes: Iterator[Outcome] = isolated(
        PERCEIVE,
        islice(readable(), limit),
        limit=SECONDS_PER_MOLECULE,
        workers=workers or default_workers(),
        imports=["rdkit.Chem.rdDetermineBonds"],
    )
    molecules: list[Molecule] = []
    status: list[int] = []
    with progress_bar("perceiving bonds of QM9", show=progress) as update:
        for outcome in outcomes:
            record = records[outcome.index]
            name = f"qm9:{record.index:06d}"
            found = outcome.value
            if outcome.reason is not None:
                failures.append(Failure(record.index, outcome.reason, name))
                blank = [0] * len(record.numbers)
                found = {"smiles": "", "charges": blank, "bonds": [], "status": 3}
            molecules.append(
                Molecule(
                    id=name,
                    smiles=found["smiles"],
                    numbers=record.numbers,
                    positions=record.positions.astype(np.float32),
                    charges=np.array(found["charges"], np.int8),
                    bonds=np.array(found["bonds"], np.int16).reshape(-1, 3),
                    properties=record.properties,
                )
            )
            status.append(found["status"])
            update(len(molecules), limit or (None if path.is_dir() else MOLECULES))
    if not molecules:
        raise UserError(f"{path} holds no readable QM9 record")
    index = np.array([record.index for record in records[: len(molecules)]])
    return MoleculeTable.from_molecules(
        molecules,
        units=PROPERTY_UNITS,
        source=SOURCE,
        failures=failures,
        split=split[index - 1],
        status=np.array(status, np.int8),
        uncharacterized=np.isin(index, list(doubtful)),
    )
