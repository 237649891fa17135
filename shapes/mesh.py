r"""Triangle meshes and point clouds, and their repair: everything else in this folder trusts both.

A mesh is n points in space and m triangles between them; m = 0 is a point cloud. With the cross
product c_f = (p_1 - p_0) x (p_2 - p_0) of a face,

    area of the surface      A = 1/2 sum_f |c_f|
    area of a vertex         a_v = 1/6 sum_{f around v} |c_f|      a third of each face; sums to A
    normal of a vertex       n_v = sum_{f around v} c_f / |...|    weighted by area

A cloud takes a_v from the mass matrix of its tufted Laplacian (Sharp and Crane, "A Laplacian for
nonmanifold triangle meshes", SGP 2020), and n_v from the principal axes of neighbourhoods, made
consistent along a minimum spanning tree (Hoppe et al., SIGGRAPH 1992).

`clean` makes a mesh of what files hold. What can be mended without a guess is mended, and a note
says so; the rest is an error. Vertices never move and keep their order, and `Mesh.origin` tells
which vertex stands for each vertex of the source, so that ground truth, landmarks and maps that
are numbered as in the file stay valid. Faces that meet in an edge are turned to agree through the
orientation double cover: every face is there twice, once a side, neighbours are joined on the sides
that agree, and a surface is orientable where the two copies fall apart. A surface that is closed,
or whose holes would take less than a tenth of its area to close, is turned outwards by the sign of
the volume inside.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import (
    breadth_first_order,
    connected_components,
    minimum_spanning_tree,
)
from scipy.spatial import cKDTree

from driftworks.errors import UserError

__all__ = [
    "FEWEST_VERTICES",
    "MERGE_TOLERANCE",
    "SMALL_PART",
    "VERTEX_LIMIT",
    "Mesh",
    "clean",
    "parts",
]

Points = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Vertices that a usable mesh has at least: fewer do not carry a spectrum worth the name.
FEWEST_VERTICES = 20
#: Vertices that a mesh may have.
VERTEX_LIMIT = 200_000
#: Vertices closer than this, in units of the median distance to the middle, are one vertex.
MERGE_TOLERANCE = 1e-7
#: Separate parts with less of the area are dropped, if together they hold less than 20 %.
SMALL_PART = 0.05

_STRAY_PARTS = 0.2
#: A face is degenerate when twice its area is below this times its longest edge squared: what is
#: left of a straight line after rounding.
_FLAT = 1e-12
#: Coordinates may span from the inverse of this to this: areas and volumes stay far from overflow.
_WIDEST = 1e80
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

    The arrays are copied and read-only. Nothing is repaired or refused here except arrays of the
    wrong shape and indices out of range (`UserError`); `clean` does the rest.
    """

    vertices: Points
    faces: Indices
    name: str = ""
    notes: tuple[str, ...] = ()
    origin: Indices = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        vertices = _points(self.vertices, self.name)
        faces = _triangles(self.faces, len(vertices), self.name)
        origin = np.array(self.origin, np.int64)
        if not origin.size:
            origin = np.arange(len(vertices))
        elif origin.ndim != 1 or origin.min() < 0 or origin.max() >= len(vertices):
            raise UserError(
                f"{_called(self.name)}: origin must hold vertex numbers 0 to {len(vertices) - 1}"
            )
        for key, array in (("vertices", vertices), ("faces", faces), ("origin", origin)):
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
        points, _, size = _scaled(self.vertices)
        if self.is_cloud:
            return size**2 * _cloud_areas(points)
        areas = np.linalg.norm(_cross(points, self.faces), axis=1) / 2
        shares = np.bincount(self.faces.ravel(), np.repeat(areas / 3, 3), len(self))
        return np.asarray(size**2 * shares, np.float64)

    @cached_property
    def normals(self) -> Points:
        """(n, 3) unit normals, weighted by area; 0 at a vertex whose faces cancel.

        Those of a cloud agree with their neighbours and point outwards on the whole.
        """
        points, _, _ = _scaled(self.vertices)
        if self.is_cloud:
            return _cloud_normals(points, self.vertex_areas / self.area)
        cross = _cross(points, self.faces)
        corners = self.faces.ravel()
        summed = [np.bincount(corners, np.repeat(cross[:, k], 3), len(self)) for k in range(3)]
        normals: Points = np.stack(summed, 1)
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        unit: Points = normals / np.where(length > 0, length, 1)
        return unit

    @cached_property
    def edges(self) -> Indices:
        """(e, 2) every pair of vertices that share a face once, the smaller number first."""
        return _Edges(self.faces, len(self)).ends

    @cached_property
    def is_manifold(self) -> bool:
        """Whether no edge has more than two faces and the faces around every vertex are one fan."""
        edges = _Edges(self.faces, len(self))
        thick = bool((edges.faces > 2).any())
        return not self.is_cloud and not thick and not _pinched(self.faces, edges, len(self))

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
        points, _, size = _scaled(self.vertices)
        weights = self.vertex_areas / size**2
        area = weights.sum()
        if not area > 0:
            raise UserError(f"{_called(self.name)} has no area")
        centred = points - weights @ points / area
        return Mesh(centred / np.sqrt(area), self.faces, self.name, self.notes, self.origin)


def clean(vertices: ArrayLike, faces: ArrayLike | None = None, name: str = "") -> Mesh:
    """A mesh that the rest of this folder can work with: repaired with a note, or refused.

    vertices: (N, 3) numbers, in any unit between 1e-80 and 1e80
    faces: (M, 3) vertex numbers from 0; None or empty for a point cloud
    name: of the mesh, for messages

    Repaired: duplicate vertices (along open boundaries, so that loose triangles and seams are put
    together but surfaces that only touch are not), degenerate and duplicate faces, vertices without
    a face, small separate parts (less than 5 % of the area each and 20 % together), faces that
    disagree about the outside, surfaces inside out. Noted and left: open boundaries, non-manifold
    edges and vertices, surfaces with one side. A vertex that is dropped is represented in
    `Mesh.origin` by the nearest one that stays.

    Raises `UserError` for coordinates that are not finite, wrong shapes, indices out of range, no
    face with an area, separate parts of which none is the shape, fewer than 20 usable vertices and
    more than 200,000.
    """
    called = _called(name)
    source = _points(vertices, name)
    given = _triangles(faces, len(source), name)
    _finite(source, called)
    # a soup of triangles has about six corners a vertex, so this cannot come down to the limit
    if not FEWEST_VERTICES <= len(source) <= 8 * VERTEX_LIMIT:
        _usable(len(source), len(source), called)
    notes: list[str] = []
    used = _present(given, len(source)) if len(given) else slice(None)
    points = _standardised(source, used, called)
    merged = _merged(points, given)
    if doubles := int((merged != np.arange(len(points))).sum()):
        notes.append(f"merged {_count(doubles, 'duplicate vertex', 'duplicate vertices')}")
    if len(given):
        triangles, kept = _surface(points, merged, given, notes, called)
    else:
        triangles, kept = given, _cloud(points, merged, notes, called)
    _usable(len(kept), len(source), called)
    place = np.full(len(points), -1)
    place[kept] = np.arange(len(kept))
    origin = place[merged]
    lost = origin < 0
    if lost.any():
        origin[lost] = cKDTree(points[kept]).query(points[lost])[1]
    triangles = place[triangles]
    if len(triangles):
        notes.extend(_remarks(triangles, len(kept)))
    return Mesh(source[kept], triangles, name, tuple(notes), origin)


def parts(mesh: Mesh) -> Indices:
    """(n,) the number of the connected part that each vertex belongs to, from 0.

    Vertices are connected along edges; in a cloud, with their 12 nearest neighbours.
    """
    pairs = _neighbour_pairs(_scaled(mesh.vertices)[0]) if mesh.is_cloud else mesh.edges
    return _components(pairs, len(mesh))


# What the user gave.


def _called(name: str) -> str:
    return f"mesh {name!r}" if name else "this mesh"


def _points(vertices: ArrayLike, name: str) -> Points:
    try:
        points = np.array(vertices, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{_called(name)}: vertices must be numbers, (n, 3)") from None
    if points.ndim != 2 or points.shape[1] != 3:
        raise UserError(f"{_called(name)}: vertices must be (n, 3), not {points.shape}")
    return points


def _triangles(faces: ArrayLike | None, count: int, name: str) -> Indices:
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
        raise UserError(f"{_called(name)}: faces must be vertex numbers, (m, 3)") from None
    if given.ndim != 2 or given.shape[1] != 3:
        raise UserError(
            f"{_called(name)}: faces must be triangles (m, 3), not {given.shape}; "
            "cut polygons into triangles"
        )
    if not whole or not np.isfinite(given).all():
        raise UserError(f"{_called(name)}: faces must be whole numbers")
    outside = ((given < 0) | (given >= count)).any(1)
    if outside.any():
        f = int(outside.argmax())
        corners = ", ".join(str(int(v)) for v in given[f])
        hint = ""
        if given.min() == 1 and given.max() == count:
            hint = "; the numbers seem to start at 1, they must start at 0"
        raise UserError(
            f"{_called(name)}: face {f} is ({corners}), but vertices go from 0 to {count - 1}{hint}"
        )
    return np.array(given, np.int64)


def _finite(points: Points, called: str) -> None:
    wrong = ~np.isfinite(points).all(1)
    if wrong.any():
        v = int(wrong.argmax())
        others = int(wrong.sum()) - 1
        also = f", and {_count(others, 'other vertex', 'other vertices')}" if others else ""
        raise UserError(
            f"{called}: vertex {v} has coordinates {points[v].tolist()}{also}; "
            "coordinates must be finite"
        )


def _usable(count: int, of: int, called: str) -> None:
    """Refuse a mesh with `count` usable vertices of `of` given ones, if that is no good number."""
    if count < FEWEST_VERTICES:
        given = f"{count} of {of}" if count != of else f"{count}"
        raise UserError(
            f"{called} has {given} usable vertices; at least {FEWEST_VERTICES} are needed"
        )
    if count > VERTEX_LIMIT:
        raise UserError(
            f"{called} has {count:,} vertices, the limit is {VERTEX_LIMIT:,}; decimate it first "
            "(MeshLab: quadric edge collapse; 5,000 to 20,000 vertices are plenty for matching)"
        )


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


# Scale.


def _scaled(points: Points) -> tuple[Points, Points, float]:
    """Points moved and scaled into [-1, 1], and (centre (3,), size) that undo it.

    Squares of coordinates would leave float64's range for meshes in metres or parsecs alike.
    """
    if not len(points):
        return points, np.zeros(3), 1.0
    centre = points.min(0) / 2 + points.max(0) / 2
    moved = points - centre
    size = float(np.abs(moved).max()) or 1.0
    return moved / size, centre, size


def _standardised(points: Points, used: Indices | slice, called: str) -> Points:
    """Points with their middle at 0 in units of their median distance from it.

    Medians, because one stray vertex far away must not set the scale on which duplicates are found.
    used: the vertices that have a face
    """
    widest = float(np.abs(points).max())
    if widest > _WIDEST:
        raise UserError(
            f"{called} has coordinates up to {widest:.1g}; the limit is {_WIDEST:.0e}, scale it"
        )
    middle = np.median(points[used], axis=0)
    moved = points - middle
    spread = float(np.abs(moved[used]).max())
    if spread == 0:
        raise UserError(f"{called}: all vertices lie at one point, {middle.tolist()}")
    if spread < 1 / _WIDEST:
        raise UserError(f"{called} is only {spread:.1g} wide; scale it above {1 / _WIDEST:.0e}")
    moved /= spread
    return moved / (float(np.median(np.linalg.norm(moved[used], axis=1))) or 1.0)


# Repairs. Each takes and gives vertex numbers of the source.


def _merged(points: Points, given: Indices) -> Indices:
    """(n,) for each vertex the first vertex that it is a copy of, itself where there is none.

    Copies are vertices at one place on open boundaries (seams, loose triangles) or without a face,
    and the ends of an edge without length. Vertices inside of surfaces that touch there stay two:
    to merge them would only make a good mesh non-manifold.
    """
    count = len(points)
    stands = np.arange(count)
    pairs = np.zeros((0, 2), np.int64)
    loose = np.ones(count, np.bool_)
    if len(given):
        sound, _, _ = _distinct(points, given)
        edges = _Edges(sound, count)
        loose[sound] = False
        loose[edges.ends[edges.faces == 1]] = True
        pairs = _Edges(given, count).ends
        length = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
        pairs = pairs[length <= MERGE_TOLERANCE]
    left = loose.nonzero()[0]
    if len(left):
        _, first, inverse = np.unique(points[left], axis=0, return_index=True, return_inverse=True)
        stands[left] = left[first[inverse.reshape(-1)]]
    # Each vertex is joined to its nearest one within the tolerance until none has one left: memory
    # stays linear where thousands share a place.
    while len(left := _present(stands[loose], count)) > 1:
        tree = cKDTree(points[left])
        _, near = tree.query(points[left], k=2, distance_upper_bound=MERGE_TOLERANCE)
        close = (near[:, 1] < len(left)).nonzero()[0]
        if not len(close):
            break
        joined = np.stack([left[close], left[near[close, 1]]], 1)
        stands = _smallest(joined, count)[stands]
    if len(pairs):
        stands = _smallest(np.concatenate([pairs, np.stack([np.arange(count), stands], 1)]), count)
    return stands


def _smallest(pairs: Indices, count: int) -> Indices:
    """(count,) the smallest vertex of the component that each belongs to."""
    group = _components(pairs, count)
    smallest = np.full(int(group.max()) + 1, count)
    np.minimum.at(smallest, group, np.arange(count))
    return smallest[group]


def _distinct(points: Points, triangles: Indices) -> tuple[Indices, int, int]:
    """(faces that have an area, each once; faces without an area; faces that were there again)."""
    sound = triangles[~_degenerate(points, triangles)]
    # one number a face: 8 * VERTEX_LIMIT cubed is still below 2^63
    a, b, c = np.sort(sound, 1).T
    _, first = np.unique((a * len(points) + b) * len(points) + c, return_index=True)
    once = sound[np.sort(first)]
    return once, len(triangles) - len(sound), len(sound) - len(once)


def _surface(
    points: Points, merged: Indices, given: Indices, notes: list[str], called: str
) -> tuple[Indices, Indices]:
    """The faces that stay, turned to agree, and the vertices they use, in order."""
    triangles, flat, again = _distinct(points, merged[given])
    if not len(triangles):
        raise UserError(f"{called}: none of the {len(given):,} faces has an area")
    if flat:
        notes.append(f"dropped {_count(flat, 'face')} without an area")
    if again:
        notes.append(f"dropped {_count(again, 'duplicate face')}")
    used = _present(triangles, len(points))
    if alone := len(_present(merged, len(points))) - len(used):
        vertices = _count(alone, "vertex", "vertices")
        notes.append(f"dropped {vertices} without a face; the nearest vertex stands for each")
    _usable(len(used), len(points), called)
    areas = np.linalg.norm(_cross(points, triangles), axis=1) / 2
    part = _components(_Edges(triangles, len(points)).ends, len(points))[triangles[:, 0]]
    stays = _main_part(part, areas, "of the area", notes, called)
    triangles = _oriented(points, triangles[stays], notes)
    return triangles, _present(triangles, len(points))


def _cloud(points: Points, merged: Indices, notes: list[str], called: str) -> Indices:
    """The points that stay, in order."""
    kept = _present(merged, len(points))
    _usable(len(kept), len(points), called)
    part = _components(_neighbour_pairs(points[kept]), len(kept))
    kept = kept[_main_part(part, np.ones(len(kept)), "of the points", notes, called)]
    spread = np.linalg.svd(points[kept] - points[kept].mean(0), compute_uv=False)
    if spread[1] <= 1e-9 * spread[0]:
        raise UserError(f"{called}: all points lie on one line")
    return kept


def _degenerate(points: Points, triangles: Indices) -> NDArray[np.bool_]:
    """(m,) whether a face has a corner twice or three corners on a line."""
    corners = points[triangles]
    longest = ((corners - np.roll(corners, 1, axis=1)) ** 2).sum(2).max(1)
    area = np.linalg.norm(_cross(points, triangles), axis=1)
    repeated = (triangles == np.roll(triangles, 1, axis=1)).any(1)
    return repeated | (area <= _FLAT * longest)


def _main_part(
    part: Indices, weights: Points, of_what: str, notes: list[str], called: str
) -> NDArray[np.bool_]:
    """Which of the faces (or points) belong to the one part that is the shape.

    part: (m,) the part of each; weights: (m,) what each adds to the size of its part
    """
    _, part = np.unique(part, return_inverse=True)
    shares = np.bincount(part, weights) / weights.sum()
    if len(shares) == 1:
        return np.ones(len(part), np.bool_)
    order = np.argsort(-shares, kind="stable")
    largest = int(order[0])
    rest = shares[order[1:]]
    if rest[0] >= SMALL_PART or rest.sum() >= _STRAY_PARTS:
        listed = ", ".join(f"{share:.1%}" for share in shares[order[:6]])
        more = " ..." if len(shares) > 6 else ""
        raise UserError(
            f"{called} has {len(shares)} separate parts with {listed}{more} {of_what}; "
            "keep one of them or join them"
        )
    notes.append(f"dropped {_count(len(rest), 'small separate part')}, {rest.sum():.2%} {of_what}")
    return part == largest


def _oriented(points: Points, triangles: Indices, notes: list[str]) -> Indices:
    """The faces, turned so that neighbours agree and closed surfaces face outwards."""
    edges = _Edges(triangles, len(points))
    first, second = edges.neighbours()
    count = len(triangles)
    f, g = first % count, second % count
    # two faces agree when they run through their common edge in opposite directions
    agree = edges.forward[first] != edges.forward[second]
    here, there = np.where(agree, g, g + count), np.where(agree, g + count, g)
    cover = np.concatenate([np.stack([f, here], 1), np.stack([f + count, there], 1)])
    label = _components(cover, 2 * count)
    up, down = label[:count], label[count:]
    one_sided = up == down
    _, patch = np.unique(np.minimum(up, down), return_inverse=True)
    turned = (up > down) & ~one_sided
    sizes = np.bincount(patch)
    minority = 2 * np.bincount(patch, turned) > sizes
    turned ^= minority[patch] & ~one_sided
    if turned.any():
        notes.append(f"turned {_count(int(turned.sum()), 'face')} to agree with the neighbours")
    triangles = np.where(turned[:, None], triangles[:, ::-1], triangles)
    order = np.argsort(patch, kind="stable")
    inside_out = np.zeros(count, np.bool_)
    for members in np.split(order, np.cumsum(sizes)[:-1]):
        if not one_sided[members[0]]:
            inside_out[members] = _faces_inwards(points, triangles[members])
    if inside_out.any():
        notes.append(f"turned {_count(int(inside_out.sum()), 'face')} outwards")
        triangles = np.where(inside_out[:, None], triangles[:, ::-1], triangles)
    return triangles


def _faces_inwards(points: Points, triangles: Indices) -> bool:
    """Whether a surface that is closed, or nearly so, encloses a negative volume.

    Holes are closed with a cone to the mean of their boundary; one whose cones take more than a
    tenth of its area has no inside.
    """
    used, corner = np.unique(triangles, return_inverse=True)
    local, triangles = points[used] - points[used].mean(0), corner.reshape(-1, 3)
    sides = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    forward, backward = sides @ [len(used), 1], np.sort(sides[:, ::-1] @ [len(used), 1])
    at = np.minimum(np.searchsorted(backward, forward), len(backward) - 1)
    rim = sides[backward[at] != forward]
    area = np.linalg.norm(_cross(local, triangles), axis=1).sum() / 2
    corners = local[triangles]
    if len(rim):
        _, loop = np.unique(_components(rim, len(used))[rim[:, 0]], return_inverse=True)
        sums = np.stack([np.bincount(loop, local[rim[:, 0], k]) for k in range(3)], 1)
        tip = sums / np.bincount(loop)[:, None]
        cones = np.stack([local[rim[:, 1]], local[rim[:, 0]], tip[loop]], 1)
        sides_of_cone = np.cross(cones[:, 1] - cones[:, 0], cones[:, 2] - cones[:, 0])
        if np.linalg.norm(sides_of_cone, axis=1).sum() / 2 > 0.1 * area:
            return False
        corners = np.concatenate([corners, cones])
    volume = float(np.linalg.det(corners).sum()) / 6
    return volume < -1e-6 * float(area) ** 1.5


# Topology.


class _Edges:
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


def _remarks(triangles: Indices, count: int) -> list[str]:
    """What is unusual about a surface and stays so."""
    edges = _Edges(triangles, count)
    notes = []
    if thick := int((edges.faces > 2).sum()):
        notes.append(f"{_count(thick, 'edge')} with more than two faces (non-manifold)")
    if pinched := _pinched(triangles, edges, count):
        vertices = _count(pinched, "vertex", "vertices")
        notes.append(f"{vertices} where the surface only touches itself (non-manifold)")
    rim = edges.ends[edges.faces == 1]
    if len(rim):
        loops = len(np.unique(_components(rim, count)[rim[:, 0]]))
        boundaries = _count(loops, "boundary", "boundaries")
        notes.append(f"open surface: {boundaries} with {_count(len(rim), 'edge')}")
    if _one_sided(edges):
        notes.append("the surface has one side only, as a Moebius strip: normals do not agree")
    return notes


def _pinched(triangles: Indices, edges: _Edges, count: int) -> int:
    """The number of vertices around which the faces form several fans."""
    number = len(triangles)
    start = np.arange(3 * number)
    end = (start + number) % (3 * number)
    low, high = np.where(edges.forward, start, end), np.where(edges.forward, end, start)
    first, second = edges.neighbours(manifold=False)
    joined = np.concatenate(
        [np.stack([low[first], low[second]], 1), np.stack([high[first], high[second]], 1)]
    )
    fan = _components(joined, 3 * number)
    at = np.sort(triangles.T.ravel() * (3 * number) + fan)
    fans = at[np.concatenate([[True], at[1:] != at[:-1]])]
    return int((np.bincount(fans // (3 * number), minlength=count) > 1).sum())


def _one_sided(edges: _Edges) -> bool:
    """Whether neighbours disagree although `_oriented` has turned all that can be turned."""
    first, second = edges.neighbours()
    return bool((edges.forward[first] == edges.forward[second]).any())


def _present(numbers: Indices, count: int) -> Indices:
    """The distinct numbers among 0 .. count-1, in order.

    numpy's own function hashes, which takes tens of seconds on the faces of 160,000 vertices.
    """
    there = np.zeros(count, np.bool_)
    there[numbers] = True
    return there.nonzero()[0]


def _components(pairs: Indices, count: int) -> Indices:
    """(count,) numbers of the components of a graph with edges (e, 2)."""
    graph = coo_array((np.ones(len(pairs), np.bool_), pairs.T), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _cross(points: Points, triangles: Indices) -> Points:
    """(m, 3) normals of the faces, as long as twice their areas."""
    a, b, c = (points[triangles[:, k]] for k in range(3))
    return np.cross(b - a, c - a)


# Clouds.


def _neighbours(points: Points) -> Indices:
    """(n, k) the nearest other points of each."""
    k = min(_NEIGHBOURS, len(points) - 1)
    return cKDTree(points).query(points, k=k + 1)[1][:, 1:].astype(np.int64)


def _neighbour_pairs(points: Points) -> Indices:
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
