r"""Students: generators of a few steps, and the loop that teaches them (`core.distill`).

A student is a network G asked at declared times t_0 < ... < t_{K-1}. From x_g = 0 on,

    x_{t_k} = beta(t_k) x_g + gamma sigma(t_k) e_k,     e_k fresh,        x_g <- G(x_{t_k}, t_k).

Every row forgets its state but for x_g, so a student is a solver table (`renoise`) and runs in the
one sampling loop; on Gaussian data `laws.table_law` knows its output. gamma = 1 in training; at
inference it cools the samples, and the number of steps may change, too.

`Distiller` alternates the critic, which learns the denoiser of what the student makes now, and the
student, which follows `distill.sid_loss`. No data are needed, only shapes. Each sample's gradient
passes through one step k, drawn for each sample; the steps before it run without. Every draw is
keyed by sample, so an update does not depend on the order of its batch.

One critic for several steps sees the mixture of what they make, and only that mixture is held to
the data: steps that are too wide and too narrow by as much change it in second order, hence the
divergence in fourth. Where the last step counts, let the steps take turns with a critic each: one
`Distiller` a step on the same student and its optimiser, ``update(..., stage=k)``, as in
``examples/distill_in_two_minutes.py``.

References: Zhou et al. 2024, "Score identity distillation", algorithm 1, and 2025, "Few-step
diffusion via score identity distillation" (several steps by one network).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from driftworks.core.distill import (
    Distance,
    SidLoss,
    Weight,
    denoise,
    plain,
    real_parts,
    sid_loss,
    squared,
)
from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.process import Bridge, Masks, Process, State
from driftworks.core.sample import Model, Samples, _like, sample
from driftworks.core.solvers import Solver, Table
from driftworks.core.train import Ema, Loss, matching_loss
from driftworks.errors import UserError

__all__ = ["Distiller", "Student", "Update", "inner_times", "renoise"]

Times = Callable[[Tensor], Tensor]
Shape = tuple[int, ...] | Mapping[str, Any] | Tensor


def renoise(noise: float = 1.0) -> Solver:
    """The solver x <- beta_u D + noise sigma_u xi: every row forgets its state but for D.

    noise = 1 draws x_u from its bridge anew; less cools the samples. The last row, to t = 1, is
    x = D. Raises UserError for a negative scale.
    """
    if not 0.0 <= noise < math.inf:
        raise UserError(f"the noise scale must be a finite number >= 0, got {noise!r}")

    def build(path: Path, grid: Sequence[float]) -> Table:
        ends = tuple(grid[1:])
        b = tuple((1.0,) if u == 1.0 else (path.beta(u),) for u in ends)
        c = tuple(0.0 if u == 1.0 else noise * path.sigma(u) for u in ends)
        return Table("renoise", 1, tuple(grid[:-1]), ends, ((0.0,),) * len(ends), b, c)

    return build


@dataclass(frozen=True)
class Student:
    """A generator of one or several steps: G(x_{t_k}, t_k) at rising times t_k in [0, 1).

    ``model`` answers as the parts' parametrisation says, so a copy of the teacher can start one; it
    never sees a previous answer. Between steps its samples are given fresh noise (`renoise`).

    Raises UserError for times that do not rise within [0, 1), for parts without scores, and for
    parts that predict noise or score where the path starts without data (beta(t_0) = 0).
    """

    model: Model
    process: Process
    times: tuple[float, ...]

    def __post_init__(self) -> None:
        times = tuple(float(t) for t in self.times)
        object.__setattr__(self, "times", times)
        _check_times(times)
        for name, (_, path, predicts) in real_parts(self.process).items():
            if predicts in ("noise", "score") and path.beta(times[0]) == 0.0:
                raise UserError(
                    f"part {name!r} predicts {predicts}, which says nothing of the data at "
                    f"t = {times[0]}: start later, or predict denoised or velocity"
                )

    def __call__(
        self, x: State, t: Tensor, mask: Masks = None, cond: Any = None, previous: Any = None
    ) -> State:
        return plain(self.model(x, t, mask=mask, cond=cond))

    def clean(self, x: State, mask: Masks = None, cond: Any = None) -> State:
        """G(x, t_0) as a map of states (B, ...), differentiable."""
        first = next(iter(self.process.unpack(x).values()))
        t = first.new_full((len(first),), self.times[0])
        return self.process.pack(denoise(self, self.process, x, t, mask, cond))

    def generate(
        self,
        keys: Keys,
        shape: Shape,
        mask: Masks = None,
        cond: Any = None,
        *,
        stage: int | Tensor | None = None,
        noise: float = 1.0,
        stream: str = "student",
        dtype: torch.dtype = torch.float32,
    ) -> State:
        """Samples x_g (B, ...) after step ``stage`` (the last by default), for training.

        Steps before ``stage`` run without gradient, the step itself with it. A tensor (B,) of
        stages lets each sample end at its own. ``shape`` and ``noise`` as in `sample`.
        """
        last = len(self.times) - 1
        stage = last if stage is None else stage
        stages = torch.as_tensor(stage, device=keys.ids.device).expand(len(keys))
        if len(keys) and not bool(((stages >= 0) & (stages <= last)).all()):
            raise UserError(f"stages must lie in 0..{last}, got {stages.tolist()[:8]}")
        x = self._start(self.times[0], keys, shape, mask, noise, stream, dtype)
        depth = int(stages.max()) if len(keys) else 0
        chosen = dict(self.process.unpack(x))

        def keep(row: int, _: float, state: State, __: State) -> None:
            here = stages == row + 1
            for name, value in self.process.unpack(state).items():
                where = here.view(-1, *(1,) * (value.ndim - 1))
                chosen[name] = torch.where(where, value, chosen[name])

        if depth:
            sample(
                self, self.process, keys, x, mask, solver=renoise(noise),
                grid=self.times[: depth + 1], initial=x, stream=stream, cond=cond, callback=keep,
            )
        like = next(iter(chosen.values()))
        t = torch.tensor(self.times, dtype=like.dtype, device=like.device)[stages]
        state = self.process.pack(chosen)
        return self.process.pack(denoise(self, self.process, state, t, mask, cond))

    def sample(
        self,
        keys: Keys,
        shape: Shape,
        mask: Masks = None,
        *,
        steps: int | Sequence[float] | None = None,
        noise: float = 1.0,
        cond: Any = None,
        stream: str = "student",
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> Samples:
        """One sample a key.

        Args:
            keys, shape, mask, cond, dtype: as in `core.sample.sample`.
            steps: a number of steps, spread over the declared times (which are taken as a curve,
                with straight pieces), or other times; the declared ones by default.
            noise: scale gamma of all noise that is drawn; below 1 trades diversity for quality.
            settings: anything else `core.sample.sample` takes (``fixed``, ``callback``, ...).
        """
        if steps is None:
            times = self.times
        elif isinstance(steps, int):
            times = _respace(self.times, steps)
        else:
            times = tuple(float(t) for t in steps)
            _check_times(times)
        x = self._start(times[0], keys, shape, mask, noise, stream, dtype)
        return sample(
            self, self.process, keys, x, mask, solver=renoise(noise), grid=(*times, 1.0),
            initial=x, stream=stream, cond=cond, **settings,
        )

    def _start(
        self, t: float, keys: Keys, shape: Shape, mask: Masks, noise: float, stream: str,
        dtype: torch.dtype,
    ) -> State:
        """The state at the first time t: noise alone."""
        out = {}
        for name, x in _like(self.process, keys, shape, dtype).items():
            space, path, _ = real_parts(self.process)[name]
            e = space.noise(keys, f"{stream}/{name}/start", 0, x, self.process.mask_of(name, mask))
            out[name] = e * (noise * path.sigma(t))
        return self.process.pack(out)


def _check_times(times: tuple[float, ...]) -> None:
    rising = all(a < b for a, b in zip(times[:-1], times[1:], strict=True))
    if not times or not rising or not 0.0 <= times[0] <= times[-1] < 1.0:
        raise UserError(f"a student's times rise within [0, 1), got {list(times)}")


def _respace(times: tuple[float, ...], steps: int) -> tuple[float, ...]:
    """``steps`` times along the curve k -> t_k, ends included; one step is the first time."""
    if isinstance(steps, bool) or steps < 1:
        raise UserError(f"steps must be a whole number of at least 1, got {steps!r}")
    if steps == len(times):
        return times
    if steps > 1 and len(times) == 1:
        raise UserError("a student of one time cannot be spread over more steps: give the times")
    out = []
    for k in range(steps):
        place = k * (len(times) - 1) / max(steps - 1, 1)
        low = min(int(place), len(times) - 2) if len(times) > 1 else 0
        high = min(low + 1, len(times) - 1)
        out.append(times[low] + (place - low) * (times[high] - times[low]))
    return tuple(out)


def inner_times(uniform: Tensor) -> Tensor:
    """Times (B,) spread evenly over [0.02, 0.98], from uniforms (B, 2) as `train.time_samples`."""
    return 0.02 + 0.96 * uniform[:, 0]


@dataclass(frozen=True)
class Update:
    """The losses of one update: the critic's last one and the student's."""

    critic: Loss
    student: SidLoss


class Distiller:
    """Alternates updates of a critic and of a student; see the module's docstring.

    Args:
        teacher: a model of the data; never changed.
        critic: the network that learns the student's denoiser, usually a copy of the teacher.
        student: its ``model`` must be a module, usually another copy.
        critic_optimiser, student_optimiser: of the parameters of either.
        alpha: of `sid_loss`; a number, or a function of the number of updates done.
        distance, weight, normalise, weights: of `sid_loss`.
        times, critic_times: from uniforms (B, 2) to the noise levels (B,) of the student's loss and
            of the critic's.
        critic_loss: of (prediction, process, bridge), such as `matching_loss` with settings.
        critic_updates: updates of the critic before each of the student.
        reset_every: put the critic back to what it was at first, optimiser included, whenever this
            many samples more have been made; it then cannot drift away from the student for good.
        clip: largest norm of a gradient. A gradient that is not finite skips its step.
        decay: of the moving average ``ema`` of the student's parameters.
        extra: an auxiliary loss (scalar) of (x_g, keys, mask, cond), added to the student's.

    ``updates`` and ``samples`` count what was done. Raises UserError when the student's model is
    not a module, and for counts below 1.
    """

    def __init__(
        self,
        teacher: Model,
        critic: nn.Module,
        student: Student,
        critic_optimiser: torch.optim.Optimizer,
        student_optimiser: torch.optim.Optimizer,
        *,
        alpha: float | Callable[[int], float] = 0.5,
        distance: Distance = squared,
        weight: Weight | None = None,
        normalise: bool = False,
        weights: Mapping[str, float] | None = None,
        times: Times = inner_times,
        critic_times: Times = inner_times,
        critic_loss: Callable[[State, Process, Bridge], Loss] = matching_loss,
        critic_updates: int = 1,
        reset_every: int | None = None,
        clip: float | None = None,
        decay: float = 0.999,
        extra: Callable[[State, Keys, Masks, Any], Tensor] | None = None,
    ) -> None:
        if not isinstance(student.model, nn.Module):
            raise UserError(f"a student to train is a module, got {type(student.model).__name__}")
        for what, count in (("critic_updates", critic_updates), ("reset_every", reset_every)):
            if count is not None and count < 1:
                raise UserError(f"{what} must be at least 1, got {count!r}")
        self.teacher, self.critic, self.student = teacher, critic, student
        self.generator: nn.Module = student.model
        self.critic_optimiser, self.student_optimiser = critic_optimiser, student_optimiser
        self.alpha, self.distance, self.weight = alpha, distance, weight
        self.normalise, self.weights, self.extra = normalise, weights, extra
        self.times, self.critic_times, self.critic_loss = times, critic_times, critic_loss
        self.critic_updates, self.reset_every, self.clip = critic_updates, reset_every, clip
        self.ema = Ema(self.generator.parameters(), decay)
        self.updates, self.samples = 0, 0
        self._first_critic = copy.deepcopy(critic.state_dict())

    def update(
        self,
        keys: Keys,
        shape: Shape,
        mask: Masks = None,
        cond: Any = None,
        stage: int | None = None,
    ) -> Update:
        """One round: the critic's updates, then the student's.

        ``keys`` (B,) must be new ones each time (running sample numbers); the rest is as in
        `Student.sample`. Each sample ends at a stage of its own; with ``stage`` all end there,
        which spares the steps behind it.
        """
        for turn in range(self.critic_updates):
            critic = self.update_critic(keys, shape, mask, cond, stage, turn)
        student = self.update_student(keys, shape, mask, cond, stage)
        before, self.samples = self.samples, self.samples + len(keys)
        self.updates += 1
        every = self.reset_every
        if every is not None and before // every != self.samples // every:
            self.reset_critic()
        return Update(critic, student)

    def update_critic(
        self, keys: Keys, shape: Shape, mask: Masks = None, cond: Any = None,
        stage: int | None = None, turn: int = 0,
    ) -> Loss:
        """One step of the critic on what the student makes; ``turn`` tells several apart."""
        process, stream = self.student.process, f"critic/{turn}"
        with torch.no_grad():
            x = self._generate(keys, shape, mask, cond, stage, stream)
        t = self.critic_times(keys.uniform(f"{stream}/time", 0, (2,)))
        bridge = process.bridge(x, t, keys, mask, step=turn + 1)
        answer = self.critic(bridge.x_t, bridge.t, mask=mask, cond=cond)
        loss = self.critic_loss(answer, process, bridge)
        self._step(loss.total, self.critic.parameters(), self.critic_optimiser)
        return loss

    def update_student(
        self, keys: Keys, shape: Shape, mask: Masks = None, cond: Any = None,
        stage: int | None = None,
    ) -> SidLoss:
        """One step of the student against teacher and critic as they are."""
        process = self.student.process
        x = self._generate(keys, shape, mask, cond, stage, "student")
        t = self.times(keys.uniform("student/time", 0, (2,)))
        bridge = process.bridge(x, t, keys, mask, step=0)
        alpha = self.alpha(self.updates) if callable(self.alpha) else self.alpha
        loss = sid_loss(
            self.teacher, self.critic, process, bridge, cond, alpha=alpha, distance=self.distance,
            weight=self.weight, normalise=self.normalise, weights=self.weights,
        )
        total = loss.total
        if self.extra is not None:
            total = total + self.extra(x, keys, mask, cond)
        self._step(total, self.generator.parameters(), self.student_optimiser)
        self.ema.update(self.generator.parameters())
        return loss

    def reset_critic(self) -> None:
        """The critic as it was when the distiller was built, its optimiser without memory."""
        self.critic.load_state_dict(self._first_critic)
        self.critic_optimiser.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """All that a later run of the same settings needs to go on with.

        Tensors, numbers and names only; they are the live ones, so save or copy them at once.
        """
        return {
            "updates": self.updates,
            "samples": self.samples,
            "critic": self.critic.state_dict(),
            "first_critic": self._first_critic,
            "student": self.generator.state_dict(),
            "critic_optimiser": self.critic_optimiser.state_dict(),
            "student_optimiser": self.student_optimiser.state_dict(),
            "ema": self.ema.shadow,
            "ema_updates": self.ema.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.updates, self.samples = state["updates"], state["samples"]
        self.critic.load_state_dict(state["critic"])
        self._first_critic = copy.deepcopy(state["first_critic"])
        self.generator.load_state_dict(state["student"])
        self.critic_optimiser.load_state_dict(state["critic_optimiser"])
        self.student_optimiser.load_state_dict(state["student_optimiser"])
        for shadow, kept in zip(self.ema.shadow, state["ema"], strict=True):
            shadow.copy_(kept)
        self.ema.updates = state["ema_updates"]

    def _generate(
        self, keys: Keys, shape: Shape, mask: Masks, cond: Any, stage: int | None, stream: str
    ) -> State:
        steps = len(self.student.times)
        drawn: int | Tensor | None = stage
        if drawn is None and steps > 1:
            drawn = (keys.uniform(f"{stream}/stage", 0) * steps).long()
        return self.student.generate(keys, shape, mask, cond, stage=drawn, stream=stream)

    def _step(
        self, loss: Tensor, parameters: Iterable[Tensor], optimiser: torch.optim.Optimizer
    ) -> None:
        own = [p for p in parameters if p.requires_grad]
        optimiser.zero_grad(set_to_none=True)
        # The loss also reaches networks that are not to be trained; their gradients are not formed.
        torch.autograd.backward(loss, inputs=own)
        norm = nn.utils.clip_grad_norm_(own, self.clip or math.inf)
        if bool(norm.isfinite()):
            optimiser.step()
