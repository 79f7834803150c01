"""A kill at any moment of a sort loses no document."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import process
from sorting import SORTED, forks, make_inbox, run, tree, undo

from docvit.inference.sort_log import read_log


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nobody takes the power away here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def inbox(tmp_path):
    return make_inbox(tmp_path)


STEPS = {
    "write",
    "fsync",
    "ftruncate",
    "link",
    "rename",
    "remove",
    "unlink",
    "mkdir",
    "rmdir",
    "open",
    "close",
    "utime",
}


def killed_at(step, function, *arguments, **options):
    """Whether a process that calls the function is killed before the call of the system of this number."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    done = [0]

    def count(frame, event, argument):
        if event == "c_call" and argument.__name__ in STEPS:
            done[0] += 1
            if done[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = lambda _: None
    sys.setprofile(count)
    try:
        function(*arguments, **options)
    finally:
        sys.setprofile(None)
        os._exit(0)


@forks
@pytest.mark.parametrize("move", [False, True])
def test_a_kill_at_any_step_leaves_every_file_in_one_place_after_the_command_is_run_again(inbox, tmp_path, move):
    paths = [inbox / name for name in ("a-form.pdf", "bad-c.pdf", "sub")]
    names = [target for target, source in SORTED.items() if source.startswith(("a-", "bad", "sub"))]
    before = tree(inbox)
    expected = {target: before[SORTED[target]] for target in names}
    step, killed = 0, True
    while killed:
        step += 1
        shutil.rmtree(inbox)
        for name, content in before.items():
            (inbox / name).parent.mkdir(parents=True, exist_ok=True)
            (inbox / name).write_bytes(content)
        out = tmp_path / f"out{step}"
        killed = killed_at(step, run, paths, out, move=move)
        run(paths, out, move=move)
        assert tree(out) == expected, step
        rest = {name: content for name, content in before.items() if not move or name not in SORTED.values()}
        rest |= {name: before[name] for name in ("b-report.pdf", "dim-d-form.pdf")}
        assert tree(inbox) == rest, step
        killed_at(step, undo, out)
        assert all(row.problem is None for row in undo(out))
        assert (tree(inbox), tree(out)) == (before, {}), step
    assert step > 50


SCRIPT = """
import os, sys
from sorting import run
os.fsync = lambda _: None
run([sys.argv[1]], sys.argv[2], move=sys.argv[3] == "move", labels=[f"label{i}" for i in range(9)])
"""


@forks
def test_two_hundred_documents_survive_kills_at_random_moments(tmp_path):
    source, out = tmp_path / "in", tmp_path / "in" / "sorted"
    for i in range(200):
        file = source / f"folder{i % 7}" / f"{i % 50}-label{i % 9}.pdf"
        file.parent.mkdir(parents=True, exist_ok=True)
        while file.exists():
            file = file.with_name(f"x{file.name}")
        file.write_bytes(str(i).encode() * 2000)
    before = tree(source)
    assert len(before) == 200
    chance, kills = random.Random(0), 0
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n{SCRIPT}"
    for _ in range(100):
        sorting = process(script, source, out, "move")
        begun = len(read_log(str(out)))
        while sorting.poll() is None and len(read_log(str(out))) == begun:
            time.sleep(0.005)
        if kills < 6:
            time.sleep(chance.random() * 0.01)
            kills += sorting.poll() is None
            sorting.kill()
        if sorting.wait(60) == 0:
            break
        sorting.communicate()
    assert kills  # a quick machine is done before the sixth
    found = tree(out)
    assert tree(source) == {f"sorted/{name}": content for name, content in found.items()}
    assert sorted(found.values()) == sorted(before.values())
    assert all(
        f"label{int(content[: len(content) // 2000]) % 9}" == name.split("/")[0] for name, content in found.items()
    )
    undo(out)
    assert tree(source) == before
