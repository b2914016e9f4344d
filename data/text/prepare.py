"""Your own text: files and folders of .txt, .md, .py and .jsonl, each also as .gz, in UTF-8.

    python data/text/prepare.py --source=notes/,book.txt [--vocab_size=8192] [--text_key=text]

A file is a document (a line is, in .jsonl). Files are read as streams and may be larger than memory.
"""

import hashlib
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanoft import UserError, config  # noqa: E402
from nanoft.files import read_blocks  # noqa: E402
from nanoft.pretokenize import check_text  # noqa: E402
from nanoft.text import prepare  # noqa: E402

ENDINGS = tuple(ending + gz for ending in (".txt", ".md", ".py", ".jsonl") for gz in ("", ".gz"))


@dataclass
class Options:
    source: str = ""  # files and folders, separated by commas
    text_key: str = "text"  # where a line of a .jsonl file keeps its text
    val_fraction: float = 0.05  # part of the documents kept for validation
    vocab_size: int = 8192  # ids of the tokenizer in all
    tokenizer: str = ""  # a tokenizer.json or a published vocabulary's folder, instead of learning one
    out: str = ""  # where the data set goes; empty is beside this file


def check(cfg):
    problems = [] if cfg.source else ["--source is missing: name your files and folders, --source=notes/,book.txt"]
    if not 0 < cfg.val_fraction < 1:
        problems.append(f"val_fraction={cfg.val_fraction} is not between 0 and 1; give a part such as 0.05")
    return problems


def find_files(source):
    """The files that `source` names: folders are searched, in the order of names."""
    files = []
    for path in (Path(name) for name in source.split(",") if name.strip()):
        if not path.exists():
            raise UserError(f"--source: {path} does not exist; give files and folders separated by commas")
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(ENDINGS))
        elif path.name.lower().endswith(ENDINGS):
            files.append(path)
        else:
            raise UserError(f"--source: {path} is none of {' '.join(ENDINGS)}; rename or convert it")
    return files


def read_documents(files, text_key):
    """Every document as an iterable of its parts."""
    for path in files:
        if ".jsonl" in path.name.lower():
            yield from ([text] for text in read_jsonl(path, text_key))
        else:
            yield read_blocks(path)


def read_jsonl(path, text_key):
    number, rest = 0, ""
    for block in itertools.chain(read_blocks(path), ["\n"]):
        *lines, rest = (rest + block).split("\n")
        for line in lines:
            number += 1
            if not line.strip():
                continue
            try:
                text = json.loads(line)[text_key]
                check_text(text)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path}: line {number} is no JSON object with a text under {text_key!r} "
                                f"({type(error).__name__}: {error}); mend it, or give --text_key") from None
            yield text


def plan_split(documents, val_fraction):
    """Which documents go where, (sides, cut): 1 train, 2 validation, 0 empty, by the hash of each one's text.

    Where that leaves a side empty (few documents), cut is the character of the whole text at which validation begins.
    """
    total, sides = 0, bytearray()
    for parts in documents:
        digest, length = hashlib.sha256(), 0
        for part in parts:
            digest.update(part.encode())
            length += len(part)
        is_val = int.from_bytes(digest.digest()[:8], "big") < val_fraction * 2**64
        sides.append((2 if is_val else 1) if length else 0)
        total += length
    return sides, None if {1, 2} <= set(sides) else total - max(1, int(total * val_fraction))


def choose(documents, sides, cut, split):
    """The documents of one split, by a plan that was made over the same documents."""
    if cut is None:
        wanted = {"train": 1, "val": 2}[split]
        return itertools.compress(documents, (side == wanted for side in sides))
    position = 0

    def one_side(parts):
        nonlocal position
        for part in parts:
            here = min(max(cut - position, 0), len(part))
            position += len(part)
            yield part[:here] if split == "train" else part[here:]

    return map(one_side, documents)


def main():
    cfg = config.load(Options, check=check)
    files = find_files(cfg.source)
    sides, cut = plan_split(read_documents(files, cfg.text_key), cfg.val_fraction)
    if not any(sides):
        raise UserError(f"--source={cfg.source}: no text in its {len(files)} files of {' '.join(ENDINGS)}; give others")
    print(f"{len(files)} files, {sum(map(bool, sides)):,} documents"
          + ("" if cut is None else f"; few, so the text from character {cut:,} on is for validation"))
    splits = {split: lambda split=split: choose(read_documents(files, cfg.text_key), sides, cut, split)
              for split in ("train", "val")}
    prepare.write_data(cfg.out or HERE, splits, cfg.vocab_size, cfg.tokenizer)


if __name__ == "__main__":
    config.run(main)
