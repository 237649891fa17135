r"""Maximum mean discrepancy between two sets of graphs, as published and as it should be.

With a kernel matrix over m generated and n reference graphs,

    biased     MMD^2 = mean K_xx + mean K_yy - 2 mean K_xy          (V-statistic, with diagonals)
    unbiased   MMD^2 = sum_{i != j} K_xx / (m (m-1)) + the same of y - 2 mean K_xy       (Gretton
               et al., "A kernel two-sample test", JMLR 2012, eq. 3; it may be negative)

The published tables use the biased one, so two samples of the *same* distribution score about
(1 - E k) (1/m + 1/n), and kernels exp(-d^2 / 2 sigma^2) of transport or total-variation distances,
which are not positive definite (O'Bray et al., ICLR 2022). Both families of tables are here under
the name of the paper that set the convention; they must never be mixed:

    "gdss"      degree, clustering, spectral: earth mover's distance;  orbit: Euclidean, sigma 30
    "digress"   all four: total variation (planar, SBM, tree tables since SPECTRE)

For an honest comparison the distances are the same but the kernel is Laplacian, exp(-d / sigma): d
is an L1 distance (of cumulative histograms for the earth mover's distance on a line) or a Euclidean
one, hence of negative type, hence the kernel is positive definite (Schoenberg 1938). sigma is the
median distance between two different reference graphs, so that no kernel saturates.

Intervals resample the generated and the reference graphs. A pair of copies of one graph is left out
of a resample's sums, and the weights of the pairs that stay are normalised; without that a resample
would look less like its source than a fresh sample does. p-values permute the labels: the smallest
is 1 / (permutations + 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from driftworks.errors import UserError

__all__ = [
    "HONEST",
    "PUBLISHED",
    "Comparison",
    "Kernel",
    "biased",
    "bootstrap",
    "compare",
    "kernels_of",
    "p_value",
    "subset_values",
    "unbiased",
]

Matrix = NDArray[np.float64]

DISTANCES = ("emd", "tv", "euclidean")
SHAPES = ("gaussian", "laplacian")


@dataclass(frozen=True)
class Kernel:
    """k(x, y) = shape(d(x, y) / sigma).

    distance: "emd" (earth mover's on a line, in units of `bin` a bin), "tv" (half the L1
        distance), "euclidean"
    sigma: bandwidth in the units of the distance; None for the median over the reference
    shape: "gaussian" exp(-d^2 / 2 sigma^2) or "laplacian" exp(-d / sigma)
    """

    distance: str
    sigma: float | None = None
    shape: str = "laplacian"
    bin: float = 1.0

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise UserError(f"unknown distance {self.distance!r}; choose from {DISTANCES}")
        if self.shape not in SHAPES:
            raise UserError(f"unknown kernel shape {self.shape!r}; choose from {SHAPES}")

    def distances(self, x: Matrix, y: Matrix) -> Matrix:
        """(M, N) distances between rows of (M, K) and (N, K)."""
        if self.distance == "emd":
            return self.bin * cdist(np.cumsum(x, 1), np.cumsum(y, 1), "cityblock")
        if self.distance == "tv":
            return 0.5 * cdist(x, y, "cityblock")
        return cdist(x, y, "euclidean")

    def matrix(self, x: Matrix, y: Matrix) -> Matrix:
        """(M, N) kernel values; the bandwidth must be known."""
        if self.sigma is None:
            raise UserError("this kernel takes its bandwidth from a reference; call fitted() first")
        d = self.distances(x, y) / self.sigma
        return np.exp(-d if self.shape == "laplacian" else -0.5 * d**2)

    def fitted(self, reference: Matrix) -> Kernel:
        """The kernel with its bandwidth: the median distance between unequal rows of (N, K).

        1 where all rows are equal.
        """
        if self.sigma is not None:
            return self
        d = self.distances(reference, reference)[np.triu_indices(len(reference), 1)]
        d = d[d > 1e-12]
        return replace(self, sigma=float(np.median(d)) if len(d) else 1.0)


#: Convention -> descriptor -> kernel of the published tables.
PUBLISHED: dict[str, dict[str, Kernel]] = {
    "gdss": {
        "degree": Kernel("emd", 1.0, "gaussian"),
        "clustering": Kernel("emd", 0.1, "gaussian", bin=0.01),
        "orbit": Kernel("euclidean", 30.0, "gaussian"),
        "spectral": Kernel("emd", 1.0, "gaussian"),
    },
    "digress": {
        "degree": Kernel("tv", 1.0, "gaussian"),
        "clustering": Kernel("tv", 0.1, "gaussian"),
        "orbit": Kernel("tv", 30.0, "gaussian"),
        "spectral": Kernel("tv", 1.0, "gaussian"),
    },
}

#: Descriptor -> positive definite kernel of the unbiased comparison.
HONEST: dict[str, Kernel] = {
    "degree": Kernel("emd"),
    "clustering": Kernel("emd", bin=0.01),
    "orbit": Kernel("tv"),
    "spectral": Kernel("emd", bin=0.01),
}


def biased(xx: Matrix, yy: Matrix, xy: Matrix) -> float:
    """The V-statistic of published tables, from kernel matrices (M, M), (N, N), (M, N)."""
    return float(xx.mean() + yy.mean() - 2 * xy.mean())


def unbiased(xx: Matrix, yy: Matrix, xy: Matrix) -> float:
    """The U-statistic; NaN where a set has fewer than two members."""
    m, n = xy.shape
    if m < 2 or n < 2:
        return float("nan")
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy)]
    return float(within[0] + within[1] - 2 * xy.mean())


def bootstrap(
    xx: Matrix, yy: Matrix, xy: Matrix, resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(resamples,) values of the unbiased statistic, both sets resampled; their mean is shifted to
    the statistic itself.
    """
    m, n = xy.shape
    value = unbiased(xx, yy, xy)
    if not np.isfinite(value):
        return np.full(resamples, np.nan)
    w = rng.multinomial(m, np.full(m, 1 / m), size=resamples).astype(float)
    v = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
    draws = _weighted(xx, w) + _weighted(yy, v) - 2 * ((w @ xy) * v).sum(1) / (m * n)
    return draws - np.nanmean(draws) + value


def _weighted(k: Matrix, w: Matrix) -> NDArray[np.float64]:
    """sum_{i != j} w_i w_j k_ij / sum_{i != j} w_i w_j of every row of w."""
    off = k - np.diag(np.diag(k))
    pairs = w.sum(1) ** 2 - (w**2).sum(1)
    return ((w @ off) * w).sum(1) / np.where(pairs > 0, pairs, np.nan)


def p_value(
    xx: Matrix, yy: Matrix, xy: Matrix, permutations: int, rng: np.random.Generator
) -> float:
    """Chance that sets of one distribution differ at least as much (permutation test)."""
    m, n = xy.shape
    if m < 2 or n < 2 or permutations < 1:
        return float("nan")
    pooled = np.block([[xx, xy], [xy.T, yy]])
    off = pooled - np.diag(np.diag(pooled))
    first = np.zeros((permutations + 1, m + n))
    first[0, :m] = 1.0
    chosen = np.argsort(rng.random((permutations, m + n)), axis=1)[:, :m]
    np.put_along_axis(first[1:], chosen, 1.0, axis=1)
    reached = first @ off
    inside = (reached * first).sum(1)
    across = reached.sum(1) - inside
    outside = off.sum() - inside - 2 * across
    values = inside / (m * (m - 1)) + outside / (n * (n - 1)) - 2 * across / (m * n)
    # the observed labelling is one of the permutations; rounding must not part it from its equals
    return float((values[1:] >= values[0] - 1e-12).sum() + 1) / (permutations + 1)


def subset_values(
    xx: Matrix, yy: Matrix, xy: Matrix, size: int, choices: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Biased statistic of `choices` random subsets of `size` of the first set against the second.

    This is what one published number is a single draw of. One value, of the whole set, when it has
    no more than `size` members.
    """
    m = len(xy)
    if size >= m:
        return np.array([biased(xx, yy, xy)])
    w = np.zeros((choices, m))
    chosen = np.argsort(rng.random((choices, m)), axis=1)[:, :size]
    np.put_along_axis(w, chosen, 1 / size, axis=1)
    return ((w @ xx) * w).sum(1) + yy.mean() - 2 * (w @ xy).mean(1)


@dataclass(frozen=True)
class Comparison:
    """One descriptor of m generated graphs against n of reference.

    value, low, high: unbiased MMD^2 with its 95 % interval; p: permutation p-value
    published, spread: mean and standard deviation of the biased statistic over random subsets of
        the reference's size; lowest, highest: the extremes of those subsets
    published_all: the biased statistic of all generated graphs
    draws: that of each subset; one seed chooses the same subsets for every descriptor
    """

    value: float
    low: float
    high: float
    p: float
    published: float
    spread: float
    lowest: float
    highest: float
    published_all: float
    m: int
    n: int
    draws: NDArray[np.float64] = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, float | int | None]:
        """JSON-able, without the draws; NaN becomes None."""
        kept = {k: v for k, v in self.__dict__.items() if k != "draws"}
        return {k: None if v != v else v for k, v in kept.items()}


def compare(
    generated: Matrix,
    reference: Matrix,
    honest: Kernel,
    published: Kernel,
    *,
    subsets: int = 100,
    resamples: int = 1000,
    permutations: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Both statistics of one descriptor, (M, K) generated against (N, K) reference rows."""
    # a stream for each purpose, so that one seed chooses the same subsets for every descriptor
    resampling, permuting, choosing = np.random.default_rng(seed).spawn(3)
    if not len(generated) or not len(reference):
        raise UserError(f"cannot compare {len(generated)} graphs with {len(reference)}")

    def matrices(kernel: Kernel) -> tuple[Matrix, Matrix, Matrix]:
        k = kernel.fitted(reference)
        return (
            k.matrix(generated, generated),
            k.matrix(reference, reference),
            k.matrix(generated, reference),
        )

    first, second = matrices(honest), matrices(published)
    draws = bootstrap(*first, resamples, resampling) if resamples else np.full(1, np.nan)
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
    chosen = subset_values(*second, len(reference), subsets, choosing)
    return Comparison(
        value=unbiased(*first),
        low=float(low),
        high=float(high),
        p=p_value(*first, permutations, permuting),
        published=float(chosen.mean()),
        spread=float(chosen.std()),
        lowest=float(chosen.min()),
        highest=float(chosen.max()),
        published_all=biased(*second),
        m=len(generated),
        n=len(reference),
        draws=chosen,
    )


def kernels_of(convention: str) -> Mapping[str, Kernel]:
    """The published kernels of a convention; `UserError` names the choices."""
    if convention not in PUBLISHED:
        raise UserError(f"unknown convention {convention!r}; choose from {', '.join(PUBLISHED)}")
    return PUBLISHED[convention]
