"""nanoft: pretrain and fine-tune language models, hand-written on PyTorch, made to be read."""

__version__ = "0.1.0"


class UserError(ValueError):
    """Something its user can mend: one sentence that says what is wrong, where, and what to do (exit code 2)."""
