r"""The only sampling loop: a model, a process and keys in, samples out.

Every part of the state moves on one grid of times. At each row of the table the network is asked
once, and every part's mover (`core.movers`) takes its answer over the row: real parts by the row of
their own path's table (`core.solvers`), token parts by one step of their jump process (`core.ctmc`)
whenever the row moves the clock. The loop owns what is easy to get wrong around that: masks, keyed
noise, the previous prediction (self-conditioning), known entries, samples that blow up, particles
and their weights, and runs that stop and go on.

Keys. All randomness is addressed by sample, row and entry: a sample does not depend on the batch
it is drawn in, on its order or on the padding, as far as the model itself does not. The noise of
several rows is drawn in one call, which changes its cost and not its values.

Particles. A model that answers with `weigh.Weighted` says how far its samples' law strays from the
target. With ``particles`` the loop keeps the weights that repair it and may resample: a chosen
particle brings along its state, its memory and its previous prediction, and draws its own noise
from there on.

Interruption. ``until`` stops after some rows; `Samples.resume` then holds all that is needed to go
on: tensors, numbers and names only, so that ``torch.save`` and a weights-only load
keep it. The resumed run equals the uninterrupted one to the last bit.

Failures. A sample whose prediction stops being finite is frozen as it was and flagged in
`Samples.finite`; its neighbours go on. The check is one number a row (and, on a GPU, one
synchronisation); only when that number is not finite are samples looked at one by one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from driftworks.core import grids, solvers
from driftworks.core.keys import Keys
from driftworks.core.movers import Ahead, Known, Mover, Noise, RealMover, Shape, TokenMover
from driftworks.core.paths import Path
from driftworks.core.process import Masks, Part, Process, State
from driftworks.core.solvers import Solver, Table
from driftworks.errors import UserError

if TYPE_CHECKING:
    from driftworks.core.particles import Resampling, Weights

__all__ = ["Model", "Samples", "sample"]


class Model(Protocol):
    """What can be sampled: predictions for a state at times t (B,), in freshly made tensors.

    Real parts are answered in the part's parametrisation, shaped like the state, token parts with
    logits (..., K). A guide that weighs answers with `weigh.Weighted`, which wraps such a state.
    ``previous`` is the last answer (None in the first row). An attribute
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
    """The outcome: the state at the last time, evaluations a sample, and who stayed finite (B,).

    ``resume`` continues a run that was stopped by ``until``; ``weights`` belong to particles.
    """

    x: State
    nfe: int
    finite: Tensor
    resume: dict[str, Any] | None = None
    weights: Weights | None = None


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

    def gather(self, index: Tensor) -> None:
        self.finite = self.finite[index]

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
        if not isinstance(part.path, Path):
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


def shown(rows: range, progress: bool | str, title: str = "sampling") -> Iterable[int]:
    """The rows, under a progress bar if one is wanted; a string is its title."""
    if not progress:
        return rows
    from rich.progress import track

    return track(rows, description=progress if isinstance(progress, str) else title)


def _resumed(
    resume: dict[str, Any], clock: list[float], like: dict[str, Tensor], settings: dict[str, Any]
) -> dict[str, Any]:
    """The token of an interrupted run, if it fits this one."""
    if set(resume) != _TOKEN:
        raise UserError(f"resume must be what Samples.resume held, got the fields {list(resume)}")
    if resume["clock"] != clock:
        raise UserError("resume belongs to a run with another grid or solver")
    shapes = {name: tuple(x.shape) for name, x in resume["state"].items()}
    if shapes != {name: tuple(x.shape) for name, x in like.items()}:
        raise UserError(f"resume holds a state of shapes {shapes}; this run is of another shape")
    if resume["settings"] != settings:
        raise UserError(
            f"resume belongs to a run with {resume['settings']}, this one has {settings}"
        )
    return resume


_TOKEN = {"row", "clock", "settings", "state", "previous", "memory", "finite"}


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
    particles: Resampling | None = None,
    until: int | None = None,
    resume: dict[str, Any] | None = None,
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
        particles: keep the weights of a weighted model and resample (`core.particles`).
        until: stop after this many rows; `Samples.resume` then continues the run.
        resume: what an interrupted run left, with all other arguments as they were there.
        stream: names the noise; a second pass over the same samples takes another name.
        callback: called after every row with (row, time, state, prediction), the prediction being
            the denoised real parts and the logits.
        progress: show a progress bar, with this title if it is a string.
        dtype: of real parts given by shape.

    Raises UserError for settings that do not fit together. Warns when samples failed.
    """
    if len(keys) == 0:
        raise UserError("there are no keys: nothing to sample")
    if not dtype.is_floating_point:
        raise UserError(f"dtype of the real parts must be a real number's, got {dtype}")
    if particles is not None and not hasattr(particles, "start"):
        raise UserError(f"particles must be a Resampling(), got {particles!r}")
    if callable(grid) or grid is None:
        grid = (grid or grids.uniform)(steps)
    grid = tuple(map(float, grid))
    tables, times, ends = _tables(process, solver, grid)
    if guide is not None:
        model = guide(model)
        target = getattr(model, "target", None)  # of a weighted model
        if target is not None and target.process is not process:
            raise UserError("the guide was built on another process than the one to be sampled")
    evaluations = getattr(model, "evaluations", 1)

    like = _like(process, keys, shape, dtype)
    masks = {name: process.mask_of(name, mask) for name in like}
    for name, m in masks.items():
        if m is not None and (m.dtype != torch.bool or m.shape != like[name].shape[:2]):
            raise UserError(
                f"the mask of part {name!r} must be bool of shape {tuple(like[name].shape[:2])}, "
                f"got {m.dtype} {tuple(m.shape)}"
            )
    if initial is not None:
        state = dict(process.unpack(initial))
        for name, x in state.items():
            if x.shape != like[name].shape:
                raise UserError(
                    f"initial part {name!r} has shape {tuple(x.shape)}, not "
                    f"{tuple(like[name].shape)}"
                )
    elif grid[0] == 0.0 or resume is not None:
        # a product of experts starts elsewhere than its process
        prior = getattr(model, "prior", process.prior)
        state = dict(process.unpack(prior(keys, process.pack(like), mask)))
    else:
        raise UserError(f"the grid starts at {grid[0]}, not at 0: give the initial state")

    given = {"x": fixed} if process.single and isinstance(fixed, tuple) else fixed or {}
    if not isinstance(given, Mapping):
        raise UserError("fixed must map part names to pairs (value, known)")
    if not given.keys() <= like.keys():
        unknown = ", ".join(sorted(given.keys() - like.keys()))
        raise UserError(f"fixed names unknown parts {unknown}; the parts are {', '.join(like)}")
    ahead = Ahead(keys, len(times))
    movers: dict[str, Mover] = {}
    for name, part in process.items():
        known = None
        if name in given:
            known = Known.check(name, part.space, given[name], like[name], masks[name])
        m = masks[name]
        if name in tables:
            movers[name] = RealMover(name, part, tables[name], ahead, like[name], m, known, stream)
        elif part.space.discrete:
            movers[name] = TokenMover(
                name, part, times, ends, ahead, m, known, stream,
                _of_part(remask, name, 0.0), _of_part(temperature, name, 1.0),
            )
        else:
            route: Any = part.path
            movers[name] = route.mover(name, part, times, ends, ahead, m, known, stream)

    guard = _Guard(process.parts, masks, keys)
    previous: State | None = None
    settings = {"seed": keys.seed, "ids": keys.ids.tolist(), "stream": stream}
    first = 0
    if resume is not None:
        kept = _resumed(resume, [*times, *ends], like, settings)
        first, state, previous = kept["row"], dict(kept["state"]), kept["previous"]
        guard.finite, guard.failed = kept["finite"], not bool(kept["finite"].all())
        for name, mover in movers.items():
            mover.restore(kept["memory"][name])
    else:
        state = {name: mover.start(state[name]) for name, mover in movers.items()}
    last = len(times) if until is None else until
    if not first <= last <= len(times):
        rows = f"{first}..{len(times)}"
        raise UserError(f"until must lie in {rows}, the rows of this run, got {until}")
    follow = getattr(model, "follow", None)  # a guide whose answer depends on the noise to come
    if follow is not None:
        follow(tables, first)
    population = None
    if particles is not None:
        if given:
            raise UserError("particles cannot be weighed beside fixed entries")
        if until is not None or resume is not None:
            raise UserError("a run with particles cannot be interrupted: no until, no resume")
        population = particles.start(process, keys, process.pack(state), mask, times[0], cond)

    real = [x.dtype for x in state.values() if x.is_floating_point()]
    clock = torch.empty(
        len(keys), dtype=real[0] if real else torch.float32, device=keys.ids.device
    )
    for k in shown(range(first, last), progress):
        clock.fill_(times[k])
        answer: Any = model(process.pack(state), clock, mask=mask, cond=cond, previous=previous)
        weighted = None
        if not isinstance(answer, Tensor | dict):
            if not hasattr(answer, "prediction"):
                raise UserError(
                    f"the model answered {type(answer).__name__}, not a tensor or a dict of parts"
                )
            weighted, answer = answer, answer.prediction
        predictions = guard.check(process.unpack(answer), state)
        if population is not None:
            if weighted is None:
                raise UserError("particles need a model that answers with weights (core.weigh)")
            chosen = population.observe(k, times[k], weighted)
            if chosen is not None:
                state = {name: x[chosen] for name, x in state.items()}
                predictions = {name: p[chosen] for name, p in predictions.items()}
                guard.gather(chosen)
                for mover in movers.values():
                    mover.gather(chosen)
        old, state, denoised = state, {}, {}
        for name, mover in movers.items():
            state[name], denoised[name] = mover.advance(k, old[name], predictions[name])
        state = guard.freeze(state, old)
        previous = process.pack(predictions)
        if callback is not None:
            callback(k, ends[k], process.pack(state), process.pack(denoised))

    token = None
    if last < len(times):
        token = {
            "row": last,
            "clock": [*times, *ends],
            "settings": settings,
            "state": state,
            "previous": previous,
            "memory": {name: mover.memory() for name, mover in movers.items()},
            "finite": guard.finite,
        }
    state = dict(state)
    for name, mover in movers.items():
        complete = last == len(times) and ends[-1] == 1.0
        state[name] = mover.finish(state[name], complete=complete)
        if not process.parts[name].space.discrete:
            guard.finite = guard.finite & state[name].isfinite().flatten(1).all(1)
    failed = len(keys) - int(guard.finite.sum())
    if failed:
        warnings.warn(
            f"{failed} of {len(keys)} samples stopped being finite; see Samples.finite",
            RuntimeWarning,
            stacklevel=2,
        )
    weights = None if population is None else population.finish(ends[-1])
    nfe = (last - first) * evaluations
    return Samples(process.pack(state), nfe, guard.finite, token, weights)
