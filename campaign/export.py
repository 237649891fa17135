"""The library as a table and as files.

``library.sdf`` and ``library.parquet`` hold the generated geometries, best first, in the form that
``driftworks.molgen.Library`` reads back; ``validated.sdf`` the geometries and numbers of the DFT
calculations. Nothing in them depends on when, where or in how many attempts the campaign ran.

Columns: ``rank`` from 1, ``score`` in (0, 1], ``inchikey``, every target's property as the oracle
that counts gave it, ``target_<property>`` what was asked for, and ``<oracle>_<property>`` for every
number of every oracle, rounded to 1e-6.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from driftworks import __version__
from driftworks.campaign.store import Measurement, Store
from driftworks.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["table", "write_library"]


def table(store: Store) -> pd.DataFrame:
    """The chosen molecules, best first, one row each; see the module for the columns."""
    import pandas as pd

    from driftworks.campaign.driver import stored

    campaign = stored(store)
    chosen = store.structures(chosen=True)
    judges: dict[str, str] = json.loads(store.fact("judges") or "{}")
    frame: dict[str, Any] = {
        "rank": [s.rank for s in chosen],
        "index": [s.index for s in chosen],
        "smiles": [s.smiles for s in chosen],
        "inchikey": [s.inchikey for s in chosen],
        "score": [_rounded(s.score) for s in chosen],
    }
    measured = _by_oracle(store)
    for name, target in campaign.targets.items():
        of = measured.get(judges[name], {})
        frame[name] = [_value(of.get(s.index), name) for s in chosen]
        if target.value is not None:
            frame[f"target_{name}"] = [target.value] * len(chosen)
    for oracle, of in measured.items():
        properties = sorted({p for m in of.values() for p in m.values})
        for name in properties:
            frame[f"{oracle}_{name}"] = [_value(of.get(s.index), name) for s in chosen]
        if any(m.status != "ok" for m in of.values()) or oracle == "dft":
            answers = [of.get(s.index) for s in chosen]
            frame[f"{oracle}_status"] = [m.status if m is not None else "" for m in answers]
    return pd.DataFrame(frame)


def write_library(store: Store, folder: Path) -> None:
    """Write ``library.sdf``, ``library.parquet`` and, if there are any, ``validated.sdf``."""
    from driftworks.molgen.library import Library
    from driftworks.molgen.molecule import Molecules

    chosen = store.structures(chosen=True)
    rows = table(store)
    provenance = _provenance(store)

    def write(name: str, picked: Sequence[int], molecules: Any) -> None:
        part = rows.iloc[list(picked)]
        numbers = part.select_dtypes("number").drop(columns="index")
        targets = {c.removeprefix("target_"): c for c in numbers if c.startswith("target_")}
        library = Library(
            molecules=molecules,
            targets={k: numbers[c].to_numpy() for k, c in targets.items()},
            seed=provenance["seed"],
            indices=part["index"].to_numpy(),
            properties={
                c: numbers[c].to_numpy(np.float64)
                for c in numbers
                if c not in targets.values() and not numbers[c].isna().all()
            },
            provenance=provenance,
        )
        library.write(folder / name)

    everything = range(len(chosen))
    molecules = Molecules.cat([s.molecules() for s in chosen])
    for name in ("library.sdf", "library.parquet"):
        write(name, everything, molecules)
    computed = {m.molecule: m for m in store.measurements("dft") if m.status == "ok"}
    picked = [i for i in everything if chosen[i].index in computed]
    if picked:
        at = [chosen[i].moved(computed[chosen[i].index].positions) for i in picked]
        write("validated.sdf", picked, Molecules.cat([s.molecules() for s in at]))
    else:
        try:
            (folder / "validated.sdf").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{folder / 'validated.sdf'}: {error.strerror}") from None


def _provenance(store: Store) -> dict[str, Any]:
    from driftworks.campaign.driver import funnel, stored

    campaign = stored(store)
    return {
        "campaign": json.loads(campaign.canonical),
        "spec_sha256": campaign.sha256,
        "seed": campaign.seed,
        "model": json.loads(store.fact("model") or "{}"),
        "judges": json.loads(store.fact("judges") or "{}"),
        "funnel": funnel(store),
        "driftworks": __version__,
    }


def _by_oracle(store: Store) -> dict[str, dict[int, Measurement]]:
    """Oracle -> sample number -> measurement."""
    out: dict[str, dict[int, Measurement]] = {}
    for measurement in store.measurements():
        out.setdefault(measurement.oracle, {})[measurement.molecule] = measurement
    return out


def _value(measurement: Measurement | None, name: str) -> float:
    return _rounded(measurement.values.get(name) if measurement is not None else None)


def _rounded(x: float | None) -> float:
    return math.nan if x is None else round(x, 6)
