"""Labelled examples: tables and folders in, what is refused and in which words, splits, and the report's counts."""

import gzip
import json

import pytest

from nanoft import UserError
from nanoft.tasks import examples

REVIEWS = [(f"film number {i} was {'fine' if i % 2 else 'dull'}", "pos" if i % 2 else "neg") for i in range(40)]
CLASSIFY = {"kind": "classify", "labels": ["neg", "pos"], "metric": "accuracy"}


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
    (CLASSIFY | {"kind": "sort"}, GOOD, GOOD, ["task.json: needs a kind (classify, pair,"]),
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
    assert task == CLASSIFY and "text = review, label = sentiment" in capsys.readouterr().out
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
    assert task == CLASSIFY | {"labels": ["fun", "short"], "multi_label": True, "metric": "micro_f1"}
    assert {tuple(row["labels"]) for row in splits["train"]} == {("fun", "short"), (), ("short",)}
    rows = [(text, f"{text} again", str(i / 4)) for i, (text, _) in enumerate(REVIEWS)]
    task, splits = table("s.csv", ("sentence1", "sentence2", "score"), rows, "regress")
    assert task == {"kind": "regress", "metric": "pearson"}
    assert set(splits["val"][0]) == {"text", "pair", "label"} and type(splits["val"][0]["label"]) is float
    task, splits = table("s.csv", ("premise", "hypothesis", "label"), rows, "pair", val_fraction=0.3,
                         val_file=tmp_path / "s.csv")
    assert len(task["labels"]) == 40 and splits["val"] == splits["train"]
    rows = [(text, label) for text, label in REVIEWS]
    task, splits = table("g.csv", ("Instruction", "Output"), rows, "generate")
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
    ("a.xlsx", "PK", {}, ["none of .csv .tsv .jsonl"]),
    ("a.csv", b"review,sentiment\n\xff,pos\n", {}, ["byte 17 is not UTF-8"]),
    ("a.conll", "EU B-org\nrejects\n", {"kind": "tag"}, ["a.conll line 2: 'rejects' is not a word and its tag"]),
    ("a.conll", "EU NNP B-org\nsays O\n", {"kind": "tag"}, ["line 2", "in 3 columns"]),
    ("a.conll", "", {"kind": "tag"}, ["no rows"]),
    ("a.json", "{", {"kind": "answer"}, ["not in SQuAD's form"]),
    ("a.json", '{"data": [{"paragraphs": [{"qas": []}, {"qas": [{}]}]}]}', {"kind": "answer"}, ["'answers'"]),
])
def test_a_bad_table_is_refused_in_a_sentence(tmp_path, name, content, options, words):
    with pytest.raises(UserError) as caught:
        examples.from_table(write(tmp_path / name, content), **{"kind": "classify"} | options)
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
    assert task == {"kind": "tag", "metric": "f1", "labels": ["O", "B-loc"]}
    rows = splits["train"] + splits["val"]
    assert sorted(row["words"][0] for row in rows) == sorted(f"New York{i}" for i in range(20))
    spaces = "".join(f"he{i} PRP  I-NP O\r\nEU NNP I-NP  I-org\r\n\r\n" for i in range(9))
    spaces = f"-DOCSTART- -X- -X- O\r\n\r\n{spaces}"
    _, splits = examples.from_table(write(tmp_path / "b.txt", spaces.rstrip()), "tag", val_fraction=0.3)
    assert all(row["words"][1] == "EU" and row["tags"] == ["O", "I-org"] for rows in splits.values() for row in rows)
    assert sum(map(len, splits.values())) == 9
    assert examples.order_labels(["I-b", "B-b", "O", "B-a"]) == ["O", "B-a", "B-b", "I-b"]


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
    hashes = [examples.hash_fraction(str(i)) for i in range(2000)]
    assert abs(sum(x < 0.1 for x in hashes) - 200) < 60 and 0 <= min(hashes) and max(hashes) < 1


# --- what the rows hold ------------------------------------------------------------------------------------------

def test_clean_counts_and_drops():
    rows = [{"text": text, "label": label} for text, label in
            [("a", "x"), ("a", "x"), ("a", "y"), (" \n", "x"), ("", "y"), ("", "y"), ("b", "x")]]
    counts = {"rows": 7, "empty": 3, "duplicates": 2, "conflicts": 1}
    assert examples.clean(rows) == (rows, counts)
    assert examples.clean(rows, drop_duplicates=True) == ([rows[i] for i in (0, 2, 3, 4, 6)], counts)
    assert examples.clean(rows, drop_empty=True) == ([rows[i] for i in (0, 1, 2, 6)], counts)
    assert examples.clean(rows, drop_duplicates=True, drop_empty=True)[0] == [rows[i] for i in (0, 2, 6)]
    other = [{"context": "c", "question": "q", "answers": [], "id": "1"},
             {"context": "c", "question": "q", "answers": [], "id": "2"},
             {"words": ["a b"], "tags": ["O"]}, {"words": ["a", "b"], "tags": ["O", "O"]}, {"words": [], "tags": []},
             {"text": "a", "pair": "b", "label": 1}, {"text": "b", "pair": "a", "label": 2},
             {"prompt": "a", "response": " "}]
    assert examples.clean(other)[1] == {"rows": 8, "empty": 2, "duplicates": 1, "conflicts": 0}


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
