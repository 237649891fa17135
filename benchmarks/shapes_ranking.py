"""Fits the score of maps (`shapes.ranking`) on procedural creatures, and says how well it ranks.

    python benchmarks/shapes_ranking.py [--pairs 16] [--vertices 1500]

prints the coefficients that `ranking` holds, after two minutes on one free core. Two creatures of
one plan, every third time with a surface of their own, are matched and five finalists kept; one is
right when its mean geodesic error (heat method) is below `ranking.RIGHT`. Every pair is used twice,
with its right finalists and without them, so that the model also learns when none is right. Prints

    area under the ROC curve and mean log loss of the winner's score, each plan judged by a model
    that was fitted on the other plans
    area under the ROC curve of single measures, over all finalists that are no reflections
    coefficients of the score, fitted on all plans
    coefficients of the confidence of vertices, fitted on right maps (right: within 0.05), and its
    area under the ROC curve with plans held out
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from driftworks.shapes import matching, ranking
from driftworks.shapes.creatures import PLANS, correspondence, draw
from driftworks.shapes.prior import SecondMoment

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
#: Features (m, d) of the finalists of a pair, and which are right.
Contest = tuple[Array, Flags]
NEAR = 0.05
RIDGE = 0.1
#: Plans that share a skeleton.
PARTNER = {"human": "ape", "ape": "human"}
USED = ("bending", "worst", "inverted", "curvature", "handedness", "distortion")


def auroc(score: Array, right: Flags) -> float:
    """Chance that a right one scores above a wrong one."""
    good, bad = score[right], score[~right]
    if not len(good) or not len(bad):
        return float("nan")
    return float((good[:, None] > bad).mean() + 0.5 * (good[:, None] == bad).mean())


def fit(contests: list[Contest], ridge: float = RIDGE) -> Array:
    """Coefficients (d + 1,) of `ranking.contest`, the intercept first, none of the others positive.

    Every feature is larger for worse maps, so that a positive weight would be noise.
    """
    every = np.concatenate([x for x, _ in contests])
    middle, scale = every.mean(0), every.std(0) + 1e-9

    def loss(w: Array) -> float:
        total = ridge * float(np.square(w[1:]).sum())
        for x, right in contests:
            odds = np.concatenate([[0.0], w[0] + ((x - middle) / scale) @ w[1:]])
            total += np.logaddexp.reduce(odds)
            total -= np.logaddexp.reduce(odds[1:][right]) if right.any() else 0.0
        return total

    d = every.shape[1]
    bounds = [(None, None)] + [(None, 0.0)] * d
    w = minimize(loss, np.zeros(d + 1), bounds=bounds, method="L-BFGS-B").x
    slope = w[1:] / scale
    return np.concatenate([[w[0] - slope @ middle], slope])


def winners(w: Array, contests: list[Contest]) -> tuple[Array, Flags]:
    """Scores of the winners of contests, and whether they are right."""
    score, truth = [], []
    for x, right in contests:
        logits = w[0] + x @ w[1:]
        best = int(logits.argmax())
        score.append(ranking.contest(logits, np.eye(len(x), dtype=bool))[best])
        truth.append(right[best])
    return np.array(score), np.array(truth)


def finalists(number: int, vertices: int) -> list[dict[str, Array]]:
    """What is known of each finalist of a pair."""
    rng, plan = np.random.default_rng((7, number)), PLANS[number % len(PLANS)]
    a = draw(plan, rng, vertices=vertices)
    own = number // len(PLANS) % 3 == 0
    b = draw(plan, rng, vertices=vertices + 300, own_surface=own)
    prior = SecondMoment.of_isometries(100)
    found = matching.match(a.mesh, b.mesh, finalists=4, prior=prior)
    judge = matching.prepare(a.mesh, b.mesh, 150, prior)
    anchors = judge.a.samples[: judge.a.anchors]
    at_b, _ = correspondence(a, b)
    rows = []
    for h in found.hypotheses:
        at = h.map_ba[judge.b.samples], h.map_ab[judge.a.samples]
        # errors at samples of b, where all finalists are precise, by the nearest sample's truth
        place = judge.b.mesh.vertices
        gap = np.square(place[at_b[anchors]][:, None] - place[judge.b.samples][None]).sum(2)
        reached = h.map_ba[judge.b.samples[gap.argmin(1)]]
        rows.append({
            "measures": np.array([ranking.feature(h.parts, m) for m in ranking.MEASURES]),
            "mirrored": np.array(h.mirrored),
            "error": judge.a.distances[np.arange(len(anchors)), reached],
            "local": ranking.local_features(judge, *at)[0],
        })
    errors = " ".join(f"{100 * r['error'].mean():.1f}" for r in rows)
    print(f"{plan}: {errors}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--vertices", type=int, default=1500)
    args = parser.parse_args()
    column = [ranking.MEASURES.index(name) for name in USED]
    contests: list[Contest] = []
    plans, rows, of_row = [], [], []
    for number in range(args.pairs):
        pair = [r for r in finalists(number, args.vertices) if not r["mirrored"]]
        plan = PLANS[number % len(PLANS)]
        rows += pair
        of_row += [plan] * len(pair)
        x = np.stack([r["measures"] for r in pair])[:, column]
        right = np.array([r["error"].mean() < ranking.RIGHT for r in pair])
        for kept in (np.ones(len(pair), bool), ~right) if right.any() else (~right,):
            if kept.any():
                contests.append((x[kept], right[kept]))
                plans.append(plan)
    held: list[tuple[Array, Flags]] = []
    for plan in dict.fromkeys(plans):
        w = fit([c for c, p in zip(contests, plans, strict=True) if p != plan])
        held.append(winners(w, [c for c, p in zip(contests, plans, strict=True) if p == plan]))
        print(f"winners, {plan} held out: AUROC {auroc(*held[-1]):.3f}")
    score, truth = (np.concatenate(part) for part in zip(*held, strict=True))
    loss = -np.log(np.clip(np.where(truth, score, 1 - score), 1e-9, 1)).mean()
    print(f"{len(score)} winners, {(~truth).sum()} wrong: AUROC {auroc(score, truth):.3f}, "
          f"log loss {loss:.3f}")
    measures = np.stack([r["measures"] for r in rows])
    good = np.array([r["error"].mean() < ranking.RIGHT for r in rows])
    for name, values in zip(ranking.MEASURES, measures.T, strict=True):
        print(f"    {name:14s} alone {auroc(-values, good):.3f}")
    w = fit(contests)
    print(f"_INTERCEPT = {w[0]:.2f}", dict(zip(USED, w[1:].round(2).tolist(), strict=True)))
    local = np.stack([r["local"] for r in rows])[good]
    near = np.stack([r["error"] for r in rows])[good] < NEAR
    group = np.array(of_row)[good]
    for plan in (*dict.fromkeys(of_row), ""):
        x, y = (v[group != plan].reshape(-1, *v.shape[2:]) for v in (local, near))
        # one map a contest: then the model is the ordinary logistic one
        w = fit([(one[None], ok[None]) for one, ok in zip(x[::4], y[::4], strict=True)], 0.5)
        if plan:
            x, y = (v[group == plan].reshape(-1, *v.shape[2:]) for v in (local, near))
            print(f"vertices, {plan} held out: AUROC {auroc(x @ w[1:], y):.3f}")
    print(f"_LOCAL = {tuple(w.round(2).tolist())}")


if __name__ == "__main__":
    main()
