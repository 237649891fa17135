"""What the sampling loop costs: microseconds a step beside a bare loop over the same arithmetic.

    python benchmarks/sampler_overhead.py [--steps 200] [--repeats 15]

The network is x -> x / 2 and the state 16 x 29 x 3 in float32 on one thread, so that nothing but
the loop is timed. The bare loop fills the time, asks the network, and applies the coefficients of
the same table; its stochastic twin draws `torch.randn_like`. For stochastic solvers the cost of
keyed noise is also timed alone. k-diffusion is timed beside when it is installed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from driftworks.core import grids
from driftworks.core.keys import Keys
from driftworks.core.movers import Ahead
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.sample import sample
from driftworks.core.solvers import Table, solver
from driftworks.core.spaces import Centred, Flat

SHAPE = (16, 29, 3)


def network(x: Any, t: Tensor, mask: Any = None, cond: Any = None, previous: Any = None) -> Any:
    return x * 0.5


def bare(x: Tensor, table: Table) -> Tensor:
    """The loop without any service."""
    clock, memory = x.new_empty(len(x)), max(map(len, table.b)) > 1
    old = x
    for t, a, b, c in zip(table.times, table.a, table.b, table.c, strict=True):
        clock.fill_(t)
        d = network(x, clock)
        x = torch.add(d * b[0], x, alpha=a[0])
        if len(b) > 1:
            x.add_(old, alpha=b[1])
        if c:
            x.add_(torch.randn_like(x), alpha=c)
        if memory:
            old = d
    return x


def noise(keys: Keys, table: Table) -> None:
    """The keyed noise of one run, drawn as the loop draws it."""
    ahead = Ahead(keys, len(table))
    for k, c in enumerate(table.c):
        if c:
            ahead.normal("sample/x", k, SHAPE[1:])


def microseconds(run: Callable[[], Any], steps: int, repeats: int) -> float:
    """Median CPU time a step: other work on the machine does not count."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times) / steps * 1e6


def k_diffusion(steps: int, repeats: int) -> list[tuple[str, float]]:
    if find_spec("k_diffusion") is None:
        return []
    from k_diffusion import sampling

    sigmas = sampling.get_sigmas_karras(steps, 0.02, 80.0)
    x = torch.randn(SHAPE) * 80.0
    methods = {"euler": sampling.sample_euler, "dpmpp2": sampling.sample_dpmpp_2m}
    return [
        (
            f"k-diffusion {name}",
            microseconds(partial(f, network, x, sigmas, disable=True), steps, repeats),
        )
        for name, f in methods.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    steps, repeats = options.steps, options.repeats
    torch.set_num_threads(1)

    keys = Keys.for_samples(0, range(SHAPE[0]))
    path, grid = Path.edm(), grids.karras(Path.edm(), steps, low=0.02)
    flat, centred = Process(Part(Flat(), path)), Process(Part(Centred(), path))
    mask = torch.ones(SHAPE[:2], dtype=torch.bool)
    x = torch.randn(SHAPE) * 80.0
    titles = f"{'bare':>8}{'sample':>8}{'loop':>8}{'noise':>8}{'centred, masked':>17}{'build':>8}"
    print(f"{'':24}{titles}")
    runs: list[tuple[str, dict[str, float]]] = [
        ("euler", {}),
        ("ddim", {}),
        ("dpmpp2", {}),
        ("dpmpp3", {}),
        ("ddpm", {}),
        ("dpmpp2", {"eta": 1.0}),
    ]
    for name, settings in runs:
        build = solver(name, **settings)
        table = build(path, grid)

        draw = partial(sample, network, keys=keys, shape=SHAPE[1:], grid=grid, initial=x)
        with torch.no_grad():
            plain = microseconds(partial(bare, x, table), steps, repeats)
        ours = microseconds(partial(draw, flat, solver=build), steps, repeats)
        keyed = microseconds(partial(noise, keys, table), steps, repeats)
        masked = microseconds(partial(draw, centred, mask=mask, solver=build), steps, repeats)
        built = microseconds(partial(build, path, grid), steps, repeats)
        title = name + "".join(f" {k}={v:g}" for k, v in settings.items())
        print(
            f"{title:24}{plain:8.1f}{ours:8.1f}{ours - keyed:8.1f}{keyed:8.1f}"
            f"{masked:17.1f}{built:8.2f}"
        )
    for title, figure in k_diffusion(steps, repeats):
        print(f"{title:24}{figure:8.1f}")
    print("microseconds a step, network included (its own cost is one multiplication)")


if __name__ == "__main__":
    main()
