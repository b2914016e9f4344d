"""The model's summary: parameters, FLOPs against torch's own counter, and what autograd really saves."""

from dataclasses import asdict, fields
from types import SimpleNamespace

import pytest
import torch
from conftest import DIST, TINY, run
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import train
from nanoft import UserError, checkpoint
from nanoft.inspect import summary
from nanoft.model import CLASSIC, ModelConfig, make_model
from nanoft.tasks.heads import TaskModel

SIZE = dict(vocab_size=500, block_size=64, n_layer=3, n_head=4, n_embd=64)
SHAPES = {
    "gpt": ModelConfig(**SIZE),
    "bert": ModelConfig(**SIZE, causal=False),
    "bert with pairs": ModelConfig(**SIZE, causal=False, n_types=2),
    "gpt2": ModelConfig(**SIZE | CLASSIC["gpt2"]),
    "bert as published": ModelConfig(**SIZE | CLASSIC["bert"], causal=False, n_types=2),
    "the options": ModelConfig(**SIZE, n_kv_head=2, n_gram=3, n_buckets=200, activation="swiglu", n_hidden=96),
}
CFG = SimpleNamespace(batch_size=4, micro_batch_size=0, mask_prob=0.15, optimizer="muon", lr=1e-3, muon_lr=0.02,
                      embed_lr=0.01, beta2=0.95, weight_decay=0.0)
FINE = SimpleNamespace(**vars(CFG) | dict(freeze_blocks=0, lora_rank=0, unfreeze_every=0, layer_decay=1.0, head_lr=0.0))
TASK = dict(max_length=48, head_dropout=0.1, pool="mean", labels=["a", "b", "c"])


@pytest.mark.parametrize("name", SHAPES)
def test_figures_are_those_of_the_real_model(name):
    torch.manual_seed(0)
    rows, totals = summary.summarize(SHAPES[name], CFG)
    model = make_model(SHAPES[name])
    batch = summary.example_batch(model, 4, 64, CFG)
    with sdpa_kernel(SDPBackend.MATH):  # the counter does not know the fused kernel of processors
        with FlopCounterMode(display=False) as forward:
            loss = model(**batch).sum()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    outputs, saved = summary.forward(model, batch, DIST)
    assert totals["parameters"] == sum(p.numel() for p in model.parameters()) == sum(row[3] for row in flat(rows))
    assert totals["flops"] * 4 * 64 == pytest.approx(forward.get_total_flops(), rel=0.01)
    assert 3 * totals["flops"] * 4 * 64 == pytest.approx(
        forward.get_total_flops() + backward.get_total_flops(), rel=0.01)
    assert sum(row[4] for row in flat(rows)) == pytest.approx(totals["flops"])
    assert totals["activations"] == saved.total() == sum(row[5] for row in flat(rows)) > 0
    assert next(row[1] for row in rows if row[0] == "block 1") == (4, 64, 64)


def flat(rows):
    """Without the parts of the first block, which its own row sums up."""
    return [row for row in rows if not row[0].startswith(" ")]


class Both(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(8, 16, bias=False), torch.nn.Linear(8, 16, bias=False)

    def forward(self, x):
        return (self.a(x).relu() + self.b(x).relu()).sum()


def test_what_is_saved_counts_once():
    outputs, saved = summary.forward(Both(), {"x": torch.ones(5, 8)}, DIST)
    assert outputs["a"].shape == (5, 16)
    assert saved == {"a": 4 * 5 * 8, "": 2 * 4 * 5 * 16}  # x, which b needs too; the results of both relu


def test_memory_of_the_optimizers():
    rows, totals = summary.summarize(SHAPES["gpt"], CFG)
    blocks = sum(row[3] for row in rows if row[0].startswith("block"))
    assert totals["weights"] == totals["gradients"] == 4 * totals["parameters"]
    assert totals["optimizer"] == 4 * blocks + 8 * (totals["parameters"] - blocks)
    adam = SimpleNamespace(**vars(CFG) | {"optimizer": "adamw"})
    assert summary.summarize(SHAPES["gpt"], adam)[1]["optimizer"] == 8 * totals["parameters"]
    one = SimpleNamespace(**vars(CFG) | {"micro_batch_size": 1})
    assert summary.summarize(SHAPES["gpt"], one)[1]["activations"] < totals["activations"] / 3.9


@pytest.mark.parametrize("kind", ["classify", "pair", "regress", "tag", "answer", "multi_label"])
def test_fine_tuned_models(kind):
    task = TASK | ({"kind": "classify", "multi_label": True} if kind == "multi_label" else {"kind": kind})
    shape = SHAPES["bert with pairs"]
    rows, totals = summary.summarize(shape, FINE, task)
    assert totals["parameters"] == sum(p.numel() for p in TaskModel(shape, task).parameters())
    assert totals["batch"] == (4, 48) and rows[-2][0] == "task_head"
    frozen = SimpleNamespace(**vars(FINE) | {"freeze_blocks": -1})
    some = summary.summarize(shape, frozen, task)[1]
    assert some["trained"] == rows[-2][3] and some["optimizer"] == 8 * some["trained"]
    assert some["activations"] < totals["activations"] / 4  # no gradient goes through the trunk


def test_a_gpt_fine_tuned_to_respond():
    _, totals = summary.summarize(SHAPES["gpt"], FINE, TASK | {"kind": "generate"})
    assert totals["parameters"] == sum(p.numel() for p in make_model(SHAPES["gpt"]).parameters())
    assert totals["batch"] == (4, 48)


def test_large_models_need_no_memory():
    shape = ModelConfig(vocab_size=50257, block_size=1024, n_layer=48, n_head=25, n_embd=1600, **CLASSIC["gpt2"])
    _, totals = summary.summarize(shape, CFG)  # GPT-2 XL: 6 GB of weights, if they were there
    assert totals["parameters"] == pytest.approx(1.558e9, rel=0.001)


@pytest.mark.slow
def test_the_command(corpus, tmp_path, call, capsys):
    shape = [option for option in TINY if option[2:].partition("=")[0] in summary.Options.__annotations__]
    done = run("nanoft model", f"--data={corpus}", *shape)
    assert "block 1" in done.stdout and "attn.q" in done.stdout and "\nin all" in done.stdout
    call(train, f"--data={corpus}", f"--out_dir={tmp_path / 'run'}", *TINY, "--max_steps=1")
    capsys.readouterr()
    call(summary, tmp_path / "run")
    assert capsys.readouterr().out == done.stdout
    assert "block 1" in run("nanoft model", "config/wikitext.py").stdout  # whose other options are passed over
    bad = run("nanoft model", "config/wikitext.py", "--n_lyer=3", check=False)
    assert bad.returncode == 2 and "did you mean n_layer" in bad.stderr


def test_a_run_made_on_another_device_is_described_here(tmp_path, monkeypatch, call, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    shape = SHAPES["gpt"]
    for device in ("cuda", "cpu"):
        checkpoint.save(tmp_path / f"{device}.pt", {"model": make_model(shape).state_dict(), "step": 1, "config": {
            "device": device, "dtype": "bfloat16"}, "model_config": asdict(shape)})
        call(summary, tmp_path / f"{device}.pt")
    assert summary.from_run(tmp_path / "cuda.pt")[1].device == "auto"
    out, err = capsys.readouterr()
    assert "device=cuda is not available here" in err and "products in bfloat16" in out
    assert out[:len(out) // 2] == out[len(out) // 2:]
    with pytest.raises(UserError, match="device=cuda is not available"):  # asked for on the command line
        call(summary, "--device=cuda")


def test_the_options_are_those_of_train():
    ours, theirs = summary.Options(), train.Config()
    assert vars(ours) == {name: getattr(theirs, name) for name in vars(ours)}
    assert {field.name for field in fields(ModelConfig)} & vars(theirs).keys() <= vars(ours).keys()  # all of the shape
