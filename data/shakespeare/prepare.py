"""Tiny Shakespeare: 1.1 million characters of plays, by characters unless a larger vocabulary is asked for.

    python data/shakespeare/prepare.py [--vocab_size=261]
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoft import UserError, config
from nanoft.files import read_blocks
from nanoft.text import prepare

HERE = Path(__file__).resolve().parent
ADDRESS = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


@dataclass
class Options:
    vocab_size: int = 261  # ids in all; 261 is 256 bytes and 5 special tokens: no merges, a token a character
    tokenizer: str = ""  # a tokenizer.json or the folder of a published one, instead of learning one
    source: str = ""  # the text file, or a folder that holds it
    out: str = ""  # where the data set goes; empty is beside this file


def main():
    cfg = config.load(Options)
    path = prepare.find_raw("tinyshakespeare.txt", ADDRESS, HERE, cfg.source)
    text = "".join(read_blocks(path))
    if len(text) < 2:
        raise UserError(f"{path}: empty; fetch it again")
    cut = int(0.9 * len(text))  # the split of nanoGPT, so that losses can be compared
    splits = {"train": [text[:cut]], "val": [text[cut:]]}
    prepare.write_data(cfg.out or HERE, splits, cfg.vocab_size, cfg.tokenizer)


if __name__ == "__main__":
    config.run(main)
