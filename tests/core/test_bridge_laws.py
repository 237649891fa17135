"""The exact bridges between Gaussians against densities, derivatives and brute force."""

from __future__ import annotations

import math

import pytest
import torch

from driftworks.core.bridge_laws import GaussianBridge, schrodinger_covariance
from driftworks.core.bridges import TwoSided
from driftworks.errors import UserError

BRIDGES = {
    "brownian": TwoSided.brownian(0.6),
    "linear sine": TwoSided.linear(0.8, "sine"),
    "trigonometric": TwoSided.trigonometric(0.7),
    "encoding-decoding": TwoSided.encoding_decoding(1.2),
    "no latent": TwoSided.linear(latent="none"),
}
every_bridge = pytest.mark.parametrize("bridge", BRIDGES.values(), ids=BRIDGES.keys())


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random_joint(seed, size=2):
    """Means and a joint covariance with a cross covariance that is not symmetric."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(2 * size, 2 * size, generator=generator, dtype=torch.float64)
    joint = root @ root.mT / size + 0.1 * torch.eye(2 * size)
    means = torch.randn(2, size, generator=generator, dtype=torch.float64)
    return means, joint[:size, :size], joint[size:, size:], joint[:size, size:]


def planar(bridge, seed=0, predicts="velocity"):
    means, c0, c1, k = random_joint(seed)
    return GaussianBridge(bridge, means[0], c0, means[1], c1, k, predicts)


@every_bridge
def test_the_score_is_the_gradient_of_the_density_of_the_interpolant(bridge):
    oracle, t = planar(bridge), 0.37
    means, c0, c1, k = random_joint(0)
    a, b, g = bridge.alpha(t), bridge.beta(t), bridge.gamma(t)
    maps = torch.cat([a * torch.eye(2), b * torch.eye(2)], 1).double()
    joint = torch.cat([torch.cat([c0, k], 1), torch.cat([k.mT, c1], 1)])
    cov = maps @ joint @ maps.mT + g**2 * torch.eye(2)
    law = torch.distributions.MultivariateNormal(a * means[0] + b * means[1], cov)
    x = tensor([[0.3, -1.0], [2.0, 0.5], [0.0, 0.0]]).requires_grad_()
    density = law.log_prob(x)
    (score,) = torch.autograd.grad(density.sum(), x)
    torch.testing.assert_close(oracle.log_prob(x.detach(), t), density.detach())
    torch.testing.assert_close(oracle.score(x.detach(), t), score)
    torch.testing.assert_close(oracle.cov(t), cov)
    torch.testing.assert_close(oracle.mean(t), law.mean)


@every_bridge
@pytest.mark.parametrize("t", [0.2, 0.55, 0.9])
def test_the_velocity_carries_the_density(bridge, t):
    """d log rho/dt + div b + b . s = 0, the derivatives of log rho and b by finite differences."""
    oracle, h = planar(bridge, 3), 1e-5
    x = tensor([[0.3, -1.0], [1.0, 0.5], [-0.4, 0.2]])
    rate = (oracle.log_prob(x, t + h) - oracle.log_prob(x, t - h)) / (2 * h)
    step = h * torch.eye(2).double()
    divergence = sum(
        (oracle.velocity(x + step[i], t) - oracle.velocity(x - step[i], t))[:, i] / (2 * h)
        for i in range(2)
    )
    flux = (oracle.velocity(x, t) * oracle.score(x, t)).sum(-1)
    torch.testing.assert_close(rate, -(divergence + flux), rtol=1e-6, atol=1e-6)


@every_bridge
def test_fields_are_the_conditional_means_of_the_joint_law(bridge):
    """The block formula on the joint covariance of (I', z, x_t), without the oracle's algebra."""
    means, c0, c1, k = random_joint(5)
    oracle, t = planar(bridge, 5), 0.43
    eye, zero = torch.eye(2).double(), torch.zeros(2, 2).double()
    joint = torch.cat([
        torch.cat([c0, k, zero], 1), torch.cat([k.mT, c1, zero], 1),
        torch.cat([zero, zero, eye], 1),
    ])  # fmt: skip
    b = bridge
    to_x = torch.cat([b.alpha(t) * eye, b.beta(t) * eye, b.gamma(t) * eye], 1)
    to_slope = torch.cat([b.dalpha(t) * eye, b.dbeta(t) * eye, zero], 1)
    to_noise = torch.cat([zero, zero, eye], 1)
    centre = torch.cat([means[0], means[1], torch.zeros(2).double()])
    x = tensor([[0.3, -1.0], [1.0, 0.5]])
    gap = torch.linalg.solve(to_x @ joint @ to_x.mT, (x - to_x @ centre).mT)
    tangent = (to_slope @ centre)[:, None] + to_slope @ joint @ to_x.mT @ gap
    noise = to_noise @ joint @ to_x.mT @ gap
    torch.testing.assert_close(oracle.tangent(x, t), tangent.mT.contiguous())
    torch.testing.assert_close(oracle.noise(x, t), noise.mT.contiguous())
    velocity = tangent.mT + b.dgamma(t) * noise.mT
    torch.testing.assert_close(oracle.velocity(x, t), velocity)


def test_with_a_symmetric_coupling_the_velocity_is_half_the_growth_of_the_covariance():
    means, c0, c1, _ = random_joint(1)
    bridge, t, h = TwoSided.trigonometric(0.5), 0.3, 1e-5
    oracle = GaussianBridge(bridge, means[0], c0, means[1], c1, tensor([[0.1, 0.05], [0.05, 0.0]]))
    growth = (oracle.cov(t + h) - oracle.cov(t - h)) / (2 * h)
    mean = (oracle.mean(t + h) - oracle.mean(t - h)) / (2 * h)
    x = tensor([[0.3, -1.0], [1.0, 0.5]])
    field = mean - 0.5 * oracle.score(x, t) @ growth.mT
    torch.testing.assert_close(oracle.velocity(x, t), field, rtol=1e-8, atol=1e-8)


def test_numbers_are_independent_coordinates_of_any_shape():
    bridge = TwoSided.brownian(0.6)
    line = GaussianBridge(bridge, 0.2, 1.0, -0.4, 0.3, 0.1)
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(2, 4, 3)
    times = tensor([0.2, 0.7])
    for name in ("velocity", "tangent", "noise", "score"):
        field = getattr(line, name)
        assert field(x, times).shape == x.shape
        torch.testing.assert_close(
            field(x, times)[1], field(x.reshape(-1, 1), 0.7).reshape(2, 4, 3)[1]
        )
        assert field(x.float(), times.float()).dtype == torch.float32
    single = line.log_prob(x.reshape(-1, 1), 0.7).reshape(2, -1).sum(1)[1]
    torch.testing.assert_close(line.log_prob(x, times)[1], single)
    answer = line(x, times)
    assert answer.keys() == {"velocity", "noise"}


def test_given_the_source_the_target_is_its_conditional_law():
    oracle, t = planar(TwoSided.brownian(0.6), 2, "tangent"), 0.3
    means, c0, c1, k = random_joint(2)
    x0 = tensor([[0.3, -0.7], [1.1, 0.2], [0.0, 0.0]])
    x = tensor([[0.1, -0.5], [1.0, 0.0], [0.3, 0.3]])
    for i in range(3):
        mean = means[1] + k.mT @ torch.linalg.inv(c0) @ (x0[i] - means[0])
        cov = c1 - k.mT @ torch.linalg.inv(c0) @ k
        spread = t**2 * cov + 0.36 * t * (1 - t) * torch.eye(2)
        gap = torch.linalg.solve(spread, x[i] - (1 - t) * x0[i] - t * mean)
        answer = oracle(x, torch.full((3,), t), cond=x0)
        torch.testing.assert_close(
            answer["noise"][i], 0.6 * math.sqrt(t * (1 - t)) * gap, rtol=1e-6, atol=1e-6
        )
        tangent = mean - x0[i] + t * cov @ gap
        torch.testing.assert_close(answer["tangent"][i], tangent, rtol=1e-6, atol=1e-6)
    ends = oracle(x0, torch.zeros(3), cond=x0)
    assert ends["tangent"].isfinite().all() and (ends["noise"] == 0).all()


def test_the_schrodinger_coupling_has_its_golden_value():
    assert schrodinger_covariance(1.0, 0.25, 0.36) == pytest.approx(0.351413, abs=6e-7)
    c = 0.5 * (math.sqrt(4 * 0.7 * 0.2 + 0.5**2) - 0.5)
    assert schrodinger_covariance(0.7, 0.2, 0.5) == pytest.approx(c, rel=1e-12)


def test_the_schrodinger_coupling_is_the_plan_with_a_brownian_kernel():
    """Its density is f(x0) g(x1) exp(-|x0 - x1|^2 / 2 s^2): the precision couples by -I / s^2."""
    _, c0, c1, _ = random_joint(9, 3)
    variance = 0.37
    k = schrodinger_covariance(c0, c1, variance)
    joint = torch.cat([torch.cat([c0, k], 1), torch.cat([k.mT, c1], 1)])
    precision = torch.linalg.inv(joint)
    wanted = -torch.eye(3).double() / variance
    torch.testing.assert_close(precision[:3, 3:], wanted, rtol=1e-8, atol=1e-8)
    # much noise: independent; little: optimal transport, whose covariance is the largest
    assert schrodinger_covariance(c0, c1, 1e6).abs().max() < 1e-4
    values = torch.linalg.eigvals(c0 @ c1).real.sqrt().sum()
    assert schrodinger_covariance(c0, c1, 1e-9).trace().item() == pytest.approx(values.item())


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: GaussianBridge(TwoSided.linear(), 0, 1.0, 0, 0.25, 0.6),
         "joint covariance is not positive: least eigenvalue -0.0"),
        (lambda: GaussianBridge(TwoSided.linear(), 0, tensor([[1.0, 0.5], [0.0, 1.0]]), 0, 1.0),
         "a covariance is not symmetric"),
        (lambda: GaussianBridge(TwoSided.linear(), 0, 1.0, 0, 1.0, predicts="noise"),
         "unknown first head 'noise'; choose one of velocity, tangent"),
        (lambda: schrodinger_covariance(1.0, 0.25, 0.0), "must be positive, got 1.0, 0.25 and 0.0"),
    ],
)  # fmt: skip
def test_mistakes_are_named(act, message):
    with pytest.raises(UserError, match=message):
        act()
