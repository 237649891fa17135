"""What all tests share: where data sets lie, one thread a process, global random state left alone.

The library draws every random number from keys or from a generator it was given, so a test that
changes the state of a global generator has found a fault, unless it says (mark ``global_rng``) that
code which is not ours draws there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before torch is imported anywhere: the workers of xdist share the machine's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with data sets: ``DRIFTWORKS_DATA``, else ``shared/data`` beside the checkout."""
    named = os.environ.get("DRIFTWORKS_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets: {folder} is not a folder (set DRIFTWORKS_DATA)")
    return folder


def _global_state() -> dict[str, object]:
    state: dict[str, object] = {}
    if (numpy := sys.modules.get("numpy")) is not None:
        name, keys, *rest = numpy.random.get_state()
        state["numpy.random"] = (name, keys.tobytes(), *rest)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_rng_state"):
        state["torch"] = torch.get_rng_state().numpy().tobytes()
    return state


@pytest.fixture(autouse=True)
def global_random_state_is_left_alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that changes the state of a global random generator."""
    before = _global_state()
    yield
    if request.node.get_closest_marker("global_rng"):
        return
    after = _global_state()
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, f"this test changed the global random state of: {', '.join(changed)}"
