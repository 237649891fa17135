"""The published stabilities: faithful to the publications, their faults included."""

from __future__ import annotations

import math

import pytest
import torch

from driftworks.molgen.metrics import evaluate
from driftworks.molgen.molecule import Molecules
from driftworks.molgen.stability import stable_by_bonds, stable_by_distances
from driftworks.molgen.validity import strict_mask


def changed(molecules: Molecules, **tensors: torch.Tensor) -> Molecules:
    names = ("numbers", "positions", "charges", "bonds", "mask")
    return Molecules(**{name: tensors.get(name, getattr(molecules, name)) for name in names})


def without_last_hydrogen(molecules: Molecules) -> Molecules:
    mask = molecules.mask.clone()
    mask[torch.arange(len(molecules)), molecules.atom_counts - 1] = False
    pair = mask[:, :, None] & mask[:, None, :]
    return changed(
        molecules,
        mask=mask,
        numbers=molecules.numbers * mask,
        bonds=molecules.bonds * pair,
        positions=molecules.positions * mask[..., None],
    )


def test_published_bond_stability_passes_radicals_ions_and_pieces(build):
    methyl = without_last_hydrogen(build(["C"]))
    ammonium = build(["[NH4+]"])
    pieces = build(["O"])
    pair = Molecules(
        pieces.numbers.repeat(1, 2),
        torch.cat([pieces.positions, pieces.positions + 9], dim=1),
        pieces.charges.repeat(1, 2),
        torch.block_diag(pieces.bonds[0], pieces.bonds[0])[None],
        pieces.mask.repeat(1, 2),
    )
    wrong = Molecules.cat([methyl, ammonium, pair])
    assert (stable_by_bonds(wrong) == wrong.mask).all()
    assert not strict_mask(wrong).any()
    report = evaluate(wrong, bootstrap=0)
    assert report.molecule_stability_bonds.value == 1.0 and report.strict_validity.value == 0.0


def test_published_bond_stability_fails_good_molecules_it_has_no_entry_for(build):
    sulfoxide = build(["CS(C)=O"])
    assert strict_mask(sulfoxide).all()
    stable = stable_by_bonds(sulfoxide)[0]
    assert not stable[1] and int(stable.sum()) == int(sulfoxide.atom_counts[0]) - 1


def test_an_unlisted_charge_is_looked_up_as_neutral():
    odd = Molecules(
        torch.tensor([[6, 1, 1, 1, 1]]),
        torch.zeros(1, 5, 3),
        torch.tensor([[2, 0, 0, 0, 0]]),
        torch.block_diag(torch.zeros(5, 5, dtype=torch.int64))[None].index_fill(
            1, torch.tensor(0), 1
        ),
        torch.ones(1, 5, dtype=torch.bool),
    )
    odd.bonds[0, 0, 0] = 0
    assert stable_by_bonds(odd).all()


@pytest.mark.parametrize(
    ("pair", "distance", "order"),
    [
        ((6, 6), 1.639, 1), ((6, 6), 1.641, 0), ((6, 6), 1.389, 2), ((6, 6), 1.391, 1),
        ((6, 6), 1.229, 3), ((6, 6), 1.231, 2), ((6, 8), 1.159, 3), ((6, 8), 1.249, 2),
        ((7, 7), 1.129, 3), ((7, 7), 1.551, 0), ((1, 6), 1.189, 1), ((1, 6), 1.191, 0),
        ((8, 8), 1.20, 2), ((7, 8), 1.20, 2), ((9, 9), 1.519, 1), ((1, 9), 1.021, 0),
        ((6, 9), 1.449, 1), ((1, 1), 0.839, 1), ((1, 1), 0.841, 0),
    ],
)  # fmt: skip
def test_the_distance_table_has_the_published_thresholds(pair, distance, order):
    """An atom is stable when its bonds fill its valence: hydrogens far away fill up the rest."""
    usual = {1: 1, 6: 4, 7: 3, 8: 2, 9: 1}
    first = usual[pair[0]] - order
    numbers, positions = list(pair), [[0.0, 0.0, 0.0], [0.0, 0.0, distance]]
    for k in range(max(first, 0)):  # spread over the far hemisphere, apart from one another
        angle = 2 * math.pi * k / max(first, 1)
        reach = {6: 1.09, 7: 1.01, 8: 0.96, 9: 0.92, 1: 0.74}[pair[0]]
        tilt = 1.9 if first > 1 else math.pi
        positions.append(
            [
                reach * math.sin(tilt) * math.cos(angle),
                reach * math.sin(tilt) * math.sin(angle),
                reach * math.cos(tilt),
            ]
        )
        numbers.append(1)
    n = len(numbers)
    molecules = Molecules(
        torch.tensor([numbers]),
        torch.tensor([positions]),
        torch.zeros(1, n, dtype=torch.int64),
        torch.zeros(1, n, n, dtype=torch.int64),
        torch.ones(1, n, dtype=torch.bool),
    )
    assert bool(stable_by_distances(molecules)[0, 0])
    moved = molecules.positions.clone()
    moved[0, 1, 2] = 3.5
    assert bool(stable_by_distances(changed(molecules, positions=moved))[0, 0]) == (order == 0)


def test_both_published_stabilities_agree_with_a_plain_loop_over_atoms(small):
    numbers = [1, 6, 7, 8, 9]
    keep = [i for i in range(len(small)) if set(small.numbers[i].tolist()) <= {0, *numbers}]
    molecules = small[keep]
    shaken = molecules.positions + 0.05 * torch.randn(
        molecules.positions.shape, generator=torch.Generator().manual_seed(1)
    )
    molecules = changed(molecules, positions=shaken * molecules.mask[..., None])
    fast = stable_by_distances(molecules)
    slow = torch.zeros_like(fast)
    for b in range(len(molecules)):
        n = int(molecules.atom_counts[b])
        for i in range(n):
            total = sum(edm_order(molecules, b, i, j) for j in range(n) if j != i)
            slow[b, i] = total == {1: 1, 6: 4, 7: 3, 8: 2, 9: 1}[int(molecules.numbers[b, i])]
    assert torch.equal(fast, slow) and 0.3 < slow[molecules.mask].float().mean() < 1


def edm_order(molecules: Molecules, b: int, i: int, j: int) -> int:
    single = {
        "HH": 74,
        "CH": 109,
        "HN": 101,
        "HO": 96,
        "FH": 92,
        "CC": 154,
        "CN": 147,
        "CO": 143,
        "CF": 135,
        "NN": 145,
        "NO": 140,
        "FN": 136,
        "OO": 148,
        "FO": 142,
        "FF": 142,
    }
    double = {"CC": 134, "CN": 129, "CO": 120, "NN": 125, "NO": 121, "OO": 121}
    triple = {"CC": 120, "CN": 116, "CO": 113, "NN": 110}
    symbols = {1: "H", 6: "C", 7: "N", 8: "O", 9: "F"}
    key = "".join(sorted(symbols[int(molecules.numbers[b, k])] for k in (i, j)))
    far = 100 * math.dist(molecules.positions[b, i].tolist(), molecules.positions[b, j].tolist())
    if far >= single[key] + 10:
        return 0
    if far >= double.get(key, -1000) + 5:
        return 1
    return 3 if far < triple.get(key, -1000) + 3 else 2


def test_elements_outside_the_distance_table_are_noted(build):
    report = evaluate(build(["CS(C)=O"]), bootstrap=0)
    assert any("16" in note and "distances" in note for note in report.notes)


def test_real_qm9_reaches_the_measured_ceilings(qm9_sample):
    report = evaluate(qm9_sample, bootstrap=200)
    assert report.strict_validity.value == report.molecule_stability_bonds.value == 1.0
    assert report.atom_stability_distances.value == pytest.approx(0.994, abs=0.002)
    assert report.molecule_stability_distances.value == pytest.approx(0.953, abs=0.01)
    interval = report.molecule_stability_distances
    assert interval.low < 0.953 < interval.high
