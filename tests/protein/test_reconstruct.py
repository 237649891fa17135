"""Backbones built around C-alphas: against closed forms, real atoms, symmetries and breaks."""

from __future__ import annotations

import numpy as np
import pytest

from driftworks.errors import UserError
from driftworks.protein import geometry, ideal
from driftworks.protein.chains import Chains
from driftworks.protein.reconstruct import Peptides, beta_carbons, full_backbones


def errors(torsions: tuple[float, float], n: int = 24) -> np.ndarray:
    """(n, 4) distances of rebuilt atoms from those of an ideal backbone [angstrom]."""
    real = ideal.backbone([torsions] * n)
    return np.linalg.norm(full_backbones([real[:, 1]])[0] - real, axis=-1)


@pytest.mark.parametrize(
    "torsions",
    [ideal.HELIX, (-60.0, -45.0), (-120.0, 130.0), (-110.0, 125.0), (-75.0, 145.0)],
)
def test_atoms_of_ideal_helices_and_twisted_strands_come_back_within_three_tenths(torsions) -> None:
    assert errors(torsions).max() < 0.3


@pytest.mark.parametrize("torsions", [(-49.0, -26.0), (-119.0, 113.0), ideal.STRAND])
def test_so_they_do_on_average_where_nature_hardly_goes(torsions) -> None:
    built = errors(torsions)[:, [0, 2, 3]]
    assert np.sqrt(np.square(built).mean()) < 0.3 and built[:, :2].max() < 0.15


def test_the_alpha_helix_keeps_its_torsions() -> None:
    angle = geometry.torsions(full_backbones([ideal.helix(30)])[0])
    assert np.abs(angle[3:-3, 0] + 60).max() < 8 and np.abs(angle[3:-3, 1] + 45).max() < 8


def test_bonds_inside_a_peptide_have_the_lengths_of_engh_and_huber() -> None:
    bb = full_backbones([ideal.hairpin(20), ideal.helix(9)])
    for one in bb:
        stretch = np.linalg.norm(np.diff(one[:, 1], axis=0), axis=1) / 3.804
        for a, b, length in ((one[:-1, 1], one[:-1, 2], 1.525), (one[:-1, 2], one[1:, 0], 1.329),
                             (one[:-1, 2], one[:-1, 3], 1.231), (one[1:, 0], one[1:, 1], 1.458)):
            found = np.linalg.norm(a - b, axis=1)
            # stretching a chain of bonds by s stretches none of them by more than s
            assert (np.abs(found / length - 1) <= np.abs(stretch - 1) + 1e-3).all()


def test_c_alphas_stay_where_they_are_and_the_answer_turns_with_the_chain(rng, turn) -> None:
    points = ideal.bundle(60) + rng.normal(size=(60, 3)) * 0.1
    rotation, shift = turn(), rng.normal(size=3) * 30
    first = full_backbones([points])[0]
    moved = full_backbones([points @ rotation.T + shift])[0]
    assert np.abs(first[:, 1] - points).max() < 1e-5
    assert np.abs(first @ rotation.T + shift - moved).max() < 1e-3  # chains hold single precision


def test_padding_and_neighbours_change_nothing() -> None:
    one, two = ideal.helix(12), ideal.hairpin(20)
    together = full_backbones(Chains.of([one, two], length=50))
    for alone, found in zip([one, two], together, strict=True):
        np.testing.assert_allclose(full_backbones([alone])[0], found, atol=1e-9)


def test_a_break_is_two_chains(rng) -> None:
    one, two = ideal.helix(10), ideal.hairpin(12) + [60.0, 0.0, 0.0]
    index = np.concatenate([np.arange(10), np.arange(20, 32)])
    broken = full_backbones(Chains.of([np.concatenate([one, two])], index=[index]))[0]
    apart = full_backbones([one, two])
    np.testing.assert_allclose(broken, np.concatenate(apart), atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_the_shortest_chains_have_atoms_at_the_right_distances(n: int) -> None:
    bb = full_backbones([ideal.strand(n)])[0]
    assert bb.shape == (n, 4, 3)
    for atom, length in ((0, 1.458), (2, 1.525)):
        found = np.linalg.norm(bb[:, atom] - bb[:, 1], axis=1)
        np.testing.assert_allclose(found, length, atol=0.01)


def test_no_residues_and_points_in_a_line_and_on_one_spot_are_borne() -> None:
    line = np.arange(8)[:, None] * [3.8, 0.0, 0.0]
    assert full_backbones([np.zeros((0, 3))])[0].shape == (0, 4, 3)
    for points in (line, np.zeros((8, 3))):
        assert np.isfinite(full_backbones([points])[0]).all()


def test_a_chain_that_is_not_finite_stays_nan_and_spoils_no_other() -> None:
    bad = ideal.helix(10)
    bad[4, 1] = np.nan
    first, second = full_backbones([bad, ideal.helix(10)])
    assert np.isnan(first).all()
    np.testing.assert_allclose(second, full_backbones([ideal.helix(10)])[0])


def test_a_cis_peptide_is_built_as_one() -> None:
    # residue 6 to 7 cis: turn the rest of a strand by omega = 0
    real = ideal.backbone([(-120.0, 130.0)] * 13)
    n, ca, c = real[5, :3]
    cis = [*real[:6]]
    tail = ideal.backbone([(-120.0, 130.0)] * 7, omega=180.0)
    start = ideal.place(n, ca, c, 1.329, np.radians(119.0), np.radians(130.0))
    second = ideal.place(ca, c, start, 1.458, np.radians(127.0), 0.0)
    third = ideal.place(c, start, second, 1.525, np.radians(111.2), np.radians(-120.0))

    def axes(points):
        x = (points[1] - points[0]) / np.linalg.norm(points[1] - points[0])
        y = points[2] - points[1] - ((points[2] - points[1]) @ x) * x
        y /= np.linalg.norm(y)
        return np.stack([x, y, np.cross(x, y)])

    own, wanted = axes(tail[0, :3]), axes(np.stack([start, second, third]))
    moved = (tail - tail[0, 1]) @ own.T @ wanted + second
    real = np.concatenate([np.stack(cis), moved])
    assert np.linalg.norm(real[6, 1] - real[5, 1]) == pytest.approx(2.94, abs=0.05)
    found = full_backbones([real[:, 1]])[0]
    omega = geometry.torsions(found)[:, 2]
    assert abs(omega[5]) < 20 and (np.abs(omega[:5]) > 160).all()
    assert np.linalg.norm(found[6, 0] - found[5, 2]) == pytest.approx(1.33, abs=0.05)


def test_mirror_images_are_caught_by_the_ramachandran_plot_of_the_rebuilt_backbone() -> None:
    outside, total = geometry.ramachandran(full_backbones([ideal.mirrored(ideal.bundle(90))])[0])
    right, _ = geometry.ramachandran(full_backbones([ideal.bundle(90)])[0])
    assert outside / total > 0.5 and right / total < 0.2


def test_the_plane_of_a_trans_peptide_is_that_of_an_ideal_backbone() -> None:
    real = ideal.backbone([ideal.HELIX] * 8)
    own = Peptides.of([ideal.backbone([ideal.HELIX] * 400)], count=100, averaged=150)
    gaps = np.linalg.norm(full_backbones([real[:, 1]], own)[0] - real, axis=-1)
    assert gaps[1:-1].max() < 0.02


def test_c_beta_is_that_of_an_l_amino_acid() -> None:
    import biotite.structure.info as info

    alanine = info.residue("ALA")
    where = {name: alanine.coord[alanine.atom_name == name][0] for name in ("N", "CA", "C", "O")}
    built = beta_carbons(np.stack([*where.values()])[None])[0]
    assert np.linalg.norm(built - alanine.coord[alanine.atom_name == "CB"][0]) < 0.1


def test_a_library_is_written_and_read_and_its_entries_are_what_they_were_made_of(
    tmp_path, rng
) -> None:
    torsions = rng.uniform(-180, 180, size=(400, 2))
    made = Peptides.of([ideal.backbone(torsions)], count=100, averaged=150, neighbours=1)
    made.write(tmp_path / "some.npz")
    read = Peptides.read(tmp_path / "some.npz")
    assert np.abs(made.windows - read.windows).max() < 1e-4
    assert np.abs(made.turns - read.turns).max() < 0.01
    helices = Peptides.of([ideal.backbone([ideal.HELIX] * 400)], count=100, averaged=150)
    real = ideal.backbone([ideal.HELIX] * 20)
    own = full_backbones([real[:, 1]], helices)[0]
    assert np.linalg.norm(own - real, axis=-1)[1:-1].max() < 0.03
    with pytest.raises(UserError, match="too few"):
        Peptides.of([ideal.backbone([ideal.HELIX] * 20)])


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="shape"):
        full_backbones([np.zeros((4, 4))])
    with pytest.raises(UserError, match="expected"):
        beta_carbons(np.zeros((4, 3)))


@pytest.mark.data
def test_held_out_chains_come_back_as_the_dossier_of_the_method_states(all_backbones) -> None:
    rows = all_backbones.rows("test", complete=True)[::8]
    real = [all_backbones.bb(int(row)).astype(np.float64) for row in rows]
    found = full_backbones(Chains.from_backbones(all_backbones, rows))
    gaps = np.concatenate(
        [np.linalg.norm(a - b, axis=-1)[1:-1] for a, b in zip(real, found, strict=True)]
    )
    # published for nearest neighbours of the middle angles: C .08, N .07, O .24; rms .22, .16, .68
    assert (np.median(gaps, axis=0)[[2, 0, 3]] <= [0.08, 0.07, 0.24]).all()
    assert (np.sqrt(np.square(gaps).mean(axis=0))[[2, 0, 3]] <= [0.22, 0.16, 0.68]).all()
    outside = np.array([geometry.ramachandran(bb) for bb in found]).sum(axis=0)
    assert outside[0] / outside[1] < 0.12
