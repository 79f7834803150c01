"""Maps of ONNX networks as targets of patch and page tokens: computed once, kept on disk, moved as pages are."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from docvit.data.augment import move_maps
from docvit.data.dataset import DocumentDataset, View
from docvit.data.labels import DataError
from docvit.data.sampling import Key
from docvit.documents.cache import CachedDocument, default_cache, intact
from docvit.documents.errors import DocumentError
from docvit.documents.pages import PageStack
from docvit.documents.patches import PatchSequence
from docvit.documents.rendering import Rendering
from docvit.documents.workers import read_documents
from docvit.files import write_tensors
from docvit.training.distributed import Process
from kd.documents.onnx_network import DYNAMIC, MEAN, STD, OnnxNetwork
from kd.student import map_state

logger = logging.getLogger(__name__)

FORMAT = 1  # of the files and of how maps are pooled; part of their names

LARGEST = 65504.0  # in float16


class Moments(NamedTuple):
    """Mean and deviation of each channel."""

    mean: Tensor
    std: Tensor

    def standardise(self, rows: Tensor) -> Tensor:
        return (rows.float() - self.mean) / self.std


class PreparedMaps(NamedTuple):
    """Maps of one network: a file for each document, and what is wrong with the documents without one.

    `patches` (C,) and `pages` (2C,) are moments over all cells and all pages of the documents.
    """

    network: OnnxNetwork
    files: dict[str, Path]
    problems: list[str]
    patches: Moments
    pages: Moments


def pool_map(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """(C, h, w) -> (C, rows, cols): mean over the share of the page that each cell of the grid covers."""
    down, across = (_overlaps(n, size) for n, size in zip(grid, features.shape[1:], strict=True))
    return down @ features @ across.T


def _overlaps(cells: int, size: int) -> Tensor:
    """(cells, size) share of each cell that lies under each of `size` equal parts; rows sum to 1."""
    begin, end = (torch.arange(n, n + cells, dtype=torch.float64)[:, None] * size for n in (0, 1))
    first, last = (torch.arange(n, n + size, dtype=torch.float64) * cells for n in (0, 1))
    overlap = torch.minimum(end, last) - torch.maximum(begin, first)  # both counted in 1 / (cells * size)
    return (overlap.clamp(min=0) / size).float()


def prepare_maps(
    network: OnnxNetwork,
    rendered: Mapping[str, Path],
    rendering: Rendering,
    process: Process,
    *,
    cache: Path | None = None,
    workers: int = 2,
    password: str | None = None,
) -> PreparedMaps:
    """Computes what is not on disk yet; interrupted, the same call goes on with what was computed.

    A document's file is named by the content of the document, the network's file and output, and the student's grid.
    The first process of a group computes, the others wait and read its files.

    Args:
        rendered: documents as rendered for the student under `rendering`, by path.
        cache: folder of rendered pages; maps lie in a folder of it.
        password: opens PDFs that have one.

    Raises:
        DataError: none of the documents can be read.
    """
    folder = (cache or default_cache()) / "maps"
    how = {
        "network": [network.sha256, network.output, network.size or DYNAMIC, MEAN, STD],
        "grid": [rendering.renderer, rendering.size, rendering.multiple],
        "format": FORMAT,
    }
    digest = hashlib.sha256(json.dumps(how).encode()).hexdigest()[:12]
    files = {path: _file(folder, source, digest) for path, source in rendered.items()}
    problems: list[str] = []
    if process.rank == 0:
        problems = _compute(network, rendered, rendering, files, workers=workers, password=password)
    if process.world_size > 1:
        dist.barrier()
    present = {path: file for path, file in files.items() if intact(file)}
    if not present:
        raise DataError("the documents", problems)
    return PreparedMaps(network, present, problems, *_moments(set(present.values()), folder))


def _file(folder: Path, source: Path, digest: str) -> Path:
    content, _, _ = source.stem.partition("-")
    return folder / content[:2] / f"{content}-{digest}.safetensors"


def _compute(
    network: OnnxNetwork,
    rendered: Mapping[str, Path],
    rendering: Rendering,
    files: Mapping[str, Path],
    **reading: Any,
) -> list[str]:
    """Writes the files that are not there; gives a line for each document that cannot be read."""
    absent = {file: path for path, file in files.items() if not intact(file)}  # copies of a document count once
    sources = [CachedDocument.open(rendered[path]) for path in absent.values()]
    results = read_documents(absent.values(), network.rendering(rendering.renderer), ahead=1, **reading)
    problems: list[str] = []
    total, title = sum(len(source.indices) for source in sources), f"maps of {network.name}"
    with tqdm(total=total, desc=title, unit="page", disable=None if total else True) as bar:
        try:
            for file, source, stack in zip(absent, sources, results, strict=True):
                if isinstance(stack, DocumentError):
                    problems.append(f"{stack.kind}: {stack}")
                elif stack.indices != list(source.indices):
                    problems.append(f"{stack.path}: some of its pages cannot be drawn at the size of {network.name}")
                else:
                    _write(file, network, stack, source, rendering.multiple)
                bar.update(len(source.indices))
        except KeyboardInterrupt:
            logger.warning("stopped before training began: the same command goes on with the maps computed so far")
            raise
    return problems


def _write(file: Path, network: OnnxNetwork, stack: PageStack, source: CachedDocument, patch_size: int) -> None:
    """The maps of a document's pages, by page index, and their mean and maximum; laid out as rendered pages are."""
    tensors = {}
    for index, page in zip(stack.indices, stack.pages, strict=True):
        found = network(np.asarray(page))
        tensors[str(index)] = _half(pool_map(found, _grid(source, index, patch_size)))
        tensors[f"{index}.page"] = _half(torch.cat([found.mean((1, 2)), found.amax((1, 2))]))
    values = {"num_pages": source.num_pages, "indices": source.indices, "kept": source.kept, "words_from": None}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(file, tensors, {"docvit": json.dumps(values)})


def _grid(source: CachedDocument, index: int, multiple: int) -> tuple[int, int]:
    with safe_open(source.file, "pt") as pages:
        height, width, *_ = pages.get_slice(str(index)).get_shape()
    return height // multiple, width // multiple


def _half(values: Tensor) -> Tensor:
    return values.clamp(-LARGEST, LARGEST).half()


def _moments(files: set[Path], folder: Path) -> tuple[Moments, Moments]:
    """Moments of patches and pages over these files; they are kept beside the maps."""
    ordered = sorted(files)
    name = hashlib.sha256("\n".join(file.stem for file in ordered).encode()).hexdigest()[:24]
    kept = folder / "moments" / f"{name}.safetensors"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        measured = {"patches": _measure(ordered, of_pages=False), "pages": _measure(ordered, of_pages=True)}
        write_tensors(kept, {kind: torch.stack(moments) for kind, moments in measured.items()})
    found = load_file(kept)
    return Moments(*found["patches"]), Moments(*found["pages"])


def _measure(files: Sequence[Path], *, of_pages: bool) -> Moments:
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for file in files:
        for name, values in load_file(file).items():
            if name.endswith(".page") == of_pages:
                rows = values.double().flatten(1) if values.ndim > 1 else values.double()[:, None]  # (C, cells)
                count += rows.shape[1]
                total, squares = total + rows.sum(1), squares + rows.square().sum(1)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    # a channel that never varies says nothing, and must not be divided by the rounding of its zero
    return Moments(mean.float(), torch.where(deviation > 1e-4, deviation, 1.0).float())


class MapDataset(DocumentDataset):
    """Documents as `DocumentDataset` gives them to the student, with maps in place of pages.

    By the same random numbers the same pages are chosen, mixed in from partners, and moved. Everything else about a
    page is as the network saw it: clean.
    """

    def __init__(
        self, maps: PreparedMaps, paths: Sequence[str], labels: Sequence[int] | None, view: View, **options: Any
    ) -> None:
        super().__init__([maps.files[path] for path in paths], labels, replace(view, words=False), **options)
        self.maps = maps

    def augment(self, stack: PageStack, random: Any) -> PageStack:
        with safe_open(stack.path, "pt") as file:
            of_pages = [file.get_tensor(f"{index}.page") for index in stack.indices]
        maps = [torch.from_numpy(page).float() for page in stack.pages]
        if self.view.augmentation is not None:
            maps = move_maps(maps, self.view.augmentation, random)
        return stack._replace(pages=cast(Any, list(zip(maps, of_pages, strict=True))))

    def targets(self, keys: Sequence[Key], sequence: PatchSequence) -> dict[str, Tensor]:
        """Standardised targets of a batch, by the names of `kd.student.map_state`.

        Of each patch its cell (T, C), of each page mean and maximum of its map (N, 2C).
        """
        pages = [cast(tuple[Tensor, Tensor], page) for key in keys for page in self[key][2].pages]
        bounds = sequence.page_bounds.tolist()
        cells = [
            features[:, sequence.row[begin:end], sequence.col[begin:end]].T
            for (features, _), begin, end in zip(pages, bounds[:-1], bounds[1:], strict=True)
        ]
        of_patches = self.maps.patches.standardise(torch.cat(cells))
        of_pages = self.maps.pages.standardise(torch.stack([of_page for _, of_page in pages]))
        name = self.maps.network.name
        return {map_state(name, "patches"): of_patches, map_state(name, "pages"): of_pages}
