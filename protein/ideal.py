r"""Chains made in code: ideal secondary structure, ideal folds, and what degenerate models produce.

C-alpha traces on a helix of radius 2.3 angstrom, rise 1.5 and turn 100 degrees (bonds of 3.83),
pleated strands, hairpins, bundles of helices; full backbones N, CA, C, O from torsion angles by the
natural extension reference frame (Parsons et al., J. Comput. Chem. 26, 1063, 2005) with the bond
lengths and angles of Engh & Huber (1991).

`mirrored`, `noised`, `relaxed_walk` and `unpacked` are the failures that an evaluation of generated
backbones has to notice. Every random function takes a numpy generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from driftworks.errors import UserError
from driftworks.protein.geometry import TRANS

__all__ = [
    "HELIX",
    "STRAND",
    "backbone",
    "bundle",
    "hairpin",
    "helix",
    "mirrored",
    "noised",
    "place",
    "relaxed_walk",
    "strand",
    "unpacked",
]

Array = NDArray[np.float64]

#: phi, psi of an alpha helix and of an antiparallel strand [degrees].
HELIX, STRAND = (-57.0, -47.0), (-139.0, 135.0)

RADIUS, RISE, TURN = 2.3, 1.5, math.radians(100.0)

# Bond lengths [angstrom] and angles [degrees] of a peptide: Engh & Huber, Acta Cryst. A47, 392.
_N_CA, _CA_C, _C_N, _C_O = 1.458, 1.525, 1.329, 1.231
_AT_CA, _AT_C, _AT_N, _AT_O = 111.2, 116.2, 121.7, 120.8


def helix(n: int, left: bool = False) -> Array:
    """(n, 3) C-alphas of an ideal alpha helix along z [angstrom], right-handed unless `left`."""
    k = np.arange(_count(n))
    turn = -TURN if left else TURN
    return np.stack([RADIUS * np.cos(turn * k), RADIUS * np.sin(turn * k), RISE * k], axis=1)


def strand(n: int) -> Array:
    """(n, 3) C-alphas of a pleated strand along z [angstrom], bonds 3.80, two residues in 6.6."""
    k = np.arange(_count(n))
    rise = 3.3
    pleat = math.sqrt(TRANS**2 - rise**2) / 2
    return np.stack([pleat * (-1.0) ** k, np.zeros(n), rise * k], axis=1)


def hairpin(n: int) -> Array:
    """(n, 3) two antiparallel strands 4.8 angstrom apart, joined by a turn of two residues.

    n is even, 8 or more; bonds are within .05 angstrom of 3.80.
    """
    if n < 8 or n % 2:
        raise UserError(f"a hairpin of {n} residues; expected an even number from 8")
    arm = n // 2 - 1
    first = strand(arm)
    second = first[::-1] + [0.0, 4.8, 0.0]
    # the corner residues lie on a trapezium: 3.8 from the strand's end and from each other
    out = (4.8 - TRANS) / 2
    up = math.sqrt(TRANS**2 - out**2)
    corner = first[-1] + [0.0, out, up]
    return np.concatenate([first, [corner, corner + [0.0, TRANS, 0.0]], second])


def bundle(n: int, helices: int = 4, apart: float = 10.0, loop: int = 4) -> Array:
    """(n, 3) antiparallel helices on a ring, neighbours `apart` angstrom, joined by loops.

    The loops are arcs of bonds of 3.8 angstrom. Raises `UserError` when a helix would have fewer
    than six residues.
    """
    length = (n - loop * (helices - 1)) // helices
    if helices < 2 or loop < 3 or length < 6:
        raise UserError(f"{n} residues do not make {helices} helices with loops of {loop}")
    ring = apart / (2 * math.sin(math.pi / helices))
    extra = n - loop * (helices - 1) - length * helices
    parts: list[Array] = []
    for k in range(helices):
        count = length + (1 if k < extra else 0)
        piece = helix(count)
        piece[:, 2] -= piece[:, 2].mean()
        if k % 2:
            piece *= [1.0, -1.0, -1.0]  # half a turn about x: antiparallel, of the same hand
        angle = 2 * math.pi * k / helices
        # the phase puts each helix's ends towards its neighbour's
        piece[:, 0] += ring * math.cos(angle)
        piece[:, 1] += ring * math.sin(angle)
        if parts:
            parts.append(_arc(parts[-1][-1], piece[0], loop))
        parts.append(piece)
    return np.concatenate(parts)


def _arc(start: Array, end: Array, between: int) -> Array:
    """`between` points on a circular arc from start to end, every step 3.8 angstrom.

    The arc bulges along z, away from the middle. Where the ends are too far apart for that, the
    steps are longer and equal.
    """
    steps = between + 1
    chord = float(np.linalg.norm(end - start))
    along = (end - start) / chord
    up = np.array([0.0, 0.0, 1.0 if start[2] + end[2] > 0 else -1.0])
    up -= (up @ along) * along
    up /= np.linalg.norm(up)
    if chord >= steps * TRANS:
        return start + np.arange(1, steps)[:, None] / steps * (end - start)
    # each step turns by `turn`: chord = step sin(steps turn / 2) / sin(turn / 2), falling in turn
    low, high = 1e-9, 2 * math.pi / steps
    for _ in range(80):
        turn = (low + high) / 2
        reach = TRANS * math.sin(steps * turn / 2) / math.sin(turn / 2)
        low, high = (turn, high) if reach > chord else (low, turn)
    radius = TRANS / 2 / math.sin(turn / 2)
    centre = (start + end) / 2 - up * radius * math.cos(steps * turn / 2)
    angle = steps * turn / 2 - turn * np.arange(1, steps)
    return centre + radius * (-np.sin(angle)[:, None] * along + np.cos(angle)[:, None] * up)


def mirrored(points: ArrayLike) -> Array:
    """The mirror image of any (..., 3) coordinates."""
    return np.asarray(points, np.float64) * [1.0, 1.0, -1.0]


def noised(points: ArrayLike, sigma: float, rng: np.random.Generator) -> Array:
    """Coordinates with independent normal noise of `sigma` angstrom on each axis."""
    given = np.asarray(points, np.float64)
    return given + rng.normal(size=given.shape) * sigma


def relaxed_walk(n: int, rng: np.random.Generator, rounds: int = 400) -> Array:
    """(n, 3) a compact random walk relaxed until bonds are 3.8 and no two residues clash.

    It passes every check of bonds, clashes and size, and is no protein. A random start in a ball of
    protein size; each round moves bonded pairs to 3.8 angstrom and pushes pairs (two apart: 5.0;
    further: 4.2) apart.
    """
    size = 2.2 * _count(n) ** 0.38 * math.sqrt(5 / 3)
    start = rng.normal(size=(n, 3))
    steps = start / np.linalg.norm(start, axis=1, keepdims=True) * TRANS
    points = np.cumsum(steps, axis=0)
    between = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    least = np.where(between < 2, 0.0, np.where(between == 2, 5.0, 4.2))
    for k in range(rounds):
        points = points - points.mean(axis=0)
        if k < rounds // 2:
            radius = np.linalg.norm(points, axis=1, keepdims=True)
            points = points * np.where(radius > size, 1 - 0.2 * (1 - size / radius), 1.0)
        squares = (points**2).sum(axis=1)
        far = squares[:, None] + squares - 2 * points @ points.T
        far = np.sqrt(np.maximum(far, 1e-12))
        push = np.maximum(least - far, 0.0) / far / 4
        # sum over j of push_ij (r_i - r_j)
        points = points + push.sum(axis=1)[:, None] * points - push @ points
        # odd and even bonds in turn: each correction is exact for its own bonds
        for first in (0, 1, 0, 1):
            a, b = points[first:-1:2], points[first + 1 :: 2]
            bond = b - a
            length = np.linalg.norm(bond, axis=1, keepdims=True)
            shift = bond * (1 - TRANS / length) / 2
            points[first:-1:2] += shift
            points[first + 1 :: 2] -= shift
    return points


def unpacked(chains: Sequence[ArrayLike], n: int, rng: np.random.Generator, size: int = 9) -> Array:
    """(n, 3) fragments of given chains joined end to end: right locally, with no packing.

    Fragments of `size` residues overlap in three, by which each is fitted on the chain so far, at a
    place where the three agree within .5 angstrom in their shape. Raises `UserError` where no given
    chain is that long.
    """
    pool = [np.asarray(chain, np.float64) for chain in chains]
    pool = [chain for chain in pool if len(chain) >= size]
    if not pool:
        raise UserError(f"no chain of {size} residues to take fragments from")

    def fragment() -> Array:
        chain = pool[int(rng.integers(len(pool)))]
        start = int(rng.integers(len(chain) - size + 1))
        return chain[start : start + size]

    out = fragment()
    while len(out) < n:
        tail = out[-3:]
        reach = np.linalg.norm(tail[2] - tail[0])
        for _ in range(200):
            new = fragment()
            if abs(np.linalg.norm(new[2] - new[0]) - reach) < 0.5:
                break
        out = np.concatenate([out, _fitted(new, tail)[3:]])
    return out[:n]


def _fitted(piece: Array, onto: Array) -> Array:
    """The piece moved so that the frame of its first three points is that of `onto`."""
    own, target = _frame(piece[:3]), _frame(onto)
    return (piece - piece[2]) @ own @ target.T + onto[2]


def _frame(points: Array) -> Array:
    """Orthonormal columns: the last step, the normal part of the one before, their product."""
    first = points[2] - points[1]
    first = first / np.linalg.norm(first)
    second = points[0] - points[1]
    second = second - (second @ first) * first
    second = second / np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)], axis=1)


def place(a: Array, b: Array, c: Array, length: float, angle: float, torsion: float) -> Array:
    """(3,) the atom d at `length` from c, with the angle b-c-d and the torsion a-b-c-d [radian]."""
    axis = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, axis)
    normal = normal / np.linalg.norm(normal)
    local = np.array([
        -math.cos(angle),
        math.sin(angle) * math.cos(torsion),
        math.sin(angle) * math.sin(torsion),
    ])  # fmt: skip
    return c + length * (np.stack([axis, np.cross(normal, axis), normal], axis=1) @ local)


def backbone(torsions: ArrayLike, omega: float = 180.0) -> Array:
    """(n, 4, 3) N, CA, C, O [angstrom] of an ideal backbone with (n, 2) phi, psi [degrees].

    phi of the first residue has no meaning and is not used. omega: the peptide torsion.
    """
    angles = np.radians(np.asarray(torsions, np.float64))
    if angles.ndim != 2 or angles.shape[1] != 2 or not len(angles):
        raise UserError(f"torsions of shape {angles.shape}; expected (n, 2) phi, psi")
    turn = math.radians(omega)
    bend = math.radians(_AT_CA)
    out = np.zeros((len(angles), 4, 3))
    out[0, 1] = [_N_CA, 0.0, 0.0]
    out[0, 2] = out[0, 1] + [-_CA_C * math.cos(bend), _CA_C * math.sin(bend), 0.0]
    for k in range(1, len(angles)):
        n, ca, c = out[k - 1, 0], out[k - 1, 1], out[k - 1, 2]
        out[k, 0] = place(n, ca, c, _C_N, math.radians(_AT_C), angles[k - 1, 1])
        out[k, 1] = place(ca, c, out[k, 0], _N_CA, math.radians(_AT_N), turn)
        out[k, 2] = place(c, out[k, 0], out[k, 1], _CA_C, bend, angles[k, 0])
    for k in range(len(angles)):
        # the carbonyl oxygen lies in the peptide plane, opposite to the next nitrogen
        opposite = angles[k, 1] + math.pi
        out[k, 3] = place(out[k, 0], out[k, 1], out[k, 2], _C_O, math.radians(_AT_O), opposite)
    return out


def _count(n: int) -> int:
    if n < 1:
        raise UserError(f"a chain of {n} residues cannot be made")
    return n
