"""Figures: the right denominators, the published constants, and intervals that cover."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rdkit import Chem

from driftworks.errors import UserError
from driftworks.molgen.library import Library
from driftworks.molgen.metrics import evaluate
from driftworks.molgen.molecule import Molecules


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


def test_rates_are_shares_of_what_was_requested(build):
    molecules = build(["CCO", "CCO", "C=O", "c1ccccc1"])
    radical = without_last_hydrogen(build(["CC"]))
    library = Library(
        Molecules.cat([molecules, radical]), requested=10, failures={"not finite": 3}, seed=1
    )
    report = evaluate(library, bootstrap=0)
    assert report.strict_validity.value == 4 / 10 and report.strict_validity.n == 10
    assert report.rdkit_validity.value == report.connectivity.value == 5 / 10
    assert report.closed_shell.value == report.valence.value == 4 / 10
    assert report.uniqueness.value == 3 / 4 and report.uniqueness.n == 4
    assert report.unique_strict.value == 3 / 10
    assert (report.requested, report.delivered, report.strict) == (10, 5, 4)
    assert report.failures == {"not finite": 3, "unknown": 2, "radical": 1}
    assert sum(report.failures.values()) == report.requested - report.strict


def test_novelty_is_of_the_distinct_strict_and_also_of_the_requested(build):
    molecules = build(["CCO", "CCO", "C=O", "c1ccccc1"])
    report = evaluate(molecules, reference=["OCC", "C"], bootstrap=0, requested=8)
    assert report.novelty.value == 2 / 3 and report.novelty.n == 3
    assert report.novel_strict.value == 2 / 8


@pytest.mark.parametrize("form", ["canonical", "foreign", "molecules", "library"])
def test_the_reference_may_come_in_any_form(build, form):
    given = {
        "canonical": ["CCO", "C1CC1"],
        "foreign": ["[H]C([H])([H])C([H])([H])O[H]", "C1=CC=CC=C1", "not smiles"],
        "molecules": build(["CCO"]),
        "library": Library(build(["CCO"])),
    }[form]
    assert evaluate(build(["CCO", "C=O"]), given, bootstrap=0).novelty.value == 1 / 2


def test_molecules_may_come_as_tensors_or_rdkit_molecules_with_gaps(build):
    molecules = build(["CCO", "C=O"])
    mols = [*molecules.rdkit_mols(), None, Chem.AddHs(Chem.MolFromSmiles("C"))]
    report = evaluate(mols, bootstrap=0)
    assert report.strict_validity.value == 1 / 2
    assert report.failures == {"missing": 1, "no conformer": 1}
    assert evaluate(molecules, requested=4, bootstrap=0).strict_validity.value == 1 / 2


def test_a_failed_sample_counts_as_a_molecule_of_average_size_without_a_stable_atom(build):
    report = evaluate(build(["C", "CC"]), requested=4, bootstrap=0)
    assert report.atom_stability_bonds.value == (5 + 8) / (5 + 8 + 2 * 6.5)
    assert report.molecule_stability_bonds.value == 2 / 4


def test_when_everything_failed_the_report_still_says_so():
    report = evaluate(Library(Molecules.empty(), failures={"not finite": 6}), bootstrap=200)
    assert report.strict_validity.value == 0.0
    assert 0.4 < report.strict_validity.high < 0.5  # 1 - 0.025 ** (1 / 6)
    assert math.isnan(report.uniqueness.value) and "not finite 6" in str(report)
    json.dumps(report.to_dict(), allow_nan=False)


def test_what_cannot_be_evaluated_is_refused(build):
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluate([])
    with pytest.raises(UserError, match="cannot evaluate"):
        evaluate("molecules.sdf")
    with pytest.raises(UserError, match="cannot compare"):
        evaluate(build(["C"]), reference=7)
    with pytest.raises(UserError, match="says 1 requested"):
        evaluate(Library(build(["C"])), requested=5)


def test_target_error_is_over_the_strict_molecules_that_were_measured(build):
    molecules = Molecules.cat([build(["C", "CC", "CCC"]), without_last_hydrogen(build(["CCCC"]))])
    library = Library(molecules, targets={"size": [5.0, 9.0, np.nan, 0.0], "other": 1.0})

    def count(batch: Molecules) -> dict[str, torch.Tensor]:
        return {"size": batch.atom_counts.double()}

    report = evaluate(library, oracle=count, bootstrap=0)
    assert report.mae_size.value == pytest.approx((0 + 1) / 2) and report.mae_size.n == 2
    assert report.measured_size.value == 1.0
    assert report.oracle == "count"
    assert any("does not measure other" in note for note in report.notes)


def test_an_oracle_of_the_protocol_has_its_failures_counted(build):
    library = Library(build(["C", "CC", "CCC"]), targets={"mu": 1.0})

    class Dipole:
        name = "made up"
        settings: dict = {}
        provides = {"mu": "debye"}

        def evaluate(self, mols, progress=False, callback=None):
            good = SimpleNamespace(status="ok", values={"mu": 3.5})
            bad = SimpleNamespace(status="timeout", values={})
            return [good if len(m.numbers) > 5 else bad for m in mols]

    report = evaluate(library, oracle=Dipole(), bootstrap=50)
    assert report.mae_mu.value == 2.5 and report.mae_mu.unit == "debye" and report.mae_mu.n == 2
    assert report.measured_mu.value == pytest.approx(2 / 3)
    assert report.losses == {"timeout": 1} and "timeout 1" in str(report)


def test_a_thing_that_is_no_oracle_is_refused(build):
    library = Library(build(["C"]), targets={"mu": 1.0})
    with pytest.raises(UserError, match="no oracle"):
        evaluate(library, oracle=3.0)
    with pytest.raises(UserError, match="unknown oracle"):
        evaluate(library, oracle="crystal ball")


def test_targets_without_an_oracle_are_noted(build):
    report = evaluate(Library(build(["C"]), targets={"mu": 1.0}), bootstrap=0)
    assert any("no oracle" in note for note in report.notes)


def test_qm9_is_not_novel_to_itself_and_equal_in_distribution(qm9, qm9_rows, qm9_sample):
    reference = qm9.select(qm9_rows[:1500])
    report = evaluate(qm9_sample[:600], reference=reference, bootstrap=100)
    assert report.novelty.value == 0.0
    for name in ("elements", "bond_orders", "rings", "atom_counts", "bond_lengths"):
        assert report[f"js_{name}"].value < 0.02, name
    shaken = changed(qm9_sample[:600], positions=qm9_sample[:600].positions * 1.05)
    assert evaluate(shaken, reference=reference, bootstrap=0).js_bond_lengths.value > 0.5


def test_a_perfect_rate_still_has_an_interval(build):
    report = evaluate(build(["C"] * 50), bootstrap=100)
    assert report.strict_validity.value == 1.0
    assert report.strict_validity.low == pytest.approx(0.025 ** (1 / 50))
    assert report.strict_validity.high == 1.0


def test_resampling_does_not_take_its_own_repetitions_for_duplicates(build):
    molecules = build(["C", "CC", "CCC", "CO", "CN", "C=O", "C#N", "CCO", "CF", "CCN"])
    report = evaluate(Molecules.cat([molecules, molecules[:1]]), bootstrap=500)
    assert report.uniqueness.value == 10 / 11 and report.uniqueness.low > 0.7


def test_the_same_seed_gives_the_same_report(small):
    one, two = (evaluate(small, small[:5], bootstrap=50, seed=4).to_dict() for _ in range(2))
    assert one == two
    assert one != evaluate(small, small[:5], bootstrap=50, seed=5).to_dict()


def test_a_report_prints_an_aligned_table_and_dumps_as_json(small):
    molecules = Molecules.cat([small, without_last_hydrogen(small[:3])])
    report = evaluate(molecules, reference=small, bootstrap=100)
    lines = str(report).splitlines()
    table = [line for line in lines if line.startswith("  ")]
    assert len(table) == len(report.figures) and len({line.index("[") for line in table}) == 1
    assert lines[0].startswith("33 molecules requested, 33 delivered, 30 strictly valid")
    assert table[0].split()[:2] == ["strict_validity", "90.9"]
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again["figures"]["strict_validity"]["n"] == 33
    with pytest.raises(AttributeError, match="strict_validity"):
        _ = report.validity
