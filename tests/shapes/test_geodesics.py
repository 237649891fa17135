"""Distances against spheres, tori and flat sheets, against networkx, and against each other."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest

from driftworks.errors import UserError
from driftworks.shapes import geodesics
from driftworks.shapes.geodesics import METHODS, distances
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.repair import clean

needs_exact = pytest.mark.skipif(
    importlib.util.find_spec("pygeodesic") is None, reason="pygeodesic is not installed"
)
METHODS_HERE = [
    pytest.param(method, marks=needs_exact if method == "exact" else ()) for method in METHODS
]


def great_circles(points, sources):
    return np.arccos(np.clip(points[sources] @ points.T, -1, 1))


def relative_error(found, truth):
    return np.abs(found - truth).mean() / truth.mean()


@pytest.fixture
def spheres(sphere):
    """Spheres of 162, 642 and 2562 vertices, their sources and their true distances."""
    out = []
    for level in (2, 3, 4):
        points, faces = sphere(level)
        sources = np.arange(0, 40, 5)
        out.append((Mesh(points, faces), sources, great_circles(points, sources)))
    return out


def test_heat_distances_on_a_sphere_come_within_a_per_cent(spheres):
    errors = [relative_error(distances(mesh, s), truth) for mesh, s, truth in spheres]
    assert errors[2] < 0.01
    assert errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2]


@needs_exact
def test_exact_distances_on_a_sphere_converge_at_second_order(spheres):
    errors = [relative_error(distances(mesh, s, "exact"), truth) for mesh, s, truth in spheres[:2]]
    assert errors[1] < 0.003
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)


def test_edge_distances_on_a_sphere_do_not_converge(spheres):
    errors = [relative_error(distances(mesh, s, "edges"), truth) for mesh, s, truth in spheres]
    assert 0.02 < errors[2] < 0.12


@needs_exact
def test_edges_are_never_shorter_than_exact_and_heat_is_near(bumpy_box):
    mesh = Mesh(*bumpy_box(3))
    sources = [0, 100, 333]
    exact, edges, heat = (distances(mesh, sources, m) for m in ("exact", "edges", "heat"))
    assert (edges >= exact * (1 - 1e-9)).all()
    assert (edges > exact * 1.02).mean() > 0.3
    assert relative_error(heat, exact) < 0.04


@needs_exact
def test_exact_distances_on_a_flat_sheet_are_straight_lines(sheet):
    points, faces = sheet(12, 9)
    sources = [0, 40, 107]
    straight = np.linalg.norm(points[sources][:, None] - points, axis=2)
    found = distances(Mesh(points, faces), sources, "exact")
    np.testing.assert_allclose(found, straight, atol=1e-9)


@pytest.mark.parametrize("method", METHODS_HERE)
def test_meridians_and_the_inner_equator_of_a_torus_are_shortest_paths(method, torus):
    u, v = 80, 40
    mesh = Mesh(*torus(u, v, 1.0, 0.4))
    inner = v // 2
    along = distances(mesh, inner, method)[0].reshape(u, v)
    i, j = np.arange(u), np.arange(v)
    equator = 0.6 * 2 * np.pi * np.minimum(i, u - i) / u
    meridian = 0.4 * 2 * np.pi * np.abs(j - inner) / v
    tolerance = 0.06 if method == "heat" else 0.01
    np.testing.assert_allclose(along[:, inner], equator, atol=tolerance * equator.max())
    np.testing.assert_allclose(along[0], meridian, atol=tolerance * equator.max())


def test_edge_distances_are_those_of_networkx(bumpy_box):
    mesh = Mesh(*bumpy_box(2))
    graph = nx.Graph()
    for face in mesh.faces.tolist():
        for i, j in zip(face, face[1:] + face[:1], strict=True):
            graph.add_edge(i, j, length=float(np.linalg.norm(mesh.vertices[i] - mesh.vertices[j])))
    table = distances(mesh, [5, 60], "edges")
    for row, source in zip(table, (5, 60), strict=True):
        found = nx.single_source_dijkstra_path_length(graph, source, weight="length")
        np.testing.assert_allclose(row, [found[v] for v in range(len(mesh))], rtol=1e-12)


@pytest.mark.parametrize("method", METHODS_HERE)
def test_a_distance_is_zero_at_its_source_and_obeys_the_triangle_inequality(method, bumpy_box):
    mesh = Mesh(*bumpy_box(3))
    sources = np.arange(0, len(mesh), 30)
    table = distances(mesh, sources, method)
    inside = table[:, sources]
    assert (table >= 0).all() and np.isfinite(table).all()
    assert (np.diag(inside) == 0).all()
    # heat distances are no metric; they miss by their own error
    slack = 0.06 * table.max() if method == "heat" else 1e-9
    np.testing.assert_allclose(inside, inside.T, atol=slack)
    through = (inside[:, :, None] + table[None]).min(1)
    assert (table <= through + slack).all()


@pytest.mark.parametrize("method", METHODS_HERE)
@pytest.mark.parametrize("scale", [1e-60, 1e-6, 1e5, 1e60])
def test_distances_follow_scale_motion_and_renumbering(method, scale, bumpy_box, rng):
    points, faces = bumpy_box(2)
    plain = distances(Mesh(points, faces), [3, 77], method)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    number = rng.permutation(len(points))
    moved = np.empty_like(points)
    moved[number] = scale * (points @ turn.T + rng.normal(size=3))
    shuffled = Mesh(moved, rng.permutation(number[faces]))
    table = distances(shuffled, number[[3, 77]], method)[:, number] / scale
    np.testing.assert_allclose(table, plain, atol=1e-6 * plain.max())


def test_heat_distances_of_a_cloud_are_those_of_its_surface(sphere):
    points, _ = sphere(3)
    truth = great_circles(points, np.array([0, 50]))
    assert relative_error(distances(clean(points), [0, 50]), truth) < 0.04


def test_sources_may_repeat_in_any_order_and_one_number_is_a_list(bumpy_box):
    mesh = Mesh(*bumpy_box(1))
    table = distances(mesh, [9, 2, 9, 30])
    assert table.shape == (4, len(mesh)) and table.dtype == np.float64
    for row, source in zip(table, (9, 2, 9, 30), strict=True):
        np.testing.assert_array_equal(row, distances(mesh, source)[0])


# Surfaces that are no manifolds.


def book(sphere):
    """A sphere with a page on one edge."""
    points, faces = sphere(2)
    a, b = faces[0, :2]
    page = 1.4 * (points[a] + points[b]) / 2
    return clean(np.concatenate([points, [page]]), np.concatenate([faces, [[a, b, len(points)]]]))


def test_heat_distances_pass_an_edge_with_three_faces(sphere):
    mesh = book(sphere)
    assert any("non-manifold" in note for note in mesh.notes)
    table = distances(mesh, [0, 90])
    assert np.isfinite(table).all()
    truth = great_circles(mesh.vertices[:-1], np.array([0, 90]))
    assert relative_error(table[:, :-1], truth) < 0.06


@needs_exact
def test_exact_distances_refuse_an_edge_with_three_faces(sphere):
    with pytest.raises(UserError, match="edges with more than two faces or .*; take method='heat'"):
        distances(book(sphere), 0, "exact")


def kissing(sphere):
    """Two spheres with one vertex in common, and the vertex of the first opposite to it."""
    points, faces = sphere(2)
    other = 2 * points[0] - points
    shared = np.where(faces == 0, 0, faces + len(points) - 1)
    mesh = clean(np.concatenate([points, other[1:]]), np.concatenate([faces, shared]))
    return mesh, int(np.argmin(points @ points[0]))


@pytest.mark.parametrize("method", ["heat", "edges"])
def test_distances_go_through_a_vertex_where_two_bodies_touch(method, sphere):
    mesh, far = kissing(sphere)
    table = distances(mesh, far, method)[0]
    assert table[0] == pytest.approx(np.pi, rel=0.06)
    assert table.max() == pytest.approx(2 * np.pi, rel=0.06)


@needs_exact
def test_exact_distances_refuse_bodies_that_touch_in_a_vertex(sphere):
    with pytest.raises(UserError, match="vertices where it only touches itself"):
        distances(*kissing(sphere), "exact")


def test_the_way_round_a_cut_is_longer(bowl):
    points, faces = bowl(3, 0.5)
    mesh = clean(points, faces)
    rim = np.flatnonzero(points[:, 2] > 0.3)
    a = rim[np.argmax(points[rim, 0])]
    b = rim[np.argmin(points[rim, 0])]
    # on the whole sphere the short way leads over the missing cap
    over = great_circles(points, np.array([a]))[0, b]
    assert distances(mesh, a, "edges")[0, b] > 1.03 * over
    assert distances(mesh, a)[0, b] > 1.03 * over


# Mistakes.


@pytest.mark.parametrize(
    ("sources", "method", "message"),
    [
        ([0], "fast", r"unknown method of geodesics 'fast'; choose from \('heat', 'exact', 'ed"),
        ([0, 42], "heat", "source 42 is no vertex; they go from 0 to 41"),
        ([-1], "heat", "source -1 is no vertex"),
        ([0.5], "heat", r"sources must be a list of vertex numbers, not \[0.5\]"),
        ([], "edges", r"sources must be a list of vertex numbers, not \[\]"),
        ([[0, 1]], "edges", "sources must be a list of vertex numbers"),
        (["a"], "edges", "sources must be a list of vertex numbers"),
    ],
)
def test_a_mistake_is_an_error_that_names_it(sources, method, message, sphere):
    with pytest.raises(UserError, match=message):
        distances(Mesh(*sphere(1)), sources, method)


@pytest.mark.parametrize("method", ["exact", "edges"])
def test_a_cloud_has_heat_distances_only(method, sphere):
    with pytest.raises(UserError, match="need faces; for a point cloud take method='heat'"):
        distances(clean(sphere(2)[0]), 0, method)


@pytest.mark.parametrize("method", METHODS)
def test_a_mesh_in_two_parts_has_no_distances(method, sphere):
    points, faces = sphere(1)
    two = Mesh(np.concatenate([points, points + 5]), np.concatenate([faces, faces + len(points)]))
    with pytest.raises(UserError, match="no distances between the 2 separate parts"):
        distances(two, 0, method)


def test_a_table_that_is_too_large_names_what_fits(sphere, monkeypatch):
    mesh = Mesh(*sphere(1))
    monkeypatch.setattr(geodesics, "MEMORY_LIMIT", 8 * 42 * 10)
    assert distances(mesh, np.arange(10), "edges").shape == (10, 42)
    with pytest.raises(UserError, match="ask for at most 10 sources at a time"):
        distances(mesh, np.arange(11), "edges")


def test_without_pygeodesic_exact_distances_say_what_to_install(sphere, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install pygeodesic"):
        distances(replace(Mesh(*sphere(1)), name="ball"), 0, "exact")
