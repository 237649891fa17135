"""Computations that can be killed: a few warm child processes behind one event loop.

Quantum chemistry hangs, eats the memory or takes the interpreter down, and a worker that dies
inside ``concurrent.futures`` takes the whole batch with it. Here every task runs in a child of its
own session, with limits on address space and CPU time; at the deadline its process group is
killed, and only the molecule it held is concerned. A child that behaves is kept for many tasks,
because starting one costs more than most molecules.

Policy, per task: running out of memory and dying are tried once more, in a fresh child; the first
attempt may use half of the allowed memory, the second all of it, so that one limit holds for both.
No other failure is repeated.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import driftworks
from driftworks.molgen.oracles.protocol import OracleResult, Status
from driftworks.molgen.oracles.worker import HEADER, frame

__all__ = ["Pool"]

#: Seconds in which a child must have imported its program.
_STARTUP = 120.0
#: Children that fail to start, in a row, before the rest of the tasks is given up.
_FAILED_STARTS = 3
_ATTEMPTS = 2
_SINGLE_THREADED = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class _Child:
    """One process, its pipes and its scratch folder."""

    def __init__(self, engine: str, settings: dict[str, Any], memory: int) -> None:
        self.scratch = tempfile.mkdtemp(prefix="driftworks-oracle-")
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `end`)
        root = str(Path(driftworks.__file__).resolve().parents[1])
        path = [root, *(os.path.abspath(entry) for entry in sys.path if entry)]
        environment = {
            **os.environ,
            **dict.fromkeys(_SINGLE_THREADED, "1"),
            "OMP_STACKSIZE": "64M",  # tblite keeps its work arrays on the stack
            "TMPDIR": self.scratch,
            "PYSCF_TMPDIR": self.scratch,
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "driftworks.molgen.oracles.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            start_new_session=True,
            env=environment,
            cwd=self.scratch,
            bufsize=0,
        )
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self._end = weakref.finalize(self, _end, self.process, self.scratch, os.getpid())
        self._data = b""
        self.tasks = 0
        self.ready = False
        self.send({"engine": engine, "settings": settings, "memory": memory})

    def send(self, message: dict[str, Any]) -> None:
        """Sends a frame; to a child that is gone, nothing (its end is read from stdout)."""
        data = memoryview(frame(message))
        try:
            while data:
                data = data[self.stdin.write(data) or 0 :]
        except BrokenPipeError:
            pass

    def receive(self) -> list[dict[str, Any]] | None:
        """The frames that have arrived, once stdout is readable; None when the child is gone."""
        chunk = os.read(self.stdout.fileno(), 1 << 16)
        if not chunk:
            return None
        self._data += chunk
        messages = []
        while len(self._data) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(self._data)[0]
            if len(self._data) < end:
                break
            messages.append(json.loads(self._data[HEADER.size : end]))
            self._data = self._data[end:]
        return messages

    def post_mortem(self) -> tuple[Status, str]:
        """Why the child is gone, from its exit status and the end of what it printed."""
        code = self.process.wait()
        self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, self.errors.tell() - 4000))
        printed = self.errors.read().decode(errors="replace")
        last = next((line.strip() for line in reversed(printed.splitlines()) if line.strip()), "")
        if code == -signal.SIGXCPU:
            return "timeout", "CPU time limit"
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        reason = f"the child process ended with {how}" + (f": {last[:200]}" if last else "")
        exhausted = re.search(r"MemoryError|[Cc]annot allocate|alloc\w* (failed|error)", printed)
        if exhausted or "Error allocating" in printed:
            return "resource", reason
        return "crash", reason

    def end(self) -> None:
        """Kills the process group, reaps the process, removes the scratch folder."""
        self._end()
        self.stdin.close()
        self.stdout.close()
        self.errors.close()


def _end(process: subprocess.Popen[bytes], scratch: str, owner: int) -> None:
    if os.getpid() != owner:  # a fork of the owner has nothing to end
        return
    if process.returncode is None:  # not reaped yet, so the id cannot belong to anybody else
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    shutil.rmtree(scratch, ignore_errors=True)


@dataclass(eq=False)
class _Slot:
    """A place for one child and the task it holds."""

    child: _Child | None = None
    index: int = -1
    attempt: int = 0
    spent: float = 0.0
    started: float = 0.0
    deadline: float = 0.0

    @property
    def busy(self) -> bool:
        return self.index >= 0

    def discard(self) -> None:
        if self.child is not None:
            self.child.end()
        self.child = None


class Pool:
    """Warm children that run one kind of task.

    Args:
        engine: "module:function"; the function takes `settings` and returns a
            `driftworks.molgen.oracles.worker.Engine`.
        settings: JSON-able argument of that function.
        jobs: children at work at the same time, one thread each.
        timeout: wall time of one attempt at a task [s].
        memory: address space of a child [bytes].
        recycle: tasks after which a child is replaced.
    """

    def __init__(
        self,
        engine: str,
        settings: dict[str, Any],
        *,
        jobs: int,
        timeout: float,
        memory: int,
        recycle: int,
    ) -> None:
        self.engine, self.settings = engine, settings
        self.timeout, self.memory, self.recycle = timeout, memory, recycle
        self._slots = [_Slot() for _ in range(jobs)]
        self._failed_starts = 0
        self._last_failure: tuple[Status, str] = ("crash", "")

    def run(
        self, tasks: Sequence[dict[str, Any]], done: Callable[[int, OracleResult], None]
    ) -> None:
        """Calls ``done(index, result)`` once for each of `tasks`, in the order they finish.

        An exception out of `done`, KeyboardInterrupt included, ends the children at work and
        passes through.
        """
        waiting = deque((index, 1, 0.0) for index in range(len(tasks)))
        self._failed_starts = 0

        def finish(slot: _Slot, status: Status, reason: str, message: dict[str, Any]) -> None:
            index, attempt = slot.index, slot.attempt
            spent = slot.spent
            if slot.child is None or slot.child.ready:
                spent += time.monotonic() - slot.started
            slot.index = -1
            if status in ("resource", "crash", "timeout"):
                slot.discard()
            elif slot.child is not None and slot.child.tasks >= self.recycle:
                slot.discard()
            if status in ("resource", "crash") and attempt < _ATTEMPTS:
                waiting.appendleft((index, attempt + 1, spent))
                return
            positions = message.get("positions")
            done(
                index,
                OracleResult(
                    status,
                    reason,
                    message.get("values") or {},
                    None if positions is None else np.array(positions, dtype=float),
                    spent,
                ),
            )

        try:
            while waiting or any(slot.busy for slot in self._slots):
                while self._failed_starts >= _FAILED_STARTS and waiting:
                    index, _, spent = waiting.popleft()
                    done(index, OracleResult(*self._last_failure, seconds=spent))
                for slot in self._slots:
                    if waiting and not slot.busy:
                        index, attempt, spent = waiting.popleft()
                        self._start(slot, tasks[index], index, attempt, spent)
                self._turn(finish)
        finally:
            for slot in self._slots:
                if slot.busy:
                    slot.discard()
                    slot.index = -1

    def _start(
        self, slot: _Slot, task: dict[str, Any], index: int, attempt: int, spent: float
    ) -> None:
        if slot.child is not None and slot.child.process.poll() is not None:
            slot.discard()  # it died in its sleep: nobody's task
        if slot.child is None:
            slot.child = _Child(self.engine, self.settings, self.memory)
        slot.index, slot.attempt, slot.spent = index, attempt, spent
        slot.child.tasks += 1
        memory = self.memory // 2 if attempt < _ATTEMPTS else self.memory
        slot.child.send({"task": task, "seconds": self.timeout, "memory": memory})
        slot.started = time.monotonic()
        slot.deadline = slot.started + (self.timeout if slot.child.ready else _STARTUP)

    def _turn(self, finish: Callable[[_Slot, Status, str, dict[str, Any]], None]) -> None:
        """Waits for the next thing to happen, and handles all that has happened."""
        busy = [slot for slot in self._slots if slot.busy]
        if not busy:
            return
        with selectors.DefaultSelector() as selector:
            for slot in busy:
                assert slot.child is not None
                selector.register(slot.child.stdout, selectors.EVENT_READ, slot)
            wait = max(0.0, min(slot.deadline for slot in busy) - time.monotonic())
            arrived = [key.data for key, _ in selector.select(wait)]
        for slot in arrived:
            self._read(slot, finish)
        for slot in busy:
            if slot.busy and slot not in arrived and time.monotonic() >= slot.deadline:
                assert slot.child is not None
                if slot.child.ready:
                    finish(slot, "timeout", f"more than {self.timeout:g} s", {})
                else:
                    self._failed(slot, "timeout", f"no start within {_STARTUP:g} s", finish)

    def _read(
        self, slot: _Slot, finish: Callable[[_Slot, Status, str, dict[str, Any]], None]
    ) -> None:
        assert slot.child is not None
        messages = slot.child.receive()
        if messages is None:
            status, reason = slot.child.post_mortem()
            if slot.child.ready:
                finish(slot, status, reason, {})
            else:
                self._failed(slot, status, reason, finish)
            return
        for message in messages:
            if message.get("ready"):
                slot.child.ready = True
                self._failed_starts = 0
                slot.started = time.monotonic()
                slot.deadline = slot.started + self.timeout
            elif message.get("failed"):
                self._failed(slot, message["status"], message["reason"], finish)
            else:
                finish(slot, message["status"], message["reason"], message)

    def _failed(
        self,
        slot: _Slot,
        status: Status,
        reason: str,
        finish: Callable[[_Slot, Status, str, dict[str, Any]], None],
    ) -> None:
        """A child that could not start."""
        self._failed_starts += 1
        self._last_failure = (status, f"the child process could not start: {reason}")
        slot.discard()
        finish(slot, *self._last_failure, {})

    def close(self) -> None:
        """Ends all children; `run` starts new ones."""
        for slot in self._slots:
            slot.discard()
