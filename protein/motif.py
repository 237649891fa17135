r"""Motifs: residues of a structure file that a design is to hold, and the free ones around them.

    motif = Motif.read("target.pdb", "10-20/A12-25/5-15/B3-9/10", length=(60, 80))

Contigs list the designed chain from its first residue to its last. ``A12-25`` are residues 12 to 25
of chain A, numbered as their authors did (insertion codes between them included), with their places
in the file; ``10`` is ten free residues and ``10-20`` ten to twenty, drawn for each design. All
held residues keep their places relative to each other, whatever chains they come from.

The free numbers (k_1, ..., k_F) of a design are uniform over all combinations within the ranges
whose chain has an allowed length. They are drawn one after the other, k_j with probability
W_j+1(u + k_j) / W_j(u), where u residues are used up and W_j(u) counts the ways to go on,

    W_j(u) = sum_k W_j+1(u + k),        W_F(u) = 1 if the length is allowed, else 0.

The notation is that of RFdiffusion (Watson et al. 2023, "De novo design of protein structure and
function with RFdiffusion"), without chain breaks: a design is one chain.
"""

from __future__ import annotations

import gzip
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from driftworks.core.keys import Keys
from driftworks.data.structures import (
    CA_STEP,
    SUFFIXES,
    Reading,
    letter_of,
    parse_atoms,
    read_structure,
)
from driftworks.errors import UserError

__all__ = ["Free", "Held", "Layout", "Motif", "parse_contigs"]

EXAMPLE = "10-20/A12-25/15-30"
#: Neighbours along a chain are this far apart [angstrom].
STEP = 3.8
#: A design of more residues is a mistake of typing.
LONGEST = 10_000


class Free(NamedTuple):
    """Free residues, their least and greatest number."""

    least: int
    most: int


class Held(NamedTuple):
    """Residues ``first`` to ``last`` of a chain of the file."""

    chain: str
    first: int
    last: int


class Layout(NamedTuple):
    """Where a design has its motif.

    length: residues; positions: (m,) int64 of the motif's residues, from 0; contigs: the design in
    the notation of the file's docstring, with the numbers that were drawn
    """

    length: int
    positions: NDArray[np.int64]
    contigs: str


class _Residue(NamedTuple):
    number: int
    name: str  # chain, number and insertion code
    letter: str
    ca: NDArray[np.float32] | None


def parse_contigs(text: str) -> tuple[Free | Held, ...]:
    """The pieces of contigs, without looking into any file.

    Raises `UserError` that names the piece it does not understand, and for contigs that hold
    nothing or leave nothing free.
    """
    pieces: list[Free | Held] = []
    words = text.strip().removeprefix("[").removesuffix("]").split("/")
    for word in (w.strip() for w in words):
        found = re.fullmatch(r"([A-Za-z]+)(-?\d+)(?:-(-?\d+))?|(\d+)(?:-(\d+))?", word)
        if not found:
            raise UserError(
                f"contigs {text!r}: {word!r} is neither residues of a chain like A12-25 nor a "
                f"number of free ones like 10 or 10-20; an example is {EXAMPLE}"
            )
        chain, *numbers = found.groups()
        first, last = numbers[:2] if chain else numbers[2:]
        low, high = int(first), int(last or first)
        if low > high:
            raise UserError(f"contigs {text!r}: the range {word!r} is empty")
        if chain:
            pieces.append(Held(chain, low, high))
            continue
        if high == 0:
            raise UserError(
                f"contigs {text!r}: {word!r} would break the chain, and a design is one chain"
            )
        if high > LONGEST:
            raise UserError(f"contigs {text!r}: {word!r} is more than {LONGEST} free residues")
        pieces.append(Free(low, high))
    if not any(isinstance(piece, Held) for piece in pieces):
        raise UserError(f"contigs {text!r} hold no residue of the file; an example is {EXAMPLE}")
    if not any(isinstance(piece, Free) for piece in pieces):
        raise UserError(f"contigs {text!r} leave no residue free: there is nothing to design")
    return tuple(pieces)


@dataclass(frozen=True, eq=False)
class Motif:
    """Residues to hold, and how many free ones may stand before, between and behind them.

    pieces: the contigs; counts: residues of each of the `Held` among them
    ca: (m, 3) float32 C-alphas [angstrom] in the frame of the file; names: m residues as in ``A12``
    sequence: m letters; lengths: least and most residues of a design; source: name of the file
    """

    pieces: tuple[Free | Held, ...]
    counts: tuple[int, ...]
    ca: NDArray[np.float32]
    names: tuple[str, ...]
    sequence: str
    lengths: tuple[int, int]
    source: str

    @classmethod
    def read(
        cls, path: str | Path, contigs: str, length: int | tuple[int, int] | None = None
    ) -> Motif:
        """The motif of a PDB, mmCIF or BinaryCIF file (also gzipped; its first model).

        length: residues of a design, or their least and most; by default all that contigs allow

        Raises `UserError` for contigs that cannot be read, a file that is absent, empty or broken,
        residues that it lacks or knows no C-alpha of, residues too far apart for those between them
        in the design, and lengths that the contigs cannot have.
        """
        path, pieces = Path(path), parse_contigs(contigs)
        chains = _chains(path)
        held = [
            _found(piece, chains, path.name) for piece in pieces if isinstance(piece, Held)
        ]
        residues = [one for some in held for one in some]
        names = tuple(one.name for one in residues)
        if twice := next((name for k, name in enumerate(names) if name in names[:k]), None):
            raise UserError(f"contigs {contigs!r} hold residue {twice} twice")
        motif = cls(
            pieces, tuple(map(len, held)), np.array([one.ca for one in residues], np.float32),
            names, "".join(one.letter for one in residues),
            _lengths(pieces, len(names), length), path.name,
        )
        motif._check_reach()
        return motif

    def __repr__(self) -> str:
        low, high = self.lengths
        return f"Motif({len(self)} residues of {self.source} in chains of {low}-{high})"

    def __len__(self) -> int:
        return len(self.names)

    @property
    def contigs(self) -> str:
        """What was asked for, in the notation of the file's docstring."""
        return "/".join(map(_written, self.pieces))

    @property
    def free(self) -> tuple[Free, ...]:
        """The ranges of free residues."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Free))

    @cached_property
    def _ways(self) -> list[list[int]]:
        low, high = (size - len(self) for size in self.lengths)
        return _ways(self.free, low, high)

    def layouts(self, keys: Keys) -> list[Layout]:
        """The layout of each key's design; it depends on that key alone."""
        words = keys.words("contigs", 0, (len(self.free),))
        return [self._layout(row) for row in words.tolist()]

    def _layout(self, words: Sequence[int]) -> Layout:
        drawn: list[int] = []
        for j, (span, word) in enumerate(zip(self.free, words, strict=True)):
            used, onward = sum(drawn), self._ways[j + 1]
            count, rank = span.least, word * self._ways[j][used] >> 32  # ways exceed any float
            while rank >= onward[used + count]:
                rank -= onward[used + count]
                count += 1
            drawn.append(count)
        free, held, row = iter(drawn), iter(self.counts), 0
        positions: list[int] = []
        written = []
        for piece in self.pieces:
            if isinstance(piece, Held):
                count = next(held)
                positions += range(row, row + count)
                written.append(_written(piece))
            elif count := next(free):
                written.append(str(count))
            row += count
        return Layout(row, np.array(positions, np.int64), "/".join(written))

    def _check_reach(self) -> None:
        """`UserError` where held residues are too far apart for what stands between them."""
        row, between, sizes = 0, 0, iter(self.counts)
        for piece in self.pieces:
            if isinstance(piece, Free):
                between += piece.least
                continue
            for _ in range(next(sizes)):
                if row:
                    self._check_step(row, between)
                row, between = row + 1, 0

    def _check_step(self, row: int, between: int) -> None:
        distance = float(np.linalg.norm(self.ca[row] - self.ca[row - 1]))
        if distance <= STEP * between + CA_STEP:
            return
        least = math.ceil((distance - CA_STEP) / STEP)
        raise UserError(
            f"residues {self.names[row - 1]} and {self.names[row]} of {self.source} are "
            f"{distance:.1f} angstrom apart, too far for {between} free residues between them: "
            f"put {least} or more there"
        )


def _written(piece: Free | Held) -> str:
    low, high = piece[-2:]
    chain = piece.chain if isinstance(piece, Held) else ""
    return f"{chain}{low}" if low == high else f"{chain}{low}-{high}"


def _ways(free: Sequence[Free], low: int, high: int) -> list[list[int]]:
    """W_j(u) of the file's docstring for j = 0..F and every u that can be used up."""
    most = sum(piece.most for piece in free)
    ways = [[int(low <= u <= high) for u in range(most + 1)]]
    for piece in reversed(free):
        sums = [0, *itertools.accumulate(ways[0])]
        ways.insert(0, [
            sums[min(u + piece.most, most) + 1] - sums[min(u + piece.least, most + 1)]
            for u in range(most + 1)
        ])
    return ways


def _lengths(
    pieces: Sequence[Free | Held], held: int, wanted: int | tuple[int, int] | None
) -> tuple[int, int]:
    """The least and greatest length of a design that is both wanted and possible."""
    free = [piece for piece in pieces if isinstance(piece, Free)]
    low = held + max(1, sum(piece.least for piece in free))
    high = held + sum(piece.most for piece in free)
    if wanted is None:
        return low, high
    span = np.asarray(wanted)
    if span.dtype.kind not in "iu" or span.shape not in ((), (2,)):
        raise UserError(f"length {wanted!r} is no whole number and no pair (least, most)")
    least, most = np.broadcast_to(span, 2).tolist()
    if least > most:
        raise UserError(f"length {wanted!r}: the range is empty")
    if most <= held:
        raise UserError(
            f"the motif has {held} residues: no room for it and a free one in a chain of {most}"
        )
    if max(low, least) > min(high, most):
        asked = f"{least}" if least == most else f"{least}-{most}"
        raise UserError(
            f"no chain of {asked} residues: the motif's {held} and the free ones of the contigs "
            f"make {low}-{high}"
        )
    return max(low, least), min(high, most)


def _chains(path: Path) -> dict[str, list[_Residue]]:
    """The amino acids of each chain of a file, in its order and with its numbers."""
    import biotite.structure as struc

    if not path.is_file():
        raise UserError(f"no structure file at {path}")
    reading = read_structure(path)
    if not reading.pieces:
        reasons = ", ".join(sorted(reading.skipped)) or "no amino acids"
        raise UserError(f"{path} holds no usable protein chain: {reasons}")
    raw, name = path.read_bytes(), path.name.lower()
    if name.endswith(".gz"):
        raw, name = gzip.decompress(raw), name.removesuffix(".gz")
    # once more, for the numbers their authors gave them: tables of backbones do without
    atoms = parse_atoms(raw, next(end for end in SUFFIXES if name.endswith(end)), Reading())
    atoms = atoms[struc.filter_amino_acids(atoms)]
    out: dict[str, list[_Residue]] = {}
    starts = struc.get_residue_starts(atoms, add_exclusive_stop=True).tolist()
    for start, stop in zip(starts[:-1], starts[1:], strict=True):
        out.setdefault(str(atoms.chain_id[start]).strip(), []).append(_residue(atoms[start:stop]))
    return out


def _residue(atoms: Any) -> _Residue:
    rows = np.flatnonzero(atoms.atom_name == "CA")
    ca = atoms.coord[rows[0]].astype(np.float32) if len(rows) else None
    if ca is not None and not np.isfinite(ca).all():
        ca = None
    number = int(atoms.res_id[0])
    name = f"{str(atoms.chain_id[0]).strip()}{number}{str(atoms.ins_code[0]).strip()}"
    return _Residue(number, name, letter_of(str(atoms.res_name[0])), ca)


def _found(piece: Held, chains: dict[str, list[_Residue]], source: str) -> list[_Residue]:
    """The residues of a piece; `UserError` unless all of them are there."""
    if piece.chain not in chains:
        listed = ", ".join(name or "one without a letter" for name in chains)
        raise UserError(f"{source} has no protein chain {piece.chain}; its chains: {listed}")
    chain = chains[piece.chain]
    there = {one.number for one in chain}
    lacking = [k for k in range(piece.first, piece.last + 1) if k not in there]
    if lacking:
        raise UserError(
            f"residue {piece.chain}{lacking[0]} is not in {source}: chain {piece.chain} has "
            f"{len(chain)} residues from {min(there)} to {max(there)}"
        )
    found = [one for one in chain if piece.first <= one.number <= piece.last]
    if bare := next((one.name for one in found if one.ca is None), None):
        raise UserError(f"residue {bare} of {source} has no C-alpha atom")
    return found
