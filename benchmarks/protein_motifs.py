"""Do chains drawn around a motif hold it, and join it?

    python benchmarks/protein_motifs.py --data FOLDER [--model NAME|FOLDER] [--motifs 12] [--each 4]
        [--residues 15] [--length 60] [--steps 32] [--gamma 0.7] [--seed 0]

Motifs are runs of residues in the middle of held-out chains (test split of protein_backbones.npz,
written as PDB files and read again as a user's would be). Around each, chains of one length are
drawn with `Model.scaffold`. Told, with 95 % intervals over motifs: how far the motif's C-alphas are
from where the file has them (root mean square of a chain, the largest of all); the share of right
bonds (3.8 A within 0.2) inside the motif, where it is joined, and elsewhere; the share of chains
without a clash; and, beside them, the same of chains of that length drawn freely.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from protein_table import FILE, natives

from driftworks import protein
from driftworks.core.bootstrap import estimate, mean
from driftworks.data import backbones
from driftworks.protein.geometry import clashes
from driftworks.protein.reference import BOND

Array = NDArray[np.float64]
APART = 3.8  # angstrom, between neighbouring C-alphas


def measure(designs: Any, motif: Array | None) -> dict[str, Array]:
    """Numbers of each finite chain; without a motif, of chains drawn freely."""
    rows = np.flatnonzero(designs.finite.numpy())
    ca = designs.ca.numpy().astype(np.float64)
    held = designs.held.numpy() if motif is not None else np.zeros(ca.shape[:2], bool)
    right = np.abs(np.linalg.norm(np.diff(ca, axis=1), axis=2) - APART) <= BOND
    joint, inside = held[:, 1:] != held[:, :-1], held[:, 1:] & held[:, :-1]
    exists = designs.mask.numpy()[:, 1:]
    found = {"free bonds": [right[r][exists[r] & ~joint[r] & ~inside[r]].mean() for r in rows]}
    found["clash-free"] = list(clashes(designs).numpy()[rows] == 0)
    if motif is not None:
        found["off"] = [np.sqrt(np.square(ca[r][held[r]] - motif).sum(1).mean()) for r in rows]
        found["joints"] = [right[r][joint[r]].mean() for r in rows]
        found["motif bonds"] = [right[r][inside[r]].mean() for r in rows]
    return {name: np.array(values, np.float64) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="ca80")
    parser.add_argument("--motifs", type=int, default=12)
    parser.add_argument("--each", type=int, default=4)
    parser.add_argument("--residues", type=int, default=15)
    parser.add_argument("--length", type=int, default=60)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--gamma", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = protein.load(args.model)
    path = args.data / FILE if args.data.is_dir() else args.data
    chains = natives(backbones.read(path), [args.length] * args.motifs)
    settings: dict[str, Any] = {"steps": args.steps, "gamma": args.gamma, "seed": args.seed}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for file, n in zip(
            protein.write(chains, folder), chains.lengths.tolist(), strict=True
        ):
            first = (n - args.residues) // 2 + 1
            rest = args.length - args.residues
            contigs = f"5-{rest}/A{first}-{first + args.residues - 1}/5-{rest}"
            motif = protein.Motif.read(file, contigs, length=args.length)
            drawn = model.scaffold(motif, args.each, confidence=False, **settings)
            rows.append(measure(drawn, motif.ca.astype(np.float64)))
            print(f"{file.stem}: {len(rows[-1]['joints'])} of {args.each} chains", flush=True)
    free = model.sample(
        [args.length] * (args.motifs * args.each), confidence=False, **settings
    )
    print(f"\n{model}, {args.steps} calls, noise scale {args.gamma:g}, {args.length} residues, "
          f"{args.residues} of them a motif")  # fmt: skip
    for label, group in ((f"around {args.motifs} motifs", rows), ("freely", [measure(free, None)])):
        # one number a motif: chains around the same one are not independent
        table = {
            name: group[0][name] if len(group) == 1 else
            np.array([one[name].mean() for one in group])
            for name in group[0]
        }
        if "off" in table:
            print(f"{'':20}motif off by at most {max(one['off'].max() for one in group):.3f} A")
        shares = {name: mean(values) for name, values in table.items() if name != "off"}
        figures = estimate(shares)
        print(f"{label:<20}" + "  ".join(f"{name} {figures[name]!s}" for name in shares))


if __name__ == "__main__":
    main()
