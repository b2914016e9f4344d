"""What a model looks at: weights, rollout, gradients and their sums, the lens, neighbours; and the same by captum."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nanoft import bpe
from nanoft.inspect import explain, targets
from nanoft.kernels import plain_attention
from nanoft.model import BERT, CLASSIC, GPT, ModelConfig, gram_rows
from nanoft.tasks.heads import TaskModel

WORDS = "one two three four five six seven eight nine ten".split()
SHAPE = dict(vocab_size=290, block_size=32, n_layer=3, n_head=2, n_embd=32)
KINDS = {  # every shape of embedding, norm and attention
    "encoder": dict(causal=False),
    "n-grams": dict(causal=False, n_gram=3, n_buckets=64),
    "classic n-grams": dict(CLASSIC["bert"], causal=False, n_gram=2, n_buckets=64, n_types=2),
    "gpt": dict(n_kv_head=1),
    "gpt2": CLASSIC["gpt2"],
}


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train([" ".join(WORDS) * 3], 290, progress=False)


def filled(model):
    """The model with a value in every weight."""
    torch.manual_seed(0)
    for p in model.parameters():
        p.data = torch.randn_like(p) * (0.5 if p.dim() == 1 else 1 / np.sqrt(p.size(-1)))
    return model.eval().requires_grad_(False)


def classifier(**fields):
    task = {"kind": "classify", "labels": ["a", "b", "c"], "head_dropout": 0.0, "pool": "mean"}
    return filled(TaskModel(ModelConfig(**SHAPE | fields), task))


def scorer(model, k):
    return lambda ids, types: model.logits(ids, types)[:, k]


def text(length=12):
    return torch.randint(5, 280, (length,), generator=torch.Generator().manual_seed(length))


# ---- attention ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_give_the_outputs_of_the_fused_kernel(kind, monkeypatch):
    """A layer's weights times its values are what scaled_dot_product_attention makes of the same queries and keys."""
    trunk, seen = filled(GPT(ModelConfig(**SHAPE | KINDS[kind]))).trunk, []

    def spy(q, k, v, **options):
        seen.append((F.scaled_dot_product_attention(q, k, v, **options), v))
        return plain_attention(q, k, v, **options)

    monkeypatch.setattr(explain, "plain_attention", spy)
    maps = explain.attention_maps(trunk, text())
    assert maps.shape == (3, 2, 12, 12)
    for weights, (fused, v) in zip(maps, seen):
        assert torch.allclose(weights @ v[0], fused[0], atol=1e-5)
    assert torch.allclose(maps.sum(-1), torch.ones(3, 2, 12), atol=1e-5)


def test_weights_are_recorded_only_where_they_are_asked_for(monkeypatch):
    model = classifier(causal=False)
    before = model.logits(text()[None])
    with explain.attention_weights(model) as recorded:
        inside = model.logits(text()[None])
    assert len(recorded) == 3 and torch.allclose(before, inside, atol=1e-5)
    with torch.no_grad(), monkeypatch.context() as patched:
        patched.setattr("torch.Tensor.softmax", None)  # of the explicit path; from here on the kernel does all
        after = model.logits(text()[None])
    assert len(recorded) == 3 and torch.allclose(after, before, atol=1e-5)


def test_rollout():
    maps = torch.rand(3, 2, 9, 9, generator=torch.Generator().manual_seed(1)).softmax(-1)
    flow = explain.rollout(maps)
    assert torch.allclose(flow.sum(-1), torch.ones(9), atol=1e-5)
    one, two, three = (layer.mean(0) / 2 + torch.eye(9) / 2 for layer in maps)
    assert torch.allclose(flow, three @ two @ one, atol=1e-6)  # the last layer looks at what those before have mixed
    assert not torch.allclose(flow, one @ two @ three, atol=1e-3)


# ---- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_embeddings(kind):
    """A small step along the gradient moves the score by the gradient's length times the step."""
    model = classifier(**KINDS[kind])
    score, ids = scorer(model, 1), text()
    embedded = explain.embed(model.trunk, ids)
    gradient = explain.gradients(model.trunk, score, embedded.x[None], ids)
    scores = explain.score_embeddings(model.trunk, score, embedded.x[None], ids)
    assert torch.allclose(scores, model.logits(ids[None])[:, 1], atol=1e-5)
    double = model.double()
    x = embedded.x.double()
    step = 1e-2 * gradient[0].double() / gradient.norm()
    ends = explain.score_embeddings(double.trunk, score, torch.stack((x - step, x + step)), ids)
    assert (ends[1] - ends[0]).item() / 2e-2 == pytest.approx(gradient.norm().item(), rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_what_words_add_is_the_difference_of_the_scores(kind, tokenizer):
    model = classifier(**KINDS[kind])
    ids = text(20)
    base = explain.baseline(ids, tokenizer, model.cfg.causal)
    found = explain.integrated_gradients(model.trunk, scorer(model, 1), ids, base, steps=100)
    assert found.score == pytest.approx(model.logits(ids[None])[0, 1].item(), abs=1e-5)
    assert found.baseline == pytest.approx(model.logits(base[None])[0, 1].item(), abs=1e-5)
    assert found.delta == pytest.approx(found.attributions.sum().item() - (found.score - found.baseline), abs=1e-6)
    assert abs(found.delta) < 0.01 * abs(found.score - found.baseline)
    embedded = explain.embed(model.trunk, ids)
    gradient = explain.gradients(model.trunk, scorer(model, 1), embedded.x[None], ids)
    product = explain.token_attributions(*embedded, gradient[0])
    assert product.sum().item() == pytest.approx((embedded.x * gradient[0]).sum().item(), abs=1e-4)


@pytest.mark.parametrize("kind", ["n-grams", "classic n-grams"])
def test_an_n_gram_credits_the_words_it_is_made_of(kind):
    """With token embeddings alone replaced, the rest of the sum is the n-grams', by the norm's own statistics."""
    model = classifier(**KINDS[kind])
    trunk, ids = model.trunk, text(6)
    embedded = explain.embed(trunk, ids)
    n_gram = model.cfg.n_gram
    rows = gram_rows(ids[None], trunk.multipliers, model.cfg.n_buckets)[0]
    total = trunk.tokens(ids) + trunk.grams(rows).sum(1)
    if trunk.types is not None:
        total = total + trunk.types.weight[0]
    if trunk.positions is not None:
        total = total + trunk.positions.weight[:6]
    assert torch.allclose(embedded.x, trunk.norm_in(total), atol=1e-5)
    without = total - trunk.grams(rows).sum(1)
    rest = explain.share_of_norm(trunk.norm_in, without, total) + embedded.grams.sum(1)
    bias = getattr(trunk.norm_in, "bias", None)
    assert torch.allclose(rest + (0 if bias is None else bias), embedded.x, atol=1e-5)
    # only the last token's longest n-gram has a gradient: its credit goes to the n tokens it ends with, evenly
    gradient = torch.zeros(6, 32)
    gradient[5] = embedded.grams[5, -1]
    grams = torch.zeros_like(embedded.grams)
    grams[5, -1] = embedded.grams[5, -1]
    tokens = explain.token_attributions(grams.sum(1), grams, gradient)
    wanted = torch.zeros(6).double()
    wanted[6 - n_gram:] = gradient[5].square().sum() / n_gram
    assert torch.allclose(tokens, wanted, atol=1e-5)
    first = torch.zeros_like(grams)
    first[0] = 1.0  # no token stands before the first: all its n-grams are its own
    tokens = explain.token_attributions(first.sum(1), first, torch.ones(6, 32))
    assert tokens.tolist() == [32.0 * (n_gram - 1), 0, 0, 0, 0, 0]


def test_a_word_without_effect_adds_nothing(tokenizer):
    """A classifier that reads the first token alone (no attention to others) credits it alone."""
    model = classifier(causal=True, n_layer=1)
    model.task["pool"] = "cls"
    ids = text()
    found = explain.integrated_gradients(model.trunk, scorer(model, 0), ids, explain.baseline(ids, tokenizer, True))
    first, *others = found.attributions.tolist()
    assert abs(first) > 1e-3 and others == pytest.approx([0] * 11, abs=1e-7)


@pytest.fixture(scope="module")
def trained(tokenizer):
    """A classifier that has learned which of two words is in a text, its accuracy 1; 20 texts, labels, positions."""
    task = {"kind": "classify", "labels": ["five", "six"], "head_dropout": 0.0, "pool": "mean"}
    torch.manual_seed(1)
    model = TaskModel(ModelConfig(**SHAPE | dict(causal=False, n_layer=1)), task)  # more of it would be too sure
    cls, sep, five, six = (tokenizer.special["<|cls|>"], tokenizer.special["<|sep|>"],
                           *(tokenizer.encode(word)[0] for word in (" five", " six")))
    filler = torch.tensor([tokenizer.encode(f" {word}")[0] for word in ("one", "two", "three", "four", "seven", "ten")])
    ids = filler[torch.randint(len(filler), (512, 14))]
    ids[:, 0], ids[:, -1] = cls, sep
    positions, labels = torch.randint(1, 13, (512,)), torch.randint(2, (512,))
    ids[torch.arange(512), positions] = torch.where(labels == 0, five, six)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    for step in range(100):
        some = torch.arange(step * 64, step * 64 + 64) % 512
        loss = model(ids[some], labels[some], torch.full((64,), 1 / 64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().requires_grad_(False)
    assert (model.logits(ids).argmax(-1) == labels).all()
    return model, ids[:20], labels[:20], positions[:20]


def test_fifty_points_are_enough_and_the_deciding_word_gets_the_credit(trained, tokenizer):
    model, texts, labels, positions = trained
    for ids, label, position in zip(texts, labels.tolist(), positions.tolist()):
        found = explain.integrated_gradients(model.trunk, scorer(model, label), ids,
                                             explain.baseline(ids, tokenizer, False), steps=50)
        assert abs(found.delta) < 0.01 * abs(found.score - found.baseline)
        assert found.attributions.argmax() == position


def test_the_baseline(tokenizer):
    special = tokenizer.special
    ids = torch.tensor([special["<|cls|>"], 70, 71, special["<|sep|>"], 72, special["<|sep|>"]])
    assert explain.baseline(ids, tokenizer, False).tolist() == [
        special["<|cls|>"], special["<|mask|>"], special["<|mask|>"], special["<|sep|>"], special["<|mask|>"],
        special["<|sep|>"]]
    assert explain.baseline(ids, tokenizer, True).tolist() == [special["<|endoftext|>"]] * 6


@pytest.mark.parametrize("kind", ["encoder", "gpt", "n-grams"])
def test_captum_says_the_same(kind, tokenizer):
    captum = pytest.importorskip("captum.attr")
    model = classifier(**KINDS[kind])
    trunk, ids, k = model.trunk, text(16), 2
    base, score = explain.baseline(ids, tokenizer, model.cfg.causal), scorer(model, k)
    now, before = explain.embed(trunk, ids), explain.embed(trunk, base)
    gradient = explain.gradients(trunk, score, now.x[None], ids)

    def forward(ids):
        return model.logits(ids)

    product = captum.LayerGradientXActivation(forward, trunk.norm_in).attribute(ids[None], target=k)[0]
    plain = product / now.x  # captum's product, taken apart again
    assert torch.allclose(gradient[0].norm(dim=-1), plain.norm(dim=-1), atol=1e-5)
    integrated = captum.LayerIntegratedGradients(forward, trunk.norm_in).attribute(
        ids[None], base[None], target=k, n_steps=50, method="gausslegendre")[0].detach()
    if model.cfg.n_gram == 1:  # captum knows nothing of n-grams' parts
        ours = explain.integrated_gradients(trunk, score, ids, base, steps=50).attributions.float()
        assert_same(ours, integrated.sum(-1))
        assert_same(explain.token_attributions(*now, gradient[0]).float(), product.sum(-1).detach())
    else:
        ours = explain.integrated_gradients(trunk, score, ids, base, steps=50)
        assert ours.attributions.sum().item() == pytest.approx(integrated.sum().item(), abs=1e-5)
    assert now.x.shape == before.x.shape

    def on_embeddings(x):
        hook = trunk.norm_in.register_forward_hook(lambda module, args, out: x)
        try:
            return model.logits(ids.expand(len(x), -1))
        finally:
            hook.remove()

    theirs = captum.Saliency(on_embeddings).attribute(now.x[None].clone().requires_grad_(), target=k, abs=False)[0]
    assert torch.allclose(gradient[0], theirs, atol=1e-5)
    assert_same(gradient[0].norm(dim=-1), theirs.norm(dim=-1))


def assert_same(ours, theirs):
    """Equal to 1e-5, so also in sign and rank, where those are further apart than that."""
    assert torch.allclose(ours, theirs, atol=1e-5)
    clear = theirs.abs() > 1e-5
    assert (ours.sign() == theirs.sign())[clear].all()
    order = theirs.argsort()
    assert (ours[order].diff() > -2e-5).all()


# ---- language models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt", "gpt2", "encoder", "classic n-grams"])
def test_the_last_layer_of_the_lens_is_the_model(kind):
    fields = KINDS[kind]
    model = filled((BERT if fields.get("causal") is False else GPT)(ModelConfig(**SHAPE | fields)))
    ids = text()
    logits = explain.logit_lens(model, ids, list(range(12)))
    assert logits.shape == (4, 12, 290)
    if model.cfg.causal:
        assert torch.allclose(logits[-1, -1], model(ids[None])[0], atol=1e-5)
        wanted = model.head(model.trunk.norm_out(model.trunk.norm_in(embedding(model.trunk, ids))))
    else:
        assert torch.allclose(logits[-1], model.word_logits(model.hidden(ids[None])[0])[:, :290], atol=1e-5)
        wanted = model.word_logits(model.trunk.norm_out(explain.embed(model.trunk, ids).x))
    assert torch.allclose(logits[0], wanted[:, :290], atol=1e-5)
    assert not torch.allclose(logits[1], logits[2], atol=1e-2)
    assert torch.allclose(explain.logit_lens(model, ids, [3, 7]), logits[:, [3, 7]], atol=1e-5)


def embedding(trunk, ids):
    x = trunk.tokens(ids)
    return x if trunk.positions is None else x + trunk.positions.weight[:len(ids)]


def test_neighbours_are_the_most_alike():
    trunk = classifier(causal=False).trunk
    trunk.tokens.weight[7] = 3 * trunk.tokens.weight[5] + 0.01
    trunk.tokens.weight[300] = trunk.tokens.weight[5]  # of the padding of the vocabulary: no token
    ids, cosines = explain.neighbours(trunk, torch.tensor([5, 9]), k=4)
    assert ids[0, 0] == 7 and cosines[0, 0] > 0.99 and 5 not in ids[0] and 300 not in ids[0]
    table = trunk.tokens.weight[:290]
    by_hand = torch.stack([F.cosine_similarity(table[9], row, dim=0) for row in table])
    by_hand[9] = -1
    assert torch.allclose(cosines[1], by_hand.topk(4).values, atol=1e-5)


@pytest.mark.parametrize("said", [["a", "b"], ["c"], []])
def test_the_labels_that_are_explained_are_those_of_the_prediction(said):
    """A label is given above its own threshold, so its logit may be negative; without any, the likeliest is shown."""
    task = {"kind": "classify", "labels": ["a", "b", "c"], "multi_label": True, "thresholds": {"b": 0.2}}
    chosen = targets.text_scores(lambda ids, types: ids, task, np.array([1.0, -1.0, -3.0]), said)
    assert [name for _, name, _ in chosen] == [f"logit of {label}" for label in said or ["a"]]
    assert [int(score(torch.arange(3)[None], None)) for _, _, score in chosen] == [k for k, _, _ in chosen]
