"""The RDKit oracle against published descriptor values."""

from __future__ import annotations

import numpy as np
import pytest

from driftworks.molgen.oracles import OracleInput, get

Chem = pytest.importorskip("rdkit.Chem")


def asked(smiles, sanitize=True, hydrogens=True):
    mol = Chem.MolFromSmiles(smiles, sanitize=sanitize)
    return OracleInput.from_rdkit(Chem.AddHs(mol) if hydrogens else mol)


def test_aspirin_has_its_published_descriptors():
    [result] = get("rdkit").evaluate([asked("CC(=O)Oc1ccccc1C(=O)O")])
    assert result.ok and result.reason == ""
    assert result.values["valid"] == 1.0
    assert result.values["weight"] == pytest.approx(180.16, abs=0.01)  # PubChem CID 2244
    assert result.values["qed"] == pytest.approx(0.55, abs=0.01)  # ChEMBL CHEMBL25
    assert result.values["logp"] == pytest.approx(1.31, abs=0.01)  # ChEMBL, Crippen's
    assert 1 <= result.values["sa"] < 2.5


def test_hydrogens_written_out_change_nothing():
    oracle = get("rdkit")
    explicit, implicit = oracle.evaluate([asked("CCO"), asked("CCO", hydrogens=False)])
    assert explicit.values == pytest.approx(implicit.values)


def test_a_harder_synthesis_scores_higher():
    easy, hard = get("rdkit").evaluate([asked("CCO"), asked("C1CC23CC1C1CC2C2C1C32")])
    assert hard.values["sa"] > easy.values["sa"] + 2


def test_bad_structures_are_results_with_a_reason():
    five_valent = asked("C(C)(C)(C)(C)C", sanitize=False, hydrogens=False)
    no_bonds = OracleInput(np.array([1, 1]), np.zeros((2, 3)))
    pair = asked("C.O")
    seen = []
    results = get("rdkit").evaluate(
        [five_valent, no_bonds, pair, asked("C")], callback=lambda k, r: seen.append((k, r.status))
    )
    assert [r.status for r in results] == ["input", "input", "ok", "ok"]
    assert seen == list(enumerate(r.status for r in results))
    assert results[0].values == {"valid": 0.0} and "sanitise" in results[0].reason
    assert "bonds" in results[1].reason
    assert results[2].values["valid"] == 0.0 and results[2].reason == "fragments"
    assert results[3].values["valid"] == 1.0


def test_asking_leaves_the_molecule_as_it_was():
    mol = asked("c1ccccc1C").mol
    before = mol.ToBinary()
    get("rdkit").evaluate([OracleInput.from_rdkit(mol)])
    assert mol.ToBinary() == before
