"""Descriptors, the Frechet distance, fragments: closed forms and invariance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg

from driftworks.errors import UserError
from driftworks.protein import descriptors, ideal
from driftworks.protein.chains import Chains
from driftworks.protein.descriptors import FragmentLibrary, Moments, describe, frechet


@pytest.fixture
def mixed(rng):
    chains = [ideal.bundle(60, 3), ideal.hairpin(20), ideal.relaxed_walk(45, rng)]
    return Chains.of([*chains, ideal.helix(30)])


def test_there_are_24_named_descriptors(mixed):
    rows = describe(mixed)
    assert rows.shape == (4, 24) and len(set(descriptors.NAMES)) == 24 and np.isfinite(rows).all()


def test_descriptors_know_neither_padding_nor_order_nor_place(mixed, turn, rng):
    rows = describe(mixed)
    np.testing.assert_allclose(describe(Chains.of(mixed.arrays(), length=90)), rows, atol=1e-12)
    np.testing.assert_allclose(describe(mixed[[2, 0, 3, 1]]), rows[[2, 0, 3, 1]], atol=1e-12)
    # random chains: ideal ones have dihedrals of exactly 0 and 180, on the seams of the histogram
    walks = [ideal.relaxed_walk(50, rng, rounds=60) for _ in range(4)]
    moved = [p @ turn().T + rng.normal(size=3) * 9 for p in walks]
    np.testing.assert_allclose(describe(Chains.of(moved)), describe(Chains.of(walks)), atol=1e-3)


def test_a_mirror_changes_helix_and_the_sign_of_writhe_but_no_contact(mixed):
    rows = describe(mixed)
    mirror = describe(Chains.of([ideal.mirrored(p) for p in mixed.arrays()]))
    column = {name: k for k, name in enumerate(descriptors.NAMES)}
    for name in ("writhe_2", "writhe_8", "writhe_24"):
        np.testing.assert_allclose(mirror[:, column[name]], -rows[:, column[name]], atol=1e-9)
    same = [k for name, k in column.items() if name.startswith(("contact", "abs_", "log_rg", "an"))]
    np.testing.assert_allclose(mirror[:, same], rows[:, same], atol=1e-9)
    assert rows[0, column["helix"]] > 0.8 and mirror[0, column["helix"]] == 0


def test_descriptors_of_a_straight_helix_are_known():
    row = dict(zip(descriptors.NAMES, describe(Chains.of([ideal.helix(100)]))[0], strict=True))
    assert row["helix"] == 1 and row["strand"] == 0
    points = ideal.helix(100)
    rg = math.sqrt(((points - points.mean(0)) ** 2).sum(1).mean())
    assert row["log_rg"] == pytest.approx(math.log(rg / (2.70 * 100**0.35)), abs=1e-5)
    assert row["anisotropy"] == pytest.approx(1, abs=0.02)
    # within 8 angstrom of each other are residues 3 and 4 apart only (5.0, 6.2; 5 apart 8.6)
    assert row["contacts_3"] == pytest.approx((97 + 96) / 100, abs=1e-9)
    assert row["contact_order"] == pytest.approx((97 * 3 + 96 * 4) / 193 / 100, rel=1e-6)
    assert row["contacts_6"] == row["contacts_12"] == row["contacts_24"] == 0
    # +50 degrees lies in the seventh of ten bins from -180
    assert row["dihedral_6"] == 1


def test_chains_without_figures_are_nan():
    rows = describe(Chains.of([np.zeros((3, 3)), np.full((20, 3), np.nan), ideal.helix(8)]))
    assert np.isnan(rows[:2]).all() and np.isfinite(rows[2]).all()


def random_moments(rng, k=6):
    a = rng.normal(size=(k, k))
    return Moments(rng.normal(size=k), a @ a.T)


def test_the_frechet_distance_is_that_of_the_published_formula(rng):
    a, b = random_moments(rng), random_moments(rng)
    cross = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum()
    expected += np.trace(a.covariance + b.covariance - 2 * cross)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-12)
    assert frechet(a, a) == pytest.approx(0, abs=1e-10)


def test_the_frechet_distance_of_commuting_laws_is_that_of_their_spreads():
    a = Moments(np.array([1.0, 2.0]), np.diag([4.0, 9.0]))
    b = Moments(np.array([0.0, 0.0]), np.diag([1.0, 16.0]))
    assert frechet(a, b) == pytest.approx(1 + 4 + 1 + 1)


def test_the_frechet_distance_of_singular_laws_is_finite(rng):
    row = rng.normal(size=(1, 5))
    one = Moments.of(row)
    assert not one.covariance.any()
    assert frechet(one, Moments.of(row + 2)) == pytest.approx(20)
    flat = Moments.of(np.outer(rng.normal(size=30), np.ones(5)))
    assert frechet(flat, flat) == pytest.approx(0, abs=1e-10)


def test_weighted_moments_are_those_of_repeated_rows(rng):
    rows, times = rng.normal(size=(5, 3)), np.array([1, 4, 2, 1, 3])
    weighted, repeated = Moments.of(rows, times), Moments.of(np.repeat(rows, times, axis=0))
    np.testing.assert_allclose(weighted.mean, repeated.mean)
    np.testing.assert_allclose(weighted.covariance, repeated.covariance)
    with pytest.raises(UserError):
        Moments.of(np.zeros((0, 3)))


def test_fragments_of_a_helix_are_all_one_and_their_chain_is_known():
    vectors, owner = descriptors.fragments(
        Chains.of([ideal.helix(10), ideal.strand(5), ideal.helix(8)])
    )
    assert vectors.shape == (6, 13) and owner.tolist() == [0] * 4 + [2] * 2
    np.testing.assert_allclose(vectors, np.broadcast_to(vectors[0], (6, 13)), atol=1e-4)
    np.testing.assert_allclose(vectors[0, 5:9] ** 2 + vectors[0, 9:] ** 2, 1, atol=1e-6)


def test_a_break_ends_a_fragment():
    chains = Chains.of([ideal.helix(20)], index=[[*range(10), *range(12, 22)]])
    assert len(descriptors.fragments(chains)[0]) == 2 * 4


def test_fragment_distances_are_those_of_a_brute_force_search(rng):
    library = FragmentLibrary(rng.normal(size=(300, 13)).astype(np.float32))
    asked = rng.normal(size=(40, 13)).astype(np.float32)
    gaps = np.linalg.norm(asked[:, None].astype(float) - library.vectors[None], axis=-1)
    np.testing.assert_allclose(library.distances(asked), gaps.min(axis=1), rtol=1e-5)
    assert library.distances(asked[:0]).shape == (0,)


def test_mirror_images_and_walks_have_fragments_that_are_far_from_real_ones(rng):
    folds = [ideal.bundle(80), ideal.hairpin(30)]
    library = FragmentLibrary.of(Chains.of(folds))
    far = Chains.of([ideal.mirrored(folds[0]), ideal.relaxed_walk(60, rng)])
    gaps, owner = library.distances(descriptors.fragments(far)[0]), descriptors.fragments(far)[1]
    assert gaps[owner == 0].mean() > 0.5 and gaps[owner == 1].mean() > 0.5
    assert library.distances(descriptors.fragments(Chains.of(folds))[0]).max() < 1e-3


def test_nine_bytes_hold_a_fragment_to_within_their_steps(rng):
    library = FragmentLibrary.of(Chains.of([ideal.relaxed_walk(80, rng)]))
    back = FragmentLibrary.unpacked(library.packed())
    assert library.packed().shape == (74, 9) and library.packed().dtype == np.uint8
    gap = np.linalg.norm(back.vectors - library.vectors, axis=1)
    worst = math.sqrt(5 * (math.pi / 512) ** 2 + 4 * (math.pi / 256) ** 2)
    assert gap.max() <= worst * 1.001


def test_a_library_of_the_wrong_width_or_of_nothing_is_refused():
    for shape in ((4, 12), (0, 13)):
        with pytest.raises(UserError, match="13 numbers"):
            FragmentLibrary(np.zeros(shape, np.float32))


def test_psea_shares_are_of_each_chain_alone():
    chains = Chains.of([ideal.helix(30), ideal.strand(30), np.full((20, 3), np.nan)])
    helix, strand = descriptors.psea_shares(chains)
    assert helix[0] > 0.8 and strand[0] == 0 and strand[1] > 0.8 and helix[1] == 0
    assert np.isnan(helix[2])
