"""BERT's WordPiece tokenizer (arXiv:1810.04805): words and punctuation, cut into the longest pieces of a vocabulary.

A text is cut at white space, around punctuation and around every Chinese character, and loses its control characters;
for an uncased vocabulary it is also lowercased and loses its accents. From each word the longest piece that it begins
with is cut off, again and again; pieces inside a word are written with ## before them. A word with a rest that begins
with no piece, or of more than 100 characters, is [UNK]. Ids and offsets are those of Hugging Face's `tokenizers`.
"""

import functools
import itertools
import operator
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from nanoft import UserError
from nanoft.bpe import Tokenizer
from nanoft.files import difference
from nanoft.pretokenize import check_text

FORMAT = "nanoft wordpiece"
LONGEST_WORD = 100  # characters
SPECIAL = ("pad", "unk", "cls", "sep", "mask")  # <|pad|> is [PAD] in the vocabulary, and so on

# for the inside of [...] in regular expressions
WHITE = "\t\n\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
CHINESE = ("\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
           "\U0002b920-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f")
SIGNS = r"!-/:-@\[-`{-~"  # ASCII's punctuation
# `tokenizers` has the punctuation and marks of Unicode 8; later ones count as letters. Python's tables are of a later
# Unicode, which differs from version to version. (The ranges include unassigned characters and letters: no difference.)
LATER = re.compile(
    "[\u05c8-\u05c9\u061d\u07fd\u0890-\u08e2\u09fd-\u09fe\u0a76\u0afa-\u0aff\u0b53-\u0b55\u0c04-\u0c3c\u0c77\u0c84"
    "\u0d00\u0d3b-\u0d3c\u0d81\u0eba\u0ece\u180f-\u1886\u1abf-\u1af0\u1b4e-\u1b4f\u1b7d-\u1b7f\u1df6-\u1dfb"
    "\u2e43-\u2e63\ua82c\ua8c5\ua8ff\ua9bd\U00010d24-\U00010f89\U00011070-\U00011074\U000110c2-\U000110cd\U000111cf"
    "\U0001123e-\U00011241\U0001133b\U000113bb-\U0001145e\U00011660-\U0001166c\U000116b9\U0001182f-\U00011fff"
    "\U00012ff1-\U0001612f\U00016d6d-\U00016f4f\U00016fe2-\U00016fe4\U0001cf00-\U0001d128\U0001d25b-\U0001d25c"
    "\U0001e000-\U0001e6f5\U0001e944-\U0001e95f]")
MOVED = {"\u166d": "Po", "\u1734": "Mn", "\U000111c9": "Po", "\U0001171e": "Mn"}  # their categories in Unicode 8
MOVED |= dict.fromkeys("$+<=>^`|~", "P")  # punctuation for BERT, though not for Unicode
# Marks without an order among others, for which `tokenizers` has the tables of Unicode 9.
UNORDERED = re.compile(
    "(?![\u08d4-\u08e1\u1dfb\U00011442\U00011446\U00011c3f\U0001e000-\U0001e02a\U0001e944-\U0001e94a])"
    f"{LATER.pattern}|[\u1715\U00016ff0\U00016ff1]")


class WordPiece(Tokenizer):
    """A vocabulary of pieces and how text is normalized for it.

    special has each token by nanoft's name and BERT's; <|endoftext|> is [SEP]. token_bytes have a space before the
    first piece of a word.
    """

    separators, published, pattern = 1, True, "wordpiece"

    def __init__(self, tokens: Sequence[str], lowercase: bool, strip_accents: bool, split_chinese: bool = True):
        self.content: dict = {"format": FORMAT, "version": 1, "lowercase": lowercase, "strip_accents": strip_accents,
                              "split_chinese": split_chinese, "tokens": list(tokens)}
        self.lowercase, self.strip_accents = lowercase, strip_accents
        self.piece_ids = {token: i for i, token in enumerate(tokens)}
        self.vocab_size, self.longest_piece = len(tokens), max(map(len, tokens))
        self.special = {"<|endoftext|>": self.piece_ids["[SEP]"]}
        for name in SPECIAL:
            self.special[f"<|{name}|>"] = self.special[f"[{name.upper()}]"] = self.piece_ids[f"[{name.upper()}]"]
        self.is_special = np.isin(np.arange(self.vocab_size), list(self.special.values()))
        self.continues = np.array([token.startswith("##") for token in tokens])
        self.token_bytes = [(token[2:] if token.startswith("##") else f" {token}").encode() for token in tokens]
        alone = SIGNS + (CHINESE if split_chinese else "")
        self.runs = re.compile(f"[{alone}]|[^{alone}{WHITE}]+")  # each can be cut into pieces by itself
        self.special_texts = re.compile(f"({'|'.join(map(re.escape, self.special))})")
        self.pieces = functools.lru_cache(2**17)(self.cut)  # texts repeat their words

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Text to ids. `[MASK]`, `<|mask|>`: plain text unless allow_special. Raises UserError for lone surrogates."""
        check_text(text)
        if allow_special and (parts := self.special_texts.split(text))[1:]:
            return [i for n, part in enumerate(parts)
                    for i in ([self.special[part]] if n % 2 else self.encode(part))]
        ids = map(operator.itemgetter(0), map(self.pieces, self.runs.findall(text)))
        return list(itertools.chain.from_iterable(ids))

    def encode_to_numpy(self, text: str, allow_special: bool = False) -> np.ndarray:
        return np.array(self.encode(text, allow_special), dtype=np.uint32)

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ids of a text, and the start and end of each token in it, in characters: three arrays (T,)."""
        check_text(text)
        ids, starts, ends = [], [], []
        for run in self.runs.finditer(text):
            run_ids, run_starts, run_ends = self.pieces(run.group())
            ids += run_ids
            starts += [run.start() + i for i in run_starts]
            ends += [run.start() + i for i in run_ends]
        return np.array(ids, dtype=np.uint32), np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)

    def cut(self, run: str) -> tuple[tuple[int, ...], ...]:
        """The pieces of a run of characters without white space: their ids, starts and ends."""
        if run.isascii() and run.isprintable():
            text, position = run.lower() if self.lowercase else run, range(len(run))
        else:
            text, position = self.normalize(run)
        ids, starts, ends = [], [], []
        for start, end in words(text):
            for i, a, b in self.longest_pieces(text[start:end]):
                ids.append(i)
                starts.append(position[start + a])
                ends.append(position[start + b - 1] + 1)
        return tuple(ids), tuple(starts), tuple(ends)

    def normalize(self, run: str) -> tuple[str, Sequence[int]]:
        """The run as the vocabulary has it, and the position in the run from which each character comes."""
        chars = [(char, i) for i, char in enumerate(run) if char != "\ufffd" and category(char)[0] != "C"
                 or category(char) == "Cn"]
        if self.strip_accents:
            chars = [(char, i) for char, i in decomposed(chars) if category(char) != "Mn"]
        if self.lowercase:  # one character at a time, so that a sigma at the end of a word becomes no other letter
            chars = [(small, i) for char, i in chars for small in char.lower()]
        return "".join(char for char, _ in chars), [i for _, i in chars]

    def longest_pieces(self, word: str) -> list[tuple[int, int, int]]:
        """(id, start, end) of the pieces of a word, the longest from the left each time, or [UNK] for the whole."""
        pieces, start = [], 0
        while start < len(word) <= LONGEST_WORD:
            for end in range(min(len(word), start + self.longest_piece), start, -1):
                i = self.piece_ids.get("##" * (start > 0) + word[start:end])
                if i is not None:
                    break
            else:
                pieces = []
                break
            pieces.append((i, start, end))
            start = end
        return pieces or [(self.piece_ids["[UNK]"], 0, len(word))]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text, with one space between words and punctuation: the original white space is lost."""
        return self.decode_bytes(ids).decode().removeprefix(" ")

    def chunk_starts(self, ids: Sequence[int]) -> np.ndarray:
        """Which tokens begin a word: ids (T,) -> bool (T,). Special tokens, and the tokens after them, do."""
        ids = np.asarray(ids, dtype=np.int64)
        return ~self.continues[ids] | np.append(True, self.is_special[ids[:-1]])[:len(ids)]

    @classmethod
    def from_content(cls, content: dict, path) -> "WordPiece":
        """The tokenizer in the content of a tokenizer.json; path: of the file, for messages. Raises UserError."""
        if problem := find_problem(content):
            raise UserError(f"{path}: not a whole list of word pieces ({problem}); fetch or prepare it again")
        return cls(content["tokens"], content["lowercase"], content["strip_accents"], content["split_chinese"])


def find_problem(content: dict) -> str:
    """What is wrong with the content of a tokenizer file, in a few words; "" if nothing is."""
    if content.get("version") != 1:
        return f"version {content.get('version')} is not 1"
    if problem := difference(content, {"lowercase": bool, "strip_accents": bool, "split_chinese": bool,
                                       "tokens": [str]}):
        return problem
    if re.search(r"[\ud800-\udfff]", "".join(content["tokens"])):
        return "a token has half of a character"
    missing = [f"[{name.upper()}]" for name in SPECIAL if f"[{name.upper()}]" not in content["tokens"]]
    return f"it lacks {' '.join(missing)}" if missing else ""


@functools.cache
def category(char: str) -> str:
    """A character's general category (two letters, such as Po) in `tokenizers`."""
    return MOVED.get(char) or ("Lo" if LATER.match(char) else unicodedata.category(char))


def words(text: str) -> list[tuple[int, int]]:
    """(start, end) of the words and punctuation marks of a text without white space."""
    bounds = [0]
    for i, char in enumerate(text):
        if category(char)[0] == "P":
            bounds += (i, i + 1)
    return [(a, b) for a, b in itertools.pairwise([*bounds, len(text)]) if a < b]


def decomposed(chars: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The canonical decomposition (NFD) of (character, position) pairs.

    As in `tokenizers`, marks that change their order leave the order of positions as it was.
    """
    parts, group = [], 0
    for char, _ in chars:
        for nth, part in enumerate(char if LATER.match(char) else unicodedata.normalize("NFD", char)):
            mark = 0 if UNORDERED.match(part) else unicodedata.combining(part)
            group += mark == 0  # marks are sorted after the character to which they belong
            parts.append((group, mark, part, nth == 0))
    parts.sort(key=lambda part: part[:2])
    number = itertools.accumulate(is_first for *_, is_first in parts)
    return [(part, chars[i - 1][1]) for (_, _, part, _), i in zip(parts, number)]
