"""The evaluation: denominators, floors, failures, and what it says of real and of copied data."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import networkx as nx
import numpy as np
import pytest
from rdkit import Chem

from driftworks.data.graphs import generate
from driftworks.errors import UserError
from driftworks.graphgen.convert import declare, from_networkx, from_rdkit, to_networkx, to_pyg
from driftworks.graphgen.metrics import evaluate
from driftworks.graphgen.molecules import check, fcd

QUICK = {"bootstrap": 50, "permutations": 50, "subsets": 20}


@pytest.fixture
def trees(rng):
    return generate("tree", 40, rng, nodes=(8, 12))


def test_rates_are_shares_of_what_was_requested(trees):
    cycle, star, path = nx.cycle_graph(7), nx.star_graph(8), nx.path_graph(13)
    train, test = trees[:10], trees[20:]
    train = [tree for tree in train if not nx.is_isomorphic(tree, star)]
    given = [cycle, star, star, train[0], path, nx.empty_graph(3), None]
    report = evaluate(given, test, train, family="tree", requested=10, **QUICK)
    assert (report.requested, report.delivered) == (10, 6)
    assert report.connectivity.value == 0.5 and report.connectivity.n == 10
    assert report.validity.value == 0.4  # the stars, the copy, the new tree
    assert report.uniqueness.value == 0.5  # cycle, star, copy, new tree, empty graph
    assert report.novelty.value == 0.5 and report.copied.value == pytest.approx(0.1)
    assert report.vun.value == 0.2  # star and new tree
    assert report.failures == {"missing": 4, "not tree": 2}
    assert sum(report.failures.values()) == 10 - 4
    assert report.nodes.value == np.mean([7, 9, 9, len(train[0]), 13, 3])
    assert any("isolated nodes" in note for note in report.notes)


def test_copies_of_the_training_set_are_reported_and_not_novel(trees):
    train, test = trees[:20], trees[20:]
    report = evaluate(train, test, train, family="tree", **QUICK)
    assert report.copied.value == 1 and report.novelty.value == report.vun.value == 0
    assert report.data["copied"] == pytest.approx(len(report.leak.leaked) / 20)
    new = evaluate(trees[20:], test, train, **QUICK)
    assert new.copied.value == new.data["copied"]


def test_pytorch_geometric_graphs_are_judged_like_networkx_graphs(trees):
    pytest.importorskip("torch_geometric")
    kinds = [nx.Graph(tree) for tree in trees]
    for graph in kinds:
        nx.set_node_attributes(graph, {v: v % 3 for v in graph}, "kind")
        nx.set_node_attributes(graph, 0.5, "height")
    batch = from_networkx(kinds, declare(kinds, nodes="kind", features="height"))
    data = to_pyg(batch)
    there = evaluate([*data[:20], None], data[20:], data[:10], nodes=["kind"], **QUICK)
    here = evaluate([*kinds[:20], None], kinds[20:], kinds[:10], nodes=["kind"], **QUICK)
    assert there.to_dict() == here.to_dict()
    with pytest.raises(UserError, match="one field"):
        evaluate(data, data, nodes=["kind", "height"])
    with pytest.raises(UserError, match="graph 0 .*colour"):
        evaluate(data[:2], data[2:], nodes=["colour"])


def test_values_of_numpy_are_the_same_categories(trees):
    mine, numpys = [nx.Graph(tree) for tree in trees], [nx.Graph(tree) for tree in trees]
    for one, other in zip(mine, numpys, strict=True):
        nx.set_node_attributes(one, {v: v % 3 for v in one}, "kind")
        nx.set_node_attributes(other, {v: np.int64(v % 3) for v in other}, "kind")
    report = evaluate(mine, numpys, numpys, nodes=["kind"], **QUICK)
    assert report.copied.value == 1 and report.novelty.value == 0
    assert report.nspdk[0] == pytest.approx(0, abs=1e-12)


def test_molecules_may_come_as_networkx_graphs_on_any_side():
    mols = [Chem.MolFromSmiles(text) for text in ("CCO", "CCN", "CC=O", "CCC", "CC#N")]
    batch = from_rdkit(mols)
    graphs = to_networkx(batch)
    fitted = from_networkx(graphs, declare(graphs, nodes=("element", "charge"), edges="order"))
    reports = [
        evaluate(given, reference, bootstrap=20)
        for given, reference in ((batch, mols), (mols, graphs), (batch, graphs), (fitted, mols))
    ]
    assert all(report.to_dict() == reports[0].to_dict() for report in reports)
    assert reports[0].validity.value == 1
    assert evaluate(mols[:3], mols[3:4], bootstrap=20).fcd is None  # of one molecule there is none


def test_every_failed_sample_makes_every_discrepancy_worse(trees):
    whole = evaluate(trees[:20], trees[20:], **QUICK)
    holed = evaluate([*trees[:12], *[None] * 8], trees[20:], **QUICK)
    for name, comparison in holed.mmd.items():
        if name != "clustering":  # trees have none, and neither has a single node
            assert comparison.value > whole.mmd[name].value + 0.01, name
            assert comparison.published_all > whole.mmd[name].published_all, name
    assert holed.mmd["degree"].p <= 3 / 51  # of 50 permutations: the least is 1 / 51


def test_the_floor_is_the_training_set_scored_like_a_generator(trees):
    train, test = trees[:25], trees[25:]
    report = evaluate(trees[5:30], test, train, **QUICK)
    alone = evaluate(train, test, **QUICK)
    assert report.floor == alone.mmd and report.mean_floor == alone.mean_mmd
    assert not alone.floor and alone.mean_floor is None and alone.ratio is None
    assert "novelty" not in alone.figures
    tops = [report.mmd[k].published for k in ("degree", "orbit")]
    assert report.mean_mmd[0] == pytest.approx(np.mean([*tops, report.mmd["clustering"].published]))


def test_the_conventions_are_kept_apart(trees):
    gdss = evaluate(trees[:20], trees[20:], **QUICK)
    digress = evaluate(trees[:20], trees[20:], convention="digress", **QUICK)
    assert gdss.mmd["degree"].published != digress.mmd["degree"].published
    assert gdss.mmd["degree"].value == digress.mmd["degree"].value  # ours is one and the same
    assert "(gdss)" in str(gdss) and "(digress)" in str(digress)


def test_a_batch_of_tensors_is_judged_like_its_graphs(trees):
    for graph in trees:
        nx.set_node_attributes(graph, {u: "ab"[u % 2] for u in graph}, "kind")
    batch = from_networkx(trees[:20], declare(trees, nodes="kind"))
    ours = evaluate(batch, trees[20:], trees[:5], **QUICK)
    theirs = evaluate(trees[:20], trees[20:], trees[:5], nodes=["kind"], **QUICK)
    assert ours.to_dict() == theirs.to_dict()
    assert ours.nspdk is not None and ours.nspdk_floor is not None


def test_a_report_prints_and_dumps_all_it_holds(trees):
    report = evaluate([*trees[:20], None], trees[20:], trees[:10], family="tree", **QUICK)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["figures"]["vun"]["n"] == 21 and data["requested"] == 21
    assert set(data["mmd"]) == {"degree", "clustering", "orbit", "spectral"} == set(data["floor"])
    text = str(report)
    for word in ("21 graphs requested, 20 delivered", "vun", "spectral", "real training graphs",
                 "unbiased", "missing 1"):  # fmt: skip
        assert word in text
    assert report["vun"] is report.vun
    with pytest.raises(AttributeError, match="there are connectivity"):
        report.beauty  # noqa: B018
    again = evaluate([*trees[:20], None], trees[20:], trees[:10], family="tree", **QUICK)
    assert again.to_dict() == report.to_dict()


@pytest.mark.data
def test_real_community_graphs_score_the_measured_floor(published):
    data = published("community_small")
    train, test = data.graphs("train"), data.graphs("test")
    report = evaluate(train, test, family="two_communities", subsets=1000, bootstrap=100)
    mean, spread, least, most = report.mean_mmd
    assert mean == pytest.approx(0.0156, abs=4 * spread / np.sqrt(100))
    assert least < 0.006 < most  # the best published average is a lucky draw of real data
    assert report.connectivity.value == report.validity.value == 1
    assert all(comparison.value < 0 for comparison in report.mmd.values())
    assert all(comparison.p > 0.5 for comparison in report.mmd.values())
    assert report.triangles.value == pytest.approx(1.63, abs=0.005)


@pytest.mark.data
def test_structure_of_real_ego_graphs_is_the_measured_one(published):
    data = published("ego_small")
    report = evaluate(data.graphs("train"), data.graphs("test"), data.graphs("train"), **QUICK)
    assert report.edges.value == pytest.approx(8.54, abs=0.005)
    assert report.triangles.value == pytest.approx(0.519, abs=5e-4)
    assert report.data["copied"] == 28 / 40
    assert "28 of 40 test graphs" in str(report)


def test_bad_input_is_refused_in_a_line(trees):
    for arguments, options, message in (
        (([], trees), {}, "nothing to evaluate"),
        ((trees, []), {}, "reference set is empty"),
        ((trees, trees), {"requested": 3}, "3 requested, but 40"),
        ((trees, trees), {"family": "forest"}, "unknown family 'forest'"),
        ((trees, trees), {"convention": "moses"}, "gdss, digress"),
        ((trees[0], trees), {}, "put it in a list"),
        (("trees", trees), {}, "cannot evaluate"),
        ((trees, [nx.DiGraph([(0, 1)])]), {}, "directed"),
        ((["CC"], ["CC"]), {"family": "tree"}, "molecules have no family"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(*arguments, **options)


GOOD, BAD = ["CCO", "OCC", "c1ccccc1", "C.C"], ["CC(C)(C)(C)C", "c1cccc1", None]


def test_molecules_are_judged_as_they_are():
    report = evaluate([*GOOD, *BAD], ["CCO", "CCN", "CCC"], ["c1ccccc1", "CCN"], requested=10)
    assert report.validity.value == 0.4 and report.validity.n == 10
    assert report.published.value == 0.5  # the five-ring passes the valence check
    assert report.connectivity.value == pytest.approx(0.3)
    assert report.uniqueness.value == pytest.approx(0.3)
    assert report.unique_of_valid.value == pytest.approx(0.75) and report.unique_of_valid.n == 4
    assert report.novelty.value == pytest.approx(0.3)
    assert report.failures == {"valence": 1, "kekulize": 1, "missing": 4}
    assert report.data["novelty"] == pytest.approx(2 / 3)
    assert report.nspdk[0] > 0 and json.dumps(report.to_dict(), allow_nan=False)
    assert "kekulize 1" in str(report)


def test_molecules_come_as_smiles_rdkit_or_tensors():
    smiles = ["CCO", "CC(=O)O", "C[N+](=O)[O-]"]
    mols = [Chem.MolFromSmiles(s) for s in smiles]
    reports = [evaluate(x, smiles, bootstrap=0, seed=1) for x in (smiles, mols, from_rdkit(mols))]
    assert reports[0].to_dict() == reports[1].to_dict() == reports[2].to_dict()
    assert reports[0].nspdk[0] == pytest.approx(0, abs=1e-12)


def test_a_molecule_with_its_hydrogens_written_out_is_the_same_molecule():
    mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    assert check(mol).smiles == check(Chem.MolFromSmiles("OCC")).smiles == "CCO"
    assert check(Chem.Mol()).reason == "empty" and check(None).reason == "missing"


def test_the_frechet_distance_says_of_how_many_molecules_it_is(monkeypatch):
    fake = ModuleType("fcd_torch")

    class FCD:
        def __init__(self, **options):
            assert options == {"device": "cpu", "n_jobs": 1, "canonize": False}

        def __call__(self, reference, generated):
            return float(len(reference) - len(generated))

    fake.FCD = FCD
    monkeypatch.setitem(sys.modules, "fcd_torch", fake)
    value, note = fcd(["C"] * 20, ["C"] * 30)
    assert value == 10 and "n = 20" in note and "n < 1000" in note and "35.00" in note
    assert "bias" not in fcd(["C"] * 1000, ["C"] * 1000)[1]
    monkeypatch.setitem(sys.modules, "fcd_torch", None)
    with pytest.raises(UserError, match="driftworks\\[fcd"):
        fcd(["C"] * 2, ["C"] * 2)
    with pytest.raises(UserError, match="1 molecules"):
        fcd(["C"], ["C", "CC"])


def test_the_frechet_distance_of_chemnet():
    pytest.importorskip("fcd_torch")
    alkanes = ["C" * k for k in range(2, 22)]
    rings = ["c1ccccc1" + "O" * (k % 2) + "C" * k for k in range(20)]
    same, note = fcd(alkanes, alkanes[::-1])
    assert same == pytest.approx(0, abs=1e-3) and "n = 20" in note
    there, back = fcd(alkanes, rings)[0], fcd(rings, alkanes)[0]
    assert there > 10 and there == pytest.approx(back, rel=1e-3)
