"""Batches for pretraining: the shuffle, training windows, and evaluation windows."""

import numpy as np
import pytest

from nanoft import UserError, batches
from nanoft.bins import Tokens


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000, 4097])
def test_shuffled_is_a_permutation(n):
    image = batches.shuffled(np.arange(n), n, key=(5, 1))
    assert sorted(image) == list(range(n))
    if n > 60:
        assert (image == np.arange(n)).mean() < 0.1
        assert (image != batches.shuffled(np.arange(n), n, key=(5, 2))).mean() > 0.9
        images = [batches.shuffled(np.arange(n), n, key=(k, 1)) for k in range(50)]
        assert abs(np.mean([np.corrcoef(image, np.arange(n))[0, 1] for image in images])) < 0.1


def test_an_epoch_sees_every_window_once():
    n, length = 10_000, 16
    per_epoch = n // length - 1
    for epoch in (0, 3):
        starts = batches.window_starts(n, length, 7, epoch * per_epoch + np.arange(per_epoch))
        assert len(set(starts)) == per_epoch and len(set(starts % length)) == 1
        assert starts.min() >= 0 and starts.max() + length <= n


def test_a_batch_is_a_function_of_the_row_numbers(corpus):
    tokens = Tokens.open(corpus, "train")
    whole = batches.causal_batch(tokens, 32, 1, 8 * 5 + np.arange(8))
    parts = [batches.causal_batch(tokens, 32, 1, 8 * 5 + rows) for rows in (np.arange(3), np.arange(3, 8))]
    for side in ("ids", "targets"):
        assert np.array_equal(whole[side], np.concatenate([part[side] for part in parts]))
    assert np.array_equal(whole["ids"][:, 1:], whole["targets"][:, :-1])
    assert not np.array_equal(whole["ids"], batches.causal_batch(tokens, 32, 2, 8 * 5 + np.arange(8))["ids"])


@pytest.mark.parametrize("length", [33, 34, 65])
def test_the_shortest_texts(length):
    starts = batches.window_starts(length - 1, 32, 0, np.arange(50))
    assert starts.min() >= 0 and starts.max() + 32 <= length - 1


def test_evaluation_scores_every_token_once(corpus):
    tokens = Tokens.open(corpus, "val")
    starts = batches.eval_starts(len(tokens), 32)
    x, y = batches.eval_batch(tokens, 32, starts, first_id=3).values()
    assert x[0, 0] == 3
    assert np.array_equal(y[y != batches.IGNORE], tokens.read(0, len(tokens)))
    for row, start in zip(x, starts):
        n = min(32, len(tokens) - start)
        assert np.array_equal(row[1:n], tokens.read(start, start + n - 1))


def test_too_short(corpus):
    tokens = Tokens.open(corpus, "val")
    with pytest.raises(UserError, match="fewer than block_size"):
        batches.check_length(tokens, len(tokens), "val.bin")
