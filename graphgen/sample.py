r"""Drawing graphs: the process run from noise to data on one clock for nodes, edges and values.

The clock runs t = 2 u - u^2 for u on a uniform grid (Qin et al. 2024): steps become short where the
graph is nearly finished and one wrong edge decides its validity. Tokens follow `core.ctmc` with
noise eta, systems of SDEs the chosen solver of `core.solvers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from driftworks.core.guide import cfg
from driftworks.core.keys import Keys
from driftworks.core.process import State
from driftworks.core.sample import sample
from driftworks.core.solvers import Solver
from driftworks.graphgen.process import GraphModel, decode, encode

__all__ = ["STEPS", "clock", "generate", "time_of"]

SOLVER = "ddpm"
STEPS = 50


def time_of(u: Any) -> Any:
    """t = 2 u - u^2, for a number or a tensor in [0, 1]."""
    return 1.0 - (1.0 - u) ** 2


def clock(steps: int) -> tuple[float, ...]:
    """The times 2 u - u^2, u = 0, 1/steps, ..., 1."""
    return tuple(time_of(k / steps) for k in range(steps)) + (1.0,)


def generate(
    model: GraphModel,
    keys: Keys,
    mask: Tensor,
    steps: int = STEPS,
    cond: Mapping[str, Tensor] | None = None,
    guidance: float = 1.0,
    noise: float = 0.0,
    temperature: float = 1.0,
    solver: str | Solver = SOLVER,
    known: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Clean graphs on the nodes of ``mask`` (B, N), and who stayed finite (B,).

    ``cond`` and ``guidance`` as for `GraphModel` and `guide.cfg`; ``noise`` eta of the tokens;
    ``solver`` of a system of SDEs; ``known`` part -> (value, known) in classes and scaled values.
    Returns ``nodes`` (B,N) and ``edges`` (B,N,N) as classes, values where the model has them.
    """
    config, n = model.config, mask.shape[1]
    tokens = config.system == "flow"
    shape: dict[str, tuple[int, ...]] = {"nodes": (n,), "edges": (n, n)}
    sizes = {name: len(getattr(config, name)) for name in ("nodes", "edges")}
    fixed: dict[str, tuple[Any, Any]] = dict(known or {})
    if not tokens:
        for name, count in sizes.items():
            shape[name] += (1 if count == 2 else count,)
            if name in fixed:
                value, where = fixed[name]
                fixed[name] = (encode(value, count), where)
    if config.features:
        shape["features"] = (n, len(config.features))
    if config.weights:
        shape["weights"] = (n, n)
    guided = guidance != 1.0 and cond is not None
    out = sample(
        model, model.process, keys, shape, mask, solver="euler" if tokens else solver,
        grid=clock(steps), remask=noise, temperature=temperature, cond=cond,
        guide=partial(cfg, weight=guidance) if guided else None, fixed=fixed or None,
    )
    state: State = out.x
    assert isinstance(state, dict)
    if not tokens:
        pairs = model.process.parts["edges"].space.entry_mask(mask, state["edges"])
        assert pairs is not None
        nodes = decode(state["nodes"], sizes["nodes"])
        edges = decode(state["edges"], sizes["edges"])
        state = state | {
            "nodes": torch.where(mask, nodes, 0),
            "edges": torch.where(pairs[..., 0], edges, 0),
        }
    return state, out.finite
