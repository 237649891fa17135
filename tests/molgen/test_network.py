"""The network: what must hold whatever its weights are."""

from __future__ import annotations

import pytest
import torch

from driftworks.molgen.network import MAX_ATOMS, NetConfig, build

SMALL = NetConfig(width=32, pair_width=16, heads=4, layers=3, radial=8)


def perturbed(net: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """Weights away from the zero-initialised residual branches, where everything is trivial."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return net.eval()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.fixture
def net(generator: torch.Generator) -> torch.nn.Module:
    return perturbed(build(SMALL).double(), generator)


def state(generator: torch.Generator, counts: list[int], size: int) -> tuple[dict, torch.Tensor]:
    b = len(counts)
    mask = torch.arange(size) < torch.tensor(counts).unsqueeze(1)
    pos = torch.randn(b, size, 3, generator=generator, dtype=torch.float64) * mask.unsqueeze(-1)
    pos = pos - pos.sum(1, keepdim=True) / mask.sum(1).view(-1, 1, 1)
    bond = torch.randint(0, 5, (b, size, size), generator=generator).triu(1)
    pairs = mask.unsqueeze(1) & mask.unsqueeze(2)
    return {
        "pos": pos * mask.unsqueeze(-1),
        "atom": torch.randint(0, 6, (b, size), generator=generator) * mask,
        "charge": torch.randint(0, 4, (b, size), generator=generator) * mask,
        "bond": (bond + bond.transpose(1, 2)) * pairs,
    }, mask


def rotate(x: dict, r: torch.Tensor) -> dict:
    return x | {"pos": x["pos"] @ r.to(x["pos"].dtype)}


def test_rotations_turn_positions_and_leave_logits_by_e3nn_irreps(net, generator):
    from e3nn import o3

    x, mask = state(generator, [7, 9], 9)
    previous, _ = state(generator, [7, 9], 9)
    previous = {"pos": previous["pos"]} | {
        k: torch.randn(*x[k].shape, c, generator=generator, dtype=torch.float64)
        for k, c in (("atom", 5), ("charge", 3), ("bond", 4))
    }
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    cond = torch.full((2, 6), torch.nan, dtype=torch.float64)
    cond[0, 1] = 0.7
    # e3nn orders a vector (y, z, x); its matrix in our order is a conjugate by that permutation.
    order = [1, 2, 0]
    rotation = o3.matrix_x(torch.tensor(0.7)) @ o3.matrix_y(torch.tensor(2.1))
    wigner = o3.Irreps("1o").D_from_matrix(rotation)
    back = [order.index(k) for k in range(3)]
    r = rotation.double()
    assert torch.allclose(wigner.double(), r, atol=1e-6) or torch.allclose(
        wigner.double()[back][:, back], r, atol=1e-6
    )
    one = net(x, t, mask, cond, previous)
    two = net(rotate(x, r), t, mask, cond, rotate(previous, r))
    assert torch.allclose(one["pos"] @ r, two["pos"], atol=1e-6)
    for name in ("atom", "charge", "bond"):
        assert torch.allclose(one[name], two[name], atol=1e-6)


def test_rotations_are_exact_to_float64(net, generator):
    x, mask = state(generator, [8], 8)
    t = torch.tensor([0.5], dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    q = q * torch.linalg.det(q)
    one, two = net(x, t, mask), net(rotate(x, q), t, mask)
    assert (one["pos"] @ q - two["pos"]).abs().max() < 1e-12
    assert (one["bond"] - two["bond"]).abs().max() < 1e-12


def test_a_mirror_image_is_told_apart(net, generator):
    x, mask = state(generator, [8], 8)
    t = torch.tensor([0.5], dtype=torch.float64)
    one, two = net(x, t, mask), net(x | {"pos": -x["pos"]}, t, mask)
    assert (one["atom"] - two["atom"]).abs().max() > 1e-4


def test_atom_order_only_reorders_the_answer(net, generator):
    x, mask = state(generator, [9], 9)
    t = torch.tensor([0.2], dtype=torch.float64)
    p = torch.randperm(9, generator=generator)
    shuffled = {k: v[:, p] for k, v in x.items()}
    shuffled["bond"] = shuffled["bond"][:, :, p]
    one, two = net(x, t, mask), net(shuffled, t, mask)
    assert torch.allclose(one["pos"][:, p], two["pos"], atol=1e-12)
    assert torch.allclose(one["bond"][:, p][:, :, p], two["bond"], atol=1e-5)


def test_padding_never_changes_an_answer(net, generator):
    x, mask = state(generator, [6], 6)
    t = torch.tensor([0.4], dtype=torch.float64)
    wide = {k: torch.nn.functional.pad(v, (0, 0, 0, 3) if k == "pos" else (0, 3)) for k, v in
            x.items()}
    wide["bond"] = torch.nn.functional.pad(x["bond"], (0, 3, 0, 3))
    one = net(x, t, mask)
    two = net(wide, t, torch.nn.functional.pad(mask, (0, 3)))
    assert torch.allclose(one["pos"], two["pos"][:, :6], atol=1e-12)
    assert torch.allclose(one["bond"], two["bond"][:, :6, :6], atol=1e-5)
    assert two["pos"][:, 6:].abs().max() == 0


def test_neighbours_in_the_batch_never_change_an_answer(net, generator):
    x, mask = state(generator, [9, 5, 7], 9)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    together = net(x, t, mask)
    alone = net({k: v[1:2] for k, v in x.items()}, t[1:2], mask[1:2])
    assert torch.allclose(together["pos"][1:2], alone["pos"], atol=1e-12)


def test_bond_logits_are_symmetric(net, generator):
    x, mask = state(generator, [9], 9)
    bond = net(x, torch.tensor([0.6], dtype=torch.float64), mask)["bond"]
    assert torch.allclose(bond, bond.transpose(1, 2), atol=1e-5)


def test_a_missing_target_is_its_own_input_and_not_the_mean(net, generator):
    x, mask = state(generator, [6], 6)
    t = torch.tensor([0.6], dtype=torch.float64)
    nothing = net(x, t, mask, None)
    null = torch.full((1, 6), torch.nan, dtype=torch.float64)
    assert torch.equal(nothing["atom"], net(x, t, mask, null)["atom"])
    mean = null.clone()
    mean[0, 2] = net.property_mean[2]
    assert not torch.allclose(nothing["atom"], net(x, t, mask, mean)["atom"], atol=1e-4)


def test_the_batch_does_not_change_the_last_bit_on_one_size(generator):
    """What keyed sampling needs: float32, equal sizes, no padding, at least four rows."""
    net = perturbed(build(SMALL), generator)
    x, mask = state(generator, [18] * 12, 18)
    x = x | {"pos": x["pos"].float()}
    t = torch.full((12,), 0.5)
    with torch.no_grad():
        whole = net(x, t, mask)
        for rows in (slice(0, 4), slice(3, 8), slice(5, 12)):
            part = net({k: v[rows] for k, v in x.items()}, t[rows], mask[rows])
            for name in whole:
                assert torch.equal(whole[name][rows], part[name]), (name, rows)


def test_every_weight_learns(generator):
    net = perturbed(build(SMALL), generator)
    x, mask = state(generator, [6, 8], 8)
    x = x | {"pos": x["pos"].float()}
    t = torch.tensor([0.2, 0.7])
    cond = torch.tensor([[0.1] * 6, [float("nan")] * 6])
    previous = net(x, t, mask, cond)
    out = net(x, t, mask, cond, {k: v.detach() for k, v in previous.items()})
    sum(v.square().sum() for v in out.values()).backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_the_widest_molecule_of_the_count_table_passes(net, generator):
    x, mask = state(generator, [MAX_ATOMS - 1], MAX_ATOMS - 1)
    out = net(x, torch.tensor([0.5], dtype=torch.float64), mask)
    assert out["pos"].isfinite().all()
