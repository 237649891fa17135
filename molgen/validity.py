"""Strict validity: does a Lewis structure describe one closed-shell neutral molecule?

RDKit's sanitisation alone asks too little: it accepts two molecules side by side, ions, radicals,
a proton with eight bonds, and repairs a five-valent nitrogen before it looks. Strict means

    sanitises  and  one fragment  and  net charge 0  and  no unpaired electron  and
    every atom's (element, formal charge, valence) is in `VALENCES`,

valence being the sum of the Kekulé bond orders of the molecule as given. `VALENCES` holds
closed-shell combinations that RDKit itself accepts, so the last line implies the first and the
fourth: `strict_mask` needs only the table, connectivity and the charge, on tensors, without RDKit.
`check` goes the whole way and names the first test that fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from driftworks.molgen.molecule import Molecules

if TYPE_CHECKING:
    from rdkit.Chem import Mol

__all__ = ["REASONS", "VALENCES", "Verdict", "check", "connected_mask", "strict_mask", "valence_ok"]

#: What a molecule can fail on, in the order in which `check` asks; a strict one's reason is "".
REASONS = (
    "empty",
    "coordinates",
    "rings",
    "sanitize",
    "fragments",
    "charged",
    "radical",
    "valence",
)

#: Ring perception costs more than linear time in the number of independent rings (0.2 s at 300);
#: molecules have a few (C60: 31), a random dense graph of metal atoms thousands.
MAX_RINGS = 256

# Octet valences with the charge rule "as the isoelectronic neighbour" (Daylight Theory Manual 3.2,
# valence model; OpenSMILES 3.1.5), expanded octets for the third row and below as in RDKit's atomic
# data, and charge-separated halogen oxo-acids. Transition metals have no Lewis valence: none here.
_ROWS: tuple[tuple[tuple[int, ...], int, tuple[int, ...]], ...] = (
    # elements (atomic numbers), formal charge, valences
    ((1,), 0, (1,)),
    ((1,), 1, (0,)),
    ((1,), -1, (0,)),
    ((3, 11, 19), 0, (1,)),
    ((3, 11, 19), 1, (0,)),
    ((4, 12, 20), 0, (2,)),
    ((4, 12, 20), 2, (0,)),
    ((5, 13, 31, 49), 0, (3,)),
    ((5, 13, 31, 49), -1, (4,)),
    ((6, 14, 32, 50, 82), 0, (4,)),
    ((6, 14, 32, 50), 1, (3,)),
    ((6, 14, 32, 50), -1, (3,)),
    ((7,), 0, (3,)),
    ((15, 33, 51, 83), 0, (3, 5)),
    ((7, 15, 33, 51, 83), 1, (4,)),
    ((7,), -1, (2,)),
    ((15, 33, 51, 83), -1, (2, 6)),
    ((8,), 0, (2,)),
    ((16, 34, 52), 0, (2, 4, 6)),
    ((8,), 1, (3,)),
    ((16, 34, 52), 1, (3, 5)),
    ((8,), -1, (1,)),
    ((16, 34, 52), -1, (1, 3, 5)),
    ((9, 17, 35), 0, (1,)),
    ((53,), 0, (1, 3, 5)),
    ((9, 17, 35, 53), -1, (0,)),
    ((17, 35, 53), 1, (2,)),
    ((17, 35, 53), 2, (3,)),
    ((17, 35, 53), 3, (4,)),
    ((54,), 0, (2, 4, 6)),
)

#: (atomic number, formal charge) -> closed-shell valences.
VALENCES: dict[tuple[int, int], tuple[int, ...]] = {
    (z, charge): valences for elements, charge, valences in _ROWS for z in elements
}

_CHARGE = max(abs(charge) for _, charge in VALENCES)
_VALENCE = max(max(v) for v in VALENCES.values())


@dataclass(frozen=True)
class Verdict:
    """What `check` found; `reason` is "" for a strict molecule, else the first of `REASONS`."""

    rdkit: bool
    connected: bool
    neutral: bool
    closed_shell: bool
    valence: bool
    strict: bool
    reason: str


def check(mol: Mol | None) -> Verdict:
    """Judge one RDKit molecule; it is not changed, and no input makes this raise or hang.

    Hydrogens that RDKit counts as implicit count as present; atoms with NoImplicit (all that
    `Molecules.to_rdkit` makes) get none, so that an open valence is a radical. `rdkit` is plain
    `Chem.SanitizeMol`, repairs included; the other fields judge the molecule as given.
    """
    import numpy as np
    from rdkit import Chem, rdBase

    if mol is None or not mol.GetNumAtoms():
        return Verdict(False, False, False, False, False, False, "empty")
    with rdBase.BlockLogs():
        fragments = len(Chem.GetMolFrags(mol))
        rings = mol.GetNumBonds() - mol.GetNumAtoms() + fragments
        neutral = sum(atom.GetFormalCharge() for atom in mol.GetAtoms()) == 0
        sanitizes = rings <= MAX_RINGS and _sanitizes(mol)
        valence, closed_shell = _lewis(mol)
    finite = all(np.isfinite(c.GetPositions()).all() for c in mol.GetConformers())
    outcome = {
        "coordinates": bool(finite),
        "rings": rings <= MAX_RINGS,
        "sanitize": sanitizes,
        "fragments": fragments == 1,
        "charged": neutral,
        "radical": closed_shell,
        "valence": valence,
    }
    reason = next((name for name in REASONS[1:] if not outcome[name]), "")
    return Verdict(sanitizes, fragments == 1, neutral, closed_shell, valence, not reason, reason)


def _sanitizes(mol: Mol) -> bool:
    from rdkit import Chem

    try:
        Chem.SanitizeMol(Chem.Mol(mol))
    except (Chem.MolSanitizeException, RuntimeError, ValueError):
        return False
    return True


def _lewis(mol: Mol) -> tuple[bool, bool]:
    """(every atom in `VALENCES`, no unpaired electron) of the molecule as given."""
    from rdkit import Chem

    copy = Chem.Mol(mol)
    try:
        if any(bond.GetIsAromatic() for bond in copy.GetBonds()):
            Chem.Kekulize(copy, clearAromaticFlags=True)
        copy.UpdatePropertyCache(strict=False)
        Chem.AssignRadicals(copy)
    except (Chem.MolSanitizeException, RuntimeError, ValueError):
        return False, False
    electrons = 0
    valence = paired = True
    for atom in copy.GetAtoms():
        z, charge = atom.GetAtomicNum(), atom.GetFormalCharge()
        electrons += z - charge + atom.GetTotalNumHs()
        paired = paired and not atom.GetNumRadicalElectrons()
        valence = valence and atom.GetTotalValence() in VALENCES.get((z, charge), ())
    return valence, paired and electrons % 2 == 0


@lru_cache(maxsize=8)
def _table(device: torch.device) -> Tensor:
    """`VALENCES` as bool (119, charge + _CHARGE, valence); False is "not allowed"."""
    table = torch.zeros(119, 2 * _CHARGE + 1, _VALENCE + 1, dtype=torch.bool)
    for (z, charge), valences in VALENCES.items():
        for v in valences:
            table[z, charge + _CHARGE, v] = True
    return table.to(device)


def _bonds(molecules: Molecules) -> Tensor:
    """Bond orders above the diagonal mirrored, padding zeroed: what `to_rdkit` would build."""
    upper = molecules.bonds.triu(1) * (molecules.mask[:, :, None] & molecules.mask[:, None, :])
    return upper + upper.transpose(1, 2)


def valence_ok(molecules: Molecules) -> Tensor:
    """Which atoms have a closed-shell (element, charge, valence), (B, N) bool; padding is True."""
    return _valence_ok(molecules, _bonds(molecules))


def _valence_ok(molecules: Molecules, bonds: Tensor) -> Tensor:
    numbers, charges, valences = molecules.numbers, molecules.charges, bonds.sum(dim=2)
    inside = (numbers >= 1) & (numbers <= 118) & (charges.abs() <= _CHARGE)
    inside &= (valences >= 0) & (valences <= _VALENCE)
    inside &= ((bonds >= 0) & (bonds <= 3)).all(dim=2)
    element, charge = numbers.clamp(0, 118), charges.clamp(-_CHARGE, _CHARGE) + _CHARGE
    allowed = _table(numbers.device)[element, charge, valences.clamp(0, _VALENCE)]
    return (inside & allowed) | ~molecules.mask


def connected_mask(molecules: Molecules) -> Tensor:
    """Which molecules are one fragment (and not empty), (B,) bool."""
    return _connected(molecules, _bonds(molecules))


def _connected(molecules: Molecules, bonds: Tensor) -> Tensor:
    mask = molecules.mask
    n = molecules.max_atoms
    if not n or not len(molecules):
        return mask.any(dim=1)
    reach = (bonds != 0).float() + torch.eye(n, device=mask.device)
    steps = 1
    while steps < n - 1:
        reach = (reach @ reach).clamp(max=1.0)
        steps *= 2
    first = mask.float().argmax(dim=1)
    reached = reach[torch.arange(len(molecules), device=mask.device), first] > 0
    return (reached | ~mask).all(dim=1) & mask.any(dim=1)


def strict_mask(molecules: Molecules) -> Tensor:
    """Which molecules are strictly valid, (B,) bool on their device; equals `check(...).strict`."""
    bonds = _bonds(molecules)
    valence = _valence_ok(molecules, bonds).all(dim=1)
    neutral = (molecules.charges * molecules.mask).sum(dim=1) == 0
    finite = torch.isfinite(molecules.positions).all(dim=2)
    finite = (finite | ~molecules.mask).all(dim=1)
    rings = (bonds != 0).sum(dim=(1, 2)) // 2 - molecules.atom_counts + 1
    return valence & neutral & finite & (rings <= MAX_RINGS) & _connected(molecules, bonds)
