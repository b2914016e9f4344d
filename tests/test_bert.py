"""The encoder: its masks, its pairs, its heads."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nanoft import UserError, batches, distributed, generate
from nanoft.bins import Tokens, write_split
from nanoft.evaluate import masked_metrics
from nanoft.model import BERT, CLASSIC, GPT, ModelConfig
from nanoft.text import vocabulary
from nanoft.text.pairs import Pairs

TINY = dict(vocab_size=100, block_size=16, n_layer=2, n_head=4, n_embd=32, causal=False)


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return vocabulary.load(corpus)


@pytest.fixture(scope="module")
def train(corpus):
    return Tokens.open(corpus, "train")


def encoder(**options):
    torch.manual_seed(0)
    model = BERT(ModelConfig(**{**TINY, **options}))
    for p in model.parameters():
        if p.dim() == 2 and p.abs().sum() == 0:
            torch.nn.init.normal_(p, std=0.2)
    return model


# ---- masks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole_word", [False, True])
def test_masks_are_15_percent_and_80_10_10(tokenizer, train, whole_word):
    hide = batches.masking(tokenizer, 0.15, whole_word)
    rng = np.random.default_rng(0)
    ids = rng.choice(hide.ordinary, (1000, 128))
    if whole_word:
        ids = train.gather(rng.integers(0, len(train) - 128, 1000), 128)
    special = rng.random(ids.shape) < 0.05
    ids[special] = rng.choice(sorted(tokenizer.special.values()), special.sum())
    seen, targets = batches.mask_words(ids, hide, 1, np.arange(1000))
    chosen = targets != batches.IGNORE
    maskable = hide.is_ordinary[ids].sum()
    assert maskable > 100_000
    # whole words stop before the word that would not fit, so they fall short of the part by a fraction of a word
    assert chosen.sum() / maskable == pytest.approx(0.15, abs=0.012 if whole_word else 0.003)
    masked, same = (seen == hide.mask_id) & chosen, (seen == ids) & chosen
    assert masked.sum() / chosen.sum() == pytest.approx(0.8, abs=0.01)
    assert same.sum() / chosen.sum() == pytest.approx(0.1, abs=0.01)
    assert not (chosen & ~hide.is_ordinary[ids]).any(), "a special token was chosen"
    assert hide.is_ordinary[seen[chosen & ~masked]].all(), "a special token was written"
    assert np.array_equal(seen[~chosen], ids[~chosen]) and np.array_equal(targets[chosen], ids[chosen])
    assert (chosen.sum(1) <= batches.capacity((1, 128), 0.15)).all()


def test_masks_are_a_function_of_the_row_number(tokenizer, train):
    hide = batches.masking(tokenizer, 0.15)
    whole = batches.masked_batch(train, 32, 1, np.arange(40, 48), hide)
    part = batches.masked_batch(train, 32, 1, np.arange(43, 45), hide)
    assert all(np.array_equal(whole[k][3:5], part[k]) for k in whole)
    ids = np.tile(hide.ordinary[:32], (2, 1))
    a, b = batches.mask_words(ids, hide, 1, np.array([5, 5 + len(train)]))[0]
    assert not np.array_equal(a, b), "the same window in another epoch has the same mask"


def test_whole_words_go_together(tokenizer, train):
    hide = batches.masking(tokenizer, 0.15, whole_word=True)
    ids = train.gather(np.arange(0, 50 * 64, 64), 64)
    _, targets = batches.mask_words(ids, hide, 1, np.arange(50))
    words_of_several = 0
    for row, target in zip(ids, targets):
        starts = tokenizer.chunk_starts(row)
        starts[0] = True
        for word in np.unique(np.cumsum(starts)):
            there = np.cumsum(starts) == word
            chosen = (target[there] != batches.IGNORE)[hide.is_ordinary[row[there]]]
            assert chosen.all() or not chosen.any()
            words_of_several += len(chosen) > 1 and bool(chosen.any())
    assert words_of_several > 20
    hide = batches.masking(tokenizer, 0.999, whole_word=True)
    seen, targets = batches.mask_words(ids[:1], hide, 1, np.arange(1))
    assert (targets != batches.IGNORE).sum() >= hide.is_ordinary[ids[0]].sum() - 1  # all, or all but one


def test_a_tokenizer_without_a_mask_is_refused(tokenizer):
    class Other:
        special = {"<|endoftext|>": 0}
        vocab_size = 10

    with pytest.raises(UserError, match=r"no <\|mask\|>"):
        batches.masking(Other, 0.15)


# ---- pairs -------------------------------------------------------------------------------------------------------


def make_pairs(folder, tokenizer, documents, block_size=32, batch_size=4):
    tokens = write_split(folder, "train", documents, tokenizer)
    return Pairs(tokens, tokenizer, block_size, batch_size, 1, batches.masking(tokenizer, 0.15))


def test_pairs_are_what_they_say(tmp_path, tokenizer):
    """Each document is of one letter, so a pair tells by itself whether its halves belong together."""
    texts = [letter * n + "." for letter, n in zip("abcdefghijkl", (1, 2, 3, 5, 9, 29, 30, 60, 100, 200, 300, 400))]
    pairs = make_pairs(tmp_path, tokenizer, texts)
    wrong, letters = 0, {i: tokenizer.decode([i])[0] for i in range(tokenizer.vocab_size - 5)}
    for step in range(30):
        index = step * 4 + np.arange(4)
        batch = pairs.batch(index)
        ids = np.where(batch["targets"] != batches.IGNORE, batch["targets"], batch["ids"])
        assert ids.shape[1] <= 32
        for row, types, mask, label in zip(ids, batch["types"], batch["mask"], batch["next_targets"]):
            row = row[mask]
            first, second = np.flatnonzero(row == pairs.sep)
            assert row[0] == pairs.cls and second == len(row) - 1 and first > 1 and second > first + 1
            assert types[:first + 1].sum() == 0 and types[first + 1:len(row)].all() and types[len(row):].sum() == 0
            a, b = ({letters[i] for i in part} - {"."} for part in (row[1:first], row[first + 1:second]))
            assert not (a and b and (a == b) == bool(label)), "a pair with the wrong label"
            wrong += label
    assert 40 <= wrong <= 80  # of 120


def test_pairs_are_a_function_of_the_row_number(tmp_path, tokenizer):
    texts = [("One two three. " * n).strip() for n in range(1, 30)]
    pairs = make_pairs(tmp_path, tokenizer, texts)
    whole, part = pairs.batch(np.arange(8, 12)), pairs.batch(np.arange(9, 11))
    assert all(np.array_equal(whole[k][1:3], part[k]) for k in whole)
    order = pairs.order(0)
    assert len(order) == len(pairs.windows) // 4 * 4 < len(pairs.windows) and len(set(order)) == len(order)
    assert len({window for epoch in range(30) for window in pairs.order(epoch)}) == len(pairs.windows)


def test_padding_of_pairs_stays_small(train, tokenizer):
    pairs = Pairs(train, tokenizer, 64, 8, 1, batches.masking(tokenizer, 0.15))
    steps = [pairs.batch(step * 8 + np.arange(8))["mask"] for step in range(len(pairs.windows) // 8)]
    assert 1 - sum(m.sum() for m in steps) / sum(m.size for m in steps) < 0.05


def test_evaluation_asks_every_pair_once_and_another_document_is_another(tmp_path, tokenizer):
    texts = [("One two three. " * n).strip() for n in range(1, 30)]
    pairs = make_pairs(tmp_path, tokenizer, texts)
    model = encoder(vocab_size=tokenizer.vocab_size, block_size=32, n_types=2).eval()
    asked, rows = [], pairs.rows
    pairs.rows = lambda windows, numbers, longest: asked.extend(windows) or rows(windows, numbers, longest)
    masked_metrics(model, None, 0, None, pairs, distributed.Dist(0, 1, torch.device("cpu")))
    assert len(pairs.windows) % 4 and sorted(asked) == list(range(len(pairs.windows)))

    rng, lengths = np.random.default_rng(0), np.diff(pairs.documents)[:, 0]
    for length in (2, 40, lengths.max() + 1):
        for document in range(len(lengths)):
            others = {int(pairs.another(document, length, rng)) for _ in range(200)}
            assert document not in others
            assert others <= set(np.flatnonzero(lengths >= length)) | set(lengths.argsort()[-2:])
            assert len(others) >= min(10, max(1, (lengths >= length).sum() - 1))


def test_a_row_has_one_mask_at_least(tokenizer, train):
    ids = np.stack([train.read(i, i + 8) for i in range(40)])
    _, targets = batches.mask_words(ids, batches.masking(tokenizer, 0.001), 1, np.arange(40))
    assert ((targets != batches.IGNORE).sum(1) == 1).all()


def test_too_few_documents(tmp_path, tokenizer):
    with pytest.raises(UserError, match="1 document"):
        make_pairs(tmp_path, tokenizer, ["One document. Alone."])


# ---- the model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, 20])
@pytest.mark.parametrize("options", [{}, CLASSIC["bert"]])
def test_the_head_at_masked_rows_equals_the_full_head(options, capacity):
    model = encoder(**options)
    ids = torch.randint(0, 95, (4, 16))
    targets = torch.where(torch.rand(4, 16) < 0.2, ids, -100)
    loss = model(ids, targets, capacity=capacity)[0]
    full = F.cross_entropy(model.word_logits(model.hidden(ids)).flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(full.item(), abs=1e-5)
    parameters = list(model.parameters())
    for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(full, parameters)):
        assert torch.allclose(a, b, atol=1e-5)


def test_every_parameter_gets_a_gradient():
    model = encoder(n_types=2)
    ids = torch.randint(0, 95, (4, 16))
    types = (torch.arange(16) > 8).long().expand(4, 16)
    mask = (torch.arange(16) < 14).expand(4, 16)
    targets = torch.where(torch.rand(4, 16) < 0.3, ids, -100)
    model(ids, targets, types, mask, next_targets=torch.tensor([0, 1, 0, 1])).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("options", [{}, CLASSIC["bert"]])
def test_padding_changes_nothing(options):
    model = encoder(**options).eval()
    ids = torch.randint(0, 95, (1, 10))
    padded = F.pad(ids, (0, 6), value=96)
    mask = (torch.arange(16) < 10)[None]
    assert torch.allclose(model.hidden(ids), model.hidden(padded, mask=mask)[:, :10], atol=1e-5)


@pytest.mark.parametrize("options", [{}, CLASSIC["bert"], CLASSIC["gpt2"]])
def test_gpt_and_bert_share_their_trunk(options):
    config = {**TINY, **options}
    gpt, bert = GPT(ModelConfig(**{**config, "causal": True})), BERT(ModelConfig(**config))
    shapes = [{name: p.shape for name, p in model.trunk.named_parameters()} for model in (gpt, bert)]
    assert shapes[0] == shapes[1] and type(gpt.trunk) is type(bert.trunk)


def test_an_encoder_sees_both_sides():
    model = encoder().eval()
    ids = torch.randint(0, 95, (1, 16))
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % 95
    assert not torch.allclose(model.hidden(ids)[:, 0], model.hidden(changed)[:, 0], atol=1e-4)


def test_fill_masks_and_pseudo_loss():
    model = encoder().eval()
    ids = torch.tensor([3, 96, 5, 96, 7])
    best, probability = generate.fill_masks(model, ids, mask_id=96, k=4)
    assert best.shape == (2, 4) and (probability.diff(dim=1) <= 0).all() and probability.sum(1).max() <= 1
    ids = torch.tensor([3, 4, 5])
    by_hand = 0.0
    for i in range(3):
        row = ids.clone()
        row[i] = 96
        by_hand -= model.word_logits(model.hidden(row[None])[0, i:i + 1]).log_softmax(-1)[0, ids[i]].item() / 3
    every = torch.ones(len(ids), dtype=torch.bool)
    assert generate.pseudo_loss(model, ids, 96, every, batch=2) == pytest.approx(by_hand, abs=1e-5)
    assert math.isfinite(by_hand)
