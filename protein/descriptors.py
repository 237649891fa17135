r"""What a chain looks like in 24 numbers, how its fragments compare with real ones, and P-SEA.

**Descriptors** (`describe`). Size and shape, secondary structure, packing by distance along the
chain, topology by writhe, and the histogram of virtual dihedrals:

    0, 1    shares of helix and strand
    2       ln(Rg / 2.70 n^0.350), Rg against the fit to single-domain chains
    3       relative shape anisotropy, 0 sphere to 1 rod
    4       relative contact order
    5-8     contacts a residue, of residues 3-5, 6-11, 12-23, 24 or more apart
    9-14    writhe a residue, signed then absolute, of bonds 2-7, 8-23, 24 or more apart
    15-23   shares of dihedrals in 9 of 10 equal bins (the tenth follows from the others)

Two sets are compared by the Frechet distance of the normal laws with their means and covariances
(Dowson & Landau 1982), after division by the reference's standard deviations,

    d^2 = |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 ||S_1^(1/2) S_2^(1/2)||_*,

whose last term, a nuclear norm, is symmetric in the two sets and needs no root of a product.

**Fragments** (`fragments`, `FragmentLibrary`). Seven residues have five angles and four dihedrals;
the vector (angles, cosines, sines) of a fragment is compared with its nearest real neighbour. Real
chains find one at about .3, mirror images, noise and random walks do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from driftworks.data.structures import psea
from driftworks.errors import UserError
from driftworks.protein import geometry
from driftworks.protein.chains import Chains

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

__all__ = [
    "NAMES",
    "FragmentLibrary",
    "Moments",
    "describe",
    "fragments",
    "frechet",
    "psea",
    "psea_shares",
    "rg_of_length",
]

#: Names of the columns of `describe`.
NAMES = (
    "helix", "strand", "log_rg", "anisotropy", "contact_order",
    "contacts_3", "contacts_6", "contacts_12", "contacts_24",
    "writhe_2", "writhe_8", "writhe_24", "abs_writhe_2", "abs_writhe_8", "abs_writhe_24",
    *(f"dihedral_{k}" for k in range(9)),
)  # fmt: skip
#: Residues of a fragment, and the width of its vector: 5 angles, 4 cosines, 4 sines.
SIZE = 7
WIDTH = (SIZE - 2) + 2 * (SIZE - 3)
_CONTACT_BANDS = ((3, 6), (6, 12), (12, 24), (24, None))
_WRITHE_BANDS = ((2, 8), (8, 24), (24, None))
_BINS = 10
#: Entries of the largest intermediate array, so that memory stays bounded whatever the set.
_CHUNK = 400_000


def rg_of_length(n: NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.float64]:
    """Radius of gyration [angstrom] of a typical single-domain chain of n residues."""
    return np.asarray(2.70 * np.asarray(n, np.float64) ** 0.350)


def describe(chains: Chains) -> NDArray[np.float64]:
    """(B, 24) descriptors (`NAMES`); NaN for a chain of NaN or of fewer than four residues."""
    out = np.full((len(chains), len(NAMES)), np.nan)
    for rows, block in chains.blocks(_CHUNK):
        if block.mask.shape[1] >= 4:
            out[rows.numpy()] = _describe(block).cpu().numpy()
    lengths = chains.lengths.cpu().numpy()
    finite = torch.isfinite(chains.ca).all(dim=-1).all(dim=-1).cpu().numpy()
    out[~finite | (lengths < 4)] = np.nan
    return out


def _describe(chains: Chains) -> torch.Tensor:
    n = chains.lengths.double().clamp(min=1)
    helix, strand = geometry.helix_strand(chains)
    rg = geometry.radius_of_gyration(chains)
    columns = [helix, strand, (rg.clamp(min=1e-6) / (2.70 * n**0.350)).log(), _anisotropy(chains)]
    gaps, apart = geometry.separations(chains)
    touching = (gaps < geometry.CONTACT) & (apart >= geometry.APART)
    count = touching.sum(dim=(1, 2)).clamp(min=1)
    columns.append((apart * touching).sum(dim=(1, 2)) / count / n)
    for low, high in _CONTACT_BANDS:
        band = apart >= low if high is None else (apart >= low) & (apart < high)
        columns.append((touching & band).sum(dim=(1, 2)) / (2 * n))
    writhe, between = geometry.writhe(chains)
    bands = [
        between >= low if high is None else (between >= low) & (between < high)
        for low, high in _WRITHE_BANDS
    ]
    for values in (writhe, writhe.abs()):
        columns += [torch.where(band, values, 0.0).sum(1) / n for band in bands]
    tau = geometry.dihedrals(chains)
    place = ((tau / (2 * torch.pi) + 0.5) * _BINS).floor().clamp(0, _BINS - 1)
    there = tau.isfinite()
    total = there.sum(1).clamp(min=1)
    columns += [((place == k) & there).sum(1) / total for k in range(_BINS - 1)]
    return torch.stack([column.double() for column in columns], dim=1)


def _anisotropy(chains: Chains) -> torch.Tensor:
    """Relative shape anisotropy 1 - 3 (ab + bc + ca) / (a + b + c)^2 of the gyration tensor."""
    weight = chains.mask.double()[..., None]
    points = torch.nan_to_num(chains.ca.double())
    centre = (points * weight).sum(1) / weight.sum(1).clamp(min=1)
    moved = (points - centre[:, None]) * weight
    tensor = moved.transpose(1, 2) @ moved
    trace = tensor.diagonal(dim1=1, dim2=2).sum(1)
    squares = tensor.square().sum(dim=(1, 2))
    second = (trace.square() - squares) / 2
    return 1 - 3 * second / trace.square().clamp(min=1e-12)


def psea_shares(chains: Chains) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of P-SEA helix and strand of each chain, two (B,); NaN for a chain of NaN."""
    out = np.full((2, len(chains)), np.nan)
    for row, points in enumerate(chains.arrays()):
        if len(points) and np.isfinite(points).all():
            sse = psea(points)
            out[:, row] = (sse == "a").mean(), (sse == "b").mean()
    return out[0], out[1]


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean (K,) and covariance (K, K) of a set of descriptor rows, weighted or not."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(cls, rows: NDArray[np.floating], weights: NDArray[np.floating] | None = None) -> Moments:
        """Moments of (n, K) rows; the covariance divides by n, so that one row has none."""
        rows = np.asarray(rows, np.float64)
        if rows.ndim != 2 or not len(rows):
            raise UserError(f"moments of rows of shape {rows.shape}; expected (n, K), n > 0")
        w = np.full(len(rows), 1.0) if weights is None else np.asarray(weights, np.float64)
        w = w / w.sum()
        centre = w @ rows
        moved = rows - centre
        return cls(centre, (moved * w[:, None]).T @ moved)

    def scaled(self, by: NDArray[np.floating]) -> Moments:
        """Moments of the rows divided by (K,) scales."""
        return Moments(self.mean / by, self.covariance / np.outer(by, by))


def frechet(a: Moments, b: Moments) -> float:
    """Squared Frechet distance of two normal laws; 0 for equal moments, symmetric."""
    shift = float(((a.mean - b.mean) ** 2).sum())
    product = _root(a.covariance) @ _root(b.covariance)
    cross = float(np.linalg.svd(product, compute_uv=False).sum())
    spread = float(np.trace(a.covariance) + np.trace(b.covariance))
    return max(shift + spread - 2 * cross, 0.0)


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def fragments(chains: Chains) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vectors (F, 13) of all unbroken seven-residue fragments, and the chain (F,) of each.

    Fragments with a coordinate that is not finite are left out.
    """
    theta, tau = geometry.angles(chains), geometry.dihedrals(chains)
    count = chains.mask.shape[1] - SIZE + 1
    if count < 1:
        return np.zeros((0, WIDTH), np.float32), np.zeros(0, np.int64)
    parts = [theta[:, k : k + count] for k in range(SIZE - 2)]
    turns = [tau[:, k : k + count] for k in range(SIZE - 3)]
    parts += [turn.cos() for turn in turns] + [turn.sin() for turn in turns]
    stacked = torch.stack(parts, dim=-1)
    there = stacked.isfinite().all(dim=-1)
    owner = torch.arange(len(chains))[:, None].expand(-1, count)
    return (
        stacked[there].cpu().numpy().astype(np.float32),
        owner[there.cpu()].numpy().astype(np.int64),
    )


@dataclass(frozen=True, eq=False)
class FragmentLibrary:
    """Fragments of real chains, ready to be searched.

    vectors: (F, 13) float32, rows of `fragments`
    """

    vectors: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.shape[1] != WIDTH or not len(self.vectors):
            raise UserError(
                f"a fragment library needs rows of {WIDTH} numbers, got {self.vectors.shape}"
            )

    @classmethod
    def of(cls, chains: Chains) -> FragmentLibrary:
        """All fragments of some chains."""
        return cls(fragments(chains)[0])

    @cached_property
    def _tree(self) -> cKDTree:
        from scipy.spatial import cKDTree

        return cKDTree(self.vectors)

    def distances(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """(F',) distance of each fragment to its nearest neighbour in the library."""
        if not len(vectors):
            return np.zeros(0)
        return np.asarray(self._tree.query(np.asarray(vectors, np.float32), k=1)[0], np.float64)

    def packed(self) -> NDArray[np.uint8]:
        """(F, 9) the five angles and four dihedrals in steps of 1/256 of pi and of 2 pi."""
        theta = self.vectors[:, : SIZE - 2].astype(np.float64)
        cos, sin = np.split(self.vectors[:, SIZE - 2 :].astype(np.float64), 2, axis=1)
        turn = np.arctan2(sin, cos)
        coded = np.concatenate([theta / np.pi, turn / (2 * np.pi) + 0.5], axis=1)
        return np.clip(np.floor(coded * 256), 0, 255).astype(np.uint8)

    @classmethod
    def unpacked(cls, codes: NDArray[np.uint8]) -> FragmentLibrary:
        """The library of `packed` codes, each at the middle of its step."""
        values = (codes.astype(np.float64) + 0.5) / 256
        theta = values[:, : SIZE - 2] * np.pi
        turn = (values[:, SIZE - 2 :] - 0.5) * 2 * np.pi
        vectors = np.concatenate([theta, np.cos(turn), np.sin(turn)], axis=1)
        return cls(vectors.astype(np.float32))
