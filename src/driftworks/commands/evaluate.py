"""``driftworks evaluate``: measure what a model produced."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from driftworks.commands.arguments import group, output_file, readable
from driftworks.commands.graphs import SOURCES, Source, source_of, undeclared
from driftworks.errors import UserError

__all__ = ["app", "graphgen", "molgen"]

app = group(
    "Measure what a model produced.\n\n"
    "\b\n"
    "Example:\n"
    "  driftworks evaluate molgen molecules.sdf\n"
    "  driftworks evaluate graphgen graphs.jsonl --reference test.jsonl --train train.jsonl"
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


@app.command()
def graphgen(
    file: Annotated[str, typer.Argument(help="Graphs: a file that `sample` wrote, or your own.")],
    reference: Annotated[
        str,
        typer.Option("--reference", help=f"Real graphs, their test split if any: {SOURCES}."),
    ],
    train: Annotated[
        str | None,
        typer.Option(
            "--train",
            help="Training graphs, their training split if any, for novelty, copies and the floor "
            "of real data; as --reference.",
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            "--family",
            help="Validity to test: connected, two_communities, planar, tree, lobster, "
            "ring_of_cliques or sbm (of molecules always chemical).",
        ),
    ] = None,
    convention: Annotated[
        str, typer.Option("--convention", help="Published kernels to compare with: gdss, digress.")
    ] = "gdss",
    node_attribute: Annotated[
        list[str] | None,
        typer.Option("--node-attribute", help="Attribute that tells nodes apart; may be repeated."),
    ] = None,
    edge_attribute: Annotated[
        list[str] | None,
        typer.Option("--edge-attribute", help="Attribute that tells edges apart; may be repeated."),
    ] = None,
    requested: Annotated[
        int | None,
        typer.Option(
            "--requested",
            min=1,
            help="How many were asked for, where the file holds fewer: the others count as failed.",
        ),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", min=0, help="Resamples for the intervals.")
    ] = 1000,
    permutations: Annotated[
        int, typer.Option("--permutations", min=0, help="Permutations for the p-values.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the resampling.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--json", "--out", help="Write the figures to this .json file too."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Validity, uniqueness, novelty and distances to real graphs, beside those of real data.

    \b
    Example:
      driftworks sample graphgen --model runs/communities --n 128 --out drawn.g6
      driftworks evaluate graphgen drawn.g6 --reference two_communities \\
          --train two_communities --family two_communities --json figures.json
    """
    if out is not None:
        output_file(out, (".json",))
    if not Path(file).exists() and ":" not in file:
        raise UserError(f"no file {file}")

    from driftworks.graphgen.metrics import evaluate
    from driftworks.graphgen.mmd import kernels_of
    from driftworks.graphgen.validity import predicate

    kernels_of(convention)
    if family is not None:
        predicate(family)
    given = _one_kind(source_of(file, progress=not quiet))
    real = _one_kind(source_of(reference, "test", progress=not quiet))
    known = None
    if train is not None:
        known = _one_kind(source_of(train, "train", progress=not quiet))
    for other in (real, known):
        if other is not None and other.molecules != given.molecules:
            kinds = ["molecules" if s.molecules else "graphs" for s in (given, other)]
            raise UserError(f"{file} holds {kinds[0]}, but {other.text} holds {kinds[1]}")
    nodes, edges = node_attribute or [], edge_attribute or []
    lines = [f"{file} against {real.text}" + (f"; training set: {known.text}" if known else "")]
    if given.molecules:
        if nodes or edges:
            raise UserError("molecules are compared by their SMILES: leave out --node-attribute "
                            "and --edge-attribute")
    elif left := sorted({name for part in undeclared(given.graphs, nodes, edges) for name in part}):
        lines.append(f"compared without the attributes {', '.join(left)}")
    report = evaluate(
        given.graphs,
        real.graphs,
        None if known is None else known.graphs,
        family=family,
        convention=convention,
        nodes=nodes,
        edges=edges,
        requested=requested,
        bootstrap=bootstrap,
        permutations=permutations,
        seed=seed,
    )
    print("\n".join(lines))
    print(report)
    if out is not None:
        from driftworks.core.checkpoint import write_atomically

        figures = json.dumps(report.to_dict(), indent=1, allow_nan=False)
        write_atomically(out, figures.encode() + b"\n")


def _one_kind(source: Source) -> Source:
    """Graphs whose attributes are those of molecules, as molecules."""
    from driftworks.graphgen.convert import to_rdkit
    from driftworks.graphgen.files import molecular

    if source.molecules or (batch := molecular(source.graphs)) is None:
        return source
    return Source(to_rdkit(batch), True, source.text)
