"""The benchmarks on a made-up CIFAR: nothing runs twice, nothing is overwritten, cells and verdicts come from runs."""

import copy
import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

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
from kd.cifar10.report import _failure, difference, verdict
from kd.cifar10.results import BenchmarkError
from kd.cifar10.run import bench_cifar10
from kd.cifar10.tables import FIGURES, TABLES, Cell, Claim, Table

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


def test_every_cell_and_line_names_a_network_that_is_trained():
    for name, preset in PRESETS.items():
        networks = {(stage.name, network) for stage in preset.stages for network in stage.networks}
        cells = [cell for table in TABLES[name] for cell in table.cells]
        lines = [line for lines in FIGURES[name].values() for line in lines]
        assert {(line.stage, line.network) for line in cells + lines} <= networks
        assert all(cell.epoch <= preset.stage(cell.stage).train.epochs for cell in cells) or name == "smoke"
        assert preset.teacher_epoch <= preset.stage("teacher").train.epochs


def test_the_report_preset_is_the_reports():
    preset = PRESETS["report"]
    assert (preset.teacher_width, preset.student_width, preset.init, preset.augment) == (1.0, 1.0, "default", None)
    assert [cell.reported for table in TABLES["report"][:3] for cell in table.cells] == [
        57.9, 70.77, 65.8, 65.4, 65.8, 68.8, 10.5, 10.5, 10.5, 68.5,
    ]  # fmt: skip
    assert [config.alpha for config in preset.stage("students").networks.values()] == [0.5, 0.6, 0.8]


def test_the_failing_stage_is_plain_sgd_and_changes_nothing_else():
    """Its steps are minus learning rate times gradient, which Adam's and Nesterov's are not."""
    baseline, failure = (PRESETS["report"].stage(name) for name in ("baseline", "failure"))
    assert replace(failure, name="baseline", train=baseline.train) == baseline
    optimizer = {"optimizer": failure.train.optimizer, "momentum": failure.train.momentum}
    assert replace(baseline.train, **optimizer) == failure.train
    model, inputs = torch.nn.Linear(3, 2), torch.randn(5, 3)
    expected = copy.deepcopy(model)
    for _ in range(2):
        gradients = torch.autograd.grad(expected(inputs).square().mean(), list(expected.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
                parameter -= 0.001 * gradient

    class Batches(list):
        def set_epoch(self, epoch, skip=0):
            pass

    loss = lambda network, batch, _: {"loss": network(batch).square().mean()}  # noqa: E731
    train.fit(model, Batches([inputs]), loss, replace(failure.train, epochs=2))
    torch.testing.assert_close(model.weight, expected.weight, rtol=0, atol=1e-7)


def test_claims_point_the_way_the_report_does():
    """Where the report has numbers for both rows of a claim, the better one is better there too."""
    for table in TABLES["report"]:
        for claim in table.claims:
            better, worse = table.cells[claim.better], table.cells[claim.worse]
            if better.reported is not None and worse.reported is not None and table.name != "baseline":
                assert better.reported > worse.reported, (table.name, claim)
    named = {
        (table.cells[claim.better].label, table.cells[claim.worse].label)
        for tables in TABLES.values()
        for table in tables
        for claim in table.claims
    }
    curves = ("test loss", "test loss above training loss")
    assert named == {
        ("10 epochs", "6 epochs"),
        ("10 epochs", "15 epochs"),
        ("alpha 0.8", "alpha 0.5"),
        ("alpha 0.8", "alpha 0.6"),
        ("with (alpha 0.8)", "without, same settings"),
        ("student with EMA", "teacher without EMA"),
        ("teacher with EMA", "teacher without EMA"),
        ("average of the small network, distilled", "student without EMA (the small network, distilled)"),
        *((f"{what}, with EMA: {who}", f"{what}, without EMA") for what in curves for who in ("student", "teacher")),
        ("Adam at 0.001", "SGD at 0.001"),
        ("student, distilled", "student alone"),
        ("teacher, average", "teacher"),
        ("student, distilled, average", "student, distilled"),
        ("distilled, patient", "distilled, short"),
        ("alone, patient", "alone, short"),
    }


def two_rows(reported=(None, None), metric="test_accuracy"):
    cells = (Cell("a", "s", reported=reported[0], metric=metric), Cell("b", "s", reported=reported[1], metric=metric))
    return Table("t", "T", cells, (Claim(0, 1),))


def test_a_difference_is_paired_by_seed():
    mean, half = difference({0: 70.0, 1: 72.0, 2: 71.0, 9: 0.0}, {0: 69.0, 1: 70.0, 2: 69.5})
    assert mean == pytest.approx(1.5)
    assert half == pytest.approx(4.302653 * 0.5 / math.sqrt(3), rel=1e-5)  # t of 2 degrees of freedom
    assert difference({0: 1.0}, {1: 1.0}) is None
    assert difference({0: 2.0}, {0: 1.0}) == (1.0, None)


@pytest.mark.parametrize(
    ("better", "worse", "reported", "metric", "word"),
    [
        ((70.0, 71.0, 72.1), (68.0, 69.0, 70.0), (None, None), "test_accuracy", "Holds"),
        ((70.0, 71.0, 72.1), (68.0, 69.0, 70.0), (68.5, 10.5), "test_accuracy", "Holds in direction, not in size"),
        ((68.0, 69.0, 70.0), (70.0, 71.0, 72.1), (None, None), "test_accuracy", "Does not hold"),
        ((68.0, 72.0, 70.0), (70.0, 71.0, 69.0), (None, None), "test_accuracy", "Cannot tell"),
        ((1.0, 1.1, 1.2), (2.0, 2.1, 2.3), (None, None), "test_loss", "Holds"),
        ((70.0,), (60.0,), (None, None), "test_accuracy", "Cannot tell"),
        ((), (60.0,), (None, None), "test_accuracy", "Cannot tell"),
    ],
)
def test_verdicts(better, worse, reported, metric, word):
    samples = [dict(enumerate(better)), dict(enumerate(worse))]
    assert verdict(two_rows(reported, metric), samples).startswith(f"**{word}**")
    assert verdict(two_rows(reported, metric), samples, conclusive=False).startswith("**Cannot tell**")


def test_optimisers_are_not_held_against_the_report():
    """It has no figure for Adam alone."""
    table = next(table for table in TABLES["report"] if table.name == "baseline")
    text = verdict(table, [{0: 50.0, 1: 51.0, 2: 50.5}, {0: 10.0, 1: 10.5, 2: 10.2}])
    assert text.startswith("**Holds**: Adam at 0.001 over SGD at 0.001: +40.3")
    assert "the report" not in text


@pytest.mark.usefixtures("without_plots")
def test_failing_training_is_reported_in_the_report(tmp_path):
    results = bench(tmp_path, only=["distillation"])
    assert results.runs["failure-seed0"]["warnings"]
    text = (tmp_path / "report.md").read_text()
    assert "failure-seed0: alone: still at chance" in text
    assert "| without, SGD at 0.001, 3 epochs (after 1) |" in text


def test_a_cell_reads_its_epoch_and_failures_are_counted_row_by_row():
    table = next(table for table in TABLES["report"] if table.name == "distillation")
    curves = [[0.1, 0.1, 0.11, 0.2], [0.1, 0.1, 0.13, 0.118]]
    weights = [[{"test_accuracy": x} for x in curve] for curve in curves]
    runs = {seed: {"networks": {"alone": {"weights": curve}}} for seed, curve in enumerate(weights)}
    last, third = (
        Cell("l", "failure", epoch=epoch).sample(SimpleNamespace(of_stage=lambda stage: runs)) for epoch in (0, 3)
    )
    assert (last, third) == ({0: 20.0, 1: pytest.approx(11.8)}, {0: 11.0, 1: 13.0})
    text = _failure(table, [{}, last, third, {}])
    assert text.endswith("1 of 2 runs (without, SGD at 0.001), 1 of 2 runs (without, SGD at 0.001, 3 epochs).")
