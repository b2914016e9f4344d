"""From predictions to scores: classes, labels, correlations, entities, answers, and tables for a person.

Pure functions on numbers, arrays and lists, which hold at least one example; truth and predictions have one shape.
Every score is a fraction of 1, never a percentage. What is 0 / 0 by definition (the precision of a class that was never
predicted) is 0, the field's convention. tests/test_metrics.py compares with scikit-learn, scipy and seqeval, and works
out SQuAD's rules by hand.
"""

import math
import re
import string
from collections import Counter
from difflib import SequenceMatcher

import numpy as np

from nanoft import UserError, files
from nanoft.text.wordpiece import CHINESE

PRF = ("precision", "recall", "f1")
AVERAGES = ("micro", "macro", "weighted", "samples")
POSITIVE = ("positive", "pos", "yes", "true", "1")  # of two labels, the one that f1 and auc are of
TAG = re.compile(r"O|[BIESMLU](-.+)?")  # of any scheme
LETTERS = {"M": "I", "L": "E", "U": "S"}  # of BMES and BILOU in those of BIOES
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
NO_CHINESE_PUNCTUATION = str.maketrans("", "", "，。：？！“”；’《》…·、「」（）－～『』")
NO_SPACES = f"{CHINESE}\u3040-\u30ff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Japanese; Thai, Lao, Burmese, Khmer
UNSPACED = re.compile(f"[{NO_SPACES}]")


# ---- classes -----------------------------------------------------------------------------------------------------


def confusion(labels, predictions, n_classes: int) -> np.ndarray:
    """Class numbers (N,) -> counts, int (K, K): a row per true class, a column per predicted one."""
    cells = np.asarray(labels, dtype=np.int64) * n_classes + np.asarray(predictions, dtype=np.int64)
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def ratio(part, whole) -> np.ndarray:
    """part / whole for each element, and 0 where whole is 0."""
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)


def precision_recall_f1(hits, predicted, actual) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From counts of one shape: the right predictions, all predictions, and all that there is to find."""
    return ratio(hits, predicted), ratio(hits, actual), ratio(2 * hits, predicted + actual)


def class_scores(names, hits, predicted, actual, averaged=slice(None)) -> dict:
    """From counts (K,): precision, recall and f1 as micro_, macro_ and weighted_ averages, and `per_class` by name.

    micro: from the sums of the counts; macro: the mean over the classes `averaged`; weighted: the mean by support, the
    number of true examples. per_class: {name: {precision, recall, f1, support}}.
    """
    each = np.array(precision_recall_f1(hits, predicted, actual))  # (3, K)
    rows = {"micro": precision_recall_f1(hits.sum(), predicted.sum(), actual.sum()),
            "macro": each[:, averaged].mean(axis=1),
            "weighted": each @ actual / max(actual.sum(), 1)}
    scores = {f"{kind}_{name}": float(value) for kind, row in rows.items() for name, value in zip(PRF, row)}
    return scores | {"per_class": {name: dict(zip(PRF, row), support=support) for name, row, support in
                                   zip(names, each.T.tolist(), actual.tolist())}}


def positive_label(counts: dict[str, int]) -> str:
    """Which of two labels is found or missed: one with a usual name for it, else the rarer. counts: {label: rows}."""
    usual = [label for label in counts if label.lower() in POSITIVE]
    return usual[0] if len(usual) == 1 else min(reversed(counts), key=lambda label: counts[label])


def auc(is_positive: np.ndarray, scores: np.ndarray) -> float:
    """The area under the ROC curve: how often a positive example scores above a negative one, equal ones half.

    By ranks (Mann and Whitney, 1947). is_positive: bool (N,), scores: (N,). nan where there are none of either.
    """
    n = int(is_positive.sum())
    n_pairs = n * (len(scores) - n)
    return float((ranks(scores)[is_positive].sum() - n * (n + 1) / 2) / n_pairs) if n_pairs else math.nan


def classification(labels, predictions, names: list, positive: int = 1) -> dict:
    """All scores of one class per example: a flat dictionary of floats, and `per_class` by name.

    accuracy, mcc, and precision, recall and f1 as micro_, macro_ and weighted_ averages over the classes that occur in
    the truth or among the predictions (micro_f1 of one class per example is the accuracy). With two classes also f1,
    that of the class number `positive`. labels, predictions: class numbers (N,).
    """
    matrix = confusion(labels, predictions, len(names))
    hits, predicted, actual = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)  # each (K,)
    scores = {"accuracy": float(hits.sum() / matrix.sum()), "mcc": matthews(matrix)}
    if len(names) == 2:
        scores["f1"] = float(precision_recall_f1(hits, predicted, actual)[2][positive])
    return scores | class_scores(names, hits, predicted, actual, averaged=predicted + actual > 0)


def matthews(matrix: np.ndarray) -> float:
    """Matthews' correlation of a confusion matrix, -1 to 1, for any number of classes (Gorodkin, 2004).

    0 where only one class was predicted, or only one occurs: such predictions tell nothing. In Python's integers,
    which do not overflow.
    """
    hits, total = int(matrix.trace()), int(matrix.sum())
    predicted, actual = matrix.sum(axis=0).tolist(), matrix.sum(axis=1).tolist()
    variance_predicted = total**2 - sum(p * p for p in predicted)
    variance_actual = total**2 - sum(a * a for a in actual)
    if not variance_predicted * variance_actual:
        return 0.0
    covariance = hits * total - sum(p * a for p, a in zip(predicted, actual))
    return covariance / math.sqrt(variance_predicted * variance_actual)


def multi_label(labels, predictions, names: list) -> dict:
    """The scores of boolean arrays (N, K), K labels per example: as `classification`, over all K labels.

    accuracy: the fraction of examples with all K right. samples_f1 (_precision, _recall): of each example, then the
    mean; an example that has no label and gets none counts 0 here, as in scikit-learn.
    """
    arrays = (labels & predictions, predictions, labels)
    counts = [array.sum(axis=0) for array in arrays]  # each (K,)
    of_examples = precision_recall_f1(*(array.sum(axis=1) for array in arrays))  # each (N,)
    scores = {"accuracy": float((labels == predictions).all(axis=1).mean())} | class_scores(names, *counts)
    return scores | {f"samples_{name}": float(row.mean()) for name, row in zip(PRF, of_examples)}


# ---- numbers -----------------------------------------------------------------------------------------------------


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of two rows of numbers (N,), -1 to 1; nan where one of them is constant, as in scipy."""
    if (x == x[0]).all() or (y == y[0]).all():
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    x, y = x / abs(x).max(), y / abs(y).max()  # squares of huge or tiny numbers would leave the range of floats
    return float(np.clip(x @ y / math.sqrt((x @ x) * (y @ y)), -1, 1))


def ranks(x) -> np.ndarray:
    """The rank of each number, from 1; equal ones share the mean of their ranks. (N,) -> float (N,)"""
    _, which, count = np.unique(x, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count - 1) / 2)[which]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation, that of the ranks: 1 where y rises with x, straight or not. nan as in `pearson`."""
    return pearson(ranks(x), ranks(y))


# ---- entities ----------------------------------------------------------------------------------------------------


def tag_scheme(sentences: list[list[str]]) -> str:
    """The scheme of tags: IOB2, IOB1, BIOES, BILOU or BMES, or "" where some tag is of none of them.

    IOB1 writes B- only between two entities of a type that touch; entities that begin with I- tell it from IOB2.
    """
    tags = {tag for sentence in sentences for tag in sentence}
    prefixes = {tag.partition("-")[0] for tag in tags if tag != "O"}
    if not all(map(TAG.fullmatch, tags)) or not prefixes & {"B", "I"}:
        return ""
    for scheme, own in (("BMES", "M"), ("BILOU", "LU"), ("BIOES", "ES")):
        if prefixes & set(own):
            return scheme
    loose, strict = (sum(len(entities(sentence, scheme)) for sentence in sentences) for scheme in ("", "IOB2"))
    return "IOB2" if 2 * strict >= loose else "IOB1"


def entities(tags: list[str], scheme: str = "") -> list[tuple[str, int, int]]:
    """The entities of one sentence in order: (type, first word, last word), counted from 0.

    tags: B-type at the first word of an entity, I-type inside, O elsewhere; also E- at a last word and S- at an only
    one; M- is read as I-, L- as E-, U- as S-; a letter alone has the type _. Lenient, without a scheme (as CoNLL's
    script and seqeval's default): an entity also begins where I- or E- continues nothing. Strict, as seqeval's: of
    "IOB2" an entity begins at B- alone, of "BIOES" (and so BILOU and BMES) it is S-, or begins at B- and ends at E-;
    any other I- or E- belongs to none.
    """
    spans, start, last_prefix, last_kind = [], None, "O", "_"
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        prefix, kind = LETTERS.get(prefix, prefix), kind or "_"
        continues = prefix in "IE" and last_prefix in "BI" and kind == last_kind
        if start is not None and not continues:
            if scheme != "BIOES" or last_prefix in "ES":
                spans.append((last_kind, start, i - 1))
            start = None
        if start is None and (prefix in "BS" if scheme else prefix != "O"):
            start = i
        last_prefix, last_kind = prefix, kind
    return spans


def entity_scores(true_sentences: list, predicted_sentences: list, strict: bool = False) -> dict:
    """The scores of whole entities: right only if type, first and last word are. Two lists of lists of tags.

    precision, recall and f1 (of all types together, that is micro), all averages as in `classification` over the types
    that occur in the truth or the predictions, and `per_class` by type. strict: by BIOES if the tags have its letters,
    else by IOB2. Raises UserError where there is no entity at all.
    """
    letters = {LETTERS.get(tag[:1], tag[:1]) for sentence in true_sentences + predicted_sentences for tag in sentence}
    scheme = "" if not strict else "BIOES" if letters & {"E", "S"} else "IOB2"
    hits, predicted, actual = Counter(), Counter(), Counter()
    for truth, guess in zip(true_sentences, predicted_sentences, strict=True):
        truth, guess = set(entities(truth, scheme)), set(entities(guess, scheme))
        for counter, spans in ((hits, truth & guess), (predicted, guess), (actual, truth)):
            counter.update(kind for kind, _, _ in spans)
    types = sorted(predicted | actual)
    if not types:
        raise UserError("there is nothing to score: no entity in the truth, and none among the predictions"
                        + " (strict ones begin with B-)" * strict)
    counts = [np.array([counter[kind] for kind in types]) for counter in (hits, predicted, actual)]
    scores = class_scores(types, *counts)
    return {name: scores[f"micro_{name}"] for name in PRF} | scores


# ---- answers -----------------------------------------------------------------------------------------------------


def normalize_answer(text: str) -> str:
    """What answers are compared by: lower case, no ASCII punctuation, no a, an, the, single spaces.

    In this order, so that `well-known` becomes `wellknown`, and `"The"` becomes nothing. Characters of scripts without
    spaces stand alone, and where there are any, Chinese punctuation goes too (as for CMRC, arXiv:1810.07366).
    """
    text = text.lower().translate(NO_PUNCTUATION)
    if UNSPACED.search(text):
        text = UNSPACED.sub(r" \g<0> ", text.translate(NO_CHINESE_PUNCTUATION))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_f1(prediction: str, answer: str, v2: bool = False) -> float:
    """F1 of the words that two answers share, each as often as both have it.

    Where a script without spaces occurs, of their longest common run of characters (and of words of other scripts), as
    CMRC scores. Where one of them has no word left, v1.1 gives 0, and v2 gives 1 if neither has.
    """
    guess, truth = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if v2 and not (guess and truth):
        return float(guess == truth)
    if UNSPACED.search(prediction + answer):
        shared = SequenceMatcher(None, guess, truth, autojunk=False).find_longest_match().size
    else:
        shared = (Counter(guess) & Counter(truth)).total()
    return 2 * shared / (len(guess) + len(truth)) if shared else 0.0


def rouge_l(prediction: str, answer: str) -> float:
    """ROUGE-L (Lin, 2004): F1 of the longest common subsequence of words; of characters in scripts without spaces.

    Words as rouge_score takes them, without stemming: lower case, letters and digits alone.
    """
    guess, truth = (re.findall(rf"[{NO_SPACES}]|[^\W_{NO_SPACES}]+", text.lower()) for text in (prediction, answer))
    row = [0] * (len(truth) + 1)  # the longest common subsequence of the words so far with the first i of the truth
    for word in guess:
        last = row
        row = [0]
        for i, other in enumerate(truth):
            row.append(last[i] + 1 if word == other else max(last[i + 1], row[i]))
    return 2 * row[-1] / (len(guess) + len(truth)) if row[-1] else 0.0


def squad_scores(answers: list[list[str]], predictions: list[str], v2: bool = False) -> dict:
    """exact and f1, fractions of 1 (the published scripts print them times 100), and total, the number of questions.

    answers: those of each question, of which the best counts (arXiv:1606.05250). v2 (arXiv:1806.03822): a question
    without answers wants the empty string; HasAns_ and NoAns_ exact, f1 and total are those of the questions with and
    without answers, where there are any.
    """
    rows = []  # has answers, exact, f1
    for given, guess in zip(answers, predictions, strict=True):
        truths = [truth for truth in given if normalize_answer(truth)] or [""] if v2 else given
        exact = any(normalize_answer(guess) == normalize_answer(truth) for truth in truths)
        rows.append((bool(given), exact, max(answer_f1(guess, truth, v2) for truth in truths)))
    groups, scores = {"": rows}, {}
    if v2:
        groups |= {"HasAns_": [row for row in rows if row[0]], "NoAns_": [row for row in rows if not row[0]]}
    for prefix, group in groups.items():
        if group:
            exact, f1 = (math.fsum(column) / len(group) for column in list(zip(*group))[1:])
            scores |= {f"{prefix}exact": exact, f"{prefix}f1": f1, f"{prefix}total": len(group)}
    return scores


# ---- tables for a person -----------------------------------------------------------------------------------------


def described(task: dict, scores: dict) -> str:
    """The main scores of a task as a line."""
    names = dict.fromkeys([task["metric"], *(n for n in ("loss", "accuracy", "f1", "exact", "mcc", "auc", "macro_f1",
                                                         "spearman", "mae", "rmse", "rouge_l") if n in scores)])
    of = {"f1": f" of {task['positive']!r:.30}"} if "positive" in task else {}
    return " | ".join(f"{name}{of.get(name, '')} {scores[name]:.4f}" for name in names)


def report(scores: dict) -> str:
    """The scores of any function above as text: a line per class, then the averages, then the other scores."""
    per_class = scores.get("per_class", {})
    kinds = [kind for kind in AVERAGES if f"{kind}_f1" in scores]
    in_table = {f"{kind}_{key}" for kind in kinds for key in PRF} | (set(PRF) if per_class else set()) | {"per_class"}
    others = [(name, str(value) if isinstance(value, int) else f"{value:.4f}")
              for name, value in scores.items() if name not in in_table]
    if not per_class:
        return files.aligned(others)
    rows: list[tuple] = [("", *PRF, "support")]
    rows += [(str(name), *(f"{row[key]:.4f}" for key in PRF), str(row["support"])) for name, row in per_class.items()]
    support = str(sum(row["support"] for row in per_class.values()))
    rows += [("",) * 5, *((kind, *(f"{scores[f'{kind}_{key}']:.4f}" for key in PRF), support) for kind in kinds)]
    return files.aligned(rows) + ("\n\n" + files.aligned(others) if others else "")


def confusion_table(matrix: np.ndarray, names: list, most: int = 12) -> str:
    """A confusion matrix (K, K) as text, a row per true class, . for 0; above `most` classes the commonest mistakes."""
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
