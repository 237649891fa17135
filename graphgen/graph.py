"""Graphs as padded tensors, and the words their numbers stand for.

A batch of B undirected simple graphs of at most N nodes. Row b holds nodes 0..n_b-1; the rest is
padding, marked by `mask` and zero everywhere else:

    edges     (B, N, N)     int64    kind of edge, 0 = none, symmetric, zero diagonal
    nodes     (B, N)        int64    kind of node, 0.. ; zeros where nodes have no kinds
    features  (B, N, F)     float64  continuous node attributes; F may be 0
    weights   (B, N, N)     float64  continuous edge attribute, symmetric, 0 without edge; or None
    mask      (B, N)        bool

`Attributes` says what the numbers mean: kind k of a node stands for the k-th combination of values
of the categorical node attributes, kind k >= 1 of an edge for the (k - 1)-th of the edges'. A
graph whose edges have no attributes has the one kind 1. Isolated nodes are nodes like others.
Continuous values keep the double precision they came with, so that a round trip changes nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftworks.errors import UserError

__all__ = ["Attributes", "Graphs"]

Index = int | slice | Sequence[int] | np.ndarray | Tensor


@dataclass(frozen=True)
class Attributes:
    """Names and values of the attributes of nodes and edges.

    nodes: names of categorical node attributes; node_values: the combinations of their values that
        occur, in the order of the kinds 0, 1, ...
    edges: names of categorical edge attributes; edge_values: combinations, of the kinds 1, 2, ...
    features: (name, width) of continuous node attributes; width 1 is a number, else a sequence
    weight: name of the continuous edge attribute
    ignored: attributes that conversions leave behind because the user said so
    """

    nodes: tuple[str, ...] = ()
    node_values: tuple[tuple[Hashable, ...], ...] = ()
    edges: tuple[str, ...] = ()
    edge_values: tuple[tuple[Hashable, ...], ...] = ()
    features: tuple[tuple[str, int], ...] = ()
    weight: str | None = None
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, names, values in (
            ("node", self.nodes, self.node_values),
            ("edge", self.edges, self.edge_values),
        ):
            if bool(names) != bool(values):
                raise UserError(f"{what} attributes {names} with {len(values)} values")
            if any(len(value) != len(names) for value in values):
                raise UserError(f"each {what} value must name one of each of {names}")
            if len(set(values)) != len(values):
                raise UserError(f"two kinds of {what} have equal values: {values!r:.80}")
        on_nodes = [*self.nodes, *(name for name, _ in self.features)]
        on_edges = [*self.edges, *([self.weight] if self.weight is not None else [])]
        for declared in (on_nodes, on_edges):
            if len(set(declared)) != len(declared):
                raise UserError(f"an attribute is declared twice: {', '.join(declared)}")
        if any(width < 1 for _, width in self.features):
            raise UserError(f"features must have a width of at least 1: {self.features}")

    @property
    def node_kinds(self) -> int:
        """How many kinds of node there are, at least 1."""
        return max(1, len(self.node_values))

    @property
    def edge_kinds(self) -> int:
        """How many kinds of edge there are, "none" not counted, at least 1."""
        return max(1, len(self.edge_values))

    @property
    def width(self) -> int:
        """F, continuous numbers on each node."""
        return sum(width for _, width in self.features)

    @property
    def plain(self) -> bool:
        """Whether graphs have no attributes at all."""
        return not (self.nodes or self.edges or self.features or self.weight)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able where the values are."""
        return {
            "nodes": list(self.nodes),
            "node_values": [list(value) for value in self.node_values],
            "edges": list(self.edges),
            "edge_values": [list(value) for value in self.edge_values],
            "features": [list(feature) for feature in self.features],
            "weight": self.weight,
            "ignored": list(self.ignored),
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Attributes:
        """The inverse of `to_dict`."""
        return Attributes(
            nodes=tuple(data["nodes"]),
            node_values=_tuples(data["node_values"]),
            edges=tuple(data["edges"]),
            edge_values=_tuples(data["edge_values"]),
            features=tuple((str(name), int(width)) for name, width in data["features"]),
            weight=data["weight"],
            ignored=tuple(data.get("ignored", ())),
        )


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


_TENSORS = ("edges", "nodes", "features", "weights", "mask")


@dataclass(frozen=True, eq=False)
class Graphs:
    """B graphs padded to N nodes; the tensors and their meaning stand in the module's head.

    names: the nodes' own names, for each graph in the order of its rows; None for 0, 1, ...

    Raises `UserError` where the shapes do not fit together.
    """

    edges: Tensor
    nodes: Tensor
    features: Tensor
    weights: Tensor | None
    mask: Tensor
    attributes: Attributes = Attributes()
    names: tuple[tuple[Hashable, ...] | None, ...] | None = None

    def __post_init__(self) -> None:
        if self.mask.dim() != 2:
            raise UserError(f"mask has shape {tuple(self.mask.shape)}, expected (B, N)")
        b, n = self.mask.shape
        expected = {
            "edges": (b, n, n),
            "nodes": (b, n),
            "features": (b, n, self.attributes.width),
            "weights": (b, n, n),
        }
        for name, shape in expected.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise UserError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        if (self.weights is None) != (self.attributes.weight is None):
            raise UserError("weights and the name of their attribute must be given together")
        if self.names is not None and len(self.names) != b:
            raise UserError(f"names of {len(self.names)} graphs for a batch of {b}")

    def __len__(self) -> int:
        return int(self.mask.shape[0])

    def __repr__(self) -> str:
        if not len(self):
            return "Graphs(0)"
        counts = self.node_counts
        return f"Graphs({len(self)}, nodes {int(counts.min())}-{int(counts.max())})"

    @property
    def device(self) -> torch.device:
        return self.mask.device

    @property
    def node_counts(self) -> Tensor:
        """Nodes of each graph, (B,) int64."""
        return self.mask.sum(dim=1)

    @property
    def edge_counts(self) -> Tensor:
        """Edges of each graph, (B,) int64."""
        return (self.edges > 0).sum(dim=(1, 2)) // 2

    @property
    def max_nodes(self) -> int:
        """N, the padded size."""
        return int(self.mask.shape[1])

    @property
    def adjacency(self) -> Tensor:
        """(B, N, N) bool."""
        return self.edges > 0

    def to(self, device: torch.device | str) -> Graphs:
        return self._each(lambda x: x.to(device), self.names)

    def _each(self, change: Any, names: Any) -> Graphs:
        tensors = {name: getattr(self, name) for name in _TENSORS}
        new: dict[str, Any] = {k: None if x is None else change(x) for k, x in tensors.items()}
        return replace(self, **new, names=names)

    def __getitem__(self, index: Index) -> Graphs:
        """A batch of the chosen graphs (a batch of one for an integer), padding unchanged."""
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"graph {index} of {len(self)}")
            index = [int(index)]
        if isinstance(index, (Sequence, np.ndarray)):
            index = torch.as_tensor(np.asarray(index))
            if not index.numel():
                index = index.long()
        names = self.names
        if names is not None:
            if isinstance(index, Tensor):
                rows = torch.arange(len(self))[index.cpu()].tolist()
            else:
                rows = list(range(len(self))[index])
            names = tuple(names[i] for i in rows)
        if isinstance(index, Tensor):
            index = index.to(self.device)
        return self._each(lambda x: x[index], names)

    def __iter__(self) -> Iterator[Graphs]:
        return (self[i] for i in range(len(self)))

    def padded(self, nodes: int) -> Graphs:
        """The same graphs padded (or trimmed of padding) to `nodes` >= the largest of them."""
        largest = int(self.node_counts.max()) if len(self) else 0
        if nodes < largest:
            raise UserError(f"cannot pad to {nodes} nodes: the largest graph has {largest}")
        have = min(self.max_nodes, nodes)

        def fit(name: str, dims: int) -> Any:
            x = getattr(self, name)
            if x is None:
                return None
            shape = list(x.shape)
            shape[1 : 1 + dims] = [nodes] * dims
            out = x.new_zeros(shape)
            area = (slice(None),) + (slice(have),) * dims
            out[area] = x[area]
            return out

        dims = {"edges": 2, "nodes": 1, "features": 1, "weights": 2, "mask": 1}
        return replace(self, **{name: fit(name, d) for name, d in dims.items()})

    @staticmethod
    def cat(batches: Sequence[Graphs]) -> Graphs:
        """Batches one after the other, padded to the largest N; their attributes must agree."""
        if not batches:
            return Graphs.empty()
        attributes = batches[0].attributes
        if any(batch.attributes != attributes for batch in batches):
            raise UserError("batches with different attributes cannot be put together")
        n = max(batch.max_nodes for batch in batches)
        wide = [batch if batch.max_nodes == n else batch.padded(n) for batch in batches]
        names: Any = None
        if any(batch.names is not None for batch in batches):
            names = tuple(
                name for batch in batches for name in (batch.names or (None,) * len(batch))
            )
        tensors: dict[str, Any] = {}
        for name in _TENSORS:
            parts = [getattr(batch, name) for batch in wide]
            tensors[name] = None if parts[0] is None else torch.cat(parts)
        return Graphs(**tensors, attributes=attributes, names=names)

    @staticmethod
    def empty(count: int = 0, nodes: int = 0, attributes: Attributes | None = None) -> Graphs:
        """`count` rows of padding; the start of every conversion."""
        attributes = attributes or Attributes()
        return Graphs(
            edges=torch.zeros(count, nodes, nodes, dtype=torch.int64),
            nodes=torch.zeros(count, nodes, dtype=torch.int64),
            features=torch.zeros(count, nodes, attributes.width, dtype=torch.float64),
            weights=None
            if attributes.weight is None
            else torch.zeros(count, nodes, nodes, dtype=torch.float64),
            mask=torch.zeros(count, nodes, dtype=torch.bool),
            attributes=attributes,
        )

    def check(self) -> Graphs:
        """Itself, or `UserError` where a value breaks the rules of the module's head."""
        pair = self.mask[:, :, None] & self.mask[:, None, :]
        edges, nodes = self.attributes.edge_kinds, self.attributes.node_kinds
        rules = {
            "edges are not symmetric": (self.edges != self.edges.mT).any(),
            "an edge joins a node to itself": self.edges.diagonal(dim1=1, dim2=2).any(),
            "padding has an edge": (self.edges * ~pair).any(),
            "an edge is of no declared kind": ((self.edges < 0) | (self.edges > edges)).any(),
            "a node is of no declared kind": ((self.nodes < 0) | (self.nodes >= nodes)).any(),
            "padding has a kind or features": (self.nodes * ~self.mask).any()
            or (self.features * ~self.mask[..., None]).any(),
        }  # fmt: skip
        if self.weights is not None:
            rules["weights are not symmetric"] = (self.weights != self.weights.mT).any()
            rules["there is a weight where there is no edge"] = (
                self.weights * (self.edges == 0)
            ).any()
        for message, broken in rules.items():
            if broken:
                raise UserError(message)
        return self
