"""Batches of images that are read and transformed on the CPU, by DataLoader workers or in this process."""

import random
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable, Optional, Union, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from datasets.image_set import ImageSet
from datasets.loaders.worker_processes import (
    SharedBatches,
    WorkerBatch,
    allowed_workers,
    end_workers,
    fork_context,
    ignore_signals,
    kill_workers,
    start_workers,
    watch_workers,
)
from lib.distributed.world import WHOLE, Share
from lib.errors import RunError, UserError
from lib.seeding import derive

SeedContext = tuple[int, ...]
_Key = tuple[int, SeedContext]  # row number and seed context, which tells persistent workers the epoch


class WorkerLoader:
    """Serves transformed images in a given order.

    The random draws of a transform depend on the seed, the seed context and the image's row number alone, not on the
    number of workers, the batches, or the order. Workers persist after a complete epoch, and end when the
    consumer stops early or an image cannot be read.

    Args:
        image_set: the images.
        transform: from a PIL image in mode RGB to a float32 tensor (3, S, S), drawing at most from the default
            generators of torch and `random`.
        batch_size: images in a batch.
        workers_num: DataLoader workers; with 0, and with a warning where they cannot start, this process does the work.
        seed: of the random transforms.
        device: where batches are delivered.
        size: S, the shape of empty batches.
        prefetch: batches that each worker loads ahead.
        at_least: as in `read_rgb`.
    """

    def __init__(
        self,
        image_set: ImageSet,
        transform: Callable[[Image.Image], Tensor],
        batch_size: int,
        workers_num: int,
        seed: int,
        device: torch.device,
        size: int = 0,
        prefetch: int = 2,
        at_least: Optional[int] = None,
    ):
        self._images = _TransformedImages(image_set, transform, seed, at_least)
        self._batch_size, self.workers_num, self._device = batch_size, workers_num, torch.device(device)
        self._size, self._prefetch = size, prefetch
        self._idle: Optional[_Loader] = None  # with its workers, if it has any
        self.waiting_since: Optional[float] = None  # by time.monotonic(), for the requested batch

    def batches(
        self,
        order: Union[Sequence[int], Tensor, Sequence[Tensor]],
        context: SeedContext,
        share: Share = WHOLE,
        start: int = 0,
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Images (B, 3, S, S) float32 and their row numbers (B,) int64, both on the device.

        Args:
            order: row numbers, cut into batches of `batch_size`, of which the last may be smaller; or the batches
                themselves, as 1-D tensors.
            context: seed context, e.g. (round, epoch).
            share: the part of each batch to serve; B is then the size of the part, which may be 0. Images of other
                parts are not read.
            start: the first batch to serve, counted from 0; the images of those before it are not read.

        Raises:
            UserError: an image cannot be read.
            RunError: a worker died.
        """
        parts = [share.part(rows) for rows in _as_batches(order, self._batch_size)[start:]]
        # not idle while in use: a concurrent second call gets a loader of its own
        loader, self._idle = self._idle or self._new_loader(max(map(len, parts), default=0)), None
        loader.batch_sampler.plan([rows for rows in parts if len(rows)], context)
        batches = load_batches(loader)
        try:
            for rows in parts:
                batch = self._next(loader, batches) if len(rows) else (torch.empty(0, 3, self._size, self._size), rows)
                if isinstance(batch, (UserError, RunError)):
                    raise batch
                images, indices = batch
                yield images.to(self._device, non_blocking=True), indices.to(self._device, non_blocking=True)
        except (GeneratorExit, UserError, RunError):
            end_workers(loader)  # now, not when the traceback is freed
            raise
        if loader.collate_fn.shared is not None:
            loader.collate_fn.shared.clear()
        self._idle = loader

    def together(self, order: Sequence[Tensor]) -> int:
        """How many batches are prepared at a time."""
        return max(1, self.workers_num)

    def close(self) -> None:
        """End idle workers; a later call of `batches` starts new ones."""
        self._idle = None

    def _next(self, loader: DataLoader, batches: Iterator[Any]) -> Union[tuple[Tensor, Tensor], UserError, RunError]:
        self.waiting_since = time.monotonic()
        try:
            return next(batches)
        except BaseException:  # a signal, perhaps sent because no batch arrived
            kill_workers(loader)
            watch_workers().pop_error()
            raise
        finally:
            self.waiting_since = None

    def _new_loader(self, largest: int) -> "_Loader":
        """A loader that starts its workers with the first batch; `largest`: images of the largest batch."""
        workers = allowed_workers(self.workers_num)
        # without workers torch refuses a prefetch factor
        processes: dict[str, Any] = {
            "prefetch_factor": self._prefetch,
            "persistent_workers": True,
            "multiprocessing_context": fork_context(),
        }
        return _Loader(
            self._images,
            batch_sampler=_Plan(),
            num_workers=workers,
            **(processes if workers else {}),
            collate_fn=_Collate(SharedBatches.of(workers, self._prefetch, largest * 3 * self._size**2)),
            pin_memory=self._device.type == "cuda",
            worker_init_fn=ignore_signals,
            generator=torch.Generator(),  # without one it would draw from the default generator
        )


def load_batches(loader: DataLoader) -> Generator[Any, None, None]:
    """The batches of a loader, whose workers start with the first one. Errors are yielded, not raised.

    A raised error would keep this frame, and with it the workers, alive for as long as its traceback.
    """
    lost = watch_workers().pop_error()  # of persistent workers
    try:
        if lost is None:
            batches = start_workers(loader)
            lost_workers = watch_workers()
            while lost is None:
                batch = next(batches)
                yield batch.receive() if isinstance(batch, WorkerBatch) else batch
                lost = lost_workers.pop_error()
    except StopIteration:
        return
    except RuntimeError as error:
        lost = watch_workers().explain(error)
        if lost is None:
            raise
    yield lost


class _Plan:
    """A batch sampler whose batches are replaced for each epoch, so that loaders and their workers persist."""

    def __init__(self) -> None:
        self._batches: Sequence[Tensor] = ()
        self._context: SeedContext = ()

    def plan(self, batches: Sequence[Tensor], context: SeedContext) -> None:
        self._batches, self._context = batches, tuple(context)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[_Key]]:
        for rows in self._batches:
            yield [(row, self._context) for row in rows.tolist()]


class _TransformedImages(Dataset):
    """Transformed images by key; an image that cannot be read gives its UserError as a value.

    torch wraps an exception raised in a worker into a traceback of several lines."""

    def __init__(
        self, image_set: ImageSet, transform: Callable[[Image.Image], Tensor], seed: int, at_least: Optional[int]
    ):
        self._image_set, self._transform, self._seed, self._at_least = image_set, transform, seed, at_least

    def __len__(self) -> int:
        return len(self._image_set)

    def __getitem__(self, key: _Key) -> Union[tuple[Tensor, int], UserError]:
        row, context = key
        try:
            image = self._image_set.read(row, self._at_least)
        except UserError as error:
            return type(error)(str(error))
        with _seeded(derive(self._seed, "image", *context, row)):
            return self._transform(image), row


class _Collate:
    """Collates samples into a batch, or returns the first error among them."""

    def __init__(self, shared: Optional[SharedBatches]):
        self.shared = shared

    def __call__(self, samples: list[Any]) -> Union[tuple[Tensor, Tensor], WorkerBatch, UserError]:
        for sample in samples:
            if isinstance(sample, UserError):
                return sample
        images, rows = zip(*samples)
        if get_worker_info() is None:
            return torch.stack(images), torch.tensor(rows, dtype=torch.int64)
        return WorkerBatch(images, rows, self.shared)


class _Loader(DataLoader):
    """A DataLoader with a `_Plan`, which gets new batches in each epoch."""

    batch_sampler: _Plan
    collate_fn: _Collate


def _as_batches(order: Union[Sequence[int], Tensor, Sequence[Tensor]], batch_size: int) -> Sequence[Tensor]:
    if not isinstance(order, Tensor) and len(order) > 0 and isinstance(order[0], Tensor):
        return cast("Sequence[Tensor]", order)
    rows = torch.as_tensor(order, dtype=torch.int64)
    return rows.split(batch_size) if len(rows) else ()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the default CPU generators of torch and `random` in the block, and restores them.

    torch.manual_seed would reach the GPU's generators too, which dropout draws from.
    """
    torch_state, python_state = torch.default_generator.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(torch_state)
        random.setstate(python_state)
