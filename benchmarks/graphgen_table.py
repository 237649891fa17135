"""Every shipped graph model against its data: rates, published and unbiased MMDs, real-data floors.

    python benchmarks/graphgen_table.py --data FOLDER [--model NAME ...] [--n 128] [--steps 50]
        [--noise ETA] [--picture]

``--data`` names graphs.npz (`driftworks.data.graphs`), qm9.npz or SMILES files, or the folder they
lie in. Each model is scored on the set it was trained on, told by its name or its training record
(``--set`` for others), with the published split:

    graphs      128 samples. Rates are of those requested, with bootstrap intervals. Published MMDs
                are means over 100 random subsets of the test set's size, with the interval that 95
                of them fall in; the floor is the training set, drawn and scored in the same way.
                Unbiased MMDs have positive definite kernels and bootstrap intervals.
    molecules   --molecules samples, none corrected: validity, uniqueness, novelty, NSPDK, and FCD
                where ``fcd_torch`` is installed (its bias is about 700 / n, so n is printed).

Seconds are processor time of sampling on this machine, all threads together. The figures of GDSS
were measured elsewhere, with this evaluator where that is said and else as papers print them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from driftworks import data, graphgen
from driftworks.errors import UserError
from driftworks.graphgen.mmd import Comparison
from driftworks.graphgen.report import HEADLINE, Report

#: Set -> predicate of its family.
FAMILIES = {
    "community_small": "two_communities", "community_spectre": "two_communities",
    "planar": "planar", "tree": "tree", "sbm": "sbm",
}  # fmt: skip
DIGRESS = ("planar", "tree", "sbm")  # sets whose published figures have the other kernels
MOLECULES = ("qm9", "zinc250k")

#: Set -> settings of sampling that its model card recommends, where they are not the defaults.
RECOMMENDED: dict[str, dict[str, float]] = {"enzymes": {"noise": 3.0}}

OURS = "GDSS checkpoint, 1000 steps, measured elsewhere with the same evaluator"
PAPER = "GDSS as printed in its paper"
LATER = "GDSS as printed in tables of later papers; NSPDK as in its own"
#: Set -> figures of GDSS, where they come from first.
GDSS: dict[str, dict[str, Any]] = {
    "community_small": {
        "source": OURS, "connectivity": 0.648, "validity": 0.484, "uniqueness": 1.0,
        "novelty": 1.0, "triangles": 1.45, "degree": 0.039, "clustering": 0.085, "orbit": 0.0079,
        "mean": 0.044, "seconds": 2.6,
    },
    "ego_small": {
        "source": OURS, "connectivity": 1.0, "uniqueness": 0.40, "novelty": 0.27,
        "triangles": 0.277, "degree": 0.022, "clustering": 0.035, "orbit": 0.0073, "mean": 0.021,
        "seconds": 1.1,
    },
    "enzymes": {
        "source": PAPER + " (MMDs); seconds measured elsewhere", "degree": 0.026,
        "clustering": 0.061, "orbit": 0.009, "seconds": 99.0,
    },
    "planar": {"source": "GDSS as printed by a later paper", "vun": 0.0},
    "qm9": {"source": LATER, "published": 0.9572, "unique_of_valid": 0.9846, "fcd": 2.900,
            "nspdk": 0.003},
    "zinc250k": {"source": LATER, "published": 0.9701, "unique_of_valid": 0.9964, "fcd": 14.656,
                 "nspdk": 0.019},
}  # fmt: skip

RATES = ("connectivity", "validity", "published", "vun", "uniqueness", "novelty",
         "unique_of_valid", "novel_of_valid", "copied", "nodes", "edges", "triangles")  # fmt: skip
BATCH = 128


def set_of(model: graphgen.Model, named: str | None) -> str:
    """The set a model was trained on."""
    source = (model.meta.get("training", {}).get("data") or {}).get("source") or ""
    known = sorted((*data.graphs.NAMES, *MOLECULES), key=len, reverse=True)
    for text in (named or "", model.name, str(source)):
        for name in known:
            if name in text.lower().replace("-", "_"):
                if (name in MOLECULES) != (model.attributes.nodes == ("element", "charge")):
                    raise UserError(f"{model.name} does not draw graphs like those of {name}")
                return name
    raise UserError(f"{model.name}: cannot tell its set; name one with --set: {', '.join(known)}")


def found(paths: Sequence[Path], *names: str) -> Path:
    """The first of the paths, or of the files in them, that has one of these names."""
    for path in paths:
        for name in names:
            file = path / name if path.is_dir() else path
            if file.is_file() and file.name == name:
                return file
    raise UserError(f"needs {' or '.join(names)}; name it, or its folder, with --data")


def molecules(name: str, paths: Sequence[Path]) -> tuple[list[str], list[str]]:
    """SMILES to test against and to train on."""
    if name == "qm9":
        table = data.qm9(found(paths, "qm9.npz"))
        return table.where("test", clean=True).smiles, table.where("train", clean=True).smiles
    with gzip.open(found(paths, "zinc250k.smi.gz"), "rt") as file:
        smiles = [line.split()[0] for line in file if line.strip()]
    rows = json.loads(found(paths, "valid_idx_zinc250k.json").read_text())
    rows = rows["valid_idxs"] if isinstance(rows, dict) else rows
    test = {int(row) for row in rows}
    return ([s for k, s in enumerate(smiles) if k in test],
            [s for k, s in enumerate(smiles) if k not in test])  # fmt: skip


def cells(name: str, ours: str, real: str, theirs: Any = "", percent: bool = False) -> str:
    published = "" if theirs is None else theirs
    if isinstance(published, float):
        published = f"{100 * published:.1f} %" if percent else f"{published:g}"
    return f"  {name:<22}{ours:<36}{real:<36}{published:>8}".rstrip()


def interval(draws: np.ndarray) -> str:
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{draws.mean():.4f} [{low:.4f}, {high:.4f}]"


def headline(comparisons: dict[str, Comparison], convention: str) -> np.ndarray:
    """The mean over the published descriptors, subset by subset."""
    return np.mean([comparisons[name].draws for name in HEADLINE[convention]], axis=0)


def verdict(ours: np.ndarray, floor: np.ndarray) -> str:
    low, high = np.quantile(floor, [0.025, 0.975])
    return "inside" if low <= ours.mean() <= high else "below" if ours.mean() < low else "above"


def table(report: Report, gdss: dict[str, Any], seconds: float) -> list[str]:
    """The rows of one model."""
    lines = [cells("", "ours [95 %]", "real data", "GDSS")]
    for name in RATES:
        if name not in report.figures:
            continue
        figure, real = report[name], report.data.get(name)
        percent = figure.unit == "fraction"
        scale, unit, places = (100, " %", 1) if percent else (1, "", 3)
        value, low, high = (f"{scale * x:.{places}f}" for x in (figure.value, figure.low,
                                                               figure.high))  # fmt: skip
        shown = "" if real is None else f"{scale * real:.{places}f}{unit}"
        lines.append(cells(name, f"{value}{unit} [{low}, {high}]", shown, gdss.get(name), percent))
    convention = report.convention
    if report.mmd:
        lines.append(f"  MMD^2 as published ({convention}), subsets of {report.reference}; "
                     "real data: training graphs")  # fmt: skip
        for name, ours in report.mmd.items():
            floor = report.floor[name]
            mark = verdict(ours.draws, floor.draws)
            lines.append(cells(f"  {name}", interval(ours.draws),
                               f"{interval(floor.draws)} ({mark})", gdss.get(name)))  # fmt: skip
        whole, floor_of = (headline(x, convention) for x in (report.mmd, report.floor))
        lines.append(cells("  mean", interval(whole),
                           f"{interval(floor_of)} ({verdict(whole, floor_of)})",
                           gdss.get("mean")))  # fmt: skip
        if report.ratio is not None:
            lines.append(cells("  ratio", f"{report.ratio:.2f}", "1"))
        lines.append("  MMD^2 unbiased, positive definite kernels")
        for name, c in report.mmd.items():
            f = report.floor[name]
            ours_, floor_ = (f"{x.value:.4f} [{x.low:.4f}, {x.high:.4f}]" for x in (c, f))
            lines.append(cells(f"  {name}", f"{ours_} p {c.p:.3f}", floor_))
    if report.nspdk is not None:
        floor_text = "" if report.nspdk_floor is None else f"{report.nspdk_floor[0]:.5f}"
        lines.append(cells("NSPDK", f"{report.nspdk[0]:.5f}", floor_text, gdss.get("nspdk")))
    if report.fcd is not None:
        made = round(report.validity.value * report.requested)
        lines.append(cells(f"FCD, n = {made}", f"{report.fcd:.3f}", "", gdss.get("fcd")))
    lines.append(cells("CPU-seconds a graph", f"{seconds:.4f}", "", gdss.get("seconds")))
    lines += [f"  failed: {k} {v}" for k, v in report.failures.items()]
    lines += [f"  note: {note}" for note in report.notes]
    return lines


def measure(model: graphgen.Model, name: str, args: argparse.Namespace) -> tuple[list[Any], ...]:
    """Print the table of one model; returns some data and some samples for the picture."""
    chemical = name in MOLECULES
    count = args.molecules if chemical else args.n
    if chemical:
        test, train = molecules(name, args.data)
    else:
        held = data.graphs.load(name, found(args.data, data.graphs.FILE)).without_labels()
        test, train = held.graphs("test"), held.graphs("train")
    model.sample(1, seed=args.seed + 1, steps=2)  # the first call pays for imports and buffers
    begin = time.process_time()
    advised = RECOMMENDED.get(name, {}) if args.noise is None else {"noise": args.noise}
    drawn = model.sample(count, seed=args.seed, steps=args.steps, batch_size=BATCH, **advised)
    seconds = (time.process_time() - begin) / count
    how = "".join(f", {setting} {value:g}" for setting, value in advised.items())
    print(f"\n{name}: {model}, {args.steps} network evaluations a graph, {count} graphs, seed "
          f"{args.seed}{how}", flush=True)  # fmt: skip
    settings: dict[str, Any] = {}
    if not chemical:
        settings = {
            "family": FAMILIES.get(name), "convention": "digress" if name in DIGRESS else "gdss",
        }  # fmt: skip
    report = graphgen.evaluate(drawn, test, train, seed=args.seed, **settings)
    gdss = GDSS.get(name, {})
    print("\n".join(table(report, gdss, seconds)))
    if gdss:
        print(f"  GDSS: {gdss['source']}", flush=True)
    if not chemical:
        return test[:4], list(drawn[:4])
    from rdkit import Chem

    spread = test[:: max(1, len(test) // 40)]
    some = graphgen.from_rdkit([Chem.MolFromSmiles(s) for s in spread], failures={})
    return graphgen.to_networkx(some)[:4], list(drawn[:4])


def picture(rows: list[tuple[str, list[Any], list[Any]]], path: Path) -> None:
    """One row a model: four graphs of its data, four samples."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from driftworks.graphgen.picture import draw_one, palette_of

    figure = Figure(figsize=(12.4, 1.6 * len(rows) + 0.3))
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(rows), 9, width_ratios=[1] * 4 + [0.25] + [1] * 4)
    for i, (name, real, drawn) in enumerate(rows):
        palette = palette_of([*real, *drawn], None)
        for j, graph in [*enumerate(real), *enumerate(drawn, start=5)]:
            axes = figure.add_subplot(grid[i, j])
            axes.set_axis_off()
            axes.set_aspect("equal")
            draw_one(axes, graph, palette)
            if j in (0, 5):
                axes.set_title(f"{name}, {'data' if j == 0 else 'samples'}", fontsize=8, loc="left")
    figure.tight_layout(pad=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    print(f"\nwrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", default=[Path("data")],
                        help="graphs.npz, qm9.npz, SMILES files, or the folder of them")
    parser.add_argument("--model", nargs="+", help="names or folders; all shipped ones by default")
    parser.add_argument("--set", help="the set to score against, where a model does not tell")
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--molecules", type=int, default=10000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--noise", type=float, help="of the flow; the card's by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, nargs="?",
                        const=Path(__file__).parents[1] / "docs" / "graphgen_samples.png",
                        help="draw samples beside data (docs/graphgen_samples.png)")
    args = parser.parse_args()
    names = args.model or list(graphgen.available())
    if not names:
        print("No graph model is shipped with this version, so there is nothing to measure. Train "
              "one with graphgen.fit(graphs, out=FOLDER) and name it: --model FOLDER --set NAME")
        return
    rows = []
    for chosen in names:
        try:
            model = graphgen.load(chosen, "cpu")
            name = set_of(model, args.set)
            rows.append((name, *measure(model, name, args)))
        except UserError as error:
            if args.model:
                raise SystemExit(f"{chosen}: {error}") from None
            print(f"\n{chosen}: not measured, {error}", flush=True)
    if args.picture and rows:
        picture(rows, args.picture)


if __name__ == "__main__":
    main()
