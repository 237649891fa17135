r"""Charts: processes that are Gaussian paths in other coordinates.

A chart y = y(x) takes data to coordinates in which the process is one of `core.paths`. Everything
else in this library then works on y, and x = x(y) is applied to the outcome:

    log p_x(x) = log p_y(y) + log |det dy/dx|
    b_x = (dx/dy) b_y,     s_x = (dy/dx) s_y + d/dx log |det dy/dx|

    chart       y        x          process in x
    Shift       x - mu   y + mu     x_t = beta x1 + (1 - beta) mu + sigma e
    Logarithm   ln x     e^y        x_t = x1^beta e^(sigma e)

Shift makes the mean-reverting SDE (``Path.mean_reverting``): mu, one for each sample, is what the
data are degraded to, and its "mean-reverting sampler" is the exponential integrator ``dpmpp`` on
x - mu. A network that knows x speaks of it differently: of the five parametrisations

    denoised_y = denoised_x - mu       vparam_y = vparam_x + sigma mu

move, and noise, score and velocity stay (the velocity of the three-term path holds -beta' mu).

Logarithm makes geometric Brownian motion, dX = (v/2) X du + sqrt(v) X dW, of positive data with
multiplicative noise. (Another growth rate only displaces y by a known amount.) Entry by entry

    s_y = x s_x + 1      b_y = b_x / x      e_y = e_x

but denoised and vparam are means of x1 on one side and of ln x1 on the other: they do not convert,
and a network that predicts them must be asked in y. The SDE of the reverse process in x, by Ito,
with any eps >= 0, is

    dx = [b_x + eps x (x s_x + 2)] dt + sqrt(2 eps) x dW.

Models in x are used by ``charted``:

    process = Process(Part(Centred(), Path.mean_reverting(), "denoised"))
    chart = Shift(apo, Centred())
    model = charted(network, chart, process)
    bridge = process.bridge(chart.to(holo, mask), t, keys, mask)              # to train
    loss = matching_loss(model(bridge.x_t, t, mask), process, bridge)
    drawn = sample(model, process, keys, holo, mask, solver="dpmpp2")         # to sample
    holo = chart.back(drawn.x, mask)

The prior of a mean-reverting process is N(mu, sigma(0)^2), which forgets beta(0) (x1 - mu). In
single precision e^y holds |y| < 87: choose a VP path, or VE of moderate noise, for Logarithm.

References: Luo et al. 2023, "Image restoration with mean-reverting stochastic differential
equations"; Li et al. 2025, "MaRS: a fast sampler for mean reverting diffusion"; Shetty, Madhava
Prasath & Seelamantula 2025, "Dale meets Langevin" (geometric Brownian motion).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from driftworks.core.paths import Path
from driftworks.core.predict import PARAMETRISATIONS, check, per_sample
from driftworks.core.process import Masks, Process, State
from driftworks.core.sample import Model
from driftworks.core.spaces import Flat, Space, Symmetric
from driftworks.errors import UserError

__all__ = ["Chart", "Charted", "Logarithm", "Shift", "charted"]

Number = float | Tensor  # shared by the batch, or (B,)


class Chart:
    """Coordinates y of data x (B, ...) in ``space``; ``carries`` names what converts.

    Masks are those of the space; masked entries are 0 on both sides.
    """

    space: Space
    carries: tuple[str, ...]

    def to(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """y(x), of the shape of x."""
        raise NotImplementedError

    def back(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """x(y), of the shape of y."""
        raise NotImplementedError

    def log_det(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """log |det dy/dx| over the degrees of freedom of each sample, float64 (B,)."""
        raise NotImplementedError

    def drift(self, velocity: Tensor, score: Tensor, x: Tensor, eps: Number) -> Tensor:
        """Drift in x of the SDE with noise level eps (float or (B,)), from b_x and s_x."""
        raise NotImplementedError

    def diffusion(self, x: Tensor, eps: Number) -> Tensor:
        """What multiplies dW in x for noise level eps; of the shape of x."""
        raise NotImplementedError

    def prediction_to(
        self,
        prediction: Tensor,
        predicts: str,
        x: Tensor,
        mask: Tensor | None = None,
        path: Path | None = None,
        t: Number = 0.0,
    ) -> Tensor:
        """A prediction about y from one about x at state x.

        Only the vparam of Shift needs the path and the time. UserError if the chart does not carry
        this kind.
        """
        scale, offset = self._affine(self._carried(predicts), self._ones(x, mask), path, t)
        return self._keep(scale * prediction + offset, mask)

    def prediction_back(
        self,
        prediction: Tensor,
        predicts: str,
        x: Tensor,
        mask: Tensor | None = None,
        path: Path | None = None,
        t: Number = 0.0,
    ) -> Tensor:
        """The inverse of ``prediction_to``: a prediction about x, still given the state x."""
        scale, offset = self._affine(self._carried(predicts), self._ones(x, mask), path, t)
        return self._keep((prediction - offset) / scale, mask)

    def recall(self, previous: Tensor, predicts: str) -> Tensor | None:
        """An earlier prediction about y as one about x, None if that takes the earlier state."""
        raise NotImplementedError

    def _affine(self, predicts: str, x: Tensor, path: Path | None, t: Number) -> tuple[Any, Any]:
        """(scale, offset) of prediction_y = scale prediction_x + offset."""
        raise NotImplementedError

    def _carried(self, predicts: str) -> str:
        if check(predicts) not in self.carries:
            raise UserError(
                f"{type(self).__name__} does not carry {predicts!r} from one side to the other, "
                f"only {', '.join(self.carries)}; ask a model in its own coordinates"
            )
        return predicts

    def _keep(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x with zeros where nothing is."""
        entries = self.space.entry_mask(mask, x)
        return x if entries is None else x.masked_fill(~entries, 0)

    def _ones(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x with ones where nothing is, so that logarithms, quotients and gradients are finite."""
        entries = self.space.entry_mask(mask, x)
        return x if entries is None else x.masked_fill(~entries, 1)


@dataclass(frozen=True, eq=False)
class Shift(Chart):
    """y = x - mu for the conditions mu (B, ...) of the batch (or one that broadcasts to it).

    On a `Centred` space y is centred whatever the frames of x and mu, and ``back`` answers in the
    frame of mu.
    """

    mu: Tensor
    space: Space = field(default_factory=Flat)
    carries = PARAMETRISATIONS

    def to(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.space.project(x - self.mu.to(x), mask)

    def back(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return self._keep(y + self.mu.to(y), mask)

    def log_det(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def drift(self, velocity: Tensor, score: Tensor, x: Tensor, eps: Number) -> Tensor:
        return velocity + per_sample(eps, x) * score

    def diffusion(self, x: Tensor, eps: Number) -> Tensor:
        return torch.ones_like(x) * _root(eps, x)

    def recall(self, previous: Tensor, predicts: str) -> Tensor | None:
        if predicts == "vparam":
            return None
        return previous + self.mu.to(previous) if predicts == "denoised" else previous

    def _affine(self, predicts: str, x: Tensor, path: Path | None, t: Number) -> tuple[Any, Any]:
        mu = self.mu.to(x)
        if predicts == "denoised":
            return 1.0, -mu
        if predicts == "vparam":
            if path is None:
                raise UserError("Shift needs the path and the time to convert vparam")
            return 1.0, per_sample(path.sigma(t), x) * mu
        return 1.0, 0.0


@dataclass(frozen=True)
class Logarithm(Chart):
    """y = ln x for positive data in a `Flat` or `Symmetric` space."""

    space: Space = field(default_factory=Flat)
    carries = ("noise", "velocity", "score")

    def __post_init__(self) -> None:
        if not isinstance(self.space, Flat | Symmetric):
            raise UserError(f"positive entries live in Flat or Symmetric, not in {self.space}")

    def to(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """ln x; UserError where an entry that exists is not a positive number."""
        x = self._ones(x, mask)
        bad = ~((x > 0.0) & x.isfinite())
        if bad.any():
            worst = x[bad][0].item()
            raise UserError(
                f"the logarithm needs positive data: {int(bad.sum())} of {x.numel()} entries are "
                f"not, such as {worst:g}"
            )
        return x.log()

    def back(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return self._keep(y.exp(), mask)

    def log_det(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        once = 0.5 if isinstance(self.space, Symmetric) else 1.0
        return -once * self.to(x.double(), mask).flatten(1).sum(1)

    def drift(self, velocity: Tensor, score: Tensor, x: Tensor, eps: Number) -> Tensor:
        return velocity + per_sample(eps, x) * x * (x * score + 2.0)

    def diffusion(self, x: Tensor, eps: Number) -> Tensor:
        return x * _root(eps, x)

    def recall(self, previous: Tensor, predicts: str) -> Tensor | None:
        return previous if predicts == "noise" else None

    def _affine(self, predicts: str, x: Tensor, path: Path | None, t: Number) -> tuple[Any, Any]:
        if predicts == "score":
            return x, 1.0
        return (1.0 / x, 0.0) if predicts == "velocity" else (1.0, 0.0)


def _root(eps: Number, x: Tensor) -> Number:
    """sqrt(2 eps), shaped for x."""
    return per_sample((2.0 * eps).sqrt() if isinstance(eps, Tensor) else math.sqrt(2.0 * eps), x)


class Charted:
    """A model on y made of a model on x; ``charted`` builds it.

    The answer to the row before, ``previous``, reaches the model where it converts without the
    state it was given for (`Chart.recall`); otherwise the model sees None.
    """

    def __init__(self, model: Model, charts: Mapping[str, Chart], process: Process) -> None:
        for name, chart in charts.items():
            if name not in process.parts:
                parts = ", ".join(process.parts)
                raise UserError(f"a chart for the unknown part {name!r}; the parts are {parts}")
            part = process.parts[name]
            if not isinstance(part.path, Path):
                kind = type(part.path).__name__
                raise UserError(f"part {name!r} follows {kind}; charts are for Gaussian paths")
            if chart.space != part.space:
                raise UserError(
                    f"part {name!r} lives in {part.space}, its chart in {chart.space}: "
                    "give the chart the part's space"
                )
            chart._carried(part.predicts)
        self.model, self.charts, self.process = model, dict(charts), process
        self.evaluations = getattr(model, "evaluations", 1)

    def __call__(
        self,
        x: State,
        t: Tensor,
        mask: Masks = None,
        cond: Any = None,
        previous: State | None = None,
    ) -> State:
        """The prediction about y at the state ``x`` in y; shapes as the model's."""
        process = self.process
        states = dict(process.unpack(x))
        for name, chart in self.charts.items():
            states[name] = chart.back(states[name], process.mask_of(name, mask))
        answer = self.model(
            process.pack(states), t, mask=mask, cond=cond, previous=self._recall(previous)
        )
        if not isinstance(answer, Tensor | dict):
            raise UserError(
                f"a charted model answers with states, got {type(answer).__name__}: chart the "
                "model first, and weigh or guide what comes out"
            )
        predictions = dict(process.unpack(answer))
        for name, chart in self.charts.items():
            part, entries = process.parts[name], process.mask_of(name, mask)
            assert isinstance(part.path, Path)
            predictions[name] = chart.prediction_to(
                predictions[name], part.predicts, states[name], entries, part.path, t
            )
        return process.pack(predictions)

    def _recall(self, previous: State | None) -> State | None:
        if previous is None:
            return None
        answers = dict(self.process.unpack(previous))
        for name, chart in self.charts.items():
            recalled = chart.recall(answers[name], self.process.parts[name].predicts)
            if recalled is None:
                return None
            answers[name] = recalled
        return self.process.pack(answers)


def charted(model: Model, chart: Chart | Mapping[str, Chart], process: Process) -> Charted:
    """A model that knows x, ready for ``sample`` and ``matching_loss`` in the coordinates y.

    Args:
        model: takes and answers in x, in the parametrisation of each part.
        chart: of a single-part process; or charts by the name of their part. Parts without a chart
            are passed through.
        process: the process in y.

    UserError for unknown parts, another space, or a parametrisation that does not convert.
    """
    if isinstance(chart, Chart):
        if not process.single:
            raise UserError(f"name the chart's part, one of {', '.join(process.parts)}")
        chart = {"x": chart}
    return Charted(model, chart, process)
