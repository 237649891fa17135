"""The child's side of a killable computation: ``python -m driftworks.molgen.oracles.worker``.

It reads frames on stdin (4 bytes of length, big-endian, then JSON) and answers each on stdout:

    <- {"engine": "module:function", "settings": {...}, "memory": bytes, "scratch": folder}
    -> {"ready": true}                      after engine = function(settings)
    <- {"task": {...}, "seconds": s, "memory": bytes}
    -> {"status": ..., "reason": ..., "values": {...}, "positions": [[...]] | null}

Address space, CPU time and core dumps are limited before anything is computed. A thread waits on
stdin, so that a parent that dies, even by SIGKILL, takes this process and its scratch folder along
within a second, in the middle of a computation too.
"""

from __future__ import annotations

import json
import math
import os
import resource
import select
import shutil
import signal
import struct
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from queue import SimpleQueue
from typing import Any, BinaryIO

from driftworks.molgen.oracles.protocol import Failure

__all__ = ["HEADER", "Engine", "frame", "main"]

HEADER = struct.Struct(">I")

#: What ``engine(settings)`` returns: task -> (values, relaxed positions or None, remark).
Engine = Callable[[dict[str, Any]], tuple[dict[str, float], Any, str]]

#: CPU seconds beyond the wall deadline after which the kernel ends a child that nobody killed.
_CPU_MARGIN = 5


def frame(message: dict[str, Any]) -> bytes:
    """`message` as it travels."""
    body = json.dumps(message).encode()
    return HEADER.pack(len(body)) + body


def main() -> None:
    """Serves until stdin ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the frames
    frames: SimpleQueue[dict[str, Any]] = SimpleQueue()
    parent, scratch = os.getppid(), os.environ["TMPDIR"]
    threading.Thread(target=_listen, args=(frames, parent, scratch), daemon=True).start()

    setup = frames.get()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_AS, setup["memory"])
    try:
        module, _, function = setup["engine"].partition(":")
        engine: Engine = getattr(import_module(module), function)(setup["settings"])
    except BaseException as error:  # noqa: B036 (reported, then this process ends)
        _send(replies, {"failed": True, **_failure(error)})
        return
    _send(replies, {"ready": True})
    while True:
        order = frames.get()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        spent = math.ceil(usage.ru_utime + usage.ru_stime + order["seconds"])
        _limit(resource.RLIMIT_CPU, spent + _CPU_MARGIN)
        _limit(resource.RLIMIT_AS, order["memory"])
        _send(replies, _answer(engine, {**order["task"], "memory": order["memory"]}))


def _listen(frames: SimpleQueue[dict[str, Any]], parent: int, scratch: str) -> None:
    """Queues the frames of stdin; ends the process group when there is no parent any more."""
    try:
        data = b""
        while True:
            while not select.select([0], [], [], 1.0)[0]:
                if os.getppid() != parent:
                    raise EOFError
            chunk = os.read(0, 1 << 16)
            if not chunk:
                raise EOFError
            data += chunk
            while len(data) >= HEADER.size:
                end = HEADER.size + HEADER.unpack_from(data)[0]
                if len(data) < end:
                    break
                frames.put(json.loads(data[HEADER.size : end]))
                data = data[end:]
    finally:  # whatever stopped this thread, a process that nobody can reach must not go on
        shutil.rmtree(scratch, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)


def _limit(kind: int, soft: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    try:
        resource.setrlimit(kind, (soft, hard))
    except (ValueError, OSError):  # macOS knows RLIMIT_AS but does not set it
        if sys.platform.startswith("linux"):
            raise


def _answer(engine: Engine, task: dict[str, Any]) -> dict[str, Any]:
    try:
        values, positions, remark = engine(task)
    except BaseException as error:  # noqa: B036 (whatever it is, it is this molecule's outcome)
        return _failure(error)
    bad = sorted(key for key, value in values.items() if not math.isfinite(value))
    if bad:
        return {"status": "nan", "reason": f"not finite: {', '.join(bad)}"}
    values = {key: float(value) for key, value in values.items()}
    return {"status": "ok", "reason": remark, "values": values, "positions": positions}


def _failure(error: BaseException) -> dict[str, Any]:
    if isinstance(error, Failure):
        return {"status": error.status, "reason": error.reason}
    if isinstance(error, MemoryError):
        return {"status": "resource", "reason": f"out of memory: {error}".rstrip(": ")}
    text = " ".join(str(error).split())[:300]
    return {"status": "crash", "reason": f"{type(error).__name__}: {text}"}


def _send(replies: BinaryIO, message: dict[str, Any]) -> None:
    replies.write(frame(message))
    replies.flush()


if __name__ == "__main__":
    main()
