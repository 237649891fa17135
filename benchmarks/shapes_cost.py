"""What matching costs: seconds and memory against vertices and functions; priors against noise.

    python benchmarks/shapes_cost.py [--vertices 1500 3000 6000 12500 25000 50000]
        [--functions 50 100 150] [--steps basis match refine] [--model NAME|FOLDER]
        [--maps FILE] [--figures FOLDER] [--json FILE]

Two procedural creatures of one plan are drawn with so many vertices; those of more than 20,000 are
creatures of a quarter, each triangle cut in four. On each pair are timed, in a process of its own
without any cache of spectra,

    basis    the functions of one shape
    match    `shapes.match` with its defaults and that many functions: spectra included
    refine   `shapes.refinement.refine` of the true map, which has noise on a tenth of its vertices

in seconds of processor time, with the most memory that the process held (all of it: the interpreter
and its libraries take some 0.3 GiB before the first mesh). Vertices vary at the largest number of
functions, functions at the number of vertices nearest to 5,000. The second figure shows root mean
square errors of an entry of |C| after denoising, for the three priors of a checkpoint, on maps
between creatures that none of them saw: those held out in a file of maps, or, without one, new ones
from another seed. Figures are cost.png and noise.png.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from shapes_prior import squares

from driftworks.errors import UserError
from driftworks.shapes import maps as sets
from driftworks.shapes import train, zoo
from driftworks.shapes.creatures import draw
from driftworks.shapes.matching import match
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.refinement import refine
from driftworks.shapes.spectrum import basis

STEPS = ("basis", "match", "refine")
PLAN, SEED = "quadruped", 77
MOST = 20_000  # vertices that a creature is meshed with
MIDDLE = 5000
SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
FIGURES = Path(__file__).parents[1] / "docs" / "shapes"


def cut_in_four(mesh: Mesh) -> Mesh:
    """Every triangle replaced by four of half its size: V + E vertices."""
    sides = np.sort(mesh.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    edges, number = np.unique(sides, axis=0, return_inverse=True)
    middle = len(mesh) + number.reshape(-1, 3)
    a, b, c = mesh.faces.T
    ab, bc, ca = middle.T
    quarters = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    faces = np.concatenate([np.stack(q, 1) for q in quarters])
    vertices = np.concatenate([mesh.vertices, mesh.vertices[edges].mean(1)])
    return Mesh(vertices, faces, mesh.name)


@lru_cache
def pair(vertices: int) -> tuple[Mesh, Mesh]:
    """Two creatures of one triangulation: the true map is the identity."""
    fine = vertices > MOST
    found = []
    for number in range(2):
        rng = np.random.default_rng((SEED, number))
        mesh = draw(PLAN, rng, vertices=round(vertices / 4) if fine else vertices).mesh
        found.append(cut_in_four(mesh) if fine else mesh)
    return found[0], found[1]


def one(step: str, meshes: Path, k: int, model: str | None) -> dict[str, float]:
    """Seconds and GiB of a step, in this process; the cache of spectra must be empty."""
    torch.set_num_threads(1)
    data = np.load(meshes)
    a, b = (Mesh(data[f"{name}.v"], data[f"{name}.f"], name) for name in "ab")
    prior = None if model is None else zoo.load(model)
    rng = np.random.default_rng(0)
    given = np.arange(len(b))
    stray = rng.random(len(b)) < 0.1
    given[stray] = rng.integers(0, len(a), stray.sum())
    begin = time.process_time()
    if step == "basis":
        basis(a.normalised(), k, cache=False)
    elif step == "match":
        match(a, b, k=k, prior=prior)
    else:
        refine(given, a, b, k=k, prior=prior)
    seconds = time.process_time() - begin
    return {"vertices": len(a), "seconds": round(seconds, 2), "peak": round(peak(), 3)}


def peak() -> float:
    """The most memory that this process held, in GiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # what the system says of a process counts its parent's memory on Linux
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**20
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes on macOS, else kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def apart(step: str, vertices: int, k: int, model: str | None) -> dict[str, Any]:
    """`one` in a new process with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        # drawn here: a creature's surface takes more memory to make than to match
        meshes = Path(folder) / "pair.npz"
        a, b = pair(vertices)
        np.savez(meshes, **{"a.v": a.vertices, "a.f": a.faces, "b.v": b.vertices, "b.f": b.faces})
        command = [sys.executable, __file__, "--one", step, str(meshes), str(k)]
        command += ["--model", model] if model else []
        done = subprocess.run(
            command, env={**os.environ, "DRIFTWORKS_CACHE": folder, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise UserError(f"{step} at {vertices} vertices: {done.stderr.strip().splitlines()[-1]}")
    return {"step": step, "k": k, **json.loads(done.stdout.splitlines()[-1])}


def noise(prior_of: dict[str, Any], found: sets.Maps, k: int) -> dict[str, list[float]]:
    """Root mean square errors by kind of prior, at `SIGMAS`; "mean" answers the mean alone."""
    x, first, second = train.tensors(found.first(k))
    out = {}
    for kind, prior in prior_of.items():
        values = (first, second) if kind == "network" else (None, None)
        out[kind] = [float(squares(prior, x, s, values).mean().sqrt()) for s in SIGMAS]
    mean = prior_of["network"].mean[:k, :k]
    out["mean"] = [float((x - mean).double().square().mean().sqrt())] * len(SIGMAS)
    return out


def unseen(path: Path | None, k: int, most: int = 400) -> sets.Maps:
    """Maps that are held out in a file, or of new creatures."""
    if path is None:
        found = sets.of_creatures(48, k, held=0.0, partners=4, seed=1_000_001)
    else:
        found = sets.read(path).held_out()
        if not len(found):
            raise UserError(f"{path} holds out no maps")
    rows = np.random.default_rng(0).permutation(len(found))[:most]
    return found.take(rows)


def panel(axes: Any, rows: Sequence[dict[str, Any]], x: str, y: str) -> None:
    for step in STEPS:
        some = sorted((r[x], r[y]) for r in rows if r["step"] == step)
        if some:
            axes.plot(*zip(*some, strict=True), "o-", ms=3.5, lw=1.3, label=step)
    axes.set(xlabel={"vertices": "vertices", "k": "functions"}[x],
             ylabel={"seconds": "processor seconds", "peak": "peak memory, GiB"}[y])  # fmt: skip
    axes.grid(alpha=0.3, which="both")


def cost_figure(
    by_size: Sequence[dict[str, Any]], by_k: Sequence[dict[str, Any]], path: Path
) -> None:
    figure, axes = canvas(3)
    panel(axes[0], by_size, "vertices", "seconds")
    panel(axes[1], by_size, "vertices", "peak")
    panel(axes[2], by_k, "k", "seconds")
    sizes = sorted({r["vertices"] for r in by_size})
    for one_ in axes[:2]:
        one_.set_xscale("log")
        one_.set_xticks(sizes, [f"{size / 1000:.3g}k" for size in sizes])
        one_.minorticks_off()
    axes[1].set_ylim(bottom=0)
    axes[0].set_yscale("log")
    axes[2].set_yscale("log")
    for i, rows, fixed in ((0, by_size, "k"), (2, by_k, "vertices")):
        if rows:
            axes[i].set_title(f"{rows[0][fixed]:,} {'functions' if fixed == 'k' else fixed}",
                              fontsize=9)  # fmt: skip
    axes[0].legend(fontsize=8, frameon=False)
    save(figure, path)


def noise_figure(errors: dict[str, list[float]], count: int, k: int, path: Path) -> None:
    figure, (axes,) = canvas(1)
    labels = {"second-moment": "second moment", "mean": "mean of the training maps"}
    for kind, values in errors.items():
        style = ":" if kind == "mean" else "-"
        axes.plot(SIGMAS, values, style, marker="" if kind == "mean" else "o", ms=3.5,
                  label=labels.get(kind, kind))  # fmt: skip
    axes.plot(SIGMAS, SIGMAS, "k--", lw=0.8, label="no denoising")
    axes.set(xscale="log", yscale="log", xlabel="noise on an entry of |C|",
             ylabel="error of an entry after denoising", ylim=(0.005, 0.3))  # fmt: skip
    axes.set_title(f"{count} maps of unseen creatures, {k} functions", fontsize=9)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, frameon=False)
    save(figure, path)


def canvas(panels: int) -> tuple[Any, NDArray[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.7 * panels + (0.8 if panels == 1 else 0), 3.2))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    print(f"wrote {path}", flush=True)


def measured(
    steps: Sequence[str], sizes: Sequence[int], functions: Sequence[int], model: str | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Costs by vertices at the most functions, and by functions at one number of vertices."""
    most = max(functions)
    middle = min(sizes, key=lambda v: abs(v - MIDDLE))
    wanted = [(v, most) for v in sizes] + [(middle, k) for k in functions if k != most]
    print(f"{'vertices':>9}{'k':>5}  " + "".join(f"{s + ' s':>10}{'GiB':>7}" for s in steps))
    rows = []
    for vertices, k in wanted:
        now = [apart(step, vertices, k, model) for step in steps]
        rows += now
        cells = "".join(f"{r['seconds']:>10.1f}{r['peak']:>7.2f}" for r in now)
        print(f"{now[0]['vertices']:>9,}{k:>5}  {cells}", flush=True)
    at = {rows[len(steps) * i]["vertices"] for i, (v, _) in enumerate(wanted) if v == middle}
    return [r for r in rows if r["k"] == most], [r for r in rows if r["vertices"] in at]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vertices", type=int, nargs="+",
                        default=[1500, 3000, 6000, 12500, 25000, 50000])
    parser.add_argument("--functions", type=int, nargs="+", default=[50, 100, 150])
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=list(STEPS))
    parser.add_argument("--model", help="shipped name or folder of a prior")
    parser.add_argument("--maps", type=Path, help="maps, some held out, for the figure of noise")
    parser.add_argument("--k", type=int, default=30, help="functions of the figure of noise")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.one:
        print(json.dumps(one(args.one[0], Path(args.one[1]), int(args.one[2]), args.model)))
        return
    content: dict[str, Any] = {}
    try:
        if args.steps:
            by_size, by_k = measured(args.steps, args.vertices, args.functions, args.model)
            cost_figure(by_size, by_k, args.figures / "cost.png")
            content["cost"] = {"by_size": by_size, "by_k": by_k}
        model = args.model or ("creatures" if "creatures" in zoo.available() else None)
        if model is None:
            print("no prior is shipped or named (--model), so noise.png is not drawn")
        else:
            found = unseen(args.maps, args.k)
            errors = noise({kind: zoo.load(model, kind) for kind in zoo.KINDS}, found, args.k)
            print(f"\nerror of an entry after denoising, {len(found)} maps of unseen creatures")
            print(f"{'noise':>24}" + "".join(f"{s:>9g}" for s in SIGMAS))
            for kind, values in errors.items():
                print(f"{kind:>24}" + "".join(f"{v:>9.4f}" for v in values))
            noise_figure(errors, len(found), args.k, args.figures / "noise.png")
            content["noise"] = {"sigmas": SIGMAS, "maps": len(found), **errors}
    except UserError as error:
        raise SystemExit(str(error)) from None
    if args.json:
        args.json.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
