"""Training maps: least squares on corresponding points, perturbed copies, splits, files."""

from __future__ import annotations

import numpy as np
import pytest

from driftworks.errors import UserError
from driftworks.shapes import files as mesh_files
from driftworks.shapes import fmaps, maps
from driftworks.shapes.creatures import PLANS
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.spectrum import basis

K = 12


@pytest.fixture(scope="module")
def made():
    """Four people and four apes, which share a skeleton, and four beasts, which do not."""
    return maps.of_creatures(
        12, K, plans=("human", "ape", "quadruped"), vertices=1500, poses=1, own_surfaces=0.15,
        partners=4, held=0.4, seed=3,
    )  # fmt: skip


@pytest.fixture
def stretched(ellipsoid):
    """Four ellipsoids of one triangulation."""
    axes = [(1, 0.7, 1.6), (1, 0.8, 1.5), (0.9, 0.7, 1.7), (1.1, 0.6, 1.6)]
    return [Mesh(*ellipsoid(2, a), name=f"egg{i}") for i, a in enumerate(axes)]


@pytest.fixture
def folder(stretched, tmp_path):
    (tmp_path / "eggs").mkdir()
    for mesh in stretched:
        mesh_files.write(mesh, tmp_path / "eggs" / f"{mesh.name}.off")
    return tmp_path / "eggs"


def test_maps_of_a_shared_triangulation_are_those_of_the_identity_map(stretched, folder):
    found = maps.of_meshes(folder, K, held=0.0, seed=0)
    assert len(found) == 12 and found.k == K
    own = [basis(mesh.normalised(), K, cache=False) for mesh in stretched]
    compared = 0
    for c, (i, j) in zip(found.c, found.pairs, strict=True):
        if max(i, j) >= 4:
            continue  # a perturbed copy
        wanted = np.abs(fmaps.from_vertices(np.arange(own[0].vertices), own[i], own[j]))
        assert np.allclose(c, wanted, atol=2e-3)
        compared += 1
    assert compared
    assert np.allclose(found.values[:4], [b.values for b in own], rtol=1e-4, atol=1e-4)


def test_points_may_come_in_any_order_and_number(stretched, tmp_path, rng):
    """Two orders of the points, different vertex numbers: the same maps."""
    arrays = {"names": np.array([m.name for m in stretched])}
    for mesh in stretched:
        order = rng.permutation(len(mesh))  # the new number of each vertex
        vertices = np.empty_like(mesh.vertices)
        vertices[order] = mesh.vertices
        arrays[f"{mesh.name}.v"] = vertices.astype(np.float32)
        arrays[f"{mesh.name}.f"] = order[mesh.faces].astype(np.uint16)
        arrays[f"{mesh.name}.corr"] = np.concatenate((order, order[:50]))
    np.savez(tmp_path / "eggs.npz", **arrays)
    found = maps.of_meshes(tmp_path / "eggs.npz", K, held=0.0)
    own = [basis(mesh.normalised(), K, cache=False) for mesh in stretched]
    c, (i, j) = next(
        (c, p) for c, p in zip(found.c, found.pairs, strict=True) if max(p) < 4
    )
    wanted = np.abs(fmaps.from_vertices(np.arange(own[0].vertices), own[i], own[j]))
    assert np.allclose(c, wanted, atol=5e-3)


def test_creatures_give_maps_that_are_nearly_isometric(made):
    assert made.k == K and made.c.dtype == np.float16
    assert (made.c >= 0).all() and np.isfinite(made.c.astype(float)).all()
    shares = maps.diagonal_shares(made)
    assert 0.6 < shares["norm"] < 1.2
    assert shares["near_diagonal"] > 0.75
    # the constant function goes to the constant function
    assert np.allclose(made.c[:, 0, 0], 1.0, atol=0.02)


def test_people_are_paired_with_apes_and_never_with_beasts(made):
    kinds = {frozenset(pair) for pair in made.groups[made.pairs].tolist()}
    assert kinds == {
        frozenset({"human"}), frozenset({"ape"}), frozenset({"human", "ape"}),
        frozenset({"quadruped"}),
    }  # fmt: skip


def test_every_pair_is_there_in_both_directions(made):
    subjects = made.subjects[made.pairs]
    assert np.array_equal(subjects[0::2], subjects[1::2, ::-1])


def test_poses_of_an_individual_share_their_form_and_not_their_pose():
    seed = (5, 1)
    a, b = (maps._creature("quadruped", seed, i, 2, 1500, 0.0) for i in (0, 1))
    other = maps._creature("quadruped", seed, 2, 2, 1500, 0.0)
    assert np.allclose(a.rest, b.rest) and not np.allclose(a.angles, b.angles)
    assert not np.allclose(a.rest, other.rest)


def test_no_pair_joins_held_out_subjects_with_the_others(made):
    assert len(made.training()) + len(made.held_out()) == len(made)
    assert len(made.held_out()) > 0
    shown = set(made.subjects[made.training().pairs].ravel().tolist())
    tested = set(made.subjects[made.held_out().pairs].ravel().tolist())
    assert not shown & tested


def test_categories_can_be_left_out(made):
    beasts = made.of_groups(["quadruped"])
    assert set(beasts.groups[beasts.pairs].ravel().tolist()) == {"quadruped"}
    with pytest.raises(UserError, match="ape, human, quadruped"):
        made.of_groups(["dog"])


def test_the_same_seed_gives_the_same_maps():
    options = {"plans": ("theropod",), "vertices": 1500, "poses": 2, "own_surfaces": 0.0}
    a, b = (maps.of_creatures(2, 8, seed=4, **options) for _ in range(2))
    assert np.array_equal(a.c, b.c) and np.array_equal(a.pairs, b.pairs)


def test_a_perturbed_basis_is_a_rotation_that_mixes_what_lies_close(rng):
    values = np.array([0.0, 10.0, 10.05, 20.0, 40.0])
    mixing = []
    for _ in range(200):
        found, q = maps.perturbed(values, rng, 0.01)
        assert np.allclose(q.T @ q, np.eye(5), atol=1e-12)
        assert found[0] == 0 and abs(q[0, 0]) == pytest.approx(1)
        mixing.append(q**2)
    mean = np.mean(mixing, 0)
    assert mean[1, 2] > 0.2  # gap of half a per cent
    assert mean[3, 4] < 0.01  # gap of a factor of two


def test_perturbed_eigenvalues_move_by_the_change_asked_for(rng):
    values = 10.0 * 2.0 ** np.arange(6)
    found = np.array([maps.perturbed(values, rng, 0.01)[0] for _ in range(400)])
    # diagonal entries of (E + E^T) / sqrt 2 have deviation sqrt 2
    assert (found / values).std(0) == pytest.approx(0.01 * np.sqrt(2), rel=0.25)


def test_maps_are_read_as_they_were_written(made, tmp_path):
    made.write(tmp_path / "a.npz")
    again = maps.read(tmp_path / "a.npz")
    assert maps.is_maps(tmp_path / "a.npz")
    assert np.array_equal(again.c, made.c) and np.array_equal(again.values, made.values)
    assert np.array_equal(again.groups, made.groups) and again.source == made.source
    assert again.first(5).c.shape == (len(made), 5, 5)


def test_maps_are_made_once_and_then_read(made, tmp_path):
    calls = []

    def make():
        calls.append(1)
        return made

    for _ in range(2):
        assert len(maps.load_or_make(tmp_path / "b.npz", make)) == len(made)
    assert calls == [1]


def test_unusable_files_are_refused(tmp_path, folder):
    (tmp_path / "a.npz").write_bytes(b"nothing")
    for call in (maps.read, maps.of_meshes):
        with pytest.raises(UserError, match="cannot be read"):
            call(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", names=np.array(["x"]))
    assert not maps.is_maps(tmp_path / "b.npz")
    with pytest.raises(UserError, match="lacks"):
        maps.of_meshes(tmp_path / "b.npz")
    with pytest.raises(UserError, match="lacks"):
        maps.read(tmp_path / "b.npz")
    with pytest.raises(UserError, match="no file or folder"):
        maps.of_meshes(tmp_path / "nowhere")
    with pytest.raises(UserError, match="between 1 and the 162 vertices"):
        maps.of_meshes(folder, 500)


def test_points_that_are_too_few_are_refused(stretched, tmp_path):
    arrays = {"names": np.array(["egg"])}
    arrays |= {"egg.v": stretched[0].vertices, "egg.f": stretched[0].faces,
               "egg.corr": np.tile(np.arange(K - 1), 3)}
    np.savez(tmp_path / "few.npz", **arrays)
    with pytest.raises(UserError, match="11 points that correspond cannot fix 12 functions"):
        maps.of_meshes(tmp_path / "few.npz", K)


def test_meshes_of_several_triangulations_in_a_category_are_refused(folder, ellipsoid):
    mesh_files.write(Mesh(*ellipsoid(1)), folder / "egg9.off")
    with pytest.raises(UserError, match="share their vertex numbers"):
        maps.of_meshes(folder, K)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"plans": ("cat",)}, ", ".join(PLANS)), ({"count": 1}, "count"), ({"poses": 0}, "poses"),
        ({"held": 1.5}, "held"), ({"k": 1}, "k is"),
    ],
)  # fmt: skip
def test_impossible_requests_are_refused(options, told):
    with pytest.raises(UserError, match=told):
        maps.of_creatures(**options)


@pytest.mark.slow
def test_registered_scans_are_read(data_dir):
    file = data_dir / "shapes_faust.npz"
    if not file.is_file():
        pytest.skip("no shapes_faust.npz")
    loaded = maps._from_npz(file)
    assert len(loaded) == 80 and {len(points) for *_, points in loaded} == {5000}
