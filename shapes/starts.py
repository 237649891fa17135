r"""Where maps start: many small guesses, each refined on a few hundred samples in a blink.

ZoomOut turns a guess of a few functions into a map, and the wrong guess into a wrong map that looks
just as smooth. So many guesses are made and all of them are refined on samples only:

    waves      wave kernel signatures, with the orientation term or with its opposite, which leads
               to reflections (Ren et al. 2018), at two resolutions
    signs      the first five functions that are not constant, each kept or turned: for shapes whose
               low spectra agree one of these is right (after Ren, Melzi, Ovsjanikov & Wonka,
               "MapTree", SIGGRAPH Asia 2020, who grow a tree of them)
    frames     coordinates along the principal axes, in the four proper choices of their signs and
               in the four improper ones; good where poses agree
    given      coordinates as they are, for shapes that are known to stand alike
    composed   a found reflection followed by a reflection of the first shape onto itself, or
               preceded by one of the second: symmetric shapes match up to their symmetry more
               easily than exactly

None of these but "given" depends on position, orientation or numbering of the shapes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from driftworks.errors import UserError
from driftworks.shapes import descriptors, fmaps
from driftworks.shapes.ranking import signatures
from driftworks.shapes.surface import Surface
from driftworks.shapes.zoomout import zoomout_both

__all__ = ["Candidate", "aligned", "coarse", "compose", "frames", "signs", "waves"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Samples and functions of the search.
SAMPLES, FUNCTIONS = 300, 50

_TURNED = 5  # functions whose signs are tried
_WAVES = 100  # random plane waves that coordinates are expanded in
_WIDTH = 3.0  # their wave numbers, in units of 1 / sqrt(area)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A map on samples: at_a (t,) numbers of samples of a for samples of b, at_b (s,) back."""

    name: str
    at_a: Indices
    at_b: Indices

    def vertices(self, a: Surface, b: Surface) -> tuple[Indices, Indices]:
        """The same as vertex numbers."""
        return a.samples[self.at_a], b.samples[self.at_b]


def waves(
    a: Surface, b: Surface, k: int, orientation: float, weight: float = 1.0
) -> Array:
    """C (k, k) from wave kernel signatures and their orientation term, with its sign and strength.

    orientation: weight of the term; negative for reflections; 0 for none
    """
    k = min(k, len(a.basis), len(b.basis))
    first, second = a.basis.first(k), b.basis.first(k)
    of_a, of_b = signatures(a, b)
    of_a, of_b = descriptors.unit(of_a, first.mass), descriptors.unit(of_b, second.mass)
    penalties = fmaps.resolvent_penalty(first.values, second.values)
    right = first.coefficients(of_a), second.coefficients(of_b)
    if orientation == 0:
        return fmaps.fit(*right, penalties, weight)
    turns = np.sign(orientation) * fmaps.orientations(second, b.mesh.faces, of_b)
    operators = [(fmaps.orientations(first, a.mesh.faces, of_a), turns, abs(orientation))]
    return fmaps.fit_commuting(*right, operators, penalties, weight, tolerance=1e-5)


def aligned(a: Surface, b: Surface, turn: Array, k: int = 20) -> Array:
    """C (k, k) from coordinates, those of b multiplied by `turn` (3, 3) from the right.

    Coordinates are expanded in plane waves along a fixed set of directions in the frame of a.
    """
    k = min(k, len(a.basis), len(b.basis))
    first, second = a.basis.first(k), b.basis.first(k)
    rng = np.random.default_rng(0)
    directions = _WIDTH * rng.normal(size=(3, _WAVES))
    phase = rng.uniform(0, 2 * np.pi, _WAVES)
    features = []
    for surface, motion in ((a, a.frame.T), (b, turn @ a.frame.T)):
        x = surface.mesh.vertices @ motion
        expanded = np.hstack([x, np.cos(x @ directions + phase)])
        features.append(descriptors.unit(expanded, surface.basis.mass))
    penalties = fmaps.resolvent_penalty(first.values, second.values)
    coefficients = first.coefficients(features[0]), second.coefficients(features[1])
    return fmaps.fit(*coefficients, penalties, 1.0)


def frames(a: Surface, b: Surface, proper: bool = True) -> Iterator[Array]:
    """The four matrices that turn principal axes of b into those of a; or the four reflections."""
    for signs in itertools.product((1.0, -1.0), repeat=3):
        if (np.prod(signs) > 0) == proper:
            yield b.frame.T @ np.diag(signs) @ a.frame


def signs(a: Surface, b: Surface) -> Iterator[tuple[str, Array]]:
    """All diagonal maps of +1 and -1 that keep constants, and their names."""
    count = min(_TURNED, len(a.basis) - 1, len(b.basis) - 1)
    for chosen in itertools.product((1.0, -1.0), repeat=count):
        name = "signs " + "".join("+" if s > 0 else "-" for s in chosen)
        yield name, np.diag([1.0, *chosen])


def coarse(name: str, c: Array, a: Surface, b: Surface, c_back: Array | None = None) -> Candidate:
    """Refine C (k2, k1) on samples of both shapes by the bijective ZoomOut."""
    s, t = (min(SAMPLES, len(surface.samples)) for surface in (a, b))
    k = max(*c.shape, min(FUNCTIONS, len(a.basis), len(b.basis), min(s, t) // 3))
    if k > min(s, t):
        raise UserError(f"{min(s, t)} samples are too few for a map of {k} functions")
    straight = fmaps.orthogonal(c)
    back = straight.T if c_back is None else fmaps.orthogonal(c_back)
    found = zoomout_both(
        straight,
        back,
        a.sampled(s),
        b.sampled(t),
        k,
        5,
        samples1=np.arange(s),
        samples2=np.arange(t),
    )
    return Candidate(name, found.map21, found.map12)


def compose(
    name: str, there: Candidate, onward: Candidate, a: Surface, b: Surface, c: Surface
) -> Candidate:
    """The map from a through b to c, refined anew: `there` is from a to b, `onward` from b to c."""
    at_a, at_c = there.at_a[onward.at_a], onward.at_b[there.at_b]
    k = min(20, len(a.basis), len(c.basis), len(at_a) // 3, len(at_c) // 3)
    first, last = a.sampled(len(at_c)).first(k), c.sampled(len(at_a)).first(k)
    straight = fmaps.from_samples(at_a, np.arange(len(at_a)), first, last)
    back = fmaps.from_samples(at_c, np.arange(len(at_c)), last, first)
    return coarse(name, straight, a, c, back)
