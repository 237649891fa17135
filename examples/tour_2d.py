# %% [markdown]
# # A tour of the core in two dimensions
#
#     python examples/tour_2d.py [--out runs/tour_2d.png]
#
# Everything is exact here: the data are a mixture of Gaussians, whose score is known on every path
# (`core.laws`), so what you see is what samplers and guides do, not what a network failed to learn.
# Ten seconds on a laptop; four panels in one picture.

# %%
from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path as File

import torch

from driftworks.core import Keys, Mixture, Part, Path, Process, weigh
from driftworks.core.diagnose import w2_samples
from driftworks.core.grids import log_snr
from driftworks.core.guide import cfg
from driftworks.core.likelihood import log_prob
from driftworks.core.particles import Resampling
from driftworks.core.sample import sample
from driftworks.core.spaces import Flat

parser = argparse.ArgumentParser(description="A tour of the core in two dimensions.")
parser.add_argument("--out", type=File, default=File("runs/tour_2d.png"))
parser.add_argument("--n", type=int, default=2000, help="samples a panel")
options = parser.parse_args()
torch.set_num_threads(1)  # such small tensors are done before a second thread wakes up
n = options.n

# %% [markdown]
# ## Data, a path, a process
#
# Eight modes on a circle. A path says how data become noise, a process which spaces the state lives
# in. `Keys` number the samples: sample 17 is the same whatever batch it is drawn in.

# %%
angles = [2 * math.pi * k / 8 for k in range(8)]
means = [[2 * math.cos(a), 2 * math.sin(a)] for a in angles]
covariance = (0.04 * torch.eye(2)).tolist()
data = Mixture([1 / 8] * 8, means, [covariance] * 8)
path = Path.vp()
process = Process(Part(Flat(), path))
model = data.on(path)
keys = Keys.for_samples(0, range(n))
truth = data.sample((n, 2), torch.Generator().manual_seed(0))

# %% [markdown]
# ## 1. The same law by an ODE and by an SDE
#
# The probability flow and the reverse SDE have the same marginals; few evaluations tell them apart.
# `W2` is the distance to the data (for `n` draws of the data themselves it is the last figure).

# %%
trails: dict[str, list[torch.Tensor]] = {"dpmpp2": [], "ddpm": []}
print(f"{'evaluations':>24}" + "".join(f"{steps:>9}" for steps in (5, 10, 20, 50)))
for solver, trail in trails.items():
    row = []
    for steps in (5, 10, 20, 50):
        keep = trail.append if steps == 50 else None
        out = sample(
            model, process, keys, (2,), solver=solver, grid=partial(log_snr, path), steps=steps,
            callback=None if keep is None else lambda k, t, x, d, keep=keep: keep(x[:12].clone()),
        )
        row.append(w2_samples(out.x, truth, keys[:1]).value)
    print(f"{'W2, ' + solver:>24}" + "".join(f"{value:9.3f}" for value in row))
other = data.sample((n, 2), torch.Generator().manual_seed(1))
print(f"{'W2, data against data':>24}{w2_samples(other, truth, keys[:1]).value:9.3f}")

# %% [markdown]
# ## 2. Guidance, biased and exact
#
# Condition: the modes on the right. Guidance of weight w is meant to sample cond^w uncond^(1-w).
# `guide.cfg` follows the guided score and samples something else; `weigh.guidance` follows the same
# score, carries the weights that repair it, and resamples.

# %%
right = [k for k in range(8) if means[k][0] > 0.1]
weight = 2.0


class Conditional:
    """Asked with a condition it knows the right half, without one all modes."""

    def __init__(self) -> None:
        half = Mixture(
            [0.2, 0.6, 0.2], [means[k] for k in (1, 0, 7)], [covariance] * len(right)
        )
        self.law = half
        self.conditional, self.free = half.on(path), data.on(path)

    def __call__(self, x, t, mask=None, cond=None, previous=None):
        return (self.free if cond is None else self.conditional)(x, t)


asked = Conditional()
settings = {
    "solver": "ddpm", "grid": partial(log_snr, path), "steps": 200, "cond": 1,
    "dtype": torch.float64,
}
biased = sample(asked, process, keys, (2,), guide=partial(cfg, weight=weight), **settings).x
exact = sample(
    asked, process, keys, (2,), guide=weigh.guidance(process, weight),
    particles=Resampling(ess=0.5), **settings,
)
# cond^2 / uncond, normalised on a grid: the answer without any sampling
axis = torch.linspace(-3.5, 3.5, 281, dtype=torch.float64)
points = torch.cartesian_prod(axis, axis)
density = (weight * asked.law.log_prob(points) + (1 - weight) * data.log_prob(points)).exp()
density /= density.sum()
above = points[:, 1].abs() < 0.7  # the middle one of the three modes


def middle(x: torch.Tensor) -> torch.Tensor:
    return (x[:, 1].abs() < 0.7).double()


assert exact.weights is not None
wanted = float(density[above].sum())
print(f"\nmass of the middle mode under cond^{weight:g} uncond^{1 - weight:g}: {wanted:.3f}")
print(f"  cfg {float(middle(biased).mean()):.3f}, "
      f"weighted {float(exact.weights.mean(middle(exact.x))):.3f} "
      f"({int(exact.weights.distinct_ancestors)} distinct ancestors of {n})")

# %% [markdown]
# ## 3. Likelihood
#
# The flow is invertible, so the model has a density. It is compared with the exact one.

# %%
chosen = truth[:200].double()
found = log_prob(model, process, chosen)
gap = (found.value - data.log_prob(chosen)).abs()
print(f"\nlog-likelihood of 200 points: mean {float(found.value.mean()):.4f} nats, "
      f"largest error {float(gap.max()):.1e}")

# %% [markdown]
# ## 4. The picture

# %%
import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

figure, axes = plt.subplots(1, 4, figsize=(14, 3.7), layout="constrained")
for ax, (solver, title) in zip(
    axes, {"dpmpp2": "probability flow (ODE)", "ddpm": "reverse SDE"}.items(), strict=False
):
    ax.scatter(*truth[:600].T, s=2, color="0.8")
    for line in torch.stack(trails[solver], 1):
        ax.plot(*line.T, lw=0.8)
    ax.set_title(title)
shown = exact.x[exact.weights.draw(keys)]
for ax, (title, x) in zip(
    axes[2:], {"guidance: cfg": biased, "guidance: weighted": shown}.items(), strict=True
):
    ax.contour(axis, axis, density.view(281, 281).T, levels=6, colors="0.6", linewidths=0.6)
    ax.scatter(*x[:800].T, s=2)
    ax.set_title(f"{title}\nmiddle mode {float(middle(x).mean()):.2f}, exact {wanted:.2f}")
for ax in axes:
    ax.set(aspect="equal", xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), xticks=[], yticks=[])
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=130)
print(f"\npicture: {options.out}")
