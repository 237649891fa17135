r"""The denoiser of alpha-carbon chains: pair-biased attention that is told about geometry.

Residues are tokens h_i, pairs (i, j) bias the attention between them (Jumper et al. 2021, "Highly
accurate protein structure prediction with AlphaFold"), time, label and length enter every layer as
adaptive layer norms with gates that start nearly shut (Peebles & Xie 2023; Geffner et al. 2025,
"Proteina"). What a layer sees of the coordinates is expressed in frames R_i of three unit vectors,

    near the chain   R_i^T (x_{i+k} - x_i), k = +-1..4, and (|x_{i+k} - x_i| - d_k) / (1 - t + .02)
    of a pair        Gaussians of |x_i - x_j| and the direction R_i^T (x_j - x_i) / |x_i - x_j|
    in a layer       R_i^T sum_j w_ij g_ij (x_j - x_i) / (1 + |x_i - x_j|), w the attention

and the answer leaves through them, v_i = c(t) x_i + sum R_i a_i. With frames that turn with the
chain this is equivariant under rotations, though not under reflections: three axes have a hand.
With ``equivariant = False`` every R_i is the identity, the network is an ordinary transformer on
coordinates and learns what a rotation is from turned data. Nothing else differs.

Frames come from differences along the chain, a = x_+ - x_- and b = x_+ + x_- - 2 x_0: those of the
noisy chain from means over five residues, those of the cleaner chain y from neighbours. y is the
previous answer (self-conditioning; Chen, Zhang & Hinton 2023) in the first round of layers, and the
round's own answer in the next one, so that later layers look at a chain which is already denoised.

The answer is E[x_1 | x_t] = x_t + (1 - t) v. c(t) = (t s^2 - (1 - t)) / (t^2 s^2 + (1 - t)^2) is
the velocity of Gaussian data with the size s of a chain of this length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from driftworks.core.even import even, silu
from driftworks.core.spaces import Centred
from driftworks.protein.process import NULL, SCALE

__all__ = [
    "Answer",
    "ChainNet",
    "JumpNet",
    "NetConfig",
    "build",
    "build_jumping",
    "chain_size",
]

REACH = 4  # neighbours along the chain on either side
SEPARATIONS = 32  # separations along the sequence up to this one have their own embedding
#: Mean distance in nm of alpha carbons 1, 2, 3, 4 residues apart in known structures.
NEIGHBOUR_DISTANCE = (0.380, 0.585, 0.750, 0.880)


class NetConfig(BaseModel):
    """Sizes of the network; saved in every checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: Annotated[int, Field(ge=16)] = 128
    pair_width: Annotated[int, Field(ge=8)] = 32
    heads: Annotated[int, Field(ge=1)] = 8
    layers: Annotated[int, Field(ge=1)] = 6
    rounds: Annotated[int, Field(ge=1)] = 2
    widening: Annotated[int, Field(ge=1)] = 2
    radial: Annotated[int, Field(ge=4)] = 20
    distogram: Annotated[int, Field(ge=0)] = 0
    equivariant: bool = True

    @model_validator(mode="after")
    def _fits(self) -> NetConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        if self.layers % self.rounds:
            raise ValueError(f"{self.layers} layers cannot be split into {self.rounds} rounds")
        return self


class Answer(NamedTuple):
    """What training needs of one call: denoised chains of every round, the last one being the
    answer (B, L, 3), and the distogram's logits (B, L, L, bins) where the network has one."""

    denoised: tuple[Tensor, ...]
    distogram: Tensor | None


def chain_size(lengths: Tensor) -> Tensor:
    """Standard deviation in nm of a coordinate of chains of ``lengths`` residues (B,).

    From the radius of gyration 2.70 L^0.350 angstrom of known single domains of 40-256 residues.
    """
    return 2.70 / SCALE / math.sqrt(3.0) * lengths.clamp(min=1).pow(0.350)


def _unit(x: Tensor, least: float = 1e-4) -> Tensor:
    """x / |x| along the last axis, 0 at 0."""
    return x * (x.square().sum(-1, keepdim=True) + least**2).rsqrt()


def _frames(ahead: Tensor, here: Tensor, behind: Tensor) -> Tensor:
    """Right-handed frames (..., 3, 3), columns the axes, from points along a chain (..., 3)."""
    first = _unit(ahead - behind)
    bend = ahead + behind - 2 * here
    second = _unit(bend - (bend * first).sum(-1, keepdim=True) * first)
    return torch.stack((first, second, torch.linalg.cross(first, second, dim=-1)), -1)


class Places(NamedTuple):
    """Where things are in a batch: shared by all rounds of one call."""

    neighbours: Tensor  # (2 REACH + 1, B, L) rows of the residues i - REACH .. i + REACH
    linked: Tensor  # (2 REACH, B, L) 1 where the neighbour exists and no break is between
    absent: Tensor | None  # (B, 1, 1, L) 0 for residues that exist, else -1e4; None if all do
    rest: Tensor  # (B, 1, 1) 1 / (1 - t + 0.02)


def _along(x: Tensor, rows: Tensor) -> Tensor:
    """x (B, L, 3) at ``rows`` (K, B, L): (K, B, L, 3)."""
    k, b, n = rows.shape
    index = rows.unsqueeze(-1).expand(k, b, n, 3)
    return x.expand(k, b, n, 3).gather(2, index)


class Radial(nn.Module):
    """Bumps (1 - u^2)^2 evenly spaced in asinh(d / 0.4 nm), 0 to 4 nm: fine where atoms touch.

    Each reaches over its two neighbours on either side. (B, ...) -> (B, count, ...).
    """

    centres: Tensor

    def __init__(self, count: int):
        super().__init__()
        last = math.asinh(10.0)
        self.count, self.sharpness = count, (count - 1) / (2 * last)
        centres = torch.linspace(0.0, last, count) * self.sharpness
        self.register_buffer("centres", centres, persistent=False)

    def forward(self, distance: Tensor, dtype: torch.dtype) -> Tensor:
        u = (even(torch.asinh, distance * 2.5) * self.sharpness).to(dtype).unsqueeze(1)
        centres = self.centres.to(dtype).view(-1, *(1,) * (distance.ndim - 1))
        return (1 - (u - centres).square()).clamp(min=0).square()


class Layer(nn.Module):
    """Attention with pair biases that also gathers vectors, then a gated transition."""

    def __init__(self, d: int, heads: int, frames: int, widening: int):
        super().__init__()
        self.heads, self.each = heads, d // heads
        self.norm1 = nn.LayerNorm(d, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(d, elementwise_affine=False)
        self.modulation = nn.Linear(d, 6 * d)
        nn.init.zeros_(self.modulation.weight)
        with torch.no_grad():  # scale, shift, gate, twice: gates start at sigmoid(-2)
            self.modulation.bias.copy_(torch.tensor([0.0, 0, -2, 0, 0, -2]).repeat_interleave(d))
        self.qkvg = nn.Linear(d, 4 * d)
        self.q_norm = nn.LayerNorm(self.each)
        self.k_norm = nn.LayerNorm(self.each)
        self.merge = nn.Linear(d + 3 * frames * heads, d)
        self.expand = nn.Linear(d, 2 * widening * d)
        self.contract = nn.Linear(widening * d, d)

    def forward(
        self, h: Tensor, condition: Tensor, bias: Tensor, pull: Tensor, y: Tensor, frames: Tensor
    ) -> Tensor:
        """Shapes: h (B,L,d), condition (B,d), bias and pull (B,H,L,L), y (B,L,3),
        frames (B,L,3,3F), all axes of a residue side by side."""
        b, n, d = h.shape
        modulation = self.modulation(condition).unsqueeze(1)
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation.chunk(6, -1)
        q, k, value, gate = self.qkvg(self.norm1(h) * (1 + scale1) + shift1).chunk(4, -1)
        q, k, value = (
            z.view(b, n, self.heads, self.each).transpose(1, 2) for z in (q, k, value)
        )
        logits = torch.baddbmm(
            bias.flatten(0, 1), (self.q_norm(q) * self.each**-0.5).flatten(0, 1),
            self.k_norm(k).flatten(0, 1).transpose(-1, -2),
        )
        weight = logits.softmax(-1).view(b, self.heads, n, n)
        message = (weight @ value).transpose(1, 2).reshape(b, n, d)
        message = message * even(torch.sigmoid, gate)

        # sum_j w_ij (y_j - y_i) without a tensor of all differences, in full precision because
        # those of near residues are small beside the positions.
        carried = weight * pull
        with torch.autocast(y.device.type, enabled=False):
            carried = carried.to(y.dtype)
            ones = torch.cat((y, torch.ones_like(y[..., :1])), -1).unsqueeze(1)
            moved = carried @ ones
            vectors = moved[..., :3] - moved[..., 3:] * y.unsqueeze(1)
            seen = vectors.transpose(1, 2) @ frames  # (B, L, H, 3F)
        update = self.merge(torch.cat((message, seen.flatten(2).to(message.dtype)), -1))
        h = h + even(torch.sigmoid, gate1) * update

        left, right = self.expand(self.norm2(h) * (1 + scale2) + shift2).chunk(2, -1)
        return h + even(torch.sigmoid, gate2) * self.contract(silu(left) * right)


class Round(nn.Module):
    """Layers that look at a noisy chain x and a cleaner one y, and answer with a velocity."""

    def __init__(self, config: NetConfig):
        super().__init__()
        d, p = config.width, config.pair_width
        self.config = config
        self.frames = 2 if config.equivariant else 1
        self.count = config.layers // config.rounds
        # of both chains: neighbours in every frame, neighbours' distances; then y - x, x and y
        features = 2 * (2 * REACH) * (3 * self.frames + 1) + 3 * 3 * self.frames
        self.enter = nn.Linear(features, d)
        self.radial = Radial(config.radial)
        self.pair = nn.Linear(2 * config.radial + 6, p)
        self.pair_shift = nn.Linear(d, p)
        self.pair_heads = nn.Linear(p, 2 * self.count * config.heads)
        self.pair_scale = nn.Linear(d, 2 * self.count * config.heads)
        for layer in (self.pair_shift, self.pair_scale):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(
            Layer(d, config.heads, self.frames, config.widening) for _ in range(self.count)
        )
        self.norm = nn.LayerNorm(d)
        self.leave = nn.Linear(d, 3 * self.frames)
        nn.init.normal_(self.leave.weight, std=0.1 / math.sqrt(d))

    def geometry(
        self, x: Tensor, y: Tensor, places: Places, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features of residues (B,L,K) and of pairs (B,K,L,L) in ``dtype``, the axes of the frames
        (B,L,3,3F) and 1 / (1 + |y_i - y_j|), (B,1,L,L)."""
        b, n, _ = x.shape
        noisy, clean = _along(x, places.neighbours), _along(y, places.neighbours)
        if self.config.equivariant:
            middle = REACH
            smooth = _frames(
                noisy[middle + 1 :].mean(0), noisy[middle - 1 : middle + 2].mean(0),
                noisy[:middle].mean(0),
            )
            sharp = _frames(clean[middle + 1], clean[middle], clean[middle - 1])
            frames = torch.cat((smooth, sharp), -1)
        else:
            frames = torch.eye(3, dtype=x.dtype, device=x.device).expand(b, n, 3, 3)

        parts, typical = [], x.new_tensor(NEIGHBOUR_DISTANCE)
        typical = torch.cat((typical.flip(0), typical)).view(-1, 1, 1)
        change = (y - x) * places.rest * 0.3
        # bounded by its length, since a bound on each coordinate would not turn with the chain
        change = change * (1 + change.square().sum(-1, keepdim=True) / 64).rsqrt()
        vectors = [change, x, y]
        for z, near in ((x, noisy), (y, clean)):
            steps = torch.cat((near[:REACH], near[REACH + 1 :])) - z
            steps = steps * places.linked.unsqueeze(-1)
            length = (steps.square().sum(-1) + 1e-8).sqrt()
            excess = (length - typical) * places.linked * places.rest.squeeze(-1)
            parts.append(excess.clamp(-6, 6).permute(1, 2, 0))
            vectors += list(steps * 2.0)
        inside = torch.stack(vectors, 2) @ frames
        nodes = torch.cat((inside.flatten(2), *parts), -1)

        pairs, reach = [], x.new_zeros(())
        for z, frame in ((x, frames[..., :3]), (y, frames[..., -3:])):
            gap = z.unsqueeze(1) - z.unsqueeze(2)
            distance = (gap.square().sum(-1) + 1e-8).sqrt()
            reach = 1 / (1 + distance)
            towards = frame.transpose(-1, -2) @ (gap * (1 / distance).unsqueeze(-1)).mT
            pairs += [self.radial(distance, dtype), towards.transpose(1, 2).to(dtype)]
        return nodes, torch.cat(pairs, 1), frames, reach.unsqueeze(1)

    def forward(
        self, h: Tensor, relation: Tensor, x: Tensor, y: Tensor, condition: Tensor, places: Places
    ) -> tuple[Tensor, Tensor, Tensor]:
        """h (B,L,d) after the round, the pair features (B,p,L,L) and the velocity (B,L,3).

        ``relation`` (B or 1, p, L, L) embeds the separation along the sequence.
        """
        b, n, _ = x.shape
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            nodes, pairs, frames, reach = self.geometry(x, y, places, dtype)
        h = h + self.enter(nodes)
        # Channels before pairs, so that every sum runs over long rows.
        shift = self.pair_shift(condition) + self.pair.bias
        start = relation.to(dtype).flatten(2) + shift.to(dtype).unsqueeze(-1)
        z = silu(torch.baddbmm(start, self.pair.weight.expand(b, -1, -1), pairs.flatten(2)))
        scale = 1 + self.pair_scale(condition)
        heads = self.pair_heads.weight * scale.unsqueeze(-1)
        biases = torch.baddbmm(self.pair_heads.bias.view(-1, 1).to(dtype), heads, z)
        rows = biases.view(b, -1, n, n).split(self.config.heads, 1)
        reach = reach.to(dtype)
        for k, layer in enumerate(self.layers):
            bias = rows[2 * k] if places.absent is None else rows[2 * k] + places.absent
            h = layer(h, condition, bias, rows[2 * k + 1] * reach, y, frames)
        local = self.leave(self.norm(h)).to(x.dtype).unsqueeze(-1)
        with torch.autocast(device, enabled=False):
            velocity = (frames @ local).squeeze(-1)
        return h, z.view(b, -1, n, n), velocity


class ChainNet(nn.Module):
    """The denoiser of `protein.process`: E[x_1 | x_t] of centred alpha-carbon chains.

    ``forward(x, t, mask, cond, previous)`` takes chains x (B,L,3) in nm, times t (B,) in [0, 1],
    the residues that exist (B,L), the last answer (B,L,3) or None, and ``cond`` with ``label`` (B,)
    int64, the secondary-structure class (`process.NULL` for none), ``index`` (B,L) int64, residue
    numbers whose gaps are breaks of the chain, and a motif: residues ``known`` (B,L) with places
    ``motif`` (B,L,3) that the chain is to have. Any of them may be missing, and ``cond`` None. A
    motif is shown as part of the cleaner chain y; it binds nobody, samplers keep it.
    Residues must be a prefix of each row. Returns (B,L,3), centred, zero where the mask is False.
    """

    batched_guidance = True
    frequencies: Tensor

    def __init__(self, config: NetConfig):
        super().__init__()
        self.config = config
        d, p = config.width, config.pair_width
        self.register_buffer(
            "frequencies", torch.exp(torch.linspace(0.0, 5.0, 16)), persistent=False
        )
        self.summary = nn.Sequential(nn.Linear(66, d), nn.SiLU(), nn.Linear(d, d))
        self.label = nn.Embedding(NULL + 1, d)
        self.relation = nn.Embedding(2 * SEPARATIONS + 3, p)
        self.ends = nn.Linear(4, d)
        self.no_previous = nn.Parameter(torch.zeros(d))
        self.motif = nn.Parameter(torch.zeros(d))
        self.motif_pair = nn.Parameter(torch.zeros(p))
        self.rounds = nn.ModuleList(Round(config) for k in range(config.rounds))
        self.distogram = nn.Linear(p, config.distogram) if config.distogram else None

    @staticmethod
    def null(cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The condition without its label, for classifier-free guidance."""
        return {**cond, "label": torch.full_like(cond["label"], NULL)}

    def embed(
        self, t: Tensor, lengths: Tensor, label: Tensor, goal: Tensor | None = None
    ) -> Tensor:
        """Time, length and label as one vector a chain, (B, d); a plain network has no goal."""
        return silu(self.told(t, lengths, label))

    def told(self, t: Tensor, lengths: Tensor, label: Tensor) -> Tensor:
        rest = (-even(torch.log, 1.005 - t) / 5.3).unsqueeze(-1)
        angle = torch.cat((t.unsqueeze(-1), rest), -1).unsqueeze(-1) * self.frequencies
        waves = torch.cat((even(torch.sin, angle[:, 0]), even(torch.cos, angle[:, 1])), -1)
        size = even(torch.log, lengths / 80.0).unsqueeze(-1)
        extra = torch.cat((waves, even(torch.sin, angle.flatten(1)), size, rest), -1)
        return self.summary(extra) + self.label(label)

    def places(self, mask: Tensor | None, index: Tensor | None, x: Tensor, t: Tensor) -> Places:
        b, n, _ = x.shape
        steps = torch.arange(-REACH, REACH + 1, device=x.device).view(-1, 1, 1)
        rows = torch.arange(n, device=x.device) + steps
        last = x.new_full((1, b, 1), n - 1, dtype=torch.int64)
        absent = None
        if mask is not None:
            last = mask.sum(1).view(1, -1, 1) - 1
            absent = torch.where(mask, 0.0, -1e4)[:, None, None, :].to(x.dtype)
        clamped = rows.expand(-1, b, -1).clamp(min=0).minimum(last.clamp(min=0))
        linked = (rows >= 0) & (rows <= last)
        if index is not None:
            number = index.expand(2 * REACH + 1, b, n).gather(2, clamped)
            linked = linked & (number - index == steps)
        linked = torch.cat((linked[:REACH], linked[REACH + 1 :])).to(x.dtype)
        return Places(clamped, linked, absent, (1 / (1.02 - t)).view(-1, 1, 1))

    def answer(
        self, x: Tensor, t: Tensor, mask: Tensor | None = None,
        cond: Mapping[str, Any] | None = None, previous: Tensor | None = None,
        goal: Tensor | None = None,
    ) -> Answer:
        """The denoised chains of all rounds and the distogram; arguments as for ``forward``.

        ``goal`` (B,) is the time a `JumpNet` jumps to.
        """
        b, n, _ = x.shape
        cond = cond or {}
        index, label = cond.get("index"), cond.get("label")
        if label is None:
            label = torch.full((b,), NULL, dtype=torch.int64, device=x.device)
        whole = torch.full((b,), n, device=x.device)
        lengths = (whole if mask is None else mask.sum(1)).to(x.dtype)
        condition = self.embed(t, lengths, label, goal)
        places = self.places(mask, index, x, t)
        rows = torch.arange(n, device=x.device).expand(b, n)
        number = rows[:1] if index is None else index
        separation = number.unsqueeze(1) - number.unsqueeze(2)
        bins = separation.clamp(-SEPARATIONS - 1, SEPARATIONS + 1) + SEPARATIONS + 1
        relation = self.relation(bins).permute(0, 3, 1, 2)
        from_end = torch.stack((rows, lengths.unsqueeze(1) - 1 - rows), -1).to(x.dtype)
        ends = torch.cat((even(torch.exp, -from_end / 4), from_end / 64), -1)
        h = self.ends(ends)
        if previous is None:
            h = h + self.no_previous

        rest = (1 - t).view(-1, 1, 1)
        size2 = chain_size(lengths).view(-1, 1, 1).square()
        beta = t.view(-1, 1, 1)
        skip = (beta * size2 - rest) / (beta.square() * size2 + rest.square())
        velocity = skip * x
        y, answers = (x if previous is None else previous), []
        known = cond.get("known")
        if known is not None:
            shown = known.unsqueeze(-1)
            h = h + shown * self.motif
            both = (known.unsqueeze(1) & known.unsqueeze(2)).unsqueeze(1)
            relation = relation + both * self.motif_pair.view(-1, 1, 1)
            y = torch.where(shown, cond["motif"], y)
        for k, part in enumerate(self.rounds):
            h, z, update = part(h, relation, x, y, condition, places)
            velocity = Centred().project(velocity + update, mask)
            y = x + rest * velocity
            answers.append(y)
            if k + 1 < len(self.rounds):
                y = y.detach()  # frames of a chain that still moves would amplify gradients
                y = y if known is None else torch.where(known.unsqueeze(-1), cond["motif"], y)
        bins_of = None
        if self.distogram is not None:
            logits = self.distogram(z.permute(0, 2, 3, 1))
            bins_of = logits + logits.transpose(1, 2)
        return Answer(tuple(answers), bins_of)

    def forward(
        self, x: Tensor, t: Tensor, mask: Tensor | None = None,
        cond: Mapping[str, Any] | None = None, previous: Tensor | None = None,
    ) -> Tensor:
        return self.answer(x, t, mask, cond, previous).denoised[-1]


class JumpNet(ChainNet):
    """The `core.flowmap.JumpModel` of chains: a `ChainNet` that is also told where it goes.

    ``forward(x, t, s, mask, cond)`` is the mean of the denoised chain along the flow from t to s,
    both (B,). What it is told starts without effect, so with a teacher's weights it begins as the
    teacher's denoiser.
    """

    def __init__(self, config: NetConfig):
        super().__init__(config)
        d = config.width
        last = nn.Linear(d, d)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.goal = nn.Sequential(nn.Linear(34, d), nn.SiLU(), last)

    def embed(
        self, t: Tensor, lengths: Tensor, label: Tensor, goal: Tensor | None = None
    ) -> Tensor:
        s = t if goal is None else goal
        way = torch.stack(((s - t), even(torch.log, (1.005 - t) / (1.005 - s)) / 5.3), -1)
        angle = way.unsqueeze(-1) * self.frequencies
        waves = torch.cat((even(torch.sin, angle.flatten(1)), way), -1)
        return silu(self.told(t, lengths, label) + self.goal(waves))

    def forward(  # type: ignore[override]
        self, x: Tensor, t: Tensor, s: Tensor, mask: Tensor | None = None,
        cond: Mapping[str, Any] | None = None,
    ) -> Tensor:
        return self.answer(x, t, mask, cond, None, s).denoised[-1]


def build(config: NetConfig, seed: int = 0) -> ChainNet:
    """A network with initial weights from ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return ChainNet(config)


def build_jumping(config: NetConfig, seed: int = 0) -> JumpNet:
    """A `JumpNet` as ``build`` makes a `ChainNet`."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return JumpNet(config)
