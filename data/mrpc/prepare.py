"""MRPC (Dolan and Brockett 2005): pairs of sentences from the news, and whether they say the same.

    python data/mrpc/prepare.py [--vocab_size=4096]

Writes both the text for pretraining (train.bin, val.bin, tokenizer.json: sentences of the training file only) and the
labelled rows for fine-tuning (train.jsonl, val.jsonl, test.jsonl, task.json).
"""

import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from nanoft import UserError, config  # noqa: E402
from nanoft.files import read_blocks  # noqa: E402
from nanoft.tasks import examples  # noqa: E402
from nanoft.text import prepare  # noqa: E402

ADDRESS = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
ROWS = {"msr_paraphrase_train.txt": 4_076, "msr_paraphrase_test.txt": 1_725}  # as published
LABELS = ("different", "equivalent")  # 0 and 1 in the files


@dataclass
class Options:
    vocab_size: int = 4096  # ids of the tokenizer in all
    val_fraction: float = 0.1  # part of the training pairs kept for validation
    tokenizer: str = ""  # a tokenizer.json or a published vocabulary's folder, instead of learning one
    source: str = ""  # a folder that holds both msr_paraphrase files
    out: str = ""  # where the data set goes; empty is beside this file


def read_pairs(path, published):
    """The rows of a file. Raises UserError for another file than the published one."""
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
    out = Path(cfg.out or HERE)
    texts = {split: lambda split=split: (row[name] for row in splits[split] for name in ("text", "pair"))
             for split in ("train", "val")}
    prepare.write_data(out, texts, cfg.vocab_size, cfg.tokenizer)
    examples.save_task(out, {"kind": "pair", "labels": list(LABELS), "metric": "f1"}, splits)


if __name__ == "__main__":
    config.run(main)
