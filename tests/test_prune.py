"""python -m nanoft prune: what matters least is left out, as much of each block, and everything reads the rest."""

from dataclasses import replace

import pytest
import torch
from conftest import TINY as RUN
from conftest import run
from test_model import CLASSIC, TINY, filled

from nanoft import UserError, checkpoint, generate, prune, quantize
from nanoft.files import read_json
from nanoft.model import GPT, ModelConfig
from nanoft.published import convert
from nanoft.sampling import Sampling

IDS = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(1))
SHAPES = [{}, dict(n_kv_head=2), dict(n_head=8, n_kv_head=4, n_gram=2), CLASSIC]


def state_of(model):
    return {"model": {name: p.clone() for name, p in model.state_dict().items()}, "model_config": dict(vars(model.cfg))}


def model_of(state):
    return checkpoint.load_model(state, "x", GPT)


@pytest.mark.parametrize("options", SHAPES)
@torch.no_grad()
def test_heads_that_write_nothing_go_first_and_change_nothing(options):
    model = filled(ModelConfig(**{**TINY, "n_head": 4, **options})).eval()
    groups = model.cfg.n_kv_head or model.cfg.n_head
    D, shared = model.cfg.n_embd // model.cfg.n_head, model.cfg.n_head // groups
    for i, block in enumerate(model.trunk.blocks):  # of each block another one: by its values, or by its output
        if i % 2:
            block.attn.v.weight[i * D:(i + 1) * D] = 0
            if block.attn.v.bias is not None:
                block.attn.v.bias[i * D:(i + 1) * D] = 0
        else:
            block.attn.proj.weight[:, i * shared * D:(i + 1) * shared * D] = 0
    state = state_of(model)
    prune.prune_heads(state, 1 / groups)
    small = model_of(state)
    assert (small.cfg.n_head, small.cfg.n_kv_head or small.cfg.n_head) == (shared * (groups - 1), groups - 1)
    assert small.trunk.blocks[1].attn.q.weight.shape == (shared * (groups - 1) * D, small.cfg.n_embd)
    torch.testing.assert_close(small.logits(IDS), model.logits(IDS), rtol=1e-4, atol=1e-5)
    cached, whole = (torch.stack(list(generate.generate(small, IDS, 12, Sampling(temperature=0), cached=c)))
                     for c in (True, False))
    assert torch.equal(cached, whole)


def test_the_smallest_weights_of_the_blocks_become_zero():
    state = state_of(filled(ModelConfig(**TINY)))
    before = {name: p.clone() for name, p in state["model"].items()}
    for name, p in prune.pruned(state, prune.Options(weights=0.3))["model"].items():
        gone = p != before[name]
        assert (p[gone] == 0).all()
        if name.startswith("trunk.blocks.") and p.dim() == 2:
            assert gone.float().mean() == pytest.approx(0.3, abs=0.01)
            assert before[name][gone].abs().max() <= before[name][~gone].abs().min()
        else:
            assert not gone.any()


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    run("train.py", *RUN, "--n_embd=40", "--n_head=5", f"--data={corpus}", f"--out_dir={folder / 'run'}")
    done = run("nanoft prune", folder / "run", folder / "pruned", "--heads=0.4", "--weights=0.2")
    assert "as float32" in done.stdout
    return folder


def test_a_pruned_run_is_used_as_any_other(runs, corpus):
    state = checkpoint.load(runs / "pruned" / "best.pt")
    assert (state["model_config"]["n_head"], state["model_config"]["head_dim"]) == (3, 8) and "optimizer" not in state
    assert read_json(runs / "pruned" / "config.json")["n_head"] == 3
    assert "val" in run("train.py", "--eval_only", f"--init_from={runs / 'pruned'}").stdout
    more = ["--max_steps=2", f"--out_dir={runs / 'more'}", f"--init_from={runs / 'pruned'}"]
    run("train.py", *RUN, "--n_embd=40", "--n_head=3", "--head_dim=8", f"--data={corpus}", *more)
    done = run("sample.py", f"--checkpoint={runs / 'more'}", "--prompt=def ", "--device=cpu", "--max_new_tokens=4")
    assert done.stdout.startswith("def ")
    run("nanoft quantize", runs / "pruned", runs / "both")
    small = checkpoint.load(runs / "both" / "best.pt")["model"]
    assert all((small[name] - p).norm() < 0.01 * p.norm() for name, p in state["model"].items())
    assert run("nanoft model", runs / "both").returncode == 0


def test_other_programs_have_no_such_heads():
    cfg = ModelConfig(**TINY, activation="swiglu")
    assert [convert.find_family(replace(cfg, head_dim=width), None, None) for width in (0, 8)] == ["qwen3", None]


@pytest.mark.parametrize("options, words", [
    ([], "nothing to leave out"), (["--heads=1"], "heads=1"), (["--weights=-0.1"], "weights=-0.1"),
    (["--heads=0.01"], "leaves 5 of the 5"), (["--heads=0.95"], "leaves 0 of the 5"),
])
def test_what_cannot_be_is_one_sentence(options, words, runs, tmp_path, call):
    with pytest.raises(UserError, match=words):
        call(prune, runs / "run", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_model_without_blocks_is_refused():
    with pytest.raises(UserError, match="has no blocks"):
        prune.pruned(state_of(GPT(ModelConfig(**TINY | {"n_layer": 0}))), prune.Options(weights=0.5))


def test_nothing_is_written_over(runs, call):
    before = (runs / "pruned" / "best.pt").read_bytes()
    with pytest.raises(UserError, match="is there already"):
        call(prune, runs / "run", runs / "pruned", "--heads=0.2")
    with pytest.raises(UserError, match="RUN OUT|give a run and a new folder"):
        call(quantize, runs / "run")
    assert (runs / "pruned" / "best.pt").read_bytes() == before
