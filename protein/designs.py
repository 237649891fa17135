"""Chains that a model has drawn, with what it says about them: the answer of `zoo.Model`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftworks.protein.chains import Chains

__all__ = ["Designs"]


@dataclass(frozen=True, eq=False, repr=False)
class Designs(Chains):
    """Chains that a model has drawn, with what it says about them.

    ``confidence`` (B, L) is the root mean square error in angstrom that the model expects of each
    residue, 0 beyond the end and where it was not asked for; ``finite`` (B,) is False for samples
    that failed, whose coordinates are NaN; ``provenance`` says how the set was made. ``held``
    (B, L) is True for the residues of a motif, and None where there was none.
    """

    confidence: Tensor
    finite: Tensor
    provenance: dict[str, Any] = field(default_factory=dict)
    held: Tensor | None = None

    def __getitem__(self, rows: Any) -> Designs:
        chains = super().__getitem__(rows)
        kept = torch.arange(len(self))
        kept = kept[[rows % len(self)]] if isinstance(rows, int | np.integer) else kept[
            rows if isinstance(rows, slice | Tensor) else np.asarray(rows)
        ]
        held = None if self.held is None else self.held[kept]
        return self._around(chains, self.confidence[kept], self.finite[kept], held)

    def to(self, device: torch.device | str) -> Designs:
        held = None if self.held is None else self.held.to(device)
        return self._around(
            super().to(device), self.confidence.to(device), self.finite.to(device), held
        )

    def trimmed(self) -> Designs:
        short = super().trimmed()
        size = short.mask.shape[1]
        held = None if self.held is None else self.held[:, :size]
        return self._around(short, self.confidence[:, :size], self.finite, held)

    def _around(
        self, chains: Chains, confidence: Tensor, finite: Tensor, held: Tensor | None
    ) -> Designs:
        return Designs(
            chains.ca, chains.mask, chains.ids, chains.index, chains.label, confidence, finite,
            self.provenance, held,
        )
