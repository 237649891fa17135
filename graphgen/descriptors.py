r"""What the graph benchmarks compare: histograms of local and global structure, one row a graph.

    degree       share of nodes of each degree                                           (G, K)
    clustering   share of nodes with local clustering c_i = 2 t_i / (d_i (d_i - 1))      (G, 100)
                 in 100 bins of [0, 1]
    orbit        mean over the nodes of the fifteen orbit counts (`orbits`)              (G, 15)
    spectral     share of the eigenvalues of I - D^-1/2 A D^-1/2 in 200 bins of [0, 2]   (G, 200)

as GraphRNN (You et al., 2018) and GRAN (Liao et al., 2019) define them. One detail differs on
purpose: published code drops an eigenvalue that rounding has put above 2, so that bipartite graphs
score by the whims of LAPACK; here eigenvalues are clipped into the range.

A graph that could not be made (None) or has no nodes is described as a single isolated node, so
that a failed sample worsens a comparison and cannot leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftworks.errors import UserError
from driftworks.graphgen.graph import Graphs
from driftworks.graphgen.orbits import orbit_counts

__all__ = ["DESCRIPTORS", "Adjacency", "adjacencies", "describe"]

CLUSTERING_BINS = 100
SPECTRAL_BINS = 200

#: (n, n) bool, symmetric, zero diagonal, n >= 1
Adjacency = NDArray[np.bool_]


def adjacencies(graphs: Iterable[Any]) -> list[Adjacency]:
    """Dense adjacency matrices of networkx graphs, square arrays or tensors, or a `Graphs` batch.

    None and graphs without nodes become a single isolated node. Raises `UserError` for directed
    graphs, multigraphs, self-loops, and for what is no graph.
    """
    if isinstance(graphs, Graphs):
        return _of_batch(graphs)
    if isinstance(graphs, (str, bytes)) or not isinstance(graphs, Iterable):
        raise UserError(f"expected graphs, got {graphs!r:.60}")
    return [_adjacency(graph, i) for i, graph in enumerate(graphs)]


def _of_batch(graphs: Graphs) -> list[Adjacency]:
    edges, mask = np.asarray(graphs.edges.cpu()) != 0, np.asarray(graphs.mask.cpu())
    return [
        matrix[np.ix_(keep, keep)] if keep.any() else np.zeros((1, 1), bool)
        for matrix, keep in zip(edges, mask, strict=True)
    ]


def _adjacency(graph: Any, i: int) -> Adjacency:
    if graph is None:
        return np.zeros((1, 1), bool)
    if hasattr(graph, "number_of_nodes"):
        if graph.is_directed() or graph.is_multigraph():
            kind = "directed" if graph.is_directed() else "a multigraph"
            raise UserError(f"graph {i} is {kind}; expected a simple undirected networkx graph")
        place = {node: k for k, node in enumerate(graph)}
        matrix = np.zeros((len(place), len(place)), bool)
        for u, v in graph.edges:
            matrix[place[u], place[v]] = matrix[place[v], place[u]] = True
    else:
        values = np.asarray(graph)
        if values.ndim != 2 or values.shape[0] != values.shape[1]:
            raise UserError(f"graph {i} is no graph: {type(graph).__name__} of {values.shape}")
        matrix = values != 0
        if (matrix != matrix.T).any():
            raise UserError(f"graph {i} has an adjacency matrix that is not symmetric")
    if matrix.diagonal().any():
        raise UserError(f"graph {i} has a self-loop; expected simple undirected graphs")
    return matrix if len(matrix) else np.zeros((1, 1), bool)


def describe(
    graphs: Sequence[Adjacency], names: Sequence[str] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Descriptors by name (default all of `DESCRIPTORS`), each (G, K) float64.

    Give all graphs that will be compared in one call: the width of ``degree`` is the largest
    degree + 1 among them.
    """
    unknown = [name for name in names or () if name not in DESCRIPTORS]
    if unknown:
        raise UserError(f"unknown descriptor {unknown[0]!r}; choose from {', '.join(DESCRIPTORS)}")
    return {name: DESCRIPTORS[name](graphs) for name in names or DESCRIPTORS}


def _degree(graphs: Sequence[Adjacency]) -> NDArray[np.float64]:
    degrees = [graph.sum(0) for graph in graphs]
    width = 1 + max((int(d.max()) for d in degrees), default=0)
    return _shares([np.bincount(d, minlength=width) for d in degrees], width)


def _clustering(graphs: Sequence[Adjacency]) -> NDArray[np.float64]:
    rows = []
    for graph in graphs:
        a = graph.astype(np.float64)
        d = a.sum(0)
        triangles = ((a @ a) * a).sum(0)
        pairs = d * (d - 1)
        value = np.where(triangles > 0, triangles / np.where(pairs > 0, pairs, 1.0), 0.0)
        rows.append(np.histogram(value, bins=CLUSTERING_BINS, range=(0.0, 1.0))[0])
    return _shares(rows, CLUSTERING_BINS)


def _orbit(graphs: Sequence[Adjacency]) -> NDArray[np.float64]:
    if not graphs:
        return np.zeros((0, 15))
    return np.stack([orbit_counts(graph).mean(0) for graph in graphs])


def _spectral(graphs: Sequence[Adjacency]) -> NDArray[np.float64]:
    rows = []
    for graph in graphs:
        d = graph.sum(0)
        scale = np.where(d > 0, 1 / np.sqrt(np.maximum(d, 1)), 0.0)
        # an isolated node has a zero row, as in networkx, hence the eigenvalue 0
        laplacian = np.diag((d > 0).astype(float)) - scale[:, None] * graph * scale
        values = np.clip(np.linalg.eigvalsh(laplacian), 0.0, 2.0)
        # the published range starts below 0 by 1e-5, which moves the edges of the bins
        rows.append(np.histogram(values, bins=SPECTRAL_BINS, range=(-1e-5, 2.0))[0])
    return _shares(rows, SPECTRAL_BINS)


def _shares(rows: Sequence[NDArray[Any]], width: int) -> NDArray[np.float64]:
    if not rows:
        return np.zeros((0, width))
    counts = np.stack(rows).astype(np.float64)
    return counts / counts.sum(1, keepdims=True)


#: Name -> function from adjacency matrices to (G, K).
DESCRIPTORS: dict[str, Callable[[Sequence[Adjacency]], NDArray[np.float64]]] = {
    "degree": _degree,
    "clustering": _clustering,
    "orbit": _orbit,
    "spectral": _spectral,
}
