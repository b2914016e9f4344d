"""Every reader is given damaged and foreign input: it gives a result or a UserError, within seconds.

NANOFT_FUZZ=10000 pytest tests/test_fuzz.py tries that many inputs for each reader; without it, a few.
"""

import copy
import json
import os
import random
import signal
import zlib
from functools import partial

import pytest
import torch
from conftest import DIST, TINY

import finetune
import sample
import train
from nanoft import UserError, bins, bpe, checkpoint, config, optim
from nanoft.bins import Tokens, write_split
from nanoft.model import CLASSIC, ModelConfig, make_model
from nanoft.pages import run_report
from nanoft.published import convert, safetensors
from nanoft.published.source import open_checkpoint
from nanoft.tasks import examples, predict
from nanoft.tasks.heads import TaskModel
from nanoft.text import vocabulary
from nanoft.text.wordpiece import WordPiece

CASES = int(os.environ.get("NANOFT_FUZZ", 60))
ODD = [None, True, -1, 0, 1, 2**31, 2**40, 2**70, -0.5, 1e308, float("nan"), float("inf"), "", "x", "nan", "\ud800",
       "\0", [], {}, [[]], [None], {"a": 1}, "é" * 300, [1, 2], ["a", "b"]]
BYTES = [b"", b"\0", b"\xff\xfe", b'"', b"\n\n", b"\r", b",", b"\t", b"{", b"]", b"1e999", b"-1", b"NaN", b"[" * 3000,
         "\ufeff".encode(), "é".encode(), b"null", b"\\ud800", b"O", b"B-"]


def odd_bytes(data: bytes, rng) -> bytes:
    """The bytes with one to three of: a flipped bit, a part cut out or doubled, an end cut off, something put in."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, end = sorted(rng.choices(range(len(data) + 1), k=2))
        change = rng.randrange(5)
        if change == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:]
        elif change == 1:
            data = data[:at] + data[min(end, at + rng.randrange(40)):]
        elif change == 2:
            data = data[:end] + data[at:]
        elif change == 3:
            data = data[:at]
        else:
            data = data[:at] + rng.choice(BYTES) + data[at:]
    return data


def odd_value(value, rng):
    """The value (of dictionaries, lists and what these hold) with one part replaced, left out, or more of it."""
    value = copy.deepcopy(value)
    spots = []

    def walk(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            spots.append((node, key))
            walk(node[key])

    walk(value)
    for _ in range(rng.choice((1, 1, 2))):
        if not spots or rng.random() < 0.03:
            return rng.choice(ODD)
        node, key = rng.choice(spots[:12] if rng.random() < 0.5 else spots)
        change = rng.randrange(6)
        if change == 0 and key in (node if isinstance(node, dict) else range(len(node))):
            del node[key]
        elif change == 1 and isinstance(node, dict):
            node[rng.choice(("x", "", "dtype"))] = rng.choice(ODD)
        elif key in (node if isinstance(node, dict) else range(len(node))):
            old = node[key]
            node[key] = rng.choice((*ODD, old, [old], {"x": old}))
            if isinstance(old, torch.Tensor) and not old.is_sparse:
                node[key] = rng.choice((old[:-1] if old.dim() else old[None], old.double(), old[None],
                                        torch.tensor(1.0), torch.zeros(0),
                                        old.to_sparse() if old.dim() else old, "x", None))
    return value


class TooSlow(BaseException):
    """Longer than five seconds."""


def too_slow(*_):
    raise TooSlow


@pytest.fixture
def fuzz():
    """fuzz(attempt): attempt(rng) CASES times, each with its own numbers."""
    before = signal.signal(signal.SIGPROF, too_slow)  # seconds of this process, whatever else the machine does

    def fuzz(attempt, cases=CASES, least=0.1):
        refused = 0
        for seed in range(cases):
            signal.setitimer(signal.ITIMER_PROF, 5)
            try:
                attempt(random.Random(seed))
            except UserError:
                refused += 1
            except BaseException as error:
                raise AssertionError(f"seed {seed}: {type(error).__name__}: {error!s:.300}") from error
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        assert refused >= least * cases  # else nothing was tried
    yield fuzz
    signal.signal(signal.SIGPROF, before)


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train(["the cat sat on the mat, the dog sat on the log"] * 3, 280, progress=False)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def load(script, argv):
    """config.load as a user sees it: config.run makes a sentence of what the file system says of a name."""
    try:
        config.run(lambda: config.load(script.Config, argv, check=script.check))
    except SystemExit as stopped:
        assert stopped.code == 2
        raise UserError from None


# ---- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [train, finetune, sample])
def test_options(script, fuzz, capsys):
    fields = list(script.Config.__dataclass_fields__)
    odd = ["", "nan", "-inf", "1e999", "9" * 5000, "9" * 400, "-1", "0", "1", "2", "0.5", "true", "x", "1e300",
           "[" * 500, "(" * 5000, "2**70", "\udcff", "é", "None", "18446744073709551616", "-0.0", "lr=1;lr=2", "1,2,x",
           "=", "1e-300"]

    def attempt(rng):
        argv = [f"--{rng.choice(fields)}={rng.choice(odd)}" for _ in range(rng.randint(1, 4))]
        load(script, argv)
    fuzz(attempt, 3 * CASES)


def test_config_files(fuzz, tmp_path, capsys):
    fields = list(train.Config.__dataclass_fields__)
    known = [repr(x) for x in ODD] + ["x", "1 +", "(1, 2)", "1e999", "print", "1j", "b''", "open('/none')", "1 / 0"]

    def attempt(rng):
        lines = [f"{rng.choice(fields)} = {rng.choice(known)}" for _ in range(rng.randint(1, 3))]
        path = write(tmp_path / "x.py", "\n".join(lines).encode("utf-8", "surrogatepass"))
        load(train, [str(path)])
    fuzz(attempt)


# ---- tokenizers and token files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "values", "pieces", "published", "hugging face"])
def test_tokenizer_json(kind, tokenizer, fuzz, tmp_path):
    pieces = WordPiece.from_content({"version": 1, "lowercase": True, "strip_accents": True, "split_chinese": True,
                                     "tokens": "[PAD] [UNK] [CLS] [SEP] [MASK] a b c ##d".split()}, "x")
    content = (pieces if kind == "pieces" else tokenizer).content
    content = vocabulary.hugging_face(tokenizer, framed=True) if kind == "hugging face" else content
    ids, merges = vocabulary.byte_level_files(tokenizer)

    def attempt(rng):
        if kind == "published":
            write(tmp_path / "vocab.json", odd_value(ids, rng) if rng.random() < 0.5 else ids)
            write(tmp_path / "merges.txt", odd_bytes("\n".join(merges).encode(), rng))
            tok = vocabulary.load(tmp_path)
        else:
            change = odd_bytes(json.dumps(content).encode(), rng) if kind == "bytes" else odd_value(content, rng)
            tok = vocabulary.load(write(tmp_path / "tokenizer.json", change))
        tok.decode(tok.encode("the cat, the 123 dogs"))
    fuzz(attempt)


def test_token_files(tokenizer, fuzz, tmp_path):
    write_split(tmp_path, "train", ["the cat sat on the mat"] * 40, tokenizer)
    data = (tmp_path / "train.bin").read_bytes()

    def attempt(rng):
        header, ids = bytearray(data[:bins.HEADER_BYTES]), data[bins.HEADER_BYTES:]
        if rng.random() < 0.5:  # a header whose own checksum is right
            header[12 + rng.randrange(bins.HEADER.size - 16)] ^= 1 << rng.randrange(8)
            size = bins.HEADER.size - 4
            header[size:size + 4] = zlib.crc32(header[:size]).to_bytes(4, "little")
            content = bytes(header) + ids
        else:
            content = odd_bytes(data, rng)
        write(tmp_path / "train.bin", content)
        tokens = Tokens.open(tmp_path, "train")
        tokens.read(0, min(len(tokens), 50))
    fuzz(attempt)


# ---- rows --------------------------------------------------------------------------------------------------------

SQUAD = {"data": [{"paragraphs": [{"context": f"the end is {i} near", "qas": [
    {"id": str(i), "question": "q?", "answers": [{"text": "end", "answer_start": 4}]}]}]} for i in range(12)]}
LINES = [{"text": f"good {i} film", "label": "pos"} if i % 2 else {"text": f"bad {i} film", "label": "neg"}
         for i in range(30)]


@pytest.mark.parametrize("kind, name, content", [
    ("classify", "x.csv", "text,label\n" + "".join(f'"a, good {i}",pos\nbad {i},neg\n' for i in range(15))),
    ("classify", "x.tsv", "text\tlabel\n" + "".join(f"good {i}\tpos\nbad {i}\tneg\n" for i in range(15))),
    ("classify", "x.jsonl", "\n".join(map(json.dumps, LINES))),
    ("regress", "x.csv", "text,label\n" + "".join(f"good {i},{i / 3}\n" for i in range(30))),
    ("tag", "x.conll", "".join(f"# s{i}\nthe O\ncat{i} B-A\nsat I-A\n\n" for i in range(20))),
    ("answer", "x.json", json.dumps(SQUAD)),
    ("generate", "x.jsonl", "\n".join(json.dumps({"prompt": f"p{i}", "response": "r"}) for i in range(20)))])
def test_tables(kind, name, content, fuzz, tmp_path, capsys):
    def attempt(rng):
        examples.from_table(write(tmp_path / name, odd_bytes(content.encode(), rng)), kind)
    fuzz(attempt)


@pytest.mark.parametrize("kind", ["squad", "jsonl", "task"])
def test_folders_and_json(kind, fuzz, tmp_path, capsys):
    task = {"kind": "classify", "labels": ["neg", "pos"], "metric": "accuracy"}

    def attempt(rng):
        if kind == "squad":
            return examples.from_table(write(tmp_path / "x.json", odd_value(SQUAD, rng)), "answer")
        for split in ("train", "val"):
            rows = odd_value(LINES, rng) if kind == "jsonl" else LINES
            write(tmp_path / f"{split}.jsonl", b"\n".join(
                json.dumps(row).encode() for row in (rows if isinstance(rows, list) else [rows])))
        write(tmp_path / "task.json", odd_value(task, rng) if kind == "task" else task)
        return examples.load_task(tmp_path)
    fuzz(attempt)


# ---- weights -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def states():
    """The dictionaries of latest.pt of a GPT, and of a classifier's best.pt."""
    cfg = ModelConfig(vocab_size=280, block_size=16, n_layer=1, n_head=2, n_embd=8)
    model = make_model(cfg)
    optimizers = optimizers_of(model)
    model(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    latest = {"model": dict(model.state_dict()), "model_config": vars(cfg), "step": 3, "seed": 1, "evaluated": 3,
              "config": {"optimizer": "muon"}, "optimizer": [o.state_dict() for o in optimizers], "scaler": {},
              "seconds": 1.0, "best_val_loss": 2.0, "fingerprints": {"tokenizer": "x"}}
    cfg = ModelConfig(vocab_size=280, block_size=16, n_layer=1, n_head=2, n_embd=8, causal=False)
    task = {"kind": "classify", "labels": ["a", "b"], "metric": "accuracy", "max_length": 16, "long_text": "head",
            "pool": "mean", "head_dropout": 0.1, "doc_stride": 8, "linear": False, "match_types": False}
    return latest, {"model": dict(TaskModel(cfg, task).state_dict()), "model_config": vars(cfg), "step": 1,
                    "task": task, "config": {}}


def optimizers_of(model):
    cfg, _ = config.load(train.Config, TINY), None
    return optim.make_optimizers(model, optim.pretraining_groups(model, cfg), DIST, betas=(0.9, 0.95), eps=1e-10)


@pytest.mark.parametrize("kind", ["latest", "classifier", "bytes"])
def test_checkpoints(kind, states, tokenizer, fuzz, tmp_path):
    path = tmp_path / "latest.pt"
    checkpoint.save(path, states[0])
    data = path.read_bytes()

    def attempt(rng):
        if kind == "bytes":
            write(path, odd_bytes(data, rng))
        else:
            checkpoint.save(path, odd_value(states[kind == "classifier"], rng))
        state = checkpoint.load(path)
        if kind == "classifier":
            task = state["task"] if "task" in state else states[1]["task"]
            model = checkpoint.load_model(state, path, partial(TaskModel, task=task))
            row = [{"text": "the cat"}]
            encoded = predict.features.encode(row, task, tokenizer)
            predict.predictions(task, row, encoded, predict.outputs(model, encoded, task, tokenizer, DIST))
            return
        model = checkpoint.load_model(state, path, make_model)
        optimizers = optimizers_of(model)
        checkpoint.check_resumable(state, optimizers, path)
        for optimizer, saved in zip(optimizers, state["optimizer"]):
            optimizer.load_state_dict({"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]})
        model.train()(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    fuzz(attempt)


@pytest.mark.parametrize("family", ["gpt2", "bert", "qwen3", "own"])
def test_published_folders(family, tokenizer, fuzz, tmp_path, capsys):
    sizes = dict(vocab_size=tokenizer.vocab_size, block_size=16, n_layer=1, n_head=2, n_embd=8)
    sizes |= CLASSIC[family] | {"vocab_multiple": 1} if family in CLASSIC else {}
    sizes |= {"activation": "swiglu"} if family == "qwen3" else {}
    sizes |= {"causal": False, "n_types": 2} if family == "bert" else {}
    cfg, tok = ModelConfig(**sizes), tokenizer
    if family == "bert":
        tok = WordPiece.from_content({"version": 1, "lowercase": True, "strip_accents": True, "split_chinese": True,
                                      "tokens": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
                                                 *(f"w{i}" for i in range(275))]}, "x")
    state = {"model": dict(make_model(cfg).state_dict()), "model_config": vars(cfg), "step": 0, "config": {}}
    if family == "own":
        convert.write_bundle(state, tok, tmp_path / "x.safetensors")
        content = json.loads(safetensors.read_metadata(tmp_path / "x.safetensors")["nanoft"])
    else:
        convert.export(state, tok, tmp_path / "x")
        content = json.loads((tmp_path / "x" / "config.json").read_text())

    def attempt(rng):
        if family == "own":
            described = {"nanoft": json.dumps(odd_value(content, rng))}
            safetensors.write(tmp_path / "x.safetensors", state["model"], described)
        else:
            write(tmp_path / "x" / "config.json", odd_value(content, rng))
        state_read, path = open_checkpoint(tmp_path / ("x.safetensors" if family == "own" else "x"))
        if "task" in state_read:
            checkpoint.load_model(state_read, path, partial(TaskModel, task=state_read["task"]))
        else:
            checkpoint.load_model(state_read, path, make_model)
    fuzz(attempt)


def test_safetensors(fuzz, tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.write(path, {"a": torch.randn(3, 4), "b": torch.ones(5, dtype=torch.bfloat16), "c": torch.zeros(0)})
    data = path.read_bytes()

    def attempt(rng):
        write(path, odd_bytes(data[:300], rng) + data[300:])
        for tensor in safetensors.map_tensors(safetensors.read_entries(path)).values():
            tensor.float().sum()
    fuzz(attempt)


# ---- the report's files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "samples.jsonl", "result.json", "environment.json",
                                  "predictions.jsonl"])
def test_run_files(name, states, fuzz, tmp_path, monkeypatch):
    monkeypatch.setattr(run_report.plots, "svg", lambda figure: "")  # drawing takes a second a page
    checkpoint.save(tmp_path / "best.pt", states[1] | {"config": vars(finetune.Config(device="cpu", dtype="float32"))})
    files = {
        "config.json": {"out_dir": "x", "lr": 0.1, "data": "y"},
        "metrics.jsonl": [{"step": i, "tokens": 10 * i, "seconds": i * 1.0, "loss": 2.0, "lr": 0.1, "val_accuracy": 0.5,
                           "val_loss": 1.0} for i in range(1, 9)],
        "samples.jsonl": [{"step": i, "tag": "sample", "text": "x"} for i in range(3)],
        "result.json": {"val_accuracy": 0.5, "val_loss": 1.0, "seconds": 3.0, "train_seconds": 2.0, "parameters": 1000,
                        "val_confusion": [[1, 2], [3, 4]], "val_per_class": {"a": {"f1": 0.5, "support": 3}}},
        "environment.json": [{"command": "python train.py", "step": 0, "cores": 2}],
        "predictions.jsonl": [{"row": i, "text": "x", "label": "a", "prediction": "b",
                               "probabilities": {"a": 0.25, "b": 0.75}} for i in range(4)]}
    for other, content in files.items():
        lines = b"\n".join(json.dumps(row).encode() for row in content)
        write(tmp_path / other, lines if other.endswith("jsonl") else content)

    def attempt(rng):
        content = odd_value(files[name], rng)
        if name.endswith("jsonl"):
            rows = content if isinstance(content, list) else [content]
            content = b"\n".join(json.dumps(row).encode() for row in rows)
            content = odd_bytes(content, rng) if rng.random() < 0.3 else content
        write(tmp_path / name, content)
        "".join(run_report.report(run_report.load(tmp_path)))
    fuzz(attempt, least=0.0 if name.endswith("s.jsonl") and name != "predictions.jsonl" else 0.1)  # rows are left out
