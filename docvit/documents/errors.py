"""What can go wrong with a document: `DocumentError` and its kinds."""

from __future__ import annotations

from docvit.errors import UserError, in_one_line


class DocumentError(UserError):
    """A document cannot be read; `path` says which, `message` why and what to do. Crosses processes unharmed."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(path, message)
        self.path = path
        self.message = message

    def __str__(self) -> str:
        return f"{in_one_line(self.path)}: {self.message}"

    @property
    def kind(self) -> str:
        return type(self).__name__

    def as_dict(self) -> dict[str, str]:
        return {"type": self.kind, "message": self.message}


class NotFound(DocumentError):
    """There is no such file."""


class Unreadable(DocumentError):
    """Damaged, not what its name says, or closed to us by its permissions."""


class Encrypted(DocumentError):
    """A password is needed."""


class Empty(DocumentError):
    """Zero bytes, zero pages, or a folder without pages."""


class TooLarge(DocumentError):
    """Page sides, pixels or memory beyond what is sound."""


class Timeout(DocumentError):
    """Reading took longer than allowed."""


class Unsupported(DocumentError):
    """A kind of file that is not read here."""
