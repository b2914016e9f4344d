"""Pure functions on token ids for data_report.py: statistics of a text, and its tokens in readable form."""

from typing import NamedTuple

import numpy as np

from nanoft import bpe
from nanoft.inspect.targets import text_units
from nanoft.tasks import examples, features

RUN = 32  # tokens in a row that two splits must share to count as the same text


class Documents(NamedTuple):
    """Documents, or rows of a task, back to back: a whole split, or as much of it as is looked at."""
    ids: np.ndarray    # (tokens,) int64
    spans: np.ndarray  # (documents, 2) start and end of each, without the special tokens between documents

    def document(self, i: int) -> np.ndarray:
        return self.ids[self.spans[i, 0]:self.spans[i, 1]]

    @property
    def lengths(self) -> np.ndarray:
        return self.spans[:, 1] - self.spans[:, 0]


def from_tokens(tokens, end_id: int, limit: int) -> Documents:
    """The first documents of a bins.Tokens, `limit` tokens of them at most; the last one may be cut."""
    stop = min(len(tokens), limit)
    return Documents(tokens.read(0, stop), tokens.documents(end_id, stop))


def from_rows(rows: list[dict], tokenizer) -> Documents:
    """The rows of a task, all texts of a row as one document."""
    texts = [[f" {word}" for word in row["words"]] if "words" in row else
             [row[name] for name in (*examples.INPUTS, "response") if name in row] for row in rows]
    ids = features.encode_all([text for row in texts for text in row], tokenizer.encode_to_numpy)
    documents = [np.concatenate([ids[text] for text in row] or [np.zeros(0)]).astype(np.int64) for row in texts]
    ends = np.cumsum([0, *map(len, documents)])
    return Documents(np.concatenate(documents), np.stack((ends[:-1], ends[1:]), axis=1))


def frequencies(documents: Documents, vocab_size: int) -> np.ndarray:
    """How often each id occurs inside the documents: (vocab_size,)."""
    change = np.zeros(len(documents.ids) + 1, dtype=np.int64)  # +1 where a document starts, -1 where it ends
    np.add.at(change, documents.spans[:, 0], 1)
    np.add.at(change, documents.spans[:, 1], -1)
    return np.bincount(documents.ids[change.cumsum()[:-1] > 0], minlength=vocab_size)


def surprise(documents: Documents, counts: np.ndarray) -> np.ndarray:
    """How unusual the tokens of each document are: (documents,) nats per token, by the frequencies (V,) alone."""
    nats = np.log(counts.sum() + len(counts)) - np.log(counts + 1)
    sums = np.concatenate(([0.0], nats[documents.ids].cumsum()))
    return (sums[documents.spans[:, 1]] - sums[documents.spans[:, 0]]) / np.maximum(documents.lengths, 1)


def first_copies(documents: Documents) -> np.ndarray:
    """For each document the number of the first one with the same ids, perhaps itself: (documents,)."""
    first = {}
    return np.array([first.setdefault(documents.document(i).tobytes(), i) for i in range(len(documents.spans))])


def overlap(documents: Documents, other: Documents, n: int = RUN) -> float:
    """The fraction of the runs of n ids in `documents` that occur in `other` too. Equal hashes count as equal runs."""
    hashes = []  # of every run of either, a polynomial modulo 2^64: (tokens - n + 1,)
    for ids in (documents.ids, other.ids):
        count, values = max(len(ids) - n + 1, 0), ids.astype(np.uint64) + np.uint64(1)
        hashes.append(np.zeros(count, dtype=np.uint64))
        for i in range(n):
            hashes[-1] = hashes[-1] * np.uint64(0x9E3779B97F4A7C15) + values[i:i + count]
    return float(np.isin(hashes[0], hashes[1]).mean()) if len(hashes[0]) else 0.0


def decode(documents: Documents, tokenizer, limit: int) -> list[str]:
    """The texts of the first documents, up to about `limit` bytes."""
    texts, size = [], 0
    for i in range(len(documents.spans)):
        data = tokenizer.decode_bytes(documents.document(i).tolist())[:limit - size]
        texts.append(data.decode("utf-8", "ignore"))
        size += len(data)
        if size >= limit:
            break
    return texts


def bytes_per_token(texts: list[str], tokenizer) -> float:
    return sum(len(text.encode()) for text in texts) / sum(len(tokenizer.encode_to_numpy(text)) for text in texts)


def compression(train_texts: list[str], val_texts: list[str], pattern: str, sizes) -> dict[int, float]:
    """{vocabulary size: bytes per token of val_texts} for byte-pair encodings learned from train_texts.

    Merges are learned in order, so a small vocabulary is the beginning of a large one, and only the largest is learned.
    Sizes for which the text has too few merges are left out.
    """
    merges = bpe.train(train_texts, max(sizes), pattern, progress=False).content["merges"]
    number = {size: size - 256 - len(bpe.SPECIAL_TOKENS) for size in sorted(sizes)}  # of merges
    return {size: bytes_per_token(val_texts, bpe.Tokenizer(pattern, merges[:n]))
            for size, n in number.items() if n <= len(merges)}


# ---- tokens as a person reads them ---------------------------------------------------------------------------------


def readable(ids, values, tokenizer, notes=()):
    """Ids (T,) as texts, values and tooltips for html.words. Tokens sharing a character are one text; so is padding."""
    text_ids = np.flatnonzero(ids != tokenizer.special.get("<|pad|>", -1))
    end = text_ids[-1] + 1 if len(text_ids) else 0
    texts, colours, tooltips = [], [], []
    for text, positions in text_units(ids[:end], tokenizer):
        texts.append(text.replace("\n", "↵\n"))
        colours.append(max((values[i] for i in positions), key=abs))
        note = notes[positions[0]] if notes else ""
        tooltips.append(f"{note} id {', '.join(str(ids[i]) for i in positions)}".strip())
    if end < len(ids):
        texts.append(f" <|pad|> x {len(ids) - end}")
        colours.append(0.0)
        tooltips.append("padding, which no token attends to")
    return texts, colours, tooltips


def token_text(tokenizer, i: int) -> str:
    """A token with a visible space and line end; bytes that are no whole characters as numbers."""
    data = tokenizer.token_bytes[i]
    try:
        return data.decode().replace(" ", "␣").replace("\n", "↵")
    except UnicodeDecodeError:
        return f"<{data.hex(' ')}>"
