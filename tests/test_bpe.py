"""Learning merges, encoding and decoding: against a slow plain learner and random text."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import regex

from nanoft import UserError
from nanoft.bpe import SPECIAL_TOKENS, Tokenizer, train
from nanoft.files import read_blocks
from nanoft.pretokenize import COARSE, PATTERNS, cut_safely
from nanoft.text import vocabulary

ROOT = Path(__file__).resolve().parents[1]
# every kind of character that a split pattern tells apart, unicode spaces and the separators \x1c-\x1f included
ALPHABET = "aabZé中א٣7½1 2   \t\n\n\r\v\f\x1c\x1f\x85\u00a0\u2003\u2028\u3000.,'!-\u0301\u200d🙂<|>s'll'RE"


def random_text(generator, length):
    return "".join(generator.choices(ALPHABET, k=length))


def plain_merges(chunks, num_merges):
    """The definition, slowly: count all pairs of all chunks anew for each merge."""
    words = {tuple(chunk.encode()): number for chunk, number in chunks.items()}
    merges = []
    while len(merges) < num_merges:
        pairs = Counter()
        for word, number in words.items():
            for pair in zip(word[:-1], word[1:], strict=True):
                pairs[pair] += number
        if not pairs:
            break
        a, b = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((a, b))
        merged = {}
        for word, number in words.items():
            out = []
            i = 0
            while i < len(word):
                if word[i : i + 2] == (a, b):
                    out.append(255 + len(merges))
                    i += 2
                else:
                    out.append(word[i])
                    i += 1
            merged[tuple(out)] = merged.get(tuple(out), 0) + number
        words = merged
    return merges


@pytest.fixture(scope="module")
def tokenizer():
    text = (ROOT / "nanoft" / "bpe.py").read_text(encoding="utf-8") * 2 + "机器学习 模型" * 20
    return train([text], 900, progress=False)


@pytest.mark.parametrize("pattern", ["gpt4", "gpt2"])
def test_merges_equal_the_plain_definition(pattern):
    generator = random.Random(1)
    # runs and short alphabets make overlapping pairs
    texts = ["".join(generator.choices("aab c", k=400)), "-" * 61 + " " + "=" * 37, random_text(generator, 2000)]
    chunks = Counter(match.group() for text in texts for match in regex.finditer(PATTERNS[pattern], text))
    learned = train(texts, 261 + 200, pattern, progress=False)
    assert [tuple(pair) for pair in learned.content["merges"]] == plain_merges(chunks, 200)
    assert len(set(learned.token_bytes)) == learned.vocab_size


@pytest.mark.parametrize("pattern", ["gpt4", "gpt2"])
def test_coarse_pieces_and_cuts_keep_every_chunk(pattern):
    generator = random.Random(2)
    fine = regex.compile(PATTERNS[pattern]).findall
    for _ in range(3000):
        text = random_text(generator, generator.randrange(1, 40))
        chunks = fine(text)
        assert "".join(chunks) == text
        pieces = COARSE[PATTERNS[pattern]].findall(text)
        assert [chunk for piece in pieces for chunk in fine(piece)] == chunks
        parts = list(cut_safely([text[:7], text[7:]], PATTERNS[pattern], size=3))
        assert [chunk for part in parts for chunk in fine(part)] == chunks


def test_the_result_does_not_depend_on_processes_or_blocks():
    generator = random.Random(3)
    text = " ".join("".join(generator.choices("etaoin", k=generator.randrange(1, 7))) for _ in range(50_000)) * 12
    assert len(text) > 2**21  # more than one batch, so that a pool is used
    one = train([text], 400, processes=1, progress=False)
    two = train([[text[i : i + 300_001] for i in range(0, len(text), 300_001)]], 400, processes=2, progress=False)
    assert one.fingerprint == two.fingerprint


def test_round_trips(tokenizer):
    generator = random.Random(4)
    for length in list(range(20)) + [3000]:
        text = random_text(generator, length)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode_to_numpy(text).tolist() == tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode("中文🙂")[:1]) != ""  # a character cut in two is replaced, not refused


def test_special_tokens_are_text_unless_asked_for(tokenizer):
    end = tokenizer.special["<|endoftext|>"]
    assert end not in tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.decode(tokenizer.encode("a<|endoftext|>b")) == "a<|endoftext|>b"
    assert tokenizer.encode("a<|endoftext|>b", allow_special=True).count(end) == 1
    assert list(tokenizer.special.values()) == list(range(tokenizer.vocab_size - 5, tokenizer.vocab_size))
    assert tuple(tokenizer.special) == SPECIAL_TOKENS


def test_no_merges_is_one_token_a_character():
    tokenizer = train(["To be"], 261, progress=False)
    assert tokenizer.vocab_size == 261
    assert tokenizer.encode("To be") == list(b"To be")


def test_a_pattern_of_ones_own_loses_no_text():
    tokenizer = train(["ab12 ab12"], 300, pattern=r"[a-z]+", progress=False)
    assert tokenizer.decode(tokenizer.encode("ab12\ncd")) == "ab12\ncd"
    assert tokenizer.fingerprint == Tokenizer(tokenizer.pattern, tokenizer.content["merges"]).fingerprint


@pytest.mark.parametrize("call, words", [
    (lambda: train(["text"], 260), "smallest is 261"),
    (lambda: train([], 300), "empty"),
    (lambda: train(["", ""], 300), "empty"),
    (lambda: train(["a\ud800"], 300), "surrogate"),
    (lambda: train(["text"], 300, pattern="(unclosed"), "regular expression"),
    (lambda: train(["text"], 300, pattern="x*"), "matches the empty text"),
    (lambda: Tokenizer("gpt4", []).encode("fine \udfff"), "surrogate"),
])
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_save_and_load(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    again = vocabulary.load(path)
    assert again.fingerprint == tokenizer.fingerprint and len(again.fingerprint) == 32
    assert again.encode("def f(x): 模型") == tokenizer.encode("def f(x): 模型")
    assert os.listdir(tmp_path) == ["tokenizer.json"]


def set_key(key, value):
    return lambda content: json.dumps(content | {key: value})


@pytest.mark.parametrize("damage", [
    lambda content: json.dumps(content)[:-40],
    lambda content: "[1, 2]",
    lambda content: json.dumps({key: content[key] for key in content if key != "merges"}),
    set_key("version", 2), set_key("merges", [[97, 98], [97, 98]]), set_key("merges", [[97, 300]]),
    set_key("merges", [[97]]), set_key("merges", 5), set_key("byte_order", [0] * 256), set_key("pattern", "("),
    set_key("special_tokens", ["<|pad|>"]), set_key("special_tokens", None),
])
def test_a_damaged_tokenizer_file_is_refused(tokenizer, tmp_path, damage):
    path = tmp_path / "tokenizer.json"
    path.write_text(damage(tokenizer.content), encoding="utf-8")
    with pytest.raises(UserError, match="tokenizer.json"):
        vocabulary.load(path)
    with pytest.raises(UserError, match="no such file"):
        vocabulary.load(tmp_path / "none.json")


def test_chunk_starts(tokenizer):
    text = "def encode_text(data): return 中文, données  x = 12345\n\n    pass"
    ids = tokenizer.encode(text)
    starts = tokenizer.chunk_starts(ids)
    chunks = regex.findall(tokenizer.pattern, text)
    assert starts.dtype == bool and starts.sum() == len(chunks)
    bounds = [*np.flatnonzero(starts).tolist(), len(ids)]
    assert [tokenizer.decode(ids[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)] == chunks
    mask = tokenizer.special["<|mask|>"]
    assert tokenizer.chunk_starts([mask, *ids, mask, *ids[1:]])[: len(ids) + 3].tolist() == \
        [True, *starts.tolist(), True, True]
    for cut in range(1, len(ids)):  # anywhere, inside a character too: never an error, and the first begins a chunk
        assert tokenizer.chunk_starts(ids[cut:])[0] and len(tokenizer.chunk_starts(ids[cut:])) == len(ids) - cut
    assert len(tokenizer.chunk_starts([])) == 0


def test_read_blocks(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "héllo\r\n中文".encode())
    for size in (3, 4, 5, 7, 100):
        assert "".join(read_blocks(path, size)) == "héllo\r\n中文"
    data = "é中".encode() * 5 + b"\xff" + b"abc"
    for bom in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(bom + data)
        for size in range(4, 30):
            with pytest.raises(UserError, match=f"a.txt: byte {25 + len(bom)} "):
                list(read_blocks(path, size))


def test_command(tmp_path):
    source, out = tmp_path / "a.txt", tmp_path / "tokenizer.json"
    source.write_text("to be or not to be " * 20, encoding="utf-8")
    command = [sys.executable, "-m", "nanoft", "tokenizer", str(source), "--vocab_size=270", f"--out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "270 tokens" in done.stdout and vocabulary.load(out).vocab_size == 270
    source.write_text("", encoding="utf-8")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "empty" in done.stderr and vocabulary.load(out).vocab_size == 270
