"""Rows to predict: from files whose columns are recognised, or from a tool's options; and what is refused."""

import gzip

import pytest

from nanoft import UserError
from nanoft.tasks import tables


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_line_of_a_file_has_its_number(tmp_path):
    path = write(tmp_path / "in.txt", "\ufefflovely\r\n\n \n\x0c2nd\u2028half\n")
    assert tables.prediction_rows("classify", path) == [{"line": 1, "text": "lovely"},
                                                        {"line": 4, "text": "\x0c2nd\u2028half"}]
    with pytest.raises(UserError, match="in.txt line 4: no pair for a model of kind pair, only line, text; give it as"):
        tables.prediction_rows("pair", write(tmp_path / "in.txt", "\n\n\nlovely\n"))
    with pytest.raises(UserError, match="in.txt holds no prompt"):
        tables.prediction_rows("", write(tmp_path / "in.txt", "\n\n"))


@pytest.mark.parametrize("kind, name, content, rows", [
    ("classify", "in.csv", 'id,review,label\n1,"good, ""so""\nto say",pos\n',
     [{"id": "1", "label": "pos", "text": 'good, "so"\nto say'}]),
    ("classify", "in.csv", "text,review\na,b\n", [{"text": "a", "review": "b"}]),
    ("embed", "in.tsv", "Sentence\tn\ngood, so\t1\n", [{"n": "1", "text": "good, so"}]),
    ("pair", "in.csv", "sentence1,sentence2\na,b\n", [{"text": "a", "pair": "b"}]),
    ("regress", "in.csv", "text,score\na,3\n", [{"text": "a", "score": "3"}]),
    ("regress", "in.csv", "text,text2\na,b\n", [{"text": "a", "pair": "b"}]),
    ("tag", "in.csv", "text\nin Rome\n", [{"text": "in Rome", "words": ["in", "Rome"], "offsets": [[0, 2], [3, 7]]}]),
    ("answer", "in.csv", "question,context\na,b\n", [{"question": "a", "context": "b"}]),
    ("generate", "in.csv", "instruction,output\na,b\n", [{"output": "b", "prompt": "a"}]),
    ("", "in.csv", "prompt\na\n", [{"prompt": "a"}]),
    ("classify", "in.jsonl", '{"review": "a"}\n{"text": "b"}\n', [{"text": "a"}, {"text": "b"}]),
    ("classify", "in.jsonl", '{"text": "a", "pair": 3}\n', [{"text": "a"}]),  # it would be a second text
    ("regress", "in.jsonl", '{"text": "a", "pair": "b"}\n{"text": "c"}\n', [{"text": "a", "pair": "b"}, {"text": "c"}]),
    ("tag", "in.jsonl", '{"words": ["\u6f14\u5458", "a b"]}\n', [{"words": ["\u6f14\u5458", "a b"]}]),
])
def test_columns_to_predict_are_recognised_and_the_others_stay(tmp_path, kind, name, content, rows):
    assert tables.prediction_rows(kind, write(tmp_path / name, content)) == rows
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode("utf-8")))
    assert tables.prediction_rows(kind, str(tmp_path / f"{name}.gz")) == rows


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
    assert tables.prediction_rows(kind, options=options) == rows


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
    found = tables.word_offsets(text)
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
    ("classify", '{"review": "a", "tweet": "b"}', "no text for a model of kind classify, only review, tweet"),
])
def test_what_gives_no_rows_to_predict_is_refused_in_a_sentence(tmp_path, kind, given, words):
    path = write(tmp_path / "in.jsonl", given) if isinstance(given, str) else ""
    with pytest.raises(UserError) as caught:
        tables.prediction_rows(kind, path, given if not path else None)
    assert words in str(caught.value) and "\n" not in str(caught.value)
