"""A small real corpus for all tests: nanoft's own source, as a prepared data set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nanoft import prepare  # noqa: E402

TINY = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=32", "--batch_size=8", "--max_minutes=0",
        "--max_steps=12", "--eval_interval=4", "--eval_tokens=512", "--log_interval=1", "--sample_tokens=4",
        "--device=cpu", "--dtype=float32", "--compile=false"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A data set folder: train, val and test of nanoft's source files."""
    folder = tmp_path_factory.mktemp("data") / "own"
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "nanoft").glob("*.py"))]
    splits = {"train": lambda: texts[2:], "val": lambda: texts[:1] + texts[1:2], "test": lambda: texts[1:2]}
    prepare.write_data(folder, splits, vocab_size=400, words={"test": 1000})
    return folder


def run(script, *args, env=None, check=True):
    """Run a script of the repository as its user would; give the finished process."""
    done = subprocess.run([sys.executable, str(ROOT / script), *map(str, args)], capture_output=True, text=True,
                          env={**os.environ, **(env or {})}, cwd=ROOT, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
