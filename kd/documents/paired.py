"""What teachers see of a student's documents: the same pages, the same changes, the same patches left out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from docvit.data.dataset import DocumentBatch, DocumentDataset, View
from docvit.data.labels import LabelledDocuments
from docvit.data.loader import DocumentLoader
from docvit.data.sampling import balance
from docvit.documents.pages import PageStack
from docvit.documents.patches import PatchSequence
from docvit.model.config import DocViTConfig
from docvit.training.batches import shuffled, training_view
from docvit.training.distributed import Process
from docvit.training.recipe import Recipe
from docvit.training.rendering import render_all, render_readable
from kd.distill import DistillationError
from kd.documents.teacher_cache import TeacherCache, batch_key


@dataclass(frozen=True)
class PairedBatch(DocumentBatch):
    """A student's batch, and what its teachers need.

    Attributes:
        views: what each teacher sees; None for the student's own view.
        key: name of the batch in a `TeacherCache`.
        told: what the teachers have said of it before; then there are no views.
        step: steps of the whole run before this one.
        unlabelled: a second batch, of documents without labels.
    """

    views: tuple[PatchSequence | None, ...] = ()
    key: str = ""
    told: dict[str, Tensor] | None = None
    step: int = 0
    unlabelled: PairedBatch | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PairedBatch:
        own = super().to(device, non_blocking)
        return replace(
            self,
            sequence=own.sequence,
            labels=own.labels,
            index=own.index,
            views=tuple(view if view is None else view.to(device, non_blocking) for view in self.views),
            told=self.told and {name: value.to(device, non_blocking=non_blocking) for name, value in self.told.items()},
            unlabelled=self.unlabelled and self.unlabelled.to(device, non_blocking),
        )

    def pin_memory(self) -> PairedBatch:
        own = super().pin_memory()
        return replace(
            self,
            sequence=own.sequence,
            labels=own.labels,
            index=own.index,
            views=tuple(view if view is None else view.pin_memory() for view in self.views),
            told=self.told and {name: value.pin_memory() for name, value in self.told.items()},
        )


class PairedDataset(DocumentDataset):
    """A student's documents, with each teacher's view of them or what it has said of them.

    Teachers whose view is the student's share its very tensors. Others have the documents in their own rendering:
    the same pages, shifted, scaled and weighed by the same numbers. Where patches are left out, such a teacher keeps
    what lies, wholly or in part, under a patch that the student keeps; for patches that divide the student's this is
    the same region exactly.

    Args:
        others: for each teacher its own data set of the same documents; None for the student's view. One of another
            `draw` is left as it comes.
        cache: asked first; a batch that it knows is not loaded for the teachers.

    Raises:
        DistillationError: a document that has other pages in another rendering.
    """

    def __init__(
        self,
        files: Sequence[Path],
        labels: Sequence[int] | None,
        view: View,
        *,
        groups: Sequence[str] | None = None,
        seed: int = 0,
        others: Sequence[DocumentDataset | None] = (),
        cache: TeacherCache | None = None,
    ) -> None:
        super().__init__(files, labels, view, groups=groups, seed=seed)
        self.others, self.cache = tuple(others), cache
        for other in self.others:
            self._check_pages(other)

    def _check_pages(self, other: DocumentDataset | None) -> None:
        for ours, theirs in zip(self.documents, other.documents if other else (), strict=bool(other)):
            if ours.indices != theirs.indices:
                counts = f"{len(theirs.indices)} pages in the teacher's rendering, {len(ours.indices)} in the student's"
                raise DistillationError(f"{theirs.file.name} has {counts}: give both the same renderer")

    def describe(self) -> dict[str, Any]:
        """What decides what is seen, but for the epoch."""
        content = hashlib.sha256("\n".join(document.file.stem for document in self.documents).encode())
        return {
            "documents": len(self),
            "content": content.hexdigest(),
            "seed": self.seed,
            "mixed": None if self.partners is None else self.partners.fingerprint(),
            "view": _described(self.view),
            "teachers' views": [_described(other.view) if other is not None else None for other in self.others],
        }

    def collate(self, samples: list[tuple[int, int, PageStack]]) -> PairedBatch:
        own = super().collate(samples)
        keys = [(epoch, place) for place, epoch, _ in samples]
        batch = PairedBatch(own.sequence, own.labels, own.index, key=self._name(keys))
        told = self.cache.read(batch.key) if self.cache is not None else None
        return replace(batch, told=told, views=() if told is not None else self._views(own, keys))

    def _name(self, keys: list[tuple[int, int]]) -> str:
        return batch_key(keys[0][0], [(place, self.documents[place].file.stem) for _, place in keys])

    def _views(self, own: DocumentBatch, keys: list[tuple[int, int]]) -> tuple[PatchSequence | None, ...]:
        views: list[PatchSequence | None] = []
        for other in self.others:
            view = other.collate([other[key] for key in keys]).sequence if other is not None else None
            if other is not None and view is not None and other.draw == self.draw and self.view.patch_dropout:
                view = same_regions(view, own.sequence)
            views.append(view)
        return tuple(views)


def _described(view: View) -> dict[str, Any]:
    """Runs and caches from before pages were mixed are those in which none are."""
    return {name: value for name, value in asdict(view).items() if name != "mix_pages" or value}


def same_regions(theirs: PatchSequence, ours: PatchSequence) -> PatchSequence:
    """Of `theirs` the patches that overlap one of `ours`, page by page, whatever the two grids are."""
    keep = []
    for page in range(ours.num_pages):
        (a, b), (c, d) = (s.page_bounds[page : page + 2].tolist() for s in (ours, theirs))
        seen = torch.zeros(ours.grids[page].tolist())  # [R, C]
        seen[ours.row[a:b], ours.col[a:b]] = 1
        # its bins begin at the floor and end at the ceiling: all cells that a bin overlaps
        under = F.adaptive_max_pool2d(seen[None], theirs.grids[page].tolist())[0]
        keep.append(under[theirs.row[c:d], theirs.col[c:d]] > 0)
    return theirs.select(torch.cat(keep))


class PairedBatches:
    """Labelled batches, each with its number in the whole run and, if there are any, a batch without labels.

    An epoch is one of the labelled documents; the others go round at their own pace.
    """

    def __init__(self, labelled: DocumentLoader, unlabelled: DocumentLoader | None = None) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled
        self.step = 0

    def __len__(self) -> int:
        return len(self.labelled)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.labelled.set_epoch(epoch, skip)
        self.step = epoch * len(self) + skip

    def __iter__(self) -> Iterator[PairedBatch]:
        others = self._endless() if self.unlabelled is not None else repeat(None)
        for step, (batch, other) in enumerate(zip(self.labelled, others, strict=False), self.step):
            yield replace(cast(PairedBatch, batch), step=step, unlabelled=other)

    def _endless(self) -> Iterator[PairedBatch]:
        assert self.unlabelled is not None
        epoch, skip = divmod(self.step, len(self.unlabelled))
        while True:
            self.unlabelled.set_epoch(epoch, skip)
            yield from cast(Iterator[PairedBatch], iter(self.unlabelled))
            epoch, skip = epoch + 1, 0

    def fingerprint(self) -> str:
        """Of all documents, see `DocumentLoader.fingerprint`."""
        parts = [self.labelled] + ([self.unlabelled] if self.unlabelled else [])
        return "+".join(part.fingerprint() for part in parts)

    def use_cache(self, cache: TeacherCache) -> None:
        """Read from `cache` what it knows, instead of loading documents for the teachers."""
        for dataset in self._datasets().values():
            dataset.cache = cache

    def describe(self) -> dict[str, Any]:
        """All that decides what is seen of which documents, but for the epoch: settings for a `TeacherCache`."""
        return {name: dataset.describe() for name, dataset in self._datasets().items()}

    def _datasets(self) -> dict[str, PairedDataset]:
        batches = {"labelled": self.labelled} | ({"unlabelled": self.unlabelled} if self.unlabelled else {})
        return {name: cast(PairedDataset, of_kind.dataset) for name, of_kind in batches.items()}


def paired_batches(
    data: LabelledDocuments,
    files: Mapping[str, Path],
    student: DocViTConfig,
    teachers: Sequence[DocViTConfig],
    recipe: Recipe,
    place: Process,
    *,
    unlabelled: Sequence[str] = (),
    second_draw: bool = False,
    cache: Path | None = None,
    workers: int = 2,
) -> tuple[PairedBatches, tuple[str, ...]]:
    """The training batches of a recipe for a student and its teachers, and the unlabelled documents left out.

    Args:
        files: documents as rendered for the student: those of `data`, and others that nothing may be learnt from.
        second_draw: the only teacher looks as the student does, at the same pages changed in another way.

    Raises:
        DataError: documents that cannot be read in a teacher's rendering, or none of those without labels.
    """
    where: dict[str, Any] = {"cache": cache, "workers": workers}
    own_view = training_view(student, recipe)
    further: dict[str, Path] = {}
    left_out: list[str] = []
    if unlabelled:
        further, left_out = render_readable(unlabelled, student.rendering, place, **where)
        held_back = set(files.values()) - {files[path] for path in data.paths}
        further = {path: file for path, file in further.items() if file not in held_back}
    views = [training_view(config, recipe) for config in teachers]
    rendered = {student.rendering: {**files, **further}}
    for rendering in [view.rendering for view in views if view.rendering != student.rendering]:
        of_teacher = render_all(data.paths, rendering, place, **where)
        more, problems = render_readable(list(further), rendering, place, **where) if further else ({}, [])
        rendered[rendering] = of_teacher | more
        left_out += problems
    readable = [path for path in further if all(path in found for found in rendered.values())]
    each_once = {further[path]: path for path in readable}  # copies of a document are one

    def dataset(
        paths: Sequence[str], labels: Sequence[int] | None, groups: Sequence[str] | None = None
    ) -> PairedDataset:
        def other(view: View) -> DocumentDataset | None:
            found = [rendered[view.rendering][path] for path in paths]
            if second_draw:
                return DocumentDataset(found, labels, own_view, groups=groups, seed=seed, draw=1)
            if view == own_view:
                return None
            return DocumentDataset(found, labels, replace(view, patch_dropout=0.0), groups=groups, seed=seed)

        found = [rendered[own_view.rendering][path] for path in paths]
        return PairedDataset(found, labels, own_view, groups=groups, seed=seed, others=[other(view) for view in views])

    seed, budget = recipe.train.seed, recipe.budget
    weights = balance(data) if recipe.balanced else None
    labelled = shuffled(dataset(data.paths, data.labels, data.groups), place, budget=budget, weights=weights)
    if not each_once:
        return PairedBatches(labelled), tuple(left_out)
    extra = shuffled(dataset(list(each_once.values()), None), place, budget=budget)
    return PairedBatches(labelled, extra), tuple(left_out)
