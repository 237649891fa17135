r"""The molecular process: positions flow on a straight line, tokens are unmasked.

    pos     (B, N, 3)  zero-centre-of-mass, linear path x_t = t x_1 + (1 - t) x_0, in units of
                       `SCALE` angstrom so that the data have about unit variance
    atom    (B, N)     element tokens
    charge  (B, N)     formal-charge tokens
    bond    (B, N, N)  symmetric bond-order tokens

Noise has no atom order and no orientation, so before a bridge is drawn x_0 is permuted (linear sum
assignment) and rotated (Kabsch, det R = +1) onto x_1: the straight paths then hardly cross (Klein,
Kraemer & Noe 2023, "Equivariant flow matching"). Both maps leave the noise distribution unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from driftworks.core.ctmc import Masking
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.spaces import Centred, PairTokens, Tokens
from driftworks.errors import UserError

if TYPE_CHECKING:
    from driftworks.data.table import MoleculeTable
    from driftworks.molgen.molecule import Molecules
    from driftworks.molgen.network import NetConfig

__all__ = ["SCALE", "align", "kabsch", "molecular_process", "to_molecules", "to_state"]

SCALE = 1.7  # angstrom: the standard deviation of a QM9 coordinate about its centre


def molecular_process(config: NetConfig) -> Process:
    """The process whose vocabulary is ``config``'s."""
    return Process(
        {
            "pos": Part(Centred(), Path.linear()),
            "atom": Part(Tokens(len(config.elements)), Masking()),
            "charge": Part(Tokens(len(config.charges)), Masking()),
            "bond": Part(PairTokens(len(config.bond_orders)), Masking()),
        }
    )


def kabsch(x: Tensor, y: Tensor) -> Tensor:
    """The rotation R (B, 3, 3), det R = +1, that minimises |x R - y| for centred (B, N, 3).

    Kabsch 1976; the sign of the smallest singular direction is flipped where a reflection would
    fit better. Masked atoms must be zero in both.
    """
    u, _, vt = torch.linalg.svd(x.transpose(1, 2) @ y)
    sign = torch.linalg.det(u @ vt).sign()
    u = torch.cat((u[..., :2], u[..., 2:] * sign[:, None, None]), -1)
    return u @ vt


def align(noise: Tensor, data: Tensor, counts: Tensor) -> Tensor:
    """Permute and rotate ``noise`` (B, N, 3) onto ``data``; ``counts`` (B,) atoms each."""
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(data, noise).square_().numpy()
    order = np.tile(np.arange(noise.shape[1]), (len(noise), 1))
    for row, n in enumerate(counts.tolist()):
        order[row, :n] = linear_sum_assignment(cost[row, :n, :n])[1]
    noise = noise.gather(1, torch.from_numpy(order).unsqueeze(-1).expand_as(noise))
    return noise @ kabsch(noise, data)


def _codes(values: Tensor, vocabulary: tuple[int, ...], what: str) -> Tensor:
    """Index of every value in a vocabulary; an unknown value is an error that names it."""
    table = torch.tensor(vocabulary, device=values.device)
    match = values.unsqueeze(-1) == table
    unknown = ~match.any(-1)
    if bool(unknown.any()):
        raise UserError(
            f"{what} {sorted(set(values[unknown].tolist()))} are outside the model's {vocabulary}"
        )
    return match.to(torch.int8).argmax(-1)


def to_state(molecules: Molecules, config: NetConfig) -> dict[str, Tensor]:
    """Molecules as a state of the process at t = 1. Raises `UserError` on unknown vocabulary."""
    mask = molecules.mask
    count = mask.sum(1).view(-1, 1, 1)
    pos = molecules.positions / SCALE
    pos = (pos - (pos * mask.unsqueeze(-1)).sum(1, keepdim=True) / count) * mask.unsqueeze(-1)
    first = torch.full_like(molecules.numbers, config.elements[0])
    return {
        "pos": pos,
        "atom": _codes(torch.where(mask, molecules.numbers, first), config.elements, "elements"),
        "charge": _codes(molecules.charges, config.charges, "formal charges")
        * mask,  # padding is class 0 in every state
        "bond": _codes(molecules.bonds, config.bond_orders, "bond orders"),
    }


def to_molecules(state: dict[str, Tensor], mask: Tensor, config: NetConfig) -> Molecules:
    """A state at t = 1 as molecules, on its device, positions in angstrom."""
    from driftworks.molgen.molecule import Molecules

    def decode(tokens: Tensor, vocabulary: tuple[int, ...]) -> Tensor:
        return torch.tensor(vocabulary, device=tokens.device)[tokens]

    pairs = mask.unsqueeze(1) & mask.unsqueeze(2)
    return Molecules(
        numbers=decode(state["atom"], config.elements) * mask,
        positions=(state["pos"] * SCALE * mask.unsqueeze(-1)).float(),
        charges=decode(state["charge"], config.charges) * mask,
        bonds=decode(state["bond"], config.bond_orders) * pairs,
        mask=mask,
    )


def supported_rows(table: MoleculeTable, config: NetConfig, max_atoms: int) -> np.ndarray:
    """Rows of a table that the vocabulary covers, int64; the rest cannot be learned from."""
    counts = table.atom_counts
    bad_atom = ~np.isin(table.numbers, config.elements) | ~np.isin(table.charges, config.charges)
    bad = np.add.reduceat(bad_atom, table.atom_offsets[:-1]) > 0
    return np.flatnonzero(~bad & (counts <= max_atoms) & (counts >= 2))
