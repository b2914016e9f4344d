"""finetune.py --teacher: the loss by hand, what is asked of a teacher, and that a student learns from it."""

import numpy as np
import pytest
import test_finetune
import torch
from conftest import DIST
from test_finetune import ROWS, TASK, write_folder

import finetune
from nanoft import UserError, checkpoint
from nanoft.files import read_json, write_jsonl
from nanoft.model import ModelConfig
from nanoft.tasks import start
from nanoft.tasks.heads import TEMPERATURE, TaskModel, distance

home = test_finetune.home


def write_teacher(folder, tokenizer, task):
    """A run folder with random weights, of which the head's are not zero."""
    torch.manual_seed(3)
    cfg = ModelConfig(vocab_size=320, block_size=32, n_layer=1, n_head=2, n_embd=16, causal=False)
    model = TaskModel(cfg, task)
    model.task_head.weight.data.normal_()
    folder.mkdir()
    checkpoint.save(folder / "best.pt", {"model": model.state_dict(), "model_config": vars(cfg), "step": 1,
                                         "task": task})
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return folder


@pytest.fixture(scope="module")
def teachers(home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    numbers = {"kind": "regress", "mean": 10.0, "deviation": 4.0, "pool": "mean", "head_dropout": 0.0}
    made = {name: write_teacher(folder / name, home / "data" / "tokenizer.json", task) for name, task in {
        "classes": TASK, "others": TASK | {"labels": ["neg", "pos", "none"]}, "several": TASK | {"multi_label": True},
        "numbers": numbers}.items()}
    return made | {"encoder": home / "encoder"}


@pytest.mark.parametrize("what, words", [
    (["data", "none"], "no checkpoint there"), (["data", "encoder"], "is of kind none"),
    (["data", "others"], "'none'.*give a run of the same task"), (["data", "several"], "one label a text"),
    (["pairs", "classes"], "is of kind classify"), (["numbers", "classes"], "is of kind classify"),
    (["prompts", "classes"], "is of kind classify"), (["other", "classes"], "'neg'"),
])
def test_another_task_teaches_nothing(what, words, home, teachers, tmp_path, call):
    data, teacher = what
    begin = [f"--init_from={home / 'gpt'}"] * (data == "prompts")
    with pytest.raises(UserError, match=words) as caught:
        call(finetune, f"--data={home / data}", f"--teacher={teachers.get(teacher, tmp_path / teacher)}", *begin,
             f"--out_dir={tmp_path / 'run'}", "--device=cpu")
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("metrics.jsonl"))


def test_the_loss_is_half_the_labels_and_half_the_teachers():
    y, teacher = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    p, q = ((x / TEMPERATURE).softmax(1) for x in (teacher, y))
    expected = -TEMPERATURE ** 2 * (p * q.log()).sum(1)
    torch.testing.assert_close(distance(y, teacher, "classify"), expected)
    (grad,) = torch.autograd.grad(distance(teacher, teacher.detach(), "classify").sum(), teacher)
    assert grad.abs().max() < 1e-6  # as the teacher says: nothing to learn
    model = TaskModel(ModelConfig(vocab_size=64, block_size=8, n_layer=1, n_head=2, n_embd=16, causal=False), TASK)
    torch.nn.init.normal_(model.task_head.weight)
    ids, targets, weights = torch.arange(12).view(3, 4), torch.tensor([0, 1, 1]), torch.tensor([1.0, 2.0, 0.5])
    hard = model(ids, targets, weights)
    soft = (distance(model.logits(ids), teacher[:3, :2], "classify") * weights).sum()
    torch.testing.assert_close(model(ids, targets, weights, teacher=teacher[:3, :2]), (hard + soft) / 2)


def test_a_teacher_of_numbers_speaks_in_the_students_deviations(teachers):
    rows = [{"text": f"{word} number {i}", "label": float(i)} for i, word in enumerate(("good", "bad", "fine"))]
    task = {"kind": "regress", "metric": "mae", "mean": 1.0, "deviation": 2.0}
    out = start.teacher_outputs(str(teachers["numbers"]), rows, task, DIST)
    as_it_is = start.teacher_outputs(str(teachers["numbers"]), rows, task | {"mean": 10.0, "deviation": 4.0}, DIST)
    np.testing.assert_allclose(out * 2 + 1, as_it_is * 4 + 10, rtol=1e-5)
    assert out.shape == (3, 1) and np.ptp(out) > 0.1


def test_a_student_has_blocks():
    chosen = [start.choose_options(finetune.Config(teacher=x), None, TASK, {"train": ROWS}, None)[0] for x in ("", "x")]
    assert [cfg.n_layer for cfg in chosen] == [0, 2]


def test_a_student_learns_what_its_labels_do_not_say(home, tmp_path, call, capsys):
    """The student's labels are random. The teacher, with another tokenizer, has learned the true ones."""
    true = [row | {"text": f"{row['text']} of {i * 7}"} for i, row in enumerate(ROWS * 3)]
    rng = np.random.default_rng(0)
    noisy = [row | {"label": str(rng.choice(["neg", "pos"]))} for row in true]
    write_jsonl(tmp_path / "true.jsonl", true)
    call(finetune, f"--train_file={tmp_path / 'true.jsonl'}", f"--val_file={tmp_path / 'true.jsonl'}",
         f"--out_dir={tmp_path / 'teacher'}", "--device=cpu")
    data = write_folder(tmp_path / "noisy", noisy, val=true, labels=["neg", "pos"])
    capsys.readouterr()
    here = [f"--data={data}", "--linear=false", "--n_layer=1", "--n_embd=32", "--epochs=6", "--long_text=windows",
            "--max_length=8", "--device=cpu", "--dtype=float32"]  # several features a row
    call(finetune, *here, f"--teacher={tmp_path / 'teacher'}", f"--out_dir={tmp_path / 'taught'}")
    assert "accuracy 0." in capsys.readouterr().out.partition("teacher ")[2]
    call(finetune, *here, f"--out_dir={tmp_path / 'alone'}")
    taught, alone = (read_json(tmp_path / name / "result.json")["val_accuracy"] for name in ("taught", "alone"))
    assert taught > 0.95 > 0.8 > alone
    call(finetune, f"--out_dir={tmp_path / 'taught'}", "--eval_only", "--teacher=no/longer/there")
