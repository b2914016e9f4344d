"""No float64 tensor is made for a device: Apple GPUs have none. Here a CPU stands in for one.

A mode of torch sees every operation. A tensor of float64 may only come from tensors that were fetched by .cpu(), and
what goes to the device by distributed.to_device must not hold one.
"""

import random

import pytest
import torch
from conftest import TINY
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import finetune
import sample
import train
from nanoft import distributed
from nanoft.tasks import linear


class NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        fetched = any(getattr(x, "fetched", False) for x in tree_leaves((args, kwargs)))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                assert fetched or x.dtype not in (torch.float64, torch.complex128), f"{func} makes float64"
                x.fetched = fetched
        return out


@pytest.fixture
def device(monkeypatch):
    """As if the CPU were a device without float64; the linear model of n-grams is always fitted on the CPU."""
    real_cpu, real_to_device, real_fit, mode = torch.Tensor.cpu, distributed.to_device, linear.fit, NoFloat64()

    def cpu(x):
        copy = real_cpu(x).detach().clone()
        copy.fetched = True
        return copy

    def to_device(batch, device):
        assert all(array.dtype.kind != "f" or array.itemsize < 8 for array in batch.values())
        return real_to_device(batch, device)

    def fit(*args):
        with torch.utils._python_dispatch._disable_current_modes():
            return real_fit(*args)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr(distributed, "to_device", to_device)
    monkeypatch.setattr(linear, "fit", fit)
    with mode:
        yield


def test_the_stand_in_refuses_float64(device):
    with pytest.raises(AssertionError, match="float64"):
        torch.ones(2).double()
    with pytest.raises(AssertionError, match="float64"):
        torch.tensor([random.random()], dtype=torch.float64)
    assert torch.ones(2).cpu().double().sum().item() == 2


@pytest.mark.parametrize("objective", ["causal", "mlm_nsp"])
def test_pretraining_and_use(objective, corpus, device, call, tmp_path):
    call(train, f"--data={corpus}", f"--out_dir={tmp_path / 'run'}", *TINY, "--max_steps=2", "--eval_interval=2",
         f"--objective={objective}", "--whole_word=true")
    prompt = "a cat" if objective == "causal" else "a <|mask|>"
    words = (f"--checkpoint={tmp_path / 'run'}", f"--prompt={prompt}", "--device=cpu", "--dtype=float32",
             "--max_new_tokens=3")
    call(sample, *words)
    call(sample, *words, "--explain", "--ig_steps=2", f"--output={tmp_path / 'page'}")


@pytest.mark.parametrize("kind", ["classify", "pair", "regress", "tag", "answer", "generate", "multi"])
def test_finetuning_and_use(kind, device, call, tmp_path):
    path, names = tmp_path / "rows.csv", "text,label"
    rows = [f"a {i} cat,{'ab'[i % 2]}" for i in range(30)]
    use = ("--text=a 1 cat",)
    if kind == "pair":
        names, rows, use = "text,pair,label", [f"a {row}" for row in rows], ("--text=a", "--pair=b")
        rows = [row.replace(" cat", ",cat") for row in rows]
    elif kind == "regress":
        rows = [f"a {i} cat,{i / 4}" for i in range(30)]
    elif kind == "generate":
        names, use = "prompt,response", ("--prompt=a 1 cat",)
    elif kind == "multi":
        rows = [f"a {i} cat,{('a', 'b', 'a|b')[i % 3]}" for i in range(30)]
    path.write_text("\n".join([names, *rows]) + "\n")
    if kind == "tag":
        path = tmp_path / "rows.txt"
        path.write_text("".join(f"a O\n{i} B-X\ncat I-X\n\n" for i in range(30)))
    elif kind == "answer":
        path, use = tmp_path / "rows.jsonl", ("--question=a", "--context=a 1 cat")
        path.write_text("".join(f'{{"context": "a {i} cat", "question": "q", "id": "{i}", '
                                f'"answers": [{{"text": "{i}", "start": 2}}]}}\n' for i in range(30)))
    call(finetune, f"--train_file={path}", f"--out_dir={tmp_path / 'run'}", "--device=cpu", "--dtype=float32",
         "--n_layer=1", "--n_head=2", "--n_embd=16", "--max_length=16", "--max_steps=2", "--val_fraction=0.3",
         "--linear=true" if kind in ("classify", "multi", "pair", "regress") else "--linear=auto",
         *(["--class_weights=balanced"] if kind in ("classify", "tag") else []), "--average=0.9",
         *(["--separator=|"] if kind == "multi" else []), f"--kind={kind.replace('multi', 'classify')}")
    words = (f"--checkpoint={tmp_path / 'run'}", *use, "--device=cpu", "--dtype=float32")
    call(sample, *words)
    if kind != "generate":
        call(sample, *words, "--explain", "--ig_steps=2", f"--output={tmp_path / 'page'}")
