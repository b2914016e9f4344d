"""A linear model of hashed n-grams of tokens, fitted in seconds: the baseline of every report, a second opinion beside
the blocks of a pretrained model, and for a table without one the model itself: blocks from scratch did not beat it
(LOG.md).

What TF-IDF with logistic regression is in other libraries, on the tokens that the neural model reads. A text becomes
its distinct tokens and pairs of neighbours, each weighted by (1 + log count) * idf, the vector scaled to length 1
(Salton and Buckley 1988); a weight for each of them and each class is fitted by L-BFGS with an L2 penalty, smaller for
n-grams that naive Bayes finds telling (after Wang and Manning 2012, aclanthology.org/P12-2018). Of two texts, a token
is told apart by the text in which it stands and by whether the other text has it, too: four tokens instead of one.

Where words are tagged, each word is such a text, made of its own spelling (in lower case, as a shape such as "Xxd", its
first and last letters) and of the words on both sides, by which names are known that were never seen (as in Ratinov and
Roth 2009, aclanthology.org/W09-1119).

Shapes: B texts, T tokens, V vocabulary, K outputs, M distinct n-grams of each text, over all texts of a batch.
"""

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoft.batches import IGNORE
from nanoft.model import hash_multipliers
from nanoft.tasks.collate import token_types
from nanoft.tasks.features import Encoded

PENALTIES = (1, 10, 100)  # C: |W|^2 / (2 * C * rows) is added to the mean loss; the best by validation loss is taken
SPACE = ord(" ") << 2  # as in spelling()
LETTERS = 20  # of a word that is tagged, its leading space included; the rest is not read


class NGramLinear(nn.Module):
    """Logits of a text from its n-grams. table: (n_buckets, K); idf: (n_buckets,), 0 for what training lacks.

    Both are found by fit(), not by gradient descent, and saved with the model. spelling: (V, LETTERS), for tag only.
    """

    table: Tensor
    idf: Tensor
    spelling: Tensor
    multipliers: Tensor

    def __init__(self, task: dict, vocab_size: int = 0):
        """vocab_size: of the tokenizer where words are tagged, 0 for the other kinds."""
        super().__init__()
        self.n_buckets, self.tags = n_buckets(task), vocab_size > 0
        if self.tags:
            self.register_buffer("spelling", torch.zeros(vocab_size, LETTERS, dtype=torch.long))
        self.register_buffer("table", torch.zeros(self.n_buckets, n_outputs(task)))
        self.register_buffer("idf", torch.zeros(self.n_buckets))
        with torch.device("cpu"):  # never "meta": no checkpoint holds these
            self.register_buffer("multipliers", hash_multipliers(LETTERS), persistent=False)

    def keys(self, ids: Tensor, types: Tensor | None) -> Tensor:
        """The bucket of each token and of each pair that ends at it. ids, types: (B, T) -> (B, T, 2)."""
        ids = ids + 1 if types is None else ids + 1 + (types << 20)
        before = F.pad(ids, (1, 0))[:, :-1]                                  # (B, T) the token before, 0 for none
        hashed = torch.stack((ids, before), dim=-1) * self.multipliers[:2]   # (B, T, 2)
        return (hashed.cumsum(-1) >> 32) % self.n_buckets                    # (B, T, 2)

    def words(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The words that tokens make, (B, W, LETTERS) as in spelling(), and the number of each token's word, (B, T).

        A word begins with a token that begins with a space. W = T + 1: word 0 stands before the first, and is empty.
        """
        B, T = ids.shape
        letters = self.spelling[ids] if mask is None else self.spelling[ids] * mask[..., None]  # (B, T, LETTERS)
        number = (letters[..., 0] == SPACE).cumsum(1)                                           # (B, T), from 0 to T
        end = (letters > 0).sum(-1).cumsum(1)              # (B, T): how many letters the tokens up to this one have
        last = end.new_zeros(B, T + 1).scatter_reduce(1, number, end, "amax")  # (B, W): the same for whole words
        begin = F.pad(end, (1, 0))[:, :-1] - F.pad(last, (1, 0)).gather(1, number)  # (B, T): of the token in its word
        place = begin[..., None] + torch.arange(LETTERS, device=ids.device)         # (B, T, LETTERS)
        place = torch.where(letters > 0, place, LETTERS).clamp(max=LETTERS)         # a column that is dropped below
        place = number[..., None] * (LETTERS + 1) + place
        spelled = letters.new_zeros(B, (T + 1) * (LETTERS + 1)).scatter(1, place.flatten(1), letters.flatten(1))
        return spelled.view(B, T + 1, -1)[..., :LETTERS], number

    def surroundings(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Buckets of the spelling of each token's word and of the words beside it: (B, T) -> (B, T, 19)."""
        words, number = self.words(ids, mask)
        lower, case, powers = words >> 2, words & 3, self.multipliers                  # (B, W, LETTERS), W = T + 1
        case = torch.where(case > 0, case, words)                                      # signs stand for themselves
        changes = (case != F.pad(case, (1, 0))[..., :-1]) * (case > 0)                 # " Xxd" of " Rome27"
        shape = total(case * changes * powers[(changes.cumsum(-1) - 1).clamp(min=0)])  # (B, W)
        last = ((words > 0).sum(-1, keepdim=True) - torch.arange(1, 4, device=ids.device)).clamp(min=0)  # (B, W, 3)
        forms = [total(some * powers[:some.size(-1)]) for some in (
            lower, lower[..., :3], lower[..., :4], lower.gather(-1, last[..., :2]), lower.gather(-1, last))]
        own = torch.stack((forms[0], shape), -1)                                       # (B, W, 2)
        beside = [own.roll(n, dims=1) for n in (2, 1, -1, -2)]                         # (B, W, 2); word 0 is empty
        pairs = [beside[1] * powers[1] + own, own * powers[1] + beside[2]]
        bias = torch.zeros_like(shape)                                                 # the same for every word
        found = torch.cat((torch.stack([*forms, shape, bias], -1), *beside, *pairs), -1)          # (B, W, 19)
        kind = torch.arange(found.size(-1), device=ids.device) * 2**32
        buckets = ((found + kind) * powers[0] >> 32) % self.n_buckets
        return buckets.gather(1, number[..., None].expand(-1, -1, found.size(-1)))

    def ngrams(self, ids: Tensor, mask: Tensor | None, types: Tensor | None,
               words: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The distinct n-grams of texts: number of the text, bucket, count, each (M,). ids, mask, types: (B, T).

        words: of tags, bool (B, T), the tokens whose surroundings are a text each; None: all tokens.
        """
        if self.tags:
            keys = self.surroundings(ids, mask)
            keys = keys.flatten(0, 1) if words is None else keys[words]                         # (words, 19)
            keys = keys + self.n_buckets * torch.arange(keys.size(0), device=ids.device)[:, None]
        else:
            keys = self.keys(ids, types) + self.n_buckets * torch.arange(len(ids), device=ids.device)[:, None, None]
            keys = keys if mask is None else keys[mask]
        keys, counts = keys.flatten().unique(return_counts=True)
        return keys // self.n_buckets, keys % self.n_buckets, counts

    def weights(self, text: Tensor, bucket: Tensor, count: Tensor, n_texts: int) -> Tensor:
        """(1 + log count) * idf, so that the vector of each text has length 1: (M,)."""
        weight = (1 + count.float().log()) * self.idf[bucket]
        norm = weight.new_zeros(n_texts).index_add(0, text, weight.square()).sqrt()
        return weight / norm.clamp(min=1e-9)[text]

    def forward(self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """ids, mask: (B, T) -> (B, K), of tags (B, T, K). types: (B, T) of two texts, 0 and 1, of shared ones 2, 3."""
        text, bucket, count = self.ngrams(ids, mask, types)
        n_texts = ids.numel() if self.tags else len(ids)
        weight = self.weights(text, bucket, count, n_texts)
        logits = self.table.new_zeros(n_texts, self.table.size(1)).index_add(
            0, text, weight[:, None] * self.table[bucket])
        return logits.view(*ids.shape, -1) if self.tags else logits


def total(x: Tensor) -> Tensor:
    """The sum over the last dimension, in integers modulo 2^64; onnxruntime's own sum would round large ones."""
    return x.cumsum(-1)[..., -1]


def n_buckets(task: dict) -> int:
    """The rows of a task's table, by its K where the task does not say: above 4 outputs, and in older runs."""
    return task.get("linear_buckets") or (2**18 if n_outputs(task) <= 16 else 2**15)


def n_outputs(task: dict) -> int:
    """K, the numbers that a head gives for a text, or for each of its tokens."""
    return {"regress": 1, "answer": 2}.get(task["kind"]) or len(task["labels"])


@torch.no_grad()
def contributions(model: NGramLinear, ids: Tensor, types: Tensor | None) -> Tensor:
    """What each token of a text adds to its logits: ids, types (T,) -> (T, K). Two neighbours share their pair's part.

    The sum over the tokens is the model's output, forward(ids[None])[0].
    """
    keys, inverse, count = model.keys(ids[None], None if types is None else types[None])[0].unique(
        return_inverse=True, return_counts=True)  # (M,), (T, 2), (M,)
    weight = model.weights(torch.zeros_like(keys), keys, count, 1) / count  # (M,) of one occurrence
    single, pair = (weight[:, None] * model.table[keys])[inverse].unbind(1)  # (T, K) each, of tokens, of pairs
    return single + pair / 2 + F.pad(pair[1:], (0, 0, 0, 1)) / 2 + F.pad(pair[:1], (0, 0, 0, len(ids) - 1)) / 2


def fit(task: dict, train: Encoded, val: Encoded, tokenizer=None, class_weights: Tensor | None = None) -> NGramLinear:
    """The model fitted on the training features, its penalty chosen by the validation loss; a few seconds.

    task: of a kind in features.LINEAR, multi-label too. tokenizer: needed for tag only. class_weights: (K,), or None.
    """
    tags = task["kind"] == "tag"
    model = NGramLinear(task, tokenizer.vocab_size if tags else 0)
    if tags:
        model.spelling = spelling(tokenizer)
    y, y_val = (torch.from_numpy(encoded.targets[encoded.targets != IGNORE] if tags else encoded.targets)
                for encoded in (train, val))
    text, bucket, count = count_all(model, train)
    df = torch.bincount(bucket, minlength=model.n_buckets).float()
    idf = ((1 + len(y)) / (1 + df)).log() + 1 if not tags else torch.ones_like(df)  # rare spellings tell no more
    model.idf = torch.where(df > 0, idf, 0.0)
    used = df.nonzero()[:, 0]  # the buckets that occur
    X = matrix(model, text, bucket, count, len(y), used)
    V = matrix(model, *count_all(model, val), len(y_val), used)
    Xt, W, best = X.t().to_sparse_csr(), torch.zeros(len(used), model.table.size(1)), float("inf")
    scale = 1.0 if task["kind"] in ("regress", "tag") else naive_bayes(
        Xt, y if task.get("multi_label") else F.one_hot(y, W.size(1)).float())
    for C in PENALTIES:
        W = solve(X, Xt, y, W, scale, 1 / (C * len(y)), task, class_weights)
        loss = loss_of(V @ (scale * W), y_val, task, class_weights).item()
        if loss < best:
            best, model.table[used] = loss, scale * W
    return model.eval()


def spelling(tokenizer) -> Tensor:
    """The letters of each token, int64 (V, LETTERS), 0 where it has no more. A special token is a word of its own.

    A letter is 4 * (Unicode's number of its lower case), plus 1 for a capital, 2 for a small letter, 3 for a digit.
    """
    kinds = (str.isupper, str.islower, str.isdigit)
    rows = [[(ord(c.lower()[0]) << 2) + next((i for i, is_it in enumerate(kinds, 1) if is_it(c)), 0)
             for c in (" " if special else token.decode("utf-8", "replace"))[:LETTERS]]
            for token, special in zip(tokenizer.token_bytes, tokenizer.is_special)]
    return torch.tensor([row + [0] * (LETTERS - len(row)) for row in rows])


def naive_bayes(Xt: Tensor, is_class: Tensor) -> Tensor:
    """How much each n-gram tells for or against each class: (columns, K), 0.25 if it tells nothing, else more.

    0.25 + 0.75 * |log r|, where r is how much commoner the n-gram is in the class's texts than in all others, every
    count 1 higher. Xt: (columns, n), sparse; is_class: (n, K), 0 or 1.
    """
    occurs = torch.sparse_csr_tensor(Xt.crow_indices(), Xt.col_indices(), torch.ones_like(Xt.values()), Xt.shape)
    inside, outside = 1 + occurs @ is_class, 1 + occurs @ (1 - is_class)  # texts with the n-gram, (columns, K)
    return 0.25 + 0.75 * ((inside / inside.sum(0)) / (outside / outside.sum(0))).log().abs()


def outputs(model: NGramLinear, encoded: Encoded) -> np.ndarray:
    """The logits of all features, (N, K), of tags (words, K), as predict.outputs gives them for a whole model."""
    used, n_texts = torch.arange(model.n_buckets), (encoded.targets != IGNORE).sum() if model.tags else len(encoded)
    return (matrix(model, *count_all(model, encoded), n_texts, used) @ model.table).numpy().astype(float)


def count_all(model: NGramLinear, encoded: Encoded, size: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """The n-grams of all features, as NGramLinear.ngrams gives them."""
    parts, two_texts, done = [], (encoded.second < encoded.lengths).any(), 0
    for first in range(0, len(encoded), size):
        lengths, second = encoded.lengths[first:first + size], encoded.second[first:first + size]
        mask = np.arange(lengths.max()) < lengths[:, None]  # (B, T)
        tokens = slice(encoded.begin[first], encoded.begin[first + len(lengths)])
        ids, words = np.zeros(mask.shape, dtype=np.int64), None
        ids[mask] = encoded.ids[tokens]
        if model.tags:
            words = torch.zeros(mask.shape, dtype=torch.bool)
            words[torch.from_numpy(mask)] = torch.from_numpy(encoded.targets[tokens] != IGNORE)
        types = torch.from_numpy(token_types(ids, second, mask, match=True)) if two_texts else None
        text, bucket, count = model.ngrams(torch.from_numpy(ids), torch.from_numpy(mask), types, words)
        parts.append((text + done, bucket, count))
        done += len(lengths) if words is None else int(words.sum())
    text, bucket, count = (torch.cat(columns) for columns in zip(*parts))
    return text, bucket, count


def matrix(model: NGramLinear, text: Tensor, bucket: Tensor, count: Tensor, n_texts: int, used: Tensor) -> Tensor:
    """The weighted n-grams as a sparse matrix (n_texts, len(used)); what is not in the buckets `used` weighs 0."""
    begin = F.pad(torch.bincount(text, minlength=n_texts).cumsum(0), (1, 0))
    column = torch.searchsorted(used, bucket).clamp(max=len(used) - 1)
    weight = model.weights(text, bucket, count, n_texts)
    with warnings.catch_warnings():  # that torch does not check the indices of such a matrix
        warnings.simplefilter("ignore")
        return torch.sparse_csr_tensor(begin, column, weight, size=(n_texts, len(used)))


def loss_of(z: Tensor, y: Tensor, task: dict, class_weights: Tensor | None) -> Tensor:
    """Mean loss of outputs z: (n, K), as TaskModel has it for these kinds. class_weights: (K,), or None."""
    if task["kind"] == "regress":
        return (z[:, 0] - y).square().mean()
    return F.binary_cross_entropy_with_logits(z, y) if task.get("multi_label") else F.cross_entropy(z, y, class_weights)


def solve(X: Tensor, Xt: Tensor, y: Tensor, start: Tensor, scale, penalty: float, task: dict, class_weights) -> Tensor:
    """The W, (columns, K), that minimises loss_of(X (scale W)) + penalty / 2 * |W|^2. X: (n, columns), sparse; Xt: its
    transpose; scale: (columns, K), or a number; start: where the search for W begins.
    """
    W = start.clone()
    optimizer = torch.optim.LBFGS([W], max_iter=60, tolerance_grad=1e-5, tolerance_change=1e-7,
                                  line_search_fn="strong_wolfe")

    def closure():
        with torch.enable_grad():
            z = (X @ (scale * W)).requires_grad_()  # the gradient of a sparse product is taken by hand
            loss = loss_of(z, y, task, class_weights)
            loss.backward()
        assert z.grad is not None
        W.grad = scale * (Xt @ z.grad) + penalty * W
        return loss.detach() + penalty / 2 * W.square().sum()

    with torch.no_grad():
        optimizer.step(closure)
    return W
