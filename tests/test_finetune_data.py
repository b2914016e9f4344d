"""The data sets for fine-tuning: tiny files in the published layouts, and the real ones where a copy is at hand."""

import io
import json
import os
import zipfile

import pytest
from conftest import DIST
from test_data import ROOT, needs, run

import finetune
from nanoft.bins import Tokens
from nanoft.tasks import examples, start

NAMES = ("sst2", "mrpc", "wnut17", "squad", "chnsenticorp")
PUBLISHED = {"wnut17": ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"),
             "squad": ("train-v1.1.json", "dev-v1.1.json"), "chnsenticorp": ("train.tsv", "dev.tsv"),
             "mrpc": ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"), "sst2": ("SST-2.zip",)}


def tiny(name, folder, rows=1.0):
    """Write a set's raw files as they are published, with as many rows (times `rows`), of made-up text."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {}
    if name == "sst2":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for member, number in (("train", 67_349), ("dev", 872)):
                # a sentence, a phrase that is in it alone, a phrase that is in all; of dev only sentences
                kinds = ('{} {} a "charming  film ', '{} {} a ', '"charming film ')[:3 if member == "train" else 1]
                lines = [kinds[i % len(kinds)].format(member, i - i % len(kinds)) + f"\t{i % 2}\n"
                         for i in range(int(rows * number))]
                archive.writestr(f"SST-2/{member}.tsv", "sentence\tlabel\n" + "".join(lines))
            archive.writestr("SST-2/test.tsv", "index\tsentence\n0\tunlabelled\n")
        texts["SST-2.zip"] = packed.getvalue()
    elif name == "mrpc":
        for file, number in (("train", 4_076), ("test", 1_725)):
            lines = ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
            lines += [f'{i % 3 > 0:d}\t{i}\t{i}\t"He said {file} {i} .\tHe " said {i} .'
                      for i in range(int(rows * number))]
            texts[f"msr_paraphrase_{file}.txt"] = "\n".join(lines) + "\n"
    elif name == "wnut17":
        for file, number, end in (("wnut17train.conll", 3_394, "\t"), ("emerging.dev.conll", 1_009, ""),
                                  ("emerging.test.annotated", 1_287, "")):
            texts[file] = "".join(f"{file}{i}\tO\nNew\tB-location\nYork\tI-location\n{end}\n"
                                  for i in range(int(rows * number)))
    elif name == "squad":
        for file, number in (("train-small.json", 60), ("dev-v1.1.json", int(rows * 10_570))):
            questions = [{"id": f"{file}{i}", "question": f"Which number, {i}?",
                          "answers": [{"text": str(i), "answer_start": 5 if i else 99}]} for i in range(number)]
            data = [{"title": "t", "paragraphs": [{"context": f"This {i} is {i} of {file}", "qas": [question]}]}
                    for i, question in enumerate(questions)]
            texts[file] = json.dumps({"version": "1.1", "data": data})
    else:
        for file, number in (("train", 9_600), ("dev", 1_200)):
            lines = [f" 酒店 {file if i > 9 else ''} {i} 很好 \t{('negative', 'positive')[i % 2]}\n"
                     for i in range(int(rows * number))]
            texts[f"{file}.tsv"] = "".join(lines)
    for file, text in texts.items():
        (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_tiny_files_in_the_published_layout(tmp_path, name):
    out = tmp_path / "out"
    done = run(name, f"--source={tiny(name, tmp_path / 'raw')}", f"--out={out}", "--vocab_size=280", cwd="/")
    assert done.returncode == 0, done.stderr
    task, splits = examples.load_task(out)
    rows = {split: len(splits[split]) for split in ("train", "val", "test")}
    train, val = Tokens.open(out, "train"), Tokens.open(out, "val")
    assert not Tokens.exists(out, "test") and train.vocab_size == 280
    texts = [{examples.inputs_of(row)[0] for row in splits[split]} for split in splits]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    row = splits["train"][20]
    if name == "sst2":
        assert task == {"kind": "classify", "labels": ["negative", "positive"], "metric": "accuracy"}
        assert rows["train"] + 2 * rows["val"] == 67_349 and rows["test"] == 872 and 1_600 < rows["val"] < 2_000
        assert all(row["text"].endswith('a "charming film') for row in splits["val"])
        held = {row["text"].removesuffix(' "charming film') for row in splits["val"]}
        kept = [row["text"] for row in splits["train"]]
        assert not held & set(kept) and kept.count('"charming film') == 67_349 // 3
        assert splits["test"][3] == {"text": 'dev 3 a "charming film', "label": "positive"}
        assert train.num_documents == rows["train"]
    elif name == "mrpc":
        assert task == {"kind": "pair", "labels": ["different", "equivalent"], "metric": "f1"}
        assert rows["train"] + rows["val"] == 4_076 and rows["test"] == 1_725 and 330 < rows["val"] < 490
        assert splits["test"][3] == {"text": '"He said test 3 .', "pair": 'He " said 3 .', "label": "different"}
        assert train.num_documents == 2 * rows["train"]
    elif name == "wnut17":
        assert task == {"kind": "tag", "labels": ["O", "B-location", "I-location"], "metric": "f1",
                        "columns": {"words": ["1"], "tags": ["2"]}}
        assert rows == {"train": 3_394, "val": 1_009, "test": 1_287}
        assert row == {"words": ["wnut17train.conll20", "New", "York"], "tags": ["O", "B-location", "I-location"]}
        assert val.num_bytes == sum(len(" ".join(row["words"])) for row in splits["val"])
    elif name == "squad":
        assert task == {"kind": "answer", "metric": "f1"} and rows["test"] == 10_570
        assert rows["train"] + rows["val"] == 60 and "train-small.json" in done.stdout and rows["val"] > 0
        assert all(row["context"][a["start"]:].startswith(a["text"]) for row in splits["train"] for a in row["answers"])
        assert done.stdout.count("1 answers not at their offset: 1 found") == 2
        assert train.num_documents + val.num_documents == 60
    else:
        assert task == {"kind": "classify", "labels": ["negative", "positive"], "metric": "accuracy"}
        assert "10 of 9,600 training reviews left out" in done.stdout
        assert rows["train"] + rows["val"] == 9_590 and rows["test"] == 1_200
        assert splits["test"][12] == {"text": "酒店 dev 12 很好", "label": "negative"}
    assert f"test: {rows['test']:,} rows" in done.stdout and "0 also in train" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_other_files_than_the_published_are_refused(tmp_path, name):
    out = tmp_path / "out"
    done = run(name, f"--source={tiny(name, tmp_path / 'raw', rows=0.9)}", f"--out={out}", "--vocab_size=280")
    assert done.returncode == 2 and not out.exists()
    assert "expected" in done.stderr if name == "chnsenticorp" else "were published; fetch it again" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    for path in (tmp_path / "raw").iterdir():
        path.write_bytes(b"something else\n")
    done = run(name, f"--source={tmp_path / 'raw'}", f"--out={out}")
    assert done.returncode == 2 and not out.exists() and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_where_the_raw_files_come_from(tmp_path, name):
    """A file in place of a folder is refused where a set has several; nothing found names what to do."""
    if name != "sst2":
        (tmp_path / "one.file").write_text("x", encoding="utf-8")
        done = run(name, f"--source={tmp_path / 'one.file'}", f"--out={tmp_path / 'out'}")
        assert done.returncode == 2 and PUBLISHED[name][-1] in done.stderr and "no such folder" in done.stderr
    if (ROOT / "data" / name / "raw").exists():
        return
    done = run(name, f"--out={tmp_path / 'out'}", mirror=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    address = "no publisher" if name == "chnsenticorp" else "https://"
    assert all(words in done.stderr for words in (PUBLISHED[name][0], address, "--source=PATH", "NANOFT_MIRROR", "raw"))
    tiny(name, tmp_path / (name if name in ("wnut17", "squad", "chnsenticorp") else ""))
    assert run(name, f"--out={tmp_path / 'out'}", "--vocab_size=270", mirror=tmp_path).returncode == 0


def test_squad_takes_the_files_it_is_told(tmp_path):
    raw = tiny("squad", tmp_path / "raw")
    for source, name in (("train-small.json", "mine.json"), ("dev-v1.1.json", "theirs.json")):
        os.rename(raw / source, raw / name)
    options = ["--train_file=mine.json", "--dev_file=theirs.json", "--vocab_size=270"]
    assert run("squad", f"--source={raw}", f"--out={tmp_path / 'out'}", *options).returncode == 0
    done = run("squad", f"--source={raw}", f"--out={tmp_path / 'out'}", *options[:1])
    assert done.returncode == 2 and "dev-v1.1.json" in done.stderr


@pytest.mark.parametrize("name, rows, labels", [
    pytest.param("sst2", (62_662, 504, 872), {"positive": 444, "negative": 428}, marks=needs("SST-2.zip")),
    pytest.param("mrpc", (3_651, 425, 1_725), {"equivalent": 1_147, "different": 578},
                 marks=needs("msr_paraphrase_train.txt")),
    pytest.param("wnut17", (3_394, 1_009, 1_287), {"B-person": 429, "O": 21_654}, marks=needs("wnut17")),
    pytest.param("squad", (6_829, 788, 10_570), {}, marks=needs("squad/train-small.json")),
    pytest.param("chnsenticorp", (8_344, 903, 1_200), {"negative": 607, "positive": 593}, marks=needs("chnsenticorp")),
])
@pytest.mark.slow
def test_the_real_files(tmp_path, name, rows, labels):
    done = run(name, f"--out={tmp_path}", "--vocab_size=600")
    assert done.returncode == 0, done.stderr
    task, splits = examples.load_task(tmp_path)
    assert tuple(len(splits[split]) for split in ("train", "val", "test")) == rows
    found = [label for row in splits["test"] for label in examples.labels_of(row)]
    assert {label: found.count(label) for label in labels} == labels
    assert "not at their offset" not in done.stdout and "test: " in done.stdout
    seen = {examples.inputs_of(row) for row in splits["train"] + splits["val"]}
    assert not any(examples.inputs_of(row) in seen for row in splits["test"])


def test_columns_and_encoding_reach_the_tables(tmp_path):
    rows = "".join(f"{i % 2},标题 {i},内容 {i}\n" for i in range(40))
    (tmp_path / "a.csv").write_bytes(rows.encode("gb18030"))
    cfg = finetune.Config(train_file=str(tmp_path / "a.csv"), columns="class,title,description", encoding="gb18030",
                          text_column="title,description")
    assert not finetune.check(cfg)
    task, splits, _ = start.open_data(cfg, DIST, None, None)
    assert task["labels"] == ["0", "1"] and splits["train"][0]["text"] == "标题 0 内容 0"
    assert len(finetune.check(finetune.Config(data="sst2", columns="a", encoding="utf-16"))) == 2
