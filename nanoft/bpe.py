"""Byte-level byte-pair encoding: learning the merges, and turning text into token ids and back.

A text is first cut into *chunks* (a word with its leading space, up to three digits, a run of punctuation, ...)
by a split pattern, and each chunk is a sequence of bytes. Learning then repeats one step: the most frequent pair of
adjacent tokens inside chunks becomes a new token. Only the counts of distinct chunks matter, so 10 MB of English are
some 30,000 short words. The method is Sennrich et al. 2016 (arXiv:1508.07909); bytes and split pattern are those of
GPT-2 (Radford et al. 2019) and GPT-4. Encoding with the learned merges is done by tiktoken's engine.

    python -m nanoft tokenizer FILE... --vocab_size=8192 --out=tokenizer.json
"""

import functools
import hashlib
import heapq
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import regex
import tiktoken

from nanoft import UserError
from nanoft.files import available_cores, in_groups, map_ahead, progress_bar, write_whole
from nanoft.pretokenize import BATCH, COARSE, PATTERNS, check_pattern, check_text, cut_runs, cut_safely

SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>", "<|mask|>", "<|cls|>", "<|sep|>")
# RoBERTa's names for them (arXiv:1907.11692); a document ends with the token that ends a text
ROBERTA = {"<|endoftext|>": "</s>", "<|pad|>": "<pad>", "<|mask|>": "<mask>", "<|cls|>": "<s>", "<|sep|>": "</s>",
           "<|unk|>": "<unk>"}


def train(texts: Iterable, vocab_size: int, pattern: str = "gpt4", processes: int = 0,
          progress: bool = True) -> "Tokenizer":
    """Learn a tokenizer.

    texts: an iterable of texts, each a str or an iterable of strs (its consecutive parts); read once, as a stream.
    vocab_size: 256 bytes + merges + 5 special tokens. pattern: "gpt4", "gpt2", or a regular expression.
    processes: for counting; 0 means one per core. Pairs with equal counts are ordered by their ids, so the result does
    not depend on the number of processes.
    Raises UserError for a vocabulary below 261 ids, an empty text, a pattern that is no regular expression.
    """
    smallest = 256 + len(SPECIAL_TOKENS)
    if not smallest <= vocab_size <= 1_000_000:
        raise UserError(f"vocab_size={vocab_size} is out of range; the smallest is {smallest} (256 bytes and "
                        f"{len(SPECIAL_TOKENS)} special tokens, no merges), the largest 1000000")
    pattern = check_pattern(pattern)
    chunks = count_chunks(texts, pattern, processes, progress)
    if not chunks:
        raise UserError("the text to learn a tokenizer from is empty; give at least one file with text in it")
    tokenizer = Tokenizer(pattern, learn_merges(chunks, vocab_size - smallest, progress))
    if tokenizer.vocab_size < vocab_size:
        print(f"tokenizer: the text has no pairs left to merge; vocabulary {tokenizer.vocab_size}, not {vocab_size}")
    return tokenizer


def count_chunks(texts: Iterable, pattern: str, processes: int, progress: bool) -> Counter:
    """How often each chunk of the split pattern occurs in the texts: {chunk as str: count}."""
    stream = in_groups((part for text in texts for part in cut_safely(text, pattern)), BATCH)
    first_two = [batch for batch in (next(stream, None), next(stream, None)) if batch]
    todo = itertools.chain(first_two, stream)
    count = functools.partial(count_batch, pattern)
    processes = processes or available_cores()
    show = progress_bar("counting words", unit="MB") if progress else lambda done: None
    total, done = Counter(), 0
    if processes == 1 or len(first_two) < 2:  # starting a pool would take longer
        results, pool = map(count, todo), None
    else:
        pool = ProcessPoolExecutor(processes)
        results = map_ahead(pool, count, todo, ahead=2 * processes)
    try:
        for length, counts in results:
            total.update(counts)
            done += length
            show(done / 1e6)
    finally:
        show(None)
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    return total


def count_batch(pattern: str, texts: Sequence[str]) -> tuple[int, dict[str, int]]:
    """Count the chunks of a few texts: (number of characters, {chunk: count})."""
    pieces, find = Counter(), regex.compile(pattern).finditer
    for text in texts:
        check_text(text)
        for part in cut_runs(text):
            pieces.update(COARSE[pattern].findall(part) if pattern in COARSE else [m.group() for m in find(part)])
    counts = defaultdict(int)
    for piece, count in pieces.items():
        for match in find(piece):
            counts[match.group()] += count
    return sum(map(len, texts)), dict(counts)


def learn_merges(chunks: dict[str, int], num_merges: int, progress: bool = True) -> list[tuple[int, int]]:
    """Merge the most frequent pair, `num_merges` times or until none is left: a list of pairs of ids.

    A token id is a character here and a chunk is a str of them, so that finding a pair and joining it are
    str.partition and +, which run in C. A merge touches only the chunks that contain the pair and changes only the
    counts of the pairs around it. Counts in the heap may be out of date; they are corrected when they reach its top.
    No two pairs give the same bytes: a sequence of bytes is merged the same way wherever it occurs.
    """
    words, counts = [], []
    pair_counts, where = defaultdict(int), defaultdict(list)  # of each pair: its count, and indices of words with it
    for chunk, count in chunks.items():
        word = chunk.encode().decode("latin-1")
        for pair in map("".join, itertools.pairwise(word)):
            pair_counts[pair] += count
            where[pair].append(len(words))
        words.append(word)
        counts.append(count)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    merges = []
    show = progress_bar("learning merges", num_merges) if progress else lambda done: None
    while heap and len(merges) < num_merges:
        priority, pair = heap[0]
        current = -pair_counts.get(pair, 0)
        if current != priority:  # out of date: other merges have taken some of its occurrences
            if current:
                heapq.heapreplace(heap, (current, pair))
            else:
                heapq.heappop(heap)
            continue
        heapq.heappop(heap)
        new = merge_pair(pair, chr(256 + len(merges)), where.pop(pair), words, counts, pair_counts, where)
        merges.append((ord(pair[0]), ord(pair[1])))
        pair_counts.update(new)
        for new_pair, count in new.items():
            heapq.heappush(heap, (-count, new_pair))
        if len(merges) % 256 == 0:
            show(len(merges))
    show(None)
    return merges


def merge_pair(pair: str, token: str, indices, words, counts, pair_counts, where) -> dict[str, int]:
    """Replace the pair by the token in the words with these indices; returns the counts of the new pairs."""
    first, second = pair[0], pair[1]
    swapped = second + first
    new = defaultdict(int)
    for i in indices:
        head, found, tail = words[i].partition(pair)
        if not found:  # an earlier merge took it, or the word is listed twice
            continue
        count = counts[i]
        left = head[-1:]
        head += token
        while True:
            if left:
                pair_counts[left + first] -= count
                new[left + token] += count
                where[left + token].append(i)
            while tail.startswith(pair):  # the next occurrence follows at once: two tokens side by side
                pair_counts[swapped] -= count
                new[token + token] += count
                where[token + token].append(i)
                head += token
                tail = tail[2:]
            if not tail:
                break
            right = tail[0]
            pair_counts[second + right] -= count
            new[token + right] += count
            where[token + right].append(i)
            between, found, rest = tail.partition(pair)
            if not found:
                break
            head += between + token
            left, tail = between[-1], rest
        words[i] = head + tail
    del pair_counts[pair]
    return new


class Tokenizer:
    """A vocabulary and its split pattern. Ids: 256 bytes (in `byte_order`), the merges, the special tokens.

    In a published vocabulary they may have other ids: then `ids` has one for each byte and merge, and special_tokens is
    {text: id}.

    vocab_size: number of ids. special: {text: id}; RoBERTa's tokens have two names, nanoft's and RoBERTa's.
    is_special: bool (V,). fingerprint: 32 hexadecimal digits, equal for equal content. token_bytes: id -> bytes.
    separators: number of <|sep|> between two texts. published: a published encoder's vocabulary, whose texts always
    stand between <|cls|> and <|sep|>.
    """

    def __init__(self, pattern: str, merges: Iterable[Sequence[int]], special_tokens=SPECIAL_TOKENS,
                 byte_order: Iterable[int] = range(256), ids: Iterable[int] | None = None):
        self.content: dict = {
            "format": "nanoft tokenizer", "version": 1, "pattern": PATTERNS.get(pattern, pattern),
            "special_tokens": list(special_tokens), "byte_order": list(byte_order),
            "merges": [list(pair) for pair in merges]}
        tokens = [bytes([byte]) for byte in byte_order]
        for a, b in merges:
            tokens.append(tokens[a] + tokens[b])
        self.ranks = {token: i for i, token in enumerate(tokens)}  # the order of merging when a text is encoded
        if ids is None:
            ids = range(len(tokens))
            special_tokens = {text: len(tokens) + i for i, text in enumerate(special_tokens)}
        else:
            self.content |= {"version": 2, "special_tokens": special_tokens, "ids": list(ids)}
        aliases = {name: special_tokens[roberta] for name, roberta in ROBERTA.items() if roberta in special_tokens}
        self.published = "<s>" in special_tokens
        self.separators = 1 + self.published
        self.special = special_tokens | aliases
        self.ids = np.array([*ids, *self.special.values()], dtype=np.uint32)  # tiktoken's ids -> ours
        self.vocab_size = len(tokens) + len(special_tokens)
        self.token_bytes = [b""] * self.vocab_size
        for i, token in (*zip(ids, tokens), *((i, text.encode()) for text, i in special_tokens.items())):
            self.token_bytes[i] = token
        self.is_special = np.isin(np.arange(self.vocab_size), list(special_tokens.values()))
        self.pattern = self.content["pattern"]

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()[:32]

    @functools.cached_property
    def encoding(self) -> tiktoken.Encoding:
        """tiktoken's engine for this vocabulary; built from the merges alone, never from the network."""
        special = {text: len(self.ranks) + i for i, text in enumerate(self.special)}
        return tiktoken.Encoding("nanoft", pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens=special)

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Text to ids. `<|endoftext|>` in it is plain text unless allow_special. Raises UserError as check_text."""
        return self.encode_to_numpy(text, allow_special).tolist()

    def encode_to_numpy(self, text: str, allow_special: bool = False) -> np.ndarray:
        """As encode(text), to an array of uint32; other threads can run meanwhile."""
        check_text(text)
        parts = [self.encoding.encode_to_numpy(part, allowed_special="all" if allow_special else set(),
                                               disallowed_special=()) for part in cut_runs(text)]
        return self.ids[parts[0] if len(parts) == 1 else np.concatenate(parts)]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ids of a text, and the start and end of each token in it, in characters: three arrays (T,).

        A token that holds only some bytes of a character covers that character.
        """
        ids = self.encode_to_numpy(text)
        codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        bytes_each = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
        character = np.repeat(np.arange(len(codes)), bytes_each)  # of each byte
        ends = np.cumsum(self.token_lengths[ids])
        return ids, character[ends - self.token_lengths[ids]], character[ends - 1] + 1

    @functools.cached_property
    def token_lengths(self) -> np.ndarray:
        """The number of bytes of each token, (V,)."""
        return np.array([len(token) for token in self.token_bytes])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join([self.token_bytes[i] for i in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text; bytes that are not UTF-8 (half of a character, say) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def chunk_starts(self, ids: Sequence[int]) -> np.ndarray:
        """Which tokens begin a chunk of the split pattern (mostly a word): ids (T,) -> bool (T,).

        The ids may start and end anywhere in a text. Special tokens, and the tokens after them, begin a chunk.
        """
        ids = np.asarray(ids, dtype=np.int64)
        is_special = self.is_special[ids]
        starts = is_special.copy()
        bounds = [-1, *np.flatnonzero(is_special).tolist(), len(ids)]
        for before, after in itertools.pairwise(bounds):
            if after - before > 1:
                starts[before + 1 : after] = self.segment_starts(ids[before + 1 : after].tolist())
        return starts

    def segment_starts(self, ids: list[int]) -> np.ndarray:
        """chunk_starts of ids without special tokens."""
        tokens = [self.token_bytes[i] for i in ids]
        text = b"".join(tokens).decode("utf-8", "surrogateescape")
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        stray = (codes >= 0xDC80) & (codes <= 0xDCFF)  # bytes of an incomplete character
        width = np.where(stray, 1, 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000))  # bytes per character
        position = np.cumsum(width) - width
        begins = np.zeros(int(width.sum()), dtype=bool)
        begins[position[[match.start() for match in regex.finditer(self.pattern, text)]]] = True
        length = self.token_lengths[ids]
        return begins[np.cumsum(length) - length]

    def save(self, path) -> None:
        """Write tokenizer.json, whole or not at all."""
        text = json.dumps(self.content, ensure_ascii=False, separators=(",", ":")) + "\n"
        write_whole(path, lambda file: file.write(text.encode("utf-8")))
