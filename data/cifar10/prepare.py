"""CIFAR-10 (Krizhevsky 2009): 60,000 pictures of 32 x 32 pixels in ten classes.

    python data/cifar10/prepare.py

Writes train.npy and test.npy (uint8, mapped and never read as a whole), and the rows that name their pictures with the
labels (train.jsonl, val.jsonl, test.jsonl, task.json). The last 5,000 training pictures, which are in no order, are for
validation. The archive is the one of plain bytes, never the pickled one, which could run code.
"""

import sys
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from nanoft import UserError, config
from nanoft.files import write_whole
from nanoft.tasks import examples
from nanoft.text import prepare

HERE = Path(__file__).resolve().parent
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
PER_FILE = 10_000  # pictures, as published; each a byte for the label, then 32 x 32 of red, of green, of blue


@dataclass
class Options:
    val_pictures: int = 5000  # how many of the training pictures are for validation
    source: str = ""  # cifar-10-binary.tar.gz, or a folder that holds it
    out: str = ""  # where the data set goes; empty is beside this file


def read_archive(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """(the classes' names, {"train": uint8 (50000, 3073), "test": ...}). Raises UserError for another archive."""
    try:
        with tarfile.open(path) as archive:
            members = {Path(member.name).name: member for member in archive if member.isfile()}

            def read(name):
                return archive.extractfile(members[name]).read()

            labels = read("batches.meta.txt").decode().split()
            data = {split: np.frombuffer(b"".join(map(read, names)), np.uint8).reshape(-1, 3073)
                    for split, names in FILES.items()}
    except (tarfile.TarError, KeyError, ValueError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not the published cifar-10-binary.tar.gz, or cut short ({error}); fetch it again"
                        ) from None
    counts = {split: len(rows) for split, rows in data.items()}
    wanted = {split: PER_FILE * len(names) for split, names in FILES.items()}
    per_class = {split: set(np.bincount(rows[:, 0], minlength=10).tolist()) for split, rows in data.items()}
    if counts != wanted or len(labels) != 10 or per_class != {split: {n // 10} for split, n in wanted.items()}:
        raise UserError(f"{path}: {counts} pictures of {len(labels)} classes, where {wanted}, as many of each of ten, "
                        "were published; fetch it again")
    return labels, data


def main():
    cfg = config.load(Options)
    if not 0 < cfg.val_pictures < PER_FILE * 5:
        raise UserError(f"val_pictures={cfg.val_pictures} must leave some of the 50,000 on either side")
    labels, data = read_archive(prepare.find_raw("cifar-10-binary.tar.gz", ADDRESS, HERE, cfg.source))
    out = Path(cfg.out or HERE)
    out.mkdir(parents=True, exist_ok=True)
    rows = {}
    for split, read in data.items():
        pixels = read[:, 1:].reshape(-1, 3, 32, 32)  # (N, 3072) -> (N, 3, 32, 32)
        write_whole(out / f"{split}.npy", lambda file, pixels=pixels: np.save(file, pixels))
        rows[split] = [{"image": f"{split}.npy:{i}", "label": labels[k]} for i, k in enumerate(read[:, 0])]
    train, val = rows["train"][:-cfg.val_pictures], rows["train"][-cfg.val_pictures:]
    examples.save_task(out, {"kind": "image", "labels": labels, "metric": "accuracy"},
                       {"train": train, "val": val, "test": rows["test"]})


if __name__ == "__main__":
    config.run(main)
