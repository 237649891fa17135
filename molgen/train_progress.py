"""What a person sees while a model trains: loss, speed, time left, and whether samples get better.

Every so often a few molecules are drawn from the averaged weights and the share of strictly valid
ones is shown: losses of generative models say little, this figure says what they mean.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from driftworks.core.process import Process
    from driftworks.molgen.train import TrainConfig, _Run

__all__ = ["Progress"]

LINE_SECONDS = 10.0
QUALITY_SECONDS = 300.0
QUALITY_SAMPLES = 64


class Progress:
    """A bar on a terminal, a line every ten seconds elsewhere; nothing when not enabled."""

    def __init__(self, config: TrainConfig, enabled: bool):
        self.config, self.enabled = config, enabled
        self.last_line = self.last_quality = time.monotonic()
        self.last_step: int | None = None
        self.quality = ""
        self.bar: Bar | None = None

    def __enter__(self) -> Progress:
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
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def due(self, now: float) -> bool:
        """Whether it is time to look at the run (reading the loss waits for the device)."""
        return self.enabled and now - self.last_line >= (1.0 if self.bar else LINE_SECONDS)

    def report(self, run: _Run, parts: dict[str, Tensor], process: Process,
               statistics: dict[str, Any]) -> None:
        now = time.monotonic()
        steps = run.step - (self.last_step if self.last_step is not None else run.step)
        rate = steps * self.config.batch / max(now - self.last_line, 1e-9)
        self.last_step, self.last_line = run.step, now
        if now - self.last_quality > QUALITY_SECONDS:
            self.quality = f"strict {self._strict(run, process, statistics):.0%}"
            self.last_quality = self.last_line = time.monotonic()
        c = self.config
        done = run.step / c.steps if c.steps else run.seconds / (60 * (c.minutes or 1))
        losses = " ".join(f"{k} {float(v):.3f}" for k, v in parts.items())
        text = (
            f"step {run.step} {done:4.0%} {losses} lr {run.learning_rate():.1e} "
            f"{rate:.0f} mol/s {self.quality}"
        )
        if int(run.skipped):
            text += f" skipped {int(run.skipped)}"
        if self.bar is not None:
            self.bar.update(self.task, completed=min(done, 1.0), description=text)
        else:
            print(f"[{run.seconds / 60:6.1f} min] {text}", file=sys.stderr, flush=True)

    def _strict(self, run: _Run, process: Process, statistics: dict[str, Any]) -> float:
        """Share of strictly valid molecules among a few drawn from the averaged weights."""
        from driftworks.core.keys import Keys
        from driftworks.molgen.process import to_molecules
        from driftworks.molgen.sample import generate
        from driftworks.molgen.validity import strict_mask

        generator = np.random.default_rng([self.config.seed, run.step, 1])
        counts = generator.choice(statistics["sizes"], QUALITY_SAMPLES, p=statistics["share"])
        size = int(counts.max())
        mask = torch.arange(size) < torch.from_numpy(counts).unsqueeze(1)
        mask = mask.to(run.device)
        state, finite = generate(
            run.averaged(), process, Keys.for_samples(run.step, range(QUALITY_SAMPLES)),
            mask, steps=50,
        )
        # A sample that blew up counts as invalid; it may still hold mask tokens.
        good = {k: v[finite] for k, v in state.items()}
        molecules = to_molecules(good, mask[finite], self.config.net)
        return float(strict_mask(molecules.to("cpu")).sum()) / QUALITY_SAMPLES
