"""Form fields are drawn as viewers draw them; pages that stand in for something else say so."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from conftest import assemble
from drawn import gray

from docvit.documents.errors import Unsupported
from docvit.documents.pages import open_document


def form(field, look="6 0 R", flags=4, catalog="", viewed=True, inherited=False):
    drawn, box = b"0 0 260 100 re f", b"/MediaBox[0 0 300 300]"
    annotation = f"<</Type/Annot/Subtype/Widget/Rect[20 100 280 200]/P 4 0 R/F {flags}{field}"
    appearance = f"/AP<</N {look}>>>>" if viewed else ">>"
    return assemble(
        [
            f"<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[5 0 R]>>{catalog}>>".encode(),
            b"<</Type/Pages/Kids[4 0 R]/Count 1%s>>" % (box if inherited else b""),
            b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
            b"<</Type/Page/Parent 2 0 R%s/Annots[5 0 R]/Resources<<>>>>" % (b"" if inherited else box),
            (annotation + appearance).encode(),
            b"<</Type/XObject/Subtype/Form/BBox[0 0 260 100]/Length %d>>stream\n%s\nendstream" % (len(drawn), drawn),
        ]
    )


@pytest.mark.parametrize(
    ("field", "look"),
    [
        ("/FT/Tx/T(a)/V(HELLO)/DA(/Helv 12 Tf 0 g)", "6 0 R"),
        ("/FT/Btn/T(a)/V/Yes/AS/Yes", "<</Yes 6 0 R>>"),
        ("/FT/Ch/Ff 131072/T(a)/V(HELLO)/Opt[(HELLO)]/DA(/Helv 12 Tf 0 g)", "6 0 R"),
        ("/FT/Sig/T(a)/V<</Type/Sig/Filter/Adobe.PPKLite>>", "6 0 R"),
    ],
)
def test_what_is_filled_in_is_drawn(field, look):
    page = gray(form(field, look))
    assert (page < 100).mean() == pytest.approx(260 * 100 / 300**2, abs=0.02)
    assert set(np.unique(page[:80])) == {255}  # no highlight, nothing elsewhere


@pytest.mark.parametrize("flags", [2, 32])  # hidden, not to be viewed
def test_hidden_fields_stay_hidden_and_empty_ones_are_not_highlighted(flags):
    assert gray(form("/FT/Tx/T(a)/V(HELLO)/DA(/Helv 12 Tf 0 g)", flags=flags)).min() == 255
    assert gray(form("/FT/Tx/T(a)/DA(/Helv 12 Tf 0 g)", viewed=False)).min() == 255


def stand_in(catalog, pages=1, more=()):
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 300]>>"
    kids = " ".join(f"{3 + i} 0 R" for i in range(pages))
    tree = f"<</Type/Pages/Kids[{kids}]/Count {pages}>>".encode()
    return assemble([f"<</Type/Catalog/Pages 2 0 R{catalog}>>".encode(), tree, *[page] * pages, *more])


@pytest.mark.parametrize("inherited", [False, True])
def test_fields_of_a_page_taken_out_of_its_form_are_drawn(inherited):
    field, catalog = "/FT/Tx/T(a)/V(HELLO)/DA(/Helv 12 Tf 0 g)", b"/AcroForm<</Fields[5 0 R]>>"
    whole = form(field, inherited=inherited)
    alone = whole.replace(catalog, b" " * len(catalog))
    assert alone != whole
    np.testing.assert_allclose(gray(alone), gray(whole), atol=1)
    assert gray(form(field, flags=2).replace(catalog, b" " * len(catalog))).min() == 255  # a hidden one


def test_an_xfa_notice_is_not_taken_for_the_document():
    template = b"<</Length 5>>stream\n<xdp>\nendstream"
    with pytest.raises(Unsupported, match="XFA"):
        open_document(stand_in("/AcroForm<</Fields[]/XFA 4 0 R>>/NeedsRendering true", more=[template]))
    with open_document(stand_in("/AcroForm<</Fields[]/XFA 4 0 R>>", more=[template])) as document:
        assert "XFA" in document.note
    static = form("/FT/Tx/T(a)", catalog="")
    with open_document(static.replace(b"/Fields[5 0 R]", b"/Fields[5 0 R]/XFA()")) as document:
        assert document.note == ""  # its fields are on the page


@pytest.mark.parametrize("packed", [False, True])
def test_the_cover_of_a_portfolio_is_not_taken_for_it(packed):
    attached = "/Names<</EmbeddedFiles<</Names[(a) 9 0 R]>>>>"
    files = [b"<</Type/Filespec/F(a)/EF<</F 10 0 R>>>>", b"<</Type/EmbeddedFile/Length 1>>stream\nx\nendstream"]
    objects = zlib.compress(b"1 0 <</Collection<<>>>>")
    stream = b"<</Type/ObjStm/Length %d>>stream\n%s\nendstream" % (len(objects), objects)
    filler = [stream if packed else b"null"] + [b"null"] * 4

    def made(pages):
        return stand_in(attached + ("" if packed else "/Collection<<>>"), pages, [*filler[: 6 - pages], *files])

    with pytest.raises(Unsupported, match="portfolio"):
        open_document(made(1))
    with open_document(made(2)) as document:
        assert "1 files attached" in document.note
    with open_document(made(1).replace(b"/Collection", b"/Kollektion").replace(objects, b" " * len(objects))) as plain:
        assert plain.note == ""  # an ordinary document with an attachment
