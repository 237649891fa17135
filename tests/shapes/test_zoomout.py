"""ZoomOut on shapes whose correspondence is known: a renumbered copy, an isometric bend."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from driftworks.errors import UserError
from driftworks.shapes.fmaps import from_vertices, orthogonality_error, to_vertices
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.spectrum import basis
from driftworks.shapes.zoomout import farthest_points, zoomout, zoomout_both

START = 8


@pytest.fixture(scope="module")
def pair(lump):
    """An asymmetric surface and its renumbered copy: meshes, bases, map21."""
    points, faces = lump
    mesh = Mesh(points, faces)
    map21 = np.random.default_rng(6).permutation(len(points))
    other = Mesh(mesh.vertices[map21], np.argsort(map21)[faces])
    return mesh, other, basis(mesh, 60, cache=False), basis(other, 60, cache=False), map21


@pytest.fixture
def noisy(pair, rng):
    """A small map of the right correspondence with noise of 0.06 an entry.

    Of 100 draws none went astray at 0.08, in any variant, and one to six at 0.12.
    """
    *_, b1, b2, map21 = pair
    c = from_vertices(map21, b1.first(START), b2.first(START))
    return c + 0.06 * rng.standard_normal(c.shape)


def wrong(pair, map21):
    """Part of the vertices whose partner is not the right one."""
    return np.mean(map21 != pair[-1])


def distance(pair, map21):
    """Mean distance of partners from the right ones, in units of sqrt(area)."""
    mesh, *_, truth = pair
    gap = np.linalg.norm(mesh.vertices[map21] - mesh.vertices[truth], axis=1)
    return gap.mean() / np.sqrt(mesh.area)


@pytest.mark.parametrize("adjoint", [False, True])
def test_a_noisy_start_becomes_the_exact_renumbering(pair, noisy, adjoint):
    *_, b1, b2, truth = pair
    before = to_vertices(noisy, b1, b2)
    assert wrong(pair, before) > 0.02
    c, map21 = zoomout(noisy, b1, b2, step=4, adjoint=adjoint)
    assert np.array_equal(map21, truth)
    assert c.shape == (60, 60) and orthogonality_error(c) < 1e-4


def test_the_other_direction_is_the_transpose_with_bases_swapped(pair, noisy):
    *_, b1, b2, truth = pair
    _, map12 = zoomout(noisy.T, b2, b1, step=4)
    assert np.array_equal(map12, np.argsort(truth))


def test_both_directions_together_are_inverse_to_each_other(pair, noisy):
    *_, b1, b2, truth = pair
    found = zoomout_both(noisy, noisy.T, b1, b2, step=4)
    assert np.array_equal(found.map21, truth)
    assert np.array_equal(found.map12, np.argsort(truth))
    assert np.allclose(found.c21, found.c12.T, atol=1e-6)


def test_the_fast_variant_on_samples_agrees(pair, noisy):
    mesh, other, b1, b2, truth = pair
    samples2 = farthest_points(other.vertices, 200)
    _, map21 = zoomout(noisy, b1, b2, step=4, samples2=samples2)
    assert np.array_equal(map21, truth)
    # samples of shape 1 that are not those of shape 2: no exact partner is among them, and single
    # ones are off by the spacing of samples, 0.07 sqrt(area), which least squares average out
    samples1 = farthest_points(mesh.vertices * np.array([1.0, 1.3, 0.8]), 200)
    c, map21 = zoomout(noisy, b1, b2, k=40, step=4, samples1=samples1, samples2=samples2)
    assert distance(pair, map21) < 0.02
    full, _ = zoomout(noisy, b1, b2, k=40, step=4)
    assert np.linalg.norm(c - full) / np.linalg.norm(full) < 0.35


def test_the_fast_bijective_variant_agrees(pair, noisy):
    mesh, other, b1, b2, truth = pair
    samples = [farthest_points(m.vertices, 250) for m in (mesh, other)]
    found = zoomout_both(
        noisy, noisy.T, b1, b2, k=40, step=4, samples1=samples[0], samples2=samples[1]
    )
    assert np.array_equal(found.map21, truth)
    assert np.array_equal(found.map12, np.argsort(truth))


def test_a_bend_that_changes_no_distance_is_recovered(sheet, rng):
    rows, columns = 24, 14
    flat, faces = sheet(rows, columns)
    # unequal spacing takes the symmetries of the rectangle away
    x = flat[:, 0] ** 1.15
    y = flat[:, 1] + 0.02 * flat[:, 1] ** 2
    first = Mesh(np.stack([x, y, 0 * x], 1), faces)
    radius = 1.5 * x.max() / np.pi
    bent = np.stack([radius * np.sin(x / radius), y, radius * np.cos(x / radius)], 1)
    order = rng.permutation(len(flat))
    second = Mesh(bent[order], np.argsort(order)[faces])
    b1, b2 = basis(first, 40, cache=False), basis(second, 40, cache=False)
    start = from_vertices(order, b1.first(6), b2.first(6))
    start = start + 0.05 * rng.standard_normal(start.shape)
    _, map21 = zoomout(start, b1, b2, step=2)
    gap = np.linalg.norm(first.vertices[map21] - first.vertices[order], axis=1)
    assert gap.mean() < 0.5  # of an edge of length 1


def test_sizes_grow_by_the_step_to_k_and_keep_their_difference(pair):
    *_, b1, b2, truth = pair
    c = from_vertices(truth, b1.first(6), b2.first(9))
    assert zoomout(c, b1, b2, k=20, step=4)[0].shape == (20, 17)
    assert zoomout(c, b1, b2, step=7)[0].shape == (60, 57)
    # nothing to grow: one round of the same size mends the map
    rough = c + 0.05
    assert zoomout(rough, b1, b2, k=9)[0].shape == (9, 6)
    assert np.linalg.norm(zoomout(rough, b1, b2, k=9)[0] - c) < np.linalg.norm(rough - c)


def test_farthest_points_are_each_the_farthest_by_brute_force(rng):
    points = rng.standard_normal((80, 3))
    found = farthest_points(points, 30)
    gaps = cdist(points, points)
    assert found[0] == np.linalg.norm(points - points.mean(0), axis=1).argmax()
    for i in range(1, 30):
        assert found[i] == gaps[:, found[:i]].min(1).argmax()
    assert np.array_equal(farthest_points(points, 30), found)
    assert np.array_equal(farthest_points(points, 30, distances=lambda i: gaps[i]), found)


def test_farthest_points_do_not_depend_on_motion_or_numbering(rng):
    points = rng.standard_normal((200, 3))
    order = rng.permutation(200)
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    moved = (3 * points @ turn + 1)[order]
    assert np.array_equal(order[farthest_points(moved, 50)], farthest_points(points, 50))


def test_farthest_points_are_all_different_even_where_points_coincide():
    points = np.repeat(np.eye(3), 4, axis=0)
    found = farthest_points(points, 12)
    assert np.array_equal(np.sort(found), np.arange(12))
    assert len(np.unique(found[:3] // 4)) == 3


def test_parts_out_of_reach_are_sampled_first():
    points = np.arange(10.0)[:, None]

    def distances(i):
        gap = np.abs(points[:, 0] - i)
        return np.where((points[:, 0] < 5) == (i < 5), gap, np.inf)

    found = farthest_points(points, 2, distances=distances)
    assert (found[0] < 5) != (found[1] < 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: zoomout(np.eye(8), b, b, k=61), "k must be between 8 and 60, not 61"),
        (lambda b: zoomout(np.eye(8), b, b, k=7), "between 8 and 60, not 7"),
        (lambda b: zoomout(np.eye(8), b, b, step=0), "step"),
        (lambda b: zoomout(np.eye(61), b, b), "does not fit"),
        (lambda b: zoomout(np.ones(8), b, b), "matrix"),
        (lambda b: zoomout(np.eye(8), b, b, samples1=np.arange(99)), "alone"),
        (lambda b: zoomout(np.eye(8), b, b, samples2=np.arange(59)), "59 samples are too few"),
        (lambda b: zoomout(np.eye(8), b, b, samples2=np.full(99, 642)), "samples2 holds 642"),
        (lambda b: zoomout_both(np.eye(8), np.eye(8), b, b, samples2=np.arange(99)), "both"),
        (lambda b: zoomout_both(np.eye(8), np.eye(9), b, b), "there and back"),
        (lambda b: farthest_points(np.eye(3), 4), "4 of 3 points"),
        (lambda b: farthest_points(np.eye(3), 0), "0 of 3 points"),
        (lambda b: farthest_points(np.eye(3) * np.nan, 2), "finite"),
        (lambda b: farthest_points(np.eye(3), 2, distances=lambda i: np.zeros(2)), "not 3 num"),
    ],
)
def test_what_makes_no_sense_is_refused(pair, call, message):
    with pytest.raises(UserError, match=message):
        call(pair[2])
