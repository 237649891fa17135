"""GDSS by its published recipe, from training to scores, so that comparisons with it are fair.

    python benchmarks/graphgen_gdss.py --set community_small --data graphs.npz --out gdss_community

trains the preset ``gdss-SET`` for its published number of epochs (``--steps`` for another length),
draws ``--graphs`` graphs by its published sampler and by each of ``--solvers``, and prints their
report: the published biased statistics as mean and deviation over 100 random subsets of the test
set's size, connectivity, the family's predicate, seconds of processor time a graph. A run that was
stopped goes on where it was when the command is given again. Files of ``--out``: the model, its
graphs as graph6 and ``report.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import networkx as nx
import torch

from driftworks import graphgen
from driftworks.data import graphs as sets
from driftworks.graphgen.report import HEADLINE

FAMILIES = {"community_small": "two_communities"}


def trained(name: str, train: list[nx.Graph], out: Path, steps: int | None) -> graphgen.Model:
    """The model in ``out``, trained to its end if it was not."""
    return graphgen.fit(
        train, preset=f"gdss-{name}", steps=steps, out=out, resume=True, device="cpu",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--set", default="community_small", help="set with a published recipe")
    parser.add_argument("--data", help="file or folder of the set (see driftworks.data.graphs)")
    parser.add_argument("--out", type=Path, default=Path("gdss_community_small"))
    parser.add_argument("--steps", type=int, help="training steps; the published epochs by default")
    parser.add_argument("--graphs", type=int, default=128)
    parser.add_argument("--sampling-steps", type=int, help="1000 by default, as published")
    parser.add_argument("--solvers", nargs="*", default=[], help="further solvers to sample with")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)

    data = sets.load(args.set, args.data).without_labels()
    train, test = data.graphs("train"), data.graphs("test")
    begin = time.process_time()
    model = trained(args.set, train, args.out, args.steps)
    print(f"{model}, trained in {(time.process_time() - begin) / 60:.1f} CPU-min (this call)")

    record = {}
    for solver in (None, *args.solvers):
        begin = time.process_time()
        drawn = model.sample(args.graphs, seed=args.seed, steps=args.sampling_steps, solver=solver,
                             progress=True)
        seconds = (time.process_time() - begin) / args.graphs
        name = solver or "published"
        lines = [nx.to_graph6_bytes(g, header=False).decode() for g in drawn]
        (args.out / f"{name}.g6").write_text("".join(lines))
        report = graphgen.evaluate(
            list(drawn), test, train, family=FAMILIES.get(args.set), requested=args.graphs
        )
        print(f"\n{name}: {seconds:.2f} CPU-s a graph\n{report}", flush=True)
        record[name] = {"cpu_seconds_a_graph": seconds, **report.to_dict()}
        for metric in HEADLINE["gdss"]:
            one = report.mmd[metric]
            print(f"  {metric:<11}{one.published:.4f} +- {one.spread:.4f}")
    (args.out / "report.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
