"""Files of rows: plain lines, .jsonl, .csv and .tsv, CoNLL's words and tags, SQuAD's questions; each may be gzipped.

A reader returns [(where, row)]: a row as a dictionary, and its file and line in words, for error messages. Readers
print what they guess, and raise UserError for a file that is not in their form. Columns are found by their usual
names, in training (whose rows examples.py checks) as in prediction. encoding: as for files.read_blocks.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from nanoft import UserError
from nanoft.files import read_text
from nanoft.tasks.metrics import TAG

TABLES = (".csv", ".tsv", ".jsonl", ".json")
SPREADSHEETS = (".xlsx", ".xls", ".ods")
DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "vertical bar"}
# The usual names of columns in other people's files, for ours. One is taken unasked where it is the only one.
USUAL = {
    "text": "text sentence review content comment document body tweet message text1 text_a sentence1 sentence_a "
            "question1 premise 文本 内容 评论 句子",
    "image": "image picture file filename file_name path image_path img 图片",
    "pair": "pair text2 text_b sentence2 sentence_b question2 hypothesis",
    "label": "label labels gold_label sentiment class category target score rating stars similarity topic intent "
             "标签 类别 情感",
    "prompt": "prompt instruction question input",
    "response": "response answer output completion target",
}


def suffix(path) -> str:
    """The ending of a file's name in small letters, without .gz."""
    return Path(str(path).lower().removesuffix(".gz")).suffix


def read_lines(path, encoding: str = "") -> list[tuple[int, str]]:
    """[(number, line)] of the lines that are not blank."""
    lines = read_text(path, encoding).split("\n")
    return [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]


def read_jsonl(path, encoding: str = "") -> list[tuple[str, dict]]:
    """[(where, row)] of a file with one JSON object per line."""
    located = []
    for number, line in read_lines(path, encoding):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number}: broken JSON ({error}); mend or remove the line") from None
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number}: not a JSON object; a row looks like {{\"text\": ...}}")
        located.append((f"{path} line {number}", row))
    return located


def read_table(path, names: str = "", encoding: str = "") -> tuple[list[str], list[tuple[str, dict]]]:
    """The columns of a table (of JSON: of its first row), and [(where, {column: value})].

    names: of the columns of a file without a header, separated by commas.
    """
    if suffix(path) in SPREADSHEETS:
        raise UserError(f"{path} is a spreadsheet; save it in its program as CSV (UTF-8), and give that file")
    if suffix(path) not in TABLES:
        raise UserError(f"{path}: none of {' '.join(TABLES)}; convert or rename it")
    if suffix(path).startswith(".json"):
        if names:
            raise UserError(f"columns={names}: the rows of {path} have names already; leave it out")
        located = read_jsonl(path, encoding)
        if not located:
            raise UserError(f"{path}: no rows; give a file with text in it")
        return list(located[0][1]), located
    text = read_text(path, encoding)
    numbered = read_fields(path, text, find_delimiter(path, text))
    header = [column.strip() for column in names.split(",")] if names else []
    if numbered and header in ([], [column.strip() for column in numbered[0][1]]):
        header = [column.strip() for column in numbered.pop(0)[1]]
        header = [column or f"column{i}" for i, column in enumerate(header, 1)]
    if not numbered:
        raise UserError(f"{path}: no rows{'' if names else ' under a line with the names of the columns'}; give a file "
                        "with text in it")
    if len(set(header)) < len(header):
        raise UserError(f"{path}: two columns have the same name ({listed(header)}); rename one"
                        + advice_on_names(header, [fields for _, fields in numbered]))
    for number, fields in numbered:
        if len(fields) != len(header):
            source = "--columns" if names else "the first line"
            raise UserError(f"{path} line {number}: {len(fields)} fields where {source} names {len(header)} columns "
                            f"({listed(header)}); mend the line (a comma or quote too many?)")
    return header, [(f"{path} line {number}", dict(zip(header, fields))) for number, fields in numbered]


def listed(columns: Sequence[str]) -> str:
    return ", ".join(f"{column:.40}" for column in columns)


def advice_on_names(header: list[str], rows: Sequence) -> str:
    """The end of a sentence on missing columns, where the first line looks like a row: the names to give."""
    columns = [[str(value) for value in column] for column in zip(header, *rows)]
    if not any(name in column or re.fullmatch(r"[-+.\d]+|.{40,}|\S+(\s+\S+){3,}|.*[.!?。！？]", name)
               for name, *column in columns):
        return ""
    variety = [len({*column}) for column in columns]
    text = max(range(len(columns)), key=lambda i: sum(map(len, columns[i])))
    labels = [i for i in range(len(columns)) if i != text and variety[i] > 1]
    label = min(labels, key=lambda i: variety[i], default=-1)
    names = [{text: "text", label: "label"}.get(i, f"column{i + 1}") for i in range(len(columns))]
    return f"; no header? then name the columns, as by --columns={','.join(names)}"


def find_delimiter(path, text: str) -> str:
    """The usual delimiter of a .csv or .tsv, or else one that gives all of the first rows the same number of fields."""
    usual = "\t" if suffix(path) == ".tsv" else ","
    sample = text[:2**16].replace("\0", "")  # which stops csv in Python 3.10
    for delimiter in (usual, *DELIMITERS):
        rows = list(islice(csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter), 50))
        rows = rows if len(text) <= 2**16 else rows[:-1]  # the last may be cut
        lengths = {len(fields) for fields in rows if any(field.strip() for field in fields)}
        if len(lengths) == 1 and lengths != {1}:
            if delimiter != usual:
                print(f"{path}: its columns are separated by a {DELIMITERS[delimiter]}")
            return delimiter
    return usual


def read_fields(path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """[(number of its first line, fields)] of a separated text; quoted fields may hold delimiters and line ends."""
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


def read_conll(path, text_column: str = "", label_column: str = "", names: str = "",
               encoding: str = "") -> tuple[list[tuple[str, dict]], list[str]]:
    """[(where, {"words", "tags"})] of a file with a word and its tag per line, and an empty line after a sentence.

    Columns are separated by tabs if every line has one, else by spaces; all lines have as many. Comments (# ...) and
    -DOCSTART- lines are left out, but `#` with a tag is a word. The columns are those of conll_columns; their numbers,
    from 1, or names in a header are returned as well, for files of the same form.
    """
    lines = [(number, line.strip(" \r")) for number, line in enumerate(read_text(path, encoding).split("\n"), 1)]
    plain = [line for _, line in lines if line.strip() and not line.startswith(("#", "-DOCSTART-"))]
    has_tabs = all("\t" in line for line in plain)

    def split(line: str) -> list[str]:  # a no-break or ideographic space is part of a word, or a word
        return [field.strip(" ") for field in line.split("\t")] if has_tabs else re.split("[ \t]+", line.strip(" \t"))

    n_columns = Counter(len(split(line)) for line in plain).most_common(1)[0][0] if plain else 0
    rows = [fields for fields in map(split, plain) if len(fields) == n_columns]
    word, tag, has_header = 0, 0, False
    if n_columns > 1:
        word, tag, has_header = conll_columns(path, rows, text_column, label_column, names)
    known = {fields[tag] for fields in rows[has_header:]}
    has_scheme = any(map(TAG.fullmatch, known - {"O"}))
    located, words, tags, first, left_out = [], [], [], 0, Counter(header=has_header)
    for number, line in [*lines, (0, "")]:
        fields = split(line)
        if not line.strip() or line.startswith("-DOCSTART-"):
            left_out["document marks"] += bool(line.strip())
            if words:
                located.append((f"{path} line {first}", {"words": words, "tags": tags}))
            words, tags = [], []
        elif line.startswith("#") and not (len(fields) == n_columns and (
                fields[tag] in known or TAG.fullmatch(fields[tag]) or words and not has_scheme)):
            left_out["comments"] += 1
        elif has_header:
            has_header = False
        elif not 1 < n_columns == len(fields) or not fields[word] or not fields[tag]:
            raise UserError(f"{path} line {number}: {line.strip()!r:.60} is not a word and its tag"
                            f"{f' in {n_columns} columns' if n_columns > 2 else ''}; mend the line")
        else:
            first = first if words else number
            words.append(fields[word])
            tags.append(fields[tag])
    print(f"{path}: words = column {word + 1}, tags = column {tag + 1} of {n_columns}; left out: "
          + (", ".join(f"{number:,} {what}" for what, number in left_out.items() if number) or "nothing"))
    return located, [rows[0][i] if left_out["header"] else str(i + 1) for i in (word, tag)]


def conll_columns(path, rows: list[list[str]], text_column: str, label_column: str, names: str) -> tuple:
    """(column of the words, of the tags, counted from 0; is the first row a header). rows: all of the same length.

    Columns may be given by number, from 1, or by name, from `names` or a header. Else the tags are in the last column
    that looks like tags of a scheme (of two columns: in the second), the words in the first that does not just count.
    Raises UserError.
    """
    columns, n = list(zip(*rows)), len(rows[0])
    below = [column[1:] or column for column in columns]  # what may be a header; slips are allowed for, too
    fitting = [sum(map(bool, map(TAG.fullmatch, column))) >= 0.98 * len(column) for column in below]
    alike = [i for i in range(n) if fitting[i] and any(re.match(r"B$|[BIESMLU]-.", tag) for tag in columns[i])]
    header = [name.strip() for name in names.split(",")] if names else rows[0]

    def find(option: str, given: str) -> int:
        if given.isdigit() and 1 <= int(given) <= n:
            return int(given) - 1
        if given not in header[:n]:
            raise UserError(f"{path}: no column {given!r} ({option}); give the number of one of its {n}, or a name "
                            "from its first line or from --columns")
        return header.index(given)

    if not label_column and not alike and n > 2:
        raise UserError(f"{path}: none of its {n} columns looks like tags (B-x, I-x, O); give the number of one, from "
                        "1, by --label_column, and that of the words by --text_column")
    tag = find("label_column", label_column) if label_column else (alike or [1])[-1]
    others = [i for i in range(n) if i != tag]
    ordinary = [i for i in others if not all(re.fullmatch(r"[\d.-]+", value) for value in below[i])]
    word = find("text_column", text_column) if text_column else (ordinary or others)[0]
    is_named = any(given and not given.isdigit() and given in rows[0] for given in (text_column, label_column))
    is_named |= bool(names) and rows[0] == header
    return word, tag, is_named or len(rows) > 1 and fitting[tag] and not TAG.fullmatch(rows[0][tag])


def read_squad(path, encoding: str = "", has_answers: bool = True) -> list[tuple[str, dict]]:
    """[(where, row)] of a SQuAD file, v1.1 or v2 (arXiv:1606.05250, arXiv:1806.03822). has_answers: are they read?"""
    text, located = read_text(path, encoding), []
    try:
        for paragraph in (paragraph for article in json.loads(text)["data"] for paragraph in article["paragraphs"]):
            for question in paragraph["qas"]:
                answers = [] if question.get("is_impossible") or not has_answers else question["answers"]
                name = str(question.get("id", len(located)))
                located.append((f"{path} question {name}", {
                    "context": paragraph["context"], "question": question["question"], "id": name,
                    "answers": [{"text": a["text"], "start": a["answer_start"]} for a in answers]}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not in SQuAD's form (data, paragraphs, context, qas, question, answers; "
                        f"{type(error).__name__}: {error}); convert it") from None
    return located


# ---- columns by their usual names --------------------------------------------------------------------------------


def choose_columns(path, columns: list[str], wanted: dict[str, tuple[str, str]], optional: str = "",
                   rows: Sequence = ()) -> dict[str, list[str]]:
    """{our name: the table's columns, one or several to be joined}.

    wanted: {our name: (the option for it, its value)}; "" = the column with a usual name. rows: values, for advice.
    Raises UserError for a column that is missing, ambiguous (unless `optional`) or taken twice.
    """
    chosen = {}
    for name, (option, given) in wanted.items():
        usual = [column for column in columns if column.lower() in USUAL.get(name, name).split()]
        several = [given] if given in columns or name in ("label", "response") else re.split(r"\s*,\s*", given)
        for column in several if given else ():
            if column not in columns:
                raise UserError(f"{path}: no column {column!r} ({option}); it has {listed(columns)}"
                                + advice_on_names(columns, rows))
        if given or len(usual) == 1:
            chosen[name] = several if given else usual
        elif name != optional:
            raise UserError(f"{path}: which column is the {name}? Name it by --{option}; it has {listed(columns)}"
                            + advice_on_names(columns, rows))
    taken = [column for several in chosen.values() for column in several]
    if len(set(taken)) < len(taken):
        raise UserError(f"{path}: {describe(chosen)} takes a column twice; it has {listed(columns)}")
    return chosen


def describe(chosen: dict[str, list[str]]) -> str:
    return ", ".join(f"{name} = {' + '.join(columns)}" for name, columns in chosen.items())
