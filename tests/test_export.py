"""Models that leave nanoft: what other programs say of them, and what each form holds, read back here."""

import functools
import math
import random
import struct

import pytest
import torch
from conftest import ROOT, TINY, some_slow

import sample
import train
from nanoft import UserError, bpe, checkpoint, generate
from nanoft.model import CLASSIC, ModelConfig, make_model
from nanoft.pretokenize import PATTERNS
from nanoft.published import convert, gguf, safetensors
from nanoft.published.source import open_checkpoint
from nanoft.sampling import Sampling
from nanoft.tasks import linear
from nanoft.tasks.heads import TaskModel
from nanoft.text import vocabulary

TEXT = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "nanoft").rglob("*.py")))
TEXT = TEXT.replace("<|", "<")  # the text of a special token is that token, wherever it stands, in other programs
GREEDY = Sampling(temperature=0)
QWEN3 = {"activation": "swiglu", "n_kv_head": 2}
SHAPES = {"qwen3": QWEN3, "tied": QWEN3 | {"tie_head": True}, "tied, not normed": QWEN3 | {
    "tie_head": True, "embed_norm": False}, "gpt2": CLASSIC["gpt2"]}


@pytest.fixture(scope="module")
def tokenizers():
    return {pattern: bpe.train([TEXT[:100_000]], 600, pattern=pattern, progress=False) for pattern in PATTERNS}


def state_of(tokenizer, size=0.3, **options):
    """A checkpoint's dictionary and its model, whose weights and biases are all far from 0 and from 1."""
    shape = dict(vocab_size=tokenizer.vocab_size, block_size=160, n_layer=2, n_head=4, n_embd=64)
    model = make_model(ModelConfig(**shape | options))
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        p.data = torch.randn(p.shape, generator=generator) * size + ("norm" in name and name.endswith("weight"))
    return {"model": model.state_dict(), "model_config": vars(model.cfg), "step": 3, "config": {}}, model.eval()


def opened(place):
    state, path = open_checkpoint(place)
    return checkpoint.load_model(state, path, make_model), vocabulary.of_checkpoint(path)


def odd_text(length, seed=0):
    """A text of everything: source code, and characters of every script, in no order."""
    rng, parts = random.Random(seed), []
    while sum(map(len, parts)) < length:
        at = rng.randrange(len(TEXT) - 300)
        chars = [chr(rng.choice([rng.randrange(32, 127), rng.randrange(9, 0x3000), rng.randrange(0x3000, 0xd800),
                                 rng.randrange(0x1f300, 0x1f700)])) for _ in range(20)]
        parts += [TEXT[at:at + 300], "".join(chars), rng.choice([
            "  \n\n", "'LL it's", "1000000000 11111111 ", "\t\r\n ", " \u3000\u2028", "\u2002x", "\x1c\x85"])]
    return "".join(parts)


def write_gguf(state, tokenizer, path, dtype="float32"):
    content, weights, _ = convert.published(state, tokenizer, path)
    state["special"] = tokenizer.special["<|endoftext|>"]
    gguf.write(path, content, weights, tokenizer, dtype)
    return content, weights


def read_gguf(path):
    """The fields and the tensors of a GGUF, from its specification."""
    data = path.read_bytes()
    at = 4

    def take(form):
        nonlocal at
        at += struct.calcsize(f"<{form}")
        return struct.unpack_from(f"<{form}", data, at - struct.calcsize(f"<{form}"))

    def value(kind):
        if kind == 8:
            return take(f"{take('Q')[0]}s")[0].decode()
        if kind == 9:
            inner, n = take("IQ")
            return [value(inner) for _ in range(n)]
        return take({4: "I", 5: "i", 6: "f", 7: "?"}[kind])[0]

    assert data[:4] == b"GGUF" and take("I") == (3,)
    n_tensors, n_fields = take("QQ")
    fields = {value(8): value(take("I")[0]) for _ in range(n_fields)}
    entries = [(value(8), take(f"{take('I')[0]}Q"), *take("IQ")) for _ in range(n_tensors)]
    start, tensors = -(-at // 32) * 32, {}
    for name, sizes, kind, offset in entries:
        at, n = start + offset, math.prod(sizes)
        if kind == 8:
            blocks = torch.tensor([take("e32b") for _ in range(n // 32)])
            tensors[name] = (blocks[:, :1] * blocks[:, 1:]).view(*sizes[::-1])
        else:
            dtype = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}[kind]
            x = torch.frombuffer(bytearray(data), dtype=dtype, count=n, offset=at)
            tensors[name] = x.view(*sizes[::-1]).float()
        assert offset % 32 == 0
    return fields, tensors


# ---- other programs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", SHAPES)
def test_transformers_opens_the_folder_whole(name, pattern, tokenizers, tmp_path):
    transformers = pytest.importorskip("transformers")
    state, ours = state_of(tokenizers[pattern], **SHAPES[name])
    convert.export(state, tokenizers[pattern], tmp_path / "x")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "x", output_loading_info=True)
    assert not any(info.values()), info
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "x")
    text = odd_text(20_000)
    ids = tokenizer.encode(text)
    assert ids == tokenizers[pattern].encode(text) and tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == tokenizers[pattern].special["<|endoftext|>"] == model.config.eos_token_id
    start = torch.tensor([ids[:20], ids[50:70]])
    whole = torch.tensor(ids[:160])[None]
    assert (model(whole).logits - ours.logits(whole)[..., :ours.cfg.vocab_size]).abs().max() < 1e-4
    found = torch.stack(list(generate.generate(ours, start, 100, GREEDY)), dim=1)
    expected = model.generate(start, max_new_tokens=100, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert found.tolist() == expected[:, 20:].tolist() and found.unique().numel() > 10


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_opens_the_file(name, pattern, tokenizers, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    state, ours = state_of(tokenizers[pattern], **SHAPES[name])
    write_gguf(state, tokenizers[pattern], tmp_path / "x.gguf")
    model = llama_cpp.Llama(str(tmp_path / "x.gguf"), n_ctx=160, logits_all=True, n_threads=1, type_k=0, type_v=0,
                            flash_attn=False, verbose=False)  # keys and values in float32
    text = odd_text(20_000)
    ids = model.tokenize(text.encode(), add_bos=True, special=False)
    assert ids == tokenizers[pattern].encode(text) and model.token_eos() == state["special"]
    model.eval(ids[:150])
    expected, found = ours.logits(torch.tensor([ids[:150]]))[0, :, :600], torch.tensor(model.scores[:150])
    error = 2e-3 if name == "gpt2" else 5e-6  # its GELU is a table
    assert (found - expected).abs().max() < error * expected.abs().max()
    expected = [int(x) for x in generate.generate(ours, torch.tensor([ids[:20]]), 100, GREEDY)]
    model.reset()
    for i in range(100):
        model.eval(ids[:20] if i == 0 else [expected[i - 1]])
        assert int(torch.tensor(model.scores[model.n_tokens - 1]).argmax()) == expected[i], i


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_gguf_opens_the_file(dtype, tokenizers, tmp_path):
    peer = pytest.importorskip("gguf")
    state, _ = state_of(tokenizers["gpt4"], **QWEN3)
    write_gguf(state, tokenizers["gpt4"], tmp_path / "x.gguf", dtype)
    reader = peer.GGUFReader(tmp_path / "x.gguf")
    fields, tensors = read_gguf(tmp_path / "x.gguf")
    assert fields == {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    found = {x.name: torch.tensor(peer.dequantize(x.data, x.tensor_type)) for x in reader.tensors}
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], x) for name, x in tensors.items())


def test_transformers_opens_an_encoder_with_a_tokenizer_of_nanoft(tokenizers, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizers["gpt4"]
    state, _ = state_of(tokenizer, **CLASSIC["bert"], n_types=2, causal=False)
    convert.export(state, tokenizer, tmp_path / "x")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "x")
    cls, sep, mask, pad = (tokenizer.special[f"<|{name}|>"] for name in ("cls", "sep", "mask", "pad"))
    assert theirs("a b", "c").input_ids == [cls, *tokenizer.encode("a b"), sep, *tokenizer.encode("c"), sep]
    assert theirs("a b", "c").token_type_ids == [0] * (2 + len(tokenizer.encode("a b"))) + [1, 1]
    assert (theirs.mask_token_id, theirs.pad_token_id) == (mask, pad)


# ---- read back here ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_the_folder_is_opened_by_nanoft(name, tokenizers, tmp_path):
    for pattern, tokenizer in tokenizers.items():
        state, ours = state_of(tokenizer, size=0.01, **SHAPES[name])
        convert.export(state, tokenizer, tmp_path / pattern)
        again, read = opened(tmp_path / pattern)
        assert read.fingerprint == tokenizer.fingerprint
        ids = torch.tensor([tokenizer.encode(TEXT[:2000])[:160]])
        expected, found = ours.logits(ids)[..., :tokenizer.vocab_size], again.logits(ids)
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
@pytest.mark.parametrize("dtype, error", [("float32", 0), ("float16", 1e-3), ("bfloat16", 4e-3), ("int8", 8e-3)])
def test_a_gguf_holds_the_model_and_its_tokenizer(name, dtype, error, tokenizers, tmp_path):
    tokenizer = tokenizers["gpt4"]
    state, _ = state_of(tokenizer, **SHAPES[name])
    content, weights = write_gguf(state, tokenizer, tmp_path / "x.gguf", dtype)
    fields, tensors = read_gguf(tmp_path / "x.gguf")
    assert fields["general.architecture"] == name and fields[f"{name}.block_count"] == 2
    assert fields[f"{name}.context_length"] == 160 and fields[f"{name}.feed_forward_length"] == 256
    assert len(fields["tokenizer.ggml.tokens"]) == 600 == len(tensors["token_embd.weight"])
    assert [i for i, kind in enumerate(fields["tokenizer.ggml.token_type"]) if kind == 3] == [*range(595, 600)]
    assert len(fields["tokenizer.ggml.merges"]) == 339 and fields["tokenizer.ggml.pre"] == "llama-bpe"
    sums = sorted(float(x.double().abs().sum()) for x in weights.values())
    assert sums == pytest.approx(sorted(float(x.double().abs().sum()) for x in tensors.values()), rel=error + 1e-6)
    table = next(x for key, x in weights.items() if "wte" in key or "embed" in key)
    assert (tensors["token_embd.weight"] - table).abs().max() <= error * table.abs().max()
    if name == "gpt2":
        c_attn = weights["transformer.h.1.attn.c_attn.weight"].mT
        assert (tensors["blk.1.attn_qkv.weight"] - c_attn).abs().max() <= error * c_attn.abs().max()


def test_what_llama_cpp_does_not_have_is_refused(tokenizers, tmp_path):
    own = bpe.train([TEXT[:5000]], 300, pattern=r"\w+|\W", progress=False)
    for tokenizer, options, why in (
            (tokenizers["gpt4"], CLASSIC["gpt2"] | {"activation": "gelu"}, "gelu_tanh"), (own, QWEN3, "split pattern"),
            (tokenizers["gpt4"], CLASSIC["bert"] | {"causal": False, "n_types": 2}, "causal models")):
        with pytest.raises(UserError, match=why):
            write_gguf(state_of(tokenizer, **options)[0], tokenizer, tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())


def test_small_queries_are_normed_as_there(tokenizers):
    """Qwen3 has one eps for all norms, nanoft another for queries and keys: with small ones it shows."""
    state, ours = state_of(tokenizers["gpt4"], size=1e-4, **QWEN3)
    _, weights, _ = convert.published(state, tokenizers["gpt4"], "x")
    x = torch.nn.functional.rms_norm(torch.randn(5, 64), (64,), eps=1e-6)
    theirs = (x @ weights["model.layers.0.self_attn.q_proj.weight"].mT).view(5, 4, 16)  # (5, 64) -> (5, H, D)
    theirs = theirs * torch.rsqrt(theirs.square().mean(-1, keepdim=True) + 1e-6)
    own = torch.nn.functional.rms_norm(ours.trunk.blocks[0].attn.q(x).view(5, 4, 16), (16,))
    assert (own - theirs).abs().max() < 1e-5 and own.square().mean() < 0.9


@pytest.mark.parametrize("options", [{}, QWEN3 | {"n_gram": 2}, QWEN3 | {"qk_norm": False}, {"causal": False},
                                     {"position": "learned"}])
def test_what_no_other_program_has_is_refused(options, tokenizers, tmp_path):
    state, _ = state_of(tokenizers["gpt4"], **options)
    with pytest.raises(UserError, match="activation=swiglu --n_gram=1" if options.get("causal", True) else "arch=bert"):
        convert.export(state, tokenizers["gpt4"], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_qwen3_with_norms_of_its_own_is_refused(tokenizers, tmp_path):
    state, _ = state_of(tokenizers["gpt4"], **QWEN3)
    convert.export(state, tokenizers["gpt4"], tmp_path / "x")
    path = tmp_path / "x" / "model.safetensors"
    weights = {name: x.clone() for name, x in safetensors.map_tensors(safetensors.read_entries(path)).items()}
    weights["model.layers.1.self_attn.k_norm.weight"][3] = 1.1
    safetensors.write(path, weights)
    with pytest.raises(UserError, match="norm.weight has other weights than 1"):
        opened(tmp_path / "x")


@pytest.mark.parametrize("options", [{}, {"n_gram": 2, "n_buckets": 50}, CLASSIC["gpt2"]])
def test_one_file_speaks(options, tokenizers, tmp_path, call, capsys):
    state, ours = state_of(tokenizers["gpt4"], **options)
    convert.write_run(state, tokenizers["gpt4"], tmp_path / "run")
    for dtype in ("float32", "bfloat16"):
        call(convert, tmp_path / "run", f"--export={tmp_path / dtype}.safetensors", f"--dtype={dtype}")
    (tmp_path / "elsewhere").mkdir()
    file = (tmp_path / "float32.safetensors").rename(tmp_path / "elsewhere" / "x.safetensors")
    assert file.stat().st_size > 1.7 * (tmp_path / "bfloat16.safetensors").stat().st_size
    model, tokenizer = opened(file)
    assert tokenizer.fingerprint == tokenizers["gpt4"].fingerprint
    ids = torch.tensor([[1, 2, 3, 4]])
    halved, _ = opened(tmp_path / "bfloat16.safetensors")
    assert all(map(torch.equal, model.state_dict().values(), ours.state_dict().values()))
    assert torch.allclose(model(ids), ours(ids), atol=1e-5)  # sums differ by where in memory the weights lie
    assert not torch.allclose(halved(ids), ours(ids), atol=1e-5)
    capsys.readouterr()
    said = []
    for place in (tmp_path / "run", file):
        call(sample, f"--checkpoint={place}", "--prompt=def ", "--max_new_tokens=20", "--device=cpu")
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and said[0].startswith("def ")
    with pytest.raises(UserError, match="is there already"):
        call(convert, tmp_path / "run", f"--export={file}")


def test_a_file_of_halved_weights_keeps_whole_numbers(tokenizers, tmp_path):
    state, _ = state_of(tokenizers["gpt4"])
    hashes = torch.tensor([[4_000_000_001, 3]])  # as linear.spelling has them
    convert.write_bundle(state | {"model": state["model"] | {"ngrams.spelling": hashes}}, tokenizers["gpt4"],
                         tmp_path / "x.safetensors", torch.bfloat16)
    found = safetensors.map_tensors(safetensors.read_entries(tmp_path / "x.safetensors"))
    assert found["ngrams.spelling"].tolist() == hashes.tolist()


def test_training_makes_what_goes_out(corpus, tmp_path, call):
    options = [*TINY, f"--data={corpus}", "--max_steps=2"]
    with pytest.raises(UserError, match="leave it out"):
        call(train, *options, f"--out_dir={tmp_path / 'x'}", "--activation=swiglu", "--arch=gpt2")
    call(train, *options, f"--out_dir={tmp_path / 'run'}", "--activation=swiglu")
    with pytest.raises(UserError, match="another model .activation=swiglu.; give these options"):
        call(train, *options, f"--out_dir={tmp_path / 'x'}", f"--init_from={tmp_path / 'run'}")
    call(convert, tmp_path / "run", f"--export={tmp_path / 'out'}")
    ids = torch.tensor([[1, 2, 3, 4]])
    expected = opened(tmp_path / "run")[0](ids)
    assert (opened(tmp_path / "out")[0](ids) - expected).abs().max() < 1e-5
    assert opened(tmp_path / "out")[0].cfg.activation == "swiglu"


@pytest.mark.parametrize("kind, thresholds", [
    ("tag", {"good": 0.5}), ("classify", {"bad": 0.7, "good": 0.3, "so so": 0.5})])
def test_thresholds_go_into_the_bias(kind, thresholds, tokenizers, tmp_path, capsys):
    """Other programs take the likeliest tag, and every label above one half."""
    own = CLASSIFY | {"kind": kind, "thresholds": thresholds, "pool": "cls"} | (
        {"multi_label": True} if kind == "classify" else {"transitions": [[0.0] * 3] * 4})
    model, state = encoder_state(tokenizers["gpt4"], CLASSIC["bert"] | {"n_types": 2}, own)
    convert.export(state, tokenizers["gpt4"], tmp_path)
    assert ("transitions" in capsys.readouterr().out) == (kind == "tag")
    again, path = open_checkpoint(tmp_path)
    other = checkpoint.load_model(again, path, functools.partial(TaskModel, task=again["task"]))
    ids = torch.randint(0, 600, (9, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, found = model.logits(ids), other.logits(ids)
    if kind == "tag":
        expected = (logits - torch.tensor([0, 0.5, 0])).argmax(-1)
        assert torch.equal(found.argmax(-1), expected) and not torch.equal(logits.argmax(-1), expected)
    else:
        expected = logits.sigmoid() > torch.tensor([0.7, 0.3, 0.5])
        assert torch.equal(found > 0, expected) and not torch.equal(logits > 0, expected)


# ---- ONNX --------------------------------------------------------------------------------------------------------

CLASSIFY = {"kind": "classify", "labels": ["bad", "good", "so so"], "pool": "mean", "head_dropout": 0.1}
ENCODERS = {
    "a published classifier": (CLASSIC["bert"] | {"n_types": 2}, CLASSIFY | {"pool": "cls"}),
    "n-grams": ({"n_gram": 3, "n_buckets": 100}, CLASSIFY | {"linear": True}),
    "two texts": ({}, CLASSIFY | {"kind": "pair", "linear": True}),  # the linear model alone reads types, 0 to 3
    "a causal classifier": ({"causal": True, "n_kv_head": 2}, CLASSIFY | {"pool": "last"}),
    "numbers": ({}, {"kind": "regress", "pool": "mean", "head_dropout": 0.1, "mean": 3.0, "deviation": 2.0}),
    "tags": ({}, CLASSIFY | {"kind": "tag"}),
    "tags, by the spelling of words too": ({}, CLASSIFY | {"kind": "tag", "linear": True}),
    "answers": ({"n_types": 2}, CLASSIFY | {"kind": "answer"}),
    "masked words": ({"n_types": 2}, None)}


def encoder_state(tokenizer, options, task):
    cfg = ModelConfig(**dict(vocab_size=tokenizer.vocab_size, block_size=64, n_layer=2, n_head=4, n_embd=32,
                             causal=False) | options)
    model = TaskModel(cfg, task) if task else make_model(cfg)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(x.shape, generator=generator) * 0.3 for name, x in model.state_dict().items()}
    if "ngrams.spelling" in state:
        state["ngrams.spelling"] = linear.spelling(tokenizer)
    checkpoint.load_weights(model, state, "x")
    return model.eval(), {"model": model.state_dict(), "model_config": vars(cfg), "step": 0, "config": {}} | (
        {"task": task} if task else {})


@pytest.mark.parametrize("name", some_slow(ENCODERS, fast=("a published classifier",)))
def test_onnxruntime_computes_the_same(name, tokenizers, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    tokenizer, (options, task) = tokenizers["gpt4"], ENCODERS[name]
    model, state = encoder_state(tokenizer, options, task)
    convert.write_onnx(state, tokenizer, tmp_path / "x" / "model.onnx")
    assert "takes input_ids, attention_mask" in capsys.readouterr().out
    session = runtime.InferenceSession(tmp_path / "x" / "model.onnx")
    assert session.get_modelmeta().custom_metadata_map["longest"] == "64"
    rng = random.Random(0)
    for _ in range(12):
        n, length = rng.randint(1, 9), rng.randint(1, 64)
        ids, types = torch.randint(0, 600, (n, length)), torch.randint(0, 4 if name == "two texts" else 2, (n, length))
        mask = torch.arange(length) < torch.randint(1, length + 1, (n, 1))
        inputs = {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": types}
        if "token_type_ids" not in [x.name for x in session.get_inputs()]:
            del inputs["token_type_ids"], types
            types = None
        assert (types is not None) == (bool(model.cfg.n_types) or name == "two texts")
        found = torch.tensor(session.run(None, {name: x.numpy() for name, x in inputs.items()})[0])
        with torch.no_grad():
            if task:
                expected = model.logits(ids, types, mask, allowed=mask)
                expected = expected * 2 + 3 if task["kind"] == "regress" else expected
            else:
                expected = model.word_logits(model.hidden(ids, types, mask))[..., :600]
        assert found.shape == expected.shape and torch.equal(found.isfinite(), expected.isfinite())
        assert (found - expected)[expected.isfinite()].abs().max() < 1e-4


def test_what_onnx_is_not_for(tokenizers, tmp_path, call):
    pytest.importorskip("onnxscript")
    state, _ = state_of(tokenizers["gpt4"])
    with pytest.raises(UserError, match="goes out as FILE.gguf"):
        convert.write_onnx(state, tokenizers["gpt4"], tmp_path / "x" / "model.onnx")
    convert.write_run(state, tokenizers["gpt4"], tmp_path / "run")
    for words, why in ((["--dtype=int8", f"--export={tmp_path / 'x.safetensors'}"], "int8 is for a .gguf"),
                       (["--dtype=int8", f"--export={tmp_path / 'x'}"], "int8 is for a .gguf"),
                       ([f"--export={tmp_path / 'run' / 'x.onnx'}"], "is not empty")):
        with pytest.raises(UserError, match=why):
            call(convert, tmp_path / "run", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    checkpoint.save(tmp_path / "adapter.pt", checkpoint.load(tmp_path / "run" / "best.pt") | {"rank": 1, "alpha": 2.0})
    with pytest.raises(UserError, match="is an adapter"):
        call(convert, tmp_path / "adapter.pt", f"--export={tmp_path / 'x.safetensors'}")
