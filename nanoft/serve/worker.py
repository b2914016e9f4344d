"""One thread a model: requests wait in its queue, and it answers those that are alike in one batch."""

import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator

from nanoft.serve.api import END, Model

MAX_BATCH = 16     # requests answered at once
MAX_WAITING = 64   # requests of a model that may wait
MAX_SECONDS = 120  # from a request's arrival to its last token


class Refused(Exception):
    """A request that is not answered: its HTTP status, and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Request:
    """A prompt, rows or texts that wait for an answer. Who made it sets `done` to give it up."""

    def __init__(self, what: str, content, limit: int = 0, seed: int = 0, **rules):
        """what: the method of Worker. limit: the most tokens; seed and rules: of Model.tokens."""
        self.what, self.content, self.limit, self.seed, self.rules = what, content, limit, seed, rules
        self.deadline = time.monotonic() + MAX_SECONDS
        self.answer: queue.SimpleQueue = queue.SimpleQueue()  # of results, or an exception
        self.done = self.exhausted = False

    def result(self, alive: Callable):
        """The next result. alive() is called while it waits; it raises ConnectionError where the client has gone."""
        while True:
            try:
                alive()
                result = self.answer.get(timeout=0.2)
            except queue.Empty:
                continue
            except ConnectionError:
                self.done = True
                raise
            if isinstance(result, Exception):
                raise result
            return result

    def tokens(self, alive: Callable) -> Iterator:
        """The results of `generate`. exhausted: whether they came to their limit."""
        while (token := self.result(alive)) is not None:
            yield token
        self.exhausted = True


class Worker(threading.Thread):
    def __init__(self, model: Model):
        super().__init__(daemon=True)
        self.model, self.waiting, self.ready, self.stopping = model, deque(), threading.Condition(), False
        self.start()

    def submit(self, *requests: Request) -> None:
        """Let requests wait. Raises Refused where too many do already."""
        with self.ready:
            self.waiting = deque(request for request in self.waiting if not request.done)
            if len(self.waiting) + len(requests) > MAX_WAITING:
                raise Refused(429, f"{len(self.waiting)} requests wait for this model already; try again in a few "
                                   "seconds, or with fewer prompts at once")
            self.waiting.extend(requests)
            self.ready.notify()

    def stop(self) -> None:
        """End after the token, or the batch, that is being computed."""
        with self.ready:
            self.stopping = True
            self.ready.notify()
        self.join(timeout=10)

    def run(self):
        while batch := self.take():
            try:
                getattr(self, batch[0].what)(batch)
            except Exception as error:  # of this batch, as no memory left: the server goes on
                traceback.print_exc()
                for request in batch:
                    request.answer.put(error)

    def take(self) -> list[Request]:
        """The request that has waited longest, with those that can be answered together with it. Empty at the end."""
        with self.ready:
            self.ready.wait_for(lambda: self.waiting or self.stopping)
            if self.stopping:
                return []
            first = self.waiting[0]
            alike = [r for r in self.waiting if (r.what, r.rules) == (first.what, first.rules)][:MAX_BATCH]
            self.waiting = deque(r for r in self.waiting if r not in alike)
        for request in alike:
            if time.monotonic() > request.deadline:
                request.answer.put(Refused(503, f"it has waited for {MAX_SECONDS} seconds; try again later"))
                request.done = True
        return [r for r in alike if not r.done] or self.take()

    # ---- what a request may ask for ----------------------------------------------------------------------------------

    def generate(self, batch: list[Request]) -> None:
        """content: the ids of a prompt. Results: what Model.tokens yields, up to <|endoftext|> or the limit; None."""
        end = self.model.tokenizer.special[END]
        steps = self.model.tokens([r.content for r in batch], max(r.limit for r in batch), [r.seed for r in batch],
                                  **batch[0].rules)
        for number, step in enumerate(steps, 1):
            late = time.monotonic()
            for request, token in zip(batch, step):
                if not request.done:
                    request.answer.put(token)
                    if token.id == end or number == request.limit or late > request.deadline or self.stopping:
                        request.answer.put(None)
                        request.done = True
            if all(request.done for request in batch):
                return
        for request in batch:
            request.answer.put(None)

    def predict(self, batch: list[Request]) -> None:
        """content: rows that inputs.py has checked. One result: their predictions."""
        self.share(batch, self.model.outputs([row for r in batch for row in r.content])[0])

    def embed(self, batch: list[Request]) -> None:
        """content: texts. One result: [(vector, number of tokens)]."""
        self.share(batch, list(zip(*self.model.embed_counted([text for r in batch for text in r.content]))))

    def share(self, batch: list[Request], results: list) -> None:
        for request in batch:
            request.answer.put(results[:len(request.content)])
            results = results[len(request.content):]

    def call(self, batch: list[Request]) -> None:
        """content: a function of the model. One result: what it returns."""
        for request in batch:
            request.answer.put(request.content(self.model))
