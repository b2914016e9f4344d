"""Scores: worked out by hand, true by their nature, and equal to the field's own programs where these are installed."""

import math
import warnings

import numpy as np
import pytest

from nanoft import UserError
from nanoft.tasks import metrics

INPUTS = 10_000  # random ones for each comparison with a reference
BATCH = 500      # of one shape: scikit-learn takes a millisecond or two a call, so one call judges a whole batch


@pytest.fixture
def sklearn():
    """Its metrics, without their checks of what they are given, which take most of the time."""
    package = pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    with package.config_context(assume_finite=True, skip_parameter_validation=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on 0 / 0, which is wanted here
        yield pytest.importorskip("sklearn.metrics")


class Worst:
    """The largest difference from a reference, over all that was compared."""

    def __init__(self):
        self.difference, self.compared = 0.0, 0

    def see(self, ours, theirs):
        ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
        assert ours.shape == theirs.shape and (np.isnan(ours) == np.isnan(theirs)).all()
        self.difference = max(self.difference, np.nan_to_num(abs(ours - theirs)).max(initial=0))
        self.compared += 1

    def judge(self, least=INPUTS):
        print(f"{self.compared} comparisons, largest difference {self.difference:.1e}")  # pytest -rP shows it
        assert self.compared >= least and self.difference < 1e-9


# ---- one class per example ---------------------------------------------------------------------------------------

TRUTH, GUESS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1, 0, 2, 2, 1]
MATRIX = [[3, 1, 0], [1, 2, 0], [0, 1, 2]]


def test_three_classes_by_hand():
    matrix = metrics.confusion(TRUTH, GUESS, 3)
    assert matrix.tolist() == MATRIX
    precision, recall, f1 = metrics.precision_recall_f1(matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1))
    assert precision == pytest.approx([3 / 4, 2 / 4, 2 / 2])  # down the columns
    assert recall == pytest.approx([3 / 4, 2 / 3, 2 / 3])     # along the rows
    assert f1 == pytest.approx([6 / 8, 4 / 7, 4 / 5])
    scores = metrics.classification(TRUTH, GUESS, ["a", "b", "c"])
    assert scores["accuracy"] == scores["micro_f1"] == 0.7
    assert scores["macro_precision"] == pytest.approx(0.75)
    assert scores["macro_f1"] == pytest.approx((3 / 4 + 4 / 7 + 4 / 5) / 3)
    assert scores["weighted_f1"] == pytest.approx((4 * 3 / 4 + 3 * 4 / 7 + 3 * 4 / 5) / 10)
    # right * total - sum of predicted * actual = 7 * 10 - (4*4 + 4*3 + 2*3) = 36; spreads 100 - 36 and 100 - 34
    assert scores["mcc"] == pytest.approx(36 / math.sqrt(64 * 66))
    assert scores["per_class"]["b"] == pytest.approx({"precision": 1 / 2, "recall": 2 / 3, "f1": 4 / 7, "support": 3})
    assert "f1" not in scores
    assert all(type(value) is float for name, value in scores.items() if name != "per_class")


def test_two_classes_have_an_f1_of_their_own():
    # a filter for spam that finds 3 of 5 and is wrong once in 95: precision 3/4, recall 3/5
    labels = np.array([1] * 5 + [0] * 95)
    scores = metrics.classification(labels, np.array([1, 1, 1, 0, 0, 1] + [0] * 94), ["ham", "spam"])
    assert scores["f1"] == scores["per_class"]["spam"]["f1"] == pytest.approx(2 / 3)
    assert scores["accuracy"] == 0.97
    assert scores["mcc"] == pytest.approx((3 * 94 - 1 * 2) / math.sqrt(4 * 5 * 95 * 96))
    always_ham = metrics.classification(labels, np.zeros(100, dtype=int), ["ham", "spam"])
    assert (always_ham["accuracy"], always_ham["f1"], always_ham["mcc"]) == (0.95, 0.0, 0.0)


def test_a_class_that_never_occurs_is_listed_and_not_averaged():
    few, many = (metrics.classification(TRUTH, GUESS, names) for names in (["a", "b", "c"], ["a", "b", "c", "d"]))
    assert many["per_class"].pop("d") == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert few == many


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint64])
def test_narrow_integers_do_not_overflow(dtype):
    labels = np.arange(200, dtype=dtype)
    assert (metrics.confusion(labels, labels[::-1], 200) == np.eye(200, dtype=int)[::-1]).all()


def test_matthews_of_billions():
    for times in (1, 10**6, 10**12):
        assert metrics.matthews(np.array(MATRIX) * times) == pytest.approx(36 / math.sqrt(64 * 66))
        assert metrics.matthews(np.eye(3, dtype=int) * times) == 1.0
        assert metrics.matthews(np.eye(2, dtype=int)[::-1] * times) == -1.0


def test_what_holds_for_every_classification():
    rng = np.random.default_rng(1)
    names = ["a", "b", "c", "d"]
    for _ in range(300):
        labels, guesses = rng.integers(4, size=(2, rng.integers(1, 30)))
        scores, order = metrics.classification(labels, guesses, names), rng.permutation(len(labels))
        assert metrics.classification(labels[order], guesses[order], names) == scores
        assert scores["micro_precision"] == pytest.approx(scores["accuracy"])
        assert scores["weighted_recall"] == pytest.approx(scores["accuracy"])
        swapped = metrics.classification(guesses, labels, names)
        assert swapped["macro_precision"] == pytest.approx(scores["macro_recall"])
        assert swapped["mcc"] == pytest.approx(scores["mcc"]) and -1 <= scores["mcc"] <= 1
        renamed = rng.permutation(4)
        other = metrics.classification(renamed[labels], renamed[guesses], [names[i] for i in renamed.argsort()])
        assert other["per_class"] == scores["per_class"] and other["mcc"] == pytest.approx(scores["mcc"])
        perfect = metrics.classification(labels, labels, names)
        assert perfect["accuracy"] == perfect["macro_f1"] == perfect["weighted_f1"] == 1


def draw_classes(rng):
    """Batches of labels and predictions (BATCH, N) of K classes, INPUTS in all; some predict well, some at random."""
    for _ in range(INPUTS // BATCH):
        n_classes, length = rng.integers(2, 7), rng.integers(1, 20)
        labels, guesses = rng.integers(n_classes, size=(2, BATCH, length))
        yield n_classes, labels, np.where(rng.random((BATCH, 1)) < rng.random((BATCH, length)), labels, guesses)


def test_classification_agrees_with_scikit_learn(sklearn):
    worst = Worst()
    for n_classes, labels, guesses in draw_classes(np.random.default_rng(2)):
        # a thousand small problems as one: each has class numbers of its own
        own = n_classes * np.arange(BATCH)[:, None]
        rows = sklearn.precision_recall_fscore_support(
            (labels + own).ravel(), (guesses + own).ravel(), labels=np.arange(BATCH * n_classes), zero_division=0)
        rows = np.reshape(rows, (4, BATCH, n_classes)).swapaxes(0, 1)  # (BATCH, P R F support, classes)
        for i, (truth, guess, (*each, support)) in enumerate(zip(labels, guesses, rows)):
            ours = metrics.classification(truth, guess, list(range(n_classes)))
            worst.see([list(row.values()) for row in ours["per_class"].values()], np.array([*each, support]).T)
            occurs = np.union1d(truth, guess)
            macro, weighted = np.mean(np.array(each)[:, occurs], axis=1), np.average(each, weights=support, axis=1)
            worst.see([ours[f"macro_{name}"] for name in metrics.PRF], macro)
            worst.see([ours[f"weighted_{name}"] for name in metrics.PRF], weighted)
            if i % 25:
                continue
            for kind in ("micro", "macro", "weighted"):  # its own averages, on some: they are slow
                direct = sklearn.precision_recall_fscore_support(truth, guess, average=kind, zero_division=0)[:3]
                worst.see([ours[f"{kind}_{name}"] for name in metrics.PRF], direct)
            if n_classes == 2:
                worst.see(ours["f1"], sklearn.f1_score(truth, guess, zero_division=0))
    worst.judge(3 * INPUTS)


@pytest.mark.parametrize("counts, label", [
    ({"ham": 90, "spam": 10}, "spam"), ({"bad": 10, "good": 90}, "bad"), ({"a": 5, "b": 5}, "b"),
    ({"negative": 1, "positive": 9}, "positive"), ({"0": 1, "1": 9}, "1"), ({"No": 1, "Yes": 9}, "Yes"),
    ({"pos": 9, "positive": 1}, "positive"),
])
def test_f1_is_of_the_label_with_a_usual_name_or_the_rarer_one(counts, label):
    assert metrics.positive_label(counts) == label


def test_f1_of_either_label_and_auc_agree_with_scikit_learn(sklearn):
    worst, rng = Worst(), np.random.default_rng(5)
    for trial in range(300):
        n = int(rng.integers(2, 40))
        truth, guess = rng.random(n) < rng.random(), rng.random(n) < 0.5
        scores = rng.normal(size=n) if trial % 2 else rng.integers(0, 5, n) / 7  # with ties
        if 0 < truth.sum() < n:
            worst.see(metrics.auc(truth, scores), sklearn.roc_auc_score(truth, scores))
        for positive in (0, 1):
            worst.see(metrics.classification(truth.astype(int), guess.astype(int), ["a", "b"], positive)["f1"],
                      sklearn.f1_score(truth, guess, pos_label=positive, zero_division=0))
    worst.judge(600)


def test_auc_by_hand():
    assert metrics.auc(np.array([True, False, True, False]), np.array([0.9, 0.1, 0.5, 0.5])) == (3 + 0.5) / 4
    assert math.isnan(metrics.auc(np.array([True, True]), np.array([1, 2])))


@pytest.mark.parametrize("prediction, answer, score", [
    ("the cat sat", "The cat, it sat.", 6 / 7), ("a b c d", "d c b a", 1 / 4), ("", "", 0), ("x", "", 0),
    ("\u4e0a\u6d77\u5e02", "\u4e0a\u6d77", 4 / 5), ("caf\u00e9 noir", "Caf\u00e9", 2 / 3),
])
def test_rouge_l_by_hand(prediction, answer, score):
    assert metrics.rouge_l(prediction, answer) == metrics.rouge_l(answer, prediction) == pytest.approx(score)


def test_rouge_l_agrees_with_rouge_score():
    package = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is not installed")
    scorer, rng, worst = package.RougeScorer(["rougeL"], use_stemmer=False), np.random.default_rng(6), Worst()
    words = ["the", "cat", "Sat,", "on-a", "mat.", "it's", "3.5", "x_y", "--"]
    for _ in range(200):
        first, second = (" ".join(rng.choice(words, rng.integers(0, 15))) for _ in range(2))
        worst.see(metrics.rouge_l(first, second), scorer.score(second, first)["rougeL"].fmeasure)
    worst.judge(200)


def test_accuracy_and_confusion_agree_with_scikit_learn(sklearn):
    worst = Worst()
    for n_classes, labels, guesses in draw_classes(np.random.default_rng(3)):
        for truth, guess in zip(labels, guesses):
            scores = metrics.classification(truth, guess, range(n_classes))
            worst.see(scores["accuracy"], sklearn.accuracy_score(truth, guess))
            worst.see(metrics.confusion(truth, guess, n_classes),
                      sklearn.confusion_matrix(truth, guess, labels=np.arange(n_classes)))
    worst.judge(2 * INPUTS)


def test_matthews_agrees_with_scikit_learn(sklearn):
    worst = Worst()
    for n_classes, labels, guesses in draw_classes(np.random.default_rng(4)):
        for truth, guess in zip(labels, guesses):
            worst.see(metrics.matthews(metrics.confusion(truth, guess, n_classes)),
                      sklearn.matthews_corrcoef(truth, guess))
    worst.judge()


# ---- any number of labels per example ----------------------------------------------------------------------------


def test_labels_of_films_by_hand():
    #                  drama  comedy  war
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]], dtype=bool)
    guess = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=bool)
    scores = metrics.multi_label(truth, guess, ["drama", "comedy", "war"])
    assert scores["accuracy"] == 2 / 4                                # the first and the third film
    assert scores["per_class"]["drama"] == pytest.approx({"precision": 2 / 3, "recall": 1, "f1": 4 / 5, "support": 2})
    assert scores["per_class"]["comedy"] == pytest.approx({"precision": 1, "recall": 1 / 2, "f1": 2 / 3, "support": 2})
    assert scores["per_class"]["war"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert scores["micro_f1"] == pytest.approx(2 * 3 / (4 + 4))
    assert scores["macro_f1"] == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert scores["weighted_f1"] == pytest.approx((2 * 4 / 5 + 2 * 2 / 3) / 4)
    assert scores["samples_f1"] == pytest.approx((1 + 2 / 3 + 0 + 2 / 3) / 4)  # no label, none given: 0


def test_one_label_each_is_a_classification():
    one_hot = np.eye(3, dtype=bool)
    many = metrics.multi_label(one_hot[TRUTH], one_hot[GUESS], list("012"))
    one = metrics.classification(TRUTH, GUESS, list("012"))
    assert one.pop("mcc") and {name: many[name] for name in one} == one
    assert many["samples_f1"] == pytest.approx(one["accuracy"])


def test_multi_label_agrees_with_scikit_learn(sklearn):
    worst, rng = Worst(), np.random.default_rng(5)

    def reference(truth, guess):
        """P, R, F1 and support of each column, of (rows, columns): (4, columns)"""
        return np.array(sklearn.precision_recall_fscore_support(truth.astype(int), guess.astype(int), zero_division=0))

    for _ in range(INPUTS // BATCH):
        N, K = rng.integers(1, 8), rng.integers(2, 6)
        truth, guess = rng.random((2, BATCH, N, K)) < rng.random((BATCH, 1, 1))
        by_label, by_example, by_cell = (
            reference(*(array.transpose(axes).reshape(rows, -1) for array in (truth, guess)))
            for axes, rows in (((1, 0, 2), N), ((2, 0, 1), K), ((1, 2, 0), N * K)))
        by_label = by_label.reshape(4, BATCH, K).swapaxes(0, 1)  # (BATCH, 4, K)
        samples = by_example.reshape(4, BATCH, N).mean(axis=2)   # (4, BATCH)
        for i, (t, g, each) in enumerate(zip(truth, guess, by_label)):
            ours = metrics.multi_label(t, g, range(K))
            worst.see([list(row.values()) for row in ours["per_class"].values()], each.T)
            weighted = each[:3] @ each[3] / max(each[3].sum(), 1)
            for kind, row in (("macro", each[:3].mean(axis=1)), ("weighted", weighted),
                              ("samples", samples[:3, i]), ("micro", by_cell[:3, i])):
                worst.see([ours[f"{kind}_{name}"] for name in metrics.PRF], row)
            worst.see(ours["accuracy"], sklearn.accuracy_score(t, g))
            if i % 25 == 0:
                for kind in metrics.AVERAGES:
                    direct = sklearn.precision_recall_fscore_support(t, g, average=kind, zero_division=0)[:3]
                    worst.see([ours[f"{kind}_{name}"] for name in metrics.PRF], direct)
    worst.judge(6 * INPUTS)


# ---- numbers -----------------------------------------------------------------------------------------------------


def test_correlations_by_hand():
    # deviations -2 -1 0 1 2 and -2 0 -1 1 2: products 4 + 0 + 0 + 1 + 4 = 9, squares 10 each
    pearson, spearman = (lambda x, y, f=f: f(np.array(x), np.array(y)) for f in (metrics.pearson, metrics.spearman))
    assert pearson([1, 2, 3, 4, 5], [1, 3, 2, 4, 5]) == pytest.approx(0.9)
    assert metrics.ranks([10, 20, 20, 5, 20]).tolist() == [2, 4, 4, 1, 4]
    # ranks 1 2.5 2.5 4 and 1 2 3 4: deviations -1.5 0 0 1.5 and -1.5 -.5 .5 1.5: 4.5 / sqrt(4.5 * 5)
    assert spearman([1, 7, 7, 9], [2, 3, 5, 90]) == pytest.approx(math.sqrt(0.9))
    assert pearson([1, 2], [5, 3]) == -1 and spearman([1, 2], [3, 5]) == 1
    assert pearson([1e300, 2e300, 4e300], [1e-300, 2e-300, 4e-300]) == pytest.approx(1)
    for constant in ([0.1] * 7, [3] * 7):
        assert math.isnan(pearson(constant, range(7))) and math.isnan(spearman(range(7), constant))
    assert math.isnan(pearson([1], [2]))


def test_what_holds_for_every_correlation():
    rng = np.random.default_rng(6)
    for _ in range(300):
        x, y = rng.normal(size=(2, rng.integers(2, 20)))
        assert metrics.pearson(3 * x - 7, y) == pytest.approx(metrics.pearson(y, x)) == -metrics.pearson(-x, y)
        assert metrics.spearman(np.exp(x), y**3) == metrics.spearman(x, y)
        assert metrics.spearman(x, np.exp(x)) == pytest.approx(1)


def test_correlations_agree_with_scipy():
    stats, worst = pytest.importorskip("scipy.stats", reason="scipy is not installed"), Worst()
    warnings.simplefilter("ignore")  # on constants
    rng, constants = np.random.default_rng(7), 0
    for i in range(INPUTS):
        n = rng.integers(2, 12)
        x, y = rng.normal(size=(2, n)) * 10.0 ** rng.integers(-3, 4) if i % 2 else rng.integers(4, size=(2, n))
        y = y + rng.choice([-1, 0, 1]) * x
        worst.see(metrics.pearson(x, y), stats.pearsonr(x, y)[0])
        worst.see(metrics.spearman(x, y), stats.spearmanr(x, y)[0])
        constants += math.isnan(metrics.pearson(x, y))
    assert constants > 100
    worst.judge(2 * INPUTS)


# ---- entities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tags, lenient, strict", [
    # Marie Curie left Warsaw
    ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)], [("PER", 0, 1), ("LOC", 3, 3)]),
    ("B-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)], [("PER", 0, 0), ("PER", 1, 1)]),
    ("I-PER I-PER O", [("PER", 0, 1)], []),                                       # begins with I
    ("O I-LOC", [("LOC", 1, 1)], []),
    ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)], [("PER", 0, 0)]),       # the type changes inside
    ("B-PER I-LOC I-PER", [("PER", 0, 0), ("LOC", 1, 1), ("PER", 2, 2)], [("PER", 0, 0)]),
    ("B-PER O I-PER", [("PER", 0, 0), ("PER", 2, 2)], [("PER", 0, 0)]),
    ("B I O I", [("_", 0, 1), ("_", 3, 3)], [("_", 0, 1)]),                       # marks without a type
    ("B-A-B I-A-B I-A", [("A-B", 0, 1), ("A", 2, 2)], [("A-B", 0, 1)]),           # a type with a dash
    ("O O", [], []),
    ("", [], []),
])
def test_entities_of_a_sentence(tags, lenient, strict):
    assert metrics.entities(tags.split()) == lenient
    assert metrics.entities(tags.split(), "IOB2") == strict


@pytest.mark.parametrize("tags, found", [
    ("B-X I-X E-X S-X", [("X", 0, 2), ("X", 3, 3)]),
    ("E-X E-X I-X", [("X", 0, 0), ("X", 1, 1), ("X", 2, 2)]),
    ("S-X I-X E-X", [("X", 0, 0), ("X", 1, 2)]),
    ("B-X E-Y", [("X", 0, 0), ("Y", 1, 1)]),
])
def test_ends_and_singles_are_read_when_lenient(tags, found):
    assert metrics.entities(tags.split()) == found


@pytest.mark.parametrize("tags, lenient, strict", [
    ("B-X I-X L-X O U-Y", [("X", 0, 2), ("Y", 4, 4)], [("X", 0, 2), ("Y", 4, 4)]),   # BILOU
    ("B-X M-X E-X O S-Y", [("X", 0, 2), ("Y", 4, 4)], [("X", 0, 2), ("Y", 4, 4)]),   # BMES
    ("B M E S B E", [("_", 0, 2), ("_", 3, 3), ("_", 4, 5)], [("_", 0, 2), ("_", 3, 3), ("_", 4, 5)]),
    ("B-X I-X O", [("X", 0, 1)], []),                                                # no end
    ("O E-X", [("X", 1, 1)], []),                                                    # no beginning
    ("B-X E-Y", [("X", 0, 0), ("Y", 1, 1)], []),
    ("B-X S-X", [("X", 0, 0), ("X", 1, 1)], [("X", 1, 1)]),
])
def test_entities_with_ends(tags, lenient, strict):
    assert metrics.entities(tags.split()) == lenient
    assert metrics.entities(tags.split(), "BIOES") == strict


@pytest.mark.parametrize("tags, scheme", [
    ("O B-X I-X", "IOB2"), ("B-X", "IOB2"), ("O B I", "IOB2"), ("B-X I-X O I-X", "IOB2"),  # one slip in two
    ("O I-X I-X", "IOB1"), ("I-X B-X O I-Y", "IOB1"),
    ("B-X E-X O", "BIOES"), ("B-X I-X E-X S-X", "BIOES"), ("B-X L-X", "BILOU"), ("I-X U-X O", "BILOU"),
    ("B-X M-X E-X S-X", "BMES"), ("B M E S", "BMES"),
    ("O", ""), ("", ""), ("NN VB", ""), ("B-X O NN", ""), ("S M L", ""), ("O-X B-X", ""), ("O PER LOC", ""),
])
def test_the_scheme_of_tags(tags, scheme):
    assert metrics.tag_scheme([tags.split()]) == scheme


def test_entity_scores_by_hand():
    truth = ["B-PER I-PER O B-LOC".split(), "B-ORG I-ORG O O".split(), "O B-PER O O".split()]
    guess = ["B-PER I-PER O B-ORG".split(), "B-ORG O O O".split(), "O B-PER O B-PER".split()]
    # PER: 3 predicted, 2 right of 2; LOC: none of 1; ORG: 2 predicted, none right of 1 (one is too short)
    scores = metrics.entity_scores(truth, guess)
    assert [scores[name] for name in metrics.PRF] == pytest.approx([2 / 5, 2 / 4, 4 / 9])
    assert scores["per_class"]["PER"] == pytest.approx({"precision": 2 / 3, "recall": 1, "f1": 4 / 5, "support": 2})
    assert scores["macro_f1"] == pytest.approx(4 / 5 / 3) and scores["weighted_f1"] == pytest.approx(4 / 5 * 2 / 4)
    assert list(scores["per_class"]) == ["LOC", "ORG", "PER"]
    assert scores == metrics.entity_scores(truth, guess, strict=True)


def test_lenient_forgives_what_strict_does_not():
    truth, guess = [["B-NP", "I-NP", "O"]], [["I-NP", "I-NP", "O"]]
    assert metrics.entity_scores(truth, guess)["f1"] == 1.0
    assert metrics.entity_scores(truth, guess, strict=True)["f1"] == 0.0


def test_clean_tags_give_back_their_entities():
    rng = np.random.default_rng(9)
    for _ in range(1000):
        tags, written = [], []
        for _ in range(rng.integers(1, 6)):
            kind, length = "XYZ"[rng.integers(3)], int(rng.integers(1, 4))
            written.append((kind, len(tags), len(tags) + length - 1))
            tags += [f"B-{kind}"] + [f"I-{kind}"] * (length - 1) + ["O"] * int(rng.integers(3))
        assert metrics.entities(tags) == metrics.entities(tags, "IOB2") == written
        assert metrics.entity_scores([tags], [tags])["macro_f1"] == 1.0


@pytest.mark.parametrize("name, marks, own", [("", "BIES", ""), ("IOB2", "BI", "IOB2"), ("IOBES", "BIES", "BIOES"),
                                              ("BILOU", "BILU", "BIOES")])
def test_entity_scores_agree_with_seqeval(name, marks, own):
    reference = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
    scheme = pytest.importorskip("seqeval.scheme")
    warnings.simplefilter("ignore")  # on 0 / 0
    strict, types = getattr(scheme, name, None), ["-X", "-Y", "-X-Y", "-Z", ""]
    options = dict(mode="strict", scheme=strict) if strict else {}
    rng, worst, empty = np.random.default_rng(10), Worst(), 0
    for i in range(INPUTS):
        few = types[:rng.integers(1, len(types) + 1)]
        wild = ["O", "O", *(mark + kind for mark in marks[:2 + i % 3] for kind in few)]
        truth = [rng.choice(wild, rng.integers(1, 9)).tolist() for _ in range(rng.integers(1, 4))]
        guess = [np.where(rng.random(len(tags)) < 0.3, rng.choice(wild, len(tags)), tags).tolist() for tags in truth]
        if own == "BIOES":
            truth, guess = ([*sentences, [marks[-1] + "-X"]] for sentences in (truth, guess))  # by which it is known
        for tags in truth + guess:
            theirs = ([(e.tag, e.start, e.end - 1) for e in scheme.Tokens(tags, strict).entities] if strict
                      else reference.sequence_labeling.get_entities(tags))
            assert metrics.entities(tags, own) == theirs
        if not any(metrics.entities(tags, own) for tags in truth + guess):  # where seqeval has nan or an exception
            empty += 1
            with pytest.raises(UserError, match="no entity"):
                metrics.entity_scores(truth, guess, bool(strict))
            continue
        ours = metrics.entity_scores(truth, guess, bool(strict))
        theirs = reference.classification_report(truth, guess, output_dict=True, zero_division=0, **options)
        for kind in ("micro", "macro", "weighted"):
            row = theirs.pop(f"{kind} avg")
            worst.see([ours[f"{kind}_{name}"] for name in metrics.PRF],
                      [row["precision"], row["recall"], row["f1-score"]])
        assert list(ours["per_class"]) == list(theirs)
        for row, other in zip(ours["per_class"].values(), theirs.values()):
            worst.see([row[name] for name in (*metrics.PRF, "support")],
                      [other[name] for name in ("precision", "recall", "f1-score", "support")])
        if i % 25 == 0:
            for name, score in (("precision", reference.precision_score), ("recall", reference.recall_score),
                                ("f1", reference.f1_score)):
                worst.see(ours[name], score(truth, guess, zero_division=0, **options))
    assert empty < INPUTS / 4
    worst.judge(3 * (INPUTS - empty))


# ---- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, plain", [
    ("The  Norman\tConquest!", "norman conquest"),
    ("well-known", "wellknown"),         # punctuation leaves no space behind
    ("A.N. Other", "other"),             # without its points, A.N. is an article
    ("the-atre, Theatre", "theatre theatre"),
    ("rock_n_roll", "rocknroll"),        # _ is punctuation
    ("$5.50", "550"),
    ("“Paris”", "“paris”"),              # only ASCII punctuation goes
    ("“a” cat", "“ ” cat"),              # an article leaves a space
    ("à la carte", "à la carte"),        # à is a letter of its own, not the article
    ("a\u00a0b", "b"),                   # a no-break space is a space
    ("The", ""),
    (" \n", ""),
])
def test_normalized_answers(text, plain):
    assert metrics.normalize_answer(text) == plain
    assert metrics.normalize_answer(plain) == plain


@pytest.mark.parametrize("prediction, answer, exact, f1, f1_v2", [
    ("The Norman Conquest!", "norman conquest", 1, 1, 1),
    ("in 1066", "1066", 0, 2 / 3, 2 / 3),                            # 1 of 2 words, 1 of 1
    ("the the cat", "cat cat", 0, 2 / 3, 2 / 3),                     # cat against cat cat: one is shared
    ("to be or not to be", "to be to be to", 0, 8 / 11, 8 / 11),     # to twice, be twice: 2 * 4 / (6 + 5)
    ("well-known", "well known", 0, 0, 0),                           # one word against two others
    ("à la carte", "a la carte", 0, 4 / 5, 4 / 5),                   # 3 words against 2
    ("$5.50", "550", 1, 1, 1),
    ("a", "the", 1, 0, 1),                                           # no word on either side: the versions differ
    ("", "", 1, 0, 1),
    ("", "Paris", 0, 0, 0),
    ("Paris", "...", 0, 0, 0),
    ("盛大游戏", "盛大游戏运营", 0, 4 / 5, 4 / 5),                      # 4 characters of 4 and of 6
    ("《盛大 游戏》。", "盛大游戏", 1, 1, 1),
    ("于1998年3月", "1998年", 0, 4 / 7, 4 / 7),                       # 于 1998 年 3 月: a number is one word
    ("年月日", "日月年", 0, 1 / 3, 1 / 3),                             # only what stands together
    ("苹果iPhone手机", "the iPhone", 0, 2 / 6, 2 / 6),                # iphone, of 5 and of 1
    ("東京タワー", "タワー", 0, 6 / 8, 6 / 8),
    ("กรุงเทพ", "กรุง", 0, 8 / 11, 8 / 11),
])
def test_two_answers(prediction, answer, exact, f1, f1_v2):
    for one, other in ((prediction, answer), (answer, prediction)):
        assert metrics.squad_scores([[one]], [other])["exact"] == exact
        assert metrics.answer_f1(one, other) == pytest.approx(f1)
        assert metrics.answer_f1(one, other, v2=True) == pytest.approx(f1_v2)


def test_squad_1_by_hand():
    answers = [["Denver Broncos", "the Broncos"], ["x"], ["1066", "in 1066 AD"]]
    # the first: its second answer; the last: year 1066 against 1066 has F1 2/3, against the other 2/5
    scores = metrics.squad_scores(answers, ["Broncos.", "", "the year 1066"])
    assert scores == pytest.approx({"exact": 1 / 3, "f1": (1 + 0 + 2 / 3) / 3, "total": 3})


def test_squad_2_by_hand():
    answers = [["in Rome", "Rome"], [], [], [], ["The"], ["a", "cat"]]
    predictions = ["to Rome", "", "The", "Rome", "", ""]
    # 1: to rome against in rome 1/2, against rome 2/3. 2: right. 3: nothing is left of it, so right too. 4: wrong.
    # 5: has an answer of which nothing is left, so nothing is right. 6: its a is dropped, and cat is asked for.
    assert metrics.squad_scores(answers, predictions, v2=True) == pytest.approx({
        "exact": 3 / 6, "f1": (2 / 3 + 1 + 1 + 0 + 1 + 0) / 6, "total": 6,
        "HasAns_exact": 1 / 3, "HasAns_f1": (2 / 3 + 1 + 0) / 3, "HasAns_total": 3,
        "NoAns_exact": 2 / 3, "NoAns_f1": 2 / 3, "NoAns_total": 3})
    only = metrics.squad_scores(answers[:1], predictions[:1], v2=True)
    assert "NoAns_f1" not in only and only["HasAns_f1"] == only["f1"]


# ---- tables for a person -----------------------------------------------------------------------------------------


def test_report():
    lines = metrics.report(metrics.classification(TRUTH, GUESS, ["World", "体育", "Business"])).splitlines()
    assert lines == ["          precision  recall      f1  support",
                     "World        0.7500  0.7500  0.7500        4",
                     "体育         0.5000  0.6667  0.5714        3",
                     "Business     1.0000  0.6667  0.8000        3",
                     "",
                     "micro        0.7000  0.7000  0.7000       10",
                     "macro        0.7500  0.6944  0.7071       10",
                     "weighted     0.7500  0.7000  0.7114       10",
                     "",
                     "accuracy  0.7000",
                     "mcc       0.5539"]
    answers = metrics.squad_scores([["x"]], ["x"])
    assert metrics.report(answers).splitlines() == ["exact  1.0000", "f1     1.0000", "total       1"]
    tagged = metrics.report(metrics.entity_scores([["B-X"]], [["B-X"]]))
    assert tagged.splitlines()[-1] == "weighted     1.0000  1.0000  1.0000        1"
    labels, guesses = np.array([[[True, False]], [[True, True]]])
    assert "samples" in metrics.report(metrics.multi_label(labels, guesses, ["a", "b"]))


def test_confusion_tables():
    matrix = metrics.confusion(TRUTH, GUESS, 3)
    assert metrics.confusion_table(matrix, ["good", "so-so", "bad"]).splitlines() == [
        "truth \\ predicted  good  so-so  bad",
        "good                  3      1    .",
        "so-so                 1      2    .",
        "bad                   .      1    2"]
    assert metrics.confusion_table(matrix, ["good", "neither of the two", "bad"]).splitlines() == [
        "truth \\ predicted     0  1  2",
        "0 good                3  1  .",
        "1 neither of the two  1  2  .",
        "2 bad                 .  1  2"]


def test_confusion_of_many_classes_names_the_commonest_mistakes():
    labels = np.repeat(np.arange(20), 10)
    guesses = labels.copy()
    guesses[:4], guesses[190:191] = 7, 3
    names = [f"class {i}" for i in range(20)]
    assert metrics.confusion_table(metrics.confusion(labels, guesses, 20), names).splitlines() == [
        "truth     predicted  times  of its class",
        "class 0     class 7      4         40.0%",
        "class 19    class 3      1         10.0%"]
    assert metrics.confusion_table(metrics.confusion(labels, labels, 20), names) == "no mistakes"
    all_wrong = metrics.confusion_table(metrics.confusion(labels, (labels + 1) % 20, 20), names).splitlines()
    assert len(all_wrong) == 1 + 12 and all(line.endswith("100.0%") for line in all_wrong[1:])


# ---- what cannot be scored ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tags, strict, says", [("O", False, "no entity"), ("I-X", True, "begin with B-")])
def test_no_entity_at_all_is_one_sentence(tags, strict, says):
    with pytest.raises(UserError, match=says):
        metrics.entity_scores([[tags]], [[tags]], strict)
