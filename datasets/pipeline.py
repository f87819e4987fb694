"""From the data options to batches of images on the device."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from datasets.augment_parameters import Recipe
from datasets.device_loader import DeviceLoader
from datasets.image_set import ImageSet, limit
from datasets.loading import WorkerLoader
from datasets.sources import Split
from datasets.transforms import test_transform, train_transform
from lib.errors import UserError
from lib.seeding import generator

Batches = Iterator[tuple[Tensor, Tensor]]

EVAL_BATCH = 512
"""Images in a batch where nothing is learnt; the results do not depend on it."""


class Pipeline:
    """The training and test images of a run, ready to be served.

    Args:
        split: the data set.
        options: the merged options of the run.
        device: where batches are delivered.

    Raises:
        UserError: there are too few images, or `--augment-on device` is asked for where it cannot be.
    """

    def __init__(self, split: Split, options, device: torch.device):
        self.name = split.name
        self.train = _limited(split.train, options.limit_train, options.seed)
        self.test = None if split.test is None else _limited(split.test, options.limit_test, options.seed)
        self.means = tuple(options.means or split.means)
        self.stds = tuple(options.stds or split.stds)
        self.batch_size, self.seed = options.batch_size, options.seed
        if len(self.train) < 2:
            raise UserError(f"--dataset {split.name}: {len(self.train)} training image; at least 2 are needed")
        self.on_device = self._choose_place(options.augment_on)
        self._options, self._device = options, device
        self._train_loader = self._loader(self.train, augmented=True)
        self._plain_loader = self._loader(self.train, augmented=False)
        self._test_loader = None if self.test is None else self._loader(self.test, augmented=False)

    @property
    def labelled_test(self) -> bool:
        """Whether there are test images, and labels on both sides."""
        return self.test is not None and self.train.labels is not None and self.test.labels is not None

    def epoch_order(self, *place: int) -> tuple[Tensor, ...]:
        """The shuffled batches of one epoch, row numbers (B,) each; `place` is (round, epoch)."""
        order = torch.randperm(len(self.train), generator=generator(self.seed, "order", *place))
        return split_order(order, self.batch_size)

    def train_batches(self, order: Sequence[Tensor], *place: int) -> Batches:
        """Augmented training images in the given order."""
        return self._train_loader.batches(order, place)

    def train_batches_plain(self) -> Batches:
        """Training images with the test transform, in the order of their index."""
        return self._plain_loader.batches(torch.arange(len(self.train)).split(EVAL_BATCH), ())

    def test_batches(self) -> Batches:
        """Test images in the order of their index."""
        return self._test_loader.batches(torch.arange(len(self.test)).split(EVAL_BATCH), ())

    def _choose_place(self, augment_on: str) -> bool:
        if augment_on == "workers":
            return False
        if self.train.pixels is not None:
            return True
        if augment_on == "device":
            raise UserError(
                f"--augment-on device: the images of {self.name} are files, not one array; use auto or workers"
            )
        return False

    def _loader(self, images: ImageSet, augmented: bool):
        options = self._options
        resize = options.resize or options.size
        if self.on_device and images.pixels is not None:
            recipe = None
            if augmented:
                flip = 0.5 if options.random_horizontal_flip else 0.0
                recipe = Recipe(options.scale, options.ratio, options.colorjitter, options.random_grayscale, flip)
            return DeviceLoader(
                images.pixels, options.size, resize, self.means, self.stds, recipe, self.seed, self._device
            )
        if augmented:
            transform = train_transform(
                options.size,
                options.scale,
                options.ratio,
                options.colorjitter,
                options.random_grayscale,
                options.random_horizontal_flip,
                self.means,
                self.stds,
            )
        else:
            transform = test_transform(options.size, resize, self.means, self.stds)
        return WorkerLoader(images, transform, self.batch_size, options.workers_num, self.seed, self._device)


def split_order(order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """The batches of an epoch, in order; the last may be smaller.

    A last batch of a single image joins the one before it: batch norm has no variance to work with in it.
    """
    batches = order.split(batch_size)
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches = (*batches[:-2], torch.cat(batches[-2:]))
    return batches


def _limited(images: ImageSet, count, seed: int) -> ImageSet:
    return images if count is None else limit(images, count, seed)
