"""Batches by token budget: every document once an epoch, shared among processes, gone on with where it stopped."""

import numpy as np
import pytest

from docvit.data.sampling import TokenBudget


def drawn(sampler, epoch, skip=0):
    sampler.epoch, sampler.skip = epoch, skip
    return [[index for _, index in batch] for batch in sampler]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_document_once_an_epoch_over_all_processes_in_equally_many_batches(world_size):
    tokens = np.random.default_rng(0).integers(20, 400, 101).astype(float)
    orders = []
    for epoch in range(4):
        shares = []
        for rank in range(world_size):
            sampler = TokenBudget(tokens, 1500, shuffle=True, rank=rank, world_size=world_size)
            shares.append(drawn(sampler, epoch))
            assert len(shares[-1]) == len(sampler) == len(TokenBudget(tokens, 1500, shuffle=False)) // world_size
        order = [index for share in shares for batch in share for index in batch]
        assert sorted(order) == list(range(101))
        orders.append(order)
    assert orders[0] != orders[1]
    assert orders[0] == [p for r in range(world_size) for b in _share(tokens, r, world_size) for p in b]


def _share(tokens, rank, world_size):
    return drawn(TokenBudget(tokens, 1500, shuffle=True, rank=rank, world_size=world_size), 0)


def test_batches_hold_about_the_budget():
    tokens = np.random.default_rng(1).integers(20, 200, 400).astype(float)
    sampler = TokenBudget(tokens, 2000, shuffle=True)
    sums = np.array([tokens[batch].sum() for epoch in range(3) for batch in drawn(sampler, epoch)])
    assert abs(sums.mean() - 2000) < 100
    assert np.abs(sums - sums.mean()).max() <= 200  # never off by more than the largest document


def test_one_document_larger_than_a_batch_leaves_no_batch_empty():
    tokens = np.array([10.0] * 9 + [5000.0])
    for epoch in range(20):
        batches = drawn(TokenBudget(tokens, 500, shuffle=True), epoch)
        assert len(batches) == 10
        assert all(batches)


def test_skipping_gives_the_rest_of_the_same_epoch():
    tokens = np.full(50, 100.0)
    for weights in (None, np.arange(1.0, 51)):
        sampler = TokenBudget(tokens, 500, shuffle=True, weights=weights, seed=3)
        assert drawn(sampler, 2, skip=4) == drawn(sampler, 2)[4:]
        assert drawn(sampler, 2, skip=10) == []


def test_weights_are_the_shares_in_which_documents_are_drawn():
    weights = np.array([1.0, 3.0, 6.0])
    sampler = TokenBudget(np.full(3, 100.0), 100, shuffle=True, weights=weights)
    counts = np.bincount([p for epoch in range(2000) for batch in drawn(sampler, epoch) for p in batch], minlength=3)
    np.testing.assert_allclose(counts / counts.sum(), weights / 10, atol=0.025)


def test_few_documents_for_many_processes():
    sampler = TokenBudget(np.full(5, 10.0), 1000, shuffle=False, rank=1, world_size=2)
    assert len(sampler) == len(drawn(sampler, 0)) == 1
    with pytest.raises(ValueError, match="cannot be shared among 6"):
        TokenBudget(np.full(5, 10.0), 1000, shuffle=False, world_size=6)
