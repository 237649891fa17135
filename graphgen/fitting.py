"""From a list of graphs to a model in one call."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from driftworks.errors import UserError
from driftworks.graphgen import gdss
from driftworks.graphgen.convert import MEMORY_LIMIT, declare, from_networkx, from_pyg, from_rdkit
from driftworks.graphgen.graph import Graphs
from driftworks.graphgen.network import NetConfig, footprint
from driftworks.graphgen.train import PRESETS, TrainConfig, describe, train
from driftworks.graphgen.zoo import Model, load

__all__ = ["fit"]


def fit(
    graphs: Iterable[Any] | Graphs,
    minutes: float | None = None,
    *,
    steps: int | None = None,
    nodes: str | Sequence[str] = (),
    edges: str | Sequence[str] = (),
    features: str | Sequence[str] = (),
    weight: str | None = None,
    ignore: str | Sequence[str] = (),
    label: str | None = None,
    properties: Sequence[str] = (),
    system: str = "flow",
    preset: str = "quick",
    out: Path | str | None = None,
    resume: bool = False,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    source: str | None = None,
    **recipe: Any,
) -> Model:
    """Train a model on networkx graphs, PyTorch Geometric data, molecules, or a `Graphs` batch.

    Args:
        graphs: of one kind. Of RDKit molecules atoms, charges and bonds are learned, and those that
            cannot be graphs (`from_rdkit`) are left out and counted in the model's record.
        minutes, steps: length of the training (10 minutes when neither is given).
        nodes, edges: names of categorical attributes of nodes and edges.
        features: names of continuous node attributes; ``weight``: that of edges.
        ignore: attributes to leave behind. Fields of PyTorch Geometric are named in the same way.
        label: name of an integer 0, 1, ... of every graph to condition on: an attribute in
            ``graph.graph``, a field of PyTorch Geometric data, a property of a molecule.
        properties: names of numbers of graphs to condition on; missing ones are allowed.
        system: "flow" for the discrete flow, "sde" for the system of SDEs.
        preset: sizes, "small" (a laptop), "quick" (the same network in smaller and bolder steps,
            for minutes) or "base" (a GPU); any field of `TrainConfig` may follow.
            "gdss" is the published GDSS, "gdss-community_small" and so on (`gdss.PRESETS`) its
            recipe for one data set: always a system of SDEs, trained for its published number of
            epochs when no length is given; any field of `gdss.GdssRecipe` may follow.
        source: where the graphs are from, for the model's record.
        out: folder of the model and of the run's state; a temporary one when not given.

    Returns the model with averaged weights. Raises `UserError` for graphs that cannot be learned
    (none, directed, undeclared attributes, ...) and for settings that do not exist.
    """
    if preset not in PRESETS and preset not in gdss.PRESETS:
        choices = ", ".join((*PRESETS, *gdss.PRESETS))
        raise UserError(f"unknown preset {preset!r}; choose one of {choices}")
    if system not in ("flow", "sde"):
        raise UserError(f"unknown system {system!r}; choose flow or sde")
    classes: Tensor | None = None
    numbers: Tensor | None = None
    failures: dict[str, int] = {}
    if isinstance(graphs, Graphs):
        batch = graphs
        if label or properties:
            raise UserError("a batch holds no label and no properties: give the graphs themselves")
    else:
        given: list[Any] = _listed(graphs)
        if given and hasattr(given[0], "edge_index"):
            if not all(isinstance(name, str) or len(name) < 2 for name in (nodes, edges)):
                raise UserError("of PyTorch Geometric graphs one field holds the kinds of nodes, "
                                "and one those of edges")
            kinds = [name if isinstance(name, str) else "".join(name) for name in (nodes, edges)]
            batch = from_pyg(given, kinds[0] or None, kinds[1] or None, features, weight, ignore)
        elif any(hasattr(one, "GetAtoms") for one in given):
            if nodes or edges or features or weight or ignore:
                raise UserError("of molecules atoms, charges and bonds are learned: they have no "
                                "nodes, edges, features, weight or ignore to declare")
            taken: list[int] = []
            batch = from_rdkit(given, failures=failures, taken=taken)
            given = [given[i] for i in taken]
        else:
            batch = from_networkx(given, declare(given, nodes, edges, features, weight, ignore))
        classes = _labels(given, label) if label else None
        numbers = _numbers(given, properties) if properties else None
    lost = ", ".join(f"{count} {reason}" for reason, count in sorted(failures.items()))
    about = (source or f"{len(batch)} graphs") + (f"; left out: {lost}" if lost else "")
    run: dict[str, Any] = {
        "source": about, "resume": resume, "progress": progress,
    }
    with tempfile.TemporaryDirectory(prefix="driftworks-") as scratch:
        folder = Path(out) if out is not None else Path(scratch) / "fit"
        if preset in gdss.PRESETS:
            if label or properties:
                raise UserError("the gdss preset has no labels and no properties to condition on")
            published = gdss.configure(
                preset, batch, minutes, steps, seed=seed, device=device, **recipe
            )
            return load(gdss.train(published, batch, folder, **run), device)
        if minutes is None and steps is None:
            minutes = 10.0
        settings = PRESETS[preset] | recipe
        sizes = PRESETS[preset]["net"] | settings.pop("net", {})
        sizes |= {"system": system, "properties": tuple(properties)}
        if classes is not None:
            sizes["labels"] = int(classes.max()) + 1
        try:
            config = TrainConfig.model_validate(
                settings
                | {"net": describe(batch, **sizes), "minutes": minutes, "steps": steps,
                   "seed": seed, "device": device}
            )
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "settings"
            fields = ", ".join(TrainConfig.model_fields)
            choices = f"; there are {fields}" if first["type"] == "extra_forbidden" else ""
            raise UserError(f"{place}={first['input']!r:.60}: {first['msg']}{choices}") from None
        _refuse_too_large(config.net)
        train(config, batch, folder, label=classes, properties=numbers, **run)
        return load(folder, device)


def _listed(graphs: Any) -> list[Any]:
    if hasattr(graphs, "number_of_nodes") or hasattr(graphs, "edge_index"):
        raise UserError("expected a list of graphs, got one graph; put it in a list")
    if isinstance(graphs, str | bytes) or not isinstance(graphs, Iterable):
        raise UserError(f"expected a list of graphs, got {graphs!r:.60}")
    return list(graphs)


def _refuse_too_large(net: NetConfig) -> None:
    """`UserError` where one graph alone would take more memory than `convert.MEMORY_LIMIT`."""
    size = footprint(net, training=True)
    if size * net.max_nodes**2 > MEMORY_LIMIT:
        raise UserError(
            f"a graph of {net.max_nodes} nodes takes {size * net.max_nodes**2 / 2**30:.1f} GiB to "
            f"train on, the limit is {MEMORY_LIMIT / 2**30:.1f} GiB: graphs of up to "
            f"{int((MEMORY_LIMIT / size) ** 0.5)} nodes fit (more with fewer layers)"
        )


def _told(graph: Any, name: str) -> Any:
    """What a graph says of itself under this name; None where it says nothing."""
    if hasattr(graph, "GetAtoms"):
        return graph.GetPropsAsDict().get(name)
    if hasattr(graph, "edge_index"):
        value = graph[name] if name in graph else None
        return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    return graph.graph.get(name)


def _labels(graphs: Sequence[Any], name: str) -> Tensor:
    values = []
    for i, graph in enumerate(graphs):
        value = _told(graph, name)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise UserError(f"graph {i}: label {name!r} must be a whole number >= 0, got {value!r}")
        values.append(int(value))
    missing = sorted(set(range(min(max(values) + 1, len(values) + 1))) - set(values))
    if missing:
        raise UserError(
            f"labels {name!r} must be 0, 1, ... without gaps: no graph has {missing[0]}, "
            f"the largest is {max(values)}"
        )
    return torch.tensor(values)


def _numbers(graphs: Sequence[Any], names: Sequence[str]) -> Tensor:
    rows = [[_told(graph, name) for name in names] for graph in graphs]
    rows = [[float("nan") if value is None else value for value in row] for row in rows]
    try:
        values = torch.tensor(rows, dtype=torch.float32)
    except (TypeError, ValueError):
        raise UserError(f"properties {', '.join(names)} must be numbers") from None
    absent = [n for n, column in zip(names, values.T, strict=True) if bool(column.isnan().all())]
    if absent or bool(values.isinf().any()):
        what = f"no graph has {', '.join(absent)}" if absent else "a property is infinite"
        raise UserError(f"properties cannot be learned: {what}")
    return values
