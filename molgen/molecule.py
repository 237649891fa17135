"""Molecules as padded tensors, and the way to and from RDKit.

A batch of B molecules of at most N atoms is five tensors. Row b holds atoms 0..n_b-1; the rest is
padding, marked by `mask` and zero everywhere else:

    numbers    (B, N)     int64    atomic number 1..118, 0 = padding
    positions  (B, N, 3)  float32  angstrom
    charges    (B, N)     int64    formal charge
    bonds      (B, N, N)  int64    Kekulé bond order 0..3, symmetric, zero diagonal
    mask       (B, N)     bool

All hydrogens are explicit atoms and aromatic bonds do not exist: a molecule is what its Lewis
structure says, so that an open valence is an open valence and not a hydrogen left unsaid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from driftworks.errors import UserError

if TYPE_CHECKING:
    from rdkit.Chem import Mol

__all__ = ["Molecules", "Unconvertible"]

Index = int | slice | Sequence[int] | np.ndarray | Tensor


class Unconvertible(UserError):
    """A molecule that is no explicit 3D Lewis structure; `reason` is a short countable name."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Molecules:
    """B molecules padded to N atoms; the tensors and their meaning stand in the module's head.

    Raises `UserError` where the shapes do not fit together.
    """

    numbers: Tensor
    positions: Tensor
    charges: Tensor
    bonds: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.numbers.dim() != 2:
            raise UserError(f"numbers has shape {tuple(self.numbers.shape)}, expected (B, N)")
        b, n = self.numbers.shape
        expected = {"positions": (b, n, 3), "charges": (b, n), "bonds": (b, n, n), "mask": (b, n)}
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise UserError(f"{name} has shape {found}, expected {shape}")

    def __len__(self) -> int:
        return int(self.numbers.shape[0])

    def __repr__(self) -> str:
        counts = self.atom_counts
        if not len(self):
            return "Molecules(0)"
        return f"Molecules({len(self)}, atoms {int(counts.min())}-{int(counts.max())})"

    @property
    def device(self) -> torch.device:
        return self.numbers.device

    @property
    def atom_counts(self) -> Tensor:
        """Atoms of each molecule, (B,) int64."""
        return self.mask.sum(dim=1)

    @property
    def max_atoms(self) -> int:
        """N, the padded size."""
        return int(self.numbers.shape[1])

    def to(self, device: torch.device | str) -> Molecules:
        return Molecules(*(getattr(self, f.name).to(device) for f in fields(self)))

    def __getitem__(self, index: Index) -> Molecules:
        """A batch of the chosen molecules (a batch of one for an integer), padding unchanged."""
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"molecule {index} of {len(self)}")
            index = [int(index)]
        if isinstance(index, (Sequence, np.ndarray)):
            index = torch.as_tensor(np.asarray(index))
            if not index.numel():
                index = index.long()
        if isinstance(index, Tensor):
            index = index.to(self.device)
        return Molecules(*(getattr(self, f.name)[index] for f in fields(self)))

    def __iter__(self) -> Iterator[Molecules]:
        return (self[i] for i in range(len(self)))

    def padded(self, atoms: int) -> Molecules:
        """The same molecules padded (or trimmed of padding) to `atoms` >= the largest of them."""
        largest = int(self.atom_counts.max()) if len(self) else 0
        if atoms < largest:
            raise UserError(f"cannot pad to {atoms} atoms: the largest molecule has {largest}")
        have = min(self.max_atoms, atoms)

        def fit(x: Tensor, dims: int) -> Tensor:
            shape = list(x.shape)
            shape[1 : 1 + dims] = [atoms] * dims
            out = x.new_zeros(shape)
            area = (slice(None),) + (slice(have),) * dims
            out[area] = x[area]
            return out

        return Molecules(
            fit(self.numbers, 1),
            fit(self.positions, 1),
            fit(self.charges, 1),
            fit(self.bonds, 2),
            fit(self.mask, 1),
        )

    @staticmethod
    def cat(batches: Sequence[Molecules]) -> Molecules:
        """Batches one after the other, padded to the largest N among them."""
        if not batches:
            return Molecules.empty()
        n = max(b.max_atoms for b in batches)
        wide = [b if b.max_atoms == n else b.padded(n) for b in batches]
        names = [f.name for f in fields(Molecules)]
        return Molecules(*(torch.cat([getattr(b, name) for b in wide]) for name in names))

    @staticmethod
    def empty(count: int = 0, atoms: int = 0) -> Molecules:
        """`count` rows of padding; the start of every conversion."""
        return Molecules(
            torch.zeros(count, atoms, dtype=torch.int64),
            torch.zeros(count, atoms, 3),
            torch.zeros(count, atoms, dtype=torch.int64),
            torch.zeros(count, atoms, atoms, dtype=torch.int64),
            torch.zeros(count, atoms, dtype=torch.bool),
        )

    @staticmethod
    def from_table(table: Any, rows: Sequence[int] | np.ndarray | None = None) -> Molecules:
        """Rows of a `driftworks.data` molecule table (ragged arrays), in the order given."""
        offsets = np.asarray(table.atom_offsets)
        bond_offsets = np.asarray(table.bond_offsets)
        index = np.arange(len(offsets) - 1) if rows is None else np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        counts = (offsets[index + 1] - offsets[index]).astype(np.int64)
        out = Molecules.empty(len(index), int(counts.max()) if len(index) else 0)
        row, atom = _ragged(counts)
        source = np.repeat(offsets[index], counts) + atom
        row_t, atom_t = torch.from_numpy(row), torch.from_numpy(atom)

        def take(x: Any) -> Tensor:
            return torch.from_numpy(np.asarray(x[source]))

        out.numbers[row_t, atom_t] = take(table.numbers).long()
        out.positions[row_t, atom_t] = take(table.positions).float()
        out.charges[row_t, atom_t] = take(table.charges).long()
        out.mask[row_t, atom_t] = True
        bond_counts = (bond_offsets[index + 1] - bond_offsets[index]).astype(np.int64)
        row, bond = _ragged(bond_counts)
        chosen = np.asarray(table.bonds[np.repeat(bond_offsets[index], bond_counts) + bond])
        b, i, j, order = (torch.from_numpy(x.astype(np.int64)) for x in (row, *chosen.T))
        out.bonds[b, i, j] = order
        out.bonds[b, j, i] = order
        return out

    @staticmethod
    def from_rdkit(mols: Iterable[Mol | None], failures: dict[str, int] | None = None) -> Molecules:
        """RDKit molecules with a conformer and all hydrogens explicit; aromatic bonds kekulised.

        Nothing is added silently. A molecule that cannot be taken as it stands (reason "missing",
        "no conformer", "implicit hydrogens", "kekulize", "bond type" or "element") raises
        `Unconvertible`; where a dict is given as `failures` it is left out and counted there.
        """
        records = []
        for position, mol in enumerate(mols):
            try:
                records.append(_record(mol, position))
            except Unconvertible as problem:
                if failures is None:
                    raise
                failures[problem.reason] = failures.get(problem.reason, 0) + 1
        out = Molecules.empty(len(records), max((len(r[0]) for r in records), default=0))
        for k, (numbers, positions, charges, bonds) in enumerate(records):
            n = len(numbers)
            out.numbers[k, :n] = torch.tensor(numbers, dtype=torch.int64)
            out.positions[k, :n] = torch.from_numpy(positions).float()
            out.charges[k, :n] = torch.tensor(charges, dtype=torch.int64)
            out.mask[k, :n] = True
            for i, j, order in bonds:
                out.bonds[k, i, j] = out.bonds[k, j, i] = order
        return out

    def to_rdkit(self, index: int) -> Mol:
        """Molecule `index` as it stands: not sanitised, no implicit hydrogens, one conformer.

        Atoms keep their order. Bonds are read above the diagonal. Raises `UserError` for an
        atomic number outside 1..118 or a bond order outside 0..3.
        """
        from rdkit import Chem

        keep = self.mask[index].nonzero()[:, 0]
        numbers = self.numbers[index][keep].tolist()
        charges = self.charges[index][keep].tolist()
        bonds = self.bonds[index][keep][:, keep].triu(1)
        positions = self.positions[index][keep].detach().double().cpu().numpy()
        mol = Chem.RWMol()
        for number, charge in zip(numbers, charges, strict=True):
            if not 1 <= number <= 118:
                raise UserError(f"molecule {index} has an atomic number {number}, not in 1..118")
            atom = Chem.Atom(number)
            atom.SetFormalCharge(charge)
            atom.SetNoImplicit(True)
            mol.AddAtom(atom)
        kinds = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
        for i, j in bonds.nonzero().tolist():
            order = int(bonds[i, j])
            if order not in kinds:
                raise UserError(f"molecule {index} has a bond of order {order}, not in 0..3")
            mol.AddBond(i, j, kinds[order])
        conformer = Chem.Conformer(len(numbers))
        conformer.Set3D(True)
        if len(numbers):
            conformer.SetPositions(np.ascontiguousarray(positions))
        mol.AddConformer(conformer, assignId=True)
        return mol.GetMol()

    def rdkit_mols(self) -> list[Mol]:
        """All molecules through `to_rdkit`."""
        host = self.to("cpu")
        return [host.to_rdkit(i) for i in range(len(host))]


def _ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and place within the row of every entry of a ragged array with these row lengths."""
    row = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    start = np.repeat(np.cumsum(counts) - counts, counts)
    return row, np.arange(len(row), dtype=np.int64) - start


_Record = tuple[list[int], np.ndarray, list[int], list[tuple[int, int, int]]]


def _record(mol: Mol | None, position: int) -> _Record:
    from rdkit import Chem

    if mol is None:
        raise Unconvertible("missing", f"molecule {position} is None")
    if not mol.GetNumConformers():
        raise Unconvertible("no conformer", f"molecule {position} has no 3D coordinates")
    if any(bond.GetIsAromatic() for bond in mol.GetBonds()):
        mol = Chem.Mol(mol)
        try:
            Chem.Kekulize(mol, clearAromaticFlags=True)
        except Chem.KekulizeException as error:
            raise Unconvertible("kekulize", f"molecule {position}: {error}") from None
    if any(a.GetNumExplicitHs() or _implicit(a) for a in mol.GetAtoms()):
        raise Unconvertible(
            "implicit hydrogens",
            f"molecule {position} has implicit hydrogens; Chem.AddHs(mol, addCoords=True) first",
        )
    orders = {Chem.BondType.SINGLE: 1, Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3}
    bonds = []
    for bond in mol.GetBonds():
        if bond.GetBondType() not in orders:
            kind = str(bond.GetBondType()).lower()
            raise Unconvertible("bond type", f"molecule {position} has a bond of type {kind}")
        order = orders[bond.GetBondType()]
        bonds.append((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), order))
    numbers = [a.GetAtomicNum() for a in mol.GetAtoms()]
    if not all(1 <= z <= 118 for z in numbers):
        raise Unconvertible("element", f"molecule {position} has an atom of no element")
    charges = [a.GetFormalCharge() for a in mol.GetAtoms()]
    return numbers, mol.GetConformer().GetPositions(), charges, bonds


def _implicit(atom: Any) -> int:
    """Hydrogens that RDKit would add; an atom never asked about before is asked now."""
    if atom.GetNoImplicit():
        return 0
    if atom.NeedsUpdatePropertyCache():
        atom.UpdatePropertyCache(strict=False)
    return atom.GetNumImplicitHs()
