"""Lists of graphs as files, by suffix.

    .jsonl        one graph a line, networkx's node-link form; every name and attribute kept
    .g6           one graph a line, graph6 (McKay): structure alone, nodes 0..n-1
    .graphml      one graph; strings, numbers and truth values as attributes
    .graphml.zip  any number of graphs, one such file each
    .npz          arrays of nodes, edges and integer labels, the form of `driftworks.data.graphs`
    .smi          SMILES and number of the molecules that are valid
    .sdf          molecules as they stand, valid or not, with a drawing's coordinates

What a form cannot keep is refused and never dropped: graphs are read back before the file appears,
and a name or value that would return as another one is an error. The one exception is ``.smi``,
which has no way to write a molecule with impossible valences; `write` returns how many it holds.
Sequences come back as tuples, numpy's numbers as Python's.

Reading also takes ``.smiles``, ``.csv`` and ``.tsv`` with a column of SMILES, a folder of GraphML
files, and any text form with ``.gz`` behind it. Other columns, and the tags of an SDF, become
properties of the molecules. GraphML knows only strings as names of nodes; where
all are whole numbers they are read as such.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import ParseError

import numpy as np

from driftworks.core.checkpoint import write_file
from driftworks.data import graphs as sets
from driftworks.errors import UserError
from driftworks.graphgen.convert import (
    MEMORY_LIMIT,
    from_networkx,
    molecule_attributes,
    to_networkx,
    to_rdkit,
)
from driftworks.graphgen.graph import Attributes, Graphs

if TYPE_CHECKING:
    from networkx import Graph
    from rdkit.Chem import Mol

__all__ = ["READABLE", "SUFFIXES", "demand", "molecular", "of_molecules", "read", "suffix", "write"]

#: What `write` writes.
SUFFIXES = (".jsonl", ".g6", ".graphml", ".graphml.zip", ".npz", ".smi", ".sdf")
#: What `read` reads; the text forms also as .gz.
READABLE = (*SUFFIXES, ".smiles", ".csv", ".tsv")

_MOLECULES = (".smi", ".smiles", ".csv", ".tsv", ".sdf")
_SMILES_COLUMNS = ("smiles", "canonical_smiles", "smi", "structure")
MAX_BYTES = 2 << 30  # of a file, after unpacking
MAX_SMILES = 20_000  # characters
#: A graph of more nodes has no place in one adjacency matrix of `convert`.
MAX_NODES = math.isqrt(MEMORY_LIMIT // 8)


def suffix(path: str | os.PathLike[str]) -> str:
    """The member of `READABLE` that a name ends with; `UserError` names the choices."""
    name = Path(path).name.lower().removesuffix(".gz")
    for known in sorted(READABLE, key=len, reverse=True):
        if name.endswith(known) and name != known:
            return known
    given = Path(path).suffix
    kind = f"unknown kind {given!r}" if given else "no suffix"
    raise UserError(f"{path} has {kind}; graph files are: {', '.join(READABLE)}")


def of_molecules(path: str | os.PathLike[str]) -> bool:
    """Whether files of this suffix hold molecules rather than graphs."""
    return suffix(path) in _MOLECULES


def demand(path: str | os.PathLike[str], attributes: Attributes, count: int) -> None:
    """`UserError` unless ``count`` graphs with these attributes can be kept by this form."""
    form = suffix(path)
    if form not in SUFFIXES or Path(path).name.lower().endswith(".gz"):
        raise UserError(f"{path} cannot be written; choose one of {', '.join(SUFFIXES)}")
    on_nodes = [*attributes.nodes, *(name for name, _ in attributes.features)]
    on_edges = [*attributes.edges, *([attributes.weight] if attributes.weight else [])]
    if form in _MOLECULES:
        if attributes.nodes != ("element", "charge") or attributes.edges != ("order",):
            raise UserError(f"{form} holds molecules, and these graphs are none; choose .jsonl")
        return
    lost: list[str] = []
    if form == ".g6":
        lost = on_nodes + on_edges
    elif form == ".npz":
        whole = attributes.nodes == ("label",) and all(
            type(value[0]) is int for value in attributes.node_values
        )
        lost = [name for name in on_nodes if not (whole and name == "label")] + on_edges
    elif form.startswith(".graphml"):
        lost = [name for name, width in attributes.features if width > 1]
        for names, kinds in (
            (attributes.nodes, attributes.node_values), (attributes.edges, attributes.edge_values)
        ):
            for k, name in enumerate(names):
                if any(type(kind[k]) not in (str, int, float, bool) for kind in kinds):
                    lost.append(name)
    if lost:
        raise UserError(f"{form} cannot keep the attributes {', '.join(lost)}; .jsonl can")
    if form == ".graphml" and count != 1:
        raise UserError(
            f"a .graphml file holds one graph, not {count}; choose .graphml.zip or .jsonl"
        )


def write(
    graphs: Iterable[Graph] | Graphs,
    path: str | os.PathLike[str],
    numbers: Sequence[int] | None = None,
) -> int:
    """Write graphs in the form that the suffix names, whole or not at all.

    numbers: names of molecules in ``.smi`` and ``.sdf``; 0, 1, ... by default

    Returns how many the file holds: all of them, but of ``.smi``. Raises `UserError` for another
    suffix, for what the form cannot keep (module's head), and for a place that cannot be written.
    """
    path = Path(path)
    form = suffix(path)
    if form not in SUFFIXES or path.name.lower().endswith(".gz"):
        raise UserError(f"{path} cannot be written; choose one of {', '.join(SUFFIXES)}")
    if form in _MOLECULES:
        batch = graphs if isinstance(graphs, Graphs) else molecular(list(graphs))
        if batch is None:
            raise UserError(f"{form} holds molecules, and these graphs are none; choose .jsonl")
        names = list(range(len(batch)) if numbers is None else numbers)
        content, count = (_smi if form == ".smi" else _sdf)(batch, names)
    else:
        given = to_networkx(graphs) if isinstance(graphs, Graphs) else list(graphs)
        _simple(given, path)
        content, count = _ENCODE[form](given, path), len(given)
        _compare(given, content, path)
    write_file(path, content)
    return count


def read(path: str | os.PathLike[str], name: str | None = None) -> list[Any]:
    """The graphs of a file in networkx, or its molecules in RDKit.

    name: of the set, where an ``.npz`` holds several

    Molecules are not sanitised, and None stands for a record that is none. Raises `UserError` for a
    missing or damaged file, directed graphs and multigraphs, graphs of more than `MAX_NODES` nodes,
    and a file without any graph.
    """
    path = Path(path)
    if path.is_dir():
        members = sorted(path.glob("*.graphml"))
        if not members:
            raise UserError(f"{path} is a folder without .graphml files")
        return [graph for member in members for graph in read(member)]
    form = suffix(path)
    if not path.is_file():
        raise UserError(f"no file {path}")
    if name is not None and form != ".npz":
        raise UserError(f"{path} has no set {name!r}: only .npz files hold several sets")
    if form == ".npz":
        found: list[Any] = _read_npz(path, name)
    else:
        found = list(_DECODE[form](_content(path), path))
    if form in _MOLECULES:
        if not any(mol is not None for mol in found):
            raise UserError(f"{path} holds no molecule")
    else:
        if not found:
            raise UserError(f"{path} holds no graph")
        _simple(found, path)
    return found


def molecular(graphs: Sequence[Graph]) -> Graphs | None:
    """Networkx graphs as molecules, when that is what their attributes say; else None.

    Every node must have an ``element`` (symbol) and a ``charge``, every edge an ``order`` of 1, 2
    or 3, and nothing else.
    """
    atoms: set[tuple[str, int]] = set()
    for graph in graphs:
        for _, data in graph.nodes(data=True):
            if data.keys() != {"element", "charge"} or type(data["charge"]) is not int:
                return None
            if not isinstance(data["element"], str):
                return None
            atoms.add((data["element"], data["charge"]))
        for _, _, data in graph.edges(data=True):
            order = data.get("order")
            if len(data) != 1 or type(order) is not int or order not in (1, 2, 3):
                return None
    return from_networkx(graphs, molecule_attributes(sorted(atoms))) if atoms else None


def _simple(graphs: Sequence[Any], path: Path) -> None:
    for i, graph in enumerate(graphs):
        if graph.is_directed() or graph.is_multigraph():
            kind = "directed" if graph.is_directed() else "a multigraph"
            raise UserError(f"{path}: graph {i} is {kind}; only simple undirected graphs are taken")
        _size(len(graph), f"{path}: graph {i}")


def _size(nodes: int, where: str) -> None:
    if nodes > MAX_NODES:
        raise UserError(f"{where} has {nodes} nodes, the limit is {MAX_NODES}")


def _content(path: Path) -> bytes:
    opener: Any = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as handle:
            content: bytes = handle.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES >> 30} GB")
    return content


def _lines(content: bytes, path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text file") from None
    # not splitlines(): names may hold other characters that it takes for line ends
    for number, line in enumerate(text.split("\n"), start=1):
        if line := line.strip("\r"):
            yield number, line


def _plain(value: Any) -> Any:
    """Python's numbers and tuples for numpy's and lists."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return tuple(_plain(part) for part in value)
    return value


def _typed(value: Any) -> Any:
    """1, 1.0 and True are three values."""
    value = _plain(value)
    if isinstance(value, tuple):
        return tuple(_typed(part) for part in value)
    return type(value), value


def _compare(given: Sequence[Graph], content: bytes, path: Path) -> None:
    """`UserError` unless the content reads back as the graphs given."""
    with tempfile.TemporaryDirectory(prefix="driftworks-") as scratch:
        copy = Path(scratch) / f"copy{suffix(path)}"
        copy.write_bytes(content)
        try:
            back = read(copy) if given else []
        except UserError as error:
            raise UserError(f"{suffix(path)} cannot keep these graphs: {error}") from None
    for i, (one, other) in enumerate(zip(given, back, strict=True)):
        if what := _difference(one, other):
            raise UserError(f"{suffix(path)} cannot keep {what} of graph {i}; .jsonl keeps most")


def _difference(one: Any, other: Any) -> str | None:
    if [_typed(node) for node in one] != [_typed(node) for node in other]:
        return "the node names"
    if what := _unlike(one.graph, other.graph):
        return f"the attribute {what!r}"
    place = {node: k for k, node in enumerate(one)}
    ours, theirs = list(one), list(other)
    for node, twin in zip(ours, theirs, strict=True):
        if what := _unlike(one.nodes[node], other.nodes[twin]):
            return f"the attribute {what!r} of node {node!r}"
    if one.number_of_edges() != other.number_of_edges():
        return "the edges"
    for u, v, data in one.edges(data=True):
        a, b = theirs[place[u]], theirs[place[v]]
        if not other.has_edge(a, b):
            return "the edges"
        if what := _unlike(data, other.edges[a, b]):
            return f"the attribute {what!r} of edge {u!r}-{v!r}"
    return None


def _unlike(one: dict[Any, Any], other: dict[Any, Any]) -> Hashable | None:
    for name in one.keys() | other.keys():
        if name not in one or name not in other or _typed(one[name]) != _typed(other[name]):
            return str(name)
    return None


def _g6(graphs: Sequence[Graph], path: Path) -> bytes:
    import networkx as nx

    return b"".join(nx.to_graph6_bytes(graph, header=False) for graph in graphs)


def _read_g6(content: bytes, path: Path) -> Iterator[Graph]:
    import networkx as nx

    for number, line in _lines(content, path):
        line = line.removeprefix(">>graph6<<").strip()
        where = f"{path}, line {number}"
        if line.startswith(("&", ":", ";", ">>")):
            raise UserError(f"{where} is digraph6 or sparse6; only graph6 is read")
        if not line:
            continue
        code = [ord(letter) - 63 for letter in line]
        if min(code) < 0 or max(code) > 63:
            raise UserError(f"{where} is no graph6: characters must lie in '?'..'~'")
        _size(_count(code), where)
        try:
            yield nx.from_graph6_bytes(line.encode())
        except (nx.NetworkXError, ValueError, IndexError) as error:
            raise UserError(f"{where} is no graph6: {error or 'it ends early'}") from error


def _count(code: Sequence[int]) -> int:
    """Nodes, from the first one, four or eight characters."""
    digits = code[:1] if code[0] < 63 else code[2:8] if code[1:2] == [63] else code[1:4]
    total = 0
    for digit in digits:
        total = total << 6 | digit
    return total


def _jsonl(graphs: Sequence[Graph], path: Path) -> bytes:
    lines = []
    for i, graph in enumerate(graphs):
        record = {
            "directed": False,
            "multigraph": False,
            "graph": graph.graph,
            "nodes": [{**data, "id": node} for node, data in graph.nodes(data=True)],
            "edges": [
                {**data, "source": u, "target": v} for u, v, data in graph.edges(data=True)
            ],
        }
        try:
            lines.append(json.dumps(record, default=_jsonable, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UserError(f"JSON cannot keep graph {i}: {error}") from error
    return "".join(f"{line}\n" for line in lines).encode()


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r:.60} is neither text nor number")


def _read_jsonl(content: bytes, path: Path) -> Iterator[Graph]:
    for number, line in _lines(content, path):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is no JSON: {error}") from error
        yield _node_link(record, where)


def _node_link(record: Any, where: str) -> Graph:
    """A graph from networkx's node-link form, edges called "edges" or, as once, "links"."""
    import networkx as nx

    if not isinstance(record, dict) or not isinstance(record.get("nodes"), list):
        raise UserError(f"{where} is no graph in node-link form: it has no list of nodes")
    for kind in ("directed", "multigraph"):
        if record.get(kind):
            raise UserError(f"{where}: the graph is {kind.replace('multi', 'a multi')}; only "
                            "simple undirected graphs are taken")
    edges = record.get("edges", record.get("links"))
    if not isinstance(edges, list):
        raise UserError(f"{where} is no graph in node-link form: it has no list of edges")
    _size(len(record["nodes"]), where)
    graph = nx.Graph()
    if isinstance(record.get("graph"), dict):
        graph.graph.update({name: _plain(value) for name, value in record["graph"].items()})
    for node in record["nodes"]:
        name = _end(node, "id", where)
        if name in graph:
            raise UserError(f"{where}: node {name!r} is there twice")
        graph.add_node(name)
        graph.nodes[name].update({n: _plain(x) for n, x in node.items() if n != "id"})
    for edge in edges:
        u, v = (_end(edge, end, where) for end in ("source", "target"))
        for end in (u, v):
            if end not in graph:
                raise UserError(f"{where}: an edge ends at {end!r}, which is no node")
        if graph.has_edge(u, v):
            raise UserError(f"{where}: the edge {u!r}-{v!r} is there twice")
        graph.add_edge(u, v)
        data = {n: _plain(x) for n, x in edge.items() if n not in ("source", "target")}
        graph.edges[u, v].update(data)
    return graph


def _end(record: Any, name: str, where: str) -> Hashable:
    value = _plain(record.get(name)) if isinstance(record, dict) else None
    if value is None or isinstance(value, dict):
        raise UserError(f"{where}: {record!r:.60} has no {name!r}")
    try:
        hash(value)
    except TypeError:
        raise UserError(f"{where}: {value!r:.60} cannot be the name of a node") from None
    return value


def _one_graphml(graph: Graph) -> bytes:
    import networkx as nx

    try:
        lines = "\n".join(nx.generate_graphml(graph))
        return f'<?xml version="1.0" encoding="utf-8"?>\n{lines}\n'.encode()
    except (TypeError, ValueError, nx.NetworkXError) as error:
        raise UserError(f"GraphML cannot keep a graph: {error}") from error


def _graphml(graphs: Sequence[Graph], path: Path) -> bytes:
    if len(graphs) != 1:
        raise UserError(
            f"a .graphml file holds one graph, not {len(graphs)}; choose .graphml.zip or .jsonl"
        )
    return _one_graphml(graphs[0])


def _graphml_zip(graphs: Sequence[Graph], path: Path) -> bytes:
    out = io.BytesIO()
    digits = max(4, len(str(len(graphs))))
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, graph in enumerate(graphs):
            # a fixed date, so that equal graphs make equal files
            member = zipfile.ZipInfo(f"graph_{i:0{digits}d}.graphml")
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, _one_graphml(graph))
    return out.getvalue()


def _read_graphml(content: bytes, path: Path) -> Iterator[Graph]:
    import networkx as nx
    from networkx.readwrite.graphml import GraphMLReader

    reader = GraphMLReader(node_type=str)
    found = 0
    try:
        for graph in reader(path=io.BytesIO(content)):
            reader.edge_ids, reader.multigraph = {}, False  # it would carry them to the next graph
            found += 1
            yield _finished(graph)
    except (nx.NetworkXError, ParseError, KeyError, ValueError, AttributeError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged or no GraphML ({error})") from error
    if not found:
        raise UserError(f"{path} holds no graph in GraphML's name space")


def _finished(graph: Any) -> Graph:
    """With the defaults that the file declares, and whole numbers for names that are some."""
    import networkx as nx

    for name, value in graph.graph.pop("node_default", {}).items():
        for _, data in graph.nodes(data=True):
            data.setdefault(name, value)
    for name, value in graph.graph.pop("edge_default", {}).items():
        for *_, data in graph.edges(data=True):
            data.setdefault(name, value)
    names = list(graph)
    if all(name.isascii() and name.isdigit() and str(int(name)) == name for name in names):
        return nx.relabel_nodes(graph, {name: int(name) for name in names})
    return graph


def _read_graphml_zip(content: bytes, path: Path) -> Iterator[Graph]:
    total = 0
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in sorted(archive.infolist(), key=lambda member: member.filename):
                if member.is_dir() or not member.filename.lower().endswith(".graphml"):
                    continue
                total += member.file_size
                if total > MAX_BYTES:
                    raise UserError(f"{path} unpacks to more than {MAX_BYTES >> 30} GB")
                yield from _read_graphml(archive.read(member), path / member.filename)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or no zip archive ({error})") from error


def _npz(graphs: Sequence[Graph], path: Path) -> bytes:
    edges = []
    for graph in graphs:
        place = {node: k for k, node in enumerate(graph)}
        edges += [(place[u], place[v]) for u, v in graph.edges]
    columns: dict[str, Any] = {
        "n": np.array([len(graph) for graph in graphs], np.int64),
        "m": np.array([graph.number_of_edges() for graph in graphs], np.int64),
        "edges": np.array(edges, np.int64).reshape(-1, 2),
        # of no split: without this array the first fifth would be read as the test set
        "split": np.full(len(graphs), -1, np.int8),
    }
    on_nodes = [data.get("label") for graph in graphs for _, data in graph.nodes(data=True)]
    if on_nodes and all(isinstance(label, int | np.integer) for label in on_nodes):
        columns["node_label"] = np.array(on_nodes, np.int64)
    classes = [graph.graph.get("label") for graph in graphs]
    if classes and all(isinstance(label, int | np.integer) for label in classes):
        columns["class"] = np.array(classes, np.int64)
    out = io.BytesIO()
    members: dict[str, Any] = {f"graphs_{name}": values for name, values in columns.items()}
    np.savez_compressed(out, **members)
    return out.getvalue()


def _read_npz(path: Path, name: str | None) -> list[Any]:
    held = sets.names(path)
    if name is None:
        if len(held) != 1:
            choices = ", ".join(f"{path}:{known}" for known in held) or "it holds none"
            raise UserError(f"{path}: say which set of graphs is meant: {choices}")
        (name,) = held
    found = sets.load(name, path)
    if len(found):
        _size(int(found.nodes.max()), f"{path}: a graph")
    return found.graphs()


def _smi(batch: Graphs, names: Sequence[int]) -> tuple[bytes, int]:
    from driftworks.graphgen.molecules import check

    texts = [check(mol).smiles for mol in to_rdkit(batch)]
    kept = [f"{text} {k}\n" for text, k in zip(texts, names, strict=True) if text]
    return "".join(kept).encode(), len(kept)


def _sdf(batch: Graphs, names: Sequence[int]) -> tuple[bytes, int]:
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDepictor

    blocks = []
    with rdBase.BlockLogs():
        for mol, name in zip(to_rdkit(batch), names, strict=True):
            mol.UpdatePropertyCache(strict=False)
            Chem.FastFindRings(mol)
            rdDepictor.Compute2DCoords(mol)
            mol.SetProp("_Name", str(name))
            blocks.append(Chem.MolToMolBlock(mol, includeStereo=False, kekulize=False) + "$$$$\n")
    return "".join(blocks).encode(), len(blocks)


def _read_smi(content: bytes, path: Path) -> Iterator[Mol | None]:
    for number, line in _lines(content, path):
        words = line.split(maxsplit=1)
        if not words or line.startswith("#") or (number == 1 and words[0].lower() == "smiles"):
            continue
        yield _molecule(words[0])


def _read_table(content: bytes, path: Path) -> Iterator[Mol | None]:
    separator = "\t" if suffix(path) == ".tsv" else ","
    rows = csv.reader((line for _, line in _lines(content, path)), delimiter=separator)
    try:
        headers = [header.strip().lstrip("\ufeff") for header in next(rows, [])]
        lower = [header.lower() for header in headers]
        column = next((lower.index(name) for name in _SMILES_COLUMNS if name in lower), None)
        if column is None:
            listed = ", ".join(headers) or "none"
            raise UserError(f"{path} has no column 'smiles'; it has: {listed}")
        for row in rows:
            mol = _molecule(row[column].strip()) if column < len(row) else None
            for header, cell in zip(headers, row, strict=False):
                if mol is not None and header and cell.strip() and header != headers[column]:
                    mol.SetProp(header, cell.strip())
            yield mol
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}") from error


def _molecule(text: str) -> Mol | None:
    from rdkit import Chem, rdBase

    if not text or len(text) > MAX_SMILES:
        return None
    with rdBase.BlockLogs():
        return Chem.MolFromSmiles(text, sanitize=False)


def _read_sdf(content: bytes, path: Path) -> Iterator[Mol | None]:
    from rdkit import Chem, rdBase

    records = content.decode("utf-8", errors="replace").split("$$$$")
    for text in records[:-1] if not records[-1].strip() else records:
        block = text.removeprefix("\r\n").removeprefix("\n") if text is not records[0] else text
        with rdBase.BlockLogs():
            try:
                supplier = Chem.SDMolSupplier()  # unlike MolFromMolBlock it reads the tags
                supplier.SetData(block, sanitize=False, removeHs=False)
                yield next(iter(supplier), None)
            except (RuntimeError, ValueError, OSError):
                yield None


_ENCODE: dict[str, Callable[[Sequence[Any], Path], bytes]] = {
    ".jsonl": _jsonl,
    ".g6": _g6,
    ".graphml": _graphml,
    ".graphml.zip": _graphml_zip,
    ".npz": _npz,
}
_DECODE: dict[str, Callable[[bytes, Path], Iterator[Any]]] = {
    ".jsonl": _read_jsonl,
    ".g6": _read_g6,
    ".graphml": _read_graphml,
    ".graphml.zip": _read_graphml_zip,
    ".smi": _read_smi,
    ".smiles": _read_smi,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".sdf": _read_sdf,
}
