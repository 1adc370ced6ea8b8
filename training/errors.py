"""The errors of training, each with a stable code: printed as `error: <code>: message`."""

from __future__ import annotations


class TrainingError(ValueError):
    """Something that whoever started the training can put right; `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
