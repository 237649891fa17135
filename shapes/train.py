r"""Training a prior on functional maps: one pass for the closed forms, the rest for the network.

The network is asked for clean matrices from noisy ones, x = X + sigma n with log sigma ~
N(-1.6, 1.2^2) kept in [.005, 3], by EDM's loss

    E (sigma^2 + s^2) / (sigma s)^2 mean_ij |D(x; sigma)_ij - X_ij|^2,     s = sigma_data,

measured on the data: entries of |C| deviate from their mean by about 0.1, so noise levels lie
around that. A step is of one size k, half of the time the smallest, else one of the larger, and the
number of matrices in it falls as 1 / k^2, so that steps cost alike. Half of the matrices are turned
over, |C|^T with the two shapes exchanged: the adjoint of a map is a map the other way. Eigenvalues
are left out of a fifth, so that the network also answers without them.

What a step sees is a function of (seed, step).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from driftworks.core import checkpoint
from driftworks.core.keys import Keys
from driftworks.core.run import Fraction, Positive, Recipe, Run, open_folder, pick_device
from driftworks.core.watch import Watch
from driftworks.errors import UserError
from driftworks.shapes.dit import LEAST, NetConfig, Network, build
from driftworks.shapes.maps import Maps
from driftworks.shapes.prior import SIGMA_MAX, Gaussian, SecondMoment, denoising_errors

__all__ = ["PRESETS", "TrainConfig", "entry_moments", "export", "train"]

SIGMA_MIN = 0.005
#: Noise levels at which quality is told.
LEVELS = (0.05, 0.1, 0.3, 1.0)

#: Sizes of network and batch by name: for a laptop, and for a GPU.
PRESETS: dict[str, dict[str, Any]] = {
    "small": {"net": {"width": 96, "layers": 4, "heads": 4}},
    "base": {
        "net": {"width": 256, "layers": 8, "heads": 8},
        "batch": 512, "learning_rate": 5e-4, "precision": "bfloat16",
    },
}  # fmt: skip


class TrainConfig(Recipe):
    """Everything that decides a training run (see `core.run`); saved inside the checkpoint.

    ``batch`` matrices a step of size 30, fewer of larger ones; ``coarse`` the share of steps of
    that size; ``transposed`` and ``unconditional`` shares of matrices; ``rank`` directions of the
    Gaussian prior beyond 30 functions (`prior.Gaussian`).
    """

    net: NetConfig = NetConfig()
    log_sigma: float = -1.6
    spread: Positive = 1.2
    coarse: Fraction = 0.5
    transposed: Fraction = 0.5
    unconditional: Fraction = 0.2
    rank: Annotated[int, Field(ge=1)] = 128

    @classmethod
    def preset(cls, name: str, **changes: Any) -> TrainConfig:
        """A named recipe with changes to its fields. Raises `UserError`."""
        if name not in PRESETS:
            raise UserError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
        fields = {**PRESETS[name], **changes}
        fields["net"] = {**PRESETS[name]["net"], **changes.get("net", {})}
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"training settings: {where} {first['msg']}") from None


def entry_moments(maps: Maps) -> tuple[Tensor, Tensor]:
    """Mean and variance (k, k) of every entry."""
    c = torch.from_numpy(maps.c)
    parts = [part.float() for part in c.split(512)]
    mean = torch.stack([part.sum(0, dtype=torch.float64) for part in parts]).sum(0) / len(c)
    errors = [(part - mean.float()).square().sum(0, dtype=torch.float64) for part in parts]
    return mean.float(), (torch.stack(errors).sum(0) / len(c)).float()


class Batches:
    """``batches(step)`` is (clean (B, k, k), sigma (B,), values1, values2 (B, k), keys)."""

    def __init__(self, maps: Maps, config: TrainConfig, device: torch.device):
        self.config, self.device = config, device
        self.c = torch.from_numpy(maps.c)
        self.values = torch.from_numpy(maps.values)
        self.pairs = torch.from_numpy(maps.pairs)
        if device.type == "cuda":
            self.c, self.values, self.pairs = (
                t.to(device) for t in (self.c, self.values, self.pairs)
            )
        self.sizes = list(range(LEAST, config.net.k + 1, config.net.patch))

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Keys]:
        config = self.config
        choice, which = Keys.for_samples(config.seed, [step]).uniform("size", 0, (2,))[0].tolist()
        larger = self.sizes[1:] or self.sizes
        k = LEAST if choice < config.coarse else larger[int(which * len(larger))]
        count = max(2, round(config.batch * (LEAST / k) ** 2))
        ids = torch.arange(count) + step * (1 << 20)
        keys = Keys.for_samples(config.seed, ids).to(self.device)
        u = keys.uniform("map", 0, (3,), torch.float64)
        rows = (u[:, 0] * len(self.c)).long().to(self.c.device)
        clean = self.c[rows, :k, :k].to(self.device).float()
        first, second = (self.values[self.pairs[rows, i], :k].to(self.device) for i in (0, 1))
        turned = (u[:, 1] < config.transposed).unsqueeze(1)
        clean = torch.where(turned.unsqueeze(2), clean.mT, clean)
        first, second = torch.where(turned, second, first), torch.where(turned, first, second)
        unknown = (u[:, 2] < config.unconditional).unsqueeze(1)
        first, second = (v.masked_fill(unknown, torch.nan) for v in (first, second))
        # levels are spread evenly over a batch: the loss depends on them more than on the map
        places = torch.arange(count, device=self.device)
        levels = (keys.uniform("sigma", 0, (), torch.float64) + places) / count
        sigma = (config.log_sigma + config.spread * torch.special.ndtri(levels)).exp()
        return clean, sigma.clamp(SIGMA_MIN, SIGMA_MAX).float(), first, second, keys


def export(
    run: Run[Any], config: TrainConfig, folder: Path, closed: dict[str, Tensor],
    facts: dict[str, Any],
) -> str:
    """Write the averaged weights in half precision, and the closed-form priors, to ``folder``."""
    meta = {
        "kind": "shapes",
        "config": config.model_dump(mode="json"),
        "training": run.record() | {"data": facts},
    }
    net = {f"network.{k}": v.half() for k, v in run.averaged().state_dict().items()}
    return checkpoint.save(folder, {**net, **closed}, meta)


def _closed_forms(maps: Maps, config: TrainConfig) -> dict[str, Tensor]:
    """The moments of all three priors by their names in a checkpoint."""
    mean, variance = entry_moments(maps)
    gaussian = Gaussian.fit(maps.c, rank=config.rank).state()
    second = SecondMoment.fit(maps.c).state()
    out = {"moments.mean": mean, "moments.variance": variance}
    out |= {f"second-moment.{k}": v for k, v in second.items()}
    # factors are most of the numbers, and stand half precision
    return out | {
        f"gaussian.{k}": v.half() if k.endswith("factor") else v for k, v in gaussian.items()
    }


def train(
    config: TrainConfig,
    maps: Maps,
    out: Path | str,
    *,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train on the maps that are not held out, write a model to ``out``.

    Maps are cut to the largest size of the network. Returns the folder, which `zoo.load` reads.
    Raises `UserError` for too few maps, maps of fewer functions than the network's, a folder that
    holds another run or cannot be written, and when training diverges.
    """
    if maps.k < config.net.k:
        raise UserError(
            f"the maps have {maps.k} functions; a network of k = {config.net.k} needs as many"
        )
    maps = maps.first(config.net.k)
    shown, tested = maps.training(), maps.held_out()
    if len(shown) < 2:
        raise UserError(f"there are {len(shown)} maps to train on; two or more are needed")
    out = open_folder(out, resume)
    device = pick_device(config.device)
    closed = _closed_forms(shown, config)
    mean, variance = closed["moments.mean"], closed["moments.variance"]
    measured = float(variance[:LEAST, :LEAST].mean().sqrt())
    net_config = config.net.model_copy(update={"sigma_data": round(max(measured, 1e-3), 4)})
    config = config.model_copy(update={"net": net_config})
    run = Run(config, build(net_config, config.seed), lambda: build(net_config), device)
    if resume:
        run.restore(out)
    prior = Network(run.net, mean, variance).to(device)
    batches = Batches(shown, config, device)
    facts = {
        "source": maps.source,
        "maps": len(shown),
        "shapes": len(set(shown.pairs.flatten().tolist())),
        "groups": sorted(set(shown.groups[shown.pairs].flatten().tolist())),
    }

    def save() -> None:
        run.check()
        run.save(out)
        export(run, config, out, closed, facts)

    def quality() -> str:
        some = tested if len(tested) else shown
        some = some.take(torch.linspace(0, len(some) - 1, min(len(some), 256)).long().numpy())
        c, first, second = tensors(some.first(LEAST), device)
        averaged = Network(run.averaged(), mean, variance).to(device)
        with torch.no_grad():
            errors = denoising_errors(averaged, c, LEVELS, first, second)
        return "rmse " + "/".join(f"{error:.4f}" for error in errors)

    with Watch(run, "maps", save, quality, enabled=progress) as view:
        while not run.finished():
            clean, sigma, first, second, keys = batches(run.step)
            noise = keys.normal("noise", 0, tuple(clean.shape[1:]))
            noisy = clean + sigma.view(-1, 1, 1) * noise
            with torch.autocast(device.type, torch.bfloat16, config.precision == "bfloat16"):
                found = prior.denoise(noisy, sigma, first, second)
            s = config.net.sigma_data
            weight = (sigma.square() + s**2) / (sigma * s).square()
            loss = (weight * (found - clean).square().mean((1, 2))).mean()
            run.update(loss)
            view.stepped({"loss": loss.detach()})
        save()
    return out


def tensors(maps: Maps, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """|C| (N, k, k) and the eigenvalues (N, k) of the first and second shapes, in float32."""
    values = torch.from_numpy(maps.values)
    pairs = torch.from_numpy(maps.pairs)
    return (
        torch.from_numpy(maps.c).float().to(device),
        values[pairs[:, 0]].to(device), values[pairs[:, 1]].to(device),
    )  # fmt: skip
