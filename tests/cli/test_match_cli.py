"""`driftworks match`: files as asked for, failures said aloud, one line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from driftworks import cli
from driftworks.errors import UserError
from driftworks.shapes import batch, creatures, files, matching, render
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.result import Hypothesis, Match


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRIFTWORKS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two creatures of shared topology; the first file has a vertex too many at its start."""
    here = tmp_path_factory.mktemp("shapes")
    one, two = creatures.family("theropod", 2, 3, vertices=1500)
    points = np.concatenate([one.vertices[:1] + 9, one.vertices])
    files.write(Mesh(points, one.faces + 1), here / "one.off")
    files.write(two, here / "two.ply")
    return here


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The right map in place of matching; holds the options of each call."""
    calls: list[dict[str, Any]] = []

    def right(a: Mesh, b: Mesh, **options: Any) -> Match:
        calls.append(options)
        every = np.arange(len(a))
        trust = np.linspace(0, 1, len(a))
        score = 0.1 if options["seed"] == 13 else 0.93
        others = (Hypothesis("waves", score, {}, every, every),
                  Hypothesis("frames", 0.05, {}, every, every))  # fmt: skip
        return Match(
            a, b, every, every, np.eye(3), np.eye(3), trust, trust, score < 0.5, score, "waves",
            others, notes=("all is well",),
        )  # fmt: skip

    monkeypatch.setattr(matching, "match", right)
    monkeypatch.setattr(render, "_PANEL", (200, 160))
    return calls


def test_a_match_leaves_what_was_asked_for(
    folder: Path, tmp_path: Path, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture, page = (tmp_path / "new" / f"map.{kind}" for kind in ("npz", "png", "html"))
    code = cli.main(
        ["match", str(folder / "one.off"), str(folder / "two.ply"), "--out", str(out), "--picture",
         str(picture), "--page", str(page), "--seed", "5", "--hypotheses", "waves, signs", "-k",
         "40", "--aligned", "--up", "y", "--quiet"]
    )  # fmt: skip
    shown = capsys.readouterr()
    assert code == 0 and shown.err == ""
    assert asked == [{"seed": 5, "hypotheses": ("waves", "signs"), "k": 40, "aligned": True}]
    assert Match.load(out).score == pytest.approx(0.93)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "<!doctype html>" in page.read_text("utf-8")
    for part in ("one (1,", "score       0.93", "frames 0.05", "mirrored    no", "without a face",
                 "all is well", "below 0.5 at 50.0%", "map.npz"):  # fmt: skip
        assert part in shown.out, part


def test_tables_have_the_numbers_of_the_files(
    folder: Path, tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    pair = [str(folder / "one.off"), str(folder / "two.ply")]
    for names, shift in ((pair, 1), (pair[::-1], 0)):
        for suffix in ("txt", "csv"):
            out = tmp_path / f"map.{suffix}"
            assert cli.main(["match", *names, "--out", str(out), "--quiet"]) == 0
        vertices = [int(line) for line in (tmp_path / "map.txt").read_text().split()]
        rows = (tmp_path / "map.csv").read_text().splitlines()
        assert rows[0] == "b,a,confidence"
        assert [int(row.split(",")[1]) for row in rows[1:]] == vertices
        assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(len(vertices)))
        count = len(files.read(names[1]).origin)
        assert len(vertices) == count
        # one.off has a stray vertex 0, so vertex i of two.ply is its vertex i + 1
        found = vertices if shift else vertices[1:]
        assert found == list(range(shift, shift + len(found)))


def test_a_failed_match_is_said_aloud_and_written(
    folder: Path, tmp_path: Path, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "map.npz"
    words = ["match", str(folder / "one.off"), str(folder / "two.ply"), "--seed", "13", "-q"]
    assert cli.main([*words, "--out", str(out)]) == 0
    assert "FAILED (score 0.10)" in capsys.readouterr().err
    assert Match.load(out).failed


MISTAKES = {
    "one shape only": ("match {one}", "two shapes"),
    "a missing file": ("match {one} nonesuch.off", "nonesuch.off"),
    "a folder for a shape": ("match {one} {folder}", "is a folder"),
    "a file of another kind": ("match {one} {text}", ".md"),
    "a map of an unknown kind": ("match {one} {two} --out map.xlsx", ".xlsx"),
    "a picture of an unknown kind": ("match {one} {two} --picture a.jpg", ".jpg"),
    "a page of an unknown kind": ("match {one} {two} --page a.pdf", ".pdf"),
    "a direction that is none": ("match {one} {two} --up north", "'north'"),
    "a prior that is none": ("match {one} {two} --prior nonesuch", "nonesuch"),
    "a negative seed": ("match {one} {two} --seed -1", "--seed"),
    "workers for one pair": ("match {one} {two} --workers 2", "--folder"),
    "files beside a folder": ("match {one} --folder {folder}", "--folder"),
    "a folder without shapes": ("match --folder {empty}", "0 shapes"),
    "pairs that are not there": ("match --folder {folder} --pairs x.csv", "x.csv"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(
    mistake: str, folder: Path, tmp_path: Path, asked: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.md").write_text("words")
    words, says = MISTAKES[mistake]
    places = {"one": folder / "one.off", "two": folder / "two.ply", "folder": folder,
              "empty": tmp_path / "empty", "text": tmp_path / "text.md"}  # fmt: skip
    assert cli.main([word.format(**places) for word in [*words.split(), "--quiet"]]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not asked


def test_a_folder_becomes_maps_and_a_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: dict[str, Any] = {}
    line = {"a": "one.off", "b": "two.ply"}
    done = {**line, "status": "done", "score": 0.3, "failed": True, "seconds": 1.0}
    broken = {**line, "status": "error", "error": "too few vertices"}

    def record(pairs: Any, out: Path, settings: Any, **options: Any) -> list[dict[str, Any]]:
        out.mkdir()
        seen.update(options, settings=settings, pairs=[pair.name for pair in pairs])
        return [done, broken]

    monkeypatch.setattr(batch, "match_folder", record)
    out = tmp_path / "maps"
    words = ["match", "--folder", str(folder), "--out", str(out), "--workers", "2", "--pictures"]
    assert cli.main([*words, "-q"]) == 0
    shown = capsys.readouterr()
    assert seen["pairs"] == ["one__two"] and seen["workers"] == 2 and seen["pictures"]
    assert seen["settings"] == {"seed": 0}
    assert "1 of 2 pairs matched, 1 of them flagged" in shown.out
    assert "too few vertices" in shown.err and "FAILED" in shown.err
    assert len((out / "results.csv").read_text().splitlines()) == 3


def test_the_committed_examples_are_sound(root: Path) -> None:
    here = root / "examples" / "shapes"
    cat, wolf = (files.read(here / f"{name}.off") for name in ("cat", "wolf"))
    for mesh in (cat, wolf):
        assert mesh.notes == () and mesh.is_manifold
        assert (here / f"{mesh.name}.off").stat().st_size < 200_000
    truth = np.loadtxt(here / "cat_of_wolf.txt", dtype=int)
    assert truth.shape == (len(wolf),) and 0 <= truth.min() and truth.max() < len(cat)


@pytest.mark.slow
def test_the_committed_examples_match(root: Path, tmp_path: Path) -> None:
    """Guards the whole command on a real pair, against its ground truth."""
    from driftworks.shapes.evaluation import evaluate

    here, out = root / "examples" / "shapes", tmp_path / "map.npz"
    words = ["match", str(here / "cat.off"), str(here / "wolf.off"), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "driftworks", *words, "--picture", str(tmp_path / "map.png")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = evaluate(Match.load(out), np.loadtxt(here / "cat_of_wolf.txt", dtype=int))
    assert report.mean < 10 and not report.failed, json.dumps(report.to_dict())


def test_a_match_that_is_refused_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def refuse(a: Mesh, b: Mesh, **options: Any) -> Match:
        raise UserError(f"{replace(a, name='this').name} is in two parts")

    monkeypatch.setattr(matching, "match", refuse)
    words = ["match", str(folder / "one.off"), str(folder / "two.ply"), "-q"]
    assert cli.main([*words, "--out", str(tmp_path / "x" / "map.npz")]) == 2
    assert "this is in two parts" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
