r"""What is wrong with a model, in numbers that come with their error.

`score_agreement`  do two models say the same? At each noise level t, over x_t of the bridge,

        cosine = <a, b> / |a||b|,      error = |a - b| / |b|,

    a and b being the scores of real parts, or the class probabilities of the hidden tokens.

`memorisation`  are samples copies of training data? With d_1 <= d_2 <= ... the distances of a state
    to the training data,

        r = d_1 / mean(d_2 .. d_{k+1})                                       (0: a copy)

    is small only beside a single training point, whatever the density there (Carlini et al. 2023,
    "Extracting training data from diffusion models", section 4.2). Held-out real data say how small
    it is by chance. If the samples are no closer to the training data than those, all r are
    exchangeable, so the number K of n samples below the m-th smallest of the N held-out values has

        K ~ BetaBinomial(n, m, N + 1 - m),      E K / n = m / (N + 1),

    exactly, which gives the p-value. Beside it stands the rank test of Meehan, Chaudhuri & Dasgupta
    2020 on the same r, which sees a shift of all samples where the first sees a few copies.

`ode_sde_gap`  do the probability flow and the SDE of one model end in the same law? They do for the
    exact score. W2 between finite samples is never 0, so it stands beside its floor, W2 between two
    samples of the SDE; their difference has mean 0 when both laws are the same.

What the network thinks of data is taken out by `core.features`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from driftworks.core.distances import EXACT, Sample, least, mmd, w2_samples
from driftworks.core.features import checked_levels, features, noised, real_dtype
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, w2
from driftworks.core.paths import Path
from driftworks.core.predict import as_score
from driftworks.core.process import Masks, Part, Process, State
from driftworks.core.sample import Model, sample
from driftworks.core.solvers import Solver
from driftworks.errors import UserError

__all__ = [
    "Agreement",
    "Gap",
    "Memorisation",
    "features",
    "memorisation",
    "mmd",
    "ode_sde_gap",
    "score_agreement",
    "w2_samples",
]


@dataclass(frozen=True)
class Level:
    """Agreement at one noise level: means over ``count`` samples and their standard errors."""

    part: str
    t: float
    cosine: float
    cosine_stderr: float
    error: float
    error_stderr: float
    count: int


@dataclass(frozen=True)
class Agreement:
    """How far two models agree, by part and noise level."""

    levels: tuple[Level, ...]

    def __str__(self) -> str:
        lines = [f"{'part':<10}{'t':>6}{'cosine':>20}{'relative error':>22}{'samples':>9}"]
        lines += [
            f"{v.part:<10}{v.t:>6.3f}{v.cosine:>11.5f} +- {v.cosine_stderr:<7.1g}"
            f"{v.error:>11.5f} +- {v.error_stderr:<7.1g}{v.count:>9}"
            for v in self.levels
        ]
        return "\n".join(lines)


def _statistics(values: Tensor) -> tuple[float, float]:
    """Mean and standard error."""
    if len(values) < 2:
        return (float(values.mean()) if len(values) else math.nan), math.nan
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def _vectors(
    part: Part, answer: Tensor, x_t: Tensor, t: Tensor, mask: Tensor | None, hidden: Tensor | None
) -> Tensor:
    """What is compared of one part, (B, D) float64, 0 where nothing is asked."""
    if part.space.discrete:
        assert hidden is not None
        return (answer.double().softmax(-1) * hidden.unsqueeze(-1)).flatten(1)
    assert isinstance(part.path, Path)
    score = as_score(part.path, answer.double(), x_t.double(), t, part.predicts)
    return part.space.project(score, mask).flatten(1)


@torch.no_grad()
def score_agreement(
    model_a: Model,
    model_b: Model,
    process: Process,
    x: State,
    keys: Keys,
    levels: Sequence[float],
    mask: Masks = None,
    cond: Any = None,
    process_b: Process | None = None,
) -> Agreement:
    """Cosine and relative error of two models' scores on data, at each noise level.

    Args:
        model_a, model_b: the relative error is in units of ``model_b``'s answer.
        process: of ``model_a``, and of ``model_b`` too unless ``process_b`` says how that one
            answers (same spaces and paths, another parametrisation).
        x: data (B, ...); each is noised once a level with ``keys`` (B,).
        levels: times inside (0, 1).
        mask, cond: passed on to both models.

    Samples with nothing to compare (no hidden token, a zero answer) are left out of the counts.
    """
    other = process_b or process
    for name, part in process.items():
        twin = other.parts.get(name)
        if twin is None or (twin.space, twin.path) != (part.space, part.path):
            raise UserError(f"the two processes differ in the space or path of part {name!r}")
        if not (part.space.discrete or isinstance(part.path, Path)):
            raise UserError(
                f"part {name!r} moves by {type(part.path).__name__}: only scores on a path and "
                "token probabilities are compared"
            )
    found = []
    for step, level in enumerate(checked_levels(levels)):
        bridge, t = noised(process, x, keys, level, mask, step)
        x_t = process.unpack(bridge.x_t)
        clock = t.to(real_dtype(x_t))
        answers = []
        for model, its in ((model_a, process), (model_b, other)):
            answer: Any = model(bridge.x_t, clock, mask=mask, cond=cond)
            answers.append(its.unpack(answer))
        for name in process.parts:
            a, b = (
                _vectors(
                    its.parts[name], answer[name], x_t[name], t, process.mask_of(name, mask),
                    bridge.hidden.get(name),
                )
                for its, answer in zip((process, other), answers, strict=True)
            )
            size_a, size_b = a.norm(dim=1), b.norm(dim=1)
            usable = (size_b > 0.0) & (size_a > 0.0)
            cosine = ((a * b).sum(1) / (size_a * size_b))[usable]
            error = ((a - b).norm(dim=1) / size_b)[usable]
            found.append(
                Level(name, level, *_statistics(cosine), *_statistics(error), int(usable.sum()))
            )
    return Agreement(tuple(found))


@dataclass(frozen=True)
class Memorisation:
    """Whether samples are closer to single training points than held-out data are.

    ``share`` of the samples have a ratio below ``threshold``, where ``expected`` would by chance;
    ``p_value`` is the chance of so many. ``closer`` is the probability that a sample has a smaller
    ratio than a held-out state (1/2 by chance), with its own ``rank_p_value``. ``ratios`` (n,) are
    the samples' own, and ``suspects`` the numbers of those below the threshold, worst first.
    """

    share: float
    expected: float
    p_value: float
    closer: float
    rank_p_value: float
    threshold: float
    ratios: Tensor = field(repr=False)

    @property
    def suspects(self) -> Tensor:
        order = self.ratios.argsort(stable=True)
        return order[self.ratios[order] < self.threshold]

    def __str__(self) -> str:
        return (
            f"{self.share:.2%} of {len(self.ratios)} samples stand beside a training point "
            f"(distance ratio below {self.threshold:.3g}), {self.expected:.2%} by chance: "
            f"p = {self.p_value:.2g}; a sample is the closer one with probability "
            f"{self.closer:.3f} (1/2 by chance): p = {self.rank_p_value:.2g}"
        )


def memorisation(
    samples: Sample,
    train: Sample,
    reference: Sample,
    neighbours: int = 5,
    level: float = 0.05,
) -> Memorisation:
    """Test samples for copies of training data, against held-out real data.

    Args:
        samples, train, reference: states (n, ...), or pairs of states and mask; distances are
            Euclidean between states of the same mask. What a symmetry makes equal must be made
            equal first (canonical order and pose, or descriptors). ``reference`` must come from the
            law of ``train`` and not be in it.
        neighbours: k, over which the ratio's denominator is averaged.
        level: the share of held-out ratios that sets the threshold.

    States with fewer than k + 1 training points of their mask have ratio 1, and exact copies of
    k + 1 equal training points ratio 0. Raises UserError when ``train`` has fewer than k + 1 points
    or the reference is too small for ``level``.
    """
    from scipy import stats

    if neighbours < 1:
        raise UserError(f"neighbours must be at least 1, got {neighbours}")
    r, held = (
        _ratios(x, train, neighbours, name)
        for x, name in ((samples, "samples"), (reference, "reference"))
    )
    if not 0.0 < level < 1.0:
        raise UserError(f"level must lie in (0, 1), got {level}")
    place = int(level * (len(held) + 1))
    if place < 1:
        raise UserError(
            f"level {level} needs at least {math.ceil(1 / level) - 1} reference states, got "
            f"{len(held)}"
        )
    threshold = float(held.sort().values[place - 1])
    count = int((r < threshold).sum())
    tail = stats.betabinom.sf(count - 1, len(r), place, len(held) + 1 - place)
    rank = stats.mannwhitneyu(r.numpy(), held.numpy(), alternative="less")
    return Memorisation(
        share=count / len(r),
        expected=place / (len(held) + 1),
        p_value=float(tail),
        closer=1.0 - float(rank.statistic) / (len(r) * len(held)),
        rank_p_value=float(rank.pvalue),
        threshold=threshold,
        ratios=r,
    )


def _ratios(x: Sample, train: Sample, neighbours: int, name: str) -> Tensor:
    gaps = least(x, train, neighbours + 1, (name, "train")).cpu()
    around = gaps[:, 1:].mean(1)
    ratio = gaps[:, 0] / around
    return torch.where(around.isinf(), 1.0, torch.where(around > 0.0, ratio, 0.0))


@dataclass(frozen=True)
class Gap:
    """W2 between the laws of the ODE and of the SDE, and what it is between two SDE samples.

    ``excess`` is the mean of W2(ODE, SDE)^2 - W2(SDE, SDE')^2 over ``groups`` independent groups,
    with its 95 % confidence interval (Student's t); it is 0 for equal laws.
    """

    gap: float
    floor: float
    excess: float
    low: float
    high: float
    groups: int
    size: int
    method: str

    @property
    def found(self) -> bool:
        """Whether the interval of the excess lies above 0."""
        return self.low > 0.0

    def __str__(self) -> str:
        verdict = "a gap" if self.found else "no gap to be seen"
        return (
            f"W2(ODE, SDE) = {self.gap:.4g}, floor W2(SDE, SDE') = {self.floor:.4g} "
            f"({self.method}, {self.groups} groups of {self.size}); excess of squares "
            f"{self.excess:.3g} in [{self.low:.3g}, {self.high:.3g}]: {verdict}"
        )


def ode_sde_gap(
    model: Model,
    process: Process,
    keys: Keys,
    shape: Any,
    mask: Masks = None,
    cond: Any = None,
    *,
    ode: str | Solver = "ddim",
    sde: str | Solver = "ddpm",
    steps: int = 100,
    groups: int = 8,
    gaussian: bool = False,
    describe: Callable[[State, Masks], Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Gap:
    """Compare the end of a model's probability flow with the end of its SDE.

    A gap means that the score is not that of one density at all times, or too few steps: repeat
    with more of them before blaming the model.

    Args:
        model, shape, mask, cond, steps, dtype: see `sample.sample`.
        keys: (B,), a multiple of ``groups``. Each sample, with its mask and condition, is drawn
            three times with noise of its own: by the ODE, the SDE, and the SDE again.
        ode, sde: solvers, see `solvers.SOLVERS`.
        gaussian: compare Gaussians fitted to the samples, by the closed form of W2 (`laws.w2`):
            less noise, but blind to anything beyond two moments.
        describe: state and mask to descriptors (B, F), which are compared instead of the state;
            needed for tokens and for masks of different sizes.

    Raises UserError when the keys cannot be divided or the state cannot be compared.
    """
    from scipy import stats

    batch = len(keys)
    if groups < 2 or batch % groups or batch < 2 * groups:
        raise UserError(
            f"{batch} keys cannot be divided into {groups} groups: give a multiple, at least two "
            "samples a group and two groups"
        )
    drawn = []
    for which, build in enumerate((ode, sde, sde)):
        own = Keys.for_samples(3 * keys.seed + which, keys.ids)
        samples = sample(
            model, process, own, shape, mask, solver=build, steps=steps, cond=cond, dtype=dtype
        )
        if not bool(samples.finite.all()):
            raise UserError(f"{int((~samples.finite).sum())} samples stopped being finite")
        described = (describe or _flattened(process))(samples.x, mask)
        drawn.append(described.double().cpu().chunk(groups))
    distance = _gaussian_w2 if gaussian else _sampled_w2(keys)
    pairs = [(distance(o, a), distance(a, b)) for o, a, b in zip(*drawn, strict=True)]
    squares = torch.tensor(pairs, dtype=torch.float64).square()
    excess = squares[:, 0] - squares[:, 1]
    mean, stderr = _statistics(excess)
    half = float(stats.t.ppf(0.975, groups - 1)) * stderr
    gap, floor = squares.mean(0).sqrt().tolist()
    size = batch // groups
    method = "fitted Gaussians" if gaussian else "exact" if size <= EXACT else "sliced"
    return Gap(gap, floor, mean, mean - half, mean + half, groups, size, method)


def _sampled_w2(keys: Keys) -> Callable[[Tensor, Tensor], float]:
    return lambda x, y: w2_samples(x, y, keys).value


def _gaussian_w2(x: Tensor, y: Tensor) -> float:
    laws = (Gaussian(z.mean(0), torch.atleast_2d(torch.cov(z.T))) for z in (x, y))
    return w2(*laws)


def _flattened(process: Process) -> Callable[[State, Masks], Tensor]:
    def describe(state: State, mask: Masks) -> Tensor:
        rows = []
        for name, part in process.items():
            if not isinstance(part.path, Path):
                raise UserError(
                    f"part {name!r} has no Euclidean distance: say with describe what to compare"
                )
            m = process.mask_of(name, mask)
            if m is not None and not bool((m == m[:1]).all()):
                raise UserError(
                    "samples of different sizes have no common coordinates: say with describe "
                    "what to compare"
                )
            rows.append(process.unpack(state)[name].flatten(1))
        return torch.cat(rows, 1)

    return describe
