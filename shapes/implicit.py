"""Well-shaped triangle meshes of mirror-symmetric implicit bodies.

The surface f = 0 is sampled where grid edges cross it. An edge of direction e meets a surface
element of normal n with probability proportional to |n.e|, so a crossing weighted by
1 / (|nx| + |ny| + |nz|) is a uniform area sample. Seeds taken from the samples become a centroidal
Voronoi tessellation by Lloyd's iteration (Du, Faber, Gunzburger, SIAM Review 1999); samples
weighted by area / h^4 give cells of size h, a field that is smaller where the body is thin.
Triangles are those Delaunay faces that separate tetrahedra with circumcentres inside and outside
(restricted Delaunay triangulation: Edelsbrunner and Shah, 1997; Amenta and Bern, 1999). Such a set
is closed by construction.

Only the half x >= 0 is sampled, with seeds of its own on the curve in the plane x = 0; the other
half is its mirror image, exact to the bit, and so is the correspondence between the halves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import Delaunay, cKDTree

from driftworks.errors import UserError

__all__ = ["Body", "Surface", "is_sphere", "mesh_body"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_LLOYD = 15
_ATTEMPTS = 8
_OVERSAMPLING = 2.8  # grid edges a seed spacing
_MIRROR = np.array([-1.0, 1.0, 1.0])


class Body(Protocol):
    """A body symmetric under x -> -x: f < 0 inside, |f| about distance over thickness."""

    def field(self, points: Array) -> Array: ...

    def gradient(self, points: Array) -> Array: ...

    def project(self, points: Array, steps: int = 3) -> Array: ...

    def thickness(self, points: Array) -> Array: ...

    def bounds(self) -> tuple[Array, Array]: ...


@dataclass(frozen=True, eq=False)
class Surface:
    """A closed mesh: vertices (n, 3), faces (m, 3) outward, mirror (n,): which vertex is at -x."""

    vertices: Array
    faces: Index
    mirror: Index


def mesh_body(body: Body, count: int, rng: np.random.Generator) -> Surface:
    """A closed genus-0 mesh of about ``count`` vertices of a connected symmetric body.

    Raises `UserError` when no such mesh was found: parts of the body are thinner than the spacing
    of the vertices resolves, or it is not one piece without handles.
    """
    low, high = body.bounds()
    # Trial spacing from the area of the bounding box; one coarse sampling then measures the area.
    coarse = _samples(body, low, high, float(np.linalg.norm(high - low)) / 70.0)
    half = float((coarse.weights / coarse.sizes**2).sum())
    spacing = np.sqrt(half / (0.5 * count)) * 1.07  # cells of side 1.07 have hexagonal area 1
    step = float(np.quantile(coarse.sizes, 0.1)) * spacing / _OVERSAMPLING
    samples = _samples(body, low, high, step)
    for _ in range(_ATTEMPTS):
        plane, free = _seeds(body, samples, spacing, count, rng)
        surface = _restricted_delaunay(body, plane, free)
        if surface is not None:
            return surface
    raise UserError(
        f"no closed mesh of {count} vertices resolves this body; ask for more vertices"
    )


def is_sphere(faces: Index) -> bool:
    """Whether faces are one closed oriented 2-manifold of genus 0.

    Every directed edge occurs once and so does its opposite; the faces around a vertex form one
    fan; all faces hang together; and V - E + F = 2.
    """
    tails, heads = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    n = int(faces.max()) + 1
    forward, backward = tails * n + heads, heads * n + tails
    order = np.argsort(forward)
    place = np.searchsorted(forward[order], backward).clip(max=len(order) - 1)
    twin = order[place]
    if len(np.unique(forward)) < len(forward) or (forward[twin] != backward).any():
        return False
    # corner k (of vertex tails[k]) and the corner after its twin belong to the same vertex
    corner = np.arange(len(forward))
    after = twin - twin % 3 + (twin + 1) % 3
    vertices = len(np.unique(faces))
    fans = _parts_of(corner, after)
    parts = _parts_of(np.concatenate((corner, corner)) // 3, np.concatenate((after, twin)) // 3)
    return fans == vertices and parts == 1 and vertices - len(faces) // 2 == 2


def _parts_of(a: Index, b: Index) -> int:
    """Connected parts of the graph of edges (a, b) on the nodes that occur."""
    size = int(max(a.max(), b.max())) + 1
    return int(connected_components(coo_array((np.ones(len(a)), (a, b)), (size, size)))[0])


@dataclass(frozen=True, eq=False)
class _Samples:
    points: Array
    weights: Array  # area
    sizes: Array  # relative spacing wanted here
    curve: Array  # points in the plane x = 0
    lengths: Array
    curve_sizes: Array


def _samples(body: Body, low: Array, high: Array, step: float) -> _Samples:
    """Area-weighted points of the half x > 0 and length-weighted points of the plane curve."""
    block = 4
    cells = np.ceil((high - np.array([0.0, low[1], low[2]])) / (block * step)).astype(int) + 1
    origin = np.array([0.0, low[1] - step, low[2] - step])
    # far from the surface one value stands for a block of 4 x 4 x 4 grid points
    centres = origin + block * step * _lattice(cells) + 0.5 * (block - 1) * step
    coarse = body.field(centres)
    # a block reaches sqrt(3) / 2 of its side from its centre; f misjudges distances near flat parts
    near = np.abs(coarse) * body.thickness(centres) < 1.3 * block * step
    shape = tuple(block * cells)
    values = _blown(np.where(coarse > 0.0, 1.0, -1.0), cells, block)
    index = np.flatnonzero(_blown(near, cells, block))
    grid = np.column_stack(np.unravel_index(index, shape))
    values.ravel()[index] = body.field(origin + step * grid)

    points, curve = [], []
    for axis in range(3):
        a = np.take(values, range(shape[axis] - 1), axis)
        b = np.take(values, range(1, shape[axis]), axis)
        at = np.argwhere((a > 0.0) != (b > 0.0))
        va, vb = a[tuple(at.T)], b[tuple(at.T)]
        crossing = at.astype(float)
        crossing[:, axis] += va / (va - vb)
        crossing = origin + step * crossing
        if axis:
            curve.append(crossing[at[:, 0] == 0])
        points.append(crossing[at[:, 0] > 0] if axis else crossing)
    surface, line = body.project(np.concatenate(points), 1), np.concatenate(curve)
    normal = np.abs(body.gradient(surface))
    area = step**2 * np.linalg.norm(normal, axis=1) / normal.sum(axis=1)
    slope = np.abs(body.gradient(line)[:, 1:])
    length = step * np.linalg.norm(slope, axis=1) / slope.sum(axis=1)
    kept = surface[:, 0] > 0.0
    return _Samples(surface[kept], area[kept], _sizes(body, surface[kept]), line, length,
                    _sizes(body, line))


def _lattice(cells: Index) -> Array:
    axes = np.meshgrid(*(np.arange(float(n)) for n in cells), indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, 3)


def _blown(values: NDArray[np.generic], cells: Index, block: int) -> NDArray[np.generic]:
    values = values.reshape(cells)
    for axis in range(3):
        values = np.repeat(values, block, axis)
    return values


def _sizes(body: Body, points: Array) -> Array:
    """Wanted spacing relative to the mean: grows as the root of the thickness."""
    thickness = body.thickness(points)
    return np.sqrt(thickness)


def _seeds(
    body: Body, samples: _Samples, spacing: float, count: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Relaxed seeds on the plane curve and on the open half, both on the surface."""
    # denser on the curve: its edges must be Delaunay, or the halves would not be welded along it
    expected = float((samples.lengths / samples.curve_sizes).sum()) / (0.85 * spacing)
    on_plane = max(8, round(expected))
    plane = _farthest(samples.curve, samples.curve_sizes, samples.curve[:0], on_plane, rng)
    dense = samples.lengths / samples.curve_sizes**3
    for _ in range(_LLOYD):
        plane = _centroids(plane, samples.curve, dense)
    plane = _flat(body, plane)
    on_half = max(8, (count - on_plane) // 2)
    free = _farthest(samples.points, samples.sizes, plane, on_half, rng)
    dense = samples.weights / samples.sizes**4
    for _ in range(_LLOYD):
        free = _centroids(np.concatenate((free, plane)), samples.points, dense)[: len(free)]
    return plane, body.project(free)


def _farthest(
    points: Array, sizes: Array, given: Array, count: int, rng: np.random.Generator
) -> Array:
    """``count`` of the points, each farthest from those before it and from the given ones."""
    # candidates a few times the seeds are as good as all of them: Lloyd's iteration follows
    some = rng.permutation(len(points))[: max(6 * count, 500)]
    points, sizes = points[some], sizes[some]
    if len(given):
        gap = cKDTree(given).query(points)[0] / sizes
    else:
        gap = np.full(len(points), np.inf)
    chosen = np.empty((count, 3))
    for i in range(count):
        chosen[i] = points[np.argmax(gap)]
        gap = np.minimum(gap, np.sqrt(((points - chosen[i]) ** 2).sum(axis=1)) / sizes)
    return chosen


def _flat(body: Body, points: Array) -> Array:
    """Points of the plane x = 0 moved onto the curve where the surface cuts it."""
    points = body.project(points) * np.array([0.0, 1.0, 1.0])
    return body.project(points) * np.array([0.0, 1.0, 1.0])


def _centroids(seeds: Array, samples: Array, weights: Array) -> Array:
    nearest = cKDTree(seeds).query(samples)[1]
    mass = np.bincount(nearest, weights, len(seeds))
    sums = [np.bincount(nearest, weights * x, len(seeds)) for x in samples.T]
    mean = np.column_stack(sums) / np.maximum(mass, 1e-300)[:, None]
    return np.where(mass[:, None] > 0.0, mean, seeds)


def _restricted_delaunay(body: Body, plane: Array, free: Array) -> Surface | None:
    """The mesh of seeds in the plane and on the half, or None where it is no closed sphere."""
    p, m = len(plane), len(free)
    vertices = np.concatenate((plane, free, free * _MIRROR))
    mirror = np.concatenate((np.arange(p), np.arange(p + m, p + 2 * m), np.arange(p, p + m)))
    # Mirrored points are cospherical by fives, which Delaunay cannot cut in one way: jitter them.
    noise = np.random.default_rng(p).normal(scale=1e-6, size=vertices.shape)
    shaken = vertices + noise * np.ptp(vertices)
    tets = Delaunay(shaken).simplices.astype(np.int64)
    centres = _circumcentres(shaken[tets])
    centres[:, 0] = np.abs(centres[:, 0])
    inside = tets[body.field(centres) < 0.0]
    corners = np.concatenate([np.delete(inside, k, axis=1) for k in range(4)])
    opposite = np.concatenate([inside[:, k] for k in range(4)])
    names = np.sort(corners, axis=1)
    _, first, times = np.unique(names, axis=0, return_index=True, return_counts=True)
    first = first[times == 1]
    faces, apex = corners[first], vertices[opposite[first]]
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    inward = np.einsum("ni,ni->n", np.cross(b - a, c - a), apex - a) > 0.0
    faces[inward] = faces[inward][:, ::-1]
    half = faces[(faces < p + m).all(axis=1) & (faces >= p).any(axis=1)]
    half = np.concatenate((half, _flipped(faces, mirror, p, p + m)))
    faces = np.concatenate((half, mirror[half][:, ::-1]))
    if len(np.unique(faces)) < len(vertices) or not is_sphere(faces):
        return None
    return Surface(vertices, faces, mirror)


def _flipped(faces: Index, mirror: Index, plane: int, half: int) -> Index:
    """The faces (k, 3) of the half that stand for pairs (a, a', c), (a', a, c') across the plane.

    a is a vertex of the open half, a' its mirror image, c and c' lie in the plane: the edge a a' is
    flipped into it.
    """
    apex: dict[tuple[int, int], int] = {}
    for turn in range(3):
        a, b, c = np.roll(faces, turn, axis=1).T
        across = (mirror[a] == b) & (a >= plane) & (c < plane)
        apex.update(zip(zip(a[across].tolist(), b[across].tolist(), strict=True),
                        c[across].tolist(), strict=True))
    found = [(a, apex[b, a], c) for (a, b), c in apex.items() if a < half and (b, a) in apex]
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def _circumcentres(tets: Array) -> Array:
    """Centres (t, 3) of the spheres through the corners (t, 4, 3); far away for flat ones."""
    origin = tets[:, 0]
    a, b, c = np.moveaxis(tets[:, 1:] - origin[:, None], 1, 0)
    bc, ca, ab = np.cross(b, c), np.cross(c, a), np.cross(a, b)
    square = [(x**2).sum(axis=1, keepdims=True) for x in (a, b, c)]
    volume = 2.0 * (a * bc).sum(axis=1, keepdims=True)
    volume = np.where(np.abs(volume) < 1e-18, 1e-18, volume)
    return origin + (square[0] * bc + square[1] * ca + square[2] * ab) / volume
