"""Drives one campaign again and again, and kills it: ``python drive.py ORDERS.json``.

Everything heavy is imported once; every attempt is a fork that dies by SIGKILL at the place it was
told to, as a process would on ``kill -9``. The orders are a JSON list of attempts:

    {"at": "commit" | "committed" | "rename", "count": k}   before / after the k-th commit, before
                                                            the k-th file is renamed into place
    {"at": "time", "seconds": s}                            s seconds after the start
    {"at": "end"}                                           not at all

An attempt with "output" works in that folder, one with "together" starts that many drivers at once;
"copy" names a folder to which the campaign's is copied afterwards. Without "pictures" the attempts
leave the report out.

Prints the exit status of every attempt as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import pandas  # noqa: F401 (imported here so that no fork has to)
import pyarrow.parquet  # noqa: F401
from double import Descriptors3D, Double
from sqlalchemy.engine.default import DefaultDialect

from driftworks.campaign import Campaign, page
from driftworks.campaign import driver as driver  # noqa: F401


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(order: dict[str, Any]) -> None:
    """Arrange the end of this process."""
    left = order.get("count", 0)

    if order["at"] in ("commit", "committed"):
        commit = DefaultDialect.do_commit

        def counted(self: Any, connection: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0 and order["at"] == "commit":
                die()
            commit(self, connection)
            if left == 0:
                die()

        DefaultDialect.do_commit = counted
    elif order["at"] == "rename":
        replace = os.replace

        def renamed(*names: Any, **options: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                die()
            replace(*names, **options)

        os.replace = renamed
    elif order["at"] == "time":
        timer = threading.Timer(order["seconds"], die)
        timer.daemon = True
        timer.start()


def main(job: dict[str, Any]) -> list[int]:
    """The exit status of every attempt (negative: the signal)."""
    statuses = []
    if job["pictures"]:
        import matplotlib.backends.backend_agg  # noqa: F401
    else:
        page.report = lambda folder, store: folder
    for order in job["attempts"]:
        children = []
        for _ in range(order.get("together", 1)):
            if child := os.fork():
                children.append(child)
                continue
            code = 1
            try:
                if limit := order.get("file_size"):
                    import resource

                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                arm(order)
                oracle = Descriptors3D(pause=job.get("pause", 0.0), log=Path(job["log"]))
                spec = job["spec"] | {"output": order.get("output", job["spec"]["output"])}
                Campaign(**spec).run(
                    progress=False, generator=Double(), oracles={"shape": oracle}
                )
                code = 0
            except BaseException as error:  # noqa: B036 (this process ends here)
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                if type(error).__name__ != "UserError":
                    traceback.print_exc()
                code = 3
            os._exit(code)
        statuses += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if "copy" in order:
            shutil.copytree(job["spec"]["output"], order["copy"])
    return statuses


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
