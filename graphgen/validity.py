r"""Does a graph belong to the family it was meant for? Exact predicates where there are any.

    connected         one component, at least one node
    two_communities   connected, and the sign of the Fiedler vector (second eigenvector of D - A)
                      parts it into halves that differ by <= 1 node, with <= 3 edges between them
                      and a density >= .45 inside each
    planar            connected and drawn without crossings (Boyer & Myrvold, in networkx)
    tree              connected with n - 1 edges
    lobster           a tree that becomes a path (or nothing) when its leaves are cut off twice
    ring_of_cliques   equal complete graphs of >= 3 nodes in a ring, one edge from each to the next
    sbm               the block model of the SPECTRE set is not rejected, see `block_model`
    valence           atoms (element, charge) and bonds (order) that pass RDKit's valence check
    molecule          those that RDKit can sanitise, in one fragment

The published block-model test forgets the sample size: its statistic (p_hat - p)^2 / p (1 - p) is
not divided by 1 / pairs, so four times too many edges between blocks pass. Here blocks of the
allowed sizes are found by greedy maximisation of the likelihood *under the null model*, from
spectral partitions,

    log L(z) = const + sum_{i < j, z_i = z_j} s_ij,
    s_ij = log(p / q) where i ~ j, else log((1 - p) / (1 - q)),

in which p and q are given, so the number of blocks needs no penalty. Edge counts are then compared
with the null model by likelihood ratios G = 2 log L(k / n) / L(p_0) and Wilks' theorem (1938),
twice: all pairs inside blocks and all pairs between them against p and q (two degrees of freedom,
so that a small shift of either rate is seen), and the single blocks and pairs of blocks against
those two totals. Each G is divided by its exact mean under the null model, which for rare edges is
not 1 (Bartlett 1937). The p-value is twice the smaller of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftworks.errors import UserError
from driftworks.graphgen import molecules
from driftworks.graphgen.convert import molecule_of
from driftworks.graphgen.descriptors import Adjacency, adjacencies

__all__ = ["FAMILIES", "BlockTest", "block_model", "holds", "predicate"]

Predicate = Callable[[Any], bool]

MAX_CUT = 3
MIN_DENSITY = 0.45


def _dense(graph: Any) -> Adjacency:
    return adjacencies([graph])[0]


def _connected(a: Adjacency) -> bool:
    reached = np.zeros(len(a), bool)
    reached[0] = True
    front = reached
    while front.any():
        front = a[front].any(0) & ~reached
        reached |= front
    return bool(reached.all())


def connected(graph: Any) -> bool:
    """One component; a graph without nodes is not connected."""
    return graph is not None and len(graph) > 0 and _connected(_dense(graph))


def two_communities(graph: Any) -> bool:
    """Two dense halves with at most three edges between them; the definition is in the head."""
    if not connected(graph):
        return False
    a = _dense(graph)
    if len(a) < 4:
        return False
    laplacian = np.diag(a.sum(0).astype(float)) - a
    side = np.linalg.eigh(laplacian)[1][:, 1] > 0
    one, other = int(side.sum()), int((~side).sum())
    if abs(one - other) > 1 or a[side][:, ~side].sum() > MAX_CUT:
        return False
    densities = [a[np.ix_(s, s)].sum() / (s.sum() * (s.sum() - 1)) for s in (side, ~side)]
    return min(densities) >= MIN_DENSITY


def planar(graph: Any) -> bool:
    """Connected and planar."""
    if not connected(graph):
        return False
    import networkx as nx

    return bool(nx.check_planarity(nx.from_numpy_array(_dense(graph)))[0])


def tree(graph: Any) -> bool:
    """Connected, with one edge fewer than nodes."""
    if not connected(graph):
        return False
    a = _dense(graph)
    return int(a.sum()) == 2 * (len(a) - 1)


def lobster(graph: Any) -> bool:
    """A tree within two steps of a path."""
    if not tree(graph):
        return False
    a = _dense(graph)
    for _ in range(2):
        keep = a.sum(0) > 1
        a = a[np.ix_(keep, keep)]
    return not len(a) or int(a.sum(0).max()) <= 2


def ring_of_cliques(graph: Any) -> bool:
    """At least three equal complete graphs in a ring."""
    if not connected(graph):
        return False
    a = _dense(graph)
    counts = a.astype(np.int64)
    # an edge of the ring lies in no triangle, one inside a clique in at least one
    inside = ((counts @ counts) > 0) & a
    block = _components(inside)
    sizes = np.bincount(block)
    rank = sizes[0]
    if len(sizes) < 3 or rank < 3 or (sizes != rank).any():
        return False
    if (inside.sum(0) != rank - 1).any():
        return False
    ring = a & ~inside
    if (ring.sum(0) > 1).any():
        return False
    i, j = np.nonzero(ring)
    quotient = np.zeros((len(sizes), len(sizes)), bool)
    quotient[block[i], block[j]] = True
    return len(i) == 2 * len(sizes) and bool((quotient.sum(0) == 2).all()) and _connected(quotient)


def _components(a: Adjacency) -> NDArray[np.int64]:
    from scipy.sparse.csgraph import connected_components

    return np.asarray(connected_components(a, directed=False)[1], np.int64)


@dataclass(frozen=True)
class BlockTest:
    """Outcome of `block_model`.

    blocks: size of each block found, largest first; inside, between: estimated edge probabilities
        (NaN where there are no such pairs); p: of the likelihood-ratio test; passed: p >= level;
        reason: "" or why not ("unconnected", "sizes" when n nodes cannot be parted into allowed
        blocks, "edges" when the edge counts are not those of the model)
    """

    blocks: tuple[int, ...]
    inside: float
    between: float
    p: float
    passed: bool
    reason: str


def block_model(
    graph: Any,
    inside: float = 0.3,
    between: float = 0.005,
    blocks: tuple[int, int] = (2, 5),
    sizes: tuple[int, int] = (20, 40),
    level: float = 0.01,
    seed: int = 0,
) -> BlockTest:
    """Test whether a graph comes from the planted partition with these probabilities.

    blocks, sizes: allowed number of blocks and of nodes in each (the SPECTRE set's by default)
    level: share of true block models to reject
    seed: of the spectral partitions that the search starts from

    Raises `UserError` unless 0 < between < inside < 1 and 0 < level < 1.
    """
    if not 0 < between < inside < 1:
        raise UserError(f"need 0 < between < inside < 1, got {between} and {inside}")
    if not 0 < level < 1:
        raise UserError(f"level = {level}: expected a probability between 0 and 1")
    if not connected(graph):
        return BlockTest((), np.nan, np.nan, 0.0, False, "unconnected")
    a = _dense(graph)
    z = _blocks(a, inside, between, blocks, sizes, seed)
    if z is None:
        return BlockTest((), np.nan, np.nan, 0.0, False, "sizes")
    found = np.bincount(z)
    member = np.eye(len(found))[z]
    i, j = np.triu_indices(len(found))
    half = np.where(i == j, 0.5, 1.0)
    edges = (member.T @ a @ member)[i, j] * half
    pairs = (np.outer(found, found) - np.diag(found))[i, j] * half
    rates = []
    shift, apart, freedom, spread = 0.0, 0, 0, 0.0
    for kind, rate in ((i == j, inside), (i != j, between)):
        kind = kind & (pairs > 0)
        total, trials = edges[kind].sum(), pairs[kind].sum()
        rates.append(float(total / trials) if trials else np.nan)
        if trials:
            shift += _ratio(total, trials, rate) / _mean_ratio(int(trials), rate)
            freedom += 1
        if kind.sum() > 1 and 0 < total < trials:
            own = total / trials
            ratios = sum(_ratio(k, n, own) for k, n in zip(edges[kind], pairs[kind], strict=True))
            scale = sum(_mean_ratio(int(n), rate) for n in pairs[kind]) / kind.sum()
            spread += float(ratios / scale)
            apart += int(kind.sum()) - 1
    from scipy.stats import chi2

    tails = [float(chi2.sf(shift, freedom))]
    if apart:
        tails.append(float(chi2.sf(spread, apart)))
    p = min(1.0, len(tails) * min(tails))
    listed = tuple(sorted((int(size) for size in found), reverse=True))
    return BlockTest(listed, rates[0], rates[1], p, p >= level, "" if p >= level else "edges")


def _ratio(k: Any, n: Any, p: float) -> Any:
    """2 log of the likelihood of k successes in n at k / n over that at p."""
    from scipy.special import xlogy

    return 2 * (xlogy(k, k / n) + xlogy(n - k, 1 - k / n) - xlogy(k, p) - xlogy(n - k, 1 - p))


@lru_cache(maxsize=4096)
def _mean_ratio(n: int, p: float) -> float:
    """Mean of `_ratio` of a binomial count; 1 in the limit of many edges."""
    from scipy.stats import binom

    low, high = binom.ppf([1e-12, 1 - 1e-12], n, p)
    k = np.arange(int(low), int(high) + 1)
    return float(binom.pmf(k, n, p) @ _ratio(k, n, p))


def _blocks(
    a: Adjacency,
    inside: float,
    between: float,
    blocks: tuple[int, int],
    sizes: tuple[int, int],
    seed: int,
) -> NDArray[np.int64] | None:
    """The partition into allowed blocks of largest likelihood that greedy moves find, if any."""
    present, absent = float(np.log(inside / between)), float(np.log((1 - inside) / (1 - between)))
    gain = np.asarray(np.where(a, present, absent), np.float64)
    np.fill_diagonal(gain, 0.0)
    allowed = range(blocks[0], blocks[1] + 1)
    counts = [k for k in allowed if k * sizes[0] <= len(a) <= k * sizes[1]]
    vectors = _embedding(a)
    rng = np.random.default_rng(seed)
    best: NDArray[np.int64] | None = None
    top = -np.inf
    for k in counts:
        z = _improve(gain, _start(vectors[:, :k], k, sizes, rng), sizes)
        value = float((gain * (z[:, None] == z)).sum())
        if value > top:
            best, top = z, value
    return best


def _embedding(a: Adjacency) -> NDArray[np.float64]:
    """Eigenvectors of the normalised adjacency matrix, most clustered first."""
    degree = a.sum(0).astype(float)
    # the mean degree added to each steadies nodes of low degree (Qin & Rohe 2013)
    scale = 1 / np.sqrt(degree + degree.mean() + 1e-9)
    return np.asarray(np.linalg.eigh(scale[:, None] * a * scale)[1][:, ::-1])


def _start(
    vectors: NDArray[np.float64], k: int, sizes: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.int64]:
    """k clusters of the embedded nodes, each node to the nearest centre that still has room."""
    from scipy.cluster.vq import kmeans2

    rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    chosen = [int(rng.integers(len(rows)))]
    for _ in range(k - 1):  # each next seed farthest from those chosen
        away = ((rows[:, None] - rows[chosen]) ** 2).sum(2).min(1)
        chosen.append(int(away.argmax()))
    centres = kmeans2(rows, rows[chosen], minit="matrix")[0]
    away = ((rows[:, None] - centres) ** 2).sum(2)
    z = np.full(len(rows), -1, np.int64)
    for node in np.argsort(away.min(1)):
        count = np.bincount(z[z >= 0], minlength=k)
        room = count < sizes[1]
        # what is left must suffice to bring every block to the least size
        short = np.maximum(sizes[0] - count, 0)
        if short.sum() >= (z < 0).sum():
            room &= short > 0
        z[node] = int(np.where(room, away[node], np.inf).argmin())
    return z


def _improve(
    gain: NDArray[np.float64], z: NDArray[np.int64], sizes: tuple[int, int]
) -> NDArray[np.int64]:
    """Move single nodes or exchange two, within the allowed sizes, while the likelihood rises."""
    z = z.copy()
    k = int(z.max()) + 1
    nodes = np.arange(len(z))
    for _ in range(20 * len(z)):
        pull = gain @ np.eye(k)[z]
        better = pull - pull[nodes, z][:, None]
        count = np.bincount(z, minlength=k)
        allowed = (count[z] > sizes[0])[:, None] & (count < sizes[1])
        move = np.where(allowed, better, -np.inf)
        node, block = divmod(int(move.argmax()), k)
        if move[node, block] > 1e-9:
            z[node] = block
            continue
        swap = better[:, z] + better[:, z].T - 2 * gain
        swap[z[:, None] == z] = -np.inf
        one, other = divmod(int(swap.argmax()), len(z))
        if swap[one, other] <= 1e-9:
            break
        z[one], z[other] = z[other], z[one]
    return z


def sbm(graph: Any) -> bool:
    """The block model of the SPECTRE set is not rejected at the level of 1 %."""
    return block_model(graph).passed


def valence(graph: Any) -> bool:
    """A molecule without impossible valences; `UserError` where a graph is no molecule."""
    if graph is None or not len(graph):
        return False
    return molecules.check(molecule_of(graph)).published


def molecule(graph: Any) -> bool:
    """A molecule that can be sanitised and has one fragment; `UserError` as for `valence`."""
    if graph is None or not len(graph):
        return False
    return molecules.check(molecule_of(graph)).connected


#: Family -> predicate of one graph (networkx, or an adjacency matrix).
FAMILIES: dict[str, Predicate] = {
    "connected": connected,
    "two_communities": two_communities,
    "planar": planar,
    "tree": tree,
    "lobster": lobster,
    "ring_of_cliques": ring_of_cliques,
    "sbm": sbm,
    "valence": valence,
    "molecule": molecule,
}


def predicate(family: str | Predicate) -> Predicate:
    """The predicate of a family by name, or the function given; `UserError` names the choices."""
    if callable(family):
        return family
    if family not in FAMILIES:
        raise UserError(f"unknown family {family!r}; choose from {', '.join(FAMILIES)}")
    return FAMILIES[family]


def holds(family: str | Predicate, graphs: Any) -> NDArray[np.bool_]:
    """(B,) bool: which graphs belong to the family; None never does."""
    test = predicate(family)
    return np.array([graph is not None and bool(test(graph)) for graph in graphs], bool)
