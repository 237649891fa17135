"""Molecules as tensors: nothing is lost, added or moved on the way in and out."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from rdkit import Chem

from driftworks.errors import UserError
from driftworks.molgen.molecule import Molecules, Unconvertible


def same(a: Molecules, b: Molecules) -> bool:
    names = ("numbers", "positions", "charges", "bonds", "mask")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def flat(mol: Chem.Mol) -> str:
    mol = Chem.Mol(mol)
    Chem.SanitizeMol(mol)
    return Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False)


def test_a_round_trip_through_rdkit_changes_no_tensor(small):
    assert same(Molecules.from_rdkit(small.rdkit_mols()), small)


def test_to_rdkit_gives_the_molecule_that_the_smiles_named(small):
    named = {0: "C", 4: "C=O", 7: "c1ccccc1", 13: "[NH3+]CC(=O)[O-]", 18: "CS(C)=O"}
    assert {i: flat(small.to_rdkit(i)) for i in named} == named


def test_to_rdkit_adds_no_hydrogen_to_an_open_valence(build):
    methane = build(["C"])
    radical = Molecules(
        methane.numbers[:, :4],
        methane.positions[:, :4],
        methane.charges[:, :4],
        methane.bonds[:, :4, :4],
        methane.mask[:, :4],
    )
    mol = radical.to_rdkit(0)
    Chem.SanitizeMol(mol)
    assert mol.GetNumAtoms() == 4
    assert mol.GetAtomWithIdx(0).GetTotalNumHs(includeNeighbors=True) == 3
    assert mol.GetAtomWithIdx(0).GetNumRadicalElectrons() == 1


def test_aromatic_bonds_arrive_kekulised(build):
    benzene = build(["c1ccccc1"])
    orders = benzene.bonds[0].triu(1)
    assert sorted(orders[orders > 0].tolist()) == [1] * 9 + [2] * 3


def test_positions_keep_their_angstrom(small):
    for i in (0, 7, 20):
        given = small.positions[i, : small.atom_counts[i]].double().numpy()
        assert np.array_equal(small.to_rdkit(i).GetConformer().GetPositions(), given)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: None, "missing"),
        (lambda: Chem.AddHs(Chem.MolFromSmiles("CC")), "no conformer"),
        (lambda: Chem.MolFromMolBlock(_block("C")), "implicit hydrogens"),
        (lambda: _placed("[H]->[Fe]"), "bond type"),
        (lambda: _placed("[*][H]"), "element"),
    ],
)
def test_what_is_no_explicit_structure_is_refused_by_name_or_counted(make, reason):
    mol = make()
    with pytest.raises(Unconvertible) as caught:
        Molecules.from_rdkit([mol])
    assert caught.value.reason == reason
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)
    failures = {"earlier": 2}
    assert len(Molecules.from_rdkit([mol, mol], failures)) == 0
    assert failures == {"earlier": 2, reason: 2}


def _block(smiles: str) -> str:
    return Chem.MolToMolBlock(_placed(smiles))


def _placed(smiles: str) -> Chem.Mol:
    options = Chem.SmilesParserParams()
    options.removeHs = False
    mol = Chem.MolFromSmiles(smiles, options)
    mol.AddConformer(Chem.Conformer(mol.GetNumAtoms()))
    return mol


def test_an_unkekulisable_ring_is_refused():
    mol = Chem.MolFromSmiles("c1cccc1", sanitize=False)
    mol.AddConformer(Chem.Conformer(5))
    with pytest.raises(Unconvertible, match="molecule 0"):
        Molecules.from_rdkit([mol])


def test_rows_can_be_taken_in_every_usual_way(small):
    assert len(small[3]) == 1 and same(small[3], small[[3]])
    assert same(small[-1], small[len(small) - 1])
    assert same(small[2:5], small[[2, 3, 4]])
    mask = torch.arange(len(small)) % 2 == 0
    assert same(small[mask], small[::2]) and same(small[mask.numpy()], small[::2])
    assert len(small[[]]) == 0
    assert [len(m) for m in small] == [1] * len(small)
    with pytest.raises(IndexError):
        small[len(small)]


def test_concatenation_undoes_a_split_whatever_the_padding(small):
    parts = [small[:4].padded(int(small[:4].atom_counts.max())), small[4:9], small[9:]]
    assert parts[0].max_atoms < small.max_atoms
    assert same(Molecules.cat(parts), small)
    assert len(Molecules.cat([])) == 0


def test_padding_can_be_changed_but_never_cut_into_a_molecule(small):
    wide = small.padded(small.max_atoms + 5)
    assert torch.equal(wide.atom_counts, small.atom_counts)
    assert same(wide.padded(small.max_atoms), small)
    with pytest.raises(UserError, match="largest molecule has"):
        small.padded(small.max_atoms - 1)


def test_shapes_that_do_not_fit_are_named(small):
    with pytest.raises(UserError, match="bonds has shape"):
        Molecules(small.numbers, small.positions, small.charges, small.bonds[:, :-1], small.mask)
    with pytest.raises(UserError, match="numbers has shape"):
        Molecules(small.mask[0], small.positions, small.charges, small.bonds, small.mask)


def test_unknown_elements_and_orders_are_refused_by_to_rdkit(small):
    numbers, bonds = small.numbers.clone(), small.bonds.clone()
    numbers[0, 0], bonds[1, 0, 1] = 119, 4
    odd = Molecules(numbers, small.positions, small.charges, bonds, small.mask)
    with pytest.raises(UserError, match="119"):
        odd.to_rdkit(0)
    with pytest.raises(UserError, match="order 4"):
        odd.to_rdkit(1)


def test_every_element_up_to_oganesson_survives(small):
    numbers = torch.arange(1, 119)[None]
    n = numbers.shape[1]
    every = Molecules(
        numbers,
        torch.randn(1, n, 3, generator=torch.Generator().manual_seed(0)),
        torch.zeros(1, n, dtype=torch.int64),
        torch.zeros(1, n, n, dtype=torch.int64),
        torch.ones(1, n, dtype=torch.bool),
    )
    assert same(Molecules.from_rdkit([every.to_rdkit(0)]), every)


def test_ccd_components_come_through_with_their_bonds(ccd_mols):
    molecules = Molecules.from_rdkit(ccd_mols)
    for i, mol in enumerate(ccd_mols):
        assert flat(molecules.to_rdkit(i)) == flat(mol)


def test_a_table_of_ragged_rows_becomes_the_same_molecules(small):
    from driftworks.data import Molecule, MoleculeTable

    rows = []
    for i, part in enumerate(small):
        n = int(part.atom_counts[0])
        upper = part.bonds[0, :n, :n].triu(1)
        ends = upper.nonzero()
        bonds = torch.cat([ends, upper[ends[:, 0], ends[:, 1]][:, None]], dim=1)
        rows.append(
            Molecule(
                id=str(i),
                smiles="",
                numbers=part.numbers[0, :n].numpy().astype(np.uint8),
                positions=part.positions[0, :n].numpy(),
                charges=part.charges[0, :n].numpy().astype(np.int8),
                bonds=bonds.numpy().astype(np.int16),
                properties={},
            )
        )
    table = MoleculeTable.from_molecules(rows)
    assert same(Molecules.from_table(table), small)
    order = np.array([5, 0, 5, 21])
    picked = Molecules.from_table(table, order)
    assert same(picked, small[order].padded(picked.max_atoms))
    chosen = np.arange(len(small)) < 3
    assert same(Molecules.from_table(table, chosen).padded(small.max_atoms), small[:3])
    assert len(Molecules.from_table(table, [])) == 0


def test_qm9_rows_keep_the_smiles_of_the_table(qm9):
    rows = qm9.rows(clean=True)[::650]
    molecules = Molecules.from_table(qm9, rows)
    found = [flat(mol) for mol in molecules.rdkit_mols()]
    assert found == [qm9.smiles[i] for i in rows]


def test_importing_the_module_does_not_import_rdkit():
    code = "import sys, driftworks.molgen.metrics; print('rdkit' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
