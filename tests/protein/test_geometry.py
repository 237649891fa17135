"""Geometry of C-alpha traces against closed forms; invariant under what must not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from driftworks.errors import UserError
from driftworks.protein import geometry, ideal
from driftworks.protein.chains import Chains


def whole(table, count):
    return Chains.from_backbones(table, np.arange(count))


@pytest.fixture
def mixed(rng):
    chains = [ideal.bundle(60, 3), ideal.hairpin(20), ideal.relaxed_walk(45, rng)]
    return Chains.of(chains)


def figures(chains):
    right, helical = geometry.handedness(chains)
    writhe, _ = geometry.writhe(chains)
    helix, strand = geometry.helix_strand(chains)
    return {
        "clashes": geometry.clashes(chains, 5.5),
        "right": right,
        "helical": helical,
        "helix": helix,
        "strand": strand,
        "rg": geometry.radius_of_gyration(chains),
        "contact order": geometry.contact_order(chains),
        "writhe": writhe.sum(1),
        "bonds": geometry.bond_lengths(chains).nansum(1),
        "angles": geometry.angles(chains).nansum(1),
    }


def test_padding_changes_no_figure(mixed):
    wide = Chains.of(mixed.arrays(), length=90)
    for name, value in figures(mixed).items():
        torch.testing.assert_close(figures(wide)[name], value, msg=name)


def test_a_rigid_motion_changes_no_figure(mixed, turn, rng):
    matrix, shift = turn(), rng.normal(size=3) * 20
    moved = Chains.of([points @ matrix.T + shift for points in mixed.arrays()])
    for name, value in figures(mixed).items():
        torch.testing.assert_close(figures(moved)[name], value, atol=2e-3, rtol=1e-3, msg=name)


def test_a_mirror_changes_the_sign_of_dihedrals_and_writhe_and_nothing_else(mixed):
    mirror = Chains.of([ideal.mirrored(points) for points in mixed.arrays()])
    before, after = geometry.dihedrals(mixed), geometry.dihedrals(mirror)
    torch.testing.assert_close(after.cos(), before.cos(), equal_nan=True)
    torch.testing.assert_close(after.sin(), -before.sin(), equal_nan=True)
    torch.testing.assert_close(geometry.writhe(mirror)[0], -geometry.writhe(mixed)[0])
    for name in ("clashes", "rg", "contact order", "angles", "bonds"):
        torch.testing.assert_close(figures(mirror)[name], figures(mixed)[name], msg=name)
    right, helical = geometry.handedness(mixed)
    left, same = geometry.handedness(mirror)
    assert torch.equal(same, helical) and torch.equal(left, helical - right)


@pytest.mark.parametrize("angle, dihedral", [(91.0, 52.0), (120.0, -170.0), (100.0, 0.0)])
def test_angles_and_dihedrals_are_those_that_points_were_placed_with(angle, dihedral):
    a, b = np.zeros(3), np.array([3.8, 0, 0])
    bend = math.radians(angle)
    c = b + 3.8 * np.array([-math.cos(bend), math.sin(bend), 0])
    d = ideal.place(a, b, c, 3.8, bend, math.radians(dihedral))
    chains = Chains.of([[a, b, c, d]])
    np.testing.assert_allclose(torch.rad2deg(geometry.angles(chains)), [[angle] * 2], atol=1e-4)
    assert float(torch.rad2deg(geometry.dihedrals(chains))) == pytest.approx(dihedral, abs=1e-4)


def test_helix_angles_follow_from_its_rise_and_turn():
    # for a helix of radius r, rise p, turn t: |b|^2 = 2 r^2 (1 - cos t) + p^2 and
    # b_i . b_{i+1} = 2 r^2 (1 - cos t) cos t + p^2
    r, p, t = 2.3, 1.5, math.radians(100)
    flat = 2 * r * r * (1 - math.cos(t))
    angle = math.pi - math.acos((flat * math.cos(t) + p * p) / (flat + p * p))
    got = geometry.angles(Chains.of([ideal.helix(12)]))
    np.testing.assert_allclose(got, angle, atol=1e-5)


def test_windows_across_a_break_are_nothing():
    points = ideal.helix(12)
    numbers = [*range(6), *range(8, 14)]
    chains = Chains.of([points], index=[numbers])
    assert int(geometry.bond_lengths(chains).isfinite().sum()) == 10
    assert int(geometry.angles(chains).isfinite().sum()) == 8
    assert int(geometry.dihedrals(chains).isfinite().sum()) == 6
    writhe, _ = geometry.writhe(chains)
    _, between = torch.triu_indices(11, 11, offset=2)
    first, second = torch.triu_indices(11, 11, offset=2)
    assert not writhe[0, (first == 5) | (second == 5)].any()


def test_cis_and_trans_bonds_are_both_right():
    chains = Chains.of([[[0, 0, 0], [3.8, 0, 0], [3.8, 2.95, 0], [3.8, 2.95, 3.3]]])
    np.testing.assert_allclose(geometry.bond_deviation(chains), [[0, 0, 0.35]], atol=1e-5)


def test_clashes_are_counted_by_hand():
    # a square of side 3.8 closed on itself: residues 0 and 4 coincide, 0 and 3 are bonds apart
    square = [[0, 0, 0], [3.8, 0, 0], [3.8, 3.8, 0], [0, 3.8, 0], [0, 0, 0.5]]
    assert geometry.clashes(Chains.of([square])).tolist() == [1]
    assert geometry.clashes(Chains.of([square]), 4.0).tolist() == [3]


def test_radius_of_gyration_of_a_straight_line():
    # equidistant points: Rg^2 = h^2 (n^2 - 1) / 12
    line = np.zeros((20, 3))
    line[:, 0] = 3.8 * np.arange(20)
    got = float(geometry.radius_of_gyration(Chains.of([line]))[0])
    assert got == pytest.approx(3.8 * math.sqrt((400 - 1) / 12), rel=1e-6)


def test_contact_order_of_a_hairpin_is_that_of_its_ladder():
    chains = Chains.of([ideal.hairpin(24)])
    points = ideal.hairpin(24)
    total = count = 0
    for i in range(24):
        for j in range(i + 3, 24):
            if np.linalg.norm(points[i] - points[j]) < 8:
                total, count = total + j - i, count + 1
    assert float(geometry.contact_order(chains)[0]) == pytest.approx(total / count / 24, rel=1e-6)


def test_two_perpendicular_bonds_have_the_solid_angle_of_their_rectangle():
    # midpoints on one normal at distance h, half lengths a:
    # Omega = 4 atan(a^2 / (h sqrt(2 a^2 + h^2)))
    a, h = 1.9, 4.0
    points = np.array([[-a, 0, 0], [a, 0, 0], [0, 9, 9], [0, -a, h], [0, a, h]])
    writhe, _ = geometry.writhe(Chains.of([points]))
    i, j = torch.triu_indices(4, 4, offset=2)
    got = float(writhe[0, (i == 0) & (j == 3)])
    solid = 4 * math.atan(a * a / (h * math.sqrt(2 * a * a + h * h)))
    assert abs(got) == pytest.approx(solid / (2 * math.pi), rel=1e-6)


def test_writhe_is_the_gauss_integral():
    rng = np.random.default_rng(3)
    p = np.cumsum(rng.normal(size=(4, 3)), axis=0)
    writhe, _ = geometry.writhe(Chains.of([p]))
    first, last = (p[1] - p[0]).astype(np.float32), (p[3] - p[2]).astype(np.float32)
    # Gauss-Legendre in both parameters: the two bonds do not touch
    x, w = np.polynomial.legendre.leggauss(200)
    s, w = (x + 1) / 2, w / 2
    r = (p[0] + s[:, None] * (p[1] - p[0]))[:, None] - (p[2] + s[:, None] * (p[3] - p[2]))[None]
    kernel = (r @ np.cross(first, last)) / np.linalg.norm(r, axis=-1) ** 3
    integral = (w[:, None] * w * kernel).sum() / (2 * math.pi)
    assert float(writhe.sum()) == pytest.approx(integral, abs=1e-5)


def test_a_planar_curve_has_no_writhe():
    flat = np.zeros((15, 3))
    flat[:, 0] = 3 * np.arange(15)
    flat[:, 1] = np.sin(np.arange(15))
    writhe, _ = geometry.writhe(Chains.of([flat]))
    assert float(writhe.abs().max()) < 1e-9


def test_ideal_helix_and_strand_are_recognised_and_a_left_helix_is_neither():
    chains = Chains.of([ideal.helix(20), ideal.strand(20), ideal.helix(20, left=True)])
    helix, strand = geometry.helix_strand(chains)
    assert helix.tolist() == pytest.approx([1, 0, 0]) and strand.tolist() == pytest.approx(
        [0, 1, 0]
    )


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4])
def test_chains_of_a_few_residues_have_figures(n):
    chains = Chains.of([np.zeros((n, 3)), ideal.helix(n) if n else np.zeros((0, 3))])
    for name, value in figures(chains).items():
        assert value.shape == (2,) and bool(value.isfinite().all()), name


def test_ideal_torsions_are_favoured_and_their_mirror_image_is_not():
    bb = ideal.backbone([ideal.HELIX] * 10 + [ideal.STRAND] * 10)
    assert geometry.ramachandran(bb) == (0, 18)
    outside, total = geometry.ramachandran(ideal.mirrored(bb))
    assert (outside, total) == (18, 18)
    with pytest.raises(UserError, match="shape"):
        geometry.ramachandran(bb[:, 1])


def test_real_domains_are_right_handed_and_clash_free(domains):
    chains = whole(domains, len(domains))
    right, helical = geometry.handedness(chains)
    assert float(right.sum() / helical.sum()) == pytest.approx(0.95, abs=0.02)
    assert float((geometry.clashes(chains) == 0).double().mean()) > 0.9
    deviation = geometry.bond_deviation(chains)
    assert float((deviation <= 0.2).sum() / deviation.isfinite().sum()) > 0.99
    outside, total = np.sum(
        [geometry.ramachandran(domains.bb(i)) for i in range(len(domains))], axis=0
    )
    assert outside / total < 0.13
