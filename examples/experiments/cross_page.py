"""Synthetic documents whose class lies between their pages: what each positional scheme can and cannot learn.

    python examples/experiments/cross_page.py --output runs/cross_page

A page is a grid of 2 x 2 cells, two of them blank, two scrawled on; one of the scrawls may be the mark. Blank cells
are left out, as everywhere. Three questions, their classes equally frequent:

- `which-page`: one page bears the mark, in any cell. The class is the page's index, 1 of 4.
- `two-pages`: every page bears the mark, in any cell. The class is the page, 1 of 3, whose mark is in the same cell
  as the first page's; on the other pages it is elsewhere.
- `page-and-cell`: one page bears the mark. The class is (page + cell) mod 4: neither alone carries information.

What theory says:

- A model that numbers all pages alike and pools sees a set of pages: all orders of the same pages give one output. As
  each order is equally likely, and each class equally frequent among them, no such model is better than chance in any
  of the three tasks: `page-independent`, `pages-mean`, `pages-max`, and `pages-concat`, whose second transformer gets
  that same set.
- Blocks that see single pages, with document-global positions and mean pooling (`spatial+page, pages alone`), solve
  `which-page` and `page-and-cell`. Their logits are a sum over single pages. In `two-pages` no single page carries
  information about the class, and cross-entropy, convex in such a sum, is then least where the sum is constant: chance.
- Positions and attention over the document can solve all three. `rope` sees differences of pages only; it can tell a
  page's index from where the document ends, which has to be learned.

Trained on documents of 4 pages; judged on new ones of 4, and on longer ones of 6 and 8, where the pages behind the
fourth bear nothing that matters. Learned tables have room for 8 pages, of which training shows 4, as a table for 64 has
in use; those of `spatial+page, stretched` have room for 4, and are stretched over longer documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from runs import configuration, open_results, parser, run_all
from torch import Tensor, nn

from docvit import DocViT, PatchSequence, create_model
from docvit.data.dataset import DocumentBatch
from docvit.model.variants import BASELINES
from docvit.training.loop import TrainSettings, fit

TASKS = {"which-page": 4, "two-pages": 3, "page-and-cell": 4}  # classes
EFFORT = {"which-page": 1, "two-pages": 3, "page-and-cell": 1}  # times as many steps: pages have to find each other
ALONE, STRETCHED = "spatial+page, pages alone", "spatial+page, stretched"
SETS = ("page-independent", *BASELINES)
SCHEMES = (*SETS, ALONE, "continued", "sincos", "sincos2d+page", "spatial+page", STRETCHED, "rope")
SIDE, PATCH, SCRAWLS = 2, 4, 2


@dataclass(frozen=True)
class Settings:
    """What results depend on, beside task, scheme and seed.

    Attributes:
        noise: standard deviation of what is added to every pixel, of 1.
        position_std: of learned tables at the start, as large as the sinusoids; their usual 0.02 takes longer to grow.
    """

    pages: int = 4
    longer: tuple[int, ...] = (6, 8)
    steps: int = 400
    documents: int = 64
    tested: int = 2000
    noise: float = 0.3
    width: int = 64
    depth: int = 3
    heads: int = 4
    scopes: str = "page-then-document:2"
    position_std: float = 0.7
    lr: float = 2e-3


def draw(task: str, documents: int, pages: int, settings: Settings, random: torch.Generator) -> DocumentBatch:
    """Documents of `pages` pages, labelled."""

    def pick(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=random)

    label = pick(TASKS[task], documents)
    row = torch.arange(documents)
    cell = pick(SIDE**2, documents, pages)  # of each page's first scrawl
    if task == "two-pages":
        marked = torch.ones(documents, pages, dtype=torch.bool)
        away = 1 + pick(SIDE**2 - 1, documents, pages)
        cell = (cell[:, :1] + away) % SIDE**2  # anywhere but where the first page has it
        cell[:, 0] = (cell[:, 0] - away[:, 0]) % SIDE**2
        cell[row, 1 + label] = cell[:, 0]
    else:
        page = label if task == "which-page" else pick(4, documents)
        marked = F.one_hot(page, pages).bool()
        if task == "page-and-cell":
            cell[row, page] = (label - page) % SIDE**2
    return DocumentBatch(scrawl(cell, marked, settings, random), label, row)


def scrawl(cell: Tensor, marked: Tensor, settings: Settings, random: torch.Generator) -> PatchSequence:
    """Pages with their first scrawl, the mark where `marked` (B, pages) says so, in `cell` (B, pages)."""
    documents, pages = cell.shape
    priority = torch.rand(documents, pages, SIDE**2, generator=random).scatter_(2, cell[..., None], -1.0)
    cells = priority.argsort(2)[..., :SCRAWLS].flatten()  # the wanted one, and others
    strokes = torch.randn(2, PATCH**2, generator=torch.Generator().manual_seed(0))  # the mark, and what is none
    kind = torch.ones(documents, pages, SCRAWLS, dtype=torch.long)
    kind[..., 0] = (~marked).long()
    patches = strokes[kind.flatten()]
    patches = patches + settings.noise * torch.randn(patches.shape, generator=random)
    index = torch.arange(pages).repeat(documents)
    return PatchSequence(
        patches=patches,
        page=index.repeat_interleave(SCRAWLS),
        row=cells // SIDE,
        col=cells % SIDE,
        grids=torch.full((documents * pages, 2), SIDE),
        page_index=index,
        page_bounds=SCRAWLS * torch.arange(documents * pages + 1),
        document_bounds=pages * torch.arange(documents + 1),
    )


class Made:
    """Batches of documents, each drawn once."""

    def __init__(self, task: str, settings: Settings, seed: int) -> None:
        self.task, self.settings, self.seed, self.skip = task, settings, seed, 0

    def __len__(self) -> int:
        return self.settings.steps * EFFORT[self.task]

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.skip = skip

    def __iter__(self) -> Iterator[DocumentBatch]:
        for step in range(self.skip, len(self)):
            random = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            yield draw(self.task, self.settings.documents, self.settings.pages, self.settings, random)


def build(task: str, scheme: str, settings: Settings) -> DocViT:
    given: dict[str, Any] = {"scopes": settings.scopes, **configuration(scheme.partition(",")[0])}
    if scheme == ALONE:
        given["scopes"] = "page"
    elif scheme in BASELINES:
        del given["scopes"]  # they bring their own
    room = settings.pages if scheme == STRETCHED else max(settings.longer)
    shape: dict[str, Any] = {
        "embed_dim": settings.width,
        "depth": settings.depth,
        "num_heads": settings.heads,
        "patch_size": PATCH,
    }
    tables: dict[str, Any] = {"grid": (SIDE, SIDE), "page_embeddings": room, "page_size": SIDE * PATCH, "in_chans": 1}
    model = create_model("docvit_tiny_patch16", num_classes=TASKS[task], **shape, **tables, **given)
    for table in model.positions.parameters():
        nn.init.normal_(table, std=settings.position_std)
    return model


def cross_entropy(model: nn.Module, batch: DocumentBatch, progress: float) -> dict[str, Tensor]:
    return {"loss": F.cross_entropy(model(batch.sequence), batch.labels)}


@torch.inference_mode()
def accuracy(model: nn.Module, task: str, pages: int, settings: Settings) -> float:
    batch = draw(task, settings.tested, pages, settings, torch.Generator().manual_seed(2**40 + pages))
    return float((model.eval()(batch.sequence).argmax(1) == batch.labels).float().mean())


def run(task: str, scheme: str, seed: int, settings: Settings) -> dict[str, Any]:
    """Trains one model and judges it on documents of that length, and on longer ones."""
    torch.manual_seed(seed)
    model = build(task, scheme, settings)
    loop = TrainSettings(epochs=1, lr=settings.lr, weight_decay=0.01, seed=seed, bf16=False)
    (record,) = fit(model, Made(task, settings, seed), cross_entropy, loop)
    accuracies = {str(pages): accuracy(model, task, pages, settings) for pages in (settings.pages, *settings.longer)}
    return {"task": task, "scheme": scheme, "seed": seed, "seconds": record["seconds"], **accuracies}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--schemes", nargs="+", default=SCHEMES)
    options.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    options.add_argument("--steps", type=int, default=Settings.steps)
    options.add_argument("--tested", type=int, default=Settings.tested)
    arguments = options.parse_args()
    settings = Settings(steps=arguments.steps, tested=arguments.tested)
    results = open_results(Path(arguments.output), {"experiment": "cross page", **asdict(settings)})
    tasks = {
        f"{task} {scheme} seed {seed}": (task, scheme, seed, settings)
        for seed in range(arguments.seeds)
        for task in arguments.tasks
        for scheme in arguments.schemes
    }
    run_all(results, tasks, run, arguments)


if __name__ == "__main__":
    main()
