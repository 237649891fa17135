"""What a campaign shows while it runs: live bars on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

__all__ = ["Progress"]

#: Seconds between two plain lines of the same stage.
_INTERVAL = 10.0


class Progress:
    """One bar a stage on stderr; silent unless `show`."""

    def __init__(self, show: bool) -> None:
        self._bars: Any = None
        self._console: Any = None
        self._tasks: dict[str, Any] = {}
        self._counts: dict[str, tuple[int, int]] = {}
        self._said: dict[str, float] = {}
        if not show:
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        if self._console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description:<22}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, line: str) -> None:
        """One line of text, taken literally."""
        if self._console is not None:
            self._console.print(line, markup=False)

    def update(
        self, stage: str, done: int, total: int, note: str = "", minor: bool = False
    ) -> None:
        """`stage` is at `done` of `total`; a `minor` one gets lines only if it takes long."""
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, note=note)
            self._bars.update(self._tasks[stage], completed=done, total=total, note=note)
        elif self._console is not None and self._counts.get(stage) != (done, total):
            self._counts[stage] = (done, total)
            now = time.monotonic()
            since = now - self._said.setdefault(stage, now if minor else now - _INTERVAL)
            if minor and done >= total:
                del self._said[stage]
            elif since >= _INTERVAL or (done >= total and not minor):
                self._said[stage] = now
                self.say(f"{stage}: {done}/{total}{f' ({note})' if note else ''}")
