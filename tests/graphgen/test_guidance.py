"""Conditions and classifier-free guidance: exact at 0 and 1, stronger in between and beyond."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from driftworks import graphgen
from driftworks.core.keys import Keys
from driftworks.graphgen.graph import Attributes
from driftworks.graphgen.network import NetConfig, build
from driftworks.graphgen.sample import generate
from driftworks.graphgen.train import Batches, TrainConfig

CHANCE = 1e-3
TINY = {"width": 16, "pair_width": 8, "heads": 2, "layers": 2, "walks": 4}


def model_of(config: NetConfig, net=None) -> graphgen.Model:
    """A model of graphs of 3 to 5 nodes with random weights, none of them zero, or with ``net``."""
    weights = build(config, seed=2).state_dict()
    generator = torch.Generator().manual_seed(8)
    for name, x in weights.items():
        if "property" not in name:
            x.add_(0.3 * torch.randn(x.shape, generator=generator))
    attributes = Attributes(nodes=("c",), node_values=(("a",), ("b",)), features=(("z", 1),))
    plain = len(config.nodes) == 1
    meta = {
        "sha256": "", "config": {"net": config.model_dump(mode="json")},
        "sizes": [3] if net else [3, 4, 5], "share": [1.0] if net else [0.4, 0.3, 0.3],
        "attributes": (Attributes() if plain else attributes).to_dict(),
    }  # fmt: skip
    model = graphgen.Model("toy", weights, meta, torch.device("cpu"))
    if net is not None:
        model.model.net = net
    return model


def same(one, other):
    a, b = one.graphs, other.graphs
    return all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("nodes", "edges", "features"))


CONDITIONS = {
    "label": {"label": [0, 2, 1, 2, 0, 1, 1, 0]},
    "properties": {"properties": {"p": [1.0, -2.0, 0.5, 3.0, 0.0, 1.0, 1.0, -1.0], "q": 0.3}},
    "both": {"label": 2, "properties": {"q": -1.0}},
}


@pytest.mark.parametrize("system", ["flow", "sde"])
@pytest.mark.parametrize("asked", CONDITIONS)
def test_a_weight_of_zero_is_the_unconditional_and_one_the_conditional_model_to_the_bit(
    system, asked
):
    config = NetConfig.model_validate(
        {"nodes": (0.5, 0.5), "edges": (0.6, 0.4), "features": [(0.0, 1.0)], "labels": 3,
         "properties": ("p", "q"), "system": system} | TINY
    )  # fmt: skip
    model, condition = model_of(config), CONDITIONS[asked]
    free = model.sample(8, seed=3, steps=4)
    zero = model.sample(8, seed=3, steps=4, guidance=0.0, **condition)
    assert same(free, zero)
    with_it = model.sample(8, seed=3, steps=4, **condition)
    assert same(with_it, model.sample(8, seed=3, steps=4, guidance=1.0, **condition))
    assert not same(free, with_it)
    assert not same(with_it, model.sample(8, seed=3, steps=4, guidance=3.0, **condition))
    # the conditional model is the network asked with the condition, without any guide
    rows = np.flatnonzero([len(graph) == 4 for graph in with_it])
    cond = {k: v[rows] for k, v in model._condition(8, condition.get("label"),
                                                    condition.get("properties")).items()}
    keys, mask = Keys.for_samples(3, rows.tolist()), torch.ones(len(rows), 4, dtype=torch.bool)
    plain, _ = generate(model.model, keys, mask, 4, cond)
    assert torch.equal(plain["edges"], with_it.graphs.edges[rows, :4, :4])


@pytest.mark.parametrize("system", ["flow", "sde"])
def test_conditions_of_single_graphs_do_not_reach_their_neighbours(system):
    config = NetConfig.model_validate(
        {"nodes": (0.5, 0.5), "edges": (0.6, 0.4), "features": [(0.0, 1.0)], "labels": 3,
         "properties": ("p", "q"), "system": system} | TINY
    )  # fmt: skip
    model = model_of(config)
    labels, values = [0, 2, 1, 2, 0, 1], [1.0, float("nan"), 0.5, 3.0, 0.0, -1.0]
    whole = model.sample(6, seed=1, steps=4, guidance=2.0, label=labels, properties={"p": values})
    for k in range(6):
        alone = model.sample(1, first=k, seed=1, steps=4, guidance=2.0, label=labels[k],
                             properties={"p": values[k]})
        n = alone.graphs.max_nodes
        assert torch.equal(alone.graphs.edges[0], whole.graphs.edges[k, :n, :n])


def test_conditions_are_left_out_one_by_one_in_training():
    """Any of them may be asked for alone, so the network must have seen it alone."""
    graphs = [nx.path_graph(3), nx.cycle_graph(4)] * 4
    config = TrainConfig.model_validate(
        {"net": NetConfig(labels=2, properties=("p", "q")), "steps": 1, "batch": 64}
    )
    batches = Batches(graphgen.from_networkx(graphs), config, torch.device("cpu"),
                      torch.tensor([0, 1] * 4), torch.ones(8, 2))
    cond = [batches(step)[2] for step in range(30)]
    label = torch.cat([c["label"] for c in cond]) < 2
    told = torch.cat([c["properties"] for c in cond]).isfinite()
    seen = torch.cat((label[:, None], told), 1)
    for wanted in itertools.product((False, True), repeat=3):
        share = float((seen == torch.tensor(wanted)).all(1).float().mean())
        exact = 0.85 / 8 + (0.15 if not any(wanted) else 0.0)
        assert share == pytest.approx(exact, abs=4 * (exact / len(seen)) ** 0.5), wanted


TILTED = ((0.55, 0.3, 0.1, 0.05), (0.05, 0.1, 0.3, 0.55))  # few edges, many edges


def exact(three_nodes, prior, **config):
    """A model of three-node graphs whose network is Bayes' rule under ``prior``."""
    net = three_nodes.model(prior, 0.5, **config).net
    return model_of(net.config, net)


@pytest.mark.parametrize("system", ["flow", "sde"])
def test_the_share_of_graphs_of_the_wanted_class_rises_with_the_weight(three_nodes, system):
    laws = three_nodes.labelled(TILTED)
    every = torch.cat((laws, laws.mean(0, keepdim=True)))  # the last one when no label is given

    def prior(label, properties):
        return every[2:] if label is None else every[label]

    model = exact(three_nodes, prior, labels=2, system=system)
    belongs = (laws[1] / laws.sum(0)).numpy()  # p(label 1 | graph)
    found = {}
    for weight in (0.0, 1.0, 2.0, 4.0):
        out = model.sample(1200, seed=2, steps=50, label=1, guidance=weight, batch_size=1200)
        found[weight] = three_nodes.counts(out.graphs.edges)
    accuracy = [float(counts @ belongs) / 1200 for counts in found.values()]
    assert chisquare(found[0.0], 1200 * every[2].numpy()).pvalue > CHANCE
    assert chisquare(found[1.0], 1200 * laws[1].numpy()).pvalue > CHANCE
    assert accuracy[0] == pytest.approx(0.5, abs=0.04)
    steps = np.diff(accuracy)
    assert (steps > 0.02).all(), accuracy


@pytest.mark.parametrize("system", ["flow", "sde"])
def test_graphs_come_nearer_to_a_wanted_property_as_the_weight_rises(three_nodes, system):
    """The property is a noisy count of edges; NaN asks for nothing."""
    base = three_nodes.labelled([0.25, 0.25, 0.25, 0.25])
    edges = three_nodes.edges.double()

    def prior(label, properties):
        if properties is None:
            return base
        off = (properties.double() - edges).square().nan_to_num(0.0)
        law = base * torch.exp(-0.5 * off)
        return law / law.sum(-1, keepdim=True)

    model = exact(three_nodes, prior, properties=("edges",), system=system)
    away = {}
    for weight in (0.0, 1.0, 3.0):
        out = model.sample(1200, seed=5, steps=50, properties={"edges": 3.0}, guidance=weight,
                           batch_size=1200)
        counts = three_nodes.counts(out.graphs.edges)
        away[weight] = float(counts @ (3.0 - edges).abs().numpy()) / 1200
        if weight < 2:
            law = prior(None, torch.tensor([[3.0]]))[0] if weight else base
            assert chisquare(counts, 1200 * (law / law.sum()).numpy()).pvalue > CHANCE
    assert away[0.0] == pytest.approx(1.5, abs=0.12)
    assert away[1.0] < away[0.0] - 0.3 and away[3.0] < away[1.0] - 0.1, away


def two_kinds():
    """Trees of eight nodes, label 0, and connected graphs of twelve edges, label 1."""
    rng = np.random.default_rng(0)
    out = []
    while len(out) < 400:
        label = len(out) % 2
        if label:
            graph = nx.gnm_random_graph(8, 12, seed=rng)
            if not nx.is_connected(graph):
                continue
        else:
            graph = nx.from_prufer_sequence(rng.integers(0, 8, 6).tolist())
        graph = nx.convert_node_labels_to_integers(graph)
        graph.graph.update(label=label, edges=float(graph.size()))
        out.append(graph)
    return out


SMALL = {"width": 32, "pair_width": 16, "heads": 2, "layers": 3, "walks": 4}


@pytest.fixture(scope="module")
def train():
    def fit(**options):
        return graphgen.fit(two_kinds(), steps=400, progress=False, batch=32, net=SMALL, warmup=50,
                            ema=0.99, **options)  # fmt: skip

    return fit


def edges(model, **condition):
    return np.array([graph.size() for graph in model.sample(200, seed=1, steps=30, **condition)])


@pytest.mark.slow
@pytest.mark.parametrize("system", ["flow", "sde"])
def test_a_trained_model_draws_the_wanted_label_the_more_often_the_larger_the_weight(train, system):
    model = train(system=system, label="label")

    def right(weight):
        few, many = (edges(model, label=k, guidance=weight) > 9.5 for k in (0, 1))
        return float(np.concatenate((~few, many)).mean())

    accuracy = [right(weight) for weight in (0.0, 0.5, 1.0)]
    assert accuracy[0] == pytest.approx(0.5, abs=0.1)
    assert accuracy[0] + 0.1 < accuracy[1] < accuracy[2] and accuracy[2] > 0.75, accuracy
    assert right(2.0) > accuracy[2] - 0.02


@pytest.mark.slow
def test_a_trained_model_comes_nearer_to_a_property_as_the_weight_rises(train):
    model = train(properties=["edges"])
    error = [
        np.abs(edges(model, properties={"edges": 12.0}, guidance=weight) - 12.0).mean()
        for weight in (0.0, 0.5, 1.0)
    ]
    assert error[0] > error[1] > error[2] and error[2] < 0.75 * error[0], error
