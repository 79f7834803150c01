"""Every option of `kd distill` and `kd bench cifar10`, read back from where it acts; and what help may import."""

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import kd
from docvit.training.loop import TrainSettings
from docvit.training.recipe import Recipe
from kd import cli
from kd.cifar10 import files
from kd.cifar10 import run as benchmarks
from kd.cifar10.presets import PRESETS
from kd.config import DistillConfig
from kd.documents import run as documents
from kd.documents.run import DocumentDistillation, recipe_for
from kd.losses import SOFT_LOSSES


@pytest.fixture
def distilled(command, corpus, monkeypatch, tmp_path):
    """`distilled("--alpha", 1)` gives what `distill_documents` is called with: its arguments by name."""
    names = ("recipe", "teachers", "data", "output", "config")

    def record(*arguments, **options):
        calls.append(dict(zip(names, arguments, strict=True)) | options)
        return DocumentDistillation(None, [{"epoch": 1.0}], [], None, ())

    def run(*line, data=corpus):
        teacher = [] if "--teacher" in line else ["--teacher", "self"]
        code, _, err = command(cli.main, "kd", "distill", data, "--output", tmp_path / "out", *teacher, *line)
        assert (code, err) == (0, "")
        return calls[-1]

    calls = []
    monkeypatch.setattr(documents, "distill_documents", record)
    return run


def test_defaults_are_those_of_recipe_and_config(distilled):
    found = distilled()
    assert found["recipe"] == recipe_for(Recipe.model)
    assert found["config"] == DistillConfig()
    assert found["teachers"] == ["self"]
    assert tuple(SOFT_LOSSES) == cli.SOFT_LOSSES


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--alpha", 0.25, {"alpha": 0.25}),
        ("--temperature", 2.5, {"temperature": 2.5}),
        ("--soft", "dkd", {"soft": "dkd"}),
        ("--feature", "pages=0.5", {"features": {"pages": 0.5}}),
        ("--simkd", None, {"simkd": True}),
        ("--consistency", 3, {"consistency": 3.0}),
        ("--fine-tune", 4, {"fine_tune": 4}),
    ],
)
def test_options_of_the_loss(distilled, option, value, expected):
    assert distilled(option, *([] if value is None else [value]))["config"] == replace(DistillConfig(), **expected)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--student", "docvit_tiny_patch16", {"model": "docvit_tiny_patch16"}),
        ("--ema", 0.5, {"ema": 0.5}),
        ("--positions", "rope", {"settings": {"positions": "rope"}}),
        ("--scopes", "page", {"settings": {"scopes": "page"}}),
        ("--page-size", 64, {"settings": {"page_size": 64}}),
        ("--budget", 77, {"budget": 77}),
        ("--max-pages", 3, {"max_pages": 3}),
        ("--mix-pages", 0.125, {"mix_pages": 0.125}),
        ("--packets", 0.25, {"packets": 0.25}),
        ("--words", 64, {"settings": {"words": 64}}),
        ("--lose-words", 0.125, {"lose_words": 0.125}),
        ("--word-dropout", 0.125, {"word_dropout": 0.125}),
        ("--epochs", 7, {"train": TrainSettings(epochs=7)}),
        ("--lr", 0.01, {"train": TrainSettings(lr=0.01)}),
        ("--seed", 5, {"train": TrainSettings(seed=5)}),
    ],
)
def test_options_of_the_recipe(distilled, option, value, expected):
    assert distilled(option, value)["recipe"] == replace(Recipe(), **expected)


def test_scans_are_read_when_asked(distilled, monkeypatch):
    monkeypatch.setattr("docvit.documents.ocr.require_ocr", lambda: None)
    assert distilled("--ocr")["recipe"].ocr_pages == 1
    assert distilled("--ocr", "--ocr-pages", 3)["recipe"].ocr_pages == 3


def test_options_of_data_and_machine(distilled, corpus, trained, tmp_path):
    found = distilled("--valid", corpus, "--unlabelled", corpus, "--teacher-cache", tmp_path, "--device", "cpu")
    assert found["valid"].paths == found["data"].paths
    assert sorted(found["unlabelled"]) == sorted(found["data"].paths)
    assert (found["teacher_cache"], found["device"], found["workers"]) == (tmp_path, "cpu", 2)
    assert found["output"] == tmp_path / "out"
    assert distilled("--workers", 0)["workers"] == 0
    assert distilled("--password", "secret")["password"] == "secret"
    assert distilled()["teacher_probabilities"] == ()
    tables = distilled("--teacher-probabilities", "a.csv", "--teacher-probabilities", "b.csv")
    assert tables["teacher_probabilities"] == [Path("a.csv"), Path("b.csv")]
    assert distilled("--student", trained)["recipe"].init == str(trained)
    first, second = distilled("--teacher", trained, "--teacher", trained)["teachers"]
    assert first.config == second.config == kd.Teacher(first).networks[0].config


def test_onnx_networks_need_no_labels_unless_they_are_asked_for(distilled, corpus, trained, command, tmp_path):
    network = "some/layout.onnx:inner:0"
    found = distilled("--teacher", network)
    assert found["teachers"] == [network]
    assert sorted(found["data"]) == sorted(str(path) for path in corpus.rglob("*.pdf"))
    assert found["valid"] is None
    labelled = distilled("--teacher", network, "--labels", "--valid", corpus)
    assert labelled["data"].labels == labelled["valid"].labels
    assert distilled("--teacher", network, "--teacher-probabilities", "a.csv")["data"].classes
    beside = distilled("--teacher", network, "--teacher", trained)
    assert beside["data"].classes
    assert beside["teachers"][0] == network
    for option, value in (("--valid", corpus), ("--fold", "1/2"), ("--group-by", "source"), ("--packets", 1)):
        line = ["kd", "distill", corpus, "--teacher", network, "--output", tmp_path / "out", option, value]
        code, out, err = command(cli.main, *line)
        assert (code, out) == (2, "")
        assert err == "error: --valid, --fold, --group-by and --packets need labels: give --labels, too\n"


def test_options_of_soft_targets_need_a_teacher_that_gives_some(distilled, corpus, command, trained, tmp_path):
    network = "some/layout.onnx:inner:0"
    line = ["kd", "distill", corpus, "--teacher", network, "--labels", "--output", tmp_path / "out"]
    for option, value in (("--alpha", 0.5), ("--temperature", 2), ("--soft", "dkd")):
        code, _, err = command(cli.main, *line, option, value)
        assert code == 2
        assert f"no soft targets for {option}:" in err
    assert distilled("--teacher", network, "--teacher", trained, "--alpha", "0.25")["config"].alpha == 0.25


def test_a_fold_of_sources_is_held_out(distilled, corpus, tmp_path):
    rows = [(path, path.parent.name, path.stem[-1]) for path in sorted(corpus.glob("*/*.pdf"))]
    table = tmp_path / "documents.csv"
    table.write_text("path,label,source\n" + "\n".join(f"{path},{label},{source}" for path, label, source in rows))
    found = distilled("--group-by", "source", "--fold", "1/2", data=table)
    assert set(found["data"].groups).isdisjoint(found["valid"].groups)
    assert len(found["data"]) + len(found["valid"]) == 12


def test_resume_asks_for_the_run_as_it_was(distilled, monkeypatch, tmp_path):
    from docvit.training import run_folder

    monkeypatch.setattr(run_folder, "read_recipe", lambda *_: Recipe())
    monkeypatch.setattr(documents, "read_config", lambda *_: DistillConfig(alpha=0.25))
    assert distilled("--resume", "--alpha", 0.25)["resume"] is True
    assert distilled()["resume"] is False


@pytest.fixture
def benched(command, monkeypatch, tmp_path):
    """`benched("--seeds", 2)` gives the preset and the options that `bench_cifar10` is called with."""
    calls = []
    monkeypatch.setattr(files, "load", lambda folder: ("data in", folder))
    monkeypatch.setattr(files, "download", lambda folder: calls.append(("download", folder)))
    monkeypatch.setattr(benchmarks, "bench_cifar10", lambda *given, **options: calls.append((*given, options)))

    def run(*line):
        places = ["--data", tmp_path / "data", "--output", tmp_path / "out"]
        assert command(cli.main, "kd", "bench", "cifar10", *places, *line)[0] == 0
        data, output, preset, options = calls[-1]
        assert (data, output) == (("data in", tmp_path / "data"), tmp_path / "out")
        return preset, options, calls

    return run


def test_options_of_the_benchmark(benched, tmp_path):
    preset, options, _ = benched()
    assert preset == PRESETS["report"]
    assert options == {"seeds": None, "teachers": None, "device": None, "only": (), "compile": None}
    given = ["--seeds", 2, "--teachers", 1, "--device", "cpu", "--only", "alpha", "--only", "ema", "--no-compile"]
    expected = {"seeds": 2, "teachers": 1, "device": "cpu", "only": ["alpha", "ema"], "compile": False}
    assert benched(*given)[1] == expected
    assert benched("--compile")[1]["compile"] is True
    for name, expected in PRESETS.items():
        assert benched("--preset", name)[0] == expected
    assert benched("--images", 5000)[0] == PRESETS["report"].limited(5000)
    assert benched("--epochs", 3)[0] == PRESETS["report"].shortened(3)
    assert benched("--width", 0.5)[0] == replace(PRESETS["report"], teacher_width=0.5)
    assert ("download", tmp_path / "data") not in benched()[2]
    assert ("download", tmp_path / "data") in benched("--download")[2]


def test_the_module_of_commands_imports_nothing_heavy_before_one_runs():
    """Help must not wait for torch."""
    heavy = {"torch", "timm", "numpy", "scipy", "matplotlib", "PIL", "safetensors", "huggingface_hub"}
    assert python(f"import sys, kd.cli; print({heavy} & set(sys.modules))") == "set()"


def python(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def test_the_package_hands_on_its_names_and_imports_nothing_before():
    assert python("import sys, kd; print('torch' in sys.modules)") == "False"
    assert all(hasattr(kd, name) for name in kd.__all__)
    assert set(kd.__all__) <= set(dir(kd))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kd.nothing


@pytest.fixture
def kd_not_imported():
    def loaded():
        return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "kd"}

    before = loaded()
    for name in before:
        del sys.modules[name]
    yield
    for name in loaded():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.usefixtures("kd_not_imported")
@pytest.mark.parametrize(
    "before", ["", "import kd.distill", "import kd.documents.run", "from kd.distill import distill"]
)
def test_distill_is_the_function_whatever_was_imported_before(before):
    """The module has the same name, and Python binds a module to its package."""
    found = {}
    exec(f"{before}\nimport kd\nfrom kd import distill\nboth = distill, kd.distill", found)
    one, other = found["both"]
    assert one is other
    assert type(one).__name__ == "function"


def test_the_package_is_a_command():
    line = [sys.executable, "-m", "kd", "--help"]
    assert "distill" in subprocess.run(line, capture_output=True, text=True, check=True).stdout


def test_the_version():
    script = "import sys; from kd.cli import main; sys.argv = ['kd', '--version']; main()"
    assert python(script) == importlib.import_module("docvit").__version__
