r"""A property regressor: the fast estimate of the six QM9 properties from a geometry alone.

It sees atomic numbers and positions, no bonds and no charges, through the same equivariant layers
as the generator (`molgen.network.Layer`), and was trained on relaxed B3LYP geometries. Readouts
follow what the properties are:

    alpha, cv           extensive       y = sum_i c_i
    homo, lumo, gap     intensive       y = sum_i softmax(s)_i c_i
    mu                  a vector's norm y = | sum_i q_i (x_i - centroid) + m_i |,  sum_i q_i = 0

It serves to rank molecules and to report how well targets were met, always under its own name:
on unrelaxed generated geometries it is an estimate, and the quantum oracles are the judges.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from driftworks.core import checkpoint
from driftworks.core.train import Ema
from driftworks.errors import UserError
from driftworks.molgen.network import Layer
from driftworks.molgen.process import SCALE

if TYPE_CHECKING:
    from driftworks.data.table import MoleculeTable
    from driftworks.molgen.library import Library
    from driftworks.molgen.molecule import Molecules

__all__ = ["PropertyNet", "Regressor", "RegressorConfig", "load_regressor", "train_regressor"]

READOUT = {"alpha": "sum", "cv": "sum", "gap": "mean", "homo": "mean", "lumo": "mean", "mu": "norm"}


class RegressorConfig(BaseModel):
    """Sizes and training recipe of the regressor; saved in its checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: Annotated[int, Field(ge=16)] = 128
    pair_width: Annotated[int, Field(ge=8)] = 48
    heads: Annotated[int, Field(ge=1)] = 8
    layers: Annotated[int, Field(ge=1)] = 4
    radial: Annotated[int, Field(ge=4)] = 32
    elements: tuple[int, ...] = (1, 6, 7, 8, 9)
    properties: tuple[str, ...] = ("alpha", "gap", "homo", "lumo", "mu", "cv")
    max_atoms: int = 29
    seed: int = 0
    batch: int = 64
    minutes: float = 30.0
    learning_rate: float = 1.5e-3
    warmup: int = 200
    precision: Literal["float32", "bfloat16"] = "bfloat16"


class PropertyNet(nn.Module):
    """Atomic numbers and positions to properties, in units of their standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: RegressorConfig):
        super().__init__()
        self.config = config
        d, count = config.width, len(config.properties)
        self.atom = nn.Embedding(len(config.elements), d)
        self.pair = nn.Parameter(torch.zeros(config.pair_width))
        self.layers = nn.ModuleList(
            Layer(d, config.pair_width, config.heads, config.radial) for _ in range(config.layers)
        )
        self.readout = nn.Sequential(
            nn.LayerNorm(d), nn.Linear(d, d), nn.SiLU(), nn.Linear(d, 2 * count + 2)
        )
        self.dipole = nn.Parameter(torch.randn(config.heads) * 0.1)
        self.reference = nn.Embedding(len(config.elements), count)  # sums of atoms, to start from
        nn.init.zeros_(self.reference.weight)
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("std", torch.ones(count))

    def forward(self, atom: Tensor, pos: Tensor, mask: Tensor) -> Tensor:
        """atom (B,N) element classes, pos (B,N,3) scaled positions, mask (B,N) -> (B,P)."""
        b, n = atom.shape
        h, x = self.atom(atom), pos
        v = pos.new_zeros(b, n, 3, self.config.heads)
        e = self.pair.expand(b, n, n, -1)
        eye = torch.eye(n, dtype=torch.bool, device=mask.device)
        pairs = (mask.unsqueeze(1) & mask.unsqueeze(2) & ~eye).unsqueeze(1).to(pos.dtype)
        key_bias = torch.where(mask, 0.0, -1e9)[:, None, None, :]
        condition = pos.new_zeros(b, self.config.width)
        for layer in self.layers:
            # The geometry is the input here: atoms do not move.
            h, v, e, _ = layer(h, v, e, x, condition, key_bias, pairs)
        out = self.readout(h).float()
        count = len(self.config.properties)
        value, score, charge = out[..., :count], out[..., count : 2 * count], out[..., -1]
        weight = mask.to(pos.dtype)
        share = (score + key_bias[:, 0, 0, :, None]).softmax(1)
        reference = (self.reference(atom) * weight.unsqueeze(-1)).sum(1)
        charge = (charge - (charge * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True))
        vector = charge.unsqueeze(-1) * pos + (v * self.dipole).sum(-1)
        norm = ((vector * weight.unsqueeze(-1)).sum(1).square().sum(-1) + 1e-6).sqrt()
        columns = []
        for k, name in enumerate(self.config.properties):
            kind = READOUT[name]
            if kind == "sum":
                columns.append((value[..., k] * weight).sum(1) * 0.1 + reference[:, k])
            elif kind == "mean":
                columns.append((share[..., k] * value[..., k]).sum(1))
            else:  # a norm is not negative: undo the shift of the z-score
                columns.append(norm - self.mean[k] / self.std[k])
        return torch.stack(columns, -1)


def _build(config: RegressorConfig) -> PropertyNet:
    """A network with initial weights from the config's seed; global generators stay untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(config.seed)
        return PropertyNet(config)


def _coded(
    molecules: Molecules, elements: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(classes, centred scaled positions, mask, which molecules have only known elements)."""
    match = molecules.numbers.unsqueeze(-1) == torch.tensor(elements)
    known = (match.any(-1) | ~molecules.mask).all(1)
    mask = molecules.mask
    centre = (molecules.positions * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    pos = (molecules.positions - centre.unsqueeze(1)) / SCALE * mask.unsqueeze(-1)
    return match.to(torch.int8).argmax(-1), pos, mask, known


class Regressor:
    """A trained `PropertyNet` that speaks in molecules and units."""

    def __init__(self, name: str, net: PropertyNet, meta: dict[str, Any], device: torch.device):
        self.name, self.meta, self.device = name, meta, device
        self.hash: str = meta.get("sha256", "")
        self.net = net.to(device).eval().requires_grad_(False)
        self.properties = net.config.properties

    @property
    def errors(self) -> dict[str, float]:
        """Mean absolute errors on the held-out test molecules, as measured after training."""
        return self.meta.get("test_mae", {})

    def __call__(self, molecules: Molecules) -> dict[str, np.ndarray]:
        return self.predict(molecules)

    @torch.no_grad()
    def predict(self, library: Library | Molecules, batch_size: int = 256) -> dict[str, np.ndarray]:
        """{property: (B,) float64} in `molgen.targets.UNITS`; NaN for foreign elements."""
        molecules: Any = getattr(library, "molecules", library)
        out = np.full((len(molecules), len(self.properties)), np.nan)
        counts = molecules.atom_counts.numpy()
        for size in np.unique(counts):
            rows = np.flatnonzero(counts == size)
            for start in range(0, len(rows), batch_size):
                chosen = rows[start : start + batch_size]
                batch = molecules[chosen.tolist()].padded(int(size))
                atom, pos, mask, known = _coded(batch, self.net.config.elements)
                z = self.net(atom.to(self.device), pos.to(self.device), mask.to(self.device))
                value = (z * self.net.std + self.net.mean).double().cpu().numpy()
                out[chosen] = np.where(known.numpy()[:, None], value, np.nan)
        return dict(zip(self.properties, out.T, strict=True))


def load_regressor(
    device: str = "auto", name: str | os.PathLike[str] = "qm9-regressor"
) -> Regressor:
    """The shipped regressor, or one from a folder; kept in memory while its files are the same.

    Raises `UserError` when there is none and for a damaged checkpoint.
    """
    from driftworks.core.run import pick_device
    from driftworks.core.shelf import weights_folder

    folder = weights_folder() / name
    if not (folder / "model.json").is_file():
        folder = Path(name)
    if not (folder / "model.json").is_file():
        raise UserError(f"no regressor {str(name)!r}: neither shipped nor a folder with model.json")
    return _load(folder.resolve(), pick_device(device), (folder / "model.json").stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _load(folder: Path, device: torch.device, modified: int) -> Regressor:
    tensors, meta = checkpoint.load(folder)
    if meta.get("kind") != "molgen-regressor":
        raise UserError(f"{folder} holds a {meta.get('kind')!r} checkpoint, not a molgen-regressor")
    try:
        net = _build(RegressorConfig.model_validate(meta["config"]))
        net.load_state_dict({k: v.float() for k, v in tensors.items()})
    except KeyError as error:
        raise UserError(f"regressor {folder}: its model.json lacks {error}") from None
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"regressor {folder} does not fit this version: {reason}") from None
    return Regressor(folder.name, net, meta, device)


def _batches(table: MoleculeTable, config: RegressorConfig) -> Iterator[tuple[Tensor, ...]]:
    """Endless batches of one size each: classes, positions, mask, targets."""
    from driftworks.molgen.molecule import Molecules

    counts = table.atom_counts
    columns = np.stack([table.properties[k] for k in config.properties], -1).astype(np.float32)
    usable = np.flatnonzero((counts >= 2) & (counts <= config.max_atoms))
    data = {}
    for size in np.unique(counts[usable]):
        rows = usable[counts[usable] == size]
        atom, pos, mask, known = _coded(Molecules.from_table(table, rows).padded(int(size)),
                                        config.elements)
        if known.any():
            data[size] = [x[known] for x in (atom, pos, mask, torch.from_numpy(columns[rows]))]
    if not data:
        raise UserError(f"none of the {len(table)} molecules has elements {config.elements} and "
                        f"2-{config.max_atoms} atoms")
    sizes = np.array(list(data))
    members = np.array([len(x[0]) for x in data.values()])
    generator = np.random.default_rng(config.seed)
    while True:
        size = generator.choice(sizes, p=members / members.sum())
        rows = torch.from_numpy(generator.integers(len(data[size][0]), size=config.batch))
        yield tuple(x[rows] for x in data[size])


def train_regressor(config: RegressorConfig, train: MoleculeTable, test: MoleculeTable,
                    out: Path | str, progress: bool = True) -> Path:
    """Train for ``config.minutes`` on smooth-L1 of z-scores; measure on ``test``; write to ``out``.

    Missing labels do not count. Returns the folder, readable by `load_regressor`. Raises
    `UserError` when a property has no label in ``train`` or ``test``.
    """
    out = Path(out)
    for name in config.properties:
        for split, table in {"train": train, "test": test}.items():
            if np.isnan(table.properties.get(name, np.array([np.nan]))).all():
                raise UserError(f"no {split} molecule has a label of {name!r} to learn from")
    net = _build(config)
    columns = np.stack([train.properties[k] for k in config.properties], -1)
    net.mean.copy_(torch.from_numpy(np.nanmean(columns, 0)))
    net.std.copy_(torch.from_numpy(np.nanstd(columns, 0)))
    parameters = list(net.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-2)
    ema = Ema(parameters, 0.998)
    begin = shown = time.monotonic()
    total = torch.zeros(len(config.properties))
    steps = since = 0
    for atom, pos, mask, target in _batches(train, config):
        done = (time.monotonic() - begin) / (60 * config.minutes)
        if done >= 1:
            break
        fall = 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * max(0.0, done - 0.3) / 0.7)))
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * fall * min(1.0, (steps + 1) / config.warmup)
        with torch.autocast("cpu", torch.bfloat16, config.precision == "bfloat16"):
            z = net(atom, pos, mask)
        goal = (target - net.mean) / net.std
        known = ~goal.isnan()
        error = torch.where(known, z - goal.nan_to_num(), 0.0)
        loss = nn.functional.smooth_l1_loss(error, torch.zeros_like(error), beta=0.05)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        ema.update(parameters)
        steps, since = steps + 1, since + 1
        total += error.detach().abs().mean(0)
        now = time.monotonic()
        if progress and now - shown > 15:
            mae = (total / since * net.std).tolist()
            text = " ".join(f"{k} {m:.3f}" for k, m in zip(config.properties, mae, strict=True))
            rate = since * config.batch / (now - shown)
            print(f"[{(now - begin) / 60:5.1f} min] step {steps} {rate:.0f} mol/s "
                  f"train MAE {text}", file=sys.stderr, flush=True)
            shown, since = now, 0
            total.zero_()
    ema.copy_to(parameters)

    from driftworks.molgen.molecule import Molecules

    predicted = Regressor("", net, {}, torch.device("cpu")).predict(Molecules.from_table(test))
    errors = {k: float(np.nanmean(np.abs(v - test.properties[k]))) for k, v in predicted.items()}
    meta = {
        "kind": "molgen-regressor",
        "config": config.model_dump(mode="json"),
        "test_mae": {k: round(v, 5) for k, v in errors.items()},
        "test_molecules": len(test),
        "training": {"steps": steps, "molecules_seen": steps * config.batch,
                     "minutes": round((time.monotonic() - begin) / 60, 2), "data": train.source},
    }
    halves = {k: v if k in ("mean", "std") else v.half() for k, v in net.state_dict().items()}
    checkpoint.save(out, halves, meta)
    return out
