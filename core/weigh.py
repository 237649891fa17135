r"""Guides that keep the score: exact weights for annealing, guidance and products of experts.

A guided network follows the score of prod q_i^w_i at every noise level, and its samples do not have
that law at the end: guidance of weight 2 between N(0, 1) and N(1, .4) has mean 1.40 to 1.53 where
cond^2 uncond^-1 has 1.25. The guides of this file answer with the drift and with the rate of a
log-weight that repairs it (`core.feynman_kac` has the mathematics, `core.steer` tilts by h):

    target    q^W        cond^w uncond^(1-w)    q_1 q_2              q_1 q_2^-.3
    guide     anneal     guidance               product              product

    target = anneal(process, 2.0, reference=1.7)
    out = sample(model, process, keys, like, guide=target, particles=Resampling())
    out.weights.log_normaliser, out.weights.mean(out.x)

What a solver is told. A row of a table (`core.tables`) makes its drift from one denoised state D:
at noise eps = zeta lam it is a x + (1 + zeta) lam (beta D - x) / sigma^2. So the answer is

    D = (D_flow + zeta D_target) / (1 + zeta),
    D_flow = sum_i w_i D_i - (W - 1) D_r + k sigma^2/beta grad h,
    D_target = sum_i w_i D_i - (W - 1) x / beta + sigma^2/beta grad h
             = (x + sigma^2 grad log p) / beta,

and zeta must be known, unless the two agree: for W = 1 (guidance) without h, and with h for k = 1,
the drift of "classifier guidance", which needs the Laplacian of h. Rows that only correct
(times = ends) take D_target. The loop tells its tables by `Weigher.follow`. A solver whose noise is
infinite at beta = 0, such as ddpm on the linear path, must start later where W != 1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from driftworks.core.feynman_kac import (
    FAINTEST,
    Level,
    Move,
    Reference,
    dot,
    least_noise,
    product_move,
    tilt_move,
)
from driftworks.core.guide import Guided, cfg
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian
from driftworks.core.paths import Path
from driftworks.core.predict import as_denoised, convert
from driftworks.core.process import Masks, Part, Process, State
from driftworks.core.spaces import Centred
from driftworks.core.tables import Table
from driftworks.errors import UserError

__all__ = [
    "Expert",
    "Target",
    "Tilt",
    "Weighted",
    "Weigher",
    "anneal",
    "guidance",
    "noise_ratios",
    "product",
    "references",
]

Noise = float | Callable[[Tensor], Any]
References = float | Gaussian | Mapping[str, float | Gaussian]


@dataclass(frozen=True)
class Weighted:
    """What a weighing guide answers.

    ``prediction`` drives the solver, in the parts' parametrisation. ``rate`` (R, B), float64, is
    the derivative of the log-weight in the R clocks of ``target``, without the volume.
    """

    prediction: State
    rate: Tensor
    target: Target


class Expert(NamedTuple):
    """One factor q^weight: a model (None for the one that is guided), asked with its condition."""

    model: Any
    weight: float
    conditional: bool = True


@dataclass(frozen=True)
class Tilt:
    """A factor e^h: h(x, t), its Laplacian (x, t, mask) if known, the drift k in units of lam."""

    value: Callable[[Any, Tensor], Tensor]
    laplacian: Callable[[Any, Tensor, Masks], Any] | None
    drift: float


@dataclass(frozen=True, eq=False)
class Target:
    """The law that weights lead to: a guide, to be called with a model or given to ``sample``.

    Built by `anneal`, `product`, `guidance` and the functions of `core.steer`.
    """

    process: Process
    experts: tuple[Expert, ...]
    references: Mapping[str, Reference]
    noise: Noise | None = None
    tilt: Tilt | None = None

    def __post_init__(self) -> None:
        for name, part in self.process.items():
            if part.space.discrete or not isinstance(part.path, Path):
                raise UserError(
                    f"weights hold for real parts on a Gaussian path; part {name!r} is "
                    f"{type(part.space).__name__} on {type(part.path).__name__}"
                )
        for expert in self.experts:
            if not math.isfinite(expert.weight):
                raise UserError(f"the weight of an expert must be finite, got {expert.weight}")
        if not self.total > 0.0:
            raise UserError(
                f"the weights of the experts must have a positive sum, got {self.total:g}: the "
                "noise at t = 0 has no law otherwise"
            )
        if self.noise is not None and not callable(self.noise):
            ratio = float(self.noise)
            if not ratio >= 0.0:
                raise UserError(f"noise must be a ratio eps / lam >= 0, got {ratio}")
            self.warn(ratio)

    @property
    def total(self) -> float:
        """W, the sum of the experts' weights, with rounding of decimal weights removed."""
        return round(sum(expert.weight for expert in self.experts), 12)

    def path(self, name: str) -> Path:
        path = self.process.parts[name].path
        assert isinstance(path, Path)
        return path

    def parts(self, state: State) -> dict[str, Tensor]:
        """The parts of a state in the order of the process."""
        parts = self.process.unpack(state)
        return {name: parts[name] for name in self.process.parts}

    def __call__(self, model: Any) -> Weigher:
        """The model whose answers carry weights."""
        return Weigher(self, model)

    def clocks(self, t: float) -> list[float]:
        """The R clocks phi at time t: those of the parts, twice if there is a tilt."""
        clocks = [
            math.atan2(ref.unit * self.path(name).beta(t), self.path(name).sigma(t))
            for name, ref in self.references.items()
        ]
        return clocks * 2 if self.tilt else clocks

    def vanishing(self) -> list[bool]:
        """For each clock whether its rate goes to 0 with sigma; rates of tilts need not."""
        parts = len(self.references)
        return [True] * parts + [False] * parts * (self.tilt is not None)

    def volumes(self, t: float) -> list[float]:
        """The exact part of the log-weight of each part up to a constant, per degree of freedom."""
        return [
            0.0 if self.total == 1.0 else -0.5 * (self.total - 1.0) * ref.log_spread(path, t)
            for path, ref in ((self.path(n), ref) for n, ref in self.references.items())
        ]

    def dof(self, state: State, mask: Masks = None) -> Tensor:
        """Degrees of freedom of each part of each sample, float64 (P, B)."""
        return torch.stack([
            self.process.parts[name].space.dof(self.process.mask_of(name, mask), x)
            for name, x in self.parts(state).items()
        ])

    def _start_variance(self, name: str, t: float) -> float:
        """The variance of one expert's x_t near the noise end, by the reference."""
        path, ref = self.path(name), self.references[name]
        finite = math.isfinite(ref.scale)
        return ref.spread(path, t) if finite else path.sigma(t) ** 2

    def prior(self, keys: Keys, like: State, mask: Masks = None, t: float = 0.0) -> State:
        """Where to start: prod q_i^w_i at time t near 0, N(beta m, V / W), shaped as ``like``.

        Exact where beta(t) = 0, and at any t for experts that have the law of the reference. For
        W = 1 at t = 0 it is the prior of the process.
        """
        if self.total == 1.0 and t == 0.0:
            return self.process.prior(keys, like, mask)
        shapes, out = self.process.unpack(like), {}
        for name, part in self.process.items():
            x, m, ref = shapes[name], self.process.mask_of(name, mask), self.references[name]
            noise = part.space.noise(keys, f"prior/{name}", 0, x, m)
            scale = math.sqrt(self._start_variance(name, t) / self.total)
            centre = self.path(name).beta(t) * ref.shift(noise)
            out[name] = part.space.project(noise * scale + centre, m)
        return self.process.pack(out)

    def start(self, state: State, mask: Masks, t: float) -> Tensor:
        """Log-weights (B,) of a state drawn by ``prior``: log-normaliser of p_t and its tilt.

        Raises UserError for a state at the noise end whose size is not that of ``prior``.
        """
        parts, total = self.parts(state), self.total
        x = next(iter(parts.values()))
        logs = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        if total != 1.0:
            if not callable(self.noise) and self.noise:
                self.check_noise([t], [math.inf])  # a ratio to lam, which is infinite there
            for name, dof in zip(parts, self.dof(state, mask), strict=True):
                v = self._start_variance(name, t)
                self._check_start(name, parts[name], mask, t, v / total, dof)
                entry = -0.5 * total * math.log(2 * math.pi * v)
                logs += dof * (entry + 0.5 * math.log(2 * math.pi * v / total))
        if self.tilt is not None:
            times = torch.full_like(logs, t)
            logs += self.tilt.value(state, Level.at(self.first_path, times).t).detach().double()
        return logs

    @property
    def first_path(self) -> Path:
        return self.path(next(iter(self.references)))

    def _check_start(
        self, name: str, x: Tensor, mask: Masks, t: float, v: float, dof: Tensor
    ) -> None:
        path, ref, space = self.path(name), self.references[name], self.process.parts[name].space
        beta = path.beta(t)
        if beta > 0.0 and math.isinf(ref.scale):
            ratio = beta / path.sigma(t)
        else:
            ratio = beta * ref.unit / path.sigma(t)
        if ratio == 0.0 and math.isinf(ref.scale):
            raise UserError(
                "with an infinite reference scale the weights are infinite where beta = 0: give "
                "the reference a scale, or start at a time t > 0"
            )
        if ratio > 0.03:
            return  # the state may be of the user's own making
        z = space.project(ref.centre(x, x.new_tensor([beta])), self.process.mask_of(name, mask))
        found, expected = float(dot(space, z, z).sum()) / v, float(dof.sum())
        if abs(found - expected) > 10.0 * math.sqrt(2.0 * expected) + 0.1 * expected:
            raise UserError(
                f"the initial part {name!r} has variance {found / expected * v:.4g} an entry, the "
                f"law to be sampled has {v:.4g} there: start from Target.prior(keys, like, mask)"
            )

    def check_noise(self, times: Sequence[float], ratios: Sequence[Any]) -> None:
        """UserError where an infinite ratio eps / lam makes the drift infinite, at beta = 0."""
        for path in map(self.path, self.references):
            for t, ratio in zip(times, ratios, strict=True):
                if self.total == 1.0 or path.beta(t) != 0.0 or isinstance(ratio, Tensor):
                    continue
                if math.isinf(ratio):
                    raise UserError(
                        f"the solver's noise is infinite at t = {t}, where beta = 0, and so is its "
                        f"drift towards a law of total power {self.total:g}: use a solver whose "
                        "noise is bounded there, such as euler_maruyama, or start at t > 0"
                    )

    def warn(self, noise: float) -> None:
        """RuntimeWarning when weights have infinite variance at this ratio eps / lam."""
        infinite = any(math.isinf(ref.scale) for ref in self.references.values())
        if infinite and self.total >= 2.0 and noise < least_noise(self.total):
            warnings.warn(
                f"without a reference, weights of total power {self.total:g} have infinite "
                f"variance at noise eps / lam = {noise:.3g} < {least_noise(self.total):.3g}; give "
                "the reference a scale, or the solver more noise",
                RuntimeWarning,
                stacklevel=4,
            )


def noise_ratios(path: Path, table: Table) -> list[Any]:
    """eps / lam of every row of a table, a float or a tensor per entry; inf in correcting rows.

    Exponential rows, which keep sqrt(sigma_u^2 - c^2) of the old noise, have the ratio
    -log(1 - c^2 / sigma_u^2) / (log-SNR step); others c^2 / (2 lam h), with lam as large as it is
    where a `Level` has it.
    """
    ratios: list[Any] = []
    first = path.time_of_log_snr(FAINTEST)
    earlier = table.d or (0.0,) * len(table)
    for t, u, a, c, d in zip(table.times, table.ends, table.a, table.c, earlier, strict=True):
        fresh: Any = c + d
        if not isinstance(fresh, Tensor) and fresh == 0.0:
            ratios.append(0.0)
        elif t == u:
            ratios.append(math.inf)
        elif isinstance(fresh, Tensor):
            ratios.append(fresh * fresh / (2.0 * path.lam(max(t, first)) * (u - t)))
        else:
            sigma, sigma_u = path.sigma(t), path.sigma(u)
            kept = 1.0 - (fresh / sigma_u) ** 2 if sigma_u else -1.0
            whole = sigma_u / sigma * math.sqrt(kept) if kept >= 0.0 else math.nan
            if abs(float(a[0]) - whole) <= 1e-9 * whole:
                step = path.log_snr(u) - path.log_snr(t)
                ratios.append(-math.log(kept) / step if kept > 0.0 else math.inf)
            else:
                ratios.append(fresh * fresh / (2.0 * path.lam(max(t, first)) * (u - t)))
    return ratios


@dataclass
class Weigher:
    """A model that answers with weights: a `Target` applied to a model. Good for one run."""

    target: Target
    model: Any
    _guided: Guided | None = field(init=False, default=None)
    _times: Sequence[float] = field(init=False, default=())
    _ratios: dict[str, list[Any]] = field(init=False, default_factory=dict)
    _row: int = field(init=False, default=-1)

    def __post_init__(self) -> None:
        if any(not expert.conditional for expert in self.target.experts):
            self._guided = cfg(self.model, 2.0)
        models = [self.model if e.model is None else e.model for e in self.target.experts]
        self.evaluations = sum(getattr(model, "evaluations", 1) for model in models)

    def prior(self, keys: Keys, like: State, mask: Masks = None) -> State:
        """`Target.prior` at t = 0, where a run without an initial state starts."""
        return self.target.prior(keys, like, mask)

    def follow(self, tables: Mapping[str, Table], first: int = 0) -> None:
        """Take the noise level from the tables that will be followed from row ``first`` on, unless
        it was given.
        """
        if self.target.noise is not None:
            return
        self._row = first - 1
        for name, table in tables.items():
            path = self.target.path(name)
            self._times, self._ratios[name] = table.times, noise_ratios(path, table)
            self.target.check_noise(table.times, self._ratios[name])
            early = [
                float(ratio.min()) if isinstance(ratio, Tensor) else ratio
                for t, ratio in zip(table.times, self._ratios[name], strict=True)
                if path.beta(t) < path.sigma(t)
            ]
            self.target.warn(min(early, default=math.inf))

    def __call__(
        self,
        x: State,
        t: Tensor,
        mask: Masks = None,
        cond: Any = None,
        previous: State | None = None,
    ) -> Weighted:
        process, target = self.target.process, self.target
        answers = [process.unpack(a) for a in self._ask(x, t, mask, cond, previous)]
        state, self._row = target.parts(x), self._row + 1
        masks = {name: process.mask_of(name, mask) for name in state}
        moves = {
            name: self._product(name, part, state[name], t, [a[name] for a in answers], masks[name])
            for name, part in process.items()
        }
        rates = [move.rate for move in moves.values()]
        if target.tilt is not None:
            moves = self._tilt(target.tilt, x, t, mask, moves)
            rates += [move.rate for move in moves.values()]
        out = {}
        for name, part in process.items():
            flow, goal, _ = moves[name]
            if flow is not goal:
                noise = self._noise(name, t)
                if isinstance(noise, Tensor) and noise.ndim > 1 and isinstance(part.space, Centred):
                    raise UserError(
                        f"part {name!r}: these weights need one noise level for all points of a "
                        "centred cloud"
                    )
                flow = self._mix(flow, goal, noise)
            out[name] = convert(target.path(name), flow, state[name], t, "denoised", part.predicts)
        return Weighted(process.pack(out), torch.stack(rates), target)

    def _ask(
        self, x: State, t: Tensor, mask: Masks, cond: Any, previous: State | None
    ) -> list[State]:
        if self._guided is not None:
            return list(self._guided._ask_both(x, t, mask, cond, previous))
        models = [self.model if e.model is None else e.model for e in self.target.experts]
        return [m(x, t, mask=mask, cond=cond, previous=previous) for m in models]

    def _product(
        self, name: str, part: Part, x: Tensor, t: Tensor, answers: list[Tensor],
        mask: Tensor | None,
    ) -> Move:
        target, path = self.target, self.target.path(name)
        denoised = [
            part.space.project(as_denoised(path, p.to(x.dtype), x, t, part.predicts), mask)
            for p in answers
        ]
        weights = [expert.weight for expert in target.experts]
        ref = target.references[name]
        return product_move(
            path, part.space, ref, weights, target.total, denoised, x, t, mask
        )

    def _tilt(
        self, tilt: Tilt, x: State, t: Tensor, mask: Masks, moves: dict[str, Move]
    ) -> dict[str, Move]:
        """The moves of all parts along h, each with its share of the tilt's rate."""
        process, target = self.target.process, self.target
        state = target.parts(x)
        times = Level.at(target.first_path, t).t
        with torch.enable_grad():
            leaves = {name: part.detach().requires_grad_() for name, part in state.items()}
            clock = times.detach().requires_grad_()
            h = tilt.value(process.pack(leaves), clock)
            if not (isinstance(h, Tensor) and h.shape == clock.shape):
                raise UserError(f"h(x, t) must be a tensor of shape {tuple(clock.shape)}")
            if not h.requires_grad:
                raise UserError("h(x, t), or the reward, must be differentiable with respect to x")
            *slopes, elapsed = torch.autograd.grad(
                h.sum(), [*leaves.values(), clock], allow_unused=True, materialize_grads=True
            )
        curvature = tilt.laplacian(x, times, mask) if tilt.laplacian and tilt.drift else 0.0
        out: dict[str, Move] = {}
        for (name, part), slope in zip(process.items(), slopes, strict=True):
            slope = part.space.project(slope, process.mask_of(name, mask))
            out[name] = tilt_move(
                target.path(name), part.space, target.references[name], moves[name], state[name],
                t, slope, 0.0 if out else elapsed, tilt.drift,
                curvature.get(name, 0.0) if isinstance(curvature, Mapping) else curvature,
            )
        return out

    @staticmethod
    def _mix(flow: Tensor, goal: Tensor, noise: Any) -> Tensor:
        """(D_flow + zeta D_target) / (1 + zeta)."""
        if isinstance(noise, Tensor):
            noise = noise.to(flow).reshape(*noise.shape, *(1,) * (flow.ndim - noise.ndim))
            share = torch.where(noise.isinf(), 1.0, noise / (1.0 + noise))
            return flow + share * (goal - flow)
        if noise == 0.0:
            return flow
        return goal if math.isinf(noise) else torch.lerp(flow, goal, noise / (1.0 + noise))

    def _noise(self, name: str, t: Tensor) -> Any:
        """zeta = eps / lam now: a float, or a tensor that broadcasts against the state."""
        given = self.target.noise
        if callable(given):
            value = given(Level.at(self.target.path(name), t).t)
            return value if isinstance(value, Tensor) else float(value)
        if given is not None:
            return float(given)
        if name not in self._ratios:
            raise UserError(
                "these weights need to know the solver's noise: give noise = eps / lam (0 for an "
                "ODE, 1 for the reverse SDE, eta for dpmpp)"
            )
        now = float(t[0])
        rows = [k for k in range(self._row, len(self._times)) if abs(self._times[k] - now) < 1e-6]
        if not rows:
            raise UserError(f"asked at t = {now}, where the tables it follows have no row left")
        self._row = rows[0]
        return self._ratios[name][self._row]


def references(process: Process, given: References) -> dict[str, Reference]:
    if isinstance(given, Mapping):
        if set(given) != set(process.parts):
            raise UserError(
                f"references name the parts {', '.join(given)}; the parts are "
                f"{', '.join(process.parts)}"
            )
        return {name: Reference.of(given[name]) for name in process.parts}
    return {name: Reference.of(given) for name in process.parts}


def product(
    process: Process,
    experts: Mapping[str, tuple[Any, float]],
    *,
    reference: References = 1.0,
    noise: Noise | None = None,
) -> Target:
    """prod q_i^w_i: a product of experts, with negative weights for what a design must not be.

    Args:
        process: what the state is made of; all parts real.
        experts: name -> (model, weight); the model None is the one that is guided. All are asked
            with the same mask, condition and previous answer.
        reference: the scale of the data (a standard deviation, `predict.fit_scale`), or its law as
            a `Gaussian` with one variance; one, or one a part. Matters only for W != 1.
        noise: eps / lam of the solver in force, a number or a function of time (float64 tensors);
            by default read from the solver's table. Matters only where W != 1.
    """
    if not experts:
        raise UserError("a product needs at least one expert")
    chosen = tuple([Expert(model, float(weight)) for model, weight in experts.values()])
    return Target(process, chosen, references(process, reference), noise)


def anneal(
    process: Process, power: float, *, reference: References = 1.0, noise: Noise | None = None
) -> Target:
    """q^power: sharper than the data for power > 1, wider for power < 1; see `product`."""
    return product(process, {"model": (None, power)}, reference=reference, noise=noise)


def guidance(process: Process, weight: float) -> Target:
    """Classifier-free guidance that samples cond^w uncond^(1-w), which `guide.cfg` does not.

    The unconditional answer is asked for as in `guide.cfg`. Any solver and noise level will do.
    """
    experts = (Expert(None, float(weight)), Expert(None, 1.0 - weight, conditional=False))
    return Target(process, experts, references(process, 1.0))
