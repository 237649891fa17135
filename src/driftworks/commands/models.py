"""``driftworks models``: the trained models that come with driftworks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from driftworks.errors import UserError

__all__ = ["models", "shipped", "summary"]


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
        print(f"{title}  ({meta.get('kind', 'unknown kind')}, {size:.1f} MiB)")
        print(f"  {summary(_card(folder)) or 'no card'}")
