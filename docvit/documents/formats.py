"""What a file is, by its suffix or by its content, and names for new ones."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

from docvit.documents.sources import PAGE_SUFFIXES

SUFFIXES = (*PAGE_SUFFIXES, ".pdf", ".tif", ".tiff")

MAX_NAME, MAX_SUFFIX = 255, 32  # bytes

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_SIGNATURES: tuple[tuple[bytes | tuple[bytes, ...], str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (TIFF, "a TIFF image"),
    ((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"), "a JPEG 2000 image"),
    (b"PK\x03\x04", "a ZIP archive or an office document (docx, xlsx, pptx, odt)"),
    (b"\xd0\xcf\x11\xe0", "an old office document (doc, xls, ppt)"),
    (b"%!PS", "a PostScript file"),
    (b"{\\rtf", "an RTF document"),
    (b"\x1f\x8b", "a gzip archive"),
)


def suffix_of(path: str) -> str:
    return os.path.splitext(path.rstrip("/"))[1].lower()


def looks_like(head: bytes) -> str:
    """What a file is that begins with these bytes, as words; those for what Pillow may read end with "image"."""
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "a WebP image"
    if head[4:8] == b"ftyp":
        brands = head[8 : int.from_bytes(head[:4], "big")]
        if b"avif" in brands or b"avis" in brands:
            return "an AVIF image"
        return "a HEIC photo" if brands[:3] in (b"hei", b"hev", b"mif", b"msf") else "a video"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\r\n#":
        return "a PNM image"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page (often a login or an error page)"
    if not head.strip(b"\0"):
        return "nothing but zero bytes"
    known = (name for signature, name in _SIGNATURES if head.startswith(signature))
    return next(known, "unknown binary data" if b"\0" in head else "plain text or unknown data")


def numbered(name: str) -> Iterator[str]:
    """name.pdf, name-2.pdf, name-3.pdf and so on, each cut to 255 bytes."""
    stem, suffix = os.path.splitext(name)
    if len(os.fsencode(suffix)) > MAX_SUFFIX:
        stem, suffix = name, ""
    for number in itertools.count(1):
        end = f"-{number}{suffix}" if number > 1 else suffix
        while len(os.fsencode(stem + end)) > MAX_NAME:
            stem = stem[:-1]
        yield stem + end
