"""The published sets of graphs, where their file is there; random graphs that print their seed; and
graphs of three nodes, so few that Bayes' rule can stand in for the network.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from driftworks.data import graphs
from driftworks.graphgen.network import NetConfig
from driftworks.graphgen.process import GraphModel, graph_process


@pytest.fixture(scope="session")
def published(data_dir: Path) -> Callable[[str], graphs.GraphSet]:
    """Loader of the published sets."""
    if not (data_dir / graphs.FILE).exists():
        pytest.skip(f"no {graphs.FILE} in {data_dir}")
    return lambda name: graphs.load(name, data_dir)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a new seed each run; pytest shows the seed of a failing test."""
    seed = int(np.random.SeedSequence().entropy) % 2**32
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.fixture
def shuffled(rng: np.random.Generator) -> Callable[[nx.Graph], nx.Graph]:
    """The same graph with its nodes 0..n-1 renamed and added in another order."""

    def shuffle(graph: nx.Graph) -> nx.Graph:
        new = rng.permutation(len(graph)).tolist()
        names = dict(zip(graph, new, strict=True))
        out = nx.Graph()
        out.add_nodes_from((names[u], graph.nodes[u]) for u in sorted(graph, key=names.__getitem__))
        out.add_edges_from((names[u], names[v], data) for u, v, data in graph.edges(data=True))
        return out

    return shuffle


PAIRS = ((0, 1), (0, 2), (1, 2))


class Bayes(nn.Module):
    """The clean classes of every pair given a noisy graph of three nodes, in place of `GraphNet`.

    ``prior(label, properties)`` gives the probabilities of the eight labelled graphs, float64
    (8,) or (B, 8); the likelihood of a clean graph is a product over its pairs.
    """

    def __init__(self, config: NetConfig, prior: Callable[..., Tensor]):
        super().__init__()
        self.config, self.prior = config, prior
        self.table = torch.tensor(list(product((0, 1), repeat=3)))
        self.placed = nn.Parameter(torch.zeros(()))  # tells the bound on which device it lives

    def forward(
        self, nodes: Tensor, edges: Tensor, t: Tensor, mask: Tensor, features: Any = None,
        weights: Any = None, label: Any = None, properties: Any = None, dropout: Any = None,
    ) -> dict[str, Tensor]:
        share = torch.tensor(self.config.edges, dtype=torch.float64)
        shown = torch.stack([edges[:, i, j] for i, j in PAIRS], 1).double()  # (B, 3, 2)
        if self.config.system == "flow":  # a token: kept with probability t, else drawn afresh
            kept = t.double().view(-1, 1, 1)
            likelihood = kept * shown + (1 - kept) * (shown * share).sum(-1, keepdim=True)
        else:  # the network is shown the posterior of a pair alone, share x likelihood
            likelihood = shown / share
        each = likelihood.clamp(min=1e-300).log()
        joint = self.prior(label, properties).log() + sum(
            each[:, k, self.table[:, k]] for k in range(3)
        )
        present = (joint.softmax(-1) @ self.table.double()).clamp(1e-12, 1 - 1e-12)
        answer = torch.zeros(len(t), 3, 3, 2)
        for k, (i, j) in enumerate(PAIRS):
            logits = torch.stack(((1 - present[:, k]).log(), present[:, k].log()), -1).float()
            answer[:, i, j] = answer[:, j, i] = logits
        return {"nodes": torch.zeros(len(t), 3, 1), "edges": answer}


class ThreeNodes:
    """The eight labelled graphs of three nodes; their classes are told by the number of edges."""

    table = torch.tensor(list(product((0, 1), repeat=3)))
    edges = table.sum(1)

    def labelled(self, share: Any) -> Tensor:
        """(8,) or (B, 8) from the probabilities (..., 4) of the classes."""
        share = torch.as_tensor(share, dtype=torch.float64)
        return share[..., self.edges] / torch.tensor([1.0, 3.0, 3.0, 1.0]).double()[self.edges]

    def model(self, prior: Any, density: float, **config: Any) -> GraphModel:
        """The exact model of a prior, a tensor (8,) or a function of conditions (see `Bayes`)."""
        built = NetConfig.model_validate({"edges": (1 - density, density)} | config)
        law = prior if callable(prior) else lambda label, properties: prior
        return GraphModel(Bayes(built, law), graph_process(built))  # type: ignore[arg-type]

    def matrices(self) -> Tensor:
        """Adjacency matrices (8, 3, 3) int64."""
        out = torch.zeros(8, 3, 3, dtype=torch.int64)
        for k, (i, j) in enumerate(PAIRS):
            out[:, i, j] = out[:, j, i] = self.table[:, k]
        return out

    def counts(self, edges: Tensor) -> np.ndarray:
        """How often each labelled graph occurs among adjacency matrices (B, 3, 3): (8,)."""
        bits = torch.stack([edges[:, i, j] for i, j in PAIRS], 1)
        return np.bincount((bits * torch.tensor([4, 2, 1])).sum(1).numpy(), minlength=8)


@pytest.fixture(scope="session")
def three_nodes() -> ThreeNodes:
    return ThreeNodes()
