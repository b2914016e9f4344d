"""What step s sees. Every batch is a pure function of (seed, step): there is no loader state to save or to lose.

A script asks for the rows it wants of the global batch, so a rank, a micro-step or a resumed run is only a choice of
rows. Training windows come without replacement: each epoch lays a fresh grid of windows over the tokens, from a
random offset, and visits it in a random order.
"""

import numpy as np

from nanoft import UserError

IGNORE = -100  # the target of a position that is not scored; never a class


def shuffled(index, n, key):
    """The image of `index` under a random permutation of range(n) chosen by `key`. index: int array, 0 <= index < n.

    A four-round Feistel network on pairs of half-words, walked until it falls inside range(n) (Black and Rogaway,
    2002): a permutation that is never held in memory, so data of any size shuffles at once.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    round_keys = np.random.default_rng(key).integers(0, 2**63, size=4, dtype=np.uint64) | np.uint64(1)
    out = np.asarray(index, dtype=np.uint64)
    outside = np.ones(out.shape, dtype=bool)
    while outside.any():
        left, right = out >> half, out & low
        for k in round_keys:
            mixed = (right + k) * np.uint64(0x9E3779B97F4A7C15) * k  # wraps modulo 2^64
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(29))) >> np.uint64(32) & low)
        out = np.where(outside, left << half | right, out)
        outside = out >= n
    return out.astype(np.int64)


def window_starts(n_tokens, length, seed, index):
    """Where the windows number `index` of the endless training stream begin. index: int array -> int array."""
    per_epoch = n_tokens // length - 1 if n_tokens >= 2 * length else 1
    slack = n_tokens - per_epoch * length  # the grid of an epoch may begin anywhere in it
    starts = np.empty(len(index), dtype=np.int64)
    epochs = index // per_epoch
    for epoch in np.unique(epochs):
        here = epochs == epoch
        offset = np.random.default_rng((seed, epoch)).integers(slack + 1)
        starts[here] = offset + shuffled(index[here] % per_epoch, per_epoch, (seed, epoch, 1)) * length
    return starts


def causal_batch(tokens, block_size, seed, index):
    """Inputs and targets, each int64 (len(index), block_size), of the training windows number `index`."""
    starts = window_starts(len(tokens) - 1, block_size, seed, index)
    rows = tokens.gather(starts, block_size + 1)  # (B, T + 1)
    return rows[:, :-1], rows[:, 1:]


def eval_starts(n_tokens, block_size, stride, max_tokens=0):
    """The fixed windows that score every token once, or about `max_tokens` of them, evenly spread."""
    starts = np.arange(0, max(n_tokens - block_size + stride, 1), stride)
    if max_tokens and len(starts) * stride > max_tokens:
        starts = starts[np.linspace(0, len(starts) - 1, max(1, max_tokens // stride)).astype(np.int64)]
    return starts


def eval_batch(tokens, block_size, stride, starts, first_id):
    """Inputs and targets (len(starts), block_size) that score the last `stride` tokens of each window.

    The window at 0 scores all of its tokens; the first of all is predicted from `first_id`. Positions past the end
    and context that another window scores are IGNORE.
    """
    place = starts[:, None] + np.arange(block_size)  # (B, T) where each target stands in the tokens
    rows = np.full((len(starts), block_size + 1), first_id, dtype=np.int64)
    for row, start in zip(rows, starts):
        piece = tokens.read(max(start - 1, 0), min(start + block_size, len(tokens)))
        row[int(start == 0):][:len(piece)] = piece
    context = (np.arange(block_size) < block_size - stride) & (starts[:, None] > 0)
    return rows[:, :-1], np.where(context | (place >= len(tokens)), IGNORE, rows[:, 1:])


def check_length(tokens, block_size, name):
    if len(tokens) < block_size + 1:
        raise UserError(f"{name} holds {len(tokens):,} tokens, fewer than block_size + 1 = {block_size + 1:,}; "
                        f"prepare more text or use a smaller --block_size")
