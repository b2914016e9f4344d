"""A data set in pictures: lengths, frequencies, compression, classes, copies, oddities, and what the model is shown.

    python -m nanoft figures data/wikitext                   # a folder for pretraining or for fine-tuning
    python -m nanoft figures reviews.csv --label_column=stars --tokenizer=out/wikitext

Writes figures.html and a PNG of each picture into `figures` beside the data, and prints the main figures. Without a
tokenizer one is learned from the rows.
"""

import sys
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nanoft import UserError, bpe, config, files
from nanoft.bins import Tokens
from nanoft.pages import corpus, plots
from nanoft.pages.coloured import pairs_shown, pieces_shown, shown, windows_shown
from nanoft.pages.html import escape, table, words, write
from nanoft.tasks import examples
from nanoft.text import prepare, vocabulary

MOST = 20_000_000       # tokens of a split that are looked at
LEARN, MEASURE = 2_000_000, 500_000  # bytes of training and validation text that the vocabulary sizes are tried on
SHOWN = 300              # characters of a row in a table
SIZES = (512, 1024, 2048, 4096, 8192, 16384)


@dataclass
class Options:
    out: str = ""            # the folder to write to; empty: `figures` beside the data
    tokenizer: str = ""      # a tokenizer.json or a folder with one; empty: the data's own, or one learned on the rows
    block_size: int = 64     # tokens of the windows that are shown
    max_length: int = 128    # tokens of a row that a model would see
    kind: Literal["classify", "pair", "regress", "tag", "answer", "generate"] = "classify"  # of a file of rows
    text_column: str = ""    # of a file, as in finetune.py
    pair_column: str = ""    # the second text
    label_column: str = ""   # the label, or the response of generate
    separator: str = ""      # what stands between several labels of a text


def check(cfg):
    return [f"{name}={getattr(cfg, name)} must be at least 16" for name in ("block_size", "max_length")
            if getattr(cfg, name) < 16]


class Page:
    """The parts of a page as they come, each picture also a PNG in its folder."""

    def __init__(self, folder):
        self.folder, self.parts, self.drawn = folder, [], []

    def add(self, *parts):
        self.parts += parts

    def heading(self, text, *lines):
        """A section; its lines, the figures in words, are printed too."""
        print("\n".join(lines), end="\n" * bool(lines))
        self.add(f"<h2>{escape(text)}</h2>", *(f"<p>{escape(line)}</p>" for line in lines))

    def words(self, texts, values, notes=()):
        """Coloured words, as nanoft.page has them."""
        self.add(words(texts, values, notes))

    def draw(self, name, title, x, y, caption=""):
        """The axes of a picture that `finish` puts where the page now ends."""
        ax = plots.axes(title, x, y)
        self.drawn.append((name, ax, caption, len(self.parts)))
        self.parts.append("")
        return ax

    def finish(self, title):
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, ax, caption, place in self.drawn:
            self.parts[place] = plots.svg(ax.figure, caption)
            plots.save(ax.figure, self.folder / f"{name}.png")
        write(self.folder / "figures.html", title, *self.parts)
        print(f"{self.folder}: figures.html" + (f" and {len(self.drawn)} PNG files" if self.drawn else ""))


def main():
    named = [word for word in sys.argv[1:] if not word.startswith("-")]
    cfg = config.load(Options, [word for word in sys.argv[1:] if word.startswith("-")], check)
    if len(named) != 1:
        raise UserError("give one data folder or file, as python -m nanoft figures data/wikitext")
    is_file = Path(named[0]).is_file()
    place = Path(named[0]) if is_file else prepare.find_data(named[0])
    is_task = is_file or (place / "task.json").exists()
    if not is_task and not Tokens.exists(place, "train"):
        raise UserError(f"{place} holds neither task.json nor train.bin; prepare the data set first, by its prepare.py")
    page = Page(Path(cfg.out) if cfg.out else
                place.with_name(f"{place.stem}_figures") if is_file else place / "figures")
    if is_task:
        with redirect_stdout(None):  # what it says of columns and answers, finetune.py says again
            task, rows = examples.from_table(place, cfg.kind, cfg.text_column, cfg.pair_column, cfg.label_column,
                                             separator=cfg.separator) if is_file else examples.load_task(place)
        tokenizer = find_tokenizer(cfg, place.parent if is_file else place, rows["train"])
        parts = {split: corpus.of_rows(some, tokenizer) for split, some in rows.items()}
        what = "row"
        about_rows(page, task, rows, parts)

        def text_of(i):
            return " | ".join(" ".join(x) if isinstance(x, tuple) else x for x in examples.inputs_of(rows["train"][i]))
    else:
        tokenizer, what = find_tokenizer(cfg, place), "document"
        tokens = {split: Tokens.open(place, split) for split in examples.SPLITS if Tokens.exists(place, split)}
        end = tokenizer.special["<|endoftext|>"]
        parts = {split: corpus.of_tokens(some, end, MOST) for split, some in tokens.items()}
        about_tokens(page, tokens)

        def text_of(i):
            return tokenizer.decode(parts["train"].document(i)[:SHOWN].tolist())
    lengths(page, parts, what)
    frequencies(page, parts["train"], tokenizer)
    vocabulary_sizes(page, parts, tokenizer)
    if is_task:
        classes(page, task, rows, parts)
    repeated(page, parts, text_of, what)
    unusual(page, parts["train"], tokenizer.vocab_size, text_of, what)
    if is_task:
        pieces_shown(page, task, rows["train"], tokenizer, cfg.max_length)
    windows_shown(page, parts["train"], tokenizer, cfg.block_size)
    if not is_task:
        pairs_shown(page, tokens["train"], tokenizer, cfg.block_size)
    page.finish(place.name)


def find_tokenizer(cfg, folder, rows=()):
    path = Path(cfg.tokenizer or folder)
    path = path / "tokenizer.json" if path.is_dir() else path
    if path.exists() or cfg.tokenizer or not rows:
        return vocabulary.load(path)
    print(f"{path}: no such file; a tokenizer is learned from the rows (--tokenizer=out/NAME takes that of a run)")
    texts = [" ".join(x) if isinstance(x, tuple) else x for row in rows for x in examples.inputs_of(row)]
    return bpe.train(texts, 4096, progress=False)


# ---- what there is -----------------------------------------------------------------------------------------------


def about_tokens(page, tokens):
    rows = [(split, f"{len(some):,}", f"{some.num_bytes:,}", f"{some.num_documents:,}", f"{some.num_words:,}",
             f"{some.num_bytes / len(some):.3f}") for split, some in tokens.items()]
    head = ("", "tokens", "bytes", "documents", "words (as published)", "bytes a token")
    print(files.aligned([head, *rows]))
    page.add(table(head, rows))
    long = [split for split, some in tokens.items() if len(some) > MOST]
    if long:
        page.add(f"<p>Of {' and '.join(long)}, what follows looks at the first {MOST:,} tokens.</p>")


def about_rows(page, task, rows, parts):
    """The rows of each split: how many, blank, copied, contradicting each other, and known from training."""
    train = {examples.inputs_of(row) for row in rows["train"]}
    table_rows = []
    for split, some in rows.items():
        figures = examples.clean(some)[1]
        leaks = sum(examples.inputs_of(row) in train for row in some) if split != "train" else 0
        table_rows.append((split, *(f"{figures[name]:,}" for name in ("rows", "empty", "duplicates", "conflicts")),
                           f"{leaks:,}", f"{parts[split].lengths.sum():,}"))
    head = ("", "rows", "empty", "duplicates", "texts with several labels", "also in train", "tokens")
    print(files.aligned([head, *table_rows]))
    page.add(f"<p>Kind {escape(task['kind'])}, measured by {escape(task['metric'])}.</p>", table(head, table_rows))


def lengths(page, parts, what):
    page.heading("Lengths", *(f"{split}: {examples.describe_lengths(part.lengths.tolist())}"
                              for split, part in parts.items()))
    if not plots.can_draw():
        return
    page.add('<div class="row">')
    whole = np.concatenate([part.lengths for part in parts.values()])
    cuts = np.unique(np.geomspace(max(whole.min(), 1), whole.max() + 1, 40).round())
    ax = page.draw("lengths", f"Length of a {what}", "tokens", f"part of the {what}s (%)",
                   "Without the special tokens. The axis is logarithmic, and so are the widths of the bars.")
    for split, part in parts.items():
        share = np.histogram(part.lengths, cuts)[0] / len(part.lengths) * 100
        ax.stairs(share, cuts, label=f"{split} ({len(part.lengths):,})", fill=split == "train",
                  alpha=0.5 if split == "train" else 1)
    ax.set_xscale("log")
    ax.legend()
    plots.plain_ticks(ax.xaxis)


def frequencies(page, part, tokenizer):
    """Tokens by frequency and by length."""
    counts = corpus.frequencies(part, tokenizer.vocab_size)
    ordered = np.sort(counts)[::-1]
    plain = ~tokenizer.is_special
    unused = int((counts[plain] == 0).sum())
    top = ordered[:100].sum() / ordered.sum()
    widths = np.array([len(token) for token in tokenizer.token_bytes])[plain]
    used = counts[plain]
    lines = [f"tokens: the 100 commonest are {top:.1%} of the training text, {unused:,} of {len(widths):,} do not "
             f"occur; frequency falls with rank to the power {corpus.zipf_exponent(counts):.2f} (Zipf's law: 1)",
             f"a token has {widths.mean():.1f} bytes on average in the vocabulary, "
             f"{(widths * used).sum() / used.sum():.1f} in the text; the longest is "
             f"{shown(tokenizer, int(np.flatnonzero(plain)[widths.argmax()]))}"]
    if plots.can_draw():
        shares = np.bincount(widths, minlength=2), np.bincount(widths, weights=used)
        ax = page.draw("token_lengths", "Length of a token", "bytes", "part (%)")
        for values, label in zip(shares, ("of the vocabulary", "of the text")):
            ax.stairs(values[1:25] / values.sum() * 100, np.arange(len(values[1:25]) + 1) + 0.5, label=label, lw=1.6)
        ax.legend()
        page.add("</div>")
    page.heading("Frequencies", *lines)
    if plots.can_draw():
        page.add('<div class="row">')
        ax = page.draw("zipf", "How often tokens occur", "rank of the token", "times in the training text",
                       "Both axes are logarithmic: Zipf's law is a straight line, here drawn through rank 10.")
        ranks = np.unique(np.geomspace(1, max((ordered > 0).sum(), 1), 300).astype(int))
        ax.loglog(ranks, ordered[ranks - 1], label="tokens")
        middle = min(10, len(ranks))
        ax.loglog(ranks, ordered[middle - 1] * middle / ranks, "--", label="Zipf's line: 1 / rank")
        ax.legend()
        plots.plain_ticks(ax.xaxis, ax.yaxis)
    by_count = np.argsort(-counts, kind="stable")
    common = [(shown(tokenizer, i), f"{counts[i]:,}") for i in by_count[:15]]
    rare = [(shown(tokenizer, i), f"{counts[i]:,}") for i in by_count[:(counts > 0).sum()][:-16:-1]]
    page.add(f"<div><h3>Commonest, and rarest of those that occur</h3>"
             f'<div class="row" style="grid-template-columns:1fr 1fr">{table(("token", "times"), common)}'
             f"{table(('token', 'times'), rare)}</div></div>", "</div>" * plots.can_draw())


def vocabulary_sizes(page, parts, tokenizer):
    """How well vocabularies of several sizes would compress the text."""
    train = corpus.texts(parts["train"], tokenizer, LEARN)
    val = corpus.texts(parts.get("val", parts["train"]), tokenizer, MEASURE)
    found = corpus.compression(train, val, tokenizer.content.get("pattern", "gpt4"), SIZES)
    own = sum(len(text.encode()) for text in val) / sum(len(tokenizer.encode_to_numpy(text)) for text in val)
    read = sum(len(text.encode()) for text in train) / 1e6
    seen = sum(len(text.encode()) for text in val) / 1e6
    page.heading("Compression", f"bytes a token by vocabulary size, learned on the first {read:.1f} MB of training "
                 f"text, measured on the first {seen:.1f} MB of validation: " +
                 ", ".join(f"{size:,}: {rate:.2f}" for size, rate in found.items()) +
                 f"; the tokenizer of the data ({tokenizer.vocab_size:,}): {own:.2f}")
    if found and plots.can_draw():
        ax = page.draw("compression", "Compression by vocabulary size", "tokens in the vocabulary",
                       "bytes of text a token")
        ax.plot(found.keys(), found.values(), "o-", label=f"learned on {read:.1f} MB")
        ax.plot([tokenizer.vocab_size], [own], "D", label="the tokenizer of the data")
        ax.set_xscale("log", base=2)
        ax.set_xticks(list(found))
        ax.legend()
        plots.plain_ticks(ax.xaxis)


def classes(page, task, rows, parts):
    """How many rows each label has, how long they are; numbers of a regression; answers."""
    if task["kind"] == "generate":
        return
    page.heading("Labels", *(f"{split}: {examples.describe_labels(task, some)}" for split, some in rows.items()))
    if task["kind"] == "regress" and plots.can_draw():
        ax = page.draw("labels", "Labels", "label", "part of the rows (%)")
        values = {split: np.array([row["label"] for row in some]) for split, some in rows.items()}
        cuts = np.histogram_bin_edges(values["train"], 30)
        for split, some in values.items():
            ax.stairs(np.histogram(some, cuts)[0] / len(some) * 100, cuts, label=split)
        ax.legend()
    if task["kind"] not in examples.LABELLED:
        return
    counts = {split: Counter(label for row in some for label in examples.labels_of(row))
              for split, some in rows.items()}
    labels = [label for label, _ in counts["train"].most_common()]
    median = {}
    if task["kind"] != "tag":
        by_label = {}
        for row, length in zip(rows["train"], parts["train"].lengths.tolist()):
            for label in examples.labels_of(row):
                by_label.setdefault(label, []).append(length)
        median = {label: f"{np.median(some):,.0f}" for label, some in by_label.items()}
    page.add(table(("label", *counts, *(["median tokens"] if median else [])), [
        (label, *(f"{counts[split][label]:,}" for split in counts), *([median[label]] if median else []))
        for label in labels]))
    if plots.can_draw():
        some = [label for label in labels if label != "O"][:24]
        what = "words that have one (O left out)" if "O" in labels else "rows"
        ax = page.draw("labels", "How the labels are spread", f"part of the {what}, %", "")
        high = 0.8 / len(counts)
        for i, (split, count) in enumerate(counts.items()):
            share = [100 * count[label] / max(count.total() - count["O"], 1) for label in some]
            ax.barh(np.arange(len(some)) + i * high, share, high, label=split)
        ax.set_yticks(np.arange(len(some)) + 0.4 - high / 2, [label[:24] for label in some])
        ax.invert_yaxis()
        ax.figure.set_figheight(max(2.2, 0.9 + 0.28 * len(some)))
        ax.figure.legend(loc="outside right upper")


# ---- copies and oddities -------------------------------------------------------------------------------------------


def repeated(page, parts, text_of, what):
    train, lines, first = parts["train"], [], corpus.copies(parts["train"])
    again = np.flatnonzero(first != np.arange(len(first)))
    lines.append(f"train: {len(again):,} of {len(first):,} {what}s are copies of one before" +
                 ", whatever their label" * (what == "row"))
    for split in (split for split in parts if split != "train"):
        lines.append(f"{split}: {corpus.shared(parts[split], train):.2%} of its runs of {corpus.WINDOW} tokens stand "
                     "in train, too")
    page.heading("Copies", *lines)
    times = Counter(first[again].tolist()).most_common(8)
    if times:
        page.add(table(("times", f"the {what}s that occur most often"),
                       [(f"{n + 1:,}", start_of(text_of(i))) for i, n in times]))


def unusual(page, part, vocab_size, text_of, what):
    """The longest documents, and those whose tokens are the rarest or the commonest."""
    odd = corpus.oddness(part, corpus.frequencies(part, vocab_size))
    order = np.argsort(-part.lengths, kind="stable")
    page.heading(f"The longest and the oddest {what}s")
    page.add(table(("tokens", "the longest"), [(f"{part.lengths[i]:,}", start_of(text_of(i)))
                                               for i in order[:5]]))
    whole = np.flatnonzero(part.lengths >= 8)
    ranked = whole[np.argsort(odd[whole], kind="stable")]
    for name, some in (("the rarest tokens", ranked[::-1][:6]), ("the commonest tokens", ranked[:6])):
        page.add(table(("nats a token", "tokens", f"{what}s of {name}"), [
            (f"{odd[i]:.2f}", f"{part.lengths[i]:,}", start_of(text_of(i))) for i in some]))
    page.add('<p class="dim">Nats a token: how surprising the tokens are if only their frequencies are known.</p>')


def start_of(text):
    return text[:SHOWN].replace("\n", "↵ ") + (" …" if len(text) > SHOWN else "")


if __name__ == "__main__":
    config.run(main)
