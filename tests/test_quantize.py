"""8-bit weights: how close they are, what a file of them weighs, and that everything reads it."""

import time

import pytest
import torch
from conftest import TINY as RUN
from conftest import run
from test_model import CLASSIC, TINY, filled

from nanoft import UserError, checkpoint, generate, quantize
from nanoft.model import BERT, ModelConfig
from nanoft.sampling import Sampling

needs_kernels = pytest.mark.skipif(not quantize.HAS_KERNELS, reason="this torch has no int8 kernels of oneDNN")


def test_rounding_is_to_the_nearest_of_255():
    weight = torch.randn(7, 40, generator=torch.Generator().manual_seed(1))
    weight[3] = 0
    integers, scale = quantize.rounded(weight)
    assert integers.dtype == torch.int8 and integers[3].eq(0).all() and integers.abs().amax(1).tolist().count(127) == 6
    assert ((integers * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all()
    again, same = quantize.rounded(integers * scale[:, None])
    assert torch.equal(again, integers)  # what was rounded stays


@needs_kernels
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_close_and_a_row_is_itself_in_every_batch(bias, monkeypatch):
    monkeypatch.setattr(quantize, "ROWS", 16)  # of 40: parts, the last one smaller
    torch.manual_seed(1)
    linear = torch.nn.Linear(96, 64, bias=bias)
    fast, x = quantize.Int8Linear(linear), torch.randn(2, 20, 96) * torch.logspace(-3, 2, 20)[:, None]
    x[0, 4] = 0
    with torch.no_grad():
        y, expected = fast(x), linear(x)
    error = (y - expected).norm(dim=-1) / (expected if linear.bias is None else expected - linear.bias).norm(dim=-1)
    assert error[~error.isnan()].max() < 0.03
    torch.testing.assert_close(y[0, 4], torch.zeros(64) if linear.bias is None else linear.bias.detach())
    with torch.no_grad():
        torch.testing.assert_close(fast(x[1, 7][None])[0], y[1, 7], rtol=1e-5, atol=1e-7)


@needs_kernels
@torch.no_grad()
def test_a_single_row_takes_no_longer_than_a_few():
    fast, seconds = quantize.Int8Linear(torch.nn.Linear(256, 1024, bias=False)), []
    for x in (torch.randn(1, 256), torch.randn(3, 256)):
        times = []
        for _ in range(8):
            begun = time.perf_counter()
            fast(x)
            times.append(time.perf_counter() - begun)
        seconds.append(min(times))
    assert seconds[0] < 10 * seconds[1]  # 150 times as long by oneDNN's reference code


@needs_kernels
@pytest.mark.parametrize("options", [{}, dict(n_kv_head=2, n_gram=2), CLASSIC])
def test_a_gpt_computes_in_int8(options):
    model = filled(ModelConfig(**{**TINY, **options})).eval()
    ids = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.logits(ids)
        quantize.compute_in_int8(model)
        assert sum(isinstance(m, quantize.Int8Linear) for m in model.modules()) == TINY["n_layer"] * 4 + 1
        error = (model.logits(ids) - expected).norm() / expected.norm()
        assert 0 < error < 0.1
        cached, whole = (torch.stack(list(generate.generate(model, ids, 20, Sampling(temperature=0), cached=c)))
                         for c in (True, False))
    assert torch.equal(cached, whole)


@needs_kernels
def test_an_encoder_computes_in_int8():
    model = BERT(ModelConfig(**TINY, causal=False)).eval()
    for p in model.parameters():
        p.data.normal_(std=0.1)
    ids = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.hidden(ids)
        quantize.compute_in_int8(model)
        assert 0 < (model.hidden(ids) - expected).norm() / expected.norm() < 0.1


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """The folders of a short run and of the same in 8 bits."""
    folder = tmp_path_factory.mktemp("runs")
    run("train.py", *RUN, "--max_steps=30", "--eval_interval=30", f"--data={corpus}", f"--out_dir={folder / 'run'}")
    run("nanoft quantize", folder / "run", folder / "int8")
    return folder / "run", folder / "int8"


def test_a_file_is_a_quarter_and_its_weights_are_read_as_floats(runs):
    plain, small = (checkpoint.load(folder / "best.pt") for folder in runs)
    floats = sum(4 * p.numel() for p in plain["model"].values())
    assert (runs[1] / "best.pt").stat().st_size < 0.27 * floats + 20_000
    assert "optimizer" not in small and "scales" not in small and plain["model"].keys() == small["model"].keys()
    for name, p in plain["model"].items():
        assert (p - small["model"][name]).norm() < 0.01 * p.norm() and p.dtype == small["model"][name].dtype


def test_a_file_is_used_as_any_other(runs):
    for dtype in ("float32", "int8"):
        done = run("sample.py", f"--checkpoint={runs[1]}", "--prompt=def ", "--device=cpu", f"--dtype={dtype}",
                   "--max_new_tokens=8")
        assert done.stdout.startswith("def ")


def test_what_cannot_be_is_refused(runs, tmp_path):
    done = run("nanoft quantize", runs[0], runs[1], check=False)
    assert done.returncode == 2 and "is there already" in done.stderr
    torch.save(torch.load(runs[0] / "best.pt", weights_only=True) | {"rank": 2, "alpha": 2.0}, tmp_path / "adapter.pt")
    done = run("nanoft quantize", tmp_path / "adapter.pt", tmp_path / "out", check=False)
    assert done.returncode == 2 and "is an adapter" in done.stderr and not (tmp_path / "out").exists()
    state = torch.load(runs[1] / "best.pt", weights_only=True)
    for scales in ({"nowhere": torch.ones(3)}, {"head.weight": torch.ones(3)}, {"head.weight": 1.0}):
        torch.save(state | {"scales": scales}, tmp_path / "bad.pt")
        with pytest.raises(UserError, match="scales"):
            checkpoint.load(tmp_path / "bad.pt")
