"""The GDSS preset against its paper: sizes, networks, objective, optimiser, sampler; and solvers.

Parameter counts are those of the published checkpoints. Networks are compared with a second, plain
implementation that loops over channels and heads, the trainer with two optimisers run by hand.
"""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor

from driftworks import graphgen
from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.process import Bridge
from driftworks.core.reverse import s4
from driftworks.core.solvers import SOLVERS, solver
from driftworks.errors import UserError
from driftworks.graphgen import gdss
from driftworks.graphgen.gdss_network import GdssNetConfig, Sde, build

COUNTS = {
    "community_small": (72_434, 134_369),
    "ego_small": (44_093, 135_713),
    "enzymes": (182_066, 204_113),
    "grid": (170_081, 203_153),
    "qm9": (8_564, 23_825),
    "zinc250k": (11_429, 62_873),
}
KINDS = {"qm9": 4, "zinc250k": 9}  # molecules show atom types, F of them
SMALL = {"width": 8, "attention_width": 8, "heads": 2, "depth": 2, "layers": 3, "channels": 3}


@pytest.mark.parametrize("name", COUNTS)
def test_the_networks_have_as_many_parameters_as_the_published_ones(name):
    sizes = {"inputs": KINDS.get(name), "nodes": KINDS.get(name, 1)} if name in KINDS else {}
    net = build(GdssNetConfig.model_validate(gdss.PRESETS[f"gdss-{name}"]["net"] | sizes))
    found = [sum(p.numel() for p in part.parameters()) for part in (net.nodes, net.edges)]
    assert tuple(found) == COUNTS[name]


def noisy(net, counts=(7, 5, 3, 6), seed=0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    n, b = max(counts), len(counts)
    mask = torch.arange(n) < torch.tensor(counts)[:, None]
    x = torch.randn(b, n, net.config.inputs, generator=generator) * mask[..., None]
    a = torch.randn(b, n, n, generator=generator).triu(1)
    return x, (a + a.mT) * (mask[:, :, None] & mask[:, None, :]), mask


def small(**changes):
    return build(GdssNetConfig.model_validate(SMALL | {"inputs": 4} | changes), seed=1)


def test_renumbering_the_nodes_renumbers_the_scores():
    net = small()
    x, a, mask = noisy(net)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    plain = net(x, a, mask)
    moved = net(x[:, order], a[:, order][:, :, order], mask[:, order])
    assert torch.allclose(plain["nodes"][:, order], moved["nodes"], atol=1e-5)
    assert torch.allclose(plain["edges"][:, order][:, :, order], moved["edges"], atol=1e-5)
    assert plain["edges"].abs().amax() > 0.01 and plain["nodes"].abs().amax() > 0.01


def test_scores_of_edges_are_symmetric_and_padding_is_zero_and_unseen():
    net = small()
    x, a, mask = noisy(net)
    whole = net(x, a, mask)
    assert torch.equal(whole["edges"], whole["edges"].mT)
    assert not whole["edges"].diagonal(dim1=1, dim2=2).any()
    assert not whole["nodes"][~mask].any() and not whole["edges"][~mask].any()
    for row, n in enumerate(mask.sum(1).tolist()):
        alone = net(x[row : row + 1, :n], a[row : row + 1, :n, :n], mask[row : row + 1, :n])
        assert torch.allclose(alone["nodes"][0], whole["nodes"][row, :n], atol=1e-5)
        assert torch.allclose(alone["edges"][0], whole["edges"][row, :n, :n], atol=1e-5)
    single = net(x[:1, :1], a[:1, :1, :1], mask[:1, :1])
    assert single["edges"].shape == (1, 1, 1) and not single["edges"].any()


def plain_networks(net, x: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both scores of one graph without padding, channel by channel and head by head."""
    config = net.config
    weights = {k: v.detach().double().numpy() for k, v in net.state_dict().items()}
    n = len(a)

    def mlp(prefix, values):
        names = [k for k in weights if k.startswith(prefix) and k.endswith("weight")]
        for i, name in enumerate(sorted(names)):
            values = values @ weights[name].T + weights[name.replace("weight", "bias")]
            if i < len(names) - 1:
                values = np.where(values > 0, values, np.expm1(values))
        return values

    def convolve(values, matrix, weight, bias):
        looped = matrix.copy()
        np.fill_diagonal(looped, 1.0)
        degree = np.maximum(looped.sum(1), 1.0)
        return np.diag(degree**-0.5) @ looped @ np.diag(degree**-0.5) @ values @ weight + bias

    seen = [x]
    for layer in range(config.depth):
        name = f"nodes.layers.{layer}"
        weight, bias = weights[f"{name}.weight"][:, 0], weights[f"{name}.bias"][0]
        seen.append(np.tanh(convolve(seen[-1], a, weight, bias)))
    nodes = mlp("nodes.out", np.concatenate(seen, 1))

    d, width = config.attention_width, config.width
    channels = [np.linalg.matrix_power(a, k + 1) for k in range(config.powers)]
    every, h = list(channels), x
    for layer in range(config.layers):
        name = f"edges.layers.{layer}"
        maps, values = [], []
        for c, channel in enumerate(channels):
            weight, bias = weights[f"{name}.qkv.weight"][:, c], weights[f"{name}.qkv.bias"][c]
            q, k, v = np.split(convolve(h, channel, weight, bias), [d, 2 * d], 1)
            heads = [
                np.tanh(one @ two.T / math.sqrt(width))
                for one, two in zip(np.split(q, config.heads, 1), np.split(k, config.heads, 1),
                                    strict=True)
            ]
            maps.append((np.mean(heads, 0) + np.mean(heads, 0).T) / 2)
            values.append(v)
        h = np.tanh(mlp(f"{name}.of_nodes", np.concatenate(values, 1)))
        mixed = mlp(f"{name}.of_pairs", np.stack(maps + channels, -1))
        mixed = mixed + mixed.transpose(1, 0, 2)
        channels = [mixed[..., c] for c in range(mixed.shape[-1])]
        every += channels
    edges = mlp("edges.out", np.stack(every, -1))[..., 0] * (1 - np.eye(n))
    return nodes, edges


@pytest.mark.parametrize("linears", [2, 3])
def test_the_networks_are_those_of_the_paper_written_out_plainly(linears):
    net = small(linears=linears, powers=3)
    x, a, mask = noisy(net, counts=(6,))
    found = net(x, a, mask)
    nodes, edges = plain_networks(net, x[0].double().numpy(), a[0].double().numpy())
    assert np.allclose(found["nodes"][0].detach(), nodes, atol=1e-4)
    assert np.allclose(found["edges"][0].detach(), edges, atol=1e-4)


@pytest.mark.parametrize("kind", ["vp", "subvp", "ve"])
def test_the_objective_of_the_exact_score_is_the_known_one(kind):
    """Data N(0, v): s = -x / V with V = beta^2 v + std^2, and the loss is beta^2 v / (2 V)."""
    sde = Sde(kind=kind, low=0.3, high=1.5)
    config = GdssNetConfig.model_validate(SMALL | {"node_sde": sde, "edge_sde": sde, "inputs": 3})
    process, path, v, level = gdss.gdss_process(config), sde.path(), 0.5, 0.4
    keys, mask = Keys.for_samples(4, range(600)), torch.ones(600, 6, dtype=torch.bool)
    like = {"nodes": torch.zeros(600, 6, 3), "edges": torch.zeros(600, 6, 6)}
    data = {name: math.sqrt(v) * part.space.noise(keys, f"data/{name}", 0, like[name], mask)
            for name, part in process.items()}
    bridge: Bridge = process.bridge(data, torch.full((600,), level), keys, mask)
    beta, sigma = path.beta(level), path.sigma(level)
    total = beta**2 * v + sigma**2
    score = {name: -x / total for name, x in process.unpack(bridge.x_t).items()}
    answer = score if kind == "ve" else {name: -sigma * s for name, s in score.items()}
    losses = gdss.score_losses(answer, process, bridge)
    for name, entries in (("nodes", 18), ("edges", 30)):
        wanted = entries * beta**2 * v / total / 2
        spread = float(losses[name].std()) / math.sqrt(600)
        assert abs(float(losses[name].mean()) - wanted) < 4 * spread
        assert spread < 0.1 * wanted


def test_training_is_two_adam_optimisers_with_their_own_clips_and_a_decay_an_epoch():
    graphs = graphgen.from_networkx([nx.gnm_random_graph(5 + k % 2, 6, seed=k) for k in range(6)])
    config = gdss.configure("gdss", graphs, None, 9, batch=4, net=SMALL, decay=0.5)
    batches = gdss.Batches(graphs, config, torch.device("cpu"))
    process = gdss.gdss_process(config.net)

    def losses(net, step):
        ((data, mask, keys),) = batches(step)
        bridge = process.bridge(data, keys.uniform("time", 0), keys, mask)
        x_t = process.unpack(bridge.x_t)
        answer = net(x_t["nodes"], x_t["edges"], mask)
        return {k: x.mean() for k, x in gdss.score_losses(answer, process, bridge).items()}

    ours, plain = build(config.net, 5), build(config.net, 5)
    run = gdss.GdssRun(config, ours, torch.device("cpu"), batches.epoch)
    two = {
        name: torch.optim.Adam(net.parameters(), lr=1e-2, weight_decay=1e-4)
        for name, net in (("nodes", plain.nodes), ("edges", plain.edges))
    }
    rates = [torch.optim.lr_scheduler.ExponentialLR(one, 0.5) for one in two.values()]
    assert batches.epoch == 2  # six graphs, four a batch
    for step in range(5):
        found = losses(ours, step)
        run.step_with([found["nodes"] + found["edges"]])
        for name, one in losses(plain, step).items():
            two[name].zero_grad()
            one.backward()
            norm = torch.nn.utils.clip_grad_norm_(getattr(plain, name).parameters(), 1.0)
            assert norm > 1.0  # so that the clip acts
        for one in two.values():
            one.step()
        if step % 2 == 1:
            for rate in rates:
                rate.step()
        for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(p, q, atol=1e-5)
    assert run.learning_rate() == pytest.approx(1e-2 * 0.25)


def test_every_epoch_shows_every_graph_once_and_pieces_change_no_gradient(monkeypatch):
    graphs = graphgen.from_networkx([nx.path_graph(n) for n in range(3, 12)])
    config = gdss.configure("gdss", graphs, None, 1, batch=5, net=SMALL)
    for epoch in range(3):
        monkeypatch.setattr(gdss, "PIECE", 2)
        batches = gdss.Batches(graphs, config, torch.device("cpu"))
        sizes: list[int] = []
        for step in (2 * epoch, 2 * epoch + 1):
            pieces = batches(step)
            sizes += torch.cat([mask.sum(1) for _, mask, _ in pieces]).tolist()
            monkeypatch.setattr(gdss, "PIECE", 32)
            ((whole, mask, keys),) = batches(step)
            monkeypatch.setattr(gdss, "PIECE", 2)
            row = 0
            for data, own, some in pieces:
                n = own.shape[1]
                for k in range(len(own)):
                    assert torch.equal(data["edges"][k], whole["edges"][row, :n, :n])
                    assert torch.equal(data["nodes"][k], whole["nodes"][row, :n])
                    assert int(some.ids[k]) == int(keys.ids[row])
                    row += 1
            assert row == len(mask)
        assert sorted(sizes) == list(range(3, 12))


VP, GRID = Path.vp(0.1, 1.0), gdss.grid(20)


def test_the_euler_predictor_is_the_reverse_sde_and_its_corrector_is_tempered():
    table = gdss.Sampler(snr=0.1, scale=0.7).table(VP, GRID)
    predictors = [k for k in range(len(table)) if table.times[k] < table.ends[k]]
    assert len(predictors) == 20 and len(table) == 39
    for k in predictors[:-1]:
        t, h = table.times[k], table.ends[k] - table.times[k]
        rate, beta, variance = 0.1 + 0.9 * (1 - t), VP.beta(t), VP.sigma(t) ** 2
        assert table.a[k][0] == pytest.approx(1 + h * (rate / 2 - rate / variance))
        assert table.b[k][0] == pytest.approx(h * rate * beta / variance)
        assert table.c[k] == pytest.approx(math.sqrt(rate * h))
    for k in set(range(len(table))) - set(predictors):
        sigma = VP.sigma(table.times[k])
        step = 2 * (0.1 * sigma) ** 2
        assert table.a[k][0] == pytest.approx(1 - step / sigma**2)
        assert table.c[k] == pytest.approx(0.7 * math.sqrt(2 * step))


def test_the_reverse_predictor_on_ve_adds_the_score_times_the_variance_gone():
    path = Path.ve(0.2, 1.0)
    table = gdss.Sampler(predictor="reverse").table(path, GRID)
    for k in range(len(table) - 1):
        t, u = GRID[k], GRID[k + 1]
        gone = path.sigma(t) ** 2 - path.sigma(u) ** 2
        assert table.b[k][0] == pytest.approx(gone / path.sigma(t) ** 2)
        assert table.a[k][0] == pytest.approx(1 - gone / path.sigma(t) ** 2)
        assert table.c[k] == pytest.approx(math.sqrt(gone))


@pytest.mark.parametrize("path", [VP, Path.ve(0.2, 1.0)])
def test_s4_takes_only_the_corrector_s_noise_down(path):
    plain, full = s4(path, GRID), s4(path, GRID, 0.15)
    assert gdss.Sampler(predictor="s4", snr=0.15).table(path, GRID).c == pytest.approx(full.c)
    found = gdss.Sampler(predictor="s4", snr=0.15, scale=0.7).table(path, GRID)
    assert found.a == full.a and found.b == full.b
    for own, both, c in zip(plain.c, full.c, found.c, strict=True):
        assert c**2 == pytest.approx(own**2 + 0.49 * (both**2 - own**2))


class Independent(gdss.GdssModel):
    """The exact scores of edges that are there with probability p, alone each; X is all zero."""

    p = 0.3

    def forward(self, x, t, mask, cond=None, previous=None):
        path = self.process.parts["edges"].path
        beta, sigma = path.beta(float(t[0])), path.sigma(float(t[0]))
        a = x["edges"]
        odds = math.log(self.p / (1 - self.p)) + (beta * a - beta**2 / 2) / sigma**2
        score = (beta * odds.sigmoid() - a) / sigma**2
        nodes = -x["nodes"] / sigma**2
        if self.process.parts["edges"].predicts == "noise":
            score, nodes = -sigma * score, -sigma * nodes
        return {"nodes": nodes, "edges": score}


@pytest.mark.parametrize("predictor", ["euler", "reverse", "s4"])
def test_the_samplers_reach_the_law_of_independent_edges(predictor):
    sde = Sde(kind="vp", high=20.0)  # a VP SDE that does end in N(0, 1)
    sizes = SMALL | {"inputs": 4, "node_sde": sde, "edge_sde": sde}
    net, sampler = build(GdssNetConfig.model_validate(sizes)), gdss.Sampler(
        predictor=predictor, snr=0.05
    )
    count, pairs, p = 300, 15, Independent.p
    out, finite = gdss.generate(
        Independent(net, sampler), Keys.for_samples(3, range(count)),
        torch.ones(count, 6, dtype=torch.bool), 100,
    )
    assert finite.all() and set(out["edges"].unique().tolist()) == {0, 1}
    edges = out["edges"].double().sum((1, 2)) / 2
    # the weak error of first-order steps is of the size of one step of a hundred
    assert abs(float(edges.mean()) - pairs * p) < 4 * math.sqrt(pairs * p * (1 - p) / count) + 0.05
    assert float(edges.var()) == pytest.approx(pairs * p * (1 - p), rel=4 * math.sqrt(2 / count))


def rings(count):
    """Rings of 4 to 6 nodes with one isolated node beside, names and all."""
    graphs = []
    for k in range(count):
        graph = nx.cycle_graph(4 + k % 3)
        graph.add_node("alone")
        graphs.append(graph)
    return graphs


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    out = tmp_path_factory.mktemp("gdss") / "model"
    return graphgen.fit(rings(12), preset="gdss", steps=4, out=out, progress=False, net=SMALL)


def edges_of(graphs):
    return [(len(g), sorted(map(tuple, map(sorted, g.edges)))) for g in graphs]


def test_a_checkpoint_remembers_recipe_and_sampler_and_samples_alike(fitted, tmp_path_factory):
    folder = next(tmp_path_factory.getbasetemp().glob("gdss*/model"))
    again = graphgen.load(folder)
    assert again.config == fitted.config and again.config.system == "gdss"
    assert again.steps == 1000 and again.model.sampler == gdss.Sampler(snr=0.05, scale=0.7)
    assert edges_of(again.sample(4, seed=3, steps=6)) == edges_of(fitted.sample(4, seed=3, steps=6))


def test_a_graph_of_gdss_does_not_depend_on_its_batch_and_keeps_isolated_nodes(fitted):
    whole = fitted.sample(9, seed=4, steps=8)
    pieces = [*fitted.sample(4, seed=4, steps=8, batch_size=1),
              *fitted.sample(5, seed=4, first=4, steps=8)]
    assert edges_of(whole) == edges_of(pieces)
    assert len(set(map(str, edges_of(whole)))) > 3
    assert {len(g) for g in fitted.sample(30, seed=1, steps=3)} <= {5, 6, 7}
    state = {"nodes": torch.zeros(2, 5, fitted.config.inputs), "edges": torch.zeros(2, 5, 5)}
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    bare = fitted._graphs(gdss.decode(state, mask, fitted.config), 5)
    assert bare.node_counts.tolist() == [5, 5] and not bare.edges.any()


def test_the_known_part_of_a_graph_stays(fitted):
    known = nx.Graph([("a", "b"), ("b", "c")])
    known.add_node("far")
    for graph in fitted.complete(known, n=7, count=3, steps=6):
        assert list(graph)[:4] == ["a", "b", "c", "far"] and len(graph) == 7
        assert nx.utils.edges_equal(graph.subgraph(known).edges, known.edges)


def test_kinds_of_nodes_and_edges_go_there_and_back():
    graphs = []
    for k in range(8):
        graph = nx.path_graph(4 + k % 2)
        nx.set_node_attributes(graph, {i: "CNO"[(i + k) % 3] for i in graph}, "element")
        nx.set_edge_attributes(graph, {e: 1 + (e[0] + k) % 3 for e in graph.edges}, "order")
        graphs.append(graph)
    batch = graphgen.from_networkx(graphs, graphgen.declare(graphs, "element", "order"))
    config = gdss.configure("gdss-qm9", batch, None, 1).net
    assert (config.inputs, config.nodes, config.edges) == (3, 3, 3)
    state = gdss.encode(batch.nodes, batch.edges, batch.mask, config)
    back = gdss.decode(state, batch.mask, config)
    assert torch.equal(back["nodes"], batch.nodes) and torch.equal(back["edges"], batch.edges)
    model = graphgen.fit(graphs, preset="gdss-qm9", steps=2, nodes="element", edges="order",
                         progress=False)
    for graph in model.sample(3, steps=4):
        assert {d["element"] for _, d in graph.nodes(data=True)} <= set("CNO")
        assert {d["order"] for *_, d in graph.edges(data=True)} <= {1, 2, 3}


def test_degrees_are_what_nodes_show_without_kinds():
    batch = graphgen.from_networkx(rings(2))
    config = gdss.configure("gdss", batch, None, 1, net=SMALL).net
    x = gdss.encode(batch.nodes, batch.edges, batch.mask, config)["nodes"]
    assert config.inputs == 3
    assert x[0, :4].argmax(-1).tolist() == [2, 2, 2, 2] and x[0, 4].argmax() == 0
    assert not x[~batch.mask].any() and (x[batch.mask].sum(-1) == 1).all()


def test_an_interrupted_run_of_gdss_ends_on_the_same_weights(tmp_path, monkeypatch):
    settings = {"preset": "gdss", "progress": False, "net": SMALL, "batch": 4}
    whole = graphgen.fit(rings(6), steps=7, out=tmp_path / "whole", **settings)
    step_with = gdss.GdssRun.step_with

    def killed(self, losses):
        if self.step == 4:
            self.save(tmp_path / "parts")
            raise KeyboardInterrupt
        step_with(self, losses)

    monkeypatch.setattr(gdss.GdssRun, "step_with", killed)
    with pytest.raises(KeyboardInterrupt):
        graphgen.fit(rings(6), steps=7, out=tmp_path / "parts", **settings)
    monkeypatch.undo()
    again = graphgen.fit(rings(6), steps=7, out=tmp_path / "parts", resume=True, **settings)
    assert again.hash == whole.hash


def test_the_average_is_shipped_only_where_it_was_published():
    assert {name for name, recipe in gdss.PRESETS.items() if recipe.get("averaged")} == {
        "gdss-enzymes", "gdss-grid",
    }
    graphs = graphgen.from_networkx(rings(3))
    for averaged in (False, True):
        config = gdss.configure("gdss", graphs, None, 3, net=SMALL, averaged=averaged)
        run = gdss.GdssRun(config, build(config.net), torch.device("cpu"), 1)
        with torch.no_grad():
            for p in run.net.parameters():
                p.add_(1.0)
        same = [torch.equal(p, q) for p, q in
                zip(run.averaged().parameters(), run.net.parameters(), strict=True)]
        assert all(same) is not averaged


def test_what_gdss_cannot_do_is_refused_with_the_reason(fitted):
    star = [nx.star_graph(12)]
    with pytest.raises(UserError, match="degrees up to 9, the data go up to 12"):
        graphgen.fit(star, preset="gdss-community_small", steps=1)
    with pytest.raises(UserError, match="unknown preset 'gds'; choose one of small, quick, base"):
        graphgen.fit(star, preset="gds")
    tall = nx.path_graph(3)
    nx.set_node_attributes(tall, 1.5, "height")
    with pytest.raises(UserError, match="no continuous attributes"):
        graphgen.fit([tall], preset="gdss", features="height", steps=1)
    with pytest.raises(UserError, match="no labels and no properties"):
        graphgen.fit([nx.Graph([(0, 1)], x=1.5)], preset="gdss", properties=["x"], steps=1)
    with pytest.raises(UserError, match="preset 'gdss', sampler.predictor: Input should"):
        graphgen.fit(star, preset="gdss", steps=1, sampler={"predictor": "leap"})
    with pytest.raises(UserError, match="answers with scores"):
        fitted.elbo([nx.path_graph(3)])
    with pytest.raises(UserError, match="noise=1.0 and temperature=1.0 are settings of discrete"):
        fitted.sample(2, noise=1.0)


TINY = {"width": 16, "pair_width": 8, "heads": 2, "layers": 2, "walks": 4}
PAIRS = [("vp", "ve"), ("ve", "subvp")]


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def system(request):
    """The default network under two SDEs, trained until its answers follow what it is shown."""
    node_sde, edge_sde = request.param
    graphs = []
    for k in range(12):
        graph = nx.gnm_random_graph(4 + k % 3, 4, seed=k)
        nx.set_node_attributes(graph, {i: "abc"[(i + k) % 3] for i in graph}, "kind")
        graphs.append(graph)
    model = graphgen.fit(
        graphs, steps=30, system="sde", nodes="kind", progress=False, batch=6,
        learning_rate=2e-2, warmup=1, ema=0.5,
        net=TINY | {"node_sde": node_sde, "edge_sde": edge_sde},
    )
    assert len(set(map(str, edges_of(model.sample(9, seed=2, steps=6))))) > 5
    return model


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_draws_simple_graphs_that_do_not_depend_on_the_batch(system, name):
    whole = system.sample(5, seed=2, steps=4, solver=name)
    assert len(whole) == 5 and whole.graphs.check() is whole.graphs
    parts = [*system.sample(1, seed=2, steps=4, solver=name),
             *system.sample(4, seed=2, first=1, steps=4, solver=name)]
    for one, other in zip(whole, parts, strict=True):
        assert list(one.nodes(data=True)) == list(other.nodes(data=True))
        assert list(one.edges) == list(other.edges)


def test_solvers_answer_differently_and_take_options(system):
    drawn = {
        str(edges_of(system.sample(12, seed=5, steps=5, solver=one)))
        for one in ("euler", "euler_maruyama", "s4", solver("s4", ratio=0.3))
    }
    assert len(drawn) == 4


def test_a_gdss_model_takes_other_solvers_too(fitted):
    own = edges_of(fitted.sample(6, seed=1, steps=6))
    for name in ("s4", "predictor_corrector", "reverse_diffusion", "dpmpp2"):
        other = fitted.sample(6, seed=1, steps=6, solver=name)
        assert other.graphs.check() is other.graphs and edges_of(other) != own


def test_a_flow_takes_no_solver_and_unknown_ones_name_the_choices(fitted):
    flow = graphgen.fit(rings(4), steps=1, progress=False, net=TINY)
    with pytest.raises(UserError, match="is a discrete flow, which has no solver"):
        flow.sample(1, solver="s4")
    with pytest.raises(UserError, match="unknown solver 'magic'; choose one of euler, heun"):
        fitted.sample(1, solver="magic")


def test_the_published_sets_fit_their_recipes(published):
    for name in ("community_small", "ego_small", "enzymes", "grid"):
        graphs = graphgen.from_networkx(published(name).without_labels().graphs("train"))
        config = gdss.configure(f"gdss-{name}", graphs, None, None)
        epochs = -(-len(graphs) // config.batch)
        assert config.steps == 5000 * epochs
        assert config.net.inputs >= gdss.configure("gdss", graphs, None, None).net.inputs
