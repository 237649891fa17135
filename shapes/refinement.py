r"""Maps one already has: noisy ones made clean, partial ones whole, and how far one could be off.

A vertex map gives a functional map C_raw (`fmaps.from_vertices`). Errors of single vertices fill it
with small entries everywhere, while a map between shapes has few large ones. The prior says which:
with its penalties P,

    min_C  |C - C_raw|^2 + w sum_ij P_ij C_ij^2,      that is  C_ij = C_raw_ij / (1 + w P_ij)

is the projection. ZoomOut then brings back the detail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from driftworks.core.keys import Keys
from driftworks.errors import UserError
from driftworks.shapes import descriptors, fmaps, ranking, starts
from driftworks.shapes.geodesics import distances
from driftworks.shapes.matching import conclude, extend, prepare
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.prior import Prior, posterior_penalty
from driftworks.shapes.ranking import Judge
from driftworks.shapes.result import Match
from driftworks.shapes.threads import one_thread

__all__ = ["Spread", "complete", "refine", "sample_maps"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

_SIZE = 30  # functions of the map that the prior looks at
_WEIGHT = 1.0
_STRAY = 25.0  # odds, as a logarithm, that a landmark costs that lands sqrt(area) away


@one_thread()
def refine(
    given: Match | ArrayLike,
    a: Mesh | None = None,
    b: Mesh | None = None,
    *,
    prior: Prior | None = None,
    weight: float = _WEIGHT,
    k: int = 150,
) -> Match:
    """A map made clean: projected by the prior, then refined.

    given: a match, or `map_ba` (len(b),), for each vertex of b its vertex on a
    a, b: the meshes of a vertex map
    weight: of the prior's penalties; 0 for ZoomOut alone

    The result stays near the map that is given: a flipped one remains flipped, and its score says
    what `match` would.
    """
    if isinstance(given, Match):
        a, b, vertices = given.a, given.b, given.map_ba
    elif a is None or b is None:
        raise UserError("refining a vertex map needs both of its meshes")
    else:
        vertices = _vertex_map(given, a, b)
    judge = prepare(a, b, k, prior)
    size = min(_SIZE, len(judge.a.basis), len(judge.b.basis))
    raw = fmaps.from_vertices(vertices, judge.a.basis.first(size), judge.b.basis.first(size))
    c = _projected(raw, judge, weight)
    return conclude(judge, (a, b), [extend("given", c, c.T, judge, k)])


@one_thread()
def complete(
    a: Mesh,
    b: Mesh,
    points_a: ArrayLike,
    points_b: ArrayLike,
    *,
    prior: Prior | None = None,
    k: int = 150,
) -> Match:
    """The whole map between shapes of which some corresponding points are known.

    points_a, points_b: (s,) vertices, the i-th of one on the i-th of the other; one is enough to
        tell a map from its mirror image, a dozen guide shapes that are not alike

    The points that are given are kept exactly. Guesses are those of waves, signs and frames, and
    waves sent out from the points; their odds are lowered by how far they miss the points.
    """
    known_a, known_b = _points(points_a, a, "points_a"), _points(points_b, b, "points_b")
    if len(known_a) != len(known_b) or not len(known_a):
        raise UserError(
            f"points correspond one to one, but there are {len(known_a)} and {len(known_b)}"
        )
    judge = prepare(a, b, k, prior)
    first, second = judge.a, judge.b
    reach = distances(first.mesh, known_a)
    close = second.samples[: starts.SAMPLES]
    gap = second.mesh.vertices[known_b][:, None] - second.mesh.vertices[close]
    nearest = np.square(gap).sum(2).argmin(1)
    guesses = [("points", _from_points(judge, known_a, known_b)), *starts.signs(first, second)]
    guesses += [
        (f"frame {i}", starts.aligned(first, second, turn))
        for i, turn in enumerate(starts.frames(first, second))
    ]
    rated = []
    for name, c in guesses:
        candidate = starts.coarse(name, c, first, second)
        at_a, at_b = candidate.vertices(first, second)
        miss = reach[np.arange(len(known_a)), at_a[nearest]].mean()
        odds = ranking.promise(judge.glance(at_a, at_b)) - _STRAY * float(miss)
        rated.append((odds, candidate))
    rated.sort(key=lambda item: -item[0])
    full = []
    for _, candidate in rated[:2]:
        size = min(starts.FUNCTIONS, len(first.basis), len(second.basis), len(candidate.at_a) // 3)
        ends = first.basis.first(size), second.basis.first(size)
        at_a, at_b = candidate.vertices(first, second)
        c_ab = fmaps.from_samples(at_a, second.samples[: len(at_a)], *ends)
        c_ba = fmaps.from_samples(at_b, first.samples[: len(at_b)], *ends[::-1])
        hypothesis, both = extend(candidate.name, c_ab, c_ba, judge, k)
        miss = float(reach[np.arange(len(known_a)), hypothesis.map_ba[known_b]].mean())
        full.append((ranking.logit(hypothesis.parts) - _STRAY * miss, hypothesis, both))
    full.sort(key=lambda item: -item[0])
    for _, hypothesis, both in full:
        both.map21[known_b] = known_a
        both.map12[known_a] = known_b
        assert hypothesis.map_ba is both.map21
    return conclude(judge, (a, b), [(h, both) for _, h, both in full])


@dataclass(frozen=True, eq=False)
class Spread:
    """Several maps that are all plausible.

    maps_ba: (count, len(b)) vertices of a
    spread_b: (len(b),) root mean square distance of a vertex's images from their middle, in units
        of the root of a's area
    """

    maps_ba: Indices
    spread_b: Array


@one_thread()
def sample_maps(
    given: Match, count: int = 8, *, noise: float = 0.3, seed: int = 0, k: int = 100
) -> Spread:
    """Maps refined from the given one's 30 x 30 functional map with noise on every entry.

    noise: its standard deviation; the entries of a map of isometric shapes are about 1 on the
        diagonal. Where images differ, the map is not held by the geometry.

    Map i is a function of (seed, i). Raises `UserError` for a count below 2 or negative noise.
    """
    if count < 2 or not noise >= 0:
        raise UserError(f"count is at least 2 and noise not negative, got {count} and {noise}")
    judge = prepare(given.a, given.b, k, None)
    size = min(_SIZE, *given.c_ab.shape)
    keys = Keys.for_samples(seed, range(count))
    drawn = keys.normal("maps", 0, (2, size, size), torch.float64).numpy()
    maps = []
    for there, back in noise * drawn:
        c_ab, c_ba = given.c_ab[:size, :size] + there, given.c_ba[:size, :size] + back
        hypothesis, _ = extend("sample", c_ab, c_ba, judge, k)
        maps.append(hypothesis.map_ba)
    places = judge.a.mesh.vertices[np.stack(maps)]
    square = np.square(places - places.mean(0)).sum(2).mean(0)
    return Spread(np.stack(maps), np.sqrt(square))


def _projected(raw: Array, judge: Judge, weight: float) -> Array:
    """C_raw (k, k) with small weight where the prior expects nothing, made orthogonal."""
    if weight == 0:
        return fmaps.orthogonal(raw)
    assert judge.prior is not None
    size = min(len(raw), judge.prior.k)
    raw = raw[:size, :size]
    values = judge.a.basis.values[:size], judge.b.basis.values[:size]
    penalties = posterior_penalty(judge.prior, raw, *values)
    return fmaps.orthogonal(fmaps.fit(np.eye(size), raw, penalties, weight))


def _from_points(judge: Judge, points_a: Indices, points_b: Indices) -> Array:
    """C from signatures and from waves sent out at points that correspond."""
    k = min(_SIZE, len(judge.a.basis), len(judge.b.basis))
    sides = []
    count = min(100, len(judge.a.basis), len(judge.b.basis))
    full = [surface.basis.first(count) for surface in (judge.a, judge.b)]
    energies = descriptors.wave_energies(0.5 * (full[0].values + full[1].values), 10)
    for basis, points, waves in zip(
        full, (points_a, points_b), judge.signatures, strict=True
    ):
        sent = descriptors.landmark_wks(basis, points, energies=energies)
        # the points together weigh as much as twice the signatures, however many they are
        sent = descriptors.unit(sent, basis.mass) * np.sqrt(2 * waves.shape[1] / sent.shape[1])
        both = np.hstack([descriptors.unit(waves, basis.mass), sent])
        sides.append(basis.first(k).coefficients(both))
    penalties = fmaps.resolvent_penalty(full[0].values[:k], full[1].values[:k])
    return fmaps.fit(sides[0], sides[1], penalties, 1.0)


def _points(given: ArrayLike, mesh: Mesh, called: str) -> Indices:
    found = np.asarray(given)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise UserError(f"{called} must be a list of vertex numbers")
    if len(found) and not 0 <= found.min() <= found.max() < len(mesh):
        raise UserError(f"{called} holds numbers that are no vertices; they end at {len(mesh) - 1}")
    return found.astype(np.int64)


def _vertex_map(given: ArrayLike, a: Mesh, b: Mesh) -> Indices:
    found = np.asarray(given)
    if found.shape != (len(b),) or found.dtype.kind not in "iu":
        raise UserError(f"a vertex map has a vertex number for each of the {len(b)} vertices of b")
    return _points(found, a, "the map")
