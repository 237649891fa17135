"""``driftworks train``: train a model on examples."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from driftworks.commands.arguments import group, output_folder, parse_sizes, run_length
from driftworks.commands.graphs import SOURCES
from driftworks.commands.proteins import SOURCES as CHAINS
from driftworks.errors import UserError

__all__ = ["app", "graphgen", "molgen", "protein", "regressor", "shapes"]

MINUTES = 120.0
GRAPH_MINUTES = 30.0
SHAPE_MINUTES = 40.0
PROTEIN_MINUTES = 120.0

app = group(
    "Train a model.\n\n"
    "\b\n"
    "Example:\n"
    "  driftworks train molgen --data qm9 --minutes 60 --out runs/mine\n"
    "  driftworks train graphgen --data graphs.jsonl --minutes 10 --out runs/graphs"
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
    minutes = run_length(minutes, steps, MINUTES)
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
def graphgen(
    data: Annotated[str, typer.Option("--data", help=f"What to train on: {SOURCES}.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the model and of the run's state.")],
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            help="Recipe: small (two CPU cores), quick (the same for minutes), base (one GPU), or "
            "gdss (the published system).",
        ),
    ] = "small",
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Length in wall time.", show_default=f"{GRAPH_MINUTES:g}"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Length in steps, instead of minutes.")
    ] = None,
    system: Annotated[
        str, typer.Option("--system", help="flow (discrete flow) or sde (system of SDEs).")
    ] = "flow",
    node_attribute: Annotated[
        list[str] | None,
        typer.Option("--node-attribute", help="Categorical attribute of nodes; may be repeated."),
    ] = None,
    edge_attribute: Annotated[
        list[str] | None,
        typer.Option("--edge-attribute", help="Categorical attribute of edges; may be repeated."),
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option("--feature", help="Continuous attribute of nodes; may be repeated."),
    ] = None,
    weight: Annotated[
        str | None, typer.Option("--weight", help="The continuous attribute of edges.")
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", help="Attribute to leave behind; may be repeated."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", help="Class of a graph to condition on: an attribute 0, 1, ..."),
    ] = None,
    prop: Annotated[
        list[str] | None,
        typer.Option("--property", help="Number of a graph to condition on; may be repeated."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Graphs a step.", show_default="the preset's"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of weights and batches.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:0.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, if there is one.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train a graph model; the training split is used where the data has one.

    Every attribute of the graphs is declared or ignored by name. Of molecules atoms, charges and
    bonds are learned without being declared; properties are columns of a table or tags of an SDF. A
    family is drawn afresh: 128 graphs to train, 40 to test.

    \b
    Example:
      driftworks train graphgen --data two_communities --minutes 10 --out runs/communities
      driftworks train graphgen --data mine.jsonl --node-attribute role --weight strength \\
          --out runs/mine --resume
      driftworks train graphgen --data graphs.npz:enzymes --ignore label --out runs/enzymes
      driftworks train graphgen --data qm9 --property gap --minutes 90 --out runs/gap
      driftworks sample graphgen --model runs/mine --n 100 --out drawn.jsonl
    """
    # the gdss recipes have a length of their own
    own = None if preset.startswith("gdss") else GRAPH_MINUTES
    minutes = run_length(minutes, steps, own)
    output_folder(out)

    from driftworks.core.run import pick_device
    from driftworks.graphgen import gdss
    from driftworks.graphgen.train import PRESETS

    if preset not in (*PRESETS, *gdss.PRESETS):
        choices = ", ".join((*PRESETS, *gdss.PRESETS))
        raise UserError(f"unknown preset {preset!r}; choose one of {choices}")
    if system not in ("flow", "sde"):
        raise UserError(f"unknown system {system!r}; choose flow or sde")
    pick_device(device)

    from driftworks.commands.graphs import declared, source_of
    from driftworks.graphgen.fitting import fit

    asked = [*(prop or []), *([label] if label else [])]
    source = source_of(data, "train", progress=not quiet, properties=asked)
    nodes, edges, features = node_attribute or [], edge_attribute or [], feature or []
    examples: Any
    if source.molecules:
        if nodes or edges or features or weight or ignore:
            raise UserError("of molecules atoms, charges and bonds are learned: leave out "
                            "--node-attribute, --edge-attribute and the like")
        examples = source.graphs
        print(f"{len(examples)} molecules: {source.text}")
    else:
        on_edges = [*edges, *([weight] if weight else [])]
        examples = declared(source.graphs, [*nodes, *features], on_edges, ignore or [])
        print(f"{len(examples)} graphs to train on: {source.text}")
    recipe: dict[str, Any] = {} if batch_size is None else {"batch": batch_size}
    model = fit(
        examples,
        minutes,
        steps=steps,
        nodes=nodes,
        edges=edges,
        features=features,
        weight=weight,
        label=label,
        properties=prop or [],
        system=system,
        preset=preset,
        out=out,
        resume=resume,
        seed=seed,
        device=device,
        progress=not quiet,
        # a model may be given away: its record names the file, not where it lay
        source=source.text.replace(str(Path(data).parent) + os.sep, ""),
        **recipe,
    )
    used = model.meta["training"]["data"]
    print(f"model written to {out}, trained on {used['graphs']} of {used['source']}")


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
    run_length(minutes, None, None)
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


@app.command()
def shapes(
    out: Annotated[Path, typer.Option("--out", help="Folder of the model and of the run's state.")],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="creatures, a file of maps, an .npz of registered meshes, or a folder of meshes "
            "that share their vertex numbers.",
        ),
    ] = "creatures",
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", help="File (.npz) of the maps, read if it is there and else written."
        ),
    ] = None,
    maps_only: Annotated[
        bool, typer.Option("--maps-only", help="Write the maps to --cache and stop.")
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", help="Category to leave out, such as ape; may be repeated."),
    ] = None,
    k: Annotated[
        int, typer.Option("--k", min=30, help="Functions of a shape: 30 to 100, by fives.")
    ] = 100,
    count: Annotated[
        int, typer.Option("--count", min=16, help="Creatures, where they are the data.")
    ] = 600,
    poses: Annotated[
        int,
        typer.Option(
            "--poses", min=1, help="So many meshes in a row are of one subject (registered meshes)."
        ),
    ] = 1,
    preset: Annotated[
        str, typer.Option("--preset", help="Recipe: small (CPU) or base (one GPU).")
    ] = "small",
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Length in wall time.", show_default=f"{SHAPE_MINUTES:g}"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Length in steps, instead of minutes.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=2, help="Maps a step.", show_default="the preset's"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of data, weights, batches.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:0.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, if there is one.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train the prior on functional maps, on maps between shapes with known correspondence.

    Creatures are made first, two or three a second. A tenth of the subjects is held out; every few
    minutes the error of their maps is told, denoised at noise .05/.1/.3/1. An .npz of meshes holds
    names and, for each, NAME.v, NAME.f and NAME.corr: its vertices at points in one order.

    \b
    Example:
      driftworks train shapes --data creatures --preset small --minutes 40 \\
          --cache creatures.npz --out runs/maps --resume
      driftworks train shapes --data scans/ --poses 10 --out runs/scans
    """
    minutes = run_length(minutes, steps, SHAPE_MINUTES)
    if maps_only and cache is None:
        raise UserError("--maps-only needs --cache, the file to write")
    output_folder(out)

    from driftworks.core.run import pick_device
    from driftworks.shapes import maps as sets
    from driftworks.shapes.train import TrainConfig, train

    pick_device(device)
    recipe: dict[str, Any] = {} if batch_size is None else {"batch": batch_size}
    config = TrainConfig.preset(
        preset, minutes=minutes, steps=steps, seed=seed, device=device, net={"k": k}, **recipe
    )

    def make() -> sets.Maps:
        if data == "creatures":
            return sets.of_creatures(count, k, seed=seed, progress=not quiet)
        return sets.of_meshes(data, k, poses=poses, seed=seed, progress=not quiet)

    if Path(data).is_file() and sets.is_maps(data):
        examples = sets.read(data)
    else:
        examples = make() if cache is None else sets.load_or_make(cache, make)
    if without:
        kinds = {str(name) for name in examples.groups}
        examples.of_groups(without)  # an unknown name is an error
        examples = examples.of_groups(sorted(kinds - set(without)))
    print(f"{len(examples.training())} maps to train on, {len(examples.held_out())} held out: "
          f"{examples.source}")
    if maps_only:
        print(f"maps are in {cache}")
        return
    folder = train(config, examples, out, resume=resume, progress=not quiet)
    print(f"model written to {folder}")


@app.command()
def protein(
    data: Annotated[str, typer.Option("--data", help=f"What to train on: {CHAINS}.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the model and of the run's state.")],
    preset: Annotated[
        str,
        typer.Option(
            "--preset", help="Recipe: small (one CPU core, 40-80 residues) or base (GPU, 40-128)."
        ),
    ] = "small",
    lengths: Annotated[
        str | None,
        typer.Option(
            "--lengths",
            metavar="A..B",
            help="Least and most residues of a chain; pieces of longer ones are used too.",
            show_default="the preset's",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Length in wall time.", show_default=f"{PROTEIN_MINUTES:g}"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Length in steps, instead of minutes.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Chains a step.", show_default="the preset's"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of weights and batches.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:0.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, if there is one.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train a teacher of protein backbones; the training split is used where the data has one.

    Chains are drawn by cluster of similar sequences, so that frequent folds count once. Of a folder
    of structures, what is left out is counted and said. A teacher takes 400 network calls a chain;
    `distill protein` makes a student of it that takes 8.

    \b
    Example:
      driftworks train protein --data chains.npz --preset small --minutes 240 \\
          --out runs/teacher --resume
      driftworks train protein --data structures/ --lengths 40..100 --out runs/mine
      driftworks sample protein --model runs/teacher --length 64 --n 16 --out designs/
    """
    minutes = run_length(minutes, steps, PROTEIN_MINUTES)
    span = parse_sizes(lengths, "lengths")
    output_folder(out)

    from driftworks.commands.proteins import table_of
    from driftworks.core.run import pick_device
    from driftworks.protein.train import TrainConfig, train

    pick_device(device)
    recipe: dict[str, Any] = {} if batch_size is None else {"batch": batch_size}
    if span is not None:
        recipe["lengths"] = (span, span) if isinstance(span, int) else span
    config = TrainConfig.preset(
        preset, minutes=minutes, steps=steps, seed=seed, device=device, **recipe
    )
    table, text = table_of(data, "train", progress=not quiet)
    print(text)
    folder = train(config, table, out, resume=resume, progress=not quiet)
    print(f"model written to {folder}")
