"""Paired data: teachers see a student's documents with the same pages, changes and patches left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from docvit.data.dataset import DocumentBatch, DocumentDataset, View
from docvit.data.labels import DataError, LabelledDocuments
from docvit.data.loader import DocumentLoader
from docvit.data.sampling import balance
from docvit.documents.pages import PageStack
from docvit.documents.patches import PatchSequence
from docvit.model.config import DocViTConfig
from docvit.training.batches import shuffled, training_view
from docvit.training.distributed import Process
from docvit.training.recipe import Recipe
from docvit.training.rendering import render_all, render_readable
from kd.config import DistillationError
from kd.documents.maps import MapDataset, prepare_maps
from kd.documents.onnx_network import OnnxNetwork
from kd.documents.probabilities import TeacherProbabilities
from kd.teacher import TeacherCache


@dataclass(frozen=True)
class PairedBatch(DocumentBatch):
    """A student's batch, and what its teachers need.

    Attributes:
        of_teachers: what each teacher sees; None for the student's own view.
        key: name of the batch in a `TeacherCache`.
        teacher_outputs: outputs that the cache holds; then there is nothing for teachers to see.
        given_logits: (B, C) for each teacher of which probabilities are all there is.
        given_maps: targets of patches (T, C) and pages (N, 2C), by the names of `kd.student.map_state`.
        unlabelled: a second batch, of documents without labels.
    """

    of_teachers: tuple[PatchSequence | None, ...] = ()
    key: str = ""
    teacher_outputs: dict[str, Tensor] | None = None
    given_logits: tuple[Tensor, ...] = ()
    given_maps: dict[str, Tensor] = field(default_factory=dict)
    unlabelled: PairedBatch | None = None

    @property
    def page_labels(self) -> Tensor:
        """(N,) of every page, that of its document."""
        return self.of_pages(self.labels)

    def of_pages(self, of_documents: Tensor) -> Tensor:
        """Rows (B, ...) to (N, ...): for every page that of its document."""
        return of_documents[self.sequence.document_of_page.to(of_documents.device)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PairedBatch:
        def moved(tensor: Any) -> Any:
            return tensor.to(device, non_blocking=non_blocking)

        return self._each(super().to(device, non_blocking), moved)

    def pin_memory(self) -> PairedBatch:
        return self._each(super().pin_memory(), lambda tensor: tensor.pin_memory())

    def _each(self, own: DocumentBatch, function: Callable[[Any], Any]) -> PairedBatch:
        known = self.teacher_outputs
        return replace(
            self,
            sequence=own.sequence,
            labels=own.labels,
            index=own.index,
            of_teachers=tuple(seen if seen is None else function(seen) for seen in self.of_teachers),
            teacher_outputs=None if known is None else {name: function(value) for name, value in known.items()},
            given_logits=tuple(map(function, self.given_logits)),
            given_maps={name: function(value) for name, value in self.given_maps.items()},
            unlabelled=None if self.unlabelled is None else function(self.unlabelled),
        )


class PairedDataset(DocumentDataset):
    """A student's documents, with each teacher's view of them or its cached outputs.

    Teachers whose view is the student's share its very tensors. Others have the documents in their own rendering:
    the same pages, shifted, scaled and weighed by the same numbers. Where patches are left out, such a teacher keeps
    what lies, wholly or in part, under a patch that the student keeps; for patches that divide the student's this is
    the same region exactly. Words that are dropped for a student are dropped for such a teacher, too.

    Args:
        others: for each teacher its own data set of the same documents; None for the student's view. One of another
            `draw` is left as it comes.
        cache: asked first; a batch that it holds is not loaded for the teachers.
        tables: (documents, C) logits of each teacher of which probabilities are all there is.
        maps: the same documents as maps of networks.

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
        tables: Sequence[Tensor] = (),
        maps: Sequence[MapDataset] = (),
    ) -> None:
        super().__init__(files, labels, view, groups=groups, seed=seed)
        self.others, self.cache, self.tables, self.maps = tuple(others), cache, tuple(tables), tuple(maps)
        for other in [other for other in others if other is not None]:
            for ours, theirs in zip(self.documents, other.documents, strict=True):
                here, there = len(ours.indices), len(theirs.indices)
                if ours.indices != theirs.indices:
                    counts = f"{there} pages in the teacher's rendering, {here} in the student's"
                    raise DistillationError(f"{theirs.file.name} has {counts}: give both the same renderer")

    def describe(self) -> dict[str, Any]:
        """What decides what is seen, but for the epoch."""
        content = hashlib.sha256("\n".join(document.file.stem for document in self.documents).encode())
        return {
            "documents": len(self),
            "content": content.hexdigest(),
            "seed": self.seed,
            "mixed": None if self.partners is None else self.partners.fingerprint(),
            "view": asdict(self.view),
            "teachers' views": [asdict(other.view) if other is not None else None for other in self.others],
        }

    def collate(self, samples: list[tuple[int, int, PageStack]]) -> PairedBatch:
        own = super().collate(samples)
        keys = [(epoch, index) for index, epoch, _ in samples]
        key = batch_key(keys[0][0], [(index, self.labels[index]) for _, index in keys])
        batch = PairedBatch(own.sequence, own.labels, own.index, key=key)
        known = self.cache.read(batch.key) if self.cache is not None else None
        others = self.others if known is None else ()
        views = tuple(self._seen_by(other, own.sequence, keys) for other in others)
        logits = tuple(table[own.index] for table in self.tables)
        maps = {name: target for of in self.maps for name, target in of.targets(keys, own.sequence).items()}
        return replace(batch, teacher_outputs=known, of_teachers=views, given_logits=logits, given_maps=maps)

    def _seen_by(
        self, other: DocumentDataset | None, own: PatchSequence, keys: list[tuple[int, int]]
    ) -> PatchSequence | None:
        if other is None:
            return None
        seen = other.collate([other[key] for key in keys]).sequence
        return same_regions(seen, own) if other.draw == self.draw and self.view.patch_dropout else seen


def batch_key(epoch: int, documents: Sequence[tuple[int, int]]) -> str:
    """Name of a batch in a `TeacherCache`: its epoch and, in order, the index of its documents and their labels.

    With content, seed and view, which are the same for a whole cache, these decide what is seen of them. Documents may
    be in a run with labels and without: their pages are mixed with other ones then.
    """
    digest = hashlib.sha256(json.dumps(documents).encode()).hexdigest()
    return f"{epoch:04d}-{digest[:24]}"


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
    """Labelled batches, each, if there are any, with one without labels.

    An epoch is one of the labelled documents; the others go round at their own pace.
    """

    def __init__(self, labelled: DocumentLoader, unlabelled: DocumentLoader | None = None) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled
        self.loaders = {"labelled": labelled} | ({"unlabelled": unlabelled} if unlabelled is not None else {})
        self.datasets = {name: cast(PairedDataset, loader.dataset) for name, loader in self.loaders.items()}
        self.step = 0  # of the whole run

    def __len__(self) -> int:
        return len(self.labelled)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.labelled.set_epoch(epoch, skip)
        self.step = epoch * len(self) + skip

    def __iter__(self) -> Iterator[PairedBatch]:
        others = self._endless() if self.unlabelled is not None else repeat(None)
        for batch, other in zip(self.labelled, others, strict=False):
            yield replace(cast(PairedBatch, batch), unlabelled=other)

    def _endless(self) -> Iterator[PairedBatch]:
        assert self.unlabelled is not None
        epoch, skip = divmod(self.step, len(self.unlabelled))
        while True:
            self.unlabelled.set_epoch(epoch, skip)
            yield from cast(Iterator[PairedBatch], iter(self.unlabelled))
            epoch, skip = epoch + 1, 0

    def fingerprint(self) -> str:
        """Of all documents, see `DocumentLoader.fingerprint`."""
        return "+".join(loader.fingerprint() for loader in self.loaders.values())

    def use_cache(self, cache: TeacherCache) -> None:
        """Read from `cache` what it holds, instead of loading documents for the teachers."""
        for dataset in self.datasets.values():
            dataset.cache = cache

    def describe(self) -> dict[str, Any]:
        """All that decides what is seen of which documents, but for the epoch: settings for a `TeacherCache`."""
        return {name: dataset.describe() for name, dataset in self.datasets.items()}

    def files(self) -> list[Path]:
        """The rendered documents, as the student sees them."""
        return [document.file for dataset in self.datasets.values() for document in dataset.documents]


def paired_batches(
    data: LabelledDocuments,
    files: Mapping[str, Path],
    student: DocViTConfig,
    teachers: Sequence[DocViTConfig],
    recipe: Recipe,
    process: Process,
    *,
    unlabelled: Sequence[str] = (),
    second_draw: bool = False,
    tables: Sequence[TeacherProbabilities] = (),
    networks: Sequence[OnnxNetwork] = (),
    cache: Path | None = None,
    workers: int = 2,
    password: str | None = None,
    ocr_pages: int = 0,
) -> tuple[PairedBatches, tuple[str, ...]]:
    """The training batches of a recipe for a student and its teachers, and the unlabelled documents left out.

    Words are dropped for teachers as for the student, so that all are handed the same view; for a student without words
    nothing is dropped, and a teacher with words reads all of them.

    Args:
        files: documents as rendered for the student: those of `data`, and others that nothing may be learnt from.
        second_draw: the only teacher looks as the student does, at the same pages changed in another way.
        tables: probabilities that are further teachers. They are of whole documents: pages of documents without labels
            are not mixed then, since their partners are of any class.
        networks: whose maps the student's tokens are to predict.
        cache, workers, password, ocr_pages: as for `docvit.training.rendering.render`.

    `data` without classes is without labels: documents keep their own pages, and those that a network cannot be shown
    are left out.

    Raises:
        DataError: documents that cannot be read in a teacher's rendering, none of those without labels, or documents
            without a row in one of the tables.
    """
    reading: dict[str, Any] = {"cache": cache, "workers": workers, "password": password}
    where = {**reading, "ocr_pages": ocr_pages}
    if not student.words:
        recipe = replace(recipe, lose_words=0.0, word_dropout=0.0)
    if not data.classes:
        recipe = replace(recipe, mix_pages=0.0, balanced=False)
    own_view = training_view(student, recipe)
    further: dict[str, Path] = {}
    left_out: list[str] = []
    if unlabelled:
        further, left_out = render_readable(unlabelled, student.rendering, process, **where)
        held_back = set(files.values()) - {files[path] for path in data.paths}
        further = {path: file for path, file in further.items() if file not in held_back}
    views = [training_view(config, recipe) for config in teachers]
    rendered = {student.rendering: {**files, **further}}
    for rendering in [view.rendering for view in views if view.rendering != student.rendering]:
        of_teacher = render_all(data.paths, rendering, process, **where)
        more, problems = render_readable(list(further), rendering, process, **where) if further else ({}, [])
        rendered[rendering] = of_teacher | more
        left_out += problems
    readable = [path for path in further if all(path in found for found in rendered.values())]
    shown = {path: rendered[student.rendering][path] for path in (*data.paths, *readable)}
    maps = [prepare_maps(one, shown, student.rendering, process, **reading) for one in networks]
    for prepared in maps:
        if data.classes and not all(path in prepared.files for path in data.paths):
            raise DataError("the documents", prepared.problems)
        data, left_out = data.only(prepared.files), left_out + prepared.problems
        readable = [path for path in readable if path in prepared.files]
    each_once = {further[path]: path for path in readable}  # copies of a document are one

    def dataset(
        paths: Sequence[str], labels: Sequence[int] | None, groups: Sequence[str] | None = None
    ) -> PairedDataset:
        own, *of_teachers = [
            replace(view, mix_pages=0.0) if tables and labels is None else view for view in (own_view, *views)
        ]

        def other(view: View) -> DocumentDataset | None:
            found = [rendered[view.rendering][path] for path in paths]
            if second_draw:
                return DocumentDataset(found, labels, own, groups=groups, seed=seed, draw=1)
            if view == own:
                return None
            return DocumentDataset(found, labels, replace(view, patch_dropout=0.0), groups=groups, seed=seed)

        return PairedDataset(
            [rendered[own.rendering][path] for path in paths],
            labels,
            own,
            groups=groups,
            seed=seed,
            others=[other(view) for view in of_teachers],
            tables=[table.logits(paths) for table in tables],
            maps=[MapDataset(prepared, paths, labels, own, groups=groups, seed=seed) for prepared in maps],
        )

    seed, budget = recipe.train.seed, recipe.budget
    weights = balance(data) if recipe.balanced else None
    labels = data.labels if data.classes else None
    labelled = shuffled(dataset(data.paths, labels, data.groups), process, budget=budget, weights=weights)
    extra = shuffled(dataset(list(each_once.values()), None), process, budget=budget) if each_once else None
    return PairedBatches(labelled, extra), tuple(left_out)
