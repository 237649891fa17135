"""The kernel against one whose features are exact isomorphism classes of rooted balls."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import networkx as nx
import numpy as np
import pytest

from driftworks.errors import UserError
from driftworks.graphgen.convert import from_networkx
from driftworks.graphgen.graph import Attributes
from driftworks.graphgen.molecules import labelled
from driftworks.graphgen.nspdk import features, mmd, mmd_unbiased


def random_graphs(rng, count, labels="CNO", orders=(1, 2)):
    out = []
    for _ in range(count):
        graph = nx.gnp_random_graph(int(rng.integers(1, 9)), 0.35, seed=rng)
        for node in graph:
            graph.nodes[node]["element"] = str(rng.choice(list(labels)))
        for edge in graph.edges:
            graph.edges[edge]["order"] = int(rng.choice(orders))
        out.append(graph)
    return out


def gram(x, y):
    """Products of rows, on the columns that are in use."""
    columns = np.unique(np.concatenate([x.indices, y.indices]))

    def compact(rows):
        out = np.zeros((rows.shape[0], len(columns)))
        row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        out[row, np.searchsorted(columns, rows.indices)] = rows.data
        return out

    return compact(x) @ compact(y).T


class Exact:
    """Features by definition: pairs of rooted balls, equal when isomorphic with their roots."""

    def __init__(self):
        self.known: list[nx.Graph] = []

    def ball(self, graph, root, r):
        ball = nx.ego_graph(graph, root, r)
        nx.set_node_attributes(ball, {node: node == root for node in ball}, "root")
        for k, other in enumerate(self.known):
            if nx.is_isomorphic(ball, other, node_match=dict.__eq__, edge_match=dict.__eq__):
                return k
        self.known.append(ball)
        return len(self.known) - 1

    def features(self, graph, radius, distance):
        far = dict(nx.all_pairs_shortest_path_length(graph))
        blocks: dict[tuple[int, int], Counter] = {}
        for r in range(radius + 1):
            balls = {node: self.ball(graph, node, r) for node in graph}
            for u, v in itertools.combinations_with_replacement(graph, 2):
                d = far[u].get(v, distance + 1)
                if d <= distance:
                    pair = tuple(sorted((balls[u], balls[v])))
                    blocks.setdefault((r, d), Counter())[pair] += 1
        out = {}
        for block, counts in blocks.items():
            length = np.sqrt(sum(count**2 for count in counts.values()))
            out |= {(block, pair): count / length for pair, count in counts.items()}
        length = np.sqrt(sum(value**2 for value in out.values()))
        return {key: value / length for key, value in out.items()}


def test_the_kernel_is_that_of_exact_rooted_balls(rng):
    graphs = random_graphs(rng, 14)
    exact = Exact()
    rows = [exact.features(graph, 2, 3) for graph in graphs]
    wanted = np.array([[sum(x[k] * y.get(k, 0) for k in x) for y in rows] for x in rows])
    # many buckets, so that none holds two features but by a rare accident
    found = features(graphs, ["element"], ["order"], radius=2, distance=3, buckets=1 << 40)
    assert np.allclose(gram(found, found), wanted, atol=1e-12)


def test_few_buckets_change_the_kernel_little(rng):
    graphs = random_graphs(rng, 30)
    many = features(graphs, ["element"], ["order"], buckets=1 << 40)
    few = features(graphs, ["element"], ["order"])
    assert few.shape == (30, 1 << 16)
    assert np.abs(gram(many, many) - gram(few, few)).mean() < 2e-3


def test_rows_have_unit_length_and_do_not_depend_on_the_order_of_nodes(rng, shuffled):
    graphs = random_graphs(rng, 10)
    rows = features(graphs, ["element"], ["order"])
    assert np.allclose(rows.multiply(rows).sum(1), 1)
    again = features([shuffled(graph) for graph in graphs], ["element"], ["order"])
    assert np.allclose((rows - again).toarray(), 0)


def test_labels_matter_and_tensors_give_the_same_kernel_as_graphs(rng):
    graphs = random_graphs(rng, 12)
    spec = Attributes(("element",), (("C",), ("N",), ("O",)), ("order",), ((1,), (2,)))
    ours = features(from_networkx(graphs, spec), buckets=1 << 40)
    theirs = features(graphs, ["element"], ["order"], buckets=1 << 40)
    assert np.allclose(gram(ours, ours), gram(theirs, theirs), atol=1e-12)
    path = [nx.path_graph(3), nx.path_graph(3)]
    for graph, order in zip(path, (1, 2), strict=True):
        nx.set_edge_attributes(graph, order, "order")
    assert mmd(features(path[:1]), features(path[1:])) == 0
    assert mmd(features(path[:1], edges=["order"]), features(path[1:], edges=["order"])) > 0.1


def test_discrepancies_follow_their_definitions(rng):
    x, y = (features(random_graphs(rng, n), ["element"], ["order"]) for n in (7, 5))
    kx, ky, kxy = gram(x, x), gram(y, y), gram(x, y)
    assert mmd(x, y) == pytest.approx(kx.mean() + ky.mean() - 2 * kxy.mean())
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kx, ky)]
    assert mmd_unbiased(x, y) == pytest.approx(sum(within) - 2 * kxy.mean())
    assert mmd(x, x) == pytest.approx(0) and np.isnan(mmd_unbiased(x[:1], y))


@pytest.mark.data
def test_two_halves_of_qm9_differ_by_no_more_than_chance(data_dir):
    path = data_dir / "qm9.npz"
    if not path.exists():
        pytest.skip(f"no {path.name} in {data_dir}")
    with np.load(path, allow_pickle=False) as archive:
        smiles = [s.decode() for s in archive["smiles"] if s]
    order = np.random.default_rng(0).permutation(len(smiles))[:1000]
    pairs = labelled([smiles[i] for i in order])
    start = time.process_time()
    rows = features(pairs)
    per_molecule = (time.process_time() - start) / len(pairs)
    assert per_molecule < 3.3e-3  # the incumbent's vectoriser
    x, y = rows[:500], rows[500:]
    assert abs(mmd_unbiased(x, y)) < 5e-4
    # the biased one of two equal distributions is (1 - mean kernel) (1 / 500 + 1 / 500)
    mean = float(x.mean(0) @ y.mean(0))
    assert mmd(x, y) == pytest.approx((1 - mean) * 2 / 500, rel=0.2)
    rings = labelled(["c1ccccc1", "C1CCCCC1", "CC(C)C"] * 20)
    assert mmd(features(rings), y) > 0.05


def test_a_failed_graph_is_a_single_node_and_bad_input_is_refused():
    rows = features([None, nx.empty_graph(1), np.zeros((1, 1))])
    assert mmd(rows[:1], rows[1:2]) == mmd(rows[1:2], rows[2:]) == 0
    assert features([]).shape == (0, 1 << 16)
    with pytest.raises(UserError, match="lacks the attribute 'element'"):
        features([nx.path_graph(2)], ["element"])
    with pytest.raises(UserError, match="impossible radius -1"):
        features([], radius=-1)
    with pytest.raises(UserError, match="labels for"):
        features([(np.zeros(2), np.zeros((3, 3)))])
    with pytest.raises(UserError, match="cannot compare"):
        mmd(features([]), rows)
