"""Graphs in files: what comes back is what went in, and what cannot is refused in one line."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from driftworks.data import graphs as sets
from driftworks.errors import UserError
from driftworks.graphgen import files
from driftworks.graphgen.convert import declare, from_rdkit
from driftworks.graphgen.graph import Attributes

MANY = (".jsonl", ".g6", ".graphml.zip", ".npz")
NAMED = (".jsonl", ".graphml.zip")


def same(one: nx.Graph, other: nx.Graph) -> bool:
    """Names and their order, edges, attributes with their types."""

    def typed(data):
        return {k: (type(v), v) for k, v in data.items()}

    nodes = [(type(n), n, typed(d)) for n, d in one.nodes(data=True)]
    edges = {frozenset((u, v)): typed(d) for u, v, d in one.edges(data=True)}
    return (
        nodes == [(type(n), n, typed(d)) for n, d in other.nodes(data=True)]
        and edges == {frozenset((u, v)): typed(d) for u, v, d in other.edges(data=True)}
        and typed(one.graph) == typed(other.graph)
    )


def plain_graphs() -> list[nx.Graph]:
    """One node, no edges, isolated nodes between others, and one above graph6's short form."""
    spread = nx.empty_graph(6)
    spread.add_edge(1, 3)
    return [nx.empty_graph(1), nx.empty_graph(5), spread, petersen(), nx.path_graph(70)]


def petersen() -> nx.Graph:
    """Without the name that networkx gives it, in the order 0..9."""
    graph = nx.empty_graph(10)
    graph.add_edges_from(nx.petersen_graph().edges)
    return graph


def attributed() -> list[nx.Graph]:
    one = nx.Graph(name="first", density=0.25)
    one.add_node("a", role="hub", age=3, mass=1.5, old=True)
    one.add_node("b c", role="", age=-2, mass=1e-9, old=False)
    one.add_node("ünïcode", role="<&\"'>", age=10**12, mass=0.1 + 0.2, old=True)
    one.add_edge("a", "ünïcode", kind="x", w=0.5)
    alone = nx.Graph(name="second", density=0.0)
    alone.add_node("only", role="r", age=0, mass=0.0, old=False)
    return [one, alone]


def back(graphs, path: Path):
    assert files.write(graphs, path) == len(graphs)
    return files.read(path)


@pytest.mark.parametrize("form", MANY)
def test_unattributed_graphs_come_back_with_their_isolated_nodes(form, tmp_path):
    graphs = plain_graphs()
    found = back(graphs, tmp_path / f"plain{form}")
    assert len(found) == len(graphs)
    assert all(same(a, b) for a, b in zip(graphs, found, strict=True))


@pytest.mark.parametrize("form", MANY)
@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2**36 - 1)), min_size=1, max_size=4))
def test_any_small_graphs_come_back(form, tmp_path_factory, drawn):
    graphs = []
    for n, bits in drawn:
        graph = nx.empty_graph(n)
        pairs = [(i, j) for j in range(n) for i in range(j)]
        graph.add_edges_from(pair for k, pair in enumerate(pairs) if bits >> k & 1)
        graphs.append(graph)
    path = tmp_path_factory.mktemp("any") / f"graphs{form}"
    assert all(same(a, b) for a, b in zip(graphs, back(graphs, path), strict=True))


@pytest.mark.parametrize("form", NAMED)
def test_names_and_attributes_come_back_with_their_types(form, tmp_path):
    found = back(attributed(), tmp_path / f"named{form}")
    assert all(same(a, b) for a, b in zip(attributed(), found, strict=True))


def test_one_graph_makes_one_graphml_that_networkx_reads(tmp_path):
    path = tmp_path / "one.graphml"
    (graph, _) = attributed()
    (found,) = back([graph], path)
    assert same(graph, found)
    theirs = nx.read_graphml(path)
    assert dict(theirs.nodes(data=True)) == dict(graph.nodes(data=True))
    with pytest.raises(UserError, match="holds one graph, not 2"):
        files.write(attributed(), tmp_path / "two.graphml")
    assert not (tmp_path / "two.graphml").exists()


def test_networkx_reads_what_is_written_and_what_it_writes_is_read(tmp_path):
    graphs = plain_graphs()
    files.write(graphs, tmp_path / "ours.g6")
    theirs = nx.read_graph6(tmp_path / "ours.g6")
    assert all(same(a, b) for a, b in zip(graphs, theirs, strict=True))
    nx.write_graph6(petersen(), tmp_path / "theirs.g6")  # with a header
    assert same(files.read(tmp_path / "theirs.g6")[0], petersen())

    files.write(attributed(), tmp_path / "ours.jsonl")
    lines = (tmp_path / "ours.jsonl").read_text().splitlines()
    theirs = [nx.node_link_graph(json.loads(line), edges="edges") for line in lines]
    assert all(same(a, b) for a, b in zip(attributed(), theirs, strict=True))
    old = [json.dumps(nx.node_link_data(graph, edges="links")) for graph in attributed()]
    (tmp_path / "theirs.jsonl").write_text("\n".join(old))
    found = files.read(tmp_path / "theirs.jsonl")
    assert all(same(a, b) for a, b in zip(attributed(), found, strict=True))


def test_lattice_names_and_vectors_come_back_as_tuples(tmp_path):
    lattice = nx.grid_2d_graph(2, 3)
    for node in lattice:
        lattice.nodes[node]["place"] = (0.5, *map(float, node))
    assert same(lattice, back([lattice], tmp_path / "grid.jsonl")[0])


def test_numbers_of_numpy_come_back_as_those_of_python(tmp_path):
    graph = nx.empty_graph(2)
    graph.nodes[0]["x"], graph.nodes[1]["x"] = np.int64(3), np.array([1.0, 2.0])
    (found,) = back([graph], tmp_path / "numpy.jsonl")
    assert found.nodes[0]["x"] == 3 and type(found.nodes[0]["x"]) is int
    assert found.nodes[1]["x"] == (1.0, 2.0)


def test_arrays_are_those_that_the_data_package_loads(tmp_path):
    graphs = plain_graphs()
    for k, graph in enumerate(graphs):
        graph.graph["label"] = k % 2
        nx.set_node_attributes(graph, {n: n % 3 for n in graph}, "label")
    assert all(
        same(a, b) for a, b in zip(graphs, back(graphs, tmp_path / "own.npz"), strict=True)
    )
    found = sets.load("graphs", tmp_path / "own.npz")
    assert found.rows("test").size == 0 and len(found.rows()) == len(graphs)
    assert sets.names(tmp_path / "own.npz") == ("graphs",)


def test_several_sets_in_one_file_must_be_told_apart(tmp_path):
    one = {"n": [2, 1], "m": [1, 0], "edges": [[0, 1]]}
    arrays = {f"{s}_{k}": np.array(v) for s in ("a", "b") for k, v in one.items()}
    np.savez(tmp_path / "two.npz", **arrays)
    with pytest.raises(UserError, match="two.npz:a, .*two.npz:b"):
        files.read(tmp_path / "two.npz")
    assert [len(graph) for graph in files.read(tmp_path / "two.npz", "b")] == [2, 1]


def test_a_compressed_text_and_a_folder_of_graphml_are_read(tmp_path):
    files.write(plain_graphs(), tmp_path / "plain.g6")
    packed = tmp_path / "packed.g6.gz"
    packed.write_bytes(gzip.compress((tmp_path / "plain.g6").read_bytes()))
    assert len(files.read(packed)) == 5
    files.write(attributed(), tmp_path / "named.graphml.zip")
    with zipfile.ZipFile(tmp_path / "named.graphml.zip") as archive:
        archive.extractall(tmp_path / "folder")
    found = files.read(tmp_path / "folder")
    assert all(same(a, b) for a, b in zip(attributed(), found, strict=True))


def _graph(nodes=(), edges=(), **data):
    graph = nx.Graph(**data)
    graph.add_nodes_from(nodes)
    graph.add_edges_from(edges)
    return graph


REFUSED = {
    "graph6 and a name": (".g6", _graph(["a", "b"]), "the node names"),
    "graph6 and another order": (".g6", _graph([1, 0]), "the node names"),
    "graph6 and a node attribute": (".g6", _graph([(0, {"x": 1})]), "'x' of node 0"),
    "graph6 and an edge attribute": (".g6", _graph([0, 1], [(0, 1, {"w": 2})]), "'w' of edge 0-1"),
    "graph6 and a graph attribute": (".g6", _graph([0], label=1), "'label'"),
    "arrays and a name": (".npz", _graph(["a"]), "the node names"),
    "arrays and a weight": (".npz", _graph([0, 1], [(0, 1, {"w": 2.0})]), "'w' of edge"),
    "arrays and a label in words": (".npz", _graph([(0, {"label": "C"})]), "'label' of node 0"),
    "arrays and a truth value": (".npz", _graph([(0, {"label": True})]), "'label' of node 0"),
    "GraphML and a vector": (".graphml", _graph([(0, {"x": (1, 2)})]), "GraphML cannot keep"),
    "GraphML and nothing": (".graphml", _graph([(0, {"x": None})]), "GraphML cannot keep"),
    "GraphML and digits for a name": (".graphml", _graph(["0", "1"]), "the node names"),
    "GraphML and mixed names": (".graphml", _graph([0, "a"]), "the node names"),
    "GraphML and a control character": (".graphml", _graph([(0, {"x": "\x00"})]), "cannot keep"),
    "JSON and a set": (".jsonl", _graph([(0, {"x": {1}})]), "JSON cannot keep graph 0"),
    "JSON and no number": (".jsonl", _graph([(0, {"x": float("nan")})]), "JSON cannot keep"),
    "JSON and a taken name": (".jsonl", _graph([0, 1], [(0, 1, {"source": 1})]), "'source'"),
    "JSON and the word id": (".jsonl", _graph([(0, {"id": 5})]), "'id' of node 0"),
    "a directed graph": (".jsonl", nx.DiGraph([(0, 1)]), "graph 0 is directed"),
    "a multigraph": (".jsonl", nx.MultiGraph([(0, 1), (0, 1)]), "graph 0 is a multigraph"),
    "graphs as molecules": (".smi", _graph([0, 1], [(0, 1)]), "holds molecules"),
}


@pytest.mark.parametrize(("form", "graph", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_a_form_cannot_keep_is_refused_and_nothing_is_written(form, graph, message, tmp_path):
    with pytest.raises(UserError, match=message):
        files.write([graph], tmp_path / f"out{form}")
    assert list(tmp_path.iterdir()) == []


def test_a_self_loop_is_kept_for_the_conversion_to_refuse(tmp_path):
    graph = nx.Graph([(0, 0), (0, 1)])
    assert same(graph, back([graph], tmp_path / "loop.jsonl")[0])
    with pytest.raises(UserError, match="cannot keep"):
        files.write([graph], tmp_path / "loop.g6")


def test_what_would_be_lost_is_known_before_anything_is_drawn():
    words = declare([_graph([(0, {"role": "a"})])], nodes="role")
    vector = declare([_graph([(0, {"x": (1.0, 2.0)})])], features="x")
    labels = declare([_graph([(0, {"label": 2})])], nodes="label")
    odd = declare([_graph([(0, {"role": (1, 2)})])], nodes="role")
    files.demand("a.g6", Attributes(), 7)
    files.demand("a.npz", labels, 7)
    files.demand("a.graphml.zip", words, 7)
    files.demand("a.jsonl", vector, 7)
    for path, attributes, count, message in (
        ("a.g6", words, 1, "cannot keep the attributes role"),
        ("a.npz", words, 1, "cannot keep the attributes role"),
        ("a.graphml.zip", vector, 1, "cannot keep the attributes x"),
        ("a.graphml", odd, 1, "cannot keep the attributes role"),
        ("a.graphml", words, 2, "one graph, not 2"),
        ("a.sdf", words, 1, "holds molecules"),
        ("a.csv", words, 1, "cannot be written"),
        ("a.g6.gz", Attributes(), 1, "cannot be written"),
        ("a.png", Attributes(), 1, "unknown kind '.png'"),
        ("graphs", Attributes(), 1, "no suffix"),
    ):
        with pytest.raises(UserError, match=message):
            files.demand(path, attributes, count)


LINE = '{"nodes": [{"id": 0}, {"id": 1}], "edges": [{"source": 0, "target": 1}]}'
GRAPHML = (
    '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">'
    '<graph edgedefault="{}">{}</graph></graphml>'
)
BAD = {
    "an empty file": ("a.g6", b"", "holds no graph"),
    "graph6 of other letters": ("a.g6", b"?\nC~ ~\n", "line 2 is no graph6"),
    "graph6 cut off": ("a.g6", b"I?h]@eOW\n", "line 1 is no graph6"),
    "graph6 of a long number cut off": ("a.g6", b"~?\n", "line 1 is no graph6"),
    "graph6 of too many nodes": ("a.g6", b"~~?" + b"~" * 5 + b"\n", "the limit is"),
    "sparse6": ("a.g6", b":An\n", "only graph6"),
    "directed graph6": ("a.g6", b"&B?\n", "only graph6"),
    "bytes": ("a.jsonl", b"\xff\xfe\x00", "no text file"),
    "no JSON": ("a.jsonl", b"{]\n", "line 1 is no JSON"),
    "JSON cut off": ("a.jsonl", f"{LINE}\n{LINE[:-9]}".encode(), "line 2 is no JSON"),
    "JSON of something else": ("a.jsonl", b"[1, 2]\n", "no list of nodes"),
    "JSON without edges": ("a.jsonl", b'{"nodes": []}\n', "no list of edges"),
    "deep JSON": ("a.jsonl", b"[" * 100_000, "line 1 is no JSON"),
    "a node without a name": ("a.jsonl", b'{"nodes": [{}], "edges": []}', "has no 'id'"),
    "a node twice": ("a.jsonl", LINE.replace("1}", "0}", 1).encode(), "there twice"),
    "an edge to nowhere": ("a.jsonl", LINE.replace("1}]}", "7}]}").encode(), "7, which is no node"),
    "parallel edges": (
        "a.jsonl",
        LINE.replace("}]}", '}, {"source": 1, "target": 0}]}').encode(),
        "there twice",
    ),
    "a directed graph": (
        "a.jsonl", LINE.replace("{", '{"directed": true, ', 1).encode(), "directed"
    ),
    "a multigraph": (
        "a.jsonl", LINE.replace("{", '{"multigraph": true, ', 1).encode(), "multigraph"
    ),
    "no GraphML": ("a.graphml", b"<a><b></a>", "damaged or no GraphML"),
    "XML of something else": ("a.graphml", b"<svg/>", "no graph in GraphML"),
    "GraphML cut off": ("a.graphml", GRAPHML.format("undirected", "")[:-8].encode(), "damaged"),
    "directed GraphML": (
        "a.graphml",
        GRAPHML.format("directed", '<node id="a"/><node id="b"/><edge source="a" target="b"/>')
        .encode(),
        "graph 0 is directed",
    ),
    "GraphML with parallel edges": (
        "a.graphml",
        GRAPHML.format(
            "undirected", '<node id="a"/><node id="b"/>' + '<edge source="a" target="b"/>' * 2
        ).encode(),
        "graph 0 is a multigraph",
    ),
    "a damaged zip": ("a.graphml.zip", b"PK\x03\x04nonsense", "damaged or no zip"),
    "a damaged npz": ("a.npz", b"PK\x03\x04nonsense", "damaged or not a file of graphs"),
    "compressed text cut off": ("a.g6.gz", gzip.compress(b"C~\n" * 99)[:-12], "cannot read"),
    "a table without SMILES": ("a.csv", b"name,x\nA,1\n", "no column 'smiles'; it has: name, x"),
    "no molecule": ("a.smi", b"xyz 1\n(( 2\n", "holds no molecule"),
    "a damaged SDF": ("a.sdf", b"one\n\n\n  9 99  0\n$$$$\n", "holds no molecule"),
    "an unknown kind": ("a.xlsx", b"", "unknown kind '.xlsx'; graph files are"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=list(BAD))
def test_a_bad_file_gets_one_clear_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        files.read(tmp_path / name)
    assert name in str(caught.value)


def test_missing_files_and_huge_arrays_are_refused(tmp_path):
    with pytest.raises(UserError, match="no file"):
        files.read(tmp_path / "nothing.g6")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="a folder without .graphml"):
        files.read(tmp_path / "empty")
    columns = {"n": [10**12], "m": [0], "edges": np.zeros((0, 2), np.int64)}
    np.savez(tmp_path / "huge.npz", **{f"own_{k}": np.array(v) for k, v in columns.items()})
    with pytest.raises(UserError, match="1000000000000 nodes, the limit is"):
        files.read(tmp_path / "huge.npz")


def test_defaults_that_graphml_declares_reach_the_nodes_and_edges(tmp_path):
    text = (
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">'
        '<key id="c" for="node" attr.name="colour" attr.type="string"><default>red</default></key>'
        '<key id="w" for="edge" attr.name="w" attr.type="double"><default>2.5</default></key>'
        '<graph edgedefault="undirected"><node id="1"><data key="c">blue</data></node>'
        '<node id="0"/><edge source="1" target="0"/></graph></graphml>'
    )
    (tmp_path / "a.graphml").write_text(text)
    (graph,) = files.read(tmp_path / "a.graphml")
    assert dict(graph.nodes(data="colour")) == {1: "blue", 0: "red"} and graph.graph == {}
    assert graph.edges[0, 1] == {"w": 2.5}


MOLECULES = ("CCO", "c1ccccc1", "C[N+](C)(C)C", "CC(=O)[O-]", "C#N", "O", "c1c[nH]cn1")


def test_molecules_come_back_from_every_form(tmp_path):
    from rdkit import Chem

    batch = from_rdkit([Chem.MolFromSmiles(text) for text in MOLECULES])
    for name in ("a.smi", "a.sdf"):
        assert files.write(batch, tmp_path / name) == len(MOLECULES)
        again = from_rdkit(files.read(tmp_path / name), batch.attributes)
        if name == "a.sdf":  # in the same order of atoms and bonds
            assert (again.nodes == batch.nodes).all() and (again.edges == batch.edges).all()
        found = [Chem.CanonSmiles(line.split()[0]) for line in _smiles(again, tmp_path)]
        assert found == [Chem.CanonSmiles(text) for text in MOLECULES]
    files.write(batch, tmp_path / "a.jsonl")
    graphs = files.read(tmp_path / "a.jsonl")
    molecules = files.molecular(graphs)
    assert molecules is not None
    assert (molecules.nodes == batch.nodes).all() and (molecules.edges == batch.edges).all()
    assert files.molecular(plain_graphs()) is None
    (tmp_path / "a.csv").write_text("id,SMILES\n1,CCO\n2,nonsense\n3\n")
    assert [mol is not None for mol in files.read(tmp_path / "a.csv")] == [True, False, False]


def _smiles(batch, folder: Path) -> list[str]:
    files.write(batch, folder / "again.smi")
    return (folder / "again.smi").read_text().splitlines()


def test_an_impossible_molecule_is_kept_as_it_stands_but_for_smiles(tmp_path):
    star = nx.star_graph(6)  # carbon with six bonds
    nx.set_node_attributes(star, "C", "element")
    nx.set_node_attributes(star, 0, "charge")
    nx.set_edge_attributes(star, 1, "order")
    assert files.write([star], tmp_path / "a.smi") == 0
    assert files.write([star], tmp_path / "a.sdf", numbers=[41]) == 1
    (mol,) = files.read(tmp_path / "a.sdf")
    assert mol.GetProp("_Name") == "41"
    assert sorted(atom.GetDegree() for atom in mol.GetAtoms()) == [1] * 6 + [6]


def test_equal_graphs_make_equal_files(tmp_path):
    for form in MANY:
        for name in ("one", "two"):
            files.write(plain_graphs(), tmp_path / f"{name}{form}")
        first, second = (tmp_path / f"{name}{form}" for name in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "kept.jsonl"
    files.write(plain_graphs(), path)
    before = path.read_bytes()

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("driftworks.core.checkpoint.write_atomically", full)
    with pytest.raises(UserError, match="No space left"):
        files.write(plain_graphs()[:1], path)
    assert path.read_bytes() == before


def test_columns_and_tags_are_properties_of_molecules(tmp_path):
    (tmp_path / "a.csv").write_text("name,smiles,gap,kind\nx,CCO,1.5,0\ny,CC,,1\nz,nonsense,2,3\n")
    first, second, third = files.read(tmp_path / "a.csv")
    assert first.GetPropsAsDict() == {"name": "x", "gap": 1.5, "kind": 0} and third is None
    assert second.GetPropsAsDict() == {"name": "y", "kind": 1}
    writer = Chem.SDWriter(str(tmp_path / "a.sdf"))
    first.UpdatePropertyCache()
    writer.write(first)
    writer.close()
    (tagged,) = files.read(tmp_path / "a.sdf")
    assert tagged.GetPropsAsDict()["gap"] == 1.5 and tagged.GetNumAtoms() == 3
