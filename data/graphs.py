"""Sets of graphs: the published benchmark sets out of one file, and families drawn afresh.

A set is three flat arrays (nodes a graph, edges a graph, edges one below the other) and a split.
Two conventions of splitting are in use and both are kept, because published figures belong to them:
the first 20 % to test and the rest to train (GDSS, Jo et al., ICML 2022, after GraphRNN), or a
stored random 128/32/40 (SPECTRE, Martinkus et al., ICML 2022). The sets have no public address with
a published digest, so they are read from a file that the user names.

The families (`generate`) follow the papers that introduced them, but every graph of a call is an
independent draw; the file ``community_small`` by contrast holds five pairs of blocks only.

    two_communities   two dense random halves joined by a few edges (You et al., GraphRNN, 2018)
    sbm               2-5 blocks of 20-40 nodes, p .3 inside and .005 between, connected (SPECTRE)
    planar            Delaunay triangulation of uniform points (SPECTRE)
    tree              uniform labelled tree, by its Prüfer sequence
    lobster           tree within two steps of a path (Liao et al., GRAN, 2019)
    ring_of_cliques   equal complete graphs joined into a ring
    ego               neighbourhoods of nodes in a clustered scale-free graph (Holme & Kim, 2002)
    grid              rectangular lattice
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from driftworks.data.table import SPLITS
from driftworks.errors import UserError

if TYPE_CHECKING:
    from networkx import Graph

__all__ = ["FAMILIES", "NAMES", "GraphSet", "generate", "load", "names"]

#: Name of a set -> what it holds.
NAMES = {
    "ego_small": "200 one-step neighbourhoods in Citeseer, 4-18 nodes; test = first 20 %",
    "community_small": "100 graphs of two communities, 12-20 nodes; test = first 20 %",
    "community_spectre": "100 graphs of two communities, 12-20 nodes; test = first 20 %",
    "grid": "100 rectangular lattices, 100-361 nodes; test = first 20 %",
    "enzymes": "587 protein graphs of BRENDA enzymes, 10-125 nodes; test = first 20 %",
    "planar": "200 Delaunay triangulations of 64 points; 128/32/40",
    "sbm": "200 stochastic block models, 44-187 nodes; 128/32/40",
    "tree": "200 trees of 64 nodes; 128/32/40",
}

FILE = "graphs.npz"
TEST_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class GraphSet:
    """G undirected graphs without attributes on edges.

    nodes: (G,) int64, nodes of each graph, isolated ones included
    edges: (E, 2) int64, local node numbers, graph after graph
    edge_offsets: (G + 1,) int64
    split: (G,) int8, codes of `driftworks.data.table.SPLITS`
    node_labels: (nodes.sum(),) int64 or None; becomes the node attribute ``label``
    labels: (G,) int64 or None, the class of each graph; becomes ``graph.graph["label"]``
    """

    name: str
    nodes: NDArray[np.int64]
    edges: NDArray[np.int64]
    edge_offsets: NDArray[np.int64]
    split: NDArray[np.int8]
    node_labels: NDArray[np.int64] | None = None
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.nodes)

    def __repr__(self) -> str:
        counts = {name: int((self.split == code).sum()) for name, code in SPLITS.items()}
        listed = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return f"GraphSet({self.name}: {listed or 'empty'})"

    def rows(self, split: str | None = None) -> NDArray[np.int64]:
        """Row numbers of one split, or all."""
        if split is None:
            return np.arange(len(self))
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
        return np.flatnonzero(self.split == SPLITS[split])

    def graph(self, i: int) -> Graph:
        """Graph i in networkx, nodes 0..n-1 in order."""
        import networkx as nx

        if not -len(self) <= i < len(self):
            raise IndexError(f"graph {i} of {len(self)}")
        i %= len(self)
        out = nx.Graph()
        out.add_nodes_from(range(int(self.nodes[i])))
        out.add_edges_from(self.edges[self.edge_offsets[i] : self.edge_offsets[i + 1]].tolist())
        if self.node_labels is not None:
            start = int(self.nodes[:i].sum())
            values = self.node_labels[start : start + int(self.nodes[i])].tolist()
            nx.set_node_attributes(out, dict(enumerate(values)), "label")
        if self.labels is not None:
            out.graph["label"] = int(self.labels[i])
        return out

    def graphs(self, split: str | None = None) -> list[Graph]:
        """The graphs of one split, or all, in networkx."""
        return [self.graph(int(i)) for i in self.rows(split)]

    def without_labels(self) -> GraphSet:
        """The same graphs without node labels and classes."""
        return replace(self, node_labels=None, labels=None)


def load(name: str, path: str | os.PathLike[str] | None = None) -> GraphSet:
    """A published set of graphs (`NAMES`) with its published split.

    path: an ``.npz`` with arrays ``NAME_n``, ``NAME_m``, ``NAME_edges`` and where there are any
        ``NAME_split``, ``NAME_node_label``, ``NAME_class``; or a folder with ``graphs.npz``. A set
        of your own in that form is read too.

    Raises `UserError` when no path is given, the file lacks the set, or its arrays do not fit.
    """
    if path is None:
        known = ", ".join(NAMES)
        what = f"the set {name!r}" if name in NAMES else f"{name!r} (known sets: {known})"
        raise UserError(
            f"{what} has no public address to download from; give path=, an .npz with arrays "
            f"{name}_n, {name}_m, {name}_edges, or draw a family afresh with generate()"
        )
    file = _file(path)
    with _opened(file) as archive:
        held = _held(archive)
        if name not in held:
            choices = ", ".join(held) or "none"
            raise UserError(f"{file} holds no set {name!r}; it has: {choices}")
        prefix = f"{name}_"
        columns = {
            key: archive[prefix + key]
            for key in ("n", "m", "edges", "split", "node_label", "class")
            if prefix + key in archive.files
        }
    return _checked(name, columns, file)


def names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The sets that a file (or ``graphs.npz`` in a folder) holds; `UserError` where it is damaged.

    Empty for an archive of something else.
    """
    with _opened(_file(path)) as archive:
        return _held(archive)


def _file(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if file.is_dir():
        file = file / FILE
    if not file.exists():
        raise UserError(f"no file of graphs at {file}")
    return file


def _held(archive: Any) -> tuple[str, ...]:
    return tuple(sorted(k.removesuffix("_edges") for k in archive.files if k.endswith("_edges")))


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The archive; whatever numpy, zipfile and zlib raise for damaged bytes is a `UserError`."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            yield archive
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file} is damaged or not a file of graphs ({error})") from error


def _checked(name: str, columns: dict[str, NDArray[Any]], file: Path) -> GraphSet:
    """The set, once its arrays are known to fit together."""
    missing = [key for key in ("n", "m") if key not in columns]
    if missing:
        raise UserError(f"{file} has no array {name}_{missing[0]}")
    kept = {key: values.astype(np.int64) for key, values in columns.items()}
    nodes, counts, edges = kept["n"], kept["m"], kept["edges"]
    if nodes.shape != counts.shape or nodes.ndim != 1 or edges.shape != (counts.sum(), 2):
        raise UserError(
            f"{file}: set {name!r} has {len(nodes)} graphs, {counts.sum()} edges by its counts and "
            f"edges of shape {edges.shape}"
        )
    owner = np.repeat(np.arange(len(nodes)), counts)
    if edges.size and ((edges < 0) | (edges >= nodes[owner][:, None])).any():
        raise UserError(f"{file}: set {name!r} has an edge to a node that does not exist")
    lengths = {"split": len(nodes), "class": len(nodes), "node_label": int(nodes.sum())}
    for key, length in lengths.items():
        if key in kept and kept[key].shape != (length,):
            raise UserError(f"{file}: {name}_{key} has shape {kept[key].shape}, not ({length},)")
    split = kept.get("split")
    if split is None:
        split = np.full(len(nodes), SPLITS["train"])
        split[: int(TEST_SHARE * len(nodes))] = SPLITS["test"]
    return GraphSet(
        name=name,
        nodes=nodes,
        edges=edges,
        edge_offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        split=split.astype(np.int8),
        node_labels=kept.get("node_label"),
        labels=kept.get("class"),
    )


def generate(
    family: str, count: int, seed: int | np.random.Generator, **options: Any
) -> list[Graph]:
    """`count` independent graphs of a family (`FAMILIES`) in networkx, nodes 0..n-1.

    seed: an integer, or a numpy generator to draw from
    options: those of the family's function, for instance ``nodes=(12, 20)``

    Raises `UserError` for an unknown family, option, or impossible sizes.
    """
    if family not in FAMILIES:
        raise UserError(f"unknown family {family!r}; choose from {', '.join(FAMILIES)}")
    if count < 0:
        raise UserError(f"cannot draw {count} graphs")
    draw = FAMILIES[family]
    allowed = draw.__kwdefaults__ or {}
    unknown = [key for key in options if key not in allowed]
    if unknown:
        raise UserError(f"{family} has no option {unknown[0]!r}; it has: {', '.join(allowed)}")
    rng = np.random.default_rng(seed)
    return [draw(rng, **options) for _ in range(count)]


Range = tuple[int, int]


def _size(rng: np.random.Generator, limits: Range, least: int, what: str = "nodes") -> int:
    low, high = limits
    if not least <= low <= high:
        raise UserError(f"{what} = {limits}: expected two numbers, {least} <= low <= high")
    return int(rng.integers(low, high + 1))


def _graph(nodes: int, edges: Sequence[Sequence[int]] | NDArray[Any]) -> Graph:
    import networkx as nx

    out = nx.Graph()
    out.add_nodes_from(range(nodes))
    out.add_edges_from(np.asarray(edges, np.int64).reshape(-1, 2).tolist())
    return out


def _block_edges(rng: np.random.Generator, matrix: NDArray[np.float64]) -> NDArray[np.int64]:
    """Pairs i < j, each an edge with its own probability."""
    return np.argwhere(np.triu(rng.random(matrix.shape) < matrix, 1))


def _connected(nodes: int, edges: NDArray[np.int64]) -> bool:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(edges), np.int8)
    matrix = coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(nodes, nodes))
    return bool(connected_components(matrix, directed=False)[0] == 1)


def two_communities(
    rng: np.random.Generator,
    *,
    nodes: Range = (12, 20),
    inside: float = 0.7,
    links: Range = (1, 3),
) -> Graph:
    """Two halves, each a connected G(n/2, inside), and `links` edges between them.

    The halves differ by one node where n is odd.
    """
    n = _size(rng, nodes, 4)
    if not 0 < inside <= 1:
        raise UserError(f"inside = {inside}: expected a probability above 0")
    edges = []
    for offset, half in ((0, n // 2), (n // 2, n - n // 2)):
        while True:
            block = _block_edges(rng, np.full((half, half), float(inside)))
            if _connected(half, block):
                break
        edges.append(block + offset)
    first, second = n // 2, n - n // 2
    across = rng.choice(first * second, _size(rng, links, 1, "links"), replace=False)
    edges.append(np.stack([across // second, first + across % second], axis=1))
    return _graph(n, np.concatenate(edges))


def sbm(
    rng: np.random.Generator,
    *,
    blocks: Range = (2, 5),
    sizes: Range = (20, 40),
    inside: float = 0.3,
    between: float = 0.005,
) -> Graph:
    """Stochastic block model, drawn anew until it is connected."""
    while True:
        counts = [_size(rng, sizes, 1, "sizes") for _ in range(_size(rng, blocks, 1, "blocks"))]
        block = np.repeat(np.arange(len(counts)), counts)
        chance = np.where(block[:, None] == block, float(inside), float(between))
        edges = _block_edges(rng, chance)
        if _connected(len(block), edges):
            return _graph(len(block), edges)


def planar(rng: np.random.Generator, *, nodes: Range = (64, 64)) -> Graph:
    """Delaunay triangulation of points drawn uniformly in the unit square."""
    from scipy.spatial import Delaunay

    n = _size(rng, nodes, 3)
    corners = Delaunay(rng.random((n, 2))).simplices
    return _graph(n, np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [0, 2]]]))


def tree(rng: np.random.Generator, *, nodes: Range = (64, 64)) -> Graph:
    """A labelled tree, all n^(n-2) equally likely."""
    import networkx as nx

    n = _size(rng, nodes, 1)
    if n <= 2:
        return _graph(n, [(0, 1)] * (n - 1))
    drawn = nx.from_prufer_sequence(rng.integers(0, n, n - 2).tolist())
    return _graph(n, list(drawn.edges))


def lobster(rng: np.random.Generator, *, nodes: Range = (10, 40)) -> Graph:
    """A path of a quarter to half of the nodes; the others hang on it or on one that does."""
    n = _size(rng, nodes, 1)
    spine = int(rng.integers(max(1, n // 4), max(1, n // 2) + 1))
    legs = int(rng.integers((n - spine + 1) // 2, n - spine + 1)) if n > spine else 0
    edges = [(i, i + 1) for i in range(spine - 1)]
    edges += [(int(rng.integers(spine)), spine + k) for k in range(legs)]
    edges += [(spine + int(rng.integers(legs)), k) for k in range(spine + legs, n)]
    return _graph(n, edges)


def ring_of_cliques(
    rng: np.random.Generator, *, cliques: Range = (3, 5), sizes: Range = (3, 5)
) -> Graph:
    """Complete graphs of one size, each joined to the next by one edge."""
    count, size = _size(rng, cliques, 3, "cliques"), _size(rng, sizes, 3, "sizes")
    clique = np.argwhere(np.triu(np.ones((size, size)), 1))
    edges = [clique + size * k for k in range(count)]
    starts = size * np.arange(count)
    edges.append(np.stack([starts, np.roll(starts, -1) + 1], axis=1))
    return _graph(count * size, np.concatenate(edges))


def ego(
    rng: np.random.Generator, *, nodes: Range = (4, 18), host: int = 400, radius: int = 1
) -> Graph:
    """The nodes within `radius` of a random node; the host graph has `host` nodes."""
    import networkx as nx

    _size(rng, nodes, 1)
    for _ in range(100):
        whole = nx.powerlaw_cluster_graph(host, 2, 0.4, seed=rng)
        for centre in rng.permutation(host)[:50].tolist():
            found = nx.ego_graph(whole, centre, radius)
            if nodes[0] <= len(found) <= nodes[1]:
                local = nx.convert_node_labels_to_integers(found, ordering="sorted")
                return _graph(len(local), list(local.edges))
    raise UserError(f"no neighbourhood of {nodes[0]} to {nodes[1]} nodes in a graph of {host}")


def grid(rng: np.random.Generator, *, sides: Range = (10, 19)) -> Graph:
    """A lattice of a x b nodes."""
    a, b = _size(rng, sides, 1, "sides"), _size(rng, sides, 1, "sides")
    number = np.arange(a * b).reshape(a, b)
    across = np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()], axis=1)
    down = np.stack([number[:-1].ravel(), number[1:].ravel()], axis=1)
    return _graph(a * b, np.concatenate([across, down]))


#: Family -> the function that draws one graph from a numpy generator.
FAMILIES: dict[str, Callable[..., Graph]] = {
    "two_communities": two_communities,
    "sbm": sbm,
    "planar": planar,
    "tree": tree,
    "lobster": lobster,
    "ring_of_cliques": ring_of_cliques,
    "ego": ego,
    "grid": grid,
}
