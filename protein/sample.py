r"""Drawing chains: the flow run from noise to data as an ODE or as an SDE at low temperature.

With v the velocity and s = (t v - x) / (1 - t) the score of x_t, the SDE is

    dx = (v + g s) dt + sqrt(2 g gamma) dW,      g(t) = 1 / (t + 0.01) to t = 0.99, then 0

(Geffner et al. 2025, "Proteina", with g = 1/t). At gamma = 1 every g has the marginals of the path;
gamma < 1 draws less noise than the score pays for, which sharpens the law, at the cost of variety,
towards no law that could be named. gamma = 0 leaves a deterministic drift. The ODE (g = 0) follows
the plain probability flow. Times are those of `grids.log`, t_k = (1 - 10^(-2 k / n)) / 0.99.

Steps are those of Euler and Maruyama, with one guard: g is at most (1 - t)^2 / (2 h) in a step h,
so that the score's pull covers at most half the way to t D. Every g being right at gamma = 1, this
costs nothing. Of 400 steps it concerns the first two, where 1 / (t + 0.01) would overshoot, and 62
between t = 0.969 and 0.99, where the noise left is small; and it keeps runs of 50 steps stable,
which otherwise diverge at both ends.

What the low temperature means to do, to sample q^power, `annealed` does with weights: particles
move by the same network and are resampled (`core.weigh`, `core.particles`). It answers with the law
it names, as far as the particles suffice; they stop being independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from driftworks.core import grids
from driftworks.core.guide import Guided, autoguide, cfg
from driftworks.core.keys import Keys
from driftworks.core.particles import Resampling
from driftworks.core.paths import Path
from driftworks.core.process import Masks, Process, State
from driftworks.core.sample import Model, Samples, sample
from driftworks.core.solvers import Solver, Table
from driftworks.core.tables import Step, intervals, jump, nonnegative, one_stage
from driftworks.core.weigh import anneal
from driftworks.errors import UserError
from driftworks.protein.network import chain_size

__all__ = ["GAMMA", "SOLVERS", "STEPS", "annealed", "generate", "guided", "low_temperature"]

STEPS = 400
GAMMA = 0.45
SOLVERS = ("sde", "ode")
LAST = 0.99  # beyond it the SDE follows the ODE
MOST = 0.5  # share of the way to t D that the score may pull in a step


def low_temperature(gamma: float = 1.0, last: float = LAST) -> Solver:
    """The SDE of the module's docstring as a solver: order 1, one evaluation a step.

    Raises `UserError` for a noise scale that is negative or not finite.
    """
    nonnegative(gamma=gamma)

    def build(path: Path, grid: Sequence[float]) -> Table:
        steps = intervals(grid)
        rows: list[Step] = []
        for t, u in steps:
            if u == 1.0:
                rows.append(jump(path))
                continue
            h, beta, sigma = u - t, path.beta(t), path.sigma(t)
            g = 1.0 / (t + 0.01) if t <= last else 0.0
            pull = min(g * h / (sigma * sigma), MOST)
            slope = path.dsigma(t) / sigma
            drive = path.dbeta(t) - slope * beta
            c = sigma * math.sqrt(2.0 * gamma * pull)
            rows.append((1.0 + h * slope - pull, (h * drive + pull * beta,), c))
        return one_stage(f"sde({gamma:g})", 1, steps, rows)

    return build


def guided(
    model: Model, weight: float, weak: Model | None = None, mix: float = 0.0
) -> Model:
    """w D + (1 - w) [mix D_weak + (1 - mix) D_null]: classifier-free guidance and autoguidance.

    ``mix`` 0 is classifier-free guidance, 1 autoguidance with the model ``weak``, a less trained
    copy of the model. Raises `UserError` for a mix outside [0, 1] and for one that lacks ``weak``.
    """
    if not 0.0 <= mix <= 1.0:
        raise UserError(f"mix is a share in [0, 1], got {mix!r}")
    if mix > 0.0 and weak is None:
        raise UserError("autoguidance needs the weaker model it guides away from")
    if weight == 1.0:
        return model
    if weak is None or mix == 0.0:
        return cfg(model, weight)
    if mix == 1.0:
        return autoguide(model, weak, weight)
    null = Guided(model, None, 0.0)  # the model without its condition
    return autoguide(model, Guided(weak, null, mix), weight)


def generate(
    model: Model,
    process: Process,
    keys: Keys,
    mask: Tensor,
    steps: int = STEPS,
    *,
    solver: str = "sde",
    gamma: float = GAMMA,
    cond: Mapping[str, Tensor] | None = None,
    guide: Callable[[Model], Model] | None = None,
    self_condition: bool = True,
    **settings: Any,
) -> Samples:
    """Chains (B, L, 3) in nm on the residues of ``mask`` (B, L), from noise to data.

    ``solver`` is "sde" or "ode"; ``gamma`` is the noise scale of the former. ``settings`` go to
    `core.sample.sample` (``fixed``, ``callback``, ``initial``, ...).
    """
    if solver not in SOLVERS:
        raise UserError(f"unknown solver {solver!r}; choose one of {', '.join(SOLVERS)}")
    asked = model if self_condition else Forgetful(model)
    return sample(
        asked, process, keys, (mask.shape[1], 3), mask, steps=steps,
        solver=low_temperature(gamma) if solver == "sde" else "euler",
        cond=cond, guide=guide, **({"grid": grids.log} | settings),
    )


def annealed(
    model: Model,
    process: Process,
    keys: Keys,
    mask: Tensor,
    power: float,
    steps: int = STEPS,
    *,
    cond: Mapping[str, Tensor] | None = None,
    ess: float = 0.5,
) -> tuple[Samples, Tensor]:
    """Particles (B, L, 3) of the law q^power of one length, and the rows (B,) drawn by weight.

    The reverse SDE with Feynman-Kac weights against the Gaussian of a chain's size; particles are
    resampled when their effective number falls below the share ``ess``. All keys must ask for the
    same length and condition. Chains of the rows are an equally weighted set, with repeats.
    """
    size = float(chain_size(mask.sum(1)[:1].double()))
    target: Any = anneal(process, power, reference=size)
    drawn = sample(
        Forgetful(model), process, keys, (mask.shape[1], 3), mask, solver="euler_maruyama",
        steps=steps, grid=grids.log, cond=cond,
        guide=target, particles=Resampling(ess),
    )
    assert drawn.weights is not None
    return drawn, drawn.weights.draw(keys)


class Forgetful:
    """A model that is never shown its previous answer."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.evaluations = getattr(model, "evaluations", 1)
        self.batched_guidance = getattr(model, "batched_guidance", False)
        if hasattr(model, "null"):
            self.null = model.null

    def __call__(
        self, x: State, t: Tensor, mask: Masks = None, cond: Any = None,
        previous: State | None = None,
    ) -> State:
        return self.model(x, t, mask=mask, cond=cond)
