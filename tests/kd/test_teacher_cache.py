"""The cache of teacher outputs: kept by batch, read back to the bit, refused where it is of others."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import TINY

from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.training.loop import TrainingError
from kd.documents.paired import batch_key
from kd.teacher import MANIFEST, TeacherCache, fingerprint

SETTINGS = {"teachers": ["ab"], "data": {"seed": 0, "view": {"max_pages": 4, "mean": (0.5,)}}}


def outputs():
    return {"0.logits": torch.randn(3, 5), "0.pages": torch.randn(7, 4).to(torch.bfloat16)}


def test_what_is_written_is_read_back_to_the_bit(tmp_path):
    cache, given = TeacherCache(tmp_path / "cache", SETTINGS), outputs()
    assert cache.read("0000-x") is None
    cache.write("0000-x", given)
    found = TeacherCache(tmp_path / "cache", SETTINGS).read("0000-x")
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) and found[name].dtype == given[name].dtype for name in given)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"teachers": ["cd"]}, "teachers 1 was 'ab', not 'cd'"),
        ({"data": {"seed": 1, "view": {"max_pages": 4, "mean": (0.5,)}}}, "data seed was 0, not 1"),
        ({"data": {"seed": 0, "view": {"max_pages": 3, "mean": (0.5,)}}}, "data view max_pages was 4, not 3"),
    ],
)
def test_a_cache_of_other_teachers_or_views_is_refused_with_what_differs(tmp_path, changed, words):
    TeacherCache(tmp_path, SETTINGS)
    with pytest.raises(TrainingError, match=words):
        TeacherCache(tmp_path, SETTINGS | changed)
    assert json.loads((tmp_path / MANIFEST).read_text())["teachers"] == ["ab"]


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match="not empty"):
        TeacherCache(tmp_path, SETTINGS)
    with pytest.raises(TrainingError, match="not a folder"):
        TeacherCache(tmp_path / "notes.txt", SETTINGS)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(TrainingError, match="damaged"):
        TeacherCache(tmp_path, SETTINGS)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_cut_short_counts_as_absent(tmp_path, caplog):
    cache = TeacherCache(tmp_path, SETTINGS)
    cache.write("k", outputs())
    file = tmp_path / "k.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    assert cache.read("k") is None
    assert "damaged" in caplog.text


def test_a_key_knows_epoch_order_and_labels():
    documents = [(0, 5), (1, -1)]
    keys = {
        batch_key(0, documents),
        batch_key(1, documents),
        batch_key(0, documents[::-1]),
        batch_key(0, [(0, 5), (2, -1)]),
        batch_key(0, [(0, 5), (1, 0)]),
        batch_key(0, documents[:1]),
    }
    assert len(keys) == 6
    assert batch_key(1, documents) == batch_key(1, list(documents))


def test_a_fingerprint_is_of_weights_and_settings():
    def of(network):
        return fingerprint(network, network.config.as_dict())

    config = DocViTConfig(**TINY, num_classes=3)
    model = DocViT(config)
    copy = DocViT(config)
    copy.load_state_dict(model.state_dict())
    assert of(copy) == of(model)
    with torch.no_grad():
        copy.head.bias[0] += 1e-6
    assert of(copy) != of(model)
    renamed = DocViT(DocViTConfig(**TINY, num_classes=3, classes=("a", "b", "c")))
    renamed.load_state_dict(model.state_dict())
    assert of(renamed) != of(model)
    assert of(model.bfloat16()) != of(renamed)
