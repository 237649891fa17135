r"""Training a graph model: cross-entropy of the clean classes, on batches of one size of graph.

At a time t, the network sees a noisy graph and is asked for every entry's clean class; its answers
at all t are what the discrete flow and the system of SDEs sample with. The loss is the mean
cross-entropy of nodes plus ``edge_weight`` times that of pairs, each over the entries of the batch
that exist, plus the squared error of continuous attributes (the endpoint objective of Eijkelboom et
al. 2024, "Variational flow matching for graph generation").

Errors of the answer change the law of what a discrete flow draws by the integral of their
divergence over dt / (1 - t). In that measure the late times weigh, where one entry in a graph is
wrong and the answer decides whether it is found; uniform times all but leave them out. So times are
those of the sampling clock (`sample.clock`), t = 2 u - u^2 with u uniform and spread evenly over a
batch, dt / (1 - t) = 2 du / (1 - u), and the tokens of a graph count 1 / (1 - u), at most that of
the last of 50 steps.

Graphs are sorted into buckets of similar size; a step draws a bucket in proportion to its graphs
and as many graphs as fit ``pairs`` matrix entries, all from keys of (seed, step). Order of nodes
does not matter: the network does not see it. A discrete flow learns from noisy graphs in rare
numbers of pieces more often than they come (`rare`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from driftworks.core import checkpoint
from driftworks.core.keys import Keys
from driftworks.core.process import Bridge, Process
from driftworks.core.run import Count, Fraction, Positive, Recipe, Run, open_folder, pick_device
from driftworks.core.watch import Watch
from driftworks.errors import UserError
from driftworks.graphgen.network import NetConfig, build
from driftworks.graphgen.process import GraphModel, encode, graph_process, standardised
from driftworks.graphgen.rare import POOL, choose
from driftworks.graphgen.sample import STEPS, time_of

if TYPE_CHECKING:
    from driftworks.graphgen.graph import Graphs

__all__ = ["PRESETS", "TrainConfig", "describe", "export", "facts_of", "train"]


class TrainConfig(Recipe):
    """Everything that decides a training run (see `core.run`); saved inside the checkpoint.

    ``batch`` graphs a step, fewer where they have more than ``pairs`` matrix entries together;
    ``dropout`` the share of channels left out (`network.GraphNet`), against learning a small set by
    heart.
    """

    net: NetConfig = NetConfig()
    learning_rate: Positive = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup: Count = 200
    constant: Fraction = 0.3
    edge_weight: Positive = 5.0
    value_weight: Positive = 1.0
    unconditional: Fraction = 0.15
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    pairs: Count = 64 * 64 * 32


SCREENS = (0.01, 0.3)

SMALL: dict[str, Any] = {
    "precision": "bfloat16",  # 1.7 times faster where a CPU has it
    "net": {"width": 64, "pair_width": 32, "heads": 4, "layers": 5, "screens": SCREENS},
}

#: Sizes of network and batch by name: for a laptop, the same in a hurry, and for a GPU.
PRESETS: dict[str, dict[str, Any]] = {
    "small": SMALL,
    # ten minutes of a CPU: a step's time goes with its pairs, and more steps learn more
    "quick": SMALL | {"pairs": 64 * 64 * 4, "learning_rate": 1e-3},
    "base": {
        "net": {"width": 128, "pair_width": 64, "heads": 8, "layers": 8, "screens": SCREENS},
        "batch": 256, "pairs": 64 * 64 * 256, "learning_rate": 1e-3, "precision": "bfloat16",
        "compile": True,
    },
}


def describe(graphs: Graphs, **sizes: Any) -> NetConfig:
    """The network's vocabulary from data: class frequencies, attributes, the largest graph."""
    mask = graphs.mask
    spec = graphs.attributes
    pairs = mask.unsqueeze(1) & mask.unsqueeze(2)
    pairs &= ~torch.eye(mask.shape[1], dtype=torch.bool)
    if not bool(pairs.any()):
        raise UserError("no graph has two nodes: there are no edges to learn")

    def share(values: Tensor, count: int) -> tuple[float, ...]:
        counts = torch.bincount(values, minlength=count).double()
        share = (counts / counts.sum()).tolist()
        share[share.index(max(share))] += 1.0 - sum(share)
        return tuple(share)

    def moments(values: Tensor) -> tuple[float, float]:
        if len(values) == 0:
            return 0.0, 1.0
        deviation = float(values.std(correction=0))
        return float(values.mean()), deviation if deviation > 0 else 1.0

    linked = graphs.edges > 0
    return NetConfig.model_validate(
        {
            "nodes": share(graphs.nodes[mask], spec.node_kinds),
            "edges": share(graphs.edges[pairs], 1 + spec.edge_kinds),
            "features": [moments(graphs.features[mask][:, k]) for k in range(spec.width)],
            "weights": [] if graphs.weights is None else [moments(graphs.weights[linked])],
            "max_nodes": int(mask.sum(1).max()),
        }
        | sizes
    )


class Batches:
    """``batches(step)``: what to choose that step's batch from: (data, mask, condition, keys).

    `rare.POOL` candidates for each place in the batch of a discrete flow, else one.
    """

    def __init__(
        self, graphs: Graphs, config: TrainConfig, device: torch.device,
        label: Tensor | None = None, properties: Tensor | None = None,
    ):
        self.config, self.device = config, device
        counts = graphs.mask.sum(1)
        order = counts.argsort(stable=True)
        self.buckets: list[Tensor] = []
        start = 0
        for end in range(1, len(order) + 1):
            # within a bucket no graph is padded by more than an eighth, or by two nodes: a quarter
            # more nodes would be half as much again in time
            low = int(counts[order[start]])
            if end == len(order) or int(counts[order[end]]) > max(low + 2, low * 9 // 8):
                self.buckets.append(order[start:end])
                start = end
        self.share = torch.tensor([len(b) for b in self.buckets]).double().cumsum(0) / len(order)
        self.counts = counts
        self.data = {"nodes": graphs.nodes, "edges": graphs.edges}
        for name, values in standardised(graphs, config.net).items():
            self.data[name] = values.float()
        self.label, self.properties = label, properties

    def __call__(self, step: int) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor], Keys]:
        config = self.config
        draw = Keys.for_samples(config.seed, [step])
        u = float(draw.uniform("bucket", 0, (), torch.float64))
        which = min(int((self.share < u).sum()), len(self.buckets) - 1)
        bucket = self.buckets[which]
        n = int(self.counts[bucket].max())
        size = max(1, min(config.batch, config.pairs // (n * n)))
        size *= POOL if config.net.system == "flow" else 1
        chosen = (draw.uniform("rows", 0, (size,), torch.float64)[0] * len(bucket)).long()
        rows = bucket[chosen]
        keys = Keys.for_samples(config.seed, torch.arange(size) + step * (1 << 20))
        data = {}
        for name, x in self.data.items():
            x = x[rows, :n, :n] if name in ("edges", "weights") else x[rows, :n]
            data[name] = x.to(self.device)
        mask = (torch.arange(n) < self.counts[rows].unsqueeze(1)).to(self.device)
        cond: dict[str, Tensor] = {}
        # One in so many graphs asks for nothing; the others leave out each condition half of the
        # time where there are several, because any one of them may be asked for alone.
        several = (self.label is not None) + len(config.net.properties) > 1
        left_out = 0.5 if several else 0.0
        asked = keys.uniform("condition", 0) >= config.unconditional
        if self.label is not None:
            told = asked & (keys.uniform("condition/label", 0) >= left_out)
            cond["label"] = torch.where(told, self.label[rows], config.net.labels).to(self.device)
        if self.properties is not None:
            each = keys.uniform("condition/properties", 0, (len(config.net.properties),))
            told = asked.unsqueeze(1) & (each >= left_out)
            shown = torch.where(told, self.properties[rows], torch.nan)
            cond["properties"] = shown.to(self.device)
        return data, mask, cond, keys.to(self.device)


def _bridge(
    process: Process, config: NetConfig, data: dict[str, Tensor], mask: Tensor, keys: Keys
) -> tuple[Bridge, Tensor]:
    """Noisy graphs, and what each counts (B,); in a system of SDEs the classes are encoded first.

    Graph i of B has its u in [i/B, (i + 1)/B]: the loss depends on t far more than on the graph.
    """
    u = (keys.uniform("time", 0) + torch.arange(len(keys), device=mask.device)) / len(keys)
    t, counts = time_of(u), torch.ones_like(u)
    start = dict(data)
    if config.system == "flow":
        last = 1.0 / STEPS
        counts = 1.0 / ((1.0 - u).clamp(last) * (1.0 - math.log(last)))  # of mean 1
    if config.system == "sde":
        start["nodes"] = encode(data["nodes"], len(config.nodes)) * mask.unsqueeze(-1)
        part = process.parts["edges"].space
        start["edges"] = part.project(encode(data["edges"], len(config.edges)), mask)
    return process.bridge(start, t, keys, mask), counts


def endpoint_loss(
    answer: dict[str, Tensor], data: dict[str, Tensor], mask: Tensor, config: TrainConfig,
    counts: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the module's docstring; returns it and its parts, detached.

    ``counts`` (B,) is what the tokens of each graph count.
    """
    pairs = mask.unsqueeze(1) & mask.unsqueeze(2)
    pairs = pairs & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    # The weight of an edge that is not there is 0: it is asked for too, because a sampler must keep
    # the noisy weights of such pairs on the way the network was trained on.
    where = {"nodes": mask, "edges": pairs, "features": mask, "weights": pairs}
    total, parts = torch.zeros((), device=mask.device), {}
    for name, value in answer.items():
        entries = where[name]
        if name in ("nodes", "edges"):
            if value.shape[-1] == 1:
                continue  # unattributed: there is nothing to find
            each = nn.functional.cross_entropy(
                value[entries], data[name][entries], reduction="none"
            )
            of_graph = counts.view(-1, *(1,) * (entries.ndim - 1)).expand_as(entries)[entries]
            loss = (each * of_graph).sum() / max(1, each.numel())
            weight = config.edge_weight if name == "edges" else 1.0
        else:
            error = (value - data[name])[entries].square()
            loss = error.sum() / max(1, error.numel())
            weight = config.value_weight
        total, parts[name] = total + weight * loss, loss.detach()
    return total, parts


def facts_of(graphs: Graphs, source: str) -> dict[str, Any]:
    """What a model must know of its data: node counts and their shares, attributes, the source."""
    sizes, members = torch.unique(graphs.mask.sum(1), return_counts=True)
    return {
        "sizes": sizes.tolist(),
        "share": (members / members.sum()).tolist(),
        "attributes": graphs.attributes.to_dict(),
        "data": {"source": source, "graphs": len(graphs)},
    }


def export(run: Run[Any], config: Recipe, folder: Path, facts: dict[str, Any]) -> str:
    """Write the averaged weights in half precision as the model of ``folder``."""
    meta = {
        "kind": "graphgen",
        "config": config.model_dump(mode="json"),
        **{k: v for k, v in facts.items() if k != "data"},
        "training": run.record() | {"data": facts.get("data")},
    }
    tensors = {
        k: v if "property" in k else v.half() for k, v in run.averaged().state_dict().items()
    }
    return checkpoint.save(folder, tensors, meta)


def train(
    config: TrainConfig, graphs: Graphs, out: Path | str, *, label: Tensor | None = None,
    properties: Tensor | None = None, source: str = "", resume: bool = False, progress: bool = True,
) -> Path:
    """Train on ``graphs`` (all of them: select the split first), write a model to ``out``.

    ``label`` (G,) int64 and ``properties`` (G, P) are the conditions the configuration names.
    Returns the folder, which `graphgen.load` reads. Raises `UserError` for no graphs, for a folder
    that holds another run or cannot be written, and when training diverges.
    """
    if len(graphs) == 0:
        raise UserError("there are no graphs to train on")
    out = open_folder(out, resume)
    device = pick_device(config.device)
    process = graph_process(config.net)
    batches = Batches(graphs, config, device, label, properties)
    net = build(config.net, config.seed)
    if properties is not None:
        net.property_mean.copy_(properties.nanmean(0))
        known = ~properties.isnan()
        spread = torch.where(known, properties - net.property_mean, 0.0).square().sum(0)
        net.property_std.copy_((spread / known.sum(0).clamp(min=1)).sqrt().clamp(min=1e-6))
    run = Run(config, net, lambda: build(config.net), device)
    if resume:
        run.restore(out)
    facts = facts_of(graphs, source)
    model = GraphModel(run.net, process)
    if config.compile:
        for layer in run.net.layers:
            layer.compile(dynamic=False)

    def save() -> None:
        run.check()
        run.save(out)
        export(run, config, out, facts)

    with Watch(run, "graphs", save, enabled=progress) as view:
        while not run.finished():
            data, mask, cond, keys = batches(run.step)
            bridge, counts = _bridge(process, config.net, data, mask, keys)
            assert isinstance(bridge.x_t, dict)
            x_t, t = bridge.x_t, bridge.t
            if config.net.system == "flow":
                rows = choose(x_t["edges"], mask, keys.uniform("rare", 0))
                mask, t, counts, keys = mask[rows], t[rows], counts[rows], keys[rows]
                x_t, data, cond = ({k: v[rows] for k, v in d.items()} for d in (x_t, data, cond))
            with torch.autocast(device.type, torch.bfloat16, config.precision == "bfloat16"):
                dropout = (config.dropout, keys) if config.dropout > 0 else None
                answer = model.logits(x_t, t, mask, cond, dropout)
            loss, parts = endpoint_loss(answer, data, mask, config, counts)
            run.update(loss)
            view.stepped(parts)
        save()
    return out
