"""Pages become one packed sequence of patches, without padding; blank patches are left out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from docvit.documents.empty_sheets import is_empty_sheet
from docvit.documents.hashing import hash_ngrams
from docvit.documents.images import fit_image
from docvit.documents.pages import Document, PageStack, open_document, spread
from docvit.documents.rendering import Rendering
from docvit.documents.words import Words

PageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

# tensors of a batch; the others stay on the CPU
ON_DEVICE = ("patches", "page", "row", "col", "grids", "page_index", "words")

BLANK_RANGE = 8  # grey levels: scanner noise and JPEG ringing stay below it, the faintest hairline does not


@dataclass(frozen=True)
class PatchSequence:
    """The patches of a batch of documents, one after the other, each with its address.

    T patches, N pages, B documents. A page may have no patch at all (a blank page); its class token, which the model
    adds, still stands for it. The two boundary vectors describe the batch's shape and stay on the CPU, so that nothing
    has to be read back from the device.

    Attributes:
        patches: (T, C * P * P) normalised pixels, ordered channel, row, column.
        page: (T,) page index of each patch within its document, from 0.
        row: (T,) row of each patch in its page's grid, from 0.
        col: (T,) column of each patch in its page's grid, from 0.
        grids: (N, 2) rows and columns of each page's whole grid, blank patches included.
        page_index: (N,) page index of each page within its document (true page numbers, gaps allowed).
        page_bounds: (N + 1,) patches before each page, cumulative.
        document_bounds: (B + 1,) pages before each document, cumulative.
        words: (G,) hashed n-grams of the words on the patches (`docvit.documents.hashing`), patch by patch; by default
            there are none.
        word_bounds: (T + 1,) n-grams before each patch, cumulative.
    """

    patches: Tensor
    page: Tensor
    row: Tensor
    col: Tensor
    grids: Tensor
    page_index: Tensor
    page_bounds: Tensor
    document_bounds: Tensor
    words: Tensor = None  # type: ignore[assignment]
    word_bounds: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.words is None:
            object.__setattr__(self, "words", self.row.new_zeros(0))
            object.__setattr__(self, "word_bounds", torch.zeros(self.num_patches + 1, dtype=torch.long))

    def __len__(self) -> int:
        return self.num_documents

    # shape[0] and not len(), which `torch.export` would take for a constant
    @property
    def num_documents(self) -> int:
        return self.document_bounds.shape[0] - 1

    @property
    def num_pages(self) -> int:
        return self.page_bounds.shape[0] - 1

    @property
    def num_patches(self) -> int:
        return self.patches.shape[0]

    @property
    def page_of_patch(self) -> Tensor:
        """(T,) which of the batch's N pages each patch lies on (CPU)."""
        return segment_ids(self.page_bounds, self.num_patches)

    @property
    def document_of_page(self) -> Tensor:
        """(N,) which of the batch's B documents each page belongs to (CPU)."""
        return segment_ids(self.document_bounds, self.num_pages)

    @property
    def document_lengths(self) -> Tensor:
        """(N,) for each page, how many pages its document spans: its largest page index + 1."""
        document = self.document_of_page.to(self.page_index.device)
        lengths = torch.zeros(self.num_documents, dtype=self.page_index.dtype, device=self.page_index.device)
        return lengths.scatter_reduce(0, document, self.page_index + 1, "amax")[document]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PatchSequence:
        """The same batch with its tensors on `device`; the boundaries stay on the CPU."""
        return replace(self, **{n: getattr(self, n).to(device, non_blocking=non_blocking) for n in ON_DEVICE})

    def pin_memory(self) -> PatchSequence:
        return replace(self, **{n: getattr(self, n).pin_memory() for n in ON_DEVICE})

    def select(self, keep: Tensor) -> PatchSequence:
        """Only the patches where `keep` (T,) is true; pages and documents all stay.

        Raises:
            ValueError: `keep` is not a boolean vector with one entry per patch.
        """
        if keep.dtype != torch.bool or keep.shape != (self.num_patches,):
            raise ValueError(f"keep must be a boolean vector of length {self.num_patches}, not {tuple(keep.shape)}")
        fields = {name: getattr(self, name)[keep] for name in ("patches", "page", "row", "col")}
        kept, lengths = keep.cpu(), self.word_bounds.diff()
        words = self.words[torch.repeat_interleave(kept, lengths).to(self.words.device)]
        bounds = {"page_bounds": cumulate(kept.long())[self.page_bounds], "word_bounds": cumulate(lengths[kept])}
        return replace(self, **fields, **bounds, words=words)

    @property
    def written(self) -> Tensor:
        """(B,) whether each document has words (CPU)."""
        return self.word_bounds[self.page_bounds[self.document_bounds]].diff() > 0

    def cut(self, begins: Sequence[int]) -> PatchSequence:
        """The same pages as documents that begin at these (the first is 0); page indices begin anew in each."""
        bounds = torch.tensor([*begins, self.num_pages])
        first = self.page_index[bounds[:-1].repeat_interleave(bounds.diff()).to(self.page_index.device)]  # (N,)
        page = self.page - first[self.page_of_patch.to(first.device)]
        return replace(self, page=page, page_index=self.page_index - first, document_bounds=bounds)

    def without_words(self) -> PatchSequence:
        """The same batch as pixels alone."""
        return replace(self, words=self.words[:0], word_bounds=torch.zeros_like(self.word_bounds))


def cumulate(counts: Tensor) -> Tensor:
    """Counts (S,) to boundaries (S + 1,) that begin with 0."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


torch.export.register_dataclass(PatchSequence)  # a pytree, so that `torch.export` takes it as an input


def segment_ids(bounds: Tensor, total: int) -> Tensor:
    """(total,) the segment that each entry lies in, from cumulative boundaries (S + 1,), on their device."""
    segments = torch.arange(bounds.shape[0] - 1, device=bounds.device)
    return torch.repeat_interleave(segments, bounds.diff(), output_size=total)  # known: nothing depends on values


def pack(
    documents: Iterable[Document | PageStack | Sequence[PageLike]],
    patch_size: int = 16,
    *,
    size: int = 224,
    channels: int = 3,
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
    drop_blank: bool = True,
    max_pages: int | None = None,
    words: bool = False,
) -> PatchSequence:
    """Packs documents of any number of pages, of any sizes, into one sequence.

    Args:
        documents: each an open `Document`, a `PageStack`, or a sequence of pages. A page is a path to an image, a PIL
            image, a (H, W) or (H, W, 3) uint8 array, or a (C, H, W) float tensor that is already normalised and is
            taken as it is. A page's position in its sequence is its page index; a `PageStack` brings its own indices.
        patch_size: P, in px.
        size: length in px of the longer side that paths, images and open documents are brought to; the shorter one
            follows, rounded to whole patches. Arrays and tensors are never resized.
        channels: 1 (grey) or 3 (RGB).
        mean, std: per channel (or one for all), of pixels in 0..1.
        drop_blank: leave out patches whose pixels differ by at most 8 grey levels in every channel, and all patches of
            a scanned empty sheet (`docvit.documents.empty_sheets`).
        max_pages: read at most so many pages of a document, spread evenly, first and last always in.
        words: take the words of stacks, and read those of open documents, for the patches under their middles. A patch
            with words is never blank.

    Raises:
        ValueError: no documents, a document without pages, a page of another shape or kind than these, sides that are
            not multiples of the patch size, a path to a file of several pages.
        DocumentError: a page that cannot be read (see `docvit.documents.errors`).
    """
    mean_, std_ = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
    rendering = Rendering(size=size, multiple=patch_size, mode="L" if channels == 1 else "RGB")
    cuts: list[_Cut] = []
    pages: list[int] = []
    document_bounds = [0]
    for document in documents:
        before = len(pages)
        for index, page, on_page in _numbered(document, rendering, max_pages, words):
            cuts.append(_cut(page, on_page, rendering, mean_, std_, drop_blank))
            pages.append(index)
        if len(pages) == before:
            raise ValueError(f"document {len(document_bounds) - 1} of the batch has no pages")
        document_bounds.append(len(pages))
    if not pages:
        raise ValueError("no documents to pack")
    counts = torch.tensor([len(cut.cells) for cut in cuts])
    cell = torch.cat([cut.cells for cut in cuts])
    columns = torch.repeat_interleave(torch.tensor([cut.grid[1] for cut in cuts]), counts)
    return PatchSequence(
        patches=torch.cat([cut.patches for cut in cuts]),
        page=torch.repeat_interleave(torch.tensor(pages), counts),
        row=cell // columns,
        col=cell % columns,
        grids=torch.tensor([cut.grid for cut in cuts]),
        page_index=torch.tensor(pages),
        page_bounds=cumulate(counts),
        document_bounds=torch.tensor(document_bounds),
        words=torch.cat([cut.hashes for cut in cuts]),
        word_bounds=cumulate(torch.cat([cut.hashes_per_patch for cut in cuts])),
    )


class _Cut(NamedTuple):
    """One page in patches."""

    patches: Tensor  # (n, C * P * P), the kept ones
    cells: Tensor  # (n,) their cells, in reading order
    grid: tuple[int, int]
    hashes: Tensor  # (g,) hashed n-grams, patch by patch
    hashes_per_patch: Tensor  # (n,)


def _per_channel(name: str, values: Sequence[float], channels: int) -> Tensor:
    if len(values) not in (1, channels):
        raise ValueError(f"{name} has {len(values)} values for {channels} channels")
    return torch.tensor(tuple(values)).expand(channels)


def _numbered(
    document: Document | PageStack | Sequence[PageLike], rendering: Rendering, max_pages: int | None, words: bool
) -> Iterable[tuple[int, PageLike, Words]]:
    """(page index, page, words on it) one at a time."""
    if isinstance(document, str | os.PathLike | Image.Image | Tensor | np.ndarray):
        raise ValueError(
            "a document is a sequence of pages: put a single page in a list, open a file with open_document"
        )
    if isinstance(document, PageStack):
        for i in spread(len(document.pages), max_pages):
            yield document.indices[i], document.pages[i], document.words[i] if words and document.words else Words()
    elif isinstance(document, Document):
        wanted = replace(document.rendering, size=rendering.size, multiple=rendering.multiple, mode=rendering.mode)
        for i in spread(len(document), max_pages):
            yield i, document.render(i, wanted), document.read_words(i) if words else Words()
    else:
        yield from ((i, document[i], Words()) for i in spread(len(document), max_pages))


def _cut(page: PageLike, words: Words, rendering: Rendering, mean: Tensor, std: Tensor, drop_blank: bool) -> _Cut:
    channels, size = len(mean), rendering.multiple
    noise = torch.tensor(BLANK_RANGE + 0.5)  # between two levels: rounding cannot matter
    if isinstance(page, Tensor):
        if page.ndim != 3 or page.shape[0] != channels or not page.is_floating_point():
            raise ValueError(f"a page tensor is a float ({channels}, H, W), not {page.dtype} {tuple(page.shape)}")
        pixels, noise = page, noise / 255 / std  # already normalised: so is the threshold
    else:
        array = page if isinstance(page, np.ndarray) else _image(page, rendering)
        if array.dtype != np.uint8 or array.ndim < 2 or array.shape[2:] != (() if channels == 1 else (channels,)):
            raise ValueError(f"a page array for {channels} channels cannot be {array.dtype} {array.shape}")
        pixels = torch.from_numpy(np.atleast_3d(array)).permute(2, 0, 1)
    _, height, width = pixels.shape
    if height % size or width % size or not height or not width:
        raise ValueError(f"page sides {height} x {width} are not multiples of the patch size {size}")
    patches = rearrange(pixels, "c (h p1) (w p2) -> (h w) c (p1 p2)", p1=size, p2=size)
    grid = height // size, width // size
    hashes, cells_of_hashes, _ = hash_words(words, grid)
    cells = torch.arange(len(patches))
    if drop_blank:
        spans = patches.amax(2).float() - patches.amin(2).float()  # (h w, C)
        cells = cells[(spans.cpu() > noise).any(1) | torch.isin(cells, cells_of_hashes)]
        if len(cells) and not isinstance(page, Tensor) and not words and is_empty_sheet(array):
            cells = cells[:0]
        patches = patches[cells]
    if not isinstance(page, Tensor):  # normalised only now: about half of a page has just been dropped
        patches = (patches.float() / 255 - mean[:, None]) / std[:, None]
    hashes_per_cell = torch.bincount(cells_of_hashes, minlength=grid[0] * grid[1])
    return _Cut(patches.flatten(1), cells, grid, hashes, hashes_per_cell[cells])


def hash_words(words: Words, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Hashed n-grams (g,) of a page, cell by cell, and for each the cell under the middle of its word, and that word.

    Cells (g,) are numbered row by row; words (g,) are indices into `words`.
    """
    hashes, owners = hash_ngrams(words.texts)
    left, top, right, bottom = words.boxes.T
    row, col = (top + bottom) / 2 * grid[0], (left + right) / 2 * grid[1]
    row, col = (x.astype(np.int64).clip(0, n - 1) for x, n in zip((row, col), grid, strict=True))
    cells = (row * grid[1] + col)[owners]
    order = np.argsort(cells, kind="stable")
    return torch.from_numpy(hashes[order]), torch.from_numpy(cells[order]), torch.from_numpy(owners[order])


def _image(page: str | os.PathLike[str] | Image.Image, rendering: Rendering) -> np.ndarray:
    """A path or PIL image at the wanted size, as uint8."""
    if isinstance(page, Image.Image):
        return np.array(fit_image(page, rendering))
    with open_document(page, rendering) as document:
        if len(document) > 1:
            raise ValueError(f"{document.path} has {len(document)} pages: pass open_document(path), not a list of it")
        return np.array(document[0])
