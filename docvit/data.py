"""Labelled documents for training: folders and CSVs, the page cache, batches."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from docvit.augment import Augmentation, augment
from docvit.cache import CachedDocument
from docvit.pages import SUFFIXES, PageStack, Rendering, find_documents, spread
from docvit.patches import PatchSequence, pack
from docvit.sampling import Key, Partners, TokenBudget, put_after

MAX_LISTED = 20
UNLABELLED = -1


class DataError(Exception):
    """Training data that cannot be used; `problems` lists all of them, not just the first.

    `found` are the documents that are there, whatever is wrong with others.
    """

    def __init__(self, data: str | os.PathLike[str], problems: Sequence[str], *, found: Sequence[str] = ()) -> None:
        self.data, self.problems, self.found = data, list(problems), tuple(found)
        more = [f"... and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        super().__init__("\n  ".join([f"{os.fspath(data)} cannot be used:", *self.problems[:MAX_LISTED], *more]))


@dataclass(frozen=True)
class LabelledDocuments:
    """Paths with their labels (indices into `classes`), and optionally the group (such as the source) of each."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Sequence[int]) -> LabelledDocuments:
        paths, labels = tuple(self.paths[i] for i in indices), tuple(self.labels[i] for i in indices)
        groups = tuple(self.groups[i] for i in indices) if self.groups is not None else None
        return LabelledDocuments(paths, labels, self.classes, groups)


def read_labelled(
    data: str | os.PathLike[str], *, classes: Sequence[str] | None = None, group_column: str | None = None
) -> LabelledDocuments:
    """Reads a folder with one sub folder a class, or a CSV with the columns `path` and `label`.

    Paths in a CSV are relative to the CSV. `group_column` names a further column, for leaving whole groups out.

    Raises:
        DataError: with every problem found: missing columns, missing files, files listed twice, classes without
            documents, labels that are not among `classes`.
    """
    path = Path(data)
    if path.is_dir():
        if group_column:
            raise DataError(data, [f"groups ({group_column!r}) need a CSV, and this is a folder"])
        rows, problems = _read_folder(path)
    elif path.is_file():
        rows, problems = _read_csv(path, group_column)
    else:
        raise DataError(data, ["there is no such file or folder"])
    names = tuple(classes) if classes else tuple(sorted({label for _, label, _ in rows}))
    unknown = sorted({label for _, label, _ in rows} - set(names))
    if unknown:
        problems.append(f"labels that the model does not know: {', '.join(unknown)} (it knows {', '.join(names)})")
    if not rows and not problems:
        problems.append("no documents: give a folder with one sub folder a class, or a CSV with path,label")
    if problems:
        raise DataError(data, problems, found=[p for p, _, _ in rows])
    groups = tuple(group for _, _, group in rows) if group_column else None
    return LabelledDocuments(
        tuple(p for p, _, _ in rows), tuple(names.index(label) for _, label, _ in rows), names, groups
    )


Row = tuple[str, str, str]  # path, label, group


def _read_folder(path: Path) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    problems = []
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        # a class folder full of scans is many one-page documents, never one
        found = sorted(p for p in find_documents([folder]) if p != str(folder)) or sorted(
            str(p) for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        )
        rows += [(p, folder.name, "") for p in found]
        if not found:
            problems.append(f"class folder without documents: {folder.name}")
    return rows, problems


def _read_csv(path: Path, group_column: str | None) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    lines: dict[str, int] = {}  # where each path stands first
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            wanted = ["path", "label"] + ([group_column] if group_column else [])
            missing = [name for name in wanted if name not in (reader.fieldnames or [])]
            if missing:
                return [], [f"missing column: {name} (found: {', '.join(reader.fieldnames or [])})" for name in missing]
            problems = []
            for row in reader:
                line, location, label = reader.line_num, row["path"] or "", row["label"] or ""
                resolved = os.path.normpath(path.parent / location)
                if not location or not label:
                    problems.append(f"line {line}: empty path or label")
                elif not os.path.exists(resolved):
                    problems.append(f"line {line}: no such file: {location} (paths are relative to the CSV)")
                elif lines.setdefault(resolved, line) != line:
                    problems.append(f"line {line}: {location} stands on line {lines[resolved]} already")
                elif group_column and not row[group_column]:
                    problems.append(f"line {line}: empty {group_column}")  # one large group of strangers otherwise
                else:
                    rows.append((resolved, label, row[group_column] if group_column else ""))
            return rows, problems
    except (UnicodeDecodeError, csv.Error) as error:
        return [], [f"not a CSV: {error}"]


@dataclass(frozen=True)
class Batch:
    """A packed batch with its labels (B,) and the documents' places in the data set (B,)."""

    sequence: PatchSequence
    labels: Tensor
    index: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return Batch(
            self.sequence.to(device, non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.index.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        return Batch(self.sequence.pin_memory(), self.labels.pin_memory(), self.index.pin_memory())


@dataclass(frozen=True)
class View:
    """How a document is seen: the pixels' normalisation, which pages, and what is changed on them in training.

    Attributes:
        max_pages: pages of a document that are read; in training a random choice, else spread evenly.
        augmentation: changes to the pages; None outside training.
        patch_dropout: largest share of patches left out at random in training; how many is drawn for each document.
        mix_pages: share of documents whose later pages are, in training, those of another of their class, from another
            source; of any other where there are no labels.
    """

    rendering: Rendering
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    max_pages: int = 64
    augmentation: Augmentation | None = None
    patch_dropout: float = 0.0
    mix_pages: float = 0.0
    training: bool = field(default=False)


class DocumentDataset(Dataset[tuple[int, int, PageStack]]):
    """Cached documents by (epoch, place): what is drawn at random depends on nothing but the seed and that key.

    Without labels every document's is `UNLABELLED`. Data sets that differ in `draw` alone show the same pages at the
    same keys, changed and thinned out in other ways.

    Args:
        groups: the source of each document, for `View.mix_pages`; without, each is its own.
    """

    def __init__(
        self,
        files: Sequence[Path],
        labels: Sequence[int] | None,
        view: View,
        *,
        groups: Sequence[str] | None = None,
        seed: int = 0,
        draw: int = 0,
    ) -> None:
        self.documents = [CachedDocument.open(file) for file in files]
        self.labels = [UNLABELLED] * len(files) if labels is None else list(labels)
        self.view, self.seed, self.draw = view, seed, draw
        self.partners = Partners(self.labels, groups) if view.training and view.mix_pages else None

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, key: Key) -> tuple[int, int, PageStack]:
        epoch, place = key
        stack, partner = self.see(epoch, place), self.partner(epoch, place)
        if partner is not None:
            pages = put_after(stack.pages, self.see(epoch, partner).pages)
            stack = stack._replace(pages=pages, indices=stack.indices[: len(pages)])
        return place, epoch, stack

    def see(self, epoch: int, place: int) -> PageStack:
        """The pages of one document in one epoch, changed."""
        document, view = self.documents[place], self.view
        random = np.random.default_rng((self.seed, epoch, place))
        stack = document.load(self._choose(document, random))
        if self.draw:
            random = np.random.default_rng((self.seed, epoch, place, 2 * self.draw))
        if view.augmentation is not None:
            changed = augment(stack.pages, view.augmentation, random)
            mean, std = (torch.tensor(v)[:, None, None] for v in (view.mean, view.std))
            normalised = [(page - mean) / std for page in changed]  # float tensors, which `pack` takes as they are
            stack = stack._replace(pages=normalised)  # type: ignore[arg-type]
        return stack

    def partner(self, epoch: int, place: int) -> int | None:
        """The document whose later pages this one has in this epoch; None for its own."""
        if self.partners is None or min(self.view.max_pages, len(self.documents[place].indices)) == 1:
            return None
        # by five numbers: four that end with 0 are as good as three
        random = np.random.default_rng((self.seed, epoch, place, 0, 1))
        return self.partners.draw(place, random) if random.random() < self.view.mix_pages else None

    def _choose(self, document: CachedDocument, random: np.random.Generator) -> list[int]:
        count = min(self.view.max_pages, len(document.indices))
        if not self.view.training:
            return [document.indices[i] for i in spread(len(document.indices), count)]
        # the first page is always read in use, and often says most
        first, *others = document.indices
        return [first, *sorted(random.choice(others, count - 1, replace=False).tolist())] if count > 1 else [first]

    def tokens(self) -> np.ndarray:
        """About how many tokens each document brings to a batch, class tokens included."""
        limit, keep = self.view.max_pages, 1 - self.view.patch_dropout / 2
        return np.array([min(limit, len(d.kept)) * (1 + keep * float(np.mean(d.kept))) for d in self.documents])

    def collate(self, samples: list[tuple[int, int, PageStack]]) -> Batch:
        sequence = self.pack([stack for _, _, stack in samples])
        if self.view.patch_dropout:
            counts = sequence.page_bounds[sequence.document_bounds].diff().tolist()
            keep = [self._thin(epoch, place, count) for (place, epoch, _), count in zip(samples, counts, strict=True)]
            sequence = sequence.select(torch.from_numpy(np.concatenate(keep)))
        index = torch.tensor([place for place, _, _ in samples])
        return Batch(sequence, torch.tensor([self.labels[place] for place, _, _ in samples]), index)

    def pack(self, stacks: Sequence[PageStack]) -> PatchSequence:
        """A packed batch of documents as `see` gives them."""
        view, channels = self.view, 1 if self.view.rendering.mode == "L" else 3
        return pack(stacks, view.rendering.multiple, channels=channels, mean=view.mean, std=view.std)

    def _thin(self, epoch: int, place: int, count: int) -> np.ndarray:
        """(count,) which of a document's patches are kept: sometimes nearly all, as in use, sometimes few."""
        random = np.random.default_rng((self.seed, epoch, place, 2 * self.draw + 1))
        return random.random(count) >= self.view.patch_dropout * random.random()


def balance(documents: LabelledDocuments) -> np.ndarray:
    """Weights (documents,) for drawing: every class as often as the others; within it, a group by the root of its size.

    One prolific source then no longer decides what its class looks like.
    """
    weights = Partners(documents.labels, documents.groups).weights
    totals = np.bincount(documents.labels, weights)
    return weights / totals[list(documents.labels)]


class Batches:
    """Batches of a data set, an epoch at a time, through torch's DataLoader."""

    def __init__(
        self,
        dataset: DocumentDataset,
        *,
        budget: int = 8192,
        shuffle: bool = False,
        weights: np.ndarray | None = None,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.sampler = TokenBudget(
            dataset.tokens(),
            budget,
            shuffle=shuffle,
            weights=weights,
            seed=dataset.seed,
            rank=rank,
            world_size=world_size,
        )
        self.loader = DataLoader(
            dataset,
            batch_sampler=self.sampler,
            collate_fn=dataset.collate,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_interrupts if workers else None,
            generator=torch.Generator(),  # else every epoch begun, also a resumed one, draws from the global one
        )

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """The next iteration gives epoch `epoch`, without its first `skip` batches (they are not even loaded)."""
        self.sampler.epoch, self.sampler.skip = epoch, skip

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)

    def fingerprint(self) -> str:
        """Of the documents' contents, labels and weights: a run may only be resumed on the same."""
        names = [document.file.stem for document in self.dataset.documents]
        weights = self.sampler.weights
        drawn = None if weights is None else weights.round(12).tolist()
        parts = [names, self.dataset.labels, drawn]
        if self.dataset.partners is not None:
            parts.append(self.dataset.partners.fingerprint())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _ignore_interrupts(_: int) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the loop decides when to stop
    torch.set_num_threads(1)
