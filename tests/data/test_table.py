"""The molecule table: gathers against a plain loop, and storage that never half-exists."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from driftworks.data import Failure, MoleculeTable
from driftworks.data import table as table_module
from driftworks.errors import UserError

COLUMNS = (
    "numbers positions charges atom_offsets bonds bond_offsets split status uncharacterized"
).split()


def same(a: MoleculeTable, b: MoleculeTable) -> bool:
    return (
        all(np.array_equal(getattr(a, name), getattr(b, name)) for name in COLUMNS)
        and all(getattr(a, name).dtype == getattr(b, name).dtype for name in COLUMNS)
        and (a.ids, a.smiles, a.units, a.source) == (b.ids, b.smiles, b.units, b.source)
        and a.failures == b.failures
        and list(a.properties) == list(b.properties)
        and all(
            np.array_equal(a.properties[name], b.properties[name], equal_nan=True)
            for name in a.properties
        )
    )


@pytest.mark.parametrize("name", ["t.npz", "t"])
def test_a_saved_table_comes_back_equal(table: MoleculeTable, tmp_path: Path, name: str) -> None:
    path = table.save(tmp_path / "new" / name)
    assert same(MoleculeTable.load(path), table)
    assert [p.name for p in path.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", ["t.npz", "t"])
def test_an_empty_table_comes_back_equal(tmp_path: Path, name: str) -> None:
    empty = MoleculeTable.from_molecules([], units={"mu": "debye"})
    back = MoleculeTable.load(empty.save(tmp_path / name))
    assert same(back, empty) and len(back) == 0 and list(back) == []


@pytest.mark.parametrize("name", ["t.npz", "t"])
def test_saving_again_replaces_the_table(table: MoleculeTable, tmp_path: Path, name: str) -> None:
    table.save(tmp_path / name)
    half = table.select(slice(3))
    half.save(tmp_path / name)
    assert same(MoleculeTable.load(tmp_path / name), half)
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == [name]


def test_a_folder_is_memory_mapped_and_writing_leaves_the_file(
    table: MoleculeTable, tmp_path: Path
) -> None:
    path = table.save(tmp_path / "t")
    back = MoleculeTable.load(path)
    assert isinstance(back.positions, np.memmap)
    back.positions[0] = 99.0
    assert same(MoleculeTable.load(path), table)


def test_select_equals_picking_molecules_one_by_one(table: MoleculeTable) -> None:
    rng = np.random.default_rng(1)
    for index in (rng.integers(0, len(table), 12), np.array([], int), np.array([-1, 2, 2, -7])):
        picked = table.select(index)
        assert len(picked) == len(index)
        for new, old in enumerate(index.tolist()):
            a, b = picked.molecule(new), table.molecule(old)
            assert (a.id, a.smiles) == (b.id, b.smiles)
            for name in ("numbers", "positions", "charges", "bonds"):
                assert np.array_equal(getattr(a, name), getattr(b, name))
            assert np.array_equal(
                list(a.properties.values()), list(b.properties.values()), equal_nan=True
            )
        assert np.array_equal(picked.split, table.split[index])
    mask = rng.random(len(table)) < 0.5
    assert same(table.select(mask), table.select(np.flatnonzero(mask)))
    assert same(table.select(slice(1, None, 2)), table.select([1, 3, 5]))


def test_a_row_that_does_not_exist_is_an_error(table: MoleculeTable) -> None:
    for index in ([len(table)], [-len(table) - 1]):
        with pytest.raises(IndexError):
            table.select(index)
        with pytest.raises(IndexError):
            table.molecule(index[0])
    with pytest.raises(UserError, match="mask"):
        table.select(np.ones(len(table) + 1, bool))


def test_concat_keeps_every_molecule_and_fills_missing_properties(table: MoleculeTable) -> None:
    other = replace(
        table.select([1, 3]),
        properties={"gap": np.array([5.0, 6.0])},
        units={"gap": "eV"},
        failures=(),
    )
    both = MoleculeTable.concat([table, other])
    assert both.ids == table.ids + other.ids and both.failures == table.failures
    assert same(
        replace(both.select(slice(len(table))), properties=table.properties, units=table.units),
        table,
    )
    assert np.array_equal(both.property("gap"), [np.nan] * len(table) + [5.0, 6.0], equal_nan=True)
    assert np.isnan(both.property("mu")[-2:]).all()
    assert np.array_equal(both.molecule(len(table)).bonds, table.molecule(1).bonds)
    with pytest.raises(UserError, match="'mu' comes in 'debye' and in 'D'"):
        MoleculeTable.concat([table, replace(table, units={"mu": "D", "x y": ""})])


def test_where_takes_a_split_and_leaves_out_what_is_doubtful(table: MoleculeTable) -> None:
    for split, code in (("train", 0), ("valid", 1), ("test", 2), ("none", -1)):
        expected = [
            table.ids[i]
            for i in range(len(table))
            if table.split[i] == code and table.status[i] < 2 and not table.uncharacterized[i]
        ]
        assert table.where(split, clean=True).ids == expected
    with pytest.raises(UserError, match="unknown split 'training'; choose from train, valid"):
        table.where("training")
    with pytest.raises(UserError, match="no property 'gap' in this table; it has: mu, x y"):
        table.property("gap")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {"positions": t.positions.astype(np.float64)},
        lambda t: {"positions": t.positions[:-1]},
        lambda t: {"positions": np.full_like(t.positions, np.nan)},
        lambda t: {"atom_offsets": t.atom_offsets[::-1].copy()},
        lambda t: {"bonds": t.bonds + np.int16(20)},
        lambda t: {"bonds": t.bonds - np.int16(2)},
        lambda t: {"ids": t.ids[1:]},
        lambda t: {"units": {}},
        lambda t: {"properties": {"mu": np.zeros(3), "x y": np.zeros(3)}},
    ],
)
def test_columns_that_do_not_fit_are_refused(table: MoleculeTable, change) -> None:
    with pytest.raises(UserError, match="molecule table"):
        replace(table, **change(table))


def test_a_truncated_file_is_a_user_error_at_every_length(
    table: MoleculeTable, tmp_path: Path
) -> None:
    whole = table.save(tmp_path / "t.npz").read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 60)):
        (tmp_path / "cut.npz").write_bytes(whole[:size])
        with pytest.raises(UserError):
            MoleculeTable.load(tmp_path / "cut.npz")


def test_a_flipped_byte_never_gives_a_table_that_differs(
    table: MoleculeTable, tmp_path: Path
) -> None:
    whole = table.save(tmp_path / "t.npz").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(whole), 150):
        mutant = bytearray(whole)
        mutant[position] ^= int(rng.integers(1, 256))
        (tmp_path / "bad.npz").write_bytes(mutant)
        try:
            assert same(MoleculeTable.load(tmp_path / "bad.npz"), table)
        except UserError:
            refused += 1
    assert refused > 75


@pytest.mark.parametrize("column", ["positions", "ids", "table.json", "property_0"])
def test_a_damaged_folder_is_a_user_error(
    table: MoleculeTable, tmp_path: Path, column: str
) -> None:
    path = table.save(tmp_path / "t")
    file = path / (column if "." in column else f"{column}.npy")
    whole = file.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(UserError, match=re.escape(str(path))):
            MoleculeTable.load(path)
    file.unlink()
    with pytest.raises(UserError):
        MoleculeTable.load(path)


def test_a_manifest_cannot_name_files_elsewhere(table: MoleculeTable, tmp_path: Path) -> None:
    path = table.save(tmp_path / "t")
    description = json.loads((path / "table.json").read_text())
    description["columns"].append("../secret")
    (path / "table.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="unknown column"):
        MoleculeTable.load(path)


def test_a_pickle_in_a_table_is_refused_and_not_run(table: MoleculeTable, tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (touched,))

    column = io.BytesIO()
    np.save(column, np.array([Evil()], object), allow_pickle=True)
    path = table.save(tmp_path / "t.npz")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["numbers.npy"] = column.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    bare = tmp_path / "bare.npz"
    bare.write_bytes(pickle.dumps(Evil()))
    for file in (path, bare):
        with pytest.raises(UserError):
            MoleculeTable.load(file)
    assert not touched.exists()


@pytest.mark.parametrize("name", ["t.npz", "t"])
def test_an_interrupted_save_leaves_the_old_table(
    table: MoleculeTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = table.save(tmp_path / name)

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table_module.os, "fsync", broken)
    with pytest.raises(UserError, match="No space left"):
        table.select([0]).save(path)
    monkeypatch.undo()
    assert same(MoleculeTable.load(path), table)
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == [name]


def test_names_that_cannot_be_written_are_user_errors(table: MoleculeTable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        table.save(tmp_path / "file" / "t.npz")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not a molecule table; choose another name"):
        table.save(tmp_path / "full")
    assert (tmp_path / "full" / "thesis.tex").read_text() == "precious"
    with pytest.raises(UserError, match="no molecule table at"):
        MoleculeTable.load(tmp_path / "missing.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.save(tmp_path / "other.npy", np.zeros(3))
    for other in ("other.npz", "other.npy", "full"):
        with pytest.raises(UserError):
            MoleculeTable.load(tmp_path / other)


def test_failures_are_written_as_csv(table: MoleculeTable, tmp_path: Path) -> None:
    import csv

    table = replace(table, failures=(*table.failures, Failure(10, "short")))
    path = table.write_failures(tmp_path / "out" / "failures.csv")
    with open(path, newline="") as handle:
        rows = list(csv.reader(handle))
    assert rows == [
        ["record", "name", "reason"],
        ["9", "nine", 'why, "so"\nand on'],
        ["10", "", "short"],
    ]
