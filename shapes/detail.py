r"""Detail of maps that are right but for detail.

Two refinements of C to k functions, with samples p1, p2 of the shapes:

    swift    ZoomOut there and back on samples alone: a map cannot fold, but partners are no nearer
             to the right place than the next sample
    fine     ZoomOut each way for itself, from samples of one shape to (nearly) all vertices of the
             other: half the error where the low part of C is right

What ZoomOut ends in depends on where it starts, also among starts that agree up to detail: the
axis of an arm is in the low functions, the turn about it is not. So the map that was chosen is
refined anew from several (`starts_near`), and of those that are still the same map (`SAME`) the one
is kept whose patches bend least (`ranking.bending`), which knows detail better than any other
measure does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from driftworks.shapes import fmaps, ranking, starts
from driftworks.shapes.ranking import Judge
from driftworks.shapes.surface import Surface
from driftworks.shapes.zoomout import zoomout_both

__all__ = ["LOW", "SAME", "fine", "located", "polished", "swift"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
#: C there (k2, k1) and back (k1, k2).
Maps = tuple[Array, Array]

SAME = 0.06  # mean distance, in units of sqrt(area), below which two maps are one
LOW = 20  # functions that `fine` starts from
_HIGH = 50  # the same where a map is precise already, and of what comes from signatures
_STEP = 10


def swift(c_ab: Array, c_ba: Array, judge: Judge, k: int) -> Maps:
    """Refined on the samples of both shapes."""
    a, b = judge.a, judge.b
    s, t = len(a.samples), len(b.samples)
    both = zoomout_both(
        c_ab,
        c_ba,
        a.sampled(s),
        b.sampled(t),
        max(*c_ab.shape, min(k, room(judge))),
        _STEP,
        samples1=np.arange(s),
        samples2=np.arange(t),
    )
    return both.c12, both.c21


def fine(c_ab: Array, c_ba: Array, judge: Judge, k: int) -> Maps:
    """Refined from samples of one shape to the `dense` vertices of the other, each way."""
    k = max(*c_ab.shape, min(k, room(judge)))
    return _one_way(c_ab, judge.a, judge.b, k), _one_way(c_ba, judge.b, judge.a, k)


def room(judge: Judge) -> int:
    """The most functions that bases have and that samples can fix."""
    sides = (judge.a, judge.b)
    return min(min(len(side.basis), len(side.samples) // 3) for side in sides)


def located(maps: Maps, judge: Judge) -> tuple[Indices, Indices]:
    """Vertices of a where samples of b go, and of b where those of a go: there and back at once."""
    a, b = judge.a, judge.b
    at_a, _ = fmaps.to_vertices_both(*maps, a.basis, b.sampled(len(b.samples)))
    _, at_b = fmaps.to_vertices_both(*maps, a.sampled(len(a.samples)), b.basis)
    return at_a, at_b


def polished(maps: Maps, judge: Judge, k: int, mirrored: bool) -> Maps:
    """The same map with the least bending that several starts lead to."""
    at_a, at_b = located(maps, judge)
    hand = int(mirrored)
    best, least = maps, _bent(at_a, at_b, judge, hand)
    place = judge.a.mesh.vertices
    for c_ab, c_ba in starts_near(at_a, at_b, judge, mirrored):
        found = fine(c_ab, c_ba, judge, k)
        there, back = located(found, judge)
        if np.linalg.norm(place[there] - place[at_a], axis=1).mean() > SAME:
            continue
        bent = _bent(there, back, judge, hand)
        if bent < least:
            best, least = found, bent
    return best


def starts_near(at_a: Indices, at_b: Indices, judge: Judge, mirrored: bool) -> Iterator[Maps]:
    """Small maps that `polished` begins with: of the map itself, cut at two sizes, and of wave
    kernel signatures with their orientation, which may be of another map altogether.
    """
    a, b = judge.a, judge.b
    for size in (LOW, _HIGH):
        if size <= room(judge):
            first, second = a.basis.first(size), b.basis.first(size)
            there = fmaps.from_samples(at_a, b.samples, first, second)
            yield there, fmaps.from_samples(at_b, a.samples, second, first)
    if not (a.mesh.is_cloud or b.mesh.is_cloud):
        size = min(_HIGH, room(judge))
        sign = -1.0 if mirrored else 1.0
        there, back = starts.waves(a, b, size, sign), starts.waves(b, a, size, sign)
        yield there, back
        yield fmaps.orthogonal(there), fmaps.orthogonal(back)


def _bent(at_a: Indices, at_b: Indices, judge: Judge, hand: int) -> float:
    there = ranking.bending(judge.a, judge.b, at_b)[hand]
    back = ranking.bending(judge.b, judge.a, at_a)[hand]
    return float(there.mean() + back.mean())


def _one_way(c: Array, a: Surface, b: Surface, k: int) -> Array:
    """C (k2, k1) from a to b grown to k functions; the search is in single precision, which is
    thousands of times finer than the distance of neighbours.
    """
    targets = a.basis.functions[a.dense].astype(np.float32)
    queries = b.basis.functions[b.samples].astype(np.float32)
    while True:
        k2, k1 = c.shape
        embedded = targets[:, :k1] @ c.T.astype(np.float32)
        at = a.dense[fmaps.nearest(queries[:, :k2], embedded)]
        size = min(max(k1, k2) + _STEP, k)
        c = fmaps.from_samples(at, b.samples, a.basis.first(size), b.basis.first(size))
        if size == k:
            return c
