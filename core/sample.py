r"""The only sampling loop: a model, a process and keys in, samples out.

Every part of the state moves on one grid of times. At each row of the table the network is asked
once; real parts take the row of their own path's table (`core.solvers`), token parts one step of
the masked chain (`core.ctmc`) whenever the row moves the clock. The loop owns what is easy to get
wrong around that: masks, keyed noise, the previous prediction (self-conditioning), known entries,
and samples that blow up.

Keys. All randomness is addressed by sample, row and entry: a sample does not depend on the batch
it is drawn in, on its order or on the padding, as far as the model itself does not. The noise of
several rows is drawn in one call, which changes its cost and not its values.

Known entries. For an entry whose data value v is known, D = v is the exact denoiser. Writing it
into the prediction moves the entry along its own bridge, x_t = beta v + sigma e with the keyed
noise e it started from (and the solver's fresh noise, if any), and ends on v. Point clouds without
centre live up to a translation: v is moved there by the shift that keeps the known points' own
centre, and in the end the whole sample is moved to the frame v was given in. A known token holds
its value throughout.

Failures. A sample whose prediction stops being finite is frozen as it was and flagged in
`Samples.finite`; its neighbours go on. The check is one number a row (and, on a GPU, one
synchronisation); only when that number is not finite are samples looked at one by one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from driftworks.core import grids, predict, solvers
from driftworks.core.ctmc import Masking, masked_step
from driftworks.core.keys import Keys
from driftworks.core.process import Masks, Part, Process, State
from driftworks.core.solvers import Solver, Table
from driftworks.core.spaces import Centred, PairTokens, Space, Symmetric, Tokens
from driftworks.errors import UserError

__all__ = ["Model", "Samples", "sample"]

Noise = float | Callable[[float], float]
Shape = tuple[int, ...]
_STRETCH = 1 << 16  # numbers drawn ahead in one call; larger stretches fall out of the CPU's cache


class Model(Protocol):
    """What can be sampled: predictions for a state at times t (B,), in freshly made tensors.

    Real parts are answered in the part's parametrisation, shaped like the state, token parts with
    logits (..., K). ``previous`` is the last answer (None in the first row). An attribute
    ``evaluations``, if there is one, says how many network evaluations one call costs.
    """

    def __call__(
        self,
        x: State,
        t: Tensor,
        mask: Masks = None,
        cond: Any = None,
        previous: State | None = None,
    ) -> State: ...


@dataclass(frozen=True)
class Samples:
    """The outcome: the state at the last time, evaluations a sample, and who stayed finite (B,)."""

    x: State
    nfe: int
    finite: Tensor


class _Ahead(Keys):
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
class _Known:
    """Known data values and where they are known, both shaped to broadcast to the state."""

    value: Tensor
    where: Tensor

    @classmethod
    def check(cls, name: str, space: Space, given: Any, x: Tensor, mask: Tensor | None) -> _Known:
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


class _RealPart:
    """A real part on its way through the rows of its table."""

    def __init__(
        self, name: str, part: Part, table: Table, keys: Keys, mask: Tensor | None,
        known: _Known | None, stream: str,
    ):
        assert not isinstance(part.path, Masking)
        self.name, self.space, self.mask, self.keys = name, part.space, mask, keys
        self.known, self.stream = known, f"{stream}/{name}"
        self.rows = list(zip(table.a, table.b, table.c, strict=True))
        self.denoise = None
        if part.predicts != "denoised":
            self.denoise = [
                predict.weights(part.path, t, part.predicts, "denoised") for t in table.times
            ]
        self.keep_states = max(map(len, table.a)) - 1
        self.keep_denoised = max(map(len, table.b)) - 1
        self.states: list[Tensor] = []
        self.denoised: list[Tensor] = []

    def advance(self, k: int, x: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """The state after row k and the denoised state it was made from."""
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
        a, b, c = self.rows[k]
        new = torch.mul(d, b[0])
        if a[0]:
            new.add_(x, alpha=a[0])
        for weight, past in zip(a[1:], self.states, strict=False):
            new.add_(past, alpha=weight)
        for weight, past in zip(b[1:], self.denoised, strict=False):
            new.add_(past, alpha=weight)
        if c:
            new.add_(self.space.noise(self.keys, self.stream, k, x, self.mask), alpha=c)
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


class _TokenPart:
    """A token part on its way through the rows' times."""

    def __init__(
        self, name: str, part: Part, times: Sequence[float], ends: Sequence[float], keys: Keys,
        mask: Tensor | None, known: _Known | None, stream: str, remask: Noise, temperature: float,
    ):
        assert isinstance(part.path, Masking) and isinstance(part.space, Tokens)
        self.space, self.mask, self.keys, self.known = part.space, mask, keys, known
        self.stream, self.temperature = f"{stream}/{name}", temperature
        self.rows = [
            part.path.step(t, u, remask(t) if callable(remask) else remask) if t < u else None
            for t, u in zip(times, ends, strict=True)
        ]

    def advance(self, k: int, x: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens after row k, and the logits."""
        row = self.rows[k]
        if row is None:
            return x, prediction
        show, hide = row
        new = masked_step(
            self.space, x, prediction, show, hide,
            self.keys, self.stream, k, self.mask, self.temperature,
        )
        return self.start(new), prediction

    def start(self, x: Tensor) -> Tensor:
        return x if self.known is None else self.known.put(x)

    def finish(self, x: Tensor, complete: bool) -> Tensor:
        return x


class _Guard:
    """Finds the samples that stop being finite, and keeps them from harming anyone."""

    def __init__(self, parts: Mapping[str, Part], masks: Mapping[str, Tensor | None], keys: Keys):
        self.parts, self.masks = parts, masks
        self.finite = torch.ones(len(keys), dtype=torch.bool, device=keys.ids.device)
        self.failed = False

    def check(self, predictions: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The predictions, zero for samples that have failed by now."""
        total: Any = 0.0
        for p in predictions.values():
            total = total + p.sum(dtype=torch.promote_types(p.dtype, torch.float32))
        if not self.failed and math.isfinite(total):
            return predictions
        for name, answer in predictions.items():
            # Values at padded entries mean nothing; an attention over nothing returns NaN there.
            # They are overlooked and not cleared: a healthy sample goes on with the same numbers.
            p = answer
            entries = self.parts[name].space.entry_mask(self.masks[name], state[name])
            if entries is not None:
                entries = entries.unsqueeze(-1) if p.ndim > state[name].ndim else entries
                p = torch.where(entries, p, torch.zeros_like(p))
            bad = ~p.isfinite()
            if self.parts[name].space.discrete:
                # A logit of -inf forbids a class; only a token without any class is an error.
                bad = p.isnan() | p.isposinf() | (p.amax(-1, keepdim=True) == -math.inf)
            self.finite = self.finite & ~bad.flatten(1).any(1)
        self.failed = not bool(self.finite.all())
        return {name: self._choose(p, torch.zeros_like(p)) for name, p in predictions.items()}

    def _choose(self, alive: Tensor, failed: Tensor) -> Tensor:
        return torch.where(self.finite.view(-1, *(1,) * (alive.ndim - 1)), alive, failed)

    def freeze(self, new: dict[str, Tensor], old: dict[str, Tensor]) -> dict[str, Tensor]:
        """The new state, with failed samples as they were."""
        if not self.failed:
            return new
        return {name: self._choose(x, old[name]) for name, x in new.items()}


def _like(process: Process, keys: Keys, shape: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Empty tensors of the state to sample: from entry shapes, or from a state."""
    if process.single and not isinstance(shape, Mapping):
        shape = {"x": shape}
    if not isinstance(shape, Mapping) or set(shape) != set(process.parts):
        raise UserError(
            f"shape must give the parts {', '.join(process.parts)}, got "
            f"{', '.join(map(str, shape)) if isinstance(shape, Mapping) else shape!r}"
        )
    like = {}
    for name, part in process.items():
        wanted = shape[name]
        if isinstance(wanted, Tensor):
            if len(wanted) != len(keys):
                raise UserError(
                    f"part {name!r} has {len(wanted)} samples but there are {len(keys)} keys"
                )
            like[name] = wanted
        else:
            kind = torch.int64 if part.space.discrete else dtype
            like[name] = torch.empty((len(keys), *wanted), dtype=kind, device=keys.ids.device)
    return like


def _tables(
    process: Process, solver: str | Solver | Mapping[str, str | Solver], grid: Sequence[float]
) -> tuple[dict[str, Table], tuple[float, ...], tuple[float, ...]]:
    """The table of every real part, and the times and ends they share."""
    tables = {}
    for name, part in process.items():
        if isinstance(part.path, Masking):
            continue
        if isinstance(solver, Mapping) and name not in solver:
            raise UserError(f"no solver for part {name!r}; given for {', '.join(solver)}")
        chosen = solver[name] if isinstance(solver, Mapping) else solver
        build = solvers.solver(chosen) if isinstance(chosen, str) else chosen
        tables[name] = build(part.path, grid)
    clocks = {(table.times, table.ends) for table in tables.values()}
    if len(clocks) > 1:
        raise UserError(
            "all parts share one clock, but their solvers evaluate at different times: "
            + ", ".join(f"{name} by {table.name}" for name, table in tables.items())
        )
    times, ends = clocks.pop() if clocks else (tuple(grid[:-1]), tuple(grid[1:]))
    return tables, times, ends


def _of_part(setting: Any, name: str, default: Any) -> Any:
    return setting.get(name, default) if isinstance(setting, Mapping) else setting


def _shown(rows: int, progress: bool | str) -> Iterable[int]:
    if not progress:
        return range(rows)
    from rich.progress import track

    return track(range(rows), description=progress if isinstance(progress, str) else "sampling")


@torch.no_grad()
def sample(
    model: Model,
    process: Process,
    keys: Keys,
    shape: Shape | Mapping[str, Any] | Tensor,
    mask: Masks = None,
    *,
    solver: str | Solver | Mapping[str, str | Solver] = "euler",
    steps: int = 50,
    grid: Sequence[float] | Callable[[int], Sequence[float]] | None = None,
    remask: Noise | Mapping[str, Noise] = 0.0,
    temperature: float | Mapping[str, float] = 1.0,
    cond: Any = None,
    guide: Callable[[Model], Model] | None = None,
    fixed: Mapping[str, tuple[Any, Any]] | tuple[Any, Any] | None = None,
    initial: State | None = None,
    stream: str = "sample",
    callback: Callable[[int, float, State, State], Any] | None = None,
    progress: bool | str = False,
    dtype: torch.dtype = torch.float32,
) -> Samples:
    """Draw one sample a key, from noise to data.

    Args:
        model: see `Model`; asked once a row, without gradients.
        process: what the state is made of.
        keys: the samples' keys (B,); their device is where the state lives.
        shape: shape of one sample's entries, such as (N, 3); a mapping of them for several parts;
            or tensors (B, ...) whose shape, dtype and device are taken.
        mask: the nodes that exist, (B, N) bool or one a part; passed on to the model.
        solver: a name of `solvers.SOLVERS` or a solver, for all real parts or one a part.
        steps, grid: the times, uniform by default; a function of ``steps``, or the times.
        remask: noise eta of the token parts (`core.ctmc`), a number or a function of time.
        temperature: of the token parts' logits.
        cond: passed on to the model.
        guide: turns the model into the guided one, e.g. ``partial(cfg, weight=2.0)``.
        fixed: known entries, part -> (value, known): ``known`` bool (B, ...) over leading
            dimensions of the part, ``value`` of its shape (or broadcast to it).
        initial: the state at grid[0]; needed where the grid does not start at 0.
        stream: names the noise; a second pass over the same samples takes another name.
        callback: called after every row with (row, time, state, prediction), the prediction being
            the denoised real parts and the logits.
        progress: show a progress bar, with this title if it is a string.
        dtype: of real parts given by shape.

    Raises UserError for settings that do not fit together. Warns when samples failed.
    """
    if callable(grid) or grid is None:
        grid = (grid or grids.uniform)(steps)
    tables, times, ends = _tables(process, solver, grid)
    if guide is not None:
        model = guide(model)
    evaluations = getattr(model, "evaluations", 1)

    like = _like(process, keys, shape, dtype)
    masks = {name: process.mask_of(name, mask) for name in like}
    if initial is not None:
        state = dict(process.unpack(initial))
        for name, x in state.items():
            if x.shape != like[name].shape:
                raise UserError(
                    f"initial part {name!r} has shape {tuple(x.shape)}, not "
                    f"{tuple(like[name].shape)}"
                )
    elif grid[0] == 0.0:
        state = dict(process.unpack(process.prior(keys, process.pack(like), mask)))
    else:
        raise UserError(f"the grid starts at {grid[0]}, not at 0: give the initial state")

    given = {"x": fixed} if process.single and isinstance(fixed, tuple) else fixed or {}
    if not isinstance(given, Mapping):
        raise UserError("fixed must map part names to pairs (value, known)")
    if not given.keys() <= like.keys():
        unknown = ", ".join(sorted(given.keys() - like.keys()))
        raise UserError(f"fixed names unknown parts {unknown}; the parts are {', '.join(like)}")
    ahead = _Ahead(keys, len(times))
    movers: dict[str, _RealPart | _TokenPart] = {}
    for name, part in process.items():
        known = None
        if name in given:
            known = _Known.check(name, part.space, given[name], like[name], masks[name])
        if name in tables:
            movers[name] = _RealPart(
                name, part, tables[name], ahead, masks[name], known, stream
            )
        else:
            movers[name] = _TokenPart(
                name, part, times, ends, ahead, masks[name], known, stream,
                _of_part(remask, name, 0.0), _of_part(temperature, name, 1.0),
            )
        state[name] = movers[name].start(state[name])

    guard = _Guard(process.parts, masks, keys)
    real = [x.dtype for x in state.values() if x.is_floating_point()]
    clock = torch.empty(
        len(keys), dtype=real[0] if real else torch.float32, device=keys.ids.device
    )
    previous: State | None = None
    for k in _shown(len(times), progress):
        clock.fill_(times[k])
        answer = model(process.pack(state), clock, mask=mask, cond=cond, previous=previous)
        predictions = guard.check(process.unpack(answer), state)
        old, state, denoised = state, {}, {}
        for name, mover in movers.items():
            state[name], denoised[name] = mover.advance(k, old[name], predictions[name])
        state = guard.freeze(state, old)
        previous = process.pack(predictions)
        if callback is not None:
            callback(k, ends[k], process.pack(state), process.pack(denoised))

    for name, mover in movers.items():
        state[name] = mover.finish(state[name], complete=ends[-1] == 1.0)
        if name in tables:
            guard.finite = guard.finite & state[name].isfinite().flatten(1).all(1)
    failed = len(keys) - int(guard.finite.sum())
    if failed:
        warnings.warn(
            f"{failed} of {len(keys)} samples stopped being finite; see Samples.finite",
            RuntimeWarning,
            stacklevel=2,
        )
    return Samples(process.pack(state), len(times) * evaluations, guard.finite)
