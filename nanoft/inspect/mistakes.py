"""What a fine-tuned model gets right and wrong, for TensorBoard: at each evaluation, of the validation rows.

    f1/CLASS             F1 of each class; for tags of entities, of each type
    confusion            how often each class was predicted for which: a picture and a text
    pr/CLASS             the precision-recall curve of each class against the rest
    hardest mistakes     a table of the rows furthest from the truth, which the report of a run shows, too
    pictures/            of kind image: examples with label and prediction, the worst ones, and augmented ones
    projector            (at the end) what the head reads of each text, or of each tagged word, with its label

Shapes: N features (a long row may have several), K classes, C = n_embd, T tokens.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nanoft import distributed, files
from nanoft.batches import IGNORE
from nanoft.inspect import pictures
from nanoft.inspect.explain import hooked
from nanoft.tasks import collate, metrics
from nanoft.tasks.features import Encoded
from nanoft.tasks.predict import by_row, length_batches, log_softmax

MAX_CLASSES = 20       # that get curves and a picture
MAX_MISTAKES = 20      # rows of the table
MAX_VECTORS = 500      # features in the projector; for tags a fifth, because each has many words
MAX_TOKENS = 2**17     # that the model reads for them

ERRORS = {"tag": "p(wrong tags)", "regress": "off by", "answer": "(1 - F1)(1 + p)", "generate": "nats a token"}
PALE, DARK = np.array([240, 244, 250]), np.array([8, 48, 107])


def show(log, step: int, task: dict, rows: list[dict], guesses: list[dict], encoded: Encoded, out: np.ndarray,
         scores: dict, matrix: np.ndarray | None) -> None:
    """Log all of the above but the projector. out, guesses, (scores, matrix): of the functions of tasks/predict.py."""
    if not log.board:
        return
    log.scalars(step, "f1", {label: score["f1"] for label, score in scores.get("per_class", {}).items()})
    labels = task.get("labels", ())
    if matrix is not None:
        log.text("confusion", metrics.confusion_table(matrix, labels), step)
        if len(labels) <= MAX_CLASSES:
            pixels = confusion_picture(matrix, labels)
            log.picture("confusion", pictures.png(pixels), pixels.shape[1], pixels.shape[0], step)
    if labels and len(labels) <= MAX_CLASSES:
        truth, probability = one_against_the_rest(task, rows, encoded, out)
        for k, label in enumerate(labels):
            if truth[:, k].any():
                log.board.add_pr_curve(f"pr/{label}", truth[:, k], probability[:, k], step)
    worst = worst_rows(task, rows, guesses)
    head, lines = mistakes_table(task, worst)
    log.table("hardest mistakes", [head, *lines], step)
    if task["kind"] == "image":
        pictures.show(log, step, rows, guesses, encoded, [mistake.row for mistake in worst])


def one_against_the_rest(task: dict, rows: list[dict], encoded: Encoded, out: np.ndarray):
    """For each text, or word to tag: is it of this class, bool (texts, K), and the class's probability, (texts, K)."""
    labels = np.array(task["labels"])
    if task.get("multi_label"):
        truth = np.array([np.isin(labels, row["labels"]) for row in rows])
        return truth, 1 / (1 + np.exp(-by_row(encoded, out)))
    if task["kind"] == "tag":
        return np.array([tag for row in rows for tag in row["tags"]])[:, None] == labels, np.exp(log_softmax(out))
    return np.array([row["label"] for row in rows])[:, None] == labels, np.exp(log_softmax(by_row(encoded, out)))


# ---- the hardest mistakes ----------------------------------------------------------------------------------------


class Mistake(NamedTuple):
    error: float
    row: int          # its number
    text: str
    truth: str
    prediction: str


def worst_rows(task: dict, rows: list[dict], guesses: list[dict]) -> list[Mistake]:
    """The rows whose predictions differ from the truth, furthest from it first; for generate, all rows.

    rows: with their targets, and with the texts as far as these are to be shown; rows of predictions.jsonl will do.
    """
    wrong = []
    for number, (row, guess) in enumerate(zip(rows, guesses)):
        if (error := error_of(task, row, guess)) > 0:
            wrong.append(Mistake(error, number, *described(task, row, guess)))
    return sorted(wrong, key=lambda mistake: -mistake.error)


def error_of(task: dict, row: dict, guess: dict) -> float:
    """How far a prediction is from the truth, as ERRORS names it: 0 where it is right, more the surer a wrong one is.

    tag, multi-label: the sum over the wrong tags or labels of the probability on the wrong side.
    """
    kind = task["kind"]
    if kind == "generate":
        return guess["nats"] / max(guess["tokens"], 1)
    if kind == "regress":
        return abs(guess["prediction"] - row["label"])
    if kind == "tag":
        return sum(p for tag, guessed, p in zip(row["tags"], guess["prediction"], guess["probabilities"])
                   if tag != guessed)
    if kind == "answer":
        f1 = [metrics.answer_f1(guess["prediction"], answer["text"]) for answer in row["answers"]]
        return (1 - max(f1 or [float(not guess["prediction"])])) * (1 + guess["probability"])
    if task.get("multi_label"):
        return sum(abs((label in row["labels"]) - guess["probabilities"][label])
                   for label in set(row["labels"]) ^ set(guess["prediction"]))
    return (row["label"] != guess["prediction"]) * (1 - guess["probabilities"][row["label"]])


def described(task: dict, row: dict, guess: dict) -> tuple[str, str, str]:
    """A row's text, truth and prediction as a person reads them; of tags only the wrong ones."""
    kind, prediction = task["kind"], guess.get("prediction", "")
    text = " / ".join(row[name] for name in ("text", "pair", "question", "prompt", "image") if name in row)
    if kind == "tag":
        words = row.get("words") or [f"word {i}" for i in range(1, len(row["tags"]) + 1)]
        wrong = [i for i, tag in enumerate(row["tags"]) if tag != prediction[i]]
        truth, guessed = (", ".join(f"{words[i]}: {tags[i]}" for i in wrong) for tags in (row["tags"], prediction))
        return " ".join(row.get("words", ())), truth, guessed
    if kind == "answer":
        answers = dict.fromkeys(answer["text"] for answer in row["answers"])
        return text, " / ".join(answers) or "no answer", prediction or "no answer"
    if kind == "regress":
        return text, f"{row['label']:,.5g}", f"{prediction:,.5g}"
    if task.get("multi_label"):
        return text, ", ".join(row["labels"]) or "none", ", ".join(prediction) or "none"
    return text, row["response"] if kind == "generate" else row["label"], prediction


def mistakes_table(task: dict, mistakes: list[Mistake]) -> tuple[tuple, list[tuple]]:
    """Head and rows of a table of the first MAX_MISTAKES."""
    error = "p(wrong labels)" if task.get("multi_label") else ERRORS.get(task["kind"], "1 - p(truth)")
    return ("row", "text", "truth", "prediction", error), [
        (f"{m.row:,}", m.text[:500], m.truth[:500], m.prediction[:500], f"{m.error:.3f}")
        for m in mistakes[:MAX_MISTAKES]]


def confusion_picture(matrix: np.ndarray, labels: list, dot: int = 3) -> np.ndarray:
    """A confusion matrix (K, K) as uint8 (height, width, 3): a row a true class, dark where most of the row went.

    dot: pixels of a dot of the font. A label with letters that the font lacks is replaced by the number of its class.
    """
    names = [str(label).upper()[:12] for label in labels]
    names = [name if set(name) <= pictures.FONT.keys() | {" "} else str(i) for i, name in enumerate(names)]
    width = 4 * max(len(text) for text in [*names, *map(str, matrix.ravel()), "TRUTH"]) + 4  # dots of a cell
    height, top = 11, 18
    image = np.full((top + height * len(names), width * (len(names) + 1), 3), 255, dtype=np.uint8)
    pictures.write(image, 1, width, "PREDICTED")
    pictures.write(image, 9, 2, "TRUTH")
    for i, row in enumerate(matrix):
        y = top + height * i
        pictures.write(image, y + 3, 2, names[i])
        pictures.write(image, 9, width * (i + 1) + 2, names[i])
        for j, count in enumerate(row):
            share, x = count / max(row.sum(), 1), width * (j + 1)
            image[y:y + height - 1, x:x + width - 1] = (1 - share) * PALE + share * DARK
            centred = x + (width - 4 * len(str(count))) // 2
            pictures.write(image, y + 3, centred, str(count), 255 if share > 0.5 else 0)
    return image.repeat(dot, 0).repeat(dot, 1)


# ---- the projector -----------------------------------------------------------------------------------------------


def save_projector(folder: Path, model, task: dict, rows: list[dict], guesses: list[dict], encoded: Encoded, tokenizer,
                   dist: distributed.Dist) -> None:
    """Write what TensorBoard's projector reads: vectors.tsv, labels.tsv and projector_config.pbtxt. On rank 0 only.

    A vector a text, or a word to tag, beside truth, prediction and text; nothing for answer and generate.
    """
    if not dist.main or task["kind"] in ("answer", "generate"):
        return
    by_word = task["kind"] == "tag"
    first = np.unique(encoded.row, return_index=True)[1]  # each row's first feature
    most = min(MAX_VECTORS // (5 if by_word else 1), 1 + MAX_TOKENS // int(encoded.lengths.max()))
    index = first[np.linspace(0, len(first) - 1, min(most, len(first))).astype(np.int64)]
    vectors = head_inputs(model, index, task, encoded, tokenizer, dist)
    labels: list[tuple] = [("truth", "prediction", "text")]
    for i, feature_vectors in zip(index, vectors):
        row, prediction = rows[encoded.row[i]], guesses[encoded.row[i]]["prediction"]
        if by_word:  # of a long row only the words of its first feature
            labels += list(zip(row["tags"], prediction, row["words"]))[:len(feature_vectors)]
        else:
            truth = row["labels"] if "labels" in row else row["label"]
            labels.append((*(", ".join(x) if isinstance(x, list) else x for x in (truth, prediction)),
                           " / ".join(row[name] for name in ("text", "pair", "image") if name in row)[:200]))
    config = 'embeddings {\n tensor_name: "validation"\n tensor_path: "vectors.tsv"\n metadata_path: "labels.tsv"\n}\n'
    for name, text in {
            "vectors.tsv": "".join("\t".join(f"{x:.5g}" for x in v) + "\n" for v in torch.cat(vectors).tolist()),
            "labels.tsv": "".join("\t".join(" ".join(str(x).split()) for x in line) + "\n" for line in labels),
            "projector_config.pbtxt": config}.items():
        files.write_whole(folder / name, lambda file, text=text: file.write(text.encode("utf-8")))


@torch.no_grad()
def head_inputs(model, index: np.ndarray, task: dict, encoded: Encoded, tokenizer,
                dist: distributed.Dist) -> list[torch.Tensor]:
    """What the head reads of the features number `index`: for each float32 (1, C), or (words, C) for tags."""
    vectors: list = [None] * len(index)
    recorded = []
    for group in length_batches(encoded.lengths[index]):
        batch = distributed.to_device(collate.batch(encoded, index[group], task, tokenizer), dist.device)
        with (hooked([model.task_head], lambda _, inputs: recorded.append(inputs[0].float()), before=True),
              dist.autocast()):
            model.logits(*(batch.get(name) for name in ("ids", "types", "mask", "allowed")))
        x = recorded.pop()  # (B, C) or (B, T, C)
        for i, number in enumerate(group):
            vectors[number] = x[i][batch["targets"][i] != IGNORE] if task["kind"] == "tag" else x[i][None]
    return vectors
