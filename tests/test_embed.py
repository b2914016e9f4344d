"""Sentence vectors: the mean over a text's own tokens, whatever stands beside it in a batch; and sample.py --embed."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

import nanoft
import sample
from nanoft import UserError, checkpoint
from nanoft.model import CLASSIC, ModelConfig, make_model
from nanoft.text import vocabulary
from nanoft.text.wordpiece import WordPiece

WORDS = ["a", "cat", "##s", "dog", "runs", "sat", "."]
TEXTS = ["A cat sat.", "a dog runs . a dog runs .", "", "cats", "zebra cat " * 30]


def write_run(folder, causal=False):
    """A run folder with a random model of the classic form over a BERT vocabulary."""
    folder.mkdir()
    tokenizer = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS], True, True)
    cfg = ModelConfig(vocab_size=tokenizer.vocab_size, block_size=16, n_layer=2, n_head=2, n_embd=32, causal=causal,
                      n_types=2 * (not causal), **CLASSIC["bert"])
    torch.manual_seed(1)
    model = make_model(cfg)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    tokenizer.save(folder / "tokenizer.json")
    checkpoint.save(folder / "best.pt", {"model": model.state_dict(), "model_config": asdict(cfg), "step": 0})
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "encoder")


@pytest.fixture(scope="module")
def found(encoder):
    model = nanoft.load(encoder, "cpu", "float32")
    return model.net.trunk, *model.embed_counted(TEXTS)


def test_a_vector_is_the_mean_over_a_text_and_its_marks(encoder, found):
    trunk, vectors, tokens = found
    assert vectors.shape == (5, 32) and vectors.dtype == np.float32 and tokens.tolist() == [6, 10, 2, 4, 62]
    ids = vocabulary.load(encoder).piece_ids
    words = ["a cat sat .", "a dog runs . a dog runs .", "", "cat ##s", " ".join(["[UNK] cat"] * 7)]
    for vector, text in zip(vectors, words):
        row = torch.tensor([[ids["[CLS]"], *(ids[word] for word in text.split()), ids["[SEP]"]]])
        mean = trunk(row)[0].mean(0)  # alone, so without padding
        np.testing.assert_allclose(vector, (mean / mean.norm()).detach().numpy(), atol=1e-6)


def options(encoder, *more):
    return f"--checkpoint={encoder}", "--embed", "--device=cpu", "--dtype=float32", *more


def test_texts_on_the_command_line_give_a_table(encoder, found, call, capsys):
    call(sample, *options(encoder, f"--text={TEXTS[0]}", f"--text={TEXTS[1]}", f"--text={TEXTS[4]}"))
    out, err = capsys.readouterr()
    cosines = found[1] @ found[1].T
    assert out.splitlines()[1].split() == ["1", "A", "cat", "sat.", "1.000", f"{cosines[0, 1]:.3f}",
                                           f"{cosines[0, 4]:.3f}"]
    assert len(out.splitlines()) == 4 and "1 of 3 texts have more than 16 tokens" in err


def test_a_file_of_texts_gives_a_file_of_vectors(encoder, found, call, capsys, tmp_path):
    (tmp_path / "in.txt").write_text("\n".join(TEXTS[:2]) + "\n", encoding="utf-8")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in TEXTS) * 5,
                                       encoding="utf-8")
    call(sample, *options(encoder, f"--input={tmp_path}/in.txt", f"--output={tmp_path}/out.npy"))
    assert "2 vectors of 32 numbers" in capsys.readouterr().out
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), found[1][:2], atol=1e-6)
    call(sample, *options(encoder, f"--input={tmp_path}/in.jsonl", f"--output={tmp_path}/out.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == TEXTS * 5 and rows[0]["n"] == 1
    np.testing.assert_allclose([row["vector"] for row in rows[5:10]], found[1], atol=1e-6)


@pytest.mark.parametrize("more, words", [
    ([], "no text"), (["--text=a", "--output={tmp}/x.csv"], "neither .npy nor .jsonl"),
    (["--input={tmp}/many.txt"], "give --output"), (["--input={tmp}/none.txt"], "cannot be read"),
    (["--text=a", "--checkpoint={gpt}"], "is a GPT"), (["--text=a\udcff"], "surrogate"),
])
def test_wrong_use_is_one_sentence(encoder, more, words, call, tmp_path):
    (tmp_path / "many.txt").write_text("cat\n" * 21, encoding="utf-8")
    gpt = write_run(tmp_path / "gpt", causal=True)
    with pytest.raises(UserError, match=words) as caught:
        call(sample, *options(encoder, *(word.format(tmp=tmp_path, gpt=gpt) for word in more)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.csv").exists()
