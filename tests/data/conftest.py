"""Small tables and a private cache folder for the tests of ``data``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from driftworks.data import Failure, Molecule, MoleculeTable


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("DRIFTWORKS_CACHE", str(folder))
    return folder


def make_table(count: int = 7, seed: int = 0, properties: tuple[str, ...] = ("mu", "x y")):
    """A table of random graphs; molecule 2 has no bonds and molecule 3 a single atom."""
    rng = np.random.default_rng(seed)
    molecules = []
    for i in range(count):
        size = 1 if i == 3 else int(rng.integers(2, 9))
        pairs = [(a, a + 1) for a in range(size - 1)] if i != 2 else []
        molecules.append(
            Molecule(
                id=f"m:{i}" if i else "m:ä€",
                smiles="C" * size if i != 4 else "",
                numbers=rng.integers(1, 10, size).astype(np.uint8),
                positions=rng.normal(size=(size, 3)).astype(np.float32),
                charges=rng.integers(-1, 2, size).astype(np.int8),
                bonds=np.array([(a, b, rng.integers(1, 4)) for a, b in pairs], np.int16).reshape(
                    -1, 3
                ),
                properties={name: float(rng.normal()) for name in properties if i != 5},
            )
        )
    return MoleculeTable.from_molecules(
        molecules,
        units={name: "debye" if name == "mu" else "" for name in properties},
        source="made up",
        failures=[Failure(9, 'why, "so"\nand on', "nine")],
        split=rng.integers(-1, 3, count).astype(np.int8),
        status=rng.integers(0, 4, count).astype(np.int8),
        uncharacterized=rng.random(count) < 0.3,
    )


@pytest.fixture
def table() -> MoleculeTable:
    return make_table()
