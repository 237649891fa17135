"""What a person sees while a model trains: loss, speed, time left, and whether samples get better.

Losses of generative models say little. So every few minutes the run is asked for a figure that
means something, a share of valid samples from the averaged weights, and shows it beside the loss.
The same look at the clock tells when to save.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from driftworks.core.run import Run

__all__ = ["Watch"]

LINE_SECONDS = 10.0
QUALITY_SECONDS = 300.0


class Watch:
    """A bar on a terminal, a line every ten seconds elsewhere; nothing when not enabled.

    ``unit`` names what a batch holds ("mol"); ``save()`` writes the run's state, every
    ``checkpoint_minutes`` of its recipe; ``quality()`` returns a short text about samples. Call
    `stepped` after every step: it also keeps the run's seconds.
    """

    def __init__(
        self,
        run: Run[Any],
        unit: str,
        save: Callable[[], object],
        quality: Callable[[], str] | None = None,
        enabled: bool = True,
    ):
        self.run, self.unit, self.enabled = run, unit, enabled
        self.save, self.ask = save, quality
        self.last_line = self.last_quality = time.monotonic()
        self.last_step: int | None = None
        self.quality = ""
        self.bar: Bar | None = None

    def __enter__(self) -> Watch:
        if self.enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("training"), BarColumn(), TimeElapsedColumn(),
                TextColumn("{task.description}"), console=Console(stderr=True),
            )
            self.bar.start()
            self.task = self.bar.add_task("", total=1.0)
        self.saved = time.monotonic()
        self.begin = self.saved - self.run.seconds
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def stepped(self, parts: Mapping[str, Tensor]) -> None:
        """A step is done: keep the time, show the losses ``parts``, save; each when it is due."""
        now = time.monotonic()
        self.run.seconds = now - self.begin
        if self.due(now):
            self.report(parts)
            self.run.check()
        if now - self.saved > 60 * self.run.recipe.checkpoint_minutes:
            self.save()
            self.saved = now

    def due(self, now: float) -> bool:
        """Whether it is time to look at the run (reading the loss waits for the device)."""
        return self.enabled and now - self.last_line >= (1.0 if self.bar else LINE_SECONDS)

    def report(self, parts: Mapping[str, Tensor]) -> None:
        """Show the run's progress and the losses of ``parts``."""
        run, now = self.run, time.monotonic()
        steps = run.step - (self.last_step if self.last_step is not None else run.step)
        rate = steps * run.recipe.batch / max(now - self.last_line, 1e-9)
        self.last_step, self.last_line = run.step, now
        if self.ask is not None and now - self.last_quality > QUALITY_SECONDS:
            self.quality = self.ask()
            self.last_quality = self.last_line = time.monotonic()
        done = run.recipe.done(run.step, run.seconds)
        losses = " ".join(f"{k} {float(v):.3f}" for k, v in parts.items())
        text = (
            f"step {run.step} {done:4.0%} {losses} lr {run.learning_rate():.1e} "
            f"{rate:.0f} {self.unit}/s {self.quality}"
        )
        if int(run.skipped):
            text += f" skipped {int(run.skipped)}"
        if self.bar is not None:
            self.bar.update(self.task, completed=min(done, 1.0), description=text)
        else:
            print(f"[{run.seconds / 60:6.1f} min] {text}", file=sys.stderr, flush=True)
