"""Rotations in a process: both routes against exact oracles on SO(3), and their invariants."""

from __future__ import annotations

import math
import os

import pytest
import torch

from driftworks.core import so3
from driftworks.core.frames import Geodesic, Heat, RotationMover, Rotations
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.sample import sample
from driftworks.core.spaces import Centred, Flat
from driftworks.core.train import matching_loss
from driftworks.core.warps import Power
from driftworks.errors import UserError

SEED = int.from_bytes(os.urandom(4), "little")
SHARES = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
WIDTHS = torch.tensor([0.15, 0.3, 0.5], dtype=torch.float64)
ROUTES = {
    "geodesic": Geodesic(),
    "warped geodesic": Geodesic(warp=Power(1.5)),
    "heat": Heat(),
    "flow of heat": Heat(noise=0.0),
    "warped heat": Heat(warp=Power(1.5), noise=0.5),
}
routes = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)


def haar(seed, *shape):
    return so3.haar(Keys.for_samples(seed, [0]), "test", 0, shape, torch.float64)[0]


def trace(x):
    return x.diagonal(dim1=-1, dim2=-2).sum(-1)


def within_sigmas(draws, exact, sigmas=4.0):
    draws = draws.flatten(1).mean(1)  # one number a sample
    error = draws.mean() - exact
    return abs(error.item()) <= sigmas * draws.std().item() / math.sqrt(len(draws))


def is_rotation(x, tolerance):
    eye = torch.eye(3, dtype=x.dtype)
    return (x.mT @ x - eye).abs().max() < tolerance and (torch.linalg.det(x) > 0.0).all()


def clocked(t, x):
    """A time, or times (B,), in float64, shaped for rotations (B, ..., 3, 3)."""
    return torch.as_tensor(t, dtype=torch.float64).expand(len(x)).view(-1, *(1,) * (x.ndim - 3))


class HeatOracle:
    """Exact answers for data sum_k share_k centre_k IGSO(3; width_k), each rotation by itself.

    Heat kernels convolve to heat kernels, so x_t is the same mixture with widths
    sqrt(width_k^2 + e^2).
    """

    def __init__(self, route, centres, shares, widths, predicts="score"):
        self.route, self.centres, self.predicts = route, centres, predicts
        self.shares, self.widths = shares, widths

    def parts(self, x, t):
        from_centre = so3.log(self.centres.mT @ x.double().unsqueeze(-3))
        eps = self.route.eps(clocked(t, x)).unsqueeze(-1)
        width = (eps**2 + self.widths**2).sqrt().expand(from_centre.shape[:-1])
        return from_centre, width

    def responsibilities(self, x, t):
        from_centre, width = self.parts(x, t)
        density = so3.igso3_log_density(from_centre.norm(dim=-1), width)
        return (density + self.shares.log()).softmax(-1)

    def score(self, x, t):
        from_centre, width = self.parts(x, t)
        scores = so3.igso3_tangent(from_centre, width)
        return (self.responsibilities(x, t).unsqueeze(-1) * scores).sum(-2)

    def __call__(self, x, t, mask=None, cond=None, previous=None):
        score = self.score(x, t)
        return self.route.convert(score, x.double(), t, "score", self.predicts).to(x.dtype)


class GeodesicOracle:
    """Exact answers for data of atoms centre_k with weights share_k, each rotation by itself.

    x_t = x_1 y where y turns by (1 - t) w, w the angle of a Haar rotation, so its density relative
    to the Haar measure at an angle a <= (1 - t) pi is

        (1 - cos(a / (1 - t))) / ((1 - t) (1 - cos a)),

    which are the weights of the posterior of x_1, and the velocity is the posterior mean of
    log(x_t^T x_1) / (1 - t). An integrator's error may leave a state outside the support of all
    atoms; there the nearest one answers.
    """

    def __init__(self, route, centres, shares, predicts="velocity"):
        self.route, self.centres, self.predicts = route, centres, predicts
        self.shares = shares

    def responsibilities(self, x, t):
        angle = so3.distance(x.double().unsqueeze(-3), self.centres)
        left = 1.0 - self.route.clock(clocked(t, x)).unsqueeze(-1)
        sine = torch.sin(0.5 * angle).clamp(min=1e-9)
        density = (torch.sin(0.5 * angle.clamp(min=2e-9) / left) / sine).square() / left
        weight = torch.where(angle <= left * math.pi, self.shares * density, 0.0)
        nearest = torch.nn.functional.one_hot(angle.argmin(-1), angle.shape[-1]).double()
        weight = torch.where(weight.sum(-1, keepdim=True) > 0.0, weight, nearest)
        return weight / weight.sum(-1, keepdim=True)

    def velocity(self, x, t):
        pull = so3.log(x.double().mT.unsqueeze(-3) @ self.centres)
        mean = (self.responsibilities(x, t).unsqueeze(-1) * pull).sum(-2)
        speed = 1.0 if self.route.warp is None else self.route.warp.derivative(clocked(t, x))
        return mean * (speed / (1.0 - self.route.clock(clocked(t, x)))).unsqueeze(-1)

    def __call__(self, x, t, mask=None, cond=None, previous=None):
        answer = self.velocity(x, t)
        return self.route.convert(answer, x.double(), t, "velocity", self.predicts).to(x.dtype)


def oracle(route, seed=3, predicts=None):
    """The exact model of a mixture of three on either route."""
    centres = haar(seed, 3)
    if isinstance(route, Heat):
        return HeatOracle(route, centres, SHARES, WIDTHS, predicts or "score")
    return GeodesicOracle(route, centres, SHARES, predicts or "velocity")


def data(model, keys, entries):
    """Draws of the oracle's data, keyed, (B, *entries, 3, 3)."""
    u = keys.uniform("class", 0, entries, torch.float64)
    which = torch.bucketize(u, model.shares.cumsum(0)[:-1])
    x = model.centres[which]
    if isinstance(model, HeatOracle):
        spread = [so3.igso3(keys, f"{w}", 0, w, entries, torch.float64) for w in model.widths]
        x = x @ torch.stack(spread)[which, torch.arange(len(keys))[:, None],
                                    torch.arange(entries[0])]
    return x


def mean_traces(model):
    """E tr(centre_k^T x_1) of each k, in closed form."""
    widths = getattr(model, "widths", torch.zeros(3, dtype=torch.float64))
    overlap = trace(model.centres.mT.unsqueeze(1) @ model.centres)
    return overlap @ (model.shares * torch.exp(-2.0 * widths**2))


def drawn(model, route, keys, entries=(), dtype=torch.float64, **settings):
    process = Process(Part(Rotations(), route, model.predicts))
    return sample(model, process, keys, (*entries, 3, 3), dtype=dtype, **settings).x


# the space


def test_noise_is_haar_and_masked_rotations_are_zero():
    keys = Keys.for_samples(2, range(200))
    like = torch.empty(200, 4, 3, 3, dtype=torch.float64)
    mask = torch.arange(4) < (torch.arange(200) % 5)[:, None]
    x = Rotations().noise(keys, "noise", 0, like, mask)
    assert is_rotation(x[mask], 1e-13) and not x[~mask].any()
    kept = trace(x[mask])
    assert abs(kept.mean()) < 4.0 / math.sqrt(len(kept))  # E tr = 0, E tr^2 = 1
    free = Rotations().noise(keys, "noise", 0, like)
    assert torch.equal(free[mask], x[mask])


def test_projection_gives_rotations_whatever_padding_held():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 3, 3, generator=generator)
    mask = torch.arange(5) < torch.tensor([5, 2, 0])[:, None]
    x[~mask] = math.nan
    y = Rotations().project(x, mask)
    assert is_rotation(y[mask], 1e-6) and not y[~mask].any()
    assert torch.allclose(Rotations().project(y, mask), y, atol=1e-6)


def test_a_rotation_has_three_degrees_of_freedom():
    x = torch.zeros(3, 5, 3, 3)
    mask = torch.arange(5) < torch.tensor([5, 2, 0])[:, None]
    assert Rotations().dof(mask, x).tolist() == [15.0, 6.0, 0.0]
    assert Rotations().dof(None, x).tolist() == [15.0] * 3
    assert Rotations().dof(None, x[:, 0]).tolist() == [3.0] * 3


def test_spaces_and_routes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="Flat cannot follow Geodesic"):
        Part(Flat(), Geodesic())
    with pytest.raises(UserError, match="Rotations cannot follow Linear"):
        Part(Rotations(), Path.linear())
    with pytest.raises(UserError, match="'score'; choose one of denoised, velocity"):
        Part(Rotations(), Geodesic(), "score")
    with pytest.raises(UserError, match="'noise'; choose one of denoised, score"):
        Part(Rotations(), Heat(), "noise")
    for wrong in ({"high": -1.0}, {"low": 3.0}, {"noise": 1.5}, {"noise": math.nan}):
        with pytest.raises(UserError, match="Heat"):
            Heat(**wrong)


# bridges


@pytest.mark.parametrize("warp", [None, Power(1.5)], ids=["plain", "warped"])
def test_geodesic_bridges_divide_the_distance_by_the_clock(warp):
    route = Geodesic(warp)
    keys = Keys.for_samples(SEED, range(40))
    x_1 = so3.haar(keys, "data", 0, (3,), torch.float64)
    t = torch.linspace(0.0, 1.0, 40, dtype=torch.float64)
    bridge = Process(Part(Rotations(), route)).bridge(x_1, t, keys)
    c = route.clock(t)[:, None]
    whole = so3.distance(bridge.x_0, x_1)
    assert torch.allclose(so3.distance(bridge.x_0, bridge.x_t), c * whole, atol=1e-9)
    assert torch.allclose(so3.distance(bridge.x_t, x_1), (1.0 - c) * whole, atol=1e-9)
    given = Process(Part(Rotations(), route)).bridge(x_1, t, keys, x_0=x_1.flip(0))
    assert torch.allclose(given.x_t[0], x_1[-1]) and torch.allclose(given.x_t[-1], x_1[-1])


def test_heat_bridges_turn_the_data_by_the_kernel_of_each_sample():
    route = Heat()
    keys = Keys.for_samples(4, range(1200))
    x_1 = so3.haar(keys, "data", 0, (5,), torch.float64)
    process = Process(Part(Rotations(), route))
    for t in (0.0, 0.35, 0.8, 1.0):
        x_t = process.bridge(x_1, torch.full((1200,), t, dtype=torch.float64), keys).x_t
        one, two = (math.exp(-k * route.eps(t) ** 2) for k in (2.0, 6.0))
        turn = trace(x_1.mT @ x_t)
        assert within_sigmas(turn, 3.0 * one)
        assert within_sigmas(turn.square(), 1.0 + 3.0 * one + 5.0 * two)
    assert route.eps(0.0) == route.high and route.eps(1.0) == pytest.approx(route.low)
    with pytest.raises(UserError, match="x_0"):
        process.bridge(x_1, torch.rand(1200, generator=torch.Generator()), keys, x_0=x_1)


@routes
def test_bridges_keep_padding_zero_and_do_not_depend_on_it(route):
    keys, process = Keys.for_samples(5, range(3)), Process(Part(Rotations(), route))
    mask = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
    x_1 = Rotations().noise(keys, "data", 0, torch.empty(3, 6, 3, 3), mask)
    t = torch.tensor([0.1, 0.5, 0.9])
    bridge = process.bridge(x_1, t, keys, mask)
    assert is_rotation(bridge.x_t[mask], 1e-5) and not bridge.x_t[~mask].any()
    alone = process.bridge(x_1[1:2, :4], t[1:2], keys[1:2])
    assert torch.allclose(alone.x_t, bridge.x_t[1:2, :4], atol=1e-6)


@pytest.mark.parametrize("route", [Geodesic(), Geodesic(warp=Power(1.5)), Heat()])
def test_oracles_are_the_posterior_means_of_the_bridge(route):
    """E[(pull of the data - pull of the oracle) . g(x_t)] = 0 for any g: three of them."""
    model = oracle(route)
    keys = Keys.for_samples(6, range(1500))
    x_1 = data(model, keys, (8,))
    process = Process(Part(Rotations(), route, model.predicts))
    for time in (0.3, 0.6):
        t = torch.full((1500,), time, dtype=torch.float64)
        x_t = process.bridge(x_1, t, keys).x_t
        gap = route.pull(x_t, x_1, t, "denoised") - route.pull(
            x_t, model(x_t, t), t, model.predicts
        )
        assert gap.norm(dim=-1).mean() > 0.05  # there is something to average
        for centre in model.centres:
            test = so3.log(x_t.mT @ centre)
            assert within_sigmas((gap * test).sum(-1), 0.0)


# predictions


@routes
@pytest.mark.parametrize("entries", [(), (4,), (2, 3)])
def test_conversions_there_and_back_are_the_identity(route, entries):
    print(f"seed {SEED}")
    keys = Keys.for_samples(SEED, range(7))
    x = so3.haar(keys, "x", 0, entries, torch.float64)
    size = torch.linspace(0.05, 1.2, 7, dtype=torch.float64).view(-1, *(1,) * len(entries), 1)
    turn = keys.normal("turn", 0, (*entries, 3), torch.float64)
    d = x @ so3.exp(size * turn / turn.norm(dim=-1, keepdim=True))
    tangent = route.predictions[1]
    t = torch.linspace(0.05, 0.9, 7, dtype=torch.float64)
    v = route.convert(d, x, t, "denoised", tangent)
    assert v.shape == (7, *entries, 3)
    back = route.convert(v, x, t, tangent, "denoised")
    assert so3.distance(back, d).max() < 2e-4
    for i in (0, 6):  # a time for all is the same as one for each
        shared = route.convert(d, x, t[i].item(), "denoised", tangent)
        assert torch.allclose(shared[i], v[i], rtol=1e-9)
    assert route.convert(d, x, 1.0, "denoised", tangent).isfinite().all()
    with pytest.raises(UserError, match="noise"):
        route.convert(d, x, t, "denoised", "noise")


def test_the_velocity_is_the_derivative_of_the_bridge():
    for route in (Geodesic(), Geodesic(warp=Power(1.7))):
        keys = Keys.for_samples(SEED, range(20))
        x_1 = so3.haar(keys, "data", 0, (), torch.float64)
        process, h = Process(Part(Rotations(), route)), 1e-5
        at = [
            process.bridge(x_1, torch.full((20,), s, dtype=torch.float64), keys).x_t
            for s in (0.4 - h, 0.4, 0.4 + h)
        ]
        numeric = so3.log(at[0].mT @ at[2]) / (2.0 * h)
        exact = route.convert(x_1, at[1], 0.4, "denoised", "velocity")
        assert (exact - numeric).abs().max() < 1e-7


# training


@pytest.mark.parametrize(
    "route, cap", [(Geodesic(), None), (Geodesic(Power(1.5)), 50.0), (Heat(), None), (Heat(), 50.0)]
)
def test_a_free_matrix_trained_by_the_loss_finds_the_data(route, cap):
    process = Process(Part(Rotations(), route))
    target = haar(1, 2).float()
    free = torch.eye(3).repeat(2, 1, 1).requires_grad_()
    optimiser = torch.optim.Adam([free], lr=0.15)
    x_1 = target.expand(16, 2, 3, 3)
    for step in range(50):
        keys = Keys.for_samples(step, range(16))
        t = 0.9 * keys.uniform("t", 0)
        bridge = process.bridge(x_1, t, keys)
        loss = matching_loss(free.expand(16, 2, 3, 3), process, bridge, velocity_cap=cap)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    assert so3.distance(so3.nearest(free.detach()), target).max() < 0.15


@routes
def test_padding_changes_neither_loss_nor_gradient(route):
    for predicts in route.predictions:
        keys, process = Keys.for_samples(5, range(3)), Process(Part(Rotations(), route, predicts))
        mask = torch.arange(6) < torch.tensor([4, 4, 4])[:, None]
        x_1 = Rotations().noise(keys, "data", 0, torch.empty(3, 6, 3, 3), mask)
        t = torch.tensor([0.1, 0.5, 0.9])
        shape = (3, 6, 3, 3) if predicts == "denoised" else (3, 6, 3)
        answer = keys.normal("answer", 0, shape[1:])
        answer[~mask] = math.nan
        padded = answer.clone().requires_grad_()
        cut = answer[:, :4].clone().requires_grad_()
        first = matching_loss(padded, process, process.bridge(x_1, t, keys, mask))
        second = matching_loss(cut, process, process.bridge(x_1[:, :4], t, keys))
        assert torch.allclose(first.total, second.total, rtol=1e-5)
        one, two = (
            torch.autograd.grad(loss.total, at)[0]
            for loss, at in ((first, padded), (second, cut))
        )
        assert torch.allclose(one[:, :4], two, atol=1e-5) and two.abs().sum() > 0.0
        assert one[:, :4].isfinite().all()


@routes
def test_the_loss_is_zero_at_the_data_and_the_same_for_both_predictions(route):
    keys, process = Keys.for_samples(8, range(9)), Process(Part(Rotations(), route))
    x_1 = so3.haar(keys, "data", 0, (4,), torch.float64)
    t = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    x_t = process.bridge(x_1, t, keys).x_t
    d = x_t @ so3.exp(0.8 * keys.normal("d", 0, (4, 3), torch.float64))
    tangent = route.predictions[1]
    v = route.convert(d, x_t, t, "denoised", tangent)
    space = Rotations()
    for cap in (None, 20.0):
        one = route.error(space, d, x_1, x_t, t, None, "denoised", cap)
        two = route.error(space, v, x_1, x_t, t, None, tangent, cap)
        assert one.shape == (9, 4) and torch.allclose(one, two, rtol=1e-6)
        assert route.error(space, x_1, x_1, x_t, t, None, "denoised", cap).max() < 1e-20


# sampling


@pytest.mark.parametrize("noise, steps", [(0.0, 20), (0.5, 50), (1.0, 50)])
def test_reverse_heat_reproduces_class_probabilities_and_traces(noise, steps):
    print(f"seed {SEED}")
    route = Heat(noise=noise)
    model = oracle(route, seed=SEED)
    keys = Keys.for_samples(1, range(400))
    x = drawn(model, route, keys, (5,), steps=steps)
    assert is_rotation(x, 1e-9)
    overlap = trace(model.centres.mT @ x.unsqueeze(-3))
    # a new oracle each run, hence one sigma more
    for k, exact in enumerate(mean_traces(model).tolist()):
        assert within_sigmas(overlap[..., k], exact, 5.0)
    # shares of the classes: the mean responsibility at the data end is the share, exactly
    share = model.responsibilities(x, 1.0)
    for k, exact in enumerate(model.shares.tolist()):
        assert within_sigmas(share[..., k], exact, 5.0)


def test_the_flow_of_heat_maps_angles_to_equal_quantiles():
    """One class is isotropic about its centre, so the flow moves along rays and keeps quantiles."""
    route, width = Heat(high=3.0, noise=0.0), torch.tensor([0.3], dtype=torch.float64)
    model = HeatOracle(route, haar(2, 1), torch.ones(1, dtype=torch.float64), width)
    keys = Keys.for_samples(3, range(300))
    start = Rotations().noise(keys, "start", 0, torch.empty(300, 3, 3, dtype=torch.float64))
    ray = so3.log(model.centres.mT @ start)
    angle = ray.norm(dim=-1, keepdim=True)
    mass = (angle - angle.sin()) / math.pi  # of the Haar measure
    exact = model.centres @ so3.exp(ray / angle * so3.igso3_angle(mass, 0.3))
    error = [
        so3.distance(drawn(model, route, keys, steps=n, initial=start), exact).mean().item()
        for n in (20, 60)
    ]
    assert error[0] < 0.02 and error[1] < 0.0035, error


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_in_the_flat_limit_the_variance_after_every_step_is_exact(noise):
    """Small angles: x is Gaussian, the score is -x / V, and the step is a linear map of x."""
    route, spread = Heat(noise=noise, high=0.06, low=1e-4), 0.03
    model = HeatOracle(
        route, torch.eye(3, dtype=torch.float64)[None], torch.ones(1, dtype=torch.float64),
        torch.tensor([spread], dtype=torch.float64),
    )
    keys, steps = Keys.for_samples(3, range(300)), 8
    times = [0.05 + 0.12 * k for k in range(steps)]
    eps = [route.eps(t) for t in times]
    width = math.hypot(eps[0], spread)
    start = so3.igso3(keys, "start", 0, width, (60,), torch.float64)
    seen = []
    drawn(
        model, route, keys, (60,), grid=times, initial=start,
        callback=lambda k, t, x, d: seen.append(so3.log(x)),
    )
    gain, variance, before = 1.0, 2.0 * width**2, None
    for k in range(steps - 1):
        v, u = 2.0 * eps[k] ** 2, 2.0 * eps[k + 1] ** 2
        pull = -v / (v + 2.0 * spread**2)  # times x
        if noise:
            fresh = noise**2 * u * (1.0 - u / v)
            share = 1.0 - math.sqrt((u - fresh) / v)
            variance = (1.0 + share * pull) ** 2 * variance + fresh
        else:
            h, decay = math.log(eps[k] / eps[k + 1]), eps[k + 1] / eps[k]
            drift = 0.0
            if before is not None:
                old_gain, old_pull, old_decay = before
                drift = (pull * gain - old_decay * old_pull * old_gain) / (1.0 - old_decay)
            before = (gain, pull, decay)
            gain += (1.0 - decay) * pull * gain + (h - 1.0 + decay) * drift
            variance = gain**2 * 2.0 * width**2
        assert within_sigmas(seen[k].square() / variance, 1.0)


@pytest.mark.parametrize("route", [Geodesic(), Geodesic(warp=Power(1.5))])
def test_the_geodesic_flow_reproduces_a_mixture(route):
    model = oracle(route, seed=11)
    x = drawn(model, route, Keys.for_samples(1, range(400)), (5,), steps=40)
    distance = so3.distance(x.unsqueeze(-3), model.centres)
    assert (distance.min(-1).values < 1e-6).double().mean() > 0.98
    for k, exact in enumerate(model.shares.tolist()):
        assert within_sigmas((distance.argmin(-1) == k).double(), exact)


@pytest.mark.parametrize("route", [Geodesic(), Heat(noise=0.0), Heat(noise=1.0)])
def test_half_way_the_flow_has_the_law_of_the_bridge(route):
    model = oracle(route, seed=12)
    keys = Keys.for_samples(2, range(500))
    x_1 = data(model, Keys.for_samples(3, range(500)), (5,))
    half = torch.full((500,), 0.5, dtype=torch.float64)
    process = Process(Part(Rotations(), route, model.predicts))
    expected = process.bridge(x_1, half, Keys.for_samples(4, range(500))).x_t
    grid = [0.5 * k / 30 for k in range(31)]
    got = drawn(model, route, keys, (5,), grid=grid)
    for centre in model.centres:
        one, two = trace(centre.mT @ expected).mean(1), trace(centre.mT @ got).mean(1)
        spread = math.sqrt((one.var() + two.var()).item() / 500)
        assert abs((one.mean() - two.mean()).item()) < 4.0 * spread


@pytest.mark.parametrize("route", [Geodesic(), Heat()])
def test_every_prediction_gives_the_same_samples(route):
    keys = Keys.for_samples(2, range(20))
    x = [
        drawn(oracle(route, predicts=kind), route, keys, (3,), steps=12)
        for kind in route.predictions
    ]
    assert so3.distance(*x).median() < 1e-3


@pytest.mark.parametrize("route", [Geodesic(), Heat(noise=0.0)])
def test_noiseless_steps_are_of_the_declared_order(route):
    """On a smooth field, against 320 steps, without the last jump."""
    kind = route.predictions[1]

    def field(x, t, mask=None, cond=None, previous=None):
        lever = 1.0 if isinstance(route, Geodesic) else 1.0 / (2.0 * route.eps(t) ** 2)
        wave = torch.stack((x[:, 0, 1] + t, torch.sin(3.0 * x[:, 1, 2] - t), x[:, 2, 0] * t), -1)
        return wave * torch.as_tensor(lever).view(-1, 1)

    keys = Keys.for_samples(1, range(10))
    process = Process(Part(Rotations(), route, kind))

    def end(steps):
        grid = [0.7 * k / steps for k in range(steps + 1)]
        return sample(field, process, keys, (3, 3), grid=grid, dtype=torch.float64).x

    best = end(320)
    error = [so3.distance(end(n), best).square().mean().sqrt().item() for n in (20, 40)]
    order = math.log2(error[0] / error[1])
    assert route.order == 2
    assert 1.8 < order < 2.6, error
    assert Heat().order == 1


@routes
def test_a_single_rotation_is_reached_exactly_in_one_step(route):
    target = haar(5, 4)

    def model(x, t, mask=None, cond=None, previous=None):
        return target.expand_as(x)

    process, keys = Process(Part(Rotations(), route)), Keys.for_samples(1, range(3))
    x = sample(model, process, keys, (4, 3, 3), steps=1, dtype=torch.float64).x
    assert so3.distance(x, target).max() < 1e-12


# invariants


@routes
def test_left_multiplication_commutes_with_sampling(route):
    print(f"seed {SEED}")
    model, keys = oracle(route), Keys.for_samples(SEED, range(12))
    g = haar(SEED, 1)
    start = Rotations().noise(keys, "start", 0, torch.empty(12, 4, 3, 3, dtype=torch.float64))
    x = drawn(model, route, keys, (4,), steps=15, initial=start)
    model.centres = g @ model.centres
    turned = drawn(model, route, keys, (4,), steps=15, initial=g @ start)
    assert so3.distance(turned, g @ x).median() < 1e-9  # a chaotic few may differ
    assert (so3.distance(turned, g @ x) < 1e-5).double().mean() > 0.95


@routes
def test_masked_rotations_stay_zero_whatever_the_network_says_of_them(route):
    mask = torch.arange(5) < torch.tensor([5, 3, 0, 1])[:, None]
    keys = Keys.for_samples(3, range(4))
    seen = []

    def model(x, t, mask=None, cond=None, previous=None):
        answer = oracle(route, predicts="denoised")(x, t)
        return torch.where(mask[..., None, None], answer, math.nan)

    process = Process(Part(Rotations(), route))
    out = sample(
        model, process, keys, (5, 3, 3), mask, steps=8, dtype=torch.float64,
        callback=lambda k, t, x, d: seen.extend((x, d)),
    )
    assert out.finite.all() and len(seen) == 16
    for x in (*seen, out.x):
        assert is_rotation(x[mask], 1e-9) and not x[~mask].any()


@routes
def test_a_sample_is_the_same_alone_in_a_batch_padded_and_permuted(route):
    model, ids = oracle(route), [3, 1, 4, 15, 9, 26]
    keys = Keys.for_samples(7, ids)
    whole = drawn(model, route, keys, (4,), steps=10)
    alone = drawn(model, route, keys[2:3], (4,), steps=10)
    assert torch.allclose(alone, whole[2:3], atol=1e-9)
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    assert torch.allclose(drawn(model, route, keys[order], (4,), steps=10), whole[order], atol=1e-9)
    mask = (torch.arange(7) < 4).expand(6, 7)
    padded = drawn(model, route, keys, (7,), steps=10, mask=mask)
    assert torch.allclose(padded[:, :4], whole, atol=1e-9)


@routes
def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(route):
    model, keys = oracle(route), Keys.for_samples(7, range(5))
    process = Process(Part(Rotations(), route, model.predicts))
    whole = sample(model, process, keys, (4, 3, 3), steps=10)
    for row in (1, 6):
        first = sample(model, process, keys, (4, 3, 3), steps=10, until=row)
        second = sample(model, process, keys, (4, 3, 3), steps=10, resume=first.resume)
        assert torch.equal(second.x, whole.x)


def test_what_a_mover_remembers_follows_the_particles():
    route = Heat(noise=0.0)
    model, keys = oracle(route), Keys.for_samples(7, range(5))
    part = Part(Rotations(), route, "score")
    grid = [k / 6 for k in range(7)]
    index = torch.tensor([4, 4, 0, 1, 2])

    def run(permute):
        mover = RotationMover("x", part, grid[:-1], grid[1:], keys, None, None, "s")
        x = Rotations().noise(keys, "x", 0, torch.empty(5, 3, 3, dtype=torch.float64))
        for k, t in enumerate(grid[:-1]):
            if k == 3 and permute:
                mover.gather(index)
                x = x[index]
            x, _ = mover.advance(k, x, model(x, t))
        return x

    assert torch.allclose(run(True), run(False)[index], atol=1e-12)


@routes
def test_known_rotations_end_on_their_value_and_follow_their_bridge(route):
    model, keys = oracle(route), Keys.for_samples(2, range(6))
    value = haar(9, 4)
    known = torch.tensor([True, False, False, True]).expand(6, 4)
    seen = []
    x = drawn(
        model, route, keys, (4,), steps=20, fixed=(value, known),
        callback=lambda k, t, x, d: seen.append((t, x)),
    )
    assert torch.equal(x[:, [0, 3]], value[[0, 3]].expand(6, 2, 3, 3))
    free = drawn(model, route, keys, (4,), steps=20)
    assert torch.allclose(x[:, [1, 2]], free[:, [1, 2]], atol=1e-9)  # answered one by one
    if isinstance(route, Geodesic):  # without noise the bridge is a geodesic
        process = Process(Part(Rotations(), route))
        start = process.prior(keys, torch.empty(6, 4, 3, 3, dtype=torch.float64))[:, 0]
        t, there = seen[9]
        exact = start @ so3.exp(route.clock(t) * so3.log(start.mT @ value[0]))
        assert so3.distance(there[:, 0], exact).max() < 1e-9
    for wrong, message in ((2.0 * value, "rotation matrices"), (-value, "rotation matrices")):
        with pytest.raises(UserError, match=message):
            drawn(model, route, keys, (4,), steps=2, fixed=(wrong, known))
    with pytest.raises(UserError, match="as a whole"):
        partly = torch.zeros(6, 4, 3, dtype=torch.bool)
        partly[:, 0, 1] = True
        drawn(model, route, keys, (4,), steps=2, fixed=(value, partly))


def test_a_prediction_of_the_wrong_shape_is_named():
    process = Process(Part(Rotations(), Heat(), "score"))
    with pytest.raises(ValueError, match=r"'score' of part 'x' has shape \(2, 4, 3, 3\)"):
        sample(lambda x, t, **k: x, process, Keys.for_samples(0, range(2)), (4, 3, 3), steps=2)


# rigid frames


@routes
@pytest.mark.parametrize("solver", ["heun", "ddpm"])
def test_frames_are_translations_and_rotations_on_one_clock(route, solver):
    path, shared = Path.linear(), oracle(route, predicts="denoised")
    process = Process({
        "translations": Part(Centred(), path),
        "rotations": Part(Rotations(), route),
    })
    law = Gaussian(torch.zeros(3), torch.tensor([1.0, 0.5, 0.2])).on(path)
    mask = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
    keys = Keys.for_samples(3, range(3))

    def model(x, t, mask=None, cond=None, previous=None):
        flat = x["translations"].flatten(0, 1)
        moved = law.denoised(flat, t.repeat_interleave(6)).view_as(x["translations"])
        return {"translations": moved, "rotations": shared(x["rotations"], t)}

    shapes = {"translations": (6, 3), "rotations": (6, 3, 3)}
    out = sample(model, process, keys, shapes, mask, solver=solver, steps=10)
    points, frames = out.x["translations"], out.x["rotations"]
    assert out.finite.all() and points.dtype == frames.dtype == torch.float32
    assert not points[~mask].any() and points.sum(1).abs().max() < 1e-5
    assert not frames[~mask].any() and is_rotation(frames[mask], 1e-5)
    if solver == "ddpm":  # the rotations do not feel the translations, nor their noise
        other = sample(model, process, keys, shapes, mask, solver="euler", steps=10)
        assert torch.equal(other.x["rotations"], frames)
