import types

import pytest
import torch
from conftest import DIST
from test_model import CLASSIC, TINY

from nanoft import optim
from nanoft.model import GPT, ModelConfig


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 64, 16), (2, 16, 64)])
def test_orthogonalize_evens_the_singular_values(shape):
    m = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(optim.orthogonalize(m, steps=5).float())
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, v = torch.linalg.svd(m, full_matrices=False)
    for steps, nearness in ((3, 0.85), (5, 0.99)):
        near = optim.orthogonalize(m, steps)
        assert (near * (u @ v)).sum() / (near.norm() * (u @ v).norm()) > nearness


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("n_gram", [1, 2])
@pytest.mark.parametrize("options", [{}, CLASSIC])
def test_every_parameter_in_one_group_and_vectors_undecayed(kind, options, n_gram):
    model = GPT(ModelConfig(**TINY, **options, n_gram=n_gram))
    cfg = types.SimpleNamespace(optimizer=kind, lr=1e-3, muon_lr=0.02, embed_lr=0.01, beta2=0.95, weight_decay=0.1)
    optimizers = optim.make_optimizers(model, optim.pretraining_groups(model, cfg), DIST)
    groups = [g for o in optimizers for g in o.param_groups]
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert all(p.dim() == 2 for g in groups if g.get("weight_decay") for p in g["params"])
    assert len(optimizers) == (2 if kind == "muon" else 1) + (n_gram > 1)


def test_muon_lowers_a_loss():
    torch.manual_seed(0)
    w, target = torch.nn.Parameter(torch.zeros(16, 8)), torch.randn(16, 8)
    opt = optim.Muon([w], lr=0.05)
    losses = []
    for _ in range(200):
        loss = (w - target).square().mean()
        loss.backward()
        opt.step()
        w.grad = None
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_rows_move_only_when_seen_and_by_their_own_mean_square():
    table = torch.nn.Parameter(torch.zeros(3, 4))
    optimizer = optim.RowRMSprop([table], beta2=0.75)
    grads = torch.tensor([[[3.0, -3, 3, -3], [0, 0, 0, 0], [0.01, 0, 0, 0]],
                          [[1.0, -1, 1, -1], [2, 2, 2, 2], [0, 0, 0, 0]]])
    for grad in grads:
        table.grad = grad
        optimizer.step()
    second = 1 / (0.75 * 9 + 0.25 * 1) ** 0.5  # the gradient of row 0 by the root of its mean square, 9 and then 1
    expected = -0.1 * torch.tensor([[1 + second, -1 - second, 1 + second, -1 - second], [1, 1, 1, 1], [2, 0, 0, 0]])
    assert torch.allclose(table, expected) and optimizer.state[table]["mean_square"].shape == (3, 1)


def test_muon_takes_a_convolution_as_a_matrix():
    torch.manual_seed(0)
    start, grad = torch.randn(4, 3, 3, 3), torch.randn(4, 3, 3, 3)
    moved = []
    for shape in ((4, 3, 3, 3), (4, 27)):
        w = torch.nn.Parameter(start.reshape(shape).clone())
        w.grad = grad.reshape(shape)
        optim.Muon([w], lr=0.05, weight_decay=0.1).step()
        moved.append(w.detach().reshape(4, 27))
    assert torch.equal(*moved) and not torch.equal(moved[0], start.view(4, 27))


def test_schedules():
    f = lambda progress, name: optim.lr_factor(progress, name, warmup=0.1, warmdown=0.4)  # noqa: E731
    assert f(0.05, "cosine") == pytest.approx(0.5) and f(0.1, "linear") == 1.0
    assert f(0.55, "linear") == pytest.approx(0.5) and f(0.55, "cosine") == pytest.approx(0.5)
    assert f(0.5, "trapezoid") == 1.0 and f(0.8, "trapezoid") == pytest.approx(0.5)
    assert f(1.0, "trapezoid") == f(1.0, "linear") == 0.0 and f(0.9, "constant") == 1.0
