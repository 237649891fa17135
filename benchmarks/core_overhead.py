"""What a step of the sampling loop costs: microseconds a step beside other loops, as ratios.

    python benchmarks/core_overhead.py [--steps 200] [--rounds 9] [--figure FILE.png]

The network is x / 2, so that nothing but the loop is timed. Everything runs in this process, on one
thread, in float32, by turns: one run of each contender a round. The overhead of a run is its CPU
time less the time of its network calls (as many bare calls are timed in the same round), divided by
its steps; set-up is included (tables, noise, schedules). Each figure is the median of all rounds
with the quartiles beside it; ratios are taken within a round.

Peers that are installed take part: `pip install torchdiffeq torchsde`, and k-diffusion (without its
dependencies: only the file of samplers is imported). Its DPM++2M is timed in a reference form too.
Stochastic contenders are compared with stochastic ones: our noise is addressed by sample, step and
entry (`core.keys`), that of torchsde by time, that of the bare loop by nothing. torchsde is called
as its documentation does, and once more with a Brownian interval that is told the step, which is
the fastest way we found; its steps are of length 1 in float64, since times that round (100 steps of
0.01 in float32) cost it a hundred times as much.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path as File
from typing import Any

import torch
from peers import kdiffusion
from torch import Tensor, nn

from driftworks.core import grids
from driftworks.core.keys import Keys
from driftworks.core.movers import Ahead
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.sample import sample
from driftworks.core.solvers import Table, solver
from driftworks.core.spaces import Centred, Flat

SHAPES = ((64, 16, 3), (1024, 2))
LOW, HIGH = 0.002, 80.0
OURS, OURS_NOISY = "driftworks dpmpp2", "driftworks euler_maruyama"
SDE, SDE_TOLD = "torchsde euler", "torchsde euler, told its step"
PEER, REFERENCE = "k-diffusion DPM++2M", "k-diffusion DPM++2M, reference form"


class Network:
    """x / 2 whatever is asked, and how often it was asked."""

    calls = 0

    def __call__(
        self, x: Any, t: Any, mask: Any = None, cond: Any = None, previous: Any = None
    ) -> Any:
        self.calls += 1
        return x * 0.5


NETWORK = Network()


@dataclass(frozen=True)
class Contender:
    """Something that makes all steps when called; ``missing`` says what is not installed."""

    name: str
    run: Callable[[], Any] | None
    kind: str = "deterministic"
    missing: str = ""


def bare_euler(x: Tensor, table: Table) -> Tensor:
    """Euler's arithmetic and nothing else."""
    clock = x.new_empty(len(x))
    for t, a, b, c in zip(table.times, table.a, table.b, table.c, strict=True):
        clock.fill_(t)
        x = torch.add(NETWORK(x, clock) * b[0], x, alpha=a[0])
        if c:
            x.add_(torch.randn_like(x), alpha=c)
    return x


def keyed_noise(keys: Keys, shape: tuple[int, ...], steps: int) -> None:
    """The noise of a run, drawn as the loop draws it."""
    ahead = Ahead(keys, steps)
    for k in range(steps):
        ahead.normal("sample/x", k, shape)


class Drift(nn.Module):
    """dx = f(x) dt + dW as torchsde takes it."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, like: Tensor):
        super().__init__()
        self.ones = torch.ones_like(like)

    def f(self, t: Tensor, x: Tensor) -> Tensor:
        return NETWORK(x, t)

    def g(self, t: Tensor, x: Tensor) -> Tensor:
        return self.ones


def contenders(shape: tuple[int, ...], steps: int) -> list[Contender]:
    """Every loop on a state of ``shape`` (B, ...), ours first."""
    path, keys = Path.edm(), Keys.for_samples(0, range(shape[0]))
    grid = grids.karras(path, steps, LOW, HIGH)
    start = HIGH * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    plain, of_noise = Process(Part(Flat(), path)), Process(Part(Flat(), path, predicts="noise"))
    draw = partial(sample, NETWORK, keys=keys, shape=shape[1:], grid=grid, initial=start)
    entries = torch.ones(shape[:2], dtype=torch.bool)

    found = [
        Contender("bare loop, euler", partial(bare_euler, start, solver("euler")(path, grid))),
        Contender("driftworks euler", partial(draw, plain, solver="euler")),
        Contender(OURS, partial(draw, plain, solver="dpmpp2")),
        Contender("driftworks abm2", partial(draw, plain, solver="abm2")),
        Contender("driftworks dpmpp2, noise network", partial(draw, of_noise, solver="dpmpp2")),
    ]
    if len(shape) == 3:
        masked = partial(draw, Process(Part(Centred(), path)), mask=entries, solver="dpmpp2")
        found.append(Contender("driftworks dpmpp2, centred and masked", masked))
    found += _k_diffusion(start, steps) + _torchdiffeq(start, steps)
    table = solver("euler_maruyama")(path, grid)
    found += [
        Contender("bare loop, Euler-Maruyama", partial(bare_euler, start, table), "stochastic"),
        Contender(OURS_NOISY, partial(draw, plain, solver="euler_maruyama"), "stochastic"),
        Contender("  of it the keyed noise", partial(keyed_noise, keys, shape[1:], steps),
                  "stochastic"),
        Contender("driftworks dpmpp2 eta=1", partial(draw, plain, solver=solver("dpmpp2", eta=1.0)),
                  "stochastic"),
    ]
    return found + _torchsde(start.flatten(1), steps)


def _k_diffusion(start: Tensor, steps: int) -> list[Contender]:
    def reference(denoiser: kdiffusion.Denoiser) -> Tensor:
        return kdiffusion.dpmpp_2m(denoiser, start, kdiffusion.karras_sigmas(steps, LOW, HIGH))

    forms = [
        Contender(REFERENCE, partial(reference, NETWORK)),
        Contender("  the same, noise network", partial(reference, kdiffusion.of_noise(NETWORK))),
    ]
    package = kdiffusion.package()
    if package is None:
        names = ("k-diffusion euler", PEER)
        return [*forms, *[Contender(name, None, missing="k-diffusion") for name in names]]

    def theirs(method: Callable[..., Tensor]) -> Tensor:
        sigmas = package.get_sigmas_karras(steps, LOW, HIGH)
        return method(NETWORK, start, sigmas, disable=True)

    return [
        *forms,
        Contender("k-diffusion euler", partial(theirs, package.sample_euler)),
        Contender(PEER, partial(theirs, package.sample_dpmpp_2m)),
    ]


def _torchdiffeq(start: Tensor, steps: int) -> list[Contender]:
    methods = ("euler", "rk4")
    if find_spec("torchdiffeq") is None:
        return [Contender(f"torchdiffeq {m}", None, missing="torchdiffeq") for m in methods]
    from torchdiffeq import odeint

    # ends and a step size: cheaper than a grid of times, whose states would all be kept
    ends, options = torch.tensor([0.0, 1.0]), {"step_size": 1.0 / steps}

    def field(t: Tensor, x: Tensor) -> Tensor:
        return NETWORK(x, t)

    return [
        Contender(f"torchdiffeq {m}", partial(odeint, field, start, ends, method=m,
                                              options=options))
        for m in methods
    ]


def _torchsde(start: Tensor, steps: int) -> list[Contender]:
    names = (SDE, SDE_TOLD, "torchsde srk")
    if find_spec("torchsde") is None:
        return [Contender(name, None, "stochastic", "torchsde") for name in names]
    from torchsde import BrownianInterval, sdeint

    ends, sde = torch.tensor([0.0, steps], dtype=torch.float64), Drift(start)

    def told() -> Tensor:
        noise = BrownianInterval(0.0, float(steps), size=start.shape, dtype=start.dtype, dt=1.0)
        return sdeint(sde, start, ends, bm=noise, method="euler", dt=1.0)

    plain = partial(sdeint, sde, start, ends, dt=1.0)
    runs = (partial(plain, method="euler"), told, partial(plain, method="srk"))
    return [Contender(name, run, "stochastic") for name, run in zip(names, runs, strict=True)]


def _seconds(run: Callable[[], Any]) -> float:
    """CPU time, to which other work on the machine does not add."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


@torch.no_grad()
def overheads(
    everyone: list[Contender], shape: tuple[int, ...], steps: int, rounds: int
) -> dict[str, list[float]]:
    """Microseconds a step of every contender, less its network calls, one figure a round."""
    runs = {c.name: c.run for c in everyone if c.run is not None}
    x, clock = torch.zeros(shape), torch.zeros(shape[0])

    def ask(times: int) -> None:
        for _ in range(times):
            NETWORK(x, clock)

    calls = {}
    for name, run in runs.items():  # also warms up
        before = NETWORK.calls
        run()
        calls[name] = NETWORK.calls - before
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(rounds):
        print(f"\r{' x '.join(map(str, shape))}: round {k + 1} of {rounds} ", end="",
              file=sys.stderr, flush=True)
        call = _seconds(partial(ask, 4 * steps)) / (4 * steps)
        for name, run in runs.items():
            taken[name].append((_seconds(run) - calls[name] * call) / steps * 1e6)
    print(file=sys.stderr)
    return taken


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratio(first: list[float], second: list[float]) -> tuple[float, float, float]:
    """Quartiles of first / second, round by round."""
    return quartiles([a / b for a, b in zip(first, second, strict=True)])


def table(
    everyone: list[Contender], taken: dict[str, list[float]], shape: tuple[int, ...], steps: int
) -> str:
    """Overheads as a Markdown table, each beside ours of its kind."""
    lines = [
        f"State {' x '.join(map(str, shape))}, {steps} steps; overhead in microseconds a step, "
        "[quartiles]; ratio to our dpmpp2 or, for stochastic loops, to our euler_maruyama.",
        "",
        f"| {'loop':37} | {'overhead':>20} | {'ratio to ours':>20} |",
        f"|{'-' * 39}|{'-' * 21}:|{'-' * 21}:|",
    ]
    for c in everyone:
        if c.name not in taken:
            lines.append(f"| {c.name:37} | {'not installed':>20} | {'':20} |")
            continue
        low, middle, high = quartiles(taken[c.name])
        cost = f"{middle:7.1f} [{low:.1f}-{high:.1f}]"
        low, middle, high = ratio(taken[c.name], taken[_ours(c.kind)])
        compared = f"{middle:7.2f} [{low:.2f}-{high:.2f}]"
        lines.append(f"| {c.name:37} | {cost:>20} | {compared:>20} |")
    return "\n".join(lines)


def _ours(kind: str) -> str:
    return OURS if kind == "deterministic" else OURS_NOISY


def targets(taken: dict[str, list[float]]) -> list[str]:
    """Whether the two targets are met, a line each."""
    peer = PEER if PEER in taken else REFERENCE
    checks = [(OURS, peer, 1 / 2)]
    checks += [(ours, sde, 1 / 10) for ours in (OURS, OURS_NOISY) for sde in (SDE, SDE_TOLD)]
    lines = []
    for ours, other, wanted in checks:
        if other not in taken:
            lines.append(f"{ours} / {other}: not measured, {other.split()[0]} is not installed")
            continue
        low, middle, high = ratio(taken[ours], taken[other])
        verdict = "met" if middle <= wanted else "MISSED"
        lines.append(f"{ours} / {other}: {middle:.3f} [{low:.3f}-{high:.3f}], "
                     f"target <= {wanted:g}: {verdict}")
    return lines


def figure(results: dict[tuple[int, ...], dict[str, list[float]]], to: File) -> None:
    """Bars of overhead on a logarithmic axis, one panel a shape."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(
        1, len(results), figsize=(13, 5.6), layout="constrained", squeeze=False
    )
    colours = {"driftworks": "#0072B2", "bare": "#999999", "k-diffusion": "#E69F00",
               "torchdiffeq": "#009E73", "torchsde": "#CC79A7"}
    for ax, (shape, taken) in zip(axes[0], results.items(), strict=True):
        shown = [name for name in taken if not name.startswith("  ")]
        shown.sort(key=lambda name: statistics.median(taken[name]))
        for row, name in enumerate(shown):
            low, middle, high = quartiles(taken[name])
            colour = next(c for start, c in colours.items() if name.startswith(start))
            ax.barh(row, middle, color=colour, xerr=[[middle - low], [high - middle]],
                    error_kw={"lw": 1, "capsize": 2})
            ax.text(high * 1.08, row, f"{middle:.0f}", va="center", fontsize=9)
        ax.set_yticks(range(len(shown)), shown, fontsize=9)
        ax.invert_yaxis()
        ax.set(xscale="log", xlabel="overhead, microseconds a step (less is better)",
               title=f"state {' x '.join(map(str, shape))}")
        ax.set_xlim(right=ax.get_xlim()[1] * 1.6)
        ax.grid(axis="x", which="both", color="0.9", lw=0.6)
        ax.set_axisbelow(True)
    to.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(to, dpi=110)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="steps a run (default 200)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of runs (default 9)")
    parser.add_argument("--figure", type=File, help="write the figure here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    peers = [f"{p} {version(p)}" for p in ("k-diffusion", "torchdiffeq", "torchsde")
             if find_spec(p.replace("-", "_"))]
    print(f"torch {torch.__version__}; peers: {', '.join(peers) or 'none installed'}\n")
    results = {}
    for shape in SHAPES:
        everyone = contenders(shape, options.steps)
        results[shape] = overheads(everyone, shape, options.steps, options.rounds)
        print(table(everyone, results[shape], shape, options.steps), end="\n\n")
        print("\n".join(targets(results[shape])), end="\n\n", flush=True)
    if options.figure:
        figure(results, options.figure)
        print(f"figure: {options.figure}")


if __name__ == "__main__":
    main()
