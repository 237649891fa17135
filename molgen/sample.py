r"""Drawing molecules: the flow run from noise to data on one clock for positions and tokens.

Positions follow Euler steps of the probability flow; tokens are unmasked by the masked chain with
re-masking noise eta, which lets the network repair its early mistakes. eta * dt = `REMASKED` per
step is the strongest quality knob of the sampler, so eta grows with the number of steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from driftworks.core.guide import cfg
from driftworks.core.keys import Keys
from driftworks.core.process import Process
from driftworks.core.sample import sample

__all__ = ["REMASKED", "generate"]

REMASKED = 0.1  # share of shown tokens hidden again in one step


def generate(
    net: Any,
    process: Process,
    keys: Keys,
    mask: Tensor,
    steps: int = 100,
    cond: Tensor | None = None,
    guidance: float = 1.0,
    remasked: float = REMASKED,
    temperature: float = 1.0,
) -> tuple[dict[str, Tensor], Tensor]:
    """States at t = 1 for molecules with atom mask (B, N), and who stayed finite (B,).

    ``cond`` (B, P) are property targets, NaN where not asked for; ``guidance`` 1 is the conditional
    model itself, larger values push further (two evaluations a step).
    """
    size = mask.shape[1]
    samples = sample(
        net, process, keys,
        shape={"pos": (size, 3), "atom": (size,), "charge": (size,), "bond": (size, size)},
        mask=mask, solver="euler", steps=steps, remask=remasked * steps, temperature=temperature,
        cond=cond, guide=None if guidance == 1.0 or cond is None else partial(cfg, weight=guidance),
    )
    assert isinstance(samples.x, dict)
    return samples.x, samples.finite & torch.isfinite(samples.x["pos"]).flatten(1).all(1)
