"""SQuAD (Rajpurkar et al. 2016, 2018): questions on paragraphs of Wikipedia, each answered by a span of its paragraph.

    python data/squad/prepare.py [--train_file=train-v2.0.json --dev_file=dev-v2.0.json] [--vocab_size=8192]

Writes both the text for pretraining (train.bin, val.bin, tokenizer.json: each training paragraph once) and the
questions for fine-tuning (train.jsonl, val.jsonl, test.jsonl, task.json). The test rows are the published dev file.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoft import UserError, config
from nanoft.tasks import examples
from nanoft.tasks.tables import read_squad
from nanoft.text import prepare

HERE = Path(__file__).resolve().parent
ADDRESS = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
QUESTIONS = {"train-v1.1.json": 87_599, "dev-v1.1.json": 10_570, "train-v2.0.json": 130_319, "dev-v2.0.json": 11_873}


@dataclass
class Options:
    train_file: str = ""  # file name; empty: train-v1.1.json, or train-small.json if $NANOFT_MIRROR has only that
    dev_file: str = "dev-v1.1.json"  # file name of the questions to test on
    val_fraction: float = 0.1  # fraction of the training paragraphs used for validation
    vocab_size: int = 8192  # size of the vocabulary
    tokenizer: str = ""  # a tokenizer.json or the folder of a published one, instead of learning one
    source: str = ""  # a folder that holds both files
    out: str = ""  # where the data set goes; empty is beside this file


def find_train_file(cfg: Options) -> str:
    """The name of the training file: the published one, unless there is only a part of it."""
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
    out = cfg.out or HERE
    texts = {split: list(dict.fromkeys(row["context"] for row in splits[split])) for split in ("train", "val")}
    prepare.write_data(out, texts, cfg.vocab_size, cfg.tokenizer)
    examples.save_task(out, task, splits)


if __name__ == "__main__":
    config.run(main)
