r"""Idempotent generators: one map that makes samples from noise and leaves samples alone (SIGN).

A student f whose output already follows the data (`core.distill`) becomes a projection onto them,
f(f(z)) = f(z), by two more terms,

    idempotence      | f(sg f(z)) - sg f(z) |^2       what it makes, it keeps
    reconstruction   | f(x_1) - x_1 |^2               what is real, it keeps

with sg a stopped gradient: f is to learn that f(z) is a fixed point, not to move f(z) where it
happens to be one. Neither term says where fixed points should lie (the identity fulfils both); the
distillation loss does, so train all three: the last two as ``extra`` of `student.Distiller`.

On data N(0, P) with P the orthogonal projector of rank r, and z ~ N(0, I), the optimum among linear
maps is P itself: f f^T = P from the law, f P = P from the data, and so f = P + B with B P = 0 and
B B^T = 0. Noise and data share their space, hence bring data to about unit variance first.

An idempotent map repairs: `apply` on a damaged sample answers with a sample near it.

References: Shocher et al. 2024, "Idempotent generative network"; Zaman, Liu & Chiu 2025,
"Score-based idempotent distillation of diffusion models" (SIGN).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from driftworks.core.distill import entry_mean, real_parts
from driftworks.core.process import Masks, Process, State
from driftworks.core.student import Student
from driftworks.errors import UserError

__all__ = ["IdempotentLoss", "apply", "idempotence_error", "idempotent_loss"]


@dataclass(frozen=True)
class IdempotentLoss:
    """``total`` = idempotence + reconstruction, a scalar; all three with gradient."""

    total: Tensor
    idempotence: Tensor
    reconstruction: Tensor


def _mean_square(process: Process, x: State, y: State, mask: Masks) -> Tensor:
    """Mean square of x - y over the entries that exist, summed over parts, (B,)."""
    first, second = process.unpack(x), process.unpack(y)
    terms = [
        entry_mean((first[name] - second[name]).square(), space, process.mask_of(name, mask))
        for name, (space, _, _) in real_parts(process).items()
    ]
    return torch.stack(terms).sum(0)


def _stopped(process: Process, x: State) -> State:
    return process.pack({name: value.detach() for name, value in process.unpack(x).items()})


def idempotent_loss(
    student: Student,
    x_g: State,
    x_1: State,
    mask: Masks = None,
    cond: Any = None,
    data_mask: Masks = None,
    data_cond: Any = None,
) -> IdempotentLoss:
    """Make the student's first step, f = `Student.clean`, leave samples and data alone.

    Args:
        x_g: samples of the student (B, ...), such as `Student.generate` made for its loss.
        x_1: data of any number, with ``data_mask`` and ``data_cond``.

    Means are over the entries that exist, then over samples.
    """
    process, made = student.process, _stopped(student.process, x_g)
    kept = _mean_square(process, student.clean(made, mask, cond), made, mask).mean()
    told = _mean_square(process, student.clean(x_1, data_mask, data_cond), x_1, data_mask).mean()
    return IdempotentLoss(kept + told, kept, told)


@torch.no_grad()
def apply(
    student: Student, x: State, mask: Masks = None, cond: Any = None, times: int = 1
) -> State:
    """f applied to a state (B, ...), ``times`` times over; UserError for fewer than one."""
    if times < 1:
        raise UserError(f"times must be at least 1, got {times!r}")
    for _ in range(times):
        x = student.clean(x, mask, cond)
    return x


def idempotence_error(
    student: Student, x: State, mask: Masks = None, cond: Any = None
) -> Tensor:
    """|f(f(x)) - f(x)| / |f(x)| of each sample, (B,); x may be noise, damaged samples or data.

    0 wherever f keeps what it made, also where that is 0.
    """
    process, once = student.process, apply(student, x, mask, cond)
    twice = apply(student, once, mask, cond)
    gap = _mean_square(process, twice, once, mask)
    size = _mean_square(process, once, _zero(process, once), mask)
    return torch.where(gap == 0.0, 0.0, gap / size).sqrt()


def _zero(process: Process, x: State) -> State:
    return process.pack({name: torch.zeros_like(v) for name, v in process.unpack(x).items()})
