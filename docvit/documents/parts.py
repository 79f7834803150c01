"""Pages of a PDF or TIFF as a file of their own: copied, not drawn."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import pypdfium2
from PIL import Image
from PIL.TiffImagePlugin import AppendingTiffWriter

from docvit.documents.errors import Unreadable, Unsupported
from docvit.documents.formats import TIFF, looks_like, numbered
from docvit.documents.images import no_pixel_limit, page_frames
from docvit.documents.renderers import PDFIUM_LOCK, has_fields


def write_part(path: str, pages: Sequence[int], folder: Path, name: str, *, password: str | None = None) -> Path:
    """Writes these pages (0-based) of the PDF or TIFF at `path` into `folder` as `name`, with the suffix of its kind.

    Of a PDF, annotations such as links are copied with their pages. Bookmarks are not: PDFium cannot write any. What
    makes form fields fillable is not either, and so they become part of the page, as do that page's other annotations.
    A part of an encrypted PDF is not encrypted.

    A file that is there already stays as it is, and the new one gets the next number. It is there whole or not at all.

    Raises:
        DocumentError: the file is neither, or none of the pages can be copied.
        OSError: the folder cannot be written to, or the disk is full.
    """
    if os.path.isdir(path):
        raise Unsupported(path, "this is a folder of page images, and parts of PDFs and TIFFs alone can be written")
    with open(path, "rb") as file:
        head = file.read(1024)
    is_pdf = b"%PDF-" in head
    if not is_pdf and not head.startswith(TIFF):
        raise Unsupported(path, f"this is {looks_like(head)}: parts of PDFs and TIFFs alone can be written")
    suffix = ".pdf" if is_pdf else ".tif"
    partial = folder / f".{os.getpid()}.{name[:40]}{suffix}.tmp"
    try:
        if is_pdf:
            _copy_pdf(path, pages, partial, password)
        else:
            _copy_tiff(path, pages, partial)
        return _put(partial, folder, name, suffix)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a full disk does not say which file it was
            raise OSError(error.errno, error.strerror, str(folder / f"{name}{suffix}")) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _put(partial: Path, folder: Path, name: str, suffix: str) -> Path:
    """Moves a file to the first name that nothing has yet."""
    for candidate in numbered(f"{name}{suffix}"):
        target = folder / candidate
        with contextlib.suppress(FileExistsError):
            target.open("xb").close()
            break
    return partial.replace(target)


def _copy_pdf(path: str, pages: Sequence[int], target: Path, password: str | None) -> None:
    """Pages that are damaged are left out."""
    with PDFIUM_LOCK:
        try:
            source = pypdfium2.PdfDocument(path, password)
        except pypdfium2.PdfiumError:
            raise Unreadable(path, "PDFium cannot open it, and copies no pages: save it again") from None
        with contextlib.closing(source), contextlib.closing(pypdfium2.PdfDocument.new()) as part:
            try:
                part.import_pages(source, pages=list(pages))
            except pypdfium2.PdfiumError:
                for page in pages:
                    with contextlib.suppress(pypdfium2.PdfiumError):
                        part.import_pages(source, pages=[page])
            if not len(part):
                raise Unreadable(path, f"no page from {pages[0] + 1} to {pages[-1] + 1} can be copied")
            if source.get_formtype() != pypdfium2.raw.FORMTYPE_NONE:
                for page in part:
                    if has_fields(page):
                        pypdfium2.raw.FPDFPage_Flatten(page, pypdfium2.raw.FLAT_NORMALDISPLAY)
                    page.close()
            with target.open("wb") as file:
                part.save(file)


def _copy_tiff(path: str, pages: Sequence[int], target: Path) -> None:
    """One page at a time: one of 600 dpi takes 100 MB. Without loss, as small as can be."""
    with no_pixel_limit(), Image.open(path, formats=("TIFF",)) as image:
        frames, _ = page_frames(image)
        with AppendingTiffWriter(str(target), new=True) as tiff:
            for page in pages:
                image.seek(frames[page])
                copied = image.copy()
                compression = "group4" if copied.mode == "1" else "tiff_adobe_deflate"
                resolution = {"dpi": image.info["dpi"]} if "dpi" in image.info else {}
                copied.save(tiff, "TIFF", compression=compression, **resolution)
                tiff.newFrame()
