from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from driftworks.core.keys import Keys
from driftworks.core.run import Run
from driftworks.data import backbones
from driftworks.errors import UserError
from driftworks.protein import train as training
from driftworks.protein.network import Answer, NetConfig, build
from driftworks.protein.process import NULL, SCALE, chain_process
from driftworks.protein.train import Batches, TrainConfig, chain_loss, motif_stretches, train
from driftworks.protein.zoo import load

NET = {"width": 32, "pair_width": 16, "heads": 4, "layers": 2, "rounds": 2, "radial": 8}


def helix(length: int, seed: int) -> np.ndarray:
    """A wobbly alpha helix: 1.5 angstrom and 100 degrees a residue at radius 2.3 (n, 3)."""
    i = np.arange(length)
    turn = np.deg2rad(100) * i
    x = np.stack((2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * i), -1)
    return x + 0.1 * np.random.default_rng(seed).normal(size=x.shape)


def coil(length: int) -> np.ndarray:
    """The same helix folded into a compact bundle, every ten residues turning back."""
    x = helix(length, 0)
    leg, z = np.arange(length) // 10, np.arange(length) % 10
    x[:, 2] = 1.5 * np.where(leg % 2 == 0, z, 10 - z)
    x[:, 0] += 9.0 * (leg % 3)
    x[:, 1] += 9.0 * (leg // 3)
    return x


def table_of(chains, cluster, tmp_path: Path, classes=None):
    """Chains as the table a user would read."""
    offsets = np.concatenate([[0], np.cumsum([len(c) for c in chains])])
    path = tmp_path / "chains.npz"
    np.savez(
        path, ids=np.array([f"c{k}" for k in range(len(chains))]), offsets=offsets,
        bb=np.concatenate(chains).astype(np.float32), cluster=np.array(cluster),
        sse_class=np.array(classes if classes is not None else [1] * len(chains)),
    )
    return backbones.read(path)


@pytest.fixture
def table(tmp_path):
    lengths = [12, 13, 13, 14, 16, 20, 20, 21, 24, 60, 60]
    chains = [helix(n, k) if n < 60 else coil(n) for k, n in enumerate(lengths)]
    return table_of(chains, [0, 0, 0, 1, 2, 3, 3, 4, 5, 6, 6], tmp_path)


CONFIG = TrainConfig(
    net=NetConfig(**NET), lengths=(12, 24), batch=6, steps=4, seed=3, crops=0.5, warmup=2,
)
CPU = torch.device("cpu")


def test_batches_are_unpadded_centred_chains_of_one_length_from_keys(table):
    batches = Batches(table, CONFIG, CPU)
    seen = set()
    for step in range(30):
        x, label, keys = batches(step)
        assert x.shape[0] == 6 and 12 <= x.shape[1] <= 24
        assert x.sum(1).abs().max() < 1e-4
        bond = (x[:, 1:] - x[:, :-1]).norm(dim=-1) * SCALE
        assert (bond - 3.8).abs().median() < 0.6  # pieces of chains, never a jump between two
        assert set(label.tolist()) <= {0, NULL}
        again = Batches(table, CONFIG, CPU)(step)
        assert torch.equal(again[0], x) and torch.equal(again[1], label)
        assert keys.ids.tolist() == list(range(step * 6, step * 6 + 6))
        seen.add(x.shape[1])
    assert len(seen) > 4
    assert not torch.equal(batches(0)[0], batches(1)[0][:, : batches(0)[0].shape[1]])


def test_every_cluster_is_drawn_alike_and_chains_lose_little(tmp_path):
    """One cluster of 30 members and five of one: each has a sixth of the draws."""
    chains = [helix(20, k) for k in range(35)]
    table = table_of(chains, [0] * 30 + [1, 2, 3, 4, 5], tmp_path)
    batches = Batches(table, CONFIG.model_copy(update={"crops": 0.0, "batch": 50}), CPU)
    rows = np.concatenate([batches.select(step)[1] for step in range(40)])
    assert np.mean(rows < 30) == pytest.approx(1 / 6, abs=0.03)
    mixed = table_of([helix(n, n) for n in range(12, 25)], range(13), tmp_path)
    batches = Batches(mixed, CONFIG.model_copy(update={"crops": 0.0}), CPU)
    for step in range(30):
        pieces, rows = batches.select(step)
        lost = batches.lengths[rows] - len(pieces[0])
        assert (lost >= 0).all() and (lost <= 3).all()


def test_pieces_of_longer_chains_are_compact(table):
    batches = Batches(table, CONFIG.model_copy(update={"crops": 1.0, "batch": 8}), CPU)
    found = 0
    for step in range(30):
        pieces, rows = batches.select(step)
        if (rows >= batches.fitting).all():
            found += 1
            radius = [np.sqrt(p.var(0).sum()) for p in pieces]
            assert max(radius) <= 1.1 * 0.27 * len(pieces[0]) ** 0.35 + 1e-6
    assert found > 3


def test_a_table_without_chains_that_fit_is_refused(table):
    with pytest.raises(UserError, match="100-120"):
        Batches(table, CONFIG.model_copy(update={"lengths": (100, 120)}), CPU)


def test_the_loss_is_the_velocity_error_and_that_of_short_distances():
    g = torch.Generator().manual_seed(0)
    x_1, x_0 = (torch.randn(5, 9, 3, generator=g) for _ in range(2))
    x_1, x_0 = x_1 - x_1.mean(1, keepdim=True), x_0 - x_0.mean(1, keepdim=True)
    t = torch.tensor([0.1, 0.29, 0.5, 0.8, 0.95])
    x_t = t.view(-1, 1, 1) * x_1 + (1 - t).view(-1, 1, 1) * x_0
    velocity = x_1 - x_0 + 0.1 * torch.randn(5, 9, 3, generator=g)
    denoised = x_t + (1 - t).view(-1, 1, 1) * velocity
    config = CONFIG.model_copy(update={"round_weight": 0.5, "local_weight": 3.0})
    total, parts = chain_loss(Answer((x_t, denoised), None), x_1, t, config)
    # 1 / ((1 - t)^2 + 1e-5) is 1 / (1 - t)^2 but for the last instants
    error = ((velocity - (x_1 - x_0)).square()).mean((1, 2)).mean()
    assert parts["velocity"] == pytest.approx(float(error), rel=2e-3)
    first = (x_1 - x_0).square().mean((1, 2)).mean()
    local = 0.0
    for b in range(5):
        if t[b] > 0.3:
            for k in (1, 2, 3, 4):
                miss = [
                    float((denoised[b, i + k] - denoised[b, i]).norm()
                          - (x_1[b, i + k] - x_1[b, i]).norm()) ** 2
                    for i in range(9 - k)
                ]
                local += np.mean(miss) / (1.05 - float(t[b])) / 5
    assert parts["local"] == pytest.approx(local, rel=1e-4)
    assert float(total) == pytest.approx(float(error + 0.5 * first) + 3.0 * local, rel=2e-3)


def test_the_distogram_loss_is_least_for_the_true_distances():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, 3, generator=g)
    t = torch.tensor([0.5, 0.9, 0.1])
    bins = 16
    true = ((x.unsqueeze(1) - x.unsqueeze(2)).norm(dim=-1) * bins / 2).long().clamp(max=bins - 1)
    right = torch.nn.functional.one_hot(true, bins).float() * 50
    for logits, want in ((right, 0.0), (torch.zeros_like(right), math.log(bins) * 2 / 3)):
        _, parts = chain_loss(Answer((x,), logits), x, t, CONFIG)
        assert parts["distogram"] == pytest.approx(want, abs=1e-4)


def test_motifs_are_one_or_two_stretches_of_a_tenth_to_a_half():
    known = motif_stretches(Keys.for_samples(0, range(400)), 60)
    share = known.float().mean(1)
    assert 0.04 < float(share.min()) and float(share.max()) < 0.53 and float(share.std()) > 0.08
    pieces = (known[:, 1:] & ~known[:, :-1]).sum(1) + known[:, 0]
    assert set(pieces.tolist()) == {1, 2}


def test_training_lowers_the_loss_and_a_stopped_run_continues_to_the_bit(table, tmp_path):
    config = CONFIG.model_copy(update={"steps": 30, "learning_rate": 3e-3})
    process, batches = chain_process(), Batches(table, config, CPU)

    def losses(net):
        with torch.no_grad():
            return np.mean([
                float(training.step_loss(net, process, batches, step)[1]["velocity"])
                for step in range(1000, 1012)
            ])

    whole = train(config, table, tmp_path / "whole", progress=False)
    before = losses(build(config.net, config.seed))
    assert losses(load(whole, "cpu").net) < 0.93 * before

    half = config.model_copy(update={"steps": 15})
    # the schedule follows the share of the run, so the first half must know the whole length
    run = Run(config, build(config.net, config.seed), lambda: build(config.net), CPU)
    for step in range(half.steps):
        run.update(training.step_loss(run.net, process, batches, step)[0])
    (tmp_path / "parts").mkdir()
    run.save(tmp_path / "parts")
    train(config, table, tmp_path / "parts", resume=True, progress=False)
    one, other = (load(tmp_path / name, "cpu") for name in ("whole", "parts"))
    assert one.hash == other.hash


def test_another_run_is_not_continued(table, tmp_path):
    config = CONFIG.model_copy(update={"steps": 1})
    train(config, table, tmp_path / "run", progress=False)
    with pytest.raises(UserError, match="already holds"):
        train(config, table, tmp_path / "run", progress=False)
    with pytest.raises(UserError, match="crops"):
        train(config.model_copy(update={"crops": 0.1}), table, tmp_path / "run", resume=True)
    model = load(tmp_path / "run", "cpu")
    assert model.lengths == (12, 24) and model.meta["training"]["data"]["chains"] == 9


def test_presets_are_valid_and_unknown_ones_name_the_choices():
    for name in training.PRESETS:
        TrainConfig.preset(name, steps=1)
    small = sum(p.numel() for p in build(TrainConfig.preset("small", steps=1).net).parameters())
    base = sum(p.numel() for p in build(TrainConfig.preset("base", steps=1).net).parameters())
    assert small < 2.5e6 and 2 * base <= 16 * 2**20  # bytes of half-precision weights
    with pytest.raises(UserError, match="small, base"):
        TrainConfig.preset("huge", steps=1)
    with pytest.raises(ValidationError, match="least, most"):
        TrainConfig(steps=1, lengths=(50, 40))
