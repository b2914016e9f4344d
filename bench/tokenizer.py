"""nanoft's tokenizer against its peers, interleaved in one run, medians of several rounds.

    python bench/tokenizer.py --text=wiki.train.tokens              # training, and tokenizing to disk
    python bench/tokenizer.py --text=wiki.train.tokens --repeat=93  # a gigabyte of tokenizing: rate and peak memory

Training: `tokenizers` and `rustbpe` are timed too where they are installed, each in a process of its own, process
start included for all. Tokenizing: bins.write_split (ids on disk, fsynced) against tiktoken's encode_ordinary_batch
(ids in memory) on all cores, both with the vocabulary that nanoft learned.
"""

import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nanoft import UserError, bins, bpe, config, files, text  # noqa: E402


@dataclass
class Options:
    text: str = ""            # a UTF-8 text file, such as WikiText-2's wiki.train.tokens
    vocab_size: int = 8192    # to train
    rounds: int = 3           # of everything; medians are printed
    repeat: int = 0           # tokenize the text this many times over as one stream, and show the peak memory


PEERS = {
    "nanoft": "import sys; from nanoft import bpe, text; bpe.train([text.read_blocks(sys.argv[1])], int(sys.argv[2]))",
    "tokenizers": """
import sys
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
content = open(sys.argv[1], encoding="utf-8").read()
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(sys.argv[3]), "isolated"),
                                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
parts = [content[i:i + 100_000] for i in range(0, len(content), 100_000)]
tokenizer.train_from_iterator(parts, trainers.BpeTrainer(vocab_size=int(sys.argv[2]), show_progress=False,
                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
""",
    "rustbpe": """
import sys
import rustbpe
content = open(sys.argv[1], encoding="utf-8").read()
rustbpe.Tokenizer().train_from_iterator((content[i:i + 100_000] for i in range(0, len(content), 100_000)),
                                        int(sys.argv[2]))
""",
}


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    cfg = config.load(Options)
    if not Path(cfg.text).is_file():
        raise UserError(f"--text={cfg.text}: no such file; give a UTF-8 text file")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    names = [name for name in PEERS if name == "nanoft" or importlib.util.find_spec(name)]
    times = {name: [] for name in names}
    if not cfg.repeat:
        for _ in range(cfg.rounds):
            for name in names:
                words = [sys.executable, "-c", PEERS[name], cfg.text, str(cfg.vocab_size), text.PATTERNS["gpt4"]]
                times[name].append(seconds(lambda words=words: subprocess.run(words, check=True, env=env)))
        print("\n| training, seconds (median) | | against nanoft |\n|---|---|---|")
        ours = statistics.median(times["nanoft"])
        for name in names:
            print(f"| {name} | {statistics.median(times[name]):.2f} | {statistics.median(times[name]) / ours:.2f} x |")

    tokenizer = bpe.train([text.read_blocks(cfg.text)], cfg.vocab_size, progress=False)
    size = Path(cfg.text).stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        if cfg.repeat:
            stream = (block for _ in range(cfg.repeat) for block in text.read_blocks(cfg.text))
            took = seconds(lambda: bins.write_split(folder, "train", [stream], tokenizer))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"one document of {size * cfg.repeat / 1e9:.2f} GB: {size * cfg.repeat / 1e6 / took:.1f} MB/s, "
                  f"peak memory {peak:,.0f} MB")
            return
        content = Path(cfg.text).read_text(encoding="utf-8")
        documents = [content[i:i + 20_000] for i in range(0, len(content), 20_000)]
        threads = files.available_cores()
        rates = {"nanoft, to disk": [], "tiktoken, in memory": []}
        for _ in range(cfg.rounds):
            took = seconds(lambda: bins.write_split(folder, "train", documents, tokenizer))
            rates["nanoft, to disk"].append(size / 1e6 / took)
            took = seconds(lambda: tokenizer.encoding.encode_ordinary_batch(documents, num_threads=threads))
            rates["tiktoken, in memory"].append(size / 1e6 / took)
    print("\n| tokenizing, MB/s (median) | |\n|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {statistics.median(values):.1f} |")


if __name__ == "__main__":
    config.run(main)
