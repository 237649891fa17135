"""The published sets of graphs, where their file is there; random graphs that print their seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from driftworks.data import graphs


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
