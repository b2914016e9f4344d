"""nanoft: pretrain and fine-tune language models, hand-written on PyTorch, made to be read."""

from pathlib import Path

__version__ = "0.2.0"

HOME = Path(__file__).resolve().parent / "home"  # pip puts train.py, finetune.py, sample.py, config/ and data/ here
INSTALLED = HOME.is_dir()
if not INSTALLED:  # a checkout, where they lie beside nanoft/
    HOME = HOME.parents[1]


class UserError(ValueError):
    """Something its user can mend: one sentence that says what is wrong, where, and what to do (exit code 2)."""
