"""Every option of every command arrives where it acts: recorded there, one option at a time."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from conftest import CLASSES

from docvit import cli
from docvit.documents.pages import PageStack
from docvit.inference import classify as inference
from docvit.inference.prediction import Embedding, Part
from docvit.inference.split import Split
from docvit.model.variants import BASELINES
from docvit.training.few_shot import FitReport

SCORES = {"bars": 0.5, "blocks": 0.3, "text": 0.2}


@pytest.fixture
def seen(monkeypatch):
    """What the commands hand to the library, whose work is left out."""
    seen = {}

    def load(model=None, **options):
        seen.update(model=model, **options)
        return SimpleNamespace(
            classes=CLASSES, predict=predict, embeddings=embeddings, model=SimpleNamespace(num_features=2)
        )

    def predict(paths, **options):
        seen.update(options, paths=list(paths))
        return [inference.Prediction(path, "bars", 0.5, SCORES, 1, 1, known=1.0) for path in seen["paths"]]

    def split_files(_, paths, **options):
        seen.update(options, paths=list(paths))
        return [Split(path, 1, [Part(1, 1, "bars", 0.5)]) for path in seen["paths"]]

    def write_part(path, pages, folder, name, *, password=None):
        seen.update(written=folder, opened_with=password)
        return folder / name

    monkeypatch.setattr("docvit.inference.split.split_files", split_files)
    monkeypatch.setattr("docvit.documents.parts.write_part", write_part)

    def embeddings(paths, **options):
        seen.update(options, paths=list(paths))
        return [Embedding(path, np.zeros(2, np.float32)) for path in paths]

    def fit(data, output, **options):
        seen.update(options, data=data, output=output)
        return None, FitReport(("a", "b"), ("a.pdf", "b.pdf"), ("a", "b"), np.full((2, 2), 0.5))

    monkeypatch.setattr("docvit.training.few_shot.fit_documents", fit)

    def explain(_, path, **options):
        seen.update(explained=path, explaining=options)
        return SimpleNamespace(save=lambda file: seen.update(picture=str(file)))

    def compare(models, labelled, **options):
        seen.update(options, models=list(models.values()), compared=len(labelled))
        return SimpleNamespace(errors=[], as_dict=dict, markdown=str)

    def review(classifier, paths, file, **options):
        Path(file).touch()
        seen.update(options, paths=paths, file=file)
        return []

    monkeypatch.setattr("docvit.inference.review.review", review)
    monkeypatch.setattr("docvit.inference.classify.DocumentClassifier.from_pretrained", load)
    monkeypatch.setattr("docvit.inference.explain.explain", explain)
    monkeypatch.setattr("docvit.evaluation.compare.compare", compare)

    def from_pretrained(model=None):
        seen.update(model=model)
        return SimpleNamespace(config=SimpleNamespace(rendering="a rendering", words=64))

    def read(paths, rendering, **options):
        seen.update(options, paths=list(paths), rendering=rendering)
        return [PageStack(paths[0], [np.zeros((8, 8), np.uint8)], [0], 1)]

    def inspect(model, stack, *, device):
        seen.update(device=str(device))
        return SimpleNamespace(as_dict=lambda: {"path": stack.path})

    monkeypatch.setattr("docvit.model.docvit.DocViT.from_pretrained", from_pretrained)
    monkeypatch.setattr("docvit.documents.workers.read_documents", read)
    monkeypatch.setattr("docvit.evaluation.cost.inspect_document", inspect)
    monkeypatch.setattr("docvit.cli.evaluate.print_inspection", lambda found: print("inspected"))

    def train(labelled, output, recipe, **options):
        seen.update(options, data=labelled, output=output, recipe=recipe)
        return None, [{"epoch": 1.0}]

    monkeypatch.setattr("docvit.training.supervised.train_documents", train)
    monkeypatch.setattr("docvit.training.masked.pretrain_documents", train)
    return seen


@pytest.fixture
def table(corpus, tmp_path):
    """A CSV of the corpus with a column of sources."""
    file = tmp_path / "table.csv"
    with file.open("w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(("path", "label", "source"))
        rows.writerows((corpus / kind / f"{kind}{i}.pdf", kind, f"s{i}") for kind in CLASSES for i in range(4))
    return file


def of(name):
    return lambda seen: seen[name]


def recipe(name):
    return lambda seen: getattr(seen["recipe"], name)


def loop(name):
    return lambda seen: getattr(seen["recipe"].train, name)


def setting(name):
    return lambda seen: seen["recipe"].settings[name]


BUILT = {
    "output": (["--output", "elsewhere"], of("output"), Path("elsewhere")),
    "model": (["--model", "docvit_tiny_patch16"], recipe("model"), "docvit_tiny_patch16"),
    "init": (["--init", "timm:vit"], recipe("init"), "timm:vit"),
    "positions": (["--positions", "rope"], setting("positions"), "rope"),
    "scopes": (["--scopes", "alternate:2"], setting("scopes"), "alternate:2"),
    "page_size": (["--page-size", "48"], setting("page_size"), 48),
    "words": (["--words", "512"], setting("words"), 512),
    "epochs": (["--epochs", "3"], loop("epochs"), 3),
    "lr": (["--lr", "0.25"], loop("lr"), 0.25),
    "budget": (["--budget", "77"], recipe("budget"), 77),
    "max_pages": (["--max-pages", "9"], recipe("max_pages"), 9),
    "seed": (["--seed", "5"], loop("seed"), 5),
    "workers": (["--workers", "3"], of("workers"), 3),
    "device": (["--device", "cuda:7"], of("device"), "cuda:7"),
    "ocr": (["--ocr"], recipe("ocr_pages"), 1),
    "ocr_pages": (["--ocr", "--ocr-pages", "7"], recipe("ocr_pages"), 7),
}

# option -> (words on the command line, where to look, what must be there); `{corpus}` and `{table}` are data
OPTIONS = {
    "classify": {
        "paths": ([], lambda seen: len(seen["paths"]), 12),
        "model": (["--model", "m"], of("model"), "m"),
        "format": (["--format", "jsonl"], lambda seen: json.loads(seen["out"].splitlines()[0])["label"], "bars"),
        "output": (["--output", "e.csv"], lambda seen: Path("e.csv").read_text().count("pdf"), 12),
        "resume": (["--output", "rows.jsonl", "--resume"], lambda seen: len(seen["paths"]), 8),
        "explain_to": (["--explain", "seen"], lambda seen: seen["picture"].split("/")[0], "seen"),
        "max_pages": (["--max-pages", "9"], of("max_pages"), 9),
        "no_words": (["--no-words"], of("words"), False),
        "ocr": (["--ocr"], of("ocr_pages"), 1),
        "ocr_pages": (["--ocr", "--ocr-pages", "7"], of("ocr_pages"), 7),
        "min_score": (["--min-score", "0.75"], of("min_score"), 0.75),
        "password": (["--password", "secret"], of("password"), "secret"),
        "renderer": (["--renderer", "poppler"], of("renderer"), "poppler"),
        "timeout": (["--timeout", "3.5"], of("timeout"), 3.5),
        "workers": (["--workers", "3"], of("workers"), 3),
        "device": (["--device", "cuda:7"], of("device"), "cuda:7"),
    },
    "split": {
        "paths": ([], lambda seen: len(seen["paths"]), 12),
        "output": (["--output", "parts"], lambda seen: seen["written"], Path("parts")),
        "format": (["--format", "jsonl"], lambda seen: json.loads(seen["out"].splitlines()[0])["num_pages"], 1),
        "min_score": (["--min-score", "0.75"], of("min_score"), 0.75),
        "drop_blank": (["--drop-blank"], of("drop_blank"), True),
        "model": (["--model", "m"], of("model"), "m"),
        "no_words": (["--no-words"], of("words"), False),
        "ocr": (["--ocr"], of("ocr_pages"), 2000),
        "ocr_pages": (["--ocr", "--ocr-pages", "7"], of("ocr_pages"), 7),
        "password": (["--password", "s", "--output", "p"], lambda seen: seen["password"] + seen["opened_with"], "ss"),
    },
    "evaluate": {
        "data": ([], lambda seen: len(seen["paths"]), 12),
        "model": (["--model", "m"], of("model"), "m"),
        "against": (["--model", "m", "--against", "n"], of("models"), ["m", "n"]),
        "unknown": (["--unknown", "{corpus}/bars"], lambda seen: len(seen["paths"]), 4),
        "min_score": (["--min-score", "0.75"], of("min_score"), 0.75),
        "strategy": (["--strategy", "soft-vote"], of("strategy"), "soft-vote"),
        "format": (["--format", "json"], lambda seen: json.loads(seen["out"])["documents"], 12),
        "max_pages": (["--max-pages", "9"], of("max_pages"), 9),
        "no_words": (["--no-words"], of("words"), False),
        "ocr": (["--ocr"], of("ocr_pages"), 1),
        "ocr_pages": (["--ocr", "--ocr-pages", "7"], of("ocr_pages"), 7),
        "password": (["--password", "secret"], of("password"), "secret"),
        "workers": (["--workers", "3"], of("workers"), 3),
        "device": (["--device", "cuda:7"], of("device"), "cuda:7"),
    },
    "review": {
        "paths": ([], lambda seen: len(seen["paths"]), 12),
        "output": (["--output", "page.html"], lambda seen: str(seen["file"]), "page.html"),
        "model": (["--model", "m"], of("model"), "m"),
        "max_pages": (["--max-pages", "9"], of("max_pages"), 9),
        "no_words": (["--no-words"], of("words"), False),
        "ocr": (["--ocr"], of("ocr_pages"), 1),
        "ocr_pages": (["--ocr", "--ocr-pages", "7"], of("ocr_pages"), 7),
        "password": (["--password", "secret"], of("password"), "secret"),
        "timeout": (["--timeout", "3.5"], of("timeout"), 3.5),
        "workers": (["--workers", "3"], of("workers"), 3),
        "device": (["--device", "cuda:7"], of("device"), "cuda:7"),
    },
    "inspect": {
        "file": ([], lambda seen: Path(seen["paths"][0]).name, "bars0.pdf"),
        "model": (["--model", "m"], of("model"), "m"),
        "format": (["--format", "json"], lambda seen: Path(json.loads(seen["out"])["path"]).name, "bars0.pdf"),
        "max_pages": (["--max-pages", "9"], of("max_pages"), 9),
        "timeout": (["--timeout", "3.5"], of("timeout"), 3.5),
        "device": (["--device", "meta"], of("device"), "meta"),
    },
    "sort": {
        "paths": ([], lambda seen: len(seen["paths"]), 12),
        "into": (["--into", "elsewhere"], lambda seen: Path("elsewhere/bars/bars0.pdf").exists(), True),
        "model": (["--model", "m"], of("model"), "m"),
        "min_score": (["--min-score", "0.6"], of("min_score"), 0.6),
        "no_words": (["--no-words"], of("words"), False),
        "ocr": (["--ocr"], of("ocr_pages"), 1),
        "ocr_pages": (["--ocr", "--ocr-pages", "7"], of("ocr_pages"), 7),
        "password": (["--password", "secret"], of("password"), "secret"),
        "move": (["--move"], lambda seen: list(Path("pile").rglob("*.pdf")), []),
        "dry_run": (["--dry-run"], lambda seen: Path("sorted").exists(), False),
        "undo": (["--undo"], lambda seen: Path("sorted/bars/bars0.pdf").exists(), False),
    },
    "embed": {
        "paths": ([], lambda seen: len(seen["paths"]), 12),
        "output": (["--output", "e.csv"], lambda seen: Path("e.csv").read_text().count("pdf"), 12),
        "model": (["--model", "m"], of("model"), "m"),
        "max_pages": (["--max-pages", "9"], of("max_pages"), 9),
        "no_words": (["--no-words"], of("words"), False),
        "ocr": (["--ocr"], of("ocr_pages"), 1),
        "ocr_pages": (["--ocr", "--ocr-pages", "7"], of("ocr_pages"), 7),
        "password": (["--password", "secret"], of("password"), "secret"),
        "timeout": (["--timeout", "3.5"], of("timeout"), 3.5),
        "workers": (["--workers", "3"], of("workers"), 3),
        "device": (["--device", "cuda:7"], of("device"), "cuda:7"),
    },
    "fit": {
        "data": ([], lambda seen: seen["data"].name, "table.csv"),
        "output": (["--output", "elsewhere"], of("output"), Path("elsewhere")),
        "model": (["--model", "m"], of("model"), "m"),
        "add": (["--add"], of("add"), True),
        "skip_unreadable": (["--skip-unreadable"], of("skip_unreadable"), True),
        "ocr": (["--ocr"], of("ocr_pages"), 1),
        "ocr_pages": (["--ocr", "--ocr-pages", "7"], of("ocr_pages"), 7),
        "password": (["--password", "secret"], of("password"), "secret"),
        "workers": (["--workers", "3"], of("workers"), 3),
        "device": (["--device", "cuda:7"], of("device"), "cuda:7"),
    },
    "train": BUILT
    | {
        "data": ([], lambda seen: len(seen["data"]), 12),
        "baseline": (["--baseline", "pages-max"], recipe("settings"), BASELINES["pages-max"]),
        "mix_pages": (["--mix-pages", "0.125"], recipe("mix_pages"), 0.125),
        "lose_words": (["--lose-words", "0.75"], recipe("lose_words"), 0.75),
        "word_dropout": (["--word-dropout", "0.25"], recipe("word_dropout"), 0.25),
        "scans": (["--scans", "0.25"], lambda seen: seen["recipe"].augmentation.scan, 0.25),
        "packets": (["--packets", "0.1"], recipe("packets"), 0.1),
        "calibrated_like": (["--calibrated-like", "a", "--calibrated-like=b"], recipe("calibrated_like"), ["a", "b"]),
        "skip_unreadable": (["--skip-unreadable"], of("skip_unreadable"), True),
        "password": (["--password", "secret"], of("password"), "secret"),
        "label_smoothing": (["--label-smoothing", "0.2"], recipe("label_smoothing"), 0.2),
        "ema": (["--ema", "0.75"], recipe("ema"), 0.75),
        "valid": (["--valid", "{corpus}"], lambda seen: len(seen["valid"]), 12),
        "group_by": (["--group-by", "source"], lambda seen: set(seen["data"].groups), {"s0", "s1", "s2", "s3"}),
        "fold": (["--group-by", "source", "--fold", "2/4"], lambda seen: len(seen["valid"]), 3),
        "resume": (["--resume"], of("resume"), True),
    },
    "pretrain": BUILT
    | {
        "data": ([], lambda seen: len(seen["data"]), 12),
        "mask": (["--mask", "0.5"], recipe("mask"), 0.5),
        "target": (["--target", "pixels"], recipe("target"), "pixels"),
        "password": (["--password", "secret"], of("password"), "secret"),
        "resume": (["--resume"], of("resume"), True),
    },
}


def options_of(command):
    return {option.name for option in typer.main.get_command(cli.app).commands[command].params} - {"help"}


@pytest.fixture
def with_ocr(monkeypatch):
    """As if the extra were installed."""
    monkeypatch.setattr("docvit.documents.ocr.require_ocr", lambda: None)


def test_every_command_and_every_option_is_in_the_table():
    assert typer.main.get_command(cli.app).commands.keys() == OPTIONS.keys()
    for command, options in OPTIONS.items():
        assert options_of(command) == options.keys(), command


@pytest.mark.usefixtures("with_ocr")
@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, options in OPTIONS.items() for option in options]
)
def test_an_option_arrives(docvit, seen, corpus, table, tmp_path, monkeypatch, name, option):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("docvit.training.run_folder.read_recipe", lambda folder, kind=None: None)
    monkeypatch.setattr("docvit.cli.options.of_recipe", lambda recipe: {})
    words, look, expected = OPTIONS[name][option]
    data = {"inspect": corpus / "bars" / "bars0.pdf", "train": table, "fit": table}.get(name, corpus)
    outputs = {"train": "run", "pretrain": "run", "review": "run", "fit": "run", "embed": "out.npy"}
    output = ["--output", outputs[name]] if name in outputs else []
    if name == "sort":
        output = ["--into", "sorted"]
        data = shutil.copytree(corpus, "pile")
        if option == "undo":
            docvit(name, data, *output)
            assert Path("sorted/bars/bars0.pdf").exists()
    output = [] if option in ("output", "into") else output
    if (name, option) == ("classify", "resume"):
        docvit(name, corpus / "bars", "--output", "rows.jsonl")
    code, out, err = docvit(name, data, *output, *[word.format(corpus=corpus) for word in words])
    assert code == 0, err
    seen["out"] = out
    assert look(seen) == expected


@pytest.mark.usefixtures("with_ocr")
@pytest.mark.parametrize("more", [[], ["--against", "n"]])
def test_how_words_are_read_arrives_where_models_are_compared_and_explained(docvit, seen, corpus, tmp_path, more):
    name = "evaluate" if more else "classify"
    more = [*(more or ["--explain", tmp_path]), "--password", "p", "--max-pages", "9"]
    for words, reading in (
        ([], {"words": True, "ocr_pages": 0}),
        (["--no-words"], {"words": False, "ocr_pages": 0}),
        (["--ocr", "--ocr-pages", "3"], {"words": True, "ocr_pages": 3}),
    ):
        reading = {"max_pages": 9, "password": "p", **reading}
        code, _, err = docvit(name, corpus, *more, *words)
        assert code == 0, err
        assert {option: seen[option] for option in reading} == reading
        if name == "classify":
            assert seen["explaining"] == reading


@pytest.mark.parametrize("name", ["classify", "evaluate", "split"])
def test_options_of_words_that_contradict_each_other(docvit, seen, corpus, name):
    for words, said in (
        (["--ocr", "--no-words"], "--ocr reads words and --no-words leaves them out"),
        (["--ocr-pages", "2"], "give --ocr, too"),
        (["--ocr", "--ocr-pages", "0"], "--ocr-pages"),
    ):
        code, out, err = docvit(name, corpus, *words)
        assert (code, out) == (2, "")
        assert said in err
    assert "model" not in seen


@pytest.mark.parametrize("name", ["classify", "evaluate"])
def test_ocr_without_the_extra_is_one_line_with_the_way_to_install_it(docvit, seen, corpus, monkeypatch, name):
    def missing():
        raise ModuleNotFoundError('reading scans needs RapidOCR: pip install "docvit[ocr]"')

    monkeypatch.setattr("docvit.documents.ocr.require_ocr", missing)
    code, out, err = docvit(name, corpus, "--ocr")
    assert (code, out) == (2, "")
    assert err == 'error: reading scans needs RapidOCR: pip install "docvit[ocr]"\n'
    assert "model" not in seen


@pytest.mark.parametrize("buckets", [0, 64])
def test_inspect_reads_the_words_of_a_model_that_reads_any(docvit, seen, corpus, monkeypatch, buckets):
    model = SimpleNamespace(config=SimpleNamespace(rendering="a rendering", words=buckets))
    monkeypatch.setattr("docvit.model.docvit.DocViT.from_pretrained", lambda name: model)
    assert docvit("inspect", corpus / "bars" / "bars0.pdf")[0] == 0
    assert seen["words"] == (buckets > 0)


@pytest.mark.usefixtures("with_ocr")
@pytest.mark.parametrize("name", ["train", "pretrain"])
def test_a_resumed_run_is_compared_with_the_options_given(docvit, seen, corpus, tmp_path, monkeypatch, name):
    """Every option that a recipe keeps may be repeated, but not changed."""
    from docvit.training.masked import PretrainRecipe
    from docvit.training.recipe import Recipe

    monkeypatch.chdir(tmp_path)
    original = {"train": Recipe, "pretrain": PretrainRecipe}[name]()
    monkeypatch.setattr("docvit.training.run_folder.read_recipe", lambda folder, kind=None: original)
    kept = set(OPTIONS[name]) - {"data", "output", "resume", "workers", "device", "valid", "group_by", "fold"}
    kept -= {"skip_unreadable", "password"}
    for option in kept:
        words, *_ = OPTIONS[name][option]
        code, _, err = docvit(name, corpus, "--output", "run", "--resume", *words)
        assert code == 2, option
        assert f"{words[0]} was " in err


def test_pre_training_says_at_the_end_what_was_passed_over(docvit, seen, corpus, tmp_path):
    (tmp_path / "a.pdf").symlink_to(corpus / "bars" / "bars0.pdf")
    (tmp_path / "notes.docx").touch()
    code, _, err = docvit("pretrain", tmp_path, "--output", tmp_path / "run")
    assert code == 0
    assert err.splitlines() == [
        "1 file passed over, no documents by their suffix: 1 .docx",
        f"  {tmp_path}/notes.docx",
    ]
