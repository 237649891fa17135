# %% [markdown]
# # Bring your own network
#
#     python examples/bring_your_own_network.py [--out runs/bring_your_own_network.png]
#
# The core knows no architecture. Whatever can be called as
#
#     model(x, t, mask=None, cond=None, previous=None)
#
# can be trained, sampled with every solver, guided, asked for likelihoods, stopped and resumed.
# Here that is a network written for something else, on data of our own: rings and chains of four to
# eight points in the plane, together with who is bonded to whom. A state therefore has two parts, a
# set of points and a table of pairs, and samples of different sizes share a batch.

# %%
from __future__ import annotations

import argparse
import math
import time
from functools import partial
from pathlib import Path as File

import torch
from torch import Tensor, nn

from driftworks.core import Centred, Ema, Keys, Part, Path, Process, Symmetric, cfg, matching_loss
from driftworks.core.likelihood import log_prob
from driftworks.core.sample import sample
from driftworks.core.train import time_samples

parser = argparse.ArgumentParser(description="A network and data of your own in the core.")
parser.add_argument("--out", type=File, default=File("runs/bring_your_own_network.png"))
parser.add_argument("--updates", type=int, default=2400)
options = parser.parse_args()
torch.set_num_threads(1)  # such small tensors are done before a second thread wakes up
MOST = 8  # points of the largest shape; smaller ones are padded
CHAIN, RING, EITHER = 0, 1, 2

# %% [markdown]
# ## 1. Your data
#
# Plain tensors and a mask: points (B, 8, 2), bonds (B, 8, 8) with +1 for a bond and -1 for none,
# and a mask (B, 8) of the points that exist. Rings are regular polygons of side 1, chains bend
# alternately left and right; both come in all directions and with a little noise.


# %%
def shapes(count: int, draws: torch.Generator) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """States {"points", "bonds"}, their mask, and a label CHAIN or RING each."""
    size = torch.randint(4, MOST + 1, (count, 1), generator=draws)
    label = torch.randint(0, 2, (count,), generator=draws)
    k = torch.arange(MOST)
    mask = k < size
    angle = 2 * math.pi * k / size
    radius = 0.5 / torch.sin(math.pi / size)
    ring = torch.stack((radius * angle.cos(), radius * angle.sin()), -1)
    chain = torch.stack((0.87 * k, 0.5 * (k % 2)), -1).expand(count, -1, -1)
    points = torch.where(label[:, None, None] == RING, ring, chain)
    turn = 2 * math.pi * torch.rand(count, generator=draws)
    turned = torch.stack((turn.cos(), -turn.sin(), turn.sin(), turn.cos()), 1).view(-1, 2, 2)
    points = points @ turned + 0.05 * torch.randn(count, MOST, 2, generator=draws)
    gap = (k[:, None] - k).abs()
    closes = (gap == size[:, :, None] - 1) & (label == RING)[:, None, None]
    bonds = torch.where((gap == 1) | closes, 1.0, -1.0)
    return {"points": points, "bonds": bonds}, mask, label


# %% [markdown]
# ## 2. A process
#
# Each part says where it lives, how it becomes noise, and what a network answers about it.
# `Centred` points have their mean at the origin, `Symmetric` pairs one value for (i, j) and (j, i).
# `project` brings data into those spaces and clears the padding; noise is drawn there, and the
# sampler never leaves them, so the network need not know about any of this.

# %%
process = Process({
    "points": Part(Centred(), Path.linear(), predicts="velocity"),
    "bonds": Part(Symmetric(), Path.linear(), predicts="denoised"),
})


def inside(state: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    return {name: part.space.project(state[name], mask) for name, part in process.items()}


# %% [markdown]
# ## 3. Your network
#
# Nothing in this class comes from the library: a few rounds of messages between all pairs of
# points, with arguments and names of its own.


# %%
class Messages(nn.Module):
    """Values for every point (B, N, 2) and every pair (B, N, N), from messages between points."""

    def __init__(self, width: int = 32, rounds: int = 3) -> None:
        super().__init__()
        self.enter_points, self.enter_pairs = nn.Linear(2 + 3 + 6, width), nn.Linear(2, width)
        self.number = nn.Embedding(MOST, width)  # points are numbered along their shape
        self.rounds = nn.ModuleList(
            nn.ModuleDict({
                "sender": nn.Linear(width, width), "receiver": nn.Linear(width, width),
                "pair": nn.Linear(width, width), "point": nn.Linear(2 * width, width),
            })
            for _ in range(rounds)
        )
        self.leave_points, self.leave_pairs = nn.Linear(width, 2), nn.Linear(width, 1)

    def forward(self, coordinates, adjacency, clock, kind, exists):
        waves = clock[:, None] * math.pi * torch.tensor([0.5, 1.0, 2.0])
        about = torch.cat((nn.functional.one_hot(kind, 3).to(clock), waves.sin(), waves.cos()), 1)
        about = about[:, None].expand(-1, coordinates.shape[1], -1)
        far = (coordinates[:, :, None] - coordinates[:, None]).square().sum(-1)
        point = self.enter_points(torch.cat((coordinates, about), -1))
        point = point + self.number.weight[: coordinates.shape[1]]
        pair = self.enter_pairs(torch.stack((adjacency, far / (1.0 + far)), -1))
        heard = exists[:, None, :, None] / exists.sum(1)[:, None, None, None]
        silu = nn.functional.silu
        for layer in self.rounds:
            sender, receiver = layer["sender"](point)[:, None], layer["receiver"](point)[:, :, None]
            pair = pair + silu(layer["pair"](pair) + sender + receiver)
            point = point + silu(layer["point"](torch.cat((point, (pair * heard).sum(2)), -1)))
        return self.leave_points(point), self.leave_pairs(pair).squeeze(-1)


# %% [markdown]
# This is all the glue there is. `x` and the answer are states, `t` one time a sample, and `cond` is
# whatever you pass to the sampler, handed through untouched. `previous` holds the last answer, for
# networks that condition on themselves. `null` says which condition means "none": guidance asks.


# %%
class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = Messages()

    def forward(self, x, t, mask=None, cond=None, previous=None):
        points, bonds = self.network(x["points"], x["bonds"], t, cond, mask)
        return {"points": points, "bonds": bonds}

    def null(self, cond):
        return torch.full_like(cond, EITHER)


with torch.random.fork_rng():
    torch.manual_seed(0)
    model = Model()

# %% [markdown]
# ## 4. Training
#
# `process.bridge` draws x_t of every part, `matching_loss` compares the answers with what each part
# declared; padded entries count in neither. A tenth of the labels is hidden, so that the model also
# learns to answer without one.

# %%
begin, batch = time.perf_counter(), 48
draws = torch.Generator().manual_seed(0)
optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.updates)
average = Ema(model.parameters(), 0.995)
for n in range(options.updates):
    keys = Keys.for_samples(1, range(n * batch, (n + 1) * batch))
    state, mask, label = shapes(batch, draws)
    label = torch.where(keys.uniform("hide", 0) < 0.1, EITHER, label)
    t = time_samples(keys.uniform("time", 0, (2,)))
    bridge = process.bridge(inside(state, mask), t, keys, mask)
    loss = matching_loss(
        model(bridge.x_t, t, mask, label), process, bridge, velocity_cap=25.0,
        weights={"bonds": 0.3},
    )
    optimiser.zero_grad()
    loss.total.backward()
    optimiser.step()
    fall.step()
    average.update(model.parameters())
average.copy_to(model.parameters())
model.requires_grad_(False)
parts = ", ".join(f"{name} {float(value):.3f}" for name, value in loss.parts.items())
print(f"{options.updates} updates in {time.perf_counter() - begin:.0f} s; last loss: {parts}")

# %% [markdown]
# ## 5. Sampling, with any solver
#
# The sampler needs a model, the process, one key a sample, the shapes and the mask. Keys make
# sample 17 the same whatever it is drawn with; solvers are names.
#
# What counts is whether samples are what they claim to be: their bonds form exactly one ring (or
# one chain) through all points, and bonded points are one apart.

# %%
count = 200
keys = Keys.for_samples(7, range(count))
mask = torch.arange(MOST) < 4 + torch.arange(count)[:, None] % 5
wanted = torch.arange(count) // 5 % 2
entries = {"points": (MOST, 2), "bonds": (MOST, MOST)}
settings = {"cond": wanted, "steps": 30}


def judged(state: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Is it a chain, is it a ring (B,), and the root mean square error of its bond lengths (B,)."""
    bonds = state["bonds"] > 0.0
    size, degree = mask.sum(1), bonds.sum(2)
    reach = torch.eye(MOST) + bonds  # who is reached within one step, two, four, eight
    for _ in range(3):
        reach = (reach @ reach > 0).float()
    whole = reach[:, 0].sum(1) == size
    ends = ((degree == 1) & mask).sum(1)
    inner = ((degree == 2) & mask).sum(1)
    length = (state["points"][:, :, None] - state["points"][:, None]).norm(dim=-1)
    error = ((length - 1.0).square() * bonds).sum((1, 2)) / bonds.sum((1, 2)).clamp(min=1)
    return whole & (ends == 2) & (inner == size - 2), whole & (inner == size), error.sqrt()


def right(state: dict[str, Tensor]) -> Tensor:
    chain, ring, _ = judged(state, mask)
    return torch.where(wanted == RING, ring, chain)


def report(name: str, state: dict[str, Tensor]) -> None:
    error = judged(state, mask)[2]
    print(f"{name:>24}{float(right(state).float().mean()):15.1%}{float(error.mean()):19.3f}")


fresh, own, _ = shapes(count, torch.Generator().manual_seed(1))
print(f"\n{'':>24}{'shape as asked':>15}{'bond length error':>19}")
print(f"{'data':>24}{'':>15}{float(judged(inside(fresh, own), own)[2].mean()):19.3f}")
made = {}
for solver in ("euler", "dpmpp2", "ddpm", "heun"):
    made[solver] = sample(model, process, keys, entries, mask, solver=solver, **settings).x
    report(solver, made[solver])

# %% [markdown]
# ## 6. Guidance
#
# A guide is a model made of models. `cfg` asks yours twice, with its label and with `null` of it,
# and extrapolates. It trades variety for typicality, and is no remedy for a model that already does
# as it is told: see below. (`core.weigh` makes guides exact, at the price of particles.)

# %%
guided = sample(
    model, process, keys, entries, mask, solver="dpmpp2", guide=partial(cfg, weight=2.0), **settings
).x
report("dpmpp2, guided by 2", guided)

# %% [markdown]
# ## 7. Masks, batches, interruptions
#
# Padding is zero at the end as at the beginning; a sample is the same alone and in its batch; and a
# run that stops half-way leaves a token (tensors, numbers and names only) from which it goes on to
# the very bits of the run that never stopped.

# %%
whole = made["ddpm"]
pairs = mask[:, :, None] & mask[:, None]
padding = max(
    float(whole["points"][~mask].abs().max()), float(whole["bonds"][~pairs].abs().max())
)
drawn = partial(sample, model, process, solver="ddpm", steps=30)
some = slice(17, 20)
alone = drawn(keys[some], entries, mask[some], cond=wanted[some]).x
apart = max(float((alone[name] - whole[name][some]).abs().max()) for name in alone)
half = drawn(keys, entries, mask, cond=wanted, until=15)
rest = drawn(keys, entries, mask, cond=wanted, resume=half.resume).x
same = all(torch.equal(rest[name], whole[name]) for name in whole)
print(f"\nlargest padded entry {padding:g}; three samples drawn without the others differ by "
      f"{apart:.0e}; stopped and resumed: {'the same bits' if same else 'different'}")

# %% [markdown]
# ## 8. Likelihood
#
# The probability flow gives every state a log-density under the model, counted over the dimensions
# that are free: 2 (N - 1) of the points and N (N - 1) / 2 of the pairs. Bonds of exactly +1 or -1
# have an infinite one, so ask about states blurred by noise of deviation 0.2: that is the law of
# x_t / beta where sigma / beta = 0.2, at t = 1 / 1.2 on the linear path. A model that knows its
# labels finds a shape likelier under the right one: the difference of two log-likelihoods
# classifies. The divergence is estimated with random probes, keyed by sample, the same for both.

# %%
late = 1.0 / 1.2
test, own, label = shapes(40, torch.Generator().manual_seed(2))
signs = Keys.for_samples(11, range(40))
blurred = {
    name: part.space.project(test[name], own)
    + 0.2 * part.space.noise(signs, f"blur/{name}", 0, test[name], own)
    for name, part in process.items()
}
likely = partial(
    log_prob, model, process, blurred, own, keys=signs, probes=2, steps=20, times=(0.0, late)
)
as_chain, as_ring = (likely(cond=torch.full((40,), kind)).value for kind in (CHAIN, RING))
guess = (as_ring > as_chain).long()
print(f"log-likelihood ratio names the label of {float((guess == label).float().mean()):.0%} "
      f"of 40 unseen shapes; median margin {float((as_ring - as_chain).abs().median()):.0f} nats")

# %% [markdown]
# ## 9. The picture
#
# Above, one ring on its way from noise to data; below, guided samples of all sizes.

# %%
import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def draw(ax, state: dict[str, Tensor], there: Tensor, title: str) -> None:
    points, bonds = state["points"][there], state["bonds"][there][:, there]
    for i in range(len(points)):
        for j in range(i):
            strength = float(bonds[i, j].clamp(0.0, 1.0))
            ax.plot(*points[[i, j]].T, color="C0", alpha=strength, lw=2)
    ax.scatter(*points.T, s=25, color="C1", zorder=3)
    ax.set_title(title, fontsize=9)
    ax.set(aspect="equal", xlim=(-3.7, 3.7), ylim=(-3.7, 3.7), xticks=[], yticks=[])


figure, axes = plt.subplots(3, 5, figsize=(11, 7), layout="constrained")
trail = {}
one = slice(9, 10)
sample(
    model, process, keys[one], entries, mask[one], solver="dpmpp2", cond=wanted[one], steps=30,
    callback=lambda row, t, x, _: trail.update({round(t, 3): {k: v[0] for k, v in x.items()}}),
)
for ax, t in zip(axes[0], (0.1, 0.4, 0.7, 0.9, 1.0), strict=True):
    draw(ax, trail[t], mask[9], f"t = {t:g}")
for row, offset in ((1, 0), (2, 5)):
    for ax, k in zip(axes[row], range(offset, offset + 5), strict=True):
        state = {name: value[k] for name, value in guided.items()}
        draw(ax, state, mask[k], ("chain", "ring")[int(wanted[k])] + f" of {int(mask[k].sum())}")
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=130)
print(f"picture: {options.out}")
