"""The command ``driftworks``.

Commands are thin: they read arguments, call the library, print. Nothing heavy is imported until a
command runs, so ``--help`` answers at once. A mistake of the user's (`UserError`, a campaign file
that fails validation, a file that cannot be read or written) is one line on the standard error
stream and exit code 2; an interruption is one line and exit code 130; anything else is a fault of
the program and keeps its traceback.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, TextIO

import typer

from driftworks import __version__
from driftworks.commands import (
    campaign,
    data,
    distill,
    doctor,
    evaluate,
    match,
    models,
    sample,
    train,
)
from driftworks.commands.arguments import group
from driftworks.errors import UserError

__all__ = ["app", "main"]

USER_ERROR = 2
INTERRUPTED = 130

app = group(
    "Generate scientific objects with wanted properties, and check them with physics.\n\n"
    "\b\n"
    "Example:\n"
    "  driftworks sample molgen --n 100 --target mu=4 --out molecules.sdf\n"
    "  driftworks evaluate molgen molecules.sdf"
)
app.add_typer(campaign.app, name="campaign")
app.add_typer(sample.app, name="sample")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(train.app, name="train")
app.add_typer(distill.app, name="distill")
app.add_typer(data.app, name="data")
app.command("match")(match.match)
app.command("models")(models.models)
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"driftworks {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (default: those of the process); returns the exit code."""
    command = typer.main.get_command(app)
    show_warning, warnings.showwarning = warnings.showwarning, _show_warning
    try:
        code = command.main(
            args=None if arguments is None else list(arguments),
            prog_name="driftworks",
            standalone_mode=False,
        )
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`driftworks models | head`): nothing is left to say,
        # and the interpreter must not try to flush what nobody reads.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        line = _explain(error)
        if line is None:
            raise
        print(f"driftworks: {line}", file=sys.stderr)
        return USER_ERROR
    finally:
        warnings.showwarning = show_warning
    if code == INTERRUPTED:
        print("driftworks: interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> str | None:
    """One line for what the user can mend, None for everything else."""
    if isinstance(error, UserError):
        return _one_line(str(error))
    if callable(message := getattr(error, "format_message", None)):  # of the argument parser
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "driftworks"
        return _one_line(f"{message()} (see `{where} --help`)")
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and isinstance(error, pydantic.ValidationError):
        return _one_line("; ".join(_invalid(entry) for entry in error.errors()))
    if isinstance(error, ModuleNotFoundError) and (extra := _EXTRAS.get(error.name or "")):
        return f"this needs {error.name}, which is not installed: pip install 'driftworks[{extra}]'"
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename is not None else ""
        return _one_line(f"{named}{error.strerror}")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory: try a smaller --batch-size"
    return None


_EXTRAS = {"tblite": "xtb", "pyscf": "dft", "networkx": "graph", "torch_geometric": "graph"}


def _invalid(entry: Any) -> str:
    where = ".".join(str(part) for part in entry["loc"])
    given = entry.get("input")
    value = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{where}: {entry['msg']}{value}" if where else f"{entry['msg']}{value}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"driftworks: warning: {_one_line(str(message))}", file=file or sys.stderr)
