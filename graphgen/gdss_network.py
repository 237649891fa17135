r"""The score networks of GDSS (Jo, Lee & Hwang 2022, "Score-based generative modeling of graphs via
the system of stochastic differential equations", arXiv:2202.02514).

Two networks see a noisy graph, node vectors X (B, N, F) and one number a pair, A (B, N, N), and no
time. Both are made of graph convolutions on the noisy, real-valued matrix (Kipf & Welling 2017),

    conv(X, A) = D^{-1/2} (A with unit diagonal) D^{-1/2} X W + b,    D = max(1, row sums),

the bound being needed because a row of noise may sum to anything. With E an MLP with ELU,

    nodes   H_k = tanh conv(H_{k-1}, A);    answer E([X, H_1, ..., H_depth])
    edges   channels C = [A, A^2, ..., A^c]; a layer of graph multi-head attention (Baek, Kang &
            Hwang 2021) has its own q, k, v = conv(H, C_c) for each channel c, and
                M_c = sym mean_heads tanh(q k^T / sqrt d)                    an attention map
                H  <- tanh E([v_1, v_2, ...])
                C  <- E([M, C]) + its transpose
            answer E(channels of all layers), off the diagonal.

Nothing depends on the order of nodes, and entries of padded nodes are zero before every product in
which they could reach others. The channels of a layer are computed side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from driftworks.core.even import even
from driftworks.core.paths import Path

__all__ = ["EdgeScore", "GdssNetConfig", "GraphConv", "NodeScore", "ScoreNets", "Sde", "build"]

Count = Annotated[int, Field(ge=1)]


class Sde(BaseModel):
    """An SDE by the names of its paper: rates of VP and subVP, noise levels of VE (data, noise)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["vp", "ve", "subvp"] = "vp"
    low: Annotated[float, Field(gt=0)] = 0.1
    high: Annotated[float, Field(gt=0)] = 1.0

    def path(self) -> Path:
        build = {"vp": Path.vp, "ve": Path.ve, "subvp": Path.subvp}[self.kind]
        return build(self.low, self.high)

    @property
    def predicts(self) -> str:
        """What the published network answers with: -std times the score, or on VE the score."""
        return "score" if self.kind == "ve" else "noise"


class GdssNetConfig(BaseModel):
    """Sizes of both networks and the state they see; saved in every checkpoint.

    X has ``inputs`` entries a node: one-hot degree where there is a single kind of node, else
    one-hot kind. A is the number of the edge kind, 0 for none, as one real number. ``depth`` and
    ``layers`` are the layers of the node and the edge network, ``width`` and ``attention_width``
    those of convolutions and attention, ``powers``, ``channels`` and ``last_channels`` the channels
    before, within and after the attention layers, ``linears`` the linear maps of an edge update.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: Literal["gdss"] = "gdss"
    nodes: Count = 1
    edges: Count = 1
    inputs: Count = 10
    node_sde: Sde = Sde()
    edge_sde: Sde = Sde()
    depth: Count = 3
    layers: Annotated[int, Field(ge=2)] = 5
    width: Count = 32
    attention_width: Count = 32
    heads: Count = 4
    powers: Count = 2
    channels: Count = 8
    last_channels: Count = 4
    linears: Count = 2
    max_nodes: Count = 20

    # What other models of graphs may have beside kinds, and this one has not.
    features: ClassVar[tuple[()]] = ()
    weights: ClassVar[tuple[()]] = ()
    labels: ClassVar[int] = 0
    properties: ClassVar[tuple[()]] = ()

    @model_validator(mode="after")
    def _fits(self) -> GdssNetConfig:
        for name in ("width", "attention_width"):
            if getattr(self, name) % self.heads:
                raise ValueError(
                    f"{name} {getattr(self, name)} is not divisible by heads {self.heads}"
                )
        if self.nodes > 1 and self.inputs != self.nodes:
            raise ValueError(f"{self.nodes} kinds of nodes need as many inputs, not {self.inputs}")
        return self


class _Mlp(nn.Sequential):
    """Linear maps with ELU between them, on the last axis."""

    def __init__(self, inputs: int, hidden: int, outputs: int, linears: int):
        sizes = [inputs, *[hidden] * (linears - 1), outputs]
        super().__init__(*[nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)])

    def forward(self, x: Tensor) -> Tensor:
        *inner, last = self
        for linear in inner:
            x = even(nn.functional.elu, linear(x))
        answer: Tensor = last(x)
        return answer


def propagation(adjacency: Tensor) -> Tensor:
    """D^{-1/2} (A with unit diagonal) D^{-1/2} of matrices (..., N, N); see the module's head."""
    eye = torch.eye(adjacency.shape[-1], dtype=torch.bool, device=adjacency.device)
    looped = adjacency.masked_fill(eye, 1.0)
    scale = even(torch.rsqrt, looped.sum(-1).clamp(min=1.0))
    return scale.unsqueeze(-1) * looped * scale.unsqueeze(-2)


class GraphConv(nn.Module):
    """Graph convolutions of the same node vectors on ``channels`` matrices side by side.

    ``outputs`` are the widths of independent convolutions whose results stand one behind the other.
    """

    def __init__(self, inputs: int, outputs: Sequence[int], channels: int = 1):
        super().__init__()
        self.channels, self.outputs = channels, tuple(outputs)
        self.weight = nn.Parameter(torch.empty(inputs, channels, sum(outputs)))
        self.bias = nn.Parameter(torch.zeros(channels, 1, sum(outputs)))
        with torch.no_grad():
            for block in self.weight.split(self.outputs, -1):
                bound = (6.0 / (inputs + block.shape[-1])) ** 0.5  # Glorot & Bengio 2010
                block.uniform_(-bound, bound)

    def forward(self, x: Tensor, propagated: Tensor) -> tuple[Tensor, ...]:
        """x (B, N, F) along `propagation` (B, C, N, N): tensors (B, C, N, width)."""
        b, n, _ = x.shape
        mapped = (x @ self.weight.flatten(1)).view(b, n, self.channels, -1).transpose(1, 2)
        return (propagated @ mapped + self.bias).split(self.outputs, -1)


class NodeScore(nn.Module):
    """The network of X: (B, N, F), (B, N, N), mask (B, N) -> (B, N, F)."""

    def __init__(self, config: GdssNetConfig):
        super().__init__()
        widths = [config.inputs, *[config.width] * config.depth]
        self.layers = nn.ModuleList(
            GraphConv(a, (b,)) for a, b in zip(widths, widths[1:], strict=False)
        )
        total = sum(widths)
        self.out = _Mlp(total, 2 * total, config.inputs, 3)

    def forward(self, x: Tensor, a: Tensor, mask: Tensor) -> Tensor:
        propagated = propagation(a).unsqueeze(1)
        seen = [x]
        for layer in self.layers:
            (h,) = layer(seen[-1], propagated)
            seen.append(even(torch.tanh, h.squeeze(1)))
        answer: Tensor = self.out(torch.cat(seen, -1))
        return answer * mask.unsqueeze(-1)


class _Pairs:
    """The pairs i < j of N nodes as one axis, and the way back to matrices."""

    def __init__(self, n: int, device: torch.device):
        self.n = n
        i, j = torch.triu_indices(n, n, 1, device=device)
        self.upper, self.lower = i * n + j, j * n + i
        number = torch.zeros(n * n, dtype=torch.int64, device=device)
        number[self.upper] = number[self.lower] = torch.arange(len(i), device=device)
        self.number = number

    def of(self, matrix: Tensor) -> Tensor:
        """The symmetric part (B, C, P) of matrices (B, C, N, N)."""
        flat = matrix.flatten(-2)
        return 0.5 * (flat.index_select(-1, self.upper) + flat.index_select(-1, self.lower))

    def matrix(self, values: Tensor) -> Tensor:
        """(B, C, N, N) of values (B, C, P); the diagonal means nothing."""
        return values.index_select(-1, self.number).unflatten(-1, (self.n, self.n))


class _AttentionLayer(nn.Module):
    """Graph multi-head attention over all channels; then new node vectors and new channels."""

    def __init__(self, config: GdssNetConfig, inputs: int, channels: int, outputs: int):
        super().__init__()
        d, a = config.width, config.attention_width
        self.heads, self.scale = config.heads, d**-0.5
        self.qkv = GraphConv(inputs, (a, a, d), channels)
        hidden = 2 * max(channels, outputs)
        self.of_nodes = _Mlp(channels * d, hidden, d, 2)
        self.of_pairs = _Mlp(2 * channels, hidden, outputs, config.linears)

    def forward(
        self, x: Tensor, c: Tensor, pairs: _Pairs, inside: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x (B, N, F) and channels c (B, C, P) -> (B, N, width), (B, C', P)."""
        q, k, v = self.qkv(x, propagation(pairs.matrix(c)))
        q, k = (y.unflatten(-1, (self.heads, -1)).transpose(2, 3) for y in (q, k))
        maps = even(torch.tanh, q @ k.transpose(-1, -2) * self.scale).mean(2)
        h = even(torch.tanh, self.of_nodes(v.transpose(1, 2).flatten(2)))
        # What goes in is symmetric, so adding the transpose doubles it.
        new = 2.0 * self.of_pairs(torch.cat((pairs.of(maps), c), 1).transpose(1, 2))
        return h, (new * inside).transpose(1, 2)


class EdgeScore(nn.Module):
    """The network of A: (B, N, F), (B, N, N), mask (B, N) -> (B, N, N), symmetric."""

    def __init__(self, config: GdssNetConfig):
        super().__init__()
        inner = [config.channels] * (config.layers - 1)
        channels = [config.powers, *inner, config.last_channels]
        self.powers = config.powers
        self.layers = nn.ModuleList(
            _AttentionLayer(config, config.inputs if i == 0 else config.width, *pair)
            for i, pair in enumerate(zip(channels, channels[1:], strict=False))
        )
        total = sum(channels)
        self.out = _Mlp(total, 2 * total, 1, 3)

    def forward(self, x: Tensor, a: Tensor, mask: Tensor) -> Tensor:
        n = mask.shape[1]
        if n == 1:
            return torch.zeros_like(a)
        pairs = _Pairs(n, a.device)
        both = mask.unsqueeze(1) & mask.unsqueeze(2)
        inside = both.flatten(1).index_select(1, pairs.upper).unsqueeze(-1)
        powers = [a]
        for _ in range(self.powers - 1):
            powers.append(powers[-1] @ a)
        seen = [pairs.of(torch.stack(powers, 1))]
        h = x
        for layer in self.layers:
            h, channels = layer(h, seen[-1], pairs, inside)
            seen.append(channels)
        answer = self.out(torch.cat(seen, 1).transpose(1, 2)) * inside
        off = ~torch.eye(n, dtype=torch.bool, device=a.device)
        return pairs.matrix(answer.transpose(1, 2)).squeeze(1) * off


class ScoreNets(nn.Module):
    """Both networks, which share nothing: ``nodes`` and ``edges``."""

    def __init__(self, config: GdssNetConfig):
        super().__init__()
        self.config = config
        self.nodes, self.edges = NodeScore(config), EdgeScore(config)

    def forward(self, x: Tensor, a: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"nodes": self.nodes(x, a, mask), "edges": self.edges(x, a, mask)}


def build(config: GdssNetConfig, seed: int = 0) -> ScoreNets:
    """Networks with initial weights from ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return ScoreNets(config)
