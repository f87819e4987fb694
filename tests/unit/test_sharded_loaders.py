"""Shares of the images in several processes: concatenated, they are the batches of one process, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.image_set import ImageSet, Paths, Split
from datasets.pipeline import Pipeline
from lib.config import Options
from lib.distributed.world import Share
from lib.errors import UserError

CPU = torch.device("cpu")
PROCESSES = (1, 2, 3, 5)


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("count", [0, 1, 2, 4, 7, 30, 31])
def test_shares_are_contiguous_even_and_the_whole(processes, count):
    rows = torch.arange(count)
    parts = [Share(rank, processes).part(rows) for rank in range(processes)]
    assert torch.equal(torch.cat(parts), rows)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("rank", "processes"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_must_be_one_of_the_processes(rank, processes):
    with pytest.raises(ValueError, match="rank"):
        Share(rank, processes)


def split_of(train, test, shape=(13, 11, 3)):
    random = np.random.RandomState(3)

    def images(count):
        return ImageSet(random.randint(0, 256, (count, *shape)).astype(np.uint8), np.arange(count) % 2, ("a", "b"))

    return Split("some", images(train), images(test))


def options_of(place, **changed):
    options = replace(Options(), size=8, batch_size=9, augment_on=place, workers_num=0, random_horizontal_flip=True)
    return replace(options, **changed)


def pipelines(split, options, processes):
    return [Pipeline(split, options, CPU, rank, processes) for rank in range(processes)]


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("place", ["device", "workers"])
@pytest.mark.parametrize("count", [20, 29])  # 9 + 9 + 2, so that the last is smaller than 3 processes; 9 + 9 + 9 + 2
def test_training_batches_are_those_of_one_process(place, count, processes):
    split, options = split_of(count, 4), options_of(place)
    one = Pipeline(split, options, CPU)
    assert one.on_device == (place == "device")
    order = one.epoch_order(1, 2)
    served = [pipeline.train_batches(order, 1, 2) for pipeline in pipelines(split, options, processes)]
    steps = 0
    for expected, *parts in zip(one.train_batches(order, 1, 2), *served):
        assert torch.equal(torch.cat([rows for _, rows in parts]), expected[1])
        assert torch.equal(torch.cat([images for images, _ in parts]), expected[0])
        assert all(images.shape == (len(rows), 3, 8, 8) for images, rows in parts)
        assert all(images.dtype == torch.float32 and rows.dtype == torch.int64 for images, rows in parts)
        steps += 1
    assert steps == len(order)
    assert [next(part, None) for part in served] == [None] * processes


@pytest.mark.parametrize("place", ["device", "workers"])
def test_every_order_of_colours_and_size_is_the_same_in_shares(place):
    """Batches of which a share is one image, which vectorised code may compute otherwise."""
    split = split_of(33, 2, shape=(32, 32, 3))
    options = options_of(place, size=32, batch_size=33)
    order = Pipeline(split, options, CPU).epoch_order(0, 0)
    ((expected, _),) = Pipeline(split, options, CPU).train_batches(order, 0, 0)
    parts = [next(pipeline.train_batches(order, 0, 0))[0] for pipeline in pipelines(split, options, 33)]
    assert torch.equal(torch.cat(parts), expected)


@pytest.mark.parametrize("shape", [(13, 11, 3), (8, 8, 3), (32, 32, 3)])
def test_training_batches_of_several_blocks(shape):
    """Images that lie at odd places in memory, in batches larger than the loader's blocks of 16."""
    split, options = split_of(50, 2, shape), options_of("device", batch_size=50)
    order = Pipeline(split, options, CPU).epoch_order(0, 0)
    ((expected, _),) = Pipeline(split, options, CPU).train_batches(order, 0, 0)
    for processes in (2, 3, 7):
        parts = [next(one.train_batches(order, 0, 0))[0] for one in pipelines(split, options, processes)]
        assert torch.equal(torch.cat(parts), expected)


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("place", ["device", "workers"])
@pytest.mark.parametrize(("side", "resize"), [(8, None), (13, None), (13, 10)])
def test_images_without_augmentation_are_sharded_as_one_sequence(place, processes, side, resize):
    split, options = split_of(20, 4, (side, side, 3)), options_of(place, resize=resize)
    for serve, count in ((Pipeline.train_batches_plain, 20), (Pipeline.test_batches, 4)):
        ((expected, _),) = serve(Pipeline(split, options, CPU))
        found, rows = [], []
        for rank, pipeline in enumerate(pipelines(split, options, processes)):
            batches = list(serve(pipeline))
            share = Share(rank, processes).part(torch.arange(count))
            assert len(batches) == (len(share) > 0)
            rows += [rows for _, rows in batches]
            found += [images for images, _ in batches]
        assert torch.cat(rows).tolist() == list(range(count))
        if place == "workers" or side == options.size:
            assert torch.equal(torch.cat(found), expected)
        else:  # resized on the device, by the batch: the last bit depends on the batch, as in the network after it
            torch.testing.assert_close(torch.cat(found), expected, atol=1e-5, rtol=0)


def test_shares_do_not_depend_on_workers():
    split = split_of(20, 4)
    order = Pipeline(split, options_of("workers"), CPU).epoch_order(0, 0)
    for rank in range(3):
        alone = Pipeline(split, options_of("workers"), CPU, rank, 3)
        helped = Pipeline(split, options_of("workers", workers_num=1, prefetch=3), CPU, rank, 3)
        for epoch in (0, 1):  # the second with workers that were kept
            for (images, rows), (others, other_rows) in zip(
                alone.train_batches(order, 0, epoch), helped.train_batches(order, 0, epoch)
            ):
                assert torch.equal(images, others)
                assert torch.equal(rows, other_rows)
        helped.close()


def test_a_process_reads_the_images_of_its_share_only(tmp_path):
    for number in range(8):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number}.png")
    images = ImageSet(tuple(str(tmp_path / f"{number}.png") for number in range(8)))
    options = options_of("workers", batch_size=8)
    second = Pipeline(Split("some", images, None), options, CPU, 1, 2)
    for number in range(4):
        (tmp_path / f"{number}.png").unlink()
    ((served, rows),) = second.train_batches([torch.arange(8)], 0, 0)
    assert (len(served), rows.tolist()) == (4, [4, 5, 6, 7])
    ((_, rows),) = second.train_batches_plain()
    assert rows.tolist() == [4, 5, 6, 7]


def test_paths_are_a_sequence_of_texts():
    texts = ["/a/b.png", "", "ü/\udcff.jpg", "x" * 300]
    paths = Paths(iter(texts))
    assert len(paths) == 4
    assert list(paths) == texts
    assert paths[-1] == texts[-1]
    assert paths[np.int64(2)] == texts[2]
    assert paths[1:3] == tuple(texts[1:3])
    for row in (4, -5):
        with pytest.raises(IndexError):
            paths[row]
    assert len(Paths([])) == 0


@pytest.mark.parametrize(
    ("count", "batch", "processes", "works"),
    [
        (20, 4, 2, True),
        (20, 3, 2, False),
        (3, 9, 2, False),
        (4, 9, 2, True),
        (21, 4, 2, True),  # the last image joins the batch before it
        (21, 6, 3, True),
        (20, 5, 3, False),
        (20, 1, 1, True),
    ],
)
def test_batch_norm_by_process_needs_two_images_in_each(count, batch, processes, works):
    options = options_of("device", sync_bn=False, batch_size=batch)
    for pipeline in pipelines(split_of(count, 4), options, processes):
        if works:
            pipeline.check_batches()
            assert processes == 1 or all(len(rows) >= 2 * processes for rows in pipeline.epoch_order(0, 0))
        else:
            with pytest.raises(UserError, match=f"--no-sync-bn: {count} images at --batch-size {batch}.*use --sync-bn"):
                pipeline.check_batches()
    for pipeline in pipelines(split_of(count, 4), replace(options, sync_bn=True), processes):
        pipeline.check_batches()
