"""The hot loop: between two status lines nobody waits for the device; ranks agree now and then; batches in advance."""

import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import DIST, TINY

import finetune
import train
from nanoft import batches, checkpoint, distributed, evaluate, kernels, loop
from nanoft.bins import Tokens
from nanoft.model import GPT, ModelConfig, make_model, training_flops
from nanoft.text import vocabulary

WAITS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__", "__array__")


@pytest.fixture
def waits(monkeypatch):
    """The places that read a tensor in the steps 2 to 10, which have no status line: a list, filled by a run.

    On a GPU each would wait for the device; its own torch.cuda.set_sync_debug_mode is asked in test_gpu.py.
    """
    found, hot = [], types.SimpleNamespace(on=False)
    for name in WAITS:
        original = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, original=original, **kwargs):
            if hot.on:
                frame = sys._getframe(1)
                found.append(f"{name} in {frame.f_code.co_filename}:{frame.f_lineno}")
            return original(self, *args, **kwargs)
        monkeypatch.setattr(torch.Tensor, name, counted)
    status, line_due = loop.Run.status, loop.Run.line_due

    def shown(run, *args, **kwargs):
        status(run, *args, **kwargs)
        hot.on = run.step < 11

    def due(run):  # what is logged of a step with a status line may be waited for
        hot.on &= not line_due(run)
        return line_due(run)

    monkeypatch.setattr(loop.Run, "status", shown)
    monkeypatch.setattr(loop.Run, "line_due", due)
    return found


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"{'good ' * (i % 5)}word {i},{'ab'[i % 2]}\n" for i in range(200)))
    return path


HOT = ["--max_steps=11", "--log_interval=11", "--eval_interval=100"]


@pytest.mark.parametrize("options", [["--optimizer=muon"], ["--optimizer=adamw", "--micro_batch_size=2"],
                                     ["--objective=mlm"], ["--objective=mlm_nsp"]], ids=" ".join)
def test_nobody_waits_between_the_status_lines_of_train(corpus, tmp_path, call, waits, options):
    call(train, *TINY, *HOT, f"--data={corpus}", f"--out_dir={tmp_path / 'run'}", *options)
    assert waits == []


@pytest.mark.parametrize("options", [[], ["--class_weights=balanced", "--average=0.9"]], ids=" ".join)
def test_nobody_waits_between_the_status_lines_of_finetune(table, tmp_path, call, waits, options):
    call(finetune, f"--train_file={table}", "--n_layer=1", "--n_embd=32", "--n_head=2", "--epochs=1", *HOT,
         "--device=cpu", "--dtype=float32", f"--out_dir={tmp_path / 'run'}", *options)
    assert waits == []


def test_a_wait_in_the_loop_is_noticed(corpus, tmp_path, call, waits, monkeypatch):
    seed = loop.Run.seed_dropout

    def waiting(run):
        seed(run)
        float(torch.ones(()))

    monkeypatch.setattr(loop.Run, "seed_dropout", waiting)
    call(train, *TINY, *HOT, f"--data={corpus}", f"--out_dir={tmp_path / 'run'}")
    assert len(waits) >= 9 and "test_loop.py" in waits[0]


# ---- batches in advance ------------------------------------------------------------------------------------------


def bare_run(**more):
    """A Run without model and folder, for what needs neither."""
    run = loop.Run.__new__(loop.Run)
    run.cfg, run.dist, run.step, run.micro, run.made = types.SimpleNamespace(batch_size=8), DIST, 0, 4, (-1, [])
    run.__dict__.update(more)
    return run


def test_every_batch_is_made_once_and_one_step_in_advance():
    run, made, seen = bare_run(), [], []

    def make_batch(rows):
        made.append(rows.tolist())
        return {"rows": rows}

    for run.step in range(3):
        for batch, scored, total in run.micro_batches(None, make_batch, lambda batch: 2):
            seen.append(batch["rows"].tolist())
            assert (scored, total) == (2, 4)
        assert len(made) == 2 * (run.step + 2)
    assert seen == made[:6] == [list(range(i, i + 4)) for i in range(0, 24, 4)]


def test_a_run_that_goes_on_elsewhere_makes_its_batch_anew():
    run = bare_run()
    list(run.micro_batches(None, lambda rows: {"rows": rows}))
    run.step = 7  # as after resuming
    assert next(run.micro_batches(None, lambda rows: {"rows": rows}))[0]["rows"][0] == 56


# ---- the clock of several ranks ----------------------------------------------------------------------------------


def test_ranks_agree_about_once_a_second_and_count_on_in_between(monkeypatch):
    asked, now = [], [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(distributed, "total", lambda numbers, dist, op: asked.append(run.step) or list(numbers))
    run = bare_run(dist=distributed.Dist(0, 2, torch.device("cpu")), max_steps=0, max_minutes=1.0, began=0.0, caught=[],
                   agreed=(0.0, 0), pace=0.0, agree_at=0, interrupted=False)
    for run.step in range(41):
        now[0] = 0.1 * run.step
        assert run.progress() == pytest.approx(0.1 * run.step / 60)
    assert asked == [0, 1, 11, 21, 31] or asked == [0, 1, 10, 19, 28, 37]  # 1 / 0.1 may be rounded down
    run.caught.append(15)
    run.progress()
    assert not run.interrupted
    run.step = run.agree_at
    run.progress()
    assert run.interrupted


def test_a_process_alone_looks_at_its_clock_at_every_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    run = bare_run(max_steps=0, max_minutes=1.0, began=0.0, caught=[], agreed=(0.0, 0), pace=0.0, agree_at=0)
    for run.step, now[0] in enumerate((0.0, 5.0, 5.5, 30.0)):
        assert run.progress() == now[0] / 60


# ---- what a run is worth compiling, and what it uses of the device -----------------------------------------------


@pytest.mark.parametrize("device, minutes, wanted", [("cpu", 4, False), ("cpu", 6, True), ("cuda", 2.2, False),
                                                     ("cuda", 4, True), ("mps", 60, False)])
def test_a_short_job_is_not_compiled(device, minutes, wanted):
    assert kernels.wants_compile(minutes, torch.device(device)) == wanted


@pytest.mark.parametrize("choice, auto, wanted", [("auto", True, True), ("auto", False, False), ("true", False, True),
                                                  ("false", True, False)])
def test_true_and_false_are_taken_at_their_word(monkeypatch, choice, auto, wanted):
    run = loop.Run.__new__(loop.Run)
    run.cfg, run.log = types.SimpleNamespace(compile=choice), types.SimpleNamespace(say=print)
    run.dist, run.optimizers, run.model = DIST, [], torch.nn.Linear(2, 2)
    run.net = run.model
    monkeypatch.setattr(kernels, "compiled", lambda net, *_: "compiled")
    assert run.wrap(None, auto, 8) == ("compiled" if wanted else run.model)


@pytest.mark.parametrize("steps, size, least, most", [
    (80, dict(n_layer=2, n_embd=128, block_size=64, batch_size=16), 0, 0.05),                   # config/shakespeare.py
    (5000, dict(n_layer=12, n_embd=768, n_head=12, block_size=1024, batch_size=32), 15, 120)])  # GPT-2, 124M
def test_how_long_steps_take_on_a_gpu_is_estimated(steps, size, least, most):
    cfg = train.Config(max_steps=steps, max_minutes=0, **size)
    with torch.device("meta"):
        model = GPT(ModelConfig.from_options(cfg, 50257))
    minutes = train.estimated_minutes(cfg, model, distributed.Dist(0, 1, torch.device("cuda")))
    assert least <= minutes < most


def test_the_operations_of_gpt2():
    with torch.device("meta"):
        model = GPT(ModelConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768))
    # 85M weights in blocks and 39M in the head; 12 layers of 1,024 x 768 attention, half of it
    assert training_flops(model, 1024) == 6 * (12 * 12 * 768**2 + 50304 * 768) + 6 * 12 * 1024 * 768


def test_the_peak_of_a_known_card_is_that_of_its_data_sheet(monkeypatch):
    for name, teraflops in (("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA L40S", 362),
                            ("NVIDIA A100-SXM4-80GB", 312), ("Tesla T4", 65)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert kernels.peak_flops(torch.device("cuda"), torch.bfloat16) == teraflops * 1e12


def test_a_peak_that_is_unknown_is_measured_soon():
    began = loop.time.monotonic()
    assert 1e8 < kernels.peak_flops(torch.device("cpu"), torch.float32) < 1e15
    assert loop.time.monotonic() - began < 3  # 0.2 s on a core that is free


def test_the_share_of_the_peak_is_told(corpus, tmp_path, call, capsys):
    call(train, *TINY, "--max_steps=2", f"--data={corpus}", f"--out_dir={tmp_path / 'run'}")
    assert "| MFU " in capsys.readouterr().out
    assert '"mfu": ' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_the_peak_of_memory_is_of_one_run_of_a_sweep(monkeypatch):
    reset = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    for name in ("cuda", "cpu"):
        device = torch.device(name)
        run = bare_run(dist=distributed.Dist(0, 1, device), model=torch.nn.Linear(1, 1), spent=0.0, step=1)
        run.start({})
        run.release_signals()
        assert reset == [torch.device("cuda")]


def out_of_memory(net):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize("choice", ["auto", "true"])
def test_too_little_memory_is_told_as_such_and_not_as_a_failed_compilation(choice):
    with pytest.raises(loop.UserError, match="no memory left .*lower --micro_batch_size"):
        kernels.compiled(torch.nn.Linear(2, 2), out_of_memory, choice, torch.float32, 8, print)


# ---- large checkpoints -------------------------------------------------------------------------------------------


def test_a_large_checkpoint_is_written_while_training_goes_on(tmp_path, monkeypatch):
    """A thread writes a copy: what is on disk are the weights of the moment of saving, and nothing is lost."""
    go_on, save = threading.Event(), checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda path, state: go_on.wait(20) and save(path, state))
    model = GPT(ModelConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    monkeypatch.setattr(loop, "LARGE", 100)  # parameters
    run = bare_run(model=model, out_dir=tmp_path, fingerprints={}, writing=None, writer=ThreadPoolExecutor(1))
    run.cfg = train.Config()
    before = model.trunk.tokens.weight.clone()
    run.save("latest.pt", model=model.state_dict())  # returns at once
    assert not (tmp_path / "latest.pt").exists()
    with torch.no_grad():
        model.trunk.tokens.weight.zero_()
    go_on.set()
    run.finish_writing()
    assert torch.equal(torch.load(tmp_path / "latest.pt")["model"]["trunk.tokens.weight"], before)


@pytest.mark.parametrize("large", [True, False])
def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch, large):
    monkeypatch.setattr(loop, "LARGE", 100 if large else 10**9)
    (tmp_path / "file").touch()  # and no folder
    run = bare_run(model=GPT(ModelConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16)), out_dir=tmp_path / "file",
                   fingerprints={}, writing=None, writer=ThreadPoolExecutor(1), cfg=train.Config())
    with pytest.raises(OSError):
        run.save("latest.pt", model=run.model.state_dict())
        assert large
        run.save("latest.pt", model=run.model.state_dict())  # tells of the one before


# ---- evaluation --------------------------------------------------------------------------------------------------


class FixedShapes:
    """A model as torch.compile gives it, which would be compiled anew for each shape: notes those that it meets."""

    def __init__(self, model):
        self._orig_mod, self.cfg, self.shapes = model, model.cfg, set()

    def __call__(self, **batch):
        self.shapes.add((batch["ids"].shape, batch.get("capacity")))
        return self._orig_mod(**batch)


@pytest.mark.parametrize("causal", [True, False])
def test_evaluation_gives_compiled_code_one_shape_and_the_same_metrics(corpus, causal):
    tokens, tokenizer = Tokens.open(corpus, "train"), vocabulary.load(corpus)
    torch.manual_seed(0)
    model = make_model(ModelConfig(vocab_size=400, block_size=16, n_layer=1, n_head=2, n_embd=16, causal=causal)).eval()
    torch.nn.init.normal_(model.head.weight)
    masking = batches.masking(tokenizer, 0.15)

    def metrics(net, dist):
        if causal:
            return evaluate.causal_metrics(net, tokens, 20_000, 0, dist)
        return evaluate.masked_metrics(net, tokens, 20_000, masking, {}, dist)

    whole, net = metrics(model, DIST), FixedShapes(model)
    assert metrics(net, DIST) == pytest.approx(whole, rel=1e-6)
    assert len(net.shapes) == 1  # of three groups, of which the last is filled up


def test_every_rank_has_as_many_groups_and_every_window_counts_once():
    model = types.SimpleNamespace(cfg=types.SimpleNamespace(vocab_size=100, block_size=2048), _orig_mod=None)
    for windows, ranks in ((9, 2), (3, 4), (17, 3), (1, 2)):
        found = [list(evaluate.chunks(np.arange(windows), model, distributed.Dist(rank, ranks, torch.device("cpu"))))
                 for rank in range(ranks)]
        assert len({tuple(len(group) for group, _ in own) for own in found}) == 1
        assert sorted(int(x) for own in found for group, n in own for x in group[:n]) == list(range(windows))
