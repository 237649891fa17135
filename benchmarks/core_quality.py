"""How good samples are for the network evaluations they cost: W2 of every solver, and of a peer.

    python benchmarks/core_quality.py [--figure FILE.png]

The network is exact (`core.laws`) and runs start from the exact law of their first time, so the
distance to the data is the solver's own error. Two laws in two dimensions:

    Gaussian    correlated. Each solver's output is a Gaussian in closed form (`laws.table_law`), so
                W2 is exact, for stochastic solvers too. The peer is an affine map on Gaussian data;
                its own code on three points gives its output's law.
    mixture     three modes that overlap. Deterministic solvers: 1000 states by optimal assignment
                against the exact flow of the same starting noise (abm3, 1200 steps), so there is no
                sampling noise. Stochastic solvers (marked ~): sliced W2 of 20000 states against as
                many of the data, which is `floor` for two draws of the data themselves.

and two schedules: the peer's usual one (path sigma, Karras's noise levels from 80 to 0.002), and
the core's default (linear path, uniform times). A budget of 5, 10, 20, 50 or 100 evaluations buys
as many steps as it pays for: heun and midpoint take two a step, rk4 four, predictor_corrector two,
the last step to the data one. The number actually spent is what the figure shows.

The peer is DPM-Solver++(2M) of k-diffusion, the package where it is installed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as File

import torch
from peers import kdiffusion
from torch import Tensor

from driftworks.core import grids, laws
from driftworks.core.distances import w2_samples
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, Mixture
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.sample import sample
from driftworks.core.solvers import SOLVERS, Table, solver
from driftworks.core.spaces import Flat

BUDGETS = (5, 10, 20, 50, 100)
JUDGED = (10, 20, 50)
LOW, HIGH = 0.002, 80.0
RECOMMENDED = "abm2"
PEER = "k-diffusion 2M"
PAIRED, SLICED = 1000, 20000

GAUSSIAN = Gaussian([1.0, -0.5], [[1.0, 0.6], [0.6, 0.5]])
MIXTURE = Mixture(
    [0.5, 0.3, 0.2],
    [[-1.0, 0.0], [1.0, 0.8], [0.6, -1.0]],
    [[[0.30, 0.10], [0.10, 0.20]], [[0.15, -0.05], [-0.05, 0.10]], [[0.10, 0.0], [0.0, 0.25]]],
)


@dataclass(frozen=True)
class Schedule:
    """A path and its grids."""

    name: str
    path: Path
    grid: Callable[[int], Sequence[float]]


def _schedules() -> list[Schedule]:
    edm = Path.edm(HIGH)
    return [
        Schedule("Karras, 80 to 0.002", edm, partial(grids.karras, edm, low=LOW, high=HIGH)),
        Schedule("linear path, uniform", Path.linear(), grids.uniform),
    ]


@dataclass(frozen=True)
class Curve:
    """W2 of one solver by budget: what was spent, and the distance for each law."""

    name: str
    stochastic: bool
    spent: list[int]
    gaussian: list[float]
    mixture: list[float]


def affordable(name: str, schedule: Schedule, budget: int) -> Table:
    """The table with the most steps that ``budget`` evaluations pay for."""
    found = None
    for steps in range(1, budget + 1):
        grid = tuple(schedule.grid(steps))
        if name == "s4" and schedule.path.beta(grid[0]) == 0.0:
            grid = (0.5 * grid[1], *grid[1:])  # it cannot start in pure noise
        table = solver(name)(schedule.path, grid)
        if len(table) > budget:
            break
        found = table
    assert found is not None
    return found


def noised(law: Gaussian | Mixture, path: Path, t: float, count: int) -> Tensor:
    """Draws (count, 2) of the law at time t."""
    generator = torch.Generator().manual_seed(1)
    x = law.sample((count, 2), generator)
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return path.beta(t) * x + path.sigma(t) * noise


def run(table: Table, path: Path, x: Tensor) -> Tensor:
    """The table's samples of the mixture from the states x at its first time."""
    keys = Keys.for_samples(7, range(len(x)))
    grid = (table.times[0], table.ends[-1])
    return sample(
        MIXTURE.on(path), Process(Part(Flat(), path)), keys, x, initial=x, grid=grid,
        solver=lambda path, grid: table,
    ).x


def exact_flow(path: Path, x: Tensor) -> Tensor:
    """Where the mixture's probability flow takes x from t = 0 to the data."""
    fine = grids.karras(path, 1200, low=1e-4)
    return run(solver("abm3")(path, fine), path, x)


def gaussian_error(table: Table, path: Path) -> float:
    """Exact W2 of the table's output and the correlated Gaussian."""
    beta, sigma = path.beta(table.times[0]), path.sigma(table.times[0])
    eye = torch.eye(2, dtype=torch.float64)
    start = Gaussian(beta * GAUSSIAN.mean, beta**2 * GAUSSIAN.matrix(2) + sigma**2 * eye)
    return laws.w2(laws.table_law(table, GAUSSIAN.on(path), start)[-1], GAUSSIAN)


def curve(name: str, schedule: Schedule, x: Tensor, flowed: Tensor, data: Tensor) -> Curve:
    """W2 of the solver called ``name`` at every budget.

    x (n, 2) are states at t = 0 and ``flowed`` what the exact flow makes of them, ``data`` draws of
    the mixture for stochastic solvers.
    """
    path = schedule.path
    tables = [affordable(name, schedule, budget) for budget in BUDGETS]
    mixture = []
    for table in tables:
        if table.stochastic:
            start = noised(MIXTURE, path, table.times[0], len(data))
            found = w2_samples(run(table, path, start), data, Keys.for_samples(0, [0]))
        else:
            found = w2_samples(run(table, path, x), flowed)
        mixture.append(found.value)
    return Curve(
        name, tables[-1].stochastic, [len(table) for table in tables],
        [gaussian_error(table, path) for table in tables], mixture,
    )


def peer_curve(
    method: Callable[[kdiffusion.Denoiser, Tensor, Tensor], Tensor], x: Tensor, flowed: Tensor
) -> Curve:
    """The peer's W2 from states x at sigma = 80."""
    start = Gaussian(GAUSSIAN.mean, GAUSSIAN.matrix(2) + HIGH**2 * torch.eye(2))
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    gaussian, mixture = [], []

    def denoiser(law: Gaussian | Mixture) -> kdiffusion.Denoiser:
        return lambda x, sigma: law.denoised(x, 1.0, sigma)

    for budget in BUDGETS:
        sigmas = kdiffusion.karras_sigmas(budget, LOW, HIGH, dtype=torch.float64)
        ends = method(denoiser(GAUSSIAN), corners, sigmas)
        matrix = (ends[1:] - ends[0]).mT
        ended = matrix @ start.matrix(2) @ matrix.mT
        law = Gaussian(matrix @ start.mean + ends[0], 0.5 * (ended + ended.mT))
        gaussian.append(laws.w2(law, GAUSSIAN))
        mixture.append(w2_samples(method(denoiser(MIXTURE), x, sigmas), flowed).value)
    return Curve(PEER, False, list(BUDGETS), gaussian, mixture)


def measure(schedule: Schedule, data: Tensor) -> list[Curve]:
    """All curves on a schedule, the peer's last where the schedule is its own."""
    x = noised(MIXTURE, schedule.path, 0.0, PAIRED)
    flowed = exact_flow(schedule.path, x)
    curves = []
    for name in SOLVERS:
        print(f"\r{schedule.name}: {name:20}", end="", file=sys.stderr, flush=True)
        curves.append(curve(name, schedule, x, flowed, data))
    print(file=sys.stderr)
    if schedule.path.beta(0.0) == 1.0:
        package = kdiffusion.package()
        reference = peer_curve(kdiffusion.dpmpp_2m, x, flowed)
        if package is None:
            print("k-diffusion is not installed: its reference form stands for it\n")
            return [*curves, reference]
        installed = peer_curve(partial(package.sample_dpmpp_2m, disable=True), x, flowed)
        gap = max(
            abs(a - b) for a, b in zip(
                installed.gaussian + installed.mixture, reference.gaussian + reference.mixture,
                strict=True,
            )
        )
        print(f"k-diffusion is installed; its reference form differs in W2 by at most {gap:.0e}\n")
        curves.append(installed)
    return curves


def table_text(schedule: Schedule, curves: list[Curve]) -> str:
    """W2 by budget as a Markdown table."""
    budgets = "".join(f"{b:>9}" for b in BUDGETS)
    lines = [
        f"Schedule: {schedule.name}. W2 to the data by budget of network evaluations, on the left",
        "for the correlated Gaussian, on the right for the mixture.",
        "",
        f"| {'evaluations':19} | {budgets} | {budgets} |",
        f"|{'-' * 21}|{'-' * 46}:|{'-' * 46}:|",
    ]
    for c in curves:
        mark = "~" if c.stochastic else ""
        gaussian = "".join(f"{v:9.1e}" for v in c.gaussian)
        mixture = "".join(f"{mark + format(v, '.1e'):>9}" for v in c.mixture)
        lines.append(f"| {c.name:19} | {gaussian} | {mixture} |")
    spent: dict[tuple[int, ...], list[str]] = {}
    for c in curves:
        if c.spent != list(BUDGETS):
            spent.setdefault(tuple(c.spent), []).append(c.name)
    notes = [f"{', '.join(names)} spend {', '.join(map(str, n))}" for n, names in spent.items()]
    return "\n".join([*lines, "", "; ".join(notes) + "."])


def verdicts(results: list[tuple[Schedule, list[Curve]]]) -> list[str]:
    """The recommended solver beside DPM++(2M) at the budgets that are judged.

    That is the peer on its own schedule and, on the other, the same method there (our dpmpp2).
    """
    peer = next(c for _, curves in results for c in curves if c.name == PEER)
    lines = [
        f"W2 of {RECOMMENDED} / W2 of DPM++(2M) at {', '.join(map(str, JUDGED))} evaluations, "
        "target <= 1:"
    ]
    for schedule, curves in results:
        by_name = {c.name: c for c in curves}
        others = {"k-diffusion on Karras": peer}
        if PEER not in by_name:
            others["dpmpp2 there"] = by_name["dpmpp2"]
        for title, other in others.items():
            for law in ("gaussian", "mixture"):
                pairs = zip(
                    BUDGETS, getattr(by_name[RECOMMENDED], law), getattr(other, law), strict=True
                )
                ratios = [mine / theirs for budget, mine, theirs in pairs if budget in JUDGED]
                shown = ", ".join(f"{r:.3f}" for r in ratios)
                verdict = "met" if max(ratios) <= 1.0 else "MISSED"
                lines.append(f"  {schedule.name} / {title}, {law}: {shown}: {verdict}")
    return lines


#: Colour, marker, width and dash of each line (Okabe & Ito's colours; greys are stochastic).
STYLES: dict[str, tuple[str, str, float, str]] = {
    "euler": ("#56B4E9", "o", 1.2, "-"),
    "heun": ("#E69F00", "s", 1.2, "-"),
    "midpoint": ("#E69F00", "D", 1.2, ":"),
    "rk4": ("#CC79A7", "^", 1.2, "-"),
    "ddim": ("#56B4E9", "v", 1.2, ":"),
    "dpmpp2": ("#D55E00", "P", 1.2, "-"),
    "dpmpp3": ("#D55E00", "X", 1.2, ":"),
    "abm2": ("#0072B2", "o", 2.6, "-"),
    "abm3": ("#009E73", "s", 2.0, "-"),
    PEER: ("#000000", "x", 2.0, "--"),
    "ancestral": ("#555555", "o", 1.0, "--"),
    "euler_maruyama": ("#777777", "s", 1.0, "--"),
    "reverse_diffusion": ("#999999", "^", 1.0, "--"),
    "s4": ("#777777", "v", 1.0, "-."),
    "predictor_corrector": ("#999999", "D", 1.0, "-."),
}
SAME = {"ddim": "ddim = dpmpp1", "ancestral": "ancestral = ddpm", RECOMMENDED: "abm2 (recommended)"}


def figure(results: list[tuple[Schedule, list[Curve]]], floor: float, to: File) -> None:
    """W2 against evaluations, a row a schedule and a column a law."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(
        len(results), 2, figsize=(12, 4.6 * len(results)), layout="constrained", squeeze=False
    )
    peer = next(c for _, curves in results for c in curves if c.name == PEER)
    lines = {}
    for row, (schedule, curves) in zip(axes, results, strict=True):
        by_name = {c.name: c for c in curves} | {PEER: peer}
        for ax, law in zip(row, ("gaussian", "mixture"), strict=True):
            for name, (colour, marker, width, dash) in STYLES.items():
                c = by_name[name]
                (lines[name],) = ax.plot(
                    c.spent, getattr(c, law), dash, color=colour, marker=marker, lw=width, ms=5,
                    zorder=3 if width > 1.5 else 2,
                )
            if law == "mixture":
                lines["floor"] = ax.axhline(floor, color="0.7", lw=1.0, ls=(0, (1, 1)))
            title = {"gaussian": "correlated Gaussian (exact)", "mixture": "mixture of three"}
            ax.set(xscale="log", yscale="log", title=f"{schedule.name}: {title[law]}",
                   xlabel="network evaluations", ylabel="W2 to the data")
            ax.set_xticks(BUDGETS, BUDGETS)
            ax.set_xticks([], minor=True)
            ax.grid(color="0.9", lw=0.6)
    labels = [SAME.get(name, name) for name in STYLES]
    labels[list(STYLES).index(PEER)] = f"{PEER}, Karras"
    fig.legend(
        [*lines.values()], [*labels, "floor of stochastic\nsolvers, mixture"],
        loc="outside right upper", fontsize=9,
    )
    to.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(to, dpi=100)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--figure", type=File, help="write the figure here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, *others = [
        MIXTURE.sample((SLICED, 2), torch.Generator().manual_seed(seed)) for seed in range(100, 105)
    ]
    squares = [w2_samples(x, data, Keys.for_samples(0, [0])).value ** 2 for x in others]
    floor = math.sqrt(sum(squares) / len(squares))
    results = []
    for schedule in _schedules():
        curves = measure(schedule, data)
        results.append((schedule, curves))
        print(table_text(schedule, curves), end="\n\n", flush=True)
    print(f"~ sliced W2 of {SLICED} states; floor {floor:.1e}, two draws of the data\n")
    print("\n".join(verdicts(results)))
    if options.figure:
        figure(results, floor, options.figure)
        print(f"\nfigure: {options.figure}")


if __name__ == "__main__":
    main()
