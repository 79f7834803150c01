"""What people hold becomes a `Source`: a name for rows and messages, and a content that crosses processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image

PageSource = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image

Data = PageSource | Sequence[PageSource]
"""One document: a path, the bytes of a file, a binary file object, an image, or a sequence of its pages."""

PAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif"),
    *(".jp2", ".j2k", ".jpx", ".avif", ".ppm", ".pgm", ".pbm", ".pnm"),
)

_ACCEPTED = "a path, bytes, a binary file object, a PIL image or a list of page images"


@dataclass(frozen=True)
class Source:
    """One document.

    Attributes:
        name: the path; for what has none, a name in angle brackets.
        content: the path, the bytes of a file, an image, or a source for each page.
    """

    name: str
    content: str | bytes | Image.Image | tuple[Source, ...]


def as_source(data: Data | Source) -> Source:
    """The document that `data` stands for. A file object is read from where it stands.

    Raises:
        ValueError: `data` is nothing of `Data`.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, list | tuple):
        pages = tuple(_page(item) for item in data)
        first = pages[0].content if pages else None
        if isinstance(first, str):
            return Source(first if len(pages) == 1 else f"{first} and {len(pages) - 1} more", pages)
        return Source(f"<{len(pages)} page{'' if len(pages) == 1 else 's'}>", pages)
    return _page(data)


def _page(data: Any) -> Source:
    if isinstance(data, str | os.PathLike):
        path = os.fspath(data)
        if isinstance(path, str):
            return Source(path, path)
    if isinstance(data, bytes | bytearray | memoryview):
        return Source("<bytes>", bytes(data))
    if isinstance(data, Image.Image):
        return Source(str(getattr(data, "filename", "")) or "<image>", data)
    if isinstance(data, Mapping) and data.keys() == {"bytes", "path"}:  # a file of `datasets` that is not decoded
        name, content = data["path"], data["bytes"]
        return _page(name) if content is None else Source(name or "<bytes>", bytes(content))
    if callable(getattr(data, "read", None)):
        content = data.read()
        if not isinstance(content, bytes):
            raise ValueError("the file object gives text: open it in binary mode ('rb')")
        name = getattr(data, "name", None)
        return Source(name if isinstance(name, str) else "<stream>", content)
    raise ValueError(f"a document is {_ACCEPTED}, not {type(data).__name__}")


def is_one_document(data: Any) -> bool:
    """Whether `data` is one document, and not several.

    A list of page images (PIL images, or files with the suffix of an image) is one document, as in `docvit.pack`, and
    as a folder of them is. Any other list, or another iterable, holds a document in each item.
    """
    if isinstance(data, list | tuple):
        return len(data) > 0 and all(_is_page_image(item) for item in data)
    single = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, Mapping, Source)
    return isinstance(data, single) or callable(getattr(data, "read", None)) or not isinstance(data, Iterable)


def _is_page_image(item: Any) -> bool:
    if isinstance(item, str | os.PathLike):
        return Path(item).suffix.lower() in PAGE_SUFFIXES
    return isinstance(item, Image.Image)
