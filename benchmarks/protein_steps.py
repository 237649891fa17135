"""Quality of backbones against the network calls they cost: teacher by ODE and SDE, and students.

    python benchmarks/protein_steps.py --model TEACHER STUDENT ... [--n 100] [--lengths 48 64 80]
        [--gamma 0.45 ...] [--steps 1 2 4 8 16] [--teacher-steps 8 16 32 64 128 400]
        [--data FOLDER] [--cache runs/protein-steps.jsonl] [--out docs/protein_steps.png]

A model is a shipped name or a folder; its role and, for students, the method that taught it are
read from its checkpoint. A teacher gives two curves, its probability flow and its SDE; a student
one, with the times it was taught spread over fewer or more calls (`core.student`), its own number
among them (ringed in the picture); a flow map one, along the log grid without fresh noise. Where
several noise scales are given the one whose Frechet distance is least answers for each cell. All
models draw the same lengths, those asked for that lie in the range of every one.

Figures, with 95 % intervals, are those of `protein.evaluate`: bonds of the right length, chains
without a clash, right-handed among helix-like dihedrals, distance of seven-residue fragments and
Frechet distance of 24 descriptors from natives. Natives of these lengths are a grey line, and sets
of n of them lie within its band (shipped statistics); ``--data`` adds held-out natives to the
table. Seconds are wall time of sampling a chain on this machine. Neither diversity nor memorisation
is measured here: `protein_table.py` does.

``--cache`` keeps chains as they are drawn, and every evaluation, so that a run can be cut and goes
on; `protein_table.py` reads the same lines. A line knows the weights, the settings and the kind of
device, but not the code: start a new file after changing that.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protein_table import drawn, found, frechet, in_turn, natives, score, shown, taught
from store import Store

from driftworks import protein
from driftworks.data import backbones
from driftworks.errors import UserError
from driftworks.protein.zoo import Model

METHODS = {"sid": "SiD", "sim": "SIM", "ctm": "CTM"}
#: Figure -> its title and the scale of its axis.
PANELS = {
    "bonds": ("bonds of the right length", "linear"),
    "clash_free": ("chains without a clash", "linear"),
    "right_handed": ("right-handed, of helix-like dihedrals", "linear"),
    "fragment": ("distance of fragments", "linear"),
    "frechet": ("Fréchet distance of descriptors", "log"),
}
#: Colour and marker of each curve (Okabe & Ito's colours).
STYLES = {
    "teacher, ODE": ("#56B4E9", "o"),
    "teacher, SDE": ("#0072B2", "s"),
    "SiD": ("#D55E00", "D"),
    "SIM": ("#E69F00", "^"),
    "CTM": ("#009E73", "v"),
}
OTHERS = ("#CC79A7", "#000000", "#999999", "#F0E442")


@dataclass(frozen=True, eq=False)
class Curve:
    """A model and a way to ask it, at several numbers of calls."""

    label: str
    model: Model
    solver: str
    gammas: tuple[float, ...]
    steps: tuple[int, ...]


def method(model: Model) -> str:
    """What taught a student, as it is written; its role where the checkpoint does not say."""
    name = model.meta.get("training", {}).get("method", model.role)
    return METHODS.get(name, str(name))


def curves_of(model: Model, args: argparse.Namespace) -> list[Curve]:
    gammas = tuple(args.gamma)
    if model.role == "teacher":
        steps = tuple(sorted(set(args.teacher_steps)))
        return [Curve("teacher, ODE", model, "ode", (0.0,), steps),
                Curve("teacher, SDE", model, "sde", gammas, steps)]  # fmt: skip
    own = taught(model)
    if model.role == "flowmap":
        return [Curve(method(model), model, "sde", (0.0,), tuple(sorted({own, *args.steps})))]
    # a single time cannot be spread over several calls
    steps = (1,) if own == 1 else tuple(sorted({own, *args.steps}))
    return [Curve(method(model), model, "sde", gammas, steps)]


def named_apart(curves: list[Curve]) -> list[Curve]:
    """Curves of equal labels get the names of their models."""
    labels = [c.label for c in curves]
    return [
        c if labels.count(c.label) == 1
        else Curve(f"{c.label}, {c.model.name}", c.model, c.solver, c.gammas, c.steps)
        for c in curves
    ]  # fmt: skip


def shared_lengths(models: Sequence[Model], wanted: Sequence[int]) -> list[int]:
    """Those of the wanted lengths that every model was trained on."""
    low, high = (f(m.lengths[k] for m in models) for k, f in ((0, max), (1, min)))
    kept = [size for size in wanted if low <= size <= high]
    if not kept:
        ranges = ", ".join(f"{m.name} {m.lengths[0]}-{m.lengths[1]}" for m in models)
        raise UserError(f"no length of {list(wanted)} is in the range of every model ({ranges})")
    return kept


def cell(
    curve: Curve, steps: int, lengths: Sequence[int], store: Store, args: argparse.Namespace
) -> dict[str, Any]:
    """The best noise scale of a curve at a number of steps."""
    best: dict[str, Any] = {}
    for gamma in curve.gammas:
        some = drawn(curve.model, lengths, args.n, store, steps=steps, gamma=gamma,
                     solver=curve.solver, seed=args.seed)  # fmt: skip
        report = score(some.chains, some.key, store, folds=0, seed=args.seed)
        if not best or frechet(report) < frechet(best["report"]):
            best = {
                "label": curve.label, "model": curve.model.name, "steps": steps,
                "calls": some.calls, "taught": curve.model.role != "teacher"
                and steps == taught(curve.model),
                "gamma": None if curve.solver == "ode" else gamma, "seconds": some.seconds,
                "report": report,
            }  # fmt: skip
    return best


def row(one: dict[str, Any]) -> str:
    """A cell as a line of the table."""
    figures = one["report"]["figures"]
    gamma = "" if one["gamma"] is None else f"{one['gamma']:g}"
    seconds = "" if one["seconds"] is None else f"{one['seconds']:.4f}"
    numbers = "".join(f"{shown(figures.get(name)):24}" for name in PANELS)
    return f"{one['label']:24}{one['calls']!s:>5}  {gamma:6}{numbers}{seconds:>9}"


def header() -> str:
    titles = "".join(f"{name:24}" for name in PANELS)
    return f"{'':24}{'calls':>5}  {'gamma':6}{titles}{'s a chain':>9}"


def beside(cells: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Figure -> natives' value and band, from the cell that compared most chains with them."""
    ranked = sorted(cells, key=lambda c: -c["report"]["figures"]["delivered"]["value"])
    out = {}
    for one in ranked:
        for name in PANELS:
            figure = one["report"]["figures"].get(name, {})
            if name not in out and figure.get("natives") is not None:
                low, high = figure["band"]
                out[name] = (figure["natives"], low, high)
    return out


def picture(cells: Sequence[dict[str, Any]], title: str, to: Path) -> None:
    """A panel a figure, natives grey, and one of seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).ravel()
    native = beside(cells)
    labels = list(dict.fromkeys(c["label"] for c in cells))
    spare = iter(OTHERS * len(labels))
    looks = {name: STYLES.get(name) or (next(spare), "P") for name in labels}
    for name, ax in zip((*PANELS, "seconds"), axes, strict=True):
        for label in labels:
            some = sorted((c for c in cells if c["label"] == label), key=lambda c: c["calls"])
            curve(ax, name, some, label, *looks[label])
        if name in native:
            value, low, high = native[name]
            ax.axhspan(low, high, color="0.88", lw=0, zorder=0)
            ax.axhline(value, color="0.45", lw=1.2, ls="--", label="natives", zorder=1)
        what, scale = PANELS.get(name, ("wall seconds a chain", "log"))
        ax.set(xscale="log", yscale=scale, title=what, xlabel="network calls a chain")
        calls = sorted({c["calls"] for c in cells})
        ax.set_xticks(calls, calls, fontsize=8)
        ax.set_xticks([], minor=True)
        ax.grid(color="0.92", lw=0.6)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.suptitle(title, fontsize=10)
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=100, metadata={"Software": None})


def curve(
    ax: Any, name: str, cells: Sequence[dict[str, Any]], label: str, colour: str, marker: str
) -> None:
    """One curve of a panel with its intervals; a ring where a student has as many calls as it
    was taught."""
    points = []
    for one in cells:
        found_ = ({"value": one["seconds"], "low": None, "high": None} if name == "seconds"
                  else one["report"]["figures"].get(name))  # fmt: skip
        if found_ is not None and found_["value"] is not None:
            value = found_["value"]
            low, high = (value if found_[k] is None else found_[k] for k in ("low", "high"))
            points.append((one["calls"], value, value - low, high - value, one["taught"]))
    if not points:
        return
    x, y, down, up, own = zip(*points, strict=True)
    ax.errorbar(x, y, yerr=(down, up), color=colour, marker=marker, ms=4.5, lw=1.4,
                elinewidth=0.8, label=label, zorder=3)  # fmt: skip
    ringed = [(a, b) for a, b, mine in zip(x, y, own, strict=True) if mine]
    if ringed:
        ax.plot(*zip(*ringed, strict=True), ls="", marker="o", ms=10, mfc="none", mec=colour,
                zorder=4)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", help="names or folders; all shipped ones by default")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--lengths", type=int, nargs="+", default=[48, 64, 80, 96, 128])
    parser.add_argument("--gamma", type=float, nargs="+", default=[0.45],
                        help="noise scales of the SDE and of students")  # fmt: skip
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16],
                        help="calls of students, besides those they were taught")  # fmt: skip
    parser.add_argument("--teacher-steps", type=int, nargs="+",
                        default=[8, 16, 32, 64, 128, 400])  # fmt: skip
    parser.add_argument("--data", type=Path, help="protein_backbones.npz or its folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache", type=Path, default=Path("runs/protein-steps.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("docs/protein_steps.png"))
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    args = parser.parse_args(arguments)
    if args.n < 2:
        parser.error(f"--n is at least 2, got {args.n}")
    names = args.model or list(protein.available())
    if not names:
        print("No protein model is shipped with this version. Train one with `driftworks train "
              "protein` and name its folder: --model FOLDER")  # fmt: skip
        return
    data = None if args.data is None else backbones.read(found(args.data))
    store = Store(args.cache)
    cells = []
    try:
        models = [protein.load(name, args.device) for name in names]
        lengths = shared_lengths(models, args.lengths)
        curves = named_apart([c for model in models for c in curves_of(model, args)])
        title = (f"{args.n} chains of {', '.join(map(str, lengths))} residues a cell, "
                 f"95 % intervals; {models[0].device.type}")  # fmt: skip
        print(f"{title}\n\n{header()}", flush=True)
        for one in curves:
            for steps in one.steps:
                cells.append(cell(one, steps, lengths, store, args))
                print(row(cells[-1]), flush=True)
    except UserError as error:
        raise SystemExit(str(error)) from None
    native = beside(cells)
    print(row({
        "label": "natives [band of n]", "calls": "", "gamma": None, "seconds": None,
        "report": {"figures": {name: {"value": value, "low": low, "high": high}
                               for name, (value, low, high) in native.items()}},
    }))  # fmt: skip
    if data is not None:
        held = natives(data, in_turn(lengths, args.n))
        key = f"natives of {len(data)} chains | {args.n} of {' '.join(map(str, lengths))}"
        report = score(held, key, store, folds=0, seed=args.seed)
        print(row({"label": "held-out natives", "calls": "", "gamma": None, "seconds": None,
                   "report": report}))  # fmt: skip
    picture(cells, title, args.out)
    print(f"\nwrote {args.out}")
    if args.json is not None:
        args.json.write_text(json.dumps(cells) + "\n")


if __name__ == "__main__":
    main()
