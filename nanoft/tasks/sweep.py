"""Several runs: started by one command and compared in a table, or averaged: the mean of their predictions.

    python finetune.py config/sst2.py --seeds=1,2,3 "--grid=lr=1e-4,3e-4"
    python -m nanoft ensemble out/imdb/seed1 out/imdb/seed2 out/imdb_3 --out_dir=out/imdb_together
    python -m nanoft ensemble out/long_1 out/long_2         # GPTs: the loss of their mean

Models that were trained independently make different mistakes, so the mean of their probabilities is mostly better than
each of them (Hansen and Salamon, 1990, Neural Network Ensembles); it costs the time of all. They may be of different
shapes, if only their rows are the same; GPTs must share tokenizer and context.
"""

import itertools
import math
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_type_hints

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanoft import UserError, checkpoint, config, distributed, files
from nanoft.bins import Tokens
from nanoft.evaluate import causal_metrics, described
from nanoft.model import GPT, ModelConfig
from nanoft.published.source import open_model
from nanoft.tasks import metrics, tables
from nanoft.tasks.examples import ONE_LABEL
from nanoft.tasks.start import AUTO, eval_ending
from nanoft.text import prepare

# ---- the runs of finetune.py --seeds and --grid, and their table -------------------------------------------------


def variations(cfg) -> list:
    """The runs that --seeds and --grid ask for, each a config with its own out_dir. Raises ValueError."""
    settings, kinds = [], get_type_hints(type(cfg))
    for part in filter(None, cfg.grid.split(";")):
        name, equals, values = part.strip().partition("=")
        if name == "seed":
            raise ValueError(f"grid: {part!r}: several seeds are --seeds={values}")
        if not equals or name not in kinds or name in ("out_dir", "seeds", "grid", "resume"):
            raise ValueError(f"grid: {part!r} is not an option and its values, as in lr=1e-4,3e-4")
        settings.append([(name, parsed("grid: " + name, value, kinds[name])) for value in values.split(",")])
    seeds = [parsed("seeds", seed, int) for seed in cfg.seeds.split(",")] if cfg.seeds else [cfg.seed]
    runs = []
    for chosen in itertools.product(*settings):
        for seed in seeds:
            folder = [f"{name}={value}" for name, value in chosen] + ([f"seed{seed}"] if cfg.seeds else [])
            runs.append(replace(cfg, **dict(chosen), seed=seed, seeds="", grid="",
                                out_dir=str(Path(cfg.out_dir, "_".join(folder).replace("/", "-")))))
    names = [values[0][0] for values in settings]
    if len({run.out_dir for run in runs}) < len(runs) or len(set(names)) < len(names):
        raise ValueError(f"seeds={cfg.seeds} grid={cfg.grid}: something stands there twice; name each once")
    return runs


def parsed(name: str, text: str, kind: type):
    """The text as a value of this type. Raises ValueError with the option's name."""
    try:
        return config.parse_text(text.strip(), kind)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def finished(run) -> bool:
    """Has this very run, with the same options, been finished before?"""
    out_dir = Path(run.out_dir)
    if not (out_dir / "result.json").exists():
        return False
    before = files.read_json(out_dir / "config.json")
    return all(before.get(name) == value or AUTO.get(name) == value for name, value in asdict(run).items()
               if name != "resume")


def compare(cfg, runs: list, results: list[dict]) -> None:
    """Print and write a table, a line for each combination of --grid: mean and deviation over the seeds.

    Where rows have one label each, also the score of the mean of the seeds' predictions of the last split.
    """
    names = [part.strip().partition("=")[0] for part in filter(None, cfg.grid.split(";"))]
    groups: dict[tuple, list] = {}  # of each combination: its runs and their results
    diverged: dict[tuple, int] = {}
    for run, result in zip(runs, results):
        chosen = tuple((name, getattr(run, name)) for name in names)
        if "diverged" in result:
            diverged[chosen] = diverged.get(chosen, 0) + 1
        else:
            groups.setdefault(chosen, []).append((run, result))
    notes = [f"{' '.join(f'{k}={v}' for k, v in chosen)}: {number} diverged" for chosen, number in diverged.items()]
    results = [result for result in results if "diverged" not in result]
    if not results:
        print("\n".join(notes))
        return
    metric, ending = results[0]["metric"], eval_ending(next(iter(groups.values()))[0][0])
    splits = [split for split in ("val", "test") if f"{split}_{metric}" in results[0]]
    one_label = all(result.get("kind") in ONE_LABEL and f"{splits[-1]}_confusion" in result
                    for result in results)  # results of an older nanoft name no kind
    columns = [f"{split}_{metric}" for split in splits]
    together = f"{columns[-1]}_together" if one_label and len(next(iter(groups.values()))) > 1 else ""
    lines = [("", *(name.replace("_", " ") for name in [*columns, "deviation_of_each", *filter(None, [together])]))]
    entries = []
    for chosen, group in groups.items():
        values = {column: [result[column] for _, result in group] for column in columns}
        means = {column: statistics.fmean(scores) for column, scores in values.items()}
        deviations = {column: statistics.stdev(scores) if len(scores) > 1 else 0.0 for column, scores in values.items()}
        joint = {together: average_predictions([r.out_dir for r, _ in group], ending)[0][metric]} if together else {}
        lines.append((" ".join(f"{k}={v}" for k, v in chosen) or f"{len(group)} seeds",
                      *(f"{mean:.4f}" for mean in means.values()),
                      " ".join(f"{deviation:.4f}" for deviation in deviations.values()),
                      *(f"{score:.4f}" for score in joint.values())))
        entries.append({"options": dict(chosen), "seeds": [run.seed for run, _ in group]} | {
            column: {"values": values[column], "mean": means[column], "deviation": deviations[column]}
            for column in columns} | joint)
    print("\n".join([f"\n--- {len(runs)} runs ---\n{files.aligned(lines)}", *notes]))
    files.write_json(Path(cfg.out_dir) / f"{'grid' if cfg.grid else 'result'}{ending}.json", entries)


# ---- the mean of several runs ------------------------------------------------------------------------------------


def average_predictions(folders: list, ending: str = "") -> tuple[dict, np.ndarray, list[dict]]:
    """The mean of several runs' predictions of the same rows: scores, confusion (K, K), the rows. Raises UserError."""
    runs = [[row for _, row in tables.read_jsonl(Path(folder, f"predictions{ending}.jsonl"))] for folder in folders]
    for folder, rows in zip(folders, runs):
        if not rows or not all(isinstance(row.get("label"), str) and isinstance(row.get("probabilities"), dict)
                               for row in rows):
            raise UserError(f"{folder}: its predictions.jsonl has no probability for each label; give runs of "
                            "classify or pair with one label a row")
        asked, first = ([row | {"prediction": "", "probabilities": {*row["probabilities"]}} for row in some]
                        for some in (rows, runs[0]))
        if asked != first:
            raise UserError(f"{folder}: its predictions.jsonl is of other rows or labels than that of {folders[0]}; "
                            "give runs of the same data")
    labels = list(runs[0][0]["probabilities"])
    mean = np.mean([[[row["probabilities"][label] for label in labels] for row in rows] for rows in runs], axis=0)
    truth = np.array([labels.index(row["label"]) for row in runs[0]])
    guess = mean.argmax(axis=1)  # (rows, K) -> (rows,)
    loss = -np.log(np.maximum(mean[np.arange(len(truth)), truth], 1e-6)).mean()  # the files have six digits
    predictions = [row | {"prediction": labels[best], "probabilities": dict(zip(labels, p.round(6).tolist()))}
                   for row, best, p in zip(runs[0], guess, mean)]
    positive = files.read_json(Path(folders[0], "result.json"), {str: object}, {}).get("positive")
    number = labels.index(positive) if positive in labels else 1
    scores = {"loss": float(loss)} | metrics.classification(truth, guess, labels, number)
    scores |= {"auc": metrics.auc(truth == number, mean[:, number])} if len(labels) == 2 else {}
    return scores, metrics.confusion(truth, guess, len(labels)), predictions


class MeanGPT:
    """Several GPTs as one, for evaluate.causal_metrics: the mean of the probabilities that they give to each token."""

    def __init__(self, models: list):
        self.models, self.cfg = models, models[0].cfg

    def __call__(self, ids: Tensor, targets: Tensor) -> Tensor:
        """ids, targets: (B, T) -> the mean loss in nats over the targets that are not -100."""
        nats = torch.stack([  # (B, T, V) -> (B * T, V) -> (B * T,) for each model; 0 where the target is -100
            F.cross_entropy(model.logits(ids).float().flatten(0, 1), targets.flatten(), reduction="none")
            for model in self.models])
        mean = math.log(len(self.models)) - torch.logsumexp(-nats, 0)  # (models, B * T) -> (B * T,)
        return mean.sum() / (targets != -100).sum().clamp(min=1)


def average_gpts(folders: list) -> dict:
    """The metrics of the mean of several GPTs on all of val and test of the first one's data. Raises UserError."""
    dist = distributed.start()
    models: list = []
    for folder in folders:
        state, path, tokenizer = open_model(folder)
        shape = ModelConfig.from_saved(state["model_config"], path)
        if not shape.causal or "task" in state or "data" not in state.get("config", {}):
            raise UserError(f"{folder} is no GPT of train.py; give such runs, or fine-tuned ones with predictions")
        if not models:
            data, first = prepare.find_data(state["config"]["data"]), tokenizer
        elif tokenizer.fingerprint != first.fingerprint or shape.block_size != models[0].cfg.block_size:
            raise UserError(f"{folder} has another tokenizer or block_size than {folders[0]}; give GPTs of the same "
                            "data and context")
        models.append(checkpoint.load_model(state, path, GPT, dist.device))
    prepare.ensure(data)
    result = {}
    for split in (split for split in ("val", "test") if Tokens.exists(data, split)):
        tokens = Tokens.open(data, split)
        if tokens.fingerprint != first.fingerprint:
            raise UserError(f"{data}/{split}.bin was made by another tokenizer than that of {folders[0]}; prepare it "
                            f"again with --tokenizer={folders[0]}")
        tokens.count_bytes(first)
        scores = causal_metrics(MeanGPT(models), tokens, 0, first.special["<|endoftext|>"], dist)
        print(f"{split}, all of it: {described(scores)}")
        result |= {f"{split}_{name}": value for name, value in scores.items()}
    return result


@dataclass
class Options:
    out_dir: str = ""  # a folder for the mean's result.json (and predictions.jsonl); "" = they are only printed


def main():
    cfg, folders = config.load_tool(Options, "ensemble FOLDER FOLDER... --out_dir=FOLDER")
    if len(folders) < 2:
        raise UserError("give two runs or more, as python -m nanoft ensemble out/imdb/seed1 out/imdb/seed2")
    if cfg.out_dir and Path(cfg.out_dir, "result.json").exists():
        raise UserError(f"out_dir={cfg.out_dir} holds the scores of another run; give a new folder")
    predictions = []
    if Path(folders[0], "predictions.jsonl").exists():
        result, matrix, predictions = average_predictions(folders)
        print(f"{metrics.report(result)}\n\n{metrics.confusion_table(matrix, list(predictions[0]['probabilities']))}")
        result["confusion"] = matrix.tolist()
    else:
        result = average_gpts(folders)
    if cfg.out_dir:
        if predictions:
            files.write_jsonl(Path(cfg.out_dir, "predictions.jsonl"), predictions)
        files.write_json(Path(cfg.out_dir, "result.json"), {"runs": folders} | result)
        print(f"{cfg.out_dir}: result.json{', predictions.jsonl' if predictions else ''}")
