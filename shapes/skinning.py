r"""Skeletons with flesh: bone coordinates, an implicit body, skinning weights, proportions, poses.

Bone b has a start o_b, an orthonormal frame (u along it, v width, w depth) and a length L_b. In its
coordinates (s, v, w) a point has the relative distance to the bone

    rho_b^2 = (v / (a r))^2 + (w a / r)^2 + ((s - clip(s, 0, L)) / r)^2,     r = r_b(s / L),

which is 1 on its flesh. The body is the smooth union, the zero set of

    f = -c log sum_b exp((1 - rho_b) / c),

whose blends are as wide as a fraction c of the thickness there. Skinning weights are the softmax S
of -rho / tau, damped where the winning bones are far from each other in the tree (M = 1 for bones
at most two steps apart), so that a hand beside the hip is not bound to it: w ~ S (M S)^6.

Proportions scale bone coordinates, (s, v, w) -> (l s, g v, g w), and blend linearly. Poses are
rigid and blend as dual quaternions (Kavan et al., "Geometric skinning with approximate dual
quaternion blending", ACM TOG 2008), so that bent limbs keep their volume. rho is a function of bone
coordinates alone; that is what makes bone coordinates a correspondence between individuals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from driftworks.shapes.bodyplans import Bone

__all__ = ["Proportions", "Skeleton"]

Array = NDArray[np.float64]

_BLEND = 0.12  # c: width of the union's blends, in radii
_SOFTNESS = 0.24  # tau: width of the skinning weights, in radii
_CHUNK = 256  # points whose bone coordinates are held at once: they stay in cache, 7 times faster
_MIRROR = np.array([-1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Proportions:
    """Factors of one individual, each (B,): length, girth, and swelling of the middle of a bone."""

    lengths: Array
    girths: Array
    swellings: Array

    @classmethod
    def neutral(cls, count: int) -> Proportions:
        """The proportions of the table itself."""
        return cls(np.ones(count), np.ones(count), np.zeros(count))


class _Distances(NamedTuple):
    """Of points from bones, each (n, B): rho, flesh radius there, s / L within [0, 1], s beyond."""

    rho: Array
    radius: Array
    t: Array
    beyond: Array


class Skeleton:
    """The bones of a plan with the proportions of one individual.

    names: bones in an order in which parents come first, ``.L`` and ``.R`` marking sides
    partner: (B,) the bone on the other side, itself in the middle
    start, frame, length: (B, 3), (B, 3, 3) with columns (u, v, w), (B,)
    """

    def __init__(self, bones: Sequence[Bone], proportions: Proportions | None = None) -> None:
        self.bones = tuple(bones)
        rows = _sided(self.bones)
        self.names = tuple(name for name, *_ in rows)
        number = {name: b for b, name in enumerate(self.names)}
        self.parent = np.array([number.get(parent, -1) for _, parent, *_ in rows])
        other = {"L": "R", "R": "L"}
        self.partner = np.array(
            [number[n[:-1] + other[n[-1]]] if n[-2:] in (".L", ".R") else b
             for b, n in enumerate(self.names)]
        )
        self.mirrored = np.array([n.endswith(".R") for n in self.names])
        table = [bone for *_, bone in rows]
        count = len(rows)
        self.proportions = proportions or Proportions.neutral(count)
        self.limits = np.radians([[bone.twist, bone.flex, bone.side] for bone in table])
        self._radii = np.array([bone.radii for bone in table])
        self._bulge = np.array([bone.bulge for bone in table])
        self._width = np.sqrt([bone.flat for bone in table])

        vectors = np.array([bone.by for bone in table], dtype=float)
        base_length = np.linalg.norm(vectors, axis=1)
        frames = np.stack([_frame(v / n) for v, n in zip(vectors, base_length, strict=True)])
        frames[self.mirrored] = _MIRROR[:, None] * frames[self.mirrored]
        self.frame = frames
        self.length = base_length * self.proportions.lengths
        self.start = np.zeros((count, 3))
        rest = np.zeros((count, 3))
        for b, bone in enumerate(table):
            p = int(self.parent[b])
            if bone.at is None:
                rest[b] = rest[p] + base_length[p] * frames[p, :, 0]
            else:
                rest[b] = np.array(bone.at) * (_MIRROR if self.mirrored[b] else 1.0)
            if p < 0:
                self.start[b] = rest[b]
                continue
            # where a bone hangs on its parent scales with the parent
            offset = (rest[b] - rest[p]) @ frames[p]
            t = np.full((1, count), np.clip(offset[0] / base_length[p], 0.0, 1.0))
            self.start[b] = self.start[p] + frames[p] @ (self._scales(t)[0, :, p] * offset)

        self._turn = np.ascontiguousarray(frames.transpose(1, 2, 0).reshape(3, -1))
        self._back = np.ascontiguousarray(frames.transpose(2, 0, 1).reshape(-1, 3))
        self._offset = np.einsum("bi,bij->jb", self.start, frames).ravel()

    def __len__(self) -> int:
        return len(self.names)

    def _scales(self, t: Array) -> Array:
        """Factors (n, 3, B) of bone coordinates at relative positions t (n, B) along the bones."""
        p = self.proportions
        girth = p.girths * (1.0 + p.swellings * 4.0 * t * (1.0 - t))
        return np.stack((np.broadcast_to(p.lengths, girth.shape), girth, girth), axis=1)

    @cached_property
    def near(self) -> Array:
        """M (B, B): 1 for bones at most two steps apart in the tree, else 0."""
        one = np.eye(len(self))
        child = np.flatnonzero(self.parent >= 0)
        one[child, self.parent[child]] = one[self.parent[child], child] = 1.0
        return np.asarray((one @ one > 0.0), dtype=float)

    def local(self, points: Array) -> Array:
        """Bone coordinates (n, 3, B) of points (n, 3)."""
        turned = points @ self._turn
        turned -= self._offset
        return turned.reshape(len(points), 3, len(self))

    def _distances(self, local: Array) -> _Distances:
        s, v, w = np.moveaxis(local, 1, 0)
        inside = np.clip(s, 0.0, self.length)
        t = inside / self.length
        hump = 4.0 * t * (1.0 - t)
        taper = self._radii[:, 1] - self._radii[:, 0]
        flesh = (self._radii[:, 0] + t * taper + hump * self._bulge) * self.proportions.girths
        swell = 1.0 + hump * self.proportions.swellings
        radius = flesh * swell
        beyond = s - inside
        reach = np.sqrt((v / self._width) ** 2 + (w * self._width) ** 2 + beyond**2)
        return _Distances(reach / radius, radius, t, beyond)

    def field(self, points: Array) -> Array:
        """f (n,) of points (n, 3): negative inside the body; its unit is the local thickness."""
        return np.concatenate([self._union(part)[0] for part in _parts(points)])

    def gradient(self, points: Array) -> Array:
        """Gradient (n, 3) of ``field``."""
        return np.concatenate([self._slope(part)[1] for part in _parts(points)])

    def _union(self, points: Array) -> tuple[Array, Array, Array, _Distances]:
        """f (n,), the shares (n, B) of the bones in its union, bone coordinates and distances."""
        local = self.local(points)
        near = self._distances(local)
        least = near.rho.min(axis=1, keepdims=True)
        shares = np.exp((least - near.rho) / _BLEND)
        total = shares.sum(axis=1, keepdims=True)
        return (least - 1.0 - _BLEND * np.log(total))[:, 0], shares / total, local, near

    def _slope(self, points: Array) -> tuple[Array, Array]:
        """f (n,) and its gradient (n, 3)."""
        value, shares, local, near = self._union(points)
        p = self.proportions
        tilt = 4.0 * (1.0 - 2.0 * near.t)
        hump = 4.0 * near.t * (1.0 - near.t)
        flesh = self._radii[:, 0] + near.t * (self._radii[:, 1] - self._radii[:, 0])
        flesh += hump * self._bulge
        growth = (self._radii[:, 1] - self._radii[:, 0] + tilt * self._bulge) / flesh
        growth += tilt * p.swellings / (1.0 + hump * p.swellings)
        # along the bone the flesh grows; beyond its ends the distance does
        along = np.where(near.beyond == 0.0, -near.rho * growth / self.length, 0.0)
        scale = shares / np.maximum(near.rho * near.radius**2, 1e-12)
        slope = np.stack(
            (shares * along + scale * near.beyond,
             scale * local[:, 1] / self._width**2,
             scale * local[:, 2] * self._width**2), axis=1
        )
        return value, slope.reshape(len(points), -1) @ self._back

    def project(self, points: Array, steps: int = 3) -> Array:
        """Points (n, 3) moved onto the surface by Newton steps along the gradient."""
        for _ in range(steps):
            parts = [self._slope(part) for part in _parts(points)]
            value, slope = (np.concatenate(x) for x in zip(*parts, strict=True))
            square = np.maximum((slope**2).sum(axis=1), 1e-12)
            points = points - (value / square)[:, None] * slope
        return points

    def thickness(self, points: Array) -> Array:
        """Flesh radius (n,) at points (n, 3), averaged over the bones that own them."""
        return np.concatenate([self._owned(part)[1] for part in _parts(points)])

    def _owned(self, points: Array) -> tuple[Array, Array]:
        """Softmax (n, B) of -rho / tau, and the flesh radius (n,) averaged with it."""
        near = self._distances(self.local(points))
        soft = np.exp((near.rho.min(axis=1, keepdims=True) - near.rho) / _SOFTNESS)
        soft /= soft.sum(axis=1, keepdims=True)
        return soft, (soft * near.radius).sum(axis=1)

    def bounds(self) -> tuple[Array, Array]:
        """Lower and upper corner (3,), (3,) of a box around the flesh."""
        ends = np.concatenate((self.start, self.start + self.length[:, None] * self.frame[:, :, 0]))
        radius = (self._radii.max(axis=1) + self._bulge) * self.proportions.girths
        radius *= np.maximum(self._width, 1.0 / self._width) * 1.3
        radius = np.concatenate((radius, radius))[:, None]
        return (ends - radius).min(axis=0), (ends + radius).max(axis=0)

    def weights(self, points: Array) -> Array:
        """Skinning weights (n, B) of points (n, 3); rows sum to 1."""
        soft, _ = self._owned(points)
        weights = soft * (soft @ self.near) ** 6
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    def reshape(self, points: Array, weights: Array, to: Skeleton) -> Array:
        """Points (n, 3) of this individual carried to the proportions of another, both at rest."""
        carried = weights @ to.start
        for i in range(0, len(points), _CHUNK):
            part = slice(i, i + _CHUNK)
            local = self.local(points[part])
            t = np.clip(local[:, 0] / self.length, 0.0, 1.0)
            local *= to._scales(t) / self._scales(t) * weights[part, None]
            carried[part] += local.reshape(len(local), -1) @ to._back
        return carried

    def posed(self, angles: Array) -> tuple[Array, Array]:
        """Rotations (B, 3, 3) and joint positions (B, 3) of a pose.

        ``angles`` (B, 3) are twist, flex and side of every joint in radians; equal angles of
        partners make a mirror-symmetric pose.
        """
        u, v, w = np.moveaxis(self.frame, 2, 0)
        # rotation vectors are axial: a reflection turns their sign once more
        sign = np.where(self.mirrored, -1.0, 1.0)[:, None]
        twist, flex, side = (a[:, None] for a in angles.T)
        own = twist * u * sign + flex * np.cross(u, w) + side * np.cross(u, v)
        turns = Rotation.from_rotvec(own).as_matrix()
        joints = self.start.copy()
        for b, p in enumerate(self.parent):
            if p >= 0:
                joints[b] = joints[p] + turns[p] @ (self.start[b] - self.start[p])
                turns[b] = turns[p] @ turns[b]
        return turns, joints

    def bend(self, points: Array, weights: Array, angles: Array) -> Array:
        """Points (n, 3) at rest carried into a pose by dual-quaternion blending."""
        turns, joints = self.posed(angles)
        shifts = joints - np.einsum("bij,bj->bi", turns, self.start)
        real = Rotation.from_matrix(turns).as_quat(scalar_first=True)
        for b, p in enumerate(self.parent):
            # q and -q are one rotation, but only neighbours of one sign blend along the short way
            if p >= 0 and real[b] @ real[p] < 0.0:
                real[b] = -real[b]
        dual = 0.5 * _times(np.column_stack((np.zeros(len(self)), shifts)), real)
        real, dual = weights @ real, weights @ dual
        norm = np.linalg.norm(real, axis=1, keepdims=True)
        real, dual = real / norm, dual / norm
        inverse = real * np.array([1.0, -1.0, -1.0, -1.0])
        shift = 2.0 * _times(dual, inverse)[:, 1:]
        axis, scalar = real[:, 1:], real[:, :1]
        return points + 2.0 * np.cross(axis, np.cross(axis, points) + scalar * points) + shift

    def collides(self, angles: Array, share: float = 0.85) -> bool:
        """Whether flesh of bones three or more steps apart overlaps in a pose but not at rest.

        Bones are rows of balls of ``share`` times their smaller half-width.
        """
        count, balls = len(self), 5
        t = np.linspace(0.0, 1.0, balls)
        radius = self._radii[:, :1] * (1.0 - t) + self._radii[:, 1:] * t
        radius = radius + self._bulge[:, None] * 4.0 * t * (1.0 - t)
        narrow = np.minimum(self._width, 1.0 / self._width)
        radius *= share * (self.proportions.girths * narrow)[:, None]
        reach = (radius.ravel()[:, None] + radius.ravel()) ** 2

        def overlap(starts: Array, axes: Array) -> NDArray[np.bool_]:
            centres = starts[:, None] + (t * self.length[:, None])[..., None] * axes[:, None]
            centres = centres.reshape(-1, 3)
            gaps = ((centres[:, None] - centres) ** 2).sum(axis=2)
            return np.asarray((gaps < reach).reshape(count, balls, count, balls).any(axis=(1, 3)))

        turns, joints = self.posed(angles)
        axes = self.frame[:, :, 0]
        now = overlap(joints, np.einsum("bij,bj->bi", turns, axes))
        return bool((now & (self.near == 0.0) & ~overlap(self.start, axes)).any())


def _parts(points: Array) -> Iterator[Array]:
    for i in range(0, max(len(points), 1), _CHUNK):
        yield points[i : i + _CHUNK]


def _sided(bones: Sequence[Bone]) -> list[tuple[str, str, Bone]]:
    """Rows (name, parent's name, table entry) for both sides, parents first."""
    by_name = {bone.name: bone for bone in bones}
    rows: list[tuple[str, str, Bone]] = []
    done: set[str] = set()

    def add(bone: Bone) -> None:
        if bone.name in done:
            return
        done.add(bone.name)
        parent = by_name[bone.parent] if bone.parent is not None else None
        if parent is not None:
            add(parent)
        for side in (".L", ".R") if bone.paired else ("",):
            above = "" if parent is None else parent.name + (side if parent.paired else "")
            rows.append((bone.name + side, above, bone))

    for bone in bones:
        add(bone)
    return rows


def _frame(u: Array) -> Array:
    """Columns (u, v, w): v nearest to x, w pointing forward, or up where the bone does."""
    v = np.array([1.0, 0.0, 0.0]) - u[0] * u
    v /= np.linalg.norm(v)
    w = np.cross(u, v)
    return np.column_stack((u, v, w if w[2] + 0.5 * w[1] > 0.0 else -w))


def _times(a: Array, b: Array) -> Array:
    """Quaternion products (n, 4), scalar first."""
    scalar = a[:, 0] * b[:, 0] - (a[:, 1:] * b[:, 1:]).sum(axis=1)
    vector = a[:, :1] * b[:, 1:] + b[:, :1] * a[:, 1:] + np.cross(a[:, 1:], b[:, 1:])
    return np.column_stack((scalar, vector))
