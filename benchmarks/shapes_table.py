"""Matching of shapes against ground truth: baselines, masks, `shapes.match`, published figures.

    python benchmarks/shapes_table.py [--data FOLDER] [--sets NAME ...] [--rows NAME ...]
        [--pairs 20] [--mask-pairs 60] [--model NAME|FOLDER] [--cache FILE.jsonl] [--json FILE]
        [--picture [FILE.png]] [--list]

``--data`` holds shapes_faust.npz and shapes_tosca.npz (``names`` and for every name ``NAME.v``,
``NAME.f`` and ``NAME.corr``, the vertex at each point; rows of one set correspond). Without it only
the set of procedural creatures, drawn from the seed, is there. Sets are faust, animals (cat, dog),
centaur, humans (david, michael, victoria; within each category) and creatures. Pairs of two
different shapes are drawn from the seed, each unordered pair once while there are any left.

Errors are 100 d / sqrt(area) at `--places` points a pair, from the map of b onto a to the direct
truth, with the geodesics that ``--geodesics`` names; none is compared with mirrored truth. A pair
fails when its mean error is above 15. Brackets are 95 % intervals of a bootstrap over pairs.
Seconds are processor time a pair on spectra that are there already. Rows:

    coordinates   nearest neighbours of the coordinates as they stand, at area 1: what the pose
                  alone gives
    wks           wave kernel signatures, resolvent mask, ZoomOut from 50 to 150 on all vertices
    orientation   the same with the orientation term: the axiomatic baseline
    masks         one pipeline, 30 functions, ZoomOut to 120 on 1,000 samples, then the map at the
                  points alone; only penalties differ. From signatures (wks), and from plane waves
                  of coordinates (xyz), which uses that the shapes stand alike. Each mask has the
                  weight that was best on procedural creatures (500 samples), none of which occurs
                  elsewhere; one weight for all sets. Differences from the resolvent mask are
                  paired; the network is also compared with the two closed forms beside it
    match         `shapes.match` with its defaults and the prior named by ``--model``; then the best
                  of the maps it chose from, how well its score finds wrong ones (all these maps of
                  all pairs, and those not known to be mirrored; wrong: above 8), and its confidence
                  vertices that are off by more than 5

``--cache`` keeps what is measured, a line each, so that a run can be cut and goes on. A line knows
its settings and the prior, but not the code: start a new file after changing that.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from shapes_ranking import PARTNER, auroc
from store import Store

from driftworks.errors import UserError
from driftworks.shapes import creatures, descriptors, fmaps, matching, starts, zoo
from driftworks.shapes.geodesics import METHODS, distances
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.prior import Prior, posterior_penalty
from driftworks.shapes.ranking import signatures
from driftworks.shapes.repair import clean
from driftworks.shapes.spectrum import Basis
from driftworks.shapes.surface import Surface
from driftworks.shapes.zoomout import zoomout

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

FAILED, WRONG, OFF = 15.0, 8.0, 5.0  # 100 e: of a pair, of a map, of a vertex
#: Set -> file and categories.
FILES = {
    "faust": ("shapes_faust.npz", ("tr_reg",)),
    "animals": ("shapes_tosca.npz", ("cat", "dog")),
    "centaur": ("shapes_tosca.npz", ("centaur",)),
    "humans": ("shapes_tosca.npz", ("david", "michael", "victoria")),
}
SETS = (*FILES, "creatures")
ROWS = ("coordinates", "wks", "orientation", "masks", "match")
FEATURES = ("wks", "xyz")
MASKS = ("laplacian", "resolvent", "second-moment", "gaussian", "network", "network + resolvent")
REFERENCE = "resolvent"
WEIGHTS = tuple(10.0 ** (np.arange(-2, 5) / 2))  # 0.1 .. 100

PAPER = "as DiffuMatch prints it (2025), other pairs and remeshings"
PYFM = "pyfmaps 1.3.1, measured with this definition on other pairs"
ULRSSM = "released weights, trained on people, no refinement; measured with this definition"
#: Set -> method, mean error, where from.
PUBLISHED: dict[str, list[tuple[str, float, str]]] = {
    "faust": [
        ("DiffuMatch", 1.9, PAPER), ("SNK", 1.8, PAPER), ("Simplified FMaps, trained", 1.7, PAPER),
        ("3D-CODED, trained", 7.5, PAPER),
        ("ULRSSM, trained", 1.25, ULRSSM + ", 16 pairs"),
        ("WKS + orientation + ZoomOut", 5.6, PYFM + " (20, median 1.6)"),
    ],
    "animals": [
        ("DiffuMatch, cat dog horse wolf", 2.9, PAPER),
        ("SNK, cat dog horse wolf", 3.6, PAPER),
        ("Simplified FMaps, trained on people", 5.1, PAPER),
        ("ULRSSM, trained on people", 10.9, ULRSSM + ", 12 pairs"),
        ("WKS + orientation + ZoomOut", 6.07, PYFM + " (12, with horse and wolf)"),
    ],
}  # fmt: skip

K, GROWN, SAMPLES = 150, 120, 1000  # functions of the baselines, of the masks; samples of masks
MASK_K = 30
BINS = np.append(np.linspace(0.0, 0.5, 101), np.inf)  # of errors e, for the curves
TRUST_BINS = 50
TUNING_PLACES, TUNING_SAMPLES = 200, 500  # what suffices to compare weights


@dataclass(frozen=True)
class Pair:
    """Names of two shapes of a set."""

    set: str
    a: str
    b: str


def pairs_of(name: str, groups: Sequence[Sequence[str]], count: int, seed: int) -> list[Pair]:
    """The first ``count`` of all pairs within groups in a random order; fewer where there are not.

    Every unordered pair comes once, in a random direction, before any comes the other way.
    """
    rng = np.random.default_rng(seed)
    once = [pair for group in groups for pair in itertools.combinations(group, 2)]
    order, turned = rng.permutation(len(once)), rng.random(len(once)) < 0.5
    forth = [once[i][::-1] if turned[i] else once[i] for i in order]
    chosen = [*forth, *(pair[::-1] for pair in forth)][:count]
    return [Pair(name, a, b) for a, b in chosen]


def category(name: str) -> str:
    return name.rstrip("0123456789").rstrip("_")


class Collection:
    """Registered meshes of a file."""

    def __init__(self, path: Path, categories: Sequence[str]):
        if not path.is_file():
            raise UserError(f"no file {path}; --data names the folder of {path.name}")
        self.data = np.load(path, allow_pickle=False)
        names = [str(n) for n in self.data["names"]]
        self.groups = [[n for n in names if category(n) == c] for c in categories]

    def _mesh(self, name: str) -> Mesh:
        v, f = self.data[f"{name}.v"], self.data[f"{name}.f"]
        return clean(v.astype(np.float64), f.astype(np.int64), name=name)

    def load(self, pair: Pair) -> tuple[Mesh, Mesh, Indices, Indices]:
        """Both meshes and vertices of a and b that correspond."""
        a, b = (self._mesh(name) for name in (pair.a, pair.b))
        on_a, on_b = (self.data[f"{name}.corr"].astype(np.int64) for name in (pair.a, pair.b))
        return a, b, a.origin[on_a], b.origin[on_b]


class Drawn:
    """Procedural creatures PLAN-NUMBER of a seed; one in five has a surface of its own."""

    def __init__(self, seed: int, vertices: int, each: int = 8):
        self.seed, self.vertices = seed, vertices
        joint = ("human", "ape")
        assert PARTNER[joint[0]] == joint[1]
        plans = [joint, *((plan,) for plan in creatures.PLANS if plan not in joint)]
        self.groups = [[f"{p}-{i}" for p in family for i in range(each)] for family in plans]

    @lru_cache(maxsize=4)  # noqa: B019 - lives as long as the run
    def _creature(self, name: str) -> creatures.Creature:
        plan, number = name.split("-")
        rng = np.random.default_rng((self.seed, creatures.PLANS.index(plan), int(number)))
        own = int(number) % 5 == 4
        return creatures.draw(plan, rng, vertices=self.vertices, own_surface=own)

    def load(self, pair: Pair) -> tuple[Mesh, Mesh, Indices, Indices]:
        a, b = self._creature(pair.a), self._creature(pair.b)
        on_b, _ = creatures.correspondence(a, b)
        return a.mesh, b.mesh, np.arange(len(a.mesh)), on_b


class Truth:
    """Errors of maps of b onto a at some of the points that correspond."""

    def __init__(self, a: Mesh, on_a: Indices, on_b: Indices, places: int, method: str):
        rows = np.random.default_rng(0).permutation(len(on_a))[:places]
        self.on_a, self.on_b = on_a[rows], on_b[rows]
        sources, self.row = np.unique(self.on_a, return_inverse=True)
        self.table = distances(a, sources, method) / np.sqrt(a.area)

    def errors(self, map_ba: Indices) -> Array:
        """(places,) e, in units of sqrt(area of a)."""
        reached = map_ba[self.on_b]
        return np.where(reached == self.on_a, 0.0, self.table[self.row, reached])


@lru_cache(maxsize=8)
def _surface(mesh: Mesh) -> Surface:
    return Surface.of(mesh, min(K, len(mesh) // 3), min(SAMPLES, len(mesh)))


@dataclass(eq=False)
class Case:
    """A pair that is loaded when a row asks for it."""

    pair: Pair
    source: Collection | Drawn
    places: int
    method: str
    samples: int = SAMPLES

    @cached_property
    def meshes(self) -> tuple[Mesh, Mesh, Indices, Indices]:
        return self.source.load(self.pair)

    @cached_property
    def surfaces(self) -> tuple[Surface, Surface]:
        return _surface(self.meshes[0]), _surface(self.meshes[1])

    @cached_property
    def truth(self) -> Truth:
        a, _, on_a, on_b = self.meshes
        return Truth(a, on_a, on_b, self.places, self.method)

    @cached_property
    def coefficients(self) -> dict[str, tuple[Array, Array]]:
        """Of the descriptors of masks, by their name."""
        a, b = self.surfaces
        found = {"wks": signatures(a, b), "xyz": (_plane_waves(a), _plane_waves(b))}
        out = {}
        for name, both in found.items():
            out[name] = tuple(
                s.basis.first(MASK_K).coefficients(descriptors.unit(f, s.basis.mass))
                for s, f in zip((a, b), both, strict=True)
            )
        return out  # type: ignore[return-value]


def _plane_waves(surface: Surface) -> Array:
    """(n, 103) coordinates as they stand and plane waves in them."""
    rng = np.random.default_rng(0)
    directions, phase = 3.0 * rng.normal(size=(3, 100)), rng.uniform(0, 2 * np.pi, 100)
    x = surface.mesh.vertices
    return np.hstack([x, np.cos(x @ directions + phase)])


def coordinates(case: Case) -> Indices:
    a, b = case.surfaces
    return fmaps.nearest(b.mesh.vertices, a.mesh.vertices)


def axiomatic(case: Case, orientation: float) -> Indices:
    a, b = case.surfaces
    c = starts.waves(a, b, 50, orientation)
    return zoomout(c, a.basis, b.basis, min(K, len(a.basis), len(b.basis)))[1]


def penalties(mask: str, case: Case, features: str, priors: dict[str, Prior]) -> Array:
    """(30, 30) of mean 1."""
    a, b = (s.basis.first(MASK_K) for s in case.surfaces)
    if mask == "laplacian":
        return fmaps.laplacian_penalty(a.values, b.values)
    if mask == "resolvent":
        return fmaps.resolvent_penalty(a.values, b.values)
    if mask == "second-moment":
        # as a mask it needs no raw map: the mean square of an entry stands for its variance
        moment = priors[mask].moment[:MASK_K, :MASK_K].double().numpy()  # type: ignore[attr-defined]
        found = 1.0 / (moment + 0.03**2)
        return found / found.mean()
    if mask == "network + resolvent":
        return 0.5 * sum(penalties(m, case, features, priors) for m in ("network", "resolvent"))
    of_a, of_b = case.coefficients[features]
    # descriptors that say little about a function leave its raw entries to a small ridge
    raw = fmaps.fit(of_a, of_b, np.ones((MASK_K, MASK_K)), 1e-3)
    return posterior_penalty(priors[mask], raw, a.values, b.values)


def masked(
    case: Case, mask: str, features: str, weight: float, priors: dict[str, Prior]
) -> Indices:
    """The map at the samples and at the points of the truth; -1 at other vertices."""
    a, b = case.surfaces
    c = fmaps.fit(*case.coefficients[features], penalties(mask, case, features, priors), weight)
    k = min(GROWN, len(a.basis), len(b.basis))
    from_a, from_b = a.samples[: case.samples], b.samples[: case.samples]
    kept = np.concatenate([from_b, case.truth.on_b])
    cut = Basis(b.basis.values, b.basis.functions[kept], b.basis.mass[kept])
    samples = np.arange(len(from_b))
    found = np.full(len(b), -1)
    found[kept] = zoomout(c, a.basis, cut, k, 15, samples1=from_a, samples2=samples)[1]
    return found


def result(errors: Array, seconds: float) -> dict[str, Any]:
    counts, _ = np.histogram(errors, BINS)
    return {
        "mean": round(100 * float(errors.mean()), 4),
        "median": round(100 * float(np.median(errors)), 4),
        "seconds": round(seconds, 3),
        "histogram": counts.tolist(),
    }


def timed(case: Case, row: Callable[[Case], Indices]) -> dict[str, Any]:
    _ = case.surfaces, case.truth
    begin = time.process_time()
    found = row(case)
    seconds = time.process_time() - begin
    return result(case.truth.errors(found), seconds)


def matched(case: Case, prior: Prior) -> dict[str, Any]:
    """The selected map, and what is known of the others and of vertices."""
    a, b = case.meshes[:2]
    _ = case.surfaces
    begin = time.process_time()
    found = matching.match(a, b, prior=prior)
    seconds = time.process_time() - begin
    truth = case.truth
    errors = truth.errors(found.map_ba)
    trust = found.confidence_b[truth.on_b]
    near = 100 * errors <= OFF
    edges = np.linspace(0, 1, TRUST_BINS + 1)
    return {
        **result(errors, seconds),
        "failed": bool(found.failed),
        "hypothesis": found.hypothesis,
        "hypotheses": [
            [h.name, round(h.score, 6), round(100 * float(truth.errors(h.map_ba).mean()), 4),
             h.mirrored]
            for h in found.hypotheses
        ],  # fmt: skip
        "confidence": [np.histogram(trust[part], edges)[0].tolist() for part in (near, ~near)],
    }


def fingerprint(prior: Prior) -> str:
    """Eight digits that differ for priors that answer differently."""
    x, values = 0.9 * torch.eye(MASK_K)[None], torch.linspace(0, 300, MASK_K)[None]
    with torch.no_grad():
        found = prior.denoise(x, torch.tensor([0.3]), values, values)
    return hashlib.sha256(found.round(decimals=4).numpy().tobytes()).hexdigest()[:8]


@dataclass
class Bench:
    """Settings, priors and the store; measures a row of a pair."""

    store: Store
    priors: dict[str, Prior]
    places: int
    method: str
    weights: dict[tuple[str, str], float] = field(default_factory=dict)

    @cached_property
    def marks(self) -> dict[str, str]:
        return {kind: fingerprint(prior) for kind, prior in self.priors.items()}

    @property
    def masks(self) -> list[str]:
        axiomatic_ = MASKS[:2]
        return [m for m in MASKS if m in axiomatic_ or m.split(" + ")[0] in self.priors]

    @property
    def default(self) -> Prior:
        return self.priors["network"] if "network" in self.priors else matching.default_prior()

    def mask(self, case: Case, features: str, mask: str, weight: float) -> dict[str, Any]:
        mark = self.marks.get(mask.split(" + ")[0], "")
        key = (*_key(case), "mask", features, mask, mark, f"{weight:.4g}")
        row = lambda c: masked(c, mask, features, weight, self.priors)  # noqa: E731
        return self.store.get(key, lambda: timed(case, row))

    def rows(self, case: Case, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Labels and results of a row of `ROWS`; masks are several."""
        if name == "masks":
            for features in FEATURES:
                for mask in self.masks:
                    weight = self.weights[features, mask]
                    yield f"{mask}, {features}", self.mask(case, features, mask, weight)
            return
        if name == "match":
            mark = fingerprint(self.default)
            make = lambda: matched(case, self.default)  # noqa: E731
            yield name, self.store.get((*_key(case), name, mark), make)
            return
        plain = {
            "coordinates": coordinates,
            "wks": lambda c: axiomatic(c, 0.0),
            "orientation": lambda c: axiomatic(c, 1.0),
        }[name]
        yield name, self.store.get((*_key(case), name), lambda: timed(case, plain))

    def tune(self, source: Drawn, count: int, seed: int) -> None:
        """The weight of every mask with the least mean error on training pairs."""
        cases = [
            Case(pair, source, TUNING_PLACES, self.method, TUNING_SAMPLES)
            for pair in pairs_of(f"training {source.seed} {source.vertices}", source.groups, count,
                                 seed)
        ]  # fmt: skip
        found: dict[tuple[str, str], Array] = {}
        for case in cases:
            for features, mask in itertools.product(FEATURES, self.masks):
                means = [self.mask(case, features, mask, w)["mean"] for w in WEIGHTS]
                found[features, mask] = found.get((features, mask), 0.0) + np.array(means)
        print(f"weights of masks, from {count} pairs of creatures (mean error there, by weight)")
        print(f"  {'':27}" + "".join(f"{w:7.2g}" for w in WEIGHTS))
        for key, total in found.items():
            self.weights[key] = WEIGHTS[int(np.argmin(total))]
            means_ = "".join(f"{v / count:7.2f}" for v in total)
            print(f"  {key[1] + ', ' + key[0]:27}{means_}  -> {self.weights[key]:.3g}", flush=True)


def _key(case: Case) -> tuple[Any, ...]:
    return case.pair.set, case.pair.a, case.pair.b, case.places, case.method, case.samples


def resampled(count: int, draws: int = 2000) -> Indices:
    """(draws, count) numbers of pairs, the same for all rows of a set."""
    return np.random.default_rng(1).integers(0, count, (draws, count))


def interval(values: Array, statistic: Callable[..., Any] = np.mean, sign: str = "") -> str:
    """A statistic of pairs with its 95 % interval."""
    draws = statistic(values[resampled(len(values))], axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{statistic(values):{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def column(rows: Sequence[dict[str, Any]], name: str) -> Array:
    return np.array([row[name] for row in rows], np.float64)


def line(label: str, rows: Sequence[dict[str, Any]]) -> str:
    means = column(rows, "mean")
    seconds = f"{column(rows, 'seconds').mean():.2f}" if "seconds" in rows[0] else ""
    return (
        f"  {label:<26}{len(rows):>4}  {interval(means):<22}{interval(means, np.median):<22}"
        f"{100 * (means > FAILED).mean():>5.1f} %  {seconds:>6}"
    )


def about_match(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a table says of `match` beside its error."""
    oracle = [{"mean": min(error for _, _, error, _ in row["hypotheses"])} for row in rows]
    means, flagged = column(rows, "mean"), np.array([row["failed"] for row in rows])
    bad = means > WRONG
    lines = [line("  best of its hypotheses", oracle)]
    every = np.array([h[1:] for row in rows for h in row["hypotheses"]], np.float64)
    # a score is of a map up to its handedness, which `mirrored` tells
    for label, some in (("all", every), ("not mirrored", every[every[:, 2] == 0])):
        right = some[:, 1] <= WRONG
        lines.append(
            f"    score, wrong maps: AUROC {auroc(some[:, 0], right):.3f} over {len(some)} "
            f"hypotheses ({label}), {(~right).sum()} of them wrong"
        )
    lines.append(
        f"    flag: {flagged.sum()} of {len(rows)} pairs flagged; {bad.sum()} wrong, "
        f"{(flagged & bad).sum()} of these flagged"
    )
    fair = [row for row in rows if row["mean"] <= WRONG]
    for label, chosen in (("all maps", rows), ("right maps", fair)):
        if chosen:
            near, off = np.sum([row["confidence"] for row in chosen], axis=0)
            lines.append(
                f"    confidence, vertices off by > {OFF:g}: AUROC {binned(near, off):.3f} "
                f"({label}, {off.sum() / (near.sum() + off.sum()):.1%} off)"
            )
    return lines


def binned(near: Array, off: Array) -> float:
    """AUROC from two histograms over the same rising bins."""
    if not near.sum() or not off.sum():
        return float("nan")
    below = np.concatenate([[0], np.cumsum(off)[:-1]]) + 0.5 * off
    return float((near * below).sum() / (near.sum() * off.sum()))


def differences(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Masks against the resolvent mask, and the network against its closed forms, pair by pair."""
    wanted = [(m, REFERENCE) for m in MASKS if m != REFERENCE]
    wanted += [("network", "second-moment"), ("network", "gaussian")]
    lines = []
    for features in FEATURES:
        for mask, other in wanted:
            if f"{mask}, {features}" not in rows or f"{other}, {features}" not in rows:
                continue
            of_mask, of_other = (column(rows[f"{m}, {features}"], "mean") for m in (mask, other))
            gap = of_mask - of_other
            better = f"better on {(gap < 0).sum()} of {len(gap)}"
            lines.append(
                f"    {features}: {mask} - {other}".ljust(46)
                + f"{interval(gap, sign='+'):<26}median {np.median(gap):+.2f}, {better}"
            )
    return ["  paired differences of mean errors", *lines] if lines else []


def table(name: str, rows: dict[str, list[dict[str, Any]]], bench: Bench) -> str:
    lines = [
        f"\n{name}: direct truth at {bench.places} points a pair, {bench.method} geodesics",
        f"  {'':<26}{'n':>4}  {'mean [95 %]':<22}{'median of pairs':<22}{f'> {FAILED:g}':>7}  "
        "CPU s",
    ]  # fmt: skip
    for label, results in rows.items():
        lines.append(line(label, results))
        if label == "match":
            lines += about_match(results)
    lines += differences(rows)
    if published := PUBLISHED.get(name):
        lines.append("  elsewhere")
        lines += [f"    {method:<36}{mean:>6.2f}  {source}" for method, mean, source in published]
    return "\n".join(lines)


def picture(tables: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """Share of points whose error is at most that on the axis; a panel a set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(label for rows in tables.values() for label in rows))
    shown = [m for m in labels if "," not in m or m.startswith((REFERENCE, "network,"))]
    figure = Figure(figsize=(3.3 * len(tables) + 1.9, 3.1))
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, (name, rows) in zip(all_axes, tables.items(), strict=True):
        for i, label in enumerate(shown):
            if label not in rows:
                continue
            counts = np.mean([np.array(r["histogram"]) / sum(r["histogram"]) for r in rows[label]],
                             axis=0)  # fmt: skip
            share = np.concatenate([[0.0], np.cumsum(counts[:-1])])
            x = 100 * BINS[:-1]
            style = "--" if "," in label else "-"
            axes.plot(x, 100 * share, style, color=f"C{i}", lw=2.2 if label == "match" else 1.2,
                      label=label)  # fmt: skip
        counts = {style: [len(rows[m]) for m in rows if ("," in m) == (style == "dashed")]
                  for style in ("solid", "dashed")}  # fmt: skip
        pairs = ", ".join(f"{style} {max(some)}" for style, some in counts.items() if some)
        axes.set(title=f"{name} (pairs: {pairs})", xlabel="geodesic error x 100", xlim=(0, 25),
                 ylim=(0, 100))  # fmt: skip
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("points within it, %")
    handles: dict[str, Any] = {}
    for axes in all_axes:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="center right", fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - 1.7 / (3.3 * len(tables) + 1.9), 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    print(f"\nwrote {path}")


def load_priors(model: str | None) -> dict[str, Prior]:
    """The three priors of a checkpoint; what is shipped, or nothing, where none is named."""
    if model is None:
        if "creatures" not in zoo.available():
            return {}
        model = "creatures"
    return {kind: zoo.load(model, kind) for kind in zoo.KINDS}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="the folder of the .npz files")
    parser.add_argument("--sets", nargs="+", choices=SETS)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--pairs", type=int, default=20, help="pairs a set")
    parser.add_argument("--mask-pairs", type=int, default=60, help="pairs a set for masks")
    parser.add_argument("--tune-pairs", type=int, default=12, help="pairs for the masks' weights")
    parser.add_argument("--model", help="shipped name or folder of a prior")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--places", type=int, default=500, help="points a pair with known truth")
    parser.add_argument("--vertices", type=int, default=3000, help="of procedural creatures")
    parser.add_argument("--geodesics", choices=METHODS, default="heat")
    parser.add_argument("--cache", type=Path, help="JSON lines of what is measured")
    parser.add_argument("--json", type=Path, help="write all results here")
    parser.add_argument("--picture", type=Path, nargs="?",
                        const=Path(__file__).parents[1] / "docs" / "shapes" / "errors.png")
    parser.add_argument("--list", action="store_true", help="print the pairs")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.sets is None:
        args.sets = list(SETS) if args.data else ["creatures"]
    sources: dict[str, Collection | Drawn] = {}
    try:
        for name in args.sets:
            if name == "creatures":
                # far from the seeds that priors and scores are fitted with
                sources[name] = Drawn(1_000_000 + args.seed, args.vertices)
            elif args.data is None:
                raise UserError(f"the set {name} needs --data FOLDER")
            else:
                sources[name] = Collection(args.data / FILES[name][0], FILES[name][1])
        priors = load_priors(args.model)
    except UserError as error:
        raise SystemExit(str(error)) from None
    if not priors:
        print("no prior is shipped or named (--model): rows of learned masks are left out")
    bench = Bench(Store(args.cache), priors, args.places, args.geodesics)
    if "masks" in args.rows:
        bench.tune(Drawn(2_000_000 + args.seed, args.vertices, 40), args.tune_pairs, args.seed)
    most = {row: max(args.pairs, args.mask_pairs if row == "masks" else 0) for row in args.rows}
    chosen = {
        name: pairs_of(name, source.groups, max(most.values()), args.seed)
        for name, source in sources.items()
    }
    tables: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in sources}
    # pair by pair and not set by set: a run that is cut has some of all sets
    for number in range(max(most.values())):
        for name, source in sources.items():
            if number >= len(chosen[name]):
                continue
            pair = chosen[name][number]
            case = Case(pair, source, args.places, args.geodesics)
            for row in args.rows:
                if number < most[row]:
                    for label, found in bench.rows(case, row):
                        tables[name].setdefault(label, []).append(found)
            if args.list:
                said = " ".join(f"{label} {found[-1]['mean']:.1f}" for label, found in
                                tables[name].items() if "," not in label)  # fmt: skip
                print(f"{name} {number}: {pair.a} {pair.b}  {said if number < args.pairs else ''}",
                      flush=True)  # fmt: skip
    for name, rows in tables.items():
        print(table(name, rows, bench), flush=True)
    if args.json:
        content = {
            "settings": {k: str(v) for k, v in vars(args).items()},
            "weights": {f"{m}, {f}": w for (f, m), w in bench.weights.items()},
            "pairs": {name: [[p.a, p.b] for p in pairs] for name, pairs in chosen.items()},
            "results": tables,
        }
        args.json.write_text(json.dumps(content) + "\n")
    if args.picture:
        picture(tables, args.picture)


if __name__ == "__main__":
    main()
