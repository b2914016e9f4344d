"""MRPC (Dolan and Brockett 2005): pairs of sentences from the news, and whether they say the same.

    python data/mrpc/prepare.py [--vocab_size=4096]

Writes both the text for pretraining (train.bin, val.bin, tokenizer.json: sentences of the training file only) and the
labelled rows for fine-tuning (train.jsonl, val.jsonl, test.jsonl, task.json).
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoft import UserError, config
from nanoft.files import read_blocks
from nanoft.tasks import examples
from nanoft.text import prepare

HERE = Path(__file__).resolve().parent
ADDRESS = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
ROWS = {"msr_paraphrase_train.txt": 4_076, "msr_paraphrase_test.txt": 1_725}  # as published
LABELS = ("different", "equivalent")  # 0 and 1 in the files


@dataclass
class Options:
    vocab_size: int = 4096  # size of the vocabulary
    val_fraction: float = 0.1  # fraction of the training pairs used for validation
    tokenizer: str = ""  # a tokenizer.json or the folder of a published one, instead of learning one
    source: str = ""  # a folder that holds both msr_paraphrase files
    out: str = ""  # where the data set goes; empty is beside this file


def read_pairs(path: Path, published: int) -> list[dict]:
    """The rows of a file. Raises UserError unless it is the published file, with `published` rows."""
    text = "".join(read_blocks(path))
    try:
        fields = [line.rstrip("\r").split("\t") for line in text.removesuffix("\n").split("\n")[1:]]  # quotes stay
        rows = [{"text": first.strip(), "pair": second.strip(), "label": LABELS[int(label)]}
                for label, _, _, first, second in fields]
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: not the published file ({error}); fetch it again") from None
    if len(rows) != published:
        raise UserError(f"{path}: {len(rows):,} pairs, where {published:,} were published; fetch it again")
    return rows


def main():
    cfg = config.load(Options)
    paths = prepare.find_raw_files({name: ADDRESS + name for name in ROWS}, HERE, cfg.source)
    rows, test = (read_pairs(path, published) for path, published in zip(paths, ROWS.values()))
    splits = examples.split_off_validation(rows, cfg.val_fraction) | {"test": test}
    out = cfg.out or HERE
    texts = {split: [row[name] for row in splits[split] for name in ("text", "pair")] for split in ("train", "val")}
    prepare.write_data(out, texts, cfg.vocab_size, cfg.tokenizer)
    examples.save_task(out, {"kind": "pair", "labels": list(LABELS), "metric": "f1"}, splits)


if __name__ == "__main__":
    config.run(main)
