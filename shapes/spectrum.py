r"""The smooth functions of a surface: eigenfunctions of its Laplacian, kept on disk.

With the (n, n) stiffness matrix L >= 0 and the lumped mass matrix M = diag(m) of a triangle mesh,

    L phi_j = lambda_j M phi_j,      phi_i^T M phi_j = delta_ij,      0 = lambda_1 <= lambda_2 ...

L and m come from the intrinsic Delaunay triangulation of the tufted cover (Sharp & Crane, "A
Laplacian for nonmanifold triangle meshes", SGP 2020), which exists for any triangle soup and for
point clouds; open borders get Neumann conditions. The problem is solved for the symmetric matrix
A = M^{-1/2} L M^{-1/2} of the surface scaled to area 1, by Lanczos on (A - sigma)^{-1} with a
slightly negative sigma: A - sigma is then positive definite, factorises without pivoting, and its
inverse has the wanted eigenvalues on top.

Units: an area is [length^2], so lambda is in 1 / area, phi in 1 / length, m in area. Scaling a
shape by s divides lambda by s^2 and phi by s.

Signs: phi and -phi are equally good, so the sign is chosen such that sum_i m_i phi_i^3 > 0. That
does not depend on how vertices are numbered, on motions or on scale. A function that takes v and -v
equally often (an odd one of a mirror-symmetric shape) has no sign of its own; it is made positive
where it first, in vertex order, reaches half its extreme. Inside a multiple eigenvalue the basis
is arbitrary: equal inputs give equal bases, renumbered ones a rotated basis.
"""

from __future__ import annotations

import os
import tempfile
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg
import scipy.sparse as sparse
import scipy.sparse.linalg as sparse_linalg
from numpy.typing import NDArray

from driftworks.data.cache import cache_folder
from driftworks.errors import UserError

if TYPE_CHECKING:
    from driftworks.shapes.mesh import Mesh

__all__ = ["Basis", "basis", "laplacian"]

Array = NDArray[np.float64]

#: Changes when the numbers in the cache would.
_VERSION = 1
#: Up to this many vertices all eigenvectors are found by a dense solver, which is as quick.
_DENSE = 300
#: Shifts to try in turn, in units of 1 / area.
_SHIFTS = (-1e-2, -1e-1, -1.0)
#: A mass below this part of the mean is raised to it; only degenerate faces have such vertices.
_SMALLEST_MASS = 1e-6
#: Largest |A x - lambda x|, relative to the largest eigenvalue sought, of an accepted solution.
_RESIDUAL = 1e-6
#: An eigenvalue below this, in units of 1 / area, is the 0 of a separate part with rounding; logs
#: and roots are taken of eigenvalues later. Only a tube 3e8 times as long as wide has such a one.
_ZERO = 1e-7
#: |sum m phi^3| / sum m |phi|^3 below which a function has no sign of its own.
_SKEW = 1e-6
#: Neighbours of a point in a cloud whose Delaunay triangulation makes the Laplacian.
_NEIGHBOURS = 30


@dataclass(frozen=True, eq=False)
class Basis:
    """The k smoothest functions on n vertices.

    values: (k,) eigenvalues, rising from 0 [1 / area]
    functions: (n, k) eigenfunctions in columns, orthonormal under the mass [1 / length]
    mass: (n,) area of each vertex [area]
    """

    values: Array
    functions: Array
    mass: Array

    def __post_init__(self) -> None:
        n, k = self.functions.shape
        if self.values.shape != (k,) or self.mass.shape != (n,):
            raise UserError(
                f"a basis of {k} functions on {n} vertices has values {(k,)} and mass {(n,)}, "
                f"not {self.values.shape} and {self.mass.shape}"
            )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def vertices(self) -> int:
        """The number n of vertices."""
        return len(self.mass)

    @property
    def area(self) -> float:
        """Area of the surface: the sum of the masses."""
        return float(self.mass.sum())

    def first(self, k: int) -> Basis:
        """The k smoothest functions; `UserError` when there are fewer."""
        if not 1 <= k <= len(self):
            raise UserError(f"this basis has {len(self)} functions; {k} were asked for")
        return Basis(self.values[:k], self.functions[:, :k], self.mass)

    def coefficients(self, functions: Array) -> Array:
        """(k, d) coefficients phi^T M f of (n, d) functions; (k,) of (n,)."""
        weights = self.mass if functions.ndim == 1 else self.mass[:, None]
        return self.functions.T @ (weights * functions)

    def synthesise(self, coefficients: Array) -> Array:
        """(n, d) functions with (k, d) coefficients; (n,) of (k,)."""
        return self.functions @ coefficients


def laplacian(mesh: Mesh) -> tuple[sparse.csc_matrix, Array]:
    """Stiffness matrix (n, n), positive semidefinite, and mass (n,) [area] of a mesh or a cloud.

    Raises `UserError` for a cloud of fewer than four points, a vertex that no face uses, faces
    without area, or when `robust_laplacian` is not installed.
    """
    try:
        import robust_laplacian
    except ImportError as error:
        raise UserError("Laplacians need robust_laplacian: pip install robust_laplacian") from error
    vertices = np.ascontiguousarray(mesh.vertices, dtype=np.float64)
    n = len(vertices)
    try:
        if mesh.is_cloud:
            if n < 4:
                raise UserError(f"{_called(mesh)} has {n} points; a point cloud needs 4 or more")
            neighbours = min(_NEIGHBOURS, n - 1)
            stiffness, mass = robust_laplacian.point_cloud_laplacian(
                vertices, n_neighbors=neighbours
            )
        else:
            faces = np.ascontiguousarray(mesh.faces, dtype=np.int64)
            unused = np.setdiff1d(np.arange(n), faces)
            if len(unused):
                raise UserError(
                    f"{_called(mesh)} has {len(unused)} vertices that no face uses "
                    f"(the first is {unused[0]}); clean() removes them"
                )
            stiffness, mass = robust_laplacian.mesh_laplacian(vertices, faces)
    except RuntimeError as error:
        raise UserError(f"no Laplacian could be built on {_called(mesh)}: {error}") from error
    weights = np.asarray(mass.diagonal(), dtype=np.float64)
    if not (np.isfinite(stiffness.data).all() and np.isfinite(weights).all()):
        raise UserError(f"the Laplacian of {_called(mesh)} is not finite: degenerate geometry")
    if weights.sum() <= 0:
        raise UserError(f"{_called(mesh)} has no area")
    return stiffness.tocsc(), np.maximum(weights, _SMALLEST_MASS * weights.mean())


def basis(mesh: Mesh, k: int, *, cache: bool = True) -> Basis:
    """The k smoothest functions of a mesh or point cloud, with its own area (lambda in 1 / area).

    k: number of functions, at most the number n of vertices; time grows about as n k^1.5, memory as
        n k (as n^2 where k exceeds n / 2)
    cache: look in and add to ``shapes/`` under the cache folder, one file of 8 n k bytes a mesh;
        the largest basis found so far serves smaller k. A cut through a multiple eigenvalue may
        then keep other members of it than a fresh solution would

    Raises `UserError` for k out of range or a mesh whose eigenproblem cannot be solved.
    """
    n = len(mesh.vertices)
    if not 1 <= k <= n:
        raise UserError(f"k must be between 1 and the {n} vertices of {_called(mesh)}, not {k}")
    file = cache_folder() / "shapes" / f"spectrum-{_VERSION}-{mesh.digest}.npz"
    if cache and (stored := _read(file, n)) is not None and len(stored) >= k:
        return stored.first(k)
    found = _solve(*laplacian(mesh), k, _called(mesh))
    if cache:
        _write(file, found)
    return found


def _called(mesh: Mesh) -> str:
    return f"mesh {mesh.name!r}" if mesh.name else "the mesh"


def _solve(stiffness: sparse.csc_matrix, mass: Array, k: int, called: str) -> Basis:
    area = mass.sum()
    scale = np.sqrt(area / mass)
    matrix = sparse.diags(scale) @ stiffness @ sparse.diags(scale)
    matrix = ((matrix + matrix.T) / 2).tocsc()
    n = len(mass)
    if n <= _DENSE or 2 * k >= n:
        try:
            values, vectors = scipy.linalg.eigh(matrix.toarray(), subset_by_index=[0, k - 1])
        except np.linalg.LinAlgError as error:
            raise UserError(f"the spectrum of {called} cannot be found: {error}") from error
    else:
        values, vectors = _lanczos(matrix, k, called)
    order = np.argsort(values, kind="stable")
    functions = vectors[:, order] / np.sqrt(mass)[:, None]
    rising = np.where(values[order] < _ZERO, 0.0, values[order])
    return Basis(rising / area, functions * _signs(functions, mass), mass)


def _lanczos(matrix: sparse.csc_matrix, k: int, called: str) -> tuple[Array, Array]:
    """k smallest eigenpairs of a symmetric matrix; each failure widens shift and search space."""
    n = matrix.shape[0]
    # a generator of its own, so that equal inputs give equal bases
    start = np.random.default_rng(0).standard_normal(n)
    reason = ""
    for attempt, shift in enumerate(_SHIFTS, start=2):
        try:
            shifted = (matrix - shift * sparse.identity(n, format="csc")).tocsc()
            factors = sparse_linalg.splu(
                shifted,
                permc_spec="MMD_AT_PLUS_A",
                diag_pivot_thresh=0.0,
                options={"SymmetricMode": True},
            )
            inverse = sparse_linalg.LinearOperator((n, n), matvec=factors.solve, dtype=np.float64)
            values, vectors = sparse_linalg.eigsh(
                matrix, k, sigma=shift, OPinv=inverse, v0=start, ncv=min(n, attempt * k + 20)
            )
        except RuntimeError as error:  # a singular factor, or ARPACK without convergence
            reason = str(error)
            continue
        residual = np.abs(matrix @ vectors - vectors * values).max()
        if residual <= _RESIDUAL * max(1.0, np.abs(values).max()):
            return values, vectors
        reason = f"residual {residual:.1e}"
    raise UserError(
        f"{k} eigenfunctions of {called} cannot be found ({reason}); "
        "ask for fewer, or remesh its degenerate faces"
    )


def _signs(functions: Array, mass: Array) -> Array:
    """(k,) factors +1 or -1 after the rule above."""
    cubes = functions**3
    skew = mass @ cubes
    own = np.abs(skew) > _SKEW * (mass @ np.abs(cubes))
    size = np.abs(functions)
    first = (size >= 0.5 * size.max(0)).argmax(0)
    reached = functions[first, np.arange(functions.shape[1])]
    return np.where(np.where(own, skew, reached) < 0, -1.0, 1.0)


def _read(file: Path, n: int) -> Basis | None:
    """What a cache file holds; None when there is none, or it is damaged or of another mesh."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            found = Basis(*(stored[key] for key in ("values", "functions", "mass")))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
    arrays = (found.values, found.functions, found.mass)
    sound = all(a.dtype == np.float64 and np.isfinite(a).all() for a in arrays)
    return found if sound and found.vertices == n else None


def _write(file: Path, found: Basis) -> None:
    """Store under a temporary name, then rename: a reader never sees half a file."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.stem, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as part:
                np.savez(part, values=found.values, functions=found.functions, mass=found.mass)
            os.replace(name, file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        warnings.warn(f"the spectrum is not kept: {file}: {error.strerror or error}", stacklevel=3)
