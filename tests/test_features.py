"""Rows to features: special tokens, truncation, windows, and targets at the right tokens."""

import numpy as np
import pytest

from nanoft import bpe
from nanoft.batches import IGNORE
from nanoft.tasks import collate, features
from nanoft.text.wordpiece import WordPiece

TEXT = "北京是中国的首都,人口两千万。😀 The capital of France is Paris 🇫🇷, and  the café — naïve — is closed. "


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train([TEXT * 3, "one two three four five six seven eight nine ten " * 3], 330, progress=False)


def task(kind="classify", **fields):
    return {"kind": kind, "labels": ["a", "b"], "max_length": 32, "long_text": "head", "doc_stride": 5,
            "pool": "mean"} | fields


@pytest.fixture(scope="module")
def wordpiece():
    """As BERT's, without accents: characters and some words."""
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789.,—'！？") | set(filter(str.isalpha, TEXT)))
    words = ["capital", "cafe", "##ive", "paris"]
    return WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters), *words],
                     True, True)


@pytest.fixture(scope="module")
def roberta(tokenizer):
    """The merges of `tokenizer` with RoBERTa's special tokens, and other ids."""
    n, merges = len(tokenizer.ranks), tokenizer.content["merges"]
    return bpe.Tokenizer("gpt2", merges, {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": n + 4},
                         ids=[*range(n + 3, 3, -1)])


def ids_of(encoded, i):
    return encoded.ids[encoded.begin[i]:encoded.begin[i + 1]].tolist()


def test_a_text_and_a_pair_stand_between_special_tokens(tokenizer):
    cls, sep = tokenizer.special["<|cls|>"], tokenizer.special["<|sep|>"]
    rows = [{"text": "one two", "label": "b"}, {"text": "", "label": "a"}]
    encoded = features.encode(rows, task(), tokenizer)
    assert ids_of(encoded, 0) == [cls, *tokenizer.encode("one two"), sep] and ids_of(encoded, 1) == [cls, sep]
    assert encoded.targets.tolist() == [1, 0] and encoded.n_tokens.tolist() == encoded.lengths.tolist()
    encoded = features.encode([{"text": "one", "pair": "two three", "label": "a"}], task("pair"), tokenizer)
    one, two = tokenizer.encode("one"), tokenizer.encode("two three")
    assert ids_of(encoded, 0) == [cls, *one, sep, *two, sep]
    types = collate.batch(encoded, [0], task("pair"), tokenizer)["types"][0].tolist()
    assert types == [0] * (len(one) + 2) + [1] * (len(two) + 1)


def test_roberta_has_two_separators_between_two_texts(roberta):
    rows = [{"text": "one two", "pair": "three", "label": "a"},
            {"text": "one " * 40, "pair": "two " * 40, "label": "a"}]
    encoded = features.encode(rows, task("pair"), roberta)
    one, two = roberta.encode("one two"), roberta.encode("three")
    assert ids_of(encoded, 0) == [0, *one, 2, 2, *two, 2] and encoded.n_tokens[0] == len(one) + len(two) + 4
    batch = collate.batch(encoded, [0, 1], task("pair"), roberta)
    assert batch["ids"].shape == (2, 32) and (batch["ids"][1, -1], batch["ids"][0, -1]) == (2, 1)
    assert batch["types"][0].tolist() == [0] * (len(one) + 3) + [1] * (len(two) + 1) + [0] * (28 - len(one) - len(two))
    again = collate.batch(encoded, [0, 1], task("pair"), roberta, augment=lambda ids, number: ids)
    assert (again["types"] == batch["types"]).all()
    answer = features.encode([{"question": "one", "context": "two three", "id": "0", "answers": [
        {"text": "three", "start": 4}]}], task("answer"), roberta)
    ids = ids_of(answer, 0)
    assert ids == [0, *roberta.encode("one"), 2, 2, *roberta.encode("two three"), 2]
    assert roberta.decode(ids[answer.targets[0, 0]:answer.targets[0, 1] + 1]) == " three"


@pytest.mark.parametrize("lengths", [(3, 50), (50, 3), (50, 50), (0, 40), (14, 15), (15, 15)])
def test_the_longer_text_of_a_pair_is_cut_and_no_position_is_wasted(tokenizer, lengths):
    texts = ["x" * n for n in lengths]
    a, b = (len(tokenizer.encode(text)) for text in texts)
    encoded = features.encode([{"text": texts[0], "pair": texts[1], "label": "a"}], task("pair"), tokenizer)
    assert encoded.lengths[0] == min(32, a + b + 3) and encoded.n_tokens[0] == a + b + 3
    first, second = encoded.second[0] - 2, encoded.lengths[0] - encoded.second[0] - 1
    assert first == a or first >= second - 1 and second == min(b, 29 - first)
    assert second == b or second >= first - 1


def test_what_is_left_of_a_long_text(tokenizer):
    ids = np.arange(100)
    left = {how: features.truncate(ids, 20, task(long_text=how)) for how in ("head", "tail", "head_tail", "windows")}
    assert left["head"][0].tolist() == list(range(20)) and left["tail"][0].tolist() == list(range(80, 100))
    assert left["head_tail"][0].tolist() == [*range(5), *range(85, 100)]
    assert all(len(part) == 20 for part in left["windows"]) and set(np.concatenate(left["windows"])) == set(range(100))
    assert all(len(features.truncate(ids[:20], 20, task(long_text=how))) == 1 for how in left)


@pytest.mark.parametrize("n, room, stride", [(100, 20, 5), (21, 20, 30), (20, 20, 5), (100, 30, 30), (0, 5, 5)])
def test_windows_cover_every_token_even_with_a_stride_that_is_too_long(n, room, stride):
    starts = features.window_starts(n, room, stride)
    assert set(range(n)) == {i for start in starts for i in range(start, min(start + room, n))}
    assert len(set(starts.tolist())) == len(starts)


def test_a_target_stands_at_the_first_token_of_its_word_and_no_word_is_lost(tokenizer):
    words = ["Paris", "extraordinarily", "café", "北京", "is"] * 6
    tags = ["a", "b", "a", "b", "a"] * 6
    encoded = features.encode([{"words": words, "tags": tags}, {"words": [], "tags": []},
                             {"words": ["q" * 99], "tags": ["b"]}], task("tag"), tokenizer)
    assert (encoded.lengths <= 32).all() and encoded.lengths.sum() == len(encoded.ids) == len(encoded.targets)
    targets = encoded.targets[:encoded.begin[np.searchsorted(encoded.row, 1)]]
    assert [task()["labels"][i] for i in targets[targets != IGNORE]] == tags
    for at, word in zip(np.flatnonzero(targets != IGNORE), words):
        first = tokenizer.encode(" " + word)
        assert encoded.ids[at:at + len(first)].tolist() == first
    assert (encoded.targets != IGNORE).sum() == 31  # of the endless word, too
    last = features.encode([{"words": words, "tags": tags}], task("tag", pool="last"), tokenizer)
    for at, word in zip(np.flatnonzero(last.targets != IGNORE), words):
        ids = tokenizer.encode(" " + word)
        assert last.ids[at + 1 - len(ids):at + 1].tolist() == ids


def test_a_word_without_tokens_is_unknown_and_keeps_its_target(wordpiece):
    words, tags = ["Café", "\ufe0f", "is", "\u0301", "naïve"], ["a", "b", "a", "b", "b"]
    encoded = features.encode([{"words": words, "tags": tags}], task("tag"), wordpiece)
    at = np.flatnonzero(encoded.targets != IGNORE)
    assert [task()["labels"][i] for i in encoded.targets[at]] == tags
    assert [wordpiece.content["tokens"][i] for i in encoded.ids[at]] == ["cafe", "[UNK]", "i", "[UNK]", "n"]


def test_an_answer_without_tokens_is_no_answer(wordpiece):
    row = {"context": "one \u200b two", "question": "which?", "id": "0", "answers": [{"text": "\u200b", "start": 4}]}
    assert features.encode([row], task("answer"), wordpiece).targets.tolist() == [[0, 0]]


CONTEXTS = {
    "北京是中国的首都,人口两千万。": ["北京", "首都", "两千万", "京是中"],
    "😀 The capital of France is Paris 🇫🇷, and the café — naïve — is closed.": ["Paris", "🇫🇷", "café", "😀", "naïve"],
    "one two  three\tfour\nfive six seven eight nine ten " * 6: ["three", "ten", "four\nfive"],
}
QUESTIONS = [{"context": context, "question": "which?", "id": f"{i}", "answers": [{"text": text, "start": at}]}
             for i, (context, text, at) in enumerate(
                 (context, text, at) for context, texts in CONTEXTS.items() for text in texts
                 for at in (context.find(text), context.rfind(text)))]


@pytest.mark.parametrize("kind", ["tokenizer", "wordpiece", "roberta"])
def test_answers_lie_at_their_exact_characters_whatever_the_script(kind, request):
    tokenizer = request.getfixturevalue(kind)
    encoded = features.encode(QUESTIONS, task("answer"), tokenizer)
    assert max(np.bincount(encoded.row)) > 3  # some contexts need several windows
    found = set()
    for i, row in enumerate(encoded.row):
        start, end = encoded.targets[i]
        if not start:
            continue
        found.add(int(row))
        assert encoded.second[i] <= start <= end < encoded.lengths[i] - 1
        char_start, char_end = encoded.offsets[row]
        shift = encoded.context_start[i] - encoded.second[i]
        begin, stop = char_start[start + shift], char_end[end + shift]
        context, answer = QUESTIONS[row]["context"], QUESTIONS[row]["answers"][0]
        assert begin <= answer["start"] and answer["start"] + len(answer["text"]) <= stop
        if kind != "wordpiece":
            text = tokenizer.decode(ids_of(encoded, i)[start:end + 1])
            assert text.strip("\ufffd") in context[begin:stop]
        # no token is taken that has nothing of the answer
        assert char_end[start + shift] > answer["start"]
        assert char_start[end + shift] < answer["start"] + len(answer["text"])
    assert found == set(range(len(QUESTIONS)))


def test_an_empty_context_is_one_window_that_can_hold_no_answer(tokenizer):
    row = {"context": "", "question": "which?", "id": "0", "answers": []}
    encoded = features.encode([row], task("answer"), tokenizer)
    assert len(encoded) == 1 and encoded.max_context[0, 0] == encoded.max_context[0, 1]
    assert collate.batch(encoded, [0], task("answer"), tokenizer)["allowed"].sum() == 1


def test_each_token_of_a_context_has_its_max_context_in_one_window(tokenizer):
    encoded = features.encode(QUESTIONS[-1:], task("answer"), tokenizer)
    tokens = []
    for i in range(len(encoded)):
        lo, hi = encoded.max_context[i] - encoded.second[i] + encoded.context_start[i]
        tokens += range(lo, hi)
        if lo > 0 and hi < len(encoded.offsets[0][0]):  # an inner window has it in its middle
            start, end = encoded.max_context[i]
            assert encoded.second[i] + 5 < start and end < encoded.lengths[i] - 5
    assert sorted(tokens) == list(range(len(encoded.offsets[0][0])))


def test_the_response_has_targets_and_the_prompt_has_none(tokenizer):
    rows = [{"prompt": "one two ", "response": "three"}, {"prompt": "one " * 50, "response": "two " * 50}]
    encoded = features.encode(rows, task("generate"), tokenizer)
    prompt, response = tokenizer.encode("one two\n"), tokenizer.encode("three") + [tokenizer.special["<|endoftext|>"]]
    assert ids_of(encoded, 0) == (prompt + response)[:-1]
    assert encoded.targets[:encoded.begin[1]].tolist() == [IGNORE] * (len(prompt) - 1) + response
    assert encoded.lengths[1] <= 32 and (encoded.targets[encoded.begin[1]:] != IGNORE).all()
