r"""Which of several maps is right, judged without labels, and how sure one may be of each vertex.

A map between a and b is known here on samples: ``at_a`` (t,) is the vertex of a where sample j of b
goes, ``at_b`` (s,) the vertex of b where sample i of a goes. Distances D are known from the first
samples of each shape, the anchors. Two tables, both (anchors of a, anchors of b),

    X_ij = D_a(i, at_a(j)),     Y_ij = D_b(at_b(i), j)

are equal for an isometry whose two directions are inverse to each other. Out of them come

    distortion     mean |X - Y|
    stretch        mean |X - Y| where X or Y is short
    tear           mean over anchors of the largest |X - Y|
    cycle          mean of X where Y is near 0, and of Y where X is: there and back again
    gaps           mean distance of an anchor to the nearest image

A flipped isometry passes all of these. What it cannot do is to move small patches without bending
them: with a patch of geodesic radius r around every anchor, and the rigid motion that best takes it
to its image (Kabsch; the sum of singular values of the cross-covariance, the last one with the sign
of the determinant),

    bending        part of the patch's spread that no rotation explains
    handedness     the same for rotations minus reflections, over their sum: -1 .. 1, above 0 where
                   reflections do better

    worst          the bending that a tenth of all patches exceed
    inverted       share of patches that are of the other hand than most

which need no faces. The front of a body is not its back by

    curvature      mean squared difference of mean curvature, signed, after three times of smoothing
                   (`Surface.curvatures`), for a variance of 1

and further there are

    descriptors    mean squared difference of wave kernel signatures, which are of variance 1
    orthogonality, commutation     of the functional map (`fmaps`)
    prior          energy an entry of |C| under a prior of maps, less that of random orthogonal
                   matrices: above 0 for maps that look like none

Numbers that are not negative enter as z = log(. + 0.01), handedness as -|.|. A map has odds
exp(u + w . z) of being right, with no w above 0, against all maps that are not compared with it; of
several maps that differ at most one is right, so

    P(map i is right) = o_i / (1 + sum_j o_j)

and a pair with two good maps is sure of neither (`contest`). u and w maximise the likelihood of
that on finalists of procedural creatures, and on the same without the right ones
(``benchmarks/shapes_ranking.py``). There a map is right when its mean geodesic error is below
`RIGHT`. The first guesses, on few samples, are put in order by weights that were set by hand
(`promise`): fitted ones choose no better. The energy under the prior is not used: it knows neither
left from right nor front from back, and adding it made held-out likelihoods worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from driftworks.shapes import descriptors, fmaps
from driftworks.shapes.surface import Surface

if TYPE_CHECKING:
    from driftworks.shapes.prior import Prior

__all__ = ["MEASURES", "RIGHT", "Judge"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Mean geodesic error, in units of sqrt(area), below which a map counts as right.
RIGHT = 0.05

MEASURES = (
    "distortion",
    "stretch",
    "tear",
    "cycle",
    "gaps",
    "bending",
    "handedness",
    "worst",
    "inverted",
    "curvature",
    "descriptors",
    "orthogonality",
    "commutation",
    "prior",
)

#: Intercept u and weights w of refined maps; measures without one are reported and not used, as
#: curvature and distortion, whose weights came out as 0 beside the others.
_INTERCEPT = -22.16
_WEIGHTS = {
    "bending": -6.41,
    "worst": -1.12,
    "inverted": -0.94,
    "handedness": -1.83,
}
#: Weights of guesses.
_PROMISE = {"bending": -3.69, "handedness": -1.85, "distortion": -0.92, "descriptors": -0.46}
#: Confidence of vertices: intercept, and of the logarithms in `local_features`.
_LOCAL = (-4.86, -0.85, -0.4, -1.47)

_RADIUS = 0.15  # of patches, in units of sqrt(area): a hand is about as wide
_NEAR = 0.06  # distances that count as near 0 in the cycle
_FUNCTIONS = 30  # resolution of the functional map that is judged
_ENERGIES = 24


@dataclass(frozen=True, eq=False)
class Judge:
    """Measures maps between two shapes.

    prior: of |C|, or None to leave that measure out (0)
    """

    a: Surface
    b: Surface
    prior: Prior | None = None

    @cached_property
    def _references(self) -> dict[int, float]:
        """`_reference` by size: the same for every map between these shapes."""
        return {}

    @cached_property
    def signatures(self) -> tuple[Array, Array]:
        """Wave kernel signatures (n, d) of both shapes, see `signatures`."""
        return signatures(self.a, self.b)

    @cached_property
    def curvatures(self) -> tuple[Array, Array]:
        """`Surface.curvatures` (n, 3) of both shapes, of mean 0 and variance 1 over both."""
        found = [surface.curvatures for surface in (self.a, self.b)]
        masses = [surface.basis.mass for surface in (self.a, self.b)]
        middle = sum(m @ f for m, f in zip(masses, found, strict=True)) / 2
        power = sum(m @ np.square(f - middle) for m, f in zip(masses, found, strict=True)) / 2
        scale = np.sqrt(np.maximum(power, 1e-12))
        return (found[0] - middle) / scale, (found[1] - middle) / scale

    def measure(self, at_a: Indices, at_b: Indices) -> dict[str, float]:
        """The numbers named in `MEASURES`, for a map on the first samples of either shape."""
        return self.glance(at_a, at_b) | self._functional(at_a, at_b)

    def glance(self, at_a: Indices, at_b: Indices) -> dict[str, float]:
        """Those of them that need no functional map and no prior: guesses are sorted by these."""
        x, y = self.tables(at_a, at_b)
        gap = np.abs(x - y)
        near_x, near_y = (np.exp(-0.5 * (d / _NEAR) ** 2) + 1e-12 for d in (x, y))
        cycle = 0.5 * ((near_y * x).sum() / near_y.sum() + (near_x * y).sum() / near_x.sum())
        found = {
            "distortion": float(gap.mean()),
            "tear": float(0.5 * (gap.max(0).mean() + gap.max(1).mean())),
            "cycle": float(cycle),
            "stretch": float(gap[np.minimum(x, y) < _RADIUS].mean()),
            "gaps": float(0.5 * (x.min(1).mean() + y.min(0).mean())),
        }
        bends = np.hstack([bending(self.a, self.b, at_b), bending(self.b, self.a, at_a)])
        means = bends.mean(1)
        hand = int(means.argmin())
        found["bending"] = float(means[hand])
        found["handedness"] = float((means[0] - means[1]) / max(means.sum(), 1e-12))
        found["worst"] = float(np.quantile(bends[hand], 0.9))
        found["inverted"] = float((bends[hand] > bends[1 - hand]).mean())
        for name, (of_a, of_b) in (
            ("descriptors", self.signatures), ("curvature", self.curvatures)
        ):
            there = of_b[self.b.samples[: len(at_a)]] - of_a[at_a]
            back = of_a[self.a.samples[: len(at_b)]] - of_b[at_b]
            found[name] = float(0.5 * (np.square(there).mean() + np.square(back).mean()))
        return found

    def tables(self, at_a: Indices, at_b: Indices) -> tuple[Array, Array]:
        """X and Y (anchors of a, anchors of b) of the module's docstring."""
        x = self.a.distances[:, at_a[: self.b.anchors]]
        y = self.b.distances[:, at_b[: self.a.anchors]].T
        return x, y

    def _functional(self, at_a: Indices, at_b: Indices) -> dict[str, float]:
        k = min(
            _FUNCTIONS, len(self.a.basis), len(self.b.basis), len(at_a) // 3, len(at_b) // 3
        )
        basis_a, basis_b = self.a.basis.first(k), self.b.basis.first(k)
        c_ab = fmaps.from_samples(at_a, self.b.samples[: len(at_a)], basis_a, basis_b)
        c_ba = fmaps.from_samples(at_b, self.a.samples[: len(at_b)], basis_b, basis_a)
        both = np.stack([c_ab, c_ba])
        values = np.stack([basis_a.values, basis_b.values])
        energy = 0.0
        if self.prior is not None:
            size = min(k, self.prior.k)
            energy = self._energy(self.prior, np.abs(both[:, :size, :size]))
            if size not in self._references:
                self._references[size] = self._reference(size)
            energy -= self._references[size]
        return {
            "orthogonality": float(fmaps.orthogonality_error(both).mean()),
            "commutation": float(fmaps.commutation_error(both, values, values[::-1].copy()).mean()),
            "prior": energy,
        }


    def _energy(self, prior: Prior, sizes: Array) -> float:
        """Mean energy an entry of maps (B, k, k), the first half from a to b and the rest back."""
        half, k = len(sizes) // 2, sizes.shape[1]
        values = np.stack([self.a.basis.values[:k], self.b.basis.values[:k]])
        v = torch.from_numpy(values.repeat(half, 0)).float()
        x = torch.from_numpy(sizes).float()
        return float(prior.energy(x, v, v.flip(0)).mean()) / k**2

    def _reference(self, k: int) -> float:
        """The energy of maps that are nothing but orthogonal, so that priors can be compared."""
        assert self.prior is not None
        drawn = np.random.default_rng(0).normal(size=(8, k, k))
        return self._energy(self.prior, np.abs(np.linalg.qr(drawn)[0]))


def signatures(a: Surface, b: Surface) -> tuple[Array, Array]:
    """Wave kernel signatures (n, 24) of two shapes at the same energies, root mean square 1."""
    k = min(100, len(a.basis), len(b.basis))
    basis_a, basis_b = a.basis.first(k), b.basis.first(k)
    energies = descriptors.wave_energies(0.5 * (basis_a.values + basis_b.values), _ENERGIES)
    found = [descriptors.wks(basis, energies=energies) for basis in (basis_a, basis_b)]
    # one scale for both: a shape that differs shall differ
    power = [np.square(f).T @ s.basis.mass for f, s in zip(found, (a, b), strict=True)]
    scale = np.sqrt(np.maximum(0.5 * (power[0] + power[1]), 1e-300))
    return found[0] / scale, found[1] / scale


def bending(source: Surface, target: Surface, at: Indices) -> tuple[Array, Array]:
    """How far patches around anchors of `source` are from moving rigidly onto their images.

    at: (s,) vertices of `target` where the first s samples of `source` go
    Returns two arrays (anchors,) in [0, 1]: for rotations, and for reflections.
    """
    chosen = source.samples[: len(at)]
    reach = source.distances[:, chosen] / _RADIUS
    weights = np.clip(1 - reach**2, 0, None) ** 2
    weights /= weights.sum(1, keepdims=True)
    from_, to = source.mesh.vertices[chosen], target.mesh.vertices[at]
    mean_f, mean_t = weights @ from_, weights @ to
    outer = (from_[:, :, None] * to[:, None, :]).reshape(len(at), 9)
    cross = (weights @ outer).reshape(-1, 3, 3) - mean_f[:, :, None] * mean_t[:, None, :]
    spread = weights @ (from_**2).sum(1) - (mean_f**2).sum(1)
    spread_t = weights @ (to**2).sum(1) - (mean_t**2).sum(1)
    singular = np.linalg.svd(cross, compute_uv=False)
    sign = np.where(np.linalg.det(cross) < 0, -1.0, 1.0)
    both = np.maximum(spread + spread_t, 1e-12)
    found = []
    for hand in (sign, -sign):
        explained = singular[:, 0] + singular[:, 1] + hand * singular[:, 2]
        found.append(np.clip(1 - 2 * explained / both, 0.0, 1.0))
    return found[0], found[1]


def feature(measures: dict[str, float], name: str) -> float:
    """A measure as the logistic model takes it: larger for worse maps of either handedness."""
    value = measures[name]
    if name == "handedness":
        return -abs(value)
    # below a hundredth maps differ by rounding, and exact copies would have infinite odds
    return value if name == "prior" else float(np.log(value + 0.01))


def promise(measures: dict[str, float]) -> float:
    """How good a guess looks, to put guesses in order: larger for better, without a scale."""
    return sum(w * feature(measures, name) for name, w in _PROMISE.items())


def logit(measures: dict[str, float]) -> float:
    """Logarithm of the odds that a map with these measures is right up to its handedness."""
    return _INTERCEPT + sum(w * feature(measures, name) for name, w in _WEIGHTS.items())


def probability(measures: dict[str, float]) -> float:
    """The chance, in [0, 1], that a map is right up to its handedness, if there are no others."""
    return float(contest(np.array([logit(measures)]), np.ones((1, 1), bool))[0])


def contest(logits: Array, same: NDArray[np.bool_]) -> Array:
    """(m,) chances that maps are right of which all that differ exclude each other.

    logits: (m,) of each alone; same: (m, m) whether two maps are one but for detail
    """
    shift = max(0.0, float(logits.max()))
    odds = np.exp(logits - shift)
    rivals = np.where(same, 0.0, odds).sum(1)
    return np.asarray(odds / (np.exp(-shift) + odds + rivals))


def local_features(judge: Judge, at_a: Indices, at_b: Indices) -> tuple[Array, Array]:
    """Numbers (anchors, 3) about the surroundings of each anchor of a and of b, larger for worse.

    How much its patch bends, by how much distances from it change, how far off its cycle ends.
    """
    x, y = judge.tables(at_a, at_b)
    gap = np.abs(x - y)
    found = []
    for surface, other, at, change, near, there in (
        (judge.a, judge.b, at_b, np.median(gap, 1), y, x),
        (judge.b, judge.a, at_a, np.median(gap, 0), x.T, y.T),
    ):
        bend = np.minimum(*bending(surface, other, at))
        close = np.exp(-0.5 * (near / _NEAR) ** 2) + 1e-12
        cycle = (close * there).sum(1) / close.sum(1)
        found.append(np.log(np.stack([bend, change, cycle], 1) + 0.01))
    return found[0], found[1]


def local_trust(
    judge: Judge, at_a: Indices, at_b: Indices, score: float
) -> tuple[Array, Array]:
    """Confidence (n_a,), (n_b,) in [0, 1] of single vertices of a map with this score.

    The chance that a vertex goes to within 0.05 sqrt(area) of its place, if the map is right.
    """
    found = []
    for surface, features in zip(
        (judge.a, judge.b), local_features(judge, at_a, at_b), strict=True
    ):
        odds = _LOCAL[0] + features @ np.array(_LOCAL[1:])
        trust = score / (1 + np.exp(-np.clip(odds, -60, 60)))
        weights = np.exp(-0.5 * (surface.distances / _NEAR) ** 2) + 1e-12
        found.append(trust @ weights / weights.sum(0))
    return found[0], found[1]
