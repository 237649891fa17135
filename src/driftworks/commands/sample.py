"""``driftworks sample``: draw objects from a trained model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from driftworks.commands.arguments import (
    group,
    output_file,
    output_folder,
    parse_sizes,
    parse_targets,
)
from driftworks.errors import UserError

__all__ = ["app", "graphgen", "molgen", "protein"]

SUFFIXES = (".sdf", ".csv", ".parquet", ".smi")
GRAPH_SUFFIXES = (".jsonl", ".g6", ".graphml", ".graphml.zip", ".npz", ".smi", ".sdf")
PICTURES = (".png", ".svg", ".pdf")
CHAIN_FORMATS = ("pdb", "cif", "bcif", "npz")

app = group(
    "Draw objects from a trained model.\n\n"
    "\b\n"
    "Example:\n"
    "  driftworks sample molgen --n 100 --target mu=4 --out molecules.sdf\n"
    "  driftworks sample graphgen --model runs/mine --n 100 --out graphs.jsonl"
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


@app.command()
def graphgen(
    model: Annotated[
        str, typer.Option("--model", help="Model name (see `driftworks models`) or its folder.")
    ],
    n: Annotated[int, typer.Option("--n", min=1, help="How many graphs to request.")] = 100,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="File to write, by suffix: .jsonl (networkx node-link, one graph a line, keeps "
            "everything), .g6 (graph6, structure alone), .graphml (one graph), .graphml.zip, .npz "
            "(edge lists), and of molecules .smi and .sdf.",
        ),
    ] = Path("graphs.jsonl"),
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            help=f"Draw the first 25 graphs on one sheet too: {', '.join(PICTURES)}.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Graph i depends on the seed and i alone.")
    ] = 0,
    first: Annotated[
        int, typer.Option("--first", min=0, help="Number of the first graph of the seed.")
    ] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            help="Network evaluations a graph; more with solvers that ask twice a step.",
            show_default="50, or 1000 of the gdss preset",
        ),
    ] = None,
    nodes: Annotated[
        str | None,
        typer.Option(
            "--nodes",
            metavar="N",
            help="Nodes of a graph: 18, or 12..20.",
            show_default="as in the training data",
        ),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require",
            help="What every graph must be, drawn again until it is: connected, tree, planar, "
            "two_communities, lobster, ring_of_cliques, sbm, valence, molecule, max_degree=4; may "
            "be repeated.",
        ),
    ] = None,
    attempts: Annotated[
        int,
        typer.Option(
            "--attempts", min=1, help="How often a graph that fails --require is drawn."
        ),
    ] = 20,
    label: Annotated[
        int | None, typer.Option("--label", min=0, help="Class of the graphs, 0, 1, ...")
    ] = None,
    prop: Annotated[
        list[str] | None,
        typer.Option(
            "--property", metavar="NAME=VALUE", help="Wanted number of a graph; may be repeated."
        ),
    ] = None,
    guidance: Annotated[
        float,
        typer.Option(
            "--guidance", help="Weight of --label and --property; 1 is the model as trained."
        ),
    ] = 1.0,
    solver: Annotated[
        str | None,
        typer.Option(
            "--solver",
            help="How a system of SDEs is solved: ddpm, heun, dpmpp2, s4, predictor_corrector, ...",
            show_default="the model's own",
        ),
    ] = None,
    noise: Annotated[
        float,
        typer.Option("--noise", min=0.0, help="How much a discrete flow redraws as it goes."),
    ] = 0.0,
    temperature: Annotated[
        float, typer.Option("--temperature", help="Of a discrete flow; below 1 is more certain.")
    ] = 1.0,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            min=1,
            help="Graphs at a time; changes speed and memory, never the graphs.",
        ),
    ] = 64,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:0.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Draw graphs and write them to a file; a form that would lose attributes is refused.

    \b
    Example:
      driftworks sample graphgen --model runs/mine --n 1000 --seed 1 --steps 50 \\
          --require connected --out graphs.jsonl --picture graphs.png
      driftworks sample graphgen --model runs/classes --label 2 --guidance 2 --out graphs.g6
    """
    sizes, wanted = parse_sizes(nodes, "nodes"), _numbers(prop or [])
    output_file(out, GRAPH_SUFFIXES)
    if picture is not None:
        output_file(picture, PICTURES)

    import time

    from driftworks import graphgen as domain
    from driftworks.graphgen import files

    chosen = domain.load(model, device)
    files.demand(out, chosen.attributes, n)
    start = time.perf_counter()
    drawn = chosen.sample(
        n,
        seed=seed,
        first=first,
        steps=steps,
        nodes=sizes,
        label=label,
        properties=wanted or None,
        guidance=guidance,
        solver=solver,
        noise=noise,
        temperature=temperature,
        require=require or (),
        attempts=attempts,
        batch_size=batch_size,
        progress=not quiet,
    )
    seconds = time.perf_counter() - start
    if not len(drawn):
        raise UserError(f"{drawn}: nothing is written; ask for less with --require, or train on")
    written = files.write(drawn.graphs, out, [int(k) for k in drawn.indices])
    if picture is not None:
        from driftworks.graphgen.picture import draw

        draw(drawn, picture)
    lost = f" ({len(drawn) - written} without a SMILES)" if written < len(drawn) else ""
    print(f"{drawn}; {seconds:.1f} s ({1e3 * seconds / drawn.attempts:.0f} ms a draw)")
    print(f"{written} written to {out}{lost}; model {chosen.name}")
    if picture is not None:
        print(f"picture in {picture}")


def _numbers(given: list[str]) -> dict[str, float]:
    values = {}
    for name, text in parse_targets(given, "property", "density=0.2").items():
        try:
            values[name] = float(text)
        except ValueError:
            raise UserError(f"property {name}={text}: {text!r} is no number") from None
        if not math.isfinite(values[name]):
            raise UserError(f"property {name}={text}: {text!r} is not finite")
    return values


@app.command()
def protein(
    length: Annotated[
        str | None,
        typer.Option(
            "--length",
            help="Residues of a chain: 80; 64,96,128 in turn; or 40..80, spread over the range. "
            "With --motif the whole design's: 80 or 70..90.",
        ),
    ] = None,
    motif: Annotated[
        Path | None,
        typer.Option(
            "--motif",
            metavar="FILE",
            help="Hold residues of this PDB, mmCIF or BinaryCIF file, named by --contigs; designs "
            "lie where the file has them.",
        ),
    ] = None,
    contigs: Annotated[
        str | None,
        typer.Option(
            "--contigs",
            help="The design from end to end: A12-25 are residues 12 to 25 of chain A of --motif, "
            "10-20 ten to twenty free ones, as in 10-20/A12-25/15-30.",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--start",
            metavar="PLACE",
            help="Vary the chains of this file or folder: each is given noise, and finished anew, "
            "--n times.",
        ),
    ] = None,
    time: Annotated[
        float | None,
        typer.Option(
            "--time",
            help="How much of --start stays: 0.95 little noise and small changes, 0.3 hardly the "
            "fold.",
            show_default="0.7",
        ),
    ] = None,
    power: Annotated[
        float | None,
        typer.Option(
            "--power",
            help="Draw from a teacher's law to this power, by weighed particles: above 1 likelier "
            "and more alike. Instead of --gamma; the chains are not independent.",
        ),
    ] = None,
    n: Annotated[
        int, typer.Option("--n", min=1, help="How many chains to request; of each --start.")
    ] = 16,
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write to, a file a chain and a record.")
    ] = Path("designs"),
    model: Annotated[
        str, typer.Option("--model", help="Model name (see `driftworks models`) or its folder.")
    ] = "ca80-sid",
    form: Annotated[
        str,
        typer.Option(
            "--format", help=f"Files: {', '.join(CHAIN_FORMATS)} (one file of arrays for all)."
        ),
    ] = "pdb",
    residue: Annotated[
        str, typer.Option("--residue", help="Name of every residue: GLY, or ALA with a C-beta.")
    ] = "GLY",
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            help=f"Draw the first 16 chains on one sheet too: {', '.join(PICTURES)}.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            help="Network calls a chain.",
            show_default="400 of a teacher, as taught of a student",
        ),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option(
            "--gamma",
            min=0.0,
            help="Noise scale: 1 draws what was learned, less is cleaner and less varied.",
            show_default="0.45, or 0 of a flow map",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            "--label", help="Secondary structure to ask for: alpha, beta, mixed or few."
        ),
    ] = None,
    guidance: Annotated[
        float,
        typer.Option("--guidance", help="Weight of --label, of teachers; 1 is the model itself."),
    ] = 1.0,
    solver: Annotated[
        str, typer.Option("--solver", help="How a teacher is followed: sde or ode.")
    ] = "sde",
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Chain i depends on seed, i and length alone.")
    ] = 0,
    first: Annotated[
        int, typer.Option("--first", min=0, help="Number of the first chain of the seed.")
    ] = 0,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            min=1,
            help="Chains at a time; changes speed and memory, never the chains.",
        ),
    ] = 32,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:0.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Draw protein backbones and write N, CA, C and O of each; no sequence is designed.

    Residues are called GLY. B-factors hold a confidence from 0 to 100: how near the model would put
    the residue again. MODEL-SEED-FIRST.json beside the files says how they were made and what each
    is. Files that are there are never replaced: give another --seed, --first or --out.

    \b
    Example:
      driftworks sample protein --length 80 --n 16 --steps 8 --out designs/ --format cif
      driftworks sample protein --model runs/student --length 40..80 --n 100 --gamma 0.45 \\
          --label alpha --seed 1 --out designs/ --picture designs.png
      driftworks sample protein --motif target.pdb --contigs 10-20/A12-25/15-30 --n 32
      driftworks sample protein --start designs/ --time 0.7 --n 4 --seed 2 --out near/
      driftworks evaluate protein designs/ --train chains.npz
    """
    from driftworks.commands import proteins

    proteins.check_request(
        length=length, motif=motif, contigs=contigs, start=start, time=time, power=power,
        first=first, gamma=gamma, guidance=guidance, solver=solver,
    )
    parsed = None if length is None else proteins.parse_lengths(length)
    span = None if parsed is None else proteins.span_of(parsed)
    if power is not None and not isinstance(span, int):
        raise UserError(f"length {length!r}: particles of --power have one length")
    if motif is not None and parsed is not None and span is None:
        raise UserError(f"length {length!r}: with --motif it is a number or a range like 70..90")
    output_folder(out)
    if form not in CHAIN_FORMATS:
        raise UserError(f"unknown format {form!r}; choose one of {', '.join(CHAIN_FORMATS)}")
    if residue not in ("GLY", "ALA"):
        raise UserError(f"unknown residue {residue!r}; choose GLY or ALA")
    if picture is not None:
        output_file(picture, PICTURES)

    from driftworks.protein import files
    from driftworks.protein.chains import Chains
    from driftworks.protein.motif import Motif
    from driftworks.protein.zoo import load

    held = None if motif is None else Motif.read(motif, contigs or "", span)
    starts = None if start is None else Chains.from_backbones(files.read(start))
    n = n if starts is None else n * len(starts)
    chosen = load(model, device)
    record = out / f"{files.plain_name(f'{chosen.name}-{seed}-{first}')}.json"
    ids = [f"{chosen.name}-{seed}-{k}" for k in range(first, first + n)]
    wanted = ["designs.npz"] if form == "npz" else files.file_names(ids, form)
    for place in (*(out / name for name in wanted), record):
        if place.exists():
            raise UserError(f"{place} is there already: give another --seed, --first or --out")
    settings: dict[str, Any] = {
        "steps": steps, "gamma": gamma, "guidance": guidance, "solver": solver, "seed": seed,
        "first": first, "batch_size": batch_size, "progress": not quiet,
    } | ({} if label is None else {"label": label})  # fmt: skip
    if power is not None:
        given: dict[str, Any] = {} if steps is None else {"steps": steps}
        assert isinstance(span, int)
        designs = chosen.anneal(
            span, n, power=power, label=label, seed=seed, batch_size=batch_size, **given
        )
    elif held is not None:
        designs = chosen.scaffold(held, n, **settings)
    elif starts is not None:
        designs = chosen.vary(starts, 0.7 if time is None else time, n // len(starts), **settings)
    else:
        assert parsed is not None
        designs = chosen.sample(proteins.lengths_of(parsed, first, n), **settings)
    written = files.write(designs, out, form, residue=residue)
    files.write_record(designs, record, [path.name for path in written])
    if picture is not None:
        from driftworks.protein.picture import draw

        draw(designs, picture)
    made = designs.provenance
    good = int(designs.finite.sum())
    print(f"{good} of {n} chains, {made['network_calls']} network calls each; "
          f"{made['seconds']:.1f} s ({1e3 * made['seconds'] / n:.0f} ms a chain)")  # fmt: skip
    if power is not None:
        told = made["particles"]
        print(f"particles of q^{power:g}, not independent: effective number "
              f"{told['effective']:.1f}, distinct chains {told['distinct']}, ancestors "
              f"{told['ancestors']}")  # fmt: skip
    if held is not None:
        print(f"each holds {len(held)} residues of {held.source}, where the file has them")
    if starts is not None:
        print(f"each from one of {len(starts)} chains of {start} at time {made['time']:.3g}")
    print(f"written to {out} ({form}), record {record.name}; model {chosen.name}")
    if picture is not None:
        print(f"picture in {picture}")
