"""Files and objects of designs: what is written is what other programs read."""

from __future__ import annotations

import errno
import io
import json

import numpy as np
import pytest
import torch

from driftworks.data import backbones
from driftworks.errors import UserError
from driftworks.protein import files, ideal
from driftworks.protein.chains import Chains
from driftworks.protein.designs import Designs
from driftworks.protein.reconstruct import full_backbones


@pytest.fixture
def chains() -> Chains:
    return Chains.of([ideal.helix(20), ideal.hairpin(16)], ids=["one", "two/../x"], labels=[0, 4])


def designs(error: float = 1.0) -> Designs:
    """Two helices, of which the second failed."""
    c = Chains.of([ideal.helix(12), np.full((12, 3), np.nan)], ids=["a-0", "a-1"], labels=[0, 4])
    spread = torch.full(c.mask.shape, error) * torch.linspace(0.5, 1.5, 12)
    return Designs(
        c.ca, c.mask, c.ids, c.index, c.label, spread, torch.tensor([True, False]), {"seed": 0}
    )


def by_biotite(path):
    from biotite.structure.io import pdb, pdbx

    if path.suffix == ".pdb":
        return pdb.PDBFile.read(path).get_structure(model=1, extra_fields=["b_factor"])
    file = (pdbx.BinaryCIFFile if path.suffix == ".bcif" else pdbx.CIFFile).read(path)
    return pdbx.get_structure(file, model=1, extra_fields=["b_factor"])


@pytest.mark.parametrize("fmt", ["pdb", "cif", "bcif"])
def test_a_file_a_chain_comes_back_through_biotite(fmt, chains, tmp_path) -> None:
    scores = [np.linspace(0, 100, 20), np.full(16, 7.25)]
    paths = files.write(chains, tmp_path / "new" / "deep", fmt, confidence=scores)
    assert [p.name for p in paths] == [f"one.{fmt}", f"two_.._x.{fmt}"]
    for path, bb, score in zip(paths, full_backbones(chains), scores, strict=True):
        atoms = by_biotite(path)
        assert atoms.atom_name.tolist() == ["N", "CA", "C", "O"] * len(bb)
        assert set(atoms.res_name) == {"GLY"} and set(atoms.chain_id) == {"A"}
        assert atoms.element.tolist() == ["N", "C", "C", "O"] * len(bb)
        assert atoms.res_id.tolist() == np.repeat(np.arange(1, len(bb) + 1), 4).tolist()
        assert np.abs(atoms.coord.reshape(-1, 4, 3) - bb).max() < 6e-4
        assert np.abs(atoms.b_factor.reshape(-1, 4) - score[:, None]).max() < 6e-3
    assert sorted(p.name for p in paths[0].parent.iterdir()) == sorted(p.name for p in paths)


@pytest.mark.parametrize("fmt", ["pdb", "cif"])
def test_mdtraj_reads_the_files_and_sees_a_helix(fmt, chains, tmp_path) -> None:
    mdtraj = pytest.importorskip("mdtraj")
    frame = mdtraj.load(str(files.write(chains, tmp_path, fmt)[0]))
    assert (frame.n_residues, frame.n_atoms) == (20, 80)
    assert np.abs(10 * frame.xyz[0][1::4] - ideal.helix(20)).max() < 2e-3
    assert set(mdtraj.compute_dssp(frame)[0][3:-3]) == {"H"}


@pytest.mark.parametrize("fmt", ["pdb", "cif", "bcif"])
def test_our_own_reader_finds_one_whole_chain_in_each_file(fmt, chains, tmp_path) -> None:
    paths = files.write(chains, tmp_path, fmt, residue="ALA")
    table = files.read(tmp_path)
    assert table.lengths.tolist() == [20, 16] and table.unbroken.all() and table.complete.all()
    assert table.sequence(0) == "A" * 20 and not table.skipped
    atoms = by_biotite(paths[0])
    assert atoms.atom_name[:5].tolist() == ["N", "CA", "C", "O", "CB"]


def test_gaps_stay_gaps_and_every_line_of_a_pdb_has_eighty_columns(tmp_path) -> None:
    points = np.concatenate([ideal.helix(8), ideal.helix(8) + [40.0, 0.0, 0.0]])
    index = np.concatenate([np.arange(8), np.arange(20, 28)])
    (path,) = files.write(Chains.of([points], index=[index]), tmp_path)
    assert np.unique(by_biotite(path).res_id).tolist() == (index + 1).tolist()
    lines = path.read_text().splitlines()
    assert {len(line) for line in lines} == {80} and lines[-1].strip() == "END"
    table = files.read(path)
    assert len(table) == 1 and not table.unbroken.any()


def test_an_archive_holds_all_chains_with_confidence_and_label(chains, tmp_path) -> None:
    scores = [np.full(20, 80.0), np.full(16, 20.0)]
    (path,) = files.write(chains, tmp_path, "npz", confidence=scores)
    table = backbones.read(path)
    assert table.ids == chains.ids and table.sse_class.tolist() == [0, 4]
    for row, bb in enumerate(full_backbones(chains)):
        assert np.abs(table.bb(row) - bb).max() < 1e-5
    with np.load(path, allow_pickle=False) as stored:
        assert stored["confidence"].tolist() == [80.0] * 20 + [20.0] * 16
    found, full, left_out = files.read_designs([tmp_path])  # a folder with nothing else in it
    assert found.lengths.tolist() == [20, 16] and len(full) == 2 and not left_out


def test_confidence_is_the_expected_share_of_thresholds_that_are_met(rng) -> None:
    for u in (0.2, 1.0, 2.5, 6.0):
        gaps = np.linalg.norm(rng.normal(size=(200_000, 3)) * u / np.sqrt(3), axis=1)
        share = np.mean([(gaps < r).mean() for r in (0.5, 1.0, 2.0, 4.0)])
        assert files.confidence_of(u) == pytest.approx(100 * share, abs=0.5)
    assert files.confidence_of([0.0, 1e9]) == pytest.approx([100.0, 0.0], abs=1e-6)
    with pytest.raises(UserError, match="negative"):
        files.confidence_of([1.0, -0.5])


def test_a_models_confidence_goes_into_the_column_and_what_failed_is_left_out(tmp_path) -> None:
    drawn = designs()
    with pytest.warns(RuntimeWarning, match="1 of 2 chains"):
        (path,) = files.write(drawn, tmp_path)
    errors = drawn.confidence[0].numpy()
    found = by_biotite(path).b_factor[::4]
    np.testing.assert_allclose(found, files.confidence_of(errors), atol=6e-3)
    assert (np.diff(found) < 0).all()
    record = json.loads(files.write_record(drawn, tmp_path / "a.json", [path.name]).read_text())
    assert [row["file"] for row in record["designs"]] == ["a-0.pdb", None]
    assert [row["label"] for row in record["designs"]] == ["alpha", None]
    assert record["made"] == {"seed": 0} and record["finite"] == 1
    assert record["designs"][1]["confidence"] is None
    assert files.read_designs([tmp_path])[2] == {}  # the record is nothing that was left out
    with pytest.warns(RuntimeWarning):
        (path,) = files.write(designs(0.0), tmp_path)
    assert (by_biotite(path).b_factor == 0).all()  # not asked for is not certain


def test_objects_of_biotite_go_around_and_keep_their_atoms(chains) -> None:
    pytest.importorskip("biotite")
    same = Chains.of([ideal.helix(20), ideal.hairpin(20)])
    stack = files.to_stack(same)
    assert stack.shape == (2, 80)
    arrays = files.to_atom_array(stack)
    for model, one in enumerate(arrays):
        np.testing.assert_array_equal(one.coord, stack.coord[model])
    assert [len(one) for one in files.to_atom_array(chains)] == [80, 64]
    lists = files.to_atom_array([arrays[0], ideal.helix(5), full_backbones(chains)[1]])
    assert [len(one) for one in lists] == [80, 20, 64]


def test_an_mdtraj_trajectory_has_a_frame_a_chain_in_nanometres() -> None:
    mdtraj = pytest.importorskip("mdtraj")
    points = [ideal.helix(15), ideal.strand(15)]
    made = files.to_mdtraj(points)
    assert (made.n_frames, made.n_residues) == (2, 15)
    np.testing.assert_allclose(made.xyz[:, 1::4], np.stack(points) / 10, atol=1e-4)
    codes = mdtraj.compute_dssp(made)
    assert set(codes[0][3:-3]) == {"H"} and "H" not in codes[1]
    assert made.topology.n_bonds == 4 * 15 - 1


def test_what_does_not_go_together_is_refused(chains, tmp_path) -> None:
    for call in (files.to_stack, files.to_mdtraj):
        with pytest.raises(UserError, match="16 to 20"):
            call(chains)
    refused = {
        "unknown format 'gro'": lambda: files.write(chains, tmp_path, "gro"),
        "unknown residue 'TRP'": lambda: files.write(chains, tmp_path, residue="TRP"),
        "no chains": lambda: files.write([], tmp_path),
        "none of the 0": lambda: files.write(Chains.of([]), tmp_path),
        "one number": lambda: files.write(chains, tmp_path, confidence=[np.ones(20)]),
        "between 0 and 100": lambda: files.write(
            chains, tmp_path, confidence=[np.full(20, 101.0), np.ones(16)]
        ),
        "shape": lambda: files.write([np.zeros((3, 5))], tmp_path),
        "none of the 1": lambda: files.write([np.full((9, 3), np.nan)], tmp_path),
        "no file": lambda: files.read(tmp_path / "absent.pdb"),
        "columns of a PDB": lambda: files.write([np.arange(900)[:, None] * np.ones(3) * 3], "x"),
    }
    for message, call in refused.items():
        with pytest.raises(UserError, match=message):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_chain_far_from_the_origin_is_moved_into_the_columns_of_a_pdb(tmp_path) -> None:
    (path,) = files.write([ideal.helix(9) + 5e4], tmp_path)
    found = by_biotite(path).coord[1::4]
    gaps = np.linalg.norm(np.diff(found, axis=0), axis=1)
    np.testing.assert_allclose(gaps, 3.83, atol=0.02)


def test_names_that_collide_on_a_file_system_are_numbered_apart() -> None:
    names = files.file_names(["a b", "a_b", "A_b", "..", "a_b_2"], "pdb")
    assert len({name.lower() for name in names}) == 5
    assert names[0] == "a_b.pdb" and names[3] == "chain.pdb" and names[4] == "a_b_2.pdb"


def test_a_full_disk_is_one_line_and_leaves_what_was_there(chains, tmp_path, monkeypatch) -> None:
    paths = files.write(chains, tmp_path)
    before = paths[0].read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("driftworks.core.checkpoint.write_atomically", full)
    with pytest.raises(UserError, match=r"one\.pdb: No space left"):
        files.write(chains, tmp_path)
    assert paths[0].read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    (tmp_path / "file").write_text("")
    monkeypatch.undo()
    with pytest.raises(UserError, match="cannot write"):
        files.write(chains, tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pdb", "", "empty file"),
        ("broken.cif", "data_x\nloop_\n_atom_site.id\n", "broken file"),
        ("words.pdb", "HEADER nothing\n", "broken file"),
        ("water.pdb", "HETATM    1  O   HOH A   1       0.000   0.000   0.000  1.00  0.00"
         "           O\n", "chain of solvent"),
        ("notes.txt", "words", "not a structure file"),
    ],
)  # fmt: skip
def test_a_file_without_a_protein_says_why(name, content, message, tmp_path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        files.read(tmp_path / name)


def test_the_title_of_an_mmcif_says_that_no_sequence_is_designed(chains, tmp_path) -> None:
    from biotite.structure.io import pdbx

    for fmt, kind in (("cif", pdbx.CIFFile), ("bcif", pdbx.BinaryCIFFile)):
        path = files.write(chains, tmp_path, fmt)[0]
        title = kind.read(io.BytesIO(path.read_bytes()) if fmt == "bcif" else str(path))
        assert "no sequence" in title.block["struct"]["title"].as_item()
