r"""Training batches as a pure function of (seed, step).

Molecules are sorted into buckets by size; a step draws a bucket in proportion to its molecules,
then rows, times, noise, alignment, mask tokens and which property targets the network gets to see,
all from keys of (seed, step). Nothing is remembered between steps, so training continued from step
k sees the batches it would have seen, with any number of worker processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from driftworks.core.keys import Keys
from driftworks.core.predict import per_sample
from driftworks.core.process import Process
from driftworks.core.spaces import Centred
from driftworks.core.train import time_samples
from driftworks.errors import UserError
from driftworks.molgen.process import align, supported_rows, to_state

if TYPE_CHECKING:
    from driftworks.data.table import MoleculeTable
    from driftworks.molgen.train import TrainConfig

__all__ = ["Batches", "shown_targets"]


def shown_targets(values: Tensor, uniform: Tensor, none: float, single: float) -> Tensor:
    """Hide property targets at random: values (B, P), uniforms (B, 2 + P), hidden ones become NaN.

    With probability ``none`` all are hidden, with ``single`` all but one, otherwise each with one
    half: unconditional, one-property and any-subset models are trained in one.
    """
    count = values.shape[1]
    kind, choice, each = uniform[:, :1], uniform[:, 1:2], uniform[:, 2:]
    chosen = torch.arange(count) == (choice * count).long()
    show = torch.where(kind < none + single, chosen & (kind >= none), each < 0.5)
    return torch.where(show, values, torch.nan)


class Batches(Dataset[dict[str, Tensor]]):
    """``batches[step]`` is the batch of that step: a dict of tensors, see `__getitem__`."""

    def __init__(self, table: MoleculeTable, process: Process, config: TrainConfig):
        from driftworks.molgen.molecule import Molecules

        self.config, self.process = config, process
        rows = supported_rows(table, config.net, config.buckets[-1])
        if len(rows) == 0:
            raise UserError(
                f"none of the {len(table)} molecules has elements {config.net.elements}, charges "
                f"{config.net.charges} and 2-{config.buckets[-1]} atoms"
            )
        self.skipped = len(table) - len(rows)
        names = config.net.properties
        missing = np.full(len(table), np.nan)
        columns = np.stack([table.properties.get(name, missing) for name in names], -1)
        counts = table.atom_counts
        self.counts, self.properties = counts[rows], columns[rows]

        self.buckets: list[dict[str, Tensor]] = []
        below = 0
        for size in config.buckets:
            inside = rows[(counts[rows] > below) & (counts[rows] <= size)]
            below = size
            if len(inside) == 0:
                continue
            molecules = Molecules.from_table(table, inside).padded(size)
            state = to_state(molecules, config.net)
            self.buckets.append(
                {
                    "pos": state["pos"],
                    **{k: state[k].to(torch.int8) for k in ("atom", "charge", "bond")},
                    "count": molecules.atom_counts,
                    "values": torch.from_numpy(columns[inside]).float(),
                }
            )
        sizes = np.array([len(b["count"]) for b in self.buckets], dtype=float)
        self.shares = sizes / sizes.sum()

    def __len__(self) -> int:
        return 1 << 62

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Tensors of step ``step``: the state at t and at 1 (``t/...``, ``1/...``), the hidden
        tokens (``hidden/...``), ``t``, ``mask``, ``cond`` and whether to self-condition."""
        config = self.config
        generator = np.random.default_rng([config.seed, step])
        bucket = self.buckets[generator.choice(len(self.buckets), p=self.shares)]
        rows = torch.from_numpy(generator.integers(len(bucket["count"]), size=config.batch))
        count = bucket["count"][rows]
        size = bucket["pos"].shape[1]
        mask = torch.arange(size) < count.unsqueeze(1)
        data = {"pos": bucket["pos"][rows]}
        data |= {k: bucket[k][rows].long() for k in ("atom", "charge", "bond")}

        keys = Keys.for_samples(config.seed, range(step * config.batch, (step + 1) * config.batch))
        t = time_samples(keys.uniform("time", 0, (2,)), config.late_times)
        space = Centred()
        noise = align(space.noise(keys, "noise", 0, data["pos"], mask), data["pos"], count)
        bridge = self.process.bridge(data, t, keys, mask, x_0={"pos": noise})
        x_t = bridge.x_t
        assert isinstance(x_t, dict)
        if config.jitter:
            # gamma(t) z of a stochastic interpolant: the network also sees states off the line.
            gamma = 2 * config.jitter * (t * (1 - t)).sqrt()
            extra = space.noise(keys, "jitter", 0, data["pos"], mask)
            x_t["pos"] = x_t["pos"] + per_sample(gamma, extra) * extra
        uniform = keys.uniform("targets", 0, (2 + len(config.net.properties),))
        return {
            **{f"t/{k}": v for k, v in x_t.items()},
            **{f"1/{k}": v for k, v in data.items()},
            **{f"hidden/{k}": v for k, v in bridge.hidden.items()},
            "t": t,
            "mask": mask,
            "cond": shown_targets(
                bucket["values"][rows], uniform, config.no_targets, config.one_target
            ),
            "self_condition": torch.tensor(generator.random() < config.self_condition),
        }
