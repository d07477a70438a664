"""The one exception that ends the command with a message for people."""

from __future__ import annotations


class Failure(Exception):
    """What went wrong, and what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
