"""Losses are minimised by the posterior, blind to padding, and equal to loops written by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from driftworks.core import so3
from driftworks.core.ctmc import Masking
from driftworks.core.frames import Geodesic, Rotations
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian
from driftworks.core.paths import Path
from driftworks.core.predict import PARAMETRISATIONS, from_pair, weights
from driftworks.core.process import Bridge, Part, Process
from driftworks.core.spaces import Centred, Flat, PairTokens, Symmetric, Tokens
from driftworks.core.times import Beta, Uniform, time_weight
from driftworks.core.train import Ema, matching_loss, time_samples, velocity_weight
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
every_kind = pytest.mark.parametrize("predicts", PARAMETRISATIONS)

MOLECULE = Process(
    {
        "pos": Part(Centred(), Path.linear()),
        "pair": Part(Symmetric(), Path.cosine(), predicts="noise"),
        "flat": Part(Flat(), Path.vp(), predicts="velocity"),
        "atom": Part(Tokens(4), Masking()),
        "bond": Part(PairTokens(3), Masking()),
    }
)
CLASSES = {"atom": 4, "bond": 3}
COUNTS = torch.tensor([5, 2, 4])
TIMES = torch.tensor([0.25, 0.5, 0.8], dtype=torch.float64)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def padded(x, size, axes, fill):
    """Pad ``axes`` node axes of x (B, 5, ...) to ``size`` with ``fill``."""
    for axis in range(1, axes + 1):
        shape = list(x.shape)
        shape[axis] = size - x.shape[axis]
        x = torch.cat([x, torch.full(shape, fill, dtype=x.dtype)], axis)
    return x


def example(size=5, rubbish=0.0):
    """A bridge and a prediction; beyond five nodes the prediction holds ``rubbish``."""
    mask = torch.arange(size) < COUNTS.unsqueeze(1)
    generator = torch.Generator().manual_seed(3)
    tokens = {
        "atom": torch.randint(0, 4, (3, 5), generator=generator),
        "bond": torch.randint(0, 3, (3, 5, 5), generator=generator),
    }
    shapes = {"pos": (3, 5, 3), "pair": (3, 5, 5, 2), "flat": (3, 5, 2)}
    axes = {"pos": 1, "pair": 2, "flat": 1, "atom": 1, "bond": 2}
    data = {name: normal(*shape, seed=4) for name, shape in shapes.items()} | tokens
    prediction = {name: normal(*shape, seed=5) for name, shape in shapes.items()}
    prediction |= {name: normal(*x.shape, CLASSES[name], seed=6) for name, x in tokens.items()}
    data = {
        name: MOLECULE.parts[name].space.project(padded(x, size, axes[name], 0), mask)
        for name, x in data.items()
    }
    prediction = {name: padded(x, size, axes[name], rubbish) for name, x in prediction.items()}
    bridge = MOLECULE.bridge(data, TIMES, Keys.for_samples(0, range(3)), mask)
    return prediction, bridge


def by_hand(prediction, bridge, cap=None, visible=0.0):
    """The loss of every part, one number at a time."""
    losses = {}
    for name, part in MOLECULE.items():
        errors, others = [], []
        for b, count in enumerate(COUNTS.tolist()):
            pairs = isinstance(part.space, Symmetric | PairTokens)
            nodes = [(i, j) for i in range(count) for j in range(count) if i != j]
            for node in nodes if pairs else [(i,) for i in range(count)]:
                at = (b, *node)
                if part.space.discrete:
                    logits = prediction[name][at].tolist()
                    total = math.log(sum(map(math.exp, logits)))
                    error = total - logits[bridge.x_1[name][at]]
                    (errors if bridge.hidden[name][at] else others).append(error)
                    continue
                t = TIMES[b].item()
                c_x, c_p = weights(part.path, t, part.predicts, "denoised")
                denoised = c_x * bridge.x_t[name][at] + c_p * prediction[name][at]
                square = (denoised - bridge.x_1[name][at]).square()
                if cap is not None:
                    beta, sigma = part.path.beta(t), part.path.sigma(t)
                    w = sigma * part.path.dbeta(t) - beta * part.path.dsigma(t)
                    square = square * min((w / sigma) ** 2, cap)
                errors += [square.sum().item()] if name == "pos" else square.tolist()
        losses[name] = sum(errors) / len(errors)
        if visible and part.space.discrete:
            losses[name] += visible * sum(others) / len(others)
    return losses


@pytest.mark.parametrize("cap", [None, 3.0], ids=["denoised error", "velocity error"])
@pytest.mark.parametrize("visible", [0.0, 0.3])
def test_a_loss_is_the_sum_written_by_hand(cap, visible):
    prediction, bridge = example(7)
    loss = matching_loss(prediction, MOLECULE, bridge, velocity_cap=cap, visible_weight=visible)
    wanted = by_hand(prediction, bridge, cap, visible)
    assert {k: v.item() for k, v in loss.parts.items()} == pytest.approx(wanted, rel=1e-6)
    assert loss.total.item() == pytest.approx(sum(wanted.values()), rel=1e-6)


@pytest.mark.parametrize("rubbish", [0.0, 1e30, math.inf])
@pytest.mark.parametrize("cap", [None, 100.0], ids=["denoised error", "velocity error"])
def test_padding_never_changes_a_loss(cap, rubbish):
    plain = matching_loss(*loss_arguments(5, 0.0), velocity_cap=cap, visible_weight=0.5)
    for size in (6, 9):
        loss = matching_loss(*loss_arguments(size, rubbish), velocity_cap=cap, visible_weight=0.5)
        for name in plain.parts:
            torch.testing.assert_close(loss.parts[name], plain.parts[name], rtol=1e-12, atol=0)


def loss_arguments(size, rubbish):
    prediction, bridge = example(size, rubbish)
    return prediction, MOLECULE, bridge


def test_padding_gets_no_gradient():
    prediction, bridge = example(8)
    prediction = {name: x.requires_grad_() for name, x in prediction.items()}
    matching_loss(prediction, MOLECULE, bridge, visible_weight=0.5).total.backward()
    for name, part in MOLECULE.items():
        gradient = prediction[name].grad
        entries = part.space.entry_mask(bridge.mask, bridge.x_1[name])
        if part.space.discrete:
            entries = entries.unsqueeze(-1)
        assert gradient.isfinite().all()
        assert (gradient * ~entries == 0).all() and (gradient * entries != 0).any()


def test_a_mask_that_keeps_everything_is_no_mask():
    prediction, bridge = example(5)
    for mask in (torch.ones(3, 5, dtype=torch.bool), dict.fromkeys(MOLECULE.parts)):
        again = MOLECULE.bridge(bridge.x_1, TIMES, Keys.for_samples(0, range(3)), mask)
        loss = matching_loss(prediction, MOLECULE, again, velocity_cap=10.0)
        if isinstance(mask, torch.Tensor):
            first = loss
    for name, value in loss.parts.items():
        torch.testing.assert_close(value, first.parts[name], rtol=1e-12, atol=0)


def test_weights_scale_parts_and_one_is_the_default():
    prediction, bridge = example()
    plain = matching_loss(prediction, MOLECULE, bridge)
    assert plain.total.item() == pytest.approx(sum(plain.parts.values()).item())
    weighted = matching_loss(prediction, MOLECULE, bridge, {"pos": 3.0, "atom": 0.0})
    wanted = plain.total + 2.0 * plain.parts["pos"] - plain.parts["atom"]
    assert weighted.total.item() == pytest.approx(wanted.item())
    assert weighted.parts == plain.parts
    with pytest.raises(ValueError, match="unknown parts position"):
        matching_loss(prediction, MOLECULE, bridge, {"position": 1.0})
    del prediction["pair"]
    with pytest.raises(ValueError, match="lacks the parts pair"):
        matching_loss(prediction, MOLECULE, bridge)


def test_only_the_total_carries_a_gradient():
    prediction, bridge = example()
    prediction["pos"].requires_grad_()
    loss = matching_loss(prediction, MOLECULE, bridge)
    assert loss.total.requires_grad and not any(p.requires_grad for p in loss.parts.values())


def test_half_precision_predictions_are_compared_in_single_precision():
    prediction, bridge = example()
    half = {name: x.bfloat16() for name, x in prediction.items()}
    loss = matching_loss(half, MOLECULE, bridge)
    rounded = {name: x.double() for name, x in half.items()}
    exact = matching_loss(rounded, MOLECULE, bridge)
    for name, value in loss.parts.items():
        assert value.dtype in (torch.float32, torch.float64)
        assert value.item() == pytest.approx(exact.parts[name].item(), rel=1e-5)


def test_a_batch_without_hidden_tokens_has_no_loss_and_a_finite_gradient():
    process = Process(Part(Tokens(4), Masking()))
    x, logits = torch.zeros(3, 5, dtype=torch.int64), normal(3, 5, 4).requires_grad_()
    bridge = process.bridge(x, torch.ones(3), Keys.for_samples(0, range(3)))
    loss = matching_loss(logits, process, bridge)
    loss.total.backward()
    assert loss.total.item() == 0.0 and (logits.grad == 0).all()


def test_a_class_forbidden_where_nothing_is_asked_costs_nothing():
    """Logits of -inf at padded and at shown entries, times a weight of zero, are not NaN."""
    process = Process(Part(Tokens(4), Masking()))
    x, mask = torch.tensor([[1, 2, 0]]), torch.tensor([[True, True, False]])
    hidden = {"x": torch.tensor([[True, False, False]])}
    bridge = Bridge(x, x, x, torch.ones(1), mask, hidden)
    logits = torch.zeros(1, 3, 4)
    logits[0, 1, 2] = logits[0, 2, 0] = -math.inf
    logits.requires_grad_()
    loss = matching_loss(logits, process, bridge)
    loss.total.backward()
    assert loss.total.item() == pytest.approx(math.log(4))
    assert logits.grad.isfinite().all() and (logits.grad[0, 1:] == 0).all()


def test_importance_multiplies_the_errors_of_a_sample():
    prediction, bridge = example()
    weights = torch.tensor([0.5, 3.0, 0.0], dtype=torch.float64)
    for settings in ({}, {"velocity_cap": 10.0, "visible_weight": 0.5}):
        found = matching_loss(prediction, MOLECULE, bridge, importance=weights, **settings)
        # the loss is linear in the weights, so those of one sample at a time add up
        ones = torch.eye(3, dtype=torch.float64)
        alone = [
            matching_loss(prediction, MOLECULE, bridge, importance=one, **settings) for one in ones
        ]
        plain = matching_loss(prediction, MOLECULE, bridge, **settings)
        for name, value in found.parts.items():
            shares = torch.stack([loss.parts[name] for loss in alone])
            torch.testing.assert_close(value, (shares * weights).sum(), rtol=1e-10, atol=0)
            torch.testing.assert_close(plain.parts[name], shares.sum(), rtol=1e-10, atol=0)
            assert shares[0] > 0


def test_importance_makes_the_loss_independent_of_the_law_of_times():
    """Of the exact denoiser: E_p[risk / p] is the integral of the Bayes risk over all times."""
    path = Path.cosine()
    grid = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    wanted = bayes_risk(path, grid).mean().item()
    keys = Keys.for_samples(2, range(40_000))
    for law in (Uniform(), Beta(1.6, 1.0), Beta(1.0, 1.5)):
        t = law.sample(keys, group=50)
        process, bridge = gaussian_bridge(path, t, 40_000)
        denoised = Gaussian(MEAN, VARIANCE).on(path)(bridge.x_t, t)
        weight = time_weight(t, law)
        loss = matching_loss(denoised, process, bridge, importance=weight).total.item()
        each = (denoised - bridge.x_1).square().mean(1) * weight
        assert abs(loss - wanted) < 4.5 * each.std().item() / math.sqrt(len(t))
        plain = matching_loss(denoised, process, bridge).total.item()
        assert law == Uniform() or abs(plain / wanted - 1) > 0.03


def test_rotations_have_the_error_of_their_route():
    process = Process({
        "turn": Part(Rotations(), Geodesic()), "pos": Part(Centred(), Path.linear()),
    })
    keys, mask = Keys.for_samples(0, range(3)), torch.arange(5) < COUNTS.unsqueeze(1)
    like = torch.empty(3, 5, 3, 3, dtype=torch.float64)
    turns = [Rotations().noise(keys, f"test{k}", 0, like, mask) for k in range(2)]
    data = {"turn": turns[0], "pos": Centred().project(normal(3, 5, 3), mask)}
    bridge = process.bridge(data, TIMES, keys, mask)
    loss = matching_loss({"turn": turns[1], "pos": data["pos"]}, process, bridge)
    x_t, total = bridge.x_t["turn"], 0.0
    for b, n in enumerate(COUNTS.tolist()):
        for i in range(n):
            ways = [so3.log(x_t[b, i].T @ turn[b, i]) for turn in turns]
            total += (ways[0] - ways[1]).square().sum().item()
    assert loss.parts["turn"].item() == pytest.approx(total / COUNTS.sum().item(), rel=1e-9)
    assert loss.parts["pos"].item() == 0.0
    exact = matching_loss(data, process, bridge, velocity_cap=5.0)
    assert exact.total.item() < 1e-20


MEAN, VARIANCE = 1.0, 0.25


def gaussian_bridge(path, t, draws=60_000, predicts="denoised"):
    """Draws of (x_1, x_t) of N(1, 1/4) data at times t, in float64."""
    process = Process(Part(Flat(), path, predicts))
    x_1 = Gaussian(MEAN, VARIANCE).sample((draws, 2), torch.Generator().manual_seed(8))
    t = torch.as_tensor(t, dtype=torch.float64).expand(draws)
    return process, process.bridge(x_1, t, Keys.for_samples(1, range(draws)))


def bayes_risk(path, t):
    """E (D - x_1)^2 = C sigma^2 / (beta^2 C + sigma^2) of N(m, C) data."""
    beta, sigma = path.beta(t), path.sigma(t)
    return VARIANCE * sigma**2 / (beta**2 * VARIANCE + sigma**2)


@every_path
def test_the_loss_of_the_oracle_is_the_bayes_risk(path):
    for t in (0.3, 0.6, 0.9):
        process, bridge = gaussian_bridge(path, t)
        denoised = Gaussian(MEAN, VARIANCE).on(path)(bridge.x_t, bridge.t)
        loss = matching_loss(denoised, process, bridge).total.item()
        risk = bayes_risk(path, t)
        # The error is normal with that variance, so its mean square has error sqrt(2 / n).
        assert abs(loss / risk - 1.0) < 4.5 * math.sqrt(2 / denoised.numel())


@every_path
@every_kind
def test_the_oracle_has_the_same_loss_in_every_parametrisation(path, predicts):
    t = torch.linspace(0.05, 0.95, 500)
    process, bridge = gaussian_bridge(path, t, 500, predicts)
    law = Gaussian(MEAN, VARIANCE)
    for cap in (None, 1e12):
        loss = matching_loss(
            law.on(path, predicts)(bridge.x_t, bridge.t), process, bridge, velocity_cap=cap
        )
        plain = Process(Part(Flat(), path))
        wanted = matching_loss(law.on(path)(bridge.x_t, bridge.t), plain, bridge, velocity_cap=cap)
        assert loss.total.item() == pytest.approx(wanted.total.item(), rel=1e-6)


@every_path
@pytest.mark.parametrize("cap", [None, 10.0], ids=["denoised error", "velocity error"])
def test_every_perturbed_oracle_has_a_larger_loss(path, cap):
    t = torch.linspace(0.0, 1.0, 60_002, dtype=torch.float64)[1:-1]
    process, bridge = gaussian_bridge(path, t)
    posterior = Gaussian(MEAN, VARIANCE).on(path)(bridge.x_t, bridge.t)
    best = matching_loss(posterior, process, bridge, velocity_cap=cap).total.item()
    signs = torch.where(torch.arange(len(t)) % 2 == 0, 1.0, -1.0).double().unsqueeze(1)
    perturbed = {
        "shifted up": posterior + 0.1,
        "shifted down": posterior - 0.1,
        "too sure": MEAN + 1.15 * (posterior - MEAN),
        "too timid": MEAN + 0.85 * (posterior - MEAN),
        "data mean": torch.full_like(posterior, MEAN),
        "data itself, blurred": posterior + 0.1 * signs,
        "wrong variance": Gaussian(MEAN, 2 * VARIANCE).on(path)(bridge.x_t, bridge.t),
        "wrong mean": Gaussian(MEAN + 0.3, VARIANCE).on(path)(bridge.x_t, bridge.t),
    }
    for name, prediction in perturbed.items():
        loss = matching_loss(prediction, process, bridge, velocity_cap=cap).total.item()
        assert loss > best, name


@every_path
@every_kind
def test_the_minimiser_over_affine_predictions_is_the_posterior(path, predicts):
    """At fixed t the loss of p = a x + b is a parabola; its bottom is found by Newton's step."""
    t = 0.6
    process, bridge = gaussian_bridge(path, t, predicts=predicts)
    oracle = Gaussian(MEAN, VARIANCE).on(path, predicts)
    probe = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    at_0, at_1 = oracle(probe, t).flatten().tolist()
    truth = torch.tensor([at_1 - at_0, at_0], dtype=torch.float64)

    def loss(theta):
        return matching_loss(theta[0] * bridge.x_t + theta[1], process, bridge).total

    gradient = torch.autograd.functional.jacobian(loss, truth)
    curvature = torch.autograd.functional.hessian(loss, truth)
    step = torch.linalg.solve(curvature, gradient)
    # Least squares: covariance of the estimate is 2 risk / n times the inverse curvature.
    errors = (2 * bayes_risk(path, t) / bridge.x_t.numel() * curvature.inverse().diag()).sqrt()
    assert (step.abs() < 4.5 * errors).all()
    assert (errors < 0.05 * truth.abs().max()).all()


@every_path
@every_kind
def test_the_velocity_weight_gives_the_error_of_the_velocity(path, predicts):
    x_1, denoised = normal(40, 3, 3, seed=1), normal(40, 3, 3, seed=2)
    t = torch.linspace(0.02, 0.98, 40, dtype=torch.float64)
    process = Process(Part(Flat(), path, predicts))
    bridge = process.bridge(x_1, t, Keys.for_samples(0, range(40)))
    beta, sigma = (f(t).view(-1, 1, 1) for f in (path.beta, path.sigma))
    noise = (bridge.x_t - beta * denoised) / sigma  # what D says about the noise
    prediction = from_pair(path, (denoised, noise), t, predicts)
    dbeta, dsigma = (f(t).view(-1, 1, 1) for f in (path.dbeta, path.dsigma))
    velocity = dbeta * denoised + dsigma * noise
    target = dbeta * x_1 + dsigma * bridge.x_0
    wanted = (velocity - target).square().mean().item()
    loss = matching_loss(prediction, process, bridge, velocity_cap=math.inf).total.item()
    assert loss == pytest.approx(wanted, rel=1e-5)


@every_path
def test_the_velocity_weight_is_capped_and_finite_at_both_ends(path):
    part = Part(Flat(), path)
    t = torch.tensor([0.0, 0.3, 0.999999, 1.0], dtype=torch.float64)
    weight = velocity_weight(part, t, 50.0)
    assert weight.shape == (4,) and weight.dtype == torch.float32
    assert weight.isfinite().all() and weight.min() >= 0 and weight.max() <= 50.0
    beta, sigma, dbeta, dsigma = (f(0.3) for f in (path.beta, path.sigma, path.dbeta, path.dsigma))
    direct = (dbeta - dsigma * beta / sigma) ** 2
    assert weight[1].item() == pytest.approx(min(direct, 50.0), rel=1e-6)
    if path.sigma(1.0) == 0.0:
        assert weight[3] == 50.0


def token_posterior(x):
    """Exact p(x_1 | x_t) of the joint law p(00) = p(11) = .45, p(01) = p(10) = .05; x (B, 2)."""
    other = x.flip(1)
    same = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]], dtype=torch.float64)
    return same[other]


def token_bridge(draws=200_000):
    generator = torch.Generator().manual_seed(5)
    first = torch.randint(0, 2, (draws,), generator=generator)
    flip = (torch.rand(draws, generator=generator) < 0.1).long()
    process = Process(Part(Tokens(2), Masking()))
    x_1 = torch.stack([first, first ^ flip], 1)
    t = torch.rand(draws, generator=generator)
    return process, process.bridge(x_1, t, Keys.for_samples(0, range(draws)))


def test_the_loss_of_the_token_posterior_is_its_entropy_and_the_least():
    process, bridge = token_bridge()
    posterior = token_posterior(bridge.x_t)
    best = matching_loss(posterior.log(), process, bridge).total.item()
    # Of the hidden tokens, E[(1 - t) t] / E[1 - t] = 1/3 have a shown neighbour.
    sure, unsure = -0.9 * math.log(0.9) - 0.1 * math.log(0.1), math.log(2)
    wanted = sure / 3 + unsure * 2 / 3
    hidden = bridge.hidden["x"].sum().item()
    assert abs(best - wanted) < 4.5 * 0.75 / math.sqrt(hidden)
    worse = {
        "sharper": posterior**1.3,
        "flatter": posterior**0.7,
        "tilted": posterior * torch.tensor([1.1, 1.0]),
        "marginal": torch.full_like(posterior, 0.5),
        "flipped": 1 - posterior,
    }
    for name, p in worse.items():
        loss = matching_loss(p.log(), process, bridge).total.item()
        assert loss > best + 1e-5, name


def test_shown_tokens_count_by_their_own_weight():
    process, bridge = token_bridge(1000)
    logits = normal(1000, 2, 2)
    error = -logits.log_softmax(-1).gather(-1, bridge.x_1.unsqueeze(-1)).squeeze(-1)
    hidden = bridge.hidden["x"]
    for share in (0.0, 0.2, 1.0):
        loss = matching_loss(logits, process, bridge, visible_weight=share).total.item()
        wanted = error[hidden].mean() + share * error[~hidden].mean()
        assert loss == pytest.approx(wanted.item(), rel=1e-12)


@pytest.mark.parametrize("late", [0.0, 0.5, 0.8, 1.0])
def test_training_times_follow_their_mixture(late):
    uniform = Keys.for_samples(0, range(100_000)).uniform("time", 0, (2,))
    t = time_samples(uniform, late)
    assert t.shape == (100_000,) and t.min() > 0 and t.max() <= 0.9995
    below = t < 0.9995
    clamped = 1 - (late * 0.9995**2 + (1 - late) * 0.9995)
    expected = clamped * len(t)
    assert abs((~below).sum().item() - expected) < 4.5 * math.sqrt(expected)

    def distribution(s):
        return (late * s**2 + (1 - late) * s) / (1 - clamped)

    assert stats.kstest(t[below].double().numpy(), distribution).pvalue > 1e-3


def test_the_average_is_its_closed_form_with_warm_up():
    """sum_k (1 - d_k) prod_(j > k) d_j p_k + prod d p_0, with d_k = min(d, (1 + k) / (10 + k))."""
    decay, steps = 0.6, 25
    history = [[normal(3, 2, seed=k), normal(4, seed=100 + k)] for k in range(steps + 1)]
    ema = Ema(history[0], decay)
    for parameters in history[1:]:
        ema.update(parameters)
    keep = [min(decay, (1 + k) / (10 + k)) for k in range(steps)]
    assert keep[0] == 0.1 and keep[-1] == decay  # both regimes are met
    for k, shadow in enumerate(ema.shadow):
        wanted = math.prod(keep) * history[0][k]
        for j in range(steps):
            wanted = wanted + (1 - keep[j]) * math.prod(keep[j + 1 :]) * history[j + 1][k]
        torch.testing.assert_close(shadow, wanted, rtol=1e-12, atol=1e-14)
    assert ema.updates == steps


def test_the_average_of_a_constant_is_that_constant_and_without_decay_the_last():
    start = [normal(3)]
    ema = Ema(iter(start), 0.999)
    for _ in range(50):
        ema.update(iter(start))
    torch.testing.assert_close(ema.shadow[0], start[0], rtol=1e-14, atol=0)
    last = Ema([normal(3, seed=1)], 0.0)
    last.update(start)
    assert torch.equal(last.shadow[0], start[0])


def test_the_average_is_a_copy_without_gradient():
    parameter = torch.nn.Parameter(torch.ones(3))
    ema = Ema([parameter], 0.5)
    with torch.no_grad():
        parameter.mul_(5.0)
    assert torch.equal(ema.shadow[0], torch.ones(3)) and not ema.shadow[0].requires_grad
    ema.update([parameter])
    target = torch.nn.Parameter(torch.zeros(3))
    ema.copy_to([target])
    assert torch.equal(target.detach(), ema.shadow[0]) and target.requires_grad
    target.data.add_(1.0)
    assert not torch.equal(target.detach(), ema.shadow[0])


def test_an_average_refuses_a_decay_outside_and_other_parameters():
    for decay in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"lie in \[0, 1\)"):
            Ema([torch.ones(1)], decay)
    ema = Ema([torch.ones(2)], 0.9)
    with pytest.raises((ValueError, RuntimeError)):
        ema.update([torch.ones(2), torch.ones(2)])
    with pytest.raises(ValueError, match="zip"):
        ema.copy_to([])


@pytest.mark.parametrize("shape", [(8, 1), (2,), (1, 2), ()])
def test_an_answer_of_another_shape_is_not_broadcast(shape):
    process = Process(Part(Flat(), Path.linear()))
    bridge = process.bridge(torch.zeros(8, 2), torch.full((8,), 0.5), Keys.for_samples(0, range(8)))
    with pytest.raises(UserError, match=r"shape .*, the state has \(8, 2\)"):
        matching_loss(torch.zeros(shape), process, bridge)
