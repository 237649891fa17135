"""The store's promises one by one: identity, idempotence, one driver, honest refusals."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from driftworks.campaign import Campaign, status, store
from driftworks.campaign.store import Store, Structure, result_key
from driftworks.errors import UserError
from driftworks.molgen.molecule import Molecules
from driftworks.molgen.oracles.protocol import OracleResult


def water(index: int = 0, **known: Any) -> Structure:
    return Structure(
        index,
        np.array([8, 1, 1], np.uint8),
        np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], np.float32),
        np.zeros(3, np.int8),
        np.array([[0, 1, 1], [0, 2, 1]], np.int16),
        **known,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "campaign.sqlite"


@pytest.fixture
def held(path: Path) -> Iterator[Store]:
    with Store(path, create=True) as opened, opened.driving():
        yield opened


def test_a_molecule_comes_back_as_it_went_in(held: Store) -> None:
    put = water(7, smiles="O", inchikey="XLYOFNOQVPJJNP-UHFFFAOYSA-N")
    held.add_batch(0, 0, 10, [put], {"not finite": 9}, 1.0)
    (got,) = held.structures(0)
    for name in ("numbers", "positions", "charges", "bonds"):
        np.testing.assert_array_equal(getattr(got, name), getattr(put, name))
        assert getattr(got, name).dtype == getattr(put, name).dtype
    assert (got.index, got.smiles, got.inchikey, got.loss) == (7, "O", put.inchikey, "")
    assert held.losses() == {"": 1, "not generated: not finite": 9}


def test_a_structure_and_a_row_of_molecules_are_the_same_thing(double: Any) -> None:
    batch = Molecules.cat([Molecules.from_rdkit([double.draw(1, i)]) for i in (4, 5, 6)])
    for row in range(3):
        one = Structure.of(batch, row, row).molecules()
        for name in ("numbers", "positions", "charges", "bonds", "mask"):
            wide = getattr(batch[row].padded(one.max_atoms), name)
            assert (getattr(one, name) == wide).all()


def test_the_same_batch_or_molecule_cannot_be_stored_twice(held: Store) -> None:
    held.add_batch(0, 0, 1, [water(0)], {}, 1.0)
    for number, index in ((0, 1), (1, 0)):
        with pytest.raises(UserError, match="UNIQUE"):
            held.add_batch(number, 1, 1, [water(index)], {}, 1.0)
    assert len(held.batches()) == 1 and len(held.structures()) == 1


def test_two_molecules_with_one_inchikey_are_refused_unless_one_is_a_duplicate(
    held: Store,
) -> None:
    twin = water(1, inchikey="K", loss="duplicate")
    held.add_batch(0, 0, 2, [water(0, inchikey="K"), twin], {}, 1.0)
    with pytest.raises(UserError, match="UNIQUE"):
        held.add_batch(1, 2, 1, [water(2, inchikey="K")], {}, 1.0)
    assert held.inchikeys() == {"K"}


def test_a_result_is_never_replaced(held: Store) -> None:
    held.add_batch(0, 0, 2, [water(0), water(1)], {}, 1.0)
    relaxed = np.arange(9.0).reshape(3, 3) / 7
    held.record("xtb", [(0, "k", OracleResult("ok", "", {"mu": 1 / 3}, relaxed, 2.0))])
    held.record("xtb", [(0, "k", OracleResult("crash", "", {}, None, 1.0)), (1, "k", None)])
    first, second = held.measurements("xtb")
    assert first.status == second.status == "ok"
    assert first.values == second.values == {"mu": 1 / 3}
    assert first.positions is not None
    np.testing.assert_array_equal(first.positions, relaxed)
    assert held.known(["k", "none"]) == {"k"}


@given(
    st.integers(0, 2),
    st.integers(0, 2),
    st.floats(-1e-3, 1e-3).filter(lambda d: abs(d) > 3e-6),
)
def test_the_key_sees_every_coordinate_but_not_the_noise_below_a_millionth(
    atom: int, axis: int, shift: float
) -> None:
    reference = result_key("xtb", {"relax": True}, water())
    moved = water().positions.copy()
    moved[atom, axis] += shift
    assert result_key("xtb", {"relax": True}, replace(water(), positions=moved)) != reference
    shaken = (water().positions.astype(np.float64) + 1e-9).astype(np.float64)
    same = replace(water(), positions=shaken)
    assert result_key("xtb", {"relax": True}, same) == reference


def test_the_key_sees_settings_elements_charges_bonds_and_oracle_but_not_the_index() -> None:
    reference = result_key("xtb", {"a": 1, "b": 2}, water())
    assert result_key("xtb", {"b": 2, "a": 1}, water(5)) == reference
    others = [
        result_key("dft", {"a": 1, "b": 2}, water()),
        result_key("xtb", {"a": 1, "b": 3}, water()),
        *(
            result_key("xtb", {"a": 1, "b": 2}, changed)
            for changed in (
                replace(water(), numbers=np.array([16, 1, 1], np.uint8)),
                replace(water(), charges=np.array([1, 0, 0], np.int8)),
                replace(water(), bonds=water().bonds[:1]),
            )
        ),
    ]
    assert len({reference, *others}) == 6


def test_a_store_belongs_to_one_campaign_and_says_what_differs(held: Store) -> None:
    held.agree(Campaign(n=5, targets={"mu": 4.0}).canonical, {"name": "m", "hash": "a" * 64})
    held.agree(Campaign(n=5, targets={"mu": 4.0}).canonical, {"name": "m", "hash": "a" * 64})
    with pytest.raises(UserError, match="holds another campaign .*n: 5 -> 6.*targets.mu.value"):
        held.agree(Campaign(n=6, targets={"mu": 3.0}).canonical)
    with pytest.raises(UserError, match="weights aaaaaaaaaaaa of 'm', these are bbbbbbbbbbbb"):
        held.agree(
            Campaign(n=5, targets={"mu": 4.0}).canonical, {"name": "m", "hash": "b" * 64}
        )


def test_a_second_driver_is_refused_while_the_first_lives_and_reads_all_the_same(
    held: Store, path: Path
) -> None:
    with Store(path) as other:
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* is running this"):
            with other.driving():
                pass
        assert other.fact("schema") == "1"
        with pytest.raises(UserError, match="another driver"):
            other.remember(x="y")


def test_a_driver_that_ends_leaves_the_store_free(path: Path) -> None:
    for _ in range(2):
        with Store(path, create=True) as opened, opened.driving():
            opened.remember(x="y")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_driver_is_replaced_at_once(path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path;"
        "from driftworks.campaign.store import Store;"
        f"s = Store(Path({str(path)!r}), create=True); d = s.driving(); d.__enter__();"
        "s.remember(x='y'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    with Store(path) as opened, opened.driving():
        assert opened.fact("x") == "y"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("changes", "alive"),
    [
        ({}, True),
        ({"started": "1"}, False),  # the process id was given to another process
        ({"pid": 2**22 + 1}, False),
        ({"machine": "elsewhere", "beat": -store.STALE - 1}, False),
        ({"machine": "elsewhere", "beat": -5.0}, True),
        ({"machine": "", "beat": -store.STALE - 1}, False),
    ],
)
def test_life_is_judged_by_process_here_and_by_heartbeat_elsewhere(
    changes: dict[str, Any], alive: bool
) -> None:
    import time

    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        row: dict[str, Any] = {
            "pid": process.pid,
            "started": store._started(process.pid),
            "machine": store._machine(),
            "token": "t",
            "beat": 0.0,
        } | changes
        row["beat"] += time.time()
        assert store._alive(SimpleNamespace(**row)) is alive
    finally:
        process.kill()
        process.wait()


def test_a_driver_that_was_taken_over_cannot_write_any_more(held: Store, path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE driver SET token = 'somebody else'")
    connection.close()
    with pytest.raises(UserError, match="taken this campaign over"):
        held.remember(x="y")


def test_the_heartbeat_renews_the_row(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(store, "BEAT", 0.05)
    with Store(path, create=True) as opened, opened.driving():
        query = sa.select(store._driver.c.beat)
        first = opened._read(query)[0][0]
        deadline = time.monotonic() + 20
        while opened._read(query)[0][0] == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert opened._read(query)[0][0] > first


def test_a_damaged_or_foreign_file_is_one_line(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(UserError, match="damaged, or no campaign store"):
        Store(path)
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(UserError, match="damaged, or no campaign store"):
        Store(other)
    with pytest.raises(UserError, match="no campaign here"):
        status(tmp_path / "nowhere")


def test_a_store_of_another_version_is_refused(path: Path) -> None:
    Store(path, create=True).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE fact SET value = '99' WHERE key = 'schema'")
    connection.close()
    with pytest.raises(UserError, match="tables of version 99, not 1"):
        Store(path)


def test_a_closed_store_is_one_file(path: Path) -> None:
    with Store(path, create=True) as opened, opened.driving():
        opened.remember(x="y")
    assert [p.name for p in path.parent.iterdir()] == [path.name]
