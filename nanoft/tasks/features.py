"""Rows of a task as pieces of token ids, and batches of them.

    classify, regress   <|cls|> text <|sep|>
    pair                <|cls|> text <|sep|> pair <|sep|>      (regress with a second text, too)
    tag                 <|cls|> words <|sep|>, each word with a space before it
    answer              <|cls|> question <|sep|> a window of the context <|sep|>
    generate            prompt, end of line, response, <|endoftext|>

Between two texts a RoBERTa has two <|sep|>. A row gives one piece, or several where it is too long. A split lies in a
few flat arrays, not in a list of lists. What encoding needs to know stands in the task: kind, labels, max_length,
long_text, doc_stride.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nanoft.batches import IGNORE
from nanoft.files import available_cores

TWO_TEXTS = ("pair", "regress", "answer")  # the kinds that have types: 0 for the first text, 1 for the second
LONGEST_QUESTION = 64  # tokens; of a longer question the rest is left out


class Piece(NamedTuple):
    row: int                 # number of its row
    ids: np.ndarray          # (T,)
    second: int              # place where its second text begins, T if it has none
    target: object           # a number; (K,) for multi-label; (T,) for tag and generate; (start, end) for answer
    context: int = 0         # answer: number of the context's token at `second`
    own: tuple = (0, 0)      # answer: places first, end where an answer may begin in this piece


@dataclass
class Encoded:
    """The pieces of a split, N of them, in the order of their rows."""
    ids: np.ndarray          # (tokens,) of all pieces, back to back
    begin: np.ndarray        # (N + 1,) where each piece begins in them, and the end
    row: np.ndarray          # (N,)
    second: np.ndarray       # (N,)
    targets: np.ndarray      # (N,), (N, K) or (N, 2); for tag and generate (tokens,), IGNORE where nothing is asked
    context: np.ndarray      # (N,)
    own: np.ndarray          # (N, 2)
    full: np.ndarray         # (rows,) tokens of each row before anything is cut
    places: list             # answer, for each row: the first character of each token of the context, and the one after

    @property
    def lengths(self):
        return np.diff(self.begin)

    def __len__(self):
        return len(self.row)


def encode(rows, task, tokenizer):
    """The rows as pieces. Rows to predict need no labels."""
    kind, places = task["kind"], []
    if kind == "tag":
        pieces, full = tag_pieces(rows, task, tokenizer)
    elif kind == "answer":
        pieces, full, places = answer_pieces(rows, task, tokenizer)
    elif kind == "generate":
        pieces, full = generate_pieces(rows, task, tokenizer)
    else:
        pieces, full = text_pieces(rows, task, tokenizer)
    targets = [piece.target for piece in pieces]
    by_token = kind in ("tag", "generate")
    number_type = np.float32 if kind == "regress" or task.get("multi_label") else np.int64
    return Encoded(
        ids=np.concatenate([piece.ids for piece in pieces]).astype(np.uint32),
        begin=np.cumsum([0] + [len(piece.ids) for piece in pieces]),
        row=np.array([piece.row for piece in pieces]),
        second=np.array([piece.second for piece in pieces]),
        targets=np.concatenate(targets) if by_token else np.array(targets, dtype=number_type),
        context=np.array([piece.context for piece in pieces]),
        own=np.array([piece.own for piece in pieces]),
        full=np.array(full), places=places)


def encode_all(texts, encode):
    """{text: encode(text)}, each different text once, by all cores."""
    different = list(dict.fromkeys(texts))
    parts = [different[i:i + 256] for i in range(0, len(different), 256)]
    with ThreadPoolExecutor(available_cores()) as pool:  # the engine leaves Python's lock while it works
        done = list(pool.map(lambda part: [encode(text) for text in part], parts))
    return dict(zip(different, (found for part in done for found in part)))


def brackets(tokenizer):
    """The ids of <|cls|>, of <|sep|> at the end and of those between two texts: (1,), (1,), (1,) or RoBERTa's (2,).

    A vocabulary without them (GPT-2's) has <|endoftext|> for both.
    """
    cls, sep = (tokenizer.special.get(name, tokenizer.special["<|endoftext|>"]) for name in ("<|cls|>", "<|sep|>"))
    return [cls], [sep], [sep] * tokenizer.separators


def text_pieces(rows, task, tokenizer):
    cls, sep, between = brackets(tokenizer)
    ids = encode_all([row[name] for row in rows for name in ("text", "pair") if name in row],
                     tokenizer.encode_to_numpy)
    number = {label: i for i, label in enumerate(task.get("labels", ()))}
    pieces, full = [], []
    for i, row in enumerate(rows):
        if task.get("multi_label"):
            target = np.isin(task["labels"], row.get("labels", []))
        elif task["kind"] == "regress":
            target = (row.get("label", 0) - task["mean"]) / task["deviation"]
        else:
            target = number.get(row.get("label"), 0)
        first = ids[row["text"]]
        if "pair" in row:
            second = ids[row["pair"]]
            full.append(len(first) + len(second) + 2 + len(between))
            room = task["max_length"] - 2 - len(between)
            keep = min(len(first), max(room // 2, room - len(second)))  # the longer one is cut
            (first,) = cut(first, keep, task)
            (second,) = cut(second, room - keep, task)
            ids_of_both = np.concatenate((cls, first, between, second, sep))
            pieces.append(Piece(i, ids_of_both, 1 + keep + len(between), target))
            continue
        full.append(len(first) + 2)
        for part in cut(first, task["max_length"] - 2, task):
            pieces.append(Piece(i, np.concatenate((cls, part, sep)), len(part) + 2, target))
    return pieces, full


def cut(ids, room, task):
    """What is kept of a text of more than `room` tokens: a list of one part, or of several windows."""
    if len(ids) <= room:
        return [ids]
    if task["long_text"] == "windows":
        return [ids[i:i + room] for i in strides(len(ids), room, task["doc_stride"])]
    head = {"head": room, "tail": 0, "head_tail": room // 4}[task["long_text"]]  # 128 of 512, as in arXiv:1905.05583
    return [np.concatenate((ids[:head], ids[len(ids) - (room - head):]))]


def strides(n, room, stride):
    """Where windows of `room` tokens begin that cover n tokens, the last ending with them: int array."""
    return np.append(np.arange(0, n - room, min(stride, room)), n - room) if n > room else np.zeros(1, dtype=np.int64)


def tag_pieces(rows, task, tokenizer):
    """The label of a word stands at its first token, or for pool=last (a GPT, which has seen no more) at its last.

    A row too long is cut between words, so that every word has its label. Rows to predict may have no tags: then the
    first label marks the places. A word of which nothing is left (a BERT vocabulary knows no accents) is unknown.
    """
    cls, sep, _ = brackets(tokenizer)
    ids = encode_all([f" {word}" for row in rows for word in row["words"]], tokenizer.encode_to_numpy)
    ids = {word: found if len(found) else np.array([tokenizer.special["<|unk|>"]]) for word, found in ids.items()}
    number = {label: i for i, label in enumerate(task["labels"])}
    room = task["max_length"] - 2
    pieces, full = [], []
    for i, row in enumerate(rows):
        words = [ids[f" {word}"][:room] for word in row["words"]]
        tags = row.get("tags") or [task["labels"][0]] * len(words)
        lengths = [len(word) for word in words]
        full.append(sum(lengths) + 2)
        first = 0
        while first < len(words) or not words and first == 0:
            last, used = first, 0
            while last < len(words) and used + lengths[last] <= room:
                used += lengths[last]
                last += 1
            target, bounds = np.full(used + 2, IGNORE), np.cumsum([0, *lengths[first:last]])
            at = bounds[1:] if task["pool"] == "last" else bounds[:-1] + 1
            target[at] = [number.get(tag, 0) for tag in tags[first:last]]
            pieces.append(Piece(i, np.concatenate((cls, *words[first:last], sep)), used + 2, target))
            first = max(last, 1)
    return pieces, full


def answer_pieces(rows, task, tokenizer):
    """Windows of the context after the question. Where a window lacks the answer, its target is place 0, <|cls|>.

    Windows overlap; an answer may begin at a token only in the window that shows most on both sides of it.
    """
    cls, sep, between = brackets(tokenizer)
    questions = encode_all([row["question"] for row in rows], tokenizer.encode_to_numpy)
    contexts = encode_all([row["context"] for row in rows], tokenizer.encode_with_offsets)
    pieces, full, places = [], [], []
    for i, row in enumerate(rows):
        context, char_start, char_end = contexts[row["context"]]
        question = questions[row["question"]][:min(LONGEST_QUESTION, task["max_length"] // 2 - 2)]
        places.append((char_start, char_end))
        full.append(len(context) + len(question) + 2 + len(between))
        first = last = -1  # tokens of the answer
        if row.get("answers"):
            begin = row["answers"][0]["start"]
            first = np.searchsorted(char_end, begin, side="right")
            last = np.searchsorted(char_start, begin + len(row["answers"][0]["text"])) - 1
        n, second = len(context), 1 + len(question) + len(between)
        room = task["max_length"] - second - 1
        starts = strides(n, room, task["doc_stride"])
        ends = np.minimum(starts + room, n)
        token = np.arange(n)
        seen = np.minimum(token - starts[:, None], ends[:, None] - 1 - token)  # (windows, n) tokens on the poorer side
        owner = seen.argmax(axis=0)
        for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist())):
            mine = np.flatnonzero(owner == number)
            own = (int(mine[0]), int(mine[-1]) + 1) if len(mine) else (start, start)
            inside = start <= first <= last < end
            pieces.append(Piece(
                i, np.concatenate((cls, question, between, context[start:end], sep)), second,
                (second + first - start, second + last - start) if inside else (0, 0), start,
                (second + own[0] - start, second + own[1] - start)))
    return pieces, full, places


def generate_pieces(rows, task, tokenizer):
    """Ids and the tokens that follow them; asked for are the response's and <|endoftext|> alone.

    Too long a row loses the beginning of its prompt, then the end of its response.
    """
    ids = encode_all([text for row in rows for text in (prompt_text(row["prompt"]), row["response"])],
                     tokenizer.encode_to_numpy)
    end = tokenizer.special["<|endoftext|>"]
    pieces, full = [], []
    for i, row in enumerate(rows):
        prompt, response = ids[prompt_text(row["prompt"])], np.append(ids[row["response"]], end)
        full.append(len(prompt) + len(response) - 1)
        response = response[:task["max_length"]]
        prompt = prompt[len(prompt) - min(len(prompt), task["max_length"] + 1 - len(response)):]
        both = np.concatenate((prompt, response)).astype(np.int64)
        target = np.where(np.arange(1, len(both)) < len(prompt), IGNORE, both[1:])
        pieces.append(Piece(i, both[:-1], len(both) - 1, target))
    return pieces, full


def prompt_text(prompt):
    """A prompt as the model sees it: ended by a line end, which says that now comes the response."""
    return prompt.rstrip() + "\n"
