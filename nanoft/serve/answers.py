"""What the endpoint answers: the fields of each request, in OpenAI's form where it has one, and of each answer."""

import base64
import difflib
import json
import secrets
from collections.abc import Callable, Iterator

from nanoft.files import difference
from nanoft.serve.api import END, Model, Token, text_pieces, until
from nanoft.serve.worker import MAX_WAITING, Refused, Request, Worker
from nanoft.tasks import inputs

MAX_TEXTS = 256  # of one request
TEXTS = (str, [str])
ROWS = (*TEXTS, {str: TEXTS}, [{str: TEXTS}])
FORMS: dict[str, dict] = {  # path: what files.difference asks of its body
    "completions": {"model": str, "prompt?": (*TEXTS, [int], [[int]]), "max_tokens?": int, "temperature?": float,
                    "top_p?": float, "top_k?": int, "min_p?": float, "repetition_penalty?": float,
                    "frequency_penalty?": float, "n?": int, "stop?": TEXTS, "seed?": int, "stream?": bool,
                    "stream_options?": {"include_usage?": bool}, "logprobs?": int, "echo?": bool, "user?": str},
    "embeddings": {"model": str, "input": TEXTS, "encoding_format?": {"float", "base64"}, "user?": str},
    "classify": {"model": str, "input": ROWS, "explain?": bool},
    "fill": {"model": str, "input": TEXTS, "top_k?": int},
}
RANGES = {"max_tokens": (1, 4096), "temperature": (0, 100), "top_p": (1e-6, 1), "top_k": (0, 2**31), "min_p": (0, 1),
          "repetition_penalty": (0.01, 100), "frequency_penalty": (-100, 100), "n": (1, 16), "logprobs": (0, 20),
          "seed": (0, 2**31)}
RULES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "logprobs")


def abilities(model: Model) -> list[str]:
    """Which of these paths a model answers."""
    can = {"completions": model.writes, "classify": model.predicts, "embeddings": not model.net.cfg.causal,
           "fill": not model.net.cfg.causal and not model.kind}
    return [name for name, yes in can.items() if yes]


def read(data: bytes, form: dict) -> dict:
    """The JSON object of a body, in this form, its values in RANGES; null is as if it were left out. Raises Refused."""
    try:
        body = json.loads(data.decode("utf-8"))
        json.dumps(body, ensure_ascii=False).encode("utf-8")  # fails for a half of a character, "\\ud800"
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON ({str(error)[:100]}); mend it") from None
    if isinstance(body, dict):
        body = {name: value for name, value in body.items() if value is not None}
        names = [name.removesuffix("?") for name in form]
        for name in body.keys() - {*names}:
            near = difflib.get_close_matches(name, names, n=1) or [f"one of {', '.join(names)}"]
            raise Refused(400, f"unknown field {name[:40]!r}; did you mean {near[0]}?")
    if problem := difference(body, form, "the body"):
        raise Refused(400, f"{problem}; mend the request")
    for name in body.keys() & RANGES.keys():
        low, high = RANGES[name]
        if not low <= body[name] <= high:
            raise Refused(400, f"{name}={body[name]} must lie between {low} and {high}")
    texts = body.get("input", "")
    if isinstance(texts, list) and not 1 <= len(texts) <= MAX_TEXTS:
        raise Refused(400, f"input has {len(texts)} texts; give 1 to {MAX_TEXTS}")
    return body


# ---- each a function of the worker, the checked body, its input as a list, and ask(request) -> result ------------


def embeddings(worker: Worker, body: dict, texts: list, ask: Callable) -> dict:
    found = ask(Request("embed", texts))
    as_base64 = body.get("encoding_format") == "base64"  # what OpenAI's client asks for
    data = [{"object": "embedding", "index": i, "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
             if as_base64 else vector.tolist()} for i, (vector, _) in enumerate(found)]
    n = int(sum(n for _, n in found))
    return {"data": data, "usage": {"prompt_tokens": n, "total_tokens": n}}


def classify(worker: Worker, body: dict, rows: list, ask: Callable) -> dict:
    """With explain, the first of several rows also has its `words`, each with what it adds."""
    rows, whole = inputs.prediction_rows(worker.model.task, program=rows)
    data = [{"index": i} | guess for i, guess in enumerate(ask(Request("predict", rows)))]
    if worker.model.kind == "tag":
        data = [row | item for row, item in zip(whole, data)]  # with the words and their offsets
    if body.get("explain") and worker.model.explains:
        data[0]["words"] = ask(Request("call", lambda model: model.explain(rows[0])))
    return {"data": data}


def fill(worker: Worker, body: dict, texts: list, ask: Callable) -> dict:
    for text in texts:  # what cannot be filled is refused before it waits
        if "<|mask|>" not in text:
            raise Refused(400, "input has no <|mask|> to fill; write one where a word is missing")
        worker.model.encoder_ids(text)
    found = ask(Request("call", lambda model: [model.fill(text, body.get("top_k") or 5) for text in texts]))
    return {"data": [{"index": i, "masks": [[{"token": token, "probability": p} for token, p in mask] for mask in text]}
                     for i, text in enumerate(found)]}


ANSWERS: dict[str, Callable] = {"embeddings": embeddings, "classify": classify, "fill": fill}


class Completion:
    """The answer to a completions request: `n` choices for each prompt."""

    def __init__(self, worker: Worker, body: dict, alive: Callable):
        """alive: raises where the client has gone away. Raises Refused, and UserError for an empty prompt."""
        self.body, self.alive, self.tokenizer = body, alive, worker.model.tokenizer
        prompts = body.get("prompt", END)
        if not isinstance(prompts, list) or prompts and isinstance(prompts[0], int):
            prompts = [prompts]
        vocab, n = worker.model.net.cfg.vocab_size, body.get("n", 1)
        prompts = [worker.model.prompt_ids(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        if not prompts or not all(ids and 0 <= min(ids) <= max(ids) < vocab for ids in prompts):
            raise Refused(400, f"prompt has no tokens, or some that are not from 0 to {vocab - 1}; give a text")
        if len(prompts) * n > MAX_WAITING:
            raise Refused(400, f"{len(prompts)} prompts times n={n} are more than {MAX_WAITING}; give fewer at once")
        rules = {"temperature": 1.0, "top_p": 1.0} | {name: body[name] for name in RULES if name in body}
        seed, self.stop = body.get("seed", secrets.randbits(31)), body.get("stop", ())
        self.requests = [Request("generate", ids, body.get("max_tokens", 16), seed + i, **rules)
                         for i, ids in enumerate(ids for ids in prompts for _ in range(n))]
        self.usage = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": 0}
        worker.submit(*self.requests)

    def parts(self, index: int) -> Iterator[dict]:
        """A choice in parts, as a stream sends them: text with its logprobs, and last the finish_reason."""
        part = {"index": index, "text": "", "logprobs": None, "finish_reason": None}
        request, new, offset = self.requests[index], [], 0

        def ids():
            for token in request.tokens(self.alive):
                new.append(token)
                self.usage["completion_tokens"] += 1
                yield token.id

        if self.body.get("echo"):
            yield part | {"text": (echoed := self.tokenizer.decode(request.content))}
            offset = len(echoed)
        for piece in filter(None, until(text_pieces(ids(), self.tokenizer), self.stop)):
            yield part | {"text": piece, "logprobs": self.logprobs(new, offset)}
            offset += len(piece)
            new.clear()
        request.done = True
        yield part | {"finish_reason": "length" if request.exhausted else "stop"}

    def choices(self) -> list[dict]:
        """The choices, each with its parts put together."""
        found = []
        for parts in ([*self.parts(index)] for index in range(len(self.requests))):
            logprobs = [part["logprobs"] for part in parts if part["logprobs"]]
            found.append(parts[-1] | {"text": "".join(part["text"] for part in parts), "logprobs": {
                name: [x for one in logprobs for x in one[name]] for name in logprobs[0]} if logprobs else None})
        return found

    def logprobs(self, tokens: list[Token], offset: int) -> dict | None:
        """The log-probabilities of a piece's tokens, or None if not asked for. offset: of the piece, in characters."""
        if not self.body.get("logprobs"):
            return None
        return {"tokens": [self.name(t.id) for t in tokens], "text_offset": [offset] * len(tokens),
                "token_logprobs": [t.logprob for t in tokens],
                "top_logprobs": [{self.name(i): p for i, p in t.best} for t in tokens]}

    def name(self, token: int) -> str:
        """A token as text; the bytes of an incomplete character as \\xe4."""
        return self.tokenizer.decode_bytes([token]).decode("utf-8", "backslashreplace")

    def total(self) -> dict:
        return {"usage": self.usage | {"total_tokens": sum(self.usage.values())}}
