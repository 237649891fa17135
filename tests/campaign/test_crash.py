"""Killed anywhere and started again, a campaign ends with the library it would have had anyway."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from driftworks.campaign import status

HERE = Path(__file__).parent
FILES = ("library.sdf", "library.parquet")
SPEC: dict[str, Any] = {
    "name": "crash",
    "targets": {"weight": 75.0, "tpsa": [20, 30]},
    "n": 26,
    "batch": 12,
    "seed": 11,
    "oracles": {"xtb": False},
    "selection": {"size": 20},
}

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL"
)


def attempts(
    folder: Path, orders: list[dict[str, Any]], pause: float = 0.0, pictures: bool = False
) -> list[int]:
    """Exit statuses of these attempts at one campaign in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    job = {
        "spec": {**SPEC, "output": str(folder)},
        "attempts": orders,
        "log": str(folder / "asked.log"),
        "pause": pause,
        "pictures": pictures,
    }
    (folder / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, str(HERE / "drive.py"), str(folder / "job.json")],
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stderr
    # Whatever ends an attempt other than a kill is an error of one line.
    assert "Traceback" not in done.stderr, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def library(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def check_store(folder: Path) -> None:
    """Nothing lost, nothing twice, nothing left lying about."""
    state = status(folder)
    assert state["finished"] and sum(state["funnel"].values()) == state["generated"]
    with sqlite3.connect(folder / "campaign.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        batches = connection.execute("SELECT first, size FROM batch ORDER BY id").fetchall()
        assert connection.execute("SELECT count(*) FROM driver").fetchone() == (0,)
    connection.close()
    for (first, size), (following, _) in zip(batches, batches[1:], strict=False):
        assert first + size == following
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")], "left-over files"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert attempts(folder, [{"at": "end"}]) == [0]
    return folder


def test_a_campaign_killed_at_random_moments_ends_with_the_same_library(
    whole: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(20)
    orders: list[dict[str, Any]] = [
        {"at": "time", "seconds": float(s)} for s in rng.uniform(0.05, 1.2, 4)
    ]
    orders += [{"at": "commit", "count": int(k)} for k in rng.integers(6, 14, 2)]
    orders += [{"at": "committed", "count": int(k)} for k in rng.integers(6, 14, 2)]
    orders += [{"at": "rename", "count": 2}, {"at": "end"}, {"at": "end"}]
    statuses = attempts(tmp_path / "killed", orders, pause=0.02, pictures=True)
    assert statuses[-2:] == [0, 0]
    assert statuses[:-2].count(-signal.SIGKILL) >= 6, statuses
    assert library(tmp_path / "killed") == library(whole)
    check_store(tmp_path / "killed")
    # A flush interval of one second bounds what a kill can cost the oracle.
    asked = Counter((tmp_path / "killed" / "asked.log").read_text().split())
    assert len(asked) == len((whole / "asked.log").read_text().split())
    repeated = sum(asked.values()) - len(asked)
    assert repeated <= statuses.count(-signal.SIGKILL) * 12


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("at", "places"), [("commit", 40), ("committed", 40), ("rename", 6)])
def test_a_kill_at_every_single_transaction_and_rename_changes_nothing(
    at: str, places: int, whole: Path, tmp_path: Path
) -> None:
    """Every place where state changes hands, one fresh campaign each; a few minutes."""
    orders: list[dict[str, Any]] = []
    folders = [tmp_path / f"{at}-{count}" for count in range(1, places + 1)]
    for count, folder in enumerate(folders, start=1):
        orders.append({"at": at, "count": count, "output": str(folder)})
        orders.append({"at": "end", "output": str(folder)})
    statuses = attempts(tmp_path / "job", orders, pictures=at == "rename")
    killed, finished = statuses[::2], statuses[1::2]
    assert set(finished) == {0}
    kills = killed.count(-signal.SIGKILL)
    assert killed == [-signal.SIGKILL] * kills + [0] * (places - kills)
    assert 4 <= kills < places, "places must reach beyond the last one"
    for folder in folders:
        assert library(folder) == library(whole), folder
        check_store(folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_random_kills_lose_and_repeat_nothing(whole: Path, tmp_path: Path) -> None:
    """Twenty campaigns, ten kills each, at random times; a few minutes."""
    rng = np.random.default_rng(3)
    folders = [tmp_path / str(k) for k in range(20)]
    orders: list[dict[str, Any]] = []
    for folder in folders:
        orders += [
            {"at": "time", "seconds": float(s), "output": str(folder)}
            for s in rng.uniform(0.01, 0.5, 10)
        ]
        orders.append({"at": "end", "output": str(folder)})
    statuses = attempts(tmp_path / "job", orders, pause=0.01)
    assert set(statuses[10::11]) == {0}
    assert statuses.count(-signal.SIGKILL) >= 150
    for folder in folders:
        assert library(folder) == library(whole), folder
        check_store(folder)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_FSIZE semantics")
def test_a_full_disk_stops_a_campaign_that_continues_when_there_is_room(
    whole: Path, tmp_path: Path
) -> None:
    folder, first = tmp_path / "full", tmp_path / "first"
    orders: list[dict[str, Any]] = [
        {"at": "end", "file_size": 130_000, "copy": str(first)},  # no room for the state
        {"at": "end", "file_size": 200_000},  # none for the report
        {"at": "end"},
    ]
    assert attempts(folder, orders, pictures=True) == [3, 3, 0]
    state = status(first)
    assert state["generated"] > 0 and not state["finished"]
    store = {f"campaign.sqlite{suffix}" for suffix in ("", "-wal", "-shm")}
    assert {p.name for p in first.iterdir()} <= {"job.json", "asked.log", *store, *FILES}
    assert library(folder) == library(whole)
    check_store(folder)


def test_two_drivers_cannot_work_on_one_campaign(tmp_path: Path) -> None:
    folder = tmp_path / "contested"
    statuses = sorted(attempts(folder, [{"at": "end", "together": 2}], pause=0.05))
    assert statuses == [0, 3], "both drivers finished, or neither"
    asked = (folder / "asked.log").read_text().split()
    assert len(asked) == len(set(asked)), "a molecule was measured twice"
    check_store(folder)
