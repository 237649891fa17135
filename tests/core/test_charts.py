"""Charts against closed forms: the same laws, drifts and samples on both sides."""

from __future__ import annotations

import math
import random
from functools import partial

import pytest
import torch

from driftworks.core import grids, solvers
from driftworks.core.charts import Logarithm, Shift, charted
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, table_law
from driftworks.core.paths import Path
from driftworks.core.predict import PARAMETRISATIONS, from_pair
from driftworks.core.process import Part, Process
from driftworks.core.sample import sample
from driftworks.core.spaces import Centred, Flat, Symmetric, Tokens
from driftworks.core.train import matching_loss
from driftworks.errors import UserError

REVERTING = Path.mean_reverting(3.0, 0.1)
close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-11)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def draws(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def keys(n, seed=7):
    return Keys.for_samples(seed, range(n))


class ThreeTerm:
    """Gaussian data N(m, v) on x_t = beta x1 + (1 - beta) mu + sigma e, answered in x.

    Written from the conditional law of (x1, e) given x_t, without any change of coordinates.
    """

    def __init__(self, mean, variance, mu, path, predicts):
        self.mean, self.variance, self.mu = mean, variance, mu
        self.path, self.predicts, self.seen = path, predicts, []

    def __call__(self, x, t, mask=None, cond=None, previous=None):
        self.seen.append(previous)
        shape = (-1, *[1] * (x.ndim - 1))
        beta, sigma, dbeta, dsigma = (
            getattr(self.path, name)(t).reshape(shape).to(x.dtype)
            for name in ("beta", "sigma", "dbeta", "dsigma")
        )
        z = x - beta * self.mean - (1.0 - beta) * self.mu
        spread = beta**2 * self.variance + sigma**2
        data = self.mean + beta * self.variance / spread * z
        noise = sigma / spread * z
        return {
            "denoised": data,
            "noise": noise,
            "score": -z / spread,
            "velocity": dbeta * data - dbeta * self.mu + dsigma * noise,
            "vparam": beta * noise - sigma * data,
        }[self.predicts]


@pytest.mark.parametrize("predicts", PARAMETRISATIONS)
def test_every_parametrisation_shifts_with_mu_as_the_three_term_path_says(predicts):
    mu, x, t = draws((5, 4, 3), 1), draws((5, 4, 3), 2), torch.linspace(0.05, 0.95, 5)
    process = Process(Part(Flat(), REVERTING, predicts))
    chart = Shift(mu)
    model = charted(ThreeTerm(0.4, 0.3, mu, REVERTING, predicts), chart, process)
    for i in range(5):  # the law of x1 - mu differs from sample to sample
        native = Gaussian(0.4 - mu[i], torch.full((4, 3), 0.3)).on(REVERTING, predicts)
        one = charted(
            ThreeTerm(0.4, 0.3, mu[i : i + 1], REVERTING, predicts), Shift(mu[i : i + 1]), process
        )
        y = chart.to(x)[i : i + 1]
        torch.testing.assert_close(one(y, t[i : i + 1]), native(y, t[i : i + 1]).double())
        torch.testing.assert_close(model(chart.to(x), t)[i : i + 1], one(y, t[i : i + 1]))


@pytest.mark.parametrize("predicts", PARAMETRISATIONS)
@pytest.mark.parametrize("space", [Flat(), Symmetric(), Centred()], ids=lambda s: type(s).__name__)
def test_predictions_go_there_and_back(predicts, space):
    x, mu, p = (space.project(draws((3, 4, 4), seed)) for seed in (1, 2, 3))
    t = tensor([0.2, 0.5, 0.8])
    cases = [Shift(mu, space)]
    if not isinstance(space, Centred) and predicts in Logarithm.carries:
        cases.append(Logarithm(space))
        x = space.project(x.exp())
    for chart in cases:
        there = chart.prediction_to(p, predicts, x, None, REVERTING, t)
        close(chart.prediction_back(there, predicts, x, None, REVERTING, t), p)


def test_masked_entries_are_zero_on_both_sides_and_have_no_gradient():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    x = torch.where(mask[..., None], draws((2, 3, 2), 1).exp(), 0.0)
    chart = Logarithm()
    y = chart.to(x, mask)
    assert (y[0, 2] == 0).all() and y.isfinite().all()
    close(chart.back(y, mask), x)
    p = draws((2, 3, 2), 2).requires_grad_()
    chart.prediction_to(p, "velocity", x, mask).square().sum().backward()
    assert p.grad is not None and p.grad.isfinite().all() and (p.grad[0, 2] == 0).all()
    mu = draws((2, 3, 2), 3)
    shift = Shift(mu, Centred())
    y = shift.to(x, mask)
    assert (y[0, 2] == 0).all() and (shift.back(y, mask)[0, 2] == 0).all()
    close(y.sum(1), torch.zeros(2, 2, dtype=torch.float64))
    close(shift.to(shift.back(y, mask), mask), y)


def test_the_bridge_of_the_shifted_data_is_the_three_term_path():
    mu, x1, t = draws((6, 3), 1), draws((6, 3), 2), tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
    process, chart = Process(Part(Flat(), REVERTING)), Shift(mu)
    bridge = process.bridge(chart.to(x1), t, keys(6))
    beta, sigma = REVERTING.beta(t)[:, None], REVERTING.sigma(t)[:, None]
    wanted = beta * x1 + (1 - beta) * mu + sigma * bridge.x_0
    close(chart.back(bridge.x_t), wanted)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("order", [1, 2])
def test_the_mean_reverting_sampler_follows_known_data_exactly(eta, order):
    """With x1 known, D is constant and the exponential integrator makes no error in any step."""
    x1, mu = 1.3, -0.4
    grid = [0.05, 0.2, 0.21, 0.6, 0.97]
    table = solvers.dpmpp(REVERTING, grid, order=order, eta=eta)
    path, data = REVERTING, Gaussian(tensor([x1 - mu]), tensor([[0.0]]))
    start = Gaussian(path.beta(0.05) * tensor([x1 - mu]), tensor([[path.sigma(0.05) ** 2]]))
    for law, t in zip(table_law(table, data.on(path), start), grid[1:], strict=True):
        assert law.mean.item() + mu == pytest.approx(
            path.beta(t) * x1 + (1 - path.beta(t)) * mu, abs=1e-12
        )
        assert law.matrix(1).item() == pytest.approx(path.sigma(t) ** 2, rel=1e-11)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_mean_reverting_sampler_converges_to_the_law_of_the_data(eta):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    generator = random.Random(seed)
    mean, variance = generator.uniform(-1, 1), generator.uniform(0.05, 0.6)
    mu = generator.uniform(-1, 1)
    law, path = Gaussian(tensor([mean - mu]), tensor([[variance]])), REVERTING
    beta, sigma = path.beta(0.0), path.sigma(0.0)
    start = Gaussian(beta * tensor([mean - mu]), tensor([[beta**2 * variance + sigma**2]]))
    errors = []
    for n in (50, 100, 200):
        grid = grids.log_snr(path, n, low=1e-3, high=80.0)
        table = solvers.dpmpp(path, grid, order=2, eta=eta)
        last = table_law(table, law.on(path), start)[-1]
        errors.append(abs(last.matrix(1).item() - variance) / variance)
        # the mean is carried exactly, because D is exact at the mean
        assert last.mean.item() + mu == pytest.approx(mean, abs=1e-10)
    assert errors[2] < (0.002 if eta == 0.0 else 0.03), errors
    assert errors[2] < errors[0] / (3.0 if eta == 0.0 else 1.7), errors


@pytest.mark.parametrize("predicts", PARAMETRISATIONS)
def test_sampling_a_charted_model_is_sampling_in_the_other_coordinates(predicts):
    mu, space = draws((1, 5, 3), 4), Flat()
    process = Process(Part(space, REVERTING, predicts))
    inner = ThreeTerm(0.2, 0.5, mu, REVERTING, predicts)
    native = Gaussian(0.2 - mu[0], torch.full((5, 3), 0.5)).on(REVERTING, predicts)
    run = partial(
        sample, process=process, keys=keys(3), shape=(5, 3), solver="dpmpp2", steps=12,
        dtype=torch.float64,
    )  # fmt: skip
    chart = Shift(mu)
    outcome = run(charted(inner, chart, process))
    torch.testing.assert_close(outcome.x, run(native).x, rtol=1e-9, atol=1e-9)
    assert outcome.nfe == 12
    # what the model is told about its last answer
    assert inner.seen[0] is None
    if predicts == "vparam":
        assert inner.seen[1] is None
    else:
        again = ThreeTerm(0.2, 0.5, mu, REVERTING, predicts)
        start = process.prior(keys(3), torch.empty(3, 5, 3, dtype=torch.float64))
        first = again(chart.back(start), torch.zeros(3))
        torch.testing.assert_close(inner.seen[1], first, rtol=1e-9, atol=1e-9)


def test_a_charted_model_trains_in_its_own_coordinates():
    """The oracle in x has the least possible loss in y, that of the posterior's variance."""
    n, mean, variance = 20000, 0.3, 0.4
    mu, x1 = draws((n, 1), 5), mean + math.sqrt(variance) * draws((n, 1), 6)
    process, chart = Process(Part(Flat(), REVERTING)), Shift(mu)
    t = torch.full((n,), 0.6, dtype=torch.float64)
    bridge = process.bridge(chart.to(x1), t, keys(n))
    model = charted(ThreeTerm(mean, variance, mu, REVERTING, "denoised"), chart, process)
    loss = matching_loss(model(bridge.x_t, t), process, bridge).total.item()
    beta, sigma = REVERTING.beta(0.6), REVERTING.sigma(0.6)
    left = variance * sigma**2 / (beta**2 * variance + sigma**2)
    assert loss == pytest.approx(left, abs=4 * left * math.sqrt(2 / n))


def test_the_golden_drift_of_geometric_brownian_motion_is_equal_on_both_sides():
    """dX = .1 X du + .7 X dW from ln x0 ~ N(.3, .2), reversed at u = .4 and x = 1.7."""
    rate, s, u, x = 0.1, 0.7, 0.4, tensor([1.7])
    y = x.log()
    score_y = -(y - 0.3 - (rate - s**2 / 2) * u) / (0.2 + s**2 * u)
    score_x = Logarithm().prediction_back(score_y, "score", x)
    eps = s**2 / 2
    # probability flow in y and its image in x, in the direction of t = 1 - u
    velocity_y = -(rate - s**2 / 2) + eps * score_y
    velocity_x = Logarithm().prediction_back(velocity_y, "velocity", x)
    drift = Logarithm().drift(velocity_x, score_x, x, eps)
    anderson = -(rate * x - 2 * s**2 * x - s**2 * x**2 * score_x)
    in_y = x * (velocity_y + eps * score_y + eps)  # Ito: half the squared diffusion besides
    assert drift.item() == pytest.approx(0.05586027, abs=6e-9)
    assert in_y.item() == pytest.approx(0.05586027, abs=6e-9)
    assert anderson.item() == pytest.approx(0.05586027, abs=6e-9)
    assert Logarithm().diffusion(x, eps).item() == pytest.approx(s * 1.7)


@pytest.mark.parametrize("space", [Flat(), Symmetric()], ids=lambda s: type(s).__name__)
def test_the_logarithm_carries_the_log_normal_density(space):
    """Density and score of x against torch's log-normal, a second implementation."""
    law = torch.distributions.LogNormal(tensor(0.2), tensor(0.6))
    mask = torch.tensor([[True] * 3 + [False], [True] * 4])
    x = space.project((0.2 + 0.6 * draws((2, 4, 4), 3)).exp(), mask)
    chart, entries = Logarithm(space), space.entry_mask(mask, x)
    entries = entries.expand_as(x)
    y = chart.to(x, mask)
    once = 0.5 if isinstance(space, Symmetric) else 1.0
    normal = torch.distributions.Normal(tensor(0.2), tensor(0.6))
    log_y = once * torch.where(entries, normal.log_prob(y), 0.0).flatten(1).sum(1)
    safe = torch.where(entries, x, 1.0)
    log_x = once * torch.where(entries, law.log_prob(safe), 0.0).flatten(1).sum(1)
    close(log_y + chart.log_det(x, mask), log_x)
    safe.requires_grad_()
    (score,) = torch.autograd.grad(torch.where(entries, law.log_prob(safe), 0.0).sum(), safe)
    found = chart.prediction_back(-(y - 0.2) / 0.36, "score", x, mask)
    close(found, torch.where(entries, score, 0.0))


@pytest.mark.parametrize("predicts", Logarithm.carries)
def test_log_normal_data_is_sampled_through_its_logarithm(predicts):
    """A model that only knows positive numbers; moments of ln x within the sampler's exact law."""
    mean, variance, path, n = 0.3, 0.2, Path.linear(), 4000

    class OnPositive:
        def __init__(self):
            self.oracle = Gaussian(mean, variance).on(path, predicts)

        def __call__(self, x, t, mask=None, cond=None, previous=None):
            assert (x > 0).all()
            p = self.oracle(x.log(), t)
            return {"score": (p - 1.0) / x, "velocity": x * p, "noise": p}[predicts]

    process, chart = Process(Part(Flat(), path, predicts)), Logarithm()
    grid = grids.log_snr(path, 48, low=0.01, high=200.0)
    y = sample(
        charted(OnPositive(), chart, process), process, keys(n), (2,), solver="dpmpp2", grid=grid,
        dtype=torch.float64,
    ).x  # fmt: skip
    native = sample(
        OracleModel(mean, variance, path, predicts), process, keys(n), (2,), solver="dpmpp2",
        grid=grid, dtype=torch.float64,
    ).x  # fmt: skip
    torch.testing.assert_close(y, native, rtol=1e-7, atol=1e-7)
    exact = table_law(solvers.dpmpp(path, grid), Gaussian(mean, variance).on(path))[-1]
    assert exact.mean.item() == pytest.approx(mean, abs=2e-3)
    assert exact.matrix(1).item() == pytest.approx(variance, rel=0.01)
    x = chart.back(y)
    total = x.numel()
    spread = exact.matrix(1).item()
    assert y.mean().item() == pytest.approx(exact.mean.item(), abs=4 * math.sqrt(spread / total))
    assert y.var().item() == pytest.approx(spread, abs=4 * spread * math.sqrt(2 / total))
    first = math.exp(exact.mean.item() + spread / 2)
    deviation = first * math.sqrt(math.expm1(spread))
    assert x.mean().item() == pytest.approx(first, abs=4 * deviation / math.sqrt(total))


class OracleModel:
    """The same law known in y."""

    def __init__(self, mean, variance, path, predicts):
        self.oracle = Gaussian(mean, variance).on(path, predicts)

    def __call__(self, x, t, mask=None, cond=None, previous=None):
        return self.oracle(x, t)


def test_the_reverse_sde_in_x_keeps_the_log_normal_law():
    """Fokker-Planck in x for random eps: the drift transports the exact marginals of VE."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    generator = random.Random(seed)
    mean, variance, eps = generator.uniform(-0.3, 0.3), generator.uniform(0.1, 0.5), 0.37
    path, chart, t, h = Path.ve(0.05, 1.0), Logarithm(), 0.6, 1e-4
    oracle = Gaussian(mean, variance).on(path)
    x = torch.linspace(0.4, 3.0, 27, dtype=torch.float64)[:, None].requires_grad_()

    def density(time):
        y = chart.to(x)
        return (oracle.log_prob(y, time) + chart.log_det(x)).exp()

    rho, y = density(t), chart.to(x)
    velocity = chart.prediction_back(oracle.velocity(y, t), "velocity", x)
    score = chart.prediction_back(oracle.score(y, t), "score", x)
    drift, spread = chart.drift(velocity, score, x, eps)[:, 0], chart.diffusion(x, eps)[:, 0]

    def slope(f):
        return torch.autograd.grad(f.sum(), x, create_graph=True)[0][:, 0]

    # d rho/dt = -(drift rho)' + 1/2 (diffusion^2 rho)''; drift and score need exact derivatives
    s_y = -(y - mean) / (variance + path.sigma(t) ** 2)
    b_y = path.lam(t) * s_y
    exact = (x * b_y + eps * x * (x * ((s_y - 1.0) / x) + 2.0))[:, 0]
    torch.testing.assert_close(drift, exact, rtol=1e-9, atol=1e-9)
    flux = exact * rho - 0.5 * slope(spread**2 * rho)
    change = (density(t + h) - density(t - h)) / (2 * h)
    torch.testing.assert_close(change, -slope(flux), rtol=1e-5, atol=1e-6)


def test_a_chart_of_one_part_leaves_the_others_alone():
    process = Process({
        "sizes": Part(Flat(), Path.vp(), "score"), "places": Part(Centred(), Path.linear()),
    })  # fmt: skip
    state = {"sizes": draws((2, 3), 1), "places": draws((2, 3, 3), 2)}

    def model(x, t, mask=None, cond=None, previous=None):
        assert (x["sizes"] > 0).all() and x["places"] is state["places"]
        assert (mask, cond, previous) == (None, "c", None)
        return {"sizes": x["sizes"] * 0 + 2.0, "places": -x["places"]}

    answer = charted(model, {"sizes": Logarithm()}, process)(state, torch.ones(2), cond="c")
    close(answer["sizes"], 2.0 * state["sizes"].exp() + 1.0)
    assert torch.equal(answer["places"], -state["places"])


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Logarithm().to(tensor([1.0, -0.5, 0.0])),
         "needs positive data: 2 of 3 entries are not, such as -0.5"),
        (lambda: Logarithm().log_det(tensor([[math.inf]])), "needs positive data: 1 of 1"),
        (lambda: Logarithm(Centred()), r"live in Flat or Symmetric, not in Centred\(\)"),
        (lambda: Logarithm().prediction_to(tensor([1.0]), "denoised", tensor([1.0])),
         "does not carry 'denoised' .* only noise, velocity, score"),
        (lambda: Shift(tensor(1.0)).prediction_to(tensor([1.0]), "vparam", tensor([1.0])),
         "needs the path and the time"),
        (lambda: Logarithm().prediction_to(tensor([1.0]), "speed", tensor([1.0])),
         "unknown parametrisation 'speed'"),
        (lambda: charted(None, Logarithm(), Process(Part(Flat(), Path.vp()))),
         "does not carry 'denoised'"),
        (lambda: charted(None, Shift(tensor(0.0)), Process(Part(Centred(), Path.vp()))),
         r"lives in Centred\(\), its chart in Flat\(\)"),
        (lambda: charted(None, Logarithm(), Process({"a": Part(Flat(), Path.vp())})),
         "name the chart's part, one of a"),
        (lambda: charted(None, {"b": Logarithm()}, Process({"a": Part(Flat(), Path.vp())})),
         "unknown part 'b'; the parts are a"),
    ],
)  # fmt: skip
def test_mistakes_are_named(act, message):
    with pytest.raises(UserError, match=message):
        act()


def test_tokens_have_no_charts():
    from driftworks.core.ctmc import Masking

    process = Process({"a": Part(Tokens(3), Masking())})
    with pytest.raises(UserError, match="part 'a' follows Masking; charts are for Gaussian"):
        charted(None, {"a": Shift(tensor(0.0))}, process)


def test_weighing_comes_after_charting():
    process = Process(Part(Flat(), Path.linear()))
    model = charted(lambda *a, **k: object(), Shift(tensor(0.0)), process)
    with pytest.raises(UserError, match="answers with states, got object: chart the model first"):
        model(tensor([[1.0]]), tensor([0.5]))


def test_targets_of_the_bridge_convert_as_predictions_do():
    """from_pair with (x1 - mu, e) equals the carried target built from x1 in x coordinates."""
    mu, x1, e = (draws((4, 3), seed) for seed in (1, 2, 3))
    t = tensor([0.2, 0.4, 0.6, 0.8])
    path, chart = REVERTING, Shift(mu)
    beta, sigma = path.beta(t)[:, None], path.sigma(t)[:, None]
    in_x = {"denoised": x1, "noise": e, "score": -e / sigma, "vparam": beta * e - sigma * x1}
    for predicts, target in in_x.items():
        found = chart.prediction_to(target, predicts, x1, None, path, t)
        close(found, from_pair(path, (x1 - mu, e), t, predicts))
