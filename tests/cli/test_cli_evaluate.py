"""`docvit evaluate` and `docvit inspect` as a user meets them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import CLASSES, TINY, classed_pdf, pdf_bytes

from docvit.cli.output import print_report
from docvit.data.metrics import report
from docvit.inference.strategies import STRATEGIES
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT

# --- evaluate ---


def test_a_report(docvit, trained, corpus):
    options = ("--model", trained, "--device", "cpu", "--workers", 0)
    code, out, _ = docvit("evaluate", corpus, *options)
    assert code == 0
    assert "12 documents\naccuracy 1.000   macro-F1 1.000" in out
    for name in CLASSES:
        assert f"{name:<6}       1.00    1.00  1.00          4" in out
    code, out, _ = docvit("evaluate", corpus, *options, "--format", "json")
    values = json.loads(out)
    assert code == 0
    assert (values["accuracy"], values["macro_f1"], values["unreadable"]) == (1, 1, 0)
    assert values["classes"] == list(CLASSES)
    assert values["confusion"] == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    assert {"ece", "aurc", "per_class"} <= set(values)


def test_unreadable_documents_are_named_and_counted(docvit, trained, corpus, tmp_path):
    (tmp_path / "broken.pdf").write_bytes(b"")
    table = tmp_path / "table.csv"
    table.write_text(f"path,label\n{corpus}/bars/bars0.pdf,bars\nbroken.pdf,text\n{corpus}/text/text0.pdf,bars\n")
    options = ("--model", trained, "--device", "cpu", "--workers", 0)
    code, out, err = docvit("evaluate", table, *options, "--format", "json")
    values = json.loads(out)
    assert code == 1
    assert (values["documents"], values["unreadable"], values["accuracy"]) == (2, 1, 0.5)
    assert "Empty" in err
    assert "broken.pdf" in err
    assert docvit("evaluate", table, *options)[1].startswith("2 documents, 1 unreadable\n")
    table.write_text("path,label\nbroken.pdf,text\n")
    code, _, err = docvit("evaluate", table, *options)
    assert code == 2
    assert "none of the documents" in err


def test_classes_that_do_not_occur_have_no_row(capsys):
    scores = np.array([[0.9, 0.1, 0, 0], [0.2, 0.8, 0, 0], [0.1, 0.0, 0, 0.9]])
    print_report(report(scores, [0, 0, 3], ("a", "b", "c", "d")), 0)
    table = capsys.readouterr().out.partition("class")[2].splitlines()[1:]
    assert [row.split() for row in table] == [
        ["a", "1.00", "0.50", "0.67", "2", "1", "1", "0"],
        ["b", "-", "-", "-", "0", "0", "0", "0"],
        ["d", "1.00", "1.00", "1.00", "1", "0", "0", "1"],
        ["neither", "among", "the", "documents", "nor", "predicted:", "c"],
    ]


def test_labels_that_the_model_does_not_know(docvit, trained, corpus, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(f"path,label\n{corpus}/bars/bars0.pdf,poster\ngone.pdf,bars\n")
    code, _, err = docvit("evaluate", table, "--model", trained)
    assert code == 2
    assert "poster" in err
    assert "line 3: no such file: gone.pdf" in err


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies(docvit, trained, corpus, strategy):
    options = ("--model", trained, "--device", "cpu", "--workers", 0, "--format", "json")
    code, out, _ = docvit("evaluate", corpus, *options, "--strategy", strategy)
    values = json.loads(out)
    assert code == 0
    assert (values["documents"], values["unreadable"]) == (12, 0)
    if strategy != "grid":  # pages of one class each: what the model knows of documents holds for pages
        assert values["accuracy"] >= 0.75


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    folder = tmp_path_factory.mktemp("another")
    DocViT(DocViTConfig(**TINY | {"depth": 1}, num_classes=3, classes=CLASSES)).save_pretrained(str(folder))
    return folder


def test_two_models_side_by_side(docvit, trained, another, corpus):
    options = ("--model", trained, "--against", another, "--device", "cpu", "--workers", 0)
    code, out, _ = docvit("evaluate", corpus, *options)
    assert code == 0
    heading, _, accuracy, *_ = out.splitlines()
    assert [cell.strip() for cell in heading.split("|")[2:4]] == [str(trained), str(another)]
    assert accuracy.split("|")[2].strip() == "1.000"
    code, out, _ = docvit("evaluate", corpus, *options, "--format", "json")
    values = json.loads(out)
    assert code == 0
    assert list(values["models"]) == [str(trained), str(another)]
    assert values["models"][str(trained)]["flops_per_page"] > values["models"][str(another)]["flops_per_page"]


def test_side_by_side_with_a_broken_document(docvit, trained, another, corpus, tmp_path):
    (tmp_path / "broken.pdf").write_bytes(b"")
    table = tmp_path / "table.csv"
    table.write_text(f"path,label\n{corpus}/bars/bars0.pdf,bars\nbroken.pdf,text\n")
    code, out, err = docvit(
        "evaluate", table, "--model", trained, "--against", another, "--device", "cpu", "--workers", 0
    )
    assert code == 1
    assert "1 documents, 2 pages, 1 unreadable." in out
    assert "Empty: " in err


def test_models_that_cannot_stand_side_by_side(docvit, trained, another, corpus, tmp_path):
    options = ("evaluate", corpus, "--model", trained, "--device", "cpu", "--workers", 0)
    DocViT(DocViTConfig(**TINY, num_classes=2, classes=("bars", "poster"))).save_pretrained(str(tmp_path))
    for rest, said in (
        (("--against", tmp_path), "lacks blocks, text and has also poster"),
        (("--against", "./nowhere"), "neither a model folder"),
        (("--against", trained), "another model than --model"),
        (("--against", another, "--strategy", "first"), "no --strategy"),
        (("--against", another, "--min-score", "0.5"), "no --strategy, --unknown or --min-score"),
        (("--against", another, "--unknown", corpus), "no --strategy, --unknown or --min-score"),
        (("--strategy", "odd"), "choose one of document, first, second, last, grid"),
    ):
        code, out, err = docvit(*options, *rest)
        assert (code, out) == (2, "")
        assert said in err


# --- inspect ---


@pytest.fixture
def inspect(docvit, trained):
    return lambda *rest: docvit("inspect", "--model", trained, "--device", "cpu", *rest)


def test_pages_and_costs(inspect, tmp_path):
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_bytes([(612, 792), (792, 612)]))
    code, out, _ = inspect(path, "--format", "json")
    values = json.loads(out)
    assert code == 0
    assert [page["grid"] for page in values["pages"]] == [[4, 3], [3, 4]]
    assert all(page["kept"] + page["blank"] == 12 and page["blank"] > 0 for page in values["pages"])
    assert [cost["scopes"] for cost in values["costs"]] == ["page", "document"]
    for cost in values["costs"]:
        assert cost["predicted"]["flops"] == cost["measured"]["flops"]
        assert cost["predicted"]["memory"] == pytest.approx(cost["measured"]["memory"], rel=0.05)
        assert [cost[name]["tokens"] for name in ("undropped", "padded")] == [2 * 13, 2 * 17]
    code, out, _ = inspect(path)
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert lines[0] == [f"{path}:", "2", "pages"]
    assert lines[2] == ["page", "grid", "kept", "blank"]
    for i, page in enumerate(values["pages"]):
        assert lines[3 + i] == [
            str(i + 1),
            str(page["grid"][0]),
            "x",
            str(page["grid"][1]),
            *map(str, (page["kept"], page["blank"])),
        ]
    tokens = values["costs"][0]["predicted"]["tokens"]
    assert ["document", "kept", str(tokens), "1", "document", f"{tokens}²"] in [line[:6] for line in lines]


def test_words_per_page_and_their_share_of_the_cost(docvit, tmp_path):
    model = DocViT(DocViTConfig(**TINY, num_classes=2, words=64))
    model.save_pretrained(str(tmp_path / "model"))
    font = "/Resources<</Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Courier>>>>>>"
    contents = [b"BT /F1 30 Tf 60 600 Td (%s) Tj ET" % text for text in (b"one two three", b"four")]
    (tmp_path / "a.pdf").write_bytes(pdf_bytes([(612, 792)] * 2, extra=font, contents=contents))
    options = ("inspect", tmp_path / "a.pdf", "--model", tmp_path / "model", "--device", "cpu")
    values = json.loads(docvit(*options, "--format", "json")[1])
    assert [page["words"] for page in values["pages"]] == [3, 1]
    assert values["words_from"] == "text"
    shares = [100 * cost["predicted"]["word_flops"] / cost["measured"]["flops"] for cost in values["costs"]]
    code, out, _ = docvit(*options)
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[-1] for line in lines[2:6]] == ["words", "3", "1", "4"]
    assert any(line.startswith(f"words: 4 from text; mapping them to tokens is {min(shares):.2g}") for line in lines)


def test_a_long_document_is_inspected_where_it_is_read(inspect, tmp_path):
    (tmp_path / "ten.pdf").write_bytes(classed_pdf("text", 10))
    code, out, _ = inspect(tmp_path / "ten.pdf", "--max-pages", 4)
    assert code == 0
    assert out.startswith(f"{tmp_path}/ten.pdf: 4 of 10 pages\n")
    assert [line.split()[0] for line in out.splitlines()[3:8]] == ["1", "4", "7", "10", "all"]


def test_a_file_that_cannot_be_read(inspect, docvit, tmp_path):
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4")
    for name, kind in (("broken.pdf", "Unreadable"), ("gone.pdf", "NotFound")):
        code, out, err = inspect(tmp_path / name)
        assert (code, out) == (1, "")
        assert f"{kind}: " in err
        assert name in err
    for options in (("--model", "./nowhere"), ("--device", "nonsense"), ("--max-pages", 0), ()):
        code, out, _ = docvit("inspect", *options, *([tmp_path / "broken.pdf"] if options else []))
        assert (code, out) == (2, "")
