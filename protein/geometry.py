r"""Geometry of C-alpha traces, batched: bonds, clashes, angles, handedness, contacts, writhe.

Every function takes `Chains` and gives a double-precision tensor for the whole batch; what does not
exist (padding, a window that spans a chain break) is NaN or not counted. With r_i the C-alphas:

    bond        |r_{i+1} - r_i|, 3.80 angstrom across a trans peptide, 2.95 across a cis one
    angle       at r_{i+1} between r_i and r_{i+2}: 91 degrees in a helix, 124 in a strand
    dihedral    of r_i..r_{i+3}, IUPAC sign: +50 degrees in a right-handed helix, about -170 in a
                strand (Levitt, J. Mol. Biol. 104, 59, 1976)
    handedness  of the dihedrals of 35-70 degrees in absolute value, how many are positive: real
                chains .95, their mirror images .05
    contact     two residues three or more apart in the sequence and within 8 angstrom
    writhe      the Gauss integral of two bonds over 2 pi, signed,
                    w_ij = (1/2 pi) int int (dr_i x dr_j) . r_ij / |r_ij|^3,
                exactly, as the solid angle of a quadrangle on the unit sphere (Klenin & Langowski,
                Biopolymers 54, 307, 2000)

A cis peptide is a bond too: `bond_deviation` measures from the nearer of the two lengths, because
one peptide in three hundred is cis in nature, and calling it a fault would reward its absence.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from driftworks.errors import UserError
from driftworks.protein.chains import Chains

__all__ = [
    "CIS",
    "TRANS",
    "angles",
    "bond_deviation",
    "bond_lengths",
    "clashes",
    "contact_order",
    "contacts",
    "dihedrals",
    "handedness",
    "helix_strand",
    "radius_of_gyration",
    "ramachandran",
    "separations",
    "torsions",
    "writhe",
]

#: C-alpha distances across a peptide bond [angstrom].
TRANS, CIS = 3.80, 2.95
#: Pairs nearer than this [angstrom] clash when three or more residues lie between their numbers.
CLASH = 3.6
CONTACT = 8.0
APART = 3
#: Magnitudes of helix-like dihedrals [degrees], of either hand.
HELICAL = (35.0, 70.0)


def _windows(chains: Chains, size: int) -> Tensor:
    """(B, L - size + 1) bool: `size` residues in a row without a break."""
    bonded = chains.bonded
    count = max(chains.mask.shape[1] - size + 1, 0)
    out = torch.ones(len(chains), count, dtype=torch.bool, device=bonded.device)
    for k in range(size - 1):
        out &= bonded[:, k : k + count]
    return out


def _steps(chains: Chains) -> Tensor:
    return chains.ca.double().diff(dim=1)


def bond_lengths(chains: Chains) -> Tensor:
    """(B, L - 1) [angstrom], NaN where residues i and i + 1 are not bonded."""
    return _steps(chains).norm(dim=-1).masked_fill(~chains.bonded, torch.nan)


def bond_deviation(chains: Chains) -> Tensor:
    """(B, L - 1) distance of each bond from 3.80 or 2.95, the nearer [angstrom], NaN as above."""
    lengths = bond_lengths(chains)
    return torch.minimum((lengths - TRANS).abs(), (lengths - CIS).abs())


def angles(chains: Chains) -> Tensor:
    """(B, L - 2) virtual bond angles [radian, 0 to pi], NaN where there is none."""
    u = _steps(chains)
    a, b = -u[:, :-1], u[:, 1:]
    # atan2 keeps its digits near 0 and pi, where the arc cosine loses half of them
    out = torch.atan2(torch.linalg.cross(a, b, dim=-1).norm(dim=-1), (a * b).sum(-1))
    return out.masked_fill(~_windows(chains, 3), torch.nan)


def dihedrals(chains: Chains) -> Tensor:
    """(B, L - 3) virtual dihedral angles [radian, -pi to pi], NaN where there is none."""
    u = _steps(chains)
    a, b, c = u[:, :-2], u[:, 1:-1], u[:, 2:]
    ab, bc = torch.linalg.cross(a, b, dim=-1), torch.linalg.cross(b, c, dim=-1)
    sine = (a * bc).sum(-1) * b.norm(dim=-1)
    out = torch.atan2(sine, (ab * bc).sum(-1))
    return out.masked_fill(~_windows(chains, 4), torch.nan)


def handedness(chains: Chains) -> tuple[Tensor, Tensor]:
    """Right-handed and all helix-like dihedrals of each chain, two (B,) int64 tensors.

    Pool them over chains: an all-strand chain has few such dihedrals, of either hand.
    """
    low, high = (math.radians(limit) for limit in HELICAL)
    tau = dihedrals(chains)
    helical = (tau.abs() >= low) & (tau.abs() <= high)
    return (helical & (tau > 0)).sum(1), helical.sum(1)


def helix_strand(chains: Chains) -> tuple[Tensor, Tensor]:
    """Shares of helix and strand residues of each chain, two (B,) tensors.

    Four residues are helical when their dihedral lies within 50 +- 20 degrees and both angles
    within 91 +- 13, extended when it lies within -170 +- 50 and both angles within 124 +- 17. Two
    such windows in a row make five residues helix or strand. Left-handed helices are neither.
    """
    tau, theta = dihedrals(chains), angles(chains)
    helix = _near(tau, 50.0, 20.0) & _near(theta[:, :-1], 91.0, 13.0)
    helix &= _near(theta[:, 1:], 91.0, 13.0)
    strand = _near(tau, -170.0, 50.0) & _near(theta[:, :-1], 124.0, 17.0)
    strand &= _near(theta[:, 1:], 124.0, 17.0)
    n = chains.lengths.clamp(min=1)
    out = []
    for windows in (helix, strand):
        marked = torch.zeros_like(chains.mask)
        pairs = windows[:, :-1] & windows[:, 1:]
        for k in range(5):
            if pairs.shape[1]:
                marked[:, k : k + pairs.shape[1]] |= pairs
        out.append((marked & chains.mask).sum(1) / n)
    return out[0].double(), out[1].double()


def _near(values: Tensor, centre: float, reach: float) -> Tensor:
    """Within `reach` degrees of `centre`, around the circle."""
    gap = torch.rad2deg(values) - centre
    return (torch.remainder(gap + 180.0, 360.0) - 180.0).abs() <= reach


def separations(chains: Chains) -> tuple[Tensor, Tensor]:
    """Distances (B, L, L) [angstrom] and residues apart (B, L, L); NaN and 0 in the padding."""
    both = chains.mask[:, :, None] & chains.mask[:, None, :]
    points = chains.ca.double()
    gaps = (points[:, :, None] - points[:, None]).norm(dim=-1)
    apart = (chains.index[:, :, None] - chains.index[:, None]).abs()
    return gaps.masked_fill(~both, torch.nan), apart.masked_fill(~both, 0)


def clashes(chains: Chains, nearest: float = CLASH) -> Tensor:
    """(B,) int64 pairs of residues, three or more apart, within `nearest` angstrom."""
    gaps, apart = separations(chains)
    return ((gaps < nearest) & (apart >= APART)).sum(dim=(1, 2)) // 2


def contacts(chains: Chains, within: float = CONTACT, apart: int = APART) -> Tensor:
    """(B, L, L) bool contact maps, symmetric."""
    gaps, between = separations(chains)
    return (gaps < within) & (between >= apart)


def contact_order(chains: Chains) -> Tensor:
    """(B,) mean separation of the contacts over the length (Plaxco et al. 1998); 0 without any."""
    touching = contacts(chains)
    _, apart = separations(chains)
    count = touching.sum(dim=(1, 2))
    total = (apart * touching).sum(dim=(1, 2)).double()
    return total / count.clamp(min=1) / chains.lengths.clamp(min=1)


def radius_of_gyration(chains: Chains) -> Tensor:
    """(B,) root mean squared distance from the centroid [angstrom]; 0 for an empty chain."""
    weight = chains.mask.double()[..., None]
    n = chains.lengths.clamp(min=1)[:, None]
    points = chains.ca.double()
    centre = (points * weight).sum(1) / n
    squares = ((points - centre[:, None]).square() * weight).sum(dim=(1, 2))
    return (squares / n[:, 0]).sqrt()


def writhe(chains: Chains) -> tuple[Tensor, Tensor]:
    """Signed writhe of each pair of bonds i < j, and their residues apart, (B, P) each.

    P counts the pairs with j >= i + 2 (neighbours have none); zero where a bond does not exist. The
    sum over pairs is the writhe of the curve.
    """
    # axis first: each of the cross products below is then arithmetic on whole arrays
    points = chains.ca.double().permute(2, 0, 1)
    count = max(points.shape[2] - 1, 0)
    i, j = torch.triu_indices(count, count, offset=2, device=points.device)
    a, b, c, d = points[..., i], points[..., i + 1], points[..., j], points[..., j + 1]
    r13, r14, r23, r24 = c - a, d - a, c - b, d - b
    corners = [_unit_cross(*pair) for pair in ((r13, r14), (r14, r24), (r24, r23), (r23, r13))]
    area = torch.zeros_like(r13[0])
    for p, q in zip(corners, corners[1:] + corners[:1], strict=True):
        area += _dot(p, q).clamp_(-1.0, 1.0).asin_()
    out = area * torch.sign(_dot(_cross(d - c, b - a), r13)) / (2 * math.pi)
    bonded = chains.bonded
    there = bonded[:, i] & bonded[:, j]
    apart = chains.index[:, j] - chains.index[:, i]
    return torch.where(there, out, 0.0), torch.where(there, apart, 0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack(
        [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    )


def _unit_cross(a: Tensor, b: Tensor) -> Tensor:
    out = _cross(a, b)
    return out / _dot(out, out).sqrt().clamp(min=1e-12)


def torsions(backbone: NDArray[np.floating]) -> NDArray[np.float64]:
    """(n, 3) phi, psi, omega [degrees] of N, CA, C, O (n, 4, 3); NaN where there is none.

    omega is that of the peptide to the next residue. Atoms of residues whose C and N are more than
    2.5 angstrom apart span no peptide.
    """
    given = np.asarray(backbone, np.float64)
    if given.ndim != 3 or given.shape[1:] != (4, 3):
        raise UserError(f"a backbone of shape {given.shape}; expected (n, 4, 3)")
    n, ca, c = given[:, 0], given[:, 1], given[:, 2]
    out = np.full((len(given), 3), np.nan)
    joined = np.linalg.norm(n[1:] - c[:-1], axis=1) < 2.5
    out[1:, 0] = np.where(joined, _torsion(c[:-1], n[1:], ca[1:], c[1:]), np.nan)
    out[:-1, 1] = np.where(joined, _torsion(n[:-1], ca[:-1], c[:-1], n[1:]), np.nan)
    out[:-1, 2] = np.where(joined, _torsion(ca[:-1], c[:-1], n[1:], ca[1:]), np.nan)
    return out


def _torsion(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], d: NDArray[np.float64]
) -> NDArray[np.float64]:
    u, v, w = b - a, c - b, d - c
    uv, vw = np.cross(u, v), np.cross(v, w)
    sine = (u * vw).sum(-1) * np.linalg.norm(v, axis=-1)
    return np.asarray(np.degrees(np.arctan2(sine, (uv * vw).sum(-1))))


def ramachandran(backbone: NDArray[np.floating]) -> tuple[int, int]:
    """Residues outside the favoured regions, and all with both torsions.

    Favoured are phi from -180 to -35 with psi from -80 to 50 (helices) or beyond 90 or below -160
    (strands and polyproline): nine in ten residues of real chains, glycines among the rest.
    """
    angle = torsions(backbone)
    phi, psi = angle[:, 0], angle[:, 1]
    there = np.isfinite(phi) & np.isfinite(psi)
    helix = (psi > -80) & (psi < 50)
    favoured = (phi > -180) & (phi < -35) & (helix | (psi > 90) | (psi < -160))
    return int((there & ~favoured).sum()), int(there.sum())
