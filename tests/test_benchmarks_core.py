"""The benchmarks of the core: the reference peer is the published method, calls are counted."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from driftworks.core import grids
from driftworks.core.laws import Gaussian, table_law, w2
from driftworks.core.paths import Path
from driftworks.core.solvers import SOLVERS, solver


@pytest.fixture
def benchmark(pytestconfig, monkeypatch):
    """Imports a module of benchmarks/ by name, as a script run from there does."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("peers", "core_overhead", "core_quality"):
            del sys.modules[name]


def test_the_reference_peer_is_the_table_of_dpmpp2_on_the_same_noise_levels(benchmark):
    peer = benchmark("peers.kdiffusion")
    path, law = Path.edm(80.0), Gaussian([1.0, -0.5], [[1.0, 0.6], [0.6, 0.5]])
    ends = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    sigmas = peer.karras_sigmas(12, 0.002, 80.0, dtype=torch.float64)
    ends = peer.dpmpp_2m(lambda x, sigma: law.denoised(x, 1.0, sigma), ends, sigmas)
    matrix = (ends[1:] - ends[0]).mT
    found = Gaussian(ends[0], 80.0**2 * matrix @ matrix.mT)
    table = solver("dpmpp2")(path, grids.karras(path, 12, low=0.002, high=80.0))
    start = Gaussian(torch.zeros(2), 80.0**2 * torch.eye(2))
    # 1e-6: W2 of nearly equal laws is the root of a rounding
    assert w2(found, table_law(table, law.on(path), start)[-1]) < 1e-6


def test_the_denoiser_of_a_noise_network_takes_the_noise_away(benchmark):
    x, sigma = torch.ones(2, 3, 4), torch.tensor([2.0, 4.0])
    d = benchmark("peers.kdiffusion").of_noise(lambda x, sigma: 0.25 * x)(x, sigma)
    assert torch.equal(d[:, 0, 0], torch.tensor([0.5, 0.0])) and d.shape == x.shape


@pytest.mark.parametrize("name", SOLVERS)
def test_a_budget_buys_as_many_steps_as_it_pays_for(benchmark, name):
    quality = benchmark("core_quality")
    evaluations = {"heun": 2, "midpoint": 2, "predictor_corrector": 2, "rk4": 4}.get(name, 1)
    for schedule in quality._schedules():
        for budget in (5, 20):
            table = quality.affordable(name, schedule, budget)
            steps = (budget - 1) // evaluations + 1  # the last step to the data costs one
            assert len(table) == evaluations * (steps - 1) + 1 <= budget


def test_a_step_of_every_loop_costs_the_network_calls_of_its_method(benchmark):
    overhead = benchmark("core_overhead")
    draws_no_numbers = ("bare loop, euler", "driftworks", "k-diffusion DPM++2M, reference")
    for loop in overhead.contenders((4, 3, 2), 6):
        if loop.name.startswith(draws_no_numbers):  # others draw from the global generator
            before = overhead.NETWORK.calls
            loop.run()
            assert overhead.NETWORK.calls - before == 6, loop.name
        assert loop.run is not None or loop.missing
