"""Rotations: exponential and logarithm at every angle, Haar measure, the heat kernel exactly."""

from __future__ import annotations

import math
import os

import mpmath
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from driftworks.core import so3
from driftworks.core.keys import Keys
from driftworks.errors import UserError

SEED = int.from_bytes(os.urandom(4), "little")
WIDTHS = (1e-4, 3e-3, 0.03, 0.1, 0.2, 0.5, 0.9, 0.999999, 1.0, 1.3, 2.0, 4.0, 10.0)
ANGLES = torch.cat(
    (
        torch.tensor([0.0, 1e-300, 1e-12, 1e-7, 1e-4, 9.9e-2, 1.01e-1], dtype=torch.float64),
        torch.linspace(0.0, math.pi, 41, dtype=torch.float64),
        math.pi - torch.tensor([1e-3, 1e-7, 1e-12], dtype=torch.float64),
    )
)


@pytest.fixture
def generator():
    print(f"seed {SEED}")
    return torch.Generator().manual_seed(SEED)


def directions(count, generator):
    v = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return v / v.norm(dim=-1, keepdim=True)


def legendre(count, low, high):
    """Nodes and weights of a Gauss-Legendre rule on [low, high]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    nodes, weights = torch.from_numpy(nodes), torch.from_numpy(weights)
    half = 0.5 * (high - low)
    return low + half * (nodes + 1.0), half * weights


def angle_rule(eps, count=200):
    """Nodes and weights of E g(w) under the heat kernel of width ``eps``."""
    nodes, weights = legendre(count, 0.0, min(math.pi, 14.0 * eps))
    density = so3.igso3_log_density(nodes, eps).exp()
    return nodes, weights * density * (1.0 - nodes.cos()) / math.pi


def trace(x):
    return x.diagonal(dim1=-1, dim2=-2).sum(-1)


def within_four_sigma(draws, exact):
    error = draws.double().mean() - exact
    return abs(error.item()) <= 4.0 * draws.double().std().item() / math.sqrt(draws.numel())


# exponential, logarithm, distance


def test_hat_is_the_cross_product(generator):
    v, y = torch.randn(2, 10, 3, generator=generator, dtype=torch.float64)
    assert torch.allclose((so3.hat(v) @ y[..., None])[..., 0], torch.linalg.cross(v, y))


def test_the_exponential_is_that_of_the_matrix(generator):
    v = directions(12, generator) * torch.logspace(-9, 1, 12, dtype=torch.float64)[:, None]
    assert (so3.exp(v) - torch.matrix_exp(so3.hat(v))).abs().max() < 1e-13


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_the_logarithm_inverts_the_exponential_from_zero_to_half_turns(dtype, tolerance, generator):
    # closer to a half turn than the rounding of pi, the two vectors cannot be told apart
    gap = 1e-8 if dtype == torch.float64 else 1e-5
    last = torch.tensor([math.pi - 2.0 * gap], dtype=torch.float64)
    sizes = torch.cat((ANGLES[ANGLES < math.pi - gap], last))
    v = directions(len(sizes), generator) * sizes[:, None]
    back = so3.log(so3.exp(v.to(dtype))).double()
    assert ((back - v).norm(dim=-1) <= tolerance * (1.0 + sizes)).all()
    tiny = (sizes > 0.0) & (sizes < 1e-3) & (sizes > 1e-30)
    assert ((back - v).norm(dim=-1) / sizes)[tiny].max() < tolerance  # relative, too


def test_the_logarithm_of_half_turns_is_one_of_the_two_vectors(generator):
    axes = torch.cat((directions(50, generator), torch.eye(3, dtype=torch.float64)))
    x = 2.0 * axes[:, :, None] * axes[:, None, :] - torch.eye(3, dtype=torch.float64)
    v = so3.log(x)
    assert (v.norm(dim=-1) - math.pi).abs().max() < 1e-14
    assert (torch.linalg.cross(v, axes).norm(dim=-1)).max() < 1e-13


def test_logarithm_and_quaternion_agree_with_scipy(generator):
    q = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    x = so3.from_quaternion(q)
    other = Rotation.from_quat(q[:, [1, 2, 3, 0]].numpy())
    assert np.abs(x.numpy() - other.as_matrix()).max() < 1e-14
    assert np.abs(so3.log(x).numpy() - other.as_rotvec()).max() < 1e-12
    assert (so3.from_quaternion(so3.quaternion(x)) - x).abs().max() < 1e-14


def test_derivatives_are_exact_and_finite_from_zero_to_half_turns(generator):
    sizes = (0.0, 1e-9, 1e-3, 0.1, 1.0, 3.0, math.pi - 1e-4)
    for size in sizes:
        v = directions(1, generator)[0] * size
        there = torch.autograd.functional.jacobian(lambda v: so3.log(so3.exp(v)), v)
        assert (there - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-7, size
        x = so3.exp(v)

        def turned(d, x=x):
            return so3.log(x @ so3.exp(d))

        exact = torch.autograd.functional.jacobian(turned, torch.zeros(3, dtype=torch.float64))
        if size < 3.1:
            h = 1e-5 * torch.eye(3, dtype=torch.float64)
            numeric = torch.stack([(turned(d) - turned(-d)) / 2e-5 for d in h], -1)
            assert (exact - numeric).abs().max() < 1e-6, size
        gradient = torch.autograd.functional.jacobian(
            lambda d, x=x: so3.distance(x, so3.exp(d)), torch.zeros(3, dtype=torch.float64)
        )
        assert gradient.isfinite().all()


def test_zero_matrices_have_logarithm_zero_and_stay_zero():
    zero = torch.zeros(2, 3, 3, dtype=torch.float64, requires_grad=True)
    v = so3.log(zero)
    (gradient,) = torch.autograd.grad(v.sum(), zero)
    assert not v.any() and gradient.isfinite().all()
    assert not so3.orthonormal(zero).any()


def test_distances_are_angles_and_invariant_on_both_sides(generator):
    x, y, g = so3.from_quaternion(torch.randn(3, 40, 4, generator=generator, dtype=torch.float64))
    d = so3.distance(x, y)
    assert torch.allclose(2.0 * d.cos() + 1.0, trace(x.mT @ y), atol=1e-13)
    assert torch.allclose(so3.distance(g @ x, g @ y), d, atol=1e-12)
    assert torch.allclose(so3.distance(x @ g, y @ g), d, atol=1e-12)
    assert torch.allclose(so3.distance(y, x), d, atol=1e-14)


# the nearest rotation


def test_no_rotation_is_nearer_than_the_nearest(generator):
    x = torch.randn(30, 3, 3, generator=generator, dtype=torch.float64)  # half of them reflections
    r = so3.nearest(x)
    assert (r.mT @ r - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-14
    assert (torch.linalg.det(r) - 1.0).abs().max() < 1e-13
    gap = (r - x).square().sum((-2, -1))
    tried = so3.from_quaternion(torch.randn(2000, 4, generator=generator, dtype=torch.float64))
    near = r[:, None] @ so3.exp(0.01 * torch.randn(100, 3, generator=generator).double())
    for others in (tried.expand(30, -1, -1, -1), near):
        assert ((others - x[:, None]).square().sum((-2, -1)) >= gap[:, None] - 1e-12).all()
    assert torch.allclose(so3.nearest(r), r, atol=1e-14)


def test_the_derivative_of_the_nearest_rotation_is_exact_at_rotations_too(generator):
    r = so3.from_quaternion(torch.randn(4, generator=generator, dtype=torch.float64))
    for x in (r, r + 0.3 * torch.randn(3, 3, generator=generator, dtype=torch.float64), 2.0 * r):
        weights = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        point = x.clone().requires_grad_()
        (exact,) = torch.autograd.grad((so3.nearest(point) * weights).sum(), point)
        numeric = torch.zeros(9, dtype=torch.float64)
        for i in range(9):
            h = torch.zeros(9, dtype=torch.float64)
            h[i] = 1e-6
            both = [(so3.nearest(x + s * h.view(3, 3)) * weights).sum() for s in (1, -1)]
            numeric[i] = (both[0] - both[1]) / 2e-6
        assert (exact.flatten() - numeric).abs().max() < 1e-6 * (1.0 + numeric.abs().max())


def test_one_broken_matrix_leaves_its_neighbours_alone(generator):
    x = torch.randn(4, 3, 3, generator=generator)
    alone = so3.nearest(x)
    x[1, 2, 0] = math.nan
    together = so3.nearest(x)
    assert together[1].isnan().all()
    assert torch.equal(together[[0, 2, 3]], alone[[0, 2, 3]])


def test_a_newton_schulz_step_squares_the_error(generator):
    r = so3.from_quaternion(torch.randn(20, 4, generator=generator, dtype=torch.float64))
    bad = r + 1e-4 * torch.randn(20, 3, 3, generator=generator, dtype=torch.float64)
    assert (so3.orthonormal(bad) - so3.nearest(bad)).abs().max() < 1e-6


# Haar measure


def test_haar_rotations_have_the_moments_of_the_uniform_measure():
    x = so3.haar(Keys.for_samples(1, range(500)), "haar", 0, (60,), torch.float64)
    assert (x.mT @ x - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-13
    assert within_four_sigma(trace(x), 0.0)
    assert within_four_sigma(trace(x).square(), 1.0)
    fixed = so3.exp(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    assert within_four_sigma(trace(fixed @ x).square(), 1.0)  # invariant
    for i in range(3):
        for j in range(3):
            assert within_four_sigma(x[..., i, j], 0.0)
            assert within_four_sigma(x[..., i, j].square(), 1.0 / 3.0)


# the heat kernel


def exact_kernel(angle, eps):
    """log f and d log f / dw from the series, in as many digits as it takes."""
    mpmath.mp.dps = 150
    w, e = mpmath.mpf(float(angle)), mpmath.mpf(float(eps))
    total = slope = mpmath.mpf(0)
    half = mpmath.sin(w / 2)
    for degree in range(int(20.0 / float(eps)) + 8):
        weight = (2 * degree + 1) * mpmath.exp(-degree * (degree + 1) * e * e)
        n = degree + mpmath.mpf(1) / 2
        total += weight * mpmath.sin(n * w) / half
        slope += weight * (n * mpmath.cos(n * w) / half - mpmath.sin(n * w) * mpmath.cos(w / 2)
                           / (2 * half * half))
    return float(mpmath.log(total)), float(slope / total)


@pytest.mark.parametrize("eps", [0.1, 0.35, 0.8, 0.9999, 1.0001, 1.7, 5.0])
def test_density_and_score_equal_the_series_in_many_digits(eps):
    for angle in (1e-4, 0.05, 0.3, 1.0, 2.0, 3.0, 3.14):
        value, slope = exact_kernel(angle, eps)
        w = torch.tensor(angle, dtype=torch.float64)
        assert so3.igso3_log_density(w, eps).item() == pytest.approx(value, rel=1e-12, abs=1e-13)
        score = so3.igso3_score(w, eps).item()
        assert score == pytest.approx(slope, rel=1e-10, abs=1e-12 * (1.0 + angle / eps**2))


@pytest.mark.parametrize(
    "eps, golden", [(0.2, 2.769349), (0.5, 1.819592), (1.0, 0.406006), (2.0, 0.001006)]
)
def test_the_mean_trace_has_its_golden_value(eps, golden):
    w, p = angle_rule(eps)
    assert p.sum().item() == pytest.approx(1.0, abs=1e-12)
    mean = (p * (1.0 + 2.0 * w.cos())).sum().item()
    assert mean == pytest.approx(golden, abs=6e-7)
    assert mean == pytest.approx(3.0 * math.exp(-2.0 * eps**2), abs=1e-12)


def test_no_angle_and_no_width_gives_anything_but_a_number():
    for eps in WIDTHS:
        w = ANGLES.clone().requires_grad_()
        density = so3.igso3_log_density(w, eps)
        (slope,) = torch.autograd.grad(density.sum(), w)
        score = so3.igso3_score(w.detach(), eps)
        v = torch.zeros(len(ANGLES), 3, dtype=torch.float64)
        v[:, 1] = ANGLES
        v.requires_grad_()
        tangent = so3.igso3_tangent(v, eps)
        (bend,) = torch.autograd.grad(tangent.sum(), v)
        for value in (density, slope, score, tangent, bend):
            assert value.isfinite().all(), eps
        assert (tangent[:, 1] - score).abs().max() <= 1e-12 * (1.0 + score.abs().max())
        # two ways to the slope; near w = pi / e^2 it is the difference of large numbers
        assert (slope - score).abs().max() <= 1e-13 * (10.0 + math.pi / eps**2), eps
        # flat at both ends; the float64 next to pi is 1e-16 away from it
        assert score[0] == 0.0
        assert score[ANGLES.argmax()].abs() <= 1e-15 * (10.0 + (math.pi / eps**2) ** 2)


def test_the_two_forms_meet_where_they_change_places():
    below, above = 1.0 - 1e-12, 1.0 + 1e-12
    for function in (so3.igso3_log_density, so3.igso3_score):
        assert (function(ANGLES, below) - function(ANGLES, above)).abs().max() < 2e-11


@pytest.mark.parametrize("first, second", [(0.15, 0.3), (0.7, 0.75), (0.4, 1.2), (1.1, 2.0)])
def test_heat_kernels_convolve_to_heat_kernels(first, second):
    """At a rotation by w: the integral over z of f(x z^-1; first) f(z; second), by quadrature."""
    a, p = angle_rule(second, 240)
    cosine, q = legendre(240, -1.0, 1.0)
    a, cosine = a[:, None], cosine[None, :]
    for w in (0.0, 0.4, 1.3, 3.0):
        half = math.cos(w / 2) * torch.cos(a / 2) + math.sin(w / 2) * torch.sin(a / 2) * cosine
        other = 2.0 * torch.acos(half.abs().clamp(max=1.0))
        density = so3.igso3_log_density(other, first).exp()
        total = (density * q).sum(1) @ p / 2.0
        exact = so3.igso3_log_density(torch.tensor(w), math.hypot(first, second)).exp()
        assert total.item() == pytest.approx(exact.item(), rel=1e-5)


def test_the_kernel_becomes_a_gaussian_of_variance_two_eps_squared():
    eps, w = 1e-3, torch.linspace(0.0, 5e-3, 20, dtype=torch.float64)
    flat = -0.5 * w**2 / (2.0 * eps**2)
    got = so3.igso3_log_density(w, eps) - so3.igso3_log_density(w[:1], eps)
    assert (got - flat).abs().max() < 1e-5


@pytest.mark.parametrize("eps", [1e-4, 0.02, 0.3, 0.8, 1.5, 6.0])
def test_angles_are_the_quantiles_of_the_kernel(eps):
    u = torch.cat((torch.logspace(-9, -2, 8), torch.linspace(0.02, 0.98, 49))).double()
    u = torch.cat((u, 1.0 - torch.logspace(-2, -7, 6).double()))[None]
    w = so3.igso3_angle(u, eps)[0]
    nodes, weights = legendre(120, 0.0, 1.0)
    at = w[:, None] * nodes
    density = (1.0 - at.cos()) / math.pi * so3.igso3_log_density(at, eps).exp()
    mass = (density * weights).sum(1) * w
    assert (mass - u[0]).abs().max() < 3e-7


def test_draws_have_the_moments_of_the_kernel_each_with_its_own_width():
    eps = torch.tensor([1e-3, 0.05, 0.2, 0.5, 1.0, 2.0, 8.0], dtype=torch.float64)
    keys = Keys.for_samples(1, range(len(eps)))
    x = so3.igso3(keys, "heat", 3, eps, (8000,), torch.float64)
    for e, r in zip(eps.tolist(), x, strict=True):
        one, two = math.exp(-2.0 * e * e), math.exp(-6.0 * e * e)
        assert within_four_sigma(trace(r), 3.0 * one)
        assert within_four_sigma(trace(r).square(), 1.0 + 3.0 * one + 5.0 * two)
        v = so3.log(r)
        for i in range(3):
            assert within_four_sigma(v[:, i], 0.0)
            assert within_four_sigma(v[:, i].square() - v[:, i - 1].square(), 0.0)
    small = so3.log(x[0]) / (math.sqrt(2.0) * 1e-3)
    assert within_four_sigma(small.square(), 1.0)


def test_a_draw_does_not_depend_on_the_batch_or_the_padding():
    eps = torch.tensor([0.3, 0.1, 2.0, 0.7])
    keys = Keys.for_samples(7, [4, 9, 2, 30])
    whole = so3.igso3(keys, "heat", 5, eps, (6,))
    alone = so3.igso3(keys[2:3], "heat", 5, eps[2:3], (3,))
    assert torch.allclose(whole[2:3, :3], alone, atol=1e-6)
    shared = so3.igso3(keys, "heat", 5, 0.7, (6,))
    assert torch.allclose(shared[3], whole[3], atol=1e-6)
    assert torch.equal(
        so3.haar(keys, "haar", 0, (6,))[1:2, :2], so3.haar(keys[1:2], "haar", 0, (2,))
    )
    assert so3.igso3(keys, "heat", 0, eps).shape == (4, 3, 3)


@pytest.mark.parametrize("eps", [0.02, 0.3, 0.9, 1.5])
def test_a_score_gives_back_the_centre_it_came_from(eps, generator):
    w = torch.linspace(0.0, math.pi, 4000, dtype=torch.float64)
    steepest = w[(-so3.igso3_score(w, eps)).argmax()].item()
    sizes = torch.linspace(0.0, 0.97 * steepest, 60, dtype=torch.float64)
    v = directions(60, generator) * sizes[:, None]  # from x to the centre
    score = so3.igso3_tangent(-v, eps)
    assert (so3.igso3_centre(score[None], eps)[0] - v).abs().max() < 2e-4
    strong = so3.igso3_centre(100.0 * score[None, 1:] / eps**2, eps)
    assert (strong.norm(dim=-1) - steepest).abs().max() < 5e-3 or eps < 0.1


def test_a_width_that_is_not_positive_is_refused():
    for eps in (0.0, -1.0, math.nan, torch.tensor([0.1, 0.0])):
        with pytest.raises(UserError, match="positive"):
            so3.igso3_log_density(torch.zeros(2), eps)
