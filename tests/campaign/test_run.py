"""A campaign from start to end: every sample accounted for, every choice honoured."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from rdkit.Chem.Descriptors import MolWt

from driftworks import campaign as package
from driftworks.campaign import Campaign, driver, dry_run, status
from driftworks.campaign.store import Store, Structure
from driftworks.errors import UserError
from driftworks.molgen.library import Library
from driftworks.molgen.molecule import Molecules
from driftworks.molgen.oracles.protocol import OracleResult
from driftworks.molgen.validity import check


def recount(double: Any, seed: int, total: int) -> Counter:
    """The fate of samples 0..total-1 before any filter, from the molecules themselves."""
    fates: Counter = Counter()
    seen = set()
    for index in range(total):
        mol = double.draw(seed, index)
        if mol is None:
            fates["not generated: not finite"] += 1
            continue
        verdict = check(mol)
        if not verdict.strict:
            fates[f"invalid: {verdict.reason}"] += 1
            continue
        Chem.SanitizeMol(mol)
        Chem.AssignStereochemistryFrom3D(mol)
        key = Chem.MolToInchiKey(mol)
        fates["duplicate" if key in seen else "in"] += 1
        seen.add(key)
    return fates


def test_every_sample_ends_in_the_bucket_it_belongs_to(drive: Any, double: Any) -> None:
    result = drive(n=30, batch=25, selection={"size": 10})
    fates = recount(double, 5, result.generated)
    inside = fates.pop("in")
    assert result.candidates == inside >= 30
    assert result.funnel == {**fates, "not selected": inside - 10, "library": 10}
    assert sum(result.funnel.values()) == result.generated
    assert result.generated % 25 == 0 and len(result.table) == 10
    assert list(result.table["rank"]) == list(range(1, 11))
    assert result.table["inchikey"].is_unique


def test_no_batch_is_drawn_once_there_are_enough(drive: Any, double: Any) -> None:
    generator = double.Double()
    result = drive(generator=generator, n=12, batch=12)
    assert generator.calls == [(12 * k, 12) for k in range(len(generator.calls))]
    before = recount(double, 5, result.generated - 12)["in"]
    assert before < 12 <= result.candidates


def test_the_budget_of_samples_is_kept_to_the_last_one(drive: Any, double: Any) -> None:
    generator = double.Double()
    result = drive(generator=generator, n=20, batch=12, max_generated=21)
    assert generator.calls == [(0, 12), (12, 9)]
    assert result.generated == 21 and result.candidates < 20
    assert "fewer than the 20 candidates wanted" in str(result)


def test_the_model_is_steered_to_what_it_knows_and_nothing_else(drive: Any, double: Any) -> None:
    generator = double.Double()
    targets = {"weight": 75.0, "tpsa": (20, 30), "qed": "max"}
    result = drive(generator=generator, targets=targets)
    assert generator.targets == {"weight": 75.0, "tpsa": (20.0, 30.0)}
    assert {"weight", "tpsa", "qed", "target_weight"} <= set(result.table.columns)
    assert "target_tpsa" not in result.table.columns


def test_the_library_is_ranked_by_the_distance_from_the_targets(drive: Any) -> None:
    result = drive(n=20, targets={"weight": 75.0}, selection={"diversity": 0.0})
    off = (result.table["weight"] - 75.0).abs()
    assert off.is_monotonic_increasing
    np.testing.assert_allclose(result.table["score"], 2 ** -((off / 7.5) ** 2), atol=1e-6)


def has(mol: Chem.Mol, smarts: str) -> bool:
    return bool(mol.HasSubstructMatch(Chem.MolFromSmarts(smarts)))


@pytest.mark.parametrize(
    ("filters", "bucket", "fits"),
    [
        ({"elements": ["C", "O"]}, "element", lambda m: not has(m, "[!#6;!#8;!#1]")),
        ({"heavy_atoms": [3, 5]}, "heavy atoms", lambda m: 3 <= m.GetNumHeavyAtoms() <= 5),
        ({"exclude": ["C#N"]}, "has C#N", lambda m: not has(m, "C#N")),
        ({"require": ["[OX2H]"]}, "lacks [OX2H]", lambda m: has(m, "[OX2H]")),
        ({"alerts": ["BRENK"]}, "alert BRENK", lambda m: not has(m, "[CX3H1](=O)[#6]")),
        ({"properties": {"weight": {"max": 80}}}, "weight out", lambda m: MolWt(m) <= 80),
    ],
)
def test_filters_keep_what_they_say_and_count_the_rest(
    drive: Any, filters: dict, bucket: str, fits: Any
) -> None:
    result = drive(n=15, max_generated=36, filters=filters)
    lost = {k: n for k, n in result.funnel.items() if k.startswith("filtered")}
    assert lost and all(bucket in name for name in lost)
    assert sum(lost.values()) + sum(
        n for k, n in result.funnel.items() if not k.startswith("filtered")
    ) == result.generated
    mols = [Chem.MolFromSmiles(s) for s in result.table["smiles"]]
    assert mols and all(fits(m) for m in mols)


def test_a_filtered_molecule_still_makes_its_twin_a_duplicate(drive: Any, double: Any) -> None:
    result = drive(n=15, max_generated=48, filters={"elements": ["C", "O"]})
    fates = recount(double, 5, result.generated)
    assert result.funnel["duplicate"] == fates["duplicate"]


def test_a_second_run_asks_nothing_and_changes_nothing(
    drive: Any, double: Any, tmp_path: Path
) -> None:
    first = drive()
    files = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("library.*")}
    log = tmp_path / "asked.log"
    generator = double.Double(hash="another model, which is not even looked at")
    second = drive(generator=generator, measure={"shape": double.Descriptors3D(log=log)})
    assert not generator.calls and not log.exists()
    assert first.table.equals(second.table) and first.funnel == second.funnel
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "out").glob("library.*")}


def test_results_that_were_recorded_are_not_asked_for_again(
    drive: Any, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_FLUSH", 0.0)
    log = tmp_path / "asked.log"

    class Dying(double.Descriptors3D):
        def answer(self, asked: Any) -> OracleResult:
            if log.exists() and len(log.read_text().split()) == 7:
                raise RuntimeError("power cut")
            return super().answer(asked)

    with pytest.raises(RuntimeError, match="power cut"):
        drive(measure={"shape": Dying(log=log)})
    assert status(tmp_path / "out")["funnel"]["in progress"] > 0
    result = drive(measure={"shape": double.Descriptors3D(log=log)})
    asked = log.read_text().split()
    assert len(asked) == len(set(asked)) == result.candidates


def test_another_campaign_or_other_weights_in_the_same_folder_are_refused(
    drive: Any, double: Any
) -> None:
    drive(n=40, max_generated=40, batch=20)
    with pytest.raises(UserError, match=r"holds another campaign \(seed: 5 -> 6\)"):
        drive(n=40, max_generated=40, batch=20, seed=6)


def test_a_half_done_campaign_does_not_continue_with_other_weights(
    drive: Any, double: Any, tmp_path: Path
) -> None:
    class Tired(double.Double):
        def sample(self, n: int, *args: Any, **options: Any) -> Library:
            if self.calls:
                raise RuntimeError("power cut")
            return super().sample(n, *args, **options)

    with pytest.raises(RuntimeError):
        drive(generator=Tired(), n=30)
    with pytest.raises(UserError, match="was begun with weights 000000000000 of 'double'"):
        drive(generator=double.Double(hash="1" * 64), n=30)
    assert drive(generator=double.Double(), n=30).candidates >= 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": {"dipol": 4.0}}, r"unknown property 'dipol'.*gyration.*weight"),
        ({"filters": {"properties": {"colour": (1, 2)}}}, r"unknown property 'colour'"),
        (
            {"targets": {"weight": {"value": 75, "oracle": "xtb"}}},
            r"weight: not measured by oracle 'xtb'; choose from rdkit, shape",
        ),
        ({"output": "/proc/nowhere"}, r"output /proc/nowhere: cannot be written"),
        ({"output": __file__}, r"cannot be written"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_before_anything_is_drawn(
    drive: Any, double: Any, changes: dict, message: str
) -> None:
    generator = double.Double()
    with pytest.raises(UserError, match=message) as caught:
        drive(generator=generator, **changes)
    assert "\n" not in str(caught.value) and not generator.calls


def test_the_oracle_a_target_names_is_the_one_that_counts(drive: Any, double: Any) -> None:
    class Heavy(double.Descriptors3D):
        def answer(self, asked: Any) -> OracleResult:
            values = super().answer(asked).values
            return OracleResult("ok", values=values | {"weight": values["weight"] + 1000})

    oracles = {"shape": Heavy()}
    free = drive(measure=oracles, targets={"weight": 75.0})
    assert (free.table["weight"] < 1000).all()
    named = drive(
        measure=oracles,
        targets={"weight": {"value": 75, "oracle": "shape"}},
        output=str(free.folder.parent / "named"),
    )
    assert (named.table["weight"] > 1000).all()


def test_a_molecule_that_an_oracle_fails_on_is_out_and_named(drive: Any, double: Any) -> None:
    class Picky(double.Descriptors3D):
        def answer(self, asked: Any) -> OracleResult:
            if 9 in asked.numbers:
                return OracleResult("convergence", "fluorine")
            return super().answer(asked)

    result = drive(measure={"shape": Picky()}, n=15, max_generated=48)
    assert result.funnel["shape: convergence"] > 0
    assert not any("F" in s for s in result.table["smiles"])


def test_a_generator_that_answers_with_other_samples_is_refused(drive: Any, double: Any) -> None:
    class Shifted(double.Double):
        def sample(self, n: int, targets: Any = None, *, first: int = 0, **rest: Any) -> Library:
            return super().sample(n, targets, first=first + 1, **rest)

    with pytest.raises(UserError, match="asked for samples 0 to 11 and answered with others"):
        drive(generator=Shifted())


def test_a_models_own_estimates_score_the_targets(drive: Any, double: Any) -> None:
    class Knowing(double.Double):
        predicts = {"alpha": "bohr^3", "weight": "g/mol"}

        def predict(self, library: Library) -> dict[str, np.ndarray]:
            carbons = (library.molecules.numbers == 6).sum(1).numpy().astype(float)
            return {"alpha": 10 * carbons, "weight": carbons}

    result = drive(generator=Knowing(), targets={"alpha": 40.0})
    carbons = [s.upper().count("C") for s in result.table["smiles"]]
    np.testing.assert_array_equal(result.table["alpha"], 10.0 * np.array(carbons))
    assert "regressor_alpha" in result.table.columns
    with Store(result.folder / driver.STORE) as store:
        assert json.loads(store.fact("judges") or "")["alpha"] == "regressor"


def test_the_files_read_back_as_the_library(drive: Any) -> None:
    result = drive()
    for name in ("library.sdf", "library.parquet"):
        library = Library.read(result.folder / name)
        assert library.indices.tolist() == result.table["index"].tolist()
        assert all(v.strict for v in library.verdicts)
        np.testing.assert_allclose(library.properties["score"], result.table["score"], atol=1e-6)
        np.testing.assert_allclose(library.targets["weight"], 75.0)
        assert library.provenance["funnel"] == result.funnel
        assert library.provenance["spec_sha256"] == Campaign(
            **library.provenance["campaign"]
        ).sha256


def test_no_candidates_at_all_is_a_result_and_not_an_accident(drive: Any) -> None:
    result = drive(max_generated=12, filters={"elements": ["P"]}, pictures=True)
    assert result.candidates == 0 and result.table.empty
    assert (result.folder / "report.html").exists()


def test_a_campaign_without_targets_is_a_filtered_library(drive: Any) -> None:
    result = drive(targets={}, selection={"size": 5})
    assert len(result.table) == 5 and (result.table["score"] == 1).all()


def test_broken_bonds_are_noticed_and_vibrations_are_not() -> None:
    ethane = Chem.AddHs(Chem.MolFromSmiles("CC"))
    rdDistGeom.EmbedMolecule(ethane, randomSeed=1)
    one = Structure.of(Molecules.from_rdkit([ethane]), 0, 0)
    at = one.positions.astype(np.float64)
    assert not driver._broken(one, at) and not driver._broken(one, at * 1.05)
    at[7] += 2 * (at[7] - at[1])
    assert driver._broken(one, at)


def test_a_dry_run_knows_that_dft_costs_more_the_more_of_it_there_is(double: Any) -> None:
    pytest.importorskip("pyscf")
    one, four = (
        dry_run(Campaign(n=5, oracles={"xtb": True, "dft": {"n": n}}), generator=double.Double())
        for n in (1, 4)
    )
    assert one.xtb == four.xtb > 0 and one.dft > 0.1
    assert four.dft == pytest.approx(4 * one.dft)


def test_a_dry_run_writes_nothing_and_brackets_what_the_run_needs(
    drive: Any, double: Any, tmp_path: Path
) -> None:
    campaign = Campaign(
        n=30, batch=10, seed=5, oracles={"xtb": False}, output=str(tmp_path / "dry")
    )
    estimate = dry_run(campaign, generator=double.Double(), probe=16)
    assert not (tmp_path / "dry").exists()
    few, many = estimate.samples
    assert 30 == few <= many <= campaign.budget and estimate.total > 0
    assert "samples" in str(estimate)


def test_names_at_the_package_are_the_functions_whatever_was_imported_before() -> None:
    from driftworks.campaign import page, spec  # noqa: F401

    assert callable(package.run) and callable(package.report) and callable(package.load)
    assert inspect.isclass(package.Campaign) and set(package.__all__) <= set(dir(package))


def test_xtb_measures_relaxes_and_keeps_to_its_budget(drive: Any, tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    result = drive(
        measure={},
        targets={"mu": 2.0},
        n=20,
        max_generated=60,
        oracles={"xtb": {"n": 4}},
    )
    assert result.candidates + result.funnel.get("xtb: rearranged", 0) == 4
    assert result.funnel["xtb: budget spent"] > 0
    np.testing.assert_array_equal(result.table["mu"], result.table["xtb_mu"])
    assert (result.table["xtb_strain"] > 0).all() and (result.table["xtb_max_force"] <= 0.02).all()
    with Store(tmp_path / "out" / driver.STORE) as store:
        for measurement in store.measurements("xtb"):
            (one,) = [s for s in store.structures() if s.index == measurement.molecule]
            assert measurement.positions is not None
            assert measurement.positions.shape == one.positions.shape


def test_strain_beyond_the_limit_puts_a_molecule_out(drive: Any) -> None:
    pytest.importorskip("tblite")
    options = {"measure": {}, "targets": {}, "filters": {"heavy_atoms": [2, 4]}, "n": 9}
    result = drive(**options, max_generated=24, oracles={"xtb": {"max_strain": 0.2}})
    assert result.funnel["xtb: strained"] > 0
    assert (result.table["xtb_strain"] <= 0.2).all()


@pytest.mark.slow
def test_dft_computes_the_first_of_the_library_at_the_relaxed_geometry(drive: Any) -> None:
    """Two small molecules with the real program: what the report calls validated."""
    pytest.importorskip("pyscf")
    result = drive(
        measure={},
        targets={"mu": 2.0},
        filters={"heavy_atoms": [2, 3], "elements": ["C", "N", "O"]},
        n=4,
        max_generated=120,
        oracles={"xtb": True, "dft": {"n": 2}},
        pictures=True,
    )
    assert result.validated == result.funnel["library, DFT ok"] == 2
    assert list(result.table["dft_status"][:3]) == ["ok", "ok", ""]
    assert (result.table["dft_gap"][:2] > 4).all()
    # B3LYP and GFN2-xTB dipoles of small molecules agree within about a debye.
    assert (result.table["dft_mu"] - result.table["xtb_mu"])[:2].abs().max() < 1.0
    computed = Library.read(result.folder / "validated.sdf")
    assert computed.indices.tolist() == result.table["index"][:2].tolist()


def test_estimates_are_made_at_the_geometry_that_xtb_has_relaxed(drive: Any, double: Any) -> None:
    pytest.importorskip("tblite")

    class Knowing(double.Double):
        predicts = {"spread": "angstrom"}

        def predict(self, library: Library) -> dict[str, np.ndarray]:
            x = library.molecules.positions.double().numpy()
            return {"spread": np.abs(x).sum((1, 2))}

    result = drive(generator=Knowing(), measure={}, targets={"spread": "min"}, n=4,
                   max_generated=12, oracles={"xtb": True})
    with Store(result.folder / driver.STORE) as store:
        relaxed = {m.molecule: m.positions for m in store.measurements("xtb")}
    expected = [np.abs(relaxed[i]).sum() for i in result.table["index"]]
    np.testing.assert_allclose(result.table["spread"], expected, rtol=1e-5)
