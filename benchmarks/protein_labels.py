"""Does a protein model draw the secondary-structure class it is asked for?

    python benchmarks/protein_labels.py [--model NAME] [--n 48] [--lengths 48 64 80] [--steps 16]

For every label, and for none, n chains are drawn and their class told by P-SEA, as the labels of
the training chains were (`driftworks.data.structures`). A row shows what was asked for, a column
what came, of all n, with 95 % intervals.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from driftworks import protein
from driftworks.core.bootstrap import estimate, mean
from driftworks.data.structures import psea, sse_class
from driftworks.protein.process import LABELS


def class_of(ca: np.ndarray) -> int:
    letters = psea(ca)
    return sse_class(float((letters == "a").mean()), float((letters == "b").mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ca80-sid")
    parser.add_argument("--n", type=int, default=48)
    parser.add_argument("--lengths", type=int, nargs="+", default=[48, 64, 80])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--gamma", type=float)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = protein.load(args.model)
    sizes = [args.lengths[k % len(args.lengths)] for k in range(args.n)]
    print(f"{model}, {args.steps} calls, {args.n} chains a row, seed {args.seed}\n")
    print(f"{'asked':<8}" + "".join(f"{name:<22}" for name in LABELS))
    for asked in (None, *LABELS):
        settings: dict[str, Any] = {"label": asked, "steps": args.steps, "gamma": args.gamma}
        drawn = model.sample(sizes, seed=args.seed, confidence=False, **settings)
        good = drawn.finite.tolist()
        came = np.array([
            class_of(ca) if fine else -1 for ca, fine in zip(drawn.arrays(), good, strict=True)
        ])
        figures = estimate({name: mean(came == k) for k, name in enumerate(LABELS)})
        print(f"{asked or 'none':<8}" + "".join(f"{figures[x]!s:<22}" for x in LABELS), flush=True)


if __name__ == "__main__":
    main()
