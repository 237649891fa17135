"""Orbit counts against the enumeration of all induced subgraphs."""

from __future__ import annotations

import itertools
import time

import networkx as nx
import numpy as np
import pytest
import torch

from driftworks.errors import UserError
from driftworks.graphgen.orbits import ORBITS, orbit_counts

# sorted degrees of a connected graph of two to four nodes -> degree of a node -> its orbit
ORBIT = {
    (1, 1): {1: 0},
    (1, 1, 2): {1: 1, 2: 2},
    (2, 2, 2): {2: 3},
    (1, 1, 2, 2): {1: 4, 2: 5},
    (1, 1, 1, 3): {1: 6, 3: 7},
    (2, 2, 2, 2): {2: 8},
    (1, 2, 2, 3): {1: 9, 2: 10, 3: 11},
    (2, 2, 3, 3): {2: 12, 3: 13},
    (3, 3, 3, 3): {3: 14},
}


def enumerated(a: np.ndarray) -> np.ndarray:
    out = np.zeros((len(a), ORBITS), int)
    for size in (2, 3, 4):
        for chosen in itertools.combinations(range(len(a)), size):
            part = a[np.ix_(chosen, chosen)]
            if nx.is_connected(nx.from_numpy_array(part)):
                degrees = part.sum(0)
                orbit = ORBIT[tuple(sorted(degrees.tolist()))]
                for node, degree in zip(chosen, degrees.tolist(), strict=True):
                    out[node, orbit[degree]] += 1
    return out


def random_graph(rng: np.random.Generator, n: int, p: float) -> np.ndarray:
    upper = np.triu(rng.random((n, n)) < p, 1)
    return (upper | upper.T).astype(int)


def test_counts_equal_enumeration_on_every_graph_of_up_to_six_nodes():
    graphs = [g for g in nx.graph_atlas_g() if 1 <= len(g) <= 6]
    assert len(graphs) == 1 + 2 + 4 + 11 + 34 + 156
    for graph in graphs:
        a = nx.to_numpy_array(graph, dtype=int)
        assert (orbit_counts(a) == enumerated(a)).all(), list(graph.edges)


@pytest.mark.parametrize("density", [0.15, 0.5, 0.85])
def test_counts_equal_enumeration_on_larger_random_graphs(rng, density):
    a = random_graph(rng, 13, density)
    assert (orbit_counts(a) == enumerated(a)).all()


def test_a_padded_batch_gives_what_its_graphs_give_alone(rng):
    graphs = [random_graph(rng, n, 0.4) for n in (1, 7, 12, 20)]
    batch = torch.zeros(4, 20, 20, dtype=torch.int64)
    for b, graph in enumerate(graphs):
        batch[b, : len(graph), : len(graph)] = torch.from_numpy(graph) * 3  # kinds of edges
    counts = orbit_counts(batch)
    assert counts.shape == (4, 20, ORBITS) and counts.dtype == np.int64
    for b, graph in enumerate(graphs):
        assert (counts[b, : len(graph)] == orbit_counts(graph)).all()
        assert not counts[b, len(graph) :].any()


def test_what_is_no_simple_graph_is_refused():
    for bad, word in (
        (np.zeros(3), "shape"),
        (np.zeros((2, 3)), "shape"),
        (np.triu(np.ones((3, 3)), 1), "symmetric"),
        (np.eye(3), "self-loop"),
    ):
        with pytest.raises(UserError, match=word):
            orbit_counts(bad)
    assert orbit_counts(np.zeros((0, 0))).shape == (0, ORBITS)


def test_twenty_nodes_take_less_than_the_reference_algorithm(rng):
    a = random_graph(rng, 20, 0.3)
    spent = []
    for _ in range(20):
        start = time.process_time()
        orbit_counts(a)
        spent.append(time.process_time() - start)
    assert min(spent) < 0.66e-3
