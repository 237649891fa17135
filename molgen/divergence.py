"""How far generated molecules are from reference molecules, as distributions.

A molecule contributes counts: its elements, its number of atoms, its bond orders, its ring sizes,
its bond lengths by kind (two elements and an order). Counts of all molecules make a histogram, and
two histograms p, q are compared by the Jensen-Shannon divergence in bits,

    JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2,          0 (equal) .. 1 (disjoint).

Bond lengths are compared kind by kind, over the kinds that make up at least 1 % of the reference's
bonds, and averaged with the reference's shares; a kind that was never generated counts as 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from driftworks.core.bootstrap import Statistic
from driftworks.molgen.molecule import Molecules
from driftworks.molgen.validity import MAX_RINGS

__all__ = ["Profile", "divergences", "jensen_shannon"]

RING_SIZES = 10  # 0: a molecule without rings; 3..8 atoms; 9: nine and more
EDGES = np.arange(0.6, 2.6001, 0.02)  # bond lengths [angstrom]; shorter and longer have bins too
LEAST_SHARE = 0.01

Kind = tuple[int, int, int]


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Divergence [bit] of histograms (..., K) and (K,), normalised here; NaN for an empty one."""
    totals = p.sum(axis=-1, keepdims=True), q.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        p, q = p / totals[0], q / totals[1]

    def entropy(x: np.ndarray) -> np.ndarray:
        return -(x * np.log2(np.where(x > 0, x, 1.0))).sum(axis=-1)

    js = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    return np.clip(js, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Profile:
    """Counts of every molecule: rows of (B, K) arrays by what is counted."""

    elements: np.ndarray
    atom_counts: np.ndarray
    bond_orders: np.ndarray
    rings: np.ndarray
    bond_lengths: dict[Kind, np.ndarray]

    @staticmethod
    def of(molecules: Molecules, kinds: list[Kind] | None = None, atoms: int = 0) -> Profile:
        """Count B molecules; `kinds` limits the bond lengths, `atoms` widens the size histogram."""
        host = molecules.to("cpu")
        count = len(host)
        mask = host.mask
        row = mask.nonzero()[:, 0].numpy()
        elements = np.zeros((count, 119))
        np.add.at(elements, (row, host.numbers[mask].clamp(0, 118).numpy()), 1)
        sizes = np.zeros((count, max(atoms, host.max_atoms) + 1))
        sizes[np.arange(count), host.atom_counts.numpy()] = 1
        pair = mask[:, :, None] & mask[:, None, :]
        owner, i, j = (host.bonds.triu(1) * pair).nonzero(as_tuple=True)
        order = host.bonds[owner, i, j].numpy()
        length = (host.positions[owner, i] - host.positions[owner, j]).norm(dim=1).numpy()
        place = np.digitize(length, EDGES)
        one, two = host.numbers[owner, i].numpy(), host.numbers[owner, j].numpy()
        low, high, b = np.minimum(one, two), np.maximum(one, two), owner.numpy()
        orders = np.zeros((count, 4))
        np.add.at(orders, (b, order.clip(0, 3)), 1)
        code = (low * 128 + high) * 8 + order
        if kinds is None:
            kinds = [(int(c) >> 10, int(c) >> 3 & 127, int(c) & 7) for c in np.unique(code)]
        lengths = {}
        for kind in kinds:
            chosen = code == (kind[0] * 128 + kind[1]) * 8 + kind[2]
            table = np.zeros((count, len(EDGES) + 1))
            np.add.at(table, (b[chosen], place[chosen]), 1)
            lengths[kind] = table
        return Profile(elements, sizes, orders, _rings(host), lengths)

    def total(self) -> Profile:
        """The histograms of all molecules together, one row each."""
        sums = {kind: table.sum(axis=0, keepdims=True) for kind, table in self.bond_lengths.items()}
        rest = (self.elements, self.atom_counts, self.bond_orders, self.rings)
        elements, sizes, orders, rings = (x.sum(axis=0, keepdims=True) for x in rest)
        return Profile(elements, sizes, orders, rings, sums)


def _rings(molecules: Molecules) -> np.ndarray:
    from rdkit import Chem, rdBase

    out = np.zeros((len(molecules), RING_SIZES))
    with rdBase.BlockLogs():
        for k, mol in enumerate(molecules.rdkit_mols()):
            if mol.GetNumBonds() - mol.GetNumAtoms() >= MAX_RINGS:
                continue
            rings = [len(ring) for ring in Chem.GetSSSR(mol)]
            for size in rings:
                out[k, min(size, RING_SIZES - 1)] += 1
            out[k, 0] = not rings
    return out


def _widened(x: np.ndarray, width: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, width - x.shape[1])))


def _sum(parts: Iterator[Profile]) -> Profile:
    """Totals of several profiles with different bond kinds and sizes."""
    profiles = [part.total() for part in parts]
    width = max(p.atom_counts.shape[1] for p in profiles)
    lengths: dict[Kind, np.ndarray] = {}
    for p in profiles:
        for kind, table in p.bond_lengths.items():
            lengths[kind] = lengths.get(kind, 0) + table
    return Profile(
        np.sum([p.elements for p in profiles], axis=0),
        np.sum([_widened(p.atom_counts, width) for p in profiles], axis=0),
        np.sum([p.bond_orders for p in profiles], axis=0),
        np.sum([p.rings for p in profiles], axis=0),
        lengths,
    )


def divergences(
    molecules: Molecules, requested: int, reference: Iterator[Molecules]
) -> dict[str, Statistic]:
    """Statistics js_elements, js_atom_counts, js_bond_orders, js_rings and js_bond_lengths.

    `reference` comes in batches, to bound the memory. Failed molecules (`requested` minus B)
    contribute no counts.
    """
    target = _sum(Profile.of(batch) for batch in reference)
    bonds = {kind: float(table.sum()) for kind, table in target.bond_lengths.items()}
    total = sum(bonds.values())
    shares = {k: v / total for k, v in sorted(bonds.items()) if v >= LEAST_SHARE * total}
    ours = Profile.of(molecules, list(shares), target.atom_counts.shape[1] - 1)
    width = ours.atom_counts.shape[1]

    def failed(rows: np.ndarray) -> np.ndarray:
        return np.pad(rows, ((0, requested - len(rows)), (0, 0)))

    def statistic(rows: np.ndarray, reduce: Callable[[np.ndarray], np.ndarray]) -> Statistic:
        return Statistic(failed(rows), reduce, len(molecules), unit="bit", of="delivered")

    def against(histogram: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        return lambda sums: jensen_shannon(sums, histogram)

    pairs: dict[str, tuple[Any, Any]] = {
        "js_elements": (ours.elements, target.elements),
        "js_atom_counts": (ours.atom_counts, _widened(target.atom_counts, width)),
        "js_bond_orders": (ours.bond_orders, target.bond_orders),
        "js_rings": (ours.rings, target.rings),
    }
    out = {name: statistic(rows, against(goal[0])) for name, (rows, goal) in pairs.items()}
    if not shares:
        return out
    goals = [target.bond_lengths[kind][0] for kind in shares]
    weights = np.array(list(shares.values())) / sum(shares.values())

    def lengths(sums: np.ndarray) -> np.ndarray:
        parts = np.split(sums, len(goals), axis=1)
        each = [jensen_shannon(p, q) for p, q in zip(parts, goals, strict=True)]
        return weights @ np.nan_to_num(np.stack(each), nan=1.0)

    rows = np.concatenate([ours.bond_lengths[kind] for kind in shares], axis=1)
    return out | {"js_bond_lengths": statistic(rows, lengths)}


def batches(molecules: Molecules, size: int = 1024) -> Iterator[Molecules]:
    """A batch of molecules in pieces."""
    for start in range(0, len(molecules), size):
        yield molecules[torch.arange(start, min(start + size, len(molecules)))]
