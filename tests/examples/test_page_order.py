"""Page order at toy size: pages are moved as it says, theory holds, numbers are read and compared."""

import importlib
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from conftest import run_main

from docvit import PatchSequence
from docvit.documents.words import Words

NUMBERS = 12  # kept of a page

pytestmark = pytest.mark.usefixtures("in_the_examples")


@pytest.fixture
def page_order():
    return importlib.import_module("page_order")


@pytest.fixture
def page_numbers():
    return importlib.import_module("page_numbers")


@cache
def observer(page_order):
    """A model whose stem measures pages, whatever its weights are."""
    return page_order.build("page-independent", page_order.Settings(), page_order.InkStem)


def made_page(page_order, random):
    count = int(random.integers(2, 6))
    cells = torch.from_numpy(random.permutation(16)[:count].copy())
    model = observer(page_order)
    pixels = torch.from_numpy(
        random.random((count, model.config.in_chans * model.config.patch_size**2), dtype=np.float32)
    )
    nothing = torch.zeros_like(cells)
    bounds = torch.tensor([0, count]), torch.tensor([0, 1])
    one = PatchSequence(pixels, nothing, cells // 4, cells % 4, torch.tensor([[4, 4]]), nothing[:1], *bounds)
    (page,) = page_order.pages_of(page_order.measure(model, one))
    return page


def made_document(page_order, random, count):
    numbers = torch.full((count, NUMBERS, 3), torch.nan)
    numbers[:, 0] = torch.tensor([[float(random.integers(9)), 0.5, 0.95] for _ in range(count)])
    return page_order.Document([[made_page(page_order, random) for _ in range(count)]], numbers)


@pytest.mark.parametrize("count", [3, 4, 8])
def test_pages_are_moved_as_the_task_says(page_order, count):
    random, here = np.random.default_rng(0), list(range(count))
    assert page_order.moved(count, "untouched", random) == here
    assert page_order.moved(count, "reversed", random) == here[::-1]
    assert page_order.moved(count, "first-last", random) == [*range(1, count), 0]
    assert page_order.moved(count, "last-first", random) == [count - 1, *range(count - 1)]
    for task in page_order.TASKS:
        before = page_order.undone(page_order.moved(count, task, random), task)
        assert tuple(here) in before
        assert len(set(before)) == len(before) == (count * (count - 1) // 2 if task == "swapped" else 1)
    for _ in range(20):
        swapped = page_order.moved(count, "swapped", random)
        assert sorted(swapped) == here
        assert sum(a != b for a, b in zip(swapped, here, strict=True)) == 2


@pytest.mark.parametrize("scheme", ["page-independent", "pages-concat", "spatial+page"])
def test_page_independent_encoding_is_at_half_by_construction(page_order, scheme):
    torch.manual_seed(0)
    random, settings = np.random.default_rng(0), page_order.Settings()
    documents = [made_document(page_order, random, 3 + i) for i in range(4)]
    pages = documents[0].views[0]
    documents.append(page_order.Document([[pages[0]] * 4], documents[1].numbers))  # pages that look alike
    model = page_order.OrderModel(page_order.build(scheme, settings), settings.position_std)
    found = page_order.judge(model, documents, settings)
    alarms = found.pop("false alarms")
    blind = scheme != "spatial+page"
    assert (set(found.values()) == {0.5}) == blind
    assert (alarms == 0) == blind


def test_a_page_is_compared_with_the_others_of_its_document(page_order):
    features, counts = torch.randn(7, 5), torch.tensor([3, 4])
    found = page_order.set_apart(features, counts)
    for here, there in ((0, 3), (3, 7)):
        for page in range(here, there):
            others = torch.cat([features[here:page], features[page + 1 : there]])
            expected = (features[page] - others.mean(0)) / (others.std(0, unbiased=False) + 0.25)
            torch.testing.assert_close(found[page], expected, rtol=1e-4, atol=1e-4)
    features[1] += 60  # a page unlike any other
    order = torch.tensor([2, 0, 1, 6, 4, 5, 3])
    torch.testing.assert_close(
        page_order.set_apart(features[order], counts), page_order.set_apart(features, counts)[order], rtol=0, atol=1e-5
    )


def test_what_is_measured_once_is_what_the_stem_observes(page_order):
    measured, random = importlib.import_module("measured"), np.random.default_rng(0)
    model = page_order.build("page-independent", page_order.Settings(), page_order.InkStem)
    pages = [random.integers(0, 256, (256, 192, 3), dtype=np.uint8) for _ in range(3)]
    packed = model.pack([pages])
    batch = measured.put_together([measured.pages_of(measured.measure(model, packed))])
    assert {batch.to("meta").patches.device.type, batch.to("meta").statistics.device.type} == {"meta"}
    found = measured.MeasuredStem(3, model.config.patch_size, 8).observe(batch, batch.page_bounds.diff())
    expected = model.patch_embed.observe(packed, packed.page_bounds.diff())
    for here, there in zip(found, expected, strict=True):
        torch.testing.assert_close(here.float(), there, rtol=1e-3, atol=1e-3)
    for name in ("page", "row", "col", "grids", "page_index", "page_bounds", "document_bounds"):
        assert torch.equal(getattr(batch, name), getattr(packed, name))


@pytest.mark.parametrize("words", [True, False])
def test_pages_are_measured_with_the_numbers_of_their_text_layer(page_order, make_pdf, words):
    font = "/Resources<</Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Courier>>>>>>"
    drawn = [b"BT /F1 20 Tf 300 40 Td (%d) Tj ET 72 400 200 9 re f" % number for number in (4, 5, 6, 7)]
    path = make_pdf("numbered.pdf", [(612, 792)] * 4, extra=font, contents=drawn)
    short = make_pdf("short.pdf", [(612, 792)] * 2)
    data = page_order.LabelledDocuments((str(short), str(path)), (0, 0), ("document",))
    ((index, (views, numbers)),) = page_order.measure_all(data, replace(page_order.Settings(), words=words)).items()
    assert (index, len(views), numbers.shape) == (1, page_order.Settings().views, (4, NUMBERS, 3))
    assert all(view["page_index"].tolist() == [0, 1, 2, 3] for view in views)
    assert not torch.equal(views[0]["statistics"], views[1]["statistics"])  # which is augmented
    if words:
        assert numbers[:, 0, 0].tolist() == [4, 5, 6, 7]
        assert ((numbers[:, 0, 1:] - torch.tensor([306 / 612, 1 - 46 / 792])).abs() < 0.02).all()
    else:
        assert numbers.isnan().all()


def test_training_batches_hold_every_order_and_where_pages_were(page_order):
    random, settings = np.random.default_rng(0), replace(page_order.Settings(), views=1)
    document = made_document(page_order, random, 11)
    (batch,) = page_order.Shuffled([document], settings, seed=0)
    assert batch.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.sequence.document_bounds.diff().tolist() == [8] * 6
    assert batch.sequence.page_index.tolist() == list(range(8)) * 6
    first = batch.sequence.document_bounds[:-1]
    # first; last, when reversed; one between, when the first is moved behind; last, when that is moved to the front
    assert batch.index[first].tolist()[:4] == [0, 1, 2, 1]
    first_page = document.views[0][0]
    assert torch.equal(batch.sequence.patches[: len(first_page.row)], first_page.patches)


def test_page_order_from_files_to_report_and_not_again(page_order, make_pdf, tmp_path, monkeypatch):
    scheme_report = importlib.import_module("scheme_report")
    folder = make_pdf("pdf/0.pdf", [(612, 792)] * 3).parent
    for i in range(1, 6):
        make_pdf(f"pdf/{i}.pdf", [(612, 792 - i)] * (3 + i % 2))
    make_pdf("pdf/short.pdf", [(612, 792)] * 2)
    output = tmp_path / "runs" / "page_order"
    arguments = [folder, "--output", output, "--jobs", 1, "--seeds", 2, "--epochs", 1]
    arguments += ["--schemes", "page-independent", "spatial+page"]
    run_main(page_order, monkeypatch, *arguments)
    results = json.loads((output / "results.json").read_text())
    assert len(results["runs"]) == 4
    assert sum(results["runs"]["spatial+page seed 0"]["documents"]) == 6  # without the one of two pages
    assert results["runs"]["page-independent seed 1"]["reversed"] == 0.5
    assert all(run["device"].endswith("CPU, 1 threads") for run in results["runs"].values())
    with monkeypatch.context() as patch:
        patch.setattr(page_order, "fit", None)  # whoever trains now, fails
        run_main(page_order, monkeypatch, *arguments)
    with pytest.raises(SystemExit, match="other settings or data: settings train epochs was 1, not 2"):
        run_main(page_order, monkeypatch, *arguments, "--epochs", 2)
    del results["runs"]["spatial+page seed 1"]
    (output / "results.json").write_text(json.dumps({**results, "note": "On small documents."}))
    run_main(page_order, monkeypatch, *arguments)  # which leaves the note where it is
    scheme_report.gather(tmp_path / "runs", tmp_path / "report")
    text = (tmp_path / "report" / "positions.md").read_text()
    assert f"`{scheme_report.COMMANDS['page_order']}`\n\nOn small documents.\n\nUntouched" in text
    assert "| page-independent | 50.0 ± 0.0 | 50.0 ± 0.0 | 50.0 ± 0.0 | 0.0 ± 0.0 | 2 |" in text
    assert "`page-independent`: at most 0.0 points away" in text
    assert (tmp_path / "report" / "positions-page-order.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("12", [12]),
        ("3/8", [3, 8]),
        ("(7)", [7]),
        ("-7-", [7]),
        ("page7", []),
        ("7b", []),
        ("A-7", [7]),
        ("123456", [3456]),
        ("٣", [3]),
        ("no", []),
    ],
)
def test_a_number_is_digits_without_letters_beside_them(page_numbers, text, values):
    found = page_numbers.read_page(Words((text,), np.array([[0.4, 0.93, 0.6, 0.95]], np.float32)))
    assert found.shape == (NUMBERS, 3)
    assert found[: len(values), 0].tolist() == values
    assert found[len(values) :].isnan().all()


def test_numbers_have_their_place_and_those_nearest_to_an_edge_come_first(page_numbers):
    boxes = [[0.5, 0.9, 0.6, 0.92], [0.5, 0.5, 0.6, 0.52], [0.1, 0.02, 0.2, 0.04], [0.2, 0.94, 0.5, 0.96]]
    found = page_numbers.read_page(Words(("10", "11", "12", "3/8"), np.array(boxes, np.float32)))
    expected = [[12, 0.15, 0.03], [3, 0.25, 0.95], [8, 0.45, 0.95], [10, 0.55, 0.91]]  # none of the middle of the page
    torch.testing.assert_close(found[:4], torch.tensor(expected))
    assert found[4:].isnan().all()
    many = Words(("7",) * 20, np.array([[0.1, 0.01 + 0.005 * i, 0.2, 0.02 + 0.005 * i] for i in range(20)], np.float32))
    assert page_numbers.read_page(many)[:, 2].max() < 0.08


def compared(page_numbers, *pages):
    """How the numbers of a document's pages compare, each given with its position."""
    numbers = torch.full((len(pages), NUMBERS, 3), torch.nan)
    for page, found in enumerate(pages):
        for index, number in enumerate(found):
            numbers[page, index] = torch.tensor(number, dtype=torch.float)
    return page_numbers.compare_numbers(numbers)


def test_numbers_are_compared_with_those_in_the_same_place(page_numbers):
    foot = compared(page_numbers, *([(i, 0.5, 0.95)] for i in (3, 4, 12)))
    assert foot.tolist() == [[0, 0, -1, 1], [0, 0, 0, 1], [0, 0, 1, 1]]
    # left and right pages; a first page without number
    mirrored = compared(page_numbers, [], [(2, 0.1, 0.05)], [(3, 0.9, 0.05)])
    assert mirrored.tolist() == [[0, 0, 0, 0], [-0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]]
    assert not compared(page_numbers, [(2026, 0.5, 0.95)], [(2026, 0.5, 0.95)]).any()
    assert not compared(page_numbers, [(1, 0.5, 0.95)], [(2, 0.6, 0.95)], [(3, 0.5, 0.9)]).any()
    # what is nearer to the edge and differs counts more than all the rest
    one, other = ([(7, 0.1, 0.99), (n, 0.5, 0.95), *((9 - n, x, 0.9) for x in (0.2, 0.3, 0.4))] for n in (1, 2))
    assert compared(page_numbers, one, other)[:, 2].tolist() == [-1, 1]


def test_comparisons_say_nothing_about_the_order(page_numbers):
    random = np.random.default_rng(0)
    numbers = torch.full((5, NUMBERS, 3), torch.nan)
    numbers[:, :3] = torch.from_numpy(random.integers(0, 4, (5, 3, 3)) / 4).float()
    order = torch.tensor([3, 1, 4, 0, 2])
    found, moved = page_numbers.compare_numbers(numbers), page_numbers.compare_numbers(numbers[order])
    assert found.any()
    torch.testing.assert_close(moved, found[order], rtol=0, atol=0)


def test_drawn_numbering_counts_up(page_numbers):
    random = np.random.default_rng(0)
    for _ in range(20):
        numbers = page_numbers.numbering(8, random)
        value, missing = numbers[:, 0], numbers.isnan()
        assert (value[~value.isnan()].diff() > 0).all()
        assert torch.equal(missing.any(1), missing.all(1))


@pytest.mark.parametrize(("silent", "numbered"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_in_training_numbers_are_left_out_or_drawn(page_order, page_numbers, silent, numbered):
    settings = replace(page_order.Settings(), silent=silent, numbered=numbered)
    before = made_document(page_order, np.random.default_rng(0), 3).numbers
    found = page_order.Shuffled([], settings, seed=0)._numbers(before, np.random.default_rng(1))
    if silent:
        assert found.isnan().all()
        assert not page_numbers.compare_numbers(found).any()
    elif numbered:
        torch.testing.assert_close(found[:, 1:], before[:, :-1], equal_nan=True)
        assert not torch.allclose(found[:, 0], before[:, 0], equal_nan=True)
    else:
        assert found is before
