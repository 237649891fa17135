r"""What real chains look like: the figures that generated ones are compared with.

A `Reference` holds no chain, only what was measured on many: one row of figures for each, and a
library of seven-residue fragments. Figures depend on length, so a set of samples is compared with
natives of the same lengths: each sample is answered by real chains drawn with the chances

    w(L_real) ~ exp(-(ln L_real / L_sample)^2 / (2 * 0.12^2)),

and many such draws tell how far natives of that number differ from natives in general.

Residues outside the favoured Ramachandran regions are counted in backbones that were built around
the C-alphas (`reconstruct`), as those of generated chains are: 8.3 % of residues, 9.3 % in the
atoms that were solved (printed by the command below).

`Reference.builtin` needs no data: its statistics were derived from single-domain chains of the
Protein Data Bank (wwPDB, CC0) and are shipped with the package. They are made by

    python -m driftworks.protein.reference protein_backbones.npz protein/assets/reference.npz
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from driftworks.data import backbones
from driftworks.errors import UserError
from driftworks.protein import descriptors, geometry
from driftworks.protein.chains import Chains
from driftworks.protein.descriptors import NAMES, FragmentLibrary, Moments
from driftworks.protein.reconstruct import full_backbones

__all__ = ["Measures", "Reference", "measure"]

#: A bond is right within this of 3.80 or 2.95 [angstrom].
BOND = 0.2
#: A fragment farther than this from every real one is foreign.
FAR = 0.6
#: Width of the length kernel in ln L.
WIDTH = 0.12

_ASSET = Path(__file__).parent / "assets" / "reference.npz"
_CHUNK = 400_000


@dataclass(frozen=True, eq=False)
class Measures:
    """Figures of B chains, a row each; NaN or zero counts for a chain that could not be measured.

    lengths: (B,) residues; finite: (B,) bool, coordinates are numbers and there are four or more
    bonds_right, bonds; right, helical: counts of geometry; clashes: pairs
    fragment: mean distance of the chain's fragments to the library; fragment_far, fragments: counts
    unfavoured, torsions: residues outside the favoured Ramachandran regions, and all with both
        torsions; zero where no full backbones were given
    psea_helix, psea_strand: shares by P-SEA; rows: (B, 24) descriptors
    """

    lengths: NDArray[np.int64]
    finite: NDArray[np.bool_]
    bonds_right: NDArray[np.float64]
    bonds: NDArray[np.float64]
    clashes: NDArray[np.float64]
    right: NDArray[np.float64]
    helical: NDArray[np.float64]
    fragment: NDArray[np.float64]
    fragment_far: NDArray[np.float64]
    fragments: NDArray[np.float64]
    unfavoured: NDArray[np.float64]
    torsions: NDArray[np.float64]
    psea_helix: NDArray[np.float64]
    psea_strand: NDArray[np.float64]
    rows: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Measures:
        return Measures(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    def column(self, name: str) -> NDArray[np.float64]:
        """(B,) one descriptor by name."""
        return self.rows[:, NAMES.index(name)]

    @staticmethod
    def cat(parts: list[Measures]) -> Measures:
        """Rows of several one below the other."""
        names = [f.name for f in fields(Measures)]
        return Measures(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})


def measure(
    chains: Chains, library: FragmentLibrary, full: Sequence[ArrayLike] | None = None
) -> Measures:
    """All local figures and descriptors of each chain; ``full`` its backbone (n, 4, 3)."""
    count = len(chains)
    lengths = chains.lengths.cpu().numpy()
    finite = chains.ca.isfinite().all(dim=-1).all(dim=-1).cpu().numpy() & (lengths >= 4)
    out = {
        name: np.zeros(count)
        for name in ("bonds_right", "bonds", "clashes", "right", "helical")
        + ("fragment_far", "fragments", "unfavoured", "torsions")
    }
    if full is not None:
        for k in np.flatnonzero(finite).tolist():
            found = geometry.ramachandran(np.asarray(full[k], np.float64))
            out["unfavoured"][k], out["torsions"][k] = found
    fragment = np.full(count, np.nan)
    for rows, block in chains.blocks(_CHUNK):
        r = rows.numpy()
        deviation = geometry.bond_deviation(block)
        out["bonds"][r] = block.bonded.sum(1)  # a bond of NaN is a bond, and a wrong one
        out["bonds_right"][r] = (deviation <= BOND).sum(1)
        out["clashes"][r] = geometry.clashes(block)
        out["right"][r], out["helical"][r] = geometry.handedness(block)
        vectors, owner = descriptors.fragments(block)
        gaps = library.distances(vectors)
        held = np.bincount(owner, minlength=len(r))
        out["fragments"][r] = held
        out["fragment_far"][r] = np.bincount(owner, gaps > FAR, minlength=len(r))
        total = np.bincount(owner, gaps, minlength=len(r))
        fragment[r] = np.where(held > 0, total / np.maximum(held, 1), np.nan)
    psea = descriptors.psea_shares(chains)
    return Measures(
        lengths=lengths,
        finite=finite,
        fragment=fragment,
        psea_helix=psea[0],
        psea_strand=psea[1],
        rows=descriptors.describe(chains),
        **out,
    )


@dataclass(frozen=True, eq=False)
class Reference:
    """Figures of real chains and a library of their fragments.

    measures: a row a chain; library: fragments of other chains than those of the rows
    folds: of 100 natives, clusters over chains; pair_tm: their mean TM-score; nearest: mean
    TM-score to the nearest of the chains they were held out from; solved: share of residues outside
    the favoured Ramachandran regions in the natives' own atoms. NaN where they were not measured.
    """

    measures: Measures
    library: FragmentLibrary
    source: str
    folds: float = np.nan
    pair_tm: float = np.nan
    nearest: float = np.nan
    solved: float = np.nan

    @classmethod
    def of(cls, chains: Chains, source: str = "given chains") -> Reference:
        """Statistics of real chains: half of them fill the library, the others are measured by it.

        The halves are taken alternately and change places, so every chain has a row that its own
        fragments did not enter. Raises `UserError` for fewer than 20 chains.
        """
        if len(chains) < 20:
            raise UserError(f"a reference of {len(chains)} chains; 20 or more are needed")
        order = np.arange(len(chains))
        parts, libraries = [], []
        for side in (0, 1):
            libraries.append(FragmentLibrary.of(chains[order[order % 2 == side]]))
        for side in (0, 1):
            some = chains[order[order % 2 == side]]
            parts.append(measure(some, libraries[1 - side], full_backbones(some)))
        both = FragmentLibrary(np.concatenate([library.vectors for library in libraries]))
        measures = Measures.cat(parts)
        return cls(measures[measures.finite], both, source)

    @classmethod
    def builtin(cls) -> Reference:
        """Statistics of 40-256 residue domains of the Protein Data Bank, shipped with the package.

        Raises `UserError` where the package lacks the file.
        """
        return _builtin()

    @cached_property
    def scales(self) -> NDArray[np.float64]:
        """(24,) standard deviations of the descriptors, what Frechet distances are divided by."""
        return np.maximum(self.measures.rows.std(axis=0), 1e-3)

    def weights(self, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        """(B, R) chance of each row to answer for a sample of each length; rows sum to one."""
        known = np.log(self.measures.lengths)
        gap = known - np.log(np.maximum(lengths, 1))[:, None]
        # where no real chain is of the length the nearest lengths answer
        power = -0.5 * (gap / WIDTH) ** 2
        chance = np.exp(power - power.max(axis=1, keepdims=True))
        return np.asarray(chance / chance.sum(axis=1, keepdims=True))

    def matched(
        self, lengths: NDArray[np.int64], draws: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """(draws, B) row numbers: sets of natives with the lengths of the samples."""
        edges = np.cumsum(self.weights(lengths), axis=1)
        u = rng.random((draws, len(lengths)))
        out = [np.searchsorted(row, u[:, k], side="right") for k, row in enumerate(edges)]
        return np.minimum(np.stack(out, axis=1), len(self.measures) - 1)

    def moments(self, lengths: NDArray[np.int64]) -> Moments:
        """Moments of the scaled descriptors of natives of these lengths."""
        weights = self.weights(lengths).sum(axis=0)
        return Moments.of(self.measures.rows / self.scales, weights)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the statistics as one ``.npz``: half precision, fragments in nine bytes."""
        path = Path(path)
        stored = {
            f.name: getattr(self.measures, f.name).astype(
                {"lengths": np.int16, "finite": np.bool_}.get(f.name, np.float16)
            )
            for f in fields(Measures)
        }
        codes = self.library.packed()
        codes = codes[np.lexsort(codes.T[::-1])]  # neighbours alike: a third smaller
        with open(path, "wb") as handle:
            np.savez_compressed(
                handle,
                fragment_codes=np.ascontiguousarray(codes.T),
                source=np.array(self.source),
                scores=np.array([self.folds, self.pair_tm, self.nearest, self.solved]),
                **stored,
            )
        return path

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Reference:
        """The statistics that `write` stored; `UserError` where the file is absent or damaged."""
        path = Path(path)
        if not path.exists():
            raise UserError(f"no reference statistics at {path}")
        try:
            with np.load(path, allow_pickle=False) as held:
                columns = {f.name: held[f.name] for f in fields(Measures)}
                codes, source = held["fragment_codes"].T, str(held["source"])
                scores = held["scores"].astype(float).tolist()
        except Exception as error:  # whatever numpy, zipfile and zlib raise for damaged bytes
            raise UserError(f"{path} is no file of reference statistics ({error})") from error
        kinds = {"lengths": np.int64, "finite": np.bool_}
        typed = {name: c.astype(kinds.get(name, np.float64)) for name, c in columns.items()}
        return cls(Measures(**typed), FragmentLibrary.unpacked(codes), source, *scores)


@lru_cache(maxsize=1)
def _builtin() -> Reference:
    return Reference.read(_ASSET)


def cover(library: FragmentLibrary, count: int, seed: int) -> FragmentLibrary:
    """`count` fragments of a library that leave little of it far away.

    Half are drawn at random, which follows the density; the others are those farthest from the
    first half, which covers the rare ones.
    """
    if len(library.vectors) <= count:
        return library
    order = np.random.default_rng(seed).permutation(len(library.vectors))
    first, rest = order[: count // 2], order[count // 2 :]
    held = FragmentLibrary(library.vectors[first])
    gaps = held.distances(library.vectors[rest])
    # an outlier that no other fragment is near to is an error of an experiment, not a rare shape
    far = rest[np.argsort(-gaps)]
    trimmed = far[len(far) // 500 :]
    kept = np.concatenate([first, trimmed[: count - len(first)]])
    return FragmentLibrary(library.vectors[kept])


def main(argv: list[str]) -> None:
    """Make the shipped statistics from a table of backbones with a split."""
    from driftworks.protein import tm

    table = backbones.read(argv[0])
    rng = np.random.default_rng(0)
    train = table.rows("train", (40, 256))
    drawn = table.draw(rng.random(20_000), train)
    chosen = np.array(list(dict.fromkeys(drawn.tolist())))  # cluster-balanced, each chain once
    measured, shown = chosen[:1400], chosen[1400:3400]
    library = cover(FragmentLibrary.of(Chains.from_backbones(table, shown)), 24_000, seed=0)
    own = Chains.from_backbones(table, measured)
    measures = measure(own, library, full_backbones(own))
    measures = measures[measures.finite]
    solved = np.sum([geometry.ramachandran(table.bb(int(i)).astype(np.float64)) for i in measured
                     if table.complete[i]], axis=0)  # fmt: skip
    held = np.concatenate([table.rows(s, (48, 128)) for s in ("valid", "test")])
    natives = Chains.from_backbones(table, rng.permutation(held)[:100])
    scores = tm.pairwise(natives)
    number = len(natives)
    known = Chains.from_backbones(table, train)
    near = tm.nearest(natives[np.arange(20)], known)
    out = Reference(
        measures,
        library,
        source=f"{len(measures)} single-domain chains of the Protein Data Bank (CC0)",
        folds=len(np.unique(tm.clusters(scores))) / number,
        pair_tm=float(scores[np.triu_indices(number, 1)].mean()),
        nearest=float(near.score.mean()),
        solved=float(solved[0] / solved[1]),
    )
    path = out.write(argv[1])
    size = path.stat().st_size / 1000
    print(f"{path}: {size:.0f} kB; {out.source}; {len(library.vectors)} fragments")
    print(f"natives: folds {out.folds:.3f} pair TM {out.pair_tm:.3f} nearest {out.nearest:.3f}")
    built = measures.unfavoured.sum() / measures.torsions.sum()
    print(f"outside favoured Ramachandran regions: {built:.4f} of residues in atoms built around "
          f"C-alphas, {out.solved:.4f} in solved ones")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
