"""The law of what is sampled, on graphs of three nodes, whose four classes can be counted.

The network is replaced by Bayes' rule (conftest), so the samplers have nothing to hide behind: what
deviates from the prescribed law by more than chance is an error of theirs.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from driftworks import graphgen
from driftworks.core.keys import Keys
from driftworks.graphgen.elbo import bound, step_posterior
from driftworks.graphgen.network import NetConfig, build
from driftworks.graphgen.process import GraphModel, graph_process
from driftworks.graphgen.sample import clock, generate

SHARE = np.array([0.4, 0.3, 0.2, 0.1])  # no edge, one, two, three
DENSITY = float(SHARE @ [0, 1, 2, 3]) / 3
CHANCE = 1e-3  # seeds are fixed: a test that passes goes on passing


def drawn(model, count, steps, first=0, **settings):
    keys = Keys.for_samples(3, range(first, first + count))
    mask = torch.ones(count, 3, dtype=torch.bool)
    out, finite = generate(model, keys, mask, steps=steps, **settings)
    assert finite.all()
    return out["edges"]


def classes(edges):
    return np.bincount(edges.sum((1, 2)).numpy() // 2, minlength=4)


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_the_discrete_flow_recovers_prescribed_class_probabilities(three_nodes, noise):
    model = three_nodes.model(three_nodes.labelled(SHARE), DENSITY)
    found = classes(drawn(model, 4000, 100, noise=noise))
    assert chisquare(found, 4000 * SHARE).pvalue > CHANCE, found


@pytest.mark.parametrize("density", [0.15, 0.6])
def test_the_law_does_not_depend_on_the_noise_it_starts_from(three_nodes, density):
    model = three_nodes.model(three_nodes.labelled(SHARE), density)
    found = classes(drawn(model, 3000, 100))
    assert chisquare(found, 3000 * SHARE).pvalue > CHANCE, found


@pytest.mark.parametrize("sde", ["vp", "ve", "subvp"])
def test_the_system_of_sdes_recovers_prescribed_class_probabilities(three_nodes, sde):
    model = three_nodes.model(three_nodes.labelled(SHARE), DENSITY, system="sde", edge_sde=sde)
    found = classes(drawn(model, 1500, 100))
    assert chisquare(found, 1500 * SHARE).pvalue > CHANCE, found


@pytest.mark.parametrize("solver", ["heun", "euler_maruyama", "reverse_diffusion", "s4"])
def test_every_solver_of_the_sdes_recovers_them(three_nodes, solver):
    model = three_nodes.model(three_nodes.labelled(SHARE), DENSITY, system="sde")
    found = classes(drawn(model, 800, 60, solver=solver))
    assert chisquare(found, 800 * SHARE).pvalue > CHANCE, found


def test_independent_edges_of_the_right_density_would_be_found_out(three_nodes):
    """The chi-square has power: pairs that ignore each other have the density but not the law."""
    alone = torch.tensor([1 - DENSITY, DENSITY], dtype=torch.float64)
    prior = alone[three_nodes.table].prod(1)
    found = classes(drawn(three_nodes.model(prior, DENSITY), 3000, 40))
    assert chisquare(found, 3000 * SHARE).pvalue < 1e-9
    exact = np.bincount(three_nodes.edges, weights=prior)
    assert chisquare(found, 3000 * exact / exact.sum()).pvalue > CHANCE


@pytest.mark.parametrize("system", ["flow", "sde"])
def test_the_labelled_graphs_of_one_class_come_out_equally_often(three_nodes, system):
    """Network and process do not know the order of the nodes, whatever the weights."""
    config = NetConfig(edges=(0.5, 0.5), system=system, width=16, pair_width=8, heads=2, layers=2)
    net = build(config, seed=4)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    model = GraphModel(net.eval(), graph_process(config))
    found = three_nodes.counts(drawn(model, 3000, 12))
    of = [found[three_nodes.edges.numpy() == edges] for edges in (1, 2)]
    assert sum(same.sum() for same in of) > 500
    assert all(chisquare(same).pvalue > CHANCE for same in of if same.sum() > 20), found


@pytest.mark.parametrize("system", ["flow", "sde"])
def test_a_sampled_graph_knows_neither_its_padding_nor_its_place_in_the_batch(system):
    config = NetConfig.model_validate(
        {"nodes": (0.6, 0.4), "edges": (0.6, 0.3, 0.1), "features": [(0.0, 1.0)],
         "weights": [(0.0, 1.0)], "system": system, "width": 16, "pair_width": 8, "heads": 2,
         "layers": 2}
    )  # fmt: skip
    net = build(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    model = GraphModel(net.eval(), graph_process(config))
    sizes, keys = torch.tensor([4, 7, 5, 7, 6]), Keys.for_samples(9, range(5))
    whole, _ = generate(model, keys, torch.arange(7) < sizes[:, None], steps=5, noise=1.0)
    order = torch.tensor([3, 0, 4, 2, 1])
    moved, _ = generate(model, keys[order], torch.arange(7) < sizes[order, None], steps=5,
                        noise=1.0)
    wide, _ = generate(model, keys, torch.arange(10) < sizes[:, None], steps=5, noise=1.0)
    for name, x in whole.items():
        close = torch.equal if not x.is_floating_point() else _near
        assert close(moved[name], x[order]), name
        trimmed = wide[name][:, :7, :7] if name in ("edges", "weights") else wide[name][:, :7]
        assert close(trimmed, x), name
        for row, n in enumerate(sizes.tolist()):
            alone, _ = generate(model, keys[row : row + 1], torch.ones(1, n, dtype=torch.bool),
                                steps=5, noise=1.0)
            own = x[row, :n, :n] if name in ("edges", "weights") else x[row, :n]
            assert close(alone[name][0], own), (name, row)


def _near(a, b):
    return torch.allclose(a, b, atol=1e-4)


def clean_classes(model, t, three_nodes):
    """p(clean class | noisy graph) of the three pairs of the eight graphs, (8, 3, 2)."""
    state = {"nodes": torch.zeros(8, 3, dtype=torch.int64), "edges": three_nodes.matrices()}
    with torch.no_grad():
        answer = model.logits(state, torch.full((8,), t), torch.ones(8, 3, dtype=torch.bool), None)
    pairs = ((0, 1), (0, 2), (1, 2))
    return torch.stack([answer["edges"][:, i, j] for i, j in pairs], 1).double().softmax(-1)


def chain_law(model, steps, three_nodes, step):
    """The law of the last graph of a chain over eight graphs whose pairs move independently:
    ``step(p, t, s)`` gives the chances (8, 3, 2) of their next classes.
    """
    table, m = three_nodes.table, torch.tensor(model.config.edges, dtype=torch.float64)
    law = m[table].prod(1)
    for t, s in pairwise(clock(steps)):
        chance = step(clean_classes(model, t, three_nodes), t, s)
        law = law @ torch.stack([chance[:, range(3), graph].prod(1) for graph in table], 1)
    return law


@pytest.mark.parametrize("steps", [2, 7])
def test_few_steps_of_the_flow_have_exactly_the_law_of_its_chain(three_nodes, steps):
    """A pair is replaced by a draw from its posterior at rate 1 / (1 - t), else it stays."""
    model = three_nodes.model(three_nodes.labelled(SHARE), DENSITY)
    own = torch.eye(2, dtype=torch.float64)[three_nodes.table]

    def step(p, t, s):
        show = (s - t) / (1 - t)
        return (1 - show) * own + show * p

    exact = chain_law(model, steps, three_nodes, step).numpy()
    found = three_nodes.counts(drawn(model, 20000, steps))
    assert chisquare(found, 20000 * exact / exact.sum()).pvalue > CHANCE, (found, exact)
    limit = three_nodes.labelled(SHARE).numpy()  # two steps are too few, and it shows
    assert steps > 2 or chisquare(found, 20000 * limit).pvalue < 1e-9


def exact_bound(model, steps, three_nodes):
    """The bound of the eight graphs by summing over the noisy graphs instead of drawing them."""
    table, m = three_nodes.table, torch.tensor(model.config.edges, dtype=torch.float64)
    total = torch.zeros(8, dtype=torch.float64)
    for t, s in pairwise(clock(steps)):
        back = step_posterior(table, m, t, s)  # (noisy, pair, clean, next)
        mean = (clean_classes(model, t, three_nodes).unsqueeze(-1) * back).sum(-2)
        for k, graph in enumerate(table):
            noisy = (t * (table == graph) + (1 - t) * m[table]).prod(1)
            own = back[:, range(3), graph]
            divergence = (torch.xlogy(own, own) - torch.xlogy(own, mean)).sum((-1, -2))
            total[k] -= noisy @ divergence
    return total


def test_the_bound_is_below_the_log_likelihood_and_tight_as_steps_grow(three_nodes):
    prior = three_nodes.labelled(SHARE)
    model = three_nodes.model(prior, DENSITY)
    m = torch.tensor(model.config.edges, dtype=torch.float64)
    worst = []
    for steps in (5, 20, 80):

        def ancestral(p, t, s):
            return (p.unsqueeze(-1) * step_posterior(three_nodes.table, m, t, s)).sum(-2)

        found = exact_bound(model, steps, three_nodes)
        law = chain_law(model, steps, three_nodes, ancestral)
        assert (found < law.log()).all()
        # of the data's own law the bound can only be below on average: minus the entropy
        assert (prior * found).sum() < (prior * prior.log()).sum()
        worst.append(float((found - prior.log()).abs().max()))
    # a step loses the dependence of the pairs within it: the whole is of first order in its length
    assert worst[-1] < 0.02 and all(2.5 < a / b < 6 for a, b in pairwise(worst)), worst


def test_the_drawn_bound_is_the_summed_one(three_nodes):
    model = three_nodes.model(three_nodes.labelled(SHARE), DENSITY)
    given = graphgen.from_networkx([nx.empty_graph(3)] * 400)
    given = replace(given, edges=three_nodes.matrices().repeat(50, 1, 1))
    found = bound(model, given, steps=8, draws=4, seed=2, batch_size=400).value.view(50, 8)
    exact = exact_bound(model, 8, three_nodes)
    stderr = found.std(0) / 50**0.5
    assert (stderr < 0.15).all() and ((found.mean(0) - exact).abs() < 4 * stderr).all()


@pytest.mark.parametrize("sde", ["vp", "ve", "subvp"])
def test_the_bound_of_the_sdes_is_tight_as_steps_grow(three_nodes, sde):
    prior = three_nodes.labelled(SHARE)
    model = three_nodes.model(prior, DENSITY, system="sde", edge_sde=sde)
    given = graphgen.from_networkx([nx.empty_graph(3)] * 800)
    given = replace(given, edges=three_nodes.matrices().repeat(100, 1, 1))
    gaps = []
    for steps in (30, 240):
        found = bound(model, given, steps=steps, seed=5, batch_size=800).value.view(100, 8)
        each, stderr = found.mean(0) - prior.log(), found.std(0) / 10
        assert (each < 4 * stderr).all()
        gaps.append(float((prior * each).sum()))
        error = float((prior * stderr).square().sum().sqrt())
        # of the data's own law the bound is below on average: minus the entropy is the best
        assert gaps[-1] < 3 * error
    assert gaps[1] > -0.2 and gaps[0] < 2.5 * gaps[1], gaps


class Normals(torch.nn.Module):
    """Features that are independent normals of unit variance and their posterior means."""

    def __init__(self, config):
        super().__init__()
        self.config, self.placed = config, torch.nn.Parameter(torch.zeros(()))

    def forward(self, nodes, edges, t, mask, features=None, *_, **__):
        t = t.view(-1, 1, 1)
        mean = t / (t**2 + (1 - t) ** 2) * features
        b, n = mask.shape
        return {"nodes": torch.zeros(b, n, 1), "features": mean,
                "edges": torch.tensor([50.0, 0.0]).expand(b, n, n, 2)}


def test_the_bound_of_features_is_a_density_in_their_own_units():
    centre, scale = torch.tensor([3.0, -1.0]), torch.tensor([0.2, 7.0])
    config = NetConfig(edges=(0.9, 0.1), features=list(zip(centre.tolist(), scale.tolist(),
                                                           strict=True)))  # fmt: skip
    model = GraphModel(Normals(config), graph_process(config))
    x = centre + scale * torch.tensor([[0.3, -1.2], [2.0, 0.1]])
    shape = nx.empty_graph(2)
    nx.set_node_attributes(shape, {k: tuple(x[k].tolist()) for k in range(2)}, "x")
    given = graphgen.from_networkx([shape] * 2000, graphgen.declare([shape], features="x"))
    exact = float(torch.distributions.Normal(centre, scale).log_prob(x).sum())
    # nothing of the edges: noise draws some, and the network says with certainty that none is there
    gaps = []
    for steps in (50, 200):
        found = bound(model, given, steps=steps, seed=1, batch_size=2000).value
        assert float(found.std()) / 2000**0.5 < 0.06
        gaps.append(exact - float(found.mean()))
    # a step of SNR to r SNR costs (r - 1 - log r) / 2 where SNR |x - x^|^2 is 1: first order
    assert gaps[0] > gaps[1] + 0.5 and 0 < gaps[1] < 0.6, gaps


@pytest.mark.slow
@pytest.mark.parametrize("system", ["flow", "sde"])
def test_a_trained_model_recovers_prescribed_class_probabilities(three_nodes, system):
    shapes = [nx.empty_graph(3), nx.Graph([(0, 1)]), nx.path_graph(3), nx.complete_graph(3)]
    shapes[1].add_node(2)
    data = [shapes[k] for k, share in enumerate(SHARE) for _ in range(round(100 * share))]
    model = graphgen.fit(
        data, steps=700, learning_rate=2e-3, system=system, progress=False, warmup=50, ema=0.98,
        batch=32,
        net={"width": 32, "pair_width": 16, "heads": 2, "layers": 2, "walks": 3},
    )
    found = classes(model.sample(600, seed=1, steps=100, batch_size=600).graphs.edges)
    assert chisquare(found, 600 * SHARE).pvalue > CHANCE, found
