"""Idempotent maps: the two terms against formulas, and the orthogonal projector as the optimum."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from driftworks.core import Centred, Flat, Gaussian, Keys, Part, Path, Process, Symmetric
from driftworks.core.distill import SidLoss, posterior_weight, sid_loss
from driftworks.core.laws import w2
from driftworks.core.project import IdempotentLoss, apply, idempotence_error, idempotent_loss
from driftworks.core.student import Student
from driftworks.errors import UserError

DOUBLE = torch.float64
PATH = Path.linear()
SIZE = 4


@pytest.fixture
def rng() -> Iterator[torch.Generator]:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    yield torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """x -> W x, whatever the time."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, x, t, mask=None, cond=None, previous=None):
        return x @ self.weight.T


def linear_student(weight: Tensor) -> tuple[Student, nn.Parameter]:
    model = Linear(weight)
    return Student(model, Process(Part(Flat(), PATH)), (0.0,)), model.weight


def some_projector(rng: torch.Generator, rank: int = 2) -> Tensor:
    axes = torch.linalg.qr(torch.randn(SIZE, rank, generator=rng, dtype=DOUBLE))[0]
    return axes @ axes.T


def cubature(size: int) -> Tensor:
    """Equally weighted points whose mean of any quadratic is that of N(0, I): (2 size, size)."""
    axes = math.sqrt(size) * torch.eye(size, dtype=DOUBLE)
    return torch.cat((axes, -axes))


def even_levels(path: Path, t: Tensor) -> Tensor:
    """The weight with which noise levels spread evenly over decades stand for even times."""
    return posterior_weight()(path, t) * path.sigma(t)


LEVELS = [1 - 10 ** -(0.1 + 3.9 * k / 9) for k in range(10)]


def all_terms(student: Student, weight: Tensor, onto: Tensor) -> tuple[SidLoss, IdempotentLoss]:
    """SiD's loss with the student's exact critic, and both idempotent terms, in expectation.

    Not by sampling: everything is quadratic in z and e, and the points are a cubature of both.
    """
    process, points = student.process, cubature(2 * SIZE)
    t = torch.tensor(LEVELS, dtype=DOUBLE).repeat_interleave(len(points))
    z, e = points.repeat(len(LEVELS), 1).split(SIZE, 1)
    made = student.clean(z)
    spread = (weight @ weight.T).detach()
    critic = Gaussian(torch.zeros(SIZE), 0.5 * (spread + spread.T)).on(PATH)
    teacher = Gaussian(torch.zeros(SIZE), onto).on(PATH)
    bridge = process.bridge(made, t, Keys.for_samples(0, range(len(t))), x_0=e)
    law = sid_loss(teacher, critic, process, bridge, weight=even_levels)
    return law, idempotent_loss(student, made, cubature(SIZE) @ onto)


def test_training_ends_at_an_idempotent_map_with_the_law_of_the_data(rng) -> None:
    """From a random map to f(f(z)) = f(z) within a thousandth, on data of random rank-2 support."""
    onto, start = some_projector(rng), torch.randn(SIZE, SIZE, generator=rng, dtype=DOUBLE)
    student, weight = linear_student(torch.eye(SIZE, dtype=DOUBLE) + 0.1 * start)
    optimiser = torch.optim.Adam([weight], lr=0.1, betas=(0.8, 0.99))
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 200)
    noise = torch.randn(500, SIZE, generator=rng, dtype=DOUBLE)
    assert idempotence_error(student, noise).mean() > 0.05
    for _ in range(200):
        law, both = all_terms(student, weight, onto)
        optimiser.zero_grad()
        (law.total + both.total).backward()
        optimiser.step()
        fall.step()
    assert idempotence_error(student, noise).mean() < 1e-3
    found = weight.detach()
    assert torch.allclose(found @ onto, onto, atol=1e-3)
    made = found @ found.T
    reached = Gaussian(torch.zeros(SIZE), 0.5 * (made + made.T))
    assert w2(reached, Gaussian(torch.zeros(SIZE), onto)) < 0.05 * math.sqrt(2)
    # a damaged sample comes back to the plane of the data
    damaged = noise @ onto + 0.1 * torch.randn(500, SIZE, generator=rng, dtype=DOUBLE)
    mended = apply(student, damaged)
    assert (mended - mended @ onto).norm() < 0.02 * (damaged - damaged @ onto).norm()


def test_the_orthogonal_projector_alone_fulfils_all_three_terms(rng) -> None:
    """Every term is blind to some wrong map, but each of those is seen by another term."""
    onto, identity = some_projector(rng), torch.eye(SIZE, dtype=DOUBLE)
    rest = identity - onto
    mix = torch.randn(SIZE, SIZE, generator=rng, dtype=DOUBLE)
    turn = torch.linalg.qr(mix)[0]
    wrong = {  # map, and which of (law, idempotence, reconstruction) see it
        "identity": (identity, (True, False, False)),
        "oblique projector": (onto + onto @ mix @ rest, (True, False, False)),
        "turned": (onto @ torch.linalg.qr(onto @ mix @ onto + rest)[0], (False, True, True)),
        "nothing": (torch.zeros_like(onto), (True, False, True)),
        "some map": (turn, (True, True, True)),
    }
    student, weight = linear_student(onto)
    law, both = all_terms(student, weight, onto)
    assert law.gap["x"] < 1e-20 and both.total.item() < 1e-20
    (slope,) = torch.autograd.grad(law.total + both.total, weight)
    assert slope.abs().max() < 1e-9
    for name, (value, seen) in wrong.items():
        law, both = all_terms(*linear_student(value), onto)
        terms = law.gap["x"], both.idempotence, both.reconstruction
        assert tuple(v.item() > 1e-6 for v in terms) == seen, (name, terms)


class Bend(nn.Module):
    """Some smooth map of clouds and pairs that sees a condition, and nothing of masked entries."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(0.6, dtype=DOUBLE))

    def forward(self, x, t, mask=None, cond=None, previous=None):
        shift = 0.0 if cond is None else cond
        return {
            name: torch.tanh(self.by * v + (v != 0) * _like(shift, v)) for name, v in x.items()
        }


def _like(shift, v):
    return shift if isinstance(shift, float) else shift.view(-1, *(1,) * (v.ndim - 1))


PARTS = {"pos": Part(Centred(), PATH), "bond": Part(Symmetric(), Path.vp())}


def cloud(ids: list[int], nodes: int, stream: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Samples whose size, content and condition depend on their number alone."""
    keys = Keys.for_samples(5, ids)
    mask = torch.tensor([[k < 2 + i for k in range(nodes)] for i in ids])
    shapes = {"pos": (nodes, 3), "bond": (nodes, nodes)}
    x = {
        name: part.space.noise(
            keys, f"{stream}/{name}", 0, torch.empty(len(ids), *shapes[name], dtype=DOUBLE), mask
        )
        for name, part in PARTS.items()
    }
    return x, mask, keys.uniform(stream, 0, dtype=DOUBLE)


def terms_of(ids: list[int], nodes: int) -> tuple[float, float]:
    student = Student(Bend(), Process(PARTS), (0.2,))
    made, mask, cond = cloud(ids, nodes, "made")
    data, data_mask, data_cond = cloud(ids[::-1], nodes, "data")
    loss = idempotent_loss(student, made, data, mask, cond, data_mask, data_cond)
    assert loss.total.item() == pytest.approx((loss.idempotence + loss.reconstruction).item())
    return loss.idempotence.item(), loss.reconstruction.item()


def test_padding_order_and_company_never_change_the_terms() -> None:
    plain = terms_of([0, 1, 2, 3], 5)
    assert terms_of([0, 1, 2, 3], 8) == pytest.approx(plain, rel=1e-10)
    assert terms_of([2, 0, 3, 1], 5) == pytest.approx(plain, rel=1e-10)
    alone = [terms_of([i], 5) for i in range(4)]
    assert [sum(v) / 4 for v in zip(*alone, strict=True)] == pytest.approx(plain, rel=1e-10)


def test_both_terms_are_their_formulas_and_the_target_gets_no_gradient() -> None:
    model = Bend()
    student = Student(model, Process(PARTS), (0.2,))
    (noise, mask, cond), (data, data_mask, data_cond) = (
        cloud([0, 1, 2], 4, s) for s in ("made", "data")
    )
    made = student.clean(noise, mask, cond)
    loss = idempotent_loss(student, made, data, mask, cond, data_mask, data_cond)

    def mean_square(x, y, own):
        there = {name: part.space.entry_mask(own, x[name]) for name, part in PARTS.items()}
        each = [
            ((x[name] - y[name]).square() * there[name]).flatten(1).sum(1)
            / there[name].expand_as(x[name]).flatten(1).sum(1)
            for name in PARTS
        ]
        return torch.stack(each).sum(0).mean()

    still = {name: v.detach() for name, v in made.items()}
    kept = mean_square(student.clean(still, mask, cond), still, mask)
    told = mean_square(student.clean(data, data_mask, data_cond), data, data_mask)
    assert loss.idempotence.item() == pytest.approx(kept.item())
    assert loss.reconstruction.item() == pytest.approx(told.item())
    for mine, wanted in ((loss.idempotence, kept), (loss.reconstruction, told)):
        found, exact = (torch.autograd.grad(v, model.by, retain_graph=True)[0]
                        for v in (mine, wanted))
        assert found.item() == pytest.approx(exact.item()) and found != 0.0


def test_the_error_is_relative_and_applying_repeats() -> None:
    student, _ = linear_student(0.5 * torch.eye(SIZE, dtype=DOUBLE))
    x = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    assert torch.allclose(idempotence_error(student, x), torch.full((3,), 0.5, dtype=DOUBLE))
    assert torch.allclose(apply(student, x, times=3), x / 8)  # type: ignore[arg-type]
    assert idempotence_error(student, torch.zeros_like(x)).tolist() == [0.0] * 3
    with pytest.raises(UserError, match="times must be at least 1"):
        apply(student, x, times=0)
