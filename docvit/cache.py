"""Rendered pages on disk, so that a second epoch, or a second run, does not render."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from docvit.pages import DocumentError, PageStack, Rendering
from docvit.patches import pack
from docvit.pool import read_documents


def default_cache() -> Path:
    """`$DOCVIT_CACHE`, or `~/.cache/docvit`."""
    return Path(os.environ.get("DOCVIT_CACHE") or Path.home() / ".cache" / "docvit")


@dataclass(frozen=True)
class PageCache:
    """Rendered pages on disk, keyed by a document's content and by how it is rendered.

    One safetensors file a document; a page is a uint8 tensor, read alone when it is wanted.
    """

    folder: Path
    rendering: Rendering
    max_pages: int = 64

    def file(self, path: str) -> Path:
        """Where the pages of the document at `path` are, or will be."""
        settings = json.dumps({**asdict(self.rendering), "max_pages": self.max_pages}, sort_keys=True)
        how = hashlib.sha256(settings.encode()).hexdigest()[:12]
        content = _content_hash(Path(path))
        return self.folder / content[:2] / f"{content}-{how}.safetensors"

    def prepare(self, paths: Sequence[str], *, workers: int = 2) -> tuple[dict[str, Path], list[DocumentError]]:
        """Renders what is not there yet; gives the cache file of every document, and the errors of those without."""
        files = {path: self.file(path) for path in paths}
        absent = list({file: path for path, file in files.items() if not file.exists()}.values())
        errors = []
        results = read_documents(absent, self.rendering, max_pages=self.max_pages, workers=workers)
        for result in tqdm(results, total=len(absent), desc="rendering", unit="doc", disable=None if absent else True):
            if isinstance(result, PageStack):
                self._write(files[result.path], result)
            else:
                errors.append(result)
        return {path: file for path, file in files.items() if file.exists()}, errors

    def _write(self, file: Path, stack: PageStack) -> None:
        sequence = pack([stack], self.rendering.multiple, channels=1 if self.rendering.mode == "L" else 3)
        metadata = {
            "num_pages": stack.num_pages,
            "indices": stack.indices,
            "kept": sequence.page_bounds.diff().tolist(),
        }
        tensors = {str(i): torch.from_numpy(page) for i, page in zip(stack.indices, stack.pages, strict=True)}
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.tmp")
        save_file(tensors, partial, metadata={"docvit": json.dumps(metadata)})
        os.replace(partial, file)


def _content_hash(path: Path) -> str:
    digest = hashlib.sha256()
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class CachedDocument:
    """One cached document: which pages it has and how many patches of each say something."""

    file: Path
    num_pages: int
    indices: tuple[int, ...]
    kept: tuple[int, ...]

    @classmethod
    def open(cls, file: Path) -> CachedDocument:
        with safe_open(file, "pt") as pages:
            values = json.loads(pages.metadata()["docvit"])
        return cls(file, values["num_pages"], tuple(values["indices"]), tuple(values["kept"]))

    def load(self, indices: Sequence[int]) -> PageStack:
        with safe_open(self.file, "pt") as pages:
            loaded = [pages.get_tensor(str(i)).numpy() for i in indices]
        return PageStack(str(self.file), loaded, list(indices), self.num_pages)
