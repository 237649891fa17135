"""Checkpoints by name: those shipped in the package's folder ``weights``, and folders of one's own.

A shipped checkpoint is a folder with ``model.json`` and safetensors (`core.checkpoint`); its
``kind`` says which domain it belongs to, its folder is its name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from driftworks.core import checkpoint
from driftworks.errors import UserError

__all__ = ["available", "fetch", "weights_folder"]

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def weights_folder() -> Path:
    """Where shipped checkpoints lie."""
    return WEIGHTS


def available(kind: str) -> dict[str, Path]:
    """Names and folders of the shipped checkpoints of a kind; those with unreadable JSON are not
    among them, and `fetch` says what is wrong with one."""
    found = {}
    for path in sorted(weights_folder().glob("*/model.json")):
        try:
            meta = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(meta, dict) and meta.get("kind") == kind:
            found[path.parent.name] = path.parent
    return found


def fetch(
    name: str | os.PathLike[str], kind: str, fallback: Mapping[str, str] | None = None
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """A checkpoint by name or folder: its name, tensors and metadata.

    ``fallback`` maps a name that is not shipped to one that stands in. Raises `UserError` for an
    unknown name, a checkpoint of another kind, and a damaged one.
    """
    fallback = fallback or {}
    shipped = available(kind)
    chosen = str(name)
    if chosen not in shipped and chosen in fallback:
        chosen = fallback[chosen]
    folder = weights_folder() / chosen
    if not (folder / "model.json").is_file():
        folder = Path(name)
    if not (folder / "model.json").is_file():
        choices = ", ".join(sorted({*shipped, *fallback})) or "none is shipped"
        raise UserError(f"no model {str(name)!r}: neither a shipped one ({choices}) nor a folder "
                        "with model.json")
    tensors, meta = checkpoint.load(folder)
    if meta.get("kind") != kind:
        raise UserError(f"{folder} holds a {meta.get('kind')!r} checkpoint, not a {kind} one")
    return folder.name, tensors, meta
