"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """A path to write to, which then replaces `file` in one step; after an error `file` is as it was."""
    partial = file.with_name(f"{file.name[-60:]}.{os.getpid()}.tmp")  # at most 255 bytes, however long the name
    try:
        yield partial
        os.replace(partial, file)
    except OSError as error:  # a full disk does not say which file it was
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file of tensors on any device, with the permissions that any other new file gets.

    Raises:
        OSError: the disk is full, or closed to us. (`safetensors.save_file` has an error of its own for that, and
            writes files that nobody else may read.)
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replaced(file) as partial:
        partial.write_bytes(save(on_cpu, None if metadata is None else dict(metadata)))
