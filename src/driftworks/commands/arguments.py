"""What several commands read in the same way: targets, output files, groups of commands."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import typer

from driftworks.errors import UserError

__all__ = [
    "group", "output_file", "output_folder", "parse_sizes", "parse_targets", "readable",
    "run_length",
]


def group(text: str) -> typer.Typer:
    """A group of commands that shows its help when no command is named."""
    app = typer.Typer(
        help=text,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=True)
    def show_help(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            print(context.get_help())

    show_help.__doc__ = text
    return app


def parse_targets(
    given: Sequence[str], what: str = "target", example: str = "mu=4.0"
) -> dict[str, str]:
    """``["mu=4", "gap=0.22 hartree"]`` as ``{"mu": "4", "gap": "0.22 hartree"}``.

    Raises `UserError` for anything that is not NAME=VALUE and for a target given twice. Names and
    values are judged by the model, which knows its properties and their units.
    """
    targets: dict[str, str] = {}
    for text in given:
        name, _, value = (part.strip() for part in text.partition("="))
        if not (name and value):
            raise UserError(f"{what} {text!r} is not NAME=VALUE, for instance {example}")
        if name in targets:
            raise UserError(f"{what} {name!r} is given twice")
        targets[name] = value
    return targets


def parse_sizes(text: str | None, what: str = "atoms") -> int | tuple[int, int] | None:
    """``"18"`` as 18, ``"15..20"`` as (15, 20); raises `UserError` for anything else."""
    if text is None:
        return None
    if not (found := re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text.strip())):
        raise UserError(f"{what} {text!r} is not a number or a range like 15..20")
    low, high = int(found[1]), int(found[2] or found[1])
    if low > high:
        raise UserError(f"{what} {text!r}: the range is empty")
    return low if found[2] is None else (low, high)


def output_file(path: Path, suffixes: Sequence[str]) -> Path:
    """``path``, once it is clear that it can be written at the end of a long calculation.

    Raises `UserError` for an unknown suffix, a path that is a folder, and a place where nothing can
    be written; nothing is created. A suffix may have two parts, like ``.graphml.zip``.
    """
    if not (path.suffix and path.name.lower().endswith(tuple(suffixes))):
        raise UserError(
            f"output {path}: unknown suffix {path.suffix!r}, choose one of {', '.join(suffixes)}"
        )
    if path.is_dir():
        raise UserError(f"output {path} is a folder, not a file")
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"output {path}: no permission to replace it")
    output_folder(path.parent)
    return path


def output_folder(path: Path) -> Path:
    """``path``, once it is clear that a folder can be made or used there; nothing is created."""
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"output {path}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"output {path}: no permission to write in {nearest}")
    return path


def run_length(
    minutes: float | None, steps: int | None, default: float | None, what: str = "steps"
) -> float | None:
    """The minutes of a run whose length is given in minutes, in ``what``, or not at all.

    Raises `UserError` when both are given and for minutes that are not positive.
    """
    if minutes is not None and steps is not None:
        raise UserError(f"give --minutes or --{what}, not both")
    if minutes is not None and not minutes > 0:
        raise UserError(f"--minutes must be positive, got {minutes:g}")
    return default if minutes is None and steps is None else minutes


def readable(path: Path) -> Path:
    """``path`` if it is a file; raises `UserError` otherwise."""
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file")
    if not path.is_file():
        raise UserError(f"no file {path}")
    return path
