r"""GDSS as published (Jo, Lee & Hwang 2022), on this library's process, keys and sampling loop.

Node vectors X (one-hot degree, or one-hot kind) and the numbers A of the edge kinds leave noise by
a VP or VE SDE each, and two networks without a time input give the partial scores (`gdss_network`).
With z the noise and s the score, each network minimises its own

    1/2 sum over entries | s std + z |^2,    mean over the batch, both (i, j) and (j, i) counted,

by Adam on gradients clipped network by network; the learning rate falls by a factor an epoch. On VP
s = -net / std, on VE s = net. The recipes are those of the paper's configuration files.

The published sampler runs 1000 steps from N(0, 1): an Euler or "reverse diffusion" predictor with
a Langevin corrector whose noise is multiplied by ``scale``, or the splitting S4. It is kept with
these differences, none of which takes anything from it:

    step of the corrector     2 (snr std)^2, where the published one is 2 (snr |z| / |s|)^2 with
                              norms averaged over the batch, so that graphs depend on their
                              neighbours; the two agree where |s| = |z| / std
    S4                        the variance of the backward half-step is e^I - 1, not 1 - e^-I
    last step                 ends on the denoised state, not on the mean of one more step, which on
                              VE leaves the least noise level in the graph
    nodes                     a node stays: isolated nodes are not removed, and a node whose kind is
                              unclear takes the likeliest one, where GDSS drops both

The prior N(0, 1) is the published one too, although on VP with rates of .1 to 1 the data have not
left at its end: the true mean there is .76 of the data and the deviation .65.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path as Folder
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from driftworks.core.correctors import corrected, langevin
from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.predict import per_sample
from driftworks.core.process import Bridge, Part, Process
from driftworks.core.reverse import euler_maruyama, reverse_diffusion, s4
from driftworks.core.run import Count, Fraction, Positive, Recipe, Run, open_folder, pick_device
from driftworks.core.sample import sample
from driftworks.core.spaces import Flat, Symmetric
from driftworks.core.tables import Solver, Table
from driftworks.core.watch import Watch
from driftworks.errors import UserError
from driftworks.graphgen.gdss_network import GdssNetConfig, ScoreNets, build
from driftworks.graphgen.train import export, facts_of

if TYPE_CHECKING:
    from driftworks.graphgen.graph import Graphs

__all__ = [
    "PRESETS",
    "GdssModel",
    "GdssRecipe",
    "Sampler",
    "configure",
    "generate",
    "gdss_process",
    "model_of",
    "train",
]

TRAIN_END = 1e-5  # least time to the data in training, and in sampling
SAMPLE_END = 1e-4
PIECE = 32  # graphs of a batch that are computed together


class Sampler(BaseModel):
    """How the authors sample a set: predictor, ratio and noise factor of its corrector, steps.

    ``snr`` 0 is no corrector. With "s4" the corrector uses the score of the step, without another
    evaluation; otherwise it costs one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    predictor: Literal["euler", "reverse", "s4"] = "euler"
    snr: Annotated[float, Field(ge=0, lt=1)] = 0.0
    scale: Positive = 1.0
    steps: Count = 1000

    def table(self, path: Path, grid: Any) -> Table:
        """The sampler's coefficients on a path and a grid of times (see `core.tables`)."""
        if self.predictor == "s4":
            return _tempered_s4(path, grid, self.snr, self.scale)
        if self.predictor == "euler":
            # eps = lam is exactly the reverse SDE
            base = euler_maruyama(path, grid, noise=path.lam, profile="constant")
        else:
            base = reverse_diffusion(path, grid)
        if self.snr == 0 or len(base) == 1:
            return base
        return corrected(base, path, partial(_tempered_langevin, ratio=self.snr, scale=self.scale))


def _tempered_langevin(path: Path, t: float, ratio: float, scale: float) -> Table:
    """A Langevin row whose noise is multiplied by ``scale``."""
    row = langevin(path, t, ratio=ratio)
    return replace(row, c=tuple([scale * c for c in row.c]))


def _tempered_s4(path: Path, grid: Any, ratio: float, scale: float) -> Table:
    """`reverse.s4` with the corrector's share of the noise variance multiplied by ``scale``^2."""
    plain, whole = s4(path, grid), s4(path, grid, ratio)
    noise = []
    for own, both in zip(plain.c, whole.c, strict=True):
        assert isinstance(own, float) and isinstance(both, float)
        noise.append(math.sqrt(own**2 + scale**2 * (both**2 - own**2)))
    return replace(whole, c=tuple(noise))


class GdssRecipe(Recipe):
    """A training run of GDSS (see `core.run`): constant rate but for ``decay`` an epoch.

    ``averaged`` says whether the model is the moving average of the weights or the last ones.
    """

    net: GdssNetConfig = GdssNetConfig()
    sampler: Sampler = Sampler()
    batch: Count = 128
    learning_rate: Positive = 1e-2
    warmup: Count = 1
    constant: Fraction = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    decay: Fraction = 0.999
    averaged: bool = False


_MOLECULE = {"width": 16, "attention_width": 16, "linears": 3, "depth": 2}
_VE_WIDE = {"kind": "ve", "low": 0.2, "high": 1.0}
_VE = {"kind": "ve", "low": 0.1, "high": 1.0}

#: The published recipes by preset; ``epochs`` is the length when no other is asked for.
PRESETS: dict[str, dict[str, Any]] = {
    "gdss-community_small": {
        "net": {"inputs": 10}, "epochs": 5000,
        "sampler": {"predictor": "euler", "snr": 0.05, "scale": 0.7},
    },
    "gdss-ego_small": {
        "net": {"inputs": 17, "depth": 2}, "epochs": 5000, "sampler": {"predictor": "euler"},
    },
    "gdss-enzymes": {
        "net": {"inputs": 10, "depth": 5, "layers": 7, "edge_sde": _VE_WIDE}, "epochs": 5000,
        "batch": 64, "averaged": True, "sampler": {"predictor": "s4", "snr": 0.15, "scale": 0.7},
    },
    "gdss-grid": {
        "net": {
            "inputs": 5, "depth": 5, "layers": 7,
            "edge_sde": {"kind": "vp", "low": 0.2, "high": 0.8},
        },
        "epochs": 5000, "batch": 8, "averaged": True,
        "sampler": {"predictor": "reverse", "snr": 0.1, "scale": 0.7},
    },
    "gdss-qm9": {
        "net": {**_MOLECULE, "layers": 3, "node_sde": _VE, "edge_sde": _VE}, "epochs": 300,
        "batch": 1024, "learning_rate": 5e-3,
        "sampler": {"predictor": "reverse", "snr": 0.2, "scale": 0.7},
    },
    "gdss-zinc250k": {
        "net": {**_MOLECULE, "layers": 6, "edge_sde": _VE_WIDE}, "epochs": 500, "batch": 1024,
        "learning_rate": 5e-3, "sampler": {"predictor": "reverse", "snr": 0.2, "scale": 0.9},
    },
}
#: Plain "gdss" is the first recipe with as many inputs as the data need.
PRESETS["gdss"] = {**PRESETS["gdss-community_small"], "net": {}}


def configure(
    preset: str, graphs: Graphs, minutes: float | None, steps: int | None, **changes: Any
) -> GdssRecipe:
    """The recipe of a preset for these graphs; ``changes`` override its fields, ``net`` in part.

    Without ``minutes`` and ``steps`` the length is the published number of epochs. Raises
    `UserError` for attributes GDSS has no place for, for degrees above ``inputs``, and for fields
    that do not exist.
    """
    recipe = {**PRESETS[preset], **changes}
    epochs = recipe.pop("epochs")
    spec = graphs.attributes
    if spec.features or spec.weight is not None:
        raise UserError("the gdss preset knows kinds of nodes and edges, no continuous attributes")
    if len(graphs) == 0:
        raise UserError("there are no graphs to train on")
    need = spec.node_kinds if spec.node_kinds > 1 else 1 + int((graphs.edges > 0).sum(-1).max())
    sizes = {"inputs": need, **PRESETS[preset]["net"], **changes.get("net", {})}
    if spec.node_kinds > 1:
        sizes["inputs"] = need
    elif sizes["inputs"] < need:
        raise UserError(
            f"preset {preset!r} has inputs for degrees up to {sizes['inputs'] - 1}, the data go up "
            f"to {need - 1}; use preset 'gdss' or net={{'inputs': {need}}}"
        )
    sizes |= {
        "nodes": spec.node_kinds, "edges": spec.edge_kinds,
        "max_nodes": int(graphs.mask.sum(1).max()),
    }
    if minutes is None and steps is None:
        steps = epochs * -(-len(graphs) // recipe.setdefault("batch", 128))
    try:
        return GdssRecipe.model_validate(
            recipe | {"net": sizes, "minutes": minutes, "steps": steps}
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "recipe"
        raise UserError(f"preset {preset!r}, {where}: {first['msg']}") from None


def gdss_process(config: GdssNetConfig) -> Process:
    """Parts ``nodes`` (X) and ``edges`` (A) with their SDEs."""
    x, a = config.node_sde, config.edge_sde
    return Process({
        "nodes": Part(Flat(), x.path(), x.predicts),
        "edges": Part(Symmetric(), a.path(), a.predicts),
    })


class GdssModel(nn.Module):
    """The two score networks as a model of the process (see `core.sample.Model`); time is unused.

    ``sampler`` is the published sampler of the recipe.
    """

    def __init__(self, net: ScoreNets, sampler: Sampler | None = None):
        super().__init__()
        self.net, self.config = net, net.config
        self.process, self.sampler = gdss_process(net.config), sampler or Sampler()

    def forward(
        self, x: dict[str, Tensor], t: Tensor, mask: Tensor, cond: Any = None, previous: Any = None
    ) -> dict[str, Tensor]:
        answer: dict[str, Tensor] = self.net(x["nodes"], x["edges"], mask)
        return answer


def model_of(config: Mapping[str, Any]) -> GdssModel:
    """The model, untrained, of the configuration in a checkpoint."""
    net = GdssNetConfig.model_validate(config["net"])
    return GdssModel(build(net), Sampler.model_validate(config["sampler"]))


def encode(nodes: Tensor, edges: Tensor, mask: Tensor, config: GdssNetConfig) -> dict[str, Tensor]:
    """X (B, N, F) and A (B, N, N) of kinds of nodes (B, N) and edges (B, N, N)."""
    shown = nodes if config.nodes > 1 else (edges > 0).sum(-1)
    x = nn.functional.one_hot(shown, config.inputs).float()
    return {"nodes": x * mask.unsqueeze(-1), "edges": edges.float()}


def decode(state: Mapping[str, Tensor], mask: Tensor, config: GdssNetConfig) -> dict[str, Tensor]:
    """Kinds from a state: A at the thresholds .5, 1.5, ..., X at its largest entry.

    X of graphs with one kind of node held degrees, which the edges know better: it is left out.
    """
    edges = torch.floor(state["edges"] + 0.5).clamp(0, config.edges).long()
    nodes = state["nodes"].argmax(-1) if config.nodes > 1 else torch.zeros_like(mask).long()
    return {"nodes": nodes * mask, "edges": edges}


def grid(steps: int) -> tuple[float, ...]:
    """Uniform times from noise to `SAMPLE_END` before the data, then the data."""
    if steps == 1:
        return (0.0, 1.0)
    return (*[(1.0 - SAMPLE_END) * k / (steps - 1) for k in range(steps)], 1.0)


def generate(
    model: GdssModel,
    keys: Keys,
    mask: Tensor,
    steps: int | None = None,
    solver: str | Solver | None = None,
    known: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Clean graphs on the nodes of ``mask`` (B, N), and who stayed finite (B,).

    ``steps`` of the predictor; ``solver`` of `core.solvers` in place of the published sampler;
    ``known`` part -> (kinds, known). Returns kinds ``nodes`` (B, N) and ``edges`` (B, N, N).
    """
    config, n = model.config, mask.shape[1]
    like = {
        "nodes": torch.empty(len(keys), n, config.inputs, device=mask.device),
        "edges": torch.empty(len(keys), n, n, device=mask.device),
    }
    noise = {
        name: part.space.noise(keys, f"prior/{name}", 0, like[name], mask)
        for name, part in model.process.items()
    }
    fixed: dict[str, tuple[Tensor, Tensor]] = {}
    if known and "edges" in known:
        fixed["edges"] = (known["edges"][0].float(), known["edges"][1])
    if known and "nodes" in known and config.nodes > 1:
        kinds, where = known["nodes"]
        fixed["nodes"] = (nn.functional.one_hot(kinds, config.inputs).float(), where)
    chosen: Any = model.sampler.table if solver is None else solver
    out = sample(
        model, model.process, keys, cast(Any, like), mask, solver=chosen,
        grid=grid(steps or model.sampler.steps), initial=noise, fixed=fixed or None,
    )
    assert isinstance(out.x, dict)
    return decode(out.x, mask, config), out.finite


class GdssRun(Run[ScoreNets]):
    """A run with Adam, whose weight decay is in the gradient, and a clip for each network.

    No network sees the other's loss and Adam treats every number alone, so one optimiser does what
    two would.
    """

    def __init__(self, recipe: GdssRecipe, net: ScoreNets, device: torch.device, epoch: int):
        super().__init__(recipe, net, lambda: build(recipe.net), device)
        self.decay, self.epoch, self.use_average = recipe.decay, epoch, recipe.averaged
        self.optimiser = torch.optim.Adam(  # type: ignore[assignment]
            self.parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay,
            betas=(0.9, 0.999), fused=True,
        )

    def learning_rate(self) -> float:
        return super().learning_rate() * self.decay ** (self.step // self.epoch)

    def step_with(self, losses: Iterable[Tensor]) -> None:
        """One step of both networks on the sum of losses, whose graphs are held one at a time.

        A gradient that is not finite leaves everything as it was.
        """
        self.optimiser.zero_grad(set_to_none=True)
        for loss in losses:
            loss.backward()
        norms = [
            nn.utils.clip_grad_norm_(net.parameters(), self.recipe.clip)
            for net in (self.net.nodes, self.net.edges)
        ]
        bad = (~torch.isfinite(torch.stack(norms)).all()).float()
        self.optimiser.found_inf = bad  # type: ignore[attr-defined]
        self.optimiser.grad_scale = None  # type: ignore[attr-defined]
        self.optimiser.param_groups[0]["lr"] = self.learning_rate()
        self.optimiser.step()
        self.skipped += bad
        self.ema.update(self.parameters)
        self.step += 1

    def averaged(self) -> ScoreNets:
        """The network to sample with: the average, or the weights as they stand."""
        if self.use_average:
            return super().averaged()
        net = self.build().to(self.device)
        net.load_state_dict(self.net.state_dict())
        return net.eval()


class Batches:
    """``batches(step)``: every epoch is a new order of the graphs, cut into batches.

    A batch comes in pieces of graphs of similar size, which cost less together than padded to the
    largest graph; their gradients add up to that of the batch.
    """

    def __init__(self, graphs: Graphs, config: GdssRecipe, device: torch.device):
        self.graphs, self.config, self.device = graphs, config, device
        self.counts = graphs.mask.sum(1)
        self.epoch = -(-len(graphs) // config.batch)

    def __call__(self, step: int) -> list[tuple[dict[str, Tensor], Tensor, Keys]]:
        config, g = self.config, self.graphs
        epoch, part = divmod(step, self.epoch)
        order = Keys.for_samples(config.seed, [epoch]).uniform("order", 0, (len(g),))[0].argsort()
        rows = order[part * config.batch : (part + 1) * config.batch]
        rows = rows[self.counts[rows].argsort(stable=True)]
        keys = Keys.for_samples(config.seed, torch.arange(len(rows)) + step * (1 << 20))
        pieces = []
        for own in torch.arange(len(rows)).tensor_split(-(-len(rows) // PIECE)):
            some = rows[own]
            n = int(self.counts[some].max())
            mask = g.mask[some, :n]
            state = encode(g.nodes[some, :n], g.edges[some, :n, :n], mask, config.net)
            state = {name: x.to(self.device) for name, x in state.items()}
            pieces.append((state, mask.to(self.device), keys[own].to(self.device)))
        return pieces


def score_losses(
    answer: Mapping[str, Tensor], process: Process, bridge: Bridge
) -> dict[str, Tensor]:
    """1/2 sum of | s std + z |^2 of each part and graph, (B,); see the module's head."""
    noise = process.unpack(bridge.x_0)
    losses = {}
    for name, part in process.items():
        error = answer[name].float() - noise[name]
        if part.predicts == "score":
            assert isinstance(part.path, Path)
            error = answer[name].float() * per_sample(part.path.sigma(bridge.t), noise[name])
            error = error + noise[name]
        losses[name] = 0.5 * error.square().flatten(1).sum(1)
    return losses


def train(
    config: GdssRecipe, graphs: Graphs, out: Folder | str, *, source: str = "",
    resume: bool = False, progress: bool = True,
) -> Folder:
    """Train on ``graphs`` (all of them), write a model to ``out`` and return the folder.

    Raises `UserError` for a folder that holds another run or cannot be written, and when training
    diverges.
    """
    out = open_folder(out, resume)
    device = pick_device(config.device)
    process = gdss_process(config.net)
    batches = Batches(graphs, config, device)
    run = GdssRun(config, build(config.net, config.seed), device, batches.epoch)
    if resume:
        run.restore(out)
    facts = facts_of(graphs, source)
    if config.compile:
        run.net.compile(dynamic=False)
    seen: dict[str, Tensor] = {}

    def losses() -> Iterator[Tensor]:
        """Of the pieces of a batch, adding up to the batch's mean."""
        pieces = batches(run.step)
        share = 1.0 / sum(len(mask) for _, mask, _ in pieces)
        seen.clear()
        for data, mask, keys in pieces:
            t = (1.0 - TRAIN_END) * keys.uniform("time", 0)
            bridge = process.bridge(data, t, keys, mask)
            x_t = process.unpack(bridge.x_t)
            with torch.autocast(device.type, torch.bfloat16, config.precision == "bfloat16"):
                answer = run.net(x_t["nodes"], x_t["edges"], mask)
            parts = {k: share * x.sum() for k, x in score_losses(answer, process, bridge).items()}
            for name, loss in parts.items():
                seen[name] = seen.get(name, 0.0) + loss.detach()
            yield parts["nodes"] + parts["edges"]

    def save() -> None:
        run.check()
        run.save(out)

    with Watch(run, "graphs", save, enabled=progress) as view:
        while not run.finished():
            run.step_with(losses())
            view.stepped(seen)
        save()
        export(run, config, out, facts)
    return out
