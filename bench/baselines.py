"""What a task is worth without a network: the figures that a fine-tuned model must beat.

    python bench/baselines.py --data=sst2,mrpc,wnut17,chnsenticorp,squad

- majority: the commonest class of the training rows
- words: multinomial naive Bayes (add-one smoothing) on words and word pairs, or on one to three characters where a
  language has no spaces; of two texts, on the words that both have and those that one lacks
- overlap (two texts): the share of common words, cut at the place that is best on the training rows
- longest match (tags): the longest run of words that was an entity in training, as what it was most often
- sentence (answers): the sentence of the context that shares most words with the question, whole
"""

import math
import re
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanoft import UserError, config  # noqa: E402
from nanoft.tasks import metrics  # noqa: E402
from nanoft.tasks.examples import load_task  # noqa: E402
from nanoft.text import prepare  # noqa: E402


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
            for title, figures in BASELINES[task["kind"]](task, rows["train"], rows[split]):
                print(f"{folder.name:14} {split:5} {title:14} " + "  ".join(f"{k} {v:.4f}" for k, v in figures.items()),
                      flush=True)


def classified(task, truth, guess):
    number = {label: i for i, label in enumerate(task["labels"])}
    figures = metrics.classification(*(np.array([number[x] for x in some]) for some in (truth, guess)), task["labels"])
    return {name: figures[name] for name in ("accuracy", "f1", "macro_f1") if name in figures}


def classify(task, train, rows):
    truth, known = [row["label"] for row in rows], [row["label"] for row in train]
    yield "majority", classified(task, truth, [Counter(known).most_common(1)[0][0]] * len(rows))
    yield "words", classified(task, truth, naive_bayes([features(row) for row in train], known,
                                                       [features(row) for row in rows]))
    if "pair" in train[0]:
        yield "overlap", classified(task, truth, by_threshold([overlap(row) for row in train], known,
                                                              [overlap(row) for row in rows]))


def words(text):
    """Words in small letters; of text with Chinese characters, the characters."""
    return re.findall(r"[\u4e00-\u9fff]" if re.search(r"[\u4e00-\u9fff]", text) else r"\w+|[^\w\s]", text.lower())


def features(row):
    if "pair" in row:
        one, two = set(words(row["text"])), set(words(row["pair"]))
        return [f"both {word}" for word in one & two] + [f"one {word}" for word in one ^ two]
    found = words(row["text"])
    longest = 3 if found and "\u4e00" <= found[0] <= "\u9fff" else 2
    return [" ".join(found[i:i + n]) for n in range(1, longest + 1) for i in range(len(found) - n + 1)]


def naive_bayes(texts, labels, asked):
    """The likeliest class of each asked text, all lists of features."""
    counts, classes = defaultdict(Counter), Counter(labels)
    for text, label in zip(texts, labels):
        counts[label].update(set(text))
    vocabulary = set().union(*counts.values())
    total = {label: sum(counts[label].values()) + len(vocabulary) for label in classes}
    return [max(classes, key=lambda label: math.log(classes[label]) + sum(
        math.log((counts[label][word] + 1) / total[label]) for word in set(text) if word in vocabulary))
        for text in asked]


def overlap(row):
    one, two = set(words(row["text"])), set(words(row["pair"]))
    return len(one & two) / max(1, len(one | two))


def by_threshold(values, labels, asked):
    """One class below a threshold and another above: the threshold and classes that are right most often."""
    order = np.argsort(values, kind="stable")
    values, labels, classes = np.array(values)[order], np.array(labels)[order], sorted(set(labels))
    best = (-1,)
    for low in classes:
        for high in classes:
            hits = np.append(0, np.cumsum(labels == low)) + np.append(np.cumsum((labels == high)[::-1])[::-1], 0)
            hits[1:-1][values[1:] == values[:-1]] = -1  # no threshold parts equal values
            best = max(best, (hits.max(), np.append(values, np.inf)[hits.argmax()], low, high))
    return [best[2] if value < best[1] else best[3] for value in asked]


def tag(task, train, rows):
    """An entity of training: a tuple of words, with the types that it had."""
    known = defaultdict(Counter)
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
    figures = metrics.entity_scores([row["tags"] for row in rows], guesses)
    yield "longest match", {name: figures[name] for name in ("f1", "precision", "recall")}


def answer(task, train, rows):
    guesses = {}
    for row in rows:
        asked = set(words(row["question"]))
        sentences = re.split(r"(?<=[.!?。])\s+", row["context"])
        guesses[row["id"]] = max(sentences, key=lambda sentence: len(asked & set(words(sentence))))
    examples = [{"id": row["id"], "answers": [answer["text"] for answer in row["answers"]]} for row in rows]
    figures = metrics.squad_scores(examples, guesses, v2=not all(row["answers"] for row in rows))
    yield "sentence", {name: figures[name] for name in ("exact", "f1")}


BASELINES = {"classify": classify, "pair": classify, "tag": tag, "answer": answer}

if __name__ == "__main__":
    config.run(main)
