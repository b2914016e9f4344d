"""docs/inside.md and its pictures, made of two runs: what each view of data, model, training and answers shows.

    python docs/inside.py --gpt=out/wikitext --classifier=out/imdb

The words stand in inside.template.md and hold for any run; its gaps are filled with what is computed here.
"""
# ruff: noqa: E402, I001

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from nanoft import UserError, checkpoint, config
from nanoft.inspect import explain
from nanoft.pages import coloured, corpus, curves, explain_page as views
from nanoft.tasks import features
from nanoft import distributed, files
from nanoft.inspect import mistakes, targets as texts
from nanoft.pages import data_report, plots
from nanoft.tasks import metrics, predict
from nanoft.text import prepare
from nanoft.inspect import summary
from nanoft.pages import run_report
from nanoft.text import vocabulary
from nanoft.bins import Tokens
from nanoft.model import make_model, ModelConfig
from nanoft.runlog import markdown, plain
from nanoft.published.source import open_checkpoint

TOKENS = 24  # of the passage that the GPT reads
STEPS = 50   # of integrated gradients


@dataclass
class Options:
    gpt: str = "out/wikitext"      # the run of a GPT
    classifier: str = "out/imdb"   # the run of a fine-tuned classifier
    rows: int = 300                # validation rows that it answers
    out: str = "docs"              # the folder of inside.md and inside/*.png


class Walk:
    """What fills the template, `gaps`: {name: text, number or picture}. nanoft.figures takes it for its own Page."""

    def __init__(self, **gaps):
        self.gaps, self.drawn, self.lines, self.texts, self.caption = gaps, {}, [], [], ""

    def add(self, *html):  # it has no place here
        pass

    def heading(self, text, *lines):
        self.caption = text
        self.lines += map(plain, lines)

    def words(self, pieces, values, notes=()):
        self.texts.append((self.caption, pieces, values))
        self.caption = ""

    def draw(self, name, title, x, y, caption=""):
        ax = plots.axes(title, x, y)
        self.picture(name, ax.figure)
        return ax

    def picture(self, name, figure):
        self.drawn[name], width, alt = figure, 83 * figure.get_figwidth(), name.replace("_", " ")
        self.gaps[name] = f'<img src="inside/{name}.png" width="{width:.0f}" alt="{alt}">'


def main():
    cfg = config.load(Options)
    if not plots.can_draw():
        raise UserError("this walk is made of pictures; install matplotlib")
    gpt, classifier = curves.load(cfg.gpt), curves.load(cfg.classifier)
    state, tuned = (open_checkpoint(place)[0] for place in (cfg.gpt, cfg.classifier))
    task = tuned.get("task", {})
    if "task" in state or not state["model_config"]["causal"]:
        raise UserError(f"{cfg.gpt} is no GPT; give a run of train.py with objective=causal")
    if task.get("kind") not in ("classify", "pair") or task.get("multi_label") or len(task["labels"]) > 20:
        raise UserError(f"{cfg.classifier} is no classifier of at most 20 classes; give such a run of finetune.py")
    data, folder = prepare.find_data(gpt.config["data"]), Path(cfg.out)
    tokens = {split: Tokens.open(data, split) for split in ("train", "val")}
    walk = Walk(gpt=cfg.gpt, classifier=cfg.classifier, data=f"data/{data.name}", ig_steps=STEPS,
                labels=" from ".join(map(plain, task["labels"])))
    the_data(walk, tokens, vocabulary.load(gpt.folder / "tokenizer.json"), *summary.of_run(gpt.folder)[:2])
    the_training(walk, gpt, classifier)
    the_gpt(walk, state, gpt.folder, tokens["val"])
    the_classifier(walk, tuned, classifier, cfg.rows)
    (folder / "inside").mkdir(parents=True, exist_ok=True)
    for name, figure in walk.drawn.items():
        plots.save(figure, folder / "inside" / f"{name}.png")
    text = (HERE / "inside.template.md").read_text(encoding="utf-8").format_map(walk.gaps)
    files.write_whole(folder / "inside.md", lambda file: file.write(text.encode("utf-8")))
    print(f"{folder / 'inside.md'} and {len(walk.drawn)} pictures")


def the_data(walk, tokens, tokenizer, shape, cfg):
    """And the model, which is made for it."""
    parts = {split: corpus.of_tokens(some, tokenizer.special["<|endoftext|>"], data_report.MOST)
             for split, some in tokens.items()}
    data_report.lengths(walk, parts, "document")
    data_report.frequencies(walk, parts["train"], tokenizer)
    walk.gaps["about_data"] = "\n".join(f"- {line}" for line in walk.lines)
    coloured.windows_shown(walk, parts["train"], tokenizer, 64)
    walk.picture("windows", plots.words(walk.texts))
    dtype, _ = distributed.number_format(cfg.dtype, torch.device("cpu"))
    rows, totals = summary.summarize(shape, cfg, dtype=dtype)
    blocks = [row for row in rows if row[0].startswith("block ")]
    walk.gaps |= {"summary": "\n".join(summary.lines(rows, totals, dtype)), "n_layer": shape.n_layer,
                  "n_embd": shape.n_embd, "vocab_size": shape.vocab_size, "log_vocab": math.log(shape.vocab_size),
                  "block_parameters": sum(row[3] for row in blocks) / totals["parameters"],
                  "block_work": sum(row[4] for row in blocks) / totals["flops"]}


def the_training(walk, *runs):
    gpt, tuned = ({figure.axes[0].get_title(): figure for figure in curves.curves(run)} for run in runs)
    for name, figure in (("loss", gpt["Loss over steps"]), ("learning_rate", gpt["Learning rate"]),
                         ("gradient", gpt["Norm of the gradient"]), ("finetuning_loss", tuned["Loss over steps"]),
                         ("finetuning_scores", tuned["Scores on validation"])):
        walk.picture(name, figure)
    (steps, losses), (_, rates), (_, norms), (seen, val) = (
        runs[0].curve(name, "step") for name in ("loss", "lr", "grad_norm", "val_loss"))
    at_peak, clip = steps[rates > 0.99 * rates.max()], runs[0].config["grad_clip"]
    end, tuned_val = runs[1].curve("val_loss", "step")
    walk.gaps |= {
        "first_loss": losses[0], "last_loss": losses[-math.ceil(len(losses) / 10):].mean(), "first_step": seen[0],
        "first_val": val[0], "last_val": val[-1], "last_step": seen[-1], "choices": math.exp(val[-1]),
        "peak": rates.max(), "peak_from": at_peak[0], "peak_to": at_peak[-1], "last_rate": rates[-1],
        "median_norm": np.median(norms), "largest_norm": norms.max(), "clipped": (norms > (clip or np.inf)).mean(),
        "grad_clip": clip, "best_step": end[tuned_val.argmin()], "best_val": tuned_val.min(), "end_step": end[-1],
        "end_val": tuned_val[-1]}


def the_gpt(walk, state, folder, text):
    from matplotlib.figure import Figure

    tokenizer = vocabulary.load(folder / "tokenizer.json")
    model = make_model(ModelConfig.from_saved(state["model_config"], folder)).eval()
    checkpoint.load_weights(model, state["model"], folder)
    model.requires_grad_(False)
    ids = torch.from_numpy(text.read(0, TOKENS + 1).astype(np.int64))
    subject = texts.of_continuation(model, tokenizer, "", ids[:-1], ids[-1:])
    units, found = texts.units_of(subject.ids, tokenizer), views.look(model, tokenizer, subject, STEPS)
    drawn = views.Drawn(units, 0, len(units), list(range(model.cfg.n_layer)), list(range(model.cfg.n_head)))
    entropy = -(found.maps * np.log(found.maps.clip(1e-12))).sum(-1).mean(-1)            # (L, H)
    back = np.stack([found.maps.diagonal(-d, 2, 3).mean(-1) for d in range(1, 9)])       # (8, L, H)
    d, layer, head = np.unravel_index(back.argmax(), back.shape)
    places, names, sure = views.lens(model, tokenizer, subject, drawn)
    asked = torch.tensor(sorted(set(ids.tolist()), key=lambda i: (-len(tokenizer.token_bytes[i]), i))[:8])
    near, cosine = explain.neighbours(model.trunk, asked)

    def called(at):
        return "layer {}, head {}".format(*(i + 1 for i in np.unravel_index(at, entropy.shape)))

    walk.picture("attention", views.attention_grid(Figure, found, drawn))
    walk.picture("head", views.attention_grid(Figure, found, drawn._replace(layers=[layer], heads=[head])))
    walk.picture("rollout", views.labelled_map(Figure, views.cut_map(found.flow, drawn), "attention rollout", drawn))
    walk.picture("lens", views.lens_picture(Figure, places, names, sure, subject, tokenizer))
    walk.gaps |= {
        "passage": plain(subject.said), "least": entropy.min(), "most": entropy.max(), "distance": d + 1,
        "sharpest": called(entropy.argmin()), "broadest": called(entropy.argmax()),
        "alike": np.log(np.arange(1, len(ids) + 1)).mean(), "chosen": called(back[d].argmax()),
        "share_back": back.max(), "even_share": np.mean([1 / (i + 1) for i in range(d + 1, len(ids))]),
        "flows": strongest(texts.sums(found.flow[-1], units), units, ".0%"),
        "agree": ", ".join(f"{np.mean([row[i] == row[-1] for row in names]):.0%}" for i in range(len(names[0]))),
        "sure_first": sure[:, 0].mean(), "sure_last": sure[:, -1].mean(), "least_cosine": cosine.min(),
        "most_cosine": cosine.max(), "random_cosine": model.cfg.n_embd**-0.5,
        "neighbours": markdown([["token", "nearest", *[""] * (near.size(1) - 1)], *(
            [texts.name_of(i, tokenizer), *(f"{texts.name_of(j, tokenizer)} {x:.2f}" for j, x in zip(*some))]
            for i, *some in zip(asked.tolist(), near.tolist(), cosine.tolist()))])}


def the_classifier(walk, state, run, number):
    from matplotlib.figure import Figure

    task, tokenizer = state["task"], vocabulary.load(run.folder / "tokenizer.json")
    rows = run_report.rows_of(run.config)["val"]
    rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, number).astype(int))]
    model = predict.load_model(state, run.folder, "cpu").requires_grad_(False)
    pieces = features.encode(rows, task, tokenizer)
    out = predict.outputs(model, pieces, task, tokenizer, distributed.start("cpu"), torch.float32)
    guesses = predict.predictions(task, rows, pieces, out)
    for name in ("right", "wrong"):
        some = [i for i, (row, guess) in enumerate(zip(rows, guesses))
                if (row["label"] == guess["prediction"]) == (name == "right")]
        if not some:
            raise UserError(f"{run.folder}: none of {len(rows)} rows is {name}; give another --rows")
        i = min(some, key=lambda i: pieces.n_tokens[i])
        subject = texts.of_row(model, task, tokenizer, rows[i], guesses[i], "", i, pieces, out)
        units, found = texts.units_of(subject.ids, tokenizer), views.look(model, tokenizer, subject, STEPS)
        (target,), (result,), said = subject.targets, found.integrated, guesses[i]["prediction"]
        (_, added), (_, linear), *_ = shown = views.views(target, found, units, 0)
        walk.picture(f"{name}_words", plots.words([
            (f"{title} (full colour: {np.abs(x).max():.3g})", [text for text, _ in units],
             x / max(np.abs(x).max(), 1e-12)) for title, x in shown]))
        walk.gaps[name] = {
            "truth": plain(rows[i]["label"]), "said": plain(said), "sure": guesses[i]["probabilities"][said],
            "note": f" {plain(subject.note)}".rstrip(), "name": plain(target.name), "score": result.score,
            "base": result.base, "delta": result.delta, "part": abs(result.delta / (result.score - result.base)),
            "strongest": strongest(added, units), "alike": metrics.spearman(added, linear)}
    matrix = predict.scores(task, rows, guesses, pieces, out)[1]
    pixels, share = mistakes.confusion_picture(matrix, task["labels"], dot=6), np.trace(matrix) / len(rows)
    figure = Figure(figsize=(pixels.shape[1] / 160, pixels.shape[0] / 160))
    figure.figimage(pixels)
    walk.picture("confusion", figure)
    worst = sorted(mistakes.mistakes(task, rows, guesses), key=lambda mistake: -mistake[0])
    walk.gaps |= {"rows": len(rows), "accuracy": share, "error": 196 * math.sqrt(share * (1 - share) / len(rows)),
                  "mistakes_made": len(worst), "mistakes_shown": len(worst[:5]),
                  "mistakes": markdown([("sure", "truth", "said", "text (begins)"), *(
                      (f"{sure:.1%}", truth, said, text[:240]) for sure, text, truth, said in worst[:5])])}


def strongest(values, units, form="+.2f"):
    return ", ".join(f"“{plain(texts.label(units[i][0]))}” ({values[i]:{form}})"
                     for i in np.abs(values).argsort()[:-6:-1])


if __name__ == "__main__":
    config.run(main)
