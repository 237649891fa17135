"""What generated molecular graphs are worth, without correcting any of them.

    validity        sanitises: valences, Kekulé structures and aromaticity (RDKit, `SanitizeMol`)
    published       passes RDKit's valence check alone, the "validity w/o correction" of GDSS and
                    its followers; never below the first
    connected       validity and a single fragment

Published tables reach 100 % by weakening bonds and keeping the largest fragment, and divide by the
molecules that are left; here the denominator is what was requested. Two molecules are the same when
their canonical SMILES without stereochemistry are.

The Fréchet ChemNet distance (Preuer et al., J. Chem. Inf. Model. 2018) compares means and
covariances of 512 activations, so it is biased upward by about 700 / n for n molecules: only values
of one n, best 10,000, can be compared. It needs the optional package ``fcd_torch``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from driftworks.errors import UserError

if TYPE_CHECKING:
    from rdkit.Chem import Mol
    from scipy.sparse import csr_array

__all__ = ["Verdict", "canonical", "check", "fcd", "labelled"]

#: Below this many molecules the bias of the Fréchet distance is of the size of what it measures.
FEW = 1000


@dataclass(frozen=True)
class Verdict:
    """smiles: canonical, without stereochemistry, of a valid molecule, else None; connected: valid
    and one fragment; published: passes the valence check alone; reason: "" or why it is not valid
    """

    smiles: str | None
    connected: bool
    published: bool
    reason: str

    @property
    def valid(self) -> bool:
        return self.smiles is not None


def check(mol: Mol | None) -> Verdict:
    """Look at a molecule without changing it; None is a molecule that could not be made."""
    if mol is None:
        return Verdict(None, False, False, "missing")
    if not mol.GetNumAtoms():
        return Verdict(None, False, False, "empty")
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        try:
            Chem.SanitizeMol(Chem.Mol(mol), sanitizeOps=Chem.SanitizeFlags.SANITIZE_PROPERTIES)
        except ValueError:  # RDKit's chemical errors are of this kind
            return Verdict(None, False, False, "valence")
        copy = Chem.Mol(mol)
        try:
            Chem.SanitizeMol(copy)
        except ValueError:
            return Verdict(None, False, True, "kekulize")
        # read back, so that hydrogens written out and the order of atoms make no difference
        smiles = canonical(Chem.MolToSmiles(copy, isomericSmiles=False))
        if smiles is None:
            return Verdict(None, False, True, "smiles")
    return Verdict(smiles, "." not in smiles, True, "")


def canonical(smiles: str) -> str | None:
    """Canonical SMILES without stereochemistry; None where RDKit cannot read it."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        return None if mol is None else Chem.MolToSmiles(mol, isomericSmiles=False)


def labelled(smiles: Iterable[str]) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """(atomic numbers, bonds) of each molecule, as the published tables label them for NSPDK.

    Bonds are whole numbers, 1.5 cut to 1: aromatic and single bonds have one label.
    """
    from rdkit import Chem

    out = []
    for text in smiles:
        mol = Chem.MolFromSmiles(text)
        if mol is None:
            raise UserError(f"cannot read the SMILES {text!r}")
        n = mol.GetNumAtoms()
        bonds = np.zeros((n, n), np.int64)
        for bond in mol.GetBonds():
            i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            bonds[i, j] = bonds[j, i] = int(bond.GetBondTypeAsDouble())
        out.append((np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()]), bonds))
    return out


def nspdk_features(smiles: Sequence[str]) -> csr_array:
    """NSPDK feature rows of molecules, labels as in the published tables."""
    from driftworks.graphgen.nspdk import features

    return features(labelled(smiles))


def fcd(smiles: Sequence[str], reference: Sequence[str]) -> tuple[float, str]:
    """Fréchet ChemNet distance and a note that says of how many molecules.

    Raises `UserError` when ``fcd_torch`` is not installed or a side has fewer than two molecules.
    """
    if min(len(smiles), len(reference)) < 2:
        raise UserError(f"FCD of {len(smiles)} molecules against {len(reference)} is not defined")
    import torch

    try:
        from fcd_torch import FCD
    except ImportError as error:
        raise UserError("FCD needs fcd_torch: pip install 'driftworks[fcd]'") from error
    with torch.random.fork_rng(devices=[]):  # its loader draws from the global generator
        value = float(FCD(device="cpu", n_jobs=1, canonize=False)(list(reference), list(smiles)))
    note = f"FCD of n = {len(smiles)} molecules against {len(reference)}"
    least = min(len(smiles), len(reference))
    if least < FEW:
        note += f"; with n < {FEW} its bias (about 700 / n = {700 / least:.2f}) outweighs the value"
    return value, note
