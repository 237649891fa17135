r"""Rotations in a process: the space SO(3), two routes to the data, and their moves.

A part of rotations has states (B, ..., 3, 3) and dof 3 a rotation; masked rotations are zero
matrices, which every operation here leaves as they are. Rigid frames, SE(3), are a product:

    Process({"translations": Part(Centred(), Path.linear()),
             "rotations": Part(Rotations(), Geodesic())})

Both routes start from the Haar measure. With c = c(t) a clock from 0 to 1 (t unless warped):

    Geodesic   x_t = x_0 exp(c log(x_0^T x_1)),        x_0 ~ Haar
    Heat       x_t = x_1 z,  z ~ IGSO(3) of width e,   e = high^(1-c) low^c

Everything is expressed by one tangent vector in the body frame of x_t, the pull p, whose posterior
mean a network learns and which moves the state, x <- x exp(share p + noise):

    route      p                          prediction               share of a step t -> u
    Geodesic   log(x_t^T x_1)             velocity = c' p / (1-c)  (c_u - c_t) / (1 - c_t)
    Heat       2 e^2 grad log f(z; e)     score = p / (2 e^2)      1 - sqrt(r (1 - eta^2 (1 - r)))

"denoised" is the rotation D whose own pull at x_t is the predicted one: D = x_t exp(p) on the
geodesic route, and the same up to terms of order e^2 on the other. So D says as much as the tangent
vector does, and training with the squared error of the pull makes the vector field exact whatever
is predicted (Chen & Lipman 2024; Bose et al. 2024; Yim et al. 2023).

Heat is a variance exploding diffusion: v = 2 e^2 is the variance of a tangent component, and
d_v f = (1/2) Laplace f. Its reverse in v is dx = (1 + eta^2) / 2 grad log f dv + eta dW for any
eta, 0 the probability flow and 1 the reverse diffusion. A step with r = v_u / v_t adds noise of
variance eta^2 v_u (1 - r) in each component. It is the step of DDIM(eta), exact in the flat limit
for a single data point, and never adds noise that the state at u should not have. Its order (weak)
is 1.

Steps without noise remember the last pull. On the clock l, -log(1 - c) or -log e, the flow of both
routes is x' = x hat(p), a step of length h has share 1 - e^{-h}, and p' = -p + n, where n is the
motion of D, 0 for a single data point. With n = (p_k - e^{-h_prev} p_{k-1}) / (1 - e^{-h_prev}) the
step is x exp(share p_k + (h - share) n). This is the exponential Adams-Bashforth method of order 2,
of which DPM-Solver++(2M) is the flat case. The order holds on SO(3) without commutators, but it
needs a smooth field; that of the geodesic route has kinks, behind which the gain is smaller.

The step that ends at t = 1 is the jump to D, as on flat paths: there c = 1, or the width is
``low``, noise that nobody wants.

Left multiplication of all rotations by one commutes with all of this, because tangent vectors,
their noise included, live in the body frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from driftworks.core import so3
from driftworks.core.formula import formula, positive
from driftworks.core.keys import Keys
from driftworks.core.spaces import Space
from driftworks.core.warps import Warp
from driftworks.errors import UserError

if TYPE_CHECKING:
    from driftworks.core.movers import Known, Memory
    from driftworks.core.process import Part

__all__ = ["Geodesic", "Heat", "RotationMover", "RotationRoute", "Rotations"]


@dataclass(frozen=True)
class Rotations(Space):
    """Rotation matrices (B, ..., 3, 3); masked ones are zero matrices."""

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The nearest rotations in Frobenius norm."""
        entries = self.entry_mask(mask, x)
        if entries is None:
            return so3.nearest(x)
        eye = torch.eye(3, dtype=x.dtype, device=x.device)
        return so3.nearest(torch.where(entries, x, eye)).masked_fill(~entries, 0)

    def noise(
        self, keys: Keys, stream: str, step: int, like: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Rotations of the Haar measure, shaped as ``like``; keyed by sample."""
        x = so3.haar(keys, stream, step, tuple(like.shape[1:-2]), like.dtype)
        return super().project(x, mask)

    def dof(self, mask: Tensor | None, x: Tensor) -> Tensor:
        return super().dof(mask, x[..., 0])


def _each(value: float | Tensor, x: Tensor) -> float | Tensor:
    """A number per sample (B,), float64, shaped for the rotations (B, ..., 3, 3) of x."""
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    return value.view(-1, *(1,) * (x.ndim - 3))


def _scaled(tangent: Tensor, factor: float | Tensor) -> Tensor:
    """Tangent vectors (B, ..., 3) times numbers (B, 1...) or one number, dtype kept."""
    if isinstance(factor, Tensor):
        factor = factor.unsqueeze(-1).to(tangent.dtype)
    return tangent * factor


@dataclass(frozen=True)
class RotationRoute:
    """What the two routes share; a `process.Route`. Times are floats or tensors (B,)."""

    warp: Warp | None = None

    predictions: ClassVar[tuple[str, ...]] = ("denoised",)

    @property
    def order(self) -> int:
        """The order in the step size on smooth fields: of the flow, or with noise of the law."""
        return 2

    @formula
    def clock(self, t: Any, m: Any) -> Any:
        """c(t)."""
        return 1.0 * t if self.warp is None else self.warp.value(t)

    def accepts(self, space: Space, predicts: str) -> str:
        if not isinstance(space, Rotations):
            raise UserError(
                f"{type(space).__name__} cannot follow {type(self).__name__}: it is for Rotations"
            )
        return self._known(predicts)

    def _known(self, predicts: str) -> str:
        if predicts not in self.predictions:
            raise UserError(
                f"{type(self).__name__} cannot predict {predicts!r}; choose one of "
                f"{', '.join(self.predictions)}"
            )
        return predicts

    def prior(
        self, space: Space, keys: Keys, stream: str, like: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The rotations at t = 0, shaped as ``like``."""
        return space.noise(keys, stream, 0, like, mask)

    def bridge(
        self, space: Space, x_1: Tensor, t: Tensor, keys: Keys, stream: str, step: int,
        mask: Tensor | None = None, x_0: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, None]:
        """Draw x_t (B, ..., 3, 3) for data ``x_1`` at times ``t`` (B,); also the noise, and None.
        """
        raise NotImplementedError

    def pull(self, x: Tensor, prediction: Tensor, t: float | Tensor, predicts: str) -> Tensor:
        """The pull (B, ..., 3) behind a prediction at x; denoised ones must be rotations."""
        if predicts == "denoised":
            return self._toward(so3.log(x.mT @ prediction), x, t)
        return _scaled(prediction, _each(self._lever(t), x))

    def express(self, pull: Tensor, x: Tensor, t: float | Tensor, predicts: str) -> Tensor:
        """The prediction of kind ``predicts`` at x that has this ``pull`` (B, ..., 3)."""
        if predicts == "denoised":
            return so3.orthonormal(x @ so3.exp(self._away(pull, x, t)))
        lever = self._lever(t)
        if isinstance(lever, Tensor):
            inverse = torch.where(lever > 0.0, 1.0 / lever, 0.0)
            return _scaled(pull, _each(inverse, x))
        return pull / lever if lever > 0.0 else torch.zeros_like(pull)

    def convert(
        self, prediction: Tensor, x: Tensor, t: float | Tensor, source: str, target: str
    ) -> Tensor:
        """Turn a prediction at x of kind ``source`` into kind ``target``.

        Denoised predictions are rotations (B, ..., 3, 3), others tangent vectors (B, ..., 3).
        Tangent predictions are 0 where the route ends. Raises UserError for an unknown kind.
        """
        if self._known(source) == self._known(target):
            return prediction
        return self.express(self.pull(x, prediction, t, source), x, t, target)

    def error(
        self, space: Space, prediction: Tensor, x_1: Tensor, x_t: Tensor, t: Tensor,
        mask: Tensor | None, predicts: str, cap: float | None = None,
    ) -> Tensor:
        """The squared error of the pull, in radians^2, of each rotation, (B, ...); 0 where masked.

        Denoised predictions may be any matrices: the nearest rotation counts, and the gradient
        passes through it. With ``cap`` the error is that of the velocity, its time factor at most
        ``cap`` (as `train.velocity_weight`).
        """
        prediction = self._inside(space, prediction, mask, predicts).to(
            torch.promote_types(prediction.dtype, x_t.dtype)
        )
        x_t = x_t.to(prediction.dtype)
        wanted = self.pull(x_t, x_1.to(prediction.dtype), t, "denoised")
        error = (self.pull(x_t, prediction, t, predicts) - wanted).square().sum(-1)
        if cap is not None:
            weight = _each(self._speed(t).square().clamp(max=cap), x_t)
            error = error * weight.to(error.dtype)  # type: ignore[union-attr]
        entries = space.entry_mask(mask, error)
        return error if entries is None else error.masked_fill(~entries, 0)

    def mover(
        self, name: str, part: Part, times: Sequence[float], ends: Sequence[float], keys: Keys,
        mask: Tensor | None, known: Known | None, stream: str,
    ) -> RotationMover:
        """The part's moves along the rows of a clock."""
        return RotationMover(name, part, times, ends, keys, mask, known, stream)

    def step(self, t: float, u: float) -> tuple[float, float]:
        """(share, deviation) of the move x exp(share p + deviation z) from t to u."""
        raise NotImplementedError

    @staticmethod
    def _inside(space: Space, prediction: Tensor, mask: Tensor | None, predicts: str) -> Tensor:
        """The prediction as a rotation, or as a tangent vector that is 0 where masked."""
        if predicts == "denoised":
            return space.project(prediction, mask)
        entries = space.entry_mask(mask, prediction)
        return prediction if entries is None else prediction.masked_fill(~entries, 0)

    def _toward(self, turn: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        """The pull of the rotation x exp(turn)."""
        raise NotImplementedError

    def _away(self, pull: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        """The turn to the rotation that has this pull."""
        raise NotImplementedError

    def _lever(self, t: float | Tensor) -> float | Tensor:
        """The pull in units of the tangent prediction."""
        raise NotImplementedError

    def _speed(self, t: Tensor) -> Tensor:
        """The velocity of the flow in units of the pull."""
        raise NotImplementedError


@dataclass(frozen=True)
class Geodesic(RotationRoute):
    """Flow matching along geodesics: x_t = x_0 exp(c log(x_0^T x_1)) with x_0 of Haar measure.

    Predicts "denoised" or "velocity", the tangent vector of dx / dt. A given x_0 (a coupling) must
    be rotations. Deterministic: there is no score to add noise with.
    """

    predictions: ClassVar[tuple[str, ...]] = ("denoised", "velocity")

    def bridge(
        self, space: Space, x_1: Tensor, t: Tensor, keys: Keys, stream: str, step: int,
        mask: Tensor | None = None, x_0: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, None]:
        if x_0 is None:
            x_0 = space.noise(keys, stream, step, x_1, mask)
        whole = so3.log(x_0.mT @ x_1)
        x_t = x_0 @ so3.exp(_scaled(whole, _each(self.clock(t), x_1)))
        return x_t, x_0, None

    def step(self, t: float, u: float) -> tuple[float, float]:
        left = 1.0 - self.clock(t)
        return (1.0 if u >= 1.0 or left <= 0.0 else 1.0 - (1.0 - self.clock(u)) / left), 0.0

    def _toward(self, turn: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        return turn

    def _away(self, pull: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        return pull

    def _lever(self, t: float | Tensor) -> float | Tensor:
        left = 1.0 - self.clock(t)
        if self.warp is None:
            return left
        speed = self.warp.derivative(t)
        if isinstance(speed, Tensor):
            return torch.where(speed > 0.0, left / speed, 0.0)
        return left / speed if speed > 0.0 else 0.0

    def _speed(self, t: Tensor) -> Tensor:
        speed = 1.0 if self.warp is None else self.warp.derivative(t)
        return speed / (1.0 - self.clock(t))


@dataclass(frozen=True)
class Heat(RotationRoute):
    """Brownian motion: x_t is the data turned by the heat kernel, from width ``high`` to ``low``.

    Predicts "denoised" or "score", the gradient of log rho_t. ``high`` = 2 is within 1e-3 of the
    Haar measure (its E tr is 3 e^{-8}), where sampling starts. ``noise`` in [0, 1] is the eta of
    sampling: 0 the probability flow, 1 the reverse diffusion; training does not see it. In a bridge
    x_0 is the turn z = x_1^T x_t; its size belongs to t, so it cannot be given.

    Raises UserError unless 0 < low < high and 0 <= noise <= 1.
    """

    high: float = 2.0
    low: float = 0.01
    noise: float = 1.0

    predictions: ClassVar[tuple[str, ...]] = ("denoised", "score")

    def __post_init__(self) -> None:
        positive("Heat", high=self.high, low=self.low)
        if self.low >= self.high:
            raise UserError(f"Heat: low must be below high, got {self.low!r} >= {self.high!r}")
        if not 0.0 <= self.noise <= 1.0:
            raise UserError(f"Heat: noise must lie in [0, 1], got {self.noise!r}")

    @property
    def order(self) -> int:
        return 1 if self.noise else 2

    @formula
    def eps(self, t: Any, m: Any) -> Any:
        """The width of the heat kernel at t."""
        return self.high * m.exp(math.log(self.low / self.high) * self.clock(t))

    def bridge(
        self, space: Space, x_1: Tensor, t: Tensor, keys: Keys, stream: str, step: int,
        mask: Tensor | None = None, x_0: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, None]:
        if x_0 is not None:
            raise UserError("the noise of a Heat part depends on time; x_0 cannot be given")
        z = so3.igso3(keys, stream, step, self.eps(t), tuple(x_1.shape[1:-2]), x_1.dtype)
        entries = space.entry_mask(mask, z)
        z = z if entries is None else z.masked_fill(~entries, 0)
        return x_1 @ z, z, None

    def step(self, t: float, u: float) -> tuple[float, float]:
        if u >= 1.0:
            return 1.0, 0.0
        ratio = (self.eps(u) / self.eps(t)) ** 2
        fresh = self.noise**2 * (1.0 - ratio)
        deviation = math.sqrt(2.0 * fresh) * self.eps(u)
        return 1.0 - math.sqrt(ratio * (1.0 - fresh)), deviation

    def _toward(self, turn: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        eps = _each(self.eps(t), x)
        return _scaled(so3.igso3_tangent(-turn, eps), 2.0 * eps * eps)

    def _away(self, pull: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        eps = self.eps(t)
        return so3.igso3_centre(_scaled(pull.double(), _each(0.5 / eps**2, x)), eps).to(x.dtype)

    def _lever(self, t: float | Tensor) -> float | Tensor:
        return 2.0 * self.eps(t) ** 2

    def _speed(self, t: Tensor) -> Tensor:
        rate = math.log(self.high / self.low)
        return rate * (torch.ones_like(t) if self.warp is None else self.warp.derivative(t))


class RotationMover:
    """A part of rotations on its way through the rows' times; a `movers.Mover`.

    It moves on rows that move the clock. ``keys``, ``mask``, ``known`` and ``stream`` are as for
    the other movers. Known rotations must be rotations; they enter as the exact D. Raises UserError
    otherwise.
    """

    def __init__(
        self, name: str, part: Part, times: Sequence[float], ends: Sequence[float], keys: Keys,
        mask: Tensor | None, known: Known | None, stream: str,
    ):
        assert isinstance(part.path, RotationRoute)
        self.name, self.space, self.path, self.predicts = name, part.space, part.path, part.predicts
        self.times, self.ends, self.stream = times, ends, f"{stream}/{name}"
        self.keys, self.mask, self.known = keys, mask, known
        self.rows: list[tuple[float, float, float] | None] = []
        last = 0.0  # the share of the last step that moved
        for t, u in zip(times, ends, strict=True):
            if not t < u:
                self.rows.append(None)
                continue
            share, deviation = part.path.step(t, u)
            # the weights of both pulls: share + more and -more (1 - last)
            bend = last > 0.0 and share < 1.0 and not deviation
            more = (-math.log1p(-share) - share) / last if bend else 0.0
            self.rows.append((share + more, -more * (1.0 - last), deviation))
            last = share
        self.remembers = any(row is not None and row[1] for row in self.rows)
        self.last: Tensor | None = None
        if known is not None:
            self._check(known)

    def _check(self, known: Known) -> None:
        whole = known.where[..., :1, :1]
        if not torch.equal(known.where, whole.expand_as(known.where)):
            raise UserError(f"fixed part {self.name!r}: rotations are known as a whole or not")
        eye = torch.eye(3, dtype=known.value.dtype, device=known.value.device)
        value = torch.where(whole, known.value, eye)
        off = (value.mT @ value - eye).abs().amax().item()
        if off > 1e-3 or bool((torch.linalg.det(value) < 0.0).any()):
            raise UserError(
                f"fixed part {self.name!r}: known values must be rotation matrices; they are off "
                f"by {off:.2g}"
            )

    def advance(self, k: int, x: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        shape = x.shape if self.predicts == "denoised" else x.shape[:-1]
        if prediction.shape != shape:
            raise ValueError(
                f"prediction {self.predicts!r} of part {self.name!r} has shape "
                f"{tuple(prediction.shape)}, not {tuple(shape)}"
            )
        t, row = self.times[k], self.rows[k]
        p = self.path._inside(self.space, prediction.to(x.dtype), self.mask, self.predicts)
        if self.predicts == "denoised":
            d = p if self.known is None else self.known.put(p)
            pull = self.path.pull(x, d, t, "denoised")
        else:
            pull = self.path.pull(x, p, t, self.predicts)
            d = self.path.express(pull, x, t, "denoised")
            if self.known is not None:
                d = self.known.put(d)
                exact = self.path.pull(x, d, t, "denoised")
                pull = torch.where(self.known.where[..., 0], exact, pull)
        if row is None:
            return x, d
        weight, weight_before, deviation = row
        if self.ends[k] == 1.0:
            return d, d
        turn = weight * pull
        if weight_before:
            assert self.last is not None
            turn = turn.add_(self.last, alpha=weight_before)
        if self.remembers:
            self.last = pull
        if deviation:
            z = self.keys.normal(self.stream, k, tuple(pull.shape[1:]), pull.dtype)
            turn = turn.add_(z, alpha=deviation)
        return so3.orthonormal(x @ so3.exp(turn)), d

    def start(self, x: Tensor) -> Tensor:
        return x

    def finish(self, x: Tensor, complete: bool) -> Tensor:
        x = self.space.project(x, self.mask)
        return self.known.put(x) if complete and self.known is not None else x

    def gather(self, index: Tensor) -> None:
        self.last = None if self.last is None else self.last[index]

    def memory(self) -> Memory:
        return {"pull": self.last}

    def restore(self, memory: Memory) -> None:
        self.last = memory["pull"]
