"""What step s sees. Every batch is a pure function of (seed, step): there is no loader state to save or to lose.

A script asks for the rows it wants of the global batch, so a rank, a micro-step or a resumed run is only a choice of
rows. Training windows come without replacement: each epoch lays a fresh grid of windows over the tokens, from a
random offset, and visits it in a random order.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nanoft import UserError

IGNORE = -100  # the target of a position that is not scored; never a class
EVAL_SEED = 0  # of masks and pairs in evaluation, whatever the run's own seed
WINDOWS, MASKS, PAIRS, GROUPS, CHANGES = 1, 2, 3, 5, 7  # keep the random numbers of different uses apart


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
        this_epoch = epochs == epoch
        offset = np.random.default_rng((seed, epoch, WINDOWS)).integers(slack + 1)
        order = shuffled(index[this_epoch] % per_epoch, per_epoch, (seed, epoch, WINDOWS))
        starts[this_epoch] = offset + order * length
    return starts


def causal_batch(tokens, block_size, seed, index):
    """The training windows number `index` (B,): ids and targets, each int64 (B, block_size)."""
    starts = window_starts(len(tokens) - 1, block_size, seed, index)
    rows = tokens.gather(starts, block_size + 1)  # (B, T + 1)
    return {"ids": rows[:, :-1], "targets": rows[:, 1:]}


# ---- masked words (BERT) -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Masking:
    """How words are hidden: the part of them, the tokenizer's ids, and whether whole words go together."""
    prob: float
    mask_id: int
    ordinary: np.ndarray  # ids of all tokens that are not special
    is_ordinary: np.ndarray  # bool (vocabulary,)
    chunk_starts: Callable | None = None  # tells, for whole words, which tokens begin one


def masking(tokenizer, prob, whole_word=False):
    """Raises UserError for a tokenizer without <|mask|>."""
    if "<|mask|>" not in tokenizer.special:
        raise UserError("this tokenizer has no <|mask|> token, so words cannot be masked; train one with nanoft.bpe")
    if whole_word and tokenizer.chunk_starts(tokenizer.encode(" antidisestablishmentarianism"))[1:].any():
        raise UserError("this tokenizer's split pattern cuts words into pieces, so --whole_word would mask as usual; "
                        "train a tokenizer with the gpt4 or gpt2 pattern")
    is_ordinary = ~tokenizer.is_special
    return Masking(prob, tokenizer.special["<|mask|>"], np.flatnonzero(is_ordinary), is_ordinary,
                   tokenizer.chunk_starts if whole_word else None)


def mask_words(ids, masking, seed, index):
    """Hide words for a masked language model (arXiv:1810.04805).

    ids: (B, T); row i is masked by random numbers of (seed, index[i]) alone. Gives the ids the model sees and the
    targets, IGNORE where nothing is asked. Of the ordinary tokens a part `prob` is chosen; of those 80 % become
    <|mask|>, 10 % a random ordinary token, 10 % stay. One uniform draw a token decides: the smallest are chosen, and
    their order divides them. So a row has a fixed number of chosen tokens (up to a fraction, drawn as well), which
    compiled code wants; a plain comparison with `prob` would not.
    """
    B, T = ids.shape
    draw, replacement, fraction = np.empty((B, T)), np.empty((B, T), dtype=np.int64), np.empty((B, 2))
    for row, number in enumerate(index):
        rng = np.random.default_rng((seed, number, MASKS))
        draw[row], fraction[row] = rng.random(T), rng.random(2)
        replacement[row] = masking.ordinary[rng.integers(len(masking.ordinary), size=T)]
    if masking.chunk_starts is not None:  # all tokens of a word share the draw of its first
        starts = np.stack([masking.chunk_starts(row) for row in ids])
        starts[:, 0] = True
        first = np.maximum.accumulate(np.where(starts, np.arange(T), 0), axis=1)  # (B, T) where the word began
        draw = np.take_along_axis(draw, first, axis=1)
    maskable = masking.is_ordinary[ids]
    draw[~maskable] = np.inf
    order = draw.argsort(axis=1, kind="stable")
    rank = order.argsort(axis=1)
    count = np.floor(masking.prob * maskable.sum(1) + fraction[:, 0]).astype(np.int64)
    count = np.clip(count, 1, maskable.sum(1))[:, None]  # (B, 1); one at least, as BERT has it
    chosen = rank < count
    if masking.chunk_starts is not None:  # a word of which only a part would fit is left whole, be it the only one
        ordered = np.append(np.sort(draw, axis=1), np.full((B, 1), np.inf), axis=1)  # (B, T + 1)
        chosen &= draw != np.take_along_axis(ordered, count, axis=1)  # the draw of the first that is not chosen
        count = chosen.sum(axis=1, keepdims=True)
    part = (rank + fraction[:, 1:]) / np.maximum(count, 1)  # 0 to 1 over the chosen, in the order of their draws
    seen = np.where(chosen & (part < 0.8), masking.mask_id, ids)
    seen = np.where(chosen & (part >= 0.8) & (part < 0.9), replacement, seen)
    return seen, np.where(chosen, ids, IGNORE)


def capacity(shape, prob):
    """A number of masked tokens that a batch of this shape (B, T) can never exceed."""
    return shape[0] * (int(prob * shape[1]) + 1)


def masked_batch(tokens, block_size, seed, index, masking):
    """Windows number `index`, documents back to back without padding, with words hidden: ids and targets (B, T)."""
    ids = tokens.gather(window_starts(len(tokens), block_size, seed, index), block_size)
    ids, targets = mask_words(ids, masking, seed, index)
    return {"ids": ids, "targets": targets}


# ---- pairs of segments (BERT's next-sentence prediction) ----------------------------------------------------------


class Pairs:
    """Pairs `<|cls|> A <|sep|> B <|sep|>`: B follows A in its document (0), or comes from another one (1).

    Documents are cut into windows of at most block_size - 3 tokens; a window is cut in two at the sentence end nearest
    to a random place near its middle. A wrong B also begins a sentence and is as long as the right one, so that
    neither its start nor its length gives the answer away. Documents of fewer than two tokens make no pair.
    """

    def __init__(self, tokens, tokenizer, block_size, batch_size, seed, masking):
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
        # the last window of a document ends with it, and is full if the document has that many tokens
        first = np.maximum(start[document], np.minimum(start[document] + nth * room, end[document] - room))
        self.windows = np.stack((first, np.minimum(room, end[document] - first), document), axis=1)

    @functools.lru_cache(maxsize=2)  # noqa: B019  (lives as long as the run)
    def order(self, epoch):
        """The windows of an epoch, shuffled, in batches of like lengths (which saves padding), these shuffled too."""
        n, per_pool = len(self.windows), 64 * self.batch_size
        order = shuffled(np.arange(n), n, (self.seed, epoch, PAIRS))
        whole = n // self.batch_size
        if not whole:
            return order
        order = order[:whole * self.batch_size]  # what makes no whole batch has its turn in another epoch
        for i in range(0, len(order), per_pool):
            pool = order[i:i + per_pool]
            order[i:i + per_pool] = pool[self.windows[pool, 1].argsort(kind="stable")]
        rows = order.reshape(whole, self.batch_size)
        return rows[shuffled(np.arange(whole), whole, (self.seed, epoch, PAIRS + 1))].ravel()

    def batch(self, index):
        """The training pairs number `index` (B,), a part of a global batch, as `rows` gives them."""
        per_epoch = max(1, len(self.windows) // self.batch_size)
        step = int(index[0]) // self.batch_size
        order = self.order(step // per_epoch)
        place = step % per_epoch * self.batch_size
        everyone = order[(place + np.arange(self.batch_size)) % len(order)]  # the windows of the global batch
        return self.rows(everyone[index % self.batch_size], index, int(self.windows[everyone, 1].max()))

    def rows(self, windows, numbers, longest):
        """The pairs of some windows (B,), each by the random numbers of its own number.

        ids, types, mask, targets (B, T) and next_targets (B,). T fits a window of `longest` tokens, rounded up so that
        compiled code, which is made anew for each T, sees four at most.
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
        seen, targets = mask_words(ids, self.masking, self.seed, numbers)
        return {"ids": seen, "types": types, "mask": ids != self.pad, "targets": targets, "next_targets": next_targets}

    def pair(self, window, number):
        """The two segments of a window and 0 if they belong together, else 1."""
        rng = np.random.default_rng((self.seed, number, PAIRS))
        start, length, document = self.windows[window]
        ids = self.tokens.read(start, start + length)
        middle = rng.integers(length // 4, 3 * length // 4 + 1)
        cut = self.sentence_start(ids, int(np.clip(middle, 1, length - 1)), 1, length - 1)
        a, b = ids[:cut], ids[cut:]
        if rng.random() < 0.5:
            return a, b, 0
        first, end = self.documents[self.another(document, len(b), rng)]
        last = max(first, end - len(b))  # the latest place from which as many tokens follow
        place = int(rng.integers(first, last + 1))
        low = max(first, place - length)
        near = self.tokens.read(low, min(last + 1, place + length))
        place = low + self.sentence_start(near, place - low, 0 if low == first else 1, len(near) - 1)
        return a, self.tokens.read(place, min(place + len(b), end)), 1

    def another(self, document, length, rng):
        """A random document but this one, of at least `length` tokens, or of the longest there are."""
        n = len(self.documents)
        first = min(np.searchsorted(self.sorted_lengths, length), n - 2)  # of those long enough, by length
        own = self.rank[document]
        place = int(rng.integers(first, n - (own >= first)))
        return self.by_length[place + (first <= own <= place)]  # the one after, if it would be this document

    def sentence_start(self, ids, near, low, high):
        """The place in low..high nearest to `near` that follows a sentence's end; `near` itself if there is none."""
        starts = np.flatnonzero(self.ends_sentence[ids]) + 1
        if low == 0:
            starts = np.append(starts, 0)  # a document's beginning begins a sentence
        starts = starts[(starts >= low) & (starts <= high)]
        return int(starts[np.abs(starts - near).argmin()]) if len(starts) else near


def find_documents(tokens, eot, piece=2**24):
    """Start and end (its <|endoftext|> left out) of each document of two tokens or more: int64 (documents, 2)."""
    ends = np.concatenate([np.flatnonzero(tokens.read(i, min(i + piece, len(tokens))) == eot) + i
                           for i in range(0, len(tokens), piece)])
    spans = np.stack((np.concatenate(([0], ends[:-1] + 1)), ends), axis=1)
    return spans[spans[:, 1] - spans[:, 0] >= 2]


def sentence_ends(tokenizer):
    """Which ids end a sentence or a line: bool (vocabulary,)."""
    marks = tuple(mark.encode() for mark in ".!?。！？")
    texts = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
    return np.array([text.rstrip(b' "\'').endswith(marks) or text.endswith(b"\n") for text in texts])


# ---- evaluation --------------------------------------------------------------------------------------------------


def eval_starts(n_tokens, block_size, stride, max_tokens=0):
    """Where the fixed windows begin that score every token once, or about `max_tokens` of them, evenly spread."""
    starts = np.arange(0, max(n_tokens - block_size + stride, 1), stride)
    if max_tokens and len(starts) * stride > max_tokens:
        starts = starts[np.linspace(0, len(starts) - 1, max(1, max_tokens // stride)).astype(np.int64)]
    return starts


def eval_batch(tokens, block_size, stride, starts, first_id):
    """Windows that score their last `stride` tokens: ids and targets, each (len(starts), block_size).

    The window at 0 scores all of its tokens; the first of all is predicted from `first_id`. Positions past the end
    and context that another window scores are IGNORE.
    """
    place = starts[:, None] + np.arange(block_size)  # (B, T) where each target stands in the tokens
    rows = np.full((len(starts), block_size + 1), first_id, dtype=np.int64)
    for row, start in zip(rows, starts):
        piece = tokens.read(max(start - 1, 0), min(start + block_size, len(tokens)))
        row[int(start == 0):][:len(piece)] = piece
    context = (np.arange(block_size) < block_size - stride) & (starts[:, None] > 0)
    targets = np.where(context | (place >= len(tokens)), IGNORE, rows[:, 1:])
    return {"ids": rows[:, :-1], "targets": targets}


def masked_eval_batch(tokens, block_size, starts, masking):
    """Whole windows with words hidden, the same ones every time: ids and targets (len(starts), block_size)."""
    ids = np.stack([tokens.read(start, start + block_size) for start in starts])
    ids, targets = mask_words(ids, masking, EVAL_SEED, starts)
    return {"ids": ids, "targets": targets}


def check_length(tokens, block_size, name):
    if len(tokens) < block_size + 1:
        raise UserError(f"{name} holds {len(tokens):,} tokens, fewer than block_size + 1 = {block_size + 1:,}; "
                        f"prepare more text or use a smaller --block_size")
