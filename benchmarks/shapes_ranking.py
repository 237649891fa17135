"""Fits the score of maps (`shapes.ranking`) on procedural creatures, and says how well it ranks.

    python benchmarks/shapes_ranking.py [--pairs 60] [--vertices 1500] [--seed 0]

Pairs of creatures of one plan, or of two plans with one skeleton, are matched and all finalists
kept; one is right when its mean geodesic error (heat method) is below `ranking.RIGHT`. Prints

    slope and intercept by which the present score would have to be corrected (1 and 0 if it is
    calibrated), fitted on pairs with even numbers
    area under the ROC curve of finding wrong maps, on the others: of the score, of every measure
    alone, and of a logistic model of all measures fitted on the even pairs
    coefficients of the confidence of vertices, fitted on right maps (right: within 0.05), and its
    area under the ROC curve
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from driftworks.shapes import matching, ranking
from driftworks.shapes.creatures import PLANS, correspondence, draw
from driftworks.shapes.geodesics import distances

Array = NDArray[np.float64]
NEAR = 0.05
#: Plans that share a skeleton: every other pair of these is of both.
PARTNER = {"human": "ape", "ape": "human"}


def auroc(score: Array, right: NDArray[np.bool_]) -> float:
    """Chance that a right one scores above a wrong one."""
    good, bad = score[right], score[~right]
    if not len(good) or not len(bad):
        return float("nan")
    return float((good[:, None] > bad).mean() + 0.5 * (good[:, None] == bad).mean())


def fit(features: Array, right: NDArray[np.bool_], ridge: float = 0.1) -> Array:
    """Logistic coefficients (d + 1,), the intercept first, none of the others positive.

    Every feature is larger for worse maps, so that a positive weight would be noise.
    """
    scale = features.std(0) + 1e-9
    x = (features - features.mean(0)) / scale
    sign = np.where(right, 1.0, -1.0)

    def loss(w: Array) -> float:
        margin = sign * (w[0] + x @ w[1:])
        return float(np.logaddexp(0, -margin).sum() + ridge * np.square(w[1:]).sum())

    bounds = [(None, None)] + [(None, 0.0)] * x.shape[1]
    w = minimize(loss, np.zeros(x.shape[1] + 1), bounds=bounds, method="L-BFGS-B").x
    slope = w[1:] / scale
    return np.concatenate([[w[0] - slope @ features.mean(0)], slope])


def finalists(number: int, vertices: int, rng: np.random.Generator) -> list[dict[str, Array]]:
    """The finalists of a pair, the chosen one first, and what is known of each."""
    plan = PLANS[number % len(PLANS)]
    second = PARTNER.get(plan, plan) if number // len(PLANS) % 2 else plan
    a, b = (
        draw(name, rng, vertices=vertices, own_surface=bool(rng.random() < 0.2))
        for name in (plan, second)
    )
    found = matching.match(a.mesh, b.mesh, finalists=5)
    judge = matching.prepare(a.mesh, b.mesh, 150, None)
    anchors = judge.a.samples[: judge.a.anchors]
    reach = distances(judge.a.mesh, anchors)
    at_b, _ = correspondence(a, b)
    rows = []
    for h in found.hypotheses:
        at = h.map_ba[judge.b.samples], h.map_ab[judge.a.samples]
        rows.append({
            "measures": np.array([ranking.feature(h.parts, m) for m in ranking.MEASURES]),
            "logit": np.array(ranking.logit(h.parts)),
            "error": reach[np.arange(len(anchors)), h.map_ba[at_b[anchors]]],
            "local": ranking.local_features(judge, *at)[0],
        })
    errors = " ".join(f"{100 * r['error'].mean():.1f}" for r in rows)
    print(f"{plan}-{second}: {errors}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--vertices", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    pairs = [finalists(number, args.vertices, rng) for number in range(args.pairs)]
    rows = [row for pair in pairs for row in pair]
    test = np.array([number % 2 == 1 for number, pair in enumerate(pairs) for _ in pair])
    measures = np.stack([row["measures"] for row in rows])
    logit = np.array([row["logit"] for row in rows])
    error = np.stack([row["error"] for row in rows])
    right = error.mean(1) < ranking.RIGHT
    print(f"{len(rows)} maps, {(~right).sum()} wrong; {test.sum()} held out")
    intercept, slope = fit(-logit[~test, None], right[~test])
    print(f"correction of the score: slope {-slope:.2f}, intercept {intercept:.2f}")
    print(f"wrong maps, AUROC: score {auroc(logit[test], right[test]):.3f}")
    for name, column in zip(ranking.MEASURES, measures.T, strict=True):
        print(f"    {name:14s} alone {auroc(-column[test], right[test]):.3f}")
    w = fit(measures[~test], right[~test])
    print(f"    all, fitted    {auroc((measures @ w[1:])[test], right[test]):.3f}", w.round(2))
    best = np.array([pair[0]["error"].mean() for pair in pairs])
    least = np.array([min(row["error"].mean() for row in pair) for pair in pairs])
    print(f"error x 100: selected {100 * best.mean():.2f}, best finalist {100 * least.mean():.2f}")
    local = np.stack([row["local"] for row in rows])
    near = error < NEAR
    for name, part in (("fit", right & ~test), ("held out", right & test)):
        x, y = local[part].reshape(-1, local.shape[2]), near[part].ravel()
        if name == "fit":
            w = fit(x, y, 0.5)
        print(f"vertices, {name}: coefficients {w.round(3)}, AUROC {auroc(x @ w[1:], y):.3f}")


if __name__ == "__main__":
    main()
