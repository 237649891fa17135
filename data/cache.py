"""Where downloads and built tables are kept between runs.

``DRIFTWORKS_CACHE`` names the folder; without it the platform's usual cache folder is used.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """The cache folder of this user; it need not exist yet."""
    chosen = os.environ.get("DRIFTWORKS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "driftworks"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        base = Path(local) if local else Path.home() / "AppData" / "Local"
        return base / "driftworks" / "Cache"
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "driftworks"
