"""shapes: geometry, spectra and functional maps of meshes and point clouds; creatures to train on.

    from driftworks import shapes
    a = shapes.read("cat0.off").normalised()             # repaired, with notes of what was
    b = shapes.basis(a, 100)                             # Laplacian eigenfunctions, cached
    c = shapes.fmaps.fit(descriptors_a, descriptors_b, penalties, 1.0)
    c, vertices = shapes.zoomout.zoomout(c, basis_a, basis_b, k=200)

Matching by one call is not built yet.
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
    "Mesh": "mesh",
    "basis": "spectrum",
    "clean": "mesh",
    "distances": "geodesics",
    "hks": "descriptors",
    "read": "files",
    "wks": "descriptors",
    "write": "files",
}
_MODULES = ("creatures", "fmaps", "zoomout")

__all__ = [*_HOMES, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Import on first use, so that `driftworks --help` stays quick."""
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
