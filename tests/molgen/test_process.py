"""Alignment and the way between molecules and states."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from driftworks.core.keys import Keys
from driftworks.errors import UserError
from driftworks.molgen.molecule import Molecules
from driftworks.molgen.network import NetConfig
from driftworks.molgen.process import (
    SCALE,
    align,
    kabsch,
    molecular_process,
    to_molecules,
    to_state,
)

ETHANOL_LIKE = ("CCO", "C#N", "NCC(=O)O")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(1, keepdim=True)


def test_kabsch_recovers_a_known_rotation(generator):
    x = centred(torch.randn(20, 8, 3, generator=generator, dtype=torch.float64))
    q, _ = torch.linalg.qr(torch.randn(20, 3, 3, generator=generator, dtype=torch.float64))
    q = q * torch.linalg.det(q)[:, None, None]
    assert torch.allclose(kabsch(x, x @ q), q, atol=1e-10)


def test_kabsch_agrees_with_scipy_and_never_reflects(generator):
    from scipy.spatial.transform import Rotation

    x, y = (centred(torch.randn(50, 6, 3, generator=generator, dtype=torch.float64)) for _ in "xy")
    y[25:] = x[25:] * torch.tensor([1.0, 1.0, -1.0])  # best fitted by a reflection
    r = kabsch(x, y)
    assert torch.allclose(torch.linalg.det(r), torch.ones(50, dtype=torch.float64))
    for k in range(50):
        oracle, _ = Rotation.align_vectors(y[k].numpy(), x[k].numpy())
        ours = (x[k] @ r[k] - y[k]).square().sum()
        theirs = (torch.from_numpy(oracle.apply(x[k].numpy())) - y[k]).square().sum()
        assert ours <= theirs + 1e-9


def test_alignment_is_the_best_permutation_then_the_best_rotation(generator):
    x, y = (centred(torch.randn(6, 5, 3, generator=generator, dtype=torch.float64)) for _ in "xy")
    out = align(x, y, torch.full((6,), 5))
    for k in range(6):
        best = min(
            itertools.permutations(range(5)),
            key=lambda p: float((x[k, list(p)] - y[k]).square().sum()),
        )
        permuted = x[k, list(best)].unsqueeze(0)
        expected = permuted @ kabsch(permuted, y[k : k + 1])
        assert torch.allclose(out[k : k + 1], expected, atol=1e-12)


def test_alignment_keeps_padding_zero_and_the_cloud_itself(generator):
    counts = torch.tensor([3, 5])
    mask = (torch.arange(5) < counts.unsqueeze(1)).unsqueeze(-1)
    x = torch.randn(2, 5, 3, generator=generator) * mask
    x = (x - x.sum(1, keepdim=True) / counts.view(-1, 1, 1)) * mask
    y = torch.randn(2, 5, 3, generator=generator) * mask
    out = align(x, y, counts)
    assert out[0, 3:].abs().max() == 0
    before = torch.cdist(x[:1, :3], x[:1, :3]).flatten().sort().values
    after = torch.cdist(out[:1, :3], out[:1, :3]).flatten().sort().values
    assert torch.allclose(before, after, atol=1e-5)


def test_molecules_come_back_from_a_state(build):
    molecules = build(ETHANOL_LIKE)
    config = NetConfig()
    back = to_molecules(to_state(molecules, config), molecules.mask, config)
    assert torch.equal(back.numbers, molecules.numbers)
    assert torch.equal(back.charges, molecules.charges)
    assert torch.equal(back.bonds, molecules.bonds)
    shift = back.positions - molecules.positions
    moved = shift[molecules.mask]
    for k in range(len(molecules)):
        own = shift[k][molecules.mask[k]]
        assert torch.allclose(own, own[:1].expand_as(own), atol=1e-5)
    assert moved.isfinite().all()


def test_foreign_elements_are_named(build):
    with pytest.raises(UserError, match=r"elements \[16\]"):
        to_state(build(["CS"]), NetConfig())


def test_the_bridge_of_molecules_is_scaled_centred_and_masked(build):
    molecules = build(ETHANOL_LIKE)
    config = NetConfig()
    process = molecular_process(config)
    state = to_state(molecules, config)
    bridge = process.bridge(state, torch.tensor([0.0, 0.5, 1.0]), Keys.for_samples(0, range(3)),
                            molecules.mask)
    x = bridge.x_t
    assert torch.allclose(x["pos"].sum(1), torch.zeros(3, 3), atol=1e-5)
    assert (x["atom"][0][molecules.mask[0]] == len(config.elements)).all()
    assert torch.equal(x["bond"][2], state["bond"][2])
    assert torch.allclose(x["pos"][2] * SCALE, state["pos"][2] * SCALE)
    assert not x["pos"][~molecules.mask].any()


def test_table_rows_outside_the_vocabulary_are_left_out(build):
    from driftworks.data.table import MoleculeTable
    from driftworks.molgen.process import supported_rows

    molecules = build(["CCO", "CS", "[NH3+]CC([O-])=O", "O"])
    table = MoleculeTable.from_molecules(list(_records(molecules)), source="test")
    assert supported_rows(table, NetConfig(), 29).tolist() == [0, 2, 3]
    assert supported_rows(table, NetConfig(), 9).tolist() == [0, 3]


def _records(molecules: Molecules):
    from driftworks.data.table import Molecule

    for k in range(len(molecules)):
        n = int(molecules.atom_counts[k])
        i, j = np.triu_indices(n, 1)
        order = molecules.bonds[k, :n, :n].numpy()[i, j]
        yield Molecule(
            id=f"t:{k}", smiles="", numbers=molecules.numbers[k, :n].numpy().astype(np.uint8),
            positions=molecules.positions[k, :n].numpy(),
            charges=molecules.charges[k, :n].numpy().astype(np.int8),
            bonds=np.stack([i, j, order], -1)[order > 0].astype(np.int16), properties={},
        )
