"""FineWeb and FineWeb-Edu (Penedo et al. 2024, arXiv:2406.17557): the published samples of 10 billion tokens.

    python data/fineweb/prepare.py --files=3                 # FineWeb, some 2 billion tokens in GPT-2's vocabulary
    python data/fineweb/prepare.py --variant=edu             # into data/fineweb/edu
    python data/fineweb/prepare.py --source=FOLDER --vocab_size=32768

Reads .parquet (pip install pyarrow), .jsonl and .jsonl.gz. The same command goes on after an interruption.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoft import config
from nanoft.text import corpus

HERE = Path(__file__).resolve().parent
ADDRESS = "https://huggingface.co/datasets/HuggingFaceFW/"
FILES = {"fineweb": 15, "edu": 14}  # of the samples of 10 billion tokens; 2.1 GB each, the last 0.5


@dataclass
class Options:
    variant: Literal["fineweb", "edu"] = "fineweb"  # the web as it is, or its educational pages
    files: int = 0  # how many source files, 0 = all
    source: str = ""  # your own files and folders of them, separated by commas; empty is the published sample
    text_key: str = "text"  # the column, or the key of a line of .jsonl, that holds the text
    vocab_size: int = 0  # learn a vocabulary of this size; 0 = GPT-2's
    tokenizer: str = ""  # a tokenizer.json or the folder of a published one, instead
    shard_tokens: int = 100_000_000  # the most tokens in a file
    val_fraction: float = 0.001  # fraction of the documents for validation, by the hash of their text
    out: str = ""  # where the data set goes; empty is beside this file (edu: in a folder edu)
    overwrite: bool = False  # replace the data set that is there; runs made of it can then not go on


def main():
    cfg = config.load(Options, check=corpus.check)
    name = "fineweb-edu" if cfg.variant == "edu" else "fineweb"
    files = [f"{i:03d}_00000.parquet" for i in range(FILES[cfg.variant])]
    addresses = {f"{name}/{file}": f"{ADDRESS}{name}/resolve/main/sample/10BT/{file}" for file in files}
    corpus.prepare_corpus(cfg, addresses, HERE / "edu" if cfg.variant == "edu" else HERE)


if __name__ == "__main__":
    config.run(main)
