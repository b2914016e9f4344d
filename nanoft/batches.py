"""The batch of each step, a pure function of (seed, step): there is no loader state to save or to lose.

A script asks for certain rows of the global batch, so a rank, a micro-batch or a resumed run is only a choice of rows.
Training windows are drawn without replacement: each epoch lays a new grid of windows over the tokens, from a random
offset, and visits them in a random order.
"""

import functools
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
    starts = window_starts(len(tokens) - 1, block_size, seed, index)
    rows = tokens.gather(starts, block_size + 1)  # (B, T + 1)
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
        raise UserError("this tokenizer has no <|mask|> token, so words cannot be masked; train one with nanoft.bpe")
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
    order = draw.argsort(axis=1, kind="stable")
    rank = order.argsort(axis=1)
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


# ---- pairs of segments (BERT's next-sentence prediction) ----------------------------------------------------------


class Pairs:
    """Pairs `<|cls|> A <|sep|> B <|sep|>`: B follows A in its document (0), or comes from another one (1).

    Documents are cut into windows of at most block_size - 3 tokens; a window is cut in two at the sentence end nearest
    to a random position near its middle. A wrong B also begins a sentence and is as long as the right one, so that
    neither its start nor its length gives the answer away. Documents of fewer than two tokens make no pair.
    """

    def __init__(self, tokens, tokenizer, block_size: int, batch_size: int, seed: int, masking: Masking):
        self.tokens, self.masking, self.seed, self.batch_size = tokens, masking, seed, batch_size
        self.block_size = block_size
        self.cls, self.sep, self.pad = (tokenizer.special[f"<|{name}|>"] for name in ("cls", "sep", "pad"))
        self.ends_sentence = sentence_ends(tokenizer)
        self.documents = find_documents(tokens, tokenizer.special["<|endoftext|>"])  # (documents, 2): start, end
        if len(self.documents) < 2:
            raise UserError(f"{tokens.paths[0]} has {len(self.documents)} document(s) of two tokens or more; pairs of "
                            "segments need two at least: prepare more documents, or use --objective=mlm")
        start, end = self.documents.T
        self.by_length = (end - start).argsort(kind="stable")
        self.sorted_lengths, self.rank = (end - start)[self.by_length], self.by_length.argsort()
        room = block_size - 3
        count = -(-(end - start) // room)  # windows of each document
        document = np.repeat(np.arange(len(count)), count)
        nth = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
        # the last window ends with its document, and is full if the document has that many tokens
        first = np.maximum(start[document], np.minimum(start[document] + nth * room, end[document] - room))
        self.windows = np.stack((first, np.minimum(room, end[document] - first), document), axis=1)

    @functools.lru_cache(maxsize=2)  # noqa: B019  (lives as long as the run)
    def order(self, epoch: int) -> np.ndarray:
        """The windows of an epoch in batches of similar lengths, which saves padding; windows and batches shuffled."""
        n, per_pool = len(self.windows), 64 * self.batch_size
        order = shuffled(np.arange(n), n, (self.seed, epoch, PAIRS))
        n_batches = n // self.batch_size
        if not n_batches:
            return order
        order = order[:n_batches * self.batch_size]  # the rest, which fills no batch, comes in another epoch
        for i in range(0, len(order), per_pool):
            pool = order[i:i + per_pool]
            order[i:i + per_pool] = pool[self.windows[pool, 1].argsort(kind="stable")]
        rows = order.reshape(n_batches, self.batch_size)
        return rows[shuffled(np.arange(n_batches), n_batches, (self.seed, epoch, PAIRS + 1))].ravel()

    def batch(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The training pairs number `index` (B,), all of one global batch, as `rows` gives them."""
        per_epoch = max(1, len(self.windows) // self.batch_size)
        step = int(index[0]) // self.batch_size
        order = self.order(step // per_epoch)
        start = step % per_epoch * self.batch_size
        windows = order[(start + np.arange(self.batch_size)) % len(order)]  # of the global batch
        return self.rows(windows[index % self.batch_size], index, int(self.windows[windows, 1].max()))

    def rows(self, windows: np.ndarray, numbers: np.ndarray, longest: int) -> dict[str, np.ndarray]:
        """The pairs of these windows (B,); the cut and the second segment are drawn from (seed, number) of each.

        ids, types, mask, targets (B, T) and next_targets (B,). T fits a window of `longest` tokens, rounded up so that
        there are at most four different T, for each of which code is compiled once.
        """
        longest += 3
        multiple = max(64, -(-self.block_size // 4))
        T = min(-(-longest // multiple) * multiple, self.block_size)
        ids = np.full((len(windows), T), self.pad, dtype=np.int64)
        types, next_targets = np.zeros_like(ids), np.empty(len(windows), dtype=np.int64)
        for row, (window, number) in enumerate(zip(windows, numbers)):
            a, b, next_targets[row] = self.pair(window, number)
            text = np.concatenate(([self.cls], a, [self.sep], b, [self.sep]))
            ids[row, :len(text)] = text
            types[row, len(a) + 2:len(text)] = 1
        masked, targets = mask_words(ids, self.masking, self.seed, numbers)
        return {"ids": masked, "types": types, "mask": ids != self.pad, "targets": targets,
                "next_targets": next_targets}

    def pair(self, window: int, number: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The two segments of a window, and 0 if the second follows the first, else 1."""
        rng = np.random.default_rng((self.seed, number, PAIRS))
        start, length, document = self.windows[window]
        ids = self.tokens.read(start, start + length)
        middle = rng.integers(length // 4, 3 * length // 4 + 1)
        cut = self.sentence_start(ids, int(np.clip(middle, 1, length - 1)), 1, length - 1)
        a, b = ids[:cut], ids[cut:]
        if rng.random() < 0.5:
            return a, b, 0
        first, end = self.documents[self.another(document, len(b), rng)]
        last = max(first, end - len(b))  # the last start with as many tokens after it
        near = int(rng.integers(first, last + 1))
        low = max(first, near - length)
        around = self.tokens.read(low, min(last + 1, near + length))
        start = low + self.sentence_start(around, near - low, 0 if low == first else 1, len(around) - 1)
        return a, self.tokens.read(start, min(start + len(b), end)), 1

    def another(self, document: int, length: int, rng: np.random.Generator) -> int:
        """A random other document of at least `length` tokens, or one of the longest."""
        n = len(self.documents)
        first = min(int(np.searchsorted(self.sorted_lengths, length)), n - 2)  # rank of the shortest that will do
        own = self.rank[document]
        rank = int(rng.integers(first, n - (own >= first)))
        return self.by_length[rank + (first <= own <= rank)]  # skips this document

    def sentence_start(self, ids: np.ndarray, near: int, low: int, high: int) -> int:
        """The position in low..high nearest to `near` after a sentence's end; `near` itself if there is none."""
        starts = np.flatnonzero(self.ends_sentence[ids]) + 1
        if low == 0:
            starts = np.append(starts, 0)  # a document begins with a sentence
        starts = starts[(starts >= low) & (starts <= high)]
        return int(starts[np.abs(starts - near).argmin()]) if len(starts) else near


def find_documents(tokens, eot: int, size: int = 2**24) -> np.ndarray:
    """Start and end (without its <|endoftext|>) of each document of two tokens or more: int64 (documents, 2).

    size: tokens that are read at once.
    """
    ends = np.concatenate([np.flatnonzero(tokens.read(i, min(i + size, len(tokens))) == eot) + i
                           for i in range(0, len(tokens), size)])
    spans = np.stack((np.concatenate(([0], ends[:-1] + 1)), ends), axis=1)
    return spans[spans[:, 1] - spans[:, 0] >= 2]


def sentence_ends(tokenizer) -> np.ndarray:
    """Which ids end a sentence or a line: bool (V,)."""
    marks = tuple(mark.encode() for mark in ".!?。！？")
    texts = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
    return np.array([text.rstrip(b' "\'').endswith(marks) or text.endswith(b"\n") for text in texts])


# ---- evaluation --------------------------------------------------------------------------------------------------


def eval_starts(n_tokens: int, block_size: int, stride: int, max_tokens: int = 0) -> np.ndarray:
    """The starts of fixed windows that score every token once, or about `max_tokens` tokens, evenly spread."""
    starts = np.arange(0, max(n_tokens - block_size + stride, 1), stride)
    if max_tokens and len(starts) * stride > max_tokens:
        starts = starts[np.linspace(0, len(starts) - 1, max(1, max_tokens // stride)).astype(np.int64)]
    return starts


def eval_batch(tokens, block_size: int, stride: int, starts: np.ndarray, first_id: int) -> dict[str, np.ndarray]:
    """Windows that score their last `stride` tokens: ids and targets, each (len(starts), block_size).

    The window at 0 scores all its tokens; the very first is predicted from `first_id`. Positions past the end, and
    context that another window scores, are IGNORE.
    """
    position = starts[:, None] + np.arange(block_size)  # (B, T) of each target in the tokens
    rows = np.full((len(starts), block_size + 1), first_id, dtype=np.int64)
    for row, start in zip(rows, starts):
        ids = tokens.read(max(start - 1, 0), min(start + block_size, len(tokens)))
        row[int(start == 0):][:len(ids)] = ids
    context = (np.arange(block_size) < block_size - stride) & (starts[:, None] > 0)
    targets = np.where(context | (position >= len(tokens)), IGNORE, rows[:, 1:])
    return {"ids": rows[:, :-1], "targets": targets}


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
