"""finetune.py's options and parts: what is refused and in which words, what is trained, several runs."""

import json

import pytest
import torch
from conftest import DIST, run

import finetune
from nanoft import UserError, bpe, checkpoint, optim
from nanoft.files import read_json, write_jsonl
from nanoft.model import CLASSIC, ModelConfig, make_model
from nanoft.tasks import freezing, start, sweep
from nanoft.tasks.heads import TaskModel
from nanoft.text import vocabulary

TASK = {"kind": "classify", "labels": ["neg", "pos"], "pool": "mean", "head_dropout": 0.0}
ROWS = [{"text": f"{'good' if i % 2 else 'bad'} number {i}", "label": "pos" if i % 2 else "neg"} for i in range(40)]


def optimizers_of(model, cfg):
    return optim.make_optimizers(model, optim.finetuning_groups(model, cfg), DIST)


def write_folder(folder, rows, val=None, test=None, **task):
    """A data set folder for fine-tuning, with a tokenizer learned on its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, some in {"train": rows, "val": val or rows[:20], "test": test}.items():
        if some is not None:
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    (folder / "task.json").write_text(json.dumps({"kind": "classify", "metric": "accuracy"} | task), encoding="utf-8")
    bpe.train([json.dumps(rows)], 300, progress=False).save(folder / "tokenizer.json")
    return folder


def write_base(folder, tokenizer_path, **shape):
    """A run folder with a checkpoint of fresh weights, to begin from."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = vocabulary.load(tokenizer_path)
    torch.manual_seed(1)
    cfg = dict(vocab_size=tokenizer.vocab_size, block_size=64, n_layer=2, n_head=2, n_embd=32, causal=False) | shape
    checkpoint.save(folder / "best.pt", {"model": make_model(ModelConfig(**cfg)).state_dict(), "model_config": cfg,
                                         "step": 0})
    tokenizer.save(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """data, encoder, gpt, old (learned positions): folders."""
    folder = tmp_path_factory.mktemp("home")
    data = write_folder(folder / "data", ROWS, labels=["neg", "pos"])
    write_base(folder / "encoder", data / "tokenizer.json")
    write_base(folder / "gpt", data / "tokenizer.json", causal=True)
    write_base(folder / "old", data / "tokenizer.json", **CLASSIC["bert"])
    write_folder(folder / "numbers", [row | {"label": float(i)} for i, row in enumerate(ROWS)], kind="regress",
                 metric="pearson")
    write_folder(folder / "pairs", [row | {"pair": "x"} for row in ROWS], kind="pair", labels=["neg", "pos"])
    write_folder(folder / "prompts", [{"prompt": row["text"], "response": "x"} for row in ROWS], kind="generate",
                 metric="loss")
    write_folder(folder / "odd", ROWS, labels=["neg", "pos"], metric="bleu")
    write_folder(folder / "other", [row | {"label": row["label"] + "!"} for row in ROWS], labels=["neg!", "pos!"])
    (folder / "bare").mkdir()
    (folder / "bare" / "best.pt").write_bytes((folder / "encoder" / "best.pt").read_bytes())
    return folder


REFUSED = {  # what is wrong: (options, words of the sentence)
    "no data": (["--init_from={home}/encoder"], "nothing to train on"),
    "no tokenizer beside the checkpoint": (["--data={home}/data", "--init_from={home}/bare"], "no tokenizer.json"),
    "no checkpoint": (["--data={home}/data", "--init_from={home}/none"], "no checkpoint there"),
    "an encoder to generate": (["--data={home}/prompts", "--init_from={home}/encoder"], "cannot generate"),
    "the first token of a GPT": (["--data={home}/data", "--init_from={home}/gpt", "--pool=cls"], "pool=cls"),
    "more positions than were learned": (["--data={home}/data", "--init_from={home}/old", "--max_length=65"],
                                         "max_length=65 is more than the 64"),
    "another shape than the model has": (["--data={home}/data", "--init_from={home}/encoder", "--n_layer=4",
                                          "--n_embd=32"], "another shape than --n_layer=4;"),
    "windows of pairs": (["--data={home}/pairs", "--init_from={home}/encoder", "--long_text=windows"],
                         "for single texts"),
    "weights for numbers": (["--data={home}/numbers", "--init_from={home}/encoder", "--class_weights=balanced"],
                            "one class an example"),
    "moved responses": (["--data={home}/prompts", "--init_from={home}/gpt", "--token_drop=0.1"], "would move"),
    "more frozen blocks than there are": (["--data={home}/data", "--init_from={home}/encoder", "--freeze_blocks=3"],
                                          "this model has 2 blocks"),
    "adapters of random weights": (["--data={home}/data", "--lora_rank=2"], "give one by --init_from"),
    "adapters and a frozen trunk": (["--data={home}/data", "--lora_rank=2", "--freeze_blocks=1"], "lora_rank freezes"),
    "noise on what is frozen": (["--data={home}/data", "--init_from={home}/encoder", "--adversarial=1",
                                 "--freeze_blocks=1"], "adversarial noise"),
    "an adapter of nothing": (["--data={home}/data", "--adapter=a.pt"], "init_from"),
    "no adapter": (["--data={home}/data", "--init_from={home}/encoder", "--adapter={home}/encoder/best.pt"],
                   "is no adapter"),
    "nothing to resume": (["--data={home}/data", "--init_from={home}/encoder", "--resume"], "no latest.pt"),
    "nothing to evaluate": (["--data={home}/data", "--eval_only"], "no checkpoint there"),
    "no such metric": (["--data={home}/odd", "--max_steps=1"], "metric=bleu"),
    "no such metric asked for": (["--data={home}/data", "--metric=rouge", "--max_steps=1"], "metric=rouge"),
    "a positive label that is none": (["--data={home}/data", "--positive=good"], "they are neg and pos"),
    "a positive number": (["--data={home}/numbers", "--init_from={home}/encoder", "--positive=1"], "leave it out"),
    "a column of a folder": (["--data={home}/data", "--label_column=stars"], "label_column=stars goes with"),
    "types of a single text": (["--data={home}/data", "--init_from={home}/encoder", "--match_types=true"], "two texts"),
    "no such option in the grid": (["--data={home}/data", "--grid=lrr=1"], "grid"),
    "no such value in the grid": (["--data={home}/data", "--grid=dropout=0,2"], "dropout=2"),
    "no number among the seeds": (["--data={home}/data", "--seeds=1,x"], "seeds must be a whole number"),
    "several problems": (["--data={home}/data", "--warmup=2", "--epochs=-1"], "epochs=-1(.|\n)*warmup=2"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(what, home, tmp_path, call):
    options, words = REFUSED[what]
    with pytest.raises(UserError, match=words) as caught:
        call(finetune, *(option.format(home=home) for option in options), f"--out_dir={tmp_path / 'run'}",
             "--device=cpu")
    assert len(str(caught.value)) < 400
    assert not list(tmp_path.rglob("metrics.jsonl"))  # it is told before the first step


def test_f1_names_the_label_that_it_is_of(home, tmp_path, call, capsys):
    here = [f"--init_from={home}/encoder", "--device=cpu", "--max_steps=1"]
    call(finetune, *here, f"--data={home}/data", f"--out_dir={tmp_path / 'second'}")
    call(finetune, *here, f"--data={home}/data", f"--out_dir={tmp_path / 'given'}", "--positive=neg")
    table = [{"text": row["text"], "label": "ham" if i % 3 else "spam"} for i, row in enumerate(ROWS * 4)]
    write_jsonl(tmp_path / "a.jsonl", table)
    call(finetune, *here, f"--train_file={tmp_path / 'a.jsonl'}", f"--out_dir={tmp_path / 'rarer'}")
    shown = capsys.readouterr().out
    for name, label in (("second", "pos"), ("given", "neg"), ("rarer", "spam")):
        found = read_json(tmp_path / name / "result.json")
        assert found["positive"] == label and f"f1 of '{label}' {found['val_f1']:.4f}" in shown and "val_auc" in found
        assert found["val_f1"] == found["val_per_class"][label]["f1"]


def test_labels_that_a_checkpoint_does_not_know_are_named(home, tmp_path, call):
    options = [f"--init_from={home}/encoder", f"--out_dir={tmp_path / 'run'}", "--device=cpu"]
    call(finetune, *options, f"--data={home}/data", "--max_steps=1")
    with pytest.raises(UserError, match="label 'neg!' of the train rows is unknown"):
        call(finetune, *options, f"--data={home}/other", "--eval_only")
    with pytest.raises(UserError, match="is of a classify task"):
        call(finetune, *options, f"--data={home}/prompts", "--eval_only")
    with pytest.raises(UserError, match="is not fine-tuned"):
        call(finetune, f"--out_dir={home}/encoder", f"--data={home}/data", "--eval_only", "--device=cpu")
    with pytest.raises(UserError, match="already holds a run"):
        call(finetune, *options, f"--data={home}/data")
    with pytest.raises(UserError, match="another lora_rank"):
        call(finetune, *options, f"--data={home}/data", "--resume", "--lora_rank=2")


def test_the_script_ends_with_its_sentence_and_code_2(tmp_path):
    (tmp_path / "one.csv").write_text("text,label\n" + "fine,good\n" * 30, encoding="utf-8")
    done = run("finetune.py", f"--train_file={tmp_path / 'one.csv'}", "--init_from=scratch", check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


# --- what is trained


def tiny(**fields):
    cfg = finetune.Config(**fields)
    model = TaskModel(ModelConfig(vocab_size=64, block_size=16, n_layer=3, n_head=2, n_embd=32, causal=False), TASK)
    freezing.freeze(model, cfg)
    return cfg, model


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_answers_may_be_as_long_as_those_of_the_training_rows():
    cfg, shape = finetune.Config(match_types="true"), ModelConfig(n_types=4)
    found = []
    for n_words in (3, 40):
        rows = [{"context": "a " * 50, "answers": [{"text": "a " * n_words, "start": 0}]}]
        task = start.complete_task({"kind": "answer", "metric": "f1"}, cfg, shape, {"train": rows},
                                   bpe.train(["a a a"], 261, progress=False))
        found.append(task["max_answer"])
    assert found[0] == 30 and found[1] >= 40


def test_freezing():
    every = trained(tiny()[1])
    assert any("tokens" in name for name in every) and any("task_head" in name for name in every)
    two = trained(tiny(freeze_blocks=2)[1])
    assert two == {name for name in every if "blocks.2." in name or "head" in name}
    assert trained(tiny(freeze_blocks=-1)[1]) == {"task_head.weight", "task_head.bias"}


def rates(cfg, model):
    """{parameter's name: its group}, every trained parameter in exactly one."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [(names[id(p)], group) for optimizer in optimizers_of(model, cfg)
              for group in optimizer.param_groups for p in group["params"]]
    assert sorted(name for name, _ in groups) == sorted(trained(model))
    return dict(groups)


def test_a_rate_for_each_depth():
    groups = rates(*tiny(lr=1.0, head_lr=3.0, embed_lr=2.0, layer_decay=0.5, weight_decay=0.1))
    assert groups["task_head.weight"]["peak_lr"] == 3 and groups["trunk.blocks.2.attn.q.weight"]["peak_lr"] == 1
    assert groups["trunk.blocks.0.mlp.fc.weight"]["peak_lr"] == 0.25
    assert groups["trunk.tokens.weight"]["peak_lr"] == 2 * 0.125
    assert groups["trunk.tokens.weight"]["weight_decay"] == groups["task_head.bias"]["weight_decay"] == 0
    assert groups["trunk.blocks.1.attn.q.weight"]["weight_decay"] == 0.1
    groups = rates(*tiny(optimizer="muon", muon_lr=7.0))
    assert groups["trunk.blocks.1.attn.q.weight"]["peak_lr"] == 7 and groups["task_head.weight"]["peak_lr"] < 1


def test_blocks_thaw_from_the_top():
    cfg, model = tiny(unfreeze_every=0.5)
    groups = rates(cfg, model)
    assert groups["task_head.weight"]["from_epoch"] == 0
    assert [groups[f"trunk.blocks.{i}.attn.q.weight"]["from_epoch"] for i in (2, 1, 0)] == [0.5, 1, 1.5]
    assert groups["trunk.tokens.weight"]["from_epoch"] == 2
    said = "".join(freezing.describe_unfreezing(optimizers_of(model, cfg), 1.2))
    assert "blocks.2 from epoch 0.5, blocks.1 from epoch 1, blocks.0 never, embeddings never" in said


def test_the_table_of_parameters_adds_up():
    _, model = tiny(freeze_blocks=1)
    lines = "\n".join(freezing.describe_parameters(model))
    assert f"{sum(p.numel() for p in model.parameters()):,}" in lines
    assert f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}" in lines


# --- several runs


def test_the_runs_of_seeds_and_a_grid():
    cfg = finetune.Config(out_dir="out/x", seeds="1,2", grid="lr=1e-3,0.01;dropout=0,0.5", resume=True)
    runs = sweep.variations(cfg)
    assert len(runs) == 8 == len({run.out_dir for run in runs})
    assert {(run.lr, run.dropout, run.seed) for run in runs} == {
        (lr, drop, seed) for lr in (1e-3, 0.01) for drop in (0, 0.5) for seed in (1, 2)}
    assert all(run.resume and not run.grid and not run.seeds for run in runs)
    assert sweep.variations(finetune.Config(out_dir="a")) == [finetune.Config(out_dir="a")]


def test_runs_that_would_meet_are_refused():
    for options in (dict(seeds="4,4"), dict(grid="lr=1e-4;lr=3e-4"), dict(grid="seed=1,2")):
        with pytest.raises(ValueError, match="twice|--seeds"):
            sweep.variations(finetune.Config(out_dir="out/x", **options))


def test_a_resume_with_other_labels_is_refused():
    source = {"task": TASK}
    start.check_same_task(source, "latest.pt", dict(TASK))
    with pytest.raises(UserError, match="labels was"):
        start.check_same_task(source, "latest.pt", TASK | {"labels": ["apos", "neg"]})


def test_other_rates_leave_the_groups_as_they_are():
    shapes = [[[p.shape for p in group["params"]] for optimizer in optimizers_of(model, cfg)
               for group in optimizer.param_groups]
        for cfg, model in (tiny(weight_decay=0.0), tiny(weight_decay=0.1, embed_lr=0.5, head_lr=2.0))]
    assert shapes[0] == shapes[1]
