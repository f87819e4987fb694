"""Optimiser and learning-rate schedule, both PyTorch's own."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Callable

from torch import Tensor, optim
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from lib.compat import fast_optimizer_arguments


def build_optimizer(options, parameters: Iterable[Parameter]) -> optim.Optimizer:
    """SGD, Adam, AdamW or RMSprop from `--optimizer` and the options that apply to it, fused where PyTorch can."""
    parameters = list(parameters)
    kind = {"sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW, "rmsprop": optim.RMSprop}[options.optimizer]
    arguments = {"lr": options.base_lr, "weight_decay": options.weight_decay}
    arguments.update(fast_optimizer_arguments(kind, parameters[0].device))
    if kind not in _ADAMS:
        arguments["momentum"] = options.momentum
    if kind is optim.SGD:
        arguments.update(dampening=options.dampening, nesterov=options.nesterov)
    return kind(parameters, **arguments)


_ADAMS = (optim.Adam, optim.AdamW)
_MOMENTS = {
    optim.SGD: (),
    **dict.fromkeys(_ADAMS, ("step", "exp_avg", "exp_avg_sq")),
    optim.RMSprop: ("step", "square_avg"),
}


def check_state(optimizer: optim.Optimizer) -> None:
    """Validate an optimiser state that was loaded from a file of any origin.

    Raises:
        ValueError: a moment of a parameter is missing or has another shape, or the step count is negative.
    """
    needed = _MOMENTS[type(optimizer)]
    if type(optimizer) is optim.RMSprop and optimizer.param_groups[0]["momentum"] > 0:
        needed += ("momentum_buffer",)
    for parameter, kept in optimizer.state.items():
        if not all(name in kept for name in needed):
            raise ValueError(f"its optimiser's state has no {', '.join(name for name in needed if name not in kept)}")
        shape = parameter.shape
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape != shape:
                raise ValueError(f"its optimiser's {name} is {list(value.shape)} for weights of {list(shape)}")
        if not float(kept.get("step", 0)) >= 0:
            raise ValueError("its optimiser has counted fewer than 0 steps")


def step_policy(offset: int, step: int, rate: float) -> Callable[[int], float]:
    """rate ** ((epoch - offset) // step) from the offset on, 1 before; epochs count from 0 in each round."""
    return lambda epoch: rate ** ((epoch - offset) // step) if epoch >= offset else 1.0


def multistep_policy(schedule: Sequence[int], rate: float) -> Callable[[int], float]:
    """rate ** (number of epochs in the schedule that have been reached)."""
    return lambda epoch: rate ** bisect_right(schedule, epoch)


def cosine_policy(before: int, total: int) -> Callable[[int], float]:
    """(1 + cos(pi t / total)) / 2 after t epochs of the run, `before` of them in earlier rounds (Loshchilov and
    Hutter 2017, without restarts)."""
    return lambda epoch: (1 + math.cos(math.pi * (before + epoch) / total)) / 2


def lr_factor(options, round_number: int) -> Callable[[int], float]:
    """The factor of `--base-lr` in each epoch of a round, for `--lr-policy` and `--lr-warmup`."""
    before = (round_number - options.first_round) * options.max_epoch
    warmup = options.lr_warmup
    if options.lr_policy == "step":
        policy = step_policy(options.lr_decay_offset, options.lr_decay_step, options.lr_decay_rate)
    elif options.lr_policy == "multistep":
        policy = multistep_policy(options.lr_schedule, options.lr_decay_rate)
    elif options.lr_policy == "cosine":
        policy = cosine_policy(before, (options.max_round - options.first_round) * options.max_epoch)
    else:
        policy = lambda epoch: 1.0  # noqa: E731
    return lambda epoch: policy(epoch) * min(1.0, (before + epoch + 1) / (warmup + 1))


def start_schedule(options, optimizer: optim.Optimizer, round_number: int, epoch: int) -> LambdaLR:
    """The schedule of a round, at `epoch` (counted from 0).

    All policies but cosine restart in every round; the optimiser keeps its momentum. The rate is a function of round
    and epoch alone, which is all that a resumed round needs.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = options.base_lr
    return LambdaLR(optimizer, lr_factor(options, round_number), last_epoch=epoch - 1)
