"""The batch of each step, a pure function of (seed, step): there is no loader state to save or to lose.

A script asks for certain rows of the global batch, so a rank, a micro-batch or a resumed run is only a choice of rows.
Training windows are drawn without replacement: each epoch lays a new grid of windows over the tokens, from a random
offset, and visits them in a random order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nanoft import UserError

IGNORE = -100  # the target of a position that is not scored; never a class
EVAL_SEED = 0  # of masks and pairs in evaluation, whatever the seed of the run
WINDOWS, MASKS, PAIRS, GROUPS, CHANGES = 1, 2, 3, 5, 7  # part of a seed: different uses get different random numbers


def shuffled(index: np.ndarray, n: int, key: tuple[int, ...]) -> np.ndarray:
    """The images of `index` under a random permutation of range(n) chosen by `key`. index: ints, 0 <= index < n.

    A four-round Feistel network on pairs of half-words, repeated until the result lies in range(n) (Black and Rogaway,
    2002). The permutation is never held in memory, so data of any size is shuffled at once.
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


def window_starts(n_tokens: int, length: int, seed: int, index: np.ndarray) -> np.ndarray:
    """The starts of the windows number `index` (B,) of the endless training stream, int64 (B,)."""
    per_epoch = n_tokens // length - 1 if n_tokens >= 2 * length else 1
    slack = n_tokens - per_epoch * length  # the largest offset of an epoch's grid
    starts = np.empty(len(index), dtype=np.int64)
    epochs = index // per_epoch
    for epoch in np.unique(epochs):
        this_epoch = epochs == epoch
        offset = np.random.default_rng((seed, epoch, WINDOWS)).integers(slack + 1)
        order = shuffled(index[this_epoch] % per_epoch, per_epoch, (seed, epoch, WINDOWS))
        starts[this_epoch] = offset + order * length
    return starts


def causal_batch(tokens, block_size: int, seed: int, index: np.ndarray) -> dict[str, np.ndarray]:
    """The training windows number `index` (B,): ids and targets, each int64 (B, block_size). tokens: bins.Tokens."""
    rows = tokens.gather(window_starts(len(tokens) - 1, block_size, seed, index), block_size + 1)  # (B, T + 1)
    return {"ids": rows[:, :-1], "targets": rows[:, 1:]}


# ---- masked tokens (BERT) ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Masking:
    """How tokens are masked: the fraction of them, the tokenizer's ids, and whether whole words are masked together."""
    prob: float
    mask_id: int
    ordinary: np.ndarray  # ids of all tokens that are not special
    is_ordinary: np.ndarray  # bool (V,)
    chunk_starts: Callable | None = None  # for whole words: ids (T,) -> which tokens begin a word, bool (T,)


def masking(tokenizer, prob: float, whole_word: bool = False) -> Masking:
    """Raises UserError for a tokenizer without <|mask|>, or whose pattern does not keep words whole."""
    if "<|mask|>" not in tokenizer.special:
        raise UserError("this tokenizer has no <|mask|> token, so words cannot be masked; train one with "
                        "python -m nanoft tokenizer")
    if whole_word and tokenizer.chunk_starts(tokenizer.encode(" antidisestablishmentarianism"))[1:].any():
        raise UserError("this tokenizer's split pattern cuts words into pieces, so --whole_word would mask as usual; "
                        "train a tokenizer with the gpt4 or gpt2 pattern")
    is_ordinary = ~tokenizer.is_special
    return Masking(prob, tokenizer.special["<|mask|>"], np.flatnonzero(is_ordinary), is_ordinary,
                   tokenizer.chunk_starts if whole_word else None)


def mask_words(ids: np.ndarray, masking: Masking, seed: int, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mask tokens for a masked language model (arXiv:1810.04805).

    ids: (B, T); the mask of row i depends on (seed, index[i]) alone. Returns inputs and targets, both (B, T); targets
    are IGNORE where nothing is to be predicted. Of the ordinary tokens a fraction `prob` is selected; of those 80 %
    become <|mask|>, 10 % a random ordinary token, 10 % stay. Each token gets one uniform random number: the smallest
    are selected, and their order decides what becomes of them. So the number of selected tokens in a row is fixed (but
    for rounding, which is random), as compiled code needs it; comparing each number with `prob` would not fix it.
    """
    B, T = ids.shape
    draw, replacement, rounding = np.empty((B, T)), np.empty((B, T), dtype=np.int64), np.empty((B, 2))
    for row, number in enumerate(index):
        rng = np.random.default_rng((seed, number, MASKS))
        draw[row], rounding[row] = rng.random(T), rng.random(2)
        replacement[row] = masking.ordinary[rng.integers(len(masking.ordinary), size=T)]
    if masking.chunk_starts is not None:  # all tokens of a word share the number of its first
        starts = np.stack([masking.chunk_starts(row) for row in ids])
        starts[:, 0] = True
        first = np.maximum.accumulate(np.where(starts, np.arange(T), 0), axis=1)  # (B, T) start of the word
        draw = np.take_along_axis(draw, first, axis=1)
    maskable = masking.is_ordinary[ids]
    draw[~maskable] = np.inf
    rank = draw.argsort(axis=1, kind="stable").argsort(axis=1)
    count = np.floor(masking.prob * maskable.sum(1) + rounding[:, 0]).astype(np.int64)
    count = np.clip(count, 1, maskable.sum(1))[:, None]  # (B, 1); at least one, as in BERT
    selected = rank < count
    if masking.chunk_starts is not None:  # a word that would be selected in part only is left out, even if it is alone
        ordered = np.append(np.sort(draw, axis=1), np.full((B, 1), np.inf), axis=1)  # (B, T + 1)
        selected &= draw != np.take_along_axis(ordered, count, axis=1)  # the number of the first token left out
        count = selected.sum(axis=1, keepdims=True)
    fraction = (rank + rounding[:, 1:]) / np.maximum(count, 1)  # 0 to 1 over the selected tokens, in their random order
    masked = np.where(selected & (fraction < 0.8), masking.mask_id, ids)
    masked = np.where(selected & (fraction >= 0.8) & (fraction < 0.9), replacement, masked)
    return masked, np.where(selected, ids, IGNORE)


def capacity(shape: tuple[int, int], prob: float) -> int:
    """The most masked tokens that a batch of this shape (B, T) can have."""
    return shape[0] * (int(prob * shape[1]) + 1)


def masked_batch(tokens, block_size: int, seed: int, index: np.ndarray, masking: Masking) -> dict[str, np.ndarray]:
    """Windows number `index`, documents back to back without padding, masked: ids and targets (B, T)."""
    ids = tokens.gather(window_starts(len(tokens), block_size, seed, index), block_size)
    ids, targets = mask_words(ids, masking, seed, index)
    return {"ids": ids, "targets": targets}


# ---- evaluation --------------------------------------------------------------------------------------------------


def eval_starts(n_tokens: int, block_size: int, max_tokens: int = 0) -> np.ndarray:
    """The starts of fixed windows that score every token once, or about `max_tokens` tokens, evenly spread."""
    starts = np.arange(0, max(n_tokens, 1), block_size)
    if max_tokens and len(starts) * block_size > max_tokens:
        starts = starts[np.linspace(0, len(starts) - 1, max(1, max_tokens // block_size)).astype(np.int64)]
    return starts


def eval_batch(tokens, block_size: int, starts: np.ndarray, first_id: int) -> dict[str, np.ndarray]:
    """ids and targets (len(starts), block_size): the first token is predicted from first_id; past the end is IGNORE."""
    rows = np.full((len(starts), block_size + 1), first_id, dtype=np.int64)
    for row, start in zip(rows, starts):
        ids = tokens.read(max(start - 1, 0), min(start + block_size, len(tokens)))
        row[int(start == 0):][:len(ids)] = ids
    position = starts[:, None] + np.arange(block_size)  # (B, T) of each target in the tokens
    return {"ids": rows[:, :-1], "targets": np.where(position < len(tokens), rows[:, 1:], IGNORE)}


def masked_eval_batch(tokens, block_size: int, starts: np.ndarray, masking: Masking) -> dict[str, np.ndarray]:
    """Full windows, masked in the same way every time: ids and targets (len(starts), block_size)."""
    ids = np.stack([tokens.read(start, start + block_size) for start in starts])
    ids, targets = mask_words(ids, masking, EVAL_SEED, starts)
    return {"ids": ids, "targets": targets}


def check_length(tokens, block_size: int, name: str) -> None:
    """Raise UserError if the tokens are too few for one window; name: of the split, for the message."""
    if len(tokens) < block_size + 1:
        raise UserError(f"{name} holds {len(tokens):,} tokens, fewer than block_size + 1 = {block_size + 1:,}; "
                        f"prepare more text or use a smaller --block_size")
