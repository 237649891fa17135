r"""Laws with closed forms on every one-sided path: the oracles that everything else is tested by.

Let x1 ~ N(m, C) and x_t = beta x1 + sigma e. Then x_t ~ N(beta m, S) with S = beta^2 C + sigma^2 I,
and with z = x_t - beta m

    score     s = -S^-1 z
    denoised  D = m + beta C S^-1 z
    noise     e = -sigma s
    velocity  b = beta' D - 1/2 (sigma^2)' s
    flow      x_u = beta_u m + S_u^1/2 S_t^-1/2 z        exact map of the probability flow, t to u

For a mixture each of log rho_t, s and D is the sum over components weighted by the responsibilities
r_k(x) = w_k rho_t,k(x) / rho_t(x). Score and velocity are finite at both ends of every path as long
as C is regular, also where they cannot be recovered from (D, e).

``law.on(path)`` is a model in the sense of `core.sample`: it can be sampled from with any solver,
and the outcome is known. Squared Wasserstein distance of two Gaussians:

    W2^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from driftworks.core.paths import Path
from driftworks.core.predict import check, per_sample
from driftworks.core.tables import Table
from driftworks.errors import UserError

__all__ = ["Gaussian", "Mixture", "Oracle", "table_law", "w2"]

Coefficient = float | Tensor  # shared by the batch, or (B,)


def _double(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).detach()


class Gaussian:
    """The normal law N(mean, cov) of entries x (B, ...).

    Args:
        mean: number, or tensor that broadcasts against an entry of the batch.
        cov: a matrix (D, D) when ``mean`` is a number or a vector (D,), acting on the entry
            flattened to D numbers; anything else is a variance (a number, or a tensor that
            broadcasts against an entry) of independent coordinates.

    A law of two numbers, ``Gaussian(0.0, 0.25)``, is that of independent equal coordinates and fits
    entries of any shape. Everything is computed and returned in float64. Methods take beta and
    sigma, floats or (B,), and speak of x_t = beta x1 + sigma e; their defaults are the law itself.

    Raises:
        UserError: the covariance is not symmetric and positive semi-definite.
    """

    def __init__(self, mean: Any, cov: Any) -> None:
        self.mean, cov = _double(mean), _double(cov)
        self.axes: Tensor | None = None
        self.variances = cov
        if cov.ndim == 2 and self.mean.ndim <= 1 and cov.shape[0] == cov.shape[1]:
            if not torch.allclose(cov, cov.mT, rtol=1e-10, atol=1e-12):
                raise UserError("covariance matrix is not symmetric")
            self.variances, self.axes = torch.linalg.eigh(cov)
            rounding = self.variances.abs() <= 1e-14 * self.variances.abs().max()
            self.variances = torch.where(rounding, 0.0, self.variances)
        if not bool((self.variances >= 0.0).all()):
            least = self.variances.min().item()
            raise UserError(f"covariance is not positive: its least variance is {least:.6g}")

    def to(self, device: torch.device | str) -> Gaussian:
        """The same law with its tensors on ``device``."""
        law = Gaussian.__new__(Gaussian)
        law.mean, law.variances = self.mean.to(device), self.variances.to(device)
        law.axes = None if self.axes is None else self.axes.to(device)
        return law

    def matrix(self, size: int) -> Tensor:
        """The covariance matrix (size, size) of an entry of ``size`` numbers."""
        if self.axes is not None:
            return self.axes * self.variances @ self.axes.mT
        return torch.diag(self.variances.flatten().expand(size))

    def on(self, path: Path, predicts: str = "denoised") -> Oracle:
        """The exact model of this law on a path, answering with ``predicts`` when called."""
        return Oracle(self, path, predicts)

    def sample(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw x of ``shape`` (B, ...)."""
        device = self.mean.device
        xi = torch.randn(tuple(shape), generator=generator, dtype=torch.float64, device=device)
        if self.axes is None:
            return self.mean + self.variances.sqrt() * xi
        return self.mean + self._unrotate(self.variances.sqrt() * xi.flatten(1), xi)

    def log_prob(self, x: Tensor, beta: Coefficient = 1.0, sigma: Coefficient = 0.0) -> Tensor:
        """Log density of an entry, summed over its coordinates; x (B, ...) to (B,)."""
        z, spread = self._whiten(x, beta, sigma)
        terms = -0.5 * (z * z / spread + torch.log(2.0 * math.pi * spread))
        return terms.reshape(len(x), -1).sum(-1)

    def score(self, x: Tensor, beta: Coefficient = 1.0, sigma: Coefficient = 0.0) -> Tensor:
        """Gradient of ``log_prob``, of the shape of x."""
        z, spread = self._whiten(x, beta, sigma)
        return self._unrotate(-z / spread, x)

    def denoised(self, x: Tensor, beta: Coefficient, sigma: Coefficient) -> Tensor:
        """E[x1 | x_t = x], of the shape of x."""
        z, spread = self._whiten(x, beta, sigma)
        # a coordinate with neither variance nor noise has z = 0, so its gain does not matter
        gain = per_sample(beta, z) * self.variances / torch.where(spread > 0.0, spread, 1.0)
        return self.mean + self._unrotate(gain * z, x)

    def flow(
        self,
        x: Tensor,
        before: tuple[Coefficient, Coefficient],
        after: tuple[Coefficient, Coefficient],
    ) -> Tensor:
        """The probability flow's map of x from (beta, sigma) = ``before`` to ``after``."""
        z, spread = self._whiten(x, *before)
        _, wanted = self._whiten(x, *after)
        return per_sample(after[0], x.double()) * self.mean + self._unrotate(
            (wanted / spread).sqrt() * z, x
        )

    def _whiten(self, x: Tensor, beta: Coefficient, sigma: Coefficient) -> tuple[Tensor, Tensor]:
        """Coordinates of x - beta m on the principal axes, and their variances."""
        x = x.double()
        z = x - per_sample(beta, x) * self.mean
        if z.shape != x.shape:
            raise ValueError(f"mean {tuple(self.mean.shape)} does not fit x {tuple(x.shape)}")
        if self.axes is not None:
            z = z.reshape(len(x), -1) @ self.axes
        spread = per_sample(beta, z) ** 2 * self.variances + per_sample(sigma, z) ** 2
        return z, spread.expand_as(z)

    def _unrotate(self, z: Tensor, x: Tensor) -> Tensor:
        """Back from the principal axes to the shape of x."""
        return z if self.axes is None else (z @ self.axes.mT).reshape(x.shape)


class Mixture:
    """A mixture of Gaussians over whole entries x (B, ...); methods as those of `Gaussian`.

    Args:
        weights: (K,) positive numbers, normalised here.
        means, covs: K means and covariances, each as `Gaussian` takes them.

    Raises:
        UserError: a weight is not positive, or the numbers of components differ.
    """

    def __init__(self, weights: Any, means: Sequence[Any], covs: Sequence[Any]) -> None:
        self.weights = _double(weights)
        if self.weights.ndim != 1 or not bool((self.weights > 0.0).all()):
            raise UserError(f"weights must be positive numbers, got {self.weights.tolist()}")
        if not len(self.weights) == len(means) == len(covs):
            counts = f"{len(self.weights)} weights, {len(means)} means, {len(covs)} covariances"
            raise UserError(
                f"a mixture needs as many weights as means and covariances, got {counts}"
            )
        self.weights = self.weights / self.weights.sum()
        self.components = [Gaussian(mean, cov) for mean, cov in zip(means, covs, strict=True)]

    def to(self, device: torch.device | str) -> Mixture:
        """The same law with its tensors on ``device``."""
        law = Mixture.__new__(Mixture)
        law.weights = self.weights.to(device)
        law.components = [component.to(device) for component in self.components]
        return law

    @property
    def mean(self) -> Tensor:
        """The mean of the mixture, of the shape of its components' means."""
        pairs = zip(self.weights, self.components, strict=True)
        return torch.stack([weight * law.mean for weight, law in pairs]).sum(0)

    def matrix(self, size: int) -> Tensor:
        """The covariance matrix (size, size) of an entry of ``size`` numbers."""
        total = torch.zeros(size, size, dtype=torch.float64, device=self.weights.device)
        for weight, law in zip(self.weights, self.components, strict=True):
            shift = (law.mean - self.mean).flatten().expand(size)
            total += weight * (law.matrix(size) + torch.outer(shift, shift))
        return total

    def on(self, path: Path, predicts: str = "denoised") -> Oracle:
        """The exact model of this law on a path, answering with ``predicts`` when called."""
        return Oracle(self, path, predicts)

    def sample(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw x of ``shape`` (B, ...)."""
        which = torch.multinomial(self.weights, shape[0], replacement=True, generator=generator)
        x = torch.empty(tuple(shape), dtype=torch.float64, device=self.weights.device)
        for k, law in enumerate(self.components):
            rows = (which == k).nonzero().squeeze(1)
            x[rows] = law.sample((len(rows), *shape[1:]), generator)
        return x

    def log_prob(self, x: Tensor, beta: Coefficient = 1.0, sigma: Coefficient = 0.0) -> Tensor:
        """Log density of an entry; x (B, ...) to (B,)."""
        return self._joint(x, beta, sigma).logsumexp(0)

    def responsibilities(
        self, x: Tensor, beta: Coefficient = 1.0, sigma: Coefficient = 0.0
    ) -> Tensor:
        """Probability (K, B) that the entry came from each component."""
        return self._joint(x, beta, sigma).softmax(0)

    def score(self, x: Tensor, beta: Coefficient = 1.0, sigma: Coefficient = 0.0) -> Tensor:
        """Gradient of ``log_prob``, of the shape of x."""
        shares = self.responsibilities(x, beta, sigma)
        parts = [law.score(x, beta, sigma) for law in self.components]
        return _weighted(shares, parts)

    def denoised(self, x: Tensor, beta: Coefficient, sigma: Coefficient) -> Tensor:
        """E[x1 | x_t = x], of the shape of x."""
        shares = self.responsibilities(x, beta, sigma)
        parts = [law.denoised(x, beta, sigma) for law in self.components]
        return _weighted(shares, parts)

    def _joint(self, x: Tensor, beta: Coefficient, sigma: Coefficient) -> Tensor:
        """Log of weight times density, (K, B)."""
        densities = torch.stack([law.log_prob(x, beta, sigma) for law in self.components])
        return densities + self.weights.log()[:, None]


def _weighted(shares: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Sum of parts (B, ...) with the weights (K, B)."""
    stacked = torch.stack(list(parts))
    return (shares.reshape(*shares.shape, *[1] * (stacked.ndim - 2)) * stacked).sum(0)


class Oracle:
    """The exact answers of a law on a path; callable as a model.

    x is (B, ...), t a float or (B,); answers have the dtype of x, computed in float64. ``predicts``
    says what a call returns, any of the kinds of `core.predict`.
    """

    def __init__(self, law: Gaussian | Mixture, path: Path, predicts: str = "denoised") -> None:
        self.law, self.path, self.predicts = law, path, check(predicts)

    def __call__(
        self, x: Tensor, t: Coefficient, mask: Any = None, cond: Any = None, previous: Any = None
    ) -> Tensor:
        """The prediction at (x, t); mask, cond and previous change nothing."""
        answer: Tensor = getattr(self, self.predicts)(x, t)
        return answer

    def to(self, device: torch.device | str) -> Oracle:
        """The same oracle with its law on ``device``."""
        return Oracle(self.law.to(device), self.path, self.predicts)

    def log_prob(self, x: Tensor, t: Coefficient) -> Tensor:
        """Log density of x_t at x; (B,)."""
        return self.law.log_prob(x, self.path.beta(t), self.path.sigma(t)).to(x.dtype)

    def score(self, x: Tensor, t: Coefficient) -> Tensor:
        """Gradient of ``log_prob``, finite at both ends."""
        return self.law.score(x, self.path.beta(t), self.path.sigma(t)).to(x.dtype)

    def denoised(self, x: Tensor, t: Coefficient) -> Tensor:
        """E[x1 | x_t = x]."""
        return self.law.denoised(x, self.path.beta(t), self.path.sigma(t)).to(x.dtype)

    def noise(self, x: Tensor, t: Coefficient) -> Tensor:
        """E[e | x_t = x]."""
        return (-per_sample(self.path.sigma(t), x.double()) * self.score(x.double(), t)).to(x.dtype)

    def velocity(self, x: Tensor, t: Coefficient) -> Tensor:
        """Drift of the probability flow, finite at both ends."""
        wide = x.double()
        drift = per_sample(self.path.dbeta(t), wide) * self.denoised(wide, t)
        heat = 0.5 * per_sample(self.path.dvariance(t), wide) * self.score(wide, t)
        return (drift - heat).to(x.dtype)

    def vparam(self, x: Tensor, t: Coefficient) -> Tensor:
        """The mean of beta e - sigma x1 given x_t = x."""
        wide = x.double()
        noise = per_sample(self.path.beta(t), wide) * self.noise(wide, t)
        return (noise - per_sample(self.path.sigma(t), wide) * self.denoised(wide, t)).to(x.dtype)

    def flow(self, x: Tensor, t: Coefficient, u: Coefficient) -> Tensor:
        """The probability flow's exact map of x from time t to time u.

        Raises UserError for mixtures, which have none in closed form.
        """
        if not isinstance(self.law, Gaussian):
            raise UserError("only a Gaussian has its probability flow in closed form")
        path = self.path
        before, after = (path.beta(t), path.sigma(t)), (path.beta(u), path.sigma(u))
        return self.law.flow(x, before, after).to(x.dtype)


def w2(p: Gaussian, q: Gaussian) -> float:
    """Wasserstein-2 distance of two Gaussians.

    It is taken over the shape their parameters span; between laws of plain numbers it is the
    distance of one coordinate.
    """
    shift = p.mean - q.mean
    if p.axes is None and q.axes is None:
        square = shift**2 + (p.variances.sqrt() - q.variances.sqrt()) ** 2
        return math.sqrt(square.sum().item())
    size = next(len(law.axes) for law in (p, q) if law.axes is not None)
    first, second = p.matrix(size), q.matrix(size)
    root = _square_root(first)
    cross = _square_root(root @ second @ root)
    square = shift.expand(size).square().sum() + (first + second - 2.0 * cross).trace()
    return math.sqrt(max(square.item(), 0.0))


def _square_root(matrix: Tensor) -> Tensor:
    """Symmetric root of a positive semi-definite matrix."""
    values, axes = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    return axes * values.clamp(min=0.0).sqrt() @ axes.mT


def table_law(table: Table, oracle: Oracle, start: Gaussian | None = None) -> list[Gaussian]:
    """The exact laws of a solver's states, one after each row of its table.

    For Gaussian data D = K x + k is affine in x, so a row is an affine map of the present state and
    of what the row remembers, plus fresh noise: mean and covariance of the stacked vector (x_k,
    x_{k-1}, ..., D_{k-1}, D_{k-2}, ..., xi_{k-1}) follow by matrix products, without sampling.

    Args:
        table: the solver, built for the oracle's path; coefficients per entry are of one entry,
            with a leading axis of 1.
        oracle: a Gaussian law on that path; its entries are flattened.
        start: the law of the first state, N(0, sigma^2 I) at the first time by default, which is
            the prior of a process.

    Raises UserError when the oracle's law is not Gaussian, and for coefficients that do not fit it.
    """
    law, path = oracle.law, oracle.path
    if not isinstance(law, Gaussian):
        raise UserError("the law of a solver's output has a closed form for Gaussian data only")
    shape = _entry_shape(law, table)
    size = shape.numel()
    if law.axes is None:
        data_mean = law.mean.expand(shape).flatten()
        data_cov = torch.diag(law.variances.expand(shape).flatten())
    else:
        data_mean, data_cov = law.mean.expand(size), law.matrix(size)
    eye = torch.eye(size, dtype=torch.float64, device=data_cov.device)
    start = start or Gaussian(eye.new_zeros(size), path.sigma(table.times[0]) ** 2 * eye)
    states, answers = max(map(len, table.a)), max(map(len, table.b)) - 1
    depth = states + answers + bool(table.d)
    mean, cov = eye.new_zeros(depth * size), eye.new_zeros(depth * size, depth * size)
    mean[:size] = start.mean.flatten().expand(size)
    cov[:size, :size] = start.matrix(size)
    # what is remembered moves on by one place, whatever the row
    ageing = eye.new_zeros(depth, size, depth, size)
    for j in [*range(1, states), *range(states + 1, states + answers)]:
        ageing[j, :, j - 1] = eye
    laws = []
    shared = table.d or (0.0,) * len(table)
    for t, a, b, c, d in zip(table.times, table.a, table.b, table.c, shared, strict=True):
        beta = path.beta(t)
        spread = beta**2 * data_cov + path.sigma(t) ** 2 * eye
        gain = (beta * torch.linalg.solve(spread, data_cov)).contiguous()
        offset = data_mean - beta * (gain @ data_mean)
        row = [*a, *[0.0] * (states - len(a)), *b[1:], *[0.0] * (answers + 1 - len(b)), d]
        weights = _of_entry([*row[:depth], b[0], c], shape, eye)
        step, shift = ageing.clone(), eye.new_zeros(depth, size)
        step[0] = torch.diag_embed(weights[:depth]).transpose(0, 1)
        step[0, :, 0] += weights[-2, :, None] * gain
        shift[0] = weights[-2] * offset
        noise = eye.new_zeros(depth, size, size)
        noise[0] = torch.diag(weights[-1])
        if answers:
            step[states, :, 0], shift[states] = gain, offset
        if table.d:
            noise[-1] = eye
        step, noise = step.reshape(depth * size, -1), noise.reshape(depth * size, size)
        mean = step @ mean + shift.flatten()
        cov = step @ cov @ step.mT + noise @ noise.mT
        cov = 0.5 * (cov + cov.mT)
        laws.append(Gaussian(mean[:size].clone(), cov[:size, :size].clone()))
    return laws


def _entry_shape(law: Gaussian, table: Table) -> torch.Size:
    """The shape of one entry, from the law and from coefficients per entry."""
    rows = (*table.a, *table.b, table.c, table.d)
    weights = [weight for row in rows for weight in row if isinstance(weight, Tensor)]
    if any(len(weight) != 1 for weight in weights):
        raise UserError("the law of a table is that of one entry, its weights must be (1, ...)")
    of_law = [law.mean.shape, law.variances.shape] if law.axes is None else []
    rank = max([len(s) for s in of_law] + [weight.ndim - 1 for weight in weights], default=0)
    of_weights = [weight.shape[1:] + (1,) * (rank + 1 - weight.ndim) for weight in weights]
    try:
        shape = torch.broadcast_shapes(*of_law, *of_weights)
    except RuntimeError:
        shown = ", ".join(str(tuple(s)) for s in dict.fromkeys(of_weights))
        raise UserError(f"weights of entries {shown} do not fit the law or each other") from None
    if law.axes is None or shape.numel() == len(law.axes):
        return shape
    if shape.numel() > 1:
        raise UserError(
            f"weights of entries {tuple(shape)} do not fit a law of {len(law.axes)} numbers"
        )
    return torch.Size([len(law.axes)])


def _of_entry(weights: Sequence[float | Tensor], shape: torch.Size, like: Tensor) -> Tensor:
    """Coefficients, numbers or (1, ...), as rows of float64 over a flattened entry of ``shape``."""
    if not any(isinstance(weight, Tensor) for weight in weights):
        return like.new_tensor(weights)[:, None].expand(-1, shape.numel())
    rows = []
    for weight in weights:
        number = torch.as_tensor(weight, dtype=like.dtype, device=like.device)
        values = number[0] if number.ndim else number
        values = values.reshape(values.shape + (1,) * (len(shape) - values.ndim))
        rows.append(values.expand(shape).flatten())
    return torch.stack(rows)
