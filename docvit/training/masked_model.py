"""The network of masked pre-training: an encoder, a light decoder, and the targets (MAE, arXiv 2111.06377)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docvit.data.dataset import DocumentBatch
from docvit.documents.patches import PatchSequence
from docvit.model.blocks import Block
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.init import trunc_normal_
from docvit.model.positions import SpatialPage
from docvit.model.stems import InkStem
from docvit.model.tokens import TokenLayout, token_indices

DECODER_DEPTH = 2

TARGETS = ("pixels", "ink")


class Target(nn.Module):
    """Regression targets of unit variance for masked patches: (T, C * P * P) -> (T, size).

    `pixels`: the patch's pixels, normalised over the patch, as in MAE. `ink`: the fixed features of the ink stem, each
    normalised over the given patches, as MaskFeat (arXiv 2112.09133) predicts histograms of oriented gradients; P must
    be a multiple of 16.
    """

    def __init__(self, name: str, config: DocViTConfig) -> None:
        super().__init__()
        if name == "ink":
            replace(config, stem="ink")  # checks the patch size as the stem itself does
        self.ink = InkStem(config.in_chans, config.patch_size, 1).requires_grad_(False) if name == "ink" else None
        self.size = self.ink.norm.num_features if self.ink else config.in_chans * config.patch_size**2

    def forward(self, patches: Tensor) -> Tensor:
        return _standardised(patches, 1) if self.ink is None else _standardised(self.ink.describe(patches), 0)


class WordTarget(nn.Module):
    """Regression targets for the words printed on masked patches: hashed n-grams (G,) to (S, size), one row per patch.

    The bag of n-grams of each patch, through a fixed random projection, at unit length, and standardised over the
    patches: the target is which words there are, not how many. The projection is the same in every run.

    Args:
        buckets: number of hash buckets.
    """

    projection: Tensor

    def __init__(self, buckets: int, size: int = 32) -> None:
        super().__init__()
        self.size = size
        drawn = torch.randn(buckets, size, generator=torch.Generator().manual_seed(0))
        self.register_buffer("projection", drawn, persistent=False)

    def forward(self, words: Tensor, counts: Tensor) -> Tensor:
        """`counts` (S,): n-grams of each patch, at least one."""
        patch = torch.repeat_interleave(counts.to(words.device))
        bags = self.projection.new_zeros(len(counts), self.size)
        bags.index_add_(0, patch, self.projection[words % len(self.projection)])
        return _standardised(F.normalize(bags, dim=1), 0)


def _standardised(x: Tensor, dim: int) -> Tensor:
    centred = x - x.mean(dim, keepdim=True)
    return centred / (centred.square().mean(dim, keepdim=True) + 1e-6).sqrt()


class Decoder(nn.Module):
    """A few narrow blocks over all tokens of a document: the encoder's output, and a mask token per masked patch.

    Every patch gets its address, page included, whatever the encoder's positional scheme is: masked patches differ in
    nothing else. Blocks see the whole document, so that other pages help.
    """

    def __init__(self, config: DocViTConfig, outputs: int) -> None:
        super().__init__()
        heads = config.num_heads
        dim = heads * max(1, config.embed_dim // heads // 2)
        narrow = replace(config, embed_dim=dim, depth=DECODER_DEPTH, scopes="document", drop_rate=0.0)
        self.num_prefix = 1 + config.num_registers
        self.embed = nn.Linear(config.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(dim))
        self.positions = SpatialPage(narrow)
        self.blocks = nn.ModuleList(Block(narrow, scope="document") for _ in range(DECODER_DEPTH))
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.predict = nn.Linear(dim, outputs)
        trunc_normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        trunc_normal_(self.predict.weight, std=0.02)  # predictions start near 0: a loss of 1, not 2

    def forward(self, kept: Tensor, batch: PatchSequence, masked: Tensor) -> Tensor:
        """Predictions (M, outputs) for the masked patches.

        Args:
            kept: the encoder's tokens (T - M + N * K, D), page by page.
            batch: all T patches, of which only the addresses are read.
            masked: (T,) boolean, M of them true; on the CPU.
        """
        layout, patches = TokenLayout.of(batch, self.num_prefix, ("document",)), token_indices(batch, self.num_prefix)
        hidden = patches[masked]
        visible = torch.ones(len(layout.order), dtype=torch.bool).index_fill(0, hidden, False).nonzero()[:, 0]
        patches, hidden, visible = (index.to(kept.device) for index in (patches, hidden, visible))
        x = self.embed(kept).to(self.mask_token.dtype)  # of the residual stream, also under autocast
        x = self.mask_token.expand(len(layout.order), -1).index_copy(0, visible, x)
        x = x.index_add(0, patches, self.positions.patches(batch).to(x.dtype))
        x = x.index_add(0, layout.class_tokens, self.positions.pages(batch).to(x.dtype))
        for block in self.blocks:
            x = block(x, layout)
        return self.predict(self.norm(x.index_select(0, hidden)))


class MaskedDocViT(nn.Module):
    """An encoder, its decoder and the targets of pre-training; for an encoder that reads words, the words, too.

    Args:
        encoder: the DocViT to pre-train.
        target: a name in `TARGETS`.

    Raises:
        ValueError: the encoder has no blocks.
    """

    def __init__(self, encoder: DocViT, target: str) -> None:
        super().__init__()
        if not encoder.blocks:
            raise ValueError("a model without blocks has nothing to pre-train")
        self.encoder = encoder
        self.target = Target(target, encoder.config)
        self.word_target = WordTarget(encoder.config.words) if encoder.config.words else None
        size = self.target.size + (self.word_target.size if self.word_target else 0)
        self.decoder = Decoder(encoder.config, size)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        tables = {name for name, _ in self.named_parameters() if name.startswith("decoder.positions.")}
        return tables | {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def forward(self, batch: PatchSequence, masked: Tensor) -> Tensor:
        """Predictions (M, S) for the M patches where `masked` (T,) is true, in the order of the targets.

        Neither these patches nor their words reach the encoder.
        """
        states = self.encoder.forward_intermediates(batch.select(~masked))
        tokens = self.encoder.norm(states[f"blocks.{self.encoder.config.depth - 1}"])
        predictions: Tensor = self.decoder(tokens, batch, masked)
        return predictions


def draw_mask(count: int, share: float) -> Tensor:
    """(count,) boolean on the CPU: a random `share` is true, at least one; drawn from torch's global generator."""
    return torch.randperm(count) < max(1, round(share * count))


def reconstruction_loss(
    share: float, word_loss: float = 1.0
) -> Callable[[MaskedDocViT, DocumentBatch, float], Mapping[str, Tensor]]:
    """Mean squared error on the masked patches; targets have unit variance, so that predicting their mean costs 1.

    A model that reads words adds `word_loss` times that of the words, over those masked patches that have any.
    """

    def loss(model: MaskedDocViT, batch: DocumentBatch, progress: float) -> Mapping[str, Tensor]:
        sequence = batch.sequence
        masked = draw_mask(sequence.num_patches, share)
        hidden = sequence.select(masked)
        counts = hidden.word_bounds.diff()
        with torch.no_grad(), torch.autocast(sequence.patches.device.type, enabled=False):
            target = model.target(hidden.patches.float())
            words = model.word_target(hidden.words, counts[counts > 0]) if model.word_target else None
        predictions = model(sequence, masked).float()
        patch_loss = _mean_square(predictions[:, : model.target.size] - target)
        if words is None:
            return {"loss": patch_loss}
        of_words = _mean_square(predictions[(counts > 0).to(predictions.device), model.target.size :] - words)
        return {"loss": patch_loss + word_loss * of_words, "patch_loss": patch_loss, "word_loss": of_words}

    return loss


def _mean_square(errors: Tensor) -> Tensor:
    return errors.square().sum() / max(1, errors.numel())  # a batch of blank pages has no patches
