"""Meshes against closed forms, their repair against brute force with networkx and trimesh."""

from __future__ import annotations

import pickle
from itertools import combinations

import networkx as nx
import numpy as np
import pytest
import trimesh

from driftworks.errors import UserError
from driftworks.shapes import repair
from driftworks.shapes.mesh import Mesh, parts
from driftworks.shapes.repair import clean


def triangles_in_space(mesh):
    """The faces as a set of cycles of points: numbers of vertices and faces play no part."""
    out = set()
    for face in mesh.vertices[mesh.faces].tolist():
        corners = [tuple(p) for p in face]
        first = corners.index(min(corners))
        out.add(tuple(corners[first:] + corners[:first]))
    return out


def as_trimesh(mesh):
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


# Areas and normals.


def test_areas_of_sphere_and_torus_converge_with_the_square_of_the_edge(sphere, torus):
    pairs = [(sphere(k), 4 * np.pi) for k in (1, 2, 3)]
    errors = [1 - Mesh(*arrays).area / area for arrays, area in pairs]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)
    coarse, fine = (1 - Mesh(*torus(24 * k, 12 * k)).area / (1.6 * np.pi**2) for k in (1, 2))
    assert coarse / fine == pytest.approx(4, rel=0.1)


def test_areas_of_vertices_are_thirds_of_their_faces(bumpy_box):
    mesh = Mesh(*bumpy_box(2))
    expected = np.zeros(len(mesh))
    for a, b, c in mesh.faces:
        p, q, r = mesh.vertices[[a, b, c]]
        sides = sorted(np.linalg.norm(d) for d in (q - p, r - q, p - r))
        half = sum(sides) / 2
        expected[[a, b, c]] += np.sqrt(half * np.prod([half - s for s in sides])) / 3
    np.testing.assert_allclose(mesh.vertex_areas, expected, rtol=1e-9)
    assert mesh.area == pytest.approx(as_trimesh(mesh).area, rel=1e-12)


def test_normals_of_an_ellipsoid_are_its_gradient(ellipsoid):
    axes = np.array([1.0, 0.7, 1.6])

    def error(level):
        mesh = Mesh(*ellipsoid(level))
        gradient = mesh.vertices / axes**2
        gradient /= np.linalg.norm(gradient, axis=1, keepdims=True)
        return np.sqrt(((mesh.normals - gradient) ** 2).sum(1).mean())

    assert error(4) < 0.01
    assert error(4) < error(3) / 1.8


def test_a_cloud_has_the_area_and_the_normals_of_its_surface(ellipsoid):
    points, faces = ellipsoid(3)
    cloud, surface = clean(points), clean(points, faces)
    assert cloud.is_cloud and len(cloud.faces) == 0
    assert cloud.area == pytest.approx(surface.area, rel=0.02)
    assert (cloud.vertex_areas > 0).all()
    assert ((cloud.normals * surface.normals).sum(1) > 0.97).all()
    np.testing.assert_allclose(np.linalg.norm(cloud.normals, axis=1), 1)


def test_normals_of_a_cloud_agree_with_their_neighbours_where_it_is_not_convex(torus):
    points, faces = torus(60, 30)
    inner = (clean(points).normals * clean(points, faces).normals).sum(1)
    assert (inner > 0.9).all()


def test_normals_are_zero_where_faces_cancel():
    points = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    mesh = Mesh(points, np.array([[0, 1, 2], [0, 2, 1]]))
    np.testing.assert_array_equal(mesh.normals, 0)


# Scale and identity.


@pytest.mark.parametrize("scale", [1e-75, 1e-6, 1.0, 1e6, 1e75])
def test_scale_and_place_leave_the_normalised_mesh(scale, bumpy_box):
    points, faces = bumpy_box(2)
    plain = clean(points, faces).normalised()
    moved = clean(scale * (points + [3.0, -2.0, 1.0]), faces)
    assert moved.notes == ()
    assert moved.area == pytest.approx(scale**2 * clean(points, faces).area)
    np.testing.assert_allclose(moved.normalised().vertices, plain.vertices, atol=1e-12)
    np.testing.assert_allclose(moved.normals, Mesh(points, faces).normals, atol=1e-9)
    soup = clean((scale * points[faces]).reshape(-1, 3), np.arange(faces.size).reshape(-1, 3))
    assert len(soup) == len(points)


def test_a_normalised_mesh_has_area_one_and_its_centre_of_mass_at_the_origin(bumpy_box):
    mesh = clean(*bumpy_box(2), name="box").normalised()
    solid = as_trimesh(mesh)
    assert mesh.area == pytest.approx(1)
    centre = (solid.triangles.mean(1) * solid.area_faces[:, None]).sum(0)
    np.testing.assert_allclose(centre, 0, atol=1e-12)
    assert mesh.name == "box"


def test_a_normalised_cloud_has_area_one(ellipsoid):
    assert clean(ellipsoid(3)[0] * 40).normalised().area == pytest.approx(1)


def test_a_digest_is_of_vertices_and_faces_alone(sphere):
    points, faces = sphere(1)
    mesh = Mesh(points, faces)
    assert mesh.digest == Mesh(points, faces, "other", ("note",), np.zeros(7, np.int64)).digest
    nudged = points.copy()
    nudged[3, 1] = np.nextafter(nudged[3, 1], 2)
    others = [Mesh(nudged, faces), Mesh(points, faces[1:]), Mesh(points, faces[:0])]
    assert len({mesh.digest, *(other.digest for other in others)}) == 4
    assert len(mesh.digest) == 64


def test_arrays_are_copies_that_cannot_be_written(sphere):
    points, faces = sphere(1)
    mesh = Mesh(points, faces)
    points[0] = 7
    assert mesh.vertices[0, 0] != 7
    for array in (mesh.vertices, mesh.faces, mesh.origin):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_a_mesh_goes_through_a_pickle(bumpy_box):
    mesh = clean(*bumpy_box(1), name="box")
    assert mesh.area > 0
    again = pickle.loads(pickle.dumps(mesh))  # noqa: S301
    assert again.digest == mesh.digest and again.name == "box"


def test_edges_are_the_pairs_within_faces(bumpy_box):
    mesh = Mesh(*bumpy_box(1))
    expected = {pair for face in mesh.faces.tolist() for pair in combinations(sorted(face), 2)}
    assert {tuple(pair) for pair in mesh.edges.tolist()} == expected
    assert len(mesh.edges) == len(expected)


# Repair.


@pytest.mark.parametrize("kind", ["sphere", "torus", "bumpy_box", "ellipsoid"])
def test_a_clean_mesh_comes_back_bit_for_bit_without_a_note(kind, request):
    points, faces = request.getfixturevalue(kind)()
    mesh = clean(points, faces, kind)
    assert mesh.is_manifold
    np.testing.assert_array_equal(mesh.vertices, points)
    np.testing.assert_array_equal(mesh.faces, faces)
    np.testing.assert_array_equal(mesh.origin, np.arange(len(points)))
    assert mesh.notes == () and mesh.name == kind


def test_a_soup_of_triangles_is_put_together(bumpy_box, rng):
    points, faces = bumpy_box(2)
    order = rng.permutation(len(faces))
    corners = points[faces[order]].reshape(-1, 3)
    mesh = clean(corners, np.arange(len(corners)).reshape(-1, 3))
    assert len(mesh) == len(points) and len(mesh.faces) == len(faces)
    assert mesh.notes == (f"merged {len(corners) - len(points):,} duplicate vertices",)
    np.testing.assert_array_equal(mesh.vertices[mesh.origin], corners)
    assert triangles_in_space(mesh) == triangles_in_space(Mesh(points, faces))


def test_every_defect_at_once_is_mended_and_origin_stays_right(bumpy_box, rng):
    points, faces = bumpy_box(2)
    clean_triangles = triangles_in_space(Mesh(points, faces))
    n = len(points)
    # copies of vertices, used by half of the faces around them
    copied = rng.choice(n, 20, replace=False)
    away = rng.normal(size=(15, 3)) + 5.0
    source = np.concatenate([points, points[copied], away])
    messy = faces.copy()
    for k, v in enumerate(copied):
        at = np.argwhere(messy == v)
        for f, c in at[: len(at) // 2]:
            messy[f, c] = n + k
    turned = rng.random(len(messy)) < 0.3
    messy[turned] = messy[turned, ::-1]
    doubled = messy[rng.choice(len(messy), 9, replace=False)]
    doubled = np.stack([rng.permutation(face) for face in doubled])
    one, two = faces[:6, 0], faces[:6, 1]
    thin = np.stack([one, two, one], 1)
    messy = np.concatenate([messy, doubled, thin])
    # renumber everything
    number = rng.permutation(len(source))
    shuffled = np.empty_like(source)
    shuffled[number] = source
    mesh = clean(shuffled, rng.permutation(number[messy]))
    assert triangles_in_space(mesh) == clean_triangles
    expected = source.copy()
    nearest = np.linalg.norm(away[:, None] - points, axis=2).argmin(1)
    expected[n + 20 :] = points[nearest]
    np.testing.assert_array_equal(mesh.vertices[mesh.origin[number]], expected)
    solid = as_trimesh(mesh)
    assert solid.is_winding_consistent and solid.volume > 0
    for what in (
        "merged 20 duplicate vertices",
        "dropped 6 faces without an area",
        "dropped 9 duplicate faces",
        "dropped 15 vertices without a face; the nearest vertex stands for each",
    ):
        assert what in mesh.notes


def test_vertices_that_nearly_coincide_are_merged_and_those_further_apart_are_not(sphere):
    points, faces = sphere(2)
    for shift, merged in ((1e-9, True), (1e-5, False)):
        doubled = np.concatenate([points, points[:1] + [shift, 0, 0]])
        other = faces.copy()
        first = np.argwhere(other == 0)[0]
        other[tuple(first)] = len(points)
        mesh = clean(doubled, other)
        assert len(mesh) == len(points) + (not merged)
        assert mesh.origin[-1] == (0 if merged else len(points))
        assert any("open surface" in note for note in mesh.notes) == (not merged)


def test_a_closed_surface_that_touches_itself_is_left_as_it_is(torus):
    """A tube pinched until two opposite points of it coincide is still a tube."""
    points, faces = torus(40, 20)
    a, b = 5 * 20 + 5, 5 * 20 + 15
    points[b] = points[a]
    mesh = clean(points, faces)
    assert len(mesh) == len(points) and mesh.is_manifold
    assert mesh.notes == ()


def test_an_edge_without_length_is_collapsed(sphere):
    points, faces = sphere(2)
    a, b = sorted(faces[17, :2].tolist())
    points[b] = points[a]
    mesh = clean(points, faces)
    assert mesh.notes == ("merged 1 duplicate vertex", "dropped 2 faces without an area")
    assert mesh.is_manifold and len(mesh) == len(points) - 1
    assert mesh.origin[b] == mesh.origin[a] == a


def test_thousands_of_vertices_at_one_place_take_little_memory(sphere):
    points, faces = sphere(2)
    crowd = np.repeat(points[:1], 60_000, 0) + 1e-12 * np.arange(60_000)[:, None] / 60_000
    mesh = clean(np.concatenate([points, crowd]), faces)
    assert len(mesh) == len(points)
    np.testing.assert_array_equal(mesh.origin[len(points) :], 0)


def test_a_stray_vertex_far_away_does_not_melt_the_mesh(sphere):
    points, faces = sphere(2)
    mesh = clean(np.concatenate([points, [[1e12, 0, 0]]]), faces)
    assert len(mesh) == len(points)
    assert mesh.vertices[mesh.origin[-1], 0] == points[:, 0].max()


def test_three_corners_on_a_line_are_no_face(sphere):
    points, faces = sphere(2)
    a, b = faces[0, :2]
    middle = (points[a] + points[b]) / 2
    more = np.concatenate([points, [middle]])
    mesh = clean(more, np.concatenate([faces, [[a, b, len(points)]]]))
    assert "dropped 1 face without an area" in mesh.notes
    assert len(mesh.faces) == len(faces)
    assert mesh.origin[-1] in np.argsort(np.linalg.norm(points - middle, axis=1))[:2]


# Separate parts.


def test_small_separate_parts_go_and_their_vertices_are_mapped_to_the_nearest(sphere):
    points, faces = sphere(2)
    crumb = 0.1 * points + [2.0, 0, 0]
    mesh = clean(np.concatenate([crumb, points]), np.concatenate([faces, faces + len(points)]))
    assert len(mesh) == len(points)
    assert mesh.notes == ("dropped 1 small separate part, 0.99% of the area",)
    nearest = np.linalg.norm(crumb[:, None] - points, axis=2).argmin(1)
    np.testing.assert_array_equal(mesh.origin[: len(points)], nearest)
    np.testing.assert_array_equal(mesh.origin[len(points) :], np.arange(len(points)))


def test_parts_of_some_size_are_an_error_that_names_their_shares(sphere):
    points, faces = sphere(2)
    n = len(points)
    three = np.concatenate([points, 0.5 * points + 3.0, 0.05 * points - 3.0])
    with pytest.raises(UserError, match=r"3 separate parts with 79\.8%, 20\.0%, 0\.2% of the area"):
        clean(three, np.concatenate([faces, faces + n, faces + 2 * n]))


def test_many_crumbs_that_are_a_large_share_together_are_an_error(sphere):
    points, faces = sphere(1)
    n = len(points)
    crumbs = [points] + [0.2 * points + 3.0 * k for k in range(1, 9)]
    with pytest.raises(UserError, match=r"9 separate parts with 75\.8%, 3\.0%.* \.\.\. of the"):
        clean(np.concatenate(crumbs), np.concatenate([faces + k * n for k in range(9)]))


def test_parts_are_the_components_of_the_edges(rng, sphere):
    points, _ = sphere(2)
    faces = np.stack([rng.choice(len(points), 3, replace=False) for _ in range(50)])
    mesh = Mesh(points, faces)
    graph = nx.Graph(mesh.edges.tolist())
    graph.add_nodes_from(range(len(points)))
    groups = {frozenset(np.flatnonzero(parts(mesh) == k)) for k in range(parts(mesh).max() + 1)}
    assert groups == {frozenset(part) for part in nx.connected_components(graph)}


def test_a_cloud_in_two_parts_is_an_error_and_a_few_stray_points_go(sphere):
    points, _ = sphere(2)
    with pytest.raises(UserError, match="2 separate parts with 50.0%, 50.0% of the points"):
        clean(np.concatenate([points, points + 9.0]))
    many, _ = sphere(3)
    mesh = clean(np.concatenate([many, 0.01 * points[:30] + 9.0]))
    assert len(mesh) == len(many)
    assert mesh.notes == ("dropped 1 small separate part, 4.46% of the points",)


# What stays and is noted.


def count_of(notes, words):
    found = [note for note in notes if words in note]
    return int(found[0].split()[0].replace(",", "")) if found else 0


def test_non_manifold_edges_and_vertices_are_counted_as_by_brute_force(rng, sphere):
    points, _ = sphere(1)
    number = len(points)
    for size in (70, 90, 150):
        connected = False
        while not connected:
            chosen = {tuple(sorted(rng.choice(number, 3, replace=False))) for _ in range(size)}
            faces = np.array(sorted(chosen))
            graph = nx.Graph(e for face in faces.tolist() for e in combinations(face, 2))
            connected = nx.is_connected(graph)
        notes = clean(points, faces).notes
        edges = [e for face in faces.tolist() for e in combinations(sorted(face), 2)]
        thick = sum(edges.count(e) > 2 for e in set(edges))
        pinched = 0
        for v in graph:
            fans = nx.Graph()
            for face in faces.tolist():
                if v in face:
                    fans.add_edge(*(u for u in face if u != v))
            pinched += nx.number_connected_components(fans) > 1
        rim = nx.Graph(e for e in set(edges) if edges.count(e) == 1)
        assert Mesh(points, faces).is_manifold == (not thick and not pinched)
        assert count_of(notes, "more than two faces") == thick
        assert count_of(notes, "only touches itself") == pinched
        opened = [note for note in notes if note.startswith("open surface")]
        if rim.number_of_edges():
            loops = nx.number_connected_components(rim)
            assert opened[0].split()[2] == str(loops)
            assert opened[0].split()[-2] == str(rim.number_of_edges())
        else:
            assert not opened


def test_an_open_surface_keeps_its_direction_and_is_noted(bowl):
    points, faces = bowl(2, 0.1)
    for given in (faces, faces[:, ::-1]):
        mesh = clean(points, given)
        np.testing.assert_array_equal(mesh.faces, given)
        assert len(mesh.notes) == 1 and mesh.notes[0].startswith("open surface: 1 boundary with ")


def test_a_strip_with_one_side_is_noted_and_left(moebius):
    points, faces = moebius()
    mesh = clean(points, faces)
    np.testing.assert_array_equal(mesh.faces, faces)
    assert any("one side only" in note for note in mesh.notes)
    assert any("open surface: 1 boundary with 80 edges" in note for note in mesh.notes)


# Orientation.


@pytest.mark.parametrize("kind", ["sphere", "torus", "bumpy_box"])
def test_faces_are_turned_to_agree_and_outwards(kind, request, rng):
    points, faces = request.getfixturevalue(kind)()
    for share in (0.2, 0.9, 1.0):
        turned = rng.random(len(faces)) < share
        mixed = np.where(turned[:, None], faces[:, ::-1], faces)
        mesh = clean(points, mixed)
        assert triangles_in_space(mesh) == triangles_in_space(Mesh(points, faces))
        assert mesh.notes and all(note.startswith("turned ") for note in mesh.notes)


def test_a_body_with_a_hole_is_turned_outwards_too(bowl):
    points, faces = bowl(3, 0.9)
    mesh = clean(points, faces[:, ::-1])
    assert triangles_in_space(mesh) == triangles_in_space(Mesh(points, faces))


def test_bodies_that_touch_in_a_vertex_are_turned_one_by_one(sphere):
    points, faces = sphere(2)
    n = len(points)
    other = 2 * points[0] - points
    shared = np.where(faces == 0, 0, faces + n - 1)
    both = np.concatenate([faces, shared])
    mesh = clean(np.concatenate([points, other[1:]]), both)
    assert mesh.notes == (
        f"turned {len(faces)} faces outwards",
        "1 vertex where the surface only touches itself (non-manifold)",
    )
    assert as_trimesh(mesh).volume == pytest.approx(2 * as_trimesh(Mesh(points, faces)).volume)


# Mistakes.


def with_value(points, value):
    points[[7, 9], 1] = value
    return points


MISTAKES = {
    "nan": (lambda p, f: (with_value(p, np.nan), f), r"vertex 7 has coordinates.*1 other vertex"),
    "inf": (lambda p, f: (with_value(p, np.inf), f), r"vertex 7 has coordinates .*inf"),
    "flat": (lambda p, f: (p[:, :2], f), r"vertices must be \(n, 3\), not \(162, 2\)"),
    "words": (lambda p, f: ([["a", "b", "c"]] * 30, f), "vertices must be numbers"),
    "ragged": (lambda p, f: ([[0.0, 1.0, 2.0], [1.0]], f), "vertices must be numbers"),
    "quads": (lambda p, f: (p, np.zeros((4, 4), int)), r"triangles \(m, 3\), not \(4, 4\)"),
    "halves": (lambda p, f: (p, f + 0.5), "faces must be whole numbers"),
    "text": (lambda p, f: (p, [["a", "b", "c"]]), "faces must be vertex numbers"),
    "outside": (lambda p, f: (p, np.array([[0, 1, 500]])), r"face 0 is \(0, 1, 500\).* 0 to 161"),
    "negative": (lambda p, f: (p, np.array([[0, 1, 2], [0, 1, -1]])), r"face 1 is \(0, 1, -1\)"),
    "from one": (lambda p, f: (p, f + 1), "seem to start at 1"),
    "three": (lambda p, f: (p[:3], [[0, 1, 2]]), "3 usable vertices; at least 20"),
    "few used": (lambda p, f: (p, f[:5]), r"\d of 162 usable vertices; at least 20"),
    "none": (lambda p, f: (np.zeros((0, 3)), None), "0 usable vertices"),
    "no area": (lambda p, f: (p, [[0, 1, 1], [2, 2, 3]]), "none of the 2 faces has an area"),
    "one point": (lambda p, f: (np.ones((30, 3)), None), "all vertices lie at one point"),
    "one line": (lambda p, f: (np.outer(np.arange(30.0), [1, 2, 3]), None), "on one line"),
    "too wide": (lambda p, f: (1e100 * p, f), "up to 1e.100; the limit is 1e.80"),
    "too narrow": (lambda p, f: (1e-100 * p, f), "only .* wide"),
    "same": (lambda p, f: (np.repeat(p[:15], 4, 0), None), "15 of 60 usable vertices"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error_that_names_it(mistake, sphere):
    spoil, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as caught:
        clean(*spoil(*sphere(2)), name="thing")
    assert str(caught.value).startswith("mesh 'thing'")


def test_too_many_vertices_name_the_limit_and_the_way_out(sphere, monkeypatch):
    points, faces = sphere(2)
    with pytest.raises(UserError, match="1,600,001 vertices, the limit is 200,000; decimate"):
        clean(np.zeros((1_600_001, 3)), faces)
    monkeypatch.setattr(repair, "VERTEX_LIMIT", 161)
    for given in (faces, None):
        with pytest.raises(UserError, match="162 vertices, the limit is 161"):
            clean(points, given)
    soup = points[faces].reshape(-1, 3)
    monkeypatch.setattr(repair, "VERTEX_LIMIT", 162)
    assert len(clean(soup, np.arange(len(soup)).reshape(-1, 3))) == 162


def test_a_mesh_refuses_an_origin_outside_its_vertices(sphere):
    with pytest.raises(UserError, match="origin must hold vertex numbers 0 to 41"):
        Mesh(*sphere(1), origin=np.array([0, 42]))


def test_a_mesh_without_an_area_cannot_be_normalised():
    mesh = Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]]), "dot")
    with pytest.raises(UserError, match="'dot' has no area"):
        mesh.normalised()


# Research data, where it is there.


@pytest.mark.data
@pytest.mark.parametrize("collection", ["faust", "tosca"])
def test_published_meshes_need_no_repair(collection, data_dir):
    file = data_dir / f"shapes_{collection}.npz"
    if not file.exists():
        pytest.skip(f"no {file.name} in {data_dir}")
    with np.load(file) as archive:
        for name in archive["names"][::13]:
            points = archive[f"{name}.v"].astype(np.float64)
            mesh = clean(points, archive[f"{name}.f"], str(name))
            np.testing.assert_array_equal(mesh.vertices, points)
            np.testing.assert_array_equal(mesh.faces, archive[f"{name}.f"])
            assert mesh.is_manifold
            assert all(note.startswith("open surface") for note in mesh.notes)
