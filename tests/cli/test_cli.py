"""The command line: examples that work, one clear line for every mistake, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement

from driftworks import cli
from driftworks.commands import arguments, doctor, models
from driftworks.errors import UserError

HEAVY = (
    "biotite", "e3nn", "matplotlib", "mdtraj", "numpy", "pandas", "pyarrow", "pyscf", "rdkit",
    "scipy", "sqlalchemy", "tblite", "torch", "torch_geometric",
)  # fmt: skip

ETHANOL_AND_WATER = "CCO ethanol\nO water\n"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRIFTWORKS_CACHE", str(tmp_path / "cache"))


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, (*path, name))


ALL = dict(_commands(typer.main.get_command(cli.app)))
LEAVES = {path: command for path, command in ALL.items() if not hasattr(command, "commands")}


def _examples(text: str) -> list[list[str]]:
    joined = re.sub(r"\\\n\s*", " ", text)
    return [shlex.split(line) for line in joined.splitlines() if line.strip()[:11] == "driftworks "]


def _parse(words: list[str]) -> None:
    """Let the parser read a command line without running it."""
    command, path = typer.main.get_command(cli.app), []
    assert words.pop(0) == "driftworks"
    while hasattr(command, "commands"):
        path.append(words.pop(0))
        command = command.commands[path[-1]]
    command.make_context(" ".join(path), words)


def test_every_command_of_the_plan_is_there() -> None:
    assert {" ".join(path) for path in LEAVES} == {
        "campaign run", "campaign resume", "campaign report", "campaign status", "campaign check",
        "sample molgen", "evaluate molgen", "train molgen", "train regressor", "models", "doctor",
        "data qm9", "data ccd", "data read",
        "sample graphgen", "evaluate graphgen", "train graphgen",
        "match", "train shapes",
        "sample protein", "evaluate protein", "train protein", "distill protein",
    }  # fmt: skip


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_help_shows_an_example_that_the_parser_accepts(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    examples = _examples(ALL[path].help or "")
    assert examples, "no example"
    for words in examples:
        _parse(words)
    assert any(tuple(words[1 : 1 + len(path)]) == path for words in _examples(ALL[path].help or ""))
    assert cli.main([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Example:" in shown and "Usage: driftworks" in shown


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_option_says_what_it_is_for(path: tuple[str, ...]) -> None:
    for parameter in LEAVES[path].params:
        assert parameter.help, f"{parameter.name} has no help"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from driftworks.cli import main; main(['sample', 'molgen', '--help'])\n"
        f"print('loaded:', sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"driftworks \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_a_group_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for path, command in ALL.items():
        if path not in LEAVES:
            assert cli.main(list(path)) == 0
            assert all(name in capsys.readouterr().out for name in list(command.commands)[:1])


MISTAKES = {
    "an unknown command": ("sampel molgen", "sampel"),
    "an unknown option": ("sample molgen --many 3", "--many"),
    "an option without its value": ("sample molgen --n", "--n"),
    "no molecules at all": ("sample molgen --n 0", "--n"),
    "a negative seed": ("sample molgen --seed -1", "--seed"),
    "a missing argument": ("evaluate molgen", "file"),
    "a target without a value": ("sample molgen --target mu", "'mu'"),
    "a target that is no number": ("sample molgen --target mu=much --model {model}", "'much'"),
    "a target that is not finite": ("sample molgen --target mu=nan --model {model}", "'nan'"),
    "an empty range": ("sample molgen --target mu=4..2 --model {model}", "4..2"),
    "a target in another unit": ("sample molgen --target mu=4parsec --model {model}", "parsec"),
    "atoms that are no number": ("sample molgen --atoms many", "'many'"),
    "an empty range of atoms": ("sample molgen --atoms 9..5", "9..5"),
    "a guidance that is no weight": ("sample molgen --guidance -1 --model {model}", "-1"),
    "an unknown device": ("sample molgen --device abacus --model {model}", "abacus"),
    "the same target twice": ("sample molgen --target mu=4 --target mu=5", "twice"),
    "an unknown property": ("sample molgen --target weight=4 --model {model}", "weight"),
    "an unknown model": ("sample molgen --model nonesuch", "nonesuch"),
    "a model that is a broken folder": ("sample molgen --model {empty}", "empty"),
    "a form that cannot be written": ("sample molgen --out molecules.png", ".png"),
    "a folder as output": ("sample molgen --out {here}/folder.sdf", "is a folder"),
    "an output below a file": ("sample molgen --out {file}/molecules.sdf", "is a file"),
    "a missing file": ("evaluate molgen nonesuch.sdf", "nonesuch.sdf"),
    "a folder for a file": ("evaluate molgen {empty}", "is a folder"),
    "a file of another kind": ("evaluate molgen {file}", "file.txt"),
    "a damaged SDF": ("evaluate molgen {broken}", "broken.sdf"),
    "an unknown oracle": ("evaluate molgen {molecules} --oracle tarot", "tarot"),
    "a missing reference": ("evaluate molgen {molecules} --reference no.npz", "no.npz"),
    "an unknown data set": ("train molgen --data nonesuch --out {here}/run", "nonesuch"),
    "an unknown preset": ("train molgen --preset huge --out {here}/run", "huge"),
    "a negative length": ("train molgen --minutes -3 --out {here}/run", "minutes"),
    "two lengths": ("train molgen --minutes 3 --steps 3 --out {here}/run", "not both"),
    "an output folder below a file": ("train molgen --out {file}/run", "is a file"),
    "an unknown card": ("models nonesuch", "nonesuch"),
    "missing data": ("data read nonesuch.sdf", "nonesuch.sdf"),
    "a missing QM9": ("data qm9 --qm9 nonesuch.npz", "nonesuch.npz"),
    "data that are not QM9": ("data qm9 --qm9 {npz}", "qm9.npz"),
    "a table in another form": ("data ccd --limit 1 --out {here}/table.csv", ".csv"),
    "a property without a unit": ("data read {smi} --property gap= --property mu=D", "gap="),
    "an unknown unit": ("data read {csv} --property gap=parsec", "parsec"),
    "a missing campaign": ("campaign run nonesuch.toml", "nonesuch.toml"),
    "a campaign that is no TOML": ("campaign run {file} --out {here}/run", "file.txt"),
    "a misspelt campaign": ("campaign check {typo}", "targetz"),
    "a campaign out of bounds": ("campaign run {bounds} --out {here}/run", "diversity"),
    "a campaign's folder below a file": ("campaign run {good} --out {file}/run", "is a file"),
    "a folder without a campaign": ("campaign resume {empty}", "empty"),
    "a status of nothing": ("campaign status {here}/nonesuch", "nonesuch"),
    "a report of nothing": ("campaign report {here}/nonesuch", "nonesuch"),
}


@pytest.fixture(scope="session")
def two_molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDF that can be evaluated."""
    from driftworks.molgen.library import Library

    folder = tmp_path_factory.mktemp("two")
    (folder / "molecules.smi").write_text(ETHANOL_AND_WATER)
    return Library.read(folder / "molecules.smi").write(folder / "molecules.sdf")


@pytest.fixture
def places(tmp_path: Path, two_molecules: Path) -> dict[str, Path]:
    """Files and folders to be wrong about."""
    here = tmp_path / "here"
    here.mkdir()
    places = {"here": here, "empty": here / "empty", "file": here / "file.txt"}
    places["empty"].mkdir()
    (here / "folder.sdf").mkdir()
    for name, text in {
        "file.txt": "not = [a table\n",
        "broken.sdf": "one\n\n\n  9 99  0\n$$$$\n",
        "typo.toml": 'targetz = { mu = 4.0 }\nn = 10\nmodel = "qm9"\n',
        "bounds.toml": "[selection]\ndiversity = 3.0\n",
        "good.toml": "n = 10\n[targets]\nmu = 4.0\n",
        "qm9.npz": "no archive",
        "molecules.smi": ETHANOL_AND_WATER,
        "molecules.csv": "smiles,gap\nCCO,1.0\nO,2.0\n",
    }.items():
        (here / name).write_text(text)
    for name in ("broken.sdf", "typo.toml", "bounds.toml", "good.toml"):
        places[name.split(".")[0]] = here / name
    places |= {suffix: here / f"molecules.{suffix}" for suffix in ("smi", "csv")}
    places["npz"] = here / "qm9.npz"
    places["molecules"] = two_molecules
    return places


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three training steps: it draws nonsense, in the right form."""
    folder = tmp_path_factory.mktemp("tiny")
    rows = ["smiles,mu,gap", *(f"{'C' * k}O,{1 + 0.1 * k},{7 - 0.1 * k}" for k in range(1, 7))]
    (folder / "alcohols.csv").write_text("\n".join(rows) + "\n")
    data = ["--data", str(folder / "alcohols.csv")]
    length = ["--steps", "3", "--batch-size", "4", "--quiet"]
    assert cli.main(["train", "molgen", *data, *length, "--out", str(folder / "model")]) == 0
    return folder / "model"


@pytest.mark.parametrize(("line", "named"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_nothing(
    line: str,
    named: str,
    places: dict[str, Path],
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "{model}" in line:
        places["model"] = request.getfixturevalue("tiny_model")
        capsys.readouterr()
    monkeypatch.chdir(places["here"])
    before = sorted(places["here"].rglob("*"))
    assert cli.main(line.format(**places).split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("driftworks: ") and err.count("\n") == 1, err
    assert named.lower() in err.lower()
    assert "Traceback" not in err and out == ""
    assert sorted(places["here"].rglob("*")) == before


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault() -> dict[str, Path]:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(models, "shipped", fault)
    with pytest.raises(ZeroDivisionError):
        cli.main(["models"])


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("two\n  lines"), 2, "driftworks: two lines\n"),
        (PermissionError(13, "Permission denied", "/x"), 2, "driftworks: /x: Permission denied\n"),
        (OSError(28, "No space left on device"), 2, "driftworks: No space left on device\n"),
        (
            ModuleNotFoundError("no", name="tblite"),
            2,
            "driftworks: this needs tblite, which is not installed: "
            "pip install 'driftworks[xtb]'\n",
        ),
        (MemoryError(), 2, "driftworks: out of memory: try a smaller --batch-size\n"),
        (KeyboardInterrupt(), 130, "driftworks: interrupted\n"),
    ],
)
def test_what_goes_wrong_outside_is_said_in_one_line(
    error: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> dict[str, Path]:
        raise error

    monkeypatch.setattr(models, "shipped", fail)
    assert cli.main(["models"]) == code
    assert capsys.readouterr().err == text


def test_a_warning_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn() -> dict[str, Path]:
        warnings.warn("mu = 40 is outside\nthe trained range", stacklevel=1)
        return {}

    monkeypatch.setattr(models, "shipped", warn)
    # pytest collects warnings by replacing the very hook that is under test
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["models"]) == 0
    expected = "driftworks: warning: mu = 40 is outside the trained range\n"
    assert capsys.readouterr().err == expected


def test_a_closed_pipe_is_no_error() -> None:
    code = "from driftworks.cli import main; import sys; sys.exit(main(['--help']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert done.stderr == ""


@pytest.mark.slow
def test_an_interrupted_training_says_so_and_can_be_resumed(tmp_path: Path) -> None:
    """Slow because it starts a training twice: a real signal, in a real process."""
    (tmp_path / "data.smi").write_text(ETHANOL_AND_WATER * 4)
    words = ["train", "molgen", "--data", "data.smi", "--out", "run", "--batch-size", "2"]
    command = [sys.executable, "-u", "-m", "driftworks", *words, "--quiet"]
    running = subprocess.Popen(
        [*command, "--minutes", "5"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert "molecules to train on" in running.stdout.readline()
    time.sleep(1.0)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, "driftworks: interrupted\n")
    done = subprocess.run(
        [*command, "--steps", "2", "--resume"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.json").is_file()


def test_targets_and_sizes_are_read_as_they_are_written() -> None:
    given = ["mu=4.0", " gap = 0.22 hartree", "alpha=max", "homo=-7..-6"]
    assert arguments.parse_targets(given) == {
        "mu": "4.0",
        "gap": "0.22 hartree",
        "alpha": "max",
        "homo": "-7..-6",
    }
    assert arguments.parse_sizes("18") == 18
    assert arguments.parse_sizes("15..20") == (15, 20)
    assert arguments.parse_sizes(None) is None


def test_molecules_are_drawn_the_same_whatever_the_batch_size_and_then_measured(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from driftworks.molgen.library import Library

    words = ["sample", "molgen", "--model", str(tiny_model), "--n", "6", "--seed", "3", "--quiet"]
    words += ["--steps", "5", "--target", "mu=1.3", "--guidance", "1.5"]
    for size in ("2", "6"):
        out = tmp_path / f"batch{size}.parquet"
        assert cli.main([*words, "--batch-size", size, "--out", str(out)]) == 0
        assert f"of 6 requested molecules written to {out}" in capsys.readouterr().out
    two, six = (Library.read(tmp_path / f"batch{size}.parquet") for size in (2, 6))
    assert two.requested == six.requested == 6
    assert (two.molecules.numbers == six.molecules.numbers).all()
    assert (two.molecules.positions - six.molecules.positions).abs().max() < 1e-3

    figures = tmp_path / "figures.json"
    file = str(tmp_path / "batch6.parquet")
    words = ["evaluate", "molgen", file, "--bootstrap", "20", "--out", str(figures), "--quiet"]
    assert cli.main(words) == 0
    assert "valid" in capsys.readouterr().out
    assert json.loads(figures.read_text())


def test_an_atom_count_is_obeyed(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from driftworks.molgen.library import Library

    out = tmp_path / "nine.parquet"
    words = ["sample", "molgen", "--model", str(tiny_model), "--n", "2", "--steps", "2", "-q"]
    assert cli.main([*words, "--atoms", "9", "--out", str(out)]) == 0
    assert Library.read(out).molecules.mask.sum(1).tolist() == [9, 9]
    assert cli.main([*words, "--atoms", "100000", "--out", str(out)]) == 2
    assert "100000" in capsys.readouterr().err


def test_data_are_read_stored_and_their_bad_records_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from driftworks.data import MoleculeTable

    (tmp_path / "mine.csv").write_text("smiles,gap,mu\nCCO,0.25,1.7\nC1CC,0.3,1\nO,0.26,1.8\n")
    words = ["data", "read", str(tmp_path / "mine.csv"), "--property", "gap=hartree", "--quiet"]
    assert cli.main([*words, "--out", str(tmp_path / "mine.npz")]) == 0
    out = capsys.readouterr().out
    assert "2 molecules" in out and "record 2" in out
    table = MoleculeTable.load(tmp_path / "mine.npz")
    assert table.units == {"gap": "eV"}
    assert table.property("gap").tolist() == pytest.approx([6.80284656, 7.07496036])


def test_models_lists_what_is_shipped_with_the_first_words_of_its_card(
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    card = "# qm9-tiny\n\nStrict validity 0.01\n[0.00, 0.02].\n\n## How\n\nThe rest.\n"
    folder = tmp_path / "qm9-tiny"
    folder.mkdir()
    for file in ("model.json", "model.safetensors"):
        (folder / file).write_bytes((tiny_model / file).read_bytes())
    (folder / "README.md").write_text(card)
    monkeypatch.setattr(models, "shipped", lambda: {"qm9-tiny": folder})
    assert cli.main(["models"]) == 0
    listed = capsys.readouterr().out
    assert "qm9-tiny  (molgen" in listed and "Strict validity 0.01 [0.00, 0.02]." in listed
    assert "The rest" not in listed
    assert cli.main(["models", "qm9-tiny"]) == 0
    assert capsys.readouterr().out == card


def test_every_shipped_model_has_a_card_that_begins_with_its_figures() -> None:
    for name, folder in models.shipped().items():
        card = (folder / "README.md").read_text()
        assert re.search(r"\d", models.summary(card)), f"{name}: no figure in the first paragraph"


def test_doctor_names_every_dependency_and_times_an_oracle(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (root / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + [
        line for name in extras if name not in ("all", "test") for line in extras[name]
    ]
    assert set(doctor.PACKAGES) == {Requirement(line).name for line in lines}
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^xtb +(works: dipole of water 2\.\d+ D in|.*not installed)", out, re.M)
    for label in ("python", "torch", "cores", "device", "free disk"):
        assert re.search(rf"^{label} +\S", out, re.M), label


def test_a_campaign_is_checked_run_shown_reported_and_continued(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model draws nonsense: the budget is spent, and every sample accounted for as lost."""
    file, folder = tmp_path / "nonsense.toml", tmp_path / "results"
    file.write_text(
        f'model = "{tiny_model}"\nn = 2\nbatch = 3\nmax_generated = 6\nsteps = 3\n'
        "[oracles]\nxtb = false\n"
    )
    assert cli.main(["campaign", "check", str(file)]) == 0
    assert "samples" in capsys.readouterr().out
    assert not folder.exists()

    assert cli.main(["campaign", "run", str(file), "--out", str(folder), "--quiet"]) == 0
    ran = capsys.readouterr().out
    assert "of 6 samples" in ran and str(folder / "report.html") in ran

    assert cli.main(["campaign", "status", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "nonsense" in shown and "finished" in shown and "6 of at most 6 samples" in shown

    (folder / "report.html").unlink()
    assert cli.main(["campaign", "report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert (folder / "report.html").is_file()

    assert cli.main(["campaign", "resume", str(folder), "--quiet"]) == 0
    assert capsys.readouterr().out == ran
    # another seed is another campaign, and this folder is taken
    words = ["campaign", "run", str(file), "--out", str(folder), "--seed", "5", "--quiet"]
    assert cli.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_example_campaigns_are_well_formed(root: Path) -> None:
    from driftworks.campaign import Campaign

    files = sorted((root / "examples").glob("*.toml"))
    assert root / "examples" / "dipole_gap.toml" in files
    for file in files:
        assert Campaign.load(file).n > 0
