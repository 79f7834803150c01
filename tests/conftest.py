"""Small documents, written by hand, for every test to use."""

from __future__ import annotations

import base64
import functools
import gc
import logging
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import typer

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs a network, so nothing shall wait for one
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are so small here that threads wait longer than they compute
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin for each other starve on a busy machine

EXAMPLES = Path(__file__).parents[1] / "examples"
Box = tuple[float, float]

# A page of 100 x 100 points that opens with the password "secret".
ENCRYPTED = base64.b64decode(
    "JVBERi0xLjQKJb/3ov4KMSAwIG9iago8PCAvUGFnZXMgMiAwIFIgL1R5cGUgL0NhdGFsb2cgPj4KZW5kb2JqCjIgMCBvYmoKPDwgL0NvdW50"
    "IDEgL0tpZHMgWyAzIDAgUiBdIC9UeXBlIC9QYWdlcyA+PgplbmRvYmoKMyAwIG9iago8PCAvQ29udGVudHMgNCAwIFIgL01lZGlhQm94IFsg"
    "MCAwIDEwMC4wMDAwMDAgMTAwLjAwMDAwMCBdIC9QYXJlbnQgMiAwIFIgL1Jlc291cmNlcyA8PCA+PiAvVHlwZSAvUGFnZSA+PgplbmRvYmoK"
    "NCAwIG9iago8PCAvTGVuZ3RoIDE4IC9GaWx0ZXIgL0ZsYXRlRGVjb2RlID4+CnN0cmVhbQqT90iPRNe3LgmZJs6a36H5AScKZW5kc3RyZWFt"
    "CmVuZG9iago1IDAgb2JqCjw8IC9GaWx0ZXIgL1N0YW5kYXJkIC9MZW5ndGggMTI4IC9PIDw0YjA1NDRmOTAwZjU3MzdmNWNmNDNkNDk1MTVl"
    "ZWZjNDAwN2EwZDc0ZWUyMDc0YWY2OGU2NTcyYWU3MzZjNWM2PiAvUCAtMTAyOCAvUiAzIC9VIDxjMmI1NzRhZDRjMjRmNWVmYmYzOWI2ZjRi"
    "ZDcxMTc0NDAwMjE0NDY5OTBiOWU0MTE0MDcxYTRkOTEwNDk4NGMxPiAvViAyID4+CmVuZG9iagp4cmVmCjAgNgowMDAwMDAwMDAwIDY1NTM1"
    "IGYgCjAwMDAwMDAwMTUgMDAwMDAgbiAKMDAwMDAwMDA2NCAwMDAwMCBuIAowMDAwMDAwMTIzIDAwMDAwIG4gCjAwMDAwMDAyNDMgMDAwMDAg"
    "biAKMDAwMDAwMDMzMiAwMDAwMCBuIAp0cmFpbGVyIDw8IC9Sb290IDEgMCBSIC9TaXplIDYgL0lEIFs8ZTI0MmZiMzBkMGNhZTE1MzY0NmJj"
    "MDE1NzNkZDNiNmI+PGUyNDJmYjMwZDBjYWUxNTM2NDZiYzAxNTczZGQzYjZiPl0gL0VuY3J5cHQgNSAwIFIgPj4Kc3RhcnR4cmVmCjU0Mgol"
    "JUVPRgo="
)


def strokes(width: float, height: float, page: int) -> bytes:
    """Drawing operators: lines of word-like bars down the upper part of the page, and one mark a page number."""
    lines = [b"0 g"]
    for line in range(12):
        y = height * (0.9 - 0.03 * line)
        for word in range(3 + (line * 7 + page) % 5):
            lines.append(b"%.2f %.2f %.2f %.2f re f" % (width * (0.1 + 0.1 * word), y, width * 0.08, height * 0.012))
    for mark in range(page + 1):
        lines.append(b"%.2f %.2f %.2f %.2f re f" % (width * (0.1 + 0.05 * mark), height * 0.1, 4, 12))
    return b"\n".join(lines)


def assemble(objects: Sequence[bytes]) -> bytes:
    """A PDF from the bodies of its objects 1, 2, ...; the first is the catalog."""
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size, start = len(objects) + 1, len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table)
    return out + b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (size, start)


def pdf_bytes(
    pages: Sequence[Box] = ((612, 792),),
    *,
    extra: str = "",
    count: int | None = None,
    kids: str | None = None,
    contents: Sequence[bytes] | None = None,
) -> bytes:
    """A PDF with one page a (width, height) in points.

    `extra` goes into every page's dictionary (`/Rotate 90`); `count`, `kids` and `contents` replace what the page tree
    says and what the pages show.
    """
    refs = [3 + 2 * i for i in range(len(pages))]
    tree = kids if kids is not None else " ".join(f"{ref} 0 R" for ref in refs)
    total = len(pages) if count is None else count
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Kids[{tree}]/Count {total}>>".encode()]
    for i, (width, height) in enumerate(pages):
        drawn = contents[i] if contents is not None else strokes(width, height, i)
        box = f"/MediaBox[0 0 {width:f} {height:f}]"
        objects.append(f"<</Type/Page/Parent 2 0 R{box}{extra}/Contents {refs[i] + 1} 0 R>>".encode())
        objects.append(b"<</Length %d>>stream\n%s\nendstream" % (len(drawn), drawn))
    return assemble(objects)


def pytest_collection_finish() -> None:
    """What is imported now stays: neither the garbage collector nor a fork looks at it again.

    Autograd counts the devices at its first backward pass, and after `torch.compile` finds some: it would start a
    thread for each, and processes forked later could not train.
    """
    if torch := sys.modules.get("torch"):
        torch.ones(1, requires_grad=True).sum().backward()
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_poppler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without poppler."""
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.fixture
def make_pdf(tmp_path: Path) -> Callable[..., Path]:
    """`make_pdf("a.pdf", [(612, 792)] * 3, extra="/Rotate 90")` writes a PDF below tmp_path and gives its path."""

    def make(name: str = "document.pdf", pages: Sequence[Box] = ((612, 792),), **options) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pdf_bytes(pages, **options))
        return path

    return make


CLASSES = ("bars", "blocks", "text")  # sorted, as folders are
TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "page_size": 64, "grid": (4, 4), "in_chans": 1}


def drawing(kind: str, page: int, shift: float = 0) -> bytes:
    """A page of one of `CLASSES`: upright bars, large blocks or lines of words."""
    if kind == "text":
        return strokes(612, 792 - shift, page)
    size = (30, 700) if kind == "bars" else (150, 150)
    step = (90, 800) if kind == "bars" else (220, 220)
    places = [(40 + shift + x, 40 + shift + y) for x in range(0, 500, step[0]) for y in range(0, 600, step[1])]
    return b"0 g\n" + b"\n".join(b"%.1f %.1f %d %d re f" % (*place, *size) for place in places[page:])


def classed_pdf(kind: str, pages: int = 2, shift: float = 0) -> bytes:
    """A document of one of `CLASSES`."""
    return pdf_bytes([(612, 792)] * pages, contents=[drawing(kind, page, shift) for page in range(pages)])


WORDS = {"bars": "wine bar tariff", "blocks": "concrete block order", "text": "dear sir yours"}


def worded_pdf(kind: str, number: int, pages: int = 2) -> bytes:
    """A document of one of `CLASSES` that has the words of its class, and names of its own, all over its pages."""
    contents = []
    for page in range(pages):
        lines = [
            f"BT /F1 20 Tf {60 + 150 * i} {720 - 60 * i - 40 * number} Td ({word} {kind}{number}{page}) Tj ET"
            for i, word in enumerate(WORDS[kind].split())
        ]
        contents.append(drawing(kind, page, 8.0 * number) + "\n".join(["", *lines]).encode())
    font = "/Resources<</Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Courier>>>>>>"
    return pdf_bytes([(612, 792)] * pages, extra=font, contents=contents)


@pytest.fixture(scope="session", autouse=True)
def page_cache(tmp_path_factory) -> Path:
    """The cache of rendered pages of this session, away from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["DOCVIT_CACHE"] = str(folder)
    return folder


def _touch_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    if loop := sys.modules.get("docvit.training.loop"):
        monkeypatch.setattr(loop, "draw_curves", lambda history, folder: (folder / "curves.png").touch())
    if compare := sys.modules.get("docvit.evaluation.compare"):
        monkeypatch.setattr(compare.Comparison, "plot", lambda self, file: Path(file).touch())


@pytest.fixture(autouse=True)
def empty_pictures(monkeypatch) -> None:
    """Drawing the curves of a run, or its comparison, takes longer than all that most tests train."""
    _touch_pictures(monkeypatch)


@pytest.fixture(autouse=True)
def quick_turns(monkeypatch) -> None:
    """How pages lie is learnt in 600 steps or more, behind every training of a model that can say it."""
    if turns := sys.modules.get("docvit.training.turns"):
        for name, few in {"EPOCHS": 1, "STEPS": 1, "DOCUMENTS": 4}.items():
            monkeypatch.setattr(turns, name, few)


@pytest.fixture(autouse=True)
def no_sync(monkeypatch) -> None:
    """Files are flushed to the disk for the case of a power failure, which no test has."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A folder per class: four documents each, of two or three pages."""
    folder = tmp_path_factory.mktemp("corpus")
    for kind in CLASSES:
        (folder / kind).mkdir()
        for i in range(4):
            (folder / kind / f"{kind}{i}.pdf").write_bytes(classed_pdf(kind, 2 + i % 2, 8.0 * i))
    return folder


@pytest.fixture(scope="session")
def trained(corpus, tmp_path_factory) -> Path:
    """The folder of a tiny model that has learnt to tell `CLASSES` apart."""
    from docvit.data.augment import Augmentation
    from docvit.data.labels import read_labelled
    from docvit.training.loop import TrainSettings
    from docvit.training.recipe import Recipe
    from docvit.training.supervised import train_documents

    loop, still = TrainSettings(epochs=12, lr=3e-3), Augmentation(shift=0.03, scale=0.05, ink=0.2, scan=0)
    recipe = Recipe(
        model="docvit_small_patch16",
        settings=TINY,
        budget=40,
        patch_dropout=0.0,
        page_loss=0.5,
        ema=0.8,
        augmentation=still,
        train=loop,
    )
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        _touch_pictures(patch)
        train_documents(read_labelled(corpus), folder, recipe, device="cpu", workers=0)
    return folder


built = functools.cache(typer.main.get_command)  # a command line is parsed in a tenth of the time that building takes


@pytest.fixture
def command(monkeypatch, capfd) -> Callable[..., tuple[int, str, str]]:
    """`command(main, "docvit", "classify", ...)` gives (exit code, standard output, standard error)."""

    monkeypatch.setattr(typer.main, "get_command", built)

    def run(main: Callable[[], None], *line) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [*map(str, line)])
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            logging.captureWarnings(False)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return ended.value.code or 0, out, err

    return run


@pytest.fixture
def docvit(command) -> Callable[..., tuple[int, str, str]]:
    """`docvit("classify", ...)` gives (exit code, standard output, standard error) of the command."""
    from docvit import cli

    return partial(command, cli.main, "docvit")


def process(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A command of `script` with these arguments, in a process of its own."""
    import torch

    # as many threads as here: sums over another number of threads differ in their last bits
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(Path(__file__).parent.parent)}
    environment = {**os.environ, **threads}
    line = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def in_two_processes() -> Callable[..., None]:
    """`in_two_processes(function, *arguments)` calls `function(rank, *arguments)` in two processes like torchrun."""
    if sys.platform != "linux":
        pytest.skip("forks, which is fast and safe on Linux only")

    def work(rank: int, port: int, function: Callable[..., None], arguments: tuple) -> None:
        import torch

        torch.set_num_threads(1)  # the threads of the parent are not there any more
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in group.items()}, GLOO_SOCKET_IFNAME="lo")
        function(rank, *arguments)

    def run(function: Callable[..., None], *arguments) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=work, args=(rank, port, function, arguments)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            process.kill()
        assert [process.exitcode for process in processes] == [0, 0]

    return run


@pytest.fixture
def in_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their modules can be imported."""
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    monkeypatch.syspath_prepend(EXAMPLES / "experiments")


def run_main(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()
