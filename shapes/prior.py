r"""Priors on functional maps: what the sizes |C| of the entries of a map between shapes look like.

Signs of eigenfunctions are arbitrary, so the random matrix is X = |C| (k2, k1), of shapes of area
1, with entries from 0 to about 1 near the diagonal. A prior answers for a noisy matrix
x = X + sigma n with the mean of the clean ones, D(x; sigma) = E[X | x], and says how unlikely a
matrix is. Three of them share one interface, each needing more maps to learn from than the last:

    second moment   C_ij independent, N(0, m_ij), m = E X^2:
                        D = m / (m + sigma^2) x
    Gaussian        X ~ N(mu, S), S = F F^T + R, with F from the r directions of largest variance
                    and R diagonal, such that S has the variances of the data:
                        D = mu + S (S + sigma^2)^{-1} (x - mu)
    network         `dit`

The posterior means are those of the stated laws, not cut at 0 though X is not negative: scores,
D - x over sigma^2, and sampling need them as they are. A smaller k asks about the leading block,
whose law is the marginal: leading rows of mu, F and R.

**Energy.** An energy grows as the log density falls. Closed forms give -log p(x). A denoiser gives
it as an integral over noise levels of its error,

    -log p(x) = const + int E_n |x - D(x + sigma n; sigma)|^2 / sigma^2  d(log sigma)

(the pointwise I-MMSE relation; Kong, Brekelmans & Ver Steeg, "Information-theoretic diffusion",
ICLR 2023), of which `denoising_energy` is a sum over levels with noise that is the same for every
map, so that energies of maps can be compared.

**Penalty.** In `fmaps.fit` an entry is pulled to 0 with a strength; a Gaussian entry of variance v
would be pulled with 1 / v. `posterior_penalty` takes for v what the prior makes of a raw map's
entries: 1 / (D(|C|)^2 + eps^2).

**Process.** `map_process` is EDM's path, x_t = X + sigma e, and `as_model` makes a model of `core`
of any prior; `draw` samples matrices from it. It starts at deviation `SIGMA_MAX`, much more than
that of X, so that the state there is Gaussian with the mean of X, which is what a denoiser answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from driftworks.core import grids
from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.process import Masks, Part, Process, State
from driftworks.core.sample import sample
from driftworks.core.spaces import Flat
from driftworks.errors import UserError

__all__ = [
    "SIGMA_MAX",
    "Gaussian",
    "Prior",
    "SecondMoment",
    "as_model",
    "check_maps",
    "denoising_energy",
    "denoising_errors",
    "draw",
    "map_process",
    "posterior_penalty",
]

#: The most noise that a prior is asked about, in units of entries of a map.
SIGMA_MAX = 3.0
#: Variance of an entry below which maps are not known: they are stored in half precision, and the
#: same two shapes in other triangulations differ by more.
_FLOOR = 1e-5
#: Size of the first, finer Gaussian; a larger one has its own directions.
_FINE = 30


@runtime_checkable
class Prior(Protocol):
    """What a prior on functional maps answers; x is (B, k2, k1), k2 and k1 at most ``k``."""

    k: int
    name: str

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        values1: Tensor | None = None,
        values2: Tensor | None = None,
    ) -> Tensor:
        """E[X | X + sigma n = x], (B, k2, k1).

        sigma: (B,) standard deviations of the noise, > 0
        values1, values2: (B, k1) and (B, k2) eigenvalues of the shapes at area 1, from 0 upwards;
            None where they are not known
        """
        ...

    def energy(
        self, x: Tensor, values1: Tensor | None = None, values2: Tensor | None = None
    ) -> Tensor:
        """(B,) how unlikely maps are, -log p up to a constant for one size (k2, k1)."""
        ...


def check_maps(x: Tensor, k: int) -> tuple[int, int]:
    """(k2, k1) of matrices (B, k2, k1); `UserError` unless a prior of size k serves them."""
    if x.ndim != 3:
        raise UserError(f"a prior takes maps of shape (B, k2, k1), not {tuple(x.shape)}")
    k2, k1 = x.shape[1:]
    if not (1 <= k2 <= k and 1 <= k1 <= k):
        raise UserError(f"maps of {(k2, k1)} functions; this prior serves up to {k}")
    return k2, k1


def _maps(maps: ArrayLike | Tensor) -> Tensor:
    x = torch.as_tensor(np.asarray(maps) if not isinstance(maps, Tensor) else maps)
    if x.ndim != 3 or x.shape[1] != x.shape[2] or len(x) < 2:
        raise UserError(
            f"a prior is fitted to two or more maps (N, k, k), not to an array {tuple(x.shape)}"
        )
    return x


class SecondMoment:
    """Entries independent, of mean 0 and second moment ``moment`` (k, k): a mask, made a law."""

    name = "second-moment"

    def __init__(self, moment: Tensor):
        if moment.ndim != 2 or moment.shape[0] != moment.shape[1]:
            raise UserError(f"second moments form a square (k, k), not {tuple(moment.shape)}")
        if not bool(torch.isfinite(moment).all()) or bool((moment < 0).any()):
            raise UserError("second moments are finite and not negative")
        self.moment = moment.float().clamp(min=_FLOOR)
        self.k = len(moment)

    @classmethod
    def fit(cls, maps: ArrayLike | Tensor) -> SecondMoment:
        """From maps (N, k, k); signs do not matter."""
        x = _maps(maps)
        parts = [part.float().square().sum(0, dtype=torch.float64) for part in x.split(512)]
        return cls(torch.stack(parts).sum(0) / len(x))

    @classmethod
    def of_isometries(cls, k: int, spread: float = 0.1) -> SecondMoment:
        """What first-order perturbation theory says of nearly isometric shapes, without data.

        A relative change ``spread`` of the Laplacian mixes functions i and j by about
        spread sqrt(l_i l_j) / (l_i - l_j), and by Weyl's law l_i grows as i - 1. Bounded and with
        rows of norm 1, as those of a rotation are, moments are Lorentzian around the diagonal.
        """
        if k < 1 or not spread > 0:
            raise UserError(f"k must be at least 1 and spread positive, got {k} and {spread}")
        index = torch.arange(k, dtype=torch.float64)
        product = index[:, None] * index
        moment = 1.0 / (1.0 + (index[:, None] - index).square() / (spread**2 * product + 1e-6))
        return cls(moment / moment.sum(1, keepdim=True))

    def state(self) -> dict[str, Tensor]:
        """Tensors that `restore` reads."""
        return {"moment": self.moment}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor]) -> SecondMoment:
        """From `state`; raises KeyError for a tensor that is missing."""
        return cls(tensors["moment"].float())

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        values1: Tensor | None = None,
        values2: Tensor | None = None,
    ) -> Tensor:
        k2, k1 = check_maps(x, self.k)
        moment = self.moment[:k2, :k1].to(x)
        return x * moment / (moment + sigma.to(x).square().view(-1, 1, 1))

    def energy(
        self, x: Tensor, values1: Tensor | None = None, values2: Tensor | None = None
    ) -> Tensor:
        k2, k1 = check_maps(x, self.k)
        moment = self.moment[:k2, :k1].to(x)
        return 0.5 * (x.square() / moment + (2 * math.pi * moment).log()).flatten(1).sum(1)


class _Normal:
    """N(mean, F F^T + diag(rest)) on (k2, k1) matrices.

    factor: F (k2 k1, r); rest: (k2 k1,), positive. Where rest is one number F is turned so that its
    columns are orthogonal: then the same directions serve all levels of noise, and a batch of
    levels costs what one does. Else every level solves an r x r system.
    """

    def __init__(self, mean: Tensor, factor: Tensor, rest: Tensor):
        self.mean, self.factor, self.rest = mean, factor, rest
        self.even = bool((rest == rest[0]).all())
        if self.even:
            values, turn = torch.linalg.eigh(factor.double().T @ factor.double())
            keep = values > 1e-9
            self.factor = (factor.double() @ turn[:, keep]).float()
            self.lengths = values[keep].float()
        self._blocks: dict[tuple[int, int], _Normal] = {}

    @classmethod
    def fit(cls, x: Tensor, rank: int) -> _Normal:
        """From (N, k, k) in float32: the ``rank`` directions of most variance.

        All directions that maps have need no rest but rounding. With fewer, what an entry varies in
        the others counts as its own, so that the variance of every entry is that of the data.
        """
        mean = x.mean(0, dtype=torch.float64).float()
        y = (x - mean).flatten(1)
        possible = min(len(y) - 1, y.shape[1])
        variances, directions = _principal(y, min(rank, possible))
        if rank >= y.shape[1]:
            excess = (variances - _FLOOR).clamp(min=0)
            return cls(mean, directions * excess.sqrt(), torch.full((y.shape[1],), _FLOOR))
        factor = directions * variances.sqrt()
        rest = y.square().mean(0) - factor.square().sum(1)
        return cls(mean, factor, rest.clamp(min=_FLOOR))

    def block(self, k2: int, k1: int) -> _Normal:
        """The marginal of the leading (k2, k1) entries."""
        shape = tuple(self.mean.shape)
        if (k2, k1) == shape:
            return self
        if (k2, k1) not in self._blocks:
            self._blocks[k2, k1] = _Normal(
                self.mean[:k2, :k1].contiguous(),
                self.factor.view(*shape, -1)[:k2, :k1].flatten(0, 1),
                self.rest.view(shape)[:k2, :k1].flatten(),
            )
        return self._blocks[k2, k1]

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        mean, factor, rest = (t.to(x) for t in (self.mean, self.factor, self.rest))
        y = (x - mean).flatten(1)
        noise = sigma.to(x).square().unsqueeze(1)
        if self.even:
            base, length = rest[0] + noise, self.lengths.to(x)
            rough = noise / base
            fine = rough * ((y @ factor) / (base + length)) @ factor.T
            return x + (fine - rough * y).view(x.shape)
        out = torch.empty_like(y)
        for level in noise.unique():
            rows = (noise == level).squeeze(1)
            scaled = factor / (rest + level).unsqueeze(1)
            within = torch.eye(factor.shape[1]).to(x) + factor.T @ scaled
            along = torch.linalg.solve(within, (y[rows] @ scaled).T)
            out[rows] = level * ((scaled @ along).T - y[rows] / (rest + level))
        return x + out.view(x.shape)

    def energy(self, x: Tensor) -> Tensor:
        # the quadratic form loses digits in single precision: rest is 1e5 times below the others
        mean, factor, rest = (t.to(x.device).double() for t in (self.mean, self.factor, self.rest))
        y = (x.double() - mean).flatten(1)
        scaled = factor / rest.unsqueeze(1)
        within = torch.eye(factor.shape[1]).to(scaled) + factor.T @ scaled
        along = y @ scaled
        form = (y.square() / rest).sum(1) - (along * torch.linalg.solve(within, along.T).T).sum(1)
        volume = torch.linalg.slogdet(within).logabsdet + (2 * math.pi * rest).log().sum()
        return (0.5 * (form + volume)).to(x.dtype)


def _principal(y: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest ``rank`` variances, falling, and directions (d, rank) of centred (N, d) rows."""
    n, d = y.shape
    if min(n, d) <= 1024:
        wide = y.double()
        if n < d:
            values, left = torch.linalg.eigh(wide @ wide.T)
            values, left = values.flip(0)[:rank].clamp(min=0), left.flip(1)[:, :rank]
            right = (wide.T @ left) / values.sqrt().clamp(min=1e-12)
            return (values / n).float(), right.float()
        values, right = torch.linalg.eigh(wide.T @ wide / n)
        return values.flip(0)[:rank].clamp(min=0).float(), right.flip(1)[:, :rank].float()
    # subspace iteration from a random start (Halko, Martinsson & Tropp 2011, algorithm 4.4)
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(d, rank + 16, generator=generator)
    for _ in range(4):
        basis = torch.linalg.qr(y.T @ (y @ basis)).Q
    within = y @ basis
    values, turn = torch.linalg.eigh((within.T @ within).double() / n)
    directions = basis @ turn.flip(1)[:, :rank].float()
    return values.flip(0)[:rank].clamp(min=0).float(), directions


class Gaussian:
    """The Gaussian of maps: all directions of the first 30 functions, some of the larger block."""

    name = "gaussian"

    def __init__(self, levels: Sequence[_Normal]):
        self.levels = tuple(sorted(levels, key=lambda level: len(level.mean)))
        self.k = len(self.levels[-1].mean)

    @classmethod
    def fit(cls, maps: ArrayLike | Tensor, *, rank: int = 128, fine: int = _FINE**2) -> Gaussian:
        """From maps (N, k, k); ``rank`` directions of all entries, ``fine`` of the first 30 x 30.

        Takes 4 N k^2 bytes beside the maps. Raises `UserError` for fewer than two maps.
        """
        x = _maps(maps)
        k = x.shape[1]
        levels = [_Normal.fit(x[:, :_FINE, :_FINE].float().abs(), fine)]
        if k > _FINE:
            levels.append(_Normal.fit(x.float().abs(), rank))
        return cls(levels)

    def state(self) -> dict[str, Tensor]:
        """Tensors that `restore` reads."""
        out: dict[str, Tensor] = {}
        for i, level in enumerate(self.levels):
            out |= {f"{i}.mean": level.mean, f"{i}.factor": level.factor, f"{i}.rest": level.rest}
        return out

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor]) -> Gaussian:
        """From `state`, also in half precision; raises KeyError for a tensor that is missing."""
        levels = [
            _Normal(*(tensors[f"{i}.{name}"].float() for name in ("mean", "factor", "rest")))
            for i in range(sum(name.endswith(".mean") for name in tensors))
        ]
        if not levels:
            raise KeyError("0.mean")
        return cls(levels)

    def _law(self, x: Tensor) -> _Normal:
        k2, k1 = check_maps(x, self.k)
        level = next(level for level in self.levels if len(level.mean) >= max(k1, k2))
        return level.block(k2, k1)

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        values1: Tensor | None = None,
        values2: Tensor | None = None,
    ) -> Tensor:
        return self._law(x).denoise(x, sigma)

    def energy(
        self, x: Tensor, values1: Tensor | None = None, values2: Tensor | None = None
    ) -> Tensor:
        return self._law(x).energy(x)


@torch.no_grad()
def denoising_energy(
    prior: Prior,
    x: Tensor,
    values1: Tensor | None = None,
    values2: Tensor | None = None,
    *,
    levels: int = 12,
    low: float = 0.02,
    high: float = SIGMA_MAX,
    draws: int = 4,
    seed: int = 0,
) -> Tensor:
    """-log p (B,) of maps (B, k2, k1) up to a constant, from a prior's errors (see above).

    levels, low, high: number and range of noise levels, evenly spaced in their logarithm
    draws: pairs of noise of opposite sign at each level, the same for every map
    """
    k2, k1 = check_maps(x, prior.k)
    noise = Keys.for_samples(seed, range(draws)).normal("prior/energy", 0, (k2, k1)).to(x)
    step = math.log(high / low) / levels
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for i in range(levels):
        sigma = low * math.exp((i + 0.5) * step)
        error = torch.zeros_like(total)
        for n in torch.cat((noise, -noise)):
            level = torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)
            found = prior.denoise(x + sigma * n, level, values1, values2)
            error += (x - found).double().square().flatten(1).sum(1)
        total += step * error / (2 * draws * sigma**2)
    return total.to(x.dtype)


@torch.no_grad()
def denoising_errors(
    prior: Prior,
    x: Tensor,
    sigmas: Sequence[float],
    values1: Tensor | None = None,
    values2: Tensor | None = None,
    *,
    seed: int = 0,
    batch: int = 256,
) -> list[float]:
    """Root mean square error of an entry, of maps (N, k2, k1) under noise of each sigma."""
    k2, k1 = check_maps(x, prior.k)
    keys = Keys.for_samples(seed, range(len(x)))
    out = []
    for sigma in sigmas:
        total = 0.0
        for start in range(0, len(x), batch):
            rows = slice(start, start + batch)
            clean = x[rows].float()
            noisy = clean + sigma * keys[rows].normal(f"prior/error/{sigma}", 0, (k2, k1))
            given = [None if v is None else v[rows] for v in (values1, values2)]
            found = prior.denoise(noisy, torch.full((len(clean),), sigma), *given)
            total += float((found - clean).double().square().sum())
        out.append(math.sqrt(total / x.numel()))
    return out


def posterior_penalty(
    prior: Prior,
    c: NDArray[np.float64] | Tensor,
    values1: ArrayLike | Tensor | None = None,
    values2: ArrayLike | Tensor | None = None,
    eps: float = 0.03,
    sigma: float = 0.5,
) -> Any:
    """Penalties (..., k2, k1) of mean 1 for `fmaps.fit`, from raw maps: 1 / (E[X | |C|]^2 + eps^2).

    c: (..., k2, k1) maps, numpy or tensors; the penalties come in the same type, without gradient
    values1, values2: (..., k1) and (..., k2) eigenvalues at area 1
    eps: the least size of an entry; sigma: the noise that the prior takes the raw map to have

    What the prior thinks negative counts as 0. Raises `UserError` for sizes the prior cannot serve.
    """
    if not (eps > 0 and sigma > 0):
        raise UserError(f"eps and sigma must be positive, got {eps} and {sigma}")
    given = torch.as_tensor(c).detach()
    flat = given.abs().float().reshape(-1, *given.shape[-2:])

    def spread(values: ArrayLike | Tensor | None, count: int) -> Tensor | None:
        if values is None:
            return None
        rows = torch.as_tensor(values, device=flat.device).detach().float()
        return rows.expand(*given.shape[:-2], count).reshape(-1, count)

    with torch.no_grad():
        clean = prior.denoise(
            flat, torch.full((len(flat),), sigma, device=flat.device),
            spread(values1, flat.shape[2]), spread(values2, flat.shape[1]),
        ).clamp(min=0).double().view(given.shape)  # fmt: skip
    penalty = 1.0 / (clean.square() + eps**2)
    penalty = penalty / penalty.mean((-2, -1), keepdim=True)
    return penalty.to(given.dtype) if isinstance(c, Tensor) else penalty.cpu().numpy()


def map_process() -> Process:
    """The process of |C| in `core`: flat matrices on EDM's path, the denoised one predicted."""
    return Process(Part(Flat(), Path.edm(SIGMA_MAX), predicts="denoised"))


def as_model(
    prior: Prior, values1: Tensor | None = None, values2: Tensor | None = None
) -> Callable[..., State]:
    """A model of `core` for `map_process`; eigenvalues (B, k) condition each sample."""
    path = Path.edm(SIGMA_MAX)

    def model(
        x: State, t: Tensor, mask: Masks = None, cond: Any = None, previous: State | None = None
    ) -> State:
        assert isinstance(x, Tensor)
        sigma = path.sigma(t).to(x.dtype).clamp(min=1e-4)
        return prior.denoise(x, sigma, values1, values2)

    return model


def draw(
    prior: Prior,
    count: int,
    k: int,
    *,
    seed: int = 0,
    values1: Tensor | None = None,
    values2: Tensor | None = None,
    steps: int = 40,
) -> Tensor:
    """Matrices (count, k, k) drawn from a prior; sample i is a function of (seed, i, settings).

    values1, values2: (count, k) eigenvalues of the shapes, or (k,) for all
    steps: evaluations of the prior. Entries may fall a little below 0.
    """
    if count < 1:
        raise UserError(f"count must be at least 1, got {count}")
    given = [None if v is None else v.float().expand(count, k) for v in (values1, values2)]
    process, path = map_process(), Path.edm(SIGMA_MAX)
    keys = Keys.for_samples(seed, range(count))
    empty = torch.zeros(count, k, k)
    with torch.no_grad():
        mean = prior.denoise(empty, torch.full((count,), SIGMA_MAX), *given)
    noise = process.prior(keys, empty)
    assert isinstance(noise, Tensor)
    drawn = sample(
        as_model(prior, *given), process, keys, empty, solver="dpmpp2", initial=mean + noise,
        grid=grids.karras(path, steps, low=0.005, high=SIGMA_MAX),
    )  # fmt: skip
    assert isinstance(drawn.x, Tensor)
    return drawn.x
