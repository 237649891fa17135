"""A process bridges noise and data: exact means and variances, hidden shares, known noise kept."""

from __future__ import annotations

import math

import pytest
import torch

from driftworks.core.ctmc import Masking
from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.process import Part, Process
from driftworks.core.spaces import Centred, Flat, PairTokens, Symmetric, Tokens
from driftworks.errors import UserError

PATHS = {
    "linear": Path.linear(),
    "cosine": Path.cosine(),
    "vp": Path.vp(),
    "subvp": Path.subvp(),
    "ve": Path.ve(),
    "edm": Path.edm(),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())

MOLECULE = Process(
    {
        "pos": Part(Centred(), Path.linear()),
        "distance": Part(Symmetric(), Path.cosine(), predicts="velocity"),
        "atom": Part(Tokens(5), Masking()),
        "bond": Part(PairTokens(4), Masking(lambda t: t * t)),
    }
)
COUNTS = torch.tensor([4, 2, 3, 4])
MASK = torch.arange(4) < COUNTS.unsqueeze(1)
TIMES = torch.tensor([0.1, 0.5, 0.7, 0.9])


def molecule(nodes, counts, seed=0):
    """A state of MOLECULE with ``counts`` nodes a sample; what a node holds ignores the padding."""
    keys, size = Keys.for_samples(seed, range(len(counts))), len(counts)
    mask = torch.arange(nodes) < counts.unsqueeze(1)
    spaces = {name: part.space for name, part in MOLECULE.items()}
    atoms = (keys.uniform("atoms", 0, (nodes,)) * 5).long()
    bonds = (keys.uniform("bonds", 0, (nodes, nodes)) * 4).long()
    state = {
        "pos": spaces["pos"].noise(keys, "p", 0, torch.empty(size, nodes, 3).double(), mask),
        "distance": spaces["distance"].noise(
            keys, "d", 0, torch.empty(size, nodes, nodes).double(), mask
        ),
        "atom": spaces["atom"].project(atoms, mask),
        "bond": spaces["bond"].project(bonds, mask),
    }
    return state, mask


DATA, _ = molecule(4, COUNTS)
KEYS = Keys.for_samples(0, range(4))


@every_path
def test_the_bridge_is_beta_data_plus_sigma_noise(path):
    process = Process(Part(Flat(), path))
    t = torch.linspace(0.0, 1.0, 9, dtype=torch.float64)
    x_1 = torch.linspace(-2.0, 2.0, 54, dtype=torch.float64).view(9, 3, 2)
    bridge = process.bridge(x_1, t, Keys.for_samples(0, range(9)))
    for b, time in enumerate(t.tolist()):
        wanted = path.beta(time) * x_1[b] + path.sigma(time) * bridge.x_0[b]
        torch.testing.assert_close(bridge.x_t[b], wanted, rtol=1e-12, atol=1e-14)
    assert bridge.x_1 is x_1 and bridge.t is t and bridge.hidden == {}


@every_path
def test_the_bridge_has_the_mean_and_variance_of_its_path(path):
    draws, process = 100_000, Process(Part(Flat(), path))
    keys = Keys.for_samples(1, range(draws))
    x_1 = torch.full((draws, 2), 1.5, dtype=torch.float64)
    for time in (0.0, 0.35, 0.8):
        x = process.bridge(x_1, torch.full((draws,), time, dtype=torch.float64), keys).x_t
        variance = path.sigma(time) ** 2
        z = (x - path.beta(time) * 1.5) / math.sqrt(variance)
        assert abs(z.mean().item()) < 4.5 / math.sqrt(2 * draws)
        assert abs(z.square().mean().item() - 1.0) < 4.5 * math.sqrt(2 / (2 * draws))


@pytest.mark.parametrize("shape", [(3, 2), (3, 3), (3, 3, 3)], ids=str)
def test_time_belongs_to_the_batch_when_other_axes_are_as_long(shape):
    x_1 = torch.arange(3 * math.prod(shape), dtype=torch.float64).view(3, *shape)
    t, keys = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64), Keys.for_samples(0, range(3))
    parts = [Part(Flat(), Path.vp()), Part(Centred(), Path.linear())]
    if shape[0] == shape[1]:
        parts.append(Part(Symmetric(), Path.cosine()))
    for part in parts:
        process = Process(part)
        together = process.bridge(x_1, t, keys).x_t
        for b in range(3):
            alone = process.bridge(x_1[b : b + 1], t[b : b + 1], keys[b : b + 1]).x_t
            torch.testing.assert_close(together[b], alone[0], rtol=1e-14, atol=1e-14)


def test_token_time_belongs_to_the_batch_when_nodes_are_as_many():
    data = {k: DATA[k] for k in ("atom", "bond")}
    process = Process({k: MOLECULE.parts[k] for k in data})
    t = torch.tensor([0.0, 1.0, 0.0, 1.0])
    bridge = process.bridge(data, t, KEYS, MASK)
    prior = process.prior(KEYS, data, MASK)
    for name in data:
        assert torch.equal(bridge.x_t[name][1::2], data[name][1::2])
        assert torch.equal(bridge.x_t[name][0::2], prior[name][0::2])


@pytest.mark.parametrize("space, shape", [(Tokens(3), (8,)), (PairTokens(3), (6, 6))], ids=str)
@pytest.mark.parametrize("warp", [None, lambda t: t**3, lambda t: 1 - (1 - t) ** 2], ids=range(3))
def test_the_hidden_share_is_one_minus_kappa(space, shape, warp):
    draws, schedule = 20_000, Masking(warp)
    keys, x_1 = Keys.for_samples(2, range(draws)), torch.zeros((draws, *shape), dtype=torch.int64)
    process = Process(Part(space, schedule))
    free = torch.ones(shape, dtype=torch.bool)
    if isinstance(space, PairTokens):
        free = free.triu(1)
    for time in (0.0, 0.1, 0.5, 0.93, 1.0):
        hidden = process.bridge(x_1, torch.full((draws,), time), keys).hidden["x"][:, free]
        share = 1.0 - schedule.kappa(time)
        error = math.sqrt(share * (1.0 - share) / hidden.numel())
        assert abs(hidden.double().mean().item() - share) <= 4.5 * error + 1e-7
        # Entries are hidden independently: the count of a sample is binomial.
        spread = hidden.sum(1).double().var().item()
        wanted = share * (1.0 - share) * hidden.shape[1]
        fourth = 2 * wanted**2 + wanted * (1 - 6 * share * (1.0 - share))  # of the binomial
        assert abs(spread - wanted) <= 4.5 * math.sqrt(fourth / draws) + 1e-7


def test_hidden_tokens_are_the_mask_token_and_shown_ones_the_data():
    bridge = MOLECULE.bridge(DATA, TIMES, KEYS, MASK)
    assert bridge.hidden.keys() == {"atom", "bond"}
    for name, hidden in bridge.hidden.items():
        space = MOLECULE.parts[name].space
        entries = space.entry_mask(MASK, DATA[name])
        assert hidden.dtype == torch.bool and 0 < hidden.sum() < entries.sum()
        assert not (hidden & ~entries).any()
        assert torch.equal(bridge.x_t[name], torch.where(hidden, space.classes, DATA[name]))


def test_pairs_and_centres_stay_what_they_are_along_the_bridge():
    for t in (torch.zeros(4), TIMES, torch.ones(4)):
        bridge = MOLECULE.bridge(DATA, t, KEYS, MASK)
        for state in (bridge.x_t, bridge.x_0):
            for name, part in MOLECULE.items():
                projected = part.space.project(state[name], MASK)
                torch.testing.assert_close(projected, state[name], rtol=0, atol=1e-14)
        assert torch.equal(bridge.hidden["bond"], bridge.hidden["bond"].transpose(1, 2))


def test_padding_and_batch_never_change_a_bridge():
    whole = MOLECULE.bridge(DATA, TIMES, KEYS, MASK)
    for nodes, index in ((4, [2]), (4, [3, 1]), (7, [1, 2, 3, 0]), (5, [0, 0])):
        padded, mask = molecule(nodes, COUNTS)
        part = {name: x[index] for name, x in padded.items()}
        bridge = MOLECULE.bridge(part, TIMES[index], KEYS[index], mask[index])
        for row, b in enumerate(index):
            n = int(COUNTS[b])
            for name in DATA:
                axes = 1 if name in ("pos", "atom") else 2
                inside = (slice(0, n),) * axes
                for found, wanted in ((bridge.x_t, whole.x_t), (bridge.x_0, whole.x_0)):
                    torch.testing.assert_close(
                        found[name][row][inside], wanted[name][b][inside], rtol=0, atol=1e-14
                    )
                    outside = found[name][row].clone()
                    outside[inside] = 0
                    assert (outside == 0).all()


def test_noise_that_is_given_is_used_and_the_rest_drawn_as_before():
    drawn = MOLECULE.bridge(DATA, TIMES, KEYS, MASK)
    given = Centred().project(torch.ones_like(DATA["pos"]).cumsum(1), MASK)
    bridge = MOLECULE.bridge(DATA, TIMES, KEYS, MASK, x_0={"pos": given})
    assert bridge.x_0["pos"] is given
    t = TIMES.double().view(-1, 1, 1)
    torch.testing.assert_close(bridge.x_t["pos"], t * DATA["pos"] + (1 - t) * given)
    for name in ("distance", "atom", "bond"):
        assert torch.equal(bridge.x_t[name], drawn.x_t[name])
    single = Process(Part(Centred(), Path.linear()))
    alone = single.bridge(DATA["pos"], TIMES, KEYS, MASK, x_0=given)
    assert torch.equal(alone.x_t, bridge.x_t["pos"])


def test_noise_for_a_part_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="unknown parts coordinates"):
        MOLECULE.bridge(DATA, TIMES, KEYS, MASK, x_0={"coordinates": DATA["pos"]})
    with pytest.raises(ValueError, match="needs a dict"):
        MOLECULE.bridge(DATA, TIMES, KEYS, MASK, x_0=DATA["pos"])


def test_parts_steps_and_the_prior_draw_different_noise():
    parts = Process({"a": Part(Flat(), Path.linear()), "b": Part(Flat(), Path.linear())})
    x_1 = {"a": torch.zeros(4000, 3), "b": torch.zeros(4000, 3)}
    keys, t = Keys.for_samples(0, range(4000)), torch.zeros(4000)
    prior = parts.prior(keys, x_1)
    draws = [prior["a"], prior["b"]]
    for step in (0, 1):
        bridge = parts.bridge(x_1, t, keys, step=step)
        draws += [bridge.x_0["a"], bridge.x_0["b"]]
    table = torch.corrcoef(torch.stack([x.flatten() for x in draws]))
    assert (table - torch.eye(6)).abs().max() < 4.5 / math.sqrt(12_000)


def test_parts_and_steps_hide_different_tokens():
    parts = Process({"a": Part(Tokens(2), Masking()), "b": Part(Tokens(2), Masking())})
    x_1 = {name: torch.zeros(4000, 3, dtype=torch.int64) for name in "ab"}
    keys, t = Keys.for_samples(0, range(4000)), torch.full((4000,), 0.5)
    bridges = [parts.bridge(x_1, t, keys, step=step) for step in (0, 1)]
    draws = [bridge.hidden[name].flatten().double() for bridge in bridges for name in "ab"]
    table = torch.corrcoef(torch.stack(draws))
    assert (table - torch.eye(4)).abs().max() < 4.5 / math.sqrt(12_000)


@every_path
def test_the_prior_is_sigma_zero_times_noise_of_the_space(path):
    process = Process(Part(Centred(), path))
    keys, like = Keys.for_samples(0, range(4)), torch.empty(4, 4, 3, dtype=torch.float64)
    prior = process.prior(keys, like, MASK)
    wanted = Centred().noise(keys, "prior/x", 0, like, MASK) * path.sigma(0.0)
    torch.testing.assert_close(prior, wanted)
    assert prior.dtype == torch.float64


def test_the_prior_of_tokens_is_all_mask_tokens():
    prior = MOLECULE.prior(KEYS, DATA | {"a remark": torch.zeros(4)}, MASK)
    assert prior.keys() == DATA.keys()
    assert torch.equal(prior["atom"], torch.where(MASK, 5, 0))
    pairs = PairTokens(4).entry_mask(MASK, DATA["bond"])
    assert torch.equal(prior["bond"], torch.where(pairs, 4, 0))


def test_masks_may_be_shared_or_given_a_part():
    pairs = PairTokens(4).entry_mask(MASK, DATA["bond"])
    shared = MOLECULE.bridge(DATA, TIMES, KEYS, MASK)
    each = {"pos": MASK, "distance": pairs, "atom": MASK, "bond": pairs}
    bridge = MOLECULE.bridge(DATA, TIMES, KEYS, each)
    for name in DATA:
        assert torch.equal(bridge.x_t[name], shared.x_t[name])
    whole = MOLECULE.bridge(DATA, TIMES, KEYS, {"pos": MASK})
    assert torch.equal(whole.x_t["pos"], shared.x_t["pos"])
    assert torch.equal(whole.x_t["atom"], MOLECULE.bridge(DATA, TIMES, KEYS).x_t["atom"])


def test_a_state_that_lacks_parts_is_named():
    with pytest.raises(ValueError, match="lacks the parts atom, bond"):
        MOLECULE.unpack({"pos": DATA["pos"], "distance": DATA["distance"]})
    with pytest.raises(ValueError, match="needs a dict with parts pos, distance, atom, bond"):
        MOLECULE.unpack(DATA["pos"])
    single = Process(Part(Flat(), Path.linear()))
    x = torch.zeros(2, 3)
    assert single.unpack(x) == {"x": x} and single.pack({"x": x}) is x


def test_a_part_checks_what_it_is_made_of():
    with pytest.raises(UserError, match="unknown parametrisation 'speed'"):
        Part(Flat(), Path.linear(), predicts="speed")
    with pytest.raises(UserError, match="unknown parametrisation 'logits'"):
        Part(Flat(), Path.linear(), predicts="logits")
    with pytest.raises(UserError, match="Tokens cannot follow Linear"):
        Part(Tokens(3), Path.linear())
    with pytest.raises(UserError, match="Centred cannot follow Masking"):
        Part(Centred(), Masking())
    assert Part(Tokens(3), Masking()).predicts == "logits"
    assert Part(Flat(), Path.vp(), "noise").predicts == "noise"
    assert "Centred" in repr(MOLECULE)


def test_one_key_a_sample_and_parts_of_a_space_and_a_path_are_demanded():
    process, x = Process(Part(Flat(), Path.linear())), torch.zeros(8, 2)
    for keys in (Keys.for_samples(0, [1]), Keys.for_samples(0, range(4))):
        with pytest.raises(UserError, match=f"8 samples; there are {len(keys)} keys"):
            process.bridge(x, torch.full((8,), 0.5), keys)
    for space, path in ((Flat, Path.linear()), (Path.linear(), Flat()), (Flat(), Path.linear)):
        with pytest.raises(UserError, match="a part is a space and a path"):
            Part(space, path)
    with pytest.raises(UserError, match="made of parts"):
        Process({})
