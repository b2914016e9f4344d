"""Scores of a task without a neural network, which a fine-tuned model must beat.

    python -m bench.baselines --data=sst2,mrpc,wnut17,chnsenticorp,squad

- majority: the most frequent class of the training rows
- words: multinomial naive Bayes (add-one smoothing) on words and word pairs, or on one to three characters of a
  language without spaces; for two texts, on the words that both have and those that only one has
- overlap (two texts): the fraction of common words, with the threshold that is best on the training rows
- longest match (tags): the longest sequence of words that is an entity in training, with its most frequent type
- sentence (answers): the sentence of the context with most words of the question
"""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from nanoft import UserError, config
from nanoft.tasks import metrics
from nanoft.tasks.examples import load_task
from nanoft.text import prepare


@dataclass
class Options:
    data: str = "sst2"  # data sets, separated by commas: folders under data/, or paths


def check(cfg):
    return [] if cfg.data.strip() else ["--data names no data set; give one, such as sst2"]


def main():
    cfg = config.load(Options, check=check)
    for name in cfg.data.split(","):
        folder = prepare.find_data(name.strip())
        prepare.ensure(folder, ("train.jsonl", "val.jsonl", "task.json"))
        task, rows = load_task(folder)
        if task["kind"] not in BASELINES:
            raise UserError(f"{folder} is a {task['kind']} task, for which there is no baseline here; leave it out")
        for split in [split for split in ("val", "test") if split in rows]:
            for title, scores in BASELINES[task["kind"]](task, rows["train"], rows[split]):
                print(f"{folder.name:14} {split:5} {title:14} " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items()),
                      flush=True)


def scores_of_classes(task: dict, truth: list[str], guess: list[str]) -> dict[str, float]:
    number = {label: i for i, label in enumerate(task["labels"])}
    scores = metrics.classification(*(np.array([number[x] for x in labels]) for labels in (truth, guess)),
                                    task["labels"])
    return {name: scores[name] for name in ("accuracy", "f1", "macro_f1") if name in scores}


def classify(task, train, rows):
    truth, known = [row["label"] for row in rows], [row["label"] for row in train]
    yield "majority", scores_of_classes(task, truth, [Counter(known).most_common(1)[0][0]] * len(rows))
    yield "words", scores_of_classes(task, truth, naive_bayes([features(row) for row in train], known,
                                                              [features(row) for row in rows]))
    if "pair" in train[0]:
        yield "overlap", scores_of_classes(task, truth, by_threshold([overlap(row) for row in train], known,
                                                                     [overlap(row) for row in rows]))


def words(text: str) -> list[str]:
    """Lowercased words; the characters of a text with Chinese characters."""
    return re.findall(r"[\u4e00-\u9fff]" if re.search(r"[\u4e00-\u9fff]", text) else r"\w+|[^\w\s]", text.lower())


def features(row: dict) -> list[str]:
    if "pair" in row:
        one, two = set(words(row["text"])), set(words(row["pair"]))
        return [f"both {word}" for word in one & two] + [f"one {word}" for word in one ^ two]
    tokens = words(row["text"])
    longest = 3 if tokens and "\u4e00" <= tokens[0] <= "\u9fff" else 2
    return [" ".join(tokens[i:i + n]) for n in range(1, longest + 1) for i in range(len(tokens) - n + 1)]


def naive_bayes(texts: list[list[str]], labels: list[str], queries: list[list[str]]) -> list[str]:
    """The likeliest class of each query; texts and queries are lists of features."""
    counts, classes = defaultdict(Counter), Counter(labels)
    for text, label in zip(texts, labels):
        counts[label].update(set(text))
    vocabulary = set().union(*counts.values())
    total = {label: sum(counts[label].values()) + len(vocabulary) for label in classes}
    return [max(classes, key=lambda label: math.log(classes[label]) + sum(
        math.log((counts[label][word] + 1) / total[label]) for word in set(text) if word in vocabulary))
        for text in queries]


def overlap(row: dict) -> float:
    one, two = set(words(row["text"])), set(words(row["pair"]))
    return len(one & two) / max(1, len(one | two))


def by_threshold(values: list[float], labels: list[str], queries: list[float]) -> list[str]:
    """The class of each query: one below a threshold, one above; threshold and classes are the best on values."""
    order = np.argsort(values, kind="stable")
    values, labels, classes = np.array(values)[order], np.array(labels)[order], sorted(set(labels))
    best = (-1,)
    for low in classes:
        for high in classes:
            hits = np.append(0, np.cumsum(labels == low)) + np.append(np.cumsum((labels == high)[::-1])[::-1], 0)
            hits[1:-1][values[1:] == values[:-1]] = -1  # no threshold separates equal values
            best = max(best, (hits.max(), np.append(values, np.inf)[hits.argmax()], low, high))
    return [best[2] if value < best[1] else best[3] for value in queries]


def tag(task, train, rows):
    known = defaultdict(Counter)  # the types of each entity in training, which is a tuple of words
    for row in train:
        for kind, first, last in metrics.entities(row["tags"]):
            known[tuple(word.lower() for word in row["words"][first:last + 1])][kind] += 1
    longest = max(map(len, known))
    guesses = []
    for row in rows:
        small, tags, i = [word.lower() for word in row["words"]], [], 0
        while i < len(small):
            n = next((n for n in range(longest, 0, -1) if tuple(small[i:i + n]) in known), 0)
            kind = known[tuple(small[i:i + n])].most_common(1)[0][0] if n else ""
            tags += [f"B-{kind}"] + [f"I-{kind}"] * (n - 1) if n else ["O"]
            i += max(n, 1)
        guesses.append(tags[:len(small)])
    scores = metrics.entity_scores([row["tags"] for row in rows], guesses)
    yield "longest match", {name: scores[name] for name in ("f1", "precision", "recall")}


def answer(task, train, rows):
    guesses = []
    for row in rows:
        question = set(words(row["question"]))
        sentences = re.split(r"(?<=[.!?。])\s+", row["context"])
        guesses.append(max(sentences, key=lambda sentence: len(question & set(words(sentence)))))
    answers = [[answer["text"] for answer in row["answers"]] for row in rows]
    scores = metrics.squad_scores(answers, guesses, v2=not all(answers))
    yield "sentence", {name: scores[name] for name in ("exact", "f1")}


BASELINES = {"classify": classify, "pair": classify, "tag": tag, "answer": answer}

if __name__ == "__main__":
    config.run(main)
