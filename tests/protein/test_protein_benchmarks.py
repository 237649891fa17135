"""The benchmarks of proteins: verdicts against hand-made figures, resuming, picture, model list."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from driftworks import protein
from driftworks.commands import models
from driftworks.protein import files, ideal, sample
from driftworks.protein.chains import Chains
from driftworks.protein.distill import DistillConfig, distill
from driftworks.protein.evaluation import evaluate
from driftworks.protein.train import TrainConfig, train

TINY = {"width": 32, "pair_width": 16, "heads": 4, "layers": 2, "rounds": 2}


@pytest.fixture
def table(monkeypatch, pytestconfig):
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
    return importlib.import_module("protein_table")


@pytest.fixture
def steps(monkeypatch, pytestconfig):
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
    return importlib.import_module("protein_steps")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Chains with a split, a teacher of two steps, students of one step: SiD and CTM."""
    here = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    points = [ideal.noised(ideal.bundle(n), 0.1, rng) for n in range(40, 52)]
    files.write(Chains.of(points), here, "npz")
    chains = files.read(here / "designs.npz")
    split = np.array([0] * 6 + [2] * 6, np.int8)
    replace(chains, split=split).write(here / "protein_backbones.npz")
    config = TrainConfig(net=TINY, steps=2, batch=4, lengths=(40, 44), self_condition=0.0)
    train(config, chains, here / "teacher", progress=False)
    teacher = protein.load(here / "teacher", "cpu")
    for method in ("sid", "ctm"):
        config = DistillConfig(method=method, steps=1, batch=2, calls=2, teacher_steps=2)
        distill(config, teacher, here / method, progress=False)
    return here


def figure(value, n=100):
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": n, "natives": 0.25}


#: A student that reaches everything beside this teacher, and what breaks each criterion by a hair.
TEACHER = {
    "bonds": 0.99, "clash_free": 0.95, "right_handed": 0.95, "ramachandran": 0.10,
    "fragment": 0.30, "frechet": 10.0, "helix": 0.30, "strand": 0.20, "helix_spread": 0.20,
    "strand_spread": 0.10, "folds": 0.50, "nearest": 0.60, "memorised": 0.0,
}  # fmt: skip
BROKEN = {
    "bonds": 0.979, "clash_free": 0.899, "right_handed": 0.899, "ramachandran": 0.131,
    "fragment": 0.331, "frechet": 15.01, "helix": 0.381, "strand": 0.119, "helix_spread": 0.139,
    "strand_spread": 0.069, "folds": 0.399, "nearest": 0.631, "memorised": 0.051,
}  # fmt: skip
REACHED = {
    "bonds": 0.981, "clash_free": 0.901, "right_handed": 0.901, "ramachandran": 0.129,
    "fragment": 0.329, "frechet": 14.99, "helix": 0.379, "strand": 0.121, "helix_spread": 0.141,
    "strand_spread": 0.071, "folds": 0.401, "nearest": 0.629, "memorised": 0.049,
}  # fmt: skip


def column(table, role, figures, *, calls=8, seconds=1.0, hash="h", teacher=""):
    model = SimpleNamespace(role=role, hash=hash, meta={"teacher": {"sha256": teacher}})
    report = {"figures": {k: figure(v) for k, v in figures.items()}, "flags": {}}
    drawn = table.Drawn(Chains.of([ideal.helix(40)]), calls, seconds, "key")
    return table.Column(f"{role} {hash}", report, drawn, model, 0.45, [48])


def said(table, *columns):
    args = SimpleNamespace(seed=0)
    lines = table.verdicts(columns, table.Store(None), args)
    return lines, {" ".join(line.split()) for line in lines}


def verdict_of(lines: list[str], name: str) -> str:
    (line,) = (line for line in lines if line[11:].startswith(name + " "))
    return line[:11].strip()


def test_a_student_meets_what_it_must_reach_and_misses_each_by_a_hair(table):
    teacher = column(table, "teacher", TEACHER, calls=400, seconds=15.1, hash="t")
    good, _ = said(table, teacher, column(table, "student", REACHED, teacher="t", calls=16))
    bad, _ = said(table, teacher, column(table, "student", BROKEN, teacher="t", calls=17,
                                         seconds=1.01))  # fmt: skip
    assert good[0] == "student h beside teacher t:"
    for name in (*REACHED, "fewer network calls", "times faster"):
        if name != "folds":
            assert verdict_of(good[:17], name) == "met", name
            assert verdict_of(bad[:17], name) == "not met", name
    assert verdict_of(good[:17], "folds of 100 chains") == "met"
    assert verdict_of(bad[:17], "folds of 100 chains") == "not met"
    assert "a limit lies in the interval" in "".join(good)


def test_a_teacher_is_held_against_natives_and_what_was_not_measured_is_not_met(table):
    figures = TEACHER | {"fragment": 0.39, "frechet": 12.1, "helix": 0.36, "strand": 0.16}
    lines, _ = said(table, column(table, "teacher", figures))
    assert lines[0].endswith("beside natives of these lengths:")
    expected = {"fragment": "met", "frechet": "not met", "helix": "not met", "strand": "met"}
    assert {name: verdict_of(lines, name) for name in expected} == expected
    del figures["frechet"]
    lines, _ = said(table, column(table, "teacher", figures))
    assert verdict_of(lines, "frechet") == "not met" and "not measured" in "".join(lines)


def test_a_student_stands_beside_its_own_teacher_or_says_that_it_does_not(table):
    teachers = [column(table, "teacher", TEACHER, hash=name) for name in "ab"]
    own = column(table, "student", REACHED, hash="s", teacher="b")
    stray = column(table, "student", REACHED, hash="x", teacher="c")
    lines, _ = said(table, *teachers, own, stray)
    assert "student s beside teacher b:" in lines
    assert "student x beside teacher a, which is not the teacher it learned from:" in lines
    lines, _ = said(table, own)
    assert lines == ["student s: no teacher was named that it could be judged beside"]


def test_figures_a_teacher_lacks_leave_the_verdict_open(table):
    figures = {k: v for k, v in TEACHER.items() if k != "folds"}
    lines, _ = said(
        table, column(table, "teacher", figures, hash="t"),
        column(table, "student", REACHED, teacher="t"),
    )
    assert verdict_of(lines[:17], "folds") == "unknown"


def test_folds_are_compared_over_equally_many_chains(table):
    rng = np.random.default_rng(1)
    various = [ideal.bundle(n, helices) for n in (60, 64, 68, 72) for helices in (3, 4)]
    alike = [ideal.noised(various[0], 0.03, rng) for _ in range(4)]
    columns = []
    for points in (various, alike):
        chains = Chains.of(points)
        report = evaluate(chains, resamples=20).to_dict()
        drawn = table.Drawn(chains, 8, 1.0, f"{len(points)}")
        columns.append(table.Column("some", report, drawn))
    before = [c.figure("folds")["n"] for c in columns]
    args = SimpleNamespace(seed=0)
    after = table.equal_folds(columns, table.Store(None), args)
    assert before == [8, 4] and [c.figure("folds")["n"] for c in after] == [4, 4]
    assert after[1].value("folds") == 0.25
    assert columns[0].figure("folds")["n"] == 8  # the table itself shows all


def test_a_store_does_not_measure_twice_and_survives_a_cut_line(table, tmp_path):
    file = tmp_path / "deep" / "cache.jsonl"
    asked = []

    def make():
        asked.append(1)
        return {"mean": 2.5}

    assert table.Store(file).get(("set", 1), make) == {"mean": 2.5}
    with open(file, "a") as stream:
        stream.write('["set | 2", {"me')
    again = table.Store(file)
    assert again.get(("set", 1), make) == {"mean": 2.5} and len(asked) == 1
    again.get(("set", 2), make)
    assert len(asked) == 2
    assert set(table.Store(file).known) == {"set | 1", "set | 2"}


def test_sets_come_back_from_the_cache_as_they_were_drawn(table, tmp_path, monkeypatch):
    points = [ideal.helix(40), np.full((44, 3), np.nan), ideal.hairpin(40)]
    made = Chains.of(points)
    calls = []

    def draw(lengths, **settings):
        calls.append(settings)
        return SimpleNamespace(arrays=made.arrays, provenance={"network_calls": 7})

    model = SimpleNamespace(
        hash="abc", role="student", device=SimpleNamespace(type="cpu"), sample=draw
    )
    settings = {"steps": 7, "gamma": 0.5}
    first = table.drawn(model, [40, 44], 3, table.Store(tmp_path / "c"), **settings)
    assert len(calls) == 2  # one that pays for imports
    again = table.drawn(model, [40, 44], 3, table.Store(tmp_path / "c"), **settings)
    assert len(calls) == 2 and again.seconds == first.seconds and again.calls == 7
    for one in (first, again):
        for got, expected in zip(one.chains.arrays(), made.arrays(), strict=True):
            np.testing.assert_array_equal(got, expected)
    other = {"gamma": 0.6}, {"steps": 8}, {"seed": 1}
    store = table.Store(tmp_path / "c")
    for change in other:
        table.drawn(model, [40, 44], 3, store, **(settings | change))
    assert len(calls) == 2 + 2 * len(other)
    table.drawn(model, [40, 44], 3, table.Store(None), **settings)
    assert calls[-1]["first"] == 0 and calls[-1]["gamma"] == 0.5


def test_the_table_shows_all_columns_and_goes_on_from_its_cache(
    table, folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(table, "PIECE", {"cpu": 1})  # three chains in two pieces
    words = ["--data", str(folder), "--model", str(folder / "teacher"), str(folder / "sid"),
             "--n", "3", "--lengths", "40", "44", "--gammas", "0.45", "--teacher-steps", "4",
             "--device", "cpu", "--cache", str(tmp_path / "c.jsonl")]  # fmt: skip
    table.main([*words, "--json", str(tmp_path / "1.json")])
    printed = capsys.readouterr().out
    assert "teacher (teacher)" in printed and "held-out natives" in printed
    assert "sid (student) beside teacher (teacher):" in printed
    calls = next(line for line in printed.splitlines() if line.startswith("network calls"))
    assert calls.split()[-2:] == ["4", "2"]
    first = json.loads((tmp_path / "1.json").read_text())
    ratio = next(line for line in first["verdicts"] if "fewer network calls" in line)
    assert ratio.split() == ["not", "met", "fewer", "network", "calls", "2.000", ">=", "25.000"]
    student = first["columns"][1]
    model = protein.load(folder / "sid", "cpu")
    drawn = model.sample([40, 44, 40], gamma=0.45, confidence=False)
    expected = evaluate(drawn, backbones=protein.full_backbones).to_dict()["figures"]
    for name in ("bonds", "fragment", "frechet", "ramachandran"):
        assert student["report"]["figures"][name]["value"] == expected[name]["value"]
    assert student["calls"] == 2 and student["weights"] == model.hash

    monkeypatch.setattr(protein.Model, "sample", lambda *_, **__: pytest.fail("drawn again"))
    monkeypatch.setattr(table.protein, "evaluate", lambda *_, **__: pytest.fail("measured again"))
    table.main([*words, "--json", str(tmp_path / "2.json")])
    assert json.loads((tmp_path / "2.json").read_text()) == first


def test_the_curves_are_of_every_model_and_go_on_from_their_cache(
    steps, folder, tmp_path, capsys, monkeypatch
):
    from PIL import Image

    words = ["--model", *(str(folder / name) for name in ("teacher", "sid", "ctm")), "--n", "3",
             "--lengths", "40", "44", "90", "--steps", "1", "--teacher-steps", "3", "--device",
             "cpu", "--data", str(folder), "--cache", str(tmp_path / "c.jsonl")]  # fmt: skip
    steps.main([*words, "--out", str(tmp_path / "a.png"), "--json", str(tmp_path / "1.json")])
    printed = capsys.readouterr().out
    cells = json.loads((tmp_path / "1.json").read_text())
    assert [(c["label"], c["calls"], c["taught"]) for c in cells] == [
        ("teacher, ODE", 3, False), ("teacher, SDE", 3, False), ("SiD", 1, False),
        ("SiD", 2, True), ("CTM", 1, False), ("CTM", 2, True),
    ]  # fmt: skip
    for one in cells:
        value = one["report"]["figures"]["bonds"]["value"]
        assert f"{value:.3f}" in printed and one["seconds"] > 0
        assert one["report"]["requested"] == 3
    assert "3 chains of 40, 44 residues" in printed and "natives [band of n]" in printed
    assert "held-out natives" in printed and "wrote" in printed
    assert Image.open(tmp_path / "a.png").size == (1200, 700)

    lines = (tmp_path / "c.jsonl").read_text().splitlines()
    (tmp_path / "c.jsonl").write_text("\n".join(lines[:-4]) + "\n" + lines[-4][:50])
    again = []
    draw = protein.Model.sample
    monkeypatch.setattr(
        protein.Model, "sample", lambda *a, **k: again.append(1) or draw(*a, **k)
    )
    steps.main([*words, "--out", str(tmp_path / "b.png"), "--json", str(tmp_path / "2.json")])
    assert len(again) <= 4  # two cells that were cut off, each with one call to start
    second = json.loads((tmp_path / "2.json").read_text())
    assert [c["report"]["figures"] for c in second] == [c["report"]["figures"] for c in cells]


def test_the_best_noise_scale_answers_for_a_cell(steps, folder, tmp_path):
    args = SimpleNamespace(n=3, seed=0, gamma=[0.2, 0.9], steps=[2], teacher_steps=[2])
    store = steps.Store(None)
    (one,) = steps.curves_of(protein.load(folder / "sid", "cpu"), args)
    best = steps.cell(one, 2, [40], store, args)
    alone = {
        gamma: steps.cell(replace(one, gammas=(gamma,)), 2, [40], store, args)
        for gamma in args.gamma
    }
    distances = {gamma: steps.frechet(found["report"]) for gamma, found in alone.items()}
    assert best["gamma"] == min(distances, key=distances.get)
    assert distances[0.2] != distances[0.9]


def test_models_without_a_shared_length_are_refused_and_equal_methods_told_apart(steps, folder):
    with pytest.raises(SystemExit, match="teacher 40-44"):
        steps.main(["--model", str(folder / "teacher"), "--lengths", "50", "--device", "cpu",
                    "--cache", str(folder / "none.jsonl")])  # fmt: skip
    student = protein.load(folder / "sid", "cpu")
    curve = steps.Curve("SiD", student, "sde", (0.45,), (1,))
    assert [c.label for c in steps.named_apart([curve, curve])] == ["SiD, sid"] * 2
    assert steps.named_apart([curve])[0].label == "SiD"


def test_a_cell_in_which_nothing_is_finite_leaves_gaps_and_no_error(steps, tmp_path):
    bad = evaluate(Chains.of([np.full((20, 3), np.nan)] * 2), resamples=10).to_dict()
    good = evaluate([ideal.bundle(60), ideal.bundle(64)], resamples=10).to_dict()
    cells = [
        {"label": "SiD", "calls": k, "taught": k == 1, "gamma": 0.4, "seconds": 0.1, "report": r}
        for k, r in ((1, bad), (2, good))
    ]
    native = steps.beside(cells)
    assert set(native) == set(steps.PANELS)
    for value, low, high in native.values():
        assert low <= value <= high and math.isfinite(value)
    steps.picture(cells, "title", tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000
    assert " - " in steps.row(cells[0])


def test_models_are_listed_in_words(folder, capsys, monkeypatch):
    assert models.TEACHER_CALLS == sample.STEPS
    found = {name: folder / name for name in ("teacher", "sid", "ctm")}
    monkeypatch.setattr(models, "shipped", lambda: found)
    models.models(None)
    printed = capsys.readouterr().out
    for words in (
        "teacher  (protein teacher, 40-44 residues, 400 network calls a chain, ",
        "sid  (protein student by SiD, 40-44 residues, 2 network calls a chain, ",
        "ctm  (protein flow map by CTM, 40-44 residues, 2 network calls a chain, ",
    ):
        assert words in printed
    assert models.described({"kind": "graphgen"}) == "graphgen"


def test_the_class_that_came_is_told_beside_the_one_that_was_asked_for(
    folder, capsys, monkeypatch, pytestconfig
):
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
    labels = importlib.import_module("protein_labels")
    assert [labels.class_of(x) for x in (ideal.helix(40), ideal.hairpin(40))] == [0, 1]
    given = ["protein_labels", "--model", str(folder / "sid"), "--n", "4", "--lengths", "16"]
    monkeypatch.setattr("sys.argv", [*given, "--steps", "2"])
    labels.main()
    rows = capsys.readouterr().out.splitlines()[-5:]
    assert [row.split()[0] for row in rows] == ["none", "alpha", "beta", "mixed", "few"]
    for row in rows:
        shares = [float(word) for word in row.replace("]", "").split()[1::4]]
        assert sum(shares) == pytest.approx(100.0, abs=0.3)


def test_motifs_are_held_and_their_joints_are_told(folder, capsys, monkeypatch, pytestconfig):
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
    motifs = importlib.import_module("protein_motifs")
    monkeypatch.setattr("sys.argv", [
        "protein_motifs", "--data", str(folder), "--model", str(folder / "teacher"), "--motifs",
        "2", "--each", "2", "--length", "42", "--steps", "2",
    ])  # fmt: skip
    motifs.main()
    printed = capsys.readouterr().out
    off = float(printed.split("off by at most ")[1].split()[0])
    assert off < 0.1
    assert "joints" in printed and printed.count("2 of 2 chains") == 2
    assert printed.splitlines()[-1].startswith("freely")


def test_bonds_count_where_a_motif_is_joined(monkeypatch, pytestconfig):
    """A helix whose residues 0-3 are the motif, pulled away from the rest."""
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
    motifs = importlib.import_module("protein_motifs")
    ca = ideal.helix(12).copy()
    ca[:4] -= 2.0
    chains = Chains.of([ca])
    held = chains.mask.clone()
    held[:, 4:] = False

    class Drawn:
        finite = chains.mask[:, 0]

        def __getattr__(self, name):
            return held if name == "held" else getattr(chains, name)

    found = motifs.measure(Drawn(), ca[:4] + [0.0, 0.3, 0.0])
    assert found["joints"] == 0 and found["motif bonds"] == 1 and found["free bonds"] == 1
    assert found["off"] == pytest.approx(0.3, abs=1e-5)


def test_less_noise_and_powers_are_told_side_by_side(
    folder, capsys, monkeypatch, pytestconfig, tmp_path
):
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
    annealing = importlib.import_module("protein_annealing")
    monkeypatch.setattr("sys.argv", [
        "protein_annealing", "--model", str(folder / "teacher"), "--n", "4", "--length", "42",
        "--steps", "2", "--gammas", "0.7", "--powers", "1.1", "--sets", "2", "--cache",
        str(tmp_path / "cache.jsonl"),
    ])  # fmt: skip
    annealing.main()
    first = capsys.readouterr().out
    less, power = first.splitlines()[-2:]
    assert less.startswith("gamma 0.7") and less.split()[-3:-1] == ["4", "4"]
    distinct, ancestors = (float(word) for word in power.split()[-3:-1])
    assert power.startswith("power 1.1") and 1 <= ancestors <= distinct <= 4
    annealing.main()
    assert capsys.readouterr().out == first
