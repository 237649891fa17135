"""Carrying things over: identity maps change nothing, constants stay, places are nearest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from driftworks.errors import UserError
from driftworks.shapes import fmaps, spectrum, transfer
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.repair import clean
from driftworks.shapes.result import Match

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]


def matched(a: Mesh, b: Mesh, map_ba: NDArray[np.int64], map_ab: NDArray[np.int64]) -> Match:
    k = 20
    first, second = (spectrum.basis(m.normalised(), k, cache=False) for m in (a, b))
    return Match(
        a, b, map_ba, map_ab,
        fmaps.from_vertices(map_ba, first, second), fmaps.from_vertices(map_ab, second, first),
        np.ones(len(b)), np.ones(len(a)), False, 1.0, "truth",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("DRIFTWORKS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def same(lump: Arrays) -> Match:
    """A shape with itself."""
    mesh = Mesh(*lump, name="lump")
    every = np.arange(len(mesh))
    return matched(mesh, mesh, every, every)


@pytest.fixture
def shuffled(lump: Arrays, rng: np.random.Generator) -> tuple[Match, NDArray[np.int64]]:
    """A shape and a copy whose vertex i is vertex order[i] of the first."""
    points, faces = lump
    order = rng.permutation(len(points))
    place = np.argsort(order)
    return matched(Mesh(points, faces), Mesh(points[order], place[faces]), order, place), order


def test_an_identity_map_gives_back_what_it_is_given(same: Match, rng: np.random.Generator) -> None:
    n = len(same.a)
    for given in (rng.normal(size=n), rng.normal(size=(n, 2)), rng.integers(0, 9, (n, 4, 2))):
        for to in ("a", "b"):
            assert np.array_equal(transfer.values(same, given, to=to), given)
    chosen = rng.integers(0, n, 30)
    assert np.array_equal(transfer.landmarks(same, chosen), chosen)


@pytest.mark.parametrize("by", ["vertices", "functions"])
@pytest.mark.parametrize("constant", [0.1, -7.3e8, 0.0])
def test_a_constant_stays_that_constant_exactly(same: Match, by: str, constant: float) -> None:
    other = transfer.values(same, np.full((len(same.a), 3), constant), by=by)
    assert (other == constant).all()


def test_functions_within_the_span_are_carried_exactly(
    shuffled: tuple[Match, NDArray[np.int64]],
) -> None:
    match, order = shuffled
    smooth = spectrum.basis(match.a.normalised(), 20).functions @ np.linspace(1, -1, 20) + 3
    carried = transfer.values(match, smooth, by="functions")
    assert np.abs(carried - smooth[order]).max() < 1e-6 * np.ptp(smooth)


def test_functions_are_smoothed_and_labels_are_not(
    shuffled: tuple[Match, NDArray[np.int64]], rng: np.random.Generator
) -> None:
    match, order = shuffled
    noise = rng.normal(size=len(match.a))
    assert transfer.values(match, noise, by="functions").std() < 0.5 * noise.std()
    words = np.array(["leg", "tail"])[rng.integers(0, 2, len(match.a))]
    assert np.array_equal(transfer.values(match, words), words[order])
    with pytest.raises(UserError, match="numbers"):
        transfer.values(match, words, by="functions")


def test_values_there_and_back_are_the_same(
    shuffled: tuple[Match, NDArray[np.int64]], rng: np.random.Generator
) -> None:
    match, _ = shuffled
    colours = rng.uniform(size=(len(match.a), 3))
    there = transfer.values(match, colours)
    assert np.array_equal(transfer.values(match, there, to="a"), colours)


def test_each_kind_of_thing_finds_its_way(
    shuffled: tuple[Match, NDArray[np.int64]], rng: np.random.Generator
) -> None:
    match, order = shuffled
    place = np.argsort(order)
    assert np.array_equal(transfer.transfer(match, [5, 9]), place[[5, 9]])
    assert transfer.transfer(match, {"nose": 5, "tail": 9}) == {
        "nose": int(place[5]), "tail": int(place[9])
    }  # fmt: skip
    uv = rng.uniform(size=(len(match.a), 2))
    assert np.array_equal(transfer.transfer(match, uv), uv[order])
    assert np.array_equal(match.transfer(uv), uv[order])
    point = transfer.SurfacePoints(np.array([3]), np.array([[0.2, 0.3, 0.5]]), np.zeros(1))
    carried = transfer.transfer(match, point)
    np.testing.assert_allclose(
        carried.positions(match.b), point.positions(match.a), rtol=0, atol=1e-12
    )


def test_points_of_an_identity_map_stay_where_they_are(
    same: Match, rng: np.random.Generator
) -> None:
    faces = rng.integers(0, len(same.a.faces), 40)
    weights = rng.dirichlet(np.ones(3), 40)
    given = transfer.SurfacePoints(faces, weights, np.zeros(40))
    carried = transfer.points(same, given)
    np.testing.assert_allclose(
        carried.positions(same.b), given.positions(same.a), rtol=0, atol=1e-12
    )
    edges = same.a.vertices[same.a.faces[faces]]
    longest = np.linalg.norm(edges - np.roll(edges, 1, 1), axis=2).max(1)
    np.testing.assert_allclose(carried.spread, longest / np.sqrt(same.a.area))


def test_a_projection_is_the_nearest_of_all_points_on_all_faces(
    lump: Arrays, rng: np.random.Generator
) -> None:
    mesh = Mesh(*lump)
    places = mesh.vertices[rng.integers(0, len(mesh), 12)] * rng.uniform(0.5, 1.5, (12, 1))
    found = transfer.project(mesh, places)
    gaps = np.linalg.norm(found.positions(mesh) - places, axis=1)
    # second implementation: a dense grid of points on every face can come near but never nearer
    steps = 24
    grid = np.array([(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)])
    sampled = (grid / steps) @ mesh.vertices[mesh.faces]
    for place, gap in zip(places, gaps, strict=True):
        brute = np.linalg.norm(sampled - place, axis=2).min()
        assert gap <= brute + 1e-12
        assert brute <= gap + 0.02
    assert (found.weights >= 0).all()
    np.testing.assert_allclose(found.weights.sum(1), 1)


def test_numbers_are_those_of_the_files_where_repair_dropped_vertices(lump: Arrays) -> None:
    points, faces = lump
    # vertex 0 of the file belongs to nothing, so each number in the mesh is one less
    mesh = clean(np.concatenate([[[9.0, 9, 9]], points]), faces + 1)
    every = np.arange(len(mesh))
    match = matched(mesh, mesh, every, every)
    assert np.array_equal(transfer.landmarks(match, [1, 17]), [1, 17])
    labels = np.arange(len(points) + 1)
    assert np.array_equal(transfer.values(match, labels)[1:], labels[1:])
    assert np.array_equal(transfer.values(match, labels[1:]), labels[1:])


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ([5, 642], "642"),
        ([-1], "-1"),
        (np.zeros(17), "17"),
        (np.zeros((0, 3)), "row"),
        (3.5, "single value"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_value(
    same: Match, what: object, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        transfer.transfer(same, what)


def test_unknown_ways_and_sides_are_refused(same: Match, sphere: Callable[..., Arrays]) -> None:
    with pytest.raises(UserError, match="'c'"):
        transfer.landmarks(same, [1], to="c")
    with pytest.raises(UserError, match="'magic'"):
        transfer.values(same, np.zeros(len(same.a)), by="magic")
    cloud = Mesh(sphere(2)[0], np.zeros((0, 3), np.int64))
    every = np.arange(len(cloud))
    clouds = Match(
        cloud, cloud, every, every, np.eye(3), np.eye(3), every * 0.0, every * 0.0, False, 1.0, "x"
    )
    point = transfer.SurfacePoints(np.array([0]), np.array([[1.0, 0, 0]]), np.zeros(1))
    with pytest.raises(UserError, match="cloud"):
        transfer.points(clouds, point)
