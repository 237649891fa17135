"""The campaign's whole state in one SQLite file that survives ``kill -9`` and a full disk.

Every change is one transaction (write-ahead log, ``synchronous=FULL``), and every fact has a
primary key that a second attempt meets: batches by number, molecules by sample index, oracle
results by the SHA-256 of what was asked. So a driver that starts again finds what is there, does
what is missing, and cannot lose or repeat anything.

    result key = SHA-256(oracle name, settings, atomic numbers, charges, bonds, round(x / 1e-6 Å))

One driver at a time: it holds the only row of ``driver`` (process id, its start time, the machine
it runs on) and every transaction checks that it still does. On the same machine a holder is dead
when there is no process with that id and start time; elsewhere, or where processes cannot be
inspected, when it has not renewed its row for `STALE` seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.sqlite import insert

from driftworks.campaign.spec import differences
from driftworks.errors import UserError

if TYPE_CHECKING:
    from rdkit.Chem import Mol

    from driftworks.molgen.oracles.protocol import OracleInput, OracleResult

__all__ = ["Measurement", "Store", "Structure", "result_key"]

#: Version of the tables below; a store of another version is refused.
SCHEMA = 1
#: Seconds between two renewals of the driver's row, and after how many it counts as abandoned.
BEAT, STALE = 20.0, 120.0

#: Tokens of the stores that this process drives.
_held: set[str] = set()

_metadata = sa.MetaData()
_fact = sa.Table(
    "fact",
    _metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
_driver = sa.Table(
    "driver",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("started", sa.Text, nullable=False),
    sa.Column("machine", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("beat", sa.Float, nullable=False),
)
_session = sa.Table(
    "session",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("began", sa.Float, nullable=False),
    sa.Column("ended", sa.Float),
    sa.Column("facts", sa.Text, nullable=False),
)
_batch = sa.Table(
    "batch",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("first", sa.Integer, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("failures", sa.Text, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("settled", sa.Boolean, nullable=False),
)
_molecule = sa.Table(
    "molecule",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("batch", sa.ForeignKey("batch.id"), nullable=False, index=True),
    sa.Column("numbers", sa.LargeBinary, nullable=False),
    sa.Column("positions", sa.LargeBinary, nullable=False),
    sa.Column("charges", sa.LargeBinary, nullable=False),
    sa.Column("bonds", sa.LargeBinary, nullable=False),
    sa.Column("smiles", sa.Text, nullable=False),
    sa.Column("inchikey", sa.Text, nullable=False),
    sa.Column("loss", sa.Text, nullable=False),
    sa.Column("rank", sa.Integer, unique=True),
    sa.Column("score", sa.Float),
)
# Whatever the driver believes, two molecules with one InChIKey cannot both be kept.
sa.Index(
    "one_of_a_kind",
    _molecule.c.inchikey,
    unique=True,
    sqlite_where=sa.and_(_molecule.c.inchikey != "", _molecule.c.loss != "duplicate"),
)
_result = sa.Table(
    "result",
    _metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("oracle", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("positions", sa.LargeBinary),
    sa.Column("seconds", sa.Float, nullable=False),
)
_measurement = sa.Table(
    "measurement",
    _metadata,
    sa.Column("molecule", sa.ForeignKey("molecule.id"), primary_key=True),
    sa.Column("oracle", sa.Text, primary_key=True),
    sa.Column("key", sa.ForeignKey("result.key"), nullable=False),
)


@dataclass(frozen=True, eq=False)
class Structure:
    """One generated molecule of N atoms and E bonds.

    `index` is its sample number; `numbers` (N,) uint8, `positions` (N, 3) float32 [angstrom],
    `charges` (N,) int8, `bonds` (E, 3) int16 rows (i, j, order). `loss` names why it is out, ""
    while it is in; `rank` (from 1) and `score` are set once the library is chosen.
    """

    index: int
    numbers: NDArray[np.uint8]
    positions: NDArray[np.float32]
    charges: NDArray[np.int8]
    bonds: NDArray[np.int16]
    smiles: str = ""
    inchikey: str = ""
    loss: str = ""
    rank: int | None = None
    score: float | None = None

    @classmethod
    def of(cls, molecules: Any, row: int, index: int, **known: Any) -> Structure:
        """Row `row` of a `Molecules` batch as sample `index`."""
        keep = molecules.mask[row]
        orders = np.triu(molecules.bonds[row][keep][:, keep].cpu().numpy(), 1)
        ends = np.argwhere(orders)
        return cls(
            index,
            molecules.numbers[row][keep].cpu().numpy().astype(np.uint8),
            molecules.positions[row][keep].cpu().numpy().astype(np.float32),
            molecules.charges[row][keep].cpu().numpy().astype(np.int8),
            np.column_stack([ends, orders[tuple(ends.T)]]).astype(np.int16),
            **known,
        )

    def moved(self, positions: NDArray[Any] | None) -> Structure:
        """The same molecule at other `positions` (N, 3) [angstrom]; at its own for None."""
        if positions is None:
            return self
        return replace(self, positions=np.array(positions, dtype=np.float32))

    def molecules(self) -> Any:
        """A `Molecules` batch of this one."""
        import torch

        from driftworks.molgen.molecule import Molecules

        out = Molecules.empty(1, len(self.numbers))
        out.numbers[0] = torch.from_numpy(self.numbers.astype(np.int64))
        out.positions[0] = torch.from_numpy(self.positions.astype(np.float32))
        out.charges[0] = torch.from_numpy(self.charges.astype(np.int64))
        out.mask[0] = True
        i, j, order = (torch.from_numpy(column) for column in self.bonds.astype(np.int64).T)
        out.bonds[0, i, j] = order
        out.bonds[0, j, i] = order
        return out

    def mol(self) -> Mol:
        """The molecule in RDKit, sanitised, with stereochemistry from its coordinates."""
        from driftworks.molgen.library import Library

        return Library(self.molecules()).mol(0)

    def asked(self) -> OracleInput:
        """The question to an oracle."""
        from driftworks.molgen.oracles.protocol import OracleInput

        numbers, at = self.numbers.astype(np.int64), self.positions.astype(np.float64)
        return OracleInput(numbers, at, int(self.charges.sum()), self.mol())


@dataclass(frozen=True, eq=False)
class Measurement:
    """What an oracle said about a molecule, as stored; `positions` (N, 3) float64 or None."""

    molecule: int
    oracle: str
    status: str
    reason: str
    values: dict[str, float]
    positions: NDArray[np.float64] | None
    seconds: float


def result_key(name: str, settings: Mapping[str, Any], structure: Structure) -> str:
    """The identity of a question: oracle, its settings, and the molecule to 1e-6 Å."""
    grid = np.rint(structure.positions.astype(np.float64) * 1e6).astype("<i8")
    digest = hashlib.sha256(json.dumps([name, dict(settings)], sort_keys=True).encode())
    for array in (structure.numbers, structure.charges, structure.bonds.astype("<i2"), grid):
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class Store:
    """The state of one campaign; see the module. Use as a context manager."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if not create and not path.is_file():
            raise UserError(f"{path.parent}: no campaign here (there is no {path.name})")
        self.path = path
        self._engine = sa.create_engine(
            f"sqlite:///{path}", connect_args={"timeout": 30.0}, hide_parameters=True
        )
        sa.event.listen(self._engine, "connect", _configure)
        sa.event.listen(self._engine, "begin", _begin)
        self._writer = self._engine.execution_options(immediate=True)
        self._token = ""
        try:
            if create:
                with self._explained(), self._writer.begin() as connection:
                    _metadata.create_all(connection)
                    schema = insert(_fact).values(key="schema", value=str(SCHEMA))
                    connection.execute(schema.on_conflict_do_nothing())
            found = self.fact("schema")
            if found != str(SCHEMA):
                raise UserError(f"{path}: has tables of version {found}, not {SCHEMA}")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the write-ahead log is folded into it."""
        self._engine.dispose()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.DBAPIError, sqlite3.Error) as error:
            raise UserError(f"{self.path}: {_plain(error)}") from None

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        """One transaction of the driver that holds the store."""
        with self._explained(), self._writer.begin() as connection:
            holder = connection.execute(sa.select(_driver.c.token)).scalar()
            if holder != self._token or not holder:
                raise UserError(f"{self.path}: another driver has taken this campaign over")
            yield connection

    def _read(self, query: Any) -> Sequence[Any]:
        with self._explained(), self._engine.connect() as connection:
            return connection.execute(query).fetchall()

    # The driver's row

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Hold the store; raises `UserError` when a living driver does."""
        self._token = uuid.uuid4().hex
        me = {
            "id": 1,
            "token": self._token,
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "machine": _machine(),
            "host": platform.node(),
        }
        with self._explained(), self._writer.begin() as connection:
            held = connection.execute(sa.select(_driver)).first()
            if held is not None and _alive(held):
                raise UserError(
                    f"{self.path.parent}: process {held.pid} on {held.host} is running this "
                    f"campaign (last sign of life {max(0.0, time.time() - held.beat):.0f} s ago)"
                )
            connection.execute(sa.delete(_driver))
            connection.execute(sa.insert(_driver).values(**me, beat=time.time()))
        over = threading.Event()
        pulse = threading.Thread(target=self._pulse, args=(over,), daemon=True)
        pulse.start()
        _held.add(self._token)
        try:
            yield
        finally:
            over.set()
            pulse.join()
            _held.discard(self._token)
            try:
                with self._writer.begin() as connection:
                    connection.execute(sa.delete(_driver).where(_driver.c.token == self._token))
            except sa.exc.DBAPIError:
                pass  # the row of a driver that has ended is known to be dead without this

    def _pulse(self, over: threading.Event) -> None:
        while not over.wait(BEAT):
            try:
                with self._writer.begin() as connection:
                    connection.execute(
                        sa.update(_driver)
                        .where(_driver.c.token == self._token)
                        .values(beat=time.time())
                    )
            except sa.exc.DBAPIError:
                continue  # the driver's own next transaction says what is wrong with the file

    # Facts and sessions

    def fact(self, key: str) -> str | None:
        """A stored fact, or None."""
        rows = self._read(sa.select(_fact.c.value).where(_fact.c.key == key))
        return rows[0].value if rows else None

    def agree(self, spec: str, model: Mapping[str, str] | None = None) -> None:
        """Store the campaign's canonical JSON and its model, or check that they are the same.

        Raises `UserError` that says how they differ.
        """
        known = self.fact("spec")
        if known is not None and known != spec:
            changed = differences(json.loads(known), json.loads(spec))
            raise UserError(
                f"{self.path.parent}: holds another campaign ({'; '.join(changed)}); "
                "choose another output folder"
            )
        stored = self.fact("model")
        if model is not None and stored is not None and json.loads(stored) != dict(model):
            was = json.loads(stored)
            raise UserError(
                f"{self.path.parent}: was begun with weights {was['hash']:.12} of "
                f"{was['name']!r}, these are {model['hash']:.12} of {model['name']!r}"
            )
        facts = {"spec": spec}
        if model is not None:
            facts["model"] = json.dumps(dict(model), sort_keys=True)
        self.remember(**facts)

    def remember(self, **facts: str) -> None:
        """Store facts; one that is known keeps its value."""
        with self._write() as connection:
            for key, value in facts.items():
                connection.execute(
                    insert(_fact).values(key=key, value=value).on_conflict_do_nothing()
                )

    def open_session(self, facts: Mapping[str, Any]) -> int:
        """Note that a driver begins, with its versions and command line; returns its number."""
        with self._write() as connection:
            row = connection.execute(
                sa.insert(_session).values(began=time.time(), facts=json.dumps(dict(facts)))
            )
            return int((row.inserted_primary_key or (0,))[0])

    def close_session(self, number: int) -> None:
        """Note that the driver ends in good order."""
        with self._write() as connection:
            connection.execute(
                sa.update(_session).where(_session.c.id == number).values(ended=time.time())
            )

    def sessions(self) -> list[dict[str, Any]]:
        """All drivers so far: began, ended (None when killed) [s since 1970] and their facts."""
        rows = self._read(sa.select(_session).order_by(_session.c.id))
        return [{"began": r.began, "ended": r.ended, **json.loads(r.facts)} for r in rows]

    # Batches and molecules

    def batches(self) -> list[dict[str, Any]]:
        """All batches in order: id, first, size, failures, seconds, settled."""
        rows = self._read(sa.select(_batch).order_by(_batch.c.id))
        return [{**row._mapping, "failures": json.loads(row.failures)} for row in rows]

    def add_batch(
        self,
        number: int,
        first: int,
        size: int,
        structures: Iterable[Structure],
        failures: Mapping[str, int],
        seconds: float,
    ) -> None:
        """Store a generated batch whole: its molecules and what it failed to generate."""
        rows = [
            {
                "id": s.index,
                "batch": number,
                "numbers": s.numbers.tobytes(),
                "positions": s.positions.astype("<f4").tobytes(),
                "charges": s.charges.tobytes(),
                "bonds": s.bonds.astype("<i2").tobytes(),
                "smiles": s.smiles,
                "inchikey": s.inchikey,
                "loss": s.loss,
            }
            for s in structures
        ]
        with self._write() as connection:
            connection.execute(
                sa.insert(_batch).values(
                    id=number,
                    first=first,
                    size=size,
                    failures=json.dumps(dict(failures), sort_keys=True),
                    seconds=seconds,
                    settled=False,
                )
            )
            if rows:
                connection.execute(sa.insert(_molecule), rows)

    def settle(self, number: int, losses: Mapping[int, str]) -> None:
        """Close a batch: `losses` names why molecules are out, the others are candidates."""
        with self._write() as connection:
            for index, loss in losses.items():
                connection.execute(
                    sa.update(_molecule).where(_molecule.c.id == index).values(loss=loss)
                )
            connection.execute(
                sa.update(_batch).where(_batch.c.id == number).values(settled=True)
            )

    def inchikeys(self) -> set[str]:
        """InChIKeys of all distinct molecules."""
        rows = self._read(sa.select(_molecule.c.inchikey).where(_molecule.c.inchikey != ""))
        return {row.inchikey for row in rows}

    def structures(self, batch: int | None = None, *, chosen: bool = False) -> list[Structure]:
        """Molecules that are in, by sample number; the `chosen` ones by rank."""
        query = sa.select(_molecule).where(_molecule.c.loss == "")
        if batch is not None:
            query = query.where(_molecule.c.batch == batch)
        if chosen:
            query = query.where(_molecule.c.rank.is_not(None)).order_by(_molecule.c.rank)
        return [_structure(row) for row in self._read(query.order_by(_molecule.c.id))]

    def candidates(self) -> int:
        """How many molecules of settled batches are in."""
        query = (
            sa.select(sa.func.count())
            .select_from(_molecule.join(_batch))
            .where(_molecule.c.loss == "", _batch.c.settled)
        )
        return int(self._read(query)[0][0])

    def choose(self, ranked: Sequence[tuple[int, float]]) -> None:
        """Store the library: (sample number, logarithmic score), best first."""
        with self._write() as connection:
            for rank, (index, score) in enumerate(ranked, start=1):
                connection.execute(
                    sa.update(_molecule)
                    .where(_molecule.c.id == index)
                    .values(rank=rank, score=float(np.exp2(score)))
                )
            connection.execute(
                insert(_fact).values(key="chosen", value=str(len(ranked))).on_conflict_do_nothing()
            )

    # Measurements

    def known(self, keys: Iterable[str]) -> set[str]:
        """Those of the result keys that have a result."""
        out: set[str] = set()
        pending = list(keys)
        while pending:
            part, pending = pending[:500], pending[500:]
            rows = self._read(sa.select(_result.c.key).where(_result.c.key.in_(part)))
            out.update(row.key for row in rows)
        return out

    def record(
        self, oracle: str, answers: Iterable[tuple[int, str, OracleResult | None]]
    ) -> None:
        """Store (sample number, result key, result) triples; None: the result is known already."""
        with self._write() as connection:
            for index, key, result in answers:
                if result is not None:
                    at = result.positions
                    connection.execute(
                        insert(_result)
                        .values(
                            key=key,
                            oracle=oracle,
                            status=result.status,
                            reason=result.reason,
                            data=json.dumps(dict(result.values), sort_keys=True),
                            positions=None if at is None else np.asarray(at, "<f8").tobytes(),
                            seconds=result.seconds,
                        )
                        .on_conflict_do_nothing()
                    )
                connection.execute(
                    insert(_measurement)
                    .values(molecule=index, oracle=oracle, key=key)
                    .on_conflict_do_nothing()
                )

    def measurements(
        self, oracle: str | None = None, batch: int | None = None
    ) -> list[Measurement]:
        """What has been measured, by oracle and sample number."""
        query = (
            sa.select(_measurement.c.molecule, _result)
            .select_from(_measurement.join(_result))
            .order_by(_measurement.c.oracle, _measurement.c.molecule)
        )
        if oracle is not None:
            query = query.where(_measurement.c.oracle == oracle)
        if batch is not None:
            inside = sa.select(_molecule.c.id).where(_molecule.c.batch == batch)
            query = query.where(_measurement.c.molecule.in_(inside))
        return [
            Measurement(
                row.molecule,
                row.oracle,
                row.status,
                row.reason,
                json.loads(row.data),
                row.positions and np.frombuffer(row.positions, "<f8").reshape(-1, 3),
                row.seconds,
            )
            for row in self._read(query)
        ]

    def losses(self) -> dict[str, int]:
        """Molecules by `loss` ("" while in), with what batches failed to generate."""
        query = sa.select(_molecule.c.loss, sa.func.count()).group_by(_molecule.c.loss)
        counts = {row[0]: int(row[1]) for row in self._read(query)}
        for batch in self.batches():
            for reason, count in batch["failures"].items():
                name = f"not generated: {reason}"
                counts[name] = counts.get(name, 0) + count
        return counts


def _structure(row: Any) -> Structure:
    return Structure(
        row.id,
        np.frombuffer(row.numbers, np.uint8),
        np.frombuffer(row.positions, "<f4").reshape(-1, 3),
        np.frombuffer(row.charges, np.int8),
        np.frombuffer(row.bonds, "<i2").reshape(-1, 3),
        row.smiles,
        row.inchikey,
        row.loss,
        row.rank,
        row.score,
    )


def _configure(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None  # transactions are begun by `_begin`, not by the driver
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sa.Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _plain(error: Exception) -> str:
    """SQLite's complaint in one line that says what to do where that is known."""
    text = " ".join(str(getattr(error, "orig", error)).split())
    if "not a database" in text or "malformed" in text or "no such table" in text:
        return f"damaged, or no campaign store ({text})"
    if "disk I/O" in text or "full" in text:
        return f"cannot be written, is the disk full? ({text})"
    if "locked" in text:
        return f"busy for more than 30 s ({text})"
    return text


def _process(pid: int) -> tuple[str, str] | None:
    """(state, start time) of a process from /proc, None when there is none or no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None


def _started(pid: int) -> str:
    process = _process(pid)
    return process[1] if process else ""


def _machine() -> str:
    """A name for "processes that this one can see": boot and process-id namespace; "" unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {re.sub('[^0-9]', '', os.readlink('/proc/self/ns/pid'))}"
    except OSError:
        return ""


def _alive(held: Any) -> bool:
    if held.machine and held.machine == _machine():
        process = _process(held.pid)
        if held.pid == os.getpid() and process is not None and process[1] == held.started:
            return held.token in _held
        return process is not None and process[0] not in "ZX" and process[1] == held.started
    return time.time() - held.beat < STALE
