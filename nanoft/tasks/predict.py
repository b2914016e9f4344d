"""Prediction: rows -> outputs of the task's head -> predictions that a person reads -> scores; and sentence vectors.

Shapes: N features (a long row may give several), T tokens, C = n_embd, K outputs of the head, M numbers a line of
`outputs`.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanoft import UserError, distributed, generate
from nanoft.batches import IGNORE
from nanoft.distributed import Dist
from nanoft.model import GPT
from nanoft.sampling import Sampling
from nanoft.tasks import collate, features, metrics
from nanoft.tasks.features import Encoded
from nanoft.tasks.heads import TaskModel, mixed, pooled
from nanoft.tasks.linear import n_outputs

BATCH_TOKENS = 8192  # tokens of a batch, padding included
IMPOSSIBLE = -1e9    # the score of an answer that cannot be
LOWER = ("loss", "perplexity", "mae", "rmse")  # scores that are better when lower

# ---- outputs of the model ----------------------------------------------------------------------------------------


@torch.no_grad()
def outputs(model: TaskModel, encoded: Encoded, task: dict, tokenizer, dist: Dist) -> np.ndarray:
    """Numbers for each feature, float64 (N, M), on every rank all of them. The model is in evaluation mode.

    classify, pair, regress, image: the logits; tag: the logits of each word, (words, K); answer: score, start and end
    of the best span, the score of no answer, the log-probability of the span; generate: the nats of the response, its
    number of tokens.
    """
    kind, begin = task["kind"], output_offsets(encoded, task)
    out = np.zeros((begin[-1], output_width(task)))
    for index in length_batches(encoded.lengths)[dist.rank::dist.world_size]:
        batch = distributed.to_device(collate.batch(encoded, index, task, tokenizer), dist.device)
        with dist.autocast():
            if kind == "generate":
                nats = model.nats(batch["ids"], batch["targets"]).sum(1)  # (B, T) -> (B,)
                result = torch.stack((nats, (batch["targets"] != IGNORE).sum(1)), dim=1)
            else:
                result = model.logits(batch["ids"], batch.get("types"), batch.get("mask"), batch.get("allowed"))
                if task.get("mirror"):  # of a class of things the mirror image is one, too
                    result = (result + model.logits(batch["ids"].flip(-1))) / 2
        if kind == "tag":
            result = result[batch["targets"] != IGNORE]  # (B, T, K) -> (words, K)
        if kind == "answer":
            starts = torch.from_numpy(encoded.max_context[index]).to(dist.device)
            result = best_spans(result, starts, task["max_answer"])
        lines = np.concatenate([np.arange(begin[i], begin[i + 1]) for i in index])
        out[lines] = result.cpu().double().numpy()  # in this order: Apple GPUs have no float64
    if dist.world_size > 1:
        out = np.array(distributed.total(out.ravel(), dist)).reshape(out.shape)
    return out


def output_offsets(encoded: Encoded, task: dict) -> np.ndarray:
    """Where the lines of each feature begin in `outputs`, and their number: (N + 1,)."""
    if task["kind"] != "tag":
        return np.arange(len(encoded) + 1)
    return np.searchsorted(np.flatnonzero(encoded.targets != IGNORE), encoded.begin)


def output_width(task: dict) -> int:
    return {"answer": 5, "generate": 2}.get(task["kind"]) or n_outputs(task)


def length_batches(lengths: np.ndarray) -> list[np.ndarray]:
    """The numbers of the features in batches of similar lengths, longest first, of about BATCH_TOKENS tokens each."""
    order, groups = lengths.argsort(kind="stable"), []
    while len(order):
        size = max(1, BATCH_TOKENS // int(lengths[order[-1]]))
        order, group = order[:-size], order[-size:]
        groups.append(group)
    return groups


def best_spans(logits: Tensor, starts: Tensor, max_answer: int) -> Tensor:
    """The most likely span of each feature: logits (B, T, 2), starts (B, 2) -> (B, 5), see `outputs`.

    A span starts at the positions starts[0] to starts[1] - 1 and has 1 to max_answer tokens.
    """
    _, T, _ = logits.shape
    position = torch.arange(T, device=logits.device)
    may_start = (position >= starts[:, :1]) & (position < starts[:, 1:])     # (B, T)
    width = position - position[:, None]                                     # (T, T) end minus start
    valid = may_start[:, :, None] & (width >= 0) & (width < max_answer)      # (B, T, T)
    scores = logits[..., 0][:, :, None] + logits[..., 1][:, None]            # (B, T, T) of start, end
    score, best = scores.masked_fill(~valid, -torch.inf).flatten(1).max(dim=1)
    log_p = score - logits.logsumexp(dim=1).sum(dim=1)
    columns = (score, best // T, best % T, logits[:, 0].sum(1), log_p)
    return torch.stack([column.to(logits.dtype) for column in columns], dim=1).clamp(min=IMPOSSIBLE)


# ---- predictions -------------------------------------------------------------------------------------------------


def predictions(task: dict, rows: list[dict], encoded: Encoded, out: np.ndarray) -> list[dict]:
    """A dictionary for each row: `prediction`, and by kind

    classify, pair, image: a label, multi-label a list; `probabilities` by label. regress: a number. tag: a tag for each
    word, `probabilities` of these. answer: the text, "" for none, `start`, its first character, and `probability`.
    generate: no prediction (see write_responses), but the `nats` and `tokens` of the response.
    """
    kind, labels = task["kind"], task.get("labels", ())
    if kind == "generate":
        return [{"nats": float(nats), "tokens": int(tokens)} for nats, tokens in out]
    if kind == "answer":
        return answers(task, rows, encoded, out)
    if kind == "tag":
        probabilities = np.exp(log_softmax(out))  # (words, K)
        lengths = [len(row["words"]) for row in rows]
        ends, best = np.cumsum(lengths)[:-1], chosen_tags(task, out, lengths)
        by_sentence = zip(*(np.split(x, ends) for x in (best, probabilities[np.arange(len(best)), best])))
        return [{"prediction": [labels[k] for k in best], "probabilities": [round(float(p), 6) for p in largest]}
                for best, largest in by_sentence]
    logits = by_row(encoded, out)
    if kind == "regress":
        return [{"prediction": float(x)} for x in logits[:, 0] * task["deviation"] + task["mean"]]
    several = task.get("multi_label")
    thresholds = [task.get("thresholds", {}).get(label, 0.5) for label in labels]
    probabilities = sigmoid(logits) if several else np.exp(log_softmax(logits))
    return [{"prediction": [label for label, x, least in zip(labels, p, thresholds) if x > least] if several
             else labels[p.argmax()],
             "probabilities": {label: round(float(x), 6) for label, x in zip(labels, p)}} for p in probabilities]


def chosen_tags(task: dict, logits: np.ndarray, lengths: list[int]) -> np.ndarray:
    """The number of each word's tag: logits (words, K) -> (words,). lengths: the words of each sentence.

    The likeliest tag, after O's threshold (nats) is taken from its log-probability; with `transitions`, the likeliest
    sequence of tags for each sentence (Viterbi), so that a name's second word follows its first.
    """
    score = log_softmax(logits) - [task.get("thresholds", {}).get(label, 0.0) for label in task["labels"]]
    if "transitions" not in task:
        return score.argmax(axis=1)
    after, (S, L, K) = np.array(task["transitions"]), (len(lengths), max(lengths), score.shape[1])
    inside = np.arange(L) < np.array(lengths)[:, None]                     # (S, L)
    words = np.zeros((S, L, K))
    words[inside] = score
    best, back = words[:, 0] + after[K], np.tile(np.arange(K), (S, L, 1))  # (S, K) of what ends so far in each tag
    for t in range(1, L):
        ways, more = best[:, :, None] + after[:K], inside[:, t]            # (S, K before, K)
        back[more, t] = ways.argmax(1)[more]
        best = np.where(more[:, None], ways.max(1) + words[:, t], best)
    tags = np.empty((S, L), dtype=np.int64)
    tags[:, -1] = best.argmax(1)
    for t in range(L - 1, 0, -1):
        tags[:, t - 1] = back[np.arange(S), t, tags[:, t]]
    return tags[inside]


def transitions(labels: list[str], rows: list[dict]) -> list[list[float]]:
    """(K + 1, K): how much commoner tag k is after tag j (last row: at the start of a sentence) than anywhere.

    As a quarter of the log of the ratio, since the words of a sentence tell most of it already (LOG.md).
    """
    K, number = len(labels), {label: k for k, label in enumerate(labels)}
    count = np.full((K + 1, K), 0.1)  # as if each had been seen a tenth of a time
    for row in rows:
        tags = [number[tag] for tag in row["tags"]]
        np.add.at(count, ([K, *tags[:-1]], tags), 1)
    anywhere = count.sum(0) / count.sum()
    return (0.25 * np.log(count / count.sum(1, keepdims=True) / anywhere)).round(6).tolist()


def has_thresholds(task: dict) -> bool:
    """Does the task have thresholds chosen on the validation rows: of each label (multi-label), or of the tag O?"""
    return bool(task.get("multi_label")) or task["kind"] == "tag" and task["metric"] == "f1" and "O" in task["labels"]


def best_share(task: dict, rows: list[dict], encoded: Encoded, out: np.ndarray, linear: np.ndarray) -> float:
    """The share of a linear model's outputs beside the head's own, 0 to 1, with the least loss on these rows."""
    def loss(share):
        both = mixed(out, linear, {"linear_share": share})
        return scores(task, rows, predictions(task, rows, encoded, both), encoded, both)[0]["loss"]

    return min((i / 10 for i in range(10, -1, -1)), key=loss)


def best_thresholds(task: dict, rows: list[dict], encoded: Encoded, out: np.ndarray) -> dict[str, float]:
    """{label: the probability above which a text gets it}, for the best F1 of the label on these rows (multi-label).

    It lies half-way between two probabilities; of equally good ones the nearest to 0.5; 0.5 for a label without rows.
    For tag {"O": nats to take from its log-probability}: most words are O, so a rare tag would never be the likeliest.
    """
    if task["kind"] == "tag":
        def entity_f1(least):
            guesses = predictions(task | {"thresholds": {"O": least}}, rows, encoded, out)
            return scores(task, rows, guesses, encoded, out)[0]["f1"]

        return {"O": max((i / 2 for i in range(11)), key=entity_f1)}
    thresholds = {}
    for k, label in enumerate(task["labels"]):
        p = sigmoid(by_row(encoded, out)[:, k])
        order = np.argsort(-p, kind="stable")
        p, truth = p[order], np.array([label in row["labels"] for row in rows])[order]
        below = np.append(p[1:], 0.0)
        _, _, f1 = metrics.precision_recall_f1(truth.cumsum(), np.arange(1, len(p) + 1), truth.sum())  # (rows,)
        f1[p == below] = 0.0  # no threshold separates equal ones
        middle = ((p + below) / 2)[f1 == f1.max()]
        thresholds[label] = float(middle[abs(middle - 0.5).argmin()]) if truth.any() else 0.5
    return thresholds


def entity_spans(row: dict, guess: dict) -> list[dict]:
    """The entities of a tagged row with text and offsets: [{label, start, end, text, probability}], in order.

    start, end: the first of its characters and the one after the last; probability: the mean over its words.
    """
    spans = []
    for label, first, last in metrics.entities(guess["prediction"]):
        start, end = row["offsets"][first][0], row["offsets"][last][1]
        probability = round(float(np.mean(guess["probabilities"][first:last + 1])), 6)
        spans.append({"label": label, "start": start, "end": end, "text": row["text"][start:end],
                      "probability": probability})
    return spans


@torch.no_grad()
def write_responses(model: TaskModel, rows: list[dict], task: dict, tokenizer, dist: Dist, longest: int) -> list[str]:
    """What a GPT answers to the prompts: always the likeliest token, up to <|endoftext|> or `longest` tokens."""
    with torch.device("meta"):
        gpt = GPT(model.cfg)
    gpt.trunk, gpt.head = model.trunk, model.head
    end = tokenizer.special["<|endoftext|>"]
    prompts = [tokenizer.encode_to_numpy(features.prompt_text(row["prompt"]))[-task["max_length"]:] for row in rows]
    texts, order = [""] * len(rows), sorted(range(len(rows)), key=lambda i: len(prompts[i]))
    rules = Sampling(temperature=0, stop_ids=(end,))
    for group in (order[at:at + 64] for at in range(0, len(order), 64)):  # of similar lengths
        ids = [torch.from_numpy(prompts[i].astype(np.int64)) for i in group]
        with dist.autocast():
            new = torch.stack(list(generate.generate(gpt, ids, longest, rules)), dim=1)
        for i, tokens in zip(group, new.tolist()):  # (B, new tokens)
            texts[i] = tokenizer.decode(tokens[:tokens.index(end)] if end in tokens else tokens)
    return texts


def answers(task: dict, rows: list[dict], encoded: Encoded, out: np.ndarray) -> list[dict]:
    """The `predictions` of questions: of each row's windows the span with the highest score, or no answer."""
    guesses = []
    begin = np.searchsorted(encoded.row, np.arange(len(rows) + 1))  # where each row's features begin, (rows + 1,)
    for i, row in enumerate(rows):
        windows = out[begin[i]:begin[i + 1]]  # (windows, 5)
        best = begin[i] + windows[:, 0].argmax()
        score, first, last, _, log_p = out[best]
        if score == IMPOSSIBLE or task["v2"] and windows[:, 3].min() > score:
            guesses.append({"prediction": "", "start": -1, "probability": 0.0})
            continue
        char_start, char_end = encoded.offsets[i]  # of the context's tokens
        shift = encoded.context_start[best] - encoded.second[best]  # from the feature's positions to the context's
        start = char_start[int(first) + shift]
        text = row["context"][start:char_end[int(last) + shift]]
        guesses.append({"prediction": text.strip(), "start": int(start + len(text) - len(text.lstrip())),
                        "probability": round(math.exp(log_p), 6)})
    return guesses


def by_row(encoded: Encoded, out: np.ndarray) -> np.ndarray:
    """The mean of the outputs of each row's features: (N, K) -> (rows, K)."""
    sums = np.zeros((len(encoded.n_tokens), out.shape[1]))
    np.add.at(sums, encoded.row, out)
    return sums / np.bincount(encoded.row, minlength=len(sums))[:, None]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))  # never too large a power


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


# ---- scores ------------------------------------------------------------------------------------------------------


def scores(task: dict, rows: list[dict], guesses: list[dict], encoded: Encoded, out: np.ndarray) -> tuple:
    """The scores of the predictions, as metrics.py gives them, and the confusion matrix (K, K) or None.

    `loss` where there is one: nats a text, word or token; the mean square for regress, in the label's deviations.
    Raises UserError where the rows cannot be scored.
    """
    kind, labels = task["kind"], task.get("labels", ())
    number = {label: i for i, label in enumerate(labels)}
    if kind == "generate":
        nats, tokens = out.sum(axis=0)
        loss = {"loss": nats / tokens, "perplexity": math.exp(min(nats / tokens, 700))}
        pairs = [(guess["prediction"], row["response"]) for row, guess in zip(rows, guesses) if "prediction" in guess]
        if pairs:  # of the rows that were answered
            loss |= {"rouge_l": math.fsum(metrics.rouge_l(*pair) for pair in pairs) / len(pairs),
                     "exact": sum(guess.strip() == truth.strip() for guess, truth in pairs) / len(pairs)}
        return loss, None
    if kind == "answer":
        answers = [[answer["text"] for answer in row["answers"]] for row in rows]
        return metrics.squad_scores(answers, [guess["prediction"] for guess in guesses], task["v2"]), None
    if kind == "regress":
        truth, guess = np.array([row["label"] for row in rows]), np.array([item["prediction"] for item in guesses])
        return {"loss": float((((truth - guess) / task["deviation"]) ** 2).mean()),
                "pearson": metrics.pearson(truth, guess), "spearman": metrics.spearman(truth, guess),
                "mae": float(abs(truth - guess).mean()), "rmse": math.sqrt(((truth - guess) ** 2).mean())}, None
    if task.get("multi_label"):
        truth, guess = (np.array([np.isin(labels, item[name]) for item in items])
                        for items, name in ((rows, "labels"), (guesses, "prediction")))  # bool (rows, K)
        logits = by_row(encoded, out)
        loss = (np.logaddexp(0, logits) - truth * logits).mean()
        return {"loss": float(loss)} | metrics.multi_label(truth, guess, labels), None
    if kind == "tag":
        truth = np.array([number[tag] for row in rows for tag in row["tags"]])
        guess = np.array([number[tag] for item in guesses for tag in item["prediction"]])
        log_p = log_softmax(out)
    else:
        truth = np.array([number[row["label"]] for row in rows])
        guess = np.array([number[item["prediction"]] for item in guesses])
        log_p = log_softmax(by_row(encoded, out))
    matrix = metrics.confusion(truth, guess, len(labels))
    loss = {"loss": float(-log_p[np.arange(len(truth)), truth].mean())}
    if kind == "tag" and has_entities(labels):
        tags = [row["tags"] for row in rows], [item["prediction"] for item in guesses]
        entity = {"accuracy": float((truth == guess).mean())} | metrics.entity_scores(*tags)
        if metrics.tag_scheme(tags[0]) not in ("", "IOB1"):  # else strictly there is no entity
            strict = metrics.entity_scores(*tags, strict=True)
            entity |= {f"strict_{name}": strict[name] for name in metrics.PRF}
        return loss | entity, matrix
    positive = labels.index(task["positive"]) if task.get("positive") in labels else 1
    if len(labels) == 2:
        loss["auc"] = metrics.auc(truth == positive, log_p[:, positive] - log_p[:, 1 - positive])
    return loss | metrics.classification(truth, guess, labels, positive), matrix


def has_entities(labels: list[str]) -> bool:
    """Do the tags mark entities, so that whole entities are scored?"""
    return metrics.tag_scheme([labels]) != ""


def check_scores(task: dict, rows: list[dict], encoded: Encoded) -> None:
    """Raises UserError where these rows cannot be scored, or not by the task's metric: tried with made-up outputs."""
    made_up = IMPOSSIBLE if task["kind"] == "answer" else 1.0
    out = np.full((output_offsets(encoded, task)[-1], output_width(task)), made_up)
    main_score(task, scores(task, rows, predictions(task, rows, encoded, out), encoded, out)[0])


def main_score(task: dict, scores: dict) -> float:
    """What evaluations are ranked by: the task's metric, with its sign changed where lower is better.

    A score that cannot be computed (nan), as a correlation where all labels are the same, counts as the worst. Among
    such scores, and among equal ones, the one with the least loss is the best.

    Raises UserError for a metric that is none of the scores.
    """
    if task["metric"] not in scores:
        raise UserError(f"metric={task['metric']} is no score of a {task['kind']} task; choose one of "
                        f"{', '.join(k for k, v in scores.items() if isinstance(v, float))}")
    score = float(scores[task["metric"]]) * (-1 if task["metric"] in LOWER else 1)
    loss = float(scores.get("loss", 0.0))
    return -1e9 - loss if math.isnan(score) else score - 1e-9 * loss


# ---- sentence vectors of an encoder (arXiv:1908.10084), as sentence-transformers makes them ----------------------


@torch.no_grad()
def sentence_vectors(trunk, texts: list[str], tokenizer, dist: Dist) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of N texts, float32 (N, C), and how many tokens each text has, (N,).

    A vector is the mean of the last hidden states of all tokens, <|cls|> and <|sep|> included, of length 1, so that
    the cosine of two texts is the product of their vectors. Tokens beyond block_size are left out.
    """
    task = {"kind": "classify", "max_length": trunk.cfg.block_size, "long_text": "head"}
    encoded = features.encode([{"text": text} for text in texts], task, tokenizer)
    vectors = np.empty((len(texts), trunk.cfg.n_embd), dtype=np.float32)
    for index in length_batches(encoded.lengths):
        batch = distributed.to_device(collate.batch(encoded, index, task, tokenizer), dist.device)
        mask = batch.get("mask")  # (B, T)
        with dist.autocast():
            x = trunk(batch["ids"], mask=None if mask is None else mask[:, None, None, :])  # (B, T, C)
        vectors[index] = F.normalize(pooled(x.float(), mask, "mean"), dim=-1).cpu().numpy()  # (B, T, C) -> (B, C)
    return vectors, encoded.n_tokens
