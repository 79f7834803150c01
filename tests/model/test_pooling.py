"""Pooling: document by document against torch's own reductions."""

from __future__ import annotations

import pytest
import torch
from reference import close

from docvit.model.config import POOLINGS, DocViTConfig
from docvit.model.docvit import DocViT, Features
from docvit.model.pooling import pool, pool_alone, width

STATISTICS = {
    "mean": lambda pages: pages.mean(0),
    "max": lambda pages: pages.amax(0),
    "std": lambda pages: pages.std(0, unbiased=False).clamp(min=1e-3),
    "first": lambda pages: pages[0],
}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_feature_is_its_statistics_side_by_side(pooling):
    torch.manual_seed(0)
    tokens, counts = torch.randn(6, 8), [3, 1, 2]
    names = pooling.split("+")
    expected = [torch.cat([STATISTICS[name](pages) for name in names]) for pages in tokens.split(counts)]
    found = pool(tokens, torch.tensor(counts), pooling)
    close(found, torch.stack(expected))
    assert found.shape[1] == width(pooling) * 8
    assert torch.equal(pool_alone(tokens, pooling), pool(tokens, torch.ones(6, dtype=torch.long), pooling))


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_a_model_pools_as_its_settings_say(pooling):
    torch.manual_seed(0)
    model = DocViT(DocViTConfig(embed_dim=8, depth=1, num_heads=2, num_classes=3, pooling=pooling))
    features = Features(torch.randn(5, 8), torch.tensor([0, 0, 0, 1, 2]), torch.tensor([3, 1, 1]))
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.equal(pooled, pool(features.pages, features.page_counts, pooling))
    close(model.forward_head(features)[1:], model.forward_pages(features)[3:])  # documents of one page
    assert model.forward_head(features).shape == (3, 3)
    model.reset_classifier(4)
    assert model.forward_head(features).shape == (3, 4)
