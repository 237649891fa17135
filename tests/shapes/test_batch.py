"""Many pairs: nothing is lost, nothing is done twice, one that breaks stops no other."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driftworks.data.isolate import Outcome, Rejected
from driftworks.errors import UserError
from driftworks.shapes import batch, files, matching
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.result import Match

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]


def nearest(a: Mesh, b: Mesh, **options: Any) -> Match:
    """In place of matching: nearest vertices of equal coordinates."""
    if "lame" in (a.name, b.name):
        raise UserError("this one cannot be matched")
    every = np.arange(len(a))
    ones = np.ones(len(a))
    score = 0.2 if "odd" in (a.name, b.name) else 0.9
    return Match(
        a, b, every, every, np.eye(3), np.eye(3), ones, ones, score < 0.5, score,
        f"seed {options.get('seed')}",
    )  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pool runs in this process, and tells what it was asked to do."""
    asked: list[str] = []

    def here(task: str, records: Iterable[Any], **options: Any) -> Iterator[Outcome]:
        for index, record in enumerate(records):
            asked.append(Path(record["out"]).name)
            try:
                yield Outcome(index, batch._match_files(json.loads(json.dumps(record))))
            except Rejected as error:
                yield Outcome(index, reason=str(error))

    monkeypatch.setattr(batch, "isolated", here)
    monkeypatch.setattr(matching, "match", nearest)
    return asked


@pytest.fixture
def folder(lump: Arrays, tmp_path: Path) -> Path:
    here = tmp_path / "shapes"
    here.mkdir()
    for name in ("ape.off", "bat.ply", "odd.off"):
        files.write(Mesh(*lump), here / name)
    (here / "notes.md").write_text("not a shape")
    return here


def test_all_pairs_are_every_two_once(folder: Path) -> None:
    names = [pair.name for pair in batch.pairs_of(folder)]
    assert names == ["ape__bat", "ape__odd", "bat__odd"]


def test_pairs_are_read_from_a_table(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("a,b\nbat,ape.off\n\nodd , bat.ply\n")
    assert [pair.name for pair in batch.pairs_of(folder, table)] == ["bat__ape", "odd__bat"]


@pytest.mark.parametrize(
    ("content", "says"),
    [("ape,cow\n", "'cow'"), ("ape\n", "two names"), ("a,b\n", "no pairs"),
     ("ape,bat\nape.off,bat\n", "twice")],
)  # fmt: skip
def test_faulty_tables_are_refused(folder: Path, tmp_path: Path, content: str, says: str) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text(content)
    with pytest.raises(UserError, match=says):
        batch.pairs_of(folder, table)


def test_folders_without_pairs_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder"):
        batch.pairs_of(tmp_path / "nowhere")
    with pytest.raises(UserError, match="0 shapes"):
        batch.pairs_of(tmp_path)
    (folder / "bat.off").write_bytes((folder / "ape.off").read_bytes())
    with pytest.raises(UserError, match="bat.off and bat.ply"):
        batch.pairs_of(folder)
    (folder / "bat.off").unlink()
    with pytest.raises(UserError, match="no file"):
        batch.pairs_of(folder, tmp_path / "pairs.csv")


def test_every_pair_has_a_map_and_a_line(
    folder: Path, tmp_path: Path, calls: list[str]
) -> None:
    out, seen = tmp_path / "out", []
    lines = batch.match_folder(
        batch.pairs_of(folder), out, {"seed": 3}, pictures=True,
        progress=lambda done, of: seen.append((done, of)),
    )  # fmt: skip
    assert [line["status"] for line in lines] == ["done"] * 3
    assert [line["failed"] for line in lines] == [False, True, True]
    assert lines[0]["hypothesis"] == "seed 3" and lines[0]["a"] == "ape.off"
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert Match.load(out / "ape__bat.npz").score == 0.9
    assert (out / "ape__odd.png").is_file() and not list(out.glob("*.partial*"))
    logged = [json.loads(row) for row in (out / batch.LOG).read_text().splitlines()]
    assert logged == lines


def test_what_is_done_is_not_done_again(folder: Path, tmp_path: Path, calls: list[str]) -> None:
    out, pairs = tmp_path / "out", batch.pairs_of(folder)
    first = batch.match_folder(pairs[:2], out)
    assert batch.match_folder(pairs, out)[:2] == first
    assert calls == ["ape__bat", "ape__odd", "bat__odd"]
    (out / "ape__odd.npz").unlink()
    batch.match_folder(pairs, out)
    assert calls[3:] == ["ape__odd"]
    batch.match_folder(pairs, out, {"seed": 1})
    assert len(calls) == 7


def test_a_line_that_was_cut_off_is_matched_again(
    folder: Path, tmp_path: Path, calls: list[str]
) -> None:
    out, pairs = tmp_path / "out", batch.pairs_of(folder)
    batch.match_folder(pairs, out)
    log = out / batch.LOG
    log.write_text(log.read_text()[:-30])
    assert len(batch.match_folder(pairs, out)) == 3
    assert calls[3:] == ["bat__odd"]
    batch.match_folder(pairs, out)
    assert len(calls) == 4


def test_a_broken_pair_is_recorded_and_stops_no_other(
    folder: Path, tmp_path: Path, calls: list[str], lump: Arrays
) -> None:
    files.write(Mesh(*lump), folder / "lame.off")
    (folder / "bat.ply").write_text("not a mesh")
    out, pairs = tmp_path / "out", batch.pairs_of(folder)
    lines = batch.match_folder(pairs, out)
    good = [line for line in lines if line["status"] == "done"]
    assert [(line["a"], line["b"]) for line in good] == [("ape.off", "odd.off")]
    errors = {f"{line['a']} {line['b']}": line["error"] for line in lines if "error" in line}
    assert len(errors) == 5
    assert "bat.ply" in errors["ape.off bat.ply"]
    assert errors["lame.off odd.off"] == "this one cannot be matched"
    assert not (out / "ape__bat.npz").exists()
    batch.match_folder(pairs, out)
    assert len(calls) == 6
    batch.match_folder(pairs, out, again=True)
    assert len(calls) == 11 and "ape__odd" not in calls[6:]
    rows = list(csv.DictReader(io.StringIO(batch.table(lines))))
    assert len(rows) == 6
    assert {row["status"] for row in rows} == {"done", "error"}


def test_settings_by_name_become_keywords(monkeypatch: pytest.MonkeyPatch) -> None:
    from driftworks.shapes import zoo

    monkeypatch.setattr(zoo, "load", lambda name: f"prior {name}")
    found = batch.keywords({"prior": "creatures", "hypotheses": ["waves"], "k": 40})
    assert found == {"prior": "prior creatures", "hypotheses": ("waves",), "k": 40}


def test_impossible_wishes_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="workers"):
        batch.match_folder([], tmp_path, workers=0)
    with pytest.raises(UserError, match="cannot be kept"):
        batch.match_folder([], tmp_path / "file" / "out")


@pytest.mark.slow
def test_a_real_pool_records_pairs_that_cannot_be_read_and_one_that_can(
    folder: Path, tmp_path: Path
) -> None:
    """Guards the way into the child processes and back."""
    (folder / "bat.ply").write_text("not a mesh")
    lines = batch.match_folder(batch.pairs_of(folder), tmp_path / "out", workers=2)
    assert [line["status"] for line in lines] == ["error", "done", "error"]
    assert "bat.ply" in lines[0]["error"]
    assert (tmp_path / "out" / "ape__odd.npz").is_file()
