"""Protein backbones out of structure files: PDB, mmCIF and BinaryCIF, gzipped or not.

A file is read as it is and turned into chains of residues, each with N, C-alpha, C and O where they
were seen. What experimental files do to a reader, and what is done about it:

    several models          the first one counts
    alternate locations     the one of highest occupancy
    the same atom twice     the first one counts
    modified residues       kept when the component dictionary calls them amino acids (MSE is M)
    a residue without CA    left out, which breaks the chain there
    N, C or O missing       NaN in their place; the chain has no complete backbone
    a broken chain          two residues are bonded when C and N lie within 2 angstrom of each
                            other, or, where one of them is missing, the C-alphas within 4.2
    cis peptides            C-alphas 2.9 rather than 3.8 angstrom apart; kept and counted
    the same chain twice    one of the chains of equal sequence in a file is kept

Nothing disappears silently: what was left out is counted by its reason, what was repaired is
counted too. Secondary structure is P-SEA's (Labesse et al., CABIOS 13, 291, 1997) by biotite.
"""

from __future__ import annotations

import gzip
import io
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ATOMS",
    "CLASSES",
    "SUFFIXES",
    "Piece",
    "Reading",
    "letter_of",
    "parse_atoms",
    "psea",
    "read_structure",
    "sse_class",
]

#: The atoms of a backbone, in the order of the second axis of every (n, 4, 3) array.
ATOMS = ("N", "CA", "C", "O")

#: Secondary-structure class of a chain.
CLASSES = {"alpha": 0, "beta": 1, "mixed": 2, "few": 3, "unknown": 4}

SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif", ".bcif")

PEPTIDE_BOND = 2.0
CA_STEP = 4.2
CIS_STEP = 3.4


@dataclass(frozen=True, eq=False)
class Piece:
    """A chain of n residues as it stands in a file.

    id: name of the file and of the chain; bb: (n, 4, 3) float32 [angstrom], NaN where an atom is
    missing, C-alphas always there; sequence: n letters, X where unknown; numbers: (n,) int64, one
    more at each bonded residue and at least two more across a gap
    """

    id: str
    bb: NDArray[np.float32]
    sequence: str
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sequence)

    def bonded_runs(self) -> list[slice]:
        """The unbroken stretches, in order."""
        cuts = np.flatnonzero(np.diff(self.numbers) != 1) + 1
        edges = [0, *cuts.tolist(), len(self)]
        return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if b > a]

    def part(self, piece: slice) -> Piece:
        """A stretch of the chain, named by its first and last residue (from 1)."""
        name = f"{self.id}:{piece.start + 1}-{piece.stop}"
        return Piece(name, self.bb[piece], self.sequence[piece], self.numbers[piece])


@dataclass
class Reading:
    """What a file gave: its chains; how often something was left out, or repaired."""

    pieces: list[Piece] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)


def structure_suffix(path: Path) -> str | None:
    """The kind of structure file by its name, None for any other file."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def read_structure(path: str | Path) -> Reading:
    """The protein chains of one file, never an exception for what the file holds.

    A file that cannot be read is one skip whose reason says why.
    """
    path = Path(path)
    out = Reading()
    suffix = structure_suffix(path)
    if suffix is None:
        out.skipped[f"not a structure file ({path.suffix or 'no suffix'})"] += 1
        return out
    try:
        raw = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            raw = gzip.decompress(raw)
    except (OSError, EOFError, ValueError) as error:
        out.skipped[f"unreadable file ({type(error).__name__})"] += 1
        return out
    if not raw.strip():
        out.skipped["empty file"] += 1
        return out
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # biotite's remarks on guessed elements
            atoms = parse_atoms(raw, suffix, out)
    except Exception as error:
        # Parsers raise whatever the damage leads them to; all of it means the same here.
        out.skipped[f"broken file ({type(error).__name__})"] += 1
        return out
    stem = path.name
    for ending in (".gz", ".GZ", suffix, suffix.upper()):
        stem = stem.removesuffix(ending)
    _chains(atoms, stem, out)
    return out


def parse_atoms(raw: bytes, suffix: str, out: Reading) -> Any:
    """The atoms of the first model of a file's content, with one location each.

    ``suffix`` is one of `SUFFIXES`; what is left out is counted in ``out``. Returns an AtomArray.
    """
    import biotite.structure as struc

    wanted = ["occupancy", "b_factor"]
    if suffix in (".pdb", ".ent"):
        from biotite.structure.io import pdb

        file = pdb.PDBFile.read(io.StringIO(raw.decode("utf-8", errors="replace")))
        models = file.get_model_count()
        if not any(line.startswith(("ATOM  ", "HETATM")) for line in file.lines):
            raise _NoAtoms
        atoms = file.get_structure(model=1, altloc="all", extra_fields=wanted)
    else:
        from biotite.structure.io import pdbx

        if suffix == ".bcif":
            cif: Any = pdbx.BinaryCIFFile.read(io.BytesIO(raw))
        else:
            cif = pdbx.CIFFile.read(io.StringIO(raw.decode("utf-8", errors="replace")))
        if not len(cif) or "atom_site" not in cif.block:
            raise _NoAtoms
        models = pdbx.get_model_count(cif)
        have = set(cif.block["atom_site"].keys())
        present = [name for name, key in _CIF_FIELDS.items() if key in have]
        atoms = pdbx.get_structure(cif, model=1, altloc="all", extra_fields=present)
    if models > 1:
        out.repaired["model after the first"] += models - 1
    categories = atoms.get_annotation_categories()
    altloc = np.char.strip(atoms.altloc_id.astype(str))
    second = ~np.isin(altloc, ["", ".", "?", " "])
    if second.any():
        if "occupancy" in categories:
            keep = struc.filter_highest_occupancy_altloc(atoms, atoms.altloc_id, atoms.occupancy)
        else:
            keep = struc.filter_first_altloc(atoms, atoms.altloc_id)
        out.repaired["atom at an alternate location"] += int((~keep).sum())
        atoms = atoms[keep]
    return atoms


_CIF_FIELDS = {"occupancy": "occupancy", "b_factor": "B_iso_or_equiv"}


class _NoAtoms(Exception):
    """The file holds no atoms."""


def _chains(atoms: Any, stem: str, out: Reading) -> None:
    """Chain after chain of the amino acids among the atoms."""
    import biotite.structure as struc

    amino = struc.filter_amino_acids(atoms)
    names = list(dict.fromkeys(atoms.chain_id.tolist()))
    seen: set[str] = set()
    for name in names:
        inside = atoms.chain_id == name
        if not amino[inside].any():
            water = struc.filter_solvent(atoms[inside]).all()
            out.skipped["chain of solvent" if water else "chain without amino acids"] += 1
            continue
        piece = _piece(atoms[inside & amino], f"{stem}_{name}" if name.strip() else stem, out)
        if piece is None:
            continue
        if piece.sequence in seen and set(piece.sequence) != {"X"}:
            out.skipped["chain with the sequence of another in its file"] += 1
            continue
        seen.add(piece.sequence)
        out.pieces.append(piece)


def _piece(atoms: Any, name: str, out: Reading) -> Piece | None:
    import biotite.structure as struc

    starts = struc.get_residue_starts(atoms, add_exclusive_stop=True)
    owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    bb = np.full((len(starts) - 1, len(ATOMS), 3), np.nan, np.float32)
    for column, atom in enumerate(ATOMS):
        rows = np.flatnonzero(atoms.atom_name == atom)
        residues, first = np.unique(owner[rows], return_index=True)
        out.repaired["atom given twice"] += len(rows) - len(residues)
        bb[residues, column] = atoms.coord[rows[first]]
    finite = np.asarray(np.isfinite(bb).all(axis=-1))
    bb[~finite] = np.nan
    there = finite[:, 1]
    if not there.any():
        out.skipped["chain without C-alpha atoms"] += 1
        return None
    out.repaired["residue without C-alpha"] += int((~there).sum())
    out.repaired["residue without N, C or O"] += int((there & ~finite.all(axis=1)).sum())
    letters = [letter_of(str(atoms.res_name[k])) for k in starts[:-1]]
    standard = struc.filter_canonical_amino_acids(atoms)[starts[:-1]]
    out.repaired["modified residue"] += int((there & ~standard).sum())
    bb = bb[there]
    joined = bonded(bb)
    near = np.linalg.norm(np.diff(bb[:, 1], axis=0), axis=1)
    out.repaired["cis peptide"] += int((joined & (near < CIS_STEP)).sum())
    breaks = int((~joined).sum())
    out.repaired["chain break"] += breaks
    # File numbering is not trusted: insertion codes and engineered gaps would look like breaks.
    numbers = residue_numbers(joined)
    sequence = "".join(letter for letter, keep in zip(letters, there, strict=True) if keep)
    for reason in [key for key, count in out.repaired.items() if not count]:
        del out.repaired[reason]
    return Piece(name, bb, sequence, numbers)


def residue_numbers(joined: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n,) numbers from 0 that go up by one over the (n - 1,) bonds and by two over the gaps."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.where(joined, 1, 2))])


def bonded(bb: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(n - 1,) bool: residue i is bonded to residue i + 1."""
    peptide = np.linalg.norm(bb[1:, 0] - bb[:-1, 2], axis=1)
    steps = np.linalg.norm(np.diff(bb[:, 1], axis=0), axis=1)
    return np.where(np.isfinite(peptide), peptide < PEPTIDE_BOND, steps < CA_STEP)


def letter_of(residue: str) -> str:
    from biotite.structure.info import one_letter_code

    letter = one_letter_code(residue)
    return letter if letter is not None and len(letter) == 1 and letter.isalpha() else "X"


def pieces_of(piece: Piece, least_share: float) -> Iterator[Piece | str]:
    """The longest unbroken stretch of a chain, or the reason why it is not used."""
    runs = piece.bonded_runs()
    if len(runs) == 1:
        yield piece
        return
    longest = max(runs, key=lambda run: run.stop - run.start)
    if longest.stop - longest.start >= least_share * len(piece):
        yield piece.part(longest)
    else:
        yield "broken chain without one long piece"


def psea(ca: NDArray[np.floating]) -> NDArray[np.str_]:
    """P-SEA secondary structure of one C-alpha trace (n, 3) [angstrom]: a, b or c per residue.

    It looks at distances and virtual angles that a left-handed helix shares with a right-handed one
    almost wholly: do not use it as a check of handedness.
    """
    import biotite.structure as struc

    n = len(ca)
    if n < 5:  # no window of five residues to decide by
        return np.full(n, "c")
    atoms = struc.AtomArray(n)
    atoms.coord = np.asarray(ca, np.float32)
    atoms.atom_name = np.full(n, "CA")
    atoms.res_name = np.full(n, "GLY")
    atoms.res_id = np.arange(1, n + 1)
    atoms.chain_id = np.full(n, "A")
    with np.errstate(invalid="ignore", divide="ignore"):  # residues that coincide
        return np.asarray(struc.annotate_sse(atoms))


def sse_class(alpha: float, beta: float) -> int:
    """The class (`CLASSES`) of a chain by its shares of P-SEA helix and strand."""
    if alpha >= 0.3 and beta < 0.1:
        return CLASSES["alpha"]
    if beta >= 0.2 and alpha < 0.15:
        return CLASSES["beta"]
    if alpha >= 0.15 and beta >= 0.1:
        return CLASSES["mixed"]
    return CLASSES["few"]
