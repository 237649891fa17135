r"""Training the molecular flow: one typed config, resumable to the bit on a CPU.

The loss is the matching loss of `core.train` (velocity error of the positions, cross-entropy of the
hidden tokens) plus the squared error of short interatomic distances at late times, which is what a
force field would notice. Gradients that are not finite skip their step. The state on disk (weights,
their moving average, optimiser moments, step, elapsed time) is everything there is, because batches
are a function of (seed, step): `train(..., resume=True)` after a crash continues the same run.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from driftworks.core import checkpoint
from driftworks.core.process import Bridge, Process
from driftworks.core.run import Count, Fraction, Positive, Recipe, Run, open_folder, pick_device
from driftworks.core.train import matching_loss
from driftworks.core.watch import Watch
from driftworks.errors import UserError
from driftworks.molgen.batches import Batches
from driftworks.molgen.network import MoleculeNet, NetConfig, build
from driftworks.molgen.process import molecular_process

if TYPE_CHECKING:
    from driftworks.data.table import MoleculeTable

__all__ = ["PRESETS", "TrainConfig", "size_statistics", "strict_share", "train"]

class TrainConfig(Recipe):
    """Everything that decides a training run (see `core.run`); saved inside the checkpoint."""

    net: NetConfig = NetConfig()
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

    @model_validator(mode="after")
    def _shares(self) -> TrainConfig:
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


def new_run(config: TrainConfig, batches: Batches, device: torch.device) -> Run[MoleculeNet]:
    """A run at step 0, its network scaled to the properties of the data."""
    net = build(config.net, config.seed)
    with warnings.catch_warnings():
        # Columns without any label have no mean; numpy's warning about it is expected.
        warnings.simplefilter("ignore", RuntimeWarning)
        mean, std = np.nanmean(batches.properties, 0), np.nanstd(batches.properties, 0)
    net.property_mean.copy_(torch.from_numpy(np.nan_to_num(mean)))
    net.property_std.copy_(torch.from_numpy(np.where(np.nan_to_num(std) > 0, std, 1.0)))
    return Run(config, net, lambda: build(config.net), device)


QUALITY_SAMPLES = 64


def strict_share(run: Run[MoleculeNet], config: TrainConfig, process: Process,
                 statistics: dict[str, Any]) -> float:
    """Share of strictly valid molecules among a few drawn from the averaged weights."""
    from driftworks.core.keys import Keys
    from driftworks.molgen.process import to_molecules
    from driftworks.molgen.sample import generate
    from driftworks.molgen.validity import strict_mask

    generator = np.random.default_rng([config.seed, run.step, 1])
    counts = generator.choice(statistics["sizes"], QUALITY_SAMPLES, p=statistics["share"])
    mask = torch.arange(int(counts.max())) < torch.from_numpy(counts).unsqueeze(1)
    mask = mask.to(run.device)
    keys = Keys.for_samples(run.step, range(QUALITY_SAMPLES)).to(run.device)
    state, finite = generate(run.averaged(), process, keys, mask, steps=50)
    # A sample that blew up counts as invalid; it may still hold mask tokens.
    good = {k: v[finite] for k, v in state.items()}
    molecules = to_molecules(good, mask[finite], config.net)
    return float(strict_mask(molecules.to("cpu")).sum()) / QUALITY_SAMPLES


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


def export(run: Run[MoleculeNet], config: TrainConfig, folder: Path, statistics: dict[str, Any],
           data: dict[str, Any]) -> str:
    """Write the averaged weights in half precision as the model of ``folder``."""
    net = run.averaged()
    meta = {
        "kind": "molgen",
        "config": config.model_dump(mode="json"),
        "sizes": statistics,
        "training": run.record() | {"molecules_seen": run.step * config.batch, "data": data},
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
    out = open_folder(out, resume)
    device = pick_device(config.device)
    process = molecular_process(config.net)
    batches = Batches(data, process, config)
    run = new_run(config, batches, device)
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

    def save() -> None:
        run.check()
        run.save(out)
        export(run, config, out, statistics, description)

    def quality() -> str:
        return f"strict {strict_share(run, config, process, statistics):.0%}"

    with Watch(run, "mol", save, quality, enabled=progress) as view:
        for batch in _stream(batches, run.step, config, device):
            if run.finished():
                break
            loss, parts = _loss(net, process, batch, config)
            run.update(loss)
            view.stepped(parts)
        save()
    return out
