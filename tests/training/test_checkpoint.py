"""Checkpoints give back what they were given."""

from __future__ import annotations

import pytest
import torch

from docvit.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path):
    tensors = [torch.tensor(2.5), torch.arange(6).reshape(2, 3).T, torch.ones(2, dtype=torch.bfloat16), torch.zeros(0)]
    shared = torch.ones(3)
    state = {"list": tensors, 3: {"a": None, "b": [1.1, "x", True]}, "twice": [shared, shared]}
    save_checkpoint(tmp_path / "c", state)
    found = load_checkpoint(tmp_path / "c")
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found["list"], tensors, strict=True))
    assert found[3] == state[3]
    assert torch.equal(found["twice"][1], shared)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "gone")
