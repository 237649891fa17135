"""Teacher, students and natives side by side: network calls, seconds, figures, and what is met.

    python benchmarks/protein_table.py --data FOLDER [--model NAME|FOLDER ...] [--n 200]
        [--lengths 48 64 96 128] [--gammas 0.45 0.7 1] [--steps K] [--teacher-steps 400]
        [--teacher-gammas 0.7 1] [--cache FILE.jsonl] [--json FILE]

``--data`` names protein_backbones.npz (`driftworks.data.backbones`) or the folder it lies in. Every
model draws n chains, of the lengths in turn that lie in the range it was trained on, at each of the
noise scales (flow maps, whose noise is a share of fresh noise, also without any); the scale whose
Frechet distance is least is the one that is shown. Teachers take 400 calls of the SDE, students and
flow maps the number they were taught. Natives are the chains of the test split nearest to those
lengths, scored in the same way, their atoms built around their C-alphas too. Seconds are wall time
of sampling alone, without confidences, after one call that pays for imports.

Limits that a figure breaks are marked with !; intervals are 95 %. Below the table stands what a
student must reach beside the teacher it learned from, and a teacher beside natives: a line each,
met or not met by the figure itself, with a word where its interval holds the limit. Clusters over
chains shrink with the number of chains, so folds are judged over equally many.

``--cache`` keeps chains as they are drawn, and every evaluation, so that a run can be cut and goes
on. A line knows the weights, the settings and the kind of device, but not the code: start a new
file after changing that.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from store import Store

from driftworks import protein
from driftworks.data import backbones
from driftworks.errors import UserError
from driftworks.protein.chains import Chains
from driftworks.protein.sample import STEPS
from driftworks.protein.zoo import Model

FILE = "protein_backbones.npz"
CALLS, SPEED = 25.0, 15.0  # times fewer network calls, times faster than the teacher
#: Chains of a length drawn between two lines of the cache, by device: a full batch on a GPU.
PIECE = {"cpu": 8}
FULL = 32
Limits = dict[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Drawn:
    """Chains of a model, what they cost, and the key that says how they were made."""

    chains: Chains
    calls: int
    seconds: float  # a chain
    key: str


@dataclass(eq=False)
class Column:
    """A column of the table: a model at its best noise scale, or natives."""

    name: str
    report: dict[str, Any]
    drawn: Drawn | None = None
    model: Model | None = None
    gamma: float | None = None
    lengths: list[int] = field(default_factory=list)

    def figure(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.report["figures"].get(name)
        return None if found is None or found["value"] is None else found

    def value(self, name: str) -> float:
        found = self.figure(name)
        return math.nan if found is None else float(found["value"])

    def to_dict(self) -> dict[str, Any]:
        made = {} if self.drawn is None or self.model is None else {
            "role": self.model.role, "weights": self.model.hash, "gamma": self.gamma,
            "calls": self.drawn.calls, "seconds": self.drawn.seconds, "lengths": self.lengths,
        }  # fmt: skip
        return {"name": self.name, **made, "report": self.report}


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


def in_turn(lengths: Sequence[int], n: int) -> list[int]:
    return list(itertools.islice(itertools.cycle(lengths), n))


def drawn(
    model: Model, lengths: Sequence[int], n: int, store: Store, *, steps: int, gamma: float,
    solver: str = "sde", seed: int = 0,
) -> Drawn:
    """n chains of the lengths in turn, drawn now or earlier, in pieces of `PIECE` a length."""
    sizes = in_turn(lengths, n)
    way = solver if model.role == "teacher" else model.role
    key = (model.hash, model.device.type, way, steps, f"gamma {gamma:g}", f"seed {seed}",
           " ".join(map(str, lengths)))  # fmt: skip

    def make(first: int, some: list[int]) -> dict[str, Any]:
        model.sample(some[:1], steps=1, confidence=False)
        begin = time.perf_counter()
        made = model.sample(
            some, steps=steps, gamma=gamma, solver=solver, seed=seed, first=first, confidence=False
        )
        seconds = time.perf_counter() - begin
        raw = np.concatenate(made.arrays()).astype("<f4").tobytes()
        return {
            "calls": made.provenance["network_calls"], "seconds": seconds,
            "ca": base64.b64encode(zlib.compress(raw)).decode(),
        }  # fmt: skip

    piece = len(lengths) * PIECE.get(model.device.type, FULL)
    cells, arrays = [], []
    for first in range(0, n, piece):
        some = sizes[first : first + piece]
        cells.append(store.get(("drawn", *key, first, len(some)), partial(make, first, some)))
        raw = zlib.decompress(base64.b64decode(cells[-1]["ca"]))
        points = np.frombuffer(raw, "<f4").reshape(-1, 3).copy()
        arrays += np.split(points, np.cumsum(some)[:-1])
    seconds = sum(c["seconds"] for c in cells) / n
    return Drawn(Chains.of(arrays), cells[0]["calls"], seconds, " | ".join(map(str, (*key, n))))


def score(
    chains: Chains, key: str, store: Store, train: Chains | None = None, *, folds: int,
    searched: int = 0, seed: int = 0,
) -> dict[str, Any]:
    """The evaluation of chains that ``key`` names, as a dictionary, made now or earlier."""
    known = "no" if train is None else len(train)
    return store.get(
        ("report", key, f"{folds} folds", f"{searched} searched in {known}", f"seed {seed}"),
        lambda: protein.evaluate(
            chains, train=train, backbones=protein.full_backbones, folds=folds, searched=searched,
            seed=seed,
        ).to_dict(),
    )  # fmt: skip


def taught(model: Model) -> int:
    """The calls a model makes when it is not told otherwise."""
    return STEPS if model.role == "teacher" else len(model.times)


def frechet(report: dict[str, Any]) -> float:
    """The Frechet distance, infinite where nothing could be measured."""
    value = report["figures"].get("frechet", {}).get("value")
    return math.inf if value is None else float(value)


def measure(model: Model, train: Chains, store: Store, args: argparse.Namespace) -> Column:
    """The best noise scale of a model: its report, calls and seconds a chain."""
    low, high = model.lengths
    kept = [size for size in args.lengths if low <= size <= high] or [low, high]
    given = args.teacher_steps if model.role == "teacher" else args.steps
    steps = taught(model) if given is None else given
    own = args.teacher_gammas if model.role == "teacher" else None
    gammas = list(own or args.gammas)
    if model.role == "flowmap":
        gammas = sorted({0.0, *(gamma for gamma in gammas if gamma <= 1)})
    best: Column | None = None
    for gamma in gammas:
        some = drawn(model, kept, args.n, store, steps=steps, gamma=gamma, seed=args.seed)
        report = score(some.chains, some.key, store, train, folds=args.folds,
                       searched=args.searched, seed=args.seed)  # fmt: skip
        print(f"  {model.name} gamma {gamma:g}: Frechet distance {frechet(report):.2f}, "
              f"{some.seconds:.3f} s a chain", flush=True)  # fmt: skip
        if best is None or frechet(report) < frechet(best.report):
            best = Column(f"{model.name} ({model.role})", report, some, model, gamma, kept)
    assert best is not None
    return best


def table(columns: list[Column]) -> list[str]:
    names = dict.fromkeys(name for c in columns for name in c.report["figures"])

    def row(title: str, cell: Callable[[Column], str]) -> list[str]:
        return [title, *(cell(c) for c in columns)]

    def cost(form: str, of: Callable[[Drawn], float]) -> Callable[[Column], str]:
        return lambda c: "" if c.drawn is None else form.format(of(c.drawn))

    lines = [
        row("", lambda c: c.name),
        row("gamma", lambda c: "" if c.gamma is None else f"{c.gamma:g}"),
        row("network calls a chain", cost("{:.0f}", lambda d: d.calls)),
        row("seconds a chain", cost("{:.4f}", lambda d: d.seconds)),
        *(row(name, lambda c, name=name: shown(c.figure(name)) + (
            " !" if name in c.report["flags"] else "")) for name in names),
    ]  # fmt: skip
    wide = [max(len(line[k]) for line in lines) for k in range(len(columns) + 1)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)).rstrip()
            for line in lines]  # fmt: skip


def shown(figure: dict[str, Any] | None) -> str:
    """A figure with its interval."""
    if figure is None or figure["value"] is None:
        return "-"
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def student_limits(of: Callable[[str], float]) -> Limits:
    """Figure -> least and most for a student, from the figures of its teacher."""
    limits = {
        "bonds": (0.98, math.inf),
        "clash_free": (0.9, math.inf),
        "right_handed": (0.9, math.inf),
        "ramachandran": (-math.inf, of("ramachandran") + 0.03),
        "fragment": (-math.inf, 1.1 * of("fragment")),
        "frechet": (-math.inf, 1.3 * of("frechet") + 2.0),
    }
    for name in ("helix", "strand"):
        limits[name] = (of(name) - 0.08, of(name) + 0.08)
    for name in ("helix_spread", "strand_spread"):
        limits[name] = (0.7 * of(name), math.inf)
    return limits | {
        "folds": (0.8 * of("folds"), math.inf),
        "nearest": (-math.inf, of("nearest") + 0.03),
        "memorised": (-math.inf, 0.05),
    }


def teacher_limits(of: Callable[[str], float]) -> Limits:
    """Figure -> least and most for a teacher, from the figures of natives of these lengths."""
    limits: Limits = {"fragment": (-math.inf, 0.4), "frechet": (-math.inf, 12.0)}
    return limits | {name: (of(name) - 0.1, of(name) + 0.1) for name in ("helix", "strand")}


def verdict(what: str, figure: dict[str, Any] | None, low: float, high: float) -> str:
    """A line: met or not, the figure, and what it may be."""
    sides = [f"{word} {limit:.3f}" for word, limit in ((">=", low), ("<=", high))
             if math.isfinite(limit)]  # fmt: skip
    wanted = " and ".join(sides)
    if math.isnan(low) or math.isnan(high):
        return f"  unknown  {what:22}{shown(figure):26}the teacher has no such figure"
    if figure is None:
        return f"  not met  {what:22}{'not measured':26}{wanted}"
    met = low <= figure["value"] <= high
    ends = (figure.get("low"), figure.get("high"))
    open_ = None not in ends and any(ends[0] <= limit <= ends[1] for limit in (low, high))
    word = "met" if met else "not met"
    tail = "  (a limit lies in the interval)" if open_ else ""
    return f"  {word:9}{what:22}{shown(figure):26}{wanted}{tail}"


def teacher_of(student: Column, teachers: Sequence[Column]) -> tuple[Column, bool]:
    """The teacher a student learned from, or the first one and False."""
    assert student.model is not None
    wanted = student.model.meta.get("teacher", {}).get("sha256")
    for column in teachers:
        if column.model is not None and column.model.hash == wanted:
            return column, True
    return teachers[0], False


def equal_folds(columns: Sequence[Column], store: Store, args: argparse.Namespace) -> list[Column]:
    """The columns with folds over equally many realistic chains, none where fewer than two are."""
    counts = [0 if (f := c.figure("folds")) is None else int(f["n"]) for c in columns]
    out = []
    for column, count in zip(columns, counts, strict=True):
        figures = {k: v for k, v in column.report["figures"].items() if k != "folds"}
        if min(counts) >= 2:
            report = column.report
            if count > min(counts):
                assert column.drawn is not None
                report = score(column.drawn.chains, column.drawn.key, store, folds=min(counts),
                               seed=args.seed)  # fmt: skip
            figures["folds"] = report["figures"]["folds"]
        out.append(Column(column.name, {**column.report, "figures": figures}, column.drawn,
                          column.model, column.gamma, column.lengths))  # fmt: skip
    return out


def verdicts(columns: Sequence[Column], store: Store, args: argparse.Namespace) -> list[str]:
    """What is reached: students beside their teachers, teachers beside natives."""
    teachers = [c for c in columns if c.model is not None and c.model.role == "teacher"]
    lines = []
    for one in columns:
        if one.model is None or one in teachers:
            continue
        if not teachers:
            lines.append(f"{one.name}: no teacher was named that it could be judged beside")
            continue
        chosen, own = teacher_of(one, teachers)
        teacher, student = equal_folds([chosen, one], store, args)
        said = "" if own else ", which is not the teacher it learned from"
        if teacher.lengths != student.lengths:
            said += f" (lengths differ: {teacher.lengths}, {student.lengths})"
        lines.append(f"{student.name} beside {teacher.name}{said}:")
        assert teacher.drawn is not None and student.drawn is not None
        for what, ratio, least in (
            ("fewer network calls", teacher.drawn.calls / student.drawn.calls, CALLS),
            ("times faster", teacher.drawn.seconds / student.drawn.seconds, SPEED),
        ):
            lines.append(verdict(what, {"value": ratio, "low": None, "high": None}, least,
                                 math.inf))  # fmt: skip
        for name, (low, high) in student_limits(teacher.value).items():
            figure = student.figure(name)
            what = name
            if name == "folds" and figure is not None:
                what = f"folds of {figure['n']} chains"
            lines.append(verdict(what, figure, low, high))
        lines.append("")
    for one in teachers:
        lines.append(f"{one.name} beside natives of these lengths:")

        def native(name: str, one: Column = one) -> float:
            value = one.report["figures"][name].get("natives")
            return math.nan if value is None else float(value)

        lines += [verdict(name, one.figure(name), low, high)
                  for name, (low, high) in teacher_limits(native).items()]  # fmt: skip
        lines.append("")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help=f"{FILE} or its folder")
    parser.add_argument("--model", nargs="+", help="names or folders; all shipped ones by default")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--lengths", type=int, nargs="+", default=[48, 64, 96, 128])
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.45, 0.7, 1.0])
    parser.add_argument("--steps", type=int, help="network calls of a student, as taught if unsaid")
    parser.add_argument("--teacher-steps", type=int, help=f"{STEPS} by default")
    parser.add_argument("--teacher-gammas", type=float, nargs="+", help="--gammas by default")
    parser.add_argument("--folds", type=int, default=100)
    parser.add_argument("--searched", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache", type=Path, help="JSON lines of what is drawn and measured")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    args = parser.parse_args(arguments)
    if args.n < 1:
        parser.error(f"--n is at least 1, got {args.n}")
    names = args.model or list(protein.available())
    if not names:
        print("No protein model is shipped with this version. Train one with `driftworks train "
              "protein` and name its folder: --model FOLDER")  # fmt: skip
        return
    data = backbones.read(found(args.data))
    train = Chains.from_backbones(data, data.rows("train"))
    store = Store(args.cache)
    columns = []
    for name in names:
        try:
            columns.append(measure(protein.load(name, args.device), train, store, args))
        except UserError as error:
            raise SystemExit(f"{name}: {error}") from None
    kept = sorted({size for c in columns for size in c.lengths})
    held = natives(data, in_turn(kept, args.n))
    key = f"natives of {len(data)} chains | {args.n} of {' '.join(map(str, kept))}"
    report = score(held, key, store, train, folds=args.folds, searched=args.searched,
                   seed=args.seed)  # fmt: skip
    columns.append(Column("held-out natives", report))
    print(f"\n{args.n} chains of {', '.join(map(str, kept))} residues, seed {args.seed}\n")
    said = verdicts(columns, store, args)
    print("\n".join([*table(columns), "", *said]))
    for c in columns:
        for flagged, text in c.report["flags"].items():
            print(f"flag: {c.name}: {flagged}: {text}")
    if args.json is not None:
        content = {"columns": [c.to_dict() for c in columns], "verdicts": said}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
