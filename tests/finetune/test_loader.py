"""Batches as functions of (seed, epoch, number)."""

import pytest
import torch

from netgraft.data.opening import open_data
from netgraft.data.pictures import few
from netgraft.finetune.engine.loader import Augmentation, Loader, Views
from netgraft.models.normalisation import Normalisation

SIZE = (1, 8, 8)


def views(split="train", count=5, **more):
    pictures = few(open_data("netgraft:digits", split=split), count, 0)
    return Views(pictures, SIZE, Normalisation(), **more)


def ids(loader, epoch, first=0):
    return [batch.ids.tolist() for batch in loader.epoch(epoch, first)]


def test_an_epoch_is_a_permutation():
    loader = Loader(views(), 10)
    seen = ids(loader, 0)
    assert len(loader) == 5
    assert sorted(i for batch in seen for i in batch) == list(range(50))
    assert seen != ids(loader, 1)
    assert seen == ids(Loader(views(), 10), 0)
    assert seen != ids(Loader(views(), 10, seed=1), 0)


def test_later_batches_without_the_earlier():
    loader = Loader(views(), 10)
    assert ids(loader, 3, 2) == ids(loader, 3)[2:]
    assert ids(loader, 3, 5) == []


def test_processes_share_the_batches_of_one():
    one = ids(Loader(views(), 12), 0)
    two = [ids(Loader(views(), 6, rank, 2), 0) for rank in range(2)]
    assert one == [a + b for a, b in zip(*two, strict=True)]
    assert len(one) == 4  # 48 of 50 images: the rest is dropped


@pytest.mark.parametrize(("world", "shares"), [(1, [50]), (3, [16, 17, 17])])
def test_fewer_images_than_a_batch(world, shares):
    loaders = [Loader(views(), 64, rank, world) for rank in range(world)]
    batches = [next(loader.epoch(0)) for loader in loaders]
    assert [len(batch.x) for batch in batches] == shares
    assert [loader.weight() for loader in loaders] == pytest.approx([share * world / 50 for share in shares])


def test_labels_belong_to_the_images():
    loader = Loader(views(), 10)
    batch = next(loader.epoch(0))
    pictures = loader.target.pictures
    assert batch.y.tolist() == [pictures.labels[i] for i in batch.ids]
    assert torch.equal(batch.x, loader.target.pixels.batch(batch.ids.tolist()))


def test_beside():
    """Other images come in as many, cycle without end, and unlabelled ones show no label."""
    loader = Loader(views(), 10, others={"source": views(count=3), "unlabelled": views("test", 2)})
    batches = [batch for epoch in range(2) for batch in loader.epoch(epoch)]
    assert all(len(b.source.x) == len(b.unlabelled.x) == len(b.x) for b in batches)
    seen = torch.cat([b.source.ids for b in batches])[:90]
    assert seen.bincount(minlength=30).tolist() == [3] * 30
    assert all((b.unlabelled.y == -1).all() for b in batches)
    assert all((b.source.y >= 0).all() for b in batches)


def test_augmentation_depends_on_image_and_view_alone():
    augmented = views(augmentation=Augmentation(), seed=3)
    one, same, other_view = (augmented.images([4, 7], view) for view in (0, 0, 1))
    state = torch.get_rng_state()
    alone = augmented.images([7], 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert torch.equal(one[1], alone[0])
    assert not torch.equal(one, other_view)
    assert not torch.equal(one, views(augmentation=Augmentation(), seed=4).images([4, 7], 0))
    assert one.shape == (2, *SIZE)


def test_views_come_again():
    assert [views(augmentation=Augmentation(), views=3).view(epoch) for epoch in range(5)] == [0, 1, 2, 0, 1]
    assert [views(augmentation=Augmentation()).view(epoch) for epoch in range(3)] == [0, 1, 2]
    assert [views().view(epoch) for epoch in range(3)] == [0, 0, 0]
