"""The experiments at toy size: what is drawn is what is labelled, theory holds, nothing runs twice."""

import importlib
import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, run_main

from docvit import DocViT, DocViTConfig
from docvit.data.labels import LabelledDocuments
from docvit.training.loop import TrainSettings
from docvit.training.recipe import Recipe
from kd.config import DistillConfig

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


def test_sources_left_out_under_other_settings_are_left_alone(tmp_path):
    module = importlib.import_module("leave_source_out")
    data = LabelledDocuments(("a/1.pdf", "a/2.pdf"), (0, 1), ("form", "paper"), ("here", "there"))
    plan = module.Plan(Recipe(), 5, 16, (), DistillConfig())
    settings = module.settings_of(data, plan)
    for _ in range(2):
        module.agree_on_settings(tmp_path / "out", settings)
    before = (tmp_path / "out" / module.SETTINGS).read_bytes()
    longer = module.settings_of(data, replace(plan, recipe=Recipe(train=TrainSettings(epochs=99))))
    relabelled = module.settings_of(replace(data, labels=(1, 0)), plan)
    for other, message in ((longer, "recipe train epochs was 16, not 99"), (relabelled, "data sha256 was")):
        with pytest.raises(SystemExit, match=f"other settings: {message}"):
            module.agree_on_settings(tmp_path / "out", other)
    assert (tmp_path / "out" / module.SETTINGS).read_bytes() == before


def test_a_student_learns_from_the_models_of_its_fold_on_features_computed_once(corpus, tmp_path, monkeypatch):
    module, runs = importlib.import_module("leave_source_out"), tmp_path / "runs"
    arguments = [sources(corpus, tmp_path), "--views", runs / "views.pt", "--group-by", "source", "--folds", 2]
    arguments += ["--epochs", 2, "--set", "page_size=64", "--set", "embed_dim=16"]
    monkeypatch.setattr(module.TrainSettings, "epochs", 1)  # views: the second epoch sees the first one's again
    run_main(module, monkeypatch, *arguments, "--output", runs / "teachers", "--model", "docvit_linear_patch32")
    measured = (runs / "views.pt").stat().st_mtime_ns
    run_main(module, monkeypatch, *arguments, "--output", runs / "student", "--teachers", runs / "teachers")
    assert (runs / "views.pt").stat().st_mtime_ns == measured
    found = {name: json.loads((runs / name / "results.json").read_text()) for name in ("teachers", "student")}
    assert [found[name]["teachers per model"] for name in found] == [0, 1]
    assert found["student"]["summary"]["log_loss"]["mean"] == found["student"]["seeds averaged"]["log_loss"] > 0
    trained = DocViT.from_pretrained(runs / "student" / "seed-0" / "fold-1")
    assert (trained.config.stem, len(trained.blocks)) == ("ink", 3)
    with pytest.raises(SystemExit, match="views of other documents or settings"):
        run_main(module, monkeypatch, *arguments, "--set", "page_size=96", "--output", runs / "other")
    monkeypatch.setattr(module.TrainSettings, "epochs", 2)
    with pytest.raises(SystemExit, match="too few"):
        run_main(module, monkeypatch, *arguments, "--output", runs / "other")
    run_main(module, monkeypatch, *arguments, "--epochs", 1, "--output", runs / "short")
    assert (runs / "views.pt").stat().st_mtime_ns == measured
    with pytest.raises(SystemExit, match="without their words"):
        run_main(module, monkeypatch, *arguments, "--set", "words=64", "--output", runs / "other")
    with pytest.raises(SystemExit, match="conv stem"):
        run_main(module, monkeypatch, *arguments, "--set", "stem=conv", "--output", runs / "other")


def test_teachers_of_other_folds_documents_or_pages_are_refused(tmp_path):
    module = importlib.import_module("leave_source_out")
    data = LabelledDocuments(("a/1.pdf", "a/2.pdf"), (0, 1), ("form", "paper"), ("here", "there"))
    runs = tmp_path / "runs"
    plan = module.Plan(Recipe(), 2, 16, (str(runs),), DistillConfig())
    own_seed = replace(plan, same_seed=True)
    settings, seen = module.settings_of(data, plan), DocViTConfig(**TINY)

    def find(plan=plan, settings=settings, seeds=1, config=seen):
        return module.find_teachers(plan, list(itertools.product(range(seeds), range(2))), settings, config)

    def refused(match, **changes):
        with pytest.raises(SystemExit, match=match):
            find(**changes)

    def finish(seed, fold):
        file = module.result_of(runs, (seed, fold))
        DocViT(seen).save_pretrained(file.parent)
        file.write_text("{}")

    refused("runs is no output of this script")
    module.agree_on_settings(runs, settings)
    finish(0, 0)
    refused("no finished model of fold 2")
    finish(0, 1)
    finish(1, 0)
    assert [len(find(seeds=3)[task]) for task in ((2, 0), (2, 1))] == [2, 1]
    refused("no finished model of seed 1 and fold 2", plan=own_seed, seeds=2)
    finish(1, 1)
    assert [folder.parent.name for folder in find(plan=own_seed, seeds=2)[1, 0]] == ["seed-1"]
    refused("folds was 2, not 5", settings=settings | {"folds": 5})
    refused("data sha256 was", settings=module.settings_of(replace(data, labels=(1, 0)), plan))
    refused("sees pages of another size", config=replace(seen, patch_size=32))
    assert module.find_teachers(replace(plan, teachers=("gone",)), [], settings, seen) == {}  # all is done already


def test_gains_are_paired_and_their_interval_is_over_sources(tmp_path, corpus, monkeypatch, capsys):
    module, lso = importlib.import_module("paired_gain"), importlib.import_module("leave_source_out")
    alike = module.interval(np.array([1.0] * 50 + [0.0] * 50), ["one"] * 50 + ["other"] * 50)
    apart = module.interval(np.array([1.0] * 50 + [0.0] * 50), [str(i) for i in range(100)])
    assert (alike["low"], alike["high"]) == (0, 1)
    assert 0.3 < apart["low"] < 0.5 < apart["high"] < 0.7

    table = sources(corpus, tmp_path)
    data = module.read_labelled(table, group_column="source")
    held_out = [module.split_groups(data, fold, 2)[1] for fold in range(2)]

    def write(name, right, seeds=2):
        """Models that are right on the documents of some sources, sure of .8."""
        for seed, fold in itertools.product(range(seeds), range(2)):
            part, file = held_out[fold], lso.result_of(tmp_path / name, (seed, fold))
            predicted = [
                y if group in right else (y + 1) % 3 for y, group in zip(part.labels, part.groups, strict=True)
            ]
            file.parent.mkdir(parents=True)
            found = {"scores": (0.1 + 0.7 * np.eye(3)[predicted]).tolist(), "labels": list(part.labels)}
            file.write_text(json.dumps(found))
        about = {"folds": 2, "data": lso.data_of(data)}
        (tmp_path / name / lso.SETTINGS).write_text(json.dumps(about))

    some, *rest = sorted(set(data.groups))
    write("good", [some, *rest])
    write("fair", [some], seeds=3)
    lso.result_of(tmp_path / "fair", (2, 1)).unlink()  # in progress
    good, fair = tmp_path / "good", tmp_path / "fair"
    arguments = [table, good, "--group-by", "source", "--output", tmp_path / "gain.json"]
    run_main(module, monkeypatch, *arguments, fair)
    results = json.loads((tmp_path / "gain.json").read_text())
    found, share = results["against"][str(fair)], np.mean([group != some for group in data.groups])
    assert (results["seeds"], found["seeds"]) == (2, 2)
    assert found["accuracy"]["mean"] == pytest.approx(share)
    assert found["accuracy"]["low"] < share < found["accuracy"]["high"] == 1
    assert found["log_loss"]["mean"] == pytest.approx(share * np.log(0.1 / 0.8))
    assert found["documents better"] == sum(group != some for group in data.groups)
    assert f"fair (2): accuracy {share:+.3f}" in capsys.readouterr().out
    other = tmp_path / "other.csv"
    other.write_text("\n".join(sorted(table.read_text().splitlines(), reverse=True)))
    with pytest.raises(SystemExit, match="good cannot be compared: data sha256"):
        run_main(module, monkeypatch, other, *arguments[1:], fair)


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
