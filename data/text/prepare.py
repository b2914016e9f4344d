"""Your own text: files and folders of .txt, .md, .py and .jsonl, each also as .gz.

    python data/text/prepare.py --source=notes/,book.txt [--vocab_size=8192] [--text_key=text]

A file is a document (a line is, in .jsonl). Each source is split into train and val by itself, unless it is a folder
with files or folders for them (train.txt and valid.txt, WikiText's wiki.train.tokens ..., train/ and test/). Files are
read as streams and may be larger than memory.
"""

import hashlib
import itertools
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoft import UserError, config
from nanoft.files import read_blocks
from nanoft.tasks.metrics import NO_SPACES
from nanoft.text import prepare
from nanoft.text.corpus import read_jsonl

HERE = Path(__file__).resolve().parent
ENDINGS = tuple(ending + gz for ending in (".txt", ".md", ".py", ".jsonl") for gz in ("", ".gz"))
FOLDER = re.compile("(train|valid|validation|val|dev|test)")  # names of folders, and of files, perhaps -00000-of-00002
SPLIT = re.compile(rf"(?:.*[._-])?{FOLDER.pattern}(?:-\d+-of-\d+)?\.(?:txt|md|tokens|raw|jsonl)(?:\.gz)?")
WORD = re.compile(f"[{NO_SPACES}]|[^{NO_SPACES}\\s]+")


@dataclass
class Options:
    source: str = ""  # files and folders, separated by commas
    text_key: str = "text"  # the key of the text in a line of a .jsonl file
    encoding: str = ""  # of the files, as gb18030; empty is UTF-8, or UTF-16 with a byte-order mark
    val_fraction: float = 0.05  # fraction of each source's documents used for validation
    vocab_size: int = 8192  # size of the vocabulary
    tokenizer: str = ""  # a tokenizer.json or the folder of a published one, instead of learning one
    out: str = ""  # where the data set goes; empty is beside this file
    overwrite: bool = False  # replace the data set that is there; runs made of it can then not go on


def check(cfg):
    problems = [] if cfg.source else ["--source is missing: name your files and folders, --source=notes/,book.txt"]
    if not 0 < cfg.val_fraction < 1:
        problems.append(f"val_fraction={cfg.val_fraction} is not between 0 and 1; give a fraction such as 0.05")
    return problems


def find_files(path: Path) -> dict[str, list[Path]]:
    """The files of a source, those of a folder sorted by name: {"all": files}, or where files or folders are named so
    {"train": files, "val": files}; perhaps with "test". Prints what is left out. Raises UserError.
    """
    if not path.exists():
        raise UserError(f"--source: {path} does not exist; give files and folders separated by commas")
    if not path.is_dir():
        if not path.name.lower().endswith(ENDINGS):
            raise UserError(f"--source: {path} is none of {' '.join(ENDINGS)}; rename or convert it")
        return {"all": [path]}
    parts = {file: file.relative_to(path).parts for file in sorted(path.rglob("*")) if file.is_file()}
    files = [file for file in parts if not any(part.startswith(".") for part in parts[file])]  # .git, .venv, copies
    splits, by_folder = defaultdict(list), any(parts[file][0].lower() == "train" for file in files)
    for file in files:
        first, *below = parts[file]
        if match := (FOLDER if below else SPLIT).fullmatch(first.lower()):
            if not below or by_folder and file.name.lower().endswith(ENDINGS):  # code may have folders for its tests
                splits[{"valid": "val", "validation": "val", "dev": "val"}.get(match[1], match[1])].append(file)
    if not {"train", "val"} <= splits.keys():  # what is for validation or test is never trained on
        kept = {split: splits[split] for split in ("val", "test") if split in splits}
        rest = [file for file in files if file.name.lower().endswith(ENDINGS) or file in splits["train"]]
        rest = sorted({*rest}.difference(*kept.values()))
        splits = {"train" if "val" in kept else "all": rest} | kept if rest else {"all": sum(kept.values(), [])}
    left_out = Counter(file.suffix.lower() or file.name for file in {*files}.difference(*splits.values()))
    if left_out:
        print(f"{path}: left out are " + ", ".join(f"{n:,} {ending}" for ending, n in left_out.most_common()))
    return splits


def read_documents(files: list[Path], cfg: Options) -> Iterator[Iterable[str]]:
    """Each document as an iterable of its consecutive parts."""
    for path in files:
        if ".jsonl" in path.name.lower():
            yield from ([text] for text in read_jsonl(path, cfg.text_key, cfg.encoding))
        else:
            yield read_blocks(path, encoding=cfg.encoding)


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


def count_words(documents: Iterable[Iterable[str]]) -> int:
    """What stands between white space; a character of a script without spaces (Chinese, Thai) counts as a word."""
    n_words = 0
    for parts in documents:
        last = " "
        for part in filter(None, parts):
            n_words += len(WORD.findall(part)) - bool(WORD.fullmatch(last + part[0]))  # a word that a cut divides
            last = part[-1]
    return n_words


def main():
    cfg = config.load(Options, check=check)
    out, sources = Path(cfg.out or HERE), []
    prepare.check_new(out, ("train", "val", "test"), cfg.overwrite)
    seen: set[Path] = set()
    for path in [Path(name) for name in cfg.source.split(",") if name.strip()]:
        files = find_files(path)
        own = {file.resolve() for group in files.values() for file in group}
        if seen & own:  # its text might be in training and in validation
            raise UserError(f"--source names {min(seen & own)} twice; name every file and folder once")
        seen |= own
        plan = plan_split(read_documents(files.get("all", []), cfg), cfg.val_fraction)
        sources.append((files, plan))
        counts = [f"{len(files[split]):,} files for {split}" for split in ("train", "val", "test") if split in files]
        if "all" in files:
            few = f"; few, so the text from character {plan[1]:,} on is for validation" if plan[0] and plan[1] else ""
            counts = [f"{len(files['all']):,} files", f"{sum(map(bool, plan[0])):,} documents{few}"]
        print(f"{path}: {', '.join(counts)}")

    def documents(split: str) -> Iterator[Iterable[str]]:
        for files, plan in sources:
            if "all" in files and split != "test":
                yield from choose(read_documents(files["all"], cfg), *plan, split)
            yield from read_documents(files.get(split, []), cfg)

    names = ["train", "val"] + ["test"] * any("test" in files for files, _ in sources)
    words = {split: count_words(documents(split)) for split in names}
    if not words["train"]:
        raise UserError(f"--source={cfg.source}: no text in files of {' '.join(ENDINGS)}; give others")
    splits = {split: lambda split=split: documents(split) for split in names}
    prepare.write_data(out, splits, cfg.vocab_size, cfg.tokenizer, words)


if __name__ == "__main__":
    config.run(main)
