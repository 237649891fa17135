"""``driftworks data``: fetch or read molecules into one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from driftworks.commands.arguments import group, output_file, output_folder
from driftworks.errors import UserError

if TYPE_CHECKING:
    from driftworks.data.table import MoleculeTable

__all__ = ["app", "ccd", "molecules", "qm9", "read"]

app = group(
    "Fetch or read molecules into one table.\n\n"
    "\b\n"
    "Example:\n"
    "  driftworks data ccd --limit 500 --out ccd.npz"
)

Out = Annotated[
    Path | None,
    typer.Option("--out", help="Write the table: a name ending in .npz, or a folder."),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def molecules(source: str, progress: bool = True) -> MoleculeTable:
    """The table called ``source``: ``qm9``, ``ccd``, a stored table, or a file of molecules."""
    from driftworks import data

    if source == "qm9":
        return data.qm9(progress=progress)
    if source == "ccd":
        return data.ccd(progress=progress)
    path = Path(source)
    if not path.exists():
        raise UserError(f"no data set or file {source!r}; choose qm9, ccd or a file")
    if path.is_dir() or path.suffix in (".npz", ".bz2"):  # a form of QM9, or a stored table
        return data.qm9(path, progress=progress)
    return data.read(path, progress=progress)


def _place(out: Path | None) -> None:
    if out is not None:
        output_file(out, (".npz",)) if out.suffix else output_folder(out)


def _finish(table: MoleculeTable, out: Path | None) -> None:
    print(table)
    for failure in table.failures[:10]:
        name = f" ({failure.name})" if failure.name else ""
        print(f"  record {failure.record}{name}: {failure.reason}")
    if len(table.failures) > 10:
        print(f"  and {len(table.failures) - 10} more records that could not be read")
    if out is not None:
        table.save(out)
        print(f"written to {out}")


@app.command()
def qm9(
    file: Annotated[
        Path | None,
        typer.Option(
            "--qm9",
            metavar="FILE",
            help="The downloaded archive, a folder of its .xyz files, or an .npz of arrays.",
            show_default="the public archive, downloaded once",
        ),
    ] = None,
    limit: Limit = None,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """QM9 with bonds, labels and the standard split.

    \b
    Example:
      driftworks data qm9 --out qm9.npz
      driftworks data qm9 --qm9 dsgdb9nsd.xyz.tar.bz2 --limit 1000 --out small.npz
    """
    _place(out)
    from driftworks import data

    _finish(data.qm9(file, limit=limit, progress=not quiet), out)


@app.command()
def ccd(
    limit: Limit = None,
    max_heavy: Annotated[
        int, typer.Option("--max-heavy", min=1, help="Most atoms other than hydrogen.")
    ] = 50,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Drug-like 3D molecules of the PDB's Chemical Component Dictionary; needs no download.

    \b
    Example:
      driftworks data ccd --limit 500 --max-heavy 20 --out ccd.npz
    """
    _place(out)
    from driftworks import data

    _finish(data.ccd(limit, max_heavy=max_heavy, progress=not quiet), out)


@app.command()
def read(
    file: Annotated[
        Path, typer.Argument(help="An .sdf, .mol, .smi, .csv or .tsv file, also as .gz.")
    ],
    smiles_column: Annotated[
        str | None,
        typer.Option(
            "--smiles-column",
            help="Column of a CSV that holds SMILES.",
            show_default="one with a usual name",
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            "--id-column",
            help="Column that holds identifiers.",
            show_default="one with a usual name",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="CSV with further columns for an SDF or SMILES file."),
    ] = None,
    prop: Annotated[
        list[str] | None,
        typer.Option(
            "--property",
            metavar="NAME=UNIT",
            help="Column or SDF field to keep, with its unit: gap=hartree; may be repeated.",
            show_default="every numeric one",
        ),
    ] = None,
    limit: Limit = None,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Your own molecules; records that cannot be read are counted and listed.

    \b
    Example:
      driftworks data read mine.sdf --property gap=hartree --out mine.npz
      driftworks data read mine.csv --smiles-column SMILES --out mine.npz
    """
    _place(out)
    from driftworks import data

    table = data.read(
        file,
        smiles_column=smiles_column,
        id_column=id_column,
        properties=_properties(prop or []),
        labels=labels,
        limit=limit,
        progress=not quiet,
    )
    _finish(table, out)


def _properties(given: list[str]) -> dict[str, str] | list[str] | None:
    """``["gap=eV"]`` as ``{"gap": "eV"}``, ``["gap"]`` as it is, nothing as None (all of them)."""
    if not given:
        return None
    if not any("=" in text for text in given):
        return given
    units: dict[str, str] = {}
    for text in given:
        name, _, unit = (part.strip() for part in text.partition("="))
        if not (name and unit):
            raise UserError(f"property {text!r} is not NAME=UNIT, for instance gap=eV")
        units[name] = unit
    return units
