"""Rows of a task as features: token ids that fit the model, with their targets.

    classify, regress   <|cls|> text <|sep|>
    pair                <|cls|> text <|sep|> pair <|sep|>      (regress with a second text, too)
    tag                 <|cls|> words <|sep|>, each word with a space before it
    answer              <|cls|> question <|sep|> a window of the context <|sep|>
    generate            prompt, line end, response, <|endoftext|>

RoBERTa has two <|sep|> between two texts. A row gives one feature, or several where it is too long. The task's fields
kind, labels, max_length, long_text and doc_stride decide how.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nanoft.batches import IGNORE
from nanoft.files import available_cores
from nanoft.tasks import images

WHOLE_TEXT = ("classify", "pair", "regress")  # the kinds that ask one thing of all the text
LINEAR = (*WHOLE_TEXT, "tag")  # the kinds for which there is a linear model of n-grams
TWO_TEXTS = ("pair", "regress", "answer")  # the kinds that have token types: 0 for the first text, 1 for the second
MAX_QUESTION = 64  # tokens; the rest of a longer question is cut off


class Feature(NamedTuple):
    ids: np.ndarray            # (T,)
    second: int                # position where the second text begins, T if there is none
    target: object             # a number; (K,) for multi-label; (T,) for tag and generate; (start, end) for answer
    context_start: int = 0     # answer: number of the context's token at `second`
    max_context: tuple = (0, 0)  # answer: start and end of the positions where an answer of this feature may begin


@dataclass
class Encoded:
    """The N features of a split in the order of their rows, in a few flat arrays instead of many small ones."""
    ids: np.ndarray            # (tokens,) of all features, back to back
    begin: np.ndarray          # (N + 1,) feature i is ids[begin[i]:begin[i + 1]]
    row: np.ndarray            # (N,) number of the row that a feature is of
    second: np.ndarray         # (N,)
    targets: np.ndarray        # (N,), (N, K) or (N, 2); for tag and generate (tokens,), IGNORE where there is no target
    context_start: np.ndarray  # (N,)
    max_context: np.ndarray    # (N, 2)
    n_tokens: np.ndarray       # (rows,) tokens of each row before anything is cut
    offsets: list              # answer: (start, end) of each row, the characters of the context's tokens, each (n,)
    teacher: np.ndarray | None = None  # (N, K) outputs of a teacher, of which a student learns

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.begin)

    def __len__(self):
        return len(self.row)


def encode(rows: list[dict], task: dict, tokenizer) -> Encoded:
    """The features of rows in the form of examples.py; rows to predict need no labels. Of pictures images.Pictures."""
    kind = task["kind"]
    if kind == "image":
        return images.encode(rows, task)  # type: ignore[return-value]  # what is asked of Encoded it has, too
    make = {"tag": tag_features, "answer": answer_features, "generate": generate_features}.get(kind, text_features)
    features_of_rows, n_tokens, offsets = zip(*make(rows, task, tokenizer))
    features = [feature for of_row in features_of_rows for feature in of_row]
    targets = [feature.target for feature in features]
    number_type = np.float32 if kind == "regress" or task.get("multi_label") else np.int64
    return Encoded(
        ids=np.concatenate([feature.ids for feature in features]).astype(np.uint32),
        begin=np.cumsum([0] + [len(feature.ids) for feature in features]),
        row=np.repeat(np.arange(len(rows)), [len(of_row) for of_row in features_of_rows]),
        second=np.array([feature.second for feature in features]),
        targets=np.concatenate(targets) if kind in ("tag", "generate") else np.array(targets, dtype=number_type),
        context_start=np.array([feature.context_start for feature in features]),
        max_context=np.array([feature.max_context for feature in features]),
        n_tokens=np.array(n_tokens), offsets=list(offsets))


def encode_all(texts: Iterable[str], encode: Callable) -> dict:
    """{text: encode(text)}, each distinct text once, on all cores."""
    distinct = list(dict.fromkeys(texts))
    chunks = [distinct[i:i + 256] for i in range(0, len(distinct), 256)]
    with ThreadPoolExecutor(available_cores()) as pool:  # the tokenizer releases Python's lock while it works
        encoded = list(pool.map(lambda chunk: [encode(text) for text in chunk], chunks))
    return dict(zip(distinct, (ids for chunk in encoded for ids in chunk)))


def special_ids(tokenizer) -> tuple[list, list, list]:
    """The ids of <|cls|>, of <|sep|> at the end and between two texts: one id each, or RoBERTa's two between texts.

    A vocabulary without them (GPT-2's) has <|endoftext|> for both.
    """
    cls, sep = (tokenizer.special.get(name, tokenizer.special["<|endoftext|>"]) for name in ("<|cls|>", "<|sep|>"))
    return [cls], [sep], [sep] * tokenizer.separators


# ---- the features of each kind: a generator of (features, n_tokens, offsets) for each row --------------------------


def text_features(rows, task, tokenizer):
    """classify, pair and regress. Two texts that are too long together: the longer one is cut, or both to half."""
    cls, sep, between = special_ids(tokenizer)
    space = " " * task.get("leading_space", False)  # so that the first word has the same token as elsewhere
    ids = encode_all((row[name] for row in rows for name in ("text", "pair") if name in row),
                     lambda text: tokenizer.encode_to_numpy(space + text))
    number = {label: i for i, label in enumerate(task.get("labels", ()))}
    for row in rows:
        if task.get("multi_label"):
            target = np.isin(task["labels"], row.get("labels", []))
        elif task["kind"] == "regress":
            target = (row.get("label", 0) - task["mean"]) / task["deviation"]
        else:
            target = number.get(row.get("label"), 0)
        first = ids[row["text"]]
        if "pair" not in row:
            parts = truncate(first, task["max_length"] - 2, task)
            yield ([Feature(np.concatenate((cls, part, sep)), len(part) + 2, target) for part in parts],
                   len(first) + 2, None)
            continue
        second = ids[row["pair"]]
        n_tokens = len(first) + len(second) + 2 + len(between)
        room = task["max_length"] - 2 - len(between)
        room_first = min(len(first), max(room // 2, room - len(second)))
        (first,), (second,) = truncate(first, room_first, task), truncate(second, room - room_first, task)
        yield ([Feature(np.concatenate((cls, first, between, second, sep)), 1 + room_first + len(between), target)],
               n_tokens, None)


def truncate(ids: np.ndarray, room: int, task: dict) -> list[np.ndarray]:
    """What is left of a text of more than `room` tokens by the task's long_text: one part, or several windows."""
    if len(ids) <= room:
        return [ids]
    if task["long_text"] == "windows":
        return [ids[i:i + room] for i in window_starts(len(ids), room, task["doc_stride"])]
    head = {"head": room, "tail": 0, "head_tail": room // 4}[task["long_text"]]  # 128 of 512, as in arXiv:1905.05583
    return [np.concatenate((ids[:head], ids[len(ids) - (room - head):]))]


def window_starts(n: int, room: int, stride: int) -> np.ndarray:
    """Where windows of `room` tokens start so that they cover n tokens; the last one ends with them."""
    return np.append(np.arange(0, n - room, min(stride, room)), n - room) if n > room else np.zeros(1, dtype=np.int64)


def tag_features(rows, task, tokenizer):
    """A word's target stands at its first token, or for pool=last (a GPT, which sees no further) at its last one.

    A row that is too long is split between words, so that every word has its target. Rows to predict may lack tags:
    then the first label stands at each word. A word without tokens (BERT's vocabulary drops accents) is <|unk|>.
    """
    cls, sep, _ = special_ids(tokenizer)
    ids = encode_all((f" {word}" for row in rows for word in row["words"]), tokenizer.encode_to_numpy)
    ids = {word: tokens if len(tokens) else np.array([tokenizer.special["<|unk|>"]]) for word, tokens in ids.items()}
    number = {label: i for i, label in enumerate(task["labels"])}
    room = task["max_length"] - 2
    for row in rows:
        words = [ids[f" {word}"][:room] for word in row["words"]]
        tags = row.get("tags") or [task["labels"][0]] * len(words)
        features = []
        for first, end in split_words([len(word) for word in words], room):
            bounds = np.cumsum([1, *map(len, words[first:end])])  # positions, after <|cls|>
            target = np.full(bounds[-1] + 1, IGNORE)
            target[bounds[1:] - 1 if task["pool"] == "last" else bounds[:-1]] = [
                number.get(tag, 0) for tag in tags[first:end]]
            features.append(Feature(np.concatenate((cls, *words[first:end], sep)), len(target), target))
        yield features, sum(map(len, words)) + 2, None


def split_words(lengths: list[int], room: int) -> list[tuple[int, int]]:
    """(first word, end) of consecutive parts with at most `room` tokens, as long as possible. No length is above it."""
    starts, used = [0], 0
    for i, length in enumerate(lengths):
        if used + length > room:
            starts.append(i)
            used = 0
        used += length
    return list(zip(starts, [*starts[1:], len(lengths)]))


def answer_features(rows, task, tokenizer):
    """Overlapping windows of the context after the question; the target of a window without the answer is <|cls|>.

    An answer may begin at a token only in the window with the most context on both sides of the token, the "max
    context" of BERT's code for SQuAD (arXiv:1810.04805).
    """
    cls, sep, between = special_ids(tokenizer)
    questions = encode_all((row["question"] for row in rows), tokenizer.encode_to_numpy)
    contexts = encode_all((row["context"] for row in rows), tokenizer.encode_with_offsets)
    for row in rows:
        context, char_start, char_end = contexts[row["context"]]
        question = questions[row["question"]][:min(MAX_QUESTION, task["max_length"] // 2 - 2)]
        first = last = -1  # tokens of the answer
        if row.get("answers"):
            answer = row["answers"][0]
            first = np.searchsorted(char_end, answer["start"], side="right")
            last = np.searchsorted(char_start, answer["start"] + len(answer["text"])) - 1
        n, second = len(context), 1 + len(question) + len(between)
        room = task["max_length"] - second - 1
        starts = window_starts(n, room, task["doc_stride"])
        ends = np.minimum(starts + room, n)
        token = np.arange(n)
        margin = np.minimum(token - starts[:, None], ends[:, None] - 1 - token)  # (windows, n) on the shorter side
        best_window = margin.argmax(axis=0)  # (n,)
        features = []
        for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist())):
            own = np.flatnonzero(best_window == number)
            own_start, own_end = (int(own[0]), int(own[-1]) + 1) if len(own) else (start, start)
            shift = second - start  # from a token of the context to its position
            target = (first + shift, last + shift) if start <= first <= last < end else (0, 0)
            features.append(Feature(np.concatenate((cls, question, between, context[start:end], sep)), second, target,
                                    start, (own_start + shift, own_end + shift)))
        yield features, n + second + 1, (char_start, char_end)


def generate_features(rows, task, tokenizer):
    """The target of each token is the next token if that is of the response or <|endoftext|>, else IGNORE.

    A row that is too long loses the beginning of its prompt, then the end of its response.
    """
    ids = encode_all((text for row in rows for text in (prompt_text(row["prompt"]), row["response"])),
                     tokenizer.encode_to_numpy)
    for row in rows:
        prompt = ids[prompt_text(row["prompt"])]
        response = np.append(ids[row["response"]], tokenizer.special["<|endoftext|>"])
        n_tokens = len(prompt) + len(response) - 1
        response = response[:task["max_length"]]
        prompt = prompt[len(prompt) - min(len(prompt), task["max_length"] + 1 - len(response)):]
        both = np.concatenate((prompt, response)).astype(np.int64)
        target = np.where(np.arange(1, len(both)) < len(prompt), IGNORE, both[1:])
        yield [Feature(both[:-1], len(both) - 1, target)], n_tokens, None


def prompt_text(prompt: str) -> str:
    """A prompt as the model sees it: ended by a line end, after which the response begins."""
    return prompt.rstrip() + "\n"
