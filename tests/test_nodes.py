"""Two nodes, each a network namespace of this machine: one is cut off, the other goes on alone, then both again.

Only as root on a Linux that may make namespaces.
"""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, TINY, run
from test_story_train import load, losses, rows


def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


@pytest.fixture
def nodes():
    """The names of two namespaces that are joined by a cable, 10.77.0.1 and 10.77.0.2."""
    if sys.platform != "linux" or os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces want root and `ip` on Linux")
    names = [f"nanoft{os.getpid()}{end}" for end in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    else:
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name, check=False)


def start_node(name, number, log, *words):
    """torchrun on a node; it goes on with one node where the other is lost, and with both when it is back."""
    torchrun = ["-m", "torch.distributed.run", "--nnodes=1:2", "--nproc_per_node=1", "--max-restarts=20",
                "--rdzv-backend=c10d", "--rdzv-endpoint=10.77.0.1:29533", f"--local-addr=10.77.0.{number}",
                f"--rdzv-conf=is_host={number == 1},join_timeout=60,last_call_timeout=2"]
    more = {"GLOO_SOCKET_IFNAME": "cable", "NANOFT_TIMEOUT": "8", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(["ip", "netns", "exec", name, sys.executable, *torchrun, *words], cwd=ROOT, stdout=log,
                            stderr=subprocess.STDOUT, env=os.environ | more)


def wait_for(condition, processes, seconds=150):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline and processes[0].poll() is None, "waited in vain"
        time.sleep(0.1)


def sizes(folder):
    """The number of processes at each start of the run."""
    path = folder / "environment.json"
    return [start["processes"] for start in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


@pytest.mark.slow
def test_a_node_that_is_cut_off_and_comes_back_changes_nothing(nodes, corpus, tmp_path):
    options = [*TINY, "--batch_size=64", "--eval_interval=20", "--log_interval=20", f"--data={corpus}", "--resume=auto",
               "--schedule=constant", "--warmup=0", "--lr=1e-4", "--embed_lr=1e-3", "--muon_lr=1e-4"]
    words = [str(ROOT / "train.py"), *options, f"--out_dir={tmp_path / 'run'}", "--max_steps=1000000"]
    with open(tmp_path / "log", "w") as log:
        running = [start_node(name, number, log, *words) for number, name in enumerate(nodes, start=1)]
        try:
            wait_for(lambda: sizes(tmp_path / "run") == [2] and (tmp_path / "run" / "latest.pt").exists(), running)
            ip("-n", nodes[1], "link", "set", "cable", "down")
            wait_for(lambda: sizes(tmp_path / "run")[-1] == 1, running)  # the first goes on alone
            running[1].kill()
            ip("-n", nodes[1], "link", "set", "cable", "up")
            running.append(start_node(nodes[1], 2, log, *words))
            wait_for(lambda: sizes(tmp_path / "run")[-1] == 2, running)  # both again
            time.sleep(5)
            running[0].terminate()
            running[0].wait(timeout=100)
        finally:
            for process in running:
                process.kill()
    step = load(tmp_path / "run" / "latest.pt")["step"]
    run("train.py", *options, f"--out_dir={tmp_path / 'whole'}", f"--max_steps={step}")
    assert [row["step"] for row in rows(tmp_path / "run")[0]] == [row["step"] for row in rows(tmp_path / "whole")[0]]
    torch.testing.assert_close(losses(tmp_path / "run"), losses(tmp_path / "whole"), atol=1e-3, rtol=0)
