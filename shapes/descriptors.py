r"""Functions that an isometry carries along: heat and wave kernel signatures, landmarks.

With eigenvalues lambda_j and eigenfunctions phi_j, a row w(s) of weights for each parameter s gives

    signature of x          sum_j w_j(s) phi_j(x)^2
    kernel from p to x      sum_j w_j(s) phi_j(p) phi_j(x)

    heat   w_j(t) = exp(-lambda_j t): how much heat stays at x after time t (Sun, Ovsjanikov &
           Guibas, "A concise and provably informative multi-scale signature based on heat
           diffusion", SGP 2009). Times are spaced evenly in log t between 4 ln 10 / lambda_k and
           4 ln 10 / lambda_2: at the first the last function has decayed to 1e-4, at the last all.
    wave   w_j(e) = exp(-(e - ln lambda_j)^2 / 2 sigma^2): chance to find a quantum particle of
           energy e at x (Aubry, Schlickewei & Cremers, "The wave kernel signature: a quantum
           mechanical approach to shape analysis", ICCV workshops 2011).
           N energies step by delta from ln lambda_2 + 2 sigma to ln lambda_k - 2 sigma with
           sigma = 7 delta; functions of eigenvalue 0 take no part.

Weights are divided by their sum over j, and values are multiplied by the surface's area, so all
descriptors are pure numbers, and signatures have mean 1 over the surface: a shape and its scaled
copy have the same. Parameters are taken from the shape's own spectrum unless given.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from driftworks.errors import UserError
from driftworks.shapes.spectrum import Basis

__all__ = [
    "heat_times",
    "heat_weights",
    "hks",
    "landmark_hks",
    "landmark_wks",
    "unit",
    "wave_energies",
    "wave_weights",
    "wks",
]

Array = NDArray[np.float64]

#: Width of a wave kernel in steps between energies (Aubry et al. 2011).
_WAVE_WIDTH = 7.0


def heat_times(values: Array, count: int) -> Array:
    """(count,) diffusion times [area] for a spectrum (k,), evenly spaced in their logarithm."""
    positive = _positive(values, count)
    reach = 4 * np.log(10.0)
    return np.geomspace(reach / positive[-1], reach / positive[0], count)


def heat_weights(values: Array, times: ArrayLike) -> Array:
    """(count, k) weights exp(-lambda t), each row divided by its sum (the heat trace)."""
    weights = np.exp(-np.outer(np.asarray(times, dtype=np.float64), values))
    return weights / weights.sum(1, keepdims=True)


def wave_energies(values: Array, count: int) -> tuple[Array, float]:
    """(count,) energies, in ln(1 / area), for a spectrum (k,), and the width sigma of the kernels.

    A shape without two different positive eigenvalues raises `UserError`.
    """
    logarithms = np.log(_positive(values, count))
    extent = logarithms[-1] - logarithms[0]
    if extent <= 1e-9:
        raise UserError("wave kernels need a spectrum with two different positive eigenvalues")
    # count - 1 steps, and a margin of 2 sigma at both ends
    step = extent / (count - 1 + 4 * _WAVE_WIDTH)
    sigma = _WAVE_WIDTH * step
    first = logarithms[0] + 2 * sigma
    return first + step * np.arange(count), float(sigma)


def wave_weights(values: Array, energies: ArrayLike, sigma: float) -> Array:
    """(count, k) weights of the wave kernels, each row divided by its sum; 0 where lambda is 0."""
    some = values > 0
    weights = np.zeros((np.size(energies), len(values)))
    distance = np.asarray(energies, dtype=np.float64).reshape(-1, 1) - np.log(values[some])
    exponent = -(distance**2) / (2 * sigma**2)
    # the largest is 1: no row vanishes, however far its energy lies from the spectrum
    weights[:, some] = np.exp(exponent - exponent.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def hks(basis: Basis, count: int = 100, *, times: ArrayLike | None = None) -> Array:
    """Heat kernel signature, (n, count), mean 1 over the surface.

    count: number of times, which `times` [area] replaces
    """
    return _signature(basis, _heat(basis, count, times))


def wks(
    basis: Basis, count: int = 100, *, energies: tuple[ArrayLike, float] | None = None
) -> Array:
    """Wave kernel signature, (n, count), mean 1 over the surface.

    count: number of energies, which `energies` replaces: their values and the width sigma, as
        `wave_energies` gives them
    """
    return _signature(basis, _wave(basis, count, energies))


def landmark_hks(
    basis: Basis, landmarks: ArrayLike, count: int = 20, *, times: ArrayLike | None = None
) -> Array:
    """Heat that spreads from each of p landmark vertices, (n, p * count), times running fastest.

    At its landmark it equals `hks` there. Raises `UserError` for a vertex that does not exist.
    """
    return _from_landmarks(basis, landmarks, _heat(basis, count, times))


def landmark_wks(
    basis: Basis,
    landmarks: ArrayLike,
    count: int = 20,
    *,
    energies: tuple[ArrayLike, float] | None = None,
) -> Array:
    """Wave kernels of each of p landmark vertices, (n, p * count), energies running fastest.

    At its landmark it equals `wks` there. Raises `UserError` for a vertex that does not exist.
    """
    return _from_landmarks(basis, landmarks, _wave(basis, count, energies))


def unit(descriptors: Array, mass: Array) -> Array:
    """(n, d) descriptors each divided by its root mean square over the surface; 0 stays 0."""
    power = np.sqrt(mass @ descriptors**2 / mass.sum())
    return descriptors / np.where(power > 0, power, 1.0)


def _positive(values: Array, count: int) -> Array:
    if count < 1:
        raise UserError(f"the number of descriptors must be at least 1, not {count}")
    positive = values[values > 0]
    if not len(positive):
        raise UserError("descriptors need a positive eigenvalue; ask for a larger basis")
    return positive


def _heat(basis: Basis, count: int, times: ArrayLike | None) -> Array:
    chosen = heat_times(basis.values, count) if times is None else np.ravel(times)
    if not np.all(np.asarray(chosen) >= 0):
        raise UserError("diffusion times must not be negative")
    return heat_weights(basis.values, chosen)


def _wave(basis: Basis, count: int, energies: tuple[ArrayLike, float] | None) -> Array:
    chosen, sigma = wave_energies(basis.values, count) if energies is None else energies
    if not sigma > 0:
        raise UserError(f"the width of wave kernels must be positive, not {sigma}")
    return wave_weights(basis.values, chosen, sigma)


def _signature(basis: Basis, weights: Array) -> Array:
    return basis.area * basis.functions**2 @ weights.T


def _from_landmarks(basis: Basis, landmarks: ArrayLike, weights: Array) -> Array:
    chosen = np.atleast_1d(np.asarray(landmarks))
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
        raise UserError("landmarks are a list of vertex numbers")
    outside = chosen[(chosen < 0) | (chosen >= basis.vertices)]
    if len(outside):
        raise UserError(f"landmark {outside[0]} is not one of the {basis.vertices} vertices")
    # (p, count, k): what each landmark sends into each function
    sent = weights * basis.functions[chosen][:, None, :]
    return basis.area * basis.functions @ sent.reshape(-1, len(basis)).T
