r"""Two shapes in, a correspondence out: `match`.

Nothing is learned about the pair beforehand and no single start is trusted:

    1. dozens of guesses are refined on 300 samples (`starts`), each within some ten milliseconds;
    2. all are measured without labels (`ranking`); of maps that are the same up to detail only the
       best stays, and of the rest the few that look best;
    3. these are refined on 1,000 samples up to 150 functions, and again among all vertices from the
       low part of the first result (`detail`); the better one is kept;
    4. they are measured again, and the most probable one wins. Its probability, with the others as
       rivals, is the match's score; one below one half is a failure that the caller can see;
    5. detail of the winner is refined from several starts, the one that bends least stays, and
       partners are sought among all vertices (`extension`).

A reflection is a map like any other to everything that is intrinsic, and one of two symmetric
shapes is as smooth as the truth; but then, followed by the symmetry, it is a proper map that is as
good, and among the guesses. So a reflection is chosen only where it is better than all proper maps
by far, as between a left and a right hand.

Results do not depend on the numbering of vertices, on position, orientation or scale (but for
rounding, and where the shapes are so symmetric that there is no right answer), unless `aligned` is
true: then coordinates as given serve as one more guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from driftworks.errors import UserError
from driftworks.shapes import detail, extension, features, fmaps, ranking, starts, zoo
from driftworks.shapes.detail import SAME
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.prior import Prior, SecondMoment
from driftworks.shapes.ranking import Judge
from driftworks.shapes.result import Hypothesis, Match
from driftworks.shapes.starts import Candidate
from driftworks.shapes.surface import Surface
from driftworks.shapes.threads import one_thread
from driftworks.shapes.zoomout import BothWays

__all__ = [
    "HYPOTHESES",
    "Hypothesis",
    "Match",
    "conclude",
    "default_prior",
    "extend",
    "match",
    "match_collection",
    "prepare",
]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Families of guesses, see `starts`.
HYPOTHESES = ("waves", "signs", "frames", "composed")

_SAMPLES = 1000
# By how much, in logarithms of odds, a reflection must be better to be chosen: much, because an
# animal in the pose of another's mirror image is matched by one with less bending than is right.
_REFLECTED = 8.0


@dataclass(frozen=True, eq=False)
class _Rated:
    """A candidate on samples with its measures and how good they look."""

    candidate: Candidate
    measures: dict[str, float]
    promise: float

    @property
    def mirrored(self) -> bool:
        return self.measures["handedness"] > 0


@lru_cache
def default_prior() -> Prior:
    """The shipped prior; while there is none, the closed form of nearly isometric shapes."""
    if "creatures" in zoo.available():
        return zoo.load("creatures")
    return SecondMoment.of_isometries(100)


@one_thread()
def match(
    a: Mesh,
    b: Mesh,
    *,
    seed: int = 0,
    k: int = 150,
    prior: Prior | None = None,
    hypotheses: Sequence[str] = HYPOTHESES,
    finalists: int = 3,
    optimise: int = 0,
    aligned: bool = False,
) -> Match:
    """The correspondence of two meshes or point clouds, found without training on them.

    seed: of what is drawn at random, which is the network's start alone
    k: functions of the final map, fewer where a shape has few vertices
    prior: of |C|; it guides the network, and its energy is told of every hypothesis but does not
        weigh in the score (`ranking`). None for `default_prior`
    hypotheses: families of guesses, some of `HYPOTHESES`
    finalists: maps that are refined in full
    optimise: steps of a network trained on this pair, which gives one more guess (`features`);
        0 for none
    aligned: whether the coordinates of the shapes may be compared as they are

    Raises `UserError` for shapes that cannot be matched (several separate parts, too few vertices)
    and for unknown names.
    """
    unknown = [name for name in hypotheses if name not in HYPOTHESES]
    if unknown or not hypotheses:
        raise UserError(
            f"unknown hypotheses {', '.join(unknown) or '()'}; choose from {', '.join(HYPOTHESES)}"
        )
    if finalists < 1 or optimise < 0:
        raise UserError(
            f"finalists is at least 1 and optimise at least 0, not {finalists} and {optimise}"
        )
    judge = prepare(a, b, k, prior)
    return _match(judge, (a, b), k, hypotheses, finalists, optimise, aligned, seed, [])


@one_thread()
def match_collection(
    meshes: Sequence[Mesh],
    pairs: Sequence[tuple[int, int]] | None = None,
    *,
    steps: int = 300,
    seed: int = 0,
    k: int = 150,
    prior: Prior | None = None,
    finalists: int = 3,
) -> dict[tuple[int, int], Match]:
    """Matches of pairs of a collection, with guesses of one network trained on all of them.

    pairs: numbers of shapes; None for each shape and the next
    steps: updates in all; every one takes the next pair

    The network learns from no labels: its loss is that of `features` with the prior in it.
    """
    chosen = [(i, i + 1) for i in range(len(meshes) - 1)] if pairs is None else list(pairs)
    if not chosen or not all(0 <= i < len(meshes) for pair in chosen for i in pair):
        raise UserError(f"pairs of a collection of {len(meshes)} are numbers of two of its shapes")
    used = sorted({i for pair in chosen for i in pair})
    surfaces = {i: Surface.of(meshes[i], _functions(k, meshes[i]), _SAMPLES) for i in used}
    prior = default_prior() if prior is None else prior
    judges = [Judge(surfaces[i], surfaces[j], prior) for i, j in chosen]
    maps = features.optimise(
        [(judge.a, judge.b) for judge in judges],
        [judge.signatures for judge in judges],
        prior,
        steps=steps,
        seed=seed,
    )
    return {
        pair: _match(
            judge,
            (meshes[pair[0]], meshes[pair[1]]),
            k,
            HYPOTHESES,
            finalists,
            0,
            False,
            seed,
            [("network of the collection", c)],
        )
        for pair, judge, c in zip(chosen, judges, maps, strict=True)
    }


def prepare(a: Mesh, b: Mesh, k: int, prior: Prior | None) -> Judge:
    """Both shapes with their spectra and samples, and a judge of maps between them."""
    first, second = (Surface.of(mesh, _functions(k, mesh), _SAMPLES) for mesh in (a, b))
    return Judge(first, second, default_prior() if prior is None else prior)


def extend(
    name: str, c_ab: Array, c_ba: Array, judge: Judge, k: int
) -> tuple[Hypothesis, BothWays]:
    """Refine maps both ways to k functions, extend them to all vertices; judge."""
    maps = detail.fine(c_ab, c_ba, judge, k)
    return completed(_hypothesis(name, _drafted(maps, judge), judge), judge)


def _drafted(maps: tuple[Array, Array], judge: Judge) -> BothWays:
    return BothWays(*maps, *extension.drafted(*maps, judge.a, judge.b))


def _hypothesis(name: str, both: BothWays, judge: Judge) -> tuple[Hypothesis, BothWays]:
    """A drafted map measured at samples, where it is precise."""
    measures = judge.measure(both.map21[judge.b.samples], both.map12[judge.a.samples])
    hypothesis = Hypothesis(
        name,
        ranking.probability(measures),
        measures,
        both.map21,
        both.map12,
        measures["handedness"] > 0,
    )
    return hypothesis, both


def completed(
    draft: tuple[Hypothesis, BothWays], judge: Judge
) -> tuple[Hypothesis, BothWays]:
    """A drafted map searched among all vertices; its measures stay those that it was chosen by."""
    hypothesis, both = draft
    maps = extension.everywhere(both.c12, both.c21, judge.a.basis, judge.b.basis)
    full = replace(hypothesis, map_ba=maps[0], map_ab=maps[1])
    return full, BothWays(both.c12, both.c21, *maps)


def conclude(
    judge: Judge,
    meshes: tuple[Mesh, Mesh],
    ranked: Sequence[tuple[Hypothesis, BothWays]],
    notes: Iterable[str] = (),
) -> Match:
    """The match whose map is the first of ranked hypotheses."""
    best, both = ranked[0]
    said = list(notes)
    if any(mesh.is_cloud for mesh in meshes):
        said.append("a point cloud has no faces, so the orientation term was left out")
    if best.mirrored:
        said.append("the map turns the surface inside out: one shape is a mirror image")
    if best.score < 0.5:
        said.append("no map was found that looks right; do not use this one unseen")
    at_a, at_b = best.map_ba[judge.b.samples], best.map_ab[judge.a.samples]
    trust_a, trust_b = ranking.local_trust(judge, at_a, at_b, best.score)
    return Match(
        *meshes,
        best.map_ba,
        best.map_ab,
        both.c12,
        both.c21,
        trust_b,
        trust_a,
        best.score < 0.5,
        best.score,
        best.name,
        tuple(h for h, _ in ranked),
        best.mirrored,
        tuple(said),
    )


def _functions(k: int, mesh: Mesh) -> int:
    """Functions that are asked for; a shape of few vertices has no more worth the name."""
    if k < 10:
        raise UserError(f"k must be at least 10, not {k}")
    return min(k, max(6, len(mesh) // 3))


def _match(
    judge: Judge,
    meshes: tuple[Mesh, Mesh],
    k: int,
    families: Sequence[str],
    finalists: int,
    steps: int,
    given: bool,
    seed: int,
    more: list[tuple[str, Array]],
) -> Match:
    a, b = judge.a, judge.b
    wanted = [*_guesses(a, b, families, given), *more]
    found = [_rated(starts.coarse(name, c, a, b), judge) for name, c in wanted]
    symmetries = [_reflection(surface) for surface in (a, b)]
    if "composed" in families:
        found += [_rated(c, judge) for c in _composed(found, symmetries, a, b)]
    if steps:
        assert judge.prior is not None
        inputs = _inputs(max(found, key=lambda r: r.promise).candidate, judge)
        c = features.optimise([(a, b)], [inputs], judge.prior, steps=steps, seed=seed)[0]
        found.append(_rated(starts.coarse("network", c, a, b), judge))
    proper = (r for r in found if not r.mirrored)
    full = [_full(r, judge, k) for r in _distinct(proper, a, finalists)]
    mirrored = (r for r in found if r.mirrored)
    full += [_full(r, judge, k) for r in _distinct(mirrored, a, 1)]

    ranked = _contested(full, a, b)
    best, both = ranked[0]
    maps = detail.polished((both.c12, both.c21), judge, k, best.mirrored)
    winner = completed((best, replace(both, c12=maps[0], c21=maps[1])), judge)
    return conclude(judge, meshes, [winner, *ranked[1:]])


def _contested(
    full: list[tuple[Hypothesis, BothWays]], a: Surface, b: Surface
) -> list[tuple[Hypothesis, BothWays]]:
    """Finalists with their chances against each other, the best first."""
    logits = np.array([ranking.logit(h.parts) - _REFLECTED * h.mirrored for h, _ in full])
    places = np.stack([a.mesh.vertices[h.map_ba[b.samples]] for h, _ in full])
    apart = np.linalg.norm(places[:, None] - places[None], axis=3).mean(2)
    chances = ranking.contest(logits, apart < SAME)
    return [
        (replace(full[i][0], score=float(chances[i])), full[i][1]) for i in np.argsort(-logits)
    ]


def _guesses(
    a: Surface, b: Surface, families: Sequence[str], given: bool
) -> Iterator[tuple[str, Array]]:
    """Names and small maps of all families but "composed"."""
    if "waves" in families:
        for k in (20, 40):
            if a.mesh.is_cloud or b.mesh.is_cloud:
                yield f"waves {k}", starts.waves(a, b, k, 0.0)
            else:
                yield f"waves {k}", starts.waves(a, b, k, 1.0)
                yield f"waves {k} reflected", starts.waves(a, b, k, -1.0)
    if "signs" in families:
        yield from starts.signs(a, b)
    if "frames" in families:
        for i, turn in enumerate(starts.frames(a, b)):
            yield f"frame {i}", starts.aligned(a, b, turn)
        for i, turn in enumerate(starts.frames(a, b, proper=False)):
            yield f"frame {i} reflected", starts.aligned(a, b, turn)
    if given:
        yield "given coordinates", starts.aligned(a, b, np.eye(3))


def _rated(candidate: Candidate, judge: Judge) -> _Rated:
    measures = judge.glance(*candidate.vertices(judge.a, judge.b))
    return _Rated(candidate, measures, ranking.promise(measures))


def _reflection(surface: Surface) -> _Rated | None:
    """What comes nearest to a mirror symmetry of a shape."""
    judge = Judge(surface, surface)
    guesses = list(starts.signs(surface, surface))
    if not surface.mesh.is_cloud:
        guesses = [(f"{k}", starts.waves(surface, surface, k, -1.0)) for k in (20, 40)]
    rated = [_rated(starts.coarse(name, c, surface, surface), judge) for name, c in guesses]
    return max((r for r in rated if r.mirrored), key=lambda r: r.promise, default=None)


def _composed(
    found: list[_Rated], symmetries: list[_Rated | None], a: Surface, b: Surface
) -> Iterator[Candidate]:
    """The best reflections, after the mirror symmetry of a, and before that of b."""
    of_a, of_b = symmetries
    for rated in _distinct((r for r in found if r.mirrored), a, 2):
        name = rated.candidate.name
        if of_a is not None:
            yield starts.compose(f"{name} + a", of_a.candidate, rated.candidate, a, a, b)
        if of_b is not None:
            yield starts.compose(f"{name} + b", rated.candidate, of_b.candidate, a, b, b)


def _inputs(candidate: Candidate, judge: Judge) -> tuple[Array, Array]:
    """Signatures, and coordinates turned by the rigid motion nearest to a candidate."""
    at_a, _ = candidate.vertices(judge.a, judge.b)
    x, y = judge.a.mesh.vertices, judge.b.mesh.vertices
    left, _, right = np.linalg.svd(y[judge.b.samples[: len(at_a)]].T @ x[at_a])
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    turned = y @ (left @ flip @ right)
    of_a, of_b = judge.signatures
    frame = judge.a.frame.T
    return np.hstack([of_a, x @ frame]), np.hstack([of_b, turned @ frame])


def _distinct(rated: Iterable[_Rated], a: Surface, count: int) -> list[_Rated]:
    """The best candidates that are not almost the same map."""
    kept: list[_Rated] = []
    for one in sorted(rated, key=lambda r: -r.promise):
        place = a.mesh.vertices[a.samples[one.candidate.at_a]]
        others = (a.mesh.vertices[a.samples[r.candidate.at_a]] for r in kept)
        if all(np.linalg.norm(place - other, axis=1).mean() > SAME for other in others):
            kept.append(one)
        if len(kept) == count:
            break
    return kept


def _full(rated: _Rated, judge: Judge, k: int) -> tuple[Hypothesis, BothWays]:
    """Refine a candidate of few samples on more, and finely from the low part of what came out.

    The second pass mends what the samples got wrong, where there is a right map nearby; the one
    with the better odds is kept.
    """
    a, b, candidate = judge.a, judge.b, rated.candidate
    s, t = len(candidate.at_b), len(candidate.at_a)
    size = min(starts.FUNCTIONS, len(a.basis), len(b.basis), min(s, t) // 3)
    first, second = a.basis.first(size), b.basis.first(size)
    at_a, at_b = candidate.vertices(a, b)
    c_ab = fmaps.from_samples(at_a, b.samples[:t], first, second)
    c_ba = fmaps.from_samples(at_b, a.samples[:s], second, first)
    swift = detail.swift(c_ab, c_ba, judge, k)
    low = min(detail.LOW, size)
    fine = detail.fine(swift[0][:low, :low], swift[1][:low, :low], judge, k)
    drafts = [_drafted(maps, judge) for maps in (swift, fine)]
    best = max(
        drafts,
        key=lambda d: ranking.logit(judge.glance(d.map21[b.samples], d.map12[a.samples])),
    )
    return _hypothesis(candidate.name, best, judge)
