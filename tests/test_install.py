"""pip install . into a fresh environment; then the commands, from a folder that holds none of nanoft's files."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY, contents

import nanoft

pytestmark = pytest.mark.slow
SCRIPTS = ("train.py", "finetune.py", "sample.py")
MADE = shutil.ignore_patterns("__pycache__", "raw", "*.bin", "*.json", "*.jsonl")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with: venv/, where nanoft is installed, and mirror/ with a data set's raw file."""
    try:  # not by find_spec("pip"), which brings Python's own distutils back, where torch.compile wants setuptools'
        importlib.metadata.version("pip"), importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    home = tmp_path_factory.mktemp("installed")
    source, venv = home / "source", home / "venv"
    for name in ("nanoft", "config", "data"):  # a copy, for pip leaves build/ beside what it builds
        shutil.copytree(ROOT / name, source / name, ignore=MADE)
    for file in (*SCRIPTS, "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    site = site_packages(venv)
    with open(os.path.join(site, "borrowed.pth"), "w") as file:  # torch and the others come from this environment
        file.write("\n".join(path for path in sys.path if path.endswith("-packages")))
    subprocess.run([sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install", "-q", "--no-index",
                    "--no-deps", "--no-build-isolation", source], check=True)
    (home / "elsewhere").mkdir()
    (home / "mirror").mkdir()
    (home / "mirror" / "tinyshakespeare.txt").write_text("To be, or not to be: that is the question.\n" * 500)
    return home


def site_packages(venv):
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return subprocess.check_output([venv / "bin" / "python", "-c", ask], text=True).strip()


def run(home, *words, code=0):
    """The output of a command of the environment, run in the empty folder."""
    program, *options = words
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"XDG_CACHE_HOME": str(home / "cache"), "NANOFT_MIRROR": str(home / "mirror"),
            "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([home / "venv" / "bin" / program, *options], env=env, cwd=home / "elsewhere", text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", timeout=300)
    assert done.returncode == code, done.stdout
    return done.stdout


def test_every_file_is_installed_and_nothing_else(home):
    site = Path(site_packages(home / "venv"))
    wanted = {file.relative_to(ROOT) for file in (ROOT / "nanoft").rglob("*.py")}
    assert (site / "nanoft" / "serve" / "page.html").is_file()
    for file in (*map(ROOT.joinpath, SCRIPTS), *ROOT.glob("config/*.py"), *ROOT.glob("data/*/prepare.py")):
        wanted.add("nanoft" / ("home" / file.relative_to(ROOT)))
    assert {file.relative_to(site) for file in site.rglob("*.py") if "__pycache__" not in file.parts} == wanted
    ask = "import importlib.metadata, nanoft; print(importlib.metadata.version('nanoft'), nanoft.__file__)"
    assert run(home, "python", "-c", ask).split() == [nanoft.__version__, str(site / "nanoft" / "__init__.py")]


def test_commands_from_another_folder(home):
    before = contents(home / "venv")
    assert "tokenizer" in run(home, "nanoft") and "--muon_lr" in run(home, "nanoft", "train", "--help")
    assert "data=shakspeare: no folder" in run(home, "nanoft", "train", "--data=shakspeare", code=2)
    # a config file and a data set of nanoft's own; the data set is prepared in the cache
    run(home, "nanoft", "train", "config/shakespeare.py", *TINY, "--out_dir=out/a")
    data = home / "cache" / "nanoft" / "data" / "shakespeare"
    assert {"prepare.py", "train.bin", "val.bin", "tokenizer.json"} <= set(os.listdir(data))
    assert run(home, "nanoft", "sample", "--checkpoint=out/a", "--prompt=To be", "--device=cpu").startswith("To be")
    assert "vocabulary 261" in run(home, "nanoft", "bins", data / "train.bin")
    # one's own text and table
    run(home, "nanoft", "prepare", "text", f"--source={home / 'mirror'}", "--vocab_size=280")
    assert "vocabulary 280" in run(home, "nanoft", "bins", data.with_name("text") / "val.bin")
    rows = "".join(f"good day {i},yes\nbad night {i},no\n" for i in range(40))
    (home / "elsewhere" / "rows.csv").write_text("text,label\n" + rows)
    run(home, "nanoft", "finetune", "--init_from=out/a", "--train_file=rows.csv", "--out_dir=out/task", "--epochs=1",
        "--device=cpu", "--dtype=float32", "--compile=false")
    # a data set and a config file of the current folder come first
    shutil.copytree(data, home / "elsewhere" / "data" / "shakespeare")
    shutil.rmtree(data)
    assert "not prepared" not in run(home, "nanoft", "model", "config/shakespeare.py") and not data.exists()
    (home / "elsewhere" / "config").mkdir()
    (home / "elsewhere" / "config" / "shakespeare.py").write_text("out_dir = 'out/a'")
    assert "already holds a run" in run(home, "nanoft", "train", "config/shakespeare.py", code=2)
    assert contents(home / "venv") == before


def test_torchrun(home):
    run(home, "python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "nanoft", "train",
        "config/shakespeare.py", *TINY, "--out_dir=out/two")
    environment = json.loads((home / "elsewhere" / "out" / "two" / "environment.json").read_text(encoding="utf-8"))
    assert environment[0]["processes"] == 2
