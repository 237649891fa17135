"""``driftworks campaign``: from a target to a validated library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from driftworks.commands.arguments import group, output_folder, readable

__all__ = ["app", "check", "report", "resume", "run", "status"]

app = group(
    "From a target to a validated library, safe to stop at any moment.\n\n"
    "\b\n"
    "Example:\n"
    "  driftworks campaign check examples/dipole_gap.toml\n"
    "  driftworks campaign run examples/dipole_gap.toml --out runs/dipole_gap"
)

File = Annotated[Path, typer.Argument(help="Description of the campaign, a .toml file.")]
Folder = Annotated[Path, typer.Argument(help="Folder of a campaign that was started before.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Folder of the results.", show_default="runs/ and its name"),
]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, help="Replaces the seed in the file.")
]


@app.command()
def run(file: File, out: Out = None, seed: Seed = None, quiet: Quiet = False) -> None:
    """Run a campaign, or continue it where it stopped.

    \b
    Example:
      driftworks campaign run examples/dipole_gap.toml --out runs/dipole_gap
    """
    readable(file)
    from driftworks.campaign import Campaign

    campaign = Campaign.load(file, output=str(out) if out else None, seed=seed)
    output_folder(campaign.folder)
    print(campaign.run(progress=not quiet))


@app.command()
def resume(folder: Folder, quiet: Quiet = False) -> None:
    """Continue the campaign in a folder, without its file.

    \b
    Example:
      driftworks campaign resume runs/dipole_gap
    """
    from driftworks.campaign.driver import STORE, stored
    from driftworks.campaign.store import Store

    with Store(folder / STORE) as store:
        campaign = stored(store)
    print(campaign.model_copy(update={"output": str(folder)}).run(progress=not quiet))


@app.command()
def report(folder: Folder) -> None:
    """Write the report of a campaign anew, finished or not.

    \b
    Example:
      driftworks campaign report runs/dipole_gap
    """
    from driftworks import campaign

    print(campaign.report(folder))


@app.command()
def status(folder: Folder) -> None:
    """Where a campaign stands; safe while it runs.

    \b
    Example:
      driftworks campaign status runs/dipole_gap
    """
    from driftworks import campaign

    state = campaign.status(folder)
    stage = "finished" if state["finished"] else "unfinished"
    print(f"{state['name']} in {state['folder']}: {stage}")
    print(f"{state['generated']} of at most {state['budget']} samples drawn")
    print(f"{state['candidates']} candidates of {state['wanted']}, {state['validated']} validated")
    for name, count in state["funnel"].items():
        print(f"  {count:6d}  {name}")


@app.command()
def check(file: File) -> None:
    """Read a campaign file and estimate what it will cost; nothing is written.

    \b
    Example:
      driftworks campaign check examples/dipole_gap.toml
    """
    readable(file)
    from driftworks.campaign import Campaign, dry_run

    print(dry_run(Campaign.load(file)))
