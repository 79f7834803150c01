"""Are the pages in order? Real documents, untouched or with pages moved, and a model that tells one from the other.

    python examples/experiments/page_order.py DOCUMENTS.csv --output runs/page_order
    python examples/experiments/page_order.py FOLDER_OF_PDFS --output runs/page_order

Three ways to move pages: `reversed`, `first-last` (the first page moved to the end) and `swapped` (two pages, chosen at
random, exchanged). One model per scheme and seed learns a score of how much in order a document is, from its own order
and moved ones. A document is then called reversed if it would be more in order the other way round, and likewise for
the other moves; each is judged alone, half of the cases untouched. Whole sources are left out for testing: fold S of
scikit-learn's StratifiedGroupKFold(5) for seed S (each file is its own source where a folder is given). Documents have
three pages or more; of a longer one than eight, the first, the last and six others are seen, numbered anew, so that
neither their count nor their index is a clue.

Page-independent encoding with pooling is at 50 % by construction: its output does not depend on the order of its input,
so it is the same before and after the pages are moved. In all schemes class tokens also get how a page differs from the
others of its document, and how the numbers at its edges compare with theirs (`ApartStem`, which the library does not
have): neither depends on the order of the pages.

The numbers come from the text layer (`page_numbers`); `--no-words` leaves them out. The ink stem's features are not
learned. They are computed once, of the page as it is and of augmented copies, and all models train on them: a run takes
about three minutes on one core.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import log
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from measured import Kept, MeasuredSequence, MeasuredStem, Page, measure, pages_of, put_together
from page_moves import COPIES, TASKS, moved, ordered, undone
from page_numbers import COMPARED, compare_numbers, numbering, read_page
from runs import configuration, open_results, parser, run_all
from torch import Tensor, nn
from tqdm import tqdm

from docvit import DocViT, PatchSequence, create_model
from docvit.data.augment import Augmentation, augment
from docvit.data.dataset import DocumentBatch
from docvit.data.labels import LabelledDocuments, read_labelled, split_groups
from docvit.documents.cache import CachedDocument, PageCache, default_cache
from docvit.documents.finding import find_documents
from docvit.documents.pages import PageStack, spread
from docvit.documents.words import Words
from docvit.files import replaced
from docvit.model.stems import InkStem
from docvit.training.ema import EMATeacher
from docvit.training.loop import TrainSettings, fit

SCHEMES = ("page-independent", "pages-concat", "continued", "sincos", "sincos2d+page", "spatial+page", "rope")
PLACES = 3  # first, last, between
SAME = 1e-3  # a difference that rounding can make
PAGES_FILE = "pages.pt"  # delete it after a change to what it holds


@dataclass(frozen=True)
class Settings:
    """All that results depend on, except for scheme and seed.

    Attributes:
        max_pages: pages of a document that are seen, its first and last always among them.
        views: per page, the first one without augmentation.
        words: whether page numbers are read.
        documents: per batch, each in several orders.
        silent, numbered: shares of documents in training whose numbers are left out, and which are given drawn page
            numbers before their own: the model has to learn a document's order from looks alone and from numbers alone.
        place_loss: weight of a second loss: page tokens tell whether their page was first, last or between before pages
            were moved. A document has one order, but many pages to learn from.
        position_std: of learned tables at the start; their usual 0.02 would take half of so short a run to grow.
        draws: pairs of pages swapped, each in its own copy of a document, when testing.
        train: in float32: every batch has shapes of its own, for which bfloat16 kernels would first be built.
    """

    min_pages: int = 3
    max_pages: int = 8
    views: int = 8
    words: bool = True
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
    """The ink stem, whose class tokens also get how their page differs from the others of its document.

    Per statistic: by how many standard deviations, and in which direction. How the page's numbers compare with theirs
    stands behind the page's own statistics: `statistics` (N, S + 4).
    """

    def __init__(self, in_chans: int, patch_size: int, dim: int) -> None:
        super().__init__(in_chans, patch_size, dim)
        self.page_proj = nn.Linear(3 * self.page_proj.in_features, dim)
        self.number_proj = nn.Linear(COMPARED, dim)

    def observe(self, batch: PatchSequence, page_lengths: Tensor) -> tuple[Tensor, Tensor]:
        features, statistics = super().observe(batch, page_lengths)
        return features, statistics[:, :-COMPARED]

    def project_pages(self, statistics: Tensor, batch: PatchSequence) -> Tensor:
        assert isinstance(batch, MeasuredSequence)
        apart = set_apart(statistics.detach(), batch.document_bounds.diff())
        root = apart.abs().sqrt()
        features = torch.cat([statistics, root, root * apart.sign()], 1)
        # 3: about as large as the other features
        return self.page_proj(features) + self.number_proj(3 * batch.statistics[:, -COMPARED:])


def set_apart(statistics: Tensor, counts: Tensor) -> Tensor:
    """How far each page (N, F) is from the others of its document, in deviations; `counts` (B,) pages, at least 2.

    In float64, or the result would depend on the order of pages by more than the last digits.
    """
    own, pages = torch.arange(len(counts)).repeat_interleave(counts), counts.repeat_interleave(counts)[:, None]

    def of_others(x: Tensor) -> Tensor:
        return (x.new_zeros(len(counts), x.shape[1]).index_add(0, own, x)[own] - x) / (pages - 1)

    exact = statistics.double()
    mean, square = of_others(exact), of_others(exact.square())
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    apart = (exact - mean) / (deviation + 0.25)  # where pages hardly differ, a small difference is noise
    return apart.to(statistics.dtype)


class Document(NamedTuple):
    """The features and numbers of one document."""

    views: list[list[Page]]  # views x pages; the first view is the pages as they are
    numbers: Tensor  # (pages, 12, 3), as `read_page` gives them


def with_numbers(pages: Sequence[Page], numbers: Tensor) -> list[Page]:
    """Pages with how their numbers (pages, 12, 3) compare behind their statistics."""
    pairs = zip(pages, compare_numbers(numbers), strict=True)
    return [page._replace(statistics=torch.cat([page.statistics, compared])) for page, compared in pairs]


def build(scheme: str, settings: Settings, stem: type[InkStem] = ApartStem) -> DocViT:
    given = {"num_classes": 1, "page_embeddings": settings.max_pages, **settings.model}
    if scheme == "pages-concat":
        del given["scopes"]  # it brings its own
    with torch.device("meta"):
        c = create_model("docvit_compact_patch32", **{**given, **configuration(scheme)}).config
    return DocViT(c, stem=stem(c.in_chans, c.patch_size, c.embed_dim))


def measure_all(data: LabelledDocuments, settings: Settings) -> dict[int, tuple[list[Kept], Tensor]]:
    """All views, and numbers (pages, 12, 3), by index in the data set, without the documents that are too short."""
    model = build("page-independent", settings, InkStem)
    files, errors = PageCache(default_cache(), model.config.rendering, words=True).prepare(data.paths)
    for error in errors:
        tqdm.write(f"left out: {type(error).__name__}: {error}")
    measured = {}
    for index, path in enumerate(tqdm(data.paths, desc="measuring", unit="doc", disable=None)):
        document = CachedDocument.open(files[path]) if path in files else None
        if document is not None and len(document.indices) >= settings.min_pages:
            pages = document.load(document.indices)
            numbers = torch.stack([read_page(words if settings.words else Words()) for words in pages.words])
            views = [_view(pages, model, settings, index, view) for view in range(settings.views)]
            measured[index] = views, numbers
    return measured


def _view(pages: PageStack, model: DocViT, settings: Settings, index: int, view: int) -> Kept:
    if view:
        mean, std = model.config.mean[0], model.config.std[0]
        changed = augment(pages.pages, settings.augmentation, np.random.default_rng((view, index)))
        pages = pages._replace(pages=[(page - mean) / std for page in changed])
    return measure(model, model.pack([pages]))


def load(folder: Path) -> dict[int, Document]:
    """The documents of `measure_all`, by index in the data set."""
    kept = torch.load(folder / PAGES_FILE, mmap=True)
    return {i: Document([pages_of(view) for view in views], numbers) for i, (views, numbers) in kept.items()}


class Shuffled:
    """Batches for training: documents in the orders of `COPIES`, which are the labels; `index`: where pages were."""

    def __init__(self, documents: Sequence[Document], settings: Settings, seed: int) -> None:
        self.documents, self.settings, self.seed = documents, settings, seed
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return -(-len(self.documents) // self.settings.documents)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.epoch, self.skip = epoch, skip

    def __iter__(self) -> Iterator[DocumentBatch]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.documents))
        for number, indices in list(enumerate(np.array_split(order, len(self))))[self.skip :]:
            yield self._batch(indices, np.random.default_rng((self.seed, self.epoch, number)))

    def _batch(self, indices: np.ndarray, random: np.random.Generator) -> DocumentBatch:
        copies, truth = [], []
        for index in indices:
            document = self.documents[index]
            view = document.views[random.integers(self.settings.views)]
            chosen = self._some(len(view), random)
            pages = with_numbers([view[i] for i in chosen], self._numbers(document.numbers[chosen], random))
            where = [0] + [2] * (len(pages) - 2) + [1]
            for task in COPIES:
                order = moved(len(pages), task, random)
                copies.append(ordered(pages, order))
                truth += [where[i] for i in order]
        labels = torch.arange(len(COPIES)).repeat(len(indices))
        return DocumentBatch(put_together(copies), labels, torch.tensor(truth))

    def _some(self, count: int, random: np.random.Generator) -> list[int]:
        between = min(count, self.settings.max_pages) - 2
        return [0, *sorted((1 + random.choice(count - 2, between, replace=False)).tolist()), count - 1]

    def _numbers(self, numbers: Tensor, random: np.random.Generator) -> Tensor:
        draw = random.random()
        if draw < self.settings.silent:
            return torch.full_like(numbers, torch.nan)
        if draw < self.settings.silent + self.settings.numbered:
            return torch.cat([numbering(len(numbers), random)[:, None], numbers[:, :-1]], 1)
        return numbers


class OrderModel(nn.Module):
    """A DocViT that scores how much in order documents are (B,), and a head that predicts where pages were (N, 3)."""

    def __init__(self, docvit: DocViT, position_std: float) -> None:
        super().__init__()
        self.docvit, self.places = docvit, nn.Linear(docvit.embed_dim, PLACES)
        for table in docvit.positions.parameters():
            nn.init.trunc_normal_(table, std=position_std, a=-2 * position_std, b=2 * position_std)

    def forward(self, batch: PatchSequence) -> tuple[Tensor, Tensor]:
        features = self.docvit.forward_features(batch)
        return self.docvit.forward_head(features)[:, 0].float(), self.places(features.pages).float()


def order_loss(settings: Settings) -> Any:
    def loss(model: nn.Module, batch: DocumentBatch, progress: float) -> Mapping[str, Tensor]:
        order, places = model(batch.sequence)
        untouched, others = order.unflatten(0, (-1, len(COPIES))).split([1, len(COPIES) - 1], 1)
        more = untouched - others
        order = F.binary_cross_entropy_with_logits(more, torch.full_like(more, 1 - settings.label_smoothing))
        place = F.cross_entropy(places, batch.index, label_smoothing=settings.label_smoothing)
        return {"loss": order + settings.place_loss * place, "order_loss": order, "place_loss": place}

    return loss


@torch.inference_mode()
def judge(model: OrderModel, documents: Sequence[Document], settings: Settings) -> dict[str, float]:
    """For each task its accuracy, and how often the untouched one of two copies has the higher score.

    And `false alarms`: the share of untouched documents that are called moved in one way or another. In float32:
    rounding must not separate what a page-independent model cannot.
    """
    model.eval()
    found: dict[str, list[float]] = defaultdict(list)
    for index, document in enumerate(documents):
        chosen = spread(len(document.numbers), settings.max_pages)
        pages = with_numbers([document.views[0][i] for i in chosen], document.numbers[chosen])
        random, untouched = np.random.default_rng(index), tuple(range(len(pages)))
        copies = {
            task: [tuple(moved(len(pages), task, random)) for _ in range(settings.draws if task == "swapped" else 1)]
            for task in TASKS
        }
        seen = [(order, task) for task in TASKS for order in (untouched, *copies[task])]
        needed = dict.fromkeys(one for order, task in seen for one in (order, *undone(order, task)))
        scores = model(put_together([ordered(pages, order) for order in needed]))[0]
        in_order = dict(zip(needed, scores.double(), strict=True))
        alarms = [called(in_order, untouched, task) for task in TASKS]
        found["false alarms"].append(any(alarms))
        for task, alarm in zip(TASKS, alarms, strict=True):
            right = fmean(called(in_order, order, task) for order in copies[task])
            found[task].append((1 - alarm + right) / 2)
            more = [float(in_order[untouched] - in_order[order]) for order in copies[task]]
            found[f"{task} of two"].append(fmean(0.5 if abs(gap) <= SAME else float(gap > 0) for gap in more))
    return {name: fmean(shares) for name, shares in found.items()}


def called(in_order: Mapping[tuple[int, ...], Tensor], order: tuple[int, ...], task: str) -> bool:
    """Whether a document in this order is called moved: it would be more in order without that move.

    How much in order a document is, is read as a log-likelihood: of all pairs that may have been swapped, nobody knows
    which, the mean likelihood counts.
    """
    before = torch.stack([in_order[one] for one in undone(order, task)])
    return bool(before.logsumexp(0) - log(len(before)) - in_order[order] > SAME)


def run(
    scheme: str, seed: int, data: LabelledDocuments, measured: Path, settings: Settings
) -> dict[str, float | int | str | list[int]]:
    """Trains one model on all sources but those of fold `seed`, and judges it on those."""
    documents = load(measured)
    fold = seed % settings.folds
    parts = indices_of_fold(data, fold, settings)
    training, held_out = ([documents[p] for p in part if p in documents] for part in parts)
    torch.manual_seed(seed)
    model = OrderModel(build(scheme, settings), settings.position_std)
    ema = EMATeacher(model, decay=settings.ema)
    loop = replace(settings.train, seed=seed)
    history = fit(model, Shuffled(training, settings, seed), order_loss(settings), loop, ema=ema)
    return {
        "scheme": scheme,
        "seed": seed,
        "fold": fold,
        "documents": [len(training), len(held_out)],
        "seconds": sum(record["seconds"] for record in history),
        "order_loss": history[-1]["order_loss"],
        "place_loss": history[-1]["place_loss"],
        **judge(ema.module, held_out, settings),
    }


def indices_of_fold(data: LabelledDocuments, fold: int, settings: Settings) -> tuple[list[int], list[int]]:
    index = {path: i for i, path in enumerate(data.paths)}
    training, held_out = split_groups(data, fold, settings.folds)
    return [index[p] for p in training.paths], [index[p] for p in held_out.paths]


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
    options.add_argument("--no-words", action="store_true", help="page numbers are not read")
    arguments = options.parse_args()
    settings = Settings(words=not arguments.no_words)
    settings = replace(settings, train=replace(settings.train, epochs=arguments.epochs))
    if not settings.words:
        settings = replace(settings, numbered=0.0)
    data = read(arguments.data, arguments.group_by)
    digest = hashlib.sha256("\n".join(Path(p).name for p in data.paths).encode()).hexdigest()
    about = {"documents": len(data), "sources": len(set(data.groups or ())), "names": digest}
    results = open_results(arguments.output, {"experiment": "page order", "data": about, **asdict(settings)})
    if not (arguments.output / PAGES_FILE).exists():
        with replaced(arguments.output / PAGES_FILE) as partial:
            torch.save(measure_all(data, settings), partial)
    tasks = {
        f"{scheme} seed {seed}": (scheme, seed, data, arguments.output, settings)
        for seed in range(arguments.seeds)
        for scheme in arguments.schemes
    }
    run_all(results, tasks, run, arguments)


if __name__ == "__main__":
    main()
