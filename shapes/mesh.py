r"""Triangle meshes and point clouds: everything else in this folder trusts them.

A mesh is n points in space and m triangles between them; m = 0 is a point cloud. With the cross
product c_f = (p_1 - p_0) x (p_2 - p_0) of a face,

    area of the surface      A = 1/2 sum_f |c_f|
    area of a vertex         a_v = 1/6 sum_{f around v} |c_f|      a third of each face; sums to A
    normal of a vertex       n_v = sum_{f around v} c_f / |...|    weighted by area

A cloud takes a_v from the mass matrix of its tufted Laplacian (Sharp and Crane, "A Laplacian for
nonmanifold triangle meshes", SGP 2020), and n_v from the principal axes of neighbourhoods, made
consistent along a minimum spanning tree (Hoppe et al., SIGGRAPH 1992).

Nothing is mended here: `repair.clean` makes a mesh of what files hold.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.spatial import cKDTree

from driftworks.errors import UserError
from driftworks.shapes.topology import Edges, components, pinched

__all__ = [
    "Mesh",
    "checked_faces",
    "checked_vertices",
    "cross_products",
    "named",
    "neighbour_pairs",
    "parts",
    "scaled",
]

Points = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Neighbours of a point for normals and connectedness of clouds.
_NEIGHBOURS = 12


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh, or a point cloud where there are no faces.

    vertices: (n, 3) float64, in the unit of the source
    faces: (m, 3) int64, vertex numbers, counter-clockwise seen from outside
    name: for messages and file names
    notes: what was repaired or should be known, a sentence each
    origin: (N,) int64, for each vertex of the source the vertex of this mesh that stands for it;
        0 .. n-1 where it is empty
    source_numbers: (n,) the number of each vertex in the source; the first that it stands for where
        it is empty, -1 where there is none

    The arrays are copied and read-only. Nothing is repaired or refused here except arrays of the
    wrong shape and indices out of range (`UserError`); `repair.clean` does the rest.
    """

    vertices: Points
    faces: Indices
    name: str = ""
    notes: tuple[str, ...] = ()
    origin: Indices = field(default_factory=lambda: np.zeros(0, np.int64))
    source_numbers: Indices = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        vertices = checked_vertices(self.vertices, self.name)
        faces = checked_faces(self.faces, len(vertices), self.name)
        origin = np.array(self.origin, np.int64)
        if not origin.size:
            origin = np.arange(len(vertices))
        elif origin.ndim != 1 or origin.min() < 0 or origin.max() >= len(vertices):
            raise UserError(
                f"{named(self.name)}: origin must hold vertex numbers 0 to {len(vertices) - 1}"
            )
        numbers = np.array(self.source_numbers, np.int64)
        if not numbers.size:
            numbers = np.full(len(vertices), -1)
            held, first = np.unique(origin, return_index=True)
            numbers[held] = first
        elif numbers.shape != (len(vertices),) or numbers.max() >= len(origin):
            raise UserError(
                f"{named(self.name)}: source_numbers must hold a number below {len(origin)} for "
                f"each of the {len(vertices)} vertices"
            )
        arrays = {
            "vertices": vertices, "faces": faces, "origin": origin, "source_numbers": numbers
        }  # fmt: skip
        for key, array in arrays.items():
            array.setflags(write=False)
            object.__setattr__(self, key, array)

    def __len__(self) -> int:
        """The number of vertices."""
        return len(self.vertices)

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        faces = "point cloud" if self.is_cloud else f"{len(self.faces)} faces"
        return f"Mesh({name}{len(self)} vertices, {faces})"

    @property
    def is_cloud(self) -> bool:
        """Whether there are no faces."""
        return not len(self.faces)

    @cached_property
    def area(self) -> float:
        """Area of the surface, in the unit of the coordinates squared."""
        return float(self.vertex_areas.sum())

    @cached_property
    def vertex_areas(self) -> Points:
        """(n,) the part of the area that belongs to each vertex; sums to `area`."""
        points, _, size = scaled(self.vertices)
        if self.is_cloud:
            return size**2 * _cloud_areas(points)
        areas = np.linalg.norm(cross_products(points, self.faces), axis=1) / 2
        shares = np.bincount(self.faces.ravel(), np.repeat(areas / 3, 3), len(self))
        return np.asarray(size**2 * shares, np.float64)

    @cached_property
    def normals(self) -> Points:
        """(n, 3) unit normals, weighted by area; 0 at a vertex whose faces cancel.

        Those of a cloud agree with their neighbours and point outwards on the whole.
        """
        points, _, _ = scaled(self.vertices)
        if self.is_cloud:
            return _cloud_normals(points, self.vertex_areas / self.area)
        cross = cross_products(points, self.faces)
        corners = self.faces.ravel()
        summed = [np.bincount(corners, np.repeat(cross[:, k], 3), len(self)) for k in range(3)]
        normals: Points = np.stack(summed, 1)
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        unit: Points = normals / np.where(length > 0, length, 1)
        return unit

    @cached_property
    def edges(self) -> Indices:
        """(e, 2) every pair of vertices that share a face once, the smaller number first."""
        return Edges(self.faces, len(self)).ends

    @cached_property
    def is_manifold(self) -> bool:
        """Whether no edge has more than two faces and the faces around every vertex are one fan."""
        edges = Edges(self.faces, len(self))
        thick = bool((edges.faces > 2).any())
        return not self.is_cloud and not thick and not pinched(self.faces, edges, len(self))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of vertices and faces, in hex; name, notes and origin do not count."""
        content = hashlib.sha256(f"{len(self.vertices)} {len(self.faces)} ".encode())
        content.update(self.vertices.astype("<f8").tobytes())
        content.update(self.faces.astype("<i8").tobytes())
        return content.hexdigest()

    def normalised(self) -> Mesh:
        """The same mesh with area 1 and its area-weighted centroid at 0.

        Raises `UserError` where the area is 0.
        """
        points, _, size = scaled(self.vertices)
        weights = self.vertex_areas / size**2
        area = weights.sum()
        if not area > 0:
            raise UserError(f"{named(self.name)} has no area")
        centred = points - weights @ points / area
        return replace(self, vertices=centred / np.sqrt(area))


def parts(mesh: Mesh) -> Indices:
    """(n,) the number of the connected part that each vertex belongs to, from 0.

    Vertices are connected along edges; in a cloud, with their 12 nearest neighbours.
    """
    pairs = neighbour_pairs(scaled(mesh.vertices)[0]) if mesh.is_cloud else mesh.edges
    return components(pairs, len(mesh))


def named(name: str) -> str:
    return f"mesh {name!r}" if name else "this mesh"


def checked_vertices(vertices: ArrayLike, name: str) -> Points:
    try:
        points = np.array(vertices, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{named(name)}: vertices must be numbers, (n, 3)") from None
    if points.ndim != 2 or points.shape[1] != 3:
        raise UserError(f"{named(name)}: vertices must be (n, 3), not {points.shape}")
    return points


def checked_faces(faces: ArrayLike | None, count: int, name: str) -> Indices:
    """The faces as (m, 3) int64, all of them inside 0 .. count-1."""
    given: NDArray[Any]
    try:
        given = np.asarray([] if faces is None else faces)
        if not given.size:
            return np.zeros((0, 3), np.int64)
        if given.dtype.kind not in "iuf":
            raise ValueError
        whole = given.dtype.kind != "f" or bool((given == np.floor(given)).all())
    except (TypeError, ValueError):
        raise UserError(f"{named(name)}: faces must be vertex numbers, (m, 3)") from None
    if given.ndim != 2 or given.shape[1] != 3:
        raise UserError(
            f"{named(name)}: faces must be triangles (m, 3), not {given.shape}; "
            "cut polygons into triangles"
        )
    if not whole or not np.isfinite(given).all():
        raise UserError(f"{named(name)}: faces must be whole numbers")
    outside = ((given < 0) | (given >= count)).any(1)
    if outside.any():
        f = int(outside.argmax())
        corners = ", ".join(str(int(v)) for v in given[f])
        hint = ""
        if given.min() == 1 and given.max() == count:
            hint = "; the numbers seem to start at 1, they must start at 0"
        raise UserError(
            f"{named(name)}: face {f} is ({corners}), but vertices go from 0 to {count - 1}{hint}"
        )
    return np.array(given, np.int64)


def scaled(points: Points) -> tuple[Points, Points, float]:
    """Points moved and scaled into [-1, 1], and (centre (3,), size) that undo it.

    Squares of coordinates would leave float64's range for meshes in metres or parsecs alike.
    """
    if not len(points):
        return points, np.zeros(3), 1.0
    centre = points.min(0) / 2 + points.max(0) / 2
    moved = points - centre
    size = float(np.abs(moved).max()) or 1.0
    return moved / size, centre, size


def cross_products(points: Points, triangles: Indices) -> Points:
    """(m, 3) normals of the faces, as long as twice their areas."""
    a, b, c = (points[triangles[:, k]] for k in range(3))
    return np.cross(b - a, c - a)


def _neighbours(points: Points) -> Indices:
    """(n, k) the nearest other points of each."""
    k = min(_NEIGHBOURS, len(points) - 1)
    return cKDTree(points).query(points, k=k + 1)[1][:, 1:].astype(np.int64)


def neighbour_pairs(points: Points) -> Indices:
    near = _neighbours(points)
    return np.stack([np.repeat(np.arange(len(points)), near.shape[1]), near.ravel()], 1)


def _cloud_areas(points: Points) -> Points:
    from robust_laplacian import point_cloud_laplacian

    _, mass = point_cloud_laplacian(points, n_neighbors=min(30, len(points) - 1))
    return np.asarray(mass.diagonal(), np.float64)


def _cloud_normals(points: Points, weights: Points) -> Points:
    """(n, 3) unit normals: the least principal axis, its sign carried along a spanning tree.

    weights: (n,) parts of the area that sum to 1
    """
    near = _neighbours(points)
    around = points[near] - points[:, None]
    around -= around.mean(1, keepdims=True)
    normals = np.linalg.eigh(np.einsum("nki,nkj->nij", around, around))[1][:, :, 0]
    i, j = np.repeat(np.arange(len(points)), near.shape[1]), near.ravel()
    # a cost is never 0, or the sparse graph would lose the edge
    cost = 1 + 1e-6 - np.abs((normals[i] * normals[j]).sum(1))
    graph = coo_array((cost, (i, j)), shape=(len(points),) * 2).tocsr()
    tree = minimum_spanning_tree(graph.maximum(graph.T))
    middle = weights @ points
    done = np.zeros(len(points), np.bool_)
    for root in range(len(points)):
        if done[root]:
            continue
        order, before = breadth_first_order(tree, root, directed=False)
        for v in order[1:]:
            if normals[v] @ normals[before[v]] < 0:
                normals[v] = -normals[v]
        flux = ((points[order] - middle) * normals[order]).sum(1) @ weights[order]
        if flux < 0:
            normals[order] = -normals[order]
        done[order] = True
    return normals
