"""Measures of maps: known for isometries, sensitive to what they are meant to find."""

from __future__ import annotations

import numpy as np
import pytest

from driftworks.shapes.mesh import Mesh
from driftworks.shapes.prior import SecondMoment
from driftworks.shapes.ranking import (
    MEASURES,
    Judge,
    bending,
    contest,
    local_trust,
    logit,
    probability,
    promise,
)
from driftworks.shapes.surface import Surface


@pytest.fixture(scope="module")
def pair(lump):
    """An asymmetric surface, and the same turned, moved and enlarged: truth is the identity."""
    points, faces = lump
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    one, two = Mesh(points, faces), Mesh(3.0 * points @ turn + 5.0, faces)
    return tuple(Surface.of(mesh, 60, 300, anchors=60) for mesh in (one, two))


@pytest.fixture(scope="module")
def judge(pair):
    return Judge(*pair, SecondMoment.of_isometries(30))


def identity(pair):
    a, b = pair
    return b.samples, a.samples


def test_the_identity_has_no_distortion_and_bends_nothing(pair, judge):
    found = judge.measure(*identity(pair))
    assert set(found) == set(MEASURES)
    for name in ("bending", "descriptors", "commutation", "orthogonality"):
        assert found[name] < 1e-3, name
    # the heat method's distances are not exactly symmetric: about 1 % of the diameter
    assert found["distortion"] < 0.015 and found["tear"] < 0.05
    assert found["handedness"] < -0.9
    assert found["worst"] < 1e-3 and found["inverted"] == 0 and found["curvature"] < 1e-3
    assert found["gaps"] < 1e-3
    assert found["prior"] < 0


def test_a_reflection_bends_nothing_and_has_the_other_hand(lump):
    points, faces = lump
    one, two = Mesh(points, faces), Mesh(points * [-1, 1, 1], faces[:, ::-1])
    pair = tuple(Surface.of(mesh, 60, 300, anchors=60) for mesh in (one, two))
    found = Judge(*pair).measure(*identity(pair))
    assert found["bending"] < 1e-3 and found["handedness"] > 0.9
    assert found["distortion"] < 0.015


def test_patches_of_a_reflection_bend_as_the_closed_form_says(pair):
    """Around an anchor of a plane patch both hands are rigid; a random map is neither."""
    a, b = pair
    proper, mirrored = bending(a, b, a.samples)
    assert proper.max() < 1e-6 and mirrored.min() > 0
    shuffled = np.random.default_rng(1).permutation(a.samples)
    for found in bending(a, b, shuffled):
        assert np.median(found) > 0.5


def test_a_worse_map_has_worse_measures_and_lower_odds(pair, judge, rng):
    at_a, at_b = identity(pair)
    last = judge.measure(at_a, at_b)
    for part in (0.2, 0.6, 1.0):
        count = int(part * len(at_a))
        noisy = []
        for at in (at_a, at_b):
            moved = at.copy()
            moved[rng.choice(len(at), count, replace=False)] = rng.choice(642, count)
            noisy.append(moved)
        found = judge.measure(*noisy)
        for name in ("distortion", "bending", "descriptors", "cycle", "orthogonality"):
            assert found[name] > last[name], (name, part)
        assert promise(found) < promise(last)
        if part < 1:  # of maps that are all wrong none is the worse one
            assert logit(found) < logit(last)
        assert probability(found) < 0.05
        last = found


def test_confidence_is_low_where_the_map_is_wrong_and_scaled_by_the_score(pair, judge):
    a, b = pair
    at_a, at_b = identity(pair)
    x = b.mesh.vertices @ b.frame[0]
    wrong = x[b.samples] > np.quantile(x, 0.7)
    broken = at_a.copy()
    broken[wrong] = np.random.default_rng(2).permutation(broken[wrong])
    _, trust = local_trust(judge, broken, at_b, 0.8)
    assert ((trust >= 0) & (trust <= 0.8)).all()
    inside, outside = x > np.quantile(x, 0.8), x < np.quantile(x, 0.5)
    assert trust[inside].mean() < 0.5 * trust[outside].mean()


def test_the_curvature_of_a_sphere_is_one_over_its_radius(sphere):
    """Smoothing multiplies it by exp(-lambda t), lambda = 8 pi of the functions x, y and z."""
    ball = Surface.of(Mesh(*sphere(3)), 60, 100)
    expected = np.sqrt(4 * np.pi) * np.exp(-8 * np.pi * np.array([1 / 600, 1 / 200, 1 / 60]))
    assert np.allclose(ball.curvatures, expected, rtol=0.02)
    inside_out = Mesh(ball.mesh.vertices, ball.mesh.faces[:, ::-1])
    assert np.allclose(Surface.of(inside_out, 60, 100).curvatures, -expected, rtol=0.02)


def test_a_map_of_front_to_back_has_another_curvature_and_not_another_hand(ellipsoid):
    """A body with a bump in front, turned half around its axis: rigid but for the bump."""
    points, faces = ellipsoid(3, (1.0, 1.0, 2.0))
    bump = 0.3 * np.exp(-8 * np.square(points - [1, 0, 0.3]).sum(1))
    body = Surface.of(Mesh(points * (1 + bump[:, None]), faces), 60, 300, anchors=100)
    turned = np.square(points[:, None] - (points * [-1, -1, 1])[None]).sum(2).argmin(1)
    right = Judge(body, body).measure(body.samples, body.samples)
    wrong = Judge(body, body).measure(turned[body.samples], turned[body.samples])
    assert right["handedness"] < 0 and wrong["handedness"] < 0
    assert right["curvature"] < 1e-6 and wrong["curvature"] > 0.1
    assert logit(wrong) < logit(right) - 1


def test_rivals_share_what_is_certain_and_copies_do_not():
    logits = np.log(np.array([9.0, 9.0, 1.0]))
    alone = np.eye(3, dtype=bool)
    assert np.allclose(contest(logits, alone), np.array([9, 9, 1]) / 20)
    copies = alone.copy()
    copies[0, 1] = copies[1, 0] = True
    assert np.allclose(contest(logits, copies), [9 / 11, 9 / 11, 1 / 20])
    assert contest(np.array([900.0, -900.0]), np.eye(2, dtype=bool)) == pytest.approx([1, 0])
