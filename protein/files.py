r"""Designs as files that other programs open: PDB, mmCIF, BinaryCIF; and as objects in memory.

A model draws C-alphas. What is written is the backbone N, CA, C, O that `reconstruct` builds around
them, in chain A, residues numbered from 1 with the gaps of the chain's breaks. No sequence is
designed: every residue is called GLY, or ALA with an ideal C-beta, and it is a sequence-design
program's task to say what it should be. C-alphas are those of the chain, to the file's .001 A.

The column of B-factors holds a confidence from 0 to 100, as files of predicted structures do, so
that programs colour designs as they colour those. For a residue that the model expects to be wrong
by the root mean square u [angstrom] (`zoo.Designs.confidence`) it is the chance of an error below
0.5, 1, 2 and 4 angstrom, averaged, were it normal:

    25 sum_R [erf(x) - 2 x exp(-x^2) / sqrt(pi)],        x = sqrt(3/2) R / u

which is the expectation of the local distance difference test's thresholds (Mariani et al.,
Bioinformatics 29, 2722, 2013). Without an estimate it is 0.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from driftworks.core.checkpoint import write_file
from driftworks.data import backbones
from driftworks.data.structures import structure_suffix
from driftworks.errors import UserError
from driftworks.protein.chains import CLASSES, NULL, Chains
from driftworks.protein.reconstruct import beta_carbons, full_backbones

if TYPE_CHECKING:
    from biotite.structure import AtomArray, AtomArrayStack
    from mdtraj import Trajectory

    from driftworks.protein.designs import Designs

__all__ = [
    "FORMATS",
    "confidence_of",
    "file_names",
    "plain_name",
    "read",
    "read_designs",
    "to_atom_array",
    "to_mdtraj",
    "to_stack",
    "write",
    "write_record",
]

Array = NDArray[np.float64]

#: What `write` knows; "npz" is one file that `data.backbones.read` reads, the others one a chain.
FORMATS = ("pdb", "cif", "bcif", "npz")
RESIDUES = ("GLY", "ALA")
_ATOMS, _ELEMENTS = ("N", "CA", "C", "O", "CB"), ("N", "C", "C", "O", "C")
#: Widest coordinate that a PDB file has columns for [angstrom], and its largest residue number.
_FARTHEST, _LAST = 999.0, 9999
_LONGEST = 1_000_000
_TITLE = "A backbone designed by driftworks: no sequence is designed, B-factors are a confidence"


def write(
    designs: Any,
    folder: str | Path,
    fmt: str = "pdb",
    *,
    confidence: Sequence[ArrayLike] | None = None,
    residue: str = "GLY",
) -> list[Path]:
    """Write each chain to a file of its own in `folder`, named by its id; returns the paths.

    designs: `Chains` (a model's `Designs` bring their confidence), (n, 3) C-alphas or (n, 4, 3)
        backbones [angstrom], or biotite's AtomArray, AtomArrayStack, or a list of them
    fmt: one of `FORMATS`; residue: "GLY", or "ALA" with a C-beta
    confidence: n numbers from 0 to 100 for each chain

    Chains that are not finite are left out, with a warning. Every file is written whole or not at
    all; one that is there is replaced. Raises `UserError` for nothing to write, another format, a
    confidence that does not fit, and a place that cannot be written.
    """
    if fmt not in FORMATS:
        raise UserError(f"unknown format {fmt!r}; choose one of {', '.join(FORMATS)}")
    folder = Path(folder)
    if not (isinstance(designs, Chains) or len(_listed(designs))):
        raise UserError("no chains to write")
    chains, full, scores = _whole(designs, confidence)
    good = [row for row, bb in enumerate(full) if len(bb) and np.isfinite(bb).all()]
    if not good:
        raise UserError(f"none of the {len(full)} chains is finite: nothing to write")
    if len(good) < len(full):
        warnings.warn(
            f"{len(full) - len(good)} of {len(full)} chains are not finite and left out",
            RuntimeWarning,
            stacklevel=2,
        )
    if fmt == "npz":
        return [write_file(folder / "designs.npz", _archive(chains, full, scores, good))]
    names = file_names(chains.ids, fmt)
    out = []
    for row in good:
        atoms = _atoms(chains, row, full[row], scores[row], residue)
        if fmt == "pdb":
            content = _pdb(atoms, chains.ids[row])
        else:
            content = _cif(atoms, Path(names[row]).stem, binary=fmt == "bcif")
        out.append(write_file(folder / names[row], content))
    return out


def plain_name(name: str) -> str:
    """A name without what file systems dislike."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", name).strip("._") or "chain"


def file_names(ids: Sequence[str], fmt: str) -> list[str]:
    """The name of each chain's file: its id without what file systems dislike, numbered apart."""
    plain = [plain_name(name) for name in ids]
    seen: Counter[str] = Counter()
    taken = {name.lower() for name in plain}
    out = []
    for name in plain:
        seen[name.lower()] += 1
        chosen, count = name, seen[name.lower()]
        while count > 1 and chosen.lower() in taken:
            chosen = f"{name}_{count}"
            count += 1
        taken.add(chosen.lower())
        out.append(f"{chosen}.{fmt}")
    return out


def read(source: str | Path, progress: bool = False) -> backbones.Backbones:
    """Designs of a file or folder as a table, short and broken ones too.

    source: an .npz that `write` or `Backbones.write` has written, a PDB, mmCIF or BinaryCIF file,
        or a folder of such files (searched for structures first, then for one .npz)

    Of a file with several models the first counts. Raises `UserError` for what is absent, damaged
    or holds no protein chain, saying what was found instead.
    """
    path = Path(source)
    if path.suffix.lower() == ".npz":
        return backbones.read(path)
    if path.is_dir():
        archives = sorted(path.glob("*.npz"))
        if len(archives) == 1 and not any(map(structure_suffix, path.rglob("*"))):
            return backbones.read(archives[0])
    if not path.exists():
        raise UserError(f"no file or folder {path}")
    return backbones.from_folder(path, lengths=(1, _LONGEST), gaps=True, progress=progress)


def read_designs(
    sources: Sequence[str | Path], progress: bool = False
) -> tuple[Chains, list[Array], dict[str, int]]:
    """The chains of files and folders (`read`), their backbones, and what was left out.

    Backbones are those of the files where they are complete, else built around the C-alphas.
    Records (.json) beside designs are nothing that was left out.
    """
    tables = [read(source, progress) for source in sources]
    if not tables:
        raise UserError("no files of backbones are named")
    chains = Chains.cat([Chains.from_backbones(table) for table in tables])
    stored = [np.asarray(table.bb(i), np.float64) for table in tables for i in range(len(table))]
    lacking = [row for row, bb in enumerate(stored) if not np.isfinite(bb).all()]
    if lacking:
        for row, bb in zip(lacking, full_backbones(chains[lacking]), strict=True):
            stored[row] = bb
    left_out: Counter[str] = Counter()
    for table in tables:
        left_out.update(table.skipped)
    left_out.pop("not a structure file (.json)", None)
    return chains, stored, dict(left_out)


def confidence_of(errors: ArrayLike) -> Array:
    """Confidence from 0 to 100 of expected root mean square errors [angstrom], elementwise.

    The formula of the module's docstring. Raises `UserError` for negative errors.
    """
    from scipy.special import erf

    u = np.asarray(errors, np.float64)
    if (u < 0).any():
        raise UserError(f"an expected error of {u.min():g} angstrom is negative")
    x = np.sqrt(1.5) * np.array([0.5, 1.0, 2.0, 4.0]) / np.maximum(u, 1e-9)[..., None]
    below = erf(x) - 2 * x * np.exp(-(x**2)) / np.sqrt(np.pi)
    return np.asarray(100 * below.mean(axis=-1))


def write_record(designs: Designs, path: str | Path, files: Sequence[str] = ()) -> Path:
    """Write how designs were made, and what each is, as JSON.

    files: names of the files of the finite ones, in order; a single one holds them all

    For each: its file (null where it failed), residues, label, mean confidence, root mean square
    error the model expects [angstrom].
    """
    errors = designs.confidence.detach().cpu().numpy().astype(np.float64)
    finite = designs.finite.tolist()
    where = iter(files if len(files) == sum(finite) else [*files[:1]] * sum(finite))
    names = {code: name for name, code in CLASSES.items()}
    rows = []
    for row, n in enumerate(designs.lengths.tolist()):
        known = finite[row] and errors[row, :n].any()
        label = int(designs.label[row])
        rows.append({
            "id": designs.ids[row],
            "file": next(where, None) if finite[row] else None,
            "residues": n,
            "label": None if label == NULL else names[label],
            "confidence": _short(confidence_of(errors[row, :n]).mean()) if known else None,
            "expected_error": _short(np.sqrt(np.square(errors[row, :n]).mean())) if known else None,
        })
    document = {"made": designs.provenance, "finite": sum(finite), "designs": rows}
    return write_file(Path(path), json.dumps(document, indent=1).encode() + b"\n")


def _short(x: float) -> float:
    return round(float(x), 3)


def to_atom_array(
    designs: Any, *, confidence: Sequence[ArrayLike] | None = None, residue: str = "GLY"
) -> list[AtomArray]:
    """One biotite AtomArray a chain, with b_factor the confidence; arguments as of `write`."""
    chains, full, scores = _whole(designs, confidence)
    return [_atoms(chains, row, bb, scores[row], residue) for row, bb in enumerate(full)]


def to_stack(designs: Any, *, residue: str = "GLY") -> AtomArrayStack:
    """A biotite AtomArrayStack, a model a chain.

    Confidence differs between models and a stack has one B-factor an atom: it is left out. Raises
    `UserError` for chains of different lengths or breaks.
    """
    import biotite.structure as struc

    atoms = to_atom_array(designs, residue=residue)
    _same(atoms)
    for one in atoms:
        one.del_annotation("b_factor")
        one.chain_id[:] = "A"
    return struc.stack(atoms)


def to_mdtraj(designs: Any, *, residue: str = "GLY") -> Trajectory:
    """An mdtraj Trajectory, a frame a chain [nm].

    Raises `UserError` where mdtraj is missing, and for chains of different lengths or breaks.
    """
    try:
        import mdtraj
        from mdtraj.core.element import Element
    except ImportError as error:
        raise UserError(
            "trajectories are made by mdtraj: pip install 'driftworks[protein]'"
        ) from error
    atoms = to_atom_array(designs, residue=residue)
    _same(atoms)
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    group = None
    for atom in atoms[0]:
        if group is None or group.resSeq != atom.res_id:
            group = topology.add_residue(atom.res_name, chain, resSeq=int(atom.res_id))
        topology.add_atom(atom.atom_name, Element.getBySymbol(atom.element), group)
    topology.create_standard_bonds()
    return mdtraj.Trajectory(np.stack([one.coord for one in atoms]) / 10.0, topology)


def _same(atoms: list[AtomArray]) -> None:
    if not atoms:
        raise UserError("no chains to put together")
    lengths = sorted({len(np.unique(one.res_id)) for one in atoms})
    if len(lengths) > 1:
        raise UserError(
            f"chains of {lengths[0]} to {lengths[-1]} residues do not go into one object: choose "
            "those of one length"
        )
    if any((one.res_id != atoms[0].res_id).any() for one in atoms):
        raise UserError("chains with breaks at different places do not go into one object")


def _listed(designs: Any) -> list[Any]:
    return list(designs) if isinstance(designs, (list, tuple)) else [designs]


def _whole(
    designs: Any, confidence: Sequence[ArrayLike] | None
) -> tuple[Chains, list[Array], list[Array]]:
    """Chains, their backbones (n, 4, 3), and n numbers from 0 to 100 for each."""
    if isinstance(designs, Chains):
        chains, full = designs, full_backbones(designs)
        own = getattr(designs, "confidence", None)
        if confidence is None and own is not None:
            errors = own.detach().cpu().numpy().astype(np.float64)
            rows = [e[:n] for e, n in zip(errors, chains.lengths.tolist(), strict=True)]
            # an error of exactly zero everywhere is one that was not asked for
            confidence = [
                confidence_of(np.nan_to_num(e)) if e.any() else np.zeros(len(e)) for e in rows
            ]
    else:
        parts = [part for item in _listed(designs) for part in _parts(item)]
        chains = Chains.of([ca for ca, _, _ in parts], index=[index for _, _, index in parts])
        built = full_backbones(chains)
        full = [b if bb is None else bb for b, (_, bb, _) in zip(built, parts, strict=True)]
    if confidence is None:
        return chains, full, [np.zeros(len(bb)) for bb in full]
    scores = [np.asarray(row, np.float64) for row in confidence]
    if [row.shape for row in scores] != [(len(bb),) for bb in full]:
        raise UserError("confidence must hold one number for each residue of each chain")
    for row in scores:
        if not (np.isfinite(row).all() and ((row >= 0) & (row <= 100)).all()):
            raise UserError("confidence must lie between 0 and 100")
    return chains, full, scores


def _parts(item: Any) -> list[tuple[Array, Array | None, NDArray[np.int64]]]:
    """C-alphas, backbone where it is complete, and residue numbers of each model of an item."""
    if not hasattr(item, "atom_name"):
        given = np.asarray(item, np.float64)
        if given.ndim == 3 and given.shape[1:] == (4, 3):
            return [(given[:, 1], given, np.arange(len(given)))]
        if given.ndim == 2 and given.shape[1] == 3:
            return [(given, None, np.arange(len(given)))]
        raise UserError(f"a chain of shape {given.shape}; expected (n, 3) C-alphas or (n, 4, 3)")
    coords = np.asarray(item.coord, np.float64)
    models = coords[None] if coords.ndim == 2 else coords
    rows = [np.flatnonzero(np.asarray(item.atom_name) == name) for name in _ATOMS[:4]]
    if not len(rows[1]):
        raise UserError("a structure without C-alpha atoms")
    index = np.asarray(item.res_id)[rows[1]].astype(np.int64)
    complete = all(
        len(r) == len(index) and (np.asarray(item.res_id)[r] == index).all() for r in rows
    )
    return [
        (m[rows[1]], np.stack([m[r] for r in rows], axis=1) if complete else None, index)
        for m in models
    ]


def _atoms(chains: Chains, row: int, bb: Array, scores: Array, residue: str) -> AtomArray:
    import biotite.structure as struc

    if residue not in RESIDUES:
        raise UserError(f"unknown residue {residue!r}; choose one of {', '.join(RESIDUES)}")
    coords = bb
    if residue == "ALA":
        coords = np.concatenate([bb, beta_carbons(bb)[:, None]], axis=1)
    n, kinds = coords.shape[:2]
    numbers = chains.index[row, :n].cpu().numpy()
    atoms = struc.AtomArray(n * kinds)
    # what the files hold; a BinaryCIF or an mmCIF would keep digits that mean nothing
    atoms.coord = np.round(coords.reshape(-1, 3), 3).astype(np.float32)
    atoms.atom_name = np.tile(_ATOMS[:kinds], n)
    atoms.element = np.tile(_ELEMENTS[:kinds], n)
    atoms.res_name = np.full(n * kinds, residue)
    atoms.res_id = np.repeat(numbers - numbers[0] + 1, kinds) if n else atoms.res_id
    atoms.chain_id = np.full(n * kinds, "A")
    atoms.set_annotation("b_factor", np.repeat(np.round(scores, 2), kinds))
    atoms.set_annotation("occupancy", np.ones(n * kinds))
    return atoms


def _pdb(atoms: AtomArray, name: str) -> bytes:
    from biotite.structure.io import pdb

    # PDB has eight columns a coordinate: a chain far from the origin is moved, not garbled
    if np.abs(atoms.coord).max() > _FARTHEST:
        atoms.coord = atoms.coord - atoms.coord.mean(axis=0)
    if np.abs(atoms.coord).max() > _FARTHEST or atoms.res_id[-1] > _LAST:
        raise UserError(f"chain {name} does not fit the columns of a PDB file; write it as cif")
    file = pdb.PDBFile()
    file.set_structure(atoms)
    head = [
        f"TITLE     {re.sub(r'[^ -~]', '?', name)[:70]}",
        "REMARK   3 A BACKBONE DESIGNED BY DRIFTWORKS. RESIDUE NAMES ARE PLACEHOLDERS:",
        "REMARK   3 NO SEQUENCE IS DESIGNED. B-FACTORS ARE A CONFIDENCE FROM 0 TO 100.",
    ]
    body = [line for line in file.lines if line.startswith("ATOM")]
    last = body[-1]
    end = f"TER   {len(body) + 1:>5}      {last[17:27]}"
    return "\n".join([*(f"{line:<80}" for line in [*head, *body, end, "END"]), ""]).encode()


def _cif(atoms: AtomArray, name: str, binary: bool) -> bytes:
    from biotite.structure.io import pdbx

    file: Any = pdbx.BinaryCIFFile() if binary else pdbx.CIFFile()
    pdbx.set_structure(file, atoms, data_block=name)
    words = {"entry_id": name, "title": _TITLE}
    file.block["struct"] = (pdbx.BinaryCIFCategory if binary else pdbx.CIFCategory)(words)
    if binary:
        packed = io.BytesIO()
        file.write(packed)
        return packed.getvalue()
    text = io.StringIO()
    file.write(text)
    return text.getvalue().encode()


def _archive(
    chains: Chains, full: list[Array], scores: list[Array], good: list[int]
) -> bytes:
    numbers = chains.index.cpu().numpy()
    counts = [len(full[row]) for row in good]
    packed = io.BytesIO()
    np.savez_compressed(
        packed,
        ids=np.array([chains.ids[row] for row in good], np.str_),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        bb=np.concatenate([full[row] for row in good]).astype(np.float32),
        residues=np.concatenate([numbers[row, : len(full[row])] for row in good]),
        sse_class=(chains.label.cpu().numpy()[good] + 1).astype(np.uint8),
        confidence=np.concatenate([scores[row] for row in good]).astype(np.float32),
    )
    return packed.getvalue()
