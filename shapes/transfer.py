r"""Values, colours, texture coordinates, landmarks and points, carried from one shape to the other.

**Values** (n, ...) per vertex follow the vertex map of the shape that receives them,

    g = f[map_ba]                                        from a to b,

so labels and colours stay what they are; or, smoothed, the functional map,

    g = mean(f) + Phi_b C_ab Phi_a^T M_a (f - mean(f)),

where the mean, weighted by area, is carried by itself: a constant stays that constant exactly.

**Landmarks** are vertices: landmark i on a becomes map_ab[i] on b. They are numbered as in the
files, which differs from the meshes where repair merged or dropped vertices.

**Points** between vertices lie in a face and have three barycentric weights. The images of the
corners, mixed with these weights, are a place near b; its nearest point on b's surface is the
answer. Where the three images lie far apart the map is torn there and so is the answer: `spread`
tells by how much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from driftworks.errors import UserError
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.result import Match

__all__ = ["SurfacePoints", "landmarks", "points", "project", "transfer", "values"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

_WAYS = ("vertices", "functions")


@dataclass(frozen=True, eq=False)
class SurfacePoints:
    """Points on a mesh.

    faces: (s,) the face that each lies in; weights: (s, 3) shares of its corners, sum 1
    spread: (s,) longest distance between the images of the three corners that a point was carried
        by, in units of sqrt(area); 0 for points that were given
    """

    faces: Indices
    weights: Array
    spread: Array

    def positions(self, mesh: Mesh) -> Array:
        """(s, 3) coordinates."""
        corners = mesh.vertices[mesh.faces[self.faces]]
        return np.asarray((self.weights[:, :, None] * corners).sum(1))


def transfer(match: Match, what: Any, *, to: str = "b") -> Any:
    """Carry what is known about one shape to the other, by its kind.

    what: whole numbers (s,) or {name: vertex}   landmarks, as `landmarks`
          (n,) or (n, d) numbers with a fraction, colours, texture coordinates   as `values`
          `SurfacePoints`                        as `points`
    to: "b" from a (default), "a" from b

    Whole-number labels of all vertices are no landmarks: give them to `values`. Raises `UserError`
    for anything else.
    """
    if isinstance(what, SurfacePoints):
        return points(match, what, to=to)
    if isinstance(what, Mapping):
        carried = landmarks(match, list(what.values()), to=to)
        return dict(zip(what, carried.tolist(), strict=True))
    given = np.asarray(what)
    if given.dtype.kind in "iu" and given.ndim <= 1:
        return landmarks(match, given, to=to)
    return values(match, given, to=to)


def values(match: Match, given: ArrayLike, *, to: str = "b", by: str = "vertices") -> NDArray[Any]:
    """Values on the receiving shape of values (n, ...) on the other, one row a vertex.

    given: a row for each vertex of the mesh; or of its file, where repair left fewer vertices, and
        then the answer too has a row for each vertex of the file
    by: "vertices", which keeps the values and their type; "functions" for a smoothed answer, which
        can only be asked for numbers
    """
    source, target, vertex_map, _, c = _sides(match, to)
    if by not in _WAYS:
        raise UserError(f"values are carried by {' or '.join(map(repr, _WAYS))}, not {by!r}")
    array = np.asarray(given)
    as_in_file = array.ndim > 0 and len(array) == len(source.origin) != len(source)
    if as_in_file:
        array = array[source.source_numbers]
    if not array.ndim or len(array) != len(source):
        shape = array.shape if array.ndim else "a single value"
        raise UserError(
            f"values must have a row for each of the {len(source)} vertices, not {shape}"
        )
    if by == "vertices":
        carried = array[vertex_map]
    elif array.dtype.kind in "iufb":
        carried = _smoothed(array, source, target, c)
    else:
        raise UserError("values carried by functions must be numbers")
    return carried[target.origin] if as_in_file else carried


def _smoothed(array: NDArray[Any], source: Mesh, target: Mesh, c: Array) -> Array:
    from driftworks.shapes.spectrum import basis

    flat = array.reshape(len(array), -1).astype(np.float64)
    from_, onto = basis(source.normalised(), c.shape[1]), basis(target.normalised(), c.shape[0])
    # a sum of rounded shares would change a constant by its last bit
    mean = flat[0] + from_.mass @ (flat - flat[0]) / from_.area
    carried = mean + onto.synthesise(c @ from_.coefficients(flat - mean))
    return carried.reshape(len(carried), *array.shape[1:])


def landmarks(match: Match, vertices: ArrayLike, *, to: str = "b") -> Indices:
    """(s,) vertices on the receiving shape for vertices (s,) on the other, numbered as in files."""
    source, target, _, partner, _ = _sides(match, to)
    found = source.origin[_vertices(vertices, len(source.origin))]
    return target.source_numbers[partner[found]]


def points(match: Match, given: SurfacePoints, *, to: str = "b") -> SurfacePoints:
    """Points on the receiving shape for points on the faces of the other.

    Raises `UserError` where one of the shapes is a point cloud, which has no faces.
    """
    source, target, _, partner, _ = _sides(match, to)
    if source.is_cloud or target.is_cloud:
        raise UserError("points between vertices need faces; carry landmarks of a point cloud")
    images = target.vertices[partner[source.faces[given.faces]]]
    found = project(target, (given.weights[:, :, None] * images).sum(1))
    sides = np.linalg.norm(images - np.roll(images, 1, axis=1), axis=2)
    return SurfacePoints(found.faces, found.weights, sides.max(1) / np.sqrt(target.area))


def project(mesh: Mesh, places: ArrayLike) -> SurfacePoints:
    """The nearest points on a mesh to places (s, 3).

    The nearest vertex bounds the distance, so only faces whose middle is within that distance and
    the length of the largest face are looked at.
    """
    wanted = np.asarray(places, np.float64)
    if wanted.ndim != 2 or wanted.shape[1] != 3 or not np.isfinite(wanted).all():
        raise UserError(f"places must be finite coordinates (s, 3), not {wanted.shape}")
    if mesh.is_cloud:
        raise UserError("a point cloud has no faces that a place could lie on")
    corners = mesh.vertices[mesh.faces]
    middles = corners.mean(1)
    radius = np.linalg.norm(corners - middles[:, None], axis=2).max()
    bound = cKDTree(mesh.vertices).query(wanted)[0]
    tree = cKDTree(middles)
    faces, weights = np.zeros(len(wanted), np.int64), np.zeros((len(wanted), 3))
    for i, place in enumerate(wanted):
        near = np.array(tree.query_ball_point(place, bound[i] * (1 + 1e-9) + radius), np.int64)
        shares = _closest(place, corners[near])
        gaps = np.linalg.norm((shares[:, :, None] * corners[near]).sum(1) - place, axis=1)
        best = int(gaps.argmin())
        faces[i], weights[i] = near[best], shares[best]
    return SurfacePoints(faces, weights, np.zeros(len(wanted)))


def _closest(place: Array, corners: Array) -> Array:
    """(m, 3) barycentric weights of the point of each triangle (m, 3, 3) nearest to one place."""
    a = corners[:, 0]
    ab, ac, ap = corners[:, 1] - a, corners[:, 2] - a, place - a
    d00, d01, d11 = (ab * ab).sum(1), (ab * ac).sum(1), (ac * ac).sum(1)
    d20, d21 = (ap * ab).sum(1), (ap * ac).sum(1)
    denominator = d00 * d11 - d01 * d01
    denominator = np.where(denominator > 0, denominator, 1)
    second = (d11 * d20 - d01 * d21) / denominator
    third = (d00 * d21 - d01 * d20) / denominator
    inside = np.stack([1 - second - third, second, third], 1)
    best, shortest = inside, np.where((inside >= 0).all(1), -1.0, np.inf)
    for k in range(3):  # outside, the nearest point lies on an edge
        n = (k + 1) % 3
        side = corners[:, n] - corners[:, k]
        length = np.maximum((side * side).sum(1), np.finfo(np.float64).tiny)
        along = np.clip(((place - corners[:, k]) * side).sum(1) / length, 0, 1)
        gap = np.linalg.norm(corners[:, k] + along[:, None] * side - place, axis=1)
        on_edge = np.zeros((len(corners), 3))
        on_edge[:, k], on_edge[:, n] = 1 - along, along
        nearer = gap < shortest
        best = np.where(nearer[:, None], on_edge, best)
        shortest = np.where(nearer, gap, shortest)
    return np.asarray(best)


def _sides(match: Match, to: str) -> tuple[Mesh, Mesh, Indices, Indices, Array]:
    """Source, target, map target -> source, map source -> target, functional map."""
    if to == "b":
        return match.a, match.b, match.map_ba, match.map_ab, match.c_ab
    if to == "a":
        return match.b, match.a, match.map_ab, match.map_ba, match.c_ba
    raise UserError(f"values go to 'a' or to 'b', not to {to!r}")


def _vertices(given: ArrayLike, count: int) -> Indices:
    found = np.asarray(given)
    if found.size == 0:
        return np.zeros(found.shape, np.int64)
    if found.dtype.kind not in "iu" or found.ndim > 1:
        raise UserError(f"landmarks must be vertex numbers, not {given!r:.60}")
    outside = np.atleast_1d((found < 0) | (found >= count))
    if outside.any():
        bad = int(np.atleast_1d(found)[outside.argmax()])
        raise UserError(f"landmark {bad} is no vertex; they go from 0 to {count - 1}")
    return found.astype(np.int64)
