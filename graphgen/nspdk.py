r"""Neighbourhood subgraph pairwise distance kernel, for graphs with labels such as molecules.

F. Costa, K. De Grave, "Fast neighborhood subgraph pairwise distance kernel", ICML 2010. A feature
is a pair of rooted balls of one radius r whose roots are d apart; a graph is the vector of how
often each occurs, for r <= 4 and d <= 4, the counts of each (r, d) scaled to unit length and then
the whole. Between sets the linear kernel leaves

    MMD^2 = | mean phi(x) - mean phi(y) |^2        (biased, the published one)

and, unbiased, the mean products of different graphs instead of all. A ball is known by a hash:
colours start from (label, distance to the root) and are refined r times inside the ball, labels of
edges included; the hash of the ball is that of the multiset of its colours. Pairs of hashes fall
into 2^16 buckets. Hashes are integer tensor algebra over a batch of graphs of one size.

Published figures were made with another hash (EDeN's), so single features differ while the kernel
agrees but for collisions. Two balls that colour refinement cannot part (six spokes closed to one
ring or to two triangles) count as equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from driftworks.errors import UserError
from driftworks.graphgen.descriptors import adjacencies
from driftworks.graphgen.graph import Graphs
from driftworks.graphgen.isomorphism import mix, word

__all__ = ["features", "mmd", "mmd_unbiased"]

RADIUS = 4
DISTANCE = 4
BUCKETS = 1 << 16

#: Entries of the largest array that one batch may need.
BATCH = 1 << 22

Words = NDArray[np.uint64]


def features(
    graphs: Iterable[Any],
    nodes: Sequence[str] = (),
    edges: Sequence[str] = (),
    radius: int = RADIUS,
    distance: int = DISTANCE,
    buckets: int = BUCKETS,
) -> csr_array:
    """(G, buckets) sparse float64, rows of unit length.

    graphs: networkx graphs, adjacency matrices whose entries are labels of edges (0 = none), a
        `Graphs` batch with its categories of nodes and edges, or pairs (labels of nodes, adjacency)
    nodes, edges: the attributes of networkx graphs that are labels
    """
    if radius < 0 or distance < 0 or buckets < 1:
        raise UserError(f"impossible radius {radius}, distance {distance} or buckets {buckets}")
    pairs = _labelled(graphs, nodes, edges)
    by_size: dict[int, list[int]] = {}
    for i, (labels, _) in enumerate(pairs):
        by_size.setdefault(len(labels), []).append(i)
    rows, columns, values = [], [], []
    for size, members in sorted(by_size.items()):
        step = max(1, BATCH // size**3)
        for start in range(0, len(members), step):
            part = np.array(members[start : start + step])
            labels = np.stack([pairs[i][0] for i in part])
            matrix = np.stack([pairs[i][1] for i in part])
            row, column, value = _batch(labels, matrix, radius, distance, buckets)
            rows.append(part[row])
            columns.append(column)
            values.append(value)
    shape = (len(pairs), buckets)
    if not rows:
        return csr_array(shape)
    index = (np.concatenate(rows), np.concatenate(columns))
    return csr_array((np.concatenate(values), index), shape=shape)


def _labelled(
    graphs: Iterable[Any], nodes: Sequence[str], edges: Sequence[str]
) -> list[tuple[Words, Words]]:
    if isinstance(graphs, Graphs):
        kinds, matrices = np.asarray(graphs.nodes.cpu()), np.asarray(graphs.edges.cpu())
        out = []
        for kind, matrix, keep in zip(kinds, matrices, np.asarray(graphs.mask.cpu()), strict=True):
            out.append((kind[keep].astype(np.uint64), matrix[np.ix_(keep, keep)].astype(np.uint64)))
        return [pair if len(pair[0]) else _blank() for pair in out]
    return [_pair(graph, nodes, edges, i) for i, graph in enumerate(graphs)]


def _blank() -> tuple[Words, Words]:
    return np.zeros(1, np.uint64), np.zeros((1, 1), np.uint64)


def _pair(graph: Any, nodes: Sequence[str], edges: Sequence[str], i: int) -> tuple[Words, Words]:
    if graph is None:
        return _blank()
    if isinstance(graph, tuple):
        labels, matrix = np.asarray(graph[0]), np.asarray(graph[1])
        if labels.shape != matrix.shape[:1]:
            raise UserError(f"graph {i} has {labels.shape} labels for {matrix.shape} edges")
        adjacencies([matrix])
        if not len(labels):
            return _blank()
        return labels.astype(np.uint64), matrix.astype(np.uint64)
    a = adjacencies([graph])[0]
    if not hasattr(graph, "number_of_nodes"):
        return np.zeros(len(a), np.uint64), np.asarray(graph).astype(np.uint64)
    code, labels = a.astype(np.uint64), np.zeros(len(a), np.uint64)
    try:
        if nodes:
            labels[:] = [word([d[name] for name in nodes]) for _, d in graph.nodes(data=True)]
        if edges:
            place = {node: k for k, node in enumerate(graph)}
            for u, v, d in graph.edges(data=True):
                value = word([d[name] for name in edges]) | 1
                code[place[u], place[v]] = code[place[v], place[u]] = value
    except KeyError as error:
        raise UserError(f"graph {i} lacks the attribute {error} on a node or edge") from error
    return labels, code


def _batch(
    labels: Words, matrix: Words, radius: int, distance: int, buckets: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Rows, buckets and scaled counts of the features of B graphs of n nodes each."""
    b, n = labels.shape
    far = _distances(matrix != 0, max(radius, distance))
    kinds = np.unique(matrix[matrix > 0])
    # products of uint64 wrap modulo 2^64, which is what a hash wants
    edges = [((matrix == kind).astype(np.uint64), mix(kind + np.uint64(1))) for kind in kinds]
    upper = np.triu(np.ones((n, n), bool))
    rows, keys, values = [], [], []
    for r in range(radius + 1):
        ball = _balls(labels, far, edges, r)
        low = np.minimum(ball[:, :, None], ball[:, None, :])
        high = np.maximum(ball[:, :, None], ball[:, None, :])
        both = mix(low ^ mix(high ^ np.uint64(r)))
        for d in range(distance + 1):
            g, i, j = np.nonzero((far == d) & upper)
            if not len(g):
                continue
            place = (mix(both[g, i, j] ^ np.uint64(d + 64)) % np.uint64(buckets)).astype(np.int64)
            found, count = np.unique(g * buckets + place, return_counts=True)
            row = found // buckets
            length = np.sqrt(np.bincount(row, count.astype(float) ** 2, minlength=b))
            rows.append(row)
            keys.append(found)
            values.append(count / length[row])
    # buckets of different (r, d) may coincide: they are added before the whole is scaled
    key, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    value = np.bincount(inverse, np.concatenate(values))
    row = key // buckets
    length = np.sqrt(np.bincount(row, value**2, minlength=b))
    return row, key % buckets, value / length[row]


def _distances(edge: NDArray[np.bool_], most: int) -> NDArray[np.int64]:
    """(B, n, n) lengths of shortest paths; most + 1 where there is none so short."""
    b, n, _ = edge.shape
    far = np.full((b, n, n), most + 1, np.int64)
    far[:, np.arange(n), np.arange(n)] = 0
    front = np.broadcast_to(np.eye(n, dtype=bool), (b, n, n))
    step = edge.astype(np.float32)
    for d in range(1, most + 1):
        front = ((front.astype(np.float32) @ step) > 0) & (far > most)
        far[front] = d
    return far


def _balls(
    labels: Words, far: NDArray[np.int64], edges: Sequence[tuple[Words, Words]], r: int
) -> Words:
    """(B, n) hashes of the balls of radius r around each node."""
    inside = far <= r
    # colour[b, root, node]
    colour = np.where(inside, mix(labels[:, None, :] ^ mix(far.astype(np.uint64))), np.uint64(0))
    for _ in range(r):
        heard = np.zeros_like(colour)
        for adjacent, kind in edges:
            heard += np.where(inside, mix(colour ^ kind), np.uint64(0)) @ adjacent
        colour = np.where(inside, mix(colour + mix(heard)), np.uint64(0))
    # the root is told by its distance 0, so the plain sum over the ball suffices
    return mix(np.where(inside, mix(colour), np.uint64(0)).sum(2, dtype=np.uint64))


def mmd(x: csr_array, y: csr_array) -> float:
    """The published, biased MMD^2 of two sets of feature rows."""
    _check(x, y)
    gap = x.mean(0) - y.mean(0)
    return float(gap @ gap)


def mmd_unbiased(x: csr_array, y: csr_array) -> float:
    """MMD^2 from pairs of different graphs only; NaN with fewer than two in a set."""
    _check(x, y)
    if min(x.shape[0], y.shape[0]) < 2:
        return float("nan")
    value = -2 * float(x.mean(0) @ y.mean(0))
    for rows in (x, y):
        total, m = rows.sum(0), rows.shape[0]
        value += float(total @ total - rows.multiply(rows).sum()) / (m * (m - 1))
    return value


def _check(x: csr_array, y: csr_array) -> None:
    if x.shape[1] != y.shape[1] or not x.shape[0] or not y.shape[0]:
        raise UserError(f"cannot compare feature rows of shapes {x.shape} and {y.shape}")
