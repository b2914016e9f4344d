"""Several models asked together: the mean of the probabilities that they give to each label, or to each next token.

    python -m nanoft ensemble out/imdb/seed1 out/imdb/seed2 out/imdb_bag --out_dir=out/imdb_together
    python -m nanoft ensemble out/long_1 out/long_2         # GPTs: the loss of their mean

Models that were trained apart err at different rows, so their mean is mostly better than each of them (Hansen and
Salamon, 1990, Neural Network Ensembles); it costs the time of all. They may be of different shapes, if only their rows
are the same; GPTs must share tokenizer and context. finetune.py --seeds=1,2,3 does it for the runs of its seeds.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from nanoft import UserError, checkpoint, config, distributed, files
from nanoft.bins import Tokens
from nanoft.evaluate import causal_metrics, described
from nanoft.model import ModelConfig, make_model
from nanoft.published.source import open_checkpoint
from nanoft.tasks import metrics, tables
from nanoft.text import prepare, vocabulary


@dataclass
class Options:
    out_dir: str = ""  # a folder for the mean's result.json (and predictions.jsonl); "" = they are only printed


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


class Mean(torch.nn.Module):
    """Several GPTs as one, for evaluate.causal_metrics: the mean of the probabilities that they give to each token."""

    def __init__(self, models):
        super().__init__()
        self.models, self.cfg = torch.nn.ModuleList(models), models[0].cfg

    def forward(self, ids, targets):
        """ids, targets: (B, T) -> the mean loss in nats over the targets that are not -100."""
        nats = torch.stack([  # (B, T, V) -> (B * T, V) -> (B * T,) for each model; 0 where the target is -100
            F.cross_entropy(model.logits(ids).float().flatten(0, 1), targets.flatten(), reduction="none")
            for model in self.models])
        mean = math.log(len(self.models)) - torch.logsumexp(-nats, 0)  # (models, B * T) -> (B * T,)
        return mean.sum() / (targets != -100).sum().clamp(min=1)


def language_models(folders):
    """The figures of some GPTs' mean on all of the validation and test splits of the first one's data, by name.

    Raises UserError where a folder holds no GPT of train.py, or one with another tokenizer or context.
    """
    dist = distributed.start()
    models = []
    for folder in folders:
        state, path = open_checkpoint(folder)
        tokenizer = vocabulary.load(path.parent)
        shape = ModelConfig.from_saved(state["model_config"], path)
        if not shape.causal or "task" in state or "data" not in state.get("config", {}):
            raise UserError(f"{folder} is no GPT of train.py; give such runs, or fine-tuned ones that have a "
                            "predictions.jsonl")
        if not models:
            data, first = prepare.find_data(state["config"]["data"]), tokenizer
        elif tokenizer.fingerprint != first.fingerprint or shape.block_size != models[0].cfg.block_size:
            raise UserError(f"{folder} has another tokenizer or block_size than {folders[0]}; give GPTs of the same "
                            "data and context")
        models.append(checkpoint.load_model(state, path, make_model))
    model = Mean(models).to(dist.device).eval()
    prepare.ensure(data)
    result = {}
    for split in (split for split in ("val", "test") if Tokens.exists(data, split)):
        tokens = Tokens.open(data, split)
        if tokens.fingerprint != first.fingerprint:
            raise UserError(f"{data}/{split}.bin was made by another tokenizer than that of {folders[0]}; prepare it "
                            f"again with --tokenizer={folders[0]}")
        figures = causal_metrics(model, tokens, 0, first.special["<|endoftext|>"], dist)
        print(f"{split}, all of it: {described(figures)}")
        result |= {f"{split}_{name}": value for name, value in figures.items()}
    return result


def main():
    folders = [word for word in sys.argv[1:] if not word.startswith("-")]
    cfg = config.load(Options, [word for word in sys.argv[1:] if word.startswith("-")])
    if len(folders) < 2:
        raise UserError("give two runs or more, as python -m nanoft ensemble out/imdb/seed1 out/imdb/seed2")
    if cfg.out_dir and Path(cfg.out_dir, "result.json").exists():
        raise UserError(f"out_dir={cfg.out_dir} holds the figures of another run; give a new folder")
    found = []
    if Path(folders[0], "predictions.jsonl").exists():
        result, matrix, found = average(folders)
        print(f"{metrics.report(result)}\n\n{metrics.confusion_table(matrix, list(found[0]['probabilities']))}")
        result["confusion"] = matrix.tolist()
    else:
        result = language_models(folders)
    if cfg.out_dir:
        Path(cfg.out_dir).mkdir(parents=True, exist_ok=True)
        if found:
            files.write_jsonl(Path(cfg.out_dir, "predictions.jsonl"), found)
        files.write_json(Path(cfg.out_dir, "result.json"), {"runs": folders} | result)
        print(f"{cfg.out_dir}: result.json{', predictions.jsonl' if found else ''}")


if __name__ == "__main__":
    config.run(main)
