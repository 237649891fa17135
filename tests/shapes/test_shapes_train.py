"""Training, checkpoints with three priors, and loading them by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from driftworks.core import checkpoint
from driftworks.errors import UserError
from driftworks.shapes import train as training
from driftworks.shapes import zoo
from driftworks.shapes.dit import NetConfig, Network
from driftworks.shapes.maps import Maps
from driftworks.shapes.prior import Gaussian, SecondMoment, denoising_errors

K = 35
NET = {"k": K, "width": 16, "heads": 2, "layers": 1}


def toy_maps(count=80, k=K, seed=0):
    """Bands of random width around the diagonal, with eigenvalues by Weyl's law."""
    generator = np.random.default_rng(seed)
    index = np.arange(k)
    apart = index[:, None] - index
    width = generator.uniform(0.5, 3.0, (count, 1, 1))
    c = np.exp(-0.5 * (apart / width) ** 2) * (1 + 0.2 * generator.normal(size=(count, k, k)))
    shapes = 10
    return Maps(
        np.abs(c).astype(np.float16),
        generator.integers(0, shapes - 2, (count, 2)),
        np.tile(4 * np.pi * index, (shapes, 1)).astype(np.float32),
        np.array(["toy"] * shapes), np.array([f"toy-{i}" for i in range(shapes)]),
        np.arange(shapes) >= shapes - 2, "bands",
    )  # fmt: skip


def recipe(**changes):
    return training.TrainConfig.preset("small", **{"steps": 4, "batch": 4, "net": NET} | changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "maps"
    return training.train(recipe(rank=10), toy_maps(), folder, progress=False)


def test_a_checkpoint_holds_three_priors_behind_one_interface(model):
    x = torch.from_numpy(toy_maps(5).c).float()
    for kind, cls in (
        ("network", Network), ("gaussian", Gaussian), ("second-moment", SecondMoment),
    ):  # fmt: skip
        prior = zoo.load(model, kind)
        assert isinstance(prior, cls) and prior.name == kind and prior.k == K
        for k in (30, K):
            part = x[:, :k, :k]
            assert prior.denoise(part, torch.full((5,), 0.2)).shape == part.shape
            assert prior.energy(part).shape == (5,)


def test_closed_forms_of_a_checkpoint_are_those_of_the_training_maps(model):
    maps = toy_maps().training()
    x, sigma = torch.from_numpy(maps.c[:3]).float(), torch.full((3,), 0.1)
    for kind, fitted in (
        ("gaussian", Gaussian.fit(maps.c, rank=10)),
        ("second-moment", SecondMoment.fit(maps.c)),
    ):  # fmt: skip
        found = zoo.load(model, kind).denoise(x, sigma)
        assert torch.allclose(found, fitted.denoise(x, sigma), atol=2e-3)


def test_sigma_data_is_measured(model):
    _, meta = checkpoint.load(model)
    config = NetConfig.model_validate(meta["config"]["net"])
    c = toy_maps().training().first(30).c.astype(np.float64)
    wanted = float(np.sqrt(np.square(c - c.mean(0)).mean()))
    assert config.sigma_data == pytest.approx(wanted, rel=1e-2)
    assert meta["training"]["data"]["maps"] == len(toy_maps().training())


def test_training_lowers_the_error(tmp_path):
    maps = toy_maps(200)
    config = recipe(steps=60, batch=8, warmup=10, ema=0.9, learning_rate=5e-3)
    trained = zoo.load(training.train(config, maps, tmp_path / "a", progress=False))
    start = zoo.load(
        training.train(recipe(steps=1, learning_rate=1e-9), maps, tmp_path / "b", progress=False)
    )
    x, first, second = training.tensors(toy_maps(60, seed=7).first(30))
    # at much noise a band's width is what is left to find: entries are not independent
    before, after = (denoising_errors(p, x, (0.3,), first, second)[0] for p in (start, trained))
    assert after < 0.9 * before


def test_an_interrupted_run_ends_as_it_would_have(tmp_path):
    maps = toy_maps()
    whole = training.train(recipe(steps=6), maps, tmp_path / "whole", progress=False)
    training.train(recipe(steps=3, constant=1.0), maps, tmp_path / "parts", progress=False)
    with pytest.raises(UserError, match="constant"):
        training.train(recipe(steps=6), maps, tmp_path / "parts", resume=True, progress=False)
    long = recipe(steps=6, constant=1.0)
    resumed = training.train(long, maps, tmp_path / "parts", resume=True, progress=False)
    straight = training.train(long, maps, tmp_path / "straight", progress=False)
    a, b = (checkpoint.load(folder)[0] for folder in (resumed, straight))
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert any(not torch.equal(t, b[name]) for name, t in checkpoint.load(whole)[0].items())


def test_batches_are_functions_of_the_step_and_cost_alike():
    maps, config = toy_maps(), recipe(batch=8)
    batches = training.Batches(maps, config, torch.device("cpu"))
    sizes = set()
    for step in range(40):
        clean, sigma, first, second, keys = batches(step)
        k = clean.shape[1]
        sizes.add(k)
        assert clean.shape[0] == max(2, round(8 * (30 / k) ** 2)) == len(keys)
        assert first.shape == second.shape == (len(clean), k)
        assert bool((first.isnan().any(1) == second.isnan().any(1)).all())
        assert 0.0049999 <= float(sigma.min()) <= float(sigma.max()) <= 3.0
    assert sizes == {30, 35}
    again = training.Batches(maps, config, torch.device("cpu"))(39)
    assert torch.equal(again[0], clean) and torch.equal(again[1], sigma)


def test_noise_levels_follow_the_law_that_is_stated():
    batches = training.Batches(toy_maps(), recipe(batch=64), torch.device("cpu"))
    logs = torch.cat([batches(step)[1].log() for step in range(40)])
    assert float(logs.mean()) == pytest.approx(-1.6, abs=0.1)
    assert float(logs.std()) == pytest.approx(1.2, abs=0.1)


def test_a_transposed_matrix_takes_its_eigenvalues_along():
    maps = toy_maps(1)
    values = maps.values.copy()
    values[maps.pairs[0, 0]] *= 1.5
    asymmetric = np.triu(maps.c)
    pairs = np.array([[0, 1]])
    values = np.stack([np.arange(K) * 10.0, np.arange(K) * 20.0] + [values[0]] * 8)
    one = Maps(asymmetric, pairs, values.astype(np.float32), maps.groups, maps.subjects, maps.held)
    config = recipe(batch=32, unconditional=0.0)
    clean, _, first, second, _ = training.Batches(one, config, torch.device("cpu"))(0)
    k = clean.shape[1]
    turned = clean[:, k - 1, 0] + clean[:, 5, 3] > clean[:, 3, 5]
    assert bool(turned.any()) and not bool(turned.all())
    assert torch.equal(first[:, 1] == 20.0, turned)
    assert torch.equal(second[:, 1] == 10.0, turned)


def test_a_name_that_is_not_there_is_answered_with_the_choices(model, tmp_path):
    with pytest.raises(UserError, match="network, gaussian, second-moment"):
        zoo.load(model, "laplacian")
    with pytest.raises(UserError, match="neither a shipped one"):
        zoo.load("unicorns")
    tensors, meta = checkpoint.load(model)
    checkpoint.save(tmp_path / "other", tensors, {**meta, "kind": "molgen"})
    with pytest.raises(UserError, match="not a shapes one"):
        zoo.load(tmp_path / "other")


def test_damaged_checkpoints_are_refused(model, tmp_path):
    tensors, meta = checkpoint.load(model)
    lacking = {k: v for k, v in tensors.items() if k != "moments.mean"}
    checkpoint.save(tmp_path / "lacking", lacking, meta)
    with pytest.raises(UserError, match="lacks 'moments.mean'"):
        zoo.load(tmp_path / "lacking")
    spoilt = dict(tensors)
    name = next(k for k in tensors if k.startswith("network."))
    spoilt[name] = torch.full_like(tensors[name], torch.nan)
    checkpoint.save(tmp_path / "spoilt", spoilt, meta)
    with pytest.raises(UserError, match="not finite"):
        zoo.load(tmp_path / "spoilt")
    config = {**meta["config"], "net": {**meta["config"]["net"], "width": 32}}
    checkpoint.save(tmp_path / "wider", tensors, {**meta, "config": config})
    with pytest.raises(UserError, match="does not fit"):
        zoo.load(tmp_path / "wider")


def test_settings_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(UserError, match="small, base"):
        training.TrainConfig.preset("huge", steps=1)
    with pytest.raises(UserError, match="multiples"):
        recipe(net={"k": 33})
    with pytest.raises(UserError, match="35 functions"):
        training.train(recipe(net={**NET, "k": 40}), toy_maps(), tmp_path / "a", progress=False)
    with pytest.raises(UserError, match="two or more"):
        training.train(recipe(), toy_maps(1), tmp_path / "b", progress=False)


def test_the_command_trains_on_a_file_of_maps(tmp_path, capsys):
    from driftworks.cli import main

    toy_maps().write(tmp_path / "toy.npz")
    arguments = ["train", "shapes", "--data", str(tmp_path / "toy.npz"), "--k", "35", "--steps",
                 "1", "--batch-size", "2", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(arguments) == 0
    assert "80 maps to train on, 0 held out: bands" in capsys.readouterr().out
    assert zoo.load(tmp_path / "run").k == 35
    assert main([*arguments[:-2], str(tmp_path / "other"), "--without", "dog"]) != 0
    assert "choose from toy" in capsys.readouterr().err
