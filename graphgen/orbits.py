r"""How often a node lies in each position of the connected graphs of two to four nodes.

The fifteen orbits 0-14 (Pržulj, "Biological network comparison using graphlet degree distribution",
Bioinformatics 2007) are the positions a node can have in a connected *induced* subgraph:

    0 edge     1, 2 path of three (end, middle)     3 triangle     4, 5 path of four (end, middle)
    6, 7 star (leaf, centre)      8 square      9, 10, 11 triangle with a tail (tail, base, joint)
    12, 13 square with one diagonal (off it, on it)      14 complete graph

Copies that need not be induced are easy to count. With A the adjacency matrix, d the degrees,
T = A * A^2 the triangles on each edge and t those on each node,

    paths of four that end in i     (A^2 (d - 1))_i - d_i (d_i - 1) - 2 t_i
    squares through i               sum_{j != i} binom((A^2)_ij, 2)
    diagonals at i                  sum_{j ~ i} binom(T_ij, 2)              and so on below,

and complete graphs from the edges among the common neighbours of each edge. A graph of four nodes
contains the sparser ones a fixed number of times, so subtracting from the densest down leaves the
induced counts (Hočevar & Demšar, "A combinatorial approach to graphlet counting", 2014, solve the
same system). All is dense algebra over a batch, in float64: exact while counts stay below 2^53.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from driftworks.errors import UserError

__all__ = ["ORBITS", "orbit_counts"]

#: The number of orbits.
ORBITS = 15

_Array = NDArray[np.float64]


def orbit_counts(adjacency: ArrayLike | Any) -> NDArray[np.int64]:
    """Orbit counts of every node.

    adjacency: (N, N) or (B, N, N), symmetric, zero diagonal, anything but zero is an edge; rows of
        padding (no edges) get zeros. Arrays and tensors are taken.
    Returns (N, 15) or (B, N, 15) int64. Raises `UserError` for another shape, a self-loop, or a
    matrix that is not symmetric.
    """
    given = np.asarray(adjacency)
    if given.ndim not in (2, 3) or given.shape[-1] != given.shape[-2]:
        raise UserError(f"adjacency has shape {given.shape}, expected (N, N) or (B, N, N)")
    edge = (given if given.ndim == 3 else given[None]) != 0
    if (edge != edge.swapaxes(1, 2)).any():
        raise UserError("adjacency is not symmetric: orbits are those of undirected graphs")
    if np.einsum("bii->bi", edge).any():
        raise UserError("adjacency has a self-loop: orbits are those of simple graphs")
    counts = _counts(edge.astype(np.float64), edge)
    return counts if given.ndim == 3 else counts[0]


def _counts(a: _Array, edge: NDArray[np.bool_]) -> NDArray[np.int64]:
    out = np.zeros((*a.shape[:2], ORBITS))
    if not a.size:
        return out.astype(np.int64)
    d = a.sum(2)
    paths = a @ a
    tri = paths * a  # T, triangles on each edge
    t = tri.sum(2) / 2
    off = paths.copy()
    np.einsum("bii->bi", off)[:] = 0.0

    def times(matrix: _Array, vector: _Array) -> _Array:
        return (matrix @ vector[..., None])[..., 0]

    complete = _complete(a, edge, tri)
    on = _pairs(tri).sum(2) - 3 * complete
    # edges among the neighbours of i, each with the triangles that do not hold i
    beyond = ((a @ (tri - a)) * a).sum(2) / 2
    across = beyond - 3 * complete
    square = _pairs(off).sum(2) - across - on - 3 * complete
    joint = t * (d - 2) - 2 * on - 3 * complete
    base = times(tri, d - 2) - 2 * across - 2 * on - 6 * complete
    tail = times(a, t) - tri.sum(2) - 2 * across - 3 * complete
    centre = d * (d - 1) * (d - 2) / 6 - joint - on - complete
    leaf = times(a, (d - 1) * (d - 2) / 2) - tail - base - 2 * across - on - 3 * complete
    end = times(paths, d - 1) - d * (d - 1) - 2 * t
    end -= 2 * square + 2 * tail + base + 4 * across + 2 * on + 6 * complete
    middle = (d - 1) * times(a, d - 1) - tri.sum(2)
    middle -= 2 * square + base + 2 * joint + 2 * across + 4 * on + 6 * complete
    out[..., 0] = d
    out[..., 1] = times(a, d - 1) - 2 * t
    out[..., 2] = d * (d - 1) / 2 - t
    rest = (t, end, middle, leaf, centre, square, tail, base, joint, across, on, complete)
    for k, values in enumerate(rest, start=3):
        out[..., k] = values
    return np.rint(out).astype(np.int64)


def _pairs(x: _Array) -> _Array:
    return x * (x - 1) / 2


def _complete(a: _Array, edge: NDArray[np.bool_], tri: _Array) -> _Array:
    """Complete graphs of four nodes through each node: edges among common neighbours, over 3."""
    found = np.zeros(a.shape[:2])
    candidates = np.argwhere(np.triu(tri >= 2))
    if not len(candidates):
        return found
    starts = np.searchsorted(candidates[:, 0], np.arange(len(a) + 1))
    for b in np.flatnonzero(np.diff(starts)):
        i, j = candidates[starts[b] : starts[b + 1], 1:].T
        common = (edge[b, i] & edge[b, j]).astype(np.float64)
        inside = ((common @ a[b]) * common).sum(1) / 2
        np.add.at(found[b], i, inside)
        np.add.at(found[b], j, inside)
    return found / 3
