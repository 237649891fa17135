"""Round trips through networkx, PyTorch Geometric and RDKit; everything else is refused."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from driftworks.errors import UserError
from driftworks.graphgen.convert import (
    declare,
    from_networkx,
    from_pyg,
    from_rdkit,
    molecule_attributes,
    to_networkx,
    to_pyg,
    to_rdkit,
)


def equal(one: nx.Graph, other: nx.Graph) -> bool:
    """Equal with names, their order, and attributes of the same types."""

    def shown(data):
        return {k: (type(v), v) for k, v in data.items()}

    return (
        list(one) == list(other)
        and all(type(u) is type(v) for u, v in zip(one, other, strict=True))
        and all(shown(one.nodes[u]) == shown(other.nodes[u]) for u in one)
        and {frozenset(e) for e in one.edges} == {frozenset(e) for e in other.edges}
        and all(shown(one.edges[e]) == shown(other.edges[e]) for e in one.edges)
    )


names = st.one_of(st.integers(-5, 50), st.text(max_size=3), st.tuples(st.integers(0, 3), st.text()))
numbers = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def attributed(draw):
    graph = nx.Graph()
    for name in draw(st.lists(names, min_size=1, max_size=7, unique=True)):
        graph.add_node(
            name,
            kind=draw(st.sampled_from("abc")),
            charge=draw(st.integers(-1, 1)),
            place=(draw(numbers), draw(numbers)),
            mass=draw(numbers),
        )
    nodes = list(graph)
    for i, u in enumerate(nodes):
        for v in nodes[:i]:
            if draw(st.booleans()):
                graph.add_edge(u, v, order=draw(st.sampled_from([1, 2, "x"])), length=draw(numbers))
    return graph


@settings(max_examples=40, deadline=None)
@given(st.lists(attributed(), min_size=1, max_size=3))
def test_graphs_with_any_names_and_attributes_come_back_as_they_were(graphs):
    edges = "order" if any(graph.size() for graph in graphs) else ()
    spec = declare(graphs, ["kind", "charge"], edges, ["place", "mass"], "length", ())
    batch = from_networkx(graphs, spec).check()
    back = to_networkx(batch)
    assert all(map(equal, graphs, back))
    again = from_networkx(back, spec)
    assert torch.equal(again.edges, batch.edges) and torch.equal(again.features, batch.features)


def test_isolated_nodes_single_nodes_and_graphs_without_edges_are_kept():
    lonely = nx.path_graph(3)
    lonely.add_node(3)
    graphs = [nx.empty_graph(1), nx.empty_graph(4), lonely]
    batch = from_networkx(graphs)
    assert batch.node_counts.tolist() == [1, 4, 4] and batch.edge_counts.tolist() == [0, 0, 2]
    assert batch.names is None and all(map(equal, graphs, to_networkx(batch)))


def test_names_and_their_order_come_back():
    graph = nx.Graph([("carol", "bob"), ("bob", "alice")])
    other = nx.Graph([(2, 1), (1, 0)])
    batch = from_networkx([graph, other, nx.path_graph(2)])
    assert batch.names == (("carol", "bob", "alice"), (2, 1, 0), None)
    assert all(map(equal, [graph, other], to_networkx(batch)))


def test_what_is_no_simple_graph_is_refused_with_a_way_out():
    path = nx.path_graph(2)
    for bad, message in (
        (nx.DiGraph([(0, 1)]), "graph 1 is directed; take graph.to_undirected"),
        (nx.MultiGraph([(0, 1), (0, 1)]), "graph 1 is a multigraph; take nx.Graph"),
        (nx.Graph([("a", "a")]), "graph 1 has a self-loop at node 'a'; remove"),
        (nx.Graph(), "graph 1 has no nodes"),
        (np.ones((2, 2)), "graph 1 is a ndarray, not a networkx graph"),
    ):
        with pytest.raises(UserError, match=message):
            from_networkx([path, bad])
    with pytest.raises(UserError, match="empty"):
        from_networkx([])
    with pytest.raises(UserError, match="put it in a list"):
        from_networkx(path)
    with pytest.raises(UserError, match="expected networkx graphs, got 7"):
        from_networkx(7)


def test_attributes_are_declared_or_ignored_and_never_dropped_in_silence():
    club = nx.karate_club_graph()
    with pytest.raises(UserError, match="node 0 of graph 0 has an attribute 'club'.*ignore='club'"):
        from_networkx([club])
    with pytest.raises(UserError, match="edge 0-1 of graph 0 has an attribute 'weight'"):
        declare([club], nodes="club")
    spec = declare([club], nodes="club", weight="weight")
    back = to_networkx(from_networkx([club], spec))[0]
    assert nx.get_node_attributes(back, "club") == nx.get_node_attributes(club, "club")
    assert nx.get_edge_attributes(back, "weight") == nx.get_edge_attributes(club, "weight")
    plain = from_networkx([club], declare([club], ignore=("club", "weight")))
    assert plain.weights is None and plain.attributes.ignored == ("club", "weight")
    assert plain.edge_counts.tolist() == [78]


def test_mixed_attribute_sets_are_refused_by_node():
    graph = nx.path_graph(3)
    graph.nodes[0]["kind"] = graph.nodes[1]["kind"] = "a"
    with pytest.raises(UserError, match="node 2 of graph 0 lacks the attribute 'kind'"):
        declare([graph], nodes="kind")
    graph.nodes[2]["kind"] = [1]
    with pytest.raises(UserError, match=r"kind = \[1\] cannot be a category"):
        declare([graph], nodes="kind")
    graph.nodes[2]["kind"] = "b"
    spec = declare([graph], nodes="kind")
    graph.nodes[2]["kind"] = "c"
    with pytest.raises(UserError, match="is 'c'; declared are: 'a', 'b'"):
        from_networkx([graph], spec)
    for node, value in zip(graph, (1.0, (1.0, 2.0), 0.0), strict=True):
        graph.nodes[node].clear()
        graph.nodes[node]["x"] = value
    with pytest.raises(UserError, match="node 1 of graph 0: 'x' has 2 numbers, not 1"):
        declare([graph], features="x")
    for bad in (float("nan"), "one"):
        graph.nodes[1]["x"] = bad
        with pytest.raises(UserError, match="x = .* is no"):
            declare([graph], features="x")


def test_one_and_true_are_not_taken_for_each_other():
    graph = nx.path_graph(2)
    graph.nodes[0]["on"], graph.nodes[1]["on"] = True, 1
    with pytest.raises(UserError, match="equal values"):
        declare([graph], nodes="on")
    graph.nodes[1]["on"] = False
    spec = declare([graph], nodes="on")
    graph.nodes[1]["on"] = 1
    with pytest.raises(UserError, match="declared are: False, True"):
        from_networkx([graph], spec)


def test_too_much_memory_is_refused_with_the_size_that_fits():
    graphs = [nx.path_graph(100)] * 10
    limit = 10 * 60 * 60 * 8
    with pytest.raises(UserError, match="10 graphs of 60 nodes fit, or 3 of 100"):
        from_networkx(graphs, memory_limit=limit)
    assert len(from_networkx(graphs[:3], memory_limit=limit)) == 3


def test_the_published_sets_come_back_edge_for_edge(published):
    for name in ("community_small", "ego_small", "planar"):
        graphs = published(name).graphs("test")
        back = to_networkx(from_networkx(graphs).check())
        assert all(nx.utils.graphs_equal(a, b) for a, b in zip(graphs, back, strict=True))
    labelled = published("enzymes").graphs("test")[:50]
    batch = from_networkx(labelled, declare(labelled, nodes="label"))
    assert all(map(equal, labelled, to_networkx(batch)))


geometric = pytest.mark.global_rng  # importing torch_geometric may draw from torch's generator


@geometric
def test_pyg_graphs_come_back_with_kinds_features_and_weights(rng):
    pytest.importorskip("torch_geometric")
    graph = nx.path_graph(4)
    graph.add_node(4)
    for node in graph:
        graph.nodes[node].update(kind="ab"[node % 2], z=node % 3, x=tuple(rng.normal(size=2)))
    for k, edge in enumerate(graph.edges):
        graph.edges[edge].update(order=k % 2 + 1, length=float(rng.normal()))
    for nodes in ("z", ["kind", "z"]):
        ignore = () if "kind" in nodes else "kind"
        spec = declare([graph], nodes, "order", "x", "length", ignore)
        batch = from_networkx([graph, graph], spec)
        data = to_pyg(batch)
        assert data[0].num_nodes == 5 and data[0].edge_index.shape == (2, 6)
        assert data[0].is_undirected()
        assert torch.equal(data[0].order, torch.tensor([1, 1, 2, 2, 1, 1]))
        if nodes == "z":
            assert data[0].z.tolist() == [0, 1, 2, 0, 1]
        back = from_pyg(data, attributes=spec)
        for name in ("edges", "nodes", "features", "weights", "mask"):
            assert torch.equal(getattr(back, name), getattr(batch, name)), name
        assert back.attributes == spec


@geometric
def test_pyg_fields_may_be_one_hot_and_must_be_declared():
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import Data

    both = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    x = torch.eye(3)[[2, 0, 2]]
    data = Data(x=x, edge_index=both, edge_attr=torch.tensor([5, 5, 7, 7]), y=torch.tensor([1.0]))
    with pytest.raises(UserError, match="field 'edge_attr' of nodes or edges that is not declared"):
        from_pyg([data])
    batch = from_pyg([data], nodes="x", edges="edge_attr")
    assert batch.attributes.node_values == ((0,), (2,))
    assert batch.nodes.tolist() == [[1, 0, 1]] and batch.edges[0, 0, 1] == 1
    assert from_pyg([data], features="x", weight="edge_attr").weights[0, 1, 2] == 7
    with pytest.raises(UserError, match="not one-hot"):
        from_pyg([Data(x=x * 2, edge_index=both)], nodes="x")
    with pytest.raises(UserError, match="no field 'z'; it has: edge_index, x"):
        from_pyg([Data(x=x, edge_index=both)], nodes="z", ignore="x")


@geometric
def test_pyg_graphs_that_are_not_simple_are_refused():
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import Data

    for edges, extra, message in (
        ([[0], [1]], {}, "directed: 0-1 has no edge back"),
        ([[0, 1], [1, 0]], {"w": torch.tensor([1.0, 2.0])}, "different attributes"),
        ([[0], [0]], {}, "self-loop at node 0"),
        ([[0, 0, 1], [1, 1, 0]], {}, "more than once"),
    ):
        data = Data(edge_index=torch.tensor(edges), num_nodes=2, **extra)
        with pytest.raises(UserError, match=message):
            from_pyg([data], weight="w" if extra else None)
    with pytest.raises(UserError, match="empty"):
        from_pyg([])
    with pytest.raises(UserError, match="graph 0 is no PyTorch Geometric graph"):
        from_pyg([nx.path_graph(2)])


SMILES = (
    "CCO", "c1ccccc1", "c1cc[nH]c1", "C[N+](=O)[O-]", "[NH3+]CC([O-])=O", "C#N", "[C-]#[O+]",
    "O=S(=O)(N)c1ccc(Cl)cc1", "FC(F)(F)Br", "CP(=O)(O)O", "C1=CC=NC=C1", "[H][H]", "C.O", "[NH4+]",
)  # fmt: skip


def test_molecules_come_back_with_bonds_and_charges():
    mols = [Chem.MolFromSmiles(s) for s in SMILES]
    batch = from_rdkit([*mols, Chem.AddHs(mols[0])]).check()
    back = to_rdkit(batch)
    for mol in back:
        Chem.SanitizeMol(mol)
    wanted = [Chem.MolToSmiles(mol) for mol in [*mols, mols[0]]]
    assert [Chem.MolToSmiles(mol) for mol in back] == wanted
    assert ("N", 1) in batch.attributes.node_values and batch.attributes.edge_kinds == 3
    graph = to_networkx(batch)[0]
    assert graph.nodes[2] == {"element": "O", "charge": 0} and graph.edges[1, 2] == {"order": 1}


def test_molecules_that_a_graph_cannot_hold_are_counted_by_reason():
    smiles = {"[13CH4]": "isotope", "[CH3]": "radical", "[CH2]": "radical", "N->[Cu]": "bond type"}
    failures: dict[str, int] = {}
    mols = [Chem.MolFromSmiles(s) for s in (*smiles, "CC")] + [None, Chem.Mol()]
    batch = from_rdkit(mols, failures=failures)
    assert len(batch) == 1 and sum(failures.values()) == 6
    assert failures["isotope"] == failures["missing"] == failures["empty"] == 1
    with pytest.raises(UserError, match="molecule 0 cannot be a graph: isotope"):
        from_rdkit(mols)
    spec = molecule_attributes([("C", 0)])
    with pytest.raises(UserError, match="molecule 1 cannot be a graph: atom"):
        from_rdkit([Chem.MolFromSmiles("C"), Chem.MolFromSmiles("O")], spec)
    with pytest.raises(UserError, match="no molecule"):
        from_rdkit([None], failures={})
    with pytest.raises(UserError, match="are no molecules"):
        to_rdkit(from_networkx([nx.path_graph(2)]))


def test_a_generated_molecule_is_not_corrected():
    spec = molecule_attributes([("C", 0), ("F", 0)])
    batch = from_rdkit([Chem.MolFromSmiles("CC")], spec)
    batch.edges[:] = 0
    batch.nodes[0] = 1
    batch.edges[0, 0, 1] = batch.edges[0, 1, 0] = 3
    mol = to_rdkit(batch)[0]
    assert mol.GetBondWithIdx(0).GetBondType() == Chem.BondType.TRIPLE
    with pytest.raises(Chem.AtomValenceException):
        Chem.SanitizeMol(mol)


@pytest.mark.data
def test_qm9_molecules_come_back(data_dir):
    path = data_dir / "qm9.npz"
    if not path.exists():
        pytest.skip(f"no {path.name} in {data_dir}")
    with np.load(path, allow_pickle=False) as archive:
        smiles = [s.decode() for s in archive["smiles"][::300] if s]
    mols = [Chem.MolFromSmiles(s) for s in smiles]
    failures: dict[str, int] = {}
    back = to_rdkit(from_rdkit(mols, failures=failures))
    assert sum(failures.values()) <= 0.01 * len(mols), failures
    for mol in back:
        Chem.SanitizeMol(mol)
    found = {Chem.MolToSmiles(Chem.RemoveHs(m), isomericSmiles=False) for m in back}
    assert found <= {Chem.MolToSmiles(m, isomericSmiles=False) for m in mols}
    assert len(back) == len(mols) - sum(failures.values())
