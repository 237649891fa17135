"""Children that are killed, starve, lie or vanish concern the molecule that they hold only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from driftworks.molgen.oracles.child import Pool

POISON = """
import ctypes, math, os, subprocess, sys, time
from pathlib import Path
from driftworks.molgen.oracles.protocol import Failure


def engine(settings):
    if settings.get("broken"):
        raise ImportError("no such library")
    folder = Path(settings["folder"])

    def compute(task):
        kind = task["do"]
        with open(folder / f"calls-{task['n']}", "a") as calls:
            calls.write(f"{os.getpid()} ")
        calls = len((folder / f"calls-{task['n']}").read_text().split())
        if kind == "sleep":
            time.sleep(60)
        if kind == "spin":
            while True:
                pass
        if kind == "grandchild":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            (folder / "grandchild").write_text(str(child.pid))
            time.sleep(60)
        if kind == "memory":
            block = bytearray(8 << 30)
        if kind == "half":
            block = bytearray(int(0.6 * settings["memory"]))
        if kind == "sigkill" or (kind == "sigkill once" and calls == 1):
            os.kill(os.getpid(), 9)
        if kind == "segfault":
            ctypes.string_at(0)
        if kind == "exit":
            sys.stdout.write("not a frame"); sys.stdout.flush()
            os._exit(3)
        if kind == "noise":
            print("library chatter", flush=True); os.write(1, b"more of it")
        if kind == "raise":
            raise ZeroDivisionError("a bug")
        if kind == "convergence":
            raise Failure("convergence", "no solution")
        return {"x": math.nan if kind == "nan" else task["n"], "pid": os.getpid()}, None, ""

    return compute
"""


@pytest.fixture
def poison(tmp_path, monkeypatch):
    """pool(jobs, ...) whose engine does what each task says."""
    (tmp_path / "poison_engine.py").write_text(POISON)
    monkeypatch.syspath_prepend(str(tmp_path))
    pools = []

    def make(jobs=2, timeout=20.0, memory=1 << 30, recycle=100, **settings):
        settings = {"folder": str(tmp_path), "memory": memory, **settings}
        pool = Pool(
            "poison_engine:engine",
            settings,
            jobs=jobs,
            timeout=timeout,
            memory=memory,
            recycle=recycle,
        )
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


def run(pool, kinds):
    results = {}
    tasks = [{"do": kind, "n": n} for n, kind in enumerate(kinds)]
    pool.run(tasks, lambda n, result: results.setdefault(n, []).append(result))
    assert sorted(results) == list(range(len(kinds)))
    assert all(len(answers) == 1 for answers in results.values())
    return [results[n][0] for n in range(len(kinds))]


def calls(folder, n):
    return len((folder / f"calls-{n}").read_text().split())


def alive(pid):
    """Whether a process exists and is not merely waiting to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_poison_is_typed_and_its_neighbours_are_computed(poison, tmp_path):
    kinds = ["ok", "sigkill", "ok", "raise", "nan", "ok", "memory", "convergence", "segfault"]
    kinds += ["exit", "noise", "ok"]
    results = run(poison(), kinds)
    assert [r.status for r in results] == [
        "ok", "crash", "ok", "crash", "nan", "ok", "resource", "convergence", "crash",
        "crash", "ok", "ok",
    ]  # fmt: skip
    assert [r.values["x"] for r in results if r.ok] == [0, 2, 5, 10, 11]
    assert "SIGKILL" in results[1].reason
    assert "ZeroDivisionError: a bug" in results[3].reason
    assert "x" in results[4].reason
    assert results[7].reason == "no solution"
    assert "SIGSEGV" in results[8].reason
    assert "exit status 3" in results[9].reason
    # crash and resource are tried once more, nothing else is
    assert [calls(tmp_path, n) for n in range(12)] == [1, 2, 1, 2, 1, 1, 2, 1, 2, 2, 1, 1]


@pytest.mark.parametrize("kind", ["sleep", "spin"])
def test_the_deadline_is_kept_within_two_seconds(poison, kind):
    pool = poison(jobs=2, timeout=1.0)
    run(pool, ["ok", "ok"])
    start = time.monotonic()
    slow, quick = run(pool, [kind, "ok"])
    assert slow.status == "timeout" and quick.ok
    assert 1.0 <= time.monotonic() - start < 3.0
    assert slow.seconds < 3.0


def test_a_deadline_takes_the_grandchildren_along(poison, tmp_path):
    [result] = run(poison(jobs=1, timeout=1.5), ["grandchild"])
    assert result.status == "timeout"
    pid = int((tmp_path / "grandchild").read_text())
    wait_until(lambda: not alive(pid), 2.0)


def test_the_second_attempt_may_use_the_memory_that_the_first_may_not(poison, tmp_path):
    [result] = run(poison(jobs=1), ["half"])
    assert result.ok
    assert calls(tmp_path, 0) == 2


def test_a_child_that_was_killed_once_is_forgiven(poison, tmp_path):
    [result] = run(poison(jobs=1), ["sigkill once"])
    assert result.ok
    assert calls(tmp_path, 0) == 2


def test_children_stay_warm_and_are_replaced_when_due(poison):
    pool = poison(jobs=1, recycle=3)
    first = [r.values["pid"] for r in run(pool, ["ok"] * 2)]
    later = [r.values["pid"] for r in run(pool, ["ok"] * 3)]
    assert first[0] == first[1] == later[0] != later[1] == later[2]


def test_a_child_that_dies_in_its_sleep_costs_nothing(poison, tmp_path):
    pool = poison(jobs=1)
    [before] = run(pool, ["ok"])
    pid = int(before.values["pid"])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid))
    [after] = run(pool, ["ok"])
    assert after.ok and after.values["pid"] != pid
    assert calls(tmp_path, 0) == 2


def test_a_program_that_cannot_start_answers_all_and_gives_up_early(poison):
    start = time.monotonic()
    results = run(poison(jobs=2, broken=True), ["ok"] * 200)
    assert {r.status for r in results} == {"crash"}
    assert all("could not start: ImportError: no such library" in r.reason for r in results)
    assert time.monotonic() - start < 10


def test_closing_ends_the_children_and_removes_their_scratch(poison, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pool = poison(jobs=2)
    pids = {int(r.values["pid"]) for r in run(pool, ["ok"] * 8)}
    assert list(tmp_path.glob("driftworks-oracle-*"))
    pool.close()
    assert not any(alive(pid) for pid in pids)
    assert not list(tmp_path.glob("driftworks-oracle-*"))


def test_an_exception_out_of_the_callback_ends_the_children_at_work(poison, tmp_path):
    pool = poison(jobs=2)

    def stop(index, result):
        wait_until((tmp_path / "calls-1").exists)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.run([{"do": "ok", "n": 0}, {"do": "sleep", "n": 1}], stop)
    pid = int((tmp_path / "calls-1").read_text().split()[0])
    assert not alive(pid)
    assert [r.status for r in run(pool, ["ok"])] == ["ok"]


def test_a_parent_that_is_killed_leaves_no_orphan_and_no_scratch(poison, tmp_path):
    script = textwrap.dedent(f"""
        import sys, tempfile
        sys.path.insert(0, {str(tmp_path)!r})
        tempfile.tempdir = {str(tmp_path)!r}
        from driftworks.molgen.oracles.child import Pool
        pool = Pool("poison_engine:engine", {{"folder": {str(tmp_path)!r}}},
                    jobs=1, timeout=60, memory=1 << 30, recycle=9)
        pool.run([{{"do": "spin", "n": 0}}], print)
    """)
    poison()
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        wait_until(lambda: (tmp_path / "calls-0").exists() and (tmp_path / "calls-0").read_text())
    finally:
        parent.kill()
        parent.wait()
    pid = int((tmp_path / "calls-0").read_text().split()[0])
    wait_until(lambda: not alive(pid), 3.0)
    wait_until(lambda: not list(tmp_path.glob("driftworks-oracle-*")), 3.0)


def test_children_dump_no_core_and_compute_on_one_thread(poison, tmp_path):
    (tmp_path / "limits_engine.py").write_text(
        "import os, resource\n"
        "def engine(settings):\n"
        "    def compute(task):\n"
        "        core = resource.getrlimit(resource.RLIMIT_CORE)[0]\n"
        "        cpu = resource.getrlimit(resource.RLIMIT_CPU)[0]\n"
        "        space = resource.getrlimit(resource.RLIMIT_AS)[0]\n"
        "        threads = float(os.environ['OMP_NUM_THREADS'])\n"
        "        values = {'core': core, 'cpu': cpu, 'space': space, 'threads': threads}\n"
        "        values['session'] = float(os.getsid(0) == os.getpid())\n"
        "        return values, [[1.5, 2.5, -3.0]], 'a remark'\n"
        "    return compute\n"
    )
    pool = poison(jobs=1, timeout=7.0)
    pool.engine = "limits_engine:engine"
    [result] = run(pool, ["ok"])
    assert result.ok and result.reason == "a remark"
    assert result.values["core"] == 0 and result.values["threads"] == 1
    assert 7 <= result.values["cpu"] <= 15 and result.values["space"] == 1 << 29
    assert result.values["session"] == 1
    assert result.positions.tolist() == [[1.5, 2.5, -3.0]]
