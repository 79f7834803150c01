"""What starting costs: the modules that a command imports, since each of torch, timm and the like takes seconds."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EXAMPLES, classed_pdf, process

import docvit as package

HEAVY = ("torch", "timm", "sklearn", "matplotlib", "scipy", "torchvision", "huggingface_hub")


def imported(script, *arguments, of=HEAVY):
    """Runs a script with arguments in a process of its own; gives those of the modules that it has imported.

    After each `run("classify", ...)` in it, and at its end.
    """
    listed = f"""
import atexit, sys
def show():
    print("imported:", *(m for m in {of!r} if m in sys.modules), file=sys.stderr)
def run(*arguments):
    from docvit.cli import main
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as ended:
        assert not ended.code
    show()
atexit.register(show)
{script}
"""
    with process(listed, *arguments) as other:
        _, err = other.communicate(timeout=300)
    assert other.returncode == 0, err
    return [line.split() for line in re.findall(r"^imported:(.*)$", err, re.MULTILINE)]


HELP_OF_ALL = """
for arguments in (["--version"], ["--help"], *([name, "--help"] for name in sys.argv[1:])):
    run(*arguments)
"""


def test_help_imports_nothing_heavy():
    assert imported(HELP_OF_ALL, "classify", "evaluate", "inspect", "sort", of=(*HEAVY, "numpy", "rich"))[-1] == []


def test_help_of_training_imports_nothing_heavy():
    assert imported(HELP_OF_ALL, "train", "pretrain")[-1] == []


def test_importing_the_package_imports_nothing_heavy():
    assert imported("import docvit; dir(docvit); docvit.__version__", of=(*HEAVY, "numpy", "PIL")) == [[]]


MODEL_CLASSIFY_FIT = """
import docvit
docvit.create_model("docvit_compact_patch32")
data, own = sys.argv[1:]
run("classify", data + "/text/a.pdf", "--device", "cpu")
run("fit", data, "--output", own, "--workers", "0")
docvit.Recipe, docvit.train_documents
"""


def test_models_and_classifying_import_torch_alone_and_timm_waits_for_training(tmp_path):
    for kind in ("bars", "text"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        (tmp_path / "data" / kind / "a.pdf").write_bytes(classed_pdf(kind, 1))
    slow = (*HEAVY, "torch.nn.attention.varlen")
    classified, *fitted = imported(MODEL_CLASSIFY_FIT, tmp_path / "data", tmp_path / "own", of=slow)
    assert classified == ["torch"]
    assert fitted == [["torch", "sklearn", "scipy"]] * 2  # and with the functions that train at hand


# --- names of the package ---


@pytest.mark.parametrize("name", package.__all__)
def test_every_name_is_there_and_is_listed(name):
    assert getattr(package, name).__name__ == name
    assert name in dir(package)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="'docvit' has no attribute 'Odd'"):
        package.Odd  # noqa: B018


def test_type_checkers_see_the_same_names():
    source = Path(package.__file__).read_text()
    typed = source.split("if TYPE_CHECKING:")[1].split("\n\n")[0]
    pairs = {name: module for module, name in re.findall(r"from docvit\.(\S+) import (\w+) as \2$", typed, re.M)}
    assert len(pairs) == typed.count("import")
    assert pairs == package._MODULES
    assert sorted(pairs) == sorted(package.__all__)


# --- version, python -m ---


def test_the_version(docvit):
    assert docvit("--version") == (0, f"{package.__version__}\n", "")
    assert re.fullmatch(r"\d+\.\d+\.\d+", package.__version__)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a checkout need not be installed
        assert importlib.metadata.version("docvit") == package.__version__


def test_the_package_runs_as_a_module():
    line = [sys.executable, "-m", "docvit", "--version"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=EXAMPLES.parent, check=True)
    assert done.stdout == f"{package.__version__}\n"
