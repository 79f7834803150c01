"""CIFAR-10 files made up here, read back in every layout and refused when damaged."""

import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from kd.cifar10 import files as cifar10_files
from kd.cifar10.files import CIFAR10, CIFAR10Error, download, load

RECORDS = 20


def made_up(seed=0, records=RECORDS):
    """Per batch file: pixels (N, 3072) and labels (N,)."""
    generator = np.random.default_rng(seed)
    return {
        name: (generator.integers(0, 256, (records, 3072), np.uint8), np.arange(records, dtype=np.uint8) % 10)
        for name in cifar10_files.BATCHES
    }


def write_binary(folder, batches):
    folder.mkdir(parents=True, exist_ok=True)
    for name, (pixels, labels) in batches.items():
        (folder / f"{name}.bin").write_bytes(
            b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, pixels, strict=True))
        )
    (folder / "batches.meta.txt").write_text("\n".join(cifar10_files.CLASS_NAMES) + "\n")
    return folder


def write_pickles(folder, batches, protocol=2):
    folder.mkdir(parents=True, exist_ok=True)
    for name, (pixels, labels) in batches.items():
        content = {b"batch_label": name.encode(), b"labels": labels.tolist(), b"data": pixels}
        (folder / name).write_bytes(pickle.dumps(content, protocol))
    return folder


def write_images(folder, pixels, labels, names=cifar10_files.CLASS_NAMES):
    for number, (row, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / names[label] / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)).save(path)


@pytest.fixture
def batches():
    return made_up()


def same(data, batches):
    train = [batches[name] for name in cifar10_files.BATCHES[:5]]
    np.testing.assert_array_equal(
        data.train_images.numpy(), np.concatenate([p for p, _ in train]).reshape(-1, 3, 32, 32)
    )
    np.testing.assert_array_equal(data.train_labels.numpy(), np.concatenate([y for _, y in train]))
    np.testing.assert_array_equal(data.test_images.numpy(), batches["test_batch"][0].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(data.test_labels.numpy(), batches["test_batch"][1])
    assert data.train_images.dtype == torch.uint8
    assert data.train_labels.dtype == torch.int64
    return True


@pytest.mark.parametrize("below", [".", "cifar-10-batches-bin"])
def test_binary_files_are_read_as_written(tmp_path, batches, below):
    write_binary(tmp_path / below, batches)
    data = load(tmp_path)
    assert same(data, batches)
    assert data.class_names == cifar10_files.CLASS_NAMES


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_python_files_are_read_as_written(tmp_path, batches, protocol):
    write_pickles(tmp_path / "cifar-10-batches-py", batches, protocol)
    assert same(load(tmp_path), batches)


def test_python_files_of_python_2_are_read(tmp_path, batches):
    """The official pickles hold Python 2 strings, and NumPy's old module names."""
    write_pickles(tmp_path, batches)
    pixels, labels = batches["data_batch_1"]

    def string(value):
        return b"T" + len(value).to_bytes(4, "little") + value

    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt" + string(b"b") + b"tR"
    dtype = b"cnumpy\ndtype\n(" + string(b"u1") + b"I0\nI1\ntR(I3\n" + string(b"|") + b"NNNI-1\nI-1\nI0\ntb"
    state = b"(I1\n(I%d\nI3072\nt" % RECORDS + dtype + b"I00\n" + string(pixels.tobytes()) + b"tb"
    listed = b"(" + b"".join(b"I%d\n" % label for label in labels) + b"l"
    content = b"(" + string(b"data") + array + state + string(b"labels") + listed + b"d."
    (tmp_path / "data_batch_1").write_bytes(content)
    assert same(load(tmp_path), batches)


class Surprise:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_asks_for_anything_else_is_refused_before_it_acts(tmp_path, batches, protocol):
    write_pickles(tmp_path, batches)
    sign = tmp_path / "sign"
    content = {b"labels": [0], b"data": Surprise(str(sign))}
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(CIFAR10Error, match=r"data_batch_2 is refused: it asks for posix\.mkdir|nt\.mkdir"):
        load(tmp_path)
    assert not sign.exists()


@pytest.mark.parametrize(
    "call",
    [
        b"cbuiltins\neval\n(V1+1\ntR.",
        b"c__builtin__\ngetattr\n(NVx\ntR.",
        b"cnumpy\nload\n(Vx\ntR.",
        b"c_codecs\ndecode\n.",
    ],
)
def test_builtins_and_the_rest_of_numpy_are_refused(tmp_path, batches, call):
    write_pickles(tmp_path, batches)
    (tmp_path / "test_batch").write_bytes(call)
    with pytest.raises(CIFAR10Error, match="refused"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2, 3],
        {},
        {b"labels": [0, 1], b"data": np.zeros((3, 3072), np.uint8)},
        {b"labels": [0, 1], b"data": np.zeros((2, 3072), np.float32)},
        {b"labels": ["cat", "dog"], b"data": np.zeros((2, 3072), np.uint8)},
        {b"fine_labels": [0, 1], b"data": np.zeros((2, 3072), np.uint8)},
        {b"labels": [], b"data": np.zeros((0, 3072), np.uint8)},
    ],
)
def test_pickles_of_something_else_are_refused(tmp_path, batches, content):
    write_pickles(tmp_path, batches)
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(content))
    with pytest.raises(CIFAR10Error, match="data_batch_3 is no CIFAR-10 batch"):
        load(tmp_path)


@pytest.mark.parametrize("write", [write_binary, write_pickles])
@pytest.mark.parametrize("left", [0, 1, 3073 * 7 + 5])
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_a_truncated_file_is_named(tmp_path, batches, write, name, left):
    write(tmp_path, batches)
    (path,) = tmp_path.glob(f"{name}*")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CIFAR10Error, match=rf"{name}(\.bin)? is truncated"):
        load(tmp_path)


def test_a_file_cut_between_records_is_found_beside_whole_ones(tmp_path, batches, monkeypatch):
    write_binary(tmp_path, batches)
    path = tmp_path / "data_batch_4.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[: 3073 * (RECORDS // 2)])
    with pytest.raises(CIFAR10Error, match=r"data_batch_4\.bin is truncated: 10 records, where 20 belong"):
        load(tmp_path)
    path.write_bytes(whole)
    monkeypatch.setattr(cifar10_files, "OFFICIAL_RECORDS", RECORDS)
    test = tmp_path / "test_batch.bin"
    test.write_bytes(test.read_bytes()[:3073])
    with pytest.raises(CIFAR10Error, match=r"test_batch\.bin is truncated: 1 records"):
        load(tmp_path)


def test_a_smaller_set_is_read_with_a_warning(tmp_path, batches, caplog):
    write_binary(tmp_path, batches)
    load(tmp_path)
    assert "100 + 20 images" in caplog.text


def test_missing_files_are_named(tmp_path, batches):
    write_binary(tmp_path, batches)
    (tmp_path / "data_batch_5.bin").unlink()
    with pytest.raises(CIFAR10Error, match=r"lacks data_batch_5\.bin"):
        load(tmp_path)


@pytest.mark.parametrize(("write", "label"), [(write_binary, 10), (write_binary, 255), (write_pickles, 10)])
def test_a_label_outside_the_ten_is_named(tmp_path, batches, write, label):
    batches["data_batch_2"][1][7] = label
    write(tmp_path, batches)
    with pytest.raises(CIFAR10Error, match=rf"data_batch_2(\.bin)?: record 7 has the label {label}, outside 0\.\.9"):
        load(tmp_path)


def test_a_negative_label_is_refused(tmp_path, batches):
    batches["test_batch"] = (batches["test_batch"][0], np.array([-1] * RECORDS))
    write_pickles(tmp_path, batches)
    with pytest.raises(CIFAR10Error, match="label -1"):
        load(tmp_path)


def test_folders_of_classes_below_train_and_test(tmp_path, batches):
    for split, name in (("train", "data_batch_1"), ("test", "test_batch")):
        write_images(tmp_path / split, *batches[name])
    data = load(tmp_path)
    order = np.argsort(batches["data_batch_1"][1], kind="stable")
    np.testing.assert_array_equal(data.train_images.reshape(RECORDS, -1).numpy(), batches["data_batch_1"][0][order])
    np.testing.assert_array_equal(data.train_labels.numpy(), batches["data_batch_1"][1][order])
    assert data.test_images.shape == (RECORDS, 3, 32, 32)
    assert data.class_names == cifar10_files.CLASS_NAMES


def test_folders_of_classes_alone_hold_every_sixth_image_out(tmp_path):
    pixels = made_up(records=24)["data_batch_1"][0]
    write_images(tmp_path, pixels, np.arange(24) % 2)
    data = load(tmp_path)
    assert data.class_names == ("airplane", "automobile")
    assert data.train_labels.bincount().tolist() == [10, 10]
    assert data.test_labels.bincount().tolist() == [2, 2]
    both = torch.cat([data.train_images, data.test_images]).reshape(24, -1).tolist()
    assert sorted(both) == sorted(pixels.tolist())


def test_wrong_folders_say_what_belongs_there(tmp_path):
    with pytest.raises(CIFAR10Error, match="not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(CIFAR10Error, match=r"not CIFAR-10: it needs data_batch_1\.bin"):
        load(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no picture")
    with pytest.raises(CIFAR10Error, match="found 0"):
        load(tmp_path)


def test_images_of_another_size_and_broken_images_are_named(tmp_path):
    write_images(tmp_path, made_up()["test_batch"][0], np.arange(RECORDS) % 2)
    odd = tmp_path / "airplane" / "00000.png"
    Image.new("RGB", (64, 48)).save(odd)
    with pytest.raises(CIFAR10Error, match=r"00000\.png is 64 x 48"):
        load(tmp_path)
    odd.write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    with pytest.raises(CIFAR10Error, match=r"00000\.png is no readable image"):
        load(tmp_path)


def test_more_than_ten_classes_are_not_cifar10(tmp_path):
    names = [f"class {letter}" for letter in "abcdefghijk"]
    write_images(tmp_path, made_up(records=66)["test_batch"][0], np.arange(66) % 11, names)
    with pytest.raises(CIFAR10Error, match="found 11"):
        load(tmp_path)


def archive_of(folder, *, extra=()):
    """A gzipped tar of the folder's files under the official name, and its SHA-256."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path in folder.iterdir():
            tar.add(path, f"cifar-10-batches-bin/{path.name}")
        for member in extra:
            tar.addfile(member)
    return buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest()


def test_download_unpacks_what_it_knows_and_fetches_once(tmp_path, batches):
    escape, link = tarfile.TarInfo("../escape.bin"), tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    content, digest = archive_of(write_binary(tmp_path / "source", batches), extra=[escape, link])
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(content)
    target = download(tmp_path / "data", url=archive.as_uri(), sha256=digest)
    assert target == tmp_path / "data" / "cifar-10-batches-bin"
    assert same(load(tmp_path / "data"), batches)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {target.name}
    assert not (tmp_path / "escape.bin").exists()
    archive.unlink()
    assert download(tmp_path / "data", url=archive.as_uri(), sha256=digest) == target


def test_download_of_another_file_leaves_nothing_behind(tmp_path, batches):
    content, _ = archive_of(write_binary(tmp_path / "source", batches))
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(content)
    with pytest.raises(CIFAR10Error, match="SHA-256"):
        download(tmp_path / "data", url=archive.as_uri())
    with pytest.raises(CIFAR10Error, match="cannot fetch"):
        download(tmp_path / "data", url=(tmp_path / "nothing").as_uri())
    assert list((tmp_path / "data").iterdir()) == []


def test_download_overwrites_nothing(tmp_path, batches):
    folder = write_binary(tmp_path / "cifar-10-batches-bin", batches)
    (folder / "test_batch.bin").unlink()
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(CIFAR10Error, match="incomplete"):
        download(tmp_path, url="file:///nothing")
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_limited_set_is_balanced_and_keeps_order():
    images = torch.randint(256, (60, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(60) // 6  # sorted by class, as folders give them
    data = CIFAR10(images, labels, images, labels, cifar10_files.CLASS_NAMES)
    small = data.limit(train=25)
    assert small.train_labels.bincount().tolist() == [3] * 5 + [2] * 5
    assert torch.equal(small.train_labels, small.train_labels.sort().values)
    assert torch.equal(small.train_images[:3], images[:3])
    assert len(small.test_labels) == 60
    assert torch.equal(data.limit(train=60).train_images, images)
    with pytest.raises(ValueError, match="61"):
        data.limit(test=61)
