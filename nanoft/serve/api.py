"""A trained model for programs. sample.py and the server stand on it, too.

    import nanoft
    model = nanoft.load("out/wikitext")
    print(model.generate("The history of", max_new_tokens=50))
"""

import codecs
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanoft import UserError, checkpoint, distributed, generate, kernels, quantize
from nanoft.inspect import explain, targets
from nanoft.model import make_model
from nanoft.published.source import open_model
from nanoft.sampling import Sampling
from nanoft.tasks import features, inputs, predict
from nanoft.tasks.heads import TaskModel

END = "<|endoftext|>"


class Token(NamedTuple):
    """A token that a GPT wrote; where asked for, its log-probability, and [(id, log-probability)] of the likeliest."""
    id: int
    logprob: float = 0.0
    best: list = []


class Model:
    """A model with its tokenizer, for use. What it can do is a matter of its kind: see each method."""

    def __init__(self, path, device: str = "auto", dtype: str = "auto"):
        """path: a run folder, a checkpoint file, or a published model's folder. device, dtype: as in sample.py.

        Raises UserError where there is no model, or not its tokenizer.
        """
        self.dist = distributed.start(device, "float32" if dtype == "int8" else dtype)
        if self.dist.reason:
            print(self.dist.reason, file=sys.stderr)
        state, self.path, self.tokenizer = open_model(path)
        self.task: dict = state.get("task", {})      # of a fine-tuned model
        self.kind: str = self.task.get("kind", "")   # classify, pair, regress, tag, answer or generate
        self.predicts = self.kind not in ("", "generate")
        make = partial(TaskModel, task=self.task) if self.predicts else make_model
        self.net = checkpoint.load_model(state, self.path, make, self.dist.device).requires_grad_(False)
        self.writes = self.net.cfg.causal and not self.predicts
        self.explains = self.kind in features.WHOLE_TEXT and dtype != "int8"  # which has no gradients
        if dtype == "int8":
            quantize.compute_in_int8(self.net)
        elif self.writes:
            kernels.tune_generation(self.net, self.dist.dtype)

    def need(self, can: bool, what: str, instead: str) -> None:
        """Raise UserError for what this model cannot do."""
        if not can:
            is_kind = f"a model of kind {self.kind}" if self.kind else "a GPT" if self.net.cfg.causal else "an encoder"
            raise UserError(f"{self.path} is {is_kind}, which {what}; {instead}")

    def tensor(self, ids) -> Tensor:
        return torch.as_tensor(np.asarray(ids, dtype=np.int64), device=self.dist.device)

    # ---- a GPT -------------------------------------------------------------------------------------------------------

    def generate(self, prompt: str = END, max_new_tokens: int = 200, *, stream: bool = False, seed: int = 1,
                 stop: tuple[str, ...] = (), **rules) -> str | Iterator[str]:
        """What a GPT writes after a prompt; with stream an iterator over its pieces. <|endoftext|> ends it.

        stop: texts that end it, which are left out. rules: the fields of Sampling, as temperature and top_k; without
        them those of sample.py. Raises UserError for another model, and for a prompt without tokens.
        """
        tokens = (row[0].id for row in self.tokens([self.prompt_ids(prompt)], max_new_tokens, [seed], **rules))
        pieces = until(text_pieces(tokens, self.tokenizer), stop)
        return pieces if stream else "".join(pieces)

    def prompt_ids(self, prompt: str) -> list[int]:
        """The ids of a prompt; of kind generate: all plain text, and a line end after it. Raises UserError if empty."""
        self.need(self.writes, "does not write", "give a GPT, or one fine-tuned as --kind=generate")
        ids = self.tokenizer.encode(self.prompt_text(prompt), allow_special=not self.kind)
        if not ids:
            raise UserError(f"the prompt {prompt!r} has no tokens; give some text, or {END} to begin a new document")
        return ids

    def prompt_text(self, prompt: str) -> str:
        return features.prompt_text(prompt) if self.kind else prompt

    def tokens(self, prompts: list[list[int]], max_new_tokens: int, seeds: list[int], *, logprobs: int = 0, **rules
               ) -> Iterator[list[Token]]:
        """The next Token of every prompt, again and again; a row that has ended repeats <|endoftext|>.

        logprobs: how many of the likeliest tokens to name, 0 for none.
        """
        chosen = Sampling(**{"temperature": 0.8, "top_p": 0.95} | rules, stop_ids=(self.tokenizer.special[END],))
        ids = [self.tensor(prompt) for prompt in prompts]
        for step in generate.generate(self.net, ids, max_new_tokens, chosen, seeds, logprobs):
            if logprobs:
                best = [list(zip(*row)) for row in zip(step.best.tolist(), step.best_logprobs.tolist())]
                yield [Token(*row) for row in zip(step.tokens.tolist(), step.logprobs.tolist(), best)]
            else:
                yield [Token(i) for i in step.tolist()]

    def texts(self, prompts: list[str], max_new_tokens: int, seeds: list[int], stop: tuple[str, ...] = (),
              logprobs: int = 0, **rules) -> list[dict]:
        """What a GPT writes after each of many prompts, all together: [{text}], as `generate` with their seeds.

        logprobs: adds the `tokens`, each {token, logprob, best}, best: {token: log-probability} of so many.
        """
        rows: list[list[Token]] = [[] for _ in prompts]
        ids = [self.prompt_ids(prompt) for prompt in prompts]
        for step in self.tokens(ids, max_new_tokens, seeds, logprobs=logprobs, **rules):
            for row, token in zip(rows, step):
                row.append(token)
            if stop and len(rows[0]) % 16 == 0 and all(END in text or "".join(until([text], stop)) != text for text in (
                    self.tokenizer.decode([token.id for token in row]) for row in rows)):
                break
        return [self.text_of(row, stop, logprobs) for row in rows]

    def text_of(self, row: list[Token], stop: tuple[str, ...], logprobs: int) -> dict:
        """One of `texts`: its tokens, up to its end, become {text} and {tokens}."""
        text = "".join(until(text_pieces([token.id for token in row], self.tokenizer), stop))
        if not logprobs:
            return {"text": text}
        tokens, length = [], 0
        for token in row:
            if length >= len(text.encode()):
                break
            length += len(self.tokenizer.decode_bytes([token.id]))
            tokens.append({"token": self.tokenizer.decode([token.id]), "logprob": round(token.logprob, 4),
                           "best": {self.tokenizer.decode([i]): round(p, 4) for i, p in token.best}})
        return {"text": text, "tokens": tokens}

    def beams(self, prompt: str, max_new_tokens: int, beams: int) -> list[dict]:
        """The likeliest continuations that a search with so many beams finds: [{text, logprob}], likeliest first."""
        found = generate.beam_search(self.net, self.tensor(self.prompt_ids(prompt)), max_new_tokens, beams,
                                     (self.tokenizer.special[END],))
        return [{"text": "".join(text_pieces(ids, self.tokenizer)), "logprob": round(p, 4)} for ids, p in found]

    # ---- an encoder --------------------------------------------------------------------------------------------------

    def fill(self, text: str, k: int = 5) -> list[list[tuple[str, float]]]:
        """For each <|mask|> of a text the k likeliest tokens, each with its probability.

        Raises UserError for another model than a pretrained encoder, for a text without a mask, and for one too long.
        """
        ids, mask_id = self.encoder_ids(text), self.tokenizer.special.get("<|mask|>", -1)
        if mask_id not in ids.tolist():
            raise UserError(f"the prompt {text!r} has no <|mask|> to fill; write one where a word is missing")
        with self.dist.autocast():
            best, probability = generate.fill_masks(self.net, ids, mask_id, k)  # (masks, k) each
        return [[(self.tokenizer.decode([token]), p) for token, p in zip(*mask)]
                for mask in zip(best.tolist(), probability.tolist())]

    def encoder_ids(self, text: str) -> Tensor:
        """The ids (T,) of a text in the form that the encoder was trained on. Raises UserError if they are too many."""
        self.need(not self.net.cfg.causal and not self.kind, "fills no masks", "give a pretrained encoder")
        mask_id = self.tokenizer.special.get("<|mask|>")
        for name in [name for name, i in self.tokenizer.special.items() if i == mask_id]:
            text = text.replace(" " + name, name)  # a word's token begins with its space, so the mask takes it, too
        ids = self.tokenizer.encode(text, allow_special=True)
        if self.net.cfg.n_types or self.tokenizer.published:  # trained on pairs, or as BERT was: knows texts in these
            ids = [self.tokenizer.special["<|cls|>"], *ids, self.tokenizer.special["<|sep|>"]]
        if len(ids) > self.net.cfg.block_size:
            raise UserError(f"the prompt has {len(ids)} tokens, more than the {self.net.cfg.block_size} that this "
                            "model takes; shorten it")
        return self.tensor(ids)

    def embed(self, texts: list[str]) -> np.ndarray:
        """The vectors of N texts by any encoder: float32 (N, C), of length 1. Raises UserError for a GPT."""
        return self.embed_counted(texts)[0]

    def embed_counted(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """embed(texts), and how many tokens each text has, (N,), of which those beyond block_size are left out."""
        self.need(self.kind != "image", "reads no texts", "give an encoder of texts")
        self.need(not self.net.cfg.causal, "has tokens that have not seen the whole text", "give an encoder")
        self.need(self.net.cfg.n_layer > 0 or not self.kind, "learned no vectors of texts", "give an encoder")
        for i, text in enumerate(texts, 1):
            inputs.check_input(text, "text", f"text {i}")
        if not texts:
            return np.zeros((0, self.net.cfg.n_embd), dtype=np.float32), np.zeros(0, dtype=np.int64)
        return predict.sentence_vectors(self.net.trunk, texts, self.tokenizer, self.dist)

    # ---- a fine-tuned model ------------------------------------------------------------------------------------------

    def predict(self, rows: list) -> list[dict]:
        """A dictionary for each row, as predict.predictions describes: `prediction`, and mostly `probabilities`.

        rows: dictionaries with what the kind reads (text, pair, question, context, words), or texts, where it reads
        one. A tagger also gives the `words`, and with entities the `entities`. Raises UserError for a model that
        is not fine-tuned, and for a row that lacks something.
        """
        self.need(self.predicts, "was not fine-tuned for a task with labels", "fine-tune it by finetune.py")
        checked, _ = inputs.prediction_rows(self.task, program=rows)
        guesses = self.outputs(checked)[0]
        words = self.kind == "tag"
        return [{"words": row["words"]} | guess if words else guess for row, guess in zip(checked, guesses)]

    def outputs(self, rows: list[dict]) -> tuple[list[dict], features.Encoded, np.ndarray]:
        """The predictions of rows that inputs.py has checked, the rows' features, and predict.outputs of these."""
        encoded = features.encode(rows, self.task, self.tokenizer)
        out = predict.outputs(self.net, encoded, self.task, self.tokenizer, self.dist)
        guesses = predict.predictions(self.task, rows, encoded, out)
        if self.kind == "tag" and predict.has_entities(self.task["labels"]):
            guesses = [guess | {"entities": predict.entity_spans(row, guess)} for row, guess in zip(rows, guesses)]
        return guesses, encoded, out

    def explain(self, row: dict, steps: int = 20) -> list[tuple[str, float]]:
        """[(word, what it adds to the prediction's score)] by integrated gradients. row: checked, as by inputs.py."""
        if not self.explains:
            raise UserError("only the words of classify, pair and regress are explained, and not in int8")
        guesses, encoded, out = self.outputs([row])
        subject = targets.subject_from_row(self.net, self.task, self.tokenizer, row, guesses[0], "", 0, encoded, out)
        base = explain.baseline(subject.ids, self.tokenizer, self.net.cfg.causal)
        found = targets.integrated(self.net.trunk, subject, subject.targets[0], base, steps)
        units, special = targets.text_units(subject.ids, self.tokenizer), {*self.tokenizer.special.values()}
        sums = targets.unit_sums(found.attributions, units).tolist()
        return [(text, x) for (text, at), x in zip(units, sums) if int(subject.ids[at[0]]) not in special]

    @torch.no_grad()
    def logits(self, ids) -> Tensor:
        """float32 logits of token ids (T,) or (B, T): of a GPT what each position expects next, of an encoder what
        stands there, (..., T, vocabulary); of a fine-tuned model the head's outputs. Raises UserError for too many ids.
        """
        ids = self.tensor(ids)
        size, vocab = self.net.cfg.block_size, self.net.cfg.vocab_size
        if ids.ndim not in (1, 2) or not 1 <= ids.size(-1) <= size or not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
            raise UserError(f"ids must be (T,) or (B, T) with 1 to {size} tokens, each from 0 to {vocab - 1}")
        rows = ids[None] if ids.ndim == 1 else ids
        with self.dist.autocast():
            if self.predicts:
                y = self.net.logits(rows, allowed=torch.ones_like(rows, dtype=torch.bool))
            elif self.net.cfg.causal:
                y = self.net.logits(rows)[..., :vocab]
            else:
                y = self.net.word_logits(self.net.hidden(rows))[..., :vocab]
        return y.float()[0] if ids.ndim == 1 else y.float()


# ---- text from tokens --------------------------------------------------------------------------------------------


def text_pieces(tokens: Iterable[int], tokenizer) -> Iterator[str]:
    """The text of token ids, a piece for each; a character comes with its last byte. Stops before <|endoftext|>."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if token == tokenizer.special[END]:
            break
        yield decoder.decode(tokenizer.decode_bytes([token]))
    yield decoder.decode(b"", final=True)


def until(pieces: Iterable[str], stop: str | tuple[str, ...]) -> Iterator[str]:
    """The pieces up to the first of the texts `stop`. What may be the beginning of one is held back until it is not."""
    held, stop = "", tuple(filter(None, [stop] if isinstance(stop, str) else stop))
    for piece in pieces:
        held += piece
        if ends := [held.index(text) for text in stop if text in held]:
            yield held[:min(ends)]
            return
        keep = max((n for text in stop for n in range(1, len(text)) if held.endswith(text[:n])), default=0)
        yield held[:len(held) - keep]
        held = held[len(held) - keep:]
    yield held
