"""Your own text: files and folders of .txt, .md, .py and .jsonl, each also as .gz, in UTF-8.

    python data/text/prepare.py --source=notes/,book.txt [--vocab_size=8192] [--text_key=text]

A file is a document (a line is, in .jsonl). Files are read as streams and may be larger than memory.
"""

import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoft import UserError, config
from nanoft.files import read_blocks
from nanoft.pretokenize import check_text
from nanoft.text import prepare

HERE = Path(__file__).resolve().parent
ENDINGS = tuple(ending + gz for ending in (".txt", ".md", ".py", ".jsonl") for gz in ("", ".gz"))


@dataclass
class Options:
    source: str = ""  # files and folders, separated by commas
    text_key: str = "text"  # the key of the text in a line of a .jsonl file
    val_fraction: float = 0.05  # fraction of the documents used for validation
    vocab_size: int = 8192  # size of the vocabulary
    tokenizer: str = ""  # a tokenizer.json or the folder of a published one, instead of learning one
    out: str = ""  # where the data set goes; empty is beside this file


def check(cfg):
    problems = [] if cfg.source else ["--source is missing: name your files and folders, --source=notes/,book.txt"]
    if not 0 < cfg.val_fraction < 1:
        problems.append(f"val_fraction={cfg.val_fraction} is not between 0 and 1; give a fraction such as 0.05")
    return problems


def find_files(source: str) -> list[Path]:
    """The files that `source` names, those of a folder sorted by name. Raises UserError."""
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


def read_documents(files: list[Path], text_key: str) -> Iterator[Iterable[str]]:
    """Each document as an iterable of its consecutive parts."""
    for path in files:
        if ".jsonl" in path.name.lower():
            yield from ([text] for text in read_jsonl(path, text_key))
        else:
            yield read_blocks(path)


def read_jsonl(path: Path, text_key: str) -> Iterator[str]:
    """The texts of a .jsonl file, read as a stream. Raises UserError naming the line."""
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


def plan_split(documents: Iterable[Iterable[str]], val_fraction: float) -> tuple[bytearray, int | None]:
    """(sides, cut): the split of each document, 1 train, 2 validation, 0 empty, by the hash of its text.

    Where that leaves a split empty (few documents), cut is the character of the whole text at which validation begins.
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


def choose(documents: Iterable, sides: bytearray, cut: int | None, split: str) -> Iterable:
    """The documents of one split, as plan_split divided them."""
    if cut is None:
        wanted = {"train": 1, "val": 2}[split]
        return itertools.compress(documents, (side == wanted for side in sides))
    position = 0

    def parts_of_split(parts):
        nonlocal position
        for part in parts:
            end = min(max(cut - position, 0), len(part))  # of the training text in this part
            position += len(part)
            yield part[:end] if split == "train" else part[end:]

    return map(parts_of_split, documents)


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
