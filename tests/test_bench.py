"""python -m bench: its statistics and tables, and its parts at tiny sizes. No peer is needed."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TINY

from bench import child, gpu, profiler, report, runs, steps, turns
from bench.__main__ import Options, check, parts_of, shown_command
from bench.turns import Child, Gone, in_turn, json_lines, measured, median, watch
from nanoft import UserError

MACHINE = {"cpu": "a processor", "cores": 2, "memory_gb": 8, "isa": "AVX2", "torch": "2.13.0+cpu", "native_bf16": True}
NANOFT, PEER = "nanoft bf16 compiled", "peer fp32 eager"
SMALL = dict(n_layer=1, n_head=2, n_embd=32, block_size=16, batch_size=2, vocab_size=64)


@pytest.fixture
def result():
    figures = {NANOFT: [30.0, 10.0, 20.0], PEER: [8.0, 12.0, 10.0], "peer bf16": [5.0, 4.0, 6.0]}
    facts = {NANOFT: {"dtype": "bfloat16", "share": 0.7, "share_of": "bf16 matrix product"},
             PEER: {"dtype": "float32", "peer": True}, "peer bf16": {"dtype": "bfloat16", "peer": True}}
    return measured("a step", "tokens/s", True, figures, facts, [NANOFT, "nanoft fp32 compiled"], {"memory read": 32.0})


def test_medians_count_a_run_that_did_not_finish_as_the_worst():
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([3.0, None, 1.0]) == 3.0
    assert median([None, None, 1.0]) is None
    assert median([1.0, None]) is None


def test_contenders_take_turns_and_the_cap_leaves_one_round(monkeypatch):
    monkeypatch.setattr(turns, "PAUSE", 0.0)
    seen = []
    ways = {name: lambda name=name: seen.append(name) or float(len(seen)) for name in "AB"}
    assert in_turn(ways, 2, say=lambda line: None) == {"A": [1.0, 3.0], "B": [2.0, 4.0]}
    assert "".join(seen) == "ABAB"
    assert in_turn(ways, 5, minutes=1e-9, say=lambda line: None) == {"A": [5.0], "B": [6.0]}


def test_factors_say_how_many_times_better_nanoft_is(result):
    ours, theirs = result["rows"][:2]
    assert ours["median"] == 20.0 and report.factor(result, ours, theirs) == 2.0
    assert report.factor(result | {"higher_is_better": False}, ours, theirs) == 0.5
    assert report.factor(result, ours, theirs | {"median": None}) is None
    assert result["lead"] == [NANOFT]
    text = "\n".join(report.table({"step": result}))
    assert "2.00 x (nanoft bf16 compiled)" in text and "4.00 x" in text and "70%" in text and "32.0  GB/s" in text


def test_a_peer_in_bf16_is_not_set_beside_fp32(result):
    fp32 = {"dtype": "float32"}
    assert [report.comparable(fp32, row) for row in result["rows"]] == [False, True, False]
    assert [report.comparable(result["rows"][0], row) for row in result["rows"]] == [False, True, True]


def test_page_block_is_made_of_saved_results(result, tmp_path):
    report.save("step", result, MACHINE, "python -m bench", "2026-11-22", tmp_path)
    other = MACHINE | {"cpu": "Another(R) one", "isa": "AVX512 + amx_bf16"}
    report.save("step", result, other, "python -m bench", "2026-11-23", tmp_path)
    saved = report.load(tmp_path)
    assert [folder.name for folder in saved] == ["a-processor-avx2-2-cores", "another-one-amx-bf16-2-cores"]
    step = saved[tmp_path / "a-processor-avx2-2-cores"]["step"]
    assert step["rows"] == result["rows"] and step["machine"] == MACHINE
    block = report.page_block(saved)
    assert "2 cores of Another(R) one (AVX512 + amx_bf16), 8 GB, torch 2.13.0**; 2026-11-23" in block
    assert ("| a step: bf16 compiled | 20.0 tokens/s (70% of bf16 matrix product) "
            "| peer fp32 eager 10.0 (**2.00x**), peer bf16 5.00 (**4.00x**) |") in block
    assert "2 cores of a processor (AVX2), 8 GB, torch 2.13.0**; 2026-11-22" in block
    page = tmp_path / "benchmarks.md"
    page.write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow 中文\n", encoding="utf-8")
    report.rewrite(page, block)
    report.rewrite(page, block)
    text = f"above\n{report.BEGIN}\n{block}\n{report.END}\nbelow 中文\n"
    assert page.read_text(encoding="utf-8") == text
    page.write_text(f"{report.END}\n{report.BEGIN}", encoding="utf-8")
    with pytest.raises(UserError, match="has no block"):
        report.rewrite(page, block)


def test_size_table_and_plot(tmp_path):
    rows = [{"name": "", "model": model, "length": length, "mode": mode, "median": 1000.0 * length, "peak_mb": 2048.0}
            for model in ("1M", "12M") for length in (128, 2048) for mode in ("compiled", "eager")][:-1]
    result = {"title": "sizes", "rows": rows}
    assert report.size_table(result)[2] == "| 1M | 128,000 / 128,000, 2.0 | 2,048,000 / 2,048,000, 2.0 |"
    assert report.size_table(result)[3].endswith("| 2,048,000 / -, 2.0 |")
    pytest.importorskip("matplotlib")
    assert report.plot_size(result, tmp_path / "size.png")
    assert 5_000 < (tmp_path / "size.png").stat().st_size < 200_000


def test_rows_of_a_growing_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert json_lines(path) == []
    path.write_text('{"step": 1, "loss": 4.0}\n{"step": 2, "val_loss": null}\n{"step": 3, "val_loss": 1.9}\n'
                    '{"step": 4, "val_loss": 1.886, "seconds": 9.5}\n{"step": 5, "val_lo')
    assert runs.first_row(path, lambda row: runs.reached(row, 1.886)) == {"step": 4, "val_loss": 1.886, "seconds": 9.5}
    assert runs.first_row(path, lambda row: runs.reached(row, 1.0)) is None


def test_losses_that_nanogpt_prints(tmp_path):
    (tmp_path / "log").write_text("step 0: train loss 4.1, val loss 4.2063\niter 0: loss 4.2\n"
                                  "step 250: train loss 2.0000, val loss 2.0513\niter 250: lo")
    assert runs.nanogpt_losses(tmp_path / "log") == [4.2063, 2.0513]


def test_commands_are_timed_until_something_is_seen(tmp_path):
    file = tmp_path / "seen"
    words = [sys.executable, "-c", f"import time; open({str(file)!r}, 'w'); time.sleep(60)"]
    seconds, what = watch(words, lambda: file.exists() or None)
    assert what and seconds > 0
    assert watch([sys.executable, "-c", "pass"], lambda: None)[1] is None
    with pytest.raises(UserError, match="told so"):
        watch([sys.executable, "-c", "import sys; sys.exit('told so')"], lambda: None)


def test_options_are_checked_and_paths_are_not_saved(tmp_path):
    assert parts_of(Options()) == ["ceilings", "step", "memory", "first_step", "loss", "bpe", "tokenize", "finetune",
                                     "generate"]
    assert parts_of(Options(only="size, bpe")) == ["size", "bpe"]
    assert parts_of(Options(page=True)) == [] and parts_of(Options(profile=True)) == ["profile"]
    problems = check(Options(only="stpe", rounds=0, nanogpt=str(tmp_path), match="("))
    assert len(problems) == 4 and "no part 'stpe'" in problems[0]
    words = ["--nanogpt=/some/where/nanoGPT/", "--peers", "--text=/a/b.txt", "--match=a b"]
    assert shown_command(words) == "python -m bench --nanogpt=nanoGPT --peers --text=b.txt --match=a b"


@pytest.mark.parametrize(("name", "group"), [
    ("aten::mm", "matrix products of linear layers"), ("aten::bmm", "attention products"),
    ("aten::_softmax", "softmax"), ("aten::_log_softmax", "loss"), ("aten::embedding", "embedding"),
    ("aten::_to_copy", "casts and copies"), ("aten::mul", "norms, elementwise"),
    ("graph_0_cpp_fused__to_copy_mul_rms_norm_3", "norms, elementwise"),
    ("graph_0_cpp_fused__softmax_masked_fill_4", "softmax"), ("autograd::engine::evaluate_function", "other")])
def test_operators_have_a_group(name, group):
    assert profiler.group_of(name) == group


@pytest.mark.slow
def test_profile_accounts_for_the_whole_step():
    made = child.step("nanoft", SMALL, "float32", optimizer="muon")
    found = made["profile"](n=2)
    assert tuple(found["groups"]) == profiler.GROUPS
    assert sum(found["groups"].values()) == pytest.approx(found["ms"])
    for group in ("matrix products of linear layers", "attention products", "optimizer, clipping", "loss"):
        assert found["groups"][group] > 0


def test_only_weights_that_are_multiplied_are_counted():
    tied, own = (child.step("nanoft", SMALL, "float32", tie_head=tie)["warm"]() for tie in (True, False))
    table = SMALL["vocab_size"] * SMALL["n_embd"]
    assert own["weights"] == tied["weights"] and own["parameters"] == tied["parameters"] + table
    assert child.linear_rate(SMALL, torch.float32, runs=1) > 0


def test_sampling_gives_as_many_tokens_as_asked():
    size = {k: v for k, v in SMALL.items() if k != "batch_size"}
    made = child.sampling("nanoft", size, "bfloat16", prompt=4)
    assert made["warm"]()["bytes"] > 0 and made["sample"](n=5)["seconds"] > 0


@pytest.mark.slow
def test_step_part_in_processes_of_their_own(monkeypatch):
    monkeypatch.setattr(steps, "limit_ways", lambda machine_child, machine: {"fp32 matrix product, 2048": lambda: 1.0})
    cfg = Options(rounds=2, steps=1, match="nanoft fp32 eager")
    result = steps.step(cfg, MACHINE | {"native_bf16": False}, size=SMALL)
    assert [row["name"] for row in result["rows"]] == ["nanoft fp32 eager"] == result["lead"]
    assert len(result["rows"][0]["rounds"]) == 2 and result["rows"][0]["share"] > 0
    assert json.loads(json.dumps(result)) == result


def test_a_contender_that_fails_says_why():
    with Child(make="nonsense") as contender, pytest.raises(Gone, match="nonsense"):
        contender.ask("warm")


def test_tokenizing_to_disk_and_in_memory():
    made = child.tokenizing(str(ROOT / "train.py"), 300)
    assert made["to_disk"]()["mb_s"] > 0 and made["to_disk"](repeat=3)["mb_s"] > 0 and made["in_memory"]()["mb_s"] > 0


@pytest.mark.slow
def test_time_to_loss_from_raw_text(tmp_path, monkeypatch):
    text = "".join(f"{i} bottles of beer on the wall, {i} bottles of beer.\n" for i in range(400))
    (tmp_path / "tinyshakespeare.txt").write_text(text)
    monkeypatch.setenv("NANOFT_MIRROR", str(tmp_path))
    tiny = [option for option in TINY if not option.startswith("--max_steps")] + ["--max_steps=4", "--eval_interval=2"]
    cfg = SimpleNamespace(target=50.0, rounds=1, minutes=0.0, match="", nanogpt="")
    row = runs.loss(cfg, MACHINE, recipe=tiny)["rows"][0]
    assert row["runs"][0]["step"] == 2 and row["runs"][0]["seconds_by_itself"] <= row["median"] + 1
    assert row["runs"][0]["seed"] == 1


# ---- a GPU's parts, here on the CPU ------------------------------------------------------------------------------


def test_a_gpu_has_parts_and_results_of_its_own():
    assert parts_of(Options(device="cuda")) == ["ceilings", "step", "evaluate", "memory", "generate", "equal"]
    assert "no part 'bpe'" in check(Options(device="cuda", only="bpe"))[0]
    machine = MACHINE | {"gpu": "NVIDIA H100 80GB HBM3"}
    assert report.folder_of(machine) == "nvidia-h100-80gb-hbm3" and "H100" in report.described(machine)
    assert list(steps.contenders(SimpleNamespace(nanogpt="", peers=False, match=""), machine)) == [
        "nanoft bf16 compiled", "nanoft bf16 eager", "nanoft bf16 compiled, Muon", "nanoft bf16 compiled, own head"]


@pytest.mark.slow
def test_step_and_evaluation_of_a_gpu(monkeypatch):
    cfg = Options(rounds=2, steps=1, match="nanoft fp32 eager")
    for part in (gpu.step, gpu.evaluate):
        row = part(cfg, MACHINE | {"native_bf16": False}, size=SMALL)["rows"][0]
        assert row["name"] == "nanoft fp32 eager" and len(row["rounds"]) == 2 and row["median"] > 100


@pytest.mark.slow
def test_the_loss_after_equal_seconds(corpus):
    cfg = SimpleNamespace(device="cpu", data=str(corpus), rounds=1, seconds=2, nanogpt="")
    row = gpu.equal_seconds(cfg, MACHINE, SMALL, ("--compile=false", "--dtype=float32"))["rows"][0]
    assert 3 < row["median"] < 6
