r"""Training the molecular flow: one typed config, resumable to the bit on a CPU.

The loss is the matching loss of `core.train` (velocity error of the positions, cross-entropy of the
hidden tokens) plus the squared error of short interatomic distances at late times, which is what a
force field would notice. Gradients that are not finite skip their step. The state on disk (weights,
their moving average, optimiser moments, step, elapsed time) is everything there is, because batches
are a function of (seed, step): `train(..., resume=True)` after a crash continues the same run.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from driftworks.core import checkpoint
from driftworks.core.process import Bridge, Process
from driftworks.core.train import Ema, matching_loss
from driftworks.errors import UserError
from driftworks.molgen.batches import Batches
from driftworks.molgen.network import MoleculeNet, NetConfig, build
from driftworks.molgen.process import molecular_process

if TYPE_CHECKING:
    from driftworks.data.table import MoleculeTable

__all__ = ["PRESETS", "TrainConfig", "pick_device", "size_statistics", "train"]

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class TrainConfig(BaseModel):
    """Everything that decides a training run; saved inside the checkpoint.

    The learning rate warms up, stays, and falls along a cosine to 2 % over the last part of the
    run. The run's length is ``steps``, or ``minutes`` of wall time if those are given (then the
    schedule follows the clock and only the length of the run depends on the machine's speed).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    net: NetConfig = NetConfig()
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
    weights: dict[str, float] = {"pos": 0.5, "atom": 0.4, "charge": 0.5, "bond": 2.0}
    velocity_cap: Positive = 16.0
    distance_weight: Annotated[float, Field(ge=0)] = 1.0
    visible_weight: Annotated[float, Field(ge=0)] = 0.1
    late_times: Fraction = 0.5
    jitter: Annotated[float, Field(ge=0)] = 0.1
    self_condition: Fraction = 0.5
    no_targets: Fraction = 0.15
    one_target: Fraction = 0.45
    buckets: tuple[Count, ...] = (12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 25, 29)
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    workers: Annotated[int, Field(ge=0)] = 0
    checkpoint_minutes: Positive = 2.0

    @model_validator(mode="after")
    def _lengths(self) -> TrainConfig:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give the length of the run as either steps or minutes")
        if list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError(f"buckets must rise, got {self.buckets}")
        if self.no_targets + self.one_target > 1:
            raise ValueError("no_targets + one_target exceed 1")
        return self

    @classmethod
    def preset(cls, name: str, **changes: Any) -> TrainConfig:
        """A named recipe with fields changed; unknown names raise `UserError`."""
        if name not in PRESETS:
            raise UserError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
        return cls.model_validate(PRESETS[name] | changes)


PRESETS: dict[str, dict[str, Any]] = {
    # two CPU cores
    "small": {
        "net": {"width": 128, "pair_width": 64, "heads": 8, "layers": 6},
        "batch": 64,
        "learning_rate": 1.5e-3,
        "ema": 0.999,
        "precision": "bfloat16",
    },
    # one GPU
    "base": {
        "net": {"width": 256, "pair_width": 64, "heads": 16, "layers": 8},
        "batch": 1024,
        "learning_rate": 1e-3,
        "warmup": 500,
        "ema": 0.999,
        "buckets": (16, 18, 20, 22, 29),
        "precision": "bfloat16",
        "compile": True,
        "workers": 12,
    },
}


def size_statistics(counts: np.ndarray, properties: np.ndarray, names: tuple[str, ...],
                    ) -> dict[str, Any]:
    """What p(N | targets) needs: for every size its share, property means and covariance.

    Also the range of every property, [min, 1 %, 99 %, max].
    ``counts`` (M,), ``properties`` (M, P) with NaN for missing. Sizes with too few labelled
    molecules for a covariance borrow the pooled one.
    """
    labelled = ~np.isnan(properties).any(1)
    if labelled.sum() <= properties.shape[1]:
        labelled[:] = False
    sizes, members = np.unique(counts, return_counts=True)
    p = properties.shape[1]
    if labelled.any():
        own = [properties[labelled & (counts == n)] for n in sizes]
        centred = [x - x.mean(0) for x in own if len(x)]
        pooled = np.cov(np.concatenate(centred), rowvar=False).reshape(p, p)
        mean = properties[labelled].mean(0)
        means = [x.mean(0) if len(x) else mean for x in own]
        # Shrinking by 50 pseudo-counts keeps the covariance of rare sizes sane.
        covs = [
            (len(x) * np.cov(x, rowvar=False, bias=True).reshape(p, p) + 50 * pooled)
            / (len(x) + 50)
            if len(x) > 1 else pooled
            for x in own
        ]
    else:
        means, covs = [np.zeros(p)] * len(sizes), [np.eye(p)] * len(sizes)
    ranges = {}
    for name, column in zip(names, properties.T, strict=True):
        known = column[~np.isnan(column)]
        if len(known):
            ranges[name] = np.quantile(known, [0.0, 0.01, 0.99, 1.0]).round(6).tolist()
    return {
        "sizes": sizes.tolist(),
        "share": (members / members.sum()).tolist(),
        "mean": [m.round(6).tolist() for m in means],
        "covariance": [c.round(9).tolist() for c in covs],
        "ranges": ranges,
    }


def _distance_loss(predicted: Tensor, data: Tensor, t: Tensor, mask: Tensor, cap: float) -> Tensor:
    """Squared error of distances below 1.5 scaled units (2.6 angstrom), late times only."""
    def distances(x: Tensor) -> Tensor:
        return ((x.unsqueeze(2) - x.unsqueeze(1)).square().sum(-1) + 1e-6).sqrt()

    true = distances(data)
    eye = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    near = (true < 1.5) & mask.unsqueeze(1) & mask.unsqueeze(2) & ~eye
    late = torch.where(t > 0.5, (1 - t).square().reciprocal().clamp(max=cap), 0.0)
    weight = near * late[:, None, None]
    error = (distances(predicted) - true).square() * weight
    return error.sum() / near.sum().clamp(min=1)


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


class _Run:
    """The mutable state of a training run, and how it is written and read back."""

    def __init__(self, config: TrainConfig, batches: Batches, device: torch.device):
        self.config, self.device = config, device
        net = build(config.net, config.seed)
        with warnings.catch_warnings():
            # Columns without any label have no mean; numpy's warning about it is expected.
            warnings.simplefilter("ignore", RuntimeWarning)
            mean, std = np.nanmean(batches.properties, 0), np.nanstd(batches.properties, 0)
        net.property_mean.copy_(torch.from_numpy(np.nan_to_num(mean)))
        net.property_std.copy_(torch.from_numpy(np.where(np.nan_to_num(std) > 0, std, 1.0)))
        self.net = net.to(device)
        matrices = [p for p in self.net.parameters() if p.ndim > 1]
        vectors = [p for p in self.net.parameters() if p.ndim <= 1]
        self.parameters = matrices + vectors
        self.optimiser = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=config.learning_rate, betas=(0.9, 0.99), fused=True,
        )
        self.ema = Ema(self.parameters, config.ema)
        self.step, self.seconds = 0, 0.0
        self.skipped = torch.zeros((), device=device)

    def learning_rate(self) -> float:
        c = self.config
        done = self.step / c.steps if c.steps else self.seconds / (60 * (c.minutes or 1))
        fall = max(0.0, min(1.0, (done - c.constant) / max(1e-9, 1 - c.constant)))
        cosine = 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * fall)))
        return c.learning_rate * cosine * min(1.0, (self.step + 1) / c.warmup)

    def finished(self) -> bool:
        c = self.config
        return self.step >= c.steps if c.steps else self.seconds >= 60 * (c.minutes or 0)

    def update(self, loss: Tensor) -> None:
        """One optimiser step; a gradient that is not finite leaves everything as it was."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
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
                f"finite; lower learning_rate ({self.config.learning_rate})"
            )

    def save(self, folder: Path) -> None:
        """Write the state into a folder of its own, then drop all but the last two."""
        tensors: dict[str, Tensor] = {"skipped": self.skipped.reshape(1)}
        for k, p in enumerate(self.parameters):
            state = self.optimiser.state[p]
            tensors |= {f"parameter.{k}": p, f"ema.{k}": self.ema.shadow[k]}
            tensors |= {f"{name}.{k}": value.reshape(value.shape or (1,))
                        for name, value in state.items() if isinstance(value, Tensor)}
        meta = {"step": self.step, "seconds": self.seconds, "ema_updates": self.ema.updates,
                "config": self.config.model_dump(mode="json")}
        checkpoint.save(folder / f"state-{self.step:08d}", tensors, meta)
        for old in sorted(folder.glob("state-*"))[:-2]:
            shutil.rmtree(old)

    def restore(self, folder: Path) -> bool:
        """Read the newest state that is whole; False when there is none."""
        for path in sorted(folder.glob("state-*"), reverse=True):
            try:
                tensors, meta = checkpoint.load(path)
            except UserError:
                continue  # torn by a crash while it was written; the one before is whole
            fixed = ("steps", "minutes", "device", "workers", "checkpoint_minutes", "compile")
            ours = self.config.model_dump(mode="json", exclude=set(fixed))
            theirs = {k: v for k, v in meta["config"].items() if k not in fixed}
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
                        continue  # never had a gradient: no step was self-conditioned yet
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

    def averaged(self) -> MoleculeNet:
        """A copy of the network that carries the moving average of the weights."""
        net = build(self.config.net).to(self.device)
        net.load_state_dict(self.net.state_dict())
        own = dict(net.named_parameters())
        names = {id(p): name for name, p in self.net.named_parameters()}
        self.ema.copy_to([own[names[id(p)]] for p in self.parameters])
        return net.eval()


def _loss(net: torch.nn.Module, process: Process, batch: dict[str, Tensor], config: TrainConfig,
          ) -> tuple[Tensor, dict[str, Tensor]]:
    def part(prefix: str) -> dict[str, Tensor]:
        return {k.split("/")[1]: v for k, v in batch.items() if k.startswith(prefix)}

    x_t, data, t, mask = part("t/"), part("1/"), batch["t"], batch["mask"]
    autocast = torch.autocast(t.device.type, torch.bfloat16, config.precision == "bfloat16")
    with autocast:
        previous = None
        if bool(batch["self_condition"]):
            with torch.no_grad():
                previous = net(x_t, t, mask, batch["cond"], None)
        prediction = net(x_t, t, mask, batch["cond"], previous)
    bridge = Bridge(x_t, {}, data, t, mask, part("hidden/"))
    loss = matching_loss(
        prediction, process, bridge, config.weights, config.velocity_cap, config.visible_weight
    )
    distance = _distance_loss(prediction["pos"], data["pos"], t, mask, config.velocity_cap)
    parts = loss.parts | {"distance": distance.detach()}
    return loss.total + config.distance_weight * distance, parts


def _stream(batches: Batches, first: int, config: TrainConfig, device: torch.device,
            ) -> Iterator[dict[str, Tensor]]:
    from torch.utils.data import DataLoader

    loader: DataLoader[dict[str, Tensor]] = DataLoader(
        batches, batch_size=None, sampler=range(first, len(batches)),
        num_workers=config.workers, prefetch_factor=4 if config.workers else None,
        pin_memory=device.type == "cuda", worker_init_fn=_one_thread,
        generator=torch.Generator(),  # else the loader draws a seed from the global generator
    )
    for batch in loader:
        flag = batch.pop("self_condition")
        moved = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
        yield moved | {"self_condition": flag}


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def export(run: _Run, folder: Path, statistics: dict[str, Any], data: dict[str, Any]) -> str:
    """Write the averaged weights in half precision as the model of ``folder``."""
    from driftworks import __version__

    net = run.averaged()
    meta = {
        "kind": "molgen",
        "config": run.config.model_dump(mode="json"),
        "sizes": statistics,
        "training": {
            "steps": run.step,
            "molecules_seen": run.step * run.config.batch,
            "minutes": round(run.seconds / 60, 2),
            "skipped_steps": int(run.skipped.item()),
            "device": torch.cuda.get_device_name() if run.device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "driftworks": __version__,
            "data": data,
        },
    }
    tensors = {
        k: v if "property" in k else v.half()  # the property scales keep their precision
        for k, v in net.state_dict().items()
    }
    return checkpoint.save(folder, tensors, meta)


def train(config: TrainConfig, data: MoleculeTable, out: Path | str, resume: bool = False,
          progress: bool = True) -> Path:
    """Train on ``data`` (all of its rows: select the split first), write a model to ``out``.

    With ``resume`` the newest state in ``out`` is continued. Returns the folder, which
    `molgen.load` reads. Raises `UserError` when ``out`` holds another run or cannot be written, and
    when training diverges.
    """
    from driftworks.molgen.train_progress import Progress

    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from None
    if not resume and any(out.glob("state-*")):
        raise UserError(
            f"{out} already holds a training run; add --resume or choose another folder"
        )
    device = pick_device(config.device)
    process = molecular_process(config.net)
    batches = Batches(data, process, config)
    run = _Run(config, batches, device)
    if resume:
        run.restore(out)
    statistics = size_statistics(batches.counts, batches.properties, config.net.properties)
    description = {"source": data.source, "molecules": len(data) - batches.skipped,
                   "skipped": batches.skipped}
    net = run.net
    if config.compile:
        torch._dynamo.config.cache_size_limit = 64
        for layer in net.layers:
            layer.compile(dynamic=False)

    with Progress(config, enabled=progress) as view:
        begin, before = time.monotonic(), run.seconds
        saved = begin
        for batch in _stream(batches, run.step, config, device):
            if run.finished():
                break
            loss, parts = _loss(net, process, batch, config)
            run.update(loss)
            now = time.monotonic()
            run.seconds = before + now - begin
            if view.due(now):
                view.report(run, parts, process, statistics)
                run.check()
            if now - saved > 60 * config.checkpoint_minutes:
                run.check()
                run.save(out)
                export(run, out, statistics, description)
                saved = now
        run.check()
        run.save(out)
        export(run, out, statistics, description)
    return out
