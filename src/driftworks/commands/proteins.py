"""What the commands of protein models read in the same way: tables of chains, lengths, and what
of a request fits together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftworks.errors import UserError

if TYPE_CHECKING:
    from driftworks.data.backbones import Backbones

__all__ = ["SOURCES", "check_request", "lengths_of", "parse_lengths", "span_of", "table_of"]

SOURCES = "an .npz of chains, or a folder of PDB, mmCIF or BinaryCIF files"
#: A step of the golden ratio: any few of its multiples are spread evenly over a range.
_GOLDEN = 0.6180339887498949


def table_of(data: str, split: str | None, progress: bool = True) -> tuple[Backbones, str]:
    """The chains of a file or folder, those of ``split`` where there are any; and what they are.

    Raises `UserError` where there is no such place, or no chain in it.
    """
    from driftworks.data import backbones

    path = Path(data)
    if not path.exists():
        raise UserError(f"no file or folder {data}: expected {SOURCES}")
    if path.suffix.lower() == ".npz":
        table = backbones.read(path)
    else:
        table = backbones.from_folder(path, progress=progress)
    text = data
    # a table without splits counts as one for training
    if split is not None and len(rows := table.rows(split)) and len(rows) < len(table):
        table, text = table.select(rows), f"the {split} split of {data}"
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(table.skipped.items()))
    return table, f"{len(table)} chains of {text}" + (f"; left out: {left_out}" if left_out else "")


def parse_lengths(text: str) -> tuple[int, ...] | tuple[int, None, int]:
    """``"80"`` as (80,), ``"64,96"`` as (64, 96), ``"40..80"`` as (40, None, 80)."""
    if found := re.fullmatch(r"\s*(\d+)\s*\.\.\s*(\d+)\s*", text):
        low, high = int(found[1]), int(found[2])
        if low > high:
            raise UserError(f"length {text!r}: the range is empty")
        return low, None, high
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text):
        raise UserError(f"length {text!r} is no number, list like 64,96 or range like 40..80")
    return tuple(int(word) for word in text.split(","))


def lengths_of(
    parsed: tuple[int, ...] | tuple[int, None, int], first: int, n: int
) -> list[int]:
    """Residues of chains first .. first + n - 1: each depends on its number alone."""
    numbers = range(first, first + n)
    if len(parsed) == 3 and parsed[1] is None:
        low, high = parsed[0], parsed[2]
        return [low + int((k * _GOLDEN) % 1.0 * (high - low + 1)) for k in numbers]
    some = [size for size in parsed if size is not None]
    return [some[k % len(some)] for k in numbers]


def span_of(parsed: tuple[int, ...] | tuple[int, None, int]) -> int | tuple[int, int] | None:
    """A single length, or the least and most of a range; None for a list."""
    if len(parsed) == 3 and parsed[1] is None:
        return parsed[0], parsed[2]
    return parsed[0] if len(parsed) == 1 else None


def check_request(
    *, length: Any, motif: Any, contigs: Any, start: Any, time: Any, power: Any, first: int,
    gamma: float | None, guidance: float, solver: str,
) -> None:
    """Raises `UserError` for options of ``sample protein`` that make no sense together."""
    if motif is not None and contigs is None:
        raise UserError(
            "--motif needs --contigs, which say what to hold, for instance 10-20/A12-25/15-30"
        )
    if contigs is not None and motif is None:
        raise UserError(f"--contigs {contigs} need the --motif FILE whose residues they name")
    if time is not None and start is None:
        raise UserError(f"--time {time:g} is how much stays of the chains of --start: name them")
    if start is not None:
        for option, value in (("--motif", motif), ("--length", length), ("--power", power)):
            if value is not None:
                raise UserError(f"--start and {option} do not go together: chains are varied whole")
    if power is not None:
        others = {
            "--motif": motif is not None, "--gamma": gamma is not None, "--first": first != 0,
            "--guidance": guidance != 1.0, "--solver": solver != "sde",
        }
        if named := [option for option, given in others.items() if given]:
            raise UserError(
                f"--power and {named[0]} do not go together: particles are weighed among each "
                "other, for one law of one length"
            )
    if length is None and motif is None and start is None:
        raise UserError(
            "nothing says what to draw: give --length 80, --motif FILE with --contigs, or --start "
            "FILE"
        )
