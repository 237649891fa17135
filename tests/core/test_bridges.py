"""Two-sided interpolants: coefficients, draws, losses and couplings."""

from __future__ import annotations

import itertools
import math
import random
from functools import partial

import pytest
import torch

from driftworks.core.bridge_laws import GaussianBridge
from driftworks.core.bridges import HEADS, TwoSided, bridge_loss, couple
from driftworks.core.keys import Keys
from driftworks.core.spaces import Centred, Flat, Symmetric, Tokens
from driftworks.errors import UserError

BRIDGES = {
    "linear root": TwoSided.linear(0.7),
    "linear sine": TwoSided.linear(0.7, "sine"),
    "linear none": TwoSided.linear(latent="none"),
    "trigonometric root": TwoSided.trigonometric(1.3),
    "trigonometric sine": TwoSided.trigonometric(1.3, "sine"),
    "encoding-decoding": TwoSided.encoding_decoding(0.9),
    "brownian": TwoSided.brownian(0.6),
}
FORMULAS = ("alpha", "beta", "gamma", "dalpha", "dbeta", "dgamma", "gamma_dgamma")
INTERIOR = torch.linspace(0.003, 0.997, 100, dtype=torch.float64)
every_bridge = pytest.mark.parametrize("bridge", BRIDGES.values(), ids=BRIDGES.keys())
close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-11)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def draws(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def keys(n, seed=11):
    return Keys.for_samples(seed, range(n))


@every_bridge
def test_an_interpolant_starts_in_the_source_and_ends_in_the_target(bridge):
    ends = tensor([0.0, 1.0])
    assert bridge.alpha(ends).tolist() == [1.0, 0.0] == [bridge.alpha(0.0), bridge.alpha(1.0)]
    assert bridge.beta(ends).tolist() == [0.0, 1.0] == [bridge.beta(0.0), bridge.beta(1.0)]
    assert bridge.gamma(ends).tolist() == [0.0, 0.0] == [bridge.gamma(0.0), bridge.gamma(1.0)]
    for name in ("dalpha", "dbeta", "gamma_dgamma"):
        assert getattr(bridge, name)(ends).isfinite().all(), name
    if bridge.latent == "root":
        assert bridge.gamma_dgamma(0.0) == pytest.approx(bridge.noise**2 / 2)
        assert bridge.gamma_dgamma(1.0) == pytest.approx(-(bridge.noise**2) / 2)
        assert (bridge.dgamma(0.0), bridge.dgamma(1.0)) == (math.inf, -math.inf)


@every_bridge
def test_derivatives_agree_with_automatic_differentiation(bridge):
    for name in ("alpha", "beta", "gamma"):
        t = INTERIOR.clone().requires_grad_()
        value = getattr(bridge, name)(t)
        slope = torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else 0 * t
        torch.testing.assert_close(getattr(bridge, f"d{name}")(INTERIOR), slope.detach())
    product = bridge.gamma(INTERIOR) * bridge.dgamma(INTERIOR)
    torch.testing.assert_close(bridge.gamma_dgamma(INTERIOR), product)


@every_bridge
@pytest.mark.parametrize("name", FORMULAS)
def test_floats_and_tensors_agree(bridge, name):
    f, times = getattr(bridge, name), tensor([[0.0, 0.25, 0.4], [0.5, 0.75, 1.0]])
    values = f(times)
    assert values.shape == times.shape and values.dtype == torch.float64
    for t, value in zip(times.flatten().tolist(), values.flatten().tolist(), strict=True):
        assert isinstance(f(t), float) and f(t) == pytest.approx(value, rel=1e-14, abs=1e-15)


def test_the_named_interpolants_have_their_published_values():
    t = 0.3
    assert TwoSided.brownian(0.6).gamma(t) ** 2 == pytest.approx(0.36 * 0.3 * 0.7)
    assert TwoSided.linear(2.0, "sine").gamma(t) == pytest.approx(2 * math.sin(math.pi * t) ** 2)
    curve = TwoSided.trigonometric()
    assert curve.alpha(t) == pytest.approx(math.cos(0.15 * math.pi))
    assert curve.beta(t) == pytest.approx(math.sin(0.15 * math.pi))
    code = TwoSided.encoding_decoding()
    assert (code.alpha(t), code.beta(t)) == (pytest.approx(math.cos(0.3 * math.pi) ** 2), 0.0)
    assert (code.alpha(0.8), code.beta(0.8)) == (0.0, pytest.approx(math.cos(0.8 * math.pi) ** 2))
    assert (code.alpha(0.5), code.beta(0.5), code.gamma(0.5)) == (0.0, 0.0, pytest.approx(1.0))


@every_bridge
@pytest.mark.parametrize("space", [Flat(), Centred(), Symmetric()], ids=lambda s: type(s).__name__)
def test_a_draw_stays_in_its_space_and_follows_the_formula(bridge, space):
    x0, x1, t = draws((3, 4, 4), 1), draws((3, 4, 4), 2), tensor([0.2, 0.5, 0.9])
    mask = torch.tensor([[True] * 4, [True] * 3 + [False], [True] * 2 + [False] * 2])
    drawn = bridge.draw(x0, x1, t, keys(3), mask, space, step=5)
    x0, x1 = space.project(x0, mask), space.project(x1, mask)
    z = space.noise(keys(3), "bridge", 5, x1, mask)
    for i, time in enumerate(t.tolist()):
        x = bridge.alpha(time) * x0[i] + bridge.beta(time) * x1[i] + bridge.gamma(time) * z[i]
        close(drawn.x_t[i], x)
        tangent = bridge.dalpha(time) * x0[i] + bridge.dbeta(time) * x1[i]
        close(drawn.target("tangent")[i], tangent)
        close(drawn.target("velocity")[i], tangent + bridge.dgamma(time) * z[i])
        close(drawn.target("noise")[i], z[i])
    for value in (drawn.x_t, *(drawn.target(head) for head in HEADS)):
        close(space.project(value, mask), value)
        assert (value[1, 3] == 0).all()


def test_a_sample_is_drawn_the_same_in_any_batch():
    bridge, x0, x1, t = TwoSided.brownian(1.0), draws((5, 6), 1), draws((5, 6), 2), tensor(
        [0.1, 0.3, 0.5, 0.7, 0.9]
    )  # fmt: skip
    whole = bridge.draw(x0, x1, t, keys(5))
    pick = torch.tensor([3, 1])
    part = bridge.draw(x0[pick], x1[pick], t[pick], keys(5)[pick])
    assert torch.equal(part.x_t, whole.x_t[pick])
    single = bridge.draw(x0.float(), x1.float(), t.float(), keys(5))
    assert single.x_t.dtype == torch.float32


@pytest.mark.parametrize("head", HEADS)
def test_targets_are_regressed_to_the_exact_fields(head):
    """Least squares of the target on (1, x_t) finds the oracle's line, within 4 deviations."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    generator, n = random.Random(seed), 40000
    v0, v1 = generator.uniform(0.5, 1.5), generator.uniform(0.1, 0.6)
    cross = generator.uniform(-0.9, 0.9) * math.sqrt(v0 * v1)
    bridge = generator.choice([b for b in BRIDGES.values() if b.latent != "none"])
    time = generator.choice([0.15, 0.4, 0.62, 0.9])
    e = draws((2, n, 1), seed)
    x0 = 0.4 + math.sqrt(v0) * e[0]
    x1 = -0.3 + cross / v0 * (x0 - 0.4) + math.sqrt(v1 - cross**2 / v0) * e[1]
    drawn = bridge.draw(x0, x1, torch.full((n,), time, dtype=torch.float64), keys(n, seed))
    oracle = GaussianBridge(bridge, 0.4, v0, -0.3, v1, cross)
    wanted = getattr(oracle, head)(drawn.x_t, time)
    gap = (drawn.target(head) - wanted)[:, 0]
    z = (drawn.x_t[:, 0] - drawn.x_t.mean()) / drawn.x_t.std()
    for moment in (gap, gap * z):
        assert abs(moment.mean().item()) < 4 * moment.std().item() / math.sqrt(n)


def test_the_exact_fields_have_the_least_loss():
    bridge, n, time = TwoSided.brownian(0.8), 4000, 0.35
    x0, x1 = draws((n, 2), 1), 0.5 * draws((n, 2), 2)
    drawn = bridge.draw(x0, x1, torch.full((n,), time, dtype=torch.float64), keys(n))
    oracle = GaussianBridge(bridge, 0.0, 1.0, 0.0, 0.25, predicts="tangent")
    loss = bridge_loss(oracle(drawn.x_t, time), drawn)
    spread, gamma = oracle.cov(time).item(), bridge.gamma(time)
    assert loss.parts.keys() == {"tangent", "noise"}
    # var(z | x) = 1 - gamma^2 / S, var(I' | x) = 1.25 - L^2 / S with L = .25 t - (1 - t)
    left = {"noise": 1 - gamma**2 / spread, "tangent": 1.25 - (0.25 * time - 0.65) ** 2 / spread}
    for head, value in left.items():
        assert loss.parts[head].item() == pytest.approx(value, abs=4 * value * math.sqrt(1 / n))
    assert loss.total.item() == pytest.approx(sum(p.item() for p in loss.parts.values()))
    weighted = bridge_loss(oracle(drawn.x_t, time), drawn, {"noise": 3.0})
    assert weighted.total.item() == pytest.approx(
        (loss.parts["tangent"] + 3 * loss.parts["noise"]).item()
    )


@pytest.mark.parametrize("space", [Flat(), Centred()], ids=lambda s: type(s).__name__)
def test_padding_never_changes_a_loss(space):
    bridge, t = TwoSided.brownian(0.8), tensor([0.3, 0.6])
    x0, x1, p = (space.project(draws((2, 3, 3), seed)) for seed in (1, 2, 3))
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[:, 3:] = False
    pad = partial(torch.nn.functional.pad, pad=(0, 0, 0, 2), value=math.nan)
    alone = bridge.draw(x0, x1, t, keys(2), None, space)
    padded = bridge.draw(pad(x0), pad(x1), t, keys(2), mask, space)
    first = bridge_loss({"tangent": p, "noise": -p}, alone)
    second = bridge_loss({"tangent": pad(p), "noise": pad(-p)}, padded)
    close(first.total, second.total)
    error = (p - alone.target("tangent")).square()
    wanted = error.sum(-1).mean() if isinstance(space, Centred) else error.mean()
    close(first.parts["tangent"], wanted)
    close(bridge_loss(p, alone).total, bridge_loss({"velocity": p}, alone).total)
    answer = pad(p).requires_grad_()
    bridge_loss({"tangent": answer}, padded).total.backward()
    assert answer.grad is not None and answer.grad.isfinite().all()
    assert (answer.grad[:, 3:] == 0).all() and (answer.grad[:, :3] != 0).all()


@pytest.mark.parametrize("space", [Flat(), Centred()], ids=lambda s: type(s).__name__)
def test_the_optimal_coupling_is_the_best_of_all_permutations(space):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    x0, x1 = draws((6, 4, 3), seed), draws((6, 4, 3), seed + 1)
    x0 = x0 + 3.0 * draws((6, 1, 3), seed + 2)  # centres that a Centred space does not see

    def cost(order):
        gap = space.project(x0)[list(order)] - space.project(x1)
        return gap.square().sum().item()

    best = min(itertools.permutations(range(6)), key=cost)
    order = couple(x0, x1, "optimal", space=space)
    assert order.tolist() == list(best)
    assert couple(x0[order], x1, "optimal", space=space).tolist() == list(range(6))


def test_only_sources_of_one_mask_trade_places():
    x0, x1 = draws((8, 4, 2), 1), draws((8, 4, 2), 2)
    mask = torch.arange(4) < torch.tensor([4, 3, 4, 3, 4, 4, 3, 2])[:, None]
    for how in ("optimal", "independent"):
        order = couple(x0, x1, how, mask, keys=keys(8))
        assert sorted(order.tolist()) == list(range(8))
        assert torch.equal(mask[order], mask)
        assert order[7] == 7 and not torch.equal(order, torch.arange(8))
    members = mask.sum(1) == 3
    order = couple(x0, x1, "optimal", mask)[members]
    three = [i for i in range(8) if members[i]]
    gap = {
        p: (x0[list(p)][:, :3] - x1[members][:, :3]).square().sum().item()
        for p in itertools.permutations(three)
    }
    assert tuple(order.tolist()) == min(gap, key=gap.get)


def test_the_independent_coupling_is_a_keyed_shuffle():
    x = torch.zeros(500, 1)
    order = couple(x, x, "independent", keys=keys(500))
    assert torch.equal(order, couple(x, x, "independent", keys=keys(500)))
    assert not torch.equal(order, couple(x, x, "independent", keys=keys(500), step=1))
    assert sorted(order.tolist()) == list(range(500))
    fixed = int((order == torch.arange(500)).sum())  # Poisson of mean 1
    assert fixed < 8
    assert torch.equal(couple(x, x, "given"), torch.arange(500))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: TwoSided.linear(0.0), "two-sided interpolant: noise must be a positive number"),
        (lambda: TwoSided("curved", "root", 1.0), "unknown curve 'curved'; choose one of linear"),
        (lambda: TwoSided.linear(1.0, "cosine"), "unknown latent 'cosine'; choose one of root"),
        (lambda: TwoSided("encoding-decoding", "none", 1.0), "it needs a latent"),
        (lambda: TwoSided.linear().draw(draws((2, 1), 1), draws((2, 2), 1), tensor([0.1, 0.2]),
                                        keys(2)), r"got x0 \(2, 1\) and x1 \(2, 2\)"),
        (lambda: TwoSided.linear().draw(draws((2, 1), 1), draws((2, 1), 1), tensor([0.1, 0.2]),
                                        keys(2), space=Tokens(3)), "Tokens cannot follow Linear"),
        (lambda: couple(draws((2, 1), 1), draws((3, 1), 1)), "2 sources for 3 targets"),
        (lambda: couple(draws((2, 1), 1), draws((2, 1), 1), "independent"), "needs keys"),
        (lambda: couple(draws((2, 1), 1), draws((2, 1), 1), "sinkhorn"),
         "unknown coupling 'sinkhorn'; choose one of given, independent, optimal"),
    ],
)  # fmt: skip
def test_mistakes_are_named(act, message):
    with pytest.raises(UserError, match=message):
        act()


def test_a_loss_names_unknown_heads():
    drawn = TwoSided.linear().draw(draws((2, 1), 1), draws((2, 1), 2), tensor([0.1, 0.2]), keys(2))
    with pytest.raises(UserError, match="unknown head 'denoised'; choose one of velocity"):
        bridge_loss({"denoised": drawn.x_t}, drawn)
    with pytest.raises(UserError, match="weights for noise, which the model did not answer"):
        bridge_loss(drawn.x_t, drawn, {"noise": 1.0})
    with pytest.raises(UserError, match="unknown head 'score'"):
        drawn.target("score")


def test_pairs_of_one_point_make_the_mirror_interpolant():
    bridge, x, t = TwoSided.brownian(0.5), draws((4, 3), 1), tensor([0.0, 0.2, 0.7, 1.0])
    drawn = bridge.draw(x, x, t, keys(4))
    close(drawn.x_t, x + bridge.gamma(t)[:, None] * drawn.z)
    close(drawn.target("tangent"), torch.zeros_like(x))


def test_answers_and_keys_that_do_not_fit_are_refused():
    bridge, x = TwoSided.linear(), torch.zeros(8, 2)
    t = torch.full((8,), 0.5)
    with pytest.raises(UserError, match="8 pairs and 1 keys"):
        bridge.draw(x, x, t, Keys.for_samples(0, [3]))
    drawn = bridge.draw(x, x, t, Keys.for_samples(0, range(8)))
    with pytest.raises(UserError, match=r"shape \(8, 1\), the state has \(8, 2\)"):
        bridge_loss(torch.zeros(8, 1), drawn)
    x = torch.full((8, 2), math.nan)
    with pytest.raises(UserError, match="not finite have no distance"):
        couple(x, torch.zeros(8, 2))
