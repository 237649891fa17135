"""Matching end to end, on surfaces whose correspondence is known."""

from __future__ import annotations

import numpy as np
import pytest

from driftworks.errors import UserError
from driftworks.shapes.creatures import draw
from driftworks.shapes.matching import match, match_collection
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.refinement import complete, refine, sample_maps
from driftworks.shapes.result import Match

QUICK = {"hypotheses": ("waves", "frames"), "finalists": 1}


def bent(points: np.ndarray, strength: float = 0.12) -> np.ndarray:
    """Points twisted about the third axis, more the higher they are."""
    angle = strength * points[:, 2]
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = points[:, 0], points[:, 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y, points[:, 2]], 1)


def motion(seed: int) -> np.ndarray:
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return turn * np.sign(np.linalg.det(turn))


def off(a: Mesh, vertices: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance from the truth in units of sqrt(area)."""
    gap = np.linalg.norm(a.vertices[vertices] - a.vertices[truth], axis=1)
    return float(gap.mean() / np.sqrt(a.area))


@pytest.fixture(scope="module")
def pair(sphere):
    """A ball with five spikes, unlike its mirror image, and the same twisted: truth is identity."""
    points, faces = sphere(3)
    spikes = np.random.default_rng(8).normal(size=(5, 3))
    spikes /= np.linalg.norm(spikes, axis=1, keepdims=True)
    radius = 1 + np.exp(10 * (points @ spikes.T - 1)) @ np.array([0.5, 0.8, 1.1, 1.4, 0.6])
    points = points * radius[:, None]
    return Mesh(points, faces, "a"), Mesh(bent(points), faces, "b")


@pytest.fixture(scope="module")
def found(pair):
    return match(*pair, **QUICK)


def test_a_twisted_surface_is_matched_both_ways(pair, found):
    a, b = pair
    every = np.arange(len(a))
    assert off(a, found.map_ba, every) < 0.02 and off(b, found.map_ab, every) < 0.02
    assert not found.failed and found.score > 0.9 and not found.mirrored
    assert found.c_ab.shape == found.c_ba.shape[::-1]
    assert found.confidence_b.mean() > 0.7
    assert found.hypotheses[0].name == found.hypothesis


def test_the_functional_map_agrees_with_the_vertex_map(pair, found):
    """C takes the coordinates of a, as smooth functions, to those that the vertex map pulls back.
    """
    from driftworks.shapes.spectrum import basis

    a, b = (mesh.normalised() for mesh in pair)
    k = len(found.c_ab)
    one, two = basis(a, k), basis(b, k)
    smooth = one.synthesise(one.coefficients(a.vertices))
    carried = two.synthesise(found.c_ab @ one.coefficients(a.vertices))
    assert np.abs(carried - smooth[found.map_ba]).mean() < 0.02


def test_numbering_motion_and_scale_do_not_matter(pair, found):
    a, b = pair
    order = np.random.default_rng(4).permutation(len(b))
    place = np.argsort(order)
    other = Mesh(40.0 * b.vertices[order] @ motion(1) - 7.0, place[b.faces])
    again = match(a, other, **QUICK)
    assert (again.map_ba == found.map_ba[order]).mean() > 0.98
    assert (order[again.map_ab] == found.map_ab).mean() > 0.98
    assert abs(again.score - found.score) < 0.01
    assert np.abs(again.confidence_b - found.confidence_b[order]).mean() < 0.01


def test_matching_takes_one_thread_and_gives_the_others_back(pair, monkeypatch):
    """Threads that wait for each other on a busy machine take many times the processor time."""
    from threadpoolctl import threadpool_info, threadpool_limits

    from driftworks.shapes import matching

    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info()}

    seen = []
    real = matching.prepare
    monkeypatch.setattr(matching, "prepare", lambda *a: seen.append(threads()) or real(*a))
    with threadpool_limits(limits=2):
        before = threads()
        match(*pair, **QUICK)
        assert threads() == before and 2 in before
    assert seen == [{1}]


def test_the_same_call_gives_the_same_match(pair, found):
    again = match(*pair, **QUICK)
    assert np.array_equal(again.map_ba, found.map_ba) and again.score == found.score


def test_a_mirror_image_is_matched_and_called_one(pair):
    a, b = pair
    other = Mesh(b.vertices * [-1, 1, 1], b.faces[:, ::-1])
    found = match(a, other, **QUICK)
    assert found.mirrored and off(a, found.map_ba, np.arange(len(a))) < 0.02
    assert any("mirror" in note for note in found.notes)


def test_unlike_shapes_fail_and_say_so(pair, torus):
    ring = Mesh(*torus(30, 16))
    found = match(pair[0], ring, **QUICK)
    assert found.failed and found.score < 0.5 and found.confidence_b.max() < 0.5
    assert any("looks right" in note for note in found.notes)


def test_an_open_surface_and_a_point_cloud_are_matched(bowl, pair):
    a, b = pair
    cut = a.vertices[:, 2] < 0.9
    place = np.cumsum(cut) - 1
    faces = place[a.faces[cut[a.faces].all(1)]]
    one, two = Mesh(a.vertices[cut], faces), Mesh(b.vertices[cut], faces)
    every = np.arange(len(one))
    found = match(one, two, **QUICK)
    assert off(one, found.map_ba, every) < 0.03
    cloud = match(Mesh(a.vertices, a.faces[:0]), b, hypotheses=("frames",), finalists=1)
    assert off(a, cloud.map_ba, np.arange(len(a))) < 0.05
    assert any("point cloud" in note for note in cloud.notes)


def test_what_cannot_be_matched_is_refused(pair, sphere):
    a, _ = pair
    triangle = Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    with pytest.raises(UserError, match="at least 20"):
        match(a, triangle)
    points, faces = sphere(2)
    two = Mesh(np.concatenate([points, points + 9]), np.concatenate([faces, faces + len(points)]))
    with pytest.raises(UserError, match="2 separate parts"):
        match(two, a)
    broken = a.vertices.copy()
    broken[3, 1] = np.nan
    with pytest.raises(UserError, match="not finite"):
        match(a, Mesh(broken, a.faces))
    with pytest.raises(UserError, match="magic"):
        match(a, a, hypotheses=("magic",))
    with pytest.raises(UserError, match="k must be"):
        match(a, a, k=3)


def test_few_vertices_are_matched_with_few_functions(sphere):
    points, faces = sphere(1)
    points = points * [1, 0.6, 1.7] * (1 + 0.2 * np.sin(2 * points[:, :1] + 3 * points[:, 2:]))
    a = Mesh(points, faces)
    b = Mesh(points @ motion(2), faces)
    found = match(a, b, k=150)
    assert len(found.c_ab) <= len(a) // 3
    assert off(a, found.map_ba, np.arange(len(a))) < 0.1


def test_a_match_survives_its_file(found, tmp_path):
    file = tmp_path / "match"
    found.save(file)
    again = Match.load(file)
    for name in ("map_ba", "map_ab", "c_ab", "c_ba", "confidence_a", "confidence_b"):
        assert np.array_equal(getattr(again, name), getattr(found, name))
    for name in ("score", "failed", "mirrored", "notes", "hypothesis"):
        assert getattr(again, name) == getattr(found, name)
    assert again.a.digest == found.a.digest and again.b.name == found.b.name
    assert [h.parts for h in again.hypotheses] == [h.parts for h in found.hypotheses]
    (tmp_path / "other.npz").write_bytes(b"not a match")
    with pytest.raises(UserError, match="no saved match"):
        Match.load(tmp_path / "other.npz")


def test_refining_mends_a_noisy_map(pair, rng):
    a, b = pair
    every = np.arange(len(a))
    noisy = every.copy()
    hit = rng.random(len(a)) < 0.4
    noisy[hit] = rng.choice(len(a), hit.sum())
    assert off(a, noisy, every) > 0.1
    mended = refine(noisy, a, b)
    assert off(a, mended.map_ba, every) < 0.02
    with pytest.raises(UserError, match="both of its meshes"):
        refine(noisy)
    with pytest.raises(UserError, match="642 vertices"):
        refine(noisy[:5], a, b)


def test_a_few_points_settle_what_symmetry_leaves_open(ellipsoid):
    """An ellipsoid has four rotations; two points say which of them is meant."""
    points, faces = ellipsoid(2, (1.0, 0.7, 1.6))
    a = Mesh(points, faces)
    turned = points * [-1, -1, 1]
    nearest = np.square(points[:, None] - turned[None]).sum(2).argmin(0)
    known = np.array([5, 70, 130])
    for truth in (np.arange(len(a)), nearest):
        found = complete(a, a, truth[known], known)
        assert off(a, found.map_ba, truth) < 0.1
        assert np.array_equal(found.map_ba[known], truth[known])
    with pytest.raises(UserError, match="one to one"):
        complete(a, a, [1, 2], [3])


def test_samples_of_a_map_spread_more_where_there_is_more_noise(found):
    still = sample_maps(found, 3, noise=0.0)
    assert still.maps_ba.shape == (3, len(found.b)) and still.spread_b.max() < 1e-12
    loose = sample_maps(found, 3, noise=2.0)
    assert loose.spread_b.mean() > 0.001
    assert np.array_equal(sample_maps(found, 3, noise=2.0).maps_ba, loose.maps_ba)


@pytest.mark.slow
def test_a_creature_is_matched_with_itself_in_another_pose_and_body():
    """The whole set of hypotheses on what it is made for; symmetric, so flips are possible."""
    rng = np.random.default_rng(11)
    for plan in ("human", "quadruped"):
        one, two = (draw(plan, rng, vertices=1500) for _ in range(2))
        found = match(one.mesh, two.mesh, optimise=20)
        assert not found.failed
        assert off(one.mesh, found.map_ba, np.arange(len(one.mesh))) < 0.06
        order = np.random.default_rng(5).permutation(len(two.mesh))
        other = Mesh(
            0.01 * two.mesh.vertices[order] @ motion(3), np.argsort(order)[two.mesh.faces]
        )
        again = match(one.mesh, other)
        assert off(one.mesh, again.map_ba, order) < 0.06


@pytest.mark.slow
def test_a_collection_shares_one_network():
    rng = np.random.default_rng(12)
    meshes = [draw("quadruped", rng, vertices=1500).mesh for _ in range(3)]
    found = match_collection(meshes, steps=10)
    assert set(found) == {(0, 1), (1, 2)}
    for pair in found.values():
        assert off(pair.a, pair.map_ba, np.arange(len(pair.a))) < 0.06
