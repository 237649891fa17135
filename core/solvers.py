r"""Solvers: every method is a table of float64 coefficients (`core.tables`), built once.

With beta, sigma, their derivatives, w = sigma beta' - sigma' beta, l = log(beta / sigma) and a step
t -> u (h = u - t, d = l_u - l_t), the methods of this file, one evaluation of D a row, are

    euler            x + h b(x, t) = (1 + h sigma'/sigma) x + h (w / sigma) D
    heun             x + h/2 (b(x_t, t) + b(x_u, u))                     and other explicit
    midpoint, rk4    Runge-Kutta methods on the velocity b, each a tableau
    ddim(eta)        beta_u D + sqrt(sigma_u^2 - c^2) (x - beta_t D) / sigma_t + c xi,
                     c^2 = eta^2 sigma_u^2 (1 - e^{-2d}); eta = 1 is ancestral sampling (DDPM)
    dpmpp(order,eta) (sigma_u/sigma_t) e^{-eta d} x + beta_u (1 - e^{-(1+eta) d}) D^ + c xi,
                     c^2 = sigma_u^2 (1 - e^{-2 eta d}), D^ extrapolated in l from past D
    abm(order)       (sigma_u/sigma_t) x + sigma_u int D d(beta/sigma), D a polynomial in y

and those of `core.reverse` (reverse SDE) and `core.correctors` (Langevin) join them by name.
The variation-of-constants formula in the last line is exact; exponential integrators (ddim, dpmpp,
abm) differ in how they continue D over the step. All of them take every path with its own noise
levels; on ``Path.mean_reverting`` they are the samplers of mean-reverting SDEs.

abm. Along the flow of N(m, s^2) the denoised state is D = m + s z sin(theta), where
tan(theta) = s beta / sigma: it moves in a straight line in sin(theta). So D is interpolated in
y = 1 - sin(theta), which runs from 1 at pure noise to 0 at the data and knows neither path nor
grid. Both ends are regular: near the noise 1 - y falls like beta / sigma, and near the data y falls
like its inverse squared, in which D is smooth there. So beta = 0 is a start like any other, and the
jump to t = 1 becomes the extrapolation of D to y = 0. With phi = pi / 2 - theta the integrals of 1,
y and y^2 over d(s beta / sigma) are differences of cot(phi), -tan(phi/2) and phi - 2 tan(phi/2).
The evaluation at the new state also corrects the step that led there (Adams-Moulton weights through
it): the row takes the old prediction back and puts the correction in, at no extra evaluation.

Ends. beta_t = 0 gives d = inf, where every exponential is 0 or 1. The last step to t = 1 is the
jump x = beta_1 D, the limit of ddim and dpmpp and, on the linear path, of Euler's own step. Only
`euler_maruyama(denoise=False)` keeps its row.

The declared ``order`` is the order in the step size on smooth grids: of the flow's map for
deterministic methods, of the law (weak order) for stochastic ones. The jump costs the square of the
last noise level, which is of order 2 where sigma falls linearly, but of order 1 on VP, where it
falls as a square root: there, refine the end (`grids.karras`). dpmpp of order 2 pays a logarithm
where beta = 0, and order 3 declares 2: its first row has no memory, which costs the square of its
length (little when it starts in pure noise, where D hardly moves). abm keeps its order at both
ends, since it corrects that row.

References: Karras et al. 2022 (Heun); Song, Meng & Ermon 2021 (DDIM); Ho et al. 2020 (DDPM); Lu et
al. 2022, "DPM-Solver++"; Zhang & Chen 2023 (exponential Adams-Bashforth); Zhao et al. 2023, "UniPC"
(a corrector that costs no evaluation).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from driftworks.core.correctors import CORRECTORS, corrected
from driftworks.core.paths import Path
from driftworks.core.reverse import ancestral, euler_maruyama, reverse_diffusion, s4
from driftworks.core.tables import Row, Solver, Step, Table, intervals, jump, nonnegative, one_stage
from driftworks.errors import UserError

__all__ = [
    "SOLVERS",
    "Solver",
    "Table",
    "abm",
    "ancestral",
    "ddim",
    "dpmpp",
    "euler",
    "euler_maruyama",
    "heun",
    "midpoint",
    "predictor_corrector",
    "reverse_diffusion",
    "rk4",
    "s4",
    "solver",
]

Weights = tuple[float, ...]


def euler(path: Path, grid: Sequence[float]) -> Table:
    """Euler steps of the probability flow: order 1, one evaluation a step."""
    steps = intervals(grid)
    rows: list[Step] = []
    for t, u in steps:
        if u == 1.0:
            rows.append(jump(path))
            continue
        slope, drive = _velocity(path, t)
        rows.append((1.0 + (u - t) * slope, ((u - t) * drive,), 0.0))
    return one_stage("euler", 1, steps, rows)


def _velocity(path: Path, t: float) -> tuple[float, float]:
    """The weights of x and D in the velocity at t < 1."""
    slope = path.dsigma(t) / path.sigma(t)
    return slope, path.dbeta(t) - slope * path.beta(t)


def _runge_kutta(
    name: str, order: int, stages: Sequence[Weights], path: Path, grid: Sequence[float]
) -> Table:
    """The explicit method whose stage i + 1 is x + h sum_j stages[i][j] b_j; the last is the step.

    A stage stands at the sum of its weights and not before the stage above it; the last sum is 1.
    """
    nodes = [0.0, *map(sum, stages[:-1]), 1.0]
    firsts = [next(j for j, weight in enumerate(weights) if weight) for weights in stages]
    times: list[float] = []
    ends: list[float] = []
    a: list[Row] = []
    b: list[Row] = []
    for t, u in intervals(grid):
        if u == 1.0:
            times.append(t)
            ends.append(u)
            a.append((0.0,))
            b.append((path.beta(1.0),))
            continue
        h = u - t
        places = [t if node == 0.0 else u if node == 1.0 else t + node * h for node in nodes]
        times += places[:-1]
        ends += places[1:]
        velocities = {place: _velocity(path, place) for place in places[:-1]}
        slopes, drives = zip(*[velocities[place] for place in places[:-1]], strict=True)
        for weights, first in zip(stages, firsts, strict=True):
            now = len(weights) - 1
            states = [h * weights[j] * slopes[j] for j in range(now, -1, -1)]
            states[-1] += 1.0
            a.append(tuple(states))
            b.append(tuple([h * weights[j] * drives[j] for j in range(now, first - 1, -1)]))
    return Table(name, order, tuple(times), tuple(ends), tuple(a), tuple(b), (0.0,) * len(times))


def heun(path: Path, grid: Sequence[float]) -> Table:
    """The trapezoidal rule on the probability flow: order 2, two evaluations a step.

    The step to t = 1 is the jump and costs one: N steps take 2 N - 1 evaluations.
    """
    return _runge_kutta("heun", 2, [(1.0,), (0.5, 0.5)], path, grid)


def midpoint(path: Path, grid: Sequence[float]) -> Table:
    """The explicit midpoint rule on the probability flow: order 2, two evaluations a step."""
    return _runge_kutta("midpoint", 2, [(0.5,), (0.0, 1.0)], path, grid)


def rk4(path: Path, grid: Sequence[float]) -> Table:
    """The classical Runge-Kutta method on the probability flow: four evaluations a step.

    Order 4 on grids that stop before t = 1, order 2 with the jump to t = 1.
    """
    stages = [(0.5,), (0.0, 0.5), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)]
    return _runge_kutta("rk4", 2 if grid[-1] == 1.0 else 4, stages, path, grid)


def ddim(path: Path, grid: Sequence[float], eta: float = 0.0) -> Table:
    """Denoising diffusion implicit steps: order 1; ``eta`` = 1 is ancestral sampling (DDPM)."""
    nonnegative(eta=eta)
    if eta > 1.0:
        raise UserError(f"ddim takes eta in [0, 1], got {eta}")
    steps = intervals(grid)
    rows: list[Step] = []
    beta, sigma = path.beta(grid[0]), path.sigma(grid[0])
    for _, u in steps:
        if u == 1.0:
            rows.append(jump(path))
            continue
        beta_u, sigma_u = path.beta(u), path.sigma(u)
        kept = beta * sigma_u / (beta_u * sigma)
        c = eta * sigma_u * math.sqrt(max(0.0, 1.0 - kept * kept))
        a = sigma_u / sigma * math.sqrt(1.0 - eta * eta + (eta * kept) ** 2)
        rows.append((a, (beta_u - a * beta,), c))
        beta, sigma = beta_u, sigma_u
    return one_stage("ddpm" if eta == 1.0 else "ddim", 1, steps, rows)


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
    nonnegative(eta=eta)
    if order not in (1, 2, 3):
        raise UserError(f"dpmpp has orders 1, 2 and 3, got {order}")
    steps = intervals(grid)
    rows: list[Step] = []
    before: list[float] = []
    beta, sigma = path.beta(grid[0]), path.sigma(grid[0])
    for _, u in steps:
        if u == 1.0:
            rows.append(jump(path))
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
    return one_stage(f"dpmpp{order}", 1 if eta else min(order, 2), steps, rows)


def _sine(path: Path, t: float, scale: float) -> tuple[float, float, float, float]:
    """sigma, y = 1 - sin(theta), and tan(phi/2), 2 tan(phi/2) - phi at time t."""
    sigma = path.sigma(t)
    phi = math.atan2(sigma, scale * path.beta(t))
    half = 0.5 * phi
    sine, root = math.sin(half), math.tan(half)
    third = 2.0 * (root - half)
    if half < 0.03:
        square = half * half
        third = half * square * (2 / 3 + square * (4 / 15 + square * 34 / 315))
    return sigma, 2.0 * sine * sine, root, third


def _newton(integrals: Weights, y: Sequence[float], order: int) -> Weights:
    """Weights of D at the nodes y, newest first, in the integral of D's interpolant.

    ``integrals`` are those of 1, y, y^2 over the step.
    """
    zeroth, first, second = integrals
    if order == 1 or len(y) == 1:
        return (zeroth,)
    inverse = 1.0 / (y[0] - y[1])
    linear = (first - y[0] * zeroth) * inverse
    if order == 2 or len(y) == 2:
        return zeroth + linear, -linear
    before = 1.0 / (y[1] - y[2])
    bend = (second - (y[0] + y[1]) * first + y[0] * y[1] * zeroth) / (y[0] - y[2])
    return zeroth + linear + bend * inverse, -linear - bend * (inverse + before), bend * before


def abm(path: Path, grid: Sequence[float], order: int = 2, scale: float = 1.0) -> Table:
    """Exponential Adams-Bashforth-Moulton of order 2 or 3, one evaluation a step.

    D is interpolated in the coordinate in which it moves in a straight line for Gaussian data of
    standard deviation ``scale``. The best of these solvers at equal numbers of evaluations.
    """
    if order not in (2, 3):
        raise UserError(f"abm has orders 2 and 3, got {order}")
    if not 0.0 < scale < math.inf:
        raise UserError(f"scale must be a positive number, got {scale}")
    steps = intervals(grid)
    rows: list[Step] = []
    y: list[float] = []
    integrals: Weights = ()
    predicted: Weights = ()
    beta = path.beta(grid[0])
    sigma, level, root, third = _sine(path, grid[0], scale)
    for _, u in steps:
        y = [level, *y[: order - 1]]
        corrections = _newton(integrals, y, order) if predicted else ()
        taken_back = predicted
        if u == 1.0:
            a, integrals = 0.0, (path.beta(1.0), 0.0, 0.0)
        else:
            beta_u = path.beta(u)
            sigma_u, level, root_u, third_u = _sine(path, u, scale)
            a, unit = sigma_u / sigma, sigma_u / scale
            integrals = beta_u - a * beta, unit * (root - root_u), unit * (third - third_u)
            beta, sigma, root, third = beta_u, sigma_u, root_u, third_u
        predicted = _newton(integrals, y, order)
        b = list(predicted)
        if a and taken_back:
            b += [0.0] * (1 + len(taken_back) - len(b))
            for j, weight in enumerate(corrections):
                b[j] += a * weight
            for j, weight in enumerate(taken_back):
                b[j + 1] -= a * weight
        rows.append((a, tuple(b), 0.0))
    return one_stage(f"abm{order}", order, steps, rows)


def predictor_corrector(
    path: Path,
    grid: Sequence[float],
    predictor: str | Solver = "reverse_diffusion",
    corrector: str = "langevin",
    steps: int = 1,
    ratio: float = 0.16,
) -> Table:
    """Any solver with Langevin rows after each of its steps, see `correctors.corrected`.

    N steps of a one-evaluation predictor take N + (N - 1) ``steps`` evaluations on a grid to t = 1.

    Args:
        predictor: a name of `SOLVERS` or a solver.
        corrector: a name of `correctors.CORRECTORS`.
        steps: the corrector's rows a step.
        ratio: r of the corrector's step 2 (r sigma)^2, in (0, 1).
    """
    if corrector not in CORRECTORS:
        raise UserError(f"unknown corrector {corrector!r}; choose one of {', '.join(CORRECTORS)}")
    build = solver(predictor) if isinstance(predictor, str) else predictor
    rows = partial(CORRECTORS[corrector], steps=steps, ratio=ratio)
    return corrected(build(path, grid), path, rows)


SOLVERS: dict[str, Callable[..., Table]] = {
    "euler": euler,
    "heun": heun,
    "midpoint": midpoint,
    "rk4": rk4,
    "ddim": ddim,
    "ddpm": partial(ddim, eta=1.0),
    "dpmpp1": partial(dpmpp, order=1),
    "dpmpp2": partial(dpmpp, order=2),
    "dpmpp3": partial(dpmpp, order=3),
    "abm2": partial(abm, order=2),
    "abm3": partial(abm, order=3),
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral": ancestral,
    "s4": s4,
    "predictor_corrector": predictor_corrector,
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
