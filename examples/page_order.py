"""Are the pages in order? Real documents, untouched or with pages moved, told apart by what their pages look like.

    python examples/page_order.py DOCUMENTS.csv --output runs/page_order
    python examples/page_order.py FOLDER_OF_PDFS --output runs/page_order

Three ways to move pages: `reversed`, `first-last` (the first page moved to the end) and `swapped` (two pages, chosen at
random, exchanged). One model a scheme and seed learns to tell how much in order a document is, from its own order and
moved ones. A document is then called reversed if it would be more in order the other way round, and likewise for the
other moves; each is judged alone, half of the cases untouched. Whole sources are left out for testing: fold S of
scikit-learn's StratifiedGroupKFold(5) for seed S (each file is its own source where a folder is given). Documents have
three pages or more; of a longer one than eight, the first, the last and six others are seen, numbered anew, so that
neither their count nor their place says anything.

Page-independent encoding with pooling is at 50 % by construction: its output does not depend on the order of its input,
so that it says the same of a document before and after its pages are moved. All schemes alike are told, page by page,
what sets a page apart from the others of its document, and how the numbers at its edges compare with theirs
(`ApartStem`, which the library does not have): no order comes through that.

What the ink stem measures on a page holds nothing learned. It is measured once, on the page as it is and on changed
copies, and numbers are read once (`page_numbers`). All models train on that: a run takes some three minutes on a core.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import log
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from glyphs import train_reader
from measured import Kept, MeasuredSequence, MeasuredStem, Page, measure, pages_of, put_together
from page_moves import COPIES, TASKS, moved, ordered, undone
from page_numbers import NUMBERS, TOLD, compare_numbers, numbering, read_numbers
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

SCHEMES = ("page-independent", "pages-concat", "continued", "sincos", "sincos2d+page", "spatial+page", "rope")
PLACES = 3  # first, last, between
SAME = 1e-3  # a difference that rounding may make
PAGES_FILE, NUMBERS_FILE = "pages.pt", "numbers.pt"


@dataclass(frozen=True)
class Settings:
    """What results depend on, beside scheme and seed.

    Attributes:
        max_pages: pages of a document that are seen, its first and last always among them.
        views: how many times each page is measured: as it is, and changed.
        glyphs, glyph_epochs: drawn for the model that reads numbers, and how often it sees them.
        documents: documents a batch, each in several orders.
        silent, numbered: shares of documents in training whose numbers are left out, and which are given drawn ones: by
            its looks, and by its numbers, a document's order is to be told also where the other says nothing.
        place_loss: weight of a second loss: page tokens tell whether their page was first, last or between before pages
            were moved. A document has one order, but many pages to learn from.
        position_std: of learned tables at the start; their usual 0.02 would take half of so short a run to grow.
        draws: pairs of pages swapped, each in its own copy of a document, when testing.
        train: in float32: every batch has shapes of its own, for which bfloat16 kernels would first be built.
    """

    min_pages: int = 3
    max_pages: int = 8
    views: int = 8
    glyphs: int = 100_000
    glyph_epochs: int = 6
    documents: int = 4
    silent: float = 0.3
    numbered: float = 0.3
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
    train: TrainSettings = field(default_factory=lambda: TrainSettings(epochs=16, weight_decay=1.0, bf16=False))


class ApartStem(MeasuredStem):
    """The ink stem, whose class tokens are also told what sets their page apart from the others of its document.

    Figure by figure: how many standard deviations, and in which direction; and how its numbers compare with theirs.
    Numbers stand behind what was measured of a page: `statistics` (N, S + 36).
    """

    def __init__(self, in_chans: int, patch_size: int, dim: int) -> None:
        super().__init__(in_chans, patch_size, dim)
        self.page_proj = nn.Linear(3 * self.page_proj.in_features, dim)
        self.number_proj = nn.Linear(TOLD, dim)

    def observe(self, batch: PatchSequence, page_lengths: Tensor) -> tuple[Tensor, Tensor]:
        features, statistics = super().observe(batch, page_lengths)
        return features, statistics[:, : -3 * NUMBERS]

    def tell(self, statistics: Tensor, batch: PatchSequence) -> Tensor:
        assert isinstance(batch, MeasuredSequence)
        counts = batch.document_bounds.diff()
        apart = set_apart(statistics.detach(), counts)
        root = apart.abs().sqrt()
        compared = compare_numbers(batch.statistics[:, -3 * NUMBERS :].unflatten(1, (NUMBERS, 3)), counts)
        figures = torch.cat([statistics, root, root * apart.sign()], 1)
        return self.page_proj(figures) + self.number_proj(3 * compared)  # 3: of the size of the other figures


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
    given = {"num_classes": 1, "max_pages": settings.max_pages, "stem": "apart-ink", **settings.model}
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


def read_all(data: LabelledDocuments, settings: Settings, jobs: int) -> dict[int, dict[int, Tensor]]:
    """The numbers at the edges of all documents' pages, by place in the data set and page index."""
    reader, where = train_reader(settings.glyphs, settings.glyph_epochs), {p: i for i, p in enumerate(data.paths)}
    return {where[path]: numbers for path, numbers in read_numbers(reader, data.paths, workers=jobs)}


def load(folder: Path) -> dict[int, Views]:
    """What `measure_all` and `read_all` gave, page by page."""
    numbers, documents = torch.load(folder / NUMBERS_FILE), {}
    none = torch.full((NUMBERS, 3), torch.nan)
    for place, views in torch.load(folder / PAGES_FILE, mmap=True).items():
        read = numbers.get(place, {})
        documents[place] = [[with_numbers(p, read.get(int(p.index), none)) for p in pages_of(view)] for view in views]
    return documents


def with_numbers(page: Page, numbers: Tensor) -> Page:
    return page._replace(statistics=torch.cat([page.statistics, numbers.flatten()]))


class Shuffled:
    """Batches for training: documents in the orders of `COPIES`; `index` tells where pages were before."""

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
            for task in COPIES:
                order = moved(len(pages), task, random)
                copies.append(ordered(pages, order))
                truth += [where[i] for i in order]
        labels = torch.arange(len(COPIES)).repeat(len(places))
        return Batch(put_together(copies), labels, torch.tensor(truth))

    def _some(self, pages: list[Page], random: np.random.Generator) -> list[Page]:
        first, *between, last = pages
        count = min(len(between), self.settings.max_pages - 2)
        chosen = sorted(random.choice(len(between), count, replace=False).tolist())
        return self._told([first, *(between[i] for i in chosen), last], random)

    def _told(self, pages: list[Page], random: np.random.Generator) -> list[Page]:
        draw = random.random()
        if draw > self.settings.silent + self.settings.numbered:
            return pages
        keep = 0 if draw < self.settings.silent else NUMBERS - 1  # of the numbers that are there
        drawn = numbering(len(pages), random) if keep else torch.full((len(pages), 3), torch.nan)
        changed = []
        for page, number in zip(pages, drawn, strict=True):
            measured, numbers = page.statistics.split([len(page.statistics) - 3 * NUMBERS, 3 * NUMBERS])
            nothing = torch.full((3 * (NUMBERS - 1 - keep),), torch.nan)
            changed.append(page._replace(statistics=torch.cat([measured, number, numbers[: 3 * keep], nothing])))
        return changed


class OrderModel(nn.Module):
    """A DocViT that tells how much in order documents are (B,), and a head that tells where pages were."""

    def __init__(self, docvit: DocViT, position_std: float) -> None:
        super().__init__()
        self.docvit, self.places = docvit, nn.Linear(docvit.embed_dim, PLACES)
        for table in docvit.positions.parameters():
            nn.init.trunc_normal_(table, std=position_std, a=-2 * position_std, b=2 * position_std)

    def forward(self, batch: PatchSequence) -> tuple[Tensor, Tensor]:
        features = self.docvit.forward_features(batch)
        return self.docvit.forward_head(features)[:, 0].float(), self.places(features.pages).float()


def order_loss(settings: Settings) -> Any:
    def loss(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        order, places = model(batch.sequence)
        untouched, others = order.unflatten(0, (-1, len(COPIES))).split([1, len(COPIES) - 1], 1)
        more = untouched - others
        order = F.binary_cross_entropy_with_logits(more, torch.full_like(more, 1 - settings.label_smoothing))
        place = F.cross_entropy(places, batch.index, label_smoothing=settings.label_smoothing)
        return {"loss": order + settings.place_loss * place, "order_loss": order, "place_loss": place}

    return loss


@torch.inference_mode()
def judge(model: OrderModel, documents: Sequence[Views], settings: Settings) -> dict[str, float]:
    """For each task its accuracy, and how often the untouched one of two copies is told from the moved one.

    And `false alarms`: the share of untouched documents that are called moved in one way or another.

    A document is called moved if it would be more in order without that move. Which pages were swapped nobody says: of
    all pairs it is their mean likelihood. In float32: rounding must not tell apart what a page-independent model
    cannot.
    """
    model.eval()
    alone: dict[str, list[float]] = {task: [] for task in TASKS}
    of_two: dict[str, list[float]] = {task: [] for task in TASKS}
    alarms: list[float] = []
    for place, views in enumerate(documents):
        pages = [views[0][i] for i in spread(len(views[0]), settings.max_pages)]
        random, untouched = np.random.default_rng(place), tuple(range(len(pages)))
        draws = {task: settings.draws if task == "swapped" else 1 for task in TASKS}
        copies = {task: [tuple(moved(len(pages), task, random)) for _ in range(draws[task])] for task in TASKS}
        seen = [(order, task) for task in TASKS for order in (untouched, *copies[task])]
        needed = dict.fromkeys(one for order, task in seen for one in (order, *undone(order, task)))
        energies = model(put_together([ordered(pages, order) for order in needed]))[0]
        in_order = dict(zip(needed, energies.double(), strict=True))
        alarms.append(0.0)
        for task in TASKS:
            called = []
            for order in (untouched, *copies[task]):
                before = torch.stack([in_order[one] for one in undone(order, task)])
                called.append(float(before.logsumexp(0) - log(len(before)) - in_order[order] > SAME))
            alone[task].append((1 - called[0] + fmean(called[1:])) / 2)
            alarms[-1] = max(alarms[-1], called[0])
            more = [float(in_order[untouched] - in_order[order]) for order in copies[task]]
            of_two[task].append(fmean(0.5 if abs(gap) <= SAME else float(gap > 0) for gap in more))
    figures = {name: fmean(alone[name]) for name in TASKS} | {f"{name} of two": fmean(of_two[name]) for name in TASKS}
    return {**figures, "false alarms": fmean(alarms)}


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
    options.add_argument("--glyphs", type=int, default=Settings().glyphs, help="drawn, to learn to read numbers from")
    arguments = options.parse_args()
    settings = Settings()
    settings = replace(settings, glyphs=arguments.glyphs, train=replace(settings.train, epochs=arguments.epochs))
    data = read(arguments.data, arguments.group_by)
    digest = hashlib.sha256("\n".join(Path(p).name for p in data.paths).encode()).hexdigest()
    about = {"documents": len(data), "sources": len(set(data.groups or ())), "names": digest}
    results = open_results(arguments.output, {"experiment": "page order", "data": about, **asdict(settings)})
    for name, make in (
        (PAGES_FILE, lambda: measure_all(data, settings)),
        (NUMBERS_FILE, lambda: read_all(data, settings, arguments.jobs)),
    ):
        if not (arguments.output / name).exists():
            with replaced(arguments.output / name) as partial:
                torch.save(make(), partial)
    tasks = {
        f"{scheme} seed {seed}": (scheme, seed, data, arguments.output, settings)
        for seed in range(arguments.seeds)
        for scheme in arguments.schemes
    }
    run_all(results, tasks, run, arguments)


if __name__ == "__main__":
    main()
