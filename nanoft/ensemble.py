"""Several fine-tuned models asked together: the mean of the probabilities that they give to each label.

    python -m nanoft.ensemble out/imdb/seed1 out/imdb/seed2 out/imdb_bag --out_dir=out/imdb_together

Models that were trained apart err at different rows, so their mean is mostly better than each of them (Hansen and
Salamon, 1990, Neural Network Ensembles); it costs the time of all. They may be of different shapes, if only their rows
are the same. finetune.py --seeds=1,2,3 does it for the runs of its seeds.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoft import UserError, config, files, metrics, tables


@dataclass
class Options:
    out_dir: str = ""  # a folder for the mean's result.json and predictions.jsonl; "" = they are only printed


def average(folders):
    """The mean of the predictions.jsonl of some runs: its scores, its confusion matrix and its predictions, a row each.

    Raises UserError where the runs are not of classify or pair with one label a row, or not of the same rows.
    """
    runs = [[row for _, row in tables.read_jsonl(Path(folder, "predictions.jsonl"))] for folder in folders]
    for folder, rows in zip(folders, runs):
        if not rows or not all(isinstance(row.get("label"), str) and isinstance(row.get("probabilities"), dict)
                               for row in rows):
            raise UserError(f"{folder}: its predictions.jsonl has no probability for each label; give runs of "
                            "classify or pair with one label a row")
        if [asked(row) for row in rows] != [asked(row) for row in runs[0]]:
            raise UserError(f"{folder}: its predictions.jsonl is of other rows or labels than that of {folders[0]}; "
                            "give runs of the same data")
    labels = list(runs[0][0]["probabilities"])
    mean = np.mean([[[row["probabilities"][label] for label in labels] for row in rows] for rows in runs], axis=0)
    truth = np.array([labels.index(row["label"]) for row in runs[0]])
    guess = mean.argmax(axis=1)  # (rows, labels) -> (rows,)
    loss = -np.log(np.maximum(mean[np.arange(len(truth)), truth], 1e-6)).mean()  # the files have six digits
    found = [row | {"prediction": labels[best], "probabilities": dict(zip(labels, some.round(6).tolist()))}
             for row, best, some in zip(runs[0], guess, mean)]
    scores = {"loss": float(loss)} | metrics.classification(truth, guess, labels)
    return scores, metrics.confusion(truth, guess, len(labels)), found


def asked(row):
    """A row without its answer, and the labels to choose from."""
    return {k: v for k, v in row.items() if k not in ("prediction", "probabilities")}, row["probabilities"].keys()


def main():
    folders = [word for word in sys.argv[1:] if not word.startswith("-")]
    cfg = config.load(Options, [word for word in sys.argv[1:] if word.startswith("-")])
    if len(folders) < 2:
        raise UserError("give two runs or more, as python -m nanoft.ensemble out/imdb/seed1 out/imdb/seed2")
    if cfg.out_dir and Path(cfg.out_dir, "result.json").exists():
        raise UserError(f"out_dir={cfg.out_dir} holds the figures of another run; give a new folder")
    scores, matrix, found = average(folders)
    labels = list(found[0]["probabilities"])
    print(f"{metrics.report(scores)}\n\n{metrics.confusion_table(matrix, labels)}")
    if cfg.out_dir:
        Path(cfg.out_dir).mkdir(parents=True, exist_ok=True)
        files.write_jsonl(Path(cfg.out_dir, "predictions.jsonl"), found)
        files.write_json(Path(cfg.out_dir, "result.json"), scores | {"runs": folders, "confusion": matrix.tolist()})
        print(f"{cfg.out_dir}: result.json, predictions.jsonl")


if __name__ == "__main__":
    config.run(main)
