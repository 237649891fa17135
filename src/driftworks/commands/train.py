"""``driftworks train``: train a model on a table of examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from driftworks.commands.arguments import group, output_folder
from driftworks.errors import UserError

__all__ = ["app", "molgen", "regressor"]

MINUTES = 120.0

app = group(
    "Train a model.\n\n"
    "\b\n"
    "Example:\n"
    "  driftworks train molgen --data qm9 --minutes 60 --out runs/mine"
)


@app.command()
def molgen(
    out: Annotated[Path, typer.Option("--out", help="Folder of the model and of the run's state.")],
    data: Annotated[
        str,
        typer.Option(
            "--data", help="qm9, ccd, a table that `driftworks data` wrote, or a file it reads."
        ),
    ] = "qm9",
    preset: Annotated[
        str, typer.Option("--preset", help="Recipe: small (two CPU cores) or base (one GPU).")
    ] = "small",
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Length in wall time.", show_default=f"{MINUTES:g}"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Length in steps, instead of minutes.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Molecules a step.", show_default="the preset's"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of weights and batches.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:0.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, if there is one.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train the molecule model; its training split is used where the data has one.

    Checkpoints are written every few minutes; `sample --model FOLDER` reads them.

    \b
    Example:
      driftworks train molgen --data qm9 --preset small --minutes 120 \\
          --out runs/mine --resume
      driftworks sample molgen --model runs/mine --n 100 --out mine.sdf
    """
    if minutes is not None and steps is not None:
        raise UserError("give --minutes or --steps, not both")
    if minutes is None and steps is None:
        minutes = MINUTES
    output_folder(out)

    from driftworks.molgen.train import TrainConfig, train

    changes = {"batch": batch_size} if batch_size is not None else {}
    config = TrainConfig.preset(
        preset, minutes=minutes, steps=steps, seed=seed, device=device, **changes
    )

    from driftworks.commands.data import molecules

    table = molecules(data, progress=not quiet)
    split = "train" if len(table.rows("train")) else None
    chosen = table.where(split=split, clean=True)
    if not len(chosen):
        raise UserError(f"{data}: no molecule to train on among {len(table)}")
    named = f"the {split} split of " if split else ""
    print(f"{len(chosen)} molecules to train on: {named}{table.source or data}")
    folder = train(config, chosen, out, resume=resume, progress=not quiet)
    print(f"model written to {folder}")


@app.command()
def regressor(
    out: Annotated[Path, typer.Option("--out", help="Folder of the regressor.")],
    data: Annotated[
        str, typer.Option("--data", help="QM9, or a table with its splits and properties.")
    ] = "qm9",
    minutes: Annotated[float, typer.Option("--minutes", help="Length in wall time.")] = 30.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of weights and batches.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train the property regressor on the training split and measure it on the test split.

    It estimates alpha, gap, homo, lumo, mu and cv of a geometry; see molgen/regressor.py.

    \b
    Example:
      driftworks train regressor --data qm9 --minutes 30 --out runs/regressor
    """
    if not minutes > 0:
        raise UserError(f"--minutes must be positive, got {minutes:g}")
    output_folder(out)

    from driftworks.commands.data import molecules
    from driftworks.molgen.regressor import RegressorConfig, train_regressor

    table = molecules(data, progress=not quiet)
    train, test = (table.where(split=name, clean=True) for name in ("train", "test"))
    if not (len(train) and len(test)):
        raise UserError(f"{data}: the regressor needs a table with a train and a test split")
    config = RegressorConfig(minutes=minutes, seed=seed)
    missing = [name for name in config.properties if name not in table.properties]
    if missing:
        raise UserError(f"{data}: no property {', '.join(missing)} to learn")
    print(f"model written to {train_regressor(config, train, test, out, progress=not quiet)}")
