"""Intervals: those of the textbooks where there is a textbook, and covering the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from driftworks.core.bootstrap import Statistic, estimate, mean, ratio
from driftworks.molgen.divergence import jensen_shannon


def test_the_interval_of_a_rate_is_that_of_the_binomial():
    hits = np.repeat([1.0, 0.0], [300, 100])
    figure = estimate({"rate": mean(hits)}, resamples=4000, seed=3)["rate"]
    deviation = math.sqrt(0.75 * 0.25 / 400)
    assert figure.value == 0.75
    assert figure.low == pytest.approx(0.75 - 1.96 * deviation, abs=0.004)
    assert figure.high == pytest.approx(0.75 + 1.96 * deviation, abs=0.004)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for k in range(200):
        top = rng.random((150, 1)) < 0.8
        figure = estimate({"rate": mean(top[:, 0])}, resamples=300, seed=k)["rate"]
        covered += figure.low <= 0.8 <= figure.high
    assert 180 <= covered <= 199


def test_the_mean_error_has_the_interval_of_the_central_limit_theorem():
    rng = np.random.default_rng(1)
    errors = rng.exponential(size=500)
    figure = estimate({"mae": ratio(errors, np.ones(500), of="measured", unit="eV")}, 4000, seed=1)[
        "mae"
    ]
    half = 1.96 * errors.std() / math.sqrt(500)
    assert figure.low == pytest.approx(figure.value - half, rel=0.03)
    assert figure.high == pytest.approx(figure.value + half, rel=0.03)


def test_a_divergence_lies_inside_its_own_interval():
    rng = np.random.default_rng(2)
    rows = np.eye(6)[rng.integers(0, 6, 80)]
    s = Statistic(rows, lambda sums: jensen_shannon(sums, np.ones(6)), 80, "bit")
    figure = estimate({"js": s}, 500, seed=0)["js"]
    assert 0 <= figure.low <= figure.value <= figure.high < 0.1
