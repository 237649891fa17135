"""Flow maps: exact maps of Gaussians, semigroup, consistency, sampling."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from driftworks.core import (
    Centred,
    Flat,
    Gaussian,
    Keys,
    Masking,
    Mixture,
    Part,
    Path,
    Process,
    Symmetric,
    Tokens,
    grids,
)
from driftworks.core.distances import w2_samples
from driftworks.core.flowmap import (
    FlowMap,
    OracleMap,
    ctm_loss,
    ctm_times,
    jumps,
    landing,
)
from driftworks.core.sample import sample
from driftworks.core.train import Ema, matching_loss
from driftworks.errors import UserError

DOUBLE = torch.float64
PATHS = [Path.linear(), Path.cosine(), Path.vp(), Path.subvp(), Path.ve(0.05, 8.0), Path.edm(8.0)]
names = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)


def rising(rng: torch.Generator, count: int, samples: int, last: float = 0.97) -> list[Tensor]:
    """``count`` times (samples,), each later than the one before."""
    draw = torch.rand(samples, count, generator=rng, dtype=DOUBLE).sort(1).values
    return list((0.01 + (last - 0.01) * draw).unbind(1))


def some_gaussian(rng: torch.Generator, size: int = 3) -> Gaussian:
    root = torch.randn(size, size, generator=rng, dtype=DOUBLE)
    return Gaussian(torch.randn(size, generator=rng, dtype=DOUBLE), root @ root.T)


def exact_map(law: Gaussian, path: Path) -> FlowMap:
    return FlowMap(OracleMap(law.on(path)), Process(Part(Flat(), path)))


@pytest.mark.parametrize(
    ("before", "after", "jump", "mean"),
    [(80.0, 0.0, 0.00624988, 0.00624988), (10.0, 1.0, 0.11166391, 0.01295990),
     (1.0, 0.1, 0.45607017, 0.39563352), (1.0, 1.0, 1.0, 0.2)],
)
def test_golden_jumps_of_a_gaussian_with_exploding_variance(before, after, jump, mean) -> None:
    path = Path.edm(80.0)
    flow, x = exact_map(Gaussian(0.0, 0.25), path), torch.ones(1, 1, dtype=DOUBLE)
    t, s = (torch.tensor([1 - sigma / 80.0], dtype=DOUBLE) for sigma in (before, after))
    assert flow.jump(x, t, s).item() == pytest.approx(jump, abs=6e-9)  # type: ignore[union-attr]
    assert flow.mean(x, t, s)["x"].item() == pytest.approx(mean, abs=6e-9)


@names
def test_the_exact_map_is_the_probability_flow(path: Path, rng) -> None:
    law, (t, s) = some_gaussian(rng), rising(rng, 2, 40)
    x = torch.randn(40, 3, generator=rng, dtype=DOUBLE)
    flow = exact_map(law, path)
    assert torch.allclose(flow.jump(x, t, s), law.on(path).flow(x, t, s), rtol=1e-9, atol=1e-9)
    clean = law.flow(x, (path.beta(t), path.sigma(t)), (path.beta(torch.ones_like(t)), 0.0))
    assert torch.allclose(flow.jump(x, t, 1.0), clean, rtol=1e-9, atol=1e-9)
    assert torch.allclose(flow(x, t), law.on(path).denoised(x, t), rtol=1e-9, atol=1e-9)
    assert torch.equal(flow.jump(x, t, t), x)
    near = (t + 1e-9).clamp(max=0.98)  # no difference of nearby numbers is divided by their gap
    assert torch.allclose(flow.mean(x, t, near)["x"], law.on(path).denoised(x, t), atol=1e-6)


@names
def test_jumps_compose(path: Path, rng) -> None:
    law, (t, u, s) = some_gaussian(rng), rising(rng, 3, 40)
    x = torch.randn(40, 3, generator=rng, dtype=DOUBLE)
    flow = exact_map(law, path)
    halfway = flow.jump(x, t, u)
    assert torch.allclose(flow.jump(halfway, u, s), flow.jump(x, t, s), rtol=1e-9, atol=1e-9)
    assert torch.allclose(flow.jump(halfway, u, 1.0), flow.jump(x, t, 1.0), rtol=1e-9, atol=1e-9)


def test_a_map_of_scalar_law_fits_entries_of_any_shape(rng) -> None:
    path, x = Path.vp(), torch.randn(4, 5, 3, generator=rng)
    flow = exact_map(Gaussian(0.3, 0.5), path)
    moved = flow.jump(x, 0.2, 0.7)
    assert isinstance(moved, Tensor) and moved.dtype == torch.float32
    t = torch.full((4,), 0.2)
    exact = Gaussian(0.3, 0.5).on(path).flow(x, t, torch.full((4,), 0.7))
    assert torch.allclose(moved, exact, atol=1e-5)


@names
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.8, 1.0])
def test_with_the_exact_map_every_gamma_keeps_the_law_at_every_stop(path: Path, gamma, rng) -> None:
    """Not by sampling: the variances behind each row of the table, the answer being affine."""
    variance, grid = 0.1 + torch.rand((), generator=rng).item(), grids.uniform(4)
    law = Gaussian(0.0, variance)
    oracle, table = OracleMap(law.on(path)), jumps(gamma)(path, grid)
    spread = path.beta(0.0) ** 2 * variance + path.sigma(0.0) ** 2
    one = torch.ones(1, 1, dtype=DOUBLE)
    for t, s, a, b, c in zip(table.times, table.ends, table.a, table.b, table.c, strict=True):
        gain = oracle(one, t, landing(path, s, gamma)).item()
        spread = (a[0] + b[0] * gain) ** 2 * spread + c**2
        left = 0.0 if s == 1.0 else path.sigma(s) ** 2
        assert spread == pytest.approx(path.beta(s) ** 2 * variance + left, rel=1e-9)
    assert (gamma > 0) == table.stochastic


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_sampling_makes_the_jumps_of_the_grid(gamma: float, rng) -> None:
    """The map's own loop against jumps and noise by hand, on a path and a grid of several steps."""
    path, law = Path.cosine(), Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([0.3, 0.8]))
    flow, keys, grid = exact_map(law, path), Keys.for_samples(3, range(64)), (0.0, 0.3, 0.7, 1.0)
    out = flow.sample(keys, (2,), grid=grid, gamma=gamma, dtype=DOUBLE)
    assert out.nfe == 3
    x = flow.process.prior(keys, torch.empty(64, 2, dtype=DOUBLE))
    for row, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        goal = landing(path, s, gamma)
        x = flow.jump(x, t, goal)
        if s < 1.0:
            back = path.beta(s) / path.beta(goal)
            left = 0.0 if goal == 1.0 else back * path.sigma(goal)
            noise = Flat().noise(keys, "sample/x", row, x)  # type: ignore[arg-type]
            x = back * x + math.sqrt(max(path.sigma(s) ** 2 - left**2, 0.0)) * noise
    assert torch.allclose(out.x, x, atol=1e-10)  # type: ignore[arg-type]


def test_one_jump_samples_a_gaussian_exactly() -> None:
    law, n = Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[0.5, 0.2], [0.2, 0.3]])), 40000
    x = exact_map(law, Path.linear()).sample(Keys.for_samples(1, range(n)), (2,)).x
    assert isinstance(x, Tensor)
    assert (x.mean(0) - law.mean).abs().max() < 5 * math.sqrt(0.5 / n)
    assert (x.double().T.cov() - law.matrix(2)).abs().max() < 5 * 0.5 * math.sqrt(2 / n)


def test_landing_hits_the_ratio_it_should() -> None:
    for path in PATHS:
        for s, gamma in ((0.3, 0.5), (0.6, 0.9)):
            u = landing(path, s, gamma)
            wanted = math.sqrt(1 - gamma**2) * path.sigma(s) / path.beta(s)
            assert path.sigma(u) / path.beta(u) == pytest.approx(wanted, rel=1e-9)
            assert landing(path, s, 0.0) == s and landing(path, s, 1.0) == 1.0
    with pytest.raises(UserError, match="gamma is a share"):
        landing(Path.linear(), 0.5, 1.5)


class Pull(nn.Module):
    """Some smooth jump model of clouds and pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(0.7, dtype=DOUBLE))

    def forward(self, x, t, s, mask=None, cond=None):
        shape = lambda v, x: v.to(x).view(-1, *(1,) * (x.ndim - 1))  # noqa: E731
        return {
            name: torch.tanh(self.strength * v) * (1 + shape(t, v)) - shape(s, v) * v
            for name, v in x.items()
        }


PARTS = {
    "pos": Part(Centred(), Path.linear(), "velocity"),
    "bond": Part(Symmetric(), Path.vp(), "denoised"),
}


def cloud_loss(ids: list[int], nodes: int) -> tuple[float, float]:
    process, keys = Process(PARTS), Keys.for_samples(3, ids)
    mask = torch.tensor([[k < 2 + i for k in range(nodes)] for i in ids])
    shapes = {"pos": (nodes, 3), "bond": (nodes, nodes)}
    x = {
        name: part.space.noise(keys, name, 0, torch.empty(len(ids), *shapes[name], dtype=DOUBLE),
                               mask)
        for name, part in process.items()
    }
    t, u, s = ctm_times(keys.uniform("time", 0, (3,), dtype=DOUBLE), grids.uniform(6))
    flow = FlowMap(Pull(), process)
    model = FlowMap(Pull(), process)
    found = ctm_loss(flow, model, process.bridge(x, t, keys, mask), u, s, substeps=2)
    return found.consistency.item(), found.matching.item()


def test_padding_and_order_never_change_a_consistency_loss() -> None:
    plain = cloud_loss([0, 1, 2, 3], 5)
    assert cloud_loss([0, 1, 2, 3], 9) == pytest.approx(plain, rel=1e-10)
    assert cloud_loss([2, 0, 3, 1], 5) == pytest.approx(plain, rel=1e-10)
    alone = [cloud_loss([i], 5)[0] for i in range(4)]
    assert sum(alone) / 4 == pytest.approx(plain[0], rel=1e-10)


def test_samples_of_a_map_do_not_depend_on_their_batch() -> None:
    flow, keys = FlowMap(Pull(), Process(PARTS)), Keys.for_samples(2, range(4))
    mask = torch.arange(5) < torch.tensor([[2], [5], [3], [4]])
    shapes = {"pos": (5, 3), "bond": (5, 5)}
    settings = {"steps": 3, "gamma": 0.4, "dtype": DOUBLE}
    x = flow.sample(keys, shapes, mask, **settings).x
    order = torch.tensor([3, 1, 0, 2])
    turned = flow.sample(keys[order], shapes, mask[order], **settings).x
    wide = {"pos": (7, 3), "bond": (7, 7)}
    padded = flow.sample(keys, wide, nn.functional.pad(mask, (0, 2)), **settings).x
    for name, part in PARTS.items():
        assert torch.allclose(turned[name], x[name][order], atol=1e-12)
        cut = padded[name][:, :5, :5] if name == "bond" else padded[name][:, :5]
        assert torch.allclose(cut, x[name], atol=1e-12)
        assert torch.allclose(part.space.project(x[name], mask), x[name], atol=1e-12)


def test_times_of_training_lie_on_the_grid_in_order(rng) -> None:
    grid = grids.cosine(8)
    t, u, s = ctm_times(torch.rand(4000, 3, generator=rng, dtype=DOUBLE), grid, to_data=0.4)
    index = {round(v, 12): k for k, v in enumerate(grid)}
    i, j, k = ([index[round(v, 12)] for v in times.tolist()] for times in (t, u, s))
    assert all(b == a + 1 and c >= b for a, b, c in zip(i, j, k, strict=True))
    assert {(a, c) for a, c in zip(i, k, strict=True)} == {
        (a, c) for a in range(8) for c in range(a + 1, 9)
    }
    # the last by choice, or by lot among what is left
    wanted = 0.4 + 0.6 * sum(1 / (8 - a) for a in range(8)) / 8
    assert (s == 1.0).double().mean().item() == pytest.approx(wanted, abs=0.04)
    with pytest.raises(UserError, match="probability"):
        ctm_times(torch.rand(2, 3, generator=rng), grid, to_data=1.5)


class Ddim:
    """The jump model of DDIM on a grid for Gaussian data: means of D along the grid's stops.

    Independent of the code under test: affine maps composed one step after the other.
    """

    def __init__(self, law: Gaussian, path: Path, grid: grids.Grid) -> None:
        self.law, self.path, self.grid = law, path, grid

    def __call__(self, x, t, s, mask=None, cond=None):
        out = torch.empty_like(x)
        for i, (start, goal) in enumerate(zip(t.tolist(), s.tolist(), strict=True)):
            stops = [v for v in self.grid if start - 1e-9 <= v <= goal + 1e-9]
            y = x[i : i + 1]
            for a, b in zip(stops[:-1], stops[1:], strict=True):
                clean = self.law.denoised(y, self.path.beta(a), self.path.sigma(a))
                sigma = 0.0 if b == 1.0 else self.path.sigma(b)
                noise = (y - self.path.beta(a) * clean) / self.path.sigma(a)
                y = self.path.beta(b) * clean + sigma * noise
            keep = (0.0 if goal == 1.0 else self.path.sigma(goal)) / self.path.sigma(start)
            if len(stops) == 1:
                out[i] = self.law.denoised(y, self.path.beta(start), self.path.sigma(start))[0]
            else:
                weight = self.path.beta(goal) - keep * self.path.beta(start)
                out[i] = (y[0] - keep * x[i]) / weight
        return out


@names
def test_ddim_on_the_grid_is_consistent_with_itself(path: Path, rng) -> None:
    """Zero loss for the map made of the teacher's own steps, and its one jump is DDIM's run."""
    law, grid = some_gaussian(rng, 2), grids.uniform(5)
    process = Process(Part(Flat(), path))
    flow, keys = FlowMap(Ddim(law, path, grid), process), Keys.for_samples(0, range(60))
    t, u, s = ctm_times(torch.rand(60, 3, generator=rng, dtype=DOUBLE), grid)
    bridge = process.bridge(torch.randn(60, 2, generator=rng, dtype=DOUBLE), t, keys)
    found = ctm_loss(flow, law.on(path), bridge, u, s, matching=0.0)
    assert found.total.item() < 1e-16 and found.matching.item() == 0.0
    once = flow.sample(keys, (2,), steps=1, dtype=DOUBLE).x
    many = sample(law.on(path), process, keys, (2,), solver="ddim", grid=grid, dtype=DOUBLE).x
    assert torch.allclose(once, many, atol=1e-9)  # type: ignore[arg-type]


def test_the_exact_map_becomes_consistent_as_the_teachers_legs_shrink(rng) -> None:
    """The error of a leg's mean is of first order in its length, and substeps shorten it."""
    path, law = Path.linear(), Gaussian(0.5, 0.4)
    process, flow = Process(Part(Flat(), path)), exact_map(law, path)
    t = torch.rand(400, generator=rng, dtype=DOUBLE) * 0.6 + 0.05
    s = torch.full_like(t, 0.9)
    bridge = process.bridge(
        law.sample((400, 1), rng), t, Keys.for_samples(0, range(400))
    )
    def error(length: float, substeps: int) -> float:
        found = ctm_loss(flow, law.on(path), bridge, t + length, s, substeps=substeps, matching=0.0)
        return found.total.sqrt().item()

    # a leg's weight in the mean is its length, so the loss's root falls with the square
    assert math.log2(error(0.08, 1) / error(0.04, 1)) == pytest.approx(2.0, abs=0.3)
    assert error(0.08, 4) / error(0.08, 1) == pytest.approx(0.25, abs=0.06)


def test_the_reference_gets_no_gradient_and_the_matching_loss_is_the_ordinary_one(rng) -> None:
    process = Process({"pos": PARTS["pos"]})
    keys, mask = Keys.for_samples(0, range(5)), torch.arange(4) < torch.tensor([[2], [3], [4], [4],
                                                                             [2]])
    like = torch.empty(5, 4, 3, dtype=DOUBLE)
    x = {"pos": Centred().noise(keys, "x", 0, like, mask)}
    t, u, s = ctm_times(torch.rand(5, 3, generator=rng, dtype=DOUBLE), grids.uniform(4))
    net, other = Pull(), Pull()
    flow, reference = FlowMap(net, process), FlowMap(other, process)
    bridge = process.bridge(x, t, keys, mask)
    found = ctm_loss(flow, reference, bridge, u, s, reference=reference)
    found.total.backward()
    assert net.strength.grad is not None and other.strength.grad is None
    direct = matching_loss(net(bridge.x_t, t, t), process, bridge).total
    assert found.matching.item() == pytest.approx(direct.item())
    assert found.total.item() == pytest.approx((found.consistency + found.matching).item())


def test_mistakes_are_named() -> None:
    path = Path.linear()
    with pytest.raises(UserError, match="no scores to distil"):
        FlowMap(lambda *_, **__: None, Process(Part(Tokens(3), Masking())))  # type: ignore[arg-type]
    flow, x = exact_map(Gaussian(0.0, 1.0), path), torch.zeros(2, 1)
    for t, s in ((0.5, 0.4), (1.0, 1.0), (-0.1, 0.5)):
        with pytest.raises(UserError, match="jumps from t in"):
            flow.jump(x, t, s)
    with pytest.raises(UserError, match="only a Gaussian"):
        OracleMap(Mixture([1.0, 1.0], [0.0, 1.0], [1.0, 1.0]).on(path))
    bridge = flow.process.bridge(x, torch.full((2,), 0.5), Keys.for_samples(0, range(2)))
    half, late = torch.full((2,), 0.5), torch.full((2,), 0.8)
    with pytest.raises(UserError, match="times t < u <= s"):
        ctm_loss(flow, flow, bridge, half, late)
    with pytest.raises(UserError, match="substeps"):
        ctm_loss(flow, flow, bridge, late, late, substeps=0)


class Plane(nn.Module):
    """A jump model of the plane, preconditioned for data of unit scale."""

    def __init__(self, path: Path, width: int) -> None:
        super().__init__()
        self.path = path
        self.layers = nn.Sequential(
            nn.Linear(14, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2),
        )

    def forward(self, x, t, s, mask=None, cond=None):
        beta, sigma = self.path.beta(t).to(x)[:, None], self.path.sigma(t).to(x)[:, None]
        scale = (beta.square() + sigma.square()).sqrt()
        turns = torch.stack((t, s), 1)[:, :, None] * math.pi * torch.tensor([0.5, 1.0, 2.0])
        features = torch.cat((2 * x / scale, turns.sin().flatten(1), turns.cos().flatten(1)), 1)
        return beta / scale.square() * x + sigma / scale * self.layers(features)


def test_a_learned_map_jumps_once_as_well_as_its_teacher_walks_and_its_jumps_compose() -> None:
    """Three modes of the plane; the teacher is exact, so its 20 DDIM steps err by their length.

    The bound is twice the teacher's distance to the data, which other samples of the data (0.018)
    undercut fourfold: it cannot be met by noise of the estimate.
    """
    path, updates, size, stops, leg = Path.linear(), 600, 192, 20, 4
    data = Mixture(
        [0.5, 0.3, 0.2], [[1.5, 0.0], [-0.75, 1.3], [-0.75, -1.3]], [[0.15, 0.15]] * 3
    )
    process, teacher = Process(Part(Flat(), path)), data.on(path)
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Plane(path, 48)
    average = copy.deepcopy(network)
    flow, smooth = FlowMap(network, process), FlowMap(average, process)
    ema = Ema(network.parameters(), 0.97)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2, betas=(0.9, 0.99))
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for n in range(updates):
        keys = Keys.for_samples(2, range(n * size, (n + 1) * size))
        t, _, s = ctm_times(keys.uniform("times", 0, (3,)), grids.uniform(stops))
        u = torch.minimum(t + leg / stops, s)  # the teacher walks four stops, the map the rest
        bridge = process.bridge(data.sample((size, 2), generator).float(), t, keys)
        loss = ctm_loss(flow, teacher, bridge, u, s, reference=smooth, substeps=leg, matching=0.0)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        fall.step()
        ema.update(network.parameters())
        ema.copy_to(average.parameters())
    truth, keys = data.sample((20000, 2), generator), Keys.for_samples(9, range(20000))
    with torch.no_grad():
        once = smooth.sample(keys, (2,), steps=1).x
    walked = sample(teacher, process, keys, (2,), solver="ddim", steps=stops).x
    far, near = (w2_samples(x, truth, keys[:1]).value for x in (once, walked))  # type: ignore[arg-type]
    assert 0.05 < near < 0.1 and far < 2 * near, (far, near)
    # jumps compose: against a map that stays where it is, which would compose as well
    x = process.prior(keys[:2000], torch.empty(2000, 2))
    with torch.no_grad():
        direct = smooth.jump(x, 0.0, 1.0)
        halfway = smooth.jump(smooth.jump(x, 0.0, 0.5), 0.5, 1.0)
    assert isinstance(direct, Tensor) and isinstance(halfway, Tensor)
    assert (halfway - direct).norm() < 0.15 * (direct - x).norm()  # type: ignore[operator]
