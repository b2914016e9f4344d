"""Large corpora: prepared in shards, going on after an interruption, and the shards that others publish."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from conftest import ROOT, contents

from nanoft import UserError, bins
from nanoft.bins import Tokens, find_shards
from nanoft.bpe import train
from nanoft.files import fingerprint
from nanoft.runlog import unlock
from nanoft.text import corpus, prepare, vocabulary

WORDS = (ROOT / "nanoft" / "bins.py").read_text(encoding="utf-8").replace("<|endoftext|>", "").split()
DOCUMENTS = [" ".join(WORDS[i % 700:i % 700 + 40]) + f" 文 {i}" for i in range(900)]


def options(source, out, **others):
    return types.SimpleNamespace(**{
        "source": str(source), "files": 0, "text_key": "text", "tokenizer": "", "vocab_size": 300, "shard_tokens": 9000,
        "val_fraction": 0.1, "out": str(out), "overwrite": False} | others)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder of three files of 300 documents, one without .gz."""
    folder = tmp_path_factory.mktemp("source")
    for i in range(3):
        rows = "".join(json.dumps({"text": text, "id": i}) + "\n" for text in DOCUMENTS[300 * i:300 * i + 300])
        if i == 1:
            (folder / "1.jsonl").write_text(rows + "\n", encoding="utf-8")
        else:
            (folder / f"{i}.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (folder / "README.txt").write_text("not read", encoding="utf-8")
    return folder


@pytest.fixture
def small(monkeypatch):
    """Groups of a few documents, and the state saved after each of them."""
    monkeypatch.setattr(corpus, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(corpus, "GROUP", 1000)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The data set as an uninterrupted preparation makes it, in the same groups."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "GROUP", 1000)
        out = tmp_path_factory.mktemp("whole")
        corpus.prepare_corpus(options(source, out), {}, out)
    return out


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def documents(folder, split):
    tokens = Tokens.open(folder, split)
    text = vocabulary.load(folder).decode(tokens.read(0, len(tokens)).tolist())
    return text.split("<|endoftext|>")[:-1]


def test_every_document_is_in_one_split(whole, source):
    train_split, val = documents(whole, "train"), documents(whole, "val")
    assert sorted(train_split + val) == sorted(DOCUMENTS) and 60 < len(val) < 120
    assert [d for d in DOCUMENTS if d in set(val)] == val  # in order
    tokens = Tokens.open(whole, "train")
    assert len(tokens.paths) > 3 and all(header["tokens"] == 9000 for header in tokens.headers[:-1])
    assert tokens.num_documents == len(train_split)
    assert tokens.num_bytes == sum(len(text.encode()) for text in train_split)
    names = [path.name for path in (*tokens.paths, *Tokens.open(whole, "val").paths)]
    assert sorted(os.listdir(whole)) == sorted(["tokenizer.json", *names])
    assert all(bins.verify(path) for path in tokens.paths)


@pytest.mark.parametrize("stops", [(1,), (2, 3, 50), (0, 9, 18, 27, 36)])
def test_an_interrupted_preparation_goes_on(small, whole, source, tmp_path, monkeypatch, stops):
    """Stopped after so many writings of the state, each time in the middle of a write; then it goes on."""
    cfg, save, replace = options(source, tmp_path / "out"), corpus.write_json, os.replace
    for left in stops:
        def write(path, content):
            nonlocal left
            left -= 1
            if left < 0:
                last = len(list((tmp_path / "out" / ".preparing").glob("train.*")))
                for number in (last - 1, last):  # ids that were written, but not counted
                    with open(tmp_path / "out" / ".preparing" / f"train.{number}", "ab") as file:
                        file.write(b"lost")
                raise KeyboardInterrupt
            save(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(corpus, "write_json", write)
            try:
                corpus.prepare_corpus(cfg, {}, tmp_path)
                break
            except KeyboardInterrupt:
                pass
    for left in range(len(find_shards(whole, "train")) + 3):  # and while the files get their names

        def move(old, new):
            nonlocal left
            left -= 1
            if left < 0 and "state.json" not in str(new):
                raise KeyboardInterrupt
            replace(old, new)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", move)
            try:
                corpus.prepare_corpus(cfg, {}, tmp_path)
                break
            except KeyboardInterrupt:
                assert not (tmp_path / "out" / "tokenizer.json").exists()
    if (tmp_path / "out" / ".preparing").exists():
        corpus.prepare_corpus(cfg, {}, tmp_path)
    assert files(tmp_path / "out") == files(whole)


def test_a_killed_preparation_goes_on(source, whole, tmp_path):
    """SIGKILL, by the scripts of the data sets themselves; the second finishes what the first began."""
    def command(name, save):
        code = ("import runpy, sys; from nanoft.text import corpus\n"
                f"corpus.SAVE_SECONDS = {save}; corpus.GROUP = 1000\n"
                f"sys.argv = ['prepare.py', '--source={source}', '--vocab_size=300', '--shard_tokens=9000', "
                f"'--val_fraction=0.1', '--out={tmp_path}']\n"
                f"runpy.run_path('data/{name}/prepare.py', run_name='__main__')")
        return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)

    first, deadline = command("fineweb", -1.0), time.monotonic() + 60
    while not (tmp_path / ".preparing" / "state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = command("openwebtext", 5.0)
    printed = second.communicate()[0]
    assert second.returncode == 0 and "going on after" in printed, printed
    assert files(tmp_path) == files(whole)


def test_a_source_file_that_has_changed_is_read_again(small, whole, tmp_path):
    """From its beginning: what came of it before is cut off, even if it was more."""
    rows = [json.dumps({"text": text}) + "\n" for text in DOCUMENTS[:500]]
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "0.jsonl").write_text("".join(rows[:100]), encoding="utf-8")
    path = tmp_path / "source" / "1.jsonl"
    path.write_text("".join(rows[100:]) + '{"te', encoding="utf-8")
    others = {"tokenizer": str(whole / "tokenizer.json"), "shard_tokens": 10**6}
    with pytest.raises(UserError, match="1.jsonl: line 401"):
        corpus.prepare_corpus(options(tmp_path / "source", tmp_path / "out", **others), {}, tmp_path)
    state = json.loads((tmp_path / "out" / ".preparing" / "state.json").read_text(encoding="utf-8"))
    assert state["file"] == 1 and state["documents"] > 300
    path.write_text("".join(rows[100:200]), encoding="utf-8")
    for out in ("out", "fresh"):
        corpus.prepare_corpus(options(tmp_path / "source", tmp_path / out, **others), {}, tmp_path)
    assert files(tmp_path / "out") == files(tmp_path / "fresh")
    assert sorted(documents(tmp_path / "out", "train") + documents(tmp_path / "out", "val")) == sorted(DOCUMENTS[:200])


def test_other_options_and_a_second_preparation_are_refused(source, whole, tmp_path, monkeypatch):
    cfg = options(source, tmp_path / "out")
    work = tmp_path / "out" / ".preparing"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare, "install", stop)
        corpus.prepare_corpus(cfg, {}, tmp_path)
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="its preparation was interrupted; give the same command again"):
        prepare.ensure(tmp_path / "out")
    for others, words in ({"vocab_size": 310}, "with vocab_size=300; give"), ({"files": 2}, "with other files"):
        with pytest.raises(UserError, match=words):
            corpus.prepare_corpus(options(source, tmp_path / "out", **others), {}, tmp_path)
    fcntl = pytest.importorskip("fcntl")
    unlock(work)  # as at the end of the process that was interrupted
    with open(work / ".lock", "ab") as file, pytest.raises(UserError, match="in use by another process"):
        fcntl.flock(file, fcntl.LOCK_EX)  # as another process would
        corpus.prepare_corpus(cfg, {}, tmp_path)
    assert contents(tmp_path / "out") == before
    corpus.prepare_corpus(options(source, tmp_path / "out", files=2, overwrite=True), {}, tmp_path)
    assert Tokens.open(tmp_path / "out", "train").num_documents < 600
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="holds a data set"):
        corpus.prepare_corpus(cfg, {}, tmp_path)
    assert contents(tmp_path / "out") == before
    corpus.prepare_corpus(options(source, tmp_path / "out", shard_tokens=10**6, overwrite=True), {}, tmp_path)
    assert sorted(os.listdir(tmp_path / "out")) == ["tokenizer.json", "train.bin", "val.bin"]
    (tmp_path / "out" / "val.bin").write_bytes(bytes(100))  # of nanoGPT, say
    with pytest.raises(UserError, match="val.bin exists and is an input, or was not written by nanoft"):
        corpus.prepare_corpus(options(source, tmp_path / "out", overwrite=True), {}, tmp_path)


@pytest.mark.parametrize("name, content, others, words", [
    ("a.jsonl", b'{"text": "x"}\n{"txt": 1}\n', {}, "line 2"),
    ("a.jsonl.gz", b"no gzip", {}, "cannot be read"),
    ("a.jsonl", b'{"text": "one document"}\n', {}, "split has no text"),
    ("a.txt", b"text", {}, "no file there that ends in .parquet"),
])
def test_bad_input_is_told_in_one_sentence(tmp_path, name, content, others, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        corpus.prepare_corpus(options(tmp_path / name, tmp_path / "out", **others), {}, tmp_path)
    assert len(str(caught.value).splitlines()) == 1 and not (tmp_path / "out" / "tokenizer.json").exists()


def test_options_that_cannot_be(tmp_path):
    assert not corpus.check(options(tmp_path, ""))
    assert len(corpus.check(options(tmp_path, "", shard_tokens=0, val_fraction=1.0, files=-1))) == 3


def test_nothing_found_names_the_address_and_the_other_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOFT_MIRROR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    names = {"fineweb": "HuggingFaceFW/fineweb/resolve/main/sample/10BT/000_00000.parquet",
             "openwebtext": "Skylion007/openwebtext/resolve/main/plain_text/train-00000-of-00080.parquet"}
    for name, address in names.items():
        done = subprocess.run([sys.executable, ROOT / "data" / name / "prepare.py", f"--out={tmp_path / 'out'}",
                               "--vocab_size=300"], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert all(words in done.stderr for words in (address, "--source=PATH", "NANOFT_MIRROR", "raw"))
    with pytest.raises(UserError, match="encoder.json.*encodings/main.*--tokenizer=FOLDER.*gpt2/encoder.json"):
        prepare.gpt2_vocabulary(tmp_path)


def test_parquet(small, source, whole, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow, by which parquet is read, is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    mine = tmp_path / "source"
    mine.mkdir()
    for i in range(3):
        table = pyarrow.table({"id": list(range(300)), "text": DOCUMENTS[300 * i:300 * i + 300]})
        parquet.write_table(table, mine / f"{i}.parquet", row_group_size=70)
    corpus.prepare_corpus(options(mine, tmp_path / "out"), {}, tmp_path)
    assert files(tmp_path / "out") == files(whole)
    data = (mine / "2.parquet").read_bytes()
    for damaged, words in (data[:5000], "not a whole"), (data[:300] + bytes(4000) + data[4300:], "damaged after"):
        (mine / "2.parquet").write_bytes(damaged)
        with pytest.raises(UserError, match=words):
            corpus.prepare_corpus(options(mine, tmp_path / "new", overwrite=True), {}, tmp_path)
    for key, words in ("body", "no column 'body' among id, text"), ("id", r"^\S+: row 1 has no text"):
        with pytest.raises(UserError, match=words):
            corpus.prepare_corpus(options(mine, tmp_path / "new", text_key=key, overwrite=True), {}, tmp_path)


def test_parquet_without_pyarrow_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="pip install pyarrow"):
        corpus.read_texts(tmp_path / "a.parquet", "text")


# ---- the shards of llm.c ---------------------------------------------------------------------------------------------


@pytest.fixture
def gpt2(monkeypatch):
    """A small vocabulary in the place of GPT-2's."""
    tokenizer = train(DOCUMENTS[:50], 400, pattern="gpt2", progress=False)
    monkeypatch.setattr(bins, "GPT2", (tokenizer.vocab_size, tokenizer.fingerprint))
    monkeypatch.setattr(prepare, "gpt2_vocabulary", lambda *_: tokenizer)
    return tokenizer


def write_llm_c(path, ids, version=1):
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, version, len(ids)
    path.write_bytes(header.tobytes() + np.asarray(ids, dtype="<u2").tobytes())


def test_shards_of_llm_c_are_read(gpt2, tmp_path, capfd):
    end = gpt2.special["<|endoftext|>"]
    ids = [i for text in DOCUMENTS[:60] for i in [end, *gpt2.encode(text)]]  # there a document begins with it
    write_llm_c(tmp_path / "fineweb_val_000000.bin", ids[:2000])
    for i, begin in enumerate(range(2000, len(ids), 1500), 1):
        write_llm_c(tmp_path / f"fineweb_train_{i:06d}.bin", ids[begin:begin + 1500])
    prepare.ensure(tmp_path)
    assert "GPT-2's is written there" in capfd.readouterr().out
    assert vocabulary.load(tmp_path).fingerprint == gpt2.fingerprint
    tokens, val = Tokens.open(tmp_path, "train"), Tokens.open(tmp_path, "val")
    assert len(tokens.paths) > 2 and tokens.read(0, len(tokens)).tolist() == ids[2000:]
    assert val.read(0, 2000).tolist() == ids[:2000] and not Tokens.exists(tmp_path, "test")
    assert tokens.fingerprint == gpt2.fingerprint and tokens.vocab_size == gpt2.vocab_size
    val.count_bytes(gpt2)
    assert val.num_bytes == len(gpt2.decode_bytes([i for i in ids[:2000] if i != end]))
    same = fingerprint(Tokens.open(tmp_path, "val").headers)
    write_llm_c(tmp_path / "fineweb_val_000000.bin", ids[1:2001])  # as many ids, but others
    assert fingerprint(Tokens.open(tmp_path, "val").headers) != same == fingerprint(val.headers)


@pytest.mark.parametrize("name, words", [
    ("edu_fineweb_train_000002.bin", "edu_fineweb_train and fineweb_train are shards of several data sets"),
    ("fineweb_train_000002.bin", "not a token file of nanoft, nor one of llm.c"),
    ("fineweb_train_000003.bin", "do not belong together"),
    ("fineweb_train_000004.bin", "cut short"),
])
def test_shards_that_do_not_belong_together(gpt2, tmp_path, name, words):
    write_llm_c(tmp_path / "fineweb_train_000001.bin", range(100))
    write_llm_c(tmp_path / name, range(100), version=7 if "2" in name and "edu" not in name else 1)
    if "3" in name:  # a shard of nanoft's own
        bins.write_split(tmp_path / "own", "train", DOCUMENTS[:9], gpt2)
        (tmp_path / name).write_bytes((tmp_path / "own" / "train.bin").read_bytes())
    if "4" in name:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-2])
    with pytest.raises(UserError, match=words) as caught:
        Tokens.open(tmp_path, "train")
    assert len(str(caught.value).splitlines()) == 1


def test_shards_of_llm_c_are_never_replaced(gpt2, tmp_path):
    for split in ("train", "test"):
        write_llm_c(tmp_path / f"tiny_{split}.bin", range(100))
    before = contents(tmp_path)
    prepare.write_data(tmp_path, {"train": DOCUMENTS[:9], "val": DOCUMENTS[9:12]}, 300)
    after = contents(tmp_path)
    assert after.items() > before.items()
    assert Tokens.open(tmp_path, "train").num_documents == 9  # the folder's own come first


GPT2_FILES = os.environ.get("NANOFT_MIRROR") and os.path.join(os.environ["NANOFT_MIRROR"], "gpt2", "vocab.bpe")


@pytest.mark.skipif(not GPT2_FILES or not os.path.exists(GPT2_FILES), reason="no GPT-2 vocabulary; set NANOFT_MIRROR")
def test_train_on_shards_of_llm_c(tmp_path):
    tokenizer = prepare.gpt2_vocabulary(tmp_path)
    assert bins.GPT2 == (tokenizer.vocab_size, tokenizer.fingerprint)
    text = " ".join(WORDS)
    write_llm_c(tmp_path / "fineweb_train_000001.bin", [50256, *tokenizer.encode(text)])
    write_llm_c(tmp_path / "fineweb_val_000000.bin", tokenizer.encode(text[:2000]))
    command = [sys.executable, "train.py", f"--data={tmp_path}", f"--out_dir={tmp_path / 'run'}", "--max_steps=2",
               "--n_layer=1", "--n_embd=16", "--n_head=2", "--block_size=32", "--batch_size=2", "--sample_tokens=0",
               "--device=cpu", "--compile=false"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "GPT-2's is written there" in done.stdout, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    n_tokens = len(tokenizer.encode(text[:2000]))
    bits = result["val_loss"] / np.log(2) * n_tokens / len(text[:2000].encode())
    assert result["val_bits_per_byte"] == pytest.approx(bits, rel=1e-9)
