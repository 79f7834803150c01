"""Rendered pages on disk, so that a second epoch, or a second run, does not render."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from docvit.documents.errors import DocumentError, Unreadable
from docvit.documents.pages import PageStack
from docvit.documents.patches import pack
from docvit.documents.rendering import Rendering
from docvit.documents.words import Words
from docvit.documents.workers import read_documents
from docvit.errors import SettingError
from docvit.files import write_tensors

logger = logging.getLogger(__name__)

FORMAT = 3  # of the files and of how pages are drawn; part of their names


def default_cache() -> Path:
    """`$DOCVIT_CACHE`, or `~/.cache/docvit`.

    Raises:
        SettingError: the former is not set, and this user has no home directory.
    """
    try:
        return Path(os.environ.get("DOCVIT_CACHE") or Path.home() / ".cache" / "docvit")
    except RuntimeError as error:  # neither HOME nor an entry among the users
        raise SettingError("no home directory to keep rendered pages in: set DOCVIT_CACHE to a folder") from error


@dataclass(frozen=True)
class PageCache:
    """Rendered pages on disk, keyed by a document's content and by how it is rendered.

    One safetensors file per document. A page is a uint8 tensor; its words are the UTF-8 of their texts, one per line,
    and their boxes. A page is read alone when it is wanted.

    Args:
        words: read and keep the words of the pages, too.
        ocr_pages: how many of a document's first pages are read by OCR where they have no text layer.
    """

    folder: Path
    rendering: Rendering
    max_pages: int = 64
    words: bool = False
    ocr_pages: int = 0

    def file(self, path: str) -> Path:
        """Where the pages of the document at `path` are, or will be."""
        settings = json.dumps({**asdict(self.rendering), **self._reading, "format": FORMAT}, sort_keys=True)
        how = hashlib.sha256(settings.encode()).hexdigest()[:12]
        content = _content_hash(Path(path))
        return self.folder / content[:2] / f"{content}-{how}.safetensors"

    @property
    def _reading(self) -> dict[str, Any]:
        return {"max_pages": self.max_pages, "words": self.words, "ocr_pages": self.ocr_pages}

    def prepare(
        self, paths: Sequence[str], *, workers: int = 2, password: str | None = None
    ) -> tuple[dict[str, Path], list[DocumentError]]:
        """Renders what is not there yet; gives the cache file of every document, and the errors of those without.

        `password` opens PDFs that have one; their pages are kept without it.
        """
        files = {path: self._file_or_none(path) for path in paths}
        owners = {file or path: path for path, file in files.items()}  # copies of one document are rendered once
        absent = [path for path in owners.values() if not intact(files[path])]
        failed: dict[Path | str, DocumentError] = {}
        results = read_documents(absent, self.rendering, **self._reading, workers=workers, password=password)
        for result in tqdm(results, total=len(absent), desc="rendering", unit="doc", disable=None if absent else True):
            file = files[result.path]
            if isinstance(result, DocumentError):
                failed[file or result.path] = result
            elif result.ocr_failed:  # kept, they would lack their words for good
                page, why = next(iter(result.ocr_failed.items()))
                failed[file or result.path] = Unreadable(result.path, f"OCR failed on page {page + 1} ({why})")
            elif file is not None:
                if result.failed:
                    left_out = f"{len(result.failed)} of {result.num_pages} pages are left out"
                    logger.warning("%s: %s: %s", result.path, left_out, next(iter(result.failed.values())))
                self._write(file, result)
        keys = {path: file or path for path, file in files.items()}
        errors = [type(failed[key])(path, failed[key].message) for path, key in keys.items() if key in failed]
        return {path: file for path, file in files.items() if file is not None and file not in failed}, errors

    def _file_or_none(self, path: str) -> Path | None:
        try:
            return self.file(path)
        except OSError:  # missing, or closed to us: reading it will say which
            return None

    def _write(self, file: Path, stack: PageStack) -> None:
        sequence = pack([stack], self.rendering.multiple, channels=1 if self.rendering.mode == "L" else 3)
        metadata = {
            "num_pages": stack.num_pages,
            "indices": stack.indices,
            "kept": sequence.page_bounds.diff().tolist(),
            "words_from": [page.source for page in stack.words] if self.words else None,
        }
        tensors = {str(i): torch.from_numpy(page) for i, page in zip(stack.indices, stack.pages, strict=True)}
        for index, words in zip(stack.indices, stack.words, strict=False):
            if words:
                text = np.frombuffer("\n".join(words.texts).encode(), np.uint8).copy()
                tensors |= {f"{index}.text": torch.from_numpy(text), f"{index}.boxes": torch.from_numpy(words.boxes)}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, tensors, {"docvit": json.dumps(metadata)})


def _content_hash(path: Path) -> str:
    digest = hashlib.sha256()
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def intact(file: Path | None) -> bool:
    """Whether a whole cache file is there; one that a full disk or a crash has cut short is drawn anew."""
    if file is None:
        return False
    try:
        CachedDocument.open(file)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return False
    return True


@dataclass(frozen=True)
class CachedDocument:
    """One cached document: which pages it has and how many patches of each say something.

    `words_from` says where the words of each page come from; None where the cache keeps no words.
    """

    file: Path
    num_pages: int
    indices: tuple[int, ...]
    kept: tuple[int, ...]
    words_from: tuple[str | None, ...] | None = None

    @classmethod
    def open(cls, file: Path) -> CachedDocument:
        with safe_open(file, "pt") as pages:
            values = json.loads(pages.metadata()["docvit"])
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(file, **fields)

    def load_words(self, index: int) -> Words:
        """The words of page `index` alone."""
        with safe_open(self.file, "pt") as pages:
            return self._words(pages, index)

    def load(self, indices: Sequence[int]) -> PageStack:
        with safe_open(self.file, "pt") as pages:
            loaded = [pages.get_tensor(str(i)).numpy() for i in indices]
            words = [] if self.words_from is None else [self._words(pages, i) for i in indices]
        return PageStack(str(self.file), loaded, list(indices), self.num_pages, words)

    def _words(self, pages: safe_open, index: int) -> Words:
        source = None if self.words_from is None else self.words_from[self.indices.index(index)]
        if source is None:
            return Words()
        text = bytes(pages.get_tensor(f"{index}.text").numpy()).decode()
        return Words(tuple(text.split("\n")), pages.get_tensor(f"{index}.boxes").numpy(), source)
