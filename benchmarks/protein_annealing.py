"""Two ways to draw likelier chains from a teacher: less noise (gamma), or a power of its law.

    python benchmarks/protein_annealing.py [--model ca80] [--n 64] [--length 64] [--steps 64]
        [--gammas 0.45 0.7 1] [--powers 1.05 1.2 1.5] [--sets 2] [--seed 0] [--cache FILE.jsonl]

The noise scale is a heuristic of the SDE and every chain is for itself; `Model.anneal` weighs
particles towards q^power (Feynman-Kac), and they are chosen among each other, so that a set
descends from few of them. Sets of n chains of one length are drawn both ways in as many steps;
figures are those of `protein.evaluate` over all sets, with 95 % intervals (which take chains of a
set for independent, and are too narrow for powers). Distinct chains and ancestors are of a set, on
average.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from protein_table import score
from store import Store

from driftworks import protein
from driftworks.protein.chains import Chains
from driftworks.protein.zoo import Model

FIGURES = ("clash_free", "right_handed", "fragment", "helix", "strand", "frechet")


def sets(model: Model, way: str, value: float, args: argparse.Namespace) -> dict[str, Any]:
    """Chains of all sets, as nested lists, and how many of a set are apart from each other."""
    arrays: list[list[list[float]]] = []
    distinct, ancestors, seconds = [], [], 0.0
    for seed in range(args.seed, args.seed + args.sets):
        settings: dict[str, Any] = {"steps": args.steps, "seed": seed, "confidence": False}
        if way == "gamma":
            made = model.sample([args.length] * args.n, gamma=value, **settings)
            found = {"distinct": args.n, "ancestors": args.n}
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # few ancestors: they are told
                made = model.anneal(args.length, args.n, power=value, **settings)
            found = made.provenance["particles"]
        arrays += [np.asarray(x).round(3).tolist() for x in made.arrays()]
        distinct.append(found["distinct"])
        ancestors.append(found["ancestors"])
        seconds += made.provenance["seconds"]
    return {
        "arrays": arrays, "distinct": float(np.mean(distinct)),
        "ancestors": float(np.mean(ancestors)), "seconds": seconds / len(arrays),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="ca80")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--gammas", type=float, nargs="*", default=[0.45, 0.7, 1.0])
    parser.add_argument("--powers", type=float, nargs="*", default=[1.05, 1.2, 1.5])
    parser.add_argument("--sets", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="JSON lines of what is measured")
    args = parser.parse_args()
    model, store = protein.load(args.model), Store(args.cache)
    shape = (model.hash, args.steps, f"{args.sets} sets of {args.n}", args.length, args.seed)
    print(f"{model}, {args.steps} steps, {args.sets} sets of {args.n} chains of {args.length}")
    titles = "".join(f"{name:<24}" for name in FIGURES)
    print(f"{'':11}{titles}distinct  ancestors  s a chain")
    ways = [("gamma", g) for g in args.gammas] + [("power", p) for p in args.powers]
    for way, value in ways:
        key = ("annealing", *shape, f"{way} {value:g}")

        def make(way: str = way, value: float = value) -> dict[str, Any]:
            return sets(model, way, value, args)

        drawn = store.get(key, make)
        chains = Chains.of([np.array(x, np.float32) for x in drawn["arrays"]])
        found = score(chains, " | ".join(map(str, key)), store, folds=0)["figures"]
        cells = "".join(f"{told(found.get(name)):<23} " for name in FIGURES)
        print(f"{way} {value:<4g} {cells}{drawn['distinct']:<10.0f}{drawn['ancestors']:<11.0f}"
              f"{drawn['seconds']:.3f}", flush=True)  # fmt: skip


def told(figure: dict[str, Any] | None) -> str:
    if figure is None or figure.get("value") is None:
        return "-"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


if __name__ == "__main__":
    main()
