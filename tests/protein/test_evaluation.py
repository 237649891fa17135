"""Every way of being wrong is caught by the figure that should catch it, and real chains pass.

The rows are those of the adversarial matrix: each degenerate set passes most figures, and none
passes all.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from driftworks.errors import UserError
from driftworks.protein import geometry, ideal
from driftworks.protein.chains import Chains
from driftworks.protein.descriptors import FragmentLibrary
from driftworks.protein.evaluation import evaluate
from driftworks.protein.reconstruct import full_backbones
from driftworks.protein.reference import Reference, measure

LENGTHS = range(80, 104)


def quick(samples, **options):
    """Figures with few resamples; pairs of twelve samples only."""
    return evaluate(samples, resamples=200, **{"folds": 12, "searched": 8, **options})


@pytest.fixture(scope="module")
def bundles():
    return [ideal.bundle(n, 3 + n % 2) for n in LENGTHS]


def test_mirror_images_are_caught_by_their_hand(bundles):
    report = quick([ideal.mirrored(points) for points in bundles])
    assert {"right_handed", "fragment", "frechet"} <= set(report.flags)
    assert report.right_handed.value < 0.2 and report.realistic.value == 0
    assert not {"bonds", "clash_free", "size", "delivered"} & set(report.flags)


def test_left_handed_helices_are_caught_although_psea_calls_them_helices():
    report = quick([ideal.helix(n, left=True) for n in LENGTHS])
    assert report.right_handed.value == 0 and "right_handed" in report.flags
    assert report.psea_helix.value > 0.9 and report.helix.value == 0
    assert report.bonds.value == 1


def test_noise_of_half_an_angstrom_is_caught_by_bonds(bundles):
    rng = np.random.default_rng(0)
    report = quick([ideal.noised(points, 0.5, rng) for points in bundles])
    assert {"bonds", "realistic"} <= set(report.flags)
    assert report.bonds.value < 0.5 and "size" not in report.flags


def test_relaxed_random_walks_are_caught_by_their_fragments_though_bonds_and_clashes_pass():
    rng = np.random.default_rng(1)
    report = quick([ideal.relaxed_walk(n, rng) for n in LENGTHS])
    assert {"fragment", "foreign", "right_handed", "frechet", "realistic"} <= set(report.flags)
    assert not {"bonds", "clash_free", "size"} & set(report.flags)
    # diversity of garbage would be the highest of all: it is not reported
    assert "folds" not in report.figures and any("diversity" in note for note in report.notes)


def test_unpacked_fragments_are_caught_by_size_and_packing_though_locally_right(bundles):
    rng = np.random.default_rng(2)
    source = [*bundles, *(ideal.hairpin(n + n % 2) for n in LENGTHS)]
    report = quick([ideal.unpacked(source, n, rng) for n in LENGTHS])
    assert {"size", "frechet", "realistic"} <= set(report.flags)
    assert report.bonds.value > 0.98 and report.right_handed.value > 0.9


def test_bundles_alone_are_caught_by_the_spread_of_their_secondary_structure(bundles):
    report = quick(bundles)
    assert {"helix", "strand", "helix_spread", "strand_spread", "frechet"} <= set(report.flags)
    local = {"bonds", "clash_free", "right_handed", "fragment", "size"}
    assert not local & set(report.flags)


def test_one_fold_again_and_again_is_caught_by_folds_and_pairs(bundles):
    rng = np.random.default_rng(3)
    report = quick([ideal.noised(bundles[10], 0.03, rng) for _ in LENGTHS])
    assert {"folds", "pair_tm"} <= set(report.flags)
    assert report.folds.value <= 2 / 12 and report.pair_tm.value > 0.9
    assert report.realistic.value > 0.9


def test_copies_of_training_chains_are_caught_by_the_nearest_of_them():
    rng = np.random.default_rng(4)
    known = [ideal.relaxed_walk(60, rng) for _ in range(20)]
    copies = quick([ideal.noised(p, 0.1, rng) for p in known[:8]], train=Chains.of(known))
    assert copies.memorised.value == 1 and {"memorised", "nearest"} <= set(copies.flags)
    fresh = quick([ideal.relaxed_walk(60, rng) for _ in range(8)], train=Chains.of(known))
    assert fresh.memorised.value == 0 and not {"memorised", "nearest"} & set(fresh.flags)


def test_real_domains_break_no_limit(domains):
    rows = domains.rows(lengths=(60, 110))[:60]
    full = [np.asarray(domains.bb(int(i)), float) for i in rows]
    report = quick(full, folds=16)
    assert not report.flags, report.flags
    assert report.realistic.value > 0.8 and report.ramachandran.value < 0.15
    assert report.right_handed.value > 0.9 and report.frechet.value < 8
    assert any("solved atoms" in note for note in report.notes)
    built = quick([p[:, 1] for p in full], backbones=full_backbones, folds=0)
    low, high = built.band["ramachandran"]
    assert low - 0.01 < built.ramachandran.value < high + 0.01
    assert not any("solved atoms" in note for note in built.notes)


def test_natives_ramachandran_figure_stands_beside_that_of_samples_and_tells_mirror_images(bundles):
    mirror = [ideal.mirrored(points) for points in bundles]
    report = quick(mirror, backbones=full_backbones, folds=0)
    low, high = report.band["ramachandran"]
    assert low < report.natives["ramachandran"] < high < 0.5 < report.ramachandran.value
    assert f"{report.natives['ramachandran']:.3f}" in str(report)
    without = quick(mirror, folds=0)
    assert "ramachandran" not in {*without.figures, *without.natives, *without.band}


def test_a_reference_counts_residues_in_backbones_that_are_built_around_its_chains():
    rng = np.random.default_rng(7)
    chains = Chains.of([ideal.noised(ideal.bundle(40 + k), 0.2, rng) for k in range(20)])
    made = Reference.of(chains).measures
    order = [*range(0, 20, 2), *range(1, 20, 2)]
    counts = [geometry.ramachandran(full_backbones(chains[k : k + 1])[0]) for k in order]
    np.testing.assert_array_equal(np.stack([made.unfavoured, made.torsions], axis=1), counts)
    assert (made.torsions == made.lengths - 2).all() and made.unfavoured.sum() > 0


def test_failures_stay_in_every_denominator(bundles):
    broken = [*bundles[:6], np.full((80, 3), np.nan), np.zeros((0, 3)), np.zeros((3, 3))]
    report = quick(broken, requested=12, folds=2)
    assert report.requested == 12
    assert report.failures == {
        "not delivered": 3,
        "coordinates that are not finite": 1,
        "fewer than 7 residues": 2,
    }
    assert report.delivered.value == pytest.approx(6 / 12)
    assert report.clash_free.value == pytest.approx(6 / 12)
    whole = sum(len(p) - 1 for p in bundles[:6])
    # three points at the origin have two bonds, and both are wrong
    assert report.bonds.value == pytest.approx(whole / (whole + 79 + 2))
    assert report.helix.value == pytest.approx(quick(bundles[:6], folds=0).helix.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_all_broken_give_a_report(bad):
    report = quick([np.full((60, 3), bad)] * 4)
    assert report.delivered.value == 0 and report.bonds.value == 0 and report.foreign.value == 1
    assert {"delivered", "bonds", "clash_free", "realistic"} <= set(report.flags)
    assert json.loads(json.dumps(report.to_dict()))["requested"] == 4


def test_samples_may_be_arrays_tensors_chains_or_biotite_atoms(bundles):
    from biotite.structure import AtomArray, stack

    bb = ideal.backbone([ideal.HELIX] * 30)
    atoms = AtomArray(120)
    atoms.coord = bb.reshape(-1, 3).astype(np.float32)
    atoms.atom_name = np.tile(["N", "CA", "C", "O"], 30)
    forms = [
        [bb[:, 1], bb[:, 1]],
        [torch.tensor(bb[:, 1])] * 2,
        Chains.of([bb[:, 1]] * 2),
        [bb, bb],
        [atoms, atoms],
        stack([atoms, atoms]),
        [stack([atoms, atoms])],
    ]
    reports = [quick(form, folds=0) for form in forms]
    for report in reports:
        assert report.requested == 2 and report.helix.value == pytest.approx(1)
    assert ["ramachandran" in report.figures for report in reports] == [False] * 3 + [True] * 4
    assert reports[-1].ramachandran.value == 0


def test_full_backbones_may_be_made_by_a_function():
    bb = [ideal.backbone([ideal.STRAND] * n) for n in range(30, 50)]
    report = quick([b[:, 1] for b in bb], backbones=lambda chains: bb, folds=0)
    assert report.ramachandran.value == 0
    mirror = [ideal.mirrored(b) for b in bb]
    report = quick([b[:, 1] for b in mirror], backbones=mirror, folds=0)
    assert report.ramachandran.value == 1 and "ramachandran" in report.flags


def test_a_report_is_the_same_for_the_same_seed_and_shows_every_figure(bundles):
    one, two = quick(bundles[:8], folds=4), quick(bundles[:8], folds=4)
    left, right = one.to_dict(), two.to_dict()
    assert left.pop("seconds") and right.pop("seconds")
    assert left == right
    for name in one.figures:
        assert name in str(one)
    assert "flag: frechet" in str(one)
    with pytest.raises(AttributeError, match="no figure 'x'"):
        one.x  # noqa: B018


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"samples": []}, "no backbones"),
        ({"samples": [np.zeros((9, 2))]}, r"shape \(9, 2\)"),
        ({"samples": [np.zeros((9, 3))] * 2, "requested": 1}, "requested = 1"),
        ({"samples": [np.zeros((9, 3))], "backbones": []}, "0 backbones for 1"),
        ({"samples": [np.zeros((9, 3))], "folds": -1}, "folds = -1"),
        ({"samples": [np.zeros((9, 3))], "train": [1]}, "expected Chains"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        evaluate(**arguments)


def test_the_shipped_statistics_are_of_many_real_chains():
    reference = Reference.builtin()
    assert len(reference.measures) >= 1000 and len(reference.library.vectors) >= 10_000
    lengths = reference.measures.lengths
    assert lengths.min() >= 40 and lengths.max() <= 256
    m = reference.measures
    assert m.right.sum() / m.helical.sum() == pytest.approx(0.94, abs=0.02)
    assert m.bonds_right.sum() / m.bonds.sum() > 0.99
    assert np.abs(m.column("log_rg").mean()) < 0.06
    # one chain in eight has a gap, which costs two residues their torsions
    assert 0.98 < m.torsions.sum() / (m.lengths - 2).sum() <= 1
    built = m.unfavoured.sum() / m.torsions.sum()
    assert 0.07 < built < reference.solved < 0.1  # building errs towards what is common
    assert 0.6 < reference.folds <= 1 and 0.2 < reference.pair_tm < 0.35


def test_natives_are_matched_by_length():
    reference = Reference.builtin()
    asked = np.array([50, 120, 240])
    rows = reference.matched(asked, 300, np.random.default_rng(0))
    found = np.log(reference.measures.lengths[rows]).mean(axis=0)
    np.testing.assert_allclose(found, np.log(asked), atol=0.1)
    np.testing.assert_allclose(reference.weights(asked).sum(axis=1), 1)
    # lengths that no native has are answered by the nearest there are
    rows = reference.matched(np.array([5, 5000]), 20, np.random.default_rng(0))
    lengths = reference.measures.lengths[rows]
    assert lengths[:, 0].max() < 60 and lengths[:, 1].min() > 230


def test_a_reference_of_ones_own_chains_is_written_and_read(tmp_path):
    rng = np.random.default_rng(5)
    chains = Chains.of([ideal.relaxed_walk(40 + k, rng, rounds=60) for k in range(24)])
    made = Reference.of(chains)
    back = Reference.read(made.write(tmp_path / "r.npz"))
    np.testing.assert_allclose(back.measures.rows, made.measures.rows, rtol=2e-3, atol=1e-3)
    np.testing.assert_array_equal(back.measures.lengths, made.measures.lengths)
    assert len(back.library.vectors) == len(made.library.vectors)
    with pytest.raises(UserError, match="19 chains"):
        Reference.of(chains[:19])
    with pytest.raises(UserError, match="no reference statistics"):
        Reference.read(tmp_path / "absent.npz")
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="no file of reference"):
        Reference.read(tmp_path / "bad.npz")


def test_no_chain_of_a_reference_is_measured_by_its_own_fragments():
    rng = np.random.default_rng(6)
    chains = Chains.of([ideal.relaxed_walk(40, rng, rounds=60) for _ in range(20)])
    made = Reference.of(chains)
    assert made.measures.fragment.min() > 0.1
    own = measure(chains, FragmentLibrary.of(chains))
    assert own.fragment.max() < 1e-6


def test_figures_of_one_sample_do_not_depend_on_the_others(bundles):
    library = Reference.builtin().library
    together = measure(Chains.of([*bundles[:3], ideal.hairpin(20)]), library)
    for k, points in enumerate([*bundles[:3], ideal.hairpin(20)]):
        alone = measure(Chains.of([points]), library)
        for name in ("bonds_right", "clashes", "right", "helical", "fragment", "fragment_far"):
            assert getattr(alone, name)[0] == pytest.approx(getattr(together, name)[k])
        np.testing.assert_allclose(alone.rows[0], together.rows[k], atol=1e-12)


@pytest.mark.slow
def test_the_whole_matrix_with_held_out_domains(all_backbones):
    """Real chains, spoiled in every way of the matrix, 40 a row, searched in training chains."""
    table = all_backbones
    rng = np.random.default_rng(0)
    held = np.concatenate([table.rows(s, (80, 120)) for s in ("valid", "test")])
    known = rng.permutation(table.rows("train", (60, 140)))[:800]
    natives = [np.asarray(table.ca(int(i)), float) for i in rng.permutation(held)[:40]]
    copied = [np.asarray(table.ca(int(i)), float) for i in known[:40]]
    lengths = [len(points) for points in natives]
    train = Chains.from_backbones(table, known)

    real = quick(natives, train=train, folds=40)
    assert not real.flags, real.flags
    expected = {
        "right_handed": [ideal.mirrored(p) for p in natives],
        "bonds": [ideal.noised(p, 0.5, rng) for p in natives],
        "memorised": copied,
        "folds": [ideal.noised(natives[0], 0.03, rng) for _ in natives],
        "fragment": [ideal.relaxed_walk(n, rng) for n in lengths],
        "helix_spread": [ideal.bundle(n) for n in lengths],
        "size": [ideal.unpacked(copied, n, rng) for n in lengths],
    }
    for field, samples in expected.items():
        report = quick(samples, train=train)
        assert field in report.flags, (field, report.flags)
