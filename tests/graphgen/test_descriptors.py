"""Descriptors against networkx, and what counts as a graph."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from driftworks.errors import UserError
from driftworks.graphgen.convert import from_networkx
from driftworks.graphgen.descriptors import adjacencies, describe
from driftworks.graphgen.orbits import orbit_counts


@pytest.fixture
def graphs(rng):
    out = [nx.gnp_random_graph(int(rng.integers(2, 25)), 0.3, seed=rng) for _ in range(12)]
    lonely = nx.complete_graph(4)
    lonely.add_nodes_from("ab")
    return [*out, lonely, nx.empty_graph(1), nx.turan_graph(7, 2)]


def test_descriptors_are_the_histograms_that_networkx_gives(graphs):
    found = describe(adjacencies(graphs))
    for k, graph in enumerate(graphs):
        degrees = np.array(nx.degree_histogram(graph)) / len(graph)
        assert np.allclose(found["degree"][k][: len(degrees)], degrees)
        assert not found["degree"][k][len(degrees) :].any()
        clustering = np.histogram(list(nx.clustering(graph).values()), 100, (0.0, 1.0))[0]
        assert np.array_equal(found["clustering"][k] * len(graph), clustering)
        values = np.linalg.eigvalsh(nx.normalized_laplacian_matrix(graph).toarray())
        spectrum = np.histogram(values.clip(0, 2), 200, (-1e-5, 2))[0]
        # an eigenvalue on the edge of a bin may fall to either side
        counts = found["spectral"][k] * len(graph)
        assert np.abs(np.cumsum(counts) - np.cumsum(spectrum)).max() < 2.5
        assert np.abs(counts - spectrum).sum() <= 4
    for name in ("degree", "clustering", "spectral"):
        assert np.allclose(found[name].sum(1), 1)


def test_the_spectrum_of_a_bipartite_graph_keeps_its_eigenvalue_two():
    for n in range(2, 30):
        row = describe(adjacencies([nx.star_graph(n)]), ["spectral"])["spectral"][0]
        assert row.sum() == pytest.approx(1) and row[-1] == pytest.approx(1 / (n + 1))


def test_orbits_are_means_over_the_nodes():
    graph = nx.petersen_graph()
    row = describe(adjacencies([graph]), ["orbit"])["orbit"][0]
    assert np.allclose(row, orbit_counts(nx.to_numpy_array(graph))[0])  # all nodes are alike


def test_a_failed_sample_is_described_as_a_single_isolated_node():
    rows = describe(adjacencies([None, nx.Graph(), nx.empty_graph(1)]))
    for values in rows.values():
        assert (values == values[0]).all()


def test_a_batch_of_tensors_and_its_graphs_are_described_alike(graphs):
    for graph in graphs:
        for data in graph.nodes.values():
            data.clear()
    ours, theirs = describe(adjacencies(from_networkx(graphs))), describe(adjacencies(graphs))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_what_is_no_simple_graph_is_refused():
    loop = nx.Graph([(0, 0)])
    for bad, word in (
        (nx.DiGraph([(0, 1)]), "directed"),
        (nx.MultiGraph([(0, 1)]), "multigraph"),
        (loop, "self-loop"),
        (np.ones((2, 3)), "no graph"),
        (np.triu(np.ones((3, 3)), 1), "symmetric"),
    ):
        with pytest.raises(UserError, match=f"graph 1.*{word}"):
            adjacencies([nx.path_graph(2), bad])
    with pytest.raises(UserError, match="choose from degree"):
        describe([], ["degrees"])
    with pytest.raises(UserError, match="expected graphs"):
        adjacencies("graphs")
