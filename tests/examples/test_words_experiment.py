"""Words in benchmarks and experiments at toy size: same folds, same documents, nothing learnt from what is judged."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import pdf_bytes, run_main
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from docvit import train_documents
from docvit.data.labels import read_labelled, split_groups
from docvit.documents.cache import PageCache
from docvit.model.config import DocViTConfig
from docvit.model.variants import VARIANTS
from docvit.training.loop import TrainSettings
from docvit.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("in_the_examples")

FONT = "/Resources<</Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>"
VOCABULARY = {"invoice": "invoice amount due total payment", "letter": "dear sincerely regards thank you"}
SMALL = {"page_size": 64, "embed_dim": 16, "words": 256}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Sixteen one-page documents of two classes, alike but for their words, from four sources."""
    folder = tmp_path_factory.mktemp("worded")
    rows = ["path,label,group"]
    for label, vocabulary in VOCABULARY.items():
        for i in range(8):
            random = np.random.default_rng((i, len(label)))
            words = [*random.choice(vocabulary.split(), 3), *random.choice(["the", "of", "and"], 3)]
            content = f"BT /F1 24 Tf 60 600 Td ({' '.join(random.permutation(words))}) Tj ET".encode()
            (folder / f"{label}{i}.pdf").write_bytes(pdf_bytes(extra=FONT, contents=[content]))
            rows.append(f"{label}{i}.pdf,{label},source{i % 4}")
    (folder / "documents.csv").write_text("\n".join(rows))
    return folder / "documents.csv"


@pytest.fixture
def baseline():
    return importlib.import_module("text_baseline")


@pytest.fixture
def corpus_of_words(baseline, table, page_cache):
    data = read_labelled(table, group_column="group")
    rendering = DocViTConfig.from_dict(VARIANTS["docvit_linear_patch32"]).rendering
    cache = PageCache(page_cache, rendering, words=True)
    return baseline.Corpus(data, cache, cache.prepare(data.paths, workers=0)[0])


def test_the_text_baseline_is_what_scikit_learn_gives_on_the_training_documents_alone(corpus_of_words):
    train, test = np.array([0, 1, 2, 3, 4, 8, 9]), np.array([5, 6, 7, 10, 11, 12])  # classes of five and of two
    texts, labels = corpus_of_words.texts, corpus_of_words.labels
    assert "invoice" in " ".join(texts)
    features = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True)
    fitted = features.fit_transform([texts[i] for i in train])
    model = LogisticRegression(C=30, class_weight="balanced", max_iter=1000, tol=1e-8).fit(fitted, labels[train])
    expected = model.predict_proba(features.transform([texts[i] for i in test]))
    assert np.allclose(corpus_of_words.logistic_regression(train, test), expected, atol=2e-3)


def test_fusion_is_a_weighted_product(baseline):
    text, model = np.array([[0.9, 0.1]]), np.array([[0.2, 0.8]])
    product = text**0.3 * model**0.7
    assert np.allclose(baseline.fuse(text, model, 0.3), product / product.sum())
    assert np.allclose(baseline.fuse(text, model, 1.0), text)


def test_folders_of_models_are_read_as_their_writers_number_them(baseline, tmp_path):
    def finish(name, epochs=1):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "recipe.json").write_text(json.dumps({"train": {"epochs": 1}}))
        (folder / "metrics.csv").write_text("epoch\n" + "1\n" * epochs)
        return folder

    paths = [finish(name) for name in ("fold-1", "seed-2/fold-3", "words-seed1-fold0", "a/seed-0/fold-2")]
    finish("fold-2", epochs=0)
    found = baseline.find_models(tmp_path, 5)
    assert found == {
        "model": {(0, 0): paths[0], (2, 2): paths[1]},
        "words": {(1, 0): paths[2]},
        "a": {(0, 1): paths[3]},
    }
    finish("fold-6")
    with pytest.raises(SystemExit, match="no model of one of 5 folds"):
        baseline.find_models(tmp_path, 5)


def test_text_and_models_are_judged_on_the_same_folds_and_go_on_where_they_were(
    baseline, table, page_cache, tmp_path, monkeypatch
):
    data = read_labelled(table, group_column="group")
    learning = {"budget": 40, "ema": 0.8, "lose_words": 0.0, "word_dropout": 0.0}
    train = TrainSettings(epochs=20, lr=0.01)
    recipe = Recipe(model="docvit_linear_patch32", settings=SMALL, train=train, **learning)
    training, held_out = split_groups(data, 0, 2)
    train_documents(training, tmp_path / "models" / "fold-1", recipe, device="cpu", workers=0)
    line = [table, "--folds", 2, "--seeds", 1, "--workers", 0, "--models", tmp_path / "models"]
    line += ["--probabilities", tmp_path / "kept", "--output", tmp_path / "result.json"]
    run_main(baseline, monkeypatch, *line)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["folds"] == [1]
    assert result["documents"] == len(held_out)
    assert list(result["rows"]) == [
        baseline.TEXT,
        baseline.MLP,
        "model, with words",
        "model, pixels",
        *(f"model, {how}, and TF-IDF ({share})" for how in ("with words", "pixels") for share in baseline.FUSIONS),
    ]
    assert result["rows"]["model, with words"]["accuracy"]["mean"] == 1.0  # alike but for their words
    assert result["rows"]["model, pixels"]["accuracy"]["mean"] < 1.0
    assert not {path.name for path in table.parent.glob("*.pdf")} & set(json.dumps(result).split('"'))
    monkeypatch.setattr(baseline.Corpus, "logistic_regression", None)  # nothing is fitted again
    run_main(baseline, monkeypatch, *line)
    again = json.loads((tmp_path / "result.json").read_text())
    assert again == result


def test_words_ablation_runs_training_by_training_and_goes_on(table, page_cache, tmp_path, monkeypatch):
    module = importlib.import_module("words")
    names = ["no words", "words in patches", "from a text teacher", "lose words 0.5"]
    trainings = module.chosen_rows(names)
    assert [list(training.rows) for training in trainings.values()] == [names[:3], names[3:]]
    for name, training in trainings.items():
        small = {row: replace(value, buckets=value.buckets and 256) for row, value in training.rows.items()}
        trainings[name] = replace(training, rows=small)
    monkeypatch.setattr(module, "TRAININGS", trainings)
    monkeypatch.setattr(module, "INNER_FOLDS", 2)
    line = [table, "--output", tmp_path / "out", "--folds", 2, "--seeds", 1, "--jobs", 1, "--epochs", 1]
    line += ["--page-size", 64, "--model", "docvit_compact_patch32"]
    run_main(module, monkeypatch, *line, "--fold", 2, "--only", "recipe")
    assert (tmp_path / "out" / "words.md").read_text().splitlines()[2].startswith("| no words |")
    first = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert list(first) == ["recipe, seed 0, fold 2"]
    run_main(module, monkeypatch, *line)
    runs = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert len(runs) == 4
    assert {name: runs[name] for name in first} == first
    for found in runs.values():
        for row, judged in found["judged"].items():
            assert (judged["with words"] == judged["without"]) == (row == "no words")
    lines = (tmp_path / "out" / "words.md").read_text().splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == names


@pytest.mark.parametrize("model", ["docvit_linear_patch32", "docvit_compact_patch32"])
def test_rows_side_by_side_learn_what_each_learns_alone(table, page_cache, tmp_path, monkeypatch, model):
    """Also what words do not reach: it keeps its zeros."""
    module = importlib.import_module("words")
    data = read_labelled(table, group_column="group")
    learning = TrainSettings(epochs=2, clip=None)
    settings = {"page_size": 64, "embed_dim": 16, "drop_path": 0.0}
    recipe = Recipe(model=model, settings=settings, budget=40, ema=0.5, train=learning)
    rendering = DocViTConfig.from_dict({**VARIANTS[model], **settings}).rendering
    files, _ = PageCache(page_cache, rendering, words=True).prepare(data.paths, workers=0)
    soft = torch.tensor([[0.75, 0.25]]).expand(len(data), 2)
    rows = {
        "pages": module.Row(64, without="patches"),
        "patches": module.Row(256, without="pages"),
        "text": module.Row(128, text=0.5),
    }
    together, _ = module.train(data, files, recipe, rows, soft, tmp_path / "together")
    monkeypatch.setattr(module, "SharedObservation", lambda stem: stem.observe)
    for name, row in rows.items():
        alone, _ = module.train(data, files, recipe, {name: row}, soft, tmp_path / name)
        pairs = zip(together[name].parameters(), alone[name].parameters(), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs), name
    assert together["pages"].words.to_pages.weight.any()
    assert not together["patches"].words.to_pages.weight.any()
    if model == "docvit_compact_patch32":
        assert together["patches"].words.to_patches.weight.any()
        assert not together["pages"].words.to_patches.weight.any()


def test_a_text_teacher_never_saw_the_source_of_what_it_speaks_of(corpus_of_words, monkeypatch):
    module = importlib.import_module("words")
    seen = []

    def fit(self, train, test):
        seen.append((train, test))
        return np.full((len(test), 2), 0.5)

    monkeypatch.setattr(type(corpus_of_words), "logistic_regression", fit)
    targets = module.text_targets(corpus_of_words)
    assert (targets == 0.5).all()
    groups = np.array(corpus_of_words.data.groups)
    assert len(seen) == module.INNER_FOLDS
    assert all(not set(groups[train]) & set(groups[test]) for train, test in seen)


def test_the_distillation_loss_is_the_divergence_from_the_text(corpus_of_words):
    module = importlib.import_module("words")
    recipe = Recipe(model="docvit_linear_patch32", settings=SMALL, page_loss=0.0)
    data, rendering = corpus_of_words.data, DocViTConfig.from_dict({**VARIANTS[recipe.model], **SMALL}).rendering
    files, _ = replace(corpus_of_words.cache, rendering=rendering).prepare(data.paths, workers=0)
    model = module.build_model(recipe, data.classes).eval()
    batch = next(iter(module.labelled_batches(data, files, model.config, recipe, module.CPU)))
    soft = torch.tensor([[0.75, 0.25]]).expand(len(data), 2)
    log_probabilities = model(batch.sequence).log_softmax(1)
    expected = (soft[0] * (soft[0].log() - log_probabilities)).sum(1).mean()
    found = module.text_distillation_loss(recipe, soft, 1.0)(model, batch, 0.0)["loss"]
    assert torch.allclose(found, expected, atol=1e-6)
    both = module.text_distillation_loss(recipe, soft, 0.25)(model, batch, 0.0)
    assert torch.allclose(both["loss"], 0.75 * both["label_loss"] + 0.25 * expected, atol=1e-6)
