"""IMDb movie reviews (Maas et al. 2011): 25,000 to train on, 25,000 to test, positive or negative.

    python data/imdb/prepare.py [--vocab_size=8192]

Writes both the text for pretraining (train.bin, val.bin, tokenizer.json: training reviews only) and the labelled rows
for fine-tuning (train.jsonl, val.jsonl, test.jsonl, task.json). The two share their validation reviews.
"""

import re
import sys
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoft import UserError, config
from nanoft.tasks import examples
from nanoft.text import prepare

HERE = Path(__file__).resolve().parent
ADDRESS = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
MEMBER = re.compile(r"aclImdb/(train|test)/(pos|neg)/\d+_\d+\.txt")
PER_CLASS = 12_500  # in each of train and test


@dataclass
class Options:
    vocab_size: int = 8192  # size of the vocabulary
    val_fraction: float = 0.05  # fraction of the training reviews used for validation
    tokenizer: str = ""  # a tokenizer.json or the folder of a published one, instead of learning one
    source: str = ""  # aclImdb_v1.tar.gz, or a folder that holds it
    out: str = ""  # where the data set goes; empty is beside this file


def read_reviews(path: Path, val_fraction: float) -> dict[str, list[dict]]:
    """The rows of each split: {"train": [{"text", "label"}], "val": ..., "test": ...}. Raises UserError."""
    rows, count = {"train": [], "val": [], "test": []}, {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                match = MEMBER.fullmatch(member.name)
                if match:
                    split, label = match.groups()
                    count[split, label] = count.get((split, label), 0) + 1
                    text = re.sub(r"(<br\s*/?>\s*)+", "\n", archive.extractfile(member).read().decode("utf-8"))
                    row = {"text": text, "label": label}
                    if split == "train" and examples.in_validation(row, val_fraction):
                        split = "val"
                    rows[split].append((member.name, row))
    except (tarfile.TarError, EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path}: not the published aclImdb_v1.tar.gz ({error}); fetch it again") from None
    if any(count.get((split, label)) != PER_CLASS for split in ("train", "test") for label in ("pos", "neg")):
        raise UserError(f"{path}: {count} reviews, where {PER_CLASS:,} of each kind were published; fetch it again")
    return {split: [row for _, row in sorted(named, key=lambda item: item[0])] for split, named in rows.items()}


def main():
    cfg = config.load(Options)
    path = prepare.find_raw("aclImdb_v1.tar.gz", ADDRESS, HERE, cfg.source)
    rows = read_reviews(path, cfg.val_fraction)
    out = cfg.out or HERE
    texts = {split: [row["text"] for row in rows[split]] for split in ("train", "val")}
    prepare.write_data(out, texts, cfg.vocab_size, cfg.tokenizer)
    examples.save_task(out, {"kind": "classify", "labels": ["neg", "pos"], "metric": "accuracy"}, rows)


if __name__ == "__main__":
    config.run(main)
