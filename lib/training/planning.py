"""--threads auto and --minutes: threads and epochs chosen by timing training steps before the first epoch."""

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Callable, NamedTuple

import torch
from torch import Tensor, nn

from datasets.pipeline import Pipeline
from lib.config import Options, Settings
from lib.config.option import AUTO
from lib.distributed.process_info import ProcessInfo
from lib.distributed.world import World
from lib.errors import UserError, not_none
from lib.runtime.threads import OtherPrograms, cores, is_busy, requested_threads
from lib.training.state import TrainingState
from lib.training.step import Step

THREAD_STEPS = 3
"""Timed steps with each number of threads, after one that is not timed."""
ABORT_FACTOR = 3.0
"""A step is aborted after this many times the fastest one plus `PREPARATION`; more threads are not tried then."""
PREPARATION = 1.0
"""Seconds that libraries may need before the first step."""
TIMED_IMAGES = 128
"""The most images in a timed step."""
RATE_STEPS = 8
"""Timed steps of --minutes at least, after those whose batches were prepared in advance."""
STEPS_SHARE = 0.85
"""Share of the time for steps and evaluations; discovery, reports and checkpoints need the rest."""
EVALUATION_COST = 0.4
"""Time of a test image as a share of that of a training image: forward without backward."""


class TooSlowError(Exception):
    """A step was aborted."""


class ThreadChoice(NamedTuple):
    """A number of threads, its reason for the log, and a warning; empty if there is none."""

    threads: int
    reason: str
    warning: str = ""


def set_threads(settings: Settings, world: World, process: ProcessInfo) -> ThreadChoice:
    """Set the number of threads of PyTorch and faiss that follows from the options, without timing steps.

    Args:
        settings: --threads, with its source.
        world: the processes of the run. They share the cores of a machine evenly.
        process: this process.
    """
    wanted, all_cores = settings.options.threads, cores()
    share = max(1, all_cores // process.local_size)
    requested = requested_threads(process.launched)
    if wanted != AUTO:
        choice = ThreadChoice(int(wanted), f"--threads, {settings.sources['threads']}")
        if choice.threads > share and world.size > 1 and settings.sources["threads"] == "checkpoint":
            choice = ThreadChoice(share, f"the checkpoint's {wanted} are more than the share of each process")
        elif choice.threads > share:
            choice = choice._replace(warning=_too_many_note(choice.threads, process.local_size, all_cores))
    elif requested is not None:
        choice = ThreadChoice(requested, "OMP_NUM_THREADS")
    else:
        choice = ThreadChoice(share, "all cores" if process.local_size == 1 else f"a share of {all_cores} cores")
    torch.set_num_threads(choice.threads)
    return choice


def _too_many_note(threads: int, processes: int, all_cores: int) -> str:
    of_each = f" in each of {processes} processes" if processes > 1 else ""
    return (
        f"{threads} threads{of_each} share {all_cores} {'core' if all_cores == 1 else 'cores'}, which is slow; "
        "--threads auto chooses again; the last digits of results depend on it"
    )


def time_threads(
    first: ThreadChoice,
    others: OtherPrograms,
    options: Options,
    state: TrainingState,
    pipeline: Pipeline,
    world: World,
    process: ProcessInfo,
) -> ThreadChoice:
    """The threads of a run: for `auto`, one process and a busy CPU the fastest of 1, half and all; else `first`.

    Steps are timed on the first images of the epoch. State and random numbers are restored afterwards. With --compile
    nothing is timed: compiled code is made for one number of threads.

    Args:
        first: from `set_threads`.
        others: measures the processor time of other programs since the process started.
    """
    auto = options.threads == AUTO and requested_threads(process.launched) is None
    if not auto or first.threads == 1 or world.size > 1 or world.device.type != "cpu" or options.compile:
        return first
    busy = others.cores()
    if not is_busy(busy, first.threads):
        return first
    order = pipeline.epoch_order(state.round, state.epoch)[:1]
    images, indices = next(iter(list(pipeline.train_batches(order, state.round, state.epoch))))
    images, indices = images[:TIMED_IMAGES], indices[:TIMED_IMAGES]
    step = Step(state.embedder, state.bank, state.optimizer, options.npc_temperature)
    members = state.neighbourhoods.members(indices)
    state.embedder.train()
    with restoring_state(state, indices), time_limit(state.embedder.network) as set_limit:

        def step_within(limit: float) -> None:
            set_limit(limit)
            step(images, members, len(images))

        seconds = step_seconds(step_within, numbers_to_try(first.threads))
    chosen = min(seconds, key=seconds.__getitem__)
    torch.set_num_threads(chosen)
    rates = [f"{len(images) / spent:.0f}" if spent < math.inf else "too slow" for spent in seconds.values()]
    measured = ", ".join(f"{number}: {rate}" for number, rate in zip(seconds, rates))
    occupied = f"other programs keep {busy:.1f} processors busy"
    return ThreadChoice(chosen, f"images/s by threads: {measured}; {occupied}; --threads N overrides it")


def numbers_to_try(most: int) -> list[int]:
    """1, half of `most` and `most`, each once, ascending."""
    return sorted({1, max(1, most // 2), most})


def step_seconds(
    step: Callable[[float], object], numbers: Sequence[int], clock: Callable[[], float] = time.perf_counter
) -> dict[int, float]:
    """The time of the fastest step by number of threads, in seconds; ends at the first aborted number, as inf.

    Args:
        step: a function of its time limit in seconds, after which it may raise TooSlowError.
    """
    found: dict[int, float] = {}
    for number in numbers:
        torch.set_num_threads(number)
        limit = PREPARATION + ABORT_FACTOR * min(found.values(), default=math.inf)
        spent = []
        for _ in range(1 + THREAD_STEPS):
            started = clock()
            try:
                step(limit)
            except TooSlowError:
                spent.append(math.inf)
            else:
                spent.append(clock() - started)
            if spent[-1] > limit:
                return {**found, number: math.inf}
        found[number] = min(spent[1:])
    return found


@contextmanager
def time_limit(network: nn.Module) -> Iterator[Callable[[float], None]]:
    """Yields a function that sets a time limit in seconds, after which the next layer raises TooSlowError."""
    deadline = math.inf

    def set_limit(seconds: float) -> None:
        nonlocal deadline
        deadline = time.perf_counter() + seconds

    def check(module: nn.Module, inputs: tuple) -> None:
        if time.perf_counter() > deadline:
            raise TooSlowError

    hooks = [module.register_forward_pre_hook(check) for module in network.modules()]
    try:
        yield set_limit
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def restoring_state(state: TrainingState, rows: Tensor) -> Iterator[None]:
    """Context manager in which steps train on the images of these rows (B,); restores the state bit for bit.

    The state is network, bank, random states and optimiser. Within it the optimiser starts without moments.
    """
    network = state.embedder.network
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    shard = state.bank.shard
    own = rows[~shard.outside(rows)].to(state.bank.memory.device) - shard.start
    moments, memory = dict(state.optimizer.state), state.bank.memory[own]
    devices = [state.embedder.device] if state.embedder.device.type == "cuda" else []
    state.optimizer.state.clear()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            network.load_state_dict(weights)  # by name: PyTorch 1.10 counts batches in new tensors
            state.bank.memory[own] = memory
        state.optimizer.zero_grad(set_to_none=True)
        state.optimizer.state.clear()
        state.optimizer.state.update(moments)


def epochs_within(seconds: float, image_seconds: float, train: int, test: int, rounds: int) -> int:
    """The epochs of a round that fit into a time, at least 1.

    Args:
        seconds: for the whole run.
        image_seconds: time of a training image in a step of all processes together.
        train, test: numbers of training and test images.
        rounds: of the run.
    """
    epoch = image_seconds * (train + EVALUATION_COST * test)
    return max(1, int(STEPS_SHARE * seconds / (rounds * epoch)))


def within_minutes(settings: Settings, state: TrainingState, pipeline: Pipeline, world: World) -> tuple[Settings, str]:
    """The settings with --max-epoch chosen for --minutes, and a line for the log. All processes must call it.

    State and random numbers are restored afterwards. Nothing is chosen where both come from the config.yaml of a run,
    which has chosen before.

    Raises:
        UserError: --max-epoch was given on the command line as well.
    """
    options = settings.options
    if settings.sources["max_epoch"] == "command line":
        raise UserError("--minutes chooses --max-epoch by the speed of this machine; give one of them")
    source = settings.sources["minutes"]
    if source == settings.sources["max_epoch"] and set(options.as_dict()) <= set(settings.files.get(source, ())):
        return settings, f"{options.max_epoch} epochs a round, as {source} has them (--minutes)"
    minutes, started = not_none(options.minutes), time.perf_counter()
    image_seconds = _image_seconds(settings, state, pipeline, world)
    spent = torch.tensor([time.perf_counter() - started], dtype=torch.float64, device=world.device)
    left = max(0.0, 60 * minutes - world.all_reduce_max(spent).item())
    test = 0 if pipeline.test is None else len(pipeline.test)
    rounds = options.max_round - options.first_round
    epochs = epochs_within(left, image_seconds, len(pipeline.train), test, rounds)
    options = dataclasses.replace(options, max_epoch=epochs)
    sources = {**settings.sources, "max_epoch": "--minutes"}
    planned = epochs * rounds * image_seconds * (len(pipeline.train) + EVALUATION_COST * test) / 60
    note = f"{epochs} epochs a round at {1 / image_seconds:.0f} images/s, {planned:.1f} minutes (--minutes)"
    if planned > minutes:
        note += "; one epoch a round takes longer than that: lower --max-round, or take fewer images (--limit-train)"
    return dataclasses.replace(settings, options=options, sources=sources), note


def _image_seconds(settings: Settings, state: TrainingState, pipeline: Pipeline, world: World) -> float:
    """Seconds of a training image, the largest over processes: the median over waves, which are the batches that are
    prepared together.

    Batches of a wave arrive together, so that single intervals say little. The first waves are not timed, since they
    are prepared in advance. An epoch that is too short for a timed wave is timed whole, after one step.
    """
    order = pipeline.epoch_order(state.round, state.epoch)
    wave = pipeline.prepared_together(order)
    untimed = wave if wave == 1 else wave * (1 + settings.options.prefetch)
    wave, untimed = map(max, zip(*world.all_gather_ints([wave, untimed])))  # machines may differ in workers
    if len(order) < untimed + wave:
        untimed, wave = 0, len(order)
    order = order[: untimed + wave * max(2, math.ceil(RATE_STEPS / wave))]
    step = Step(state.embedder, state.bank, state.optimizer, settings.options.npc_temperature)

    def train(batches: Sequence[Tensor]) -> Iterator[int]:
        """Trains on each batch and yields its number of images."""
        # in this order, so that zip exhausts the batches and their workers stay for the run
        for (images, indices), rows in zip(pipeline.train_batches(batches, state.round, state.epoch), batches):
            step(images, state.neighbourhoods.members(indices), len(rows)).item()
            yield len(rows)

    state.embedder.train()
    with restoring_state(state, torch.cat(order)):
        if untimed == 0:
            sum(train(order[:1]))
        ends, images_done = [time.perf_counter()], [0]
        for count in train(order):
            ends.append(time.perf_counter())
            images_done.append(images_done[-1] + count)
    timed = [
        (ends[at + wave] - ends[at]) / (images_done[at + wave] - images_done[at])
        for at in range(untimed, len(order) - wave + 1, wave)
    ]
    seconds = torch.tensor([statistics.median(timed)], dtype=torch.float64, device=world.device)
    return world.all_reduce_max(seconds).item()
