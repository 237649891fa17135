"""graphgen: graphs by discrete flows and systems of SDEs on nodes and edges.

    from driftworks import graphgen
    model = graphgen.fit(graphs, minutes=10)             # networkx graphs
    new = model.sample(100, seed=0)
    full = model.complete(partial, n=20)                 # the known part comes back bit-identical
    print(graphgen.evaluate(new, reference=test, train=graphs))
"""

from __future__ import annotations

from typing import Any

if not __name__.startswith("driftworks."):
    raise ImportError(
        f"this folder was imported as {__name__!r}; import it as driftworks.graphgen "
        "(pip install -e . in the checkout makes that name available)"
    )

_HOMES = {
    "Attributes": "graph",
    "Drawn": "zoo",
    "Graphs": "graph",
    "Model": "zoo",
    "NetConfig": "network",
    "TrainConfig": "train",
    "available": "zoo",
    "declare": "convert",
    "evaluate": "metrics",
    "fit": "fitting",
    "from_networkx": "convert",
    "from_pyg": "convert",
    "from_rdkit": "convert",
    "holds": "validity",
    "load": "zoo",
    "to_networkx": "convert",
    "to_pyg": "convert",
    "to_rdkit": "convert",
}

__all__ = [*_HOMES, "train"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Import on first use, so that `driftworks --help` stays quick."""
    import importlib

    if name == "train":
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
