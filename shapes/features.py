r"""Features optimised for one pair of shapes, or a collection: a small diffusion network.

The network is the same for all shapes and starts at random (Sharp, Attaiki, Crane & Ovsjanikov,
"DiffusionNet", TOG 2022, without its gradient features). Each block lets every channel f diffuse
along the surface for a time of its own and then acts point by point:

    h = Phi exp(-lambda t) Phi^+ f          f <- f + W2 relu(W1 [f, h] + b1) + b2

on sampled vertices only, where Phi^+ is the pseudo-inverse of the eigenfunctions at the samples.
Its input is wave kernel signatures, or coordinates in frames that correspond.

Nothing tells it what is right, but that a good pair of features has a functional map that agrees
with a vertex map and looks like a map. With A, B the coefficients of features,

    C_raw      least squares C A = B
    C_masked   the same with the penalties that the prior gives C_raw (`prior.posterior_penalty`)
    C_proper   what a few rounds of ZoomOut make of C_masked: the map of a vertex map

    loss = |C_raw - C_proper|^2 + w | |C_raw| - E_n D(|C_raw| + n) |^2

with D the prior's denoiser; no gradient passes through mask, ZoomOut or denoiser, and the second
term is score distillation, as DiffuMatch (2025) uses it for maps, in its clean form: a step towards
what the prior makes of the noisy map (`core.distill.sds_gradient`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from driftworks.core.distill import sds_gradient
from driftworks.core.keys import Keys
from driftworks.errors import UserError
from driftworks.shapes import fmaps
from driftworks.shapes.prior import SIGMA_MAX, Prior, as_model, map_process, posterior_penalty
from driftworks.shapes.surface import Surface
from driftworks.shapes.zoomout import zoomout

__all__ = ["FeatureNet", "optimise"]

Array = NDArray[np.float64]

_DIFFUSION = 64  # functions that features diffuse in
_LEVELS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # noise on |C| that distillation looks at
_ZOOM = 10  # functions that ZoomOut adds on the way to C_proper


class FeatureNet(torch.nn.Module):
    """Features (s, out) of sampled vertices from inputs (s, d); weights are functions of the seed.

    width: channels; blocks: number of diffusion blocks
    """

    def __init__(
        self, inputs: int, *, width: int = 96, out: int = 96, blocks: int = 2, seed: int = 0
    ):
        super().__init__()
        keys = Keys.for_samples(seed, [0])

        def weights(name: str, rows: int, columns: int) -> torch.nn.Parameter:
            drawn = keys.normal(f"features/{name}", 0, (rows, columns))[0]
            return torch.nn.Parameter(drawn / rows**0.5)

        self.first = weights("first", inputs, width)
        # times from a thousandth of the area to a tenth, evenly in the logarithm
        self.times = torch.nn.ParameterList(
            torch.nn.Parameter(torch.linspace(-7.0, -2.3, width)) for _ in range(blocks)
        )
        self.inner = torch.nn.ParameterList(
            weights(f"inner{i}", 2 * width, width) for i in range(blocks)
        )
        self.outer = torch.nn.ParameterList(
            weights(f"outer{i}", width, width) for i in range(blocks)
        )
        self.shift = torch.nn.ParameterList(
            torch.nn.Parameter(torch.zeros(width)) for _ in range(blocks)
        )
        self.last = weights("last", width, out)

    def forward(self, x: Tensor, values: Tensor, functions: Tensor, inverse: Tensor) -> Tensor:
        """x (s, d), eigenvalues (k,), eigenfunctions (s, k) at the samples, inverse (k, s)."""
        f = x @ self.first
        for times, inner, outer, shift in zip(
            self.times, self.inner, self.outer, self.shift, strict=True
        ):
            decay = torch.exp(-values[:, None] * times.exp())
            diffused = functions @ (decay * (inverse @ f))
            f = f + torch.relu(torch.cat([f, diffused], 1) @ inner + shift) @ outer
        return f @ self.last


@dataclass(frozen=True, eq=False)
class _Side:
    """What the network needs of a shape, on its samples, in float32."""

    surface: Surface
    x: Tensor
    values: Tensor
    functions: Tensor
    inverse: Tensor
    project: Tensor

    @classmethod
    def of(cls, surface: Surface, inputs: Array, k: int) -> _Side:
        chosen = surface.samples
        count = min(_DIFFUSION, len(surface.basis), len(chosen) // 2)
        phi = surface.basis.functions[chosen, :count]
        x = inputs[chosen]
        x = (x - x.mean(0)) / (x.std(0) + 1e-9)
        arrays = (
            x,
            surface.basis.values[:count],
            phi,
            np.linalg.pinv(phi),
            np.linalg.pinv(phi[:, :k]),
        )
        return cls(surface, *(torch.from_numpy(a.copy()).float() for a in arrays))

    def features(self, net: FeatureNet) -> Tensor:
        return net(self.x, self.values, self.functions, self.inverse)


def optimise(
    pairs: Sequence[tuple[Surface, Surface]],
    inputs: Sequence[tuple[Array, Array]],
    prior: Prior,
    *,
    steps: int = 100,
    k: int = 30,
    weight: float = 1.0,
    distillation: float = 0.1,
    rate: float = 1e-3,
    seed: int = 0,
) -> list[Array]:
    """Train one network on pairs of shapes without labels; returns C (k, k) of each pair, a to b.

    inputs: for each pair descriptors (n, d) of both shapes
    weight: of the prior's penalties; distillation: of the prior's second term
    A step takes one pair, in turn. Raises `UserError` for sizes that do not fit.
    """
    if not pairs or len(pairs) != len(inputs) or steps < 1:
        raise UserError("optimising features takes one step or more and a pair or more with inputs")
    widths = {x.shape[1] for both in inputs for x in both}
    if len(widths) != 1:
        raise UserError(f"inputs of all shapes have one width, not {sorted(widths)}")
    sides = []
    for (a, b), (of_a, of_b) in zip(pairs, inputs, strict=True):
        size = min(
            k, prior.k, len(a.basis), len(b.basis), len(a.samples) // 3, len(b.samples) // 3
        )
        sides.append((_Side.of(a, of_a, size), _Side.of(b, of_b, size)))
    net = FeatureNet(widths.pop(), seed=seed)
    optimiser = torch.optim.Adam(net.parameters(), rate)
    for step in range(steps):
        one, two = sides[step % len(sides)]
        loss = _loss(net, one, two, prior, weight, distillation, seed, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        return [_maps(net, one, two, prior, weight)[1].double().numpy() for one, two in sides]


def _maps(
    net: FeatureNet, one: _Side, two: _Side, prior: Prior, weight: float
) -> tuple[Tensor, Tensor]:
    """C_raw, with gradient, and C_masked."""
    a, b = one.project @ one.features(net), two.project @ two.features(net)
    k = len(a)
    ridge = 1e-4 * (a.detach() ** 2).sum() / k * torch.eye(k)
    raw = torch.linalg.solve(a @ a.T + ridge, a @ b.T).T
    values = one.values[:k], two.values[:k]
    penalties = posterior_penalty(prior, raw, *values)
    return raw, fmaps.fit(a.detach(), b.detach(), penalties, weight)


def _loss(
    net: FeatureNet,
    one: _Side,
    two: _Side,
    prior: Prior,
    weight: float,
    distillation: float,
    seed: int,
    step: int,
) -> Tensor:
    raw, masked = _maps(net, one, two, prior, weight)
    k = len(raw)
    a, b = (side.surface.sampled(len(side.surface.samples)) for side in (one, two))
    grown = min(k + _ZOOM, len(a), len(b), a.vertices // 3, b.vertices // 3)
    chosen = np.arange(a.vertices), np.arange(b.vertices)
    _, at_a = zoomout(
        masked.double().numpy(),
        a.first(grown),
        b.first(grown),
        grown,
        5,
        samples1=chosen[0],
        samples2=chosen[1],
    )
    proper = two.project @ one.functions[torch.from_numpy(at_a), :k]
    loss = torch.square(raw - proper).mean()
    if distillation > 0:
        size = raw.abs()
        values = one.values[None, :k], two.values[None, :k]
        count = len(_LEVELS)
        model = as_model(prior, *(v.expand(count, k) for v in values))
        keys = Keys.for_samples(seed, [1 + step])
        times = [1 - sigma / SIGMA_MAX for sigma in _LEVELS]
        pull = sds_gradient(model, map_process(), size.detach()[None], times, keys)
        assert isinstance(pull, Tensor)
        loss = loss + distillation * torch.square(size - (size.detach() - pull[0])).mean()
    return loss
