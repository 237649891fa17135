"""Atom and molecule stability in the two definitions that the literature reports.

They are different quantities with one name, and both are kept as published so that numbers can be
compared; neither says that a molecule is right (`driftworks.molgen.validity` does).

*From bonds* (MiDi, Vignac et al. 2023; FlowMol, Dunn & Koes 2024): the sum of the generated bond
orders of an atom is looked up under its element and formal charge. The table allows the neutral
carbon with three bonds and the neutral nitrogen with two, which are radicals; a charge that it does
not list is looked up as neutral; net charge and connectivity are not asked about.

*From distances* (G-SchNet, Gebauer et al. 2019; EDM, Hoogeboom et al. 2022): generated bonds are
ignored. Two atoms are bonded when their distance is below a typical single-bond length plus 10 pm,
doubly below the double-bond length plus 5, triply below the triple-bond length plus 3, and an atom
is stable when its bond orders sum to its usual valence. Real QM9 reaches 99.4 % of atoms and 95.3 %
of molecules.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from driftworks.molgen.molecule import Molecules

__all__ = ["BOND_TABLE", "DISTANCE_ELEMENTS", "stable_by_bonds", "stable_by_distances"]

_ANY = None
#: atomic number -> {formal charge (None: any) -> valences}, the table of MiDi and FlowMol.
BOND_TABLE: dict[int, dict[int | None, tuple[int, ...]]] = {
    1: {0: (1,), 1: (0,), -1: (0,)},
    5: {_ANY: (3,)},
    6: {0: (3, 4), 1: (3,), -1: (3,)},
    7: {0: (2, 3), 1: (2, 3, 4), -1: (2,)},
    8: {0: (2,), 1: (3,), -1: (1,)},
    9: {0: (1,), -1: (0,)},
    13: {_ANY: (3,)},
    14: {_ANY: (4,)},
    15: {0: (3, 5), 1: (4,)},
    16: {0: (2, 6), 1: (2, 3), 2: (4,), 3: (5,), -1: (3,)},
    17: {_ANY: (1,)},
    33: {_ANY: (3,)},
    34: {_ANY: (2, 4, 6)},
    35: {0: (1,), 1: (2,)},
    53: {_ANY: (1,)},
    80: {_ANY: (1, 2)},
    83: {_ANY: (3, 5)},
}

#: Elements that `stable_by_distances` knows: H C N O F.
DISTANCE_ELEMENTS = (1, 6, 7, 8, 9)

# Typical bond lengths [pm] by order, as G-SchNet and EDM took them from wiredchemist.com.
_SINGLE = {
    (1, 1): 74, (1, 6): 109, (1, 7): 101, (1, 8): 96, (1, 9): 92,
    (6, 6): 154, (6, 7): 147, (6, 8): 143, (6, 9): 135,
    (7, 7): 145, (7, 8): 140, (7, 9): 136,
    (8, 8): 148, (8, 9): 142,
    (9, 9): 142,
}  # fmt: skip
_DOUBLE = {(6, 6): 134, (6, 7): 129, (6, 8): 120, (7, 7): 125, (7, 8): 121, (8, 8): 121}
_TRIPLE = {(6, 6): 120, (6, 7): 116, (6, 8): 113, (7, 7): 110}
_MARGINS = (10, 5, 3)
_VALENCE = {1: 1, 6: 4, 7: 3, 8: 2, 9: 1}


@lru_cache(maxsize=8)
def _bond_table(device: torch.device) -> Tensor:
    """Allowed (element, charge + 8, valence) with the published fallbacks, bool (119, 17, 9)."""
    table = torch.zeros(119, 17, 9, dtype=torch.bool)
    for z, rows in BOND_TABLE.items():
        for charge in range(-8, 9):
            row = rows.get(charge, rows.get(_ANY, rows.get(0, ())))
            table[z, charge + 8, list(row)] = True
    return table.to(device)


def stable_by_bonds(molecules: Molecules) -> Tensor:
    """Atoms stable in the sense of MiDi and FlowMol, (B, N) bool; padding is False.

    An element outside the table is never stable.
    """
    pair = molecules.mask[:, :, None] & molecules.mask[:, None, :]
    upper = molecules.bonds.triu(1) * pair
    valence = (upper + upper.transpose(1, 2)).sum(dim=2)
    table = _bond_table(molecules.device)
    index = molecules.numbers.clamp(0, 118), molecules.charges.clamp(-8, 8) + 8, valence.clamp(0, 8)
    return table[index] & (valence >= 0) & (valence <= 8) & molecules.mask


@lru_cache(maxsize=8)
def _thresholds(device: torch.device) -> Tensor:
    """Largest distance of a bond of order 1, 2, 3 by element pair [pm], (3, 119, 119); 0 = none."""
    out = torch.zeros(3, 119, 119)
    for order, (lengths, margin) in enumerate(
        zip((_SINGLE, _DOUBLE, _TRIPLE), _MARGINS, strict=True)
    ):
        for (a, b), length in lengths.items():
            out[order, a, b] = out[order, b, a] = length + margin
    return out.to(device)


def stable_by_distances(molecules: Molecules, chunk: int = 512) -> Tensor:
    """Atoms stable in the sense of EDM, (B, N) bool; padding is False.

    Only for molecules of `DISTANCE_ELEMENTS`; another element has no bonds and is never stable.
    """
    limits = _thresholds(molecules.device)
    usual = torch.full((119,), -1, device=molecules.device)
    usual[list(_VALENCE)] = torch.tensor(list(_VALENCE.values()), device=molecules.device)
    parts = []
    for start in range(0, len(molecules), chunk):
        part = molecules[start : start + chunk]
        z = part.numbers.clamp(0, 118)
        # Not cdist: its matrix-product form is off by picometres near a threshold.
        apart = (part.positions[:, :, None] - part.positions[:, None, :]).norm(dim=3) * 100
        order = torch.zeros_like(part.bonds)
        for level in range(3):
            limit = limits[level][z[:, :, None], z[:, None, :]]
            order += (apart < limit) & (order == level)
        order *= part.mask[:, :, None] & part.mask[:, None, :]
        order.diagonal(dim1=1, dim2=2).zero_()
        parts.append((order.sum(dim=2) == usual[z]) & part.mask)
    return torch.cat(parts) if parts else molecules.mask.clone()
