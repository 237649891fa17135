"""A shape prepared for matching: what every step asks for again and again, computed once.

All of it is on the mesh scaled to area 1 with its centroid at 0, so that distances are in units of
sqrt(area). Samples are farthest points, which depend neither on the numbering nor on motion.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from driftworks.errors import UserError
from driftworks.shapes.geodesics import distances
from driftworks.shapes.mesh import Mesh, parts
from driftworks.shapes.repair import FEWEST_VERTICES
from driftworks.shapes.spectrum import Basis, basis
from driftworks.shapes.zoomout import farthest_points

__all__ = ["Surface"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Surface:
    """A shape with its spectrum and samples.

    mesh: area 1, centroid at 0
    basis: its smoothest functions
    samples: (s,) vertices spread evenly, the first ones the farthest apart
    anchors: number of samples that distances are known from
    """

    mesh: Mesh
    basis: Basis
    samples: Indices
    anchors: int

    @classmethod
    def of(cls, mesh: Mesh, k: int, samples: int, anchors: int = 150) -> Surface:
        """Prepare a mesh with k functions; all of them are cut to what its vertices allow.

        Raises `UserError` for a mesh in several parts, which one spectrum cannot describe, one with
        fewer than 20 vertices or coordinates that are not finite, and as `spectrum.basis` does.
        """
        if not np.isfinite(mesh.vertices).all():
            raise UserError(f"mesh {mesh.name!r} has coordinates that are not finite; clean() it")
        if len(mesh) < FEWEST_VERTICES:
            raise UserError(
                f"{mesh.name!r} has {len(mesh)} vertices, at least {FEWEST_VERTICES} are needed"
            )
        if (pieces := int(parts(mesh).max()) + 1) > 1:
            raise UserError(
                f"mesh {mesh.name!r} is in {pieces} separate parts; match them one by one"
            )
        unit = mesh.normalised()
        n = len(unit)
        found = basis(unit, min(k, n))
        chosen = farthest_points(unit.vertices, min(samples, n))
        return cls(unit, found, chosen, min(anchors, len(chosen)))

    def __len__(self) -> int:
        return len(self.mesh)

    @cached_property
    def distances(self) -> Array:
        """(anchors, n) distances from the first samples to all vertices."""
        return distances(self.mesh, self.samples[: self.anchors])

    def sampled(self, count: int) -> Basis:
        """The basis on the first samples alone: a small shape to search on, not orthonormal."""
        chosen = self.samples[:count]
        return Basis(self.basis.values, self.basis.functions[chosen], self.basis.mass[chosen])

    @cached_property
    def frame(self) -> Array:
        """(3, 3) principal axes in rows, the longest first, right-handed."""
        x, w = self.mesh.vertices, self.mesh.vertex_areas
        _, axes = np.linalg.eigh(x.T @ (w[:, None] * x))
        axes = axes.T[::-1].copy()
        axes[2] *= np.sign(np.linalg.det(axes))
        return axes
