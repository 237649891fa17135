r"""Flow maps: a network that jumps along the probability flow, from any time to any later one.

In the variables x / sigma and mu = beta / sigma the probability flow reads d(x / sigma) = D d mu.
So the exact jump from t to s is

    G(x, t -> s) = a x + b g(x, t, s),       a = sigma_s / sigma_t,     b = beta_s - a beta_t,

where g is the mean of D over the way, weighted by d mu. That is what the network says: data-sized
at every (t, s), with g(x, t, t) = D(x, t), so the same network is an ordinary denoiser; G(t -> t)
is the identity whatever it answers. The way to t = 1 ends at the clean data (sigma_1 counts as 0,
as in every solver's last step): G(x, t -> 1) = g(x, t, 1).

Jumps compose, G(u -> s) o G(t -> u) = G(t -> s) for t <= u <= s, and because a_ts = a_tu a_us and
b_ts = a_us b_tu + b_us, composing them means averaging the g,

    g(x, t, s) = l g(x, t, u) + (1 - l) g(x_u, u, s),        l = a_us b_tu / b_ts in (0, 1].

This is the loss: the teacher's flow supplies g(x, t, u) on a short leg to u (its D, or their mean
over substeps), a frozen copy of the map the rest, and g(x, t, s) regresses on the average. No
difference of nearby states is ever divided by a small number. With u = s the teacher speaks alone;
data, if there are any, add the matching loss of g(x, t, t).

Sampling. Between the times t -> s of a grid a map may jump too far, to where the noise-to-data
ratio is sqrt(1 - gamma^2) times that at s, and draw the rest afresh: gamma = 0 is the flow, gamma =
1 forgets all but the data it expects (the sampler of consistency models).

Gaussian data, N(m, v) along a principal axis, S = beta^2 v + sigma^2, q = sqrt(S_s / S_t):

    G = beta_s m + q (x - beta_t m)
    g = m + k (x - beta_t m),      k = v (beta_s sigma_t + sigma_s beta_t) / (S_t sigma_t (q + a)).

References: Kim et al. 2024, "Consistency trajectory models" (CTM), eqs. 4, 9 and algorithm 3;
Boffi, Albergo & Vanden-Eijnden 2025, "Flow map matching" (semigroup).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from driftworks.core import grids
from driftworks.core.distill import denoise, entry_mean, plain, real_parts, to_denoised
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, Oracle
from driftworks.core.paths import Path
from driftworks.core.predict import per_sample
from driftworks.core.process import Bridge, Masks, Process, State
from driftworks.core.sample import Model, Samples, sample
from driftworks.core.solvers import Solver, Table
from driftworks.core.train import matching_loss
from driftworks.errors import UserError

__all__ = [
    "CtmLoss",
    "FlowMap",
    "JumpModel",
    "OracleMap",
    "ctm_loss",
    "ctm_times",
    "jumps",
    "landing",
]

Shape = tuple[int, ...] | Mapping[str, Any] | Tensor


class JumpModel(Protocol):
    """A network that is told where it comes from and where it goes: times t <= s, both (B,).

    Its answer, turned from the part's parametrisation into a denoised state at (x, t), is g.
    """

    def __call__(
        self, x: State, t: Tensor, s: Tensor, mask: Masks = None, cond: Any = None
    ) -> State: ...


def _ends(path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
    """(beta, sigma), with sigma = 0 at t = 1: the way ends at the data on every path."""
    return path.beta(t), torch.where(t == 1.0, 0.0, path.sigma(t))


def _leg(path: Path, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) of the jump t -> s, in float64; (1, 0) where s = t."""
    (beta_t, sigma_t), (beta_s, sigma_s) = _ends(path, t.double()), _ends(path, s.double())
    here = t == s
    a = torch.where(here, 1.0, sigma_s / sigma_t)
    return a, torch.where(here, 0.0, beta_s - a * beta_t)


def _moved(x: Tensor, g: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return per_sample(a, x) * x + per_sample(b, x) * g.to(x.dtype)


class FlowMap:
    """A `JumpModel` as a map of states; itself a `Model`, the denoiser g(x, t, t).

    Raises UserError for processes with parts that follow no Gaussian path.
    """

    def __init__(self, network: JumpModel, process: Process) -> None:
        real_parts(process)
        self.network, self.process = network, process

    def __call__(
        self, x: State, t: Tensor, mask: Masks = None, cond: Any = None, previous: Any = None
    ) -> State:
        """The answer for s = t, in the parts' parametrisation."""
        return plain(self.network(x, t, t, mask=mask, cond=cond))

    def mean(
        self, x: State, t: Tensor, s: Tensor, mask: Masks = None, cond: Any = None
    ) -> dict[str, Tensor]:
        """g(x, t, s) of every part, inside its space; x (B, ...), times (B,)."""
        states, own = self.process.unpack(x), self.process.mask_of
        answers = self.process.unpack(self.network(x, t, s, mask=mask, cond=cond))
        return {
            name: to_denoised(part, answers[name], states[name], t, own(name, mask))
            for name, part in self.process.items()
        }

    def jump(
        self, x: State, t: float | Tensor, s: float | Tensor, mask: Masks = None, cond: Any = None
    ) -> State:
        """G(x, t -> s), differentiable; x (B, ...), times floats or (B,) with t <= s and t < 1.

        Raises UserError for a jump back, or one that starts at t = 1.
        """
        states = self.process.unpack(x)
        first = next(iter(states.values()))
        t = torch.as_tensor(t, dtype=first.dtype, device=first.device).expand(len(first))
        s = torch.as_tensor(s, dtype=first.dtype, device=first.device).expand(len(first))
        _check_order(t, s)
        means = self.mean(x, t, s, mask, cond)
        return self.process.pack({
            name: _moved(states[name], means[name], *_leg(path, t, s))
            for name, (_, path, _) in real_parts(self.process).items()
        })

    def sample(
        self,
        keys: Keys,
        shape: Shape,
        mask: Masks = None,
        *,
        steps: int = 1,
        grid: Sequence[float] | Callable[[int], Sequence[float]] | None = None,
        gamma: float = 0.0,
        cond: Any = None,
        **settings: Any,
    ) -> Samples:
        """One sample a key, in ``steps`` jumps over the times of ``grid`` (uniform by default).

        ``gamma`` in [0, 1] is the share of noise drawn afresh at each stop. Anything else as in
        `core.sample.sample`.
        """
        times = tuple((grid or grids.uniform)(steps) if callable(grid) or grid is None else grid)
        path = next(iter(real_parts(self.process).values()))[1]
        goals = [landing(path, u, gamma) for u in times[1:]]
        model = _Jumping(self, times[:-1], goals)
        return sample(
            model, self.process, keys, shape, mask, solver=jumps(gamma, goals), grid=times,
            cond=cond, **settings,
        )


def _check_order(t: Tensor, s: Tensor) -> None:
    if not bool(((t <= s) & (t < 1.0) & (t >= 0.0) & (s <= 1.0)).all()):
        raise UserError("a flow map jumps from t in [0, 1) to s in [t, 1]")


class _Jumping:
    """A flow map on a grid: at every time it answers for the jump that starts there."""

    def __init__(self, flow: FlowMap, times: Sequence[float], goals: Sequence[float]) -> None:
        self.flow, self.goals = flow, goals
        self.times = torch.tensor(times, dtype=torch.float64)

    def __call__(
        self, x: State, t: Tensor, mask: Masks = None, cond: Any = None, previous: Any = None
    ) -> State:
        row = int((self.times - float(t[0])).abs().argmin()) if len(t) else 0
        goal = torch.full_like(t, self.goals[row])
        return plain(self.flow.network(x, t, goal, mask=mask, cond=cond))


def landing(path: Path, s: float, gamma: float) -> float:
    """The time beyond s from where noise of share ``gamma`` leads back to s.

    There sigma / beta is sqrt(1 - gamma^2) times that at s; on a path that ends with noise left it
    is at most 1. Raises UserError unless 0 <= gamma <= 1.
    """
    if not 0.0 <= gamma <= 1.0:
        raise UserError(f"gamma is a share of noise in [0, 1], got {gamma!r}")
    if gamma == 0.0 or s == 1.0:
        return s
    if gamma == 1.0:
        return 1.0
    return max(s, path.time_of_log_snr(path.log_snr(s) - math.log1p(-gamma * gamma)))


def jumps(gamma: float = 0.0, goals: Sequence[float] | None = None) -> Solver:
    """The solver of a flow map whose answers stand in for D: jump to the goal, then add noise.

    ``goals`` are the times where the jumps of the grid's steps land, `landing` of each by default.
    """

    def build(path: Path, grid: Sequence[float]) -> Table:
        ends = tuple(grid[1:])
        ahead = goals if goals is not None else [landing(path, s, gamma) for s in ends]
        a, b, c = [], [], []
        for t, s, u in zip(grid[:-1], ends, ahead, strict=True):
            # sigma counts as 0 at t = 1
            keep = 0.0 if u == 1.0 else path.sigma(u) / path.sigma(t)
            back = path.beta(s) / path.beta(u)
            left = 0.0 if u == 1.0 else back * path.sigma(u)
            a.append((back * keep,))
            b.append((path.beta(s) - back * keep * path.beta(t),))
            noise = 0.0 if s == 1.0 else path.sigma(s)
            c.append(math.sqrt(max(noise * noise - left * left, 0.0)))
        return Table(f"jumps({gamma:g})", 1, tuple(grid[:-1]), ends, tuple(a), tuple(b), tuple(c))

    return build


class OracleMap:
    """The exact `JumpModel` of Gaussian data: answers g as a denoised state.

    x is (B, ...), times floats or (B,) with t < 1; answers have the dtype of x. Raises UserError
    unless the oracle's law is Gaussian.
    """

    def __init__(self, oracle: Oracle) -> None:
        if not isinstance(oracle.law, Gaussian):
            raise UserError("only a Gaussian has its flow map in closed form")
        self.law, self.path = oracle.law, oracle.path

    def __call__(
        self, x: Tensor, t: Any, s: Any, mask: Masks = None, cond: Any = None
    ) -> Tensor:
        law, wide = self.law, x.double()
        t, s = (torch.as_tensor(v, dtype=torch.float64, device=x.device) for v in (t, s))
        now, goal = _ends(self.path, t), _ends(self.path, s)
        z = wide - per_sample(now[0].expand(len(x)), wide) * law.mean
        if law.axes is not None:
            z = z.flatten(1) @ law.axes
        (beta_t, sigma_t), (beta_s, sigma_s) = (
            [per_sample(v.expand(len(x)), z) for v in pair] for pair in (now, goal)
        )
        before = beta_t**2 * law.variances + sigma_t**2
        after = beta_s**2 * law.variances + sigma_s**2
        cross = beta_s * sigma_t + sigma_s * beta_t
        slope = (after / before).sqrt() + sigma_s / sigma_t
        z = law.variances * cross / (before * sigma_t * slope) * z
        if law.axes is not None:
            z = (z @ law.axes.mT).reshape(x.shape)
        return (law.mean + z).to(x.dtype)


@dataclass(frozen=True)
class CtmLoss:
    """``total``, a scalar with gradient, and its terms, detached."""

    total: Tensor
    consistency: Tensor
    matching: Tensor


def ctm_times(
    uniform: Tensor, grid: Sequence[float], to_data: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Training times t < u <= s, each (B,), on the stops of ``grid``, from uniforms (B, 3).

    t is any stop but the last, u the next one, s a stop from u on: the last with probability
    ``to_data``, else any alike; in the dtype of ``uniform``. With a teacher that goes from t to u
    by one DDIM step, the map that fulfils consistency is that of DDIM on this grid. Raises
    UserError for a share outside [0, 1].
    """
    if not 0.0 <= to_data <= 1.0:
        raise UserError(f"to_data is a probability, got {to_data!r}")
    stops = torch.tensor(list(grids.check(grid)), dtype=torch.float64, device=uniform.device)
    steps = len(stops) - 1
    wide = uniform.double()
    start = (wide[:, 0] * steps).long()
    goal = start + 1 + (wide[:, 1] * (steps - start)).long()
    goal = torch.where(wide[:, 2] < to_data, steps, goal)
    stops = stops.to(uniform.dtype)
    return stops[start], stops[start + 1], stops[goal]


def ctm_loss(
    flow: FlowMap,
    teacher: Model,
    bridge: Bridge,
    u: Tensor,
    s: Tensor,
    cond: Any = None,
    *,
    reference: FlowMap | None = None,
    substeps: int = 1,
    matching: float = 1.0,
) -> CtmLoss:
    """Soft consistency of the map with itself and with a teacher's flow, on a bridge at t.

    The mean square, over the entries of a sample that exist and then over samples, of
    g(x_t, t, s) - [l g^(x_t, t, u) + (1 - l) g'(x_u, u, s)]: g^ is the mean of the teacher's D over
    ``substeps`` equal DDIM steps from t to u, x_u where they end, and g' the ``reference`` map (a
    moving average; by default this one), which gets no gradient.

    Args:
        bridge: x_t at t (B,), from data, or from a teacher's samples.
        u, s: (B,) with t < u <= s <= 1, see `ctm_times`.
        matching: weight of the matching loss of g(x_t, t, t) on the bridge's data; 0 spares it.

    Raises UserError for times out of order.
    """
    process, x, t, mask = flow.process, bridge.x_t, bridge.t, bridge.mask
    if not bool(((t < u) & (u <= s) & (s <= 1.0) & (t >= 0.0)).all()):
        raise UserError("consistency needs times t < u <= s within [0, 1]")
    if substeps < 1:
        raise UserError(f"substeps must be at least 1, got {substeps!r}")
    parts = real_parts(process)
    with torch.no_grad():
        short, there = _teach(teacher, process, x, t, u, mask, cond, substeps)
        # where the leg to u is the whole way nothing is left to ask, and t = 1 is no start
        onward = torch.where(u == s, t, u).to(t)
        rest = (reference or flow).mean(process.pack(there), onward, s.to(t), mask, cond)
    means = flow.mean(x, t, s.to(t), mask, cond)
    losses = []
    for name, (space, path, _) in parts.items():
        whole, last = _leg(path, t, s)[1], _leg(path, onward, s)[1] * (u != s)
        target = _blend(short[name], rest[name], last / whole)
        miss = (means[name] - target.to(means[name])).square()
        losses.append(entry_mean(miss, space, process.mask_of(name, mask)).mean())
    consistency = torch.stack(losses).sum()
    total, match = consistency, torch.zeros_like(consistency)
    if matching:
        match = matching_loss(flow(x, t, mask, cond), process, bridge).total
        total = total + matching * match
    return CtmLoss(total, consistency.detach(), match.detach())


def _blend(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """(1 - w) first + w second, untouched by ``second`` where w = 0; weight (B,)."""
    w = per_sample(weight, first)
    return torch.where(torch.as_tensor(w == 0.0), first, first + w * (second - first))


def _teach(
    teacher: Model, process: Process, x: State, t: Tensor, u: Tensor, mask: Masks, cond: Any,
    substeps: int,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """g^(x, t, u) by DDIM steps of a teacher, and the states at u."""
    parts, start = real_parts(process), process.unpack(x)
    means: dict[str, Tensor] = {}
    here, time = start, t
    for k in range(1, substeps + 1):
        goal = u if k == substeps else t + (u - t) * (k / substeps)
        answers = denoise(teacher, process, process.pack(here), time.to(t), mask, cond)
        for name, (_, path, _) in parts.items():
            step, way = _leg(path, time, goal)[1], _leg(path, t, goal)[1]
            known = means.get(name, answers[name])
            means[name] = _blend(known, answers[name], step / way)
        here = {
            name: _moved(start[name], means[name], *_leg(path, t, goal))
            for name, (_, path, _) in parts.items()
        }
        time = goal
    return means, here
