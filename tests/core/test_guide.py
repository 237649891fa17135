"""Guidance against Gaussian laws, where the guided model is again a known law."""

from __future__ import annotations

import math

import pytest
import torch

from driftworks.core.ctmc import Masking
from driftworks.core.guide import autoguide, cfg
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian
from driftworks.core.paths import Path
from driftworks.core.predict import as_score
from driftworks.core.process import Part, Process
from driftworks.core.sample import sample
from driftworks.core.spaces import Flat, Tokens
from driftworks.errors import UserError

PATH = Path.cosine()
WITH, WITHOUT, WEAK = Gaussian(1.0, 0.4), Gaussian(0.0, 1.0), Gaussian(-0.5, 2.0)
KEYS = Keys.for_samples(5, range(8))
PROCESS = Process(Part(Flat(), PATH))


class Conditional:
    """The exact model of WITH under a condition and of WITHOUT under none; counts its calls."""

    def __init__(self, predicts="denoised"):
        self.given, self.empty = WITH.on(PATH, predicts), WITHOUT.on(PATH, predicts)
        self.calls = []

    def __call__(self, x, t, mask=None, cond=None, previous=None):
        self.calls.append(cond)
        return self.empty(x, t) if cond is None else self.given(x, t)


class Batched:
    """The same as one network that reads a flag a sample: 1 conditional, 0 not."""

    batched_guidance = True

    def __init__(self):
        self.calls = []

    def null(self, cond):
        return {"flag": torch.zeros_like(cond["flag"])}

    def __call__(self, x, t, mask=None, cond=None, previous=None):
        self.calls.append((len(x), len(t), None if previous is None else len(previous)))
        on = cond["flag"].view(-1, 1)
        return on * WITH.on(PATH)(x, t) + (1 - on) * WITHOUT.on(PATH)(x, t)


def state(shape=(8, 3)):
    return KEYS.normal("x", 0, shape[1:], torch.float64)


TIMES = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)


@pytest.mark.parametrize("predicts", ["denoised", "noise", "velocity", "score", "vparam"])
@pytest.mark.parametrize("weight", [-0.5, 0.3, 2.0, 7.5])
def test_guidance_mixes_the_scores_in_every_parametrisation(predicts, weight):
    x = state()
    guided = cfg(Conditional(predicts), weight)(x, TIMES, cond=1)
    expected = weight * WITH.on(PATH).score(x, TIMES) + (1 - weight) * WITHOUT.on(PATH).score(
        x, TIMES
    )
    assert torch.allclose(as_score(PATH, guided, x, TIMES, predicts), expected, atol=1e-10)


@pytest.mark.parametrize("weight", [1.5, 3.0])
def test_guidance_between_equal_widths_samples_the_shifted_gaussian(weight):
    """With equal variances the guided model is the oracle of N(w m + (1 - w) m0, v), at all t."""
    near, far = Gaussian(1.0, 0.25).on(PATH), Gaussian(-0.5, 0.25).on(PATH)
    shifted = Gaussian(weight * 1.0 + (1 - weight) * -0.5, 0.25).on(PATH)
    settings = {"solver": "dpmpp2", "steps": 15, "dtype": torch.float64}
    guided = sample(autoguide(near, far, weight), PROCESS, KEYS, (5,), **settings)
    exact = sample(shifted, PROCESS, KEYS, (5,), **settings)
    assert (guided.x - exact.x).abs().max() < 1e-12
    assert guided.nfe == 2 * exact.nfe


def test_weight_one_is_the_conditional_model_and_weight_zero_the_unconditional_in_one_evaluation():
    x = state()
    for weight, law, cond in ((1.0, WITH, "c"), (0.0, WITHOUT, None), ({"x": 1}, WITH, "c")):
        model = Conditional()
        guided = cfg(model, weight)
        assert torch.equal(guided(x, TIMES, cond="c"), law.on(PATH)(x, TIMES))
        assert model.calls == [cond] and guided.evaluations == 1


def test_autoguidance_extrapolates_from_the_weak_model_under_the_same_condition():
    x, strong, weak = state(), Conditional(), Conditional()
    weak.given = WEAK.on(PATH)
    guided = autoguide(strong, weak, 2.0)
    expected = 2 * WITH.on(PATH)(x, TIMES) - WEAK.on(PATH)(x, TIMES)
    assert torch.allclose(guided(x, TIMES, cond="c"), expected, atol=1e-12)
    assert strong.calls == weak.calls == ["c"]
    assert torch.equal(autoguide(strong, weak, 1.0)(x, TIMES, cond="c"), WITH.on(PATH)(x, TIMES))
    assert torch.equal(autoguide(strong, weak, 0.0)(x, TIMES, cond="c"), WEAK.on(PATH)(x, TIMES))
    assert len(strong.calls) == len(weak.calls) == 2


def test_guides_can_be_stacked_and_their_evaluations_add_up():
    assert autoguide(cfg(Conditional(), 2.0), Conditional(), 1.5).evaluations == 3
    assert cfg(autoguide(Conditional(), Conditional(), 1.5), 2.0).evaluations == 4


def test_a_batched_model_is_asked_once_with_twice_the_batch():
    model, cond = Batched(), {"flag": torch.ones(8, dtype=torch.float64)}
    settings = {"steps": 4, "dtype": torch.float64}
    guided = sample(cfg(model, 2.5), PROCESS, KEYS, (3,), cond=cond, **settings)
    assert model.calls == [(16, 16, None)] + [(16, 16, 16)] * 3 and guided.nfe == 8
    model.batched_guidance = False
    separate = sample(cfg(model, 2.5), PROCESS, KEYS, (3,), cond=cond, **settings)
    assert torch.allclose(guided.x, separate.x, atol=1e-12)
    plain = sample(cfg(Conditional(), 2.5), PROCESS, KEYS, (3,), cond=1, **settings)
    assert torch.allclose(guided.x, plain.x, atol=1e-12)


def test_batched_guidance_refuses_conditions_it_cannot_join():
    model = Batched()
    model.null = lambda cond: None
    with pytest.raises(UserError, match="got dict and NoneType"):
        cfg(model, 2.0)(state(), TIMES, cond={"flag": torch.ones(8)})


def test_logits_are_mixed_as_log_probabilities_and_forbidden_classes_stay_forbidden():
    given = torch.tensor([0.2, -math.inf, 1.0, 0.0]).expand(8, 2, 4)
    empty = torch.tensor([0.5, 0.3, -math.inf, 0.0]).expand(8, 2, 4)

    def model(x, t, mask=None, cond=None, previous=None):
        return {"types": empty if cond is None else given}

    x, t = {"types": torch.zeros(8, 2, dtype=torch.int64)}, torch.zeros(8)
    p, q = given.softmax(-1), empty.softmax(-1)
    half = cfg(model, 0.5)(x, t, cond=1)["types"].softmax(-1)
    product = (p * q).sqrt()
    assert torch.allclose(half, product / product.sum(-1, keepdim=True), atol=1e-6)
    double = cfg(model, 2.0)(x, t, cond=1)["types"]
    assert (double[..., 1] == -math.inf).all() and not double.isnan().any()
    assert torch.allclose(double[..., [0, 3]], (2 * given - empty)[..., [0, 3]])
    assert (double[..., 2] == given[..., 2]).all()
    assert not cfg(model, -1.0)(x, t, cond=1)["types"].isnan().any()


def test_each_part_may_have_its_own_weight():
    def model(x, t, mask=None, cond=None, previous=None):
        bias = 0 if cond is None else 1
        logits = torch.eye(3)[torch.full_like(x["types"], bias)]
        return {"a": x["a"] * 0.5 + bias, "b": x["b"] * 0.5 + bias, "types": logits}

    x = {"a": state(), "b": state(), "types": torch.zeros(8, 2, dtype=torch.int64)}
    guided = cfg(model, {"a": 3.0, "b": 1.0, "types": 0.0})
    out = guided(x, TIMES, cond=1)
    assert guided.evaluations == 2
    assert torch.allclose(out["a"], x["a"] * 0.5 + 3.0, atol=1e-12)
    assert torch.equal(out["b"], x["b"] * 0.5 + 1.0)
    assert torch.equal(out["types"], model(x, TIMES)["types"])
    with pytest.raises(UserError, match="no guidance weight for part 'types'; .* a, b"):
        cfg(model, {"a": 3.0, "b": 1.0})(x, TIMES, cond=1)


def test_guided_tokens_are_drawn_from_the_sharpened_distribution():
    p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.3, 0.3, 0.4])

    def model(x, t, mask=None, cond=None, previous=None):
        return (q if cond is None else p).log().expand(*x.shape, 3)

    keys = Keys.for_samples(0, range(1000))
    process = Process(Part(Tokens(3), Masking()))
    x = sample(cfg(model, 2.0), process, keys, (50,), cond=1, steps=5, remask=1.0).x
    sharp = p**2 / q / (p**2 / q).sum()
    measured = torch.bincount(x.flatten(), minlength=3) / x.numel()
    assert ((measured - sharp).abs() <= 4 * (sharp * (1 - sharp) / x.numel()).sqrt()).all()


@pytest.mark.parametrize("weight", [math.nan, math.inf, {"x": -math.inf}])
def test_weights_that_are_no_numbers_are_refused(weight):
    with pytest.raises(UserError, match="finite number"):
        cfg(Conditional(), weight)
    with pytest.raises(UserError, match="at least one part"):
        cfg(Conditional(), {})
