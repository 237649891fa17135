"""From a list of graphs to a model in one call."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from driftworks.errors import UserError
from driftworks.graphgen.convert import declare, from_networkx, from_pyg
from driftworks.graphgen.graph import Graphs
from driftworks.graphgen.train import PRESETS, TrainConfig, describe, train
from driftworks.graphgen.zoo import Model, load

if TYPE_CHECKING:
    from networkx import Graph

__all__ = ["fit"]


def fit(
    graphs: Iterable[Graph] | Graphs,
    minutes: float | None = None,
    *,
    steps: int | None = None,
    nodes: str | Sequence[str] = (),
    edges: str | Sequence[str] = (),
    features: str | Sequence[str] = (),
    weight: str | None = None,
    label: str | None = None,
    properties: Sequence[str] = (),
    system: str = "flow",
    preset: str = "small",
    out: Path | str | None = None,
    resume: bool = False,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    **recipe: Any,
) -> Model:
    """Train a model on networkx graphs, PyTorch Geometric data, or a `Graphs` batch.

    Args:
        minutes, steps: length of the training (10 minutes when neither is given).
        nodes, edges: names of categorical attributes of nodes and edges.
        features: names of continuous node attributes; ``weight``: that of edges.
        label: name of an integer attribute 0, 1, ... of ``graph.graph`` to condition on.
        properties: names of numeric graph attributes to condition on; missing ones are allowed.
        system: "flow" for the discrete flow, "sde" for the system of SDEs.
        preset: sizes, "small" (a laptop) or "base" (a GPU); any field of `TrainConfig` may follow.
        out: folder of the model and of the run's state; a temporary one when not given.

    Returns the model with averaged weights. Raises `UserError` for graphs that cannot be learned
    (none, directed, undeclared attributes, ...) and for settings that do not exist.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    if system not in ("flow", "sde"):
        raise UserError(f"unknown system {system!r}; choose flow or sde")
    classes: Tensor | None = None
    numbers: Tensor | None = None
    if isinstance(graphs, Graphs):
        batch = graphs
        if label or properties:
            raise UserError("label and properties are read from networkx graphs, not from a batch")
    else:
        given: list[Any] = list(graphs)
        if given and hasattr(given[0], "edge_index"):
            batch = from_pyg(given)
            if label or properties:
                raise UserError("label and properties are read from networkx graphs")
        else:
            batch = from_networkx(given, declare(given, nodes, edges, features, weight))
            classes = _labels(given, label) if label else None
            numbers = _numbers(given, properties) if properties else None
    if minutes is None and steps is None:
        minutes = 10.0
    settings = PRESETS[preset] | recipe
    sizes = settings.pop("net", {}) | {"system": system, "properties": tuple(properties)}
    if classes is not None:
        sizes["labels"] = int(classes.max()) + 1
    config = TrainConfig.model_validate(
        settings
        | {"net": describe(batch, **sizes), "minutes": minutes, "steps": steps, "seed": seed,
           "device": device}
    )
    with tempfile.TemporaryDirectory(prefix="driftworks-") as scratch:
        folder = train(
            config, batch, Path(out) if out is not None else Path(scratch) / "fit", label=classes,
            properties=numbers, source=f"{len(batch)} graphs", resume=resume, progress=progress,
        )
        return load(folder, device)


def _labels(graphs: Sequence[Any], name: str) -> Tensor:
    values = []
    for i, graph in enumerate(graphs):
        value = graph.graph.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UserError(f"graph {i}: label {name!r} must be a whole number >= 0, got {value!r}")
        values.append(value)
    return torch.tensor(values)


def _numbers(graphs: Sequence[Any], names: Sequence[str]) -> Tensor:
    rows = [[graph.graph.get(name, float("nan")) for name in names] for graph in graphs]
    try:
        values = torch.tensor(rows, dtype=torch.float32)
    except (TypeError, ValueError):
        raise UserError(f"properties {', '.join(names)} must be numbers") from None
    absent = [n for n, column in zip(names, values.T, strict=True) if bool(column.isnan().all())]
    if absent or bool(values.isinf().any()):
        what = f"no graph has {', '.join(absent)}" if absent else "a property is infinite"
        raise UserError(f"properties cannot be learned: {what}")
    return values
