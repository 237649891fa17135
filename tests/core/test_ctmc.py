"""The masked chain against an exact enumeration of its states, and its promises entry by entry."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from driftworks.core.ctmc import Masking, fading, masked_step
from driftworks.core.keys import Keys
from driftworks.core.process import Part, Process
from driftworks.core.sample import sample
from driftworks.core.spaces import PairTokens, Tokens
from driftworks.errors import UserError

GOLDEN = torch.tensor([[0.45, 0.05], [0.05, 0.45]], dtype=torch.float64)
SKEWED = torch.tensor([[0.50, 0.10], [0.05, 0.35]], dtype=torch.float64)
STATES = list(itertools.product(range(3), repeat=2))  # 2 is the mask token


def posterior(joint, state):
    """The exact p(x_1 | state) of both tokens, (2, 2): rows are tokens."""
    compatible = joint.clone()
    for axis, token in enumerate(state):
        if token < 2:
            compatible.index_fill_(axis, torch.tensor(1 - token), 0.0)
    compatible /= compatible.sum()
    return torch.stack((compatible.sum(1), compatible.sum(0)))


def transition(joint, show, hide):
    """The exact matrix of one step on the nine states, written from the rates alone."""
    matrix = torch.zeros(9, 9, dtype=torch.float64)
    for i, state in enumerate(STATES):
        shown = posterior(joint, state)
        for j, target in enumerate(STATES):
            p = 1.0
            for token, (old, new) in enumerate(zip(state, target, strict=True)):
                if old == 2:
                    p *= 1.0 - show if new == 2 else show * shown[token, new].item()
                elif new == 2:
                    p *= hide
                else:
                    p *= (1.0 - hide) * (old == new)
            matrix[i, j] = p
    return matrix


def exact_law(joint, grid, eta, masking=None):
    law = torch.zeros(9, dtype=torch.float64)
    law[STATES.index((2, 2))] = 1.0
    for t, u in zip(grid[:-1], grid[1:], strict=True):
        law = law @ transition(joint, *(masking or Masking()).step(t, u, eta))
    return law


def oracle(joint):
    """A model with the exact posterior's logits for tokens (B, 2)."""
    table = torch.stack([posterior(joint, state) for state in STATES]).log()

    def model(x, t, mask=None, cond=None, previous=None):
        return table[x[:, 0] * 3 + x[:, 1]]

    return model


def uniform(n, end=1.0):
    return [end * k / n for k in range(n + 1)]


def joint_of(law):
    return torch.stack([law[STATES.index((a, b))] for a in (0, 1) for b in (0, 1)]).view(2, 2)


@given(
    t=st.floats(0.0, 0.999),
    dt=st.floats(1e-4, 1.0),
    eta=st.floats(0.0, 200.0),
    power=st.floats(0.5, 3.0),
)
def test_every_step_keeps_the_share_of_masked_tokens_exact(t, dt, eta, power):
    masking = Masking(lambda s: s**power)
    u = min(1.0, t + dt)
    show, hide = masking.step(t, u, eta)
    k0, k1 = masking.kappa(t), masking.kappa(u)
    assert 0.0 <= hide <= 1.0 and 0.0 <= show <= 1.0 + 1e-12
    assert (1 - k0) * (1 - show) + k0 * hide == pytest.approx(1 - k1, abs=1e-12)


def test_the_step_is_the_flowmol_step_where_nothing_is_clipped():
    t, dt, eta = 0.4, 0.01, 10.0
    show, hide = Masking().step(t, t + dt, eta)
    assert show == pytest.approx(dt * (1 + eta * t) / (1 - t), rel=1e-12)
    assert hide == pytest.approx(dt * eta, rel=1e-12)
    assert Masking().step(0.99, 1.0, eta) == (1.0, 0.0)


def test_noise_fades_over_the_last_eta_steps_by_itself():
    hides = [Masking().step(k / 100, (k + 1) / 100, 10.0)[1] for k in range(100)]
    assert hides[:90] == pytest.approx([0.1] * 90)
    assert all(a > b for a, b in zip(hides[90:], hides[91:], strict=False)) and hides[99] == 0.0


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_parallel_unmasking_has_the_golden_total_variation(n):
    """TV of the two-token joint is .4/N: exactly in the enumerated law, within noise in samples."""
    joint = joint_of(exact_law(GOLDEN, uniform(n), 0.0))
    assert 0.5 * (joint - GOLDEN).abs().sum().item() == pytest.approx(0.4 / n, abs=1e-12)
    count = 100_000
    x = sample(
        oracle(GOLDEN), Process(Part(Tokens(2), Masking())), Keys.for_samples(n, range(count)),
        (2,), steps=n,
    ).x
    measured = torch.bincount(x[:, 0] * 2 + x[:, 1], minlength=4).double().view(2, 2) / count
    assert 0.5 * (measured - GOLDEN).abs().sum().item() == pytest.approx(0.4 / n, abs=0.006)


@pytest.mark.parametrize("eta", [0.0, 1.5, 20.0])
@pytest.mark.parametrize("end", [0.6, 1.0])
def test_samples_follow_the_enumerated_law_of_the_discrete_steps(eta, end):
    grid, count = uniform(5, end), 200_000
    law = exact_law(SKEWED, grid, eta)
    x = sample(
        oracle(SKEWED), Process(Part(Tokens(2), Masking())), Keys.for_samples(1, range(count)),
        (2,), grid=grid, remask=eta,
    ).x
    measured = torch.bincount(x[:, 0] * 3 + x[:, 1], minlength=9).double() / count
    error = (law * (1 - law) / count).sqrt()
    assert ((measured - law).abs() <= 4 * error + 1e-12).all(), (measured, law)


@pytest.mark.parametrize("eta", [0.0, 1.5, 20.0])
def test_marginals_stay_right_at_every_time_whatever_the_noise(eta):
    warped = Masking(lambda t: t**2)
    for end in (0.3, 0.8, 1.0):
        law = exact_law(SKEWED, uniform(6, end), eta, warped).view(3, 3)
        k = warped.kappa(end)
        for axis in (0, 1):
            marginal = law.sum(1 - axis)
            expected = torch.cat((k * SKEWED.sum(1 - axis), torch.tensor([1 - k])))
            assert torch.allclose(marginal, expected.double(), atol=1e-12)


def test_the_joint_law_converges_with_the_step_also_under_noise():
    def distance(n):
        law = exact_law(GOLDEN, uniform(n), 3.0)
        return 0.5 * (joint_of(law) - GOLDEN).abs().sum().item()

    assert 1.8 < distance(32) / distance(64) < 2.2


def random_pairs(b, n, classes, keys):
    logits = keys.normal("logits", 0, (n, n, classes))
    return logits, torch.tensor([n, n - 3, 2] + [n] * (b - 3))


def test_pairs_stay_symmetric_with_zero_diagonal_and_untouched_padding():
    keys = Keys.for_samples(0, range(6))
    space, n = PairTokens(4), 7
    logits, sizes = random_pairs(6, n, 4, keys)
    mask = torch.arange(n) < sizes[:, None]
    pairs = space.entry_mask(mask, torch.zeros(6, n, n))
    x = space.noise(keys, "p", 0, torch.zeros(6, n, n, dtype=torch.int64), mask)
    for k, (t, u) in enumerate(itertools.pairwise(uniform(8))):
        x = masked_step(space, x, logits, *Masking().step(t, u, 3.0), keys, "s", k, mask)
        assert torch.equal(x, x.transpose(1, 2)) and (x[~pairs] == 0).all()
        assert 0 < (x == 4).sum() < pairs.sum() or k in (0, 7)
    assert (x[pairs] < 4).all()


def test_padded_tokens_keep_whatever_they_hold():
    keys = Keys.for_samples(0, range(2))
    x = torch.tensor([[3, 3, 9], [3, 1, 9]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    new = masked_step(Tokens(3), x, torch.zeros(2, 3, 3), 1.0, 0.0, keys, "s", 0, mask)
    assert (new[:, 2] == 9).all() and (new[:, :2] < 3).all() and new[1, 1] == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_softmax(temperature):
    logits = torch.tensor([0.3, -1.0, 1.2, -math.inf, 0.0])
    keys, m = Keys.for_samples(4, range(1000)), 100
    x = torch.full((1000, m), 5)
    new = masked_step(
        Tokens(5), x, logits.expand(1000, m, 5), 1.0, 0.0, keys, "s", 0, temperature=temperature
    )
    p = (logits / temperature).softmax(0)
    measured = torch.bincount(new.flatten(), minlength=5) / new.numel()
    assert ((measured - p).abs() <= 4 * (p * (1 - p) / new.numel()).sqrt()).all()
    assert measured[3] == 0.0


def test_the_last_step_leaves_no_mask_even_if_probabilities_sum_to_less_than_one():
    class Topmost:
        """Keys whose uniforms are the largest float32 below 1."""

        def uniform(self, stream, step, shape, dtype=torch.float32):
            return torch.full((4, *shape), 1 - 2.0**-24)

    logits = torch.randn(4, 50, 37, generator=torch.Generator().manual_seed(0))
    x = torch.full((4, 50), 37)
    assert (masked_step(Tokens(37), x, logits, 1.0, 0.0, Topmost(), "s", 0) < 37).all()


def test_a_draw_depends_on_its_own_sample_and_pair_only():
    keys, n = Keys.for_samples(8, range(5)), 6
    logits = keys.normal("l", 0, (n, n, 3))
    x = torch.full((5, n, n), 3)
    alone = masked_step(PairTokens(3), x, logits, 0.6, 0.2, keys, "s", 2)
    order = torch.tensor([4, 2])
    some = masked_step(PairTokens(3), x[order], logits[order], 0.6, 0.2, keys[order], "s", 2)
    assert torch.equal(some, alone[order])
    padded_x, padded = torch.full((5, n + 3, n + 3), 3), torch.zeros(5, n + 3, n + 3, 3)
    padded[:, :n, :n] = logits
    wide = masked_step(PairTokens(3), padded_x, padded, 0.6, 0.2, keys, "s", 2)
    assert torch.equal(wide[:, :n, :n], alone)


def test_pairs_use_the_mean_of_both_logits():
    keys = Keys.for_samples(8, range(3))
    logits = keys.normal("l", 0, (5, 5, 3))
    x = torch.full((3, 5, 5), 3)
    one = masked_step(PairTokens(3), x, logits, 1.0, 0.0, keys, "s", 0)
    other = masked_step(PairTokens(3), x, logits.transpose(1, 2), 1.0, 0.0, keys, "s", 0)
    assert torch.equal(one, other)


def test_fading_is_flat_and_then_falls_to_zero():
    eta = fading(10.0, over=0.2)
    assert [eta(0.0), eta(0.8), eta(0.9), eta(1.0)] == pytest.approx([10.0, 10.0, 5.0, 0.0])


def test_mistakes_are_refused():
    keys, x = Keys.for_samples(0, range(2)), torch.full((2, 3), 4)
    with pytest.raises(UserError, match="temperature must be positive, got 0"):
        masked_step(Tokens(4), x, torch.zeros(2, 3, 4), 0.5, 0.0, keys, "s", 0, temperature=0.0)
    with pytest.raises(ValueError, match=r"\(2, 3, 4\), got \(2, 3, 5\)"):
        masked_step(Tokens(4), x, torch.zeros(2, 3, 5), 0.5, 0.0, keys, "s", 0)
    with pytest.raises(UserError, match="eta"):
        Masking().step(0.1, 0.2, -1.0)
    with pytest.raises(UserError, match="fading"):
        fading(1.0, over=0.0)
