"""Generation: one result however it is computed, cached or not, alone or in a batch, compiled or not; and beams."""

import itertools

import pytest
import torch
from test_model import CLASSIC, TINY, filled

from nanoft import generate, kernels
from nanoft.model import ModelConfig
from nanoft.sampling import Sampling

GREEDY = Sampling(temperature=0)
SHAPES = [{}, CLASSIC, dict(n_kv_head=2), dict(n_kv_head=1, n_gram=3), dict(block_size=15), dict(n_gram=4),
          dict(n_layer=0, n_gram=2)]


def model_of(**options):
    return filled(ModelConfig(**{**TINY, **options})).eval()


def prompt(*shape):
    return torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(1))


def tokens(*args, **options):
    return torch.stack(list(generate.generate(*args, **options)), dim=1)  # (B, T)


@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.parametrize("length", [1, 5, 16, 40])
def test_cached_equals_the_plain_model_past_the_context_too(options, length):
    model, ids = model_of(**options), prompt(3, length)
    fast = tokens(model, ids, 50, GREEDY)
    for _ in range(50):
        start = generate.context_start(ids.size(1), model.cfg.block_size)
        ids = torch.cat((ids, model(ids[:, start:]).argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(fast, ids[:, length:])
    assert len(fast.T.unique(dim=0)) > 3


@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.parametrize("rules", [GREEDY, Sampling(repetition_penalty=1.3, frequency_penalty=0.5, no_repeat_ngram=3,
                                                    temperature=0.9, top_p=0.9, min_p=0.02)])
def test_a_batch_of_different_lengths_says_what_each_says_alone(options, rules):
    model, prompts = model_of(**options), [prompt(n) for n in (9, 1, 16, 40, 5)]
    together = tokens(model, prompts, 50, rules, seeds=[3, 4, 5, 6, 7])
    assert torch.equal(together, tokens(model, prompts, 50, rules, seeds=[3, 4, 5, 6, 7], cached=False))
    for i, ids in enumerate(prompts):
        assert torch.equal(together[i:i + 1], tokens(model, [ids], 50, rules, seeds=3 + i))


def test_sampling_is_seeded_and_a_longer_text_begins_as_a_shorter_one():
    model, ids = model_of(), prompt(1, 3)
    a, b, c = (tokens(model, ids, 30, seeds=seed) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(tokens(model, ids, 12, seeds=1), a[:, :12])


@pytest.mark.parametrize("options", [{}, CLASSIC])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_laid_out_for_single_rows_say_the_same(options, dtype):
    plain, tuned = model_of(**options).to(dtype), model_of(**options)
    kernels.tune_generation(tuned, dtype)
    assert (tuned.head.weight.stride(0) == 1) == (dtype == torch.float32)  # transposed in memory
    assert isinstance(tuned.head, kernels.OneRowLinear) == (dtype == torch.bfloat16)
    if options:  # tied
        assert tuned.head.weight is tuned.trunk.tokens.weight
    for ids in (prompt(1, 1), prompt(3, 9)):
        with torch.no_grad():
            torch.testing.assert_close(tuned(ids), plain(ids), rtol=0.05, atol=1e-5 if dtype == torch.float32 else 0.05)


def test_a_gpu_would_record_steps_of_few_shapes(monkeypatch):
    model, prompts, shapes = model_of(block_size=256), [prompt(n) for n in (3, 40)], set()
    step = generate.Batch.step
    expected = tokens(model, prompts, 150, GREEDY)

    def noted(self, one, seen, masked):
        shapes.add((seen, masked))
        step(self, one, seen, masked)

    monkeypatch.setattr(generate.Batch, "step", noted)
    monkeypatch.setattr(generate, "compiled_step", lambda: generate.Cache.step)
    assert torch.equal(tokens(model, prompts, 150, GREEDY, compile=True), expected)
    assert shapes == {(64, True), (128, True), (190, True)}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, dict(n_kv_head=2, n_gram=2), CLASSIC])
def test_compiled_equals_eager(options):
    model, prompts = model_of(block_size=64, **options), [prompt(n) for n in (9, 1, 16)]
    rules = Sampling(repetition_penalty=1.3, no_repeat_ngram=3, top_p=0.9)
    assert torch.equal(tokens(model, prompts, 40, rules, compile=True), tokens(model, prompts, 40, rules))


def test_stops_when_every_row_has_stopped():
    model, ids = model_of(), prompt(2, 4)
    free = tokens(model, ids, 20, GREEDY)
    stop = free[0, 3].item()
    stopped = tokens(model, ids, 20, Sampling(temperature=0, stop_ids=(stop, 99)))
    first = free[0].tolist().index(stop)
    assert (stopped[0, first:] == stop).all() and torch.equal(stopped[0, :first], free[0, :first])
    one = tokens(model, ids[:1], 20, Sampling(temperature=0, stop_ids=(stop,)))
    assert one.tolist() == [free[0, :first + 1].tolist()]


def test_logprobs_are_the_models_own():
    model, ids, text = model_of(), [prompt(4), prompt(6)], [prompt(4).tolist(), prompt(6).tolist()]
    for step in generate.generate(model, ids, 10, Sampling(temperature=0.5, top_k=3), logprobs=4):
        for row in range(2):
            expected = model(torch.tensor([text[row]])).log_softmax(-1)[0]
            best = expected.topk(4)
            assert step.logprobs[row].item() == pytest.approx(expected[step.tokens[row]].item(), abs=1e-5)
            assert step.best[row].tolist() == best.indices.tolist()
            torch.testing.assert_close(step.best_logprobs[row], best.values)
            text[row].append(int(step.tokens[row]))


def log_probability(model, ids, text):
    """Of text after ids, by the plain model, a token at a time."""
    total = 0.0
    for token in text:
        start = generate.context_start(len(ids), model.cfg.block_size)
        total += model(ids[None, start:]).log_softmax(-1)[0, token].item()
        ids = torch.cat((ids, torch.tensor([token])))
    return total


@pytest.mark.parametrize("options", [{}, dict(n_gram=2, block_size=6), CLASSIC])
def test_beams_wide_enough_find_what_brute_force_finds(options):
    V, stop = 6, 2
    model, ids = model_of(vocab_size=V, **options), torch.tensor([3, 1, 4, 4, 5])
    texts = set()
    for text in itertools.product(range(V), repeat=4):
        texts.add(text[:text.index(stop) + 1] if stop in text else text)
    with torch.no_grad():
        scored = sorted(((log_probability(model, ids, text), text) for text in texts), reverse=True)
    found = generate.beam_search(model, ids, 4, beams=V ** 4, stop_ids=(stop,))
    assert [tuple(text) for text, _ in found[:50]] == [text for _, text in scored[:50]] and len(found) == len(texts)
    assert [score for _, score in found] == pytest.approx([score for score, _ in scored], abs=1e-4)
    # one beam is the greedy text; a few find one at least as likely
    greedy = tokens(model, ids[None], 4, Sampling(temperature=0, stop_ids=(stop,)))[0].tolist()
    assert generate.beam_search(model, ids, 4, beams=1, stop_ids=(stop,))[0][0] == greedy
    (_, score), *_ = generate.beam_search(model, ids, 4, beams=3, stop_ids=(stop,))
    assert score >= log_probability(model, ids, greedy) - 1e-4
