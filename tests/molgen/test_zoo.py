"""Loading models and drawing from them: reproducible, counted, and clear when it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from driftworks import molgen
from driftworks.core import checkpoint
from driftworks.errors import UserError
from driftworks.molgen.network import NetConfig, build
from driftworks.molgen.train import TrainConfig, size_statistics

NET = NetConfig(width=32, pair_width=16, heads=4, layers=2, radial=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint with random weights: what it draws is nonsense, and reproducible nonsense."""
    path = tmp_path_factory.mktemp("model")
    net = build(NET, seed=4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 10, 4000)
    values = counts[:, None] + rng.standard_normal((4000, 6))
    meta = {
        "kind": "molgen",
        "config": TrainConfig.preset("small", steps=1, net=NET).model_dump(mode="json"),
        "sizes": size_statistics(counts, values, NET.properties),
        "training": {},
    }
    checkpoint.save(path, net.state_dict(), meta)
    return path


@pytest.fixture(scope="module")
def model(folder) -> molgen.Model:
    return molgen.load(folder, "cpu")


def same(one, two) -> bool:
    a, b = one.molecules, two.molecules
    size = max(a.max_atoms, b.max_atoms)
    a, b = a.padded(size), b.padded(size)
    fields = ("numbers", "positions", "charges", "bonds", "mask")
    return all(torch.equal(getattr(a, k), getattr(b, k)) for k in fields)


def test_the_same_molecules_whatever_the_batch_size_and_cores(model):
    whole = model.sample(23, seed=3, steps=6)
    for batch_size in (1, 5, 64):
        assert same(whole, model.sample(23, seed=3, steps=6, batch_size=batch_size))
    cores = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert same(whole, model.sample(23, seed=3, steps=6))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(cores)


def test_a_library_can_be_drawn_in_pieces(model):
    whole = model.sample(12, seed=3, steps=4)
    piece = model.sample(5, seed=3, steps=4, first=7)
    assert piece.indices.tolist() == [7, 8, 9, 10, 11]
    assert same(whole[range(7, 12)], piece)


def test_another_seed_draws_others(model):
    assert not same(model.sample(4, seed=1, steps=3), model.sample(4, seed=2, steps=3))


def test_guidance_one_is_the_conditional_model_and_no_target_the_free_one(model):
    asked = {"mu": 7.0}
    one = model.sample(6, asked, seed=1, steps=3, atoms=7)
    assert same(one, model.sample(6, asked, seed=1, steps=3, atoms=7, guidance=1.0))
    assert not same(one, model.sample(6, asked, seed=1, steps=3, atoms=7, guidance=3.0))
    free = model.sample(6, None, seed=1, steps=3, atoms=7)
    assert same(free, model.sample(6, asked, seed=1, steps=3, atoms=7, guidance=0.0))


def test_targets_are_recorded_and_ranges_are_drawn_per_sample(model):
    library = model.sample(40, {"mu": (6.0, 8.0), "gap": 7.0}, seed=1, steps=1)
    assert library.targets["gap"].tolist() == [7.0] * 40
    mu = library.targets["mu"]
    assert mu.min() >= 6.0 and mu.max() <= 8.0 and len(set(mu.tolist())) == 40
    again = model.sample(10, {"mu": (6.0, 8.0), "gap": 7.0}, seed=1, steps=1, first=30)
    assert again.targets["mu"].tolist() == mu[30:].tolist()


def test_atom_counts_follow_the_target(model):
    """In the made-up training set every property equals the atom count plus unit noise."""
    low = model.sample(200, {k: 5.0 for k in model.properties}, seed=0, steps=1)
    high = model.sample(200, {k: 9.0 for k in model.properties}, seed=0, steps=1)
    assert low.molecules.atom_counts.float().mean() < 5.5
    assert high.molecules.atom_counts.float().mean() > 8.5
    assert set(model.sample(30, atoms=(6, 7), steps=1).molecules.atom_counts.tolist()) == {6, 7}


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"n": 0}, "n, steps and batch_size"),
        ({"n": 3, "atoms": 99}, r"5 to 9 atoms"),
        ({"n": 3, "atoms": 1}, r"5 to 9 atoms"),
        ({"n": 3, "atoms": (2, 4)}, r"5 to 9 atoms"),
        ({"n": 3, "atoms": 4}, r"5 to 9 atoms"),
        ({"n": 3, "atoms": [7, 7, 7]}, "not a number of atoms"),
        ({"n": 3, "atoms": "7"}, "not a number of atoms"),
        ({"n": 2.5}, "n must be a whole number"),
        ({"n": 3, "seed": 1.5}, "seed must be a whole number"),
        ({"n": 3, "guidance": "strong"}, "guidance"),
        ({"n": 3, "guidance": -1.0}, "guidance"),
        ({"n": 3, "targets": {"weight": 3}}, "unknown property 'weight'"),
    ],
)
def test_impossible_requests_are_refused(model, request_, words):
    with pytest.raises(UserError, match=words):
        model.sample(**request_)


def test_a_size_between_the_trained_ones_that_none_had_is_refused(folder):
    model = molgen.load(folder, "cpu")
    kept = [0, 1, 3, 4]
    for name in ("sizes", "share", "mean", "covariance"):
        model.statistics[name] = [model.statistics[name][k] for k in kept]
    with pytest.raises(UserError, match="atoms=7: no molecule of such a size was seen"):
        model.sample(2, atoms=7, steps=1)
    assert model.sample(2, atoms=8, steps=1).molecules.atom_counts.tolist() == [8, 8]


def test_numpy_integers_are_whole_numbers(model):
    plain = model.sample(2, seed=1, steps=1, atoms=7)
    numpy = model.sample(np.int64(2), seed=np.int64(1), steps=np.int64(1), atoms=np.int64(7))
    assert same(plain, numpy)
    assert json.dumps(numpy.provenance) == json.dumps(plain.provenance)


def test_a_sample_that_blows_up_is_counted_and_harms_nobody(folder, tmp_path):
    model = molgen.load(folder, "cpu")
    calm = model.sample(12, seed=0, steps=4)
    inner = model.net

    class Faulty(torch.nn.Module):
        def forward(self, x, t, mask, cond=None, previous=None):
            out = inner(x, t, mask, cond, previous)
            first = (x["pos"][:, 0, 0] > 0.5) & (t == 0)  # some molecules, by their own noise
            return out | {"pos": torch.where(first[:, None, None], torch.nan, out["pos"])}

    model.net = Faulty()
    with pytest.warns(RuntimeWarning):
        library = model.sample(12, seed=0, steps=4)
    lost = library.failures["not_finite"]
    assert 0 < lost < 12 and len(library) + lost == library.requested == 12
    assert same(calm[library.indices.tolist()], library)


def test_an_unknown_model_is_named_with_the_choices():
    with pytest.raises(UserError, match="no model 'qm10'"):
        molgen.load("qm10")


def test_weights_that_are_not_finite_are_refused(folder, tmp_path):
    tensors, meta = checkpoint.load(folder)
    tensors["atom.weight"][0, 0] = float("nan")
    checkpoint.save(tmp_path, tensors, {k: v for k, v in meta.items() if k != "sha256"})
    with pytest.raises(UserError, match="not finite: atom.weight"):
        molgen.load(tmp_path)


def test_a_checkpoint_of_another_shape_or_kind_is_refused(folder, tmp_path):
    tensors, meta = checkpoint.load(folder)
    meta = {k: v for k, v in meta.items() if k != "sha256"}
    checkpoint.save(tmp_path / "shape", {"atom.weight": tensors["atom.weight"]}, meta)
    with pytest.raises(UserError, match="does not fit"):
        molgen.load(tmp_path / "shape")
    checkpoint.save(tmp_path / "kind", tensors, meta | {"kind": "protein"})
    with pytest.raises(UserError, match="'protein' checkpoint"):
        molgen.load(tmp_path / "kind")


@pytest.mark.parametrize("missing", ["config", "sizes"])
def test_a_checkpoint_that_lacks_a_key_is_refused_by_its_name(folder, tmp_path, missing):
    tensors, meta = checkpoint.load(folder)
    checkpoint.save(tmp_path, tensors, {k: v for k, v in meta.items() if k != missing})
    with pytest.raises(UserError, match=f"lacks '{missing}'"):
        molgen.load(tmp_path)


def test_a_torn_shipped_checkpoint_harms_only_itself(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("driftworks.core.shelf.WEIGHTS", tmp_path)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/model.json").write_text('{"kind": "mol')
    assert molgen.available() == {}
    assert molgen.load(folder, "cpu").name == folder.name
    with pytest.raises(UserError, match="not JSON"):
        molgen.load("torn")


@pytest.mark.parametrize("device", ["tpu7", "meta", "mps", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(folder, device):
    with pytest.raises(UserError, match=f"device '{device}'"):
        molgen.load(folder, device)


def test_provenance_names_the_weights(model, folder):
    library = model.sample(2, {"mu": 6.0}, seed=5, steps=2)
    said = json.loads((folder / "model.json").read_text())["sha256"]
    assert library.provenance["weights"] == said == model.hash
    assert library.provenance["targets"]["mu"] == [6.0, 6.0, "debye"]
    assert library.seed == 5


@pytest.mark.parametrize("name", sorted(molgen.available()))
def test_shipped_models_load_and_draw_valid_molecules(name):
    """A floor far below the card's figure: broken weights give nothing valid at all."""
    library = molgen.load(name, "cpu").sample(12, seed=0, steps=30)
    assert molgen.evaluate(library, bootstrap=0).strict_validity.value >= 0.3


def test_qm9_falls_back_to_the_small_model():
    if not molgen.available():
        pytest.skip("no weights in this checkout")
    assert molgen.load("qm9", "cpu").name in ("qm9", "qm9-small")
