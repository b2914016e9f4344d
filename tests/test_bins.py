"""The token file: what is written is read back, across shards, and a damaged file is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nanoft import UserError
from nanoft.bins import HEADER_BYTES, Tokens, write_split
from nanoft.bpe import Tokenizer, train
from nanoft.files import read_blocks

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["To be, or not to be: ", "that is the question.\n", "", "Ob's edler im Gemüt, 中文"]


@pytest.fixture(scope="module")
def tokenizer():
    return train(DOCUMENTS * 3, 280, progress=False)


def expected_ids(documents, tokenizer):
    end = tokenizer.special["<|endoftext|>"]
    return [i for text in documents if text for i in [*tokenizer.encode(text), end]]


def test_written_is_read_back(tokenizer, tmp_path):
    tokens = write_split(tmp_path, "train", DOCUMENTS, tokenizer, num_words=7)
    expected = expected_ids(DOCUMENTS, tokenizer)
    assert os.listdir(tmp_path) == ["train.bin"]
    assert os.path.getsize(tmp_path / "train.bin") == HEADER_BYTES + 2 * len(expected)
    assert len(tokens) == len(expected) and tokens.read(0, len(tokens)).tolist() == expected
    assert tokens.num_bytes == sum(len(text.encode()) for text in DOCUMENTS)
    assert (tokens.num_words, tokens.num_documents, tokens.vocab_size) == (7, 3, tokenizer.vocab_size)
    assert tokens.fingerprint == tokenizer.fingerprint


def test_shards_read_as_one_row(tokenizer, tmp_path):
    whole = write_split(tmp_path / "one", "train", DOCUMENTS, tokenizer, num_words=7)
    parts = write_split(tmp_path / "many", "train", DOCUMENTS, tokenizer, num_words=7, shard_tokens=5)
    assert len(parts.paths) == -(-len(whole) // 5) > 10 and len(parts) == len(whole)
    assert parts.paths[1].name == "train_001.bin"
    assert (parts.num_bytes, parts.num_words, parts.num_documents) == (whole.num_bytes, 7, 3)
    for length in (1, 5, 12, len(whole)):
        starts = np.arange(len(whole) - length + 1)
        windows = parts.gather(starts, length)
        assert windows.dtype == np.int64 and windows.shape == (len(starts), length)
        row = whole.read(0, len(whole))
        assert (windows == row[starts[:, None] + np.arange(length)]).all()


def test_a_second_preparation_replaces_the_first(tokenizer, tmp_path):
    write_split(tmp_path, "train", DOCUMENTS, tokenizer, shard_tokens=10)
    write_split(tmp_path, "val", DOCUMENTS[:1], tokenizer)
    write_split(tmp_path, "train", DOCUMENTS[:1], tokenizer)
    assert sorted(os.listdir(tmp_path)) == ["train.bin", "val.bin"]


def test_a_failure_leaves_the_earlier_split(tokenizer, tmp_path):
    write_split(tmp_path, "train", DOCUMENTS, tokenizer)
    before = (tmp_path / "train.bin").read_bytes()

    def broken():
        yield "some text " * 100_000
        raise UserError("bad byte")

    for documents in (broken(), [], ["", ""], ["a\ud800"]):
        with pytest.raises(UserError):
            write_split(tmp_path, "train", documents, tokenizer)
        assert os.listdir(tmp_path) == ["train.bin"] and (tmp_path / "train.bin").read_bytes() == before


def test_long_documents_keep_their_ids(tmp_path):
    tokenizer = train([read_blocks(ROOT / "nanoft/bpe.py")], 600, progress=False)
    text = "".join((ROOT / f"nanoft/{name}.py").read_text(encoding="utf-8") for name in ("bpe", "bins", "pretokenize"))
    text = (text + "\r\n \n  naïve 中文🙂  \t x" * 50) * 30
    blocks = [text[i : i + 100_003] for i in range(0, len(text), 100_003)]
    assert len(text) > 1_000_000
    tokens = write_split(tmp_path, "train", [blocks], tokenizer)
    assert tokens.num_documents == 1 and tokens.num_bytes == len(text.encode())
    assert tokens.read(0, len(tokens) - 1).tolist() == tokenizer.encode(text)


def test_large_vocabulary_takes_four_bytes(tmp_path):
    tokenizer = Tokenizer("gpt4", [(a, b) for a in range(256) for b in range(256)][: 2**16 - 200])
    assert tokenizer.vocab_size > 2**16
    tokens = write_split(tmp_path, "train", ["abc"], tokenizer)
    assert tokens.dtype.itemsize == 4
    assert tokens.read(0, len(tokens)).tolist() == [*tokenizer.encode("abc"), tokenizer.special["<|endoftext|>"]]


def change(position, value):
    return lambda data: data[:position] + value + data[position + len(value) :]


@pytest.mark.parametrize("damage, words", [
    (lambda data: data[:-3], "cut short"),
    (lambda data: data + b"\0\0", "header says"),
    (lambda data: data[:100], "not a token file"),
    (lambda data: b"", "not a token file"),
    (change(0, b"x"), "not a token file"),
    (change(8, b"\7"), "version 7"),
    (change(12, b"\4"), "damaged"),
    (change(20, b"\2"), "damaged"),
])
def test_a_damaged_file_is_refused(tokenizer, tmp_path, damage, words):
    write_split(tmp_path, "train", DOCUMENTS, tokenizer)
    path = tmp_path / "train.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=words) as caught:
        Tokens.open(tmp_path, "train")
    assert "train.bin" in str(caught.value) and "prepare" in str(caught.value)


def test_a_missing_shard_is_seen(tokenizer, tmp_path):
    parts = write_split(tmp_path, "train", DOCUMENTS, tokenizer, shard_tokens=20)
    parts.paths[-1].unlink()
    with pytest.raises(UserError, match="do not belong together"):
        Tokens.open(tmp_path, "train")
    assert Tokens.exists(tmp_path, "train") and not Tokens.exists(tmp_path, "val")
    with pytest.raises(UserError, match="no such file"):
        Tokens.open(tmp_path, "val")


def test_command_prints_what_a_file_holds(tokenizer, tmp_path):
    tokens = write_split(tmp_path, "train", DOCUMENTS, tokenizer)
    tokenizer.save(tmp_path / "tokenizer.json")
    command = [sys.executable, "-m", "nanoft", "bins"]
    done = subprocess.run([*command, tmp_path / "train.bin"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{len(tokens):,} ids" in done.stdout and "To be, or not" in done.stdout
    done = subprocess.run([*command, __file__], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "not a token file" in done.stderr
