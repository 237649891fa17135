r"""Elementwise functions whose last bit depends on the element alone.

On a CPU the full SIMD vectors of a tensor take one routine and the remainder at its end another,
which may round differently: what a network says of one sample would depend on how many samples
stand behind it in the batch. Padding a tensor to whole vectors removes the remainder. Training does
not need it, and a GPU has no such remainder, so both take the plain function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["SiLU", "even", "silu"]

_VECTOR = 64  # elements; a multiple of every SIMD width in use


def even(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)`` for an elementwise function, any shape, without a remainder on a CPU."""
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return function(x)
    spare = -x.numel() % _VECTOR
    if spare == 0:
        return function(x.contiguous())
    padded = nn.functional.pad(x.reshape(-1), (0, spare))
    return function(padded)[: x.numel()].view(x.shape)


def silu(x: Tensor) -> Tensor:
    """x / (1 + exp(-x)), by `even`."""
    return even(nn.functional.silu, x)


class SiLU(nn.Module):
    """SiLU by `even`, for use inside nn.Sequential."""

    def forward(self, x: Tensor) -> Tensor:
        return silu(x)
