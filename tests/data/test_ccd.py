"""Chemical components against biotite's own reading of them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from driftworks import data
from driftworks.errors import UserError

ccd_module = sys.modules["driftworks.data.ccd"]
biotite_info = pytest.importorskip("biotite.structure.info")


@pytest.fixture(scope="module", autouse=True)
def dictionary_is_opened_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ccd_module, "_Dictionary", functools.cache(ccd_module._Dictionary))
        yield


@pytest.fixture(scope="module")
def table(dictionary_is_opened_once: None) -> data.MoleculeTable:
    return data.ccd(40, workers=1, progress=False, cache=False)


def test_components_agree_with_biotite_atom_by_atom(table: data.MoleculeTable) -> None:
    for i in (0, 7, 21):
        molecule = table.molecule(i)
        theirs = biotite_info.residue(molecule.id.removeprefix("ccd:"))
        symbols = [Chem.GetPeriodicTable().GetElementSymbol(int(z)) for z in molecule.numbers]
        assert [s.upper() for s in symbols] == theirs.element.tolist()
        assert np.allclose(molecule.positions, theirs.coord, atol=1e-4)
        assert np.array_equal(molecule.charges, theirs.charge)
        pairs = {tuple(sorted(row[:2])) for row in theirs.bonds.as_array().tolist()}
        assert {tuple(sorted(row[:2])) for row in molecule.bonds.tolist()} == pairs


def test_molecules_are_whole_closed_shell_and_have_their_hydrogens(
    table: data.MoleculeTable,
) -> None:
    assert len(table) == 40 and table.ids == sorted(table.ids)
    for molecule in table:
        mol = Chem.MolFromSmiles(molecule.smiles)
        assert mol is not None and "." not in molecule.smiles
        assert Chem.AddHs(mol).GetNumAtoms() == len(molecule)
        assert Chem.GetFormalCharge(mol) == molecule.charges.sum()
        assert 6 in molecule.numbers and (molecule.numbers > 1).sum() <= 50
        # bonded atoms lie at bonded distances in every component
        ends = molecule.positions[molecule.bonds[:, :2]]
        length = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
        assert 0.8 < length.min() and length.max() < 2.3


def test_size_and_elements_are_bounded_as_asked() -> None:
    small = data.ccd(
        25, max_heavy=9, min_heavy=4, elements=["H", "C", "N", "O", "F"], workers=1, progress=False
    )
    heavy = [int((m.numbers > 1).sum()) for m in small]
    assert 4 <= min(heavy) and max(heavy) <= 9
    assert set(small.numbers.tolist()) <= {1, 6, 7, 8, 9}


def test_a_smaller_limit_gives_the_beginning_of_a_larger_one(
    table: data.MoleculeTable, cache: Path
) -> None:
    part = data.ccd(10, workers=2, progress=False)
    assert part.ids == table.ids[:10] and np.array_equal(
        part.positions, table.select(slice(10)).positions
    )
    assert len(list(cache.iterdir())) == 1
    again = data.ccd(10, progress=False)
    assert isinstance(again.positions, np.memmap) and again.ids == part.ids
    assert again.failures == part.failures


def test_impossible_wishes_are_user_errors() -> None:
    with pytest.raises(UserError, match="unknown element 'Xx'; choose from H, B, C"):
        data.ccd(5, elements=["C", "Xx"])
    with pytest.raises(UserError, match="between 9 and 3 heavy atoms"):
        data.ccd(5, max_heavy=3, min_heavy=9)
    with pytest.raises(UserError, match="limit must be at least 1, not -2"):
        data.ccd(-2)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(900)
def test_the_whole_dictionary_holds_the_reference_molecules(data_dir: Path) -> None:
    """Buys: 45,142 molecules of an independent build found again with the same SMILES."""
    with np.load(data_dir / "ccd_drugs.npz", allow_pickle=False) as archive:
        names = archive["id"].astype(str).tolist()
        smiles = bytes(archive["smiles"]).decode().split("\n")
    table = data.ccd(progress=False)
    mine = {
        name.removeprefix("ccd:"): found
        for name, found in zip(table.ids, table.smiles, strict=True)
    }
    assert not [name for name in names if name not in mine]
    flat = {
        name: Chem.CanonSmiles(s, useChiral=0)
        for name, s in zip(names[::20], smiles[::20], strict=False)
    }
    assert [name for name, s in flat.items() if mine[name] != s] == []
    assert len(table.failures) < 0.01 * len(table)
