"""The benchmarks of shapes: evaluator, pair lists, resuming, masks, and costs that are counted."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from driftworks.errors import UserError
from driftworks.shapes import evaluation
from driftworks.shapes import maps as sets
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.prior import SecondMoment
from driftworks.shapes.result import Hypothesis, Match


@pytest.fixture
def table(monkeypatch, pytestconfig):
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
    return importlib.import_module("shapes_table")


@pytest.fixture
def cost(monkeypatch, pytestconfig):
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
    return importlib.import_module("shapes_cost")


class Renumbered:
    """A source whose one pair is a mesh and the same with its vertices in another order."""

    def __init__(self, mesh: Mesh):
        order = np.random.default_rng(3).permutation(len(mesh))
        place = np.argsort(order)  # vertex i of the mesh is number place[i] of the other
        self.other = Mesh(mesh.vertices[order], place[mesh.faces])
        self.mesh, self.place = mesh, place

    def load(self, pair):
        return self.mesh, self.other, np.arange(len(self.mesh)), self.place


@pytest.fixture
def case(table, bumpy_box):
    source = Renumbered(Mesh(*bumpy_box(3)))
    return table.Case(table.Pair("made", "a", "b"), source, 100, "edges", 200)


def match_of(a: Mesh, b: Mesh, maps: list[np.ndarray], scores: list[float]) -> Match:
    back = np.zeros(len(a), np.int64)
    found = [
        Hypothesis(str(i), score, {}, vertices, back)
        for i, (vertices, score) in enumerate(zip(maps, scores, strict=True))
    ]
    c = np.eye(5)
    trust = np.linspace(0, 1, len(b)), np.zeros(len(a))
    return Match(a, b, maps[0], back, c, c, *trust, False, scores[0], "0", tuple(found))


def test_errors_are_those_of_the_library_s_evaluator(case, rng):
    a, b, on_a, on_b = case.meshes
    stray = rng.integers(0, len(a), len(b))
    truth = case.truth
    expected = evaluation.errors(
        match_of(a, b, [stray], [1.0]), (truth.on_a, truth.on_b), method="edges"
    )
    assert len(expected) == 100
    np.testing.assert_allclose(truth.errors(stray), expected, rtol=1e-9)


def test_the_true_map_has_no_error(case):
    a, b, on_a, on_b = case.meshes
    right = np.empty(len(b), np.int64)
    right[on_b] = on_a
    assert not case.truth.errors(right).any()


def test_pairs_come_once_before_they_come_reversed_and_never_with_themselves(table):
    groups = [["a", "b", "c", "d"], ["x", "y"]]
    found = table.pairs_of("set", groups, 100, 0)
    assert len(found) == 14  # ordered pairs: 12 of the first group, 2 of the second
    assert len({(p.a, p.b) for p in found}) == 14 and all(p.a != p.b for p in found)
    assert len({frozenset((p.a, p.b)) for p in found[:7]}) == 7
    assert table.pairs_of("set", groups, 5, 0) == found[:5]
    assert table.pairs_of("set", groups, 14, 1) != found


def test_a_store_does_not_measure_twice_and_survives_a_cut_line(table, tmp_path):
    file = tmp_path / "deep" / "cache.jsonl"
    asked = []

    def make():
        asked.append(1)
        return {"mean": 2.5}

    assert table.Store(file).get(("set", 1), make) == {"mean": 2.5}
    with open(file, "a") as stream:
        stream.write('["set | 2", {"me')
    again = table.Store(file)
    assert again.get(("set", 1), make) == {"mean": 2.5} and len(asked) == 1
    again.get(("set", 2), make)
    assert len(asked) == 2


def test_auroc_from_histograms_is_that_of_the_values(table, rng):
    edges = np.linspace(0, 1, 11)
    near, off = (rng.integers(0, 10, n) / 10 + 0.05 for n in (80, 30))  # one value a bin
    counts = [np.histogram(x, edges)[0] for x in (near, off)]
    values, right = np.concatenate([near, off]), np.arange(110) < 80
    assert table.binned(*counts) == pytest.approx(table.auroc(values, right))


@pytest.mark.parametrize("mask", ["laplacian", "resolvent", "second-moment"])
def test_a_mask_with_coordinates_maps_a_shape_onto_itself(table, case, mask):
    priors = {"second-moment": SecondMoment.of_isometries(30)}
    found = table.masked(case, mask, "xyz", 1.0, priors)
    assert (found >= 0).sum() < len(found)  # only what the truth and the samples need
    assert 100 * case.truth.errors(found).mean() < 3.0  # an edge is about 7 long
    assert table.penalties(mask, case, "xyz", priors).mean() == pytest.approx(1.0)


def test_the_combined_mask_is_the_mean_of_both(table, case):
    priors = {"network": SecondMoment.of_isometries(30)}
    both = table.penalties("network + resolvent", case, "wks", priors)
    parts = [table.penalties(m, case, "wks", priors) for m in ("network", "resolvent")]
    np.testing.assert_allclose(both, (parts[0] + parts[1]) / 2)


def test_priors_that_differ_have_other_fingerprints(table):
    one, other = (SecondMoment.of_isometries(40, spread) for spread in (0.1, 0.2))
    assert table.fingerprint(one) == table.fingerprint(SecondMoment.of_isometries(40, 0.1))
    assert table.fingerprint(one) != table.fingerprint(other)


def test_a_match_is_recorded_with_its_hypotheses_and_confidences(table, case, monkeypatch):
    a, b, on_a, on_b = case.meshes
    right = np.empty(len(b), np.int64)
    right[on_b] = on_a
    wrong = np.full(len(b), 0)
    monkeypatch.setattr(
        table.matching, "match",
        lambda a, b, prior: match_of(a, b, [wrong, right], [0.2, 0.9]),
    )  # fmt: skip
    found = table.matched(case, SecondMoment.of_isometries(30))
    worst, best = (error for _, _, error, _ in found["hypotheses"])
    assert best == 0 and worst == found["mean"] > 10
    near, off = np.array(found["confidence"])
    assert near.sum() + off.sum() == 100 == sum(found["histogram"])
    assert near.sum() == (100 * case.truth.errors(wrong) <= table.OFF).sum()
    said = "\n".join(table.about_match([found]))
    assert "AUROC 1.000 over 2 hypotheses (not mirrored), 1 of them wrong" in said
    assert "0 of 1 pairs flagged; 1 wrong, 0 of these flagged" in said


def test_an_interval_holds_the_statistic_and_paired_differences_cancel(table, rng):
    hard = rng.exponential(10, 40)
    rows = {
        f"{mask}, wks": [{"mean": x + shift} for x in hard]
        for mask, shift in (("resolvent", 0.0), ("network", -0.5))
    }
    value, low, high = (
        float(x) for x in table.interval(hard).replace("[", "").replace("]", "").replace(",", "")
        .split()
    )  # fmt: skip
    assert low < value < high and value == pytest.approx(hard.mean(), abs=0.006)
    assert "-0.50 [-0.50, -0.50]" in "\n".join(table.differences(rows))


def test_registered_meshes_are_read_with_their_points(table, tmp_path, sphere):
    points, faces = sphere(2)
    corr = np.array([5, 3, 9])
    arrays = {"names": np.array(["cat0", "cat1", "dog0"])}
    for name in arrays["names"].tolist():
        arrays |= {f"{name}.v": points, f"{name}.f": faces, f"{name}.corr": corr}
    np.savez(tmp_path / "shapes.npz", **arrays)
    source = table.Collection(tmp_path / "shapes.npz", ("cat", "dog"))
    assert source.groups == [["cat0", "cat1"], ["dog0"]]
    a, b, on_a, on_b = source.load(table.Pair("animals", "cat0", "cat1"))
    np.testing.assert_array_equal(a.vertices[on_a], points[corr])
    np.testing.assert_array_equal(on_a, on_b)
    with pytest.raises(UserError, match="no file"):
        table.Collection(tmp_path / "other.npz", ("cat",))


def test_the_table_runs_without_data_or_prior_and_goes_on_from_its_cache(
    table, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(table, "WEIGHTS", (1.0, 10.0))
    monkeypatch.setattr(table.zoo, "available", dict)
    monkeypatch.setattr(table.creatures, "PLANS", ("human", "ape"))  # one surface to mesh
    common = ["--pairs", "1", "--mask-pairs", "1", "--tune-pairs", "1", "--places", "40",
              "--vertices", "1500", "--cache", str(tmp_path / "c.jsonl"), "--seed", "4",
              "--rows", "coordinates", "masks"]  # fmt: skip
    table.main([*common, "--json", str(tmp_path / "1.json"), "--picture", str(tmp_path / "e.png")])
    said = capsys.readouterr().out
    assert "learned masks are left out" in said and "resolvent, wks" in said
    assert "network" not in said
    assert (tmp_path / "e.png").stat().st_size > 5000
    monkeypatch.setattr(table, "timed", lambda *_: pytest.fail("measured again"))
    table.main([*common, "--json", str(tmp_path / "2.json"), "--list"])
    first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in (1, 2))
    assert first["results"] == second["results"] and len(first["pairs"]["creatures"]) == 1
    rows = first["results"]["creatures"]
    assert set(rows) == {"coordinates", *(f"{m}, {f}" for m in ("laplacian", "resolvent")
                                          for f in ("wks", "xyz"))}  # fmt: skip
    assert all(len(found) == 1 for found in rows.values())


def test_data_that_is_not_named_is_asked_for(table):
    with pytest.raises(SystemExit, match="faust needs --data"):
        table.main(["--sets", "faust", "--rows", "coordinates"])


def test_cutting_triangles_in_four_keeps_the_surface(cost, bumpy_box):
    mesh = Mesh(*bumpy_box(2))
    fine = cost.cut_in_four(mesh)
    edges = len(mesh.faces) * 3 // 2
    assert len(fine) == len(mesh) + edges and len(fine.faces) == 4 * len(mesh.faces)
    assert fine.area == pytest.approx(mesh.area)
    assert fine.is_manifold
    np.testing.assert_allclose(fine.normals[: len(mesh)], mesh.normals, atol=1e-6)


def test_denoising_by_nothing_leaves_the_noise(cost, rng):
    k, n = 30, 6
    c = rng.random((n, k, k)).astype(np.float16)
    values = np.sort(rng.random((2, k)), axis=1).astype(np.float32)
    names = np.array(["a", "b"])
    found = sets.Maps(c, np.tile([0, 1], (n, 1)), values, names, names, np.zeros(2, bool))
    nothing = SimpleNamespace(denoise=lambda x, sigma, *_: x, mean=torch.zeros(k, k))
    errors = cost.noise({"network": nothing, "gaussian": nothing}, found, k)
    np.testing.assert_allclose(errors["gaussian"], cost.SIGMAS, rtol=0.06)
    assert errors["mean"][0] == pytest.approx(np.sqrt(np.square(c.astype(float)).mean()), rel=1e-3)


@pytest.mark.slow
def test_costs_are_counted_in_a_process_of_their_own(cost):
    found = cost.apart("basis", 1500, 20, None)
    assert found["step"] == "basis" and abs(found["vertices"] - 1500) <= 15
    assert found["seconds"] > 0 and 0.1 < found["peak"] < 4
    with pytest.raises(UserError, match="vertices is a whole number"):
        cost.apart("basis", 200, 20, None)


def test_memory_of_a_process_is_its_own(cost, pytestconfig):
    """A child of a process that holds much holds little; and it notices what it takes itself."""
    held = np.ones(60_000_000)  # 0.45 GiB
    code = (
        "import sys; sys.path.insert(0, {folder!r}); import shapes_cost as c; a = c.peak();"
        "b = bytearray(300 * 2**20); b[::4096] = b'x' * len(b[::4096]); print(a, c.peak() - a)"
    ).format(folder=str(pytestconfig.rootpath / "benchmarks"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    start, taken = (float(word) for word in done.stdout.split())
    assert held.nbytes / 2**30 > 0.4
    assert start < cost.peak() - 0.2
    assert taken == pytest.approx(300 / 1024, abs=0.05)
