"""A progress bar that counts outcomes; plain silence when it was not asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from driftworks.molgen.oracles.protocol import OracleResult

__all__ = ["tracked"]


@contextmanager
def tracked(title: str, total: int, show: bool) -> Iterator[Callable[[OracleResult], None]]:
    """A function to call with every result; with `show`, a bar on stderr follows the calls."""
    if not show:
        yield lambda result: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    losses: Counter[str] = Counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Remaining(),
        TextColumn("{task.fields[losses]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, losses="")

        def advance(result: OracleResult) -> None:
            if not result.ok:
                losses[result.status] += 1
            bar.update(
                task,
                advance=1,
                losses=" ".join(f"{status} {n}" for status, n in sorted(losses.items())),
            )

        yield advance
