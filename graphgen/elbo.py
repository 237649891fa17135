r"""A lower bound of the log-likelihood of graphs under the discrete flow.

Cut time into S steps. Read towards noise, the flow's noising is the chain that keeps an entry with
probability k_t / k_s between two times s > t and draws it from the marginal m otherwise, so for
x_1 known the posterior of one step is

    q(x_s | x_t, x_1)  ~  [k_s (x_s = x_1) + (1 - k_s) m(x_s)] [r (x_t = x_s) + (1 - r) m(x_t)],
    r = k_t / k_s,

and the model's step is its mean under the network's classes, p(x_s | x_t) = sum_c q(x_s | x_t, c)
p(c | x_t). At k = 0 everything is noise drawn from m, so there is no prior term, and

    log p(x_1)  >=  - sum over steps of  E_{x_t} KL( q(x_s | x_t, x_1) || p(x_s | x_t) ),

the last step, s = 1, being the reconstruction log p(x_1 | x_t) (Austin et al. 2021, "Structured
denoising diffusion models in discrete state-spaces"). Every x_t is drawn afresh, which makes the
sum unbiased; its standard error over draws is reported. The bound is for the nodes and edges of a
graph in the given order and for its number of nodes.

The law whose likelihood this bounds is that of the chain p itself, which the sampler runs at noise
eta = 1 / k_t (`core.ctmc`). Where the network is exact, graphs drawn without noise have that law
too, and the bound is tight in the limit of many steps; where it is not, the two laws differ by its
errors. (The bound of the noiseless chain is never tight: that chain does not forget which entries
have moved already, while the model cannot see it.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from driftworks.core.ctmc import Replacing
from driftworks.core.keys import Keys
from driftworks.errors import UserError
from driftworks.graphgen.graph import Graphs
from driftworks.graphgen.process import GraphModel
from driftworks.graphgen.sample import clock

__all__ = ["Bound", "bound", "step_posterior"]


@dataclass(frozen=True)
class Bound:
    """``value`` (B,) nats a graph and its standard error ``stderr`` (B,), NaN for a single draw."""

    value: Tensor
    stderr: Tensor

    def __str__(self) -> str:
        mean = float(self.value.mean())
        spread = float(self.value.std(correction=0)) / max(1, len(self.value) - 1) ** 0.5
        return f"{mean:.3f} +- {spread:.3f} nats a graph ({len(self.value)} graphs)"


def step_posterior(x_t: Tensor, marginal: Tensor, k_t: float, k_s: float) -> Tensor:
    """q(x_s = b | x_t, x_1 = a) for all a and b: (..., K, K) from x_t (...)."""
    classes = len(marginal)
    eye = torch.eye(classes, dtype=marginal.dtype, device=marginal.device)
    forward = k_s * eye + (1.0 - k_s) * marginal  # (a, b)
    r = k_t / k_s
    back = r * eye[x_t] + (1.0 - r) * marginal[x_t].unsqueeze(-1)  # (..., b)
    joint = forward * back.unsqueeze(-2)
    return joint / joint.sum(-1, keepdim=True).clamp(min=1e-300)


def _divergence(x_1: Tensor, x_t: Tensor, logits: Tensor, marginal: Tensor, k_t: float, k_s: float
                ) -> Tensor:
    """KL(q || p) of every entry, float64, shape of x_1."""
    q_all = step_posterior(x_t, marginal, k_t, k_s)
    p = logits.double().softmax(-1)
    model = (p.unsqueeze(-1) * q_all).sum(-2).clamp(min=1e-300)
    index = x_1[..., None, None].expand(*x_1.shape, 1, len(marginal))
    q = q_all.gather(-2, index).squeeze(-2)
    return torch.xlogy(q, q).sum(-1) - (q * model.log()).sum(-1)


@torch.no_grad()
def bound(
    model: GraphModel, graphs: Graphs, steps: int = 100, draws: int = 1, seed: int = 0,
    batch_size: int = 64,
) -> Bound:
    """The bound of the module's docstring for every graph, from ``draws`` passes of ``steps``.

    Raises `UserError` for a model with continuous parts, whose density has no such bound.
    """
    config = model.config
    if config.system != "flow" or config.features or config.weights:
        raise UserError("the bound is for discrete flows without continuous attributes")
    device = next(model.parameters()).device
    times = clock(steps)
    values = torch.zeros(draws, len(graphs), dtype=torch.float64)
    sizes = graphs.node_counts
    for size in sizes.unique().tolist():
        rows_of_size = (sizes == size).nonzero()[:, 0]
        for rows in rows_of_size.split(batch_size):
            some = graphs[rows].padded(size).to(device)
            data = {"nodes": some.nodes, "edges": some.edges}
            upper = torch.ones(size, size, dtype=torch.bool, device=device).triu(1)
            for draw in range(draws):
                keys = Keys.for_samples(seed, rows + draw * (1 << 40)).to(device)
                total = torch.zeros(len(rows), dtype=torch.float64, device=device)
                for k, (t, s) in enumerate(zip(times, times[1:], strict=False)):
                    clocks = torch.full((len(rows),), t, device=device)
                    bridge = model.process.bridge(data, clocks, keys, some.mask, step=k)
                    assert isinstance(bridge.x_t, dict)
                    logits = model.logits(bridge.x_t, clocks, some.mask, None)
                    for name in ("nodes", "edges"):
                        route = model.process.parts[name].path
                        assert isinstance(route, Replacing)
                        m = torch.tensor(route.marginal, dtype=torch.float64, device=device)
                        kl = _divergence(
                            data[name], bridge.x_t[name], logits[name], m,
                            float(route.kappa(t)), float(route.kappa(s)),
                        )
                        total -= (kl * upper if name == "edges" else kl).flatten(1).sum(1)
                values[draw, rows] = total.cpu()
    spread = values.std(0) / draws**0.5 if draws > 1 else torch.full_like(values[0], torch.nan)
    return Bound(values.mean(0), spread)
