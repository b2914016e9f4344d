"""ChnSentiCorp (Tan Songbo): Chinese reviews of hotels, books and computers, negative or positive.

    python data/chnsenticorp/prepare.py --source=FOLDER [--vocab_size=4096]

Writes both the text for pretraining (train.bin, val.bin, tokenizer.json: reviews of the training file only) and the
labelled rows for fine-tuning (train.jsonl, val.jsonl, test.jsonl, task.json). The test rows are dev.tsv, whole; the
training reviews that stand there too are left out.
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
ROWS = {"train.tsv": 9_600, "dev.tsv": 1_200}  # in the form that circulates: a review, a tab, its label; no header
LABELS = ("negative", "positive")


@dataclass
class Options:
    vocab_size: int = 4096  # size of the vocabulary
    val_fraction: float = 0.1  # fraction of the training reviews used for validation
    tokenizer: str = ""  # a tokenizer.json or the folder of a published one, instead of learning one
    source: str = ""  # a folder that holds train.tsv and dev.tsv
    out: str = ""  # where the data set goes; empty is beside this file


def read_reviews(path: Path, expected: int) -> list[dict]:
    """The rows of a file. Raises UserError unless it is as expected, with `expected` rows."""
    lines = [line.split("\t") for line in "".join(read_blocks(path)).split("\n") if line.strip()]
    rows = [{"text": line[0].strip(), "label": line[-1].strip()} for line in lines if len(line) == 2]
    if not len(lines) == len(rows) == expected or {row["label"] for row in rows} != set(LABELS):
        raise UserError(f"{path}: {len(rows):,} of {len(lines):,} lines are a review, a tab and its label, where "
                        f"{expected:,} are expected, {' and '.join(LABELS)}; give another copy")
    return rows


def main():
    cfg = config.load(Options)
    try:
        paths = prepare.find_raw_files({f"chnsenticorp/{name}": "" for name in ROWS}, HERE, cfg.source)
    except UserError as error:
        raise UserError(f"{error}\n没有固定的下载地址：请自行下载 ChnSentiCorp 的 train.tsv 和 dev.tsv（每行：评论、"
                        f"制表符、positive 或 negative），放进 {HERE / 'raw'}，或用 --source=文件夹 指定；"
                        "也可以直接用自己的表格：python finetune.py --train_file=评论.csv") from None
    rows, test = (read_reviews(path, expected) for path, expected in zip(paths, ROWS.values()))
    seen = {row["text"] for row in test}  # a quarter of dev.tsv is also in train.tsv, which would be no test
    unseen = [row for row in rows if row["text"] not in seen]
    print(f"{len(rows) - len(unseen):,} of {len(rows):,} training reviews left out: the test set has their text")
    splits = examples.split_off_validation(unseen, cfg.val_fraction) | {"test": test}
    out = cfg.out or HERE
    texts = {split: [row["text"] for row in splits[split]] for split in ("train", "val")}
    prepare.write_data(out, texts, cfg.vocab_size, cfg.tokenizer)
    examples.save_task(out, {"kind": "classify", "labels": list(LABELS), "metric": "accuracy"}, splits)


if __name__ == "__main__":
    config.run(main)
