"""Files of rows: plain lines, .jsonl, .csv and .tsv, CoNLL's words and tags, SQuAD's questions; each may be gzipped.

A reader returns [(where, row)]: a row as a dictionary, and its file and line in words, for error messages. Readers
raise UserError for a file that is not in their form. Columns are found by their usual names, in training (whose rows
examples.py checks) as in prediction.
"""

import csv
import io
import json
import re
import sys
from pathlib import Path

from nanoft import UserError
from nanoft.files import read_blocks
from nanoft.text.wordpiece import CHINESE

TABLES = (".csv", ".tsv", ".jsonl")
# The usual names of columns in other people's files, for ours. One is taken unasked where it is the only one.
USUAL = {
    "text": "text sentence review content comment document body tweet message text1 sentence1 question1 premise",
    "pair": "pair text2 sentence2 question2 hypothesis",
    "label": "label labels sentiment class category target score rating stars similarity topic intent",
    "prompt": "prompt instruction question input",
    "response": "response answer output completion target",
}
# The columns that prediction needs where these are not the text alone. "" is a model without a task.
TO_PREDICT = {"": ("prompt",), "generate": ("prompt",), "pair": ("text", "pair"), "regress": ("text", "pair"),
              "answer": ("question", "context")}
SIGNS = f"{CHINESE}\u3001-\u3011！（），：；？"  # each is a word to be tagged, as in Chinese data sets
WORD = re.compile(rf"[{SIGNS}]|[^{SIGNS}\s]+")


def suffix(path) -> str:
    """The ending of a file's name in small letters, without .gz."""
    return Path(str(path).lower().removesuffix(".gz")).suffix


def read_lines(path) -> list[tuple[int, str]]:
    """[(number, line)] of the lines that are not blank."""
    lines = "".join(read_blocks(path)).split("\n")
    return [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]


def read_jsonl(path) -> list[tuple[str, dict]]:
    """[(where, row)] of a file with one JSON object per line."""
    located = []
    for number, line in read_lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path} line {number}: broken JSON ({error}); mend or remove the line") from None
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number}: not a JSON object; a row looks like {{\"text\": ...}}")
        located.append((f"{path} line {number}", row))
    return located


def read_table(path) -> tuple[list[str], list[tuple[str, dict]]]:
    """The columns of a .csv, .tsv or .jsonl file (of the last: of its first row), and [(where, {column: value})]."""
    if suffix(path) not in TABLES:
        raise UserError(f"{path}: none of {' '.join(TABLES)}; convert or rename it")
    if suffix(path) == ".jsonl":
        located = read_jsonl(path)
        if not located:
            raise UserError(f"{path}: no rows; give a file with text in it")
        return list(located[0][1]), located
    numbered = read_fields(path, "\t" if suffix(path) == ".tsv" else ",")
    if len(numbered) < 2:
        raise UserError(f"{path}: no rows under a line with the columns' names; give a file with text in it")
    header = [column.strip() for column in numbered[0][1]]
    if len(set(header)) < len(header):
        raise UserError(f"{path}: two columns have the same name ({', '.join(header)}); rename one")
    for number, fields in numbered:
        if len(fields) != len(header):
            raise UserError(f"{path} line {number}: {len(fields)} fields where the first line names {len(header)} "
                            f"columns ({', '.join(header)}); mend the line (a comma or quote too many?)")
    return header, [(f"{path} line {number}", dict(zip(header, fields))) for number, fields in numbered[1:]]


def read_fields(path, delimiter: str) -> list[tuple[int, list[str]]]:
    """[(number of its first line, fields)] of a separated file; quoted fields may hold delimiters and line ends."""
    text = "".join(read_blocks(path))
    # In many .tsv files a quote is an ordinary character. So where all lines of a .tsv have the same number of fields,
    # no quoted field spans several lines. In a .csv a quote at the beginning of a field always opens a quoted field.
    plain = [(number, [unquote(field) for field in line.rstrip("\r").split(delimiter)])
             for number, line in enumerate(text.split("\n"), 1) if line.strip()] if delimiter == "\t" else []
    if plain and len({len(fields) for _, fields in plain}) == 1:
        return plain
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is less than a long document
    reader, numbered, lines_read = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [], 0
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                numbered.append((lines_read + 1, fields))
            lines_read = reader.line_num
    except csv.Error as error:
        if plain:  # quotes are ordinary after all, but a line lacks fields or has too many; the caller names it
            return plain
        raise UserError(f"{path} line {lines_read + 1}: this row is not csv ({error}); mend its quotes") from None
    return numbered


def unquote(field: str) -> str:
    return field[1:-1].replace('""', '"') if re.fullmatch(r'"(?:[^"]|"")*"', field) else field


def read_conll(path) -> list[tuple[str, dict]]:
    """[(where, {"words", "tags"})] of a file with a word and its tag per line, and an empty line after a sentence.

    Columns are separated by tabs or by spaces; of more than two, the first and the last count. All lines have the same
    number of columns.
    """
    located, words, tags, n_columns = [], [], [], 0
    for number, line in enumerate([*"".join(read_blocks(path)).split("\n"), ""], 1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if words:
                located.append((f"{path} line {number - len(words)}", {"words": words, "tags": tags}))
            words, tags = [], []
            continue
        fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
        n_columns = n_columns or len(fields)
        if len(fields) < 2 or len(fields) != n_columns or not fields[0] or not fields[-1]:
            raise UserError(f"{path} line {number}: {line.strip()!r:.60} is not a word and its tag"
                            f"{f' in {n_columns} columns' if n_columns > 2 else ''}; mend the line")
        words.append(fields[0])
        tags.append(fields[-1])
    return located


def read_squad(path) -> list[tuple[str, dict]]:
    """[(where, row)] of the questions in a SQuAD file, v1.1 or v2 (arXiv:1606.05250, arXiv:1806.03822)."""
    text, located = "".join(read_blocks(path)), []
    try:
        for paragraph in (paragraph for article in json.loads(text)["data"] for paragraph in article["paragraphs"]):
            for question in paragraph["qas"]:
                answers = [] if question.get("is_impossible") else question["answers"]
                name = str(question.get("id", len(located)))
                located.append((f"{path} question {name}", {
                    "context": paragraph["context"], "question": question["question"], "id": name,
                    "answers": [{"text": a["text"], "start": a["answer_start"]} for a in answers]}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not in SQuAD's form (data, paragraphs, context, qas, question, answers; "
                        f"{type(error).__name__}: {error}); convert it") from None
    return located


# ---- columns by their usual names --------------------------------------------------------------------------------


def usual_columns(columns: list[str], name: str) -> list[str]:
    """The columns that have a usual name for our column `name`."""
    return [column for column in columns if column.lower() in USUAL.get(name, name).split()]


def choose_columns(path, columns: list[str], wanted: dict[str, tuple[str, str]], optional: str = "") -> dict[str, str]:
    """{our name: the table's column}. wanted: {our name: (the option for it, its value)}; "" = by its usual name.

    Raises UserError for a column that is missing, ambiguous (unless `optional`) or taken twice.
    """
    chosen = {}
    for name, (option, given) in wanted.items():
        usual = usual_columns(columns, name)
        if given and given not in columns:
            raise UserError(f"{path}: no column {given!r} ({option}); it has {', '.join(columns)}")
        if given or len(usual) == 1:
            chosen[name] = given or usual[0]
        elif name != optional:
            raise UserError(f"{path}: which column is the {name}? Name it by --{option}; it has {', '.join(columns)}")
    if len(set(chosen.values())) < len(chosen):
        raise UserError(f"{path}: {', '.join(f'{name} = {column}' for name, column in chosen.items())} takes a column "
                        f"twice; it has {', '.join(columns)}")
    return chosen


def read_named_table(path, names: tuple) -> list[tuple[str, dict]]:
    """[(where, row)] of a table with our `names`: where it lacks one, its only column with a usual name gets it."""
    columns, located = read_table(path)
    for name in names:
        usual = usual_columns(columns, name)
        if name not in columns and len(usual) == 1:
            print(f"{path}: {name} = {usual[0]}", file=sys.stderr)
            for _, row in located:
                if usual[0] in row:
                    row.setdefault(name, row.pop(usual[0]))
    return located


# ---- rows to predict ---------------------------------------------------------------------------------------------


def prediction_rows(kind: str, path: str = "", options: dict | None = None) -> list[dict]:
    """Rows to predict: those of a file, or those that a tool's options spell out.

    kind: the task's, "embed" for texts without one, or "" for prompts to a model without a task. path: a .csv, .tsv or
    .jsonl table (perhaps gzipped), whose columns are found by their usual names and whose other columns stay; of any
    other file each line that is not blank is a text or prompt, and its row has the number of its `line`. options, read
    without a path: {"prompt", "pair", "question", "context": a text, "text": a list of texts}, those that were given;
    without any, the prompt is a new document. Raises UserError for an option that the kind does not take, for a
    missing or unfit column, and for a file without rows.
    """
    names, options = TO_PREDICT.get(kind, ("text",)), options or {}
    model = f"a model of kind {kind}" if kind else "a model that is not fine-tuned for a task"
    accepted = ("prompt", "text") if kind == "generate" else names
    usage = " ".join(f"--{name}=..." for name in accepted)
    if suffix(path) in TABLES:
        located = read_named_table(path, names)
    elif path:
        located = [(f"{path} line {i}", {"line": i, names[0]: line}) for i, line in read_lines(path)]
    else:
        for name in options:
            if name not in accepted:
                raise UserError(f"--{name} means nothing to {model}; give {usage}")
        texts = options.get("text") or [options.get(names[0], "<|endoftext|>" if names[0] == "prompt" else "")]
        rows = [options | {names[0]: text} for text in texts]
        located = [("the command line", {name: row[name] for name in names if row.get(name) or name == "prompt"})
                   for row in rows]
    for where, row in located:
        if "pair" not in names:
            row.pop("pair", None)  # or it would be encoded as a second text
        text = row.get("text")
        if kind == "tag" and "words" not in row and isinstance(text, str):
            row["words"] = WORD.findall(text)
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


def check_input(value, name, where):
    form, texts = ("list of texts", value) if name == "words" else ("text", [value])
    if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise UserError(f"{where}: {name} is {value!r:.60}, not a {form}; mend the row")
