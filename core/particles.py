r"""Particles: weights carried along a run, and resampled when they get uneven.

A weighted model (`core.weigh`) says at every row how fast each sample's log-weight changes. A
`Population` integrates that, and when the effective sample size

    ess = (sum w)^2 / sum w^2

of a group falls below a fraction of the group, it resamples: the group goes on with copies of its
heavier members, all at equal weight, and the mean weight so far is moved into the log-normaliser,

    log Z = sum over resamplings of log mean w + log mean w at the end

(sequential Monte Carlo; Del Moral, Doucet & Jasra 2006). Z is unbiased for the discretised
dynamics, its logarithm and all weighted means are consistent. Resampling is systematic: with one
uniform number v a group, copy j is the member in whose stretch of the cumulated weights (j + v)/n
lies, so a member of share p gets floor(n p) or ceil(n p) copies and n p on average.

Groups. Weights compare samples of one target only: same mask (log-normalisers grow with the
degrees of freedom) and same condition. Members are ordered by the numbers of their keys, and the
uniform is the first member's, so a group does the same alone, in another order and beside others.

Quadrature: trapezoids between the rows in the clocks of the target. Over the last stretch, where
no network is asked any more, rates that vanish with sigma fall linearly to 0 and others stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from driftworks.core.keys import Keys
from driftworks.core.process import Masks, Process, State
from driftworks.core.weigh import Target, Weighted
from driftworks.errors import UserError

__all__ = [
    "Population",
    "Resampling",
    "Weights",
    "effective_sample_size",
    "log_mean_exp",
    "systematic",
]


def log_mean_exp(log_weight: Tensor) -> Tensor:
    """log of the mean of exp over the last axis; -inf where all are."""
    return log_weight.logsumexp(-1) - math.log(log_weight.shape[-1])


def effective_sample_size(log_weight: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 over the last axis; 0 where all weights are 0."""
    ratio = 2.0 * log_weight.logsumexp(-1) - (2.0 * log_weight).logsumexp(-1)
    return torch.where(log_weight.amax(-1) > -math.inf, ratio.exp(), 0.0)


def systematic(log_weight: Tensor, u: Tensor | float) -> Tensor:
    """Indices (N,) of systematic resampling, in rising order.

    Args:
        log_weight: (N,), in any units; -inf is never drawn.
        u: one number in (0, 1).
    """
    n = len(log_weight)
    share = (log_weight.double() - log_weight.max()).exp()
    ends = share.cumsum(0)
    points = (torch.arange(n, dtype=torch.float64, device=ends.device) + u) / n * ends[-1]
    last = int(share.nonzero()[-1])
    return torch.searchsorted(ends, points, right=True).clamp(max=last)


@dataclass(frozen=True)
class Weights:
    """The weights at the end of a run of B samples in G groups.

    Attributes:
        log_weight: (B,) float64, since the last resampling of the sample's group.
        group: (B,) int64, 0..G-1.
        log_normaliser: (G,) the estimate of log Z, that of the law at the start included.
        ess: (G,) effective sample size of the last weights.
        ancestors: (B,) int64, the position in the batch of the first sample each one comes from.
        distinct_ancestors: (G,) how many there are.
        resamplings: (G,) how often the group was resampled.
    """

    log_weight: Tensor
    group: Tensor
    log_normaliser: Tensor
    ess: Tensor
    ancestors: Tensor
    distinct_ancestors: Tensor
    resamplings: Tensor

    @property
    def share(self) -> Tensor:
        """(B,) weights that sum to 1 in every group."""
        out = torch.empty_like(self.log_weight)
        for g in range(len(self.ess)):
            members = self.group == g
            out[members] = self.log_weight[members].softmax(0)
        return out

    def mean(self, values: Tensor) -> Tensor:
        """Weighted mean in each group of values (B, ...): (G, ...), float64."""
        share = self.share.view(-1, *(1,) * (values.ndim - 1))
        out = values.new_zeros((len(self.ess), *values.shape[1:]), dtype=torch.float64)
        # samples of no weight may have stopped being finite
        return out.index_add_(0, self.group, torch.where(share > 0.0, values.double() * share, 0.0))

    def draw(self, keys: Keys) -> Tensor:
        """Indices (B,) that turn the weighted samples into unweighted ones, group by group."""
        out = torch.arange(len(self.group), device=self.group.device)
        for g in range(len(self.ess)):
            members = _ordered((self.group == g).nonzero().squeeze(1), keys)
            out[members] = members[_chosen(self.log_weight[members], keys[members[:1]], "end", 0)]
        return out


def _ordered(members: Tensor, keys: Keys) -> Tensor:
    return members[keys.ids[members].argsort(stable=True)]


def _chosen(log_weight: Tensor, key: Keys, when: str, row: int) -> Tensor:
    return systematic(log_weight, key.uniform(f"resample/{when}", row, (), torch.float64)[0])


@dataclass(frozen=True)
class Resampling:
    """How particles are kept: ``sample(..., particles=Resampling())``.

    Args:
        ess: resample a group when its effective sample size falls below this fraction of its
            members; 0 never does (annealed importance sampling), 1 does at every row.
        groups: (B,) whole numbers, samples of one group sharing theirs; by default samples with
            equal masks and equal conditions form a group.

    Raises UserError for a fraction outside [0, 1].
    """

    ess: float = 0.5
    groups: Tensor | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.ess <= 1.0:
            raise UserError(f"ess is a fraction in [0, 1], got {self.ess}")

    def start(
        self, process: Process, keys: Keys, state: State, mask: Masks = None, t: float = 0.0,
        cond: Any = None,
    ) -> Population:
        """The population of a run from ``state`` at time t.

        A condition is compared as far as it is a tensor (B, ...), or a mapping or sequence of them.
        Raises UserError when a group mixes samples of different masks or conditions.
        """
        masks = [process.mask_of(name, mask) for name in process.unpack(state)]
        kinds = _kinds([*masks, *_leaves(cond)], len(keys)).to(keys.ids.device)
        group = kinds
        if self.groups is not None:
            given = torch.as_tensor(self.groups, device=keys.ids.device)
            if given.shape != (len(keys),) or given.is_floating_point():
                raise UserError(
                    f"groups are whole numbers, one for each of {len(keys)} samples; got "
                    f"{given.dtype} {tuple(given.shape)}"
                )
            group = given.unique(return_inverse=True)[1]
            for g in range(int(group.max()) + 1):
                if len(kinds[group == g].unique()) > 1:
                    raise UserError(
                        "a group of particles mixes samples with different masks or conditions; "
                        "weights compare samples of one law only"
                    )
        return Population(self.ess, group, keys, state, mask, t)


def _leaves(cond: Any) -> list[Tensor]:
    """The tensors in a condition, wherever mappings and sequences keep them."""
    if isinstance(cond, Tensor):
        return [cond]
    inside = cond.values() if isinstance(cond, Mapping) else cond
    if isinstance(cond, Mapping | list | tuple):
        return [leaf for value in inside for leaf in _leaves(value)]
    return []


def _kinds(tensors: Sequence[Tensor | None], size: int) -> Tensor:
    """A number (B,) for each sample, equal where the rows of all tensors (B, ...) are."""
    rows = [x.flatten(1) for x in tensors if x is not None and x.ndim > 1 and len(x) == size]
    rows += [x[:, None] for x in tensors if x is not None and x.ndim == 1 and len(x) == size]
    numbers = [x.unique(dim=0, return_inverse=True)[1].cpu() for x in rows if x.shape[1]]
    if not numbers:
        return torch.zeros(size, dtype=torch.int64)
    return torch.stack(numbers, 1).unique(dim=0, return_inverse=True)[1]


class Population:
    """The particles of one run; `Resampling.start` makes it, the sampling loop drives it."""

    def __init__(
        self, ess: float, group: Tensor, keys: Keys, state: State, mask: Masks, t: float
    ):
        self.ess, self.group, self.keys = ess, group, keys
        self.first: tuple[State, Masks, float] | None = (state, mask, t)
        groups = int(group.max()) + 1
        self.members = [_ordered((group == g).nonzero().squeeze(1), keys) for g in range(groups)]
        self.log_weight = torch.zeros(len(keys), dtype=torch.float64, device=group.device)
        self.log_normaliser = self.log_weight.new_zeros(groups)
        self.resamplings = torch.zeros_like(group[:groups])
        self.ancestors = torch.arange(len(keys), device=group.device)
        self.target: Target | None = None
        self.dof = self.rate = self.log_weight
        self.clocks: list[float] = []
        self.volumes: list[float] = []

    def observe(self, k: int, t: float, answer: Weighted) -> Tensor | None:
        """Carry the weights to row k at time t; indices (B,) to gather by if a group resampled."""
        if not isinstance(answer, Weighted):
            raise UserError(
                "particles need a guide that returns weights, such as weigh.anneal; got "
                f"{type(answer).__name__}"
            )
        clocks, volumes = answer.target.clocks(t), answer.target.volumes(t)
        if self.first is not None:
            state, mask, begun = self.first
            self.log_weight = self.log_weight + answer.target.start(state, mask, begun)
            self.dof = answer.target.dof(state, mask)
            self.first = None
        else:
            steps = [now - then for now, then in zip(clocks, self.clocks, strict=True)]
            self._add(0.5 * (self.rate + answer.rate), steps)
            self._grow(volumes)
        self.target, self.rate, self.clocks, self.volumes = (
            answer.target, answer.rate, clocks, volumes
        )
        return self._resample(k)

    def finish(self, t: float) -> Weights:
        """The weights at time t, after the last row."""
        if self.target is None:
            raise UserError("there was no row to weigh")
        steps = []
        for now, then, vanishes in zip(
            self.target.clocks(t), self.clocks, self.target.vanishing(), strict=True
        ):
            fall = (0.5 * math.pi - now) / max(0.5 * math.pi - then, 1e-300) if vanishes else 1.0
            steps.append(0.5 * (1.0 + fall) * (now - then))
        self._add(self.rate, steps)
        self._grow(self.target.volumes(t))
        ends = [log_mean_exp(self.log_weight[members]) for members in self.members]
        ess = [effective_sample_size(self.log_weight[members]) for members in self.members]
        distinct = [len(self.ancestors[members].unique()) for members in self.members]
        return Weights(
            self.log_weight,
            self.group,
            self.log_normaliser + torch.stack(ends),
            torch.stack(ess),
            self.ancestors,
            torch.tensor(distinct, device=self.group.device),
            self.resamplings,
        )

    def _add(self, rate: Tensor, steps: list[float]) -> None:
        change = (rate * rate.new_tensor(steps)[:, None]).sum(0)
        alive = self.log_weight + change
        # a sample that is no longer finite has no weight, and its neighbours go on
        self.log_weight = torch.where(alive.isfinite(), alive, -math.inf)

    def _grow(self, volumes: list[float]) -> None:
        steps = [now - then for now, then in zip(volumes, self.volumes, strict=True)]
        if any(steps):
            self.log_weight = self.log_weight + (
                self.dof * self.dof.new_tensor(steps)[:, None]
            ).sum(0)

    def _sizes(self) -> list[float]:
        """The effective sample size of every group, in one go."""
        groups = len(self.members)
        if groups == 1:
            return [float(effective_sample_size(self.log_weight))]
        top = torch.full_like(self.log_normaliser, -1e300)
        top = top.scatter_reduce(0, self.group, self.log_weight, "amax")
        weight = (self.log_weight - top[self.group]).exp()
        sums = torch.zeros_like(top).index_add(0, self.group, weight)
        squares = torch.zeros_like(top).index_add(0, self.group, weight * weight)
        return (sums * sums / squares.clamp(min=1e-300)).tolist()

    def _resample(self, k: int) -> Tensor | None:
        if self.ess == 0.0:
            return None
        index = None
        for g, (size, members) in enumerate(zip(self._sizes(), self.members, strict=True)):
            # no weight at all: nothing to choose from, and nothing to save
            if not 0.0 < size < self.ess * len(members):
                continue
            if index is None:
                index = torch.arange(len(self.group), device=self.group.device)
            weights = self.log_weight[members]
            index[members] = members[_chosen(weights, self.keys[members[:1]], "row", k)]
            self.log_normaliser[g] += log_mean_exp(weights)
            self.log_weight[members] = 0.0
            self.resamplings[g] += 1
        if index is not None:
            self.rate, self.ancestors = self.rate[:, index], self.ancestors[index]
        return index
