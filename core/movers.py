r"""How the parts of a state move: one mover a part, one call a row of the clock.

A mover takes a part's state and the network's answer over one row. Real parts follow the row of
their own path's table (`core.solvers`),

    x_{k+1} = sum_j a_kj x_{k-j} + sum_j b_kj D_{k-j} + c_k xi_k + d_k xi_{k-1},

token parts one step of their jump process (`core.ctmc`) whenever the row moves the clock. What a
mover remembers between rows it can hand out and take back, so that a run can be interrupted, and
permute, so that particles can be resampled.

Coefficients are numbers, or tensors for noise levels that differ between entries. Then the noise is
drawn before the space couples its entries, scaled entry by entry, and projected: with P the
projection and eps the diagonal of noise levels, drift and noise are P eps s and P sqrt(2 eps) dW,
whose covariance 2 P eps P fits the drift, and the marginals stay those of the path.

Known entries. For an entry whose data value v is known, D = v is the exact denoiser. Writing it
into the prediction moves the entry along its own bridge, x_t = beta v + sigma e with the keyed
noise e it started from (and the solver's fresh noise, if any), and ends on v. Point clouds without
centre live up to a translation: v is moved there by the shift that keeps the known points' own
centre, and in the end the whole sample is moved to the frame v was given in. A known token holds
its value throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from driftworks.core import predict
from driftworks.core.ctmc import TokenRoute
from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.process import Part
from driftworks.core.solvers import Table
from driftworks.core.spaces import Centred, PairTokens, Space, Symmetric, Tokens
from driftworks.errors import UserError

__all__ = ["Ahead", "Known", "Memory", "Mover", "RealMover", "TokenMover"]

Noise = float | Callable[[float], float]
Shape = tuple[int, ...]
Memory = dict[str, Any]  # nested lists and dicts of tensors
_STRETCH = 1 << 16  # numbers drawn ahead in one call; larger stretches fall out of the CPU's cache


class Mover(Protocol):
    """A part of the state on its way through the rows of the clock."""

    def start(self, x: Tensor) -> Tensor:
        """The first state, with what is known put in."""
        ...

    def advance(self, k: int, x: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """The state after row k, and what the network says of the data (denoised or logits)."""
        ...

    def finish(self, x: Tensor, complete: bool) -> Tensor:
        """The last state, inside its space; ``complete`` says that it stands at t = 1."""
        ...

    def gather(self, index: Tensor) -> None:
        """Permute or repeat what is remembered of the samples."""
        ...

    def memory(self) -> Memory:
        """What must be kept to go on later; `restore` takes it back."""
        ...

    def restore(self, memory: Memory) -> None: ...


class Ahead(Keys):
    """The same keys, drawing a stretch of rows in one call: cheaper, same values."""

    def __init__(self, keys: Keys, rows: int):
        super().__init__(keys.seed, keys.ids, keys._words)
        self._rows = rows
        self._drawn: dict[tuple[Any, ...], tuple[range, Tensor]] = {}

    def _take(
        self, draw: Callable[..., Tensor], stream: str, step: int, shape: Shape, dtype: torch.dtype
    ) -> Tensor:
        address = (draw.__name__, stream, shape, dtype)
        span, values = self._drawn.get(address, (range(0), None))
        if values is None or step not in span:
            length = max(1, _STRETCH // max(1, len(self) * math.prod(shape)))
            span = range(step, max(step + 1, min(step + length, self._rows)))
            values = draw(stream, span, shape, dtype)
            self._drawn[address] = (span, values)
        return values[step - span.start]

    def normal(
        self,
        stream: str,
        step: int | range,
        shape: Shape = (),
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        assert isinstance(step, int)
        return self._take(super().normal, stream, step, shape, dtype)

    def uniform(
        self,
        stream: str,
        step: int | range,
        shape: Shape = (),
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        assert isinstance(step, int)
        return self._take(super().uniform, stream, step, shape, dtype)


@dataclass(frozen=True)
class Known:
    """Known data values and where they are known, both shaped to broadcast to the state."""

    value: Tensor
    where: Tensor

    @classmethod
    def check(cls, name: str, space: Space, given: Any, x: Tensor, mask: Tensor | None) -> Known:
        try:
            value, where = given
        except (TypeError, ValueError):
            raise UserError(f"fixed part {name!r} must be a pair (value, known)") from None
        value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
        where = torch.as_tensor(where, device=x.device)
        if where.dtype != torch.bool or where.shape != x.shape[: where.ndim] or where.ndim < 1:
            raise UserError(
                f"fixed part {name!r}: known must be bool with the leading dimensions of "
                f"{tuple(x.shape)}, got {where.dtype} {tuple(where.shape)}"
            )
        where = where.view(*where.shape, *(1,) * (x.ndim - where.ndim))
        entries = space.entry_mask(mask, x)
        where = (where if entries is None else where & entries).expand_as(x)
        try:
            value = value.expand_as(x)
        except RuntimeError:
            raise UserError(
                f"fixed part {name!r}: value {tuple(value.shape)} does not fit {tuple(x.shape)}"
            ) from None
        known = value[where]
        if isinstance(space, Tokens):
            if ((known < 0) | (known >= space.classes)).any():
                raise UserError(f"fixed part {name!r}: tokens must lie in 0..{space.classes - 1}")
        elif not known.isfinite().all():
            raise UserError(f"fixed part {name!r}: known values must be finite")
        if isinstance(space, PairTokens | Symmetric):
            held = torch.where(where, value, torch.full_like(value, -1))
            if not torch.equal(held, held.transpose(1, 2)):
                raise UserError(f"fixed part {name!r}: known pairs must be symmetric")
        return cls(torch.where(where, value, torch.zeros_like(value)), where)

    def put(self, x: Tensor) -> Tensor:
        return torch.where(self.where, self.value, x)

    def shift(self, x: Tensor) -> Tensor:
        """The translation (B, 1, D) that takes the known points of ``x`` to their values."""
        count = self.where.sum(1, keepdim=True).clamp(min=1)
        gap = torch.where(self.where, self.value - x, torch.zeros_like(x))
        return gap.sum(1, keepdim=True) / count


class RealMover:
    """A real part on its way through the rows of its table."""

    def __init__(
        self, name: str, part: Part, table: Table, keys: Keys, like: Tensor, mask: Tensor | None,
        known: Known | None, stream: str,
    ):
        assert isinstance(part.path, Path)
        self.name, self.space, self.mask, self.keys = name, part.space, mask, keys
        self.known, self.stream = known, f"{stream}/{name}"
        self.rows = [
            (_weights(a, like), _weights(b, like), _weight(c, like), d)
            for a, b, c, d in zip(
                table.a, table.b, table.c, table.d or (0.0,) * len(table), strict=True
            )
        ]
        self.denoise = None
        if part.predicts != "denoised":
            self.denoise = [
                predict.weights(part.path, t, part.predicts, "denoised") for t in table.times
            ]
        self.keep_states = max(map(len, table.a)) - 1
        self.keep_denoised = max(map(len, table.b)) - 1
        self.keep_noise = any(table.d)
        self.states: list[Tensor] = []
        self.denoised: list[Tensor] = []
        self.noise: Tensor | None = None

    def advance(self, k: int, x: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        if prediction.shape != x.shape:
            raise ValueError(
                f"prediction of part {self.name!r} has shape {tuple(prediction.shape)}, "
                f"its state {tuple(x.shape)}"
            )
        d = prediction if prediction.dtype == x.dtype else prediction.to(x.dtype)
        if self.denoise is not None:
            of_x, of_prediction = self.denoise[k]
            d = torch.mul(d, of_prediction)
            if of_x:
                d.add_(x, alpha=of_x)
        d = self.space.project(d, self.mask)
        if self.known is not None:
            known = self.known
            if isinstance(self.space, Centred):
                d = torch.where(known.where, known.value - known.shift(d), d)
            else:
                d = known.put(d)
        a, b, c, earlier = self.rows[k]
        new = torch.mul(d, b[0])
        _add(new, x, a[0])
        for weight, past in zip(a[1:], self.states, strict=False):
            _add(new, past, weight)
        for weight, past in zip(b[1:], self.denoised, strict=False):
            _add(new, past, weight)
        if earlier:
            assert self.noise is not None
            _add(new, self.noise, earlier)
        uneven = isinstance(c, Tensor)
        if uneven or c or self.keep_noise:
            draw = self.space.free_noise if uneven else self.space.noise
            self.noise = draw(self.keys, self.stream, k, x, self.mask)
            _add(new, self.noise, c)
        if uneven or isinstance(a[0], Tensor):
            new = self.space.project(new, self.mask)
        if self.keep_states:
            self.states = [x, *self.states][: self.keep_states]
        if self.keep_denoised:
            self.denoised = [d, *self.denoised][: self.keep_denoised]
        return new, d

    def start(self, x: Tensor) -> Tensor:
        return x

    def finish(self, x: Tensor, complete: bool) -> Tensor:
        x = self.space.project(x, self.mask)
        if self.known is None or not complete:
            return x
        if isinstance(self.space, Centred):
            entries = self.space.entry_mask(self.mask, x)
            shift = self.known.shift(x)
            x = x + (shift if entries is None else shift * entries)
        return self.known.put(x)

    def gather(self, index: Tensor) -> None:
        self.states = [x[index] for x in self.states]
        self.denoised = [d[index] for d in self.denoised]
        self.noise = None if self.noise is None else self.noise[index]

    def memory(self) -> Memory:
        noise = self.noise if self.keep_noise else None
        return {"states": self.states, "denoised": self.denoised, "noise": noise}

    def restore(self, memory: Memory) -> None:
        self.states, self.denoised = list(memory["states"]), list(memory["denoised"])
        self.noise = memory["noise"]


def _weight(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A coefficient as the state needs it: a float, or a tensor that broadcasts to ``like``."""
    if not isinstance(value, Tensor):
        return value
    value = value.to(like.dtype).to(like.device)
    trailing = like.ndim - value.ndim
    if trailing < 0 or len(value) not in (1, len(like)):
        raise UserError(
            f"noise per entry has shape {tuple(value.shape)}: it must broadcast to the state "
            f"{tuple(like.shape)}, with a first axis of 1 or the batch"
        )
    value = value.reshape(*value.shape, *(1,) * trailing)
    try:
        value.expand_as(like)
    except RuntimeError:
        raise UserError(
            f"noise per entry {tuple(value.shape)} does not broadcast to {tuple(like.shape)}"
        ) from None
    return value


def _weights(row: Sequence[float | Tensor], like: Tensor) -> tuple[float | Tensor, ...]:
    return tuple([_weight(value, like) for value in row])


def _add(total: Tensor, x: Tensor, weight: float | Tensor) -> None:
    if isinstance(weight, Tensor):
        total.addcmul_(x, weight)
    elif weight:
        total.add_(x, alpha=weight)


class TokenMover:
    """A token part on its way through the rows' times."""

    def __init__(
        self, name: str, part: Part, times: Sequence[float], ends: Sequence[float], keys: Keys,
        mask: Tensor | None, known: Known | None, stream: str, remask: Noise, temperature: float,
    ):
        assert isinstance(part.path, TokenRoute) and isinstance(part.space, Tokens)
        self.path, self.times = part.path, times
        self.space, self.mask, self.keys, self.known = part.space, mask, keys, known
        self.stream, self.temperature = f"{stream}/{name}", temperature
        self.rows = [
            part.path.step(t, u, remask(t) if callable(remask) else remask) if t < u else None
            for t, u in zip(times, ends, strict=True)
        ]

    def advance(self, k: int, x: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        row = self.rows[k]
        if row is None:
            return x, prediction
        show, hide = row
        new = self.path.move(
            self.space, x, prediction, self.times[k], show, hide,
            self.keys, self.stream, k, self.mask, self.temperature,
        )
        return self.start(new), prediction

    def start(self, x: Tensor) -> Tensor:
        return x if self.known is None else self.known.put(x)

    def finish(self, x: Tensor, complete: bool) -> Tensor:
        return x

    def gather(self, index: Tensor) -> None:
        pass

    def memory(self) -> Memory:
        return {}

    def restore(self, memory: Memory) -> None:
        pass
