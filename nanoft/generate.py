"""Weights -> text: the key-value cache and the loop over tokens, beam search; and masked tokens of encoders.

Everything that a step changes is a tensor of fixed shape, at its own place on the device: so a step can be recorded as
a CUDA graph, or compiled, and the host need not wait for it. Each row of a batch has its own position, so that prompts
of different lengths go together, without padding before them.

Beyond the context length a row's window moves in jumps of half a block: once block_size tokens are read, the older half
is dropped and the newer half read again. So cached and uncached sampling have the same context and the same output,
learned positions work, and a token costs little on average.

Shapes: B rows, T tokens, S places of the cache, K key-value heads of D numbers, V vocabulary.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanoft.model import BERT, GPT
from nanoft.sampling import AS_IT_IS, Sampling, choose, shape

# ---- the cache ---------------------------------------------------------------------------------------------------


class LayerCache:
    """The keys and values of one layer, (B, S, K, D) each, allocated when the first ones come."""

    def __init__(self, cache: "Cache"):
        self.cache = cache
        self.keys = self.values = torch.empty(0)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put k, v: (B, T, K, D) in their place; return those that the new tokens may look at: (B, seen, K, D)."""
        cache = self.cache
        if not len(self.keys):  # zeros, for what is masked must be a number, too
            self.keys, self.values = (new.new_zeros(*cache.ids.shape, *new.shape[2:]) for new in (k, v))
        for kept, new in ((self.keys, k), (self.values, v)):
            if cache.whole:
                kept[cache.rows, :new.size(1)] = new
            else:  # (B, S, K, D) -> (B * S, K, D), a view
                kept.flatten(0, 1).index_copy_(0, cache.flat, new[:, 0].to(kept.dtype))
        return (k, v) if cache.whole else (self.keys[:, :cache.seen], self.values[:, :cache.seen])


class Cache:
    """What the rows of a batch have read: ids, keys and values. Row b's stand at its first position[b] places.

    What stands behind them is never looked at: a whole window is read causally, and a single token has a mask.
    """

    def __init__(self, cfg, n_rows: int, length: int, device):
        self.layers = [LayerCache(self) for _ in range(cfg.n_layer)]
        self.ids = torch.full((n_rows, length), -1, device=device)              # (B, S)
        self.position = torch.zeros(n_rows, dtype=torch.long, device=device)    # (B,)
        self.before = torch.arange(1 - cfg.n_gram, 1, device=device)            # of the tokens that an n-gram reads

    def read(self, model, ids: Tensor, lengths: Tensor, rows) -> Tensor:
        """Read whole windows, row rows[i] from its start: ids (R, T), of which lengths (R,) count -> logits (R, V).

        rows: a tensor (R,), or slice(None) for all.
        """
        self.whole, self.rows, self.last = True, rows, lengths - 1
        logits = model(ids, cache=self)
        self.position[rows] = lengths
        return logits

    def step(self, model, ids: Tensor, seen: int, masked: bool) -> Tensor:
        """Read one token more in each row: ids (B,) -> logits (B, V). Its shapes depend on `seen` alone.

        seen: the places that are looked at, all rows' positions and the new ones among them; masked: False where each
        row has seen - 1 tokens. A row that is full loses its last token; the caller reads it anew.
        """
        B, S = self.ids.shape
        self.whole, self.seen = False, seen
        self.at = self.position.clamp(max=S - 1)[:, None]  # (B, 1)
        self.flat = torch.arange(B, device=ids.device) * S + self.at[:, 0]
        self.mask = None
        if masked:
            self.mask = (torch.arange(seen, device=ids.device) <= self.at)[:, None, None]  # (B, 1, 1, seen)
        logits = model(ids[:, None], cache=self)
        self.position += 1
        return logits

    def place(self, ids: Tensor):
        """For the model: ids (B, T) with what n-grams read before them, their positions, and a mask or None."""
        if self.whole:
            self.ids[self.rows, :ids.size(1)] = ids
            return ids, slice(ids.size(1)), None
        self.ids.view(-1).index_copy_(0, self.flat, ids[:, 0])
        before = self.at + self.before  # (B, N)
        return torch.where(before < 0, -1, self.ids.gather(1, before.clamp(min=0))), self.at, self.mask

    def newest(self, x: Tensor) -> Tensor:
        """For the model: each row's newest token of x: (B, T, C) -> (B, C)."""
        return x[torch.arange(len(x), device=x.device), self.last] if self.whole else x[:, 0]

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was."""
        for layer in self.layers:
            layer.keys.copy_(layer.keys[rows])
            layer.values.copy_(layer.values[rows])
        self.ids.copy_(self.ids[rows])


# ---- the loop ----------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One token for each row, with log-probabilities as the model has them, before the rules."""
    tokens: Tensor     # (B,)
    logprobs: Tensor   # (B,)
    best: Tensor       # (B, n) ids of the likeliest tokens
    best_logprobs: Tensor  # (B, n)


class Batch:
    """Rows that are being continued: their texts so far, and what chooses the next tokens."""

    def __init__(self, model: GPT, prompts: Sequence[Tensor], n: int, rules: Sampling, seeds: Sequence[int], best: int):
        B, cfg, device = len(prompts), model.cfg, model.trunk.tokens.weight.device
        self.model, self.rules, self.block_size = model, rules, cfg.block_size
        self.lengths = [len(prompt) for prompt in prompts]  # known to the host, too, which therefore need not ask
        self.starts = [-1] * B                              # of the windows in the cache
        longest = max(self.lengths) + n
        ids = torch.nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)  # (B, longest prompt)
        self.ids = F.pad(ids, (0, n)).to(device)
        self.prompt = torch.tensor(self.lengths, device=device)
        self.length = self.prompt.clone()
        self.cache = Cache(cfg, B, min(longest, cfg.block_size), device)
        draws = [torch.rand(n, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self.uniform = torch.stack(draws, dim=1).to(device)  # (n, B): each row's draws depend on its own seed only
        self.stop = torch.tensor(rules.stop_ids, dtype=torch.long, device=device)
        self.done = torch.zeros(B, dtype=torch.bool, device=device)
        self.t = torch.zeros(1, dtype=torch.long, device=device)
        self.token = self.ids.gather(1, self.length[:, None] - 1)[:, 0]  # (B,) the newest of each row
        self.record = Step(*(torch.zeros(n, B, *more, dtype=dtype, device=device) for more, dtype in (
            ((), torch.long), ((), torch.float32), ((best,), torch.long), ((best,), torch.float32))))

    def read(self, rows: list[int], starts: list[int]) -> Tensor:
        """Read windows anew: rows[i] from the token starts[i] on; their logits (R, V)."""
        lengths = [self.lengths[row] - start for row, start in zip(rows, starts)]
        at, begin, counts = (torch.tensor(x, device=self.ids.device) for x in (rows, starts, lengths))
        places = begin[:, None] + torch.arange(max(lengths), device=self.ids.device)  # (R, T)
        ids = self.ids[at].gather(1, places.clamp(max=self.ids.size(1) - 1))
        for row, start in zip(rows, starts):
            self.starts[row] = start
        return self.cache.read(self.model, ids, counts, slice(None) if len(rows) == len(self.ids) else at)

    def advance(self, stale: list[int], starts: list[int], one, fixed: bool, graphs: dict | None) -> None:
        """A token more in each row. stale: the rows whose window begins elsewhere now, at their `starts`.

        fixed: with a mask and a length that doubles, so that a step has few forms; else what is the fastest eager.
        """
        S = self.cache.ids.size(1)
        held = [min(length - start, S) for length, start in zip(self.lengths, self.starts)]
        seen, masked = max(held), min(held) < max(held)
        if fixed:
            seen, masked = min(S, max(64, 1 << (seen - 1).bit_length())), True
        if stale:
            logits = one(self.cache, self.model, self.token, seen, masked)
            logits[stale] = self.read(stale, [starts[row] for row in stale])
            self.take(logits)
        elif graphs is not None and seen in graphs:
            graphs[seen].replay()
        else:
            self.step(one, seen, masked)
            if graphs is not None:  # the second time, it is known what to record
                graphs[seen] = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graphs[seen]):
                    self.step(one, seen, masked)

    def step(self, one, seen: int, masked: bool) -> None:
        """A token more in each row. Nothing here has another shape the next time, or waits for the device."""
        self.take(one(self.cache, self.model, self.token, seen, masked))

    def take(self, logits: Tensor) -> None:
        """Choose each row's next token, by logits (B, V), and put it in its place."""
        shaped = shape(logits, self.rules, self.ids, self.prompt, self.length)
        token = choose(shaped, self.rules, self.uniform.index_select(0, self.t)[0])
        if self.rules.stop_ids:  # a row that is done repeats its last token
            token = torch.where(self.done, self.token, token)
            self.done |= torch.isin(token, self.stop)
        new: tuple[Tensor, ...] = (token,)
        if n := self.record.best.size(-1):
            log_p = logits.log_softmax(-1)
            best, ids = log_p.topk(n)
            new = (token, log_p.gather(1, token[:, None])[:, 0], ids, best)
        for kept, x in zip(self.record, new):
            kept.index_copy_(0, self.t, x[None])
        self.ids.scatter_(1, self.length[:, None], token[:, None])
        self.token.copy_(token)
        self.length += 1
        self.t += 1


@functools.cache
def compiled_step():
    """Cache.step compiled, at its first call. Not made before it is wanted: importing the compiler takes a second."""
    return torch.compile(Cache.step, dynamic=False)


def context_start(length: int, block_size: int) -> int:
    """The start of the window over `length` tokens; it jumps by half a block once they do not fit."""
    jump = max(1, block_size // 2)
    return max(0, -(-(length - block_size) // jump) * jump)


@torch.no_grad()
def generate(model: GPT, prompts: Tensor | Sequence[Tensor], max_new_tokens: int, rules: Sampling = AS_IT_IS,
             seeds: int | Sequence[int] = 1, logprobs: int = 0, cached: bool = True, compile: bool = False
             ) -> Iterator:
    """Continue prompts: (B, T), or B tensors of their own lengths, none empty. Yields (B,) ids, one token a row.

    seeds: one a row; of a single number s the rows have s, s + 1, ... logprobs: above 0, yield Steps, with so many of
    the likeliest tokens. compile: the step, which pays for itself in thousands of tokens. A row that ended repeats its
    last token; the loop ends once all did, on a GPU up to seven tokens later. The caller sets model.eval().
    """
    seeds = range(seeds, seeds + len(prompts)) if isinstance(seeds, int) else seeds
    batch = Batch(model, list(prompts), max_new_tokens, rules, seeds, min(logprobs, model.cfg.vocab_size))
    on_gpu = batch.ids.device.type == "cuda"
    graphs: dict | None = {} if on_gpu and not torch.is_autocast_enabled("cuda") else None
    one = compiled_step() if compile else Cache.step
    for t in range(max_new_tokens):
        starts = [context_start(length, model.cfg.block_size) for length in batch.lengths]
        stale = [row for row, start in enumerate(starts) if not cached or start != batch.starts[row]]
        if len(stale) == len(starts):  # the first step, and where the windows of all rows jump together
            batch.take(batch.read(stale, starts))
        else:
            batch.advance(stale, starts, one, compile or graphs is not None, graphs)
        batch.lengths = [length + 1 for length in batch.lengths]
        yield Step(*(x[t] for x in batch.record)) if logprobs else batch.record.tokens[t]
        if rules.stop_ids and (not on_gpu or t % 8 == 7) and batch.done.all():
            return


@torch.no_grad()
def beam_search(model: GPT, prompt: Tensor, max_new_tokens: int, beams: int, stop_ids: Sequence[int] = ()
                ) -> list[tuple[list[int], float]]:
    """The likeliest continuations of prompt (T,) that are found by keeping the `beams` likeliest at every length.

    Each with its log-probability, the likeliest first. One ends with its stop token, or has max_new_tokens.
    """
    device, T = prompt.device, len(prompt)
    ids = F.pad(prompt, (0, max_new_tokens)).repeat(beams, 1)  # (W, T + new)
    score = torch.full((beams,), -torch.inf, device=device)
    score[0] = 0  # at first all are the same text
    done = torch.zeros(beams, dtype=torch.bool, device=device)
    stop = torch.tensor(stop_ids, dtype=torch.long, device=device)
    cache, start = Cache(model.cfg, beams, min(ids.size(1), model.cfg.block_size), device), -1
    for length in range(T, ids.size(1)):
        if (fresh := context_start(length, model.cfg.block_size)) != start:
            start, window = fresh, ids[:, fresh:length]
            logits = cache.read(model, window, torch.full_like(done, length - start, dtype=torch.long), slice(None))
        else:
            logits = cache.step(model, ids[:, length - 1], length - start, masked=False)
        log_p = logits.log_softmax(-1).masked_fill(done[:, None], -torch.inf)  # (W, V)
        log_p[:, 0].masked_fill_(done, 0)  # a text that has ended stays, once
        score, place = (score[:, None] + log_p).flatten().topk(beams)
        rows, token = place // log_p.size(1), place % log_p.size(1)
        cache.reorder(rows)
        ids, done = ids[rows], done[rows]
        ids[:, length] = torch.where(done, ids[:, length - 1], token)
        done |= torch.isin(token, stop) & ~done
        if done.all():
            break
    texts = []
    for row, total in zip(ids[:, T:length + 1].tolist(), score.tolist()):
        end = next((i + 1 for i, token in enumerate(row) if token in stop_ids), len(row))
        texts += [(row[:end], total)] * (total > -torch.inf)
    return texts


# ---- encoders ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def fill_masks(model: BERT, ids: Tensor, mask_id: int, k: int = 5) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens at each masked position. ids: (T,) -> ids and probabilities, each (masks, k)."""
    rows = model.hidden(ids[None])[0][ids == mask_id]  # (masks, C)
    probability = model.word_logits(rows).float()[:, :model.cfg.vocab_size].softmax(-1)
    best = probability.topk(min(k, probability.size(-1)))
    return best.indices, best.values


@torch.no_grad()
def pseudo_loss(model: BERT, ids: Tensor, mask_id: int, scored: Tensor, batch: int = 32) -> float:
    """Mean loss (nats) of tokens masked one at a time (arXiv:1910.14659); its exponential is the pseudo-perplexity.

    ids: (T,); scored: bool (T,), True for the tokens that count, which are not special. batch: rows at once.
    """
    rows = ids.repeat(len(ids), 1)  # (T, T): row i has token i masked
    rows.fill_diagonal_(mask_id)
    targets = torch.full_like(rows, -100)
    targets.diagonal().copy_(ids)
    rows, targets = rows[scored], targets[scored]
    return sum(model(x, y).item() * len(x) for x, y in zip(rows.split(batch), targets.split(batch))) / len(rows)
