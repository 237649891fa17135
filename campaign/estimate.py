"""What a campaign will cost, told before it is begun.

The share of samples that become candidates and the time of one sample come from a small probe of
the model itself; the number of samples follows. The DFT oracle knows its cost by the size of a
molecule, and a GFN2-xTB relaxation was timed on QM9 molecules of one to nine heavy atoms.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftworks.campaign.driver import dft_oracle, load_model, sample, triage
from driftworks.campaign.protocol import Generator
from driftworks.campaign.spec import Campaign

__all__ = ["Estimate", "dry_run"]


@dataclass(frozen=True)
class Estimate:
    """What a campaign will cost, in seconds of one core.

    `samples` is (fewest, expected) to draw, `acceptance` the share of the probe that were
    candidates; `sampling`, `xtb` and `dft` are the times of the expected number.
    """

    samples: tuple[int, int]
    acceptance: float
    sampling: float
    xtb: float
    dft: float

    @property
    def total(self) -> float:
        return self.sampling + self.xtb + self.dft

    def __str__(self) -> str:
        few, expected = self.samples
        parts = f"sampling {_duration(self.sampling)}, xTB {_duration(self.xtb)}"
        return (
            f"{few} to {expected} samples ({self.acceptance:.0%} of a probe were candidates); "
            f"about {_duration(self.total)} of one core: {parts}, DFT {_duration(self.dft)}"
        )


def dry_run(
    campaign: Campaign | str | Path, *, generator: Generator | None = None, probe: int = 8
) -> Estimate:
    """What a campaign will cost, from a probe of its first `probe` samples; nothing is written."""
    campaign = campaign if isinstance(campaign, Campaign) else Campaign.load(campaign)
    model = generator if generator is not None else load_model(campaign.model)
    start = time.perf_counter()
    library = sample(campaign, model, 0, probe)
    each = (time.perf_counter() - start) / probe
    drawn = triage(campaign, library, set())
    kept = [s for s in drawn if not s.loss]
    share = len(kept) / probe
    sizes = [s.numbers for s in kept or drawn]
    few = min(campaign.budget, math.ceil(campaign.n / campaign.batch) * campaign.batch)
    likely = math.ceil(campaign.n / max(share, 0.5 / probe) / campaign.batch) * campaign.batch
    many = max(few, min(campaign.budget, likely))
    xtb = dft = 0.0
    if campaign.oracles.xtb is not None:
        scored = min(campaign.oracles.xtb.n or many, many * share)
        xtb = scored * _mean([_xtb_seconds(numbers) for numbers in sizes])
    if campaign.oracles.dft is not None:
        oracle: Any = dft_oracle(campaign)  # not every oracle has an estimate, this one does
        dft = campaign.oracles.dft.n * _mean([oracle.estimate(n.tolist()) for n in sizes])
    return Estimate((few, many), share, many * each, xtb, dft)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def _xtb_seconds(numbers: NDArray[np.uint8]) -> float:
    """A GFN2-xTB relaxation by heavy atoms, measured on QM9 molecules [s]."""
    heavy = float((numbers > 1).sum())
    return float(np.interp(heavy, (1, 3, 5, 7, 9), (0.005, 0.02, 0.08, 0.15, 0.33))) * max(
        1.0, heavy / 9
    ) ** 3


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
