r"""From C-alphas to full backbones: N, C and O of every residue, placed peptide by peptide.

The six atoms of a peptide lie in a plane through both of its C-alphas, so one angle says where the
other three are: psi, by which the carbonyl oxygen is turned about the line of the C-alphas away
from the preceding C-alpha. It is read from peptides of known structures whose neighbourhood looks
the same (cf. Purisima & Scheraga, Biopolymers 23, 1207, 1984; Holm & Sander, J. Mol. Biol. 218,
183, 1991). Six C-alphas, from two before the peptide to two after it, have four virtual angles and
three dihedrals; with those in the middle weighted most,

    f = (2 theta_1, 2 theta_2, cos tau_1, sin tau_1,
         w (2 theta_0, 2 theta_3, cos tau_0, sin tau_0, cos tau_2, sin tau_2)),     w = 0.3,

the answer is the direction of sum_k z_k / (d_k^2 + 0.01) over the six nearest entries of a library,
where z_k = <e^{i psi}>. Bond lengths and angles of the peptide are those of Engh & Huber (Acta
Cryst. A47, 392, 1991), stretched along the line where the C-alphas are not 3.80 angstrom apart. A
cis peptide, one whose C-alphas are nearer 2.95, has a library and angles of its own.

A chain is continued at both ends and at breaks by the turn of its last four C-alphas, which places
the first nitrogen and the last carbonyl.

The library holds statistics of peptides of the Protein Data Bank (wwPDB, CC0): 30,000 of the
training split, thinned where they are dense, each with the mean of its 24 nearest among 200,000
others. It is made by

    python -m driftworks.protein.reconstruct protein_backbones.npz protein/assets/peptides.npz

which then measures 150 chains of the test split against their real atoms. Distances there: median
C 0.07, O 0.19, N 0.06 angstrom, root mean square 0.22, 0.57, 0.19 (0.16, 0.50, 0.12 without the
first and the last residue, which are guesses).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from driftworks.errors import UserError
from driftworks.protein.chains import Chains
from driftworks.protein.geometry import CIS, TRANS

__all__ = ["Peptides", "beta_carbons", "full_backbones"]

Array = NDArray[np.float64]

#: Weight of the outer angles of a window; residues that a window reaches beyond its peptide.
OUTER, REACH = 0.3, 2
NEAREST, SOFT = 6, 0.01
#: C-alphas nearer than this [angstrom] are those of a cis peptide.
CIS_BELOW = (TRANS + CIS) / 2
_C_BETA = 1.53

_ASSET = Path(__file__).parent / "assets" / "peptides.npz"


def full_backbones(
    chains: Chains | Sequence[ArrayLike], library: Peptides | None = None
) -> list[Array]:
    """(n, 4, 3) N, CA, C, O of each chain [angstrom]; C-alphas stay exactly where they are.

    chains: `Chains`, whose breaks are respected, or (n, 3) C-alphas of whole chains
    library: `Peptides.builtin` by default

    Chains that are not finite come back as NaN. Milliseconds a chain. The single residue of a run
    without neighbours has no direction: its atoms are turned anyhow.
    """
    chains = chains if isinstance(chains, Chains) else Chains.of(chains)
    library = Peptides.builtin() if library is None else library
    out = [np.full((n, 4, 3), np.nan) for n in chains.lengths.tolist()]
    runs: list[tuple[int, slice, Array]] = []
    for row, (points, index) in enumerate(zip(chains.arrays(), _numbers(chains), strict=True)):
        if not np.isfinite(points).all():
            continue
        cuts = np.flatnonzero(np.diff(index) != 1) + 1
        edges = [0, *cuts.tolist(), len(points)]
        for begin, end in zip(edges[:-1], edges[1:], strict=True):
            if end > begin:
                runs.append((row, slice(begin, end), points[begin:end]))
    if not runs:
        return out
    long = _continued([points for _, _, points in runs])
    windows = [
        np.lib.stride_tricks.sliding_window_view(points, 2 + 2 * REACH, axis=0) for points in long
    ]
    placed = library.place(np.concatenate(windows).transpose(0, 2, 1))
    ends = np.cumsum([len(w) for w in windows])
    for (row, span, points), end in zip(runs, ends.tolist(), strict=True):
        n = len(points)
        atoms = placed[end - n - 1 : end]  # the peptide before each residue, then the last one's
        bb = out[row][span]
        bb[:, 0], bb[:, 1], bb[:, 2], bb[:, 3] = atoms[:-1, 2], points, atoms[1:, 0], atoms[1:, 1]
    return out


def beta_carbons(backbone: ArrayLike) -> Array:
    """(n, 3) C-beta of L-residues, 1.53 angstrom from CA, of a backbone (n, 4, 3).

    Tetrahedral: the plane of C-beta, CA and H-alpha halves the angle N-CA-C, with half of 109.5
    degrees between C-beta and that angle's outer bisector.
    """
    given = np.asarray(backbone, np.float64)
    if given.ndim != 3 or given.shape[1:] != (4, 3):
        raise UserError(f"a backbone of shape {given.shape}; expected (n, 4, 3)")
    n, c = _unit(given[:, 0] - given[:, 1]), _unit(given[:, 2] - given[:, 1])
    outwards, aside = -_unit(n + c), _unit(np.cross(n, c))
    half = math.radians(109.5) / 2
    return np.asarray(given[:, 1] + _C_BETA * (math.cos(half) * outwards + math.sin(half) * aside))


def _numbers(chains: Chains) -> list[NDArray[np.int64]]:
    index = chains.index.cpu().numpy()
    return [row[:n] for row, n in zip(index, chains.lengths.tolist(), strict=True)]


class Peptides:
    """Peptides of known structures by the C-alphas around them.

    windows: (m, 7) angles theta_0..3 and dihedrals tau_0..2 [radian]; turns: (m,) complex mean of
    e^{i psi}; cis: (m,) bool
    """

    def __init__(
        self, windows: Array, turns: NDArray[np.complex128], cis: NDArray[np.bool_]
    ) -> None:
        self.windows, self.turns, self.cis = windows, turns, cis

    def __len__(self) -> int:
        return len(self.turns)

    @classmethod
    def builtin(cls) -> Peptides:
        """The library of the package."""
        return _builtin()

    @cached_property
    def _trees(self) -> dict[bool, tuple[cKDTree, NDArray[np.complex128]]]:
        features = _features(self.windows)
        return {
            kind: (cKDTree(features[rows]), self.turns[rows])
            for kind, rows in ((False, ~self.cis), (True, self.cis))
        }

    def turn(self, windows: Array) -> Array:
        """(m,) psi [radian] of the middle peptides of (m, 6, 3) C-alphas."""
        apart = np.linalg.norm(windows[:, REACH + 1] - windows[:, REACH], axis=1)
        features = _features(_angles(windows))
        out = np.zeros(len(windows))
        for kind, rows in ((False, apart >= CIS_BELOW), (True, apart < CIS_BELOW)):
            tree, turns = self._trees[kind]
            if not rows.any() or not len(turns):
                continue
            # neighbours half as far again change nothing and are found in a third of the time
            count = min(NEAREST, len(turns))
            gaps, near = tree.query(features[rows], k=np.arange(1, count + 1), eps=0.5)
            out[rows] = np.angle((turns[near] / (gaps**2 + SOFT)).sum(axis=1))
        return out

    def place(self, windows: Array) -> Array:
        """(m, 3, 3) C, O of the first residue and N of the second, for (m, 6, 3) C-alphas."""
        psi = self.turn(windows)
        start, end = windows[:, REACH], windows[:, REACH + 1]
        frame = _frames(windows)
        apart = np.linalg.norm(end - start, axis=1)
        aside = np.cos(psi)[:, None] * frame[:, 1] + np.sin(psi)[:, None] * frame[:, 2]
        out = np.empty((len(windows), 3, 3))
        for kind, rows in ((False, apart >= CIS_BELOW), (True, apart < CIS_BELOW)):
            plane, length = _plane(kind)
            along = plane[:, 0] * (apart[rows, None] / length)
            out[rows] = (
                start[rows, None]
                + along[:, :, None] * frame[rows, None, 0]
                + plane[None, :, 1, None] * aside[rows, None]
            )
        return out

    def write(self, path: Path | str) -> None:
        """Write the library as an .npz that `read` gives back (to 1e-4 radian)."""
        step = np.pi / 32767
        turns = np.stack([self.turns.real, self.turns.imag], axis=1)
        np.savez_compressed(
            path,
            windows=np.round(self.windows / step).astype(np.int16),
            turns=np.round(turns * 127).astype(np.int8),
            cis=self.cis,
        )

    @classmethod
    def read(cls, path: Path | str) -> Peptides:
        """A library that `write` has written."""
        with np.load(path, allow_pickle=False) as stored:
            windows = stored["windows"] * (np.pi / 32767)
            turns = stored["turns"] @ np.array([1, 1j]) / 127
            return cls(windows, turns, stored["cis"])

    @classmethod
    def of(
        cls,
        backbones: Sequence[ArrayLike],
        numbers: Sequence[ArrayLike] | None = None,
        count: int = 30_000,
        averaged: int = 200_000,
        neighbours: int = 24,
        seed: int = 0,
    ) -> Peptides:
        """A library of `count` trans peptides of real backbones (n, 4, 3), and all cis ones.

        numbers: residue numbers, whose steps other than 1 are breaks
        Entries are drawn with chances that grow with the distance to their neighbours, so that rare
        turns are there beside many helices.
        """
        windows, atoms = _known(backbones, numbers)
        psi = _measured(windows, atoms)
        apart = np.linalg.norm(windows[:, REACH + 1] - windows[:, REACH], axis=1)
        angles = _angles(windows)
        turns = np.exp(1j * psi)
        cis = np.flatnonzero(apart < CIS_BELOW)
        rng = np.random.default_rng(seed)
        trans = rng.permutation(np.flatnonzero(apart >= CIS_BELOW))
        if len(trans) < 2 * neighbours:
            raise UserError(f"{len(trans)} trans peptides are too few for a library")
        base = trans[: min(averaged, len(trans) // 2)]
        rest = trans[len(base) :][: 2 * count]
        tree = cKDTree(_features(angles[base]))
        gaps, near = tree.query(_features(angles[rest]), k=np.arange(1, neighbours + 1))
        chance = gaps[:, -1] / gaps[:, -1].sum()
        kept = rng.choice(len(rest), min(count, len(rest)), replace=False, p=chance)
        rows = np.concatenate([rest[kept], cis])
        means = np.concatenate([turns[base][near[kept]].mean(axis=1), turns[cis]])
        return cls(angles[rows], means, apart[rows] < CIS_BELOW)


@lru_cache(maxsize=1)
def _builtin() -> Peptides:
    return Peptides.read(_ASSET)


@lru_cache(maxsize=2)
def _plane(cis: bool) -> tuple[Array, float]:
    """(3, 2) C, O, N of an ideal peptide: along the C-alphas and towards O; and their distance."""
    at_c, at_n = (math.radians(angle) for angle in ((119.0, 127.0) if cis else (116.2, 121.7)))
    at_o = math.radians(120.8)
    # with C in the origin and N along x; the second C-alpha is on the side of the first when cis
    first = 1.525 * np.array([math.cos(at_c), math.sin(at_c)])
    nitrogen = np.array([1.329, 0.0])
    side = 1.0 if cis else -1.0
    second = nitrogen + 1.458 * np.array([-math.cos(at_n), side * math.sin(at_n)])
    oxygen = 1.231 * np.array([math.cos(at_c + at_o), math.sin(at_c + at_o)])
    length = float(np.linalg.norm(second - first))
    axis = (second - first) / length
    atoms = np.stack([np.zeros(2), oxygen, nitrogen]) - first
    aside = np.array([-axis[1], axis[0]])
    aside *= np.sign(aside @ atoms[1])
    return np.stack([atoms @ axis, atoms @ aside], axis=1), length


def _unit(v: Array) -> Array:
    return np.asarray(v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12))


def _axes(a: Array, b: Array, c: Array) -> Array:
    """(m, 3, 3) rows: along b to c, the part of a - b normal to it, their product."""
    along = _unit(c - b)
    back = a - b
    aside = back - (back * along).sum(axis=1, keepdims=True) * along
    flat = np.linalg.norm(aside, axis=1) < 1e-6
    if flat.any():  # three points in a line leave the turn about it open: take any
        other = np.eye(3)[np.abs(along[flat]).argmin(axis=1)]
        aside[flat] = np.cross(along[flat], other)
    aside = _unit(aside)
    return np.stack([along, aside, np.cross(along, aside)], axis=1)


def _frames(windows: Array) -> Array:
    return _axes(windows[:, REACH - 1], windows[:, REACH], windows[:, REACH + 1])


def _measured(windows: Array, atoms: Array) -> Array:
    """(m,) psi of known peptides, atoms (m, 3, 3) being C, O, N."""
    frame = _frames(windows)
    oxygen = atoms[:, 1] - windows[:, REACH]
    return np.arctan2((frame[:, 2] * oxygen).sum(axis=1), (frame[:, 1] * oxygen).sum(axis=1))


def _angles(windows: Array) -> Array:
    """(m, 7) theta_0..3 and tau_0..2 [radian] of (m, 6, 3) C-alphas."""
    steps = np.diff(windows, axis=1)
    a, b = -steps[:, :-1], steps[:, 1:]
    theta = np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(axis=-1))
    u, v, w = steps[:, :-2], steps[:, 1:-1], steps[:, 2:]
    uv, vw = np.cross(u, v), np.cross(v, w)
    tau = np.arctan2((u * vw).sum(axis=-1) * np.linalg.norm(v, axis=-1), (uv * vw).sum(axis=-1))
    return np.concatenate([theta, tau], axis=1)


def _features(angles: Array) -> Array:
    theta, tau = 2 * angles[:, :4], angles[:, 4:]
    cos, sin = np.cos(tau), np.sin(tau)
    inner = [theta[:, 1], theta[:, 2], cos[:, 1], sin[:, 1]]
    outer = [theta[:, 0], theta[:, 3], cos[:, 0], sin[:, 0], cos[:, 2], sin[:, 2]]
    return np.stack([*inner, *(OUTER * x for x in outer)], axis=1)


def _continued(runs: Sequence[Array]) -> list[Array]:
    """Each run of C-alphas with three more at either end."""
    extra = REACH + 1
    seeds = [run if len(run) >= 4 else _seed(run) for run in runs]
    before = _onwards(np.stack([seed[3::-1] for seed in seeds]), extra)[:, ::-1]
    after = _onwards(np.stack([seed[-4:] for seed in seeds]), extra)
    out = []
    for run, seed, left, right in zip(runs, seeds, before, after, strict=True):
        tail = np.concatenate([seed[len(run) :], right])[:extra]
        out.append(np.concatenate([left, run, tail]))
    return out


def _onwards(ends: Array, count: int) -> Array:
    """(r, count, 3) points that go on as the last of (r, 4, 3) follows the first three."""
    points = [ends[:, k] for k in range(4)]
    local = _within(*points)
    for _ in range(count):
        a, b, c = points[-3:]
        axes = _axes(a, b, c)
        points.append(c + (local[:, :, None] * axes).sum(axis=1))
    return np.stack(points[4:], axis=1)


def _within(a: Array, b: Array, c: Array, d: Array) -> Array:
    """(r, 3) d in the axes of a, b, c, at 3.80 angstrom from c."""
    return TRANS * _unit((_axes(a, b, c) * (d - c)[:, None]).sum(axis=-1))


def _seed(run: Array) -> Array:
    """A run of one to three C-alphas made four long, stretched out."""
    points = list(run)
    if len(points) == 1:
        points.append(points[0] + [TRANS, 0.0, 0.0])
    if len(points) == 2:
        axes = _axes(points[0][None], points[0][None], points[1][None])[0]
        points.append(points[1] + TRANS * (0.5 * axes[0] + math.sqrt(0.75) * axes[1]))
    a, b, c = points[-3:]
    axes = _axes(a[None], b[None], c[None])[0]
    points.append(c + TRANS * (0.5 * axes[0] - math.sqrt(0.75) * axes[1]))
    return np.stack(points[:4])


def _known(
    backbones: Sequence[ArrayLike], numbers: Sequence[ArrayLike] | None
) -> tuple[Array, Array]:
    """Windows (m, 6, 3) of unbroken C-alphas, and C, O, N (m, 3, 3) of their middle peptides."""
    windows, atoms = [np.zeros((0, 6, 3))], [np.zeros((0, 3, 3))]
    for row, given in enumerate(backbones):
        bb = np.asarray(given, np.float64)
        index = np.arange(len(bb)) if numbers is None else np.asarray(numbers[row])
        if len(bb) < 2 + 2 * REACH:
            continue
        i = np.arange(REACH, len(bb) - REACH - 1)
        i = i[index[i + REACH + 1] - index[i - REACH] == 2 * REACH + 1]
        near = np.stack([bb[i, 2], bb[i, 3], bb[i + 1, 0]], axis=1)
        there = np.isfinite(near).all(axis=(1, 2))
        i = i[there]
        windows.append(np.stack([bb[i + k, 1] for k in range(-REACH, REACH + 2)], axis=1))
        atoms.append(near[there])
    return np.concatenate(windows), np.concatenate(atoms)


def main(source: str, out: str) -> None:
    """Write the library of the training split of a table, and measure it on the test split."""
    from driftworks.data import backbones

    table = backbones.read(source)
    train, test = (table.rows(name, complete=True) for name in ("train", "test"))
    made = Peptides.of([table.bb(int(i)) for i in train], [table.numbers(int(i)) for i in train])
    made.write(out)
    library = Peptides.read(out)
    shown = np.random.default_rng(1).permutation(test)[:150]
    chains = Chains.from_backbones(table, shown)
    full_backbones(chains[:1], library)  # builds the trees
    start = time.process_time()
    guess = full_backbones(chains, library)
    spent = 1e3 * (time.process_time() - start) / len(shown)
    real = [table.bb(int(i)).astype(np.float64) for i in shown]
    gaps = np.concatenate(
        [np.linalg.norm(g - r, axis=-1) for g, r in zip(guess, real, strict=True)]
    )
    inner = np.concatenate(
        [np.linalg.norm(g - r, axis=-1)[1:-1] for g, r in zip(guess, real, strict=True)]
    )
    print(f"{len(library)} peptides, {Path(out).stat().st_size / 1e6:.2f} MB; "
          f"{len(shown)} chains, {spent:.1f} ms each (process time)")  # fmt: skip
    for name, rows in (("all residues", gaps), ("without ends", inner)):
        rms = np.sqrt(np.square(rows).mean(axis=0))
        print(f"{name}: " + ", ".join(
            f"{atom} median {np.median(rows[:, k]):.3f} rms {rms[k]:.3f}"
            for k, atom in ((2, "C"), (3, "O"), (0, "N"))))  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m driftworks.protein.reconstruct TABLE.npz OUT.npz")
    main(*sys.argv[1:])
