"""Split patterns, which cut a text into chunks before byte-pair encoding, and the places where a long text may be cut.

Texts are processed in parts of about a million characters, so that a file may be larger than memory and several cores
can share one document. The split patterns are those of GPT-2 (Radford et al. 2019) and GPT-4.
"""

import re

import regex  # comes with tiktoken
import tiktoken

from nanoft import UserError

# Contractions, words, numbers, punctuation, white space; gpt4 also keeps numbers short and line ends together.
PATTERNS = {
    "gpt4": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s*[\r\n]|\s+(?!\S)|\s",
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s",
}

# Counting two million words with the patterns above takes seconds; with `re` and a simpler pattern, a quarter. So
# text is counted in coarse pieces, whose ends are also chunk ends for the pattern whatever stands around them,
# and only the distinct pieces are split finely. Coarse pieces end between a letter or sign and a (horizontal) space,
# and for gpt4 after the last line end of a run. (`re` takes \x1c-\x1f for white space, the patterns do not.)
COARSE = {
    PATTERNS["gpt4"]: re.compile(r"[^\S\r\n\x1c-\x1f]*[\S\x1c-\x1f]*(?:[^\S\x1c-\x1f]*[\r\n])?"),
    PATTERNS["gpt2"]: re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]*"),
}
# The same places, as a search: a long text may be cut after such a match without changing any chunk.
SAFE_CUT = {
    PATTERNS["gpt4"]: re.compile(r"[\S\x1c-\x1f](?= )|[\r\n](?=[\S\x1c-\x1f])"),
    PATTERNS["gpt2"]: re.compile(r"[\S\x1c-\x1f](?=[ \n])"),
    "wordpiece": re.compile("[ \n\u4e00-\u9fff]"),
}
BATCH = 2**20  # characters that one worker gets at a time


def check_pattern(pattern):
    """The regular expression that `pattern` names or is. Raises UserError when no engine can use it."""
    if pattern in PATTERNS or pattern in COARSE:
        return PATTERNS.get(pattern, pattern)
    try:
        if regex.compile(pattern).fullmatch(""):
            raise UserError(f"pattern {pattern!r} matches the empty text; every chunk needs a character")
        if not pattern.endswith("|(?s:.)"):
            pattern = f"(?:{pattern})|(?s:.)"  # what the pattern leaves out is a chunk too, or text would be lost
        tiktoken.Encoding("check", pat_str=pattern, mergeable_ranks={b"a": 0}, special_tokens={})
    except (regex.error, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        names = " or ".join(PATTERNS)
        raise UserError(f"pattern {pattern!r} is neither {names} nor a regular expression ({error})") from None
    return pattern


def check_text(text):
    """Raise UserError for a str that is no text: one with lone surrogates, which UTF-8 cannot write."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text has a lone surrogate ({text[error.start]!r}) at character {error.start}; remove it, "
                        "or read the text's file as UTF-8") from None


def cut_safely(text, pattern, size=BATCH):
    """A text (str, or an iterable of its consecutive parts) in parts of about `size` characters.

    The cuts lie where the split pattern has a chunk's end in any case, so encoding the parts gives the ids of the
    whole. Where no such place is known (a pattern of the user's own) the text stays whole.
    """
    rest = ""
    safe = SAFE_CUT.get(pattern)
    for block in [text] if isinstance(text, str) else text:
        rest += block
        start = 0
        while safe and len(rest) - start > size:
            found = safe.search(rest, start + size - 1)
            if not found:
                break
            yield rest[start : found.end()]
            start = found.end()
        rest = rest[start:]
    if rest:
        yield rest


def batches(texts, pattern):
    """The texts, long ones cut, in lists of about a million characters."""
    batch, size = [], 0
    for text in texts:
        for part in cut_safely(text, pattern):
            batch.append(part)
            size += len(part)
            if size >= BATCH:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
