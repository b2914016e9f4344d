"""OpenWebText (Gokaslan and Cohen 2019): pages that Reddit's users linked to, an open copy of GPT-2's WebText.

    python data/openwebtext/prepare.py [--files=10] [--vocab_size=32768] [--source=FOLDER]

Reads .parquet (pip install pyarrow), .jsonl and .jsonl.gz. The same command goes on after an interruption.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoft import config
from nanoft.text import corpus

HERE = Path(__file__).resolve().parent
ADDRESS = "https://huggingface.co/datasets/Skylion007/openwebtext/resolve/main/plain_text/"
FILES = 80  # of 0.3 GB each


@dataclass
class Options:
    files: int = 0  # how many source files, 0 = all
    source: str = ""  # your own files and folders of them, separated by commas; empty is what is published
    text_key: str = "text"  # the column, or the key of a line of .jsonl, that holds the text
    vocab_size: int = 0  # learn a vocabulary of this size; 0 = GPT-2's
    tokenizer: str = ""  # a tokenizer.json or the folder of a published one, instead
    shard_tokens: int = 100_000_000  # the most tokens in a file
    val_fraction: float = 0.0005  # fraction of the documents for validation, by the hash of their text, as in nanoGPT
    out: str = ""  # where the data set goes; empty is beside this file
    overwrite: bool = False  # replace the data set that is there; runs made of it can then not go on


def main():
    cfg = config.load(Options, check=corpus.check)
    files = [f"train-{i:05d}-of-{FILES:05d}.parquet" for i in range(FILES)]
    corpus.prepare_corpus(cfg, {f"openwebtext/{file}": ADDRESS + file for file in files}, HERE)


if __name__ == "__main__":
    config.run(main)
