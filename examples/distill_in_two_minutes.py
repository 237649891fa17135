# %% [markdown]
# # Distillation in two minutes
#
#     python examples/distill_in_two_minutes.py [--out runs/distill_in_two_minutes.png]
#
# A diffusion model asks its network some fifty times for every sample. Here three networks learn to
# do with one to four calls what their teacher does with fifty:
#
# - a **one-step student** and a **four-step student**, taught by the teacher's scores alone
#   (`core.distill`, `core.student`): no data, no trajectories;
# - a **flow map**, which learns to jump along the teacher's probability flow, from any time to any
#   later one (`core.flowmap`).
#
# The data are two moons. Everything runs on a CPU; all numbers below are measured by this script,
# and the seed is fixed.

# %%
from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path as File

import torch
from torch import Tensor, nn

from driftworks.core import Ema, Flat, Keys, Part, Path, Process, grids, matching_loss
from driftworks.core.distances import w2_samples
from driftworks.core.distill import posterior_weight
from driftworks.core.flowmap import FlowMap, ctm_loss, ctm_times
from driftworks.core.sample import sample
from driftworks.core.student import Distiller, Student, inner_times

parser = argparse.ArgumentParser(description="Distil a sampler of two moons into few steps.")
parser.add_argument("--out", type=File, default=File("runs/distill_in_two_minutes.png"))
parser.add_argument("--updates", type=int, default=2400, help="of every student")
options = parser.parse_args()
torch.set_num_threads(1)  # such small tensors are done before a second thread wakes up
batch = 256

# %% [markdown]
# ## Data, path, process
#
# Two half circles with a little noise, brought to zero mean and unit variance. A `Path` says how a
# data point becomes noise, x_t = t x_1 + (1 - t) e here, and a `Process` which space it lives in.


# %%
def moons(count: int, generator: torch.Generator, noise: float = 0.08) -> Tensor:
    """Points (count, 2) on two interleaved half circles, of about unit variance."""
    angle = math.pi * torch.rand(count, generator=generator)
    side = torch.rand(count, generator=generator) < 0.5
    x = torch.where(side, angle.cos(), 1.0 - angle.cos())
    y = torch.where(side, angle.sin(), 0.5 - angle.sin())
    points = torch.stack(((x - 0.5) / 0.87, (y - 0.25) / 0.5), 1)
    return points + noise * torch.randn(count, 2, generator=generator)


path = Path.linear()
process = Process(Part(Flat(), path))
draws = torch.Generator().manual_seed(0)

# %% [markdown]
# ## One architecture for all
#
# A small perceptron that answers with the denoised point. It knows the time t it is asked about,
# and a second time s that only the flow map uses: everywhere else s = t. Beside that it answers the
# best linear guess, so it only has to learn what is not Gaussian about the data
# (`core.predict.Precondition` does the same for a network of yours).


# %%
class Network(nn.Module):
    """E[x_1 | x_t] at times t (B,), or its mean on the way from t to s; x (B, 2)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(14, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2),
        )

    def forward(self, x, t, mask=None, cond=None, previous=None, s=None):
        # coefficients come in float64, whatever the state is
        beta, sigma = path.beta(t).to(x)[:, None], path.sigma(t).to(x)[:, None]
        scale = (beta.square() + sigma.square()).sqrt()
        times = torch.stack((t, t if s is None else s), 1)
        waves = times[:, :, None] * math.pi * torch.tensor([0.5, 1.0, 2.0])
        known = torch.cat((2.0 * x / scale, waves.sin().flatten(1), waves.cos().flatten(1)), 1)
        return beta / scale.square() * x + sigma / scale * self.layers(known)


def adam(network: nn.Module, rate: float, updates: int, momentum: float = 0.9):
    """Adam with a rate that falls to zero, and the schedule that makes it fall."""
    optimiser = torch.optim.Adam(network.parameters(), lr=rate, betas=(momentum, 0.99))
    return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)


with torch.random.fork_rng():
    torch.manual_seed(0)
    teacher = Network()

# %% [markdown]
# ## The teacher
#
# Ordinary training: draw data, draw times, let the process make noise of them, regress. `Keys`
# number the samples of the whole run, and all randomness hangs on them. The error that counts is
# that of the velocity: the plain error of x_1 would say little about the last, fine strokes.

# %%
regression = partial(matching_loss, velocity_cap=400.0)
begin = time.perf_counter()
updates = 3000
optimiser, fall = adam(teacher, 8e-3, updates)
average = Ema(teacher.parameters(), 0.998)
for n in range(updates):
    keys = Keys.for_samples(1, range(n * batch, (n + 1) * batch))
    t = inner_times(keys.uniform("time", 0, (2,)))
    bridge = process.bridge(moons(batch, draws), t, keys)
    loss = regression(teacher(bridge.x_t, t), process, bridge)
    optimiser.zero_grad()
    loss.total.backward()
    optimiser.step()
    fall.step()
    average.update(teacher.parameters())
average.copy_to(teacher.parameters())
teacher.requires_grad_(False)
print(f"teacher: {updates} updates in {time.perf_counter() - begin:.0f} s")

# %% [markdown]
# ## Students of one and of four steps
#
# Both start as copies of the teacher. A `Distiller` alternates two updates: a critic, another copy,
# learns the denoiser of what the student makes now; then the student follows the difference of the
# two denoisers, which vanishes when its samples follow the teacher's law. alpha = 0.5 is the exact
# gradient of their divergence; once the student is close, alpha = 1 converges faster
# (`core.distill` says when it may not be used).
#
# The four-step student adds fresh noise to its own answer and is asked again, at later times. Its
# steps take turns, each with a critic of its own: a single critic would only see to it that the
# four together make the data, the first ones too wide and the last, which counts, too narrow.


# %%
def distil(times: tuple[float, ...], updates: int) -> Student:
    """A student asked at the given times, trained against the teacher."""
    generator = copy.deepcopy(teacher).requires_grad_(True)
    student = Student(generator, process, times)
    # without momentum: what student and critic chase moves with every step of the other
    own_adam, own_fall = adam(generator, 2e-3, updates, momentum=0.0)
    stages, falls = [], []
    for _ in times:
        critic = copy.deepcopy(teacher).requires_grad_(True)
        critic_adam, critic_fall = adam(critic, 4e-3, updates // len(times), momentum=0.0)
        falls.append(critic_fall)
        stages.append(Distiller(
            teacher, critic, student, critic_adam, own_adam, critic_loss=regression,
            alpha=lambda done: 0.5 if done < updates // len(times) // 4 else 1.0,
            weight=posterior_weight(), decay=0.98,
        ))
    for n in range(updates):
        stage = n % len(times)
        keys = Keys.for_samples(2, range(n * batch, (n + 1) * batch))
        stages[stage].update(keys, (2,), stage=stage)
        falls[stage].step()
        own_fall.step()
    stages[-1].ema.copy_to(generator.parameters())
    return student


students = {}
for times in ((0.2,), (0.2, 0.5, 0.75, 0.9)):
    begin = time.perf_counter()
    students[len(times)] = distil(times, options.updates)
    seconds = time.perf_counter() - begin
    print(f"student of {len(times)}: {options.updates} updates in {seconds:.0f} s")

# %% [markdown]
# ## A flow map
#
# The same network, now told where to go. It learns that jumps compose: a jump from t to s is one
# of the teacher's short walks, from t to u, followed by the map's own jump from u to s. The data
# points serve to make states x_t, no more.

# %%
begin = time.perf_counter()
jumper = copy.deepcopy(teacher).requires_grad_(True)
slow = copy.deepcopy(jumper)  # a moving average, which supplies the second jump


def as_map(network: Network) -> FlowMap:
    return FlowMap(lambda x, t, s, mask=None, cond=None: network(x, t, s=s), process)


flow, reference = as_map(jumper), as_map(slow)
optimiser, fall = adam(jumper, 4e-3, options.updates)
average = Ema(jumper.parameters(), 0.98)
stops, walk = 24, 4
for n in range(options.updates):
    keys = Keys.for_samples(3, range(n * batch, (n + 1) * batch))
    t, _, s = ctm_times(keys.uniform("times", 0, (3,)), grids.uniform(stops))
    u = torch.minimum(t + walk / stops, s)
    bridge = process.bridge(moons(batch, draws), t, keys)
    loss = ctm_loss(flow, teacher, bridge, u, s, reference=reference, substeps=walk, matching=0.0)
    optimiser.zero_grad()
    loss.total.backward()
    optimiser.step()
    fall.step()
    average.update(jumper.parameters())
    average.copy_to(slow.parameters())
seconds = time.perf_counter() - begin
print(f"flow map: {options.updates} updates in {seconds:.0f} s")

# %% [markdown]
# ## What it bought
#
# Ten thousand samples each: their distance to as many data points, the share that lies astray, more
# than four deviations of the noise from either half circle, and the time they take. The last line
# is what any sampler would show that were perfect: other data.
#
# One call is a smooth map of noise that has to tear it in two, so some samples stay between the
# moons. A student of several steps sorts those out with fresh noise; a flow map of several jumps
# follows its teacher's flow ever more closely, and that is all it can.

# %%
count = 10_000
truth, others = moons(count, draws), moons(count, draws)
curves = moons(2000, draws, noise=0.0)
keys = Keys.for_samples(9, range(count))


def walked(steps: int) -> Callable[[], Tensor]:
    return lambda: sample(teacher, process, keys, (2,), solver="dpmpp2", steps=steps).x


def astray(x: Tensor) -> float:
    return float((torch.cdist(x, curves).min(1).values > 4 * 0.08).float().mean())


@torch.no_grad()
def measured(draw: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
    """Samples, their W2 distance to the data, and the seconds of the fastest of three draws."""
    clocks = []
    for _ in range(3):
        begin = time.perf_counter()
        x = draw()
        clocks.append(time.perf_counter() - begin)
    return x, w2_samples(x, truth, keys[:1]).value, min(clocks)


samplers: dict[str, tuple[int, Callable[[], Tensor]]] = {
    **{f"teacher, {k} steps": (k, walked(k)) for k in (50, 20, 4)},
    "teacher, 1 step": (1, walked(1)),
    "student of 4 steps": (4, lambda: students[4].sample(keys, (2,)).x),
    "student of 1 step": (1, lambda: students[1].sample(keys, (2,)).x),
    "flow map, 4 jumps": (4, lambda: reference.sample(keys, (2,), steps=4).x),
    "flow map, 1 jump": (1, lambda: reference.sample(keys, (2,), steps=1).x),
}
made = {}
print(f"\n{'':>22}{'calls':>7}{'W2 to data':>12}{'astray':>9}{'s / 10,000':>12}")
for name, (calls, draw) in samplers.items():
    made[name] = measured(draw)
    x, distance, seconds = made[name]
    print(f"{name:>22}{calls:>7}{distance:12.3f}{astray(x):9.1%}{seconds:12.3f}")
floor = w2_samples(others, truth, keys[:1]).value
print(f"{'other data':>22}{'':>7}{floor:12.3f}{astray(others):9.1%}")

# %% [markdown]
# A flow map is one map of points, so a sample keeps its place when it is made with more jumps; a
# student of several steps draws fresh noise and only keeps the law.

# %%
near, far = (reference.sample(keys, (2,), steps=k).x for k in (1, 4))
moved = (near - far).square().sum(1).mean().sqrt()
goal = (near - made["teacher, 50 steps"][0]).square().sum(1).mean().sqrt()
print(f"\none jump against four: {float(moved):.3f} apart (root mean square); against the "
      f"teacher's 50 steps from the same noise: {float(goal):.3f}")

# %% [markdown]
# ## The picture

# %%
import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

figure, axes = plt.subplots(2, 4, figsize=(13, 5.2), layout="constrained")
for ax, name in zip(axes.T.flat, [k for pair in zip(
    ("teacher, 50 steps", "student of 4 steps", "flow map, 4 jumps", "teacher, 4 steps"),
    ("teacher, 20 steps", "student of 1 step", "flow map, 1 jump", "teacher, 1 step"), strict=True,
) for k in pair], strict=True):
    x, distance, seconds = made[name]
    ax.scatter(*truth[:3000].T, s=1, color="0.85")
    ax.scatter(*x[:3000].T, s=1)
    ax.set_title(f"{name}\nW2 {distance:.3f}, {1e3 * seconds:.0f} ms",
                 fontsize=10)
    ax.set(aspect="equal", xlim=(-2.3, 2.3), ylim=(-2.1, 2.1), xticks=[], yticks=[])
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=130)
print(f"picture: {options.out}")
