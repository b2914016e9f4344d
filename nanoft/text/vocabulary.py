"""The tokenizer of a folder: nanoft's own, of either kind, or a published vocabulary in its original files.

    tokenizer.json              nanoft's form (bpe.py or wordpiece.py), or Hugging Face's
    vocab.txt                   BERT: a word piece per line, its id the number of the line
    vocab.json, merges.txt      GPT-2 and RoBERTa: {token: id}, and the merges in order (or encoder.json, vocab.bpe)
    tokenizer_config.json       whether BERT's text is lowercased, and the like; may be missing

Ids are the published ones. A nanoft run saves either kind as one tokenizer.json, so these files are read once.
"""

from pathlib import Path

from nanoft import UserError
from nanoft.bpe import Tokenizer
from nanoft.files import read_blocks, read_json
from nanoft.pretokenize import PATTERNS, check_pattern
from nanoft.published import safetensors
from nanoft.tasks.images import PixelTokenizer
from nanoft.text import wordpiece
from nanoft.text.wordpiece import WordPiece

BYTE_LEVEL = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # GPT-2's files have two names
# The split patterns as Hugging Face's `tokenizers` reads them, in whose regular expressions {1,3}+ is not possessive.
PLAIN = {
    PATTERNS["gpt4"]: r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    PATTERNS["gpt2"]: r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
PUBLISHED = ("vocab.txt", *BYTE_LEVEL[0], *BYTE_LEVEL[1])


def load(path: str | Path) -> Tokenizer:
    """The tokenizer of a folder, or of one of the files above. Raises UserError if there is none, or only a part."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    file = folder / "tokenizer.json" if path.is_dir() or path.name in PUBLISHED else path
    content = read_json(file, default=None if file == path else {})
    if path.name not in PUBLISHED and (not isinstance(content, dict) or content and "model" not in content):
        return from_own(content, file)  # nanoft's, perhaps damaged
    options = read_json(folder / "tokenizer_config.json", {str: object}, {})
    if "model" in content:
        return from_hugging_face(content, options, file)
    if (folder / "vocab.txt").exists():
        lines = "".join(read_blocks(folder / "vocab.txt")).removesuffix("\n").split("\n")
        return word_pieces([line.rstrip("\r") for line in lines], options, folder / "vocab.txt")
    for vocab, merges in BYTE_LEVEL:
        if (folder / vocab).exists() and (folder / merges).exists():
            lines = "".join(read_blocks(folder / merges)).splitlines()
            pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
            return byte_level(read_json(folder / vocab), pairs, folder / vocab)
    config = read_json(folder / "config.json", {str: object}, {})
    if str(config.get("model_type") or config.get("architecture")).startswith("vit"):
        return PixelTokenizer()  # type: ignore[return-value]
    raise UserError(f"{folder}: no tokenizer.json there, no vocab.txt, no vocab.json with merges.txt, so no text can "
                    "be read; copy one there from where the model was trained")


def of_checkpoint(path: Path) -> Tokenizer:
    """The tokenizer that belongs to a checkpoint's file: in it, if it is one file for all, else in its folder."""
    text = safetensors.read_metadata(path).get("tokenizer") if path.suffix == ".safetensors" else None
    return load(path.parent) if text is None else from_own(read_json(path, text=text), path)


def from_own(content, path: Path) -> Tokenizer:
    """The tokenizer in the content of nanoft's tokenizer.json; path: of the file, for messages. Raises UserError."""
    if isinstance(content, dict) and content.get("format") == wordpiece.FORMAT:
        return WordPiece.from_content(content, path)
    if content == PixelTokenizer.content:
        return PixelTokenizer()  # type: ignore[return-value]  # nobody asks it to read a text
    if problem := find_problem(content):
        raise UserError(f"{path}: not a nanoft tokenizer file ({problem}); prepare the data set again, or train one "
                        "with python -m nanoft tokenizer")
    return Tokenizer(content["pattern"], content["merges"], content["special_tokens"], content["byte_order"],
                     content.get("ids"))


def word_pieces(tokens: list[str], options: dict, path: Path) -> WordPiece:
    """The tokenizer of these word pieces, in the order of their ids; options as in tokenizer_config.json.

    Without options a vocabulary is taken for uncased if no piece has a capital letter.
    """
    cased = any(token != token.lower() for token in tokens if not (token.startswith("[") and token.endswith("]")))
    lowercase = options.get("do_lower_case", not cased)
    accents = options.get("strip_accents")
    return WordPiece.from_content({
        "version": 1, "lowercase": lowercase, "strip_accents": lowercase if accents is None else accents,
        "split_chinese": options.get("tokenize_chinese_chars", True), "tokens": tokens}, path)


def find_problem(content) -> str:
    """What is wrong with the content of a tokenizer file, in a few words; "" if nothing is."""
    if not isinstance(content, dict) or content.get("format") != "nanoft tokenizer":
        return "the format line is missing"
    if content.get("version") not in (1, 2):
        return f"version {content.get('version')} is not 1 or 2"
    try:
        check_pattern(content["pattern"])
        if sorted(content["byte_order"]) != list(range(256)):
            return "byte_order is not the 256 bytes"
        special = content["special_tokens"]
        if (not {"<|endoftext|>", "</s>"} & set(special) or len(set(special)) != len(special)
                or not all(map(str.encode, special))):
            return "special_tokens are not different texts with <|endoftext|> among them"
        table = [bytes([byte]) for byte in content["byte_order"]]
        for a, b in content["merges"]:
            if not (0 <= a < len(table) and 0 <= b < len(table)):
                return f"merge {len(table) - 256} names a token that comes later"
            table.append(table[a] + table[b])
        if content["version"] == 2 and (
                sorted([*content["ids"], *special.values()]) != list(range(len(content["ids"]) + len(special)))
                or len(content["ids"]) != len(table)):
            return "ids are not 0 to the last, each once"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "" if len(set(table)) == len(table) else "two tokens have the same bytes"


def byte_level(ids: dict[str, int], pairs: list[list[str]], path: Path, pattern: str = "gpt2") -> Tokenizer:
    """The tokenizer of GPT-2's or RoBERTa's files: {token: id}, and the merges. Raises UserError if they do not fit."""
    bytes_, names = byte_names()
    first: list = [ids.get(name) for name in names] if isinstance(ids, dict) else []
    if all(type(i) is int for i in first) and sorted(first) == [*range(256)]:  # nanoft's own order is another
        order = sorted(range(256), key=first.__getitem__)
        bytes_, names = [bytes_[i] for i in order], [names[i] for i in order]
    rank = {name: i for i, name in enumerate(names)}
    merges = []
    for pair in pairs:
        if len(pair) != 2 or pair[0] not in rank or pair[1] not in rank or "".join(pair) in rank:
            raise UserError(f"{path}: {' '.join(pair)!r} of its merges is no merge of earlier tokens; fetch it again")
        merges.append([rank[pair[0]], rank[pair[1]]])
        rank["".join(pair)] = len(rank)
    if not isinstance(ids, dict) or not rank.keys() <= ids.keys():
        raise UserError(f"{path}: its tokens are not those of the merges; give two files of one download")
    ordered = [ids[name] for name in rank]
    special = {name: i for name, i in ids.items() if name not in rank}
    content = {"format": "nanoft tokenizer", "version": 2, "pattern": pattern, "byte_order": bytes_,
               "merges": merges, "special_tokens": special, "ids": ordered}
    if [*ordered, *special.values()] == [*range(len(ids))]:  # as in GPT-2, the order of learning
        content |= {"version": 1, "special_tokens": list(special), "ids": None}
    return from_own(content, path)


def byte_names() -> tuple[list[int], list[str]]:
    """The bytes in GPT-2's order, and the visible character for each: its own if it is visible, else from U+0100 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return visible + hidden, [chr(byte) for byte in visible] + [chr(256 + i) for i in range(len(hidden))]


def byte_level_files(tokenizer: Tokenizer) -> tuple[dict[str, int], list[str]]:
    """The content of GPT-2's or RoBERTa's files for a tokenizer: {token: id}, and the merges as lines."""
    names = dict(zip(*byte_names()))
    visible = ["".join(names[byte] for byte in token) for token in tokenizer.ranks]
    ids = dict(zip(visible, tokenizer.ids.tolist()))
    ids |= {text: tokenizer.special[text] for text in tokenizer.content["special_tokens"]}
    return ids, [f"{visible[a]} {visible[b]}" for a, b in tokenizer.content["merges"]]


def hugging_face(tokenizer: Tokenizer, framed: bool) -> dict:
    """The content of Hugging Face's tokenizer.json for a tokenizer; framed: a text stands between <|cls|> and <|sep|>.

    Unlike in nanoft, a special token's text in a text is that token, and runs of more than 1024 characters are not cut.
    """
    ids, pairs = byte_level_files(tokenizer)
    special = {text: ids.pop(text) for text in tokenizer.content["special_tokens"]}
    added = [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for text, i in special.items()]
    cls, sep = (name if name in special else "<|endoftext|>" for name in ("<|cls|>", "<|sep|>"))
    first, a, middle, b, end = ({kind: {"id": name, "type_id": i}} for kind, name, i in (
        ("SpecialToken", cls, 0), ("Sequence", "A", 0), ("SpecialToken", sep, 0), ("Sequence", "B", 1),
        ("SpecialToken", sep, 1)))
    frame = {"type": "TemplateProcessing", "single": [first, a, middle], "pair": [first, a, middle, b, end],
             "special_tokens": {x: {"id": x, "ids": [tokenizer.special[x]], "tokens": [x]} for x in (cls, sep)}}
    split = {"type": "Split", "pattern": {"Regex": PLAIN.get(tokenizer.pattern, tokenizer.pattern)},
             "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
            "post_processor": frame if framed else None, "decoder": level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                      "vocab": ids, "merges": pairs}}


def from_hugging_face(content: dict, options: dict, path: Path) -> Tokenizer:
    """The tokenizer of Hugging Face's tokenizer.json; options: of tokenizer_config.json, which take precedence.

    Raises UserError for another kind than BERT's, GPT-2's or RoBERTa's; the split pattern may be any.
    """
    try:
        model, normalizer, splitter = content["model"], content["normalizer"] or {}, content["pre_tokenizer"] or {}
        kind = model["type"], normalizer.get("type"), splitter.get("type")
        if kind == ("WordPiece", "BertNormalizer", "BertPreTokenizer") and normalizer["clean_text"]:
            ids = all_ids(content)
            own = {"do_lower_case": normalizer["lowercase"], "strip_accents": normalizer["strip_accents"],
                   "tokenize_chinese_chars": normalizer["handle_chinese_chars"]}
            if sorted(ids.values()) == [*range(len(ids))]:
                return word_pieces(sorted(ids, key=ids.__getitem__), own | options, path)
        pattern = "gpt2"
        if kind == ("BPE", None, "Sequence"):
            split, splitter = splitter["pretokenizers"]
            pattern, levels = split["pattern"]["Regex"], splitter["type"] == "ByteLevel" and not splitter["use_regex"]
            pattern = next((own for own, plain in PLAIN.items() if plain == pattern), pattern)
            kind = ("BPE", None, "ByteLevel" if levels and split["behavior"] == "Isolated" else None)
        elif not splitter.get("use_regex", True):
            kind = ("BPE", None, None)
        if kind == ("BPE", None, "ByteLevel") and not splitter["add_prefix_space"]:
            pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
            return byte_level(all_ids(content), pairs, path, pattern)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a whole tokenizer ({type(error).__name__}: {error}); fetch it again") from None
    raise UserError(f"{path}: a tokenizer of another kind than BERT's, GPT-2's and RoBERTa's; only these can be used")


def all_ids(content: dict) -> dict[str, int]:
    return content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
