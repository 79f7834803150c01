"""CIFAR-10's files: every layout it comes in, read into uint8 tensors, and the official archive, fetched."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import shutil
import tarfile
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from docvit.errors import SettingError

logger = logging.getLogger(__name__)

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"

SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"

BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")

PIXELS = 3 * 32 * 32

OFFICIAL_RECORDS = 10_000  # in each batch file

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}


class CIFAR10Error(SettingError):
    """The data are missing, damaged, or not CIFAR-10."""


@dataclass(frozen=True)
class CIFAR10:
    """Images (N, 3, 32, 32) uint8, labels (N,) int64 counting from 0, and the names of the classes."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]

    def limit(self, *, train: int | None = None, test: int | None = None) -> CIFAR10:
        """The first `train` and `test` images, as evenly over the classes as they go; None keeps all."""
        kept = _spread(self.train_labels, train)
        kept_test = _spread(self.test_labels, test)
        return CIFAR10(
            self.train_images[kept],
            self.train_labels[kept],
            self.test_images[kept_test],
            self.test_labels[kept_test],
            self.class_names,
        )


def load(folder: str | os.PathLike[str]) -> CIFAR10:
    """Read CIFAR-10 from a folder in one of three layouts.

    - the official binary files (`data_batch_1.bin` ..), in the folder or in `cifar-10-batches-bin/` below it;
    - the official python files (`data_batch_1` ..), there or in `cifar-10-batches-py/`; their pickles may hold arrays
      and plain values, anything else is refused unread;
    - a folder per class of 32 x 32 images, below `train/` and `test/`, or directly below: then every sixth image of a
      class, by name, is held out for testing (CIFAR-10's own share).

    Raises `CIFAR10Error` for another folder, missing or truncated files, and labels outside 0..9. A smaller set whose
    training files hold the same number of records is read, with a warning.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CIFAR10Error(f"{folder} is not a folder")
    try:
        for directory in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"):
            for suffix in (".bin", ""):
                if any((directory / f"{name}{suffix}").is_file() for name in BATCHES):
                    return _load_batches(directory, suffix)
        return _load_class_folders(folder)
    except OSError as error:
        raise CIFAR10Error(f"cannot read {error.filename or folder}: {error.strerror or error}") from error


def download(folder: str | os.PathLike[str], *, url: str = URL, sha256: str = SHA256) -> Path:
    """Fetch the official binary archive and unpack it as `folder/cifar-10-batches-bin`, which is returned.

    Nothing is fetched where those files are. Of the archive only the files by the known names are written, after the
    checksum was found right. Raises `CIFAR10Error` if it cannot be fetched, is another file, or the folder exists and
    is incomplete.
    """
    target = Path(folder) / "cifar-10-batches-bin"
    wanted = [*(f"{name}.bin" for name in BATCHES), "batches.meta.txt"]
    if all((target / name).is_file() for name in wanted):
        return target
    if target.exists():
        raise CIFAR10Error(f"{target} exists and is incomplete; move it away to download anew")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as scratch:
        archive, unpacked = Path(scratch) / "archive", Path(scratch) / "unpacked"
        _fetch(url, archive, sha256)
        _extract(archive, unpacked, wanted)
        unpacked.rename(target)
    return target


def _spread(labels: Tensor, count: int | None) -> Tensor:
    """Indices of `count` samples, first the first of each class, then the second of each, in the data's order."""
    if count is None:
        return torch.arange(len(labels))
    if not 1 <= count <= len(labels):
        raise SettingError(f"cannot take {count} of {len(labels)} images")
    members = torch.nn.functional.one_hot(labels)  # [N, C]
    rank = members.cumsum(0).gather(1, labels[:, None])[:, 0]  # [N], the number within its class
    return rank.argsort(stable=True)[:count].sort().values


def _load_batches(directory: Path, suffix: str) -> CIFAR10:
    paths = [directory / f"{name}{suffix}" for name in BATCHES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise CIFAR10Error(f"{directory} lacks {', '.join(missing)}")
    parts = [_read_binary(path) if suffix else _read_pickle(path) for path in paths]
    _check_counts(paths, [len(labels) for _, labels in parts])
    for path, (_, labels) in zip(paths, parts, strict=True):
        wrong = np.flatnonzero((labels < 0) | (labels > 9))
        if wrong.size:
            raise CIFAR10Error(f"{path}: record {wrong[0]} has the label {labels[wrong[0]]}, outside 0..9")
    images = [torch.from_numpy(pixels).reshape(-1, 3, 32, 32) for pixels, _ in parts]
    classes = [torch.from_numpy(labels.astype(np.int64)) for _, labels in parts]
    return CIFAR10(torch.cat(images[:-1]), torch.cat(classes[:-1]), images[-1], classes[-1], CLASS_NAMES)


def _check_counts(paths: list[Path], counts: list[int]) -> None:
    # cut at a record's end a file looks whole, so the files are compared with each other
    *train, test = counts
    expected = max(train)
    whole = [expected] * 5 + [OFFICIAL_RECORDS if expected == OFFICIAL_RECORDS else test]
    for path, count, due in zip(paths, counts, whole, strict=True):
        if count != due:
            raise CIFAR10Error(f"{path} is truncated: {count:,} records, where {due:,} belong")
    if counts != [OFFICIAL_RECORDS] * 6:
        logger.warning("%s holds %d + %d images, the official set 50000 + 10000", paths[0].parent, sum(train), test)


def _read_binary(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    size = path.stat().st_size
    if size == 0 or size % (1 + PIXELS):
        raise CIFAR10Error(f"{path} is truncated: {size:,} bytes are no whole number of {1 + PIXELS}-byte records")
    records = np.fromfile(path, np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0]


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into old pickles, and nothing else that the codecs can do."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding!r}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays and plain values; every other name is refused before it is imported."""

    _builders = np.empty(0).__reduce_ex__(2)[0], np.empty(0).__reduce_ex__(5)[0]
    _allowed: ClassVar[dict[tuple[str, str], object]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
        ("numpy.core.multiarray", "_reconstruct"): _builders[0],
        ("numpy._core.multiarray", "_reconstruct"): _builders[0],
        ("numpy.core.numeric", "_frombuffer"): _builders[1],
        ("numpy._core.numeric", "_frombuffer"): _builders[1],
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self._allowed:
            raise CIFAR10Error(f"it asks for {module}.{name}, which no CIFAR-10 file needs")
        return self._allowed[module, name]


def _read_pickle(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
    except CIFAR10Error as error:
        raise CIFAR10Error(f"{path} is refused: {error}") from None
    except OSError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything
        raise CIFAR10Error(f"{path} is truncated or no CIFAR-10 batch: {error}") from error
    if not isinstance(content, dict):
        raise CIFAR10Error(f"{path} is no CIFAR-10 batch: it holds a {type(content).__name__}")
    pixels, listed = (content.get(key.encode(), content.get(key)) for key in ("data", "labels"))
    labels = np.asarray(listed if isinstance(listed, (list, np.ndarray)) else [])
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS):
        raise CIFAR10Error(f"{path} is no CIFAR-10 batch: it needs uint8 data (N, {PIXELS}) and as many labels")
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or not labels.size:
        raise CIFAR10Error(f"{path} is no CIFAR-10 batch: its labels are no integers")
    return np.ascontiguousarray(pixels), labels


def _load_class_folders(folder: Path) -> CIFAR10:
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train, test = _image_paths(folder / "train"), _image_paths(folder / "test")
        strangers = sorted(set(test) - set(train))
        if strangers:
            raise CIFAR10Error(f"{folder / 'test'} has classes that {folder / 'train'} lacks: {', '.join(strangers)}")
    else:
        paths = _image_paths(folder)
        train = {name: [path for n, path in enumerate(paths[name]) if n % 6 != 5] for name in paths}
        test = {name: paths[name][5::6] for name in paths}
    if not (2 <= len(train) <= len(CLASS_NAMES) and any(test.values())):
        raise CIFAR10Error(
            f"{folder} is not CIFAR-10: it needs data_batch_1.bin .. test_batch.bin, or data_batch_1 .. test_batch, "
            f"or 2 to 10 folders of images named by class (found {len(train)}), each with 6 images or more"
        )
    names = tuple(sorted(train))
    return CIFAR10(*_read_images(names, train), *_read_images(names, test), names)


def _image_paths(folder: Path) -> dict[str, list[Path]]:
    """The images of each class below a folder, both by name; folders without images are no class."""
    found = {
        below.name: sorted(path for path in below.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        for below in sorted(folder.iterdir())
        if below.is_dir()
    }
    return {name: paths for name, paths in found.items() if paths}


def _read_images(names: tuple[str, ...], paths: dict[str, list[Path]]) -> tuple[Tensor, Tensor]:
    listed = [(path, label) for label, name in enumerate(names) for path in paths.get(name, [])]
    pixels = [_read_image(path) for path, _ in tqdm(listed, desc="images", disable=None, leave=False)]
    images = rearrange(torch.from_numpy(np.stack(pixels)), "n h w c -> n c h w").contiguous()
    return images, torch.tensor([label for _, label in listed])


def _read_image(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            size = image.size
            pixels = np.asarray(image.convert("RGB")) if size == (32, 32) else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CIFAR10Error(f"{path} is no readable image: {error}") from error
    if pixels is None:
        raise CIFAR10Error(f"{path} is {size[0]} x {size[1]}; CIFAR-10 images are 32 x 32")
    return pixels


def _fetch(url: str, path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, path.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or 0) or None
            with tqdm(total=total, unit="B", unit_scale=True, desc="CIFAR-10", disable=None) as bar:
                while piece := answer.read(1 << 20):
                    digest.update(piece)
                    file.write(piece)
                    bar.update(len(piece))
    except OSError as error:
        raise CIFAR10Error(f"cannot fetch {url}: {error}") from error
    if digest.hexdigest() != sha256:
        raise CIFAR10Error(f"{url} is not the known archive: its SHA-256 is {digest.hexdigest()}, not {sha256}")


def _extract(archive: Path, folder: Path, wanted: list[str]) -> None:
    folder.mkdir()
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parent, _, name = member.name.rpartition("/")
            source = tar.extractfile(member) if member.isfile() else None
            if source is not None and parent == "cifar-10-batches-bin" and name in wanted:
                with (folder / name).open("wb") as file:
                    shutil.copyfileobj(source, file)
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise CIFAR10Error(f"the archive lacks {', '.join(missing)}")
