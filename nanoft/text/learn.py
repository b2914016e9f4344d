"""Learn a tokenizer of one's own from text files.

    python -m nanoft tokenizer FILE... --vocab_size=8192 --out=tokenizer.json
"""

import time
from dataclasses import dataclass

from nanoft import bpe, config
from nanoft.files import check_overwrite, read_blocks


@dataclass
class Options:
    vocab_size: int = 8192  # number of ids: 256 bytes, merges, 5 special tokens
    pattern: str = "gpt4"  # gpt4, gpt2, or a regular expression
    processes: int = 0  # for counting words; 0 means one per core
    out: str = "tokenizer.json"  # where the tokenizer goes


def main():
    cfg, files = config.load_tool(Options, "tokenizer FILE... --out=tokenizer.json")
    check_overwrite(cfg.out, (b'{"format":"nanoft',), *files)
    start = time.perf_counter()
    tokenizer = bpe.train(map(read_blocks, files), cfg.vocab_size, cfg.pattern, cfg.processes)
    tokenizer.save(cfg.out)
    print(f"{cfg.out}: {tokenizer.vocab_size:,} tokens learned in {time.perf_counter() - start:.1f} s")
