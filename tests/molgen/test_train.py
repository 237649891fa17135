"""Training: batches from (seed, step), resuming to the bit, and learning something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from driftworks import molgen
from driftworks.core import checkpoint
from driftworks.data.table import Molecule, MoleculeTable
from driftworks.errors import UserError
from driftworks.molgen.batches import Batches, shown_targets
from driftworks.molgen.process import molecular_process
from driftworks.molgen.train import TrainConfig, train

NET = {"width": 32, "pair_width": 16, "heads": 4, "layers": 2, "radial": 8}
TINY = {"net": NET, "batch": 8, "buckets": (6, 10, 14), "device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def table(small) -> MoleculeTable:
    """The organic molecules of the fixture with made-up but real-valued dipole labels."""
    records = []
    for k in range(len(small)):
        n = int(small.atom_counts[k])
        i, j = np.triu_indices(n, 1)
        order = small.bonds[k, :n, :n].numpy()[i, j]
        records.append(
            Molecule(
                id=f"t:{k}", smiles="", numbers=small.numbers[k, :n].numpy().astype(np.uint8),
                positions=small.positions[k, :n].numpy(),
                charges=small.charges[k, :n].numpy().astype(np.int8),
                bonds=np.stack([i, j, order], -1)[order > 0].astype(np.int16),
                properties={"mu": 0.1 * n if k % 3 else float("nan")},
            )
        )
    return MoleculeTable.from_molecules(records, source="test", units={"mu": "debye"})


def config(**changes) -> TrainConfig:
    return TrainConfig.preset("small", **(TINY | {"steps": 6} | changes))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder)[0]


def test_training_resumed_halfway_ends_with_the_same_bits(table, tmp_path):
    # The learning rate falls with the share of the run that is done, so the run that is cut short
    # must have a schedule that does not know its length.
    train(config(constant=1.0), table, tmp_path / "a", progress=False)
    train(config(constant=1.0, steps=3), table, tmp_path / "b", progress=False)
    train(config(constant=1.0), table, tmp_path / "b", resume=True, progress=False)
    one, two = tensors(tmp_path / "a/state-00000006"), tensors(tmp_path / "b/state-00000006")
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_worker_processes_do_not_change_the_batches(table):
    batches = Batches(table, molecular_process(config().net), config())
    loader = torch.utils.data.DataLoader(batches, batch_size=None, sampler=range(4), num_workers=1,
                                         generator=torch.Generator())
    for step, batch in enumerate(loader):
        for name, value in batches[step].items():
            assert torch.equal(value.nan_to_num(-9.0) if value.is_floating_point() else value,
                               batch[name].nan_to_num(-9.0) if value.is_floating_point()
                               else batch[name]), name


def test_missing_labels_are_never_shown(table):
    batches = Batches(table, molecular_process(config().net), config(no_targets=0.0))
    cond = torch.cat([batches[k]["cond"] for k in range(20)])
    names = config().net.properties
    assert cond[:, [k for k, name in enumerate(names) if name != "mu"]].isnan().all()
    assert not cond[:, names.index("mu")].isnan().all()


def test_targets_are_hidden_with_the_stated_probabilities():
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(100_000, 8, generator=generator)
    shown = ~shown_targets(torch.ones(len(u), 6), u, none=0.15, single=0.45).isnan()
    count = shown.sum(1)
    n = len(u)

    def close(share: float, expected: float) -> bool:
        return abs(share - expected) < 4 * (expected * (1 - expected) / n) ** 0.5

    both = 0.40 / 2**6  # "each with one half" may show none, or one, as well
    assert close(float((count == 0).float().mean()), 0.15 + both)
    assert close(float((count == 1).float().mean()), 0.45 + 6 * both)
    assert close(float(shown[:, 2].float().mean()), 0.45 / 6 + 0.40 / 2)


def test_a_gradient_that_is_not_finite_changes_nothing(table):
    from driftworks.molgen.train import new_run

    batches = Batches(table, molecular_process(config().net), config())
    run = new_run(config(), batches, torch.device("cpu"))
    run.update(sum(p.square().sum() for p in run.parameters))
    before = [p.detach().clone() for p in run.parameters]
    run.update(sum(p.sum() for p in run.parameters) * float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))
    assert int(run.skipped) == 1
    run.update(sum(p.square().sum() for p in run.parameters))
    assert not all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))


def test_a_run_without_a_self_conditioned_step_can_be_resumed(table, tmp_path):
    """The weights that read the previous prediction then have no moments to be restored."""
    train(config(steps=2, self_condition=0.0), table, tmp_path, progress=False)
    train(config(steps=3, self_condition=0.0), table, tmp_path, resume=True, progress=False)
    assert checkpoint.load(tmp_path / "state-00000003")[1]["step"] == 3


def test_divergence_is_an_error_also_without_progress(table):
    from driftworks.molgen.train import new_run

    batches = Batches(table, molecular_process(config().net), config())
    run = new_run(config(), batches, torch.device("cpu"))
    run.step = 1000
    run.skipped += 99
    run.check()
    run.skipped += 2
    with pytest.raises(UserError, match="diverges: 101 of 1000"):
        run.check()


def test_the_quality_figure_survives_samples_that_blow_up(table, monkeypatch):
    from driftworks.molgen import sample
    from driftworks.molgen.train import new_run, size_statistics, strict_share

    process = molecular_process(config().net)
    batches = Batches(table, process, config())
    run = new_run(config(), batches, torch.device("cpu"))
    statistics = size_statistics(batches.counts, batches.properties, config().net.properties)

    def broken(net, process, keys, mask, steps):
        tokens = torch.full(mask.shape, 99)  # no class of any vocabulary
        state = {"pos": torch.full((*mask.shape, 3), torch.nan), "atom": tokens, "charge": tokens,
                 "bond": torch.full((*mask.shape, mask.shape[1]), 99)}
        return state, torch.zeros(len(mask), dtype=torch.bool)

    monkeypatch.setattr(sample, "generate", broken)
    assert strict_share(run, config(), process, statistics) == 0.0


def test_a_torn_state_falls_back_to_the_one_before(table, tmp_path):
    train(config(steps=2), table, tmp_path, progress=False)
    train(config(steps=4), table, tmp_path, resume=True, progress=False)
    newest = tmp_path / "state-00000004" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    train(config(steps=3), table, tmp_path, resume=True, progress=False)
    assert checkpoint.load(tmp_path / "state-00000003")[1]["step"] == 3


def test_another_recipe_is_not_resumed_by_accident(table, tmp_path):
    train(config(steps=2), table, tmp_path, progress=False)
    with pytest.raises(UserError, match="another learning_rate"):
        train(config(steps=4, learning_rate=1.0), table, tmp_path, resume=True, progress=False)
    with pytest.raises(UserError, match="already holds a training run"):
        train(config(steps=4), table, tmp_path, progress=False)


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="unknown preset 'huge'.*small, base"):
        TrainConfig.preset("huge")
    with pytest.raises(ValidationError, match="either steps or minutes"):
        TrainConfig.preset("small")
    with pytest.raises(ValidationError, match="learning_rat"):
        TrainConfig.preset("small", steps=3, learning_rat=1.0)


def test_data_without_a_usable_molecule_is_refused(table, tmp_path):
    with pytest.raises(UserError, match="none of the"):
        train(config(buckets=(2,)), table, tmp_path, progress=False)


@pytest.mark.slow
def test_five_cpu_minutes_teach_small_molecules_to_be_valid(qm9, tmp_path):
    """Buys: proof that the whole recipe learns; strict validity from 0 to at least 30 %."""
    table = qm9.where(split="train", clean=True)
    table = table.select(np.flatnonzero(table.atom_counts <= 14))
    out = train(
        TrainConfig.preset(
            "small", minutes=5, device="cpu", buckets=(12, 13, 14), batch=32,
            net={"width": 96, "pair_width": 48, "heads": 8, "layers": 5},
        ),
        table, tmp_path, progress=False,
    )
    library = molgen.load(out, "cpu").sample(100, seed=0, steps=50)
    report = molgen.evaluate(library)
    assert report.strict_validity.value >= 0.30, report
