"""Real backbones where their files are there; random chains that print their seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from driftworks.data import backbones


def _table(data_dir: Path, name: str) -> backbones.Backbones:
    file = data_dir / name
    if not file.exists():
        pytest.skip(f"no {name} in {data_dir}")
    return backbones.read(file)


@pytest.fixture(scope="session")
def domains(data_dir: Path) -> backbones.Backbones:
    """249 domains of 40-128 residues, one a cluster, with complete backbones."""
    return _table(data_dir, "protein_fixture.npz")


@pytest.fixture(scope="session")
def all_backbones(data_dir: Path) -> backbones.Backbones:
    """7,742 chains of 40-256 residues with a split."""
    return _table(data_dir, "protein_backbones.npz")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a new seed each run; pytest shows the seed of a failing test."""
    seed = int(np.random.SeedSequence().entropy) % 2**32
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.fixture
def turn(rng):
    """A random proper rotation, uniform."""

    def draw() -> np.ndarray:
        q, r = np.linalg.qr(rng.normal(size=(3, 3)))
        q = q * np.sign(np.diag(r))
        return q * np.linalg.det(q)

    return draw
