r"""Rotations: exponential and logarithm, Haar measure, and the heat kernel IGSO(3).

Tangent vectors. v in R^3 stands for the rotation exp(v) by the angle |v| about v, in radians. They
are written in the body frame, to the right of the rotation they act on: x exp(v). The distance of
two rotations is the angle of x^T y, and log takes angles in [0, pi].

Heat kernel. Brownian motion on SO(3), run until each tangent component has variance 2 e^2, ends at
x exp(v) with density f(|v|; e) relative to the normalised Haar measure (Nikolayev & Savyolova 1997;
Leach et al. 2022; Yim et al. 2023, whose sigma is sqrt(2) e):

    f(w) = sum_{l>=0} (2l + 1) e^{-l(l+1) e^2} chi_l(w),    chi_l(w) = sin((l + 1/2) w) / sin(w / 2)

The angle itself has density f(w) (1 - cos w) / pi on [0, pi]. Convolution adds e^2, and the average
of x is e^{-2 e^2} times the identity, so E tr = 3 e^{-2 e^2}. The series is used for e >= 1, where
six terms are exact, with chi_l = chi_{l-1} + 2 cos(l w): nothing is divided by a small sine. For
e < 1 Poisson's formula gives the same function as a sum over the images of w,

    f(w) = sqrt(pi) e^{e^2/4} / (2 e^3) * sum_k (-1)^k (w - 2 pi k) e^{-(w - 2 pi k)^2 / 4 e^2}
           / sin(w / 2)

and taking the first image out of the sum leaves B, which is smooth and within [1, 2],

    log f = e^2/4 + log(sqrt(pi) / 2 e^3) + log(w / sin(w/2)) - w^2 / 4 e^2 + log B
    B     = 1 + 2 sum_{k>=1} (-1)^k e^{-c_k} (cosh x_k - 2 c_k sinh(x_k) / x_k)
    c_k   = (pi k / e)^2,    x_k = pi k w / e^2 <= c_k.

Two images are exact for e < 1, and no step overflows, cancels or divides by zero for any e > 0 and
any angle in [0, pi]. The kernel is evaluated in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from driftworks.core.keys import Keys
from driftworks.errors import UserError

__all__ = [
    "angle",
    "distance",
    "exp",
    "from_quaternion",
    "haar",
    "hat",
    "igso3",
    "igso3_angle",
    "igso3_centre",
    "igso3_log_density",
    "igso3_score",
    "igso3_tangent",
    "log",
    "nearest",
    "orthonormal",
    "quaternion",
]

_IMAGES = (1, 2)
_DEGREES = range(1, 8)
_PANELS = 128
_REACH = 11.0  # in units of e, 7.8 standard deviations of a tangent component
_SCORES = 1024


def hat(v: Tensor) -> Tensor:
    """The antisymmetric matrix (..., 3, 3) of v (..., 3): hat(v) y is the cross product v x y."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack((o, -z, y, z, o, -x, -y, x, o), -1).unflatten(-1, (3, 3))


def _sinc(square: Tensor) -> Tensor:
    """sin(a) / a as a smooth function of a^2."""
    small = square < 1e-2
    a = torch.where(small, 1.0, square).sqrt()
    s = torch.where(small, square, 0.0)
    series = 1.0 - s / 6.0 * (1.0 - s / 20.0 * (1.0 - s / 42.0 * (1.0 - s / 72.0)))
    return torch.where(small, series, a.sin() / a)


def exp(v: Tensor) -> Tensor:
    """The rotations (..., 3, 3) by |v| about v (..., 3); smooth, also at 0."""
    square = (v * v).sum(-1)
    half = _sinc(0.25 * square)
    a, b = _sinc(square)[..., None, None], (0.5 * half * half)[..., None, None]
    eye = torch.eye(3, dtype=v.dtype, device=v.device)
    return (1.0 - square[..., None, None] * b) * eye + a * hat(v) + b * v[..., :, None] * v[
        ..., None, :
    ]


def quaternion(x: Tensor) -> Tensor:
    """The unit quaternion (w, x, y, z), (..., 4) with w >= 0, of rotations (..., 3, 3).

    The matrix gives 4 q q^T without a square root; its row with the largest diagonal entry, scaled
    to unit length, is q up to sign. That row is at least 1 long, so the result is accurate and
    differentiable everywhere but at the half turns, where w = 0 and the sign is arbitrary.
    """
    a, b, c, d, e, f, g, h, i = x.flatten(-2).unbind(-1)
    squares = (1 + a + e + i, 1 + a - e - i, 1 - a + e - i, 1 - a - e + i)
    p, q, r, s, t, u = h - f, c - g, d - b, d + b, c + g, h + f
    rows = torch.stack(
        (squares[0], p, q, r, p, squares[1], s, t, q, s, squares[2], u, r, t, u, squares[3]), -1
    ).unflatten(-1, (4, 4))
    best = torch.stack(squares, -1).argmax(-1)
    row = rows.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    unit = row / torch.linalg.vector_norm(row, dim=-1, keepdim=True)
    return torch.where(unit[..., :1] < 0, -unit, unit)


def from_quaternion(q: Tensor) -> Tensor:
    """The rotations (..., 3, 3) of quaternions (w, x, y, z), (..., 4), of any length but 0."""
    w, v = q[..., :1, None], q[..., 1:]
    outer = v[..., :, None] * v[..., None, :]
    square = (v * v).sum(-1)[..., None, None]
    eye = torch.eye(3, dtype=q.dtype, device=q.device)
    return ((w * w - square) * eye + 2.0 * (outer + w * hat(v))) / (w * w + square)


def log(x: Tensor) -> Tensor:
    """The tangent vector (..., 3) of rotations (..., 3, 3), of length <= pi.

    Exact to rounding at every angle; at half turns one of the two vectors. A matrix of zeros, the
    state of a masked rotation, has logarithm 0.
    """
    q = quaternion(x)
    w, u = q[..., :1], q[..., 1:]
    square = (u * u).sum(-1, keepdim=True)
    small = square < 1e-4
    sine = torch.where(small, 1.0, square).sqrt()
    s = torch.where(small, square, 0.0)
    series = 2.0 + s * (1.0 / 3.0 + s * (3.0 / 20.0 + s * (5.0 / 56.0)))
    return u * torch.where(small, series, 2.0 * torch.atan2(sine, w) / sine)


def angle(x: Tensor) -> Tensor:
    """The angle in [0, pi] of rotations (..., 3, 3), shape (...)."""
    q = quaternion(x)
    return 2.0 * torch.atan2(torch.linalg.vector_norm(q[..., 1:], dim=-1), q[..., 0])


def distance(x: Tensor, y: Tensor) -> Tensor:
    """The geodesic distance of rotations (..., 3, 3), an angle in [0, pi]."""
    return angle(x.mT @ y)


def nearest(x: Tensor) -> Tensor:
    """The rotations nearest to matrices (..., 3, 3) in Frobenius norm, dtype kept.

    With x = U S V^T it is U diag(1, 1, det U V^T) V^T (Kabsch 1976). The derivative is the exact
    one, which is finite where singular values coincide, at every rotation; only where the nearest
    rotation itself is not unique (rank one, or a reflection) is it cut off. A matrix that is not
    finite gives NaN, and leaves its neighbours alone.
    """
    finite = x.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    eye = torch.eye(3, dtype=torch.float64, device=x.device)
    wide = torch.where(finite, x.to(torch.float64), eye)
    with torch.no_grad():
        u, s, vt = torch.linalg.svd(wide)
        sign = torch.sign(torch.linalg.det(u @ vt))
        u = torch.cat((u[..., :2], u[..., 2:] * sign[..., None, None]), -1)
        s = torch.cat((s[..., :2], s[..., 2:] * sign[..., None]), -1)
        rotation = u @ vt
        sums = (s[..., :, None] + s[..., None, :]).clamp(min=1e-4)
    if wide.requires_grad:
        # d R = U W V^T with W_ij = (A_ij - A_ji) / (s_i + s_j), A = U^T dX V; dX has the value 0
        turn = u.mT @ (wide - wide.detach()) @ vt.mT
        rotation = rotation + u @ ((turn - turn.mT) / sums) @ vt
    return torch.where(finite, rotation, math.nan).to(x.dtype)


def orthonormal(x: Tensor) -> Tensor:
    """Rotations (..., 3, 3) with their rounding errors squared away: a step of Newton-Schulz.

    For matrices off by d the result is off by d^2; zeros stay zeros.
    """
    return 1.5 * x - 0.5 * x @ (x.mT @ x)


def haar(
    keys: Keys, stream: str, step: int, entries: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform rotations (B, *entries, 3, 3): directions of normal quaternions (Shoemake 1992)."""
    work = torch.float64 if dtype == torch.float64 else torch.float32
    return from_quaternion(keys.normal(stream, step, (*entries, 4), work)).to(dtype)


def igso3(
    keys: Keys, stream: str, step: int, eps: float | Tensor, entries: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draws of the heat kernel at the identity, (B, *entries, 3, 3); ``eps`` a float or (B,).

    Four normals a rotation: three give the axis, the distribution function of the fourth is the
    uniform number at which the distribution of the angle is inverted (`igso3_angle`).
    """
    z = keys.normal(stream, step, (*entries, 4), torch.float64)
    axis = z[..., :3] / torch.linalg.vector_norm(z[..., :3], dim=-1, keepdim=True)
    uniform = 0.5 * torch.erfc(-math.sqrt(0.5) * z[..., 3])
    return exp(axis * igso3_angle(uniform, eps)[..., None]).to(dtype)


def _pair(angle: Tensor, eps: float | Tensor) -> tuple[Tensor, Tensor]:
    """Angle and kernel width as float64 tensors; UserError for a width that is not positive."""
    width = torch.as_tensor(eps, dtype=torch.float64, device=angle.device)
    # widths on a GPU are not looked at: asking for one value would stop it
    if width.device.type == "cpu" and not bool((width > 0.0).all()):
        raise UserError(f"the width of a heat kernel must be positive, got {eps}")
    return angle.to(torch.float64), width


def _images(w: Tensor, e: Tensor, slope: bool) -> Tensor:
    """B, or with ``slope`` (dB/dw) / (w B), for e <= 1."""
    total, change = torch.ones_like(w * e), torch.zeros_like(w * e)
    for k in _IMAGES:
        c, x = (math.pi * k / e) ** 2, math.pi * k * w / (e * e)
        weight = 2.0 * (-1.0) ** k * torch.exp(x - c)  # the factor e^-x of what follows is in it
        tiny, y = x < 1e-3, torch.where(x < 1e-3, 1.0, x)
        series = 1.0 - x * (1.0 - x * (2.0 / 3.0 - x * (1.0 / 3.0 - x * (2.0 / 15.0))))
        sinhc = torch.where(tiny, series, -torch.expm1(-2.0 * y) / (2.0 * y))
        cosh = 0.5 * (1.0 + torch.exp(-2.0 * x))
        total = total + weight * (cosh - 2.0 * c * sinhc)
        if slope:
            tiny, y = x < 0.1, torch.where(x < 0.1, 1.0, x)
            z = torch.where(tiny, x, 0.0) ** 2
            series = torch.exp(-x) * (1.0 + z * (0.1 + z * (1.0 / 280.0 + z / 15120.0))) / 3.0
            curve = ((y - 1.0) + (y + 1.0) * torch.exp(-2.0 * y)) / (2.0 * y**3)
            change = change + weight * (c / e**2) * (
                sinhc - 2.0 * c * torch.where(tiny, series, curve)
            )
    return change / total if slope else total


def igso3_log_density(angle: Tensor, eps: float | Tensor) -> Tensor:
    """log f(w; e) relative to the Haar measure, float64, differentiable.

    ``angle`` in [0, pi] and ``eps`` > 0 are broadcast. Raises UserError for another ``eps``.
    """
    w, eps = _pair(angle, eps)
    e = eps.clamp(max=1.0)
    narrow = (
        e * e / 4.0 + 0.5 * math.log(math.pi) - 3.0 * e.log()
        - _sinc(w * w / 4.0).log() - (w / (2.0 * e)) ** 2 + _images(w, e, slope=False).log()
    )
    e = eps.clamp(min=1.0)
    character, wide = torch.ones_like(w), torch.ones_like(w * e)
    for l in _DEGREES:  # noqa: E741 (the field's name of the degree)
        character = character + 2.0 * torch.cos(l * w)
        wide = wide + (2 * l + 1) * torch.exp(-l * (l + 1) * e * e) * character
    return torch.where(eps < 1.0, narrow, wide.log())


def _score_ratio(w: Tensor, eps: Tensor) -> Tensor:
    """(d log f / dw) / w, smooth in w, float64."""
    e = eps.clamp(max=1.0)
    tiny, y = w < 0.1, torch.where(w < 0.1, 1.0, w)
    z = torch.where(tiny, w, 0.0) ** 2
    series = 1.0 / 12.0 + z * (1.0 / 720.0 + z * (1.0 / 30240.0 + z / 1209600.0))
    bend = torch.where(tiny, series, (1.0 / y - 0.5 / torch.tan(0.5 * y)) / y)
    narrow = bend - 0.5 / (e * e) + _images(w, e, slope=True)
    e = eps.clamp(min=1.0)
    character, change = torch.ones_like(w), torch.zeros_like(w)
    total, slope = torch.ones_like(w * e), torch.zeros_like(w * e)
    for l in _DEGREES:  # noqa: E741
        character = character + 2.0 * torch.cos(l * w)
        change = change - 2.0 * l * l * _sinc((l * w) ** 2)
        weight = (2 * l + 1) * torch.exp(-l * (l + 1) * e * e)
        total, slope = total + weight * character, slope + weight * change
    return torch.where(eps < 1.0, narrow, slope / total)


def igso3_score(angle: Tensor, eps: float | Tensor) -> Tensor:
    """d/dw log f(w; e), float64; ``angle`` and ``eps`` as in `igso3_log_density`."""
    w, e = _pair(angle, eps)
    return w * _score_ratio(w, e)


def igso3_tangent(v: Tensor, eps: float | Tensor) -> Tensor:
    """The gradient of log f(|v|; e) at x = exp(v), body frame, (..., 3) in the dtype of v.

    ``eps`` broadcasts to the shape (...) of the rotations. The score of x given its centre c is
    ``igso3_tangent(log(c.mT @ x), eps)``; it is smooth at the centre.
    """
    w, e = _pair(torch.linalg.vector_norm(v.to(torch.float64), dim=-1), eps)
    return (v * _score_ratio(w, e)[..., None]).to(v.dtype)


def igso3_angle(uniform: Tensor, eps: float | Tensor) -> Tensor:
    """The angle below which the heat kernel has mass ``uniform`` (B, ...); ``eps`` float or (B,).

    The density of the angle is tabulated on 128 panels of [0, min(pi, 11 e)] and taken as a
    parabola in each, so that the distribution function is a cubic, whose root is found by Newton's
    method. Its error is 1e-7 in mass; float64 (B, ...).
    """
    u, e = _pair(uniform, eps)
    e = e.reshape(-1, 1)
    width = (_REACH * e).clamp(max=math.pi) / _PANELS
    w = width * torch.arange(0.0, _PANELS + 0.5, 0.5, dtype=torch.float64, device=u.device)
    density = 2.0 / math.pi * torch.sin(0.5 * w) ** 2 * igso3_log_density(w, e).exp()
    left, middle, right = density[:, :-1:2], density[:, 1::2], density[:, 2::2]
    linear, square = 4.0 * middle - 3.0 * left - right, 2.0 * (left + right) - 4.0 * middle
    mass = left + linear / 2.0 + square / 3.0
    ends = (width * mass).cumsum(1)
    flat = u.reshape(len(u), -1) * ends[:, -1:]
    if len(e) == 1 and len(u) != 1:
        rows = torch.searchsorted(ends[0], flat.flatten()).view_as(flat)
    else:
        rows = torch.searchsorted(ends, flat)
    rows = rows.clamp(max=_PANELS - 1)

    def of_panel(table: Tensor) -> Tensor:
        return table.expand(len(u), -1).gather(1, rows)

    p, q, r = of_panel(left), of_panel(linear), of_panel(square)
    wanted = (flat / width - of_panel(ends / width - mass)).clamp(min=0.0)
    share = (wanted / of_panel(mass)).clamp(max=1.0)
    s = torch.where(rows == 0, share ** (1.0 / 3.0), share)  # near 0 the mass is a cube
    for _ in range(4):
        value = s * (p + s * (q / 2.0 + s * r / 3.0))
        slope = p + s * (q + s * r)
        s = (s - (value - wanted) / slope.clamp(min=1e-300)).clamp(0.0, 1.0)
    return (width * (rows + s)).reshape(uniform.shape)


def igso3_centre(score: Tensor, eps: float | Tensor) -> Tensor:
    """The tangent vector from x to the centre whose kernel has the ``score`` (B, ..., 3) at x.

    The inverse of `igso3_tangent` (with the sign turned) for ``eps`` a float or (B,), by linear
    interpolation in a table of 1024 angles. Of the two angles with the same score, the smaller; a
    score that no centre has gives the angle where the score is largest.
    """
    size, e = _pair(torch.linalg.vector_norm(score.to(torch.float64), dim=-1), eps)
    e = e.reshape(-1, 1)
    w = torch.linspace(0.0, math.pi, _SCORES, dtype=torch.float64, device=score.device)
    table = -w * _score_ratio(w, e)
    peak = table.argmax(1, keepdim=True)
    table = table.cummax(1).values.expand(len(size), -1).contiguous()
    flat = size.reshape(len(size), -1)
    after = torch.searchsorted(table, flat).clamp(min=1).minimum(peak.clamp(min=1))
    low, high = table.gather(1, after - 1), table.gather(1, after)
    share = ((flat - low) / (high - low).clamp(min=1e-300)).clamp(max=1.0)
    turn = (w[1] * (after - 1 + share)).reshape(size.shape)
    tiny = size < 1e-300
    return score * (turn / torch.where(tiny, 1.0, size)).to(score.dtype)[..., None]
