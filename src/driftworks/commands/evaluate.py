"""``driftworks evaluate``: measure what a model produced."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from driftworks.commands.arguments import group, output_file, readable
from driftworks.commands.graphs import SOURCES, Source, source_of, undeclared
from driftworks.commands.proteins import SOURCES as CHAINS
from driftworks.commands.proteins import table_of
from driftworks.errors import UserError

__all__ = ["app", "graphgen", "molgen", "protein"]

PICTURES = (".png", ".svg", ".pdf")

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
    _tell(report, out)


def _tell(report: Any, out: Path | None) -> None:
    """Print a report and, where a file is named, write its figures there."""
    print(report)
    if out is None:
        return
    from driftworks.core.checkpoint import write_file

    figures = json.dumps(report.to_dict(), indent=1, allow_nan=False)
    write_file(out, figures.encode() + b"\n")


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
    _tell(report, out)


def _one_kind(source: Source) -> Source:
    """Graphs whose attributes are those of molecules, as molecules."""
    from driftworks.graphgen.convert import to_rdkit
    from driftworks.graphgen.files import molecular

    if source.molecules or (batch := molecular(source.graphs)) is None:
        return source
    return Source(to_rdkit(batch), True, source.text)


@app.command()
def protein(
    given: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES_OR_FOLDER...",
            help="Backbones: a folder that `sample` wrote, structure files, or an .npz.",
        ),
    ],
    train: Annotated[
        str | None,
        typer.Option(
            "--train",
            help=f"Training chains, their training split if any, for copies: {CHAINS}.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="Real chains to compare with, their test split if any; as --train.",
            show_default="statistics of the Protein Data Bank",
        ),
    ] = None,
    requested: Annotated[
        int | None,
        typer.Option(
            "--requested",
            min=1,
            help="How many were asked for, where fewer came: the others count as failed.",
        ),
    ] = None,
    folds: Annotated[
        int,
        typer.Option("--folds", min=0, help="Chains compared with each other for diversity."),
    ] = 100,
    searched: Annotated[
        int,
        typer.Option("--searched", min=0, help="Chains searched for among the training chains."),
    ] = 100,
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", min=0, help="Resamples for the intervals.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the resampling.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--json", "--out", help="Write the figures to this .json file too."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture", help=f"Draw the first 16 chains on one sheet: {', '.join(PICTURES)}."
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--report", help="Write a report with pictures and plots to this .html file."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Are backbones protein-like, diverse and new? Every figure beside that of real chains.

    Atoms that files lack are built around the C-alphas. A figure that real chains do not show is
    flagged; without --train nothing is said of memorisation. None of this measures designability.

    \b
    Example:
      driftworks sample protein --length 40..80 --n 100 --out designs/
      driftworks evaluate protein designs/ --train chains.npz --json figures.json \\
          --report report.html
    """
    for path, suffixes in ((out, (".json",)), (picture, PICTURES), (page, (".html",))):
        if path is not None:
            output_file(path, suffixes)
    for path in given:
        if not path.exists():
            raise UserError(f"no file or folder {path}")

    from driftworks.protein.chains import Chains
    from driftworks.protein.evaluation import evaluate
    from driftworks.protein.files import read_designs
    from driftworks.protein.reference import Reference

    chains, full, left_out = read_designs(given, progress=not quiet)
    lines = [f"{len(chains)} chains of {', '.join(map(str, given))}"]
    if left_out:
        counts = ", ".join(f"{n} {reason}" for reason, n in sorted(left_out.items()))
        lines.append(f"left out: {counts}")
    known = real = None
    if train is not None:
        known, text = table_of(train, "train", progress=not quiet)
        lines.append(f"training set: {text}")
    if reference is not None:
        real, text = table_of(reference, "test", progress=not quiet)
        lines.append(f"reference: {text}")
    standard = Reference.builtin() if real is None else Reference.of(Chains.from_backbones(real))
    report = evaluate(
        chains,
        standard,
        known,
        backbones=full,
        requested=requested,
        folds=folds,
        searched=searched,
        resamples=bootstrap,
        seed=seed,
    )
    print("\n".join(lines))
    _tell(report, out)
    if picture is not None:
        from driftworks.protein.picture import draw

        draw(chains, picture)
    if page is not None:
        from driftworks.protein.report import write_report

        natives = None if real is None else [real.bb(i) for i in real.rows(complete=True)]
        write_report(
            report, chains, page, backbones=full, natives=natives, reference=standard, lines=lines
        )
