"""A run as one page: what was asked for, how it went, what came out, where it errs; and several runs side by side.

    python -m nanoft report out/imdb                           # writes out/imdb/report.html
    python -m nanoft report --compare out/a out/b out/c        # writes compare.html beside the first of them

A page needs nothing but itself: no network, no other file. It is made of what the run folder holds: config.json,
metrics.jsonl, result.json, environment.json, predictions.jsonl, best.pt, and the texts in the TensorBoard events.
"""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoft import UserError, config
from nanoft.inspect import summary
from nanoft.pages import plots
from nanoft.pages.curves import SCORES, curves, load, side_by_side
from nanoft.pages.html import cell, escape, table, write
from nanoft.runlog import clock
from nanoft.tasks import examples, metrics, tables
from nanoft.text import prepare


@dataclass
class Options:
    compare: bool = False  # several run folders side by side
    out: str = ""          # the page; empty: report.html in the run's folder, or compare.html beside the first run's


# ---- one run -----------------------------------------------------------------------------------------------------


def report(run):
    """The pieces of HTML of a run's page."""
    checkpoint = run.folder / "best.pt"
    shape, cfg, task = summary.of_run(checkpoint) if checkpoint.exists() else (None, None, None)
    parts = [head(run), "<h2>Result</h2>", results(run)]
    if plots.can_draw():
        parts += ["<h2>Curves</h2>", '<div class="row">', *map(plots.svg, curves(run)), "</div>",
                  '<p class="dim">Pale: each logged value; strong: the mean over a sixtieth of the run. The first '
                  "losses, far above the others, are out of sight.</p>"]
    if task:
        parts += errors(run, task)
    if run.texts:
        *earlier, last = sorted(run.texts)
        some = [earlier[i] for i in np.unique(np.linspace(0, len(earlier) - 1, 4).astype(int))] if earlier else []
        parts += ["<h2>What it writes</h2>", *(f"<h3>step {step:,}</h3><pre>{escape(run.texts[step])}</pre>"
                                               for step in (last, *reversed(some)))]
    if shape:
        parts += ["<h2>Model</h2>", '<div class="wide"><pre style="white-space:pre;width:max-content">'
                  f"{escape(summary.described(shape, cfg, task))}</pre></div>"]
    options = [(name, str(value)) for name, value in run.config.items()]
    third = -(-len(options) // 3)
    parts += ["<h2>Options</h2>", '<div class="row">',
              *(table(("", ""), options[i:i + third]) for i in range(0, len(options), third)), "</div>"]
    return parts + ["<h2>Made by</h2>", starts(run)]


def head(run):
    kind = run.config.get("objective") or "fine-tuned"
    done = f"{run.rows[-1]['step']:,} steps" if run.rows else "no step yet"
    minutes = [row["minutes"] for row in run.rows if "minutes" in row]
    done += (f" in {clock(60 * minutes[-1])}" if minutes else "") + ("" if run.result else ", not finished")
    command = f"<pre>{escape(run.starts[0]['command'])}</pre>" if run.starts else ""
    return f'<p class="dim">{escape(kind)}, {done}</p>{command}'


def results(run):
    """The final figures: those of each split beside each other, then what is said once."""
    if not run.result:
        return "<p>The run has no result.json yet: its final figures come at its end.</p>"
    splits = [split for split in ("val", "test") if any(key.startswith(split + "_") for key in run.result)]
    names = dict.fromkeys(key.partition("_")[2] for key in run.result if key.partition("_")[0] in splits)
    figures = [(name.replace("_", " "), *(shown(run.result.get(f"{split}_{name}")) for split in splits))
               for name in names if not any(isinstance(run.result.get(f"{split}_{name}"), (dict, list))
                                            for split in splits)]
    times = {"train_seconds": "time of training", "seconds": "time in all"}
    once = [(times.get(key, key.replace("_", " ")), clock(value) if key in times else shown(value))
            for key, value in run.result.items() if key.partition("_")[0] not in splits]
    return f'<div class="row"><div>{table(("", *splits), figures)}</div><div>{table(("", ""), once)}</div></div>'


def shown(value):
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}" if isinstance(value, float) else str(value)


# ---- where a fine-tuned model errs --------------------------------------------------------------------------------


def errors(run, task):
    """The confusion matrix, the figures of each class, and the rows furthest from the truth."""
    split = "test" if any(key.startswith("test_") for key in run.result) else "val"
    parts, matrix = [], run.result.get(f"{split}_confusion")
    if matrix:
        parts += [f"<h2>Confusion ({split})</h2>", confusion(np.array(matrix), task["labels"])]
    classes = run.result.get(f"{split}_per_class")
    if classes:
        parts += [f"<h2>Each class ({split})</h2>", table(
            ("", *next(iter(classes.values()))), [(name, *map(shown, row.values())) for name, row in classes.items()])]
    if not (run.folder / "predictions.jsonl").exists():
        return parts
    predictions = [row for _, row in tables.read_jsonl(run.folder / "predictions.jsonl")]
    rows = original_rows(run, predictions, split)
    if task["kind"] == "regress" and plots.can_draw():
        ax = plots.axes(f"Truth and prediction ({split})", "truth", "prediction")
        ax.plot([row["label"] for row in predictions], [row["prediction"] for row in predictions], ".", alpha=0.5)
        parts.append(plots.svg(ax.figure))
    found = worst(task, predictions, rows)
    if found:
        why = "" if rows else " (their texts are not there any more, or have changed: rows by number)"
        parts += [f"<h2>Furthest from the truth ({split}){why}</h2>", table(*found)]
    return parts


def confusion(matrix, labels, most=20):
    """Rows are true classes; the colour is the part of its row. With many classes the commonest mistakes."""
    if len(labels) > most:
        return f"<pre>{escape(metrics.confusion_table(matrix, labels, most))}</pre>"
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    share -= 2 * share * (1 - np.eye(len(labels)))  # mistakes in the other colour
    return table(("truth \\ predicted", *labels), [
        (label, *(cell(f"{n:,}", value) for n, value in zip(counts, values)))
        for label, counts, values in zip(labels, matrix.tolist(), share.tolist())])


def original_rows(run, predictions, split):
    """The rows that were predicted, read again from the data; [] if they are gone, or are others by now."""
    try:
        rows = rows_of(run.config).get(split, [])
    except UserError:
        return []
    same = len(rows) == len(predictions) and all(
        row.get(name) == guess.get(name) for row, guess in zip(rows, predictions) for name in examples.TARGETS)
    return rows if same else []


def rows_of(cfg):
    """The rows of a fine-tuning run's data, by split. Raises UserError if they are gone."""
    with redirect_stdout(None):
        if not cfg["train_file"]:
            return examples.load_task(prepare.find_data(cfg["data"]))[1]
        return examples.from_table(*(cfg[name] for name in (
            "train_file", "kind", "text_column", "pair_column", "label_column", "val_file", "test_file",
            "val_fraction")), separator=cfg["separator"])[1]


def worst(task, predictions, rows, most=20):
    """Head and rows of a table: the most confident mistakes first. None if there is none."""
    kind = task["kind"]
    scored = [(wrongness(kind, task, guess), i) for i, guess in enumerate(predictions)]
    chosen = [i for far, i in sorted(scored, key=lambda item: -item[0])[:most] if far > 0]
    if not chosen:
        return None
    table_rows = []
    for i in chosen:
        guess, row = predictions[i], rows[i] if rows else {}
        text = " | ".join(str(row[name])[:500] for name in ("text", "pair", "prompt", "question") if name in row)
        if kind == "tag":
            text = " ".join(word if tag == said else f"{word}[{tag} → {said}]" for word, tag, said in
                            zip(row.get("words", ["…"] * len(guess["tags"])), guess["tags"], guess["prediction"]))
            table_rows.append((f"{guess['row']:,}", text))
        elif kind == "generate":
            table_rows.append((f"{guess['row']:,}", text, guess["response"][:500],
                               f"{guess['nats'] / guess['tokens']:.3f}"))
        else:
            truth = guess.get("label", guess.get("labels"))
            if kind == "answer":
                truth = " / ".join(dict.fromkeys(answer["text"] for answer in guess["answers"])) or "no answer"
            sure = guess.get("probability", guess.get("probabilities"))
            if isinstance(sure, dict):
                sure = max(sure.values())
            table_rows.append((f"{guess['row']:,}", text, *(", ".join(x) if isinstance(x, list) else shown(x) for x in (
                truth, guess["prediction"] or "none")), *([f"{sure:.3f}"] if sure is not None else [])))
    last = {"tag": ("words[truth → said]",), "generate": ("prompt", "response", "nats a token"),
            "regress": ("text", "truth", "said")}.get(kind, ("text", "truth", "said", "how sure"))
    return ("row", *last), table_rows


def wrongness(kind, task, guess):
    """How far a prediction is from the truth; 0 where it is right."""
    if kind == "generate":
        return guess["nats"] / guess["tokens"]
    if kind == "regress":
        return abs(guess["prediction"] - guess["label"])
    if kind == "tag":
        return sum(p for tag, said, p in zip(guess["tags"], guess["prediction"], guess["probabilities"]) if tag != said)
    if kind == "answer":
        best = max([metrics.answer_f1(guess["prediction"], answer["text"]) for answer in guess["answers"]]
                   or [float(not guess["prediction"])])
        return (1 - best) * (1 + guess["probability"])
    if task.get("multi_label"):
        wrong = set(guess["labels"]) ^ set(guess["prediction"])
        return sum(abs((label in guess["labels"]) - guess["probabilities"][label]) for label in wrong)
    return (guess["label"] != guess["prediction"]) * (1 - guess["probabilities"][guess["label"]])


# ---- what it was asked for, and by which command -------------------------------------------------------------------


def starts(run):
    if not run.starts:
        return "<p>The run has no environment.json: it was made before nanoft wrote one.</p>"
    parts = [f"<pre>{escape(start['command'])}</pre>" + table(("", ""), [
        (name, str(value)) for name, value in start.items() if name != "command" and value != ""])
        for start in run.starts]
    return "".join(parts)


# ---- several runs --------------------------------------------------------------------------------------------------


def compare(runs):
    """The pieces of HTML of a page on several runs; only what can be compared is drawn together."""
    parts = []
    same_data = len({tuple(run.config.get(key, "") for key in ("data", "train_file", "val_file")) for run in runs}) == 1
    same_task = len({run.config.get("objective") or run.result.get("metric") for run in runs}) == 1
    texts = {(run.folder / "tokenizer.json").read_bytes() for run in runs if (run.folder / "tokenizer.json").exists()}
    figures = []
    if not same_data or not same_task:
        parts.append("<p>These runs had different data or different tasks, so their losses and scores cannot be "
                     "compared and are not drawn together.</p>")
    else:
        figures = ["loss", "val_loss"] if len(texts) == 1 else []
        if not figures:
            parts.append("<p>These runs have different tokenizers, so their losses a token cannot be compared; "
                         "bits a byte can.</p>")
        figures += [f"val_{name}" for name in ("bits_per_byte", *SCORES)]
    drawn = [drawing for name in [*figures, "tokens_per_s", "rows_per_s"] if (drawing := side_by_side(runs, name))]
    if drawn and plots.can_draw():
        parts += ["<h2>Curves</h2>", *('<div class="row">' + "".join(map(plots.svg, draw())) + "</div>"
                                       for draw in drawn)]
    names = dict.fromkeys(name for run in runs for name in run.config)
    differing = [(name, *(str(run.config.get(name, "")) for run in runs)) for name in names if name != "out_dir"
                 and len({str(run.config.get(name)) for run in runs}) > 1]
    parts += ["<h2>Options that differ</h2>", table(("", *(run.name for run in runs)), differing)
              if differing else "<p>None but the folder.</p>"]
    names = dict.fromkeys(name for run in runs for name, value in run.result.items()
                          if not isinstance(value, (dict, list)))
    final = [(name.replace("_", " "), *(shown(run.result.get(name)) for run in runs)) for name in names]
    return [*parts, "<h2>Final figures</h2>", table(("", *(run.name for run in runs)), final)]


def main():
    folders = [word for word in sys.argv[1:] if not word.startswith("-")]
    cfg = config.load(Options, [word for word in sys.argv[1:] if word.startswith("-")])
    if not folders or not cfg.compare and len(folders) > 1:
        raise UserError("give one run folder, as python -m nanoft report out/imdb; or several after --compare")
    runs = [load(folder) for folder in folders]
    out = Path(cfg.out or (runs[0].folder.parent / "compare.html" if cfg.compare else runs[0].folder / "report.html"))
    if cfg.compare:
        write(out, " and ".join(run.name for run in runs), *compare(runs))
    else:
        write(out, str(runs[0].folder), *report(runs[0]))
    print(f"{out}: {out.stat().st_size / 1e3:,.0f} kB; open it in a browser")


if __name__ == "__main__":
    config.run(main)
