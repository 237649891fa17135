"""The network as a denoiser: preconditioning, conditioning, sizes."""

from __future__ import annotations

import math

import pytest
import torch

from driftworks.errors import UserError
from driftworks.shapes.dit import NetConfig, Network, build
from driftworks.shapes.prior import Prior, draw

TINY = NetConfig(k=40, width=16, heads=2, layers=2, sigma_data=0.1)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stirred(seed=0):
    """A tiny network whose gates are open."""
    net = build(TINY, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if not bool(parameter.any()):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def prior():
    mean = normals(40, 40, seed=1).abs() * 0.1
    variance = 0.005 + normals(40, 40, seed=2).square() * 0.01
    return Network(stirred(), mean, variance)


def values(count, k, seed=0):
    steps = normals(count, k, seed=seed).abs() * 8
    steps[:, 0] = 0
    return 4 * math.pi / 8 * steps.cumsum(1)


def test_an_untrained_network_is_the_posterior_of_independent_gaussian_entries():
    mean, variance = normals(40, 40, seed=1) * 0.1, torch.full((40, 40), 0.02)
    prior = Network(build(TINY), mean, variance)
    x, sigma = normals(3, 30, 30, seed=3), torch.tensor([0.05, 0.3, 1.0])
    gain = (0.02 / (0.02 + sigma.square())).view(-1, 1, 1)
    with torch.no_grad():
        found = prior.denoise(x, sigma)
    assert torch.allclose(found, mean[:30, :30] + gain * (x - mean[:30, :30]), atol=1e-6)


def test_with_little_noise_the_network_changes_little(prior):
    x = normals(2, 30, 30, seed=4)
    assert torch.allclose(prior.denoise(x, torch.full((2,), 1e-4)), x, atol=2e-3)


def test_patches_are_put_back_where_they_came_from():
    net = build(TINY)
    y = torch.arange(2 * 40 * 30, dtype=torch.float32).view(2, 40, 30)
    patches = net._patches(y)
    assert patches.shape == (2, 48, 25)
    assert torch.equal(patches[1, 7].view(5, 5), y[1, 5:10, 5:10])
    back = patches.view(2, 8, 6, 5, 5).transpose(2, 3).reshape(2, 40, 30)
    assert torch.equal(back, y)


def test_a_matrix_is_answered_alike_alone_and_in_company(prior):
    x, sigma = normals(4, 30, 35, seed=5), torch.tensor([0.1, 0.2, 0.3, 0.4])
    first, second = values(4, 35, 6), values(4, 30, 7)
    together = prior.denoise(x, sigma, first, second)
    alone = prior.denoise(x[2:3], sigma[2:3], first[2:3], second[2:3])
    assert torch.allclose(together[2], alone[0], atol=1e-6)


def test_eigenvalues_matter_and_are_matched_to_rows_and_columns(prior):
    x, sigma = normals(1, 30, 30, seed=8), torch.tensor([0.3])
    first, second = values(1, 30, 9), values(1, 30, 10)
    free = prior.denoise(x, sigma)
    given = prior.denoise(x, sigma, first, second)
    assert not torch.allclose(free, given, atol=1e-3)
    assert not torch.allclose(given, prior.denoise(x, sigma, second, first), atol=1e-3)


def test_one_unknown_spectrum_counts_as_two(prior):
    x, sigma, first = normals(1, 30, 30, seed=8), torch.tensor([0.3]), values(1, 30, 9)
    unknown = torch.full((1, 30), torch.nan)
    assert torch.equal(prior.denoise(x, sigma, first), prior.denoise(x, sigma))
    assert torch.equal(prior.denoise(x, sigma, unknown, first), prior.denoise(x, sigma))


def test_energy_and_sampling_work_through_the_interface(prior):
    assert isinstance(prior, Prior)
    energy = prior.energy(normals(2, 30, 30, seed=11).abs())
    assert energy.shape == (2,) and bool(energy.isfinite().all())
    assert draw(prior, 2, 30, steps=3).shape == (2, 30, 30)


@pytest.mark.parametrize("k", [14, 32, 39])
def test_entries_outside_whole_patches_are_answered_as_independent_ones(prior, k):
    x, sigma = normals(2, k, k, seed=12).abs(), torch.tensor([0.1, 0.4])
    mean, variance = prior.mean[:k, :k], prior.variance[:k, :k]
    independent = mean + variance / (variance + sigma.view(-1, 1, 1) ** 2) * (x - mean)
    head = k - k % 5 if k >= 30 else 0
    if head:
        independent[:, :head, :head] = prior.denoise(x[:, :head, :head], sigma)
    assert torch.allclose(prior.denoise(x, sigma), independent, atol=1e-6)


def test_eigenvalues_of_another_size_are_refused(prior):
    with pytest.raises(UserError, match="values1"):
        prior.denoise(torch.zeros(1, 30, 30), torch.ones(1), torch.zeros(1, 29))


def test_a_network_can_tell_maps_apart_by_their_eigenvalues_alone():
    """A toy law: which of two neighbours the diagonal sits at is told by the eigenvalues."""
    config = NetConfig(k=30, width=32, heads=2, layers=1, sigma_data=0.2)
    net = build(config, 0)
    even = 4 * math.pi * torch.arange(30.0)
    other = even.clone()
    other[1:] = even[1:] + 4 * math.pi  # one more function below: shifted by one
    eye = torch.eye(30)
    shifted = torch.diag(torch.ones(29), -1)
    clean = torch.stack((eye, shifted))
    first = torch.stack((even, even))
    second = torch.stack((even, even - 4 * math.pi)).clamp(min=0)
    prior = Network(net, clean.mean(0), clean.var(0, correction=0))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    sigma = torch.full((2,), 30.0)  # nothing can be seen in the matrix itself

    def error(step):
        noisy = clean + 30.0 * normals(2, 30, 30, seed=step)
        return (prior.denoise(noisy, sigma, first, second) - clean).square().mean()

    with torch.no_grad():
        before = float(error(1000))
    for step in range(60):
        loss = error(step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        assert float(error(1000)) < 0.3 * before
