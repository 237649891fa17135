"""Detail of maps: precise where the truth is known, and never another map than was chosen."""

from __future__ import annotations

import numpy as np
import pytest

from driftworks.shapes import detail, fmaps, surface
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.ranking import Judge
from driftworks.shapes.surface import Surface

K = 60


def judged(points, faces) -> Judge:
    bent = points * (1 + 0.1 * np.sin(points[:, :1]))
    return Judge(*(Surface.of(Mesh(p, faces), K, 200, anchors=80) for p in (points, bent)))


@pytest.fixture(scope="module")
def judge(lump):
    return judged(*lump)


@pytest.fixture(scope="module")
def low(judge):
    """The true map, which is the identity, at few functions."""
    every = np.arange(len(judge.a))
    first, second = (s.basis.first(detail.LOW) for s in (judge.a, judge.b))
    return fmaps.from_vertices(every, first, second), fmaps.from_vertices(every, second, first)


def off(judge: Judge, at_a: np.ndarray) -> float:
    """Mean distance of where samples of b go from the truth."""
    place = judge.a.mesh.vertices
    return float(np.linalg.norm(place[at_a] - place[judge.b.samples], axis=1).mean())


def test_the_fine_search_is_more_precise_than_the_swift_one(judge, low):
    for refined in (detail.swift, detail.fine):
        there, back = refined(*low, judge, K)
        assert there.shape == back.shape == (K, K)
    swift, fine = (detail.located(f(*low, judge, K), judge)[0] for f in (detail.swift, detail.fine))
    assert off(judge, fine) < 0.02 and off(judge, fine) <= off(judge, swift)


def test_functions_are_no_more_than_samples_can_fix(lump):
    points, faces = lump
    few = Judge(*(Surface.of(Mesh(points, faces), K, 90) for _ in range(2)))
    assert detail.room(few) == 30
    assert detail.fine(np.eye(10), np.eye(10), few, 150)[0].shape == (30, 30)


def test_polishing_bends_less_and_keeps_the_map(judge, low):
    """From the truth turned a little about an axis, which no low function resists."""
    x = judge.a.mesh.vertices
    c, s = np.cos(0.1), np.sin(0.1)
    slid = fmaps.nearest(x @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]), x)
    back = fmaps.nearest(x, x[slid])
    first, second = (side.basis.first(K) for side in (judge.a, judge.b))
    maps = fmaps.from_vertices(slid, first, second), fmaps.from_vertices(back, second, first)
    start = detail.located(maps, judge)
    found = detail.located(detail.polished(maps, judge, K, mirrored=False), judge)
    bent = [judge.glance(*at)["bending"] for at in (start, found)]
    assert bent[1] < bent[0]
    assert off(judge, found[0]) < 0.6 * off(judge, start[0])
    assert np.linalg.norm(x[found[0]] - x[start[0]], axis=1).mean() <= detail.SAME


def test_a_map_that_starts_do_not_lead_to_stays(judge, rng):
    """Starts near a random map end in others, which are not taken for it."""
    maps = tuple(fmaps.orthogonal(rng.normal(size=(K, K))) for _ in range(2))
    kept = detail.polished(maps, judge, K, mirrored=False)
    at, before = (detail.located(m, judge)[0] for m in (kept, maps))
    x = judge.a.mesh.vertices
    assert np.linalg.norm(x[at] - x[before], axis=1).mean() <= detail.SAME


def test_large_shapes_are_searched_at_vertices_that_numbering_does_not_choose(lump, monkeypatch):
    points, faces = lump
    monkeypatch.setattr(surface, "DENSE", 150)
    order = np.random.default_rng(1).permutation(len(points))
    one = Surface.of(Mesh(points, faces), 20, 60)
    two = Surface.of(Mesh(points[order], np.argsort(order)[faces]), 20, 60)
    assert len(one.dense) == len(two.dense) == 150
    assert np.array_equal(np.sort(order[two.dense]), np.sort(one.dense))
    small = Surface.of(Mesh(points, faces), 20, 60)
    monkeypatch.setattr(surface, "DENSE", len(points))
    assert np.array_equal(small.dense, np.arange(len(points)))
