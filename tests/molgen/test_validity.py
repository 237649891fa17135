"""Strict validity: its tensor form and its RDKit form are one definition, and the right one."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from rdkit import Chem, rdBase

from driftworks.molgen.molecule import Molecules
from driftworks.molgen.validity import (
    MAX_RINGS,
    REASONS,
    VALENCES,
    check,
    connected_mask,
    strict_mask,
    valence_ok,
)


def explicit(smiles: str) -> Chem.Mol:
    """The molecule as generated molecules are: all atoms written out, nothing sanitised."""
    options = Chem.SmilesParserParams()
    options.removeHs = False
    options.sanitize = False
    mol = Chem.MolFromSmiles(smiles, options)
    for atom in mol.GetAtoms():
        atom.SetNumExplicitHs(0)
        atom.SetNoImplicit(True)
    mol.AddConformer(Chem.Conformer(mol.GetNumAtoms()))
    return mol


def corrupted(molecules: Molecules, seed: int, edits: int = 2) -> Molecules:
    """Each molecule with up to `edits` random changes of an element, a charge or a bond."""
    rng = np.random.default_rng(seed)
    numbers, charges = molecules.numbers.clone(), molecules.charges.clone()
    bonds = molecules.bonds.clone()
    elements = torch.tensor([1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 26, 35, 53])
    for b, n in enumerate(molecules.atom_counts.tolist()):
        for _ in range(rng.integers(0, edits + 1)):
            i = int(rng.integers(n))
            kind = rng.integers(5)
            if kind == 0:
                numbers[b, i] = elements[int(rng.integers(len(elements)))]
            elif kind == 1:
                charges[b, i] += int(rng.choice([-1, 1]))
            elif kind == 2 and n > 1:  # a zwitterion stays neutral
                charges[b, i] += 1
                charges[b, int(rng.integers(n))] -= 1
            elif n > 1:
                j = (i + int(rng.integers(1, n))) % n
                if kind == 3:  # an existing bond of i rather than a random pair
                    near = bonds[b, i].nonzero()[:, 0]
                    j = int(near[int(rng.integers(len(near)))]) if len(near) else j
                bonds[b, i, j] = bonds[b, j, i] = int(rng.integers(0, 4))
    return Molecules(numbers, molecules.positions, charges, bonds, molecules.mask)


def assert_both_agree(molecules: Molecules, seed: int) -> np.ndarray:
    mols = molecules.rdkit_mols()
    verdicts = [check(mol) for mol in mols]
    slow = np.array([v.strict for v in verdicts])
    fast = strict_mask(molecules).numpy()
    differ = np.flatnonzero(slow != fast)
    shown = [(Chem.MolToSmiles(mols[i]), verdicts[i]) for i in differ[:3]]
    assert not len(differ), f"seed {seed}: {len(differ)} of {len(slow)} differ: {shown}"
    assert all((v.reason == "") == v.strict and v.reason in ("", *REASONS) for v in verdicts)
    return slow


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("[H]C([H])([H])[H]", ""),
        ("[C-]#[O+]", ""),
        ("[H]C([H])([H])[N+](=O)[O-]", ""),
        ("[H]C([H])=[N+]=[N-]", ""),
        ("[H]C([H])[H]", "radical"),  # published tables: a stable carbon
        ("[H]N[H]", "radical"),  # published tables: a stable nitrogen
        ("[H]C([H])([H])C([H])[H]", "radical"),
        ("[H]C[H]", "radical"),  # a carbene: even electrons, two of them unpaired
        ("[H][N+]([H])([H])[H]", "charged"),  # published closed-shell and stability tests: fine
        ("[H][C-]([H])[H]", "charged"),
        ("[H][C+]([H])[H]", "charged"),
        ("[H]O[H].[H]O[H]", "fragments"),  # RDKit: valid
        ("[H][N+]([H])([H])[H].[Cl-]", "fragments"),
        ("[H]C([H])([H])N(=O)=O", "valence"),  # RDKit: valid, after repairing it
        ("[H]C([H])([H])([H])[H]", "sanitize"),
        ("FN(F)(F)F", "sanitize"),
        ("O=O", ""),
        ("[H][H]", ""),
        ("[H]", "radical"),
        ("[Fe]", "valence"),  # no Lewis valence to be consistent with
        ("[H][O+]([H])[H]", "charged"),
        ("FS(F)(F)(F)(F)F", ""),
        ("[H][P+]([H])([H])[C-]([H])[H]", ""),
    ],
)
def test_known_structures_fail_for_the_known_reason(smiles, reason):
    mol = explicit(smiles)
    assert check(mol).reason == reason
    assert bool(strict_mask(Molecules.from_rdkit([mol]))[0]) == (reason == "")


def test_the_fields_of_a_verdict_are_independent_of_each_other():
    ammonium = check(explicit("[H][N+]([H])([H])[H].[H]C[H]"))
    assert (ammonium.rdkit, ammonium.connected, ammonium.neutral) == (True, False, False)
    assert (ammonium.closed_shell, ammonium.valence) == (False, False)
    repaired = check(explicit("[H]C([H])([H])N(=O)=O"))
    assert repaired.rdkit and repaired.closed_shell and not repaired.valence


def test_every_entry_of_the_valence_table_is_closed_shell_to_rdkit():
    for (z, charge), valences in VALENCES.items():
        for valence in valences:
            mol = star(z, charge, valence)
            Chem.SanitizeMol(mol)
            assert mol.GetAtomWithIdx(0).GetNumRadicalElectrons() == 0, (z, charge, valence)


def test_the_neutral_main_group_table_holds_all_that_rdkit_calls_closed_shell():
    with rdBase.BlockLogs():
        for z in (1, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 32, 33, 34, 35, 51, 52, 53):
            found = tuple(v for v in range(1, 9) if closed_shell_to_rdkit(star(z, 0, v)))
            assert VALENCES[z, 0] == found, z


def star(z: int, charge: int, arms: int) -> Chem.Mol:
    mol = Chem.RWMol()
    for number in [z] + [9 if z == 1 else 1] * arms:
        atom = Chem.Atom(number)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    mol.GetAtomWithIdx(0).SetFormalCharge(charge)
    for k in range(arms):
        mol.AddBond(0, k + 1, Chem.BondType.SINGLE)
    return mol.GetMol()


def closed_shell_to_rdkit(mol: Chem.Mol) -> bool:
    try:
        Chem.SanitizeMol(mol)
    except Chem.MolSanitizeException:
        return False
    return not mol.GetAtomWithIdx(0).GetNumRadicalElectrons()


def test_real_molecules_of_many_elements_are_strict(small, ccd_mols):
    assert strict_mask(small).all() and all(check(mol).strict for mol in small.rdkit_mols())
    components = Molecules.from_rdkit(ccd_mols)
    neutral = (components.charges.sum(dim=1) == 0).numpy()
    assert neutral.sum() >= 10
    strict = assert_both_agree(components, seed=-1)
    assert np.array_equal(strict, neutral)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_both_forms_agree_on_corrupted_molecules(small, ccd_mols, seed):
    pool = Molecules.cat([*[small] * 20, *[Molecules.from_rdkit(ccd_mols)] * 5])
    strict = assert_both_agree(corrupted(pool, seed), seed)
    assert 0.2 < strict.mean() < 0.8


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_all_clean_qm9_molecules_are_strict(qm9, every):
    rows = qm9.rows(clean=True)[::every]
    for start in range(0, len(rows), 8192):
        part = strict_mask(Molecules.from_table(qm9, rows[start : start + 8192]))
        assert part.all(), [qm9.ids[rows[start + i]] for i in (~part).nonzero()[:5, 0].tolist()]


def test_both_forms_agree_on_real_and_corrupted_qm9_molecules(qm9_sample):
    assert assert_both_agree(qm9_sample[:1000], seed=-1).all()
    assert 0.2 < assert_both_agree(corrupted(qm9_sample, seed=11), seed=11).mean() < 0.8


def test_both_forms_agree_on_random_graphs_of_atoms():
    rng = torch.Generator().manual_seed(5)
    b, n = 600, 6
    elements = torch.tensor([1, 1, 6, 6, 7, 8, 9])
    numbers = elements[torch.randint(len(elements), (b, n), generator=rng)]
    shares = torch.tensor([0.68, 0.26, 0.04, 0.02])
    bonds = torch.multinomial(shares, b * n * n, True, generator=rng)
    bonds = bonds.reshape(b, n, n).triu(1)
    bonds = bonds + bonds.transpose(1, 2)
    sizes = torch.randint(1, n + 1, (b,), generator=rng)
    mask = torch.arange(n) < sizes[:, None]
    molecules = Molecules(
        numbers * mask, torch.zeros(b, n, 3), torch.zeros(b, n, dtype=torch.int64), bonds, mask
    )
    assert assert_both_agree(molecules, seed=5).any()


def test_values_in_the_padding_change_nothing(small):
    narrow = small[:10].padded(int(small[:10].atom_counts.max()) + 3)
    dirty = Molecules(
        torch.where(narrow.mask, narrow.numbers, 7),
        torch.where(narrow.mask[..., None], narrow.positions, torch.nan),
        torch.where(narrow.mask, narrow.charges, 1),
        narrow.bonds + (~(narrow.mask[:, :, None] & narrow.mask[:, None, :])).long(),
        narrow.mask,
    )
    assert strict_mask(dirty).all() and valence_ok(dirty).all() and connected_mask(dirty).all()


def test_coordinates_that_are_not_finite_are_no_molecule(small):
    positions = small.positions.clone()
    positions[2, 1, 0], positions[3, 0, 2] = torch.nan, torch.inf
    odd = Molecules(small.numbers, positions, small.charges, small.bonds, small.mask)
    assert (~strict_mask(odd)).nonzero()[:, 0].tolist() == [2, 3]
    assert [check(odd.to_rdkit(i)).reason for i in (1, 2, 3)] == ["", "coordinates", "coordinates"]


def test_impossible_numbers_charges_and_orders_are_not_strict(small):
    numbers, charges, bonds = small.numbers.clone(), small.charges.clone(), small.bonds.clone()
    numbers[0, 0], charges[1, 0], bonds[4, 0, 1], bonds[4, 1, 0] = 200, 99, -1, -1
    odd = Molecules(numbers, small.positions, charges, bonds, small.mask)
    assert (~strict_mask(odd)).nonzero()[:, 0].tolist() == [0, 1, 4]


def test_nothing_is_not_a_molecule():
    assert check(None).reason == "empty" and check(Chem.Mol()).reason == "empty"
    assert strict_mask(Molecules.empty(2, 4)).tolist() == [False, False]
    assert strict_mask(Molecules.empty()).tolist() == []


def test_a_long_chain_is_connected_and_a_cut_one_is_not():
    n = 65
    bonds = torch.diag(torch.ones(n - 1, dtype=torch.int64), 1)
    both = (bonds + bonds.T).repeat(2, 1, 1)
    both[1, 31, 32] = both[1, 32, 31] = 0
    chain = Molecules(
        torch.full((2, n), 6),
        torch.zeros(2, n, 3),
        torch.zeros(2, n, dtype=torch.int64),
        both,
        torch.ones(2, n, dtype=torch.bool),
    )
    assert connected_mask(chain).tolist() == [True, False]


def test_a_molecule_with_implicit_hydrogens_is_judged_with_them():
    assert check(Chem.MolFromSmiles("CCO")).strict
    assert check(Chem.MolFromSmiles("c1ccccc1")).strict
    assert check(Chem.MolFromSmiles("C[CH2]")).reason == "radical"


def test_check_leaves_its_molecule_as_it_was():
    mol = explicit("[H]C([H])([H])N(=O)=O")
    before = mol.ToBinary()
    check(mol)
    assert mol.ToBinary() == before


def test_a_dense_graph_of_metal_atoms_is_refused_quickly():
    n = 100
    upper = torch.ones(n, n, dtype=torch.int64).triu(1)
    dense = Molecules(
        torch.full((1, n), 26),
        torch.zeros(1, n, 3),
        torch.zeros(1, n, dtype=torch.int64),
        (upper + upper.T)[None],
        torch.ones(1, n, dtype=torch.bool),
    )
    start = time.perf_counter()
    verdict = check(dense.to_rdkit(0))
    assert time.perf_counter() - start < 5
    assert verdict.reason == "rings" and n * (n - 1) // 2 - n + 1 > MAX_RINGS
    assert not strict_mask(dense)[0]
