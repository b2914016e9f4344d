"""WNUT-17 (Derczynski et al. 2017): persons, places, products and the like in posts, most of them never seen before.

    python data/wnut17/prepare.py [--vocab_size=4096]

Writes both the text for pretraining (train.bin, val.bin, tokenizer.json: the words of train and dev) and the labelled
rows for fine-tuning (train.jsonl, val.jsonl, test.jsonl, task.json), split as published.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoft import UserError, config
from nanoft.tasks import examples
from nanoft.text import prepare

HERE = Path(__file__).resolve().parent
ADDRESS = "https://raw.githubusercontent.com/leondz/emerging_entities_17/master/"
# of each split: its file, and the published number of its sentences
FILES = {"train": ("wnut17train.conll", 3_394), "val": ("emerging.dev.conll", 1_009),
         "test": ("emerging.test.annotated", 1_287)}


@dataclass
class Options:
    vocab_size: int = 4096  # size of the vocabulary
    tokenizer: str = ""  # a tokenizer.json or the folder of a published one, instead of learning one
    source: str = ""  # a folder that holds the three files
    out: str = ""  # where the data set goes; empty is beside this file


def main():
    cfg = config.load(Options)
    paths = prepare.find_raw_files({f"wnut17/{name}": ADDRESS + name for name, _ in FILES.values()}, HERE, cfg.source)
    task, splits = examples.from_table(paths[0], "tag", val_file=paths[1], test_file=paths[2])
    for path, (split, (_, published)) in zip(paths, FILES.items()):
        if len(splits[split]) != published:
            raise UserError(f"{path}: {len(splits[split]):,} sentences, where {published:,} were published; "
                            "fetch it again")
    out = cfg.out or HERE
    texts = {split: [" ".join(row["words"]) for row in splits[split]] for split in ("train", "val")}
    prepare.write_data(out, texts, cfg.vocab_size, cfg.tokenizer)
    examples.save_task(out, task, splits)


if __name__ == "__main__":
    config.run(main)
