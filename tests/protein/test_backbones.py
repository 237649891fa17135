"""Tables of backbones: what files throw at a reader, sampling that counts clusters, not chains."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from driftworks.data import backbones
from driftworks.data.structures import CLASSES, psea, read_structure, sse_class
from driftworks.errors import UserError
from driftworks.protein import ideal
from driftworks.protein.chains import Chains

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
NAMES = dict(
    zip(
        LETTERS,
        "ALA CYS ASP GLU PHE GLY HIS ILE LYS LEU MET ASN PRO GLN ARG SER THR VAL TRP TYR".split(),
        strict=True,
    )
)


def atoms_of(bb, sequence, chain="A", first=1):
    """A biotite array of a backbone (n, 4, 3) with its residues named by letters."""
    from biotite.structure import AtomArray

    n = len(bb)
    out = AtomArray(4 * n)
    out.coord = np.asarray(bb, np.float32).reshape(-1, 3)
    out.atom_name = np.tile(["N", "CA", "C", "O"], n)
    out.element = np.tile(["N", "C", "C", "O"], n)
    out.res_name = np.repeat([NAMES.get(s, s) for s in sequence], 4)
    out.res_id = np.repeat(np.arange(first, first + n), 4)
    out.chain_id = np.full(4 * n, chain)
    out.add_annotation("occupancy", float)
    out.occupancy[:] = 1.0
    out.add_annotation("b_factor", float)
    return out


def written(atoms, path):
    """The atoms in a file whose name says which format."""
    name = path.name.removesuffix(".gz")
    plain = path.with_name(name)
    if name.endswith(".pdb"):
        from biotite.structure.io.pdb import PDBFile

        file = PDBFile()
        file.set_structure(atoms)
    else:
        from biotite.structure.io import pdbx

        file = pdbx.BinaryCIFFile() if name.endswith(".bcif") else pdbx.CIFFile()
        pdbx.set_structure(file, atoms)
    file.write(plain)
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def sequence_of(n, rng):
    return "".join(rng.choice(list(LETTERS), n))


@pytest.fixture
def protein(rng):
    """Fifty residues: helix, turn, strand."""
    torsions = [ideal.HELIX] * 24 + [(-80.0, 80.0)] * 4 + [ideal.STRAND] * 22
    return ideal.backbone(torsions), sequence_of(50, rng)


@pytest.mark.parametrize("name", ["x.pdb", "x.cif", "x.bcif", "x.pdb.gz", "x.cif.gz", "x.bcif.gz"])
def test_every_format_gives_the_same_backbone(name, protein, tmp_path):
    bb, sequence = protein
    written(atoms_of(bb, sequence), tmp_path / name)
    table = backbones.from_folder(tmp_path)
    assert len(table) == 1 and not table.skipped and not table.repaired
    np.testing.assert_allclose(table.bb(0), bb, atol=6e-4)
    assert table.sequence(0) == sequence and table.ids == ("x_A",)
    assert table.complete.all() and table.unbroken.all()


def read(atoms, tmp_path, **options):
    written(atoms, tmp_path / "x.pdb")
    return backbones.from_folder(tmp_path, **options)


def test_a_missing_stretch_breaks_the_chain_and_its_long_piece_stands_for_it(protein, tmp_path):
    atoms = atoms_of(*protein)
    table = read(atoms[(atoms.res_id < 44) | (atoms.res_id > 46)], tmp_path)
    assert table.lengths.tolist() == [43] and table.ids == ("x_A:1-43",)
    assert table.repaired["chain break"] == 1


def test_a_broken_chain_can_be_kept_whole_and_shows_its_gap(protein, tmp_path):
    atoms = atoms_of(*protein)
    table = read(atoms[(atoms.res_id < 30) | (atoms.res_id > 33)], tmp_path, gaps=True)
    assert table.lengths.tolist() == [46] and not table.unbroken[0]
    chains = Chains.from_backbones(table)
    assert int(chains.bonded.sum()) == 44 and not chains.bonded[0, 28]


def test_a_chain_in_halves_is_skipped_and_counted(protein, tmp_path):
    atoms = atoms_of(*protein)
    with pytest.raises(UserError, match=r"broken chain without one long piece \(1\)"):
        read(atoms[(atoms.res_id < 24) | (atoms.res_id > 27)], tmp_path)


def test_cis_peptides_are_bonds_and_are_counted(protein, tmp_path):
    bb = np.concatenate([protein[0][:1], ideal.backbone([ideal.STRAND] * 49, omega=0.0)])
    table = read(atoms_of(bb[1:], protein[1][1:]), tmp_path)
    assert table.unbroken.all() and table.repaired == {"cis peptide": 48}


def test_the_likelier_of_two_locations_counts(protein, tmp_path):
    atoms = atoms_of(*protein)
    other = atoms[atoms.res_id == 10]
    atoms.add_annotation("altloc_id", "U1")
    atoms.altloc_id[atoms.res_id == 10] = "A"
    atoms.occupancy[atoms.res_id == 10] = 0.3
    other.coord += 0.5
    other.add_annotation("altloc_id", "U1")
    other.altloc_id[:] = "B"
    other.occupancy[:] = 0.7
    both = atoms[atoms.res_id <= 10] + other + atoms[atoms.res_id > 10]
    text = pdb_text(both)
    (tmp_path / "x.pdb").write_text(text)
    table = backbones.from_folder(tmp_path)
    np.testing.assert_allclose(table.ca(0)[9], protein[0][9, 1] + 0.5, atol=6e-4)
    assert table.repaired == {"atom at an alternate location": 4}


def pdb_text(atoms):
    """PDB lines written here, with alternate locations where the atoms have any."""
    lines = []
    for k in range(len(atoms)):
        alt = atoms.altloc_id[k] if "altloc_id" in atoms.get_annotation_categories() else ""
        x, y, z = atoms.coord[k]
        lines.append(
            f"ATOM  {k + 1:>5} {' ' + atoms.atom_name[k]:<4}{alt:1}{atoms.res_name[k]:>3} "
            f"{atoms.chain_id[k]}{atoms.res_id[k]:>4}    {x:8.3f}{y:8.3f}{z:8.3f}"
            f"{atoms.occupancy[k]:6.2f}{0:6.2f}          {atoms.element[k]:>2}"
        )
    return "\n".join([*lines, "END", ""])


def test_the_first_of_an_atom_given_twice_counts(protein, tmp_path):
    atoms = atoms_of(*protein)
    twin = atoms[(atoms.res_id == 5) & (atoms.atom_name == "CA")]
    twin.coord += 1.0
    (tmp_path / "x.pdb").write_text(
        pdb_text(atoms[atoms.res_id <= 5] + twin + atoms[atoms.res_id > 5])
    )
    table = backbones.from_folder(tmp_path)
    np.testing.assert_allclose(table.ca(0)[4], protein[0][4, 1], atol=6e-4)
    assert table.repaired == {"atom given twice": 1}


def test_selenomethionine_is_a_methionine(protein, tmp_path):
    atoms = atoms_of(*protein)
    atoms.res_name[atoms.res_id == 7] = "MSE"
    atoms.hetero[atoms.res_id == 7] = True
    table = read(atoms, tmp_path)
    assert table.lengths.tolist() == [50] and table.sequence(0)[6] == "M"
    assert table.repaired == {"modified residue": 1}


def test_missing_atoms_are_missing_and_a_missing_alpha_takes_its_residue_along(protein, tmp_path):
    atoms = atoms_of(*protein)
    gone = (atoms.res_id == 20) & (atoms.atom_name == "O")
    gone |= (atoms.res_id == 50) & (atoms.atom_name == "CA")
    table = read(atoms[~gone], tmp_path)
    assert table.lengths.tolist() == [49] and not table.complete[0]
    assert np.isnan(table.bb(0)[19, 3]).all() and np.isfinite(table.ca(0)).all()
    assert table.repaired == {"residue without C-alpha": 1, "residue without N, C or O": 1}


def test_chains_of_alphas_alone_are_read(protein, tmp_path):
    atoms = atoms_of(*protein)
    table = read(atoms[atoms.atom_name == "CA"], tmp_path)
    assert table.lengths.tolist() == [50] and table.unbroken.all() and not table.complete.any()


def test_what_is_no_protein_is_counted_by_what_it_is(protein, tmp_path):
    bb, sequence = protein
    good = atoms_of(bb, sequence)
    dna = atoms_of(bb[:10], ["DA"] * 10, chain="D")
    dna.atom_name = np.full(40, "P")
    water = atoms_of(bb[:5], ["HOH"] * 5, chain="W")
    water.atom_name = np.full(20, "O")
    twin = atoms_of(bb + 40, sequence, chain="B")
    written(good + dna + water + twin, tmp_path / "good.pdb")
    short = tmp_path / "short"
    short.mkdir()
    written(atoms_of(bb[:12], sequence[:12]), short / "short.cif")
    (tmp_path / "empty.pdb").write_text("")
    (tmp_path / "words.pdb").write_text("REMARK no atoms here\n")
    (tmp_path / "broken.cif").write_text("data_x\nloop_\n_atom_site.id\n_atom_site.x\n1\n")
    (tmp_path / "broken.bcif").write_bytes(b"\x93\x01\x02")
    (tmp_path / "broken.pdb.gz").write_bytes(b"not gzip")
    (tmp_path / "notes.txt").write_text("hello")
    table = backbones.from_folder(tmp_path)
    assert table.ids == ("good_A",)
    reasons = dict(table.skipped)
    assert reasons.pop("chain without amino acids") == 1
    assert reasons.pop("chain of solvent") == 1
    assert reasons.pop("chain with the sequence of another in its file") == 1
    assert reasons.pop("shorter than 40 residues") == 1
    assert reasons.pop("empty file") == 1
    assert reasons.pop("not a structure file (.txt)") == 1
    assert reasons.pop("unreadable file (BadGzipFile)") == 1
    assert sum(reasons.values()) == 3 and all(r.startswith("broken file") for r in reasons)


def test_a_file_of_several_models_gives_the_first(protein, tmp_path):
    from biotite.structure import stack

    bb, sequence = protein
    written(stack([atoms_of(bb, sequence), atoms_of(bb + 3, sequence)]), tmp_path / "x.cif")
    table = backbones.from_folder(tmp_path)
    assert len(table) == 1 and table.repaired == {"model after the first": 1}
    np.testing.assert_allclose(table.bb(0), bb, atol=6e-4)


def test_a_folder_without_a_chain_says_why(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        backbones.from_folder(tmp_path / "absent")
    with pytest.raises(UserError, match="no usable protein chain"):
        backbones.from_folder(tmp_path)


def test_reading_a_file_of_noise_is_a_counted_skip_whatever_the_bytes(tmp_path, rng):
    for k, suffix in enumerate([".pdb", ".cif", ".bcif", ".pdb.gz"] * 3):
        file = tmp_path / f"n{k}{suffix}"
        file.write_bytes(rng.bytes(400))
        reading = read_structure(file)
        assert not reading.pieces and sum(reading.skipped.values()) == 1


def test_a_trajectory_gives_a_chain_a_frame(protein, tmp_path):
    mdtraj = pytest.importorskip("mdtraj", reason="mdtraj is an optional dependency")
    bb, sequence = protein
    path = written(atoms_of(bb, sequence), tmp_path / "top.pdb")
    frames = mdtraj.load(str(path))
    frames = mdtraj.join([frames, frames, frames])
    frames.xyz[2] += 0.1
    frames.save_dcd(str(tmp_path / "run.dcd"))
    table = backbones.from_trajectory(tmp_path / "run.dcd", path)
    assert len(table) == 3 and len(set(table.cluster.tolist())) == 1
    np.testing.assert_allclose(table.bb(2), bb + 1.0, atol=2e-3)
    assert table.sequence(0) == sequence
    with pytest.raises(UserError, match="mdtraj cannot read"):
        backbones.from_trajectory(tmp_path / "run.dcd")


def tiny(rng, counts=(50, 60, 45, 48), cluster=(0, 0, 0, 1)):
    pieces = rng.normal(size=(sum(counts), 4, 3)).astype(np.float32) * 20
    return backbones.Backbones(
        ids=tuple(f"c{k}" for k in range(len(counts))),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        coords=pieces,
        residues=np.concatenate([np.arange(n) for n in counts]),
        letters=np.full(sum(counts), 65, np.uint8),
        sse_class=np.array([0, 1, 2, 3]),
        cluster=np.array(cluster),
        split=np.array([0, 0, 1, 2], np.int8),
    )


def test_a_table_written_is_the_table_read(rng, tmp_path):
    table = tiny(rng)
    table.coords[3, 0] = np.nan
    table.residues[30:50] += 4
    back = backbones.read(table.write(tmp_path / "t.npz"))
    assert back.ids == table.ids
    np.testing.assert_allclose(back.coords, table.coords, atol=0.0051)
    for name in ("offsets", "residues", "letters", "sse_class", "cluster", "split"):
        np.testing.assert_array_equal(getattr(back, name), getattr(table, name))
    far = table.coords + 5000
    moved = backbones.replace(table, coords=far).write(tmp_path / "far.npz")
    np.testing.assert_allclose(backbones.read(moved).coords, far, atol=0.01)


def test_a_selection_is_its_rows(rng):
    table = tiny(rng)
    part = table.select([2, 0])
    assert part.ids == ("c2", "c0") and part.lengths.tolist() == [45, 50]
    np.testing.assert_array_equal(part.ca(1), table.ca(0))
    assert len(table.select([])) == 0


def test_filters_are_joined_by_and(rng):
    table = tiny(rng)
    assert table.rows("train").tolist() == [0, 1]
    assert table.rows("train", (55, 99)).tolist() == [1]
    assert table.rows(classes=["beta", "few"]).tolist() == [1, 3]
    table.coords[0, 2] = np.nan
    assert table.rows(complete=True).tolist() == [1, 2, 3]
    for wrong in ({"split": "x"}, {"classes": ["x"]}, {"lengths": (9, 2)}):
        with pytest.raises(UserError):
            table.rows(**wrong)


def test_every_cluster_is_drawn_equally_often(rng):
    table = tiny(rng)
    np.testing.assert_allclose(table.weights(), [1 / 6, 1 / 6, 1 / 6, 1 / 2])
    np.testing.assert_allclose(table.weights([0, 3]), [1 / 2, 1 / 2])
    grid = (np.arange(6000) + 0.5) / 6000
    assert np.bincount(table.draw(grid)).tolist() == [1000, 1000, 1000, 3000]
    assert set(table.draw(grid, [1, 2]).tolist()) == {1, 2}


def test_crops_are_contiguous_unbroken_and_uniform(rng):
    table = tiny(rng)
    assert table.crop(0, 50, 0.9) == slice(0, 50) and table.crop(0, 70, 0.1) == slice(0, 50)
    starts = [table.crop(1, 40, u).start for u in (np.arange(2100) + 0.5) / 2100]
    assert np.bincount(starts).tolist() == [100] * 21
    table.residues[20:50] += 3  # a break in chain 0 before residue 20
    starts = {table.crop(0, 25, u).start for u in np.linspace(0, 0.999, 200)}
    assert starts == set(range(20, 26))
    with pytest.raises(UserError, match="no 40 residues in a row"):
        table.crop(0, 40, 0.5)


def test_similar_sequences_share_a_cluster_and_unrelated_ones_do_not(rng):
    base = sequence_of(100, rng)
    relative = "".join(c if rng.random() < 0.9 else "A" for c in base)
    cluster = backbones.clusters_of([base, sequence_of(100, rng), relative, base[20:80]])
    assert cluster[0] == cluster[2] == cluster[3] != cluster[1]


def test_a_cluster_lies_on_one_side_of_the_split(rng, tmp_path):
    torsions = [ideal.HELIX] * 50
    for k in range(30):
        base = sequence_of(50, rng)
        for copy in range(2):
            letters = base[:-1] + "AG"[copy]
            written(atoms_of(ideal.backbone(torsions), letters), tmp_path / f"{k}_{copy}.pdb")
    table = backbones.from_folder(tmp_path)
    assert len(table) == 60 and len(set(table.cluster.tolist())) == 30
    for c in range(30):
        assert len(set(table.split[table.cluster == c].tolist())) == 1


@pytest.mark.parametrize(
    "shares, name",
    [((0.7, 0.0), "alpha"), ((0.05, 0.4), "beta"), ((0.3, 0.2), "mixed"), ((0.1, 0.1), "few")],
)
def test_classes_follow_the_shares(shares, name):
    assert sse_class(*shares) == CLASSES[name]


def test_psea_knows_helix_and_strand_but_not_their_hand():
    assert (psea(ideal.helix(20)) == "a").mean() > 0.8
    assert (psea(ideal.helix(20, left=True)) == "a").mean() > 0.8
    assert (psea(ideal.backbone([ideal.STRAND] * 20)[:, 1]) == "b").mean() > 0.8
    assert psea(np.zeros((3, 3))).tolist() == ["c"] * 3


def test_damaged_tables_are_refused(tmp_path, rng):
    with pytest.raises(UserError, match="no file of backbones"):
        backbones.read(tmp_path / "absent.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UserError, match="damaged"):
        backbones.read(tmp_path / "bad.npz")
    good = tiny(rng).write(tmp_path / "good.npz")
    columns = dict(np.load(good))
    for change, message in (
        ({"offsets": columns["offsets"][:-1]}, "offsets do not divide"),
        ({"bb": columns["bb"][:-1]}, "bb has shape"),
        ({"seq": columns["seq"][:-1]}, "seq has shape"),
        ({"sse_class": columns["sse_class"] + 9}, "outside 1..5"),
    ):
        np.savez(tmp_path / "wrong.npz", **{**columns, **change})
        with pytest.raises(UserError, match=message):
            backbones.read(tmp_path / "wrong.npz")
    np.savez(tmp_path / "pickled.npz", ids=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="damaged"):
        backbones.read(tmp_path / "pickled.npz")


def test_the_shared_table_reads_whole(all_backbones):
    table = all_backbones
    assert len(table) == 7742 and int(table.offsets[-1]) == 975820
    assert [int((table.split == s).sum()) for s in (0, 1, 2)] == [7108, 372, 262]
    assert not set(table.cluster[table.split == 0]) & set(table.cluster[table.split == 2])
    row = int(table.rows("test", (60, 90))[0])
    sse = psea(table.ca(row))
    assert sse_class((sse == "a").mean(), (sse == "b").mean()) == table.sse_class[row]
