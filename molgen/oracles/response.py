"""Static polarisability by coupled-perturbed Kohn-Sham.

A field along x mixes virtual orbitals v into occupied ones o. To first order the mixing U obeys

    (e_v - e_o) U^x_vo + <v| K[U^x] |o>  =  -<v| x |o>,

K the response of the Kohn-Sham potential to the density D = 2 (Y C_o' + C_o Y'), Y = C_v U, and
for a closed shell

    alpha_xy = -4 sum_vo <v| x |o> U^y_vo          [bohr^3].

D has the rank of the occupied orbitals, and only <v|K|o> is wanted. So nothing here is done in
full (N, N) matrices: with A = L C_o and B = L Y for the density-fitting tensor L,

    Coulomb    sum_L A^L 4 tr(C_o' B^L)        exchange   2 sum_L (B^L C_o' A^L + A^L (C_o' B^L)')

and likewise on the grid, where occupied orbitals stand for density matrices. This is several times
cheaper than PySCF's general ``gen_response``, which it equals. The grid may be coarse: a
polarisability gains less than 1e-3 bohr^3 from the grid that the energy needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from driftworks.molgen.oracles.protocol import Failure

__all__ = ["polarisability", "potential_response"]


def polarisability(
    mf: Any, tolerance: float = 1e-5, max_cycle: int = 50, grid: int = 1
) -> np.ndarray:
    """Polarisability tensor (3, 3) [bohr^3] of a converged, closed-shell PySCF calculation.

    Args:
        mf: an RKS object after ``kernel()``, with a functional of the density and its gradient.
        tolerance: largest residual of the response equations [hartree].
        max_cycle: iterations of the linear solver.
        grid: PySCF's level of the grid for the response.

    Raises:
        Failure: the response equations did not converge.
    """
    from pyscf.scf import cphf

    occupied, virtual = mf.mo_coeff[:, mf.mo_occ > 0], mf.mo_coeff[:, mf.mo_occ == 0]
    shape = (-1, virtual.shape[1], occupied.shape[1])
    field = virtual.T @ mf.mol.intor("int1e_r") @ occupied
    potential = potential_response(mf, grid)

    def response(mixing: np.ndarray) -> np.ndarray:
        induced = virtual.T @ potential(virtual @ mixing.reshape(shape))
        return induced.reshape(mixing.shape)

    mixing = cphf.solve(
        response, mf.mo_energy, mf.mo_occ, field, max_cycle=max_cycle, tol=tolerance * 1e-3
    )[0].reshape(field.shape)
    gaps = mf.mo_energy[mf.mo_occ == 0][:, None] - mf.mo_energy[mf.mo_occ > 0]
    residual = np.abs(gaps * mixing + response(mixing) + field).max()
    if not residual <= tolerance:
        raise Failure("convergence", f"polarisability: residual {residual:.1e} of the response")
    tensor = -4 * np.einsum("xvo,yvo->xy", field, mixing)
    return (tensor + tensor.T) / 2


def potential_response(mf: Any, grid: int) -> Callable[[np.ndarray], np.ndarray]:
    """Y (n, N, occupied) -> K[2 (Y C_o' + C_o Y')] C_o, the same shape, of a converged RKS `mf`."""
    occupied = mf.mo_coeff[:, mf.mo_occ > 0]
    hybrid = mf._numint.rsh_and_hybrid_coeff(mf.xc)[2]
    local = _grid_response(mf, occupied, grid)
    fitted = getattr(mf, "with_df", None)

    def response(y: np.ndarray) -> np.ndarray:
        if fitted is None:
            density = 2 * y @ occupied.T
            j, k = mf.get_jk(mf.mol, density + density.transpose(0, 2, 1), hermi=1)
            return (j - 0.5 * hybrid * k) @ occupied + local(y)
        return _fitted_response(fitted, occupied, y, hybrid) + local(y)

    return response


def _fitted_response(fitted: Any, c: np.ndarray, y: np.ndarray, hybrid: float) -> np.ndarray:
    """(J - hybrid/2 K) C_o with density-fitted integrals, `c` (N, o), `y` (n, N, o)."""
    from pyscf import lib

    n, nao, o = y.shape
    right = np.concatenate([c[None], y]).transpose(1, 0, 2).reshape(nao, -1)
    result = np.zeros_like(y)
    block = max(8, int(1.2e8 / (8 * nao * (nao + 2 * right.shape[1]))))
    for packed in fitted.loop(block):
        half = lib.unpack_tril(packed).reshape(-1, nao) @ right
        half = half.reshape(len(packed), nao, n + 1, o).transpose(2, 1, 0, 3)  # [C | Y], N, L, o
        a, flat_a = half[0], half[0].reshape(nao, -1)
        occupied_a = np.tensordot(c.T, a, 1).reshape(o, -1)  # o, (L, o')
        for b, out in zip(half[1:], result, strict=True):
            occupied_b = np.tensordot(c.T, b, 1)  # o, L, o'
            charge = 4 * np.einsum("oLo->L", occupied_b)
            out += np.tensordot(a, charge, (1, 0))
            exchange = b.reshape(nao, -1) @ occupied_a.T
            exchange += flat_a @ occupied_b.reshape(o, -1).T
            out -= hybrid * exchange
    return result


def _grid_response(mf: Any, c: np.ndarray, level: int) -> Callable[[np.ndarray], np.ndarray]:
    """The response of the exchange-correlation potential, from orbitals on a grid."""
    from pyscf.dft import Grids

    ni, mol = mf._numint, mf.mol
    grids = Grids(mol)
    grids.level = level
    grids.build()
    kernel = ni.cache_xc_kernel(mol, grids, mf.xc, mf.mo_coeff, mf.mo_occ, spin=0)[2]
    kernel = kernel * grids.weights  # (4, 4, points): density and its gradient

    def response(y: np.ndarray) -> np.ndarray:
        n, nao, o = y.shape
        left = np.concatenate([c[None], y]).transpose(0, 2, 1).reshape(-1, nao)
        result = np.zeros((n * o, nao))
        start = 0
        for values, _, weight, _ in ni.block_loop(mol, grids, nao, 1, max_memory=400):
            ao = values.transpose(0, 2, 1)  # 4, N, points: contiguous as PySCF makes it
            stop = start + len(weight)
            orbitals = np.matmul(left, ao).reshape(4, n + 1, o, -1)
            phi, psi = orbitals[:, 0], orbitals[:, 1:]
            density = np.einsum("og,xkog->kxg", phi[0], psi)
            density[:, 1:] += np.einsum("xog,kog->kxg", phi[1:], psi[0])
            potential = np.einsum("xyg,kyg->kxg", kernel[:, :, start:stop], 4 * density)
            result += np.einsum("kxg,xog->kog", potential, phi).reshape(n * o, -1) @ ao[0].T
            for x in range(1, 4):
                result += (potential[:, x, None] * phi[0]).reshape(n * o, -1) @ ao[x].T
            start = stop
        return result.reshape(n, o, nao).transpose(0, 2, 1)

    return response
