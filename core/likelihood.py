r"""Log-likelihoods along the probability flow, and the two maps between data and latents.

The flow dx/dt = b(x, t) carries rho_0, the prior, into rho_1, the data, and along a trajectory

    d log rho_t(x_t) / dt = -div b(x_t, t),
    log rho_1(x_1) = log rho_0(x_0) - int_0^1 div b(x_t, t) dt.

The divergence is integrated together with the state by the solvers of `core.ode`: exactly,

    div b = tr J = sum_i d b_i / d x_i        by one backward pass a coordinate,

or after Hutchinson, as the mean of v . J v over K random signs v (Rademacher probes), drawn once a
trajectory, by one backward pass each. The variance of one is 2 (|S|_F^2 - sum_i S_ii^2) with
S = (J + J')/2: only what couples two coordinates makes noise, and a Gaussian probe has more,
2 |S|_F^2. Every probe integrates its own divergence, so their spread is the standard error of the
answer.

Degrees of freedom. All of this happens inside the space. With P the projection onto it (zero centre
of mass, symmetric pairs counted once, no masked entries) the flow is P b, its divergence is
tr(P J P), a probe is P v, where signs are mirrored first, and the prior is the standard normal of
the space,

    log rho_0(z) = -1/2 |z|^2 / sigma^2 - dof/2 log(2 pi sigma^2),      sigma = sigma(t0).

The prior gap. Where beta(0) > 0 (VP, VE, EDM) the marginal at t = 0 is not that normal. For
Gaussian data of mean m and covariance C it is N(beta m, sigma^2 + beta^2 C); replacing it costs,
per eigenvalue v of C with r = beta^2 v / sigma^2, on average

    KL = 1/2 (r - log(1 + r)) + beta^2 m^2 / (2 sigma^2)

and more for single samples: 1/2 r (1 - z^2 / sigma^2) to first order in r. ``prior`` takes the
exact law, and `gaussian_prior` builds it from the moments of the data.

Ends. The flow runs over times (t0, t1) where the prediction gives a velocity at all:

    t0 = 0, unless beta(0) = 0 and the network predicts noise or score, which say nothing of the
         data there: then beta / sigma = 1e-6.
    t1 = 1, unless sigma(1) = 0 and either the network predicts ``denoised``, where a network that
         errs by any amount has a velocity error / sigma, or sigma' is infinite (VP) and the network
         does not predict the velocity itself: then sigma / beta = 1e-4.

Data enter at t1 as x = beta(t1) x_1, so the answer is the log-density of the data blurred by noise
of standard deviation sigma(t1) / beta(t1): exactly the data's where t1 = 1 and sigma(1) = 0. For
t1 < 1 the blur changes it by 1/2 (sigma/beta)^2 (tr H + |s|^2), 5e-9 times the squared steepness of
the log-density.

References: Chen et al. 2018, "Neural ordinary differential equations"; Grathwohl et al. 2019,
FFJORD; Song et al. 2021; Hutchinson 1989.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from driftworks.core import ode, predict
from driftworks.core.keys import Keys
from driftworks.core.ode import Solution
from driftworks.core.paths import Path
from driftworks.core.predict import per_sample
from driftworks.core.process import Masks, Part, Process, State
from driftworks.core.sample import Model
from driftworks.core.spaces import Space, Symmetric
from driftworks.errors import UserError

__all__ = [
    "Fields",
    "LogProb",
    "Solution",
    "decode",
    "default_times",
    "encode",
    "gaussian_prior",
    "log_prior",
    "log_prob",
]

Prior = Callable[[State, Masks], Tensor]
Time = float | Tensor
Times = tuple[Time | None, Time | None]
Parts = dict[str, Tensor]
_NEAR_DATA, _NEAR_NOISE = 1e-4, 1e-6


@dataclass(frozen=True)
class LogProb:
    """Log-densities in nats and how they were found; numbers (B,), in float64 where real.

    ``stderr`` is the standard error of ``value`` over the probes: 0 for the exact divergence, NaN
    for a single probe. ``latent`` is the state at t0, ``evaluations`` counts network evaluations of
    the flow, and ``ok`` says whose flow arrived (`core.ode`); the value of the others is NaN.
    """

    value: Tensor
    stderr: Tensor
    latent: State
    evaluations: Tensor
    ok: Tensor


def _rows(value: Any, index: Tensor, batch: int) -> Any:
    """The members ``index`` of a structure of tensors (B, ...); what has no batch is shared."""
    if isinstance(value, Tensor):
        return value[index] if value.ndim and len(value) == batch else value
    if isinstance(value, Mapping):
        return {name: _rows(v, index, batch) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rows(v, index, batch) for v in value]
    return value


def _divisible(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_divisible, value.values()))
    if type(value) is list:
        return all(map(_divisible, value))
    return value is None or isinstance(value, Tensor | str | int | float)


def copies(space: Space) -> int:
    """How often a degree of freedom stands in a state: |x|^2 counts it that many times."""
    return 2 if isinstance(space, Symmetric) else 1


def _places(space: Space, x: Tensor, mask: Tensor | None) -> Tensor:
    """Flat numbers of the entries whose projected unit vectors give the trace."""
    entries = torch.ones(x.shape[1:], dtype=torch.bool, device=x.device)
    if isinstance(space, Symmetric):
        pairs = entries.new_ones(x.shape[1:3]).triu(1)
        entries = entries & pairs.view(*pairs.shape, *(1,) * (x.ndim - 3))
    exist = space.entry_mask(mask, x)
    if exist is not None:
        entries = entries & exist.expand_as(x).any(0)
    return entries.flatten().nonzero().squeeze(1)


class Fields:
    """A model as vector fields on its space, with a time for every sample, and their divergence.

    A field is asked for the samples ``index`` of a batch, so that samples that have arrived cost
    nothing: mask and condition are taken apart. Conditions are mappings and lists of tensors
    (B, ...); with one that is anything else the whole batch is evaluated each time, and so it is
    for a model that holds data of its samples and says so by an attribute ``whole_batch = True``.
    The model is asked without a previous prediction, because a flow needs a function of state and
    time, and its answer to a sample must not depend on the other samples.

    Args:
        model: see `core.sample.Model`.
        process: its parts must be real; UserError otherwise.
        like: a state of the whole batch (B, ...).
        mask, cond: passed on to the model.
    """

    def __init__(
        self, model: Model, process: Process, like: State, mask: Masks = None, cond: Any = None
    ):
        self.model, self.process, self.mask, self.cond = model, process, mask, cond
        self.like = process.unpack(like)
        for name, part in process.items():
            path_of(name, part)
            if not isinstance(self.like[name], Tensor) or self.like[name].ndim < 2:
                raise UserError(
                    f"part {name!r} must be a tensor (B, ...), samples first, got "
                    f"{type(self.like[name]).__name__} of shape "
                    f"{tuple(getattr(self.like[name], 'shape', ()))}"
                )
            if not self.like[name].is_floating_point():
                raise UserError(f"part {name!r} holds {self.like[name].dtype}, not real numbers")
        sizes = {name: len(x) for name, x in self.like.items()}
        if len(set(sizes.values())) > 1:
            raise UserError(f"the parts of a state need one batch size, got {sizes}")
        x = next(iter(self.like.values()))
        self.batch, self.everyone = len(x), torch.arange(len(x), device=x.device)
        self.masks = {name: process.mask_of(name, mask) for name in self.like}
        self.divisible = _divisible(cond) and not getattr(model, "whole_batch", False)
        self.asked: int = getattr(model, "evaluations", 1)

    def entries(self) -> dict[str, Tensor | None]:
        """The entries that exist, for every part, bool; None for all."""
        return {
            name: part.space.entry_mask(self.masks[name], self.like[name])
            for name, part in self.process.items()
        }

    def project(self, x: Parts, index: Tensor | None = None) -> Parts:
        """The nearest state inside the space, masked entries zero."""
        return {
            name: part.space.project(x[name], self._mask(name, index))
            for name, part in self.process.items()
        }

    def at(self, x: Parts, t: Tensor, index: Tensor, target: str = "velocity") -> Parts:
        """The field ``target``, a name of `predict.PARAMETRISATIONS`, projected onto the space.

        ``x`` holds the parts of the samples ``index`` (A,) int64, ``t`` (A,) float64 their times.
        """
        answers, out = self._ask(x, t, index), {}
        for name, part in self.process.items():
            answer = answers[name]
            if answer.shape != x[name].shape:
                raise ValueError(
                    f"prediction of part {name!r} has shape {tuple(answer.shape)}, its state "
                    f"{tuple(x[name].shape)}"
                )
            field = predict.convert(
                path_of(name, part), answer.to(x[name].dtype), x[name], t, part.predicts, target
            )
            out[name] = part.space.project(field, self._mask(name, index))
        return out

    def with_divergence(
        self, x: Parts, t: Tensor, index: Tensor, probes: Parts | None, target: str = "velocity"
    ) -> tuple[Parts, Parts]:
        """The field, and the divergence of every part with respect to itself, float64.

        ``probes`` (K, B, ...) of the whole batch, see `signs`, give K estimates (A, K) each;
        without probes the divergence is exact and of shape (A, 1).
        """
        with torch.enable_grad():
            leaves = {name: part.detach().requires_grad_() for name, part in x.items()}
            out = self.at(leaves, t, index, target)
            if probes is None:
                divergence = self._traces(out, leaves, index)
            else:
                divergence = self._products(out, leaves, index, probes)
        return {name: part.detach() for name, part in out.items()}, divergence

    def _traces(self, out: Parts, leaves: Parts, index: Tensor) -> Parts:
        traces = {}
        for name, part in self.process.items():
            x, mask = leaves[name], self._mask(name, index)
            trace = torch.zeros(len(index), 1, dtype=torch.float64, device=x.device)
            rows = out[name].flatten(1)
            for place in _places(part.space, x, mask).tolist():
                (slope,) = _backward(rows[:, place].sum(), [x])
                # tr(P J P) = sum_i (P J' P e_i)_i, and the field is P b already
                trace += part.space.project(slope, mask).flatten(1)[:, place : place + 1]
            traces[name] = trace * copies(part.space)
        return traces

    def _products(self, out: Parts, leaves: Parts, index: Tensor, probes: Parts) -> Parts:
        products: dict[str, list[Tensor]] = {name: [] for name in leaves}
        for k in range(len(next(iter(probes.values())))):
            v = {name: probe[k, index] for name, probe in probes.items()}
            total = torch.stack(
                [
                    (out[name] * v[name]).sum() / copies(part.space)
                    for name, part in self.process.items()
                ]
            ).sum()
            for name, slope in zip(leaves, _backward(total, list(leaves.values())), strict=True):
                product = (slope * v[name]).flatten(1).sum(1, dtype=torch.float64)
                products[name].append(product)
        return {name: torch.stack(columns, 1) for name, columns in products.items()}

    def signs(self, keys: Keys, count: int, stream: str) -> Parts:
        """Rademacher probes (count, B, ...): independent signs, one a degree of freedom.

        On point clouds without centre they are projected, and no longer signs. Probe k is addressed
        by sample, entry and k.
        """
        if len(keys) != self.batch:
            raise UserError(f"there are {len(keys)} keys for {self.batch} samples")
        out = {}
        for name, part in self.process.items():
            x, mask, probes = self.like[name], self.masks[name], []
            for k in range(count):
                # signs before the constraint: mirrored where pairs are, not yet projected
                free = part.space.free_noise(keys, f"{stream}/{name}", k, x, mask)
                probes.append(part.space.project(free.sign(), mask))
            out[name] = torch.stack(probes)
        return out

    def _mask(self, name: str, index: Tensor | None) -> Tensor | None:
        mask: Tensor | None = self.masks[name]
        return mask if index is None else _rows(mask, index, self.batch)

    def _ask(self, x: Parts, t: Tensor, index: Tensor) -> Parts:
        """The model's answer for some samples, in the parts' own parametrisations."""
        mask, cond = self.mask, self.cond
        t = t.to(next(iter(x.values())).dtype)
        whole = len(index) == self.batch
        if not whole and self.divisible:
            mask, cond = _rows(mask, index, self.batch), _rows(cond, index, self.batch)
        elif not whole:
            x = {name: self.like[name].index_copy(0, index, v) for name, v in x.items()}
            t = t.new_full((self.batch,), 0.5).index_copy(0, index, t)
        answer = self.model(self.process.pack(x), t, mask=mask, cond=cond, previous=None)
        if not isinstance(answer, Tensor | dict):
            raise UserError(
                f"the model answers with {type(answer).__name__}: a weighted guide steers samples "
                "but has no probability flow of its own"
            )
        answers = self.process.unpack(answer)
        if next(iter(x.values())).requires_grad and not any(
            part.requires_grad for part in answers.values()
        ):
            raise UserError(
                "the model's answer carries no derivative in the state, so it has no divergence; "
                "does the model run under torch.no_grad?"
            )
        if not whole and not self.divisible:
            answers = {name: v[index] for name, v in answers.items()}
        return answers


def _backward(total: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a sum over the batch, which are those of its samples; zero where unrelated."""
    if not total.requires_grad:
        return tuple(map(torch.zeros_like, leaves))
    return torch.autograd.grad(
        total, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def path_of(name: str, part: Part) -> Path:
    """The path of a real part; UserError for tokens and rotations, which have no such flow."""
    if isinstance(part.path, Path):
        return part.path
    raise UserError(
        f"part {name!r} follows {type(part.path).__name__}, not a path of real numbers, and has no "
        "probability flow: likelihoods and encodings are for processes of real parts"
    )


def default_times(process: Process) -> tuple[float, float]:
    """The longest span (t0, t1) over which every part has a velocity; see the module's text."""
    start, end = 0.0, 1.0
    for name, part in process.items():
        path = path_of(name, part)
        if path.beta(0.0) == 0.0 and part.predicts in ("noise", "score"):
            start = max(start, path.time_of_log_snr(2.0 * math.log(_NEAR_NOISE)))
        bent = not math.isfinite(path.dsigma(1.0)) and part.predicts != "velocity"
        if path.sigma(1.0) == 0.0 and (bent or part.predicts == "denoised"):
            end = min(end, path.time_of_log_snr(-2.0 * math.log(_NEAR_DATA)))
    return start, end


def _times(process: Process, times: Times | None) -> tuple[Time, Time]:
    begin, finish = default_times(process)
    try:
        first, last = (None, None) if times is None else times
    except (TypeError, ValueError):
        raise UserError(f"times must be a pair (t0, t1), got {times!r}") from None
    start, end = begin if first is None else first, finish if last is None else last
    a, b = (torch.as_tensor(t, dtype=torch.float64).cpu() for t in (start, end))
    if not bool(((a >= 0.0) & (a <= b) & (b <= 1.0)).all()):
        raise UserError(f"times must satisfy 0 <= t0 <= t1 <= 1, got ({start}, {end})")
    return start, end


def _scaled(process: Process, x: Parts, t: Time, inverse: bool = False) -> Parts:
    """Data as they enter the flow at time t, beta(t) x, or what leaves it, x / beta(t)."""
    out = {}
    for name, part in process.items():
        beta = per_sample(path_of(name, part).beta(t), x[name])
        out[name] = x[name] / beta if inverse else x[name] * beta
    return out


def _integrate(
    fields: Fields, x: Parts, begin: Time, end: Time, probes: Parts | None, exact: bool,
    tolerance: float | None, steps: int | None, max_evaluations: int, progress: bool | str,
) -> tuple[Parts, Tensor, Solution]:
    """The flow of x from ``begin`` to ``end``, and the integrals of its divergence (B, K)."""
    count = 1 if exact else 0 if probes is None else len(next(iter(probes.values())))
    state = {f"x/{name}": part for name, part in x.items()}
    counted = {f"x/{name}": entries for name, entries in fields.entries().items()}
    first = next(iter(x.values()))
    if count:
        state["divergence"] = torch.zeros(
            len(first), count, dtype=torch.float64, device=first.device
        )

    def slope(y: Parts, t: Tensor, index: Tensor) -> Parts:
        now = {name: y[f"x/{name}"] for name in x}
        if not count:
            field = fields.at(now, t, index)
            return {f"x/{name}": part for name, part in field.items()}
        field, divergence = fields.with_divergence(now, t, index, probes)
        out = {f"x/{name}": part for name, part in field.items()}
        out["divergence"] = torch.stack(list(divergence.values())).sum(0)
        return out

    if steps is not None:
        run = ode.rk4(slope, state, begin, end, steps=steps, progress=progress)
    else:
        double = all(part.dtype == torch.float64 for part in x.values())
        run = ode.dopri5(
            slope, state, begin, end,
            rtol=(1e-7 if double else 1e-5) if tolerance is None else tolerance,
            counted=counted, max_evaluations=max_evaluations, progress=progress,
        )
    failed = int((~run.ok).sum())
    if failed:
        warnings.warn(
            f"the flow of {failed} of {len(run.ok)} samples did not arrive; see .ok",
            RuntimeWarning,
            stacklevel=4,
        )
    arrived = fields.project({name: run.x[f"x/{name}"] for name in x})
    integral = run.x.get("divergence", torch.zeros(len(first), 0, dtype=torch.float64))
    return arrived, integral, Solution(None, run.evaluations * fields.asked, run.ok)


@torch.no_grad()
def log_prob(
    model: Model,
    process: Process,
    x: State,
    mask: Masks = None,
    *,
    keys: Keys | None = None,
    probes: int = 0,
    prior: Prior | None = None,
    times: Times | None = None,
    tolerance: float | None = None,
    steps: int | None = None,
    cond: Any = None,
    max_evaluations: int = 10_000,
    progress: bool | str = False,
) -> LogProb:
    """The model's log-density at data x, in nats, on the space that the process declares.

    Args:
        model, process: real parts only.
        x: data (B, ...), projected into their space first.
        mask: the nodes that exist, (B, N) bool or one a part; passed on to the model.
        probes: 0 for the exact divergence, which takes one derivative a degree of freedom; or the
            number of Hutchinson probes, two or more for a standard error.
        keys: the samples' keys (B,), needed for probes.
        prior: the law of the state at t0, as a function of (state, mask) that returns (B,); the
            standard normal times sigma(t0) by default, see `log_prior` and `gaussian_prior`.
        times: (t0, t1), each a number or (B,), or None for that of `default_times`. With t1 < 1 the
            answer is the density of data blurred by sigma(t1) / beta(t1).
        tolerance: of an adaptive step; 1e-7 for float64 and 1e-5 otherwise.
        steps: take this many steps of RK4 instead.
        cond: passed on to the model.
        max_evaluations: of one sample; `LogProb.ok` is False where they did not suffice.
        progress: show a progress bar, with this title if it is a string.

    Raises UserError for token parts and settings that do not fit. Warns when a flow failed.
    """
    if not (isinstance(probes, int) and probes >= 0):
        raise UserError(f"probes must be 0 or a number of probes, got {probes!r}")
    if probes and keys is None:
        raise UserError(f"{probes} probes need keys: pass keys=Keys.for_samples(seed, ids)")
    fields = Fields(model, process, x, mask, cond)
    t0, t1 = _times(process, times)
    data = fields.project(_scaled(process, fields.like, t1))
    signs = fields.signs(keys, probes, "likelihood") if keys is not None and probes else None
    latent, integrals, run = _integrate(
        fields, data, t1, t0, signs, not probes, tolerance, steps, max_evaluations, progress
    )
    z = process.pack(latent)
    start = log_prior(process, z, mask, t0) if prior is None else prior(z, mask)
    if start.shape != run.ok.shape:
        raise UserError(f"prior must return {tuple(run.ok.shape)}, got {tuple(start.shape)}")
    value = start.double() + integrals.mean(1)
    for name, part in process.items():
        beta = torch.as_tensor(path_of(name, part).beta(t1), dtype=torch.float64)
        dof = part.space.dof(process.mask_of(name, mask), fields.like[name])
        value = value + dof * beta.log().to(value.device)
    if not probes:
        stderr = torch.zeros_like(value)
    elif probes == 1:
        stderr = torch.full_like(value, math.nan)
    else:
        stderr = integrals.std(1) / math.sqrt(probes)
    nan = torch.full_like(value, math.nan)
    return LogProb(
        torch.where(run.ok, value, nan), torch.where(run.ok, stderr, nan), z, run.evaluations,
        run.ok,
    )


@torch.no_grad()
def encode(
    model: Model,
    process: Process,
    x: State,
    mask: Masks = None,
    *,
    times: Times | None = None,
    tolerance: float | None = None,
    steps: int | None = None,
    cond: Any = None,
    max_evaluations: int = 10_000,
    progress: bool | str = False,
) -> Solution:
    """The latents x_{t0} of data x under the probability flow; arguments as in `log_prob`.

    With t0 > 0 the latent is a state at that noise level. Data enter as beta(t1) x.
    """
    fields = Fields(model, process, x, mask, cond)
    t0, t1 = _times(process, times)
    data = fields.project(_scaled(process, fields.like, t1))
    z, _, run = _integrate(
        fields, data, t1, t0, None, False, tolerance, steps, max_evaluations, progress
    )
    return Solution(process.pack(z), run.evaluations, run.ok)


@torch.no_grad()
def decode(
    model: Model,
    process: Process,
    z: State,
    mask: Masks = None,
    *,
    times: Times | None = None,
    tolerance: float | None = None,
    steps: int | None = None,
    cond: Any = None,
    max_evaluations: int = 10_000,
    progress: bool | str = False,
) -> Solution:
    """The data behind latents z = x_{t0}: the inverse of `encode`, with the same arguments."""
    fields = Fields(model, process, z, mask, cond)
    t0, t1 = _times(process, times)
    start = fields.project(fields.like)
    x, _, run = _integrate(
        fields, start, t0, t1, None, False, tolerance, steps, max_evaluations, progress
    )
    return Solution(process.pack(_scaled(process, x, t1, inverse=True)), run.evaluations, run.ok)


def log_prior(process: Process, z: State, mask: Masks = None, t: Time = 0.0) -> Tensor:
    """Log-density (B,), float64, of z under the standard normal of its space times sigma(t)."""
    return _normal(process, process.unpack(z), mask, t, {name: 0.0 for name, _ in process.items()})


def gaussian_prior(
    process: Process,
    variance: float | Mapping[str, float],
    mean: Any = 0.0,
    t: Time = 0.0,
) -> Prior:
    """The law at t0 = ``t`` of Gaussian data, N(beta m, (sigma^2 + beta^2 v) I) on the space.

    Exact for data of that law, and nearer to the truth than the plain prior for all others of mean
    ``mean`` and ``variance`` a degree of freedom. Both are one for all parts, or mappings; a mean
    is a number or broadcasts against the part's state.
    """
    variances, means = (
        dict(v) if isinstance(v, Mapping) else {name: v for name, _ in process.items()}
        for v in (variance, mean)
    )
    for name, part in process.items():
        if name not in variances or name not in means:
            raise UserError(f"no variance or no mean for part {name!r}")
        path_of(name, part)
        if not 0.0 <= float(variances[name]) < math.inf:
            raise UserError(f"variance of part {name!r} must be >= 0, got {variances[name]!r}")

    def law(z: State, mask: Masks = None) -> Tensor:
        shifted = {}
        for name, x in process.unpack(z).items():
            part, m = process.parts[name], process.mask_of(name, mask)
            centre = torch.as_tensor(means[name], dtype=x.dtype, device=x.device).expand_as(x)
            beta = per_sample(path_of(name, part).beta(t), x)
            shifted[name] = x - beta * part.space.project(centre, m)
        return _normal(process, shifted, mask, t, variances)

    return law


def _normal(
    process: Process, z: Parts, mask: Masks, t: Time, variances: Mapping[str, float]
) -> Tensor:
    total: Any = 0.0
    for name, part in process.items():
        x, path, m = z[name].double(), path_of(name, part), process.mask_of(name, mask)
        spread = path.sigma(t) ** 2 + path.beta(t) ** 2 * variances[name]
        spread = torch.as_tensor(spread, dtype=torch.float64, device=x.device)
        square = part.space.project(x, m).square().flatten(1).sum(1) / copies(part.space)
        dof = part.space.dof(m, x)
        total = total - 0.5 * (square / spread + dof * torch.log(2.0 * math.pi * spread))
    assert isinstance(total, Tensor)
    return total
