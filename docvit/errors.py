"""The roots of the errors that a user can mend."""

from __future__ import annotations

import unicodedata


class UserError(Exception):
    """Something that the user can mend; the message says what is wrong and what is possible.

    Commands print it in one line. Every other exception is a bug.
    """


class SettingError(UserError, ValueError):
    """A setting that does not exist, lies out of range, or contradicts another one."""


def in_one_line(text: str) -> str:
    """Whatever a file's name contains: neither a line break nor what steers a terminal."""
    return "".join("?" if unicodedata.category(c) == "Cc" else c for c in text)
