r"""Ordinary differential equations, one clock a sample: adaptive Dormand-Prince 5(4) and RK4.

    dx/dt = f(x, t)         from t0 to t1, in either direction

An embedded pair forms two solutions of orders 5 and 4 from the same slopes k_1 ... k_7; their
difference is the error of a step, measured against the tolerances,

    e = max over tensors of the state of  RMS_i( err_i / (atol + rtol max(|x_i|, |x'_i|)) ).

A step is kept when e <= 1; the next one is h 0.9 e_n^{-0.17} e_{n-1}^{0.04}, a PI controller. The
last slope of a kept step is the first of the next one: six evaluations a step, two to begin with.
Steps live on a ladder, the whole way times powers of 2^{1/16}: a rounding error in e, such as a
matrix product of another batch size makes, leaves the steps as they were.

A common clock would let the stiffest sample of a batch set everyone's steps, and with them
everyone's rounding and error. Here each sample has its own time, step and error norm, taken over
its own unmasked entries, and leaves the evaluations as soon as it arrives: its result does not
depend on who else was in the batch, as far as f itself does not. One tensor of a state of several
does not dilute the error of another.

Failures. A sample stops where its slope is not finite at the start, where its step has become too
short to move its clock, or where it would exceed its evaluations. It keeps its last good state and
is flagged in ``Solution.ok``; the others go on.

Arithmetic is float64 inside; f sees the state's own dtypes. References: Dormand & Prince 1980;
Hairer, Norsett & Wanner 1993, II.4 (first step, controller) and II.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from driftworks.errors import UserError

__all__ = ["Field", "Solution", "dopri5", "rk4"]

State = Tensor | dict[str, Tensor]
Field = Callable[[Any, Tensor, Tensor], Any]

# Dormand & Prince 1980: times of the slopes, weights of the earlier slopes in each stage (the last
# row is the solution of order 5), and the difference of the two solutions.
_TIMES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0
_RUNGS = 16  # steps of the ladder in a factor of two
_LADDER = torch.tensor(
    [2.0 ** (i / _RUNGS) for i in range(-50 * _RUNGS, 4 * _RUNGS)], dtype=torch.float64
)
_SLOPES = 6  # evaluations of one step
_RESOLUTION = 16 * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Solution:
    """The state at t1, the evaluations each sample took (B,) int64, and who arrived (B,) bool."""

    x: Any
    evaluations: Tensor
    ok: Tensor


class _Layout:
    """How the tensors of a state lie in one float64 matrix (B, P)."""

    def __init__(self, x: State):
        self.single = isinstance(x, Tensor)
        parts = {"x": x} if isinstance(x, Tensor) else x
        sizes = {len(part) for part in parts.values()}
        if len(sizes) != 1:
            raise UserError(f"the tensors of a state need one batch size, got {sorted(sizes)}")
        for name, part in parts.items():
            if not part.is_floating_point():
                raise UserError(f"part {name!r} holds {part.dtype}: only real numbers flow")
        self.batch = sizes.pop()
        self.shapes = {name: tuple(part.shape[1:]) for name, part in parts.items()}
        self.dtypes = {name: part.dtype for name, part in parts.items()}
        self.widths = [part[0].numel() if self.batch else 0 for part in parts.values()]
        self.device = next(iter(parts.values())).device

    def flat(self, x: Any) -> Tensor:
        parts = [x] if self.single else [x[name] for name in self.shapes]
        return torch.cat([part.reshape(len(part), -1).double() for part in parts], 1)

    def state(self, flat: Tensor) -> Any:
        columns = flat.split(self.widths, 1)
        parts = {
            name: column.reshape(len(flat), *shape).to(self.dtypes[name])
            for column, (name, shape) in zip(columns, self.shapes.items(), strict=True)
        }
        return parts["x"] if self.single else parts

    def shares(self, counted: Any) -> Tensor:
        """What every column adds to the mean square of its own tensor, (B, P)."""
        rows = []
        for name, shape in self.shapes.items():
            entries = counted if self.single or counted is None else counted.get(name)
            share = torch.ones(self.batch, *shape, dtype=torch.float64, device=self.device)
            share = (share if entries is None else share * entries).reshape(self.batch, -1)
            rows.append(share / share.sum(1, keepdim=True).clamp(min=1.0))
        return torch.cat(rows, 1)

    def norm(self, flat: Tensor, shares: Tensor) -> Tensor:
        squares = torch.where(shares > 0.0, flat * flat * shares, 0.0)
        means = [column.sum(1) for column in squares.split(self.widths, 1)]
        return torch.stack(means).amax(0).sqrt()


def _clock(t: float | Tensor, layout: _Layout, name: str) -> Tensor:
    clock = torch.as_tensor(t, dtype=torch.float64, device=layout.device)
    if clock.ndim > 1 or (clock.ndim == 1 and len(clock) != layout.batch):
        raise UserError(
            f"{name} must be a number or one a sample ({layout.batch},), got {tuple(clock.shape)}"
        )
    if not bool(clock.isfinite().all()):
        raise UserError(f"{name} must be finite, got {t}")
    return clock.expand(layout.batch).clone()


def _rung(factor: Tensor) -> Tensor:
    """The nearest factor on the ladder; read from a list, because powers may round by place."""
    place = torch.round(_RUNGS * torch.log2(factor)).nan_to_num(nan=0.0)
    place = place.clamp(-50 * _RUNGS, 4 * _RUNGS - 1).long() + 50 * _RUNGS
    return _LADDER.to(factor.device)[place]


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 < value < float("inf"):
            raise UserError(f"{name} must be a positive number, got {value!r}")


@contextmanager
def _bar(progress: bool | str) -> Iterator[Callable[[float], None]]:
    """A progress bar that is told the share of the way behind us, or nothing at all."""
    if not progress:
        yield lambda share: None
        return
    from rich.progress import Progress

    with Progress() as shown:
        task = shown.add_task(progress if isinstance(progress, str) else "integrating", total=1.0)
        yield lambda share: shown.update(task, completed=share)


def dopri5(
    f: Field,
    x: State,
    t0: float | Tensor,
    t1: float | Tensor,
    *,
    rtol: float = 1e-6,
    atol: float | None = None,
    counted: Any = None,
    max_evaluations: int = 10_000,
    progress: bool | str = False,
) -> Solution:
    """Integrate every sample from t0 to t1 with its own adaptive steps.

    Args:
        f: the slope, called as ``f(x, t, index)`` with the state of the samples still on their way
            (A, ...), their times (A,) float64 and their numbers in the batch (A,) int64; returns
            what ``x`` is, tensor or dict.
        x: the state at t0, a tensor (B, ...) or a dict of them.
        t0, t1: a number, or one a sample (B,).
        rtol, atol: relative and absolute tolerance of one step; ``atol`` is ``rtol`` by default.
        counted: entries that enter the error norm, bool, broadcastable to ``x``; a dict (with None
            or nothing for all entries) where ``x`` is a dict.
        max_evaluations: of each sample.
        progress: show a progress bar, with this title if it is a string.

    Raises UserError for settings out of range and states that are not real.
    """
    atol = rtol if atol is None else atol
    _positive(rtol=rtol, atol=atol, max_evaluations=max_evaluations)
    layout = _Layout(x)
    t, end = _clock(t0, layout, "t0"), _clock(t1, layout, "t1")
    shares, y = layout.shares(counted), layout.flat(x)
    whole = (end - t).abs()

    out = y.clone()
    evaluations = torch.zeros(layout.batch, dtype=torch.int64, device=layout.device)
    ok = torch.ones(layout.batch, dtype=torch.bool, device=layout.device)
    index = (whole > 0.0).nonzero().squeeze(1)

    def slope(state: Tensor, time: Tensor) -> Tensor:
        evaluations[index] += 1
        return layout.flat(f(layout.state(state), time, index))

    def scaled(flat: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return flat / (atol + rtol * torch.maximum(before.abs(), after.abs()))

    y, t, end, shares = y[index], t[index], end[index], shares[index]
    if len(index) == 0:
        return Solution(layout.state(out), evaluations, ok)

    # The first step: one that an Euler step of slope k and change of slope dk would survive.
    k = slope(y, t)
    sense = (end - t).sign()
    size, speed = (layout.norm(scaled(v, y, y), shares) for v in (y, k))
    probe = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed)
    probe = torch.minimum(probe, (end - t).abs())
    ahead = y + (sense * probe)[:, None] * k
    bend = layout.norm(scaled(slope(ahead, t + sense * probe) - k, y, y), shares) / probe
    steepest = torch.maximum(speed, bend)
    guess = torch.where(
        steepest <= 1e-15, 1e3 * probe, (0.01 / steepest) ** 0.2
    )
    h = torch.minimum(100.0 * probe, torch.where(guess.isfinite(), guess, probe))
    h = (end - t) * _rung((h / (end - t).abs()).clamp(max=1.0))
    error_before = torch.full_like(h, 1e-4)
    refused = torch.zeros_like(h, dtype=torch.bool)
    lost = ~k.isfinite().all(1)

    with _bar(progress) as show:
        while True:
            stuck = (h.abs() <= _RESOLUTION * torch.maximum(t.abs(), end.abs())) & (t != end)
            lost = lost | stuck | (evaluations[index] + _SLOPES > max_evaluations)
            leave = (t == end) | lost
            if bool(leave.any()):
                out[index[leave]] = y[leave]
                ok[index[leave & (t != end)]] = False
                stay = ~leave
                y, k, t, end, h, shares, index, error_before, refused = (
                    v[stay]
                    for v in (y, k, t, end, h, shares, index, error_before, refused)
                )
                if len(index) == 0:
                    break
            last = h.abs() >= (end - t).abs() * (1.0 - 1e-9)
            h = torch.where(last, end - t, h)
            step = h[:, None]
            slopes, after = [k], y
            for c, weights in zip(_TIMES[1:], _STAGES, strict=True):
                after = y
                for weight, earlier in zip(weights, slopes, strict=True):
                    if weight:
                        after = after + (step * weight) * earlier
                time = torch.where(last, end, t + h) if c == 1.0 else t + c * h
                slopes.append(slope(after, time))
            gap = torch.zeros_like(y)
            for weight, earlier in zip(_ERROR, slopes, strict=True):
                if weight:
                    gap = gap + (step * weight) * earlier
            error = layout.norm(scaled(gap, y, after), shares)
            # an infinite slope may be a step too far: try a shorter one
            error = torch.where(error.isfinite(), error, torch.inf)
            kept = error <= 1.0
            factor = _SAFETY * error.clamp(min=1e-10) ** -0.17 * error_before**0.04
            grow = torch.where(refused, 1.0, _GROW)
            factor = torch.where(
                kept, torch.minimum(factor.clamp(min=_SHRINK), grow),
                (_SAFETY * error ** -0.2).clamp(_SHRINK, 1.0),
            )
            t = torch.where(kept, torch.where(last, end, t + h), t)
            y = torch.where(kept[:, None], after, y)
            k = torch.where(kept[:, None], slopes[-1], k)
            error_before = torch.where(kept, error.clamp(min=1e-4), error_before)
            h, refused, lost = h * _rung(factor), ~kept, torch.zeros_like(kept)
            if progress:
                away = torch.zeros_like(whole)
                away[index] = (end - t).abs()
                show(1.0 - float((away / whole.clamp(min=1e-300)).mean()))
    return Solution(layout.state(out), evaluations, ok)


def rk4(
    f: Field,
    x: State,
    t0: float | Tensor,
    t1: float | Tensor,
    *,
    steps: int = 100,
    progress: bool | str = False,
) -> Solution:
    """Integrate from t0 to t1 in ``steps`` equal steps of the classical method of order 4.

    Arguments as in `dopri5`; all samples take part in every evaluation, four a step. ``ok`` says
    whose result is finite.
    """
    _positive(steps=steps)
    layout = _Layout(x)
    start, end = _clock(t0, layout, "t0"), _clock(t1, layout, "t1")
    index = torch.arange(layout.batch, device=layout.device)
    y, h = layout.flat(x), (end - start) / steps
    step = h[:, None]

    def slope(state: Tensor, time: Tensor) -> Tensor:
        return layout.flat(f(layout.state(state), time, index))

    with _bar(progress) as show:
        for i in range(steps):
            t = start + i * h
            middle, after = start + (i + 0.5) * h, end if i == steps - 1 else start + (i + 1) * h
            k1 = slope(y, t)
            k2 = slope(y + (0.5 * step) * k1, middle)
            k3 = slope(y + (0.5 * step) * k2, middle)
            k4 = slope(y + step * k3, after)
            y = y + (step / 6.0) * (k1 + 2.0 * (k2 + k3) + k4)
            show((i + 1) / steps)
    evaluations = torch.full((layout.batch,), 4 * steps, dtype=torch.int64, device=layout.device)
    return Solution(layout.state(y), evaluations, y.isfinite().all(1))
