"""Spectra against closed forms: the sphere, a square with free borders, a cylinder; laws of scale
and motion; a cache that survives damage.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from driftworks.data.cache import cache_folder
from driftworks.errors import UserError
from driftworks.shapes import spectrum
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.spectrum import Basis, basis, laplacian


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DRIFTWORKS_CACHE", str(tmp_path))
    return tmp_path / "shapes"


@pytest.fixture
def no_solver(monkeypatch):
    """Calling it makes every later solution fail: only the cache can answer."""

    def forbid():
        def solve(*_):
            raise AssertionError("solved again")

        monkeypatch.setattr(spectrum, "_solve", solve)

    return forbid


def rotation(rng):
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


def renumbered(mesh, rng):
    """The same surface with other vertex numbers, and for each new vertex its old number."""
    order = rng.permutation(len(mesh.vertices))
    place = np.argsort(order)
    return Mesh(mesh.vertices[order], place[mesh.faces]), order


def test_a_sphere_has_the_eigenvalues_of_the_spherical_harmonics(sphere):
    found = basis(Mesh(*sphere(4)), 49)
    degrees = np.repeat(np.arange(7), 2 * np.arange(7) + 1)
    exact = degrees * (degrees + 1)
    # linear elements of edge h = 0.07 are off by about lambda h^2 / 12
    assert np.allclose(found.values, exact, rtol=0.02, atol=1e-8)
    # members of one degree stay together: their spread is far below the gap to the next
    for degree in range(7):
        group = found.values[degrees == degree]
        assert np.ptp(group) < 0.02 * (2 * degree + 2)


def test_the_error_on_a_sphere_falls_with_the_square_of_the_edge_length(sphere):
    exact = np.repeat([0, 2, 6, 12], [1, 3, 5, 7])
    errors = [
        np.abs(basis(Mesh(*sphere(level)), 16).values - exact).max() for level in (2, 3, 4)
    ]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (np.abs(rates - 2) < 0.3).all(), rates


def test_the_first_functions_of_a_sphere_are_its_coordinates(sphere):
    points, faces = sphere(4)
    found = basis(Mesh(points, faces), 4)
    inside = found.functions[:, 1:] @ (found.coefficients(points)[1:])
    assert np.abs(inside - points).max() < 1e-3


def test_an_open_square_has_neumann_eigenvalues(sheet):
    points, faces = sheet(41, 41)
    found = basis(Mesh(points / 40, faces), 20)
    a, b = np.meshgrid(np.arange(10), np.arange(10))
    exact = np.sort((np.pi**2 * (a**2 + b**2)).ravel())[:20]
    assert np.allclose(found.values, exact, rtol=0.01, atol=1e-8)


def test_an_open_cylinder_has_the_spectrum_of_the_flat_strip_that_it_is(sheet):
    around, up = 60, 31
    i, j = np.meshgrid(np.arange(around), np.arange(up), indexing="ij")
    # chords of length 1/60: unrolled, the prism is a 1 x 0.5 rectangle that closes on itself
    radius = 1 / (2 * around * np.sin(np.pi / around))
    angle = 2 * np.pi * i / around
    height = 0.5 * j / (up - 1)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], -1).reshape(-1, 3)
    a, b = (np.arange(around)[:, None] * up + np.arange(up - 1)).ravel(), None
    b = (a + up) % (around * up)
    faces = np.concatenate([np.stack([a, b, b + 1], 1), np.stack([a, b + 1, a + 1], 1)])
    found = basis(Mesh(points, faces), 25)
    m, n = np.meshgrid(np.arange(-12, 13), np.arange(12))
    exact = np.sort(((2 * np.pi * m) ** 2 + (2 * np.pi * n) ** 2).ravel())[:25]
    assert np.allclose(found.values, exact, rtol=0.015, atol=1e-8)


def test_a_point_cloud_of_a_sphere_has_nearly_the_same_spectrum(sphere):
    points, _ = sphere(4)
    found = basis(Mesh(points, np.zeros((0, 3), np.int64)), 16)
    exact = np.repeat([0, 2, 6, 12], [1, 3, 5, 7])
    scale = found.area / (4 * np.pi)
    assert abs(scale - 1) < 0.05
    assert np.allclose(found.values * scale, exact, rtol=0.03, atol=1e-6)


def test_functions_are_orthonormal_and_solve_the_eigenproblem(bumpy_box):
    mesh = Mesh(*bumpy_box(3))
    found = basis(mesh, 30)
    stiffness, mass = laplacian(mesh)
    product = found.functions.T @ (mass[:, None] * found.functions)
    assert np.abs(product - np.eye(30)).max() < 1e-10
    residual = stiffness @ found.functions - mass[:, None] * found.functions * found.values
    assert np.abs(residual).max() < 1e-8
    assert np.allclose(found.mass.sum(), mesh.area, rtol=1e-6)


def test_lanczos_agrees_with_a_dense_solver(bumpy_box):
    mesh = Mesh(*bumpy_box(3))
    stiffness, mass = laplacian(mesh)
    dense = scipy.linalg.eigh(stiffness.toarray(), np.diag(mass), eigvals_only=True)
    assert np.allclose(basis(mesh, 60).values, dense[:60], rtol=1e-8, atol=1e-9)
    # 642 vertices: more than half of the spectrum takes the dense path
    assert np.allclose(basis(mesh, 400, cache=False).values, dense[:400], rtol=1e-8, atol=1e-9)


def test_scaling_divides_eigenvalues_by_its_square_and_functions_by_itself(bumpy_box):
    points, faces = bumpy_box(3)
    plain = basis(Mesh(points, faces), 20)
    for factor in (1e-6, 7.0, 1e5):
        scaled = basis(Mesh(factor * points, faces), 20)
        assert np.allclose(scaled.values * factor**2, plain.values, rtol=1e-7, atol=1e-9)
        assert np.allclose(scaled.functions * factor, plain.functions, atol=1e-6)
        assert np.allclose(scaled.mass, plain.mass * factor**2, rtol=1e-9)


def test_motion_and_renumbering_change_nothing_not_even_signs(lump, rng):
    points, faces = lump
    plain = basis(Mesh(points, faces), 20)
    moved, order = renumbered(
        Mesh(points @ rotation(rng).T + 10 * rng.standard_normal(3), faces), rng
    )
    found = basis(moved, 20)
    assert np.allclose(found.values, plain.values, rtol=1e-7, atol=1e-9)
    assert np.allclose(found.functions, plain.functions[order], atol=1e-5)


def test_equal_inputs_give_equal_bases_to_the_last_bit(torus):
    first, second = (basis(Mesh(*torus()), 12, cache=False) for _ in range(2))
    assert np.array_equal(first.functions, second.functions)


def test_the_first_function_is_a_positive_constant(bumpy_box):
    found = basis(Mesh(*bumpy_box(2)), 3)
    assert found.values[0] < 1e-9
    assert np.allclose(found.functions[:, 0], found.area**-0.5)


def test_two_separate_parts_have_two_functions_of_eigenvalue_zero(bumpy_box):
    points, faces = bumpy_box(3)
    both = Mesh(np.concatenate([points, points + 5]), np.concatenate([faces, faces + len(points)]))
    values = basis(both, 4).values
    assert values[1] < 1e-9 < 0.1 < values[2]


def test_a_nonmanifold_edge_is_no_obstacle(sheet):
    points, faces = sheet(20, 20)
    # a second sheet stands on the middle line of the first: three faces meet in its edges
    wall = points[:, [0, 2, 1]] + np.array([0, 9.0, 0])
    line = np.flatnonzero(points[:, 1] == 9)
    number = np.arange(len(points)) + len(points)
    number[np.flatnonzero(points[:, 1] == 0)] = line
    merged = np.concatenate([faces, number[faces]])
    used, corners = np.unique(merged, return_inverse=True)
    mesh = Mesh(np.concatenate([points, wall])[used], corners.reshape(-1, 3))
    values = basis(mesh, 5).values
    assert values[0] < 1e-9 < 1e-4 < values[1]


def test_coefficients_and_synthesis_are_inverse_within_the_span(bumpy_box, rng):
    found = basis(Mesh(*bumpy_box(2)), 10)
    coefficients = rng.standard_normal((10, 3))
    assert np.allclose(found.coefficients(found.synthesise(coefficients)), coefficients)
    one = found.synthesise(coefficients[:, 0])
    assert np.allclose(found.coefficients(one), coefficients[:, 0])


def test_a_basis_is_cut_by_first(bumpy_box):
    found = basis(Mesh(*bumpy_box(2)), 10)
    assert len(found.first(4)) == 4 and found.first(4).functions.shape == (162, 4)
    with pytest.raises(UserError, match="10 functions; 11"):
        found.first(11)


def test_the_cache_answers_a_second_call_and_smaller_ones(bumpy_box, no_solver):
    mesh = Mesh(*bumpy_box(2))
    found = basis(mesh, 12)
    no_solver()
    again = basis(mesh, 12)
    assert np.array_equal(again.functions, found.functions)
    assert np.array_equal(basis(mesh, 5).functions, found.functions[:, :5])
    with pytest.raises(AssertionError, match="solved again"):
        basis(mesh, 13)


def test_a_moved_vertex_is_another_entry(bumpy_box, cache):
    points, faces = bumpy_box(2)
    basis(Mesh(points, faces), 3)
    points[0] *= 1.01
    basis(Mesh(points, faces), 3)
    assert len(list(cache.iterdir())) == 2


def test_a_cache_that_is_not_wanted_is_neither_read_nor_written(bumpy_box, cache):
    basis(Mesh(*bumpy_box(2)), 3, cache=False)
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["empty", "half", "flipped", "other", "pickled", "nan"])
def test_a_damaged_cache_is_found_out_and_replaced(bumpy_box, cache, damage):
    mesh = Mesh(*bumpy_box(2))
    found = basis(mesh, 6)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "half":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 255])
        file.write_bytes(content[:middle] + flipped + content[middle + 1 :])
    elif damage == "other":
        np.savez(file, values=found.values, functions=found.functions[:-1], mass=found.mass[:-1])
    elif damage == "pickled":
        values = np.array([{"a": 1}], dtype=object)
        np.savez(file, values=values, functions=found.functions, mass=found.mass)
    else:
        np.savez(
            file, values=found.values * np.nan, functions=found.functions, mass=found.mass
        )
    assert np.allclose(basis(mesh, 6).functions, found.functions)
    assert np.array_equal(Basis(**np.load(file)).functions, found.functions)


def test_a_cache_that_cannot_be_written_is_a_warning(bumpy_box, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DRIFTWORKS_CACHE", str(tmp_path / "file"))
    assert cache_folder() == tmp_path / "file"
    with pytest.warns(UserWarning, match="not kept"):
        assert len(basis(Mesh(*bumpy_box(2)), 4)) == 4


@pytest.mark.parametrize("k", [0, -3, 163])
def test_a_basis_larger_than_the_mesh_or_empty_is_refused(bumpy_box, k):
    with pytest.raises(UserError, match=f"between 1 and the 162 vertices of mesh 'box', not {k}"):
        basis(Mesh(*bumpy_box(2), name="box"), k)


def test_all_functions_of_a_mesh_can_be_had(bumpy_box):
    found = basis(Mesh(*bumpy_box(1)), 42)
    assert np.allclose(found.functions.T @ (found.mass[:, None] * found.functions), np.eye(42))


def test_a_vertex_without_a_face_is_named(sphere):
    points, faces = sphere(2)
    with pytest.raises(UserError, match=r"1 vertices that no face uses \(the first is 162\)"):
        basis(Mesh(np.vstack([points, [[3.0, 0, 0]]]), faces), 4)


def test_three_points_are_no_cloud():
    with pytest.raises(UserError, match="3 points"):
        basis(Mesh(np.eye(3), np.zeros((0, 3), np.int64)), 2)


def test_a_mesh_without_area_is_refused():
    points = np.zeros((40, 3))
    faces = np.arange(38)[:, None] + np.arange(3)
    with pytest.raises(UserError, match="area|finite|Laplacian"):
        basis(Mesh(points, faces), 4)


def test_a_solver_that_fails_is_tried_again_with_another_shift(bumpy_box, monkeypatch):
    mesh = Mesh(*bumpy_box(3))
    right = basis(mesh, 8, cache=False)
    shifts = []
    real = spectrum.sparse_linalg.eigsh

    def eigsh(*args, **options):
        shifts.append(options["sigma"])
        if len(shifts) < 3:
            raise spectrum.sparse_linalg.ArpackNoConvergence("no convergence", [], [])
        return real(*args, **options)

    monkeypatch.setattr(spectrum.sparse_linalg, "eigsh", eigsh)
    assert np.allclose(basis(mesh, 8, cache=False).values, right.values, atol=1e-8)
    assert len(set(shifts)) == 3


def test_a_solver_that_always_fails_is_a_clear_error(bumpy_box, monkeypatch):
    def splu(*_, **__):
        raise RuntimeError("Factor is exactly singular")

    monkeypatch.setattr(spectrum.sparse_linalg, "splu", splu)
    with pytest.raises(UserError, match="8 eigenfunctions of mesh 'box' .*exactly singular"):
        basis(Mesh(*bumpy_box(3), name="box"), 8)


def test_a_wrong_solution_is_not_accepted(bumpy_box, monkeypatch):
    real = spectrum.sparse_linalg.eigsh

    def eigsh(*args, **options):
        values, vectors = real(*args, **options)
        return values * 1.01, vectors

    monkeypatch.setattr(spectrum.sparse_linalg, "eigsh", eigsh)
    with pytest.raises(UserError, match="residual"):
        basis(Mesh(*bumpy_box(3)), 8)
