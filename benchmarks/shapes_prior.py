"""The three priors on functional maps against maps they never saw: denoising errors and moments.

    python benchmarks/shapes_prior.py --model FOLDER --data FILE [FILE ...] [--k 30] [--json OUT]

``--model`` is a checkpoint of ``driftworks train shapes`` (or a shipped name). ``--data`` are files
of maps (`shapes.maps`, written by ``driftworks train shapes --cache FILE --maps-only``); of a file
that holds out subjects only maps between those count, unless ``--all``, and ``--training`` takes
the others. Each row is a category: root mean square error of an entry after denoising at noise
.05/.1/.3/1, for the network with and without eigenvalues, the Gaussian, the second moment, and the
mean of the training maps as the answer to everything; then how near the maps are to the identity.
Intervals are of the difference network minus Gaussian, from a bootstrap over shapes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftworks.core.keys import Keys
from driftworks.shapes import maps as sets
from driftworks.shapes import train, zoo
from driftworks.shapes.dit import Network

MOST = 400  # maps a category


def squares(prior: Any, x: Tensor, sigma: float, values: tuple[Tensor | None, Tensor | None],
            ) -> Tensor:
    """(N,) mean squared error of each map under noise of one level."""
    out = []
    keys = Keys.for_samples(0, range(len(x)))
    for start in range(0, len(x), 128):
        rows = slice(start, start + 128)
        clean = x[rows]
        noise = keys[rows].normal(f"benchmark/{sigma}", 0, tuple(x.shape[1:]))
        given = [None if v is None else v[rows] for v in values]
        level = torch.full((len(clean),), sigma)
        with torch.no_grad():
            found = prior.denoise(clean + sigma * noise, level, *given)
        out.append((found - clean).double().square().mean((1, 2)))
    return torch.cat(out)


def interval(better: Tensor, worse: Tensor, shapes: np.ndarray, rng: np.random.Generator) -> str:
    """95 % interval of the difference of two errors, shapes (first of each pair) drawn again."""
    kinds, number = np.unique(shapes, return_inverse=True)
    sums = np.stack([np.bincount(number, t.numpy(), len(kinds)) for t in (better, worse)])
    counts = np.bincount(number, minlength=len(kinds))
    drawn = rng.integers(0, len(kinds), (500, len(kinds)))
    total = counts[drawn].sum(1)
    first, second = (np.sqrt(s[drawn].sum(1) / total) for s in sums)
    low, high = np.quantile(first - second, (0.025, 0.975))
    return f"[{low:+.4f}, {high:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--k", type=int, default=30)
    parser.add_argument("--all", action="store_true", help="also maps of training subjects")
    parser.add_argument("--training", action="store_true", help="maps of training subjects only")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network, gaussian, second = (zoo.load(options.model, kind) for kind in zoo.KINDS)
    assert isinstance(network, Network)
    mean = network.mean[: options.k, : options.k]
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for file in options.data:
        found = sets.read(file).first(options.k)
        held = found.held_out()
        if options.training:
            found = found.training()
        elif len(held) and not options.all:
            found = held
        labels = found.groups[found.pairs]
        names = np.array([a if a == b else "/".join(sorted((a, b))) for a, b in labels.tolist()])
        for name in np.unique(names):
            some = np.flatnonzero(names == name)
            some = rng.permutation(some)[:MOST]
            part = found.take(some)
            x, first, other = train.tensors(part)
            row: dict[str, Any] = {"file": file.name, "category": str(name), "maps": len(part),
                                   **sets.diagonal_shares(part)}
            print(f"\n{file.stem} {name}: {len(part)} maps; diagonal {row['diagonal']:.2f}, within "
                  f"3 of it {row['near_diagonal']:.2f}, norm {row['norm']:.2f}, deviation "
                  f"{row['deviation']:.3f}")
            answers = {
                "network": (network, (first, other)), "network, no eigenvalues":
                (network, (None, None)), "gaussian": (gaussian, (None, None)),
                "second moment": (second, (None, None)),
            }  # fmt: skip
            errors = {
                label: [squares(p, x, s, v) for s in train.LEVELS]
                for label, (p, v) in answers.items()
            }
            errors["mean"] = [(x - mean).double().square().mean((1, 2))] * len(train.LEVELS)
            for label, values in errors.items():
                row[label] = [float(v.mean().sqrt()) for v in values]
                print(f"  {label:24}" + " ".join(f"{v:.4f}" for v in row[label]))
            row["interval"] = [
                interval(a, b, part.pairs[:, 0], rng)
                for a, b in zip(errors["network"], errors["gaussian"], strict=True)
            ]
            print("  network - gaussian      " + " ".join(row["interval"]), flush=True)
            rows.append(row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
