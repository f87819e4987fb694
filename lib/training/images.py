"""The images of a run, found by each of its processes for itself."""

import datasets
from datasets.pipeline import Pipeline
from datasets.split import Split
from lib.config import Options
from lib.distributed import group
from lib.distributed.place import Place
from lib.distributed.world import World


def open_images(options: Options, world: World, place: Place) -> Pipeline:
    """Look the data set through and make it ready to be served. All processes must call it.

    Raises:
        UserError: as `datasets.load` and `Pipeline`.
        RunError: a process that reads images died.
    """
    split = _load(options, world, place)
    return Pipeline(split, options, world.device, world.rank, world.size)


def _load(options: Options, world: World, place: Place) -> Split:
    """The data set; what is missing is fetched by the first process of each machine, while the others wait."""
    name, root, labels = options.dataset, options.data_root, options.labels
    if not options.download or world.size == 1:
        return datasets.load(name, root, options.download, labels)
    wait = group.patient_barrier(world)
    if place.local_rank > 0:
        wait()
        return datasets.load(name, root, False, labels)
    split = datasets.load(name, root, True, labels)
    wait()
    return split
