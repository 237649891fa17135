"""Pictures: the renderer against closed forms, views that correspond, files that are whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from driftworks.errors import UserError
from driftworks.shapes import appearance, raster, render
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.result import Match

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]
NO_FACES = np.zeros((0, 3), np.int64)


def matched(a: Mesh, b: Mesh, map_ba: NDArray[np.int64], map_ab: NDArray[np.int64]) -> Match:
    return Match(
        a, b, map_ba, map_ab, np.eye(3), np.eye(3), np.linspace(0, 1, len(b)), np.ones(len(a)),
        False, 0.9, "test",
    )  # fmt: skip


def turned(mesh: Mesh, rotation: NDArray[np.float64]) -> Mesh:
    return replace(mesh, vertices=mesh.vertices @ rotation.T)


@pytest.fixture
def lumps(lump: Arrays) -> Match:
    mesh = Mesh(*lump, name="lump")
    every = np.arange(len(mesh))
    return matched(mesh, replace(mesh, vertices=2 * mesh.vertices, name="two"), every, every)


def test_a_sphere_covers_the_pixels_of_a_disc(sphere: Callable[..., Arrays]) -> None:
    view = raster.look(Mesh(*sphere(4)), np.eye(3), (120, 100), 40.0)
    image = raster.paint(view, np.ones((2562, 3)))
    assert image.shape == (100, 120, 4)
    assert image[..., 3].sum() == pytest.approx(np.pi * 40**2, rel=0.005)
    rows, columns = np.nonzero(image[..., 3] > 0.5)
    assert (rows.min() + rows.max(), columns.min() + columns.max()) == (99, 119)


def test_what_is_seen_is_what_lies_in_front_on_every_ray(
    bumpy_box: Callable[..., Arrays], rng: np.random.Generator
) -> None:
    mesh = Mesh(*bumpy_box(3))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation[0] *= np.linalg.det(rotation)
    width, height, scale = 60, 50, 12.0
    view = raster.look(mesh, rotation, (width, height), scale)
    # second implementation: each ray against each triangle
    points = mesh.vertices @ rotation.T
    points = 2 * scale * (points - (points.min(0) + points.max(0)) / 2)
    a, b, c = (points[mesh.faces[:, k]] for k in range(3))

    def cross(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0])

    doubled = cross(b - a, c - a)
    y, x = np.divmod(np.arange(4 * width * height), 2 * width)
    rays = np.stack([x - (2 * width - 1) / 2, (2 * height - 1) / 2 - y], 1)
    front = np.full(len(rays), -np.inf)
    for f in range(len(a)):
        second = cross(rays - a[f, :2], c[f] - a[f]) / doubled[f]
        third = cross(b[f] - a[f], rays - a[f, :2]) / doubled[f]
        inside = (second >= 0) & (third >= 0) & (second + third <= 1)
        depth = a[f, 2] + second * (b[f, 2] - a[f, 2]) + third * (c[f, 2] - a[f, 2])
        front[inside] = np.maximum(front[inside], depth[inside])
    assert np.array_equal(view.pixels, np.isfinite(front).nonzero()[0])
    depth = (view.weights * points[view.corners, 2]).sum(1)
    np.testing.assert_allclose(depth, front[view.pixels], atol=1e-5)


def test_colours_are_mixed_between_the_corners(sheet: Callable[..., Arrays]) -> None:
    points, faces = sheet(9, 9)
    # a flat sheet in linear light: brightness over brightness of white is the colour itself
    ramp = np.repeat((points[:, :1] / 8) ** (1 / 2.2), 3, 1)
    view = raster.look(Mesh(points, faces), np.eye(3), (80, 80), 8.0)
    grey, white = raster.paint(view, ramp), raster.paint(view, np.ones_like(ramp))
    inside = slice(15, 65)
    share = (grey[..., 0] ** 2.2 / np.maximum(white[..., 0] ** 2.2, 1e-9))[inside, inside]
    expected = (np.arange(80)[inside] + 0.5 - 8) / 64
    np.testing.assert_allclose(share, np.broadcast_to(expected, share.shape), atol=0.01)


def test_a_surface_seen_from_inside_is_darker(sheet: Callable[..., Arrays]) -> None:
    points, faces = sheet(9, 9)
    sides = (Mesh(points, f) for f in (faces, faces[:, ::-1]))
    views = [raster.look(mesh, np.eye(3), (40, 40), 3.0) for mesh in sides]
    front, back = (float(view.light.mean()) for view in views)
    assert back < 0.7 * front


def test_points_of_a_cloud_close_up_to_a_surface(sphere: Callable[..., Arrays]) -> None:
    cloud = Mesh(sphere(3)[0], NO_FACES)
    image = raster.paint(raster.look(cloud, np.eye(3), (120, 120), 50.0), np.ones((642, 3)))
    y, x = np.mgrid[:120, :120] - 59.5
    assert (image[..., 3][np.hypot(x, y) < 45] > 0.99).mean() > 0.99


def test_parts_beyond_the_edge_are_left_out(sphere: Callable[..., Arrays]) -> None:
    for mesh in (Mesh(*sphere(2)), Mesh(sphere(2)[0], NO_FACES)):
        image = raster.paint(raster.look(mesh, np.eye(3), (30, 20), 100.0), np.ones((162, 3)))
        assert image.shape == (20, 30, 4) and (image[..., 3] > 0).any()


def test_a_shape_that_is_flat_along_y_has_z_upwards(ellipsoid: Callable[..., Arrays]) -> None:
    standing = Mesh(*ellipsoid(3, (0.6, 1.5, 0.3)))
    assert np.array_equal(appearance.frame(standing), np.eye(3))
    lying = Mesh(*ellipsoid(3, (0.6, 0.3, 1.5)))
    assert np.array_equal(appearance.frame(lying)[1], [0, 0, 1])
    assert np.array_equal(appearance.frame(standing, "-x")[1], [-1, 0, 0])


@pytest.mark.parametrize("up", appearance.UPS)
def test_frames_are_rotations(bumpy_box: Callable[..., Arrays], up: str) -> None:
    frame = appearance.frame(Mesh(*bumpy_box(2)), up)
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(frame) == pytest.approx(1)


def test_both_shapes_show_the_same_side(lumps: Match, rng: np.random.Generator) -> None:
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation[0] *= np.linalg.det(rotation)
    match = replace(lumps, b=turned(lumps.b, rotation))
    first, second = appearance.frames(match)
    seen_a, seen_b = match.a.vertices @ first.T, match.b.vertices @ second.T / 2
    # within 40 degrees the upright view is kept, and two other upright views may come that near
    cosine = (seen_a * seen_b).sum() / np.sqrt((seen_a**2).sum() * (seen_b**2).sum())
    assert cosine > 0.75
    exact = appearance.frames(lumps)
    assert np.array_equal(exact[0], exact[1])


def test_near_places_have_near_colours_and_far_ones_do_not(
    sphere: Callable[..., Arrays],
) -> None:
    mesh = Mesh(*sphere(4))
    colours = appearance.place_colours(mesh, np.eye(3))
    assert colours.shape == (len(mesh), 3) and (colours >= 0).all() and (colours <= 1).all()
    i, j = mesh.edges.T
    near = np.linalg.norm(colours[i] - colours[j], axis=1)
    opposite = np.array([int(np.argmin(mesh.vertices @ p)) for p in mesh.vertices])
    far = np.median(np.linalg.norm(colours - colours[opposite], axis=1))
    assert far > 0.35 and np.median(near) < far / 10


def test_the_scale_ends_in_its_colours_and_unknown_is_grey() -> None:
    colours = appearance.scale_colours(np.array([0.0, 1.0, np.nan, -3.0, 7.0]))
    assert colours[0, 0] > 0.6 > 0.2 > colours[0, 1]
    assert colours[1, 2] > colours[1, 0]
    assert np.array_equal(colours[2], [0.6, 0.6, 0.6])
    assert np.array_equal(colours[3:], colours[:2])


def test_a_flat_sheet_has_smooth_colours_in_spite_of_rounding(
    sheet: Callable[..., Arrays], rng: np.random.Generator
) -> None:
    points, faces = sheet(20, 20)
    exact, rounded = (
        appearance.place_colours(Mesh(x, faces), np.eye(3))
        for x in (points, points + 1e-9 * rng.normal(size=points.shape))
    )
    assert np.abs(exact - rounded).max() < 0.02


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small panels, which are quicker."""
    monkeypatch.setattr(render, "_PANEL", (260, 220))


@pytest.mark.usefixtures("small")
def test_a_picture_of_a_match_is_a_whole_image(lumps: Match, tmp_path: Path) -> None:
    file = tmp_path / "match.png"
    lumps.render(file)
    image = np.asarray(Image.open(file).convert("RGB"))
    assert image.shape[0] > 2 * 220 and image.shape[1] > 3 * 260
    # both columns of colours agree, for b is a copy of a; the third is another colouring
    panel, left, top = render._PANEL[0], render._MARGIN, render._HEAD
    columns = [image[top:-80, left + i * panel : left + (i + 1) * panel] for i in range(3)]
    assert np.abs(columns[0].astype(int) - columns[1]).max() <= 1
    assert (np.abs(columns[1].astype(int) - columns[2]).max(2) > 20).mean() > 0.05


@pytest.mark.usefixtures("small")
def test_a_failed_match_says_so_in_red(lumps: Match, tmp_path: Path) -> None:
    shares = []
    for failed in (False, True):
        render.picture(replace(lumps, failed=failed), tmp_path / "match.png")
        head = np.asarray(Image.open(tmp_path / "match.png").convert("RGB"))[: render._HEAD]
        shares.append((head == render._RED).all(2).mean())
    assert shares[0] == 0 and shares[1] > 0.01


@pytest.mark.usefixtures("small")
def test_one_mesh_is_coloured_by_values_or_colours(lump: Arrays, tmp_path: Path) -> None:
    mesh, file = Mesh(*lump), tmp_path / "mesh.png"
    n = len(mesh)
    for values in (None, mesh.vertices[:, 0], np.full(n, np.nan), np.ones(n), np.ones((n, 3))):
        render.mesh_picture(mesh, file, values)
        assert Image.open(file).size[0] > 2 * 260
    with pytest.raises(UserError, match=r"\(3,\)"):
        render.mesh_picture(mesh, file, np.zeros(3))


@pytest.mark.usefixtures("small")
def test_clouds_and_odd_names_are_drawn(sphere: Callable[..., Arrays], tmp_path: Path) -> None:
    cloud = Mesh(sphere(2)[0], NO_FACES, name="ein sehr langer Name " * 9 + "\n<b>\u732b")
    every = np.arange(len(cloud))
    render.picture(matched(cloud, cloud, every, every), tmp_path / "cloud.png")
    assert (tmp_path / "cloud.png").stat().st_size > 5_000


@pytest.mark.usefixtures("small")
def test_mistakes_are_named(lumps: Match, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=".jpg"):
        render.picture(lumps, tmp_path / "match.jpg")
    with pytest.raises(UserError, match="'w'"):
        render.picture(lumps, tmp_path / "match.png", up="w")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        render.picture(lumps, tmp_path / "file" / "match.png")


@pytest.mark.slow
def test_ten_thousand_faces_each_take_less_than_two_seconds(
    sphere: Callable[..., Arrays], tmp_path: Path
) -> None:
    """Guards the cost of a picture; processor time, for the machine may be busy."""
    points, faces = sphere(5)
    mesh = Mesh(points, faces)
    every = np.arange(len(mesh))
    match = matched(mesh, mesh, every, every)
    render.picture(match, tmp_path / "warm.png")
    start = time.process_time()
    render.picture(match, tmp_path / "match.png")
    assert len(faces) == 20_480
    assert time.process_time() - start < 2
