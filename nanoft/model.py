"""The model: Attention, MLP, Block, Transformer; GPT and BERT on top of it.

Defaults, each a field of ModelConfig:
- rotary positions (RoPE, arXiv:2104.09864) on normalised queries and keys (QK-norm, arXiv:2010.04245)
- pre-norm blocks with parameter-free RMSNorm (arXiv:1910.07467), the embedding normalised too
- squared-ReLU feed-forward (Primer, arXiv:2109.08668), no biases, output projections that start at zero
- embeddings for pairs and longer runs of tokens (n-grams, arXiv:2501.16975) when n_gram > 1, hashed into one table
- grouped key-value heads (arXiv:2305.13245) when n_kv_head < n_head
- the vocabulary padded to a multiple of 64 (vocab_multiple); the rows beyond it are never read as ids
The other fields are what the published GPT-2, BERT and RoBERTa need: learned positions, LayerNorm with biases,
GELU in both forms, post-norm, token types, a tied head.

Shapes: B sequences, T tokens, C = n_embd, H heads of D = C / H unless head_dim says, K key-value heads, V padded
vocabulary.
"""

from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

from nanoft import UserError


@dataclass
class ModelConfig:
    vocab_size: int = 8192
    block_size: int = 256     # longest sequence
    n_layer: int = 4          # 0: embeddings alone, whose mean over a text is fastText (arXiv:1607.01759)
    n_head: int = 4
    n_kv_head: int = 0        # 0 = n_head
    head_dim: int = 0         # width of a head; 0 = n_embd / n_head
    n_embd: int = 256
    dropout: float = 0.0      # of embeddings and of what a block adds; attention weights have none (LOG.md)
    causal: bool = True       # False: every token sees both sides (BERT)
    position: Literal["rope", "learned"] = "rope"
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-6
    qk_norm: bool = True
    activation: Literal["relu2", "swiglu", "gelu", "gelu_tanh"] = "relu2"
    n_hidden: int = 0         # width of the feed-forward; 0 = 4 * n_embd
    bias: bool = False
    embed_norm: bool = True   # normalise the embeddings
    post_norm: bool = False   # normalise after each residual sum, as BERT does, and not before
    tie_head: bool = False    # the output head is the token embedding
    n_types: int = 0          # token types (BERT's segments)
    n_gram: int = 1           # longest run of tokens with an embedding of its own; 1 = only single tokens have one
    n_buckets: int = 16384    # rows of the table that the n-grams share
    vocab_multiple: int = 64  # the vocabulary is padded to a multiple of this; 1 = not at all, as published models are

    @classmethod
    def from_options(cls, options, vocab_size: int, saved: dict | None = None) -> "ModelConfig":
        """The shape that the options of train.py describe. saved: the fields of a checkpoint to begin from.

        Fields without an option come from the checkpoint, and so does tie_head where it is left at auto.
        """
        shape = {f.name: getattr(options, f.name) for f in fields(cls) if hasattr(options, f.name)}
        auto = (saved or {}).get("tie_head", options.objective != "causal")  # tied, masked words are learned far better
        shape["tie_head"] = {"true": True, "false": False}.get(options.tie_head, auto)
        shape |= CLASSIC.get(options.arch, {}) | {"vocab_size": vocab_size, "causal": options.objective == "causal",
                                                  "n_types": 2 * (options.objective == "mlm_nsp")}
        if saved:
            kept = ["vocab_size", "vocab_multiple", "n_hidden", "norm_eps", *["activation"] * (options.arch in CLASSIC)]
            shape |= {name: saved[name] for name in kept if name in saved}
            if options.arch == "bert":
                shape["n_types"] = max(shape["n_types"], saved.get("n_types", 0))
        return cls(**shape)

    @classmethod
    def from_saved(cls, saved: dict, path) -> "ModelConfig":
        """The shape in a checkpoint's dictionary. Raises UserError where this version does not know a field."""
        saved = {name: value for name, value in saved.items() if name != "gram_dropout"}  # of training, in older files
        unknown = sorted(saved.keys() - {f.name for f in fields(cls)})
        if unknown:
            raise UserError(f"{path}: its model has {', '.join(unknown)}, unknown to this nanoft; use a newer one")
        return cls(**saved)


# The published architectures, as ModelConfig fields.
CLASSIC = {
    "gpt2": dict(position="learned", norm="layernorm", norm_eps=1e-5, qk_norm=False, activation="gelu_tanh", bias=True,
                 embed_norm=False, tie_head=True),
    "bert": dict(position="learned", norm="layernorm", norm_eps=1e-12, qk_norm=False, activation="gelu", bias=True,
                 post_norm=True, tie_head=True),
}


def check_model(cfg):
    """Sentences on what cannot be, for a ModelConfig or a script's config with the same fields."""
    problems = []
    if cfg.n_layer < 0 or min(cfg.n_head, cfg.n_embd, cfg.block_size) < 1:
        return ["n_head, n_embd and block_size must be at least 1, n_layer at least 0"]
    if (min(getattr(cfg, name, 1) for name in ("vocab_size", "vocab_multiple")) < 1
            or min(getattr(cfg, name, 0) for name in ("n_hidden", "n_kv_head", "n_types", "head_dim")) < 0):
        return ["vocab_size must be at least 1, n_hidden, n_kv_head, n_types and head_dim at least 0"]
    if min(cfg.n_gram, cfg.n_buckets) < 1:
        problems.append(f"n_gram={cfg.n_gram} and n_buckets={cfg.n_buckets} must be at least 1")
    learned = getattr(cfg, "position", "rope") == "learned" or getattr(cfg, "arch", "modern") in CLASSIC
    head_dim = getattr(cfg, "head_dim", 0)
    if cfg.n_embd % cfg.n_head and not head_dim:
        problems.append(f"n_embd={cfg.n_embd} is not divisible by n_head={cfg.n_head}; choose a multiple")
    elif (head_dim or cfg.n_embd // cfg.n_head) % 2 and not learned:
        problems.append(f"a head of {head_dim or cfg.n_embd // cfg.n_head} numbers has an odd width; rotary positions "
                        "turn pairs of them, so use an even one")
    if cfg.n_kv_head < 0 or (cfg.n_kv_head and cfg.n_head % cfg.n_kv_head):
        problems.append(f"n_head={cfg.n_head} is not divisible by n_kv_head={cfg.n_kv_head}; choose a divisor, or 0")
    if getattr(cfg, "norm_eps", 1) <= 0:
        problems.append(f"norm_eps={cfg.norm_eps} must be above 0")
    if not 0 <= cfg.dropout < 1:
        problems.append(f"dropout={cfg.dropout} must be at least 0 and below 1")
    return problems


def rotate(x, cos, sin):
    """Rotate each pair (x[i], x[i + D/2]) by its position's angle. x: (B, T, H, D); cos, sin: (T, 1, D/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)


def make_norm(cfg, width):
    if cfg.norm == "layernorm":
        return nn.LayerNorm(width, eps=cfg.norm_eps, bias=cfg.bias)
    return nn.RMSNorm(width, eps=cfg.norm_eps, elementwise_affine=False)


class Attention(nn.Module):
    """softmax(q kᵀ / √D) v for every head (arXiv:1706.03762): who looks at whom, and what is carried over.

    `attend` takes q (B, H, T, D) and k, v (B, K, S, D) to (B, H, T, D). kernels.py puts a function that is faster on
    CPUs in its place, inspect/explain.py one that records the weights; both give the same result. In place of
    `project` kernels.py puts a single product for generation.
    """

    def __init__(self, cfg):
        super().__init__()
        self.n_head, self.n_kv_head = cfg.n_head, cfg.n_kv_head or cfg.n_head
        self.causal, self.qk_norm = cfg.causal, cfg.qk_norm
        width = cfg.head_dim or cfg.n_embd // cfg.n_head
        self.q = nn.Linear(cfg.n_embd, self.n_head * width, bias=cfg.bias)
        self.k = nn.Linear(cfg.n_embd, self.n_kv_head * width, bias=cfg.bias)
        self.v = nn.Linear(cfg.n_embd, self.n_kv_head * width, bias=cfg.bias)
        self.proj = nn.Linear(self.n_head * width, cfg.n_embd, bias=cfg.bias)
        self.attend = F.scaled_dot_product_attention

    def project(self, x):
        """x: (B, T, C) -> q (B, T, H * D), k and v (B, T, K * D)."""
        return self.q(x), self.k(x), self.v(x)

    def forward(self, x, rope=None, mask=None, cache=None):
        """x: (B, T, C) -> (B, T, C).

        rope: (cos, sin) of the positions; mask: bool (B, 1, 1, S), True = may be looked at; cache: this layer's keys
        and values, a nanoft.generate.LayerCache.
        """
        B, T, _ = x.shape
        q, k, v = self.project(x)
        q = q.view(B, T, self.n_head, -1)     # (B, T, H * D) -> (B, T, H, D)
        k = k.view(B, T, self.n_kv_head, -1)  # (B, T, K * D) -> (B, T, K, D)
        v = v.view(B, T, self.n_kv_head, -1)
        if self.qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, S, K, D)
        k, v = k.transpose(1, 2), v.transpose(1, 2)  # (B, S, K, D) -> (B, K, S, D)
        one = cache is not None and T == 1  # then the queries that share a key take the place of T: no copies of keys
        q = q.view(B, self.n_kv_head, -1, q.size(-1)) if one else q.transpose(1, 2)  # (B, K, H / K, D) or (B, H, T, D)
        causal = self.causal and T > 1  # a single new token may look at everything before it
        shared = k.size(1) < q.size(1)  # each key-value head serves a group of query heads
        y = self.attend(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=shared)
        y = (y if one else y.transpose(1, 2)).reshape(B, T, -1)  # (B, H, T, D) -> (B, T, H * D)
        return self.proj(y)  # (B, T, H * D) -> (B, T, C)


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        hidden = cfg.n_hidden or 4 * cfg.n_embd
        self.activation = cfg.activation
        self.fc = nn.Linear(cfg.n_embd, 2 * hidden if cfg.activation == "swiglu" else hidden, bias=cfg.bias)
        self.proj = nn.Linear(hidden, cfg.n_embd, bias=cfg.bias)

    def forward(self, x):
        return self.proj(ACTIVATIONS[self.activation](self.fc(x)))  # (B, T, C) -> (B, T, 4C) -> (B, T, C)


def swiglu(x):
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


ACTIVATIONS = {
    "relu2": lambda x: F.relu(x).square(),
    "swiglu": swiglu,                                            # arXiv:2002.05202
    "gelu": F.gelu,                                              # BERT, RoBERTa
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),        # GPT-2
}


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.post_norm = cfg.post_norm
        self.norm1, self.norm2 = make_norm(cfg, cfg.n_embd), make_norm(cfg, cfg.n_embd)
        self.attn, self.mlp = Attention(cfg), MLP(cfg)
        self.drop = nn.Dropout(cfg.dropout)

    def forward(self, x, rope=None, mask=None, cache=None):
        if self.post_norm:
            x = self.norm1(x + self.drop(self.attn(x, rope, mask, cache)))
            return self.norm2(x + self.drop(self.mlp(x)))
        x = x + self.drop(self.attn(self.norm1(x), rope, mask, cache))
        return x + self.drop(self.mlp(self.norm2(x)))


def hash_multipliers(n):
    """Odd 64-bit numbers, as signed ones: powers modulo 2^64 of 2^64 / golden ratio (Knuth's multiplicative hash)."""
    powers = [pow(0x9E3779B97F4A7C15, i + 1, 2**64) for i in range(n)]
    return torch.tensor([m - 2**64 if m >= 2**63 else m for m in powers])


def gram_rows(ids, multipliers, n_buckets):
    """The table's row for each n-gram that ends at a token, n = 2 to N: ids (B, T), multipliers (N,) -> (B, T, N - 1).

    A sum of products modulo 2^64, of which the upper half is used. Positions before the text hash as 0, so a longer
    n-gram there has the row of the shorter one.
    """
    N = len(multipliers)
    recent = F.pad(ids + 1, (N - 1, 0)).unfold(1, N, 1).flip(-1)  # (B, T) -> (B, T, N), the latest token first
    return (((recent * multipliers).cumsum(-1) >> 32) % n_buckets)[..., 1:]


class Transformer(nn.Module):
    """Token ids to hidden states: embeddings, blocks, final norm. The trunk that GPT and BERT share."""
    multipliers: torch.Tensor  # (N,) of the n-grams' hash
    cos: torch.Tensor          # (block_size, 1, D/2) of the rotary positions
    sin: torch.Tensor

    def __init__(self, cfg):
        super().__init__()
        problems = check_model(cfg)
        if problems:
            raise UserError("\n".join(problems))
        self.cfg = cfg
        self.padded_vocab = -(-cfg.vocab_size // cfg.vocab_multiple) * cfg.vocab_multiple  # full tiles
        self.tokens = nn.Embedding(self.padded_vocab, cfg.n_embd)
        self.positions = nn.Embedding(cfg.block_size, cfg.n_embd) if cfg.position == "learned" else None
        self.types = nn.Embedding(cfg.n_types, cfg.n_embd) if cfg.n_types else None
        self.grams = nn.Embedding(cfg.n_buckets, cfg.n_embd) if cfg.n_gram > 1 else None
        self.norm_in = make_norm(cfg, cfg.n_embd) if cfg.embed_norm else nn.Identity()
        self.drop = nn.Dropout(cfg.dropout)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layer))
        self.norm_out = nn.Identity() if cfg.post_norm else make_norm(cfg, cfg.n_embd)
        with torch.device("cpu"):  # never "meta", where a model without memory is made: no checkpoint holds these
            if cfg.n_gram > 1:
                self.register_buffer("multipliers", hash_multipliers(cfg.n_gram), persistent=False)
            if cfg.position == "rope":
                width = cfg.head_dim or cfg.n_embd // cfg.n_head
                rate = 10000 ** (-torch.arange(0, width, 2) / width)         # (D/2,) radians a token
                angle = torch.arange(cfg.block_size)[:, None, None] * rate   # (block_size, 1, D/2)
                self.register_buffer("cos", angle.cos(), persistent=False)
                self.register_buffer("sin", angle.sin(), persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Variance 1 / fan-in for the matrices; projections that write into the residual stream start at zero."""
        for name, p in self.named_parameters():
            if name.startswith(("types.", "grams.")):
                p.zero_()  # rarely seen rows start at zero
            elif name.startswith(("tokens.", "positions.")):
                p.normal_(std=0.02 if self.cfg.tie_head else 1.0)
            elif name.endswith("proj.weight"):
                p.zero_()
            elif p.dim() == 2:
                p.normal_(std=p.size(1) ** -0.5)
            elif name.endswith("bias"):
                p.zero_()

    def forward(self, ids, types=None, mask=None, cache=None):
        """ids: (B, T) -> (B, T, C). types: (B, T) or None; mask: bool (B, 1, 1, T), False at padding.

        cache: a nanoft.generate.Cache, which says where `ids` stand and what stands before them.
        """
        x = self.tokens(ids)  # (B, T) -> (B, T, C); of pictures (B, 3, H, W) tasks/images.py makes T patches
        T = x.size(1)
        known, at, mask = cache.place(ids) if cache else (ids, slice(T), mask)
        if self.positions is not None:
            x = x + self.positions.weight[at]  # (T, C) or (B, 1, C)
        if self.types is not None:
            x = x + self.types(torch.zeros_like(ids) if types is None else types)
        if self.grams is not None:
            rows = gram_rows(known, self.multipliers, self.cfg.n_buckets)
            x = x + self.grams(rows[:, -T:]).sum(2)  # (B, T, N - 1, C) -> (B, T, C)
        x = self.drop(self.norm_in(x))
        rope = (self.cos[at], self.sin[at]) if self.cfg.position == "rope" else None
        for i, block in enumerate(self.blocks):
            x = block(x, rope, mask, cache.layers[i] if cache else None)
        return self.norm_out(x)


def token_loss(logits, targets):
    """Mean cross-entropy in nats over the targets that are not -100, 0 if all are. logits: (N, V); targets: (N,)."""
    total = F.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="sum")
    return total / (targets != -100).sum().clamp(min=1)


def head_loss(head, x, targets):
    """The mean cross-entropy of a head's logits. x: (N, C); targets: (N,)."""
    return token_loss(head(x), targets)


class GPT(nn.Module):
    """A causal language model: the trunk, and a head that names the next token.

    `head_loss` is put in its place by kernels.py where the logits are many.
    """
    head_loss = staticmethod(head_loss)

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.trunk = Transformer(cfg)
        self.head = make_head(cfg, self.trunk)

    def logits(self, ids):
        """ids: (B, T) -> (B, T, V): what each position expects next; V is the padded vocabulary."""
        return self.head(self.trunk(ids))

    def forward(self, ids, targets=None, cache=None):
        """ids: (B, T). With targets (B, T): the mean loss. Without: the logits of the last token (B, vocab_size)."""
        if targets is None:
            x = self.trunk(ids, cache=cache)
            x = x[:, -1] if cache is None else cache.newest(x)  # (B, T, C) -> (B, C)
            return self.head(x).float()[:, :self.cfg.vocab_size]
        return self.head_loss(self.head, self.trunk(ids).flatten(0, 1), targets.flatten())  # (B, T, C) -> (B * T, C)


class BERT(nn.Module):
    """An encoder (arXiv:1810.04805): the trunk seeing both sides, a masked-word head, a sentence head.

    hidden() and pooled() are what fine-tuning builds on.
    """

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.trunk = Transformer(cfg)
        self.transform = nn.Linear(cfg.n_embd, cfg.n_embd, bias=cfg.bias)
        self.norm = make_norm(cfg, cfg.n_embd)
        self.head = make_head(cfg, self.trunk)
        self.head_bias = nn.Parameter(torch.zeros(self.trunk.padded_vocab))
        if cfg.n_types:  # trained on pairs
            self.pooler = nn.Linear(cfg.n_embd, cfg.n_embd)
            self.next = nn.Linear(cfg.n_embd, 2)  # 0 = the second part follows the first, 1 = it does not
            for layer in (self.pooler, self.next):
                nn.init.normal_(layer.weight, std=cfg.n_embd ** -0.5)
                nn.init.zeros_(layer.bias)

    def hidden(self, ids, types=None, mask=None):
        """One vector a token: ids (B, T) -> (B, T, C). mask: bool (B, T), False at padding."""
        return self.trunk(ids, types, None if mask is None else mask[:, None, None, :])

    def pooled(self, x):
        """One vector a text, from its first token: (B, T, C) -> (B, C)."""
        return torch.tanh(self.pooler(x[:, 0]))

    def word_logits(self, x):
        """(N, C) -> (N, padded vocabulary)."""
        gelu = "gelu_tanh" if self.cfg.activation == "gelu_tanh" else "gelu"
        x = self.norm(ACTIVATIONS[gelu](self.transform(x)))
        return self.head(x) + self.head_bias

    def forward(self, ids, targets, types=None, mask=None, next_targets=None, capacity=0, correct=False):
        """A tensor of losses: the mean over the masked words, and with next_targets (B,) the mean over the pairs.

        With correct=True a second line holds the number of correct predictions of each: (2, 1 or 2).
        targets: (B, T), -100 where a token is not masked. The head, a large part of the work, is computed at the masked
        rows only: `capacity` is a number of rows that is never below theirs, for compiled code, which wants fixed
        shapes; 0 counts them.
        """
        x = self.hidden(ids, types, mask)
        rows, labels = masked_rows(x.flatten(0, 1), targets.flatten(), capacity)  # (B * T, C) -> (N, C)
        asked = [(self.word_logits(rows), labels)]
        if next_targets is not None:
            asked.append((self.next(self.pooled(x)), next_targets))
        losses = torch.stack([token_loss(logits, labels) for logits, labels in asked])
        if not correct:
            return losses
        right = [(logits.argmax(-1) == labels).sum() for logits, labels in asked]
        return torch.stack([losses, torch.stack(right).to(losses.dtype)])


def masked_rows(x, targets, capacity=0):
    """The rows whose target is not -100, first to last, filled up with others. x: (N, C); targets: (N,)."""
    wanted = targets != -100
    order = wanted.nonzero()[:, 0] if not capacity else (~wanted).int().argsort(stable=True)[:capacity]
    return x[order], targets[order]


def make_head(cfg, trunk):
    """Hidden states to vocabulary: the token embedding itself, or a matrix that starts at zero (first loss: log V)."""
    head = nn.Linear(cfg.n_embd, trunk.padded_vocab, bias=False)
    if cfg.tie_head:
        head.weight = trunk.tokens.weight
    else:
        nn.init.zeros_(head.weight)
    return head


def training_flops(model, length, scored=1.0):
    """The operations of training on one token: a product's two a number, forward, and twice as many backward.

    length: tokens a sequence; scored: the fraction of the tokens at which the head is computed. A causal model has to
    compute half of the attention weights.
    """
    cfg = model.cfg
    matrices = sum(p.numel() for name, p in model.named_parameters() if ".blocks." in name and p.dim() == 2)
    head = model.trunk.padded_vocab * cfg.n_embd * scored
    return 6 * (matrices + head) + 12 * cfg.n_layer * cfg.n_embd * length * (0.5 if cfg.causal else 1)


def make_model(cfg):
    return GPT(cfg) if cfg.causal else BERT(cfg)
