"""Files and folders copied without loss: the copy is synced and checked, and appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil

PARTIAL = ".docvit-sort.partial"
_BLOCK = 1 << 20


def copy_checked(source: str, target: str) -> None:
    """Copies a file, what a link leads to, or a folder with all that lies in it.

    A copy begun lies beside `target` as `PARTIAL`; one that a kill left there is replaced.

    Raises:
        OSError: `target` exists, the disk is full, `source` is gone or changes meanwhile; `target` is untouched then.
    """
    source, partial = os.path.realpath(source), os.path.join(os.path.dirname(target), PARTIAL)
    remove(partial)
    try:
        _copy(source, partial)
        if not contains(partial, source):
            raise OSError(errno.EIO, "the copy differs from the original, which may have changed meanwhile", source)
        _publish(partial, target)
    except OSError as error:
        if error.filename is None:  # a full disk does not say which file it was
            raise OSError(error.errno, error.strerror, target) from error
        raise
    finally:
        remove(partial)
    sync_folder(os.path.dirname(target))


def contains(whole: str, part: str) -> bool:
    """Whether all that is in the file or folder `part` is, byte for byte, in `whole` too."""
    if os.path.islink(whole) or os.path.islink(part):  # a link to the only original is no copy of it
        return os.path.islink(whole) and os.path.islink(part) and os.readlink(whole) == os.readlink(part)
    if os.path.isdir(part):
        names = os.listdir(part)
        return os.path.isdir(whole) and all(contains(os.path.join(whole, n), os.path.join(part, n)) for n in names)
    return os.path.isfile(whole) and os.path.isfile(part) and _equal(whole, part)


def fingerprint(path: str) -> tuple[int, int, int]:
    """(number of files, bytes, time of the last change in ns) of a file, what a link leads to, or a folder."""
    found = [os.stat(path)]
    for folder, _, names in os.walk(path):
        found += [os.lstat(os.path.join(folder, name)) for name in names]
    return len(found), sum(stat.st_size for stat in found), max(stat.st_mtime_ns for stat in found)


def remove(path: str) -> None:
    """Removes a file, a link or a folder with all that lies in it, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def sync_folder(folder: str) -> None:
    """Names in it survive a power cut, where the system can say so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _copy(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.mkdir(target)
        for name in os.listdir(source):
            inner, copy = os.path.join(source, name), os.path.join(target, name)
            if os.path.islink(inner):
                os.symlink(os.readlink(inner), copy)
            else:
                _copy(inner, copy)
        sync_folder(target)
    elif os.path.isfile(source) or not os.path.exists(source):
        with open(source, "rb") as read, open(target, "xb") as written:
            shutil.copyfileobj(read, written, _BLOCK)
            written.flush()
            os.fsync(written.fileno())
    else:
        raise OSError(errno.EINVAL, "it is neither a file nor a folder", source)
    shutil.copystat(source, target)


def _publish(partial: str, target: str) -> None:
    """Gives the copy its name, unless that is taken."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    if not os.path.isdir(partial):
        try:
            os.link(partial, target)
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            pass
    os.rename(partial, target)


def _equal(a: str, b: str) -> bool:
    with open(a, "rb") as first, open(b, "rb") as second:
        while block := first.read(_BLOCK):
            if block != second.read(len(block)):
                return False
        return not second.read(1)
