"""The data sets: published counts, splits, the order of sources, and what a user is told when something is missing."""

import gzip
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from conftest import contents

from nanoft import UserError
from nanoft.bins import Tokens
from nanoft.bpe import train
from nanoft.tasks import examples
from nanoft.text import prepare, vocabulary

ROOT = Path(__file__).resolve().parents[1]
MIRROR = Path(os.environ.get("NANOFT_MIRROR") or ROOT / "../shared/data").resolve()


def needs(name):
    return pytest.mark.skipif(not (MIRROR / name).exists(), reason=f"no local copy of {name}; set NANOFT_MIRROR")


def run(name, *options, mirror=MIRROR, cwd=ROOT):
    """Run data/NAME/prepare.py, without a network if the mirror has not what it wants."""
    env = os.environ | {"NANOFT_MIRROR": str(mirror), "https_proxy": "http://127.0.0.1:9"}
    return subprocess.run([sys.executable, ROOT / "data" / name / "prepare.py", *options], env=env, cwd=cwd,
                          capture_output=True, text=True, check=False)


def decoded(folder, split):
    tokens = Tokens.open(folder, split)
    return vocabulary.load(folder).decode(tokens.read(0, len(tokens)).tolist())


@needs("wikitext-2-v1.zip")
@pytest.mark.slow
def test_wikitext_counts_are_the_published_ones(tmp_path):
    done = run("wikitext", f"--out={tmp_path}", "--vocab_size=300", cwd="/")
    assert done.returncode == 0, done.stderr
    splits = [Tokens.open(tmp_path, split) for split in ("train", "val", "test")]
    assert [tokens.num_words for tokens in splits] == [2_088_628, 217_646, 245_569]
    assert [tokens.num_bytes for tokens in splits] == [10_797_148, 1_121_681, 1_256_449]
    assert [tokens.num_documents for tokens in splits] == [600, 60, 60]
    assert "245,569 words" in done.stdout


def test_wikitext_is_read_from_the_zip_or_its_files(tmp_path):
    files = tmp_path / "wikitext-2-raw"
    files.mkdir()
    for split in ("train", "valid", "test"):
        articles = [f" \n = Title {i} = \n \n An article of {split} , number {i} .\n" for i in range(9)]
        (files / f"wiki.{split}.raw").write_text("".join(articles), encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "wikitext-2-raw-v1.zip", "w") as archive:
        for path in files.iterdir():
            archive.write(path, f"wikitext-2-raw/{path.name}")
    made = []
    for source in (files, tmp_path, tmp_path / "wikitext-2-raw-v1.zip"):
        out = tmp_path / f"out{len(made)}"
        done = run("wikitext", "--variant=2-raw", f"--source={source}", f"--out={out}", "--vocab_size=270")
        assert done.returncode == 0, done.stderr
        made.append([path.read_bytes() for path in sorted(out.iterdir())])
    assert made[0] == made[1] == made[2] and Tokens.open(out, "test").num_documents == 9
    (files / "wiki.test.raw").unlink()
    done = run("wikitext", "--variant=2-raw", f"--source={files}", f"--out={tmp_path / 'new'}", mirror=tmp_path)
    assert done.returncode == 2 and "wiki.test.raw" in done.stderr and len(done.stderr.splitlines()) == 1


@needs("tinyshakespeare.txt")
def test_shakespeare_is_split_by_characters(tmp_path):
    assert run("shakespeare", f"--out={tmp_path}").returncode == 0
    text = (MIRROR / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert decoded(tmp_path, "train") == text[:1_003_854] + "<|endoftext|>"
    assert decoded(tmp_path, "val") == text[1_003_854:] + "<|endoftext|>"
    assert Tokens.open(tmp_path, "val").vocab_size == 261


def test_stdlib_is_the_same_twice_and_needs_no_network(tmp_path):
    source = tmp_path / "lib"
    for i in range(60):
        (source / f"p{i % 3}").mkdir(parents=True, exist_ok=True)
        (source / f"p{i % 3}" / f"m{i}.py").write_text(f"def f{i}(x):\n    return x + {i}\n", encoding="utf-8")
    (source / "latin.py").write_bytes(b"# caf\xe9\n")
    (source / "test").mkdir()
    (source / "test" / "t.py").write_text("unwanted = 1\n", encoding="utf-8")
    for out in ("a", "b"):
        done = run("stdlib", f"--source={source}", f"--out={tmp_path / out}", "--vocab_size=280", mirror=tmp_path)
        assert done.returncode == 0 and "60 files, 1 skipped" in done.stdout
    for name in ("train.bin", "val.bin", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    both = decoded(tmp_path / "a", "train") + decoded(tmp_path / "a", "val")
    assert all(f"def f{i}(x)" in both for i in range(60)) and "unwanted" not in both
    assert 0 < Tokens.open(tmp_path / "a", "val").num_documents < 12


def test_text_reads_every_form(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    texts = [f"文件 {i}: 人工智能是计算机科学的一个分支。\n" for i in range(200)]
    (source / "a.txt").write_bytes(b"\xef\xbb\xbf" + texts[0].encode())
    (source / "b.md.gz").write_bytes(gzip.compress(texts[1].encode()))
    (source / "c.py").write_text(texts[2], encoding="utf-8")
    (source / "d.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in texts[3:100]), encoding="utf-8")
    rows = "\n".join(json.dumps({"body": t}, ensure_ascii=False) for t in texts[100:])
    (source / "e.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    for name in ("f.pdf", "g.rst", "h.rst", "i.HTML", "j.csv"):
        (source / name).write_bytes(b"\xff\xff")
    out = tmp_path / "out"
    done = run("text", f"--source={source}", f"--out={out}", "--text_key=body", "--vocab_size=300")
    assert done.returncode == 0, done.stderr
    val, train_split = decoded(out, "val").split("<|endoftext|>"), decoded(out, "train").split("<|endoftext|>")
    assert sorted([t for t in val + train_split if t]) == sorted(texts)
    assert 2 < len(val) < 25
    assert "in: left out are 2 .rst" in done.stdout and all(f"1 {e}" in done.stdout for e in (".pdf", ".html", ".csv"))


def test_text_of_one_document_is_cut(tmp_path):
    text = "".join(f"line {i} of the only file\n" for i in range(400))
    (tmp_path / "only.txt").write_text(text, encoding="utf-8")
    assert run("text", f"--source={tmp_path / 'only.txt'}", f"--out={tmp_path}", "--vocab_size=270").returncode == 0
    cut = len(text) - int(0.05 * len(text))
    assert decoded(tmp_path, "train") == text[:cut] + "<|endoftext|>"
    assert decoded(tmp_path, "val") == text[cut:] + "<|endoftext|>"


def test_validation_has_every_source_and_words_are_counted(tmp_path):
    for folder, word in (("many", "alpha"), ("few", "beta")):
        (tmp_path / folder).mkdir()
        for i in range(100 if folder == "many" else 3):
            (tmp_path / folder / f"{i}.txt").write_text(f"{word} {i} text\n" * 20, encoding="utf-8")
    (tmp_path / "book.txt").write_text("天地 玄黄, gamma\n" * 50, encoding="gb18030")
    done = run("text", f"--source={tmp_path / 'many'},{tmp_path / 'few'}", f"--out={tmp_path / 'a'}",
               "--vocab_size=280")
    assert done.returncode == 0 and "100 documents\n" in done.stdout and "3 documents; few, so" in done.stdout
    val = decoded(tmp_path / "a", "val")
    assert "alpha" in val and "beta" in val and val.count("alpha") % 20 == 0  # whole documents
    counts = {split: Tokens.open(tmp_path / "a", split).num_words for split in ("train", "val")}
    assert counts["val"] == len(val.replace("<|endoftext|>", " ").split()) and abs(sum(counts.values()) - 6180) < 2
    done = run("text", f"--source={tmp_path / 'book.txt'}", f"--out={tmp_path / 'b'}", "--vocab_size=300",
               "--encoding=gb18030", "--val_fraction=0.1")
    assert done.returncode == 0, done.stderr
    assert "天地 玄黄, gamma" in decoded(tmp_path / "b", "val")
    # 天 地 玄 黄 , gamma: six words a line
    assert [Tokens.open(tmp_path / "b", split).num_words for split in ("train", "val")] == [270, 30]


def test_a_data_set_is_not_overwritten_unless_so_wished(tmp_path):
    (tmp_path / "a.txt").write_text("one text\n" * 99, encoding="utf-8")
    options = [f"--source={tmp_path / 'a.txt'}", f"--out={tmp_path / 'out'}", "--vocab_size=270"]
    assert run("text", *options).returncode == 0
    before = contents(tmp_path / "out")
    (tmp_path / "a.txt").write_text("another text\n" * 99, encoding="utf-8")
    done = run("text", *options)
    assert done.returncode == 2 and "holds a data set; --out=FOLDER writes another, --overwrite" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and contents(tmp_path / "out") == before
    assert run("text", *options, "--overwrite").returncode == 0 and "another" in decoded(tmp_path / "out", "val")


def test_files_for_the_splits_in_a_folder(tmp_path):
    source = tmp_path / "wikitext-2"
    source.mkdir()
    for name in ("train", "valid", "test"):
        (source / f"wiki.{name}.tokens").write_text(f" = A {name} title = \n \n" * 30, encoding="utf-8")
    (source / "LICENSE").write_text("no text", encoding="utf-8")
    (tmp_path / "more.txt").write_text("more " * 200, encoding="utf-8")
    done = run("text", f"--source={source},{tmp_path / 'more.txt'}", f"--out={tmp_path / 'out'}", "--vocab_size=270")
    assert done.returncode == 0 and "left out are 1 LICENSE" in done.stdout, done.stderr
    assert "1 files for train, 1 files for val, 1 files for test" in done.stdout
    texts = {split: decoded(tmp_path / "out", split) for split in ("train", "val", "test")}
    assert texts["test"] == " = A test title = \n \n" * 30 + "<|endoftext|>"
    assert "A valid title" in texts["val"] and "more" in texts["val"] and "more" in texts["train"]
    assert Tokens.open(tmp_path / "out", "test").num_words == 150


@pytest.mark.parametrize("name, content, options, words", [
    ("a.txt", b"good \xff", [], "a.txt: byte 5"),
    ("a.txt", b"", [], "no text"),
    ("a.txt.gz", b"no gzip", [], "cannot be read"),
    ("a.jsonl", b'{"text": "x"}\n{"txt": 1}\n', [], "line 2"),
    ("a.jsonl", b'{"text": 5}\n', [], "line 1"),
    ("a.jsonl", b'{"body": "x", "id": 1}\n', [], "under 'text'; it has body, id"),
    ("a.txt", b"text", ["--vocab_size=200"], "smallest is 261"),
    ("a.txt", b"text", ["--val_fraction=2"], "between 0 and 1"),
    ("a.txt", b"text", ["--source=/nowhere"], "does not exist"),
    ("a.txt", b"text", ["--vocabsize=300"], "vocab_size"),
])
def test_bad_input_leaves_the_earlier_data_whole(tmp_path, name, content, options, words):
    out = tmp_path / "out"
    out.mkdir()
    for kept in ("train.bin", "val.bin", "tokenizer.json"):
        (out / kept).write_bytes(b'{"format":"nanoft' if kept == "tokenizer.json" else b"nanoft\r\nearlier")
    before = contents(out)
    (tmp_path / name).write_bytes(content)
    done = run("text", f"--source={tmp_path / name}", f"--out={out}", "--overwrite", *options)
    assert done.returncode == 2 and words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert contents(out) == before and len(before) == 3


def test_nothing_found_names_the_address_and_the_other_ways(tmp_path):
    for name in ("wikitext", "shakespeare"):
        if (ROOT / "data" / name / "raw").exists():
            continue
        done = run(name, f"--out={tmp_path}", mirror=tmp_path)
        assert done.returncode == 2
        for words in ("https://", "--source=PATH", "NANOFT_MIRROR", "raw/"):
            assert words in done.stderr.replace(os.sep, "/").replace("/raw/", " raw/")


def test_order_of_sources_and_download(tmp_path, monkeypatch):
    """source, then the mirror, then raw/, then the publisher: here, a server of our own."""
    content = b"published" * 1000
    agents = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            agents.append(self.headers["User-Agent"])
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) + (9 if "short" in self.path else 0)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name in ("mirror", "given", "set"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("NANOFT_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("no_proxy", "*")
    folder, raw = tmp_path / "set", tmp_path / "set" / "raw" / "f.txt"
    try:
        with pytest.raises(UserError, match="bytes came"):
            prepare.find_raw("f.txt", f"{address}/short", folder)
        assert not raw.exists() and not list(tmp_path.rglob("*.tmp"))
        path = prepare.find_raw("f.txt", address, folder)
        assert path == raw and raw.read_bytes() == content
        assert "Python-urllib" not in agents[-1]
    finally:
        server.shutdown()
        server.server_close()
    assert prepare.find_raw("f.txt", address, folder) == raw  # the server is gone: from raw/
    (tmp_path / "mirror" / "f.txt").write_text("m", encoding="utf-8")
    assert prepare.find_raw("f.txt", address, folder) == tmp_path / "mirror" / "f.txt"
    (tmp_path / "given" / "f.txt").write_text("g", encoding="utf-8")
    assert prepare.find_raw("f.txt", address, folder, str(tmp_path / "given")) == tmp_path / "given" / "f.txt"
    with pytest.raises(UserError, match="there is no file"):
        prepare.find_raw("f.txt", address, folder, str(tmp_path / "nowhere"))


def test_find_and_ensure(tmp_path, capfd):
    assert prepare.find_data("wikitext") == ROOT / "data" / "wikitext"
    assert prepare.find_data(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="wikitext"):
        prepare.find_data("wikitxt")
    with pytest.raises(UserError, match="no prepare.py"):
        prepare.ensure(tmp_path)
    script = tmp_path / "prepare.py"
    script.write_text("raise SystemExit(2)\n", encoding="utf-8")
    with pytest.raises(UserError, match="failed"):
        prepare.ensure(tmp_path)
    script.write_text("print('made it')\nfor n in ('train_000.bin', 'val.bin', 'tokenizer.json'):\n"
                      "    open(__file__.replace('prepare.py', n), 'w').close()\n", encoding="utf-8")
    prepare.ensure(tmp_path)
    assert "made it" in capfd.readouterr().out
    script.write_text("raise SystemExit(2)\n", encoding="utf-8")
    prepare.ensure(tmp_path)  # whole: not run again


def test_write_data_with_a_tokenizer_of_another_set(tmp_path):
    other = train(["to be or not to be"], 270, progress=False)
    other.save(tmp_path / "other.json")
    splits = {"train": ["to be"], "val": lambda: ["or not"]}  # a list, and a function that starts a stream
    prepare.write_data(tmp_path / "out", splits, 5000, tokenizer=str(tmp_path / "other.json"))
    assert Tokens.open(tmp_path / "out", "val").fingerprint == other.fingerprint
    assert sorted(os.listdir(tmp_path / "out")) == ["tokenizer.json", "train.bin", "val.bin"]


@needs("aclImdb_v1.tar.gz")
@pytest.mark.slow
def test_imdb_keeps_the_test_reviews_out_of_pretraining(tmp_path):
    done = run("imdb", f"--out={tmp_path}", "--vocab_size=1000", mirror=MIRROR)
    assert done.returncode == 0, done.stderr
    task, rows = examples.load_task(tmp_path)
    assert task == {"kind": "classify", "labels": ["neg", "pos"], "metric": "accuracy"}
    assert len(rows["train"]) + len(rows["val"]) == len(rows["test"]) == 25_000
    assert sum(row["label"] == "pos" for row in rows["test"]) == 12_500
    tokens = {name: Tokens.open(tmp_path, name) for name in ("train", "val")}
    for name in tokens:
        assert tokens[name].num_documents == len(rows[name])
        assert tokens[name].num_bytes == sum(len(row["text"].encode()) for row in rows[name])
    assert 1000 < len(rows["val"]) < 1500 and not Tokens.exists(tmp_path, "test")
    assert not {row["text"] for row in rows["train"]} & {row["text"] for row in rows["val"]}


def test_an_archive_that_is_not_imdb_is_refused(tmp_path):
    (tmp_path / "aclImdb_v1.tar.gz").write_bytes(b"no archive")
    done = run("imdb", f"--source={tmp_path}", f"--out={tmp_path / 'out'}", mirror=tmp_path)
    assert done.returncode == 2 and "not the published aclImdb_v1.tar.gz" in done.stderr
    assert not (tmp_path / "out").exists()
