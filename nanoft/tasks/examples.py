"""Labelled examples: data set folders and the user's own tables in, checked rows out, and their figures.

A folder for fine-tuning holds train.jsonl, val.jsonl, test.jsonl where there are labelled test rows, and task.json:
{"kind": one of COLUMNS, "labels": [...], "metric": the main one}, and "multi_label": true where a text has any number
of labels. A row is a dictionary with its kind's columns. `answers` is a list of {"text", "start"}, start counting the
context's characters; it is empty for a question that the context does not answer.
"""

import hashlib
import json
import math
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

from nanoft import UserError
from nanoft.files import read_json, write_json, write_jsonl
from nanoft.tasks.tables import read_conll, read_jsonl, read_lines, read_squad, read_table
from nanoft.text.wordpiece import CHINESE

COLUMNS = {
    "classify": ("text", "label"),  # multi-label: ("text", "labels"), a list
    "pair": ("text", "pair", "label"),
    "regress": ("text", "label"),  # the label is a number; a second text, "pair", is optional
    "tag": ("words", "tags"),
    "answer": ("context", "question", "answers", "id"),
    "generate": ("prompt", "response"),
}
METRICS = {"classify": "accuracy", "pair": "accuracy", "regress": "pearson", "tag": "f1", "answer": "f1",
           "generate": "loss"}
SPLITS = ("train", "val", "test")
LABELLED = ("classify", "pair", "tag")  # the kinds whose task.json lists labels
INPUTS = ("text", "pair", "words", "context", "question", "prompt")  # what a model sees of a row
TARGETS = ("label", "labels", "tags", "answers", "response")  # what it is to give

# what people call their columns; one is taken unasked when it alone fits
USUAL = {
    "text": "text sentence review content comment document body tweet message text1 sentence1 question1 premise",
    "pair": "pair text2 sentence2 question2 hypothesis",
    "label": "label labels sentiment class category target score rating stars similarity topic intent",
    "prompt": "prompt instruction question input",
    "response": "response answer output completion target",
}

# the columns that prediction needs where these are not the text alone; "" is a model without a task
TO_PREDICT = {"": ("prompt",), "generate": ("prompt",), "pair": ("text", "pair"), "regress": ("text", "pair"),
              "answer": ("question", "context")}
SIGNS = f"{CHINESE}\u3001-\u3011！（），：；？"  # each is a word to be tagged, as Chinese data has it
WORD = re.compile(rf"[{SIGNS}]|[^{SIGNS}\s]+")


def load_task(folder):
    """A prepared folder: its task.json, and {"train": rows, "val": rows}, with "test" where there is a test.jsonl.

    Raises UserError, naming file and line, for what is not in the form above; for an empty split, a single class, a
    class without an example in training and a label that training lacks.
    """
    folder = Path(folder)
    path = folder / "task.json"
    task = read_json(path)
    if not isinstance(task, dict) or task.get("kind") not in COLUMNS or "metric" not in task:
        raise UserError(f"{path}: needs a kind ({', '.join(COLUMNS)}) and a metric; prepare the data set again")
    labels = task.get("labels")
    if task["kind"] in LABELLED and (not isinstance(labels, list) or not all(isinstance(x, str) for x in labels)):
        raise UserError(f"{path}: a {task['kind']} task needs its labels, a list of texts; prepare the data set again")
    located = {split: read_jsonl(folder / f"{split}.jsonl") for split in SPLITS
               if split != "test" or (folder / "test.jsonl").exists()}
    return task, check(task, located)


def from_table(train_file, kind, text_column="", pair_column="", label_column="", val_file="", test_file="",
               val_fraction=0.1, seed=1, separator=""):
    """The user's own files as load_task gives a folder: (task, {"train": rows, "val": rows, and perhaps "test"}).

    classify, pair, regress, generate: .csv, .tsv or .jsonl. A column's name that is not given is guessed; generate
    takes its prompt from text_column and its response from label_column. separator: what stands between several labels
    of a text, which makes the task multi-label. tag: a CoNLL file. answer: SQuAD's .json, v1.1 or v2. (Those two also
    as .jsonl in the form above.) Every file may be gzipped.
    Without val_file, the rows whose text's hash falls below val_fraction are validation. Raises UserError as load_task.
    """
    if separator and kind != "classify":
        raise UserError(f"separator={separator!r} is for kind=classify; a {kind} row has one label")
    paths = {"train": train_file} | ({"val": val_file} if val_file else {}) | ({"test": test_file} if test_file else {})
    chosen, located = None, {}
    for split, path in paths.items():
        if kind in ("tag", "answer"):
            is_jsonl = str(path).lower().removesuffix(".gz").endswith(".jsonl")
            read = read_jsonl if is_jsonl else read_conll if kind == "tag" else read_squad
            located[split] = read(path)
            continue
        columns, rows = read_table(path)
        if chosen is None:
            chosen = choose_columns(path, columns, kind, text_column, pair_column, label_column)
            print(f"{path}: {', '.join(f'{name} = {column}' for name, column in chosen.items())}")
        located[split] = [(where, rename(row, where, kind, chosen, separator)) for where, row in rows]
    if not val_file:
        is_val = [in_validation(row, val_fraction, str(seed)) for _, row in located["train"]]
        both = list(zip(located["train"], is_val))
        located |= {"train": [item for item, val in both if not val], "val": [item for item, val in both if val]}
        if both and len(set(is_val)) == 1:
            raise UserError(f"{train_file}: val_fraction={val_fraction} of its {len(both):,} rows leaves the "
                            f"{'training' if is_val[0] else 'validation'} set empty; give another, or a val_file")
        if kind in LABELLED:
            keep_labels(located)
    task = {"kind": kind, "metric": METRICS[kind]}
    if separator:
        task |= {"multi_label": True, "metric": "micro_f1"}  # all labels of a text right at once is rare
    if kind in LABELLED:
        task["labels"] = order_labels(label for _, row in located["train"] for label in labels_of(row))
    return task, check(task, {split: located[split] for split in SPLITS if split in located})


def keep_labels(located):
    """Move validation rows with a label that training lacks into training, where it can at least be learned."""
    known = {label for _, row in located["train"] for label in labels_of(row)}
    rare = [item for item in located["val"] if not known.issuperset(labels_of(item[1]))]
    if rare and len(rare) < len(located["val"]):
        located |= {"train": located["train"] + rare, "val": [item for item in located["val"] if item not in rare]}
        print(f"{len(rare):,} rows with labels that only they have are moved from validation to training")


def choose_columns(path, columns, kind, text_column, pair_column, label_column):
    """{our name: the file's column}; what is not given is guessed where one column alone has a usual name."""
    names = COLUMNS[kind] + (("pair",) if kind == "regress" else ())
    given = {"text": text_column, "prompt": text_column, "pair": pair_column, "label": label_column,
             "response": label_column}
    chosen = {}
    for name in names:
        fitting = usual(columns, name)
        option = {"prompt": "text", "response": "label"}.get(name, name) + "_column"
        if given[name] and given[name] not in columns:
            raise UserError(f"{path}: no column {given[name]!r} ({option}); it has {', '.join(columns)}")
        if given[name] or len(fitting) == 1:
            chosen[name] = given[name] or fitting[0]
        elif not (kind == "regress" and name == "pair"):
            raise UserError(f"{path}: which column is the {name}? Name it by --{option}; it has {', '.join(columns)}")
    if len(set(chosen.values())) < len(chosen):
        raise UserError(f"{path}: {', '.join(f'{name} = {column}' for name, column in chosen.items())} takes a column "
                        f"twice; it has {', '.join(columns)}")
    return chosen


def prediction_rows(kind: str, path: str = "", options: dict | None = None) -> list[dict]:
    """Rows to predict: those of a file, or those that a tool's options spell out.

    kind: the task's, "embed" for texts without one, or "" for prompts to a model without a task. path: a .csv, .tsv or
    .jsonl table (perhaps gzipped), whose columns are recognised by their usual names and whose other columns stay; of
    any other file each line that is not blank is a text or prompt, and its row has the number of its `line`.
    options: without a path, {"prompt", "pair", "question", "context": a text, "text": a list of texts}, those that were
    given. Without any, a prompt is a new document. Raises UserError for an option that the kind does not take, a
    missing or unfit column, and a file without rows.
    """
    names, options = TO_PREDICT.get(kind, ("text",)), options or {}
    model = f"a model of kind {kind}" if kind else "a model that is not fine-tuned for a task"
    accepted = ("prompt", "text") if kind == "generate" else names
    usage = " ".join(f"--{name}=..." for name in accepted)
    if path.lower().removesuffix(".gz").endswith((".jsonl", ".csv", ".tsv")):
        located = recognised_table(path, names)
    elif path:
        located = [(f"{path} line {i}", {"line": i, names[0]: line}) for i, line in read_lines(path)]
    else:
        for name in options:
            if name not in accepted:
                raise UserError(f"--{name} means nothing to {model}; give {usage}")
        texts = options.get("text") or [options.get(names[0], "<|endoftext|>" if names[0] == "prompt" else "")]
        given = [{**options, names[0]: text} for text in texts]
        located = [("the command line", {name: row[name] for name in names if row.get(name) or name == "prompt"})
                   for row in given]
    for where, row in located:
        if "pair" not in names:
            row.pop("pair", None)  # or it would be encoded as a second text
        if kind == "tag" and "words" not in row and isinstance(row.get("text"), str):
            row["words"] = WORD.findall(row["text"])
        for name in ("words",) if kind == "tag" else names:
            if name in row:
                check_input(row[name], name, where)
            elif not (kind == "regress" and name == "pair"):
                raise UserError(f"{where}: no {name} for {model}" + (
                    f", only {', '.join(row) or 'nothing'}; give it as a column of that name in a .csv or .jsonl"
                    if path else f"; give {usage}, or an --input"))
    if not located:
        raise UserError(f"{path} holds no {names[0]}; write one on each line")
    return [row for _, row in located]


def recognised_table(path, names):
    """[(where, row)] of a table; where it lacks one of `names`, its only column with a usual name for it is that."""
    columns, located = read_table(path)
    for name in names:
        fitting = usual(columns, name)
        if name not in columns and len(fitting) == 1:
            print(f"{path}: {name} = {fitting[0]}", file=sys.stderr)
            for _, row in located:
                if fitting[0] in row:
                    row.setdefault(name, row.pop(fitting[0]))
    return located


def check_input(value, name, where):
    is_whole = isinstance(value, list) and all(isinstance(word, str) for word in value)
    if not (is_whole if name == "words" else isinstance(value, str)):
        form = "list of texts" if name == "words" else "text"
        raise UserError(f"{where}: {name} is {value!r:.60}, not a {form}; mend the row")


def usual(columns, name):
    """The columns that have a usual name for `name`, which itself is one."""
    return [column for column in columns if column.lower() in USUAL.get(name, name).split()]


def rename(raw, where, kind, chosen, separator):
    """A table's row with our columns, its label as the kind has it. Raises UserError."""
    for column in chosen.values():
        if column not in raw:
            raise UserError(f"{where}: no column {column!r}; it has {', '.join(raw)}")
    row = {name: raw[column] for name, column in chosen.items()}
    if kind == "regress":
        try:
            row["label"] = float(row["label"])
        except (TypeError, ValueError):
            raise UserError(f"{where}: the label {row['label']!r:.60} is not a number; regress needs numbers") from None
    elif separator:
        labels = row.pop("label")
        labels = labels if isinstance(labels, list) else str(labels).split(separator)
        row["labels"] = list(dict.fromkeys(str(label).strip() for label in labels if str(label).strip()))
    elif "label" in row and isinstance(row["label"], str | int | float):  # .jsonl has 0 and true beside texts
        row["label"] = str(row["label"]).strip()
    return row


def place(text, salt=""):
    """A number from 0 to 1 by the text itself, so that copies of a text fall into the same split."""
    return int.from_bytes(hashlib.sha256((salt + text).encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def in_validation(row, val_fraction, salt=""):
    """Is this row one of the `val_fraction` kept for validation? By its first text, and by its context for answer."""
    text = next((row[name] for name in INPUTS if name in row), "")
    return place(" ".join(map(str, text)) if isinstance(text, list) else str(text), salt) < val_fraction


def split_off_validation(rows, val_fraction):
    """{"train": rows, "val": rows}, by in_validation."""
    splits = {"train": [], "val": []}
    for row in rows:
        splits["val" if in_validation(row, val_fraction) else "train"].append(row)
    return splits


def labels_of(row):
    """The labels of a row of any kind as a list; what is no label (or no list) yet is left for check to name."""
    found = row["tags"] if "tags" in row else row["labels"] if "labels" in row else [row.get("label")]
    return [label for label in found if isinstance(label, str) and label] if isinstance(found, list) else []


def order_labels(labels):
    """Each label once: whole numbers by size; else O first, then by name, B-x beside I-x."""
    labels = set(labels)
    if all(re.fullmatch(r"-?\d{1,18}", label) for label in labels):
        return sorted(labels, key=int)
    return sorted(labels, key=lambda label: (label != "O", re.sub(r"^[BIES]-", "", label), label))


def check(task, located):
    """The rows without their places, answers mended, once all is well. Raises the UserErrors of load_task."""
    for split, items in located.items():
        if not items:
            raise UserError({"train": "the training set has no rows; give a file with examples in it",
                             "val": "the validation set has no rows; give a val_file, or a larger val_fraction",
                             "test": "the test set has no rows; give another file, or none"}[split])
        for where, row in items:
            check_row(task, row, where)
    if task["kind"] in LABELLED:
        check_labels(task, located)
    if task["kind"] == "regress" and len({row["label"] for _, row in located["train"]}) == 1:
        raise UserError("every training row has the same number as its label, so there is nothing to learn")
    splits = {split: [row for _, row in items] for split, items in located.items()}
    return splits if task["kind"] != "answer" else {split: mend_answers(rows, split) for split, rows in splits.items()}


def check_row(task, row, where):
    kind, wrong = task["kind"], None
    columns = COLUMNS[kind] if not task.get("multi_label") else ("text", "labels")
    if kind not in ("pair", "regress"):
        row.pop("pair", None)  # a column of the file's own, or it would be encoded as a second text
    for name in columns:
        if name not in row:
            raise UserError(f"{where}: no column {name!r}; it has {', '.join(map(str, row)) or 'none'}")
    for name in (*columns, *(("pair",) if kind == "regress" and "pair" in row else ())):
        value = row[name]
        if name in ("words", "tags", "labels"):
            wrong = None if is_texts(value) else "a list of texts"
        elif name == "answers":
            whole = isinstance(value, list) and all(
                isinstance(a, dict) and isinstance(a.get("text"), str) and type(a.get("start")) is int for a in value)
            wrong = None if whole else 'a list of {"text": ..., "start": whole number}'
        elif name == "label" and kind == "regress":
            wrong = None if type(value) in (int, float) and math.isfinite(value) else "a number"
        else:
            wrong = None if is_text(value) and (value or name != "label") else "a text"
        if wrong:
            raise UserError(f"{where}: {name} is {value!r:.60}, not {wrong}")
    if kind == "tag" and len(row["words"]) != len(row["tags"]):
        raise UserError(f"{where}: {len(row['words'])} words but {len(row['tags'])} tags; every word needs its tag")


def is_text(value):
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)  # JSON may bring halves of characters


def is_texts(value):
    return isinstance(value, list) and all(is_text(item) and item.strip() for item in value)


def check_labels(task, located):
    train = {label for _, row in located["train"] for label in labels_of(row)}
    if len(train) < (1 if task.get("multi_label") else 2):
        raise UserError(f"training has one class only ({', '.join(train) or 'no label at all'}), so there is nothing "
                        "to tell apart; give rows of another class too")
    for label in task["labels"]:
        if label not in train:
            raise UserError(f"label {label!r} has no example in training; add some, or take it out of task.json")
    for split, items in located.items():
        for where, row in items:
            for label in labels_of(row):
                if label not in task["labels"]:
                    raise UserError(f"label {label!r} in {where} " + (
                        "is not among the labels of task.json; mend either" if split == "train" else
                        "does not occur in training; mend it, or give training rows with it"))


def mend_answers(rows, split):
    """Answers not at their offset are looked up in the context: moved to the nearest place, or left out if in none.

    A training question that loses all its answers so is left out; other splits keep theirs, for scores count them.
    Prints how many there were, if any.
    """
    kept, moved, dropped = [], 0, 0
    for row in rows:
        answers = []
        for answer in row["answers"]:
            text, start = answer["text"], answer["start"]
            if text and 0 <= start and row["context"].startswith(text, start):
                answers.append(answer)
                continue
            places = [match.start() for match in re.finditer(re.escape(text), row["context"])] if text else []
            moved, dropped = moved + bool(places), dropped + (not places)
            if places:
                answers.append({"text": text, "start": min(places, key=lambda at, start=start: abs(at - start))})
            elif split != "train":
                answers.append(answer)
        if answers or not row["answers"]:
            kept.append(row | {"answers": answers})
    if moved or dropped:
        print(f"{split}: {moved + dropped:,} answers not at their offset: {moved:,} found elsewhere in the context, "
              f"{dropped:,} not in it; {len(rows) - len(kept):,} questions left out")
    return kept


def inputs_of(row):
    return tuple(tuple(row[name]) if name == "words" else row[name] for name in INPUTS if name in row)


def target_of(row):
    return json.dumps([row[name] for name in TARGETS if name in row], ensure_ascii=False)


def is_empty(row):
    """Has one of the row's texts nothing but white space? (A response counts: there is nothing to learn from it.)"""
    texts = [*inputs_of(row), *([row["response"]] if "response" in row else [])]
    return any(not "".join(text).strip() for text in texts)


def clean(rows, drop_duplicates=False, drop_empty=False):
    """The rows, without copies or empty ones if so wished, and the figures of the rows as they came.

    Figures: rows; empty (a text is blank); duplicates (a row before has the same texts and label); conflicts (different
    texts that occur with more than one label).
    """
    kept, labels, figures = [], defaultdict(set), Counter(rows=len(rows), empty=0, duplicates=0, conflicts=0)
    for row in rows:
        seen, target, empty = labels[inputs_of(row)], target_of(row), is_empty(row)
        figures["empty"] += empty
        figures["duplicates"] += target in seen
        if not (drop_duplicates and target in seen or drop_empty and empty):
            kept.append(row)
        seen.add(target)
    figures["conflicts"] = sum(len(seen) > 1 for seen in labels.values())
    return kept, dict(figures)


def report(task, splits, lengths=None, max_length=0):
    """Print what the splits hold: rows, oddities, labels, and with lengths what max_length will cut.

    lengths: {split: [tokens of each row, before anything is cut]}. "also in train": rows of other splits whose texts
    training has, with whatever label.
    """
    train = {inputs_of(row) for row in splits["train"]}
    for split, rows in splits.items():
        _, figures = clean(rows)
        leaks = "" if split == "train" else f", {sum(inputs_of(row) in train for row in rows):,} also in train"
        print(f"{split}: {figures['rows']:,} rows, {figures['empty']:,} empty, {figures['duplicates']:,} duplicates, "
              f"{figures['conflicts']:,} texts with different labels{leaks}")
        if rows and task["kind"] != "generate":
            print(f"  {describe_labels(task, rows)}")
        if lengths and lengths[split]:
            divided = task["kind"] in ("tag", "answer") or task.get("long_text") == "windows"
            print(f"  {describe_lengths(lengths[split], max_length, divided)}")


def describe_labels(task, rows):
    """A line on what is to be predicted: each label's count and its percent of the rows (of the words, for tag)."""
    if task["kind"] == "regress":
        numbers = [row["label"] for row in rows]
        return f"labels from {min(numbers):g} to {max(numbers):g}, mean {sum(numbers) / len(numbers):.3g}"
    if task["kind"] == "answer":
        without = sum(not row["answers"] for row in rows)
        return f"{len({row['context'] for row in rows}):,} contexts, {without:,} questions without an answer"
    counts = Counter(label for row in rows for label in labels_of(row))
    total = max(1, counts.total() if task["kind"] == "tag" else len(rows))
    shown = [f"{label} {number:,} ({100 * number / total:.1f} %)" for label, number in counts.most_common(20)]
    return ", ".join(shown) + (f" and {len(counts) - 20} more" if len(counts) > 20 else "")


def describe_lengths(lengths, max_length=0, divided=False):
    """A line on the numbers of tokens: median, 90 %, 99 %, longest; and what cutting rows to max_length takes away.

    divided: longer rows become several pieces, and nothing is taken away.
    """
    ordered = sorted(lengths)
    median, most, nearly_all = (ordered[math.ceil(part * len(ordered)) - 1] for part in (0.5, 0.9, 0.99))
    line = f"tokens: median {median:,}, 90 % up to {most:,}, 99 % up to {nearly_all:,}, longest {ordered[-1]:,}"
    if max_length:
        longer = [length - max_length for length in ordered if length > max_length]
        line += (f"; max_length {max_length:,} {'divides' if divided else 'cuts'} {len(longer):,} rows "
                 f"({100 * len(longer) / len(ordered):.1f} %)")
        line += "" if divided else f", {100 * sum(longer) / max(1, sum(ordered)):.1f} % of the tokens"
    return line


def save_task(folder, task, splits):
    """Write a folder that load_task reads, task.json last, so that a folder with it is a whole one; print figures."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.json").unlink(missing_ok=True)
    for split in SPLITS:
        path = folder / f"{split}.jsonl"
        if split in splits:
            write_jsonl(path, splits[split])
        else:
            path.unlink(missing_ok=True)
    write_json(folder / "task.json", task)
    report(task, splits)
