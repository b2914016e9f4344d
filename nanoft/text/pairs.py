"""Pairs of segments for BERT's next-sentence prediction (arXiv:1810.04805), with masked tokens.

As in batches.py, a batch is a pure function of (seed, step).
"""

import functools

import numpy as np

from nanoft import UserError
from nanoft.batches import PAIRS, Masking, mask_words, shuffled


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
        marks = tuple(mark.encode() for mark in ".!?。！？")
        self.ends_sentence = np.array([  # does a token end a sentence or a line? (V,)
            text.rstrip(b' "\'').endswith(marks) or text.endswith(b"\n") for text in tokenizer.token_bytes])
        spans = tokens.documents(tokenizer.special["<|endoftext|>"], len(tokens))
        self.documents = spans[spans[:, 1] - spans[:, 0] >= 2]  # (documents, 2): start, end
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
