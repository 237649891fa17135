"""Distances of samples: against brute force, closed forms, and their own null distributions."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from scipy import stats
from scipy.optimize import linprog

from driftworks.core import distances
from driftworks.core.distances import mmd, pairwise, sorted_w2, w2_samples
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, w2
from driftworks.errors import UserError

KEYS = Keys.for_samples(4, range(199))


@pytest.fixture
def generator():
    seed = random.randrange(1 << 30)
    print("seed", seed)
    return torch.Generator().manual_seed(seed)


def normal(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def transport(cost):
    """The optimal cost of a plan between two uniform measures, as a linear programme."""
    n, m = cost.shape
    rows = torch.kron(torch.eye(n), torch.ones(1, m))
    columns = torch.kron(torch.ones(1, n), torch.eye(m))
    sides = torch.cat((torch.full((n,), 1 / n), torch.full((m,), 1 / m)))
    found = linprog(
        cost.flatten().numpy(), A_eq=torch.cat((rows, columns)).double().numpy(),
        b_eq=sides.double().numpy(),
    )
    assert found.status == 0
    return found.fun


@pytest.mark.parametrize("n, m", [(5, 5), (4, 6), (3, 7), (1, 4), (6, 4)])
def test_one_dimensional_w2_is_the_cost_of_an_optimal_plan(n, m, generator):
    x, y = normal(generator, n), normal(generator, m)
    wanted = transport((x[:, None] - y).square())
    assert sorted_w2(x, y).item() == pytest.approx(wanted, rel=1e-6, abs=1e-8)
    # absent numbers, whatever they hold and wherever they stand
    wide_x, wide_y = torch.cat((x.new_full((2,), 9e9), x)), torch.cat((y, y.new_full((3,), -9e9)))
    found = sorted_w2(
        wide_x.expand(2, 3, -1), wide_y.expand(2, 3, -1), wide_x < 1e9, wide_y > -1e9
    )
    assert found.shape == (2, 3)
    torch.testing.assert_close(found, sorted_w2(x, y).expand(2, 3), rtol=1e-12, atol=0)


def test_one_dimensional_w2_of_equal_numbers_is_the_best_of_all_permutations(generator):
    x, y = normal(generator, 5), normal(generator, 5)
    best = min((x - y[list(p)]).square().mean() for p in itertools.permutations(range(5)))
    assert sorted_w2(x, y).item() == pytest.approx(best.item(), rel=1e-12)
    assert sorted_w2(x, x.flip(0)).item() == 0.0


def test_one_dimensional_w2_has_its_derivative_and_none_without_numbers(generator):
    x, y = normal(generator, 3, 4).requires_grad_(), normal(generator, 3, 6)
    there = torch.arange(6) < torch.tensor([6, 3, 0]).unsqueeze(1)
    torch.autograd.gradcheck(lambda x: sorted_w2(x, y, None, there), x)
    assert sorted_w2(x, y, None, there)[2].item() == 0.0
    assert sorted_w2(x, y, ~there[:, :4], there)[2].item() == 0.0


def test_exact_w2_is_the_cost_of_the_best_permutation(generator):
    x, y = normal(generator, 6, 3), normal(generator, 6, 3)
    best = min((x - y[list(p)]).square().sum(1).mean() for p in itertools.permutations(range(6)))
    found = w2_samples(x, y)
    assert found.method == "exact" and found.value == pytest.approx(math.sqrt(best), rel=1e-12)
    assert "exact" in str(found)
    assert w2_samples(x, x.flip(0)).value == 0.0


def test_w2_of_large_gaussian_samples_is_near_its_closed_form(generator):
    p, q = Gaussian(0.0, 1.0), Gaussian(1.0, 0.25)
    x, y = p.sample((500, 1), generator), q.sample((500, 1), generator)
    # one dimension: the quantile processes err by about 1 / sqrt(n)
    assert w2_samples(x, y).value == pytest.approx(w2(p, q), abs=5 * 1.2 / math.sqrt(500))


def test_sliced_w2_is_exact_for_translates_and_never_above(generator):
    x, shift = normal(generator, 300, 4), normal(generator, 4)
    sliced = w2_samples(x[:200].repeat(2, 1), x[:200] + shift, KEYS)
    assert sliced.method == "sliced"
    assert sliced.value == pytest.approx(shift.norm().item(), rel=1e-10)
    y = normal(generator, 300, 4) ** 3
    exact = w2_samples(x, y).value
    doubled = w2_samples(x.repeat(2, 1), y, KEYS).value  # the same laws, other numbers
    assert 0.3 * exact < doubled <= exact + 1e-12


def test_states_of_different_masks_are_infinitely_far_apart(generator):
    mask = torch.arange(3) < torch.tensor([3, 2, 3, 2]).unsqueeze(1)
    x = normal(generator, 4, 3, 2)
    gaps = pairwise((x, mask), (x, mask))
    same = (mask[:, None] == mask).all(-1)
    assert gaps[~same].isinf().all() and gaps[same].isfinite().all()
    clean = x * mask.unsqueeze(-1)
    wanted = (clean[:, None] - clean).flatten(2).norm(dim=-1)
    torch.testing.assert_close(gaps[same], wanted[same], rtol=1e-12, atol=1e-12)
    assert (gaps.diagonal() == 0).all()
    # the assignment stays within each size
    y = normal(generator, 4, 3, 2)
    found = w2_samples((x, mask), (y, mask[[1, 0, 3, 2]])).value
    best = min(
        sum(
            pairwise((x[[i]], mask[[i]]), (y[[j]], mask[[1, 0, 3, 2]][[j]])).item() ** 2
            for i, j in enumerate(p)
        )
        for p in itertools.permutations(range(4))
    )
    assert found == pytest.approx(math.sqrt(best / 4), rel=1e-12)
    with pytest.raises(UserError, match="shares of sizes"):
        w2_samples((x, mask), (y, mask[[0, 0, 0, 1]]))


def test_the_kernel_is_positive(generator):
    mask = torch.arange(3) < torch.randint(1, 4, (40, 1), generator=generator)
    x = normal(generator, 40, 3, 2)
    gaps = pairwise((x, mask), (x, mask))
    values = torch.linalg.eigvalsh(distances.kernel(gaps, 1.3))
    assert values.min() > -1e-10


def test_mmd_is_its_double_sum_and_permutations_are_counted(generator):
    x, y = normal(generator, 7, 2), normal(generator, 5, 2) + 0.3

    def k(a, b):
        square = (a - b).square().sum().item()
        return sum(math.exp(-square / (2 * (0.8 * s) ** 2)) for s in (0.5, 1.0, 2.0)) / 3

    def value(x, y):
        inside = [
            sum(k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j)
            / (len(z) * (len(z) - 1)) for z in (x, y)
        ]
        return sum(inside) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))

    keys = KEYS[:20]
    found = mmd(x, y, keys, bandwidth=0.8)
    assert found.value == pytest.approx(value(x, y), rel=1e-10)
    both = torch.cat((x, y))
    orders = keys.uniform("distances/mmd", 0, (12,), torch.float64).argsort(-1)
    above = sum(value(both[o[:7]], both[o[7:]]) >= found.value - 1e-12 for o in orders)
    assert found.p_value == pytest.approx((1 + above) / 21)
    assert f"{found.p_value:.3g}" in str(found)


def test_mmd_is_unbiased_and_its_p_values_are_uniform_under_the_null(generator):
    values, p_values = [], []
    for trial in range(150):
        x, y = normal(generator, 20, 2), normal(generator, 25, 2)
        found = mmd(x, y, Keys.for_samples(trial, range(99)))
        values.append(found.value)
        p_values.append(found.p_value)
    values = torch.tensor(values)
    assert abs(values.mean()) < 4.5 * values.std() / math.sqrt(len(values))
    # p-values are multiples of 1/100 that are uniform: spread them out within their step
    jitter = torch.rand(len(p_values), generator=generator) / 100
    assert stats.kstest(torch.tensor(p_values).numpy() - jitter.numpy(), "uniform").pvalue > 1e-5


def test_mmd_sees_a_shift_and_a_difference_of_shape(generator):
    x = normal(generator, 120, 2)
    assert mmd(x, normal(generator, 120, 2) + 0.7, KEYS).p_value <= 0.01
    x, ring = normal(generator, 400, 2), normal(generator, 400, 2)
    ring = math.sqrt(2) * ring / ring.norm(dim=1, keepdim=True)  # same mean and covariance
    assert mmd(x, ring, KEYS).p_value <= 0.01


def test_distances_refuse_what_they_cannot_compare(generator):
    x = normal(generator, 5, 3)
    for wrong, message in (
        (lambda: w2_samples(x, x[:, :2]), "pad them alike"),
        (lambda: w2_samples(x, x[:4]), "give keys"),
        (lambda: w2_samples(x, x * math.nan), "not finite"),
        (lambda: w2_samples(x.long(), x), "real states"),
        (lambda: pairwise((x.view(5, 3, 1), torch.ones(5, 3)), x), "bool"),
        (lambda: pairwise((x.view(5, 3, 1), torch.ones(5, 3) > 0), x), "both with masks"),
        (lambda: mmd(x[:1], x, KEYS), "at least two"),
        (lambda: mmd(x, x, KEYS, bandwidth=0.0), "bandwidth"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()
