"""``driftworks models``: the trained models that come with driftworks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from driftworks.errors import UserError

__all__ = ["described", "models", "shipped", "summary"]

#: Network calls of a teacher of proteins (`protein.sample.STEPS`, whose import takes seconds).
TEACHER_CALLS = 400
_ROLES = {"flowmap": "flow map"}
_METHODS = {"sid": "SiD", "sim": "SIM", "ctm": "CTM"}


def shipped() -> dict[str, Path]:
    """Name -> folder of every checkpoint in ``driftworks/weights``."""
    folder = Path(__file__).resolve().parents[1] / "weights"
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/model.json"))}


def summary(card: str) -> str:
    """The first paragraph of a model card that is no heading: what it is, and its figures."""
    for paragraph in card.split("\n\n"):
        lines = [line for line in paragraph.splitlines() if not line.startswith("#")]
        if text := " ".join(" ".join(lines).split()):
            return text
    return ""


def described(meta: dict[str, Any]) -> str:
    """What a model is in words, from its ``model.json``: of proteins also how it is asked."""
    kind = str(meta.get("kind", "unknown kind"))
    if kind != "protein" or "role" not in meta:
        return kind
    role, method = meta["role"], meta.get("training", {}).get("method")
    words = [f"{kind} {_ROLES.get(role, role)}" + (
        f" by {_METHODS.get(method, method)}" if method else ""
    )]
    if lengths := meta.get("lengths"):
        words.append(f"{lengths[0]}-{lengths[1]} residues")
    calls = TEACHER_CALLS if role == "teacher" else len(meta.get("times", ()))
    if calls:
        words.append(f"{calls} network call{'s' if calls > 1 else ''} a chain")
    return ", ".join(words)


def _card(folder: Path) -> str:
    path = folder / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def models(
    name: Annotated[
        str | None, typer.Argument(help="Show the whole card of this model.", show_default=False)
    ] = None,
) -> None:
    """The models that come with driftworks and what their cards say first.

    \b
    Example:
      driftworks models
      driftworks models qm9-small
    """
    known = shipped()
    if name is not None:
        if name not in known:
            raise UserError(f"unknown model {name!r}; choose from: {', '.join(known) or 'none'}")
        print(_card(known[name]).rstrip() or f"{name} has no card")
        return
    if not known:
        print("no models; train one with `driftworks train molgen` or `driftworks train graphgen`")
    for title, folder in known.items():
        meta = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**20
        print(f"{title}  ({described(meta)}, {size:.1f} MiB)")
        print(f"  {summary(_card(folder)) or 'no card'}")
