"""Rows to predict: what a person gives to a trained model, in any file that training takes, or as options of a tool.

In a task (its dictionary in the checkpoint) `columns` are those of the training table, {our name: [the file's]},
`column_names` the names that a table without a header was given, and `encoding` that of its files. They are tried
first; where they do not fit, columns are found by their usual names.
"""

import sys
from contextlib import redirect_stdout
from pathlib import Path

import regex  # comes with tiktoken

from nanoft import UserError
from nanoft.files import read_text
from nanoft.tasks import images, tables
from nanoft.tasks.metrics import NO_SPACES, TAG, UNSPACED

# The columns that prediction needs where these are not the text alone. "" is a model without a task.
TO_PREDICT = {"": ("prompt",), "generate": ("prompt",), "pair": ("text", "pair"), "regress": ("text", "pair"),
              "answer": ("question", "context"), "image": ("image",)}
OPTIONS = {"pair": "pair_column", "context": "pair_column"}  # that name the columns; of the others text_column
CONLL = (".conll", ".conllu", ".bio", ".iob", ".iob2", ".bioes", ".bmes", ".ner")
# A word to be tagged: a character of a script without spaces, an address, a word with its - ' . inside, or a sign.
LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--[{NO_SPACES}]]"
WORD = regex.compile(rf"(?V1)[{NO_SPACES}]|\w+://\S+|[@#]?{LETTER}+(?:(?:['’.-]|(?<=\d),(?=\d)){LETTER}+)*|\S")


def prediction_rows(task: dict, path: str = "", options: dict | None = None,
                    given: dict | None = None, program: list | None = None) -> tuple[list[dict], list[dict]]:
    """Rows to predict, those of a file, of a tool's options or of a program: what the model reads, and all of it.

    The second list has every column of the file under its own name, for the output. path: a .csv, .tsv or .jsonl table,
    for answer also SQuAD's .json, for tag also a CoNLL file; of any other file each line that is not blank is a text or
    prompt, and its row has the number of its `line`. given: the options text_column, pair_column, label_column, columns
    and encoding, as for training. options, read without a path: {"prompt", "pair", "question", "context": a text,
    "text", "image": a list of texts, or names of files}, those that were given; without any, the prompt is a new
    document. program: rows, or texts, instead of both. task: {"kind": "embed"} for texts without a task, {} for
    prompts. Raises UserError for an option that the kind does not take, for a missing or unfit column, and for a file
    without rows.
    """
    kind, options = task.get("kind", ""), options or {}
    needed = TO_PREDICT.get(kind, ("text",))
    model = f"a model of kind {kind}" if kind else "a model that is not fine-tuned for a task"
    accepted = ("prompt", "text") if kind == "generate" else needed
    usage = " ".join(f"--{name}=..." for name in accepted)
    if program is not None:
        rows = [row if isinstance(row, dict) else {needed[0]: row} for row in program]
        rows = [{name: row[name] for name in (*needed, "words") if name in row} for row in rows]
        located = [(f"row {i}", row, row) for i, row in enumerate(rows, 1)]
    elif path:
        with redirect_stdout(sys.stderr):  # stdout is for predictions
            located = read_input(path, task, needed, {key: value for key, value in (given or {}).items() if value})
        if kind == "image":
            located = [(where, images.resolve([row], Path(path).parent)[0], whole) for where, row, whole in located]
    else:
        for name in options:
            if name not in accepted:
                raise UserError(f"--{name} means nothing to {model}; give {usage}")
        texts = options.get("text") or options.get("image") or [
            options.get(needed[0], "<|endoftext|>" if needed[0] == "prompt" else "")]
        rows = [options | {needed[0]: text} for text in texts]
        rows = [{name: row[name] for name in needed if row.get(name) or name == "prompt"} for row in rows]
        located = [("the command line", row, row) for row in rows]
    for where, row, whole in located:
        if kind == "tag":
            add_offsets(row, where)
            whole |= row
        for name in ("words",) if kind == "tag" else needed:
            if name in row:
                check_input(row[name], name, where)
            elif not (kind == "regress" and name == "pair" and name not in task.get("columns", {})):
                raise UserError(f"{where}: no {name} for {model}" + (
                    f", only {', '.join(whole) or 'nothing'}; give it as a column of that name in a .csv or .jsonl, or "
                    f"name the column by --{OPTIONS.get(name, 'text_column')}" if path else
                    "; add it to the row" if program is not None else
                    f"; give {usage}, or an --input"))
    if not located:
        raise UserError(f"{path} holds no {needed[0]}; write one on each line" if path else "no rows given; give some")
    return [row for _, row, _ in located], [whole for _, _, whole in located]


def check_input(value, name: str, where: str) -> None:
    form, texts = ("list of texts", value) if name == "words" else ("text", [value])
    if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise UserError(f"{where}: {name} is {value!r:.60}, not a {form}; mend the row")


# ---- files -------------------------------------------------------------------------------------------------------


def read_input(path: str, task: dict, needed: tuple, given: dict[str, str]) -> list[tuple[str, dict, dict]]:
    """[(where, what the model reads under our names, the file's row)]. given: the options of prediction_rows."""
    kind, is_table = task.get("kind", ""), tables.suffix(path) in tables.TABLES + tables.SPREADSHEETS
    encoding = given.get("encoding") or usual_encoding(path, task.get("encoding", ""))
    if kind == "answer" and tables.suffix(path) == ".json":
        located = tables.read_squad(path, encoding, has_answers=False)
        return [(where, {name: row[name] for name in needed}, {name: row[name] for name in ("id", *needed)})
                for where, row in located]
    tagged = read_tagged(path, task, given, encoding) if kind == "tag" and (
        not is_table or tables.suffix(path) == ".tsv") else []
    if tagged or not is_table:
        rows = tagged or [(f"{path} line {i}", {"line": i, needed[0]: line})
                          for i, line in tables.read_lines(path, encoding)]
        return [(where, {k: v for k, v in row.items() if k in (*needed, "words")}, row) for where, row in rows]
    header, rows = tables.read_table(path, given.get("columns") or header_names(path, task, encoding), encoding)
    if kind == "tag" and "words" in header:
        return [(where, {name: row[name] for name in ("words", "text") if name in row}, row) for where, row in rows]
    chosen = columns_to_predict(path, header, rows, task, needed, given)
    return [(where, {name: joined(row, name, chosen.get(name, [name])) for name in needed
                     if name in row or name in chosen and {*chosen[name]} <= row.keys()}, row) for where, row in rows]


def columns_to_predict(path: str, header: list[str], rows: list, task: dict, needed: tuple,
                       given: dict[str, str]) -> dict[str, list[str]]:
    """{our name: the table's columns}: the given ones, or those of training, or those with our names or usual ones."""
    wanted = {}
    for name in needed:
        option, known = OPTIONS.get(name, "text_column"), task.get("columns", {}).get(name)
        usual = ",".join(known) if known and {*known} <= {*header} else name if name in header else ""
        wanted[name] = option, given.get(option, usual)
    one_text = task.get("kind") == "regress" and "pair" not in task.get("columns", {})
    chosen = tables.choose_columns(path, header, wanted, "pair" if one_text else "",
                                   [[*row.values()] for _, row in rows])
    if any(columns != [name] for name, columns in chosen.items()):
        print(f"{path}: {tables.describe(chosen)}")
    return chosen


def joined(row: dict, name: str, columns: list[str]):
    """The value of a table's column, or several texts as one; of a JSON row without them, of the column `name`."""
    values = [row[column] for column in columns] if {*columns} <= row.keys() else [row[name]]
    unfit = [value for value in values if not isinstance(value, str)]
    return unfit[0] if unfit else " ".join(values)


def header_names(path: str, task: dict, encoding: str) -> str:
    """The names that a table without a header was given in training, unless this one's first line has those it needs.

    A table with fewer columns lacks those of the labels.
    """
    names = [name.strip() for name in task.get("column_names", "").split(",") if name.strip()]
    if not names or tables.suffix(path).startswith(".json"):
        return ""
    text = read_text(path, encoding)
    first = [field.strip() for _, fields in tables.read_fields(path, text, tables.find_delimiter(path, text))[:1]
             for field in fields]
    known = task.get("columns", {})
    labels = {column for name in ("label", "response") for column in known.get(name, ())}
    inputs = {column for columns in known.values() for column in columns} - labels
    if inputs <= {*first}:
        return ""
    unlabelled = [name for name in names if name not in labels]
    return ",".join(unlabelled if len(first) == len(unlabelled) else names)


def usual_encoding(path: str, encoding: str) -> str:
    """The encoding of the training files for a file that is not UTF-8 (or UTF-16 by its byte-order mark), else ""."""
    if encoding:
        try:
            read_text(path)
        except UserError:
            return encoding
    return ""


def read_tagged(path: str, task: dict, given: dict[str, str], encoding: str) -> list[tuple[str, dict]]:
    """[(where, row)] of a CoNLL file, with tags or without; empty where the file seems to hold plain texts.

    It is one if its name or an option says so, or if a column holds nothing but tags.
    """
    columns = [given.get(f"{name}_column") or (task.get("columns", {}).get(ours) or [""])[0]
               for name, ours in (("text", "words"), ("label", "tags"))]
    is_conll = tables.suffix(path) in CONLL or bool(given.keys() & {"text_column", "label_column"})
    for word, tag in dict.fromkeys([tuple(columns), ("", "")]):
        try:
            located, _ = tables.read_conll(path, word, tag, given.get("columns", ""), encoding)
        except UserError:
            if given.get("label_column"):
                raise
            continue
        tags = {tag for _, row in located for tag in row["tags"]}
        if is_conll or all(tag in task["labels"] or TAG.fullmatch(tag) for tag in tags):
            return located
    return read_words(path, columns[0], encoding) if is_conll else []


def read_words(path: str, column: str, encoding: str) -> list[tuple[str, dict]]:
    """[(where, row)] of a file with a word a line, in this column (a number, else 1); a blank line ends a sentence."""
    index, located, words, first = int(column) - 1 if column.isdigit() else 0, [], [], 0
    for number, line in enumerate([*read_text(path, encoding).split("\n"), ""], 1):
        if line.strip() and not line.startswith(("# ", "-DOCSTART-")):
            first, fields = first if words else number, line.split()
            words.append(fields[min(index, len(fields) - 1)])
        elif not line.strip() and words:
            located.append((f"{path} line {first}", {"words": words}))
            words = []
    return located


# ---- words of texts ----------------------------------------------------------------------------------------------


def add_offsets(row: dict, where: str) -> None:
    """Give a row to be tagged its text, the `words` in it, and `offsets`: the first character and the end of each.

    Words without a text, or with another one, are joined by spaces, but not in scripts without them.
    """
    if "words" not in row:
        if isinstance(row.get("text"), str):
            matches = list(WORD.finditer(row["text"]))
            row |= {"words": [match.group() for match in matches], "offsets": [list(match.span()) for match in matches]}
        return
    check_input(row["words"], "words", where)
    offsets = find_words(row["words"], row.get("text"))
    if not offsets:
        text = ""
        for word in row["words"]:
            text += " " * bool(text and not UNSPACED.match(text[-1]) and not UNSPACED.match(word)) + word
            offsets.append([len(text) - len(word), len(text)])
        row["text"] = text
    row["offsets"] = offsets


def find_words(words: list[str], text) -> list[list[int]]:
    """The offsets of words that occur in a text in this order, with nothing but space between them; [] if not."""
    offsets, end = [], 0
    for word in words if isinstance(text, str) else ():
        start = text.find(word, end)
        if start < 0 or text[end:start].strip():
            return []
        end = start + len(word)
        offsets.append([start, end])
    return offsets
