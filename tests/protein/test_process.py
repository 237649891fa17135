from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from driftworks.core.keys import Keys
from driftworks.protein.chains import Chains
from driftworks.protein.process import (
    chain_process,
    from_chains,
    random_rotations,
    to_chains,
    training_times,
)


def test_training_times_follow_the_mixture_of_uniform_and_beta():
    keys = Keys.for_samples(3, range(20000))
    t = training_times(keys.uniform("time", 0, (2,), torch.float64)).numpy()

    def law(x):
        return 0.02 * x + 0.98 * stats.beta(1.9, 1.0).cdf(x)

    assert stats.kstest(t, law).pvalue > 1e-3
    assert stats.kstest(t, stats.beta(1.9, 1.0).cdf).statistic < 0.03  # of which little is uniform


def test_rotations_are_proper_and_uniform():
    r = random_rotations(Keys.for_samples(0, range(20000))).double()
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(r @ r.mT, eye.expand_as(r), atol=1e-6)
    assert torch.allclose(torch.linalg.det(r), torch.ones(len(r), dtype=torch.float64), atol=1e-6)
    # Haar: the trace is 1 + 2 cos w with density (1 - cos w) / pi on [0, pi]
    angle = ((r.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).acos().numpy()
    assert (
        stats.kstest(angle, lambda w: (w - torch.sin(torch.as_tensor(w)).numpy()) / math.pi).pvalue
        > 1e-3
    )
    # and every axis is turned to every direction alike: each entry is uniform in [-1, 1]
    for entry in r.flatten(1).T.numpy():
        assert stats.kstest(entry, stats.uniform(-1, 2).cdf).pvalue > 1e-4


def test_a_rotation_belongs_to_its_sample():
    whole = random_rotations(Keys.for_samples(5, range(8)))
    some = random_rotations(Keys.for_samples(5, [6, 2]))
    assert torch.equal(some, whole[[6, 2]])


def test_noise_and_bridges_have_no_centre_of_mass_over_the_residues_that_exist():
    mask = torch.arange(12) < torch.tensor([[12], [7], [3]])
    g = torch.Generator().manual_seed(0)
    chains = Chains.of([torch.randn(n, 3, generator=g).numpy() * 8 for n in (12, 7, 3)])
    x = from_chains(chains)
    keys = Keys.for_samples(1, range(3))
    process = chain_process()
    t = torch.tensor([0.1, 0.5, 0.9])
    for state in (x, process.prior(keys, x, mask), process.bridge(x, t, keys, mask).x_t):
        assert state[~mask].abs().max() == 0
        assert state.sum(1).abs().max() < 1e-5


def test_the_bridge_is_the_straight_line():
    x = torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(1, keepdim=True)
    t = torch.tensor([0.0, 0.25, 0.5, 0.99])
    bridge = chain_process().bridge(x, t, Keys.for_samples(0, range(4)))
    want = t.view(-1, 1, 1) * x + (1 - t).view(-1, 1, 1) * bridge.x_0
    assert torch.allclose(bridge.x_t, want, atol=1e-6)


def test_chains_come_back_in_angstrom():
    g = torch.Generator().manual_seed(2)
    arrays = [torch.randn(n, 3, generator=g).numpy() * 10 for n in (11, 5)]
    chains = Chains.of(arrays, ids=["a", "b"], labels=[0, 2])
    back = to_chains(from_chains(chains), chains.mask, chains.index, chains.label, chains.ids)
    assert back.ids == ("a", "b") and back.label.tolist() == [0, 2]
    for one, other in zip(back.arrays(), arrays, strict=True):
        assert one == pytest.approx(other - other.mean(0), abs=1e-4)
