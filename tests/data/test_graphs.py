"""Published sets of graphs out of a file, and families drawn from a seed."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from driftworks.data import graphs
from driftworks.errors import UserError


def write(path: Path, **changes) -> Path:
    """A set "own" of a path of three nodes, an isolated node, and a triangle with a tail."""
    arrays = {
        "own_n": np.array([3, 1, 4], np.uint16),
        "own_m": np.array([2, 0, 4], np.uint32),
        "own_edges": np.array([[0, 1], [1, 2], [0, 1], [1, 2], [0, 2], [2, 3]], np.uint16),
        "own_split": np.array([0, 1, 2], np.uint8),
        "own_node_label": np.array([5, 6, 5, 7, 1, 1, 1, 2], np.uint8),
        "own_class": np.array([1, 2, 1], np.uint8),
    }
    for name, value in changes.items():
        if value is None:
            del arrays[f"own_{name}"]
        else:
            arrays[f"own_{name}"] = value
    np.savez(path, **arrays)
    return path


def test_a_set_comes_with_its_split_labels_and_isolated_nodes(tmp_path):
    found = graphs.load("own", write(tmp_path / "graphs.npz"))
    assert len(found) == 3 and repr(found) == "GraphSet(own: 1 train, 1 valid, 1 test)"
    assert [len(g) for g in found.graphs()] == [3, 1, 4]
    triangle = found.graphs("test")[0]
    assert set(triangle.edges) == {(0, 1), (1, 2), (0, 2), (2, 3)}
    assert nx.get_node_attributes(triangle, "label") == {0: 1, 1: 1, 2: 1, 3: 2}
    assert triangle.graph == {"label": 1} and found.graph(-1).graph == {"label": 1}
    plain = found.without_labels().graph(2)
    assert not plain.graph and not any(plain.nodes[u] for u in plain)
    with pytest.raises(UserError, match="train, valid, test"):
        found.graphs("dev")
    with pytest.raises(IndexError):
        found.graph(3)


def test_without_a_stored_split_the_first_fifth_is_the_test_set(tmp_path):
    count = 11
    path = tmp_path / "graphs.npz"
    ones = {"n": np.ones(count), "m": np.zeros(count), "edges": np.zeros((0, 2))}
    np.savez(path, **{f"own_{k}": v.astype(np.uint16) for k, v in ones.items()})
    found = graphs.load("own", tmp_path)  # a folder serves too
    assert found.rows("test").tolist() == [0, 1] and len(found.rows("train")) == 9


def test_a_file_that_does_not_fit_together_is_refused(tmp_path):
    path = tmp_path / "graphs.npz"
    for changes, message in (
        ({"n": None}, "no array own_n"),
        ({"m": np.array([2, 0, 3])}, "5 edges by its counts"),
        ({"n": np.array([2, 1, 4])}, "an edge to a node that does not exist"),
        ({"split": np.array([0, 1])}, "own_split has shape"),
        ({"node_label": np.array([0, 1])}, "own_node_label has shape"),
    ):
        with pytest.raises(UserError, match=message):
            graphs.load("own", write(path, **changes))
    write(path)
    with pytest.raises(UserError, match="no set 'planar'; it has: own"):
        graphs.load("planar", path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged or not a file of graphs"):
        graphs.load("own", path)
    with pytest.raises(UserError, match="no file of graphs"):
        graphs.load("own", tmp_path / "none.npz")
    np.savez(path, own_edges=np.array([{}], object), own_n=np.ones(1), own_m=np.ones(1))
    with pytest.raises(UserError, match="damaged"):
        graphs.load("own", path)  # pickled objects are never read


def test_a_set_without_a_path_says_what_is_needed():
    with pytest.raises(UserError, match="'planar' has no public address.*give path="):
        graphs.load("planar")
    with pytest.raises(UserError, match="known sets: ego_small"):
        graphs.load("zinc")


@pytest.mark.data
def test_the_published_sets_are_the_published_ones(data_dir):
    if not (data_dir / graphs.FILE).exists():
        pytest.skip(f"no {graphs.FILE} in {data_dir}")
    sets = {name: graphs.load(name, data_dir) for name in graphs.NAMES}
    for name, count in (("ego_small", 40), ("community_small", 20), ("grid", 20), ("enzymes", 117)):
        assert len(sets[name].rows("test")) == count
        assert len(sets[name].rows("train")) == len(sets[name]) - count
    for name in ("planar", "sbm", "tree"):
        assert [len(sets[name].rows(s)) for s in ("train", "valid", "test")] == [128, 32, 40]
    # the grids are networkx's
    sizes = {(a * b, 2 * a * b - a - b) for a in range(10, 20) for b in range(10, 20)}
    found = sets["grid"]
    counts = np.diff(found.edge_offsets)
    assert set(zip(found.nodes.tolist(), counts.tolist(), strict=True)) <= sizes
    assert nx.is_isomorphic(found.graph(0), nx.grid_2d_graph(10, 15))
    assert set(nx.get_node_attributes(sets["enzymes"].graph(0), "label").values()) <= {1, 2, 3}
    assert sets["enzymes"].graph(0).graph["label"] in range(1, 7)


def test_families_keep_their_sizes_and_are_connected():
    for name in graphs.FAMILIES:
        for graph in graphs.generate(name, 12, 3):
            assert nx.is_connected(graph) and list(graph) == list(range(len(graph)))
    for name, limits in (("two_communities", (13, 15)), ("planar", (10, 12)), ("tree", (1, 4)),
                         ("lobster", (1, 9)), ("ego", (5, 9))):  # fmt: skip
        sizes = [len(graph) for graph in graphs.generate(name, 25, 0, nodes=limits)]
        assert min(sizes) >= limits[0] and max(sizes) <= limits[1], name
    a = graphs.generate("grid", 1, 0, sides=(4, 4))[0]
    assert nx.is_isomorphic(a, nx.grid_2d_graph(4, 4))
    ring = graphs.generate("ring_of_cliques", 1, 0, cliques=(4, 4), sizes=(3, 3))[0]
    assert nx.is_isomorphic(ring, nx.ring_of_cliques(4, 3))


def test_a_seed_gives_the_same_graphs_and_another_seed_others():
    for name in graphs.FAMILIES:
        one, again, other = (graphs.generate(name, 3, seed) for seed in (1, 1, 2))
        assert [set(g.edges) for g in one] == [set(g.edges) for g in again]
        assert [set(g.edges) for g in one] != [set(g.edges) for g in other]


def test_trees_are_uniform_over_labelled_trees():
    drawn = graphs.generate("tree", 3200, 0, nodes=(4, 4))
    counts: dict[frozenset, int] = {}
    for tree in drawn:
        key = frozenset(map(frozenset, tree.edges))
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 16  # Cayley: n^(n - 2)
    chi2 = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi2 < 37.7  # 99.9 % of chi-square with 15 degrees of freedom; the seed is fixed


def test_block_models_have_the_densities_they_were_asked_for():
    inside = between = inside_pairs = between_pairs = 0
    for graph in graphs.generate("sbm", 40, 0, blocks=(3, 3), sizes=(20, 20)):
        for u, v in graph.edges:
            inside, between = inside + (u // 20 == v // 20), between + (u // 20 != v // 20)
        inside_pairs, between_pairs = inside_pairs + 3 * 190, between_pairs + 3 * 400
    assert abs(inside / inside_pairs - 0.3) < 4 * np.sqrt(0.21 / inside_pairs)
    # graphs that are not connected are drawn anew, which favours edges between blocks a little
    assert 0.0045 < between / between_pairs < 0.0075


def test_unknown_families_options_and_sizes_are_refused():
    for arguments, options, message in (
        (("forest", 1, 0), {}, "unknown family 'forest'; choose from two_communities"),
        (("tree", 1, 0), {"size": 3}, "tree has no option 'size'; it has: nodes"),
        (("tree", -1, 0), {}, "cannot draw -1"),
        (("tree", 1, 0), {"nodes": (5, 3)}, "low <= high"),
        (("planar", 1, 0), {"nodes": (2, 3)}, "3 <= low"),
        (("two_communities", 1, 0), {"inside": 0.0}, "probability above 0"),
        (("ego", 1, 0), {"nodes": (38, 39), "host": 40}, "no neighbourhood"),
    ):
        with pytest.raises(UserError, match=message):
            graphs.generate(*arguments, **options)
