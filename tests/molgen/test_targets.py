"""What users may ask for, and how many atoms that takes."""

from __future__ import annotations

import numpy as np
import pytest

from driftworks.errors import UserError
from driftworks.molgen.targets import HARTREE, parse, size_distribution
from driftworks.molgen.train import size_statistics

RANGES = {"mu": [0.0, 0.5, 6.7, 25.0], "gap": [0.67, 3.6, 9.35, 16.9]}


@pytest.mark.parametrize(
    ("asked", "low", "high"),
    [
        ({"mu": 4}, 4.0, 4.0),
        ({"mu": "4.0"}, 4.0, 4.0),
        ({"mu": "4.0 debye"}, 4.0, 4.0),
        ({"gap": "0.25 hartree"}, 0.25 * HARTREE, 0.25 * HARTREE),
        ({"gap": "0.25Ha"}, 0.25 * HARTREE, 0.25 * HARTREE),
        ({"gap": "6000 meV"}, 6.0, 6.0),
        ({"gap": (5.5, 6.5)}, 5.5, 6.5),
        ({"gap": "5.5..6.5"}, 5.5, 6.5),
        ({"gap": "0.2..0.25 hartree"}, 0.2 * HARTREE, 0.25 * HARTREE),
        ({"gap": "0.2 hartree..0.25 hartree"}, 0.2 * HARTREE, 0.25 * HARTREE),
        ({"gap": "5..6e0"}, 5.0, 6.0),
        ({"mu": np.array(4.0)}, 4.0, 4.0),
        ({"mu": np.float32(4.0)}, 4.0, 4.0),
        ({"mu": "max"}, 6.7, 6.7),
        ({"mu": "min"}, 0.5, 0.5),
    ],
)
def test_targets_are_read_as_written(asked, low, high):
    (target,) = parse(asked, RANGES)
    assert target.low == pytest.approx(low, rel=1e-9)
    assert target.high == pytest.approx(high, rel=1e-9)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"dipole": 4}, "unknown property 'dipole'.*mu, gap"),
        ({"mu": "four"}, "'four' is not a number"),
        ({"mu": "4 parsec"}, "unknown unit 'parsec'.*debye"),
        ({"mu": float("nan")}, "finite"),
        ({"mu": (5, 4)}, "empty"),
        ({"mu": (1, 2, 3)}, "pair"),
        ({"mu": None}, "not a number"),
        ({"mu": "1.2.3"}, "not a number"),
        ({"mu": np.array(["low", "high"])}, "not all numbers"),
        ({"mu": "1..2 parsec"}, "unknown unit 'parsec'"),
    ],
)
def test_bad_targets_are_named(asked, words):
    with pytest.raises(UserError, match=words):
        parse(asked, RANGES)


def test_a_target_outside_the_trained_range_warns_with_the_range():
    with pytest.warns(UserWarning, match=r"outside the trained range 0\.67\.\.16\.9 eV"):
        parse({"gap": 40.0}, RANGES)


def test_sizes_follow_bayes_rule_on_a_mixture_of_normals():
    """Properties drawn from known normals per size: the posterior must equal the exact one."""
    generator = np.random.default_rng(3)
    counts = np.repeat([10, 20], [20_000, 60_000])
    mean = np.where(counts[:, None] == 10, [[1.0, -2.0]], [[3.0, 0.0]])
    mix = np.array([[1.0, 0.0], [0.6, 0.5]])
    values = mean + generator.standard_normal((len(counts), 2)) @ mix.T
    statistics = size_statistics(counts, values, ("a", "b"))
    asked = np.array([[2.0, -1.0], [1.0, -2.0], [3.5, 0.3]])
    sizes, p = size_distribution(statistics, ["a", "b"], ("a", "b"), asked)
    inverse = np.linalg.inv(mix @ mix.T)

    def density(x, m):
        return np.exp(-0.5 * ((x - m) @ inverse * (x - m)).sum(1))

    exact = np.stack([0.25 * density(asked, [1.0, -2.0]), 0.75 * density(asked, [3.0, 0.0])], 1)
    assert sizes.tolist() == [10, 20]
    np.testing.assert_allclose(p, exact / exact.sum(1, keepdims=True), atol=0.02)
    _, one = size_distribution(statistics, ["b"], ("a", "b"), asked[:, 1:])
    s = (mix @ mix.T)[1, 1]
    marginal = np.stack([0.25 * np.exp(-0.5 * (asked[:, 1] + 2) ** 2 / s),
                         0.75 * np.exp(-0.5 * asked[:, 1] ** 2 / s)], 1)
    np.testing.assert_allclose(one, marginal / marginal.sum(1, keepdims=True), atol=0.02)


def test_no_target_gives_the_training_sizes():
    statistics = size_statistics(np.array([3, 3, 3, 5]), np.full((4, 1), np.nan), ("a",))
    sizes, p = size_distribution(statistics, [], ("a",), np.zeros((2, 0)))
    assert sizes.tolist() == [3, 5]
    np.testing.assert_allclose(p, [[0.75, 0.25]] * 2)


def test_targets_that_contradict_each_other_do_not_decide_the_size_by_rounding():
    """c = b - a up to rounding; a target triple that misses this by a little keeps all sizes."""
    generator = np.random.default_rng(5)
    counts = np.repeat([10, 11, 12, 13], 5000)
    a, b = generator.standard_normal((2, len(counts)))
    c = b - a + generator.uniform(-1e-3, 1e-3, len(counts)) * counts / 10
    statistics = size_statistics(counts, np.stack([a, b, c], -1), ("a", "b", "c"))
    _, p = size_distribution(statistics, ["a", "b", "c"], ("a", "b", "c"), np.array([[0, 0, 0.2]]))
    np.testing.assert_allclose(p, 0.25, atol=0.05)
