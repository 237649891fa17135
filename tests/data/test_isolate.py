"""Records that hang, crash or eat memory cost one record each; the tasks are library functions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from driftworks.data.isolate import isolated


def reasons(task: str, records: list, **options) -> list:
    return [o.value if o.ok else o.reason for o in isolated(task, records, **options)]


@pytest.mark.parametrize("workers", [1, 2])
def test_answers_come_in_the_order_of_the_records(workers: int) -> None:
    numbers = [k * 0.5 for k in range(300)]
    assert reasons("math:sqrt", numbers, workers=workers) == [x**0.5 for x in numbers]


def test_a_refused_record_gives_a_reason_and_the_rest_goes_on() -> None:
    values = reasons("math:sqrt", [4.0, -1.0, "four", 9.0])
    assert values[0] == 2.0 and values[3] == 3.0
    assert values[1].startswith("ValueError") and values[2].startswith("TypeError")


def test_a_hung_record_is_killed_at_the_limit() -> None:
    start = time.monotonic()
    values = reasons("time:sleep", [0.0, 60.0, 0.0], limit=0.5)
    assert values == [None, "took longer than 0.5 s", None]
    assert time.monotonic() - start < 20


def test_a_crashed_worker_is_replaced() -> None:
    assert reasons("os:_exit", [3]) == ["the reader crashed on this record"]
    # reading address 0 ends the process with a segmentation fault
    values = reasons("ctypes:string_at", [0, 0])
    assert values == ["the reader crashed on this record"] * 2


def test_memory_is_bounded() -> None:
    values = reasons("builtins:bytearray", [1 << 40])
    assert values[0].startswith(("MemoryError", "the reader crashed"))


def test_an_abandoned_iteration_does_not_wait_for_a_slow_record() -> None:
    start = time.monotonic()
    outcomes = isolated("time:sleep", [0.0, 60.0, 60.0], limit=60, workers=2)
    assert next(outcomes).ok
    outcomes.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 20


def test_an_error_of_the_input_reaches_the_caller() -> None:
    def records():
        yield 1.0
        raise KeyError("input")

    with pytest.raises(KeyError, match="input"):
        list(isolated("math:sqrt", records(), workers=2))


def test_what_a_task_prints_does_not_disturb_the_answers() -> None:
    assert reasons("builtins:print", ["noise", "more"]) == [None, None]


def test_a_task_that_does_not_exist_is_an_error_not_a_failed_record() -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        list(isolated("math:no_such_function", [1.0]))


@pytest.mark.slow
def test_no_worker_outlives_a_killed_parent() -> None:
    """Buys: SIGKILL of the driver leaves no orphan, even inside a hung record."""
    script = (
        "from driftworks.data.isolate import isolated\n"
        "list(isolated('time:sleep', [1000.0], limit=1.0))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    children: list[int] = []
    listing = f"/proc/{parent.pid}/task"
    if not os.path.isdir(listing):
        parent.kill()
        pytest.skip("needs /proc to find the worker")
    while not children and time.monotonic() < deadline:
        for thread in os.listdir(listing):
            with open(f"{listing}/{thread}/children") as handle:
                children += [int(pid) for pid in handle.read().split()]
        time.sleep(0.02)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert children
    while time.monotonic() < deadline and any(map(_runs, children)):
        time.sleep(0.1)
    assert not any(map(_runs, children))


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as handle:
            return handle.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
