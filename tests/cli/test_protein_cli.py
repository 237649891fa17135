"""The commands of protein models: examples that work, one clear line for mistakes, whole files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from driftworks import cli, protein
from driftworks.commands import proteins, sample
from driftworks.errors import UserError
from driftworks.protein import files, ideal, picture
from driftworks.protein.chains import Chains
from driftworks.protein.train import TrainConfig, train

TINY = {"width": 32, "pair_width": 16, "heads": 4, "layers": 2, "rounds": 2}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ideal chains as files and as an archive, a teacher of two steps, a student of one."""
    here = tmp_path_factory.mktemp("chains")
    rng = np.random.default_rng(0)
    points = [ideal.noised(ideal.bundle(n), 0.1, rng) for n in range(40, 52)]
    files.write(Chains.of(points), here / "structures", "cif")
    files.write(Chains.of(points), here, "npz")
    table = files.read(here / "designs.npz")
    config = TrainConfig(net=TINY, steps=2, batch=4, lengths=(40, 44), self_condition=0.0)
    train(config, table, here / "teacher", progress=False)
    words = ["distill", "protein", "--teacher", str(here / "teacher"), "--steps", "2", "-q"]
    words += ["--updates", "1", "--batch-size", "2", "--out", str(here / "student")]
    assert cli.main(words) == 0
    return here


def draw(folder: Path, out: Path, *options: str, model: str = "student") -> int:
    words = ["sample", "protein", "--model", str(folder / model), "--out", str(out), "-q"]
    return cli.main([*words, *options])


MISTAKES = {
    "no length": ("sample protein --model {student}", "--length"),
    "a length that is no number": ("sample protein --length long --model {student}", "'long'"),
    "an empty range of lengths": ("sample protein --length 60..40 --model {student}", "60..40"),
    "no residues": ("sample protein --length 0 --model {student} -q", "got 0"),
    "one residue": ("sample protein --length 1 --model {student} -q", "got 1"),
    "no chains at all": ("sample protein --length 40 --n 0 --model {student}", "--n"),
    "an unknown model": ("sample protein --length 40 --model nonesuch", "nonesuch"),
    "a model that is a broken folder": ("sample protein --length 40 --model {empty}", "empty"),
    "an unknown format": ("sample protein --length 40 --model {student} --format gro", "gro"),
    "an unknown residue": ("sample protein --length 40 --model {student} --residue TRP", "TRP"),
    "an output below a file": ("sample protein --length 40 --out {file}/x", "is a file"),
    "a picture in another form": ("sample protein --length 40 --picture a.gif", ".gif"),
    "an unknown label": (
        "sample protein --length 40 --model {student} --label gamma -q", "'gamma'"
    ),
    "a negative noise scale": ("sample protein --length 40 --gamma -1", "--gamma"),
    "an unknown solver": (
        "sample protein --length 40 --model {teacher} --solver heun --steps 2 -q", "heun"
    ),
    "guidance without a label": (
        "sample protein --length 40 --model {teacher} --guidance 2 -q", "label"
    ),
    "a motif without contigs": ("sample protein --motif {pdb} --model {student}", "--contigs"),
    "contigs without a motif": ("sample protein --contigs 5/A3-9/5 --model {student}", "--motif"),
    "a time without a start": ("sample protein --time 0.5 --length 40", "--start"),
    "a start with a length": ("sample protein --start {npz} --length 40", "--length"),
    "a start with a motif": (
        "sample protein --start {npz} --motif {pdb} --contigs 5/A3-9/5", "--motif"
    ),
    "a start with a power": ("sample protein --start {npz} --power 2", "--power"),
    "a time outside the way": ("sample protein --start {npz} --time 1.2 --model {student}", "1.2"),
    "a start that is not there": ("sample protein --start no.pdb --model {student}", "no.pdb"),
    "a start that is empty": ("sample protein --start {broken}/empty.pdb", "empty file"),
    "a power with a motif": (
        "sample protein --power 2 --motif {pdb} --contigs 5/A3-9/5", "--motif"
    ),
    "a power with a noise scale": (
        "sample protein --power 2 --length 40 --gamma 0.4", "--gamma"
    ),
    "a power with a first chain": ("sample protein --power 2 --length 40 --first 3", "--first"),
    "a power of several lengths": ("sample protein --power 2 --length 40..44", "one length"),
    "a power of a student": ("sample protein --power 2 --length 40 --model {student}", "teachers"),
    "a power of nothing": ("sample protein --power 0 --length 40 --model {teacher}", "power"),
    "contigs that are wrong": (
        "sample protein --motif {pdb} --contigs 5/A3:9/5 --model {student}", "'A3:9'"
    ),
    "a residue the file lacks": (
        "sample protein --motif {pdb} --contigs 5/A3-99/5 --model {student}", "A41"
    ),
    "a motif file that is empty": (
        "sample protein --motif {broken}/empty.pdb --contigs 5/A3-9/5", "empty file"
    ),
    "a motif longer than the design": (
        "sample protein --motif {pdb} --contigs 5/A3-9/5 --length 6", "7 residues"
    ),
    "a motif in a list of lengths": (
        "sample protein --motif {pdb} --contigs 5/A3-9/5 --length 40,44", "40,44"
    ),
    "no data": ("train protein --out {here}/run", "--data"),
    "data that are not there": ("train protein --data no.npz --out {here}/run", "no.npz"),
    "a folder of nothing": ("train protein --data {empty} --out {here}/run -q", "no usable"),
    "a folder of broken files": ("train protein --data {broken} --out {here}/run -q", "empty file"),
    "a damaged archive": ("train protein --data {torn} --out {here}/run", "torn.npz"),
    "an unknown preset": (
        "train protein --data {npz} --preset huge --out {here}/run", "huge"
    ),
    "two lengths of a run": (
        "train protein --data {npz} --minutes 3 --steps 3 --out {here}/run", "not both"
    ),
    "a negative length of a run": (
        "train protein --data {npz} --minutes -3 --out {here}/run", "minutes"
    ),
    "an unknown device": ("train protein --data {npz} --device abacus --out {here}/run", "abacus"),
    "no teacher": ("distill protein --out {here}/run", "--teacher"),
    "an unknown teacher": ("distill protein --teacher nobody --out {here}/run", "nobody"),
    "a student as teacher": (
        "distill protein --teacher {student} --updates 1 --out {here}/run", "only a teacher"
    ),
    "an unknown method": (
        "distill protein --teacher {teacher} --method dmd --out {here}/run", "dmd"
    ),
    "nothing to evaluate": ("evaluate protein", "files_or_folder"),
    "a missing file": ("evaluate protein no.pdb", "no.pdb"),
    "a folder of no chains": ("evaluate protein {empty} -q", "no usable protein"),
    "an empty file": ("evaluate protein {broken}/empty.pdb -q", "empty file"),
    "a missing training set": ("evaluate protein {npz} --train no.npz", "no.npz"),
    "fewer requested than there": ("evaluate protein {npz} --requested 2", "requested = 2"),
    "figures in another form": ("evaluate protein {npz} --json a.txt", ".txt"),
    "a report in another form": ("evaluate protein {npz} --report a.pdf", ".pdf"),
}  # fmt: skip


@pytest.fixture
def places(tmp_path: Path, folder: Path) -> dict[str, Path]:
    """Files, folders and models to be wrong about."""
    here = tmp_path / "here"
    for name in ("empty", "broken"):
        (here / name).mkdir(parents=True)
    (here / "broken" / "empty.pdb").write_text("")
    (here / "file.txt").write_text("words\n")
    (here / "torn.npz").write_bytes(b"PK\x03\x04 no archive")
    named = {"here": "", "empty": "empty", "broken": "broken", "file": "file.txt",
             "torn": "torn.npz"}  # fmt: skip
    made = {"npz": "designs.npz", "teacher": "teacher", "student": "student",
            "pdb": "structures/chain0.cif"}  # fmt: skip
    return {k: here / v for k, v in named.items()} | {k: folder / v for k, v in made.items()}


@pytest.mark.parametrize(("line", "named"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_nothing(
    line: str,
    named: str,
    places: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capsys.readouterr()
    monkeypatch.chdir(places["here"])
    before = sorted(places["here"].rglob("*"))
    assert cli.main(line.format(**places).split()) == 2
    _, err = capsys.readouterr()
    errors = [text for text in err.splitlines() if not text.startswith("driftworks: warning: ")]
    assert len(errors) == 1 and errors[0].startswith("driftworks: "), err
    assert named.lower() in errors[0].lower()
    assert sorted(places["here"].rglob("*")) == before


def test_help_imports_nothing_heavy() -> None:
    heavy = ("biotite", "matplotlib", "mdtraj", "numpy", "scipy", "torch")
    verbs = ("train", "distill", "sample", "evaluate")
    lines = [["--help"], *([verb, "protein", "--help"] for verb in verbs)]
    code = (
        f"import sys; from driftworks.cli import main\nfor words in {lines!r}: main(words)\n"
        f"print('loaded:', sorted(set(sys.modules) & set({heavy!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_the_commands_know_the_formats_and_classes_of_the_library() -> None:
    from driftworks.commands import distill
    from driftworks.commands.evaluate import PICTURES
    from driftworks.protein.distill import DistillConfig

    assert sample.CHAIN_FORMATS == files.FORMATS
    assert sample.PICTURES == PICTURES == picture.SUFFIXES
    for method in distill.METHODS:
        assert DistillConfig(method=method, steps=1).method == method


def test_chains_are_drawn_written_recorded_and_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sheet = tmp_path / "designs", tmp_path / "sheet.png"
    options = ("--length", "40,44", "--n", "3", "--steps", "2", "--seed", "5", "--format", "cif")
    assert draw(folder, out, *options, "--picture", str(sheet)) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 chains, 2 network calls each" in printed and "model student" in printed
    assert sheet.read_bytes().startswith(b"\x89PNG")
    record = json.loads((out / "student-5-0.json").read_text())
    assert record["made"]["seed"] == 5 and record["made"]["weights"]
    assert [row["residues"] for row in record["designs"]] == [40, 44, 40]
    expected = protein.load(folder / "student").sample([40, 44, 40], steps=2, seed=5)
    for row, one in zip(record["designs"], expected.arrays(), strict=True):
        stored = files.read(out / row["file"])
        assert np.abs(stored.ca(0) - one).max() < 6e-4

    figures, page = tmp_path / "figures.json", tmp_path / "report.html"
    words = ["evaluate", "protein", str(out), "--train", str(folder / "designs.npz"), "-q",
             "--bootstrap", "10", "--folds", "2", "--searched", "1", "--json", str(figures),
             "--report", str(page)]  # fmt: skip
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "3 backbones requested" in printed and "training set: 12 chains" in printed
    found = json.loads(figures.read_text())
    assert found["figures"]["nearest"]["n"] == 1 and "ramachandran" in found["figures"]
    assert "3 backbones requested" in page.read_text()


def test_a_motif_is_held_in_the_files_and_named_in_the_record(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder / "structures" / "chain0.cif"
    options = ("--motif", str(source), "--contigs", "5-20/A12-25/15-30", "--length", "40..44")
    assert draw(folder, tmp_path, *options, "--n", "3", "--steps", "2", "--seed", "4") == 0
    printed = capsys.readouterr().out
    assert "each holds 14 residues of chain0.cif" in printed and "3 of 3 chains" in printed
    record = json.loads((tmp_path / "student-4-0.json").read_text())
    told = record["made"]["motif"]
    assert told["residues"].split() == [f"A{k}" for k in range(12, 26)]
    native = files.read(source).ca(0)[11:25]
    for row in record["designs"]:
        before, held, behind = told["designs"][row["id"]].split("/")
        assert held == "A12-25" and int(before) + 14 + int(behind) == row["residues"]
        assert 40 <= row["residues"] <= 44
        found = files.read(tmp_path / row["file"]).ca(0)[int(before) : int(before) + 14]
        assert np.abs(found - native).max() < 2e-3


def test_chains_of_a_folder_are_varied_and_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "from").mkdir()
    for name in ("chain0", "chain3"):
        path = folder / "structures" / f"{name}.cif"
        (tmp_path / "from" / path.name).write_bytes(path.read_bytes())
    options = ("--start", str(tmp_path / "from"), "--time", "0.95", "--n", "2")
    assert draw(folder, tmp_path / "near", *options) == 0
    assert "each from one of 2 chains" in (printed := capsys.readouterr().out)
    assert "4 of 4 chains, 1 network calls each" in printed
    record = json.loads((tmp_path / "near" / "student-0-0.json").read_text())
    starts = list(record["made"]["starts"].values())
    assert [name.split("_")[0] for name in starts] == ["chain0", "chain0", "chain3", "chain3"]
    assert [row["residues"] for row in record["designs"]] == [40, 40, 43, 43]


def test_particles_say_that_they_are_not_independent(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--length", "40", "--power", "1.05", "--n", "6", "--steps", "12")
    assert draw(folder, tmp_path, *options, "--format", "npz", model="teacher") == 0
    assert "not independent: effective number" in capsys.readouterr().out
    made = json.loads((tmp_path / "teacher-0-0.json").read_text())["made"]
    assert made["independent"] is False and made["power"] == 1.05
    assert set(made["particles"]) == {"effective", "ancestors", "distinct", "resamplings"}


def test_chains_that_did_not_come_count_as_failed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "protein", str(folder / "designs.npz"), "--requested", "16", "-q"]
    assert cli.main([*words, "--bootstrap", "5", "--folds", "0"]) == 0
    assert "not delivered 4" in capsys.readouterr().out


def test_files_that_are_there_are_never_replaced(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--length", "40", "--n", "2", "--steps", "1")
    assert draw(folder, tmp_path, *options) == 0
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert draw(folder, tmp_path, *options) == 2
    assert "there already" in capsys.readouterr().err
    assert draw(folder, tmp_path, *options, "--first", "1") == 2  # chain 1 again
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert draw(folder, tmp_path, *options, "--first", "2") == 0
    assert len(list(tmp_path.glob("*.pdb"))) == 4 and len(list(tmp_path.glob("*.json"))) == 2


def test_chains_of_a_seed_can_be_drawn_in_pieces(folder: Path, tmp_path: Path) -> None:
    options = ("--length", "40..44", "--steps", "1", "--format", "npz")
    assert draw(folder, tmp_path / "all", *options, "--n", "5") == 0
    assert draw(folder, tmp_path / "end", *options, "--n", "2", "--first", "3") == 0
    whole, end = (files.read(tmp_path / name) for name in ("all", "end"))
    for k in (0, 1):
        np.testing.assert_array_equal(whole.bb(3 + k), end.bb(k))


def test_lengths_depend_on_the_number_of_a_chain_alone_and_fill_the_range() -> None:
    ranged = proteins.parse_lengths("40..49")
    many = proteins.lengths_of(ranged, 0, 1000)
    assert proteins.lengths_of(ranged, 300, 50) == many[300:350]
    counts = np.bincount(many)[40:]
    assert len(counts) == 10 and counts.min() > 95 and counts.max() < 105
    assert proteins.lengths_of(proteins.parse_lengths("64, 96"), 1, 3) == [96, 64, 96]
    assert proteins.lengths_of(proteins.parse_lengths("7..7"), 0, 2) == [7, 7]
    for wrong in ("", "4..", "-3", "4;5", "4.5"):
        with pytest.raises(UserError, match="length"):
            proteins.parse_lengths(wrong)


def test_a_length_the_model_was_not_trained_on_is_a_warning(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw(folder, tmp_path, "--length", "60", "--n", "1", "--steps", "1") == 0
    err = capsys.readouterr().err
    assert err.startswith("driftworks: warning: lengths 60-60 reach outside 40-44")


def test_a_folder_of_structures_is_trained_on_and_what_is_left_out_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    from driftworks.protein import train as recipes

    small = {"net": TINY, "batch": 2, "lengths": (40, 44), "self_condition": 0.0}
    monkeypatch.setitem(recipes.PRESETS, "small", small)
    for path in (folder / "structures").glob("*.cif"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "empty.pdb").write_text("")
    words = ["train", "protein", "--data", str(tmp_path), "--lengths", "40..42", "--steps", "1"]
    assert cli.main([*words, "--out", str(tmp_path / "run"), "-q"]) == 0
    printed = capsys.readouterr().out
    assert f"12 chains of {tmp_path}; left out: 1 empty file" in printed
    model = protein.load(tmp_path / "run")
    assert model.lengths == (40, 42)
    assert cli.main([*words, "--out", str(tmp_path / "run"), "-q"]) == 2  # holds a run
    words[-1] = "2"
    assert cli.main([*words, "--out", str(tmp_path / "run"), "-q", "--resume"]) == 0
    assert protein.load(tmp_path / "run").meta["training"]["steps"] == 2


def test_a_flow_map_is_distilled_and_asked(folder: Path, tmp_path: Path) -> None:
    words = ["distill", "protein", "--teacher", str(folder / "teacher"), "--method", "ctm", "-q"]
    words += ["--updates", "1", "--batch-size", "2", "--out", str(tmp_path / "map")]
    assert cli.main(words) == 0
    words = ["sample", "protein", "--model", str(tmp_path / "map"), "--length", "40", "--n", "1"]
    assert cli.main([*words, "--steps", "2", "-q", "--out", str(tmp_path / "drawn")]) == 0
    assert len(list((tmp_path / "drawn").glob("*.pdb"))) == 1


def test_chains_without_all_atoms_are_evaluated_with_those_that_are_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import biotite.structure.io.pdb as pdb

    whole = files.to_atom_array([ideal.bundle(60), ideal.bundle(64)])
    for k, atoms in enumerate(whole):
        file = pdb.PDBFile()
        file.set_structure(atoms[atoms.atom_name == "CA"])
        file.write(str(tmp_path / f"{k}.pdb"))
    words = ["evaluate", "protein", str(tmp_path / "0.pdb"), str(tmp_path / "1.pdb"), "-q"]
    assert cli.main([*words, "--bootstrap", "5", "--folds", "0"]) == 0
    printed = capsys.readouterr().out
    assert "2 backbones requested" in printed and "ramachandran" in printed
