"""Divergences of distributions: known values, and molecules counted right."""

from __future__ import annotations

import math

import numpy as np
import pytest

from driftworks.molgen.divergence import Profile, jensen_shannon
from driftworks.molgen.metrics import evaluate


def test_jensen_shannon_has_its_known_values():
    assert jensen_shannon(np.array([1.0, 3.0]), np.array([2.0, 6.0])) == pytest.approx(0, abs=1e-15)
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 5.0])) == pytest.approx(1)
    # H(3/4, 1/4) - 1/2 bit, by hand
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(
        0.811278124459133 - 0.5
    )
    assert math.isnan(jensen_shannon(np.array([0.0, 0.0]), np.array([1.0, 1.0])))


def test_profiles_count_elements_rings_bonds_and_lengths(build):
    molecules = build(["c1ccccc1", "C12CC1C2", "CCO"])
    profile = Profile.of(molecules)
    assert profile.elements[:, [1, 6, 8]].tolist() == [[6, 6, 0], [6, 4, 0], [6, 2, 1]]
    assert profile.rings[0, [0, 3, 6]].tolist() == [0, 0, 1]
    assert profile.rings[1, [0, 3]].tolist() == [0, 2]
    assert profile.rings[2, 0] == 1
    assert profile.bond_orders[0].tolist() == [0, 9, 3, 0]
    assert profile.atom_counts.argmax(axis=1).tolist() == molecules.atom_counts.tolist()
    assert set(profile.bond_lengths) == {(1, 6, 1), (1, 8, 1), (6, 6, 1), (6, 6, 2), (6, 8, 1)}
    assert profile.bond_lengths[6, 6, 2].sum(axis=1).tolist() == [3, 0, 0]
    assert sum(t.sum() for t in profile.bond_lengths.values()) == profile.bond_orders.sum()


def test_a_library_against_itself_has_no_divergence_and_alkanes_against_benzene_do(build):
    alkanes, benzene = build(["CC", "CCC", "CCCC"]), build(["c1ccccc1"])
    same = evaluate(alkanes, reference=alkanes, bootstrap=0)
    assert all(f.value < 1e-12 for name, f in same.figures.items() if name.startswith("js_"))
    other = evaluate(alkanes, reference=benzene, bootstrap=0)
    assert other.js_rings.value == pytest.approx(1) and other.js_atom_counts.value > 0.99
    assert other.js_bond_orders.value > 0.05 and other.js_bond_lengths.value > 0.3
