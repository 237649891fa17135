"""Progress bars on standard error, by rich; rich is imported only when a bar is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(
    description: str, total: int | None = None, *, show: bool = True, data: bool = False
) -> Iterator[Callable[[int, int | None], None]]:
    """A bar that is moved by calling ``update(done, total)``.

    total: how many there will be, None while that is unknown; show: False for no bar at all;
    data: the counts are bytes.
    """
    if not show:
        yield lambda done, total: None
        return
    from rich import progress
    from rich.console import Console

    amount = (
        (progress.DownloadColumn(), progress.TransferSpeedColumn())
        if data
        else (progress.MofNCompleteColumn(), progress.TimeElapsedColumn())
    )
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        *amount,
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)
