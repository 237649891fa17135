r"""Steps of the reverse SDE, from noise to data.

Every dx = (b + eps s) dt + sqrt(2 eps) dW with s = grad log rho_t and eps_t >= 0 has the marginals
of the path; b = a x + lam s is the probability flow (eps = 0), and eps = lam the classical reverse
SDE of the forward noising process, whose exact transition from u to the noisier t < u is

    x_t = k x_u + q xi,     k = beta_t / beta_u,     q^2 = sigma_t^2 - k^2 sigma_u^2.

With h = u - t, a step t -> u is

    euler_maruyama      x + h (b + eps s) + sqrt(2 eps h) xi
    reverse_diffusion   (2 - k) x + q^2 s + q xi                 the transition run backwards
    ancestral           (x + q^2 s) / k + c xi                   the posterior mean at x1 = D
                        c = q sigma_u / sigma_t ("posterior") or q ("forward")
    s4                  half a step of dx = a x dt + sqrt(2 lam) dW, which is solved exactly,
                        then the kick 2 lam h s, then the other half

eps may be a diagonal matrix E: with dx = (b + E s) dt + sqrt(2 E) dW the two new terms of the
Fokker-Planck equation, -div(rho E s) and div(E grad rho), cancel entry by entry, so each entry may
have its own noise level: 0 lets it follow the ODE (a scaffold that keeps the shape it was given by
its noise), 1 the SDE (an R-group that is drawn anew).

The transitions of the first kind serve any path; for VP and VE they are the "reverse diffusion" and
"ancestral" predictors of Song et al. 2021. "posterior" noise is exact for a single data point and
equals DDPM; "forward" noise is exact for N(0, I) on VP. They differ by one order of h.

S4 splits the reverse SDE (Strang). Backwards, the linear half is unstable: over half a step its
mean grows by beta_m / beta_t and its variance is (beta_m sigma_t / beta_t)^2 - sigma_m^2, which on
VP, with B the integral of the rate over the half, is e^B - 1 (and not 1 - e^{-B}, the variance of
the forward half). The score is asked once, where the step starts, so the order is 1. The same score
may serve a Langevin move of step d = 2 (ratio sigma_t)^2 before the step, as in Jo et al. 2022.

References: Song et al. 2021, "Score-based generative modeling through SDEs", appendices E and F; Ho
et al. 2020; Jo, Lee & Hwang 2022 (S4); Albergo, Boffi & Vanden-Eijnden 2023 (free eps).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from driftworks.core.paths import Path
from driftworks.core.tables import Coefficient, Step, Table, intervals, jump, nonnegative, one_stage
from driftworks.errors import UserError

__all__ = ["Noise", "ancestral", "euler_maruyama", "reverse_diffusion", "s4"]

Noise = Coefficient | Callable[[float], Coefficient]

PROFILES = ("reverse", "sigma", "constant")
VARIANCES = ("posterior", "forward")


def euler_maruyama(
    path: Path,
    grid: Sequence[float],
    noise: Noise = 1.0,
    profile: str = "reverse",
    denoise: bool = True,
) -> Table:
    """Euler-Maruyama of dx = (b + eps s) dt + sqrt(2 eps) dW: weak order 1.

    Every eps_t >= 0 has the same marginals; ``noise`` multiplies one of three profiles, bounded at
    both ends: "reverse" eps = sigma w / (beta + .01), the reverse SDE (on the linear path that of
    Proteina, (1 - t) / (t + .01)), "sigma" eps = sigma, "constant" eps = 1.

    Args:
        noise: a number; a function of the time at which a step starts; or, one level an entry, a
            tensor (1 or B, ...) as `Table` takes it, or a function that returns one. Entries of
            level 0 follow the ODE, entries of level 1 the SDE of the profile.
        profile: "reverse", "sigma" or "constant".
        denoise: False replaces the final jump by the method's own, noisy, row.

    Raises UserError for an unknown profile and for noise that is negative or not finite.
    """
    if profile not in PROFILES:
        raise UserError(f"unknown noise profile {profile!r}; choose one of {', '.join(PROFILES)}")
    level: Coefficient = 0.0 if callable(noise) else _level(noise)
    steps = intervals(grid)
    rows: list[Step] = []
    for t, u in steps:
        if u == 1.0 and denoise:
            rows.append(jump(path))
            continue
        h, beta, sigma = u - t, path.beta(t), path.sigma(t)
        eps = _level(noise(t)) if callable(noise) else level
        if profile == "sigma":
            eps = eps * sigma
        elif profile == "reverse":
            eps = eps * (sigma * path.wronskian(t) / (beta + 0.01))
        slope = path.dsigma(t) / sigma
        drive = path.dbeta(t) - slope * beta
        pull = eps / (sigma * sigma)
        spread = 2.0 * h * eps
        c = spread.sqrt() if isinstance(spread, Tensor) else math.sqrt(spread)
        rows.append((1.0 + h * (slope - pull), (h * (drive + pull * beta),), c))
    return one_stage("euler_maruyama", 1, steps, rows)


def _level(noise: Coefficient) -> Coefficient:
    """A noise level: a float, or float64 with one level an entry."""
    if not isinstance(noise, Tensor):
        nonnegative(noise=noise)
        return float(noise)
    if noise.ndim == 0:
        return _level(noise.item())
    if not bool((noise.isfinite() & (noise >= 0.0)).all()):
        raise UserError("noise per entry must be finite and >= 0 everywhere")
    return noise.detach().to(torch.float64)


def _transition(path: Path, grid: Sequence[float], row: Callable[..., Step]) -> list[Step]:
    """Rows ``row(k, kept, fresh, beta_u, sigma_t, sigma_u)`` from the transitions u to t.

    ``fresh`` = (q / sigma_t)^2 is the share of the noise at t that came in since u, and
    ``kept`` = 1 - fresh.
    """
    rows: list[Step] = []
    beta, sigma = path.beta(grid[0]), path.sigma(grid[0])
    for u in grid[1:]:
        if u == 1.0:
            rows.append(jump(path))
            continue
        beta_u, sigma_u = path.beta(u), path.sigma(u)
        k = beta / beta_u
        kept = min(1.0, (k * sigma_u / sigma) ** 2)
        rows.append(row(k, kept, 1.0 - kept, beta_u, sigma, sigma_u))
        beta, sigma = beta_u, sigma_u
    return rows


def reverse_diffusion(path: Path, grid: Sequence[float]) -> Table:
    """The noising transition run backwards, the score held: weak order 1."""

    def row(
        k: float, kept: float, fresh: float, beta_u: float, sigma: float, sigma_u: float
    ) -> Step:
        return 1.0 - k + kept, (k * beta_u * fresh,), sigma * math.sqrt(fresh)

    steps = intervals(grid)
    return one_stage("reverse_diffusion", 1, steps, _transition(path, grid, row))


def ancestral(path: Path, grid: Sequence[float], variance: str = "posterior") -> Table:
    """Draws from the posterior p(x_u | x_t, x1 = D), of its own or of the forward ``variance``.

    Weak order 1. With "posterior" it is ``ddim(eta=1)``.
    """
    if variance not in VARIANCES:
        raise UserError(f"unknown variance {variance!r}; choose one of {', '.join(VARIANCES)}")
    forward = variance == "forward"

    def row(
        k: float, kept: float, fresh: float, beta_u: float, sigma: float, sigma_u: float
    ) -> Step:
        c = (sigma if forward else sigma_u) * math.sqrt(fresh)
        return k * (sigma_u / sigma) ** 2, (beta_u * fresh,), c

    steps = intervals(grid)
    return one_stage("ancestral", 1, steps, _transition(path, grid, row))


def s4(path: Path, grid: Sequence[float], ratio: float = 0.0) -> Table:
    """Strang splitting of the reverse SDE, one evaluation a step: weak order 1.

    ``ratio`` > 0 adds, from the same evaluation, the Langevin move of `correctors.langevin`.

    Raises UserError where beta = 0, since there the linear half-step is infinite: the linear and
    cosine paths must start a little later, from an initial state.
    """
    nonnegative(ratio=ratio)
    steps = intervals(grid)
    if path.beta(grid[0]) == 0.0:
        raise UserError(
            f"s4 cannot start where beta = 0, as at {grid[0]} on this path: its backward linear "
            "step is infinite there; start the grid later and give the initial state"
        )
    rows: list[Step] = []
    for t, u in steps:
        if u == 1.0:
            rows.append(jump(path))
            continue
        middle = 0.5 * (t + u)
        beta, sigma, beta_u = path.beta(t), path.sigma(t), path.beta(u)
        growth = beta_u / beta
        kick = 2.0 * path.lam(middle) * (u - t) * beta_u / path.beta(middle) / (sigma * sigma)
        pull = kick + 2.0 * ratio * ratio * growth
        langevin = 4.0 * (ratio * growth * sigma) ** 2
        spread = max(0.0, (growth * sigma) ** 2 - path.sigma(u) ** 2) + langevin
        rows.append((growth - pull, (pull * beta,), math.sqrt(spread)))
    return one_stage("s4", 1, steps, rows)
