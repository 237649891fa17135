"""The evaluator against closed forms: known errors on spheres, mirrors, constants and intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from driftworks.errors import UserError
from driftworks.shapes import evaluation, geodesics
from driftworks.shapes.evaluation import errors, evaluate, summarise
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.repair import clean
from driftworks.shapes.result import Match

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]
Indices = NDArray[np.int64]


def matched(a: Mesh, b: Mesh, map_ba: Indices, map_ab: Indices) -> Match:
    return Match(
        a, b, np.asarray(map_ba), np.asarray(map_ab), np.eye(3), np.eye(3),
        np.ones(len(b)), np.ones(len(a)), False, 0.9, "test",
    )  # fmt: skip


@pytest.fixture
def twin(lump: Arrays) -> Match:
    """A shape and a larger copy, with the right map."""
    points, faces = lump
    every = np.arange(len(points))
    return matched(Mesh(points, faces, "one"), Mesh(3 * points, faces, "two"), every, every)


def test_the_right_map_has_no_error_and_covers_everything(twin: Match) -> None:
    report = evaluate(twin, np.arange(len(twin.b)))
    assert (report.mean, report.median, report.auc10, report.round_trip) == (0, 0, 1, 0)
    assert (report.within5, report.within10, report.within25) == (1, 1, 1)
    assert report.coverage == pytest.approx(1)
    assert report.orientation == 1
    assert report.samples == len(twin.b) and report.geodesics == "heat"
    assert not report.self_pair and report.flipped is None


def test_a_map_to_one_point_has_the_mean_distance_of_a_sphere(
    sphere: Callable[..., Arrays],
) -> None:
    points, faces = sphere(3)
    every, zero = np.arange(len(points)), np.zeros(len(points), np.int64)
    match = matched(Mesh(points, faces), Mesh(2 * points, faces), zero, every)
    report = evaluate(match, every, method="exact")
    # on the unit sphere the mean distance to a point is pi / 2; its area is 4 pi
    assert report.mean == pytest.approx(100 * (np.pi / 2) / np.sqrt(4 * np.pi), rel=0.01)
    # 100 e <= 25 is the cap of angle .25 sqrt(4 pi); a cap has (1 - cos) / 2 of the area
    assert report.within25 == pytest.approx((1 - np.cos(0.25 * np.sqrt(4 * np.pi))) / 2, abs=0.02)
    assert report.dirichlet == pytest.approx(0, abs=1e-9)
    assert report.orientation is None
    assert report.coverage == pytest.approx(match.a.vertex_areas[0] / match.a.area)


def test_the_area_under_the_curve_is_that_of_the_curve(
    twin: Match, rng: np.random.Generator
) -> None:
    near = geodesics.distances(twin.a, [0])[0].argsort()[:60]
    wrong = np.arange(len(twin.b))
    wrong[near] = rng.permutation(near)
    match = replace(twin, map_ba=wrong)
    found = 100 * errors(match, np.arange(len(twin.b)))
    thresholds = np.linspace(0, 10, 20_001)
    curve = (found[None] <= thresholds[:, None]).mean(1)
    area = np.trapezoid(curve, thresholds) / 10
    assert evaluate(match, np.arange(len(twin.b))).auc10 == pytest.approx(area, abs=1e-4)
    assert 0 < (found > 0).sum() <= 60


@pytest.mark.parametrize("method", geodesics.METHODS)
def test_errors_are_those_of_the_whole_table(
    twin: Match, rng: np.random.Generator, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, right = (rng.integers(0, len(twin.b), 50) for _ in range(2))
    match = replace(twin, map_ba=rng.permutation(len(twin.b)))
    table = geodesics.distances(match.a, np.arange(len(match.a)), method)
    expected = table[right, match.map_ba[at]] / np.sqrt(match.a.area)
    monkeypatch.setattr(evaluation, "_BLOCK_BYTES", 8 * len(match.a) * 7)
    found = errors(match, (right, at), method=method)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert evaluate(match, (right, at), method=method).geodesics == method


def test_no_more_distances_are_asked_for_than_there_are_sources(
    twin: Match, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = geodesics.distances

    def counting(mesh: Mesh, sources: Indices, method: str = "heat") -> NDArray[np.float64]:
        asked.append(len(sources))
        return real(mesh, sources, method)

    monkeypatch.setattr(evaluation, "distances", counting)
    shifted = replace(twin, map_ba=np.roll(twin.map_ba, 1))
    evaluate(shifted, (np.array([4] * 30 + [9] * 30), np.arange(60)))
    assert asked[0] == 2
    assert sum(asked) <= 2 + evaluation._TRIPS


def test_a_mirrored_map_is_flipped_and_keeps_no_orientation(
    ellipsoid: Callable[..., Arrays],
) -> None:
    points, faces = ellipsoid(3)
    # the icosphere is symmetric under x -> -x
    mirror = np.array([int(np.argmin(((points * [-1, 1, 1] - p) ** 2).sum(1))) for p in points])
    every = np.arange(len(points))
    flipped = matched(Mesh(points, faces), Mesh(2 * points, faces), mirror, mirror)
    report = evaluate(flipped, every, symmetric=mirror)
    assert report.flipped and report.mean_symmetric == 0 and report.mean > 20
    assert report.orientation == 0
    assert report.round_trip == 0
    right = matched(Mesh(points, faces), Mesh(2 * points, faces), every, every)
    good = evaluate(right, every, symmetric=mirror)
    assert good.flipped is False and good.mean == 0 and good.orientation == 1


def test_half_a_flip_is_not_forgiven(ellipsoid: Callable[..., Arrays]) -> None:
    points, faces = ellipsoid(3)
    mirror = np.array([int(np.argmin(((points * [-1, 1, 1] - p) ** 2).sum(1))) for p in points])
    every = np.arange(len(points))
    half = np.where(points[:, 2] > 0, mirror, every)
    report = evaluate(
        matched(Mesh(points, faces), Mesh(2 * points, faces), half, half), every, symmetric=mirror
    )
    assert report.mean > 10 and report.mean_symmetric > 10


def test_the_dirichlet_energy_of_the_identity_is_the_area(lump: Arrays) -> None:
    # a surface that is mapped to itself: 1/2 int |grad x|^2 over the three coordinates is its area
    points, faces = lump
    every = np.arange(len(points))
    match = matched(Mesh(points, faces), Mesh(5 * points, faces), every, every)
    assert evaluate(match, every).dirichlet == pytest.approx(1, rel=1e-3)


def test_truth_is_numbered_as_in_the_files(lump: Arrays) -> None:
    points, faces = lump
    loose = np.array([[9.0, 9, 9]])
    a = clean(np.concatenate([loose, points]), faces + 1)
    b = clean(np.concatenate([loose, loose + 1, 2 * points]), faces + 2)
    every = np.arange(len(points))
    match = matched(a, b, every, every)
    assert evaluate(match, (every + 1, every + 2)).mean == 0
    truth = np.concatenate([[-1, -1], every + 1])
    report = evaluate(match, truth)
    assert report.mean == 0 and report.samples == len(points)


def test_unusable_truth_is_refused(twin: Match) -> None:
    n = len(twin.b)
    for truth, says in (
        (np.arange(n - 1), str(n)),
        (np.full(n, n), str(n)),
        (np.full(n, -1), "no pair"),
        (np.full(n, 0.5), "vertex numbers"),
        ((np.arange(3), np.arange(4)), r"\(3,\)"),
        ((np.array([-2]), np.array([0])), "-2"),
    ):
        with pytest.raises(UserError, match=says):
            evaluate(twin, truth)


def test_a_pair_of_a_shape_with_itself_does_not_count(twin: Match) -> None:
    every = np.arange(len(twin.a))
    own = evaluate(matched(twin.a, twin.a, every, every), every)
    assert own.self_pair and "itself" in str(own)
    bad = evaluate(replace(twin, map_ba=np.zeros_like(every)), every)
    summary = summarise([own, bad])
    assert summary.left_out == 1
    assert summary.figures["mean error x100"].value == pytest.approx(bad.mean)
    with pytest.raises(UserError, match="different shapes"):
        summarise([own])


def test_intervals_are_over_pairs(twin: Match, rng: np.random.Generator) -> None:
    base = evaluate(twin, np.arange(len(twin.b)))
    means = rng.exponential(2, 101)
    reports = [replace(base, mean=float(m), flipped=bool(m > 4), failed=False) for m in means]
    figures = summarise(reports, resamples=2000).figures
    mean, median = figures["mean error x100"], figures["median error x100"]
    assert mean.value == pytest.approx(means.mean())
    assert median.value == pytest.approx(np.median(means))
    # the standard error of a mean; 1.96 of it on both sides
    half = 1.96 * means.std() / np.sqrt(len(means))
    assert (mean.high - mean.low) / 2 == pytest.approx(half, rel=0.15)
    assert mean.n == 101 and mean.of == "pairs"
    draws = np.median(rng.choice(means, (2000, 101)), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert median.high - median.low == pytest.approx(high - low, rel=0.25)
    assert figures["flipped"].value == pytest.approx((means > 4).mean())
    even = summarise(reports[:100], resamples=100).figures["median error x100"]
    assert even.value == pytest.approx(np.median(means[:100]))


def test_reports_with_other_geodesics_are_not_mixed(twin: Match) -> None:
    report = evaluate(twin, np.arange(len(twin.b)))
    with pytest.raises(UserError, match="edges"):
        summarise([report, replace(report, geodesics="edges")])


def test_reports_are_tables_and_json(twin: Match) -> None:
    import json

    report = evaluate(twin, np.arange(len(twin.b)), symmetric=np.arange(len(twin.b))[::-1])
    assert "heat geodesics" in str(report) and "flipped" in str(report)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["mean"] == 0
    summary = summarise([report, report], resamples=50)
    assert "2 pairs" in str(summary)
    assert len(json.loads(json.dumps(summary.to_dict(), allow_nan=False))["pairs"]) == 2
