"""Synthetic surfaces whose areas, normals and distances have closed forms, as functions that give
(vertices (n, 3), faces (m, 3)); and a generator that prints its seed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a new seed each run; pytest shows the seed of a failing test."""
    seed = int(np.random.SeedSequence().entropy) % 2**32
    print("seed", seed)
    return np.random.default_rng(seed)


@lru_cache
def icosphere(level: int) -> Arrays:
    """The unit sphere: an icosahedron whose faces are cut in four `level` times."""
    g = (1 + 5**0.5) / 2
    corners = [(-1, g, 0), (1, g, 0), (-1, -g, 0), (1, -g, 0), (0, -1, g), (0, 1, g)]
    corners += [(0, -1, -g), (0, 1, -g), (g, 0, -1), (g, 0, 1), (-g, 0, -1), (-g, 0, 1)]
    around = "0 11 5 0 5 1 0 1 7 0 7 10 0 10 11 1 5 9 5 11 4 11 10 2 10 7 6 7 1 8 "
    around += "3 9 4 3 4 2 3 2 6 3 6 8 3 8 9 4 9 5 2 4 11 6 2 10 8 6 7 9 8 1"
    faces = np.array(around.split(), np.int64).reshape(-1, 3)
    points = [np.array(p) / np.linalg.norm(p) for p in corners]
    for _ in range(level):
        middle: dict[tuple[int, int], int] = {}
        finer = []
        for face in faces.tolist():
            between = []
            for i, j in zip(face, face[1:] + face[:1], strict=True):
                key = (min(i, j), max(i, j))
                if key not in middle:
                    middle[key] = len(points)
                    p = points[i] + points[j]
                    points.append(p / np.linalg.norm(p))
                between.append(middle[key])
            (a, b, c), (ab, bc, ca) = face, between
            finer += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
        faces = np.array(finer, np.int64)
    return np.array(points), faces


def grid(rows: int, columns: int, close: bool) -> NDArray[np.int64]:
    """Faces of a rows x columns grid of vertices, both directions closed or both open."""
    i, j = np.meshgrid(
        np.arange(rows if close else rows - 1),
        np.arange(columns if close else columns - 1),
        indexing="ij",
    )
    i, j = i.ravel(), j.ravel()
    a, b = i * columns + j, (i + 1) % rows * columns + j
    c = (i + 1) % rows * columns + (j + 1) % columns
    d = i * columns + (j + 1) % columns
    return np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


@pytest.fixture(scope="session")
def sphere() -> Callable[..., Arrays]:
    """sphere(level): 10 4^level + 2 vertices on the unit sphere, facing outwards."""
    return lambda level=3: tuple(array.copy() for array in icosphere(level))


@pytest.fixture(scope="session")
def ellipsoid(sphere: Callable[..., Arrays]) -> Callable[..., Arrays]:
    """ellipsoid(level, axes)"""

    def build(level: int = 3, axes: tuple[float, float, float] = (1.0, 0.7, 1.6)) -> Arrays:
        points, faces = sphere(level)
        return points * np.array(axes), faces

    return build


@pytest.fixture(scope="session")
def torus() -> Callable[..., Arrays]:
    """torus(u, v, big, small): u v vertices; number i v + j at angles 2 pi i / u around the axis
    and 2 pi j / v around the tube, the outer equator at j = 0.
    """

    def build(u: int = 48, v: int = 24, big: float = 1.0, small: float = 0.4) -> Arrays:
        theta, phi = np.meshgrid(
            np.arange(u) * 2 * np.pi / u, np.arange(v) * 2 * np.pi / v, indexing="ij"
        )
        ring = big + small * np.cos(phi)
        points = np.stack([ring * np.cos(theta), ring * np.sin(theta), small * np.sin(phi)], -1)
        return points.reshape(-1, 3), grid(u, v, close=True)

    return build


@pytest.fixture(scope="session")
def sheet() -> Callable[..., Arrays]:
    """sheet(rows, columns): an open flat rectangle of unit squares, each cut in two."""

    def build(rows: int = 12, columns: int = 9) -> Arrays:
        x, y = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        points = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], 1).astype(np.float64)
        return points, grid(rows, columns, close=False)

    return build


@pytest.fixture(scope="session")
def bumpy_box(sphere: Callable[..., Arrays]) -> Callable[..., Arrays]:
    """bumpy_box(level): a rounded box with unequal sides and bumps; its one symmetry is half a turn
    about the first axis."""

    def build(level: int = 3) -> Arrays:
        points, faces = sphere(level)
        box = points / (np.abs(points) ** 6).sum(1, keepdims=True) ** (1 / 6)
        bumps = 0.08 * np.sin(5 * points[:, 0] + 1) + 0.06 * np.cos(4 * points[:, 1] - points[:, 2])
        return box * np.array([1.0, 0.6, 1.5]) * (1 + bumps[:, None]), faces

    return build


@pytest.fixture(scope="session")
def bowl(sphere: Callable[..., Arrays]) -> Callable[..., Arrays]:
    """bowl(level, height): the part of the unit sphere below a height, an open surface; vertices
    without a face are left out.
    """

    def build(level: int = 3, height: float = 0.1) -> Arrays:
        points, faces = sphere(level)
        faces = faces[points[faces][:, :, 2].max(1) < height]
        used, corners = np.unique(faces, return_inverse=True)
        return points[used], corners.reshape(-1, 3)

    return build


@pytest.fixture(scope="session")
def moebius() -> Callable[..., Arrays]:
    """moebius(u, v): a strip of u v vertices with half a turn, one boundary and one side."""

    def build(u: int = 40, v: int = 6) -> Arrays:
        theta, s = np.meshgrid(
            np.arange(u) * 2 * np.pi / u, np.linspace(-0.3, 0.3, v), indexing="ij"
        )
        ring = 1 + s * np.cos(theta / 2)
        points = np.stack([ring * np.cos(theta), ring * np.sin(theta), s * np.sin(theta / 2)], -1)
        faces = []
        for i in range(u):
            for j in range(v - 1):
                a, d = i * v + j, i * v + j + 1
                if i + 1 < u:
                    b, c = (i + 1) * v + j, (i + 1) * v + j + 1
                else:
                    b, c = v - 1 - j, v - 2 - j
                faces += [(a, b, c), (a, c, d)]
        return points.reshape(-1, 3), np.array(faces, np.int64)

    return build


@pytest.fixture(scope="session")
def lump(sphere: Callable[..., Arrays]) -> Arrays:
    """A closed surface that no rotation or reflection maps to itself."""
    points, faces = sphere(3)
    x, y, z = points.T
    radius = 1 + 0.15 * np.sin(3 * x + 1) + 0.12 * np.cos(2 * y - z) + 0.15 * np.sin(2 * z + y + x)
    return points * np.array([1.0, 0.7, 1.5]) * radius[:, None], faces
