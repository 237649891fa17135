r"""Which graphs are the same up to renaming their nodes; copies of a training set.

Colours are refined until they stop parting nodes (Weisfeiler & Leman 1968), from the node's
attributes and its fifteen orbit counts (`orbits`),

    c_v <- h(c_v, multiset {(c_u, e_uv) : u ~ v}),

with multisets hashed as sums of mixed 64-bit words. Graphs with different multisets of colours
differ. Graphs with equal ones are compared exactly: by the one map that colours allow where every
node has its own colour, else component by component by networkx's VF2 (Cordella et al. 2004)
restricted to nodes of equal colour. A search that exceeds its time is *undecided*: counted, and
taken for "the same", so that uniqueness and novelty can only be understated.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from driftworks.errors import UserError
from driftworks.graphgen.descriptors import adjacencies
from driftworks.graphgen.orbits import ORBITS, orbit_counts

__all__ = ["Classes", "Leak", "classes", "isomorphic", "leaks", "mix", "word"]

Words = NDArray[np.uint64]

#: Seconds that one exact comparison may take.
SECONDS = 2.0

_ORBIT_WORDS = np.random.default_rng(15).integers(0, 1 << 63, ORBITS, np.uint64) * 2 + 1


def mix(words: Words) -> Words:
    """A bijection of 64-bit words that scatters their bits (splitmix64's finaliser)."""
    with np.errstate(over="ignore"):  # numpy warns of wrapping for single words only
        x = np.asarray(words, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))


def word(value: Any) -> int:
    """A 64-bit word of an attribute value or a list of them, the same in every process.

    Values of numpy are taken for Python's.
    """
    digest = hashlib.blake2b(repr(_plain(value)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return type(value)(_plain(part) for part in value)
    return value


@dataclass(frozen=True, eq=False)
class _Form:
    """edges (n, n) uint64, 0 where there is none; colours (n,) refined; key of their multiset."""

    edges: Words
    colours: Words
    key: bytes


def _form(graph: Any, nodes: Sequence[str], edges: Sequence[str], i: int) -> _Form:
    a = adjacencies([graph])[0]
    code = a.astype(np.uint64)
    start = np.zeros(len(a), np.uint64)
    if nodes or edges:
        if not hasattr(graph, "number_of_nodes"):
            raise UserError(f"graph {i} is no networkx graph, so it has no attributes to compare")
        try:
            if nodes:
                start[:] = [word([d[name] for name in nodes]) for _, d in graph.nodes(data=True)]
            if edges:
                place = {node: k for k, node in enumerate(graph)}
                for u, v, d in graph.edges(data=True):
                    value = word([d[name] for name in edges]) | 1
                    code[place[u], place[v]] = code[place[v], place[u]] = value
        except KeyError as error:
            raise UserError(f"graph {i} lacks the attribute {error} on a node or edge") from error
    counts = orbit_counts(a).astype(np.uint64)
    colours = mix(start ^ mix(counts @ _ORBIT_WORDS))
    i_, j_ = np.nonzero(a)
    known = len(np.unique(colours))
    for _ in range(len(a)):
        heard = np.zeros(len(a), np.uint64)
        np.add.at(heard, i_, mix(colours[j_] ^ mix(code[i_, j_])))
        refined = mix(colours + mix(heard))
        parts = len(np.unique(refined))
        colours = refined
        if parts == known:
            break
        known = parts
    return _Form(code, colours, _key(len(i_), colours))


def _key(edges: int, colours: Words) -> bytes:
    head = np.array([len(colours), edges], np.uint64)
    return hashlib.blake2b(head.tobytes() + np.sort(colours).tobytes(), digest_size=16).digest()


def _components(form: _Form) -> list[_Form]:
    count, member = connected_components(form.edges > 0, directed=False)
    if count == 1:
        return [form]
    out = []
    for k in range(count):
        keep = member == k
        edges, colours = form.edges[np.ix_(keep, keep)], form.colours[keep]
        out.append(_Form(edges, colours, _key(int((edges > 0).sum()), colours)))
    return out


class _Undecided(Exception):
    """The exact search ran out of time."""


def _same(one: _Form, other: _Form, seconds: float) -> bool:
    """Exact comparison of two forms with equal keys; `_Undecided` when it takes too long."""
    parts, others = _components(one), _components(other)
    if len(parts) != len(others):
        return False
    if len(parts) > 1:
        # the search would try every way of matching equal components; any one of them will do
        for part in parts:
            match = next(
                (k for k, x in enumerate(others) if x.key == part.key and _same(part, x, seconds)),
                None,
            )
            if match is None:
                return False
            others.pop(match)
        return True
    first, second = np.argsort(one.colours), np.argsort(other.colours)
    if np.array_equal(one.edges[np.ix_(first, first)], other.edges[np.ix_(second, second)]):
        return True
    if len(np.unique(one.colours)) == len(one.colours):
        return False
    import networkx as nx
    from networkx.algorithms.isomorphism import GraphMatcher

    deadline = time.monotonic() + seconds

    class Timed(GraphMatcher):
        def syntactic_feasibility(self, u: Any, v: Any) -> bool:
            if time.monotonic() > deadline:
                raise _Undecided
            return bool(super().syntactic_feasibility(u, v))

    pair = []
    for form in (one, other):
        graph = nx.Graph()
        graph.add_nodes_from((k, {"c": int(c)}) for k, c in enumerate(form.colours))
        rows, columns = np.nonzero(np.triu(form.edges))
        words = form.edges[rows, columns].tolist()
        for u, v, word in zip(rows.tolist(), columns.tolist(), words, strict=True):
            graph.add_edge(u, v, e=word)
        pair.append(graph)
    matcher = Timed(
        *pair,
        node_match=lambda x, y: x["c"] == y["c"],
        edge_match=lambda x, y: x["e"] == y["e"],
    )
    try:
        return bool(matcher.is_isomorphic())
    finally:
        matcher.reset_recursion_limit()


def isomorphic(
    one: Any,
    other: Any,
    nodes: Sequence[str] = (),
    edges: Sequence[str] = (),
    seconds: float = SECONDS,
) -> bool | None:
    """Whether two graphs are equal up to the names of nodes; None when time ran out.

    nodes, edges: attributes that must agree as well (networkx graphs only)
    """
    forms = [_form(graph, nodes, edges, i) for i, graph in enumerate((one, other))]
    if forms[0].key != forms[1].key:
        return False
    try:
        return _same(forms[0], forms[1], seconds)
    except _Undecided:
        return None


@dataclass(frozen=True, eq=False)
class Classes:
    """labels: (G,) int64, graphs with one label are isomorphic, numbered in order of appearance,
    -1 for None; undecided: comparisons that ran out of time and count as "the same".
    """

    labels: NDArray[np.int64]
    undecided: int

    def __len__(self) -> int:
        """Distinct classes."""
        return int(self.labels.max(initial=-1)) + 1


def classes(
    graphs: Iterable[Any],
    nodes: Sequence[str] = (),
    edges: Sequence[str] = (),
    seconds: float = SECONDS,
) -> Classes:
    """Sort graphs into isomorphism classes; arguments as for `isomorphic`."""
    buckets: dict[bytes, list[tuple[int, _Form]]] = {}
    labels: list[int] = []
    count = undecided = 0
    for i, graph in enumerate(graphs):
        if graph is None:
            labels.append(-1)
            continue
        form = _form(graph, nodes, edges, i)
        bucket = buckets.setdefault(form.key, [])
        for label, known in bucket:
            try:
                found = _same(form, known, seconds)
            except _Undecided:
                undecided += 1
                found = True
            if found:
                labels.append(label)
                break
        else:
            bucket.append((count, form))
            labels.append(count)
            count += 1
    return Classes(np.array(labels, np.int64), undecided)


@dataclass(frozen=True)
class Leak:
    """How far two sets of graphs overlap.

    train, test: graphs in each; train_classes, test_classes, classes: isomorphism classes in each
    and in both together; leaked: rows of `test` that are isomorphic to a training graph; undecided:
    comparisons that ran out of time
    """

    train: int
    test: int
    train_classes: int
    test_classes: int
    classes: int
    leaked: tuple[int, ...]
    undecided: int

    def __str__(self) -> str:
        text = (
            f"{len(self.leaked)} of {self.test} test graphs are isomorphic to a training graph; "
            f"{self.classes} classes in {self.train + self.test} graphs "
            f"({self.train_classes} in {self.train} to train, {self.test_classes} in {self.test} "
            "to test)"
        )
        return text + (f"; {self.undecided} comparisons undecided" if self.undecided else "")


def leaks(
    train: Iterable[Any],
    test: Iterable[Any],
    nodes: Sequence[str] = (),
    edges: Sequence[str] = (),
    seconds: float = SECONDS,
) -> Leak:
    """Which test graphs are copies of training graphs; arguments as for `isomorphic`."""
    train, test = list(train), list(test)
    found = classes([*train, *test], nodes, edges, seconds)
    first, second = found.labels[: len(train)], found.labels[len(train) :]
    known = set(first[first >= 0].tolist())
    return Leak(
        train=len(train),
        test=len(test),
        train_classes=len(known),
        test_classes=len(set(second[second >= 0].tolist())),
        classes=len(found),
        leaked=tuple(i for i, label in enumerate(second.tolist()) if label in known),
        undecided=found.undecided,
    )
