r"""The graph process: nodes and edges leave noise together, as tokens or by a system of SDEs.

Two systems drive one network (`network.GraphNet`), which only ever predicts the clean graph.

``flow``: entries are tokens and noise is a class drawn with the frequency it has in the data, so a
sparse graph starts sparse (Vignac et al. 2023; Qin et al. 2024, "DeFoG"); `core.ctmc.Replacing`.

``sde``: node and edge values are real and follow their own SDE each, coupled through the network,
as in GDSS (Jo, Lee & Hwang 2022):

    dX = f_X(t) X dt + g_X dW,   dA = f_A(t) A dt + g_A dW,   scores of X and of A given (X, A).

A class c of K is the vector 2 [c] - 1 in R^K (one number, -1 or 1, when K = 2), and the denoised
entry is E[enc(c)] under the network's classes, from which the score follows. The network is shown
p(c | x_t) of each entry alone, which keeps all that x_t says about its own class:

    p(c | x) = softmax_c( log m_c + beta <x, enc(c)> / sigma^2 - beta^2 |enc(c)|^2 / (2 sigma^2) ).

Continuous attributes are real in both systems. `GraphModel` is the network as `core.sample` wants
it: states in, predictions of the process out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from driftworks.core.ctmc import Replacing
from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.predict import per_sample
from driftworks.core.process import Part, Process
from driftworks.core.spaces import Flat, PairTokens, Symmetric, Tokens
from driftworks.graphgen.network import GraphNet, NetConfig

if TYPE_CHECKING:
    from driftworks.graphgen.graph import Graphs

__all__ = [
    "GraphModel", "bare_posterior", "decode", "encode", "expected", "graph_process", "standardised",
]

PATHS: dict[str, Callable[[], Path]] = {
    "vp": Path.vp, "ve": lambda: Path.ve(0.01, 20.0), "subvp": Path.subvp,
}


def graph_process(config: NetConfig) -> Process:
    """The process of ``config``: parts ``nodes`` and ``edges``, values where configured."""
    parts: dict[str, Part] = {}
    if config.system == "flow":
        parts["nodes"] = Part(Tokens(len(config.nodes)), Replacing(config.nodes))
        parts["edges"] = Part(PairTokens(len(config.edges)), Replacing(config.edges))
    else:
        parts["nodes"] = Part(Flat(), PATHS[config.node_sde]())
        parts["edges"] = Part(Symmetric(), PATHS[config.edge_sde]())
    if config.features:
        parts["features"] = Part(Flat(), Path.linear())
    if config.weights:
        parts["weights"] = Part(Symmetric(), Path.linear())
    return Process(parts)


def standardised(graphs: Graphs, config: NetConfig) -> dict[str, Tensor]:
    """Continuous attributes in deviations from their mean, float64, 0 where there is nothing.

    ``features`` (B, N, F) and ``weights`` (B, N, N), those that the model has.
    """
    values: dict[str, Tensor] = {}
    if config.features:
        moments = torch.tensor(config.features, dtype=torch.float64, device=graphs.mask.device)
        mean, deviation = moments.unbind(1)
        values["features"] = (graphs.features - mean) / deviation * graphs.mask.unsqueeze(-1)
    if config.weights and graphs.weights is not None:
        ((centre, scale),) = config.weights
        values["weights"] = (graphs.weights - centre) / scale * (graphs.edges > 0)
    return values


def encode(classes: Tensor, count: int) -> Tensor:
    """Classes (...) int64 as vectors (..., C): 2 [c] - 1, a single number when there are two."""
    if count == 2:
        return (2.0 * classes - 1.0).unsqueeze(-1)
    return 2.0 * nn.functional.one_hot(classes, count).float() - 1.0


def decode(x: Tensor, count: int) -> Tensor:
    """The class (...) nearest to each vector (..., C)."""
    return (x[..., 0] > 0).long() if count == 2 else x.argmax(-1)


def expected(p: Tensor) -> Tensor:
    """E[enc(c)] of probabilities (..., K)."""
    return 2.0 * (p[..., 1:] if p.shape[-1] == 2 else p) - 1.0


def bare_posterior(x: Tensor, path: Path, t: Tensor, share: tuple[float, ...]) -> Tensor:
    """p(c | x_t) of every entry alone (..., K), from x (B, ..., C) at times t (B,)."""
    count = len(share)
    beta, sigma = path.beta(t), path.sigma(t).clamp(min=1e-3)
    gain = per_sample(beta / sigma.square(), x)
    prior = torch.tensor(share, dtype=x.dtype, device=x.device).clamp(min=1e-12).log()
    if count == 2:
        # |enc| is 1 for both classes, and enc_1 - enc_0 = 2
        other = torch.zeros_like(x)
        return torch.cat((other + prior[0], 2.0 * gain * x + prior[1]), -1).softmax(-1)
    # |enc|^2 is the same for all classes, and <x, enc(c)> is 2 x_c up to a constant
    return (2.0 * gain * x + prior).softmax(-1)


class GraphModel(nn.Module):
    """The network as a model of the process (see `core.sample.Model`).

    ``cond`` is None or a dict with ``label`` (B,) int64 and ``properties`` (B, P).
    """

    batched_guidance = True

    def __init__(self, net: GraphNet, process: Process):
        super().__init__()
        self.net, self.process, self.config = net, process, net.config

    def null(self, cond: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
        """The condition that asks for nothing, built like ``cond``."""
        if cond is None:
            return None
        empty = {"label": float(self.config.labels), "properties": torch.nan}
        return {name: torch.full_like(x, empty[name]) for name, x in cond.items()}

    def shown(self, x: dict[str, Tensor], t: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The class probabilities of nodes (B,N,C) and edges (B,N,N,K) the network is shown."""
        config, parts = self.config, self.process.parts
        pairs = parts["edges"].space.entry_mask(mask, x["edges"])
        assert pairs is not None
        if config.system == "flow":
            nodes = nn.functional.one_hot(x["nodes"], len(config.nodes)).to(t.dtype)
            edges = nn.functional.one_hot(x["edges"], len(config.edges)).to(t.dtype)
            pairs = pairs.unsqueeze(-1)
        else:
            node_path, edge_path = parts["nodes"].path, parts["edges"].path
            assert isinstance(node_path, Path) and isinstance(edge_path, Path)
            nodes = bare_posterior(x["nodes"], node_path, t, config.nodes)
            edges = bare_posterior(x["edges"], edge_path, t, config.edges)
        return nodes * mask.unsqueeze(-1), edges * pairs

    def logits(
        self, x: dict[str, Tensor], t: Tensor, mask: Tensor, cond: Mapping[str, Tensor] | None,
        dropout: tuple[float, Keys] | None = None,
    ) -> dict[str, Tensor]:
        """The network's answer on a state: logits of the classes, denoised values."""
        nodes, edges = self.shown(x, t, mask)
        values = x.get("weights")
        answer: dict[str, Tensor] = self.net(
            nodes, edges, t, mask, x.get("features"),
            None if values is None else values.unsqueeze(-1), **(cond or {}), dropout=dropout,
        )
        if "weights" in answer:
            answer["weights"] = answer["weights"].squeeze(-1)
        for name, share in (("nodes", self.config.nodes), ("edges", self.config.edges)):
            if min(share) == 0:  # a class that the data do not have is never drawn
                absent = torch.tensor(share, device=t.device) == 0
                answer[name] = answer[name].masked_fill(absent, -torch.inf)
        return answer

    def forward(
        self, x: dict[str, Tensor], t: Tensor, mask: Tensor, cond: Any = None, previous: Any = None
    ) -> dict[str, Tensor]:
        answer = self.logits(x, t, mask, cond)
        if self.config.system == "sde":
            for name in ("nodes", "edges"):
                answer[name] = expected(answer[name].softmax(-1))
        return answer
