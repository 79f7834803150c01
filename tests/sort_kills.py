"""A sort and its undoing, killed before each call of the system, one after the other, and run again."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

from sorting import SORTED, make_inbox, run, tree, undo

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

    sys.setprofile(count)
    try:
        function(*arguments, **options)
    finally:
        sys.setprofile(None)
        os._exit(0)


def kill_at_every_step(folder: Path, *, move: bool) -> int:
    """Sorts an inbox below the folder and undoes it, killed at every step; returns how many there were."""
    os.fsync = lambda _: None  # nobody takes the power away here
    inbox = make_inbox(folder)
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
        out = folder / f"out{step}"
        killed = killed_at(step, run, paths, out, move=move)
        run(paths, out, move=move)
        assert tree(out) == expected, (step, sorted(tree(out)))
        rest = {name: content for name, content in before.items() if not move or name not in SORTED.values()}
        rest |= {name: before[name] for name in ("b-report.pdf", "dim-d-form.pdf")}
        assert tree(inbox) == rest, (step, sorted(tree(inbox)))
        killed_at(step, undo, out)
        assert all(row.problem is None for row in undo(out)), step
        assert (tree(inbox), tree(out)) == (before, {}), (step, sorted(tree(inbox)), sorted(tree(out)))
    return step
