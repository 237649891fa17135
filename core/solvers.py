r"""Solvers as data: every method is a table of float64 coefficients, built once, kept as floats.

On a Gaussian path the network enters only through the denoised state D = E[x1 | x_t], and every
usual sampler is a linear method in past states and past D: row k evaluates D_k = D(x_k, times[k])
and moves to the time ends[k],

    x_{k+1} = sum_j a_kj x_{k-j} + sum_j b_kj D_{k-j} + c_k xi,        xi ~ N(0, I).

One-evaluation methods have one row a step and a = (a0,). A two-stage method is two rows: Heun's
corrector stands at the end of its step already (times = ends) and reaches back to x_{k-1}. Because
rows are linear, `laws.table_law` returns the exact law of the output on Gaussian data.

With beta, sigma, their derivatives, w = sigma beta' - sigma' beta, l = log(beta / sigma) and a step
t -> u (h = u - t, d = l_u - l_t):

    euler            x + h b(x, t) = (1 + h sigma'/sigma) x + h (w / sigma) D
    heun             x + h/2 (b(x_t, t) + b(x_u, u))
    ddim(eta)        beta_u D + sqrt(sigma_u^2 - c^2) (x - beta_t D) / sigma_t + c xi,
                     c^2 = eta^2 sigma_u^2 (1 - e^{-2d}); eta = 1 is ancestral sampling (DDPM)
    dpmpp(order,eta) (sigma_u/sigma_t) e^{-eta d} x + beta_u (1 - e^{-(1+eta) d}) D^ + c xi,
                     c^2 = sigma_u^2 (1 - e^{-2 eta d}), D^ extrapolated in l from past D
    euler_maruyama   x + h (b + eps s) + sqrt(2 eps h) xi, s the score and eps >= 0 free

Ends. beta_t = 0 gives d = inf, where every exponential is 0 or 1. The last step to t = 1 is the
jump x = beta_1 D: sigma(1) is 0 or, on VE, noise nobody wants. It is the limit of ddim and dpmpp
and, on the linear path, of Euler's own step. Only `euler_maruyama(denoise=False)` keeps its row.

The declared ``order`` is the order in the step size on smooth grids: of the flow's map for
deterministic methods, of the law (weak order) for stochastic ones. The jump costs the square of the
last noise level, which is of order 2 where sigma falls linearly, but of order 1 on VP, where it
falls as a square root: there, refine the end (`grids.karras`). dpmpp of order 2 pays a logarithm
where beta = 0; order 3 declares 2 with a jump, and on paths that begin at beta = 0, where D moves
at once and the first row, without memory, is too coarse.

References: Karras et al. 2022 (Heun); Song, Meng & Ermon 2021 (DDIM); Ho et al. 2020 (DDPM); Lu et
al. 2022, "DPM-Solver++"; Albergo, Boffi & Vanden-Eijnden 2023 (free eps).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from driftworks.core.paths import Path
from driftworks.errors import UserError

__all__ = [
    "SOLVERS",
    "Solver",
    "Table",
    "ddim",
    "dpmpp",
    "euler",
    "euler_maruyama",
    "heun",
    "solver",
]

Row = tuple[float, ...]


@dataclass(frozen=True)
class Table:
    """The coefficients of one solver on one path and grid; see the module's formula.

    All fields but ``name`` and ``order`` have one member a row: the time of the network evaluation,
    the time of the state after the row, the weights of states and denoised states, newest first,
    and the standard deviation of the fresh noise.
    """

    name: str
    order: int
    times: Row
    ends: Row
    a: tuple[Row, ...]
    b: tuple[Row, ...]
    c: Row

    def __len__(self) -> int:
        return len(self.times)

    @property
    def evaluations(self) -> int:
        """Network evaluations from the first time to the last."""
        return len(self.times)

    @property
    def stochastic(self) -> bool:
        return any(self.c)


Solver = Callable[[Path, Sequence[float]], Table]


def _steps(grid: Sequence[float]) -> list[tuple[float, float]]:
    if len(grid) < 2 or not (grid[0] >= 0.0 and grid[-1] <= 1.0):
        raise UserError(f"a time grid has at least two times within [0, 1], got {_short(grid)}")
    steps = list(zip(grid[:-1], grid[1:], strict=True))
    for t, u in steps:
        if not t < u:
            raise UserError(f"a time grid must increase, got {t} before {u}")
    return steps


def _short(grid: Sequence[float]) -> str:
    return str(list(grid)) if len(grid) < 5 else f"{grid[0]} ... {grid[-1]}"


def _nonnegative(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 <= value < math.inf:
            raise UserError(f"{name} must be a finite number >= 0, got {value}")


def _one_stage(
    name: str,
    order: int,
    steps: list[tuple[float, float]],
    rows: list[tuple[float, Row, float]],
) -> Table:
    a, b, c = zip(*rows, strict=True)
    times, ends = zip(*steps, strict=True)
    return Table(name, order, times, ends, tuple((v,) for v in a), b, c)


def _jump(path: Path) -> tuple[float, Row, float]:
    return 0.0, (path.beta(1.0),), 0.0


def _flow(path: Path, t: float) -> tuple[float, float]:
    """(f, g) of the velocity f x + g D at t < 1."""
    sigma = path.sigma(t)
    slope = path.dsigma(t) / sigma
    return slope, path.dbeta(t) - slope * path.beta(t)


def euler(path: Path, grid: Sequence[float]) -> Table:
    """Euler steps of the probability flow: order 1, one evaluation a step."""
    steps = _steps(grid)
    rows: list[tuple[float, Row, float]] = []
    for t, u in steps:
        if u == 1.0:
            rows.append(_jump(path))
            continue
        f, g = _flow(path, t)
        rows.append((1.0 + (u - t) * f, ((u - t) * g,), 0.0))
    return _one_stage("euler", 1, steps, rows)


def heun(path: Path, grid: Sequence[float]) -> Table:
    """The trapezoidal rule on the probability flow: order 2, two evaluations a step.

    The step to t = 1 is the jump and costs one: N steps take 2 N - 1 evaluations.
    """
    times: list[float] = []
    ends: list[float] = []
    a: list[Row] = []
    b: list[Row] = []
    for t, u in _steps(grid):
        times.append(t)
        ends.append(u)
        if u == 1.0:
            a.append((0.0,))
            b.append((path.beta(1.0),))
            continue
        h = u - t
        f, g = _flow(path, t)
        a.append((1.0 + h * f,))
        b.append((h * g,))
        f_u, g_u = _flow(path, u)
        times.append(u)
        ends.append(u)
        a.append((0.5 * h * f_u, 1.0 + 0.5 * h * f))
        b.append((0.5 * h * g_u, 0.5 * h * g))
    return Table("heun", 2, tuple(times), tuple(ends), tuple(a), tuple(b), (0.0,) * len(times))


def ddim(path: Path, grid: Sequence[float], eta: float = 0.0) -> Table:
    """Denoising diffusion implicit steps: order 1; ``eta`` = 1 is ancestral sampling (DDPM)."""
    _nonnegative(eta=eta)
    if eta > 1.0:
        raise UserError(f"ddim takes eta in [0, 1], got {eta}")
    steps = _steps(grid)
    rows: list[tuple[float, Row, float]] = []
    beta, sigma = path.beta(grid[0]), path.sigma(grid[0])
    for _, u in steps:
        if u == 1.0:
            rows.append(_jump(path))
            continue
        beta_u, sigma_u = path.beta(u), path.sigma(u)
        kept = beta * sigma_u / (beta_u * sigma)
        c = eta * sigma_u * math.sqrt(max(0.0, 1.0 - kept * kept))
        a = sigma_u / sigma * math.sqrt(1.0 - eta * eta + (eta * kept) ** 2)
        rows.append((a, (beta_u - a * beta,), c))
        beta, sigma = beta_u, sigma_u
    return _one_stage("ddpm" if eta == 1.0 else "ddim", 1, steps, rows)


def _moments(z: float) -> tuple[float, float, float]:
    """Integrals over s in [0, 1] of z e^{-z (1 - s)} times 1, s, s^2."""
    if z < 1e-3:
        return (
            z * (1.0 - z * (1 / 2 - z / 6)),
            z * (1 / 2 - z * (1 / 6 - z / 24)),
            z * (1 / 3 - z * (1 / 12 - z / 60)),
        )
    zeroth = -math.expm1(-z)
    first = 1.0 - zeroth / z
    return zeroth, first, 1.0 - 2.0 * first / z


def _extrapolated(z: float, order: int, r0: float, r1: float) -> Row:
    """Weights of D_k, D_{k-1}, D_{k-2} in the integral of the extrapolated D over a step.

    r0 and r1 are the two steps before, in units of this one. Order 2 is the midpoint rule of
    DPM-Solver++(2M); order 3 integrates the parabola through the three values exactly. (The public
    codes of the 3M method give the parabola's s^2 half its weight, which makes them order 2.)
    """
    if order == 1:
        return (-math.expm1(-z),)
    if order == 2:
        zeroth = -math.expm1(-z)
        slope = 0.5 * zeroth / r0
        return zeroth + slope, -slope
    zeroth, first, second = _moments(z)
    curvature = (first * r0 + second) / (r0 + r1)
    slope = (first + curvature) / r0
    return zeroth + slope, -slope - curvature / r1, curvature / r1


def dpmpp(path: Path, grid: Sequence[float], order: int = 2, eta: float = 0.0) -> Table:
    """DPM-Solver++ multistep of order 1, 2 (2M) or 3 (3M), one evaluation a step.

    ``eta`` = 0 solves the probability flow, 1 the classical reverse SDE. The first rows have as
    much memory as there is; a previous step of infinite length (from beta = 0) counts as none.
    """
    _nonnegative(eta=eta)
    if order not in (1, 2, 3):
        raise UserError(f"dpmpp has orders 1, 2 and 3, got {order}")
    steps = _steps(grid)
    rows: list[tuple[float, Row, float]] = []
    before: list[float] = []
    beta, sigma = path.beta(grid[0]), path.sigma(grid[0])
    for _, u in steps:
        if u == 1.0:
            rows.append(_jump(path))
            continue
        beta_u, sigma_u = path.beta(u), path.sigma(u)
        d = math.log(beta_u * sigma / (sigma_u * beta)) if beta > 0.0 else math.inf
        noise = eta * d if eta else 0.0
        memory = min(order, 1 + len(before))
        r0 = before[-1] / d if memory > 1 else 0.0
        r1 = before[-2] / d if memory > 2 else 0.0
        weights = _extrapolated(d + noise, memory, r0, r1)
        rows.append(
            (
                sigma_u / sigma * math.exp(-noise),
                tuple([beta_u * v for v in weights]),
                sigma_u * math.sqrt(-math.expm1(-2.0 * noise)) if eta else 0.0,
            )
        )
        if d < math.inf:
            before.append(d)
        beta, sigma = beta_u, sigma_u
    declared = min(order, 2) if grid[-1] == 1.0 or path.beta(0.0) == 0.0 else order
    return _one_stage(f"dpmpp{order}", 1 if eta else declared, steps, rows)


PROFILES = ("reverse", "sigma", "constant")


def euler_maruyama(
    path: Path,
    grid: Sequence[float],
    noise: float = 1.0,
    profile: str = "reverse",
    denoise: bool = True,
) -> Table:
    """Euler-Maruyama of dx = (b + eps s) dt + sqrt(2 eps) dW: weak order 1.

    Every eps_t >= 0 has the same marginals; ``noise`` scales one of three profiles, bounded at both
    ends: "reverse" eps = sigma w / (beta + .01), the reverse SDE (on the linear path Proteina's
    (1 - t) / (t + .01)), "sigma" eps = sigma, "constant" eps = 1. ``denoise`` = False replaces the
    final jump by the method's own, noisy, row.
    """
    _nonnegative(noise=noise)
    if profile not in PROFILES:
        raise UserError(f"unknown noise profile {profile!r}; choose one of {', '.join(PROFILES)}")
    steps = _steps(grid)
    rows: list[tuple[float, Row, float]] = []
    for t, u in steps:
        if u == 1.0 and denoise:
            rows.append(_jump(path))
            continue
        h, beta, sigma = u - t, path.beta(t), path.sigma(t)
        eps = noise
        if profile == "sigma":
            eps *= sigma
        elif profile == "reverse":
            eps *= sigma * path.wronskian(t) / (beta + 0.01)
        f, g = _flow(path, t)
        pull = eps / (sigma * sigma)
        rows.append((1.0 + h * (f - pull), (h * (g + pull * beta),), math.sqrt(2.0 * eps * h)))
    return _one_stage("euler_maruyama", 1, steps, rows)


SOLVERS: dict[str, Callable[..., Table]] = {
    "euler": euler,
    "heun": heun,
    "ddim": ddim,
    "ddpm": partial(ddim, eta=1.0),
    "dpmpp1": partial(dpmpp, order=1),
    "dpmpp2": partial(dpmpp, order=2),
    "dpmpp3": partial(dpmpp, order=3),
    "euler_maruyama": euler_maruyama,
}


def solver(name: str, **options: Any) -> Solver:
    """The solver called ``name``, with its options: ``solver("dpmpp2", eta=1.0)(path, grid)``.

    Raises UserError for an unknown name or option, naming the choices.
    """
    if name not in SOLVERS:
        raise UserError(f"unknown solver {name!r}; choose one of {', '.join(SOLVERS)}")
    build = SOLVERS[name]
    fixed = build.keywords if isinstance(build, partial) else {}
    choices = [p for p in inspect.signature(build).parameters if p not in ("path", "grid", *fixed)]
    unknown = [option for option in options if option not in choices]
    if unknown:
        takes = ", ".join(choices) or "no options"
        raise UserError(f"solver {name!r} does not take {', '.join(unknown)}; it takes {takes}")
    return partial(build, **options)
