"""What is refused, by every entry, with the offending graph and a way out; and what is kept."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from rdkit import Chem

from driftworks import graphgen
from driftworks.errors import UserError
from driftworks.graphgen import zoo
from driftworks.graphgen.convert import from_rdkit
from driftworks.graphgen.metrics import evaluate

TINY = {"width": 16, "pair_width": 8, "heads": 2, "layers": 1, "walks": 3}
QUICK = {"bootstrap": 5, "permutations": 5, "subsets": 3}
GOOD = [nx.path_graph(4), nx.cycle_graph(5), nx.star_graph(3)]


def fit(graphs, **options):
    return graphgen.fit(graphs, steps=2, progress=False, batch=4, net=TINY, **options)


@pytest.fixture(scope="module")
def model():
    given = [graph.copy() for graph in GOOD]
    for i, graph in enumerate(given):
        graph.graph.update(label=i % 2, size=float(i))
    return fit(given, label="label", properties=["size"])


def attributed(value):
    graph = nx.path_graph(3)
    nx.set_node_attributes(graph, {0: 1.0, 1: value, 2: 2.0}, "x")
    return graph


NOT_SIMPLE = {
    "directed": nx.DiGraph([(0, 1)]),
    "a multigraph": nx.MultiGraph([(0, 1), (0, 1)]),
    "a self-loop": nx.Graph([(0, 1), (1, 1)]),
}


@pytest.mark.parametrize("what", NOT_SIMPLE)
def test_what_is_no_simple_graph_is_refused_by_its_number_everywhere(model, what):
    bad = NOT_SIMPLE[what]
    named = f"graph 3 (is|has) {what}"
    for entry in (fit, graphgen.declare, graphgen.from_networkx, model.elbo):
        with pytest.raises(UserError, match=named):
            entry([*GOOD, bad])
    with pytest.raises(UserError, match=f"(is|has) {what}"):
        model.complete(bad, n=5)
    for place, name in enumerate(("generated", "reference", "train")):
        sets = [GOOD, GOOD, GOOD]
        sets[place] = [*GOOD, bad]
        with pytest.raises(UserError, match=f"{name}: {named}"):
            evaluate(*sets, **QUICK)


def test_empty_lists_and_what_is_no_list_are_refused_everywhere(model):
    for entry in (fit, graphgen.from_networkx, graphgen.declare, model.elbo):
        with pytest.raises(UserError, match="list of graphs is empty"):
            entry([])
    for sets, message in (
        (([], GOOD, GOOD), "nothing to evaluate"),
        ((GOOD, [], GOOD), "the reference set is empty"),
        ((GOOD, GOOD, []), "the training set is empty"),
        ((["C"], ["C"], []), "the training set has no valid molecule"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(*sets, **QUICK)
    for entry in (graphgen.from_networkx, graphgen.declare, model.elbo):
        with pytest.raises(UserError, match="put it in a list"):
            entry(GOOD[0])
        with pytest.raises(UserError, match="expected networkx graphs, got 3"):
            entry(3)


def test_a_missing_graph_is_a_failure_of_the_model_and_a_mistake_in_the_data(model):
    for entry in (fit, graphgen.from_networkx, model.elbo):
        with pytest.raises(UserError, match="graph 3 is a NoneType"):
            entry([*GOOD, None])
        with pytest.raises(UserError, match="graph 3 has no nodes"):
            entry([*GOOD, nx.Graph()])
    for bad in (None, nx.Graph()):
        assert evaluate([*GOOD, bad], GOOD, **QUICK).connectivity.value == 0.75
        for name, sets in (("reference", (GOOD, [bad])), ("train", (GOOD, GOOD, [bad]))):
            with pytest.raises(UserError, match=f"{name}: graph 0 has no nodes"):
                evaluate(*sets, **QUICK)


def test_single_nodes_are_graphs_like_others(model):
    alone = nx.empty_graph(1)
    mixed = fit([*GOOD, alone])
    assert mixed.sizes.tolist() == [1, 4, 5]
    assert [len(graph) for graph in mixed.sample(3, nodes=1, steps=2)] == [1, 1, 1]
    with pytest.raises(UserError, match="no graph has two nodes"):
        fit([alone, alone])
    (whole,) = model.complete(alone, n=4, steps=2)
    assert len(whole) == 4 and 0 in whole
    report = evaluate([alone, alone], [alone, *GOOD], **QUICK)
    assert report.connectivity.value == 1 and report.nodes.value == 1
    assert report.uniqueness.value == 0.5


def test_graphs_without_edges_and_isolated_nodes_are_kept(model):
    lonely = nx.path_graph(3)
    lonely.add_nodes_from(["far", "off"])
    bare = nx.empty_graph(4)
    assert fit([lonely, bare]).sizes.tolist() == [4, 5]
    with pytest.raises(UserError, match="declared to have kind, but there are no edges"):
        fit([bare], edges="kind")
    (whole,) = model.complete(lonely, n=5, steps=2)
    assert list(whole) == list(lonely) and nx.utils.edges_equal(whole.edges, lonely.edges)
    (whole,) = model.complete(bare, n=6, steps=3)
    assert not whole.subgraph(bare).edges  # no edge between known nodes is knowledge too
    report = evaluate([lonely, bare], [bare], **QUICK)
    assert report.nodes.value == 4.5 and report.edges.value == 1
    assert report.connectivity.value == 0


def test_names_come_back_and_never_matter_to_what_is_learned(model):
    named = [nx.relabel_nodes(graph, {k: f"node {k}" for k in graph}) for graph in GOOD]
    one, other = fit(named), fit(GOOD)
    assert one.hash == other.hash
    names = ["b", 0, ("t", 1)]
    known = nx.Graph([(names[0], names[1])])
    known.add_node(names[2])
    for graph in model.complete(known, n=6, count=2, steps=2):
        assert list(graph)[:3] == names and len(set(graph)) == 6
        assert nx.utils.edges_equal(graph.subgraph(names).edges, known.edges)
    back = graphgen.to_networkx(graphgen.from_networkx(named))
    assert all(nx.utils.graphs_equal(*pair) for pair in zip(back, named, strict=True))
    assert evaluate(named, GOOD, GOOD, **QUICK).copied.value == 1


def test_known_parts_come_back_bit_identical_with_attributes_and_gaps():
    """Odd numbers, gaps between known nodes, weights: in both systems, whatever surrounds them."""
    rng = np.random.default_rng(5)
    data = []
    for n in (4, 5, 6):
        graph = nx.gnp_random_graph(n, 0.6, seed=n)
        for node in graph:
            graph.nodes[node].update(kind="ab"[node % 2], place=tuple(rng.normal(size=2)))
        for k, edge in enumerate(graph.edges):
            graph.edges[edge].update(order=k % 3, length=float(rng.normal()))
        data.append(graph)
    known = nx.Graph()
    for k, name in enumerate(("u", "v", "w")):
        known.add_node(name, kind="ba"[k % 2], place=(1 / 3 + k, -1e6 if k else 5e-324))
    known.add_edge("u", "v", order=2, length=0.1 + 0.2)
    for system in ("flow", "sde"):
        fitted = fit(data, nodes="kind", edges="order", features="place", weight="length",
                     system=system)
        for graph in fitted.complete(known, n=7, count=6, steps=4):
            assert list(graph)[:3] == list(known) and len(graph) == 7
            assert nx.utils.graphs_equal(nx.Graph(graph.subgraph(known)), known)


def test_mixed_and_undeclared_attributes_are_refused_by_node(model):
    mixed = nx.path_graph(3)
    nx.set_node_attributes(mixed, {0: "a", 1: "b"}, "kind")
    for entry in (fit, graphgen.declare):
        with pytest.raises(UserError, match="node 2 of graph 0 lacks the attribute 'kind'"):
            entry([mixed], nodes="kind")
        with pytest.raises(UserError, match="node 0 of graph 0 has an attribute 'kind' that is"):
            entry([mixed])
    with pytest.raises(UserError, match="node 0 of graph 0 has an attribute 'kind' that is not"):
        model.complete(mixed, n=4)
    whole = nx.path_graph(3)
    nx.set_node_attributes(whole, "a", "kind")
    for sets, name in ((([whole, mixed], [whole]), "generated"), (([whole], [whole, mixed]),
                       "reference"), (([whole], [whole], [whole, mixed]), "train")):  # fmt: skip
        with pytest.raises(UserError, match=f"{name}: node 2 of graph 1 lacks the attribute"):
            evaluate(*sets, nodes=["kind"], **QUICK)
    with pytest.raises(UserError, match="reference: edge 0-1 of graph 0 lacks the attribute 'o'"):
        evaluate([nx.empty_graph(2)], [whole], edges=["o"], **QUICK)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, "one", [], [[1.0]]])
def test_values_that_are_no_finite_numbers_are_refused(bad):
    with pytest.raises(UserError, match="node 1 of graph 0: x = .* is no"):
        fit([attributed(bad)], features="x")
    edge = nx.Graph()
    edge.add_edge(0, 1, w=bad)
    with pytest.raises(UserError, match="edge 0-1 of graph 0: w"):
        fit([edge], weight="w")
    known = fit([attributed(1.5)], features="x")
    with pytest.raises(UserError, match="node 1 of graph 0: x = .* is no"):
        known.complete(attributed(bad), n=4)


def test_a_category_that_is_not_a_number_is_refused():
    with pytest.raises(UserError, match="x = nan cannot be a category"):
        fit([attributed(float("nan"))], nodes="x")
    with pytest.raises(UserError, match="x = nan cannot be a category"):
        fit([attributed(np.float32("nan"))], nodes="x")


def test_values_the_model_does_not_know_are_refused_and_named():
    known = fit([attributed(1.0)], nodes="x")
    with pytest.raises(UserError, match=r"node 1 of graph 0 is 7\.0; declared are: 1\.0, 2\.0"):
        known.complete(attributed(7.0), n=4)
    with pytest.raises(UserError, match=r"node 1 of graph 0 is 7\.0"):
        known.elbo([attributed(7.0)])


def test_graphs_above_the_memory_limit_are_refused_with_the_size_that_fits():
    whole = [nx.empty_graph(200)] * 50
    limit = 8 * 50 * 120 * 120
    with pytest.raises(UserError, match="50 graphs of 120 nodes fit, or 18 of 200"):
        graphgen.from_networkx(whole, memory_limit=limit)
    # nothing of that size is allocated before the refusal
    huge = nx.empty_graph(40_000)
    for entry in (fit, graphgen.from_networkx):
        with pytest.raises(UserError, match="11.9 GiB, the limit is 4.0 GiB: 1 graphs of 23170"):
            entry([huge])
    from rdkit import Chem

    chain = Chem.MolFromSmiles("C" * 100)
    with pytest.raises(UserError, match="1 graphs of 50 nodes fit, or 0 of 100"):
        from_rdkit([chain], memory_limit=8 * 50 * 50)


@pytest.mark.parametrize("label", [-1, "a", 1.5, None, True])
def test_labels_of_data_are_whole_numbers_from_zero(label):
    given = [graph.copy() for graph in GOOD]
    for graph in given:
        graph.graph["label"] = 0
    given[1].graph["label"] = label
    with pytest.raises(UserError, match="graph 1: label 'label' must be a whole number >= 0"):
        fit(given, label="label")
    with pytest.raises(UserError, match="graph 0: label 'other' must be a whole number >= 0"):
        fit(given, label="other")


def test_conditions_the_model_cannot_meet_are_refused(model):
    for label in (2, -1, [0, 2]):
        with pytest.raises(UserError, match="label must lie in 0..1, got"):
            model.sample(2, label=label, steps=2)
    with pytest.raises(UserError, match="label must lie in 0..1, got 2"):
        model.complete(GOOD[0], label=2)
    with pytest.raises(UserError, match="unknown properties weight; it knows size"):
        model.sample(2, properties={"weight": 1.0})
    plain = fit(GOOD)
    with pytest.raises(UserError, match="trained without labels"):
        plain.sample(2, label=0)
    with pytest.raises(UserError, match="it knows none"):
        plain.sample(2, properties={"size": 1.0})
    with pytest.raises(UserError, match="no graph has height"):
        fit(GOOD, properties=["height"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"label": "a"}, "label must be a whole number or 2 of them, got 'a'"),
        ({"label": 1.5}, "label must be a whole number or 2 of them, got 1.5"),
        ({"label": True}, "label must be a whole number"),
        ({"label": [0, 1, 1]}, "label must be a whole number or 2 of them"),
        ({"properties": {"size": [0.0, 1.0, 1.0]}}, "property size must be a finite number or 2"),
        ({"properties": {"size": float("inf")}}, "property size must be a finite number"),
        ({"properties": {"size": "big"}}, "property size must be a finite number"),
        ({"nodes": (3, 4, 5)}, "a range is two numbers"),
        ({"nodes": 40_000}, "a graph of 40000 nodes takes .* GiB to draw"),
    ],
)
def test_conditions_of_the_wrong_kind_are_refused(model, asked, message):
    with pytest.raises(UserError, match=message):
        model.sample(2, steps=2, **asked)


def test_sizes_that_do_not_fit_are_refused_before_anything_is_allocated(model):
    with pytest.raises(UserError, match="a graph of 40000 nodes takes .* GiB to draw"):
        model.complete(GOOD[0], n=40_000)
    with pytest.raises(UserError, match="a graph of 3100 nodes takes .* to train on, the limit is"):
        fit([nx.path_graph(3100)])


def test_labels_without_gaps_and_of_numpy_are_taken():
    given = [graph.copy() for graph in GOOD]
    for i, graph in enumerate(given):
        graph.graph["label"] = np.int64(i % 2)
    assert fit(given, label="label").config.labels == 2
    given[0].graph["label"] = 10**9
    with pytest.raises(UserError, match="without gaps: no graph has 2, the largest is 1000000000"):
        fit(given, label="label")


@pytest.mark.parametrize("system", ["flow", "sde"])
def test_where_no_graph_has_an_edge_none_is_drawn(system):
    bare = fit([nx.empty_graph(4), nx.empty_graph(5)], system=system)
    assert [graph.size() for graph in bare.sample(6, steps=4)] == [0] * 6


def test_undeclared_attributes_can_be_left_behind():
    assert fit([attributed(1.0)], ignore="x").attributes.ignored == ("x",)
    with pytest.raises(UserError, match="expected a list of graphs, got 3"):
        fit(3)
    with pytest.raises(UserError, match="put it in a list"):
        fit(GOOD[0])


def test_known_values_far_from_the_data_come_back_too():
    model = fit([attributed(1.5), attributed(3.0)], features="x")
    for graph in model.complete(attributed(-1e300), n=4, count=2, steps=3):
        assert graph.nodes[1]["x"] == -1e300


def test_graphs_a_model_could_not_draw_count_in_its_evaluation(model):
    from driftworks.data.graphs import generate

    seen = generate("tree", 6, 0, nodes=(4, 5))
    out = model.sample(6, steps=2, require=lambda graph: graph.size() % 2 == 0, attempts=1, seed=3)
    assert 0 < len(out) < 6
    report = evaluate(out, seen, **QUICK)
    assert (report.requested, report.delivered) == (6, len(out))
    assert report.failures["missing"] == 6 - len(out)
    assert evaluate(list(out), seen, **QUICK).requested == len(out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"minutes": 0}, "minutes=0: Input should be greater than 0"),
        ({"epochs": 5}, "epochs=5: Extra inputs are not permitted; there are seed, batch"),
        ({"minutes": 1, "steps": 2}, "give the length of the run as either steps or minutes"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        graphgen.fit(GOOD, progress=False, **settings)


def test_fields_of_pytorch_geometric_graphs_are_conditions():
    pytest.importorskip("torch_geometric")
    data = graphgen.to_pyg(graphgen.from_networkx(GOOD, graphgen.declare(GOOD)))
    for k, one in enumerate(data):
        one.y, one.height = torch.tensor([k % 2]), float(k)
    model = fit(data, label="y", properties=["height"])
    assert model.config.labels == 2 and model.config.properties == ("height",)
    mean = (len(data) - 1) / 2
    assert float(model.net.property_mean[0]) == pytest.approx(mean)
    data[0].y = torch.tensor([0.5])
    with pytest.raises(UserError, match="graph 0: label 'y' must be a whole number"):
        fit(data, label="y")


def test_molecules_have_nothing_to_declare():
    with pytest.raises(UserError, match="of molecules atoms, charges and bonds"):
        fit([Chem.MolFromSmiles("CC"), None], nodes=["element"])


def test_edges_of_pytorch_geometric_graphs_end_at_nodes():
    data = pytest.importorskip("torch_geometric.data").Data
    for u, v in ((0, 5), (-1, 0)):
        index = torch.tensor([[u, v], [v, u]])
        with pytest.raises(UserError, match="graph 0 has an edge .* but its nodes are 0 to 2"):
            graphgen.from_pyg([data(num_nodes=3, edge_index=index)])
    bare = graphgen.from_pyg([data(num_nodes=3, x=torch.ones(3))], features="x")
    assert int(bare.edges.sum()) == 0 and bare.features.sum() == 3


def test_categories_that_a_checkpoint_cannot_hold_are_refused_before_training(tmp_path):
    for value in (frozenset({1}), b"x", object):
        with pytest.raises(UserError, match="cannot be a category: text, numbers"):
            fit([attributed(value)], nodes="x")
    kept = fit([attributed((1, ("a", None)))], nodes="x", out=tmp_path / "run")
    assert kept.attributes == graphgen.load(tmp_path / "run").attributes
    assert ((1, ("a", None)),) in kept.attributes.node_values


@pytest.mark.parametrize("value", ["3.5", True, 2**53 + 1, None])
def test_what_is_no_number_in_double_precision_is_no_feature(value):
    with pytest.raises(UserError, match="is no number in double precision"):
        fit([attributed(value)], features="x")


def test_a_batch_is_read_in_the_vocabulary_of_the_model():
    mols = [Chem.MolFromSmiles(text) for text in ("CCO", "CCN", "CC=O")]
    model = fit(mols)
    some = mols[:2]  # without oxygen's double bond, in another vocabulary
    wanted = model.elbo(graphgen.from_rdkit(some, model.attributes), steps=4).value
    for given in (graphgen.from_rdkit(some), some, graphgen.to_networkx(graphgen.from_rdkit(some))):
        assert torch.equal(model.elbo(given, steps=4).value, wanted)
    with pytest.raises(UserError, match=r"molecule 0 .* atom F\+0 is of no"):
        model.elbo([Chem.MolFromSmiles("CF")])
    full = model.complete(mols[0], n=5, steps=2)
    assert len(full) == 1 and len(full[0]) == 5
    assert [full[0].nodes[v]["element"] for v in range(3)] == ["C", "C", "O"]
    drawn = model.sample(2, steps=2)
    assert len(graphgen.to_rdkit(drawn)) == len(graphgen.to_networkx(drawn)) == 2
    assert len(model.elbo(drawn, steps=4).value) == 2


def test_a_graph_of_a_class_never_seen_has_likelihood_zero():
    model = fit([nx.complete_graph(3), nx.complete_graph(4)])
    found = model.elbo([nx.complete_graph(3), nx.path_graph(3)], steps=5).value
    assert torch.isfinite(found[0]) and found[1] == -torch.inf


def test_completions_keep_what_the_model_ignores():
    given = [nx.path_graph(3), nx.cycle_graph(4)]
    for graph in given:
        graph.graph["origin"] = "here"
        nx.set_node_attributes(graph, {v: f"n{v}" for v in graph}, "label")
        nx.set_node_attributes(graph, 2, "height")
    model = fit(given, features="height", ignore="label")
    full = model.complete(given[0], n=5, steps=2)[0]
    assert full.graph == {"origin": "here"}
    for node, data in given[0].nodes(data=True):
        assert full.nodes[node] == data and type(full.nodes[node]["height"]) is int


@pytest.mark.parametrize(
    ("call", "settings", "message"),
    [
        ("sample", {"seed": "a"}, "seed must be a whole number of at least 0"),
        ("sample", {"first": 0.5}, "first must be a whole number"),
        ("sample", {"noise": "a"}, "noise must be a number >= 0"),
        ("sample", {"temperature": -1.0}, "temperature must be a number >= 0"),
        ("complete", {"n": 12.5}, "n must be a whole number"),
        ("complete", {"guidance": "x"}, "guidance must be a number >= 0"),
        ("elbo", {"steps": 1}, "steps must be a whole number of at least 2"),
        ("elbo", {"draws": 0}, "draws must be a whole number of at least 1"),
    ],
)
def test_settings_that_are_none_are_named(model, call, settings, message):
    first = {"sample": 2, "complete": GOOD[0], "elbo": GOOD}[call]
    with pytest.raises(UserError, match=message):
        getattr(model, call)(first, **settings)


def test_a_guided_sample_counts_twice_against_the_limit_of_memory(model, monkeypatch):
    small = 4 * zoo.footprint(model.config) * 30 * 30
    monkeypatch.setattr(zoo, "MEMORY_LIMIT", small)
    assert len(model.sample(1, nodes=30, steps=1, label=0)) == 1
    with pytest.raises(UserError, match="graphs of up to 21 nodes fit"):
        model.sample(1, nodes=30, steps=1, label=0, guidance=2.0)


def test_a_completion_that_does_not_fit_is_refused_before_anything_is_allocated(model):
    with pytest.raises(UserError, match="a graph of 1000000 nodes takes .* to draw, the limit is"):
        model.complete(GOOD[0], n=10**6)
