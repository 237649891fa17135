"""A user's files: what is right is read, what is wrong is listed, nothing hangs or crashes."""

from __future__ import annotations

import gzip
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from driftworks import data
from driftworks.data.bonds import flat_smiles
from driftworks.data.units import EV_PER_HARTREE
from driftworks.errors import UserError

read_module = sys.modules["driftworks.data.read"]


def read(path: Path, **options) -> data.MoleculeTable:
    return data.read(path, progress=False, workers=1, **options)


def block(smiles: str, name: str = "", flat: bool = False, hydrogens: bool = True) -> str:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(mol, randomSeed=3)
    if flat:
        for k in range(mol.GetNumAtoms()):
            place = mol.GetConformer().GetAtomPosition(k)
            mol.GetConformer().SetAtomPosition(k, (place.x, place.y, 0.0))
        mol.GetConformer().Set3D(False)
    if not hydrogens:
        mol = Chem.RemoveHs(mol)
    mol.SetProp("_Name", name)
    return Chem.MolToMolBlock(mol)


def sdf(path: Path, *records: tuple[str, dict[str, object]]) -> Path:
    with open(path, "w") as handle:
        for text, fields in records:
            handle.write(text)
            for key, value in fields.items():
                handle.write(f">  <{key}>\n{value}\n\n")
            handle.write("$$$$\n")
    return path


def test_an_sdf_keeps_coordinates_bonds_charges_and_fields(tmp_path: Path) -> None:
    text = block("C[N+](C)(C)CC(=O)[O-]", "betaine")
    path = sdf(tmp_path / "a.sdf", (text, {"gap [hartree]": 0.25, "note": "words", "tries": 3}))
    table = read(path)
    original = Chem.MolFromMolBlock(text, removeHs=False)
    molecule = table.molecule(0)
    assert molecule.id == "betaine" and molecule.smiles == "C[N+](C)(C)CC(=O)[O-]"
    assert np.allclose(molecule.positions, original.GetConformer().GetPositions(), atol=1e-4)
    assert molecule.charges.tolist() == [a.GetFormalCharge() for a in original.GetAtoms()]
    assert {(i, j): order for i, j, order in molecule.bonds.tolist()} == {
        (b.GetBeginAtomIdx(), b.GetEndAtomIdx()): int(b.GetBondTypeAsDouble())
        for b in original.GetBonds()
    }
    assert table.units == {"gap": "eV", "tries": ""}
    assert table.property("gap")[0] == 0.25 * EV_PER_HARTREE and table.property("tries")[0] == 3


def test_bonds_are_kekulised(tmp_path: Path) -> None:
    molecule = read(sdf(tmp_path / "a.sdf", (block("c1ccc2[nH]ccc2c1"), {}))).molecule(0)
    assert sorted(molecule.bonds[:, 2].tolist()) == [1] * 13 + [2] * 4


def test_missing_hydrogens_and_flat_drawings_are_completed(tmp_path: Path) -> None:
    path = sdf(
        tmp_path / "a.sdf",
        (block("CCO", hydrogens=False), {}),
        (block("c1ccccc1O", flat=True), {}),
        (block("c1ccccc1O", flat=True, hydrogens=False), {}),
    )
    table = read(path)
    assert table.atom_counts.tolist() == [9, 13, 13] and not table.failures
    for molecule in table:
        ends = molecule.positions[molecule.bonds[:, :2]]
        length = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
        assert 0.9 < length.min() and length.max() < 1.6
    # the heavy atoms of a record in 3D stay where they were
    heavy = Chem.MolFromMolBlock(block("CCO", hydrogens=False)).GetConformer().GetPositions()
    assert np.allclose(table.molecule(0).positions[:3], heavy, atol=1e-4)


def test_smiles_get_the_same_coordinates_for_the_same_seed(tmp_path: Path) -> None:
    path = tmp_path / "a.smi"
    path.write_text("smiles name\nCCO ethanol\n\n# comment\nc1ccccc1\tben zene\nC[C@H](N)C(=O)O\n")
    a, b, c = read(path), data.read(path, workers=2, progress=False), read(path, seed=5)
    assert a.ids == ["ethanol", "ben zene", "record:6"]
    assert a.smiles == ["CCO", "c1ccccc1", "CC(N)C(=O)O"]
    assert np.array_equal(a.positions, b.positions) and not np.allclose(a.positions, c.positions)
    # the embedding keeps the stereo centre of L-alanine
    molecule = a.molecule(2)
    mol = Chem.RWMol()
    for z in molecule.numbers.tolist():
        mol.AddAtom(Chem.Atom(z))
    for i, j, order in molecule.bonds.tolist():
        mol.AddBond(i, j, (Chem.BondType.SINGLE, Chem.BondType.DOUBLE)[order - 1])
    Chem.SanitizeMol(mol)
    conformer = Chem.Conformer(len(molecule))
    conformer.SetPositions(molecule.positions.astype(float))
    mol.AddConformer(conformer)
    Chem.AssignStereochemistryFrom3D(mol)
    assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == "C[C@H](N)C(=O)O"


def test_a_csv_gives_properties_in_canonical_units(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "\ufeffname,SMILES,gap (hartree),logS,mu [D],remark\n"
        'one,CCO,0.3,-1.5,1.7,"a, b"\n'
        "two,CC,,2,nan,\n"
    )
    table = read(path)
    assert table.ids == ["one", "two"] and table.units == {"gap": "eV", "logS": "", "mu": "debye"}
    assert table.property("gap")[0] == pytest.approx(0.3 * EV_PER_HARTREE)
    assert np.isnan(table.property("gap")[1]) and np.isnan(table.property("mu")[1])
    assert table.property("logS").tolist() == [-1.5, 2.0]
    chosen = read(path, properties={"gap": "meV", "logS": "log10(mol/L)"})
    assert chosen.units == {"gap": "eV", "logS": "log10(mol/L)"}
    assert chosen.property("gap")[0] == pytest.approx(0.0003)
    assert list(read(path, properties=["mu"]).properties) == ["mu"]
    assert read(path, smiles_column="SMILES", id_column="remark").ids == ["a, b", "record:2"]


def test_a_known_property_without_a_unit_is_taken_in_ours_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("smiles,gap\nCC,5\n")
    with pytest.warns(UserWarning, match="'gap' names no unit, taken as eV"):
        assert read(path).property("gap")[0] == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(path, properties={"gap": "eV"}).property("gap")[0] == 5


def test_labels_from_a_second_file_are_joined_by_name_or_by_row(tmp_path: Path) -> None:
    path = tmp_path / "a.smi"
    path.write_text("C x\nCC y\nCCC z\n")
    labels = tmp_path / "l.csv"
    labels.write_text("id,v\nz,3\nx,1\n")
    table = read(path, labels=labels)
    assert table.ids == ["x", "z"] and table.property("v").tolist() == [1, 3]
    assert [(f.record, f.reason) for f in table.failures] == [(2, "l.csv has no row for it")]
    labels.write_text("v\n10\n20\n30\n")
    assert read(path, labels=labels).property("v").tolist() == [10, 20, 30]


def test_malformed_rows_are_counted_with_number_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [
        "CC,1",
        "C1CC,2",
        "CC",
        "",
        "C(C)(C)(C)(C)C,4",
        "*C,5",
        ",6",
        "[Cu],x",
        "CCO,seven",
        "N,9",
    ]
    path.write_text("smiles,v\n" + "\n".join(rows) + "\n")
    with pytest.warns(UserWarning, match="2 values of 'v' are no numbers"):
        table = read(path, properties=["v"])
    assert table.smiles == ["CC", "[Cu]", "CCO", "N"]
    reasons = {failure.record: failure.reason for failure in table.failures}
    assert sorted(reasons) == [2, 3, 4, 5, 6]
    assert "not a readable SMILES: 'C1CC'" in reasons[2]
    assert reasons[3] == "1 values in a row of 2 columns"
    assert "not a valid molecule" in reasons[4] and "dummy atoms" in reasons[5]
    assert reasons[6] == "no SMILES"


def test_bad_sdf_records_do_not_take_good_ones_with_them(tmp_path: Path) -> None:
    good = block("CCO", "good")
    lines = good.splitlines()
    wrong = [
        "\n".join(lines[:6]) + "\n",
        good.replace(" 9 8 ", " 9 9 ").replace("  9  8", "  9 99"),
        good.replace("0.", "x.", 1),
        "",
        "words\n" * 20,
        good.replace(" O ", " Qq"),
        "\n".join([*lines[:4], *([lines[4]] * 9), *lines[13:]]) + "\n",
    ]
    path = sdf(tmp_path / "a.sdf", *((text, {}) for text in [good, *wrong, good]))
    table = read(path)
    assert table.ids == ["good", "good:9"] and table.smiles == ["CCO", "CCO"]
    assert [failure.record for failure in table.failures] == [2, 3, 4, 5, 6, 7, 8]
    assert "0.2 angstrom" in table.failures[-1].reason


def test_a_field_text_in_the_title_stays_text(tmp_path: Path) -> None:
    title = "<script>alert(1)</script>"
    table = read(sdf(tmp_path / "a.sdf", (block("CC", title), {"> <x>": 1})))
    assert table.ids == [title]


@pytest.mark.parametrize("suffix", [".sdf", ".csv", ".smi"])
def test_packed_files_are_read_as_plain_ones(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".sdf":
        sdf(path, (block("CCO"), {}))
    else:
        path.write_text("smiles\nCCO\n")
    packed = tmp_path / f"b{suffix}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert np.array_equal(read(path).positions, read(packed).positions)
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(UserError, match="cannot read"):
        read(packed)


def test_a_file_that_cannot_be_used_is_one_clear_error(tmp_path: Path) -> None:
    def refused(name: str, content: str, match: str, **options) -> None:
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=match) as caught:
            read(tmp_path / name, **options)
        assert "\n" not in str(caught.value)

    with pytest.raises(UserError, match="no file .*missing.sdf"):
        read(tmp_path / "missing.sdf")
    refused("a.pdf", "x", "unknown kind '.pdf'; readable are: .sdf")
    refused("nosuffix", "x", "no suffix")
    refused("a.sdf", "", "no usable molecule")
    refused("b.sdf", "rubbish\n$$$$\n", "no usable molecule; record 1: ")
    refused("a.csv", "", "empty or damaged")
    refused("b.csv", "a,b\n1,2\n", "no column named smiles; say which of these it is: a, b")
    refused("c.csv", "smiles,b\nC,2\n", "no column 'gap'; it has: b", properties=["gap"])
    refused("d.csv", "smiles,b\nC,2\n", "no column 'S'; it has: smiles, b", smiles_column="S")
    refused("e.csv", "smiles,b\nC1,2\n", "no usable molecule; record 1: not a readable SMILES")
    refused(
        "f.csv", "smiles,mu\nC,2\n", "cannot convert unit 'eV' to 'debye'", properties={"mu": "eV"}
    )
    refused("g.csv", "smiles,mu [D],mu [debye]\nC,1,2\n", "'mu' in two columns")
    refused("h.smi", "C\n", "limit must be at least 1", limit=0)
    refused("i.csv", "smiles\nC\n", "labels belong", labels=tmp_path / "a.csv")
    refused("j.npz", "no zip", "damaged")


def test_sizes_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.smi"
    path.write_text(
        "C" * 1001 + " long\n" + "C" * 400 + " hydrogens\n" + "C" * 3_000_000 + "\nCC ok\n"
    )
    table = read(path)
    assert table.ids == ["ok"]
    assert [f.record for f in table.failures] == [1, 2, 3]
    assert "1001 atoms, at most 1000" in table.failures[0].reason
    assert "1202 atoms, at most 1000" in table.failures[1].reason
    assert table.failures[2].reason == f"a SMILES of {1 << 20} characters"
    monkeypatch.setattr(read_module, "MAX_FILE", 1_000_000)
    with pytest.raises(UserError, match="larger than"):
        read(path)
    bomb = tmp_path / "b.smi.gz"
    bomb.write_bytes(gzip.compress(b"C" * 5_000_000))
    with pytest.raises(UserError, match="larger than"):
        read(bomb)


def test_an_oversized_record_is_refused_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_module, "MAX_RECORD", 5000)
    text = block("CCO")
    path = sdf(tmp_path / "a.sdf", (text, {"x": "1\n" * 4000}), (text, {}))
    table = read(path)
    assert len(table) == 1 and table.failures[0].reason.startswith("the record is larger")


def test_a_hanging_record_costs_its_time_limit_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cage of 120 fused carbons keeps ETKDG busy far beyond the limit set here."""
    import networkx as nx

    dense = nx.random_regular_graph(3, 60, seed=1)
    mol = Chem.RWMol()
    for _ in dense:
        mol.AddAtom(Chem.Atom(6))
    for i, j in dense.edges:
        mol.AddBond(int(i), int(j), Chem.BondType.SINGLE)
    path = tmp_path / "a.smi"
    path.write_text(f"CC\n{flat_smiles(mol)}\nCCO\n")
    monkeypatch.setattr(read_module, "SECONDS_PER_RECORD", 1.5)
    start = time.monotonic()
    table = read(path)
    assert table.smiles == ["CC", "CCO"] and time.monotonic() - start < 30
    assert table.failures[0].record == 2 and "1.5 s" in table.failures[0].reason


def test_a_saved_table_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "a.smi"
    path.write_text("CC\nCCO\n")
    table = read(path)
    table.save(tmp_path / "t.npz")
    assert read(tmp_path / "t.npz").ids == table.ids
    assert read(tmp_path / "t.npz", limit=1).ids == table.ids[:1]
    assert read(path, limit=1).ids == table.ids[:1]


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, a piece cut or doubled, digits made large, the tail lost, symbols added."""
    text = bytearray(content)
    a, b = sorted(rng.integers(0, len(text), 2).tolist())
    kind = int(rng.integers(0, 6))
    if kind == 0:
        for _ in range(int(rng.integers(1, 8))):
            text[int(rng.integers(0, len(text)))] = int(rng.integers(0, 256))
    elif kind == 1:
        del text[a : min(b, a + 200)]
    elif kind == 2:
        text[a:a] = text[a:b]
    elif kind == 3:
        digits = [k for k, c in enumerate(text) if chr(c).isdigit()]
        for k in rng.choice(digits, min(5, len(digits))):
            text[k] = ord("9")
    elif kind == 4:
        del text[a:]
    else:
        text[b:b] = bytes(rng.choice(list(b"[]()=#%$><\"',.\n\0-+*@:9"), 12).tolist())
    return bytes(text)


def fuzz(tmp_path: Path, count: int, seed: int) -> tuple[int, int]:
    """Read `count` mutants as one file each; molecules read and failures listed."""
    rng = np.random.default_rng(seed)
    sdf(
        tmp_path / "seed.sdf",
        (block("CC(=O)[O-]", "one"), {"gap [eV]": 1.5}),
        (block("c1ccncc1F", "two"), {"mu [D]": "x"}),
    )
    (tmp_path / "seed.csv").write_text('smiles,gap [eV],id\nCCO,1.0,a\n"c1ccccc1",2.0,b\n')
    (tmp_path / "seed.smi").write_text("C[C@H](N)C(=O)O a\n[NH4+] b\nC1CC1 c\n")
    seeds = [tmp_path / f"seed{suffix}" for suffix in (".sdf", ".csv", ".smi")]
    read_in, failed = 0, 0
    for k in range(count):
        source = seeds[k % 3]
        mutant = tmp_path / f"mutant{source.suffix}"
        content = mutate(source.read_bytes(), rng)
        mutant.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                table = read(mutant)
        except UserError as error:
            assert "\n" not in str(error), content
            failed += 1
            continue
        assert np.isfinite(table.positions).all()
        assert all(f.record > 0 and f.reason for f in table.failures), content
        read_in, failed = read_in + len(table), failed + len(table.failures)
    return read_in, failed


def test_mutated_files_never_crash_or_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mutant goes through the parser itself; starting a child for each would take minutes."""
    monkeypatch.setattr(read_module, "isolated", in_this_process)
    read_in, failed = fuzz(tmp_path, 500, seed=11)
    assert read_in > 200 and failed > 100


def in_this_process(task: str, records, **_: object):
    from driftworks.data.isolate import Outcome, Rejected, _one_line
    from driftworks.data.parse import parse_record

    assert task == "driftworks.data.parse:parse_record"
    for index, record in enumerate(records):
        try:
            yield Outcome(index, value=parse_record(record))
        except Rejected as error:
            yield Outcome(index, reason=str(error))
        except Exception as error:
            yield Outcome(index, reason=_one_line(error))


@pytest.mark.slow
def test_ten_thousand_mutated_records_never_end_the_process(tmp_path: Path) -> None:
    """Buys: 10,000 hostile records go through the killable child, as users run it."""
    rng = np.random.default_rng(5)
    molecule = block("CC(=O)N1CCC1F", "x").encode()
    with open(tmp_path / "a.sdf", "wb") as handle:
        for _ in range(10_000):
            handle.write(mutate(molecule, rng).replace(b"$$$$", b"") + b"\n$$$$\n")
    start = time.monotonic()
    table = read(tmp_path / "a.sdf")
    assert len(table) + len(table.failures) == 10_000
    assert len(table) > 500 and len(table.failures) > 500
    assert time.monotonic() - start < 240
