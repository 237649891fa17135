from __future__ import annotations

import builtins
import copy
import math
import time

import numpy as np
import pytest
import torch
from torch import nn

from driftworks.core import checkpoint, grids
from driftworks.core.distances import w2_samples
from driftworks.core.keys import Keys
from driftworks.core.laws import Mixture
from driftworks.core.paths import Path
from driftworks.core.sample import sample
from driftworks.core.student import Student
from driftworks.core.train import matching_loss
from driftworks.errors import UserError
from driftworks.protein.distill import DistillConfig, SidRun, distill, loss_times, step_times
from driftworks.protein.network import NetConfig, build
from driftworks.protein.process import chain_process
from driftworks.protein.zoo import load

NET = NetConfig(width=32, pair_width=16, heads=4, layers=2, rounds=2, radial=8)


@pytest.fixture
def teacher(tmp_path):
    """A small teacher with random weights."""
    net = build(NET, 1)
    meta = {
        "kind": "protein", "role": "teacher", "net": NET.model_dump(mode="json"),
        "lengths": [10, 30],
    }
    checkpoint.save(tmp_path / "teacher", {k: v.half() for k, v in net.state_dict().items()}, meta)
    return load(tmp_path / "teacher", "cpu")


def test_step_times_are_the_published_ones():
    want8 = [0.292, 0.615, 0.791, 0.886, 0.938, 0.966, 0.982, 0.990]
    want16 = [
        0.292, 0.469, 0.597, 0.698, 0.774, 0.828, 0.871, 0.903, 0.927, 0.945, 0.959, 0.969, 0.977,
        0.982, 0.987, 0.990,
    ]
    assert step_times(8) == pytest.approx(want8, abs=6e-4)
    assert step_times(16) == pytest.approx(want16, abs=1.1e-3)
    assert step_times(1) == pytest.approx((0.37,), abs=1e-3)
    with pytest.raises(UserError):
        step_times(0)


def test_noise_levels_of_the_loss_are_logarithmic_in_the_noise():
    u = torch.rand(20000, 2, generator=torch.Generator().manual_seed(0))
    t = loss_times(u)
    assert float(t.min()) == pytest.approx(0.02) and float(t.max()) == pytest.approx(0.98)
    middle = 1 - 10 ** (-2 * 200 / 400)  # the median of tau ~ U{0..400}
    assert float((t < middle).float().mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("method", ["sid", "sim", "ctm"])
def test_distillation_opens_no_data_and_continues_to_the_bit(
    teacher, tmp_path, monkeypatch, method
):
    config = DistillConfig(
        method=method, calls=3, batch=4, steps=4, lengths=(10, 14), warmup=1, learning_rate=1e-3,
        critic_rate=1e-3, stops=8, teacher_steps=3, reset_every=8, checkpoint_minutes=60,
    )
    opened = []
    inside = str(tmp_path)

    def watched(what):
        plain = getattr(builtins, what) if isinstance(what, str) else what

        def look(file, *args, **kwargs):
            if not str(file).startswith(inside):
                opened.append(str(file))
            return plain(file, *args, **kwargs)

        return look

    monkeypatch.setattr(builtins, "open", watched("open"))
    monkeypatch.setattr(np, "load", watched(np.load))
    import safetensors.torch

    monkeypatch.setattr(safetensors.torch, "load_file", watched(safetensors.torch.load_file))
    monkeypatch.setattr("driftworks.data.backbones.read", lambda *a, **k: opened.append("read"))
    whole = distill(config, teacher, tmp_path / "whole", progress=False)
    data = [f for f in opened if f.endswith((".npz", ".npy", ".pdb", ".cif", ".gz", "read"))]
    assert not data
    monkeypatch.undo()

    # half of the same run, then the rest of it
    half = tmp_path / "half"
    stop = {"at": 2}

    class Stopped(Exception):
        pass

    def finished(run):
        if run.step == stop["at"]:
            run.save(half)
            raise Stopped
        return run.step >= 4

    monkeypatch.setattr("driftworks.core.run.Run.finished", finished)
    with pytest.raises(Stopped):
        distill(config, teacher, half, progress=False)
    monkeypatch.undo()
    distill(config, teacher, half, resume=True, progress=False)
    first, second = load(whole, "cpu"), load(half, "cpu")
    assert first.hash == second.hash
    assert first.role == ("flowmap" if method == "ctm" else "student")
    assert first.meta["teacher"]["sha256"] == teacher.hash
    moved = [
        float((a - b).detach().abs().max())
        for a, b in zip(first.net.parameters(), teacher.net.parameters(), strict=False)
    ]
    assert max(moved) > 1e-4
    assert first.sample([10, 12], seed=1).finite.all()


def test_a_run_whose_newest_state_is_torn_falls_back_to_the_one_before(teacher, tmp_path):
    config = DistillConfig(calls=2, batch=4, steps=2, lengths=(10, 12), warmup=1)
    distill(config, teacher, tmp_path / "run", progress=False)
    (tmp_path / "run" / "state-00000003").mkdir()
    done = distill(
        config.model_copy(update={"steps": 3}), teacher, tmp_path / "run", resume=True,
        progress=False,
    )
    assert load(done).meta["training"]["steps"] == 3


def test_only_teachers_can_be_distilled(teacher, tmp_path):
    teacher.role = "student"
    with pytest.raises(UserError, match="only a teacher"):
        distill(DistillConfig(steps=1), teacher, tmp_path / "out")


def test_the_critic_is_reset_and_labels_are_asked_for(teacher):
    config = DistillConfig(
        calls=2, batch=4, steps=9, lengths=(10, 12), warmup=1, critic_rate=1e-2, reset_every=12,
        labelled=0.5,
    )
    critic = copy.deepcopy(teacher.net).requires_grad_(True)
    student = copy.deepcopy(teacher.net).requires_grad_(True)
    run = SidRun(config, teacher.net, student, critic, (10, 12))
    start = [p.detach().clone() for p in critic.parameters()]

    def drift():
        pairs = zip(start, critic.parameters(), strict=True)
        return max(float((a - b.detach()).abs().max()) for a, b in pairs)

    asked, drifts = [], []
    for _ in range(6):
        asked += run.request()[2]["label"].tolist()
        run.advance()
        drifts.append(drift())
    assert drifts[2] == drifts[5] == 0.0 and min(drifts[0], drifts[1], drifts[3]) > 0
    assert {0, 1, 2, 3, 4} >= set(asked) and asked.count(4) in range(4, 21)


LENGTH, WIDTH = 16, 0.05
SHARES = torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3])


class Toy(nn.Module):
    """E[x_1 | x_t] of chains (B, 16, 3) near some modes: a perceptron says which.

    For modes m_k of standard deviation w and v = t^2 w^2 + (1 - t)^2 it is

        (t w^2 x_t + (1 - t)^2 sum_k r_k(x_t) m_k) / v,

    and the sum is what the perceptron learns. The factor matters: scaled by (1 - t) alone, as for
    one wide Gaussian, the late steps of a student cannot move a chain that lies between two modes.
    """

    def __init__(self, size=0.6, width=192):
        super().__init__()
        self.size = size
        self.layers = nn.Sequential(
            nn.Linear(3 * LENGTH + 16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3 * LENGTH),
        )

    def forward(self, x, t, mask=None, cond=None, previous=None):
        b, s = t.view(-1, 1, 1), (1 - t).view(-1, 1, 1)
        scale = (b.square() * self.size**2 + s.square()).sqrt()
        level = torch.log((s + 0.01) / (b + 0.01)).view(-1, 1) * torch.arange(1, 9) * 0.25
        known = torch.cat(((x / scale).flatten(1), level.sin(), level.cos()), 1)
        modes = self.size * self.layers(known).view(x.shape)
        v = b.square() * WIDTH**2 + s.square()
        return (b * WIDTH**2 * x + s.square() * modes) / v


def modes_of_a_toy():
    g = torch.Generator().manual_seed(12)
    steps = torch.randn(len(SHARES), LENGTH, 3, generator=g)
    means = 0.22 * steps.cumsum(1)
    return (means - means.mean(1, keepdim=True)).double()


def imitation(oracle, process, seed):
    """A perceptron that has learned the teacher's denoiser on the teacher's own samples."""
    keys = Keys.for_samples(1 + 100 * seed, range(2000))
    pool = sample(oracle, process, keys, (LENGTH, 3), grid=grids.log(40)).x
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Toy()
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for step in range(1000):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (1 - step / 1000) + 1e-5
        keys = Keys.for_samples(2 + 100 * seed, range(step * 128, step * 128 + 128))
        rows = (keys.uniform("row", 0) * len(pool)).long()
        t = 0.98 * keys.uniform("t", 0)
        bridge = process.bridge(pool[rows], t, keys)
        loss = matching_loss(net(bridge.x_t, t), process, bridge, velocity_cap=100.0).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net


@pytest.mark.slow
@pytest.mark.timeout(900)  # wall time on a busy machine; the test holds 180 s of CPU itself
def test_a_toy_teacher_is_distilled_in_three_minutes_to_all_modes_and_beats_its_own_four_steps():
    """Five known modes of unequal shares; the teacher is their closed form, and no data are drawn.

    SiD as published, alpha = 1, from an imitation of the teacher as student and critic. The
    distillation must mend what the imitation gets wrong in four steps, not merely keep it.
    """
    begin, seed = time.process_time(), 0
    torch.set_num_threads(1)
    means = modes_of_a_toy()
    oracle = Mixture(SHARES, list(means), [WIDTH**2] * len(SHARES)).on(Path.linear())
    process = chain_process()
    start = imitation(oracle, process, seed)

    config = DistillConfig(
        method="sid", calls=4, batch=256, steps=1500, seed=seed, warmup=20, constant=0.3,
        learning_rate=3e-4, critic_rate=1e-3, ema=0.99, levels="uniform",
    )
    assert config.mix == 1.0
    student, critic = copy.deepcopy(start), copy.deepcopy(start)
    run = SidRun(config, oracle, student, critic, (LENGTH, LENGTH), labels=0)
    while not run.finished():
        run.advance()

    count = 1000
    keys = Keys.for_samples(9, range(count))
    ours, undistilled = (
        Student(net, process, step_times(4)).sample(keys, (LENGTH, 3)).x
        for net in (run.averaged(), start)
    )
    euler = sample(oracle, process, keys, (LENGTH, 3), grid=grids.log(4)).x
    # each mode exactly as often as it should be: its counts add nothing to the distances
    which = torch.repeat_interleave(torch.arange(len(SHARES)), (SHARES * count).round().long())
    noise = torch.randn(count, LENGTH, 3, generator=torch.Generator().manual_seed(4))
    truth = means[which].float() + WIDTH * (noise - noise.mean(1, keepdim=True))

    near, which = (ours.unsqueeze(1) - means.float()).square().mean((2, 3)).sqrt().min(1)
    share = torch.bincount(which, minlength=len(SHARES)) / count
    error, undistilled_error, euler_error = (
        w2_samples(x.flatten(1), truth.flatten(1)).value for x in (ours, undistilled, euler)
    )
    spent = time.process_time() - begin
    apart = torch.pdist(means.flatten(1)).min() / math.sqrt(3 * LENGTH)
    clear = float((near < apart / 2).float().mean())
    least = float((share / SHARES).min())
    print(f"{least=} {clear=} {error=} {undistilled_error=} {euler_error=} {spent=}")
    assert least > 0.5  # every mode has half of its share at the least
    assert clear > 0.95  # and hardly anything lies between them
    assert error < 0.5 * euler_error
    assert error < 0.75 * undistilled_error
    assert spent < 180
