"""The (denoised, noise) algebra: exact round trips, finite ends, time belongs to the batch."""

from __future__ import annotations

import math

import pytest
import torch

from driftworks.core.laws import Gaussian
from driftworks.core.paths import Path
from driftworks.core.predict import (
    PARAMETRISATIONS,
    Precondition,
    as_denoised,
    as_noise,
    as_pair,
    as_score,
    as_velocity,
    as_vparam,
    convert,
    fit_scale,
    from_pair,
    interpolate,
    per_sample,
    weights,
)
from driftworks.errors import UserError

PATHS = {
    "linear": Path.linear(),
    "cosine": Path.cosine(),
    "vp": Path.vp(),
    "subvp": Path.subvp(),
    "ve": Path.ve(),
    "edm": Path.edm(),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
every_source = pytest.mark.parametrize("source", PARAMETRISATIONS)
every_target = pytest.mark.parametrize("target", PARAMETRISATIONS)


def draws(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in "xe"]


def error(found, wanted):
    """Largest error relative to the size of the value, absolute below 1."""
    return ((found - wanted).abs() / wanted.abs().clamp(min=1.0)).max().item()


@every_path
@every_source
@every_target
def test_round_trips_are_exact_across_the_interior(path, source, target):
    t = torch.linspace(0.001, 0.999, 201, dtype=torch.float64)
    x1, noise = draws(len(t), 4)
    x = interpolate(path, x1, noise, t)
    given, wanted = (from_pair(path, (x1, noise), t, kind) for kind in (source, target))
    found = convert(path, given, x, t, source, target)
    assert error(found, wanted) <= 1e-10
    assert error(convert(path, found, x, t, target, source), given) <= 1e-10


@every_path
@every_source
@every_target
def test_every_conversion_is_finite_at_both_ends(path, source, target):
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    x1, noise = draws(2, 5)
    x = interpolate(path, x1, noise, t)
    found = convert(path, x1, x, t, source, target)
    assert found.isfinite().all()
    for k, end in enumerate((0.0, 1.0)):
        alone = convert(path, x1[k : k + 1], x[k : k + 1], end, source, target)
        torch.testing.assert_close(alone, found[k : k + 1], rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("source", ["velocity", "vparam"])
def test_velocity_and_vparam_give_the_exact_pair_at_both_ends(name, source):
    path, t = PATHS[name], torch.tensor([0.0, 1.0], dtype=torch.float64)
    x1, noise = draws(2, 5)
    x = interpolate(path, x1, noise, t)
    pair = as_pair(path, from_pair(path, (x1, noise), t, source), x, t, source)
    assert error(pair.denoised, x1) <= 1e-15
    assert error(pair.noise, noise) <= 1e-15


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "subvp", "edm"])
@pytest.mark.parametrize("predicts", PARAMETRISATIONS)
def test_no_noise_leaves_the_state_as_the_data(name, predicts):
    path = PATHS[name]  # all but VE, which ends with noise
    x, p = draws(3, 4)
    if predicts == "denoised":
        p = x / path.beta(1.0)
    elif predicts == "velocity" and math.isfinite(path.dsigma(1.0)):
        p = from_pair(path, (x, p), 1.0, "velocity")  # b carries the noise, and D must shed it
    pair = as_pair(path, p, x, 1.0, predicts)
    assert error(pair.denoised, x) <= 1e-12


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("predicts", PARAMETRISATIONS)
def test_no_signal_leaves_the_state_as_the_noise(name, predicts):
    x, p = draws(3, 4)
    if predicts in ("noise", "score"):
        p = from_pair(PATHS[name], (0 * x, x), 0.0, predicts)
    assert error(as_noise(PATHS[name], p, x, 0.0, predicts), x) <= 1e-12


@every_path
def test_the_missing_member_at_an_end_is_zero(path):
    x, p = draws(3, 4)
    if path.sigma(1.0) == 0.0:
        assert (as_noise(path, p, x, 1.0, "denoised") == 0).all()
        assert (as_score(path, p, x, 1.0, "denoised") == 0).all()
        velocity = as_velocity(path, p, x, 1.0, "denoised")
        assert error(velocity, path.dbeta(1.0) * p) <= 1e-15
    if path.beta(0.0) == 0.0:
        assert (as_denoised(path, p, x, 0.0, "noise") == 0).all()


@every_path
@every_source
@every_target
def test_ends_join_the_interior_where_the_pair_is_determined(path, source, target):
    # exact answers of a Gaussian law, so that the limit exists; skip what the ends cannot know
    oracle, (x, _) = Gaussian(0.4, 0.3).on(path), draws(4, 3)
    for end, inside in ((0.0, 1e-8), (1.0, 1 - 1e-8)):
        if end == 0.0 and path.beta(0.0) == 0.0 and source in ("noise", "score"):
            continue
        if end == 1.0 and path.sigma(1.0) == 0.0:
            if target == "score" and source != "score":
                continue
            if target == "velocity" and source != "velocity" and math.isinf(path.dsigma(1.0)):
                continue
        given, near = getattr(oracle, source)(x, end), getattr(oracle, source)(x, inside)
        found = convert(path, given, x, end, source, target)
        assert error(found, convert(path, near, x, inside, source, target)) < 3e-3, end
        assert error(found, getattr(oracle, target)(x, end)) < 1e-9, end


@every_path
@every_source
@every_target
def test_conversions_agree_with_the_exact_answers_of_a_law(path, source, target):
    oracle, (x, _) = Gaussian(0.4, 0.3).on(path), draws(50, 3)
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    found = convert(path, getattr(oracle, source)(x, t), x, t, source, target)
    assert error(found, getattr(oracle, target)(x, t)) <= 1e-10


@pytest.mark.parametrize(
    "shape", [(3, 5, 3), (5, 5, 5), (4, 2, 4), (4, 4, 4), (3, 3), (2, 7, 7, 2)]
)
@pytest.mark.parametrize("name", ["linear", "vp"])
@every_source
@every_target
def test_time_belongs_to_the_first_dimension_whatever_the_others(shape, name, source, target):
    path, size = PATHS[name], shape[0]
    x, p = draws(*shape, seed=sum(shape))
    t = torch.linspace(0.1, 0.9, size, dtype=torch.float64)
    found = convert(path, p, x, t, source, target)
    loop = [
        convert(path, p[k : k + 1], x[k : k + 1], float(t[k]), source, target) for k in range(size)
    ]
    assert found.shape == x.shape
    torch.testing.assert_close(found, torch.cat(loop), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(3, 5, 3), (5, 5, 5), (4, 4, 4)])
def test_the_bridge_takes_each_sample_to_its_own_time(shape):
    x1, noise = draws(*shape)
    t = torch.linspace(0.0, 1.0, shape[0], dtype=torch.float64)
    loop = torch.stack([t[k] * x1[k] + (1 - t[k]) * noise[k] for k in range(shape[0])])
    torch.testing.assert_close(interpolate(Path.linear(), x1, noise, t), loop, rtol=0, atol=1e-15)


@pytest.mark.parametrize("shape", [(3, 1), (3, 3), (5,), (1, 3)])
def test_times_of_any_other_shape_are_refused(shape):
    x, p = draws(3, 5, 3)
    with pytest.raises(ValueError, match=r"shape \(B,\)"):
        as_velocity(Path.linear(), p, x, torch.full(shape, 0.5), "denoised")


def test_one_time_may_serve_the_whole_batch():
    x, p = draws(3, 5, 3)
    wanted = as_velocity(Path.cosine(), p, x, 0.3, "denoised")
    for t in (
        torch.tensor(0.3, dtype=torch.float64),
        torch.tensor([0.3], dtype=torch.float64),
        torch.full((3,), 0.3, dtype=torch.float64),
    ):
        found = as_velocity(Path.cosine(), p, x, t, "denoised")
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)


def test_states_keep_their_precision_and_coefficients_theirs():
    x, p = draws(3, 5, dtype=torch.float32)
    t = torch.tensor([1e-12, 0.5, 1 - 1e-12], dtype=torch.float64)
    found = as_denoised(Path.linear(), p, x, t, "velocity")
    assert found.dtype == torch.float32
    # float32 times would round 1 - 1e-12 to 1 and lose this factor
    level = as_noise(Path.linear(), p, x, t[2:].expand(3), "denoised")
    wanted = (x.double() - t[2] * p.double()) / (1 - t[2])
    torch.testing.assert_close(level.double(), wanted, rtol=2e-4, atol=0)
    assert per_sample(t, x).dtype == torch.float32 and per_sample(t, x).shape == (3, 1)


def test_a_float_time_yields_float_weights():
    for source in PARAMETRISATIONS:
        for target in PARAMETRISATIONS:
            numbers = weights(Path.vp(), 0.3, source, target)
            assert all(isinstance(number, float) for number in numbers)


@every_path
def test_the_velocity_target_is_the_time_derivative_of_the_state(path):
    (x1, noise), t = draws(9, 2), torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    wanted = torch.autograd.functional.jvp(
        lambda s: interpolate(path, x1, noise, s), t, torch.ones_like(t)
    )[1]
    assert error(from_pair(path, (x1, noise), t, "velocity"), wanted) <= 1e-10


def test_vparam_is_not_the_velocity_but_its_rescaling_on_the_cosine_path():
    (x1, noise), path = draws(4, 2), Path.cosine()
    v = from_pair(path, (x1, noise), 0.3, "vparam")
    b = from_pair(path, (x1, noise), 0.3, "velocity")
    assert error(b, -0.5 * math.pi * v) <= 1e-14
    x = interpolate(path, x1, noise, 0.3)
    assert error(as_vparam(path, b, x, 0.3, "velocity"), v) <= 1e-14


def test_gradients_reach_the_prediction_through_every_conversion_also_at_the_ends():
    x, p = draws(3, 4)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    for source in PARAMETRISATIONS:
        for target in PARAMETRISATIONS:
            q = p.clone().requires_grad_()
            convert(Path.linear(), q, x, t, source, target).sum().backward()
            assert q.grad.isfinite().all() and (q.grad[1] != 0).all(), (source, target)


def test_an_unknown_parametrisation_is_refused_with_the_choices():
    x, p = draws(3, 4)
    with pytest.raises(
        UserError, match="unknown parametrisation 'epsilon'; choose one of denoised"
    ):
        as_denoised(Path.linear(), p, x, 0.5, "epsilon")
    with pytest.raises(UserError, match="unknown parametrisation 'v'"):
        convert(Path.linear(), p, x, 0.5, "noise", "v")


class Recorder(torch.nn.Module):
    """Returns a fixed answer and keeps what it was shown."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, noise, mask, cond, previous):
        self.seen = (x, noise, mask, cond, previous)
        return self.answer


@every_path
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_network_sees_and_predicts_unit_variance_at_every_time(path, scale):
    t = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)[:, None].expand(21, 4000).reshape(-1)
    x1, noise = draws(len(t))
    x = interpolate(path, scale * x1, noise, t)
    network = Recorder(torch.zeros_like(x))
    wrapped = Precondition(network, path, scale)
    wrapped(x, t)
    seen = network.seen[0].reshape(21, 4000)
    target = wrapped.target(scale * x1, x, t).reshape(21, 4000)
    kept = path.sigma(t.reshape(21, -1)[:, 0]) > 0
    # 4000 draws: the variance has standard error 0.022
    assert ((seen.var(1) - 1).abs() < 0.11).all()
    assert ((target[kept].var(1) - 1).abs() < 0.11).all()
    assert (seen * target).mean(1).abs().max() < 0.08  # what is left to learn is uncorrelated


@every_path
def test_without_a_network_the_preconditioned_model_is_the_exact_gaussian_denoiser(path):
    x, _ = draws(21, 3)
    t = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
    wrapped = Precondition(Recorder(torch.zeros_like(x)), path, 0.7)
    exact = Gaussian(0.0, 0.49).on(path).denoised(x, t)
    assert error(wrapped(x, t), exact) <= 1e-13


def test_scalings_are_those_of_edm_when_the_data_are_not_scaled():
    wrapped = Precondition(torch.nn.Identity(), Path.edm(80.0), 0.5)
    for sigma in (0.002, 0.3, 2.0, 80.0):
        c = wrapped.scalings(1 - sigma / 80)
        total = sigma**2 + 0.25
        wanted = (0.25 / total, sigma * 0.5 / total**0.5, total**-0.5, 0.25 * math.log(sigma))
        assert tuple(c) == pytest.approx(wanted, rel=1e-10)
        assert wrapped.weight(1 - sigma / 80) == pytest.approx(
            total / (sigma * 0.5) ** 2, rel=1e-10
        )


@every_path
def test_the_weighted_loss_of_the_denoiser_is_the_plain_loss_of_the_network(path):
    (x1, noise), (answer, _) = draws(19, 3), draws(19, 3, seed=5)
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    x = interpolate(path, x1, noise, t)
    wrapped = Precondition(Recorder(answer), path, 1.3)
    loss = wrapped.weight(t)[:, None] * (wrapped(x, t) - x1) ** 2
    plain = (answer - wrapped.target(x1, x, t)) ** 2
    torch.testing.assert_close(loss, plain, rtol=1e-8, atol=1e-10)


def test_the_preconditioned_model_is_finite_at_the_ends_and_leaves_conditions_alone():
    x, answer = draws(2, 3, 3, dtype=torch.float32)
    for path in PATHS.values():
        network = Recorder(answer.bfloat16())
        cond, previous = object(), 7 * x
        found = Precondition(network, path, 2.0)(x, torch.tensor([0.0, 1.0]), None, cond, previous)
        assert found.isfinite().all() and found.dtype == torch.float32
        assert network.seen[1].isfinite().all() and network.seen[1].shape == (2,)
        assert network.seen[3] is cond and network.seen[4] is previous


def test_the_scale_of_data_counts_real_entries_only():
    x = torch.tensor([[[3.0, 4.0], [100.0, 100.0]], [[0.0, 5.0], [5.0, 0.0]]])
    mask = torch.tensor([[True, False], [True, True]])
    assert fit_scale(x, mask) == pytest.approx(math.sqrt((9 + 16 + 25 + 25) / 6))
    with pytest.raises(UserError, match="0 entries"):
        fit_scale(x, torch.zeros_like(mask))
    with pytest.raises(UserError, match="sigma_data must be a positive number, got 0.0"):
        Precondition(torch.nn.Identity(), Path.edm(), 0.0)
