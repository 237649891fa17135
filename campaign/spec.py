"""What a campaign is: a frozen, validated description with a stable identity.

The description is data. Two descriptions with the same canonical JSON are the same campaign,
whatever file, order of keys or shorthand they were written in; its SHA-256 is the campaign's name
in a store. The output folder is where a campaign happens, not what it is, and stays out of the
identity.

A target says what the property x of a molecule should be and gives every x a desirability:

    value v, tolerance w:         d(x) = 2^-((x - v)/w)^2                  one half at one tolerance
    range [lo, hi], tolerance w:  1 inside, the same flanks outside
    goal "min" or "max":          the share of the candidates that do no better (`select`)
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from driftworks.errors import UserError

if TYPE_CHECKING:
    from driftworks.campaign.driver import Result
    from driftworks.campaign.estimate import Estimate

__all__ = [
    "Campaign",
    "Dft",
    "Filters",
    "Oracles",
    "Rdkit",
    "Selection",
    "Target",
    "Window",
    "Xtb",
    "differences",
    "load",
]

Alert = Literal["PAINS", "BRENK", "NIH", "ZINC"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Target(_Part):
    """What one property should be: exactly one of `value`, `range` and `goal`.

    `tolerance` is the distance, in the property's unit, at which a molecule is half as desirable
    (default: a tenth of |value|, or half the width of the range); `weight` its share in the score;
    `oracle` the oracle whose number counts (default: the first that measures the property).
    """

    value: float | None = None
    range: tuple[float, float] | None = None
    goal: Literal["min", "max"] | None = None
    tolerance: float | None = Field(default=None, gt=0)
    weight: float = Field(default=1.0, gt=0)
    oracle: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Target:
        if sum(kind is not None for kind in (self.value, self.range, self.goal)) != 1:
            raise ValueError("give exactly one of value, range, goal")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range {list(self.range)} must rise")
        if self.goal is not None and self.tolerance is not None:
            raise ValueError("a goal has no tolerance")
        if self.value == 0 and self.tolerance is None:
            raise ValueError("a value of 0 needs a tolerance")
        return self

    @property
    def width(self) -> float:
        """The tolerance in use, in the property's unit (NaN for a goal)."""
        if self.tolerance is not None:
            return self.tolerance
        if self.value is not None:
            return 0.1 * abs(self.value)
        return 0.5 * (self.range[1] - self.range[0]) if self.range is not None else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Lowest and highest x of full desirability (infinite for a goal)."""
        if self.value is not None:
            return self.value, self.value
        return self.range if self.range is not None else (-math.inf, math.inf)

    @property
    def condition(self) -> float | tuple[float, float] | str:
        """The target in the form that a generator takes."""
        if self.value is not None:
            return self.value
        return self.range if self.range is not None else str(self.goal)

    def error(self, x: float) -> float:
        """Signed distance of `x` from the target (0 inside a range, NaN for a goal)."""
        low, high = self.interval
        return math.nan if self.goal else min(x - low, 0.0) + max(x - high, 0.0)

    def __str__(self) -> str:
        if self.value is not None:
            return f"{self.value:g} ± {self.width:g}"
        if self.range is not None:
            return f"{self.range[0]:g} to {self.range[1]:g}"
        return {"min": "as low as possible", "max": "as high as possible"}[str(self.goal)]


class Window(_Part):
    """Limits on a property, both ends included."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _some(self) -> Window:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self

    def __contains__(self, x: float) -> bool:
        return (self.min is None or x >= self.min) and (self.max is None or x <= self.max)


def _target(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return {"value": value}
    if isinstance(value, str):
        return {"goal": value}
    if isinstance(value, list | tuple):
        return {"range": value}
    return value


def _window(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) == 2:
        return {"min": value[0], "max": value[1]}
    return value


class Filters(_Part):
    """Molecules that are valid but not wanted.

    `elements`: symbols allowed (hydrogen always is); `heavy_atoms`: fewest and most; `require` and
    `exclude`: SMARTS that must, or must not, match; `alerts`: RDKit's structural alert catalogues;
    `properties`: limits on any property that an oracle of the campaign measures.
    """

    elements: tuple[str, ...] | None = None
    heavy_atoms: tuple[int, int] | None = None
    require: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    alerts: tuple[Alert, ...] = ()
    properties: dict[str, Annotated[Window, BeforeValidator(_window)]] = {}

    @field_validator("elements")
    @classmethod
    def _symbols(cls, symbols: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if symbols is None:
            return None
        from rdkit.Chem import GetPeriodicTable

        table = GetPeriodicTable()
        known = {table.GetElementSymbol(z) for z in range(1, 119)}
        for symbol in symbols:
            if symbol not in known:
                raise ValueError(f"{symbol!r} is no element symbol")
        return tuple(sorted(set(symbols)))

    @field_validator("heavy_atoms")
    @classmethod
    def _rising(cls, limits: tuple[int, int] | None) -> tuple[int, int] | None:
        if limits is not None and not 1 <= limits[0] <= limits[1]:
            raise ValueError(f"{list(limits)} must be fewest and most, at least 1")
        return limits

    @field_validator("require", "exclude")
    @classmethod
    def _smarts(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        from rdkit import Chem, rdBase

        with rdBase.BlockLogs():
            for pattern in patterns:
                if not pattern.strip() or Chem.MolFromSmarts(pattern) is None:
                    raise ValueError(f"{pattern!r} is no SMARTS pattern")
        return patterns


class Rdkit(_Part):
    """Descriptors of the molecular graph; always on, costs about a millisecond."""


class Xtb(_Part):
    """GFN2-xTB for at most `n` molecules (default: every candidate).

    The geometry is relaxed first when `relax`; a molecule whose relaxation breaks one of its bonds,
    or whose strain energy E(as generated) - E(relaxed) exceeds `max_strain` [eV], is not a
    candidate.
    """

    n: int | None = Field(default=None, ge=1)
    relax: bool = True
    max_strain: float | None = Field(default=None, gt=0)


class Dft(_Part):
    """DFT at the level of QM9 for the first `n` molecules of the selection.

    `preset`: "qm9" (parity with the labels) or "screen" (density fitting, several times cheaper);
    `wall` [s] and `memory` [MiB] limit one molecule; `relax`: "xtb" relaxes the geometry by
    GFN2-xTB first, "none" takes the generated one.
    """

    n: int = Field(default=4, ge=1)
    preset: Literal["screen", "qm9"] = "screen"
    relax: Literal["xtb", "none"] = "xtb"
    wall: float = Field(default=600.0, gt=0)
    memory: int = Field(default=6000, ge=512)


def _switch(value: Any) -> Any:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


class Oracles(_Part):
    """What measures the molecules, cheapest first; ``xtb = false`` switches one off."""

    rdkit: Annotated[Rdkit, BeforeValidator(_switch)] = Rdkit()
    xtb: Annotated[Xtb | None, BeforeValidator(_switch)] = Xtb()
    dft: Annotated[Dft | None, BeforeValidator(_switch)] = None


class Selection(_Part):
    """How many candidates make the library (default: all), and the weight of diversity in it."""

    size: int | None = Field(default=None, ge=1)
    diversity: float = Field(default=0.3, ge=0, le=1)


class Campaign(_Part):
    """One campaign, from a target to a validated library.

    Parameters
    ----------
    name: shown in the report
    model: name of a trained model, or the folder of a checkpoint
    targets: property -> `Target`, or in short a number, a (low, high) range, "min" or "max"
    n: candidates wanted: strictly valid, unique, through all filters
    max_generated: samples the campaign may draw to get them (default 20 n)
    batch: samples drawn together; part of what makes a run reproducible to the bit
    seed: sample i depends on (seed, i) alone
    guidance, steps: strength of the conditioning, steps of the sampler (default: the model's own)
    filters, oracles, selection: see there
    output: folder of the results (default ``runs/<name>``), relative to the working directory

    Anything unknown or out of bounds raises `UserError` with one line.
    """

    name: str = Field(default="campaign", min_length=1, max_length=80)
    model: str = Field(default="qm9", min_length=1)
    targets: dict[str, Annotated[Target, BeforeValidator(_target)]] = {}
    n: int = Field(default=100, ge=1)
    max_generated: int | None = Field(default=None, ge=1)
    batch: int = Field(default=50, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    guidance: float | None = Field(default=None, ge=0)
    steps: int | None = Field(default=None, ge=1)
    filters: Filters = Filters()
    oracles: Oracles = Oracles()
    selection: Selection = Selection()
    output: str | None = Field(default=None, min_length=1)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise UserError(f"campaign: {_one_line(error)}") from None

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        if not name.isprintable() or not name.strip():
            raise ValueError(f"{name!r} must be one printable line")
        return name

    @model_validator(mode="after")
    def _budget(self) -> Campaign:
        if self.max_generated is not None and self.max_generated < self.n:
            raise ValueError(f"max_generated {self.max_generated} is below n {self.n}")
        xtb = self.oracles.xtb
        if xtb is not None and xtb.max_strain is not None and not xtb.relax:
            raise ValueError("oracles.xtb.max_strain needs relax = true")
        return self

    @classmethod
    def load(cls, path: str | Path, **changes: Any) -> Campaign:
        """Read a TOML file; `changes` (such as ``seed=3, output="elsewhere"``) replace its entries.

        Raises `UserError` when the file cannot be read, is no TOML, or describes no campaign.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                data = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a TOML file: {error}") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        data.setdefault("name", path.stem)
        data.update({key: value for key, value in changes.items() if value is not None})
        try:
            return cls(**data)
        except UserError as error:
            raise UserError(f"{path}: {str(error).removeprefix('campaign: ')}") from None

    @property
    def budget(self) -> int:
        """Samples that may be drawn."""
        return self.max_generated if self.max_generated is not None else 20 * self.n

    @property
    def folder(self) -> Path:
        """The output folder."""
        if self.output is not None:
            return Path(self.output).expanduser()
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", self.name).strip("._")
        return Path("runs") / (plain or "campaign")

    @property
    def canonical(self) -> str:
        """The campaign as JSON with sorted keys, without its output folder."""
        return json.dumps(
            self.model_dump(mode="json", exclude={"output"}), sort_keys=True, separators=(",", ":")
        )

    @property
    def sha256(self) -> str:
        """Identity: SHA-256 of `canonical`."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    def run(self, progress: bool = True, **options: Any) -> Result:
        """Run, or continue, until the library is written; see `driver.run`."""
        from driftworks.campaign.driver import run

        return run(self, progress=progress, **options)

    def status(self) -> dict[str, Any]:
        """Where the campaign stands in its output folder; see `driver.status`."""
        from driftworks.campaign.driver import status

        return status(self.folder)

    def dry_run(self, **options: Any) -> Estimate:
        """What the campaign will cost; see `estimate.dry_run`."""
        from driftworks.campaign.estimate import dry_run

        return dry_run(self, **options)


def load(path: str | Path, **changes: Any) -> Campaign:
    """Read a campaign from a TOML file; see `Campaign.load`."""
    return Campaign.load(path, **changes)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two canonical descriptions, one ``key: old -> new`` an entry."""
    a, b = dict(_flat(old)), dict(_flat(new))
    return [
        f"{key}: {json.dumps(a.get(key))} -> {json.dumps(b.get(key))}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, branch in tree.items():
            yield from _flat(branch, f"{path}.{key}" if path else key)
    else:
        yield path, tree


def _one_line(error: ValidationError) -> str:
    """The first complaint of pydantic as one line with its path and the choices there are."""
    complaints = error.errors(include_url=False)
    first = complaints[0]
    where = ".".join(str(step) for step in first["loc"])
    if first["type"] == "extra_forbidden":
        place, key = first["loc"][:-1], first["loc"][-1]
        inside = f" in [{'.'.join(map(str, place))}]" if place else ""
        line = f"unknown key {str(key)!r}{inside}; choose from {', '.join(_keys_at(place))}"
    elif first["type"] == "value_error":
        line = f"{where}: {first['ctx']['error']}" if where else str(first["ctx"]["error"])
    else:
        line = f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r:.80}"
    more = len(complaints) - 1
    line += f" (and {more} more)" if more else ""
    return " ".join(line.split())


def _keys_at(place: tuple[str | int, ...]) -> list[str]:
    """Keys that the table at `place` of a campaign may have."""
    model: Any = Campaign
    for step in place:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        field = model.model_fields.get(str(step))
        if field is None:
            continue
        model = field.annotation
        parts = [model, *get_args(model)]
        while parts and not (isinstance(parts[0], type) and issubclass(parts[0], BaseModel)):
            parts += get_args(parts.pop(0))
        model = parts[0] if parts else None
    return sorted(model.model_fields) if model is not None else []
