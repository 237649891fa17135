r"""Repair: a mesh that the rest of this folder can work with, made of what files hold.

What can be mended without a guess is mended, and a note says so; the rest is an error. Vertices
never move and keep their order, and `Mesh.origin` tells which vertex stands for each vertex of the
source, so that ground truth, landmarks and maps that are numbered as in the file stay valid. Faces
that meet in an edge are turned to agree through the orientation double cover: every face is there
twice, once a side, neighbours are joined on the sides that agree, and a surface is orientable where
the two copies fall apart. A surface that is closed, or whose holes would take less than a tenth of
its area to close, is turned outwards by the sign of the volume inside.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from driftworks.errors import UserError
from driftworks.shapes.mesh import (
    Indices,
    Mesh,
    Points,
    checked_faces,
    checked_vertices,
    cross_products,
    named,
    neighbour_pairs,
)
from driftworks.shapes.topology import Edges, components, one_sided, pinched, present

__all__ = ["FEWEST_VERTICES", "MERGE_TOLERANCE", "SMALL_PART", "VERTEX_LIMIT", "clean"]

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
    called = named(name)
    source = checked_vertices(vertices, name)
    given = checked_faces(faces, len(source), name)
    _finite(source, called)
    # a soup of triangles has about six corners a vertex, so this cannot come down to the limit
    if not FEWEST_VERTICES <= len(source) <= 8 * VERTEX_LIMIT:
        _usable(len(source), len(source), called)
    notes: list[str] = []
    used = present(given, len(source)) if len(given) else slice(None)
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
    return Mesh(source[kept], triangles, name, tuple(notes), origin, kept)


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


# Each takes and gives vertex numbers of the source.


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
        edges = Edges(sound, count)
        loose[sound] = False
        loose[edges.ends[edges.faces == 1]] = True
        pairs = Edges(given, count).ends
        length = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
        pairs = pairs[length <= MERGE_TOLERANCE]
    left = loose.nonzero()[0]
    if len(left):
        _, first, inverse = np.unique(points[left], axis=0, return_index=True, return_inverse=True)
        stands[left] = left[first[inverse.reshape(-1)]]
    # Each vertex is joined to its nearest one within the tolerance until none has one left: memory
    # stays linear where thousands share a place.
    while len(left := present(stands[loose], count)) > 1:
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
    group = components(pairs, count)
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
    used = present(triangles, len(points))
    if alone := len(present(merged, len(points))) - len(used):
        vertices = _count(alone, "vertex", "vertices")
        notes.append(f"dropped {vertices} without a face; the nearest vertex stands for each")
    _usable(len(used), len(points), called)
    areas = np.linalg.norm(cross_products(points, triangles), axis=1) / 2
    part = components(Edges(triangles, len(points)).ends, len(points))[triangles[:, 0]]
    stays = _main_part(part, areas, "of the area", notes, called)
    triangles = _oriented(points, triangles[stays], notes)
    return triangles, present(triangles, len(points))


def _cloud(points: Points, merged: Indices, notes: list[str], called: str) -> Indices:
    """The points that stay, in order."""
    kept = present(merged, len(points))
    _usable(len(kept), len(points), called)
    part = components(neighbour_pairs(points[kept]), len(kept))
    kept = kept[_main_part(part, np.ones(len(kept)), "of the points", notes, called)]
    spread = np.linalg.svd(points[kept] - points[kept].mean(0), compute_uv=False)
    if spread[1] <= 1e-9 * spread[0]:
        raise UserError(f"{called}: all points lie on one line")
    return kept


def _degenerate(points: Points, triangles: Indices) -> NDArray[np.bool_]:
    """(m,) whether a face has a corner twice or three corners on a line."""
    corners = points[triangles]
    longest = ((corners - np.roll(corners, 1, axis=1)) ** 2).sum(2).max(1)
    area = np.linalg.norm(cross_products(points, triangles), axis=1)
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
    edges = Edges(triangles, len(points))
    first, second = edges.neighbours()
    count = len(triangles)
    f, g = first % count, second % count
    # two faces agree when they run through their common edge in opposite directions
    agree = edges.forward[first] != edges.forward[second]
    here, there = np.where(agree, g, g + count), np.where(agree, g + count, g)
    cover = np.concatenate([np.stack([f, here], 1), np.stack([f + count, there], 1)])
    label = components(cover, 2 * count)
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
    area = np.linalg.norm(cross_products(local, triangles), axis=1).sum() / 2
    corners = local[triangles]
    if len(rim):
        _, loop = np.unique(components(rim, len(used))[rim[:, 0]], return_inverse=True)
        sums = np.stack([np.bincount(loop, local[rim[:, 0], k]) for k in range(3)], 1)
        tip = sums / np.bincount(loop)[:, None]
        cones = np.stack([local[rim[:, 1]], local[rim[:, 0]], tip[loop]], 1)
        sides_of_cone = np.cross(cones[:, 1] - cones[:, 0], cones[:, 2] - cones[:, 0])
        if np.linalg.norm(sides_of_cone, axis=1).sum() / 2 > 0.1 * area:
            return False
        corners = np.concatenate([corners, cones])
    volume = float(np.linalg.det(corners).sum()) / 6
    return volume < -1e-6 * float(area) ** 1.5


def _remarks(triangles: Indices, count: int) -> list[str]:
    """What is unusual about a surface and stays so."""
    edges = Edges(triangles, count)
    notes = []
    if thick := int((edges.faces > 2).sum()):
        notes.append(f"{_count(thick, 'edge')} with more than two faces (non-manifold)")
    if touching := pinched(triangles, edges, count):
        vertices = _count(touching, "vertex", "vertices")
        notes.append(f"{vertices} where the surface only touches itself (non-manifold)")
    rim = edges.ends[edges.faces == 1]
    if len(rim):
        loops = len(np.unique(components(rim, count)[rim[:, 0]]))
        boundaries = _count(loops, "boundary", "boundaries")
        notes.append(f"open surface: {boundaries} with {_count(len(rim), 'edge')}")
    if one_sided(edges):
        notes.append("the surface has one side only, as a Moebius strip: normals do not agree")
    return notes
