"""The regressor: symmetries of its readouts, and honest bookkeeping."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from driftworks.core import checkpoint
from driftworks.errors import UserError
from driftworks.molgen.molecule import Molecules
from driftworks.molgen.regressor import (
    Regressor,
    RegressorConfig,
    _build,
    load_regressor,
    train_regressor,
)

TINY = {"width": 32, "pair_width": 16, "heads": 4, "layers": 2, "radial": 8, "batch": 8}


@pytest.fixture(scope="module")
def regressor() -> Regressor:
    net = _build(RegressorConfig(**TINY))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return Regressor("test", net.double(), {}, torch.device("cpu"))


def moved(molecules: Molecules, positions: torch.Tensor) -> Molecules:
    return Molecules(molecules.numbers, positions * molecules.mask.unsqueeze(-1),
                     molecules.charges, molecules.bonds, molecules.mask)


def test_rigid_motions_and_mirrors_of_the_frame_change_nothing(regressor, small):
    rows = small[[0, 5, 7]]
    doubles = moved(rows, rows.positions.double())
    generator = torch.Generator().manual_seed(3)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    q = q * torch.linalg.det(q)
    other = moved(doubles, doubles.positions @ q + 5.0)
    one, two = regressor.predict(doubles), regressor.predict(other)
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=1e-9)


def test_padding_and_neighbours_change_nothing(regressor, small):
    rows = moved(small, small.positions.double())
    whole = regressor.predict(rows)
    alone = regressor.predict(rows[[4]])
    for name in whole:
        np.testing.assert_allclose(whole[name][4], alone[name][0], atol=1e-9)


def test_foreign_elements_are_nan_and_the_rest_is_not(regressor, build):
    rows = build(["CCO", "CS(C)=O"])
    out = regressor.predict(moved(rows, rows.positions.double()))
    assert np.isfinite(out["mu"][0]) and np.isnan(out["mu"][1])


def test_a_few_steps_train_and_the_card_tells_the_test_error(qm9, tmp_path):
    table = qm9.where(split="train", clean=True).select(range(2000))
    test = qm9.where(split="test", clean=True).select(range(100))
    out = train_regressor(RegressorConfig(**TINY, minutes=0.05), table, test, tmp_path,
                          progress=False)
    loaded = load_regressor("cpu", out)
    predicted = loaded.predict(Molecules.from_table(test))
    for name in loaded.properties:
        own = np.abs(predicted[name] - test.properties[name]).mean()
        assert own == pytest.approx(loaded.errors[name], rel=0.05)


def test_a_trained_regressor_is_read_anew_and_foreign_molecules_are_left_out(build, tmp_path):
    from driftworks.data.table import Molecule, MoleculeTable

    def table(smiles, label=1.0):
        rows = build(smiles)
        return MoleculeTable.from_molecules([
            Molecule(id=f"t:{k}", smiles="", numbers=rows.numbers[k, :n].numpy().astype(np.uint8),
                     positions=rows.positions[k, :n].numpy(), charges=np.zeros(n, np.int8),
                     bonds=np.zeros((0, 3), np.int16), properties={"mu": label + k})
            for k, n in enumerate(rows.atom_counts.tolist())
        ], source="test", units={"mu": "debye"})

    config = RegressorConfig(**TINY, properties=("mu",), minutes=0.005, precision="float32")
    small = table(["CCO", "C=O", "CS(C)=O", "ClC=CBr"])  # the last size has foreign elements only
    train_regressor(config, small, small, tmp_path, progress=False)
    first = load_regressor("cpu", tmp_path)
    assert load_regressor("cpu", tmp_path) is first
    train_regressor(config.model_copy(update={"seed": 1}), small, small, tmp_path, progress=False)
    assert load_regressor("cpu", tmp_path).hash != first.hash
    with pytest.raises(UserError, match="none of the 1 molecules has elements"):
        train_regressor(config, table(["ClC=CBr"]), small, tmp_path, progress=False)
    with pytest.raises(UserError, match="no test molecule has a label of 'mu'"):
        train_regressor(config, small, table(["CCO"], np.nan), tmp_path, progress=False)


def test_a_checkpoint_that_is_no_regressor_is_refused(tmp_path):
    weights = {"x": torch.zeros(1)}
    for meta, words in (({"kind": "molgen"}, "'molgen' checkpoint"),
                        ({"kind": "molgen-regressor"}, "lacks 'config'"),
                        ({"kind": "molgen-regressor", "config": {}}, "does not fit")):
        checkpoint.save(tmp_path / words[-5:], weights, meta)
        with pytest.raises(UserError, match=words):
            load_regressor("cpu", tmp_path / words[-5:])


def test_no_regressor_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="no regressor"):
        load_regressor("cpu", tmp_path)
