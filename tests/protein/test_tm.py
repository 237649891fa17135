"""TM-scores against closed cases, brute force, and biotite's independent routine."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from driftworks.errors import UserError
from driftworks.protein import ideal, tm
from driftworks.protein.chains import Chains


@pytest.fixture
def folds(rng):
    chains = [ideal.bundle(60, 3), ideal.bundle(70, 4), ideal.hairpin(40), ideal.helix(50)]
    return Chains.of([*chains, ideal.relaxed_walk(55, rng)])


def test_d0_is_the_published_formula():
    assert float(tm.d0(100)) == pytest.approx(1.24 * 85 ** (1 / 3) - 1.8)
    assert tm.d0([5, 15, 20]).tolist() == [0.5, 0.5, 0.5]


def test_a_score_of_points_as_they_lie_is_the_sum_itself(rng):
    a = rng.normal(size=(40, 3)) * 5
    assert tm.tm_score(a, a) == 1.0
    off = a + np.array([float(tm.d0(40)), 0, 0])
    assert tm.tm_score(off, a) == pytest.approx(0.5)
    assert tm.tm_score(off, a, 80) == pytest.approx(40 / 80 / (1 + (tm.d0(40) / tm.d0(80)) ** 2))


def test_biotite_gives_the_same_score_of_points_as_they_lie(rng):
    from biotite.structure import tm_score

    a = rng.normal(size=(60, 3)) * 6
    b = a + rng.normal(size=(60, 3))
    everyone = np.arange(60)
    atoms = [_atoms(x) for x in (a, b)]
    assert tm.tm_score(a, b) == pytest.approx(float(tm_score(*atoms, everyone, everyone)), rel=1e-5)


def _atoms(points):
    from biotite.structure import AtomArray

    out = AtomArray(len(points))
    out.coord = np.asarray(points, np.float32)
    out.atom_name = np.full(len(points), "CA")
    out.res_name = np.full(len(points), "GLY")
    out.res_id = np.arange(1, len(points) + 1)
    return out


def test_superposition_undoes_a_rigid_motion_and_never_reflects(rng, turn):
    a = rng.normal(size=(6, 20, 3))
    matrices = np.stack([turn() for _ in range(6)])
    b = a @ np.swapaxes(matrices, 1, 2) + rng.normal(size=(6, 1, 3))
    rotation, shift = tm.superpose(a, b)
    np.testing.assert_allclose(rotation, matrices, atol=1e-9)
    np.testing.assert_allclose(a @ np.swapaxes(rotation, 1, 2) + shift[:, None], b, atol=1e-9)
    rotation, _ = tm.superpose(ideal.mirrored(a), b)
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0)


def test_a_weighted_superposition_is_that_of_repeated_points(rng):
    a, b = rng.normal(size=(2, 7, 3))
    times = np.array([1, 3, 2, 1, 5, 1, 2])
    weighted = tm.superpose(a, b, times.astype(float))
    repeated = tm.superpose(np.repeat(a, times, axis=0), np.repeat(b, times, axis=0))
    for x, y in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-9)


def test_no_round_of_the_climb_lowers_the_score(rng):
    a = rng.normal(size=(20, 30, 3)) * 5
    b = a + rng.normal(size=a.shape) * rng.uniform(0.5, 4, size=(20, 1, 1))
    there = rng.random((20, 30)) < 0.8
    scale = np.full(20, 3.0)
    fit = (np.broadcast_to(np.eye(3), (20, 3, 3)), np.zeros((20, 3)))
    last = np.zeros(20)
    for rounds in range(8):
        _, value = tm.climb(a, b, there, scale, fit, rounds)
        assert (value >= last - 1e-9).all()
        last = value


def best_by_brute_force(scores, gap):
    """All alignments, by which rows and which columns are paired in order."""
    n, m = scores.shape
    best = 0.0
    for size in range(1, min(n, m) + 1):
        for rows in itertools.combinations(range(n), size):
            for columns in itertools.combinations(range(m), size):
                steps = zip(np.diff(rows), np.diff(columns), strict=True)
                jumps = sum((a, b) != (1, 1) for a, b in steps)
                best = max(best, sum(scores[rows, columns]) + gap * jumps)
    return best


@pytest.mark.parametrize("gap", [0.0, -0.3, -1.0])
@pytest.mark.parametrize("shape", [(1, 1), (4, 6), (6, 4), (5, 5)])
def test_the_dynamic_programme_finds_the_best_of_all_alignments(gap, shape, rng):
    scores = rng.normal(size=(12, *shape)).astype(np.float32)
    columns = tm.dynamic_programme(scores, gap)
    for lane in range(12):
        pairs = [(i, int(c)) for i, c in enumerate(columns[lane]) if c >= 0]
        assert all(b[1] > a[1] for a, b in itertools.pairwise(pairs))
        value = sum(float(scores[lane, i, c]) for i, c in pairs)
        jumps = sum((b[0] - a[0], b[1] - a[1]) != (1, 1) for a, b in itertools.pairwise(pairs))
        if pairs and best_by_brute_force(scores[lane], gap) > 0:
            expected = best_by_brute_force(scores[lane], gap)
            assert value + gap * jumps == pytest.approx(expected, abs=1e-5)


def test_a_chain_scores_one_with_itself_however_it_lies(folds, turn, rng):
    moved = Chains.of([p @ turn().T + rng.normal(size=3) * 30 for p in folds.arrays()])
    pairs = [(k, k) for k in range(len(folds))]
    found = tm.align(folds, moved, pairs)
    for values in (found.of_a, found.of_b, found.shorter):
        np.testing.assert_allclose(values, 1.0, atol=1e-4)
    assert found.aligned.tolist() == folds.lengths.tolist()
    assert found.rmsd.max() < 1e-3
    for k in range(len(folds)):
        n = int(folds.lengths[k])
        assert found.columns[k, :n].tolist() == list(range(n))


def test_a_piece_of_a_chain_is_found_inside_it(folds):
    whole = folds.arrays()[1]
    piece = Chains.of([whole[18:50]])
    found = tm.align(piece, folds, [(0, 1)])
    assert found.of_a[0] == pytest.approx(1, abs=1e-4)
    assert found.columns[0, :32].tolist() == list(range(18, 50))
    assert 32 / 70 * 0.99 < found.of_b[0] < 32 / 70 * 1.1


def test_a_gap_in_the_middle_is_bridged(folds):
    whole = folds.arrays()[1]
    cut = Chains.of([np.concatenate([whole[:25], whole[33:]])])
    found = tm.align(cut, folds, [(0, 1)])
    assert found.of_a[0] > 0.99
    assert found.columns[0, :62].tolist() == [*range(25), *range(33, 70)]


def test_scores_do_not_depend_on_the_order_of_the_two_chains(folds):
    i, j = np.triu_indices(len(folds), 1)
    there = tm.align(folds, folds, np.stack([i, j], 1))
    back = tm.align(folds, folds, np.stack([j, i], 1))
    np.testing.assert_allclose(there.of_a, back.of_b, atol=0.06)
    np.testing.assert_allclose(there.of_b, back.of_a, atol=0.06)


def test_scores_do_not_depend_on_what_else_is_in_the_block(folds):
    together = tm.align(folds, folds, [(0, 1), (2, 4), (1, 4)])
    for k, pair in enumerate([(0, 1), (2, 4), (1, 4)]):
        alone = tm.align(folds, folds, [pair])
        assert alone.of_a[0] == pytest.approx(together.of_a[k], abs=0.03)


def test_the_reported_alignment_has_the_reported_score(folds):
    found = tm.align(folds, folds, [(0, 1), (1, 0), (2, 4)])
    for k, (i, j) in enumerate([(0, 1), (1, 0), (2, 4)]):
        a, b = folds.arrays()[i], folds.arrays()[j]
        columns = found.columns[k, : len(a)]
        rows = np.flatnonzero(columns >= 0)
        assert len(rows) == found.aligned[k]
        # the best superposition of these pairs for the length of a, by another route: many starts
        pairs = a[rows], b[columns[rows]]
        scale = np.full(1, tm.d0(len(a)))
        best = 0.0
        for start in range(0, len(rows) - 4, 3):
            fit = tm.superpose(pairs[0][None, start : start + 5], pairs[1][None, start : start + 5])
            value = tm.climb(
                pairs[0][None], pairs[1][None], np.ones((1, len(rows)), bool), scale, fit, 30
            )[1]
            best = max(best, float(value[0]) / len(a))
        assert found.of_a[k] == pytest.approx(best, abs=0.03)


def test_a_mirror_image_is_another_fold(folds):
    bundle = folds[1]
    mirror = Chains.of([ideal.mirrored(bundle.arrays()[0])])
    assert tm.align(bundle, mirror, [(0, 0)]).shorter[0] < 0.45


def test_clusters_are_greedy_and_the_first_of_each_represents_it():
    scores = np.array([
        [1.0, 0.6, 0.2, 0.1],
        [0.6, 1.0, 0.7, 0.1],
        [0.2, 0.7, 1.0, 0.5],
        [0.1, 0.1, 0.5, 1.0],
    ])  # fmt: skip
    assert tm.clusters(scores).tolist() == [0, 0, 1, 1]
    assert tm.clusters(scores, 0.55).tolist() == [0, 0, 1, 2]
    assert tm.clusters(np.eye(0)).tolist() == []


def test_pairwise_scores_are_symmetric_and_noise_stays_in_its_cluster(folds, rng):
    points = folds.arrays()
    chains = Chains.of([*points[:3], *(ideal.noised(p, 0.3, rng) for p in points[:3])])
    scores = tm.pairwise(chains)
    np.testing.assert_array_equal(scores, scores.T)
    assert (np.diag(scores) == 1).all()
    assert tm.clusters(scores)[3:].tolist() == tm.clusters(scores)[:3].tolist()


def test_the_nearest_known_chain_is_the_one_that_was_copied(folds, rng):
    points = folds.arrays()
    known = Chains.of([*points, *(ideal.relaxed_walk(60, rng) for _ in range(12))])
    samples = Chains.of([ideal.noised(points[2], 0.1, rng), points[0], np.full((30, 3), np.nan)])
    found = tm.nearest(samples, known, candidates=5)
    assert found.row.tolist() == [2, 0, -1]
    assert found.score[0] > 0.95 and found.score[1] > 0.999 and np.isnan(found.score[2])


@pytest.mark.parametrize("points", [np.zeros((2, 3)), np.full((9, 3), np.nan)])
def test_chains_that_cannot_be_aligned_are_named(points, folds):
    with pytest.raises(UserError, match="chain bad cannot be aligned"):
        tm.align(Chains.of([points], ids=["bad"]), folds, [(0, 0)])


@pytest.mark.slow
def test_biotites_structural_superposition_finds_no_better_alignment(domains):
    """The second implementation: 3Di seeds, other code. Ours may be better, hardly ever worse."""
    from biotite.structure import superimpose_structural_homologs, tm_score

    rows = domains.rows(lengths=(60, 90))[:14]
    chains = Chains.from_backbones(domains, rows)
    pairs = [(i, j) for i in range(14) for j in range(i)]
    ours = tm.align(chains, chains, pairs).shorter
    theirs = []
    for i, j in pairs:
        a, b = (_full_atoms(domains.bb(int(rows[k]))) for k in (i, j))
        fitted, _, of_a, of_b = superimpose_structural_homologs(a, b, max_iterations=10)
        theirs.append(tm_score(a, fitted, of_a, of_b))
    gap = ours - np.array(theirs)
    assert gap.mean() > 0 and np.quantile(gap, 0.05) > -0.03


def _full_atoms(bb):
    from biotite.structure import AtomArray

    n = len(bb)
    out = AtomArray(4 * n)
    out.coord = bb.reshape(-1, 3)
    out.atom_name = np.tile(["N", "CA", "C", "O"], n)
    out.element = np.tile(["N", "C", "C", "O"], n)
    out.res_name = np.full(4 * n, "ALA")
    out.res_id = np.repeat(np.arange(1, n + 1), 4)
    out.chain_id = np.full(4 * n, "A")
    return out


@pytest.mark.slow
def test_the_quick_search_ranks_as_the_full_one(domains):
    chains = Chains.from_backbones(domains, np.arange(24))
    i, j = np.triu_indices(24, 1)
    pairs = np.stack([i, j], 1)
    full, quick = tm.align(chains, chains, pairs), tm.align(chains, chains, pairs, quick=True)
    assert np.corrcoef(full.shorter, quick.shorter)[0, 1] > 0.8
    assert (full.shorter - quick.shorter).mean() < 0.05
