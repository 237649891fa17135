"""Log-likelihoods against closed forms on every path and space, brute force, and published numbers.

Targets are drawn anew each run; a failing test prints their seed.
"""

from __future__ import annotations

import math
import secrets

import pytest
import torch

from driftworks.core.ctmc import Masking
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, Mixture
from driftworks.core.likelihood import (
    decode,
    default_times,
    encode,
    gaussian_prior,
    log_prior,
    log_prob,
)
from driftworks.core.paths import Path
from driftworks.core.predict import PARAMETRISATIONS
from driftworks.core.process import Part, Process
from driftworks.core.spaces import Centred, Flat, Symmetric, Tokens
from driftworks.errors import UserError

DOUBLE = torch.float64
PATHS = {
    "linear": Path.linear(),
    "cosine": Path.cosine(),
    "vp": Path.vp(),
    "subvp": Path.subvp(),
    "ve": Path.ve(),
    "edm": Path.edm(),
}
LINEAR = Process(Part(Flat(), Path.linear(), "velocity"))
FACTOR = torch.tensor([[1.0, 0.0], [0.8, 0.4]], dtype=DOUBLE)
CORRELATED = Gaussian([0.5, -0.3], FACTOR @ FACTOR.T)


@pytest.fixture
def generator():
    seed = secrets.randbits(31)
    print(f"targets of seed {seed}")
    return torch.Generator().manual_seed(seed)


def normal(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=DOUBLE)


def random_gaussian(generator, size, mean=1.0):
    """Correlated, with variances between 0.04 and 2."""
    axes, _ = torch.linalg.qr(normal(generator, size, size))
    variances = 0.04 * 50.0 ** torch.rand(size, generator=generator, dtype=DOUBLE)
    return Gaussian(mean * normal(generator, size), (axes * variances) @ axes.T)


def random_mixture(generator, size):
    laws = [random_gaussian(generator, size) for _ in range(3)]
    weights = 0.2 + torch.rand(3, generator=generator)
    return Mixture(weights, [law.mean for law in laws], [law.matrix(size) for law in laws])


def centred_basis(points, dimensions):
    """Orthonormal columns (points dimensions, (points - 1) dimensions) of zero centre of mass."""
    ones = torch.ones(points, 1, dtype=DOUBLE)
    basis = torch.linalg.qr(torch.cat([ones, torch.eye(points, dtype=DOUBLE)[:, 1:]], 1))[0][:, 1:]
    return torch.kron(basis.contiguous(), torch.eye(dimensions, dtype=DOUBLE))


class Centre:
    """Point clouds of n points by coordinates: the columns of an orthonormal basis."""

    def __init__(self, n, dimensions, padding=0):
        self.basis, self.n, self.dimensions, self.padding = (
            centred_basis(n, dimensions), n, dimensions, padding
        )
        self.size = dimensions * (n - 1)

    def embed(self, u):
        x = (u @ self.basis.T).view(len(u), self.n, self.dimensions)
        return torch.nn.functional.pad(x, (0, 0, 0, self.padding))

    def coordinates(self, x):
        return x[:, : self.n].reshape(len(x), -1) @ self.basis


class Pairs:
    """Symmetric matrices of n nodes by coordinates: the entries above the diagonal."""

    def __init__(self, n, channels, padding=0):
        self.n, self.channels, self.padding = n, channels, padding
        self.i, self.j = torch.triu_indices(n, n, 1)
        self.size = len(self.i) * channels

    def embed(self, u):
        n = self.n + self.padding
        x = u.new_zeros(len(u), n, n, self.channels)
        u = u.view(len(u), -1, self.channels)
        x = x.index_put((torch.arange(len(u))[:, None], self.i, self.j), u)
        return x + x.transpose(1, 2)

    def coordinates(self, x):
        return x[:, self.i, self.j].flatten(1)


def embedded(oracle, chart):
    """The oracle of coordinates as a model of the state, which is garbage where nothing exists."""

    def model(x, t, mask=None, cond=None, previous=None):
        answer = chart.embed(oracle(chart.coordinates(x), t))
        return answer if mask is None else answer.masked_fill(missing(mask, x), torch.nan)

    return model


def missing(mask, x):
    both = mask if x.ndim == 3 else mask.unsqueeze(1) & mask.unsqueeze(2)
    return ~both.view(*both.shape, 1)


# Published numbers


def test_the_correlated_gaussian_has_its_golden_value_and_latent():
    x = torch.tensor([[1.2, 0.1]], dtype=DOUBLE)
    model = CORRELATED.on(Path.linear(), "velocity")
    out = log_prob(model, LINEAR, x, tolerance=1e-9)
    assert out.value.item() == pytest.approx(-1.2465863345, abs=1e-8)
    assert out.latent[0].tolist() == pytest.approx([0.80622577, 0.0], abs=1e-8)
    assert out.stderr.tolist() == [0.0] and out.ok.all() and out.value.dtype == DOUBLE
    fixed = log_prob(model, LINEAR, x, steps=200)
    assert fixed.value.item() == pytest.approx(-1.2465863345, abs=6e-11)
    assert fixed.evaluations.tolist() == [800]


@pytest.mark.parametrize(("size", "value"), [(3, -1.217374), (12, -4.869496)])
def test_independent_gaussians_have_their_golden_values(size, value):
    model = Gaussian(1.0, 0.25).on(Path.linear(), "velocity")
    out = log_prob(model, LINEAR, torch.full((1, size), 0.7, dtype=DOUBLE))
    assert out.value.item() == pytest.approx(value, abs=6e-7)


def test_a_centred_cloud_has_its_golden_value():
    x = torch.sin(torch.arange(15, dtype=DOUBLE)).view(1, 5, 3)
    x = x - x.mean(1, keepdim=True)
    process = Process(Part(Centred(), Path.linear(), "velocity"))
    model = Gaussian(0.0, 1.0).on(Path.linear(), "velocity")
    assert log_prob(model, process, x).value.item() == pytest.approx(-14.61921840, abs=1e-7)
    assert log_prior(process, x).item() == pytest.approx(-14.61921840, abs=6e-9)


# Closed forms


@pytest.mark.parametrize("kind", [random_gaussian, random_mixture], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("name", PATHS)
def test_the_exact_log_likelihood_is_right_on_every_path(name, kind, generator):
    path, law = PATHS[name], kind(generator, 2)
    x = law.sample((3, 2), generator)
    # the prediction goes round with the path, so that each is met; all of them are below
    predicts = PARAMETRISATIONS[list(PATHS).index(name) % 5]
    process, oracle = Process(Part(Flat(), path, predicts)), law.on(path, predicts)
    prior = lambda z, mask: oracle.log_prob(z, 0.0)  # noqa: E731
    out = log_prob(oracle, process, x, prior=prior, tolerance=1e-6)
    blur = path.sigma(1.0)
    assert out.ok.all()
    assert (out.value - law.log_prob(x, 1.0, blur)).abs().max() < 1e-5


@pytest.mark.parametrize("predicts", PARAMETRISATIONS)
@pytest.mark.parametrize("name", ["linear", "vp"])
def test_every_prediction_gives_the_log_likelihood(name, predicts, generator):
    path, law = PATHS[name], random_gaussian(generator, 2)
    x = law.sample((3, 2), generator)
    process, oracle = Process(Part(Flat(), path, predicts)), law.on(path, predicts)
    t0, _ = default_times(process)
    prior = lambda z, mask: oracle.log_prob(z, t0)  # noqa: E731
    out = log_prob(oracle, process, x, prior=prior, tolerance=1e-6)
    assert out.ok.all()
    assert (out.value - law.log_prob(x)).abs().max() < 1e-5


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("chart", [Centre, Pairs])
def test_degrees_of_freedom_are_right_on_constrained_and_masked_spaces(chart, padding, generator):
    chart, space = (chart(4, 2, padding), Centred() if chart is Centre else Symmetric())
    law = random_gaussian(generator, chart.size, mean=0.5)
    u = law.sample((3, chart.size), generator)
    x = chart.embed(u)
    mask = None
    if padding:
        mask = torch.arange(4 + padding).expand(3, -1) < 4
        x = torch.where(missing(mask, x), 7.0, x)  # masked entries may hold anything
    process = Process(Part(space, Path.linear(), "velocity"))
    model = embedded(law.on(Path.linear(), "velocity"), chart)
    exact = law.log_prob(u)
    out = log_prob(model, process, x, mask, tolerance=1e-6)
    assert (out.value - exact).abs().max() < 1e-5
    keys = Keys.for_samples(3, range(3))
    rough = log_prob(model, process, x, mask, keys=keys, probes=16, tolerance=1e-4)
    assert ((rough.value - exact).abs() < 6 * rough.stderr).all()
    assert (rough.stderr > 0.0).all()


def test_parts_of_a_state_share_one_likelihood(generator):
    chart, size = Centre(3, 2), 7
    law = random_gaussian(generator, size, mean=0.5)
    oracle = law.on(Path.linear(), "velocity")
    process = Process(
        {
            "points": Part(Centred(), Path.linear(), "velocity"),
            "rest": Part(Flat(), Path.linear(), "velocity"),
        }
    )

    def model(x, t, mask=None, cond=None, previous=None):
        u = torch.cat([chart.coordinates(x["points"]), x["rest"]], 1)
        answer = oracle(u, t)
        return {"points": chart.embed(answer[:, :4]), "rest": answer[:, 4:]}

    u = law.sample((4, size), generator)
    x = {"points": chart.embed(u[:, :4]), "rest": u[:, 4:]}
    out = log_prob(model, process, x, tolerance=1e-6)
    assert (out.value - law.log_prob(u)).abs().max() < 1e-5
    keys = Keys.for_samples(1, range(4))
    rough = log_prob(model, process, x, keys=keys, probes=16, tolerance=1e-4)
    assert ((rough.value - out.value).abs() < 6 * rough.stderr).all()
    assert set(out.latent) == {"points", "rest"}


def test_a_network_agrees_with_the_jacobian_of_its_flow(generator):
    hidden = normal(generator, 4, 16), normal(generator, 16, 3), normal(generator, 16)

    def model(x, t, mask=None, cond=None, previous=None):
        inputs = torch.cat([x, t[:, None]], 1)
        return torch.tanh(inputs @ hidden[0] + hidden[2]) @ hidden[1] * 0.5

    def flow(x, steps=100):  # a second integrator: midpoint, towards the noise
        h = -1.0 / steps
        for k in range(steps):
            t = x.new_tensor([1.0 + k * h])
            half = x + 0.5 * h * model(x[None], t)[0]
            x = x + h * model(half[None], t + 0.5 * h)[0]
        return x

    x = normal(generator, 3)
    estimates = []
    for steps in (30, 60):
        jacobian = torch.autograd.functional.jacobian(lambda v, n=steps: flow(v, n), x)
        prior = -0.5 * flow(x, steps).square().sum() - 1.5 * math.log(2.0 * math.pi)
        estimates.append(prior + torch.linalg.slogdet(jacobian)[1])
    exact = (4.0 * estimates[1] - estimates[0]) / 3.0  # its error is of order 2
    out = log_prob(model, LINEAR, x[None])
    assert out.value.item() == pytest.approx(exact.item(), abs=2e-4)


def test_float32_is_served_in_float32(generator):
    law = random_gaussian(generator, 3)
    x = law.sample((4, 3), generator)
    seen = set()
    oracle = law.on(Path.linear(), "velocity")

    def model(x, t, mask=None, cond=None, previous=None):
        seen.update((x.dtype, t.dtype))
        return oracle(x, t)

    out = log_prob(model, LINEAR, x.float())
    assert seen == {torch.float32} and out.latent.dtype == torch.float32
    assert (out.value - law.log_prob(x)).abs().max() < 1e-2
    assert (out.value - law.log_prob(x.float())).abs().max() < 2e-3
    keys = Keys.for_samples(0, range(4))
    assert log_prob(model, LINEAR, x.float(), keys=keys, probes=2).value.isfinite().all()


# The stochastic divergence

JACOBIAN = torch.tensor([[1.0, 0.5, -0.2], [0.5, 2.0, 0.3], [-0.2, 0.3, -1.0]], dtype=DOUBLE)


def linear_field(x, t, mask=None, cond=None, previous=None):
    return x @ JACOBIAN.to(x.dtype).T


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_standard_error_is_that_of_a_rademacher_probe(dtype):
    count, probes = 2000, 5
    x = torch.zeros(count, 3, dtype=dtype)
    keys = Keys.for_samples(11, range(count))
    out = log_prob(linear_field, LINEAR, x, keys=keys, probes=probes, steps=2)
    exact = log_prob(linear_field, LINEAR, x[:1], steps=2).value
    assert exact.item() == pytest.approx(-2.0 - 1.5 * math.log(2.0 * math.pi), abs=1e-5)
    error = out.value - exact
    truth = 1.52 / probes  # 2 (|S|_F^2 - sum S_ii^2) of one probe
    assert error.mean().abs() < 4.0 * math.sqrt(truth / count)
    assert error.var().item() == pytest.approx(truth, rel=0.15)
    assert out.stderr.square().mean().item() == pytest.approx(truth, rel=0.1)


def test_the_standard_error_along_a_flow_is_within_a_fifth_of_the_truth(generator):
    law = random_gaussian(generator, 4)
    x = law.sample((1, 4), generator).expand(500, 4)
    model = law.on(Path.linear(), "velocity")
    keys = Keys.for_samples(5, range(500))
    out = log_prob(model, LINEAR, x, keys=keys, probes=4, tolerance=1e-4)
    spread = (out.value - law.log_prob(x[:1])).square().mean().sqrt()
    assert out.stderr.square().mean().sqrt().item() == pytest.approx(spread.item(), rel=0.2)


def test_a_single_probe_has_no_standard_error():
    out = log_prob(
        linear_field, LINEAR, torch.ones(2, 3), keys=Keys.for_samples(0, [4, 9]), probes=1
    )
    assert out.value.isfinite().all() and out.stderr.isnan().all()


def test_probes_on_symmetric_pairs_count_each_pair_once():
    """For b = c x the divergence is c dof without any noise: signs have unit square."""
    process = Process(Part(Symmetric(), Path.linear(), "velocity"))
    keys = Keys.for_samples(2, range(3))
    x, mask = torch.zeros(3, 5, 5, dtype=DOUBLE), torch.arange(5).expand(3, -1) < 4

    def model(x, t, mask=None, cond=None, previous=None):
        return 0.7 * x

    out = log_prob(model, process, x, mask, keys=keys, probes=3)
    exact = log_prob(model, process, x, mask)
    assert torch.allclose(out.value, exact.value, atol=1e-8) and (out.stderr < 1e-10).all()
    expected = -0.7 * 6 - 3.0 * math.log(2.0 * math.pi)
    assert torch.allclose(exact.value, torch.full((3,), expected, dtype=DOUBLE), atol=1e-6)


# What a sample may depend on


@pytest.mark.parametrize("probes", [0, 3])
def test_a_log_likelihood_is_the_same_alone_permuted_and_padded(probes, generator):
    process = Process(Part(Centred(), Path.cosine(), "velocity"))
    keys = Keys.for_samples(8, range(9))
    sizes = torch.tensor([3, 5, 2, 4, 5, 3, 2, 4, 5])
    mask = torch.arange(5) < sizes[:, None]
    x = normal(generator, 9, 5, 2) * mask[..., None]
    weights = normal(generator, 2, 2)

    def model(x, t, mask=None, cond=None, previous=None):
        keep = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        near = torch.exp(-(x.unsqueeze(1) - x.unsqueeze(2)).square().sum(-1)) * keep.unsqueeze(1)
        return torch.tanh((near @ x) @ weights) + cond.view(-1, 1, 1) * x

    cond = torch.linspace(-0.5, 0.5, 9, dtype=DOUBLE)

    def run(rows, mask, padding=0):
        some = torch.nn.functional.pad(x[rows], (0, 0, 0, padding))
        return log_prob(
            model, process, some, mask, keys=keys[rows], probes=probes, cond=cond[rows],
            tolerance=1e-5,
        )

    together = run(torch.arange(9), mask)
    assert together.ok.all()
    for i in (0, 4):
        alone = run(torch.tensor([i]), mask[i : i + 1])
        assert (alone.value - together.value[i]).abs() < 1e-9
        assert alone.evaluations[0] == together.evaluations[i]
    order = torch.randperm(9, generator=generator)
    assert (run(order, mask[order]).value - together.value[order]).abs().max() < 1e-9
    padded = run(torch.arange(9), torch.nn.functional.pad(mask, (0, 3)), padding=3)
    assert (padded.value - together.value).abs().max() < 1e-9


def test_a_condition_that_cannot_be_taken_apart_stays_whole():
    generator = torch.Generator().manual_seed(9)  # samples of this draw arrive at several times
    law = random_gaussian(generator, 2)
    oracle, shifts = law.on(Path.linear(), "velocity"), normal(generator, 6, 2)

    class Shifts:
        rows = shifts

    sizes = []

    def model(x, t, mask=None, cond=None, previous=None):
        shift = cond.rows if isinstance(cond, Shifts) else cond[0]["shift"]
        sizes.append(len(x))
        return oracle(x - t[:, None] * shift, t) + shift  # the law, moved

    x = law.sample((6, 2), generator)
    x[3] += 4.0
    parts = log_prob(model, LINEAR, x + shifts, cond=[{"shift": shifts}])
    assert min(sizes) < 6
    sizes.clear()
    whole = log_prob(model, LINEAR, x + shifts, cond=Shifts())
    assert set(sizes) == {6}
    assert torch.allclose(parts.value, whole.value, atol=1e-10)
    assert torch.allclose(whole.value, law.log_prob(x), atol=1e-5)

    class Holding:
        """A model that keeps what belongs to its samples to itself."""

        whole_batch = True

        def __call__(self, x, t, mask=None, cond=None, previous=None):
            return oracle(x - t[:, None] * shifts, t) + shifts

    held = log_prob(Holding(), LINEAR, x + shifts)
    assert torch.allclose(held.value, whole.value, atol=1e-10)


def test_attention_and_control_flow_can_be_differentiated(generator):
    """Operations without forward derivatives or batching rules are no obstacle."""
    weights = normal(generator, 3, 3).float()

    def model(x, t, mask=None, cond=None, previous=None):
        q = x @ weights
        out = torch.nn.functional.scaled_dot_product_attention(q, q, x)
        return out if float(x.detach().sum()) > -1e9 else x

    process = Process(Part(Centred(), Path.linear(), "velocity"))
    x = normal(generator, 2, 4, 3).float()
    exact = log_prob(model, process, x)
    keys = Keys.for_samples(1, range(2))
    rough = log_prob(model, process, x, keys=keys, probes=16)
    assert exact.ok.all() and ((rough.value - exact.value).abs() < 6 * rough.stderr).all()


# Latents


@pytest.mark.parametrize("predicts", ["denoised", "velocity"])
@pytest.mark.parametrize("name", ["linear", "vp", "edm"])
def test_decoding_an_encoding_returns_the_data(name, predicts, generator):
    path, law = PATHS[name], random_mixture(generator, 2)
    process, oracle = Process(Part(Flat(), path, predicts)), law.on(path, predicts)
    x = law.sample((4, 2), generator)
    z = encode(oracle, process, x)
    back = decode(oracle, process, z.x)
    assert z.ok.all() and back.ok.all()
    assert (back.x - x).abs().max() < 1e-5


def test_latents_at_a_level_follow_the_exact_flow(generator):
    path, law = Path.vp(), random_gaussian(generator, 3)
    process, oracle = Process(Part(Flat(), path, "velocity")), law.on(path, "velocity")
    x = law.sample((3, 3), generator)
    levels = torch.tensor([0.2, 0.5, 0.9], dtype=DOUBLE)
    z = encode(oracle, process, x, times=(levels, 1.0))
    assert (z.x - oracle.flow(x, 1.0, levels)).abs().max() < 1e-5
    back = decode(oracle, process, z.x, times=(levels, 1.0))
    assert (back.x - x).abs().max() < 1e-5
    assert (log_prob(oracle, process, x).latent - oracle.flow(x, 1.0, 0.0)).abs().max() < 1e-5


def test_the_density_at_an_earlier_time_is_that_of_blurred_data(generator):
    path, law = Path.cosine(), random_gaussian(generator, 2)
    process, oracle = Process(Part(Flat(), path, "velocity")), law.on(path, "velocity")
    x = law.sample((4, 2), generator)
    t = torch.tensor([0.4, 0.6, 0.8, 1.0], dtype=DOUBLE)
    out = log_prob(oracle, process, x, times=(0.0, t))
    assert torch.allclose(out.value, law.log_prob(x, 1.0, path.sigma(t) / path.beta(t)), atol=1e-5)


def test_the_prior_gap_is_as_stated_and_the_matched_prior_closes_it(generator):
    path, variance, mean = Path.ve(0.01, 3.0), 0.8, 0.4
    law, process = Gaussian(mean, variance), Process(Part(Flat(), path, "noise"))
    model, size = law.on(path, "noise"), 6
    x = law.sample((400, size), generator)
    exact = law.log_prob(x, 1.0, path.sigma(1.0))
    plain = log_prob(model, process, x, tolerance=1e-5).value
    r = variance / 9.0
    gap = size * (0.5 * (r - math.log1p(r)) + mean**2 / 18.0)
    error = exact - plain
    assert abs(error.mean().item() - gap) < 5.0 * error.std().item() / 20.0
    assert gap > 0.05
    matched = gaussian_prior(process, variance, mean)
    assert (log_prob(model, process, x[:5], prior=matched).value - exact[:5]).abs().max() < 1e-5


def test_the_matched_prior_lies_in_the_space(generator):
    process = Process(Part(Centred(), Path.vp(), "noise"))
    z = normal(generator, 2, 4, 3)
    z = z - z.mean(1, keepdim=True)
    law = gaussian_prior(process, 2.0, torch.ones(3))  # a shift of all points is no mean
    spread = Path.vp().sigma(0.0) ** 2 + 2.0 * Path.vp().beta(0.0) ** 2
    expected = -0.5 * z.square().sum((1, 2)) / spread - 4.5 * math.log(2.0 * math.pi * spread)
    assert torch.allclose(law(z, None), expected, atol=1e-10)


# Mistakes and failures


def test_token_parts_have_no_likelihood():
    process = Process({"types": Part(Tokens(3), Masking())})
    with pytest.raises(UserError, match="part 'types' follows Masking.*has no probability flow"):
        log_prob(linear_field, process, {"types": torch.zeros(2, 3, dtype=torch.int64)})


def test_settings_that_do_not_fit_are_named():
    x = torch.zeros(2, 3)
    with pytest.raises(UserError, match="4 probes need keys"):
        log_prob(linear_field, LINEAR, x, probes=4)
    with pytest.raises(UserError, match="probes must be 0 or a number of probes, got -1"):
        log_prob(linear_field, LINEAR, x, probes=-1)
    with pytest.raises(UserError, match="3 keys for 2 samples"):
        log_prob(linear_field, LINEAR, x, probes=2, keys=Keys.for_samples(0, range(3)))
    with pytest.raises(UserError, match="0 <= t0 <= t1 <= 1, got"):
        encode(linear_field, LINEAR, x, times=(0.5, 0.2))
    with pytest.raises(UserError, match="times must be a pair"):
        decode(linear_field, LINEAR, x, times=0.5)
    with pytest.raises(UserError, match=r"prior must return \(2,\), got \(2, 3\)"):
        log_prob(linear_field, LINEAR, x, prior=lambda z, mask: z)
    with pytest.raises(UserError, match="carries no derivative in the state"):
        log_prob(lambda x, t, **_: torch.no_grad()(linear_field)(x, t), LINEAR, x)
    with pytest.raises(UserError, match="variance of part 'x' must be >= 0, got -1"):
        gaussian_prior(LINEAR, -1.0)
    with pytest.raises(ValueError, match=r"part 'x' has shape \(2, 1\)"):
        log_prob(lambda x, t, **_: x[:, :1], LINEAR, x)


def test_a_flow_that_fails_is_flagged_and_harms_nobody(generator):
    law = random_gaussian(generator, 2)
    oracle = law.on(Path.linear(), "velocity")

    def model(x, t, mask=None, cond=None, previous=None):
        answer = oracle(x, t)
        return torch.where(cond[:, None], answer, torch.nan)

    x = law.sample((3, 2), generator)
    sound = torch.tensor([True, False, True])
    with pytest.warns(RuntimeWarning, match="flow of 1 of 3 samples did not arrive"):
        out = log_prob(model, LINEAR, x, cond=sound)
    assert out.ok.tolist() == sound.tolist() and out.value.isnan().tolist() == [False, True, False]
    assert torch.allclose(out.value[sound], law.log_prob(x)[sound], atol=1e-5)
    with pytest.warns(RuntimeWarning, match="flow of 3 of 3"):
        assert not log_prob(oracle, LINEAR, x, max_evaluations=20).ok.any()


def test_no_gradient_is_recorded_and_parameters_stay_untouched():
    weight = torch.eye(3, requires_grad=True)

    def model(x, t, mask=None, cond=None, previous=None):
        return x @ weight

    out = log_prob(model, LINEAR, torch.ones(1, 3))
    assert not out.value.requires_grad and not out.latent.requires_grad and weight.grad is None


def test_what_is_no_batch_of_samples_is_refused():
    oracle = Gaussian(0.0, 1.0).on(Path.linear())
    for x in (torch.zeros(3), torch.tensor(0.0)):
        with pytest.raises(UserError, match=r"part 'x' must be a tensor \(B, ...\), samples first"):
            log_prob(oracle, LINEAR, x)
