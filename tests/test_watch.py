"""What TensorBoard gets: every promised tag is in the event file, says what it should, and costs the run no bit."""

import json
import math
import struct
import sys

import pytest
import torch
from conftest import DIST, TINY
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.graph_pb2 import GraphDef
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from test_story_train import assert_equal, load, losses

import train
from nanoft import optim
from nanoft.inspect.watch import Watch
from nanoft.model import ModelConfig, make_model
from nanoft.runlog import RunLog

WEIGHTS = ["tokens", "head", *(f"blocks.{i}.{name}" for i in (0, 1) for name in (
    "attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc", "mlp.proj"))]


def events(folder):
    """Every event of a run's files, oldest first."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length (8 bytes), its checksum (4), the event, its checksum (4)
            (length,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12:at + 12 + length])
            at += length + 16


def written(folder):
    """{tag: [(step, value)]}, and under "graph" the graph."""
    found = {}
    for event in events(folder):
        if event.graph_def:
            found["graph"] = GraphDef.FromString(event.graph_def)
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value))
    return found


def scalar(found, tag):
    return {step: value.simple_value for step, value in found[tag]}


def text(found, tag):
    return found[f"{tag}/text_summary"][-1][1].tensor.string_val[0].decode()


def check_histograms(found, group, names, steps):
    assert {tag for tag in found if tag.startswith(group + "/")} == {f"{group}/{name}" for name in names}
    for name in names:
        assert [step for step, _ in found[f"{group}/{name}"]] == steps
        for _, value in found[f"{group}/{name}"]:
            histo = value.histo
            assert sum(histo.bucket) == histo.num > 0 and histo.min <= histo.max
            assert list(histo.bucket_limit) == sorted(histo.bucket_limit)
            assert len(histo.bucket_limit) == len(histo.bucket)


def check_figures(found, tags, steps):
    for tag in tags:
        values = scalar(found, tag)
        assert list(values) == steps and all(math.isfinite(value) for value in values.values()), tag


@pytest.fixture(scope="module")
def watched(corpus, tmp_path_factory):
    """Two runs, with and without, 12 steps with an evaluation every 4 and histograms at every second one."""
    folder = tmp_path_factory.mktemp("watched")
    before, sys.argv = sys.argv, None
    try:
        for interval in (2, 0):
            sys.argv = ["train.py", *TINY, "--dropout=0.1", f"--data={corpus}", "--micro_batch_size=4",
                              f"--out_dir={folder / str(interval)}", f"--watch_interval={interval}"]
            train.main()
    finally:
        sys.argv = before
    return folder


def test_the_losses_and_the_weights_are_the_same_without(watched):
    assert torch.equal(losses(watched / "2"), losses(watched / "0"))
    a, b = (load(watched / name / "latest.pt") for name in "20")
    assert_equal(a["model"], b["model"])
    assert_equal(a["optimizer"], b["optimizer"])
    assert not list((watched / "0").glob("events*")) and len(list((watched / "2").glob("events*"))) == 1


def test_every_promised_tag_of_pretraining_is_there(watched):
    found = written(watched / "2")
    every = list(range(1, 13))
    check_figures(found, ["train/loss", "train/lr", "train/grad_norm", "speed/tokens_per_s", "speed/memory_gb",
                          "lr/embeddings", "lr/head", "lr/muon",
                          *(f"gradient_norm/{part}" for part in ("tokens", "blocks.0", "blocks.1", "head"))], every)
    check_figures(found, ["update_ratio/blocks.0", "update_ratio/head"], every)
    check_figures(found, ["val/loss", "val/bits_per_byte"], [4, 8, 12])
    check_figures(found, [f"attention_entropy/blocks.{i}.h{j}" for i in (0, 1) for j in (0, 1)], [0, 8, 12])
    check_figures(found, ["final/val_loss", "final/test_bits_per_byte"], [12])
    check_histograms(found, "weights", WEIGHTS, [0, 8, 12])
    check_histograms(found, "gradients", WEIGHTS, [1, 8])
    check_histograms(found, "activations", [f"blocks.{i}{part}" for i in (0, 1) for part in ("", ".attn", ".mlp")],
                     [0, 8, 12])
    assert "| watch&#95;interval | 2 |" in text(found, "config") and "torch" in text(found, "environment")
    assert len(found["sample/text_summary"]) == 3 and text(found, "final sample").strip()
    assert [node.name for node in found["graph"].node][-1] == "loss"
    assert 0 < scalar(found, "speed/memory_gb")[12] < 64
    assert not any(tag.startswith(("train/seconds", "train/tokens")) for tag in found)


def test_the_run_compares_by_its_options_and_final_figures(watched):
    found = written(watched / "2")
    about = {tag.partition("/")[2]: HParamsPluginData.FromString(values[0][1].metadata.plugin_data.content)
             for tag, values in found.items() if tag.startswith("_hparams_/")}
    options = about["session_start_info"].session_start_info.hparams
    assert options["lr"].number_value == train.Config.lr and options["arch"].string_value == "modern"
    assert "out_dir" not in options
    metrics = {metric.name.tag for metric in about["experiment"].experiment.metric_infos}
    assert {"final/val_loss", "final/test_loss"} <= metrics <= found.keys()
    result = json.loads((watched / "2" / "result.json").read_text())
    assert scalar(found, "final/val_loss")[12] == pytest.approx(result["val_loss"])


# --- what the figures say


class Options:
    optimizer, lr, embed_lr, muon_lr, beta2, weight_decay = "adamw", 0.01, 0.02, 0.02, 0.95, 0.0


def watch_of(model, folder):
    optimizers = optim.make_optimizers(model, optim.pretraining_groups(model, Options), DIST)
    return Watch(RunLog(folder), model, optimizers, 1, DIST)


def small(**shape):
    torch.manual_seed(1)
    return make_model(ModelConfig(**dict(vocab_size=64, block_size=8, n_layer=2, n_head=2, n_embd=8) | shape))


def test_norms_are_those_of_the_gradient_and_of_the_step(tmp_path):
    model = small(tie_head=True)  # a tied weight counts once
    watch = watch_of(model, tmp_path)
    ids = torch.arange(16).view(2, 8)
    model(ids, ids).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    watch.gradients(1, True)
    watch.optimizers[0].step()
    watch.updated(1)
    watch.gradients(2, False)
    watch.updated(2)  # no line is due
    watch.log.close()
    found = written(tmp_path)
    parts = {"tokens": ["trunk.tokens."], "blocks.0": ["trunk.blocks.0."], "blocks.1": ["trunk.blocks.1."]}
    assert {tag for tag in found if tag.startswith("gradient_norm/")} == {f"gradient_norm/{part}" for part in parts}
    for part, names in parts.items():
        some = [(name, p) for name, p in model.named_parameters() if name.startswith(tuple(names))]

        def norm(tensors):
            return torch.cat([x.detach().flatten() for x in tensors]).norm().item()

        assert scalar(found, f"gradient_norm/{part}") == {1: pytest.approx(norm(p.grad for _, p in some))}
        ratio = norm(p - before[name] for name, p in some) / norm(p for _, p in some)
        assert scalar(found, f"update_ratio/{part}") == {1: pytest.approx(ratio)} and ratio > 0
    assert scalar(found, "lr/embeddings") == {1: pytest.approx(0.01)}  # a tied embedding has the head's rate


def test_entropy_is_that_of_the_weights(tmp_path):
    model = small(qk_norm=False)
    for block in model.trunk.blocks:
        torch.nn.init.zeros_(block.attn.q.weight)  # every token looks at all before it alike
    watch = watch_of(model, tmp_path)
    ids = torch.arange(16).view(2, 8)
    watch.look(1, {"ids": ids, "targets": ids})
    watch.log.close()
    found = written(tmp_path)
    mean = sum(math.log(n) for n in range(1, 9)) / 8
    for tag in (f"attention_entropy/blocks.{i}.h{j}" for i in (0, 1) for j in (0, 1)):
        assert scalar(found, tag) == {1: pytest.approx(mean, abs=1e-6)}
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(block.attn.attend is torch.nn.functional.scaled_dot_product_attention for block in model.trunk.blocks)


def test_padding_counts_nowhere(tmp_path):
    model = small(causal=False)
    ids = torch.arange(16).view(2, 8)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, 5:] = False
    for name, batch in {"padded": {"ids": ids, "mask": mask}, "first": {"ids": ids[:1]},
                        "second": {"ids": ids[1:, :5]}}.items():
        (tmp_path / name).mkdir()
        watch = watch_of(model, tmp_path / name)
        watch.look(1, batch | {"targets": batch["ids"]})
        watch.log.close()
    padded, first, second = (written(tmp_path / name) for name in ("padded", "first", "second"))
    tag = "attention_entropy/blocks.1.h0"
    assert scalar(padded, tag)[1] == pytest.approx((8 * scalar(first, tag)[1] + 5 * scalar(second, tag)[1]) / 13)
    assert padded["activations/blocks.1"][0][1].histo.num == 13 * 8


def test_a_histogram_counts_its_numbers(tmp_path):
    watch = watch_of(small(), tmp_path)
    watch.histogram(1, "three", torch.tensor([[-1.0, 0.1], [3.0, 3.0]]))
    watch.histogram(1, "alike", torch.zeros(5))
    watch.histogram(1, "infinite", torch.tensor([1.0, math.inf]))
    watch.histogram(1, "long", torch.arange(400_000.0))
    watch.log.close()
    found = written(tmp_path)
    histo = found["three"][0][1].histo
    assert (histo.min, histo.max, histo.num) == (-1, 3, 4) and (histo.bucket[0], histo.bucket[-1]) == (1, 2)
    assert histo.sum == pytest.approx(5.1) and histo.sum_squares == pytest.approx(19.01)
    edge = next(i for i, limit in enumerate(histo.bucket_limit) if limit >= 0.1)
    assert histo.bucket[edge] == 1
    alike = found["alike"][0][1].histo
    assert list(alike.bucket) == [5] and list(alike.bucket_limit) == [0] and "infinite" not in found
    assert found["long"][0][1].histo.num == pytest.approx(133_334) and found["long"][0][1].histo.max > 399_990


def test_markdown_shows_a_text_as_it_is(tmp_path):
    log = RunLog(tmp_path)
    log.table("t", [("a", "b"), ("x|y*", "<|mask|>\nnext")])
    log.close()
    rows = text(written(tmp_path), "t").splitlines()
    assert rows[:2] == ["| a | b |", "|---|---|"] and rows[2].count("|") == 3 and "*" not in rows[2]
    assert "&#60;&#124;mask&#124;&#62; next" in rows[2] and len(rows) == 3
