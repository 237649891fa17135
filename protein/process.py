r"""The process of alpha-carbon chains: straight lines from noise to centred coordinates in nm.

    x_t = t x_1 + (1 - t) x_0,        x_0 ~ N(0, I) without centre of mass,     t = 1 is data

(Lipman et al. 2023, "Flow matching for generative modeling"; Geffner et al. 2025, "Proteina:
scaling flow-based protein structure generative models"). The network answers E[x_1 | x_t]; the
velocity is (E[x_1 | x_t] - x_t) / (1 - t) and the score (t v - x_t) / (1 - t).

Training times are mostly late, where structure is decided: 2 % uniform, 98 % Beta(1.9, 1), whose
distribution function is t^1.9. Noise is not aligned with the data, and every example is turned by a
random rotation of its own key.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.spaces import Centred

if TYPE_CHECKING:
    from driftworks.protein.chains import Chains

__all__ = [
    "LABELS",
    "NULL",
    "SCALE",
    "chain_process",
    "from_chains",
    "random_rotations",
    "to_chains",
    "training_times",
]

SCALE = 10.0  # angstrom in a nm, the network's unit of length
#: Secondary-structure classes a model can be asked for; `NULL` asks for none.
LABELS = ("alpha", "beta", "mixed", "few")
NULL = len(LABELS)

UNIFORM_SHARE = 0.02
LATE_EXPONENT = 1.9


def chain_process() -> Process:
    """The process of centred chains (B, L, 3) in nm, answered with the denoised chain."""
    return Process(Part(Centred(), Path.linear(), "denoised"))


def training_times(uniform: Tensor) -> Tensor:
    """Times (B,) of the mixture 2 % U(0, 1) + 98 % Beta(1.9, 1), from uniforms (B, 2)."""
    which, u = uniform.unbind(-1)
    return torch.where(which < UNIFORM_SHARE, u, u.pow(1.0 / LATE_EXPONENT))


def random_rotations(keys: Keys, stream: str = "rotation", step: int = 0) -> Tensor:
    """One uniform rotation a sample (B, 3, 3), det = +1, from its key.

    Shoemake's map of three uniforms to a unit quaternion ("Uniform random rotations", Graphics Gems
    III, 1992).
    """
    a, b, c = keys.uniform(stream, step, (3,), torch.float64).unbind(-1)
    near, far = (1 - a).sqrt(), a.sqrt()
    b, c = 2 * math.pi * b, 2 * math.pi * c
    x, y, z, w = near * b.sin(), near * b.cos(), far * c.sin(), far * c.cos()
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2).float()


def from_chains(chains: Chains) -> Tensor:
    """Chains as states of the process (B, L, 3): nm, centred, zero where there is no residue."""
    return Centred().project(chains.ca / SCALE, chains.mask)


def to_chains(
    x: Tensor, mask: Tensor, index: Tensor | None = None, label: Tensor | None = None,
    ids: tuple[str, ...] | None = None,
) -> Chains:
    """A state at t = 1 (B, L, 3) as chains in angstrom."""
    from driftworks.protein.chains import Chains

    b, n = mask.shape
    if index is None:
        index = torch.arange(n, device=x.device).expand(b, n).clone()
    if label is None:
        label = torch.full((b,), NULL, dtype=torch.int64, device=x.device)
    names = tuple(f"sample-{k}" for k in range(b)) if ids is None else ids
    ca = (x * SCALE * mask.unsqueeze(-1)).float()
    return Chains(ca=ca, mask=mask, ids=names, index=index, label=label)
