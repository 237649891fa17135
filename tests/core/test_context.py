"""Context prediction compares sets, whatever their order, size and padding."""

from __future__ import annotations

import math
import random

import pytest
import torch

from driftworks.core.context import (
    ContextHead,
    Neighbours,
    context_loss,
    nearest,
    neighbours_of,
)
from driftworks.core.features import listening
from driftworks.core.keys import Keys
from driftworks.errors import UserError

MASK = torch.arange(6) < torch.tensor([6, 4, 1]).unsqueeze(1)


@pytest.fixture
def generator():
    seed = random.randrange(1 << 30)
    print("seed", seed)
    return torch.Generator().manual_seed(seed)


def normal(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_nearest_points_are_found_as_by_a_loop(generator):
    points = normal(generator, 3, 6, 2)
    found = nearest(points, 3, MASK)
    for b in range(3):
        for i in range(6):
            others = [j for j in range(6) if j != i and MASK[b, i] and MASK[b, j]]
            others.sort(key=lambda j, b=b, i=i: (points[b, i] - points[b, j]).norm().item())
            kept = found.index[b, i][found.present[b, i]].tolist()
            assert kept == others[:3]


def test_neighbours_of_a_graph_are_its_edges(generator):
    adjacency = normal(generator, 3, 6, 6) > 0.3
    found = neighbours_of(adjacency, MASK)
    for b in range(3):
        for i in range(6):
            wanted = [j for j in range(6) if adjacency[b, i, j] and MASK[b, i] and MASK[b, j]]
            assert found.index[b, i][found.present[b, i]].tolist() == wanted
    empty = neighbours_of(torch.zeros(2, 3, 3, dtype=torch.bool))
    assert not empty.present.any()


def by_hand(predicted, values, neighbours, keys, step, directions):
    """The loss by loops: quantile functions sampled at the middle of every common step."""
    channels = predicted.shape[-1]
    lines = keys.normal("context", step, (directions, channels), torch.float64)
    lines = lines / lines.norm(dim=-1, keepdim=True)
    total, points = 0.0, 0
    for b in range(predicted.shape[0]):
        for i in range(predicted.shape[1]):
            chosen = neighbours.index[b, i][neighbours.present[b, i]]
            if not len(chosen):
                continue
            target = values[b, chosen] if values.ndim == 3 else values[b, i, chosen]
            copies = math.lcm(len(chosen), predicted.shape[2])
            p = predicted[b, i].repeat_interleave(copies // predicted.shape[2], 0)
            q = target.repeat_interleave(copies // len(chosen), 0)
            for line in lines[b]:
                gap = (p @ line).sort().values - (q @ line).sort().values
                total += channels * gap.square().mean().item() / directions
            points += 1
    return total / points


@pytest.mark.parametrize("pairs", [False, True], ids=["values of points", "values of pairs"])
def test_the_loss_is_that_of_a_loop(pairs, generator):
    keys = Keys.for_samples(3, [8, 5, 9])
    points, predicted = normal(generator, 3, 6, 2), normal(generator, 3, 6, 4, 3)
    values = normal(generator, 3, 6, 6, 3) if pairs else normal(generator, 3, 6, 3)
    neighbours = nearest(points, 5, MASK)
    assert neighbours.present.sum(-1).unique().tolist() == [0, 3, 5]
    found = context_loss(predicted, values, neighbours, keys, 2, 7).item()
    assert found == pytest.approx(by_hand(predicted, values, neighbours, keys, 2, 7), rel=1e-10)


def test_the_order_of_slots_and_of_neighbours_and_padding_do_not_matter(generator):
    keys = Keys.for_samples(3, range(3))
    points, predicted = normal(generator, 3, 6, 2), normal(generator, 3, 6, 4, 3)
    values = normal(generator, 3, 6, 3)
    neighbours = nearest(points, 3, MASK)
    loss = context_loss(predicted, values, neighbours, keys)
    order = torch.randperm(3, generator=generator)
    shuffled = Neighbours(neighbours.index[..., order], neighbours.present[..., order])
    torch.testing.assert_close(context_loss(predicted[:, :, [2, 0, 3, 1]], values, shuffled, keys),
                               loss)
    wide_mask = torch.cat((MASK, torch.zeros(3, 2, dtype=torch.bool)), 1)
    wide = nearest(torch.cat((points, points.new_zeros(3, 2, 2)), 1), 3, wide_mask)
    padded = context_loss(
        torch.cat((predicted, predicted.new_full((3, 2, 4, 3), 1e6)), 1),
        torch.cat((values, values.new_full((3, 2, 3), 1e6)), 1), wide, keys,
    )
    torch.testing.assert_close(padded, loss)


def test_it_vanishes_for_the_right_set_and_is_the_square_of_a_shift(generator):
    keys = Keys.for_samples(0, range(2000))
    values = normal(generator, 1, 4, 3).expand(2000, -1, -1)
    everyone = neighbours_of(~torch.eye(4, dtype=torch.bool).expand(2000, 4, 4))
    truth = values[0][everyone.index[0]].expand(2000, -1, -1, -1)
    assert context_loss(truth[:, :, [1, 2, 0]], values, everyone, keys).item() < 1e-25
    shift = torch.tensor([0.3, -1.0, 0.2], dtype=torch.float64)
    found = context_loss(truth + shift, values, everyone, keys).item()
    assert found == pytest.approx(shift.square().sum().item(), rel=0.03)
    # a spread that is gone cannot hide behind a right mean
    flat = truth.mean(2, keepdim=True).expand_as(truth)
    assert context_loss(flat, values, everyone, keys).item() > 0.01


def test_a_network_learns_its_context_through_a_head_that_sampling_never_asks(generator):
    points = normal(generator, 8, 6, 3)
    mask = torch.arange(6) < torch.tensor([6, 5, 6, 4, 6, 6, 3, 6]).unsqueeze(1)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(1)
        body = torch.nn.Sequential(
            torch.nn.Linear(3, 32), torch.nn.SiLU(), torch.nn.Linear(32, 3)
        ).double()
        head = ContextHead(32, 3, 1).double()
    neighbours = nearest(points, 3, mask)
    distances = torch.cdist(points, points).unsqueeze(-1)
    optimiser = torch.optim.Adam([*body.parameters(), *head.parameters()], 0.01)
    keys, losses = Keys.for_samples(0, range(8)), []
    for step in range(80):
        with listening(body, "1") as heard:
            body(points)
        loss = context_loss(head(heard[0]), distances, neighbours, keys, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert (body[0].weight.grad != 0).any() and (body[2].weight.grad is None)
    assert losses[-1] < 0.2 * losses[0]


def test_context_refuses_what_does_not_fit(generator):
    keys, points = Keys.for_samples(0, range(3)), normal(generator, 3, 6, 2)
    with pytest.raises(UserError, match="values must be"):
        context_loss(normal(generator, 3, 6, 2, 4), points, nearest(points, 2), keys)
    with pytest.raises(UserError, match="at least 1"):
        nearest(points, 0)
    with pytest.raises(UserError, match="slots"):
        ContextHead(4, 0, 2)
