"""Campaigns: generate, check, filter, score, select and validate molecules, and survive any crash.

    from driftworks import campaign
    result = campaign.load("examples/dipole_gap.toml").run()

A campaign is a `Campaign` (a TOML file or a Python object); its whole state is one SQLite file in
its output folder. Names are imported on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

if not __name__.startswith("driftworks."):
    raise ImportError(
        f"this folder was imported as {__name__!r}; import it as driftworks.campaign "
        "(pip install -e . in the checkout makes that name available)"
    )

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from driftworks.campaign.driver import Result as Result
    from driftworks.campaign.driver import run as run
    from driftworks.campaign.driver import status as status
    from driftworks.campaign.estimate import dry_run as dry_run
    from driftworks.campaign.page import report as report
    from driftworks.campaign.spec import Campaign as Campaign
    from driftworks.campaign.spec import Target as Target
    from driftworks.campaign.spec import load as load

__all__ = ["Campaign", "Result", "Target", "dry_run", "load", "report", "run", "status"]

_HOMES = {
    "Campaign": "spec",
    "Target": "spec",
    "load": "spec",
    "Result": "driver",
    "run": "driver",
    "dry_run": "estimate",
    "status": "driver",
    "report": "page",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
