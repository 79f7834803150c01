"""Weights in and out: timm's ViTs give timm's numbers; what is saved is what is loaded; the rest is one clear error."""

from __future__ import annotations

import json

import huggingface_hub
import pytest
import timm
import torch
import torch.nn.functional as F
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from timm.models import vision_transformer
from torch import nn

from docvit.documents.patches import pack
from docvit.model import folder as folders
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.pretrained import CONFIG, WEIGHTS, ModelError, adapt, load_pretrained

SMALL = {"depth": 2, "num_classes": 7}
TINY = {"embed_dim": 32, "num_heads": 2, "depth": 2, "img_size": 32, "num_classes": 5}


def timm_model(name="vit_tiny_patch16_224", **settings):
    """A timm ViT with random weights, none of them trivial: no zero biases, no unit norms, no tiny gammas."""
    torch.manual_seed(0)
    model = timm.create_model(name, **settings)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("gamma"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.02 if parameter.ndim == 2 else 0.2)
    return model.eval()


def docvit_model(**settings):
    torch.manual_seed(0)
    shape = {"embed_dim": 16, "num_heads": 2, "depth": 3, "patch_size": 4, "num_classes": 5, "grid": (3, 4)}
    model = DocViT(DocViTConfig(**{**shape, "max_pages": 6, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def images(model, count=2):
    height, width = model.patch_embed.img_size
    return torch.randn(count, model.patch_embed.proj.in_channels, height, width)


def one_page_documents(model, pages):
    """The logits of every page as a document of its own."""
    size, channels = model.config.patch_size, model.config.in_chans
    return model(pack([[page] for page in pages], size, channels=channels, drop_blank=False))


def states_equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# timm


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_tiny_patch16_224", {"num_classes": 7}),  # at full depth
        ("vit_small_patch16_224", SMALL),
        ("vit_base_patch16_224", SMALL),
        ("deit_tiny_patch16_224", SMALL),
        ("deit3_small_patch16_224", SMALL),  # positions of the patches alone, LayerScale
        ("vit_small_patch14_dinov2", {**SMALL, "img_size": 112}),  # LayerScale
        ("vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 112}),  # and registers
        ("vit_tiny_patch16_224", {**SMALL, "reg_tokens": 3, "img_size": 64}),  # registers with positions of their own
        ("vit_tiny_patch16_224", {**SMALL, "img_size": (48, 160)}),
        ("vit_tiny_patch16_224", {**SMALL, "img_size": 64, "in_chans": 1}),
        ("vit_tiny_patch16_224", {**SMALL, "img_size": 64, "qkv_bias": False, "mlp_ratio": 2.66}),
        ("vit_tiny_patch16_224", {**SMALL, "img_size": 64, "num_classes": 0}),
        ("vit_tiny_patch16_224", {**SMALL, "img_size": 64, "dynamic_img_size": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(f"{k}={v}" for k, v in value.items()),
)
@torch.no_grad()
def test_a_page_alone_gives_timms_logits(name, settings):
    theirs = timm_model(name, **settings)
    ours, pages = DocViT.from_timm(theirs), images(theirs)
    expected = theirs(pages)
    assert expected.std() > 0.1
    torch.testing.assert_close(one_page_documents(ours, pages), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pages_each_for_themselves_are_timms_features_averaged():
    theirs = timm_model(**TINY)
    ours, pages = DocViT.from_timm(theirs, scopes="page", positions="page-independent"), images(theirs, 3)
    logits = ours(ours.pack([list(pages)], drop_blank=False))
    torch.testing.assert_close(logits, theirs(pages).mean(0, keepdim=True), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_first_page_has_no_page_embedding_and_the_others_have_one_each():
    page = DocViT.from_timm(timm_model(**TINY)).positions.page
    assert (page[0] == 0).all()
    assert (page[1:].std(1) > 0.01).all()
    assert page.std() < 0.05


@pytest.mark.parametrize("training", [True, False])
def test_a_conversion_leaves_the_source_alone_and_takes_its_mode(training):
    theirs = timm_model(**TINY).train(training)
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    ours = DocViT.from_timm(theirs)
    assert ours.training == training
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())


def test_a_name_is_as_good_as_an_instance():
    config = DocViT.from_timm("vit_tiny_patch16_224", num_classes=3).config
    assert (config.embed_dim, config.depth, config.num_heads, config.patch_size) == (192, 12, 3, 16)
    assert (config.grid, config.num_classes, config.page_size, config.max_pages) == ((14, 14), 3, 224, 64)
    assert config.mean == config.std == (0.5, 0.5, 0.5)


def test_a_name_that_timm_does_not_know_is_refused():
    with pytest.raises(ModelError, match="'vit_enormous'"):
        DocViT.from_timm("vit_enormous")


def test_weights_that_timm_cannot_fetch_are_refused(monkeypatch):
    def fail(*_, **__):
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ModelError, match="not in the cache"):
        DocViT.from_timm("vit_tiny_patch16_224", pretrained=True)


def test_normalisation_fits_the_channels():
    model = DocViT.from_timm(timm_model("deit_tiny_patch16_224", depth=1, in_chans=1, num_classes=2))
    batch = model.pack([[torch.randint(0, 256, (32, 32), dtype=torch.uint8).numpy()]])
    assert model(batch).shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("deit_tiny_distilled_patch16_224", {"depth": 1}, "distillation token"),
        ("vit_medium_patch16_gap_240", {"depth": 1}, "class token"),
        ("vit_tiny_patch16_224", {"depth": 1, "global_pool": "avg"}, "class token"),
        ("vit_tiny_patch16_224", {"depth": 1, "class_token": False, "global_pool": "avg"}, "class token"),
        ("vit_base_patch16_siglip_224", {"depth": 1}, "class token"),
        ("swin_tiny_patch4_window7_224", {}, "SwinTransformer"),
        ("resnet18", {}, "ResNet"),
        ("eva02_tiny_patch14_224", {"depth": 1}, "Eva"),
        ("vit_tiny_r_s16_p8_224", {"depth": 1}, "HybridEmbed"),
        ("vit_base_patch16_clip_224", {"depth": 1}, "norm_pre"),
        ("vit_tiny_patch16_224", {"depth": 1, "qk_norm": True}, "q_norm"),
        ("vit_tiny_patch16_224", {"depth": 1, "pos_embed": "none"}, "positions"),
        ("vit_tiny_patch16_224", {"depth": 1, "final_norm": False}, "norm"),
        ("vit_tiny_patch16_224", {"depth": 1, "fc_norm": True}, "norm"),
        ("vit_tiny_patch16_224", {"depth": 1, "act_layer": "relu"}, "ReLU"),
        ("vit_tiny_patch16_224", {"depth": 1, "act_layer": "quick_gelu"}, "QuickGELU"),
        ("vit_tiny_patch16_224", {"depth": 1, "block_fn": vision_transformer.ResPostBlock}, "ResPostBlock"),
        ("vit_tiny_patch16_224", {"depth": 1, "block_fn": vision_transformer.ParallelScalingBlock}, "ParallelScaling"),
        ("vit_tiny_patch16_224", {"depth": 1, "norm_layer": "rmsnorm"}, "norm"),
        ("vit_tiny_patch16_224", {"depth": 1, "patch_size": (16, 8)}, "square"),
        ("vit_tiny_patch16_224", {"depth": 1, "in_chans": 4}, "in_chans"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_what_docvit_has_no_part_for_is_refused(name, settings, says):
    with pytest.raises(ModelError, match=says):
        DocViT.from_timm(timm.create_model(name, **settings))


# Other settings


def test_another_grid_and_page_table_are_resampled_with_corners_kept():
    model = docvit_model()
    changed = adapt(model, grid=(6, 9), max_pages=11)
    table, page = model.positions.spatial.detach(), model.positions.page.detach()
    expected = F.interpolate(table.permute(2, 0, 1)[None], (6, 9), mode="bilinear", align_corners=True)[0]
    torch.testing.assert_close(changed.positions.spatial.detach(), expected.permute(1, 2, 0), atol=1e-6, rtol=1e-5)
    expected = F.interpolate(page.T[None], 11, mode="linear", align_corners=True)[0].T
    torch.testing.assert_close(changed.positions.page.detach(), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(changed.positions.spatial[::5, ::8], model.positions.spatial[::2, ::3])
    assert torch.equal(changed.positions.page[[0, -1]], model.positions.page[[0, -1]])
    assert changed.positions.grid == (6, 9)
    assert changed.positions.max_pages == 11


@torch.no_grad()
def test_another_grid_says_the_same_of_a_page_that_reads_the_table_between_its_cells():
    model, page = docvit_model(grid=(3, 3)), torch.randn(3, 20, 20)
    finer = adapt(model, grid=(5, 5))
    torch.testing.assert_close(one_page_documents(finer, [page]), one_page_documents(model, [page]))


def test_overrides_reach_the_model_that_from_timm_gives():
    theirs = timm_model(**TINY)
    settings = {"num_classes": 3, "grid": (4, 5), "max_pages": 9, "classes": ("a", "b", "c"), "scopes": "alternate:2"}
    model = DocViT.from_timm(theirs, **settings)
    assert model.positions.spatial.shape == (4, 5, 32)
    assert model.positions.page.shape == (9, 32)
    assert model.head.weight.shape == (3, 32)
    assert model.config.classes == ("a", "b", "c")
    assert [block.scope for block in model.blocks] == ["page", "document"]
    assert torch.equal(model.blocks[1].mlp.fc1.weight, theirs.blocks[1].mlp.fc1.weight)


def test_another_number_of_classes_gets_a_fresh_head_and_keeps_the_rest():
    model = docvit_model(classes=tuple("abcde"))
    changed = adapt(model, num_classes=3)
    assert changed.config.classes == ()
    assert changed.head.weight.shape == (3, 16)
    assert (changed.head.bias == 0).all()
    assert torch.equal(changed.blocks[2].attn.qkv.weight, model.blocks[2].attn.qkv.weight)
    other_names = adapt(model, classes=tuple("vwxyz"))
    assert not torch.equal(other_names.head.weight, model.head.weight)
    assert torch.equal(adapt(model, pooling="max").head.weight, model.head.weight)


def test_an_adapted_model_shares_nothing_with_the_first():
    model = docvit_model()
    copy = adapt(model)
    assert states_equal(copy, model)
    with torch.no_grad():
        copy.cls_token.zero_()
        copy.positions.page.zero_()
    assert (model.cls_token != 0).all()
    assert (model.positions.page != 0).any()


def test_a_scheme_without_page_embedding_drops_its_table_and_keeps_the_spatial_one():
    model = docvit_model()
    changed = adapt(model, positions="page-independent")
    assert "positions.page" not in changed.state_dict()
    assert torch.equal(changed.positions.spatial, model.positions.spatial)


@pytest.mark.parametrize("settings", [{"embed_dim": 32}, {"patch_size": 8}, {"num_registers": 2}, {"mlp_ratio": 2.0}])
def test_weights_that_do_not_fit_the_settings_are_refused(settings):
    with pytest.raises(ModelError, match="do not fit"):
        adapt(docvit_model(num_registers=1), **settings)


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
    assert torch.equal(one_page_documents(loaded, [page]), one_page_documents(model.eval(), [page]))
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
    loaded = load_pretrained(tmp_path / "half")
    for name, value in loaded.state_dict().items():
        assert value.dtype == model.state_dict()[name].dtype
        torch.testing.assert_close(value, model.state_dict()[name], atol=tolerance, rtol=tolerance)
    assert (tmp_path / "half" / WEIGHTS).stat().st_size < 0.7 * (tmp_path / "full" / WEIGHTS).stat().st_size
    assert model.cls_token.dtype == torch.float32


def test_saving_again_replaces_what_was_there(tmp_path):
    docvit_model().save_pretrained(tmp_path)
    second = docvit_model(depth=1, num_classes=2)
    second.save_pretrained(tmp_path)
    assert states_equal(load_pretrained(tmp_path), second)


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
        load_pretrained(tmp_path)
    assert str(tmp_path) in str(raised.value)


# The hub and the bundled model


def test_a_hub_id_is_fetched_and_loaded(tmp_path, monkeypatch):
    docvit_model().save_pretrained(tmp_path)
    asked = []

    def fetch(name, **options):
        asked.append((name, options))
        return tmp_path

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert load_pretrained("someone/papers").config == docvit_model().config
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
        load_pretrained("someone/papers")


@pytest.mark.parametrize("path", ["no/such/folder/anywhere", "./missing", "with space", ""])
def test_a_folder_that_is_not_there_is_a_clear_error(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError):
        load_pretrained(path)


def test_an_installation_without_the_bundled_model_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "BUNDLED", tmp_path / "weights")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("there is nothing to fetch"))
    with pytest.raises(ModelError, match="weights"):
        load_pretrained()


def test_the_weights_of_a_plain_module_are_not_a_timm_model():
    with pytest.raises(ModelError, match="Linear"):
        DocViT.from_timm(nn.Linear(2, 2))
