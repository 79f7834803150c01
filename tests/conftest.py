"""Small documents, written by hand, for every test to use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Box = tuple[float, float]


def strokes(width: float, height: float, page: int) -> bytes:
    """Drawing operators: lines of word-like bars down the upper part of the page, and one mark a page number."""
    lines = [b"0 g"]
    for line in range(12):
        y = height * (0.9 - 0.03 * line)
        for word in range(3 + (line * 7 + page) % 5):
            lines.append(b"%.2f %.2f %.2f %.2f re f" % (width * (0.1 + 0.1 * word), y, width * 0.08, height * 0.012))
    for mark in range(page + 1):
        lines.append(b"%.2f %.2f %.2f %.2f re f" % (width * (0.1 + 0.05 * mark), height * 0.1, 4, 12))
    return b"\n".join(lines)


def assemble(objects: Sequence[bytes]) -> bytes:
    """A PDF from the bodies of its objects 1, 2, ...; the first is the catalog."""
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size, start = len(objects) + 1, len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table)
    return out + b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (size, start)


def pdf_bytes(
    pages: Sequence[Box] = ((612, 792),),
    *,
    extra: str = "",
    count: int | None = None,
    kids: str | None = None,
    contents: Sequence[bytes] | None = None,
) -> bytes:
    """A PDF with one page a (width, height) in points.

    `extra` goes into every page's dictionary (`/Rotate 90`); `count`, `kids` and `contents` replace what the page tree
    says and what the pages show.
    """
    refs = [3 + 2 * i for i in range(len(pages))]
    tree = kids if kids is not None else " ".join(f"{ref} 0 R" for ref in refs)
    total = len(pages) if count is None else count
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Kids[{tree}]/Count {total}>>".encode()]
    for i, (width, height) in enumerate(pages):
        drawn = contents[i] if contents is not None else strokes(width, height, i)
        box = f"/MediaBox[0 0 {width:f} {height:f}]"
        objects.append(f"<</Type/Page/Parent 2 0 R{box}{extra}/Contents {refs[i] + 1} 0 R>>".encode())
        objects.append(b"<</Length %d>>stream\n%s\nendstream" % (len(drawn), drawn))
    return assemble(objects)


@pytest.fixture
def make_pdf(tmp_path: Path) -> Callable[..., Path]:
    """`make_pdf("a.pdf", [(612, 792)] * 3, extra="/Rotate 90")` writes a PDF below tmp_path and gives its path."""

    def make(name: str = "document.pdf", pages: Sequence[Box] = ((612, 792),), **options) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pdf_bytes(pages, **options))
        return path

    return make
