"""The report: one HTML file that needs nothing else, no network included, and one picture.

Everything in it comes out of the store, so it can be made again at any time. Text is escaped by the
template engine; pictures are made here and inserted as they are; data for the viewer is JSON in
which ``<`` cannot occur. The page's content-security policy allows the two scripts that it carries,
by their SHA-256, and forbids any connection. The viewer is 3Dmol.js (Rego and Koes, Bioinformatics
31, 1322, 2015), copied into the page under its BSD licence.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from driftworks.campaign import figures
from driftworks.campaign.spec import Campaign
from driftworks.campaign.store import Measurement, Store, Structure

__all__ = ["report"]

#: Molecules shown with a depiction, and those in the overview picture.
_SHOWN, _CARDS = 24, 6
#: Decimals by unit.
_DECIMALS = {"hartree": 4, "": 3}


def report(folder: str | Path, *, store: Store | None = None) -> Path:
    """Write ``report.html`` and ``report.png`` of the campaign in `folder`; returns the former.

    Works on unfinished campaigns, and while they run. Raises `UserError` when there is no campaign
    or the files cannot be written.
    """
    from driftworks.campaign.driver import STORE
    from driftworks.core.checkpoint import write_file

    folder = Path(folder)
    if store is None:
        with Store(folder / STORE) as opened:
            return report(folder, store=opened)
    page = _Page(store)
    write_file(folder / "report.png", page.picture())
    write_file(folder / "report.html", page.html().encode())
    return folder / "report.html"


@dataclass(frozen=True)
class _Cell:
    """One number of a molecule: what, by whom, and how far from the target."""

    oracle: str
    text: str
    error: str


class _Page:
    """What the report shows, read once from the store."""

    def __init__(self, store: Store) -> None:
        from driftworks.campaign.driver import funnel, stored

        self.campaign: Campaign = stored(store)
        self.sessions = store.sessions()
        self.batches = store.batches()
        self.model: dict[str, str] = json.loads(store.fact("model") or "{}")
        self.judges: dict[str, str] = json.loads(store.fact("judges") or "{}")
        self.units: dict[str, dict[str, str]] = json.loads(store.fact("units") or "{}")
        self.steered: list[str] = json.loads(store.fact("steered") or "[]")
        self.finished = store.fact("finished") is not None or store.fact("chosen") is not None
        self.funnel = funnel(store)
        self.candidates = store.structures()
        self.chosen = store.structures(chosen=True)
        self.measured: dict[str, dict[int, Measurement]] = {}
        for measurement in store.measurements():
            of = self.measured.setdefault(measurement.oracle, {})
            of[measurement.molecule] = measurement
        self.achieved = [self._achieved(name) for name in self.campaign.targets]

    @property
    def generated(self) -> int:
        return sum(self.funnel.values())

    def unit(self, name: str, oracle: str = "") -> str:
        """The unit of a property, from the oracle that gave it."""
        for units in ([self.units.get(oracle, {})] if oracle else self.units.values()):
            if name in units:
                return units[name]
        return ""

    def symbol(self, name: str) -> str:
        """The unit of a target as it is printed."""
        return figures.symbol(self.unit(name, self.judges.get(name, "")))

    def value(self, oracle: str, index: int, name: str) -> float:
        """A stored number, NaN where there is none."""
        measurement = self.measured.get(oracle, {}).get(index)
        return measurement.values.get(name, math.nan) if measurement is not None else math.nan

    def _achieved(self, name: str) -> figures.Achieved:
        ranks = {s.index for s in self.chosen}
        judge = self.judges.get(name, "")
        return figures.Achieved(
            name,
            self.unit(name, judge),
            judge,
            self.campaign.targets[name],
            np.array([self.value(judge, s.index, name) for s in self.candidates]),
            np.array([s.index in ranks for s in self.candidates], dtype=bool),
            np.array([self.value("dft", s.index, name) for s in self.candidates]),
        )

    # Pieces of the page

    def number(self, x: float, name: str, oracle: str = "") -> str:
        """A value with the decimals of its unit, a dash for NaN."""
        if math.isnan(x):
            return "–"
        return f"{x:.{_DECIMALS.get(self.unit(name, oracle), 2)}f}"

    def cell(self, oracle: str, index: int, name: str) -> _Cell:
        x = self.value(oracle, index, name)
        off = self.campaign.targets[name].error(x) if not math.isnan(x) else math.nan
        text = "" if math.isnan(off) else f"{off:+.{_DECIMALS.get(self.unit(name, oracle), 2)}f}"
        return _Cell(oracle, self.number(x, name, oracle), text)

    def cells(self, index: int, name: str) -> list[_Cell]:
        """What the oracles said of a molecule's property, the one that counts first, DFT last."""
        told = [o for o in self.scorers(name) if not math.isnan(self.value(o, index, name))]
        return [self.cell(oracle, index, name) for oracle in told]

    def headlines(self) -> list[tuple[str, str]]:
        """(figure, what it is) for the top of the page."""
        invalid = sum(
            n for k, n in self.funnel.items() if k.startswith(("invalid", "not generated"))
        )
        out = [
            (f"{self.generated}", "molecules generated"),
            (f"{1 - invalid / max(self.generated, 1):.0%}", "strictly valid"),
            (f"{len(self.candidates)}", "unique candidates through all filters"),
            (f"{len(self.chosen)}", "in the library"),
        ]
        dft = self.measured.get("dft", {})
        if dft:
            confirmed = sum(m.status == "ok" for m in dft.values())
            out.append((f"{confirmed} of {len(dft)}", "computed by DFT"))
        for a in self.achieved:
            values = a.validated[~np.isnan(a.validated)]
            by = "DFT"
            if not len(values):
                values, by = a.values[a.chosen], a.oracle
            off = np.array([a.target.error(x) for x in values if not math.isnan(x)])
            if len(off) and not np.isnan(off).any():
                text = f"{np.median(np.abs(off)):.2f} {figures.symbol(a.unit)}"
                out.append((text, f"median distance from the {a.name} target ({by})"))
        return out

    def losses(self) -> list[dict[str, Any]]:
        """The funnel as rows: name, count, share of all samples, kind (for its colour)."""
        total = max(self.generated, 1)

        def kind(name: str) -> str:
            if name.startswith("library"):
                return "kept"
            return "spare" if name in ("not selected", "in progress") else "lost"

        return [
            {"name": name, "count": n, "share": 100 * n / total, "kind": kind(name)}
            for name, n in self.funnel.items()
        ]

    def scorers(self, name: str) -> list[str]:
        """Oracles that measure a property, in the order of `cells`."""
        able = [oracle for oracle, units in self.units.items() if name in units]
        judge = self.judges.get(name, "")
        return sorted(
            (o for o in able if o in self.measured), key=lambda o: (o != judge, o == "dft", o)
        )

    def molecules(self) -> list[dict[str, Any]]:
        """The best of the library with depiction and numbers."""
        out = []
        for s in self.chosen[:_SHOWN]:
            numbers = [
                {
                    "name": name,
                    "unit": self.symbol(name),
                    "cells": self.cells(s.index, name),
                }
                for name in self.campaign.targets
            ]
            out.append(
                {
                    "rank": s.rank,
                    "index": s.index,
                    "smiles": s.smiles,
                    "score": f"{s.score:.3f}" if s.score is not None else "–",
                    "svg": figures.depiction(s.mol()),
                    "numbers": numbers,
                    "others": [
                        (name, self.number(self.value("rdkit", s.index, name), name, "rdkit"))
                        for name in ("qed", "sa", "logp", "weight")
                        if name in self.units.get("rdkit", {})
                    ],
                }
            )
        return out

    def structures(self) -> list[dict[str, Any]]:
        """What the viewer needs: MOL blocks of the generated and the relaxed geometries."""
        from rdkit import Chem

        out = []
        for s in self.chosen[:_SHOWN]:
            relaxed = self.measured.get("xtb", {}).get(s.index)
            block = {"generated": Chem.MolToMolBlock(_bare(s))}
            if relaxed is not None and relaxed.positions is not None:
                block["relaxed"] = Chem.MolToMolBlock(_bare(s.moved(relaxed.positions)))
            out.append({"rank": s.rank, "smiles": s.smiles, **block})
        return out

    def validated(self) -> list[dict[str, Any]]:
        """DFT results beside estimates and targets; failures with their reasons."""
        dft = self.measured.get("dft", {})
        extra = [
            name
            for name in ("energy", "homo", "lumo", "gap", "mu", "alpha")
            if name in self.units.get("dft", {}) and name not in self.campaign.targets
        ]
        out = []
        for s in self.chosen:
            if s.index not in dft:
                continue
            result = dft[s.index]
            rows = [
                {
                    "name": name,
                    "unit": self.symbol(name),
                    "target": str(target),
                    "cells": self.cells(s.index, name),
                }
                for name, target in self.campaign.targets.items()
            ]
            out.append(
                {
                    "rank": s.rank,
                    "smiles": s.smiles,
                    "svg": figures.depiction(s.mol(), (150, 110)),
                    "status": result.status,
                    "reason": result.reason,
                    "rows": rows,
                    "extra": [
                        (
                            name,
                            self.number(result.values[name], name, "dft"),
                            figures.symbol(self.unit(name, "dft")),
                        )
                        for name in extra
                        if name in result.values
                    ],
                }
            )
        return out

    def times(self) -> list[tuple[str, int, str]]:
        """(what, how often, seconds in all) of sampling and every oracle."""
        drawn = sum(b["size"] for b in self.batches)
        rows = [("sampling and checks", drawn, f"{sum(b['seconds'] for b in self.batches):.1f} s")]
        for oracle, of in sorted(self.measured.items()):
            rows.append((oracle, len(of), f"{sum(m.seconds for m in of.values()):.1f} s"))
        return rows

    def drivers(self) -> list[dict[str, str]]:
        """The sessions: when, command line, platform, versions, and whether they ended in order."""
        out = []
        for session in self.sessions:
            began = datetime.fromtimestamp(session["began"], UTC)
            ended = session["ended"]
            took = f"ended after {ended - session['began']:.0f} s" if ended else "was cut off"
            last = session is self.sessions[-1]
            out.append(
                {
                    "began": f"{began:%Y-%m-%d %H:%M:%S} UTC",
                    "ended": "wrote this report" if last and not ended else took,
                    "command": " ".join(session["command"]),
                    "platform": f"{session['platform']}, {session['processors']} processors",
                    "versions": ", ".join(f"{k} {v}" for k, v in session["versions"].items()),
                }
            )
        return out

    # The two files

    def html(self) -> str:
        from jinja2 import Environment, StrictUndefined

        assets = files("driftworks.campaign") / "assets"
        template = (assets / "report.html.j2").read_text(encoding="utf-8")
        library = (assets / "3Dmol-min.js").read_text(encoding="utf-8")
        viewer = (assets / "viewer.js").read_text(encoding="utf-8")
        environment = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        scripts = (library, viewer) if self.chosen else ()
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
            f"script-src {' '.join(_hash(s) for s in scripts) or chr(39) + 'none' + chr(39)}"
        )
        return environment.from_string(template).render(
            page=self,
            campaign=self.campaign,
            policy=policy,
            scripts=scripts,
            targets_svg=figures.targets_svg(self.achieved),
            spec=json.dumps(json.loads(self.campaign.canonical), indent=2),
            plain=_plain,
        )

    def picture(self) -> bytes:
        cards = []
        for s in self.chosen[:_CARDS]:
            relaxed = self.measured.get("xtb", {}).get(s.index)
            at = s.moved(relaxed.positions if relaxed is not None else None).positions
            cards.append(figures.Card(s.numbers, at, s.bonds, self._caption(s)))
        confirmed = sum(m.status == "ok" for m in self.measured.get("dft", {}).values())
        line = f"{self.generated} generated · {len(self.candidates)} strictly valid candidates"
        line += f" · {confirmed} computed by DFT" if confirmed else ""
        asked = ", ".join(
            f"{name} {target} {self.symbol(name)}".rstrip()
            for name, target in self.campaign.targets.items()
        )
        title = f"Asked for {asked}" if asked else self.campaign.name
        return figures.overview(title, line, cards, self.achieved)

    def _caption(self, s: Structure) -> str:
        words = []
        for name in self.campaign.targets:
            dft = self.value("dft", s.index, name)
            oracle = "dft" if not math.isnan(dft) else self.judges.get(name, "")
            x = self.value(oracle, s.index, name)
            mark = f" ({'DFT' if oracle == 'dft' else oracle})"
            unit = figures.symbol(self.unit(name, oracle))
            words.append(f"{name} {self.number(x, name, oracle)} {unit}{mark}")
        return "\n".join(words[:3]) or s.smiles


def _bare(structure: Structure) -> Any:
    """The molecule without properties or a name."""
    from rdkit import Chem

    mol = Chem.Mol(structure.mol())
    for name in list(mol.GetPropNames()):
        mol.ClearProp(name)
    Chem.Kekulize(mol, clearAromaticFlags=True)
    return mol


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _plain(facts: Mapping[str, Any] | Sequence[Any]) -> str:
    """JSON for a data block: no character that could end the element."""
    text = json.dumps(facts)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
