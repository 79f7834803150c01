"""Comparison of models: each result against the same result measured alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import CLASSES, ENCRYPTED, TINY
from PIL import Image
from safetensors.torch import load_file

import docvit.evaluation.compare as module
from docvit.data.labels import LabelledDocuments, read_labelled
from docvit.data.metrics import report
from docvit.documents.pages import read_document
from docvit.evaluation.compare import compare
from docvit.evaluation.cost import measure_cost
from docvit.inference.classify import DocumentClassifier
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.errors import ModelError

MEASURES = [
    "accuracy",
    "macro-F1",
    "ECE",
    "AURC",
    "agreement",
    "parameters",
    "FLOPs per page",
    "size on disk",
    "documents/s",
]
drawn = module.Comparison.plot  # what tests of other things leave out


def model_of(seed=0, classes=CLASSES, **settings):
    torch.manual_seed(seed)
    model = DocViT(DocViTConfig(**{**TINY, **settings}, num_classes=len(classes), classes=classes))
    with torch.no_grad():
        model.head.weight.mul_(40)
    return model


@pytest.fixture(scope="module")
def data(corpus):
    return read_labelled(corpus)


@pytest.fixture(scope="module")
def other():
    """Of another page size, patch size and colour than the trained model, its classes in another order."""
    return model_of(classes=CLASSES[::-1], page_size=96, patch_size=32, in_chans=3, depth=1)


@pytest.fixture(scope="module")
def found(trained, other, data):
    return compare({"trained": trained, "other": other}, data, workers=0, budget=60, device="cpu")


def by_hand(model, data):
    """(probabilities in the data's order, predicted classes, FLOPs, pages) one document after the other."""
    classifier = DocumentClassifier(model, device="cpu")
    rows, flops, pages = [], 0, 0
    for prediction in classifier.predict(data.paths, workers=0):
        rows.append([prediction.scores[name] for name in data.classes])
        pages += prediction.pages_read
    for path in data.paths:
        flops += measure_cost(model, model.pack([read_document(path, classifier.rendering)])).flops
    return np.array(rows), np.array(rows).argmax(1), flops, pages


def test_results_are_those_of_each_model_alone(found, trained, other, data):
    models = {"trained": DocViT.from_pretrained(str(trained)), "other": other}
    labels = {name: by_hand(model, data) for name, model in models.items()}
    for name, (scores, predicted, flops, pages) in labels.items():
        results = found.models[name]
        expected = report(scores, data.labels, CLASSES)
        assert results.quality.confusion == expected.confusion
        assert results.quality.accuracy == expected.accuracy
        assert results.quality.ece == pytest.approx(expected.ece, abs=0.02)  # bfloat16
        assert results.agreement == (predicted == labels["trained"][1]).mean()
        assert results.parameters == sum(v.numel() for v in models[name].state_dict().values())
        assert results.flops_per_page == pytest.approx(flops / pages)
        assert results.documents_per_second > 0
        assert found.pages == pages
    assert (found.documents, found.classes, found.errors, found.device) == (12, CLASSES, (), "cpu")
    assert found.models["trained"].quality.accuracy == 1
    assert found.models["other"].agreement < 1


def test_sizes_are_those_of_files(found, trained, other, tmp_path):
    other.save_pretrained(str(tmp_path))
    assert found.models["trained"].bytes_on_disk == (trained / "model.safetensors").stat().st_size
    written = (tmp_path / "model.safetensors").stat().st_size
    assert found.models["other"].bytes_on_disk == pytest.approx(written, abs=100)  # the header
    half = tmp_path / "half"
    other.save_pretrained(str(half), dtype=torch.float16)
    data_types = {value.dtype for value in load_file(half / "model.safetensors").values()}
    assert data_types == {torch.float16}
    assert module._size(half, other) < 0.7 * written


def test_documents_are_read_once_for_each_rendering(trained, other, data, monkeypatch):
    renderings, original = [], module.read_documents
    monkeypatch.setattr(module, "read_documents", lambda p, r, **o: renderings.append(r) or original(p, r, **o))
    same = DocumentClassifier.from_pretrained(trained, device="cpu")
    compare({"a": same, "b": other, "c": model_of(3)}, data, workers=0, device="cpu")
    assert renderings == [same.rendering, other.config.rendering]


def test_batches_hold_the_same_documents_for_models_of_one_rendering(trained, data, monkeypatch):
    sizes, original = [], DocumentClassifier.run
    monkeypatch.setattr(DocumentClassifier, "run", lambda c, b: sizes.append((c, len(b))) or original(c, b))
    compare({"a": trained, "b": DocViT.from_pretrained(str(trained))}, data, workers=0, budget=60, device="cpu")
    first = sizes[0][0]
    counts, others = ([n for c, n in sizes if (c is first) == mine] for mine in (True, False))
    assert counts == others
    warm, real = counts[::2], counts[1::2]  # every batch twice: kernels are made for shapes that are new
    assert warm == real
    assert len(real) > 2
    assert sum(real) == len(data)


def test_a_broken_document_counts_for_none(trained, other, data, tmp_path):
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4")
    paths = (data.paths[0], str(tmp_path / "broken.pdf"), *data.paths[1:])
    more = LabelledDocuments(paths, (data.labels[0], 2, *data.labels[1:]), data.classes)
    seen = compare({"trained": trained, "other": other}, more, workers=0, device="cpu")
    assert [error.path for error in seen.errors] == [str(tmp_path / "broken.pdf")]
    assert seen.documents == 12
    assert seen.models["trained"].quality.accuracy == 1
    assert seen.as_dict()["unreadable"] == 1
    assert ", 1 unreadable." in seen.markdown()
    with pytest.raises(ValueError, match="none of the documents could be read"):
        compare({"trained": trained}, LabelledDocuments(paths[1:2], (2,), CLASSES), workers=0, device="cpu")


def test_a_password_opens_documents(trained, tmp_path):
    (tmp_path / "locked.pdf").write_bytes(ENCRYPTED)
    locked = LabelledDocuments((str(tmp_path / "locked.pdf"),), (0,), CLASSES)
    seen = compare({"trained": trained}, locked, workers=0, device="cpu", password="secret")
    assert (seen.documents, seen.errors) == (1, ())


def test_what_cannot_be_compared_is_refused_before_anything_is_read(trained, data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "read_documents", None)
    strange = model_of(classes=("bars", "blocks", "poster", "letter"))
    with pytest.raises(ValueError, match="compared with trained, strange lacks text and has also letter, poster"):
        compare({"trained": trained, "strange": strange}, data, device="cpu")
    with pytest.raises(ValueError, match="compared with strange, the data lacks letter, poster and has also text"):
        compare({"strange": strange}, data, device="cpu")
    with pytest.raises(ModelError, match="not a model folder"):
        compare({"trained": trained, "none": tmp_path}, data, device="cpu")
    with pytest.raises(ValueError, match="no models"):
        compare({}, data)


def test_the_same_model_twice_agrees(trained, data):
    seen = compare({"one": trained, "two": trained}, data.subset(range(4)), workers=0, device="cpu")
    one, two = seen.models.values()
    assert one.agreement == two.agreement == 1
    assert one.quality == two.quality


# --- what is written ---


def test_as_json(found):
    values = json.loads(json.dumps(found.as_dict()))
    assert {"documents", "pages", "unreadable", "device", "threads", "classes", "models"} == set(values)
    quality = {"accuracy", "macro_f1", "ece", "aurc", "accuracy_of_surest", "per_class", "confusion"}
    cost = {"agreement", "parameters", "flops_per_page", "documents_per_second", "bytes_on_disk"}
    assert set(values["models"]["other"]) == quality | cost
    assert values["models"]["trained"]["accuracy"] == 1


def test_as_markdown(found):
    lines = found.markdown().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[: 2 + len(MEASURES)]]
    assert rows[0] == ["", "trained", "other"]
    assert [row[0] for row in rows[2:]] == MEASURES
    assert rows[2][1:] == [f"{results.quality.accuracy:.3f}" for results in found.models.values()]
    assert len({len(line) for line in lines[: len(rows)]}) == 1  # aligned
    assert lines[-1].startswith("12 documents, 30 pages.")


def test_as_a_picture(found, tmp_path):
    drawn(found, tmp_path / "new" / "plot.png")
    with Image.open(tmp_path / "new" / "plot.png") as picture:
        pixels = np.array(picture.convert("RGB")).reshape(-1, 3)
        assert picture.width > 1000
    for colour in ((31, 119, 180), (255, 127, 14)):  # a colour a model, legend included
        assert (np.abs(pixels - colour).max(1) < 8).sum() > 1000
