"""Many matches: a folder of shapes, pairs of them, a pool of processes, and a run that can go on.

Every pair that is done lies in the output folder as ``A__B.npz``, written whole or not at all, and
as one line of ``results.jsonl`` with its score, its seconds or the reason why there is no map.
Nothing else is kept, so an interrupted run loses only the pairs that were under way: the next one
with the same settings skips what has a line. Lines of failed pairs count as done, unless they are
asked for again; lines of other settings do not, and their maps are replaced.

Each pair runs in a process of the pool (`data.isolate`): one that crashes, hangs or eats the memory
is a line that says so. Spectra are kept in the cache by the digest of the mesh, so a shape's
eigenproblem is solved once whatever the number of its pairs.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driftworks.data.isolate import Rejected, isolated
from driftworks.errors import UserError
from driftworks.shapes.files import FORMATS

__all__ = ["LOG", "Pair", "keywords", "match_folder", "pairs_of", "shapes_in", "table"]

#: Name of the file of results in the output folder.
LOG = "results.jsonl"


@dataclass(frozen=True)
class Pair:
    """Two files of shapes; the name of the pair is the name of its result."""

    a: Path
    b: Path

    @property
    def name(self) -> str:
        return f"{self.a.stem}__{self.b.stem}"


def shapes_in(folder: Path | str) -> list[Path]:
    """The shapes in a folder, by name. Raises `UserError` when there are fewer than two."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS)
    if len(found) < 2:
        raise UserError(
            f"{folder} holds {len(found)} shapes, two are needed ({', '.join(FORMATS)})"
        )
    stems: dict[str, Path] = {}
    for path in found:
        if path.stem in stems:
            raise UserError(
                f"{folder} holds {stems[path.stem].name} and {path.name}; results are named "
                "after shapes, so their names must differ"
            )
        stems[path.stem] = path
    return found


def pairs_of(folder: Path | str, pairs: Path | str = "all") -> list[Pair]:
    """Pairs of shapes of a folder.

    pairs: "all" for every two shapes once (a match has the maps of both directions), or a CSV file
        with two names a line, with or without endings; a first line "a,b" is a heading

    Raises `UserError` for names that are not in the folder, lines without two names, and pairs
    that are there twice.
    """
    shapes = shapes_in(folder)
    if str(pairs) == "all":
        return [Pair(a, b) for i, a in enumerate(shapes) for b in shapes[i + 1 :]]
    known = {path.stem: path for path in shapes} | {path.name: path for path in shapes}
    try:
        with open(pairs, newline="", encoding="utf-8-sig") as file:
            rows = [[word.strip() for word in row] for row in csv.reader(file) if any(row)]
    except FileNotFoundError:
        raise UserError(f"no file {pairs}; pairs are 'all' or a CSV file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{pairs} cannot be read as CSV: {error}") from None
    if rows and [word.lower() for word in rows[0][:2]] == ["a", "b"] and "a" not in known:
        rows = rows[1:]
    found: dict[str, Pair] = {}
    for number, row in enumerate(rows, 1):
        if len(row) < 2:
            raise UserError(f"{pairs}: pair {number} is {row!r}, two names are needed")
        for name in row[:2]:
            if name not in known:
                raise UserError(f"{pairs}: pair {number} names {name!r}, which is not in {folder}")
        pair = Pair(known[row[0]], known[row[1]])
        if pair.name in found:
            raise UserError(f"{pairs}: the pair {row[0]}, {row[1]} is there twice")
        found[pair.name] = pair
    if not found:
        raise UserError(f"{pairs} holds no pairs")
    return list(found.values())


def match_folder(
    pairs: Sequence[Pair],
    out: Path | str,
    settings: dict[str, Any] | None = None,
    *,
    workers: int = 1,
    limit: float = 1800.0,
    again: bool = False,
    pictures: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Match pairs and return the line of each, in the order of the pairs.

    out: folder for the maps and `LOG`; settings: keywords of `shapes.match`, as JSON can hold them
    workers: processes; limit: seconds for one pair
    again: try failed pairs once more; pictures: a PNG beside every map
    progress: called with (done, of) after every pair

    A line has "a", "b", "status" ("done" or "error"), "seconds" and "settings"; done ones "score",
    "failed" (the map's own flag), "hypothesis", "mirrored" and "notes", others "error".
    Raises `UserError` when nothing can be written to `out`.
    """
    if workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}")
    out = Path(out)
    settings = {} if settings is None else settings
    try:
        out.mkdir(parents=True, exist_ok=True)
        lines = _finished(out, settings, again)
        waiting = [pair for pair in pairs if pair.name not in lines]
        finished = len(pairs) - len(waiting)
        if progress is not None:
            progress(finished, len(pairs))
        with open(out / LOG, "a", encoding="utf-8") as log:
            for pair, line in _run(waiting, out, settings, workers, limit, pictures):
                lines[pair.name] = line
                log.write(json.dumps(line, allow_nan=False) + "\n")
                log.flush()
                os.fsync(log.fileno())
                finished += 1
                if progress is not None:
                    progress(finished, len(pairs))
    except OSError as error:
        raise UserError(f"{out}: results cannot be kept: {error.strerror or error}") from error
    return [lines[pair.name] for pair in pairs]


def keywords(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON holds them, as keywords of `shapes.match`: a prior by name is loaded."""
    found = dict(settings)
    if isinstance(found.get("prior"), str):
        from driftworks.shapes import zoo

        found["prior"] = zoo.load(found["prior"])
    if "hypotheses" in found:
        found["hypotheses"] = tuple(found["hypotheses"])
    return found


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The lines as CSV, one row a pair, the reason of an error in the last column."""
    from io import StringIO

    columns = ["a", "b", "status", "score", "failed", "hypothesis", "mirrored", "seconds", "error"]
    text = StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _run(
    pairs: Sequence[Pair],
    out: Path,
    settings: dict[str, Any],
    workers: int,
    limit: float,
    pictures: bool,
) -> Iterator[tuple[Pair, dict[str, Any]]]:
    records = [
        {
            "a": str(pair.a.absolute()),
            "b": str(pair.b.absolute()),
            "out": str((out / pair.name).absolute()),
            "settings": settings,
            "picture": pictures,
        }
        for pair in pairs
    ]
    outcomes = isolated(
        "driftworks.shapes.batch:_match_files",
        records,
        limit=limit,
        workers=min(workers, max(len(pairs), 1)),
        imports=("driftworks.shapes.matching",),
    )
    for pair, outcome in zip(pairs, outcomes, strict=True):
        line = {"a": pair.a.name, "b": pair.b.name, "settings": settings}
        if outcome.ok:
            yield pair, {**line, "status": "done", **outcome.value}
        else:
            reason = outcome.reason or ""
            if reason.startswith("the reader crashed"):
                reason = "its process crashed or ran out of memory"
            yield pair, {**line, "status": "error", "error": reason}


def _match_files(record: dict[str, Any]) -> dict[str, Any]:
    """One pair, in a process of the pool."""
    from driftworks.shapes.files import read
    from driftworks.shapes.matching import match

    start = time.perf_counter()
    try:
        found = match(read(record["a"]), read(record["b"]), **keywords(record["settings"]))
        partial = Path(record["out"] + ".partial.npz")
        found.save(partial)
        os.replace(partial, record["out"] + ".npz")
        if record["picture"]:
            found.render(record["out"] + ".png")
    except UserError as error:
        raise Rejected(str(error)) from error
    return {
        "score": float(found.score),
        "failed": bool(found.failed),
        "hypothesis": found.hypothesis,
        "mirrored": bool(found.mirrored),
        "notes": [
            *(f"{mesh.name}: {note}" for mesh in (found.a, found.b) for note in mesh.notes),
            *found.notes,
        ],
        "seconds": round(time.perf_counter() - start, 3),
    }


def _finished(out: Path, settings: dict[str, Any], again: bool) -> dict[str, dict[str, Any]]:
    """The last line of each pair that need not be matched any more, by the name of the pair."""
    lines: dict[str, dict[str, Any]] = {}
    try:
        text = (out / LOG).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    wanted = json.loads(json.dumps(settings))
    for row in text.splitlines():
        try:
            line = json.loads(row)
            name = Pair(Path(line["a"]), Path(line["b"])).name
            fits = line["settings"] == wanted
        except (ValueError, KeyError, TypeError):
            continue  # cut off when the run was killed; the pair is matched again
        if not fits or (again and line["status"] == "error"):
            lines.pop(name, None)
        elif line["status"] == "error" or (out / f"{name}.npz").is_file():
            lines[name] = line
    if text and not text.endswith("\n"):
        with open(out / LOG, "a", encoding="utf-8") as log:
            log.write("\n")
    return lines
