"""Are the pages in order? Real documents, untouched or with pages moved, told apart by what their pages look like.

    python examples/page_order.py DOCUMENTS.csv --output runs/page_order
    python examples/page_order.py FOLDER_OF_PDFS --output runs/page_order

Three ways to move pages: `reversed`, `first-last` (the first page moved to the end) and `swapped` (two pages, chosen at
random, exchanged). One model a scheme and seed learns all of them together with the untouched order; each is then
judged alone, half of the cases untouched. Whole sources are left out for testing: fold S of scikit-learn's
StratifiedGroupKFold(5) for seed S (each file is its own source where a folder is given). Documents have three pages or
more; of a longer one than eight, the first, the last and six others are seen, numbered anew, so that neither the count
nor the numbers say anything.

Page-independent encoding with pooling is at 50 % by construction: its output does not depend on the order of its input,
so that it says the same of a document before and after its pages are moved. All schemes alike are told, page by page,
what sets a page apart from the others of its document (`ApartStem`, which the library does not have): no order
comes through that.

What the ink stem measures on a page holds nothing learned. It is measured once, on the page as it is and on changed
copies, and all models train on that: a run takes about a minute on one core.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measured import Kept, MeasuredStem, Page, measure, pages_of, put_together
from runs import configuration, open_results, parser, run_all
from torch import Tensor, nn
from tqdm import tqdm

from docvit import DocViT, PatchSequence, create_model
from docvit.augment import Augmentation, augment
from docvit.cache import CachedDocument, PageCache, default_cache
from docvit.data import Batch, LabelledDocuments, read_labelled
from docvit.files import replaced
from docvit.pages import find_documents, spread
from docvit.recipes import split_groups
from docvit.stems import STEMS
from docvit.train import TrainSettings, fit, make_ema

UNTOUCHED, TASKS = "untouched", ("reversed", "first-last", "swapped")
ORDERS = (UNTOUCHED, *TASKS)
SCHEMES = ("page-independent", "pages-concat", "continued", "sincos", "sincos2d+page", "spatial+page", "rope")
PLACES = 3  # first, last, between


@dataclass(frozen=True)
class Settings:
    """What results depend on, beside scheme and seed.

    Attributes:
        max_pages: pages of a document that are seen, its first and last always among them.
        views: how many times each page is measured: as it is, and changed.
        documents: documents a batch, each in all orders.
        place_loss: weight of a second loss: page tokens tell whether their page was first, last or between before pages
            were moved. A document has one order, but many pages to learn from.
        position_std: of learned tables at the start; their usual 0.02 would take half of so short a run to grow.
        draws: pairs of pages swapped, each in its own copy of a document, when testing.
        train: in float32: every batch has shapes of its own, for which bfloat16 kernels would first be built.
    """

    min_pages: int = 3
    max_pages: int = 8
    views: int = 8
    documents: int = 4
    folds: int = 5
    place_loss: float = 1.0
    label_smoothing: float = 0.05
    position_std: float = 0.3
    ema: float = 0.995
    draws: int = 3
    model: dict[str, Any] = field(
        default_factory=lambda: {
            "in_chans": 3,
            "patch_size": 64,
            "grid": (4, 4),
            "depth": 3,
            "scopes": "page-then-document:2",
        }
    )
    augmentation: Augmentation = field(default_factory=Augmentation)
    train: TrainSettings = field(default_factory=lambda: TrainSettings(epochs=10, weight_decay=1.0, bf16=False))


class ApartStem(MeasuredStem):
    """The ink stem, whose class tokens are also told what sets their page apart from the others of its document.

    Figure by figure: how many standard deviations, and in which direction.
    """

    def __init__(self, in_chans: int, patch_size: int, dim: int) -> None:
        super().__init__(in_chans, patch_size, dim)
        self.page_proj = nn.Linear(3 * self.page_proj.in_features, dim)

    def tell(self, statistics: Tensor, batch: PatchSequence) -> Tensor:
        apart = set_apart(statistics.detach(), batch.document_bounds.diff())
        root = apart.abs().sqrt()
        return self.page_proj(torch.cat([statistics, root, root * apart.sign()], 1))


def set_apart(figures: Tensor, counts: Tensor) -> Tensor:
    """How far each page (N, F) is from the others of its document, in deviations; `counts` (B,) pages, at least 2.

    In float64, or what is said would depend on the order of pages by more than the last digits.
    """
    own, pages = torch.arange(len(counts)).repeat_interleave(counts), counts.repeat_interleave(counts)[:, None]

    def of_others(x: Tensor) -> Tensor:
        return (x.new_zeros(len(counts), x.shape[1]).index_add(0, own, x)[own] - x) / (pages - 1)

    exact = figures.double()
    mean, square = of_others(exact), of_others(exact.square())
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    apart = (exact - mean) / (deviation + 0.25)  # figures that hardly differ in a document say little
    return apart.to(figures.dtype)


STEMS["apart-ink"] = ApartStem


Views = list[list[Page]]  # a document: views x pages; the first view is the pages as they are


def build(scheme: str, settings: Settings, **more: Any) -> DocViT:
    given = {"num_classes": len(ORDERS), "max_pages": settings.max_pages, "stem": "apart-ink", **settings.model}
    if scheme == "pages-concat":
        del given["scopes"]  # it brings its own
    return create_model("docvit_compact_patch32", **{**given, **configuration(scheme), **more})


def measure_all(data: LabelledDocuments, settings: Settings) -> dict[int, list[Kept]]:
    """All views by place in the data set, without the documents that are too short."""
    model = build("page-independent", settings, stem="ink")
    files, errors = PageCache(default_cache(), model.config.rendering).prepare(data.paths)
    for error in errors:
        tqdm.write(f"left out: {type(error).__name__}: {error}")
    measured = {}
    for place, path in enumerate(tqdm(data.paths, desc="measuring", unit="doc", disable=None)):
        document = CachedDocument.open(files[path]) if path in files else None
        if document is not None and len(document.indices) >= settings.min_pages:
            pages = document.load(document.indices).pages
            measured[place] = [_view(pages, model, settings, place, view) for view in range(settings.views)]
    return measured


def _view(pages: Sequence[Any], model: DocViT, settings: Settings, place: int, view: int) -> Kept:
    if view:
        mean, std = model.config.mean[0], model.config.std[0]
        changed = augment(pages, settings.augmentation, np.random.default_rng((view, place)))
        pages = [(page - mean) / std for page in changed]
    return measure(model, model.pack([pages]))


def load(measured: Path) -> dict[int, Views]:
    """What `measure_all` gave, page by page."""
    return {place: [pages_of(view) for view in views] for place, views in torch.load(measured, mmap=True).items()}


def moved(count: int, task: str, random: np.random.Generator) -> list[int]:
    """The places 0..count-1 in the order of `task`."""
    order = list(range(count))
    if task == "reversed":
        order.reverse()
    elif task == "first-last":
        order.append(order.pop(0))
    elif task == "swapped":
        one, other = random.choice(count, 2, replace=False)
        order[one], order[other] = order[other], order[one]
    return order


def ordered(pages: Sequence[Page], order: Sequence[int]) -> list[Page]:
    """A document of `pages` in this order, numbered anew."""
    return [pages[i]._replace(index=torch.tensor(place)) for place, i in enumerate(order)]


class Shuffled:
    """Batches for training: documents in all four orders; `index` tells where pages were before."""

    def __init__(self, documents: Sequence[Views], settings: Settings, seed: int) -> None:
        self.documents, self.settings, self.seed = documents, settings, seed
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return -(-len(self.documents) // self.settings.documents)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.epoch, self.skip = epoch, skip

    def __iter__(self) -> Iterator[Batch]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.documents))
        for number, places in list(enumerate(np.array_split(order, len(self))))[self.skip :]:
            yield self._batch(places, np.random.default_rng((self.seed, self.epoch, number)))

    def _batch(self, places: np.ndarray, random: np.random.Generator) -> Batch:
        copies, truth = [], []
        for place in places:
            pages = self._some(self.documents[place][random.integers(self.settings.views)], random)
            where = [0] + [2] * (len(pages) - 2) + [1]
            for task in ORDERS:
                order = moved(len(pages), task, random)
                copies.append(ordered(pages, order))
                truth += [where[i] for i in order]
        labels = torch.arange(len(ORDERS)).repeat(len(places))
        return Batch(put_together(copies), labels, torch.tensor(truth))

    def _some(self, pages: list[Page], random: np.random.Generator) -> list[Page]:
        first, *between, last = pages
        count = min(len(between), self.settings.max_pages - 2)
        chosen = sorted(random.choice(len(between), count, replace=False).tolist())
        return [first, *(between[i] for i in chosen), last]


class OrderModel(nn.Module):
    """A DocViT whose classes are the orders, and a head that tells where pages were."""

    def __init__(self, docvit: DocViT, position_std: float) -> None:
        super().__init__()
        self.docvit, self.places = docvit, nn.Linear(docvit.embed_dim, PLACES)
        for table in docvit.positions.parameters():
            nn.init.trunc_normal_(table, std=position_std, a=-2 * position_std, b=2 * position_std)

    def forward(self, batch: PatchSequence) -> tuple[Tensor, Tensor]:
        features = self.docvit.forward_features(batch)
        return self.docvit.forward_head(features).float(), self.places(features.pages).float()


def order_loss(settings: Settings) -> Any:
    def loss(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        logits, places = model(batch.sequence)
        order = F.cross_entropy(logits, batch.labels, label_smoothing=settings.label_smoothing)
        place = F.cross_entropy(places, batch.index, label_smoothing=settings.label_smoothing)
        return {"loss": order + settings.place_loss * place, "order_loss": order, "place_loss": place}

    return loss


@torch.inference_mode()
def judge(model: OrderModel, documents: Sequence[Views], settings: Settings) -> dict[str, float]:
    """For each task its accuracy, and how often the untouched one of two copies is told from the moved one.

    A document is called moved if its logit for the task exceeds that for `untouched`. In float32: rounding must not
    tell apart what a page-independent model cannot.
    """
    tasks = [UNTOUCHED, "reversed", "first-last", *["swapped"] * settings.draws]
    model.eval()
    logits = []
    for place, views in enumerate(documents):
        pages = [views[0][i] for i in spread(len(views[0]), settings.max_pages)]
        random = np.random.default_rng(place)
        copies = [ordered(pages, moved(len(pages), task, random)) for task in tasks]
        logits.append(model(put_together(copies))[0])
    scores = torch.stack(logits)  # (documents, copies, orders)
    figures = {}
    for name in TASKS:
        score = scores[..., ORDERS.index(name)] - scores[..., 0]
        untouched, changed = score[:, :1], score[:, [i for i, task in enumerate(tasks) if task == name]]
        figures[name] = float((untouched < 0).float().mean() + (changed > 0).float().mean()) / 2
        margin = changed - untouched
        figures[f"{name} of two"] = float((margin > 1e-3).float().mean() + (margin.abs() <= 1e-3).float().mean() / 2)
    return figures


def run(
    scheme: str, seed: int, data: LabelledDocuments, measured: Path, settings: Settings
) -> dict[str, float | int | str | list[int]]:
    """Trains one model on all sources but those of fold `seed`, and judges it on those."""
    documents = load(measured)
    fold = seed % settings.folds
    parts = places_of_fold(data, fold, settings)
    training, held_out = ([documents[p] for p in part if p in documents] for part in parts)
    torch.manual_seed(seed)
    model = OrderModel(build(scheme, settings), settings.position_std)
    ema = make_ema(model, settings.ema)
    loop = replace(settings.train, seed=seed)
    history = fit(model, Shuffled(training, settings, seed), order_loss(settings), loop, ema=ema)
    shown = ema.module if ema is not None else model
    return {
        "scheme": scheme,
        "seed": seed,
        "fold": fold,
        "documents": [len(training), len(held_out)],
        "seconds": sum(record["seconds"] for record in history),
        "order_loss": history[-1]["order_loss"],
        "place_loss": history[-1]["place_loss"],
        **judge(shown, held_out, settings),
    }


def places_of_fold(data: LabelledDocuments, fold: int, settings: Settings) -> tuple[list[int], list[int]]:
    where = {path: place for place, path in enumerate(data.paths)}
    training, held_out = split_groups(data, fold, settings.folds)
    return [where[p] for p in training.paths], [where[p] for p in held_out.paths]


def read(data: Path, group_by: str) -> LabelledDocuments:
    if not data.is_dir():
        return read_labelled(data, group_column=group_by)
    paths = tuple(find_documents([data]))
    return LabelledDocuments(paths, (0,) * len(paths), ("document",), paths)


def main() -> None:
    options = parser(__doc__, seeds=5)  # one for each fold
    options.add_argument("data", type=Path)
    options.add_argument("--group-by", default="source_repo")
    options.add_argument("--schemes", nargs="+", default=SCHEMES)
    options.add_argument("--epochs", type=int, default=Settings().train.epochs)
    arguments = options.parse_args()
    settings = Settings()
    settings = replace(settings, train=replace(settings.train, epochs=arguments.epochs))
    data = read(arguments.data, arguments.group_by)
    digest = hashlib.sha256("\n".join(Path(p).name for p in data.paths).encode()).hexdigest()
    about = {"documents": len(data), "sources": len(set(data.groups or ())), "names": digest}
    results = open_results(arguments.output, {"experiment": "page order", "data": about, **asdict(settings)})
    measured = arguments.output / "measured.pt"
    if not measured.exists():
        with replaced(measured) as partial:
            torch.save(measure_all(data, settings), partial)
    tasks = {
        f"{scheme} seed {seed}": (scheme, seed, data, measured, settings)
        for seed in range(arguments.seeds)
        for scheme in arguments.schemes
    }
    run_all(results, tasks, run, arguments)


if __name__ == "__main__":
    main()
