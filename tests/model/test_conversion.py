"""timm's vision transformers as DocViTs: the same logits; what DocViT has no part for is refused by name."""

from __future__ import annotations

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models import vision_transformer
from torch import nn

from docvit.model.docvit import DocViT
from docvit.model.errors import ModelError

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


def images(model, count=2):
    height, width = model.patch_embed.img_size
    return torch.randn(count, model.patch_embed.proj.in_channels, height, width)


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
    torch.testing.assert_close(
        ours(ours.pack([[page] for page in pages], drop_blank=False)), expected, atol=1e-5, rtol=1e-5
    )


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
    assert (config.grid, config.num_classes, config.page_size, config.page_embeddings) == ((14, 14), 3, 224, 64)
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
    with torch.device("meta"):
        theirs = timm.create_model(name, **settings)
    with pytest.raises(ModelError, match=says):
        DocViT.from_timm(theirs)


def test_overrides_reach_the_model_that_from_timm_gives():
    theirs = timm_model(**TINY)
    settings = {
        "num_classes": 3,
        "grid": (4, 5),
        "page_embeddings": 9,
        "classes": ("a", "b", "c"),
        "scopes": "alternate:2",
    }
    model = DocViT.from_timm(theirs, **settings)
    assert model.positions.spatial.shape == (4, 5, 32)
    assert model.positions.page.shape == (9, 32)
    assert model.head.weight.shape == (3, 32)
    assert model.config.classes == ("a", "b", "c")
    assert [block.scope for block in model.blocks] == ["page", "document"]
    assert torch.equal(model.blocks[1].mlp.fc1.weight, theirs.blocks[1].mlp.fc1.weight)


def test_the_weights_of_a_plain_module_are_not_a_timm_model():
    with pytest.raises(ModelError, match="Linear"):
        DocViT.from_timm(nn.Linear(2, 2))
