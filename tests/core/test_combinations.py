"""Every space on every path by every solver: it runs, and the state never leaves its space."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from driftworks.core import grids
from driftworks.core.ctmc import Masking, Replacing
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.sample import sample
from driftworks.core.solvers import SOLVERS
from driftworks.core.spaces import Centred, Flat, PairTokens, Symmetric, Tokens
from driftworks.core.warps import Power, Sine

PATHS = {
    "linear": Path.linear(),
    "cosine": Path.cosine(),
    "vp": Path.vp(),
    "subvp": Path.subvp(),
    "ve": Path.ve(),
    "edm": Path.edm(),
    "mean_reverting": Path.mean_reverting(),
    "linear, sine warp": Path.warped(Path.linear(), Sine(1.5)),
    "vp, power warp": Path.warped(Path.vp(), Power(1.5)),
}
SPACES = {"flat": Flat(), "centred": Centred(), "symmetric": Symmetric(), "layers": Symmetric()}
SHAPES = {"flat": (5, 3), "centred": (5, 3), "symmetric": (5, 5), "layers": (5, 5, 2)}
PREDICTS = ("denoised", "noise", "velocity", "score", "vparam")

#: Solvers that cannot start where beta = 0 or sigma_data is unknown say so; they start later.
LATE = 0.02


def inside(name: str, x: torch.Tensor, mask: torch.Tensor) -> None:
    """The invariants of a space, to rounding."""
    scale = float(x.abs().max()) + 1.0
    assert x.isfinite().all()
    if name in ("flat", "centred"):
        assert not x[~mask].any()
    if name == "centred":
        assert x.sum(1).abs().max() < 2e-5 * scale
    if name in ("symmetric", "layers"):
        assert (x - x.transpose(1, 2)).abs().max() < 1e-5 * scale
        assert not x.diagonal(dim1=1, dim2=2).any()
        assert not x[~(mask[:, :, None] & mask[:, None, :])].any()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("space", SPACES)
def test_every_solver_keeps_every_space_on_every_path(space, path, solver):
    keys = Keys.for_samples(5, range(4))
    mask = torch.arange(5) < torch.tensor([5, 3, 4, 2])[:, None]
    way = PATHS[path]
    predicts = PREDICTS[(len(space) + len(path) + len(solver)) % len(PREDICTS)]
    process = Process(Part(SPACES[space], way, predicts))
    oracle = Gaussian(0.0, 0.4).on(way, predicts)
    first = process.prior(keys, torch.zeros(4, *SHAPES[space]), mask)
    start = 0.0
    if way.beta(0.0) == 0.0:  # reverse transitions divide by beta; every solver starts here as well
        start = LATE
    times = tuple(start + (1.0 - start) * k / 6 for k in range(6)) + (1.0,)
    seen = []

    def check(k, t, x, prediction):
        inside(space, x, mask)
        seen.append(t)

    out = sample(
        oracle, process, keys, SHAPES[space], mask, solver=solver, grid=times, initial=first,
        callback=check,
    )
    inside(space, out.x, mask)
    assert out.finite.all() and seen == sorted(seen) and seen[-1] == 1.0
    alone = sample(
        oracle, process, keys[2:3], SHAPES[space], mask[2:3], solver=solver, grid=times,
        initial=first[2:3],
    )
    assert torch.allclose(alone.x, out.x[2:3], atol=1e-6 * (1 + float(out.x.abs().max())))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    solver=st.sampled_from(["euler", "heun", "dpmpp2", "ddpm", "euler_maruyama"]),
    path=st.sampled_from(list(PATHS)),
    steps=st.integers(1, 7),
    remask=st.floats(0, 20),
)
def test_a_product_of_all_spaces_keeps_all_its_invariants(seed, sizes, solver, path, steps, remask):
    b, n = len(sizes), 6
    mask = torch.arange(n) < torch.tensor(sizes)[:, None]
    parts = {name: Part(space, PATHS[path]) for name, space in SPACES.items()}
    parts |= {
        "types": Part(Tokens(4), Masking()), "bonds": Part(PairTokens(3), Masking()),
        "colours": Part(Tokens(3), Replacing((0.2, 0.3, 0.5))),
        "links": Part(PairTokens(2), Replacing((0.8, 0.2))),
    }
    process = Process(parts)
    shape = {"flat": (n, 3), "centred": (n, 3), "symmetric": (n, n), "layers": (n, n, 2),
             "types": (n,), "bonds": (n, n), "colours": (n,), "links": (n, n)}

    def model(x, t, mask=None, cond=None, previous=None):
        real = {name: torch.tanh(x[name]) for name in SPACES}
        logits = {
            name: torch.nn.functional.one_hot(x[name] % part.space.classes, part.space.classes)
            .float().roll(1, -1)
            for name, part in parts.items() if part.space.discrete
        }
        return real | logits

    keys = Keys.for_samples(seed, range(b))
    out = sample(model, process, keys, shape, mask, solver=solver, steps=steps, remask=remask,
                 grid=partial(grids.power, exponent=2.0))
    pairs = mask[:, :, None] & mask[:, None, :] & ~torch.eye(n, dtype=torch.bool)
    for name in SPACES:
        inside(name, out.x[name], mask)
    for name, part in parts.items():
        if part.space.discrete:
            x, where = out.x[name], pairs if isinstance(part.space, PairTokens) else mask
            assert not x[~where].any() and (x >= 0).all() and (x < part.space.classes).all()
            if where is pairs:
                assert torch.equal(x, x.transpose(1, 2))
