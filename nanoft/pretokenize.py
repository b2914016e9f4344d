"""Split patterns, which cut a text into chunks before byte-pair encoding, and where a long text may be cut in parts.

Texts are processed in parts of about a million characters, so that a file may be larger than memory and several cores
can share one document. The split patterns are those of GPT-2 (Radford et al. 2019) and GPT-4.
"""

import re
from collections.abc import Iterable, Iterator

import regex  # comes with tiktoken
import tiktoken

from nanoft import UserError

# Contractions, words, numbers, punctuation, white space; gpt4 also keeps numbers short and line ends together.
PATTERNS = {
    "gpt4": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s*[\r\n]|\s+(?!\S)|\s",
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s",
}

# Counting the chunks of two million words with these patterns takes seconds; `re` with a simpler pattern takes a
# quarter of that. So text is first counted in coarse pieces, which end where a chunk ends too, whatever surrounds them,
# and only distinct pieces are split into chunks. Coarse pieces end between a letter or sign and a (horizontal) space,
# and for gpt4 also after the last of several line ends. (`re` counts \x1c-\x1f as white space, the patterns do not.)
COARSE = {
    PATTERNS["gpt4"]: re.compile(r"[^\S\r\n\x1c-\x1f]*[\S\x1c-\x1f]*(?:[^\S\x1c-\x1f]*[\r\n])?"),
    PATTERNS["gpt2"]: re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]*"),
}
# The same ends to search for: cutting a long text after such a match changes no chunk.
SAFE_CUT = {
    PATTERNS["gpt4"]: re.compile(r"[\S\x1c-\x1f](?= )|[\r\n](?=[\S\x1c-\x1f])"),
    PATTERNS["gpt2"]: re.compile(r"[\S\x1c-\x1f](?=[ \n])"),
    "wordpiece": re.compile("[ \n\u4e00-\u9fff]"),
}
BATCH = 2**20  # characters for one worker at a time
LONGEST_RUN = 1024  # letters, spaces or signs without a break: the time to learn or encode a chunk is more than linear
RUNS = regex.compile(r"\p{L}++|\s++|[^\s\p{L}\p{N}]++|\p{N}++")


def check_pattern(pattern: str) -> str:
    """The regular expression that `pattern` names or is. Raises UserError if it cannot be used."""
    if pattern in PATTERNS or pattern in COARSE:
        return PATTERNS.get(pattern, pattern)
    try:
        if regex.compile(pattern).fullmatch(""):
            raise UserError(f"pattern {pattern!r} matches the empty text; every chunk needs a character")
        if not pattern.endswith("|(?s:.)"):
            pattern = f"(?:{pattern})|(?s:.)"  # text that the pattern skips becomes chunks too, and is not lost
        tiktoken.Encoding("check", pat_str=pattern, mergeable_ranks={b"a": 0}, special_tokens={})
    except (regex.error, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        names = " or ".join(PATTERNS)
        raise UserError(f"pattern {pattern!r} is neither {names} nor a regular expression ({error})") from None
    return pattern


def check_text(text: str) -> None:
    """Raise UserError for a str with lone surrogates, which UTF-8 cannot encode."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text has a lone surrogate ({text[error.start]!r}) at character {error.start}; remove it, "
                        "or read the text's file as UTF-8") from None


def cut_safely(text: str | Iterable[str], pattern: str, size: int = BATCH) -> Iterator[str]:
    """A text (str, or an iterable of its consecutive parts) in parts of about `size` characters.

    It is cut only where the split pattern always ends a chunk, so the ids of the parts are those of the whole text.
    With the user's own pattern, for which no such ends are known, the text stays whole.
    """
    rest = ""
    safe = SAFE_CUT.get(pattern)
    for block in [text] if isinstance(text, str) else text:
        rest += block
        start = 0
        while safe and len(rest) - start > size:
            cut = safe.search(rest, start + size - 1)
            if not cut:
                break
            yield rest[start : cut.end()]
            start = cut.end()
        rest = rest[start:]
    if rest:
        yield rest


def cut_runs(text: str) -> list[str]:
    """A text in parts without runs of more than LONGEST_RUN letters, spaces or signs: mostly [text] itself.

    A run is cut at every multiple of that from its first character on, so that the chunks of a text are the same
    whether it comes whole or by cut_safely. Only a run of twice that length is sure to fill one of the blocks that are
    looked at, each up to its first character of another sort, so this costs ordinary text nothing.
    """
    blocks = (text[i:i + LONGEST_RUN] for i in range(0, len(text) - LONGEST_RUN + 1, LONGEST_RUN))
    if not any(block.isalpha() or block.isspace() or RUNS.match(block).end() == LONGEST_RUN for block in blocks):
        return [text]
    parts, begin = [], 0
    for run in RUNS.finditer(text):
        for cut in range(run.start() + LONGEST_RUN, run.end(), LONGEST_RUN):
            parts.append(text[begin:cut])
            begin = cut
    return [*parts, text[begin:]]
