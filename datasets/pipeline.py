"""The images of a run and their batches, by the data options."""

from collections.abc import Generator, Sequence
from typing import Callable, Optional, Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.files.bad_images import Gather, without_bad_images
from datasets.files.in_memory import decode_small, shrink
from datasets.image_set import ImageSet, Split, limit
from datasets.labels import evaluable, select_classes
from datasets.loaders.device import DeviceLoader, to_device
from datasets.loaders.workers import WorkerLoader
from datasets.transforms.batch import Recipe
from datasets.transforms.pil import test_transform, train_transform
from lib.config import Options
from lib.config.registry import NORMALISATIONS, Statistics, statistics_of
from lib.distributed.world import WHOLE, Share
from lib.errors import UserError
from lib.seeding import generator

BatchGenerator = Generator[tuple[Tensor, Tensor], None, None]
Loader = Union[DeviceLoader, WorkerLoader]

EVAL_PIXELS = 512 * 32 * 32
"""Pixels in a batch for evaluation: 512 images of 32 x 32, 10 of 224 x 224. The results do not depend on it."""


def normalisation(options: Options, own: Optional[Statistics] = None) -> Statistics:
    """The channel statistics in effect: `--means` and `--stds` first, then `--normalise`, then `own`.

    Args:
        own: None: those of the data set.
    """
    means, stds = NORMALISATIONS.get(options.normalise or "") or own or statistics_of(options.dataset)
    return options.means or means, options.stds or stds


class Pipeline:
    """Serves the training and test images of a run in batches.

    Args:
        split: the data set.
        options: the merged options of the run.
        device: where batches are delivered.
        rank, processes: this process's rank, and the number of processes. Each process serves its `Share` of every
            training batch and, without augmentation, of all images.
        gather: gathers the bad images (`--skip-bad-images`) of all processes, each of which then checks its share;
            None: this process checks all images.

    Attributes:
        train, test: the images of all processes; test may be None.
        skipped: the paths of the images that `--skip-bad-images` left out.
        notes: of the data set, a line each.
        cautions: lines about limits of the accuracies.
        fingerprint: a checksum that identifies the training images.
        contents: checksums of some of their files, which distinguish files of equal names; see `ImageSet.contents`.
        means, stds: of the channels.
        on_device: whether images are held on the device and augmented there by the batch.

    Raises:
        UserError: there are too few images, or `--augment-on device` is not possible.
        RunError: a DataLoader worker that checks images died.
    """

    def __init__(
        self,
        split: Split,
        options: Options,
        device: torch.device,
        rank: int = 0,
        processes: int = 1,
        gather: Optional[Gather] = None,
    ):
        self._share = Share(rank, processes)
        self.skipped: tuple[str, ...] = ()
        split = select_classes(split, options.classes)
        if options.skip_bad_images:
            checked = WHOLE if gather is None else self._share
            split, self.skipped = without_bad_images(split, options.workers_num, rank == 0, checked, gather)
        self.name, self.notes = split.name, split.notes
        self.means, self.stds = normalisation(options, statistics_of(split.name))
        self._options, self._device = options, device
        train = self._limited(split.train, options.limit_train)
        test = None if split.test is None else self._limited(split.test, options.limit_test)
        if len(train) < 2:
            raise UserError(f"--dataset {split.name}: {len(train)} training image; at least 2 are needed")
        train, test, self.cautions = evaluable(train, test)
        self.fingerprint, self.contents = train.fingerprint(), train.contents()
        self._files = None if train.pixels is not None else train.source
        if options.shrink is not None:
            train = shrink(train, options.shrink, options.workers_num, "training", report=rank == 0)
            test = test and shrink(test, options.shrink, options.workers_num, "test", report=rank == 0)
        self.train, self.on_device = self._choose_augmentation(train)
        self.test = self._in_memory(test) or test if self.on_device and test is not None else test
        self._eval_batch = max(options.batch_size, EVAL_PIXELS // options.size**2)
        self._train_loader, self._plain_loader = self._train_loaders()
        self._test_loader = None if self.test is None else self._loader(self.test)

    def are_those_of(self, fingerprint: str, contents: Optional[list[int]]) -> bool:
        """Whether the training images are those of this `fingerprint` and these `contents`."""
        return self.fingerprint == fingerprint and not self.train.replaced(contents).are_other_pictures

    @property
    def labelled_test(self) -> bool:
        """Whether there are test images, and labels on both sides."""
        return self.test is not None and self.train.labels is not None and self.test.labels is not None

    def epoch_order(self, *context: int) -> tuple[Tensor, ...]:
        """The shuffled batches of one epoch, row numbers (B,) each; the seed context is (round, epoch)."""
        order = torch.randperm(len(self.train), generator=generator(self._options.seed, "order", *context))
        return split_order(order, self._options.batch_size, self._smallest)

    def check_batches(self) -> None:
        """Validates that every process can train on its share of every batch.

        Raises:
            UserError: with `--no-sync-bn`, a share has fewer than two images.
        """
        images, batch, processes = len(self.train), self._options.batch_size, self._share.processes
        sizes = [len(rows) for rows in split_order(torch.arange(images), batch, self._smallest)]
        if processes > 1 and min(sizes) < self._smallest:
            raise UserError(
                f"--no-sync-bn: {images:,} images at --batch-size {batch} make a batch of {min(sizes)}, and each of "
                f"{processes} processes needs 2 images for batch norm; use --sync-bn, fewer processes, or at least "
                f"{self._smallest} images and --batch-size {self._smallest}"
            )

    @property
    def _smallest(self) -> int:
        """Images in the smallest batch: batch norm needs two, of all processes together or of each."""
        return 2 if self._options.sync_bn else 2 * self._share.processes

    def train_batches(self, order: Sequence[Tensor], *context: int, start: int = 0) -> BatchGenerator:
        """This process's share of each training batch in the given order, augmented; it may be empty.

        The shares of all processes, concatenated, are the batches of a run with one process. Batches before `start`
        are skipped, which does not change the others.
        """
        return self._train_loader.batches(order, context, self._share, start)

    def prepared_together(self, order: Sequence[Tensor]) -> int:
        """How many training batches are prepared at a time: by workers, one each, or at once on a GPU."""
        return self._train_loader.together(order)

    def files_of(self, rows: Sequence[int]) -> Optional[list[str]]:
        """The paths of training images, by their row numbers; None where images are not files."""
        return None if self._files is None else [self._files[row] for row in rows]

    def train_batches_plain(self) -> BatchGenerator:
        """This process's share of the training images with the test transform, in the order of their index.

        The workers exit afterwards, since this is seldom called.
        """
        yield from self._plain_loader.batches(self._plain_order(self.train), ())
        self._plain_loader.close()

    def sample(self, count: int) -> Tensor:
        """(n, 3, S, S) training images with the test transform, `count` evenly spaced or all, on every process."""
        images = len(self.train)
        rows = torch.arange(images) if images <= count else torch.arange(count) * images // count
        found = [batch for batch, _ in self._plain_loader.batches(rows.split(self._eval_batch), ())]
        self._plain_loader.close()
        return torch.cat(found)

    def test_batches(self) -> BatchGenerator:
        """This process's share of the test images, in the order of their index; there must be some."""
        assert self._test_loader is not None
        assert self.test is not None
        return self._test_loader.batches(self._plain_order(self.test), ())

    @property
    def starts_processes(self) -> bool:
        """Whether DataLoader workers load images; they start when they are needed."""
        return any(isinstance(loader, WorkerLoader) and loader.workers_num > 0 for loader in self._loaders)

    @property
    def waiting_since(self) -> Optional[float]:
        """When the wait for the current batch began, by time.monotonic(); None while there is no wait."""
        waits = [loader.waiting_since for loader in self._loaders if isinstance(loader, WorkerLoader)]
        return next((since for since in waits if since is not None), None)

    def close(self) -> None:
        """End the DataLoader workers."""
        for loader in self._loaders:
            if loader is not None:
                loader.close()

    @property
    def _loaders(self) -> tuple[Optional[Loader], ...]:
        return self._train_loader, self._plain_loader, self._test_loader

    def _plain_order(self, images: ImageSet) -> tuple[Tensor, ...]:
        """The row numbers of this process's share of all images, in batches; empty if the share is."""
        rows = self._share.part(torch.arange(len(images)))
        return rows.split(self._eval_batch) if len(rows) else ()

    def _limited(self, images: ImageSet, count: Optional[int]) -> ImageSet:
        return images if count is None else limit(images, count, self._options.seed)

    def _choose_augmentation(self, images: ImageSet) -> tuple[ImageSet, bool]:
        """The training images, in memory where that helps, and whether they are augmented on the device."""
        if self._options.augment_on == "workers":
            return images, False
        array = self._in_memory(images)
        if array is not None and array.pixels is not None and self._fits(array.pixels):
            return array, True
        if self._options.augment_on == "device":
            raise UserError(
                f"--augment-on device: the images of {self.name} are large, of several sizes or too many for "
                f"{self._device}; use auto or workers"
            )
        return images, False

    @staticmethod
    def _in_memory(images: ImageSet) -> Optional[ImageSet]:
        return images if images.pixels is not None else decode_small(images)

    def _fits(self, pixels: np.ndarray) -> bool:
        """Whether the images fit into half of the GPU's memory; on a CPU they are in memory already."""
        if self._device.type != "cuda":
            return True
        return pixels.nbytes <= torch.cuda.get_device_properties(self._device).total_memory // 2

    def _train_loaders(self) -> tuple[Loader, Loader]:
        """The loaders of augmented and of plain training images; on the device they share one tensor."""
        options = self._options
        if self.on_device and self.train.pixels is not None:
            flip = 0.5 if options.random_horizontal_flip else 0.0
            recipe = Recipe(options.scale, options.ratio, options.colorjitter, options.random_grayscale, flip)
            images = to_device(self.train.pixels, self._device)
            return self._device_loader(images, recipe), self._loader(self.train, images)
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
        return self._worker_loader(self.train, transform, options.workers_num), self._loader(self.train)

    def _loader(self, images: ImageSet, on_device: Optional[Tensor] = None) -> Loader:
        """A loader of images with the test transform.

        PIL scales images that are augmented on the device too, here in this process, since its rounding to 256 levels
        depends on its release: the same picture has the same pixels in `--export`, `--embed` and Python.

        Args:
            on_device: the images as `to_device` gives them, if they are there already.
        """
        options = self._options
        resize = options.resize or options.size
        is_scaled = images.pixels is None or images.pixels.shape[1:3] != (options.size,) * 2 or resize != options.size
        if self.on_device and images.pixels is not None and not is_scaled:
            pixels = to_device(images.pixels, self._device) if on_device is None else on_device
            return self._device_loader(pixels, None)
        workers = 0 if self.on_device and images.pixels is not None else options.workers_num
        return self._worker_loader(images, test_transform(options.size, resize, self.means, self.stds), workers)

    def _device_loader(self, images: Tensor, recipe: Optional[Recipe]) -> DeviceLoader:
        options = self._options
        return DeviceLoader(images, options.size, self.means, self.stds, recipe, options.seed)

    def _worker_loader(
        self, images: ImageSet, transform: Callable[[Image.Image], Tensor], workers: int
    ) -> WorkerLoader:
        options = self._options
        return WorkerLoader(
            images,
            transform,
            options.batch_size,
            workers,
            options.seed,
            self._device,
            options.size,
            options.prefetch,
        )


def split_order(order: Tensor, batch_size: int, smallest: int = 2) -> tuple[Tensor, ...]:
    """The batches of an epoch, in order; the last may be smaller.

    A last batch of fewer than `smallest` images, by default of a single one, joins the one before it. (With one
    process this never happens with the paper's data sets: 50,000 and 73,257 images leave 80 and 41 at 128.)
    """
    batches = order.split(batch_size)
    if len(batches) > 1 and len(batches[-1]) < smallest:
        batches = (*batches[:-2], torch.cat(batches[-2:]))
    return batches
