"""`graphgen.fit` on families drawn at run time: is what it draws valid, and is it new?

    python benchmarks/graphgen_families.py [--minutes 10] [--family lobster ...] [--seed S]
        [--steps 200] [--noise 30] [--temperature 0.9]

For each family, with sizes drawn from the seed (a new one each run, printed), 300 graphs are drawn
to train on and 200 more stand for fresh data. A model is fitted for ``--minutes`` on one thread,
and 200 graphs are drawn from it. The flow redraws much (``--noise``) and a little coolly
(``--temperature``): more of what it draws is valid, at some cost in variety; the sampler's defaults
are 50 steps without either. Validity is by exact predicate (`graphgen.validity`). A family with few
graphs repeats itself: the share of samples that are isomorphic to a training graph means something
beside that of the fresh draw, which has never seen the training set either. Processor seconds are
those of fitting and of sampling.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import networkx as nx
import numpy as np
import torch

from driftworks import graphgen
from driftworks.data.graphs import generate


def options(family: str, rng: np.random.Generator) -> dict[str, Any]:
    """Sizes of a family, drawn anew."""
    if family == "planted partition":
        low = int(rng.integers(8, 13))
        return {"nodes": (low, low + 6), "inside": float(rng.uniform(0.75, 0.9)), "links": (1, 3)}
    if family == "lobster":
        low = int(rng.integers(8, 13))
        return {"nodes": (low, low + 8)}
    least = int(rng.integers(3, 5))
    return {"cliques": (3, least + 3), "sizes": (3, least + 1)}


#: Name -> (how it is drawn, its predicate).
FAMILIES = {
    "planted partition": ("two_communities", "two_communities"),
    "lobster": ("lobster", "lobster"),
    "ring of cliques": ("ring_of_cliques", "ring_of_cliques"),
}


def shuffled(graphs: list[nx.Graph], rng: np.random.Generator) -> list[nx.Graph]:
    """The same graphs with their nodes renumbered at random: order must not help."""
    out = []
    for graph in graphs:
        place = dict(zip(graph, rng.permutation(len(graph)).tolist(), strict=True))
        new = nx.empty_graph(len(graph))
        new.add_edges_from((place[u], place[v]) for u, v in graph.edges)
        out.append(new)
    return out


def measure(name: str, args: argparse.Namespace) -> None:
    rng = np.random.default_rng([args.seed, list(FAMILIES).index(name)])
    family, predicate = FAMILIES[name]
    settings = options(name, rng)
    train, fresh = (shuffled(generate(family, count, rng, **settings), rng) for count in (300, 200))
    begin = time.process_time()
    model = graphgen.fit(train, minutes=args.minutes, device="cpu", progress=args.progress,
                         seed=args.seed % 2**31)  # fmt: skip
    fitted = time.process_time() - begin
    begin = time.process_time()
    drawn = model.sample(
        200, seed=1, steps=args.steps, noise=args.noise, temperature=args.temperature
    )
    sampled = (time.process_time() - begin) / 200
    report = graphgen.evaluate(drawn, fresh, train, family=predicate)
    print(f"\n{name} {settings}, seed {args.seed}: {fitted:.0f} CPU-s to fit "
          f"({model.meta['training']['steps']} steps), {sampled:.3f} CPU-s a graph")  # fmt: skip
    print(f"  {'':<18}{'samples [95 %]':<28}fresh draw")
    for what in ("validity", "connectivity", "uniqueness", "copied"):
        figure = report[what]
        value, low, high = (f"{100 * x:.1f}" for x in (figure.value, figure.low, figure.high))
        print(f"  {what:<18}{f'{value} % [{low}, {high}]':<28}{100 * report.data[what]:.1f} %")
    if report.mean_mmd and report.mean_floor:
        print(f"  {'mean MMD^2':<18}{f'{report.mean_mmd[0]:.4f}':<28}{report.mean_floor[0]:.4f} "
              "(training graphs)", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of fitting, for each family")
    parser.add_argument("--family", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--steps", type=int, default=200, help="network evaluations a graph")
    parser.add_argument(
        "--noise", type=float, default=30.0,
        help="how much the flow redraws: more is valid and fewer kinds are drawn (0: none)",
    )
    parser.add_argument("--temperature", type=float, default=0.9, help="of the classes drawn")
    parser.add_argument("--seed", type=int, default=int(np.random.SeedSequence().entropy) % 2**32)
    parser.add_argument("--progress", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.family:
        measure(name, args)


if __name__ == "__main__":
    main()
