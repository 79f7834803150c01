"""Files, and lines of files, that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from docvit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


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
    from safetensors.torch import save  # torch takes seconds to import: not for a log

    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replaced(file) as partial:
        partial.write_bytes(save(on_cpu, None if metadata is None else dict(metadata)))


def lock(file: FileIO, busy: str) -> None:
    """Keeps other processes from `file` as long as it is open.

    Raises:
        UserError: another process has it; `busy` is the message.
    """
    if fcntl is None:
        return
    try:
        # Not flock: forked workers would keep it when this process is killed. No one else in this process may
        # open and close the file: that ends the lock.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(busy) from None
    except OSError:  # a file system without locks
        pass


def append(file: FileIO, line: bytes, *, sync: bool = False) -> None:
    """Writes `line` at the end of a file opened for appending; with `sync` it is on the disk then.

    Raises:
        OSError: the disk is full; the file is as before then.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        written = file.write(line)
        if sync:
            os.fsync(file.fileno())
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except BaseException as error:
        os.ftruncate(file.fileno(), size)
        if isinstance(error, OSError):  # a full disk does not say which file it was
            raise OSError(error.errno, error.strerror, str(file.name)) from error
        raise
