r"""Tilts: the model's law times e^h, for rewards and for observations, with exact weights.

    p_t ~ q_t e^h_t,      wanted: e^h at t = 1

For any differentiable h(x, t) the weights of `core.feynman_kac` are exact; how even they are, and
so how many samples a run is worth, depends on how near e^h_t is to the mean of e^h_1 given x_t. The
two tilts built here take that mean for Gaussian data of a given scale: `reward` roughly, by r at
their denoised state, `linear_observation` exactly, as the likelihood of y given x_t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from driftworks.core.feynman_kac import Reference
from driftworks.core.laws import Gaussian
from driftworks.core.paths import Path
from driftworks.core.predict import per_sample
from driftworks.core.process import Masks, Process
from driftworks.core.spaces import Flat
from driftworks.core.weigh import Noise, Target, Tilt, product, references
from driftworks.errors import UserError

__all__ = ["linear_observation", "reward", "tilt"]


def tilt(
    process: Process,
    h: Callable[[Any, Tensor], Tensor],
    *,
    laplacian: Callable[[Any, Tensor, Masks], Any] | None = None,
    drift: float | None = None,
    noise: Noise | None = None,
    of: Target | None = None,
) -> Target:
    """q e^h with h(x, t), or another target (``of``) times e^h.

    Args:
        process: what the state is made of; all parts real.
        h: differentiable in the state x and the times t (B,), float64; returns (B,). Any h is
            right as long as h(x, 1) is the wanted tilt; the nearer e^h_t is to the mean of e^h_1
            given x_t, the more even the weights. Its gradient should vanish with beta.
        laplacian: of h in x, ``laplacian(x, t, mask)`` to (B,), or to a dict of them by part.
        drift: k in units of lam. 1, the default with a Laplacian, is the drift of the tilted law's
            own flow; 0, the default without, spends eps grad h only and needs no Laplacian.
        noise: as in `product`; not needed for drift 1 where the experts' weights sum to 1.
        of: what is tilted, by default the model's own law; brings its noise unless one is given.
    """
    if drift is None:
        drift = 1.0 if laplacian is not None else 0.0
    if drift != 0.0 and laplacian is None:
        raise UserError(f"a drift of {drift:g} lam grad h needs the Laplacian of h")
    if of is None:
        of = product(process, {"model": (None, 1.0)})
    if of.process is not process:
        raise UserError("the target to be tilted belongs to another process")
    if of.tilt is not None:
        raise UserError("the target is tilted already: add the two functions h")
    return replace(of, tilt=Tilt(h, laplacian, drift), noise=of.noise if noise is None else noise)


def reward(
    process: Process,
    r: Callable[[Any], Tensor],
    *,
    scale: float | Mapping[str, float] = 1.0,
    noise: Noise | None = None,
    of: Target | None = None,
) -> Target:
    """q e^r for a differentiable reward r(x) (B,) of the data.

    On the way r is taken at the denoised state of centred Gaussian data of this ``scale``,
    x beta scale^2 / V: constant at beta = 0, where the start is exact, and r itself at the end.
    """
    refs = references(process, scale)
    if any(math.isinf(ref.scale) for ref in refs.values()):
        raise UserError("a reward needs a finite scale of the data")

    def h(x: Any, t: Tensor) -> Tensor:
        out = {}
        for name, part in process.unpack(x).items():
            path, ref = process.parts[name].path, refs[name]
            assert isinstance(path, Path)
            gain = ref.scale**2 * path.beta(t) / ref.spread(path, t)
            out[name] = per_sample(gain, part) * part
        return r(process.pack(out))

    return tilt(process, h, noise=noise, of=of)


def linear_observation(
    process: Process,
    matrix: Tensor,
    y: Tensor,
    variance: float,
    *,
    reference: float | Gaussian = 1.0,
    of: Target | None = None,
) -> Target:
    """The posterior of data x1 given y = A x1 + N(0, variance I); normaliser: the evidence p(y).

    On the way h_t is the likelihood for Gaussian data with the law of ``reference``,

        h_t(x) = log N(y; A D_r(x), variance I + C A A'),      C = scale^2 sigma^2 / V,

    which ends on the likelihood for all data, and for the reference makes every weight equal. Its
    Laplacian -gain^2 tr A' Cov^-1 A is known, so the drift is that of the posterior's own flow.

    Args:
        matrix: A (M, n), acting on the entry flattened to n numbers.
        y: (M,), or (B, M) for observations by sample.
        variance: of the observation's noise.

    Raises UserError for a process of several parts or with a constraint on its entries.
    """
    if not process.single or type(process.parts["x"].space) is not Flat:
        raise UserError("a linear observation is of a process of one part in a Flat space")
    if not 0.0 < variance < math.inf:
        raise UserError(f"the variance of an observation must be positive, got {variance}")
    matrix, y = matrix.detach().double(), y.detach().double()
    if matrix.ndim != 2 or y.shape[-1:] != matrix.shape[:1]:
        raise UserError(
            f"matrix (M, n) and y (M,) or (B, M) do not fit: {tuple(matrix.shape)}, "
            f"{tuple(y.shape)}"
        )
    path, ref = process.parts["x"].path, Reference.of(reference)
    assert isinstance(path, Path)
    if math.isinf(ref.scale):
        raise UserError("a linear observation needs a finite scale of the data")
    lengths, axes = torch.linalg.eigh(matrix @ matrix.mT)
    rows, seen = axes.mT @ matrix, y @ axes

    def spread(t: Tensor) -> tuple[Tensor, Tensor]:
        v = ref.spread(path, t)
        left = ref.scale**2 * path.sigma(t) ** 2 / v
        gain = ref.scale**2 * path.beta(t) / v
        return gain, variance + left[:, None] * lengths.to(t.device).clamp(min=0.0)

    def h(x: Tensor, t: Tensor) -> Tensor:
        gain, cov = spread(t)
        wide = x.double()
        z = wide - per_sample(path.beta(t), wide) * ref.shift(wide)
        guess = ref.shift(wide) + per_sample(gain, wide) * z
        gap = seen.to(x.device) - guess.flatten(1) @ rows.to(x.device).mT
        return -0.5 * (gap * gap / cov + torch.log(2.0 * math.pi * cov)).sum(1)

    def laplacian(x: Tensor, t: Tensor, mask: Masks) -> Tensor:
        gain, cov = spread(t)
        squares = rows.to(x.device).square()
        entries = Flat().entry_mask(process.mask_of("x", mask), x)
        if entries is None:
            weights = squares.sum(1)
        else:
            weights = entries.expand_as(x).flatten(1).double() @ squares.mT
        return -(gain**2) * (weights / cov).sum(1)

    return tilt(process, h, laplacian=laplacian, of=of)
