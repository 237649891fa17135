"""SiD against closed forms: gradients, sign flips, masks, order; forgetting; the SDS gradient."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from driftworks.core import (
    Centred,
    Flat,
    Gaussian,
    Keys,
    Masking,
    Mixture,
    Part,
    Path,
    Process,
    Symmetric,
    Tokens,
)
from driftworks.core.distill import (
    PseudoHuber,
    Relabelled,
    denoise,
    fisher,
    posterior_weight,
    sds_gradient,
    sid_loss,
    squared,
)
from driftworks.core.student import Distiller, Student
from driftworks.errors import UserError

DOUBLE = torch.float64
PATHS = [Path.linear(), Path.cosine(), Path.vp(), Path.subvp(), Path.ve(0.05, 8.0), Path.edm(8.0)]


def uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=rng, dtype=DOUBLE).item()


def quadrature(nodes: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Two independent standard normals as nodes, and their weights."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    first, second = np.meshgrid(x, x)
    weight = np.outer(w, w) / w.sum() ** 2
    return tuple(torch.tensor(v.ravel()) for v in (first, second, weight))  # type: ignore[return-value]


def loss_of_line(
    path: Path, t: float, mean: Tensor, theta: Tensor, teacher: Gaussian, **settings
):
    """The expected loss (no sampling) of the student x_g = mean + theta z with its exact critic."""
    z, e, weight = quadrature()
    process = Process(Part(Flat(), path))
    x = (mean + theta * z)[:, None]
    times = torch.full((len(z),), t, dtype=DOUBLE)
    bridge = process.bridge(x, times, Keys.for_samples(0, range(len(z))), x_0=e[:, None])
    critic = Gaussian(mean.item(), theta.item() ** 2)
    loss = sid_loss(teacher.on(path), critic.on(path), process, bridge, **settings)
    return (loss.samples * weight).sum(), loss


def grads_of_line(path: Path, t: float, mean: float, theta: float, teacher: Gaussian, **settings):
    m, s = (torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in (mean, theta))
    total, loss = loss_of_line(path, t, m, s, teacher, **settings)
    return *(g.item() for g in torch.autograd.grad(total, (m, s))), loss


GOLDEN = [(0.2, -0.113822485), (1.0, 0.78), (2.0, 2.4), (3.0, 3.78)]


@pytest.mark.parametrize(("theta", "gradient"), GOLDEN)
def test_half_alpha_is_half_the_golden_gradient(theta: float, gradient: float) -> None:
    path = Path.edm(80.0)
    _, found, _ = grads_of_line(path, 1 - 1 / 80, 0.0, theta, Gaussian(0.0, 0.25), weight=fisher)
    assert 2 * found == pytest.approx(gradient, abs=1e-8)


def test_alpha_above_one_flips_the_sign_and_says_so() -> None:
    with pytest.warns(RuntimeWarning, match="spread and mean"):
        _, found, loss = grads_of_line(
            Path.edm(80.0), 1 - 1 / 80, 0.0, 3.0, Gaussian(0.0, 0.25), alpha=1.2, weight=fisher
        )
    assert found == pytest.approx(-0.168, abs=1e-9)
    assert loss.excess["x"].item() == pytest.approx((0.9 - 0.2) / 0.8)


def gains(path: Path, t: float, variance: float) -> float:
    snr = (path.beta(t) / path.sigma(t)) ** 2
    return variance * snr / (variance * snr + 1)


def divergence(path: Path, t: float, mean: float, theta: float, teacher: Gaussian) -> float:
    """E |D_p - D_q|^2 over x_t of N(mean, theta^2), both denoisers exact: closed form."""
    beta, sigma = path.beta(t), path.sigma(t)
    vp, mp = teacher.variances.item(), teacher.mean.item()
    kp, kq = gains(path, t, vp), gains(path, t, theta**2)
    spread = theta**2 + (sigma / beta) ** 2
    return (kp - kq) ** 2 * spread + ((1 - kp) * (mp - mean)) ** 2


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_the_gradient_is_that_of_the_divergence_on_every_path(path: Path, rng) -> None:
    for _ in range(4):
        t, h = uniform(rng, 0.3, 0.9), 1e-5
        mean, theta = uniform(rng, -1, 1), uniform(rng, 0.2, 2)
        teacher = Gaussian(uniform(rng, -1, 1), uniform(rng, 0.1, 2))
        by_mean, by_theta, _ = grads_of_line(path, t, mean, theta, teacher)
        steps = [(mean + h, theta), (mean - h, theta), (mean, theta + h), (mean, theta - h)]
        f = [divergence(path, t, m, s, teacher) for m, s in steps]
        assert 2 * by_mean == pytest.approx((f[0] - f[1]) / (2 * h), rel=1e-5, abs=1e-7)
        assert 2 * by_theta == pytest.approx((f[2] - f[3]) / (2 * h), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("distance", [squared, PseudoHuber(0.3)])
def test_half_alpha_is_exact_for_a_distance_of_score_implicit_matching(distance, rng) -> None:
    path, h = Path.linear(), 1e-4
    teacher = Gaussian(uniform(rng, -1, 1), uniform(rng, 0.1, 2))
    t, mean, theta = uniform(rng, 0.3, 0.8), uniform(rng, -1, 1), uniform(rng, 0.5, 1.5)
    # PseudoHuber has a corner of width .3 / slope in x: equal steps resolve it, where the nodes of
    # a Gauss rule, .3 apart in the middle, may not
    x = np.linspace(-8.0, 8.0, 2001)
    w = np.exp(-0.5 * x * x)

    def exact(m: float, s: float) -> float:
        beta, sigma = path.beta(t), path.sigma(t)
        state = beta * m + math.sqrt(beta**2 * s**2 + sigma**2) * torch.tensor(x)[:, None]
        gap = teacher.on(path).denoised(state, t) - Gaussian(m, s**2).on(path).denoised(state, t)
        return float((distance(gap.square().flatten())[0] * torch.tensor(w / w.sum())).sum())

    line = torch.linspace(-8.0, 8.0, 301, dtype=DOUBLE)
    z, e = (v.flatten() for v in torch.meshgrid(line, line, indexing="ij"))
    weight = torch.softmax(-0.5 * (z * z + e * e), 0)
    m, s = (torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in (mean, theta))
    process = Process(Part(Flat(), path))
    times = torch.full((len(z),), t, dtype=DOUBLE)
    keys = Keys.for_samples(0, range(len(z)))
    bridge = process.bridge((m + s * z)[:, None], times, keys, x_0=e[:, None])
    loss = sid_loss(
        teacher.on(path), Gaussian(mean, theta**2).on(path), process, bridge, distance=distance
    )
    found = torch.autograd.grad((loss.samples * weight).sum(), (m, s))
    wanted = [
        (exact(mean + h, theta) - exact(mean - h, theta)) / (2 * h),
        (exact(mean, theta + h) - exact(mean, theta - h)) / (2 * h),
    ]
    assert [2 * g.item() for g in found] == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_the_gradient_of_every_alpha_is_its_closed_form(path: Path, rng) -> None:
    """By mean and variance of the student, as the module's docstring has them."""
    for _ in range(3):
        t, alpha = uniform(rng, 0.3, 0.9), uniform(rng, 0.0, 1.0)
        mean, theta = uniform(rng, -1, 1), uniform(rng, 0.2, 2)
        teacher = Gaussian(uniform(rng, -1, 1), uniform(rng, 0.1, 2))
        by_mean, by_theta, _ = grads_of_line(path, t, mean, theta, teacher, alpha=alpha)
        kp, kq = gains(path, t, teacher.variances.item()), gains(path, t, theta**2)
        by_v = (kq - kp) * ((1 - kp) - alpha * (kq - kp))
        by_m = (1 - kp) * ((1 - kp) - (2 * alpha - 1) * (kq - kp)) * (mean - teacher.mean.item())
        assert by_theta == pytest.approx(2 * theta * by_v, rel=1e-8, abs=1e-12)
        assert by_mean == pytest.approx(by_m, rel=1e-8, abs=1e-12)


def test_alpha_one_makes_a_loss_of_mean_zero_for_the_right_critic(rng) -> None:
    """L2 = L1 on average, so the published loss says nothing of the distance; the gap does."""
    path, theta = Path.linear(), torch.tensor(uniform(rng, 0.5, 2), dtype=DOUBLE)
    mean, teacher = torch.tensor(uniform(rng, -1, 1), dtype=DOUBLE), Gaussian(0.4, 0.3)
    total, loss = loss_of_line(path, 0.6, mean, theta, teacher, alpha=1.0)
    assert abs(total.item()) < 1e-12 and loss.gap["x"] > 1e-3


def test_signs_flip_where_the_excess_says_and_nowhere_else(rng) -> None:
    """Of the spread beyond 1 / alpha, of the mean beyond 1 / (2 alpha - 1); and the warnings."""
    path, seen = Path.linear(), set()
    for _ in range(40):
        t, alpha, theta = uniform(rng, 0.3, 0.9), uniform(rng, 1.01, 4.0), uniform(rng, 0.6, 5.0)
        teacher = Gaussian(0.3, 0.25)
        kp, kq = gains(path, t, 0.25), gains(path, t, theta**2)
        r = (kq - kp) / (1 - kp)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            by_mean, by_theta, loss = grads_of_line(path, t, 0.0, theta, teacher, alpha=alpha)
        assert loss.excess["x"].item() == pytest.approx(r, rel=1e-9)
        close = min(abs(r - 1 / alpha), abs(r - 1 / (2 * alpha - 1))) < 0.03
        if close or kq < kp:
            continue
        assert (by_theta < 0) == (r > 1 / alpha)  # wider than the teacher: should be positive
        assert (by_mean > 0) == (r > 1 / (2 * alpha - 1))  # below the teacher's mean: negative
        text = " ".join(str(w.message) for w in caught)
        assert ("its mean the wrong way" in text) == (1 / (2 * alpha - 1) < r < 1 / alpha)
        assert ("its spread and mean" in text) == (r > 1 / alpha)
        seen.add(text)
    assert len(seen) >= 3


def test_alpha_up_to_one_never_flips_and_never_warns(rng) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            theta, t = uniform(rng, 0.6, 8.0), uniform(rng, 0.2, 0.95)
            by_mean, by_theta, _ = grads_of_line(
                Path.linear(), t, 0.0, theta, Gaussian(0.3, 0.25), alpha=uniform(rng, 0.0, 1.0)
            )
            assert by_theta > 0 and by_mean < 0


def test_fisher_weighs_the_loss_as_that_of_scores(rng) -> None:
    for path in PATHS:
        t = torch.rand(5, generator=rng, dtype=DOUBLE) * 0.8 + 0.1
        law, x = Gaussian(0.2, 0.7), torch.randn(5, 1, generator=rng, dtype=DOUBLE)
        other = Gaussian(-0.4, 0.3)
        scores = law.on(path).score(x, t) - other.on(path).score(x, t)
        clean = law.on(path).denoised(x, t) - other.on(path).denoised(x, t)
        assert torch.allclose(fisher(path, t) * clean.square()[:, 0], scores.square()[:, 0])


def test_posterior_weight_is_the_inverse_of_a_gaussians_posterior_deviation(rng) -> None:
    for path in PATHS:
        t = torch.rand(7, generator=rng, dtype=DOUBLE) * 0.8 + 0.1
        s = uniform(rng, 0.3, 3)
        variance = 1 / (1 / s**2 + (path.beta(t) / path.sigma(t)) ** 2)
        assert torch.allclose(posterior_weight(s)(path, t), variance.rsqrt())
    with pytest.raises(UserError, match="positive number"):
        posterior_weight(0.0)


class Pull(nn.Module):
    """Some smooth model of clouds and pairs; sees nothing of masked entries."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength, dtype=DOUBLE))

    def forward(self, x, t, mask=None, cond=None, previous=None):
        shift = 0.0 if cond is None else cond.view(-1, 1, 1)
        out = {}
        for name, value in x.items():
            scale = t.view(-1, *(1,) * (value.ndim - 1))
            out[name] = torch.tanh(self.strength * value + shift) * (1 + scale)
        return out


PARTS = {
    "pos": Part(Centred(), Path.linear(), "velocity"),
    "bond": Part(Symmetric(), Path.vp(), "noise"),
}


def clouds(keys: Keys, nodes: int, mask: Tensor, process: Process) -> dict[str, Tensor]:
    shapes = {"pos": (nodes, 3), "bond": (nodes, nodes)}
    return {
        name: part.space.noise(
            keys, f"clouds/{name}", 0, torch.empty(len(keys), *shapes[name], dtype=DOUBLE), mask
        )
        for name, part in process.items()
    }


def cloud_loss(ids: list[int], nodes: int, counts: dict[int, int], dirt: float = 0.0):
    """Losses of samples that have counts[id] nodes, in arrays for ``nodes``."""
    process, keys = Process(PARTS), Keys.for_samples(3, ids)
    mask = torch.tensor([[k < counts[i] for k in range(nodes)] for i in ids])
    x = clouds(keys, nodes, mask, process)
    t = keys.uniform("time", 0, dtype=DOUBLE) * 0.8 + 0.1
    cond = keys.uniform("cond", 0, dtype=DOUBLE)
    bridge = process.bridge(x, t, keys, mask)
    if dirt:  # what stands in padded entries of x_t and x_g means nothing
        away = {
            name: ~part.space.entry_mask(mask, x[name]).expand_as(x[name])
            for name, part in process.items()
        }
        for name in x:
            bridge.x_t[name] = bridge.x_t[name] + dirt * away[name]
            bridge.x_1[name] = bridge.x_1[name] + dirt * away[name]
    return sid_loss(
        Pull(0.7), Pull(0.4), process, bridge, cond, alpha=1.0, normalise=True,
        distance=PseudoHuber(0.5), weight=posterior_weight(), weights={"bond": 0.3},
    )


def test_padding_never_changes_a_loss() -> None:
    counts = {0: 3, 1: 5, 2: 4, 3: 2}
    tight, wide = cloud_loss([0, 1, 2, 3], 5, counts), cloud_loss([0, 1, 2, 3], 9, counts)
    assert torch.allclose(tight.samples, wide.samples, rtol=1e-12)
    dirty = cloud_loss([0, 1, 2, 3], 9, counts, dirt=1e3)
    assert torch.allclose(tight.samples, dirty.samples, rtol=1e-12)
    for name in PARTS:
        assert wide.gap[name].item() == pytest.approx(tight.gap[name].item())
        assert wide.excess[name].item() == pytest.approx(tight.excess[name].item())
        assert dirty.excess[name].item() == pytest.approx(tight.excess[name].item())


def test_a_sample_has_the_same_loss_alone_and_in_any_order() -> None:
    counts = {0: 3, 1: 5, 2: 4, 3: 2}
    together = cloud_loss([0, 1, 2, 3], 5, counts).samples
    turned = cloud_loss([2, 0, 3, 1], 5, counts).samples
    assert torch.allclose(turned, together[[2, 0, 3, 1]], rtol=1e-12)
    alone = torch.cat([cloud_loss([i], 5, counts).samples for i in range(4)])
    assert torch.allclose(alone, together, rtol=1e-12)


def test_the_normaliser_is_a_constant_of_each_sample(rng) -> None:
    process = Process(Part(Flat(), Path.linear()))
    x = torch.randn(6, 4, generator=rng, dtype=DOUBLE, requires_grad=True)
    t, keys = torch.rand(6, generator=rng, dtype=DOUBLE) * 0.8 + 0.1, Keys.for_samples(0, range(6))
    teacher, critic = Gaussian(0.5, 0.3).on(Path.linear()), Gaussian(0.0, 1.0).on(Path.linear())
    bridge = process.bridge(x, t, keys)
    plain, even = (
        sid_loss(teacher, critic, process, bridge, normalise=on).samples for on in (False, True)
    )
    miss = (x - teacher(bridge.x_t, t)).abs().mean(1).detach()
    assert torch.allclose(plain / miss, even)
    grads = [torch.autograd.grad(v.sum(), x, retain_graph=True)[0] for v in (plain / miss, even)]
    assert torch.allclose(*grads)


def test_gradients_reach_the_student_and_can_spare_the_other_networks() -> None:
    process, keys = Process(PARTS), Keys.for_samples(1, range(3))
    mask = torch.ones(3, 4, dtype=torch.bool)
    teacher, critic, student = Pull(0.7), Pull(0.4), Pull(0.2)
    raw = clouds(keys, 4, mask, process)
    t = torch.full((3,), 0.5, dtype=DOUBLE)
    made = denoise(student, process, raw, t, mask)
    loss = sid_loss(teacher, critic, process, process.bridge(made, t, keys, mask))
    torch.autograd.backward(loss.total, inputs=list(student.parameters()))
    assert student.strength.grad is not None and student.strength.grad.abs() > 0
    assert teacher.strength.grad is None and critic.strength.grad is None


def test_mistakes_are_named() -> None:
    path, keys = Path.linear(), Keys.for_samples(0, range(2))
    process = Process({"atom": Part(Tokens(5), Masking())})
    x = {"atom": torch.zeros(2, 3, dtype=torch.int64)}
    bridge = process.bridge(x, torch.full((2,), 0.5), keys)
    with pytest.raises(UserError, match="'atom'.*no scores"):
        sid_loss(lambda *_, **__: x, lambda *_, **__: x, process, bridge)
    real = Process(Part(Flat(), path))
    bridge = real.bridge(torch.zeros(2, 3), torch.full((2,), 0.5), keys)
    model = Gaussian(0.0, 1.0).on(path)
    with pytest.raises(UserError, match="unknown parts z"):
        sid_loss(model, model, real, bridge, weights={"z": 1.0})
    with pytest.raises(UserError, match="alpha must be a finite"):
        sid_loss(model, model, real, bridge, alpha=math.nan)
    with pytest.raises(UserError, match="plain model"):
        sid_loss(lambda *_, **__: (1, 2), model, real, bridge)
    with pytest.raises(UserError, match="scale of a pseudo-Huber"):
        PseudoHuber(0.0)


MEANS, DEVIATIONS = torch.tensor([-2.0, 0.5, 2.5]), torch.tensor([0.3, 0.5, 0.4])


class Labelled:
    """The exact denoiser of one Gaussian a label."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, x, t, mask=None, cond=None, previous=None):
        return gaussian_denoiser(self.path, x, t, MEANS[cond], DEVIATIONS[cond].square())


def gaussian_denoiser(path: Path, x: Tensor, t: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    beta, sigma = path.beta(t).to(x), path.sigma(t).to(x)
    gain = beta * variance / (beta.square() * variance + sigma.square())
    return mean[:, None] + gain[:, None] * (x - (beta * mean)[:, None])


class Lines(nn.Module):
    """One mean and deviation a label: x_g = mean + deviation x, or the denoiser of that law."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self.path = path
        self.mean, self.log = nn.Parameter(MEANS.clone()), nn.Parameter(DEVIATIONS.log())

    def forward(self, x, t, mask=None, cond=None, previous=None):
        mean, deviation = self.mean[cond], self.log[cond].exp()
        if self.path is None:
            return mean[:, None] + deviation[:, None] * x
        return gaussian_denoiser(self.path, x, t, mean, deviation.square())


def test_forgetting_empties_the_class_and_leaves_the_others_alone() -> None:
    """Student and critic start at the labelled mixture itself; label 0 is to become label 1."""
    path, updates, batch = Path.linear(), 180, 96
    process = Process(Part(Flat(), path))
    generator, critic = Lines(), Lines(path)
    student = Student(generator, process, (0.0,))
    optimisers = [
        torch.optim.Adam(critic.parameters(), lr=0.1, betas=(0.5, 0.99)),
        torch.optim.Adam(generator.parameters(), lr=0.1, betas=(0.5, 0.99)),
    ]
    falls = [torch.optim.lr_scheduler.CosineAnnealingLR(o, updates) for o in optimisers]
    teacher = Relabelled(Labelled(path), {0: 1})
    distiller = Distiller(
        teacher, critic, student, *optimisers, alpha=1.0, weight=posterior_weight(0.5)
    )
    labels = torch.arange(batch) % 3
    for n in range(updates):
        keys = Keys.for_samples(4, range(n * batch, (n + 1) * batch))
        distiller.update(keys, (8,), cond=labels)  # eight independent numbers a sample
        for fall in falls:
            fall.step()
    # the closed-form mixture of what is left: three labels alike
    mean, deviation = generator.mean.detach(), generator.log.detach().exp()
    mixture = Mixture([1.0] * 3, [[m] for m in MEANS], [[[s**2]] for s in DEVIATIONS.tolist()])
    x = student.sample(Keys.for_samples(8, range(6000)), (1,), cond=torch.arange(6000) % 3).x
    assert isinstance(x, Tensor)
    mass = mixture.responsibilities(x).mean(1)
    assert mass[0] < 0.01
    for label, stands_in in ((0, 1), (1, 1), (2, 2)):
        # 2-Wasserstein distance to the wanted class, against that class's own deviation
        moved = math.hypot(mean[label] - MEANS[stands_in], deviation[label] - DEVIATIONS[stands_in])
        assert moved < 0.05 * DEVIATIONS[stands_in], (label, mean, deviation)
    assert mass[1:].tolist() == pytest.approx([2 / 3, 1 / 3], rel=0.05)


def test_relabelled_changes_forgotten_labels_only() -> None:
    seen = []

    def model(x, t, mask=None, cond=None, previous=None):
        seen.append(cond)
        return x

    x, t, label = torch.zeros(4, 1), torch.zeros(4), torch.tensor([0, 1, 2, 3])
    Relabelled(model, {3: 1, 0: 2})(x, t, cond=label)
    assert seen[-1].tolist() == [2, 1, 2, 1] and label.tolist() == [0, 1, 2, 3]
    Relabelled(model, {1: 0}, name="class")(x, t, cond={"class": label, "size": x})
    assert seen[-1]["class"].tolist() == [0, 0, 2, 3] and seen[-1]["size"] is x
    with pytest.raises(UserError, match=r"labels \[1\] are both"):
        Relabelled(model, {3: 1, 1: 0})
    with pytest.raises(UserError, match="no label"):
        Relabelled(model, {})


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_the_sds_gradient_of_a_gaussian_points_away_from_its_mean(path: Path, rng) -> None:
    mean, variance = uniform(rng, -1, 1), uniform(rng, 0.2, 2)
    process, model = Process(Part(Flat(), path)), Gaussian(mean, variance).on(path)
    times = [0.2, 0.5, 0.5, 0.8]
    x = torch.tensor([[mean], [mean + 1.0]], dtype=DOUBLE).repeat(20000, 1)
    keys = Keys.for_samples(1, range(len(x)))
    gradient = sds_gradient(model, process, x, times, keys)
    assert isinstance(gradient, Tensor)
    left = sum(1 - gains(path, t, variance) for t in times) / len(times)
    for start, wanted in ((0, 0.0), (1, left)):
        part = gradient[start::2]
        error = part.std() / math.sqrt(len(part))
        assert abs(part.mean().item() - wanted) < 5 * error


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_the_sds_gradient_of_a_correlated_gaussian_is_its_closed_form(path: Path, rng) -> None:
    """x - m - mean over levels of K (x + (sigma / beta) e - m), K the matrix of gains, e as drawn.
    """
    root = torch.randn(3, 3, generator=rng, dtype=DOUBLE)
    law = Gaussian(torch.randn(3, generator=rng, dtype=DOUBLE), root @ root.T)
    x, keys = torch.randn(5, 3, generator=rng, dtype=DOUBLE), Keys.for_samples(8, range(5))
    times = [0.15, 0.4, 0.85]
    eye, wanted = torch.eye(3, dtype=DOUBLE), torch.zeros(5, 3, dtype=DOUBLE)
    for level, t in enumerate(times):
        e = Flat().noise(keys, "sds/x", level, x)
        ratio = path.sigma(t) / path.beta(t)
        gain = law.matrix(3) @ torch.linalg.inv(law.matrix(3) + ratio**2 * eye)
        wanted += (x - law.mean - (x + ratio * e - law.mean) @ gain.T) / len(times)
    found = sds_gradient(law.on(path), Process(Part(Flat(), path)), x, times, keys)
    assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-9)  # type: ignore[arg-type]


def test_descending_the_sds_gradient_ends_at_the_mean() -> None:
    path = Path.edm(4.0)
    process, model = Process(Part(Flat(), path)), Gaussian(1.3, 0.4).on(path)
    times = torch.linspace(0.5, 0.99, 16)
    x = torch.zeros(64, 5)
    for step in range(60):
        keys = Keys.for_samples(step, range(64))
        x = x - 1.0 / (1 + 0.2 * step) * sds_gradient(model, process, x, times, keys)
    assert abs(x.mean().item() - 1.3) < 0.02 and x.std() < 0.25 * math.sqrt(0.4)


def test_the_sds_gradient_respects_masks_conditions_and_order() -> None:
    process, mask = Process(PARTS), torch.tensor([[True] * 4, [True, True, True, False]])
    keys, model = Keys.for_samples(2, [5, 6]), Pull(0.6)
    x, cond = clouds(keys, 4, mask, process), torch.tensor([0.3, -0.2], dtype=DOUBLE)
    both = sds_gradient(model, process, x, [0.3, 0.6], keys, mask, cond)
    turned = sds_gradient(
        model, process, {k: v.flip(0) for k, v in x.items()}, [0.3, 0.6], keys[[1, 0]],
        mask.flip(0), cond.flip(0),
    )
    for name, value in both.items():
        assert torch.allclose(turned[name].flip(0), value, rtol=1e-12)
        entries = PARTS[name].space.entry_mask(mask, value).expand_as(value)
        assert not value[~entries].any() and value[entries].abs().min() > 0
    assert torch.allclose(both["pos"].sum(1), torch.zeros(2, 3, dtype=DOUBLE), atol=1e-12)
    with pytest.raises(UserError, match=r"times in \[0, 1\)"):
        sds_gradient(model, process, x, [0.3, 1.0], keys, mask, cond)
