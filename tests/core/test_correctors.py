"""Langevin rows: stationary laws in closed form, and where they stand among a solver's rows."""

from __future__ import annotations

import math
import os
import random
from functools import partial

import pytest
import torch

from driftworks.core import grids, solvers
from driftworks.core.correctors import CORRECTORS, corrected, langevin, leimkuhler_matthews
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, Mixture, table_law
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.sample import sample
from driftworks.core.spaces import Flat
from driftworks.core.tables import Table
from driftworks.errors import UserError

SEED = int.from_bytes(os.urandom(4))
RANDOM = random.Random(SEED)
LINEAR = Path.linear()


def variances(table, variance, before):
    """The variances after each row for data N(0, variance), from a state of variance before."""
    laws = table_law(table, Gaussian(0.0, variance).on(LINEAR), Gaussian([0.0], [[before]]))
    return [law.matrix(1).item() for law in laws]


def random_setting():
    t, ratio, variance = (RANDOM.uniform(*span) for span in ((0.1, 0.9), (0.1, 0.9), (0.0, 2.0)))
    print(f"seed {SEED}: t {t}, ratio {ratio}, variance {variance}")
    return t, ratio, variance


@pytest.mark.parametrize(("ratio", "golden"), [(0.16, 1.0263), (0.2, 1.0417)])
def test_langevin_has_its_golden_stationary_variance_on_pure_noise(ratio, golden):
    sigma = LINEAR.sigma(0.3)
    last = variances(langevin(LINEAR, 0.3, 150, ratio), 0.0, sigma**2)[-1]
    assert last / sigma**2 == pytest.approx(golden, abs=6e-5)
    assert last / sigma**2 == pytest.approx(1.0 / (1.0 - ratio**2), rel=1e-6)


def test_langevin_has_its_stationary_variance_on_any_gaussian():
    t, ratio, variance = random_setting()
    exact = LINEAR.beta(t) ** 2 * variance + LINEAR.sigma(t) ** 2
    d = 2.0 * (ratio * LINEAR.sigma(t)) ** 2
    wanted = exact / (1.0 - d / (2.0 * exact))
    table = langevin(LINEAR, t, 5, ratio)
    assert variances(table, variance, wanted) == pytest.approx([wanted] * 5, rel=1e-9)
    before = variances(table, variance, 3.0 * wanted)
    assert abs(before[-1] - wanted) <= abs(before[0] - wanted) + 1e-12 < 2.0 * wanted


def test_leimkuhler_matthews_is_exact_on_gaussians_and_langevin_is_not():
    # pure noise of variance 1 and step 1/2, where plain Langevin has variance 4/3
    path, t, ratio = Path.edm(2.0), 0.5, 0.5
    oracle = Gaussian(0.0, 0.0).on(path)
    start = Gaussian([0.0], [[5.0]])
    shared = table_law(leimkuhler_matthews(path, t, 60, ratio), oracle, start)[-1]
    plain = table_law(langevin(path, t, 60, ratio), oracle, start)[-1]
    assert shared.matrix(1).item() == pytest.approx(1.0, rel=1e-9)
    assert plain.matrix(1).item() == pytest.approx(4.0 / 3.0, rel=1e-9)


def test_leimkuhler_matthews_follows_the_recursion_of_its_averaged_noise():
    t, ratio, variance = random_setting()
    exact = LINEAR.beta(t) ** 2 * variance + LINEAR.sigma(t) ** 2
    d = 2.0 * (ratio * LINEAR.sigma(t)) ** 2
    found = variances(leimkuhler_matthews(LINEAR, t, 12, ratio), variance, exact)
    # x = y + sqrt(d / 2) R with R the newest noise, independent of y; first a quarter of a step
    y = (1.0 - 0.25 * d / exact) ** 2 * exact
    assert found[0] == pytest.approx(exact + d**2 / (16.0 * exact), rel=1e-12)
    for value in found:
        assert value == pytest.approx(y + 0.5 * d, rel=1e-10)
        y = (1.0 - d / exact) ** 2 * y + (2.0 - d / exact) ** 2 * 0.5 * d


@pytest.mark.parametrize("name", CORRECTORS)
def test_samples_at_one_noise_level_have_the_exact_law(name):
    path, t, n = Path.vp(), 0.8, 60_000
    oracle = Gaussian(0.6, 0.25).on(path)
    table = CORRECTORS[name](path, t, 5, 0.6)
    keys = Keys.for_samples(3, range(n))
    x = keys.normal("start", 0, (1,), torch.float64) * 2.0
    x = sample(
        oracle, Process(Part(Flat(), path)), keys, (1,), solver=lambda p, g: table,
        grid=(t, 1.0), initial=x, dtype=torch.float64,
    ).x
    law = table_law(table, oracle, Gaussian([0.0], [[4.0]]))[-1]
    mean, variance = law.mean.item(), law.matrix(1).item()
    assert abs(x.mean().item() - mean) < 4 * math.sqrt(variance / n)
    assert abs(x.var().item() - variance) < 4 * variance * math.sqrt(2 / n)


def follow(table, x, model, noise):
    """The table carried out literally, with given noise a row; the states after the rows."""
    states, answers, result = [x], [], []
    for k, t in enumerate(table.times):
        answers.append(model(states[-1], t))
        new = sum(w * states[k - j] for j, w in enumerate(table.a[k]) if w)
        new = new + sum(w * answers[k - j] for j, w in enumerate(table.b[k]) if w)
        new = new + table.c[k] * noise[k]
        if table.d and table.d[k]:
            new = new + table.d[k] * noise[k - 1]
        states.append(new)
        result.append(new)
    return result


@pytest.mark.parametrize("corrector", CORRECTORS)
@pytest.mark.parametrize(
    ("predictor", "stages"),
    [("dpmpp2", 1), ("dpmpp3", 1), ("abm3", 1), ("ddpm", 1), ("heun", 2), ("rk4", 4)],
)
def test_correctors_stand_after_whole_steps_and_histories_keep_their_meaning(
    predictor, stages, corrector
):
    path, rows, ratio = Path.cosine(), 2, 0.3
    model = Mixture([0.3, 0.7], [-2.0, 1.5], [0.09, 0.25]).on(path)
    grid = (0.0, 0.2, 0.45, 0.6, 0.8, 1.0)
    plain = solvers.solver(predictor)(path, grid)
    build = solvers.solver(
        "predictor_corrector", predictor=predictor, corrector=corrector, steps=rows, ratio=ratio
    )
    table = build(path, grid)
    assert len(table) == len(plain) + rows * (len(grid) - 2)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(len(table), 6, 1, generator=generator, dtype=torch.float64)
    x = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    found = follow(table, x, model.denoised, noise)

    # by hand: the steps of the plain table, with Langevin moves in between
    states, answers, at = [x], [], 0
    for k, (t, u) in enumerate(zip(plain.times, plain.ends, strict=True)):
        answers.append(model.denoised(states[-1], t))
        new = sum(w * states[k - j] for j, w in enumerate(plain.a[k]))
        new = new + sum(w * answers[k - j] for j, w in enumerate(plain.b[k]))
        new = new + plain.c[k] * noise[at]
        at += 1
        if (k + 1) % stages == 0 and u < 1.0:
            d = 2.0 * (ratio * path.sigma(u)) ** 2
            for j in range(rows):
                z, score = noise[at], model.score(new, u)
                if corrector == "langevin":
                    new = new + d * score + math.sqrt(2.0 * d) * z
                elif j == 0:
                    new = new + 0.25 * d * score + math.sqrt(0.5 * d) * z
                else:
                    new = new + d * score + math.sqrt(0.5 * d) * (z + noise[at - 1])
                at += 1
        states.append(new)
    torch.testing.assert_close(found[-1], states[-1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "dpmpp2", "heun"])
def test_correctors_never_move_the_clock(predictor):
    grid = grids.uniform(6)
    table = solvers.predictor_corrector(LINEAR, grid, predictor, "leimkuhler_matthews", 3)
    plain = solvers.solver(predictor)(LINEAR, grid)
    moving = [(t, u) for t, u in zip(table.times, table.ends, strict=True) if t < u]
    assert moving == [(t, u) for t, u in zip(plain.times, plain.ends, strict=True) if t < u]
    assert list(table.times[1:]) == list(table.ends[:-1]) == sorted(table.ends[:-1])
    assert table.order == 0 and table.stochastic and table.d


def test_there_is_nothing_to_correct_at_the_data_and_everywhere_else_there_is():
    one = solvers.predictor_corrector(LINEAR, (0.0, 1.0))
    assert len(one) == 1 and one.order == 1
    short = solvers.predictor_corrector(LINEAR, (0.0, 0.5, 0.9), "ddim", "langevin", 2)
    assert short.times == (0.0, 0.5, 0.5, 0.5, 0.9, 0.9) and short.ends[-1] == 0.9
    path = Path.ve()
    close = langevin(path, 1.0 - 1e-12)
    assert close.c[0] == pytest.approx(2 * 0.16 * 0.01) and close.a[0][0] == 1 - 2 * 0.16**2


def test_correctors_bring_a_coarse_predictor_nearer_to_the_law():
    law, path = Gaussian(1.0, 0.25), Path.vp()
    start = Gaussian([path.beta(0.0)], [[path.beta(0.0) ** 2 * 0.25 + path.sigma(0.0) ** 2]])
    grid = grids.karras(path, 12)

    def error(build):
        return abs(table_law(build(path, grid), law.on(path), start)[-1].matrix(1).item() - 0.25)

    plain = error(solvers.reverse_diffusion)
    build = partial(solvers.predictor_corrector, corrector="leimkuhler_matthews", ratio=0.5)
    errors = [error(partial(build, steps=n)) for n in (2, 8, 32)]
    assert plain > errors[0] > errors[1] > errors[2]


def test_a_table_that_never_stops_reaching_back_has_no_place_for_a_corrector():
    times, a, b = (0.1, 0.2, 0.3, 0.4), ((1.0,), *[(0.0, 1.0)] * 3), ((0.1,), *[(0.2,)] * 3)
    leapfrog = partial(Table, "leapfrog", 2, times, a=a, b=b, c=(0.0,) * 4)
    only_at_the_end = leapfrog(ends=(0.2, 0.3, 0.4, 0.5))
    assert len(corrected(only_at_the_end, LINEAR, langevin)) == 5
    whole = leapfrog(ends=(0.2, 0.3, 0.4, 1.0))
    with pytest.raises(UserError, match="leapfrog has no row after which a corrector could act"):
        corrected(whole, LINEAR, langevin)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: langevin(LINEAR, 0.5, 0), "at least 1, got 0"),
        (lambda: langevin(LINEAR, 0.5, 1, 1.0), "ratios between 0 and 1, got 1.0"),
        (lambda: leimkuhler_matthews(LINEAR, 1.0), "needs noise: a time in"),
        (
            lambda: solvers.predictor_corrector(LINEAR, (0.0, 1.0), corrector="mala"),
            "unknown corrector 'mala'; choose one of langevin, leimkuhler_matthews",
        ),
        (lambda: solvers.predictor_corrector(LINEAR, (0.0, 1.0), "pndm"), "unknown solver 'pndm'"),
    ],
)
def test_mistakes_name_the_choices(build, message):
    with pytest.raises(UserError, match=message):
        build()
