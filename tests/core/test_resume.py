"""Runs that stop and go on, threads that interleave, and noise that differs between entries."""

from __future__ import annotations

import io
import threading
from functools import partial

import pytest
import torch

from driftworks.core import grids
from driftworks.core.ctmc import Masking
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.sample import sample
from driftworks.core.solvers import Table, euler_maruyama
from driftworks.core.spaces import Centred, Flat, PairTokens, Symmetric, Tokens
from driftworks.errors import UserError

KEYS = Keys.for_samples(11, range(5))
MIXED = Process(
    {
        "positions": Part(Centred(), Path.linear(), "velocity"),
        "types": Part(Tokens(4), Masking()),
        "bonds": Part(PairTokens(3), Masking()),
        "couplings": Part(Symmetric(), Path.vp()),
    }
)
SHAPE = {"positions": (6, 3), "types": (6,), "bonds": (6, 6), "couplings": (6, 6)}
MASK = torch.arange(6) < torch.tensor([6, 4, 5, 6, 3])[:, None]


def remembering(x, t, mask=None, cond=None, previous=None):
    """A model that uses its previous answer, so that forgetting it shows."""
    time = t.view(-1, 1)
    before = 0.0 if previous is None else previous["positions"]
    return {
        "positions": torch.cos(x["positions"]) + 0.5 * before,
        "types": torch.stack([time.expand(x["types"].shape) * c for c in range(4)], -1),
        "bonds": torch.stack([x["bonds"] * 0.1 * c for c in range(3)], -1),
        "couplings": torch.tanh(x["couplings"]),
    }


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp3", "ddpm", "euler_maruyama"])
@pytest.mark.parametrize("stops", [(1,), (3, 4, 8)])
def test_a_run_that_was_interrupted_and_saved_ends_on_the_same_bits(solver, stops):
    draw = partial(
        sample, remembering, MIXED, KEYS, SHAPE, MASK, solver=solver, steps=10, remask=1.5
    )
    whole = draw()
    token, spent = None, 0
    for stop in (*stops, None):
        out = draw(until=stop, resume=token)
        spent += out.nfe
        if out.resume is not None:
            file = io.BytesIO()
            torch.save(out.resume, file)
            file.seek(0)
            token = torch.load(file, weights_only=True)
    assert spent == whole.nfe and out.resume is None
    for name, x in whole.x.items():
        assert torch.equal(out.x[name], x), name


def test_a_sample_resumes_on_its_own_as_it_would_in_the_batch():
    draw = partial(sample, remembering, MIXED, solver="dpmpp2", steps=8)
    whole = draw(KEYS, SHAPE, MASK).x
    alone = KEYS[2:3]
    token = draw(alone, SHAPE, MASK[2:3], until=5).resume
    rest = draw(alone, SHAPE, MASK[2:3], resume=token).x
    for name, x in whole.items():
        assert torch.allclose(rest[name].float(), x[2:3].float(), atol=1e-6), name


def test_a_token_of_another_run_is_refused():
    draw = partial(sample, remembering, MIXED, KEYS, SHAPE, MASK)
    token = draw(steps=6, until=2).resume
    with pytest.raises(UserError, match="another grid or solver"):
        draw(steps=7, resume=token)
    with pytest.raises(UserError, match="belongs to a run with"):
        draw(steps=6, stream="other", resume=token)
    with pytest.raises(UserError, match="must be what Samples.resume held"):
        draw(steps=6, resume={"row": 2})
    with pytest.raises(UserError, match=r"until must lie in 2\.\.6"):
        draw(steps=6, resume=token, until=1)
    other = {name: (7,) * len(shape) for name, shape in SHAPE.items()} | {"positions": (7, 3)}
    with pytest.raises(UserError, match="another shape"):
        sample(remembering, MIXED, KEYS, other, steps=6, resume=token)


def test_two_threads_that_interleave_draw_what_each_draws_alone():
    processes = {
        "dpmpp2": (Process(Part(Flat(), Path.vp())), (7, 3)),
        "ddpm": (Process(Part(Centred(), Path.cosine())), (9, 3)),
    }
    turn = threading.Barrier(2)

    def draw(solver, wait):
        process, shape = processes[solver]

        def model(x, t, mask=None, cond=None, previous=None):
            if wait:
                turn.wait(timeout=20)  # every evaluation waits for the other thread's
            return torch.sin(x) * t.view(-1, 1, 1)

        return sample(model, process, KEYS, shape, solver=solver, steps=12).x

    alone = {solver: draw(solver, False) for solver in processes}
    together: dict[str, torch.Tensor] = {}
    threads = [
        threading.Thread(target=lambda s=s: together.update({s: draw(s, True)})) for s in processes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert together.keys() == alone.keys()
    for solver, x in alone.items():
        assert torch.equal(together[solver], x)


def test_noise_per_entry_is_the_ode_where_it_is_zero_and_the_sde_where_it_is_one():
    process = Process(Part(Flat(), Path.linear()))

    def model(x, t, mask=None, cond=None, previous=None):  # no entry sees another one
        return torch.tanh(x)

    level = torch.tensor([0.0, 1.0, 0.0, 1.0])[None, :, None]
    draw = partial(sample, model, process, KEYS, (4, 3), steps=9)
    mixed = draw(solver=partial(euler_maruyama, noise=level)).x
    still = draw(solver=partial(euler_maruyama, noise=0.0)).x
    moving = draw(solver=partial(euler_maruyama, noise=1.0)).x
    assert torch.allclose(mixed[:, [0, 2]], still[:, [0, 2]], atol=1e-6)
    assert torch.allclose(mixed[:, [1, 3]], moving[:, [1, 3]], atol=1e-6)
    assert (still - moving).abs().max() > 0.1


def test_noise_per_entry_keeps_the_law_of_a_centred_cloud():
    """Each point its own noise level; the exact law of the data must come out all the same."""
    path, many = Path.vp(), Keys.for_samples(5, range(4000))
    oracle = Gaussian(0.0, 0.25).on(path)
    process = Process(Part(Centred(), path))
    level = torch.tensor([0.0, 0.5, 4.0])[None, :, None]
    out = sample(
        oracle, process, many, (3, 2), dtype=torch.float64, grid=partial(grids.karras, path),
        steps=200, solver=partial(euler_maruyama, noise=level),
    )
    assert out.x.sum(1).abs().max() < 1e-9
    covariance = torch.einsum("bid,bjd->ij", out.x, out.x) / (2 * len(many))
    wanted = 0.25 * (torch.eye(3, dtype=torch.float64) - 1 / 3)
    # 8,000 draws of an entry: a standard error of .25 * sqrt(2 / 8000) = .004; steps bias by less
    assert (covariance - wanted).abs().max() < 0.016, covariance


def test_noise_per_entry_of_a_wrong_shape_is_refused():
    process = Process(Part(Flat(), Path.linear()))
    draw = partial(sample, lambda x, t, **_: x, process, KEYS, (4, 3), steps=3)
    with pytest.raises(UserError, match="noise per entry"):
        draw(solver=partial(euler_maruyama, noise=torch.ones(4, 3)))
    with pytest.raises(UserError, match="noise per entry"):
        draw(solver=partial(euler_maruyama, noise=torch.ones(1, 5)))


def test_earlier_noise_enters_the_next_row():
    table = Table(
        "twice", 1, (0.0, 0.5), (0.5, 1.0), ((1.0,), (1.0,)), ((0.0,), (0.0,)), (1.0, 2.0),
        d=(0.0, 3.0),
    )
    process = Process(Part(Flat(), Path.ve()))
    out = sample(
        lambda x, t, **_: x, process, KEYS, (4,), solver=lambda path, grid: table, steps=2,
        initial=torch.zeros(5, 4),
    )
    first, second = (KEYS.normal("sample/x", k, (4,)) for k in range(2))
    assert torch.allclose(out.x, first + 2.0 * second + 3.0 * first, atol=1e-6)
