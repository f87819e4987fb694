"""The project files that a training step, a round, and saving and loading a checkpoint pass through.

A run on digits and its resumption are profiled in this process. A file counts if one of its functions is called or
calls another; code that runs on import does not count.
"""

import contextlib
import os
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Optional

from torch.optim.optimizer import register_optimizer_step_post_hook

import main

ROOT = Path(__file__).resolve().parents[1]
ROUNDS, EPOCHS, STEPS = 2, 2, 4
RUN = ["--cfgs", "configs/base.yaml", "configs/digits.yaml", "--gpus", "cpu", "--threads", "1", "--no-report"]
RUN += ["--session", "route", "--limit-train", str(STEPS * 128), "--limit-test", "200", "--max-epoch", str(EPOCHS)]
CHECKPOINT = ("save", "checkpoint", "restore")
"""Functions of lib/training that, like every function of lib/checkpoint, write or read a checkpoint."""

Called = dict[tuple[int, bool], set[str]]
"""Files by the number of optimiser steps so far and whether a function of `CHECKPOINT` is on the stack."""


def route() -> None:
    """Print the three lists."""
    with tempfile.TemporaryDirectory() as folder:
        run = [*RUN, "--sess-dir", folder]
        there = called([*run, "--max-round", str(ROUNDS)])
        back = called(["--resume", f"{folder}/route", "--max-round", str(ROUNDS + 1)])
    steps_of_a_round = EPOCHS * STEPS
    step = there[steps_of_a_round + 2, False]  # between two steps of an epoch of a round with anchors
    boundary = there[steps_of_a_round, False]
    checkpoint = {file for (_, below), files in (*there.items(), *back.items()) if below for file in files}
    _print("a training step", step)
    _print("the rest of a round, a step's files left out", boundary - step)
    _print("a checkpoint out and in", checkpoint)


def called(arguments: list[str]) -> Called:
    """The files whose functions a call of main.py calls."""
    files: Called = defaultdict(set)
    steps = 0

    def count_step(*_: Any) -> None:
        nonlocal steps
        steps += 1

    hook = register_optimizer_step_post_hook(count_step)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
            stack.enter_context(_profiled(lambda file, below: files[steps, below].add(file)))
            status = main.main(arguments)
    finally:
        hook.remove()
    if status != 0:
        raise RuntimeError(f"main.py {' '.join(arguments)} ended with status {status}")
    return files


@contextlib.contextmanager
def _profiled(see: Callable[[str, bool], None]) -> Iterator[None]:
    """Call `see(file, whether below a function of CHECKPOINT)` for each call of a project function in any thread."""
    below = threading.local()  # frames of this thread that import, and that write or read a checkpoint

    def profile(frame: FrameType, event: str, _: Any) -> None:
        file = _project_file(frame)
        if file is None or event not in ("call", "c_call", "return"):
            return
        imports, checkpoints = getattr(below, "depths", (0, 0))
        if event != "c_call":
            change, name = 1 if event == "call" else -1, frame.f_code.co_name
            imports += change * (name == "<module>")
            of_training = file.startswith("lib/training/") and name in CHECKPOINT
            checkpoints += change * (of_training or file.startswith("lib/checkpoint/"))
            below.depths = imports, checkpoints
        if event != "return" and imports == 0:
            see(file, checkpoints > 0)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _project_file(frame: FrameType) -> Optional[str]:
    name = frame.f_code.co_filename
    if not name.startswith(f"{ROOT}{os.sep}"):
        return None
    file = name[len(str(ROOT)) + 1 :].replace(os.sep, "/")
    return file if file.startswith(("lib/", "datasets/", "models/", "main.py")) else None


def _print(what: str, files: set[str]) -> None:
    lines = {file: (ROOT / file).read_text(encoding="utf-8").count("\n") for file in sorted(files)}
    print(f"{what}: {len(lines)} files, {sum(lines.values()):,} lines")
    for file, count in lines.items():
        print(f"  {count:5,}  {file}")
