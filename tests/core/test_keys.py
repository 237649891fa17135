"""Keyed noise: the published generator, one address a number, and statistics at every address."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from scipy import stats

from driftworks.core.keys import Keys, philox

WORD = 0xFFFFFFFF
SHAPES = [(), (1,), (3,), (6,), (7, 3), (9, 9), (5, 6, 2), (3, 2, 4, 5)]
DTYPES = [torch.float32, torch.float64]


GOLDEN_WORDS = [
    [929766837, 3549595243, 1687449934, 187915216, 2775258808],
    [641369899, 1097799470, 1974062204, 4061180771, 1614000353],
]
GOLDEN_NORMALS = [
    [0.8084403170853744, -1.5514364340580082, 1.3155868543459028],
    [-0.06862103335627454, 1.9489681578004006, 1.174660237041629],
]


def philox_by_hand(counter, key):
    """Philox4x32-10 on Python integers, written from the paper's round function."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(c[0] * 0xD2511F53, 1 << 32)
        high1, low1 = divmod(c[2] * 0xCD9E8D57, 1 << 32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % (1 << 32), (k[1] + 0xBB67AE85) % (1 << 32)]
    return c


def deviation(x, moments):
    """How far the means of powers of x lie from theirs at most, in standard errors."""
    x = x.double().flatten()
    gaps = [
        abs((x**power).mean().item() - mean) / math.sqrt(variance / len(x))
        for power, (mean, variance) in moments.items()
    ]
    return max(gaps)


def correlation(x, y):
    """Correlation of x and y, and of their squares, in standard errors."""
    x, y = x.double().flatten(), y.double().flatten()
    pairs = ((x, y), (x * x, y * y), (x * x, y))
    return max(
        abs(torch.corrcoef(torch.stack(pair))[0, 1].item()) * math.sqrt(len(x)) for pair in pairs
    )


# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


@pytest.mark.parametrize("vector", KNOWN, ids=["zeros", "ones", "pi"])
def test_philox_gives_the_published_known_answers(vector):
    counter, key, wanted = ([int(word, 16) for word in part.split()] for part in vector)
    out = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert out.tolist() == wanted
    assert philox_by_hand(counter, key) == wanted


def test_philox_on_tensors_equals_philox_on_python_integers():
    words = torch.randint(0, 1 << 32, (6, 200), generator=torch.Generator().manual_seed(1))
    out = philox(tuple(words[:4]), tuple(words[4:]))
    for row, column in zip(out.tolist(), words.T.tolist(), strict=True):
        assert row == philox_by_hand(column[:4], column[4:])


def test_every_word_lies_at_its_documented_address():
    seed, ids, step, stream = 0x123456789ABCDEF0, [3, (5 << 32) + 17, -1], 70000, "prior/pos"
    words = Keys.for_samples(seed, ids).words(stream, step, (3, 4, 5, 6))
    for b, number in enumerate(ids):
        key = philox_by_hand([number & WORD, number >> 32 & WORD, 0, 0], [0x9ABCDEF0, 0x12345678])
        for i, j, k, last in [(0, 0, 0, 0), (2, 3, 4, 5), (1, 2, 3, 4), (2, 0, 1, 3), (0, 3, 0, 1)]:
            counter = [i << 16 | j, k << 16 | last // 4, step, zlib.crc32(stream.encode())]
            assert words[b, i, j, k, last] == philox_by_hand(counter, key[:2])[last % 4]


def test_seeded_numbers_stay_the_same_from_release_to_release():
    keys = Keys.for_samples(7, [0, 1])
    assert keys.words("prior/x", 0, (5,)).tolist() == GOLDEN_WORDS
    normal = keys.normal("prior/x", 0, (3,), torch.float64)
    torch.testing.assert_close(
        normal, torch.tensor(GOLDEN_NORMALS, dtype=torch.float64), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_a_number_does_not_depend_on_batch_or_order(draw, shape, dtype):
    everything = getattr(Keys.for_samples(11, range(40)), draw)("s", 3, shape, dtype)
    assert everything.shape == (40, *shape) and everything.dtype == dtype
    for ids in ([0], [39], [5, 4, 3], [7, 7, 7, 7, 7], list(range(39, 10, -1))):
        alone = getattr(Keys.for_samples(11, ids), draw)("s", 3, shape, dtype)
        assert torch.equal(alone, everything[ids])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_a_number_does_not_depend_on_padding(draw, shape, dtype):
    keys = Keys.for_samples(11, range(6))
    exact = getattr(keys, draw)("s", 3, shape, dtype)
    for more in (1, 2, 5):
        padded = getattr(keys, draw)("s", 3, tuple(n + more for n in shape), dtype)
        inside = (slice(None), *(slice(0, n) for n in shape))
        assert torch.equal(padded[inside], exact)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("draw", ["normal", "uniform", "words"])
def test_a_range_of_steps_equals_single_steps(draw, shape):
    keys = Keys.for_samples(2, [9, 1, 30])
    steps = range(3, 20, 4)
    together = getattr(keys, draw)("s", steps, shape)
    assert together.shape == (len(steps), 3, *shape)
    for row, step in zip(together, steps, strict=True):
        assert torch.equal(row, getattr(keys, draw)("s", step, shape))
    assert getattr(keys, draw)("s", range(0), shape).shape == (0, 3, *shape)


def test_indexing_and_moving_keep_each_sample_its_key():
    keys = Keys.for_samples(5, [4, 8, 15, 16])
    mask = torch.tensor([True, False, True, False])
    for index in (slice(1, 3), [3, 0], torch.tensor([2, 2]), mask):
        part = keys[index]
        assert len(part) == 2
        assert torch.equal(part.ids, keys.ids[index])
        assert torch.equal(part.normal("s", 0, (3,)), keys.normal("s", 0, (3,))[index])
    assert torch.equal(keys.to("cpu").normal("s", 0, (3,)), keys.normal("s", 0, (3,)))
    assert len(Keys.for_samples(5, [])) == 0
    assert Keys.for_samples(5, []).normal("s", 0, (3, 2)).shape == (0, 3, 2)


def test_all_64_bits_of_seed_and_id_count():
    def first(seed, number):
        return Keys.for_samples(seed, [number]).words("s", 0, (4,)).tolist()

    assert first(-1, 0) == first(2**64 - 1, 0) == first(2**65 - 1, 0)
    distinct = [(0, 0), (1, 0), (2**32, 0), (2**63, 0), (0, 1), (0, 2**32), (0, 2**62), (0, -1)]
    assert len({tuple(map(tuple, first(*pair))) for pair in distinct}) == len(distinct)


def test_streams_steps_ids_and_seeds_never_share_words():
    """Two addresses that meet would repeat a whole block; chance repeats single words only."""
    blocks = [
        Keys.for_samples(seed, range(50)).words(stream, range(20), (5, 8)).view(-1, 4)
        for seed in (0, 1, 2**32)
        for stream in ("prior/x", "bridge/x", "")
    ]
    blocks = torch.cat(blocks)
    assert len(torch.unique(blocks, dim=0)) == len(blocks) == 90_000
    words = len(blocks) * 4
    repeats, expected = words - len(torch.unique(blocks)), words**2 / 2**33
    assert abs(repeats - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_uniforms_lie_strictly_inside_the_unit_interval(dtype, monkeypatch):
    keys = Keys.for_samples(0, range(4))
    for word in (0, 1, 255, 1 << 31, WORD - 1, WORD):
        monkeypatch.setattr(Keys, "words", lambda *_, word=word: torch.full((4, 8), word))
        u = keys.uniform("s", 0, (8,), dtype)
        assert u.dtype == dtype
        assert 0.0 < u.min() and u.max() < 1.0
        assert abs(u[0, 0].item() - (word + 0.5) / 2**32) <= 2.0**-23


def test_half_precision_uniforms_are_refused_because_they_would_round_to_one():
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match="float32 or float64"):
            Keys.for_samples(0, [1]).uniform("s", 0, (3,), dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float16], ids=str)
def test_normals_are_finite_at_the_extreme_words(dtype, monkeypatch):
    keys = Keys.for_samples(0, range(2))
    extremes = torch.tensor([0, 0, 0, WORD, WORD, 0, WORD, WORD]).expand(2, 8)
    monkeypatch.setattr(Keys, "words", lambda *_: extremes)
    x = keys.normal("s", 0, (8,), dtype)
    assert x.dtype == dtype and x.isfinite().all()
    assert x.abs().max().item() == pytest.approx(math.sqrt(66 * math.log(2)), rel=1e-2)


def test_single_and_double_precision_are_the_same_numbers():
    keys = Keys.for_samples(3, range(200))
    for draw, tolerance in ((keys.uniform, 2.0**-23), (keys.normal, 1e-4)):
        single, double = (draw("s", 0, (100, 3), dtype) for dtype in DTYPES)
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=tolerance)


NORMAL = {1: (0.0, 1.0), 2: (1.0, 2.0), 3: (0.0, 15.0), 4: (3.0, 96.0)}
UNIFORM = {k: (1 / (k + 1), 1 / (2 * k + 1) - 1 / (k + 1) ** 2) for k in (1, 2, 3, 4)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_and_distribution_are_those_of_the_law(dtype):
    keys = Keys.for_samples(0, range(1000))
    normal = keys.normal("s", range(50), (20, 3), dtype)
    assert deviation(normal, NORMAL) < 4.5
    assert stats.kstest(normal.flatten()[::6].numpy(), "norm").pvalue > 1e-3
    uniform = keys.uniform("s", range(50), (20, 3), dtype)
    assert deviation(uniform, UNIFORM) < 4.5
    assert stats.kstest(uniform.flatten()[::6].numpy(), "uniform").pvalue > 1e-3


def test_tails_hold_as_much_as_a_normal_has():
    x = Keys.for_samples(4, range(1000)).normal("s", range(50), (20, 3)).flatten()
    for level in (2.0, 3.0, 4.0, 4.5):
        for tail in (x, -x):
            expected = len(x) * stats.norm.sf(level)
            assert abs((tail > level).sum().item() - expected) < 4.5 * math.sqrt(expected), level


def test_all_32_bits_of_a_word_are_fair_and_pairwise_uncorrelated():
    words = Keys.for_samples(1, range(500)).words("s", 0, (100, 4)).flatten()
    bits = (words.unsqueeze(1) >> torch.arange(32) & 1).double() * 2 - 1
    covariance = bits.T @ bits / math.sqrt(len(words))
    assert bits.mean(0).abs().max() * math.sqrt(len(words)) < 4.5
    assert (covariance - covariance.diag().diag()).abs().max() < 5.0


def neighbours(n):
    """Pairs of draws whose addresses differ in one coordinate, about ``n`` numbers each."""
    ids = range(n // 60)

    def x(seed=0, ids=ids, stream="s", step=0):
        return Keys.for_samples(seed, ids).normal(stream, step, (10, 6))

    base = x()
    yield "next seed", base, x(seed=1)
    yield "seed one bit away", base, x(seed=1 << 32)
    yield "next id", base[:-1], base[1:]
    yield "id far away", base, x(ids=range(1 << 33, (1 << 33) + len(ids)))
    yield "next step", base, x(step=1)
    yield "step far away", base, x(step=1 << 31)
    yield "other stream", base, x(stream="t")
    yield "next row", base[:, :-1], base[:, 1:]
    yield "same Box-Muller pair", base[..., 0::2], base[..., 1::2]
    yield "same block", base[..., 0:2], base[..., 2:4]
    yield "next block", base[..., 0:2], base[..., 4:6]
    yield "mirrored entry", *mirrored(ids)


def mirrored(ids):
    x = Keys.for_samples(0, ids).normal("s", 0, (8, 8))
    i, j = torch.triu_indices(8, 8, 1)
    return x[:, i, j], x[:, j, i]


def test_neighbouring_addresses_are_uncorrelated():
    for name, x, y in neighbours(300_000):
        assert correlation(x, y) < 4.5, name


@pytest.mark.slow
def test_a_longer_battery_finds_no_structure():
    """Twenty million draws: what a few million cannot see (a correlation of 1e-3, a bent tail)."""
    for name, x, y in neighbours(6_000_000):
        assert correlation(x, y) < 4.5, name
    for seed in range(4):
        keys = Keys.for_samples(seed, range(2500))
        u = keys.uniform("s", range(20), (100,), torch.float64).flatten()
        assert deviation(u, UNIFORM) < 4.5
        assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
        x = keys.normal("s", range(20), (100,), torch.float64).flatten()
        assert deviation(x, NORMAL | {6: (15.0, 10170.0), 8: (105.0, 2016000.0)}) < 4.5
        assert stats.kstest(x.numpy(), "norm").pvalue > 1e-3
        # Consecutive pairs and triples fill the square and the cube evenly.
        for dimension, cells in ((2, 64), (3, 16)):
            points = (u[: len(u) // dimension * dimension].view(-1, dimension) * cells).long()
            index = sum(points[:, k] * cells**k for k in range(dimension))
            counts = torch.bincount(index, minlength=cells**dimension).double()
            assert stats.chisquare(counts.numpy()).pvalue > 1e-3
        # No frequency stands out: periodogram ordinates are exponential.
        power = torch.fft.rfft(x[: 1 << 22]).abs().square()[1:-1] / (1 << 22)
        assert power.max() < math.log(len(power)) + 12
        assert stats.kstest(power.numpy()[::8], "expon").pvalue > 1e-3


def test_addresses_that_do_not_exist_are_refused():
    keys = Keys.for_samples(0, [0])
    with pytest.raises(ValueError, match="up to four entry axes"):
        keys.normal("s", 0, (1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="65536"):
        keys.uniform("s", 0, (1 << 16, 1))
    with pytest.raises(ValueError, match="65536"):
        keys.uniform("s", 0, (1 << 18,))
    assert keys.uniform("s", 0, ((1 << 18) - 4,)).shape == (1, (1 << 18) - 4)
    assert keys.normal("s", 0, (0,)).shape == (1, 0)
    assert keys.normal("s", 0, (4, 0)).shape == (1, 4, 0)


def test_ids_must_be_a_list_of_integers():
    with pytest.raises(ValueError, match=r"shape \(B,\)"):
        Keys.for_samples(0, torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="integers"):
        Keys.for_samples(0, torch.tensor([0.0, 0.5]))
