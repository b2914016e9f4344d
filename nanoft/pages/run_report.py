"""A run as one page: its options, how it went, what came out and where it errs; or several runs side by side.

    python -m nanoft report out/imdb                           # writes out/imdb/report.html
    python -m nanoft report --compare out/a out/b out/c        # writes compare.html beside the first of them

A page needs no network and no other file. It is made from the run folder: config.json, metrics.jsonl, samples.jsonl,
result.json, environment.json, predictions.jsonl and best.pt; all but the first two may be missing.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoft import UserError, config
from nanoft.files import difference, read_json
from nanoft.inspect import mistakes, pictures, summary
from nanoft.pages import plots
from nanoft.pages.html import cell, escape, table, write
from nanoft.runlog import clock
from nanoft.tasks import metrics, tables

AXES = {"step": "steps", "tokens": "tokens", "epoch": "epochs", "minutes": "minutes since the start"}
SCORES = ("accuracy", "f1", "macro_f1", "mcc", "exact", "pearson", "spearman", "mlm_accuracy", "nsp_accuracy")
OTHERS = {"val_bits_per_byte": "bits per byte", "lr": "learning rate", "grad_norm": "norm of the gradient",
          "tokens_per_s": "tokens per second", "rows_per_s": "rows per second", "mfu": "model FLOPs utilisation",
          "memory_gb": "memory (GB)"}

# the forms of a run's files, for files.difference, as far as the page depends on them
METRICS = {"step": int, str: (float, None)}
SAMPLES = {"step": int, "tag": str, "text": str}
RESULT = {"seconds?": float, "train_seconds?": float, "metric?": str} | {
    f"{split}_{name}?": form for split in ("val", "test")
    for name, form in (("confusion", [[int]]), ("per_class", {str: {str: (float, None)}}))}
CLASS = {"label": str, "prediction": str, "probabilities": {str: float}}
PREDICTIONS: dict[str, dict] = {
               "regress": {"label": float, "prediction": float}, "generate": {"nats": float, "tokens": int},
               "tag": {"words": [str], "tags": [str], "prediction": [str], "probabilities": [float]},
               "answer": {"answers": [{"text": str}], "prediction": str, "probability": float},
               "multi_label": {"labels": [str], "prediction": [str], "probabilities": {str: float}},
               "classify": CLASS, "pair": CLASS, "image": CLASS | {"image": str}}


@dataclass
class Options:
    compare: bool = False  # several run folders side by side
    out: str = ""          # the page; empty: report.html in the run's folder, or compare.html beside the first run's


@dataclass
class Run:
    """What a run folder holds. rows: of metrics.jsonl, each with its `minutes` and, where they are known, `tokens`."""
    folder: Path
    config: dict
    rows: list[dict]
    result: dict              # empty until the run has ended
    starts: list[dict]        # of environment.json: one for each time that the run was started or resumed
    samples: dict[int, str]   # by step

    def curve(self, metric: str, axis: str) -> np.ndarray:
        """(2, points): where on the axis the metric was logged, and its values."""
        points = [(row.get(axis), row.get(metric)) for row in self.rows]
        return np.array([point for point in points if None not in point], dtype=float).reshape(-1, 2).T


def load(folder) -> Run:
    """The run in a folder, ended or not. Raises UserError if there is none."""
    folder = Path(folder)
    if not (folder / "metrics.jsonl").exists():
        raise UserError(f"{folder}: no metrics.jsonl there; give the folder of a run, such as out/wikitext")
    rows, offset, before = read_log(folder / "metrics.jsonl", METRICS), 0.0, 0.0
    for row in rows:
        if row.get("seconds") is not None:
            offset += before if row["seconds"] < before else 0.0  # resumed: the clock of another process
            row["minutes"], before = (offset + row["seconds"]) / 60, row["seconds"]
    tokens_per_step = [row["tokens"] / row["step"] for row in rows if row.get("tokens") and row["step"]]
    for row in rows if tokens_per_step else []:
        row["tokens"] = row["step"] * tokens_per_step[-1]
    config = read_json(folder / "config.json", {"objective?": str, "data?": str, "train_file?": str})
    result = read_json(folder / "result.json", RESULT, {})
    starts = read_json(folder / "environment.json", [{"command": str}], [])
    samples = {row["step"]: row["text"] for row in read_log(folder / "samples.jsonl", SAMPLES)
               if row["tag"] in ("sample", "final sample")}
    return Run(folder, config, rows, result, starts, samples)


def read_log(path: Path, form) -> list[dict]:
    """The rows of a log that may be missing; those of another form, as one that is being written, are left out."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            rows += [row] if not difference(row, form) else []
    return rows


# ---- one run -----------------------------------------------------------------------------------------------------


def report(run: Run) -> list[str]:
    """The fragments of HTML of a run's page."""
    checkpoint = run.folder / "best.pt"
    shape, cfg, task = summary.from_run(checkpoint) if checkpoint.exists() else (None, None, None)
    done = f"{run.rows[-1]['step']:,} steps" if run.rows else "no step yet"
    minutes = [row["minutes"] for row in run.rows if "minutes" in row]
    done += (f" in {clock(60 * minutes[-1])}" if minutes else "") + ("" if run.result else ", not finished")
    parts = [f'<p class="dim">{escape(run.config.get("objective") or "fine-tuned")}, {done}</p>',
             *(f"<pre>{escape(start['command'])}</pre>" for start in run.starts[:1]),
             "<h2>Result</h2>", results(run)]
    if plots.can_draw():
        parts += ["<h2>Curves</h2>", '<div class="row">', *map(plots.svg, curves(run)), "</div>",
                  '<p class="dim">Pale: each logged value; strong: the mean over a sixtieth of the run. First losses '
                  "far above the others are not shown.</p>"]
    if task:
        parts += errors(run, task)
    if run.samples:
        *earlier, last = sorted(run.samples)
        steps = [earlier[i] for i in np.unique(np.linspace(0, len(earlier) - 1, 4).astype(int))] if earlier else []
        parts += ["<h2>Samples</h2>", *(f"<h3>step {step:,}</h3><pre>{escape(run.samples[step])}</pre>"
                                        for step in (last, *reversed(steps)))]
    if shape:
        parts += ["<h2>Model</h2>", '<div class="wide"><pre style="white-space:pre;width:max-content">'
                  f"{escape(summary.describe(shape, cfg, task))}</pre></div>"]
    options = [(name, str(value)) for name, value in run.config.items()]
    third = max(1, -(-len(options) // 3))
    parts += ["<h2>Options</h2>", '<div class="row">',
              *(table(("", ""), options[i:i + third]) for i in range(0, len(options), third)), "</div>",
              "<h2>Command and environment</h2>"]
    for start in run.starts:
        parts += [f"<pre>{escape(start['command'])}</pre>", table(("", ""), [
            (name, str(value)) for name, value in start.items() if name != "command" and value != ""])]
    return parts if run.starts else [*parts, "<p>The run has no environment.json: an older nanoft made it.</p>"]


def results(run: Run) -> str:
    """The final metrics: those of the splits beside each other, then what the run has once."""
    if not run.result:
        return "<p>The run has no result.json yet: it is written at the end.</p>"
    splits = [split for split in ("val", "test") if any(key.startswith(split + "_") for key in run.result)]
    names = dict.fromkeys(key.partition("_")[2] for key in run.result if key.partition("_")[0] in splits)
    by_split = [(name, [run.result.get(f"{split}_{name}") for split in splits]) for name in names]
    rows = [(name.replace("_", " "), *map(format_value, values)) for name, values in by_split
            if not any(isinstance(value, (dict, list)) for value in values)]
    times = {"train_seconds": "time of training", "seconds": "time in all"}
    once = [(times.get(key, key.replace("_", " ")), clock(value) if key in times else format_value(value))
            for key, value in run.result.items() if key.partition("_")[0] not in splits]
    return f'<div class="row"><div>{table(("", *splits), rows)}</div><div>{table(("", ""), once)}</div></div>'


def format_value(value) -> str:
    """A value for a table."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}" if isinstance(value, float) else str(value)


# ---- curves --------------------------------------------------------------------------------------------------------


def curves(run: Run) -> list:
    """The figures of a run: its loss over each axis, its scores, then every other metric over the steps."""
    figures = [line_plot(f"Loss over {label.partition(' ')[0]}", titles("loss", run)[1],
                         [("training", run, "loss"), ("validation", run, "val_loss")], axis)
               for axis, label in AXES.items()]
    figures.append(line_plot("Scores on validation", "score (1 is best)",
                             [(name.replace("_", " "), run, f"val_{name}") for name in SCORES]))
    figures += [line_plot(*titles(name, run), [(None, run, name)]) for name in OTHERS]
    return [figure for figure in figures if figure]


def line_plot(title: str, label: str, lines, axis: str = "step"):
    """A figure of lines (name or None, run, metric) over an axis; None if no run has such a metric.

    Validation metrics are drawn with their points, the noisy ones of training steps pale with their mean.
    """
    drawn = [(name, metric, *run.curve(metric, axis)) for name, run, metric in lines]
    drawn = [line for line in drawn if len(line[2])]
    if not drawn:
        return None
    ax = plots.axes(title, AXES[axis], label)
    for i, (name, metric, x, y) in enumerate(drawn):
        style = {"color": plots.COLOURS[i % len(plots.COLOURS)], "label": name}
        if metric.startswith("val_"):
            ax.plot(x, y, "o-", ms=3.5, **style)
            continue
        if len(x) >= 120:
            step = -(-len(x) // 1500)
            ax.plot(x[::step], y[::step], lw=0.8, alpha=0.35, color=style["color"])
            cuts = np.linspace(0, len(x), 61).astype(int)[1:-1]
            x, y = ([part.mean() for part in np.split(values, cuts)] for values in (x, y))
        ax.plot(x, y, lw=1.5, **style)
    if drawn[0][0]:
        ax.legend()
    ax.locator_params(axis="x", nbins=6)
    plots.plain_ticks(ax.xaxis, ax.yaxis)
    if drawn[0][1] in ("loss", "val_loss"):  # the first losses would press all others to the ground
        losses = np.concatenate([y for *_, y in drawn])
        low, high = losses.min(), np.percentile(losses, 97)
        if losses.max() > high + 0.5 * (high - low):
            ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    return ax.figure


def titles(metric: str, run: Run) -> tuple[str, str]:
    """What stands above the plot of a metric, and beside its axis."""
    name = OTHERS.get(metric, metric.removeprefix("val_").replace("_", " "))
    units = {"causal": " (nats per token)", "mlm": " (nats per masked token)"} if metric.endswith("loss") else {}
    title = (f"Validation: {name}" if metric.startswith("val_") else
             "Training loss" if metric == "loss" else name[0].upper() + name[1:])
    return title, name + units.get(run.config.get("objective", ""), "")


# ---- where a fine-tuned model errs --------------------------------------------------------------------------------


def errors(run: Run, task: dict) -> list[str]:
    """The confusion matrix, the scores of each class, and the rows furthest from the truth."""
    split = "test" if any(key.startswith("test_") for key in run.result) else "val"
    parts, matrix = [], run.result.get(f"{split}_confusion")
    if matrix and {len(task["labels"])} == {len(matrix), *map(len, matrix)}:
        parts += [f"<h2>Confusion ({split})</h2>", confusion(np.array(matrix), task["labels"])]
    if classes := run.result.get(f"{split}_per_class"):
        rows = [(name, *map(format_value, scores.values())) for name, scores in classes.items()]
        parts += [f"<h2>Each class ({split})</h2>", table(("", *next(iter(classes.values()))), rows)]
    if not (run.folder / "predictions.jsonl").exists():
        return parts
    predictions = [row for _, row in tables.read_jsonl(run.folder / "predictions.jsonl")]
    form = PREDICTIONS["multi_label" if task.get("multi_label") else task["kind"]]
    if problem := difference(predictions, [form | dict.fromkeys(("text?", "pair?", "question?", "prompt?"), str)]):
        raise UserError(f"{run.folder}/predictions.jsonl is damaged ({problem}); remove it, or run --eval_only")
    if task["kind"] == "regress" and plots.can_draw():
        ax = plots.axes(f"Truth and prediction ({split})", "truth", "prediction")
        ax.plot([row["label"] for row in predictions], [row["prediction"] for row in predictions], ".", alpha=0.5)
        parts.append(plots.svg(ax.figure))
    try:
        worst = mistakes.worst_rows(task, predictions, predictions)  # they hold the texts and the truth, too
    except LookupError as error:
        raise UserError(f"{run.folder}/predictions.jsonl is of another task, it lacks {error}; remove it") from None
    if worst and task["kind"] == "image":
        parts += [f"<h2>The worst pictures ({split})</h2>", '<p class="dim">Below each: truth, and prediction.</p>',
                  pictures.worst_as_html(task, [predictions[mistake.row] for mistake in worst[:16]])]
    if worst:
        parts += [f"<h2>Furthest from the truth ({split})</h2>", table(*mistakes.mistakes_table(task, worst))]
    return parts


def confusion(matrix: np.ndarray, labels, most: int = 20) -> str:
    """A row of the matrix is a true class, coloured by its fractions. With many classes only the commonest mistakes."""
    if len(labels) > most:
        return f"<pre>{escape(metrics.confusion_table(matrix, labels, most))}</pre>"
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    share -= 2 * share * (1 - np.eye(len(labels)))  # mistakes in the other colour
    return table(("truth \\ predicted", *labels), [
        (label, *(cell(f"{n:,}", value) for n, value in zip(counts, values)))
        for label, counts, values in zip(labels, matrix.tolist(), share.tolist())])


# ---- several runs --------------------------------------------------------------------------------------------------


def compare(runs: list[Run]) -> list[str]:
    """The fragments of HTML of a page on several runs; only what can be compared is drawn together."""
    parts, names = [], [run.folder.name for run in runs]
    same_data = len({tuple(run.config.get(key, "") for key in ("data", "train_file", "val_file")) for run in runs}) == 1
    same_task = len({run.config.get("objective") or run.result.get("metric") for run in runs}) == 1
    tokenizers = [run.folder / "tokenizer.json" for run in runs]
    same_tokenizer = len({path.read_bytes() for path in tokenizers if path.exists()}) == 1
    compared = ["loss", "val_loss"] * same_tokenizer + [f"val_{name}" for name in ("bits_per_byte", *SCORES)]
    if not same_data or not same_task:
        compared = []
        parts.append("<p>These runs had different data or different tasks, so their losses and scores cannot be "
                     "compared and are not drawn together.</p>")
    elif not same_tokenizer:
        parts.append("<p>These runs have different tokenizers: compare bits per byte, not losses per token.</p>")
    compared = [metric for metric in (*compared, "tokens_per_s", "rows_per_s")
                if sum(len(run.curve(metric, "step")[0]) > 0 for run in runs) > 1]
    if compared and plots.can_draw():
        parts.append("<h2>Curves</h2>")
    for metric in compared if plots.can_draw() else ():
        lines = [(run.folder.name, run, metric) for run in runs]
        figures = [line_plot(*titles(metric, runs[0]), lines, axis) for axis in AXES]
        parts += ['<div class="row">', *(plots.svg(figure) for figure in figures if figure), "</div>"]
    options = dict.fromkeys(option for run in runs for option in run.config if option != "out_dir")
    rows = [(option, *(str(run.config.get(option, "")) for run in runs)) for option in options]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    parts += ["<h2>Options that differ</h2>", table(("", *names), rows) if rows else "<p>None but the folder.</p>"]
    final = dict.fromkeys(metric for run in runs for metric, value in run.result.items()
                          if not isinstance(value, (dict, list)))
    rows = [(metric.replace("_", " "), *(format_value(run.result.get(metric)) for run in runs)) for metric in final]
    return [*parts, "<h2>Final metrics</h2>", table(("", *names), rows)]


def main():
    cfg, folders = config.load_tool(Options, "report FOLDER, or report --compare FOLDER FOLDER ...")
    if len(folders) > 1 and not cfg.compare:
        raise UserError(f"{len(folders)} run folders given; give one, or several after --compare")
    runs = [load(folder) for folder in folders]
    out = Path(cfg.out or (runs[0].folder.parent / "compare.html" if cfg.compare else runs[0].folder / "report.html"))
    if cfg.compare:
        write(out, " and ".join(run.folder.name for run in runs), *compare(runs))
    else:
        write(out, str(runs[0].folder), *report(runs[0]))
    print(f"{out}: {out.stat().st_size / 1e3:,.0f} kB; open it in a browser")
