r"""Distillation: a student that generates in one or a few calls, taught by a model's scores alone.

A student G turns noise into a sample x_g. Along a path x_t = beta x_g + sigma e, the teacher knows
the denoiser D_p of the data, and a critic learns the denoiser D_q of what the student makes, by the
ordinary matching loss on x_g. Scores being s = (beta D - x_t) / sigma^2, the two laws agree when

    F = E d(D_p - D_q) = 0,            with d(y) = |y|^2:  F = (sigma^2 / beta)^2 E |s_p - s_q|^2.

D_q moves with the student, which no backward pass through a frozen critic sees. The projection
identity E <u(x_t), D_q - x_g> = 0, true for every student, supplies what is missing: with

    L1 = |D_p - D_q|^2        L2 = <D_p - D_q, D_p - x_g>

the gradient of 2 L2 - L1 with D_q frozen is that of F. The loss is its family (SiD)

    psi' L2 - alpha (2 psi' L1 - psi),    psi = psi(L1) the distance as a function of the square,

which for the plain square, psi = L1, reads L2 - alpha L1. **alpha = 1/2 is half the exact
gradient** for every distance (SIM; its pseudo-Huber distance is `PseudoHuber`). Published recipes
take alpha = 1 to 1.2, whose values can be negative (L2 = L1 on average once the critic is right),
so watch `SidLoss.gap` and not the loss.

Sign flips. Let teacher and student be Gaussian, with gains k_p, k_q of D in x_t / beta, and let the
student be too wide, k_q > k_p. The exact derivatives of F/2 by the student's variance v and mean m
are (k_q - k_p)(2 - k_p - k_q)/2 and (1 - k_p)^2 (m - m_p); with alpha they become

    by v:  (k_q - k_p) [(1 - k_p) - alpha (k_q - k_p)]
    by m:  (1 - k_p)   [(1 - k_p) - (2 alpha - 1)(k_q - k_p)] (m - m_p)

so with the excess r = (k_q - k_p) / (1 - k_p) < 1, the spread is driven the wrong way once
r > 1 / alpha, and the mean already once r > 1 / (2 alpha - 1); alpha <= 1 is always safe. The gains
are regressions of D on x_g, so a batch estimates r by

    r = E <D_q - D_p, x_g - E x_g> / E <x_g - D_p, x_g - E x_g>,

which `sid_loss` returns, and for alpha > 1 warns about. A wide start wants alpha = 1/2 first.

Weights. Any factor w(t) >= 0 keeps all this; so would one of x_t. SiD's own divides each sample by
its mean of |x_g - D_p|, which is neither, though nearly a number where a sample has many entries.

`core.student` holds the generator itself, of one or several steps, and the loop that trains it.

Forgetting. A teacher that answers for a forgotten label with an allowed one (`Relabelled`) makes
the same losses teach a student that no longer knows the former (score forgetting).

References: Zhou et al. 2024, "Score identity distillation" (SiD), eq. 23;
Luo et al. 2024, "One-step diffusion distillation through score implicit matching" (SIM), thm. 3.1;
Chen et al. 2025, "Score forgetting distillation"; Poole et al. 2023, "DreamFusion", eq. 3 (SDS).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.predict import as_denoised, interpolate, per_sample
from driftworks.core.process import Bridge, Masks, Part, Process, State
from driftworks.core.sample import Model
from driftworks.core.spaces import Space
from driftworks.errors import UserError

__all__ = [
    "Distance",
    "PseudoHuber",
    "Relabelled",
    "SidLoss",
    "Weight",
    "denoise",
    "entry_mean",
    "fisher",
    "plain",
    "posterior_weight",
    "real_parts",
    "sds_gradient",
    "sid_loss",
    "squared",
    "to_denoised",
]

Distance = Callable[[Tensor], tuple[Tensor, Tensor]]
Weight = Callable[[Path, Tensor], Tensor]


def real_parts(process: Process) -> dict[str, tuple[Space, Path, str]]:
    """Space, path and parametrisation of every part; UserError unless all follow Gaussian paths."""
    parts = {}
    for name, part in process.items():
        if not isinstance(part.path, Path):
            raise UserError(
                f"part {name!r} ({type(part.space).__name__}) has no scores to distil: "
                "distillation needs real parts on a Gaussian path"
            )
        parts[name] = part.space, part.path, part.predicts
    return parts


def to_denoised(part: Part, answer: Tensor, x: Tensor, t: Tensor, mask: Tensor | None) -> Tensor:
    """A network's answer as the denoised state inside the part's space, in single or better."""
    assert isinstance(part.path, Path)
    answer = answer.to(torch.promote_types(answer.dtype, torch.float32))
    return part.space.project(as_denoised(part.path, answer, x, t, part.predicts), mask)


def plain(answer: Any) -> State:
    """A model's answer, if it is a state; UserError for one that carries particle weights."""
    if isinstance(answer, Tensor | dict):
        return answer
    raise UserError(f"{type(answer).__name__} answers cannot be distilled: give a plain model")


def denoise(
    model: Model, process: Process, x: State, t: Tensor, mask: Masks = None, cond: Any = None
) -> dict[str, Tensor]:
    """E[x_1 | x_t] of every part inside its space, from a model's answer; differentiable.

    x is a state (B, ...), t (B,). Raises UserError for parts that are not real and for models that
    answer with weights.
    """
    real_parts(process)
    states = process.unpack(x)
    answers = process.unpack(plain(model(x, t, mask=mask, cond=cond)))
    return {
        name: to_denoised(part, answers[name], states[name], t, process.mask_of(name, mask))
        for name, part in process.items()
    }


def entry_mean(value: Tensor, space: Space, mask: Tensor | None) -> Tensor:
    """Mean of ``value`` (B, ...) over the entries of each sample that exist, (B,)."""
    entries = space.entry_mask(mask, value)
    if entries is None:
        return value.flatten(1).mean(1)
    entries = entries.expand_as(value)
    total = value.masked_fill(~entries, 0).flatten(1).sum(1)
    return total / entries.flatten(1).sum(1).clamp(min=1)


def squared(square: Tensor) -> tuple[Tensor, Tensor]:
    """d(y) = |y|^2: psi and its slope in |y|^2, both (B,)."""
    return square, torch.ones_like(square)


@dataclass(frozen=True)
class PseudoHuber:
    """d(y) = sqrt(|y|^2 + c^2) - c with |y|^2 the mean square over entries, so c has data's units.

    Large differences pull with bounded force (SIM, section 3.3). Raises UserError unless c > 0.
    """

    scale: float

    def __post_init__(self) -> None:
        if not 0.0 < self.scale < math.inf:
            raise UserError(f"the scale of a pseudo-Huber distance is positive, got {self.scale!r}")

    def __call__(self, square: Tensor) -> tuple[Tensor, Tensor]:
        root = torch.sqrt(square + self.scale**2)
        return square / (root + self.scale), 0.5 / root


def fisher(path: Path, t: Tensor) -> Tensor:
    """(beta / sigma^2)^2, (B,): turns |D_p - D_q|^2 into the Fisher divergence |s_p - s_q|^2."""
    return (path.beta(t) / path.sigma(t) ** 2) ** 2


def posterior_weight(scale: float = 1.0) -> Weight:
    """Weights that let noise levels pull alike: 1 / sqrt(Var(x_1 | x_t)) for N(0, scale^2) data.

    That is sqrt(1 / scale^2 + (beta / sigma)^2), a function of time alone, so that gradients stay
    exact. Raises UserError unless the scale is positive; `predict.fit_scale` finds that of data.
    """
    if not 0.0 < scale < math.inf:
        raise UserError(f"the scale of data is a positive number, got {scale!r}")

    def weight(path: Path, t: Tensor) -> Tensor:
        return torch.sqrt(scale**-2 + (path.beta(t) / path.sigma(t)) ** 2)

    return weight


@dataclass(frozen=True)
class SidLoss:
    """What `sid_loss` found.

    ``total`` is the scalar to minimise and ``samples`` (B,) its terms, both with gradient. By part
    and detached: ``gap``, the mean of |D_p - D_q|^2 an entry, which is 0 when the student is right
    (and the critic, too), and ``excess``, the r of the module's docstring: how much too wide the
    student is, < 0 if too narrow, nan when the batch cannot tell.
    """

    total: Tensor
    samples: Tensor
    gap: dict[str, Tensor]
    excess: dict[str, Tensor]


def _excess(x: Tensor, p: Tensor, q: Tensor, entries: Tensor | None, scale: Tensor) -> Tensor:
    """r of the module's docstring, from D_p, D_q and x_g (B, ...); scale (B,) weighs samples."""
    kept = torch.ones_like(x) if entries is None else entries.expand_as(x).to(x.dtype)
    spread = (x - (x * kept).sum(0) / kept.sum(0).clamp(min=1)) * kept * per_sample(scale, x)
    return ((q - p) * spread).sum() / ((x - p) * spread).sum()


def _warn_of_flips(alpha: float, excess: Mapping[str, Tensor]) -> None:
    """The text holds no measured number, so that Python shows it once and not in every update."""
    for name, value in excess.items():
        r = float(value)
        if r > 1.0 / alpha:
            wrong = "spread and mean"
        elif r > 1.0 / (2.0 * alpha - 1.0):
            wrong = "mean"
        else:
            continue
        warnings.warn(
            f"part {name!r}: the student is so much wider than the teacher that alpha = {alpha:g} "
            f"drives its {wrong} the wrong way; begin with alpha = 0.5 (see SidLoss.excess)",
            RuntimeWarning,
            stacklevel=3,
        )


def sid_loss(
    teacher: Model,
    critic: Model,
    process: Process,
    bridge: Bridge,
    cond: Any = None,
    *,
    alpha: float = 0.5,
    distance: Distance = squared,
    weight: Weight | None = None,
    normalise: bool = False,
    weights: Mapping[str, float] | None = None,
) -> SidLoss:
    """The student's loss, psi' L2 - alpha (2 psi' L1 - psi), on a bridge from its own samples.

    Products are means over the entries that exist, so neither padding nor size changes a sample's
    loss. Gradients pass through teacher and critic to their input; call
    ``total.backward(inputs=...)`` with the student's parameters to spare theirs.

    Args:
        bridge: ``process.bridge(x_g, t, keys, mask)`` with x_g, with gradient, inside its space
            (as `Student.generate` leaves it) and t (B,) where sigma > 0.
        alpha: 1/2 is the exact gradient's direction; see the module's docstring.
        distance: maps L1 (B,) to psi and its slope, such as `squared` or `PseudoHuber`.
        weight: w(path, t) >= 0, (B,), on the scale of denoised states; `fisher` makes the loss that
            of scores. 1 by default.
        normalise: divide each sample by the mean of |x_g - D_p| over its entries, as a constant
            (SiD, eq. 25): noise levels then pull alike, whatever the units. With a single entry the
            gradient then has no finite variance: take `posterior_weight` there.
        weights: factors of the parts, 1 where it names none.

    Raises UserError for parts without scores, an alpha that is not finite, and weights of unknown
    parts. Warns when alpha > 1 and the batch says that it turns the gradient round.
    """
    if not math.isfinite(alpha):
        raise UserError(f"alpha must be a finite number, got {alpha!r}")
    weights = weights or {}
    if not weights.keys() <= process.parts.keys():
        unknown = ", ".join(sorted(weights.keys() - process.parts.keys()))
        raise UserError(f"weights for unknown parts {unknown}; parts: {', '.join(process.parts)}")
    real = denoise(teacher, process, bridge.x_t, bridge.t, bridge.mask, cond)
    fake = denoise(critic, process, bridge.x_t, bridge.t, bridge.mask, cond)
    data = process.unpack(bridge.x_1)
    samples: Tensor | float = 0.0
    gap, excess = {}, {}
    for name, (space, path, _) in real_parts(process).items():
        x, p, q, mask = data[name], real[name], fake[name], process.mask_of(name, bridge.mask)
        first = entry_mean((p - q).square(), space, mask)
        second = entry_mean((p - q) * (p - x), space, mask)
        psi, slope = distance(first)
        level = torch.ones_like(first) if weight is None else weight(path, bridge.t).to(first)
        loss = level * (slope * second - alpha * (2.0 * slope * first - psi))
        if normalise:
            miss = entry_mean((x - p).detach().abs(), space, mask)
            loss = loss / miss.clamp(min=1e-6)
        samples = samples + weights.get(name, 1.0) * loss
        with torch.no_grad():
            gap[name] = first.mean()
            excess[name] = _excess(x, p, q, space.entry_mask(mask, x), level)
    if alpha > 1.0:
        _warn_of_flips(alpha, excess)
    assert isinstance(samples, Tensor)
    return SidLoss(samples.mean(), samples, gap, excess)


class Relabelled:
    """A model that is asked about some labels as if they were others: the teacher of forgetting.

    A student distilled from it draws, for every forgotten label, from the law of the label that
    stands in for it, and keeps the others. The critic and the student see the labels unchanged.

    Args:
        model: a conditional model.
        stands_in: forgotten label -> allowed label.
        name: the entry of the condition that holds the labels, integers (B,); None when the
            condition is the labels.

    Raises UserError when nothing is forgotten, or an allowed label is itself forgotten.
    """

    def __init__(self, model: Model, stands_in: Mapping[int, int], name: str | None = None) -> None:
        still = sorted(set(stands_in) & set(stands_in.values()))
        if not stands_in or still:
            what = f"labels {still} are both forgotten and allowed" if still else "no label given"
            raise UserError(f"forgetting maps each forgotten label to an allowed one: {what}")
        self.model, self.stands_in, self.name = model, dict(stands_in), name
        self.evaluations = getattr(model, "evaluations", 1)

    def __call__(
        self,
        x: State,
        t: Tensor,
        mask: Masks = None,
        cond: Any = None,
        previous: State | None = None,
    ) -> State:
        labels = cond if self.name is None else cond[self.name]
        allowed = labels
        for forgotten, other in self.stands_in.items():
            allowed = torch.where(labels == forgotten, other, allowed)
        cond = allowed if self.name is None else {**cond, self.name: allowed}
        return plain(self.model(x, t, mask=mask, cond=cond, previous=previous))


def _tiled(value: Any, copies: int) -> Any:
    """A structure of tensors (B, ...) repeated along the batch."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value.repeat(copies, *(1,) * (value.ndim - 1))
    if isinstance(value, Mapping):
        return {name: _tiled(part, copies) for name, part in value.items()}
    raise UserError(
        f"a condition or mask must be a tensor or a dict of tensors, got {type(value).__name__}"
    )


@torch.no_grad()
def sds_gradient(
    model: Model,
    process: Process,
    x: State,
    times: Sequence[float] | Tensor,
    keys: Keys,
    mask: Masks = None,
    cond: Any = None,
) -> State:
    """The pull of a prior on a state: the mean over noise levels of x - D(beta x + sigma e, t).

    Score distillation without the network's Jacobian: descend along it to make x more likely. It
    seeks modes: for data N(m, v) it is (x - m) times a positive number, so x ends at m and is no
    sample. Each level draws its own noise; the model is asked once, about all levels.

    Args:
        x: the state (B, ...), inside its space.
        times: the levels (L,) in [0, 1); `Path.time_of_log_snr` finds those of a wanted noise.
        keys: new ones for every call, one a sample (B,).

    Returns the gradient, shaped as x. Raises UserError for times outside [0, 1) or none.
    """
    levels = torch.as_tensor(times, dtype=torch.float64, device=keys.ids.device).flatten()
    if not len(levels) or not bool(((levels >= 0.0) & (levels < 1.0)).all()):
        raise UserError(f"noise levels are times in [0, 1), got {levels.tolist()[:8]}")
    states, copies, noisy = process.unpack(x), len(levels), {}
    t = levels.repeat_interleave(len(keys))
    for name, (space, path, _) in real_parts(process).items():
        state, own = states[name], process.mask_of(name, mask)
        noise = [space.noise(keys, f"sds/{name}", k, state, own) for k in range(copies)]
        noisy[name] = interpolate(path, _tiled(state, copies), torch.cat(noise), t)
    clock = t.to(next(iter(states.values())).dtype)
    clean = denoise(
        model, process, process.pack(noisy), clock, _tiled(mask, copies), _tiled(cond, copies)
    )
    return process.pack({
        name: state - clean[name].unflatten(0, (copies, len(keys))).mean(0).to(state.dtype)
        for name, state in states.items()
    })
