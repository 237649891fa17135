"""Functional maps against identities, isometries, brute force, least squares and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from driftworks.errors import UserError
from driftworks.shapes import fmaps
from driftworks.shapes.descriptors import unit, wks
from driftworks.shapes.fmaps import (
    commutation_error,
    cycle_error,
    fit,
    fit_commuting,
    from_samples,
    from_vertices,
    laplacian_penalty,
    multiplications,
    nearest,
    orientations,
    orthogonal,
    orthogonality_error,
    resolvent_penalty,
    to_vertices,
    to_vertices_both,
)
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.spectrum import basis

K = 20


@pytest.fixture(scope="module")
def shape(lump):
    """A surface without symmetry, and its basis."""
    mesh = Mesh(*lump)
    return mesh, basis(mesh, 60, cache=False)


@pytest.fixture(scope="module")
def copy(shape):
    """The same surface with other numbers; `map21` says which vertex of `shape` each one is."""
    mesh, _ = shape
    map21 = np.random.default_rng(5).permutation(len(mesh.vertices))
    other = Mesh(mesh.vertices[map21], np.argsort(map21)[mesh.faces])
    return other, basis(other, 60, cache=False), map21


@pytest.fixture(scope="module")
def mirrored(shape):
    """The mirror image with the same numbers, faces turned to look outwards."""
    mesh, _ = shape
    other = Mesh(mesh.vertices * np.array([-1.0, 1, 1]), mesh.faces[:, ::-1])
    return other, basis(other, 60, cache=False)


def test_the_identity_map_is_the_identity_matrix(shape):
    _, b = shape
    every = np.arange(b.vertices)
    for c in (
        from_vertices(every, b, b),
        from_vertices(every, b, b, adjoint=True),
        from_samples(every[::3], every[::3], b, b),
    ):
        assert np.abs(c - np.eye(60)).max() < 1e-8


def test_an_isometry_is_orthogonal_and_diagonal(shape, copy):
    (_, b1), (_, b2, map21) = shape, copy
    for c in (
        from_vertices(map21, b1, b2),
        from_vertices(np.argsort(map21), b1, b2, adjoint=True),
        from_samples(map21[:200], np.arange(200), b1, b2),
    ):
        assert np.abs(np.abs(c) - np.eye(60)).max() < 1e-4
        assert orthogonality_error(c) < 1e-4
        assert commutation_error(c, b1.values, b2.values) < 1e-4


def test_an_isometry_with_multiple_eigenvalues_is_diagonal_in_blocks(sphere, rng):
    mesh = Mesh(*sphere(3))
    order = rng.permutation(len(mesh.vertices))
    turned = Mesh(mesh.vertices[order], np.argsort(order)[mesh.faces])
    c = from_vertices(order, *(basis(m, 16, cache=False) for m in (mesh, turned)))
    degree = np.repeat(np.arange(4), [1, 3, 5, 7])
    same = degree[:, None] == degree[None, :]
    assert np.abs(c[~same]).max() < 1e-8
    assert orthogonality_error(c) < 1e-8
    # inside a block the two bases are rotated against each other
    assert np.abs(c - np.diag(np.diag(c))).max() > 1e-3


def test_c_carries_functions_from_shape_1_to_shape_2(shape, copy, rng):
    (_, b1), (_, b2, map21) = shape, copy
    f = b1.synthesise(rng.standard_normal(60))
    c = from_vertices(map21, b1, b2)
    assert np.allclose(b2.synthesise(c @ b1.coefficients(f)), f[map21], atol=1e-3)


def test_maps_go_to_vertices_and_back_for_an_isometry(shape, copy):
    (_, b1), (_, b2, map21) = shape, copy
    c = from_vertices(map21, b1, b2)
    back = np.argsort(map21)
    for adjoint in (False, True):
        assert np.array_equal(to_vertices(c, b1, b2, adjoint=adjoint), map21)
        assert np.array_equal(to_vertices(c.T, b2, b1, adjoint=adjoint), back)
    found21, found12 = to_vertices_both(c, c.T, b1, b2)
    assert np.array_equal(found21, map21) and np.array_equal(found12, back)


def test_vertex_maps_follow_their_formulas_by_brute_force(shape, ellipsoid, rng):
    _, b1 = shape
    b2 = basis(Mesh(*ellipsoid(2)), 15, cache=False)
    c, d = rng.standard_normal((15, K)), rng.standard_normal((K, 15))
    one, two = b1.functions[:, :K], b2.functions
    apart = ((two[:, None] - (one @ c.T)[None]) ** 2).sum(2)
    there = ((one[None] - (two @ c)[:, None]) ** 2).sum(2)
    other = ((one[None] - (two @ d.T)[:, None]) ** 2).sum(2)
    assert np.array_equal(to_vertices(c, b1, b2), apart.argmin(1))
    assert np.array_equal(to_vertices(c, b1, b2, adjoint=True), there.argmin(1))
    map21, map12 = to_vertices_both(c, d, b1, b2)
    assert np.array_equal(map21, (apart + other).argmin(1))
    assert np.array_equal(map12, (apart + other).argmin(0))
    some1, some2 = np.array([3, 50, 7, 600]), np.array([9, 0])
    assert np.array_equal(
        to_vertices(c, b1, b2, samples1=some1, samples2=some2),
        some1[apart[np.ix_(some2, some1)].argmin(1)],
    )


def test_the_adjoint_search_minimises_the_distance_of_the_pulled_back_basis(shape, rng):
    _, b = shape
    c = orthogonal(rng.standard_normal((K, K)))
    one, two = b.functions[:, :K], b.functions[:, :K]
    best = np.linalg.norm(two @ c - one[to_vertices(c, b, b, adjoint=True)])
    for _ in range(20):
        other = to_vertices(c, b, b, adjoint=True)
        other[rng.integers(len(other))] = rng.integers(len(other))
        assert np.linalg.norm(two @ c - one[other]) >= best - 1e-12


def test_blocks_do_not_change_the_nearest_and_hold_their_bound(rng, monkeypatch):
    queries, targets = rng.standard_normal((500, 6)), rng.standard_normal((300, 6))
    whole = ((queries[:, None] - targets[None]) ** 2).sum(2).argmin(1)
    assert np.array_equal(nearest(queries, targets), whole)
    monkeypatch.setattr(fmaps, "BLOCK_BYTES", 8 * 300 * 7)
    assert np.array_equal(nearest(queries, targets), whole)


def test_no_array_of_all_pairs_is_made(rng):
    import tracemalloc

    queries = rng.standard_normal((6000, 2))
    tracemalloc.start()
    nearest(queries, queries)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # all pairs would take 288 MB, a block takes 17
    assert peak < 3 * fmaps.BLOCK_BYTES


def test_rows_of_a_fit_solve_their_own_least_squares(rng):
    a, b = rng.standard_normal((7, 30)), rng.standard_normal((5, 30))
    penalties = rng.random((5, 7))
    found = fit(a, b, penalties, 0.3)
    size = np.sqrt(0.3 * np.square(a).sum() / 7)
    for i in range(5):
        system = np.vstack([a.T, np.diag(size * np.sqrt(penalties[i]))])
        row = np.linalg.lstsq(system, np.append(b[i], np.zeros(7)), rcond=None)[0]
        assert np.allclose(found[i], row, rtol=1e-6, atol=1e-8)


def test_a_fit_without_penalties_is_plain_least_squares(rng):
    a, b = rng.standard_normal((7, 30)), rng.standard_normal((5, 30))
    expected = np.linalg.lstsq(a.T, b.T, rcond=None)[0].T
    assert np.allclose(fit(a, b), expected, atol=1e-7)
    assert np.allclose(fit(a, b, np.ones((5, 7)), 0.0), expected, atol=1e-7)


def test_a_batch_is_fitted_as_its_members_and_scale_does_not_matter(rng):
    a, b = rng.standard_normal((3, 6, 20)), rng.standard_normal((3, 4, 20))
    penalties = rng.random((3, 4, 6))
    whole = fit(a, b, penalties, 0.1)
    for i in range(3):
        assert np.allclose(whole[i], fit(a[i], b[i], penalties[i], 0.1))
        assert np.allclose(whole[i], fit(1e4 * a[i], 1e4 * b[i], penalties[i], 0.1))


def test_gradients_of_a_fit_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(3)
    a, b, p = (
        torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in [(2, 3, 5), (2, 2, 5), (2, 2, 3)]
    )
    assert torch.autograd.gradcheck(lambda *x: fit(*x, 0.2), (a, b, p))
    assert torch.autograd.gradcheck(fit, (a, b))


def test_single_precision_goes_in_and_comes_out():
    generator = torch.Generator().manual_seed(4)
    a, b = (torch.rand((k, 9), generator=generator) for k in (4, 3))
    found = fit(a, b)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), fit(a.double(), b.double()), atol=1e-5)
    assert orthogonality_error(found).dtype == torch.float32


def test_too_few_descriptors_leave_finite_maps(rng):
    a, b = rng.standard_normal((10, 3)), rng.standard_normal((10, 3))
    c = fit(a, b)
    assert np.isfinite(c).all()
    assert np.allclose(c @ a, b, atol=1e-4)


def test_penalties_of_equal_spectra_vanish_on_the_diagonal_and_have_mean_one(shape):
    values = shape[1].values
    for penalty in (laplacian_penalty, resolvent_penalty):
        found = penalty(values, values)
        assert np.abs(np.diag(found)).max() < 1e-12
        assert np.isclose(found.mean(), 1)
        assert np.allclose(found, found.T)
        assert np.allclose(found, penalty(100 * values, 100 * values))
        assert penalty(values[:7], values[:5]).shape == (5, 7)


def test_penalties_follow_their_formulas_by_hand():
    one, two = np.array([0.0, 4.0]), np.array([0.0, 1.0, 2.0])
    squares = np.array([[0, 16], [1, 9], [4, 4]]) / 16
    assert np.allclose(laplacian_penalty(one, two), squares / squares.mean())
    expected = np.array(
        [
            [abs(1 / (y**0.5 - 1j) - 1 / (x**0.5 - 1j)) ** 2 for x in one / 4]
            for y in two / 4
        ]
    )
    assert np.allclose(resolvent_penalty(one, two), expected / expected.mean())
    # real and imaginary parts of a resolvent at y = sqrt(lambda), as the literature writes them
    y, x = (two / 4)[:, None] ** 0.5, (one / 4)[None] ** 0.5
    real = y / (y**2 + 1) - x / (x**2 + 1)
    imaginary = 1 / (y**2 + 1) - 1 / (x**2 + 1)
    closed = real**2 + imaginary**2
    assert np.allclose(resolvent_penalty(one, two), closed / closed.mean())


def descriptors(b):
    return unit(wks(b, 40)[:, ::4], b.mass)


def test_descriptors_of_a_copy_are_fitted_by_an_exact_map(shape, copy):
    (_, b1), (_, b2, map21) = shape, copy
    one, two = b1.first(K), b2.first(K)
    a = one.coefficients(descriptors(b1))
    b = two.coefficients(descriptors(b1)[map21])
    c = fit(a, b, resolvent_penalty(one.values, two.values), 1e-2)
    expected = from_vertices(map21, one, two)
    assert np.abs(c - expected).max() < 0.05


def test_multiplication_operators_multiply(shape, rng):
    _, b = shape
    small = b.first(K)
    f, g = rng.standard_normal((b.vertices, 2)), small.synthesise(rng.standard_normal(K))
    found = multiplications(small, f)
    for i in range(2):
        assert np.allclose(found[i] @ small.coefficients(g), small.coefficients(f[:, i] * g))
    assert np.allclose(multiplications(small, np.ones((b.vertices, 1)))[0], np.eye(K), atol=1e-8)


def test_orientation_operators_are_those_of_gradients_and_normals(shape, rng):
    mesh, b = shape
    small = b.first(8)
    f = rng.standard_normal((b.vertices, 2))
    found = orientations(small, mesh.faces, f)
    corners = mesh.vertices[mesh.faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    twice = np.linalg.norm(cross, axis=1)
    normal = cross / twice[:, None]

    def gradient(u):
        # the gradient of a corner's hat function is the opposite edge turned by 90 degrees
        total = np.zeros((len(mesh.faces), 3))
        for c in range(3):
            edge = corners[:, (c + 2) % 3] - corners[:, (c + 1) % 3]
            turned = np.cross(normal, edge) / twice[:, None]
            total += u[mesh.faces[:, c], None] * turned
        return total

    for e in range(2):
        for j in range(8):
            wedge = np.cross(gradient(f[:, e]), gradient(small.functions[:, j]))
            density = (wedge * normal).sum(1) * twice / 2
            row = small.functions[mesh.faces].mean(1).T @ density
            assert np.allclose(found[e][:, j], row, atol=1e-10)


def test_a_mirror_turns_the_sign_of_orientation_operators(shape, mirrored):
    (mesh, b1), (image, b2) = shape, mirrored
    f = descriptors(b1)
    one = orientations(b1.first(K), mesh.faces, f)
    two = orientations(b2.first(K), image.faces, f)
    c = from_vertices(np.arange(b1.vertices), b1.first(K), b2.first(K))
    assert np.allclose(c @ one, -two @ c, atol=1e-4 * np.abs(one).max())
    # while multiplications do not see it
    one, two = multiplications(b1.first(K), f), multiplications(b2.first(K), f)
    assert np.allclose(c @ one, two @ c, atol=1e-4)


def test_the_wedge_is_antisymmetric_on_a_closed_surface(shape, rng):
    mesh, b = shape
    found = orientations(b.first(6), mesh.faces, rng.standard_normal((b.vertices, 1)))[0]
    # integrals of phi_i df ^ dphi_j over a closed surface: Stokes
    assert np.allclose(found, -found.T, atol=1e-10)


def test_blocks_of_faces_do_not_change_orientation_operators(shape, rng, monkeypatch):
    mesh, b = shape
    f = rng.standard_normal((b.vertices, 2))
    whole = orientations(b.first(6), mesh.faces, f)
    monkeypatch.setattr(fmaps, "BLOCK_BYTES", 8 * 8 * 6 * 100)
    assert np.allclose(orientations(b.first(6), mesh.faces, f), whole)


def test_a_fit_with_operators_is_the_dense_least_squares_solution(rng):
    k1, k2, d, e = 6, 5, 8, 3
    a, b = rng.standard_normal((k1, d)), rng.standard_normal((k2, d))
    of1, of2 = rng.standard_normal((e, k1, k1)), rng.standard_normal((e, k2, k2))
    penalties = rng.random((k2, k1))
    found = fit_commuting(a, b, [(of1, of2, 0.7)], penalties, 0.2, tolerance=1e-12)
    scale = np.square(a).sum() / k1
    unit_weight = 0.7 * np.square(a).sum() / (0.5 * (np.square(of1).sum() + np.square(of2).sum()))
    # rows of vec(C), numbered row by row
    system = [np.kron(np.eye(k2), a.T), np.diag(np.sqrt(0.2 * scale * penalties.ravel()))]
    right = [b.ravel(), np.zeros(k1 * k2)]
    for one, two in zip(of1, of2, strict=True):
        term = np.kron(np.eye(k2), one.T) - np.kron(two, np.eye(k1))
        system.append(np.sqrt(unit_weight) * term)
        right.append(np.zeros(k1 * k2))
    expected = np.linalg.lstsq(np.vstack(system), np.concatenate(right), rcond=None)[0]
    assert np.allclose(found.ravel(), expected, atol=1e-7)


def test_operators_of_no_weight_change_nothing(rng):
    a, b = rng.standard_normal((6, 9)), rng.standard_normal((6, 9))
    of = rng.standard_normal((2, 6, 6))
    assert np.allclose(fit_commuting(a, b, [(of, of, 0.0)]), fit(a, b))


def test_orientation_tells_a_shape_with_a_symmetry_from_its_flip(ellipsoid):
    points, faces = ellipsoid(3, (0.6, 1.0, 1.7))
    # almost mirror-symmetric in x: descriptors alone hardly tell the two sides apart
    points = points * (1 + 0.25 * np.exp(-4 * ((points - [0, 0.7, 1.0]) ** 2).sum(1)))[:, None]
    mesh = Mesh(points, faces)
    b = basis(mesh, 12, cache=False)
    f = unit(wks(b, 30)[:, ::5], b.mass)
    flip = np.array([
        ((points - p * np.array([-1, 1, 1])) ** 2).sum(1).argmin() for p in points
    ])
    right, wrong = from_vertices(np.arange(b.vertices), b, b), from_vertices(flip, b, b)
    operators = orientations(b, faces, f)
    size = np.linalg.norm(operators)

    def disagreement(c):
        return np.linalg.norm(c @ operators - operators @ c) / size

    assert disagreement(right) < 1e-6
    assert disagreement(wrong) > 1.5
    a = b.coefficients(f)
    # descriptors see no difference between the two maps
    assert np.linalg.norm(wrong @ a - a) < 1e-6 * np.linalg.norm(a)
    penalties = laplacian_penalty(b.values, b.values)
    plain = fit_commuting(a, a, [(multiplications(b, f),) * 2 + (0.1,)], penalties, 0.1)
    told = fit_commuting(a, a, [(operators, operators, 0.1)], penalties, 0.1)
    odd = np.abs(np.diag(wrong) + 1) < 1e-3
    assert odd.any()
    assert np.abs(np.diag(plain)[odd]).max() < 1e-3
    assert np.diag(told)[odd].min() > 0.2


def test_errors_vanish_for_perfect_maps_and_follow_their_formulas(rng):
    q, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    assert orthogonality_error(q) < 1e-12 < 0.1 < orthogonality_error(2 * q)
    assert np.isclose(orthogonality_error(2 * q), 3)
    assert orthogonality_error(q[:4]) < 1e-12
    assert cycle_error(q, q.T) < 1e-12
    assert np.isclose(cycle_error(q, -q.T), 2)
    p, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    assert cycle_error(q, p, (p @ q).T) < 1e-12
    values = np.arange(6.0)
    assert commutation_error(np.diag(rng.random(6)), values, values) < 1e-12
    c = np.zeros((6, 6))
    c[0, 3] = 1  # a function of eigenvalue 3 goes to a constant
    assert np.isclose(commutation_error(c, values, values), 1)
    assert commutation_error(np.zeros((2, 2)), values[:2], values[:2]) == 0


def test_errors_come_in_batches_with_gradients(rng):
    maps = torch.tensor(rng.standard_normal((4, 5, 5)), requires_grad=True)
    for error in (
        orthogonality_error(maps),
        cycle_error(maps, maps.mT),
        commutation_error(maps, np.arange(5.0), np.arange(5.0)),
    ):
        assert error.shape == (4,)
        (gradient,) = torch.autograd.grad(error.sum(), maps)
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    assert np.allclose(
        orthogonality_error(maps).detach().numpy(),
        [orthogonality_error(m) for m in maps.detach().numpy()],
    )


def test_the_nearest_orthogonal_map_has_unit_singular_values(rng):
    c = rng.standard_normal((4, 6))
    q = orthogonal(c)
    assert np.allclose(q @ q.T, np.eye(4))
    for _ in range(20):
        other = np.linalg.qr(rng.standard_normal((6, 4)))[0].T
        assert np.linalg.norm(other - c) >= np.linalg.norm(q - c)
    assert np.allclose(orthogonal(q), q)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: from_vertices([0, 1], b, b), "map21 has 2 entries, not 642"),
        (lambda b: from_vertices(np.full(642, 642), b, b), "map21 holds 642"),
        (lambda b: from_vertices(np.full(642, -1), b, b, adjoint=True), "map12 holds -1"),
        (lambda b: from_vertices(np.zeros(642), b, b), "vertex numbers"),
        (lambda b: from_samples([1, 2], [1, 2], b, b), "2 samples cannot fix a map onto 60"),
        (lambda b: from_samples([1], [1, 2], b, b.first(2)), "points1 has 1 entries"),
        (lambda b: to_vertices(np.eye(61), b, b), "60 functions; 61"),
        (lambda b: to_vertices(np.full((5, 5), np.nan), b, b), "not finite"),
        (lambda b: to_vertices(np.ones(5), b, b), "matrix"),
        (lambda b: to_vertices_both(np.eye(5), np.eye(4), b, b), "there and back"),
        (lambda b: fit(np.ones((3, 4)), np.ones((3, 5))), "one d"),
        (lambda b: fit(np.ones((3, 4)), np.ones((2, 4)), np.ones((3, 2)), 1.0), "penalties"),
        (lambda b: fit(np.ones((3, 4)), np.ones((2, 4)), np.ones((2, 3)), -1.0), "negative"),
        (lambda b: resolvent_penalty([0, 1], [0, 1], gamma=0), "gamma"),
        (lambda b: laplacian_penalty([0, 0], [0, 0]), "positive"),
        (lambda b: orientations(b, np.zeros((0, 3), int), np.ones((642, 1))), "point cloud"),
        (lambda b: fit_commuting(np.eye(3), np.eye(3), [(np.ones((2, 3, 3)),) * 2 + (-1.0,)]),
         "negative"),
        (lambda b: fit_commuting(np.eye(3), np.eye(3), [(np.ones((2, 4, 4)),) * 2 + (1.0,)]),
         "do not act"),
        (lambda b: cycle_error(np.ones((3, 2))), "do not close"),
        (lambda b: cycle_error(np.ones((3, 2)), np.ones((2, 4))), "4 functions follows"),
        (lambda b: cycle_error(), "at least one"),
    ],
)
def test_what_makes_no_sense_is_refused(shape, call, message):
    with pytest.raises(UserError, match=message):
        call(shape[1])
