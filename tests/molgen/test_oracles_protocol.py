"""What all oracles share: names, refusals, lazy imports."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from driftworks.errors import UserError
from driftworks.molgen.oracles import ORACLES, Oracle, OracleInput, get, protocol
from driftworks.molgen.oracles.protocol import refusal

WATER = OracleInput(
    np.array([8, 1, 1]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.96], [0.93, 0.0, -0.24]])
)


def changed(numbers=None, positions=None, charge=0):
    return OracleInput(
        WATER.numbers if numbers is None else np.array(numbers),
        WATER.positions if positions is None else np.array(positions, dtype=float),
        charge,
    )


@pytest.mark.parametrize("name", ORACLES)
def test_every_oracle_keeps_the_protocol(name):
    oracle = get(name)
    assert isinstance(oracle, Oracle)
    assert oracle.name == name
    assert all(isinstance(unit, str) for unit in oracle.provides.values())
    assert all(isinstance(v, (str, int, float, bool)) for v in oracle.settings.values())
    assert oracle.evaluate([]) == []
    oracle.close()


def test_settings_tell_apart_what_changes_values_and_nothing_else():
    assert get("dft", preset="qm9").settings != get("dft", preset="screen").settings
    assert get("xtb").settings != get("xtb", relax=True).settings
    assert get("xtb", jobs=1, timeout=5, memory_mb=900).settings == get("xtb", jobs=2).settings


def test_an_unknown_oracle_is_answered_with_the_choices():
    with pytest.raises(UserError, match="unknown oracle 'orca'; choose from rdkit, xtb, dft"):
        get("orca")


def test_an_unknown_option_is_answered_with_the_options():
    with pytest.raises(UserError, match="no option 'colour'; it has preset, relax"):
        get("dft", colour="red")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dft", {"preset": "fast"}, "unknown preset 'fast'; choose from 'qm9', 'screen'"),
        ("dft", {"relax": "mmff"}, "unknown relax 'mmff'; choose from 'none', 'xtb'"),
        ("dft", {"fitting": "ri"}, "unknown fitting 'ri'"),
        ("xtb", {"jobs": 0}, "jobs must be a whole number above 0, not 0"),
        ("xtb", {"timeout": -1.0}, "timeout must be a positive number, not -1.0"),
        ("xtb", {"memory_mb": float("nan")}, "memory_mb must be a positive number, not nan"),
        ("xtb", {"relax": True, "fmax": 0.0}, "fmax must be a positive force"),
    ],
)
def test_an_option_without_meaning_is_named(name, options, message):
    with pytest.raises(UserError, match=message):
        get(name, **options)


@pytest.mark.parametrize("name", ["xtb", "dft"])
def test_a_missing_program_is_answered_with_the_command_that_installs_it(name, monkeypatch):
    monkeypatch.setattr(protocol, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf"pip install 'driftworks\[{name}\]'"):
        get(name)


@pytest.mark.parametrize(
    ("mol", "reason"),
    [
        (WATER, ""),
        (changed(charge=2), ""),
        (changed(charge=1), "odd electron count (9)"),
        (changed(numbers=[7, 1, 1]), "odd electron count (9)"),
        (changed(numbers=[8, 1, 9]), "no B3LYP parameters for atomic number 9"),
        (changed(numbers=[8, 1, 0]), "no B3LYP parameters for atomic number 0"),
        (changed(positions=[[0, 0, 0], [0, 0, np.nan], [1, 0, 0]]), "coordinates are not finite"),
        (changed(positions=[[0, 0, 0], [0, 0, 1], [0, 0.01, 1]]), "atoms 1 and 2 coincide"),
        (changed(positions=[[0, 0, 0], [0, 0, 1], [0, 0, 1e6]]), "coordinates beyond"),
        (changed(positions=[[0, 0, 0], [0, 0, 1]]), "do not fit"),
        (changed(charge=10), "leaves no electrons"),
        (OracleInput(np.zeros(0, int), np.zeros((0, 3))), "0 atoms"),
        (OracleInput(np.ones(2000, int), np.zeros((2000, 3))), "2000 atoms"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_reason(mol, reason):
    answer = refusal(mol, frozenset({1, 7, 8}), "B3LYP")
    assert reason in answer
    assert bool(answer) == bool(reason)


def test_rdkit_molecules_bring_atoms_geometry_and_charge():
    from rdkit import Chem
    from rdkit.Chem import AllChem

    mol = Chem.AddHs(Chem.MolFromSmiles("C[NH3+]"))
    assert np.isnan(OracleInput.from_rdkit(mol).positions).all()
    AllChem.EmbedMolecule(mol, randomSeed=7)
    asked = OracleInput.from_rdkit(mol)
    assert sorted(asked.numbers) == [1] * 6 + [6, 7]
    assert asked.charge == 1
    assert asked.positions.shape == (8, 3)
    assert refusal(asked, range(1, 87), "any") == ""


def test_importing_the_oracles_imports_none_of_their_programs():
    code = (
        "import sys, driftworks.molgen.oracles as o\n"
        "from driftworks.molgen.oracles import OracleInput, XtbOracle, DftOracle\n"
        "bad = {'rdkit', 'pyscf', 'tblite'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
