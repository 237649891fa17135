"""Heat and wave kernels against their laws: semigroup, trace, limits, isometries, scale."""

from __future__ import annotations

import numpy as np
import pytest

from driftworks.errors import UserError
from driftworks.shapes.descriptors import (
    heat_times,
    heat_weights,
    hks,
    landmark_hks,
    landmark_wks,
    unit,
    wave_energies,
    wave_weights,
    wks,
)
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.spectrum import basis


@pytest.fixture(scope="module")
def box(bumpy_box):
    return basis(Mesh(*bumpy_box(3)), 40, cache=False)


@pytest.fixture(scope="module")
def round_one(sphere):
    # 49 = 1 + 3 + ... + 13: no degree is cut in two
    return basis(Mesh(*sphere(4)), 49, cache=False)


@pytest.mark.parametrize("descriptor", [hks, wks])
def test_signatures_of_a_sphere_are_constant_up_to_discretisation(round_one, descriptor):
    found = descriptor(round_one, 20)
    assert np.abs(found - 1).max() < 0.03


@pytest.mark.parametrize("descriptor", [hks, wks])
def test_signatures_have_mean_one_over_any_surface(box, descriptor):
    found = descriptor(box, 15)
    assert found.shape == (642, 15)
    assert np.allclose(box.mass @ found / box.area, 1)


def test_heat_weights_times_their_sum_are_a_semigroup(box):
    t, s = 0.3, 0.8
    trace = {x: np.exp(-box.values * x).sum() for x in (t, s, t + s)}
    p, q = 5, 100
    kernel = {
        x: landmark_hks(box, [p, q], times=[x]) * trace[x] / box.area for x in (t, s, t + s)
    }
    # the heat that goes from p to any point in t and on to q in s
    passed = box.mass @ (kernel[t][:, 0] * kernel[s][:, 1])
    assert np.isclose(passed, kernel[t + s][q, 0], rtol=1e-10)
    assert np.isclose(kernel[t + s][q, 0], kernel[t + s][p, 1], rtol=1e-10)


def test_the_heat_kernel_keeps_the_amount_of_heat(box):
    times = np.array([0.1, 1.0, 5.0])
    traces = np.exp(-np.outer(times, box.values)).sum(1)
    found = landmark_hks(box, [17], times=times) * traces / box.area
    assert np.allclose(box.mass @ found, 1, rtol=1e-8)


def test_heat_spreads_evenly_in_the_end_and_stays_at_its_source_at_first(box):
    late = landmark_hks(box, [3], times=[1e3])
    assert np.allclose(late, 1, atol=1e-6)
    early = landmark_hks(box, [3], times=[0.02])
    assert early.argmax() == 3


@pytest.mark.parametrize(
    ("signature", "from_landmarks"), [(hks, landmark_hks), (wks, landmark_wks)]
)
def test_a_kernel_at_its_own_landmark_is_the_signature(box, signature, from_landmarks):
    landmarks = [0, 7, 333]
    found = from_landmarks(box, landmarks, 6).reshape(642, 3, 6)
    expected = signature(box, 6)
    for i, landmark in enumerate(landmarks):
        assert np.allclose(found[landmark, i], expected[landmark])


def test_wave_kernels_of_a_landmark_have_mean_zero(box):
    assert np.abs(box.mass @ landmark_wks(box, [4], 5)).max() < 1e-6 * box.area


def test_times_span_the_decay_of_the_last_and_of_the_first_function(box):
    times = heat_times(box.values, 9)
    assert np.isclose(np.exp(-box.values[-1] * times[0]), 1e-4)
    assert np.isclose(np.exp(-box.values[1] * times[-1]), 1e-4)
    assert np.allclose(np.diff(np.log(times)), np.log(times[1] / times[0]))


def test_energies_keep_two_widths_from_both_ends_and_a_width_is_seven_steps(box):
    energies, sigma = wave_energies(box.values, 50)
    assert np.isclose(energies[0], np.log(box.values[1]) + 2 * sigma)
    assert np.isclose(energies[-1], np.log(box.values[-1]) - 2 * sigma)
    assert np.allclose(np.diff(energies) * 7, sigma)


def test_weights_are_those_of_the_formulas_by_hand():
    values = np.array([0.0, 1.0, 4.0])
    heat = heat_weights(values, [0.5])
    expected = np.array([1, np.exp(-0.5), np.exp(-2)])
    assert np.allclose(heat[0], expected / expected.sum())
    wave = wave_weights(values, [np.log(2.0)], 0.9)
    # ln 2 lies half way between ln 1 and ln 4
    assert np.allclose(wave[0], [0, 0.5, 0.5])


@pytest.mark.parametrize("descriptor", [hks, wks])
def test_scale_motion_and_numbering_do_not_matter(bumpy_box, rng, descriptor):
    points, faces = bumpy_box(3)
    plain = descriptor(basis(Mesh(points, faces), 30, cache=False), 10)
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    order = rng.permutation(len(points))
    other = Mesh((40 * points @ turn + 3)[order], np.argsort(order)[faces])
    found = descriptor(basis(other, 30, cache=False), 10)
    assert np.allclose(found, plain[order], atol=1e-6)


def test_signatures_tell_the_ends_of_an_ellipsoid_from_its_waist(ellipsoid):
    points, faces = ellipsoid(3, (0.5, 0.5, 2.0))
    found = hks(basis(Mesh(points, faces), 40, cache=False), 10)
    tip, waist = np.abs(points[:, 2]).argmax(), np.abs(points[:, 2]).argmin()
    assert (found[tip, :6] > 1.2 * found[waist, :6]).all()
    # in the end the heat is spread evenly
    assert np.allclose(found[[tip, waist], -1], 1, atol=0.01)


def test_separate_parts_count_as_two_functions_without_energy(sphere):
    points, faces = sphere(2)
    both = Mesh(np.concatenate([points, points + 5]), np.concatenate([faces, faces + 162]))
    found = basis(both, 20, cache=False)
    energies, _ = wave_energies(found.values, 5)
    assert np.isclose(found.values[2], 2, rtol=0.05)
    assert energies[0] > np.log(1.9)
    assert np.isfinite(wks(found, 5)).all() and np.isfinite(hks(found, 5)).all()


def test_unit_descriptors_have_a_mean_square_of_one_and_zero_stays_zero(box, rng):
    some = rng.standard_normal((642, 4)) * np.array([1e-6, 1.0, 0.0, 1e6])
    power = box.mass @ unit(some, box.mass) ** 2 / box.area
    assert np.allclose(power, [1, 1, 0, 1])


def test_given_times_and_energies_replace_the_own_ones(box):
    assert np.allclose(hks(box, times=heat_times(box.values, 7)), hks(box, 7))
    assert np.allclose(wks(box, energies=wave_energies(box.values, 7)), wks(box, 7))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: hks(b, 0), "at least 1, not 0"),
        (lambda b: wks(b, -1), "at least 1, not -1"),
        (lambda b: hks(b.first(1), 3), "larger basis"),
        (lambda b: wks(b.first(2), 3), "two different positive"),
        (lambda b: hks(b, times=[1.0, -1.0]), "negative"),
        (lambda b: wks(b, energies=([1.0], 0.0)), "positive, not 0"),
        (lambda b: landmark_hks(b, [642], 3), "landmark 642 is not one of the 642"),
        (lambda b: landmark_hks(b, [-1], 3), "landmark -1"),
        (lambda b: landmark_wks(b, [0.5], 3), "vertex numbers"),
    ],
)
def test_what_makes_no_sense_is_refused(box, call, message):
    with pytest.raises(UserError, match=message):
        call(box)
