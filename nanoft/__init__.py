"""nanoft: pretrain and fine-tune language models, hand-written on PyTorch, made to be read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanoft.serve.api import Model

__version__ = "0.2.0"

HOME = Path(__file__).resolve().parent / "home"  # pip puts train.py, finetune.py, sample.py, config/ and data/ here
INSTALLED = HOME.is_dir()
if not INSTALLED:  # a checkout, where they lie beside nanoft/
    HOME = HOME.parents[1]


class UserError(ValueError):
    """Something its user can mend: one sentence that says what is wrong, where, and what to do (exit code 2)."""


def load(path, device: str = "auto", dtype: str = "auto") -> Model:
    """A trained model for use: its `generate`, `fill`, `embed`, `predict`, `logits`, as nanoft/serve/api.py tells.

    path: a run folder (its best.pt), a checkpoint file, or a published model's folder. Raises UserError.
    """
    from nanoft.serve.api import Model  # not before: `import nanoft` alone loads nothing
    return Model(path, device, dtype)
