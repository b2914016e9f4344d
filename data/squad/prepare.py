"""SQuAD (Rajpurkar et al. 2016, 2018): questions on paragraphs of Wikipedia, each answered by a span of its paragraph.

    python data/squad/prepare.py [--train_file=train-v2.0.json --dev_file=dev-v2.0.json] [--vocab_size=8192]

Writes both the text for pretraining (train.bin, val.bin, tokenizer.json: each training paragraph once) and the
questions for fine-tuning (train.jsonl, val.jsonl, test.jsonl, task.json). The test rows are the published dev file.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanoft import UserError, config  # noqa: E402
from nanoft.tasks import examples  # noqa: E402
from nanoft.tasks.tables import read_squad  # noqa: E402
from nanoft.text import prepare  # noqa: E402

ADDRESS = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
QUESTIONS = {"train-v1.1.json": 87_599, "dev-v1.1.json": 10_570, "train-v2.0.json": 130_319, "dev-v2.0.json": 11_873}


@dataclass
class Options:
    train_file: str = ""  # its name; empty: train-v1.1.json, or train-small.json where $NANOFT_MIRROR has only that
    dev_file: str = "dev-v1.1.json"  # its name
    val_fraction: float = 0.1  # part of the training paragraphs kept for validation
    vocab_size: int = 8192  # ids of the tokenizer in all
    tokenizer: str = ""  # a tokenizer.json or a published vocabulary's folder, instead of learning one
    source: str = ""  # a folder that holds both files
    out: str = ""  # where the data set goes; empty is beside this file


def find_train_file(cfg):
    """The name of the training file: the published one, unless a part of it is all that is at hand."""
    folder = Path(cfg.source or Path(os.environ.get("NANOFT_MIRROR", "")) / "squad")
    have = [(folder / name).is_file() for name in ("train-v1.1.json", "train-small.json")]
    return cfg.train_file or ("train-small.json" if have == [False, True] else "train-v1.1.json")


def main():
    cfg = config.load(Options)
    names = [find_train_file(cfg), cfg.dev_file]
    paths = prepare.find_raw_files({f"squad/{name}": ADDRESS + name for name in names}, HERE, cfg.source)
    print(f"training questions from {paths[0]}")
    for path, name in zip(paths, names):
        found = len(read_squad(path))
        if found != QUESTIONS.get(name, found):
            raise UserError(f"{path}: {found:,} questions, where {QUESTIONS[name]:,} were published; fetch it again")
    task, splits = examples.from_table(paths[0], "answer", test_file=paths[1], val_fraction=cfg.val_fraction)
    out = Path(cfg.out or HERE)
    texts = {split: lambda split=split: dict.fromkeys(row["context"] for row in splits[split])
             for split in ("train", "val")}
    prepare.write_data(out, texts, cfg.vocab_size, cfg.tokenizer)
    examples.save_task(out, task, splits)


if __name__ == "__main__":
    config.run(main)
