"""Resampling against its closed forms, and populations that know no neighbours."""

from __future__ import annotations

import math
import random

import pytest
import torch

from driftworks.core import weigh
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, Mixture
from driftworks.core.particles import (
    Resampling,
    Weights,
    effective_sample_size,
    log_mean_exp,
    systematic,
)
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.sample import sample
from driftworks.core.spaces import Centred, Flat
from driftworks.errors import UserError

F = torch.float64
VP = Path.vp()
ONE = Process(Part(Flat(), VP))


def random_log_weights(n):
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    return 1.5 * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=F)


def test_systematic_resampling_is_unbiased_with_the_least_possible_count_variance():
    """Over all uniforms, member i of share p has n p copies on average and never fewer than the
    whole part: variance f (1 - f), f the fraction of n p; multinomial copies have n p (1 - p)."""
    n, grid = 200, 4000
    log_weight = random_log_weights(n) + 700.0
    p = log_weight.softmax(0)
    counts = torch.stack([
        systematic(log_weight, (j + 0.5) / grid).bincount(minlength=n).double() for j in range(grid)
    ])
    assert (counts.sum(1) == n).all()
    assert (counts.mean(0) - n * p).abs().max() <= 2.0 / grid
    fraction = n * p - (n * p).floor()
    assert (counts - n * p).abs().max() < 1.0
    variance = counts.var(0, correction=0).sum()
    assert variance.item() == pytest.approx((fraction * (1 - fraction)).sum().item(), rel=0.01)
    assert variance < 0.5 * (n * p * (1 - p)).sum()


def test_equal_weights_keep_everyone_and_no_weight_is_never_drawn():
    assert systematic(torch.zeros(7), 0.999).tolist() == list(range(7))
    weights = torch.tensor([-math.inf, 0.0, -math.inf, 1.0, -math.inf])
    for u in (1e-9, 0.5, 1 - 1e-9):
        assert set(systematic(weights, u).tolist()) <= {1, 3}


def test_effective_sample_size_and_mean_weight_are_their_definitions():
    log_weight = random_log_weights(50)
    w = log_weight.exp()
    found = effective_sample_size(log_weight - 900.0).item()
    assert found == pytest.approx((w.sum() ** 2 / w.square().sum()).item())
    assert log_mean_exp(log_weight).item() == pytest.approx(w.mean().log().item())
    assert effective_sample_size(torch.zeros(8)).item() == pytest.approx(8.0)
    assert effective_sample_size(torch.full((3,), -math.inf)).item() == 0.0


class Scripted:
    """A target of one clock, t itself, without volume; rates are given by the test."""

    def clocks(self, t):
        return [t]

    def volumes(self, t):
        return [0.0]

    def vanishing(self):
        return [False]

    def start(self, state, mask, t):
        return torch.zeros(len(state), dtype=F)

    def dof(self, state, mask):
        return torch.zeros(1, len(state), dtype=F)


def play(keys, rates, times, end, resampling):
    """Drive a population by rates (rows, B) that belong to the samples they start with."""
    state = torch.zeros(len(keys), 1, dtype=F)
    population = resampling.start(ONE, keys, state, None, times[0])
    home = torch.arange(len(keys))
    for k, t in enumerate(times):
        answer = weigh.Weighted(state, rates[k][home][None], Scripted())
        chosen = population.observe(k, t, answer)
        home = home if chosen is None else home[chosen]
    return population.finish(end), home


def test_weights_are_trapezoids_in_time_and_stay_flat_at_the_end():
    keys, times = Keys.for_samples(0, range(4)), [0.1, 0.3, 0.4, 0.8]
    rates = torch.stack([random_log_weights(4) for _ in times])
    weights, _ = play(keys, rates, times, 1.0, Resampling(ess=0.0))
    wanted = 0.1 * (rates[0] + rates[1]) + 0.05 * (rates[1] + rates[2])
    wanted = wanted + 0.2 * (rates[2] + rates[3]) + 0.2 * rates[3]
    assert torch.allclose(weights.log_weight, wanted, atol=1e-12)
    assert weights.log_normaliser.item() == pytest.approx(log_mean_exp(wanted).item())
    assert weights.ancestors.tolist() == [0, 1, 2, 3]
    assert weights.distinct_ancestors.tolist() == [4]
    assert weights.resamplings.tolist() == [0]


def test_resampling_keeps_normalisers_unbiased_and_says_who_descends_from_whom():
    """Each sample has one rate for life, so the total weight of everyone is known."""
    size, runs, times = 16, 300, [0.0, 0.25, 0.5, 0.75]
    rate = 2.0 * random_log_weights(size)
    exact = rate.exp().mean().item()
    keys = Keys.for_samples(9, range(size * runs))
    groups = torch.arange(size * runs) // size
    weights, home = play(
        keys, rate.repeat(len(times), runs), times, 1.0, Resampling(0.7, groups)
    )
    assert (weights.resamplings > 0).all()
    assert torch.equal(weights.ancestors, home)
    assert torch.equal(groups[home], groups)
    assert all(
        len(set(home[groups == g].tolist())) == weights.distinct_ancestors[g] for g in range(5)
    )
    z = weights.log_normaliser.exp() / exact
    assert abs(z.mean().item() - 1.0) < 4 * z.std().item() / runs**0.5
    # and so is the weighted number of the descendants of the heaviest
    heavy = int(rate.argmax())
    share = weights.mean((home % size == heavy).double())
    error = z * share - (rate.softmax(0)[heavy])
    # the number of descendants takes few values: one that no run shows is rarer than 10 / runs
    assert abs(error.mean().item()) < 4 * error.std().item() / runs**0.5 + 10.0 / (runs * size)


ENTRY = torch.ones(1, dtype=F)
MODEL = Mixture([0.3, 0.7], [-2.0 * ENTRY, 1.5 * ENTRY], [0.2 * ENTRY, 0.4 * ENTRY]).on(VP)


def run(ids, groups=None, ess=0.9, seed=4, **settings):
    keys = Keys.for_samples(seed, ids)
    like = torch.zeros(len(keys), 1, dtype=F)
    target = weigh.anneal(ONE, 2.0, reference=1.5)
    return sample(
        MODEL, ONE, keys, like, solver="ddpm", steps=30, guide=target,
        initial=target.prior(keys, like), particles=Resampling(ess, groups), **settings,
    )


def test_a_population_is_the_same_alone_beside_others_and_in_any_order():
    alone = run(range(100, 164))
    assert alone.weights.resamplings.item() > 0
    assert alone.weights.distinct_ancestors.item() < 64
    order = torch.randperm(128, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(100, 228)[order]
    both = run(ids, (ids >= 164).long())
    back = ids.argsort()[:64]
    assert torch.allclose(both.x[back], alone.x, atol=1e-6)
    assert torch.allclose(both.weights.log_weight[back], alone.weights.log_weight, atol=1e-6)
    assert torch.equal(ids[both.weights.ancestors[back]] - 100, alone.weights.ancestors)
    for name in ("log_normaliser", "ess", "distinct_ancestors", "resamplings"):
        mine, theirs = getattr(alone.weights, name), getattr(both.weights, name)
        assert theirs[0].item() == pytest.approx(mine[0].item(), rel=1e-6)


def test_without_resampling_the_particles_are_those_of_the_run_without_particles():
    kept = run(range(64), ess=0.0)
    keys = Keys.for_samples(4, range(64))
    target = weigh.anneal(ONE, 2.0, reference=1.5)
    like = torch.zeros(64, 1, dtype=F)
    plain = sample(
        MODEL, ONE, keys, like, solver="ddpm", steps=30, guide=target,
        initial=target.prior(keys, like),
    )
    assert torch.equal(kept.x, plain.x)
    assert kept.weights.distinct_ancestors.item() == 64


def test_samples_of_different_size_or_condition_never_mix():
    process = Process(Part(Centred(), VP))
    sizes = torch.tensor([3, 5, 4, 5, 3, 4] * 8)
    mask = torch.arange(5)[None] < sizes[:, None]
    keys, like = Keys.for_samples(0, range(48)), torch.zeros(48, 5, 3, dtype=F)
    target = weigh.anneal(process, 1.7, reference=0.5)
    settings = {
        "solver": "ddpm", "steps": 30, "guide": target, "initial": target.prior(keys, like, mask),
    }
    model = Gaussian(0.0, 0.7).on(VP)
    out = sample(
        model, process, keys, like, mask, particles=Resampling(0.95), **settings
    )
    assert (out.weights.resamplings > 0).all()
    assert torch.equal(sizes[out.weights.ancestors], sizes)
    assert len(out.weights.log_normaliser) == 3
    with pytest.raises(UserError, match="different masks or conditions"):
        sample(
            model, process, keys, like, mask,
            particles=Resampling(groups=torch.arange(48) // 6), **settings,
        )
    cond = {"charge": torch.tensor([0.0, 1.0]).repeat(24), "name": "any"}
    population = Resampling().start(process, keys, like, mask, 0.0, cond)
    kinds = {(int(n), float(c)) for n, c in zip(sizes, cond["charge"], strict=True)}
    assert len(population.members) == len(kinds)
    for members in population.members:
        assert len(set(sizes[members].tolist())) == 1
        assert len(set(cond["charge"][members].tolist())) == 1


def test_a_sample_that_stops_being_finite_loses_its_weight_and_harms_no_one():
    def model(x, t, mask=None, cond=None, previous=None):
        answer = MODEL(x, t)
        return torch.where((t > 0.5)[:, None] & (x < -1.0), torch.nan, answer)

    keys, like = Keys.for_samples(4, range(256)), torch.zeros(256, 1, dtype=F)
    target = weigh.anneal(ONE, 2.0, reference=1.5)
    with pytest.warns(RuntimeWarning, match="stopped being finite"):
        out = sample(
            model, ONE, keys, like, solver="ddpm", steps=30, guide=target,
            initial=target.prior(keys, like), particles=Resampling(0.0),
        )
    failed = ~out.finite
    assert 5 < failed.sum() < 150
    assert (out.weights.log_weight[failed] == -math.inf).all()
    assert out.weights.log_weight[~failed].isfinite().all()
    assert out.weights.log_normaliser.isfinite().all() and out.weights.ess > 1
    assert out.weights.mean(torch.where(failed, torch.nan, 1.0)).item() == pytest.approx(1.0)


def test_the_final_draw_turns_shares_into_copies():
    size = 400
    log_weight = torch.cat([random_log_weights(size), random_log_weights(size)])
    group = torch.arange(2 * size) // size
    ones = torch.ones(2, dtype=F)
    weights = Weights(
        log_weight, group, ones, ones, torch.arange(2 * size), ones.long(), ones.long()
    )
    share = weights.share
    assert share[:size].sum().item() == pytest.approx(1.0)
    index = weights.draw(Keys.for_samples(1, range(2 * size)))
    assert torch.equal(group[index], group)
    copies = index.bincount(minlength=2 * size)
    assert ((copies - size * share).abs() < 1.0).all()
    values = torch.randn(2 * size, 2, generator=torch.Generator().manual_seed(3), dtype=F)
    wanted = torch.stack([(share[:, None] * values)[group == g].sum(0) for g in (0, 1)])
    assert torch.allclose(weights.mean(values), wanted)


def test_settings_that_make_no_sense_name_the_value():
    keys, state = Keys.for_samples(0, range(4)), torch.zeros(4, 1)
    with pytest.raises(UserError, match=r"\[0, 1\], got 1.5"):
        Resampling(ess=1.5)
    with pytest.raises(UserError, match="one for each of 4"):
        Resampling(groups=[0, 1]).start(ONE, keys, state)
    population = Resampling().start(ONE, keys, state)
    with pytest.raises(UserError, match="returns weights"):
        population.observe(0, 0.0, torch.zeros(4, 1))
    with pytest.raises(UserError, match="no row"):
        population.finish(1.0)


def test_a_run_makes_groups_of_equal_conditions_and_refuses_known_entries():
    model, size = Gaussian(0.0, 1.0).on(VP), 8
    keys, like = Keys.for_samples(0, range(size)), torch.zeros(size, 1, dtype=F)

    def ask(x, t, mask=None, cond=None, previous=None):
        return model(x, t)

    settings = {"steps": 4, "guide": weigh.anneal(ONE, 1.0), "particles": Resampling()}
    cond = {"label": torch.tensor([0, 1] * 4)}
    weights = sample(ask, ONE, keys, like, cond=cond, **settings).weights
    assert weights.group.tolist() == [0, 1] * 4
    known = (like, torch.zeros(size, 1, dtype=torch.bool))
    with pytest.raises(UserError, match="particles cannot be weighed beside fixed entries"):
        sample(ask, ONE, keys, like, fixed=known, **settings)
