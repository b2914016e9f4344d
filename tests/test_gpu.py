"""On a CUDA device: every script and kind once, and the same numbers as on the CPU. Skipped where there is none.

NANOFT_TEST_DEVICE=cpu runs these tests on the CPU, to see that they run at all.
"""

import copy
import io
import json
import os
import random
from contextlib import redirect_stdout

import pytest
import torch
from conftest import TINY
from test_explain import KINDS as SHAPES
from test_explain import classifier, text
from test_finetune import write_base, write_folder
from test_model import TINY as SMALL
from test_model import filled
from test_story_finetune import FAST, KINDS
from test_story_train import load, losses, result, rows

import finetune
import sample
import train
from nanoft import UserError, distributed, generate, kernels, loop
from nanoft.inspect import explain
from nanoft.model import CLASSIC, GPT, ModelConfig
from nanoft.sampling import Sampling

DEVICE = os.environ.get("NANOFT_TEST_DEVICE", "cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(),
                                                  reason="no CUDA device here")]
ON = [f"--device={DEVICE}"]
RECIPES = {"muon": [], "adamw": ["--optimizer=adamw", "--micro_batch_size=2", "--tie_head"],
           "grams": ["--n_gram=3", "--n_buckets=64", "--n_kv_head=1"], "gpt2": ["--arch=gpt2", "--lr=0.001"],
           "mlm": ["--objective=mlm"], "pairs": ["--objective=mlm_nsp", "--arch=bert", "--lr=0.001"]}


# ---- pretraining -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(corpus, tmp_path_factory):
    """A GPT of 60 steps, on the GPU."""
    folder = tmp_path_factory.mktemp("gpu") / "gpt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py", *TINY, *ON, "--max_steps=60", "--eval_interval=30",
                                   f"--data={corpus}", f"--out_dir={folder}"])
        train.main()
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_has_the_losses_of_the_cpu(corpus, tmp_path, call, recipe):
    for name, device in (("cpu", []), ("gpu", ON)):
        call(train, *TINY, *device, *RECIPES[recipe], f"--data={corpus}", f"--out_dir={tmp_path / name}")
    torch.testing.assert_close(losses(tmp_path / "gpu"), losses(tmp_path / "cpu"), atol=5e-3, rtol=0)
    for name in ("val_loss", "test_loss"):
        assert result(tmp_path / "gpu")[name] == pytest.approx(result(tmp_path / "cpu")[name], abs=5e-3)


@pytest.mark.parametrize("compile", ["false", pytest.param("true", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_training_in_half_precision_is_near_fp32(corpus, tmp_path, call, dtype, compile):
    for name, options in (("full", []), ("half", [f"--dtype={dtype}", f"--compile={compile}"])):
        call(train, *TINY, *ON, *options, "--max_steps=30", f"--data={corpus}", f"--out_dir={tmp_path / name}")
    full, half = losses(tmp_path / "full"), losses(tmp_path / "half")
    assert (full - half).abs().max() < 0.15 and half[-1] < half[0] - 0.5


@pytest.mark.parametrize("compile", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_a_resumed_run_is_near_the_one_never_stopped(corpus, tmp_path, call, compile):
    """Not equal to the bit: on CUDA, embedding and attention gradients are summed in any order."""
    options = [*TINY, *ON, "--dropout=0.1", "--schedule=constant", "--warmup=0", "--eval_interval=10",
               f"--compile={compile}", f"--data={corpus}"]
    call(train, *options, "--max_steps=20", f"--out_dir={tmp_path / 'whole'}")
    for steps in (10, 20):
        call(train, *options, f"--max_steps={steps}", f"--out_dir={tmp_path / 'run'}", "--resume=auto")
    assert [row["step"] for row in rows(tmp_path / "run")[0]] == list(range(1, 21))
    torch.testing.assert_close(losses(tmp_path / "run"), losses(tmp_path / "whole"), atol=1e-2, rtol=0)


@pytest.mark.parametrize("options", [["--optimizer=muon", "--dtype=bfloat16"], ["--objective=mlm", "--dtype=bfloat16"],
                                     ["--micro_batch_size=2", "--dropout=0.1"], ["--objective=mlm_nsp"]], ids=" ".join)
def test_nobody_waits_between_the_status_lines_of_cuda(corpus, tmp_path, call, monkeypatch, options):
    """Asked of CUDA itself: what would wait for the device raises an error."""
    if DEVICE != "cuda":
        pytest.skip("only CUDA can tell")
    status, line_due = loop.Run.status, loop.Run.line_due

    def shown(run, *args, **kwargs):
        status(run, *args, **kwargs)
        torch.cuda.set_sync_debug_mode("error" if run.step < 11 else "default")

    def due(run):
        if line_due(run):
            torch.cuda.set_sync_debug_mode("default")
        return line_due(run)

    monkeypatch.setattr(loop.Run, "status", shown)
    monkeypatch.setattr(loop.Run, "line_due", due)
    try:
        call(train, *TINY, *ON, "--max_steps=11", "--log_interval=11", "--eval_interval=100", *options,
             f"--data={corpus}", f"--out_dir={tmp_path}")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_logits_and_the_gradients_are_those_of_the_cpu(monkeypatch):
    monkeypatch.setattr(kernels, "MOST_LOGITS", 128 * 128)  # the loss in chunks, too
    for options in ({}, CLASSIC["gpt2"], dict(n_kv_head=1, n_gram=2, n_buckets=64)):
        found = []
        for device in ("cpu", DEVICE):
            torch.manual_seed(0)
            model = GPT(ModelConfig(vocab_size=100, block_size=64, n_layer=2, n_head=2, n_embd=32, **options))
            for p in model.parameters():
                torch.nn.init.normal_(p, std=0.1)
            model.to(device)
            kernels.tune(model, torch.device(device))
            ids = torch.randint(0, 100, (4, 64), generator=torch.Generator().manual_seed(1)).to(device)
            model(ids, ids.roll(-1, 1)).backward()
            found.append([model.logits(ids).detach().cpu(), *(p.grad.cpu() for p in model.parameters())])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-5)


def test_evaluation_alone_is_that_of_the_cpu(corpus, pretrained, call, capsys):
    shown = []
    for device in ("--device=cpu", ON[0]):
        call(train, "--eval_only", f"--init_from={pretrained}", f"--data={corpus}", device, "--dtype=float32")
        shown.append([float(line.split("loss ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()
                      if "loss " in line])
    assert len(shown[0]) == 2 and shown[1] == pytest.approx(shown[0], abs=1e-3)


def test_too_little_memory_is_told_with_what_to_lower(corpus, tmp_path, call):
    if DEVICE != "cuda":
        pytest.skip("only a GPU's memory can be cut down here")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.002)
    try:
        with pytest.raises(UserError, match="no memory left .*lower --micro_batch_size"):
            call(train, *TINY, *ON, "--compile=true", "--batch_size=4096", "--block_size=256", "--n_embd=256",
                 f"--data={corpus}", f"--out_dir={tmp_path / 'compiled'}")
        with pytest.raises(RuntimeError, match="out of memory"):  # of which config.run makes a sentence
            call(train, *TINY, *ON, "--batch_size=4096", "--block_size=256", "--n_embd=256", f"--data={corpus}",
                 f"--out_dir={tmp_path / 'eager'}")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_job_of_seconds_is_not_compiled(corpus, tmp_path, call, capsys):
    options = [option for option in TINY if "compile" not in option]
    call(train, *options, *ON, f"--data={corpus}", f"--out_dir={tmp_path}")
    assert "compiled in" not in capsys.readouterr().out


# ---- use ---------------------------------------------------------------------------------------------------------


def test_the_likeliest_tokens_are_those_of_the_cpu(pretrained, call):
    said = []
    for device in ("--device=cpu", ON[0]):
        with redirect_stdout(io.StringIO()) as out:
            call(sample, f"--checkpoint={pretrained}", device, "--dtype=float32", "--max_new_tokens=24",
                 "--temperature=0", "--prompt=def ")
        said.append(out.getvalue())
    assert said[0] == said[1] and len(said[0]) > 10


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_samples_are_written(pretrained, call, dtype):
    with redirect_stdout(io.StringIO()) as out:
        call(sample, f"--checkpoint={pretrained}", *ON, f"--dtype={dtype}", "--max_new_tokens=24", "--prompt=def ",
             "--num_samples=2")
    assert out.getvalue().startswith("def ")


# ---- fine-tuning -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    for name, (make, task, _) in KINDS.items():
        rng = random.Random(name)
        train_rows, val, test = ([make(rng) for _ in range(n)] for n in (160, 40, 40))
        write_folder(folder / name, train_rows, val, test, **task)
    for name, causal in (("encoder", False), ("gpt", True)):
        write_base(folder / name, folder / "classify" / "tokenizer.json", causal=causal)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_the_losses_of_the_cpu_and_is_used(name, home, tmp_path, call):
    model = "gpt" if name == "generate" else "encoder"
    options = [*FAST, "--epochs=1", "--max_steps=8", "--dropout=0", "--head_dropout=0", f"--data={home / name}",
               f"--init_from={home / model}"]
    for folder, device in (("cpu", []), ("gpu", ON)):
        call(finetune, *options, *device, f"--out_dir={tmp_path / folder}")
    torch.testing.assert_close(losses(tmp_path / "gpu"), losses(tmp_path / "cpu"), atol=1e-2, rtol=1e-2)
    call(finetune, *options, *ON, "--eval_only", f"--out_dir={tmp_path / 'gpu'}")
    row = (home / name / "test.jsonl").read_text(encoding="utf-8").splitlines()[0]
    (tmp_path / "rows.jsonl").write_text(row + "\n", encoding="utf-8")
    call(sample, f"--checkpoint={tmp_path / 'gpu'}", *ON, f"--input={tmp_path / 'rows.jsonl'}",
         f"--output={tmp_path / 'out.jsonl'}")
    written = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert "prediction" in written or "text" in written


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("more", [["--lora_rank=4"], ["--average=0.9", "--class_weights=balanced"],
                                  pytest.param(["--compile=true"], marks=pytest.mark.slow)], ids=" ".join)
def test_fine_tuning_in_half_precision_learns(home, tmp_path, call, dtype, more):
    call(finetune, *FAST, *ON, f"--dtype={dtype}", *more, f"--data={home / 'classify'}",
         f"--init_from={home / 'encoder'}", f"--out_dir={tmp_path}", "--epochs=8")
    assert result(tmp_path)["test_accuracy"] > 0.6  # of three labels


def test_fine_tuning_goes_on_near_where_it_stopped(home, tmp_path, call):
    options = [*FAST, *ON, f"--data={home / 'classify'}", f"--init_from={home / 'encoder'}", "--schedule=constant",
               "--warmup=0", "--eval_interval=5"]
    call(finetune, *options, "--max_steps=10", f"--out_dir={tmp_path / 'whole'}")
    for steps, resume in ((5, "false"), (10, "true")):
        call(finetune, *options, f"--max_steps={steps}", f"--resume={resume}", f"--out_dir={tmp_path / 'run'}")
    a, b = (load(tmp_path / name / "latest.pt")["model"] for name in ("whole", "run"))
    for name in a:
        torch.testing.assert_close(b[name], a[name], atol=2e-2, rtol=0, msg=name)


# ---- what a model looks at ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHAPES)
def test_explanations_are_those_of_the_cpu(kind):
    """In fp32; its products are exact on a GPU too, for torch leaves TF32 off."""
    assert torch.get_float32_matmul_precision() == "highest"
    found = []
    for device in ("cpu", DEVICE):
        model, ids = classifier(**SHAPES[kind]).to(device), text()[None].to(device)
        with explain.attention_weights(model) as weights:
            logits = model.logits(ids)
        found.append([logits.cpu(), *(layer.cpu() for layer in weights)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_peak_is_known_or_measured_at_once():
    began = loop.time.monotonic()
    assert kernels.peak_flops(torch.device(DEVICE), torch.bfloat16) > 1e10
    assert loop.time.monotonic() - began < 3


def test_a_batch_on_its_way_is_the_batch():
    batch = {"ids": torch.arange(12).view(3, 4).numpy(), "targets": torch.arange(3).numpy()}
    for name, tensor in distributed.to_device(batch, torch.device(DEVICE)).items():
        assert tensor.device.type == DEVICE and tensor.cpu().numpy().tolist() == batch[name].tolist()


# ---- generation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, dict(n_kv_head=1, n_gram=3), CLASSIC["gpt2"], dict(block_size=200)])
def test_a_recorded_step_says_what_reading_all_anew_says(options):
    model = filled(ModelConfig(**{**SMALL, **options})).eval().to(DEVICE)
    prompts = [torch.arange(n) % 100 for n in (9, 1, 16, 40, 5)]
    for rules in (Sampling(temperature=0), Sampling(1.3, 0.5, 3, temperature=0.9, top_p=0.9, stop_ids=(7,))):
        graph, anew, cpu = (torch.stack(list(generate.generate(net, prompts, 150, rules, cached=c)), dim=1).tolist()
                            for net, c in ((model, True), (model, False), (copy.deepcopy(model).cpu(), True)))
        short = min(map(len, (graph[0], anew[0], cpu[0])))  # on a GPU the end is noticed up to seven tokens later
        assert [row[:short] for row in graph] == [row[:short] for row in anew] == [row[:short] for row in cpu]
