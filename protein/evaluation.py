r"""Is a set of generated backbones protein-like, diverse and new? Every figure beside real chains'.

    delivered       finite chains of seven residues or more, of the requested
    bonds           bonds within .2 angstrom of 3.80 (2.95, cis), of all
    clash_free      chains without two residues nearer than 3.6 angstrom, of the requested
    right_handed    right-handed among helix-like dihedrals, pooled
    fragment        mean distance of seven-residue fragments to their nearest real one
    foreign         fragments farther than .6 from every real one, of all
    ramachandran    residues outside the favoured regions, where full backbones are given; natives'
                    are built around their C-alphas, too
    helix, strand   mean shares (by angles that know handedness), and their spread over samples
    psea_helix, psea_strand   the same by P-SEA, the column of published tables
    size            Rg over that of natives of the same length
    contact_order   over that of natives of the same length
    frechet         distance of 24 descriptors from natives of the same lengths
    realistic       chains that pass the gate, of the requested
    folds           clusters at TM-score .5 over chains, of those that pass the gate
    pair_tm         mean TM-score of pairs that pass the gate
    nearest         mean TM-score to the nearest training chain, where training chains are given
    memorised       samples with a training chain at .9 or more, of those searched

No figure is safe alone. Bonds, clashes and size are passed by a relaxed random walk; secondary
structure by fragments that pack nowhere; descriptors by copies; and diversity is largest for
garbage, hence the gate: a chain is realistic when its bonds, clashes, handedness, fragments, size
and long-range contacts each lie where those of 99 natives in 100 do. A chain that was requested and
did not come, or came as NaN, counts as a failure wherever the figure is a share of the requested.

`Report.flags` names every figure that real chains do not show: a limit (`LIMITS`) is broken when
even the favourable end of the 95 % interval lies beyond it. None of this is designability, which
needs the weights of a sequence-design and a structure-prediction network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from driftworks.core.bootstrap import Figure, Statistic, estimate, mean, ratio
from driftworks.data.backbones import Backbones
from driftworks.errors import UserError
from driftworks.protein import descriptors, tm
from driftworks.protein.chains import Chains
from driftworks.protein.descriptors import SIZE, Moments
from driftworks.protein.reference import Measures, Reference, measure

__all__ = ["LIMITS", "Limit", "Report", "evaluate", "gate"]

#: TM-score from which a training chain counts as copied.
COPIED = 0.9
#: Full backbones of some chains, or what makes them from C-alphas.
Full = Sequence[ArrayLike] | Callable[[Chains], Sequence[ArrayLike]]


class Limit(NamedTuple):
    """What a figure may be: `rule` least or most, a number, or one relative to natives.

    least, most: the number; over: natives' upper end plus it; share: it times natives' value;
    within: natives' value plus or minus it
    """

    rule: str
    amount: float


#: Figure -> what real chains stay within.
LIMITS = {
    "delivered": Limit("least", 0.95),
    "bonds": Limit("least", 0.98),
    "clash_free": Limit("least", 0.9),
    "right_handed": Limit("least", 0.9),
    "fragment": Limit("over", 0.05),
    "foreign": Limit("over", 0.05),
    "ramachandran": Limit("most", 0.2),
    "helix": Limit("within", 0.15),
    "strand": Limit("within", 0.15),
    "helix_spread": Limit("share", 0.7),
    "strand_spread": Limit("share", 0.7),
    "size": Limit("within", 0.15),
    "contact_order": Limit("within", 0.2),
    "frechet": Limit("over", 10.0),
    "realistic": Limit("least", 0.8),
    "folds": Limit("share", 0.6),
    "pair_tm": Limit("over", 0.1),
    "nearest": Limit("most", 0.85),
    "memorised": Limit("most", 0.05),
}


class Gate(NamedTuple):
    """The limits a chain is realistic within, from the natives of a reference."""

    fragment: float
    log_rg: tuple[float, float]
    long_contacts: float

    def __str__(self) -> str:
        return (
            "bonds >= 95 % right, at most one clash, >= 60 % right-handed (of 8 or more), "
            f"fragment distance <= {self.fragment:.2f}, "
            f"ln Rg {self.log_rg[0]:+.2f} to {self.log_rg[1]:+.2f} from the fit, "
            f">= {self.long_contacts:.2f} contacts a residue of 12 or more apart"
        )


@dataclass(frozen=True)
class Report:
    """The figures of `evaluate`, by name: ``report.bonds.value``.

    figures: with 95 % intervals; natives: the same of real chains of these lengths; band: where
    95 % of equally large sets of natives lie; flags: figure -> what is wrong with it
    failures: reason -> requested chains that cannot be used; gate: what realistic means
    seconds: by stage
    """

    figures: dict[str, Figure]
    natives: dict[str, float]
    band: dict[str, tuple[float, float]]
    flags: dict[str, str]
    requested: int
    failures: dict[str, int]
    gate: str
    reference: str
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Figure:
        figures = self.__dict__.get("figures", {})
        if name in figures:
            return figures[name]
        raise AttributeError(f"no figure {name!r}; there are {', '.join(figures)}")

    def __getitem__(self, name: str) -> Figure:
        return self.figures[name]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: figures with intervals, natives and bands, flags, counts, notes."""
        return {
            "requested": self.requested,
            "figures": {
                name: {
                    **figure.to_dict(),
                    "natives": _finite(self.natives.get(name)),
                    "band": [_finite(x) for x in self.band.get(name, (None, None))],
                }
                for name, figure in self.figures.items()
            },
            "flags": dict(self.flags),
            "failures": dict(self.failures),
            "gate": self.gate,
            "reference": self.reference,
            "notes": list(self.notes),
            "seconds": {stage: round(s, 3) for stage, s in self.seconds.items()},
        }

    def __str__(self) -> str:
        wide = max(len(name) for name in self.figures)
        lines = [
            f"{self.requested} backbones requested; natives: {self.reference}",
            "",
            f"{'':{wide + 2}}{'samples':>9}  {'[95 % interval]':<18}{'natives':>9}  [their band]",
        ]
        for name, figure in self.figures.items():
            mark = "!" if name in self.flags else " "
            cells = f"{figure.value:>9.3f}  {_range(figure.low, figure.high):<18}"
            if name in self.natives:
                cells += f"{self.natives[name]:>9.3f}"
                cells += f"  {_range(*self.band[name])}" if name in self.band else ""
            lines.append(f"{mark} {name:<{wide}}{cells}".rstrip())
        lines += ["", f"realistic: {self.gate}"]
        if self.failures:
            listed = ", ".join(f"{reason} {count}" for reason, count in self.failures.items())
            lines.append(f"failed: {listed}")
        lines += [f"flag: {name}: {text}" for name, text in self.flags.items()]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _range(low: float, high: float) -> str:
    return f"[{low:.3f}, {high:.3f}]" if np.isfinite([low, high]).all() else ""


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


def evaluate(
    samples: Any,
    reference: Reference | Chains | Backbones | None = None,
    train: Chains | Backbones | None = None,
    *,
    backbones: Full | None = None,
    requested: int | None = None,
    folds: int = 100,
    searched: int = 100,
    resamples: int = 1000,
    seed: int = 0,
) -> Report:
    """All figures of a set of generated backbones, beside those of natives of the same lengths.

    samples: `Chains`; a list of (n, 3) C-alphas or (n, 4, 3) backbones [angstrom]; or biotite's
        AtomArray, AtomArrayStack, or a list of them
    reference: statistics of real chains (`Reference.builtin` by default), or real chains
    train: the chains that the model was trained on; without them nothing is said of memorisation
    backbones: (n, 4, 3) N, CA, C, O of each sample, or a function that makes them from
        C-alphas; for the Ramachandran figure. The samples themselves where they have all four.
    requested: how many were asked for, where fewer came
    folds, searched: samples compared with each other, and with the training chains, evenly thinned

    Raises `UserError` for no samples, or arguments that do not fit together.
    """
    chains, full = _given(samples)
    if backbones is not None:
        made = backbones(chains) if callable(backbones) else backbones
        full = [np.asarray(one, np.float64) for one in made]
    count = len(chains) if requested is None else requested
    if not len(chains):
        raise UserError("no backbones to evaluate")
    if count < len(chains):
        raise UserError(f"requested = {count}, but {len(chains)} samples were given")
    if full is not None and len(full) != len(chains):
        raise UserError(f"{len(full)} backbones for {len(chains)} samples")
    for name, value in (("folds", folds), ("searched", searched), ("resamples", resamples)):
        if value < 0:
            raise UserError(f"{name} = {value} is negative")
    seconds: dict[str, float] = {}
    notes: list[str] = []
    with _timed(seconds, "reference"):
        natives = _reference(reference)
    with _timed(seconds, "local"):
        measures = measure(chains, natives.library, full)
    limits = gate(natives)
    good = measures.finite & (measures.lengths >= SIZE)
    passed = good & passes(measures, limits)
    failures = _failures(chains, measures, good, count)
    usable = np.flatnonzero(good)
    expected = _expected(measures, natives, good)

    statistics = _statistics(measures, good, passed, expected, count)
    if full is None:
        del statistics["ramachandran"]
        if len(usable):
            notes.append("no full backbones were given: nothing is said of the Ramachandran plot")
    elif len(usable) and backbones is None and np.isfinite(natives.solved):
        notes.append(
            "natives' Ramachandran figure is of atoms built around C-alphas; in their solved atoms "
            f"{natives.solved:.3f} of residues lie outside the favoured regions"
        )
    figures = estimate(statistics, resamples, seed)
    bands: dict[str, tuple[float, float]] = {}
    values: dict[str, float] = {}
    if len(usable) > 1:
        with _timed(seconds, "distribution"):
            values, bands, distance = _compare(measures[usable], natives, limits, resamples, seed)
            figures["frechet"] = distance
        if full is None:
            del values["ramachandran"], bands["ramachandran"]
    with _timed(seconds, "folds"):
        figures |= _folds(chains, np.flatnonzero(passed), folds, resamples, seed, notes)
    if np.isfinite(natives.folds):
        values |= {"folds": natives.folds, "pair_tm": natives.pair_tm}
    if train is not None:
        with _timed(seconds, "nearest"):
            figures |= _nearest(chains, usable, _as_chains(train), searched, resamples, seed)
        if np.isfinite(natives.nearest):
            values["nearest"] = natives.nearest
    else:
        notes.append("no training chains were given: nothing is said of memorisation")
    outside = natives.measures.lengths
    if len(usable) and (
        measures.lengths[good].min() < outside.min() or measures.lengths[good].max() > outside.max()
    ):
        notes.append(
            f"the reference has chains of {outside.min()}-{outside.max()} residues; samples beyond "
            "are compared with its nearest lengths"
        )
    ordered = [*LIMITS, *(name for name in figures if name not in LIMITS)]
    figures = {name: figures[name] for name in ordered if name in figures}
    return Report(
        figures=figures,
        natives=values,
        band=bands,
        flags=_flags(figures, values, bands),
        requested=count,
        failures=failures,
        gate=str(limits),
        reference=natives.source,
        notes=tuple(notes),
        seconds=seconds,
    )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


def _as_chains(given: Chains | Backbones) -> Chains:
    if isinstance(given, Backbones):
        return Chains.from_backbones(given)
    if isinstance(given, Chains):
        return given
    raise UserError(f"expected Chains or Backbones, got {type(given).__name__}")


def _reference(given: Reference | Chains | Backbones | None) -> Reference:
    if given is None:
        return Reference.builtin()
    return given if isinstance(given, Reference) else Reference.of(_as_chains(given))


def _given(samples: Any) -> tuple[Chains, list[NDArray[np.float64]] | None]:
    """Chains and, where every sample has all four atoms, the full backbones."""
    if isinstance(samples, Chains):
        return samples, None
    if isinstance(samples, Backbones):
        rows = range(len(samples))
        full = [np.asarray(samples.bb(i), np.float64) for i in rows]
        return Chains.from_backbones(samples), full if samples.complete.all() else None
    listed = list(samples) if isinstance(samples, (list, tuple)) else [samples]
    points: list[NDArray[np.float64]] = []
    complete: list[NDArray[np.float64]] = []
    for item in listed:
        for array in _atoms(item):
            if array.ndim == 3 and array.shape[1:] == (4, 3):
                complete.append(array)
                points.append(array[:, 1])
            elif array.ndim == 2 and array.shape[1] == 3:
                points.append(array)
            else:
                raise UserError(
                    f"a sample has shape {array.shape}; expected (n, 3) C-alphas or (n, 4, 3)"
                )
    return Chains.of(points), complete if len(complete) == len(points) and points else None


def _atoms(item: Any) -> list[NDArray[np.float64]]:
    """Coordinates of one item: each model of a stack, (n, 4, 3) where all four atoms are there."""
    if not hasattr(item, "atom_name"):
        if isinstance(item, torch.Tensor):
            item = item.detach().cpu().numpy()
        return [np.asarray(item, np.float64)]
    names = np.asarray(item.atom_name)
    coords = np.asarray(item.coord, np.float64)
    models = coords[None] if coords.ndim == 2 else coords
    rows = [np.flatnonzero(names == atom) for atom in ("N", "CA", "C", "O")]
    if len({len(r) for r in rows}) == 1:
        return [np.stack([model[r] for r in rows], axis=1) for model in models]
    return [model[rows[1]] for model in models]


def gate(reference: Reference) -> Gate:
    """The limits that 99 natives in 100 pass, one by one."""
    m = reference.measures
    rg = m.column("log_rg")
    long = m.column("contacts_12") + m.column("contacts_24")
    return Gate(
        fragment=float(np.nanquantile(m.fragment, 0.99)),
        log_rg=(float(np.quantile(rg, 0.005)), float(np.quantile(rg, 0.995))),
        long_contacts=float(np.quantile(long, 0.01)),
    )


def passes(m: Measures, limits: Gate) -> NDArray[np.bool_]:
    """(B,) bool: the chain is realistic."""
    rg = m.column("log_rg")
    long = m.column("contacts_12") + m.column("contacts_24")
    with np.errstate(invalid="ignore"):
        return np.asarray(
            m.finite
            & (m.bonds_right >= 0.95 * m.bonds)
            & (m.clashes <= 1)
            & ((m.helical < 8) | (m.right >= 0.6 * m.helical))
            & (m.fragment <= limits.fragment)
            & (rg >= limits.log_rg[0])
            & (rg <= limits.log_rg[1])
            & (long >= limits.long_contacts)
        )


def _failures(
    chains: Chains, m: Measures, good: NDArray[np.bool_], requested: int
) -> dict[str, int]:
    broken = ~chains.ca.isfinite().all(dim=-1).all(dim=-1).cpu().numpy()
    counts = {
        "not delivered": requested - len(m),
        "coordinates that are not finite": int(broken.sum()),
        f"fewer than {SIZE} residues": int((~good & ~broken).sum()),
    }
    return {reason: number for reason, number in counts.items() if number}


def _expected(
    m: Measures, natives: Reference, good: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    """Rg and contact order of natives of each sample's length, (B,) each."""
    weights = natives.weights(m.lengths)
    rg = np.exp(natives.measures.column("log_rg"))
    order = natives.measures.column("contact_order")
    return {"size": weights @ rg, "contact_order": weights @ order}


def _statistics(
    m: Measures,
    good: NDArray[np.bool_],
    passed: NDArray[np.bool_],
    expected: dict[str, NDArray[np.float64]],
    requested: int,
) -> dict[str, Statistic]:
    missing = requested - len(m)

    def padded(rows: NDArray[Any]) -> NDArray[np.float64]:
        """One entry a requested chain; those that did not come add nothing."""
        return np.concatenate([np.asarray(rows, np.float64), np.zeros(missing)])

    def over(values: NDArray[np.float64], unit: str = "fraction") -> Statistic:
        """Mean over the usable samples."""
        return ratio(padded(np.where(good, np.nan_to_num(values), 0)), padded(good), "usable", unit)

    # A chain that is NaN has bonds and fragments all the same, and every one of them is wrong.
    fragments = np.where(good, m.fragments, np.maximum(m.lengths - SIZE + 1, 0))
    foreign = np.where(good, m.fragment_far, fragments)
    total = np.where(good, np.nan_to_num(m.fragment) * m.fragments, 0)
    size = np.exp(m.column("log_rg")) / np.maximum(expected["size"], 1e-6)
    order = m.column("contact_order") / np.maximum(expected["contact_order"], 1e-6)
    helix, strand = m.column("helix"), m.column("strand")
    return {
        "delivered": mean(padded(good)),
        "bonds": ratio(padded(m.bonds_right), padded(m.bonds), "bonds"),
        "clash_free": mean(padded(good & (m.clashes == 0))),
        "right_handed": ratio(
            padded(np.where(good, m.right, 0)),
            padded(np.where(good, m.helical, 0)),
            "helix-like dihedrals",
        ),
        "fragment": ratio(
            padded(total), padded(np.where(good, m.fragments, 0)), "fragments", "radian"
        ),
        "foreign": ratio(padded(foreign), padded(fragments), "fragments"),
        "ramachandran": ratio(
            padded(np.where(good, m.unfavoured, 0)), padded(np.where(good, m.torsions, 0)),
            "residues",
        ),
        "helix": over(helix),
        "strand": over(strand),
        "helix_spread": _spread(padded(np.where(good, helix, 0)), padded(good)),
        "strand_spread": _spread(padded(np.where(good, strand, 0)), padded(good)),
        "psea_helix": over(m.psea_helix),
        "psea_strand": over(m.psea_strand),
        "size": over(size, "of natives"),
        "contact_order": over(order, "of natives"),
        "realistic": mean(padded(passed)),
    }


def _spread(values: NDArray[np.float64], weight: NDArray[np.float64]) -> Statistic:
    """Standard deviation over the usable samples."""
    rows = np.stack([weight, weight * values, weight * values**2], axis=1)

    def reduce(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        n = np.maximum(sums[:, 0], 1)
        return np.sqrt(np.maximum(sums[:, 2] / n - (sums[:, 1] / n) ** 2, 0))

    return Statistic(rows, reduce, int(weight.sum()), "share", "usable", (0.0, np.inf))


def _compare(
    m: Measures, natives: Reference, limits: Gate, resamples: int, seed: int
) -> tuple[dict[str, float], dict[str, tuple[float, float]], Figure]:
    """Natives' values and bands, and the Frechet distance of the usable samples."""
    rng = np.random.default_rng(seed)
    target = natives.moments(m.lengths)
    scaled = natives.measures.rows / natives.scales
    own = m.rows / natives.scales
    value = descriptors.frechet(Moments.of(own), target)
    again = [
        descriptors.frechet(Moments.of(own[rng.integers(len(own), size=len(own))]), target)
        for _ in range(min(resamples, 200))
    ]
    low, high = np.nan, np.nan
    if again:
        # a resample of n adds the bias of a finite n once more: it is taken off again
        low, high = np.quantile(np.array(again) - np.mean(again) + value, [0.025, 0.975])
    distance = Figure(value, max(min(low, value), 0.0), max(high, value), len(m), "", "usable")
    draws = natives.matched(m.lengths, 100, rng)
    real = natives.measures
    weights = natives.weights(m.lengths)
    expected = {
        "size": weights @ np.exp(real.column("log_rg")),
        "contact_order": weights @ real.column("contact_order"),
    }
    columns: dict[str, list[float]] = {}
    everyone = np.ones(len(m), bool)
    for rows in draws:
        drawn = real[rows]
        found = _statistics(drawn, everyone, passes(drawn, limits), expected, len(m))
        for name, statistic in found.items():
            table = statistic.rows if statistic.rows.ndim == 2 else statistic.rows[:, None]
            value_of = float(statistic.reduce(table.sum(axis=0, keepdims=True))[0])
            columns.setdefault(name, []).append(value_of)
        columns.setdefault("frechet", []).append(
            descriptors.frechet(Moments.of(scaled[rows]), target)
        )
    values = {name: float(np.nanmean(column)) for name, column in columns.items()}
    bands = {
        name: (float(np.nanquantile(c, 0.025)), float(np.nanquantile(c, 0.975)))
        for name, c in columns.items()
    }
    return values, bands, distance


def _thinned(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def _folds(
    chains: Chains,
    passed: NDArray[np.int64],
    most: int,
    resamples: int,
    seed: int,
    notes: list[str],
) -> dict[str, Figure]:
    rows = _thinned(passed, most)
    of = f"{len(rows)} realistic"
    if len(rows) < 2:
        notes.append(
            f"{len(passed)} chains pass the gate: diversity means nothing and is not reported"
        )
        return {}
    scores = tm.pairwise(chains[rows])
    assigned = tm.clusters(scores)
    share = len(np.unique(assigned)) / len(rows)
    off = scores[np.triu_indices(len(rows), 1)]
    rng = np.random.default_rng(seed)
    pair, part = [], []
    for _ in range(min(resamples, 200)):
        drawn = rng.integers(len(rows), size=len(rows))
        i, j = np.triu_indices(len(rows), 1)
        apart = drawn[i] != drawn[j]  # a chain is no pair with itself
        if apart.any():
            pair.append(scores[drawn[i], drawn[j]][apart].mean())
        # half of the chains without replacement: a drawn twin would be a cluster less
        half = rng.permutation(len(rows))[: max(len(rows) // 2, 2)]
        part.append(len(np.unique(tm.clusters(scores[np.ix_(half, half)]))) / len(half))
    # the spread of the half sample over sqrt 2 is that of the whole
    wide = np.std(part) / np.sqrt(2) if part else np.nan
    low, high = share - 1.96 * wide, min(share + 1.96 * wide, 1.0)
    value = float(off.mean())
    reach = 1.96 * float(np.std(pair)) if pair else np.nan
    return {
        "folds": Figure(share, max(float(low), 0.0), float(high), len(rows), "fraction", of),
        "pair_tm": Figure(value, value - reach, value + reach, len(off), "TM", f"pairs of {of}"),
    }


def _nearest(
    chains: Chains,
    usable: NDArray[np.int64],
    train: Chains,
    most: int,
    resamples: int,
    seed: int,
) -> dict[str, Figure]:
    rows = _thinned(usable, most)
    found = tm.nearest(chains[rows], train)
    score = found.score[np.isfinite(found.score)]
    if not len(score):
        return {}
    ones = np.ones(len(score))
    return estimate(
        {
            "nearest": ratio(score, ones, "searched"),
            "memorised": ratio(score >= COPIED, ones, "searched"),
        },
        resamples,
        seed,
    )


def _flags(
    figures: dict[str, Figure],
    natives: dict[str, float],
    bands: dict[str, tuple[float, float]],
) -> dict[str, str]:
    out = {}
    for name, (rule, amount) in LIMITS.items():
        figure = figures.get(name)
        if figure is None:
            continue
        if not np.isfinite(figure.value):
            if name == "right_handed":  # a set without helices has no hand to be wrong
                continue
            out[name] = "could not be measured"
            continue
        low = figure.low if np.isfinite(figure.low) else figure.value
        high = figure.high if np.isfinite(figure.high) else figure.value
        native = natives.get(name)
        least, most = -np.inf, np.inf
        if rule == "least":
            least = amount
        elif rule == "most":
            most = amount
        elif native is None:
            continue
        elif rule == "over":
            most = bands.get(name, (native, native))[1] + amount
        elif rule == "share":
            least = native * amount
        else:
            least, most = native - amount, native + amount
        if high < least:
            out[name] = f"{figure.value:.3f}, natives {_or(native)}: expected {least:.3f} or more"
        elif low > most:
            out[name] = f"{figure.value:.3f}, natives {_or(native)}: expected {most:.3f} or less"
    return out


def _or(native: float | None) -> str:
    return "unknown" if native is None else f"{native:.3f}"
