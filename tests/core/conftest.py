"""What tests of the core share."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def rng() -> Iterator[torch.Generator]:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    yield torch.Generator().manual_seed(seed)
