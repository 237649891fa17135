"""The padded batch: what goes in comes out, padding is nobody's residue."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from driftworks.errors import UserError
from driftworks.protein.chains import NULL, Chains


@pytest.fixture
def three(rng):
    return [rng.normal(size=(n, 3)) for n in (5, 9, 2)]


def test_arrays_come_back_without_padding(three):
    chains = Chains.of(three)
    assert len(chains) == 3 and chains.lengths.tolist() == [5, 9, 2]
    for given, back in zip(three, chains.arrays(), strict=True):
        assert back.dtype == np.float64
        np.testing.assert_allclose(back, given, atol=1e-6)
    assert not chains.ca[~chains.mask].any()
    assert chains.ids == ("chain0", "chain1", "chain2") and set(chains.label.tolist()) == {NULL}


def test_rows_are_taken_by_number_slice_list_and_mask(three):
    chains = Chains.of(three, ids=["a", "b", "c"], labels=[0, 1, 2])
    assert chains[1].ids == ("b",) and chains[-1].ids == ("c",)
    assert chains[1:].ids == ("b", "c")
    assert chains[[2, 0]].ids == ("c", "a") and chains[[2, 0]].label.tolist() == [2, 0]
    assert chains[np.array([True, False, True])].ids == ("a", "c")
    assert chains[torch.tensor([False, True, False])].lengths.tolist() == [9]
    assert [c.ids[0] for c in chains] == ["a", "b", "c"]
    with pytest.raises(IndexError):
        chains[3]


def test_trimming_removes_only_padding_and_joining_adds_only_padding(three):
    chains = Chains.of(three, length=20)
    short = chains[[0, 2]].trimmed()
    assert short.ca.shape == (2, 5, 3)
    joined = Chains.cat([short, chains[1].trimmed()])
    assert joined.ca.shape == (3, 9, 3)
    for row, given in enumerate((three[0], three[2], three[1])):
        np.testing.assert_allclose(joined.arrays()[row], given, atol=1e-6)


def test_a_jump_in_the_residue_numbers_is_no_bond(three):
    numbers = [[0, 1, 2, 3, 4], [0, 1, 2, 5, 6, 7, 8, 9, 10], [3, 4]]
    chains = Chains.of(three, index=numbers)
    assert chains.bonded.sum(1).tolist() == [4, 7, 1]
    assert not chains.bonded[1, 2]


def test_blocks_hold_every_chain_once_within_the_limit(rng):
    chains = Chains.of([rng.normal(size=(int(n), 3)) for n in rng.integers(1, 40, 30)])
    seen = []
    for rows, block in chains.blocks(3000):
        longest = block.mask.shape[1]
        assert longest == int(block.lengths.max())
        assert len(block) == 1 or len(block) * longest**2 <= 3000
        assert block.ids == tuple(chains.ids[k] for k in rows.tolist())
        seen += rows.tolist()
    assert sorted(seen) == list(range(30))


def test_a_batch_shares_no_memory_with_what_it_was_made_from():
    source = np.zeros((4, 3), np.float32)
    chains = Chains.of([source])
    source += 1
    assert not chains.ca.any()


def test_no_chains_are_a_batch_too():
    empty = Chains.of([])
    assert len(empty) == 0 and empty.arrays() == [] and repr(empty) == "Chains(none)"
    assert len(Chains.cat([])) == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"arrays": [np.zeros((4, 2))]}, r"shape \(4, 2\)"),
        ({"arrays": [np.zeros((4, 3))], "ids": ["a", "b"]}, "2 ids for 1 chains"),
        ({"arrays": [np.zeros((4, 3))], "labels": [7]}, "label 7"),
        ({"arrays": [np.zeros((4, 3))], "labels": [1, 1]}, "labels of shape"),
        ({"arrays": [np.zeros((4, 3))], "index": [[0, 1]]}, "residue numbers of shape"),
        ({"arrays": [np.zeros((4, 3))], "length": 3}, "length = 3"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        Chains.of(**arguments)
