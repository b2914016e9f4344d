"""What a fine-tuned model gets right and wrong, for TensorBoard: at each evaluation, of the validation rows.

    f1/CLASS             F1 of each class; for tags of entities, of each type
    confusion            how often each class was taken for which: a picture and a text
    pr/CLASS             the precision-recall curve of each class against the rest
    hardest mistakes     a table: wrong, and surest of itself first
    projector            (at the end) what the head sees of each text, or of each word to tag, with its label
"""

import struct
import zlib

import numpy as np
import torch

from nanoft import distributed, files
from nanoft.batches import IGNORE
from nanoft.tasks import metrics
from nanoft.tasks.collate import batch
from nanoft.tasks.predict import by_row, by_tokens, log_softmax

MOST_CLASSES = 20       # that get curves and a picture
MOST_MISTAKES = 20      # rows of the table
MOST_VECTORS = 500      # pieces in the projector (of a task of tags a fifth, for each gives many words)
MOST_TOKENS = 2**17     # that are read for them

# digits and capitals of 3 x 5 dots, a row an octal digit: what a picture needs where no drawing package is installed
FONT = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-._%", (
    "75557 26227 71747 71717 55711 74717 74757 71222 75757 75717 25755 65656 34443 65556 74647 74644 34553 55755 72227 "
    "11152 55655 44447 57755 65555 25552 65644 25563 65655 34216 72222 55557 55552 55775 55255 55222 71247 00700 00002 "
    "00007 51245").split()))

PALE, DARK = np.array([240, 244, 250]), np.array([8, 48, 107])


def show(log, step, task, rows, found, encoded, out, figures, matrix):
    """All of the above but the projector. found, figures, matrix: of nanoft.predict; encoded, out: what they are of."""
    if not log.board:
        return
    log.scalars(step, "f1", {label: score["f1"] for label, score in figures.get("per_class", {}).items()})
    labels = task.get("labels", ())
    if matrix is not None:
        log.text("confusion", metrics.confusion_table(matrix, labels), step)
        if len(labels) <= MOST_CLASSES:
            pixels = confusion_picture(matrix, labels)
            log.picture("confusion", png(pixels), pixels.shape[1], pixels.shape[0], step)
    if labels and len(labels) <= MOST_CLASSES:
        truth, probability = one_against_the_rest(task, rows, encoded, out)
        for k, label in enumerate(labels):
            if truth[:, k].any():
                log.board.add_pr_curve(f"pr/{label}", truth[:, k], probability[:, k], step)
    wrong = sorted(mistakes(task, rows, found), key=lambda mistake: -mistake[0])[:MOST_MISTAKES]
    log.table("hardest mistakes", [(MEASURE.get(task["kind"], "probability"), "text", "truth", "prediction"),
                                   *((f"{surety:.3f}", text[:500], *rest) for surety, text, *rest in wrong)], step)


def one_against_the_rest(task, rows, encoded, out):
    """Is it this class, bool (N, K), and the probability that the model gives it, (N, K); N texts, or words to tag."""
    labels = np.array(task["labels"])
    if task.get("multi_label"):
        truth = np.array([np.isin(labels, row["labels"]) for row in rows])
        return truth, 1 / (1 + np.exp(-by_row(encoded, out)))
    if task["kind"] == "tag":
        return np.array([tag for row in rows for tag in row["tags"]])[:, None] == labels, np.exp(log_softmax(out))
    return np.array([row["label"] for row in rows])[:, None] == labels, np.exp(log_softmax(by_row(encoded, out)))


MEASURE = {"regress": "off by", "tag": "wrong words", "generate": "nats a token"}  # elsewhere a probability


def mistakes(task, rows, found):
    """(how wrong, text, truth, prediction) of each row that is not right; of generate, of every row."""
    kind = task["kind"]
    for row, guess in zip(rows, found):
        text = " / ".join(row[name] for name in ("text", "pair", "question", "prompt") if name in row)
        guessed = guess.get("prediction", "")
        if kind == "regress":
            yield abs(row["label"] - guessed), text, row["label"], guessed
        elif kind == "generate":
            yield guess["nats"] / max(guess["tokens"], 1), text, row["response"], ""
        elif kind == "answer":
            answers = [answer["text"] for answer in row["answers"]]
            if not any(metrics.answer_f1(guessed, answer) for answer in answers) and (guessed or answers):
                yield guess["probability"], text, ", ".join(dict.fromkeys(answers)), guessed
        elif kind == "tag":
            wrong = [i for i, tag in enumerate(row["tags"]) if tag != guessed[i]]
            if wrong:
                yield (len(wrong), " ".join(row["words"]), *(
                    ", ".join(f"{row['words'][i]}: {tags[i]}" for i in wrong) for tags in (row["tags"], guessed)))
        elif task.get("multi_label"):
            different = set(row["labels"]) ^ set(guessed)
            if different:
                surety = max(abs(guess["probabilities"][label] - (label in row["labels"])) for label in different)
                yield surety, text, ", ".join(row["labels"]), ", ".join(guessed)
        elif guessed != row["label"]:
            yield guess["probabilities"][guessed], text, row["label"], guessed


# ---- the picture -------------------------------------------------------------------------------------------------


def confusion_picture(matrix, labels, dot=3):
    """uint8 (height, width, 3): a row a true class, a column a predicted one, dark where most of the row went.

    A dot of the font has so many pixels. Names with other letters than the font's are replaced by the class's number.
    """
    names = [str(label).upper()[:12] for label in labels]
    names = [name if set(name) <= FONT.keys() | {" "} else str(i) for i, name in enumerate(names)]
    wide = 4 * max(len(text) for text in [*names, *map(str, matrix.ravel()), "TRUTH"]) + 4  # dots of a cell
    tall, top = 11, 18
    image = np.full((top + tall * len(names), wide * (len(names) + 1), 3), 255, dtype=np.uint8)
    write(image, 1, wide, "PREDICTED")
    write(image, 9, 2, "TRUTH")
    for i, row in enumerate(matrix):
        y = top + tall * i
        write(image, y + 3, 2, names[i])
        write(image, 9, wide * (i + 1) + 2, names[i])
        for j, count in enumerate(row):
            share, x = count / max(row.sum(), 1), wide * (j + 1)
            image[y:y + tall - 1, x:x + wide - 1] = (1 - share) * PALE + share * DARK
            write(image, y + 3, x + (wide - 4 * len(str(count))) // 2, str(count), 255 if share > 0.5 else 0)
    return image.repeat(dot, 0).repeat(dot, 1)


def write(image, y, x, text, shade=0):
    for letter in text:
        for i, row in enumerate(FONT.get(letter, "00000")):
            for j in range(3):
                if int(row) >> (2 - j) & 1 and x + j < image.shape[1]:
                    image[y + i, x + j] = shade
        x += 4


def png(pixels):
    """A picture, uint8 (height, width, 3), as the bytes of a PNG file (RFC 2083)."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = np.pad(pixels.reshape(height, 3 * width), ((0, 0), (1, 0)))  # (H, W, 3) -> (H, 1 + 3 W): no filter, 0
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b""))


# ---- the projector -----------------------------------------------------------------------------------------------


def save_projector(folder, model, task, rows, found, encoded, tokenizer, dist):
    """Write what TensorBoard's projector reads: vectors.tsv, labels.tsv and projector_config.pbtxt. Main process only.

    A vector a text, or a word to tag, beside truth, prediction and text; nothing for answer and generate.
    """
    if not dist.main or task["kind"] in ("answer", "generate"):
        return
    by_word = task["kind"] == "tag"
    first = np.unique(encoded.row, return_index=True)[1]  # the first piece of each row
    most = min(MOST_VECTORS // (5 if by_word else 1), 1 + MOST_TOKENS // int(encoded.lengths.max()))
    index = first[np.linspace(0, len(first) - 1, min(most, len(first))).astype(np.int64)]
    lines, seen = [("truth", "prediction", "text")], []
    for i, vectors in zip(index, head_inputs(model, index, task, encoded, tokenizer, dist)):
        row, guess = rows[encoded.row[i]], found[encoded.row[i]]["prediction"]
        seen.append(vectors)
        if by_word:  # of a long row the words of its first piece
            lines += list(zip(row["tags"], guess, row["words"]))[:len(vectors)]
        else:
            truth = row["labels"] if "labels" in row else row["label"]
            lines.append([", ".join(x) if isinstance(x, list) else x for x in (truth, guess)]
                         + [" / ".join(row[name] for name in ("text", "pair") if name in row)[:200]])
    config = 'embeddings {\n tensor_name: "validation"\n tensor_path: "vectors.tsv"\n metadata_path: "labels.tsv"\n}\n'
    for name, text in {
            "vectors.tsv": "".join("\t".join(f"{x:.5g}" for x in v) + "\n" for some in seen for v in some.tolist()),
            "labels.tsv": "".join("\t".join(" ".join(str(x).split()) for x in line) + "\n" for line in lines),
            "projector_config.pbtxt": config}.items():
        files.write_whole(folder / name, lambda file, text=text: file.write(text.encode("utf-8")))


@torch.no_grad()
def head_inputs(model, index, task, encoded, tokenizer, dist):
    """What the head sees of some pieces: for each a tensor (1, C), or (words, C) where words are tagged."""
    found, caught = [None] * len(index), []
    hook = model.task_head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].float()))
    for group in by_tokens(encoded.lengths[index]):
        some = distributed.to_device(batch(encoded, index[group], task, tokenizer), dist.device)
        with dist.autocast():
            model.logits(*(some.get(name) for name in ("ids", "types", "mask", "allowed")))
        x = caught.pop()
        for row, i in enumerate(group):
            found[i] = x[row][some["targets"][row] != IGNORE] if task["kind"] == "tag" else x[row][None]
    hook.remove()
    return found
