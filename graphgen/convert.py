"""Graphs from and to networkx, PyTorch Geometric and RDKit. Nothing is changed on the way.

What tensors cannot hold is refused with the graph's number and a way out: directed graphs,
multigraphs, self-loops, attributes that only some nodes have or that nobody declared. Node names,
their order, isolated nodes and the values of attributes come back as they went in.

A molecule is a graph whose nodes are (element symbol, formal charge) and whose edges are Kekulé
bond orders 1, 2, 3. Hydrogens are those that RDKit's valence model adds to such a graph; a molecule
whose hydrogens, radicals or isotopes are not what its graph implies is refused. Stereochemistry is
no part of the graph.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from driftworks.errors import UserError
from driftworks.graphgen.graph import Attributes, Graphs

if TYPE_CHECKING:
    from networkx import Graph
    from rdkit.Chem import Mol
    from torch_geometric.data import Data

    from driftworks.graphgen.zoo import Drawn

__all__ = [
    "MEMORY_LIMIT",
    "declare",
    "from_networkx",
    "from_pyg",
    "from_rdkit",
    "molecule_attributes",
    "molecule_of",
    "networkx_of_pyg",
    "to_networkx",
    "to_pyg",
    "to_rdkit",
]

#: Bytes that the tensors of one conversion may take.
MEMORY_LIMIT = 4 << 30


def declare(
    graphs: Iterable[Graph],
    nodes: str | Sequence[str] = (),
    edges: str | Sequence[str] = (),
    features: str | Sequence[str] = (),
    weight: str | None = None,
    ignore: str | Sequence[str] = (),
) -> Attributes:
    """The values that declared attributes take in networkx graphs.

    nodes, edges: categorical attributes; several on one node become one kind for each combination
    features: continuous node attributes, numbers or sequences of one length
    weight: the continuous edge attribute
    ignore: attributes to leave behind

    Kinds are numbered in sorted order where the values can be sorted, else by first appearance.
    Raises `UserError` when an attribute is missing somewhere, undeclared, or cannot be a kind.
    """
    given = _networkx(graphs)
    nodes, edges, features, ignore = map(_names, (nodes, edges, features, ignore))
    node_values: dict[_Kind, tuple[Hashable, ...]] = {}
    edge_values: dict[_Kind, tuple[Hashable, ...]] = {}
    widths: dict[str, int] = {}
    allowed_edges = {*edges, *ignore, *([weight] if weight is not None else [])}
    for i, graph in enumerate(given):
        for node, data in graph.nodes(data=True):
            where = f"node {node!r} of graph {i}"
            _known(data, {*nodes, *features, *ignore}, where)
            if nodes:
                value = _kind(data, nodes, where)
                node_values[_typed(value)] = value
            for name in features:
                width = _number(data, name, where).size
                if widths.setdefault(name, width) != width:
                    raise UserError(f"{where}: {name!r} has {width} numbers, not {widths[name]}")
        for u, v, data in graph.edges(data=True):
            where = f"edge {u!r}-{v!r} of graph {i}"
            _known(data, allowed_edges, where)
            if edges:
                value = _kind(data, edges, where)
                edge_values[_typed(value)] = value
    if edges and not edge_values:
        raise UserError(f"edges are declared to have {', '.join(edges)}, but there are no edges")
    return Attributes(
        nodes=nodes,
        node_values=_ordered(node_values.values()),
        edges=edges,
        edge_values=_ordered(edge_values.values()),
        features=tuple((name, widths[name]) for name in features),
        weight=weight,
        ignored=ignore,
    )


def from_networkx(
    graphs: Iterable[Graph],
    attributes: Attributes | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Graphs:
    """networkx graphs as tensors.

    attributes: what `declare` found, in these graphs or in others; None for graphs without any
    memory_limit: bytes that the tensors may take

    Raises `UserError` for an empty list, a graph without nodes, directed graphs, multigraphs,
    self-loops, attributes undeclared or missing, values of no declared kind, or too much memory.
    """
    given = _networkx(graphs)
    attributes = attributes or Attributes()
    out = _room(len(given), max(len(graph) for graph in given), attributes, memory_limit)
    node_kind = {_typed(value): k for k, value in enumerate(attributes.node_values)}
    edge_kind = {_typed(value): k for k, value in enumerate(attributes.edge_values, start=1)}
    on_nodes = {*attributes.nodes, *(n for n, _ in attributes.features), *attributes.ignored}
    on_edges = {*attributes.edges, *attributes.ignored}
    if attributes.weight is not None:
        on_edges.add(attributes.weight)
    names = []
    # views into the tensors: writing single entries is far quicker through numpy
    kinds, matrix, rows = out.nodes.numpy(), out.edges.numpy(), out.features.numpy()
    weights = None if out.weights is None else out.weights.numpy()
    for i, graph in enumerate(given):
        place = {node: k for k, node in enumerate(graph)}
        numbered = all(type(node) is int and node == k for node, k in place.items())
        names.append(None if numbered else tuple(place))
        out.mask[i, : len(place)] = True
        for node, data in graph.nodes(data=True):
            where = f"node {node!r} of graph {i}"
            _known(data, on_nodes, where)
            if attributes.nodes:
                value = _kind(data, attributes.nodes, where)
                kinds[i, place[node]] = _look(node_kind, value, where)
            if attributes.features:
                row = [_number(data, name, where, width) for name, width in attributes.features]
                rows[i, place[node]] = np.concatenate(row)
        for u, v, data in graph.edges(data=True):
            where = f"edge {u!r}-{v!r} of graph {i}"
            _known(data, on_edges, where)
            kind, (a, b) = 1, (place[u], place[v])
            if attributes.edges:
                kind = _look(edge_kind, _kind(data, attributes.edges, where), where)
            matrix[i, a, b] = matrix[i, b, a] = kind
            if weights is not None and attributes.weight is not None:
                number = float(_number(data, attributes.weight, where, 1)[0])
                weights[i, a, b] = weights[i, b, a] = number
    return _named(out, names)


def _batch(graphs: Graphs | Drawn) -> Graphs:
    """The tensors of what a model drew, which holds them as ``graphs``."""
    return graphs if isinstance(graphs, Graphs) else graphs.graphs


def to_networkx(graphs: Graphs | Drawn) -> list[Graph]:
    """Graphs with their names and attributes; features of width 1 are floats, others tuples."""
    import networkx as nx

    host = _batch(graphs).to("cpu")
    attributes = host.attributes
    out = []
    for b in range(len(host)):
        keep = host.mask[b].nonzero()[:, 0]
        names = _node_names(host, b, len(keep))
        graph = nx.Graph()
        kinds = host.nodes[b][keep].tolist()
        numbers = host.features[b][keep].tolist()
        for name, kind, row in zip(names, kinds, numbers, strict=True):
            graph.add_node(name, **_node_data(attributes, kind, row))
        edges = host.edges[b][keep][:, keep].triu(1)
        weights = None if host.weights is None else host.weights[b][keep][:, keep]
        for i, j in edges.nonzero().tolist():
            data = {}
            if attributes.edges:
                value = attributes.edge_values[int(edges[i, j]) - 1]
                data = dict(zip(attributes.edges, value, strict=True))
            if weights is not None and attributes.weight is not None:
                data[attributes.weight] = float(weights[i, j])
            graph.add_edge(names[i], names[j], **data)
        out.append(graph)
    return out


def _node_names(graphs: Graphs, b: int, count: int) -> Sequence[Hashable]:
    names = None if graphs.names is None else graphs.names[b]
    if names is None:
        return range(count)
    if len(names) != count:
        raise UserError(f"graph {b} has {len(names)} names for {count} nodes")
    return names


def _node_data(attributes: Attributes, kind: int, row: Sequence[float]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if attributes.nodes:
        data = dict(zip(attributes.nodes, attributes.node_values[kind], strict=True))
    start = 0
    for name, width in attributes.features:
        part = row[start : start + width]
        data[name] = part[0] if width == 1 else tuple(part)
        start += width
    return data


def _networkx(graphs: Iterable[Any]) -> list[Any]:
    """The graphs as a list, once each of them is a simple undirected one with nodes."""
    if hasattr(graphs, "number_of_nodes"):
        raise UserError("expected a list of graphs, got one graph; put it in a list")
    if isinstance(graphs, (str, bytes)) or not isinstance(graphs, Iterable):
        raise UserError(f"expected networkx graphs, got {graphs!r:.60}")
    given = list(graphs)
    if not given:
        raise UserError("the list of graphs is empty")
    for i, graph in enumerate(given):
        if not hasattr(graph, "number_of_nodes"):
            raise UserError(f"graph {i} is a {type(graph).__name__}, not a networkx graph")
        if graph.is_directed():
            raise UserError(f"graph {i} is directed; take graph.to_undirected() if that is meant")
        if graph.is_multigraph():
            raise UserError(f"graph {i} is a multigraph; take nx.Graph(graph) if that is meant")
        if not len(graph):
            raise UserError(f"graph {i} has no nodes")
        loop = next((u for u, v in graph.edges if u == v), None)
        if loop is not None:
            raise UserError(
                f"graph {i} has a self-loop at node {loop!r}; remove it with "
                "graph.remove_edges_from(list(nx.selfloop_edges(graph)))"
            )
    return given


def _room(count: int, nodes: int, attributes: Attributes, limit: int) -> Graphs:
    """Empty tensors, or `UserError` with the size that fits."""
    bytes_a_pair = 8 * (1 if attributes.weight is None else 2)
    need = count * nodes * nodes * bytes_a_pair
    if need > limit:
        fits = int((limit / (count * bytes_a_pair)) ** 0.5)
        fewer = limit // (nodes * nodes * bytes_a_pair)
        raise UserError(
            f"{count} graphs padded to {nodes} nodes need {need / 2**30:.1f} GiB, the limit is "
            f"{limit / 2**30:.1f} GiB: {count} graphs of {fits} nodes fit, or {fewer} of {nodes}"
        )
    return Graphs.empty(count, nodes, attributes)


def _named(graphs: Graphs, names: Sequence[tuple[Hashable, ...] | None]) -> Graphs:
    return replace(graphs, names=tuple(names) if any(n is not None for n in names) else None)


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _known(data: Mapping[str, Any], allowed: set[str], where: str) -> None:
    for name in data:
        if name not in allowed:
            kind = "edges= or weight=" if where.startswith("edge") else "nodes= or features="
            raise UserError(
                f"{where} has an attribute {name!r} that is not declared; declare it "
                f"with declare(graphs, {kind}), or leave it behind there with ignore={name!r}"
            )


def _kind(data: Mapping[str, Any], names: Sequence[str], where: str) -> tuple[Hashable, ...]:
    values = []
    for name in names:
        if name not in data:
            raise UserError(f"{where} lacks the attribute {name!r}, which others have")
        value = data[name].item() if isinstance(data[name], np.generic) else data[name]
        if not _lasting(value):
            raise UserError(
                f"{where}: {name} = {value!r:.40} cannot be a category: text, numbers, truth "
                "values and tuples of them can"
            )
        values.append(value)
    return tuple(values)


def _lasting(value: Any) -> bool:
    """Whether a checkpoint, which is JSON, gives the value back as it was."""
    if type(value) is tuple:
        return all(_lasting(part) for part in value)
    return type(value) in (str, int, bool, type(None)) or (
        type(value) is float and math.isfinite(value)
    )


_Kind = tuple[tuple[type, Hashable], ...]


def _typed(value: tuple[Hashable, ...]) -> _Kind:
    """1, 1.0 and True are equal; with their types they are three kinds."""
    return tuple((type(part), part) for part in value)


def _look(kinds: Mapping[_Kind, int], value: tuple[Hashable, ...], where: str) -> int:
    if (found := kinds.get(_typed(value))) is not None:
        return found
    shown = ", ".join(_shown(tuple(part for _, part in known)) for known in list(kinds)[:12])
    raise UserError(f"{where} is {_shown(value)}; declared are: {shown}")


def _shown(value: tuple[Hashable, ...]) -> str:
    return repr(value[0] if len(value) == 1 else value)


def _number(
    data: Mapping[str, Any], name: str, where: str, width: int | None = None
) -> np.ndarray[Any, np.dtype[np.float64]]:
    if name not in data:
        raise UserError(f"{where} lacks the attribute {name!r}, which others have")
    try:
        given = np.atleast_1d(np.asarray(data[name]))
        if given.dtype.kind not in "iuf":  # text, truth values and huge integers among them
            raise ValueError
        values = given.astype(np.float64)
        if given.dtype.kind in "iu" and (np.abs(given) > 2**53).any():
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: {name} = {data[name]!r:.40} is no number in double precision"
        ) from None
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise UserError(f"{where}: {name} = {data[name]!r:.40} is no finite number or vector")
    if width is not None and values.size != width:
        raise UserError(f"{where}: {name} has {values.size} numbers, expected {width}")
    return values


def _ordered(values: Iterable[tuple[Hashable, ...]]) -> tuple[tuple[Hashable, ...], ...]:
    found = list(values)
    try:
        return tuple(sorted(found))
    except TypeError:
        return tuple(found)


def from_pyg(
    graphs: Iterable[Data],
    nodes: str | None = None,
    edges: str | None = None,
    features: str | Sequence[str] = (),
    weight: str | None = None,
    ignore: str | Sequence[str] = (),
    attributes: Attributes | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Graphs:
    """PyTorch Geometric graphs as tensors.

    nodes, edges: fields with the kinds, integers (n,) or one-hot rows (n, K); features: fields of
        continuous numbers (n,) or (n, F); weight: a field of one number an edge; ignore: fields to
        leave behind. Fields of whole graphs (y, ...) are not part of the result.
    attributes: of an earlier conversion; the fields are then those that `to_pyg` writes

    Every edge must be there in both directions with the same attributes. Raises `UserError` as
    `from_networkx` does.
    """
    given = list(graphs)
    if not given:
        raise UserError("the list of graphs is empty")
    fields = attributes
    if attributes is None:
        continuous, ignored = _names(features), _names(ignore)
    else:
        # what `to_pyg` writes: the values where they are integers, else the kinds
        node_field = _integers(attributes.nodes, attributes.node_values, "node_type")
        edge_field = _integers(attributes.edges, attributes.edge_values, "edge_type")
        nodes = node_field[0] if attributes.nodes else None
        edges = edge_field[0] if attributes.edges else None
        continuous, weight = tuple(name for name, _ in attributes.features), attributes.weight
        ignored = attributes.ignored
        fields = replace(
            attributes,
            nodes=() if nodes is None else (nodes,),
            node_values=tuple((int(value),) for value in node_field[1]),
            edges=() if edges is None else (edges,),
            edge_values=tuple((int(value),) for value in edge_field[1]),
        )
    converted = [
        networkx_of_pyg(data, i, nodes, edges, continuous, weight, ignored)
        for i, data in enumerate(given)
    ]
    if fields is None:
        fields = declare(converted, nodes or (), edges or (), continuous, weight, ignored)
    out = from_networkx(converted, fields, memory_limit)
    return out if attributes is None else replace(out, attributes=attributes)


def networkx_of_pyg(
    data: Any,
    i: int,
    nodes: str | None,
    edges: str | None,
    features: tuple[str, ...],
    weight: str | None,
    ignore: tuple[str, ...],
) -> Graph:
    """Graph ``i`` with the fields named as attributes; `UserError` for one that is not declared."""
    import networkx as nx

    if not hasattr(data, "edge_index") or data.num_nodes is None:
        raise UserError(f"graph {i} is no PyTorch Geometric graph with edge_index and num_nodes")
    wanted = {*features, *ignore, *(f for f in (nodes, edges, weight) if f is not None)}
    for field in sorted(data.keys()):
        level = data.is_node_attr(field) or data.is_edge_attr(field)
        if level and field not in wanted and field not in ("edge_index", "batch", "ptr"):
            raise UserError(
                f"graph {i} has a field {field!r} of nodes or edges that is not declared; declare "
                f"it, or leave it behind with ignore={field!r}"
            )
    graph = nx.Graph()
    count = int(data.num_nodes)
    columns = {}
    if nodes is not None:
        columns[nodes] = _kinds(_field(data, nodes, i, count), nodes, i)
    for name in features:
        rows = _field(data, name, i, count).double()
        columns[name] = rows.tolist() if rows.dim() == 1 else rows.flatten(1).tolist()
    for k in range(count):
        graph.add_node(k, **{name: values[k] for name, values in columns.items()})
    pairs = [] if data.edge_index is None else data.edge_index.t().tolist()
    for u, v in pairs:
        if not (0 <= u < count and 0 <= v < count):
            raise UserError(f"graph {i} has an edge {u}-{v}, but its nodes are 0 to {count - 1}")
    on_edges: dict[str, list[Any]] = {}
    if edges is not None:
        on_edges[edges] = _kinds(_field(data, edges, i, len(pairs)), edges, i)
    if weight is not None:
        on_edges[weight] = _field(data, weight, i, len(pairs)).double().reshape(len(pairs)).tolist()
    seen: dict[tuple[int, int], dict[str, Any]] = {}
    for k, (u, v) in enumerate(pairs):
        if u == v:
            raise UserError(f"graph {i} has a self-loop at node {u}")
        if (u, v) in seen:
            raise UserError(f"graph {i} has the edge {u}-{v} more than once")
        seen[u, v] = {name: values[k] for name, values in on_edges.items()}
    for (u, v), values in seen.items():
        if (v, u) not in seen:
            raise UserError(f"graph {i} is directed: {u}-{v} has no edge back")
        if seen[v, u] != values:
            raise UserError(f"graph {i} is directed: {u}-{v} and back have different attributes")
        graph.add_edge(u, v, **values)
    return graph


def _field(data: Any, name: str, i: int, count: int) -> Any:
    if name not in data:
        fields = ", ".join(sorted(data.keys()))
        raise UserError(f"graph {i} has no field {name!r}; it has: {fields}")
    values = data[name]
    if not torch.is_tensor(values) or values.shape[:1] != (count,):
        raise UserError(f"graph {i}: field {name!r} is no tensor of {count} rows")
    return values


def _kinds(values: Any, name: str, i: int) -> list[int]:
    """Integers, or the place of the one in one-hot rows."""
    if values.dim() == 1 or (values.dim() == 2 and values.shape[1] == 1):
        flat = values.reshape(-1)
        if flat.is_floating_point() and (flat != flat.round()).any():
            raise UserError(f"graph {i}: field {name!r} has values that are no whole numbers")
        return [int(value) for value in flat.tolist()]
    one_hot = ((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all()
    if values.dim() != 2 or not one_hot:
        raise UserError(f"graph {i}: the rows of field {name!r} are not one-hot")
    return [int(k) for k in values.argmax(1).tolist()]


def to_pyg(graphs: Graphs | Drawn) -> list[Data]:
    """PyTorch Geometric graphs, every edge in both directions.

    Fields: the name of a single categorical attribute with integer values holds those values,
    otherwise ``node_type`` and ``edge_type`` hold kinds from 0; each feature and the weight lie
    under their own names, float64.
    """
    from torch_geometric.data import Data

    host = _batch(graphs).to("cpu")
    attributes = host.attributes
    out = []
    for b in range(len(host)):
        keep = host.mask[b].nonzero()[:, 0]
        edges = host.edges[b][keep][:, keep]
        index = edges.nonzero().t().contiguous()
        data = Data(edge_index=index, num_nodes=len(keep))
        if attributes.nodes:
            name, values = _integers(attributes.nodes, attributes.node_values, "node_type")
            data[name] = values[host.nodes[b][keep]]
        if attributes.edges:
            name, values = _integers(attributes.edges, attributes.edge_values, "edge_type")
            data[name] = values[edges[index[0], index[1]] - 1]
        start = 0
        for name, width in attributes.features:
            part = host.features[b][keep][:, start : start + width]
            data[name] = part[:, 0] if width == 1 else part
            start += width
        if host.weights is not None and attributes.weight is not None:
            data[attributes.weight] = host.weights[b][keep][:, keep][index[0], index[1]]
        out.append(data)
    return out


def _integers(
    names: tuple[str, ...], values: Sequence[tuple[Hashable, ...]], fallback: str
) -> tuple[str, Any]:
    if len(names) == 1 and all(type(value[0]) is int for value in values):
        return names[0], torch.tensor([value[0] for value in values])
    return fallback, torch.arange(len(values))


#: Kekulé bond orders are the kinds of edges of a molecule.
ORDERS = ((1,), (2,), (3,))


def molecule_attributes(atoms: Iterable[tuple[str, int]]) -> Attributes:
    """Attributes of molecules with these atoms, (element symbol, formal charge), in this order."""
    return Attributes(
        nodes=("element", "charge"),
        node_values=tuple((str(symbol), int(charge)) for symbol, charge in atoms),
        edges=("order",),
        edge_values=ORDERS,
    )


def from_rdkit(
    mols: Iterable[Mol],
    attributes: Attributes | None = None,
    failures: dict[str, int] | None = None,
    memory_limit: int = MEMORY_LIMIT,
    taken: list[int] | None = None,
) -> Graphs:
    """Molecules as graphs of heavy atoms; hydrogens are implied, explicit ones are removed first.

    attributes: those of `molecule_attributes`; None for the atoms that occur, sorted by element
        and charge
    failures: where given, molecules that cannot be taken are left out and counted here by reason:
        "missing", "empty", "isotope", "radical", "hydrogens" (not those that the graph implies),
        "bond type", "kekulize", "atom" (of no declared kind); else they raise `UserError`
    taken: where given, the numbers of the molecules in the result are put here
    """
    records = []
    for i, mol in enumerate(mols):
        record = _atoms_and_bonds(mol)
        what = record if isinstance(record, str) else ""
        if isinstance(record, tuple) and attributes is not None:
            unknown = [atom for atom in record[0] if atom not in attributes.node_values]
            if unknown:
                record = "atom"
                what = "atom {}{:+d} is of no declared kind".format(*unknown[0])
        if isinstance(record, tuple):
            records.append(record)
            if taken is not None:
                taken.append(i)
        elif failures is None:
            raise UserError(f"molecule {i} cannot be a graph: {what}")
        else:
            failures[record] = failures.get(record, 0) + 1
    if not records:
        raise UserError("no molecule could be taken as a graph")
    if attributes is None:
        attributes = molecule_attributes(sorted({atom for atoms, _ in records for atom in atoms}))
    if attributes.nodes != ("element", "charge") or attributes.edge_values != ORDERS:
        raise UserError("these attributes are not those of molecules; see molecule_attributes()")
    kind = {atom: k for k, atom in enumerate(attributes.node_values)}
    out = _room(len(records), max(len(a) for a, _ in records), attributes, memory_limit)
    for b, (atoms, bonds) in enumerate(records):
        out.nodes[b, : len(atoms)] = torch.tensor([kind[atom] for atom in atoms])
        out.mask[b, : len(atoms)] = True
        for i, j, order in bonds:
            out.edges[b, i, j] = out.edges[b, j, i] = order
    return out


_Record = tuple[list[tuple[str, int]], list[tuple[int, int, int]]]


def _atoms_and_bonds(mol: Any) -> _Record | str:
    """Atoms and bonds of a molecule that its graph determines, or why it is none."""
    from rdkit import Chem, rdBase

    if mol is None:
        return "missing"
    with rdBase.BlockLogs():
        try:
            # the parameters keep hydrogens that matter, as in H2; those then count as atoms
            mol = Chem.RemoveHs(mol)
            Chem.Kekulize(mol, clearAromaticFlags=True)
        except (Chem.KekulizeException, Chem.AtomValenceException, ValueError):
            return "kekulize"
    if not mol.GetNumAtoms():
        return "empty"
    atoms, hydrogens = [], []
    for atom in mol.GetAtoms():
        if atom.GetIsotope():
            return "isotope"
        if atom.GetNumRadicalElectrons():
            return "radical"
        atoms.append((atom.GetSymbol(), atom.GetFormalCharge()))
        hydrogens.append(atom.GetTotalNumHs())
    orders = {Chem.BondType.SINGLE: 1, Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3}
    bonds = []
    for bond in mol.GetBonds():
        if bond.GetBondType() not in orders:
            return "bond type"
        order = orders[bond.GetBondType()]
        bonds.append((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), order))
    built = _build(atoms, bonds)
    try:
        built.UpdatePropertyCache(strict=True)
    except Chem.AtomValenceException:
        return "hydrogens"
    if [atom.GetTotalNumHs() for atom in built.GetAtoms()] != hydrogens:
        return "hydrogens"
    return atoms, bonds


def _build(atoms: Sequence[tuple[Any, Any]], bonds: Iterable[tuple[int, int, int]]) -> Mol:
    from rdkit import Chem

    kinds = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
    mol = Chem.RWMol()
    for symbol, charge in atoms:
        atom = Chem.Atom(symbol)
        atom.SetFormalCharge(charge)
        mol.AddAtom(atom)
    for i, j, order in bonds:
        mol.AddBond(i, j, kinds[order])
    return mol.GetMol()


def molecule_of(graph: Graph) -> Mol:
    """The RDKit molecule of one networkx graph as it stands, nothing sanitised.

    Raises `UserError` unless nodes have ``element`` and ``charge`` and edges an ``order`` of 1-3.
    """
    place = {node: k for k, node in enumerate(graph)}
    try:
        atoms = [(str(data["element"]), int(data["charge"])) for _, data in graph.nodes(data=True)]
        bonds = [(place[u], place[v], data["order"]) for u, v, data in graph.edges(data=True)]
        return _build(atoms, bonds)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())[:80]
        raise UserError(
            f"this graph is no molecule ({what}): nodes need the attributes element and charge, "
            "edges the attribute order, 1 to 3"
        ) from None


def to_rdkit(graphs: Graphs | Drawn) -> list[Mol]:
    """Molecules as the graphs stand: nothing sanitised, corrected or left out.

    Whether one is valid is for `molecules.valid` to say. Raises `UserError` where the graphs are
    no molecules.
    """
    graphs = _batch(graphs)
    attributes = graphs.attributes
    if attributes.nodes != ("element", "charge") or attributes.edge_values != ORDERS:
        raise UserError("these graphs are no molecules; see molecule_attributes()")
    host = graphs.to("cpu")
    out = []
    for b in range(len(host)):
        keep = host.mask[b].nonzero()[:, 0]
        kinds = host.nodes[b][keep].tolist()
        edges = host.edges[b][keep][:, keep].triu(1)
        bonds = [(i, j, int(edges[i, j])) for i, j in edges.nonzero().tolist()]
        out.append(_build([attributes.node_values[k] for k in kinds], bonds))
    return out


