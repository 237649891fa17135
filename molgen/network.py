r"""An SE(3)-equivariant network on complete graphs of atoms.

Four kinds of channels live together, each with its own law under a rotation R of the input:

    h_i  (d scalars per atom)      invariant                 0e in e3nn's notation
    e_ij (d_e scalars per pair)    invariant, symmetric      0e
    v_i  (C vectors per atom)      v -> R v                  1o, mixed with 1e by cross products
    x_i  (the position)            x -> R x + translation    1o

A layer is pair-biased attention (pairs bias and gate it; Jumper et al. 2021) whose weights also
carry vectors: w_ij (x_i - x_j) / (1 + d_ij) and the neighbours' own v. Cross products v x v make
pseudo-vectors, whose mixing with true ones distinguishes a molecule from its mirror image: the
network is SE(3)- and not E(3)-equivariant. Time, atom count and property targets enter every layer
through adaptive layer norms (Peebles & Xie 2023). Everything is dense and batched: molecules are
small, so a complete graph is cheaper than its index lists.

The network predicts the end of the flow: denoised positions and the logits of atom types, charges
and bonds. `previous`, its own last prediction, is a further input (self-conditioning; Chen, Zhang &
Hinton 2023).
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from driftworks.core.even import SiLU, even, silu

__all__ = ["Layer", "MoleculeNet", "NetConfig", "RadialBasis", "build"]

MAX_ATOMS = 64  # rows of the atom-count embedding


class NetConfig(BaseModel):
    """Sizes of the network and the vocabulary it was built for; saved in every checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: Annotated[int, Field(ge=16)] = 128
    pair_width: Annotated[int, Field(ge=8)] = 64
    heads: Annotated[int, Field(ge=1)] = 8
    layers: Annotated[int, Field(ge=1)] = 6
    radial: Annotated[int, Field(ge=4)] = 24
    elements: tuple[int, ...] = (1, 6, 7, 8, 9)
    charges: tuple[int, ...] = (-1, 0, 1)
    bond_orders: tuple[int, ...] = (0, 1, 2, 3)
    properties: tuple[str, ...] = ("alpha", "gap", "homo", "lumo", "mu", "cv")


class RadialBasis(nn.Module):
    """Gaussians of the distance, evenly spaced on [0, cutoff]: (...) -> (..., count)."""

    centres: Tensor

    def __init__(self, count: int, cutoff: float = 6.0):
        super().__init__()
        self.register_buffer("centres", torch.linspace(0.0, cutoff, count), persistent=False)
        self.gamma = 0.5 * ((count - 1) / cutoff) ** 2

    def forward(self, distance: Tensor) -> Tensor:
        return even(torch.exp, -self.gamma * (distance.unsqueeze(-1) - self.centres).square())


def _zeroed(layer: nn.Linear) -> nn.Linear:
    """A linear layer that starts at zero: a residual branch that begins as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Layer(nn.Module):
    """One round of messages between all pairs of atoms, then updates of h, v, e and x."""

    def __init__(self, d: int, d_e: int, heads: int, radial: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(d, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(d, elementwise_affine=False)
        self.modulation = _zeroed(nn.Linear(d, 4 * d))
        self.qkv = nn.Linear(d, 3 * d)
        self.pair_norm = nn.LayerNorm(d_e)
        self.pair_radial = nn.Linear(radial, d_e, bias=False)
        self.pair_heads = nn.Linear(d_e, 4 * heads)
        self.merge = _zeroed(nn.Linear(d + d_e + heads, d))
        self.cross_in = nn.Linear(heads, 8, bias=False)
        self.cross_out = nn.Linear(4, heads, bias=False)
        self.expand = nn.Linear(d + heads, d * 5 // 2)
        self.contract = _zeroed(nn.Linear(d * 5 // 2, d + heads))
        self.move = nn.Parameter(torch.randn(heads) * 0.1 / math.sqrt(heads))
        self.pair_in = nn.Linear(d_e, d_e)
        self.pair_nodes = nn.Linear(d, 2 * d_e)
        self.pair_out = _zeroed(nn.Linear(d_e, d_e))
        self.radial = RadialBasis(radial)

    def forward(
        self, h: Tensor, v: Tensor, e: Tensor, x: Tensor, condition: Tensor,
        key_bias: Tensor, pairs: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Shapes: h (B,N,d), v (B,N,3,C), e (B,N,N,d_e), x (B,N,3), condition (B,d).

        ``key_bias`` (B,1,1,N) is 0 for atoms and very negative for padding, ``pairs`` (B,1,N,N)
        is 1 for pairs of distinct atoms, else 0.
        """
        b, n, d = h.shape
        scale1, shift1, scale2, shift2 = self.modulation(condition).unsqueeze(1).chunk(4, -1)

        # In x's own precision whatever the autocast: distances are differences of nearby numbers.
        difference = x.unsqueeze(2) - x.unsqueeze(1)
        distance = (difference.square().sum(-1) + 1e-6).sqrt()
        pair = self.pair_norm(e) + self.pair_radial(self.radial(distance).to(e.dtype))
        active = silu(pair)
        bias, gate, near, far = self.pair_heads(active).permute(0, 3, 1, 2).chunk(4, 1)

        q, k, value = (
            self.qkv(self.norm1(h) * (1 + scale1) + shift1)
            .view(b, n, 3, self.heads, d // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        logits = q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5 + bias
        weight = (logits.to(x.dtype) + key_bias).softmax(-1)
        gated = weight * even(torch.sigmoid, gate.to(x.dtype))

        carrying = torch.cat((value, v.permute(0, 3, 1, 2).to(value.dtype)), -1)
        mixed = gated.to(value.dtype) @ carrying
        message, carried = mixed.split((d // self.heads, 3), -1)
        message = message.transpose(1, 2).reshape(b, n, d)
        from_pairs = (weight.mean(1).to(pair.dtype).unsqueeze(2) @ pair).squeeze(2)

        # sum_j w_ij (x_i - x_j) as x_i sum_j w_ij - (w x)_i: no (B, N, N, C, 3) tensor is made.
        pull = weight * near.to(x.dtype) + 0.1 * far.to(x.dtype)
        pull = pull * (pairs / (1 + distance).unsqueeze(1))
        with torch.autocast(x.device.type, enabled=False):
            vectors = x.unsqueeze(1) * pull.sum(-1, keepdim=True) - pull @ x.unsqueeze(1)
        v = v + (vectors + carried.to(x.dtype)).permute(0, 2, 3, 1)

        left, right = self.cross_in(v).to(x.dtype).chunk(2, -1)
        v = v + self.cross_out(torch.linalg.cross(left, right, dim=-2)).to(x.dtype)
        length = (v.square().sum(-2) + 1e-6).sqrt()

        h = h + self.merge(torch.cat((message, from_pairs, length.to(message.dtype)), -1))
        inner = torch.cat((self.norm2(h) * (1 + scale2) + shift2, length), -1)
        update = self.contract(silu(self.expand(inner)))
        h = h + update[..., :d]
        v = v * even(torch.sigmoid, update[..., d:].to(x.dtype) + 1).unsqueeze(-2)
        v = v / (1 + 0.1 * length.mean(-1)[..., None, None])

        x = x + (v * self.move).sum(-1)
        plus, times = self.pair_nodes(h).chunk(2, -1)
        joined = plus.unsqueeze(1) + plus.unsqueeze(2) + times.unsqueeze(1) * times.unsqueeze(2)
        e = e + self.pair_out(silu(self.pair_in(pair) + joined))
        return h, v, e, x


class MoleculeNet(nn.Module):
    """The denoiser of the molecular process (`molgen.process`).

    ``forward(state, t, mask, cond, previous)`` takes a state with ``pos`` (B,N,3) in scaled units,
    ``atom`` and ``charge`` (B,N), ``bond`` (B,N,N) tokens (the class count is the mask token),
    times (B,), the atom mask (B,N) and property targets ``cond`` (B,P) in the properties' own
    units, where NaN means "not asked for". It returns the denoised ``pos`` and token logits.
    """

    property_mean: Tensor
    property_std: Tensor
    frequencies: Tensor

    def __init__(self, config: NetConfig):
        super().__init__()
        self.config = config
        d, d_e = config.width, config.pair_width
        if d % config.heads:
            raise ValueError(f"width {d} is not divisible by heads {config.heads}")
        self.n_atom, self.n_charge = len(config.elements), len(config.charges)
        self.n_bond, n_property = len(config.bond_orders), len(config.properties)

        self.atom = nn.Embedding(self.n_atom + 1, d)
        self.charge = nn.Embedding(self.n_charge + 1, d)
        self.bond = nn.Embedding(self.n_bond + 1, d_e)
        self.count = nn.Embedding(MAX_ATOMS, d)
        frequencies = torch.exp(torch.linspace(0.0, 6.0, 16))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.time = nn.Sequential(nn.Linear(32, d), SiLU(), nn.Linear(d, d))

        # A property enters as features of its z-score through its own first layer, or as its own
        # learned null vector when it is not asked for.
        self.register_buffer("property_mean", torch.zeros(n_property))
        self.register_buffer("property_std", torch.ones(n_property))
        self.value = nn.Parameter(torch.randn(n_property, 9, d // 2) / 3)
        self.value_out = nn.Linear(d // 2, d, bias=False)
        self.absent = nn.Parameter(torch.randn(n_property, d) * 0.02)
        self.condition = nn.Sequential(SiLU(), nn.Linear(d, d), SiLU())

        self.radial = RadialBasis(config.radial)
        self.previous_nodes = nn.Linear(self.n_atom + self.n_charge, d, bias=False)
        self.previous_pairs = nn.Linear(self.n_bond + config.radial, d_e, bias=False)
        self.previous_shift = nn.Parameter(torch.randn(config.heads) * 0.1)

        self.layers = nn.ModuleList(
            Layer(d, d_e, config.heads, config.radial) for _ in range(config.layers)
        )
        self.node_head = nn.Sequential(
            nn.LayerNorm(d), nn.Linear(d, d), SiLU(), nn.Linear(d, self.n_atom + self.n_charge)
        )
        self.pair_head = nn.Sequential(
            nn.LayerNorm(d_e), nn.Linear(d_e, d_e), SiLU(), nn.Linear(d_e, self.n_bond)
        )

    def embed_targets(self, cond: Tensor) -> Tensor:
        """Property targets (B, P), NaN where not asked for, to one vector a molecule (B, d)."""
        given = ~cond.isnan()
        z = ((cond.nan_to_num() - self.property_mean) / self.property_std).clamp(-8, 8)
        angle = z.unsqueeze(-1) * z.new_tensor([0.5, 1.0, 2.0, 4.0])
        waves = even(torch.sin, angle), even(torch.cos, angle)
        features = torch.cat((z.unsqueeze(-1), *waves), -1)
        hidden = silu(torch.einsum("bpf,pfd->bpd", features, self.value))
        value = self.value_out(hidden).to(self.absent.dtype)
        return torch.where(given.unsqueeze(-1), value, self.absent).sum(1)

    def forward(
        self,
        x: dict[str, Tensor],
        t: Tensor,
        mask: Tensor,
        cond: Tensor | None = None,
        previous: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        pos, b = x["pos"], len(mask)
        if cond is None:
            cond = pos.new_full((b, len(self.config.properties)), torch.nan)
        angle = t[:, None] * self.frequencies
        summary = (
            self.time(torch.cat((even(torch.sin, angle), even(torch.cos, angle)), -1))
            + self.count(mask.sum(-1))
            + self.embed_targets(cond)
        )
        condition = self.condition(summary)

        h = self.atom(x["atom"]) + self.charge(x["charge"])
        e = self.bond(x["bond"])
        v = pos.new_zeros(b, pos.shape[1], 3, self.config.heads)
        if previous is not None:
            nodes = torch.cat((previous["atom"].softmax(-1), previous["charge"].softmax(-1)), -1)
            h = h + self.previous_nodes(nodes)
            gap = previous["pos"].unsqueeze(2) - previous["pos"].unsqueeze(1)
            distance = (gap.square().sum(-1) + 1e-6).sqrt()
            pairs = torch.cat((previous["bond"].softmax(-1), self.radial(distance)), -1)
            e = e + self.previous_pairs(pairs)
            v = (previous["pos"] - pos).unsqueeze(-1) * self.previous_shift

        key_bias = torch.where(mask, 0.0, -1e9)[:, None, None, :]
        eye = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        pair_mask = (mask.unsqueeze(1) & mask.unsqueeze(2) & ~eye).unsqueeze(1).to(pos.dtype)
        for layer in self.layers:
            h, v, e, pos = layer(h, v, e, pos, condition, key_bias, pair_mask)

        weight = mask.unsqueeze(-1).to(pos.dtype)
        pos = (pos - (pos * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)) * weight
        atom, charge = self.node_head(h).to(pos.dtype).split((self.n_atom, self.n_charge), -1)
        return {"pos": pos, "atom": atom, "charge": charge, "bond": self.pair_head(e).to(pos.dtype)}


def build(config: NetConfig, seed: int = 0) -> MoleculeNet:
    """A network with initial weights from ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return MoleculeNet(config)
