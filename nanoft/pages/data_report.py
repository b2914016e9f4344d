"""A data set as a page: lengths, frequencies, compression, labels, copies, oddities, and what the model is shown.

    python -m nanoft figures data/wikitext                   # a folder for pretraining or for fine-tuning
    python -m nanoft figures reviews.csv --label_column=stars --tokenizer=out/wikitext

Writes figures.html and a PNG file of each figure into FOLDER/figures, or FILE_figures beside a file, and prints the
main numbers. A data set without a tokenizer gets one learned from its rows.
"""

import io
from collections import Counter
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nanoft import UserError, batches, bpe, config, files
from nanoft.bins import Tokens
from nanoft.pages import plots
from nanoft.pages import text_statistics as statistics
from nanoft.pages.html import escape, table, words, write
from nanoft.tasks import collate, examples, features
from nanoft.text import prepare, vocabulary

MAX_TOKENS = 20_000_000  # of a split that are looked at
LEARN_BYTES, MEASURE_BYTES = 2_000_000, 500_000  # of training and validation text for the vocabulary sizes
SIZES = (512, 1024, 2048, 4096, 8192, 16384)
MAX_CHARACTERS = 300     # of a text in a table

# how tokens are coloured, as values for html.colour
SPECIAL, SECOND_TEXT, TARGET, REPLACED, UNCHANGED = 1.0, 0.25, -1.0, -0.6, -0.25


@dataclass
class Options:
    out: str = ""            # the folder to write to; empty: FOLDER/figures, or FILE_figures beside a file
    tokenizer: str = ""      # a tokenizer.json or a folder with one; empty: the data's own, or one learned on the rows
    block_size: int = 64     # tokens of the windows that are shown
    max_length: int = 128    # tokens of a row that a model would see
    kind: Literal["classify", "pair", "regress", "tag", "answer", "generate"] = "classify"  # of a file of rows
    text_column: str = ""    # of a file, as in finetune.py
    pair_column: str = ""    # the second text
    label_column: str = ""   # the label, or the response of generate
    separator: str = ""      # what stands between several labels of a text
    columns: str = ""        # the names, where the file has no header: class,title,description
    encoding: str = ""       # of the file, as gb18030; "" = UTF-8, or UTF-16 with a byte-order mark


class Page:
    """The fragments of a page as they come, and its figures, of which each also becomes a PNG file."""

    def __init__(self):
        self.parts, self.figures = [], {}

    def add(self, *parts: str) -> None:
        self.parts += parts

    def heading(self, text: str, *lines: str) -> None:
        """Begin a section. Its lines, the main numbers, are printed too."""
        print("\n".join(lines), end="\n" * bool(lines))
        self.add(f"<h2>{escape(text)}</h2>", *(f"<p>{escape(line)}</p>" for line in lines))

    @contextmanager
    def plot(self, name: str, title: str, x: str, y: str, caption: str = ""):
        """A figure with its labels and its legend: yields the axes to draw on."""
        ax = plots.axes(title, x, y)
        yield ax
        if not ax.figure.legends:
            ax.legend()
        self.figures[name] = ax.figure
        self.add(plots.svg(ax.figure, caption))


def main():
    cfg, (name,) = config.load_tool(Options, "figures FOLDER, or figures FILE", most=1)
    if problems := config.at_least(cfg, 16, "block_size", "max_length"):
        raise UserError("\n".join(problems))
    path = Path(name) if Path(name).is_file() else prepare.find_data(name)
    is_file = path.is_file()
    is_task, page = is_file or (path / "task.json").exists(), Page()
    if not is_task and not Tokens.exists(path, "train"):
        raise UserError(f"{path} holds neither task.json nor train.bin; prepare the data set first, by its prepare.py")
    if is_task:
        with redirect_stdout(None):  # finetune.py prints it all
            task, rows = examples.from_table(path, cfg.kind, cfg.text_column, cfg.pair_column, cfg.label_column,
                                             separator=cfg.separator, columns=cfg.columns, encoding=cfg.encoding
                                             ) if is_file else examples.load_task(path)
        if task["kind"] == "image":
            raise UserError(f"{path} holds pictures, and this page is about texts; finetune.py shows pictures")
        unit, tokenizer = "row", find_tokenizer(cfg, path.parent if is_file else path, rows["train"])
        splits = {split: statistics.from_rows(rows_of, tokenizer) for split, rows_of in rows.items()}
        about_rows(page, task, rows)
    else:
        unit, tokenizer = "document", find_tokenizer(cfg, path)
        tokens = {split: Tokens.open(path, split) for split in examples.SPLITS if Tokens.exists(path, split)}
        end = tokenizer.special["<|endoftext|>"]
        splits = {split: statistics.from_tokens(file, end, MAX_TOKENS) for split, file in tokens.items()}
        about_tokens(page, tokens)

    def text(i):
        """The beginning of training document i, on one line."""
        if is_task:
            text = " | ".join(texts_of(rows["train"][i]))
        else:
            text = tokenizer.decode(splits["train"].document(i)[:MAX_CHARACTERS].tolist())
        return text[:MAX_CHARACTERS].replace("\n", "↵ ") + (" …" if len(text) > MAX_CHARACTERS else "")

    counts = statistics.frequencies(splits["train"], tokenizer.vocab_size)
    lengths(page, splits, counts, tokenizer, unit)
    frequencies(page, counts, tokenizer)
    compression(page, splits, tokenizer)
    if is_task:
        labels(page, task, rows)
    copies(page, splits, text, unit)
    oddities(page, splits["train"], counts, text, unit)
    if is_task:
        show_rows(page, task, rows["train"], tokenizer, cfg.max_length)
    show_windows(page, splits["train"], tokenizer, cfg.block_size)
    folder = Path(cfg.out) if cfg.out else path.with_name(f"{path.stem}_figures") if is_file else path / "figures"
    for figure_name, figure in page.figures.items():
        plots.save(figure, folder / f"{figure_name}.png")
    write(folder / "figures.html", path.name, *page.parts)
    print(f"{folder}: figures.html" + (f" and {len(page.figures)} PNG files" if page.figures else ""))


def find_tokenizer(cfg, folder: Path, rows=()):
    """The tokenizer of the options or of the folder; without one, a tokenizer learned from the rows of a task."""
    path = Path(cfg.tokenizer or folder)
    path = path / "tokenizer.json" if path.is_dir() else path
    if path.exists() or cfg.tokenizer or not rows:
        return vocabulary.load(path)
    print(f"{path}: no such file; a tokenizer is learned from the rows (--tokenizer=out/NAME takes that of a run)")
    return bpe.train([text for row in rows for text in texts_of(row)], 4096, progress=False)


def texts_of(row: dict) -> list[str]:
    return [" ".join(x) if isinstance(x, tuple) else x for x in examples.inputs_of(row)]


# ---- what there is -----------------------------------------------------------------------------------------------


def about_tokens(page, tokens: dict[str, Tokens]) -> None:
    head = ("", "tokens", "bytes", "documents", "words (as published)", "bytes per token")
    rows = [(split, f"{len(file):,}", f"{file.num_bytes:,}", f"{file.num_documents:,}", f"{file.num_words:,}",
             f"{file.num_bytes / len(file):.3f}") for split, file in tokens.items()]
    print(files.aligned([head, *rows]))
    page.add(table(head, rows))
    if long := [split for split, file in tokens.items() if len(file) > MAX_TOKENS]:
        page.add(f"<p>All below is about the first {MAX_TOKENS:,} tokens of {' and '.join(long)}.</p>")


def about_rows(page, task, rows: dict[str, list[dict]]) -> None:
    """What finetune.py says of the rows, too: how many, empty, duplicate, known from training; their labels."""
    with redirect_stdout(io.StringIO()) as text:
        examples.report(task, rows)
    print(text.getvalue(), end="")
    page.add(f"<p>Kind {escape(task['kind'])}, measured by {escape(task['metric'])}.</p>",
             f"<pre>{escape(text.getvalue())}</pre>")


def lengths(page, splits, counts, tokenizer, unit: str) -> None:
    """How long the documents and the tokens are. counts: (V,) how often each token occurs in training."""
    ordinary = np.flatnonzero(~tokenizer.is_special)
    sizes, used = np.array([len(tokenizer.token_bytes[i]) for i in ordinary]), counts[ordinary]
    page.heading("Lengths", *(f"{split}: {examples.describe_lengths(documents.lengths.tolist())}"
                              for split, documents in splits.items()),
                 f"a token has {sizes.mean():.1f} bytes on average in the vocabulary, "
                 f"{(sizes * used).sum() / used.sum():.1f} in the text; the longest is "
                 f"{statistics.token_text(tokenizer, ordinary[sizes.argmax()])}")
    if not plots.can_draw():
        return
    page.add('<div class="row">')
    every = np.concatenate([documents.lengths for documents in splits.values()])
    edges = np.unique(np.geomspace(max(every.min(), 1), every.max() + 1, 40).round())
    with page.plot("lengths", f"Length of a {unit}", "tokens", f"{unit}s (%)",
                   "Without the special tokens. The axis is logarithmic, and so are the widths of the bars.") as ax:
        for split, documents in splits.items():
            percent = 100 * np.histogram(documents.lengths, edges)[0] / len(documents.lengths)
            ax.stairs(percent, edges, label=f"{split} ({len(documents.lengths):,})", fill=split == "train",
                      alpha=0.5 if split == "train" else 1)
        ax.set_xscale("log")
        plots.plain_ticks(ax.xaxis)
    with page.plot("token_lengths", "Length of a token", "bytes", "tokens (%)") as ax:
        for weights, label in ((None, "of the vocabulary"), (used, "of the text")):
            shares = np.bincount(sizes, weights, minlength=2)
            ax.stairs(100 * shares[1:25] / shares.sum(), np.arange(len(shares[1:25]) + 1) + 0.5, label=label, lw=1.6)
    page.add("</div>")


def frequencies(page, counts, tokenizer) -> None:
    """The tokens by frequency. counts: (V,)"""
    by_count = np.argsort(-counts, kind="stable")
    ordered, occur = counts[by_count], int((counts > 0).sum())
    ordinary = ~tokenizer.is_special
    page.heading("Frequencies", f"tokens: the 100 commonest are {ordered[:100].sum() / ordered.sum():.1%} of the "
                 f"training text, {(counts[ordinary] == 0).sum():,} of {ordinary.sum():,} do not occur")
    page.add('<div class="row">')
    if plots.can_draw():
        with page.plot("zipf", "How often tokens occur", "rank of the token", "times in the training text",
                       "Both axes are logarithmic: Zipf's law is a straight line, here drawn through rank 10.") as ax:
            ranks = np.unique(np.geomspace(1, max(occur, 1), 300).astype(int))
            ax.loglog(ranks, ordered[ranks - 1], label="tokens")
            middle = min(10, len(ranks))
            ax.loglog(ranks, ordered[middle - 1] * middle / ranks, "--", label="Zipf's law: 1 / rank")
            plots.plain_ticks(ax.xaxis, ax.yaxis)
    common, rare = (table(("token", "times"), [(statistics.token_text(tokenizer, i), f"{counts[i]:,}") for i in ids])
                    for ids in (by_count[:15], by_count[:occur][:-16:-1]))
    page.add("<div><h3>Commonest, and rarest of those that occur</h3>"
             f'<div class="row" style="grid-template-columns:1fr 1fr">{common}{rare}</div></div></div>')


def compression(page, splits, tokenizer) -> None:
    """How well vocabularies of several sizes would compress the text."""
    train = statistics.decode(splits["train"], tokenizer, LEARN_BYTES)
    val = statistics.decode(splits.get("val", splits["train"]), tokenizer, MEASURE_BYTES)
    rates = statistics.compression(train, val, tokenizer.content.get("pattern", "gpt4"), SIZES)
    own = statistics.bytes_per_token(val, tokenizer)
    learned, measured = (f"{sum(len(text.encode()) for text in texts) / 1e6:.1f} MB" for texts in (train, val))
    page.heading("Compression", f"bytes per token by vocabulary size, learned on the first {learned} of training text, "
                 f"measured on the first {measured} of validation: " +
                 ", ".join(f"{size:,}: {rate:.2f}" for size, rate in rates.items()) +
                 f"; the tokenizer of the data ({tokenizer.vocab_size:,}): {own:.2f}")
    if rates and plots.can_draw():
        with page.plot("compression", "Compression by vocabulary size", "tokens in the vocabulary",
                       "bytes of text per token") as ax:
            ax.plot(rates.keys(), rates.values(), "o-", label=f"learned on {learned}")
            ax.plot([tokenizer.vocab_size], [own], "D", label="the tokenizer of the data")
            ax.set_xscale("log", base=2)
            ax.set_xticks(list(rates))
            plots.plain_ticks(ax.xaxis)


def labels(page, task, rows: dict[str, list[dict]]) -> None:
    """How many rows each label has; the numbers of a regression."""
    if task["kind"] == "regress" and plots.can_draw():
        page.heading("Labels")
        with page.plot("labels", "Labels", "label", "rows (%)") as ax:
            values = {split: np.array([row["label"] for row in rows_of]) for split, rows_of in rows.items()}
            edges = np.histogram_bin_edges(values["train"], 30)
            for split, numbers in values.items():
                ax.stairs(100 * np.histogram(numbers, edges)[0] / len(numbers), edges, label=split)
    if task["kind"] not in examples.LABELLED:
        return
    page.heading("Labels")
    counts = {split: Counter(label for row in rows_of for label in examples.labels_of(row))
              for split, rows_of in rows.items()}
    names = [label for label, _ in counts["train"].most_common()]
    page.add(table(("label", *counts), [
        (label, *(f"{count[label]:,}" for count in counts.values())) for label in names]))
    if plots.can_draw():
        tags = task["kind"] == "tag"
        names = [label for label in names if not (tags and label == "O")][:24]
        what = "words with a label other than O" if tags else "rows"
        with page.plot("labels", "Labels", f"{what} (%)", "") as ax:
            height = 0.8 / len(counts)
            for i, (split, count) in enumerate(counts.items()):
                whole = max(count.total() - count["O"] if tags else len(rows[split]), 1)
                percent = [100 * count[label] / whole for label in names]
                ax.barh(np.arange(len(names)) + i * height, percent, height, label=split)
            ax.set_yticks(np.arange(len(names)) + 0.4 - height / 2, [label[:24] for label in names])
            ax.invert_yaxis()
            ax.figure.set_figheight(max(2.2, 0.9 + 0.28 * len(names)))
            ax.figure.legend(loc="outside right upper")


# ---- copies and oddities -------------------------------------------------------------------------------------------


def copies(page, splits, text, unit: str) -> None:
    """Documents that occur several times, and what other splits share with training. text(i): of document i."""
    first = statistics.first_copies(splits["train"])
    again = np.flatnonzero(first != np.arange(len(first)))
    page.heading("Copies", f"train: {len(again):,} of {len(first):,} {unit}s are copies of one before" +
                 ", whatever their label" * (unit == "row"), *(
        f"{split}: {statistics.overlap(documents, splits['train']):.2%} of its runs of {statistics.RUN} tokens are in "
        "train, too" for split, documents in splits.items() if split != "train"))
    if times := Counter(first[again].tolist()).most_common(8):
        page.add(table(("times", f"the {unit}s that occur most often"), [(f"{n + 1:,}", text(i)) for i, n in times]))


def oddities(page, documents, counts, text, unit: str) -> None:
    """The longest documents, and those whose tokens are the rarest or the commonest."""
    nats = statistics.surprise(documents, counts)
    page.heading(f"The longest and the oddest {unit}s")
    longest = np.argsort(-documents.lengths, kind="stable")
    ranked = np.argsort(nats, kind="stable")
    ranked = ranked[documents.lengths[ranked] >= 8]
    for what, ids in (("the longest", longest[:5]), (f"{unit}s of the rarest tokens", ranked[::-1][:6]),
                      (f"{unit}s of the commonest tokens", ranked[:6])):
        page.add(table(("nats per token", "tokens", what), [
            (f"{nats[i]:.2f}", f"{documents.lengths[i]:,}", text(i)) for i in ids]))
    page.add('<p class="dim">Nats per token: how surprising the tokens are if only their frequencies are known.</p>')


# ---- as the model sees it ------------------------------------------------------------------------------------------


def show_rows(page, task, rows: list[dict], tokenizer, max_length: int) -> None:
    """A batch of rows: special tokens, second texts, targets, padding."""
    task = task | {"max_length": max_length, "long_text": "head", "doc_stride": max_length // 2, "pool": "mean",
                   "mean": 0.0, "deviation": 1.0}
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:4]]
    encoded = features.encode(rows, task, tokenizer)
    batch = collate.batch(encoded, np.unique(encoded.row, return_index=True)[1], task, tokenizer)  # first features
    page.heading(f"{len(rows)} rows as the model sees them, cut at {max_length} tokens")
    what = {"tag": "words with a tag", "answer": "the answer", "generate": "what it is to write"}.get(task["kind"])
    legend(page, {"special token": SPECIAL} | ({"second text": SECOND_TEXT} if "types" in batch else {})
           | ({what: TARGET} if what else {}))
    for i, (row, ids, target) in enumerate(zip(rows, batch["ids"], batch["targets"])):
        values, notes = background(ids, tokenizer), ()
        if "types" in batch:
            values[(batch["types"][i] > 0) & (values != SPECIAL)] += SECOND_TEXT
        if task["kind"] == "answer" and target[1]:
            values[target[0]:target[1] + 1] = TARGET
        elif task["kind"] == "tag":
            notes = ["" if number == batches.IGNORE else task["labels"][number] for number in target]
            values[[note not in ("", "O") for note in notes]] = TARGET
        elif task["kind"] == "generate":
            values[np.flatnonzero(target[:-1] != batches.IGNORE) + 1] = TARGET
        page.add(f"<h3>{escape(row.get('label', row.get('labels', '')))}</h3>",
                 words(*statistics.readable(ids, values, tokenizer, notes)))


def show_windows(page, documents, tokenizer, block_size: int) -> None:
    """Windows of the text: for a GPT, and with masked words for an encoder."""
    if len(documents.ids) <= block_size:
        return
    starts = np.random.default_rng(0).integers(len(documents.ids) - block_size, size=2)
    windows = documents.ids[starts[:, None] + np.arange(block_size)]  # (2, T)
    page.heading(f"Windows of {block_size} tokens, as a GPT sees them: at each it predicts the next")
    for ids in windows:
        page.add(words(*statistics.readable(ids, background(ids, tokenizer), tokenizer)))
    if "<|mask|>" not in tokenizer.special:
        return
    masked, targets = batches.mask_words(windows, batches.masking(tokenizer, 0.15), 0, starts)
    page.heading("The same windows as an encoder sees them: it predicts 15 % of the tokens")
    legend(page, {"masked": TARGET, "replaced by another": REPLACED, "unchanged, but predicted": UNCHANGED})
    for ids, target in zip(masked, targets):  # (T,) each
        values, notes = background(ids, tokenizer), [""] * len(ids)
        for i in np.flatnonzero(target != batches.IGNORE):
            is_mask = ids[i] == tokenizer.special["<|mask|>"]
            values[i] = UNCHANGED if ids[i] == target[i] else TARGET if is_mask else REPLACED
            notes[i] = f"was {statistics.token_text(tokenizer, target[i])}"
        page.add(words(*statistics.readable(ids, values, tokenizer, notes)))


def background(ids, tokenizer) -> np.ndarray:
    """Colours that tell one token from the next, (T,): pale in turn; special tokens strong, padding none."""
    values = np.where(tokenizer.is_special[ids], SPECIAL, 0.1 + 0.28 * (np.arange(len(ids)) % 2))
    return np.where(ids == tokenizer.special.get("<|pad|>", -1), 0.0, values)


def legend(page, colours: dict[str, float]) -> None:
    page.add(words([f" {text} " for text in colours], colours.values()))
