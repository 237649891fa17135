"""protein: backbones by flow matching, in hundreds of network calls or, distilled, in eight.

    from driftworks import protein
    student = protein.load("ca80-sid")
    designs = student.sample([48, 64, 80] * 10, steps=8, gamma=0.45, seed=3)
    print(protein.evaluate(designs, backbones=protein.full_backbones))
    protein.write(designs, "designs/", fmt="cif")        # N, CA, C, O; confidence as B-factors
    around = student.scaffold(protein.Motif.read("target.pdb", "10-30/A12-25/20-40"), n=16)
    near = student.vary(designs, t=0.8)                  # partial diffusion

Models draw C-alphas; `full_backbones` builds the other atoms around them. No sequence is designed,
and nothing here measures designability.
"""

from __future__ import annotations

from typing import Any

if not __name__.startswith("driftworks."):
    raise ImportError(
        f"this folder was imported as {__name__!r}; import it as driftworks.protein "
        "(pip install -e . in the checkout makes that name available)"
    )

_HOMES = {
    "Chains": "chains",
    "Designs": "designs",
    "DistillConfig": "distill",
    "Model": "zoo",
    "Motif": "motif",
    "Reference": "reference",
    "Report": "evaluation",
    "TrainConfig": "train",
    "available": "zoo",
    "confidence_of": "files",
    "evaluate": "evaluation",
    "full_backbones": "reconstruct",
    "load": "zoo",
    "read": "files",
    "to_atom_array": "files",
    "to_mdtraj": "files",
    "to_stack": "files",
    "write": "files",
}
_MODULES = ("distill", "geometry", "ideal", "picture", "tm", "train")

__all__ = [*_HOMES, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Import on first use, so that `driftworks --help` stays quick."""
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
