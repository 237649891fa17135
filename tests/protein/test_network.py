from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from driftworks.core.guide import cfg
from driftworks.core.keys import Keys
from driftworks.protein.network import JumpNet, NetConfig, build, build_jumping, chain_size
from driftworks.protein.process import NULL, random_rotations

SMALL = {"width": 32, "pair_width": 16, "heads": 4, "layers": 2, "rounds": 2, "radial": 8}


def stirred(net, scale=0.05):
    """Random weights everywhere, so that nothing is invisible behind a zero."""
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))
    return net.double().eval().requires_grad_(False)


def chains(count, length, seed=0):
    x = torch.randn(count, length, 3, generator=torch.Generator().manual_seed(seed)).double()
    return x - x.mean(1, keepdim=True)


@pytest.fixture(scope="module")
def net():
    return stirred(build(NetConfig(**SMALL, distogram=8)))


TIMES = torch.tensor([0.05, 0.5, 0.97], dtype=torch.float64)


@pytest.mark.parametrize("previous", [False, True])
def test_the_equivariant_network_turns_with_the_chain_and_sees_its_hand(net, previous):
    x, y = chains(3, 20), chains(3, 20, 1) * 0.6 if previous else None
    known = torch.zeros(3, 20, dtype=torch.bool)
    known[:, 4:9] = True
    motif = chains(3, 20, 2)
    turn = random_rotations(Keys.for_samples(0, range(3))).double()
    turn = torch.linalg.qr(turn)[0]  # single-precision rotations are not orthogonal enough
    turn = turn * torch.linalg.det(turn).sign().view(-1, 1, 1)

    def ask(change):
        cond = {"known": known, "motif": change(motif)}
        return net(change(x), TIMES, None, cond, None if y is None else change(y))

    assert torch.allclose(ask(lambda z: z @ turn), ask(lambda z: z) @ turn, atol=1e-9)
    assert (ask(lambda z: -z) + ask(lambda z: z)).abs().max() > 0.05


def test_the_plain_network_is_not_equivariant():
    plain = stirred(build(NetConfig(**SMALL, equivariant=False)))
    x, turn = chains(3, 20), random_rotations(Keys.for_samples(0, range(3))).double()
    assert (plain(x @ turn, TIMES) - plain(x, TIMES) @ turn).abs().max() > 0.05


def test_padding_never_changes_a_sample(net):
    x, y = chains(3, 20), chains(3, 20, 1)
    wide = torch.full((3, 29, 3), 5.0, dtype=torch.float64)
    shown = wide.clone()
    wide[:, :20], shown[:, :20] = x, y
    wide[:, 20:] = 0
    mask = (torch.arange(29) < 20).expand(3, -1)
    index = torch.arange(29).expand(3, -1).clone()
    index[:, 20:] = 0
    alone = net(x, TIMES, None, None, y)
    beside = net(wide, TIMES, mask, {"index": index}, shown)
    assert torch.allclose(beside[:, :20], alone, atol=1e-11)
    assert beside[:, 20:].abs().max() == 0


def test_a_sample_does_not_depend_on_its_neighbours_in_the_batch(net):
    x = chains(3, 20)
    together = net(x, TIMES)
    for k in range(3):
        assert torch.allclose(net(x[[k]], TIMES[[k]]), together[[k]], atol=1e-11)


def test_answers_are_centred_and_each_input_counts(net):
    x, y = chains(3, 20), chains(3, 20, 1)
    base = net(x, TIMES)
    assert base.sum(1).abs().max() < 1e-10
    index = torch.arange(20).expand(3, -1)
    assert torch.equal(net(x, TIMES, None, {"index": index + 31}), base)
    broken = index + 4 * (index > 9)
    known = torch.zeros(3, 20, dtype=torch.bool)
    known[:, 3:8] = True
    for cond, previous in (
        ({"index": broken}, None),
        ({"label": torch.tensor([0, 1, 2])}, None),
        ({}, y),
        ({"known": known, "motif": y}, None),
    ):
        assert (net(x, TIMES, None, cond, previous) - base).abs().max() > 1e-3


def test_a_missing_label_is_the_null_label_and_guidance_uses_it(net):
    x = chains(3, 20)
    null = {"label": torch.full((3,), NULL)}
    assert torch.equal(net(x, TIMES), net(x, TIMES, None, null))
    cond = {"label": torch.tensor([0, 1, 3])}
    strong, told, untold = (
        cfg(net, 2.5)(x, TIMES, cond=cond),
        net(x, TIMES, None, cond),
        net(x, TIMES),
    )
    assert torch.allclose(strong, untold + 2.5 * (told - untold), atol=1e-10)


def test_every_weight_has_a_gradient_and_so_does_the_input():
    net = build(NetConfig(**SMALL, distogram=8))
    stirred(net)
    net.requires_grad_(True)
    x = chains(3, 20).requires_grad_(True)
    known = torch.zeros(3, 20, dtype=torch.bool)
    known[:, 4:9] = True
    for previous, cond in (
        (None, {}),
        (chains(3, 20, 1), {"known": known, "motif": chains(3, 20)}),
    ):
        answer = net.answer(x, TIMES, None, cond, previous)
        loss = sum(d.square().sum() for d in answer.denoised) + answer.distogram.square().sum()
        loss.backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0


def test_a_fresh_network_answers_like_the_gaussian_of_a_chains_size():
    net = build(NetConfig(**SMALL)).double()
    with torch.no_grad():
        for part in net.rounds:
            part.leave.weight.zero_()
            part.leave.bias.zero_()
    x = chains(3, 20)
    size2 = chain_size(torch.tensor([20.0])).double().item() ** 2
    t = TIMES.view(-1, 1, 1)
    want = t * size2 / (t**2 * size2 + (1 - t) ** 2) * x  # E[x_1 | x_t] for N(0, size^2)
    assert torch.allclose(net(x, TIMES), want, atol=1e-6)


def test_a_jumping_network_starts_as_its_teachers_denoiser_and_then_sees_the_goal():
    teacher = stirred(build(NetConfig(**SMALL)))
    jumper = build_jumping(NetConfig(**SMALL)).double()
    missing = jumper.load_state_dict(teacher.state_dict(), strict=False).missing_keys
    assert {name.split(".")[0] for name in missing} == {"goal"}
    x, far = chains(3, 20), torch.tensor([0.6, 0.9, 1.0], dtype=torch.float64)
    for s in (TIMES, far):
        assert torch.allclose(jumper(x, TIMES, s), teacher(x, TIMES), atol=1e-12)
    stirred(jumper)
    assert isinstance(jumper, JumpNet)
    assert (jumper(x, TIMES, far) - jumper(x, TIMES, TIMES)).abs().max() > 1e-3


@pytest.mark.parametrize("length", [2, 3, 5])
def test_short_chains_give_finite_answers(net, length):
    assert net(chains(3, length), TIMES).isfinite().all()


def test_straight_chains_have_no_frame_and_still_an_answer_and_a_gradient(net):
    x = torch.linspace(-1, 1, 12).double().view(1, -1, 1) * torch.tensor([1.0, 0, 0]).double()
    x.requires_grad_(True)
    answer = net(x, TIMES[1:2])
    answer.square().sum().backward()
    assert answer.isfinite().all() and x.grad.isfinite().all()


def test_bfloat16_stays_close_to_single_precision():
    net = build(NetConfig(**SMALL))
    x, t = chains(3, 20).float(), TIMES.float()
    with torch.no_grad():
        wide = net(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            low = net(x, t)
    assert (wide - low).abs().max() < 0.05


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValidationError, match="heads"):
        NetConfig(width=100, heads=8)
    with pytest.raises(ValidationError, match="rounds"):
        NetConfig(layers=5, rounds=2)
