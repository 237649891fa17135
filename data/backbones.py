"""Protein backbones for training and comparison: one table of many chains.

Chain i owns the residues ``offsets[i]:offsets[i+1]`` of flat arrays, so a selection is a gather and
nothing is padded. A table comes from one ``.npz`` (`read`), from a folder of structure files
(`from_folder`, see `driftworks.data.structures` for what is done about their flaws), or from the
frames of a molecular dynamics trajectory (`from_trajectory`).

Databases hold some folds a thousandfold, and a model trained on them as they are learns ubiquitin.
`weights` therefore gives every cluster of similar sequences the same chance, shared evenly by its
members. Sampling takes uniform numbers from its caller rather than drawing any, so a training run
stays a function of its seed.
"""

from __future__ import annotations

import os
import secrets
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from driftworks.data.progress import progress_bar
from driftworks.data.structures import (
    CLASSES,
    Piece,
    Reading,
    bonded,
    pieces_of,
    psea,
    read_structure,
    residue_numbers,
    sse_class,
)
from driftworks.data.table import SPLITS
from driftworks.errors import UserError

__all__ = ["CLASSES", "Backbones", "from_folder", "from_trajectory", "read"]

#: Residues a chain needs to be used, unless the caller says otherwise.
SHORTEST, LONGEST = 40, 256
#: Share of a broken chain that its longest piece must hold to stand for it.
LEAST_SHARE = 0.8
#: Shared words of five residues, of those of the shorter sequence, that make two chains neighbours.
WORD, SHARED = 5, 0.25
_MISSING = -32768


@dataclass(frozen=True, eq=False)
class Backbones:
    """n chains of R residues altogether.

    ids: n names; offsets: (n + 1,) int64
    bb: (R, 4, 3) float32 N, CA, C, O [angstrom], NaN where an atom is missing, CA always there
    residues: (R,) int64 residue numbers, a step other than 1 is a chain break
    letters: (R,) uint8 sequence in ASCII, X where unknown
    sse_class: (n,) int64, values of `CLASSES`
    cluster: (n,) int64, chains of similar sequence share a number
    split: (n,) int8, codes of `driftworks.data.table.SPLITS`
    skipped: what was left out, reason -> count; repaired: what was put right, kind -> count
    """

    ids: tuple[str, ...]
    offsets: NDArray[np.int64]
    coords: NDArray[np.float32]
    residues: NDArray[np.int64]
    letters: NDArray[np.uint8]
    sse_class: NDArray[np.int64]
    cluster: NDArray[np.int64]
    split: NDArray[np.int8]
    skipped: dict[str, int] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)
    source: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        left_out = sum(self.skipped.values())
        note = f", {left_out} left out" if left_out else ""
        return f"Backbones({len(self)} chains, {self.offsets[-1]} residues{note})"

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) residues of each chain."""
        return np.diff(self.offsets)

    def _span(self, i: int) -> slice:
        if not -len(self) <= i < len(self):
            raise IndexError(f"chain {i} of {len(self)}")
        i %= len(self)
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))

    def ca(self, i: int) -> NDArray[np.float32]:
        """(n, 3) C-alpha atoms of chain i [angstrom]."""
        return self.coords[self._span(i), 1]

    def bb(self, i: int) -> NDArray[np.float32]:
        """(n, 4, 3) N, CA, C, O of chain i [angstrom], NaN where an atom is missing."""
        return self.coords[self._span(i)]

    def sequence(self, i: int) -> str:
        """One letter a residue."""
        return self.letters[self._span(i)].tobytes().decode("ascii")

    def numbers(self, i: int) -> NDArray[np.int64]:
        """(n,) residue numbers of chain i."""
        return self.residues[self._span(i)]

    @property
    def complete(self) -> NDArray[np.bool_]:
        """(n,) bool: every residue has all four atoms."""
        return self._every(np.asarray(np.isfinite(self.coords).all(axis=(1, 2))))

    @property
    def unbroken(self) -> NDArray[np.bool_]:
        """(n,) bool: no gap inside the chain."""
        step = np.ones(len(self.residues), bool)
        step[1:] = np.diff(self.residues) == 1
        step[self.offsets[:-1]] = True
        return self._every(step)

    def _every(self, good: NDArray[np.bool_]) -> NDArray[np.bool_]:
        bad = np.concatenate([np.zeros(1, np.int64), np.cumsum(~good)])
        return np.asarray(bad[self.offsets[1:]] == bad[self.offsets[:-1]])

    def rows(
        self,
        split: str | None = None,
        lengths: tuple[int, int] | None = None,
        classes: Iterable[str] | None = None,
        complete: bool = False,
    ) -> NDArray[np.int64]:
        """Row numbers that pass all the filters given.

        split: one of `SPLITS`; lengths: least and most residues; classes: names of `CLASSES`;
        complete: only chains with every backbone atom.
        """
        keep = np.ones(len(self), bool)
        if split is not None:
            if split not in SPLITS:
                raise UserError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
            keep &= self.split == SPLITS[split]
        if lengths is not None:
            low, high = lengths
            if low > high:
                raise UserError(f"lengths = {lengths}: expected least <= most")
            keep &= (self.lengths >= low) & (self.lengths <= high)
        if classes is not None:
            asked = list(classes)
            for name in asked:
                if name not in CLASSES:
                    raise UserError(f"unknown class {name!r}; choose from {', '.join(CLASSES)}")
            keep &= np.isin(self.sse_class, [CLASSES[name] for name in asked])
        if complete:
            keep &= self.complete
        return np.flatnonzero(keep)

    def select(self, rows: ArrayLike) -> Backbones:
        """The table of some rows, in the order given."""
        chosen = np.asarray(rows, np.int64).reshape(-1)
        spans = [self._span(int(i)) for i in chosen]
        where = np.concatenate([np.arange(s.start, s.stop) for s in spans] or [chosen])
        counts = np.array([s.stop - s.start for s in spans], np.int64)
        return replace(
            self,
            ids=tuple(self.ids[int(i)] for i in chosen),
            offsets=_offsets(counts),
            coords=self.coords[where],
            residues=self.residues[where],
            letters=self.letters[where],
            sse_class=self.sse_class[chosen],
            cluster=self.cluster[chosen],
            split=self.split[chosen],
        )

    def weights(self, rows: ArrayLike | None = None) -> NDArray[np.float64]:
        """Chance of each row so that every cluster among them has the same; they sum to one."""
        chosen = self._some(rows)
        _, member, sizes = np.unique(self.cluster[chosen], return_inverse=True, return_counts=True)
        return np.asarray(1.0 / (sizes[member] * len(sizes)))

    def draw(self, uniform: ArrayLike, rows: ArrayLike | None = None) -> NDArray[np.int64]:
        """Rows drawn with the chances of `weights` by uniform numbers in [0, 1), one a draw."""
        chosen = self._some(rows)
        u = np.asarray(uniform, np.float64)
        if ((u < 0) | (u >= 1)).any():
            raise UserError("uniform numbers must lie in [0, 1)")
        edges = np.cumsum(self.weights(chosen))
        picked = np.searchsorted(edges, u * edges[-1], side="right")
        return np.asarray(chosen[np.minimum(picked, len(chosen) - 1)])

    def crop(self, i: int, length: int, uniform: float) -> slice:
        """A contiguous unbroken stretch of `length` residues of chain i, as a slice of it.

        The start is uniform over all stretches without a gap; the whole chain where it is no
        longer than `length`. Raises `UserError` where every stretch of that length has a gap.
        """
        n = int(self.lengths[i])
        if length < 1:
            raise UserError(f"a stretch of {length} residues cannot be cut")
        if n <= length:
            return slice(0, n)
        numbers = self.numbers(i)
        starts = np.flatnonzero(numbers[length - 1 :] - numbers[: n - length + 1] == length - 1)
        if not len(starts):
            raise UserError(f"chain {self.ids[i]} has no {length} residues in a row")
        start = int(starts[min(int(uniform * len(starts)), len(starts) - 1)])
        return slice(start, start + length)

    def _some(self, rows: ArrayLike | None) -> NDArray[np.int64]:
        chosen = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        if not len(chosen):
            raise UserError("no chains to choose from")
        return chosen

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the table as one ``.npz`` that `read` gives back (to 0.005 angstrom)."""
        path = Path(path)
        scaled = np.round(self.coords * 100)
        largest = np.nanmax(np.abs(scaled), initial=0)
        # Coordinates far from the origin would not fit two bytes: store them as they are.
        kind: Any = np.int16 if largest < 32767 else np.float32
        stored = np.where(np.isfinite(scaled), scaled, _MISSING)
        columns = {
            "ids": np.array(self.ids, dtype=np.str_),
            "offsets": self.offsets,
            "bb": stored.astype(kind),
            "seq": self.letters,
            "residues": self.residues,
            "sse_class": (self.sse_class + 1).astype(np.uint8),
            "cluster40": self.cluster,
            "split": self.split,
            "scale": np.float32(0.01),
        }
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with open(partial, "wb") as handle:
                np.savez_compressed(handle, **columns)  # type: ignore[arg-type]
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def read(path: str | os.PathLike[str]) -> Backbones:
    """A table from one ``.npz``.

    Arrays: ``ids`` (n,), ``offsets`` (n + 1,), ``bb`` (R, 4, 3) or (R, 3) in units of ``scale``
    angstrom (integers, missing -32768) or in angstrom (floats); and where there are any ``seq``
    (R,), ``residues`` (R,), ``sse_class`` (n,) 1 alpha, 2 beta, 3 mixed, 4 few, 5 unknown,
    ``cluster40`` or ``cluster`` (n,), ``split`` (n,).

    Raises `UserError` for a file that is absent, damaged, or whose arrays do not fit together.
    """
    file = Path(path)
    if not file.exists():
        raise UserError(f"no file of backbones at {file}")
    try:
        with np.load(file, allow_pickle=False) as archive:
            columns = {key: archive[key] for key in archive.files if key in _KEYS}
    except Exception as error:  # whatever numpy, zipfile and zlib raise for damaged bytes
        raise UserError(f"{file} is damaged or not a file of backbones ({error})") from error
    for key in ("ids", "offsets", "bb"):
        if key not in columns:
            raise UserError(f"{file} has no array {key!r}")
    return _checked(columns, file)


_KEYS = {
    "ids",
    "offsets",
    "bb",
    "seq",
    "residues",
    "sse_class",
    "cluster40",
    "cluster",
    "split",
} | {"scale"}


def _checked(columns: dict[str, NDArray[Any]], file: Path) -> Backbones:
    offsets = columns["offsets"].astype(np.int64)
    n, bb = len(columns["ids"]), columns["bb"]
    total = int(offsets[-1]) if len(offsets) else 0
    if offsets.shape != (n + 1,) or offsets[0] != 0 or (np.diff(offsets) < 1).any():
        raise UserError(f"{file}: offsets do not divide residues among {n} chains")
    if bb.shape not in ((total, 4, 3), (total, 3)):
        raise UserError(f"{file}: bb has shape {bb.shape}, expected ({total}, 4, 3)")
    lengths = {
        "seq": total, "residues": total, "sse_class": n, "cluster40": n, "cluster": n, "split": n,
    }  # fmt: skip
    for key, size in lengths.items():
        if key in columns and columns[key].shape != (size,):
            raise UserError(f"{file}: {key} has shape {columns[key].shape}, expected ({size},)")
    scale = float(columns["scale"]) if "scale" in columns else 0.01
    coords = np.full((total, 4, 3), np.nan, np.float32)
    values = bb.astype(np.float32)
    missing = values == _MISSING
    if bb.dtype.kind in "iu" or "scale" in columns:
        values *= scale
    values[missing] = np.nan
    if bb.ndim == 2:
        coords[:, 1] = values
    else:
        coords[:] = values
    if not np.isfinite(coords[:, 1]).all():
        bad = np.flatnonzero(~np.isfinite(coords[:, 1]).all(axis=1))[0]
        row = int(np.searchsorted(offsets, bad, "right"))
        raise UserError(f"{file}: chain {columns['ids'][row - 1]} has a residue without C-alpha")
    numbers = np.arange(total) - np.repeat(offsets[:-1], np.diff(offsets))
    classes = columns["sse_class"].astype(np.int64) - 1 if "sse_class" in columns else None
    if classes is not None and ((classes < 0) | (classes > CLASSES["unknown"])).any():
        raise UserError(f"{file}: sse_class holds values outside 1..5")
    cluster = columns.get("cluster40", columns.get("cluster", np.arange(n)))
    letters = columns.get("seq", np.full(total, ord("X")))
    return Backbones(
        ids=tuple(str(name) for name in columns["ids"]),
        offsets=offsets,
        coords=coords,
        residues=columns.get("residues", numbers).astype(np.int64),
        letters=letters.astype(np.uint8),
        sse_class=np.full(n, CLASSES["unknown"]) if classes is None else classes,
        cluster=cluster.astype(np.int64),
        split=columns.get("split", np.zeros(n)).astype(np.int8),
        source=file.name,
    )


def from_folder(
    folder: str | os.PathLike[str],
    lengths: tuple[int, int] = (SHORTEST, LONGEST),
    gaps: bool = False,
    progress: bool = False,
) -> Backbones:
    """The protein chains of all structure files below a folder (or of one file).

    PDB, mmCIF and BinaryCIF, each also gzipped. Clusters are made by shared words of five residues,
    the split (90/5/5 %) by cluster, so that no cluster lies on both sides.

    lengths: least and most residues of a chain
    gaps: keep broken chains whole, with jumps in their residue numbers. Otherwise the longest
        unbroken piece stands for its chain where it holds 80 % of it, and the chain is skipped
        where it does not.

    Raises `UserError` for a folder that is absent, or without one usable chain.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"no folder {folder}")
    if lengths[0] < 1 or lengths[0] > lengths[1]:
        raise UserError(f"lengths = {lengths}: expected 1 <= least <= most")
    files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else [folder]
    skipped: Counter[str] = Counter()
    repaired: Counter[str] = Counter()
    kept: list[Piece] = []
    with progress_bar(f"reading {folder.name}", len(files), show=progress) as update:
        for done, file in enumerate(files, start=1):
            reading = read_structure(file)
            skipped.update(reading.skipped)
            repaired.update(reading.repaired)
            kept += _usable(reading, lengths, gaps, skipped)
            update(done, len(files))
    if not kept:
        listed = ", ".join(f"{reason} ({count})" for reason, count in skipped.most_common(5))
        raise UserError(
            f"{folder} holds no usable protein chain" + (f": {listed}" if listed else "")
        )
    kept = _named_apart(kept)
    cluster = clusters_of([piece.sequence for piece in kept])
    return _table(kept, cluster, _split(kept, cluster), skipped, repaired, folder.name)


def _usable(
    reading: Reading, lengths: tuple[int, int], gaps: bool, skipped: Counter[str]
) -> list[Piece]:
    out = []
    for piece in reading.pieces:
        for part in [piece] if gaps else pieces_of(piece, LEAST_SHARE):
            if isinstance(part, str):
                skipped[part] += 1
            elif len(part) < lengths[0]:
                skipped[f"shorter than {lengths[0]} residues"] += 1
            elif len(part) > lengths[1]:
                skipped[f"longer than {lengths[1]} residues"] += 1
            else:
                out.append(part)
    return out


def _named_apart(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces of equal name (files of one name in two folders) numbered from the second on."""
    seen: Counter[str] = Counter()
    out = []
    for piece in pieces:
        seen[piece.id] += 1
        count = seen[piece.id]
        out.append(piece if count == 1 else replace(piece, id=f"{piece.id}#{count}"))
    return out


def _table(
    pieces: Sequence[Piece],
    cluster: NDArray[np.int64],
    split: NDArray[np.int8],
    skipped: Counter[str],
    repaired: Counter[str],
    source: str,
) -> Backbones:
    classes = []
    for piece in pieces:
        sse = psea(piece.bb[:, 1])
        classes.append(sse_class(float((sse == "a").mean()), float((sse == "b").mean())))
    letters = "".join(piece.sequence for piece in pieces).encode("ascii")
    return Backbones(
        ids=tuple(piece.id for piece in pieces),
        offsets=_offsets(np.array([len(piece) for piece in pieces], np.int64)),
        coords=np.concatenate([piece.bb for piece in pieces]),
        residues=np.concatenate([piece.numbers - piece.numbers[0] for piece in pieces]),
        letters=np.frombuffer(letters, np.uint8),
        sse_class=np.array(classes, np.int64),
        cluster=cluster,
        split=split,
        skipped=dict(skipped),
        repaired=dict(repaired),
        source=source,
    )


def clusters_of(sequences: Sequence[str]) -> NDArray[np.int64]:
    """(n,) cluster numbers: chains that share many words of five residues are together.

    Greedy, longest first: a sequence joins the cluster whose representative shares the largest part
    of the words of the shorter of the two, if that is a quarter or more. Two sequences of
    independent errors at identity p share about p^5 of their words, so a quarter is about three
    residues in four; real homologs conserve in stretches and are joined at less. It is a guard
    against counting one protein many times, no replacement for a clustering by alignment.
    """
    out = np.full(len(sequences), -1, np.int64)
    holders: defaultdict[str, list[int]] = defaultdict(list)
    sizes: dict[int, int] = {}
    for i in sorted(range(len(sequences)), key=lambda k: (-len(sequences[k]), k)):
        text = sequences[i]
        words = {text[k : k + WORD] for k in range(len(text) - WORD + 1)}
        words = {word for word in words if "X" not in word}
        shared = Counter(owner for word in words for owner in holders[word])
        best = max(shared, key=lambda k: (shared[k], -k), default=None)
        if best is not None and shared[best] >= SHARED * min(len(words), sizes[best]):
            out[i] = out[best]
            continue
        out[i] = i
        sizes[i] = len(words)
        for word in words:
            holders[word].append(i)
    return np.unique(out, return_inverse=True)[1].astype(np.int64)


def _split(pieces: Sequence[Piece], cluster: NDArray[np.int64]) -> NDArray[np.int8]:
    """90/5/5 by the name of each cluster's first member: more files do not move the old ones."""
    first = [int(np.flatnonzero(cluster == c)[0]) for c in range(int(cluster.max()) + 1)]
    bucket = np.array([zlib.crc32(pieces[i].sequence.encode()) % 20 for i in first])
    code = np.where(bucket == 0, SPLITS["valid"], np.where(bucket == 1, SPLITS["test"], 0))
    return code[cluster].astype(np.int8)


def from_trajectory(
    path: str | os.PathLike[str],
    topology: str | os.PathLike[str] | None = None,
    stride: int = 1,
    lengths: tuple[int, int] = (SHORTEST, LONGEST),
) -> Backbones:
    """The protein chains of each frame of a trajectory that mdtraj can read.

    topology: a structure file, for formats that hold coordinates only; stride: every how many
    frames one is kept. All frames of a chain are one cluster.

    Raises `UserError` where mdtraj is missing or cannot read the file, or no chain is left.
    """
    try:
        import mdtraj
    except ImportError as error:
        raise UserError(
            "trajectories are read through mdtraj: pip install 'driftworks[protein]'"
        ) from error
    path = Path(path)
    if not path.exists():
        raise UserError(f"no trajectory at {path}")
    options = {} if topology is None else {"top": os.fspath(topology)}
    try:
        frames = mdtraj.load(os.fspath(path), stride=stride, **options)
    except Exception as error:  # its readers raise whatever the damage leads them to
        raise UserError(f"mdtraj cannot read {path} ({error})") from error
    skipped: Counter[str] = Counter()
    repaired: Counter[str] = Counter()
    kept: list[Piece] = []
    cluster: list[int] = []
    for chain in frames.topology.chains:
        residues = [
            r for r in chain.residues if r.is_protein and any(a.name == "CA" for a in r.atoms)
        ]
        if not residues:
            skipped["chain without amino acids"] += 1
            continue
        bb = np.full((frames.n_frames, len(residues), 4, 3), np.nan, np.float32)
        for row, residue in enumerate(residues):
            for atom in residue.atoms:
                if atom.name in ("N", "CA", "C", "O"):
                    column = ("N", "CA", "C", "O").index(atom.name)
                    bb[:, row, column] = frames.xyz[:, atom.index] * 10  # nm to angstrom
        sequence = "".join(r.code or "X" for r in residues)
        numbers = residue_numbers(bonded(bb[0]))  # the topology is that of every frame
        for frame, coords in enumerate(bb):
            reading = Reading()
            reading.pieces.append(
                Piece(f"{path.stem}_{chain.index}@{frame}", coords, sequence, numbers)
            )
            parts = _usable(reading, lengths, True, skipped)
            kept += parts
            cluster += [chain.index] * len(parts)
    if not kept:
        listed = ", ".join(f"{reason} ({count})" for reason, count in skipped.most_common(5))
        raise UserError(f"{path} holds no usable protein chain: {listed}")
    _, numbered = np.unique(cluster, return_inverse=True)
    codes = np.zeros(len(kept), np.int8)
    return _table(kept, numbered.astype(np.int64), codes, skipped, repaired, path.name)
