"""How commands end: mistakes in one line, bugs under their names, interruptions, closed streams."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import pytest
import torch
import typer
from conftest import classed_pdf, process

from docvit.cli import main
from docvit.cli.entry import run
from docvit.data.labels import DataError
from docvit.documents.errors import NotFound
from docvit.errors import SettingError, UserError
from docvit.model.errors import ModelError
from docvit.training.checkpoint import CheckpointError
from docvit.training.loop import TrainingError


@pytest.fixture
def ending(monkeypatch, capfd):
    """`ending(error)`: status and standard error of a command that raises it."""
    monkeypatch.delenv("DOCVIT_DEBUG", raising=False)
    monkeypatch.setattr(sys, "argv", ["docvit"])

    def end(error):
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

        @app.command()
        def command() -> None:
            raise error

        with pytest.raises(SystemExit) as ended:
            run(app)
        return ended.value.code, capfd.readouterr().err

    return end


MISTAKES = [
    UserError("one line"),
    SettingError("one line"),
    ModelError("one line"),
    TrainingError("one line"),
    CheckpointError("one line"),
    OSError("one line"),
    NotFound("one", "line"),
    DataError("one", ["line"]),
]


@pytest.mark.parametrize("error", MISTAKES, ids=lambda error: type(error).__name__)
def test_a_mistake_of_the_user_is_status_2(ending, error):
    assert ending(error) == (2, f"error: {error}\n")


@pytest.mark.parametrize(
    "error", [ValueError("deep\ninside"), TypeError("deep"), IndexError("deep"), RuntimeError("deep"), AssertionError()]
)
def test_a_bug_is_status_1_and_one_line_with_its_kind_and_the_way_to_the_traceback(ending, error):
    code, err = ending(error)
    said = ": deep" if error.args else ""
    assert (code, err) == (1, f"unexpected {type(error).__name__}{said} (DOCVIT_DEBUG=1 shows the traceback)\n")


@pytest.mark.parametrize(("error", "status"), [(IndexError("deep"), 1), (SettingError("mine"), 2)])
def test_the_traceback_is_kept_on_request(ending, monkeypatch, error, status):
    monkeypatch.setenv("DOCVIT_DEBUG", "1")
    code, err = ending(error)
    assert code == status
    assert err.startswith("Traceback (most recent call last):")
    assert "raise error" in err
    assert err.splitlines()[-1].count(str(error)) == 1
    monkeypatch.setenv("DOCVIT_DEBUG", "0")
    assert "Traceback" not in ending(error)[1]


def interrupted_import():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as cause:
        error = ImportError("initialization failed")
        error.__context__ = cause
        return error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), interrupted_import()])
def test_ctrl_c_is_one_word(ending, error):
    assert ending(error) == (130, "interrupted\n")


CTRL_C_WHILE_TORCH_IS_IMPORTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell begin without
from docvit.cli import main
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "torch.nn":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
main()
"""


def test_ctrl_c_while_torch_is_imported(tmp_path):
    with process(CTRL_C_WHILE_TORCH_IS_IMPORTED, "classify", tmp_path) as other:
        out, err = other.communicate(timeout=300)
    assert (other.returncode, out, err) == (130, "", "interrupted\n")


@pytest.mark.skipif(sys.platform != "linux", reason="forks, which is fast and safe on Linux only")
@pytest.mark.parametrize(("closed", "shown"), [(("stdin", "stderr"), True), (("stdin", "stdout"), False)])
def test_closed_streams(trained, tmp_path, monkeypatch, capfd, closed, shown):
    """As under `docvit classify <&- 2>&-`: Python starts with None in place of a closed stream."""
    (tmp_path / "a.pdf").write_bytes(classed_pdf("text", 1))
    line = ["docvit", "classify", tmp_path / "a.pdf", "--model", trained, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*map(str, line)])
    child = os.fork()
    if not child:
        torch.set_num_threads(1)  # the threads of the parent are not there any more
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            if name in closed:
                os.close(number)
                setattr(sys, name, None)
        status = 1
        try:
            main()
        except SystemExit as end:
            sys.stdout.flush()
            status = end.code
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert ("text" in out) == shown


def test_without_a_home_directory_the_error_names_the_variable(monkeypatch, ending):
    """As under `docker run --user 12345`: no HOME, and no entry among the users."""
    from docvit.documents.cache import default_cache

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DOCVIT_CACHE")
    monkeypatch.setattr("pathlib.Path.home", home)
    with pytest.raises(SettingError, match="DOCVIT_CACHE") as caught:
        default_cache()
    assert ending(caught.value)[0] == 2


def test_threads_of_a_command_do_not_spin_unless_asked(monkeypatch, ending):
    """Set before torch, and with it the OpenMP library, is imported."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    ending(UserError("done"))
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    ending(UserError("done"))
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_warnings_go_to_standard_error(monkeypatch, capfd):
    app = typer.Typer(add_completion=False)

    @app.command()
    def command() -> None:
        logging.getLogger("docvit.anything").info("passed over")
        logging.getLogger("docvit.anything").warning("look here")
        warnings.warn("and here", stacklevel=1)

    monkeypatch.setattr(sys, "argv", ["docvit"])
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a process of its own
    logging.captureWarnings(False)
    with pytest.raises(SystemExit):
        run(app)
    logging.captureWarnings(False)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("WARNING: look here\nWARNING: ")
    assert "and here" in err


def test_what_the_system_says_comes_with_its_file_and_what_to_look_at(ending):
    error = FileExistsError(17, "File exists", "out")
    assert ending(error) == (2, "error: out: File exists: check the path, its permissions and the room on the disk\n")
