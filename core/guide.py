r"""Guidance: models made of models.

Both guides extrapolate from a reference answer r to the model's own answer p,

    guided = r + w (p - r) = w p + (1 - w) r.

For real parts this is the same statement in every parametrisation, because at a given x and t they
differ by an affine map and the weights sum to 1: it mixes scores, and samples from p^w r^{1-w} at
every noise level (not in the end; see Bradley & Nakkiran 2024). For tokens it acts on the logits,
where it is the log-probability form p^w r^{1-w} up to the normalisation that a softmax supplies.

    cfg         r is the model without its condition (Ho & Salimans 2022)
    autoguide   r is a weaker model, same condition (Karras et al. 2024)

w = 1 is the model and w = 0 the reference: exactly, and at the cost of one evaluation. The guided
model is asked with the guided previous answer, so self-conditioning works as without guidance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from driftworks.core.process import Masks, State
from driftworks.core.sample import Model
from driftworks.errors import UserError

__all__ = ["Guided", "autoguide", "cfg"]

Weight = float | Mapping[str, float]


def _mix(answer: Tensor, reference: Tensor, weight: float) -> Tensor:
    if weight == 1.0:
        return answer
    if weight == 0.0:
        return reference
    return torch.lerp(reference, answer, weight)


def _mix_logits(answer: Tensor, reference: Tensor, weight: float) -> Tensor:
    """The same for logits, which may be -inf: a class that one factor forbids stays forbidden.

    The factor with a negative exponent cannot forbid; where it is -inf the other one decides.
    """
    if weight in (0.0, 1.0):
        return _mix(answer, reference, weight)
    mixed = weight * answer + (1.0 - weight) * reference
    if weight > 1.0:
        return torch.where(reference == -torch.inf, answer, mixed)
    if weight < 0.0:
        return torch.where(answer == -torch.inf, reference, mixed)
    return mixed


class Guided:
    """A model that answers w p + (1 - w) r; ``cfg`` and ``autoguide`` build it.

    A call evaluates only what the weights need: ``evaluations`` is 1 or 2.
    """

    def __init__(self, model: Model, reference: Model | None, weight: Weight):
        values = weight.values() if isinstance(weight, Mapping) else [weight]
        for value in values:
            if not abs(value) < float("inf"):
                raise UserError(f"a guidance weight must be a finite number, got {value}")
        self.model, self.reference, self.weight = model, reference, weight
        self.uses_model = any(value != 0.0 for value in values)
        self.uses_reference = any(value != 1.0 for value in values)
        if isinstance(weight, Mapping) and not weight:
            raise UserError("guidance weights by part must name at least one part")
        self.evaluations = self._cost()

    def _cost(self) -> int:
        reference = self.model if self.reference is None else self.reference
        return self.uses_model * getattr(self.model, "evaluations", 1) + (
            self.uses_reference * getattr(reference, "evaluations", 1)
        )

    def __call__(
        self,
        x: State,
        t: Tensor,
        mask: Masks = None,
        cond: Any = None,
        previous: State | None = None,
    ) -> State:
        if not self.uses_reference:
            return self.model(x, t, mask=mask, cond=cond, previous=previous)
        if not self.uses_model:
            return self._ask_reference(x, t, mask, cond, previous)
        answer, reference = self._ask_both(x, t, mask, cond, previous)
        return self._combine(answer, reference, x)

    def _ask_reference(
        self, x: State, t: Tensor, mask: Masks, cond: Any, previous: State | None
    ) -> State:
        if self.reference is not None:
            return self.reference(x, t, mask=mask, cond=cond, previous=previous)
        return self.model(x, t, mask=mask, cond=_null(self.model, cond), previous=previous)

    def _ask_both(
        self, x: State, t: Tensor, mask: Masks, cond: Any, previous: State | None
    ) -> tuple[State, State]:
        if self.reference is None and getattr(self.model, "batched_guidance", False):
            null = _null(self.model, cond)
            both = self.model(
                _double(x, x), _double(t, t), mask=_double(mask, mask),
                cond=_double(cond, null), previous=_double(previous, previous),
            )
            return _half(both, 0), _half(both, 1)
        answer = self.model(x, t, mask=mask, cond=cond, previous=previous)
        return answer, self._ask_reference(x, t, mask, cond, previous)

    def _combine(self, answer: State, reference: State, x: State) -> State:
        if isinstance(answer, Tensor):
            assert isinstance(reference, Tensor) and isinstance(x, Tensor)
            mix = _mix if x.is_floating_point() else _mix_logits
            return mix(answer, reference, self._weight_of("x"))
        assert isinstance(reference, dict) and isinstance(x, dict)
        return {
            name: (_mix if x[name].is_floating_point() else _mix_logits)(
                part, reference[name], self._weight_of(name)
            )
            for name, part in answer.items()
        }

    def _weight_of(self, name: str) -> float:
        if not isinstance(self.weight, Mapping):
            return self.weight
        if name not in self.weight:
            raise UserError(
                f"no guidance weight for part {name!r}; weights are given for "
                f"{', '.join(self.weight)}"
            )
        return self.weight[name]


def _null(model: Model, cond: Any) -> Any:
    """The empty condition: what the model's ``null(cond)`` makes of it, or None."""
    null = getattr(model, "null", None)
    return None if null is None else null(cond)


def _double(first: Any, second: Any) -> Any:
    """Two equally built structures of tensors, joined along the batch."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat((first, second))
    if first is None and second is None:
        return None
    if isinstance(first, Mapping) and isinstance(second, Mapping) and first.keys() == second.keys():
        return {name: _double(value, second[name]) for name, value in first.items()}
    raise UserError(
        "batched guidance needs the condition and model.null(condition) to be tensors, or dicts "
        f"of tensors with the same names; got {type(first).__name__} and {type(second).__name__}"
    )


def _half(state: State, which: int) -> State:
    if isinstance(state, Tensor):
        return state.chunk(2)[which]
    return {name: x.chunk(2)[which] for name, x in state.items()}


def cfg(model: Model, weight: Weight) -> Guided:
    """Classifier-free guidance with ``weight``, one number or one a part.

    The unconditional answer is the model's with ``cond=model.null(cond)``, or with ``cond=None``
    when it has no ``null``. A model with ``batched_guidance = True`` is asked once, with a batch of
    twice the size; its ``null(cond)`` must then keep the structure of ``cond``.
    """
    return Guided(model, None, weight)


def autoguide(model: Model, weak: Model, weight: Weight) -> Guided:
    """Guidance away from a weaker model: less trained or smaller, same condition."""
    return Guided(model, weak, weight)
