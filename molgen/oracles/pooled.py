"""What the oracles that compute in child processes have in common."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from driftworks.errors import UserError
from driftworks.molgen.oracles.child import Pool
from driftworks.molgen.oracles.progress import tracked
from driftworks.molgen.oracles.protocol import Callback, OracleInput, OracleResult, refusal

__all__ = ["PooledOracle"]


class PooledOracle:
    """An oracle whose molecules are computed by the children of a `Pool`.

    A subclass names itself, its `engine`, the `elements` it covers and when to `recycle` a child,
    and calls this constructor.

    Args:
        settings: what decides the values; given to the engine and, with the names and versions
            of the programs, public as `settings`.
        jobs: molecules computed at the same time, one thread each; None for one per processor
            that this process may use.
        timeout: wall time per molecule and attempt [s].
        memory_mb: address space of a child [MiB], its programs included.

    Raises:
        UserError: a limit is not a positive number.
    """

    name: str
    title: str
    engine: str
    elements: range | frozenset[int]
    recycle: int

    def __init__(
        self, settings: dict[str, Any], jobs: int | None, timeout: float, memory_mb: float
    ) -> None:
        jobs = _processors() if jobs is None else jobs
        if not isinstance(jobs, int) or jobs < 1:
            raise UserError(f"{self.name} oracle: jobs must be a whole number above 0, not {jobs}")
        for option, value in {"timeout": timeout, "memory_mb": memory_mb}.items():
            if not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise UserError(
                    f"{self.name} oracle: {option} must be a positive number, not {value}"
                )
        self.settings = settings
        self.provides: dict[str, str] = {}
        self.jobs, self.timeout, self.memory_mb = jobs, float(timeout), float(memory_mb)
        self._pool = Pool(
            self.engine,
            settings,
            jobs=jobs,
            timeout=self.timeout,
            memory=int(memory_mb * 2**20),
            recycle=self.recycle,
        )
        self._lock = threading.Lock()

    def evaluate(
        self,
        mols: Sequence[OracleInput],
        progress: bool = False,
        callback: Callback | None = None,
    ) -> list[OracleResult]:
        """One result per molecule, in order; see `Oracle.evaluate`.

        Args:
            mols: the molecules.
            progress: show a bar on stderr.
            callback: called with (index, result) as results arrive. What it raises ends the
                evaluation, and the children that are at work.
        """
        results: list[OracleResult | None] = [None] * len(mols)
        asked: list[int] = []
        tasks: list[dict[str, Any]] = []
        with self._lock, tracked(self.title, len(mols), progress) as advance:

            def done(index: int, result: OracleResult) -> None:
                results[index] = result
                advance(result)
                if callback is not None:
                    callback(index, result)

            for index, mol in enumerate(mols):
                reason = refusal(mol, self.elements, self.title)
                if reason:
                    done(index, OracleResult("input", reason))
                    continue
                asked.append(index)
                tasks.append(
                    {
                        "numbers": [int(z) for z in mol.numbers],
                        "positions": np.asarray(mol.positions, dtype=float).tolist(),
                        "charge": int(mol.charge),
                    }
                )
            self._pool.run(tasks, lambda k, result: done(asked[k], result))
        return [result for result in results if result is not None]

    def close(self) -> None:
        """Ends the child processes; the next `evaluate` starts new ones."""
        self._pool.close()

    def __enter__(self) -> PooledOracle:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        limits = f"jobs={self.jobs}, timeout={self.timeout:g}, memory_mb={self.memory_mb:g}"
        return f"{type(self).__name__}({self.settings}, {limits})"


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
