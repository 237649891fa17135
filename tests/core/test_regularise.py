"""The Fokker-Planck residual vanishes for true scores, on every space, and is right where not."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn

from driftworks.core.ctmc import Masking
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, Mixture
from driftworks.core.paths import Path
from driftworks.core.predict import PARAMETRISATIONS, convert
from driftworks.core.process import Part, Process
from driftworks.core.regularise import fokker_planck_loss, fokker_planck_residual
from driftworks.core.spaces import Centred, Flat, Symmetric, Tokens
from driftworks.errors import UserError

PATHS = {
    "linear": Path.linear(),
    "cosine": Path.cosine(),
    "vp": Path.vp(),
    "subvp": Path.subvp(),
    "ve": Path.ve(0.05, 5.0),
    "edm": Path.edm(5.0),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


@pytest.fixture
def generator():
    seed = random.randrange(1 << 30)
    print("seed", seed)
    return torch.Generator().manual_seed(seed)


def normal(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def scaled_score(path, variance, factor):
    """-(1 + d) x / V: the score of N(0, variance) data, too large by a factor."""

    def model(x, t, mask=None, cond=None, previous=None):
        spread = path.beta(t) ** 2 * variance + path.sigma(t) ** 2
        return -factor * x / spread.view(-1, *[1] * (x.ndim - 1))

    return model


def test_the_golden_residual():
    process = Process(Part(Flat(), Path.linear(), "score"))
    x = torch.tensor([[0.8]], dtype=torch.float64)
    t = torch.tensor([0.6], dtype=torch.float64)
    model = scaled_score(Path.linear(), 0.5, 1.1)
    assert fokker_planck_residual(model, process, x, t).item() == pytest.approx(1.014994, abs=5e-7)


@every_path
def test_a_scaled_score_has_the_residual_of_its_closed_form(path, generator):
    """R = 2 lam d (1 + d) x / V^2 in every coordinate, also where a part is centred or masked."""
    t = 0.2 + 0.6 * torch.rand(4, generator=generator, dtype=torch.float64)
    d, variance = 0.3, 0.7
    spread = path.beta(t) ** 2 * variance + path.sigma(t) ** 2
    factor = (2 * path.lam(t) * d * (1 + d) / spread**2).view(-1, 1, 1)
    mask = torch.arange(4) < torch.tensor([4, 2, 3, 4]).unsqueeze(1)
    for space in (Flat(), Centred(), Symmetric()):
        shape = (4, 4, 4) if isinstance(space, Symmetric) else (4, 4, 2)
        x = space.project(normal(generator, *shape), mask)
        process = Process(Part(space, path, "score"))
        found = fokker_planck_residual(scaled_score(path, variance, 1 + d), process, x, t, mask)
        torch.testing.assert_close(found, factor * x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "path, predicts", [*zip(PATHS.values(), (*PARAMETRISATIONS, "score"), strict=True)]
)
def test_true_scores_of_correlated_data_have_none(path, predicts, generator):
    a = normal(generator, 3, 3)
    gaussian = Gaussian(normal(generator, 3), a @ a.T + 0.1 * torch.eye(3))
    mixture = Mixture([0.3, 0.7], [normal(generator, 3), normal(generator, 3)], [
        a @ a.T + 0.2 * torch.eye(3, dtype=torch.float64), 0.5 * torch.eye(3, dtype=torch.float64)
    ])
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    x = normal(generator, 3, 3) * (1 + path.sigma(t)).unsqueeze(1)
    process = Process(Part(Flat(), path, predicts))
    for law in (gaussian, mixture):
        oracle = law.on(path, predicts)
        score = law.on(path, "score")
        size = fokker_planck_residual(
            lambda x, t, oracle=score, **rest: 1.2 * oracle(x, t), Process(
                Part(Flat(), path, "score")), x, t
        ).abs().max()
        residual = fokker_planck_residual(oracle, process, x, t)
        assert residual.abs().max() < 1e-8 * max(1.0, size)


def on_pairs(law, path):
    """The score of a law of the N (N - 1) / 2 pairs, as a model of symmetric states."""
    oracle = law.on(path, "score")

    def model(x, t, mask=None, cond=None, previous=None):
        n = x.shape[1]
        rows, columns = torch.triu_indices(n, n, 1)
        score = oracle(x[:, rows, columns], t)
        out = torch.zeros_like(x).index_put((torch.arange(len(x))[:, None], rows, columns), score)
        return out + out.transpose(1, 2)

    return model


def test_true_scores_of_correlated_pairs_have_none(generator):
    path, t = Path.cosine(), torch.tensor([0.3, 0.7], dtype=torch.float64)
    a = normal(generator, 6, 6)
    pairs = Gaussian(normal(generator, 6), a @ a.T / 6)
    x = Symmetric().project(normal(generator, 2, 4, 4))
    model = on_pairs(pairs, path)
    process = Process(Part(Symmetric(), path, "score"))
    assert fokker_planck_residual(model, process, x, t).abs().max() < 1e-10
    wrong = fokker_planck_residual(lambda x, t, **rest: 1.1 * model(x, t), process, x, t)
    assert wrong.abs().max() > 1e-2


def net(generator, width, extra=1):
    """A small smooth network on flattened states, in double precision, answering in x's shape."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(normal(generator, width + extra, 16) * 0.4)
            self.b = nn.Parameter(normal(generator, 16, width) * 0.4)

        def forward(self, x, t, mask=None, cond=None, previous=None):
            flat = torch.cat((x.flatten(1), t.unsqueeze(1).to(x.dtype)), 1)
            return (torch.tanh(flat @ self.a) @ self.b).view_as(x)

    return Net()


@pytest.mark.parametrize("predicts", ["denoised", "velocity"])
def test_the_residual_of_a_network_equals_finite_differences(predicts, generator):
    """A second implementation: central differences of the score, the flow and its divergence."""
    path, size = Path.vp(0.2, 4.0), 3
    model = net(generator, size)
    x, t = normal(generator, 2, size), torch.tensor([0.35, 0.7], dtype=torch.float64)
    process = Process(Part(Flat(), path, predicts))

    def field(x, t, kind):
        return convert(path, model(x, t).detach(), x, t, predicts, kind)

    h = 1e-4
    eye = torch.eye(size, dtype=torch.float64)

    def bracket(x):
        jacobian = sum(
            (field(x + h * e, t, "velocity") - field(x - h * e, t, "velocity")) @ e / (2 * h)
            for e in eye
        )
        return jacobian + (field(x, t, "velocity") * field(x, t, "score")).sum(1)

    g = torch.stack([(bracket(x + h * e) - bracket(x - h * e)) / (2 * h) for e in eye], 1)
    wanted = (field(x, t + h, "score") - field(x, t - h, "score")) / (2 * h) + g
    found = fokker_planck_residual(model, process, x, t)
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-5, atol=1e-5)


PRODUCT = Process({
    "pos": Part(Centred(), Path.linear(), "velocity"),
    "pair": Part(Symmetric(), Path.cosine(), "noise"),
})


def product_model(generator):
    shared = net(generator, 5 * 2 + 5 * 5)

    def model(x, t, mask=None, cond=None, previous=None):
        flat = torch.cat((x["pos"].flatten(1), x["pair"].flatten(1)), 1)
        out = shared(flat, t)
        return {"pos": out[:, :10].view(-1, 5, 2), "pair": out[:, 10:].view(-1, 5, 5)}

    return shared, model


def product_state(generator, mask):
    return {
        "pos": Centred().project(normal(generator, 3, 5, 2), mask),
        "pair": Symmetric().project(normal(generator, 3, 5, 5), mask),
    }


def test_parts_meet_in_the_residual_and_padding_does_not(generator):
    mask = torch.arange(5) < torch.tensor([5, 3, 2]).unsqueeze(1)
    shared, model = product_model(generator)
    x, t = product_state(generator, mask), torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64)
    residual = fokker_planck_residual(model, PRODUCT, x, t, mask)
    for name, part in PRODUCT.items():
        torch.testing.assert_close(residual[name], part.space.project(residual[name], mask))
        assert (residual[name][2] != 0).any()
    # what a masked entry holds must not matter to a model that does not look there
    rubbish = {name: v + 7.0 * ~part.space.entry_mask(mask, v) for (name, part), v in
               zip(PRODUCT.items(), x.values(), strict=True)}

    def blind(x, t, mask=None, **rest):
        clean = {name: part.space.project(x[name], mask) for name, part in PRODUCT.items()}
        return model(clean, t)

    again = fokker_planck_residual(blind, PRODUCT, rubbish, t, mask)
    first = fokker_planck_residual(blind, PRODUCT, x, t, mask)
    # conversions of rubbish are projected away again; only the model's own inputs are clean
    for name in residual:
        torch.testing.assert_close(again[name], first[name], rtol=1e-9, atol=1e-9)
    alone = fokker_planck_residual(
        model, PRODUCT, {k: v[1:2] for k, v in x.items()}, t[1:2], mask[1:2]
    )
    for name in residual:
        torch.testing.assert_close(alone[name], residual[name][1:2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("space", [Centred(), Symmetric()])
@pytest.mark.parametrize("predicts", ["score", "denoised"])
def test_a_constrained_space_is_a_flat_one_of_its_coordinates(space, predicts, generator):
    """x = Q y with orthonormal coordinates y: the residual in y is Q' R, for any network."""
    path, n = Path.vp(0.2, 4.0), 4
    if isinstance(space, Centred):
        plane = torch.eye(n, dtype=torch.float64) - 1 / n
        columns = torch.linalg.svd(plane)[0][:, : n - 1].contiguous()
        basis = torch.kron(columns, torch.eye(2, dtype=torch.float64))
        shape, pick = (n, 2), basis.T
    else:
        rows, columns = torch.triu_indices(n, n, 1)
        place = torch.arange(len(rows))
        cube = torch.zeros(n, n, len(rows), dtype=torch.float64)
        cube[rows, columns, place] = cube[columns, rows, place] = 1.0
        basis, shape = cube.flatten(0, 1), (n, n)
        pick = basis.T / 2  # each pair stands twice
    inner = net(generator, basis.shape[1])

    def outer(x, t, **rest):
        return (inner(x.flatten(1) @ pick.T, t) @ basis.T).view_as(x)

    y, t = normal(generator, 2, basis.shape[1]), torch.tensor([0.4, 0.7], dtype=torch.float64)
    flat = Process(Part(Flat(), path, predicts))
    whole = Process(Part(space, path, predicts))
    x = (y @ basis.T).view(2, *shape)
    wanted = fokker_planck_residual(inner, flat, y, t)
    found = fokker_planck_residual(outer, whole, x, t)
    torch.testing.assert_close(found, (wanted @ basis.T).view_as(x), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(
        fokker_planck_loss(outer, whole, x, t), fokker_planck_loss(inner, flat, y, t)
    )


def test_probes_estimate_the_penalty_without_bias(generator):
    mask = torch.arange(5) < torch.tensor([5, 3, 2]).unsqueeze(1)
    _, model = product_model(generator)
    x, t = product_state(generator, mask), torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64)
    exact = fokker_planck_loss(model, PRODUCT, x, t, mask).item()
    copies = 60
    keys = Keys.for_samples(1, range(3 * copies))
    many = {name: v.repeat(copies, *[1] * (v.ndim - 1)) for name, v in x.items()}
    with torch.no_grad():
        draws = torch.stack([
            fokker_planck_loss(
                model, PRODUCT, many, t.repeat(copies), mask.repeat(copies, 1), keys=keys, step=k
            )
            for k in range(10)
        ])
    error = draws.std().item() / math.sqrt(len(draws))
    assert abs(draws.mean().item() - exact) < 6 * error
    assert 0 < error < 0.1 * exact


def test_the_penalty_is_in_units_of_noise_over_a_factor_e_of_noise_level(generator):
    """-(1 + d) x / V has (sigma R / n')^2 = (2 sigma^2 lam beta/w d (1 + d) x / V^2)^2 sigma^2."""
    path, d, variance = Path.cosine(), 0.2, 0.5
    x = normal(generator, 5, 3)
    t = 0.1 + 0.8 * torch.rand(5, generator=generator, dtype=torch.float64)
    process = Process(Part(Flat(), path, "score"))
    loss = fokker_planck_loss(scaled_score(path, variance, 1 + d), process, x, t).item()
    spread = path.beta(t) ** 2 * variance + path.sigma(t) ** 2
    # lam = sigma w / beta, so that sigma^2 beta / w * 2 lam = 2 sigma^3
    scaled = 2 * path.sigma(t) ** 3 * d * (1 + d) / spread**2
    assert loss == pytest.approx((scaled.unsqueeze(1) * x).square().mean().item(), rel=1e-9)


def test_its_gradient_equals_a_finite_difference_and_training_with_it_lowers_it(generator):
    process = Process(Part(Flat(), Path.linear(), "noise"))
    model = net(generator, 2)
    x, t = normal(generator, 16, 2), torch.linspace(0.2, 0.8, 16, dtype=torch.float64)
    loss = fokker_planck_loss(model, process, x, t)
    loss.backward()
    direction = normal(generator, *model.a.shape)
    slope = (model.a.grad * direction).sum().item()
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            model.a.add_(direction, alpha=sign * 1e-5)
            values.append(fokker_planck_loss(model, process, x, t).item())
            model.a.sub_(direction, alpha=sign * 1e-5)
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(25):
        optimiser.zero_grad()
        now = fokker_planck_loss(model, process, x, t)
        now.backward()
        optimiser.step()
    assert now.item() < 0.5 * loss.item()


def test_the_residual_refuses_what_it_cannot_treat():
    tokens = Process(Part(Tokens(3), Masking()))
    with pytest.raises(UserError, match="Masking"):
        fokker_planck_residual(lambda *a, **k: None, tokens, torch.zeros(1, 2), torch.ones(1) / 2)
    process = Process(Part(Flat(), Path.linear(), "score"))
    for end in (0.0, 1.0):
        with pytest.raises(UserError, match="inside"):
            fokker_planck_residual(
                scaled_score(Path.linear(), 1.0, 1.0), process, torch.zeros(1, 2),
                torch.tensor([end]),
            )
