"""From predictions to scores: classes, labels, correlations, entities, answers, and tables a person reads.

Pure functions on numbers, arrays and lists. Every score is a fraction of 1, never a percentage. What is 0 / 0 by
definition (the precision of a class that was never predicted) is 0, the field's convention; input that cannot be
scored at all is a UserError. tests/test_metrics.py compares with scikit-learn, scipy and seqeval, and works out by
hand what the rules published with SQuAD give.
"""

import math
import re
import string
from collections import Counter

import numpy as np

from nanoft import UserError, files

PRF = ("precision", "recall", "f1")
AVERAGES = ("micro", "macro", "weighted", "samples")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def paired(labels, predictions):
    """Both as arrays of one shape, which is not empty."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape:
        raise UserError(f"the truth has shape {labels.shape} and the predictions {predictions.shape}; "
                        "a score needs one prediction for each")
    if not labels.size:
        raise UserError("there is nothing to score: the truth and the predictions are empty")
    return labels, predictions


# ---- one class an example ----------------------------------------------------------------------------------------


def accuracy(labels, predictions):
    """The part of predictions that equal their label. Arrays of one shape, numbers or strings."""
    labels, predictions = paired(labels, predictions)
    return float((labels == predictions).mean())


def confusion(labels, predictions, n_classes):
    """How often each class was taken for each: int (n, n), a row a true class, a column a predicted one.

    labels, predictions: class numbers (N,), 0 <= class < n_classes.
    """
    labels, predictions = paired(labels, predictions)
    for what, array in (("label", labels), ("prediction", predictions)):
        if array.dtype.kind not in "iub":
            raise UserError(f"a {what} is a whole number, the number of its class, but these are {array.dtype}")
        wrong = array[(array < 0) | (array >= n_classes)]
        if wrong.size:  # -100, which marks what is not scored, must be left out before
            raise UserError(f"{what} {wrong[0]} is no class: there are {n_classes}, counted from 0")
    cells = labels.astype(np.int64) * n_classes + predictions.astype(np.int64)  # a narrow type would overflow
    return np.bincount(cells.ravel(), minlength=n_classes**2).reshape(n_classes, n_classes)


def ratio(part, whole):
    """part / whole for each element, and 0 where whole is 0."""
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)


def from_counts(hits, predicted, actual):
    """Precision, recall and F1, their harmonic mean, from counts of one shape: right, predicted, and there to find."""
    return ratio(hits, predicted), ratio(hits, actual), ratio(2 * hits, predicted + actual)


def precision_recall_f1(matrix):
    """Precision, recall, F1 and support (the number of true examples) of each class (n,), from a confusion matrix."""
    actual = matrix.sum(axis=1)
    return *from_counts(matrix.diagonal(), matrix.sum(axis=0), actual), actual


def averages(hits, predicted, actual):
    """macro: the mean over classes; weighted: each by its support; micro: of all counts together. Counts: (n,)."""
    each = np.array(from_counts(hits, predicted, actual))  # (3, n)
    rows = {"micro": from_counts(hits.sum(), predicted.sum(), actual.sum()),
            "macro": each.mean(axis=1),
            "weighted": each @ actual / max(actual.sum(), 1)}
    return {f"{kind}_{name}": float(value) for kind, row in rows.items() for name, value in zip(PRF, row)}


def by_class(names, hits, predicted, actual):
    """{name: {precision, recall, f1, support}} from counts (n,)."""
    rows = zip(names, *from_counts(hits, predicted, actual), actual)
    return {name: dict(zip(PRF, map(float, row)), support=int(support)) for name, *row, support in rows}


def check_names(names, n_classes):
    if len(names) != n_classes or len(set(names)) != n_classes:
        raise UserError(f"{n_classes} classes need as many different names, not {', '.join(map(str, names)) or 'none'}")


def classification(labels, predictions, names):
    """All the scores of one class an example: a flat dictionary of floats, and `per_class` by name.

    accuracy, mcc, micro_f1, macro_f1, weighted_f1 (and _precision, _recall of the three); with two classes also f1,
    that of class 1. Averages are over the classes that occur in the truth or among the predictions. micro_f1 of one
    class an example is the accuracy.
    """
    check_names(names, len(names))
    matrix = confusion(labels, predictions, len(names))
    counts = np.stack((matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)))  # (3, n) hits, predicted, actual
    scores = {"accuracy": accuracy(labels, predictions), "mcc": matthews(matrix)}
    if len(names) == 2:
        scores["f1"] = float(from_counts(*counts)[2][1])
    occurs = counts[1] + counts[2] > 0
    return scores | averages(*counts[:, occurs]) | {"per_class": by_class(names, *counts)}


def matthews(matrix):
    """Matthews' correlation of a confusion matrix, -1 to 1, for any number of classes (Gorodkin, 2004).

    0 where only one class was predicted, or only one occurs: such predictions tell nothing. In Python's whole
    numbers, which do not overflow.
    """
    right, total = int(matrix.trace()), int(matrix.sum())
    predicted, actual = matrix.sum(axis=0).tolist(), matrix.sum(axis=1).tolist()
    spread_predicted = total**2 - sum(p * p for p in predicted)
    spread_actual = total**2 - sum(a * a for a in actual)
    if not spread_predicted * spread_actual:
        return 0.0
    together = right * total - sum(p * a for p, a in zip(predicted, actual))
    return together / math.sqrt(spread_predicted * spread_actual)


# ---- any number of labels an example -----------------------------------------------------------------------------


def multi_label(labels, predictions, names=None):
    """The scores of boolean arrays (N, K), K labels an example: as `classification`, over all K labels.

    accuracy: the part of examples with all K right. samples_f1 (_precision, _recall): of each example, then the mean;
    an example with no label that gets none counts 0 here, as in scikit-learn. names: K strings, or None for numbers.
    """
    labels, predictions = paired(labels, predictions)
    for array in (labels, predictions):
        if array.ndim != 2 or not ((array == 0) | (array == 1)).all():
            raise UserError("several labels an example are a boolean array (examples, labels); "
                            "compare probabilities with a threshold first")
    labels, predictions = labels.astype(bool), predictions.astype(bool)
    names = names or [str(i) for i in range(labels.shape[1])]
    check_names(names, labels.shape[1])
    scores = {"accuracy": float((labels == predictions).all(axis=1).mean())}
    counts = [array.sum(axis=0) for array in (labels & predictions, predictions, labels)]  # each (K,)
    in_each = from_counts(*(array.sum(axis=1) for array in (labels & predictions, predictions, labels)))  # each (N,)
    scores |= averages(*counts) | {f"samples_{name}": float(row.mean()) for name, row in zip(PRF, in_each)}
    return scores | {"per_class": by_class(names, *counts)}


# ---- numbers -----------------------------------------------------------------------------------------------------


def finite_pair(x, y):
    """Both as float arrays (N,) of at least two finite numbers."""
    x, y = (array.astype(float) for array in paired(x, y))
    if x.ndim != 1 or len(x) < 2:
        raise UserError(f"a correlation needs two rows of two numbers or more, not of shape {x.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UserError("a correlation needs finite numbers, and some of these are infinite or no number at all")
    return x, y


def pearson(x, y):
    """Pearson's correlation of two rows of numbers (N,), -1 to 1; nan where one of them is constant, as in scipy."""
    x, y = finite_pair(x, y)
    if (x == x[0]).all() or (y == y[0]).all():
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    x, y = x / abs(x).max(), y / abs(y).max()  # squares of huge or tiny numbers would leave the range of floats
    return float(np.clip(x @ y / math.sqrt((x @ x) * (y @ y)), -1, 1))


def ranks(x):
    """The place of each number in order, from 1; equal ones share the mean of their places. (N,) -> float (N,)"""
    _, which, count = np.unique(x, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count - 1) / 2)[which]


def spearman(x, y):
    """Spearman's correlation, that of the ranks: 1 where y rises with x, straight or not. nan as in `pearson`."""
    x, y = finite_pair(x, y)
    return pearson(ranks(x), ranks(y))


def precision_recall_curve(truth, score):
    """What each threshold would give: precision and recall (M + 1,), thresholds (M,) rising, one a different score.

    truth: bool (N,); score: (N,), higher for true. Recall falls; the last point, precision 1 and recall 0, has no
    threshold: nothing is predicted there. No true example is an error, for recall would be 0 / 0 all along.
    """
    truth, score = paired(truth, score)
    if truth.ndim != 1 or not ((truth == 0) | (truth == 1)).all() or not np.isfinite(score).all():
        raise UserError("a precision-recall curve needs a row of true or false, and a finite score for each")
    if not truth.any():
        raise UserError("a precision-recall curve needs one true example at least, and there is none")
    order = np.argsort(-score.astype(float), kind="stable")
    truth, score = truth[order], score[order]
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True))  # of each group of equal scores: no cut inside it
    hits = truth.cumsum()[last]
    precision, recall = hits / (last + 1), hits / hits[-1]
    return np.append(precision[::-1], 1.0), np.append(recall[::-1], 0.0), score[last][::-1]


def average_precision(truth, score):
    """The area under the steps of the precision-recall curve: precision, weighted by the gain in recall."""
    precision, recall, _ = precision_recall_curve(truth, score)
    return float((precision[:-1] * (recall[:-1] - recall[1:])).sum())


# ---- entities ----------------------------------------------------------------------------------------------------


def split_tag(tag, marks):
    """`B-PER` -> ("B", "PER"). A mark alone has the type _."""
    mark, dash, kind = tag.partition("-")
    if mark not in marks or (mark == "O" and dash):
        raise UserError(f"{tag!r} is no tag: expected O, or one of {' '.join(marks[1:])} and a type, as in B-PER")
    return mark, kind or "_"


def entities(tags, strict=False):
    """The entities of one sentence, first to last: a list of (type, first word, last word), counted from 0.

    tags: strings, B-type at the first word of an entity, I-type inside, O elsewhere; also E- at a last word and S-
    at an only one, unless strict. Lenient (as CoNLL's script and seqeval's default): an entity also begins where I-
    follows O or another type. Strict (IOB2): it begins at B- alone, and an I- that continues nothing belongs to none.
    """
    marks = ("O", "B", "I") if strict else ("O", "B", "I", "E", "S")
    found, start, before, kind_before = [], None, "O", "_"
    for i, tag in enumerate([*tags, "O"]):
        mark, kind = split_tag(tag, marks)
        continues = mark in "IE" and before in "BI" and kind == kind_before
        if start is not None and not continues:
            found.append((kind_before, start, i - 1))
            start = None
        if start is None and (mark == "B" if strict else mark != "O"):
            start = i
        before, kind_before = mark, kind
    return found


def entity_scores(true_sentences, predicted_sentences, strict=False):
    """The scores of whole entities: right only if type, first and last word are. Two lists of lists of tags.

    precision, recall, f1 (all types together, that is micro), macro_f1 and weighted_f1 (over the types that occur in
    the truth or the predictions) with their precision and recall, and `per_class` by type.
    """
    if len(true_sentences) != len(predicted_sentences):
        raise UserError(f"{len(true_sentences)} true sentences against {len(predicted_sentences)} predicted ones; "
                        "a score needs as many")
    hits, predicted, actual = Counter(), Counter(), Counter()
    for number, (truth, guess) in enumerate(zip(true_sentences, predicted_sentences), 1):
        if len(truth) != len(guess):
            raise UserError(f"sentence {number} has {len(truth)} true tags and {len(guess)} predicted ones; words that "
                            "were cut off count as O")
        truth, guess = set(entities(truth, strict)), set(entities(guess, strict))
        for counter, some in ((hits, truth & guess), (predicted, guess), (actual, truth)):
            counter.update(kind for kind, _, _ in some)
    types = sorted(predicted | actual)
    if not types:
        raise UserError("there is nothing to score: no entity in the truth, and none among the predictions"
                        + (" (strict ones begin with B-)" if strict else ""))
    counts = [np.array([counter[kind] for kind in types]) for counter in (hits, predicted, actual)]
    scores = averages(*counts)
    return {name: scores[f"micro_{name}"] for name in PRF} | scores | {"per_class": by_class(types, *counts)}


# ---- answers -----------------------------------------------------------------------------------------------------


def normalize_answer(text):
    """What answers are compared by: small letters, no ASCII punctuation, no a, an, the, single spaces.

    In this order, so that `well-known` becomes `wellknown`, and `"The"` becomes nothing.
    """
    text = text.lower().translate(NO_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction, answer):
    """1.0 if the answers are equal once normalised, else 0.0."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def answer_f1(prediction, answer, v2=False):
    """F1 of the words two answers share, each as often as both have it.

    Where one of them has no word left, v1.1 gives 0, and v2 1 if neither has.
    """
    prediction, answer = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if v2 and not (prediction and answer):
        return float(prediction == answer)
    shared = (Counter(prediction) & Counter(answer)).total()
    return 2 * shared / (len(prediction) + len(answer)) if shared else 0.0


def squad_scores(examples, predictions, v2=False):
    """exact and f1, fractions of 1 (the published scripts print them times 100), and total, the number of questions.

    examples: dictionaries with `id` and `answers`, a list of strings; predictions: {id: string}. The best of a
    question's answers counts (arXiv:1606.05250). v1.1: a question without prediction counts 0; `unanswered` says how
    many. v2 (arXiv:1806.03822): a question without answers wants the empty string, and each must have a prediction;
    HasAns_ and NoAns_ exact, f1 and total are those of the questions with and without answers, where there are any.
    """
    rows, unanswered = [], 0  # a row: has answers, exact, f1
    for example in examples:
        number, answers = example["id"], example["answers"]
        if v2:
            answers = [answer for answer in answers if normalize_answer(answer)] or [""]
        if not answers:
            raise UserError(f"question {number} has no answer, which only SQuAD v2 knows; score with v2=True")
        if number in predictions:
            guess = predictions[number]
            scores = max(exact_match(guess, a) for a in answers), max(answer_f1(guess, a, v2) for a in answers)
        elif v2:
            raise UserError(f"question {number} has no prediction; the empty string says that it has no answer")
        else:
            unanswered, scores = unanswered + 1, (0.0, 0.0)
        rows.append((bool(example["answers"]), *scores))
    if not rows:
        raise UserError("there is nothing to score: no question was given")

    def mean(rows, prefix=""):
        exact, f1 = (math.fsum(column) / len(rows) for column in list(zip(*rows))[1:])
        return {prefix + "exact": exact, prefix + "f1": f1, prefix + "total": len(rows)}

    if not v2:
        return mean(rows) | {"unanswered": unanswered}
    parts = [([row for row in rows if row[0]], "HasAns_"), ([row for row in rows if not row[0]], "NoAns_")]
    return mean(rows) | {key: value for some, prefix in parts if some for key, value in mean(some, prefix).items()}


# ---- language ----------------------------------------------------------------------------------------------------


def nats_each(nats, count):
    if not (math.isfinite(nats) and count > 0):
        raise UserError(f"{nats} nats over {count} tell nothing; both must be finite, and the count above 0")
    return nats / count


def perplexity(nats, count):
    """e^(nats of a text / count), the count of its tokens or words; no more than e^700, which floats still hold."""
    return math.exp(min(nats_each(nats, count), 700))


def bits_per_byte(nats, num_bytes):
    """The bits a byte of text takes: does not depend on the tokenizer. nats: of the whole text."""
    return nats_each(nats, num_bytes) / math.log(2)


# ---- for people --------------------------------------------------------------------------------------------------


def report(scores):
    """The scores as text: a line a class, then the averages, then what else there is. From any function above."""
    per_class = scores.get("per_class", {})
    kinds = [kind for kind in AVERAGES if f"{kind}_f1" in scores]
    in_table = {f"{kind}_{key}" for kind in kinds for key in PRF} | (set(PRF) if per_class else set()) | {"per_class"}
    rest = [(name, str(value) if isinstance(value, int) else f"{value:.4f}")
            for name, value in scores.items() if name not in in_table]
    if not per_class:
        return files.aligned(rest)
    rows = [("", *PRF, "support")]
    rows += [(str(name), *(f"{row[key]:.4f}" for key in PRF), str(row["support"])) for name, row in per_class.items()]
    support = str(sum(row["support"] for row in per_class.values()))
    rows += [("",) * 5, *((kind, *(f"{scores[f'{kind}_{key}']:.4f}" for key in PRF), support) for kind in kinds)]
    return files.aligned(rows) + ("\n\n" + files.aligned(rest) if rest else "")


def confusion_table(matrix, names, most=12):
    """A confusion matrix as text, a row a true class, . for 0; with more than `most` classes the commonest mistakes."""
    check_names(names, len(matrix))
    names = [str(name) for name in names]
    if len(names) > most:
        truths, guesses = np.nonzero(matrix * (1 - np.eye(len(matrix), dtype=int)))
        order = np.argsort(-matrix[truths, guesses], kind="stable")[:most]
        rows = [("truth", "predicted", "times", "of its class")]
        for t, g in zip(truths[order], guesses[order]):
            rows.append((names[t], names[g], str(matrix[t, g]), f"{matrix[t, g] / matrix[t].sum():.1%}"))
        return files.aligned(rows) if len(order) else "no mistakes"
    heads = names
    if max(map(files.width, names)) > 10:  # long names would make the table too wide: columns by number
        heads, names = [str(i) for i in range(len(names))], [f"{i} {name}" for i, name in enumerate(names)]
    rows = [("truth \\ predicted", *heads)]
    rows += [(name, *(str(count) if count else "." for count in row)) for name, row in zip(names, matrix.tolist())]
    return files.aligned(rows)
