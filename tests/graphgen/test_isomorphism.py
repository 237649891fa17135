"""Isomorphism classes against the catalogue of small graphs, and the leaks of published sets."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from driftworks.errors import UserError
from driftworks.graphgen.isomorphism import classes, isomorphic, leaks, mix


def test_graphs_of_the_atlas_are_each_a_class_of_their_own_and_keep_it_when_renamed(shuffled):
    graphs = [g for g in nx.graph_atlas_g() if len(g)][::2]
    found = classes([*graphs, *map(shuffled, graphs)])
    assert len(found) == len(graphs) == 626 and not found.undecided
    assert np.array_equal(*np.split(found.labels, 2))


def shrikhande() -> nx.Graph:
    out = nx.Graph()
    for i in range(4):
        for j in range(4):
            for a, b in ((1, 0), (0, 1), (1, 1)):
                out.add_edge((i, j), ((i + a) % 4, (j + b) % 4))
    return out


def hexagons(k: int) -> nx.Graph:
    """k rings of six nodes: colour refinement does not know them from longer rings."""
    return nx.disjoint_union_all([nx.cycle_graph(6)] * k)


def test_graphs_that_colour_refinement_cannot_part_are_told_apart(shuffled):
    rook = nx.line_graph(nx.complete_bipartite_graph(4, 4))
    assert isomorphic(rook, shrikhande()) is False
    assert isomorphic(shrikhande(), shuffled(nx.convert_node_labels_to_integers(shrikhande())))
    assert isomorphic(hexagons(2), nx.cycle_graph(12)) is False
    assert isomorphic(shuffled(hexagons(6)), hexagons(6)) is True
    assert isomorphic(hexagons(6), nx.disjoint_union(hexagons(4), nx.cycle_graph(12))) is False


def test_attributes_part_graphs_only_when_asked_for(shuffled):
    one, other = nx.path_graph(4), nx.path_graph(4)
    nx.set_node_attributes(one, dict(enumerate("CCNO")), "element")
    nx.set_node_attributes(other, dict(enumerate("CNCO")), "element")
    nx.set_edge_attributes(one, {(0, 1): 1, (1, 2): 2, (2, 3): 1}, "order")
    nx.set_edge_attributes(other, {(0, 1): 2, (1, 2): 1, (2, 3): 1}, "order")
    assert isomorphic(one, other)
    assert isomorphic(one, other, nodes=["element"]) is False
    assert isomorphic(one, other, edges=["order"]) is False
    assert isomorphic(one, shuffled(one), nodes=["element"], edges=["order"])
    turned = nx.relabel_nodes(one, {0: 3, 1: 2, 2: 1, 3: 0})
    assert isomorphic(one, turned, nodes=["element"], edges=["order"])
    # equal colours, but the orders of the bonds of a symmetric ring are placed otherwise
    rings = [nx.cycle_graph(6), nx.cycle_graph(6)]
    for ring, places in zip(rings, ((0, 2, 4), (0, 1, 3)), strict=True):
        nx.set_edge_attributes(ring, 1, "order")
        for i in places:
            ring.edges[i, (i + 1) % 6]["order"] = 2
    assert isomorphic(*rings) and not isomorphic(*rings, edges=["order"])


def test_a_search_without_time_is_undecided_and_counts_as_the_same(shuffled):
    ladder = nx.circular_ladder_graph(9)
    twisted = nx.circulant_graph(18, [1, 9])  # a Möbius ladder: the same degrees and orbits
    assert isomorphic(ladder, twisted, seconds=-1.0) is None
    assert isomorphic(shuffled(ladder), ladder, seconds=-1.0) is None
    found = classes([ladder, twisted], seconds=-1.0)
    assert len(found) == 1 and found.undecided == 1
    assert len(classes([ladder, twisted])) == 2 and isomorphic(shuffled(ladder), ladder)


def test_graphs_that_failed_belong_to_no_class():
    found = classes([nx.path_graph(3), None, nx.star_graph(2), None, nx.path_graph(4)])
    assert found.labels.tolist() == [0, -1, 0, -1, 1] and len(found) == 2
    assert len(classes([])) == 0


# set -> (test graphs that are in the training set, test graphs, classes in all where known)
LEAKS = {
    "community_small": (10, 20, 52),
    "ego_small": (28, 40, None),
    "grid": (17, 20, None),
    "enzymes": (0, 117, None),
}


@pytest.mark.data
@pytest.mark.parametrize("name", LEAKS)
def test_published_splits_leak_as_measured(published, name):
    data = published(name)
    found = leaks(data.graphs("train"), data.graphs("test"))
    leaked, test, every = LEAKS[name]
    assert (len(found.leaked), found.test, found.undecided) == (leaked, test, 0)
    assert every is None or found.classes == every
    assert f"{leaked} of {test} test graphs" in str(found)


def test_a_leak_names_the_test_graphs_that_are_copies(shuffled):
    train = [nx.path_graph(5), nx.cycle_graph(5), nx.star_graph(4), nx.path_graph(5)]
    test = [nx.complete_graph(4), shuffled(nx.path_graph(5)), nx.complete_graph(4)]
    found = leaks(train, test)
    assert found.leaked == (1,)
    assert (found.train_classes, found.test_classes, found.classes) == (3, 2, 4)


def test_missing_attributes_are_named():
    with pytest.raises(UserError, match="graph 0 lacks the attribute 'element'"):
        isomorphic(nx.path_graph(2), nx.path_graph(2), nodes=["element"])
    with pytest.raises(UserError, match="no attributes to compare"):
        isomorphic(np.zeros((2, 2)), nx.path_graph(2), nodes=["element"])


def test_mixing_is_a_bijection_that_changes_half_the_bits(rng):
    words = rng.integers(0, 1 << 63, 4096, np.uint64)
    assert len(np.unique(mix(np.arange(100_000, dtype=np.uint64)))) == 100_000
    changed = np.bitwise_count(mix(words) ^ mix(words ^ np.uint64(1)))
    assert abs(changed.mean() - 32) < 5 * 4 / np.sqrt(4096)
    # the finaliser of splitmix64 seeded with 0 gives this first word
    assert int(mix(np.uint64(0))) == 0xE220A8397B1DCDAF
