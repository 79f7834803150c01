"""The benchmarks on a made-up CIFAR: nothing runs twice, nothing is overwritten."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from docvit.training import loop as train
from docvit.training.loop import TrainingError
from kd import cli, sweep
from kd.cifar10 import presets, report
from kd.cifar10 import results as results_file
from kd.cifar10 import run as benchmarks
from kd.cifar10.batches import Augment
from kd.cifar10.files import BATCHES, CIFAR10, CLASS_NAMES
from kd.cifar10.presets import PRESETS
from kd.cifar10.results import BenchmarkError
from kd.cifar10.run import bench_cifar10
from kd.cifar10.tables import FIGURES, TABLES

TINY = replace(
    PRESETS["smoke"], train_images=30, test_images=10, measured_images=10, batch_size=10,
    teacher_width=0.02, student_width=0.05,
)  # fmt: skip


@pytest.fixture(autouse=True)
def in_float32_and_quick(monkeypatch):
    for module in (train, results_file, sweep):
        monkeypatch.setattr(module, "has_fast_bf16", lambda _: False)


@pytest.fixture
def without_plots(monkeypatch):
    """Drawing takes longer than all that is trained here."""
    monkeypatch.setattr(report, "draw_figures", lambda *_: {})


def made_up(train=30, test=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (train + test, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(train + test) % 10
    return CIFAR10(images[:train], labels[:train], images[train:], labels[train:], CLASS_NAMES)


def bench(output, preset=TINY, **settings):
    return bench_cifar10(made_up(), output, preset, **({"device": "cpu"} | settings))


def longer(preset=TINY, epochs=3, checkpoint_minutes=0.0):
    """A checkpoint after every step, unless asked otherwise."""
    loop = {"epochs": epochs, "checkpoint_minutes": checkpoint_minutes}
    stages = tuple(replace(s, train=replace(s.train, **loop)) for s in preset.stages)
    return replace(preset, stages=stages, teacher_epoch=2)


def without_times(runs):
    def strip(value):
        if isinstance(value, dict):
            return {k: strip(below) for k, below in value.items() if k not in ("seconds", "checkpoint_minutes")}
        return [strip(below) for below in value] if isinstance(value, list) else value

    return strip(runs)


def write_files(folder):
    """The official binary layout, too small."""
    folder.mkdir()
    data = made_up(100, 20)
    for number, name in enumerate(BATCHES):
        images, labels = data.train_images[20 * number :][:20], data.train_labels[20 * number :][:20]
        if name == "test_batch":
            images, labels = data.test_images, data.test_labels
        records = torch.cat([labels[:, None].to(torch.uint8), images.flatten(1)], dim=1)
        (folder / f"{name}.bin").write_bytes(records.numpy().tobytes())
    return folder


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["kd", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_command_from_files_to_report_and_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(presets.PRESETS, "smoke", TINY)
    output = tmp_path / "out"
    arguments = ["bench", "cifar10", "--data", write_files(tmp_path / "data"), "--output", output]
    arguments += ["--device", "cpu", "--no-compile"]
    draw = report.draw_figures  # takes longer than what is trained: here when all has run
    complete = lambda results, preset: draw(results, preset) if len(results.runs) == len(TINY.stages) else {}  # noqa: E731
    monkeypatch.setattr(report, "draw_figures", complete)
    assert command(monkeypatch, *arguments, "--preset", "smoke") == 0
    results = json.loads((output / "results.json").read_text())
    assert {run["stage"] for run in results["runs"].values()} == {stage.name for stage in TINY.stages}
    text = (output / "report.md").read_text()
    assert "Not at full scale" in text
    assert "70.77" in text
    for table in TABLES["smoke"]:
        assert f"(`{table.name}`)" in text
    for name in FIGURES["smoke"]:
        assert (output / f"curves-{name}.png").stat().st_size > 10_000
    assert list(output.glob("runs/*/checkpoint*")) == []
    before = (output / "results.json").read_bytes()
    monkeypatch.setattr(report, "draw_figures", lambda *_: {})
    monkeypatch.setattr(benchmarks, "train_networks", None)  # whoever trains now, fails
    assert command(monkeypatch, *arguments, "--preset", "smoke") == 0
    assert (output / "results.json").read_bytes() == before
    assert command(monkeypatch, *arguments, "--preset", "smoke", "--images", "25") == 2
    error = capsys.readouterr().err
    assert "other settings or data: " in error
    assert "preset train_images was 30, not 25" in error
    assert (output / "results.json").read_bytes() == before


def test_fewer_images_come_in_as_many_steps():
    report = PRESETS["report"].limited(5000)
    assert (report.train_images, report.test_images, report.batch_size, report.measured_images) == (5000, 5000, 50, 500)
    assert PRESETS["modern"].limited(20_000).test_images == 10_000
    smoke = PRESETS["smoke"]
    assert smoke.limited(2000) == smoke
    assert smoke.limited(10).batch_size == 1


def test_a_shortened_preset_concludes_nothing():
    modern = PRESETS["modern"].shortened(40)
    assert [stage.train.epochs for stage in modern.stages] == [40, 30, 40]
    assert (modern.teacher_epoch, modern.conclusive) == (40, False)
    assert PRESETS["modern"].shortened(1000) == PRESETS["modern"]


@pytest.mark.usefixtures("without_plots")
def test_a_run_is_recorded_whole(tmp_path):
    results = bench(tmp_path / "out", longer(), only=["teacher"], seeds=2)
    assert sorted(results.runs) == ["teacher-seed0", "teacher-seed1"]
    run = results.runs["teacher-seed1"]
    assert run["seed"] == run["train"]["seed"] == 1
    assert run["versions"]["torch"] == torch.__version__
    assert "CPU" in run["device"]
    assert len(run["epochs"]) == 3
    network = run["networks"]["alone"]
    for kind in ("weights", "average"):
        assert [set(epoch) for epoch in network[kind]] == [
            {"test_loss", "test_accuracy", "train_loss", "train_accuracy"}
        ] * 3
    assert network["weights"] != network["average"]
    assert network["weights"] != results.runs["teacher-seed0"]["networks"]["alone"]["weights"]


class Stops(Exception):
    pass


@pytest.mark.usefixtures("without_plots")
def test_interrupted_is_uninterrupted_and_finished_runs_are_not_repeated(tmp_path, monkeypatch):
    """Two stages of two epochs of three steps; it stops in the first, in the second, and in the second seed."""
    settings = {"preset": longer(epochs=2), "only": ["alpha"], "seeds": 2}
    whole = bench(tmp_path / "whole", **settings | {"preset": longer(epochs=2, checkpoint_minutes=60.0)})
    stops, taken, plain_step = [4, 9, 17], [], train._Run._step

    def counted(run, batch):
        if stops and len(taken) == stops[0]:
            raise Stops
        taken.append(1)
        return plain_step(run, batch)

    monkeypatch.setattr(train._Run, "_step", counted)
    while stops:
        with pytest.raises(Stops):
            bench(tmp_path / "parts", **settings)
        assert (tmp_path / "parts" / "report.md").is_file()
        assert len(taken) == stops.pop(0)
    resumed = bench(tmp_path / "parts", **settings)
    assert len(taken) == 2 * 2 * 6  # no step twice
    assert without_times(resumed.runs) == without_times(whole.runs)


@pytest.mark.usefixtures("without_plots")
def test_students_of_a_sweep_are_students_alone(tmp_path):
    together = bench(tmp_path / "together", only=["alpha"])
    stage = TINY.stage("students")
    alone = replace(stage, networks={"alpha 0.8": stage.networks["alpha 0.8"]})
    preset = replace(TINY, stages=tuple(alone if s.name == "students" else s for s in TINY.stages))
    by_itself = bench(tmp_path / "alone", preset, only=["distillation"])
    name = "students-seed0"
    assert together.runs[name]["networks"]["alpha 0.8"] == by_itself.runs[name]["networks"]["alpha 0.8"]


@pytest.mark.usefixtures("without_plots")
def test_more_seeds_and_tables_join_what_is_there(tmp_path):
    bench(tmp_path, only=["teacher"])
    first = json.loads((tmp_path / "results.json").read_text())["runs"]
    bench(tmp_path, only=["teacher"], seeds=2)
    later = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert later.pop("teacher-seed1")
    assert later == first
    bench(tmp_path, only=["curves"])
    assert {"mean-teacher-seed0"} < set(json.loads((tmp_path / "results.json").read_text())["runs"])


@pytest.mark.usefixtures("without_plots")
def test_students_of_further_seeds_share_the_first_teachers(tmp_path, monkeypatch):
    own = bench(tmp_path / "own", only=["alpha", "ema"], seeds=2)
    taken, load = [], benchmarks.load_file
    monkeypatch.setattr(benchmarks, "load_file", lambda file: (taken.append(file.parent.name), load(file))[1])
    shared = bench(tmp_path / "shared", only=["alpha", "ema"], seeds=3, teachers=1)
    students = [f"students-seed{seed}" for seed in range(3)]
    assert set(shared.runs) == {"teacher-seed0", "mean-teacher-seed0", *students}
    assert taken == ["teacher-seed0"] * 3
    assert [shared.runs[name]["teacher_seed"] for name in students] == [0, 0, 0]
    assert shared.runs["students-seed0"]["networks"] == own.runs["students-seed0"]["networks"]
    assert shared.runs["students-seed1"]["networks"] != own.runs["students-seed1"]["networks"]
    note = "students of seed 1 that of seed 0, of seed 2 that of seed 0. Their spread leaves teachers out"
    assert note in (tmp_path / "shared" / "report.md").read_text()
    assert "Not every seed" not in (tmp_path / "own" / "report.md").read_text()


@pytest.mark.usefixtures("without_plots")
def test_an_interrupted_student_keeps_its_teacher(tmp_path, monkeypatch):
    preset = longer(epochs=2)
    bench(tmp_path, preset, only=["teacher"], seeds=2)
    taken, step = [], train._Run._step

    def stopping(run, batch):
        if len(taken) == 8:  # six steps of the first seed, two of the second
            raise Stops
        taken.append(1)
        return step(run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(train._Run, "_step", stopping)
        with pytest.raises(Stops):
            bench(tmp_path, preset, only=["alpha"], seeds=2, teachers=1)
    with pytest.raises(TrainingError, match="teacher_seed was 0, not 1"):
        bench(tmp_path, preset, only=["alpha"], seeds=2)
    results = bench(tmp_path, preset, only=["alpha"], seeds=2, teachers=1)
    assert results.runs["students-seed1"]["teacher_seed"] == 0


@pytest.mark.usefixtures("without_plots")
def test_the_modern_preset_runs_with_its_augmentation(tmp_path):
    modern = PRESETS["modern"]
    stages = tuple(replace(s, train=replace(s.train, epochs=1)) for s in modern.stages)
    small = {f: getattr(TINY, f) for f in ("train_images", "test_images", "batch_size", "measured_images")}
    preset = replace(modern, stages=stages, teacher_epoch=1, teacher_width=0.02, student_width=0.05, **small)
    results = bench(tmp_path, preset, seeds=1)
    assert preset.augment == Augment(crop=4, cutout=8)
    assert set(results.runs) == {"teacher-seed0", "short-seed0", "patient-seed0"}
    assert "a square of 8 px blanked" in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("without_plots")
def test_results_of_other_data_or_settings_are_left_alone(tmp_path):
    bench(tmp_path, only=["teacher"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(TrainingError, match="data sha256"):
        bench_cifar10(made_up(seed=1), tmp_path, TINY, device="cpu", only=["teacher"])
    with pytest.raises(TrainingError, match=r"preset decay was 0\.99, not 0\.9"):
        bench(tmp_path, replace(TINY, decay=0.9))
    with pytest.raises(BenchmarkError, match="no table is called nothing; there are teacher, alpha"):
        bench(tmp_path, only=["nothing"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize("content", ["{", "[]", '{"runs": {}}'])
def test_foreign_results_and_foreign_folders_are_refused(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(TrainingError, match=r"is damaged|begun with other settings"):
        bench(tmp_path)
    assert (tmp_path / "results.json").read_text() == content
    (tmp_path / "results.json").rename(tmp_path / "thesis.tex")
    with pytest.raises(TrainingError, match="not empty"):
        bench(tmp_path)
    with pytest.raises(TrainingError, match="not a folder"):
        bench(tmp_path / "thesis.tex")


def test_the_report_is_written_after_every_run(tmp_path, monkeypatch):
    counts = []
    monkeypatch.setattr(benchmarks, "write_report", lambda results, *_: counts.append(len(results.runs)))
    bench(tmp_path, only=["teacher"], seeds=2)
    assert counts == [0, 1, 2]


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="no device 'nowhere'"):
        bench(tmp_path / "out", device="nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_plots")
def test_a_lost_teacher_is_named(tmp_path):
    bench(tmp_path, only=["teacher"])
    (tmp_path / "runs" / "teacher-seed0" / "teacher.safetensors").unlink()
    with pytest.raises(BenchmarkError, match=r"teacher\.safetensors is gone"):
        bench(tmp_path, only=["alpha"])


@pytest.mark.usefixtures("without_plots")
def test_failing_training_is_reported_in_the_report(tmp_path):
    results = bench(tmp_path, only=["distillation"])
    assert results.runs["failure-seed0"]["warnings"]
    text = (tmp_path / "report.md").read_text()
    assert "failure-seed0: alone: still at chance" in text
    assert "| without, SGD at 0.001, 3 epochs (after 1) |" in text
