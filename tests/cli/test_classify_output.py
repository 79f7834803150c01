"""`docvit classify --output`: the rows of the terminal in a file, and no other rows after a kill and --resume."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import signal
import sys
from types import ModuleType

import pytest
from conftest import CLASSES, classed_pdf, pdf_bytes, process

from docvit import cli
from docvit.cli.output import csv_row
from docvit.cli.row_file import SUFFIXES, RowFile
from docvit.documents.errors import Empty, Unreadable
from docvit.errors import UserError
from docvit.inference.classify import DocumentClassifier
from docvit.inference.prediction import Page, Part, Prediction

NAMES = ("a.pdf", 'a, "b".pdf', "two\n\nlines.pdf", "re\rturn.pdf", "\udcff.pdf", "Prüfung\u2028.pdf", "a.pdf")
SCORES = {"text": 0.5, "bars": 0.25, "blocks": 0.25}


def prediction(path):
    page, part = Page(1, "text", 0.5, 1.0), Part(1, 1, "text", 0.5)
    return Prediction(path, "text", 0.5, SCORES, 1, 1, [1.0], pages=[page], parts=[part], note=path, known=1.0)


PREDICTIONS = [
    *map(prediction, NAMES),
    Prediction("broken.pdf", error=Unreadable("broken.pdf", "damaged,\n it is")),
    Prediction("white.pdf", num_pages=1, pages_read=1, pages=[Page(1, blank=True)], error=Empty("white.pdf", "blank")),
]


def write(file, predictions=PREDICTIONS, *, resume=False):
    """Writes the rows that are missing of `predictions`, as the command does; gives the number of rows before."""
    with RowFile(file, CLASSES, resume=resume) as rows:
        left = rows.missing([row.path for row in predictions])
        for row in predictions[len(predictions) - len(left) :]:
            assert row.path == left.pop(0)
            rows.write(row)
        rows.finish()
    return rows.documents.total()


@pytest.fixture
def documents(tmp_path):
    """Two that can be read, a broken one, and a blank one."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(classed_pdf("bars"))
    (folder / "b.pdf").write_bytes(b"%PDF-1.4")
    (folder / "c.pdf").write_bytes(classed_pdf("text", 3))
    (folder / "d.pdf").write_bytes(pdf_bytes(contents=[b""]))
    return folder


@pytest.fixture
def classify(docvit, trained):
    return lambda *rest: docvit("classify", "--model", trained, "--device", "cpu", "--workers", 0, *rest)


# --- what is written ---


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_rows_are_those_of_the_terminal(classify, documents, kind):
    file = documents / f"rows.{kind.upper()}"  # where documents are read, and none of them
    _, expected, said = classify(documents, "--format", kind)
    code, out, err = classify(documents, "--output", file)
    assert (code, out, err) == (1, f"{file}: 4 documents\n", said)
    assert file.read_bytes() == expected.encode()


def test_a_parquet_file_has_the_rows_of_json_lines(classify, documents, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    classify(documents, "--output", tmp_path / "x.jsonl")
    code, out, _ = classify(documents, "--output", tmp_path / "x.parquet")
    assert (code, out) == (1, f"{tmp_path / 'x.parquet'}: 4 documents\n")
    expected = list(map(json.loads, (tmp_path / "x.jsonl").read_text().splitlines()))
    for row in expected:
        row["scores"] = {name: row["scores"].get(name) for name in CLASSES}
    table = parquet.read_table(tmp_path / "x.parquet")
    assert table.column_names == list(expected[0])
    assert table.to_pylist() == expected
    assert {file.name for file in tmp_path.iterdir()} == {"in", "x.jsonl", "x.parquet"}


def test_columns_of_a_parquet_file_do_not_depend_on_what_is_in_them(tmp_path, monkeypatch):
    """Files are read together later; names that are no UTF-8 are escaped; more rows than are held at once."""
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("docvit.cli.row_file.TABLE_ROWS", 2)
    write(tmp_path / "all.parquet")
    for row in PREDICTIONS[-2:]:
        with RowFile(tmp_path / f"{row.path}.parquet", CLASSES, resume=False) as rows:
            rows.write(row)
            rows.finish()
        schema = parquet.read_schema(tmp_path / f"{row.path}.parquet")
        assert schema.equals(parquet.read_schema(tmp_path / "all.parquet"))
    table = parquet.read_table(tmp_path / "all.parquet").to_pylist()
    assert [row["path"] for row in table] == [row.path.replace("\udcff", r"\udcff") for row in PREDICTIONS]
    assert table[0]["pages"][0] == vars(Page(1, "text", 0.5, 1.0))
    assert table[0]["parts"][0] == vars(Part(1, 1, "text", 0.5))


def test_csv_reads_any_name_back():
    text = io.StringIO("".join(map(csv_row, PREDICTIONS)), newline="")
    assert [row[0] for row in csv.reader(text, strict=True)] == [row.path for row in PREDICTIONS]


# --- interruptions ---

KILLED = """
import os, signal, sys
from docvit.cli import main, row_file
append, left = row_file.append, int(sys.argv.pop(1))
def cut(file, line):
    global left
    left -= 1
    append(file, line if left else line[: len(line) // 2])
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
row_file.append = cut
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_process_killed_while_it_writes_a_row_goes_on(classify, corpus, trained, tmp_path, suffix):
    """In a file of the same bytes: rows that are whole stay, and what has one is not read again."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    whole, file = tmp_path / f"whole{suffix}", tmp_path / f"killed{suffix}"
    assert classify(corpus, "--output", whole)[0] == 0
    line = ("classify", corpus, "--output", file, "--model", trained, "--device", "cpu", "--workers", 1)
    with process(KILLED, 6, *line) as other:
        other.communicate(timeout=300)
    assert other.returncode == -signal.SIGKILL
    code, out, err = classify(corpus, "--output", file, "--resume")
    before = 4 if suffix == ".csv" else 5  # its header is a line, too
    assert (code, out, err) == (0, f"{file}: 12 documents, {before} of them before\n", "")
    assert file.read_bytes() == whole.read_bytes()
    assert {path.suffix for path in tmp_path.iterdir()} == {suffix}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_file_cut_at_any_byte_becomes_the_same_again(tmp_path, suffix):
    file, ends = tmp_path / f"rows{suffix}", []
    with RowFile(file, CLASSES, resume=False) as rows:
        for row in PREDICTIONS:
            rows.write(row)
            ends.append(file.stat().st_size)
    content = file.read_bytes()
    for size in range(len(content) + 1):
        file.write_bytes(content[:size])
        assert write(file, resume=True) == sum(end <= size for end in ends), size
        assert file.read_bytes() == content, size


def test_an_end_between_the_parquet_file_and_the_removal_of_its_rows(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "remove", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "x.parquet")
    assert {file.name for file in tmp_path.iterdir()} == {"x.parquet", "x.parquet.partial"}
    assert write(tmp_path / "x.parquet", resume=True) == len(PREDICTIONS)
    assert [file.name for file in tmp_path.iterdir()] == ["x.parquet"]
    assert parquet.read_metadata(tmp_path / "x.parquet").num_rows == len(PREDICTIONS)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_finished_file_takes_more_rows(tmp_path, suffix):
    """Of bytes that an uninterrupted command would have written, also where a name is no UTF-8."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    file, whole = tmp_path / f"x{suffix}", tmp_path / f"whole{suffix}"
    write(whole)
    write(file, PREDICTIONS[:-2])  # among them the name that is no UTF-8
    assert write(file, resume=True) == len(PREDICTIONS) - 2
    assert file.read_bytes() == whole.read_bytes()
    assert write(file, resume=True) == len(PREDICTIONS)
    assert file.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {file.name, whole.name}


def test_a_parquet_file_of_other_rows_is_refused_and_stays(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "mine.parquet").write_text("mine")
    parquet.write_table(pa.table({"path": ["a.pdf"]}), tmp_path / "columns.parquet")
    with RowFile(tmp_path / "classes.parquet", ("letter", "text"), resume=False) as rows:
        rows.finish()
    for file in list(tmp_path.iterdir()):
        content = file.read_bytes()
        with pytest.raises(UserError, match=r"holds no rows of docvit classify, or of a model with other classes"):
            write(file, resume=True)
        assert file.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 3


def test_a_parquet_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")

    def full(file, *_):
        file.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("docvit.cli.row_file._write_parquet", full)
        with pytest.raises(OSError, match=r"x\.parquet'$"):
            write(tmp_path / "x.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["x.parquet.partial"]
    assert write(tmp_path / "x.parquet", resume=True) == len(PREDICTIONS)


def test_what_is_named_twice_has_two_rows(classify, documents, tmp_path):
    file, twice = tmp_path / "x.jsonl", [documents / "a.pdf", documents / "c.pdf", documents / "a.pdf"]
    classify(*twice, "--output", file)
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.rindex(b'{"path') - 1])
    assert classify(*twice, "--output", file, "--resume")[0] == 0
    assert file.read_bytes() == whole


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_status_and_count_are_those_of_all_rows(classify, documents, tmp_path, suffix):
    """A blank document is no failure, as on the terminal."""
    file = tmp_path / f"x{suffix}"
    said = "1 of 4 documents could not be read: 1 Unreadable\n"
    assert classify(documents, "--output", file)[::2] == (1, said)
    content = file.read_bytes()
    assert classify(documents, "--output", file, "--resume") == (1, f"{file}: 4 documents, 4 of them before\n", said)
    assert file.read_bytes() == content
    good = tmp_path / f"good{suffix}"
    for _ in range(2):
        code, _, err = classify(documents / "a.pdf", documents / "d.pdf", "--output", good, "--resume")
        assert (code, err) == (0, "")


def test_ctrl_c_says_how_it_goes_on(classify, corpus, tmp_path, monkeypatch, caplog):
    def interrupted(self, paths, **options):
        yield Prediction(paths[0], error=Empty(paths[0], "nothing"))
        raise KeyboardInterrupt

    file = tmp_path / "x.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(DocumentClassifier, "predict", interrupted)
        code, _, err = classify(corpus, "--output", file)
    assert (code, err.splitlines()[-1]) == (130, "interrupted")
    assert "the same command with --resume goes on" in caplog.text
    assert classify(corpus, "--output", file, "--resume")[1] == f"{file}: 12 documents, 1 of them before\n"


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file sizes")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_keeps_whole_rows_and_names_the_file(classify, corpus, tmp_path, suffix):
    import resource

    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    file = tmp_path / f"x{suffix}"
    room = 300 if suffix == ".csv" else 3000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        code, out, err = classify(corpus, "--output", file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, out) == (2, "")
    (written,) = tmp_path.iterdir()
    assert err.startswith(f"error: {written}: ")
    assert len(err.splitlines()) == 1
    assert written.read_bytes().endswith(b"\n")
    assert 0 < written.stat().st_size <= room
    code, out, _ = classify(corpus, "--output", file, "--resume")
    assert code == 0
    assert "12 documents" in out


@pytest.mark.skipif(sys.platform != "linux", reason="locks")
def test_one_process_at_a_time(tmp_path):
    with RowFile(tmp_path / "x.csv", CLASSES, resume=False):
        script = "import sys; from pathlib import Path; from docvit.cli.row_file import RowFile\n"
        script += "RowFile(Path(sys.argv[1]), ('a',), resume=True)"
        _, err = process(script, tmp_path / "x.csv").communicate(timeout=60)
    assert f"another docvit classify is writing to {tmp_path / 'x.csv'}" in err


def test_a_picture_comes_before_the_row_that_says_a_document_is_done(classify, corpus, tmp_path, monkeypatch):
    def lost(*_, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("docvit.inference.explain.explain", lost)
    assert classify(corpus, "--output", tmp_path / "x.csv", "--explain", tmp_path / "seen")[0] == 130
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 1


def test_a_bar_is_shown_where_rows_do_not_go_to_the_terminal(classify, documents, tmp_path, monkeypatch):
    hidden = []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("tqdm.tqdm", lambda rows, *, disable, **_: hidden.append(disable) or rows)
    classify(documents)
    classify(documents, "--output", tmp_path / "x.csv")
    assert hidden == [True, None]


# --- what is refused ---


def test_wrong_usage_is_one_line_before_a_model_is_loaded(docvit, documents, tmp_path, monkeypatch):
    monkeypatch.setattr(DocumentClassifier, "from_pretrained", None)
    monkeypatch.setitem(sys.modules, "pyarrow", ModuleType("pyarrow"))  # installed or not
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", ModuleType("pyarrow.parquet"))
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "old.csv").write_text("mine")
    (tmp_path / "new.parquet.partial").write_text("mine")
    (tmp_path / "old.parquet").write_text("mine")
    for line, said in (
        (["--resume"], "--resume goes on with the rows of --output"),
        (["--output", tmp_path / "x.csv", "--format", "csv"], "leave out --format"),
        (["--output", tmp_path / "x.txt"], "choose .jsonl, .csv, .parquet"),
        (["--output", tmp_path / "folder.csv", "--resume"], "is a folder"),
        (["--output", tmp_path / "old.csv"], "old.csv exists: --resume goes on with it"),
        (["--output", tmp_path / "new.parquet"], "new.parquet.partial exists: --resume goes on with it"),
        (["--output", tmp_path / "old.parquet"], "old.parquet exists: give --output another name"),
    ):
        code, out, err = docvit("classify", documents, *line)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert said in err
    assert (tmp_path / "old.csv").read_text() == "mine"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    err = docvit("classify", documents, "--output", tmp_path / "x.parquet")[2]
    assert 'pip install "docvit[parquet]", or write .jsonl or .csv' in err


def test_a_file_that_appears_while_the_model_is_loaded_is_not_touched(tmp_path):
    write(tmp_path / "x.csv")
    with pytest.raises(FileExistsError):
        write(tmp_path / "x.csv")


JSON = json.dumps(PREDICTIONS[0].as_dict())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", "mine", "holds no rows"),
        ("x.jsonl", '{"path": "a.pdf", "parts": []}\n', "row 1 is damaged"),
        ("x.jsonl", '{"path": "a.pdf", "error": null, "scores": {}}\n', "row 1 is damaged"),
        ("x.jsonl", f"{JSON}\n{JSON[:50]}\n{JSON}\n", "row 2 is damaged"),
        ("x.jsonl", JSON.replace("text", "letter") + "\n", "row 1 is of a model with other classes (letter, text)"),
        ("x.jsonl", JSON.replace(', "blocks": 0.25', "") + "\n", "row 1 is of a model with other classes (blocks)"),
        ("x.csv", "path,label\na.pdf,text\n", "holds no rows"),
        ("x.csv", cli.output.CSV_HEAD + "a.pdf,text\n", "row 2 is damaged"),
        ("x.csv", cli.output.CSV_HEAD + csv_row(PREDICTIONS[0]).replace("text", "letter"), "other classes (letter)"),
        ("x.parquet.partial", "mine", "holds no rows"),
    ],
)
def test_a_file_of_other_rows_is_refused_and_stays(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        write(tmp_path / name.removesuffix(".partial"), resume=True)
    assert said in str(caught.value)
    assert f"{tmp_path / name}" in str(caught.value)
    assert (tmp_path / name).read_text() == content
