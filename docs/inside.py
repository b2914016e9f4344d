"""docs/inside.md and its figures, made from two runs: what each view of data, model, training and answers shows.

    python docs/inside.py --gpt=out/wikitext --classifier=out/imdb

The words are those of inside.template.md and hold for any run; its fields are filled with what is computed here.
"""
# ruff: noqa: E402

import math
import sys
import unicodedata
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from nanoft import UserError, checkpoint, config, distributed, files
from nanoft.bins import Tokens
from nanoft.inspect import explain, mistakes, summary, targets
from nanoft.model import make_model
from nanoft.pages import data_report, explain_page, html, plots, run_report, text_statistics
from nanoft.published.source import open_checkpoint
from nanoft.runlog import markdown, plain
from nanoft.tasks import examples, features, metrics, predict
from nanoft.tasks.heads import TaskModel
from nanoft.text import prepare, vocabulary

TOKENS = 24  # of the passage that the GPT reads
STEPS = 50   # of integrated gradients


@dataclass
class Options:
    gpt: str = "out/wikitext"      # the run of a GPT
    classifier: str = "out/imdb"   # the run of a fine-tuned classifier
    rows: int = 300                # validation rows that it predicts
    out: str = "docs"              # the folder of inside.md and inside/*.png


class Walk(data_report.Page):
    """What fills the template, `fields`: {name: text, number or image}. data_report takes it for its own page."""

    def __init__(self, **fields):
        super().__init__()
        self.fields, self.lines, self.texts, self.caption = fields, [], [], ""

    def heading(self, text, *lines):
        self.caption = text
        self.lines += map(plain, lines)

    def words(self, texts, values, notes=()):
        self.texts.append((self.caption, texts, values))
        self.caption = ""

    @contextmanager
    def plot(self, name, *labels):
        with super().plot(name, *labels) as ax:
            yield ax
        self.figure(name, ax.figure)

    def figure(self, name, figure):
        self.figures[name], width, alt = figure, 83 * figure.get_figwidth(), name.replace("_", " ")
        self.fields[name] = f'<img src="inside/{name}.png" width="{width:.0f}" alt="{alt}">'


def main():
    cfg = config.load(Options)
    if not plots.can_draw():
        raise UserError("this walk needs its figures; install matplotlib")
    gpt, classifier = run_report.load(cfg.gpt), run_report.load(cfg.classifier)
    state, tuned = (open_checkpoint(path)[0] for path in (cfg.gpt, cfg.classifier))
    task = tuned.get("task", {})
    if "task" in state or not state["model_config"]["causal"]:
        raise UserError(f"{cfg.gpt} is no GPT; give a run of train.py with objective=causal")
    if task.get("kind") not in ("classify", "pair") or task.get("multi_label") or len(task["labels"]) > 20:
        raise UserError(f"{cfg.classifier} is no classifier of at most 20 classes; give such a run of finetune.py")
    data, folder = prepare.find_data(gpt.config["data"]), Path(cfg.out)
    tokens = {split: Tokens.open(data, split) for split in ("train", "val")}
    walk = Walk(gpt=cfg.gpt, classifier=cfg.classifier, data=f"data/{data.name}", ig_steps=STEPS,
                labels=" from ".join(map(plain, task["labels"])))
    show_data(walk, tokens, vocabulary.load(gpt.folder / "tokenizer.json"))
    show_model(walk, *summary.from_run(gpt.folder)[:2])
    show_training(walk, gpt, classifier)
    show_gpt(walk, state, gpt.folder, tokens["val"])
    show_classifier(walk, tuned, classifier, cfg.rows)
    (folder / "inside").mkdir(parents=True, exist_ok=True)
    for name, figure in walk.figures.items():
        plots.save(figure, folder / "inside" / f"{name}.png")
    text = (HERE / "inside.template.md").read_text(encoding="utf-8").format_map(walk.fields)
    files.write_whole(folder / "inside.md", lambda file: file.write(text.encode("utf-8")))
    print(f"{folder / 'inside.md'} and {len(walk.figures)} figures")


def show_data(walk, tokens, tokenizer):
    documents = {split: text_statistics.from_tokens(file, tokenizer.special["<|endoftext|>"], data_report.MAX_TOKENS)
                 for split, file in tokens.items()}
    counts = text_statistics.frequencies(documents["train"], tokenizer.vocab_size)
    data_report.lengths(walk, documents, counts, tokenizer, "document")
    data_report.frequencies(walk, counts, tokenizer)
    walk.fields["about_data"] = "\n".join(f"- {line}" for line in walk.lines)
    data_report.show_windows(walk, documents["train"], tokenizer, 64)
    walk.figure("windows", draw_words(walk.texts))


def show_model(walk, shape, cfg):
    dtype, _ = distributed.number_format(cfg.dtype, torch.device("cpu"))
    rows, totals = summary.summarize(shape, cfg, dtype=dtype)
    blocks = [row for row in rows if row.name.startswith("block ")]
    walk.fields |= {"summary": summary.as_text(rows, totals, dtype), "n_layer": shape.n_layer,
                    "n_embd": shape.n_embd, "vocab_size": shape.vocab_size, "log_vocab": math.log(shape.vocab_size),
                    "block_parameters": sum(row.parameters for row in blocks) / totals["parameters"],
                    "block_work": sum(row.flops for row in blocks) / totals["flops"]}


def show_training(walk, *runs):
    gpt, tuned = ({figure.axes[0].get_title(): figure for figure in run_report.curves(run)} for run in runs)
    for name, figure in (("loss", gpt["Loss over steps"]), ("learning_rate", gpt["Learning rate"]),
                         ("gradient", gpt["Norm of the gradient"]), ("finetuning_loss", tuned["Loss over steps"]),
                         ("finetuning_scores", tuned["Scores on validation"])):
        walk.figure(name, figure)
    (steps, losses), (_, rates), (_, norms), (val_steps, val) = (
        runs[0].curve(name, "step") for name in ("loss", "lr", "grad_norm", "val_loss"))
    at_peak, clip = steps[rates > 0.99 * rates.max()], runs[0].config["grad_clip"]
    tuned_steps, tuned_val = runs[1].curve("val_loss", "step")
    walk.fields |= {
        "first_loss": losses[0], "last_loss": losses[-math.ceil(len(losses) / 10):].mean(), "first_step": val_steps[0],
        "first_val": val[0], "last_val": val[-1], "last_step": val_steps[-1], "choices": math.exp(val[-1]),
        "peak": rates.max(), "peak_from": at_peak[0], "peak_to": at_peak[-1], "last_rate": rates[-1],
        "median_norm": np.median(norms), "largest_norm": norms.max(), "clipped": (norms > (clip or np.inf)).mean(),
        "grad_clip": clip, "best_step": tuned_steps[tuned_val.argmin()], "best_val": tuned_val.min(),
        "end_step": tuned_steps[-1], "end_val": tuned_val[-1]}


def show_gpt(walk, state, folder, tokens):
    tokenizer = vocabulary.load(folder / "tokenizer.json")
    model = checkpoint.load_model(state, folder, make_model).requires_grad_(False)
    ids = torch.from_numpy(tokens.read(0, TOKENS + 1).astype(np.int64))
    subject = targets.subject_from_continuation(model, tokenizer, "", ids[:-1], ids[-1:])
    units = targets.text_units(subject.ids, tokenizer)
    findings = explain_page.explain_subject(model, tokenizer, subject, STEPS)
    view = explain_page.View(units, 0, len(units), list(range(model.cfg.n_layer)), list(range(model.cfg.n_head)))
    entropy = -(findings.maps * np.log(findings.maps.clip(1e-12))).sum(-1).mean(-1)      # (L, H)
    back = np.stack([findings.maps.diagonal(-d, 2, 3).mean(-1) for d in range(1, 9)])    # (8, L, H)
    d, layer, head = np.unravel_index(back.argmax(), back.shape)
    read, names, probabilities = explain_page.lens(model, tokenizer, subject, view)
    longest = torch.tensor(sorted(set(ids.tolist()), key=lambda i: (-len(tokenizer.token_bytes[i]), i))[:8])
    near, cosines = explain.neighbours(model.trunk, longest)

    def head_name(index):
        return "layer {}, head {}".format(*(i + 1 for i in np.unravel_index(index, entropy.shape)))

    def name(token):
        return targets.token_name(token, tokenizer)

    for name_of, some in (("attention", view), ("head", view._replace(layers=[layer], heads=[head]))):
        walk.figure(name_of, explain_page.draw_maps(some.grid(findings.maps), some.titles(), some))
    walk.figure("rollout", explain_page.draw_maps(view.crop(findings.rollout)[None, None], [["attention rollout"]],
                                                  view))
    walk.figure("lens", explain_page.lens_picture(read, names, probabilities))
    walk.fields |= {
        "passage": plain(subject.answer), "least": entropy.min(), "most": entropy.max(), "distance": d + 1,
        "sharpest": head_name(entropy.argmin()), "broadest": head_name(entropy.argmax()),
        "alike": np.log(np.arange(1, len(ids) + 1)).mean(), "chosen": head_name(back[d].argmax()),
        "share_back": back.max(), "even_share": np.mean([1 / (i + 1) for i in range(d + 1, len(ids))]),
        "flows": strongest(targets.unit_sums(findings.rollout[-1], units), units, ".0%"),
        "agree": ", ".join(f"{np.mean([row[i] == row[-1] for row in names]):.0%}" for i in range(len(names[0]))),
        "sure_first": probabilities[:, 0].mean(), "sure_last": probabilities[:, -1].mean(),
        "least_cosine": cosines.min(), "most_cosine": cosines.max(), "random_cosine": model.cfg.n_embd**-0.5,
        "neighbours": markdown([["token", "nearest", *[""] * (near.size(1) - 1)], *(
            [name(token), *(f"{name(other)} {x:.2f}" for other, x in zip(*others))]
            for token, *others in zip(longest.tolist(), near.tolist(), cosines.tolist()))])}


def show_classifier(walk, state, run, n_rows):
    task, tokenizer = state["task"], vocabulary.load(run.folder / "tokenizer.json")
    rows = validation_rows(run.config)
    rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, n_rows).astype(int))]
    model = checkpoint.load_model(state, run.folder, partial(TaskModel, task=task)).requires_grad_(False)
    encoded = features.encode(rows, task, tokenizer)
    out = predict.outputs(model, encoded, task, tokenizer, distributed.start("cpu", "float32"))
    guesses = predict.predictions(task, rows, encoded, out)
    for name in ("right", "wrong"):
        numbers = [i for i, (row, guess) in enumerate(zip(rows, guesses))
                   if (row["label"] == guess["prediction"]) == (name == "right")]
        if not numbers:
            raise UserError(f"{run.folder}: none of {len(rows)} rows is {name}; give another --rows")
        i = min(numbers, key=lambda i: encoded.n_tokens[i])
        subject = targets.subject_from_row(model, task, tokenizer, rows[i], guesses[i], "", i, encoded, out)
        units = targets.text_units(subject.ids, tokenizer)
        findings = explain_page.explain_subject(model, tokenizer, subject, STEPS)
        (target,), (result,), prediction = subject.targets, findings.integrated, guesses[i]["prediction"]
        views = [(title, targets.unit_sums(values, units)) for title, values in findings.ways[0].items()]
        (_, added), (_, linear), *_ = views
        walk.figure(f"{name}_words", draw_words([
            (f"{title} (full colour: {np.abs(x).max():.3g})", [text for text, _ in units],
             x / max(np.abs(x).max(), 1e-12)) for title, x in views]))
        walk.fields[name] = {
            "truth": plain(rows[i]["label"]), "prediction": plain(prediction),
            "sure": guesses[i]["probabilities"][prediction], "note": f" {plain(subject.note)}".rstrip(),
            "name": plain(target.name), "score": result.score, "base": result.baseline, "delta": result.delta,
            "part": abs(result.delta / (result.score - result.baseline)), "strongest": strongest(added, units),
            "alike": metrics.spearman(added, linear)}
    matrix = predict.scores(task, rows, guesses, encoded, out)[1]
    pixels, share = mistakes.confusion_picture(matrix, task["labels"], dot=6), np.trace(matrix) / len(rows)
    figure = plots.new_figure(pixels.shape[1] / 160, pixels.shape[0] / 160)
    figure.figimage(pixels)
    walk.figure("confusion", figure)
    worst = mistakes.worst_rows(task, rows, guesses)
    walk.fields |= {"rows": len(rows), "accuracy": share, "error": 196 * math.sqrt(share * (1 - share) / len(rows)),
                    "mistakes_made": len(worst), "mistakes_shown": len(worst[:5]),
                    "mistakes": markdown([("1 - p(truth)", "truth", "prediction", "text (begins)"), *(
                        (f"{mistake.error:.1%}", mistake.truth, mistake.prediction, mistake.text[:240])
                        for mistake in worst[:5])])}


def validation_rows(options):
    """The validation rows of a fine-tuning run. Raises UserError if its data are gone."""
    with redirect_stdout(None):
        if not options["train_file"]:
            return examples.load_task(prepare.find_data(options["data"]))[1]["val"]
        return examples.from_table(*(options[name] for name in (
            "train_file", "kind", "text_column", "pair_column", "label_column", "val_file", "test_file",
            "val_fraction", "separator")))[1]["val"]


def strongest(values, units, form="+.2f"):
    """The units with the five largest values, as text."""
    return ", ".join(f"“{plain(targets.label(units[i][0]))}” ({values[i]:{form}})"
                     for i in np.abs(values).argsort()[:-6:-1])


def draw_words(texts, width=92):
    """Coloured words as a figure, as html.words has them in a page. texts: (heading, texts, values of -1 to 1) each.

    Characters are of equal width, `width` of them a line, so that none need be measured; a Chinese one takes two.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    placed, line = [], 0  # (line, column, cells, text, value)
    for heading, words, values in texts:
        if heading:
            placed.append((line, 0, 0, heading, 0.0))
            line += 1
        column = 0
        for word, value in zip(words, values):
            word = word.replace("↵\n", "↵").replace("\n", "↵")
            cells = sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in word)
            if column + cells > width:
                line, column = line + 1, 0
            placed.append((line, column, cells, word, value))
            column += cells
        line += 1.6
    figure = Figure(figsize=(0.08 * (width + 4), 0.2 * (line + 0.3)))  # 0.08 inches: 9.5 points
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-2, width + 2), ylim=(line - 0.5, -0.8))
    ax.axis("off")
    family = ["DejaVu Sans Mono", *matplotlib.rcParams["font.family"]]
    for line, column, cells, text, value in placed:
        colour = np.array(html.BLUE if value >= 0 else html.ORANGE) / 255
        ax.add_patch(Rectangle((column, line - 0.45), cells, 0.9, color=colour, alpha=0.7 * min(abs(value), 1), lw=0))
        ax.text(column, line + 0.2, text, fontsize=9.5, family=family if cells else None)
    return figure


if __name__ == "__main__":
    config.run(main)
