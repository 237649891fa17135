"""Chains made in code have the geometry that their formulas promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from driftworks.errors import UserError
from driftworks.protein import geometry, ideal
from driftworks.protein.chains import Chains


def steps(points):
    return np.linalg.norm(np.diff(points, axis=0), axis=1)


def test_a_helix_has_the_bond_of_its_rise_radius_and_turn():
    chord = 2 * 2.3 * math.sin(math.radians(50))
    np.testing.assert_allclose(steps(ideal.helix(20)), math.hypot(chord, 1.5), atol=1e-12)


def test_a_left_helix_is_the_mirror_image_of_a_right_one():
    right, left = (Chains.of([ideal.helix(30, left=side)]) for side in (False, True))
    np.testing.assert_allclose(geometry.dihedrals(left), -geometry.dihedrals(right), atol=1e-5)
    assert math.degrees(geometry.dihedrals(right)[0, 3]) == pytest.approx(50, abs=1)


@pytest.mark.parametrize("n", [8, 24, 40])
def test_a_hairpin_is_two_antiparallel_strands_of_whole_bonds(n):
    points = ideal.hairpin(n)
    assert points.shape == (n, 3)
    np.testing.assert_allclose(steps(points), 3.8, atol=1e-9)
    arm = n // 2 - 1
    across = np.linalg.norm(points[:arm] - points[::-1][:arm], axis=1)
    np.testing.assert_allclose(across, 4.8, atol=1e-9)


@pytest.mark.parametrize("n, helices", [(60, 3), (80, 4), (101, 4), (128, 5)])
def test_a_bundle_is_whole_compact_and_right_handed(n, helices):
    chains = Chains.of([ideal.bundle(n, helices)])
    bonds = geometry.bond_lengths(chains)
    assert bonds.shape[1] == n - 1
    assert 3.7 < float(bonds.min()) and float(bonds.max()) < 3.9
    assert int(geometry.clashes(chains)[0]) == 0
    right, all_ = geometry.handedness(chains)
    assert int(right[0]) / int(all_[0]) > 0.9
    assert float(geometry.helix_strand(chains)[0][0]) > 0.7


def test_a_relaxed_walk_passes_bonds_clashes_and_size_but_has_no_hand(rng):
    walks = Chains.of([ideal.relaxed_walk(100, rng) for _ in range(10)])
    assert float(geometry.bond_deviation(walks).max()) < 0.05
    assert int((geometry.clashes(walks) > 0).sum()) <= 1
    size = geometry.radius_of_gyration(walks) / (2.70 * 100**0.35)
    assert 0.8 < float(size.mean()) < 1.15
    right, helical = geometry.handedness(walks)
    # 100 or so independent signs: within four standard deviations of a half
    n = int(helical.sum())
    assert abs(int(right.sum()) / n - 0.5) < 4 * 0.5 / math.sqrt(n / 3)


def test_unpacked_fragments_keep_local_shape_and_lose_their_packing(rng):
    source = [ideal.bundle(90), ideal.bundle(80, 3)]
    out = Chains.of([ideal.unpacked(source, 90, rng) for _ in range(5)])
    assert float(geometry.bond_deviation(out).max()) < 0.1
    assert float(geometry.radius_of_gyration(out).mean()) > 1.3 * float(
        geometry.radius_of_gyration(Chains.of(source)).mean()
    )


def test_a_backbone_has_the_bonds_angles_and_torsions_it_was_built_with(rng):
    given = rng.uniform(-180, 180, size=(12, 2))
    n, ca, c, o = np.moveaxis(ideal.backbone(given), 1, 0)
    for a, b, length in ((n, ca, 1.458), (ca, c, 1.525), (c, o, 1.231)):
        np.testing.assert_allclose(np.linalg.norm(b - a, axis=1), length, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(n[1:] - c[:-1], axis=1), 1.329, atol=1e-9)
    cosine = ((n - ca) * (c - ca)).sum(1) / (1.458 * 1.525)
    np.testing.assert_allclose(np.degrees(np.arccos(cosine)), 111.2, atol=1e-6)
    torsions = geometry.torsions(np.stack([n, ca, c, o], axis=1))
    np.testing.assert_allclose(torsions[1:, 0], given[1:, 0], atol=1e-6)
    np.testing.assert_allclose(torsions[:-1, 1], given[:-1, 1], atol=1e-6)
    np.testing.assert_allclose(np.abs(torsions[:-1, 2]), 180.0, atol=1e-6)


def test_the_peptide_is_planar_and_its_oxygen_trans_to_the_next_nitrogen():
    bb = ideal.backbone([ideal.STRAND] * 6)
    for k in range(5):
        n, ca, c, o = bb[k + 1, 0], bb[k, 1], bb[k, 2], bb[k, 3]
        normal = np.cross(ca - c, n - c)
        assert abs((o - c) @ normal / np.linalg.norm(normal)) < 1e-9
        assert np.linalg.norm(o - n) == pytest.approx(2.25, abs=0.05)


@pytest.mark.parametrize("omega, side", [(180.0, -1), (0.0, 1)])
def test_the_alphas_of_a_planar_peptide_are_where_trigonometry_puts_them(omega, side):
    # CA-C-N-CA in the plane: C and N on the x axis, the two alphas on one side (cis) or on both
    at_c, at_n = math.radians(116.2), math.radians(121.7)
    first = np.array([1.525 * math.cos(at_c), 1.525 * math.sin(at_c)])
    second = np.array([1.329 - 1.458 * math.cos(at_n), side * 1.458 * math.sin(at_n)])
    bb = ideal.backbone([ideal.STRAND] * 8, omega=omega)
    np.testing.assert_allclose(steps(bb[:, 1]), np.linalg.norm(first - second), atol=1e-9)
    if side < 0:
        np.testing.assert_allclose(steps(bb[:, 1]), 3.80, atol=0.01)


def test_the_alphas_of_a_helix_from_torsions_are_those_of_the_ideal_helix():
    chains = Chains.of([ideal.backbone([ideal.HELIX] * 20)[:, 1], ideal.helix(20)])
    made, formula = np.degrees(geometry.dihedrals(chains).numpy())
    np.testing.assert_allclose(made, formula, atol=3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ideal.helix(0), "0 residues"),
        (lambda: ideal.hairpin(9), "hairpin of 9"),
        (lambda: ideal.bundle(20), "20 residues do not make"),
        (lambda: ideal.backbone(np.zeros((3, 3))), r"shape \(3, 3\)"),
        (lambda: ideal.unpacked([np.zeros((4, 3))], 9, np.random.default_rng(0)), "no chain of 9"),
    ],
)
def test_impossible_chains_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
