"""How well targets are met, on a ladder of baselines that knew less.

    python benchmarks/quality/property_ladder.py --data qm9.npz [--model qm9] [--n 200]
        [--oracle xtb]

For each of the six properties, pairs (size, value) are taken from random training molecules and one
molecule is generated for each, steered by that property alone. Its property is estimated by the
shipped regressor (trained on relaxed B3LYP geometries; its own test error is the last column) and,
with ``--oracle xtb``, by GFN2-xTB where xTB has the property. Only strictly valid molecules can be
measured; their share stands beside. The baselines are computed on the same data, mean |error|:

    random      another molecule's value                (knows nothing)
    same size   another molecule's, of the same size    (a blind generator of the right size)
    by size     the median of molecules of that size
    by formula  the median of molecules of that formula (composition, no structure)
"""

from __future__ import annotations

import argparse

import numpy as np

from driftworks import data, molgen
from driftworks.core.bootstrap import Figure, estimate, ratio
from driftworks.molgen.targets import UNITS


def formulas(table: data.MoleculeTable) -> np.ndarray:
    """An integer a molecule, equal for equal formulas."""
    elements = np.unique(table.numbers)
    counts = np.stack(
        [np.add.reduceat(table.numbers == z, table.atom_offsets[:-1]) for z in elements], -1
    )
    return np.unique(counts, axis=0, return_inverse=True)[1].ravel()


def group_error(values: np.ndarray, group: np.ndarray) -> float:
    """Mean |value - median of the others in its group|; singletons use the overall median."""
    order = np.argsort(group, kind="stable")
    error = np.empty(len(values))
    overall = np.median(values)
    for rows in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        if len(rows) == 1:
            error[rows] = abs(values[rows] - overall)
            continue
        ranked = np.sort(values[rows])
        place = np.searchsorted(ranked, values[rows])
        half = (len(rows) - 1) // 2  # median of the others: shift by one past oneself
        error[rows] = abs(values[rows] - ranked[np.where(place <= half, half + 1, half)]
                          if len(rows) % 2 == 0 else
                          values[rows] - 0.5 * (ranked[np.where(place <= half - 1, half, half - 1)]
                                                + ranked[np.where(place <= half, half + 1, half)]))
    return float(error.mean())


def same_size_error(values: np.ndarray, size: np.ndarray, generator: np.random.Generator) -> float:
    other = values.copy()
    for n in np.unique(size):
        rows = np.flatnonzero(size == n)
        other[rows] = values[generator.permutation(rows)]
    return float(np.abs(values - other).mean())


def _row(cells: list[str]) -> str:
    return f"{cells[0]:22s}" + "".join(f"{c:>20s}" for c in cells[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="QM9 (any form `driftworks data qm9` reads)")
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--oracle", choices=["regressor", "xtb"], default="regressor")
    chosen = parser.parse_args()

    table = data.qm9(chosen.data).where(split="train", clean=True)
    model = molgen.load(chosen.model)
    regressor = molgen.load_regressor()
    generator = np.random.default_rng(chosen.seed)
    size, formula = table.atom_counts, formulas(table)
    print(f"{model}; {chosen.n} molecules a property, {chosen.steps} steps, guidance "
          f"{chosen.guidance}, seed {chosen.seed}; ours: regressor on strictly valid molecules")
    print(_row(["property", "random", "same size", "by size", "by formula", "ours [95 %]", "strict",
                "regressor error"]))
    for name in model.properties:
        values = table.properties[name]
        rows = generator.choice(np.flatnonzero(np.isin(size, model.statistics["sizes"])), chosen.n)
        library = model.sample(
            chosen.n, {name: values[rows]}, seed=chosen.seed, steps=chosen.steps,
            guidance=chosen.guidance, atoms=size[rows],
        )
        strict = library.strict()
        error = np.abs(regressor.predict(strict)[name] - strict.targets[name])
        statistic = ratio(error, np.ones(len(error)), "strict", UNITS[name])
        figure: Figure = estimate({name: statistic}, seed=chosen.seed)[name]
        cells = [
            f"{name} [{UNITS[name]}]",
            f"{np.abs(values - generator.permutation(values)).mean():.3f}",
            f"{same_size_error(values, size, generator):.3f}",
            f"{group_error(values, size):.3f}",
            f"{group_error(values, formula):.3f}",
            f"{figure.value:.3f} [{figure.low:.3f},{figure.high:.3f}]",
            f"{len(strict) / chosen.n:.1%}",
            f"{regressor.errors[name]:.3f}",
        ]
        print(_row(cells), flush=True)
        if chosen.oracle == "xtb":
            report = molgen.evaluate(library, oracle="xtb", bootstrap=1000, seed=chosen.seed)
            if f"mae_{name}" in report.figures:
                f = report[f"mae_{name}"]
                print(_row(["  by GFN2-xTB", "", "", "", "",
                            f"{f.value:.3f} [{f.low:.3f},{f.high:.3f}]"]), flush=True)


if __name__ == "__main__":
    main()
