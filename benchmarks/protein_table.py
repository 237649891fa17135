"""Teacher, students and natives side by side: network calls, seconds, and every figure.

    python benchmarks/protein_table.py --data FOLDER [--model NAME ...] [--n 200]
        [--lengths 48 64 96 128] [--gammas 0.3 0.45 0.6] [--json FILE]

``--data`` names protein_backbones.npz (`driftworks.data.backbones`) or the folder it lies in. Every
model draws n chains, of the lengths in turn that lie in the range it was trained on, at each of the
noise scales; the scale whose Frechet distance is least is the one that is shown. Teachers take 400
calls of the SDE, students and flow maps the number they were taught (``--steps`` for others).
Natives are the chains of the test split nearest to those lengths, scored in the same way, their
atoms built around their C-alphas too. Seconds are wall time of sampling alone, without confidences,
after one call that pays for imports.

Limits that a figure breaks are marked with !; intervals are 95 %.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from driftworks import protein
from driftworks.data import backbones
from driftworks.errors import UserError
from driftworks.protein.chains import Chains
from driftworks.protein.evaluation import Report

FILE = "protein_backbones.npz"


def found(data: Path) -> Path:
    path = data / FILE if data.is_dir() else data
    if not path.is_file():
        raise SystemExit(f"no {FILE} in {data}: name it with --data")
    return path


def natives(table: backbones.Backbones, sizes: list[int]) -> Chains:
    """The unused chains of the test split nearest to each of the lengths."""
    rows = table.rows("test")
    rows = rows[table.unbroken[rows]]
    free = np.ones(len(rows), bool)
    chosen = []
    for size in sizes[: len(rows)]:
        gap = np.where(free, np.abs(table.lengths[rows] - size), np.inf)
        best = int(gap.argmin())
        free[best] = False
        chosen.append(int(rows[best]))
    return Chains.from_backbones(table, chosen)


def score(chains: Chains, train: Chains, args: argparse.Namespace) -> Report:
    return protein.evaluate(
        chains, train=train, backbones=protein.full_backbones, folds=args.folds,
        searched=args.searched, seed=args.seed,
    )  # fmt: skip


def measure(name: str, train: Chains, args: argparse.Namespace) -> dict[str, Any]:
    """The best noise scale of a model: its report, calls and seconds a chain."""
    model = protein.load(name, args.device)
    low, high = model.lengths
    kept = [size for size in args.lengths if low <= size <= high] or [low, high]
    sizes = [kept[k % len(kept)] for k in range(args.n)]
    model.sample(kept[:1], steps=2, confidence=False)
    column: dict[str, Any] = {}
    for gamma in args.gammas:
        start = time.perf_counter()
        drawn = model.sample(
            sizes, steps=args.steps, gamma=gamma, seed=args.seed, confidence=False
        )
        seconds = (time.perf_counter() - start) / args.n
        report = score(drawn, train, args)
        distance = report.figures["frechet"].value if "frechet" in report.figures else np.inf
        print(f"  {model.name} gamma {gamma:g}: Frechet distance {distance:.2f}, "
              f"{seconds:.3f} s a chain", flush=True)  # fmt: skip
        if not column or distance < column["distance"]:
            column = {
                "name": f"{model.name} ({model.role})", "gamma": gamma, "distance": distance,
                "calls": drawn.provenance["network_calls"], "seconds": seconds, "report": report,
                "lengths": kept,
            }  # fmt: skip
    return column


def table(columns: list[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for c in columns for name in c["report"].figures)
    head = ["", *(c["name"] for c in columns)]
    lines = [head, ["gamma", *(_of(c, "gamma", "{:g}") for c in columns)],
             ["network calls a chain", *(_of(c, "calls", "{}") for c in columns)],
             ["seconds a chain", *(_of(c, "seconds", "{:.4f}") for c in columns)]]  # fmt: skip
    for name in names:
        row = [name]
        for c in columns:
            figure = c["report"].figures.get(name)
            if figure is None:
                row.append("-")
                continue
            mark = " !" if name in c["report"].flags else ""
            row.append(f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]{mark}")
        lines.append(row)
    wide = [max(len(row[k]) for row in lines) for k in range(len(head))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip()
            for row in lines]  # fmt: skip


def _of(column: dict[str, Any], key: str, form: str) -> str:
    return "" if column.get(key) is None else form.format(column[key])


def ratios(columns: list[dict[str, Any]]) -> list[str]:
    """How many calls and seconds each student saves its teacher."""
    teacher = next((c for c in columns if "(teacher)" in c["name"]), None)
    if teacher is None:
        return []
    return [f"{c['name']}: {teacher['calls'] / c['calls']:.0f} times fewer network calls, "
            f"{teacher['seconds'] / c['seconds']:.1f} times faster than {teacher['name']}"
            for c in columns if c is not teacher and c.get("calls")]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help=f"{FILE} or its folder")
    parser.add_argument("--model", nargs="+", help="names or folders; all shipped ones by default")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--lengths", type=int, nargs="+", default=[48, 64, 96, 128])
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.3, 0.45, 0.6])
    parser.add_argument("--steps", type=int, help="network calls a chain, of every model")
    parser.add_argument("--folds", type=int, default=100)
    parser.add_argument("--searched", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    args = parser.parse_args()
    names = args.model or list(protein.available())
    if not names:
        print("No protein model is shipped with this version. Train one with `driftworks train "
              "protein` and name its folder: --model FOLDER")  # fmt: skip
        return
    data = backbones.read(found(args.data))
    train = Chains.from_backbones(data, data.rows("train"))
    columns = []
    for name in names:
        try:
            columns.append(measure(name, train, args))
        except UserError as error:
            raise SystemExit(f"{name}: {error}") from None
    kept = sorted({size for c in columns for size in c["lengths"]})
    held = natives(data, [kept[k % len(kept)] for k in range(args.n)])
    columns.append({"name": "held-out natives", "report": score(held, train, args)})
    print(f"\n{args.n} chains of {', '.join(map(str, kept))} residues, seed {args.seed}\n")
    print("\n".join([*table(columns), "", *ratios(columns)]))
    for c in columns:
        for flagged, text in c["report"].flags.items():
            print(f"flag: {c['name']}: {flagged}: {text}")
    if args.json is not None:
        figures = [{k: v.to_dict() if k == "report" else v for k, v in c.items()} for c in columns]
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
