"""The jump process whose noise is a random class: marginals, pairs, keys, settings."""

from __future__ import annotations

import pytest
import torch

from driftworks.core.ctmc import Replacing, _draw_replacing
from driftworks.core.keys import Keys
from driftworks.core.process import Part, Process
from driftworks.core.sample import sample
from driftworks.core.spaces import Flat, PairTokens, Tokens
from driftworks.core.train import matching_loss
from driftworks.errors import UserError

MARGINAL = (0.6, 0.3, 0.1)


def posterior(data: torch.Tensor, kappa: float) -> torch.Tensor:
    """p(x_1 = row | x_t = column) of independent entries with law ``data``, by Bayes' rule."""
    classes = len(data)
    noise = torch.tensor(MARGINAL, dtype=data.dtype)
    likelihood = kappa * torch.eye(classes, dtype=data.dtype) + (1 - kappa) * noise
    joint = data[:, None] * likelihood
    return joint / joint.sum(0)


@pytest.mark.parametrize("eta", [0.0, 0.7, 5.0, 1e3])
def test_the_law_after_every_step_is_that_of_the_bridge(eta):
    generator = torch.Generator().manual_seed(2)
    data = torch.rand(3, generator=generator, dtype=torch.float64).add_(0.05)
    data /= data.sum()
    noise = torch.tensor(MARGINAL, dtype=torch.float64)
    route = Replacing(MARGINAL, warp=lambda t: t**1.3)
    grid = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000  # every u once
    law, times = noise.clone(), [0.0, 0.2, 0.45, 0.8, 1.0]
    for t0, t1 in zip(times, times[1:], strict=False):
        show, hide = route.step(t0, t1, eta)
        assert show + hide <= 1.0 + 1e-12
        p = posterior(data, route.kappa(t0))
        after = torch.zeros(3, dtype=torch.float64)
        for z in range(3):
            x = torch.full((len(grid),), z)
            new = _draw_replacing(
                x, p[:, z, None].repeat(1, len(grid)), route.kappa(t0), MARGINAL, show, hide, grid
            )
            after += law[z] * torch.bincount(new, minlength=3) / len(grid)
        wanted = route.kappa(t1) * data + (1 - route.kappa(t1)) * noise
        assert (after - wanted).abs().max() < 2e-4, (t0, after, wanted)
        law = wanted


def test_noise_returns_tokens_and_the_last_step_draws_from_the_posterior_alone():
    route = Replacing(MARGINAL)
    assert route.step(0.9, 1.0, eta=3.0) == (1.0, 0.0)
    assert route.step(0.5, 0.6, eta=2.0)[1] == pytest.approx(0.2)
    assert route.step(0.5, 0.6)[1] == 0.0


def test_the_prior_and_the_bridge_follow_the_marginal_and_pairs_stay_symmetric():
    process = Process({"x": Part(Tokens(3), Replacing(MARGINAL)),
                       "e": Part(PairTokens(3), Replacing(MARGINAL))})
    keys = Keys.for_samples(3, range(800))
    like = {"x": torch.zeros(800, 20, dtype=torch.int64),
            "e": torch.zeros(800, 8, 8, dtype=torch.int64)}
    prior = process.prior(keys, like)
    share = torch.bincount(prior["x"].flatten(), minlength=3) / prior["x"].numel()
    assert (share - torch.tensor(MARGINAL)).abs().max() < 4 * (0.25 / 16_000) ** 0.5
    assert torch.equal(prior["e"], prior["e"].transpose(1, 2))
    assert not prior["e"].diagonal(dim1=1, dim2=2).any()
    data = {"x": torch.full_like(like["x"], 2), "e": torch.full_like(like["e"], 1)}
    mask = torch.arange(8).expand(800, 8) < 6
    data["e"] = PairTokens(3).project(data["e"], mask)
    bridge = process.bridge(data, torch.full((800,), 0.25), keys, {"x": None, "e": mask})
    # 1/4 is data, and noise happens to agree one time in ten
    agree = (bridge.x_t["x"] == 2).double().mean()
    assert abs(agree - (0.25 + 0.75 * 0.1)) < 4 * (0.25 / 16_000) ** 0.5
    assert bridge.hidden["x"].all()
    pairs = mask[:, :, None] & mask[:, None, :] & ~torch.eye(8, dtype=torch.bool)
    assert torch.equal(bridge.hidden["e"], pairs)
    assert not bridge.x_t["e"][~pairs].any()
    exact = {"x": 40.0 * torch.nn.functional.one_hot(data["x"], 3).float(),
             "e": 40.0 * torch.nn.functional.one_hot(data["e"], 3).float()}
    assert matching_loss(exact, process, bridge).total < 1e-6


def test_samples_with_the_exact_posterior_have_the_law_of_the_data_whatever_the_noise():
    data = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    process = Process(Part(Tokens(3), Replacing(MARGINAL)))
    many = Keys.for_samples(8, range(4000))

    def model(x, t, mask=None, cond=None, previous=None):
        return posterior(data, float(t[0])).T[x].log()

    for eta in (0.0, 4.0):
        out = sample(model, process, many, (5,), steps=12, remask=eta).x
        share = torch.bincount(out.flatten(), minlength=3) / out.numel()
        assert (share - data).abs().max() < 4 * (0.24 / out.numel()) ** 0.5
    whole = sample(model, process, many[:6], (5,), steps=6, remask=2.0).x
    alone = sample(model, process, many[3:4], (5,), steps=6, remask=2.0).x
    assert torch.equal(whole[3:4], alone)


def test_a_marginal_must_be_a_distribution_over_the_space():
    with pytest.raises(UserError, match="sum to 1"):
        Replacing((0.5, 0.6))
    with pytest.raises(UserError, match="3 probabilities for 4 classes"):
        Part(Tokens(4), Replacing(MARGINAL))
    with pytest.raises(UserError, match="Flat cannot follow Replacing"):
        Part(Flat(), Replacing(MARGINAL))
