"""Real molecules for the tests of ``molgen``: from SMILES, from the CCD, from QM9 if present."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from rdkit.Chem import Mol

    from driftworks.data import MoleculeTable
    from driftworks.molgen.molecule import Molecules

SMILES = (
    "C", "N", "O", "C#N", "C=O", "CCO", "CC(=O)O", "c1ccccc1", "c1cc[nH]c1", "NCC(=O)O", "FC(F)F",
    "C1CC1", "C12CC1C2", "[NH3+]CC([O-])=O", "[C-]#[N+]C", "O=[N+]([O-])C", "N#CC#N", "c1ncncc1O",
    "CS(C)=O", "OP(O)(O)=O", "ClC=CBr", "C1CCCCCCC1", "OB(O)C", "C[Si](C)(C)C", "[N-]=[N+]=NC",
    "CC(C)(C)OC(=O)NC", "C1=CC2CC2O1", "[O-][n+]1ccccc1", "C[N+](C)(C)[O-]", "OC1CC1C#C",
)  # fmt: skip

COMPONENTS = ("CFF", "IBP", "TRP", "ATP", "AMP", "STI", "BTN", "ASA", "TYL", "HC4", "GLC", "SAM")


def embed(smiles: str) -> Mol:
    """The molecule with all hydrogens and coordinates, the same every time."""
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom

    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    settings = rdDistGeom.ETKDGv3()
    settings.randomSeed = 7
    assert rdDistGeom.EmbedMolecule(mol, settings) == 0, smiles
    return mol


@pytest.fixture(scope="session")
def build() -> Callable[[Sequence[str]], Molecules]:
    """SMILES to a batch of molecules with coordinates."""
    from driftworks.molgen.molecule import Molecules

    return lambda smiles: Molecules.from_rdkit([embed(s) for s in smiles])


@pytest.fixture(scope="session")
def small(build: Callable[[Sequence[str]], Molecules]) -> Molecules:
    """Thirty small strictly valid molecules of many kinds; row i is ``SMILES[i]``."""
    return build(SMILES)


@pytest.fixture(scope="session")
def ccd_mols() -> list[Mol]:
    """Molecules of the PDB's Chemical Component Dictionary as RDKit has them, unsanitised."""
    info = pytest.importorskip("biotite.structure.info")
    to_mol = pytest.importorskip("biotite.interface.rdkit").to_mol
    mols = []
    for name in COMPONENTS:
        mol = to_mol(info.residue(name))
        for atom in mol.GetAtoms():
            atom.SetNoImplicit(True)
        mols.append(mol)
    return mols


@pytest.fixture(scope="session")
def qm9(data_dir: Path) -> MoleculeTable:
    """The whole of QM9 as a table."""
    from driftworks.data.qm9 import qm9

    path = data_dir / "qm9.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return qm9(path, progress=False)


@pytest.fixture(scope="session")
def qm9_rows(qm9: MoleculeTable) -> np.ndarray:
    """Rows of 3,000 clean QM9 molecules drawn with a fixed seed."""
    return np.random.default_rng(0).choice(qm9.rows(clean=True), 3000, replace=False)


@pytest.fixture(scope="session")
def qm9_sample(qm9: MoleculeTable, qm9_rows: np.ndarray) -> Molecules:
    """The molecules of `qm9_rows`."""
    from driftworks.molgen.molecule import Molecules

    return Molecules.from_table(qm9, qm9_rows)
