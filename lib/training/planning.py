"""The number of threads and of epochs, chosen by timing training steps before the first one."""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Callable, NamedTuple

import torch
from torch import Tensor, nn

from datasets.pipeline import Pipeline
from lib.config import Options, Settings
from lib.distributed.process_info import ProcessInfo
from lib.distributed.world import World
from lib.errors import UserError
from lib.runtime.threads import AUTO, OtherPrograms, cores, is_busy, wished
from lib.training.state import TrainingState
from lib.training.step import Step

THREAD_STEPS = 3
"""Steps of a number of threads that are timed, after one that is not."""
HOPELESS = 3.0
"""A step is given up where it takes so many times the fastest and `PREPARATION`; more threads, which wait even longer,
are then not tried."""
PREPARATION = 1.0
"""Seconds that libraries may need before a first step."""
MOST_IMAGES = 128
"""Images in a step that is timed."""
RATE_STEPS = 8
"""Steps that are timed, after one that is not."""
SHARE = 0.85
"""Share of the time that is planned for: discovery, reports and checkpoints need the rest."""
EVALUATION = 0.4
"""Seconds that a test image takes, as a share of those of a training image: forward, without backward."""


class TooSlowError(Exception):
    """A step is given up."""


class Choice(NamedTuple):
    """A number of threads, why it is this one, and what the user should be warned of, or nothing."""

    threads: int
    reason: str
    warning: str = ""


def set_threads(settings: Settings, world: World, place: ProcessInfo) -> Choice:
    """Sets PyTorch's number of threads, with which faiss computes too, as far as it is known without timing.

    Args:
        settings: --threads, with its source.
        world: the processes of the run. They share the cores of a machine evenly.
        place: of this one.
    """
    wanted, here = settings.options.threads, cores()
    share = max(1, here // place.local_size)
    wish = wished(place.launched)
    if wanted != AUTO:
        choice = Choice(int(wanted), f"--threads, {settings.sources['threads']}")
        if choice.threads > share and world.size > 1 and settings.sources["threads"] == "checkpoint":
            choice = Choice(share, f"the checkpoint's {wanted} are more than the share of each process")
        elif choice.threads > share:
            choice = choice._replace(warning=_too_many(choice.threads, place.local_size, here))
    elif wish is not None:
        choice = Choice(wish, "OMP_NUM_THREADS")
    else:
        choice = Choice(share, "all cores" if place.local_size == 1 else f"a share of {here} cores")
    torch.set_num_threads(choice.threads)
    return choice


def _too_many(threads: int, processes: int, here: int) -> str:
    of_each = f" in each of {processes} processes" if processes > 1 else ""
    return (
        f"{threads} threads{of_each} share {here} {'core' if here == 1 else 'cores'}, which is slow; --threads auto "
        "chooses anew, and the last digits of the results then differ"
    )


def time_threads(
    first: Choice,
    others: OtherPrograms,
    options: Options,
    state: TrainingState,
    pipeline: Pipeline,
    world: World,
    place: ProcessInfo,
) -> Choice:
    """For `auto` in one process on a CPU: all cores where they are free, else the fastest of 1, half and all.

    Steps are timed with the first images of the epoch; state and random numbers are as before afterwards. With
    --compile nothing is timed: that code is made for one number of threads.

    Args:
        first: from `set_threads`.
        others: begun when the process started.
    """
    auto = options.threads == AUTO and wished(place.launched) is None
    if not auto or first.threads == 1 or world.size > 1 or world.device.type != "cpu" or options.compile:
        return first
    busy = others.cores()
    if not is_busy(busy, first.threads):
        return first
    order = pipeline.epoch_order(state.round, state.epoch)[:1]
    images, indices = next(iter(list(pipeline.train_batches(order, state.round, state.epoch))))
    images, indices = images[:MOST_IMAGES], indices[:MOST_IMAGES]
    step = Step(state.embedder, state.bank, state.optimizer, options.npc_temperature)
    members = state.neighbourhoods.members(indices)
    state.embedder.train()
    with unchanged(state, indices), given_up(state.embedder.network) as until:

        def step_within(limit: float) -> None:
            until(limit)
            step(images, members, len(images))

        seconds = step_seconds(step_within, numbers_to_try(first.threads))
    chosen = min(seconds, key=seconds.get)
    torch.set_num_threads(chosen)
    rates = [f"{len(images) / spent:.0f}" if spent < math.inf else "too slow" for spent in seconds.values()]
    measured = ", ".join(f"{number}: {rate}" for number, rate in zip(seconds, rates))
    occupied = f"other programs keep {busy:.1f} processors busy"
    return Choice(chosen, f"images/s by threads: {measured}; {occupied}; --threads N decides otherwise")


def numbers_to_try(most: int) -> list[int]:
    """1, half and all, each once, in rising order."""
    return sorted({1, max(1, most // 2), most})


def step_seconds(
    step: Callable[[float], object], numbers: Sequence[int], clock: Callable[[], float] = time.perf_counter
) -> dict[int, float]:
    """Seconds of the fastest of some steps with each number of threads, up to the first that is hopeless, as infinity.

    Args:
        step: takes the seconds after which it may raise TooSlowError.
    """
    found: dict[int, float] = {}
    for number in numbers:
        torch.set_num_threads(number)
        limit = PREPARATION + HOPELESS * min(found.values(), default=math.inf)
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
def given_up(network: nn.Module) -> Iterator[Callable[[float], None]]:
    """Gives a function of seconds, after which from its call on no layer of the network begins: TooSlowError."""
    deadline = math.inf

    def until(seconds: float) -> None:
        nonlocal deadline
        deadline = time.perf_counter() + seconds

    def check(module: nn.Module, inputs: tuple) -> None:
        if time.perf_counter() > deadline:
            raise TooSlowError

    hooks = [module.register_forward_pre_hook(check) for module in network.modules()]
    try:
        yield until
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def unchanged(state: TrainingState, rows: Tensor) -> Iterator[None]:
    """Within it steps may be taken with the images of these rows (B,); afterwards all is as before, bit for bit.

    Network, bank, random states and optimiser; the optimiser begins without its moments.
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
    """Epochs a round, at least 1.

    Args:
        seconds: for the whole run.
        image_seconds: of a training image in a step, all processes together.
        train, test: images.
        rounds: of the run.
    """
    epoch = image_seconds * (train + EVALUATION * test)
    return max(1, int(SHARE * seconds / (rounds * epoch)))


def within_minutes(settings: Settings, state: TrainingState, pipeline: Pipeline, world: World) -> tuple[Settings, str]:
    """The settings with --max-epoch chosen for --minutes, and a line for the log. All processes must call it.

    State and random numbers are as before afterwards.

    Raises:
        UserError: --max-epoch was given on the command line as well.
    """
    options = settings.options
    if settings.sources["max_epoch"] == "command line":
        raise UserError("--minutes chooses --max-epoch by the speed of this machine; give one of them")
    image_seconds = _image_seconds(settings, state, pipeline, world)
    test = 0 if pipeline.test is None else len(pipeline.test)
    rounds = options.max_round - options.first_round
    epochs = epochs_within(60 * options.minutes, image_seconds, len(pipeline.train), test, rounds)
    options = dataclasses.replace(options, max_epoch=epochs)
    sources = {**settings.sources, "max_epoch": "--minutes"}
    planned = epochs * rounds * image_seconds * (len(pipeline.train) + EVALUATION * test) / 60
    note = f"{epochs} epochs a round at {1 / image_seconds:.0f} images/s, {planned:.1f} minutes (--minutes)"
    if planned > options.minutes:
        note += "; one epoch a round takes longer than wished: lower --max-round, or take fewer images (--limit-train)"
    return dataclasses.replace(settings, options=options, sources=sources), note


def _image_seconds(settings: Settings, state: TrainingState, pipeline: Pipeline, world: World) -> float:
    """Seconds of a training image, by the median of the steps; of the slowest process."""
    order = pipeline.epoch_order(state.round, state.epoch)[: 1 + RATE_STEPS]
    step = Step(state.embedder, state.bank, state.optimizer, settings.options.npc_temperature)
    spent, started = [], time.perf_counter()
    state.embedder.train()
    with unchanged(state, torch.cat(order)):
        for rows, (images, indices) in zip(order, pipeline.train_batches(order, state.round, state.epoch)):
            step(images, state.neighbourhoods.members(indices), len(rows)).item()
            now = time.perf_counter()
            spent.append((now - started) / len(rows))
            started = now
    timed = sorted(spent[1:] or spent)
    seconds = torch.tensor([timed[len(timed) // 2]], dtype=torch.float64, device=world.device)
    return world.all_reduce_max(seconds).item()
