r"""Matching losses and what training needs around them.

For a continuous part the network's prediction is turned into the denoised state and compared with
the data; for tokens the cross-entropy is taken where the token is hidden. In expectation both are
minimised by the posterior, E[x_1 | x_t] and p(x_1 | x_t) (Lipman et al. 2023, "Flow matching for
generative modeling"; Campbell et al. 2024, "Generative flows on discrete state-spaces").

    L = sum_parts w_part * (mean of the error over the entries of the whole batch that count)

Entries that count are the unmasked ones, for tokens those that are hidden as well, so padding never
changes a loss, and a large sample weighs more than a small one. The error of a `Centred` part is a
point's squared distance, that of a part with a route of its own (rotations) what the route says,
and that of other real parts an entry's squared difference.

Laws of training times are in `core.times`; losses that go beyond matching in `core.regularise`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from driftworks.core.paths import Path
from driftworks.core.predict import as_denoised, per_sample
from driftworks.core.process import Bridge, Part, Process, State
from driftworks.core.spaces import Centred
from driftworks.core.times import time_samples
from driftworks.errors import UserError

__all__ = ["Ema", "Loss", "matching_loss", "time_samples", "velocity_weight"]


@dataclass(frozen=True)
class Loss:
    """``total`` is a scalar with gradient; ``parts`` each part's mean, unweighted and detached."""

    total: Tensor
    parts: dict[str, Tensor]


def _entry_mean(error: Tensor, entries: Tensor | None) -> Tensor:
    """Mean of ``error`` (B, ...) over the entries that count, over the whole batch."""
    if entries is None:
        return error.mean()
    entries = entries.expand_as(error)
    return error.masked_fill(~entries, 0).sum() / entries.to(error.dtype).sum().clamp(min=1)


def _wide(prediction: Tensor) -> Tensor:
    """At least single precision."""
    return prediction.to(torch.promote_types(prediction.dtype, torch.float32))


def _token_error(logits: Tensor, data: Tensor) -> Tensor:
    """Cross-entropy of every token, of the shape of ``data``."""
    logits = _wide(logits)
    return nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), data.reshape(-1), reduction="none"
    ).view(data.shape)


def velocity_weight(part: Part, t: Tensor, cap: float) -> Tensor:
    """min((w / sigma)^2, cap), (B,): what turns a denoised error into a velocity error.

    The velocity is (w / sigma)(D - x) plus terms in x alone, w being the path's Wronskian; near the
    data the factor diverges, and a cap keeps the last instants from taking over.
    """
    assert isinstance(part.path, Path)
    factor = part.path.wronskian(t) / part.path.sigma(t)
    return factor.square().clamp(max=cap).to(torch.float32)


def _real_error(
    part: Part,
    predicted: Tensor,
    data: Tensor,
    x_t: Tensor,
    t: Tensor,
    mask: Tensor | None,
    cap: float | None,
) -> tuple[Tensor, Tensor | None]:
    """The squared error of every entry, and the entries that count."""
    if not isinstance(part.path, Path):
        error: Tensor = part.path.error(  # type: ignore[attr-defined]
            part.space, predicted, data, x_t, t, mask, part.predicts, cap
        )
        return error, part.space.entry_mask(mask, error)
    if predicted.shape != x_t.shape:
        raise UserError(
            f"the model answered in shape {tuple(predicted.shape)}, the state has "
            f"{tuple(x_t.shape)}"
        )
    denoised = as_denoised(part.path, _wide(predicted), x_t, t, part.predicts)
    error = (denoised - data).square()
    if cap is not None:
        error = error * per_sample(velocity_weight(part, t, cap), error)
    entries = part.space.entry_mask(mask, data)
    if isinstance(part.space, Centred):
        error = error.sum(-1)
        entries = None if entries is None else entries[..., 0]
    return error, entries


def matching_loss(
    prediction: State,
    process: Process,
    bridge: Bridge,
    weights: Mapping[str, float] | None = None,
    velocity_cap: float | None = None,
    visible_weight: float = 0.0,
    importance: Tensor | None = None,
) -> Loss:
    """The matching loss of one prediction on a bridge.

    ``weights`` gives parts their weights, 1 where it names none. With ``velocity_cap`` the error of
    continuous parts is that of the velocity, its time factor capped there (`velocity_weight`);
    without it, that of the denoised state. ``visible_weight`` adds the cross-entropy of tokens that
    are already shown, times this factor: a network that is asked about them learns to see mistakes,
    which re-masking samplers then repair. ``importance`` (B,) multiplies the errors of each sample:
    with `times.time_weight` the loss is the one of uniform times, whatever law the times came from
    (for tokens up to the count of hidden ones that the mean divides by, which depends on time).

    Raises ValueError when the prediction lacks a part or a weight names one that is not there.
    """
    predicted, data = process.unpack(prediction), process.unpack(bridge.x_1)
    x_t = process.unpack(bridge.x_t)
    weights = weights or {}
    if not weights.keys() <= process.parts.keys():
        unknown = ", ".join(sorted(weights.keys() - process.parts.keys()))
        raise ValueError(f"weights for unknown parts {unknown}; parts: {', '.join(process.parts)}")

    def mean(error: Tensor, entries: Tensor | None) -> Tensor:
        if importance is not None:
            error = error * per_sample(importance, error)
        return _entry_mean(error, entries)

    losses = {}
    for name, part in process.items():
        mask = process.mask_of(name, bridge.mask)
        if part.space.discrete:
            hidden, error = bridge.hidden[name], _token_error(predicted[name], data[name])
            losses[name] = mean(error, hidden)
            if visible_weight:
                entries = part.space.entry_mask(mask, data[name])
                seen = ~hidden if entries is None else entries & ~hidden
                losses[name] = losses[name] + visible_weight * mean(error, seen)
        else:
            losses[name] = mean(
                *_real_error(
                    part, predicted[name], data[name], x_t[name], bridge.t, mask, velocity_cap
                )
            )
    total = sum(
        (weights.get(name, 1.0) * loss for name, loss in losses.items()),
        start=torch.zeros((), device=bridge.t.device),
    )
    return Loss(total, {name: loss.detach() for name, loss in losses.items()})


class Ema:
    """Exponential moving average of parameters, warmed up as min(decay, (1 + k) / (10 + k))."""

    def __init__(self, parameters: Iterable[Tensor], decay: float):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"EMA decay must lie in [0, 1), got {decay}")
        self.decay, self.updates = decay, 0
        self.shadow = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor]) -> None:
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(self.shadow, [p.detach() for p in parameters], 1.0 - keep)

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[Tensor]) -> None:
        for p, s in zip(parameters, self.shadow, strict=True):
            p.copy_(s)
