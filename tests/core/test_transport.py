"""Transport along bridges between Gaussians, whose outcome is known exactly.

On linear fields a run is an affine map of its start plus fresh noise. Two starts give the map, and
a space whose noise is a unit impulse in one row a sample gives the weight of each row's noise, so
the law of the outcome is had without drawing anything.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from driftworks.core.bridge_laws import GaussianBridge, schrodinger_covariance
from driftworks.core.bridges import TwoSided
from driftworks.core.keys import Keys
from driftworks.core.spaces import Centred, Flat, Space, Symmetric
from driftworks.core.transport import transport
from driftworks.errors import UserError

BRIDGES = {
    "brownian": TwoSided.brownian(0.6),
    "linear sine": TwoSided.linear(0.8, "sine"),
    "trigonometric root": TwoSided.trigonometric(0.7),
    "encoding-decoding": TwoSided.encoding_decoding(1.0),
}
every_bridge = pytest.mark.parametrize("bridge", BRIDGES.values(), ids=BRIDGES.keys())
both_ways = pytest.mark.parametrize("direction", ["forward", "backward"])
both_heads = pytest.mark.parametrize("predicts", ["velocity", "tangent"])


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def keys(n, seed=3):
    return Keys.for_samples(seed, range(n))


@dataclass(frozen=True)
class Impulses(Space):
    """The real line whose "noise" in row k is 1 for sample k and 0 for the others."""

    def noise(self, keys, stream, step, like, mask=None):
        impulse = torch.zeros_like(like)
        if step < len(like):
            impulse[step] = 1.0
        return impulse


def outcome(model, bridge, steps, **options):
    """(gain, offset, variance of the noise) of a run of one-dimensional states."""
    start = torch.zeros(steps + 2, 1, dtype=torch.float64)
    start[-1] = 1.0
    end = transport(
        model, bridge, keys(steps + 2), start, space=Impulses(), steps=steps, **options
    ).x[:, 0]  # fmt: skip
    offset = end[-2].item()
    return end[-1].item() - offset, offset, (end[:steps] - offset).square().sum().item()


def line(bridge, cross=0.2, predicts="velocity"):
    return GaussianBridge(bridge, 0.3, 1.0, -0.5, 0.25, cross, predicts)


def ends_of(direction):
    """(mean, variance) where a run starts and where it should end."""
    ends = ((0.3, 1.0), (-0.5, 0.25))
    return ends if direction == "forward" else ends[::-1]


@every_bridge
@both_ways
@both_heads
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_probability_flow_is_the_exact_map_to_its_order(
    bridge, direction, predicts, solver, order
):
    (m, v), (mean, variance) = ends_of(direction)
    errors = []
    for steps in (80, 160):
        gain, offset, noise = outcome(
            line(bridge, predicts=predicts), bridge, steps, predicts=predicts, solver=solver,
            direction=direction,
        )  # fmt: skip
        assert noise == 0.0
        exact = math.sqrt(variance / v)
        errors.append(abs(gain - exact) + abs(offset - (mean - exact * m)))
    assert math.log2(errors[0] / errors[1]) > order - 0.2, errors
    assert errors[1] < (0.2 if order == 1 else 0.02)


NOISES = {
    "gamma": lambda bridge: bridge.gamma,
    "brownian": lambda bridge: 0.5 * bridge.noise**2,
    "late": lambda bridge: lambda t: 2.0 * bridge.gamma(t) * t,
    "constant": lambda bridge: 0.1,
}


@pytest.mark.parametrize(
    ("name", "level"),
    # a noise that stays where gamma vanishes squared would divide by that square
    [(name, level) for name in ("brownian", "trigonometric root") for level in NOISES]
    + [("linear sine", level) for level in ("gamma", "late")],
)
@both_ways
@both_heads
def test_the_sde_has_the_exact_marginal_at_every_noise_level(name, level, direction, predicts):
    """Mean and variance at the end, with an error of first order in the step."""
    bridge = BRIDGES[name]
    (m, v), (mean, variance) = ends_of(direction)
    errors = []
    for steps in (100, 200):
        gain, offset, noise = outcome(
            line(bridge, predicts=predicts), bridge, steps, predicts=predicts,
            noise=NOISES[level](bridge), direction=direction,
        )  # fmt: skip
        assert noise > 0.0
        found = torch.tensor([gain * m + offset - mean, gain**2 * v + noise - variance])
        errors.append(found)
    # Richardson: what is left of first order cancels, up to a logarithm at the ends
    left = (2.0 * errors[1] - errors[0]).abs().max().item()
    assert errors[1].abs().max() < 0.02 * max(1.0, variance), errors
    assert left < 0.004, (errors, left)


def test_the_schrodinger_bridge_reproduces_its_joint_covariance():
    """Golden: v0 = 1, v1 = .25, s^2 = .36 couple with covariance .351413, and so does the SDE."""
    bridge, cross = TwoSided.brownian(0.6), schrodinger_covariance(1.0, 0.25, 0.36)
    model = GaussianBridge(bridge, 0.0, 1.0, 0.0, 0.25, cross, "tangent")
    gains, totals = [], []
    for steps in (100, 200, 400):
        gain, offset, noise = outcome(model, bridge, steps, predicts="tangent", noise=0.18)
        assert offset == pytest.approx(0.0, abs=1e-12)
        gains.append(gain * 1.0)
        totals.append(gain**2 + noise)
    assert abs(gains[-1] - 0.351413) < 2e-3
    assert 2 * gains[-1] - gains[-2] == pytest.approx(0.351413, abs=2e-5)
    assert 2 * totals[-1] - totals[-2] == pytest.approx(0.25, abs=1e-4)
    backward = outcome(
        model, bridge, 400, predicts="tangent", noise=0.18, direction="backward"
    )[0]  # fmt: skip
    assert backward * 0.25 == pytest.approx(0.351413, abs=2e-3)
    # the drift is that of the bridge pinned to E[x1 | x]
    x, t = tensor([[0.7], [-1.2]]), 0.4
    drift = model.velocity(x, t) + 0.18 * model.score(x, t)
    expected = cross * (1 - t) + t * 0.25
    end = expected / model.cov(t).item() * x
    torch.testing.assert_close(drift, (end - x) / (1 - t))


def test_another_coupling_is_not_recovered_unless_the_source_is_a_condition():
    """The marginals are right with and without x0, the joint covariance only with it."""
    bridge, cross, steps = TwoSided.brownian(0.6), -0.3, 400
    model = GaussianBridge(bridge, 0.0, 1.0, 0.0, 0.25, cross, "tangent")
    run = partial(outcome, bridge=bridge, steps=steps, predicts="tangent", noise=0.18)
    gain, _, noise = run(model)
    assert gain**2 + noise == pytest.approx(0.25, abs=3e-3)
    assert gain > 0.0 > cross
    start = torch.zeros(steps + 2, 1, dtype=torch.float64)
    start[-1] = 1.0
    gain, _, noise = run(model, cond=start)
    assert gain == pytest.approx(cross, abs=2e-3)
    assert gain**2 + noise == pytest.approx(0.25, abs=3e-3)


def test_drawn_samples_have_the_law_of_the_run():
    """Keyed noise and a coupled planar Gaussian: moments within 4 standard deviations."""
    n, steps = 4000, 60
    c0, c1 = tensor([[1.0, 0.4], [0.4, 0.7]]), tensor([[0.3, -0.1], [-0.1, 0.5]])
    cross = tensor([[0.2, -0.3], [0.1, 0.1]])
    bridge = TwoSided.trigonometric(0.7)
    model = GaussianBridge(bridge, [0.5, 0.0], c0, [-1.0, 1.0], c1, cross, "tangent")
    white = keys(n, 17).normal("start", 0, (2,), torch.float64)
    x0 = tensor([0.5, 0.0]) + white @ torch.linalg.cholesky(c0).mT
    entries = tensor([[0.0, 1.0]])
    levels = {
        "all": bridge.gamma,
        "one": lambda t: entries * bridge.gamma(t),
        "one always": 0.245 * entries,
    }
    for name, noise in levels.items():
        end = transport(
            model, bridge, keys(n), x0, predicts="tangent", noise=noise, steps=steps
        )  # fmt: skip
        assert end.nfe == steps and end.finite.all()
        gap = end.x - tensor([-1.0, 1.0])
        bias = 0.02  # of first order in the step, see above
        assert (gap.mean(0).abs() < 4 * (c1.diagonal() / n).sqrt() + bias).all(), name
        spread = (c1.diagonal()[:, None] * c1.diagonal() + c1**2).sqrt()
        assert ((end.x.mT.cov() - c1).abs() < 4 * spread / math.sqrt(n) + bias).all(), name


@pytest.mark.parametrize("rows", [1, 2])
def test_noise_of_single_entries_keeps_the_planar_law(rows):
    """A moment recursion of the run itself, with noise in one coordinate or unequal in both."""
    steps, bridge = 200, TwoSided.brownian(0.6)
    c0, c1 = tensor([[1.0, 0.4], [0.4, 0.7]]), tensor([[0.3, -0.1], [-0.1, 0.5]])
    model = GaussianBridge(bridge, [0.0, 0.0], c0, [0.0, 0.0], c1, 0.0, "tangent")
    entries = tensor([[0.0, 1.0]]) if rows == 1 else tensor([[0.3, 2.0]])

    @dataclass(frozen=True)
    class Pairs(Impulses):
        """Sample 2 k + i feels the noise of row k in coordinate i."""

        def noise(self, keys, stream, step, like, mask=None):
            impulse = torch.zeros_like(like)
            if 2 * step + 1 < len(like):
                impulse[2 * step, 0] = impulse[2 * step + 1, 1] = 1.0
            return impulse

    start = torch.zeros(2 * steps + 2, 2, dtype=torch.float64)
    start[-2:] = torch.eye(2)
    errors = []
    for n in (steps // 2, steps):
        end = transport(
            model, bridge, keys(2 * steps + 2), start, space=Pairs(), predicts="tangent",
            noise=lambda t: entries * bridge.gamma(t), steps=n,
        ).x  # fmt: skip
        gain, noise = end[-2:], end[: 2 * n]
        errors.append(gain.mT @ c0 @ gain + noise.mT @ noise - c1)
    assert errors[1].abs().max() < 0.01
    assert (2 * errors[1] - errors[0]).abs().max() < 0.002


@both_heads
def test_there_and_back_is_the_identity(predicts):
    bridge = BRIDGES["brownian"]
    model, x = (
        line(bridge, predicts=predicts),
        torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None],
    )
    run = partial(transport, model, bridge, keys(7), predicts=predicts, solver="heun", steps=200)
    back = run(run(x).x, direction="backward").x
    torch.testing.assert_close(back, x, rtol=0, atol=1e-3)


@pytest.mark.parametrize("space", [Flat(), Centred(), Symmetric()], ids=lambda s: type(s).__name__)
def test_a_sample_is_the_same_alone_padded_and_in_any_batch(space):
    bridge, many = BRIDGES["trigonometric root"], keys(4)
    model = GaussianBridge(bridge, 0.0, 1.0, 0.0, 0.25, 0.1, "tangent")
    start = space.noise(many, "start", 0, torch.empty(4, 3, 3, dtype=torch.float64))
    run = partial(transport, model, bridge, space=space, predicts="tangent", noise=bridge.gamma)
    whole = run(many, start, steps=15).x
    torch.testing.assert_close(space.project(whole), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(run(many[[2]], start[[2]], steps=15).x, whole[[2]])
    wide = 5 if isinstance(space, Symmetric) else 3
    padded = torch.zeros(4, 5, wide, dtype=torch.float64)
    padded[:, :3, :3] = start
    mask = torch.tensor([[True] * 3 + [False] * 2] * 4)
    end = run(many, padded, mask, steps=15).x
    torch.testing.assert_close(end[:, :3, :3], whole, rtol=1e-9, atol=1e-9)
    assert (end[:, 3:] == 0).all()


def test_single_precision_states_meet_the_same_rows():
    """The loop's clock is rounded to float32; the rows are found all the same."""
    bridge, x = BRIDGES["brownian"], torch.linspace(-2, 2, 5)[:, None]
    model = line(bridge, predicts="tangent")
    for direction in ("forward", "backward"):
        run = partial(
            transport, model, bridge, keys(5), predicts="tangent", noise=bridge.gamma,
            direction=direction, grid=[0.0, 0.1, 0.3, 0.7, 0.91, 1.0],
        )  # fmt: skip
        single, double = run(x), run(x.double())
        assert single.x.dtype == torch.float32
        torch.testing.assert_close(single.x.double(), double.x, rtol=1e-5, atol=1e-5)


@both_ways
def test_the_model_is_asked_for_what_it_knows(direction):
    """Inside the interval where the end's own score is missing, and nowhere off the grid else."""
    bridge, asked, told = BRIDGES["brownian"], [], []

    class Spy:
        evaluations = 2

        def __call__(self, x, t, mask=None, cond=None, previous=None):
            assert previous is None and cond == "given"
            asked.append(round(t[0].item(), 6))
            return line(bridge, predicts="tangent")(x, t)

    def run(noise):
        asked.clear()
        told.clear()
        return transport(
            Spy(), bridge, keys(2), torch.zeros(2, 1, dtype=torch.float64), predicts="tangent",
            noise=noise, direction=direction, grid=[0.0, 0.2, 0.6, 1.0], cond="given",
            callback=lambda row, t, x: told.append((row, round(t, 6), tuple(x.shape))),
        )  # fmt: skip

    forward = direction == "forward"
    assert run(0.0).nfe == 6
    assert asked == ([0.1, 0.2, 0.6] if forward else [0.8, 0.6, 0.2])
    run(0.18)
    assert asked == ([0.0, 0.2, 0.6] if forward else [1.0, 0.6, 0.2])
    ends = [0.2, 0.6, 1.0] if forward else [0.6, 0.2, 0.0]
    assert told == [(k, t, (2, 1)) for k, t in enumerate(ends)]


def test_a_velocity_alone_is_enough_without_noise():
    bridge = TwoSided.linear(latent="none")
    x0 = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None]
    end = transport(lambda x, t, **_: x0 * 0 + 2.0, bridge, keys(4), x0, steps=3)
    torch.testing.assert_close(end.x, x0 + 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "up"}, "unknown direction 'up'; choose one of forward, backward"),
        ({"solver": "ddim"}, "unknown solver 'ddim'; choose one of euler, heun"),
        ({"predicts": "noise"}, "unknown first head 'noise'; choose one of velocity, tangent"),
        ({"noise": -0.1}, "noise must be finite and >= 0, got -0.1 at t = 0"),
        ({"noise": lambda t: math.nan}, "noise must be finite and >= 0, got nan"),
        ({"noise": 0.1, "solver": "heun"}, "noise takes the solver euler"),
        ({"noise": 0.1}, "the model answers velocity, but this transport needs 'noise'"),
        ({"predicts": "tangent"}, "answers velocity, but this transport needs 'tangent'"),
        ({"bridge": TwoSided.linear(latent="none"), "noise": 0.1}, "there is no score"),
        ({"grid": [0.0, 0.5, 0.4, 1.0]}, "a time grid must increase, got 0.5 before 0.4"),
    ],
)
def test_mistakes_are_named(options, message):
    settings = {"bridge": TwoSided.brownian(0.6), "keys": keys(2), "start": torch.zeros(2, 1)}
    with pytest.raises(UserError, match=message):
        transport(lambda x, t, **_: x, **{**settings, **options})


def test_random_bridges_carry_random_gaussians():
    seed = random.randrange(1 << 30)
    print("seed", seed)
    generator = random.Random(seed)
    v0, v1 = generator.uniform(0.4, 1.5), generator.uniform(0.2, 1.0)
    cross = generator.uniform(-0.8, 0.8) * math.sqrt(v0 * v1)
    m0, m1 = generator.uniform(-1, 1), generator.uniform(-1, 1)
    make = generator.choice([TwoSided.linear, TwoSided.trigonometric])
    bridge = make(generator.uniform(0.4, 1.2), "root")
    scale = generator.uniform(0.2, 1.5)
    model = GaussianBridge(bridge, m0, v0, m1, v1, cross, "tangent")
    errors = []
    for steps in (150, 300):
        gain, offset, noise = outcome(
            model, bridge, steps, predicts="tangent", noise=lambda t: scale * bridge.gamma(t)
        )  # fmt: skip
        errors.append((gain * m0 + offset - m1, gain**2 * v0 + noise - v1))
    for coarse, fine in zip(*errors, strict=True):
        assert abs(fine) < 0.05
        assert abs(2 * fine - coarse) < 0.01
