"""Labelled examples: tables and folders in, what is refused and in which words, splits, and the report's counts."""

import gzip
import json

import pytest

from nanoft import UserError, files
from nanoft.tasks import examples

REVIEWS = [(f"film number {i} was {'fine' if i % 2 else 'dull'}", "pos" if i % 2 else "neg") for i in range(40)]
CLASSIFY = {"kind": "classify", "labels": ["neg", "pos"], "metric": "accuracy"}
COLUMNS = {"text": ["review"], "label": ["sentiment"]}  # of as_table's tables


def write(path, content):
    """Write a text, bytes, or rows as .jsonl; give the path."""
    if isinstance(content, list):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def write_folder(folder, task, **splits):
    write(folder / "task.json", json.dumps(task))
    for split, rows in splits.items():
        write(folder / f"{split}.jsonl", rows)
    return folder


def as_table(rows, delimiter=",", header=("review", "sentiment")):
    return "\n".join(delimiter.join(fields) for fields in [header, *rows]) + "\n"


def squad(*questions, context="Ada Lovelace wrote to Charles Babbage, and Babbage wrote back."):
    """A SQuAD file of one paragraph: questions as (id, [(text, start)]), no answers standing for is_impossible."""
    qas = [{"id": name, "question": f"who {name}?", "is_impossible": not answers,
            "answers": [{"text": text, "answer_start": start} for text, start in answers],
            "plausible_answers": [{"text": "Ada", "answer_start": 0}]} for name, answers in questions]
    return {"title": "t", "paragraphs": [{"context": context, "qas": qas}]}


# --- folders -----------------------------------------------------------------------------------------------------

FOLDERS = {
    "classify": (CLASSIFY, [{"text": "好", "label": "pos"}, {"text": "坏", "label": "neg"}]),
    "multi": ({"kind": "classify", "labels": ["a", "b"], "metric": "f1", "multi_label": True},
              [{"text": "x", "labels": ["a", "b"]}, {"text": "y", "labels": []}]),
    "pair": ({"kind": "pair", "labels": ["0", "1"], "metric": "f1"},
             [{"text": "x", "pair": "y", "label": "0"}, {"text": "x", "pair": "x", "label": "1"}]),
    "regress": ({"kind": "regress", "metric": "pearson"},
                [{"text": "x", "pair": "y", "label": 0}, {"text": "z", "pair": "y", "label": 2.5}]),
    "tag": ({"kind": "tag", "labels": ["O", "B-x"], "metric": "f1"},
            [{"words": ["a", "b"], "tags": ["O", "B-x"]}, {"words": ["c"], "tags": ["O"]}]),
    "answer": ({"kind": "answer", "metric": "f1"},
               [{"context": "a b c", "question": "q", "id": "1", "answers": [{"text": "b", "start": 2}]},
                {"context": "a b c", "question": "r", "id": "2", "answers": []}]),
    "generate": ({"kind": "generate", "metric": "loss"}, [{"prompt": "a", "response": "b"}]),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_saved_folder_is_what_is_loaded(tmp_path, capsys, name):
    task, rows = FOLDERS[name]
    write(tmp_path / "test.jsonl", "of an earlier preparation")
    examples.save_task(tmp_path, task, {"train": rows, "val": rows})
    assert f"val: {len(rows)} rows" in capsys.readouterr().out
    assert examples.load_task(tmp_path) == (task, {"train": rows, "val": rows})
    examples.save_task(tmp_path, task, {"train": rows, "val": rows, "test": rows[:1]})
    assert examples.load_task(tmp_path)[1]["test"] == rows[:1]
    assert not list(tmp_path.glob("*.tmp"))


GOOD = [{"text": f"{i}", "label": label} for i, label in enumerate(["pos", "neg"] * 3)]
TAG, ANSWER = FOLDERS["tag"][0], FOLDERS["answer"][0]
TAG_ROWS, ANSWER_ROWS = FOLDERS["tag"][1], FOLDERS["answer"][1]


@pytest.mark.parametrize("task, train, val, words", [
    (CLASSIFY, GOOD, json.dumps(GOOD[0]) + '\n\n{"text": \n', ["val.jsonl line 3", "broken JSON"]),
    (CLASSIFY, GOOD, "[1]\n", ["val.jsonl line 1", "not a JSON object"]),
    (CLASSIFY, GOOD, [{"review": "x", "label": "pos"}], ["val.jsonl line 1: no column 'text'; it has review, label"]),
    (CLASSIFY, GOOD, [*GOOD, {"text": "x", "label": "x"}],
     ["label 'x' in ", "val.jsonl line 7 does not occur in training"]),
    (CLASSIFY, [*GOOD, {"text": "x", "label": "x"}], GOOD, ["label 'x' in ", "train.jsonl line 7 is not among"]),
    (CLASSIFY, GOOD[:1], GOOD, ["one class only (pos)"]),
    (CLASSIFY | {"labels": ["neg", "pos", "so so"]}, GOOD, GOOD, ["'so so' has no example in training"]),
    (CLASSIFY, GOOD, "", ["validation set has no rows"]),
    (CLASSIFY, "\n", GOOD, ["training set has no rows"]),
    (CLASSIFY, GOOD, [{"text": None, "label": "pos"}], ["line 1: text is None, not a text"]),
    (CLASSIFY, GOOD, [{"text": "x", "label": ""}], ["line 1: label is '', not a text"]),
    (CLASSIFY, GOOD, [{"text": "x", "label": 1}], ["line 1: label is 1, not a text"]),
    (CLASSIFY, GOOD, '{"text": "\\ud800", "label": "pos"}\n', ["line 1: text is", "not a text"]),
    (CLASSIFY, GOOD, b'{"text": "\xff"}', ["val.jsonl: byte 10 is not UTF-8"]),
    (CLASSIFY | {"kind": "sort"}, GOOD, GOOD, ["task.json: its content['kind'] is 'sort', not one of"]),
    ({"kind": "classify", "metric": "accuracy"}, GOOD, GOOD, ["task.json", "needs its labels"]),
    (TAG, TAG_ROWS, [{"words": ["a", "b"], "tags": ["O"]}], ["val.jsonl line 1: 2 words but 1 tags"]),
    (TAG, TAG_ROWS, [{"words": "a b", "tags": ["O"]}], ["words is 'a b', not a list of texts"]),
    (TAG, TAG_ROWS, [{"words": ["a"], "tags": ["B-y"]}], ["label 'B-y' in ", "does not occur in training"]),
    (TAG, TAG_ROWS[1:], TAG_ROWS, ["one class only (O)"]),
    (ANSWER, ANSWER_ROWS, [ANSWER_ROWS[0] | {"answers": ["b"]}], ["line 1: answers is ['b'], not a list of"]),
    ({"kind": "regress", "metric": "pearson"}, [{"text": "x", "label": float("nan")}], GOOD, ["nan, not a number"]),
    ({"kind": "regress", "metric": "pearson"}, [{"text": "x", "label": 1}], [{"text": "x", "label": 2}],
     ["same number"]),
    ({"kind": "regress", "metric": "pearson"}, [{"text": "x", "pair": 3, "label": 1}], GOOD, ["pair is 3"]),
])
def test_a_bad_folder_is_refused_in_a_sentence(tmp_path, task, train, val, words):
    with pytest.raises(UserError) as caught:
        examples.load_task(write_folder(tmp_path, task, train=train, val=val))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_its_files_is_refused(tmp_path):
    with pytest.raises(UserError, match="prepare the data set first"):
        examples.load_task(tmp_path)
    with pytest.raises(UserError, match="val.jsonl: cannot be read"):
        examples.load_task(write_folder(tmp_path, CLASSIFY, train=GOOD))


# --- the user's own tables ---------------------------------------------------------------------------------------

def test_csv_with_everything_a_csv_may_have(tmp_path, capsys):
    rows = [(f'"{text}, said ""{i}""\nand 好"', f" {label} ") for i, (text, label) in enumerate(REVIEWS)]
    path = write(tmp_path / "r.CSV", b"\xef\xbb\xbf" + as_table(rows).replace("\n", "\r\n").encode() + b"\r\n\r\n")
    task, splits = examples.from_table(path, "classify")
    assert task == CLASSIFY | {"columns": COLUMNS} and "text = review, label = sentiment" in capsys.readouterr().out
    both = splits["train"] + splits["val"]
    texts = [f'{text}, said "{i}"\r\nand 好' for i, (text, _) in enumerate(REVIEWS)]
    assert sorted(row["text"] for row in both) == sorted(texts)
    assert {row["label"] for row in both} == {"neg", "pos"} and "test" not in splits


def test_every_form_of_a_table_gives_the_same_rows(tmp_path):
    expected = examples.from_table(write(tmp_path / "r.csv", as_table(REVIEWS)), "classify", val_fraction=0.3)
    assert 3 < len(expected[1]["val"]) < 25
    tsv = as_table(REVIEWS, "\t")
    jsonl = "\n\n".join(json.dumps({"review": text, "sentiment": label, "id": 3}) for text, label in REVIEWS)
    for path in (write(tmp_path / "r.tsv", tsv), write(tmp_path / "r.tsv.gz", gzip.compress(tsv.encode())),
                 write(tmp_path / "r.jsonl", jsonl)):
        assert examples.from_table(path, "classify", val_fraction=0.3) == expected


def test_quotes_in_tsv(tmp_path):
    """Bare quotes are text; quotes round a whole field are not; quotes round line ends are seen where lines break."""
    bare = as_table([('" so', "neg"), ('x"', "pos"), ('"a ""b"" c"', "neg"), *REVIEWS], "\t")
    split = examples.from_table(write(tmp_path / "a.tsv", bare), "classify")[1]
    assert {'" so', 'x"', 'a "b" c'} <= {row["text"] for row in split["train"] + split["val"]}
    broken = as_table([('"a\nb"', "neg"), *REVIEWS], "\t")
    split = examples.from_table(write(tmp_path / "b.tsv", broken), "classify")[1]
    assert "a\nb" in {row["text"] for row in split["train"] + split["val"]}


@pytest.mark.parametrize("name, encode, options, said", [
    ("a.csv", lambda text: text.replace(",", ";"), {}, "separated by a semicolon"),
    ("a.csv", lambda text: text.replace(",", "\t"), {}, "separated by a tab"),
    ("a.tsv", lambda text: text.replace(",", "|"), {}, "separated by a vertical bar"),
    ("a.tsv", lambda text: text, {}, "separated by a comma"),
    ("a.csv", lambda text: text.replace("\n", "\r"), {}, ""),
    ("a.tsv", lambda text: text.replace(",", "\t").replace("\n", "\r"), {}, ""),
    ("a.csv", lambda text: text.encode("utf-16"), {}, ""),  # with a byte-order mark
    ("a.csv", lambda text: b"\xfe\xff" + text.encode("utf-16-be"), {}, ""),
    ("a.csv", lambda text: text.encode("utf-16-le"), {"encoding": "utf-16-le"}, ""),
    ("a.csv", lambda text: text.encode("gb18030"), {"encoding": "gb18030"}, ""),
    ("a.csv.gz", lambda text: gzip.compress(text.encode("gb18030")), {"encoding": "GB18030"}, ""),
    ("a.csv", lambda text: text.partition("\n")[2], {"columns": "review, sentiment"}, ""),
    ("a.csv", lambda text: text, {"columns": "review,sentiment"}, ""),  # it has a header after all
])
def test_tables_as_people_have_them(tmp_path, capsys, name, encode, options, said):
    text = as_table([(f"{text} 好", label) for text, label in REVIEWS])
    expected = examples.from_table(write(tmp_path / "right.csv", text), "classify")
    capsys.readouterr()
    task, splits = examples.from_table(write(tmp_path / name, encode(text)), "classify", **options)
    remembered = {"column_names" if key == "columns" else key: value for key, value in options.items()}
    assert (task, splits) == (expected[0] | remembered, expected[1])  # for sample.py
    assert said in (printed := capsys.readouterr().out) and ("separated" in printed) == bool(said)


def test_semicolons_with_long_fields_and_chinese_names(tmp_path):
    rows = [(str(i), f'"{i}: 好；, not; bad,\n{"word, " * 2000}"', "好坏"[i % 2]) for i in range(30)]
    path = write(tmp_path / "a.csv", as_table(rows, ";", ("编号", "内容", "情感")))
    task, splits = examples.from_table(path, "classify")
    assert task["labels"] == ["坏", "好"] and splits["train"][0]["text"].startswith("0: 好；, not; bad,\nword, word")


def test_columns_may_be_joined_and_nul_is_a_character(tmp_path):
    rows = [(str(i % 2), f"title {i}", f"a\0b, {i}") for i in range(30)]
    path = write(tmp_path / "a.csv", "".join(f'{label},{title},"{text}"\n' for label, title, text in rows))
    options = {"columns": "class,title,description", "text_column": "title, description"}
    task, splits = examples.from_table(path, "classify", **options)
    assert task["labels"] == ["0", "1"] and task.pop("column_names") == options["columns"]
    assert {row["text"] for rows in splits.values() for row in rows} == {f"title {i} a\0b, {i}" for i in range(30)}
    path = write(tmp_path / "b.jsonl", [dict(zip(("class", "title", "description"), row)) for row in rows])
    assert examples.from_table(path, "classify", text_column="title,description") == (task, splits)


def test_labels_that_look_alike(tmp_path, capsys):
    rows = [(f"{text} {i}", ["very good", "very  good", "Very\u00a0good", " bad"][i % 4])
            for i, (text, _) in enumerate(REVIEWS)]
    task, _ = examples.from_table(write(tmp_path / "a.csv", as_table(rows)), "classify")
    assert task["labels"] == ["Very good", "bad", "very good"]
    assert "labels that look alike, taken for different ones: Very good, very good" in capsys.readouterr().out
    rows = [(text, "more", ["1", "1.0", "0"][i % 3]) for i, (text, _) in enumerate(REVIEWS)]
    path = write(tmp_path / "two.csv", as_table(rows, header=("sentence1", "sentence2", "label")))
    examples.from_table(path, "classify")
    said = capsys.readouterr().out
    assert "label = label (sentence2 is not read; --kind=pair does)" in said and "different ones: 1, 1.0" in said
    rows = [(text, ["0", "00", "1", "-0"][i % 4]) for i, (text, _) in enumerate(REVIEWS)]
    task, _ = examples.from_table(write(tmp_path / "b.csv", as_table(rows)), "classify")
    assert task["labels"] == ["-0", "0", "00", "1"]  # in every process
    assert "ones: -0, 0, 00\n" in capsys.readouterr().out


def test_long_fields_are_read(tmp_path):
    rows = [*REVIEWS, ("word " * 50_000, "pos")]
    splits = examples.from_table(write(tmp_path / "r.csv", as_table(rows)), "classify")[1]
    assert max(len(row["text"]) for rows in splits.values() for row in rows) == 250_000


def test_labels_of_every_kind(tmp_path):
    def table(name, header, rows, kind, **options):
        return examples.from_table(write(tmp_path / name, as_table(rows, header=header)), kind, **options)

    rows = [(text, str(i % 12)) for i, (text, _) in enumerate(REVIEWS * 3)]
    assert table("n.csv", ("text", "class"), rows, "classify")[0]["labels"] == [str(i) for i in range(12)]
    rows = [(f"{text} {i}", ["fun | short", "", "short"][i % 3]) for i, (text, _) in enumerate(REVIEWS)]
    task, splits = table("m.csv", ("text", "topic"), rows, "classify", separator="|")
    assert task == CLASSIFY | {"labels": ["fun", "short"], "multi_label": True, "metric": "micro_f1", "separator": "|",
                               "columns": {"text": ["text"], "label": ["topic"]}}
    assert {tuple(row["labels"]) for row in splits["train"]} == {("fun", "short"), (), ("short",)}
    lines = [{"text": f"{text} {i}", "label": [None, ["a", None], float("nan"), 0][i % 4]}
             for i, (text, _) in enumerate(REVIEWS)]
    task, splits = examples.from_table(write(tmp_path / "m.jsonl", lines), "classify", separator="|")
    assert task["labels"] == ["0", "a"] and {tuple(row["labels"]) for row in splits["train"]} == {(), ("a",), ("0",)}
    rows = [(text, f"{text} again", str(i / 4)) for i, (text, _) in enumerate(REVIEWS)]
    task, splits = table("s.csv", ("sentence1", "sentence2", "score"), rows, "regress")
    assert task == {"kind": "regress", "metric": "pearson", "columns": {
        "text": ["sentence1"], "label": ["score"], "pair": ["sentence2"]}}
    assert set(splits["val"][0]) == {"text", "pair", "label"} and type(splits["val"][0]["label"]) is float
    rows = [(text, pair, label.partition(".")[0]) for text, pair, label in rows]
    task, splits = table("s.csv", ("premise", "hypothesis", "label"), rows, "pair", val_fraction=0.3,
                         val_file=tmp_path / "s.csv")
    assert len(task["labels"]) == 10 and splits["val"] == splits["train"]
    rows = [(text, label) for text, label in REVIEWS]
    task, splits = table("g.csv", ("Instruction", "Output"), rows, "generate")
    assert task.pop("columns") == {"prompt": ["Instruction"], "response": ["Output"]}
    assert task == {"kind": "generate", "metric": "loss"} and set(splits["train"][0]) == {"prompt", "response"}
    flags = [{"text": text, "label": label == "pos"} for text, label in REVIEWS]
    assert examples.from_table(write(tmp_path / "b.jsonl", flags), "classify")[0]["labels"] == ["False", "True"]


@pytest.mark.parametrize("name, content, options, words", [
    ("a.csv", as_table(REVIEWS), {"text_column": "revue"}, ["no column 'revue' (text_column); it has review, senti"]),
    ("a.csv", as_table(REVIEWS, header=("text", "content")), {}, ["which column is the text?", "it has text, content"]),
    ("a.csv", as_table(REVIEWS, header=("a", "b")), {}, ["which column is the text?", "--text_column", "it has a, b"]),
    ("a.csv", as_table(REVIEWS), {"label_column": "review"}, ["takes a column twice"]),
    ("a.csv", as_table(REVIEWS, header=("x", "x")), {}, ["two columns have the same name"]),
    ("a.csv", as_table([*REVIEWS, ("a", "b", "c")]), {}, ["a.csv line 42: 3 fields where the first line names 2"]),
    ("a.tsv", as_table([('" a', "neg"), ("b",)], "\t"), {}, ["a.tsv line 3: 1 fields"]),
    ("a.csv", as_table([('"a" b', "neg")]), {}, ["a.csv line 2: this row is not csv"]),
    ("a.csv", as_table([('"a', "neg"), ("b", "pos")]), {}, ["a.csv line 2: this row is not csv"]),
    ("a.csv", as_table([*REVIEWS, ("a", "")]), {"val_fraction": 0.5}, ["a.csv line 42: label is '', not a text"]),
    ("a.csv", "", {}, ["a.csv: no rows"]),
    ("a.csv", "review,sentiment\n", {}, ["a.csv: no rows"]),
    ("a.jsonl", "", {}, ["no rows"]),
    ("a.jsonl", [{"review": "a", "sentiment": "b"}, {"review": "c"}], {},
     ["a.jsonl line 2: no column 'sentiment'; it has review"]),
    ("a.csv", as_table([(text, "pos") for text, _ in REVIEWS]), {}, ["one class only (pos)"]),
    ("a.csv", as_table(REVIEWS), {"val_fraction": 0}, ["val_fraction=0 of its 40 rows leaves the val"]),
    ("a.csv", as_table(REVIEWS), {"val_fraction": 1}, ["leaves the training set empty"]),
    ("a.csv", as_table(REVIEWS), {"kind": "regress"}, ["a.csv line 2: the label 'neg' is not a number"]),
    ("a.parquet", "PAR1", {}, ["none of .csv .tsv .jsonl"]),
    ("a.xlsx", "PK", {}, ["a.xlsx is a spreadsheet; save it", "as CSV"]),
    ("a.ods.gz", "PK", {}, ["a spreadsheet"]),
    ("a.csv", '3,"Cables, and more",We all know them.\n4,Ships,They sail.\n3,Ropes,They hold the ships.\n', {},
     ["which column is the text?", "no header? then name the columns, as by --columns=label,column2,text"]),
    ("a.tsv", "ks08\t1\t\tShe sleeps.\ncj99\t0\t*\tHer sleep much.\nks09\t1\t\tThey sing a song.\n", {},
     ["--columns=column1,label,column3,text"]),
    ("a.csv", "yes,yes\nyes,no\n", {}, ["two columns have the same name", "no header?"]),
    ("a.csv", "a,b\nc,d\n", {"columns": "text"}, ["a.csv line 1: 2 fields where --columns names 1 columns (text)"]),
    ("a.jsonl", [{"text": "a", "label": "b"}], {"columns": "text,label"}, ["columns=text,label: the rows of"]),
    ("a.csv", as_table(REVIEWS), {"text_column": "review,title"}, ["no column 'title' (text_column); it has review,"]),
    ("a.csv", as_table(REVIEWS), {"text_column": "review,review"}, ["text = review + review, label = sentiment takes"]),
    ("a.jsonl", [{"a": "x", "b": None, "label": "1"}], {"text_column": "a,b"}, ["line 1: b is None, not a text"]),
    ("a.jsonl", [{"text": f"x {i}", "label": float("nan")} for i in range(9)], {}, ["label is nan, not a text"]),
    ("a.csv", "text,label\n好吃,正\n难吃,负\n".encode("gb18030"), {},
     ["byte 11 is not UTF-8", "--encoding=gb18030, by which the line reads '好吃,正'"]),
    ("a.csv", "text,label\nnaïve,a\ncliché,b\n".encode("latin-1"), {},
     ["byte 13 is not UTF-8", "--encoding=latin-1, by which the line reads 'naïve,a'"]),
    ("a.csv", "text,label\nso “naïve”,a\n".encode("cp1252"), {}, ["--encoding=cp1252", "'so “naïve”,a'"]),
    ("a.csv", as_table(REVIEWS).encode("utf-16-be"), {}, ["bytes of 0", "--encoding=utf-16-be"]),
    ("a.csv", "text,label\né,a\n", {"encoding": "ascii"}, ["byte 11 is not ASCII", "another --encoding"]),
    ("a.csv", as_table(REVIEWS), {"encoding": "utf9"}, ["encoding=utf9 is unknown"]),
    ("a.csv", as_table(REVIEWS), {"encoding": "hex"}, ["encoding=hex is unknown"]),
    ("a.csv", as_table([("same", label) for _, label in REVIEWS]), {}, ["set empty (1 texts are different)"]),
    ("a.csv", as_table([(text, "1e300") for text, _ in REVIEWS]), {"kind": "regress"}, ["not a number below 1e30"]),
    ("a.jsonl", [{"text": "a", "label": 10**400}], {"kind": "regress"}, ["is not a number; regress"]),
    ("a.conll", "EU X Y\nsays X Y\n\n", {"kind": "tag"}, ["none of its 3 columns looks like tags", "--label_column"]),
    ("a.conll", "EU X B-org\n", {"kind": "tag", "label_column": "4"}, ["no column '4' (label_column)", "of its 3"]),
    ("a.conll", "EU\n", {"kind": "tag"}, ["line 1: 'EU' is not a word and its tag"]),
    ("a.json", json.dumps({"data": [squad(("a", [("Byron", 0)]), ("b", [("Keats", 0)]))]}),
     {"kind": "answer", "val_fraction": 0.0, "val_file": "a.json"}, ["no answer of a training question occurs in its"]),
    ("a.json", json.dumps({"data": [squad(("a", [("Ada", 0)]), ("a", [("Babbage", 30)]))]}),
     {"kind": "answer", "val_file": "a.json"}, ["questions have the same id"]),
    ("a.csv", b"review,sentiment\n\xff,pos\n", {}, ["byte 17 is not UTF-8"]),
    ("a.conll", "EU B-org\nrejects\n", {"kind": "tag"}, ["a.conll line 2: 'rejects' is not a word and its tag"]),
    ("a.conll", "EU NNP B-org\nsays O\n", {"kind": "tag"}, ["line 2", "in 3 columns"]),
    ("a.conll", "", {"kind": "tag"}, ["no rows"]),
    ("a.json", "{", {"kind": "answer"}, ["not in SQuAD's form"]),
    ("a.json", '{"data": [{"paragraphs": [{"qas": []}, {"qas": [{}]}]}]}', {"kind": "answer"}, ["'answers'"]),
])
def test_a_bad_table_is_refused_in_a_sentence(tmp_path, name, content, options, words):
    path = write(tmp_path / name, content)
    options = options | ({"val_file": path} if "val_file" in options else {})
    with pytest.raises(UserError) as caught:
        examples.from_table(path, **{"kind": "classify"} | options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_that_validation_alone_has_is_named(tmp_path):
    path = write(tmp_path / "a.csv", as_table(REVIEWS))
    other = write(tmp_path / "b.csv", as_table([("x", "pos"), ("y", "so so")]))
    with pytest.raises(UserError, match=r"label 'so so' in .*b.csv line 3 does not occur in training"):
        examples.from_table(path, "classify", val_file=other)
    with pytest.raises(UserError, match="b.csv line 3 does not occur"):
        examples.from_table(path, "classify", test_file=other)
    with pytest.raises(UserError, match=r"c.csv line 2: no column 'review'; it has text, sentiment"):
        examples.from_table(path, "classify", val_file=write(tmp_path / "c.csv", "text,sentiment\na,pos\n"))


def test_conll(tmp_path):
    tabs = "-DOCSTART-\tO\n\n" + "".join(f"New York{i}\tB-loc\n!\tO\n \t\n" for i in range(20))
    task, splits = examples.from_table(write(tmp_path / "a.conll", tabs), "tag")
    assert task == {"kind": "tag", "metric": "f1", "labels": ["O", "B-loc"], "columns": {"words": ["1"], "tags": ["2"]}}
    rows = splits["train"] + splits["val"]
    assert sorted(row["words"][0] for row in rows) == sorted(f"New York{i}" for i in range(20))
    spaces = "".join(f"he{i} PRP  I-NP O\r\nEU NNP I-NP  I-org\r\n\r\n" for i in range(9))
    spaces = f"-DOCSTART- -X- -X- O\r\n\r\n{spaces}"
    _, splits = examples.from_table(write(tmp_path / "b.txt", spaces.rstrip()), "tag", val_fraction=0.3)
    assert all(row["words"][1] == "EU" and row["tags"] == ["O", "I-org"] for rows in splits.values() for row in rows)
    assert sum(map(len, splits.values())) == 9
    assert examples.order_labels(["I-b", "B-b", "O", "B-a"]) == ["O", "B-a", "B-b", "I-b"]


@pytest.mark.parametrize("content, options, words, tags, said", [
    ("# id = 1\n# text = EU x\nEU\tB-org\n#\tO\n\n# id = 2\n#\tO\nx{i}\tO\n", {}, "EU # # x{i}", "B-org O O O",
     "words = column 1, tags = column 2 of 2; left out: 3 comments"),
    ("# newdoc id a{i}\nEU NNP B-NP B-org\nx{i} NN O O\n", {}, "EU x{i}", "B-org O", "column 4 of 4; left out: 1 comm"),
    ("#begin document (x{i})\nEU NNP B-org\nx{i} NN O\n#end document\n", {}, "EU x{i}", "B-org O", "2 comments"),
    ("-DOCSTART- -X- O\n\nEU NNP I-org\nx{i} NN O\n", {}, "EU x{i}", "I-org O", "left out: 1 document marks"),
    ("1\tNew York{i}\tB-loc\t_\n2\twins\tO\t_\n", {}, "New York{i}|wins", "B-loc O", "words = column 2, tags = colu"),
    ("1 EU{i} X B-org O\n2 x Y I-org O\n", {}, "EU{i} x", "B-org I-org", "tags = column 4 of 5; left out: nothing"),
    ("1 EU{i} X B-org B-a\n2 x Y O O\n", {"label_column": "3", "text_column": "5"}, "B-a O", "X Y", "words = column 5"),
    ("token\tpos\tner\nEU{i}\tX\tB-org\nx\tY\tO\n", {}, "EU{i} x", "B-org O", "left out: 1 header"),
    ("token\tpos\tner\nEU{i}\tX\tB-org\nx\tY\tO\n", {"label_column": "pos"}, "EU{i} x", "X Y", "1 header"),
    ("EU{i}\tX\tB-org\nx\tY\tO\n", {"label_column": "pos", "columns": "token,pos,ner"}, "EU{i} x", "X Y", ""),
    ("1 B-a\nx{i} O\n", {"text_column": "1", "label_column": "2"}, "1 x{i}", "B-a O", "left out: nothing"),  # no header
    ("EU{i}\t\tB-a\nx\t\tO\n", {}, "EU{i} x", "B-a O", "tags = column 3 of 3; left out: nothing"),
    ("B-org EU{i}\nO x\n", {}, "EU{i} x", "B-org O", "words = column 2, tags = column 1"),
    ("10\u00a0000 O\n\u3000 O\nEU{i} B-org\n", {}, "10\u00a0000|\u3000|EU{i}", "O O B-org", "IOB2"),
    ("EU{i} I-a\nx  I-org\ny B-org\n", {}, "EU{i} x y", "I-a I-org B-org", "tags of entities, in the scheme IOB1"),
    ("EU{i} B-a\nx E-a\ny S-a\nz O\n", {}, "EU{i} x y z", "B-a E-a S-a O", "scheme BIOES"),
    ("EU{i} B-a\nx I-a\nz L-a\n", {}, "EU{i} x z", "B-a I-a L-a", "scheme BILOU"),
    ("北{i} B\n上 M\n市 E\n我 S\n", {}, "北{i} 上 市 我", "B M E S", "scheme BMES"),
    ("EU{i} NNP\nis VB\n# #\n", {}, "EU{i} is #", "NNP VB #", "tags of no scheme of entities"),
])
def test_conll_files_as_people_have_them(tmp_path, capsys, content, options, words, tags, said):
    """Each content is the only sentence of a file for training, with {i} = 0, and of one for validation."""
    train, val = (write(tmp_path / f"{i}.txt", content.replace("{i}", str(i)).replace("\n", "\r\n")) for i in range(2))
    task, splits = examples.from_table(train, "tag", val_file=val, **options)
    printed = capsys.readouterr().out
    for i, split in enumerate(("train", "val")):
        of_split = splits[split]
        got = [sum((row[name] for row in of_split), []) for name in ("words", "tags")]
        assert got == [words.replace("{i}", str(i)).split("|" if "|" in words else " "), tags.split()]
    assert said in printed and printed.count("tags = column") == 2
    assert task["metric"] == ("accuracy" if "no scheme" in printed else "f1")


def test_offsets_in_bytes_and_in_utf16(tmp_path):
    context = "🚀é🚀 The 12 rockets met 12 other 12 rockets."
    starts = [i for i in range(len(context)) if context.startswith("12", i)]
    for encoding, size in (("utf-16-le", 2), ("utf-8", 1)):
        offsets = [len(context[:start].encode(encoding)) // size for start in starts]
        questions = [(str(offset), [("12", offset)]) for offset in offsets]
        path = write(tmp_path / "a.json", json.dumps({"data": [squad(*questions, context=context)]}))
        _, splits = examples.from_table(path, "answer", val_file=path)
        assert [row["answers"][0]["start"] for row in splits["train"]] == starts


def test_squad_answers_move_to_their_offset(tmp_path, capsys):
    articles = [squad(("right", [("Ada", 0), ("Ada Lovelace", 0)]), ("near", [("Babbage", 40)]),
                      ("first", [("Babbage", 9)]), ("gone", [("Byron", 3)]), ("half", [("Byron", 3), ("Ada", 0)]),
                      ("negative", [("Ada", -62)]), ("none", []))]
    articles += [squad((f"q{i}", [(str(i), 5)]), context=f"text {i} of many") for i in range(10, 40)]
    path = write(tmp_path / "a.json", json.dumps({"version": "v2.0", "data": articles}))
    task, splits = examples.from_table(path, "answer", val_fraction=0.3)
    rows = {row["id"]: row["answers"] for rows in splits.values() for row in rows}
    assert task == {"kind": "answer", "metric": "f1"} and len(rows) == 36
    assert rows["right"] == [{"text": "Ada", "start": 0}, {"text": "Ada Lovelace", "start": 0}] and rows["none"] == []
    assert [rows[name][0]["start"] for name in ("near", "first", "half", "negative")] == [43, 30, 0, 0]
    assert "gone" not in rows and len(rows["half"]) == 1
    assert ("5 answers not at their offset: 3 found elsewhere in the context, 2 not in it; 1 questions left out"
            in capsys.readouterr().out)
    contexts = [{row["context"] for row in splits[split]} for split in ("train", "val")]
    assert not contexts[0] & contexts[1]


def test_copies_of_a_text_stay_on_one_side(tmp_path):
    rows = [(text, label) for text, label in REVIEWS for _ in range(3)]
    splits = examples.from_table(write(tmp_path / "a.csv", as_table(rows)), "classify", val_fraction=0.4)[1]
    texts = [{row["text"] for row in splits[split]} for split in ("train", "val")]
    assert not texts[0] & texts[1] and len(texts[0]) + len(texts[1]) == 40 and len(splits["val"]) == 3 * len(texts[1])
    hashes = [files.hash_fraction(str(i)) for i in range(2000)]
    assert abs(sum(x < 0.1 for x in hashes) - 200) < 60 and 0 <= min(hashes) and max(hashes) < 1


# --- what the rows hold ------------------------------------------------------------------------------------------

def test_clean_counts_and_drops():
    rows = [{"text": text, "label": label} for text, label in
            [("a", "x"), ("a", "x"), ("a", "y"), (" \n", "x"), ("", "y"), ("", "y"), ("b", "x")]]
    counts = {"rows": 7, "empty": 3, "duplicates": 2, "conflicts": 1}
    assert examples.count_oddities(rows) == counts
    other = [{"context": "c", "question": "q", "answers": [], "id": "1"},
             {"context": "c", "question": "q", "answers": [], "id": "2"},
             {"words": ["a b"], "tags": ["O"]}, {"words": ["a", "b"], "tags": ["O", "O"]}, {"words": [], "tags": []},
             {"text": "a", "pair": "b", "label": 1}, {"text": "b", "pair": "a", "label": 2},
             {"prompt": "a", "response": " "}]
    assert examples.count_oddities(other) == {"rows": 8, "empty": 2, "duplicates": 1, "conflicts": 0}


def test_report(capsys):
    rows = [{"text": text, "label": label} for text, label in [("a", "neg"), ("a", "neg"), ("a", "pos"), ("", "pos")]]
    splits = {"train": rows, "val": [{"text": "a", "label": "neg"}, {"text": "b", "label": "neg"}]}
    examples.report(CLASSIFY, splits, {"train": [10, 20, 30, 140], "val": [1, 2]}, max_length=25)
    assert capsys.readouterr().out.splitlines() == [
        "train: 4 rows, 1 empty, 1 duplicates, 1 texts with different labels",
        "  neg 2 (50.0 %), pos 2 (50.0 %)",
        "  tokens: median 20, 90 % up to 140, 99 % up to 140, longest 140; max_length 25 cuts 2 rows (50.0 %), "
        "60.0 % of the tokens",
        "val: 2 rows, 0 empty, 0 duplicates, 0 texts with different labels, 1 also in train",
        "  neg 2 (100.0 %)",
        "  tokens: median 1, 90 % up to 2, 99 % up to 2, longest 2; max_length 25 cuts 0 rows (0.0 %), "
        "0.0 % of the tokens"]
    assert examples.describe_lengths(list(range(1000, 0, -1))) == (
        "tokens: median 500, 90 % up to 900, 99 % up to 990, longest 1,000")


def test_the_report_knows_every_kind():
    lines = {name: examples.describe_labels(task, rows) for name, (task, rows) in FOLDERS.items() if name != "generate"}
    assert lines["multi"] == "a 1 (50.0 %), b 1 (50.0 %)"
    assert lines["regress"] == "labels from 0 to 2.5, mean 1.25"
    assert lines["tag"] == "O 2 (66.7 %), B-x 1 (33.3 %)"
    assert lines["answer"] == "1 contexts, 1 questions without an answer"
    many = [{"text": "t", "label": f"{i}"} for i in range(23)]
    assert examples.describe_labels(CLASSIFY, many).endswith("and 3 more")


def test_a_pair_of_its_own_is_no_second_text(tmp_path):
    rows = [{"text": f"text {i}", "pair": i, "label": "ab"[i % 2]} for i in range(4)]
    for split in ("train", "val"):
        write(tmp_path / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write(tmp_path / "task.json", json.dumps({"kind": "classify", "labels": ["a", "b"], "metric": "accuracy"}))
    assert all(row.keys() == {"text", "label"} for row in examples.load_task(tmp_path)[1]["train"])


def test_rare_labels_stay_in_training(tmp_path, capsys):
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(60)]
    held = next(text for text, _ in rows if examples.in_validation({"text": text}, 0.2, "1"))
    rows = [(text, "once" if text == held else label) for text, label in rows]
    task, splits = examples.from_table(write(tmp_path / "rare.csv", as_table(rows, header=("text", "label"))),
                                       "classify", val_fraction=0.2)
    assert "once" in task["labels"] and all(row["label"] != "once" for row in splits["val"])
    assert "1 rows with labels" in capsys.readouterr().out


def test_columns_without_a_name_are_let_be(tmp_path):
    (tmp_path / "a.csv").write_text("label,text,,\n" + "".join(f"{label},{label} {i},,\n" for i in range(20)
                                                               for label in ("ham", "spam")), encoding="utf-8")
    task, rows = examples.from_table(tmp_path / "a.csv", "classify")
    assert task["labels"] == ["ham", "spam"] and set(rows["train"][0]) == {"text", "label"}


def test_an_id_that_stands_twice_in_the_test_questions_is_told(tmp_path):
    questions = [(f"q{i}", [("Ada", 0)]) for i in range(20)]
    for name, some in (("a", questions), ("b", [*questions, questions[0]])):
        paragraphs = [squad(question, context=f"Ada {i} wrote.") for i, question in enumerate(some)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"data": paragraphs}), encoding="utf-8")
    with pytest.raises(UserError, match="two test questions have the same id"):
        examples.from_table(tmp_path / "a.json", "answer", val_file=tmp_path / "a.json", test_file=tmp_path / "b.json")
