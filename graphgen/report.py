"""The outcome of an evaluation: figures beside those of real data, as a table and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from driftworks.core.bootstrap import Figure
from driftworks.graphgen.isomorphism import Leak
from driftworks.graphgen.mmd import Comparison

__all__ = ["HEADLINE", "Four", "Report"]

#: Mean, standard deviation, least and most.
Four = tuple[float, float, float, float]

#: The descriptors whose mean is the headline of the tables of each convention.
HEADLINE = {
    "gdss": ("degree", "clustering", "orbit"),
    "digress": ("degree", "clustering", "orbit", "spectral"),
}


@dataclass(frozen=True)
class Report:
    """The figures of `evaluate`, by name: ``report.connectivity.value``.

    figures: rates and means with intervals; data: the same numbers of real data, where there are
    mmd: descriptor -> `Comparison` of the generated graphs; floor: of the training set
    mean_mmd: mean of the published statistic over the convention's descriptors, as (mean, standard
        deviation, least, most) over the random subsets; mean_floor: of the training set
    ratio: mean over descriptors of published MMD^2 over that of the whole training set (the
        "ratio" of the planar, SBM and tree tables), None without a training set
    failures: reason -> requested graphs that are missing or not valid
    leak: overlap of the training and reference sets; fcd: Fréchet ChemNet distance of molecules
    """

    figures: dict[str, Figure]
    data: dict[str, float]
    requested: int
    delivered: int
    reference: int
    train: int
    mmd: dict[str, Comparison] = field(default_factory=dict)
    floor: dict[str, Comparison] = field(default_factory=dict)
    mean_mmd: Four | None = None
    mean_floor: Four | None = None
    ratio: float | None = None
    failures: dict[str, int] = field(default_factory=dict)
    family: str | None = None
    convention: str = "gdss"
    leak: Leak | None = None
    nspdk: tuple[float, float] | None = None
    nspdk_floor: tuple[float, float] | None = None
    fcd: float | None = None
    notes: tuple[str, ...] = ()
    seed: int = 0

    def __getattr__(self, name: str) -> Figure:
        figures = self.__dict__.get("figures", {})
        if name in figures:
            return figures[name]
        raise AttributeError(f"no figure {name!r}; there are {', '.join(figures)}")

    def __getitem__(self, name: str) -> Figure:
        return self.figures[name]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: figures with intervals, MMDs with floors, counts, notes."""
        leak = None if self.leak is None else {**self.leak.__dict__}
        if leak is not None:
            leak["leaked"] = list(leak["leaked"])
        return {
            "requested": self.requested,
            "delivered": self.delivered,
            "reference": self.reference,
            "train": self.train,
            "family": self.family,
            "convention": self.convention,
            "figures": {
                name: {**figure.to_dict(), "data": _finite(self.data.get(name))}
                for name, figure in self.figures.items()
            },
            "mmd": {name: c.to_dict() for name, c in self.mmd.items()},
            "floor": {name: c.to_dict() for name, c in self.floor.items()},
            "mean_mmd": _four(self.mean_mmd),
            "mean_floor": _four(self.mean_floor),
            "ratio": _finite(self.ratio),
            "nspdk": _two(self.nspdk),
            "nspdk_floor": _two(self.nspdk_floor),
            "fcd": _finite(self.fcd),
            "failures": dict(self.failures),
            "leak": leak,
            "notes": list(self.notes),
            "seed": self.seed,
        }

    def __str__(self) -> str:
        lines = [
            f"{self.requested} graphs requested, {self.delivered} delivered; "
            f"{self.reference} of reference" + (f", {self.train} to train" if self.train else "")
        ]
        wide = max([len(name) for name in (*self.figures, *self.mmd)] + [8])
        lines += ["", f"{'':<{wide + 2}}{'generated':>11}  {'[95 % interval]':<22}{'data':>10}"]
        for name, figure in self.figures.items():
            lines.append(f"  {name:<{wide}}{_figure_cells(figure, self.data.get(name))}")
        if self.mmd:
            lines += self._published(wide) + self._unbiased(wide)
        if self.nspdk is not None:
            lines += ["", "NSPDK: " + _nspdk_text(self.nspdk, self.nspdk_floor)]
        if self.fcd is not None:
            lines += ["", f"FCD {self.fcd:.3f}"]
        if self.failures:
            listed = ", ".join(f"{reason} {count}" for reason, count in self.failures.items())
            lines += ["", f"failed: {listed}"]
        lines += ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines)

    def _published(self, wide: int) -> list[str]:
        size = min(self.reference, next(iter(self.mmd.values())).m)
        title = f"MMD^2 as published ({self.convention}), mean over subsets of {size}"
        lines = ["", f"{title}   [least, most]   real training graphs"]
        for name, c in self.mmd.items():
            cells = f"{c.published:>9.4f} ± {c.spread:.4f}  [{c.lowest:.4f}, {c.highest:.4f}]"
            if name in self.floor:
                real = self.floor[name]
                cells += f"   {real.published:.4f} ± {real.spread:.4f}"
            lines.append(f"  {name:<{wide}}{cells}")
        if self.mean_mmd is not None:
            average, spread, low, high = self.mean_mmd
            cells = f"{average:>9.4f} ± {spread:.4f}  [{low:.4f}, {high:.4f}]"
            if self.mean_floor is not None:
                cells += f"   {self.mean_floor[0]:.4f} ± {self.mean_floor[1]:.4f}"
            of = ", ".join(HEADLINE[self.convention])
            lines.append(f"  {'mean':<{wide}}{cells}   (of {of})")
        if self.ratio is not None:
            lines.append(f"  {'ratio':<{wide}}{self.ratio:>9.2f}   (to the whole training set)")
        return lines

    def _unbiased(self, wide: int) -> list[str]:
        lines = ["", "MMD^2 unbiased, positive definite kernel  [95 %]  p   real training graphs"]
        for name, c in self.mmd.items():
            cells = f"{c.value:>9.4f}  [{c.low:.4f}, {c.high:.4f}]  {c.p:.3f}"
            if name in self.floor:
                real = self.floor[name]
                cells += f"   {real.value:.4f}  [{real.low:.4f}, {real.high:.4f}]"
            lines.append(f"  {name:<{wide}}{cells}")
        return lines


def _finite(x: float | None) -> float | None:
    return None if x is None or not np.isfinite(x) else float(x)


def _two(pair: tuple[float, float] | None) -> dict[str, float | None] | None:
    return None if pair is None else {"published": _finite(pair[0]), "unbiased": _finite(pair[1])}


def _four(values: Four | None) -> dict[str, float | None] | None:
    if values is None:
        return None
    return dict(zip(("mean", "sd", "least", "most"), map(_finite, values), strict=True))


def _nspdk_text(pair: tuple[float, float], floor: tuple[float, float] | None) -> str:
    text = f"published {pair[0]:.5f}, unbiased {pair[1]:.5f}"
    if floor is not None:
        text += f"; real training graphs {floor[0]:.5f}, {floor[1]:.5f}"
    return text


def _figure_cells(figure: Figure, data: float | None) -> str:
    percent = figure.unit == "fraction"
    scale, places, unit = (100.0, 1, " %") if percent else (1.0, 3, "")
    value, low, high, real = (
        f"{x * scale:.{places}f}" if x is not None and np.isfinite(x) else "-"
        for x in (figure.value, figure.low, figure.high, data)
    )
    real = real + unit if real != "-" else real
    interval = f"[{low}, {high}]"
    return f"{value + unit:>13}  {interval:<22}{real:>10}"
