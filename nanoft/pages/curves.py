"""What a run folder tells of a run, and its curves: over steps, tokens, epochs and the clock."""

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoft import UserError
from nanoft.files import read_json
from nanoft.pages import plots

AXES = {"step": "steps", "tokens": "tokens", "epoch": "epochs", "minutes": "minutes since the start"}
SCORES = ("accuracy", "f1", "macro_f1", "mcc", "exact", "pearson", "spearman", "mlm_accuracy", "nsp_accuracy")
OTHERS = {"val_bits_per_byte": "bits a byte", "lr": "learning rate", "grad_norm": "norm of the gradient",
          "tokens_per_s": "tokens a second", "rows_per_s": "rows a second", "memory_gb": "memory (GB)"}


@dataclass
class Run:
    """What a run folder holds. rows: of metrics.jsonl, each with its `minutes` and, where they are known, `tokens`."""
    folder: Path
    config: dict
    rows: list
    result: dict   # empty while the run goes on
    starts: list   # how it was started, each time
    texts: dict    # {step: sample}

    @property
    def name(self):
        return self.folder.name

    def curve(self, name, axis):
        """The places and values of a figure: two arrays."""
        points = [(row.get(axis), row.get(name)) for row in self.rows]
        return np.array([point for point in points if None not in point], dtype=float).reshape(-1, 2).T


def load(folder):
    """The Run in a folder, finished or not. Raises UserError."""
    folder = Path(folder)
    if not (folder / "metrics.jsonl").exists():
        raise UserError(f"{folder}: no metrics.jsonl there; give the folder of a run, such as out/wikitext")
    rows, offset, before = [], 0.0, 0.0
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the run is writing it
            continue
        seconds = rows[-1].get("seconds")
        if seconds is not None:
            offset += before if seconds < before else 0.0  # resumed: the seconds of another process
            rows[-1]["minutes"], before = (offset + seconds) / 60, seconds
    known = [row["tokens"] / row["step"] for row in rows if row.get("tokens")]
    for row in rows if known else []:
        row["tokens"] = row["step"] * known[-1]
    optional = {name: read_json(folder / name) if (folder / name).exists() else default
                for name, default in (("result.json", {}), ("environment.json", []))}
    return Run(folder, read_json(folder / "config.json"), rows, *optional.values(), read_texts(folder))


def read_texts(folder):
    """{step: text} of the samples in a folder's TensorBoard events.

    An event is its length (8 bytes), a checksum of that (4), a protocol-buffer message, and a checksum of it (4).
    """
    from tensorboardX.proto.event_pb2 import Event  # here, not above: it takes a second

    texts = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at + 12 <= len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            message = data[at + 12:at + 12 + length]
            at += length + 16
            if len(message) < length or b"sample/text_summary" not in message:  # cut short; or something else
                continue
            event = Event.FromString(message)
            for value in event.summary.value:
                if value.tag in ("sample/text_summary", "final sample/text_summary"):
                    text = value.tensor.string_val[0].decode("utf-8", "replace")
                    texts[event.step] = re.sub("^    ", "", text, flags=re.M)  # RunLog.text indents
    return texts


# ---- drawn ---------------------------------------------------------------------------------------------------------


def loss_name(run):
    unit = {"causal": " (nats a token)", "mlm": " (nats a masked token)"}.get(run.config.get("objective"), "")
    return f"loss{unit}"


def curves(run):
    """Figures: the loss over every axis, then each other figure over the steps."""
    drawn = []
    for axis, label in AXES.items():
        x, y = run.curve("loss", axis)
        if not len(x):
            continue
        ax = plots.axes(f"Loss over {label.partition(' ')[0]}", label, loss_name(run))
        draw_noisy(ax, x, y, plots.COLOURS[0], "training")
        val = run.curve("val_loss", axis)
        if len(val[0]):
            ax.plot(*val, "o-", ms=3.5, color=plots.COLOURS[1], label="validation")
        ax.legend()
        finish(ax, [y, val[1]])
        drawn.append(ax.figure)
    scores = [name for name in SCORES if len(run.curve(f"val_{name}", "step")[0])]
    if scores:
        ax = plots.axes("Scores on validation", "steps", "score (1 is best)")
        for name in scores:
            ax.plot(*run.curve(f"val_{name}", "step"), "o-", ms=3.5, label=name.replace("_", " "))
        ax.legend()
        finish(ax)
        drawn.append(ax.figure)
    for name, label in OTHERS.items():
        x, y = run.curve(name, "step")
        if len(x):
            ax = plots.axes(titled(name, label), "steps", label)
            if name.startswith("val_"):
                ax.plot(x, y, "o-", ms=3.5)
            else:
                draw_noisy(ax, x, y, plots.COLOURS[0])
            finish(ax)
            drawn.append(ax.figure)
    return drawn


def titled(name, label):
    return f"Validation: {label}" if name.startswith("val_") else (
        "Training loss" if name == "loss" else label[0].upper() + label[1:])


def draw_noisy(ax, x, y, colour, label=None, style="-"):
    """A curve as it is, pale, and its mean over some 60 stretches; only these where there are few points."""
    few = len(x) < 120
    if not few:
        thin = slice(None, None, -(-len(x) // 1500))
        ax.plot(x[thin], y[thin], lw=0.8, alpha=0.35, color=colour)
        cuts = np.linspace(0, len(x), 61).astype(int)[1:-1]
        x, y = ([part.mean() for part in np.split(values, cuts)] for values in (x, y))
    ax.plot(x, y, style, lw=1.5, color=colour, label=label)


def finish(ax, losses=()):
    """Short numbers at the ticks. losses: arrays; their first values, if far above the others, are out of sight."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(6))
    plots.plain_ticks(ax.xaxis, ax.yaxis)
    whole = np.concatenate([y for y in losses if len(y)]) if len(losses) else np.zeros(0)
    low, high = (whole.min(), np.percentile(whole, 97)) if len(whole) else (0, 0)
    if len(whole) and whole.max() > high + 0.5 * (high - low):
        ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def side_by_side(runs, name):
    """A function that draws a figure of all runs over every axis, or None if fewer than two runs have it."""
    if sum(len(run.curve(name, "step")[0]) > 0 for run in runs) < 2:
        return None

    def draw():
        for axis, label in AXES.items():
            found = [(run, *run.curve(name, axis)) for run in runs]
            found = [(run, x, y) for run, x, y in found if len(x)]
            if not found:
                continue
            title = OTHERS.get(name, name.removeprefix("val_").replace("_", " "))
            ax = plots.axes(titled(name, title), label, loss_name(runs[0]) if "loss" in name else title)
            for number, (run, x, y) in enumerate(found):
                colour = plots.COLOURS[number % len(plots.COLOURS)]
                if name.startswith("val_"):
                    ax.plot(x, y, "o-", ms=3.5, color=colour, label=run.name)
                else:
                    draw_noisy(ax, x, y, colour, run.name)
            ax.legend()
            finish(ax, [y for _, _, y in found] if "loss" in name else ())
            yield ax.figure

    return draw
