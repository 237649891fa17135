"""The examples run from one end to the other and leave their pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def test_there_are_examples():
    assert {"tour_2d", "distill_in_two_minutes", "bring_your_own_network"} <= {
        script.stem for script in SCRIPTS
    }


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_example_runs_and_saves_its_picture(script, tmp_path):
    picture = tmp_path / "picture.png"
    run = subprocess.run(
        [sys.executable, str(script), "--out", str(picture)], capture_output=True, text=True,
        timeout=1200, check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size > 20_000
    assert run.stdout.strip()
