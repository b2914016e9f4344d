"""Rows to predict: from files whose columns are recognised, or from a tool's options; and what is refused."""

import gzip
import json

import pytest

from nanoft import UserError
from nanoft.tasks import inputs


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def rows_of(kind, *args):
    """What a model of this kind reads, and the whole rows."""
    return inputs.prediction_rows({"kind": kind, "labels": ["O", "B-PER", "I-PER"]}, *args)


def test_a_line_of_a_file_has_its_number(tmp_path):
    path = write(tmp_path / "in.txt", "\ufefflovely\r\n\n \n\x0c2nd\u2028half\n")
    lines = [{"line": 1, "text": "lovely"}, {"line": 4, "text": "\x0c2nd\u2028half"}]
    assert rows_of("classify", path) == ([{"text": line["text"]} for line in lines], lines)
    with pytest.raises(UserError, match="in.txt line 4: no pair for a model of kind pair, only line, text; give it as"):
        rows_of("pair", write(tmp_path / "in.txt", "\n\n\nlovely\n"))
    with pytest.raises(UserError, match="in.txt holds no prompt"):
        rows_of("", write(tmp_path / "in.txt", "\n\n"))


@pytest.mark.parametrize("kind, name, content, rows", [
    ("classify", "in.csv", 'id,review,label\n1,"good, ""so""\nto say",pos\n', [{"text": 'good, "so"\nto say'}]),
    ("classify", "in.csv", "text,review\na,b\n", [{"text": "a"}]),
    ("embed", "in.tsv", "Sentence\tn\ngood, so\t1\n", [{"text": "good, so"}]),
    ("pair", "in.csv", "sentence1,sentence2\na,b\n", [{"text": "a", "pair": "b"}]),
    ("regress", "in.csv", "text,label\na,3\n", [{"text": "a"}]),  # its label is a text here
    ("regress", "in.csv", "text,text2\na,b\n", [{"text": "a", "pair": "b"}]),
    ("answer", "in.csv", "question,context\na,b\n", [{"question": "a", "context": "b"}]),
    ("generate", "in.csv", "instruction,output\na,b\n", [{"prompt": "a"}]),
    ("", "in.csv", "prompt\na\n", [{"prompt": "a"}]),
    ("classify", "in.jsonl", '{"review": "a"}\n{"text": "b"}\n', [{"text": "a"}, {"text": "b"}]),
    ("classify", "in.jsonl", '{"text": "a", "pair": 3}\n', [{"text": "a"}]),  # it would be a second text
    ("regress", "in.jsonl", '{"text": "c"}\n{"text": "a", "pair": "b"}\n', [{"text": "c"}, {"text": "a", "pair": "b"}]),
])
def test_columns_to_predict_are_recognised_and_the_others_stay(tmp_path, kind, name, content, rows):
    found, whole = rows_of(kind, write(tmp_path / name, content))
    assert found == rows
    header = content.split("\n")[0].replace("\t", ",").split(",")
    for row, line in zip(whole, content.splitlines()):
        assert row == json.loads(line) if name == "in.jsonl" else [*row] == header
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode("utf-8")))
    assert rows_of(kind, str(tmp_path / f"{name}.gz")) == (found, whole)


CONLL = "# a comment\nAda\tB-PER\nsaid\tO\n\n-DOCSTART-\tO\n\nso\tO\n"


@pytest.mark.parametrize("name, content, words, text, given", [
    ("in.csv", "text\nin Rome\n", [["in", "Rome"]], ["in Rome"], {}),
    ("in.jsonl", '{"words": ["\u6f14", "a b", "c"]}\n', [["\u6f14", "a b", "c"]], ["\u6f14a b c"], {}),
    ("in.jsonl", '{"words": ["x", "."], "text": " x."}\n', [["x", "."]], [" x."], {}),  # the text is theirs
    ("in.jsonl", '{"words": ["x", "."], "text": "y"}\n', [["x", "."]], ["x ."], {}),
    ("in.txt", CONLL, [["Ada", "said"], ["so"]], ["Ada said", "so"], {}),  # by its tags
    ("in.tsv", CONLL, [["Ada", "said"], ["so"]], ["Ada said", "so"], {}),
    ("in.conll", "Ada\nsaid\n\nso\n", [["Ada", "said"], ["so"]], ["Ada said", "so"], {}),  # without tags
    ("in.txt", "Ada\nsaid\n\nso\n", [["Ada"], ["said"], ["so"]], ["Ada", "said", "so"], {}),  # three texts
    ("in.txt", "Ada\nsaid\n\nso\n", [["Ada", "said"], ["so"]], ["Ada said", "so"], {"text_column": "1"}),
    ("in.txt", "1 N Ada\n2 V said\n", [["Ada", "said"]], ["Ada said"], {"text_column": "3", "label_column": "2"}),
    ("in.txt", "vitamin B\nsame here\n", [["vitamin", "B"], ["same", "here"]], ["vitamin B", "same here"], {}),
    ("in.tsv", "n\ttext\n1\tHi, you\n", [["Hi", ",", "you"]], ["Hi, you"], {}),
])
def test_texts_or_words_to_be_tagged(tmp_path, name, content, words, text, given):
    found, whole = rows_of("tag", write(tmp_path / name, content), None, given)
    assert [row["words"] for row in found] == [row["words"] for row in whole] == words
    assert [row["text"] for row in whole] == text
    assert [[row["text"][start:end] for start, end in row["offsets"]] for row in found] == words


SQUAD = {"data": [{"paragraphs": [{"context": "In Rome.", "qas": [{"id": "7", "question": "Where?"}]}]}]}


def test_questions_of_squad_need_no_answers(tmp_path):
    found, whole = rows_of("answer", write(tmp_path / "in.json", json.dumps(SQUAD)))
    assert found == [{"question": "Where?", "context": "In Rome."}] and whole == [{"id": "7"} | found[0]]


REMEMBERED = {"kind": "classify", "columns": {"text": ["title", "body"], "label": ["class"]}}


@pytest.mark.parametrize("task, content, given, text", [
    (REMEMBERED, "id,title,body\n1,a,b\n", {}, "a b"), (REMEMBERED, "text,n\na,b\n", {}, "a"),
    (REMEMBERED, "title,body,text\na,b,c\n", {"text_column": "text"}, "c"),
    (REMEMBERED | {"column_names": "class,title,body"}, "x,a,b\n", {}, "a b"),
    (REMEMBERED | {"column_names": "class,title,body"}, "a,b\n", {}, "a b"),  # without the label
    (REMEMBERED | {"column_names": "class,title,body"}, "body,title\nb,a\n", {}, "a b"),  # with a header after all
    (REMEMBERED, "a,b\n", {"columns": "body,text"}, "b"), (REMEMBERED, "a;b;c\n", {"columns": "title,n,body"}, "a c"),
    (REMEMBERED | {"encoding": "gb18030"}, "title,body\n\u4f60,\u597d\n", {}, "\u4f60 \u597d"),
])
def test_the_columns_of_training_are_remembered(tmp_path, task, content, given, text):
    path = write(tmp_path / "in.csv", content)
    assert inputs.prediction_rows(task, path, None, given)[0] == [{"text": text}]
    if "encoding" in task:
        (tmp_path / "in.csv").write_bytes(content.encode("gb18030"))
        assert inputs.prediction_rows(task, path, None, given)[0] == [{"text": text}]


def test_a_column_that_was_named_must_be_there(tmp_path):
    path = write(tmp_path / "in.csv", "text,n\na,b\n")
    with pytest.raises(UserError, match="no column 'body' .text_column.; it has text, n"):
        rows_of("classify", path, None, {"text_column": "body"})
    (tmp_path / "in.csv").write_bytes("text\ncaf\u00e9\n".encode("latin-1"))
    assert rows_of("classify", path, None, {"encoding": "latin-1"})[0] == [{"text": "caf\u00e9"}]
    with pytest.raises(UserError, match="in.xlsx is a spreadsheet"):
        rows_of("classify", write(tmp_path / "in.xlsx", ""))


def test_numbers_of_pairs_want_both_texts(tmp_path):
    task = {"kind": "regress", "columns": {"text": ["a"], "pair": ["b"], "label": ["n"]}}
    path = write(tmp_path / "in.csv", "text,second\nx,y\n")
    with pytest.raises(UserError, match="which column is the pair"):
        inputs.prediction_rows(task, path, None, {})
    with pytest.raises(UserError, match="no pair"):
        inputs.prediction_rows(task, "", {"text": ["x"]})
    assert rows_of("regress", path, None, {})[0] == [{"text": "x"}]  # trained on single texts


@pytest.mark.parametrize("kind, options, rows", [
    ("classify", {"text": ("a", "b")}, [{"text": "a"}, {"text": "b"}]),
    ("pair", {"text": ["a"], "pair": "b"}, [{"text": "a", "pair": "b"}]),
    ("regress", {"text": ["a"], "pair": ""}, [{"text": "a"}]),
    ("answer", {"question": "a", "context": "b"}, [{"question": "a", "context": "b"}]),
    ("generate", {"text": ["a", "b"]}, [{"prompt": "a"}, {"prompt": "b"}]),
    ("", {"prompt": ""}, [{"prompt": ""}]),
    ("", {}, [{"prompt": "<|endoftext|>"}]),  # a new document
    ("tag", {"text": ["Go!"]}, [{"text": "Go!", "words": ["Go", "!"], "offsets": [[0, 2], [2, 3]]}]),
])
def test_options_spell_out_rows_to_predict(kind, options, rows):
    found, whole = rows_of(kind, "", options)
    assert found == whole == rows


@pytest.mark.parametrize("text, words", [
    ("演员很好看。（iPhone 12）don't go了",  # each Chinese character is a word
     [*"演员很好看。（", "iPhone", "12", "）", "don't", "go", "了"]),
    ("“Dr. No”, U.S. (1,000 at 3.5%): e-mail!",
     ["“", "Dr", ".", "No", "”", ",", "U.S", ".", "(", "1,000", "at", "3.5", "%", ")", ":", "e-mail", "!"]),
    ("@me: #news https://a.b/c?d=e so…", ["@me", ":", "#news", "https://a.b/c?d=e", "so", "…"]),
    ("हिन्दी में\u00a0की", ["हिन्दी", "में", "की"]),  # vowel signs are parts of words
    ("タワーへ go", [*"タワーへ", "go"]),
    (" \n", []),
])
def test_a_text_to_be_tagged_is_split_into_words_and_signs(text, words):
    inputs.add_offsets(found := {"text": text}, "a row")
    assert found["words"] == words == [text[start:end] for start, end in found["offsets"]]


@pytest.mark.parametrize("kind, given, words", [
    ("classify", {"text": ["a"], "pair": "b"}, "--pair means nothing to a model of kind classify; give --text=..."),
    ("embed", {"pair": "b"}, "--pair means nothing"),
    ("pair", {"question": "a"}, "give --text=... --pair=..."),
    ("", {"text": ["a"]}, "--text means nothing to a model that is not fine-tuned for a task; give --prompt=..."),
    ("pair", {"text": ["a"]}, "the command line: no pair for a model of kind pair; give --text=... --pair=..., or an"),
    ("tag", {}, "the command line: no words for a model of kind tag; give --text=..."),
    ("classify", {"text": [""]}, "the command line: no text"),
    ("generate", '{"prompt": "a"}\n\n{"response": "b"}', "in.jsonl line 3: no prompt"),
    ("generate", '{"prompt": 3}', "in.jsonl line 1: prompt is 3, not a text; mend the row"),
    ("regress", '{"text": "a", "pair": null}', "pair is None, not a text"),
    ("tag", '{"words": ["a", 3]}', "words is ['a', 3], not a list of texts"),
    ("classify", '{"text": "a"', "in.jsonl line 1: broken JSON"),
    ("classify", '{"review": "a", "tweet": "b"}', "which column is the text? Name it by --text_column; it has"),
])
def test_what_gives_no_rows_to_predict_is_refused_in_a_sentence(tmp_path, kind, given, words):
    path = write(tmp_path / "in.jsonl", given) if isinstance(given, str) else ""
    with pytest.raises(UserError) as caught:
        rows_of(kind, path, given if not path else None)
    assert words in str(caught.value) and "\n" not in str(caught.value)
