r"""A small software renderer: triangles and points into pixels, with numpy alone.

Orthographic view: rows of a rotation R are the directions right, up and towards the viewer. A
triangle covers on the pixel row y all x with

    e_k(x, y) = a_k (x - x_k) + b_k (y - y_k) >= 0        for its three edges k,

each a half-line, so their common interval lists its pixels without a test of any other. All
triangles are expanded together, first into rows, then into pixels; the nearest one wins by the
largest of the integers (depth << 32 | face) at each pixel. Light is computed once a visible pixel:
Lambert from a key and a fill light, an ambient sky brighter from above, and creases darkened where
the surface lies behind its blurred depth (Luft, Colditz and Deussen, "Image enhancement by
unsharp masking the depth buffer", SIGGRAPH 2006). Everything is drawn at twice the size and
averaged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from driftworks.shapes.mesh import Mesh

__all__ = ["View", "look", "paint"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

_SUPERSAMPLING = 2
#: Pixels that are expanded at a time.
_CHUNK = 2_000_000
_DEPTH_STEPS = float(2**30)
_KEY, _FILL = (np.array(v) / np.linalg.norm(v) for v in ((-0.45, 0.65, 0.75), (0.8, 0.1, 0.45)))


@dataclass(frozen=True, eq=False)
class View:
    """What is seen of a mesh, before it is coloured.

    size: (width, height) of the image in pixels
    pixels: (p,) covered pixels of the supersampled image, row by row
    corners: (p, 3) vertices that each is mixed from, weights: (p, 3) their shares
    light: (p,) brightness, 1 for a surface that faces the key light
    """

    size: tuple[int, int]
    pixels: Indices
    corners: Indices
    weights: Array
    light: Array


def look(mesh: Mesh, rotation: Array, size: tuple[int, int], scale: float) -> View:
    """The visible surface of a mesh or cloud whose middle stands in the middle of the image.

    rotation: (3, 3) rows right, up, towards the viewer
    size: (width, height) in pixels; scale: pixels for one unit of the coordinates
    """
    width, height = (_SUPERSAMPLING * length for length in size)
    scale *= _SUPERSAMPLING
    turned = mesh.vertices @ rotation.T
    turned = scale * (turned - (turned.min(0) + turned.max(0)) / 2)
    # pixel centres have whole coordinates; rows count downwards
    screen = turned * [1, -1, 1] + [(width - 1) / 2, (height - 1) / 2, 0]
    if mesh.is_cloud:
        radius = max(1.0, 0.9 * scale * float(np.sqrt(np.median(mesh.vertex_areas))))
        winner = _points(screen, radius, width, height)
    else:
        winner = _triangles(screen, mesh.faces, width, height)
    pixels = (winner >= 0).nonzero()[0]
    seen = winner[pixels]
    if mesh.is_cloud:
        corners = np.repeat(seen[:, None], 3, 1)
        weights = np.full((len(seen), 3), 1 / 3)
        inside = np.zeros(len(seen), np.bool_)
    else:
        corners = mesh.faces[seen]
        weights, inside = _barycentric(screen, corners, pixels, width)
    normals = (weights[:, :, None] * (mesh.normals @ rotation.T)[corners]).sum(1)
    normals[(normals[:, 2] < 0) if mesh.is_cloud else inside] *= -1
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    depth = (weights * screen[corners, 2]).sum(1)
    light = _light(normals) * _creases(depth, pixels, width, height)
    light[inside] *= 0.55
    return View(size, pixels, corners, weights, light)


def paint(view: View, colours: Array) -> Array:
    """(height, width, 4) image in [0, 1] with transparency, in colours (n, 3) of sRGB."""
    width, height = view.size
    linear = np.clip(colours, 0, 1) ** 2.2
    row, column = np.divmod(view.pixels, _SUPERSAMPLING * width)
    small = (row // _SUPERSAMPLING) * width + column // _SUPERSAMPLING
    covered = np.bincount(small, minlength=width * height)
    image = np.zeros((width * height, 4))
    for channel in range(3):
        mixed = (view.weights * linear[view.corners, channel]).sum(1) * view.light
        total = np.bincount(small, mixed, width * height) / np.maximum(covered, 1)
        image[:, channel] = np.clip(total, 0, 1) ** (1 / 2.2)
    image[:, 3] = covered / _SUPERSAMPLING**2
    return image.reshape(height, width, 4)


def _triangles(screen: Array, faces: Indices, width: int, height: int) -> Indices:
    """(width height,) the face that is seen at each pixel, -1 for none."""
    x, y, z = (screen[faces, k] for k in range(3))
    low, high = screen[:, 2].min(), screen[:, 2].max()
    z = (z - low) / max(high - low, 1e-300)
    doubled = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    first = np.clip(np.ceil(y.min(1)), 0, height).astype(np.int64)
    last = np.clip(np.floor(y.max(1)), -1, height - 1).astype(np.int64)
    rows = np.where(np.abs(doubled) > 1e-9, np.maximum(last - first + 1, 0), 0)
    best = np.full(width * height, -1, np.int64)
    # boxes bound the pixels of a face
    boxes = np.cumsum(rows * (np.ptp(x, axis=1) + 2))
    starts = np.searchsorted(boxes, np.arange(0, boxes[-1] + 1, _CHUNK))
    for begin, end in zip(starts, [*starts[1:], len(faces)], strict=True):
        face = np.repeat(np.arange(begin, end), rows[begin:end])
        row = first[face] + _count_up(rows[begin:end])
        left, right = np.full(len(face), 0.0), np.full(len(face), width - 1.0)
        sign = np.sign(doubled[face])
        for k in range(3):
            n = (k + 1) % 3
            a = sign * (y[face, k] - y[face, n])
            b = sign * (x[face, n] - x[face, k])
            with np.errstate(divide="ignore", invalid="ignore"):
                crossing = x[face, k] - b * (row - y[face, k]) / a
            left = np.where(a > 0, np.maximum(left, crossing - 1e-6), left)
            right = np.where(a < 0, np.minimum(right, crossing + 1e-6), right)
        from_x = np.ceil(left).astype(np.int64)
        count = np.maximum(np.floor(right).astype(np.int64) - from_x + 1, 0)
        face, row = np.repeat(face, count), np.repeat(row, count)
        column = np.repeat(from_x, count) + _count_up(count)
        dx, dy = column - x[face, 0], row - y[face, 0]
        second = (dx * (y[face, 2] - y[face, 0]) - dy * (x[face, 2] - x[face, 0])) / doubled[face]
        third = (dy * (x[face, 1] - x[face, 0]) - dx * (y[face, 1] - y[face, 0])) / doubled[face]
        corner = z[face]
        depth = corner[:, 0] + second * (corner[:, 1] - corner[:, 0])
        depth += third * (corner[:, 2] - corner[:, 0])
        _nearest(best, row * width + column, np.clip(depth, 0, 1), face)
    return np.where(best >= 0, best & 0xFFFFFFFF, -1)


def _points(screen: Array, radius: float, width: int, height: int) -> Indices:
    """(width height,) the point whose disc is seen at each pixel, -1 for none."""
    reach = int(np.ceil(radius))
    dx, dy = (d.ravel() for d in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    disc = dx**2 + dy**2 <= radius**2
    dx, dy = dx[disc], dy[disc]
    low, high = screen[:, 2].min(), screen[:, 2].max()
    depth = (screen[:, 2] - low) / max(high - low, 1e-300)
    best = np.full(width * height, -1, np.int64)
    step = max(1, _CHUNK // len(dx))
    for begin in range(0, len(screen), step):
        some = np.arange(begin, min(begin + step, len(screen)))
        column = np.rint(screen[some, 0]).astype(np.int64)[:, None] + dx
        row = np.rint(screen[some, 1]).astype(np.int64)[:, None] + dy
        there = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        point = np.broadcast_to(some[:, None], there.shape)[there]
        _nearest(best, (row * width + column)[there], depth[point], point)
    return np.where(best >= 0, best & 0xFFFFFFFF, -1)


def _nearest(best: Indices, pixels: Indices, depth: Array, number: Indices) -> None:
    """Keep in ``best`` the largest depth << 32 | number at each pixel."""
    keys = (depth * _DEPTH_STEPS).astype(np.int64) << 32 | number
    np.maximum.at(best, pixels, keys)


def _count_up(counts: Indices) -> Indices:
    """0 .. c-1 for every c, one after another."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _barycentric(
    screen: Array, corners: Indices, pixels: Indices, width: int
) -> tuple[Array, NDArray[np.bool_]]:
    """(p, 3) shares of the corners at each pixel, and whether the face is seen from inside."""
    a, b, c = (screen[corners[:, k], :2] for k in range(3))
    here = np.stack([pixels % width, pixels // width], 1) - a
    ab, ac = b - a, c - a
    doubled = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    second = (here[:, 0] * ac[:, 1] - here[:, 1] * ac[:, 0]) / doubled
    third = (ab[:, 0] * here[:, 1] - ab[:, 1] * here[:, 0]) / doubled
    weights = np.clip(np.stack([1 - second - third, second, third], 1), 0, 1)
    # rows count downwards, which turns counter-clockwise corners around
    return weights / weights.sum(1, keepdims=True), doubled > 0


def _light(normals: Array) -> Array:
    sky = 0.36 * (0.68 + 0.32 * normals[:, 1])
    lambert = 0.66 * np.maximum(normals @ _KEY, 0) + 0.16 * np.maximum(normals @ _FILL, 0)
    rim = 0.72 + 0.28 * np.clip(2.5 * normals[:, 2], 0, 1)
    return np.asarray((sky + lambert) * rim)


def _creases(depth: Array, pixels: Indices, width: int, height: int) -> Array:
    """(p,) factors below 1 where the surface lies behind its neighbourhood."""
    table, there = np.zeros((2, width * height), np.float32)
    table[pixels], there[pixels] = depth, 1
    radius = 0.018 * min(width, height)
    side = 2 * round(1.7 * radius) + 1
    blurred, share = (
        # two boxes are nearly a Gaussian, and their cost does not depend on the radius
        uniform_filter(uniform_filter(t.reshape(height, width), side), side).ravel()[pixels]
        for t in (table, there)
    )
    behind = (blurred / np.maximum(share, 1e-9) - depth) / radius
    return 1 - 0.5 * np.clip(0.6 * behind, 0, 1)
