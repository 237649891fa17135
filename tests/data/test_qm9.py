"""QM9 from its public archive (served on this machine), from texts, and from arrays."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from driftworks import data
from driftworks.data.qm9 import parse_xyz, qm9, standard_split, uncharacterized_ids
from driftworks.data.table import MoleculeTable
from driftworks.data.units import EV_PER_HARTREE
from driftworks.errors import UserError

qm9_module = sys.modules["driftworks.data.qm9"]

# the first record of the archive, methane
METHANE = """5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t\
-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 0.002150416\t-0.0060313176\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 0.0002765748\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923
1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078
C\tC\t
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""


def xyz(index: int, smiles: str, reference: str | None = None, value: float = 0.1) -> str:
    """An embedded molecule in the archive's form, with numbers as Mathematica writes them."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    atoms = [
        "\t".join([atom.GetSymbol(), *(mathematica(v) for v in place), "-0.1"])
        for atom, place in zip(mol.GetAtoms(), mol.GetConformer().GetPositions(), strict=True)
    ]
    values = "\t".join(mathematica(value * (k + 1)) for k in range(15))
    given = reference or smiles
    tail = ["100.\t200.", f"{given}\t{given}\t", "InChI=1S/x\tInChI=1S/x"]
    return "\n".join([str(len(atoms)), f"gdb {index}\t{values}\t", *atoms, *tail]) + "\n"


def mathematica(value: float) -> str:
    mantissa, exponent = f"{value:.9e}".split("e")
    return f"{mantissa}*^{int(exponent)}"


def write_archive(path: Path, texts: list[str]) -> Path:
    with tarfile.open(path, "w:bz2") as archive:
        for k, text in enumerate(texts, start=1):
            member = tarfile.TarInfo(f"dsgdb9nsd_{k:06d}.xyz")
            content = text.encode()
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_excluded(path: Path, first: int) -> Path:
    """3,054 numbers from `first` on, in the layout of the published list."""
    rows = [f"    {k}   CC   CC   0.1" for k in range(first, first + 3054)]
    head = ["Index of", "molecules that failed the test", "2 words", "====  ====", " Index  SMILES"]
    path.write_text("\n".join([*head[:2], "-" * 9, *head[3:], *rows]) + "\n")
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write_excluded(tmp_path / "uncharacterized.txt", 6)
    texts = [
        METHANE,
        xyz(2, "NC(=O)C=O"),
        "5\ngdb 3\t1.0\n",
        xyz(4, "NC(=O)C=O", "[NH2+]=C([O-])C=O"),
        xyz(5, "NCC(=O)O", "C[NH2+]C([O-])=O"),
        xyz(6, "c1ccncc1", value=-2.5e-6),
        xyz(7, "[CH3]"),
        xyz(999_999, "C"),
    ]
    return write_archive(tmp_path / "dsgdb9nsd.xyz.tar.bz2", texts)


def test_the_published_text_of_methane_is_read_to_the_digit() -> None:
    record = parse_xyz(METHANE)
    assert record.index == 1 and record.numbers.tolist() == [6, 1, 1, 1, 1]
    assert record.positions[1].tolist() == [0.002150416, -0.0060313176, 0.0019761204]
    assert (record.smiles, record.relaxed_smiles) == ("C", "C")
    assert record.properties == {
        "A": 157.7118,
        "B": 157.70997,
        "C": 157.70699,
        "mu": 0.0,
        "alpha": 13.21,
        "homo": -0.3877 * EV_PER_HARTREE,
        "lumo": 0.1171 * EV_PER_HARTREE,
        "gap": 0.5048 * EV_PER_HARTREE,
        "r2": 35.3641,
        "zpve": 0.044749,
        "u0": -40.47893,
        "u298": -40.476062,
        "h298": -40.475117,
        "g298": -40.498597,
        "cv": 6.469,
    }


def test_mathematica_exponents_are_numbers() -> None:
    text = METHANE.replace("1.0858041578", "1.0858041578*^-6").replace("13.21", "1.321*^1")
    record = parse_xyz(text)
    assert record.positions[0, 1] == 1.0858041578e-6
    assert record.properties["alpha"] == 13.21


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("5\n", "six\n"),
        ("5\n", "500\n"),
        ("5\n", "0\n"),
        ("gdb 1", "gdb"),
        ("gdb 1", "gdb one"),
        ("13.21", "13.21\t9"),
        ("13.21", "thirteen"),
        ("13.21", "nan"),
        ("C\t-0.01", "Xx\t-0.01"),
        ("1.0858041578", "1.08.58"),
        ("1.0858041578", "inf"),
        ("C\tC\t", "C"),
    ],
)
def test_a_malformed_text_is_refused(old: str, new: str) -> None:
    assert old in METHANE
    with pytest.raises(ValueError):
        parse_xyz(METHANE.replace(old, new, 1))


def test_an_archive_becomes_a_table_and_failures_are_listed(archive: Path) -> None:
    table = qm9(archive, progress=False, workers=1)
    assert table.ids == [f"qm9:{k:06d}" for k in (1, 2, 4, 5, 6, 7)]
    assert table.smiles == [
        "C",
        "NC(=O)C=O",
        "[NH2+]=C([O-])C=O",
        "NCC(=O)O",
        "c1ccncc1",
        "",
    ]
    assert table.status.tolist() == [0, 0, 1, 2, 0, 3]
    assert table.uncharacterized.tolist() == [False] * 4 + [True] * 2
    assert [(f.record, f.name) for f in table.failures] == [
        (3, "dsgdb9nsd_000003.xyz"),
        (8, "dsgdb9nsd_000008.xyz"),
        (7, "qm9:000007"),
    ]
    assert table.failures[2].reason.startswith("no Lewis structure")
    assert table.units["gap"] == "eV" and table.units["alpha"] == "bohr^3"
    assert table.property("alpha")[0] == 13.21
    assert table.property("gap")[4] == pytest.approx(-2.5e-6 * 8 * EV_PER_HARTREE, rel=1e-9)
    assert table.split.tolist() == [
        *standard_split(set(range(6, 3060)))[[0, 1, 3, 4]].tolist(),
        -1,
        -1,
    ]
    assert set(table.where(clean=True).ids) == {"qm9:000001", "qm9:000002", "qm9:000004"}


def test_a_folder_of_texts_gives_the_same_table(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    write_excluded(folder / "uncharacterized.txt", 6)
    a, b = qm9(archive, progress=False, workers=1), qm9(folder, progress=False, workers=2)
    assert a.ids == b.ids and a.smiles == b.smiles and np.array_equal(a.positions, b.positions)
    assert np.array_equal(a.bonds, b.bonds) and sorted(a.failures) == sorted(b.failures)
    assert qm9(archive, limit=2, progress=False, workers=1).ids == a.ids[:2]


def test_an_archive_needs_the_list_of_uncharacterised_molecules(
    archive: Path, tmp_path: Path
) -> None:
    (tmp_path / "uncharacterized.txt").unlink()
    with pytest.raises(UserError, match="no list of uncharacterised molecules at .*3195404"):
        qm9(archive, progress=False, workers=1)
    (tmp_path / "list.txt").write_text("  12  CC\n")
    with pytest.raises(UserError, match="lists 1 molecules, not the 3054"):
        qm9(archive, uncharacterized=tmp_path / "list.txt", progress=False, workers=1)


def test_a_damaged_archive_is_a_user_error(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no archive at all" * 100):
        archive.write_bytes(content)
        with pytest.raises(UserError, match="damaged|no readable"):
            qm9(archive, progress=False, workers=1)
    with pytest.raises(UserError, match="no QM9 file at"):
        qm9(tmp_path / "missing.npz")
    (tmp_path / "bad.npz").write_bytes(whole[:300])
    with pytest.raises(UserError, match="damaged or not a QM9 file"):
        qm9(tmp_path / "bad.npz")
    with pytest.raises(UserError, match="limit must be at least 1"):
        qm9(archive, limit=0)


def test_the_public_download_is_built_once_and_then_read_offline(
    archive: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, directory=str(archive.parent), **options)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        for name in ("ARCHIVE", "EXCLUDED"):
            remote = getattr(qm9_module, name)
            content = (archive.parent / remote.name).read_bytes()
            served = replace(
                remote,
                url=f"http://127.0.0.1:{server.server_address[1]}/{remote.name}",
                size=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
            )
            monkeypatch.setattr(qm9_module, name, served)
        first = data.qm9(progress=False, workers=1)
        server.shutdown()
        thread.join()
    again = data.qm9(progress=False, workers=1)
    assert again.ids == first.ids and again.failures == first.failures
    assert again.ids == qm9(archive, progress=False, workers=1).ids
    listed = (cache / "qm9-1-failures.csv").read_text().splitlines()
    assert len(listed) == 1 + len(first.failures) == 4
    assert data.qm9(limit=1, progress=False, workers=1).ids == ["qm9:000001"]


def test_without_a_network_the_download_fails_in_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = replace(qm9_module.EXCLUDED, url="http://127.0.0.1:9/uncharacterized.txt")
    monkeypatch.setattr(qm9_module, "EXCLUDED", remote)
    monkeypatch.setattr("driftworks.data.download.time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match="cannot download http://127.0.0.1:9/") as caught:
        data.qm9(progress=False, workers=1)
    assert "\n" not in str(caught.value)


def test_the_standard_split_has_its_published_sizes() -> None:
    split = standard_split(set(range(1, 3055)))
    assert [int((split == code).sum()) for code in (0, 1, 2, -1)] == [
        100_000,
        17_748,
        13_083,
        3_054,
    ]
    assert np.array_equal(split, standard_split(set(range(1, 3055))))


def test_the_public_files_have_their_published_names_and_sizes() -> None:
    assert qm9_module.ARCHIVE.url.endswith("/3195389") and qm9_module.ARCHIVE.size == 86_144_227
    assert qm9_module.EXCLUDED.url.endswith("/3195404") and qm9_module.EXCLUDED.size == 486_752
    assert {len(r.sha256) for r in (qm9_module.ARCHIVE, qm9_module.EXCLUDED)} == {64}


@pytest.fixture(scope="module")
def whole(data_dir: Path) -> MoleculeTable:
    return data.qm9(data_dir / "qm9.npz")


@pytest.mark.data
def test_the_array_form_keeps_every_molecule_and_label(
    whole: MoleculeTable, data_dir: Path
) -> None:
    with np.load(data_dir / "qm9.npz", allow_pickle=False) as archive:
        index, split = archive["index"], archive["split"]
    with np.load(data_dir / "qm9_labels.npz", allow_pickle=False) as archive:
        values = dict(zip(archive["names"].tolist(), archive["values"].T, strict=True))
        at = {int(k): row for row, k in enumerate(archive["index"])}
    assert len(whole) == len(index) > 130_000
    assert np.array_equal(whole.split, split)
    for i in np.random.default_rng(0).integers(0, len(whole), 200).tolist():
        row = at[int(whole.ids[i].split(":")[1])]
        molecule = whole.molecule(i)
        for name, column in values.items():
            factor = EV_PER_HARTREE if name in ("homo", "lumo", "gap") else 1.0
            assert molecule.properties[name] == column[row] * factor
    # the means of the characterised molecules that QM9's users quote, in their units
    kept = ~whole.uncharacterized
    for name, mean in (
        ("mu", 2.673),
        ("alpha", 75.28),
        ("cv", 31.62),
        ("gap", 0.25205 * EV_PER_HARTREE),
    ):
        assert whole.property(name)[kept].mean() == pytest.approx(mean, rel=2e-3)
    gap = whole.property("lumo") - whole.property("homo")
    assert np.abs(gap - whole.property("gap")).max() < 0.02


@pytest.mark.data
def test_labels_are_joined_by_number_and_not_by_row(
    whole: MoleculeTable, data_dir: Path, tmp_path: Path
) -> None:
    with np.load(data_dir / "qm9_labels.npz", allow_pickle=False) as archive:
        labels = {name: archive[name] for name in ("index", "names", "units", "values")}
    keep = np.random.default_rng(0).permutation(len(labels["index"]))[:-1000]
    labels["index"], labels["values"] = labels["index"][keep], labels["values"][keep]
    np.savez(tmp_path / "shuffled.npz", **labels)
    joined = data.qm9(data_dir / "qm9.npz", labels=tmp_path / "shuffled.npz")
    missing = np.isnan(joined.property("alpha"))
    assert missing.sum() == 1000
    assert np.array_equal(joined.property("alpha")[~missing], whole.property("alpha")[~missing])


@pytest.mark.data
def test_the_clean_training_set_is_the_one_described(whole: MoleculeTable) -> None:
    clean = whole.where("train", clean=True)
    assert 99_900 < len(clean) <= 100_000
    assert not clean.uncharacterized.any() and clean.status.max() < 2
    assert (clean.bond_counts > 0).all() and all(clean.smiles)


@pytest.mark.data
def test_the_standard_split_is_that_of_the_field(whole: MoleculeTable) -> None:
    index = np.array([int(name.split(":")[1]) for name in whole.ids])
    doubtful = set(index[whole.uncharacterized].tolist())
    assert len(doubtful) == 3054
    assert np.array_equal(standard_split(doubtful)[index - 1], whole.split)


@pytest.mark.data
def test_texts_made_from_known_molecules_come_back_equal(
    whole: MoleculeTable, tmp_path: Path
) -> None:
    write_excluded(tmp_path / "uncharacterized.txt", 100_000)
    assert len(uncharacterized_ids(tmp_path / "uncharacterized.txt")) == 3054
    rows = np.random.default_rng(2).choice(whole.rows(clean=True), 40, replace=False)
    chosen = whole.select(np.sort(rows))
    texts = []
    order = "A B C mu alpha homo lumo gap r2 zpve u0 u298 h298 g298 cv".split()
    for molecule in chosen:
        values = [
            molecule.properties[name] / (EV_PER_HARTREE if name in ("homo", "lumo", "gap") else 1)
            for name in order
        ]
        symbols = [Chem.GetPeriodicTable().GetElementSymbol(int(z)) for z in molecule.numbers]
        atoms = [
            "\t".join([symbol, *(mathematica(v) for v in place), "0."])
            for symbol, place in zip(symbols, molecule.positions.tolist(), strict=True)
        ]
        head = f"gdb {int(molecule.id[4:])}\t" + "\t".join(map(mathematica, values))
        tail = ["1.", f"{molecule.smiles}\t{molecule.smiles}", "InChI\tInChI"]
        texts.append("\n".join([str(len(atoms)), head, *atoms, *tail]))
    table = qm9(write_archive(tmp_path / "a.tar.bz2", texts), progress=False, workers=1)
    assert table.ids == chosen.ids and table.smiles == chosen.smiles and not table.failures
    assert np.array_equal(table.numbers, chosen.numbers)
    assert np.array_equal(table.positions, chosen.positions)
    assert np.array_equal(table.status > 0, chosen.status > 1)
    for name in order:
        assert table.property(name) == pytest.approx(chosen.property(name), rel=1e-8)
