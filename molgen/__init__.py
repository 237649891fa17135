"""molgen: 3D molecules by SE(3)-equivariant flow matching, steered by properties.

    from driftworks import molgen
    model = molgen.load("qm9")
    library = model.sample(200, targets={"mu": 4.0, "gap": 6.0}, seed=7)
    print(molgen.evaluate(library))
    library.write("candidates.sdf")
"""

from __future__ import annotations

from typing import Any

if not __name__.startswith("driftworks."):
    raise ImportError(
        "this folder is imported as 'driftworks.molgen' (pip install -e . in the repository root), "
        f"not as {__name__!r}"
    )

_HOMES = {
    "Library": "library",
    "Model": "zoo",
    "Molecules": "molecule",
    "NetConfig": "network",
    "TrainConfig": "train",
    "available": "zoo",
    "check": "validity",
    "evaluate": "metrics",
    "load": "zoo",
    "load_regressor": "regressor",
    "oracles": "oracles",
    "strict_mask": "validity",
}

__all__ = [*_HOMES, "train"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Import on first use, so that `driftworks --help` stays quick."""
    import importlib

    if name in ("oracles", "train"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
