"""Labelled examples: data set folders and the user's own tables in, checked rows out, and what they hold in numbers.

A folder for fine-tuning holds train.jsonl, val.jsonl, test.jsonl if there are labelled test rows, and task.json:
{"kind": one of COLUMNS, "labels": [...], "metric": the main one}, and "multi_label": true where a text has any number
of labels. A row is a dictionary with its kind's columns. `answers` is a list of {"text", "start"}, where start counts
the context's characters; it is empty for a question that the context does not answer.
"""

import json
import math
import re
from collections import Counter, defaultdict
from pathlib import Path

from nanoft import UserError
from nanoft.files import difference, hash_fraction, read_json, write_json, write_jsonl
from nanoft.tasks import images, metrics, tables

COLUMNS = {
    "classify": ("text", "label"),  # multi-label: ("text", "labels"), a list
    "pair": ("text", "pair", "label"),
    "regress": ("text", "label"),  # the label is a number; a second text, "pair", is optional
    "tag": ("words", "tags"),
    "answer": ("context", "question", "answers", "id"),
    "generate": ("prompt", "response"),
    "image": ("image", "label"),  # the name of a picture: see images.py
}
METRICS = {"classify": "accuracy", "pair": "accuracy", "regress": "pearson", "tag": "f1", "answer": "f1",
           "generate": "loss", "image": "accuracy"}
SPLITS = ("train", "val", "test")
ONE_LABEL = ("classify", "pair", "image")  # the kinds with one label a row (of classify, unless it is multi-label)
LABELLED = (*ONE_LABEL, "tag")  # the kinds whose task.json lists labels
INPUTS = ("text", "pair", "words", "context", "question", "prompt", "image")  # what a model sees of a row
TARGETS = ("label", "labels", "tags", "answers", "response")  # what it is to give
UNITS = (("utf-32-le", 4), ("utf-16-le", 2), ("utf-8", 1))  # what offsets may count: characters, UTF-16's units, bytes


# ---- rows from folders and tables --------------------------------------------------------------------------------


def load_task(folder) -> tuple[dict, dict[str, list[dict]]]:
    """A prepared folder: its task.json, and {"train": rows, "val": rows}, with "test" where there is a test.jsonl.

    Raises UserError, naming file and line, for what is not in the form above; for an empty split, a single class, a
    class without a training example and a label that training lacks.
    """
    folder = Path(folder)
    path = folder / "task.json"
    task = read_json(path, {"kind": {*COLUMNS}, "metric": str, "multi_label?": bool})
    if task["kind"] in LABELLED and (difference(task, {"labels": [str]})
                                     or len({*task["labels"]}) < len(task["labels"])):
        raise UserError(f"{path}: a {task['kind']} task needs its labels, a list of different texts; prepare it again")
    located = {split: tables.read_jsonl(folder / f"{split}.jsonl") for split in SPLITS
               if split != "test" or (folder / "test.jsonl").exists()}
    splits = check_splits(task, located)
    return task, {split: images.resolve(rows, folder) if task["kind"] == "image" else rows
                  for split, rows in splits.items()}


def from_table(train_file, kind: str, text_column: str = "", pair_column: str = "", label_column: str = "",
               val_file="", test_file="", val_fraction: float = 0.1, separator: str = "", columns: str = "",
               encoding: str = ""):
    """The user's own files as load_task returns a folder: (task, {"train": rows, "val": rows, and perhaps "test"}).

    classify, pair, regress, generate: .csv, .tsv or .jsonl. A column that is not named is found by its usual names;
    several of text, separated by commas, are joined; generate takes its prompt from text_column and its response from
    label_column. image: the same, with the names of picture files, as seen from the table, in text_column; or a folder
    with one folder of picture files for each class. tag: a CoNLL file. answer: SQuAD's .json, v1.1 or v2. (These two
    also as .jsonl.) columns: the names, where files lack them. separator: between several labels of a text. Any file
    may be gzipped. Without val_file, val_fraction of the rows, by the hash of their text. Raises UserError.
    """
    if separator and kind != "classify":
        raise UserError(f"separator={separator!r} is for kind=classify; a {kind} row has one label")
    paths = {"train": train_file} | ({"val": val_file} if val_file else {}) | ({"test": test_file} if test_file else {})
    text, label = ("text_column", text_column), ("label_column", label_column)
    options = {"text": text, "prompt": text, "image": text, "pair": ("pair_column", pair_column), "label": label,
               "response": label}
    chosen, given, located = None, [text_column, label_column], {}
    for split, path in paths.items():
        if kind == "image" and Path(path).is_dir():
            located[split] = images.folder_rows(path)
            continue
        if kind in ("tag", "answer"):
            if tables.suffix(path) == ".jsonl":
                located[split] = tables.read_jsonl(path, encoding)
            elif kind == "answer":
                located[split] = tables.read_squad(path, encoding)
            else:
                located[split], given = tables.read_conll(path, given[0], given[1], columns, encoding)
            continue
        header, rows = tables.read_table(path, columns, encoding)
        if chosen is None:
            names = COLUMNS[kind] + (("pair",) if kind == "regress" else ())
            chosen = tables.choose_columns(path, header, {name: options[name] for name in names},
                                           "pair" if kind == "regress" else "", [[*row.values()] for _, row in rows])
            print(f"{path}: {tables.describe(chosen)}", *(
                f"({name} is not read; --kind=pair does)" for name in header if kind == "classify"
                and name.lower() in tables.USUAL["pair"].split() and name not in chosen["text"]))
        located[split] = [(where, named_row(row, where, kind, chosen, separator, path)) for where, row in rows]
    if not val_file:
        n_rows = len(located["train"])
        located |= split_off_validation(located["train"], val_fraction, salt="1", row_of=lambda item: item[1])
        for split, name in (("train", "training"), ("val", "validation")):
            if n_rows and not located[split]:
                n_texts = len({str(inputs_of(row)) for _, row in located["train"] + located["val"]})
                raise UserError(f"{train_file}: val_fraction={val_fraction} of its {n_rows:,} rows leaves the {name} "
                                f"set empty ({n_texts:,} texts are different); give another, or a val_file")
        if kind in LABELLED:
            move_rare_labels(located)
    task: dict = {"kind": kind, "metric": METRICS[kind]}
    if chosen or kind == "tag" and all(given):  # what sample.py needs to read files of the same form
        task["columns"] = chosen or {"words": given[:1], "tags": given[1:]}
    task |= {name: value for name, value in (("column_names", columns), ("encoding", encoding)) if value}
    if separator:  # all labels of a text right at once is rare
        task |= {"multi_label": True, "metric": "micro_f1", "separator": separator}
    if kind in LABELLED:
        task["labels"] = order_labels(label for _, row in located["train"] for label in labels_of(row))
        print_oddities(task, [labels_of(row) for _, row in located["train"]])
    return task, check_splits(task, {split: located[split] for split in SPLITS if split in located})


def named_row(raw: dict, where: str, kind: str, chosen: dict[str, list[str]], separator: str, path) -> dict:
    """A row of a table under our names for its columns, label and picture as the kind needs them. Raises UserError."""
    row = {}
    for name, columns in chosen.items():
        for column in columns:
            if column not in raw:
                raise UserError(f"{where}: no column {column!r}; it has {', '.join(raw)}")
            if len(columns) > 1 and not is_text(raw[column]):
                raise UserError(f"{where}: {column} is {raw[column]!r:.60}, not a text")
        row[name] = " ".join(raw[column] for column in columns) if len(columns) > 1 else raw[columns[0]]
    if kind == "image" and is_text(row["image"]):
        row["image"] = str(Path(path).parent / row["image"])
    if kind == "regress":
        try:
            row["label"] = float(row["label"])
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{where}: the label {row['label']!r:.60} is not a number; regress needs numbers") from None
    elif separator:
        labels = row.pop("label")
        labels = [] if labels is None or labels != labels else labels  # null and NaN are no labels
        labels = labels if isinstance(labels, list) else str(labels).split(separator)
        named = (" ".join(str(label).split()) for label in labels if label is not None)
        row["labels"] = list(dict.fromkeys(filter(None, named)))
    elif isinstance(value := row.get("label"), str | int | float) and value == value:  # .jsonl: 0, true
        row["label"] = " ".join(str(row["label"]).split())
    return row


def in_validation(row: dict, val_fraction: float, salt: str = "") -> bool:
    """Is this row one of the `val_fraction` for validation? By its first text, for answer by its context."""
    text = next((row[name] for name in INPUTS if name in row), "")
    text = " ".join(map(str, text)) if isinstance(text, list) else str(text)
    return hash_fraction(text, salt) < val_fraction


def split_off_validation(items: list, val_fraction: float, salt: str = "", row_of=lambda item: item) -> dict[str, list]:
    """{"train": items, "val": items}, by in_validation of their rows. Most often the items are the rows."""
    splits = {"train": [], "val": []}
    for item in items:
        splits["val" if in_validation(row_of(item), val_fraction, salt) else "train"].append(item)
    return splits


def move_rare_labels(located):
    """Move validation rows with a label that training lacks into training, where it can at least be learned."""
    known = {label for _, row in located["train"] for label in labels_of(row)}
    rare = [item for item in located["val"] if not known.issuperset(labels_of(item[1]))]
    if rare and len(rare) < len(located["val"]):
        located |= {"train": located["train"] + rare, "val": [item for item in located["val"] if item not in rare]}
        print(f"{len(rare):,} rows with labels that only they have are moved from validation to training")


def labels_of(row: dict) -> list[str]:
    """The labels of a row of any kind; values that are no label are left out, for check_row to name."""
    labels = row["tags"] if "tags" in row else row["labels"] if "labels" in row else [row.get("label")]
    return [label for label in labels if isinstance(label, str) and label] if isinstance(labels, list) else []


def order_labels(labels) -> list[str]:
    """Each label once: whole numbers by size; else O first, then by name, B-x beside I-x."""
    labels = set(labels)
    if all(re.fullmatch(r"-?\d{1,18}", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels, key=lambda label: (label != "O", re.sub(r"^[BIESMLU]-", "", label), label))


def print_oddities(task: dict, labels_of_rows: list[list[str]]):
    """Print the scheme of tags, or that they have none (then accuracy is the metric); and labels that look alike.

    Raises UserError where none of ten or more labels occurs in two rows: numbers of rows, or texts, not classes.
    """
    counts = Counter(label for labels in labels_of_rows for label in set(labels))
    if len(counts) > 9 and max(counts.values()) == 1:
        raise UserError(f"each of the {len(counts):,} labels of training (column "
                        f"{', '.join(task.get('columns', {}).get('label', ['of tags']))}) occurs in one row only, as a "
                        "row's number or id does; name the column of the classes by --label_column, or learn numbers "
                        "by --kind=regress")
    if task["kind"] == "tag":
        scheme = metrics.tag_scheme(labels_of_rows)
        task["metric"] = "f1" if scheme else "accuracy"
        print(f"tags of entities, in the scheme {scheme}" if scheme else
              "tags of no scheme of entities (IOB, BIOES, BILOU, BMES): plain labels, scored one by one")
    alike = defaultdict(list)
    for label in task["labels"]:
        alike[float(label) if re.fullmatch(r"-?\d{1,15}(\.\d+)?", label) else label.casefold()].append(label)
    for several in alike.values():
        if len(several) > 1:
            print(f"labels that look alike, taken for different ones: {', '.join(several)}")


# ---- checks ------------------------------------------------------------------------------------------------------


def check_splits(task, located):
    """{split: rows} without where they are, answers at their offsets. Raises the UserErrors of load_task."""
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
    if task["kind"] == "regress" and len({row["label"] for _, row in located["val"]}) == 1:
        print("val: every label is the same number, so no correlation can be computed; the least loss decides")
    splits = {split: [row for _, row in items] for split, items in located.items()}
    if task["kind"] != "answer":
        return splits
    for split, rows in splits.items():
        if split != "train" and len({row["id"] for row in rows}) < len(rows):
            raise UserError(f"two {split} questions have the same id; give each its own")
    splits = {split: fix_offsets(rows, split) for split, rows in splits.items()}
    if not splits["train"]:
        raise UserError("no answer of a training question occurs in its context; give the contexts they are taken from")
    return splits


def check_row(task, row, where):
    kind = task["kind"]
    columns = COLUMNS[kind] if not task.get("multi_label") else ("text", "labels")
    if kind not in ("pair", "regress"):
        row.pop("pair", None)  # a column of the file's own, or it would be encoded as a second text
    for name in columns:
        if name not in row:
            raise UserError(f"{where}: no column {name!r}; it has {', '.join(map(str, row)) or 'none'}")
    for name in (*columns, *(("pair",) if kind == "regress" and "pair" in row else ())):
        value = row[name]
        if name in ("words", "tags", "labels"):
            fits = isinstance(value, list) and all(is_text(item) and item.strip(" \t\r\n") for item in value)
            form = "a list of texts"
        elif name == "answers":
            fits = not difference(value, [{"text": str, "start": int}])
            form = 'a list of {"text": ..., "start": whole number}'
        elif name == "label" and kind == "regress":
            fits, form = type(value) in (int, float) and abs(value) < 1e30, "a number below 1e30"
        else:
            fits, form = is_text(value) and (value or name != "label"), "a text"
        if not fits:
            raise UserError(f"{where}: {name} is {value!r:.60}, not {form}")
    if kind == "tag" and len(row["words"]) != len(row["tags"]):
        raise UserError(f"{where}: {len(row['words'])} words but {len(row['tags'])} tags; every word needs its tag")


def is_text(value):
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)  # JSON may bring halves of characters


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


def fix_offsets(rows, split):
    """Answers that are not at their offset are looked up in the context: moved to the nearest occurrence, or dropped.

    Offsets count what most of the split's answers fit, of UNITS. A training question that loses all its answers is left
    out; other splits keep such answers, for scores count them. Prints how many there were, if any, and where an answer
    could be another occurrence.
    """
    def places(row, answer, units):  # where the answer stands by its offset in these units, in characters
        text, context, start = answer["text"], row["context"], answer["start"]
        found = [start if context.isascii() else len(context.encode(code)[:start * size].decode(code, "ignore"))
                 for code, size in units if start >= 0]
        return [at for at in found if text and context.startswith(text, at)]

    fits = Counter(unit for row in rows for answer in row["answers"] for unit in UNITS if places(row, answer, [unit]))
    units = sorted(UNITS, key=lambda unit: -fits[unit])  # equal ones stay in their order
    fixed, moved, missing, several = [], 0, 0, []  # several: the ids of questions whose answer could lie elsewhere
    for row in rows:
        answers = []
        for answer in row["answers"]:
            text, start, at = answer["text"], answer["start"], places(row, answer, units)
            if at[:1] == [start]:
                answers.append(answer)
                continue
            starts = [match.start() for match in re.finditer(re.escape(text), row["context"])] if text else []
            moved, missing = moved + bool(starts), missing + (not starts)
            if starts:
                nearest = min((abs(other - start), other) for other in starts)[1]
                answers.append({"text": text, "start": at[0] if at else nearest})
                several += [row["id"]] * (len(starts) > 1 and not at)
            elif split != "train":
                answers.append(answer)
        if answers or not row["answers"]:
            fixed.append(row | {"answers": answers})
    if moved or missing:
        print(f"{split}: {moved + missing:,} answers not at their offset: {moved:,} found elsewhere in the context, "
              f"{missing:,} not in it; {len(rows) - len(fixed):,} questions left out")
    if several:
        print(f"{split}: {len(several):,} of these answers occur more than once in their context, and the nearest to "
              f"the offset is taken (questions {', '.join(several[:5])}{', ...' * (len(several) > 5)}); mend "
              "their offsets if it is another")
    return fixed


# ---- what the rows hold ------------------------------------------------------------------------------------------


def inputs_of(row: dict) -> tuple:
    """The texts that a model sees of a row; the words of a tag row are a tuple."""
    return tuple(tuple(row[name]) if name == "words" else row[name] for name in INPUTS if name in row)


def count_oddities(rows: list[dict]) -> dict[str, int]:
    """Counts of rows: all; empty (a text or response is blank); duplicates (an earlier row has the same texts, label).

    And conflicts: distinct texts that occur with more than one label.
    """
    targets, counts = defaultdict(set), Counter(rows=len(rows), empty=0, duplicates=0, conflicts=0)
    for row in rows:
        inputs = inputs_of(row)
        target = json.dumps([row[name] for name in TARGETS if name in row], ensure_ascii=False)
        counts["duplicates"] += target in targets[inputs]
        counts["empty"] += not all("".join(text).strip() for text in (*inputs, row.get("response", "none")))
        targets[inputs].add(target)
    counts["conflicts"] = sum(len(several) > 1 for several in targets.values())
    return dict(counts)


def report(task: dict, splits: dict[str, list[dict]], n_tokens: dict | None = None, max_length: int = 0):
    """Print what the splits hold: rows, oddities, labels, and with n_tokens what max_length will cut.

    n_tokens: {split: [tokens of each row, before anything is cut]}. "also in train": rows of other splits whose texts
    training has, with whatever label.
    """
    train = {inputs_of(row) for row in splits["train"]}
    for split, rows in splits.items():
        counts = count_oddities(rows)
        leaks = "" if split == "train" else f", {sum(inputs_of(row) in train for row in rows):,} also in train"
        print(f"{split}: {counts['rows']:,} rows, {counts['empty']:,} empty, {counts['duplicates']:,} duplicates, "
              f"{counts['conflicts']:,} texts with different labels{leaks}")
        if rows and task["kind"] != "generate":
            print(f"  {describe_labels(task, rows)}")
        if n_tokens and n_tokens[split]:
            is_split = task["kind"] in ("tag", "answer") or task.get("long_text") == "windows"
            print(f"  {describe_lengths(n_tokens[split], max_length, is_split)}")


def describe_labels(task: dict, rows: list[dict]) -> str:
    """A line on the targets: each label's count and its percentage of the rows (of the words, for tag)."""
    if task["kind"] == "regress":
        numbers = [row["label"] for row in rows]
        return f"labels from {min(numbers):g} to {max(numbers):g}, mean {sum(numbers) / len(numbers):.3g}"
    if task["kind"] == "answer":
        unanswered = sum(not row["answers"] for row in rows)
        return f"{len({row['context'] for row in rows}):,} contexts, {unanswered:,} questions without an answer"
    counts = Counter(label for row in rows for label in labels_of(row))
    total = max(1, counts.total() if task["kind"] == "tag" else len(rows))
    shown = [f"{label} {number:,} ({100 * number / total:.1f} %)" for label, number in counts.most_common(20)]
    return ", ".join(shown) + (f" and {len(counts) - 20} more" if len(counts) > 20 else "")


def describe_lengths(lengths: list[int], max_length: int = 0, is_split: bool = False) -> str:
    """A line on the numbers of tokens of rows, and on what max_length cuts (is_split: it divides, nothing is lost)."""
    ordered = sorted(lengths)
    median, p90, p99 = (ordered[math.ceil(fraction * len(ordered)) - 1] for fraction in (0.5, 0.9, 0.99))
    line = f"tokens: median {median:,}, 90 % up to {p90:,}, 99 % up to {p99:,}, longest {ordered[-1]:,}"
    if max_length:
        excess = [length - max_length for length in ordered if length > max_length]
        line += (f"; max_length {max_length:,} {'divides' if is_split else 'cuts'} {len(excess):,} rows "
                 f"({100 * len(excess) / len(ordered):.1f} %)")
        line += "" if is_split else f", {100 * sum(excess) / max(1, sum(ordered)):.1f} % of the tokens"
    return line


def save_task(folder, task: dict, splits: dict[str, list[dict]]):
    """Write a folder that load_task reads, task.json last, so that a folder with it is complete; print a report."""
    folder = Path(folder)
    (folder / "task.json").unlink(missing_ok=True)
    for split in SPLITS:
        (folder / f"{split}.jsonl").unlink(missing_ok=True)
    for split, rows in splits.items():
        write_jsonl(folder / f"{split}.jsonl", rows)
    write_json(folder / "task.json", task)
    report(task, splits)
