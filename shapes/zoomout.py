r"""ZoomOut: a small functional map grows into a large one, hence into a precise vertex map.

Repeat, from k0 functions up to k (Melzi, Ren, Rodola, Sharma, Wonka & Ovsjanikov, "ZoomOut:
spectral upsampling for efficient shape correspondence", SIGGRAPH Asia 2019):

    map21   = vertex map of C                  nearest neighbours among the present functions
    C       = Phi2^T M2 Phi1[map21]            with `step` more functions on both sides

Each round costs n1 n2 k multiplications. The **fast** variant looks only at s samples of shape 2,
among all vertices or s samples of shape 1, and takes C by least squares on them, until the last map
is made on all vertices: s n1 k or s^2 k a round. The samples are farthest points, each one as far
as possible from those before it (Gonzalez 1985; Eldar et al. 1997), at least about 3 k of them.

The **bijective** variant carries maps both ways and searches in the sum of both distances (Ren,
Melzi, Ovsjanikov & Wonka, "MapTree", 2020): less apt to fold a shape onto half of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from driftworks.errors import UserError
from driftworks.shapes.fmaps import from_samples, from_vertices, to_vertices, to_vertices_both
from driftworks.shapes.spectrum import Basis

__all__ = ["BothWays", "farthest_points", "zoomout", "zoomout_both"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class BothWays:
    """A map in both directions.

    c12: (k2, k1) functions of shape 1 to functions of shape 2; c21: (k1, k2) back
    map21: (n2,) for each vertex of shape 2 its vertex on shape 1; map12: (n1,) the other way
    """

    c12: Array
    c21: Array
    map21: Indices
    map12: Indices


def zoomout(
    c: Array,
    basis1: Basis,
    basis2: Basis,
    k: int | None = None,
    step: int = 10,
    *,
    adjoint: bool = False,
    samples1: ArrayLike | None = None,
    samples2: ArrayLike | None = None,
) -> tuple[Array, Indices]:
    """Refine C (k2, k1) from shape 1 to 2; returns the larger C and `map21` (n2,) made from it.

    k: functions of the larger side in the end; None for as many as both bases allow. A difference
        between k1 and k2 is kept, and k that adds nothing still gives one round
    step: functions added a round
    adjoint: how vertex maps are made (`fmaps.to_vertices`)
    samples1, samples2: vertices for the fast variant; with `samples2` alone partners are sought
        among all vertices of shape 1, which is slower and more precise

    For the other direction give C^T and the bases in the other order. Raises `UserError` when bases
    or samples are too small for k.
    """
    chosen1, chosen2 = _samples(samples1, samples2)
    for k1, k2 in _sizes(c, basis1, basis2, k, step, None, chosen2):
        map21 = to_vertices(
            c, basis1, basis2, adjoint=adjoint, samples1=chosen1, samples2=chosen2
        )
        c = _map(map21, chosen2, basis1.first(k1), basis2.first(k2))
    return c, to_vertices(c, basis1, basis2, adjoint=adjoint)


def zoomout_both(
    c12: Array,
    c21: Array,
    basis1: Basis,
    basis2: Basis,
    k: int | None = None,
    step: int = 10,
    *,
    samples1: ArrayLike | None = None,
    samples2: ArrayLike | None = None,
) -> BothWays:
    """The bijective variant: refine c12 (k2, k1) and c21 (k1, k2) together.

    Arguments as in `zoomout`, except that samples are of both shapes or of none.
    """
    chosen1, chosen2 = _samples(samples1, samples2)
    if (chosen1 is None) != (chosen2 is None):
        raise UserError("the bijective variant takes samples of both shapes or of none")
    if c21.shape != c12.shape[::-1]:
        raise UserError(f"maps of shapes {c12.shape} and {c21.shape} are not there and back")
    for k1, k2 in _sizes(c12, basis1, basis2, k, step, chosen1, chosen2):
        map21, map12 = to_vertices_both(
            c12, c21, basis1, basis2, samples1=chosen1, samples2=chosen2
        )
        first, second = basis1.first(k1), basis2.first(k2)
        c12 = _map(map21, chosen2, first, second)
        c21 = _map(map12, chosen1, second, first)
    return BothWays(c12, c21, *to_vertices_both(c12, c21, basis1, basis2))


def farthest_points(
    points: ArrayLike,
    count: int,
    *,
    distances: Callable[[int], Array] | None = None,
) -> Indices:
    """(count,) numbers of points, each the farthest from all before it.

    points: (n, 3), or (n, d) of any space
    distances: for a vertex its (n,) distances to all, such as geodesic ones; None for Euclidean

    The first is farthest from the centroid, and the lowest number wins among equals, so nothing is
    drawn and, but for ties, numbering and motion do not matter. Parts that cannot be reached (at
    infinite distance) come first. Raises `UserError` for more points than there are.
    """
    place = np.asarray(points, dtype=np.float64)
    if place.ndim != 2 or not np.isfinite(place).all():
        raise UserError(f"points are (n, d) finite numbers, not of shape {place.shape}")
    if not 1 <= count <= len(place):
        raise UserError(f"{count} of {len(place)} points were asked for")
    chosen = np.empty(count, np.int64)
    chosen[0] = np.square(place - place.mean(0)).sum(1).argmax()
    gap = np.full(len(place), np.inf)
    for i in range(1, count):
        last = chosen[i - 1]
        if distances is None:
            reach = np.square(place - place[last]).sum(1)
        else:
            reach = np.asarray(distances(int(last)), dtype=np.float64)
            if reach.shape != gap.shape or np.isnan(reach).any():
                raise UserError(f"distances of vertex {last} are not {len(place)} numbers")
        np.minimum(gap, reach, out=gap)
        gap[last] = -1.0  # never twice, even among points that coincide
        chosen[i] = gap.argmax()
    return chosen


def _sizes(
    c: Array,
    basis1: Basis,
    basis2: Basis,
    k: int | None,
    step: int,
    fix1: Indices | None,
    fix2: Indices | None,
) -> list[tuple[int, int]]:
    """(k1, k2) after each round; fix1 and fix2 are samples that least squares are taken on."""
    if c.ndim != 2:
        raise UserError(f"a functional map is a matrix (k2, k1), not of shape {c.shape}")
    if step < 1:
        raise UserError(f"step must be at least 1, not {step}")
    k2, k1 = c.shape
    room = min(len(basis1) - k1, len(basis2) - k2)
    if room < 0:
        raise UserError(f"a {c.shape} map does not fit bases of {len(basis1)} and {len(basis2)}")
    growth = room if k is None else k - max(k1, k2)
    if not 0 <= growth <= room:
        raise UserError(f"k must be between {max(k1, k2)} and {max(k1, k2) + room}, not {k}")
    for chosen, size in ((fix1, k1 + growth), (fix2, k2 + growth)):
        if chosen is not None and len(chosen) < size:
            raise UserError(f"{len(chosen)} samples are too few for {size} functions")
    return [(k1 + more, k2 + more) for more in (*range(step, growth, step), growth)]


def _samples(
    samples1: ArrayLike | None, samples2: ArrayLike | None
) -> tuple[Indices | None, Indices | None]:
    first, second = (None if s is None else np.asarray(s) for s in (samples1, samples2))
    if second is None and first is not None:
        raise UserError("samples of shape 1 alone do not make the search faster; give samples2")
    return first, second


def _map(map21: Indices, chosen2: Indices | None, basis1: Basis, basis2: Basis) -> Array:
    if chosen2 is None:
        return from_vertices(map21, basis1, basis2)
    return from_samples(map21, chosen2, basis1, basis2)
