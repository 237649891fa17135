"""The batch of padded tensors: slicing, padding, joining, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import networkx as nx
import pytest
import torch

from driftworks.errors import UserError
from driftworks.graphgen.convert import declare, from_networkx, to_networkx
from driftworks.graphgen.graph import Attributes, Graphs

NAMES = ("edges", "nodes", "features", "weights", "mask")


@pytest.fixture
def graphs(rng):
    out = []
    for n in (3, 1, 5):
        graph = nx.gnp_random_graph(n, 0.7, seed=rng)
        for node in graph:
            graph.nodes[node].update(kind=str(rng.choice(["a", "b"])), place=rng.normal(size=2))
        for edge in graph.edges:
            graph.edges[edge].update(order=int(rng.integers(1, 4)), length=float(rng.normal()))
        graph.add_edge(0, 1 % n) if n > 1 else None
        if n > 1:
            graph.edges[0, 1].update(order=1, length=0.5)
        out.append(nx.relabel_nodes(graph, {0: "zero"}) if n == 5 else graph)
    return out


@pytest.fixture
def batch(graphs) -> Graphs:
    return from_networkx(graphs, declare(graphs, "kind", "order", "place", "length"))


def same(one: Graphs, other: Graphs) -> bool:
    return one.names == other.names and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in NAMES
    )


def test_a_batch_obeys_its_own_rules(batch):
    assert batch.check() is batch
    assert len(batch) == 3 and batch.max_nodes == 5
    assert batch.node_counts.tolist() == [3, 1, 5]
    assert batch.edges.dtype == batch.nodes.dtype == torch.int64
    assert batch.features.dtype == batch.weights.dtype == torch.float64
    assert repr(batch) == "Graphs(3, nodes 1-5)"


def test_slices_and_joins_are_those_of_a_list(batch):
    assert same(Graphs.cat([batch[:1], batch[[1, 2]]]), batch)
    assert same(batch[torch.tensor([False, True, True])], batch[1:])
    assert same(batch[-1], batch[[2]]) and batch[2].names == ((*("zero", 1, 2, 3, 4),),)
    assert [len(g) for g in batch] == [1, 1, 1] and len(batch[[]]) == 0
    assert batch.edge_counts.tolist() == [g.size() for g in to_networkx(batch)]
    with pytest.raises(IndexError):
        batch[3]


def test_padding_changes_nothing(batch):
    wide = batch.padded(9)
    assert wide.max_nodes == 9 and same(wide.check().padded(5), batch)
    assert same(Graphs.cat([batch[:2].padded(3), batch[2:]]), batch)
    with pytest.raises(UserError, match="largest graph has 5"):
        batch.padded(4)


def test_moving_keeps_names_and_attributes(batch):
    moved = batch.to("cpu")
    assert same(moved, batch) and moved.attributes == batch.attributes


def test_tensors_that_do_not_fit_are_refused(batch):
    with pytest.raises(UserError, match=r"nodes has shape \(3, 4\), expected \(3, 5\)"):
        replace(batch, nodes=batch.nodes[:, :4])
    with pytest.raises(UserError, match="weights and the name"):
        replace(batch, weights=None)
    with pytest.raises(UserError, match="names of 1 graphs"):
        replace(batch, names=(None,))
    with pytest.raises(UserError, match="different attributes"):
        Graphs.cat([batch, Graphs.empty(1, 2)])


def test_values_that_break_the_rules_are_found(batch):
    def broken(name, place, value):
        tensor = getattr(batch, name).clone()
        tensor[place] = value
        return replace(batch, **{name: tensor})

    for name, place, value, message in (
        ("edges", (2, 0, 1), 0, "not symmetric"),
        ("edges", (2, 0, 0), 1, "itself"),
        ("nodes", (1, 3), 1, "padding"),
        ("features", (1, 3, 0), 1.0, "padding"),
        ("nodes", (0, 0), 2, "no declared kind"),
        ("weights", (0, 0, 0), 1.0, "no edge"),
    ):
        with pytest.raises(UserError, match=message):
            broken(name, place, value).check()
    padded = broken("edges", (1, 3, 4), 1)
    padded.edges[1, 4, 3] = 1
    with pytest.raises(UserError, match="padding has an edge"):
        padded.check()


def test_attributes_survive_json(batch):
    spec = batch.attributes
    assert Attributes.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert (spec.node_kinds, spec.width, spec.plain) == (len(spec.node_values), 2, False)
    assert Attributes().plain and Attributes().node_kinds == Attributes().edge_kinds == 1


def test_contradictory_attributes_are_refused():
    for options, message in (
        ({"nodes": ("a",)}, "0 values"),
        ({"nodes": ("a",), "node_values": (("x", "y"),)}, "one of each"),
        ({"nodes": ("a",), "node_values": ((1,), (True,))}, "equal values"),
        ({"features": (("x", 1), ("x", 2))}, "declared twice"),
        ({"features": (("x", 0),)}, "width"),
    ):
        with pytest.raises(UserError, match=message):
            Attributes(**options)
