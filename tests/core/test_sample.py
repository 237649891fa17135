"""The loop: what a sample may depend on, what is held, what happens when a sample blows up."""

from __future__ import annotations

import math
import sys
import warnings
from functools import partial

import pytest
import torch

from driftworks.core import grids, solvers, weigh
from driftworks.core.ctmc import Masking
from driftworks.core.guide import cfg
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian, table_law
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.sample import sample
from driftworks.core.spaces import Centred, Flat, PairTokens, Symmetric, Tokens
from driftworks.errors import UserError

KEYS = Keys.for_samples(7, range(6))
PLAIN = Process(Part(Flat(), Path.linear()))


def halve(x, t, mask=None, cond=None, previous=None):
    return x * 0.5


MOLECULE = Process(
    {
        "positions": Part(Centred(), Path.linear()),
        "types": Part(Tokens(4), Masking()),
        "bonds": Part(PairTokens(3), Masking(lambda t: t**2)),
        "couplings": Part(Symmetric(), Path.cosine()),
    }
)


def molecule_shape(n):
    return {"positions": (n, 3), "types": (n,), "bonds": (n, n), "couplings": (n, n)}


def entrywise(x, t, mask=None, cond=None, previous=None):
    """A model of all parts of MOLECULE in which no entry sees another one."""
    time = t.view(-1, 1)
    return {
        "positions": x["positions"] * 0.5 + time[..., None],
        "types": torch.stack([time.expand(x["types"].shape) * c for c in range(4)], -1),
        "bonds": torch.stack([x["bonds"] * 0.1 * c for c in range(3)], -1),
        "couplings": x["couplings"] * 0.25 + 0.5,
    }


def test_a_plain_tensor_process_needs_no_ceremony():
    out = sample(halve, PLAIN, KEYS, (5, 3))
    assert out.x.shape == (6, 5, 3) and out.x.dtype == torch.float32
    assert out.nfe == 50 and out.finite.all()
    like = torch.zeros(6, 5, 3, dtype=torch.float64)
    assert sample(halve, PLAIN, KEYS, like).x.dtype == torch.float64


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp3", "ddpm", "euler_maruyama"])
def test_a_sample_never_depends_on_its_batch_or_on_the_order(solver):
    draw = partial(sample, entrywise, MOLECULE, solver=solver, steps=7, remask=2.0)
    sizes = torch.tensor([5, 3, 4, 5, 2, 5])
    mask = torch.arange(5) < sizes[:, None]
    whole = draw(KEYS, molecule_shape(5), mask).x
    order = torch.tensor([4, 1, 3])
    part = draw(KEYS[order], molecule_shape(5), mask[order]).x
    for name in whole:
        assert torch.equal(part[name], whole[name][order]), name


@pytest.mark.parametrize("solver", ["dpmpp2", "ddpm"])
def test_padding_never_changes_a_sample(solver):
    draw = partial(sample, entrywise, MOLECULE, solver=solver, steps=7, remask=2.0)
    sizes = torch.tensor([5, 3, 4, 5, 2, 5])
    tight = draw(KEYS, molecule_shape(5), torch.arange(5) < sizes[:, None]).x
    mask = torch.arange(9) < sizes[:, None]
    loose = draw(KEYS, molecule_shape(9), mask).x
    for name, x in tight.items():
        inside = loose[name][:, :5, :5] if name in ("bonds", "couplings") else loose[name][:, :5]
        if x.is_floating_point():  # the centre's sum may round differently with more zeros
            assert torch.allclose(inside, x, atol=1e-6), name
        else:
            assert torch.equal(inside, x), name
    pairs = mask[:, :, None] & mask[:, None, :]
    assert not loose["positions"][~mask].any() and not loose["types"][~mask].any()
    assert not loose["bonds"][~pairs].any() and not loose["couplings"][~pairs].any()


def test_noise_drawn_ahead_is_the_noise_of_each_row(monkeypatch):
    draw = partial(sample, entrywise, MOLECULE, KEYS, molecule_shape(4), solver="ddpm", steps=9)
    ahead = draw(remask=3.0).x
    monkeypatch.setattr(sys.modules["driftworks.core.movers"], "_STRETCH", 1)
    one_by_one = draw(remask=3.0).x
    assert all(torch.equal(ahead[name], one_by_one[name]) for name in ahead)


def test_states_stay_in_their_spaces_and_no_mask_token_is_left():
    mask = torch.arange(6) < torch.tensor([6, 5, 4, 3, 2, 6])[:, None]

    def check(k, t, state, prediction):
        assert state["positions"].sum(1).abs().max() < 1e-5
        assert torch.equal(state["bonds"], state["bonds"].transpose(1, 2))
        assert torch.equal(state["couplings"], state["couplings"].transpose(1, 2))
        assert (state["types"][~mask] == 0).all()
        seen.append((k, t))

    seen = []
    out = sample(
        entrywise, MOLECULE, KEYS, molecule_shape(6), mask, steps=5, solver="ddpm", callback=check
    )
    assert seen == [(k, (k + 1) / 5) for k in range(5)]
    assert out.x["types"].max() < 4 and out.x["bonds"].max() < 3


@pytest.mark.parametrize("predicts", ["denoised", "noise", "velocity", "score", "vparam"])
def test_every_parametrisation_gives_the_same_samples(predicts):
    path, law = Path.vp(), Gaussian(1.0, 0.25)
    settings = {"solver": "dpmpp2", "steps": 12, "dtype": torch.float64}
    reference = sample(law.on(path), Process(Part(Flat(), path)), KEYS, (4,), **settings).x
    process = Process(Part(Flat(), path, predicts))
    out = sample(law.on(path, predicts), process, KEYS, (4,), **settings).x
    assert (out - reference).abs().max() < 1e-10


@pytest.mark.parametrize("predicts", ["velocity", "vparam"])
def test_velocities_sample_from_pure_noise_where_the_state_knows_nothing_of_the_data(predicts):
    path, law = Path.linear(), Gaussian(1.0, 0.25)
    settings = {"solver": "heun", "steps": 9, "dtype": torch.float64}
    reference = sample(law.on(path), PLAIN, KEYS, (4,), **settings).x
    process = Process(Part(Flat(), path, predicts))
    out = sample(law.on(path, predicts), process, KEYS, (4,), **settings).x
    assert (out - reference).abs().max() < 1e-10


def test_a_network_of_low_precision_leaves_the_state_in_float32():
    def coarse(x, t, mask=None, cond=None, previous=None):
        return (x * 0.5).to(torch.bfloat16)

    assert sample(coarse, PLAIN, KEYS, (4, 3), steps=4).x.dtype == torch.float32


def test_the_network_is_asked_once_a_row_and_given_its_previous_answer():
    answers, times = [], []

    def model(x, t, mask=None, cond=None, previous=None):
        assert previous is (answers[-1] if answers else None)
        assert cond == "condition" and t.shape == (6,)
        times.append(t[0].item())
        answers.append(x * 0.5)
        return answers[-1]

    out = sample(model, PLAIN, KEYS, (3,), steps=6, solver="heun", cond="condition")
    assert out.nfe == len(answers) == 11
    assert times == pytest.approx([t for k in range(5) for t in (k / 6, (k + 1) / 6)] + [5 / 6])


def test_tokens_move_with_the_clock_under_a_two_stage_solver():
    masked = []

    def watch(k, t, state, prediction):
        masked.append((state["types"] == 4).sum().item())

    keys = Keys.for_samples(0, range(400))
    sample(entrywise, MOLECULE, keys, molecule_shape(4), steps=4, solver="heun", callback=watch)
    assert masked[0] == masked[1] and masked[2] == masked[3] and masked[6] == 0
    assert abs(masked[1] / 1600 - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 1600)


def test_each_part_may_have_its_own_solver():
    out = sample(
        entrywise, MOLECULE, KEYS, molecule_shape(4), steps=5,
        solver={"positions": "ddpm", "couplings": "dpmpp2"},
    )
    one = sample(entrywise, MOLECULE, KEYS, molecule_shape(4), steps=5, solver="ddpm")
    assert torch.equal(out.x["positions"], one.x["positions"])
    assert not torch.equal(out.x["couplings"], one.x["couplings"])
    with pytest.raises(UserError, match="positions by heun, couplings by euler"):
        sample(
            entrywise, MOLECULE, KEYS, molecule_shape(4),
            solver={"positions": "heun", "couplings": "euler"},
        )


def test_the_guide_wraps_the_model_and_its_evaluations_are_counted():
    out = sample(halve, PLAIN, KEYS, (3,), steps=5, guide=partial(cfg, weight=2.0))
    assert out.nfe == 10


# known entries


def test_known_entries_follow_their_own_bridge_and_end_on_their_values():
    value = torch.tensor([[2.0, -1.0, 0.5, 7.0]]).expand(6, 4)
    known = torch.tensor([True, False, True, False]).expand(6, 4)
    noise = PLAIN.prior(KEYS, torch.zeros(6, 4, dtype=torch.float64))

    def check(k, t, state, prediction):
        bridge = t * value + (1 - t) * noise
        assert (state - bridge)[known].abs().max() < 1e-12

    settings = {"steps": 8, "callback": check, "dtype": torch.float64}
    for solver in ("euler", "ddim", "dpmpp3"):
        out = sample(halve, PLAIN, KEYS, (4,), fixed=(value, known), solver=solver, **settings)
        assert torch.equal(out.x[known], value.double()[known])


def test_known_entries_have_the_marginals_of_their_bridge_under_fresh_noise():
    keys = Keys.for_samples(1, range(20_000))
    value, known = torch.full((20_000, 2), 3.0), torch.tensor([True, False]).expand(20_000, 2)
    table = solvers.ddim(Path.linear(), grids.uniform(6), 1.0)

    def check(k, t, state, prediction):
        law = table_law(table, Gaussian(3.0, 0.0).on(Path.linear()))[k]
        mean, variance = law.mean.item(), law.matrix(1).item()
        assert mean == pytest.approx(3 * t) and variance == pytest.approx((1 - t) ** 2, abs=1e-12)
        assert (state[:, 0].mean() - mean).abs() <= 4 * math.sqrt(variance / 20_000) + 1e-6
        assert (state[:, 0].var() - variance).abs() <= 4 * variance * 0.01 + 1e-12

    sample(halve, PLAIN, keys, (2,), fixed=(value, known), solver="ddpm", steps=6, callback=check)


def test_an_entrywise_model_samples_free_entries_as_if_nothing_were_known():
    known = torch.tensor([True, False, True, False]).expand(6, 4)
    free = sample(halve, PLAIN, KEYS, (4,), solver="ddpm").x
    held = sample(halve, PLAIN, KEYS, (4,), solver="ddpm", fixed=(torch.ones(6, 4), known)).x
    assert torch.equal(held[~known], free[~known]) and (held[known] == 1).all()


def test_known_points_keep_their_frame_and_the_rest_comes_along():
    """A point cloud's law is free of translation: moving the known points moves everything."""
    process = Process(Part(Centred(), Path.linear()))
    mask = torch.arange(5) < torch.tensor([5, 4, 5, 3, 5, 5])[:, None]
    value = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(1))
    known = torch.tensor([True, True, False, False, True]).expand(6, 5)

    def check(k, t, state, prediction):
        assert (state * mask[..., None]).sum(1).abs().max() < 1e-5
        assert (prediction * mask[..., None]).sum(1).abs().max() < 1e-5

    draw = partial(
        sample, halve, process, KEYS, (5, 3), mask, solver="ddpm", steps=6, callback=check
    )
    out = draw(fixed=(value, known)).x
    assert torch.equal(out[known & mask], value[known & mask]) and not out[~mask].any()
    moved = draw(fixed=(value + 10.0, known)).x
    assert torch.allclose(moved, out + 10.0 * mask[..., None], atol=1e-4)


def test_known_tokens_hold_their_value_throughout():
    types = torch.tensor([2, 0, 1, 3]).expand(6, 4)
    known = torch.tensor([True, False, True, False]).expand(6, 4)
    bonds = torch.zeros(6, 4, 4, dtype=torch.int64)
    bonds[:, 0, 2] = bonds[:, 2, 0] = 2
    pair = torch.zeros(6, 4, 4, dtype=torch.bool)
    pair[:, 0, 2] = pair[:, 2, 0] = True

    def check(k, t, state, prediction):
        assert torch.equal(state["types"][known], types[known])
        assert (state["bonds"][pair] == 2).all()

    sample(
        entrywise, MOLECULE, KEYS, molecule_shape(4), steps=6, remask=4.0, callback=check,
        fixed={"types": (types, known), "bonds": (bonds, pair)},
    )


def test_mistakes_in_known_entries_are_refused():
    draw = partial(sample, halve, PLAIN, KEYS, (4,))
    known = torch.ones(6, 4, dtype=torch.bool)
    with pytest.raises(UserError, match="must be a pair"):
        draw(fixed={"x": torch.zeros(6, 4)})
    with pytest.raises(UserError, match="unknown parts y; the parts are x"):
        draw(fixed={"y": (torch.zeros(6, 4), known)})
    with pytest.raises(UserError, match=r"known must be bool .* \(6, 4\), got torch.bool \(4,\)"):
        draw(fixed=(torch.zeros(6, 4), known[0]))
    with pytest.raises(UserError, match="finite"):
        draw(fixed=(torch.full((6, 4), math.nan), known))
    with pytest.raises(UserError, match=r"value \(6, 5\) does not fit \(6, 4\)"):
        draw(fixed=(torch.zeros(6, 5), known))
    draw = partial(sample, entrywise, MOLECULE, KEYS, molecule_shape(4))
    with pytest.raises(UserError, match=r"tokens must lie in 0..3"):
        draw(fixed={"types": (torch.full((6, 4), 4), known)})
    lone = torch.zeros(6, 4, 4, dtype=torch.bool)
    lone[:, 0, 1] = True
    with pytest.raises(UserError, match="symmetric"):
        draw(fixed={"bonds": (torch.ones(6, 4, 4, dtype=torch.int64), lone)})


# failures


def explode(sample_id, after, value=math.nan):
    def model(x, t, mask=None, cond=None, previous=None):
        d = x * 0.5
        if t[0] >= after:
            d[sample_id, 0] = value
        return d

    return model


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp3", "ddpm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_failing_sample_is_flagged_and_frozen_and_never_touches_its_neighbours(solver, value):
    states = []

    def watch(k, t, state, prediction):
        states.append(state.clone())
        assert prediction.isfinite().all()

    healthy = sample(halve, PLAIN, KEYS, (4,), solver=solver, steps=8).x
    with pytest.warns(RuntimeWarning, match="1 of 6 samples stopped being finite"):
        out = sample(
            explode(2, 0.5, value), PLAIN, KEYS, (4,), solver=solver, steps=8, callback=watch
        )
    others = torch.tensor([0, 1, 3, 4, 5])
    assert out.finite.tolist() == [True, True, False, True, True, True]
    assert torch.equal(out.x[others], healthy[others])
    assert out.x[2].isfinite().all()
    failed_at = next(k for k in range(len(states)) if torch.equal(states[k][2], out.x[2]))
    assert all(torch.equal(s[2], out.x[2]) for s in states[failed_at:])
    assert failed_at < len(states) - 1


def test_a_failing_sample_freezes_all_its_parts():
    def model(x, t, mask=None, cond=None, previous=None):
        out = entrywise(x, t)
        if t[0] >= 0.5:
            out["types"][1, 0] = math.nan
        return out

    healthy = sample(entrywise, MOLECULE, KEYS, molecule_shape(4), steps=8).x
    with pytest.warns(RuntimeWarning):
        out = sample(model, MOLECULE, KEYS, molecule_shape(4), steps=8)
    assert out.finite.tolist() == [True, False, True, True, True, True]
    for name, x in out.x.items():
        assert torch.equal(x[out.finite], healthy[name][out.finite]), name


def test_forbidden_classes_and_rubbish_in_the_padding_are_no_failure():
    mask = torch.arange(4) < torch.tensor([4, 3, 4, 2, 4, 4])[:, None]

    def model(x, t, mask=None, cond=None, previous=None):
        out = entrywise(x, t)
        out["types"][..., 3] = -math.inf
        out["positions"] = torch.where(mask[..., None], out["positions"], math.nan)
        out["types"] = torch.where(mask[..., None], out["types"], math.nan)
        return out

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = sample(model, MOLECULE, KEYS, molecule_shape(4), mask, steps=6)
    assert out.finite.all() and out.x["types"].max() < 3 and out.x["positions"].isfinite().all()


def test_a_token_without_any_class_left_is_a_failure():
    def model(x, t, mask=None, cond=None, previous=None):
        out = entrywise(x, t)
        out["types"][3, 1] = -math.inf
        return out

    with pytest.warns(RuntimeWarning):
        out = sample(model, MOLECULE, KEYS, molecule_shape(4), steps=4)
    assert out.finite.tolist() == [True, True, True, False, True, True]


# settings


def test_a_run_can_start_from_a_given_state():
    grid = grids.uniform(10)
    states = []
    whole = sample(
        halve, PLAIN, KEYS, (4,), grid=grid, callback=lambda k, t, s, d: states.append(s)
    )
    rest = sample(halve, PLAIN, KEYS, (4,), grid=grid[6:], initial=states[5])
    assert torch.equal(rest.x, whole.x) and rest.nfe == 4


def test_another_stream_is_other_noise_from_the_same_start():
    first = sample(halve, PLAIN, KEYS, (4,), solver="ddpm")
    again = sample(halve, PLAIN, KEYS, (4,), solver="ddpm", stream="second")
    assert not torch.allclose(first.x, again.x)
    calm = [sample(halve, PLAIN, KEYS, (4,), stream=s).x for s in ("a", "b")]
    assert torch.equal(*calm)


def test_a_progress_bar_changes_nothing(capsys):
    plain = sample(halve, PLAIN, KEYS, (4,), steps=3)
    assert torch.equal(sample(halve, PLAIN, KEYS, (4,), steps=3, progress="drawing").x, plain.x)
    assert "drawing" in capsys.readouterr().out


def test_no_gradient_is_recorded():
    scale = torch.tensor(0.5, requires_grad=True)
    out = sample(lambda x, t, **_: x * scale, PLAIN, KEYS, (4,), steps=3)
    assert not out.x.requires_grad


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    sample(entrywise, MOLECULE, KEYS, molecule_shape(4), solver="ddpm", steps=3, remask=1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="unknown solver 'rk5'"):
        sample(halve, PLAIN, KEYS, (4,), solver="rk5")
    with pytest.raises(UserError, match="no solver for part 'couplings'; given for positions"):
        sample(
            entrywise, MOLECULE, KEYS, molecule_shape(4), solver={"positions": "euler"}
        )
    with pytest.raises(UserError, match="fixed must map part names"):
        sample(entrywise, MOLECULE, KEYS, molecule_shape(4), fixed=(0, 0))
    with pytest.raises(UserError, match="starts at 0.5, not at 0: give the initial state"):
        sample(halve, PLAIN, KEYS, (4,), grid=(0.5, 1.0))
    with pytest.raises(UserError, match="parts positions, types, bonds, couplings"):
        sample(entrywise, MOLECULE, KEYS, {"positions": (4, 3)})
    with pytest.raises(UserError, match="5 samples but there are 6 keys"):
        sample(halve, PLAIN, KEYS, torch.zeros(5, 3))
    with pytest.raises(UserError, match=r"initial part 'x' has shape \(6, 3\), not \(6, 4\)"):
        sample(halve, PLAIN, KEYS, (4,), initial=torch.zeros(6, 3))
    with pytest.raises(ValueError, match=r"part 'x' has shape \(6, 1\), its state \(6, 4\)"):
        sample(lambda x, t, **_: x[:, :1], PLAIN, KEYS, (4,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": torch.ones(4, 3)}, "mask of part 'x' must be bool of shape .4, 3., got torch.fl"),
        ({"mask": torch.ones(4, 2, dtype=torch.bool)}, "must be bool of shape"),
        ({"dtype": torch.int64}, "dtype of the real parts"),
        ({"particles": True}, "particles must be a Resampling"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused(settings, message):
    process, keys = Process(Part(Flat(), Path.linear())), Keys.for_samples(0, range(4))
    model = Gaussian(0.0, 1.0).on(Path.linear())
    with pytest.raises(UserError, match=message):
        sample(model, process, keys, (3, 2), **settings)
    assert sample(model, process, keys, (3, 2), grid=torch.linspace(0, 1, 5)).nfe == 4
    with pytest.raises(UserError, match="no keys"):
        sample(model, process, Keys.for_samples(0, []), (3, 2))
    with pytest.raises(UserError, match="the model answered tuple, not a tensor"):
        sample(lambda x, t, **_: (x,), process, keys, (3, 2))


def test_a_guide_of_another_process_is_refused():
    process, keys = Process(Part(Flat(), Path.linear())), Keys.for_samples(0, range(4))
    other = Process(Part(Flat(), Path.vp()))
    with pytest.raises(UserError, match="guide was built on another process"):
        sample(
            Gaussian(0.0, 1.0).on(Path.linear()), process, keys, (2,),
            guide=weigh.anneal(other, 2.0, reference=1.0),
        )
