"""Statistics of texts: counts by hand, copies, shared runs, and compression by truncated merges."""

import numpy as np
import pytest

from nanoft import bpe
from nanoft.bins import Tokens
from nanoft.pages import text_statistics as statistics
from nanoft.pages.html import words
from nanoft.text import vocabulary


def back_to_back(*documents):
    ends = np.cumsum([0, *map(len, documents)])
    return statistics.Documents(np.concatenate(documents).astype(np.int64), np.stack((ends[:-1], ends[1:]), axis=1))


def test_documents_of_a_token_file(corpus):
    tokens, tokenizer = Tokens.open(corpus, "train"), vocabulary.load(corpus)
    end = tokenizer.special["<|endoftext|>"]
    whole = statistics.from_tokens(tokens, end, 10**9)
    assert len(whole.spans) == tokens.num_documents and whole.lengths.sum() == len(tokens) - tokens.num_documents
    counts = statistics.frequencies(whole, tokenizer.vocab_size)
    assert counts[end] == 0 and counts.sum() == whole.lengths.sum()
    cut = statistics.from_tokens(tokens, end, 1000)
    assert len(cut.ids) == 1000 and cut.spans[-1, 1] == 1000
    assert (cut.document(0) == whole.document(0)[:1000]).all()
    first = statistics.decode(whole, tokenizer, 500)
    assert first == [tokenizer.decode(whole.document(0).tolist()).encode()[:500].decode("utf-8", "ignore")]


def test_rows_keep_all_their_texts():
    tokenizer = bpe.train(["one two three one two three"], 270, progress=False)
    rows = [{"text": "one two", "pair": "three", "label": "x"}, {"words": ["one", "two"], "tags": ["O", "O"]},
            {"text": "", "label": "y"}]
    found = statistics.from_rows(rows, tokenizer)
    assert [tokenizer.decode(found.document(i).tolist()) for i in range(3)] == ["one twothree", " one two", ""]


def test_copies_and_shared_runs():
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(1000, size=100) for _ in range(3))
    assert statistics.first_copies(back_to_back(a, b, a, c, b, a)).tolist() == [0, 1, 0, 3, 1, 0]
    train = back_to_back(a, b)
    assert statistics.overlap(back_to_back(a), train, 32) == 1.0
    assert statistics.overlap(back_to_back(c), train, 32) == 0.0
    half = back_to_back(np.concatenate((a[:66], c[:66])))  # 132 - 31 = 101 runs, 66 - 31 = 35 of them in training
    assert statistics.overlap(half, train, 32) == pytest.approx(35 / 101)
    assert statistics.overlap(back_to_back(a[:10]), train, 32) == 0.0


def test_oddness_is_the_mean_surprise():
    some = back_to_back([0, 0, 0, 0], [1, 0], [2, 2])
    counts = statistics.frequencies(some, 3)
    assert counts.tolist() == [5, 1, 2]
    surprise = -np.log(np.array([6, 2, 3]) / 11)
    assert statistics.surprise(some, counts) == pytest.approx([surprise[0], surprise[:2].mean(), surprise[2]])


def test_smaller_vocabularies_are_beginnings_of_larger_ones():
    text = "the cat sat on the mat and the dog lay on the rug while the bird sang in the tree " * 3
    found = statistics.compression([text], [text], "gpt4", (262, 280, 300, 10_000))
    assert list(found) == [262, 280, 300]
    for size in found:
        alone = bpe.train([text], size, progress=False)
        assert found[size] == len(text) / len(alone.encode(text))


def test_characters_of_several_tokens_stand_whole():
    tokenizer = bpe.train(["plain text only"], 262, progress=False)
    ids = tokenizer.encode("x中\n") + [tokenizer.special["<|sep|>"]] + [tokenizer.special["<|pad|>"]] * 5
    ids = np.array(ids)
    shown = words(*statistics.readable(ids, [0.1] * len(ids), tokenizer))
    assert ">中<" in shown and "↵" in shown and "&lt;|pad|&gt; x 5" in shown and "�" not in shown
    cut = words(*statistics.readable(ids[:3], [0.1] * 3, tokenizer))  # inside the character
    assert "�" in cut
    assert statistics.token_text(tokenizer, ids[1]).startswith("<e4")
    assert statistics.token_text(tokenizer, ord(" ")) == "␣"
