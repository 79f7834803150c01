"""DocViT: one vision transformer over the packed patches of whole documents."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from docvit.documents.patches import PatchSequence, pack
from docvit.errors import SettingError
from docvit.model import pooling
from docvit.model.blocks import Block
from docvit.model.boundaries import BoundaryHead
from docvit.model.config import UNCALIBRATED, DocViTConfig
from docvit.model.conversion import convert_timm
from docvit.model.errors import ModelError
from docvit.model.folder import find_folder, read_folder, write_folder
from docvit.model.heads import create_head
from docvit.model.init import trunc_normal_
from docvit.model.positions import SCHEMES, resample
from docvit.model.stems import STEM_TYPES, Stem
from docvit.model.tokens import Rotation, TokenLayout
from docvit.model.turns import TurnHead
from docvit.model.words import WordEmbedding

States = dict[str, Tensor]

Stemmed = tuple[Tensor, Tensor | None]


class Features(NamedTuple):
    """The result of `forward_features`: normalised page tokens (N, D) and the documents they belong to."""

    pages: Tensor
    document_of_page: Tensor  # (N,)
    page_counts: Tensor  # (B,)
    words: tuple[Tensor, Tensor] | None = None  # (B, R) and (N, R), R is `config.document_words`; see `directly`


class DocViT(nn.Module):
    """A vision transformer whose tokens are the patches of all pages of a document.

    `forward` takes a `PatchSequence` of B documents and gives logits (B, num_classes). Parameter names are timm's.

    Args:
        config: the settings.
        stem: a stem of your own instead of the one that `config.stem` names; save and load know nothing of it.
    """

    def __init__(self, config: DocViTConfig, *, stem: Stem | None = None) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpointing = False
        dim = config.embed_dim
        self.num_classes = config.num_classes
        self.embed_dim = dim
        self.num_features = pooling.width(config.pooling) * dim + config.document_words  # width of a document's feature
        self.patch_embed = STEM_TYPES[config.stem](config.in_chans, config.patch_size, dim) if stem is None else stem
        if not config.reads_patches:
            self.patch_embed.freeze_tokens()
        self.cls_token = nn.Parameter(torch.empty(1, dim))
        self.reg_token = nn.Parameter(torch.empty(config.num_registers, dim)) if config.num_registers else None
        self.positions = SCHEMES[config.positions](config)
        self.words = WordEmbedding(config) if config.words else None
        drops = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()  # also under another default
        scopes = zip(config.block_scopes, drops, strict=True)
        self.blocks = nn.ModuleList(Block(config, scope=scope, drop_path=drop) for scope, drop in scopes)
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head = create_head(self.num_features, config.num_classes)
        self._init_weights()
        # last, so that they change no other weight's draw
        self.boundaries = BoundaryHead(config) if config.boundaries else None
        self.turns = TurnHead(config) if config.turns else None
        for head in (self.boundaries, self.turns):
            if head is not None:
                head.requires_grad_(False)  # trained after everything else

    def _init_weights(self) -> None:
        trunc_normal_(self.cls_token, std=0.02)
        if self.reg_token is not None:
            trunc_normal_(self.reg_token, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)  # as in the ViT paper; a fixed 0.02 starves narrow models
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens of a page before its patches: the class token and the registers."""
        return 1 + self.config.num_registers

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training keeps the tokens between blocks alone and computes the rest again in the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not decay (timm's convention)."""
        positions = {f"positions.{name}" for name, _ in self.positions.named_parameters()}
        words = set() if self.words is None else {"words.embedding.weight", "words.of_documents.weight"}
        return {"cls_token", "reg_token"} | positions | words

    def pack(
        self, documents: Any, *, max_pages: int | None = None, drop_blank: bool = True, words: bool = True
    ) -> PatchSequence:
        """`docvit.pack` with this model's patch size, page size, channels and normalisation.

        Args:
            words: with their words, if the model reads any; False for pixels alone.
        """
        c = self.config
        return pack(
            documents,
            c.patch_size,
            size=c.page_size,
            channels=c.in_chans,
            mean=c.mean,
            std=c.std,
            max_pages=max_pages,
            drop_blank=drop_blank,
            words=words and bool(c.words),
        )

    def forward_stem(self, batch: PatchSequence) -> Stemmed:
        """What the stem makes of the patches (T, D) and of the pages (N, D) of a batch, from their pixels alone."""
        patches = batch.patches.to(self.cls_token.dtype)
        page_lengths = batch.page_bounds.diff().to(patches.device)
        return self.patch_embed.embed(replace(batch, patches=patches), page_lengths)

    def _embed(self, batch: PatchSequence, layout: TokenLayout, stem: Stemmed | None) -> tuple[Tensor, Rotation | None]:
        """Tokens before the first block (T + N * K, D), in page order, and their rotation if the scheme has one."""
        dtype = self.cls_token.dtype  # of the residual stream, also under autocast, where stems give less
        x, of_pages = self.forward_stem(batch) if stem is None else stem
        at_patches, at_pages = self.positions.patches(batch), self.positions.pages(batch)
        words_at_patches, words_at_pages = (None, None) if self.words is None else self.words(batch)
        for added in (at_patches, words_at_patches):
            x = x if added is None else x + added.to(dtype)
        prefix = self.cls_token if self.reg_token is None else torch.cat([self.cls_token, self.reg_token])
        prefix = prefix.expand(batch.num_pages, -1, -1)  # (N, K, D)
        for added in (of_pages, at_pages, words_at_pages):
            prefix = prefix if added is None else prefix + added[:, None]
        tokens = torch.cat([x, prefix.flatten(0, 1).to(dtype)]).index_select(0, layout.order)
        angles = self.positions.angles(batch)
        if angles is None:
            return tokens, None
        patch_angles, page_angles = angles
        prefix_angles = page_angles.repeat_interleave(self.num_prefix_tokens, 0)
        turned = torch.cat([patch_angles, prefix_angles]).index_select(0, layout.order)
        return tokens, Rotation(turned.cos(), turned.sin())

    def _run(
        self, batch: PatchSequence, wanted: Callable[[str], bool] = lambda _: False, stem: Stemmed | None = None
    ) -> tuple[Features, States]:
        """Page tokens, and those states of all tokens that are wanted."""
        layout = TokenLayout.of(batch, self.num_prefix_tokens, self.config.block_scopes)
        x, rotation = self._embed(batch, layout, stem)
        states = {"embed": x} if wanted("embed") else {}
        last = False
        for i, block in enumerate(self.blocks):
            name = f"blocks.{i}"
            last = i == len(self.blocks) - 1 and not wanted(name)  # of the last block only class tokens are read
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, layout, rotation, last=last, use_reentrant=False)
            else:
                x = block(x, layout, rotation, last=last)
            if wanted(name):
                states[name] = x
        if not last:
            x = x.index_select(0, layout.class_tokens)
        words = None if self.words is None else self.words.directly(batch)
        return Features(self.norm(x), layout.document_of_page, layout.page_counts, words), states

    def forward_features(self, batch: PatchSequence, stem: Stemmed | None = None) -> Features:
        """Page tokens after the last block, normalised: `.pages` (N, D).

        `stem` is what `forward_stem` made of the same patches, perhaps with other words or in other documents.
        """
        features, _ = self._run(batch, stem=stem)
        return features

    def forward_head(self, x: Features, pre_logits: bool = False) -> Tensor:
        """Pools page tokens to documents (B, F) and classifies them (B, num_classes); `pre_logits` stops between.

        F is `num_features`: D, 2 D under `mean+std` pooling, 3 D under `mean+std+first`, and `config.document_words`.
        """
        pooled = pooling.pool(x.pages.float(), x.page_counts, self.config.pooling).to(x.pages.dtype)
        if x.words is not None:
            pooled = torch.cat([pooled, x.words[0].to(pooled.dtype)], 1)
        return pooled if pre_logits else self.head(self.head_drop(pooled))

    def forward_pages(self, x: Features) -> Tensor:
        """Logits of each page as a document of its own (N, num_classes); under mean pooling their mean is `forward`'s.

        The other pages count as far as its token has attended to them.
        """
        return self.head(self.alone(x.pages, None if x.words is None else x.words[1]))

    def known(self, logits: Tensor, *, pixels: bool = False) -> Tensor:
        """The probability (B,) that documents with these logits (B, C) are of a class that the model knows; else 1.

        `pixels`: the model has read no words of them.
        """
        known, _ = self.config.calibration(pixels=pixels)
        if not known:
            return torch.ones_like(logits[:, 0])
        slope, offset = known
        return (slope * logits.logsumexp(1) + offset).sigmoid()

    def forward_turns(self, x: Features, batch: PatchSequence) -> Tensor:
        """Quarter turns clockwise (N,) by which each page of a batch lies turned; 0 where the model cannot tell."""
        if self.turns is None:
            return torch.zeros_like(x.document_of_page)
        blank = (batch.page_bounds.diff() == 0).to(x.pages.device)
        return self.turns.decide(self.turns(self.turns.see(x.pages, batch)), x.document_of_page).masked_fill(blank, 0)

    def forward_boundaries(self, x: Features, batch: PatchSequence) -> Tensor:
        """Logits (N,) of each page of a batch that a new document begins there.

        Raises:
            ModelError: the model has no head for it.
        """
        if self.boundaries is None:
            raise ModelError("the model does not tell where documents begin: train one with docvit train --packets 1")
        return self.boundaries(x.pages, self.boundaries.ties(batch, self.words), x.document_of_page)

    def alone(self, pages: Tensor, words: Tensor | None = None) -> Tensor:
        """Features (N, F) of documents that consist of one of these page tokens (N, D) each.

        `words` (N, R) is what their words give directly, if anything; else that part of the feature is zero.
        """
        feature, width = pooling.pool_alone(pages, self.config.pooling), self.config.document_words
        if not width:
            return feature
        direct = feature.new_zeros(len(pages), width) if words is None else words.to(feature.dtype)
        return torch.cat([feature, direct], 1)

    def forward(self, batch: PatchSequence) -> Tensor:
        return self.forward_head(self.forward_features(batch))

    def forward_intermediates(self, batch: PatchSequence, names: Collection[str] | None = None) -> States:
        """States by name, for distillation and explanation: all of them, or `names`.

        `embed`, `blocks.0` .. `blocks.{depth - 1}`: all tokens (T + N * K, D), page by page, a page's prefix tokens
        before its patches; `pages`: normalised page tokens (N, D); `document`: (B, F); `logits`: (B, num_classes).

        Raises:
            ValueError: a name that no state has.
        """
        known = ["embed", *(f"blocks.{i}" for i in range(len(self.blocks))), "pages", "document", "logits"]
        unknown = [name for name in names or () if name not in known]
        if unknown:
            raise SettingError(f"no state {', '.join(map(repr, unknown))}: choose from {', '.join(known)}")

        def wanted(name: str) -> bool:
            return names is None or name in names

        features, states = self._run(batch, wanted)
        document = self.forward_head(features, pre_logits=True)
        states |= {"pages": features.pages, "document": document, "logits": self.head(self.head_drop(document))}
        return {name: state for name, state in states.items() if wanted(name)}

    def reset_classifier(self, num_classes: int, classes: Sequence[str] = ()) -> None:
        """A fresh head for `num_classes` classes (0: none; the model then returns the pooled feature)."""
        self.config = replace(self.config, num_classes=num_classes, classes=tuple(classes), **UNCALIBRATED)
        self.num_classes = num_classes
        self.head = create_head(self.num_features, num_classes).to(self.norm.weight)

    def adapt(self, **overrides: Any) -> DocViT:
        """A copy under other settings, with every weight that still fits; tables are resampled, corners kept.

        A head of another number of classes, other class names or another width of feature begins afresh.

        Raises:
            ModelError: weights that do not fit the settings.
            ValueError: settings that make no model.
        """
        own_classes = self.config.num_classes, self.config.classes
        if overrides.get("num_classes", own_classes[0]) != own_classes[0]:
            overrides = {"classes": (), **overrides}  # the old names are of other classes
        if overrides.get("classes", ()) not in ((), own_classes[1]):
            overrides = {"document_words": 0, **overrides}  # and so is the old table
        if not overrides.get("words", self.config.words):
            overrides = {**overrides, "document_words": 0}
        config = replace(self.config, **overrides)
        result = DocViT(config)
        own = result.state_dict()
        same_head = config.num_classes == self.config.num_classes and config.classes in (self.config.classes, ())
        same_head = same_head and result.num_features == self.num_features
        if not same_head:
            result.config = replace(result.config, **UNCALIBRATED)
        for name, value in self.state_dict().items():
            if name not in own or (name.startswith(("head.", "words.of_documents.")) and not same_head):
                continue
            own[name] = resample(value, own[name].shape) if name.startswith("positions.") else value
        try:
            result.load_state_dict(own)
        except RuntimeError as error:
            raise ModelError(f"the weights do not fit the settings asked for: {error}") from error
        return result

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
        """Writes `config.json` and `model.safetensors` (weights as `dtype`, or as they are) into `folder`."""
        state = self.state_dict().items()
        cast = {name: value.to(dtype) if dtype and value.is_floating_point() else value for name, value in state}
        write_folder(folder, self.config, cast)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str] | None = None) -> DocViT:
        """A DocViT in eval mode, weights in float32.

        Args:
            folder: a folder written by `save_pretrained`, a Hugging Face hub id (`user/model`), or None for the bundled
                model, which needs no network.

        Raises:
            ModelError: neither a model folder nor a hub repository that can be reached, or weights that do not fit.
        """
        path = find_folder(folder)
        try:
            config, state = read_folder(path)
            model = cls(config)
            model.load_state_dict(state)  # into float32, whatever is in the file
        except Exception as error:  # JSON, settings, safetensors and shapes each raise their own kinds
            reason = " ".join(str(error).split("\n\t")[:2])  # torch lists every single weight
            advice = " If another version of docvit wrote it, train it again." if "mismatch" in reason else ""
            raise ModelError(f"{path} cannot be loaded: {reason}{advice}") from error
        return model.eval()

    @classmethod
    def from_timm(cls, model: str | nn.Module, *, pretrained: bool = False, **overrides: Any) -> DocViT:
        """A timm vision transformer as a DocViT: the same logits for a one-page document with all its patches.

        Args:
            model: a name such as `vit_small_patch16_224`, or an instance.
            pretrained: load timm's weights (for a name).
            overrides: settings of `DocViTConfig` to change; another `grid` or `page_embeddings` resamples the
                tables, another `num_classes` gives a fresh head.

        The class token's position goes into the class token. The page embedding of the first page is zero; those of the
        others begin small and random, so that training can tell pages apart. Other `positions` than `spatial+page` and
        `page-independent` cannot use timm's table: all other weights are taken, but the logits are no longer timm's
        until the model is trained.

        Raises:
            ModelError: no such name, weights that cannot be fetched, an architecture without a class token, or with
                parts that DocViT does not have.
        """
        converted = convert_timm(model, pretrained=pretrained)
        result = cls(converted.config)
        own = result.state_dict()
        page = own["positions.page"]
        page[0] = 0
        state = {"positions.page": page, **converted.state}
        other = sorted(own.keys() ^ state.keys()) + [n for n in own if n in state and own[n].shape != state[n].shape]
        if other:
            raise ModelError(f"{converted.kind} and DocViT differ in their parts: {', '.join(other[:5])}")
        result.load_state_dict(state)
        return result.adapt(**overrides).train(converted.training)
