"""``driftworks evaluate``: measure what a model produced."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from driftworks.commands.arguments import group, output_file, readable
from driftworks.errors import UserError

__all__ = ["app", "molgen"]

app = group(
    "Measure what a model produced.\n\n"
    "\b\n"
    "Example:\n"
    "  driftworks evaluate molgen molecules.sdf"
)


@app.command()
def molgen(
    file: Annotated[Path, typer.Argument(help="Molecules: a file that `sample` wrote, or an SDF.")],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="Training molecules, for novelty and divergences: qm9, ccd, a table that "
            "`driftworks data` wrote, or a file it reads.",
        ),
    ] = None,
    oracle: Annotated[
        str | None,
        typer.Option("--oracle", help="What measures the targeted properties: "
            "xtb, dft, rdkit, or regressor (quick estimates)."),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", min=0, help="Resamples for the intervals.")
    ] = 1000,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the figures to this .json file too.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Validity, uniqueness, stability and distance to the targets, with intervals.

    \b
    Example:
      driftworks sample molgen --n 1000 --seed 1 --out molecules.sdf
      driftworks evaluate molgen molecules.sdf --oracle xtb --out figures.json
    """
    readable(file)
    if out is not None:
        output_file(out, (".json",))

    from driftworks.molgen.library import Library
    from driftworks.molgen.metrics import evaluate

    table = None
    if reference is not None:
        from driftworks.commands.data import molecules

        table = molecules(reference, progress=not quiet)
    library = Library.read(file)
    with ExitStack() as stack:
        judge = None
        if oracle is not None:
            judge = _judge(oracle, stack)
        report = evaluate(
            library, reference=table, oracle=judge, bootstrap=bootstrap, progress=not quiet
        )
    print(report)
    if out is not None:
        from driftworks.core.checkpoint import write_atomically

        figures = json.dumps(report.to_dict(), indent=1, allow_nan=False)
        write_atomically(out, figures.encode() + b"\n")


def _judge(name: str, stack: ExitStack) -> Any:
    """The oracle called ``name``, ended with ``stack``; or the regressor, which only estimates."""
    from driftworks.molgen import oracles
    from driftworks.molgen.regressor import load_regressor

    if name == "regressor":
        return load_regressor()
    if name not in oracles.ORACLES:
        choices = ", ".join([*oracles.ORACLES, "regressor"])
        raise UserError(f"unknown oracle {name!r}; choose from {choices}")
    oracle = oracles.get(name)
    stack.callback(oracle.close)
    return oracle
