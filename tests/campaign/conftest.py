"""The generator double as a fixture, and a small campaign that it serves in a second."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from driftworks.campaign import Campaign, Result, page

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def double() -> ModuleType:
    """The module ``double.py`` beside this file."""
    spec = spec_from_file_location("campaign_double", HERE / "double.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def drive(tmp_path: Path, double: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a small campaign with the double and one cheap oracle: ``drive(n=10, ...)``.

    The report, most of the time such a campaign takes, is left out unless `pictures`.
    """

    def run(
        generator: Any = None, measure: Any = None, pictures: bool = False, **changes: Any
    ) -> Result:
        if not pictures:
            monkeypatch.setattr(page, "report", lambda folder, store: None)
        spec: dict[str, Any] = {
            "targets": {"weight": 75.0, "tpsa": (20, 30)},
            "n": 12,
            "batch": 12,
            "seed": 5,
            "oracles": {"xtb": False},
            "output": str(tmp_path / "out"),
        }
        return Campaign(**{**spec, **changes}).run(
            progress=False,
            generator=generator if generator is not None else double.Double(),
            oracles=measure if measure is not None else {"shape": double.Descriptors3D()},
        )

    return run
