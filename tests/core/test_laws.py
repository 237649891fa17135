"""Oracles against quadrature, automatic derivatives, integrated flows and published numbers."""

from __future__ import annotations

import math
import os
import random

import pytest
import torch

from driftworks.core.laws import Gaussian, Mixture, Oracle, table_law, w2
from driftworks.core.paths import Path
from driftworks.core.predict import PARAMETRISATIONS
from driftworks.core.tables import Table
from driftworks.errors import UserError

PATHS = {
    "linear": Path.linear(),
    "cosine": Path.cosine(),
    "vp": Path.vp(),
    "subvp": Path.subvp(),
    "ve": Path.ve(),
    "edm": Path.edm(),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
GOLDEN_MIXTURE = Mixture([0.3, 0.7], [-2.0, 1.5], [0.09, 0.25])
MEAN = torch.tensor([0.5, -0.3], dtype=torch.float64)
FACTOR = torch.tensor([[1.0, 0.0], [0.8, 0.4]], dtype=torch.float64)
CORRELATED = Gaussian(MEAN, FACTOR @ FACTOR.T)
PLANAR_MIXTURE = Mixture(
    [1.0, 2.0, 0.5],
    [[0.5, -0.3], [-1.0, 1.0], [2.0, 0.0]],
    [(FACTOR @ FACTOR.T).tolist(), [[0.3, -0.1], [-0.1, 0.2]], [[0.1, 0.0], [0.0, 0.6]]],
)
PLANAR_LAWS = {"gaussian": CORRELATED, "mixture": PLANAR_MIXTURE}
every_planar_law = pytest.mark.parametrize("law", PLANAR_LAWS.values(), ids=PLANAR_LAWS.keys())


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def states(oracle, t, shape, seed=0):
    """Plausible states x_t, spread a little wider than the law itself."""
    generator = torch.Generator().manual_seed(seed)
    x1 = oracle.law.sample(shape, generator)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return oracle.path.beta(t) * x1 + 1.3 * oracle.path.sigma(t) * noise


@pytest.mark.parametrize(
    ("t", "x", "log_prob", "score", "denoised", "velocity"),
    [
        (0.5, 0.4, -0.874843, 1.025631, 1.312815, 1.825631),
        (0.9, -1.0, -4.737766, -9.646924, -1.218299, -2.182992),
        (0.2, 1.0, -1.308793, -1.209226, 1.130478, 0.163097),
    ],
)
def test_the_mixture_has_its_golden_values_on_the_linear_path(
    t, x, log_prob, score, denoised, velocity
):
    oracle, x = GOLDEN_MIXTURE.on(Path.linear()), tensor([x])
    assert oracle.log_prob(x, t).item() == pytest.approx(log_prob, abs=6e-7)
    assert oracle.score(x, t).item() == pytest.approx(score, abs=6e-7)
    assert oracle.denoised(x, t).item() == pytest.approx(denoised, abs=6e-7)
    assert oracle.velocity(x, t).item() == pytest.approx(velocity, abs=6e-7)


@pytest.mark.parametrize(
    ("name", "variance", "velocity", "score", "denoised"),
    [
        ("linear", 0.312500, 0.760000, -0.640000, 1.080000),
        ("cosine", 0.625000, 1.117419, 0.011371, 0.997990),
        ("vp", 0.940702, 1.280282, -0.445218, 1.031297),
        ("subvp", 0.867889, 1.107746, -0.482570, 1.033923),
        ("ve", 0.750000, 1.703439, 0.400000, 0.900000),
        ("edm", 1600.25, 0.599906, 0.000187, 0.999953),
    ],
)
def test_the_gaussian_has_its_golden_values_on_every_path(
    name, variance, velocity, score, denoised
):
    path, x = PATHS[name], tensor([0.7])
    oracle = Gaussian(1.0, 0.25).on(path)
    normal = torch.distributions.Normal(path.beta(0.5), math.sqrt(variance))
    assert oracle.log_prob(x, 0.5).item() == pytest.approx(normal.log_prob(x).item(), abs=2e-6)
    assert oracle.velocity(x, 0.5).item() == pytest.approx(velocity, abs=6e-7)
    assert oracle.score(x, 0.5).item() == pytest.approx(score, abs=6e-7)
    assert oracle.denoised(x, 0.5).item() == pytest.approx(denoised, abs=6e-7)


@pytest.mark.parametrize(("size", "value"), [(3, -1.217374), (12, -4.869496)])
def test_independent_coordinates_add_up_to_the_golden_likelihoods(size, value):
    x = torch.full((2, size), 0.7, dtype=torch.float64)
    found = Gaussian(1.0, 0.25).log_prob(x)
    assert found.tolist() == pytest.approx([value] * 2, abs=6e-7)
    assert Gaussian(1.0, 0.25).log_prob(x.reshape(2, size // 3, 3)).tolist() == found.tolist()


def test_the_correlated_gaussian_has_its_golden_likelihood_and_latent():
    oracle, x = CORRELATED.on(Path.linear()), tensor([[1.2, 0.1]])
    assert oracle.log_prob(x, 1.0).item() == pytest.approx(-1.2465863345, abs=6e-11)
    latent = oracle.flow(x, 1.0, 0.0)
    assert latent[0].tolist() == pytest.approx([0.80622577, 0.0], abs=6e-9)
    # the density of the latent and the determinant of the flow make up the same likelihood
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(latent).sum()
    determinant = torch.linalg.det(FACTOR).log()
    assert (prior - determinant).item() == pytest.approx(-1.2465863345, abs=6e-11)


@every_path
def test_posterior_means_and_density_agree_with_quadrature(path):
    oracle = GOLDEN_MIXTURE.on(path)
    x1 = torch.linspace(-6.0, 6.0, 40001, dtype=torch.float64)
    data = 0.3 * torch.exp(-0.5 * (x1 + 2.0) ** 2 / 0.09) / math.sqrt(0.09)
    data = data + 0.7 * torch.exp(-0.5 * (x1 - 1.5) ** 2 / 0.25) / math.sqrt(0.25)
    data = data / math.sqrt(2 * math.pi)
    for t in (0.1, 0.5, 0.9):
        beta, sigma = path.beta(t), path.sigma(t)
        for x in (-1.2, 0.3, 1.6):
            noise = (x - beta * x1) / sigma
            joint = data * torch.exp(-0.5 * noise**2) / (sigma * math.sqrt(2 * math.pi))
            density = torch.trapezoid(joint, x1)
            state = tensor([x])
            wanted = torch.trapezoid(joint * x1, x1) / density
            assert oracle.denoised(state, t).item() == pytest.approx(wanted.item(), abs=1e-8)
            wanted = torch.trapezoid(joint * noise, x1) / density
            assert oracle.noise(state, t).item() == pytest.approx(wanted.item(), abs=1e-8)
            assert oracle.log_prob(state, t).item() == pytest.approx(density.log().item(), abs=1e-8)


@every_planar_law
@every_path
def test_the_score_is_the_gradient_of_the_log_density(law, path):
    oracle = law.on(path)
    for t in (0.0, 0.3, 0.8, 1.0):
        x = states(oracle, t, (20, 2)).requires_grad_()
        gradient = torch.autograd.grad(oracle.log_prob(x, t).sum(), x)[0]
        torch.testing.assert_close(oracle.score(x, t).detach(), gradient, rtol=1e-9, atol=1e-10)


@every_planar_law
@every_path
def test_the_velocity_carries_the_density(law, path):
    # continuity: d_t log rho + div b + b . grad log rho = 0
    oracle, step = law.on(path), 1e-5
    for t in (0.2, 0.5, 0.9):
        x = states(oracle, t, (20, 2)).requires_grad_()
        later, sooner = oracle.log_prob(x, t + step), oracle.log_prob(x, t - step)
        rate = (later - sooner) / (2 * step)
        velocity = oracle.velocity(x, t)
        divergence = sum(
            torch.autograd.grad(velocity[:, k].sum(), x, retain_graph=True)[0][:, k] for k in (0, 1)
        )
        inner = (velocity * oracle.score(x, t)).sum(1)
        size = divergence.abs() + inner.abs() + 1.0
        assert ((rate + divergence + inner).abs() / size).max() < 1e-6


@pytest.mark.parametrize("law", [GOLDEN_MIXTURE, Gaussian(0.4, 0.3)], ids=["mixture", "gaussian"])
@every_path
def test_densities_integrate_to_one(law, path):
    for t in (0.0, 0.4, 1.0):
        width = 12 * math.hypot(path.sigma(t), 1.0)
        x = torch.linspace(-width, width, 200001, dtype=torch.float64)
        density = law.on(path).log_prob(x, t).exp()
        assert torch.trapezoid(density, x).item() == pytest.approx(1.0, abs=1e-9)


@every_path
def test_the_flow_of_a_gaussian_is_the_integral_of_its_velocity(path):
    oracle = CORRELATED.on(path)
    x = states(oracle, 0.1, (10, 2))
    start, stop, steps = 0.1, 0.95, 800
    found, h = x.clone(), (stop - start) / steps
    for k in range(steps):
        t = start + k * h
        k1 = oracle.velocity(found, t)
        k2 = oracle.velocity(found + 0.5 * h * k1, t + 0.5 * h)
        k3 = oracle.velocity(found + 0.5 * h * k2, t + 0.5 * h)
        k4 = oracle.velocity(found + h * k3, t + h)
        found = found + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    torch.testing.assert_close(found, oracle.flow(x, start, stop), rtol=1e-7, atol=1e-7)


@every_path
def test_the_flow_composes_returns_and_moves_the_law(path):
    oracle = CORRELATED.on(path)
    x = states(oracle, 0.0, (10, 2))
    close = {"rtol": 1e-9, "atol": 1e-10}
    through = oracle.flow(oracle.flow(x, 0.0, 0.6), 0.6, 1.0)
    torch.testing.assert_close(through, oracle.flow(x, 0.0, 1.0), **close)
    torch.testing.assert_close(oracle.flow(through, 1.0, 0.0), x, rtol=1e-9, atol=1e-8)
    # change of variables with the flow's Jacobian
    x = x[:1]
    jacobian = torch.autograd.functional.jacobian(lambda y: oracle.flow(y, 0.0, 1.0), x)[0, :, 0]
    moved = oracle.log_prob(x, 0.0) - torch.linalg.det(jacobian).abs().log()
    torch.testing.assert_close(oracle.log_prob(oracle.flow(x, 0.0, 1.0), 1.0), moved, **close)


@every_path
def test_flow_times_may_differ_by_sample(path):
    oracle = CORRELATED.on(path)
    x, t, u = states(oracle, 0.2, (3, 2)), tensor([0.2, 0.5, 0.9]), tensor([1.0, 0.0, 0.3])
    found = oracle.flow(x, t, u)
    for k in range(3):
        alone = oracle.flow(x[k : k + 1], t[k].item(), u[k].item())
        torch.testing.assert_close(found[k : k + 1], alone)


@every_planar_law
@every_path
@pytest.mark.parametrize("kind", PARAMETRISATIONS)
def test_every_answer_is_finite_at_both_ends_and_continuous_there(law, path, kind):
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    answer = getattr(law.on(path), kind)
    for end, inside in ((0.0, 1e-10), (1.0, 1 - 1e-10)):
        assert answer(x, end).isfinite().all()
        torch.testing.assert_close(answer(x, end), answer(x, inside), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("law", [Gaussian(0.3, 0.5), GOLDEN_MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("shape", [(3, 5, 3), (5, 5, 5), (4, 4, 4), (3,), (3, 1)])
@pytest.mark.parametrize("kind", [*PARAMETRISATIONS, "log_prob"])
def test_oracles_take_each_sample_at_its_own_time(law, shape, kind):
    answer = getattr(law.on(Path.vp()), kind)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, shape[0], dtype=torch.float64)
    found = answer(x, t)
    loop = [answer(x[k : k + 1], t[k].item()) for k in range(shape[0])]
    torch.testing.assert_close(found, torch.cat(loop), rtol=1e-12, atol=1e-12)
    assert found.shape == (shape[:1] if kind == "log_prob" else x.shape)


def test_a_matrix_acts_on_the_flattened_entry():
    generator = torch.Generator().manual_seed(3)
    factor = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    mean, cov = torch.arange(6.0).double(), factor @ factor.T
    law, x = Gaussian(mean.mean(), cov), torch.randn(4, 2, 3, generator=generator).double()
    reference = torch.distributions.MultivariateNormal(mean.mean().expand(6), cov)
    torch.testing.assert_close(law.log_prob(x), reference.log_prob(x.flatten(1)))
    torch.testing.assert_close(law.matrix(6), cov)
    flat = Gaussian(mean, cov).on(Path.cosine()).denoised(x.flatten(1), 0.6)
    marginal = 0.809016994374947**2 * cov + (1 - 0.809016994374947**2) * torch.eye(6)
    shift = x.flatten(1) - 0.809016994374947 * mean
    wanted = mean + 0.809016994374947 * torch.linalg.solve(marginal, shift.T).T @ cov
    torch.testing.assert_close(flat, wanted)


def test_variances_may_differ_by_coordinate():
    variances = tensor([[0.1, 1.0, 2.0], [0.5, 0.5, 4.0]])
    mean, x = (
        tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]),
        torch.arange(24.0).reshape(4, 2, 3).double(),
    )
    law = Gaussian(mean, variances)
    wanted = torch.distributions.Normal(mean, variances.sqrt()).log_prob(x).sum((1, 2))
    torch.testing.assert_close(law.log_prob(x), wanted)
    score = law.on(Path.linear()).score(x, 0.7)
    torch.testing.assert_close(score, -(x - 0.7 * mean) / (0.49 * variances + 0.09))


def test_a_law_without_spread_in_some_direction_keeps_to_its_plane():
    line = Gaussian([1.0, 1.0], [[2.0, 2.0], [2.0, 2.0]]).on(Path.linear())
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (0.0, 0.5, 1.0):
        denoised = line.denoised(x, t)
        torch.testing.assert_close(denoised[:, 0], denoised[:, 1])
    point = Gaussian(0.7, 0.0).on(Path.linear())
    assert (point.denoised(x, 0.9) == 0.7).all() and (point.denoised(x, 1.0) == 0.7).all()


@pytest.mark.parametrize("predicts", PARAMETRISATIONS)
def test_an_oracle_is_a_model_that_answers_as_asked(predicts):
    oracle, t = PLANAR_MIXTURE.on(Path.vp(), predicts), torch.tensor([0.2, 0.5, 0.9])
    x = torch.tensor([[0.1, 0.7], [-1.0, 0.4], [0.3, 0.3]])
    assert isinstance(oracle, Oracle) and oracle.predicts == predicts
    found = oracle(x, t, mask=torch.ones(3, dtype=torch.bool), cond=None, previous=x)
    assert found.dtype == torch.float32
    assert torch.equal(found, getattr(oracle, predicts)(x, t))
    assert PLANAR_MIXTURE.on(Path.vp()).predicts == "denoised"


@every_planar_law
def test_samples_have_the_moments_of_the_law(law):
    count = 200_000
    x = law.sample((count, 2), torch.Generator().manual_seed(11))
    cov = law.matrix(2)
    deviation = (x.mean(0) - law.mean) / (cov.diagonal() / count).sqrt()
    assert deviation.abs().max() < 4.5
    # the error of a covariance entry, from the spread of the products themselves
    centred = x - law.mean
    products = centred[:, :, None] * centred[:, None, :]
    deviation = (products.mean(0) - cov) / (products.std(0) / math.sqrt(count))
    assert deviation.abs().max() < 4.5
    again = law.sample((count, 2), torch.Generator().manual_seed(11))
    assert torch.equal(x, again)


def test_a_mixture_of_points_clouds_is_chosen_once_per_sample():
    x = Mixture([1.0, 1.0], [-10.0, 10.0], [1.0, 1.0]).sample(
        (1000, 4, 3), torch.Generator().manual_seed(0)
    )
    sides = x.sign().flatten(1)
    assert (sides == sides[:, :1]).all() and 420 < (sides[:, 0] > 0).sum() < 580


def test_sampling_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    PLANAR_MIXTURE.sample((10, 2), torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.random.get_rng_state())


def test_responsibilities_are_probabilities_and_name_the_nearest_component():
    shares = PLANAR_MIXTURE.responsibilities(tensor([[-1.0, 1.0], [2.0, 0.9]]))
    torch.testing.assert_close(shares.sum(0), torch.ones(2, dtype=torch.float64))
    assert shares.argmax(0).tolist() == [1, 2]


def test_far_outliers_have_finite_answers_under_a_mixture():
    x = tensor([-1e4, 1e4])
    oracle = GOLDEN_MIXTURE.on(Path.linear())
    for kind in (*PARAMETRISATIONS, "log_prob"):
        assert getattr(oracle, kind)(x, 0.99).isfinite().all()


def test_the_wasserstein_distance_is_the_cost_of_the_optimal_map():
    # x -> A x + c with A symmetric positive is optimal, whatever the covariance it starts from
    generator = torch.Generator().manual_seed(5)
    root, other = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    cov, a = root @ root.T, other @ other.T + 0.1 * torch.eye(4, dtype=torch.float64)
    mean, shift = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    moved = a @ cov @ a
    rest = torch.eye(4, dtype=torch.float64) - a
    cost = shift.square().sum() + (rest @ cov @ rest).trace()
    p, q = Gaussian(mean, cov), Gaussian(mean + shift, moved)
    assert w2(p, q) == pytest.approx(math.sqrt(cost), rel=1e-9)
    assert w2(q, p) == pytest.approx(math.sqrt(cost), rel=1e-9)
    assert w2(p, p) == pytest.approx(0.0, abs=1e-6)


def test_the_wasserstein_distance_of_numbers_and_mixed_forms():
    assert w2(Gaussian(1.0, 4.0), Gaussian(-2.0, 1.0)) == pytest.approx(math.sqrt(9 + 1))
    wide, matrix = Gaussian([0.0, 0.0], [4.0, 9.0]), Gaussian([3.0, 4.0], torch.eye(2))
    assert w2(wide, matrix) == pytest.approx(math.sqrt(25 + 1 + 4))
    assert w2(Gaussian(0.0, 4.0), matrix) == pytest.approx(math.sqrt(25 + 1 + 1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Gaussian(0.0, -1.0), "covariance is not positive: its least variance is -1"),
        (lambda: Gaussian(0.0, math.nan), "covariance is not positive"),
        (lambda: Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), "its least variance is -1"),
        (lambda: Gaussian([0.0, 0.0], [[1.0, 0.5], [0.2, 1.0]]), "matrix is not symmetric"),
        (lambda: Mixture([0.5, -0.5], [0.0, 1.0], [1.0, 1.0]), "weights must be positive"),
        (lambda: Mixture([1.0], [0.0, 1.0], [1.0, 1.0]), "1 weights, 2 means, 2 covariances"),
        (lambda: GOLDEN_MIXTURE.on(Path.linear(), "x0"), "unknown parametrisation 'x0'"),
        (lambda: GOLDEN_MIXTURE.on(Path.vp()).flow(torch.ones(1), 0.0, 1.0), "only a Gaussian"),
    ],
)
def test_impossible_laws_are_refused_with_the_reason(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_a_mean_that_does_not_fit_the_entries_is_refused():
    with pytest.raises(ValueError, match=r"mean \(3,\) does not fit x \(4, 1\)"):
        Gaussian(torch.zeros(3), 1.0).score(torch.zeros(4, 1))


def random_table(seed, shapes):
    """Five rows that use every field; coefficients are numbers or, in turn, of the given shapes."""
    generator = random.Random(seed)

    def weight(*shape):
        (shape,) = shape or (generator.choice([None, *shapes]),)
        number = generator.uniform(-0.8, 0.8)
        if shape is None:
            return number
        numbers = [generator.uniform(-0.8, 0.8) for _ in range(math.prod(shape))]
        return tensor(numbers).reshape(shape)

    rows = range(5)
    a = tuple(tuple(weight() for _ in range(min(k + 1, 3))) for k in rows)
    b = tuple(tuple(weight() for _ in range(min(k + 1, generator.choice([1, 2, 4])))) for k in rows)
    # every shape is there at least once: together they tell the shape of an entry
    others = [generator.choice([None, *shapes]) for _ in rows]
    c = tuple(weight(shape) for shape in [*shapes, *others][:5])
    times = (0.1, 0.3, 0.3, 0.6, 0.8)
    d = (0.0, *[generator.uniform(-0.8, 0.8) for _ in range(4)])
    return Table("random", 0, times, (0.3, 0.3, 0.6, 0.8, 0.9), a, b, c, d)


def literally(table, oracle, x, noise, shape):
    """The states after each row for one entry of ``shape``, row by row as `Table` defines it."""

    def times(weight, value):
        if not isinstance(weight, torch.Tensor):
            return weight * value
        return weight.reshape(weight.shape[1:] + (1,) * (len(shape) + 1 - weight.ndim)) * value

    states, answers = [x], []
    for k, t in enumerate(table.times):
        answers.append(oracle.denoised(states[k].flatten()[None], t).reshape(shape))
        new = times(table.c[k], noise[k]) + (table.d[k] * noise[k - 1] if k else 0.0)
        new = new + sum(times(w, states[k - j]) for j, w in enumerate(table.a[k]))
        new = new + sum(times(w, answers[k - j]) for j, w in enumerate(table.b[k]))
        states.append(new)
    return torch.stack(states[1:])


@pytest.mark.parametrize(
    ("shape", "shapes"),
    [((1,), []), ((3,), []), ((3,), [(1, 3), (1, 1)]), ((2, 3), [(1, 2), (1, 2, 1), (1, 1, 3)])],
)
def test_the_law_of_a_table_is_that_of_its_rows_carried_out_literally(shape, shapes):
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    generator, size = torch.Generator().manual_seed(seed), math.prod(shape)
    factor = torch.randn(size, size, generator=generator, dtype=torch.float64)
    mean = torch.randn(size, generator=generator, dtype=torch.float64)
    path, table = Path.cosine(), random_table(seed, shapes)
    oracle = Gaussian(mean, factor @ factor.T).on(path)
    start = Gaussian(-mean, torch.eye(size) + factor @ factor.T)
    laws = table_law(table, oracle, start)

    zero, still = torch.zeros(shape).double(), torch.zeros(len(table), *shape).double()

    def run(x, noise):
        return literally(table, oracle, x, noise, shape).flatten(1)

    means = run(start.mean.reshape(shape), still)
    of_x, of_noise = torch.autograd.functional.jacobian(run, (zero, still))
    of_x, of_noise = of_x.flatten(2), of_noise.flatten(2)
    covs = of_x @ start.matrix(size) @ of_x.mT + of_noise @ of_noise.mT
    for law, wanted, cov in zip(laws, means, covs, strict=True):
        torch.testing.assert_close(law.mean, wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(law.matrix(size), cov, rtol=1e-9, atol=1e-9)


def test_coefficients_per_entry_spread_a_law_of_plain_numbers_over_entries():
    levels = tensor([[0.3, 0.5]])
    table = Table("two", 1, (0.5,), (0.6,), ((0.2,),), ((0.1,),), (levels,))
    oracle, start = Gaussian(1.0, 0.25).on(Path.linear()), Gaussian(0.0, 1.0)
    (law,) = table_law(table, oracle, start)
    for k, level in enumerate((0.3, 0.5)):
        alone = Table("one", 1, (0.5,), (0.6,), ((0.2,),), ((0.1,),), (level,))
        (wanted,) = table_law(alone, oracle, start)
        assert law.matrix(2)[k, k].item() == pytest.approx(wanted.matrix(1).item(), rel=1e-12)
        assert law.mean[k].item() == pytest.approx(wanted.mean.item(), rel=1e-12)


def test_a_table_whose_coefficients_do_not_fit_the_law_is_refused():
    def table(shape):
        return Table("odd", 1, (0.5,), (0.6,), ((0.2,),), ((0.1,),), (torch.ones(shape),))

    with pytest.raises(UserError, match=r"that of one entry, its weights must be \(1, ...\)"):
        table_law(table((2, 3)), Gaussian(0.0, 1.0).on(Path.linear()))
    with pytest.raises(UserError, match=r"weights of entries \(3,\) do not fit a law of 2 numbers"):
        table_law(table((1, 3)), CORRELATED.on(Path.linear()))
    with pytest.raises(UserError, match=r"weights of entries \(3,\) do not fit the law"):
        table_law(table((1, 3)), Gaussian([0.0, 1.0], [1.0, 2.0]).on(Path.linear()))
