"""Token ids as the model sees them, in coloured words for a page: rows with their padding, windows, masks, pairs.

Each function adds its section to a figures.Page.
"""

import numpy as np

from nanoft import UserError, batches
from nanoft.pages.html import escape
from nanoft.tasks import collate, features

SPECIAL, SECOND, ASKED, CHANGED, LEFT = 1.0, 0.25, -1.0, -0.6, -0.25  # values for page.colour


def pieces_shown(page, task, rows, tokenizer, max_length):
    """A batch of rows as their model gets them: special tokens, second texts, what is asked for, padding."""
    task = task | {"max_length": max_length, "long_text": "head", "doc_stride": max_length // 2, "pool": "mean",
                   "mean": 0.0, "deviation": 1.0}
    some = np.random.default_rng(0).permutation(len(rows))[:4]
    encoded = features.encode([rows[i] for i in some], task, tokenizer)
    index = np.unique(encoded.row, return_index=True)[1]  # the first piece of each
    batch = collate.batch(encoded, index, task, tokenizer)
    page.heading(f"{len(index)} rows as the model sees them, cut at {max_length} tokens")
    asked = {"tag": "words with a tag", "answer": "the answer", "generate": "what it is to write"}.get(task["kind"])
    legend([("special token", SPECIAL), *([("second text", SECOND)] if "types" in batch else []),
            *([(asked, ASKED)] if asked else [])], page)
    for row, ids in enumerate(batch["ids"]):
        values = tinted(ids, tokenizer)
        notes = [""] * len(ids)
        if "types" in batch:
            values = [SECOND + value if second and value != SPECIAL else value
                      for value, second in zip(values, batch["types"][row])]
        target = batch["targets"][row]
        if task["kind"] == "answer" and target[1]:
            values[target[0]:target[1] + 1] = [ASKED] * (target[1] - target[0] + 1)
        elif task["kind"] == "tag":
            for i in np.flatnonzero(target != batches.IGNORE):
                notes[i] = task["labels"][target[i]]
                values[i] = values[i] if notes[i] == "O" else ASKED
        elif task["kind"] == "generate":
            for i in np.flatnonzero(target[:-1] != batches.IGNORE) + 1:
                values[i] = ASKED
        source = rows[some[row]]
        label = source.get("label", source.get("labels"))
        page.add(f"<h3>{escape(label)}</h3>" if label is not None else "<h3></h3>")
        page.words(*coloured(ids, values, tokenizer, notes))


def windows_shown(page, part, tokenizer, block_size):
    """Windows of the text: for a GPT, and with hidden words for an encoder."""
    if len(part.ids) <= block_size:
        return
    starts = np.random.default_rng(0).integers(len(part.ids) - block_size, size=2)
    ids = part.ids[starts[:, None] + np.arange(block_size)]
    page.heading(f"Windows of {block_size} tokens, as a GPT sees them: at each it is asked for the next")
    for row in ids:
        page.words(*coloured(row, tinted(row, tokenizer), tokenizer))
    if "<|mask|>" not in tokenizer.special:
        return
    seen, targets = batches.mask_words(ids, batches.masking(tokenizer, 0.15), 0, starts)
    page.heading("The same windows as an encoder sees them: it is asked for 15 % of the words")
    legend([("hidden", ASKED), ("replaced by another", CHANGED), ("left as it is, but asked for", LEFT)], page)
    for rows in zip(seen, targets):
        page.words(*masked(*rows, tokenizer))


def pairs_shown(page, tokens, tokenizer, block_size):
    """Two pairs of segments as objective=mlm_nsp makes them."""
    try:
        pairs = batches.Pairs(tokens, tokenizer, block_size, 2, 0, batches.masking(tokenizer, 0.15))
    except (UserError, KeyError):  # a single document, or a tokenizer without <|mask|>: no such objective either
        return
    batch = pairs.batch(np.arange(2))
    page.heading("Pairs of segments, as an encoder sees them that learns whether the second follows the first")
    for row in range(2):
        page.add(f"<h3>{'the second does not follow' if batch['next_targets'][row] else 'the second follows'}</h3>")
        page.words(*masked(batch["ids"][row], batch["targets"][row], tokenizer))


def masked(seen, targets, tokenizer):
    """A window with hidden words, as `coloured` gives it: the notes say what was there."""
    values, asked = tinted(seen, tokenizer), targets != batches.IGNORE
    notes = [f"was {shown(tokenizer, target)}" if target != batches.IGNORE else "" for target in targets]
    for i in np.flatnonzero(asked):
        values[i] = LEFT if seen[i] == targets[i] else (
            ASKED if seen[i] == tokenizer.special["<|mask|>"] else CHANGED)
    return coloured(seen, values, tokenizer, notes)


def tinted(ids, tokenizer):
    """Colours that tell one token from the next: pale ones in turn; special tokens strong, padding none."""
    pad = tokenizer.special.get("<|pad|>", -1)
    return [0.0 if i == pad else SPECIAL if tokenizer.is_special[i] else 0.1 + 0.28 * (place % 2)
            for place, i in enumerate(ids)]


def coloured(ids, values, tokenizer, notes=()):
    """Ids as texts, values and notes for Page.words. Parts of a character stand together, padding is shortened."""
    texts, colours, titles, waiting = [], [], [], b""
    notes = notes or [""] * len(ids)
    pad = tokenizer.special.get("<|pad|>", -1)
    real = int(np.flatnonzero(ids != pad)[-1]) + 1 if (ids != pad).any() else 0
    for place, i in enumerate(ids[:real].tolist()):
        special = tokenizer.is_special[i]
        data = b"" if special else waiting + tokenizer.token_bytes[i]
        if waiting and not special:  # goes on with the character of the token before
            number = f"{titles[-1]}, {i}"
            colour = max(colours.pop(), values[place], key=abs)
            texts.pop(), titles.pop()
        else:
            number, colour = f"{notes[place]} id {i}".strip(), values[place]
        text = tokenizer.token_bytes[i].decode() if special else data.decode("utf-8", "replace")
        texts.append(text.replace("\n", "↵\n"))
        colours.append(colour)
        titles.append(number)
        waiting = data if not special and cut_short(data) else b""
    if real < len(ids):
        texts.append(f" <|pad|> x {len(ids) - real}")
        colours.append(0.0)
        titles.append("padding, which nothing looks at")
    return texts, colours, titles


def cut_short(data):
    """Do these bytes end inside a character?"""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def legend(entries, page):
    page.words([f" {text} " for text, _ in entries], [value for _, value in entries])


def shown(tokenizer, i):
    """A token as a person can read it: its space as ␣, bytes that are no character as numbers."""
    data = tokenizer.token_bytes[i]
    try:
        return data.decode().replace(" ", "␣").replace("\n", "↵")
    except UnicodeDecodeError:
        return f"<{data.hex(' ')}>"
