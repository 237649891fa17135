"""Features optimised for a pair: keyed, equivariant, and better for having been optimised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from driftworks.errors import UserError
from driftworks.shapes import fmaps
from driftworks.shapes.features import FeatureNet, optimise
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.prior import SecondMoment
from driftworks.shapes.ranking import signatures
from driftworks.shapes.surface import Surface


@pytest.fixture(scope="module")
def pair(lump):
    """An asymmetric surface and a bent one; truth is the identity."""
    points, faces = lump
    angle = 0.4 * points[:, 2]
    bent = points.copy()
    bent[:, 0] = np.cos(angle) * points[:, 0] - np.sin(angle) * points[:, 1]
    bent[:, 1] = np.sin(angle) * points[:, 0] + np.cos(angle) * points[:, 1]
    return tuple(Surface.of(Mesh(v, faces), 60, 250) for v in (points, bent))


def test_weights_and_features_are_functions_of_the_seed():
    one, same, other = (FeatureNet(5, width=16, out=16, seed=s) for s in (3, 3, 4))
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    assert not torch.equal(one.first, other.first)
    assert abs(float(one.inner[0].detach().std()) * 32**0.5 - 1) < 0.2


def test_diffusion_for_no_time_leaves_a_pointwise_network(pair):
    """At t = 0 a channel within the span diffuses to itself: rows do not see each other."""
    a, _ = pair
    net = FeatureNet(3, width=8, out=8, seed=0)
    with torch.no_grad():
        for times in net.times:
            times.fill_(-40.0)
    phi = torch.from_numpy(a.basis.functions[a.samples, :40].copy()).float()
    inverse, values = torch.linalg.pinv(phi), torch.from_numpy(a.basis.values[:40].copy()).float()
    x = phi @ torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    hidden = (x @ net.first).detach()
    both = torch.relu(torch.cat([hidden, hidden], 1) @ net.inner[0]) @ net.outer[0]
    single = FeatureNet(3, width=8, out=8, blocks=1, seed=0)
    with torch.no_grad():
        single.times[0].fill_(-40.0)
    expected = (hidden + both) @ single.last
    assert torch.allclose(single(x, values, phi, inverse), expected, atol=1e-4)


def test_optimising_brings_the_map_nearer_to_the_truth(pair):
    a, b = pair
    inputs = [signatures(a, b)]
    prior = SecondMoment.of_isometries(20)
    truth = fmaps.from_vertices(np.arange(len(a)), a.basis.first(20), b.basis.first(20))
    wrong = []
    for steps in (1, 40):
        (c,) = optimise([pair], inputs, prior, steps=steps, k=20, seed=1)
        assert c.shape == (20, 20)
        wrong.append(np.linalg.norm(c - truth) / np.linalg.norm(truth))
    assert wrong[1] < wrong[0]


def test_a_seed_gives_the_same_map_again_and_another_seed_another(pair):
    inputs = [signatures(*pair)]
    prior = SecondMoment.of_isometries(12)
    found = [optimise([pair], inputs, prior, steps=3, k=12, seed=s)[0] for s in (0, 0, 1)]
    assert np.array_equal(found[0], found[1]) and not np.allclose(found[0], found[2])


def test_inputs_of_several_widths_and_no_pairs_are_refused(pair):
    prior = SecondMoment.of_isometries(12)
    of_a, of_b = signatures(*pair)
    with pytest.raises(UserError, match="one width"):
        optimise([pair], [(of_a, of_b[:, :3])], prior)
    with pytest.raises(UserError, match="a pair or more"):
        optimise([], [], prior)
