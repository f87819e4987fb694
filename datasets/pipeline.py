"""From the data options to batches of images on the device."""

from collections.abc import Iterator, Sequence
from typing import Optional, Union

import torch
from torch import Tensor

from datasets.files.bad_images import Gather, without_bad_images
from datasets.files.decoded import decoded
from datasets.files.shrunk import shrunk
from datasets.image_set import ImageSet, limit
from datasets.loaders.device import DeviceLoader, to_device
from datasets.loaders.workers import WorkerLoader
from datasets.sources.only_classes import judgeable, only_classes
from datasets.split import Split
from datasets.transforms import normalisation
from datasets.transforms.batch import Recipe
from datasets.transforms.pil import test_transform, train_transform
from lib.config import Options
from lib.distributed.world import WHOLE, Share
from lib.errors import UserError
from lib.seeding import generator

Batches = Iterator[tuple[Tensor, Tensor]]
Loader = Union[DeviceLoader, WorkerLoader]

EVAL_PIXELS = 512 * 32 * 32
"""Pixels in a batch where nothing is learnt: 512 small images, 10 of 224 pixels. The results do not depend on it."""


class Pipeline:
    """The training and test images of a run, ready to be served.

    Args:
        split: the data set.
        options: the merged options of the run.
        device: where batches are delivered.
        rank, processes: which of how many processes this is. Each serves its `Share`: of every training batch, and
            of all images where they are served without augmentation.
        gather: what they tell each other of bad images (`--skip-bad-images`), of which each then checks its share;
            None: each checks all images for itself.

    Attributes:
        train, test: all the images, whatever the share; test may be None.
        skipped: the paths of the images that `--skip-bad-images` left out.
        notes: of the data set, a line each.
        cautions: what is to be known about accuracies, a line each.
        fingerprint: tells these training images from others.
        contents: of some of their files, which tells them from others of the same names; see `ImageSet.contents`.
        means, stds: of the channels.
        on_device: whether images live on the device and are augmented there by the batch.

    Raises:
        UserError: there are too few images, or `--augment-on device` is asked for where it cannot be.
        RunError: a process that checks images died.
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
        split = only_classes(split, options.classes)
        if options.skip_bad_images:
            checked = WHOLE if gather is None else self._share
            split, self.skipped = without_bad_images(split, options.workers_num, rank == 0, checked, gather)
        self.name, self.notes = split.name, split.notes
        self.means, self.stds = normalisation.chosen(options, (split.means, split.stds))
        self._options, self._device = options, device
        train, test = self._limited(split.train, options.limit_train), self._limited(split.test, options.limit_test)
        if len(train) < 2:
            raise UserError(f"--dataset {split.name}: {len(train)} training image; at least 2 are needed")
        train, test, self.cautions = judgeable(train, test)
        self.fingerprint, self.contents = train.fingerprint(), train.contents()
        self._files = None if train.pixels is not None else train.source
        if options.shrink is not None:
            train = shrunk(train, options.shrink, options.workers_num, "training", report=rank == 0)
            test = test and shrunk(test, options.shrink, options.workers_num, "test", report=rank == 0)
        self.train, self.on_device = self._choose_place(train)
        self.test = self._in_memory(test) or test if self.on_device and test is not None else test
        self._eval_batch = max(options.batch_size, EVAL_PIXELS // options.size**2)
        self._train_loader, self._plain_loader = self._train_loaders()
        self._test_loader = None if self.test is None else self._loader(self.test)

    def are_those_of(self, fingerprint: str, contents: Optional[list[int]]) -> bool:
        """Whether the training images are those that a file tells of, by `fingerprint` and `contents` of its own."""
        return self.fingerprint == fingerprint and not self.train.replaced(contents).are_others

    @property
    def labelled_test(self) -> bool:
        """Whether there are test images, and labels on both sides."""
        return self.test is not None and self.train.labels is not None and self.test.labels is not None

    def epoch_order(self, *place: int) -> tuple[Tensor, ...]:
        """The shuffled batches of one epoch, row numbers (B,) each; `place` is (round, epoch)."""
        order = torch.randperm(len(self.train), generator=generator(self._options.seed, "order", *place))
        return split_order(order, self._options.batch_size, self._smallest)

    def check_batches(self) -> None:
        """Whether every process can train on its share of every batch.

        Raises:
            UserError: with `--no-sync-bn`, some would have a single image or none.
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
        """Images in a batch: one alone has no variance for batch norm, unless it is that of all processes."""
        return 2 if self._options.sync_bn else 2 * self._share.processes

    def train_batches(self, order: Sequence[Tensor], *place: int, start: int = 0) -> Batches:
        """This process's share of each training batch in the given order, augmented; it may be empty.

        Images are augmented as if there was one process: the shares of all, one after the other, are its batches.
        Those before batch `start` are passed over, which changes nothing about the others.
        """
        return self._train_loader.batches(order, place, self._share, start)

    def files_of(self, rows: Sequence[int]) -> Optional[list[str]]:
        """The paths of training images, by their row numbers; None where they do not come from a file each."""
        return None if self._files is None else [self._files[row] for row in rows]

    def train_batches_plain(self) -> Batches:
        """This process's share of the training images with the test transform, in the order of their index.

        Seldom asked for: no process waits.
        """
        yield from self._plain_loader.batches(self._plain_order(self.train), ())
        self._plain_loader.close()

    def sample(self, count: int) -> Tensor:
        """(n, 3, S, S) training images with the test transform, all or `count` at even distances, for every process."""
        images = len(self.train)
        rows = torch.arange(images) if images <= count else torch.arange(count) * images // count
        found = [batch for batch, _ in self._plain_loader.batches(rows.split(self._eval_batch), ())]
        self._plain_loader.close()
        return torch.cat(found)

    def test_batches(self) -> Batches:
        """This process's share of the test images, in the order of their index."""
        return self._test_loader.batches(self._plain_order(self.test), ())

    @property
    def starts_processes(self) -> bool:
        """Whether images are loaded by processes of their own, started when they are needed."""
        return self._options.workers_num > 0 and any(isinstance(loader, WorkerLoader) for loader in self._loaders)

    @property
    def waiting_since(self) -> Optional[float]:
        """Since when, by time.monotonic(), a batch is waited for; None while none is."""
        waits = [loader.waiting_since for loader in self._loaders if isinstance(loader, WorkerLoader)]
        return next((since for since in waits if since is not None), None)

    def close(self) -> None:
        """Let the loader processes go."""
        for loader in self._loaders:
            if loader is not None:
                loader.close()

    @property
    def _loaders(self) -> tuple[Optional[Loader], ...]:
        return self._train_loader, self._plain_loader, self._test_loader

    def _plain_order(self, images: ImageSet) -> tuple[Tensor, ...]:
        """The row numbers of this process's share of all images, by the batch; no batch if there is none."""
        rows = self._share.part(torch.arange(len(images)))
        return rows.split(self._eval_batch) if len(rows) else ()

    def _limited(self, images: Optional[ImageSet], count: Optional[int]) -> Optional[ImageSet]:
        return images if images is None or count is None else limit(images, count, self._options.seed)

    def _choose_place(self, images: ImageSet) -> tuple[ImageSet, bool]:
        """The training images, in memory if they can be and should, and whether they are augmented on the device."""
        if self._options.augment_on == "workers":
            return images, False
        array = self._in_memory(images)
        if array is not None and self._fits(array):
            return array, True
        if self._options.augment_on == "device":
            raise UserError(
                f"--augment-on device: the images of {self.name} are large, of several sizes or too many for "
                f"{self._device}; use auto or workers"
            )
        return images, False

    @staticmethod
    def _in_memory(images: ImageSet) -> Optional[ImageSet]:
        return images if images.pixels is not None else decoded(images)

    def _fits(self, images: ImageSet) -> bool:
        """Whether half of a GPU's memory takes them; on a CPU they are in memory already."""
        if self._device.type != "cuda":
            return True
        return images.pixels.nbytes <= torch.cuda.get_device_properties(self._device).total_memory // 2

    def _train_loaders(self) -> tuple[Loader, Loader]:
        """Augmented and plain; on the device both serve from the same tensor."""
        options = self._options
        if self.on_device:
            flip = 0.5 if options.random_horizontal_flip else 0.0
            recipe = Recipe(options.scale, options.ratio, options.colorjitter, options.random_grayscale, flip)
            images = to_device(self.train.pixels, self._device)
            return self._device_loader(images, recipe), self._device_loader(images, None)
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
        return self._worker_loader(self.train, transform), self._loader(self.train)

    def _loader(self, images: ImageSet) -> Loader:
        """Serves images as they are, for evaluation."""
        options = self._options
        if self.on_device and images.pixels is not None:
            return self._device_loader(to_device(images.pixels, self._device), None)
        transform = test_transform(options.size, options.resize or options.size, self.means, self.stds)
        return self._worker_loader(images, transform)

    def _device_loader(self, images: Tensor, recipe: Optional[Recipe]) -> DeviceLoader:
        options = self._options
        resize = options.resize or options.size
        return DeviceLoader(images, options.size, resize, self.means, self.stds, recipe, options.seed)

    def _worker_loader(self, images: ImageSet, transform) -> WorkerLoader:
        options = self._options
        return WorkerLoader(
            images,
            transform,
            options.batch_size,
            options.workers_num,
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
