"""``driftworks sample``: draw objects from a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from driftworks.commands.arguments import group, output_file, parse_sizes, parse_targets

__all__ = ["app", "molgen"]

SUFFIXES = (".sdf", ".csv", ".parquet", ".smi")

app = group(
    "Draw objects from a trained model.\n\n"
    "\b\n"
    "Example:\n"
    "  driftworks sample molgen --n 100 --target mu=4 --out molecules.sdf"
)


@app.command()
def molgen(
    n: Annotated[int, typer.Option("--n", min=1, help="How many molecules to request.")] = 100,
    out: Annotated[
        Path, typer.Option("--out", help=f"File to write, by suffix: {', '.join(SUFFIXES)}.")
    ] = Path("molecules.sdf"),
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="NAME=VALUE",
            help="Wanted property: mu=4, gap=5..7, 'gap=0.22 hartree', alpha=max; may be "
            "repeated. Units unless said: mu in debye, gap, homo and lumo in eV, alpha in bohr^3, "
            "cv in cal/(mol K).",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="Model name (see `driftworks models`) or its folder.")
    ] = "qm9",
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Molecule i depends on the seed and i alone.")
    ] = 0,
    first: Annotated[
        int, typer.Option("--first", min=0, help="Number of the first molecule of the seed.")
    ] = 0,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Sampler steps; more are slower and better.")
    ] = 100,
    guidance: Annotated[
        float,
        typer.Option("--guidance", help="Weight of the targets; 1 is the model as trained."),
    ] = 1.0,
    atoms: Annotated[
        str | None,
        typer.Option(
            "--atoms",
            metavar="N",
            help="Atoms of a molecule, hydrogens included: 18, or 15..20.",
            show_default="drawn given the targets",
        ),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            min=1,
            help="Molecules at a time; changes speed and memory, never the molecules.",
        ),
    ] = 64,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:0.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Draw 3D molecules, steered towards the targets, and write them to a file.

    \b
    Example:
      driftworks sample molgen --model qm9 --n 1000 --seed 1 \\
          --target mu=4.0 --target gap=6.0 --guidance 1.0 --out molecules.sdf
    """
    targets, sizes = parse_targets(target or []), parse_sizes(atoms)
    output_file(out, SUFFIXES)

    from driftworks import molgen as domain

    chosen = domain.load(model, device)
    library = chosen.sample(
        n,
        targets=targets or None,
        seed=seed,
        first=first,
        steps=steps,
        guidance=guidance,
        atoms=sizes,
        batch_size=batch_size,
        progress=not quiet,
    )
    library.write(out)
    lost = ", ".join(f"{count} {reason}" for reason, count in sorted(library.failures.items()))
    written = len(library)
    if out.suffix == ".smi":
        written = sum(smiles is not None for smiles in library.smiles())
        if written < len(library):
            lost = ", ".join([*filter(None, [lost]), f"{len(library) - written} without a SMILES"])
    print(
        f"{written} of {n} requested molecules written to {out}" + (lost and f" ({lost})")
        + f"; model {chosen.name}"
    )
