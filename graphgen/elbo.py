r"""A lower bound of the log-likelihood of graphs.

Cut time into S steps; a chain from noise to data, whose steps are posteriors of the noising with
the network's answer in the place of the data, is held against the posteriors themselves:

    log p(x_1)  >=  - KL( q(x_0 | x_1) || p(x_0) ) - sum over t < s < 1 of E KL( q || p )(t, s)
                    + E log p(x_1 | x_t),    t the last time before 1.

Every x_t is drawn afresh, which makes the sum unbiased; its standard error over draws is reported.
The bound is for the nodes, edges and attributes of a graph in the given order and for its number
of nodes. Continuous attributes have densities in their own units.

**Tokens.** Read towards noise, the flow's noising is the chain that keeps an entry with
probability k_t / k_s between two times s > t and draws it from the marginal m otherwise, so for
x_1 known the posterior of one step is

    q(x_s | x_t, x_1)  ~  [k_s (x_s = x_1) + (1 - k_s) m(x_s)] [r (x_t = x_s) + (1 - r) m(x_t)],
    r = k_t / k_s,

and the model's step is its mean under the network's classes, p(x_s | x_t) = sum_c q(x_s | x_t, c)
p(c | x_t). At k = 0 everything is noise drawn from m, so there is no prior term, and at s = 1 the
divergence is the reconstruction (Austin et al. 2021, "Structured denoising diffusion models in
discrete state-spaces"). The law whose likelihood this bounds is that of the chain p itself, which
the sampler runs at noise eta = 1 / k_t (`core.ctmc`). Where the network is exact, graphs drawn
without noise have that law too, and the bound is tight in the limit of many steps; where it is not,
the two laws differ by its errors. (The bound of the noiseless chain is never tight: that chain does
not forget which entries have moved already, while the model cannot see it.)

**Real entries**, x_t = beta x + sigma e, of a system of SDEs or of features: both posteriors are
Gaussian of one variance, and with SNR = beta^2 / sigma^2 (Kingma et al. 2021, "Variational
diffusion models", equation 13; the prior is N(0, sigma(0)^2))

    KL(t, s) = (SNR(s) - SNR(t)) |x - x^_t|^2 / 2,        KL(0) = SNR(0) |x|^2 / 2.

Classes that were encoded are read off the network, p(c | x_t); a feature or the weight of an edge
is N(x^_t, 1 / SNR(t)). The weight of an edge that is not there is an auxiliary variable whose noise
is drawn around 0, as in training: its steps count, its value at the end does not.
This is the law of the ancestral sampler, "ddpm", but for the reading of the classes at its end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from driftworks.core.ctmc import Replacing
from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.errors import UserError
from driftworks.graphgen.graph import Graphs
from driftworks.graphgen.process import GraphModel, encode, expected, standardised
from driftworks.graphgen.sample import clock

__all__ = ["Bound", "bound", "step_posterior"]

VALUES = ("features", "weights")  # the parts that are continuous attributes


@dataclass(frozen=True)
class Bound:
    """``value`` (B,) nats a graph and its standard error ``stderr`` (B,), NaN for a single draw."""

    value: Tensor
    stderr: Tensor

    def __str__(self) -> str:
        mean = float(self.value.mean())
        spread = float(self.value.std(correction=0)) / max(1, len(self.value) - 1) ** 0.5
        return f"{mean:.3f} +- {spread:.3f} nats a graph ({len(self.value)} graphs)"


def step_posterior(x_t: Tensor, marginal: Tensor, k_t: float, k_s: float) -> Tensor:
    """q(x_s = b | x_t, x_1 = a) for all a and b: (..., K, K) from x_t (...)."""
    classes = len(marginal)
    eye = torch.eye(classes, dtype=marginal.dtype, device=marginal.device)
    forward = k_s * eye + (1.0 - k_s) * marginal  # (a, b)
    r = k_t / k_s
    back = r * eye[x_t] + (1.0 - r) * marginal[x_t].unsqueeze(-1)  # (..., b)
    joint = forward * back.unsqueeze(-2)
    return joint / joint.sum(-1, keepdim=True).clamp(min=1e-300)


def _divergence(x_1: Tensor, x_t: Tensor, logits: Tensor, marginal: Tensor, k_t: float, k_s: float
                ) -> Tensor:
    """KL(q || p) of every entry, float64, shape of x_1."""
    q_all = step_posterior(x_t, marginal, k_t, k_s)
    p = logits.double().softmax(-1)
    model = (p.unsqueeze(-1) * q_all).sum(-2)
    index = x_1[..., None, None].expand(*x_1.shape, 1, len(marginal))
    q = q_all.gather(-2, index).squeeze(-2)
    # infinite where the model rules out what the data are: classes it has never seen
    return (torch.xlogy(q, q) - torch.xlogy(q, model)).sum(-1)


def _times(model: GraphModel, steps: int) -> tuple[float, ...]:
    """The sampling clock; with continuous attributes, even steps of their log SNR from -5 to 7.

    A step of SNR to r SNR costs an attribute (r - 1 - log r) / 2, and the clock ends in steps of
    large r. At log SNR 7 what is left of the noise is 3 % of the attribute's deviation.
    """
    values = [model.process.parts[name].path for name in model.process.parts if name in VALUES]
    if not values:
        return clock(steps)
    path = values[0]
    assert isinstance(path, Path)
    levels = [-5.0 + 12.0 * k / max(1, steps - 2) for k in range(steps - 1)]
    return (0.0, *(float(path.time_of_log_snr(level)) for level in levels), 1.0)


def _gain(path: Path, t: float, s: float | None) -> float:
    """(SNR(s) - SNR(t)) / 2, or SNR(t) / 2 without s."""

    def ratio(at: float) -> float:
        return float(path.beta(at) / path.sigma(at)) ** 2

    return 0.5 * (ratio(t) if s is None else ratio(s) - ratio(t))


def _log_normal(x: Tensor, mean: Tensor, precision: float) -> Tensor:
    return 0.5 * (math.log(precision / (2.0 * math.pi)) - precision * (x - mean).square())


@torch.no_grad()
def bound(
    model: GraphModel, graphs: Graphs, steps: int = 100, draws: int = 1, seed: int = 0,
    batch_size: int = 64,
) -> Bound:
    """The bound of the module's docstring for every graph, from ``draws`` passes of ``steps``.

    Raises `UserError` for counts that are no counts.
    """
    for name, count, least in (("steps", steps, 2), ("draws", draws, 1)):
        if not isinstance(count, int) or count < least:
            raise UserError(f"{name} must be a whole number of at least {least}, got {count!r}")
    device = next(model.parameters()).device
    times = _times(model, steps)
    values = torch.zeros(draws, len(graphs), dtype=torch.float64)
    sizes = graphs.node_counts
    for size in sizes.unique().tolist():
        rows_of_size = (sizes == size).nonzero()[:, 0]
        for rows in rows_of_size.split(batch_size):
            some = graphs[rows].padded(size).to(device)
            for draw in range(draws):
                keys = Keys.for_samples(seed, rows + draw * (1 << 40)).to(device)
                values[draw, rows] = _one_pass(model, some, keys, times).cpu()
    spread = values.std(0) / draws**0.5 if draws > 1 else torch.full_like(values[0], torch.nan)
    return Bound(values.mean(0), spread)


def _one_pass(model: GraphModel, graphs: Graphs, keys: Keys, times: tuple[float, ...]) -> Tensor:
    """The bound (B,) of graphs of one size from one draw of every step, float64."""
    device = graphs.edges.device
    config, tokens = model.config, model.config.system == "flow"
    classes = {"nodes": graphs.nodes, "edges": graphs.edges}
    size = graphs.mask.shape[1]
    upper = torch.ones(size, size, dtype=torch.bool, device=device).triu(1)
    data: dict[str, Tensor] = dict(classes) if tokens else {
        name: model.process.parts[name].space.project(
            encode(x, len(getattr(config, name))), graphs.mask
        )
        for name, x in classes.items()
    }
    total = torch.zeros(len(keys), dtype=torch.float64, device=device)
    data |= {name: values.float() for name, values in standardised(graphs, config).items()}
    linked = upper & (graphs.edges > 0)
    # densities in the units of the data
    total -= size * math.fsum(math.log(deviation) for _, deviation in config.features)
    for _, deviation in config.weights:
        total -= math.log(deviation) * linked.sum((1, 2))

    def add(name: str, terms: Tensor, pairs: Tensor = upper) -> None:
        if name in ("edges", "weights"):
            pairs = pairs.unsqueeze(-1) if terms.ndim == 4 else pairs
            terms = torch.where(pairs, terms, 0.0)
        total.add_(terms.flatten(1).sum(1))

    paths = {name: part.path for name, part in model.process.parts.items()}
    for name, path in paths.items():
        if isinstance(path, Path):
            add(name, -_gain(path, times[0], None) * data[name].double().square())
    for k, (t, s) in enumerate(pairwise(times)):
        clocks = torch.full((len(keys),), t, device=device)
        bridge = model.process.bridge(data, clocks, keys, graphs.mask, step=k)
        assert isinstance(bridge.x_t, dict)
        answer = model.logits(bridge.x_t, clocks, graphs.mask, None)
        for name, path in paths.items():
            if isinstance(path, Replacing):
                m = torch.tensor(path.marginal, dtype=torch.float64, device=device)
                add(name, -_divergence(
                    data[name], bridge.x_t[name], answer[name], m,
                    float(path.kappa(t)), float(path.kappa(s)),
                ))
                continue
            assert isinstance(path, Path)
            if s < 1.0:
                found = answer[name].double()
                end = found if name in VALUES else expected(found.softmax(-1))
                add(name, -_gain(path, t, s) * (data[name] - end).square())
            elif name in VALUES:
                precision = 2.0 * _gain(path, t, None)
                log_p = _log_normal(data[name].double(), answer[name].double(), precision)
                add(name, log_p, linked)
            else:
                log_p = answer[name].double().log_softmax(-1)
                add(name, log_p.gather(-1, classes[name].unsqueeze(-1)).squeeze(-1))
    return total
