r"""A graph transformer on nodes and pairs that answers with the end of the noise.

Whatever the noise, an entry enters as the probabilities of its classes given its own noisy value
alone: a token as certainty, a Gaussian entry through Bayes' rule with the class frequencies of the
data (`process`). So one network serves the discrete flow and the system of SDEs, and it answers
with logits of the clean classes, which both turn into what they need.

Three streams: nodes h_i (d), pairs e_ij (d_e, symmetric) and, through adaptive layer norms, time,
node count and condition (Peebles & Xie 2023). A layer is attention in which pairs bias and gate the
weights, then an update of the pairs from their two nodes and the attention logits (Dwivedi &
Bresson 2021; Vignac et al. 2023). Features of the noisy graph are relative random-walk
probabilities (RRWP; Ma et al. 2023, "Graph inductive biases in transformers"): with A the
probability of an edge and P = D^-1 A,

    pair features   [P, P^2, ..., P^K]_ij, symmetrised          node features   their diagonals

degrees, counted for every class of edges (an atom's valence is a sum of them),

and effective resistances, screened by a small s so that they are finite between components:

    G = (D - A + s)^-1,    R_ij = G_ii + G_jj - 2 G_ij,    pair features  R / (1 + R)  and  A R.

A_ij R_ij is the share of spanning trees that hold the edge ij (Kirchhoff; s = 0). It is 1 for a
bridge and less in a cycle, so that one edge tells what depends on the whole graph: whether it
closes a cycle, and whether it alone joins two communities. Of the graph as a whole the network sees

    log s tr G = log sum_k s / (lambda_k + s),    lambda the eigenvalues of D - A,

for small s the logarithm of the number of components, and the mean degree of every edge class.

No operation depends on the order of the nodes or on how many padded ones there are.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from driftworks.core.even import SiLU, even, silu
from driftworks.core.keys import Keys

__all__ = ["GraphNet", "NetConfig", "build", "footprint", "resistances", "walks"]


#: The network tells apart shares of noise down to this one.
REMAINING = 1e-4


class NetConfig(BaseModel):
    """Sizes of the network and the attributes it was built for; saved in every checkpoint.

    ``nodes`` and ``edges`` are the frequencies of the node and edge classes in the data, edge class
    0 being "no edge"; one node class means unattributed nodes. ``features`` and ``weights`` are
    mean and deviation of each continuous attribute (of edges, one at most), ``labels`` the classes
    of a graph label to condition on (0: none), ``properties`` the names of numbers to condition on.
    ``system`` chooses the noise (`process`), ``node_sde`` and ``edge_sde`` its two paths where it
    is a system of SDEs. ``walks`` and ``screens``: the steps K and the screening constants s of the
    features.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: tuple[float, ...] = (1.0,)
    edges: tuple[float, ...] = (0.8, 0.2)
    features: tuple[tuple[float, float], ...] = ()
    weights: tuple[tuple[float, float], ...] = ()
    labels: Annotated[int, Field(ge=0)] = 0
    properties: tuple[str, ...] = ()
    system: Literal["flow", "sde"] = "flow"
    node_sde: Literal["vp", "ve", "subvp"] = "vp"
    edge_sde: Literal["vp", "ve", "subvp"] = "vp"
    width: Annotated[int, Field(ge=8)] = 64
    pair_width: Annotated[int, Field(ge=8)] = 32
    heads: Annotated[int, Field(ge=1)] = 4
    layers: Annotated[int, Field(ge=1)] = 5
    walks: Annotated[int, Field(ge=1)] = 12
    screens: tuple[Annotated[float, Field(gt=0)], ...] = ()
    max_nodes: Annotated[int, Field(ge=1)] = 64

    @model_validator(mode="after")
    def _fits(self) -> NetConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        if len(self.edges) < 2 or not self.nodes:
            raise ValueError("there must be a node class and two edge classes at least")
        for name in ("nodes", "edges"):
            share = getattr(self, name)
            if min(share) < 0 or abs(math.fsum(share) - 1.0) > 1e-6:
                raise ValueError(f"{name} must be frequencies that sum to 1, got {share}")
        return self


def walks(adjacency: Tensor, steps: int) -> Tensor:
    """Random-walk probabilities [P, ..., P^steps] of ``adjacency`` (B, N, N) >= 0.

    Returns (B, N, N, steps), entry k the chance to go from i to j in k + 1 steps; rows of nodes
    without edges are 0.
    """
    with torch.autocast(adjacency.device.type, enabled=False):  # training sees what sampling sees
        step = adjacency.float()
        step = step / step.sum(-1, keepdim=True).clamp(min=1e-6)
        powers = [step]
        for _ in range(steps - 1):
            powers.append(powers[-1] @ step)
        return torch.stack(powers, -1).to(adjacency.dtype)


def resistances(adjacency: Tensor, screens: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Screened effective resistances of ``adjacency`` (B, N, N) >= 0, symmetric.

    Returns (B, N, N, 2 S), R / (1 + R) for every screening constant and then A R; and (B, N, S),
    s G_ii, which over the nodes of a component sums to 1 for small s.
    """
    with torch.autocast(adjacency.device.type, enabled=False):
        conductance = adjacency.float()
        identity = torch.eye(conductance.shape[-1], device=conductance.device)
        laplacian = conductance.sum(-1).diag_embed() - conductance
        found, shares = [], []
        for screen in screens:
            green = torch.linalg.inv(laplacian + screen * identity)
            own = green.diagonal(dim1=1, dim2=2)
            found.append((own.unsqueeze(1) + own.unsqueeze(2) - 2.0 * green).clamp(min=0.0))
            shares.append(screen * own)
        pairs = [r / (1.0 + r) for r in found] + [conductance * r for r in found]
        return (torch.stack(pairs, -1).to(adjacency.dtype),
                torch.stack(shares, -1).to(adjacency.dtype))


def _zeroed(layer: nn.Linear) -> nn.Linear:
    """A linear layer that starts at zero: a residual branch that begins as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Layer(nn.Module):
    """Attention between all nodes, biased and gated by pairs; then an update of the pairs."""

    def __init__(self, d: int, d_e: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(d, elementwise_affine=False)
        self.norm_2 = nn.LayerNorm(d, elementwise_affine=False)
        self.norm_e = nn.LayerNorm(d_e, elementwise_affine=False)
        self.modulate = _zeroed(nn.Linear(d, 4 * d))
        self.modulate_e = _zeroed(nn.Linear(d, 2 * d_e))
        self.qkv = nn.Linear(d, 3 * d)
        self.of_pairs = nn.Linear(d_e, 2 * heads)
        self.merge = _zeroed(nn.Linear(d + d_e, d))
        self.expand, self.contract = nn.Linear(d, 3 * d), _zeroed(nn.Linear(3 * d, d))
        self.ends = nn.Linear(d, 2 * d_e)
        self.pair_in = nn.Linear(d_e + heads, 2 * d_e)
        self.pair_mid = nn.Linear(d_e, 2 * d_e)
        self.pair_out = _zeroed(nn.Linear(2 * d_e, d_e))

    def forward(
        self, h: Tensor, e: Tensor, condition: Tensor, key_bias: Tensor,
        gains: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Shapes: h (B,N,d), e (B,N,N,d_e), condition (B,d), key_bias (B,1,1,N), 0 or -1e9.

        ``gains`` (B,3d) and (B,2d_e) multiply the channels inside the two feed-forward branches.
        """
        b, n, d = h.shape
        scale_1, shift_1, scale_2, shift_2 = self.modulate(condition).unsqueeze(1).chunk(4, -1)
        scale_e, shift_e = self.modulate_e(condition)[:, None, None].chunk(2, -1)
        pair = self.norm_e(e) * (1 + scale_e) + shift_e
        bias, gate = self.of_pairs(pair).permute(0, 3, 1, 2).chunk(2, 1)
        q, k, v = (
            self.qkv(self.norm_1(h) * (1 + scale_1) + shift_1)
            .view(b, n, 3, self.heads, d // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        logits = q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5 + bias
        weight = (logits.float() + key_bias).softmax(-1)
        gated = (weight * even(torch.sigmoid, gate.float())).to(v.dtype)
        message = (gated @ v).transpose(1, 2).reshape(b, n, d)
        from_pairs = (weight.mean(1).to(pair.dtype).unsqueeze(2) @ pair).squeeze(2)
        h = h + self.merge(torch.cat((message, from_pairs.to(message.dtype)), -1))
        inside = silu(self.expand(self.norm_2(h) * (1 + scale_2) + shift_2))
        if gains is not None:
            inside = inside * gains[0].unsqueeze(1)
        h = h + self.contract(inside)
        plus, times = self.ends(h).chunk(2, -1)
        product = times.unsqueeze(1) * times.unsqueeze(2)
        logits = (0.5 * (logits + logits.transpose(-1, -2))).permute(0, 2, 3, 1)
        inner = self.pair_in(torch.cat((pair, logits.to(pair.dtype)), -1)) + self.pair_mid(
            product + plus.unsqueeze(1) + plus.unsqueeze(2)
        )
        inner = silu(inner)
        if gains is not None:
            inner = inner * gains[1][:, None, None]
        return h, e + self.pair_out(inner)


class GraphNet(nn.Module):
    """Logits of the clean classes from class probabilities of the noisy entries.

    ``forward(nodes, edges, t, mask, ...)`` takes nodes (B,N,C), edges (B,N,N,K) (probabilities,
    zero outside the mask), times (B,), mask (B,N) bool, continuous ``features`` (B,N,F) and
    ``weights`` (B,N,N,1) where configured, ``label`` (B,) int64 with ``labels`` meaning "any",
    and ``properties`` (B,P), NaN meaning "any". ``dropout``, of training alone, is the share of
    channels that each graph goes without in each layer, and one key a graph; a channel is left out
    for all nodes and pairs of a graph, so that their order still means nothing. It returns a dict
    with the logits ``nodes`` and ``edges`` and, where configured, the denoised ``features`` and
    ``weights``.
    """

    property_mean: Tensor
    property_std: Tensor
    frequencies: Tensor

    def __init__(self, config: NetConfig):
        super().__init__()
        self.config = config
        d, d_e = config.width, config.pair_width
        kinds = len(config.edges) - 1
        self.node_in = nn.Linear(
            len(config.nodes) + len(config.features) + config.walks + kinds, d
        )
        self.pair_in = nn.Linear(
            len(config.edges) + len(config.weights) + config.walks + 2 * len(config.screens), d_e
        )
        frequencies = torch.exp(torch.linspace(0.0, 6.0, 16))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.time = nn.Sequential(nn.Linear(64, d), SiLU(), nn.Linear(d, d))
        self.size = nn.Linear(32, d)
        self.whole = nn.Linear(len(config.screens) + kinds, d)
        if config.labels:
            self.label = nn.Embedding(config.labels + 1, d)
        if config.properties:
            count = len(config.properties)
            self.register_buffer("property_mean", torch.zeros(count))
            self.register_buffer("property_std", torch.ones(count))
            self.value = nn.Sequential(nn.Linear(2 * count, d), SiLU(), nn.Linear(d, d))
        self.condition = nn.Sequential(SiLU(), nn.Linear(d, d), SiLU())
        self.layers = nn.ModuleList(Layer(d, d_e, config.heads) for _ in range(config.layers))
        self.node_out = nn.Sequential(
            nn.LayerNorm(d), nn.Linear(d, d), SiLU(),
            nn.Linear(d, len(config.nodes) + len(config.features)),
        )
        self.pair_out = nn.Sequential(
            nn.LayerNorm(d_e), nn.Linear(d_e, d_e), SiLU(),
            nn.Linear(d_e, len(config.edges) + len(config.weights)),
        )

    def _waves(self, x: Tensor) -> Tensor:
        angle = x[:, None] * self.frequencies
        return torch.cat((even(torch.sin, angle), even(torch.cos, angle)), -1)

    def forward(
        self,
        nodes: Tensor,
        edges: Tensor,
        t: Tensor,
        mask: Tensor,
        features: Tensor | None = None,
        weights: Tensor | None = None,
        label: Tensor | None = None,
        properties: Tensor | None = None,
        dropout: tuple[float, Keys] | None = None,
    ) -> dict[str, Tensor]:
        config = self.config
        count = mask.sum(-1).to(t.dtype)
        # Near the end what is left of the noise, 1 - t, decides by its order of magnitude.
        remaining = (1.0 - t).clamp(min=REMAINING).log() / math.log(REMAINING)
        summary = self.time(torch.cat((self._waves(t), self._waves(remaining)), -1))
        summary = summary + self.size(self._waves(count / config.max_nodes))
        if config.labels:
            any_label = torch.full((len(mask),), config.labels, device=mask.device)
            summary = summary + self.label(any_label if label is None else label)
        if config.properties:
            if properties is None:
                properties = t.new_full((len(mask), len(config.properties)), torch.nan)
            given = ~properties.isnan()
            z = ((properties.nan_to_num() - self.property_mean) / self.property_std).clamp(-8, 8)
            summary = summary + self.value(torch.cat((z * given, given.to(z.dtype)), -1))

        pairs = (mask.unsqueeze(1) & mask.unsqueeze(2)).to(edges.dtype)
        pairs = pairs * (1 - torch.eye(mask.shape[1], device=mask.device))
        adjacency = (1 - edges[..., 0]) * pairs
        power = walks(adjacency, config.walks)
        # Probabilities fall like 1/N: multiplied by the count they are of order one at any size.
        scale = count.view(-1, 1, 1, 1)
        relative = 0.5 * (power + power.transpose(1, 2)) * scale
        diagonal = power.diagonal(dim1=1, dim2=2).transpose(1, 2)
        degree = (edges[..., 1:] * pairs.unsqueeze(-1)).sum(2) / 8.0
        extra_nodes = [] if features is None else [features]
        extra_pairs = [] if weights is None else [weights]
        whole = [8.0 * degree.sum(1) / count.unsqueeze(1)]
        if config.screens:
            between, own = resistances(adjacency, config.screens)
            extra_pairs.append(between * pairs.unsqueeze(-1))
            whole.append((own * mask.unsqueeze(-1)).sum(1).log())
        condition = self.condition(summary + self.whole(torch.cat(whole, -1)))
        h = self.node_in(torch.cat((nodes, *extra_nodes, diagonal, degree), -1))
        e = self.pair_in(torch.cat((edges, *extra_pairs, 0.3 * relative), -1))
        key_bias = torch.where(mask, 0.0, -1e9)[:, None, None, :]
        for number, layer in enumerate(self.layers):
            gains = None
            if dropout is not None:
                share, keys = dropout
                inside = 3 * config.width, 2 * config.pair_width
                u = keys.uniform(f"dropout/{number}", 0, (sum(inside),))
                gains = ((u >= share).to(e.dtype) / (1.0 - share)).split(inside, 1)
            h, e = layer(h, e, condition, key_bias, gains)

        out_nodes, out_pairs = self.node_out(h).float(), self.pair_out(e).float()
        out_pairs = 0.5 * (out_pairs + out_pairs.transpose(1, 2))
        c, k = len(config.nodes), len(config.edges)
        answer = {"nodes": out_nodes[..., :c], "edges": out_pairs[..., :k]}
        if config.features:
            answer["features"] = out_nodes[..., c:]
        if config.weights:
            answer["weights"] = out_pairs[..., k:]
        return answer


def footprint(config: NetConfig, training: bool = False) -> int:
    """Bytes of memory that a graph takes for each entry of its adjacency matrix.

    About a dozen tensors of the width of pairs live at once, in training those of all layers.
    """
    numbers = 12 * config.pair_width + 6 * config.heads + 3 * config.walks
    return 4 * numbers * (config.layers if training else 1)


def build(config: NetConfig, seed: int = 0) -> GraphNet:
    """A network with initial weights from ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return GraphNet(config)
