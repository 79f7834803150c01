"""Files that are there whole or not at all."""

import errno
import os
import stat

import pytest
import torch
from safetensors.torch import load_file

from docvit.files import replaced, write_tensors


def test_tensors_come_back_in_a_file_that_others_may_read(tmp_path):
    before = os.umask(0o022)
    try:
        write_tensors(tmp_path / "a.safetensors", {"x": torch.arange(6.0).view(2, 3).T}, {"format": "pt"})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o644
    assert torch.equal(load_file(tmp_path / "a.safetensors")["x"], torch.arange(6.0).view(2, 3).T)


@pytest.mark.parametrize("name", ["a" * 251 + ".txt", "é" * 125 + ".txt"])
def test_a_name_as_long_as_may_be(tmp_path, name):
    with replaced(tmp_path / name) as partial:
        partial.write_text("whole")
    assert (tmp_path / name).read_text() == "whole"


def test_after_an_error_the_file_is_as_it_was(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")

    def write():
        with replaced(file) as partial:
            partial.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
