r"""Changing what is there: latent editing, inpainting with time travel, chains over noise levels.

CODE (`code_edit`) carries data along the probability flow to a noise level t, corrects the latent
there, and carries it back. Without correction it returns the data, so it edits no more than it is
told to. The corrections:

    clipping    data known to lie within [low, high] have x_t = beta x_1 + sigma e in
                [beta low - k sigma, beta high + k sigma], k standard deviations of confidence;
                what lies outside is moved to the bound: such entries hold no data
    Langevin    x' = x + d s + noise sqrt(2 d) z, d = 2 (ratio sigma)^2, some steps. On Gaussian
                data of variance V at that level each step contracts the latent by (1 - d / V)

Inpainting with time travel (`inpaint`). Known entries held on their own bridge steer the unknown
ones, but these hear of them late: what was decided at high noise no longer fits. So every stretch
of the grid is run several times; in between the state is taken back by the exact transition of the
noising process, from time u to an earlier time s,

    real parts    x_s = (beta_s / beta_u) x_u + sqrt(sigma_s^2 - (beta_s / beta_u)^2 sigma_u^2) z
    tokens        every token is given up with probability 1 - kappa_s / kappa_u

which takes the law at u to the law at s, of known entries too. More passes come nearer to the
conditional law: for two Gaussians of correlation 0.9, one known at 1.5, stretches of 5 in 40 steps
leave the mean of the other short by 0.69, 0.29, 0.06 and 0.02 after 1, 3, 12 and 40 passes.

Denoising MCMC (`denoising_mcmc`) is a chain on data and noise level together. With y = x_t / beta
and r = sigma / beta, y = x_1 + r e on every path, and one sweep takes, at fixed level, Langevin
steps in y, and at fixed y the level from its posterior over a grid, p(r | y) ~ q_r(y). Modes that
are far apart at low noise are one at high noise, so the chain travels. Any of its states, carried
to the data by the probability flow from its own level, is a draw from the data's law. The
densities q_r(y) come from a classifier of noise levels or from the model itself: q satisfies the
heat equation, so that

    d log q_r(y) / d log r = div_y D(y, r) - dof + |D - y|^2 / r^2

whose integral over r, at fixed y, needs the denoiser D and its divergence.

References: van Delft, Martorella & Alahi 2024, "CODE: Confident ordinary differential editing";
Lugmayr et al. 2022, "RePaint"; Kim & Ye 2022, "Denoising MCMC for accelerating diffusion-based
generative models".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftworks.core import grids
from driftworks.core.correctors import langevin
from driftworks.core.ctmc import TokenRoute
from driftworks.core.keys import Keys
from driftworks.core.likelihood import Fields, copies, decode, encode, path_of
from driftworks.core.paths import Path
from driftworks.core.predict import per_sample
from driftworks.core.process import Masks, Process, State
from driftworks.core.sample import Model, Samples, sample, shown
from driftworks.core.solvers import Solver
from driftworks.core.spaces import Tokens
from driftworks.core.tables import Table
from driftworks.errors import UserError

__all__ = [
    "Chain",
    "Edited",
    "code_edit",
    "denoising_mcmc",
    "inpaint",
    "level_log_density",
    "renoise",
]

Parts = dict[str, Tensor]
Bounds = tuple[Any, Any]


@dataclass(frozen=True)
class Edited:
    """Edited data; ``latent`` is the corrected state at the level, ``encoded`` the one before it.

    ``clipped`` (B,) is the share of entries that clipping moved, ``evaluations`` (B,) int64, and
    ``ok`` (B,) says for whom both flows arrived.
    """

    x: State
    latent: State
    encoded: State
    clipped: Tensor
    evaluations: Tensor
    ok: Tensor


@dataclass(frozen=True)
class Chain:
    """Draws of a chain over data and noise level, and where it stands.

    ``x`` holds the denoised draws (samples, B, ...), ``level`` (samples, B) int64 the levels they
    were denoised from. ``noisy`` (B, ...) is the state x_t the chain stands in, at the last of the
    levels, after ``sweeps`` sweeps in all. ``evaluations`` (B,) counts network evaluations without
    those of a classifier; ``ok`` (B,) is False where a state or a flow went astray.
    """

    x: State
    level: Tensor
    noisy: State
    sweeps: int
    evaluations: Tensor
    ok: Tensor


def _whole(minimum: int, **values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise UserError(f"{name} must be a whole number of at least {minimum}, got {value!r}")


def code_edit(
    model: Model,
    process: Process,
    x: State,
    keys: Keys,
    mask: Masks = None,
    *,
    level: float,
    steps: int = 20,
    ratio: float = 0.16,
    noise: float = 1.0,
    bounds: Bounds | Mapping[str, Bounds] | None = None,
    deviations: float = 2.0,
    tolerance: float | None = None,
    cond: Any = None,
    stream: str = "code",
    progress: bool | str = False,
) -> Edited:
    """Bring data x (B, ...) closer to what the model knows, and change as little as needed.

    Args:
        model, process: real parts only.
        keys: the samples' keys (B,).
        mask: the nodes that exist, (B, N) bool or one a part; passed on to the model.
        level: the time of the correction, between 0 and 1; the earlier, the more may change.
        steps, ratio: Langevin steps of size d = 2 (ratio sigma)^2; none with ``steps`` = 0.
        noise: of the Langevin steps; 1 samples around the latent, 0 only climbs to more likely
            latents.
        bounds: (low, high) of the data, numbers or tensors that broadcast against the part, or one
            pair a part; turns clipping on. Two standard ``deviations`` are 95 % confidence.
        tolerance: of the flows, see `likelihood.log_prob`.
        cond: passed on to the model.
        stream: names the noise.
        progress: show progress bars, with this title if it is a string.

    Raises UserError for token parts and settings out of range.
    """
    _whole(0, steps=steps)
    if not 0.0 < level < 1.0:
        raise UserError(f"level must be a time between 0 and 1, got {level!r}")
    if not (0.0 <= noise < math.inf and 0.0 <= deviations < math.inf):
        raise UserError(f"noise and deviations must be >= 0, got {noise!r} and {deviations!r}")
    fields = Fields(model, process, x, mask, cond)
    there = encode(
        model, process, x, mask, times=(level, None), tolerance=tolerance, cond=cond,
        progress=progress,
    )
    latent = process.unpack(there.x)
    latent, clipped = _clip(fields, latent, level, bounds, deviations)
    finite, spent = there.ok, there.evaluations
    if steps:
        def rows(path: Path, grid: Sequence[float]) -> Table:
            table = langevin(path, level, steps, ratio)
            return replace(table, c=tuple(noise * weight for weight in table.c))

        run = sample(
            model, process, keys, process.pack(latent), mask, solver=rows, grid=(level, 1.0),
            initial=process.pack(latent), cond=cond, stream=stream, progress=progress,
        )
        latent, finite = process.unpack(run.x), finite & run.finite
        spent = spent + run.nfe
    back = decode(
        model, process, process.pack(latent), mask, times=(level, None), tolerance=tolerance,
        cond=cond, progress=progress,
    )
    return Edited(
        back.x, process.pack(latent), there.x, clipped, spent + back.evaluations, finite & back.ok
    )


def _clip(
    fields: Fields, x: Parts, t: float, bounds: Bounds | Mapping[str, Bounds] | None, k: float
) -> tuple[Parts, Tensor]:
    """The latents inside the interval of confidence, and the share (B,) of entries moved."""
    process = fields.process
    given = bounds if isinstance(bounds, Mapping) else {n: bounds for n, _ in process.items()}
    if not given.keys() <= process.parts.keys():
        unknown = ", ".join(sorted(given.keys() - process.parts.keys()))
        raise UserError(f"bounds name unknown parts {unknown}; the parts are {', '.join(x)}")
    first = next(iter(x.values()))
    moved = torch.zeros(len(first), dtype=torch.float64, device=first.device)
    out, total = dict(x), moved
    for name, part in process.items():
        pair, entries = given.get(name), fields.entries()[name]
        exist = torch.ones_like(x[name], dtype=torch.bool)
        exist = exist if entries is None else entries.expand_as(exist)
        total = total + exist.flatten(1).sum(1)
        if pair is None:
            continue
        try:
            low, high = (torch.as_tensor(v, dtype=x[name].dtype) for v in pair)
            inside = bool((low <= high).all())
        except (TypeError, ValueError):
            raise UserError(f"bounds of part {name!r} must be (low, high), got {pair!r}") from None
        if not inside:
            raise UserError(f"bounds of part {name!r} must satisfy low <= high, got {pair}")
        path = path_of(name, part)
        beta, sigma = path.beta(t), path.sigma(t)
        low, high = (v.to(x[name].device) * beta for v in (low, high))
        held = torch.minimum(torch.maximum(x[name], low - k * sigma), high + k * sigma)
        moved = moved + ((held != x[name]) & exist).flatten(1).sum(1)
        out[name] = held
    return fields.project(out), moved / total.clamp(min=1.0)


# Time travel


def renoise(
    process: Process,
    x: State,
    u: float,
    s: float,
    keys: Keys,
    mask: Masks = None,
    *,
    stream: str = "renoise",
    step: int = 0,
) -> State:
    """Take states from time u back to the earlier time s by the noising process itself.

    ``x`` (B, ...) distributed as the process is at u becomes distributed as it is at s, and keeps
    what the process keeps. A state at u = 1 counts as data without noise, which is what solvers end
    with. Raises UserError for times that do not satisfy 0 <= s < u <= 1, and for rotations.
    """
    if not 0.0 <= s < u <= 1.0:
        raise UserError(f"noise is added from a time to an earlier one in [0, 1], got {u} to {s}")
    out = {}
    for name, state in process.unpack(x).items():
        part, m, address = process.parts[name], process.mask_of(name, mask), f"{stream}/{name}"
        if isinstance(part.path, Path):
            shrink = part.path.beta(s) / part.path.beta(u)
            rest = 0.0 if u == 1.0 else part.path.sigma(u)
            spread = math.sqrt(max(part.path.sigma(s) ** 2 - (shrink * rest) ** 2, 0.0))
            fresh = part.space.noise(keys, address, step, state, m)
            out[name] = part.space.project(state, m) * shrink + fresh * spread
        elif isinstance(part.path, TokenRoute) and isinstance(part.space, Tokens):
            keep = float(part.path.kappa(s)) / float(part.path.kappa(u))
            give_up = part.space.uniform(keys, address, step, state) >= keep
            fresh = part.path.prior(part.space, keys, address, state, m, step)
            out[name] = torch.where(give_up, fresh, state)
        else:
            raise UserError(
                f"part {name!r} follows {type(part.path).__name__}, which has no way back in time"
            )
    return process.pack(out)


def inpaint(
    model: Model,
    process: Process,
    keys: Keys,
    shape: Any,
    fixed: Mapping[str, tuple[Any, Any]] | tuple[Any, Any],
    mask: Masks = None,
    *,
    stretch: int = 5,
    passes: int = 5,
    solver: str | Solver | Mapping[str, str | Solver] = "euler",
    steps: int = 50,
    grid: Sequence[float] | Callable[[int], Sequence[float]] | None = None,
    remask: Any = 0.0,
    temperature: float | Mapping[str, float] = 1.0,
    cond: Any = None,
    guide: Callable[[Model], Model] | None = None,
    stream: str = "inpaint",
    progress: bool | str = False,
    dtype: torch.dtype = torch.float32,
) -> Samples:
    """Samples with known entries, made to fit them by running every stretch of the grid again.

    Args:
        stretch: steps of the grid in a stretch; long ones forget more of what they repeat.
        passes: times that every stretch is run; 1 is `sample.sample` itself.
        progress: show a progress bar over the passes, with this title if it is a string.

    All other arguments are those of `sample.sample`. Every pass draws its own noise, named by
    ``stream`` and its number. Returns the samples and the evaluations of all passes together.
    Raises UserError for settings that do not fit.
    """
    _whole(1, steps=steps, stretch=stretch, passes=passes)
    times = tuple((grid or grids.uniform)(steps) if callable(grid) or grid is None else grid)
    if len(times) < 2 or times[0] != 0.0:
        raise UserError(f"inpainting begins with noise at time 0, this grid is {times}")
    cuts = list(range(0, len(times) - 1, stretch if passes > 1 else len(times))) + [len(times) - 1]
    spans = [times[a : b + 1] for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    run: Samples | None = None
    nfe, finite = 0, torch.ones(len(keys), dtype=torch.bool, device=keys.ids.device)
    for visit in shown(range(len(spans) * passes), progress, "inpainting"):
        span, state = spans[visit // passes], None if run is None else run.x
        if state is not None and visit % passes:
            state = renoise(
                process, state, span[-1], span[0], keys, mask, stream=f"{stream}/back", step=visit
            )
        run = sample(
            model, process, keys, shape, mask, solver=solver, grid=span, remask=remask,
            temperature=temperature, cond=cond, guide=guide, fixed=fixed, initial=state,
            stream=stream if passes == 1 else f"{stream}/{visit}", dtype=dtype,
        )
        nfe, finite = nfe + run.nfe, finite & run.finite
    assert run is not None
    return Samples(run.x, nfe, finite)


# Chains over noise levels


def _clean_to_noisy(process: Process, levels: Sequence[float]) -> list[float]:
    times = [float(t) for t in levels]
    if len(times) < 2 or any(a >= b for a, b in zip(times[:-1], times[1:], strict=True)):
        raise UserError(f"levels must be two or more increasing times, got {levels}")
    for name, part in process.items():
        path = path_of(name, part)
        for t in times:
            if not (0.0 <= t <= 1.0 and path.beta(t) > 0.0 and path.sigma(t) > 0.0):
                raise UserError(
                    f"level {t} of part {name!r} needs both data and noise: beta and sigma > 0"
                )
    return times


def level_log_density(
    model: Model,
    process: Process,
    y: State,
    levels: Sequence[float],
    mask: Masks = None,
    *,
    keys: Keys | None = None,
    probes: int = 0,
    cond: Any = None,
    step: int = 0,
) -> Tensor:
    """Log-densities (B, L) of y = x_1 + r e at the noise levels r = sigma / beta of ``levels``.

    They are relative to the first level, which is all that the posterior of a level given y needs:
    its softmax, for levels that are equally likely before y is seen. Between two levels the heat
    equation is integrated over log r by Gauss-Legendre rules of three nodes and more.

    Args:
        y: states (B, ...) over beta.
        levels: increasing times with beta > 0 and sigma > 0.
        probes, keys, step: Hutchinson probes instead of exact divergences, and their address.
    """
    times = _clean_to_noisy(process, levels)
    fields = Fields(model, process, y, mask, cond)
    signs = _signs(fields, keys, probes, step)
    return _densities(fields, fields.project(fields.like), times, signs)


def _signs(fields: Fields, keys: Keys | None, probes: int, step: int) -> Parts | None:
    _whole(0, probes=probes)
    if not probes:
        return None
    if keys is None:
        raise UserError(f"{probes} probes need keys: pass keys=Keys.for_samples(seed, ids)")
    return fields.signs(keys, probes, f"levels/{step}")


def _nodes(process: Process, times: Sequence[float]) -> list[tuple[int, float, float]]:
    """Nodes of the integral over log r: the interval, the time, and the weight of each."""
    path, nodes = path_of(*next(iter(process.items()))), []
    for i, (before, after) in enumerate(zip(times[:-1], times[1:], strict=True)):
        a, b = (-0.5 * path.log_snr(t) for t in (before, after))
        places, weights = np.polynomial.legendre.leggauss(2 + math.ceil(4.0 * abs(b - a)))
        for place, weight in zip(places.tolist(), weights.tolist(), strict=True):
            t = path.time_of_log_snr(-(a + b) - (b - a) * place)
            nodes.append((i, t, 0.5 * (b - a) * weight))
    return nodes


def _densities(fields: Fields, y: Parts, times: Sequence[float], signs: Parts | None) -> Tensor:
    process = fields.process
    dof = {name: part.space.dof(fields.masks[name], y[name]) for name, part in process.items()}
    out = torch.zeros(fields.batch, len(times), dtype=torch.float64, device=fields.everyone.device)
    for i, t, weight in _nodes(process, times):
        paths = {name: path_of(name, part) for name, part in process.items()}
        x = {name: part * paths[name].beta(t) for name, part in y.items()}
        clock = torch.full_like(out[:, 0], t)
        d, divergence = fields.with_divergence(x, clock, fields.everyone, signs, "denoised")
        clocks = {
            name: path.wronskian(t) / (path.beta(t) * path.sigma(t)) for name, path in paths.items()
        }
        pace = next(iter(clocks.values()))  # log r of the first part measures the way
        for name, path in paths.items():
            gap = (d[name].double() - y[name].double()).square().flatten(1).sum(1)
            gap = gap / copies(process.parts[name].space) * (path.beta(t) / path.sigma(t)) ** 2
            slope = path.beta(t) * divergence[name].mean(1) - dof[name] + gap
            out[:, i + 1 :] += (weight * clocks[name] / pace * slope)[:, None]
    return out


@torch.no_grad()
def denoising_mcmc(
    model: Model,
    process: Process,
    keys: Keys,
    like: State,
    levels: Sequence[float],
    mask: Masks = None,
    *,
    samples: int = 1,
    sweeps: int = 50,
    steps: int = 5,
    ratio: float = 0.2,
    classifier: Callable[[State], Tensor] | None = None,
    probes: int = 0,
    initial: State | None = None,
    resume: Chain | None = None,
    tolerance: float | None = None,
    cond: Any = None,
    stream: str = "chain",
    progress: bool | str = False,
) -> Chain:
    """Run one chain a key over data and noise levels, and denoise it every ``sweeps`` sweeps.

    Args:
        model, process: real parts only.
        keys: the chains' keys (B,).
        like: states (B, ...) whose shape, dtype and device are taken.
        levels: increasing times with beta > 0 and sigma > 0; neighbours should overlap, so that the
            chain can pass from each to the next.
        mask: the nodes that exist, (B, N) bool or one a part; passed on to the model.
        samples: draws of every chain; ``sweeps`` sweeps of the levels lie before each.
        steps, ratio: Langevin steps a sweep, of size d = 2 (ratio r)^2. They share their noise in
            pairs, as `correctors.leimkuhler_matthews`, which makes two or more of them exact on
            Gaussians but for d^2 / 16 V, less than ratio^4 / 4 of the variance.
        classifier: unnormalised log-probabilities (B, L) of the levels given y = x_t / beta, as a
            network trained to tell the level gives; by default `level_log_density` of the model,
            which takes several evaluations with derivatives, exact or with ``probes``.
        initial: data (B, ...) to begin from, at the last and cleanest level; noise at the first
            level otherwise.
        resume: a chain to go on from, with the same keys and levels.
        tolerance: of the flow that denoises, see `likelihood.log_prob`.
        cond: passed on to the model.
        stream: names the noise.
        progress: show a progress bar, with this title if it is a string.

    Raises UserError for token parts and settings that do not fit.
    """
    _whole(1, samples=samples, sweeps=sweeps)
    _whole(0, steps=steps)
    if not 0.0 < ratio < 1.0:
        raise UserError(f"Langevin steps are stable for ratios between 0 and 1, got {ratio!r}")
    times = _clean_to_noisy(process, levels)
    fields = Fields(model, process, like, mask, cond)
    if len(keys) != fields.batch:
        raise UserError(f"there are {len(keys)} keys for {fields.batch} chains")
    paths = {name: path_of(name, part) for name, part in process.items()}
    clock = torch.tensor(times, dtype=torch.float64, device=fields.everyone.device)
    betas = {name: path.beta(clock) for name, path in paths.items()}
    radii = {name: path.sigma(clock) / path.beta(clock) for name, path in paths.items()}

    def noise(address: str, step: int) -> Parts:
        return {
            name: part.space.noise(
                keys, f"{stream}/{address}/{name}", step, fields.like[name], fields.masks[name]
            )
            for name, part in process.items()
        }

    def scaled(y: Parts) -> Parts:
        return {name: part * per_sample(betas[name][level], part) for name, part in y.items()}

    done = 0 if resume is None else resume.sweeps
    if resume is not None:
        level = resume.level[-1]
        y = {
            name: part / per_sample(betas[name][level], part)
            for name, part in process.unpack(resume.noisy).items()
        }
    else:
        level = torch.full_like(fields.everyone, 0 if initial is None else len(times) - 1)
        data = None if initial is None else fields.project(process.unpack(initial))
        y = {
            name: e * per_sample(radii[name][level], e) + (0.0 if data is None else data[name])
            for name, e in noise("start", 0).items()
        }

    drawn: list[State] = []
    visited: list[Tensor] = []
    ok = torch.ones_like(fields.everyone, dtype=torch.bool)
    evaluations = torch.zeros_like(fields.everyone)
    last = done + samples * sweeps
    for sweep in shown(range(done, last), progress, "denoising MCMC"):
        spare: Parts = {}
        for k in range(steps):
            d = fields.at(scaled(y), clock[level], fields.everyone, "denoised")
            fresh = noise("langevin", sweep * steps + k)
            pull = (2.0 if k else 0.5) * ratio * ratio
            y = {
                name: part
                + pull * (d[name] - part)
                + per_sample(ratio * radii[name][level], part)
                * (fresh[name] + spare[name] if k else fresh[name])
                for name, part in y.items()
            }
            spare = fresh
            evaluations += fields.asked
        if classifier is None:
            logits = _densities(fields, y, times, _signs(fields, keys, probes, sweep))
            evaluations += fields.asked * len(_nodes(process, times))
        else:
            logits = classifier(process.pack(y))
            if logits.shape != (fields.batch, len(times)):
                raise UserError(
                    f"the classifier must return {(fields.batch, len(times))}, got "
                    f"{tuple(logits.shape)}"
                )
        u = keys.uniform(f"{stream}/level", sweep, dtype=torch.float64)
        cumulative = logits.double().softmax(1).cumsum(1)
        ok &= cumulative.isfinite().all(1)
        level = (cumulative < u[:, None]).sum(1).clamp(max=len(times) - 1)
        if (sweep + 1 - done) % sweeps == 0:
            out = decode(
                model, process, process.pack(scaled(y)), mask, times=(clock[level], None),
                tolerance=tolerance, cond=cond,
            )
            drawn.append(out.x)
            visited.append(level)
            ok &= out.ok
            evaluations += out.evaluations
    stacked = {
        name: torch.stack([process.unpack(state)[name] for state in drawn]) for name in y
    }
    noisy = process.pack(scaled(y))
    return Chain(process.pack(stacked), torch.stack(visited), noisy, last, evaluations, ok)
