"""The ink stem's features of pages, computed once for many models to train on: nothing in them is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from docvit import DocViT, DocViTConfig, PatchSequence
from docvit.data.dataset import DocumentBatch, DocumentDataset
from docvit.data.labels import LabelledDocuments
from docvit.data.sampling import Key, balance, put_after
from docvit.documents.pages import PageStack
from docvit.model.stems import InkStem
from docvit.training.batches import shuffled, training_view
from docvit.training.distributed import Process
from docvit.training.ema import EMATeacher
from docvit.training.loop import Record, fit
from docvit.training.recipe import Recipe, build_model
from docvit.training.rendering import render_all
from docvit.training.supervised import classification_loss
from kd.config import DistillConfig
from kd.documents.outputs import document_outputs
from kd.documents.paired import PairedBatches, PairedDataset
from kd.objective import DistillationLoss
from kd.teacher import Teacher


@dataclass(frozen=True)
class MeasuredSequence(PatchSequence):
    """A packed batch of the ink stem's features: `patches` (T, features) instead of pixels.

    Attributes:
        statistics: (N, statistics) page statistics, for the class tokens.
    """

    statistics: Tensor = field(kw_only=True)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PatchSequence:
        moved = super().to(device, non_blocking)
        return replace(moved, statistics=self.statistics.to(device, non_blocking=non_blocking))  # type: ignore[call-arg]

    def pin_memory(self) -> PatchSequence:
        return replace(super().pin_memory(), statistics=self.statistics.pin_memory())  # type: ignore[call-arg]


class MeasuredStem(InkStem):
    """The ink stem, with the same parameters, for a `MeasuredSequence`."""

    def observe(self, batch: PatchSequence, page_lengths: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(batch, MeasuredSequence)
        return batch.patches, batch.statistics


class Page(NamedTuple):
    """The features of one page's patches that are not blank."""

    patches: Tensor  # (T, features)
    statistics: Tensor  # (statistics,)
    row: Tensor  # (T,)
    col: Tensor  # (T,)
    grid: Tensor  # (2,)
    index: Tensor  # ()


Kept = Mapping[str, Tensor]  # the features of one document, as they are written to disk


@torch.inference_mode()
def measure(model: DocViT, document: PatchSequence) -> Kept:
    """The features of a batch of one document by the stem of `model`, in half precision."""
    stem = model.patch_embed
    assert isinstance(stem, InkStem)
    features, statistics = stem.observe(document, document.page_bounds.diff())
    addresses = {name: getattr(document, name) for name in ("row", "col", "grids", "page_index", "page_bounds")}
    return {"patches": features.half(), "statistics": statistics, **addresses}


def pages_of(document: Kept) -> list[Page]:
    """The features that `measure` gave, page by page."""
    counts = document["page_bounds"].diff().tolist()
    patches, row, col = (document[name].split(counts) for name in ("patches", "row", "col"))
    rows = zip(patches, document["statistics"], row, col, document["grids"], document["page_index"], strict=True)
    return [Page(*row) for row in rows]


def put_together(documents: Sequence[Sequence[Page]]) -> MeasuredSequence:
    """A packed batch of these documents."""
    pages = [page for document in documents for page in document]
    counts = torch.tensor([len(page.row) for page in pages])
    index = torch.stack([page.index for page in pages])
    return MeasuredSequence(
        patches=torch.cat([page.patches for page in pages]),
        statistics=torch.stack([page.statistics for page in pages]),
        page=index.repeat_interleave(counts),
        row=torch.cat([page.row for page in pages]),
        col=torch.cat([page.col for page in pages]),
        grids=torch.stack([page.grid for page in pages]),
        page_index=index,
        page_bounds=F.pad(counts.cumsum(0), (1, 0)),
        document_bounds=F.pad(torch.tensor([len(document) for document in documents]).cumsum(0), (1, 0)),
    )


CPU = Process(torch.device("cpu"))


def files_of(data: LabelledDocuments, config: DocViTConfig) -> list[Path]:
    """The rendered pages of all documents."""
    files = render_all(data.paths, config.rendering, CPU, workers=1)
    return [files[path] for path in data.paths]


class ToMeasure(Dataset[Kept]):
    """The features of the views of the first `epochs` of a training, each computed when it is asked for."""

    def __init__(self, data: LabelledDocuments, recipe: Recipe, epochs: int) -> None:
        self.model = build_model(recipe, data.classes)
        view = replace(training_view(self.model.config, recipe), mix_pages=0.0)  # they are put together when read
        self.seen = DocumentDataset(files_of(data, self.model.config), data.labels, view)
        self.keys: list[Key] = [(epoch, index) for index in range(len(data)) for epoch in range(epochs)]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Kept:
        return measure(self.model, self.seen.collate([self.seen[self.keys[index]]]).sequence)


def measure_all(data: LabelledDocuments, recipe: Recipe, epochs: int, jobs: int = 1) -> dict[Key, Kept]:
    """The features of all documents in the first `epochs` of a training, by epoch and index."""
    views = ToMeasure(data, recipe, epochs)
    loader = DataLoader(views, batch_size=None, num_workers=jobs if jobs > 1 else 0)
    seen = tqdm(loader, desc="measuring", unit="view", disable=None)
    # a copy: each tensor that comes from a worker keeps a file open
    return {key: {name: x.clone() for name, x in kept.items()} for key, kept in zip(views.keys, seen, strict=True)}


class Views(DocumentDataset):
    """The views of `measure_all`; further epochs repeat them."""

    measured: Mapping[Key, Kept]
    epochs: int
    indices: Sequence[int]  # of these documents among those of `measured`

    def __getitem__(self, key: Key) -> tuple[int, int, PageStack]:
        epoch, index = key
        own, partner = self._pages(epoch, index), self.partner(epoch, index)
        pages = own if partner is None else put_after(own, self._pages(epoch, partner))
        indices = [int(page.index) for page in own[: len(pages)]]
        addressed = [page._replace(index=torch.tensor(at)) for page, at in zip(pages, indices, strict=True)]
        return index, epoch, PageStack("", cast(Any, addressed), indices, len(self.documents[index].indices))

    def _pages(self, epoch: int, index: int) -> list[Page]:
        return pages_of(self.measured[epoch % self.epochs, self.indices[index]])

    def collate(self, samples: list[tuple[int, int, PageStack]]) -> DocumentBatch:
        indices = [index for index, _, _ in samples]
        sequence = put_together([cast(Sequence[Page], stack.pages) for _, _, stack in samples])
        return DocumentBatch(sequence, torch.tensor([self.labels[i] for i in indices]), torch.tensor(indices))


class PairedViews(PairedDataset, Views):
    """The same for a student and its teachers."""


def train_measured(
    data: LabelledDocuments,
    training: LabelledDocuments,
    measured: Mapping[Key, Kept],
    recipe: Recipe,
    teachers: Sequence[DocViT] = (),
    config: DistillConfig = DistillConfig(),
    *,
    device: torch.device = CPU.device,
) -> tuple[DocViT, list[Record]]:
    """Trains on the features of `training`, a part of `data`; gives a model that reads pages, and its history.

    As `docvit.train_documents` does it, or given teachers as `kd.distill_documents`, with the same documents as
    the unlabelled ones. In float32: every batch has another shape, for which bfloat16 kernels would first be built.
    """
    index = {path: i for i, path in enumerate(data.paths)}
    trained = build_model(recipe, data.classes)
    files, view, seed = files_of(training, trained.config), training_view(trained.config, recipe), recipe.train.seed

    def views(labels: Sequence[int] | None, groups: Sequence[str] | None) -> PairedViews:
        dataset = PairedViews(files, labels, view, groups=groups, seed=seed, others=[None] * len(teachers))
        dataset.measured, dataset.epochs = measured, 1 + max(epoch for epoch, _ in measured)
        dataset.indices = [index[path] for path in training.paths]
        return dataset

    labelled = shuffled(views(training.labels, training.groups), CPU, budget=recipe.budget, weights=balance(training))
    student = with_stem(trained, MeasuredStem).to(device)
    batches: Any = labelled
    loss: Any = classification_loss(recipe)
    if teachers:
        batches = PairedBatches(labelled, shuffled(views(None, None), CPU, budget=recipe.budget))
        frozen = Teacher([with_stem(teacher, MeasuredStem) for teacher in teachers], document_outputs).to(device)
        config = replace(config, page_loss=recipe.page_loss, label_smoothing=recipe.label_smoothing)
        loss = DistillationLoss(config, frozen, document_outputs)
    ema = EMATeacher(student, decay=recipe.ema) if recipe.ema else None
    history = fit(student, batches, loss, replace(recipe.train, bf16=False), ema=ema, device=device)
    kept = cast(DocViT, student if ema is None else ema.module)
    return with_stem(kept.cpu(), InkStem).eval(), history


def with_stem(model: DocViT, stem: type[InkStem]) -> DocViT:
    """A model of the same weights that reads pages (`InkStem`) or their features (`MeasuredStem`)."""
    c = model.config
    other = DocViT(c, stem=stem(c.in_chans, c.patch_size, c.embed_dim))
    other.load_state_dict(model.state_dict())
    return other
