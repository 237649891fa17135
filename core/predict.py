r"""One algebra for everything a network may predict.

The canonical pair is (D, e) = (E[x1 | x_t], E[noise | x_t]): what is behind the noise and the noise
itself. The state fixes one combination of the two, and a prediction p fixes another:

    x        = beta D  + sigma e
    denoised = D
    noise    = e
    velocity = beta' D + sigma' e        d x_t / dt, the drift of the probability flow
    score    = -e / sigma                grad log rho_t(x)
    vparam   = beta e  - sigma D         the "v" of progressive distillation, not the velocity

Solving the two lines gives D = d_x x + d_p p and e = e_x x + e_p p with four numbers that depend on
time only, and any conversion is again c_x x + c_p p. Those numbers are formed in float64 and only
then rounded to the dtype of x.

Ends. ``velocity`` and ``vparam`` give the pair at both ends. Where sigma = 0, x = beta D says
nothing about the noise, and where beta = 0, x = sigma e says nothing about the data; the missing
member is then 0, the mean of the noise being 0. With it the score is 0 where sigma = 0, and the VP
velocity, whose sigma' is infinite there, is beta' D. So every conversion is finite at both ends.

Time has shape (B,) and belongs to the first dimension of x, whatever the other dimensions are; a
float is shared by the batch and costs no tensor.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from driftworks.core.paths import Path
from driftworks.errors import UserError

__all__ = [
    "PARAMETRISATIONS",
    "Pair",
    "Precondition",
    "Scalings",
    "as_denoised",
    "as_noise",
    "as_pair",
    "as_score",
    "as_velocity",
    "as_vparam",
    "check",
    "convert",
    "fit_scale",
    "from_pair",
    "interpolate",
    "per_sample",
    "weights",
]

PARAMETRISATIONS = ("denoised", "noise", "velocity", "score", "vparam")

Number = Any  # a float, or a float64 tensor of times' shape


class Pair(NamedTuple):
    """The posterior means of data and noise given x_t, both of the shape of x."""

    denoised: Tensor
    noise: Tensor


def check(predicts: str) -> str:
    """Return ``predicts`` if it names a parametrisation; UserError otherwise."""
    if predicts not in PARAMETRISATIONS:
        choices = ", ".join(PARAMETRISATIONS)
        raise UserError(f"unknown parametrisation {predicts!r}; choose one of {choices}")
    return predicts


def per_sample(value: float | Tensor, x: Tensor) -> float | Tensor:
    """Shape a number per sample, (B,), as (B, 1, ..., 1) of the dtype and device of x (B, ...).

    Floats and 0-dim tensors concern every sample. Any other shape raises ValueError, so that a
    per-sample number never meets a trailing dimension of the same length by accident.
    """
    if not isinstance(value, Tensor):
        return value
    if value.ndim:
        if value.ndim != 1 or x.ndim < 1 or value.shape[0] not in (1, x.shape[0]):
            raise ValueError(
                f"a number per sample has shape (B,) with x (B, ...), got {tuple(value.shape)} "
                f"with x {tuple(x.shape)}"
            )
        value = value.reshape(-1, *[1] * (x.ndim - 1))
    return value.to(dtype=x.dtype, device=x.device)


def _combine(weight_x: Number, x: Tensor, weight_p: Number, p: Tensor) -> Tensor:
    if isinstance(weight_x, Tensor) or isinstance(weight_p, Tensor):
        return per_sample(weight_x, x) * x + per_sample(weight_p, x) * p
    if weight_x == 0.0:
        return p if weight_p == 1.0 else p * weight_p
    return torch.add(x * weight_x, p, alpha=weight_p)


def _over(numerator: Number, denominator: Number) -> Number:
    """Quotient, 0 where the denominator is 0 or infinite: the convention for the ends."""
    if not isinstance(denominator, Tensor):
        return numerator / denominator if denominator and math.isfinite(denominator) else 0.0
    usable = (denominator != 0.0) & denominator.isfinite()
    return torch.where(usable, numerator, 0.0) / torch.where(usable, denominator, 1.0)


def _finite(value: Number) -> Number:
    if isinstance(value, Tensor):
        return torch.where(value.isfinite(), value, 0.0)
    return value if math.isfinite(value) else 0.0


def _solve(path: Path, t: Number, predicts: str) -> tuple[Number, Number, Number, Number]:
    """(d_x, d_p, e_x, e_p) of D = d_x x + d_p p and e = e_x x + e_p p."""
    beta, sigma = path.beta(t), path.sigma(t)
    if predicts == "denoised":
        return 0.0, 1.0, _over(1.0, sigma), -_over(beta, sigma)
    if predicts == "noise":
        return _over(1.0, beta), -_over(sigma, beta), 0.0, 1.0
    if predicts == "score":
        return _over(1.0, beta), _over(sigma * sigma, beta), 0.0, -sigma
    if predicts == "vparam":
        norm = beta * beta + sigma * sigma
        return beta / norm, -sigma / norm, sigma / norm, beta / norm
    dbeta, dsigma, w = path.dbeta(t), path.dsigma(t), path.wronskian(t)
    # an infinite sigma' (VP at t = 1) leaves D = x / beta; elsewhere its weight is -sigma' / w
    missing = _over(1.0, beta) * (w == math.inf)
    return missing - _over(dsigma, w), _over(sigma, w), _over(dbeta, w), -_over(beta, w)


def _express(path: Path, t: Number, predicts: str) -> tuple[Number, Number]:
    """(p_D, p_e) of p = p_D D + p_e e."""
    if predicts == "denoised":
        return 1.0, 0.0
    if predicts == "noise":
        return 0.0, 1.0
    if predicts == "score":
        return 0.0, -_over(1.0, path.sigma(t))
    if predicts == "vparam":
        return -path.sigma(t), path.beta(t)
    return path.dbeta(t), _finite(path.dsigma(t))


def weights(path: Path, t: float | Tensor, source: str, target: str) -> tuple[Number, Number]:
    """The numbers (c_x, c_p) with target = c_x x + c_p source, in float64.

    Floats for a float t, tensors of t's shape (or floats, where time does not matter) for a tensor.
    Raises UserError for an unknown name.
    """
    if check(source) == check(target):
        return 0.0, 1.0
    d_x, d_p, e_x, e_p = _solve(path, t, source)
    p_d, p_e = _express(path, t, target)
    return p_d * d_x + p_e * e_x, p_d * d_p + p_e * e_p


def convert(
    path: Path, prediction: Tensor, x: Tensor, t: float | Tensor, source: str, target: str
) -> Tensor:
    """Turn a prediction of kind ``source`` at state x (B, ...) and time t into kind ``target``."""
    c_x, c_p = weights(path, t, source, target)
    return _combine(c_x, x, c_p, prediction)


def as_pair(path: Path, prediction: Tensor, x: Tensor, t: float | Tensor, predicts: str) -> Pair:
    """The canonical (denoised, noise) behind a prediction; shapes of x (B, ...)."""
    d_x, d_p, e_x, e_p = _solve(path, t, check(predicts))
    return Pair(_combine(d_x, x, d_p, prediction), _combine(e_x, x, e_p, prediction))


def from_pair(path: Path, pair: tuple[Tensor, Tensor], t: float | Tensor, predicts: str) -> Tensor:
    """The prediction of kind ``predicts`` that the pair (denoised, noise) stands for.

    With the pair (x1, e) of a training example it is the regression target of a network.
    """
    p_d, p_e = _express(path, t, check(predicts))
    denoised, noise = pair
    if predicts == "denoised":
        return denoised
    return _combine(p_d, denoised, p_e, noise)


def as_denoised(
    path: Path, prediction: Tensor, x: Tensor, t: float | Tensor, predicts: str
) -> Tensor:
    """E[x1 | x_t] from a prediction of any kind."""
    return convert(path, prediction, x, t, predicts, "denoised")


def as_noise(path: Path, prediction: Tensor, x: Tensor, t: float | Tensor, predicts: str) -> Tensor:
    """E[e | x_t] from a prediction of any kind."""
    return convert(path, prediction, x, t, predicts, "noise")


def as_velocity(
    path: Path, prediction: Tensor, x: Tensor, t: float | Tensor, predicts: str
) -> Tensor:
    """Drift of the probability flow from a prediction of any kind."""
    return convert(path, prediction, x, t, predicts, "velocity")


def as_score(path: Path, prediction: Tensor, x: Tensor, t: float | Tensor, predicts: str) -> Tensor:
    """Gradient of log rho_t at x from a prediction of any kind."""
    return convert(path, prediction, x, t, predicts, "score")


def as_vparam(
    path: Path, prediction: Tensor, x: Tensor, t: float | Tensor, predicts: str
) -> Tensor:
    """The mean of beta e - sigma x1 from a prediction of any kind."""
    return convert(path, prediction, x, t, predicts, "vparam")


def interpolate(path: Path, x1: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
    """The state x_t = beta x1 + sigma noise; x1 and noise (B, ...), t a float or (B,)."""
    return _combine(path.beta(t), x1, path.sigma(t), noise)


def fit_scale(x: Tensor, mask: Tensor | None = None) -> float:
    """Root mean square of the entries of x, the ``sigma_data`` of ``Precondition``.

    ``mask`` (bool) covers the leading dimensions of x. Raises UserError when nothing is left or the
    scale is zero or not finite.
    """
    kept = x if mask is None else x[mask]
    scale = kept.double().square().mean().sqrt().item() if kept.numel() else 0.0
    if not 0.0 < scale < math.inf:
        raise UserError(f"data of {kept.numel()} entries has scale {scale}; it cannot be fitted")
    return scale


class Scalings(NamedTuple):
    """The four scalings of EDM, each a float or of the shape of t."""

    skip: Number
    out: Number
    input: Number
    noise: Number


class Precondition(nn.Module):
    r"""A network that sees unit variance and predicts unit variance, as a denoiser on any path.

        D(x, t) = c_skip x + c_out F(c_in x, c_noise)

    with, for data of root mean square s and V = beta^2 s^2 + sigma^2,

        c_skip = beta s^2 / V    c_out = sigma s / sqrt(V)    c_in = 1 / sqrt(V)
        c_noise = 1/4 log(sigma / beta), kept within [-5, 5] so that both ends are finite.

    With beta = 1 these are the scalings of Karras et al. 2022, table 1; c_skip x is the linear
    least-squares denoiser, so F only learns what is not Gaussian about the data. ``cond`` and
    ``previous`` pass unscaled.

    Args:
        network: F, called as ``network(x, noise, mask, cond, previous)`` with x (B, ...) and noise
            (B,); returns the shape of x in any float dtype.
        path: the path whose x_t it will see.
        sigma_data: s, see ``fit_scale``.
    """

    predicts = "denoised"

    def __init__(self, network: nn.Module, path: Path, sigma_data: float = 1.0) -> None:
        super().__init__()
        if not 0.0 < sigma_data < math.inf:
            raise UserError(f"sigma_data must be a positive number, got {sigma_data!r}")
        self.network = network
        self.path = path
        self.sigma_data = float(sigma_data)

    def scalings(self, t: float | Tensor) -> Scalings:
        """(c_skip, c_out, c_in, c_noise) at time t, in float64."""
        beta, sigma = self.path.beta(t), self.path.sigma(t)
        spread = (beta * beta * self.sigma_data**2 + sigma * sigma) ** 0.5
        level: Number = -0.125 * self.path.log_snr(t)
        level = level.clamp(-5.0, 5.0) if isinstance(level, Tensor) else min(max(level, -5.0), 5.0)
        skip = beta * self.sigma_data**2 / spread**2
        return Scalings(skip, sigma * self.sigma_data / spread, 1.0 / spread, level)

    def target(self, x1: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        """What F must return for D = x1: (x1 - c_skip x) / c_out, 0 where sigma = 0."""
        c = self.scalings(t)
        return _combine(-_over(c.skip, c.out), x, _over(1.0, c.out), x1)

    def weight(self, t: float | Tensor) -> Number:
        """1 / c_out^2: multiplies |D - x1|^2 so that every noise level weighs the same on F."""
        out = self.scalings(t).out
        return _over(1.0, out * out)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        mask: Tensor | None = None,
        cond: Any = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """E[x1 | x_t] in the dtype of x; x (B, ...), t (B,)."""
        c = self.scalings(t)
        raw = self.network(per_sample(c.input, x) * x, c.noise.to(x.dtype), mask, cond, previous)
        return _combine(c.skip, x, c.out, raw.to(x.dtype))
