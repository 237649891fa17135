r"""Consistency in time: the Fokker-Planck equation as a regulariser.

The scores of one density at all times belong together. From the continuity equation
d_t rho + div(rho b) = 0 follows, with s = grad log rho,

    R = d_t s + grad(div b + b . s) = 0,

exactly for the true score and not for a network's (Lai et al. 2023, "FP-Diffusion"). On a Gaussian
path b = a x + lam s; here b and s are what one prediction says of both. With several parts the
bracket is the sum over parts. The derivatives live in the space: div b is the trace of P J P, P
being the projection, pairs of a `Symmetric` part count once, and R is projected.

R grows like 1/sigma^3 towards the data, so the penalty measures it in its own units: with
e = -sigma s and the clock n = log(sigma / beta), |n'| = w / (sigma beta),

    L = mean over degrees of freedom of (sigma R / n')^2,

the rate at which the predicted noise strays from consistency while the noise level changes by a
factor e. In training it takes derivatives of third order, one pair of passes a coordinate: it is
for tens of coordinates. For more of them random signs v, E[v v'] = P, replace the trace by v . J v
(Hutchinson 1989); R_v then has the mean R, and the product of two independent R_v, not the square
of one, has the mean |R|^2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp

from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.predict import convert, per_sample
from driftworks.core.process import Masks, Process, State
from driftworks.core.sample import Model
from driftworks.core.spaces import Space, Symmetric
from driftworks.errors import UserError

__all__ = ["fokker_planck_loss", "fokker_planck_residual"]

Parts = dict[str, Tensor]


def _copies(space: Space) -> int:
    """How often a degree of freedom stands in the state."""
    return 2 if isinstance(space, Symmetric) else 1


def _dot(process: Process, u: Parts, v: Parts) -> Tensor:
    """The inner product of the spaces, summed over parts, (B,)."""
    products = [
        (u[name] * v[name]).flatten(1).sum(1) / _copies(part.space)
        for name, part in process.items()
    ]
    return torch.stack(products).sum(0)


def _checked(process: Process, t: Tensor) -> None:
    for name, part in process.items():
        if not isinstance(part.path, Path):
            raise UserError(
                f"part {name!r} moves by {type(part.path).__name__} and not on a Gaussian path: "
                "its score has no Fokker-Planck residual here"
            )
        ends = (part.path.beta(t) <= 0.0) | (part.path.sigma(t) <= 0.0)
        if bool(ends.any()):
            raise UserError(
                f"the residual needs times inside (0, 1), where part {name!r} has noise and data; "
                f"got {t[ends].tolist()[:5]}"
            )


def _axes(process: Process, x: Parts, mask: Masks) -> list[Parts]:
    """Unit vectors, projected, whose v . J v sum to the trace: one a coordinate that exists."""
    out = []
    zeros = {name: torch.zeros_like(v) for name, v in x.items()}
    for name, part in process.items():
        entries = part.space.entry_mask(process.mask_of(name, mask), x[name])
        everyone = torch.ones_like(x[name], dtype=torch.bool)
        present = (everyone if entries is None else everyone & entries).any(0)
        if isinstance(part.space, Symmetric):
            n = present.shape[0]
            upper = torch.ones(n, n, dtype=torch.bool, device=present.device).triu(1)
            present = present & upper.view(n, n, *[1] * (present.ndim - 2))
        for place in present.flatten().nonzero().squeeze(1).tolist():
            unit = torch.zeros_like(x[name]).flatten(1)
            unit[:, place] = _copies(part.space)  # the mirrored pair is 1 at both its places
            unit = part.space.project(unit.view_as(x[name]), process.mask_of(name, mask))
            out.append(zeros | {name: unit})
    return out


def fokker_planck_residual(
    model: Model,
    process: Process,
    x: State,
    t: Tensor,
    mask: Masks = None,
    cond: object = None,
    probe: State | None = None,
) -> State:
    """R = d_t s + grad(div b + b . s) at (x, t), of the shape of x; zero for the true score.

    Args:
        model: answers in the parts' parametrisations, a smooth function of x and t that allows
            forward-mode derivatives (`torch.func.jvp`). Fused attention has none: use it within
            ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.
        process: real parts on Gaussian paths.
        x: state (B, ...) inside its space.
        t: (B,), inside (0, 1).
        mask, cond: passed on to the model.
        probe: a random state v, E[v v'] = P, for Hutchinson's estimate of div b; without one the
            divergence is exact, by as many forward derivatives as x has coordinates.

    Gradients reach the model's parameters. Raises UserError for parts without a Gaussian path and
    for times at the ends.
    """
    _checked(process, t)
    start = dict(process.unpack(x))
    t = t.double()

    def fields(state: Parts, time: Tensor) -> tuple[Parts, Parts]:
        clock = time.to(next(iter(state.values())).dtype)
        answer: Any = model(process.pack(state), clock, mask=mask, cond=cond)
        answers = process.unpack(answer)
        velocity: Parts = {}
        score: Parts = {}
        for name, part in process.items():
            assert isinstance(part.path, Path)
            m, v = process.mask_of(name, mask), state[name]
            answer = answers[name].to(v.dtype)
            for out, kind in ((velocity, "velocity"), (score, "score")):
                out[name] = part.space.project(
                    convert(part.path, answer, v, time, part.predicts, kind), m
                )
        return velocity, score

    if probe is None:
        directions = _axes(process, start, mask)
    else:
        directions = [process.unpack(probe)]

    def bracket(state: Parts) -> Tensor:
        velocity, score = fields(state, t)
        total = _dot(process, velocity, score)
        for v in directions:
            slope = jvp(lambda s: fields(s, t)[0], (state,), (v,))[1]
            total = total + _dot(process, v, slope)
        return total.sum()  # samples do not see each other, so one gradient serves all

    gradient = grad(bracket)(start)
    change = jvp(lambda time: fields(start, time)[1], (t,), (torch.ones_like(t),))[1]
    return process.pack({
        name: change[name]
        + part.space.project(gradient[name], process.mask_of(name, mask)) * _copies(part.space)
        for name, part in process.items()
    })


def fokker_planck_loss(
    model: Model,
    process: Process,
    x: State,
    t: Tensor,
    mask: Masks = None,
    cond: object = None,
    keys: Keys | None = None,
    step: int = 0,
) -> Tensor:
    """The mean square of the scaled residual over the batch's degrees of freedom, a scalar.

    Arguments as for `fokker_planck_residual`. With ``keys`` (B,) the divergence is estimated with
    two independent Rademacher probes of step ``step``, at a cost that does not grow with x; the
    value then has the exact one as its mean, and may be negative. Add it to a matching loss with a
    small factor.
    """
    if keys is None:
        first = second = process.unpack(fokker_planck_residual(model, process, x, t, mask, cond))
    else:
        first, second = (
            process.unpack(
                fokker_planck_residual(
                    model, process, x, t, mask, cond, _signs(process, x, mask, keys, step, which)
                )
            )
            for which in ("first", "second")
        )
    scaled, count = {}, torch.zeros(len(t), dtype=torch.float64, device=t.device)
    for name, part in process.items():
        assert isinstance(part.path, Path)
        path = part.path
        unit = path.sigma(t) ** 2 * path.beta(t) / path.wronskian(t)
        scaled[name] = first[name] * per_sample(unit * unit, first[name])
        count = count + part.space.dof(process.mask_of(name, mask), first[name])
    return _dot(process, scaled, dict(second)).sum() / count.sum().clamp(min=1.0)


def _signs(
    process: Process, x: State, mask: Masks, keys: Keys, step: int, which: str
) -> State:
    """A Rademacher probe of the spaces: signs of the free noise, projected."""
    out = {}
    for name, part in process.items():
        like, m = process.unpack(x)[name], process.mask_of(name, mask)
        noise = part.space.free_noise(keys, f"fokker-planck/{which}/{name}", step, like, m)
        out[name] = part.space.project(noise.sign(), m)
    return process.pack(out)
