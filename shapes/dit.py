r"""A transformer that takes the noise out of functional maps, in patches, at any of several sizes.

The prior knows the mean mu_ij and variance v_ij of every entry. Around them the network F is
preconditioned as in EDM (Karras et al. 2022, section 5), with a variance for each entry instead of
one for all data, so that F = 0 is the posterior mean of independent Gaussian entries and F's target
has unit variance where entries are that:

    D(x; sigma) = mu + v / (v + sigma^2) (x - mu)
                     + sigma sqrt(v / (v + sigma^2)) F((x - mu) / sqrt(v + sigma^2); log sigma)

F is a DiT (Peebles & Xie 2023): a matrix is cut into patches of 5 x 5, each a token, and sigma
enters every layer through adaptive layer norms whose gates start at 0. A token's position is the
pair of its patch row and patch column, counted from the first eigenfunction, each with an embedding
of its own: so one network serves every size k that is a multiple of 5, and shapes of different k.
Of other sizes it sees the largest such block at the head, if that has 30 functions or more; entries
outside of it are answered with F = 0.

Eigenvalues. Where two of them are close, their functions may have changed places in one of the
shapes, and only the eigenvalues tell. In units of Weyl's law (4 pi to each function of a surface of
area 1) a token sees the difference d = (l2_i - l1_j) / 4 pi of each of its entries as d / (1 + |d|)
and, of its rows and columns, the gaps and the deviation from the law. A matrix whose eigenvalues
are not given has zeros there and is marked; the training leaves them out now and then.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from driftworks.errors import UserError
from driftworks.shapes.prior import check_maps, denoising_energy

__all__ = ["LEAST", "MapNet", "NetConfig", "Network", "build"]

#: The smallest size that a network is trained for.
LEAST = 30
#: Eigenvalues of a surface of area 1 grow by this much each (Weyl).
_WEYL = 4 * math.pi
_FREQUENCIES = 16


class NetConfig(BaseModel):
    """Sizes of the network, saved in every checkpoint.

    ``k`` is the largest size it serves, ``sigma_data`` the deviation of entries from their mean in
    the data, as measured on the first 30 functions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: Annotated[int, Field(ge=LEAST)] = 100
    patch: Annotated[int, Field(ge=1)] = 5
    width: Annotated[int, Field(ge=16)] = 96
    heads: Annotated[int, Field(ge=1)] = 4
    layers: Annotated[int, Field(ge=1)] = 4
    sigma_data: Annotated[float, Field(gt=0)] = 0.1

    @model_validator(mode="after")
    def _fits(self) -> NetConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        if self.k % self.patch or LEAST % self.patch:
            raise ValueError(f"k {self.k} and {LEAST} must be multiples of the patch {self.patch}")
        return self


class _Layer(nn.Module):
    """Attention and a perceptron, modulated by the noise level."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(d, elementwise_affine=False)
        self.modulation = nn.Linear(d, 6 * d)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.qkv = nn.Linear(d, 3 * d)
        self.merge = nn.Linear(d, d)
        self.expand = nn.Linear(d, 4 * d)
        self.contract = nn.Linear(4 * d, d)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """h (B, T, d), condition (B, d)."""
        b, tokens, d = h.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self.modulation(condition).unsqueeze(1).chunk(6, -1)
        )
        q, k, v = (
            self.qkv(self.norm(h) * (1 + scale1) + shift1)
            .view(b, tokens, 3, self.heads, d // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        h = h + gate1 * self.merge(mixed.transpose(1, 2).reshape(b, tokens, d))
        inner = functional.gelu(self.expand(self.norm(h) * (1 + scale2) + shift2))
        return h + gate2 * self.contract(inner)


class MapNet(nn.Module):
    """F of the module's docstring.

    ``forward(y, level, values1, values2)`` takes scaled matrices (B, k2, k1), the logarithm (B,) of
    sigma, eigenvalues (B, k1) and (B, k2), rows of NaN where they are not known; returns
    (B, k2, k1).
    """

    frequencies: Tensor

    def __init__(self, config: NetConfig):
        super().__init__()
        self.config = config
        d, p = config.width, config.patch
        self.inside = nn.Linear(2 * p * p, d)
        positions = _waves(config.k // p, d)
        self.row = nn.Parameter(positions)
        self.column = nn.Parameter(positions.flip(1).clone())
        self.row_values = nn.Linear(2 * p, d, bias=False)
        self.column_values = nn.Linear(2 * p, d, bias=False)
        self.register_buffer(
            "frequencies", torch.exp(torch.linspace(-1.0, 3.0, _FREQUENCIES)), persistent=False
        )
        self.level = nn.Sequential(nn.Linear(2 * _FREQUENCIES + 1, d), nn.SiLU(), nn.Linear(d, d))
        self.layers = nn.ModuleList(_Layer(d, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(d, elementwise_affine=False)
        self.modulation = nn.Linear(d, 2 * d)
        self.out = nn.Linear(d, p * p)
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, y: Tensor, level: Tensor, values1: Tensor, values2: Tensor) -> Tensor:
        b, k2, k1 = y.shape
        p = self.config.patch
        rows, columns = k2 // p, k1 // p
        known = ~(values1.isnan().any(1) | values2.isnan().any(1))
        shown = known.to(y.dtype).view(-1, 1, 1)
        first, second = values1.nan_to_num() / _WEYL, values2.nan_to_num() / _WEYL
        apart = second.unsqueeze(2) - first.unsqueeze(1)
        apart = shown * apart / (1 + apart.abs())
        tokens = torch.cat((self._patches(y), self._patches(apart)), -1)
        h = self.inside(tokens).view(b, rows, columns, -1)
        of_rows = self.row[:rows] + self.row_values(self._spectrum(second) * shown)
        of_columns = self.column[:columns] + self.column_values(self._spectrum(first) * shown)
        h = (h + of_rows.unsqueeze(2) + of_columns.unsqueeze(1)).flatten(1, 2)
        angle = level.unsqueeze(1) * self.frequencies
        condition = functional.silu(
            self.level(torch.cat((angle.sin(), angle.cos(), shown.view(-1, 1)), 1))
        )
        for layer in self.layers:
            h = layer(h, condition)
        shift, scale = self.modulation(condition).unsqueeze(1).chunk(2, -1)
        out = self.out(self.norm(h) * (1 + scale) + shift).float()
        return out.view(b, rows, columns, p, p).transpose(2, 3).reshape(b, k2, k1)

    def _patches(self, y: Tensor) -> Tensor:
        """(B, rows columns, p p) patches of (B, k2, k1)."""
        p = self.config.patch
        cut = y.unflatten(2, (-1, p)).unflatten(1, (-1, p))
        return cut.transpose(2, 3).flatten(3).flatten(1, 2)

    def _spectrum(self, values: Tensor) -> Tensor:
        """(B, k / p, 2 p) logarithms of gaps, and of eigenvalues over Weyl's, patch by patch."""
        gap = torch.diff(values, dim=1, prepend=values[:, :1]).clamp(min=0)
        index = torch.arange(values.shape[1], device=values.device, dtype=values.dtype)
        excess = torch.log1p(values.clamp(min=0)) - torch.log1p(index)
        p = self.config.patch
        return torch.cat((torch.log1p(gap).unflatten(1, (-1, p)), excess.unflatten(1, (-1, p))), -1)


def _waves(count: int, width: int) -> Tensor:
    """(count, width) sines and cosines of the numbers from 0, at falling frequencies."""
    rate = torch.exp(-math.log(100.0) * torch.arange((width + 1) // 2) / ((width + 1) // 2))
    angle = torch.arange(count)[:, None] * rate
    return 0.2 * torch.cat((angle.sin(), angle.cos()), 1)[:, :width]


def build(config: NetConfig, seed: int = 0) -> MapNet:
    """A network with initial weights from ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return MapNet(config)


class Network:
    """The prior of a network: D of the module's docstring.

    net: F, whose configuration says the sizes
    mean, variance: (k, k) of the entries of training maps
    """

    name = "network"

    def __init__(self, net: MapNet, mean: Tensor, variance: Tensor):
        self.net, self.config = net, net.config
        self.k = net.config.k
        if not mean.shape == variance.shape == (self.k, self.k):
            raise UserError(
                f"mean {tuple(mean.shape)} and variance {tuple(variance.shape)} are not those of "
                f"maps of {self.k} functions"
            )
        self.mean = mean.float()
        # an entry that hardly varies in training may do so in another category
        self.variance = variance.float().clamp(min=(0.3 * net.config.sigma_data) ** 2)

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.net.parameters())
        return f"Network({count / 1e6:.2f} M parameters, k from {LEAST} to {self.k})"

    def to(self, device: torch.device | str) -> Network:
        """The prior on a device."""
        self.net.to(device)
        self.mean, self.variance = self.mean.to(device), self.variance.to(device)
        return self

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        values1: Tensor | None = None,
        values2: Tensor | None = None,
    ) -> Tensor:
        k2, k1 = check_maps(x, self.k)
        head2, head1 = (k - k % self.config.patch for k in (k2, k1))
        given = []
        for name, values, k in (("values1", values1, k1), ("values2", values2, k2)):
            if values is None:
                values = x.new_full((len(x), k), torch.nan)
            elif values.shape != (len(x), k):
                raise UserError(f"{name} are {(len(x), k)}, not {tuple(values.shape)}")
            given.append(values.to(x)[:, : head1 if name == "values1" else head2])
        s = sigma.to(x).view(-1, 1, 1)
        mean, variance = self.mean[:k2, :k1].to(x), self.variance[:k2, :k1].to(x)
        total = variance + s.square()
        y = x - mean
        answer = mean + variance / total * y
        if min(head1, head2) < LEAST:
            return answer
        head = (..., slice(head2), slice(head1))
        found = self.net((y * total.rsqrt())[head], s.flatten().log(), *given)
        answer[head] += s * (variance / total)[head].sqrt() * found
        return answer

    def energy(
        self, x: Tensor, values1: Tensor | None = None, values2: Tensor | None = None
    ) -> Tensor:
        return denoising_energy(self, x, values1, values2)
