"""Procedural creatures: families of people and animals with exact correspondence, free to use.

An individual of a plan is drawn in three steps, each from a part of its own random stream:
proportions (a mixture of the plan's archetypes and log-normal factors for single bones, equal on
both sides), soft form (smooth random displacements of low frequency, symmetric for the individual
and not for its flesh), and a pose (joint angles within limits, drawn again where limbs would run
into each other).

Creatures of shared topology are one template surface of the plan, carried from individual to
individual by skinning: vertex i is the same place on each, and ``mirror`` is the same place on the
other side. Creatures with a surface of their own are meshed anew in their own proportions. Every
creature knows its vertices in the rest coordinates of the skeleton's table, ``home``; there the
nearest vertex gives the correspondence between different triangulations and, where plans share a
skeleton, between plans.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from driftworks.errors import UserError
from driftworks.shapes.bodyplans import ALL_PLANS, Plan
from driftworks.shapes.implicit import Surface, mesh_body
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.skinning import Proportions, Skeleton

__all__ = ["PLANS", "Creature", "correspondence", "creatures", "draw", "family"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: Names of the body plans.
PLANS = tuple(ALL_PLANS)

_LEAST, _MOST = 1500, 20_000  # vertices: with fewer, thin legs and ears are not resolved
_POSES = 12  # draws before a pose that collides is weakened instead


@dataclass(frozen=True, eq=False)
class Creature:
    """One creature.

    mesh: the posed surface
    rest: (n, 3) its vertices before the pose, mirror-symmetric but for the flesh
    home: (n, 3) its vertices in the rest coordinates of the skeleton's table
    mirror: (n,) for every vertex the one at the same place on the other side
    joints: (B, 3) positions of the joints of the posed skeleton, named ``skeleton.names``
    angles: (B, 3) twist, flex and side of the joints in radians
    skeleton: the skeleton with this individual's proportions, at rest
    """

    plan: str
    mesh: Mesh
    rest: Array
    home: Array
    mirror: Index
    joints: Array
    angles: Array
    skeleton: Skeleton


@dataclass(frozen=True, eq=False)
class _Template:
    skeleton: Skeleton
    surface: Surface
    weights: Array
    thickness: Array
    home: Array


def draw(
    plan: str,
    rng: np.random.Generator,
    *,
    vertices: int = 3000,
    own_surface: bool = False,
    pose: float = 1.0,
    softness: float = 1.0,
) -> Creature:
    """A random creature.

    plan: one of `PLANS`
    vertices: about how many; the mesh has up to 1 % more or less
    own_surface: mesh it anew (some seconds) instead of bending the plan's template; its vertex
        numbers then mean nothing on another creature, see `correspondence`
    pose: factor on the joint angles, 0 for the rest pose
    softness: factor on the random displacements, 0 for none

    Raises `UserError` for an unknown plan or impossible numbers.
    """
    chosen = _plan(plan)
    _check(vertices, pose, softness)
    form, flesh, stance, meshing = rng.spawn(4)
    skeleton = Skeleton(chosen.bones, _proportions(chosen, form))
    if own_surface:
        template = _template_of(skeleton, _table(plan), vertices, meshing)
    else:
        template = _template(plan, vertices)
    weights, surface = template.weights, template.surface
    rest = template.skeleton.reshape(surface.vertices, weights, skeleton)
    low, high = _table(plan).bounds()
    size = float((high - low).max())
    shift = _soft(template.home, size, form, symmetric=True)
    shift += 0.5 * _soft(template.home, size, flesh)
    rest = rest + softness * template.thickness[:, None] * shift
    angles = _pose(skeleton, stance, pose)
    bent = skeleton.bend(rest, weights, angles)
    mesh = Mesh(bent, surface.faces, name=plan)
    _, joints = skeleton.posed(angles)
    return Creature(
        plan, mesh, rest, template.home, surface.mirror, joints, angles, skeleton
    )


def creatures(plan: str, count: int, seed: int = 0, **options: object) -> Iterator[Creature]:
    """Creatures 0 to count - 1 of a plan under a seed; options are those of `draw`.

    Creature i is the same whatever the count. Raises `UserError` as `draw` does.
    """
    _plan(plan)
    for name, value in (("count", count), ("seed", seed)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UserError(f"{name} is a whole number of at least 0, got {value!r}")
    stream = zlib.crc32(plan.encode())
    return (
        draw(plan, np.random.default_rng((seed, stream, i)), **options)  # type: ignore[arg-type]
        for i in range(count)
    )


def family(plan: str, count: int, seed: int = 0, **options: object) -> list[Mesh]:
    """Meshes of ``count`` creatures that share their faces, named PLAN-SEED-NUMBER."""
    if options.get("own_surface"):
        raise UserError("a family shares its vertex numbers; own surfaces come from creatures()")
    return [
        replace(creature.mesh, name=f"{plan}-{seed}-{i}")
        for i, creature in enumerate(creatures(plan, count, seed, **options))
    ]


def correspondence(a: Creature, b: Creature) -> tuple[Index, Array]:
    """For every vertex of a, the same place on b: vertex numbers (n,), and how far they are off.

    The second array (n,) is the distance of the two vertices in rest coordinates, over the root of
    b's area there: half a mesh width between triangulations of one plan, 0 for shared topology.

    Raises `UserError` when the creatures do not share a skeleton.
    """
    if a.skeleton.names != b.skeleton.names:
        raise UserError(f"no correspondence between the skeletons of {a.plan!r} and {b.plan!r}")
    if a.home is b.home:
        return np.arange(len(a.home)), np.zeros(len(a.home))
    gap, nearest = cKDTree(b.home).query(a.home)
    corners = b.home[b.mesh.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return nearest, gap / np.sqrt(0.5 * np.linalg.norm(normal, axis=1).sum())


def _plan(name: str) -> Plan:
    if name not in ALL_PLANS:
        raise UserError(f"unknown body plan {name!r}; choose from {', '.join(PLANS)}")
    return ALL_PLANS[name]


def _check(vertices: int, pose: float, softness: float) -> None:
    if not isinstance(vertices, int) or not _LEAST <= vertices <= _MOST:
        raise UserError(f"vertices is a whole number from {_LEAST} to {_MOST}, got {vertices!r}")
    for name, value in (("pose", pose), ("softness", softness)):
        if not 0.0 <= value <= 1.5:
            raise UserError(f"{name} is a number from 0 to 1.5, got {value!r}")


@lru_cache
def _table(plan: str) -> Skeleton:
    """The plan's skeleton as it stands in the table."""
    return Skeleton(ALL_PLANS[plan].bones)


@lru_cache(maxsize=16)
def _template(plan: str, vertices: int) -> _Template:
    """The plan's shared surface, in the mean proportions of its archetypes."""
    chosen = ALL_PLANS[plan]
    share = np.full(len(chosen.archetypes), 1.0 / len(chosen.archetypes))
    lengths, girths = _mixture(chosen, share)
    skeleton = Skeleton(chosen.bones, Proportions(lengths, girths, np.zeros(len(lengths))))
    return _template_of(skeleton, _table(plan), vertices, np.random.default_rng(0))


def _template_of(
    skeleton: Skeleton, table: Skeleton, vertices: int, rng: np.random.Generator
) -> _Template:
    surface = mesh_body(skeleton, vertices, rng)
    weights = skeleton.weights(surface.vertices)
    # exact symmetry: rounding differs between the sides
    weights = 0.5 * (weights + weights[surface.mirror][:, skeleton.partner])
    thickness = skeleton.thickness(surface.vertices)
    home = table.project(skeleton.reshape(surface.vertices, weights, table), 2)
    for array in (weights, thickness, home, surface.vertices, surface.faces, surface.mirror):
        array.setflags(write=False)
    return _Template(skeleton, surface, weights, thickness, home)


def _mixture(plan: Plan, shares: Array) -> tuple[Array, Array]:
    """Factors (B,), (B,) of lengths and girths of archetypes mixed in their logarithms."""
    names = [name.removesuffix(".L").removesuffix(".R") for name in _table(plan.name).names]
    total = np.zeros((2, len(names)))
    for share, entries in zip(shares, plan.archetypes.values(), strict=True):
        for key, factors in entries.items():
            meant = names if key == "*" else key.split()
            total += share * np.outer(np.log(factors), [name in meant for name in names])
    return np.exp(total[0]), np.exp(total[1])


def _proportions(plan: Plan, rng: np.random.Generator) -> Proportions:
    lengths, girths = _mixture(plan, rng.dirichlet(np.full(len(plan.archetypes), 0.3)))
    partner = _table(plan.name).partner
    first = np.minimum(partner, np.arange(len(partner)))  # partners take the draw of the first

    def factor(spread: float) -> Array:
        return np.exp(spread * rng.normal(size=len(partner)).clip(-2.5, 2.5))[first]

    stoutness = np.exp(plan.spread[1] * rng.normal())
    lengths = lengths * factor(plan.spread[0])
    girths = girths * factor(plan.spread[1]) * stoutness
    swellings = 0.06 * rng.normal(size=len(partner)).clip(-2.0, 2.0)[first]
    return Proportions(lengths, girths, swellings)


def _soft(home: Array, size: float, rng: np.random.Generator, symmetric: bool = False) -> Array:
    """Smooth random vectors (n, 3) at points (n, 3): plane waves a fifth to a half of the size."""
    waves, strength = 10, 0.06
    direction = rng.normal(size=(waves, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    wave = direction * (2.0 * np.pi / size * rng.uniform(2.0, 5.0, waves))[:, None]
    phase = rng.uniform(0.0, 2.0 * np.pi, waves)
    push = strength * np.sqrt(2.0 / waves) * rng.normal(size=(waves, 3))
    mirror = np.array([-1.0, 1.0, 1.0])
    shift = np.cos(home @ wave.T + phase) @ push
    if symmetric:
        shift = (shift + mirror * (np.cos((home * mirror) @ wave.T + phase) @ push)) / np.sqrt(2.0)
    return np.asarray(shift)


def _pose(skeleton: Skeleton, rng: np.random.Generator, strength: float) -> Array:
    """Joint angles (B, 3) of a pose in which no limbs collide."""
    low, high = np.moveaxis(skeleton.limits, 2, 0)
    for _ in range(_POSES):
        # the mean of two uniforms: extremes of all joints at once are rare, as in scans
        u = rng.uniform(size=(2, *low.shape)).mean(axis=0)
        angles = strength * (low + u * (high - low))
        if not skeleton.collides(angles):
            return angles
    while skeleton.collides(angles):
        angles = 0.8 * angles
    return angles
