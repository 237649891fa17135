r"""How good a match is, against ground truth: one evaluator for all methods.

Ground truth names vertices of a for vertices of b. The error of a map at a vertex x of b is

    e(x) = d_a(map_ba(x), truth(x)) / sqrt(area of a),

with d_a the distance from truth(x) along the surface of a by a method that has a name
(`geodesics`): methods differ by several per cent, so every report carries it. Only distances from
the sources that are asked for are computed, a block at a time.

    mean, median       of 100 e
    AUC at 10          mean of max(0, 1 - e / 0.1): the area under the curve of the share of
                       vertices below a threshold, for thresholds from 0 to 0.1, over its most
    within 5, 10, 25   share of vertices with 100 e up to that
    coverage           share of the area of a whose vertices are the image of some vertex of b
    round trip         mean of 100 d_b(x, map_ab(map_ba(x))) / sqrt(area of b) at sampled x
    Dirichlet energy   1/2 tr(P^T L_b P) of the positions P on a (area 1) that vertices of b go to:
                       small for smooth maps
    orientation        share of the area of b whose faces keep their side: near 1 for a map that
                       turns nothing inside out, near 0 for a mirrored one

Ground truth is direct. Symmetric shapes have a second map that is right up to left and right; its
errors are reported beside, never mixed in, and a map that is closer to it is `flipped`. Taking the
smaller of both errors at each vertex, as is sometimes done, would call a torn map perfect. A pair
of a shape with itself is marked and left out of summaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from driftworks.core.bootstrap import Figure, Statistic, estimate
from driftworks.errors import UserError
from driftworks.shapes.geodesics import distances
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.result import Match

__all__ = ["Report", "Summary", "errors", "evaluate", "summarise"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Bytes of distances that are held at a time.
_BLOCK_BYTES = 1 << 26
#: Vertices at which the round trip is measured.
_TRIPS = 100
_THRESHOLDS = (5, 10, 25)


@dataclass(frozen=True)
class Report:
    """Figures of one match; errors are 100 e, the rest are shares between 0 and 1.

    name: of the pair; samples: places where truth is known; geodesics: the method of distances
    mean_symmetric, flipped: None where no symmetric truth was given
    orientation: None for point clouds
    """

    name: str
    samples: int
    geodesics: str
    mean: float
    median: float
    auc10: float
    within5: float
    within10: float
    within25: float
    mean_symmetric: float | None
    flipped: bool | None
    coverage: float
    round_trip: float
    dirichlet: float
    orientation: float | None
    self_pair: bool
    score: float
    failed: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            ("mean error x100", f"{self.mean:.2f}"),
            ("median error x100", f"{self.median:.2f}"),
            ("AUC at 10", f"{self.auc10:.3f}"),
            *((f"within {t}", f"{getattr(self, f'within{t}'):.1%}") for t in _THRESHOLDS),
        ]
        if self.mean_symmetric is not None:
            rows.append(("mean to the mirrored truth x100", f"{self.mean_symmetric:.2f}"))
            rows.append(("flipped", "yes" if self.flipped else "no"))
        rows += [
            ("coverage", f"{self.coverage:.1%}"),
            ("round trip x100", f"{self.round_trip:.2f}"),
            ("Dirichlet energy", f"{self.dirichlet:.3f}"),
        ]
        if self.orientation is not None:
            rows.append(("orientation kept", f"{self.orientation:.1%}"))
        flag = ", flagged as failed" if self.failed else ""
        rows.append(("own score", f"{self.score:.2f}{flag}"))
        head = f"{self.name}: {self.samples:,} places, {self.geodesics} geodesics"
        lines = [head + (" (a shape with itself)" if self.self_pair else "")]
        return "\n".join([*lines, *(f"  {label:<32}{value:>8}" for label, value in rows)])


@dataclass(frozen=True, eq=False)
class Summary:
    """Figures over pairs, each with its 95 % bootstrap interval; pairs are what is resampled.

    figures: by name; "mean" is the mean of the pairs' means, "median" their median
    reports: of all pairs that were given; left_out: how many of them are pairs of a shape with
    itself, which do not count
    """

    figures: dict[str, Figure]
    reports: tuple[Report, ...]
    left_out: int
    geodesics: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "geodesics": self.geodesics,
            "self_pairs_left_out": self.left_out,
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
            "pairs": [report.to_dict() for report in self.reports],
        }

    def __str__(self) -> str:
        count = len(self.reports) - self.left_out
        head = f"{count} pairs, {self.geodesics} geodesics"
        if self.left_out:
            head += f"; {self.left_out} of a shape with itself left out"
        rows = [f"  {name:<24}{str(figure).strip()}" for name, figure in self.figures.items()]
        return "\n".join([head, *rows])


def evaluate(
    match: Match,
    truth: ArrayLike | tuple[ArrayLike, ArrayLike],
    *,
    symmetric: ArrayLike | tuple[ArrayLike, ArrayLike] | None = None,
    method: str = "heat",
) -> Report:
    """Hold a match against ground truth.

    truth: (N_b,) for each vertex of b its vertex on a, -1 where it has none; or two lists (s,) of
        vertices of a and of b that correspond. Numbers are those of the files: vertices that were
        merged or dropped by repair are looked up in `Mesh.origin`
    symmetric: the mirrored ground truth in the same form, reported beside
    method: of geodesic distances, "heat", "exact" or "edges"

    Raises `UserError` for truth of the wrong length or outside the vertices, and as `distances`.
    """
    wrong = 100 * errors(match, truth, method=method)
    if not len(wrong):
        raise UserError("the ground truth names no pair of vertices")
    mirrored = None
    if symmetric is not None:
        mirrored = float(100 * errors(match, symmetric, method=method).mean())
    mean = float(wrong.mean())
    shares = {f"within{t}": float((wrong <= t).mean()) for t in _THRESHOLDS}
    return Report(
        name=f"{match.a.name or 'a'} -> {match.b.name or 'b'}",
        samples=len(wrong),
        geodesics=method,
        mean=mean,
        median=float(np.median(wrong)),
        auc10=float(np.maximum(0, 1 - wrong / 10).mean()),
        mean_symmetric=mirrored,
        flipped=None if mirrored is None else mirrored < mean,
        coverage=_coverage(match),
        round_trip=_round_trip(match, method),
        dirichlet=_dirichlet(match),
        orientation=_orientation(match),
        self_pair=match.a.digest == match.b.digest,
        score=float(match.score),
        failed=bool(match.failed),
        **shares,
    )


def errors(
    match: Match, truth: ArrayLike | tuple[ArrayLike, ArrayLike], *, method: str = "heat"
) -> Array:
    """(s,) errors of the map from b to a where truth is known, in units of sqrt(area of a)."""
    right, at = _places(match, truth)
    return _between(match.a, right, match.map_ba[at], method)


def summarise(reports: Sequence[Report], resamples: int = 1000, seed: int = 0) -> Summary:
    """Figures of a set of pairs with bootstrap intervals over pairs.

    Raises `UserError` when there is no pair of two shapes, or reports differ in the method of their
    distances.
    """
    counted = [report for report in reports if not report.self_pair]
    if not counted:
        raise UserError("no pair of two different shapes to summarise")
    if len(methods := sorted({report.geodesics for report in reports})) > 1:
        raise UserError(f"reports with different geodesics cannot be mixed: {', '.join(methods)}")

    def column(name: str) -> Array:
        return np.array([float(getattr(report, name)) for report in counted])

    n = len(counted)
    statistics = {
        "mean error x100": _mean(column("mean"), "x100"),
        "median error x100": _median(column("mean")),
        "AUC at 10": _mean(column("auc10"), "fraction"),
        **{f"within {t}": _mean(column(f"within{t}"), "fraction") for t in _THRESHOLDS},
        "coverage": _mean(column("coverage"), "fraction"),
        "round trip x100": _mean(column("round_trip"), "x100"),
        "flagged as failed": _mean(column("failed"), "fraction"),
    }
    if all(report.flipped is not None for report in counted):
        statistics["flipped"] = _mean(column("flipped"), "fraction")
    assert all(len(statistic.rows) == n for statistic in statistics.values())
    return Summary(
        estimate(statistics, resamples, seed), tuple(reports), len(reports) - n, methods[0]
    )


def _mean(rows: Array, unit: str) -> Statistic:
    n = len(rows)
    bounds = (0.0, 1.0 if unit == "fraction" else np.inf)
    return Statistic(rows, lambda sums: sums[:, 0] / n, n, unit, "pairs", bounds)


def _median(rows: Array) -> Statistic:
    """The median over pairs, from how often each pair was drawn."""
    order = np.argsort(rows, kind="stable")
    ranked, n = rows[order], len(rows)

    def reduce(counts: Array) -> Array:
        upto = np.cumsum(np.round(counts[:, order]), axis=1)
        low, high = ((upto < middle).sum(1) for middle in ((n + 1) // 2, n // 2 + 1))
        return np.asarray((ranked[low] + ranked[high]) / 2)

    return Statistic(np.eye(n), reduce, n, "x100", "pairs", (0.0, np.inf))


def _places(
    match: Match, truth: ArrayLike | tuple[ArrayLike, ArrayLike]
) -> tuple[Indices, Indices]:
    """Vertices of a and b that correspond, in the numbers of the repaired meshes."""
    origin_a, origin_b = match.a.origin, match.b.origin
    if isinstance(truth, tuple):
        if len(truth) != 2:
            raise UserError("ground truth is one list for b, or a pair of lists (of a, of b)")
        on_a, on_b = np.asarray(truth[0]), np.asarray(truth[1])
        if on_a.shape != on_b.shape:
            raise UserError(f"lists of corresponding vertices are {on_a.shape} and {on_b.shape}")
    else:
        on_a = np.asarray(truth)
        if on_a.shape != origin_b.shape:
            raise UserError(
                f"ground truth must have a number for each of the {len(origin_b)} vertices of b, "
                f"not {on_a.shape}; give two lists where only some are known"
            )
        on_b = np.arange(len(on_a))
        if on_a.dtype.kind in "iu":
            on_a, on_b = on_a[on_a != -1], on_b[on_a != -1]
    for name, list_, origin in (("a", on_a, origin_a), ("b", on_b, origin_b)):
        if list_.ndim != 1 or (list_.size and list_.dtype.kind not in "iu"):
            raise UserError(f"ground truth on {name} must be a list of vertex numbers")
        if list_.size and not 0 <= list_.min() <= list_.max() < len(origin):
            raise UserError(
                f"ground truth names vertex {int(list_.max() if list_.min() >= 0 else list_.min())}"
                f" of {name}, whose vertices go from 0 to {len(origin) - 1}"
            )
    return origin_a[on_a.astype(np.int64)], origin_b[on_b.astype(np.int64)]


def _between(mesh: Mesh, first: Indices, second: Indices, method: str) -> Array:
    """(s,) distances of ``second`` from ``first``, the sources, in units of sqrt(area).

    Approximate distances are not quite symmetric, so the sources are never exchanged for fewer.
    """
    found = np.zeros(len(first))
    apart = (first != second).nonzero()[0]
    if not len(apart):
        return found
    one, other = first[apart], second[apart]
    sources, row = np.unique(one, return_inverse=True)
    step = max(1, _BLOCK_BYTES // (8 * len(mesh)))
    for begin in range(0, len(sources), step):
        table = distances(mesh, sources[begin : begin + step], method)
        now = (row >= begin) & (row < begin + step)
        found[apart[now]] = table[row[now] - begin, other[now]]
    return found / np.sqrt(mesh.area)


def _coverage(match: Match) -> float:
    image = np.unique(match.map_ba)
    return float(match.a.vertex_areas[image].sum() / match.a.area)


def _round_trip(match: Match, method: str) -> float:
    n = len(match.b)
    chosen = np.unique(np.linspace(0, n - 1, min(_TRIPS, n)).astype(np.int64))
    back = match.map_ab[match.map_ba[chosen]]
    return float(100 * _between(match.b, chosen, back, method).mean())


def _dirichlet(match: Match) -> float:
    from driftworks.shapes.spectrum import laplacian

    stiffness, _ = laplacian(match.b.normalised())
    places = match.a.normalised().vertices[match.map_ba]
    return float(0.5 * (places * (stiffness @ places)).sum())


def _orientation(match: Match) -> float | None:
    if match.a.is_cloud or match.b.is_cloud:
        return None
    corners = match.map_ba[match.b.faces]
    p, q, r = (match.a.vertices[corners[:, k]] for k in range(3))
    normal = match.a.normals[corners].sum(1)
    side = np.sign((np.cross(q - p, r - p) * normal).sum(1))
    p, q, r = (match.b.vertices[match.b.faces[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(q - p, r - p), axis=1)
    total = area[side != 0].sum()
    return float(area[side > 0].sum() / total) if total > 0 else None
