"""8-bit layers: exact integers, rows that never see each other, and a gate that does refuse."""

from __future__ import annotations

import copy
import math
import random

import pytest
import torch
from torch import nn

from driftworks.core import checkpoint
from driftworks.core import quantise as module
from driftworks.core.ctmc import Masking
from driftworks.core.even import silu
from driftworks.core.guide import cfg
from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.quantise import (
    Int8Linear,
    gate,
    int8_matmul,
    quantise,
    restore,
    stored_bytes,
)
from driftworks.core.sample import sample
from driftworks.core.spaces import Centred, Tokens
from driftworks.errors import UserError


@pytest.fixture
def generator():
    seed = random.randrange(1 << 30)
    print("seed", seed)
    return torch.Generator().manual_seed(seed)


def normal(generator, *shape):
    return torch.randn(shape, generator=generator)


def layer(generator, inputs, outputs, bias=True):
    with torch.random.fork_rng(devices=[]):
        linear = nn.Linear(inputs, outputs, bias)
    with torch.no_grad():
        for p in linear.parameters():
            p.copy_(normal(generator, *p.shape) / math.sqrt(inputs))
    return linear


SIZES = [(1, 1, 1), (3, 5, 7), (17, 64, 64), (200, 200, 33), (64, 129, 512), (5, 1500, 8)]


@pytest.mark.parametrize("rows, inputs, outputs", SIZES)
def test_the_integer_product_is_exact_and_has_the_bits_of_its_stand_in(
    rows, inputs, outputs, generator, monkeypatch
):
    a, b = (
        torch.randint(-127, 128, (n, inputs), generator=generator).to(torch.int8)
        for n in (rows, outputs)
    )
    a[0], b[0] = 127, -127  # the largest sum there is
    wanted = a.long() @ b.long().T
    assert torch.equal(int8_matmul(a, b).long(), wanted)
    linear = layer(generator, inputs, outputs)
    x = normal(generator, rows, inputs)
    fast = Int8Linear(linear.weight, linear.bias)(x)
    monkeypatch.setattr(module, "_exact_on_cpu", lambda: False)
    assert int8_matmul(a, b).is_floating_point()
    assert torch.equal(int8_matmul(a, b).long(), wanted)
    assert torch.equal(Int8Linear(linear.weight, linear.bias)(x), fast)


@pytest.mark.parametrize("rows, inputs, outputs", SIZES)
def test_a_layer_is_its_formula(rows, inputs, outputs, generator):
    linear = layer(generator, inputs, outputs, bias=rows % 2 == 1)
    x = normal(generator, rows, inputs) * torch.logspace(-6, 6, rows).unsqueeze(1)
    s = x.double().abs().amax(1, keepdim=True) / 127
    w = linear.weight.detach().double()
    scale = w.abs().amax(1) / 127
    # the layer forms x / s in single precision; values on the edge of a step may go either way
    steps = (x.double() / s)
    near = ((steps - steps.floor() - 0.5).abs() < 1e-4)
    low, high = (steps.round() - near.double()), (steps.round() + near.double())
    q = (w / scale.unsqueeze(1)).round()
    bias = 0.0 if linear.bias is None else linear.bias.detach().double()
    middle = steps.round() @ q.T * s * scale + bias
    slack = ((high - low) @ q.abs().T) * s * scale
    found = Int8Linear(linear.weight, linear.bias)(x).double()
    bound = slack + 1e-5 * (middle.abs() + (x.abs().double() @ w.abs().T))
    assert ((found - middle).abs() <= bound + 1e-30).all()


def test_rounding_costs_about_a_hundredth_of_the_answer(generator):
    """Errors of a row: uniform of variance s^2/12 an entry, from activations and from weights."""
    linear, x = layer(generator, 256, 256, bias=False), normal(generator, 500, 256)
    with torch.no_grad():
        exact = linear(x)
        error = Int8Linear(linear.weight)(x) - exact
    w = linear.weight.detach()
    steps_x = x.abs().amax(1) / 127
    steps_w = w.abs().amax(1) / 127
    variance = (
        steps_x.square().unsqueeze(1) * w.square().sum(1)
        + steps_w.square() * x.square().sum(1).unsqueeze(1)
    ) / 12
    assert error.square().mean().item() == pytest.approx(variance.mean().item(), rel=0.05)
    assert 0.005 < (error.norm() / exact.norm()).item() < 0.015


def test_a_row_is_the_same_to_the_last_bit_whatever_stands_beside_it(generator):
    for inputs, outputs in ((64, 64), (37, 131), (320, 136)):
        quantised = Int8Linear(*layer(generator, inputs, outputs).parameters())
        x = normal(generator, 3000, inputs)
        x[1] *= 1e6  # an outlier coarsens its own row only
        whole = quantised(x)
        order = torch.randperm(3000, generator=generator)
        assert torch.equal(quantised(x[order]), whole[order])
        for some in (slice(0, 1), slice(5, 6), slice(2, 9), slice(990, 1777), slice(0, 3000, 7)):
            assert torch.equal(quantised(x[some]), whole[some])
        stacked = quantised(x.view(3, 10, 100, inputs))
        assert torch.equal(stacked, whole.view(3, 10, 100, outputs))
        assert quantised(x[:0]).shape == (0, outputs)


def test_types_zeros_and_failures_pass_through(generator):
    quantised = Int8Linear(*layer(generator, 16, 8).parameters())
    x = normal(generator, 6, 16)
    x[0] = 0.0
    x[1, 3], x[2, 3] = math.nan, math.inf
    x[3] *= 1e-38
    y = quantised(x)
    assert torch.equal(y[0], quantised.bias) and torch.equal(y[3], quantised.bias)
    assert not y[1].isfinite().any() and not y[2].isfinite().any()
    assert y[4:].isfinite().all()
    for dtype in (torch.bfloat16, torch.float64):
        assert quantised(x.to(dtype)).dtype == dtype
    torch.testing.assert_close(quantised(x[4:].double()).float(), y[4:], rtol=0, atol=0)
    dead = Int8Linear(torch.zeros(3, 4), torch.ones(3))
    assert torch.equal(dead(normal(generator, 2, 4)), torch.ones(2, 3))
    with pytest.raises(UserError, match="no derivative"):
        quantised(x.requires_grad_())
    with torch.no_grad():
        quantised(x)
    with pytest.raises(UserError, match="not finite"):
        Int8Linear(torch.full((2, 2), math.nan))


PROCESS = Process({
    "pos": Part(Centred(), Path.linear(), "velocity"),
    "kind": Part(Tokens(3), Masking()),
})
SHAPE = {"pos": (5, 3), "kind": (5,)}


class Net(nn.Module):
    """A smooth made-up denoiser of clouds with types: no molecule, but of their kind."""

    def __init__(self, generator, width=128):
        super().__init__()
        self.enter = layer(generator, 3 + 4 + 1, width)
        self.inner = nn.ModuleList([layer(generator, width, width) for _ in range(2)])
        self.tied = layer(generator, width, width)
        self.leave = layer(generator, width, 6)

    def forward(self, x, t, mask=None, cond=None, previous=None):
        kind = nn.functional.one_hot(x["kind"], 4).to(x["pos"].dtype)
        clock = t.view(-1, 1, 1).expand(*kind.shape[:2], 1).to(kind.dtype)
        h = self.enter(torch.cat((x["pos"], kind, clock), -1))
        for one in self.inner:
            h = h + one(silu(h))
        if mask is not None:
            keep = mask.unsqueeze(-1).to(h.dtype)
            h = h + (h * keep).sum(1, keepdim=True) / keep.sum(1, keepdim=True)
        out = self.leave(silu(self.tied(h)))
        return {"pos": out[..., :3], "kind": out[..., 3:]}


def masked(count):
    return torch.arange(5) < (2 + torch.arange(count) % 4).unsqueeze(1)


def test_large_plain_layers_are_replaced_and_the_model_stays(generator):
    net = Net(generator)
    before = copy.deepcopy(net.state_dict())
    small = quantise(net, keep=("inner.1",))
    kinds = {name: type(m).__name__ for name, m in small.named_modules() if not list(m.children())}
    assert kinds == {
        "enter": "Linear", "inner.0": "Int8Linear", "inner.1": "Linear", "tied": "Int8Linear",
        "leave": "Linear",
    }
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert small.tied.training and not quantise(net.eval()).tied.training
    saved = 2 * (128 * 128 * 3 - 128 * 4)  # three bytes a weight less a scale a row
    assert stored_bytes(net) - stored_bytes(small) == saved
    assert type(quantise(layer(generator, 128, 128))) is Int8Linear
    hooked = Net(generator)
    hooked.tied.register_forward_hook(lambda *a: None)
    assert type(quantise(hooked).tied) is nn.Linear
    for wrong in (lambda: quantise(net, minimum=10**6), lambda: quantise(net, keep=("*",))):
        with pytest.raises(UserError, match="largest has 16384"):
            wrong()
    with pytest.raises(UserError, match="nn.Module"):
        quantise(lambda x: x)


def test_a_quantised_model_comes_back_from_its_checkpoint_bit_by_bit(generator, tmp_path):
    net = Net(generator)
    small = quantise(net)
    checkpoint.save(tmp_path, small.state_dict(), {"kind": "test"})
    tensors, _ = checkpoint.load(tmp_path)
    assert tensors["tied.weight_int8"].dtype == torch.int8
    back = restore(Net(torch.Generator().manual_seed(0)), tensors)
    keys = Keys.for_samples(0, range(6))
    first, second = (
        sample(m, PROCESS, keys, SHAPE, masked(6), steps=5).x for m in (small, back)
    )
    for name in first:
        assert torch.equal(first[name], second[name])
    with pytest.raises(UserError, match="do not fit"):
        restore(Net(generator, 64), tensors)
    with pytest.raises(UserError, match="no linear layer 'other'"):
        restore(net, {"other.weight_int8": torch.zeros(1)})


def test_a_sample_of_a_quantised_model_does_not_depend_on_its_batch(generator):
    small, keys = quantise(Net(generator)), Keys.for_samples(3, range(64))
    mask = masked(64)
    whole = sample(small, PROCESS, keys, SHAPE, mask, solver="ddpm", steps=8).x
    for some in (slice(17, 18), slice(3, 40, 5)):
        alone = sample(small, PROCESS, keys[some], SHAPE, mask[some], solver="ddpm", steps=8).x
        torch.testing.assert_close(alone["pos"], whole["pos"][some], rtol=0, atol=1e-5)
        assert torch.equal(alone["kind"], whole["kind"][some])


def test_the_gate_passes_a_faithful_model_and_measures_what_a_loop_measures(generator):
    net = Net(generator)
    keys, mask = Keys.for_samples(3, range(24)), masked(24)
    report = gate(net, quantise(net), PROCESS, keys, SHAPE, mask, steps=6, solver="ddpm")
    assert report.passed, report
    report.require()
    assert report.bytes == (stored_bytes(net), stored_bytes(quantise(net)))
    assert "passed" in str(report)
    # a shift of known size: velocity + v at time t is denoised + (1 - t) v
    nudge = torch.tensor([0.03, 0.0, -0.01])
    away = nudge * (torch.arange(5) % 2 * 2 - 1).unsqueeze(1)

    def shifted(x, t, mask=None, **rest):
        out = net(x, t, mask)
        return {"pos": out["pos"] + away, "kind": out["kind"]}

    report = gate(net, shifted, PROCESS, keys, SHAPE, mask, steps=6, tolerance=1.0, moved=1.0)
    final = sample(net, PROCESS, keys, SHAPE, mask, steps=6).x["pos"]
    inside = Centred().project(away.expand(24, -1, -1), mask)
    count = 3 * mask.sum(1)
    wanted = (
        (inside.square().sum((1, 2)) / count).sqrt() / (final.square().sum((1, 2)) / count).sqrt()
    ).mean().item()
    levels = [level for level in report.levels if level.part == "pos"]
    assert [level.t for level in levels] == pytest.approx([k / 6 for k in range(6)])
    for level in levels:
        assert level.error == pytest.approx((1 - level.t) * wanted, rel=1e-4)
    assert all(v.error < 1e-6 for v in report.levels if v.part == "kind" and v.t == 0.0)


def test_the_gate_refuses_bad_predictions_moved_samples_and_lost_quality(generator):
    net = Net(generator)
    keys, mask = Keys.for_samples(3, range(32)), masked(32)
    broken = quantise(net)
    broken.tied.weight_int8.bitwise_and_(-32)  # three bits left
    report = gate(net, broken, PROCESS, keys, SHAPE, mask, steps=5)
    assert not report.passed and "FAILED" in str(report)
    assert any("predictions of pos err" in reason for reason in report.reasons)
    with pytest.raises(UserError, match="fails its gate: predictions of"):
        report.require()
    # tokens: other logits, the same positions
    def confused(x, t, mask=None, **rest):
        out = net(x, t, mask)
        return out | {"kind": out["kind"].flip(-1)}

    report = gate(net, confused, PROCESS, keys, SHAPE, mask, steps=5, tolerance=1.0)
    assert any("samples of kind moved" in reason for reason in report.reasons)
    report = gate(net, confused, PROCESS, keys, SHAPE, mask, steps=5, tolerance=1.0, moved=None)
    assert report.passed

    def share_of_first(state, mask):
        return ((state["kind"] == 0) & mask).sum(1) / mask.sum(1)

    def never_first(x, t, mask=None, **rest):
        out = net(x, t, mask)
        return out | {"kind": out["kind"] - 50.0 * torch.tensor([1.0, 0.0, 0.0])}

    settings = dict(steps=5, tolerance=1.0, moved=None, quality=share_of_first)
    report = gate(net, never_first, PROCESS, keys, SHAPE, mask, **settings)
    assert any("quality may have dropped" in reason for reason in report.reasons)
    assert report.quality[0] > report.quality[1] == 0.0 and "quality" in str(report)
    same = gate(net, net, PROCESS, keys, SHAPE, mask, **settings)
    assert same.passed and same.quality[2] == 0.0

    def lost(x, t, mask=None, **rest):
        out = net(x, t, mask)
        return out | {"pos": out["pos"] * math.nan}

    with pytest.warns(RuntimeWarning, match="stopped being finite"):
        report = gate(net, lost, PROCESS, keys, SHAPE, mask, steps=5)
    assert "samples stopped being finite" in report.reasons and len(report.reasons) >= 2


def test_the_gate_judges_a_guided_model_as_it_is_used(generator):
    net = Net(generator)
    report = gate(
        net, quantise(net), PROCESS, Keys.for_samples(1, range(8)), SHAPE, masked(8), steps=4,
        cond=torch.zeros(8), guide=lambda model: cfg(model, 2.0),
    )
    assert report.passed
    assert len({level.t for level in report.levels}) == 4 and len(report.levels) == 2 * 2 * 4
