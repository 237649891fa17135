"""The commands of graph models: examples that work, one clear line for mistakes, whole files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch

from driftworks import cli, graphgen
from driftworks.commands import graphs as sources
from driftworks.commands import models, sample
from driftworks.data import graphs as sets
from driftworks.errors import UserError
from driftworks.graphgen import files, picture

LENGTH = ("--steps", "3", "--batch-size", "4", "--quiet")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRIFTWORKS_CACHE", str(tmp_path / "cache"))


def small_graphs(seed: int, count: int = 8) -> list[nx.Graph]:
    """Random graphs of 4 to 7 nodes."""
    rng = np.random.default_rng(seed)
    graphs = []
    for _ in range(count):
        graph = nx.empty_graph(int(rng.integers(4, 8)))
        pairs = [(i, j) for j in graph for i in range(j) if rng.random() < 0.5]
        graph.add_edges_from([(0, 1), *pairs])
        graphs.append(graph)
    return graphs


def roles(seed: int) -> list[nx.Graph]:
    """The same with a role and a mark on nodes, a weight on edges, a class and a number."""
    graphs = small_graphs(seed)
    for k, graph in enumerate(graphs):
        graph.graph.update(group=k % 2, density=nx.density(graph))
        nx.set_node_attributes(graph, {n: "hub" if n == 0 else "leaf" for n in graph}, "role")
        nx.set_node_attributes(graph, "x", "mark")
        nx.set_edge_attributes(graph, {(u, v): 0.5 * (u + v) for u, v in graph.edges}, "w")
    return graphs


SMILES = "CCO\nCCN\nCC=O\nC#N\nCC(=O)[O-]\nc1ccccc1\n"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs, graphs with attributes and molecules, and a model of three steps of each."""
    here = tmp_path_factory.mktemp("graphs")
    files.write(small_graphs(1), here / "train.g6")
    files.write(small_graphs(2), here / "test.g6")
    files.write(roles(1), here / "roles.jsonl")
    (here / "some.smi").write_text(SMILES)
    lines = {
        "plain": ("train.g6",),
        "roles": ("roles.jsonl", "--node-attribute", "role", "--weight", "w", "--ignore", "mark",
                  "--label", "group", "--property", "density"),
        "sde": ("train.g6", "--system", "sde"),
        "molecules": ("some.smi",),
    }  # fmt: skip
    for name, (data, *options) in lines.items():
        words = ["train", "graphgen", "--data", str(here / data), *options, *LENGTH]
        assert cli.main([*words, "--out", str(here / name)]) == 0
    return here


def drawn(folder: Path, name: str, out: Path, *options: str) -> list[nx.Graph]:
    words = ["sample", "graphgen", "--model", str(folder / name), "--out", str(out), "--quiet"]
    assert cli.main([*words, "--n", "4", "--steps", "3", *options]) == 0
    return files.read(out)


MISTAKES = {
    "no model": ("sample graphgen", "--model"),
    "an unknown model": ("sample graphgen --model nonesuch", "nonesuch"),
    "a model that is a broken folder": ("sample graphgen --model {empty}", "empty"),
    "no graphs at all": ("sample graphgen --model {plain} --n 0", "--n"),
    "a form that cannot be written": ("sample graphgen --model {plain} --out a.png", ".png"),
    "a folder as output": ("sample graphgen --model {plain} --out {here}/dir.g6", "is a folder"),
    "an output below a file": ("sample graphgen --model {plain} --out {file}/a.g6", "is a file"),
    "a picture in another form": ("sample graphgen --model {plain} --picture a.gif", ".gif"),
    "attributes that graph6 would lose": ("sample graphgen --model {roles} --out a.g6", "role, w"),
    "attributes that arrays would lose": ("sample graphgen --model {roles} --out a.npz", "role, w"),
    "graphs as molecules": ("sample graphgen --model {plain} --out a.smi", "molecules"),
    "molecules as graph6": ("sample graphgen --model {molecules} --out a.g6", "element, charge"),
    "many graphs in one GraphML": ("sample graphgen --model {plain} --out a.graphml", "not 100"),
    "nodes that are no number": ("sample graphgen --model {plain} --nodes many", "nodes 'many'"),
    "an empty range of nodes": ("sample graphgen --model {plain} --nodes 9..5", "9..5"),
    "nodes the data do not have": ("sample graphgen --model {plain} --nodes 90..95", "90"),
    "an unknown requirement": ("sample graphgen --model {plain} --require round", "round"),
    "a requirement without its number": (
        "sample graphgen --model {plain} --require max_degree=few", "max_degree"
    ),
    "a requirement nobody meets": (
        "sample graphgen --model {plain} --n 2 --steps 2 --attempts 2 --require max_degree=-1 -q",
        "0 of 2 graphs, 0.0% of 4 draws accepted",
    ),
    "a label of a model without": ("sample graphgen --model {plain} --label 1", "without labels"),
    "a label that is none": ("sample graphgen --model {roles} --label 7", "0..1"),
    "a property without a value": ("sample graphgen --model {roles} --property density", "density"),
    "a property that is no number": (
        "sample graphgen --model {roles} --property density=high", "'high'"
    ),
    "a property that is not finite": (
        "sample graphgen --model {roles} --property density=inf", "'inf'"
    ),
    "an unknown property": ("sample graphgen --model {roles} --property size=3", "size"),
    "a guidance that is no weight": ("sample graphgen --model {roles} --guidance -1", "-1"),
    "an unknown solver": ("sample graphgen --model {sde} --solver newton", "newton"),
    "a solver of a discrete flow": ("sample graphgen --model {plain} --solver heun", "heun"),
    "an unknown device": ("sample graphgen --model {plain} --device abacus", "abacus"),
    "no data": ("train graphgen --out {here}/run", "--data"),
    "no output": ("train graphgen --data tree", "--out"),
    "an unknown data set": ("train graphgen --data nonesuch --out {here}/run", "nonesuch"),
    "a published set without its file": (
        "train graphgen --data ego_small --out {here}/run", "FILE.npz:ego_small"
    ),
    "a set of no file": ("train graphgen --data no.npz:tree --out {here}/run", "no file no.npz"),
    "a set of another kind of file": ("train graphgen --data {g6}:tree --out {here}/run", "'tree'"),
    "a set that is not there": ("train graphgen --data {npz}:tree --out {here}/run", "no set"),
    "several sets": ("train graphgen --data {npz} --out {here}/run", "npz:one"),
    "a file of another kind": ("train graphgen --data {file} --out {here}/run", "file.txt"),
    "a damaged archive": ("train graphgen --data {torn} --out {here}/run", "torn.npz"),
    "a folder of nothing": ("train graphgen --data {empty} --out {here}/run", "empty"),
    "a directed graph": ("train graphgen --data {directed} --out {here}/run", "directed"),
    "an undeclared attribute": (
        "train graphgen --data {jsonl} --out {here}/run", "--node-attribute mark"
    ),
    "an undeclared edge attribute": (
        "train graphgen --data {jsonl} --ignore mark --node-attribute role --out {here}/run",
        "--weight w",
    ),
    "attributes of molecules": (
        "train graphgen --data {smi} --node-attribute element --out {here}/run", "molecules"
    ),
    "an unknown preset": ("train graphgen --data tree --preset huge --out {here}/run", "huge"),
    "an unknown system": ("train graphgen --data tree --system ode --out {here}/run", "ode"),
    "a negative length": ("train graphgen --data tree --minutes -3 --out {here}/run", "minutes"),
    "a length that is none": ("train graphgen --data tree --minutes nan --out {here}/run", "nan"),
    "two lengths": (
        "train graphgen --data tree --minutes 3 --steps 3 --out {here}/run", "not both"
    ),
    "an output folder below a file": ("train graphgen --data tree --out {file}/run", "is a file"),
    "nothing to evaluate": ("evaluate graphgen", "file"),
    "no reference": ("evaluate graphgen {g6}", "--reference"),
    "a missing file": ("evaluate graphgen no.g6 --reference {g6}", "no.g6"),
    "a missing reference": ("evaluate graphgen {g6} --reference no.g6", "no.g6"),
    "a torn file": ("evaluate graphgen {cut} --reference {g6}", "line 1 is no graph6"),
    "an unknown family": ("evaluate graphgen {g6} --reference {g6} --family clan", "clan"),
    "an unknown convention": ("evaluate graphgen {g6} --reference {g6} --convention us", "us"),
    "graphs against molecules": ("evaluate graphgen {g6} --reference {smi}", "molecules"),
    "molecules against graphs": ("evaluate graphgen {smi} --reference {g6}", "molecules"),
    "fewer requested than there": (
        "evaluate graphgen {g6} --reference {g6} --requested 2", "2 requested"
    ),
    "an attribute nobody has": (
        "evaluate graphgen {g6} --reference {g6} --node-attribute role", "'role'"
    ),
    "figures in another form": ("evaluate graphgen {g6} --reference {g6} --json a.txt", ".txt"),
}  # fmt: skip


@pytest.fixture
def places(tmp_path: Path, folder: Path) -> dict[str, Path]:
    """Files, folders and models to be wrong about."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "dir.g6").mkdir()
    (here / "empty").mkdir()
    (here / "file.txt").write_text("words\n")
    (here / "cut.g6").write_bytes((folder / "train.g6").read_bytes()[:2])
    (here / "torn.npz").write_bytes(b"PK\x03\x04 no archive")
    (here / "directed.jsonl").write_text(json.dumps(nx.node_link_data(nx.DiGraph([(0, 1)]))))
    one = {"n": [2], "m": [1], "edges": [[0, 1]]}
    arrays = {f"{s}_{k}": np.array(v) for s in ("one", "two") for k, v in one.items()}
    np.savez(here / "sets.npz", **arrays)
    named = {"here": "", "empty": "empty", "file": "file.txt", "cut": "cut.g6", "torn": "torn.npz",
             "directed": "directed.jsonl", "npz": "sets.npz"}  # fmt: skip
    made = {"g6": "train.g6", "jsonl": "roles.jsonl", "smi": "some.smi"}
    made |= {name: name for name in ("plain", "roles", "sde", "molecules")}
    return {k: here / v for k, v in named.items()} | {k: folder / v for k, v in made.items()}


@pytest.mark.parametrize(("line", "named"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_nothing(
    line: str,
    named: str,
    places: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capsys.readouterr()
    monkeypatch.chdir(places["here"])
    before = sorted(places["here"].rglob("*"))
    assert cli.main(line.format(**places).split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("driftworks: ") and err.count("\n") == 1, err
    assert named.lower() in err.lower()
    assert "Traceback" not in err and out == ""
    assert sorted(places["here"].rglob("*")) == before


def test_help_imports_neither_torch_nor_networkx() -> None:
    heavy = ("matplotlib", "networkx", "numpy", "rdkit", "scipy", "torch", "torch_geometric")
    verbs = ("train", "sample", "evaluate")
    lines = [["--help"], *([verb, "graphgen", "--help"] for verb in verbs)]
    code = (
        f"import sys; from driftworks.cli import main\nfor words in {lines!r}: main(words)\n"
        f"print('loaded:', sorted(set(sys.modules) & set({heavy!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_the_help_names_what_the_library_writes_and_requires() -> None:
    from driftworks.graphgen.validity import FAMILIES

    assert sample.GRAPH_SUFFIXES == files.SUFFIXES
    assert sample.PICTURES == picture.SUFFIXES
    texts = {p.name: p.help for p in _options("sample")}
    assert all(family in texts["require"] for family in FAMILIES)
    assert all(suffix in texts["out"] for suffix in files.SUFFIXES)


def _options(verb: str) -> list:
    import typer

    return typer.main.get_command(cli.app).commands[verb].commands["graphgen"].params


@pytest.mark.parametrize("form", [".jsonl", ".g6", ".graphml.zip", ".npz"])
def test_the_same_graphs_are_drawn_into_every_form_and_measured_alike(
    form: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from driftworks import graphgen

    expected = graphgen.load(folder / "plain").sample(4, seed=5, steps=3)
    capsys.readouterr()
    out = tmp_path / f"drawn{form}"
    found = drawn(folder, "plain", out, "--seed", "5")
    printed = capsys.readouterr().out
    assert "4 of 4 graphs, 100.0% of 4 draws accepted; " in printed
    assert f"4 written to {out}; model plain" in printed
    assert [list(g) for g in found] == [list(g) for g in expected]
    assert [{*map(frozenset, g.edges)} for g in found] == [
        {*map(frozenset, g.edges)} for g in expected
    ]

    figures = tmp_path / "figures.json"
    words = ["evaluate", "graphgen", str(out), "--reference", str(folder / "test.g6"), "--train",
             str(folder / "train.g6"), "--bootstrap", "20", "--permutations", "20", "--requested",
             "5", "--json", str(figures)]  # fmt: skip
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "5 graphs requested, 4 delivered; 8 of reference, 8 to train" in printed
    report = json.loads(figures.read_text())
    connected = sum(nx.is_connected(graph) for graph in expected)
    assert report["figures"]["connectivity"]["value"] == pytest.approx(connected / 5)
    assert report["failures"]["missing"] == 1


def test_one_graph_fits_a_graphml_that_networkx_reads(folder: Path, tmp_path: Path) -> None:
    words = ["sample", "graphgen", "--model", str(folder / "roles"), "--n", "1", "--steps", "2"]
    assert cli.main([*words, "--out", str(tmp_path / "one.graphml"), "-q"]) == 0
    graph = nx.read_graphml(tmp_path / "one.graphml", node_type=int)
    assert {role for _, role in graph.nodes(data="role")} <= {"hub", "leaf"}


def test_attributes_are_learned_as_declared_and_drawn(folder: Path, tmp_path: Path) -> None:
    options = ("--label", "1", "--property", "density=0.4", "--guidance", "2", "--first", "7")
    graphs = drawn(folder, "roles", tmp_path / "drawn.jsonl", *options)
    for graph in graphs:
        assert {*graph.nodes} == {*range(len(graph))}
        assert all({*data} == {"role"} for _, data in graph.nodes(data=True))
        assert all(type(data["w"]) is float for *_, data in graph.edges(data=True))
    again = drawn(folder, "roles", tmp_path / "again.jsonl", *options, "--batch-size", "1")
    assert [g.nodes(data=True) for g in again] == [g.nodes(data=True) for g in graphs]
    assert [{*map(frozenset, g.edges)} for g in again] == [
        {*map(frozenset, g.edges)} for g in graphs
    ]


def test_requirements_and_node_counts_are_obeyed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--nodes", "5", "--require", "connected", "--require", "max_degree=4")
    graphs = drawn(folder, "plain", tmp_path / "five.g6", *options, "--attempts", "500")
    assert [len(graph) for graph in graphs] == [5] * 4
    assert all(nx.is_connected(graph) for graph in graphs)


def test_a_system_of_sdes_takes_a_solver(folder: Path, tmp_path: Path) -> None:
    assert len(drawn(folder, "sde", tmp_path / "sde.g6", "--solver", "heun")) == 4


def test_molecules_are_drawn_and_measured_as_they_stand(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = []
    for name in ("drawn.sdf", "drawn.jsonl"):
        assert len(drawn(folder, "molecules", tmp_path / name)) == 4
        out = tmp_path / f"{name}.json"
        words = ["evaluate", "graphgen", str(tmp_path / name), "--json", str(out), "-q"]
        words += ["--reference", str(folder / "some.smi"), "--bootstrap", "20"]
        assert cli.main(words) == 0
        figures.append(json.loads(out.read_text())["figures"])
    assert figures[0] == figures[1]
    capsys.readouterr()
    words = ["sample", "graphgen", "--model", str(folder / "molecules"), "--n", "4", "-q"]
    assert cli.main([*words, "--steps", "3", "--out", str(tmp_path / "drawn.smi")]) == 0
    written = len((tmp_path / "drawn.smi").read_text().splitlines())
    assert written == round(4 * figures[0]["validity"]["value"])
    printed = capsys.readouterr().out
    assert (f"({4 - written} without a SMILES)" in printed) == (written < 4)


def test_undeclared_attributes_are_said_to_be_left_out_of_a_comparison(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(folder / "roles.jsonl")
    words = ["evaluate", "graphgen", file, "--reference", file, "--bootstrap", "9"]
    words += ["--permutations", "9", "--node-attribute", "role"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "compared without the attributes mark, w" in out and "NSPDK" in out


@pytest.mark.parametrize("form", picture.SUFFIXES)
def test_a_picture_is_drawn_beside_the_file(form: str, folder: Path, tmp_path: Path) -> None:
    magic = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[form]
    shots = []
    for name in ("one", "two"):
        drawn(folder, "roles", tmp_path / "drawn.jsonl", "--picture", str(tmp_path / name) + form)
        shots.append((tmp_path / f"{name}{form}").read_bytes())
    assert shots[0] == shots[1] and shots[0].startswith(magic)


def test_a_picture_takes_unconnected_graphs_and_single_nodes(tmp_path: Path) -> None:
    some = [nx.empty_graph(1), nx.empty_graph(3), nx.path_graph(90), nx.disjoint_union_all(
        [nx.path_graph(4), nx.cycle_graph(5)])]  # fmt: skip
    assert picture.draw(some, tmp_path / "some.png", title="four").stat().st_size > 1000
    for graphs, name, message in (([], "a.png", "no graphs"), (some, "a.bmp", "choose from")):
        with pytest.raises(UserError, match=message):
            picture.draw(graphs, tmp_path / name)


def test_sources_give_the_split_they_have() -> None:
    train, test, whole = (sources.source_of("lobster", split) for split in ("train", "test", None))
    assert [len(source.graphs) for source in (train, test, whole)] == [128, 40, 200]
    edges = [sorted(graph.edges) for graph in whole.graphs]
    assert [sorted(graph.edges) for graph in train.graphs] == edges[:128]
    assert [sorted(graph.edges) for graph in test.graphs] == edges[-40:]
    assert "train split of lobster" in train.text


def test_a_stored_set_gives_its_split_or_all_of_it(tmp_path: Path) -> None:
    graphs = small_graphs(3)
    files.write(graphs, tmp_path / "own.npz")
    for split in ("train", "test", None):  # written without a split
        assert len(sources.source_of(str(tmp_path / "own.npz"), split).graphs) == len(graphs)
    found = sets.load("graphs", tmp_path / "own.npz")
    columns = {"n": found.nodes, "m": np.diff(found.edge_offsets), "edges": found.edges}
    split = np.array([0, 0, 0, 1, 2, 2, 0, 0])
    np.savez(tmp_path / "x.npz", split_of=0, **{f"a_{k}": v for k, v in columns.items()},
             a_split=split, b_n=[1], b_m=[0], b_edges=np.zeros((0, 2), int))  # fmt: skip
    name = f"{tmp_path / 'x.npz'}:a"
    train, test = (sources.source_of(name, part) for part in ("train", "test"))
    assert (len(train.graphs), len(test.graphs)) == (5, 2)
    assert sorted(test.graphs[0].edges) == sorted(graphs[4].edges)
    assert test.text == f"the test split of {name}"


def test_a_molecule_table_is_a_source_of_molecules(tmp_path: Path) -> None:
    (tmp_path / "some.smi").write_text(SMILES)
    words = ["data", "read", str(tmp_path / "some.smi"), "-q", "--out", str(tmp_path / "some.npz")]
    assert cli.main(words) == 0
    found = sources.source_of(str(tmp_path / "some.npz"), "train", progress=False)
    assert found.molecules and [mol.GetNumAtoms() for mol in found.graphs] == [3, 3, 3, 2, 4, 6]


def test_training_says_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "some.smi").write_text(SMILES + "nonsense\n[13CH4]\n")
    words = ["train", "graphgen", "--data", str(tmp_path / "some.smi"), *LENGTH]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"8 molecules: {tmp_path / 'some.smi'}\n")
    assert "trained on 6 of some.smi; left out: 1 isotope, 1 missing\n" in said


def test_molecules_are_learned_with_numbers_of_theirs(tmp_path: Path) -> None:
    rows = [f"{text.split()[0]},{k},{k % 2}" for k, text in enumerate(SMILES.splitlines())]
    (tmp_path / "some.csv").write_text("\n".join(["smiles,height,kind", *rows, "[13CH4],9,0", ""]))
    words = ["train", "graphgen", "--data", str(tmp_path / "some.csv"), *LENGTH, "--property",
             "height", "--label", "kind"]  # fmt: skip
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0
    model = graphgen.load(tmp_path / "run")
    assert model.config.properties == ("height",) and model.config.labels == 2
    heights = torch.arange(len(rows), dtype=torch.float32)  # without the isotope's 9
    assert float(model.net.property_mean[0]) == pytest.approx(float(heights.mean()))
    drawn = model.sample(2, properties={"height": 3.0}, label=1, steps=2)
    assert len(drawn) == 2


def test_a_run_is_continued_and_another_is_not_overwritten(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "graphgen", "--data", str(folder / "train.g6"), "--batch-size", "4", "-q"]
    out = ["--out", str(tmp_path / "run")]
    assert cli.main([*words, "--steps", "2", *out]) == 0
    assert cli.main([*words, "--steps", "4", *out]) == 2
    assert "run" in capsys.readouterr().err
    assert cli.main([*words, "--steps", "4", "--resume", *out]) == 0
    meta = json.loads((tmp_path / "run" / "model.json").read_text())
    assert meta["training"]["steps"] == 4


def test_models_lists_graph_models_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "shipped", lambda: {"plain": folder / "plain"})
    capsys.readouterr()
    assert cli.main(["models"]) == 0
    assert capsys.readouterr().out.startswith("plain  (graphgen, ")


def test_a_missing_networkx_is_said_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> dict[str, Path]:
        raise ModuleNotFoundError("no", name="networkx")

    monkeypatch.setattr(models, "shipped", fail)
    assert cli.main(["models"]) == 2
    assert "pip install 'driftworks[graph]'" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_training_says_so_and_can_be_resumed(folder: Path, tmp_path: Path) -> None:
    """Slow because it starts a training twice: a real signal, in a real process."""
    words = ["train", "graphgen", "--data", str(folder / "train.g6"), "--out", "run", "--quiet"]
    command = [sys.executable, "-u", "-m", "driftworks", *words]
    running = subprocess.Popen(
        [*command, "--minutes", "5"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stdout is not None
    assert "graphs to train on" in running.stdout.readline()
    time.sleep(1.0)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, "driftworks: interrupted\n")
    done = subprocess.run(
        [*command, "--steps", "2", "--resume"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.json").is_file()
