"""Spaces: projections project, noise is standard inside the space, padding holds zeros."""

from __future__ import annotations

import math

import pytest
import torch

from driftworks.core.keys import Keys
from driftworks.core.spaces import Centred, Flat, PairTokens, Symmetric, Tokens

REAL = {
    "flat": (Flat(), (5, 3)),
    "centred": (Centred(), (5, 3)),
    "symmetric": (Symmetric(), (5, 5)),
    "symmetric with channels": (Symmetric(), (5, 5, 2)),
    "symmetric, as many channels as nodes": (Symmetric(), (5, 5, 5)),
}
TOKENS = {"tokens": (Tokens(4), (5,)), "pair tokens": (PairTokens(4), (5, 5))}
COUNTS = torch.tensor([5, 3, 1, 0, 4])  # as many samples as nodes: axes cannot be told by size
MASK = torch.arange(5) < COUNTS.unsqueeze(1)

real_spaces = pytest.mark.parametrize("space, shape", REAL.values(), ids=REAL)
all_spaces = pytest.mark.parametrize("space, shape", (REAL | TOKENS).values(), ids=REAL | TOKENS)
masks = pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])


def anything(space, shape, batch=5, seed=0):
    """A tensor of the space's shape and dtype that does not lie in the space."""
    generator = torch.Generator().manual_seed(seed)
    if space.discrete:
        return torch.randint(0, space.classes + 1, (batch, *shape), generator=generator)
    return torch.randn((batch, *shape), generator=generator, dtype=torch.float64)


def exists(space, shape, mask):
    """By hand: the entries (B, *shape) of nodes that exist, off the diagonal for pairs."""
    out = torch.zeros((5, *shape), dtype=torch.bool)
    for b in range(5):
        for i in range(shape[0]):
            alive = mask is None or bool(mask[b, i])
            if not isinstance(space, Symmetric | PairTokens):
                out[b, i] = alive
                continue
            for j in range(shape[1]):
                out[b, i, j] = alive and (mask is None or bool(mask[b, j])) and i != j
    return out


def in_space(space, x, mask):
    """Whether x satisfies the constraint of its space, apart from the mask."""
    if isinstance(space, Centred):
        return x.sum(1).abs().max() < 1e-12
    if isinstance(space, Symmetric | PairTokens):
        return torch.equal(x, x.transpose(1, 2)) and bool(
            (torch.diagonal(x, dim1=1, dim2=2) == 0).all()
        )
    return True


@masks
@all_spaces
def test_a_projection_lands_in_the_space_and_stays(space, shape, mask):
    x = anything(space, shape)
    once = space.project(x, mask)
    assert once.shape == x.shape and once.dtype == x.dtype
    assert in_space(space, once, mask)
    assert (once[~exists(space, shape, mask)] == 0).all()
    torch.testing.assert_close(space.project(once, mask), once, rtol=0, atol=1e-15)


@masks
@real_spaces
def test_a_projection_is_orthogonal(space, shape, mask):
    """x - P x is orthogonal to everything in the space, so P x is the nearest state."""
    x, y = anything(space, shape, seed=1), space.project(anything(space, shape, seed=2), mask)
    product = ((x - space.project(x, mask)) * y).flatten(1).sum(1)
    torch.testing.assert_close(product, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)


@masks
@all_spaces
def test_the_entry_mask_says_which_entries_exist(space, shape, mask):
    x = anything(space, shape)
    entries = space.entry_mask(mask, x)
    wanted = exists(space, shape, mask)
    assert wanted.all() if entries is None else torch.equal(entries.expand_as(x), wanted)


@all_spaces
def test_what_stood_in_the_padding_cannot_leak(space, shape):
    x = space.project(anything(space, shape), MASK)
    rubbish = [-7] if space.discrete else [math.nan, math.inf, 1e300]
    for value in rubbish:
        dirty = torch.where(exists(space, shape, MASK), x, torch.full_like(x, value))
        torch.testing.assert_close(space.project(dirty, MASK), x, rtol=0, atol=1e-15)


@masks
@all_spaces
def test_noise_lies_in_the_space(space, shape, mask):
    like = anything(space, shape)
    noise = space.noise(Keys.for_samples(0, range(5)), "s", 0, like, mask)
    assert noise.shape == like.shape and noise.dtype == like.dtype
    assert in_space(space, noise, mask)
    assert (noise[~exists(space, shape, mask)] == 0).all()
    if space.discrete:
        assert (noise[exists(space, shape, mask)] == space.classes).all()


def covariance(space, shape, mask, draws=100_000):
    """Mean (D,) and covariance (D, D) of the noise of one sample with ``mask`` (N,)."""
    like = torch.empty((draws, *shape))
    x = space.noise(Keys.for_samples(1, range(draws)), "s", 0, like, mask.expand(draws, -1))
    x = x.flatten(1).double()
    return x.mean(0), x.T @ x / draws


@pytest.mark.parametrize("count", [4, 3, 1])
def test_centred_noise_has_the_projector_as_its_covariance(count):
    mask = torch.arange(4) < count
    mean, found = covariance(Centred(), (4, 2), mask)
    ones = mask.double()
    points = torch.diag(ones) - torch.outer(ones, ones) / count
    wanted = torch.kron(points, torch.eye(2, dtype=torch.float64))
    assert mean.abs().max() < 5 / math.sqrt(1e5)
    torch.testing.assert_close(found, wanted, rtol=0, atol=5 * math.sqrt(2 / 1e5))
    torch.testing.assert_close(wanted @ wanted, wanted)  # it is a projector indeed


@pytest.mark.parametrize("channels", [(), (2,)], ids=["no channel", "two channels"])
def test_symmetric_noise_has_unit_variance_a_pair_and_independent_pairs(channels):
    mask = torch.tensor([True, True, True, False])
    mean, found = covariance(Symmetric(), (4, 4, *channels), mask)
    size = math.prod(channels)
    wanted = torch.zeros(4, 4, size, 4, 4, size, dtype=torch.float64)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        for c in range(size):
            for one in ((i, j), (j, i)):
                for other in ((i, j), (j, i)):
                    wanted[(*one, c, *other, c)] = 1.0
    assert mean.abs().max() < 5 / math.sqrt(1e5)
    found = found.view_as(wanted)
    torch.testing.assert_close(found, wanted, rtol=0, atol=5 * math.sqrt(2 / 1e5))


def test_flat_noise_is_that_of_the_keys():
    keys, like = Keys.for_samples(1, range(5)), torch.empty(5, 5, 3)
    assert torch.equal(Flat().noise(keys, "s", 2, like), keys.normal("s", 2, (5, 3)))
    padded = keys.normal("s", 2, (5, 3)) * MASK.unsqueeze(-1)
    assert torch.equal(Flat().noise(keys, "s", 2, like, MASK), padded)


@all_spaces
def test_noise_does_not_depend_on_batch_or_padding(space, shape):
    keys = Keys.for_samples(3, range(5))
    noise = space.noise(keys, "s", 1, anything(space, shape), MASK)
    nodes = 2 if isinstance(space, Symmetric | PairTokens) else 1
    for b, count in enumerate(COUNTS.tolist()):
        bare = (count,) * nodes + shape[nodes:]
        alone = space.noise(keys[b : b + 1], "s", 1, anything(space, bare, batch=1))
        inside = (b, *(slice(0, n) for n in bare))
        # The centre is a sum whose order may follow the padding: a rounding error, not more.
        torch.testing.assert_close(noise[inside], alone[0], rtol=0, atol=1e-15)


@pytest.mark.parametrize("space, shape", TOKENS.values(), ids=TOKENS)
def test_token_uniforms_are_one_an_entry_or_one_a_pair(space, shape):
    keys = Keys.for_samples(0, range(5))
    u = space.uniform(keys, "s", 0, anything(space, shape))
    assert u.shape == (5, *shape)
    free = u[exists(space, shape, None)]
    assert 0 < free.min() and free.max() < 1
    assert len(free.unique()) == (50 if isinstance(space, PairTokens) else 25)
    if isinstance(space, PairTokens):
        assert torch.equal(u, u.transpose(1, 2))


@masks
@real_spaces
def test_degrees_of_freedom_are_the_rank_of_the_projector(space, shape, mask):
    size = math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64).view(size, 1, *shape).expand(-1, 5, *shape)
    images = torch.stack([space.project(e, mask) for e in basis]).flatten(2)
    ranks = [torch.linalg.matrix_rank(images[:, b]).item() for b in range(5)]
    dof = space.dof(mask, anything(space, shape))
    assert dof.shape == (5,) and dof.dtype == torch.float64
    assert dof.tolist() == ranks


def test_degrees_of_freedom_by_formula():
    like = torch.empty(5, 5, 3)
    assert Flat().dof(MASK, like).tolist() == [15, 9, 3, 0, 12]
    assert Centred().dof(MASK, like).tolist() == [12, 6, 0, 0, 9]
    assert Centred().dof(MASK.unsqueeze(-1), like).tolist() == [12, 6, 0, 0, 9]
    assert Symmetric().dof(MASK, torch.empty(5, 5, 5)).tolist() == [10, 3, 0, 0, 6]
    assert Symmetric().dof(None, torch.empty(2, 5, 5, 3)).tolist() == [30, 30]


def test_the_density_of_centred_points_counts_their_degrees_of_freedom():
    """Standard normal on the subspace; with all 15 coordinates it would read -17.37603400."""
    x = Centred().project(torch.arange(15, dtype=torch.float64).sin().view(1, 5, 3))
    square, constant = x.square().sum().item(), math.log(2 * math.pi)
    dof = Centred().dof(None, x).item()
    assert dof == 12
    assert -0.5 * (square + dof * constant) == pytest.approx(-14.61921840, abs=5e-9)
    assert -0.5 * (square + 15 * constant) == pytest.approx(-17.37603400, abs=5e-9)


@pytest.mark.parametrize("channels", [2, 5])
def test_a_mask_with_more_axes_is_the_entry_mask(channels):
    keep = torch.rand(5, 5, 5, channels, generator=torch.Generator().manual_seed(0)) < 0.5
    keep = keep | keep.transpose(1, 2)
    x = anything(Symmetric(), (5, 5, channels))
    off = ~torch.eye(5, dtype=torch.bool)
    for mask in (keep[..., 0], keep):
        wanted = mask.view(*mask.shape, *(1,) * (4 - mask.ndim)) & off.view(1, 5, 5, 1)
        found = Symmetric().project(x, mask)
        mean = 0.5 * (x + x.transpose(1, 2))
        torch.testing.assert_close(found, torch.where(wanted, mean, 0.0))
    flat = Flat().project(x, keep)
    assert torch.equal(flat, torch.where(keep, x, 0.0))
    with pytest.raises(ValueError, match="mask has 4 axes, the state only 3"):
        Flat().project(x[..., 0], keep)
