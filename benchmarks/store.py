"""Measurements a stopped benchmark need not make again: JSON lines of [settings, what came]."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Store"]


class Store:
    """What is drawn and measured already, by its settings; in a file where one is named."""

    def __init__(self, path: Path | None):
        self.path = path
        self.known: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            for line in path.read_text().splitlines():
                try:
                    key, value = json.loads(line)
                except ValueError:
                    continue  # a run was cut while it wrote
                self.known[key] = value

    def get(self, key: Sequence[Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        name = " | ".join(str(part) for part in key)
        if name not in self.known:
            self.known[name] = make()
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                begun = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
                with open(self.path, "a") as file:
                    file.write("\n" * begun + json.dumps([name, self.known[name]]) + "\n")
        return self.known[name]
