"""Choosing noisy graphs by their number of pieces: counted right, and no answer is changed."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import torch

from driftworks.core.keys import Keys
from driftworks.graphgen.rare import POOL, choose, pieces


def test_pieces_are_those_networkx_counts() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 24, 60)
    n = 24
    edges, mask = torch.zeros(60, n, n, dtype=torch.long), torch.zeros(60, n, dtype=torch.bool)
    expected = []
    for i, size in enumerate(sizes):
        graph = nx.gnp_random_graph(int(size), 1.2 / int(size), seed=i)
        expected.append(nx.number_connected_components(graph))
        mask[i, :size] = True
        for u, v in graph.edges:
            edges[i, u, v] = edges[i, v, u] = 1 + i % 3
    assert pieces(edges, mask).tolist() == expected


def test_pieces_are_right_on_the_longest_path() -> None:
    for n in (2, 3, 5, 9, 17, 33):
        edges = torch.zeros(1, n, n, dtype=torch.long)
        k = torch.arange(n - 1)
        edges[0, k, k + 1] = edges[0, k + 1, k] = 1
        assert pieces(edges, torch.ones(1, n, dtype=torch.bool)).tolist() == [1]


def _noisy(places: int, t: float, keys: Keys) -> tuple[torch.Tensor, torch.Tensor]:
    """Data: paths 0-1-2 and triangles, equally often; every edge kept with probability t, else
    drawn anew with probability 1/4. Returns data's class and the noisy edges."""
    count = places * POOL
    triangle = keys.uniform("data", 0) < 0.5
    clean = torch.stack((torch.ones(count), torch.ones(count), triangle.float()), 1).bool()
    kept = keys.uniform("kept", 0, (3,)) < t
    drawn = keys.uniform("drawn", 0, (3,)) < 0.25
    noisy = torch.where(kept, clean, drawn).long()
    edges = torch.zeros(count, 3, 3, dtype=torch.long)
    for k, (u, v) in enumerate(((0, 1), (1, 2), (0, 2))):
        edges[:, u, v] = edges[:, v, u] = noisy[:, k]
    return triangle, edges


def test_the_share_of_data_behind_every_noisy_graph_stays_that_of_bayes() -> None:
    t, places = 0.7, 20_000
    keys = Keys.for_samples(3, torch.arange(places * POOL))
    triangle, edges = _noisy(places, t, keys)
    mask = torch.ones(len(edges), 3, dtype=torch.bool)
    rows = choose(edges, mask, keys.uniform("rare", 0))
    assert len(rows) == places and bool((rows // POOL == torch.arange(places)).all())

    on, off = t + (1 - t) / 4, (1 - t) / 4
    chosen = edges[rows]
    tried = 0
    for state in itertools.product((0, 1), repeat=3):
        u, v, w = state
        same = (chosen[:, 0, 1] == u) & (chosen[:, 1, 2] == v) & (chosen[:, 0, 2] == w)
        odds = (on if w else 1 - on) / (off if w else 1 - off)  # of a triangle against a path
        exact, count = odds / (1 + odds), int(same.sum())
        found = float(triangle[rows][same].double().mean())
        assert abs(found - exact) < 4 * (exact * (1 - exact) / count) ** 0.5 + 1e-9, state
        tried += count
    assert tried == places


def test_graphs_in_rare_numbers_of_pieces_come_more_often() -> None:
    places = 8_000
    keys = Keys.for_samples(5, torch.arange(places * POOL))
    _, edges = _noisy(places, 0.95, keys)
    mask = torch.ones(len(edges), 3, dtype=torch.bool)
    rows = choose(edges, mask, keys.uniform("rare", 0))
    apart = (pieces(edges, mask) > 1).double()
    share = float(apart.mean())
    # drawn with h = share^(-1/2) a state of share p comes sqrt(p) / (sqrt(p) + sqrt(1 - p)) often,
    # for many candidates; a finite pool falls a little short of it
    wanted = share**0.5 / (share**0.5 + (1 - share) ** 0.5)
    assert 0.75 * wanted < float(apart[rows].mean()) < 1.1 * wanted
    assert float(apart[rows].mean()) > 2 * share
