"""The standard library of the Python that runs this: programs and documentation that every machine already has.

    python data/stdlib/prepare.py [--vocab_size=2048] [--source=FOLDER]
"""

import hashlib
import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoft import UserError, config
from nanoft.text import prepare

HERE = Path(__file__).resolve().parent
SKIP = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__",
        "encodings"}  # the last is 2 MB of character tables, which teach a model nothing
MAX_BYTES = 12_000_000  # keeps the preparation at a few seconds whatever the Python


@dataclass
class Options:
    vocab_size: int = 2048  # size of the vocabulary
    tokenizer: str = ""  # a tokenizer.json or the folder of a published one, instead of learning one
    source: str = ""  # another folder of Python files; empty is the standard library
    out: str = ""  # where the data set goes; empty is beside this file


def digest(path: Path) -> bytes:
    return hashlib.sha256(path.as_posix().encode()).digest()


def choose_files(root: Path) -> list[Path]:
    """Sorted paths relative to root; those with the smallest hashes where all have more than MAX_BYTES bytes."""
    paths = [path.relative_to(root) for path in root.rglob("*") if path.suffix in (".py", ".txt", ".rst")]
    chosen, total = [], 0
    for path in sorted((p for p in paths if not SKIP.intersection(p.parts)), key=digest):
        total += (root / path).stat().st_size
        if total > MAX_BYTES:
            break
        chosen.append(path)
    return sorted(chosen)


def body(text: str) -> str:
    """A file without its first comments, which are licences; empty for a table of numbers."""
    text = re.sub(r"\A(#.*\n|\s*\n)+", "", text)
    return text if sum(map(str.isdigit, text)) < len(text) / 5 else ""


def main():
    cfg = config.load(Options)
    root = Path(cfg.source or sysconfig.get_paths()["stdlib"])
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give a folder of Python files by --source")
    splits, skipped = {"train": [], "val": []}, 0
    for path in choose_files(root):
        try:
            text = (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            skipped += 1
            continue
        splits["val" if digest(path)[-1] % 20 == 0 else "train"].append(body(text))
    if not splits["train"] or not splits["val"]:
        raise UserError(f"{root}: too few Python files for a train and a validation split; give another by --source")
    print(f"{root}: {sum(map(len, splits.values()))} files, {skipped} skipped that are not UTF-8")
    prepare.write_data(cfg.out or HERE, splits, cfg.vocab_size, cfg.tokenizer)


if __name__ == "__main__":
    config.run(main)
