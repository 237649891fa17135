"""Chains: a padded batch of C-alpha traces, the object that the whole domain hands around.

A backbone is reduced to one point a residue, its C-alpha atom, in angstrom. Chains of different
lengths lie in one tensor as true prefixes; beyond a chain's end coordinates are zero and the mask
is False, and everything that reads a batch must give the same answer however much padding there is.

Residue numbers say where a chain is broken: consecutive residues whose numbers differ by one are
bonded, any other step is a gap. A label names the secondary-structure class that the model may be
conditioned on, with one value for "not stated".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from driftworks.data.backbones import CLASSES, Backbones
from driftworks.errors import UserError

__all__ = ["CLASSES", "NULL", "Chains"]

#: The label of a chain whose class is not stated.
NULL = CLASSES["unknown"]


@dataclass(frozen=True, eq=False)
class Chains:
    """B chains of up to L residues.

    ca: (B, L, 3) float32 [angstrom], zero where the mask is False
    mask: (B, L) bool, residues 0..n-1 of each chain
    ids: B names
    index: (B, L) int64 residue numbers, a step other than 1 is a chain break; zero beyond the end
    label: (B,) int64, values of `CLASSES`: 0 alpha, 1 beta, 2 mixed, 3 few, 4 unknown
    """

    ca: Tensor
    mask: Tensor
    ids: tuple[str, ...]
    index: Tensor
    label: Tensor

    @classmethod
    def of(
        cls,
        arrays: Sequence[ArrayLike],
        ids: Sequence[str] | None = None,
        labels: Sequence[int] | ArrayLike | None = None,
        index: Sequence[ArrayLike] | None = None,
        length: int | None = None,
    ) -> Chains:
        """Chains of separate (n, 3) arrays or tensors in angstrom.

        ids: names, ``chain0``, ``chain1``, ... by default
        labels: classes, `NULL` by default
        index: (n,) residue numbers of each chain, 0..n-1 by default
        length: the padded length, by default that of the longest chain

        Raises `UserError` for arrays of another shape, or lists that do not fit together. Values
        that are not finite are kept: a sampler that fails must be seen to fail.
        """
        points = [_points(values, row) for row, values in enumerate(arrays)]
        counts = [len(p) for p in points]
        longest = max(counts, default=0)
        if length is not None and length < longest:
            raise UserError(f"length = {length}, but a chain has {longest} residues")
        size = (len(points), longest if length is None else length)
        names = tuple(f"chain{row}" for row in range(size[0])) if ids is None else tuple(ids)
        if len(names) != size[0]:
            raise UserError(f"{len(names)} ids for {size[0]} chains")
        ca = torch.zeros(*size, 3)
        mask = torch.zeros(size, dtype=torch.bool)
        numbers = torch.zeros(size, dtype=torch.int64)
        if index is not None and len(index) != size[0]:
            raise UserError(f"residue numbers of {len(index)} chains for {size[0]} chains")
        for row, n in enumerate(counts):
            ca[row, :n] = torch.from_numpy(points[row])
            mask[row, :n] = True
            if index is None:
                numbers[row, :n] = torch.arange(n)
                continue
            given = np.asarray(index[row])
            if given.shape != (n,):
                raise UserError(
                    f"chain {row} has {n} residues and residue numbers of shape {given.shape}"
                )
            numbers[row, :n] = torch.from_numpy(given.astype(np.int64))
        return cls(ca, mask, names, numbers, _labels(labels, size[0]))

    @classmethod
    def from_backbones(cls, table: Backbones, rows: ArrayLike | None = None) -> Chains:
        """The C-alpha traces of rows of a table (all by default), with their classes as labels."""
        chosen = np.arange(len(table)) if rows is None else np.atleast_1d(np.asarray(rows))
        return cls.of(
            [table.ca(int(row)) for row in chosen],
            ids=[table.ids[int(row)] for row in chosen],
            labels=table.sse_class[chosen] if len(chosen) else None,
            index=[table.numbers(int(row)) for row in chosen],
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        if not len(self):
            return "Chains(none)"
        lengths = self.lengths
        span = f"{int(lengths.min())}-{int(lengths.max())}"
        return f"Chains({len(self)} of {span} residues, padded to {self.mask.shape[1]})"

    @property
    def lengths(self) -> Tensor:
        """(B,) int64 numbers of residues."""
        return self.mask.sum(dim=1)

    @property
    def bonded(self) -> Tensor:
        """(B, L - 1) bool: residues i and i + 1 both exist and are neighbours in the sequence."""
        both = self.mask[:, :-1] & self.mask[:, 1:]
        return both & (self.index[:, 1:] - self.index[:, :-1] == 1)

    def __getitem__(self, rows: Any) -> Chains:
        """The chains of an integer, a slice, a list of rows or a boolean vector; padding stays."""
        if isinstance(rows, (int, np.integer)):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"chain {rows} of {len(self)}")
            rows = [int(rows) % len(self)]
        picked = torch.arange(len(self))[_selector(rows)]
        where = picked.to(self.ca.device)
        return Chains(
            self.ca[where],
            self.mask[where],
            tuple(self.ids[k] for k in picked.tolist()),
            self.index[where],
            self.label[where],
        )

    def __iter__(self) -> Iterator[Chains]:
        return (self[row] for row in range(len(self)))

    def to(self, device: torch.device | str) -> Chains:
        """The same chains on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("ca", "mask", "index", "label")}
        return replace(self, **moved)

    def arrays(self) -> list[NDArray[np.float64]]:
        """The (n, 3) coordinates of each chain without padding, in angstrom."""
        points = self.ca.detach().cpu().numpy().astype(np.float64)
        return [p[:n] for p, n in zip(points, self.lengths.tolist(), strict=True)]

    def trimmed(self) -> Chains:
        """The same chains padded only to the longest of them."""
        longest = int(self.lengths.max()) if len(self) else 0
        cut = {name: getattr(self, name)[:, :longest] for name in ("ca", "mask", "index")}
        return replace(self, **cut)

    def blocks(self, cells: int) -> Iterator[tuple[Tensor, Chains]]:
        """Rows and their chains, trimmed, of similar length together, L^2 of all within `cells`.

        For work on all pairs of residues whose memory must not grow with the set.
        """
        lengths = self.lengths.cpu()
        order = lengths.argsort(descending=True, stable=True)
        start = 0
        while start < len(order):
            count = max(1, cells // max(int(lengths[order[start]]), 1) ** 2)
            rows = order[start : start + count]
            yield rows, self[rows].trimmed()
            start += count

    @staticmethod
    def cat(parts: Sequence[Chains]) -> Chains:
        """Batches one below the other, padded to the longest."""
        if not parts:
            return Chains.of([])
        longest = max(part.mask.shape[1] for part in parts)

        def padded(values: Tensor) -> Tensor:
            shape = (len(values), longest - values.shape[1], *values.shape[2:])
            return torch.cat([values, values.new_zeros(shape)], dim=1)

        return Chains(
            torch.cat([padded(part.ca) for part in parts]),
            torch.cat([padded(part.mask) for part in parts]),
            tuple(name for part in parts for name in part.ids),
            torch.cat([padded(part.index) for part in parts]),
            torch.cat([part.label for part in parts]),
        )


def _points(values: ArrayLike, row: int) -> NDArray[np.float32]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    out = np.array(values, np.float32)  # a copy: a batch never shares memory with its source
    if out.ndim != 2 or out.shape[1] != 3:
        raise UserError(f"chain {row} has coordinates of shape {out.shape}; expected (n, 3)")
    return out


def _labels(labels: ArrayLike | Sequence[int] | None, count: int) -> Tensor:
    if labels is None:
        return torch.full((count,), NULL)
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    given = np.asarray(labels, np.int64)
    if given.shape != (count,):
        raise UserError(f"labels of shape {given.shape} for {count} chains")
    wrong = given[(given < 0) | (given > NULL)]
    if wrong.size:
        choices = ", ".join(f"{code} {name}" for name, code in CLASSES.items())
        raise UserError(f"label {wrong[0]} is no secondary-structure class; choose from {choices}")
    return torch.from_numpy(given.copy())


def _selector(rows: Any) -> Any:
    """What a tensor can be indexed with."""
    if isinstance(rows, (slice, Tensor)):
        return rows.cpu() if isinstance(rows, Tensor) else rows
    given = np.asarray(rows)
    return torch.from_numpy(given.astype(bool if given.dtype == bool else np.int64))
