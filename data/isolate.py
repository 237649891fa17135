"""Calls on untrusted records in child processes that may be killed.

A parser or a valence search that hangs, crashes or eats the memory must cost one record and no
more. Each worker is a fresh interpreter fed one record at a time over a pipe: past the time limit
it is killed, the record is marked as failed, and a new worker goes on with the next. Records and
answers are lines of JSON, so nothing that a corrupted child says can run code here, and the
caller's script needs no ``if __name__ == "__main__"`` guard, as the main module is not imported
again.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

__all__ = ["Outcome", "Rejected", "default_workers", "isolated"]

STARTUP_LIMIT = 120.0  # seconds for a worker to import what it needs, on a busy machine
MEMORY_LIMIT = 4 << 30  # bytes of address space of a worker, where the system can limit it
_AHEAD = 128  # records that may be under way or wait for the outcome of an earlier one
# Short records are sent along before the ones ahead are answered, so that neither side waits for
# the other to be scheduled: as many as are worth this much work and fit into the buffer of a pipe.
# (Were they more, we could be blocked in a write to a worker that is blocked writing its answer.)
_WAITING_SECONDS = 0.02
_WAITING_BYTES = 12 << 10
_WAITING_RECORDS = 32


class Rejected(ValueError):
    """Raised by a task for a record that it refuses; the message is the reason."""


@dataclass(frozen=True)
class Outcome:
    """The task's answer for record number `index`, or why there is none."""

    index: int
    value: Any = None
    reason: str | None = None

    @property
    def ok(self) -> bool:
        return self.reason is None


def default_workers() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def isolated(
    task: str,
    records: Iterable[Any],
    *,
    limit: float = 10.0,
    workers: int = 1,
    imports: Sequence[str] = (),
) -> Iterator[Outcome]:
    """Outcomes of ``task(record)`` for every record, in order.

    Parameters
    ----------
    task: "package.module:function"; takes and returns what JSON can hold, raises `Rejected` for a
        record it refuses
    records: the arguments; read as they are needed, so they may be many
    limit: seconds of wall time for one record before its worker is killed
    workers: child processes
    imports: modules that the task will need; a worker loads them before its first record, whose
        time limit they do not touch

    Yields outcomes in the order of the records: a value, or a reason for a refused record, one that
    took too long, or one that ended its worker. Raises `RuntimeError` when workers cannot start.
    """
    source = iter(enumerate(records))
    source_lock, done = threading.Lock(), threading.Condition()
    outcomes: dict[int, Outcome] = {}
    state = {"next": 0, "taken": 0, "left": workers, "stop": False}
    errors: list[BaseException] = []
    running: set[_Worker] = set()

    def take() -> tuple[int, bytes] | None:
        with source_lock:
            entry = None if state["stop"] else next(source, None)
            state["taken"] += entry is not None
        return entry and (entry[0], json.dumps(entry[1]).encode() + b"\n")

    def serve() -> None:
        worker: _Worker | None = None
        queue: deque[tuple[int, bytes]] = deque()
        try:
            while not state["stop"]:
                if not queue:
                    with done:
                        done.wait_for(lambda: state["stop"] or _in_reach(state))
                while not queue or (worker and len(queue) < worker.depth and _in_reach(state)):
                    entry = take()
                    if entry is None:
                        break
                    queue.append(entry)
                if not queue:
                    return
                if worker is None:
                    worker = _Worker(task, limit, imports)
                    running.add(worker)
                    if state["stop"]:
                        return
                outcome = worker.call(queue)
                queue.popleft()
                if worker.dead:
                    running.discard(worker)
                    worker = None
                with done:
                    outcomes[outcome.index] = outcome
                    done.notify_all()
        except BaseException as error:  # handed to the caller below
            errors.append(error)
        finally:
            if worker is not None:
                worker.close()
            with done:
                state["left"] -= 1
                done.notify_all()

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while True:
            with done:
                done.wait_for(lambda: state["next"] in outcomes or not state["left"] or errors)
                if errors:
                    raise errors[0]
                if state["next"] not in outcomes:
                    return
                outcome = outcomes.pop(state["next"])
            yield outcome
            with done:
                state["next"] += 1
                done.notify_all()
    finally:
        with done:
            state["stop"] = True
            done.notify_all()
        for worker in list(running):  # the caller has enough: do not wait for a slow record
            worker.kill()
        for thread in threads:
            thread.join()


def _in_reach(state: dict[str, int]) -> bool:
    return state["taken"] < state["next"] + _AHEAD


class _Worker:
    """One child process and its pipes."""

    def __init__(self, task: str, limit: float, imports: Sequence[str]) -> None:
        self._limit = limit
        search = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        environment = dict(os.environ, PYTHONPATH=search)
        environment.setdefault("OMP_NUM_THREADS", "1")
        command = "import sys; from driftworks.data.isolate import _work; _work(*sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", command, task, str(limit), *imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._buffer = b""
        self._sent = 0  # records at the head of the queue that the child has been given
        self.depth = 1  # how many it may be given
        self.dead = False
        ready = self._line(time.monotonic() + STARTUP_LIMIT)
        if ready != b"ready":
            self.close()
            raise RuntimeError(f"a worker for {task} did not start: {ready!r}")

    def call(self, queue: deque[tuple[int, bytes]]) -> Outcome:
        """The outcome of the first record of the queue; those behind it may be sent along."""
        index = queue[0][0]
        try:
            answer = self._answer(queue)
        except BrokenPipeError:
            answer = b""
        if answer is None:
            self.close()
            return Outcome(index, reason=f"took longer than {self._limit:g} s")
        try:
            kind, value, seconds = json.loads(answer)
        except ValueError:
            self.close()
            return Outcome(index, reason="the reader crashed on this record")
        self.depth = min(_WAITING_RECORDS, 1 + int(_WAITING_SECONDS / max(seconds, 1e-6)))
        return Outcome(index, value=value) if kind == "ok" else Outcome(index, reason=str(value))

    def _answer(self, queue: deque[tuple[int, bytes]]) -> bytes | None:
        assert self._process.stdin is not None
        under_way = sum(len(line) for _, line in islice(queue, self._sent))
        for _, line in islice(queue, self._sent, self.depth):
            if self._sent and under_way + len(line) > _WAITING_BYTES:
                break
            self._process.stdin.write(line)
            self._sent += 1
            under_way += len(line)
        self._process.stdin.flush()
        answer = self._line(time.monotonic() + self._limit)
        self._sent -= 1
        return answer

    def _line(self, deadline: float) -> bytes | None:
        """The next line, b"" when the child has ended, None at the deadline."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                return None
            chunk = os.read(descriptor, 1 << 20)
            if not chunk:
                return b""
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self.dead = True
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # unsent bytes for a child that is gone
                    pass


def _limit_resources() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _work(task: str, limit: str, *imports: str) -> None:
    """Main loop of a child: a JSON record a line in, a JSON answer a line out."""
    # C++ libraries print where they like; the answers keep a descriptor of their own
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    module, name = task.split(":")
    function = cast(Callable[[Any], Any], getattr(importlib.import_module(module), name))
    for needed in imports:
        importlib.import_module(needed)
    _limit_resources()
    # an alarm with its default action ends a hung record even when the parent is no longer there
    alarm = getattr(signal, "alarm", lambda seconds: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    out.write(b"ready\n")
    out.flush()
    for line in sys.stdin.buffer:
        alarm(math.ceil(float(limit)) + 5)
        start = time.perf_counter()
        try:
            answer = ["ok", function(json.loads(line))]
        except Rejected as error:
            answer = ["failed", _one_line(error)]
        except Exception as error:
            answer = ["failed", f"{type(error).__name__}: {_one_line(error)}"]
        alarm(0)
        answer.append(time.perf_counter() - start)
        out.write(json.dumps(answer).encode() + b"\n")
        out.flush()
