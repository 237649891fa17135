"""shapes: which point of one shape is which point of another, found without training on the pair.

    from driftworks import shapes
    a, b = shapes.read("cat0.off"), shapes.read("wolf1.off")   # repaired, with notes of what was
    m = shapes.match(a, b, seed=0)       # vertex maps both ways, functional map, confidence, score
    m.render("match.png"), m.transfer(landmarks), m.save("match.npz")
    print(shapes.evaluate(m, truth))     # geodesic error, where the truth is known

Underneath: meshes and point clouds (`read`, `write`, `clean`), geodesics (`distances`), spectra
(`basis`), descriptors (`hks`, `wks`), functional maps (`fmaps`), refinement (`zoomout`, `refine`),
priors on functional maps (`prior`, `load`) and procedural creatures to train them on (`creatures`,
`maps`).
"""

from __future__ import annotations

from typing import Any

if not __name__.startswith("driftworks."):
    raise ImportError(
        f"this folder was imported as {__name__!r}; import it as driftworks.shapes "
        "(pip install -e . in the checkout makes that name available)"
    )

_HOMES = {
    "Basis": "spectrum",
    "Hypothesis": "result",
    "Maps": "maps",
    "Match": "result",
    "Mesh": "mesh",
    "Report": "evaluation",
    "Summary": "evaluation",
    "SurfacePoints": "transfer",
    "available": "zoo",
    "basis": "spectrum",
    "clean": "repair",
    "complete": "refinement",
    "distances": "geodesics",
    "evaluate": "evaluation",
    "hks": "descriptors",
    "load": "zoo",
    "match": "matching",
    "match_collection": "matching",
    "match_folder": "batch",
    "mesh_picture": "render",
    "page": "viewer",
    "picture": "render",
    "posterior_penalty": "prior",
    "read": "files",
    "refine": "refinement",
    "sample_maps": "refinement",
    "summarise": "evaluation",
    "wks": "descriptors",
    "write": "files",
}
_MODULES = ("creatures", "fmaps", "maps", "prior", "train", "transfer", "zoomout")

__all__ = [*_HOMES, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Import on first use, so that `driftworks --help` stays quick."""
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
