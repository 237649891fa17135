"""Ranking candidates: how desirable each is, and a subset that is both good and different.

Desirability per target (`Target`), then the weighted geometric mean over targets of Derringer and
Suich (J. Qual. Technol. 12, 214, 1980), kept as its binary logarithm so that molecules far from a
target still have an order:

    L(m) = sum_p w_p log2 d_p(m) / sum_p w_p,        score = 2^L in (0, 1]

The subset grows greedily. The best molecule comes first; then, with Tanimoto distances
D = 1 - T of Morgan fingerprints (radius 2, 2048 bits) and the trade-off a in [0, 1],

    next = argmax_m (1 - a) score(m) / score(best) + a min_{s chosen} D(m, s)

so that quality counts the same whether the targets are easy or far away. a = 0 is the ranking by
score, a = 1 the maxmin picking of Ashton et al. (QSAR 21, 598, 2002). Ties fall to the better L,
then to the earlier candidate, so the order of the result is unique.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from driftworks.campaign.spec import Target

if TYPE_CHECKING:
    from rdkit.Chem import Mol

__all__ = ["distances", "fingerprints", "greedy", "log_desirability", "log_score"]


def log_desirability(target: Target, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """log2 d of the values `x` (M,); NaN is -inf.

    A goal is judged by rank among the candidates: d = (number no better, ties half) / M, so the
    best of M distinct values has 1 - 1/(2M) and the worst 1/(2M).
    """
    x = np.asarray(x, dtype=np.float64)
    if target.goal is None:
        low, high = target.interval
        off = np.maximum(np.maximum(low - x, x - high), 0.0) / target.width
        out = -(off**2)
    else:
        known = x[~np.isnan(x)]
        signed = np.sort(known if target.goal == "max" else -known)
        mine = x if target.goal == "max" else -x
        below = np.searchsorted(signed, mine, side="left")
        upto = np.searchsorted(signed, mine, side="right")
        with np.errstate(divide="ignore"):
            out = np.log2((below + upto) / (2.0 * max(len(known), 1)))
    return np.where(np.isnan(x), -np.inf, out)


def log_score(
    targets: Mapping[str, Target], values: Mapping[str, NDArray[np.float64]], count: int
) -> NDArray[np.float64]:
    """L of `count` candidates from their property values (M,); 0 where there is no target."""
    total = np.zeros(count)
    for name, target in targets.items():
        total += target.weight * log_desirability(target, values[name])
    return total / sum((t.weight for t in targets.values()), start=0.0) if targets else total


def fingerprints(mols: Sequence[Mol]) -> list:
    """Morgan fingerprints, radius 2, 2048 bits, of sanitised molecules."""
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    return [generator.GetFingerprint(mol) for mol in mols]


def distances(prints: Sequence, one: int) -> NDArray[np.float64]:
    """Tanimoto distances (M,) of all fingerprints to number `one`."""
    from rdkit.DataStructs import BulkTanimotoSimilarity

    return 1.0 - np.asarray(BulkTanimotoSimilarity(prints[one], list(prints)), dtype=np.float64)


def greedy(
    score: NDArray[np.float64],
    prints: Sequence,
    size: int | None = None,
    diversity: float = 0.0,
) -> list[int]:
    """Rows of the chosen candidates, best first.

    Parameters
    ----------
    score: (M,) logarithmic scores L
    prints: M fingerprints, or an empty sequence when `diversity` is 0
    size: how many to choose (default: all)
    diversity: the trade-off a
    """
    count = len(score)
    size = count if size is None else min(size, count)
    by_score = sorted(range(count), key=lambda i: (-score[i], i))
    if diversity == 0.0 or not size:
        return by_score[:size]
    place = np.empty(count, dtype=np.int64)
    place[by_score] = np.arange(count)
    best = score[by_score[0]]
    relative = np.exp2(score - best) if np.isfinite(best) else np.zeros(count)
    gain = (1.0 - diversity) * relative
    chosen, free = [by_score[0]], np.ones(count, dtype=bool)
    nearest = np.full(count, np.inf)
    while len(chosen) < size:
        free[chosen[-1]] = False
        nearest = np.minimum(nearest, distances(prints, chosen[-1]))
        merit = np.where(free, gain + diversity * nearest, -np.inf)
        ties = np.flatnonzero(merit == merit.max())
        chosen.append(int(ties[np.argmin(place[ties])]))
    return chosen
