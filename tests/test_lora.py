"""Low-rank adapters: they begin without effect, change nothing when merged, and are small."""

import torch

from nanoft.model import ModelConfig
from nanoft.tasks import lora
from nanoft.tasks.heads import TaskModel

TASK = {"kind": "classify", "labels": ["a", "b"], "pool": "mean", "head_dropout": 0.0}


def tiny(**shape):
    torch.manual_seed(0)
    model = TaskModel(ModelConfig(**dict(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=32, causal=False)
                                  | shape), TASK)
    for p in model.parameters():
        p.data = torch.randn_like(p) * 0.1
    return model.eval()


def test_adapters_begin_without_effect_and_merge_to_the_same_outputs():
    for shape in ({}, {"bias": True, "activation": "gelu", "norm": "layernorm"}, {"n_kv_head": 1}):
        model, ids = tiny(**shape), torch.randint(64, (3, 16))
        before = model.logits(ids)
        lora.add(model.trunk, rank=4, alpha=8.0)
        assert torch.equal(model.logits(ids), before)
        for name, p in model.named_parameters():
            if ".lora_b" in name:
                p.data = torch.randn_like(p) * 0.3
        unmerged = model.logits(ids)
        assert (unmerged - before).abs().max() > 1e-2
        plain = tiny(**shape)
        names = set(plain.state_dict())
        merged = lora.merged(model)
        assert set(merged) == names
        plain.load_state_dict(merged)
        assert torch.allclose(plain.logits(ids), unmerged, atol=1e-5)


def test_the_adapters_of_every_matrix_take_less_than_three_percent():
    model = tiny(vocab_size=8192, n_layer=4, n_head=4, n_embd=256)
    total = sum(p.numel() for p in model.parameters())
    lora.add(model.trunk, rank=4, alpha=8.0)
    names = [name for name, _ in model.named_parameters() if ".lora_a" in name]
    assert len(names) == 4 * 6 and all(f"blocks.{i}.{part}.lora_a" in " ".join(names) for i in range(4)
                                       for part in ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc", "mlp.proj"))
    assert sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n) < 0.03 * total


def test_a_model_without_adapters_merges_to_itself():
    model = tiny()
    assert all(torch.equal(a, b) for a, b in zip(lora.merged(model).values(), model.state_dict().values()))
