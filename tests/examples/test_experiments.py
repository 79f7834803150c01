"""The experiments at toy size: what is drawn is what is labelled, theory holds, nothing runs twice."""

import importlib
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import run_main

import docvit.training.turns  # noqa: F401  before the fixture that shortens it looks for it

pytestmark = pytest.mark.usefixtures("in_the_examples")


@pytest.fixture
def cross_page():
    return importlib.import_module("cross_page")


def marks(cross_page, batch, pages):
    """For each document, page -> cell of its mark, read off the pixels."""
    mark = torch.randn(2, cross_page.PATCH**2, generator=torch.Generator().manual_seed(0))[0]
    s = batch.sequence
    found = [{} for _ in range(len(s))]
    for t in ((s.patches - mark).square().mean(1) < 0.4).nonzero()[:, 0].tolist():
        document, page = divmod(int(s.page_of_patch[t]), pages)
        found[document][page] = int(s.row[t]) * cross_page.SIDE + int(s.col[t])
    return found


@pytest.mark.parametrize("pages", [4, 6])
@pytest.mark.parametrize("task", ["which-page", "two-pages", "page-and-cell"])
def test_made_documents_bear_their_class(cross_page, task, pages):
    settings = replace(cross_page.Settings(), noise=0.1)
    batch = cross_page.draw(task, 400, pages, settings, torch.Generator().manual_seed(0))
    for label, found in zip(batch.labels.tolist(), marks(cross_page, batch, pages), strict=True):
        if task == "two-pages":
            assert len(found) == pages
            assert [page for page in range(1, pages) if found[page] == found[0]] == [1 + label]
        else:
            ((page, cell),) = found.items()
            assert label == (page if task == "which-page" else (page + cell) % 4)
    counts = Counter(batch.labels.tolist())
    assert min(counts.values()) > 0.7 * 400 / cross_page.TASKS[task]


def test_made_documents_are_sets_to_the_baselines_and_not_to_the_default(cross_page):
    settings = cross_page.Settings()
    generator = torch.Generator().manual_seed(0)
    cell = torch.randint(4, (1, 4), generator=generator)
    marked = torch.tensor([[True, False, False, False]])
    for scheme in (*cross_page.SETS, "spatial+page"):
        torch.manual_seed(0)
        model = cross_page.build("which-page", scheme, settings).eval()
        order = [2, 0, 3, 1]
        quiet = replace(settings, noise=0.0)
        outputs = [
            model(scrawl(cross_page, c, m, quiet)) for c, m in ((cell, marked), (cell[:, order], marked[:, order]))
        ]
        assert torch.allclose(*outputs, atol=1e-5) == (scheme != "spatial+page")


def scrawl(cross_page, cell, marked, settings):
    """Only the first scrawl of each page: the others are drawn anew with each order."""
    sequence = cross_page.scrawl(cell, marked, settings, torch.Generator().manual_seed(1))
    keep = torch.zeros(sequence.num_patches, dtype=torch.bool)
    keep[:: cross_page.SCRAWLS] = True
    return sequence.select(keep)


def test_cross_page_runs_and_is_reported(cross_page, tmp_path, monkeypatch):
    scheme_report = importlib.import_module("scheme_report")
    arguments = ["--output", tmp_path / "runs" / "cross_page", "--jobs", 1, "--seeds", 1, "--steps", 2, "--tested", 20]
    run_main(cross_page, monkeypatch, *arguments, "--schemes", "pages-mean", cross_page.ALONE, "spatial+page")
    scheme_report.gather(tmp_path / "runs", tmp_path / "report")
    text = (tmp_path / "report" / "positions.md").read_text()
    assert all(f"### `{task}`" in text for task in cross_page.TASKS)


def sources(corpus, folder):
    """The corpus as a CSV in `folder`, the last digits of names for sources."""
    rows = [f"{p.relative_to(corpus)},{p.parent.name},{p.stem[-1]}" for p in sorted(corpus.glob("*/*.pdf"))]
    table = folder / "documents.csv"
    table.write_text("path,label,source\n" + "\n".join(f"{corpus}/{row}" for row in rows))
    return table


def test_classification_compares_and_says_no_more_than_the_spread(corpus, tmp_path, monkeypatch):
    schemes = importlib.import_module("schemes")
    scheme_report = importlib.import_module("scheme_report")
    table = sources(corpus, tmp_path)
    default = schemes.TABLES["schemes"]["spatial+page"]
    tables = {
        "schemes": {"spatial+page": default},
        "scopes": {},
        "baselines": {"pages-mean": schemes.BASELINES["pages-mean"]},
    }
    monkeypatch.setattr(schemes, "TABLES", tables)
    arguments = [table, "--output", tmp_path / "runs" / "schemes", "--group-by", "source", "--folds", 2]
    arguments += ["--seeds", 2, "--jobs", 1, "--epochs", 1, "--page-size", 64]
    run_main(schemes, monkeypatch, *arguments)
    results = json.loads((tmp_path / "runs" / "schemes" / "results.json").read_text())
    run = results["runs"]["schemes spatial+page seed 0"]
    assert set(run["strategies"]) == set(schemes.STRATEGIES)
    assert run["strategies"]["document"]["accuracy"] == run["accuracy"]
    assert run["mflops"] > results["runs"]["baselines pages-mean seed 0"]["mflops"]
    scheme_report.gather(tmp_path / "runs", tmp_path / "report")
    assert "Against the default (" in (tmp_path / "report" / "positions.md").read_text()


def test_verdicts_know_the_spread():
    scheme_report = importlib.import_module("scheme_report")
    rows = {
        "a": {"x": {0: 90.0, 1: 91.0, 2: 90.5}},
        "b": {"x": {0: 80.0, 1: 81.5, 2: 80.0}},
        "c": {"x": {0: 85.0, 1: 95.0, 2: 91.0}},
        "easy and hard folds": {"x": {0: 95.0, 1: 60.0, 2: 75.0}},
        "those": {"x": {0: 85.0, 1: 50.5, 2: 65.0}},
    }
    assert scheme_report.compare(rows, "a", "b", "x")[1] == 1
    assert scheme_report.compare(rows, "easy and hard folds", "those", "x")[1] == 1
    assert scheme_report.compare(rows, "b", "a", "x")[1] == -1
    assert scheme_report.compare(rows, "a", "c", "x")[1] == 0
    assert scheme_report.compare(rows, "a", "b", "x", among=500)[1] == 0  # the best of many is ahead by chance
    assert scheme_report.compare(rows, "a", "d", "x") == ("", 0)
    assert scheme_report.verdicts(["a", "d"], ["it is", ""])[1].endswith("for want of seeds: `d`")
    assert scheme_report.reaching(rows, "x", 90) == "`a`, `c`"
