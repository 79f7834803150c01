"""Models under other settings, and in folders: what is saved is what is loaded, all else is one clear error."""

from __future__ import annotations

import json

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from docvit.model import folder as folders
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.errors import ModelError
from docvit.model.folder import CONFIG, WEIGHTS


def docvit_model(**settings):
    torch.manual_seed(0)
    shape = {"embed_dim": 16, "num_heads": 2, "depth": 3, "patch_size": 4, "num_classes": 5, "grid": (3, 4)}
    model = DocViT(DocViTConfig(**{**shape, "page_embeddings": 6, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def logits(model, page):
    """Of a document of this page alone."""
    return model(model.pack([[page]], drop_blank=False))


def states_equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_another_grid_and_page_table_are_resampled_with_corners_kept():
    model = docvit_model()
    changed = model.adapt(grid=(6, 9), page_embeddings=11)
    table, page = model.positions.spatial.detach(), model.positions.page.detach()
    expected = F.interpolate(table.permute(2, 0, 1)[None], (6, 9), mode="bilinear", align_corners=True)[0]
    torch.testing.assert_close(changed.positions.spatial.detach(), expected.permute(1, 2, 0), atol=1e-6, rtol=1e-5)
    expected = F.interpolate(page.T[None], 11, mode="linear", align_corners=True)[0].T
    torch.testing.assert_close(changed.positions.page.detach(), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(changed.positions.spatial[::5, ::8], model.positions.spatial[::2, ::3])
    assert torch.equal(changed.positions.page[[0, -1]], model.positions.page[[0, -1]])
    assert changed.positions.grid == (6, 9)
    assert len(changed.positions.page) == 11


@torch.no_grad()
def test_another_grid_says_the_same_of_a_page_that_reads_the_table_between_its_cells():
    model, page = docvit_model(grid=(3, 3)), torch.randn(3, 20, 20)
    finer = model.adapt(grid=(5, 5))
    torch.testing.assert_close(logits(finer, page), logits(model, page))


def test_another_number_of_classes_gets_a_fresh_head_and_keeps_the_rest():
    model = docvit_model(classes=tuple("abcde"))
    changed = model.adapt(num_classes=3)
    assert changed.config.classes == ()
    assert changed.head.weight.shape == (3, 16)
    assert (changed.head.bias == 0).all()
    assert torch.equal(changed.blocks[2].attn.qkv.weight, model.blocks[2].attn.qkv.weight)
    other_names = model.adapt(classes=tuple("vwxyz"))
    assert not torch.equal(other_names.head.weight, model.head.weight)
    assert torch.equal(model.adapt(pooling="max").head.weight, model.head.weight)


def test_an_adapted_model_shares_nothing_with_the_first():
    model = docvit_model()
    copy = model.adapt()
    assert states_equal(copy, model)
    with torch.no_grad():
        copy.cls_token.zero_()
        copy.positions.page.zero_()
    assert (model.cls_token != 0).all()
    assert (model.positions.page != 0).any()


def test_a_scheme_without_page_embedding_drops_its_table_and_keeps_the_spatial_one():
    model = docvit_model()
    changed = model.adapt(positions="page-independent")
    assert "positions.page" not in changed.state_dict()
    assert torch.equal(changed.positions.spatial, model.positions.spatial)


@pytest.mark.parametrize("settings", [{"embed_dim": 32}, {"patch_size": 8}, {"num_registers": 2}, {"mlp_ratio": 2.0}])
def test_weights_that_do_not_fit_the_settings_are_refused(settings):
    with pytest.raises(ModelError, match="do not fit"):
        docvit_model(num_registers=1).adapt(**settings)


# Folders


@pytest.mark.parametrize("settings", [{}, {"num_registers": 2, "init_values": 0.1, "stem": "conv", "in_chans": 1}])
@torch.no_grad()
def test_what_is_saved_is_what_is_loaded(tmp_path, settings):
    classes = ("α", "b", "c", "d", "e")
    model = docvit_model(classes=classes, scopes="alternate:2", page_size=32, mean=(0.9,), **settings).train()
    model.save_pretrained(tmp_path / "new" / "folder")
    loaded = DocViT.from_pretrained(str(tmp_path / "new" / "folder"))
    assert loaded.config == model.config
    assert states_equal(loaded, model)
    assert not loaded.training
    page = torch.randn(loaded.config.in_chans, 12, 16)
    assert torch.equal(logits(loaded, page), logits(model.eval(), page))
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == [CONFIG, WEIGHTS]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)], ids=str)
@pytest.mark.parametrize("settings", [{}, {"stem": "ink", "patch_size": 16}], ids=["linear", "ink"])
def test_half_precision_on_disk_is_float32_when_loaded(tmp_path, dtype, tolerance, settings):
    model = docvit_model(**settings)
    for value in model.buffers():
        if not value.is_floating_point():
            value.fill_(100_001)  # counts stay exact
    model.save_pretrained(tmp_path / "half", dtype=dtype)
    model.save_pretrained(tmp_path / "full")
    loaded = DocViT.from_pretrained(tmp_path / "half")
    for name, value in loaded.state_dict().items():
        assert value.dtype == model.state_dict()[name].dtype
        torch.testing.assert_close(value, model.state_dict()[name], atol=tolerance, rtol=tolerance)
    assert (tmp_path / "half" / WEIGHTS).stat().st_size < 0.7 * (tmp_path / "full" / WEIGHTS).stat().st_size
    assert model.cls_token.dtype == torch.float32


def test_saving_again_replaces_what_was_there(tmp_path):
    docvit_model().save_pretrained(tmp_path)
    second = docvit_model(depth=1, num_classes=2)
    second.save_pretrained(tmp_path)
    assert states_equal(DocViT.from_pretrained(tmp_path), second)


def damage(folder, name):
    config, tensors = folder / CONFIG, folder / WEIGHTS
    settings = json.loads(config.read_text())
    if name == "no config":
        config.unlink()
    elif name == "no weights":
        tensors.unlink()
    elif name == "neither":
        config.unlink(), tensors.unlink()
    elif name == "config cut off":
        config.write_text(config.read_text()[:50])
    elif name == "config of another kind":
        config.write_text("[1, 2]")
    elif name == "unknown setting":
        config.write_text(json.dumps({**settings, "frobnicate": 1}))
    elif name == "impossible setting":
        config.write_text(json.dumps({**settings, "num_heads": 7}))
    elif name == "weights cut off":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif name == "weights of another kind":
        tensors.write_bytes(b"not a tensor in sight")
    elif name == "other shapes":
        config.write_text(json.dumps({**settings, "embed_dim": 32}))
    elif name == "tensors missing":
        config.write_text(json.dumps({**settings, "depth": 4}))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no config", "config.json missing"),
        ("no weights", "model.safetensors missing"),
        ("neither", "config.json and model.safetensors missing"),
        ("config cut off", "cannot be loaded"),
        ("config of another kind", "cannot be loaded"),
        ("unknown setting", "frobnicate"),
        ("impossible setting", "num_heads"),
        ("weights cut off", "cannot be loaded"),
        ("weights of another kind", "cannot be loaded"),
        ("other shapes", "cannot be loaded: .* train it again"),
        ("tensors missing", "blocks.3"),
    ],
)
def test_damaged_folders_are_one_clear_error(tmp_path, name, says):
    docvit_model().save_pretrained(tmp_path)
    damage(tmp_path, name)
    with pytest.raises(ModelError, match=says) as raised:
        DocViT.from_pretrained(tmp_path)
    assert str(tmp_path) in str(raised.value)


# The hub and the bundled model


def test_a_hub_id_is_fetched_and_loaded(tmp_path, monkeypatch):
    docvit_model().save_pretrained(tmp_path)
    asked = []

    def fetch(name, **options):
        asked.append((name, options))
        return tmp_path

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert DocViT.from_pretrained("someone/papers").config == docvit_model().config
    assert asked == [("someone/papers", {"allow_patterns": [CONFIG, WEIGHTS]})]


class Answer:
    """As much of an HTTP response as the hub's errors look at."""

    def __init__(self):
        self.headers, self.request, self.status_code = {}, None, 404


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no network"),
        LocalEntryNotFoundError("not in the cache"),
        HFValidationError("no such form of a name"),
        RepositoryNotFoundError("nobody has that", response=Answer()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_hub_that_cannot_be_reached_is_a_clear_error(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match="'someone/papers' is neither a model folder nor a hub model"):
        DocViT.from_pretrained("someone/papers")


@pytest.mark.parametrize("path", ["no/such/folder/anywhere", "./missing", "with space", ""])
def test_a_folder_that_is_not_there_is_a_clear_error(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError):
        DocViT.from_pretrained(path)


def test_an_installation_without_the_bundled_model_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "BUNDLED", tmp_path / "weights")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("there is nothing to fetch"))
    with pytest.raises(ModelError, match="weights"):
        DocViT.from_pretrained()


def test_a_model_saved_under_the_earlier_name_of_a_setting_is_read(tmp_path):
    model = docvit_model()
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / CONFIG).read_text())
    values["max_pages"] = values.pop("page_embeddings")
    (tmp_path / CONFIG).write_text(json.dumps(values))
    loaded = DocViT.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert states_equal(loaded, model)
