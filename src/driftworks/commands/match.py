"""``driftworks match``: two shapes, or all shapes of a folder, and where each place went."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from driftworks.commands.arguments import output_file, output_folder, readable
from driftworks.errors import UserError

if TYPE_CHECKING:
    from driftworks.shapes.result import Match

__all__ = ["match"]

_MAPS = (".npz", ".csv", ".txt")


def match(
    a: Annotated[
        Path | None, typer.Argument(help="First shape: .off, .obj, .ply, .stl or .xyz.")
    ] = None,
    b: Annotated[Path | None, typer.Argument(help="Second shape, of any of these types.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="File of the map: .npz, .csv or .txt; with --folder, a folder."
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Picture of the match, .png.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="Interactive page of the match, .html.")
    ] = None,
    hypotheses: Annotated[
        str | None,
        typer.Option(
            "--hypotheses", help="Families of guesses, with commas, e.g. waves,signs. [all]"
        ),
    ] = None,
    k: Annotated[
        int | None, typer.Option("--functions", "-k", help="Functions of the final map. [150]")
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option("--prior", help="Prior by name or folder; see `driftworks models`."),
    ] = None,
    aligned: Annotated[
        bool, typer.Option("--aligned", help="Coordinates may be compared as they are.")
    ] = False,
    up: Annotated[
        str | None,
        typer.Option("--up", help="Axis that points up in pictures: x, y, z, -x, -y or -z."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of all random draws.")] = 0,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Match the shapes of this folder.")
    ] = None,
    pairs: Annotated[
        str, typer.Option("--pairs", help="With --folder: all, or a .csv with two names a line.")
    ] = "all",
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="With --folder: processes.")
    ] = 1,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="With --folder: a .png beside every map.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="With --folder: try pairs that failed once more.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Find for every place of one shape the same place of another, without training on them.

    Meshes are repaired where that is safe, and what was repaired is printed. The score is the
    probability that the map is right, judged without labels; below 0.5 the match counts as failed:
    the files are written all the same, a warning says so, and the exit code stays 0, because the
    command did what it was asked to. Errors (unreadable files, impossible meshes) have code 2.

    \b
    What --out holds:
      .npz  everything: map_ba (for each vertex of B its vertex of A), map_ab, functional maps c_ab
            and c_ba, confidence_a, confidence_b, score, failed, all hypotheses, both meshes.
            Read it with shapes.Match.load. Vertices are those of the repaired meshes
      .csv  a line for each vertex of B's file: b, a, confidence. Numbers are those of the files
      .txt  a line for each vertex of B's file: the vertex of A's file, from 0

    \b
    With --folder each pair becomes A__B.npz in the folder --out, and a line of results.jsonl and
    results.csv. A run that was interrupted goes on where it stopped; a pair that cannot be matched
    is recorded with the reason and does not stop the others.

    \b
    Example:
      driftworks match examples/shapes/cat.off examples/shapes/wolf.off --out map.npz --picture map.png
      driftworks match scan1.ply scan2.ply --out map.csv --page map.html --up z
      driftworks match --folder scans --pairs pairs.csv --out maps --workers 2
    """  # noqa: E501
    settings: dict[str, Any] = {"seed": seed}
    if hypotheses is not None:
        settings["hypotheses"] = [word.strip() for word in hypotheses.split(",") if word.strip()]
    if k is not None:
        settings["k"] = k
    if prior is not None:
        settings["prior"] = prior
    if aligned:
        settings["aligned"] = True
    if folder is not None:
        if a is not None or picture is not None or page is not None:
            raise UserError("with --folder give no files, --picture or --page (but --pictures)")
        _folder(folder, pairs, out or Path("maps"), settings, workers, pictures, again, quiet)
        return
    if a is None or b is None:
        raise UserError("two shapes are needed, or --folder (see `driftworks match --help`)")
    if pictures or again or pairs != "all" or workers != 1:
        raise UserError("--pairs, --workers, --pictures and --again belong to --folder")
    _pair(a, b, out, picture, page, up, settings, quiet)


def _pair(
    a: Path,
    b: Path,
    out: Path | None,
    picture: Path | None,
    page: Path | None,
    up: str | None,
    settings: dict[str, Any],
    quiet: bool,
) -> None:
    for path, suffixes in ((out, _MAPS), (picture, (".png",)), (page, (".html", ".htm"))):
        if path is not None:
            output_file(path, suffixes)
    for path in (a, b):
        readable(path)

    from driftworks.shapes import render, viewer
    from driftworks.shapes.appearance import UPS
    from driftworks.shapes.batch import keywords
    from driftworks.shapes.files import read
    from driftworks.shapes.matching import match as find

    if up is not None and up not in UPS:
        raise UserError(f"up is {up!r}; choose one of {', '.join(UPS)}")
    start = time.perf_counter()
    first, second = read(a), read(b)
    options = keywords(settings)
    with _status(f"matching {len(first):,} and {len(second):,} vertices", quiet):
        found = find(first, second, **options)
    seconds = time.perf_counter() - start
    for path in (out, picture, page):
        if path is not None:
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
    if out is not None:
        _write(found, out)
    with _status("drawing", quiet or not (picture or page)):
        if picture is not None:
            render.picture(found, picture, up=up)
        if page is not None:
            viewer.page(found, page, up=up)
    print(_summary(found, seconds))
    if written := [str(path) for path in (out, picture, page) if path is not None]:
        print(f"  written     {', '.join(written)}")
    if found.failed:
        _warn(
            f"this match is flagged as FAILED (score {found.score:.2f}): do not use the map "
            "without looking at it"
        )


def _folder(
    folder: Path,
    pairs: str,
    out: Path,
    settings: dict[str, Any],
    workers: int,
    pictures: bool,
    again: bool,
    quiet: bool,
) -> None:
    output_folder(out)

    from driftworks.core.checkpoint import write_file
    from driftworks.data.progress import progress_bar
    from driftworks.shapes import batch

    chosen = batch.pairs_of(folder, pairs)
    with progress_bar(f"matching {len(chosen)} pairs", len(chosen), show=not quiet) as update:
        lines = batch.match_folder(
            chosen,
            out,
            settings,
            workers=workers,
            again=again,
            pictures=pictures,
            progress=lambda done, of: update(done, of),
        )
    write_file(out / "results.csv", batch.table(lines).encode())
    done = [line for line in lines if line["status"] == "done"]
    flagged = [line for line in done if line["failed"]]
    print(f"{len(done)} of {len(lines)} pairs matched, {len(flagged)} of them flagged as failed")
    print(f"  maps and results.csv in {out}")
    for line in lines:
        if line["status"] != "done":
            _warn(f"no map of {line['a']} and {line['b']}: {line['error']}")
    for line in flagged:
        _warn(f"{line['a']} and {line['b']}: flagged as FAILED, score {line['score']:.2f}")


def _write(found: Match, out: Path) -> None:
    if out.suffix.lower() == ".npz":
        found.save(out)
        return
    from driftworks.core.checkpoint import write_file

    # in the numbers of the files, where repair may have merged or dropped vertices
    vertices = found.a.source_numbers[found.map_ba][found.b.origin].tolist()
    if out.suffix.lower() == ".txt":
        text = "".join(f"{v}\n" for v in vertices)
    else:
        trust = found.confidence_b[found.b.origin].tolist()
        rows = (f"{i},{v},{c:.4f}\n" for i, (v, c) in enumerate(zip(vertices, trust, strict=True)))
        text = "b,a,confidence\n" + "".join(rows)
    write_file(out, text.encode())


def _summary(found: Match, seconds: float) -> str:
    low = float((found.confidence_b < 0.5).mean())
    names = [mesh.name or "?" for mesh in (found.a, found.b)]
    others = [f"{h.name} {h.score:.2f}" for h in found.hypotheses[1:4]]
    rows = [
        ("score", f"{found.score:.2f}  (probability that the map is right)"),
        ("hypothesis", found.hypothesis + (f"  (next: {', '.join(others)})" if others else "")),
        ("mirrored", "yes" if found.mirrored else "no"),
        ("confidence", f"below 0.5 at {low:.1%} of the vertices of {names[1]}"),
        *(("mesh", f"{m.name}: {note}") for m in (found.a, found.b) for note in m.notes),
        *(("note", note) for note in found.notes),
        ("time", f"{seconds:.1f} s"),
    ]
    head = f"{names[0]} ({len(found.a):,} vertices) -> {names[1]} ({len(found.b):,} vertices)"
    return "\n".join([head, *(f"  {label:<12}{text}" for label, text in rows)])


def _status(text: str, quiet: bool) -> Any:
    if quiet:
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)


def _warn(text: str) -> None:
    import warnings

    warnings.warn(text, stacklevel=2)
