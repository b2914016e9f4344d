"""MNIST (LeCun et al. 1998): 70,000 handwritten digits of 28 x 28 pixels, and all that comes in the same files.

    python data/mnist/prepare.py
    python data/mnist/prepare.py --source=FOLDER --out=data/fashion --labels=NAME,NAME,...   # Fashion-MNIST, as well

Writes train.npy and test.npy (uint8, mapped), and the rows that name their pictures with the labels (train.jsonl,
val.jsonl, test.jsonl, task.json). The last 5,000 training pictures are for validation.
"""

import gzip
import sys
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
ADDRESS = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FILES = {"train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
         "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")}
COUNTS = {"train": 60_000, "test": 10_000}  # as published, of Fashion-MNIST too


@dataclass
class Options:
    val_pictures: int = 5000  # how many of the training pictures are for validation
    labels: str = "0,1,2,3,4,5,6,7,8,9"  # names of the classes 0 to 9
    source: str = ""  # a folder that holds the four files
    out: str = ""  # where the data set goes; empty is beside this file


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file: two zeros, the type (8: bytes), the number of sides, each side in 4 bytes, the data."""
    try:
        with gzip.open(path) as file:
            data = file.read()
        n_sides = data[3]
        sides = np.frombuffer(data, ">u4", n_sides, offset=4)
        if data[:3] != b"\0\0\x08":
            raise ValueError("it does not begin as an IDX file of bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * n_sides).reshape(sides)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise UserError(f"{path}: not a whole IDX file ({error}); fetch it again") from None


def main():
    cfg = config.load(Options)
    labels = cfg.labels.split(",")
    if not 0 < cfg.val_pictures < COUNTS["train"] or len(labels) != 10 or not all(labels):
        raise UserError(f"val_pictures={cfg.val_pictures} must leave some of the {COUNTS['train']:,} on either side, "
                        f"and labels={cfg.labels} must be ten names")
    paths = iter(prepare.find_raw_files({name: ADDRESS + name for pair in FILES.values() for name in pair}, HERE,
                                        cfg.source))
    out, rows = Path(cfg.out or HERE), {}
    data = {split: (read_idx(next(paths)), read_idx(next(paths))) for split in FILES}
    for split, (pixels, numbers) in data.items():
        if len({len(pixels), len(numbers), COUNTS[split]}) > 1 or pixels.ndim != 3 or numbers.max() > 9:
            raise UserError(f"{split}: {pixels.shape} pixels and {len(numbers):,} labels, where {COUNTS[split]:,} "
                            "pictures of ten classes were published; fetch the files again")
    out.mkdir(parents=True, exist_ok=True)
    for split, (pixels, numbers) in data.items():
        write_whole(out / f"{split}.npy", lambda file, pixels=pixels: np.save(file, pixels[:, None]))  # (N, 1, 28, 28)
        rows[split] = [{"image": f"{split}.npy:{i}", "label": labels[k]} for i, k in enumerate(numbers)]
    train, val = rows["train"][:-cfg.val_pictures], rows["train"][-cfg.val_pictures:]
    examples.save_task(out, {"kind": "image", "labels": labels, "metric": "accuracy"},
                       {"train": train, "val": val, "test": rows["test"]})


if __name__ == "__main__":
    config.run(main)
