"""Published models in and out: what transformers says of them, nanoft says too, and the other way round."""

import json
import random

import pytest
import torch
from conftest import TINY, run

import finetune
import sample
import train
from nanoft import UserError, bpe, checkpoint, generate
from nanoft.model import CLASSIC, ModelConfig, make_model
from nanoft.published import convert, layouts, safetensors
from nanoft.published.source import open_checkpoint
from nanoft.sampling import Sampling
from nanoft.tasks.heads import TaskModel
from nanoft.text import prepare, vocabulary
from nanoft.text.wordpiece import WordPiece

PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] a b c d e f good bad film ##s ##ing the . , was not".split()


def fill(model, size=0.3):
    """Weights that all matter: larger than models begin with, norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        p.data = torch.randn(p.shape, generator=generator) * size + ("norm" in name.lower() and name.endswith("weight"))
    return model.eval()


def load(folder, meta=True):
    """The model of a published folder, as sample.py makes it."""
    state, path = open_checkpoint(folder)
    cfg = ModelConfig.from_saved(state["model_config"], path)
    with torch.device("meta" if meta else "cpu"):
        model = TaskModel(cfg, state["task"]) if "task" in state else make_model(cfg)
    checkpoint.load_weights(model, state["model"], path)
    return model.eval(), state


def read_all(path):
    """{name: tensor} of a file of weights."""
    return safetensors.map_tensors(safetensors.read_entries(path))


def texts(vocab, length=13, pad=0):
    """ids, types and mask (4, T) of texts of four lengths, none of whose ids is that of padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, vocab, (4, length), generator=generator)
    types = torch.randint(0, 2, (4, length), generator=generator)
    mask = torch.arange(length) < torch.tensor([length, 5, 1, length - 1])[:, None]
    return ids.masked_fill(~mask, pad), types, mask


def close(a, b, tolerance=1e-5):
    """Equal to 1e-5 of numbers of size 1, as far as float32 can."""
    return a.shape == b.shape and (a - b).abs().max() <= tolerance * max(1, a.abs().max())


# ---- against transformers ----------------------------------------------------------------------------------------

GPTS = {
    "as published": dict(n_layer=2, n_embd=24, n_head=2, n_positions=29),
    "an odd width a head": dict(n_layer=1, n_embd=15, n_head=3, n_positions=13),
    "narrow, erf": dict(n_layer=3, n_embd=20, n_head=5, n_positions=16, n_inner=13, activation_function="gelu"),
    "an untied head": dict(n_layer=1, n_embd=8, n_head=1, n_positions=13, tie_word_embeddings=False),
}


def make_gpt(transformers, vocab_size=67, **options):
    return fill(transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=vocab_size, bos_token_id=0, eos_token_id=0, **options)))


@pytest.mark.parametrize("name", GPTS)
def test_gpt2(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = make_gpt(transformers, **GPTS[name])
    theirs.save_pretrained(tmp_path)
    ours, state = load(tmp_path)
    ids, *_ = texts(67)
    assert close(ours.head(ours.trunk(ids)), theirs(ids).logits)
    assert (ours.head.weight is ours.trunk.tokens.weight) == theirs.config.tie_word_embeddings
    if theirs.config.tie_word_embeddings:  # without the prefix, as a model without its head is saved
        theirs.transformer.save_pretrained(tmp_path / "bare")
        assert close(load(tmp_path / "bare")[0](ids), theirs(ids).logits[:, -1])
    convert.export(state, bpe.Tokenizer("gpt2", [], ("<|endoftext|>",)), tmp_path / "back")
    assert_equal_there(transformers.GPT2LMHeadModel, tmp_path / "back", lambda model: model(ids).logits, theirs)


def assert_equal_there(cls, folder, logits, theirs):
    """What nanoft wrote is complete, and says there what the first model said."""
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert close(logits(model.eval()), logits(theirs))


def test_greedy_text_is_equal_token_for_token(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = make_gpt(transformers, 300, n_layer=3, n_embd=48, n_head=4, n_positions=120)
    theirs.transformer.ln_f.bias.data.zero_()  # or it says the same token again and again
    theirs.transformer.wpe.weight.data *= 5
    theirs.save_pretrained(tmp_path)
    ours, _ = load(tmp_path)
    start = torch.tensor([[5, 6, 7], [200, 1, 3]])
    found = torch.stack(list(generate.generate(ours, start, 100, Sampling(temperature=0))), dim=1)
    expected = theirs.generate(start, max_new_tokens=100, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert found.tolist() == expected[:, 3:].tolist() and found.unique().numel() > 10


BERTS = {
    "as published": dict(num_hidden_layers=2, hidden_size=24, num_attention_heads=2, intermediate_size=96),
    "odd": dict(num_hidden_layers=3, hidden_size=21, num_attention_heads=7, intermediate_size=11, layer_norm_eps=1e-5),
    "tanh": dict(num_hidden_layers=1, hidden_size=16, num_attention_heads=4, intermediate_size=24, type_vocab_size=3,
                 hidden_act="gelu_new"),
    "an untied head": dict(num_hidden_layers=1, hidden_size=16, num_attention_heads=4, intermediate_size=24,
                           tie_word_embeddings=False),
}
ROBERTAS = {
    "as published": BERTS["as published"] | dict(type_vocab_size=1, layer_norm_eps=1e-5),
    "odd": BERTS["odd"],
    "an untied head": BERTS["an untied head"],
}
ENCODERS = [("Bert", name) for name in BERTS] + [("Roberta", name) for name in ROBERTAS]


def make_encoder(transformers, family, head, name, **options):
    options = {"Bert": BERTS, "Roberta": ROBERTAS}[family][name] | options
    cfg = getattr(transformers, f"{family}Config")(vocab_size=len(PIECES) if family == "Bert" else 261,
                                                   max_position_embeddings=19, **options)
    return fill(getattr(transformers, family + head)(cfg))


def tokenizer_of(family):
    """A tokenizer as the family has it, of the vocabulary's size."""
    if family == "Bert":
        return WordPiece(PIECES, True, True)
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 260}
    return bpe.Tokenizer("gpt2", [], special, vocabulary.byte_names()[0], range(4, 260))


def batch_of(theirs):
    family = theirs.config.model_type
    ids, types, mask = texts(theirs.config.vocab_size, pad=theirs.config.pad_token_id)
    if theirs.config.type_vocab_size == 1:
        types = None  # a second text is of the same type
    return ids, types, mask, dict(input_ids=ids, attention_mask=mask.long()) | (
        {} if types is None else {"token_type_ids": types}), family


@pytest.mark.parametrize("family, name", ENCODERS)
def test_encoders_with_the_heads_they_are_pretrained_with(family, name, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = make_encoder(transformers, family, "ForPreTraining" if family == "Bert" else "ForMaskedLM", name)
    theirs.save_pretrained(tmp_path)
    ours, state = load(tmp_path)
    ids, types, mask, batch, _ = batch_of(theirs)

    def words(model):
        out = model(**batch)
        return (out.prediction_logits if family == "Bert" else out.logits)[mask]

    hidden = ours.hidden(ids, types, mask)
    assert close(ours.word_logits(hidden[mask]), words(theirs))
    if family == "Bert":
        assert close(ours.next(ours.pooled(hidden)), theirs(**batch).seq_relationship_logits)
    convert.export(state, tokenizer_of(family), tmp_path / "back")
    assert_equal_there(type(theirs), tmp_path / "back", words, theirs)


@pytest.mark.parametrize("family, name", ENCODERS)
@pytest.mark.parametrize("head", layouts.KINDS)
def test_encoders_that_were_published_fine_tuned(family, name, head, tmp_path):
    transformers = pytest.importorskip("transformers")
    options = {} if head == "ForQuestionAnswering" else {"num_labels": 5}
    theirs = make_encoder(transformers, family, head, name, **options)
    theirs.save_pretrained(tmp_path)
    ours, state = load(tmp_path)
    ids, types, mask, batch, _ = batch_of(theirs)

    def logits(model):
        out = model(**batch)
        if head == "ForQuestionAnswering":
            return torch.stack((out.start_logits, out.end_logits), dim=-1)[mask]
        return out.logits if head == "ForSequenceClassification" else out.logits[mask]

    found = ours.logits(ids, types, mask, allowed=mask)
    assert close(found if head == "ForSequenceClassification" else found[mask], logits(theirs))
    assert state["task"].get("labels", [0] * 5) == [f"LABEL_{i}" for i in range(5)] or head == "ForQuestionAnswering"
    convert.export(state, tokenizer_of(family), tmp_path / "back")
    assert_equal_there(type(theirs), tmp_path / "back", logits, theirs)


def test_numbers_and_several_labels(tmp_path):
    transformers = pytest.importorskip("transformers")
    for n, problem, kind in ((1, None, "regress"), (4, "multi_label_classification", "classify")):
        folder = tmp_path / kind
        theirs = make_encoder(transformers, "Bert", "ForSequenceClassification", "odd", num_labels=n,
                              problem_type=problem)
        theirs.save_pretrained(folder)
        _, state = load(folder)
        assert state["task"]["kind"] == kind and state["task"].get("multi_label", False) == (n > 1)
    # a model that learned numbers of mean 3 and deviation 2 is written so that it gives them as they are
    _, state = load(tmp_path / "regress")
    state["task"] |= {"mean": 3.0, "deviation": 2.0}
    convert.export(state, tokenizer_of("Bert"), tmp_path / "scaled")
    first, again = (transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / x).eval()
                    for x in ("regress", "scaled"))
    ids, types, mask, batch, _ = batch_of(first)
    assert close(again(**batch).logits, first(**batch).logits * 2 + 3)


def test_old_names_numbers_of_two_bytes_and_shards(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = make_encoder(transformers, "Bert", "ForPreTraining", "as published")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size=8000)
    expected, _ = load(tmp_path / "shards")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    # as in 2018: a .bin, gamma and beta, every tied weight again, a table of positions, no type in config.json
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
           for name, x in theirs.state_dict().items()}
    old["bert.embeddings.position_ids"] = torch.arange(19)[None]
    assert "cls.predictions.decoder.weight" in old and "cls.predictions.transform.LayerNorm.beta" in old
    content = json.loads((tmp_path / "shards" / "config.json").read_text())
    del content["model_type"], content["architectures"]
    for name, weights in (("old", old), ("halves", {name: x.half() for name, x in old.items()})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
        torch.save(weights, tmp_path / name / "pytorch_model.bin")
        found, _ = load(tmp_path / name)
        for key, p in expected.state_dict().items():
            same = found.state_dict()[key]
            assert same.dtype == torch.float32 and torch.equal(same, p.half().float() if name == "halves" else p), key


def test_transformers_reads_the_vocabularies_that_are_written(tmp_path):
    transformers = pytest.importorskip("transformers")
    text = "The films was not a bad, ..."
    for family in ("Bert", "Roberta"):
        tokenizer = tokenizer_of(family)
        theirs = make_encoder(transformers, family, "ForMaskedLM", "as published")
        theirs.save_pretrained(tmp_path / family)
        convert.export(load(tmp_path / family)[1], tokenizer, tmp_path / "back" / family)
        read = transformers.AutoTokenizer.from_pretrained(tmp_path / "back" / family)
        assert read.encode(text, add_special_tokens=False) == tokenizer.encode(text)
        assert vocabulary.load(tmp_path / "back" / family).fingerprint == tokenizer.fingerprint


# ---- alone -------------------------------------------------------------------------------------------------------


def classic(family, task=None, size=0.3, **options):
    """A model as published, the checkpoint's dictionary of it, and its tokenizer."""
    tokenizer = bpe.Tokenizer("gpt2", [], ("<|endoftext|>",), vocabulary.byte_names()[0]) if family == "gpt2" else (
        tokenizer_of("Bert"))
    cfg = ModelConfig(**CLASSIC[family] | dict(
        vocab_size=tokenizer.vocab_size, block_size=24, n_layer=2, n_head=2, n_embd=16, causal=family == "gpt2",
        n_types=2 * (family == "bert")) | options)
    model = fill(TaskModel(cfg, task) if task else make_model(cfg), size)
    state = {"model": model.state_dict(), "model_config": vars(cfg), "step": 3, "config": {}}
    return model, state | ({"task": task} if task else {}), tokenizer


TASK = {"kind": "classify", "labels": ["bad", "good"], "metric": "accuracy", "pool": "cls", "max_length": 24,
        "long_text": "head", "doc_stride": 8, "head_dropout": 0.1}


@pytest.mark.parametrize("family, task, options", [
    ("gpt2", None, {}), ("bert", None, {}), ("bert", None, {"n_types": 0}), ("bert", TASK, {}),
    ("bert", TASK | {"pool": "mean"}, {}), ("bert", None, {"norm": "rmsnorm", "bias": False}),
    ("gpt2", None, {"position": "rope", "n_gram": 2, "n_buckets": 50}), ("gpt2", None, {"tie_head": False})])
def test_out_and_in_again(family, task, options, tmp_path, capsys):
    """Every model of nanoft can be written and read, in its published form or in its own; padding does not count."""
    model, state, tokenizer = classic(family, task, **options)
    own = bool(options.keys() & {"norm", "position"} or task and task["pool"] == "mean")
    out = tmp_path / ("out.safetensors" if own else "out")
    if own:
        with pytest.raises(UserError, match="activation=swiglu" if family == "gpt2" else "arch=bert"):
            convert.export(state, tokenizer, tmp_path / "refused")
        assert not (tmp_path / "refused").exists()
        convert.write_bundle(state, tokenizer, out)
    else:
        convert.export(state, tokenizer, out, limit=3000)
    again, found = load(out)
    assert own or "0 of" not in capsys.readouterr().err
    ids, types, mask = texts(tokenizer.vocab_size)
    types = types if model.cfg.n_types else None
    if family == "gpt2":
        assert close(again(ids), model(ids))
    elif task:
        assert close(again.logits(ids, types, mask), model.logits(ids, types, mask))
        assert found["task"]["labels"] == ["bad", "good"]
    else:
        vocab = tokenizer.vocab_size
        words = model.word_logits(model.hidden(ids, types, mask))[mask][:, :vocab]
        assert close(again.word_logits(again.hidden(ids, types, mask))[mask][:, :vocab], words)
    assert vocabulary.of_checkpoint(open_checkpoint(out)[1]).fingerprint == tokenizer.fingerprint


def test_every_tensor_is_accounted_for(tmp_path, capsys):
    _, state, tokenizer = classic("bert")
    convert.export(state, tokenizer, tmp_path / "x")
    path = tmp_path / "x" / "model.safetensors"
    weights = read_all(path)
    kept = {name: x.clone() for name, x in weights.items() if not name.startswith("cls.")}
    kept |= {"bert.embeddings.position_ids": torch.arange(24)[None],
             "bert.encoder.layer.2.output.dense.bias": torch.ones(16),
             "cls.predictions.decoder.weight": kept["bert.embeddings.word_embeddings.weight"].clone()}
    safetensors.write(path, kept)
    capsys.readouterr()
    model, _ = load(tmp_path / "x")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and f"{len(kept) - 2} of {len(kept)} tensors used" in lines[0]
    assert lines[1].split(": ")[1] == "bert.embeddings.position_ids, bert.encoder.layer.*.output.dense"
    assert lines[2].split(": ")[1].split(", ") == ["head_bias", "transform", "norm", "next"]
    assert 0.01 < model.transform.weight.std() < 0.03 and (model.norm.weight == 1).all() and not model.head_bias.any()
    assert torch.equal(load(tmp_path / "x")[0].next.weight, model.next.weight), "another at each start"
    kept["cls.predictions.decoder.weight"] += 1  # a tied head that is another matrix is of no use, and is not hidden
    safetensors.write(path, kept)
    capsys.readouterr()
    load(tmp_path / "x")
    assert "cls.predictions.decoder" in capsys.readouterr().err.splitlines()[1]


def test_sentence_transformers_folder(tmp_path):
    _, state, tokenizer = classic("bert")
    convert.export(state, tokenizer, tmp_path / "x" / "0_Transformer")
    (tmp_path / "x" / "modules.json").write_text("[]")
    assert open_checkpoint(tmp_path / "x")[1] == tmp_path / "x" / "0_Transformer" / "model.safetensors"


def change_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (content | changes).items() if v is not None}))


def change_weights(folder, change):
    weights = {name: x.clone() for name, x in read_all(folder / "model.safetensors").items()}
    change(weights)
    safetensors.write(folder / "model.safetensors", weights)


QUERY = "bert.encoder.layer.1.attention.self.query.weight"
WRONG = {
    "no config.json": (lambda x: (x / "config.json").unlink(), "has no config.json"),
    "a config.json that is a list": (lambda x: (x / "config.json").write_text("[]"), "its content is list"),
    "a config.json without sizes": (lambda x: change_config(x, hidden_size=None), "does not describe a bert"),
    "sizes that are texts": (lambda x: change_config(x, hidden_size="16"),
                             "does not describe a bert|hidden_size.* is str"),
    "heads that do not fit": (lambda x: change_config(x, num_attention_heads=3), "not divisible"),
    "another family": (lambda x: change_config(x, model_type="llama"), "type 'llama'"),
    "relative positions": (lambda x: change_config(x, position_embedding_type="relative_key"), "relative_key"),
    "a decoder": (lambda x: change_config(x, is_decoder=True), "is_decoder"),
    "another activation": (lambda x: change_config(x, hidden_act="relu"), "'relu'"),
    "more layers than there are": (lambda x: change_config(x, num_hidden_layers=3), "layer.2.* is missing"),
    "a shape": (lambda x: change_weights(x, lambda w: w.update({QUERY: w[QUERY][:, 1:].contiguous()})),
                r"query.weight is \(16, 15\), where config.json asks for \(16, 16\)"),
    "a larger vocabulary": (lambda x: change_config(x, vocab_size=30), r"\(21, 16\), .* \(30, 16\)"),
    "a weight too few": (lambda x: change_weights(x, lambda w: w.pop(QUERY)), "query.weight is missing"),
    "a damaged file": (lambda x: (x / "model.safetensors").write_bytes(b"abc"), "no whole safetensors"),
    "no weights": (lambda x: (x / "model.safetensors").unlink(), "no checkpoint there"),
    "a .bin that is none": (lambda x: (x / "model.safetensors").rename(x / "pytorch_model.bin"), "holds no weights"),
    "a .bin of something else": (lambda x: ((x / "model.safetensors").unlink(),
                                            torch.save([1], x / "pytorch_model.bin")), "not a dictionary of tensors"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused(what, tmp_path):
    _, state, tokenizer = classic("bert")
    convert.export(state, tokenizer, tmp_path / "x")
    load(tmp_path / "x")
    WRONG[what][0](tmp_path / "x")
    with pytest.raises(UserError, match=WRONG[what][1]):
        load(tmp_path / "x")


def test_code_in_a_bin_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    _, state, tokenizer = classic("bert")
    convert.export(state, tokenizer, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"weight": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no weights"):
        load(tmp_path)
    assert not (tmp_path / "sprung").exists()


# ---- whole stories -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two published folders, as their users have them, and rows to learn from."""
    home = tmp_path_factory.mktemp("published")
    for family in ("bert", "gpt2"):
        _, state, tokenizer = classic(family, size=0.1, n_embd=32, block_size=64)
        convert.export(state, tokenizer, home / family)
    rng, lines = random.Random(1), ["text,label"]
    for _ in range(160):
        word = rng.choice(["good", "bad"])
        lines.append(f"the {rng.choice('abcdef')} film was {word} {rng.choice('abcdef')},{word}")
    (home / "rows.csv").write_text("\n".join(lines))
    return home


def test_fine_tuned_from_published_weights_and_published_again(folders, tmp_path, call, capsys):
    call(finetune, f"--init_from={folders / 'bert'}", f"--train_file={folders / 'rows.csv'}", "--pool=cls",
         f"--out_dir={tmp_path / 'run'}", "--max_steps=100", "--lr=0.003", "--device=cpu", "--dtype=float32",
         "--batch_size=16")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["val_accuracy"] == 1.0
    assert "of no use here: head.weight, head_bias" in capsys.readouterr().out
    call(convert, tmp_path / "run", f"--export={tmp_path / 'out'}")
    assert "BertForSequenceClassification" in capsys.readouterr().out
    for place in (tmp_path / "run", tmp_path / "out"):
        call(sample, f"--checkpoint={place}", "--text=the e film was good a", "--device=cpu")
    first, second = (part.split("\n")[1] for part in capsys.readouterr().out.split("the e film was good a")[1:])
    assert first == second and first.strip().startswith("good")
    call(convert, tmp_path / "out", f"--out={tmp_path / 'pairs'}", "--pair")
    assert checkpoint.load(tmp_path / "pairs" / "best.pt")["task"]["kind"] == "pair"


@pytest.mark.slow
def test_a_published_gpt_speaks(folders, tmp_path, call):
    done = run("sample.py", f"--checkpoint={folders / 'gpt2'}", "--prompt=The", "--max_new_tokens=5", "--device=cpu")
    assert done.stdout.startswith("The") and "left over: none" in done.stderr
    call(convert, folders / "gpt2", f"--out={tmp_path / 'run'}")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best.pt", "config.json", "tokenizer.json"]
    again = run("sample.py", f"--checkpoint={tmp_path / 'run'}", "--prompt=The", "--max_new_tokens=5", "--device=cpu")
    assert again.stdout == done.stdout


@pytest.mark.parametrize("family, objective", [("gpt2", "causal"), ("bert", "mlm"), ("bert", "mlm_nsp")])
def test_training_goes_on_from_published_weights(family, objective, folders, tmp_path, call):
    """At a rate of 0 nothing changes, but positions beyond the context are left out; else it learns, and resumes."""
    text = "the film was good . the cat was not bad , the a b c d e f . "
    prepare.write_data(tmp_path / "data", {"train": [text * 9] * 40, "val": [text * 9] * 9}, 0,
                       tokenizer=folders / family)
    options = [*TINY, f"--data={tmp_path / 'data'}", f"--arch={family}", f"--objective={objective}",
               "--optimizer=adamw", f"--init_from={folders / family}"]
    call(train, *options, f"--out_dir={tmp_path / 'still'}", "--lr=0", "--embed_lr=0", "--max_steps=1")
    published = open_checkpoint(folders / family)[0]["model"]
    found = checkpoint.load(tmp_path / "still" / "latest.pt")
    assert found["model"].keys() == published.keys() and found["model_config"]["block_size"] == 32
    for name, tensor in found["model"].items():
        assert torch.equal(tensor, published[name][:32] if "positions" in name else published[name]), name
    run_options = [*options, f"--out_dir={tmp_path / 'run'}", "--lr=0.003", "--embed_lr=0.003"]
    call(train, *run_options, "--max_steps=8")
    call(train, *run_options, "--max_steps=12", "--resume")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.3
    with pytest.raises(UserError, match="another model"):
        call(train, *options, f"--out_dir={tmp_path / 'x'}", "--block_size=128", "--max_steps=1")


def test_the_command_line_is_checked(folders, tmp_path, call):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    for words, why in (([], "0 files or folders given"), ([folders / "bert"], "where to go"),
                       ([folders / "bert", f"--out={tmp_path / 'full'}"], "is there already"),
                       ([folders / "bert", f"--export={folders / 'rows.csv'}"], "is there already"),
                       ([tmp_path, f"--out={tmp_path / 'new'}"], "no checkpoint there")):
        with pytest.raises(UserError, match=why):
            call(convert, *words)
    assert not (tmp_path / "new").exists()
