"""One way to a tokenizer: nanoft's two kinds and the published files, with the published ids."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from nanoft import UserError, bpe
from nanoft.bins import Tokens
from nanoft.text import prepare, vocabulary
from nanoft.text.wordpiece import WordPiece

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("NANOFT_MIRROR") or ROOT / "../shared/data")
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sat", "."]
TEXT = "naïve café, don't   stop: 1234 中文 🙂\n\n  x=[1, 2]\tThe end. <s> <mask>"


def byte_names():
    """GPT-2's visible character for each byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {**{byte: chr(byte) for byte in visible}, **{byte: chr(256 + i) for i, byte in enumerate(hidden)}}


@pytest.fixture(scope="module")
def learned():
    return bpe.train([TEXT * 3, (ROOT / "nanoft" / "bpe.py").read_text(encoding="utf-8")], 700, "gpt2", progress=False)


@pytest.fixture(scope="module")
def roberta(learned, tmp_path_factory):
    """A folder as RoBERTa's: the merges of a learned vocabulary, the ids in another order, other special tokens."""
    folder, names = tmp_path_factory.mktemp("roberta"), byte_names()
    shown = ["".join(names[byte] for byte in token) for token in learned.ranks]
    pairs = [(shown[a], shown[b]) for a, b in learned.content["merges"]]
    mixed = random.Random(3).sample(shown, len(shown))
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *mixed, "<|endoftext|>", "madeupword0000", "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, pairs)) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def bert(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return tmp_path


def test_roberta_has_ids_and_special_tokens_of_its_own(roberta, learned, tmp_path):
    tokenizer = vocabulary.load(roberta)
    ids = json.loads((roberta / "vocab.json").read_text(encoding="utf-8"))
    names = byte_names()
    assert tokenizer.vocab_size == len(ids)
    expected = [ids["".join(names[byte] for byte in learned.token_bytes[i])] for i in learned.encode(TEXT)]
    assert tokenizer.encode(TEXT) == expected != learned.encode(TEXT) and tokenizer.decode(expected) == TEXT
    assert [tokenizer.special[f"<|{name}|>"] for name in ("cls", "pad", "sep", "unk", "mask", "endoftext")] == \
        [0, 1, 2, 3, len(ids) - 1, 2]
    assert tokenizer.encode("a<mask></s><|cls|>", allow_special=True)[1:] == [len(ids) - 1, 2, 0]
    assert tokenizer.separators == 2 and tokenizer.published
    assert tokenizer.is_special.sum() == 7 and not tokenizer.is_special[expected].any()
    assert tokenizer.decode_bytes([*tokenizer.encode("ok "), ids[names[255]]]) == b"ok \xff"
    assert tokenizer.chunk_starts(expected).tolist() == learned.chunk_starts(learned.encode(TEXT)).tolist()
    tokenizer.save(tmp_path / "tokenizer.json")
    again = vocabulary.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint != learned.fingerprint and again.encode(TEXT) == expected
    assert again.special == tokenizer.special


def test_offsets_of_byte_level_tokens_cover_the_characters_of_their_bytes(roberta, learned):
    for tokenizer in (learned, vocabulary.load(roberta), bpe.Tokenizer("gpt2", [])):
        ids, first, end = tokenizer.encode_with_offsets(TEXT)
        assert ids.tolist() == tokenizer.encode(TEXT)
        for i, a, b in zip(ids, first, end):
            covered, token = TEXT[a:b].encode(), tokenizer.token_bytes[i]
            assert token in covered and len(covered) - len(token) < 4
        assert first[0] == 0 and end[-1] == len(TEXT) and (first[1:] <= end[:-1]).all()
    assert [part.tolist() for part in learned.encode_with_offsets("")] == [[], [], []]


def test_roberta_is_read_as_tokenizers_reads_it(roberta):
    tokenizers = pytest.importorskip("tokenizers")
    other = tokenizers.ByteLevelBPETokenizer(str(roberta / "vocab.json"), str(roberta / "merges.txt"))
    tokenizer, generator = vocabulary.load(roberta), random.Random(4)
    texts = ["".join(generator.choices("aeé the中🙂\n\t 1.,'s\u3000\u0301<>", k=40)) for _ in range(300)] + [TEXT]
    for text in texts:
        assert tokenizer.encode(text) == other.encode(text).ids, text


def test_hugging_face_s_own_file_gives_the_same_tokenizers(roberta, bert, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    other = tokenizers.ByteLevelBPETokenizer(str(roberta / "vocab.json"), str(roberta / "merges.txt"))
    other.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    (tmp_path / "a").mkdir()
    other.save(str(tmp_path / "a" / "tokenizer.json"))
    assert vocabulary.load(tmp_path / "a").fingerprint == vocabulary.load(roberta).fingerprint
    for lowercase in (True, False):
        other = tokenizers.BertWordPieceTokenizer(str(bert / "vocab.txt"), lowercase=lowercase)
        (tmp_path / f"b{lowercase}").mkdir()
        other.save(str(tmp_path / f"b{lowercase}" / "tokenizer.json"))
        found = vocabulary.load(tmp_path / f"b{lowercase}")
        assert found.content["tokens"] == PIECES and (found.lowercase, found.strip_accents) == (lowercase, lowercase)


def test_bert_s_list_and_what_its_config_says_of_small_letters(bert):
    tokenizer = vocabulary.load(bert)
    assert tokenizer.lowercase and vocabulary.load(bert / "vocab.txt").fingerprint == tokenizer.fingerprint
    assert tokenizer.decode(tokenizer.encode("The cats sat.")) == "the cats sat ."
    (bert / "tokenizer_config.json").write_text('{"do_lower_case": false, "strip_accents": null}', encoding="utf-8")
    assert not vocabulary.load(bert).lowercase
    (bert / "tokenizer_config.json").write_text('{"do_lower_case": true, "strip_accents": false}', encoding="utf-8")
    assert not vocabulary.load(bert).strip_accents
    (bert / "tokenizer_config.json").unlink()
    (bert / "vocab.txt").write_text("\r\n".join([*PIECES, "Cat"]) + "\r\n", encoding="utf-8")
    cased = vocabulary.load(bert)
    assert not cased.lowercase and cased.piece_ids["Cat"] == len(PIECES)
    cased.save(bert / "tokenizer.json")  # a run's folder: its own form comes first
    (bert / "vocab.txt").write_text("nonsense", encoding="utf-8")
    assert vocabulary.load(bert).fingerprint == cased.fingerprint


def test_a_data_set_can_be_made_with_a_published_list(bert, tmp_path, capsys):
    texts = {"train": lambda: ["The cats sat.", "The\ncat"], "val": lambda: ["cat"]}
    prepare.write_data(tmp_path / "set", texts, 0, tokenizer=str(bert))
    tokenizer, tokens = vocabulary.load(tmp_path / "set"), Tokens.open(tmp_path / "set", "train")
    assert type(tokenizer) is WordPiece and tokens.fingerprint == tokenizer.fingerprint
    assert tokenizer.decode(tokens.read(0, len(tokens)).tolist()) == "the cats sat . [SEP] the cat [SEP]"


@pytest.mark.parametrize("files, words", [
    ({}, "no tokenizer.json"),
    ({"vocab.txt": "the\ncat\n"}, "lacks .PAD. .UNK. .CLS. .SEP. .MASK."),
    ({"vocab.txt": b"\xff"}, "not UTF-8"),
    ({"vocab.txt": "\n".join(PIECES), "tokenizer_config.json": '{"do_lower_case": "yes"}'}, "lowercase"),
    ({"vocab.txt": "\n".join(PIECES), "tokenizer_config.json": "{"}, "not a JSON file"),
    ({"vocab.txt": "\n".join(PIECES), "tokenizer_config.json": "[]"}, "tokenizer_config.json"),
    ({"vocab.json": "{}", "merges.txt": "a b\n"}, "one download"),
    ({"vocab.json": "[]", "merges.txt": "a b\n"}, "one download"),
    ({"vocab.json": "{}", "merges.txt": "ab c\n"}, "no merge of earlier tokens"),
    ({"vocab.json": "{}", "merges.txt": "a b\na b\n"}, "no merge of earlier tokens"),
    ({"vocab.json": "{}"}, "no tokenizer.json"),
    ({"tokenizer.json": '{"format": "nanoft wordpiece", "version": 2}'}, "version 2"),
    ({"tokenizer.json": '{"format": "nanoft wordpiece", "version": 1}'}, "lowercase"),
    ({"tokenizer.json": '{"format": "nanoft wordpiece", "version": 1, "lowercase": true, "strip_accents": true, '
                        '"split_chinese": true, "tokens": [1]}'}, "tokens"),
    ({"tokenizer.json": '{"model": {"type": "Unigram"}, "normalizer": null, "pre_tokenizer": null}'}, "another kind"),
    ({"tokenizer.json": '{"model": 5}'}, "not a whole tokenizer"),
    ({"tokenizer.json": '{"model": {"type": "BPE", "vocab": [], "merges": 1}, "normalizer": null, "added_tokens": [], '
                        '"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}}'}, "not a whole tokenizer"),
    ({"tokenizer.json": '{"format": "other"}'}, "format line is missing"),
])
def test_broken_files_are_refused_in_one_sentence(files, words, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as caught:
        vocabulary.load(tmp_path)
    assert "\n" not in str(caught.value)


def change(**values):
    return lambda content: content.update(values)


@pytest.mark.parametrize("damage", [
    change(ids=[5] * 695), change(ids=None), change(ids=[0, 1]), change(special_tokens={"<s>": 0}),
    change(special_tokens=["</s>"]), change(special_tokens={"</s>": "x"}), lambda content: content.pop("ids")])
def test_damaged_ids_are_refused(damage, roberta, tmp_path):
    content = json.loads(json.dumps(vocabulary.load(roberta).content))
    damage(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="tokenizer.json"):
        vocabulary.load(tmp_path)


# ---- the published GPT-2 ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2():
    if not (DATA / "gpt2").exists():
        pytest.skip("no local copy of GPT-2's encoder.json and vocab.bpe")
    return vocabulary.load(DATA / "gpt2")


def test_gpt2_ids_are_the_published_ones(gpt2, tmp_path):
    assert gpt2.vocab_size == 50257 and gpt2.special == {"<|endoftext|>": 50256} and not gpt2.published
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode("The quick brown fox jumps over the lazy dog.") == \
        [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290, 13]
    gpt2.save(tmp_path / "tokenizer.json")
    again = vocabulary.load(tmp_path)
    assert again.encode(TEXT) == gpt2.encode(TEXT) and again.decode(again.encode(TEXT)) == TEXT
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "encoder.json").write_bytes((DATA / "gpt2" / "encoder.json").read_bytes())
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nh zz\n", encoding="utf-8")
    with pytest.raises(UserError, match="earlier tokens"):
        vocabulary.load(tmp_path)


def test_gpt2_ids_equal_tiktoken_s_ranks(gpt2):
    """tiktoken's own definition of gpt2, with the ranks out of encoder.json instead of the network."""
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken_ext.openai_public import r50k_pat_str
    back = {char: byte for byte, char in byte_names().items()}
    ids = json.loads((DATA / "gpt2" / "encoder.json").read_text(encoding="utf-8"))
    ranks = {bytes(back[char] for char in token): i for token, i in ids.items() if token != "<|endoftext|>"}
    other = tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks,
                              special_tokens={"<|endoftext|>": 50256}, explicit_n_vocab=50257)
    generator = random.Random(6)
    texts = ["".join(generator.choices("aeiou thersé中文🙂\n\t  1234.,'sll\u3000\u0301<|>", k=60)) for _ in range(2000)]
    texts += ["".join(chr(generator.choice((generator.randrange(0xD800), generator.randrange(0xE000, 0x110000))))
                      for _ in range(30)) for _ in range(2000)]
    texts += [path.read_text(encoding="utf-8") for path in sorted((ROOT / "nanoft").glob("*.py"))]
    for name in ("tinyshakespeare.txt", "chnsenticorp/dev.tsv", "wnut17/wnut17train.conll"):
        if (DATA / name).exists():
            texts.append((DATA / name).read_text(encoding="utf-8"))
    for text in texts:
        expected = other.encode_ordinary(text)
        assert np.array_equal(gpt2.encode_to_numpy(text), expected), text[:60]
    assert gpt2.encode("a<|endoftext|>", allow_special=True) == [64, 50256]
