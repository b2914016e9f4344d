"""Batches of features: groups of similar lengths, padding, token types, class weights and augmentation."""

from types import SimpleNamespace

import numpy as np
import pytest

from nanoft import bpe
from nanoft.batches import IGNORE
from nanoft.tasks import collate, features


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train(["one two three four five six Paris is closed " * 3], 290, progress=False)


def task(kind="classify", **fields):
    return {"kind": kind, "labels": ["a", "b"], "max_length": 32, "long_text": "head", "pool": "mean"} | fields


def test_groups_of_similar_lengths_are_a_pure_function_and_waste_little():
    lengths = np.random.default_rng(1).lognormal(2.56, 0.7, size=20_000).clip(3, 80).astype(int)  # as those of SST-2
    groups = collate.group_by_length(lengths, 32, 1, 0)
    assert groups.shape == (625, 32) and sorted(groups.ravel()) == list(range(20_000))
    assert collate.padding_fraction(lengths, groups) < 0.05
    assert (groups == collate.group_by_length(lengths, 32, 1, 0)).all()
    for other in (collate.group_by_length(lengths, 32, 1, 1), collate.group_by_length(lengths, 32, 2, 0)):
        assert not {frozenset(batch) for batch in groups.tolist()} & {frozenset(batch) for batch in other.tolist()}
        assert collate.padding_fraction(lengths, other) < 0.05
    longest = lengths[groups].max(axis=1)
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.2  # not from short to long


@pytest.mark.parametrize("n", [1, 5, 33])
def test_a_small_set_fills_its_last_batch_with_features_of_the_same_epoch(n):
    groups = collate.group_by_length(np.arange(n) + 3, 8, 1, 0)
    assert groups.shape == (-(-n // 8), 8) and set(groups.ravel()) == set(range(n))


def test_augmented_tokens_are_a_pure_function_of_seed_epoch_and_number():
    ids = np.array([300, *np.arange(200), 301])
    tokenizer = SimpleNamespace(is_special=np.arange(303) >= 300, special={"<|mask|>": 302})

    def augment(ids, drop, mask, seed, epoch, number):
        cfg = SimpleNamespace(token_drop=drop, token_mask=mask, seed=seed)
        return collate.augmentation(cfg, {"kind": "classify"}, tokenizer, epoch)(ids, number)

    once = augment(ids, 0.1, 0.1, 1, 2, 3)
    assert (once == augment(ids, 0.1, 0.1, 1, 2, 3)).all()
    assert once[0] == 300 and once[-1] == 301 and 150 < len(once) < 200 and 5 < (once == 302).sum() < 40
    for key in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert once.tolist() != augment(ids, 0.1, 0.1, *key).tolist()
    assert len(augment(np.array([300, 5, 301]), 0.99, 0, 1, 1, 1)) == 3  # something stays
    assert collate.augmentation(SimpleNamespace(token_drop=0, token_mask=0), {"kind": "pair"}, tokenizer, 1) is None


def test_types_mark_the_tokens_that_both_texts_have(tokenizer):
    rows = [{"text": "one two", "pair": "three two one", "label": "a"}, {"text": "one", "pair": "six", "label": "a"}]
    matched = task("pair", match_types=True)
    batch = collate.batch(features.encode(rows, matched, tokenizer), [0, 1], matched, tokenizer)
    sep = tokenizer.special["<|sep|>"]
    for ids, types in zip(batch["ids"].tolist(), batch["types"].tolist()):
        middle = ids.index(sep) + 1
        end = ids.index(sep, middle) + 1
        first, second = ids[:middle], ids[middle:end]
        assert types[:middle] == [2 * (token in second) for token in first]
        assert types[middle:] == [1 + 2 * (token in first) for token in second] + [0] * (len(ids) - end)
    assert 2 in batch["types"][0] and batch["types"][1].tolist().count(2) == 1  # they share <|sep|> alone


def test_the_second_text_is_found_where_one_token_begins_and_divides():
    """GPT-2's vocabulary has <|endoftext|> alone; training, whose tokens may be dropped, reads the same two texts."""
    tokenizer, pair = bpe.Tokenizer("gpt2", [], ("<|endoftext|>",)), task("pair", match_types=True)
    encoded = features.encode([{"text": "abc", "pair": "xbz", "label": "a"}], pair, tokenizer)
    measured, trained = (collate.batch(encoded, [0], pair, tokenizer, augment=augment)
                         for augment in (None, lambda ids, number: ids))
    assert measured["types"].tolist() == trained["types"].tolist() and {1, 3} <= set(measured["types"][0].tolist())


def test_a_padded_batch_masks_its_padding_and_weighs_the_classes(tokenizer):
    rows = [{"text": "one", "label": "a"}, {"text": "two three four", "label": "b"}, {"text": "six", "label": "a"}]
    encoded = features.encode(rows, task(), tokenizer)
    batch = collate.batch(encoded, [0, 1], task(), tokenizer, class_weights=collate.balanced_weights(encoded, 2))
    assert batch["mask"].sum(1).tolist() == encoded.lengths[:2].tolist()
    assert (batch["ids"][~batch["mask"]] == tokenizer.special["<|pad|>"]).all()
    assert batch["weights"].tolist() == [0.75, 1.5]
    assert "mask" not in collate.batch(encoded, [1], task(), tokenizer)
    for multiple, length in ((24, 24), (64, 32)):  # never past max_length
        assert collate.batch(encoded, [1], task(), tokenizer, multiple=multiple)["ids"].shape == (1, length)


def test_class_weights_leave_tokens_without_a_target_at_zero(tokenizer):
    rows = [{"words": ["Paris", "is", "unbelievably", "closed"], "tags": ["B", "O", "O", "O"]}]
    tags = task("tag", labels=["O", "B"])
    encoded = features.encode(rows, tags, tokenizer)
    batch = collate.batch(encoded, [0], tags, tokenizer, class_weights=collate.balanced_weights(encoded, 2))
    has_target = batch["targets"] != IGNORE
    assert (batch["weights"] > 0).tolist() == has_target.tolist() and not has_target.all()
    assert batch["weights"][batch["targets"] == 1] == pytest.approx(2.0)
