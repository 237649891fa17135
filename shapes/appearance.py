r"""How shapes are shown: which way is up, from where they are seen, and in which colours.

**Up.** Files do not say which axis points upwards: y in most, z in the others. No shape stands on
its flattest side, so it is z where y is the axis along which the shape varies least, else y. The
shape is seen along the narrower of the two axes left: a person from the front, a dog from the side.

**Correspondence.** Points of shape a are coloured by their place: right and up are the two
opponent axes of OKLab (Ottosson 2020), depth is lightness, so neighbours look alike and places that
are far apart do not. Shape b takes the colours of the points it is mapped to.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from driftworks.errors import UserError
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.result import Match

__all__ = ["UPS", "frame", "frames", "place_colours", "scale_colours", "turn"]

Array = NDArray[np.float64]

#: Directions that may be named as up.
UPS = ("x", "y", "z", "-x", "-y", "-z")

#: Cosine up to which two views count as the same.
_SAME_VIEW = np.cos(np.radians(40))
_SCALE = np.array(
    [
        (0.70, 0.11, 0.15),
        (0.90, 0.45, 0.27),
        (0.97, 0.83, 0.55),
        (0.55, 0.75, 0.72),
        (0.16, 0.45, 0.56),
    ]
)


def frame(mesh: Mesh, up: str | None = None) -> Array:
    """(3, 3) rotation whose rows are right, up and towards the viewer, in the mesh's coordinates.

    up: one of `UPS`; None to find it. Raises `UserError` for another name.
    """
    if up is not None and up not in UPS:
        raise UserError(f"up is {up!r}; choose one of {', '.join(UPS)}")
    points, weights = _centred(mesh)
    spread = weights @ points**2
    if up is None:
        up = "z" if spread[1] < min(spread[0], spread[2]) else "y"
    axis = "xyz".index(up[-1])
    upwards = np.eye(3)[axis] * (-1 if up[0] == "-" else 1)
    across = [other for other in (0, 1, 2) if other != axis]
    view = np.eye(3)[min(across, key=lambda other: float(spread[other]))]
    return np.stack([np.cross(upwards, view), upwards, view])


def frames(match: Match, up: str | None = None) -> tuple[Array, Array]:
    """Frames of a and b from which corresponding sides are seen, both upright where that is so.

    b is turned as its points say; a small difference from an upright view is left to the poses.
    """
    first, own = frame(match.a, up), frame(match.b, up)
    if match.failed or match.mirrored:
        return first, own
    target, _ = _centred(match.a)
    points, weights = _centred(match.b)
    u, _, vt = np.linalg.svd(target[match.map_ba].T @ (weights[:, None] * points))
    rotation = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    carried = first @ rotation
    upright = [own, turn(180) @ own, first]
    likeness = [(np.trace(view @ carried.T) - 1) / 2 for view in upright]
    if max(likeness) > _SAME_VIEW:
        return first, upright[int(np.argmax(likeness))]
    return first, carried


def turn(yaw: float, elevation: float = 0.0) -> Array:
    """(3, 3) rotation of a frame, in degrees: around the vertical, then looking down from above."""
    y, e = np.radians([yaw, elevation])
    around = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    down = np.array([[1, 0, 0], [0, np.cos(e), -np.sin(e)], [0, np.sin(e), np.cos(e)]])
    return np.asarray(down @ around)


def place_colours(mesh: Mesh, rotation: Array) -> Array:
    """(n, 3) colours in sRGB that change smoothly with the place on the mesh."""
    turned = mesh.vertices @ rotation.T
    extent = max(float(np.ptp(turned, axis=0).max()), 1e-300)
    # whole steps, or the ranks of equal coordinates would be told apart by rounding
    steps = np.rint((turned - turned.min(0)) / extent * 1e4)
    linear = steps / np.maximum(steps.max(0), 1)
    # half by rank: a trunk with thin limbs would else be of one colour
    rank = np.stack([_rank(column) for column in steps.T], 1)
    right, up, depth = (0.5 * (linear + rank)).T - 0.5
    return _oklab(0.72 + 0.16 * depth, 0.42 * right + 0.05 * up, 0.42 * up - 0.05 * right)


def scale_colours(values: Array) -> Array:
    """(n, 3) colours in sRGB of numbers in [0, 1]: red, sand, blue-green; grey where not finite."""
    known = np.isfinite(values)
    place = np.clip(np.where(known, values, 0), 0, 1) * (len(_SCALE) - 1)
    stops = np.arange(len(_SCALE))
    mixed = np.stack([np.interp(place, stops, _SCALE[:, k]) for k in range(3)], 1)
    return np.where(known[:, None], mixed, 0.6)


def _centred(mesh: Mesh) -> tuple[Array, Array]:
    """Points of the mesh with area 1 and centroid 0, and weights that sum to 1."""
    points = mesh.normalised().vertices
    return points, mesh.vertex_areas / mesh.area


def _rank(values: Array) -> Array:
    """(n,) share of values below each, half of those that are equal counted."""
    ordered = np.sort(values)
    sides = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return np.asarray(sum(sides) / (2 * len(values)))


def _oklab(lightness: Array, a: Array, b: Array) -> Array:
    """(n, 3) sRGB of OKLab colours; colours outside are moved towards grey."""
    towards_grey = np.linspace(1, 0, 21)
    colours = np.zeros((len(lightness), 3))
    open_ = np.ones(len(lightness), np.bool_)
    for chroma in towards_grey:
        cone = np.stack(
            [
                lightness + chroma * (0.3963377774 * a + 0.2158037573 * b),
                lightness - chroma * (0.1055613458 * a + 0.0638541728 * b),
                lightness - chroma * (0.0894841775 * a + 1.2914855480 * b),
            ],
            1,
        )
        linear = cone**3 @ np.array(
            [
                [4.0767416621, -1.2684380046, -0.0041960863],
                [-3.3077115913, 2.6097574011, -0.7034186147],
                [0.2309699292, -0.3413193965, 1.7076147010],
            ]
        )
        inside = ((linear >= 0) & (linear <= 1)).all(1) | (chroma == 0)
        now = open_ & inside
        colours[now] = linear[now]
        open_ &= ~inside
    colours = np.clip(colours, 0, 1)
    return np.where(colours <= 0.0031308, 12.92 * colours, 1.055 * colours ** (1 / 2.4) - 0.055)
