r"""Training a teacher of protein chains: velocity matching, whole chains and compact crops.

With D_r the denoised chain of the network's round r and L residues, a chain costs

    sum_r c_r |D_r - x_1|^2 / (3 L ((1 - t)^2 + 1e-5))        c = 1 for the answer, `round_weight`
                                                              for the rounds before it
    + local_weight [t > 0.3] / (1.05 - t) sum_{k=1..4} mean_i (|D_i+k - D_i| - |x_i+k - x_i|)^2
    + distogram_weight [t > 0.3] cross-entropy of the distance bins (where the network has a head)

The first term is the squared error of the velocity (Geffner et al. 2025, "Proteina"); the second
makes short distances right early, before the global fold is (lengths in nm). Times are those of
`process.training_times`, spread evenly over a batch. Labels are shown to a share of the chains,
in a share of the steps the network sees its own answer of a first pass (self-conditioning), and in
a share of them where one or two stretches of the chain, a tenth to a half of it, truly are: it then
learns to complete a motif.

A step draws a chain by cluster, so that frequent folds count once (`data.backbones`), then others
up to a twelfth longer, and cuts all to the same length: no batch is padded. Some steps take compact
pieces of longer chains instead. All draws are functions of (seed, step).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from driftworks.core import checkpoint
from driftworks.core.keys import Keys
from driftworks.core.process import Process
from driftworks.core.run import Count, Fraction, Recipe, Run, open_folder, pick_device
from driftworks.core.watch import Watch
from driftworks.errors import UserError
from driftworks.protein.network import Answer, ChainNet, NetConfig, build
from driftworks.protein.process import (
    NULL,
    SCALE,
    chain_process,
    random_rotations,
    training_times,
)

if TYPE_CHECKING:
    from driftworks.data.backbones import Backbones

__all__ = ["PRESETS", "Batches", "TrainConfig", "chain_loss", "export", "motif_stretches", "train"]

NonNegative = Annotated[float, Field(ge=0)]

LATEST = 0.999  # times are kept below: x_t and x_1 no longer differ in single precision
LOCAL = 4  # separations along the chain whose distances have a loss of their own
EARLIEST = 0.3
#: Bins of the distogram end here, in nm.
FARTHEST = 2.0
#: A piece of a longer chain is used if its radius of gyration is at most this much larger than that
#: of a domain of the same length, 2.70 L^0.350 angstrom.
COMPACT = 1.1


class TrainConfig(Recipe):
    """Everything that decides a training run (see `core.run`); saved inside the checkpoint.

    ``lengths`` are the least and most residues; ``crops`` the share of steps that take pieces of
    longer chains; ``shown`` the share of chains whose label the network sees; ``self_condition``
    and ``motifs`` the shares of steps with a first pass, and with motifs.
    """

    net: NetConfig = NetConfig()
    lengths: tuple[Count, Count] = (40, 128)
    crops: Fraction = 0.3
    shown: Fraction = 0.5
    self_condition: Fraction = 0.5
    motifs: Fraction = 0.15
    round_weight: NonNegative = 0.3
    local_weight: NonNegative = 2.0
    distogram_weight: NonNegative = 0.2
    weight_decay: NonNegative = 1e-3

    @model_validator(mode="after")
    def _rising(self) -> TrainConfig:
        if not 3 <= self.lengths[0] <= self.lengths[1]:
            raise ValueError(f"lengths are (least, most) from 3 on, got {self.lengths}")
        return self

    @classmethod
    def preset(cls, name: str, **changes: Any) -> TrainConfig:
        """A named recipe with fields changed; unknown names raise `UserError`."""
        if name not in PRESETS:
            raise UserError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
        return cls.model_validate(PRESETS[name] | changes)


PRESETS: dict[str, dict[str, Any]] = {
    # one CPU core
    "small": {
        "net": {"width": 128, "pair_width": 32, "heads": 8, "layers": 6, "rounds": 2},
        "lengths": (40, 80),
        "batch": 32,
        "learning_rate": 1e-3,
        "self_condition": 0.3,
        "precision": "bfloat16",
    },
    # one GPU
    "base": {
        "net": {
            # the widest of 8 layers whose half-precision weights stay below 16 MiB
            "width": 240, "pair_width": 64, "heads": 10, "layers": 8, "rounds": 2, "radial": 32,
            "distogram": 64,
        },
        "lengths": (40, 128),
        "batch": 256,
        "learning_rate": 6e-4,
        "warmup": 500,
        "precision": "bfloat16",
        "compile": True,
    },
}


class Batches:
    """``batches(step)`` is the batch of that step: chains (B, L, 3) in nm, labels, keys.

    Chains are centred and turned; no residue is padding. Raises `UserError` when no chain fits.
    """

    def __init__(self, table: Backbones, config: TrainConfig, device: torch.device):
        self.config, self.device = config, device
        low, high = config.lengths
        rows = table.rows(lengths=(low, 1 << 30))
        rows = rows[table.unbroken[rows]]
        order = rows[np.argsort(table.lengths[rows], kind="stable")]
        self.lengths = table.lengths[order]
        self.fitting = int(np.searchsorted(self.lengths, high, side="right"))
        if self.fitting == 0:
            raise UserError(
                f"none of the {len(table)} chains is unbroken and has {low}-{high} residues"
            )
        self.chains = [table.ca(int(row)) / SCALE for row in order]
        label = table.sse_class[order]
        self.label = torch.from_numpy(np.where(label < NULL, label, NULL).astype(np.int64))
        # each cluster has the same chance, among the chains taken whole and among all
        self.whole = np.concatenate(([0.0], np.cumsum(table.weights(order[: self.fitting]))))
        self.every = np.concatenate(([0.0], np.cumsum(table.weights(order))))

    @staticmethod
    def _draw(edges: np.ndarray, first: int, last: int, u: np.ndarray) -> np.ndarray:
        """Rows first..last-1 with the chances whose cumulative sums are ``edges``."""
        value = edges[first] + u * (edges[last] - edges[first])
        return np.clip(np.searchsorted(edges, value, side="right") - 1, first, last - 1)

    def _piece(self, row: int, length: int, generator: np.random.Generator) -> np.ndarray | None:
        """A compact piece of a chain, or None if a few tries find none."""
        chain = self.chains[row]
        most = COMPACT * 2.70 / SCALE * length**0.350
        for start in generator.integers(len(chain) - length + 1, size=4):
            piece = chain[start : start + length]
            if np.sqrt(piece.var(0).sum()) <= most:
                return piece
        return None

    def select(self, step: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Chains of one length (B of (L, 3), nm) and the rows they come from."""
        generator = np.random.default_rng([self.config.seed, step])
        count, (low, high) = self.config.batch, self.config.lengths
        pieces: list[np.ndarray] = []
        rows: list[int] = []
        if generator.random() < self.config.crops:
            length = int(generator.integers(low, high + 1))
            first = int(np.searchsorted(self.lengths, length * 1.25, side="right"))
            if first < len(self.lengths):
                for row in self._draw(
                    self.every, first, len(self.lengths), generator.random(4 * count)
                ):
                    piece = self._piece(int(row), length, generator)
                    if piece is not None:
                        pieces.append(piece)
                        rows.append(int(row))
                    if len(rows) == count:
                        return pieces, np.array(rows)
        # also where long chains have too few compact pieces of this length
        lead = int(self._draw(self.whole, 0, self.fitting, generator.random(1))[0])
        length = int(self.lengths[lead])
        longest = length + max(3, length // 12)
        first = int(np.searchsorted(self.lengths, length))
        last = int(np.searchsorted(self.lengths[: self.fitting], longest, side="right"))
        chosen = self._draw(self.whole, first, last, generator.random(count))
        starts = (generator.random(count) * (self.lengths[chosen] - length + 1)).astype(int)
        return [
            self.chains[row][start : start + length]
            for row, start in zip(chosen, starts, strict=True)
        ], chosen

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Keys]:
        pieces, rows = self.select(step)
        batch = self.config.batch
        keys = Keys.for_samples(self.config.seed, range(step * batch, (step + 1) * batch))
        x = torch.from_numpy(np.stack(pieces))
        x = (x - x.mean(1, keepdim=True)) @ random_rotations(keys)
        told = keys.uniform("label", 0) < self.config.shown
        label = torch.where(told, self.label[torch.from_numpy(rows)], NULL)
        return x.to(self.device), label.to(self.device), keys.to(self.device)


def chain_loss(
    answer: Answer, x_1: Tensor, t: Tensor, config: TrainConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the module's docstring for chains (B, L, 3), and its parts, detached."""
    rest = 1 - t
    weight = 1 / (rest.square() + 1e-5)
    errors = [
        ((answer_.float() - x_1).square().mean((1, 2)) * weight).mean()
        for answer_ in answer.denoised
    ]
    parts = {"velocity": errors[-1].detach()}
    total = errors[-1] + config.round_weight * sum(errors[:-1])

    late = (t > EARLIEST).float()
    final = answer.denoised[-1].float()
    local = torch.zeros_like(t)
    for k in range(1, min(LOCAL, x_1.shape[1] - 1) + 1):
        ours, theirs = (
            ((z[:, k:] - z[:, :-k]).square().sum(-1) + 1e-8).sqrt() for z in (final, x_1)
        )
        local = local + (ours - theirs).square().mean(1)
    near = (local * late / (rest + 0.05)).mean()
    parts["local"] = near.detach()
    total = total + config.local_weight * near
    if answer.distogram is not None:
        bins = answer.distogram.shape[-1]
        distance = (x_1.unsqueeze(1) - x_1.unsqueeze(2)).square().sum(-1).sqrt()
        target = (distance * (bins / FARTHEST)).long().clamp(max=bins - 1)
        logits = answer.distogram.float().movedim(-1, 1)
        entropy = nn.functional.cross_entropy(logits, target, reduction="none").mean((1, 2))
        far = (entropy * late).mean()
        parts["distogram"] = far.detach()
        total = total + config.distogram_weight * far
    return total, parts


def motif_stretches(keys: Keys, length: int) -> Tensor:
    """One or two stretches of a chain that together hold a tenth to a half of it, bool (B, L)."""
    u = keys.uniform("stretch", 0, (5,))
    total = (0.1 + 0.4 * u[:, 0]) * length
    first = torch.where(u[:, 1] < 0.5, total, total * (0.3 + 0.4 * u[:, 2]))
    rows = torch.arange(length, device=u.device)
    known = torch.zeros(len(u), length, dtype=torch.bool, device=u.device)
    for size, place in ((first, u[:, 3]), (total - first, u[:, 4])):
        start = (place * (length - size)).floor().unsqueeze(1)
        known |= (rows >= start) & (rows < start + size.round().unsqueeze(1))
    return known


def step_loss(
    net: ChainNet, process: Process, batches: Batches, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of step ``step``: batch, noise, the network's one or two passes."""
    config = batches.config
    x_1, label, keys = batches(step)
    uniform = keys.uniform("time", 0, (2,))
    spread = (uniform[:, 1] + torch.arange(len(keys), device=x_1.device)) / len(keys)
    t = training_times(torch.stack((uniform[:, 0], spread), -1)).clamp(max=LATEST)
    x_t = process.bridge(x_1, t, keys).x_t
    assert isinstance(x_t, Tensor)
    draw = Keys.for_samples(config.seed, [step])
    again = float(draw.uniform("self-condition", 0)) < config.self_condition
    cond = {"label": label}
    if float(draw.uniform("motif", 0)) < config.motifs:
        cond |= {"known": motif_stretches(keys, x_1.shape[1]), "motif": x_1}
    with torch.autocast(x_1.device.type, torch.bfloat16, config.precision == "bfloat16"):
        previous = None
        if again:
            with torch.no_grad():
                previous = net(x_t, t, None, cond)
        answer = net.answer(x_t, t, None, cond, previous)
    return chain_loss(answer, x_1, t, config)


def export(
    run: Run[ChainNet], config: TrainConfig, folder: Path, data: dict[str, Any]
) -> str:
    """Write the averaged weights in half precision as the model of ``folder``."""
    meta = {
        "kind": "protein",
        "role": "teacher",
        "config": config.model_dump(mode="json"),
        "net": config.net.model_dump(mode="json"),
        "lengths": list(config.lengths),
        "training": run.record() | {"chains_seen": run.step * config.batch, "data": data},
    }
    tensors = {k: v.half() for k, v in run.averaged().state_dict().items()}
    return checkpoint.save(folder, tensors, meta)


def train(
    config: TrainConfig, table: Backbones, out: Path | str, *, resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train on ``table`` (all of its chains: select the split first), write a model to ``out``.

    With ``resume`` the newest state in ``out`` is continued. Returns the folder, which
    `protein.load` reads. Raises `UserError` when no chain has a length of the configuration, when
    ``out`` holds another run or cannot be written, and when training diverges.
    """
    out = open_folder(out, resume)
    device = pick_device(config.device)
    process = chain_process()
    batches = Batches(table, config, device)
    run = Run(config, build(config.net, config.seed), lambda: build(config.net), device)
    if resume:
        run.restore(out)
    data = {"source": table.source, "chains": batches.fitting}
    if config.compile:
        for part in run.net.rounds:
            part.compile(dynamic=True)

    def save() -> None:
        run.check()
        run.save(out)
        export(run, config, out, data)

    with Watch(run, "chains", save, enabled=progress) as view:
        while not run.finished():
            loss, parts = step_loss(run.net, process, batches, run.step)
            run.update(loss)
            view.stepped(parts)
        save()
    return out
