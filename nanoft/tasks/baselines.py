"""What a result is worth: the same scores for the commonest class and for a linear model, and what to be told."""

import math

import numpy as np

from nanoft.tasks import linear, predict
from nanoft.tasks.examples import ONE_LABEL
from nanoft.tasks.features import WHOLE_TEXT, Encoded


def baseline_scores(task: dict, rows: list[dict], encoded: Encoded, train: Encoded, fitted,
                    val: tuple[list[dict], Encoded]) -> dict[str, float]:
    """The task's metric of simple models on a split: {"majority": ..., "linear": ...}, those for which it exists.

    majority: always the commonest class of training, or the mean of its numbers, or the commonest tag. fitted: what
    linear.fit made of the training rows, or None. val: the rows and features on which its thresholds are chosen
    (multi-label, and the tag O). Kinds without classes or numbers have no baseline: {}.
    """
    # the commonest class, or tag, is always given: without the model's thresholds and transitions
    full, task = task, {name: value for name, value in task.items() if name not in ("thresholds", "transitions")}
    outputs, kind = {}, task["kind"]
    if kind in (*WHOLE_TEXT, "tag", "image"):
        n = predict.output_offsets(encoded, task)[-1]
        if kind == "regress":
            prior = np.zeros(1)  # labels have mean 0 here
        elif task.get("multi_label"):
            prior = train.targets.mean(axis=0) - 0.5
        else:
            prior = np.log(1e-9 + np.bincount(train.targets[train.targets >= 0], minlength=len(task["labels"])))
        outputs["majority"] = np.tile(prior, (n, 1))
    if fitted is not None:
        outputs["linear"] = linear.outputs(fitted, encoded)
    values = {}
    for name, out in outputs.items():
        if name == "linear" and predict.has_thresholds(task):
            task = full | {"thresholds": predict.best_thresholds(full, *val, linear.outputs(fitted, val[1]))}
        guesses = predict.predictions(task, rows, encoded, out)
        values[name] = float(predict.scores(task, rows, guesses, encoded, out)[0][task["metric"]])
    return {name: value for name, value in values.items() if not math.isnan(value)}


def remarks(task: dict, found: list[dict], score: float, baselines: dict[str, float], train_loss: float | None,
            loss: float | None) -> list[str]:
    """Sentences on what a user should not overlook in the scores of a split.

    found: the predictions; score, baselines: the task's metric; train_loss, loss: of training and of this split.
    """
    lines = []
    if baselines:
        lines.append(f"baselines: {', '.join(f'{name} {value:.4f}' for name, value in baselines.items())} "
                     f"({task['metric']})")
    guesses = {str(item["prediction"]) for item in found} if task["kind"] in ONE_LABEL else set()
    if len(guesses) == 1 and len(found) > 1:
        lines.append(f"note: every row is predicted as {guesses.pop()!r}: the model has learned no difference")
    better = [name for name, value in baselines.items()
              if (value <= score if task["metric"] in predict.LOWER else value >= score)]
    if better and not (task.get("linear") and better == ["linear"]):
        verb = "are" if len(better) > 1 else "is"
        lines.append(f"note: {' and '.join(better)} {verb} as good or better: more epochs, a pretrained model "
                     f"(--init_from){', --linear=true' * ('linear' in better)} or more rows may help")
    if train_loss is not None and loss is not None and loss > 2 * train_loss + 0.1:
        lines.append(f"note: the training loss {train_loss:.3f} is far below {loss:.3f} here: the rows are learned by "
                     "heart; fewer epochs, more dropout or more rows may help")
    return lines
