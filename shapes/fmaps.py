r"""Functional maps: linear maps between the smooth functions of two shapes.

C is (k2, k1) and takes coefficients on shape 1 to coefficients on shape 2, a2 = C a1 (Ovsjanikov,
Ben-Chen, Solomon, Butscher & Guibas, "Functional maps: a flexible representation of maps between
shapes", SIGGRAPH 2012). Phi1 (n1, k1), Phi2 (n2, k2) are bases orthonormal under masses M1, M2.

**From a vertex map.** `map21` gives for each vertex of shape 2 its vertex on shape 1; `map12` the
other way. A function f on shape 1 becomes f[map21] on shape 2, so

    C = Phi2^T M2 Phi1[map21]            pull-back
    C = Phi2[map12]^T M1 Phi1            adjoint of the pull-back along map12
    C = pinv(Phi2[p2]) Phi1[p1]          least squares on points p1 ~ p2 that correspond

The three agree for an isometry within the span.

**To a vertex map.** The delta function at y has coefficients Phi1[y], so with C orthogonal

    map21(x) = argmin_y |Phi1[y] C^T - Phi2[x]|       (Melzi et al. 2019; default)
    map21(x) = argmin_y |Phi1[y] - Phi2[x] C|         adjoint: the minimiser of |Phi2 C - Pi Phi1|
    map21(x) = argmin_y of the first squared, plus |Phi1[y] - Phi2[x] D^T| squared     bijective

where D (k1, k2) maps from 2 to 1 (Ren, Melzi, Ovsjanikov & Wonka, "MapTree", 2020).

**From descriptors.** A (k1, d) and B (k2, d) are coefficients of functions that correspond. With
penalties P >= 0 of mean 1, one for each entry,

    min_C  |C A - B|^2 + w s sum_ij P_ij C_ij^2,       s = |A|^2 / k1,

falls apart into rows: (A A^T + w s diag(P_i)) c_i = A b_i (Ren, Panine, Wonka & Ovsjanikov,
"Structured regularization of functional map computations", SGP 2019). s, the mean eigenvalue of
A A^T, makes w a pure number. Penalties of an isometry vanish where eigenvalues agree:

    Laplacian    (lambda1_j - lambda2_i)^2        for eigenvalues divided by the largest of all
    resolvent    |(lambda2_i^g - i)^{-1} - (lambda1_j^g - i)^{-1}|^2  of the same, g = 1/2; bounded

**Operators.** Maps also commute with what descriptors f define on functions: multiplication by f
(Nogneng & Ovsjanikov 2017), and the wedge g -> (grad f x grad g) . n, which changes sign under a
mirror and so tells left from right (Ren, Poulenard, Wonka & Ovsjanikov, "Continuous and
orientation-preserving correspondences via functional maps", SIGGRAPH Asia 2018). On a triangle
the integral of the wedge is half a determinant of differences along two edges: no metric is needed,
only the orientation of the faces. The terms |C O1 - O2 C|^2 couple all entries; conjugate gradients
with the row problem as preconditioner solve for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from driftworks.errors import UserError
from driftworks.shapes.spectrum import Basis

__all__ = [
    "BLOCK_BYTES",
    "commutation_error",
    "cycle_error",
    "fit",
    "fit_commuting",
    "from_samples",
    "from_vertices",
    "laplacian_penalty",
    "multiplications",
    "nearest",
    "orientations",
    "orthogonal",
    "orthogonality_error",
    "resolvent_penalty",
    "to_vertices",
    "to_vertices_both",
]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
#: What goes in as numpy comes out as numpy; tensors stay tensors and carry gradients.
Matrix = TypeVar("Matrix", Array, Tensor)

#: Bytes that the largest temporary array of a search or a sum over faces may take.
BLOCK_BYTES = 1 << 24
#: Part of the mean eigenvalue of A A^T added to its diagonal, so that too few descriptors leave
#: the entries they say nothing about at 0.
_RIDGE = 1e-10


def from_vertices(
    vertex_map: ArrayLike, basis1: Basis, basis2: Basis, *, adjoint: bool = False
) -> Array:
    """C (k2, k1) of a vertex map.

    vertex_map: (n2,) `map21`; with `adjoint` (n1,) `map12`
    """
    if adjoint:
        map12 = _indices(vertex_map, basis1.vertices, basis2.vertices, "map12")
        return basis1.coefficients(basis2.functions[map12]).T
    map21 = _indices(vertex_map, basis2.vertices, basis1.vertices, "map21")
    return basis2.coefficients(basis1.functions[map21])


def from_samples(points1: ArrayLike, points2: ArrayLike, basis1: Basis, basis2: Basis) -> Array:
    """C (k2, k1) by least squares on vertices that correspond, (s,) of each shape, s >= k2."""
    chosen2 = _indices(points2, None, basis2.vertices, "points2")
    chosen1 = _indices(points1, len(chosen2), basis1.vertices, "points1")
    if len(chosen2) < len(basis2):
        raise UserError(f"{len(chosen2)} samples cannot fix a map onto {len(basis2)} functions")
    found, *_ = np.linalg.lstsq(basis2.functions[chosen2], basis1.functions[chosen1], rcond=None)
    return cast(Array, found)


def nearest(
    queries: NDArray[np.floating[Any]], targets: NDArray[np.floating[Any]]
) -> Indices:
    """(q,) number of the nearest of (t, d) targets to each of (q, d) queries; the first of equals.

    Squared distances come from one matrix product a block of queries; blocks are such that they
    take no more than `BLOCK_BYTES`, or t numbers where one row is more. In the precision given.
    """
    if not len(targets):
        raise UserError("there are no targets to search")
    if not (np.isfinite(queries).all() and np.isfinite(targets).all()):
        raise UserError("the nearest of points that are not finite was asked for")
    half = 0.5 * np.einsum("td,td->t", targets, targets)
    rows = max(1, BLOCK_BYTES // (8 * len(targets)))
    transposed = np.ascontiguousarray(targets.T)
    found = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), rows):
        likeness = queries[start : start + rows] @ transposed
        likeness -= half
        found[start : start + rows] = likeness.argmax(1)
    return found


def to_vertices(
    c: Array,
    basis1: Basis,
    basis2: Basis,
    *,
    adjoint: bool = False,
    samples1: Indices | None = None,
    samples2: Indices | None = None,
) -> Indices:
    """(n2,) `map21` of C (k2, k1): a vertex of shape 1 for each vertex of shape 2.

    adjoint: compare in the spectrum of shape 1 instead of that of shape 2
    samples1: (s1,) vertices that may be chosen; None for all
    samples2: (s2,) vertices whose partners are wanted, and the result is (s2,); None for all

    Bases larger than C are cut to its size. For the map of all vertices of shape 1 onto shape 2
    give C^T and the bases in the other order.
    """
    first, second = _rows(c, basis1, basis2, samples1, samples2)
    pair = (second @ c, first) if adjoint else (second, first @ c.T)
    return _numbers(nearest(*pair), samples1)


def to_vertices_both(
    c12: Array,
    c21: Array,
    basis1: Basis,
    basis2: Basis,
    *,
    samples1: Indices | None = None,
    samples2: Indices | None = None,
) -> tuple[Indices, Indices]:
    """`map21` (n2,) and `map12` (n1,) of a map in both directions, by the bijective distance.

    c12: (k2, k1); c21: (k1, k2)
    samples1, samples2: vertices that take part, on both sides of the search; None for all
    """
    if c21.shape != c12.shape[::-1]:
        raise UserError(f"maps of shapes {c12.shape} and {c21.shape} are not there and back")
    first, second = _rows(c12, basis1, basis2, samples1, samples2)
    embedded1 = np.hstack([first @ c12.T, first])
    embedded2 = np.hstack([second, second @ c21.T])
    return (
        _numbers(nearest(embedded2, embedded1), samples1),
        _numbers(nearest(embedded1, embedded2), samples2),
    )


def laplacian_penalty(values1: ArrayLike, values2: ArrayLike) -> Array:
    """(k2, k1) squared differences of eigenvalues (k1,) and (k2,), mean 1."""
    first, second = _relative(values1, values2)
    return _mean_one((second[:, None] - first[None, :]) ** 2)


def resolvent_penalty(values1: ArrayLike, values2: ArrayLike, gamma: float = 0.5) -> Array:
    """(k2, k1) squared differences of the resolvents of lambda^gamma, mean 1; gamma > 0."""
    if not gamma > 0:
        raise UserError(f"gamma must be positive, not {gamma}")
    resolvents = [1 / (values**gamma - 1j) for values in _relative(values1, values2)]
    return _mean_one(np.abs(resolvents[1][:, None] - resolvents[0][None, :]) ** 2)


def fit(
    a: Matrix, b: Matrix, penalties: ArrayLike | Tensor | None = None, weight: float = 0.0
) -> Matrix:
    """C (..., k2, k1) that takes descriptors a (..., k1, d) to b (..., k2, d), in closed form.

    penalties: (..., k2, k1), not negative, mean 1 for a comparable `weight`; None for none
    weight: weight of the penalties against the descriptors, a pure number

    Solved in float64 and returned in the type of `a`, with gradients for tensors. Takes 8 k2 k1^2
    bytes a map, and time as k2 k1^3. Raises `UserError` for shapes that do not fit.
    """
    first, second = _tensor(a), _tensor(b)
    if first.ndim < 2 or second.ndim < 2 or first.shape[-1] != second.shape[-1]:
        raise UserError(
            "descriptors are (..., k1, d) and (..., k2, d) with one d, "
            f"not {tuple(first.shape)} and {tuple(second.shape)}"
        )
    if not weight >= 0:
        raise UserError(f"the weight of penalties must not be negative, but is {weight}")
    k1, k2 = first.shape[-2], second.shape[-2]
    gram = first @ first.mT
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    right = second @ first.mT
    ridged = gram + _RIDGE * scale * torch.eye(k1, dtype=gram.dtype, device=gram.device)
    if penalties is None or weight == 0:
        found = torch.linalg.solve(ridged, right.mT).mT
    else:
        cost = _tensor(penalties, first.device)
        if tuple(cost.shape[-2:]) != (k2, k1):
            raise UserError(f"penalties are {tuple(cost.shape)}; a map here is {(k2, k1)}")
        rows = ridged[..., None, :, :] + torch.diag_embed(weight * scale * cost)
        found = torch.linalg.solve(rows, right[..., None])[..., 0]
    return _like(found, a)


def multiplications(basis: Basis, descriptors: Array) -> Array:
    """(d, k, k) matrices Phi^T M diag(f) Phi of multiplication by each of (n, d) descriptors."""
    weighted = basis.mass[:, None] * descriptors
    return np.stack([basis.functions.T @ (w[:, None] * basis.functions) for w in weighted.T])


def orientations(basis: Basis, faces: ArrayLike, descriptors: Array) -> Array:
    """(d, k, k) matrices of g -> (grad f x grad g) . n for each of (n, d) descriptors [1 / area].

    faces: (m, 3) vertex numbers, oriented alike all over

    Entry (i, j) is the integral of phi_i (grad f x grad phi_j) . n, with phi_i replaced by its mean
    on each face. Raises `UserError` for a point cloud, which has no orientation.
    """
    corners = np.asarray(faces)
    if corners.ndim != 2 or corners.shape[1:] != (3,) or not len(corners):
        raise UserError("an orientation term needs faces; a point cloud has none")
    k, d = len(basis), descriptors.shape[1]
    found = np.zeros((d, k, k))
    block = max(1, BLOCK_BYTES // (8 * 8 * k))
    for start in range(0, len(corners), block):
        part = corners[start : start + block]
        phi = basis.functions[part]
        mean = phi.mean(1)
        du, dv = phi[:, 1] - phi[:, 0], phi[:, 2] - phi[:, 0]
        f = descriptors[part]
        fu, fv = f[:, 1] - f[:, 0], f[:, 2] - f[:, 0]
        for i in range(d):
            found[i] += mean.T @ (0.5 * (fu[:, i, None] * dv - fv[:, i, None] * du))
    return found


def fit_commuting(
    a: Array,
    b: Array,
    operators: Sequence[tuple[Array, Array, float]],
    penalties: ArrayLike | None = None,
    weight: float = 0.0,
    *,
    tolerance: float = 1e-8,
) -> Array:
    """C (k2, k1) that also commutes with operators: `fit` with terms u |C O1 - O2 C|^2.

    a, b: (k1, d), (k2, d) coefficients of descriptors
    operators: families (O1 (e, k1, k1), O2 (e, k2, k2), u); u >= 0 is a pure number, because the
        sum over a family is multiplied by |A|^2 / (half its sum of |O1|^2 and |O2|^2)
    penalties, weight: as in `fit`
    tolerance: relative residual of the normal equations

    Raises `UserError` for shapes that do not fit, or without convergence in 2000 iterations.
    """
    start = fit(a, b, penalties, weight)
    k2, k1 = start.shape
    scale = float(np.einsum("ij,ij->", a, a)) / k1
    diagonal = np.full((k2, k1), _RIDGE * scale)
    if penalties is not None:
        diagonal += weight * scale * np.asarray(penalties, dtype=np.float64)
    right_gram, left_gram = a @ a.T, np.zeros((k2, k2))
    sums: list[tuple[Array, Array]] = []
    for of1, of2, strength in operators:
        if of1.shape[1:] != (k1, k1) or of2.shape != (len(of1), k2, k2):
            raise UserError(
                f"operators of shapes {of1.shape} and {of2.shape} do not act on a {(k2, k1)} map"
            )
        if not strength >= 0:
            raise UserError(f"the weight of operators must not be negative, but is {strength}")
        power = 0.5 * float(np.square(of1).sum() + np.square(of2).sum())
        if strength == 0 or power == 0:
            continue
        unit = strength * scale * k1 / power
        right_gram = right_gram + unit * np.einsum("eij,ekj->ik", of1, of1)
        left_gram += unit * np.einsum("eji,ejk->ik", of2, of2)
        sums.append((unit * of1, of2))
    if not sums:
        return start
    of1, of2 = (np.concatenate(part) for part in zip(*sums, strict=True))

    def normal(flat: Array) -> Array:
        c = flat.reshape(k2, k1)
        cross = np.einsum("eij,ekj->ik", of2 @ c, of1)
        cross += np.einsum("eji,ejk->ik", of2, c @ of1)
        return (c @ right_gram + left_gram @ c + diagonal * c - cross).ravel()

    # rows alone: what the whole is without the cross terms and off-diagonal entries of the left sum
    rows = right_gram + np.eye(k1) * (diagonal + np.diag(left_gram)[:, None])[:, :, None]
    inverse = np.linalg.inv(rows)
    size = k1 * k2
    found, failed = cg(
        LinearOperator((size, size), matvec=normal, dtype=np.float64),
        (b @ a.T).ravel(),
        x0=start.ravel(),
        rtol=tolerance,
        maxiter=2000,
        M=LinearOperator(
            (size, size),
            matvec=lambda r: np.einsum("rij,rj->ri", inverse, r.reshape(k2, k1)).ravel(),
            dtype=np.float64,
        ),
    )
    if failed:
        raise UserError("the map with operators does not converge; lower their weight")
    return cast(Array, found.reshape(k2, k1))


def orthogonal(c: Matrix) -> Matrix:
    """The nearest map (..., k2, k1) whose singular values are all 1.

    Regularised fits shrink the functions they know little about, which the default search forgives;
    the adjoint and the bijective search pull such a map towards points where all functions are
    small, so start them from this.
    """
    left, _, right = torch.linalg.svd(_tensor(c), full_matrices=False)
    return _like(left @ right, c)


def orthogonality_error(c: Matrix) -> Matrix:
    """(...,) |C^T C - I| / sqrt(k1) of maps (..., k2, k1), on the smaller side where k1 > k2.

    0 for maps that preserve area.
    """
    t = _tensor(c)
    gram = t.mT @ t if t.shape[-1] <= t.shape[-2] else t @ t.mT
    return _like(_from_identity(gram), c)


def commutation_error(
    c: Matrix, values1: ArrayLike | Tensor, values2: ArrayLike | Tensor
) -> Matrix:
    """(...,) |C L1 - L2 C| / (|C L1| + |L2 C|) with the eigenvalues (..., k1) and (..., k2).

    Between 0, for isometries, and 1; 0 for a map whose both terms vanish.
    """
    t = _tensor(c)
    before = t * _tensor(values1, t.device)[..., None, :]
    after = t * _tensor(values2, t.device)[..., :, None]
    size = torch.linalg.matrix_norm(before) + torch.linalg.matrix_norm(after)
    error = torch.linalg.matrix_norm(before - after) / size.clamp_min(torch.finfo(t.dtype).tiny)
    return _like(error, c)


def cycle_error(*maps: Matrix) -> Matrix:
    """(...,) |C_m ... C_2 C_1 - I| / sqrt(k1) of maps around a cycle of m shapes.

    maps: C_1 (..., k2, k1) from shape 1 to 2, C_2 (..., k3, k2), ..., the last (..., k1, km)
    """
    if not maps:
        raise UserError("a cycle has at least one map")
    around = _tensor(maps[0])
    for step in maps[1:]:
        following = _tensor(step)
        if following.shape[-1] != around.shape[-2]:
            raise UserError(
                f"a map of {following.shape[-1]} functions follows one onto {around.shape[-2]}"
            )
        around = following @ around
    if around.shape[-1] != around.shape[-2]:
        raise UserError(f"the maps do not close a cycle: {tuple(around.shape)}")
    return _like(_from_identity(around), maps[0])


def _from_identity(square: Tensor) -> Tensor:
    k = square.shape[-1]
    identity = torch.eye(k, dtype=square.dtype, device=square.device)
    return torch.linalg.matrix_norm(square - identity) / k**0.5


def _tensor(x: ArrayLike | Tensor, device: torch.device | None = None) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64, device=device)


def _like(found: Tensor, model: Matrix) -> Matrix:
    if isinstance(model, Tensor):
        return found.to(model.dtype)
    return found.numpy()


def _relative(values1: ArrayLike, values2: ArrayLike) -> tuple[Array, Array]:
    first, second = (np.asarray(v, dtype=np.float64) for v in (values1, values2))
    largest = max(first.max(initial=0.0), second.max(initial=0.0))
    if not largest > 0 or min(first.min(initial=0.0), second.min(initial=0.0)) < 0:
        raise UserError("penalties need eigenvalues that are not negative, one of them positive")
    return first / largest, second / largest


def _mean_one(penalty: Array) -> Array:
    return penalty / max(penalty.mean(), np.finfo(np.float64).tiny)


def _indices(given: ArrayLike, count: int | None, limit: int, called: str) -> Indices:
    found = np.asarray(given)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise UserError(f"{called} must be a list of vertex numbers")
    if count is not None and len(found) != count:
        raise UserError(f"{called} has {len(found)} entries, not {count}")
    if len(found) and (found.min() < 0 or found.max() >= limit):
        bad = found[(found < 0) | (found >= limit)][0]
        raise UserError(f"{called} holds {bad}, which is not one of {limit} vertices")
    return found.astype(np.int64)


def _rows(
    c: Array,
    basis1: Basis,
    basis2: Basis,
    samples1: Indices | None,
    samples2: Indices | None,
) -> tuple[Array, Array]:
    """Rows of the bases, cut to the size of C, at the samples."""
    if c.ndim != 2:
        raise UserError(f"a functional map is a matrix (k2, k1), not of shape {c.shape}")
    first = basis1.first(c.shape[1]).functions
    second = basis2.first(c.shape[0]).functions
    if samples1 is not None:
        first = first[_indices(samples1, None, basis1.vertices, "samples1")]
    if samples2 is not None:
        second = second[_indices(samples2, None, basis2.vertices, "samples2")]
    return first, second


def _numbers(found: Indices, samples: Indices | None) -> Indices:
    return found if samples is None else np.asarray(samples, dtype=np.int64)[found]
