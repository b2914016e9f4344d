"""A small real corpus for all tests: nanoft's own source, as a prepared data set."""

import html.parser
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Two threads on a model this small gain nothing, and on a busy machine they wait for each other a hundred times longer
# than they compute. Set before torch is imported; processes started by tests inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

try:  # before anything imports Python's own distutils: torch.compile asserts that it has setuptools' one
    import setuptools  # noqa: F401
except ImportError:
    pass

import torch  # noqa: E402

from nanoft import checkpoint  # noqa: E402
from nanoft.distributed import Dist  # noqa: E402
from nanoft.text import prepare  # noqa: E402

DIST = Dist(0, 1, torch.device("cpu"))

TINY = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=32", "--batch_size=8", "--max_minutes=0",
        "--max_steps=12", "--eval_interval=4", "--eval_tokens=512", "--log_interval=1", "--sample_tokens=4",
        "--device=cpu", "--dtype=float32", "--compile=false"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A data set folder: train, val and test of nanoft's source files."""
    folder = tmp_path_factory.mktemp("data") / "own"
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "nanoft").rglob("*.py"))]
    splits = {"train": lambda: texts[2:], "val": lambda: texts[:1] + texts[1:2], "test": lambda: texts[1:3]}
    prepare.write_data(folder, splits, vocab_size=400, words={"test": 1000})
    return folder


def command(script, *args, launcher=()):
    """The words that start a script of the repository (`train.py`), or a tool (`nanoft bins`)."""
    what = [str(ROOT / script)] if script.endswith(".py") else ["-m", *script.split()]
    return [sys.executable, *launcher, *what, *map(str, args)]


def run(script, *args, env=None, check=True, launcher=()):
    """Run a script of the repository as its user would; give the finished process."""
    done = subprocess.run(command(script, *args, launcher=launcher), capture_output=True, text=True,
                          encoding="utf-8", errors="replace", env={**os.environ, **(env or {})}, cwd=ROOT, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def some_slow(names, fast=("classify", "tag")):
    """The parameters of a test over all `names`, of which only those of `fast` are not slow."""
    return [pytest.param(name, marks=[] if name in fast else pytest.mark.slow) for name in names]


def contents(*folders):
    """Every file of the folders with its bytes, to show that nothing changed."""
    return {path: path.read_bytes() for folder in folders for path in sorted(Path(folder).rglob("*")) if path.is_file()}


@pytest.fixture
def call(monkeypatch):
    """call(module, *args): a script's main() in this process, where starting it anew would only cost time."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(module, *args):
        monkeypatch.setattr(sys, "argv", [module.__name__ + ".py", *map(str, args)])
        module.main()

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


class Crash(BaseException):
    """The end of a process, as far as its files can tell."""


@pytest.fixture
def crash(call, monkeypatch):
    """crash(step, module, *args): a script that ends just after it has saved latest.pt at this step; 0: any file."""
    def crash(step, module, *args):
        save = checkpoint.save

        def save_then_crash(path, state):
            save(path, state)
            if not step or path.name == "latest.pt" and state["step"] == step:
                raise Crash

        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(checkpoint, "save", save_then_crash)
            call(module, *args)

    return crash


MAY_STAY_OPEN = ("meta", "link", "html", "tr", "td", "th", "p", "br", "img")


class Links(html.parser.HTMLParser):
    """What a page would load or lead to, its tags that stay open, and its text."""

    def __init__(self, page):
        super().__init__()
        self.links, self.open, self.words = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action")]
        if tag not in MAY_STAY_OPEN:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in MAY_STAY_OPEN:
            assert self.open.pop() == tag, f"</{tag}> closes another tag at {self.getpos()}"

    def handle_data(self, data):
        self.words.append(data)


def read_page(path):
    """A page's text, once it is shown to need nothing but itself and to be whole."""
    page = Path(path).read_text(encoding="utf-8")
    found = Links(page)
    assert not found.open and page.endswith("</html>\n")
    assert all(link.startswith(("data:", "#")) for link in found.links), found.links
    assert not re.search(r"@import|url\((?!['\"]?[#d])|<script[^>]+src|xmlns", page)
    assert "default-src 'none'" in page
    return " ".join(found.words)
