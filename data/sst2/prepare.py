"""SST-2 (Socher et al. 2013, as GLUE gives it): phrases and sentences of film reviews, negative or positive.

    python data/sst2/prepare.py [--vocab_size=4096]

Writes both the text for pretraining (train.bin, val.bin, tokenizer.json: training phrases only) and the labelled rows
for fine-tuning (train.jsonl, val.jsonl, test.jsonl, task.json). The test rows are GLUE's dev.tsv.
"""

import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoft import UserError, config, files
from nanoft.tasks import examples
from nanoft.text import prepare

HERE = Path(__file__).resolve().parent
ADDRESS = "https://dl.fbaipublicfiles.com/glue/data/SST-2.zip"
ROWS = {"train": 67_349, "dev": 872}  # as published
LABELS = ("negative", "positive")  # 0 and 1 in the file


@dataclass
class Options:
    vocab_size: int = 4096  # size of the vocabulary
    val_fraction: float = 0.08  # fraction of the training sentences used for validation
    tokenizer: str = ""  # a tokenizer.json or the folder of a published one, instead of learning one
    source: str = ""  # SST-2.zip, or a folder that holds it
    out: str = ""  # where the data set goes; empty is beside this file


def read_phrases(path: Path) -> dict[str, list[dict]]:
    """{"train": rows, "dev": rows}. Raises UserError for another file than the published one."""
    try:
        with zipfile.ZipFile(path) as archive:
            texts = {name: archive.read(f"SST-2/{name}.tsv").decode("utf-8") for name in ROWS}
        rows = {}
        for name, text in texts.items():
            pairs = [line.split("\t") for line in text.removesuffix("\n").split("\n")[1:]]  # quotes stay
            rows[name] = [{"text": " ".join(phrase.split()), "label": LABELS[int(label)]} for phrase, label in pairs]
    except (zipfile.BadZipFile, KeyError, ValueError, IndexError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not the published SST-2.zip ({error}); fetch it again") from None
    counts = {name: len(found) for name, found in rows.items()}
    if counts != ROWS:
        raise UserError(f"{path}: {counts} rows, where {ROWS} were published; fetch it again")
    return rows


def hold_out_sentences(rows: list[dict], val_fraction: float) -> dict[str, list[dict]]:
    """{"train": rows, "val": rows}: val has whole sentences only, train no phrase that occurs only in them.

    The published file mixes sentences with their phrases and does not say which is which. A text that occurs in no
    longer text is taken for a sentence.
    """
    by_length = sorted({row["text"] for row in rows}, key=lambda text: (-len(text.split()), text))
    sentences_of = {text: set() for text in by_length}  # the sentences that contain a text
    for text in by_length:
        if not sentences_of[text]:
            words = text.split()
            spans = (" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1))
            for phrase in spans:
                if phrase in sentences_of:
                    sentences_of[phrase].add(text)
    held = {text for text in by_length if text in sentences_of[text] and files.hash_fraction(text) < val_fraction}
    return {"train": [row for row in rows if not sentences_of[row["text"]] <= held],
            "val": [row for row in rows if row["text"] in held]}


def main():
    cfg = config.load(Options)
    rows = read_phrases(prepare.find_raw("SST-2.zip", ADDRESS, HERE, cfg.source))
    splits = hold_out_sentences(rows["train"], cfg.val_fraction) | {"test": rows["dev"]}
    out = cfg.out or HERE
    texts = {split: [row["text"] for row in splits[split]] for split in ("train", "val")}
    prepare.write_data(out, texts, cfg.vocab_size, cfg.tokenizer)
    examples.save_task(out, {"kind": "classify", "labels": list(LABELS), "metric": "accuracy"}, splits)


if __name__ == "__main__":
    config.run(main)
