"""k-diffusion's DPM-Solver++(2M) as a peer: the installed package, and a reference form of it.

The contract is the package's: a denoiser D(x, sigma) with sigma (B,), a schedule of falling noise
levels that ends with 0, and a loop that works with tensors of one number a step. In lambda =
-log sigma, with h the step and r the step before in units of it,

    x <- (sigma' / sigma) x - (e^{-h} - 1) D^,      D^ = (1 + 1/(2 r)) D - 1/(2 r) D_before,

and D^ = D in the first step and in the last, where sigma' = 0. The form below is what is timed and
measured where the package is not installed; `benchmarks/core_quality.py` says by how much the two
differ where it is.

References: Lu et al. 2022, "DPM-Solver++", algorithm 2; Karras et al. 2022, eq. 5 (the schedule);
Crowson, k-diffusion, https://github.com/crowsonkb/k-diffusion.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

__all__ = ["Denoiser", "dpmpp_2m", "karras_sigmas", "of_noise", "package"]

Denoiser = Callable[[Tensor, Tensor], Tensor]


def karras_sigmas(
    steps: int, low: float, high: float, rho: float = 7.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Noise levels (steps + 1,), equally spaced in sigma^(1/rho) from high to low, and 0."""
    levels = torch.linspace(high ** (1 / rho), low ** (1 / rho), steps, dtype=dtype) ** rho
    return torch.cat((levels, levels.new_zeros(1)))


def of_noise(network: Denoiser) -> Denoiser:
    """The denoiser of a network that predicts the noise: x - sigma e."""

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return x - sigma.view(-1, *(1,) * (x.ndim - 1)) * network(x, sigma)

    return denoiser


def dpmpp_2m(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """The state at sigma = 0 from x (B, ...) at the first of ``sigmas``."""
    ones = x.new_ones(len(x))
    before = None
    for i in range(len(sigmas) - 1):
        d = denoiser(x, sigmas[i] * ones)
        now, then = sigmas[i].log().neg(), sigmas[i + 1].log().neg()
        h = then - now
        ahead = d
        if before is not None and sigmas[i + 1] != 0:
            r = (now - sigmas[i - 1].log().neg()) / h
            ahead = (1 + 1 / (2 * r)) * d - (1 / (2 * r)) * before
        x = (then.neg().exp() / now.neg().exp()) * x - (-h).expm1() * ahead
        before = d
    return x


@cache
def package() -> Any:
    """The module ``k_diffusion.sampling`` as it is installed, or None.

    The package's own ``__init__`` imports image metrics (torchvision, clip, clean-fid and others)
    that no sampler uses. So the file of samplers is imported by itself; where torchvision is
    missing, an empty module stands in for the one import of it, which loads images.
    """
    found = find_spec("k_diffusion")
    if found is None:
        return None
    whole = ModuleType("k_diffusion")
    whole.__path__ = list(found.submodule_search_locations or ())
    sys.modules["k_diffusion"] = whole
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    absent = [] if find_spec("torchvision") else names
    sys.modules.update({name: ModuleType(name) for name in absent})
    try:
        return import_module("k_diffusion.sampling")
    except ImportError as error:
        print(f"k-diffusion is installed but does not import: {error}", file=sys.stderr)
        return None
    finally:
        for name in absent:
            del sys.modules[name]
