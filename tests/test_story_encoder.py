"""Whole runs of the encoder: masked words, with and without pairs."""

import io
import json
from contextlib import redirect_stdout

import pytest
import torch
from conftest import TINY, contents, run
from test_story_train import assert_equal, load, losses, rows

import sample
import train
from nanoft import UserError, bins, bpe

OBJECTIVES = ["mlm", "mlm_nsp"]


@pytest.fixture(scope="module", params=OBJECTIVES)
def encoder(request, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders") / request.param
    run("train.py", *TINY, f"--objective={request.param}", "--dropout=0.1", f"--data={corpus}", f"--out_dir={folder}")
    return folder


def test_an_encoder_learns_and_reports_its_accuracies(encoder):
    training, evaluations = rows(encoder)
    assert training[-1]["loss"] < training[0]["loss"] - 0.05
    for row in evaluations:
        assert 0 <= row["val_mlm_accuracy"] <= 1
        assert ("val_nsp_accuracy" in row) == (encoder.name == "mlm_nsp")
    assert ("nsp_loss" in training[0]) == (encoder.name == "mlm_nsp")


def test_a_crashed_run_resumes_bit_for_bit(encoder, corpus, tmp_path, call, crash):
    options = [*TINY, f"--objective={encoder.name}", "--dropout=0.1", f"--data={corpus}",
               f"--out_dir={tmp_path / 'run'}"]
    crash(8, train, *options)
    call(train, *options, "--resume")
    whole, resumed = (load(folder / "latest.pt") for folder in (encoder, tmp_path / "run"))
    assert_equal(whole["model"], resumed["model"], "model")
    assert_equal(whole["optimizer"], resumed["optimizer"], "optimizer")
    assert torch.equal(losses(encoder), losses(tmp_path / "run"))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.slow
def test_parts_and_processes_equal_one_big_batch(objective, corpus, tmp_path, call):
    """The parts have different numbers of masked words; each word weighs the same all the same."""
    options = [*TINY, f"--objective={objective}", f"--data={corpus}", "--max_steps=8"]
    for size in (2, 8):
        call(train, *options, f"--out_dir={tmp_path / str(size)}", f"--micro_batch_size={size}")
    assert torch.allclose(losses(tmp_path / "2"), losses(tmp_path / "8"), atol=1e-5)
    if objective == "mlm_nsp":
        run("train.py", *options, f"--out_dir={tmp_path / 'two'}",
            launcher=["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"])
        assert torch.allclose(losses(tmp_path / "two"), losses(tmp_path / "8"), atol=1e-4)


def test_an_encoder_fills_gaps(encoder, call, tmp_path):
    def say(*options):
        with redirect_stdout(io.StringIO()) as out:
            call(sample, f"--checkpoint={encoder}", "--device=cpu", "--dtype=float32", *options)
        return out.getvalue()

    text = say("--prompt=the <|mask|> of a <|mask|>", "--top_k=3")
    assert len(text.splitlines()) == 3 and text.count("%") == 6
    assert "pseudo-perplexity" in say("--prompt=the length", "--pseudo_perplexity")
    say("--prompt=the <|mask|>", f"--output={tmp_path / 'out.jsonl'}")
    row = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert len(row["candidates"][0]) == 5
    with pytest.raises(UserError, match=r"no <\|mask\|>"):
        say("--prompt=nothing is missing")
    with pytest.raises(UserError, match="more than the 32"):
        say("--prompt=" + "word " * 100)


@pytest.mark.parametrize("prob", [0, 1, -0.1, 1.5])
def test_a_mask_probability_that_cannot_be(prob, corpus, tmp_path, call):
    with pytest.raises(UserError, match="mask_prob"):
        call(train, *TINY, "--objective=mlm", f"--mask_prob={prob}", f"--data={corpus}", f"--out_dir={tmp_path / 'x'}")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("documents", [["one document, and long enough for a window " * 20], ["a"] * 40 + ["b" * 300]])
def test_pairs_want_two_documents_that_hold_one(documents, tmp_path, call):
    tokenizer = bpe.train(["a b c"], 261)
    for split in ("train", "val"):
        bins.write_split(tmp_path / "data", split, documents, tokenizer)
    tokenizer.save(tmp_path / "data" / "tokenizer.json")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="1 document"):
        call(train, *TINY, "--objective=mlm_nsp", f"--data={tmp_path / 'data'}", f"--out_dir={tmp_path / 'run'}")
    assert contents(tmp_path) == before


def test_a_gpt_is_not_taken_for_an_encoder(encoder, corpus, tmp_path, call):
    with pytest.raises(UserError, match="another model"):
        call(train, *TINY, "--objective=causal", f"--data={corpus}", f"--out_dir={tmp_path / 'x'}",
             f"--init_from={encoder}")


def test_pairs_may_begin_from_masked_words_alone(corpus, tmp_path, call):
    """The trunk is taken over; token types begin at zero and the sentence head anew. The way back is refused."""
    options = [*TINY, f"--data={corpus}"]
    call(train, *options, "--objective=mlm", f"--out_dir={tmp_path / 'words'}", "--sample_tokens=0")
    call(train, *options, "--objective=mlm_nsp", f"--out_dir={tmp_path / 'pairs'}", f"--init_from={tmp_path / 'words'}",
         "--lr=0", "--embed_lr=0", "--muon_lr=0", "--max_steps=1")
    words = load(tmp_path / "words" / "best.pt")["model"]
    pairs = load(tmp_path / "pairs" / "latest.pt")["model"]
    for name, tensor in words.items():
        assert torch.equal(pairs[name], tensor), name
    assert {name.partition(".")[0] for name in pairs.keys() - words.keys()} == {"trunk", "pooler", "next"}
    assert not pairs["trunk.types.weight"].any() and pairs["pooler.weight"].any()
    with pytest.raises(UserError, match="another model"):
        call(train, *options, "--objective=mlm", f"--out_dir={tmp_path / 'back'}", f"--init_from={tmp_path / 'pairs'}")


def test_an_encoder_shares_its_head_unless_it_begins_from_one_that_does_not(corpus, tmp_path, call):
    options = [*TINY, f"--data={corpus}", "--max_steps=1", "--sample_tokens=0"]

    def shares(name, *more):
        call(train, *options, f"--out_dir={tmp_path / name}", *more)
        return load(tmp_path / name / "latest.pt")["model_config"]["tie_head"]

    assert not shares("gpt") and shares("words", "--objective=mlm")
    assert shares("tied gpt", "--tie_head") and not shares("own", "--objective=mlm", "--tie_head=false")
    assert not shares("further", "--objective=mlm", f"--init_from={tmp_path / 'own'}")
    with pytest.raises(UserError, match="tie_head=False"):
        shares("other", "--objective=mlm", "--tie_head=true", f"--init_from={tmp_path / 'own'}")
