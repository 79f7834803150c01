"""Comparison of models on the same documents: quality, agreement, size and speed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from docvit.data.labels import LabelledDocuments
from docvit.data.metrics import Report, report
from docvit.documents.errors import DocumentError
from docvit.documents.pages import PageStack
from docvit.documents.workers import in_batches, read_documents
from docvit.errors import SettingError
from docvit.evaluation.cost import predict_cost
from docvit.inference.classify import BUDGET, DocumentClassifier
from docvit.model.docvit import DocViT
from docvit.model.folder import BUNDLED, WEIGHTS
from docvit.model.upright import judge_upright

Model = DocumentClassifier | DocViT | str | os.PathLike[str] | None


@dataclass(frozen=True)
class ModelResults:
    """The results of one model. A document with turned pages takes two forward passes.

    Attributes:
        quality: metrics of its predictions.
        agreement: share of documents to which it gives the first model's label.
        parameters: number of parameters.
        flops_per_page: of forward passes, by formula (`docvit.evaluation.cost`), mean over the pages.
        documents_per_second: of forward passes over packed batches of the same number of patches for every model,
            without rendering and packing.
        bytes_on_disk: size of the weights' file; for a model in memory, of what `save_pretrained` would write.
    """

    quality: Report
    agreement: float
    parameters: int
    flops_per_page: float
    documents_per_second: float
    bytes_on_disk: int

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        quality = values.pop("quality")
        return {name: v for name, v in quality.items() if name not in ("documents", "classes")} | values


@dataclass(frozen=True)
class Comparison:
    """Results of several models on the same documents; `errors` are those of documents that could not be read."""

    models: dict[str, ModelResults]
    documents: int
    pages: int
    classes: tuple[str, ...]
    device: str
    threads: int
    errors: tuple[DocumentError, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("documents", "pages", "device", "threads")}
        models = {name: results.as_dict() for name, results in self.models.items()}
        return {**own, "unreadable": len(self.errors), "classes": list(self.classes), "models": models}

    def markdown(self) -> str:
        """A table with one row per measure and one column per model, aligned as plain text."""
        rows = [["", *self.models]] + [[m.name, *map(m.show, self.models.values())] for m in TABLE]
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
        aligned.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
        unreadable = f", {len(self.errors)} unreadable" if self.errors else ""
        device = f"{self.device} with {self.threads} threads" if self.device == "cpu" else self.device
        note = (
            f"{self.documents} documents, {self.pages} pages{unreadable}. Agreement is with the first model's labels. "
            f"Speed is of forward passes on {device}, without rendering and packing."
        )
        return "\n".join([*(f"| {' | '.join(row)} |" for row in aligned), "", note, ""])

    def plot(self, file: str | os.PathLike[str]) -> None:
        """Draws quality and cost as one PNG."""
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.set_title(f"quality on {self.documents} documents (ECE and AURC: lower is better)", fontsize=9)
        _bars(left, self.models, QUALITY, relative=False)
        right.set_title("cost as a share of the largest (lower is better)", fontsize=9)
        _bars(right, self.models, COST, relative=True)
        bars, names = left.get_legend_handles_labels()
        figure.legend(bars, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=130)


class Measure(NamedTuple):
    """A measure of a model: one row of the table, one group of bars."""

    name: str
    value: Callable[[ModelResults], float]
    format: Callable[[float], str] = "{:.3f}".format

    def show(self, results: ModelResults) -> str:
        return self.format(self.value(results))


QUALITY = (
    Measure("accuracy", lambda f: f.quality.accuracy),
    Measure("macro-F1", lambda f: f.quality.macro_f1),
    Measure("ECE", lambda f: f.quality.ece),
    Measure("AURC", lambda f: f.quality.aurc),
)

SIZE = (
    Measure("parameters", lambda f: f.parameters, EngFormatter(places=1)),
    Measure("FLOPs per page", lambda f: f.flops_per_page, EngFormatter(places=1)),
    Measure("size on disk", lambda f: f.bytes_on_disk, EngFormatter("B", places=1)),
)

COST = (*SIZE, Measure("time per document", lambda f: 1 / f.documents_per_second, EngFormatter("s", places=1)))

TABLE = (
    *QUALITY,
    Measure("agreement", lambda f: f.agreement),
    *SIZE,
    Measure("documents/s", lambda f: f.documents_per_second, "{:.4g}".format),
)


def _bars(axes: Axes, models: Mapping[str, ModelResults], measures: Sequence[Measure], *, relative: bool) -> None:
    values = np.array([[m.value(results) for m in measures] for results in models.values()])
    heights = values / values.max(0).clip(min=1e-12) if relative else values
    width = 0.8 / len(models)
    for i, ((name, results), row) in enumerate(zip(models.items(), heights, strict=True)):
        x = np.arange(len(measures)) + (i - (len(models) - 1) / 2) * width
        bars = axes.bar(x, row, width, color=f"C{i}", label=name)
        axes.bar_label(bars, [m.show(results) for m in measures], fontsize=7 if len(models) < 3 else 5, padding=1)
    axes.set_xticks(range(len(measures)), [m.name for m in measures], fontsize=9)
    axes.set_ylim(0, 1.12)
    axes.spines[["top", "right"]].set_visible(False)


def compare(
    models: Mapping[str, Model],
    data: LabelledDocuments,
    *,
    max_pages: int | None = 64,
    budget: int = BUDGET,
    workers: int = 2,
    timeout: float = 60.0,
    device: torch.device | str | None = None,
    words: bool = True,
    ocr_pages: int = 0,
    password: str | None = None,
) -> Comparison:
    """Measures models on the same documents; each document is read once per distinct rendering.

    Args:
        models: by the name under which each is shown: a classifier, a model (it is put into eval mode and moved to the
            device), or what `DocumentClassifier.from_pretrained` takes: a folder, a hub id, or None for the bundled
            model.
        max_pages, budget, workers, timeout, words, ocr_pages, password: as for `DocumentClassifier.predict`.
        device: of the models that are not classifiers yet.

    Raises:
        ModelError: a model that cannot be loaded.
        ValueError: no models, models (or documents) of different classes, or no document that can be read.
    """
    if not models:
        raise SettingError("no models to compare")
    trials = {name: _Trial(_classifier(model, device)) for name, model in models.items()}
    _check_classes({**{n: t.classifier.classes for n, t in trials.items()}, "the data": data.classes})
    for rendering in dict.fromkeys(t.classifier.rendering for t in trials.values()):
        alike = [t for t in trials.values() if t.classifier.rendering == rendering]
        # those without words among them leave out what is read
        reader = max((t.classifier for t in alike), key=lambda classifier: classifier.model.config.words)
        how = reader.reading(max_pages=max_pages, timeout=timeout, password=password, words=words, ocr_pages=ocr_pages)
        documents = read_documents(data.paths, rendering, workers=workers, **how)
        with tqdm(total=len(data), desc="comparing", unit="doc", disable=None) as bar:
            for results in in_batches(documents, rendering, budget):
                for trial in alike:
                    trial.take(results)
                bar.update(len(results))
    return _summary(models, trials, data)


class _Trial:
    """Runs one model over the documents and collects its results."""

    def __init__(self, classifier: DocumentClassifier) -> None:
        self.classifier, self.ready = classifier, classifier.for_stream()
        self.rows: list[np.ndarray | DocumentError] = []  # probabilities of each document
        self.seconds, self.flops, self.pages = 0.0, 0, 0

    def take(self, results: list[PageStack | DocumentError]) -> None:
        stacks = [r for r in results if isinstance(r, PageStack)]
        scores = iter(judge_upright(self._scores, stacks)[0])
        self.rows += [next(scores) if isinstance(r, PageStack) else r for r in results]
        self.pages += sum(len(stack.pages) for stack in stacks)

    def _scores(self, stacks: list[PageStack]) -> tuple[Sequence[np.ndarray], Sequence[Tensor]]:
        batch = self.classifier.model.pack(stacks).to(self.classifier.device)
        self.ready.run(batch).documents.cpu()  # compiles kernels for new shapes: else the first model would pay for all
        start = time.perf_counter()
        answers = self.ready.run(batch)
        scores, turned = answers.documents.cpu().numpy(), answers.turned.cpu()  # copying waits for the device
        self.seconds += time.perf_counter() - start
        self.flops += predict_cost(self.classifier.model.config, batch).flops
        return list(scores), turned.split([len(stack.pages) for stack in stacks])


def _classifier(model: Model, device: torch.device | str | None) -> DocumentClassifier:
    if isinstance(model, DocumentClassifier):
        return model
    if isinstance(model, DocViT):
        return DocumentClassifier(model, device=device)
    return DocumentClassifier.from_pretrained(model, device=device)


def _check_classes(classes: Mapping[str, Sequence[str]]) -> None:
    (first, expected), *others = classes.items()
    for name, found in others:
        lacking, besides = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
        if lacking or besides:
            differences = [f"lacks {', '.join(lacking)}"] if lacking else []
            differences += [f"has also {', '.join(besides)}"] if besides else []
            raise SettingError(f"the classes differ: compared with {first}, {name} {' and '.join(differences)}")


def _summary(models: Mapping[str, Model], trials: Mapping[str, _Trial], data: LabelledDocuments) -> Comparison:
    errors = {r.path: r for t in trials.values() for r in t.rows if isinstance(r, DocumentError)}
    read = [i for i, path in enumerate(data.paths) if path not in errors]
    if not read:
        raise SettingError("none of the documents could be read")
    truth = [data.labels[i] for i in read]
    results: dict[str, ModelResults] = {}
    reference: np.ndarray | None = None
    for name, trial in trials.items():
        columns = [trial.classifier.classes.index(c) for c in data.classes]
        scores = np.array([trial.rows[i] for i in read])[:, columns]
        reference = scores.argmax(1) if reference is None else reference
        results[name] = ModelResults(
            quality=report(scores, truth, data.classes),
            agreement=float((scores.argmax(1) == reference).mean()),
            parameters=sum(p.numel() for p in trial.classifier.model.parameters()),
            flops_per_page=trial.flops / trial.pages,
            documents_per_second=sum(isinstance(r, np.ndarray) for r in trial.rows) / trial.seconds,
            bytes_on_disk=_size(models[name], trial.classifier.model),
        )
    first = next(iter(trials.values()))
    return Comparison(
        models=results,
        documents=len(read),
        pages=first.pages,
        classes=data.classes,
        device=str(first.classifier.device),
        threads=torch.get_num_threads(),
        errors=tuple(errors.values()),
    )


def _size(source: Model, model: DocViT) -> int:
    if source is None or isinstance(source, str | os.PathLike):
        file = (BUNDLED if source is None else Path(source)) / WEIGHTS
        if file.is_file():
            return file.stat().st_size
    return len(save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}))
