"""Batches of images that are read and transformed on the CPU, by worker processes or in this one."""

import random
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable, Optional, Union

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from datasets.image_set import ImageSet
from datasets.loaders.worker_processes import (
    HandedOver,
    SharedBatches,
    affordable,
    context,
    end_at_once,
    ignore_signals_to_all,
    start_workers,
    watch,
)
from lib.distributed.world import WHOLE, Share
from lib.errors import RunError, UserError
from lib.seeding import derive

Salt = tuple[int, ...]
_Key = tuple[int, Salt]  # row number and salt: workers that live on must hear of a new epoch somehow


class WorkerLoader:
    """Serves transformed images in a given order.

    What a random transform does to an image depends on the seed, the salt and the image's row number alone: not on
    the number of workers, the batches, or the order. Workers stay for the next epoch if one ends in order, and go
    when the consumer stops early or an image cannot be read.

    Args:
        image_set: the images.
        transform: from a PIL image in mode RGB to a float32 tensor (3, S, S), drawing at most from the default
            generators of torch and `random`.
        batch_size: images in a batch.
        workers_num: worker processes; with 0 the work is done in this process. So it is, with a warning, where they
            cannot be started.
        seed: of the random transforms.
        device: where batches are delivered.
        size: S, which empty batches need to be told.
        prefetch: batches that each worker process loads ahead.
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
        self._batch_size, self._workers_num, self._device = batch_size, workers_num, torch.device(device)
        self._size, self._prefetch = size, prefetch
        self._idle: Optional[DataLoader] = None  # with its workers, if it has any
        self.waiting_since: Optional[float] = None  # by time.monotonic(), for the batch that was asked for

    def batches(
        self, order: Union[Sequence[int], Tensor, Sequence[Tensor]], salt: Salt, share: Share = WHOLE, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 3, S, S) float32 and their row numbers (B,) int64, both on the device.

        Args:
            order: row numbers, cut into batches of `batch_size`, of which the last may be smaller; or the batches
                themselves, as 1-D tensors.
            salt: where in the run this is, e.g. (round, epoch).
            share: the part of each batch to serve; B is then the size of the part, which may be 0. Images of other
                parts are not read.
            start: the first batch to serve, counted from 0; the images of those before it are not read.

        Raises:
            UserError: an image cannot be read.
            RunError: a worker process died.
        """
        parts = [share.part(rows) for rows in _as_batches(order, self._batch_size)[start:]]
        # taken while in use, so that a second call at the same time gets a loader of its own
        loader, self._idle = self._idle or self._new_loader(max(map(len, parts), default=0)), None
        loader.batch_sampler.plan([rows for rows in parts if len(rows)], salt)
        batches = loaded(loader)
        for rows in parts:
            batch = self._next(loader, batches) if len(rows) else (torch.empty(0, 3, self._size, self._size), rows)
            if isinstance(batch, (UserError, RunError)):
                batches.close()
                del loader, batches  # the workers go at once, not when the traceback does
                raise batch
            images, indices = batch
            yield images.to(self._device, non_blocking=True), indices.to(self._device, non_blocking=True)
        if loader.collate_fn.shared is not None:
            loader.collate_fn.shared.clear()
        self._idle = loader

    def close(self) -> None:
        """Let idle workers go; a later call of `batches` starts new ones."""
        self._idle = None

    def _next(self, loader: DataLoader, batches: Iterator[Any]) -> Union[tuple[Tensor, Tensor], UserError, RunError]:
        self.waiting_since = time.monotonic()
        try:
            return next(batches)
        except BaseException:  # a signal, which may have come because no batch does
            end_at_once(loader)
            watch().take()
            raise
        finally:
            self.waiting_since = None

    def _new_loader(self, largest: int) -> DataLoader:
        """A loader that starts its workers later; `largest`: images of a batch for which it has shared memory."""
        workers = affordable(self._workers_num)
        # without workers there is nobody to load ahead, and torch refuses to be told how much
        processes = {
            "prefetch_factor": self._prefetch,
            "persistent_workers": True,
            "multiprocessing_context": context(),
        }
        return DataLoader(
            self._images,
            batch_sampler=_Plan(),
            num_workers=workers,
            **(processes if workers else {}),
            collate_fn=_Collate(SharedBatches.of(workers, self._prefetch, largest * 3 * self._size**2)),
            pin_memory=self._device.type == "cuda",
            worker_init_fn=ignore_signals_to_all,
            generator=torch.Generator(),  # without one it would draw from the default generator
        )


def loaded(loader: DataLoader) -> Generator[Any, None, None]:
    """What a loader loads; the workers start with the first batch that is asked for. Errors come as values.

    Raised from here they would keep this frame, and so the workers, for as long as somebody keeps the traceback.
    """
    lost = watch().take()  # of workers that were kept from the last time
    try:
        batches = start_workers(loader) if lost is None else None
        lost_workers = watch()
        while lost is None:
            batch = next(batches)
            yield batch.taken() if isinstance(batch, HandedOver) else batch
            lost = lost_workers.take()
    except StopIteration:
        return
    except RuntimeError as error:
        lost = watch().explain(error)
        if lost is None:
            raise
    yield lost


class _Plan:
    """The batches of keys that a loader goes through next. Loaders, and their workers, live longer than a plan."""

    def __init__(self) -> None:
        self._batches: Sequence[Tensor] = ()
        self._salt: Salt = ()

    def plan(self, batches: Sequence[Tensor], salt: Salt) -> None:
        self._batches, self._salt = batches, tuple(salt)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[_Key]]:
        for rows in self._batches:
            yield [(row, self._salt) for row in rows.tolist()]


class _TransformedImages:
    """The images by key. One that cannot be read gives its UserError as a value: torch would bury an exception
    raised in a worker in a traceback of several lines."""

    def __init__(
        self, image_set: ImageSet, transform: Callable[[Image.Image], Tensor], seed: int, at_least: Optional[int]
    ):
        self._image_set, self._transform, self._seed, self._at_least = image_set, transform, seed, at_least

    def __len__(self) -> int:
        return len(self._image_set)

    def __getitem__(self, key: _Key) -> Union[tuple[Tensor, int], UserError]:
        row, salt = key
        try:
            image = self._image_set.read(row, self._at_least)
        except UserError as error:
            return type(error)(str(error))
        with _seeded(derive(self._seed, "image", *salt, row)):
            return self._transform(image), row


class _Collate:
    """Makes a batch of samples, or gives the first error among them."""

    def __init__(self, shared: Optional[SharedBatches]):
        self.shared = shared

    def __call__(self, samples: list) -> Union[tuple[Tensor, Tensor], HandedOver, UserError]:
        for sample in samples:
            if isinstance(sample, UserError):
                return sample
        images, rows = zip(*samples)
        if get_worker_info() is None:
            return torch.stack(images), torch.tensor(rows, dtype=torch.int64)
        return HandedOver(images, rows, self.shared)


def _as_batches(order: Union[Sequence[int], Tensor, Sequence[Tensor]], batch_size: int) -> Sequence[Tensor]:
    if not isinstance(order, Tensor) and len(order) > 0 and isinstance(order[0], Tensor):
        return order
    rows = torch.as_tensor(order, dtype=torch.int64)
    return rows.split(batch_size) if len(rows) else ()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Both default generators from `seed`, and afterwards as they were.

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
