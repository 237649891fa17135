"""Vertex maps of large meshes: the same as from the search in double precision."""

from __future__ import annotations

import numpy as np
import pytest

from driftworks.shapes import extension, fmaps
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.surface import Surface


@pytest.fixture(scope="module")
def pair(lump):
    points, faces = lump
    bent = points * (1 + 0.1 * np.sin(points[:, :1]))
    return tuple(Surface.of(Mesh(p, faces), 60, 200, anchors=50) for p in (points, bent))


@pytest.fixture(scope="module")
def maps(pair):
    a, b = pair
    every = np.arange(len(a))
    c12 = fmaps.from_vertices(every, a.basis.first(30), b.basis.first(28))
    return c12, fmaps.from_vertices(every, b.basis.first(28), a.basis.first(30))


@pytest.mark.parametrize("block", [1 << 24, 5000])
def test_blocks_in_single_precision_find_what_the_whole_search_finds(
    pair, maps, block, monkeypatch
):
    a, b = pair
    right = fmaps.to_vertices_both(
        *maps, a.basis.first(30), b.basis.first(28)
    )
    monkeypatch.setattr(extension, "BLOCK_BYTES", block)
    for found, wanted in zip(extension.everywhere(*maps, a.basis, b.basis), right, strict=True):
        assert (found == wanted).mean() > 0.995


def test_drafts_are_exact_at_samples_and_go_to_samples_elsewhere(pair, maps):
    a, b = pair
    right21, right12 = fmaps.to_vertices_both(*maps, a.basis.first(30), b.basis.first(28))
    map21, map12 = extension.drafted(*maps, a, b)
    assert np.array_equal(map21[b.samples], right21[b.samples])
    assert np.array_equal(map12[a.samples], right12[a.samples])
    others = np.setdiff1d(np.arange(len(b)), b.samples)
    assert np.isin(map21[others], a.samples).all()
    gap = np.linalg.norm(a.mesh.vertices[map21] - a.mesh.vertices[right21], axis=1)
    assert gap.mean() < 0.05
