"""Adaptive steps against exact flows; what a sample may depend on; what happens when one fails."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import solve_ivp

from driftworks.core.ode import dopri5, rk4
from driftworks.errors import UserError


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def turn(x, t, index):
    """Rotation of the plane with angular velocity 1 + t."""
    return torch.stack([-x[:, 1], x[:, 0]], 1) * (1.0 + t)[:, None]


def pendulum(x, t, index):
    """Nonlinear, driven: the field of the comparison with SciPy."""
    angle, speed = x.unbind(1)
    return torch.stack([speed, -4.0 * angle.sin() + torch.cos(3.0 * t)], 1)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-7, 1e-10])
def test_the_error_of_the_adaptive_solver_follows_its_tolerance(tolerance):
    x = tensor([[1.0, 0.0], [0.3, -2.0]])
    out = dopri5(turn, x, 0.0, 2.0, rtol=tolerance)
    angle = 2.0 + 2.0
    exact = torch.stack(
        [
            math.cos(angle) * x[:, 0] - math.sin(angle) * x[:, 1],
            math.sin(angle) * x[:, 0] + math.cos(angle) * x[:, 1],
        ],
        1,
    )
    assert out.ok.all()
    assert (out.x - exact).abs().max() < 30 * tolerance


def test_a_tighter_tolerance_costs_the_evaluations_of_an_order_five_method():
    x = tensor([[1.0, 0.0]])
    loose, tight = (
        dopri5(turn, x, 0.0, 5.0, rtol=tol).evaluations.item() for tol in (1e-6, 1e-11)
    )
    # the error estimate is of order h^5: five decades are a factor of 10 in steps
    assert 7.0 < tight / loose < 13.0


def test_both_directions_agree_with_scipy():
    x = tensor([[0.5, 1.0], [2.0, -0.3], [-1.0, 0.0]])
    out, costs = dopri5(pendulum, x, 0.2, 3.0, rtol=1e-9), []
    for start, end in zip(x, out.x, strict=True):
        def right(t, v):
            return [v[1], -4.0 * math.sin(v[0]) + math.cos(3.0 * t)]

        exact = solve_ivp(right, (0.2, 3.0), start.numpy(), method="DOP853", rtol=1e-12, atol=1e-12)
        assert torch.allclose(end, tensor(exact.y[:, -1]), atol=1e-7)
        same = solve_ivp(right, (0.2, 3.0), start.numpy(), method="RK45", rtol=1e-9, atol=1e-9)
        costs.append(same.nfev)
    # the same pair and tolerance: the controller wastes no more steps than theirs
    assert 0.7 * sum(costs) < int(out.evaluations.sum()) < 1.1 * sum(costs)
    back = dopri5(pendulum, out.x, 3.0, 0.2, rtol=1e-9)
    assert torch.allclose(back.x, x, atol=1e-7)


def test_rk4_has_order_four():
    x = tensor([[0.5, 1.0]])
    exact = dopri5(pendulum, x, 0.0, 2.0, rtol=1e-12).x
    errors = [(rk4(pendulum, x, 0.0, 2.0, steps=n).x - exact).norm() for n in (20, 40, 80)]
    orders = [math.log2(a / b) for a, b in zip(errors[:-1], errors[1:], strict=True)]
    assert all(3.8 < order < 4.3 for order in orders), orders
    assert rk4(pendulum, x, 0.0, 2.0, steps=20).evaluations.tolist() == [80]


def test_the_result_of_a_sample_is_bitwise_the_same_in_any_batch():
    seed = 5
    x = 2.0 * torch.randn(33, 2, generator=generator(seed), dtype=torch.float64)
    stiff = 50.0 ** torch.rand(33, generator=generator(seed + 1), dtype=torch.float64)

    def field(scales):
        def f(state, t, index):
            return pendulum(state, t, index) - scales[index, None] * (state - 1.0)

        return f

    together = dopri5(field(stiff), x, 0.0, 1.0, rtol=1e-5)
    assert together.evaluations.unique().numel() > 3  # every sample took its own steps
    for i in (0, 7, 32):
        alone = dopri5(field(stiff[i : i + 1]), x[i : i + 1], 0.0, 1.0, rtol=1e-5)
        assert torch.equal(alone.x[0], together.x[i])
        assert alone.evaluations[0] == together.evaluations[i]
    order = torch.randperm(33, generator=generator(seed + 2))
    mixed = dopri5(field(stiff[order]), x[order], 0.0, 1.0, rtol=1e-5)
    assert torch.equal(mixed.x, together.x[order])


def test_samples_leave_the_evaluations_when_they_arrive():
    sizes = []

    def field(x, t, index):
        sizes.append(len(index))
        return -x * tensor([1.0, 1.0, 400.0])[index, None]

    out = dopri5(field, torch.ones(3, 1, dtype=torch.float64), 0.0, 1.0, rtol=1e-6)
    assert out.ok.all() and sizes[0] == 3 and sizes[-1] == 1
    assert sum(sizes) == int(out.evaluations.sum())


def test_entries_that_are_not_counted_do_not_change_the_steps():
    x = tensor([[1.0, 0.0, 5.0]])
    known = torch.tensor([[True, True, False]])

    def field(rate):
        def f(state, t, index):
            return torch.cat([turn(state[:, :2], t, index), rate * state[:, 2:]], 1)

        return f

    calm, wild = (dopri5(field(r), x, 0.0, 1.0, counted=known) for r in (0.0, -80.0))
    assert torch.equal(calm.x[:, :2], wild.x[:, :2])
    assert calm.evaluations == wild.evaluations
    assert dopri5(field(-80.0), x, 0.0, 1.0).evaluations > 2 * wild.evaluations


def test_a_small_tensor_of_a_state_is_not_diluted_by_a_large_one():
    state = {
        "many": torch.zeros(1, 1000, dtype=torch.float64),
        "one": torch.ones(1, 1, dtype=torch.float64),
    }

    def field(x, t, index):
        return {"many": 0.0 * x["many"], "one": 20.0 * torch.cos(20.0 * t)[:, None]}

    out = dopri5(field, state, 0.0, 1.0, rtol=1e-7)
    assert abs(out.x["one"].item() - 1.0 - math.sin(20.0)) < 3e-7


def test_every_sample_may_have_its_own_span_of_time():
    x = tensor([[1.0, 0.0]]).repeat(4, 1)
    begin, end = tensor([0.0, 0.5, 1.0, 2.0]), tensor([2.0, 1.0, 1.0, 0.0])
    out = dopri5(turn, x, begin, end, rtol=1e-9)
    angle = (end - begin) + 0.5 * (end**2 - begin**2)
    assert torch.allclose(out.x, torch.stack([angle.cos(), angle.sin()], 1), atol=1e-7)
    assert out.evaluations[2] == 0 and out.ok.all()
    fixed = rk4(turn, x, begin, end, steps=200)
    assert torch.allclose(fixed.x, out.x, atol=1e-7)


def test_states_keep_their_shape_and_dtype():
    state = {"a": torch.ones(2, 3, 2), "b": torch.ones(2, dtype=torch.float64)}
    out = dopri5(lambda x, t, i: {"a": -x["a"], "b": x["b"]}, state, 0.0, 1.0)
    assert out.x["a"].shape == (2, 3, 2) and out.x["a"].dtype == torch.float32
    assert out.x["b"].shape == (2,) and out.x["b"].dtype == torch.float64
    assert torch.allclose(out.x["a"], torch.full((2, 3, 2), math.exp(-1.0)), atol=1e-5)


def test_a_sample_that_explodes_fails_alone_and_in_finite_time():
    x = tensor([[0.5], [2.0], [1.0]])  # dx/dt = x^2 explodes at t = 1 / x

    def square(state, t, index):
        return state * state

    out = dopri5(square, x, 0.0, 0.9, rtol=1e-6)
    assert out.ok.tolist() == [True, False, True]
    assert torch.allclose(out.x[[0, 2]], tensor([[0.5 / 0.55], [10.0]]), rtol=1e-4)
    assert out.x[1].isfinite().all() and out.evaluations[1] < 10_000


def test_a_sample_that_exceeds_its_evaluations_is_flagged():
    rates = tensor([[1.0], [1e5]])

    def field(x, t, index):
        return -rates[index] * (x - torch.cos(t)[:, None])

    x = torch.zeros(2, 1, dtype=torch.float64)
    out = dopri5(field, x, 0.0, 1.0, max_evaluations=200)
    assert out.ok.tolist() == [True, False] and (out.evaluations <= 200).all()


def test_a_slope_that_is_not_finite_fails_only_its_own_sample():
    def field(x, t, index):
        return torch.where(index[:, None] == 1, torch.nan, -x)

    out = dopri5(field, torch.ones(3, 1, dtype=torch.float64), 0.0, 1.0)
    assert out.ok.tolist() == [True, False, True] and out.x[1] == 1.0
    assert rk4(field, torch.ones(3, 1), 0.0, 1.0).ok.tolist() == [True, False, True]


def test_settings_out_of_range_are_named():
    x = torch.ones(2, 1)
    with pytest.raises(UserError, match="rtol must be a positive number, got 0"):
        dopri5(turn, x, 0.0, 1.0, rtol=0.0)
    with pytest.raises(UserError, match=r"t0 must be a number or one a sample \(2,\), got \(3,\)"):
        dopri5(turn, x, torch.zeros(3), 1.0)
    with pytest.raises(UserError, match="t1 must be finite"):
        rk4(turn, x, 0.0, math.nan)
    with pytest.raises(UserError, match="only real numbers flow"):
        dopri5(turn, {"types": torch.zeros(2, 3, dtype=torch.int64)}, 0.0, 1.0)
    with pytest.raises(UserError, match="one batch size"):
        dopri5(turn, {"a": torch.ones(2, 1), "b": torch.ones(3, 1)}, 0.0, 1.0)


def test_a_progress_bar_can_be_shown(capsys):
    dopri5(turn, tensor([[1.0, 0.0]]), 0.0, 1.0, progress="turning")
    assert "turning" in capsys.readouterr().out
