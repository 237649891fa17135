r"""From functional maps both ways to a vertex for every vertex, on large meshes too.

With e1(y) = (C12 phi1(y), phi1(y)) and e2(x) = (phi2(x), C21 phi2(x)) the bijective search takes

    map21(x) = argmin_y |e1(y) - e2(x)|,      map12(y) = argmin_x |e1(y) - e2(x)|,

which is one table of n2 x n1 numbers with the least of each row and of each column. It is gone
through in blocks of rows, so that it is never in memory as a whole, and in single precision, which
halves the time. Distances between neighbouring vertices in this space are thousands of times its
rounding; only vertices in the same place may be taken for each other.

Time goes with n1 n2 (k1 + k2): the one step of matching that does. So it is done for the map that
is chosen; for comparing maps and showing those that were not chosen, they are `drafted`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from driftworks.shapes.fmaps import BLOCK_BYTES, to_vertices_both
from driftworks.shapes.spectrum import Basis
from driftworks.shapes.surface import Surface

__all__ = ["drafted", "everywhere"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


def everywhere(c12: Array, c21: Array, basis1: Basis, basis2: Basis) -> tuple[Indices, Indices]:
    """`map21` (n2,) and `map12` (n1,) of c12 (k2, k1) and c21 (k1, k2), as `to_vertices_both`.

    Takes 4 (n1 + n2) (k1 + k2) bytes and blocks of `BLOCK_BYTES`.
    """
    first = basis1.functions[:, : c12.shape[1]]
    second = basis2.functions[:, : c12.shape[0]]
    embedded1 = np.hstack([first @ c12.T, first]).astype(np.float32)
    embedded2 = np.hstack([second, second @ c21.T]).astype(np.float32)
    half1, half2 = (0.5 * np.einsum("nd,nd->n", e, e) for e in (embedded1, embedded2))
    n1, n2 = len(embedded1), len(embedded2)
    columns = np.ascontiguousarray(embedded1.T)
    map21, map12 = np.empty(n2, np.int64), np.zeros(n1, np.int64)
    least = np.full(n1, np.inf, np.float32)
    rows = max(1, BLOCK_BYTES // (4 * n1))
    for start in range(0, n2, rows):
        block = slice(start, start + rows)
        gap = embedded2[block] @ columns
        np.subtract(half1, gap, out=gap)
        map21[block] = gap.argmin(1)
        gap += half2[block, None]
        lowest = gap.argmin(0)
        value = gap[lowest, np.arange(n1)]
        closer = value < least
        map12[closer] = start + lowest[closer]
        least[closer] = value[closer]
    return map21, map12


def drafted(c12: Array, c21: Array, a: Surface, b: Surface) -> tuple[Indices, Indices]:
    """The same, searched for the samples of a shape among all vertices of the other, and for its
    other vertices among the samples of the other: time goes with (n1 + n2) s (k1 + k2).
    """
    at_a, map12 = to_vertices_both(c12, c21, a.basis, b.sampled(len(b.samples)))
    map21, at_b = to_vertices_both(c12, c21, a.sampled(len(a.samples)), b.basis)
    map21, map12 = a.samples[map21], b.samples[map12]
    map21[b.samples], map12[a.samples] = at_a, at_b
    return map21, map12
