"""Training, sampling and completing graphs: what the model may depend on and what it must keep."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch

from driftworks import graphgen
from driftworks.core import checkpoint
from driftworks.core.keys import Keys
from driftworks.core.process import Process
from driftworks.core.run import Run
from driftworks.errors import UserError
from driftworks.graphgen.elbo import step_posterior
from driftworks.graphgen.graph import Attributes
from driftworks.graphgen.network import NetConfig, build, walks
from driftworks.graphgen.process import GraphModel, bare_posterior, encode, graph_process
from driftworks.graphgen.sample import generate
from driftworks.graphgen.train import describe

TINY = {"width": 16, "pair_width": 8, "heads": 2, "layers": 2, "walks": 4}


def tiny(**changes) -> tuple[GraphModel, Process]:
    config = NetConfig.model_validate(
        {"nodes": (0.5, 0.3, 0.2), "edges": (0.7, 0.2, 0.1)} | TINY | changes
    )
    net = build(config, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # zero-initialised branches would hide what a layer does
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    process = graph_process(config)
    return GraphModel(net.eval(), process), process


def state(model, n=7, b=4, t=0.4):
    keys = Keys.for_samples(1, range(b))
    mask = torch.arange(n) < torch.tensor([7, 5, 3, 6])[:b, None]
    process = model.process
    shape = {"nodes": torch.zeros(b, n, dtype=torch.int64),
             "edges": torch.zeros(b, n, n, dtype=torch.int64)}
    if model.config.system == "sde":
        shape = {"nodes": torch.zeros(b, n, 3), "edges": torch.zeros(b, n, n, 3)}
    return process.prior(keys, shape, mask), torch.full((b,), t), mask


@pytest.mark.parametrize("system", ["flow", "sde"])
def test_renumbering_the_nodes_renumbers_the_answer(system):
    model, _ = tiny(system=system)
    x, t, mask = state(model)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    y = {"nodes": x["nodes"][:, order], "edges": x["edges"][:, order][:, :, order]}
    with torch.no_grad():
        plain, permuted = model(x, t, mask), model(y, t, mask[:, order])
    inside = mask[:, order]
    pairs = inside[:, :, None] & inside[:, None, :]
    assert torch.allclose(plain["nodes"][:, order][inside], permuted["nodes"][inside], atol=1e-5)
    moved = plain["edges"][:, order][:, :, order]
    assert torch.allclose(moved[pairs], permuted["edges"][pairs], atol=1e-5)
    assert (plain["edges"] - plain["edges"].transpose(1, 2)).abs().max() < 1e-6


@pytest.mark.parametrize("system", ["flow", "sde"])
def test_padding_and_neighbours_change_nothing(system):
    model, _ = tiny(system=system)
    x, t, mask = state(model)
    with torch.no_grad():
        whole = model(x, t, mask)
        for row, n in enumerate((7, 5, 3, 6)):
            one = {"nodes": x["nodes"][row, None, :n], "edges": x["edges"][row, None, :n, :n]}
            alone = model(one, t[:1], mask[row : row + 1, :n])
            assert torch.allclose(alone["nodes"][0], whole["nodes"][row, :n], atol=1e-5)
            off = ~torch.eye(n, dtype=torch.bool)
            assert torch.allclose(
                alone["edges"][0][off], whole["edges"][row, :n, :n][off], atol=1e-5
            )


def test_random_walks_are_powers_of_the_transition_matrix():
    graph = nx.gnm_random_graph(9, 14, seed=4)
    a = torch.tensor(nx.to_numpy_array(graph), dtype=torch.float64)
    p = a / a.sum(1, keepdim=True).clamp(min=1e-12)
    found = walks(a[None], 5)[0]
    for k in range(5):
        assert torch.allclose(found[..., k], torch.linalg.matrix_power(p, k + 1))


def test_what_a_noisy_entry_says_of_its_class_is_bayes_rule():
    share = (0.5, 0.3, 0.2)
    path = graph_process(NetConfig(nodes=share, system="sde")).parts["nodes"].path
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(50, generator=generator) * 0.8 + 0.1
    x = torch.randn(50, 1, 3, generator=generator)
    found = bare_posterior(x.double(), path, t, share)[:, 0]
    for row in range(50):
        beta, sigma = path.beta(float(t[row])), path.sigma(float(t[row]))
        centre = beta * encode(torch.arange(3), 3).double()
        weight = torch.tensor(share).double() * torch.exp(
            -(x[row, 0].double() - centre).square().sum(-1) / (2 * sigma**2)
        )
        assert torch.allclose(found[row], weight / weight.sum(), atol=1e-6)
    two = bare_posterior(x[..., :1].double(), path, t, (0.7, 0.3))[:, 0]
    beta, sigma = path.beta(t), path.sigma(t)
    likelihood = [torch.exp(-(x[:, 0, 0] - s * beta).square() / (2 * sigma**2)) for s in (-1, 1)]
    wanted = 0.3 * likelihood[1] / (0.7 * likelihood[0] + 0.3 * likelihood[1])
    assert torch.allclose(two[:, 1], wanted, atol=1e-6)


@pytest.mark.parametrize("system", ["flow", "sde"])
def test_known_entries_come_back_and_states_are_simple_graphs(system):
    model, _ = tiny(system=system)
    keys, mask = Keys.for_samples(2, range(5)), torch.arange(6).expand(5, 6) < 5
    nodes = torch.tensor([[2, 1, 0, 0, 0, 0]]).expand(5, 6)
    edges = torch.zeros(5, 6, 6, dtype=torch.int64)
    edges[:, 0, 1] = edges[:, 1, 0] = 2
    held = torch.arange(6).expand(5, 6) < 2
    known = {"nodes": (nodes, held), "edges": (edges, held[:, :, None] & held[:, None, :])}
    out, finite = generate(model, keys, mask, steps=6, noise=2.0, known=known)
    assert finite.all()
    assert torch.equal(out["nodes"][held], nodes[held])
    assert (out["edges"][:, 0, 1] == 2).all()
    assert torch.equal(out["edges"], out["edges"].transpose(1, 2))
    assert not out["edges"].diagonal(dim1=1, dim2=2).any()
    assert not out["edges"][:, 5].any() and not out["nodes"][:, 5].any()
    assert out["nodes"].max() < 3 and out["edges"].max() < 3


def cycles(count):
    """Rings of 4 to 6 nodes with two kinds of edges and named nodes."""
    graphs = []
    for k in range(count):
        graph = nx.cycle_graph(4 + k % 3)
        for i, (_, _, data) in enumerate(graph.edges(data=True)):
            data["kind"] = "ab"[i % 2]
        for i, (_, data) in enumerate(graph.nodes(data=True)):
            data["colour"] = ("red", "blue")[i % 2]
            data["height"] = 2.0 + 0.5 * i
        graph.graph["label"] = k % 3
        graphs.append(graph)
    return graphs


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return graphgen.fit(
        cycles(30), steps=12, nodes="colour", edges="kind", features="height", label="label",
        out=tmp_path_factory.mktemp("run") / "model", progress=False, batch=8, net=TINY,
    )


def test_a_graph_depends_on_its_seed_and_number_alone(fitted):
    whole = fitted.sample(9, seed=4, steps=5)
    pieces = [*fitted.sample(4, seed=4, steps=5, batch_size=1),
              *fitted.sample(5, seed=4, first=4, steps=5)]
    for a, b in zip(whole, pieces, strict=True):
        assert a.nodes(data=True) == b.nodes(data=True)
        assert list(a.edges(data=True)) == list(b.edges(data=True))
    assert any(
        a.edges != b.edges for a, b in zip(whole, fitted.sample(9, seed=5, steps=5), strict=True)
    )


def test_samples_have_the_attributes_of_the_data(fitted):
    for graph in fitted.sample(6, seed=1, steps=4, label=[0, 1, 2, 0, 1, 2], guidance=2.0):
        assert 4 <= len(graph) <= 6
        for _, data in graph.nodes(data=True):
            assert data["colour"] in ("red", "blue") and isinstance(data["height"], float)
        assert all(data["kind"] in "ab" for *_, data in graph.edges(data=True))


def test_guidance_of_zero_is_the_unconditional_model(fitted):
    free = fitted.sample(5, seed=2, steps=4)
    zero = fitted.sample(5, seed=2, steps=4, label=2, guidance=0.0)
    one = fitted.sample(5, seed=2, steps=4, label=2, guidance=1.0)
    for a, b in zip(free, zero, strict=True):
        assert list(a.edges(data=True)) == list(b.edges(data=True))
    assert any(list(a.nodes(data=True)) != list(b.nodes(data=True))
               for a, b in zip(free, one, strict=True))


def test_the_known_part_of_a_graph_comes_back_bit_identical(fitted):
    known = nx.Graph()
    known.add_node("x", colour="blue", height=0.1 + 0.2)
    known.add_node(7, colour="red", height=-3.7)
    known.add_node("alone", colour="red", height=1e6)
    known.add_edge("x", 7, kind="b")
    for graph in fitted.complete(known, n=6, count=3, seed=1, steps=5):
        assert list(graph)[:3] == ["x", 7, "alone"] and len(graph) == 6
        part = graph.subgraph(["x", 7, "alone"])
        assert dict(part.nodes(data=True)) == dict(known.nodes(data=True))
        assert [*part.edges(data=True)] == [("x", 7, {"kind": "b"})]
    (same,) = fitted.complete(known, n=3, seed=1, steps=3)
    assert list(same.edges(data=True)) == list(known.edges(data=True))
    with pytest.raises(UserError, match="n=2 is less than the 3 nodes"):
        fitted.complete(known, n=2)


def test_requirements_are_met_and_the_acceptance_is_reported(fitted):
    out = fitted.sample(8, seed=3, steps=3, require=["connected", "max_degree=3"], attempts=30)
    assert all(nx.is_connected(g) and max(d for _, d in g.degree) <= 3 for g in out)
    assert out.attempts >= 8 and out.requested == 8
    assert len(out) + out.failures["requirements"] == 8
    assert out.acceptance == len(out) / out.attempts
    again = fitted.sample(8, seed=3, steps=3, require=["connected", "max_degree=3"], attempts=30,
                          batch_size=3)
    assert [list(g.edges) for g in out] == [list(g.edges) for g in again]
    none = fitted.sample(2, steps=2, require=lambda graph: False, attempts=2)
    assert len(none) == 0 and none.attempts == 4
    assert none.failures == {"not_finite": 0, "requirements": 2}
    with pytest.raises(UserError, match="unknown family 'round'"):
        fitted.sample(2, require="round")


def test_graphs_that_do_not_stay_finite_are_counted_as_such(fitted, monkeypatch):
    whole = fitted._batch

    def broken(keys, rows, *args, **settings):  # graphs 1 and 4 never stay finite
        graphs, finite = whole(keys, rows, *args, **settings)
        good = ~np.isin(finite, [1, 4])
        return graphs[np.flatnonzero(good)], finite[good]

    monkeypatch.setattr(fitted, "_batch", broken)
    out = fitted.sample(6, steps=2)
    assert out.failures == {"not_finite": 2} and out.indices.tolist() == [0, 2, 3, 5]
    none = fitted.sample(6, steps=2, require=lambda graph: False, attempts=2)
    assert none.failures == {"not_finite": 2, "requirements": 4} and none.attempts == 12


def test_an_interrupted_training_ends_on_the_same_weights(tmp_path, monkeypatch):
    graphs = [nx.path_graph(5), nx.star_graph(4), nx.cycle_graph(6)]
    for k, graph in enumerate(graphs):
        graph.graph.update(kind=k % 2, height=float(k))
    settings = {"progress": False, "batch": 4, "net": TINY, "label": "kind",
                "properties": ["height"]}  # fmt: skip
    whole = graphgen.fit(graphs, steps=8, out=tmp_path / "whole", **settings)
    run, update = tmp_path / "parts", Run.update

    def killed(self, loss):
        if self.step == 4:
            self.save(run)
            raise KeyboardInterrupt
        update(self, loss)

    monkeypatch.setattr(Run, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        graphgen.fit(graphs, steps=8, out=run, **settings)
    monkeypatch.undo()
    assert checkpoint.load(sorted(run.glob("state-*"))[-1])[1]["step"] == 4
    again = graphgen.fit(graphs, steps=8, out=run, resume=True, **settings)
    assert again.hash == whole.hash
    with pytest.raises(UserError, match="already holds a training run"):
        graphgen.fit(graphs, steps=8, out=run, **settings)


def test_the_posterior_of_a_step_is_that_of_the_chain():
    generator = torch.Generator().manual_seed(7)
    m = torch.rand(3, generator=generator, dtype=torch.float64)
    m /= m.sum()
    k_t, k_s = 0.3, 0.55
    eye = torch.eye(3, dtype=torch.float64)
    forward = k_s * eye + (1 - k_s) * m  # x_1 -> x_s
    r = k_t / k_s
    kernel = r * eye + (1 - r) * m  # x_s -> x_t
    assert torch.allclose(forward @ kernel, k_t * eye + (1 - k_t) * m)
    for x_t in range(3):
        joint = forward * kernel[:, x_t]
        wanted = joint / joint.sum(1, keepdim=True)
        assert torch.allclose(step_posterior(torch.tensor(x_t), m, k_t, k_s), wanted)


def test_the_bound_is_below_the_log_likelihood_of_independent_edges_and_nearly_tight():
    """Edges that are independent with the marginal's own probabilities: log p is known exactly."""
    config = NetConfig.model_validate({"edges": (0.6, 0.4)} | TINY)
    process = graph_process(config)

    class Exact(torch.nn.Module):
        """p(x_1 | x_t) of independent entries whose law is the marginal itself."""

        def __init__(self):
            super().__init__()
            self.config, self.process = config, process
            self.scale = torch.nn.Parameter(torch.ones(()))

        def logits(self, x, t, mask, cond):
            m = torch.tensor(config.edges, dtype=torch.float64)
            k = t.double().view(-1, 1, 1, 1)
            p = k * torch.nn.functional.one_hot(x["edges"], 2) + (1 - k) * m
            return {"nodes": torch.zeros(*x["nodes"].shape, 1), "edges": p.log()}

    graphs = graphgen.from_networkx([nx.gnm_random_graph(5, e, seed=e) for e in (0, 3, 7, 10)])
    found = graphgen.zoo.bound(Exact(), graphs, steps=200, draws=8, seed=1)
    edges = torch.tensor([0, 3, 7, 10])
    exact = edges * torch.log(torch.tensor(0.4)) + (10 - edges) * torch.log(torch.tensor(0.6))
    assert (found.stderr < 0.5).all()
    assert (found.value < exact + 4 * found.stderr).all()
    assert (found.value - exact).abs().max() < 4 * found.stderr.max() + 0.05


def test_bad_input_is_refused_with_the_reason(fitted):
    with pytest.raises(UserError, match="label must lie in 0..2"):
        fitted.sample(2, label=5)
    with pytest.raises(UserError, match="the data have 4-6 nodes"):
        fitted.sample(2, nodes=(9, 12))
    with pytest.raises(UserError, match="n must be a whole number"):
        fitted.sample(0)
    with pytest.raises(UserError, match="unknown system 'vp'; choose flow or sde"):
        graphgen.fit(cycles(3), system="vp")
    with pytest.raises(UserError, match="no model 'nothing'"):
        graphgen.load("nothing")
    with pytest.raises(UserError, match="there are no edges to learn"):
        graphgen.fit([nx.empty_graph(1)], steps=1, progress=False)


def test_resistances_are_those_of_spanning_trees():
    """A tree has resistance = distance, the share of spanning trees sums to N - 1 (Foster), a
    cycle of n has (n - k) k / n at distance k, and padding and order change nothing."""
    from driftworks.graphgen.network import resistances

    screen, n = 1e-4, 6
    path = torch.from_numpy(nx.to_numpy_array(nx.path_graph(n))).float()
    cycle = torch.from_numpy(nx.to_numpy_array(nx.cycle_graph(n))).float()
    found = resistances(torch.stack((path, cycle)), (screen,))[0]
    ratio = found[..., 0]
    r = ratio / (1 - ratio)
    steps = (torch.arange(n)[:, None] - torch.arange(n)).abs().float()
    assert torch.allclose(r[0], steps, atol=5e-2)
    assert torch.allclose(r[1], steps * (n - steps) / n, atol=2e-2)
    assert torch.allclose(found[..., 1].sum((1, 2)) / 2, torch.tensor(n - 1.0), atol=1e-2)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = resistances(path[order][:, order][None], (screen,))[0][0]
    assert torch.allclose(moved, found[0][order][:, order], atol=1e-3)
    wide = torch.nn.functional.pad(cycle, (0, 3, 0, 3))[None]
    assert torch.allclose(resistances(wide, (screen,))[0][0, :n, :n], found[1], atol=1e-3)
    apart = resistances(torch.zeros(1, 2, 2), (0.5, 0.25))[0][0, 0, 1]
    assert torch.allclose(apart, torch.tensor([4 / 5, 8 / 9, 0.0, 0.0]))


def test_the_shares_of_nodes_count_the_components(rng):
    from driftworks.graphgen.network import resistances

    for _ in range(5):
        graph = nx.gnp_random_graph(12, 0.12, seed=int(rng.integers(1 << 30)))
        matrix = torch.from_numpy(nx.to_numpy_array(graph)).float()[None]
        own = resistances(matrix, (1e-4, 0.3))[1][0]
        for nodes in nx.connected_components(graph):
            assert float(own[list(nodes), 0].sum()) == pytest.approx(1, abs=0.02)
        spectrum = np.linalg.eigvalsh(nx.laplacian_matrix(graph).toarray().astype(float))
        assert float(own[:, 1].sum()) == pytest.approx((0.3 / (spectrum + 0.3)).sum(), rel=1e-3)


def test_sizes_of_the_network_are_added_to_those_of_the_preset():
    graphs = [nx.path_graph(4), nx.cycle_graph(5)]
    for preset, width in (("small", 64), ("base", 128)):
        model = graphgen.fit(graphs, steps=1, batch=2, preset=preset, progress=False,
                             compile=False, net={"layers": 1})  # fmt: skip
        net = model.config
        assert (net.layers, net.width, net.screens) == (1, width, (0.01, 0.3))


def test_a_class_that_the_data_lack_is_never_drawn_whatever_the_rounding():
    for nodes in range(3, 40):  # complete graphs: there is no pair without an edge
        graphs = graphgen.from_networkx([nx.complete_graph(nodes), nx.complete_graph(3)])
        assert describe(graphs).edges == (0.0, 1.0)
    generator = np.random.default_rng(0)
    for _ in range(200):
        kinds = torch.from_numpy(generator.integers(1, 7, 90))
        graphs = graphgen.from_networkx([nx.complete_graph(90)])
        values = tuple((k,) for k in range(7))
        spec = Attributes(nodes=("kind",), node_values=values)
        share = describe(replace(graphs, nodes=kinds[None], attributes=spec)).nodes
        assert share[0] == 0 and abs(sum(share) - 1) < 1e-12 and min(share) >= 0


def test_continuous_weights_leave_the_number_of_edges_as_it_is():
    """A sampler has noisy weights on every pair: those of absent edges must not look like edges."""
    rng = np.random.default_rng(5)
    data = []
    for _ in range(60):
        graph = nx.gnp_random_graph(4, 0.3, seed=int(rng.integers(1 << 30)))
        nx.set_edge_attributes(graph, {e: float(rng.uniform(0, 1)) for e in graph.edges}, "w")
        data.append(graph)
    net = {"width": 32, "pair_width": 16, "heads": 2, "layers": 2, "walks": 3}
    model = graphgen.fit(data, steps=600, weight="w", learning_rate=2e-3, warmup=20, ema=0.97,
                         batch=48, net=net, progress=False, precision="float32")  # fmt: skip
    drawn = model.sample(200, seed=1, steps=20)
    density = np.mean([nx.density(graph) for graph in drawn])
    assert abs(density - np.mean([nx.density(graph) for graph in data])) < 0.08, density
    weights = [w for graph in drawn for *_, w in graph.edges(data="w")]
    assert abs(np.mean(weights) - 0.5) < 0.12, np.mean(weights)
    bound = model.elbo(data[:10], steps=20)
    assert torch.isfinite(bound.value).all()


def test_dropout_leaves_out_channels_of_each_graph_whatever_its_place_and_order():
    model, _ = tiny()
    n, keys = 5, Keys.for_samples(1, range(3))
    generator = torch.Generator().manual_seed(1)
    nodes = torch.randint(3, (3, n), generator=generator)
    edges = torch.randint(3, (3, n, n), generator=generator).triu(1)
    edges = edges + edges.transpose(1, 2)
    mask, t = torch.ones(3, n, dtype=torch.bool), torch.full((3,), 0.5)

    def answer(rows, order, dropout):
        x = {"nodes": nodes[rows][:, order], "edges": edges[rows][:, order][:, :, order]}
        with torch.no_grad():
            return model.logits(x, t[rows], mask[rows], None, dropout)["edges"]

    every, straight, turned = [0, 1, 2], list(range(n)), [3, 0, 4, 2, 1]
    whole = answer(every, straight, (0.3, keys))
    plain = answer(every, straight, None)
    assert (whole - plain).abs().amax((1, 2, 3)).min() > 1e-3  # it does something to every graph
    assert torch.allclose(answer(every, straight, (1e-9, keys)), plain, atol=1e-5)
    alone = answer([2, 0], straight, (0.3, keys[torch.tensor([2, 0])]))
    assert torch.allclose(alone, whole[[2, 0]], atol=1e-5)
    moved = answer(every, turned, (0.3, keys))
    assert torch.allclose(moved, whole[:, turned][:, :, turned], atol=1e-5)


def test_dropout_is_a_setting_of_the_recipe():
    graphs = [nx.path_graph(4), nx.cycle_graph(5)]
    settings = {"steps": 2, "batch": 2, "progress": False, "net": TINY}
    plain, dropped = (graphgen.fit(graphs, dropout=p, **settings) for p in (0.0, 0.5))
    assert dropped.meta["config"]["dropout"] == 0.5 and dropped.hash != plain.hash
    with pytest.raises(UserError, match="dropout=1"):
        graphgen.fit(graphs, dropout=1.0, **settings)
