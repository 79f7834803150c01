"""A kill at any moment of a sort loses no document."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from conftest import process
from sorting import forks, tree, undo

from docvit.inference.sort_log import read_log

KILLS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from sort_kills import kill_at_every_step
print(kill_at_every_step(Path(sys.argv[2]), move=sys.argv[3] == "move"))
"""


@forks
@pytest.mark.parametrize("way", ["copy", "move"])
def test_a_kill_at_any_step_leaves_every_file_in_one_place_after_the_command_is_run_again(tmp_path, way):
    """In a process of its own: a process without torch forks in a tenth of the time."""
    out, err = process(KILLS, Path(__file__).parents[1], tmp_path, way).communicate(timeout=300)
    assert err == ""
    assert int(out) > 50


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
        if kills < 3:
            time.sleep(chance.random() * 0.01)
            kills += sorting.poll() is None
            sorting.kill()
        if sorting.wait(60) == 0:
            break
        sorting.communicate()
    assert kills  # a quick machine is done before the third
    found = tree(out)
    assert tree(source) == {f"sorted/{name}": content for name, content in found.items()}
    assert sorted(found.values()) == sorted(before.values())
    assert all(
        f"label{int(content[: len(content) // 2000]) % 9}" == name.split("/")[0] for name, content in found.items()
    )
    undo(out)
    assert tree(source) == before
