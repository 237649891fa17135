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

__all__ = ["DENSE", "Surface"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Vertices that a search goes through at most, but for the last one.
DENSE = 5000
_CURVED = 100  # functions that curvature is made of
_TIMES = (1 / 600, 1 / 200, 1 / 60)  # of smoothing, in units of area


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

    @cached_property
    def curvatures(self) -> Array:
        """(n, 3) mean curvature of the surface after three times of smoothing, positive outside.

        With x = sum_j c_j phi_j, half the curvature normal -Delta x is sum_j lambda_j c_j phi_j / 2
        (Meyer, Desbrun, Schroeder & Barr 2003); here every term is multiplied by exp(-lambda_j t).
        It is 1 / radius on a small sphere, and 0 on a plane. The normals of a point cloud are taken
        to point where most of it is convex.
        """
        smooth = self.basis.first(min(_CURVED, len(self.basis)))
        values = smooth.values[:, None]
        spectrum = 0.5 * values * smooth.coefficients(self.mesh.vertices)
        normals = self.mesh.normals
        found = np.stack(
            [
                (normals * smooth.synthesise(np.exp(-values * time) * spectrum)).sum(1)
                for time in _TIMES
            ],
            1,
        )
        inwards = self.mesh.is_cloud and float(smooth.mass @ found[:, 0]) < 0
        return -found if inwards else found

    @cached_property
    def dense(self) -> Indices:
        """Vertices among which partners are sought: all, or `DENSE` spread evenly."""
        n = len(self)
        return np.arange(n) if n <= 1.5 * DENSE else farthest_points(self.mesh.vertices, DENSE)

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
