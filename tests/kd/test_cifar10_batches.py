"""CIFAR-10 batches: made on the device, the same whatever came before, equal to the same steps one by one."""

import numpy as np
import pytest
import torch

from kd.cifar10 import batches as cifar10
from kd.cifar10.batches import Augment, ImageLoader


def random_images(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return images, torch.arange(count) % 10


def normalised(images):
    mean = np.array(cifar10.MEAN).reshape(3, 1, 1)
    return (images.numpy().astype(np.float64) - mean) / np.array(cifar10.STD).reshape(3, 1, 1)


def test_batches_without_augmentation_are_the_normalised_images_in_order():
    images, labels = random_images()
    batches = ImageLoader(images, labels, batch_size=16)
    assert [len(batch.labels) for batch in batches] == [16, 16, 8]
    assert len(batches) == 3
    np.testing.assert_allclose(torch.cat([batch.images for batch in batches]), normalised(images), atol=1e-5)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), labels)
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches)


def test_an_epoch_shuffles_every_sample_once_and_labels_follow():
    images, labels = random_images()
    batches = ImageLoader(images, labels, batch_size=8, shuffle=True, seed=3)
    orders = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        epoch_batches = list(batches)
        orders.append(torch.cat([batch.index for batch in epoch_batches]))
        for batch in epoch_batches:
            np.testing.assert_allclose(batch.images, normalised(images[batch.index]), atol=1e-5)
            assert torch.equal(batch.labels, labels[batch.index])
    assert all(sorted(order.tolist()) == list(range(40)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 3


def test_drop_last_gives_one_shape():
    batches = ImageLoader(*random_images(), batch_size=16, drop_last=True)
    assert [tuple(batch.images.shape) for batch in batches] == [(16, 3, 32, 32)] * 2


def reference_view(image, down, right, mirrored, row, column, cutout):
    """One image (3, 32, 32) float64: mirrored, padded by reflection, cropped, and cut out, one after another."""
    image = image[:, :, ::-1] if mirrored else image
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="reflect")
    view = padded[:, down : down + 32, right : right + 32].copy()
    top, left = row - cutout // 2, column - cutout // 2
    view[:, max(0, top) : max(0, top + cutout), max(0, left) : max(0, left + cutout)] = 0
    return view


@pytest.mark.parametrize("cutout", [0, 7, 8])
def test_augmented_views_equal_the_same_steps_one_image_at_a_time(cutout):
    images, labels = random_images()
    batches = ImageLoader(images, labels, batch_size=40, augment=Augment(cutout=cutout), shuffle=True)
    batch = batches[0]
    plain = normalised(images)
    for index, view in zip(batch.index, batch.images, strict=True):
        expected = reference_view(plain[index], *batches._views[index].tolist(), cutout)
        np.testing.assert_allclose(view, expected, atol=1e-5)


def test_views_cover_all_shifts_and_mirror_half():
    batches = ImageLoader(*random_images(4000), batch_size=10, augment=Augment(crop=2))
    down, right, mirrored, row, column = batches._views.T
    assert set(down.tolist()) == set(right.tolist()) == set(range(5))
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.05)
    assert set(row.tolist()) == set(column.tolist()) == set(range(32))


def test_an_augmentation_of_nothing_changes_nothing():
    images, labels = random_images()
    plain = ImageLoader(images, labels, batch_size=40)[0]
    same_view = ImageLoader(images, labels, batch_size=40, augment=Augment(crop=0, flip=False))[0]
    assert torch.equal(plain.images, same_view.images)


def test_a_batch_depends_on_seed_epoch_and_step_alone():
    def batches(**settings):
        settings = {"batch_size": 8, "seed": 1, "shuffle": True, "augment": Augment(cutout=8)} | settings
        return ImageLoader(*random_images(), **settings)

    first, second = batches(), batches()
    for epoch in range(3):
        first.set_epoch(epoch)
        list(first)
    second.set_epoch(2)
    torch.manual_seed(99)
    for name in ("images", "labels", "index"):
        assert torch.equal(getattr(first[3], name), getattr(second[3], name))
    other_seed = batches(seed=2)
    other_seed.set_epoch(2)
    assert not torch.equal(first[3].index, other_seed[3].index)
    other_size = batches(batch_size=16, shuffle=False)
    other_size.set_epoch(2)
    views = torch.cat([batch.images for batch in other_size])
    assert torch.equal(first[3].images, views[first[3].index])  # a sample's view is the same in any batch


def test_batches_go_to_a_device():
    batch = ImageLoader(*random_images(), batch_size=8, augment=Augment())[0]
    moved = batch.to("meta")
    assert {moved.images.device.type, moved.labels.device.type, moved.index.device.type} == {"meta"}


def test_batches_share_the_memory_of_channels_last_images():
    images, labels = random_images()
    images = images.to(memory_format=torch.channels_last)
    assert ImageLoader(images, labels, batch_size=8).images.data_ptr() == images.data_ptr()


@pytest.mark.parametrize(
    "change",
    [
        {"images": torch.zeros(40, 3, 32, 32)},
        {"images": torch.zeros(40, 3, 28, 28, dtype=torch.uint8)},
        {"labels": torch.zeros(39, dtype=torch.int64)},
        {"batch_size": 0},
        {"batch_size": 41, "drop_last": True},
    ],
)
def test_wrong_arguments_of_batches_are_refused(change):
    images, labels = random_images()
    with pytest.raises(ValueError, match="images"):
        ImageLoader(**({"images": images, "labels": labels, "batch_size": 8} | change))


def test_steps_beyond_the_epoch_are_refused():
    batches = ImageLoader(*random_images(), batch_size=8)
    for step in (-1, 5):
        with pytest.raises(IndexError):
            batches[step]


@pytest.mark.parametrize("settings", [{"crop": 32}, {"crop": -1}, {"cutout": 33}])
def test_impossible_augmentations_are_refused(settings):
    with pytest.raises(ValueError, match="crop"):
        Augment(**settings)


def test_a_pass_that_skips_is_the_rest_of_the_same_epoch():
    batches = ImageLoader(*random_images(), batch_size=8, augment=Augment(), shuffle=True)
    batches.set_epoch(3)
    whole = list(batches)
    batches.set_epoch(3, skip=2)
    rest = list(batches)
    assert len(batches) == 5
    assert len(rest) == 3
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[2:], rest, strict=True))
    assert len(list(batches)) == 5  # skipping is for one pass


def test_mean_and_deviation_are_those_of_cifar10():
    """As published for the training images, in 0..1."""
    np.testing.assert_allclose(np.array(cifar10.MEAN) / 255, (0.4914, 0.4822, 0.4465), atol=5e-5)
    np.testing.assert_allclose(np.array(cifar10.STD) / 255, (0.2470, 0.2435, 0.2616), atol=5e-5)


def test_order_and_augmentation_are_drawn_from_two_streams():
    """From one and the same, a sample's index in the epoch would say how it is shifted."""
    batches = ImageLoader(*random_images(), batch_size=8, shuffle=True, augment=Augment(), seed=3)
    of_order = batches._generator(0)
    assert torch.equal(batches._order, torch.randperm(40, generator=of_order))
    for already_drawn in (batches._generator(0), of_order):
        assert not torch.equal(batches._views, cifar10._draw_views(Augment(), 40, already_drawn))
