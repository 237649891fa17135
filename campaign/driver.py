"""Running a campaign: generate, check, filter, measure, choose, validate, write.

The driver is a list of "make sure that" steps over a `Store`: each looks for what is missing and
does only that, so the first run, the run after a crash and a run on a finished folder are one code
path. What comes out is a function of the description and the weights alone:

    while fewer than n candidates and samples left:
        batch b = samples b B .. (b+1) B - 1, stored whole; sample i depends on (seed, i) alone
        losses: not generated -> invalid -> duplicate (InChIKey) -> filtered
        measure with every oracle: RDKit, xTB (relaxing), estimates at the relaxed geometry
        losses: oracle failed -> rearranged -> strained -> filtered
    choose (`select`), validate the first k with DFT, write the files

Every sample ends in exactly one bucket of the funnel.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from driftworks import __version__
from driftworks.campaign import select
from driftworks.campaign.filters import Screen
from driftworks.campaign.progress import Progress
from driftworks.campaign.protocol import Generator, Oracle, Regressor
from driftworks.campaign.spec import Campaign
from driftworks.campaign.store import Measurement, Store, Structure, result_key
from driftworks.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

__all__ = [
    "STORE",
    "Result",
    "dft_oracle",
    "funnel",
    "load_model",
    "run",
    "sample",
    "status",
    "stored",
    "triage",
]

#: The file in the output folder that holds the state.
STORE = "campaign.sqlite"

#: A bond is broken when it has grown beyond this multiple of the sum of the covalent radii.
_BROKEN = 1.3
#: Seconds of oracle results that a crash may cost.
_FLUSH = 1.0

_PACKAGES = (
    "torch",
    "numpy",
    "rdkit",
    "tblite",
    "pyscf",
    "scipy",
    "pandas",
    "pyarrow",
    "sqlalchemy",
    "pydantic",
)


@dataclass(frozen=True)
class Result:
    """What a finished campaign leaves.

    `folder` holds ``library.sdf``, ``library.parquet``, ``validated.sdf`` (where DFT was asked
    for), ``report.html``, ``report.png`` and the state. `table` is the library, best first, one row
    a molecule; `funnel` counts every sample once; `candidates` and `validated` are the molecules
    that came through all filters and those that DFT confirmed.
    """

    folder: Path
    table: pd.DataFrame
    funnel: dict[str, int]
    candidates: int
    validated: int
    wanted: int

    @property
    def generated(self) -> int:
        """Samples drawn."""
        return sum(self.funnel.values())

    def __str__(self) -> str:
        lines = [
            f"{len(self.table)} molecules in {self.folder / 'library.sdf'} "
            f"({self.candidates} candidates of {self.generated} samples, "
            f"{self.validated} validated by DFT)"
        ]
        if self.candidates < self.wanted:
            lines.append(
                f"fewer than the {self.wanted} candidates wanted: the budget of samples is spent"
            )
        lines += [f"  {count:6d}  {name}" for name, count in self.funnel.items()]
        return "\n".join([*lines, f"report: {self.folder / 'report.html'}"])


def run(
    campaign: Campaign | str | Path,
    *,
    progress: bool = True,
    generator: Generator | None = None,
    oracles: Mapping[str, Oracle] | None = None,
) -> Result:
    """Run a campaign, or continue it where it stopped, until its files are written.

    Parameters
    ----------
    campaign: a `Campaign` or the path of its TOML file
    progress: bars on a terminal, plain lines elsewhere
    generator: draws the molecules (default: the campaign's model)
    oracles: name -> oracle, used in place of, or besides, "rdkit", "xtb" and "dft"

    Raises `UserError` where the campaign cannot be carried out: unknown model or property, a folder
    that holds another campaign or is being worked on, a file that cannot be written. What has been
    done until then is kept.
    """
    campaign = campaign if isinstance(campaign, Campaign) else Campaign.load(campaign)
    folder = campaign.folder
    if generator is None and not (folder / STORE).exists():
        generator = load_model(campaign.model)  # an unknown model leaves no folder behind
    _make(folder)
    with Store(folder / STORE, create=True) as store, store.driving(), Progress(progress) as show:
        driver = _Driver(campaign, store, show, generator, dict(oracles or {}))
        session = store.open_session(_provenance())
        try:
            driver.collect()
            driver.choose()
            driver.validate()
            result = driver.write(folder)
        finally:
            driver.close()
        store.close_session(session)
        return result


def status(folder: str | Path) -> dict[str, Any]:
    """Where the campaign in `folder` stands: spec, counts, funnel; safe while it runs.

    Raises `UserError` when there is no campaign.
    """
    with Store(Path(folder) / STORE) as store:
        campaign = stored(store)
        batches = store.batches()
        checked = [m for m in store.measurements("dft") if m.status == "ok"]
        return {
            "name": campaign.name,
            "folder": str(folder),
            "spec_sha256": campaign.sha256,
            "wanted": campaign.n,
            "budget": campaign.budget,
            "generated": sum(batch["size"] for batch in batches),
            "candidates": store.candidates(),
            "validated": len(checked),
            "finished": store.fact("finished") is not None,
            "funnel": funnel(store),
        }


def stored(store: Store) -> Campaign:
    """The campaign that a store belongs to."""
    spec = store.fact("spec")
    if spec is None:
        raise UserError(f"{store.path.parent}: the campaign here has not begun yet")
    return Campaign(**json.loads(spec))


def funnel(store: Store) -> dict[str, int]:
    """Every sample drawn so far in exactly one bucket, in the order of the losses."""
    counts = store.losses()
    inside = counts.pop("", 0)
    if store.fact("chosen") is None:
        counts["in progress"] = inside
    else:
        chosen = {s.index for s in store.structures(chosen=True)}
        validated = [m for m in store.measurements("dft") if m.molecule in chosen]
        counts["not selected"] = inside - len(chosen)
        for measurement in validated:
            name = "library, DFT " + ("ok" if measurement.status == "ok" else measurement.status)
            counts[name] = counts.get(name, 0) + 1
        counts["library"] = len(chosen) - len(validated)
    stages = ("not generated", "invalid", "duplicate", "filtered")
    last = ("in progress", "not selected", "library")

    def place(name: str) -> tuple[int, str]:
        head = name.partition(":")[0].partition(",")[0]
        if head in stages:
            return stages.index(head), name
        return (10 + last.index(head) if head in last else 5), name

    return {name: counts[name] for name in sorted(counts, key=place) if counts[name]}


@dataclass
class _Driver:
    """The steps; each makes sure that something is in the store."""

    campaign: Campaign
    store: Store
    show: Progress
    generator: Generator | None
    oracles: dict[str, Oracle]
    screen: Screen = field(init=False)
    judges: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        campaign, store = self.campaign, self.store
        store.agree(campaign.canonical)
        self.screen = Screen(campaign.filters)
        wanted = campaign.oracles
        if "rdkit" not in self.oracles:
            self.oracles["rdkit"] = _oracle("rdkit")
        if wanted.xtb is not None and "xtb" not in self.oracles:
            self.oracles["xtb"] = _oracle("xtb", relax=wanted.xtb.relax)
        if wanted.dft is not None and "dft" not in self.oracles:
            self.oracles["dft"] = dft_oracle(campaign)
        if self.collected:
            self.judges = json.loads(store.fact("judges") or "{}")
            return
        if self.generator is None:
            self.generator = load_model(campaign.model)
        model = {"name": str(self.generator.name), "hash": str(self.generator.hash)}
        store.agree(campaign.canonical, model)
        estimates = Regressor.of(self.generator)
        if estimates is not None:
            self.oracles.setdefault(estimates.name, estimates)
        self.judges = self._judges()
        for name in sorted({"homo", "lumo", "gap"} & self.judges.keys()):
            if self.judges[name] == "xtb":
                self.show.say(
                    f"{name} is scored by GFN2-xTB, whose orbital energies are not those of B3LYP: "
                    "the model brings no estimates of its own"
                )
        store.remember(
            judges=json.dumps(self.judges, sort_keys=True),
            units=json.dumps({name: dict(o.provides) for name, o in self.oracles.items()}),
            steered=json.dumps(sorted(_conditions(campaign, self.generator))),
        )

    def close(self) -> None:
        """End what the oracles have running."""
        for oracle in self.oracles.values():
            oracle.close()

    @property
    def scorers(self) -> list[Oracle]:
        """The oracles that every candidate meets, in the order in which it meets them."""
        order = {"rdkit": 0, "xtb": 2, "regressor": 3}
        names = sorted((n for n in self.oracles if n != "dft"), key=lambda n: (order.get(n, 1), n))
        return [self.oracles[name] for name in names]

    def _judges(self) -> dict[str, str]:
        """Property -> oracle whose number counts, for all targets and limits.

        Estimates at the level of the training labels come before xTB, whose orbital energies are
        those of another method.
        """
        trust = {"rdkit": 0, "regressor": 1, "xtb": 3}
        judges = {}
        properties = {name: target.oracle for name, target in self.campaign.targets.items()}
        properties |= {
            name: properties.get(name) for name in self.campaign.filters.properties
        }
        for name, wish in properties.items():
            able = [oracle.name for oracle in self.scorers if name in oracle.provides]
            able.sort(key=lambda n: trust.get(n, 2))
            if wish is not None and wish not in able:
                choices = ", ".join(able) or "none"
                raise UserError(f"{name}: not measured by oracle {wish!r}; choose from {choices}")
            if not able:
                known = sorted({p for oracle in self.scorers for p in oracle.provides})
                raise UserError(
                    f"unknown property {name!r}: what this campaign's oracles measure is "
                    f"{', '.join(known)}"
                )
            judges[name] = wish or able[0]
        return judges

    # Candidates

    @property
    def collected(self) -> bool:
        """Whether no more samples are to be drawn."""
        if self.store.fact("chosen") is not None:
            return True
        batches = self.store.batches()
        if not all(batch["settled"] for batch in batches):
            return False
        drawn = sum(batch["size"] for batch in batches)
        return self.store.candidates() >= self.campaign.n or drawn >= self.campaign.budget

    def collect(self) -> None:
        """Batches until there are enough candidates or the budget is spent."""
        for batch in self.store.batches():
            if not batch["settled"]:
                self._settle(batch["id"])
        while not self.collected and not self._stuck():
            batches = self.store.batches()
            first = sum(batch["size"] for batch in batches)
            self._tell(first)
            size = min(self.campaign.batch, self.campaign.budget - first)
            self._generate(len(batches), first, size)
            self._settle(len(batches))
        self._tell(sum(batch["size"] for batch in self.store.batches()))

    def _tell(self, drawn: int) -> None:
        have = self.store.candidates()
        note = f"{drawn} of at most {self.campaign.budget} samples"
        self.show.update("candidates", have, max(have, self.campaign.n), note)

    def _stuck(self) -> bool:
        """Whether a spent oracle budget leaves no way to become a candidate."""
        limit = self.campaign.oracles.xtb.n if self.campaign.oracles.xtb else None
        if limit is None or "xtb" not in self.judges.values():
            return False
        return len(self.store.measurements("xtb")) >= limit

    def _generate(self, number: int, first: int, size: int) -> None:
        assert self.generator is not None
        start = time.perf_counter()
        library = sample(self.campaign, self.generator, first, size)
        failures = dict(library.failures)
        unknown = size - len(library) - sum(failures.values())
        inside = set(range(first, first + size))
        indices = [int(i) for i in library.indices]
        if unknown < 0 or len(set(indices)) != len(indices) or not inside.issuperset(indices):
            raise UserError(
                f"model {self.generator.name!r} was asked for samples {first} to "
                f"{first + size - 1} and answered with others"
            )
        if unknown:
            failures["unknown"] = failures.get("unknown", 0) + unknown
        structures = triage(self.campaign, library, self.store.inchikeys(), self.screen)
        seconds = time.perf_counter() - start
        self.store.add_batch(number, first, size, structures, failures, seconds)

    def _settle(self, number: int) -> None:
        """Measure the molecules of a batch that are in, and close it."""
        inside = self.store.structures(number)
        losses: dict[int, str] = {}
        found: dict[str, dict[int, Measurement]] = {}
        for oracle in self.scorers:
            left = [s for s in inside if s.index not in losses]
            if oracle.name == "xtb":
                left, unpaid = self._affordable(left, number)
                if "xtb" in self.judges.values():
                    losses |= {s.index: "xtb: budget spent" for s in unpaid}
            relaxed = found.get("xtb", {}) if oracle.name == "regressor" else {}
            self._measure(oracle, left, {i: m.positions for i, m in relaxed.items()})
            found[oracle.name] = {
                m.molecule: m for m in self.store.measurements(oracle.name, number)
            }
            for s in left:
                loss = self._verdict(s, found[oracle.name][s.index])
                if loss:
                    losses[s.index] = loss
        for s in inside:
            for name, window in self.campaign.filters.properties.items():
                measured = found[self.judges[name]].get(s.index)
                if s.index not in losses and measured is not None:
                    if measured.values[name] not in window:
                        losses[s.index] = f"filtered: {name} out of limits"
        self.store.settle(number, losses)

    def _affordable(
        self, structures: list[Structure], batch: int
    ) -> tuple[list[Structure], list[Structure]]:
        """The molecules that xTB's budget still pays for, by sample number, and the others."""
        limit = self.campaign.oracles.xtb.n if self.campaign.oracles.xtb else None
        if limit is None:
            return structures, []
        here = len(self.store.measurements("xtb", batch))
        left = max(0, limit - len(self.store.measurements("xtb")) + here)
        return structures[:left], structures[left:]

    def _verdict(self, structure: Structure, measured: Measurement) -> str:
        if measured.status != "ok":
            return f"{measured.oracle}: {measured.status}"
        if measured.oracle == "xtb" and measured.positions is not None:
            if _broken(structure, measured.positions):
                return "xtb: rearranged"
            limit = self.campaign.oracles.xtb.max_strain if self.campaign.oracles.xtb else None
            if limit is not None and measured.values["strain"] > limit:
                return "xtb: strained"
        return ""

    def _measure(
        self,
        oracle: Oracle,
        structures: Sequence[Structure],
        at: Mapping[int, NDArray[np.float64] | None] | None = None,
    ) -> None:
        """Make sure that `oracle` has answered for the molecules, at the generated positions.

        `at` gives other positions (N, 3) [angstrom] for sample numbers: estimates of a network that
        was trained on minima are asked for at the relaxed geometry, where there is one.
        """
        done = {m.molecule for m in self.store.measurements(oracle.name)}
        todo = [s for s in structures if s.index not in done]
        if not todo:
            return
        todo = [s.moved((at or {}).get(s.index)) for s in todo]
        keys = [result_key(oracle.name, oracle.settings, s) for s in todo]
        known = self.store.known(keys)
        fresh = [i for i, key in enumerate(keys) if key not in known]
        reused = [(todo[i].index, keys[i], None) for i in range(len(todo)) if keys[i] in known]
        if reused:
            self.store.record(oracle.name, reused)
        pending: list[tuple[int, str, Any]] = []
        flushed = time.monotonic()
        count = len(reused)

        def take(position: int, result: Any) -> None:
            nonlocal flushed, count
            i = fresh[position]
            pending.append((todo[i].index, keys[i], result))
            count += 1
            # What depends on the rest of its batch is kept whole or not at all.
            if oracle.name != "regressor" and time.monotonic() - flushed >= _FLUSH:
                self.store.record(oracle.name, pending)
                pending.clear()
                flushed = time.monotonic()
            self.show.update(oracle.name, count, len(todo), minor=oracle.name != "dft")

        oracle.evaluate([todo[i].asked() for i in fresh], callback=take)
        if pending:
            self.store.record(oracle.name, pending)

    # The library

    def choose(self) -> None:
        """Rank the candidates and fix the library."""
        if self.store.fact("chosen") is not None:
            return
        candidates = self.store.structures()
        targets = self.campaign.targets
        values = {}
        for name in targets:
            measured = {m.molecule: m for m in self.store.measurements(self.judges[name])}
            values[name] = np.array([measured[s.index].values[name] for s in candidates])
        score = select.log_score(targets, values, len(candidates))
        wish = self.campaign.selection
        prints = select.fingerprints([s.mol() for s in candidates]) if wish.diversity else []
        order = select.greedy(score, prints, wish.size, wish.diversity)
        self.store.choose([(candidates[i].index, float(score[i])) for i in order])

    def validate(self) -> None:
        """DFT for the first of the library."""
        dft = self.campaign.oracles.dft
        if dft is None:
            return
        self._measure(self.oracles["dft"], self.store.structures(chosen=True)[: dft.n])

    def write(self, folder: Path) -> Result:
        """The files, each whole or not at all."""
        from driftworks.campaign.export import table, write_library
        from driftworks.campaign.page import report

        self.show.say("writing the library and its report")
        _sweep(folder)
        write_library(self.store, folder)
        report(folder, store=self.store)
        self.store.remember(finished="yes")
        counts = funnel(self.store)
        return Result(
            folder,
            table(self.store),
            counts,
            self.store.candidates(),
            counts.get("library, DFT ok", 0),
            self.campaign.n,
        )


def sample(campaign: Campaign, model: Generator, first: int, size: int) -> Any:
    """Samples ``first .. first + size - 1`` under the campaign's targets."""
    options: dict[str, Any] = {}
    if campaign.guidance is not None:
        options["guidance"] = campaign.guidance
    if campaign.steps is not None:
        options["steps"] = campaign.steps
    return model.sample(
        size,
        targets=_conditions(campaign, model) or None,
        seed=campaign.seed,
        first=first,
        progress=False,
        **options,
    )


def _conditions(campaign: Campaign, model: Generator) -> dict[str, Any]:
    """The targets that the model can be steered to; the others only count in the score."""
    known = getattr(model, "properties", None)
    return {
        name: target.condition
        for name, target in campaign.targets.items()
        if known is None or name in known
    }


def triage(
    campaign: Campaign, library: Any, seen: set[str], screen: Screen | None = None
) -> list[Structure]:
    """The molecules of a library with their losses; InChIKeys in `seen` count as known."""
    from rdkit import Chem, rdBase

    screen = screen if screen is not None else Screen(campaign.filters)
    seen = set(seen)
    structures = []
    for row, index in enumerate(library.indices):
        verdict = library.verdicts[row]
        if not verdict.strict:
            lost = Structure.of(
                library.molecules, row, int(index), loss=f"invalid: {verdict.reason}"
            )
            structures.append(lost)
            continue
        mol = library.mol(row)
        with rdBase.BlockLogs():
            smiles = Chem.MolToSmiles(Chem.RemoveHs(mol))
            key = Chem.MolToInchiKey(mol) or f"SMILES={smiles}"
            unwanted = screen.reason(mol)
        loss = "duplicate" if key in seen else f"filtered: {unwanted}" if unwanted else ""
        seen.add(key)
        structures.append(
            Structure.of(
                library.molecules, row, int(index), smiles=smiles, inchikey=key, loss=loss
            )
        )
    return structures


def _broken(structure: Structure, positions: NDArray[np.float64]) -> bool:
    """Whether a bond of the molecule is no bond any more at `positions` (N, 3) [angstrom]."""
    from rdkit.Chem import GetPeriodicTable

    if not len(structure.bonds):
        return False
    table = GetPeriodicTable()
    radii = np.array([table.GetRcovalent(int(z)) for z in structure.numbers])
    i, j = structure.bonds[:, 0], structure.bonds[:, 1]
    lengths = np.linalg.norm(positions[i] - positions[j], axis=1)
    return bool((lengths > _BROKEN * (radii[i] + radii[j])).any())


def _oracle(name: str, **options: Any) -> Oracle:
    from driftworks.molgen import oracles

    return oracles.get(name, **options)


def dft_oracle(campaign: Campaign) -> Oracle:
    """The DFT oracle as the campaign wants it."""
    wish = campaign.oracles.dft
    assert wish is not None
    return _oracle(
        "dft",
        preset=wish.preset,
        relax=wish.relax,
        alpha=True if "alpha" in campaign.targets else None,
        timeout=wish.wall,
        memory_mb=wish.memory,
    )


def load_model(name: str) -> Generator:
    """The model of that name; raises `UserError` where there is none."""
    from driftworks import molgen

    return molgen.load(name)


def _make(folder: Path) -> None:
    """Make the output folder, and make sure that files can be written there."""
    probe = folder / f".{os.getpid()}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"output {folder}: cannot be written: {error.strerror}") from None


def _sweep(folder: Path) -> None:
    """Remove what killed drivers left of files that they were about to rename into place."""
    for pattern in (".library.*", ".validated.*", ".report.*", ".*.probe"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _provenance() -> dict[str, Any]:
    """Versions, command line and platform of this driver."""
    versions = {"driftworks": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "command": list(sys.argv),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "pid": os.getpid(),
    }
