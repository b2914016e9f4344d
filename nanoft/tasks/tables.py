"""Files of rows in: plain lines, .jsonl, .csv and .tsv, CoNLL's words and tags, SQuAD's questions; each may be gzipped.

A reader gives [(where, row)]: the row as a dictionary, and where it stands in words, for messages about it. What a row
must hold is examples.py's matter.
"""

import csv
import io
import json
import re

from nanoft import UserError
from nanoft.files import read_blocks


def read_lines(path):
    """[(number, line)] of the lines that are not blank."""
    lines = "".join(read_blocks(path)).split("\n")
    return [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]


def read_jsonl(path):
    """[(where, row)] of a file with one JSON object a line. Raises UserError for a line that is none."""
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


def read_table(path):
    """The columns of a .csv, .tsv or .jsonl file, and [(where, row)] with a row as {column: value}."""
    name = str(path).lower().removesuffix(".gz")
    if name.endswith(".jsonl"):
        located = read_jsonl(path)
        if not located:
            raise UserError(f"{path}: no rows; give a file with text in it")
        return list(located[0][1]), located
    if not name.endswith((".csv", ".tsv")):
        raise UserError(f"{path}: none of .csv .tsv .jsonl; convert or rename it")
    numbered = read_fields(path, "\t" if name.endswith(".tsv") else ",")
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


def read_fields(path, delimiter):
    """[(number of its first line, fields)] of a separated file; quoted fields may hold delimiters and line ends."""
    text = "".join(read_blocks(path))
    # In many .tsv files a quote is only a quote: where the lines fit together as they are, none is taken for a bracket
    # round several lines. In a .csv a quote at a field's beginning always is one.
    plain = [(number, [unquote(field) for field in line.rstrip("\r").split(delimiter)])
             for number, line in enumerate(text.split("\n"), 1) if line.strip()] if delimiter == "\t" else []
    if plain and len({len(fields) for _, fields in plain}) == 1:
        return plain
    csv.field_size_limit(2**31 - 1)  # its own limit of 131,072 characters is less than a long document
    reader, numbered, before = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [], 0
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                numbered.append((before + 1, fields))
            before = reader.line_num
    except csv.Error as error:
        if plain:  # not quoted at all, but with a line of its own length, which the caller names
            return plain
        raise UserError(f"{path} line {before + 1}: this row is not csv ({error}); mend its quotes") from None
    return numbered


def unquote(field):
    return field[1:-1].replace('""', '"') if re.fullmatch(r'"(?:[^"]|"")*"', field) else field


def read_conll(path):
    """[(where, {"words", "tags"})] of a file with a word and its tag a line, and an empty line after a sentence.

    Columns are separated by tabs or by spaces; of more than two, the first and the last count. Raises UserError for a
    line with another number of columns than the first.
    """
    located, words, tags, width = [], [], [], 0
    for number, line in enumerate([*"".join(read_blocks(path)).split("\n"), ""], 1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if words:
                located.append((f"{path} line {number - len(words)}", {"words": words, "tags": tags}))
            words, tags = [], []
            continue
        fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
        width = width or len(fields)
        if len(fields) < 2 or len(fields) != width or not fields[0] or not fields[-1]:
            raise UserError(f"{path} line {number}: {line.strip()!r:.60} is not a word and its tag"
                            f"{f' in {width} columns' if width > 2 else ''}; mend the line")
        words.append(fields[0])
        tags.append(fields[-1])
    return located


def read_squad(path):
    """[(where, row)] of the questions in a SQuAD file, v1.1 or v2. Raises UserError for another file."""
    text, located = "".join(read_blocks(path)), []
    try:
        content = json.loads(text)
        for paragraph in (paragraph for article in content["data"] for paragraph in article["paragraphs"]):
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
