"""Ranking against closed forms and an independent brute-force selection."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.DataStructs import ExplicitBitVect, TanimotoSimilarity

from driftworks.campaign import Target
from driftworks.campaign.select import (
    distances,
    fingerprints,
    greedy,
    log_desirability,
    log_score,
)


def prints_of(sets: list[set[int]]) -> list[ExplicitBitVect]:
    out = []
    for bits in sets:
        vector = ExplicitBitVect(12)
        for bit in bits:
            vector.SetBit(bit)
        out.append(vector)
    return out


def tanimoto(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def brute_force(score: list[float], sets: list[set[int]], size: int, a: float) -> list[int]:
    """The definition, read off: every step tries every candidate."""
    order = sorted(range(len(score)), key=lambda i: (-score[i], i))
    chosen = order[:1]
    best = 2 ** score[order[0]]
    while len(chosen) < min(size, len(score)):
        pick, best_merit = -1, -np.inf
        for i in order:
            if i in chosen:
                continue
            nearest = min(1 - tanimoto(sets[i], sets[j]) for j in chosen)
            merit = (1 - a) * 2 ** score[i] / best + a * nearest
            if merit > best_merit:
                pick, best_merit = i, merit
        chosen.append(pick)
    return chosen


pools = st.lists(
    st.tuples(st.integers(0, 8).map(lambda k: -k / 2), st.sets(st.integers(0, 11), min_size=1)),
    min_size=1,
    max_size=9,
)


@settings(max_examples=300, deadline=None)
@given(pools, st.integers(1, 9), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_greedy_is_the_brute_force_selection(pool: list, size: int, a: float) -> None:
    score, sets = [s for s, _ in pool], [b for _, b in pool]
    got = greedy(np.array(score), prints_of(sets), size, a)
    assert got == brute_force(score, sets, size, a)


@settings(max_examples=100, deadline=None)
@given(pools, st.integers(1, 9), st.floats(0, 1))
def test_a_selection_has_no_repeats_and_starts_with_the_best(
    pool: list, size: int, a: float
) -> None:
    score = np.array([s for s, _ in pool])
    got = greedy(score, prints_of([b for _, b in pool]), size, a)
    assert len(got) == len(set(got)) == min(size, len(pool))
    assert score[got[0]] == score.max()
    assert greedy(score, prints_of([b for _, b in pool]), size, a) == got


def test_without_diversity_the_order_is_the_score_however_small() -> None:
    score = np.array([-3000.0, -0.5, -2000.0, -0.5, -np.inf])
    assert greedy(score, [], None, 0.0) == [1, 3, 2, 0, 4]


def test_scores_that_underflow_are_still_ordered_by_their_logarithm() -> None:
    prints = prints_of([{0}, {0}, {0}])
    assert greedy(np.array([-5000.0, -3000.0, -4000.0]), prints, None, 0.5) == [1, 2, 0]


def test_candidates_far_from_every_target_are_still_picked_by_quality_first() -> None:
    prints = prints_of([{0, 1}, {0, 2}, {5, 6}])
    near, far = np.array([-1.0, -1.2, -9.0]), np.array([-501.0, -501.2, -509.0])
    assert greedy(near, prints, None, 0.2) == greedy(far, prints, None, 0.2) == [0, 1, 2]


def test_without_any_value_diversity_alone_decides() -> None:
    assert greedy(np.full(3, -np.inf), prints_of([{0}, {0}, {5}]), 2, 0.5) == [0, 2]


def test_an_empty_pool_gives_an_empty_selection() -> None:
    assert greedy(np.empty(0), [], 5, 0.3) == []


def test_pure_diversity_picks_the_far_molecule_before_the_near_one() -> None:
    mols = [Chem.MolFromSmiles(s) for s in ("CCCCO", "CCCCCO", "c1ccccc1N")]
    score = np.array([0.0, -0.1, -3.0])
    assert greedy(score, fingerprints(mols), 2, 0.0) == [0, 1]
    assert greedy(score, fingerprints(mols), 2, 1.0) == [0, 2]


def test_distances_are_one_minus_tanimoto() -> None:
    prints = fingerprints([Chem.MolFromSmiles(s) for s in ("CCO", "CCN", "c1ccccc1")])
    expected = [1 - TanimotoSimilarity(prints[1], p) for p in prints]
    np.testing.assert_allclose(distances(prints, 1), expected, rtol=0, atol=1e-15)


def test_a_value_is_half_as_desirable_one_tolerance_off() -> None:
    target = Target(value=4.0, tolerance=0.5)
    x = np.array([4.0, 4.5, 3.5, 5.0, np.nan])
    np.testing.assert_allclose(np.exp2(log_desirability(target, x)), [1, 0.5, 0.5, 1 / 16, 0])


def test_a_range_is_flat_inside_with_the_same_flanks() -> None:
    target = Target(range=(1.0, 2.0), tolerance=0.25)
    x = np.array([1.0, 1.7, 2.0, 0.75, 2.25])
    np.testing.assert_allclose(np.exp2(log_desirability(target, x)), [1, 1, 1, 0.5, 0.5])


@pytest.mark.parametrize("goal", ["min", "max"])
def test_a_goal_is_the_share_of_candidates_that_do_no_better(goal: str) -> None:
    x = np.array([3.0, 1.0, 2.0, 2.0])
    got = np.exp2(log_desirability(Target(goal=goal), x))
    sign = 1 if goal == "max" else -1
    worse = [(sign * x < sign * v).sum() + 0.5 * (x == v).sum() for v in x]
    np.testing.assert_allclose(got, np.array(worse) / 4)


def test_the_score_is_the_weighted_geometric_mean() -> None:
    targets = {
        "a": Target(value=1.0, tolerance=1.0, weight=3.0),
        "b": Target(value=5.0, tolerance=2.0),
    }
    values = {"a": np.array([2.0]), "b": np.array([7.0])}
    assert np.exp2(log_score(targets, values, 1))[0] == pytest.approx((0.5**3 * 0.5) ** 0.25)
    assert log_score({}, {}, 3).tolist() == [0, 0, 0]
