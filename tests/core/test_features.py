"""Representations are the layer's own output, pooled over what exists, the same in any batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from driftworks.core.features import features, listening
from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.spaces import Centred
from driftworks.errors import UserError

PROCESS = Process(Part(Centred(), Path.linear()))
COUNTS = torch.tensor([5, 3, 4, 2])
LEVELS = (0.2, 0.6, 0.9)


class Net(nn.Module):
    """Node, pair and sample features of a cloud; answers with zeros."""

    def __init__(self):
        super().__init__()
        self.nodes, self.pairs, self.whole = Nodes(), Pairs(), Whole()

    def forward(self, x, t, mask=None, cond=None, previous=None):
        h = self.nodes(x, t, mask)
        self.pairs(h[0])
        self.whole(h[0], mask)
        return torch.zeros_like(x)


class Nodes(nn.Module):
    def forward(self, x, t, mask):
        h = torch.cat((x.square(), t.view(-1, 1, 1).expand(*x.shape[:2], 1).to(x.dtype)), -1)
        return h + 5.0 * ~mask.unsqueeze(-1), torch.stack((x, -x), -1)  # and vectors


class Pairs(nn.Module):
    def forward(self, h):
        return h.unsqueeze(2) * h.unsqueeze(1)


class Whole(nn.Module):
    def forward(self, h, mask):
        return (h * mask.unsqueeze(-1)).amax(1)


def cloud(size=5):
    mask = torch.arange(size) < COUNTS.unsqueeze(1)
    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = nn.functional.pad(x, (0, 0, 0, size - 5))
    return Centred().project(x, mask), mask


def test_pooled_features_are_means_over_what_exists():
    x, mask = cloud()
    keys, model = Keys.for_samples(1, range(4)), Net()
    nodes = features(model, PROCESS, x, keys, LEVELS, "nodes", mask, output=0)
    pairs = features(model, PROCESS, x, keys, LEVELS, "pairs", mask)
    whole = features(model, PROCESS, x, keys, LEVELS, "whole", mask)
    assert nodes.shape == pairs.shape == whole.shape == (4, 3, 4)
    for level, t in enumerate(LEVELS):
        times = torch.full((4,), t, dtype=torch.float64)
        x_t = PROCESS.bridge(x, times, keys, mask, step=level).x_t
        for b, n in enumerate(COUNTS.tolist()):
            h = torch.cat((x_t[b, :n].square(), torch.full((n, 1), t, dtype=x.dtype)), -1)
            torch.testing.assert_close(nodes[b, level], h.mean(0))
            torch.testing.assert_close(whole[b, level], h.amax(0))
            product = h.unsqueeze(1) * h.unsqueeze(0)
            off = ~torch.eye(n, dtype=torch.bool)
            torch.testing.assert_close(pairs[b, level], product[off].mean(0))


def test_features_do_not_depend_on_batch_or_padding():
    x, mask = cloud()
    keys, model = Keys.for_samples(1, range(4)), Net()
    whole = features(model, PROCESS, x, keys, LEVELS, "nodes", mask, output=0)
    alone = features(model, PROCESS, x[2:3], keys[2:3], LEVELS, "nodes", mask[2:3], output=0)
    torch.testing.assert_close(alone, whole[2:3], rtol=1e-12, atol=1e-12)
    wide, wide_mask = cloud(8)
    padded = features(model, PROCESS, wide, keys, LEVELS, "pairs", wide_mask)
    narrow = features(model, PROCESS, x, keys, LEVELS, "pairs", mask)
    torch.testing.assert_close(padded, narrow, rtol=1e-12, atol=1e-12)


def test_listening_keeps_gradients_and_leaves_no_hook_behind():
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(3, 2)
    model = nn.Sequential(layer, nn.Tanh())
    with listening(model, "0") as heard:
        model(torch.ones(4, 3))
        model(torch.zeros(1, 3))
    assert [tuple(h.shape) for h in heard] == [(4, 2), (1, 2)]
    heard[0].sum().backward()
    assert (layer.weight.grad == 4).all()
    with pytest.raises(RuntimeError), listening(model, "0"):
        raise RuntimeError
    assert not layer._forward_hooks
    model(torch.ones(1, 3))
    assert len(heard) == 2


def test_features_refuse_what_is_not_there():
    x, mask = cloud()
    keys, model = Keys.for_samples(1, range(4)), Net()
    for layer, output, message in (
        ("knots", None, "no submodule 'knots'; it has nodes, pairs"),
        ("", None, "no submodule"),
        ("nodes", None, "returns a tuple; say with output"),
        ("nodes", 1, r"returns \(4, 5, 3, 2\)"),
    ):
        with pytest.raises(UserError, match=message):
            features(model, PROCESS, x, keys, LEVELS, layer, mask, output=output)
    with pytest.raises(UserError, match="inside"):
        features(model, PROCESS, x, keys, (0.5, 1.0), "pairs", mask)
    with pytest.raises(UserError, match="nn.Module"):
        features(lambda *a, **k: x, PROCESS, x, keys, LEVELS, "pairs", mask)
    model.idle = nn.Identity()
    with pytest.raises(UserError, match="takes no part"):
        features(model, PROCESS, x, keys, LEVELS, "idle", mask)
