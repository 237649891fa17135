"""Unit conversions against published equivalents."""

from __future__ import annotations

import pytest

from driftworks.data.units import EV_PER_HARTREE, PROPERTY_UNITS, conversion
from driftworks.errors import UserError


def test_conversions_agree_with_codata_2018() -> None:
    assert EV_PER_HARTREE == 27.211386245988
    assert conversion("Hartree", "eV") == EV_PER_HARTREE
    assert conversion("eV", "Ha") == pytest.approx(0.03674932217565, rel=1e-12)
    assert conversion("meV", "eV") == pytest.approx(1e-3)
    # 1 eV = 96.48533212 kJ/mol (Avogadro times elementary charge), 1 kcal = 4.184 kJ
    assert conversion("eV", "kJ/mol") == pytest.approx(96.4853321233, rel=1e-10)
    assert conversion("eV", "kcal/mol") == pytest.approx(96.4853321233 / 4.184, rel=1e-10)
    assert conversion("angstrom^3", "bohr^3") == pytest.approx(6.748334495, rel=1e-8)
    assert conversion("e bohr", "D") == pytest.approx(2.541746473, rel=1e-9)
    assert conversion("J/(mol K)", "cal/(mol K)") == pytest.approx(1 / 4.184)


def test_spelling_does_not_matter_and_inverse_undoes() -> None:
    for a, b in (
        ("HARTREE", "ev"),
        ("Debye", "D"),
        ("Å^3", "bohr^3"),
        ("cal/mol/K", "cal/(mol K)"),
    ):
        assert conversion(a, b) * conversion(b, a) == pytest.approx(1.0, rel=1e-14)
    for unit in PROPERTY_UNITS.values():
        assert conversion(unit, unit) == 1.0
    assert conversion("apples", "apples") == 1.0


def test_quantities_do_not_mix() -> None:
    with pytest.raises(
        UserError, match="cannot convert unit 'debye' to 'eV'; known for it: .*hartree"
    ):
        conversion("debye", "eV")
    with pytest.raises(UserError, match="cannot convert unit 'eV' to 'apples'"):
        conversion("eV", "apples")
