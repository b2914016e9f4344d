"""What a text is made of: pure functions from token ids to figures about them.

A Part is some documents (or rows of a task) as ids, back to back: the whole of a split, or as much of it as is looked
at. Spans are (start, end) of each document in it, without the special tokens between documents.
"""

from typing import NamedTuple

import numpy as np

from nanoft import bpe
from nanoft.tasks import examples, features

WINDOW = 32  # tokens that two splits must share to count as the same text


class Part(NamedTuple):
    ids: np.ndarray    # (tokens,) int64
    spans: np.ndarray  # (documents, 2)

    def document(self, i):
        return self.ids[self.spans[i, 0]:self.spans[i, 1]]

    @property
    def lengths(self):
        return self.spans[:, 1] - self.spans[:, 0]


def of_tokens(tokens, end_id, most):
    """The first documents of a bins.Tokens, about `most` tokens of them; the last one may be cut."""
    ids = tokens.read(0, min(len(tokens), most))
    ends = np.flatnonzero(ids == end_id)
    if not len(ends) or ends[-1] < len(ids) - 1:
        ends = np.append(ends, len(ids))
    spans = np.stack((np.concatenate(([0], ends[:-1] + 1)), ends), axis=1)
    return Part(ids, spans[spans[:, 1] > spans[:, 0]])


def of_rows(rows, tokenizer):
    """The rows of a task, all texts of a row as one document."""
    texts = [[f" {word}" for word in row["words"]] if "words" in row else
             [row[name] for name in (*examples.INPUTS, "response") if name in row] for row in rows]
    ids = features.encode_all([text for some in texts for text in some], tokenizer.encode_to_numpy)
    documents = [np.concatenate([ids[text] for text in some] or [np.zeros(0)]).astype(np.int64) for some in texts]
    ends = np.cumsum([0, *map(len, documents)])
    return Part(np.concatenate(documents), np.stack((ends[:-1], ends[1:]), axis=1))


def frequencies(part, vocab_size):
    """How often each id occurs inside the documents: (vocab_size,)."""
    inside = np.zeros(len(part.ids) + 1, dtype=np.int64)
    np.add.at(inside, part.spans[:, 0], 1)
    np.add.at(inside, part.spans[:, 1], -1)
    return np.bincount(part.ids[inside.cumsum()[:-1] > 0], minlength=vocab_size)


def zipf_exponent(counts):
    """The slope, made positive, of log frequency over log rank, for ranks 10 to 1,000; Zipf's law says 1.

    The ranks count evenly on the logarithmic axis. nan where there are too few different tokens.
    """
    ordered = np.sort(counts[counts > 0])[::-1]
    ranks = np.unique(np.geomspace(10, min(1000, len(ordered)), 50).astype(int)) if len(ordered) > 20 else ()
    if not len(ranks):
        return float("nan")
    return float(-np.polyfit(np.log(ranks), np.log(ordered[ranks - 1]), 1)[0])


def oddness(part, counts):
    """How unusual the tokens of each document are: their mean surprise in nats, if each came by its frequency alone."""
    surprise = np.log(counts.sum() + len(counts)) - np.log(counts + 1)
    sums = np.concatenate(([0.0], surprise[part.ids].cumsum()))
    return (sums[part.spans[:, 1]] - sums[part.spans[:, 0]]) / np.maximum(part.lengths, 1)


def copies(part):
    """For each document the number of the first one with the same ids, which may be its own: (documents,)."""
    first = {}
    return np.array([first.setdefault(part.document(i).tobytes(), i) for i in range(len(part.spans))])


def shared(part, other, n=WINDOW):
    """Which part of the runs of n ids in `part` occur in `other`, too. Equal hashes count as equal runs."""
    seen, asked = (hashes(x.ids, n) for x in (other, part))
    return float(np.isin(asked, seen).mean()) if len(asked) else 0.0


def hashes(ids, n):
    """A 64-bit hash of every run of n ids, with polynomial weights modulo 2^64: (tokens - n + 1,)."""
    count = max(len(ids) - n + 1, 0)
    total, values = np.zeros(count, dtype=np.uint64), ids.astype(np.uint64) + np.uint64(1)
    for i in range(n):
        total = total * np.uint64(0x9E3779B97F4A7C15) + values[i:i + count]
    return total


def texts(part, tokenizer, most):
    """The texts of the first documents, up to about `most` bytes."""
    found, size = [], 0
    for i in range(len(part.spans)):
        data = tokenizer.decode_bytes(part.document(i).tolist())[:most - size]
        found.append(data.decode("utf-8", "ignore"))
        size += len(data)
        if size >= most:
            break
    return found


def compression(train_texts, val_texts, pattern, sizes):
    """{vocabulary size: bytes a token on val_texts} of byte-pair encodings learned from train_texts.

    Merges are learned in order, so a smaller vocabulary is the beginning of a larger one, and one learning is enough.
    Sizes beyond what the text gives are left out.
    """
    merges = bpe.train(train_texts, max(sizes), pattern, progress=False).content["merges"]
    num_bytes = sum(len(text.encode()) for text in val_texts)
    found = {}
    for size in sorted(sizes):
        number = size - 256 - len(bpe.SPECIAL_TOKENS)
        if number <= len(merges):
            tokenizer = bpe.Tokenizer(pattern, merges[:number])
            found[size] = num_bytes / sum(len(tokenizer.encode_to_numpy(text)) for text in val_texts)
    return found
