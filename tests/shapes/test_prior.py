"""The closed-form priors against Bayes' rule, conjugate formulas and numerical integrals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from driftworks.core.keys import Keys
from driftworks.errors import UserError
from driftworks.shapes import fmaps
from driftworks.shapes.prior import (
    Gaussian,
    Prior,
    SecondMoment,
    denoising_energy,
    denoising_errors,
    draw,
    posterior_penalty,
)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def maps():
    """2000 matrices (4, 4) of a Gaussian with deviations of 0.04 to 0.4 in random directions."""
    turn = torch.linalg.qr(normals(16, 16, seed=1)).Q
    spread = torch.logspace(math.log10(0.04), math.log10(0.4), 16)
    return 1.5 + ((normals(2000, 16, seed=2) * spread) @ turn.T).view(-1, 4, 4)


@pytest.fixture(scope="module")
def gaussian(maps):
    return Gaussian.fit(maps, fine=16)


def test_the_gaussian_answers_with_the_conjugate_posterior_mean(maps, gaussian):
    flat = maps.flatten(1).double()
    mean, covariance = flat.mean(0), torch.cov(flat.T, correction=0)
    x = maps[:7] + 0.3 * normals(7, 4, 4, seed=3)
    sigma = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 3.0])
    found = gaussian.denoise(x, sigma)
    for i, s in enumerate(sigma.double()):
        noisy = covariance + s**2 * torch.eye(16)
        wanted = mean + covariance @ torch.linalg.solve(noisy, x[i].flatten().double() - mean)
        assert torch.allclose(found[i].flatten().double(), wanted, atol=2e-5)


def test_the_gaussian_of_a_block_is_the_marginal(maps, gaussian):
    own = Gaussian.fit(maps[:, :3, :3], fine=9)
    x, sigma = maps[:5, :3, :3] + 0.1, torch.full((5,), 0.2)
    assert torch.allclose(gaussian.denoise(x, sigma), own.denoise(x, sigma), atol=1e-4)
    assert torch.allclose(gaussian.energy(x), own.energy(x), atol=2e-3)


def test_a_block_may_have_more_rows_than_columns(maps, gaussian):
    flat = maps[:, :4, :2].flatten(1).double()
    mean, covariance = flat.mean(0), torch.cov(flat.T, correction=0)
    x = maps[:1, :4, :2] + 0.1
    noisy = covariance + 0.04 * torch.eye(8)
    wanted = mean + covariance @ torch.linalg.solve(noisy, x[0].flatten().double() - mean)
    found = gaussian.denoise(x, torch.tensor([0.2]))
    assert torch.allclose(found[0].flatten().double(), wanted, atol=2e-5)


def test_the_gaussian_energy_is_the_negative_log_density(maps, gaussian):
    flat = maps.flatten(1).double()
    law = torch.distributions.MultivariateNormal(
        flat.mean(0), torch.cov(flat.T, correction=0)
    )
    assert torch.allclose(gaussian.energy(maps[:50]).double(), -law.log_prob(flat[:50]), atol=2e-3)


def test_with_fewer_directions_the_gaussian_is_a_factor_model_with_the_variances_of_the_data(maps):
    flat = maps.flatten(1).double()
    full = torch.cov(flat.T, correction=0)
    values, vectors = torch.linalg.eigh(full)
    covariance = vectors[:, 11:] @ torch.diag(values[11:]) @ vectors[:, 11:].T
    covariance = covariance + torch.diag((full - covariance).diagonal())
    law = torch.distributions.MultivariateNormal(flat.mean(0), covariance)
    prior = Gaussian.fit(maps, fine=5)
    assert torch.allclose(prior.energy(maps[:50]).double(), -law.log_prob(flat[:50]), atol=2e-3)
    x, sigma = maps[:4] + 0.1, torch.tensor([0.1, 0.5, 0.1, 2.0])
    found = prior.denoise(x, sigma)
    for i, s in enumerate(sigma.double()):
        noisy = covariance + s**2 * torch.eye(16)
        wanted = flat.mean(0) + covariance @ torch.linalg.solve(
            noisy, x[i].flatten().double() - flat.mean(0)
        )
        assert torch.allclose(found[i].flatten().double(), wanted, atol=2e-5)


def test_the_iterative_principal_directions_are_those_of_the_covariance():
    scale = 0.7 ** torch.arange(1100) + 1e-3
    x = (normals(1200, 1100, seed=4) * scale).view(1200, 1100)
    from driftworks.shapes.prior import _principal

    values, directions = _principal(x, 5)
    wanted, vectors = torch.linalg.eigh((x.T @ x).double() / len(x))
    assert torch.allclose(values.double(), wanted.flip(0)[:5], rtol=1e-4)
    overlap = (directions.double() * vectors.flip(1)[:, :5]).sum(0).abs()
    assert torch.allclose(overlap, torch.ones(5, dtype=torch.float64), atol=1e-3)


def test_a_second_moment_prior_answers_with_the_mean_that_bayes_rule_gives_on_a_grid():
    moment = torch.tensor([[0.5, 0.02], [0.1, 0.3]])
    x, sigma = torch.tensor([[[0.7, -0.2], [0.1, 1.1]]]), 0.35
    grid = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    found = SecondMoment(moment).denoise(x, torch.tensor([sigma]))[0]
    for i in range(2):
        for j in range(2):
            log = -grid.square() / (2 * moment[i, j]) - (x[0, i, j] - grid) ** 2 / (2 * sigma**2)
            weight = log.softmax(0)
            assert float((weight * grid).sum()) == pytest.approx(float(found[i, j]), abs=1e-5)


def test_a_second_moment_energy_is_the_negative_log_density():
    maps = normals(50, 3, 3, seed=5)
    prior = SecondMoment.fit(maps)
    assert torch.allclose(prior.moment, maps.square().mean(0), atol=1e-6)
    law = torch.distributions.Normal(0.0, maps.square().mean(0).sqrt())
    assert torch.allclose(prior.energy(maps), -law.log_prob(maps).sum((1, 2)), atol=1e-4)


def test_the_denoising_energy_of_a_gaussian_differs_from_its_log_density_by_a_constant(
    maps, gaussian
):
    # levels from far below the least deviation to far above the largest; what remains differs from
    # map to map because their common noise is a sample of 16
    found = denoising_energy(gaussian, maps[:20], levels=60, low=1e-4, high=100.0, draws=8)
    difference = (found - gaussian.energy(maps[:20])).double()
    assert float(difference.std()) < 0.15 * float(gaussian.energy(maps[:20]).std())


def test_the_denoising_energy_of_a_map_does_not_depend_on_its_neighbours(gaussian, maps):
    both = denoising_energy(gaussian, maps[:2])
    assert torch.allclose(both[1], denoising_energy(gaussian, maps[1:2])[0], rtol=1e-5)


def test_denoising_errors_of_a_gaussian_are_the_trace_of_its_posterior_covariance(maps, gaussian):
    covariance = torch.cov(maps.flatten(1).double().T, correction=0)
    for s, found in zip((0.1, 0.5), denoising_errors(gaussian, maps, (0.1, 0.5)), strict=True):
        noisy = torch.linalg.inv(covariance + s**2 * torch.eye(16))
        posterior = covariance - covariance @ noisy @ covariance
        assert found == pytest.approx(math.sqrt(float(posterior.trace()) / 16), rel=0.02)


def test_samples_of_a_gaussian_have_its_moments(maps, gaussian):
    drawn = draw(gaussian, 2000, 4, steps=60).flatten(1).double()
    flat = maps.flatten(1).double()
    wanted = torch.cov(flat.T, correction=0)
    assert torch.allclose(drawn.mean(0), flat.mean(0), atol=0.05)
    assert torch.linalg.matrix_norm(torch.cov(drawn.T) - wanted) < 0.1 * torch.linalg.matrix_norm(
        wanted
    )


def test_a_sample_does_not_depend_on_how_many_are_drawn(gaussian):
    assert torch.allclose(draw(gaussian, 3, 4, seed=5)[1], draw(gaussian, 2, 4, seed=5)[1],
                          atol=1e-5)


def test_a_penalty_is_small_where_the_prior_keeps_a_large_entry():
    prior = SecondMoment.of_isometries(20)
    c = np.eye(20)
    penalty = posterior_penalty(prior, c, eps=0.03, sigma=0.5)
    assert penalty.mean() == pytest.approx(1.0)
    kept = prior.moment.double().numpy() / (prior.moment.double().numpy() + 0.25) * c
    wanted = 1 / (kept**2 + 0.03**2)
    assert np.allclose(penalty, wanted / wanted.mean(), rtol=1e-5)


def test_penalties_do_not_see_signs_and_keep_the_type_and_leading_axes():
    prior = SecondMoment.of_isometries(12)
    c = normals(2, 3, 12, 10, seed=6)
    penalty = posterior_penalty(prior, c)
    assert isinstance(penalty, torch.Tensor) and penalty.shape == c.shape
    assert torch.allclose(penalty, posterior_penalty(prior, -c))
    assert torch.allclose(penalty[1, 2], posterior_penalty(prior, c[1, 2]))


def test_a_penalty_brings_back_a_map_that_too_few_descriptors_leave_open():
    generator = np.random.default_rng(0)
    truth = np.diag(np.sign(generator.normal(size=20)))
    a = generator.normal(size=(20, 12))
    b = truth @ a
    raw = fmaps.fit(a, b)
    penalty = posterior_penalty(SecondMoment.of_isometries(20), raw)
    regular = fmaps.fit(a, b, penalty, 1e-3)
    assert np.linalg.norm(regular - truth) < 0.5 * np.linalg.norm(raw - truth)


def test_the_moments_of_isometries_have_rows_of_norm_one_and_fall_away_from_the_diagonal():
    moment = SecondMoment.of_isometries(40).moment
    assert torch.allclose(moment.sum(1), torch.ones(40), atol=2e-3)
    row = moment[30, 30:]
    assert bool((row.diff() <= 0).all())
    assert moment[30, 30] < moment[2, 2]


@pytest.mark.parametrize("kind", [SecondMoment, Gaussian])
def test_a_prior_restored_in_half_precision_is_the_same_prior(kind, maps):
    prior = kind.fit(maps)
    stored = {k: v.half().float() if "factor" in k else v for k, v in prior.state().items()}
    again = kind.restore(stored)
    assert isinstance(again, Prior)
    x, sigma = maps[:4] + 0.1, torch.full((4,), 0.2)
    assert torch.allclose(again.denoise(x, sigma), prior.denoise(x, sigma), atol=2e-3)


def test_a_prior_refuses_maps_it_does_not_know(maps, gaussian):
    for wrong in (torch.zeros(2, 5, 5), torch.zeros(4, 4)):
        with pytest.raises(UserError):
            gaussian.denoise(wrong, torch.ones(2))
    with pytest.raises(UserError, match="two or more"):
        Gaussian.fit(maps[:1])
    with pytest.raises(UserError, match="not negative"):
        SecondMoment(torch.tensor([[-1.0]]))


def test_noise_of_the_energy_is_keyed():
    assert torch.equal(
        Keys.for_samples(0, range(2)).normal("prior/energy", 0, (3, 3))[1],
        Keys.for_samples(0, range(5)).normal("prior/energy", 0, (3, 3))[1],
    )
