"""Creatures: closed and symmetric surfaces, exact correspondence, poses that hardly stretch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from driftworks.errors import UserError
from driftworks.shapes import creatures
from driftworks.shapes.bodyplans import ALL_PLANS
from driftworks.shapes.creatures import PLANS, Creature, correspondence, draw, family
from driftworks.shapes.implicit import is_sphere
from driftworks.shapes.mesh import Mesh, parts
from driftworks.shapes.repair import clean
from driftworks.shapes.skinning import Skeleton

COUNT = 1500
MIRROR = np.array([-1.0, 1.0, 1.0])
each_plan = pytest.mark.parametrize("plan", PLANS)


def some(plan: str, seed: int = 0, **options: object) -> Creature:
    return draw(plan, np.random.default_rng(seed), vertices=COUNT, **options)  # type: ignore[arg-type]


def lengths(points: NDArray[np.float64], mesh: Mesh) -> NDArray[np.float64]:
    ends = points[mesh.edges]
    return np.asarray(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1))


def volume(mesh: Mesh) -> float:
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    return float(np.einsum("ni,ni->", a, np.cross(b, c)) / 6.0)


@each_plan
def test_a_creature_is_one_closed_surface_of_genus_zero_facing_outwards(plan: str) -> None:
    mesh = some(plan).mesh
    sides = np.sort(mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    _, uses = np.unique(sides, axis=0, return_counts=True)
    assert (uses == 2).all()
    assert len(mesh) - len(uses) + len(mesh.faces) == 2
    assert parts(mesh).max() == 0
    assert volume(mesh) > 0.0
    assert abs(len(mesh) - COUNT) <= 0.01 * COUNT
    assert clean(mesh.vertices, mesh.faces).notes == ()


def test_a_pinched_an_open_and_a_doubled_sphere_are_no_sphere() -> None:
    faces = some("human").mesh.faces
    assert is_sphere(faces)
    assert not is_sphere(faces[1:])
    assert not is_sphere(np.concatenate((faces, faces + faces.max() + 1)))
    first = int(faces.max()) + 1
    pinched = np.concatenate((faces, np.where(faces == 0, 0, faces + first)))
    assert not is_sphere(pinched)


@each_plan
def test_triangles_are_well_shaped_at_rest_and_nearly_all_in_a_pose(plan: str) -> None:
    for pose in (0.0, 1.0):
        creature = some(plan, 3, pose=pose, softness=0.0)
        a, b, c = np.moveaxis(creature.mesh.vertices[creature.mesh.faces], 1, 0)
        area = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)
        edges = ((b - a) ** 2 + (c - b) ** 2 + (a - c) ** 2).sum(axis=1)
        quality = 4.0 * np.sqrt(3.0) * area / edges  # 1 for an equilateral triangle
        assert np.quantile(quality, 0.02) > 0.5
        assert quality.mean() > 0.85
        assert (quality < 0.1).mean() < 0.002


@each_plan
def test_an_individual_at_rest_is_its_own_mirror_image_in_correspondence(plan: str) -> None:
    creature = some(plan, 5, pose=0.0)
    mirror, faces = creature.mirror, creature.mesh.faces
    assert (mirror[mirror] == np.arange(len(mirror))).all()
    flipped = {tuple(np.roll(f, -int(f.argmin()))) for f in mirror[faces][:, ::-1]}
    assert flipped == {tuple(np.roll(f, -int(f.argmin()))) for f in faces}
    bare = some(plan, 5, pose=0.0, softness=0.0).mesh.vertices
    np.testing.assert_allclose(bare[mirror], bare * MIRROR, atol=1e-12)
    # the flesh alone breaks the symmetry, and not by much
    shift = np.linalg.norm(creature.rest[mirror] - creature.rest * MIRROR, axis=1)
    assert 0.0 < shift.max() < 0.05 * np.ptp(creature.rest)


@each_plan
def test_the_same_seed_gives_the_same_creature_whatever_the_count(plan: str) -> None:
    three = family(plan, 3, seed=4, vertices=COUNT)
    seven = family(plan, 7, seed=4, vertices=COUNT)
    for a, b in zip(three, seven, strict=False):
        assert a.digest == b.digest
    assert len({mesh.digest for mesh in seven}) == 7
    assert family(plan, 1, seed=5, vertices=COUNT)[0].digest != three[0].digest
    assert all(np.array_equal(mesh.faces, three[0].faces) for mesh in seven)


@each_plan
def test_poses_move_limbs_but_hardly_stretch_the_skin(plan: str) -> None:
    drawn = creatures.creatures(plan, 6, 2, vertices=COUNT)
    ratios, moved = [], []
    for creature in drawn:
        mesh = creature.mesh
        ratios.append(lengths(mesh.vertices, mesh) / lengths(creature.rest, mesh))
        low, high = np.moveaxis(creature.skeleton.limits, 2, 0)
        assert (creature.angles >= low - 1e-12).all() and (creature.angles <= high + 1e-12).all()
        size = np.ptp(creature.rest, axis=0).max()
        moved.append(np.linalg.norm(mesh.vertices - creature.rest, axis=1).max() / size)
    every = np.concatenate(ratios)
    assert min(moved) > 0.05
    assert np.quantile(np.abs(np.log(every)), 0.5) < 0.05
    low, high = np.quantile(every, [0.02, 0.98])
    assert low > 0.6 and high < 1.45


@each_plan
def test_individuals_differ_within_sensible_limits(plan: str) -> None:
    meshes = [mesh.normalised() for mesh in family(plan, 12, 1, vertices=COUNT, pose=0.0)]
    # of all bodies of area 1 the ball holds the most: 1 / (6 sqrt(pi)) = 0.094
    volumes = np.array([volume(mesh) for mesh in meshes])
    assert (volumes > 0.015).all() and (volumes < 0.06).all()
    extents = np.array([np.ptp(mesh.vertices, axis=0) for mesh in meshes])
    aspect = extents.max(axis=1) / extents.min(axis=1)
    assert (aspect > 1.5).all() and (aspect < 12.0).all()
    assert volumes.std() > 0.02 * volumes.mean()


def test_plans_differ() -> None:
    heights = {}
    for plan in PLANS:
        extent = np.ptp(some(plan, pose=0.0, softness=0.0).rest, axis=0)
        heights[plan] = extent[1] / extent[2]  # height over depth from front to back
    assert heights["human"] > 3.0 and heights["ape"] > 3.0
    assert heights["quadruped"] < 1.5 and heights["theropod"] < 1.5
    arm = {plan: some(plan).skeleton for plan in ("human", "ape")}
    reach = {
        plan: s.length[s.names.index("forearm.L")] / s.length[s.names.index("shin.L")]
        for plan, s in arm.items()
    }
    assert reach["ape"] > 1.5 * reach["human"]


def test_a_hand_held_against_the_thigh_is_not_bound_to_it() -> None:
    """The softmax of distances alone would bind it."""
    bones = list(ALL_PLANS["human"].bones)
    hand = next(i for i, bone in enumerate(bones) if bone.name == "hand")
    bones[hand] = replace(bones[hand], at=(0.215, 0.78, 0.0), by=(0.0, -0.08, 0.0))
    skeleton = Skeleton(bones)
    thigh = skeleton.names.index("thigh.L")
    palm = np.array([[0.19, 0.74, 0.0]])
    soft, _ = skeleton._owned(palm)
    weights = skeleton.weights(palm)
    assert soft[0].argmax() == skeleton.names.index("hand.L")
    assert soft[0, thigh] > 0.02
    assert weights[0, thigh] < 0.1 * soft[0, thigh]


@each_plan
def test_the_gradient_of_the_implicit_body_is_its_difference_quotient(plan: str) -> None:
    skeleton = some(plan, 7).skeleton
    low, high = skeleton.bounds()
    points = np.random.default_rng(1).uniform(low, high, (200, 3))
    step = 1e-6
    quotient = np.stack(
        [(skeleton.field(points + step * e) - skeleton.field(points - step * e)) / (2 * step)
         for e in np.eye(3)], axis=1
    )
    np.testing.assert_allclose(skeleton.gradient(points), quotient, rtol=1e-5, atol=1e-5)


def test_a_pose_of_the_root_alone_is_a_rigid_motion() -> None:
    creature = some("quadruped", 2)
    skeleton = creature.skeleton
    angles = np.zeros((len(skeleton), 3))
    angles[0] = 0.5, -0.3, 0.2
    weights = np.random.default_rng(0).dirichlet(np.ones(len(skeleton)), len(creature.rest))
    bent = skeleton.bend(creature.rest, weights, angles)
    turns, _ = skeleton.posed(angles)
    expected = (creature.rest - skeleton.start[0]) @ turns[0].T + skeleton.start[0]
    np.testing.assert_allclose(bent, expected, atol=1e-12)


def test_an_own_surface_matches_the_shared_one_of_the_same_individual() -> None:
    """Same draws, two triangulations: matched vertices lie a fraction of an edge apart in space."""
    own, shared = some("human", 6, own_surface=True), some("human", 6)
    assert is_sphere(own.mesh.faces)
    for a, b in ((own, shared), (shared, own)):
        index, off = correspondence(a, b)
        edge = lengths(b.mesh.vertices, b.mesh).mean()
        apart = np.linalg.norm(a.mesh.vertices - b.mesh.vertices[index], axis=1)
        assert apart.mean() < 0.75 * edge
        assert np.quantile(apart, 0.99) < 2.0 * edge
        assert off.mean() * np.sqrt(b.mesh.area) < 0.75 * edge
    mirrored = np.linalg.norm(own.home[own.mirror] - own.home * MIRROR, axis=1)
    assert mirrored.max() < 1e-6


def test_shared_topology_is_the_identity_and_a_common_skeleton_joins_plans() -> None:
    human, other, ape = some("human", 1), some("human", 2), some("ape", 1)
    index, off = correspondence(human, other)
    assert (index == np.arange(len(human.mesh))).all() and not off.any()
    index, off = correspondence(human, ape)
    assert np.quantile(off, 0.99) < 0.04
    skeleton = Skeleton(human.skeleton.bones)
    owner = [skeleton.weights(c.home).argmax(axis=1) for c in (human, ape)]
    same = owner[0] == owner[1][index]
    assert same.mean() > 0.85
    with pytest.raises(UserError, match="quadruped"):
        correspondence(human, some("quadruped"))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: draw("unicorn", np.random.default_rng(0)), "unicorn"),
        (lambda: family("unicorn", 2), "human, ape, quadruped"),
        (lambda: family("human", -1), "-1"),
        (lambda: family("human", 2, seed=-5), "-5"),
        (lambda: family("human", 2, own_surface=True), "own surfaces"),
        (lambda: some("human", pose=9.0), "9.0"),
        (lambda: draw("human", np.random.default_rng(0), vertices=10), "10"),
    ],
)
def test_impossible_wishes_are_refused_by_name(call: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        call()  # type: ignore[operator]
