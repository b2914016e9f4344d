"""A language model measured on text: on the splits of a data set, or on a file. train.py --eval_only calls it."""

import math
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nanoft import UserError, batches, checkpoint, distributed, evaluate, files
from nanoft.bins import Tokens, write_split
from nanoft.model import GPT, make_model
from nanoft.published.source import open_model
from nanoft.tasks.metrics import NO_SPACES
from nanoft.text import prepare, vocabulary
from nanoft.text.corpus import read_jsonl
from nanoft.text.pairs import Pairs
from nanoft.text.wordpiece import WordPiece

# what stands between spaces, or a character of a script without them; data/text/prepare.py counts words so, too
WORD = re.compile(f"[{NO_SPACES}]|[^{NO_SPACES}\\s]+")
# of the cache: the cosine of two hidden states counts e^(16 cosine), and what follows the like ones in the text so far
# gets three tenths of the probability; chosen on the validation set of WikiText-2 (LOG.md)
CACHE_SCALE, CACHE_SHARE = 16.0, 0.3


def measure(cfg, dist: distributed.Dist) -> None:
    """Print the metrics of the model init_from on all of text_file, or of the val and test splits of data.

    cfg: the options of train.py. The metrics are those of evaluate.py, in windows of the model's own context. They are
    written only to an out_dir that is not the model's: its eval.json. Raises UserError.
    """
    state, path, tokenizer = open_model(cfg.init_from)
    if "task" in state:
        raise UserError(f"{path} is fine-tuned on a task; measure it by finetune.py --eval_only")
    if "transform.weight" in state.get("new", ()):  # of published weights
        raise UserError(f"{path} has no head for masked words, so there is nothing to measure; give another encoder")
    out_dir = None if Path(cfg.out_dir).resolve() == path.parent.resolve() else Path(cfg.out_dir)
    if cfg.cache_tokens and not state["model_config"].get("causal", True):
        raise UserError(f"cache_tokens is for a GPT, and {path} is an encoder; leave it out")
    if out_dir and checkpoint.find(out_dir):
        raise UserError(f"out_dir={out_dir} holds a run; give a new folder for eval.json, or none")
    model = checkpoint.load_model(state, path, make_model, dist.device)
    context, eot = model.cfg.block_size, tokenizer.special["<|endoftext|>"]
    result = {"model": str(path), "text": cfg.text_file or cfg.data, "context": context, "stride": context}
    with tempfile.TemporaryDirectory() as folder:
        if cfg.text_file:
            file = Path(cfg.text_file)
            texts = [*read_jsonl(file, "text")] if ".jsonl" in file.suffixes else [files.read_text(file)]
            if not "".join(texts).strip():
                raise UserError(f"{cfg.text_file} holds no text to measure a model on")
            splits = {"text": write_split(folder, "text", texts, tokenizer, len(WORD.findall("\n".join(texts))))}
        else:
            splits = split_tokens(cfg.data, tokenizer, folder, dist)
        for name, tokens in splits.items():
            if model.cfg.causal:
                metrics = evaluate.causal_metrics(model, tokens, 0, eot, dist)
            else:
                masking = batches.masking(tokenizer, cfg.mask_prob, cfg.whole_word)
                has_pairs = cfg.objective == "mlm_nsp" and model.cfg.n_types and not cfg.text_file
                pairs = Pairs(tokens, tokenizer, context, 8, batches.EVAL_SEED, masking) if has_pairs else None
                model.cfg = replace(model.cfg, block_size=min(context, len(tokens)))  # a short text is one window
                metrics = evaluate.masked_metrics(model, tokens, 0, masking, pairs, dist)
            result |= {f"{name}_{key}": value for key, value in metrics.items()}
            if dist.main:
                print(f"{name}, all of it: {evaluate.described(metrics)} ({len(tokens):,} tokens of "
                      f"{tokens.num_bytes:,} bytes, context and stride {context})")
            if cfg.cache_tokens:
                cached, alone = CachedGPT(model, cfg.cache_tokens), replace(dist, rank=0, world_size=1)
                metrics = evaluate.causal_metrics(cached, tokens, 0, eot, alone)
                result |= {f"{name}_cached_{key}": value for key, value in metrics.items()}
                if dist.main:
                    print(f"{name}, with a cache of {cfg.cache_tokens:,} tokens: {evaluate.described(metrics)}")
    if out_dir and dist.main:
        files.write_json(out_dir / "eval.json", result)
        print(f"{out_dir}: eval.json")


class CachedGPT:
    """A GPT that remembers the last `size` tokens before a window, for evaluate.causal_metrics, which reads in order.

    A continuous cache (arXiv:1612.04426): where the text was in a like state before, what came next is likely again.
    It learns from the text that is measured, though never from what is still to come, so its metrics stand beside
    those of the model alone.
    """

    def __init__(self, model: GPT, size: int):
        self.model, self.cfg, self.size = model, model.cfg, size
        self.states, self.tokens = torch.empty(0), torch.empty(0)  # (S, C) of the text so far; (S,) the tokens after

    def __call__(self, ids: Tensor, targets: Tensor) -> Tensor:
        """ids, targets: (B, T), window after window -> the mean loss in nats over the targets that are not -100."""
        windows = zip(self.model.trunk(ids), targets, targets != batches.IGNORE)
        return torch.cat([self.read(x[scored], window[scored]) for x, window, scored in windows]).mean()

    def read(self, x: Tensor, targets: Tensor) -> Tensor:
        """The loss of each token of a window, which is remembered. x: (n, C); targets: (n,) -> (n,)."""
        expected = (-F.cross_entropy(self.model.head(x).float(), targets, reduction="none")).exp()
        states = F.normalize(x.float(), dim=-1)
        self.states = torch.cat((self.states[-self.size:].to(states), states))  # (S, C) -> (S + n, C)
        self.tokens = torch.cat((self.tokens[-self.size:].to(targets), targets))
        before = torch.ones(len(x), len(self.states), dtype=torch.bool, device=x.device).tril(
            len(self.states) - len(x) - 1)
        likeness = (CACHE_SCALE * states @ self.states.T).masked_fill(~before, -math.inf)  # (n, S + n)
        share = likeness.softmax(-1).nan_to_num()  # before the first token of the text there is none
        remembered = (share * (self.tokens == targets[:, None])).sum(-1)  # (n, S + n) -> (n,)
        return -((1 - CACHE_SHARE) * expected + CACHE_SHARE * remembered).log()


def split_tokens(data: str, tokenizer, folder: str, dist: distributed.Dist) -> dict[str, Tokens]:
    """The val and test splits of a data set; where it has another tokenizer, their text encoded anew, in `folder`."""
    source = prepare.find_data(data)
    if dist.main:
        prepare.ensure(source)
    distributed.barrier(dist)
    splits = {name: Tokens.open(source, name) for name in ("val", "test") if Tokens.exists(source, name)}
    other = vocabulary.load(source)
    for tokens in splits.values():
        tokens.count_bytes(other)
    if other.fingerprint == tokenizer.fingerprint:
        return splits
    if isinstance(other, WordPiece):
        raise UserError(f"{source} was prepared with a tokenizer from which its text cannot be read again; prepare it "
                        "again with that of the model, or give a --text_file")
    anew = {}
    for name, tokens in splits.items():
        spans = tokens.documents(other.special["<|endoftext|>"], len(tokens)).tolist()
        texts = (other.decode(tokens.read(start, end).tolist()) for start, end in spans)
        anew[name] = write_split(folder, name, texts, tokenizer, tokens.num_words)
    return anew
