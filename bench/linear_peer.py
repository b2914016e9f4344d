"""A table alone: nanoft's linear model, and scikit-learn's TF-IDF with logistic regression, on the same rows.

    python bench/linear_peer.py train.csv test.csv          # columns named as usual; pip install scikit-learn

scikit-learn learns from all rows of train.csv, nanoft from nine tenths, for it chooses its penalty by the others. Where
words are not separated by spaces, scikit-learn gets runs of one and two characters.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanoft.files import read_json
from nanoft.tasks import examples

SCRIPT = Path(__file__).resolve().parents[1] / "finetune.py"


def nanoft(train: str, test: str) -> float:
    """Test accuracy of the plain command."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, SCRIPT, f"--train_file={train}", f"--test_file={test}",
                        f"--out_dir={folder}/run"], check=True, stdout=subprocess.DEVNULL)
        return read_json(Path(folder, "run", "result.json"))["test_accuracy"]


def scikit_learn(train: str, test: str, tuned: bool) -> float:
    """Test accuracy of words at their defaults, or tuned: pairs of words too, sublinear, C=10."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    with contextlib.redirect_stdout(None):
        _, rows = examples.from_table(train, "classify", test_file=test)
    learned, tested = rows["train"] + rows["val"], rows["test"]
    texts = [row["text"] for row in learned]
    spaces = sum(text.count(" ") for text in texts) / sum(map(len, texts))
    unit = {} if spaces > 0.05 else {"analyzer": "char", "ngram_range": (1, 2)}
    vectors = TfidfVectorizer(**({"ngram_range": (1, 2), "sublinear_tf": True} if tuned else {}) | unit)
    model = LogisticRegression(C=10 if tuned else 1, max_iter=1000)
    model.fit(vectors.fit_transform(texts), [row["label"] for row in learned])
    return model.score(vectors.transform([row["text"] for row in tested]), [row["label"] for row in tested])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python bench/linear_peer.py train.csv test.csv")
    for name, run in (("nanoft", nanoft), ("scikit-learn", lambda *files: scikit_learn(*files, tuned=False)),
                      ("scikit-learn, tuned", lambda *files: scikit_learn(*files, tuned=True))):
        began = time.perf_counter()
        accuracy = run(*sys.argv[1:])
        print(f"{name:20} {accuracy:.4f}  {time.perf_counter() - began:5.1f} s", flush=True)
