"""``driftworks distill``: teach a model of few network calls what one of hundreds knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from driftworks.commands.arguments import group, output_folder, run_length
from driftworks.errors import UserError

__all__ = ["app", "protein"]

MINUTES = 60.0
METHODS = ("sid", "sim", "ctm")

app = group(
    "Distil a trained model into one that needs far fewer network calls.\n\n"
    "\b\n"
    "Example:\n"
    "  driftworks distill protein --teacher runs/teacher --minutes 60 --out runs/student"
)


@app.command()
def protein(
    teacher: Annotated[
        str, typer.Option("--teacher", help="Teacher's name (see `driftworks models`) or folder.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the model and of the run's state.")],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="sid (score identity distillation), sim (its exact gradient) or ctm (a flow map "
            "that jumps between any two times).",
        ),
    ] = "sid",
    calls: Annotated[
        int,
        typer.Option("--steps", min=1, help="Network calls a chain that the student is taught."),
    ] = 8,
    preset: Annotated[
        str, typer.Option("--preset", help="Recipe: small (one CPU core) or base (one GPU).")
    ] = "small",
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Length in wall time.", show_default=f"{MINUTES:g}"),
    ] = None,
    updates: Annotated[
        int | None, typer.Option("--updates", min=1, help="Length in updates, instead of minutes.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Chains an update.", show_default="the preset's"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of noise and lengths.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:0.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, if there is one.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Distil a teacher of protein backbones. No data are read: the teacher is all that is needed.

    A student is taught to draw a chain in --steps calls where its teacher takes 400; it can be
    asked for fewer or more later. How cool it draws (--gamma of `sample protein`) stays adjustable.

    \b
    Example:
      driftworks train protein --data chains.npz --minutes 240 --out runs/teacher
      driftworks distill protein --teacher runs/teacher --method sid --steps 8 \\
          --minutes 120 --out runs/student --resume
      driftworks sample protein --model runs/student --length 80 --n 16 --steps 8
    """
    minutes = run_length(minutes, updates, MINUTES, "updates")
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    output_folder(out)

    from driftworks.core.run import pick_device
    from driftworks.protein.distill import DistillConfig, distill
    from driftworks.protein.zoo import load

    pick_device(device)
    recipe: dict[str, Any] = {} if batch_size is None else {"batch": batch_size}
    config = DistillConfig.preset(
        preset, method=method, calls=calls, minutes=minutes, steps=updates, seed=seed,
        device=device, **recipe,
    )  # fmt: skip
    model = load(teacher, device)
    print(f"teacher {model}")
    folder = distill(config, model, out, resume=resume, progress=not quiet)
    print(f"model written to {folder}")
