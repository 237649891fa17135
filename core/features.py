r"""Representations: what a network computes inside while it denoises.

A denoiser's inner layers know the data at the scale of the noise they see: coarse structure at low
t, detail at high t. `features` noises data to several levels and pools a submodule's output over
each sample; `listening` hands out the output itself, for probes and for training losses such as
`context.context_loss`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from driftworks.core.keys import Keys
from driftworks.core.process import Bridge, Masks, Process, State
from driftworks.errors import UserError

__all__ = ["checked_levels", "features", "listening", "noised", "real_dtype"]


def checked_levels(levels: Sequence[float]) -> list[float]:
    """The levels as floats; UserError unless all lie inside (0, 1)."""
    times = [float(t) for t in levels]
    if not times or not all(0.0 < t < 1.0 for t in times):
        raise UserError(f"noise levels are times inside (0, 1), got {list(levels)}")
    return times


def real_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype of the clock that a model sees beside ``state``."""
    real = [x.dtype for x in state.values() if x.is_floating_point()]
    return real[0] if real else torch.float32


def noised(
    process: Process, x: State, keys: Keys, level: float, mask: Masks, step: int
) -> tuple[Bridge, Tensor]:
    """Data (B, ...) noised to time ``level``, and that time for each sample (B,)."""
    t = torch.full((len(keys),), level, dtype=torch.float64, device=keys.ids.device)
    return process.bridge(x, t, keys, mask, step=step), t


@contextmanager
def listening(model: Any, layer: str, output: int | str | None = None) -> Iterator[list[Tensor]]:
    """Collect what a submodule returns: a list that grows by one tensor a forward pass.

    Args:
        model: an nn.Module.
        layer: its submodule's name, as in ``named_modules``.
        output: which member, for submodules that return a tuple or a dict.

    Gradients are kept, so that a training loss may use the feature. Raises UserError for an unknown
    name and, in the forward pass, for an output that is not a tensor.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"features are taken from an nn.Module, got {type(model).__name__}")
    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        near = ", ".join([name for name in modules if name][:20])
        raise UserError(f"the model has no submodule {layer!r}; it has {near}")
    heard: list[Tensor] = []

    def hear(module: nn.Module, given: Any, answer: Any) -> None:
        chosen = answer if output is None else answer[output]
        if not isinstance(chosen, Tensor):
            kind = type(chosen).__name__
            raise UserError(
                f"submodule {layer!r} returns a {kind}; say with output which member is meant"
            )
        heard.append(chosen)

    handle = modules[layer].register_forward_hook(hear)
    try:
        yield heard
    finally:
        handle.remove()


@torch.no_grad()
def features(
    model: Any,
    process: Process,
    x: State,
    keys: Keys,
    levels: Sequence[float],
    layer: str,
    mask: Tensor | None = None,
    cond: Any = None,
    output: int | str | None = None,
) -> Tensor:
    """A representation of data at several noise levels, (B, levels, F).

    Each level noises x once with ``keys``, asks the model and pools the output of ``layer`` over
    the nodes that exist: (B, F) is taken as it is, (B, N, F) averaged over nodes and (B, N, N, F)
    over pairs of different nodes. The output should be invariant under whatever x is symmetric to.

    Args:
        model: an nn.Module that is a model (`sample.Model`).
        x: data (B, ...); mask: (B, N) bool; cond: passed on.
        layer, output: see `listening`.

    Raises UserError for outputs of other shapes.
    """
    rows = []
    for step, level in enumerate(checked_levels(levels)):
        bridge, t = noised(process, x, keys, level, mask, step)
        with listening(model, layer, output) as heard:
            model(bridge.x_t, t.to(real_dtype(process.unpack(bridge.x_t))), mask=mask, cond=cond)
        if not heard:
            raise UserError(f"submodule {layer!r} takes no part in the model's answer")
        rows.append(_pooled(heard[-1], mask, len(keys), layer))
    return torch.stack(rows, 1)


def _pooled(h: Tensor, mask: Tensor | None, batch: int, layer: str) -> Tensor:
    nodes = h.shape[1] if mask is None and h.ndim > 1 else None if mask is None else mask.shape[1]
    square = h.ndim == 4 and h.shape[1] == h.shape[2] == nodes
    if len(h) != batch or not (h.ndim == 2 or (h.ndim == 3 and h.shape[1] == nodes) or square):
        raise UserError(
            f"submodule {layer!r} returns {tuple(h.shape)}; features are (B, F), (B, N, F) or "
            "(B, N, N, F)"
        )
    if h.ndim == 2:
        return h
    here = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device) if mask is None else mask
    if square:
        off = ~torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
        here = (here.unsqueeze(1) & here.unsqueeze(2) & off).flatten(1)
        h = h.flatten(1, 2)
    total = h.masked_fill(~here.unsqueeze(-1), 0).sum(1)
    return total / here.sum(1, keepdim=True).clamp(min=1).to(h.dtype)
