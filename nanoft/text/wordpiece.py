"""BERT's tokenizer (arXiv:1810.04805): words and signs, each cut into the longest pieces that a list of pieces has.

A text is cut at white space, around punctuation and around every Chinese character, and loses its control characters;
for an uncased vocabulary it also loses accents and capitals. A word then takes the longest piece that it begins with,
again and again; pieces inside a word are written with ## before them. A word for which no piece is left over, or of
more than 100 characters, is [UNK]. Every rule is that of Hugging Face's `tokenizers`, whose ids and offsets these are.
"""

import functools
import hashlib
import itertools
import json
import operator
import re
import unicodedata

import numpy as np

from nanoft import UserError
from nanoft.files import write_whole
from nanoft.pretokenize import check_text

FORMAT = "nanoft wordpiece"
LONGEST_WORD = 100  # characters
SPECIAL = ("pad", "unk", "cls", "sep", "mask")  # <|pad|> is [PAD] in the list, and so on

# the insides of [...] in regular expressions
WHITE = "\t\n\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
CHINESE = ("\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
           "\U0002b920-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f")
SIGNS = r"!-/:-@\[-`{-~"  # of ASCII
# `tokenizers` knows the signs and marks of Unicode 8, so what came later counts as letters. Python's own tables differ
# from version to version; with this they do not. (Ranges reach over unassigned characters and letters: no difference.)
LATER = re.compile(
    "[\u05c8-\u05c9\u061d\u07fd\u0890-\u08e2\u09fd-\u09fe\u0a76\u0afa-\u0aff\u0b53-\u0b55\u0c04-\u0c3c\u0c77\u0c84"
    "\u0d00\u0d3b-\u0d3c\u0d81\u0eba\u0ece\u180f-\u1886\u1abf-\u1af0\u1b4e-\u1b4f\u1b7d-\u1b7f\u1df6-\u1dfb"
    "\u2e43-\u2e63\ua82c\ua8c5\ua8ff\ua9bd\U00010d24-\U00010f89\U00011070-\U00011074\U000110c2-\U000110cd\U000111cf"
    "\U0001123e-\U00011241\U0001133b\U000113bb-\U0001145e\U00011660-\U0001166c\U000116b9\U0001182f-\U00011fff"
    "\U00012ff1-\U0001612f\U00016d6d-\U00016f4f\U00016fe2-\U00016fe4\U0001cf00-\U0001d128\U0001d25b-\U0001d25c"
    "\U0001e000-\U0001e6f5\U0001e944-\U0001e95f]")
MOVED = {"\u166d": "Po", "\u1734": "Mn", "\U000111c9": "Po", "\U0001171e": "Mn"}  # what they were then
MOVED |= dict.fromkeys("$+<=>^`|~", "P")  # no punctuation to Unicode, but to BERT
# Marks whose order among others it does not know: for these its tables are of Unicode 9.
UNORDERED = re.compile(
    "(?![\u08d4-\u08e1\u1dfb\U00011442\U00011446\U00011c3f\U0001e000-\U0001e02a\U0001e944-\U0001e94a])"
    f"{LATER.pattern}|[\u1715\U00016ff0\U00016ff1]")


class WordPiece:
    """A list of pieces and how text is prepared for it: the counterpart of nanoft.bpe.Tokenizer.

    vocab_size: number of ids, which are places in the list. special: {text: id}, each token by nanoft's name and by its
    own; <|endoftext|> is [SEP]. is_special: bool (vocabulary,). fingerprint: 32 hexadecimal digits, equal for equal
    content. token_bytes: id -> bytes of text, a word's with the space before it. separators: how many <|sep|> stand
    between two texts. published: models of this vocabulary know texts between <|cls|> and <|sep|> only.
    """

    separators, published, pattern = 1, True, "wordpiece"

    def __init__(self, tokens, lowercase, strip_accents, split_chinese=True):
        self.content = {"format": FORMAT, "version": 1, "lowercase": lowercase, "strip_accents": strip_accents,
                        "split_chinese": split_chinese, "tokens": list(tokens)}
        self.lowercase, self.strip_accents = lowercase, strip_accents
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.vocab_size, self.longest_piece = len(tokens), max(map(len, tokens))
        self.special = {"<|endoftext|>": self.ids["[SEP]"]}
        for name in SPECIAL:
            self.special[f"<|{name}|>"] = self.special[f"[{name.upper()}]"] = self.ids[f"[{name.upper()}]"]
        self.is_special = np.isin(np.arange(self.vocab_size), list(self.special.values()))
        self.continues = np.array([token.startswith("##") for token in tokens])
        self.token_bytes = [(token[2:] if token.startswith("##") else f" {token}").encode() for token in tokens]
        self.fingerprint = hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()[:32]
        alone = SIGNS + (CHINESE if split_chinese else "")
        self.runs = re.compile(f"[{alone}]|[^{alone}{WHITE}]+")  # what can be cut into pieces by itself
        self.special_texts = re.compile(f"({'|'.join(map(re.escape, self.special))})")
        self.pieces = functools.lru_cache(2**17)(self.cut)  # texts repeat their words

    def encode(self, text, allow_special=False):
        """Text to a list of ids. `[MASK]` or `<|mask|>` in a text is plain text unless allow_special.

        Raises UserError for lone surrogates, which are no text.
        """
        check_text(text)
        if allow_special and (parts := self.special_texts.split(text))[1:]:
            return [i for n, part in enumerate(parts)
                    for i in ([self.special[part]] if n % 2 else self.encode(part))]
        found = map(operator.itemgetter(0), map(self.pieces, self.runs.findall(text)))
        return list(itertools.chain.from_iterable(found))

    def encode_to_numpy(self, text):
        """As encode(text), to an array of uint32."""
        return np.array(self.encode(text), dtype=np.uint32)

    def encode_with_offsets(self, text):
        """The ids of a text (T,), the first character that each token covers (T,), and the one after its last (T,)."""
        check_text(text)
        ids, first, end = [], [], []
        for run in self.runs.finditer(text):
            found, begins, ends = self.pieces(run.group())
            start = run.start()
            ids += found
            first += [start + i for i in begins]
            end += [start + i for i in ends]
        return np.array(ids, dtype=np.uint32), np.array(first, dtype=np.int64), np.array(end, dtype=np.int64)

    def cut(self, run):
        """The pieces of a run of characters without white space: ids, first characters, ends, each a tuple."""
        if run.isascii() and run.isprintable():
            text, places = run.lower() if self.lowercase else run, range(len(run))
        else:
            text, places = self.normalize(run)
        ids, first, end = [], [], []
        for start, stop in words(text):
            for i, a, b in self.longest_pieces(text[start:stop]):
                ids.append(i)
                first.append(places[start + a])
                end.append(places[start + b - 1] + 1)
        return tuple(ids), tuple(first), tuple(end)

    def normalize(self, run):
        """The run as the list of pieces has it, and of each character the place in the run that it comes from."""
        chars = [(char, i) for i, char in enumerate(run) if char != "\ufffd" and category(char)[0] != "C"
                 or category(char) == "Cn"]
        if self.strip_accents:
            chars = [(char, i) for char, i in decomposed(chars) if category(char) != "Mn"]
        if self.lowercase:  # a character at a time: a sigma at a word's end is no other letter
            chars = [(small, i) for char, i in chars for small in char.lower()]
        return "".join(char for char, _ in chars), [i for _, i in chars]

    def longest_pieces(self, word):
        """[(id, first character, end)] of a word: the longest piece from the left each time, or [UNK] for all."""
        found, start = [], 0
        while start < len(word) <= LONGEST_WORD:
            for end in range(min(len(word), start + self.longest_piece), start, -1):
                i = self.ids.get("##" * (start > 0) + word[start:end])
                if i is not None:
                    break
            else:
                found = []
                break
            found.append((i, start, end))
            start = end
        return found or [(self.ids["[UNK]"], 0, len(word))]

    def decode_bytes(self, ids):
        return b"".join([self.token_bytes[i] for i in ids])

    def decode(self, ids):
        """Ids to text, with one space before each word and sign: what stood between them is not kept."""
        return self.decode_bytes(ids).decode().removeprefix(" ")

    def chunk_starts(self, ids):
        """Which tokens begin a word: (T,) ids -> (T,) bool. Special tokens, and the tokens after them, do."""
        ids = np.asarray(ids, dtype=np.int64)
        after = np.append(True, self.is_special[ids[:-1]])[:len(ids)]
        return ~self.continues[ids] | after

    def save(self, path):
        """Write tokenizer.json, whole or not at all."""
        text = json.dumps(self.content, ensure_ascii=False, separators=(",", ":")) + "\n"
        write_whole(path, lambda file: file.write(text.encode("utf-8")))

    @classmethod
    def from_content(cls, content, path):
        """The tokenizer that a tokenizer.json of kind FORMAT holds. Raises UserError when it is not a whole one."""
        problem = find_problem(content)
        if problem:
            raise UserError(f"{path}: not a whole list of word pieces ({problem}); fetch or prepare it again")
        return cls(content["tokens"], content["lowercase"], content["strip_accents"], content["split_chinese"])


def find_problem(content):
    """What is wrong with the content of a tokenizer file, in a few words; "" when nothing is."""
    if content.get("version") != 1:
        return f"version {content.get('version')} is not 1"
    for name in ("lowercase", "strip_accents", "split_chinese"):
        if type(content.get(name)) is not bool:
            return f"{name} is not true or false"
    tokens = content.get("tokens")
    if type(tokens) is not list or not all(type(token) is str for token in tokens):
        return "tokens are not a list of texts"
    missing = [f"[{name.upper()}]" for name in SPECIAL if f"[{name.upper()}]" not in tokens]
    return f"it lacks {' '.join(missing)}" if missing else ""


@functools.cache
def category(char):
    """The two letters of a character's general category, as `tokenizers` has it."""
    return MOVED.get(char) or ("Lo" if LATER.match(char) else unicodedata.category(char))


def words(text):
    """(first, end) of the words and signs of a text without white space."""
    bounds = [0]
    for i, char in enumerate(text):
        if category(char)[0] == "P":
            bounds += (i, i + 1)
    return [(a, b) for a, b in itertools.pairwise([*bounds, len(text)]) if a < b]


def decomposed(chars):
    """The canonical decomposition (NFD) of (character, place) pairs.

    Where marks change their order, places do not: only how many characters came from each goes with them.
    """
    parts, group = [], 0
    for char, _ in chars:
        for nth, part in enumerate(char if LATER.match(char) else unicodedata.normalize("NFD", char)):
            mark = 0 if UNORDERED.match(part) else unicodedata.combining(part)
            group += mark == 0  # marks are sorted behind the character that they are on
            parts.append((group, mark, part, nth == 0))
    parts.sort(key=lambda part: part[:2])
    at = itertools.accumulate(is_first for *_, is_first in parts)
    return [(part, chars[i - 1][1]) for (_, _, part, _), i in zip(parts, at)]
