"""What a set of generated molecules is worth, in figures that can be compared honestly.

Strict validity is the headline (`driftworks.molgen.validity`). The denominator is what was
*requested*: a sample that never became a molecule counts against every rate, and each figure says
what it is a share of. Every molecule that is not strictly valid is counted under one reason. Every
figure has a 95 % bootstrap interval over the requested molecules.

    strict_validity, rdkit_validity,         of the requested
    connectivity, neutrality,
    closed_shell, valence
    uniqueness                               distinct strict molecules, of the strict
    novelty                                  those not in the reference, of the distinct strict
    unique_strict, novel_strict              the same numerators, of the requested
    atom_stability_bonds, ..._distances      as published, `driftworks.molgen.stability`
    js_elements, js_rings, ...               divergences [bit], `driftworks.molgen.divergence`
    mae_<property>                           |measured - target|, over strict molecules measured
    measured_<property>                      of the strict molecules with a target

Two molecules are the same when their canonical SMILES without stereochemistry are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from driftworks.core.bootstrap import Figure, Statistic, estimate, mean, ratio
from driftworks.errors import UserError
from driftworks.molgen.divergence import batches, divergences
from driftworks.molgen.library import Library
from driftworks.molgen.molecule import Molecules
from driftworks.molgen.stability import (
    BOND_TABLE,
    DISTANCE_ELEMENTS,
    stable_by_bonds,
    stable_by_distances,
)

if TYPE_CHECKING:
    from rdkit.Chem import Mol

__all__ = ["Figure", "Report", "evaluate"]

#: Reference molecules that serve for the divergences, evenly spaced; novelty asks all of them.
REFERENCE_SAMPLE = 10_000

PropertyOracle = Callable[[Molecules], Mapping[str, Any]]

_GROUPS = {
    "validity": ("strict_validity", "rdkit_validity", "connectivity", "neutrality", "closed_shell",
                 "valence"),
    "diversity": ("uniqueness", "unique_strict", "novelty", "novel_strict"),
    "stability as published": ("atom_stability_", "molecule_stability_"),
    "divergence from the reference": ("js_",),
    "targets": ("mae_", "measured_"),
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """The figures of `evaluate`, by name: ``report.strict_validity.value``.

    failures: reason -> molecules requested that are not strictly valid; the counts add up to
        requested minus strict. Reasons of the request (sampling, reading) come first, then those of
        `driftworks.molgen.validity.REASONS`.
    losses: reason -> strict molecules that the property oracle could not measure
    """

    figures: dict[str, Figure]
    requested: int
    delivered: int
    strict: int
    failures: dict[str, int] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)
    oracle: str | None = None
    notes: tuple[str, ...] = ()
    bootstrap: int = 1000
    seed: int = 0

    def __getattr__(self, name: str) -> Figure:
        figures = self.__dict__.get("figures", {})
        if name in figures:
            return figures[name]
        raise AttributeError(f"no figure {name!r}; there are {', '.join(figures)}")

    def __getitem__(self, name: str) -> Figure:
        return self.figures[name]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the figures with their intervals and units, the counts, the notes."""
        return {
            "requested": self.requested,
            "delivered": self.delivered,
            "strict": self.strict,
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
            "failures": dict(self.failures),
            "losses": dict(self.losses),
            "oracle": self.oracle,
            "notes": list(self.notes),
            "bootstrap": self.bootstrap,
            "seed": self.seed,
        }

    def __str__(self) -> str:
        lines = [
            f"{self.requested} molecules requested, {self.delivered} delivered, "
            f"{self.strict} strictly valid"
        ]
        wide = max((len(name) for name in self.figures), default=0)
        for title, starts in _GROUPS.items():
            names = [name for name in self.figures if name.startswith(starts)]
            if not names:
                continue
            lines += ["", title + (f" ({self.oracle})" if title == "targets" else "")]
            for name in names:
                figure = self.figures[name]
                lines.append(f"  {name:<{wide}}  {_cells(figure)}  of {figure.n} {figure.of}")
        for title, counts in (("not strict", self.failures), ("not measured", self.losses)):
            if counts:
                listed = ", ".join(f"{reason} {count}" for reason, count in counts.items())
                lines += ["", f"{title}: {listed}"]
        lines += ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines)


def _cells(figure: Figure) -> str:
    percent = figure.unit == "fraction"
    scale, places = (100.0, 1) if percent else (1.0, 4)
    cells = [
        f"{x * scale:.{places}f}" if np.isfinite(x) else "-"
        for x in (figure.value, figure.low, figure.high)
    ]
    unit = "%" if percent else figure.unit
    return f"{cells[0]:>9} {unit:<12} [{cells[1]:>7}, {cells[2]:>7}]"


def evaluate(
    molecules: Library | Molecules | Iterable[Mol | None],
    reference: Any = None,
    oracle: Any = None,
    bootstrap: int = 1000,
    seed: int = 0,
    *,
    requested: int | None = None,
    progress: bool = False,
) -> Report:
    """Measure generated molecules.

    Args:
        molecules: a library, a batch of tensors, or RDKit molecules with coordinates, None
            standing for one that failed.
        reference: training molecules, for novelty and divergences: a molecule table, a library, a
            batch; or SMILES, for novelty alone.
        oracle: measures targeted properties: an oracle's name, an oracle, or any function from
            `Molecules` to {property: (B,) values} with NaN for what it could not measure.
        bootstrap: resamples for the intervals; 0 for none.
        seed: of the resampling.
        requested: molecules asked for, where the input does not say (default: as many as given).
        progress: show the oracle's progress.

    Raises `UserError` when nothing was requested or an argument is of no known kind.
    """
    library = _library(molecules, requested)
    total = library.requested or 0
    if not total:
        raise UserError("nothing to evaluate: no molecule was requested")
    notes: list[str] = []
    statistics = _validity(library, total)
    statistics |= _diversity(library, total, _known(reference))
    statistics |= _stability(library.molecules, total, notes)
    batched = _structures(reference)
    if batched is not None and len(library):
        statistics |= divergences(library.molecules, total, batched)
    losses: dict[str, int] = {}
    if oracle is not None:
        statistics |= _targets(library, total, oracle, progress, losses, notes)
    elif library.targets:
        notes.append("targets were set but no oracle was asked to measure them")
    reasons = Counter(v.reason for v in library.verdicts if not v.strict)
    failures = dict(library.failures)
    lost = total - len(library) - sum(failures.values())
    for reason, count in [("unknown", lost), *sorted(reasons.items())]:
        if count:
            failures[reason] = failures.get(reason, 0) + count
    return Report(
        figures=estimate(statistics, bootstrap, seed),
        requested=total,
        delivered=len(library),
        strict=sum(v.strict for v in library.verdicts),
        failures=failures,
        losses=losses,
        oracle=None if oracle is None else _name(oracle),
        notes=tuple(notes),
        bootstrap=bootstrap,
        seed=seed,
    )


def _library(molecules: Any, requested: int | None) -> Library:
    if isinstance(molecules, Library):
        if requested in (None, molecules.requested):
            return molecules
        raise UserError(f"the library says {molecules.requested} requested, not {requested}")
    if isinstance(molecules, Molecules):
        return Library(molecules, requested=requested)
    if isinstance(molecules, (str, bytes)) or not isinstance(molecules, Iterable):
        raise UserError(f"cannot evaluate {molecules!r:.60}; give a library or molecules")
    return Library.from_rdkit(molecules, requested=requested)


def _over(total: int, values: Iterable[Any]) -> np.ndarray:
    """One number per delivered molecule, zeros for those that failed."""
    delivered = np.array(list(values), float)
    return np.concatenate([delivered, np.zeros(total - len(delivered))])


def _validity(library: Library, total: int) -> dict[str, Statistic]:
    fields = {
        "strict_validity": "strict",
        "rdkit_validity": "rdkit",
        "connectivity": "connected",
        "neutrality": "neutral",
        "closed_shell": "closed_shell",
        "valence": "valence",
    }
    return {
        name: mean(_over(total, (getattr(v, attribute) for v in library.verdicts)))
        for name, attribute in fields.items()
    }


def _diversity(library: Library, total: int, known: frozenset[str] | None) -> dict[str, Statistic]:
    pairs = zip(library.smiles(), library.verdicts, strict=True)
    smiles = [s if verdict.strict else None for s, verdict in pairs]
    times = Counter(s for s in smiles if s is not None)
    strict = _over(total, (v.strict for v in library.verdicts))
    # A molecule drawn m times counts 1/m each time: the sum is the number of distinct ones, and
    # resampling does not mistake its own repetitions for the generator's.
    distinct = _over(total, (1 / times[s] if s is not None else 0.0 for s in smiles))
    out = {
        "uniqueness": ratio(distinct, strict, of="strict"),
        "unique_strict": mean(distinct),
    }
    if known is not None:
        new = _over(total, (float(s is not None and s not in known) for s in smiles))
        out["novelty"] = ratio(new * distinct, distinct, of="distinct strict")
        out["novel_strict"] = mean(new * distinct)
    return out


def _stability(molecules: Molecules, total: int, notes: list[str]) -> dict[str, Statistic]:
    host = molecules.to("cpu")
    atoms = host.atom_counts.numpy().astype(float)
    elements = set(host.numbers[host.mask].tolist())
    typical = atoms.mean() if len(atoms) else 1.0
    out = {}
    for name, function, covered in (
        ("bonds", stable_by_bonds, set(BOND_TABLE)),
        ("distances", stable_by_distances, set(DISTANCE_ELEMENTS)),
    ):
        outside = sorted(elements - covered)
        if outside:
            notes.append(
                f"stability from {name} has no entry for atomic numbers "
                f"{', '.join(map(str, outside))}; those atoms count as unstable"
            )
        stable = function(host).sum(dim=1).numpy().astype(float)
        # A failed sample counts as one of average size without a stable atom.
        bottom = np.concatenate([atoms, np.full(total - len(atoms), typical)])
        out[f"atom_stability_{name}"] = ratio(_over(total, stable), bottom, of="atoms")
        out[f"molecule_stability_{name}"] = mean(_over(total, (stable == atoms) & (atoms > 0)))
    return out


def _known(reference: Any) -> frozenset[str] | None:
    """Canonical flat SMILES of the reference; None without one."""
    if reference is None:
        return None
    if isinstance(reference, Molecules):
        reference = Library(reference)
    if isinstance(reference, Library):
        return frozenset(s for s in reference.smiles() if s)
    smiles = getattr(reference, "smiles", reference)
    if isinstance(smiles, (str, bytes)) or not isinstance(smiles, Iterable):
        raise UserError(f"cannot compare with {reference!r:.60}; give a table, molecules or SMILES")
    given = [str(s) for s in smiles if s]
    # SMILES are canonical only within one RDKit version and one convention; a probe tells whether
    # these are ours, and if not all are written anew.
    probe = given[:: max(1, len(given) // 200)]
    if all(_canonical(s) == s for s in probe):
        return frozenset(given)
    return frozenset(s for s in map(_canonical, given) if s)


def _canonical(smiles: str) -> str | None:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        return None if mol is None else Chem.MolToSmiles(mol, isomericSmiles=False)


def _structures(reference: Any) -> Iterator[Molecules] | None:
    """The reference's 3D structures in batches, thinned to `REFERENCE_SAMPLE`; None if it has none.

    Of a molecule table the clean molecules serve.
    """
    if isinstance(reference, Library):
        reference = reference.molecules
    if isinstance(reference, Molecules):
        thin = -(-len(reference) // REFERENCE_SAMPLE) if len(reference) else 1
        return batches(reference[slice(None, None, thin)]) if len(reference) else None
    if not hasattr(reference, "atom_offsets"):
        return None
    rows = reference.rows(clean=True)
    rows = rows[:: max(1, -(-len(rows) // REFERENCE_SAMPLE))]
    pieces = np.array_split(rows, max(1, len(rows) // 1024))
    return (Molecules.from_table(reference, piece) for piece in pieces) if len(rows) else None


def _name(oracle: Any) -> str:
    if isinstance(oracle, str):
        return oracle
    return str(getattr(oracle, "name", None) or getattr(oracle, "__name__", None) or oracle)


def _targets(
    library: Library,
    total: int,
    oracle: Any,
    progress: bool,
    losses: dict[str, int],
    notes: list[str],
) -> dict[str, Statistic]:
    """|measured - target| of the strict molecules, for every target the oracle can measure."""
    strict = np.flatnonzero([v.strict for v in library.verdicts])
    if not library.targets:
        notes.append("the molecules have no targets: nothing for the oracle to measure")
        return {}
    if not len(strict):
        notes.append("no strictly valid molecule for the oracle to measure")
        return {}
    measured, units = _measure(library[strict], oracle, progress, losses)
    out = {}
    for name, goals in library.targets.items():
        if name not in measured:
            notes.append(f"{_name(oracle)} does not measure {name}")
            continue
        values = np.asarray(measured[name], float)
        if values.shape != strict.shape:
            raise UserError(f"{_name(oracle)}: {values.shape} values for {len(strict)} molecules")
        error, aimed = np.zeros(total), np.zeros(total)
        error[strict] = np.abs(values - goals[strict])
        aimed[strict] = np.isfinite(goals[strict])
        known = np.isfinite(error) & (aimed > 0)
        error = np.where(known, error, 0.0)
        out[f"mae_{name}"] = ratio(error, known, of="measured", unit=units.get(name, ""))
        out[f"measured_{name}"] = ratio(known, aimed, of="strict with a target")
    return out


def _measure(
    library: Library, oracle: Any, progress: bool, losses: dict[str, int]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Property -> values of all molecules, and units, from any of the accepted kinds of oracle."""
    from driftworks.molgen import oracles

    if not isinstance(oracle, str) and not hasattr(oracle, "evaluate"):
        if not callable(oracle):
            raise UserError(f"{oracle!r:.60} is no oracle: it has no evaluate() and is no function")
        values = {name: np.asarray(v, float) for name, v in oracle(library.molecules).items()}
        lost = sum(not np.isfinite(v).all() for v in zip(*values.values(), strict=True))
        if lost:
            losses["not measured"] = lost
        return values, dict(getattr(oracle, "provides", {}))
    inputs = [oracles.OracleInput.from_rdkit(mol) for mol in library]
    asked = oracles.get(oracle) if isinstance(oracle, str) else oracle
    try:
        results = asked.evaluate(inputs, progress=progress)
    finally:
        if isinstance(oracle, str):
            asked.close()
    losses |= Counter(result.status for result in results if result.status != "ok")
    rows = [result.values if result.status == "ok" else {} for result in results]
    names = asked.provides
    return {n: np.array([row.get(n, np.nan) for row in rows]) for n in names}, dict(names)
