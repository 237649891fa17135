r"""Edges, fans and connected parts of triangles, given as arrays of vertex numbers.

Side k of face f runs from its corner k to the next one and has number k m + f among the 3 m sides
of m faces. Sides between the same two vertices are one **edge**: two faces on an inner one, one on
an open boundary, more where the surface is not a manifold. Faces around a vertex that are joined
through edges at it are one **fan**; a vertex with several fans is where a surface only touches
itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["Edges", "components", "one_sided", "pinched", "present"]

Indices = NDArray[np.int64]


class Edges:
    """The edges of m triangles; side k of face f, from corner k to the next, has number k m + f.

    ends: (e, 2) the vertices of each edge, the smaller first
    edge: (3 m,) the edge of each side
    forward: (3 m,) whether the side runs from the smaller to the larger vertex
    faces: (e,) how many faces meet in the edge
    """

    def __init__(self, triangles: Indices, count: int) -> None:
        sides = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
        self.forward = sides[:, 0] < sides[:, 1]
        key = sides.min(1) * count + sides.max(1) if len(sides) else np.zeros(0, np.int64)
        keys, self.edge, self.faces = np.unique(key, return_inverse=True, return_counts=True)
        self.ends: Indices = np.stack([keys // max(count, 1), keys % max(count, 1)], 1)

    def neighbours(self, manifold: bool = True) -> tuple[Indices, Indices]:
        """Pairs of sides on one edge: of edges with two faces, or in a row of all that meet."""
        order = np.argsort(self.edge, kind="stable")
        same = self.edge[order[1:]] == self.edge[order[:-1]]
        if manifold:
            same &= self.faces[self.edge[order[1:]]] == 2
        return order[:-1][same], order[1:][same]


def pinched(triangles: Indices, edges: Edges, count: int) -> int:
    """The number of vertices around which the faces form several fans."""
    number = len(triangles)
    start = np.arange(3 * number)
    end = (start + number) % (3 * number)
    low, high = np.where(edges.forward, start, end), np.where(edges.forward, end, start)
    first, second = edges.neighbours(manifold=False)
    joined = np.concatenate(
        [np.stack([low[first], low[second]], 1), np.stack([high[first], high[second]], 1)]
    )
    fan = components(joined, 3 * number)
    at = np.sort(triangles.T.ravel() * (3 * number) + fan)
    fans = at[np.concatenate([[True], at[1:] != at[:-1]])]
    return int((np.bincount(fans // (3 * number), minlength=count) > 1).sum())


def one_sided(edges: Edges) -> bool:
    """Whether neighbouring faces run the same way through a common edge.

    Where all faces have been turned that can be turned, the surface has one side only.
    """
    first, second = edges.neighbours()
    return bool((edges.forward[first] == edges.forward[second]).any())


def present(numbers: Indices, count: int) -> Indices:
    """The distinct numbers among 0 .. count-1, in order.

    numpy's own function hashes, which takes tens of seconds on the faces of 160,000 vertices.
    """
    there = np.zeros(count, np.bool_)
    there[numbers] = True
    return there.nonzero()[0]


def components(pairs: Indices, count: int) -> Indices:
    """(count,) numbers of the components of a graph with edges (e, 2)."""
    graph = coo_array((np.ones(len(pairs), np.bool_), pairs.T), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)
