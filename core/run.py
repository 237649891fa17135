r"""A training run that can stop anywhere: optimiser, moving average and schedule, all on disk.

The update is AdamW (Loshchilov & Hutter 2019; matrices decay, vectors do not) on clipped gradients;
a gradient that is not finite skips its step and is counted. The learning rate warms up, stays, and
falls along a cosine to 2 % over the last part of the run,

    rate = learning_rate * min(1, (step + 1) / warmup) * (.02 + .98 (1 + cos(pi fall)) / 2),

and the exponential moving average of the weights is what a run is for. What a step sees must be a
function of (seed, step); then weights, average, moments, step and seconds are everything there is,
and a run continued after a crash is the run it would have been (to the bit on one CPU thread).

A folder holds the last two states, each written whole under its own name before an older one goes.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from driftworks.core import checkpoint
from driftworks.core.train import Ema
from driftworks.errors import UserError

__all__ = ["Count", "Fraction", "Positive", "Recipe", "Run", "open_folder", "pick_device"]

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

Net = TypeVar("Net", bound=nn.Module)

#: Fields in which a continued run may differ from the one it continues.
FREE = {"steps", "minutes", "device", "workers", "checkpoint_minutes", "compile"}


class Recipe(BaseModel):
    """How a run proceeds; a domain adds its network and its data. Saved inside the checkpoint.

    The length is ``steps``, or ``minutes`` of wall time (then the schedule follows the clock, and
    only the length of the run depends on the machine's speed).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    batch: Count = 64
    steps: Count | None = None
    minutes: Positive | None = None
    learning_rate: Positive = 1e-3
    warmup: Count = 300
    constant: Fraction = 0.4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    clip: Positive = 1.0
    ema: Fraction = 0.999
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    workers: Annotated[int, Field(ge=0)] = 0
    checkpoint_minutes: Positive = 2.0

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give the length of the run as either steps or minutes")
        return self

    def done(self, step: int, seconds: float) -> float:
        """The share of the run that is behind, 1 and more when it is over."""
        return step / self.steps if self.steps else seconds / (60 * (self.minutes or 1))


def pick_device(name: str) -> torch.device:
    """A device by name; ``auto`` is CUDA where there is one. Raises `UserError`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device: torch.device | None
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:0")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"device {name!r} asked for, but this machine shows {count or 'no'} CUDA "
                        f"device{'s' if count > 1 else ''}")
    return device


class Run(Generic[Net]):
    """The mutable state of a training run, and how it is written and read back.

    ``build`` makes a network of the run's shape; ``net`` is the one that trains, already on its
    device.
    """

    def __init__(self, recipe: Recipe, net: Net, build: Callable[[], Net], device: torch.device):
        self.recipe, self.device, self.build = recipe, device, build
        self.net = net.to(device)
        matrices = [p for p in self.net.parameters() if p.ndim > 1]
        vectors = [p for p in self.net.parameters() if p.ndim <= 1]
        self.parameters = matrices + vectors
        self.optimiser = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": recipe.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate, betas=(0.9, 0.99), fused=True,
        )
        self.ema = Ema(self.parameters, recipe.ema)
        self.step, self.seconds = 0, 0.0
        self.skipped = torch.zeros((), device=device)

    def learning_rate(self) -> float:
        r = self.recipe
        left = max(1e-9, 1 - r.constant)
        fall = max(0.0, min(1.0, (r.done(self.step, self.seconds) - r.constant) / left))
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fall))
        return r.learning_rate * cosine * min(1.0, (self.step + 1) / r.warmup)

    def finished(self) -> bool:
        return self.recipe.done(self.step, self.seconds) >= 1

    def update(self, loss: Tensor) -> None:
        """One optimiser step; a gradient that is not finite leaves everything as it was."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        bad = (~torch.isfinite(norm)).float()
        # The fused optimiser reads this flag on the device, as it does for a gradient scaler: no
        # wait for the GPU.
        self.optimiser.found_inf = bad  # type: ignore[attr-defined]
        self.optimiser.grad_scale = None  # type: ignore[attr-defined]
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.optimiser.step()
        self.skipped += bad
        self.ema.update(self.parameters)
        self.step += 1

    def check(self) -> None:
        """Raise `UserError` when a tenth of all steps had to be skipped."""
        skipped = int(self.skipped)
        if skipped > 100 and skipped > 0.1 * self.step:
            raise UserError(
                f"training diverges: {skipped} of {self.step} steps had gradients that are not "
                f"finite; lower learning_rate ({self.recipe.learning_rate})"
            )

    def averaged(self) -> Net:
        """A copy of the network that carries the moving average of the weights."""
        net = self.build().to(self.device)
        net.load_state_dict(self.net.state_dict())
        own = dict(net.named_parameters())
        names = {id(p): name for name, p in self.net.named_parameters()}
        self.ema.copy_to([own[names[id(p)]] for p in self.parameters])
        return net.eval()

    def record(self) -> dict[str, Any]:
        """How far the run came and with what: for the metadata of the model it makes."""
        from driftworks import __version__

        return {
            "steps": self.step,
            "minutes": round(self.seconds / 60, 2),
            "skipped_steps": int(self.skipped.item()),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "driftworks": __version__,
        }

    def save(self, folder: Path) -> None:
        """Write the state into a folder of its own, then drop all but the last two."""
        tensors: dict[str, Tensor] = {"skipped": self.skipped.reshape(1)}
        for k, p in enumerate(self.parameters):
            state = self.optimiser.state[p]
            tensors |= {f"parameter.{k}": p, f"ema.{k}": self.ema.shadow[k]}
            tensors |= {f"{name}.{k}": value.reshape(value.shape or (1,))
                        for name, value in state.items() if isinstance(value, Tensor)}
        meta = {"step": self.step, "seconds": self.seconds, "ema_updates": self.ema.updates,
                "config": self.recipe.model_dump(mode="json")}
        checkpoint.save(folder / f"state-{self.step:08d}", tensors, meta)
        for old in sorted(folder.glob("state-*"))[:-2]:
            shutil.rmtree(old)

    def restore(self, folder: Path) -> bool:
        """Read the newest state that is whole; False when there is none.

        Raises `UserError` when the folder holds a run with other settings.
        """
        for path in sorted(folder.glob("state-*"), reverse=True):
            try:
                tensors, meta = checkpoint.load(path)
            except UserError:
                continue  # torn by a crash while it was written; the one before is whole
            ours = self.recipe.model_dump(mode="json", exclude=FREE)
            theirs = {k: v for k, v in meta["config"].items() if k not in FREE}
            if ours != theirs:
                changed = sorted(k for k in ours if ours[k] != theirs.get(k))
                raise UserError(
                    f"{folder} holds a run with another {', '.join(changed)}; resume it with the "
                    "same settings or choose another folder"
                )
            with torch.no_grad():
                for k, p in enumerate(self.parameters):
                    p.copy_(tensors[f"parameter.{k}"])
                    self.ema.shadow[k].copy_(tensors[f"ema.{k}"])
                    if f"step.{k}" not in tensors:
                        continue  # never had a gradient yet
                    self.optimiser.state[p] = {
                        "step": tensors[f"step.{k}"].reshape(()).to(self.device),
                        "exp_avg": tensors[f"exp_avg.{k}"].to(self.device),
                        "exp_avg_sq": tensors[f"exp_avg_sq.{k}"].to(self.device),
                    }
            self.skipped.copy_(tensors["skipped"][0])
            self.step, self.seconds = meta["step"], meta["seconds"]
            self.ema.updates = meta["ema_updates"]
            return True
        return False


def open_folder(out: Path | str, resume: bool) -> Path:
    """The folder of a run, made if need be; `UserError` if it cannot be or holds another run."""
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from None
    if not resume and any(out.glob("state-*")):
        raise UserError(
            f"{out} already holds a training run; add --resume or choose another folder"
        )
    return out
