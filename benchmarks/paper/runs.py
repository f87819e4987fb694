"""The runs of a scale: their state, their commands, running them, and their results."""

import contextlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, Optional

from benchmarks.paper.scales import Scale, Variant
from benchmarks.runs import processor as processor_name
from datasets import PACKAGED
from lib.config import OPTIONS, Options, collect
from lib.errors import UserError
from lib.runtime.atomic import append_line, replace_text
from lib.session.folder import SessionFolder
from lib.session.lock import SessionLock
from lib.session.metrics import read_lines
from lib.session.records import read_final

MISSING, BEGUN, FINISHED, NO_DATA = "missing", "begun", "finished", "no data"

_SESSION = ["--no-report", "--no-log-tfb", "--num-clusters", "10", "--keep", "1", "--brief"]
"""Hundreds of runs keep metrics, log and only the last checkpoint. The number of clusters is fixed, since estimating it
would take half of a run on the digits."""

_GROUPS = ("data", "network", "method", "optimisation", "evaluation")
_FREE = {"data_root", "labels", "workers_num", "prefetch", "augment_on", "num_clusters"}
_RECIPE = {option.name for option in OPTIONS if option.kept and option.group in _GROUPS} - _FREE | {"seed", "precision"}
"""Options that a finished run must share with a variant to count as its run."""

_OF_COMMAND = {"print_args", "debug", "session", "resume", "pretrained", "compare"}
"""Options with which main.py would not make the run in its session; the others of this kind need one of them."""

READOUTS, PROCESSOR = "readouts.json", "processor.jsonl"
"""Files of a run's session: its `Result.readouts`, and the processor and its seconds of each start."""

_WITHOUT_FILES = ("digits",)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME = 3.0
"""Seconds within which a second signal counts as the first, sent both to this process and to its group."""


@dataclass(frozen=True)
class Call:
    """What all runs of one call share: the folder of their sessions, and arguments of main.py besides the recipe."""

    sess_dir: Path
    data_root: Optional[str] = None
    extra: tuple[str, ...] = ()

    def check(self) -> None:
        """Check the extra arguments.

        Raises:
            UserError: main.py does not know one, or it belongs to the recipe, or it makes no run in a session.
        """
        sources = collect(self.extra).sources
        of_recipe = sorted(name for name in _RECIPE | {"cfgs"} if sources[name] != "default")
        if of_recipe:
            flag = "--" + of_recipe[0].replace("_", "-")
            raise UserError(f"{flag} belongs to the recipe; write it into a YAML file and name that with --scale")
        of_command = sorted(name for name in _OF_COMMAND if sources[name] != "default")
        if of_command:
            raise UserError(f"--{of_command[0].replace('_', '-')} is not for this command, which names the sessions")


@dataclass(frozen=True)
class Result:
    """The results of a finished run. Accuracies are fractions of 1.

    Attributes:
        knn: of the last network, training features recomputed.
        linear: by stage; empty if the run had no such protocol.
        consistency: by round, from round 1.
        baselines: by name.
        features: of the features of --features and --whiten, if these are not the plain output.
        seconds: of training, wall-clock; None if they were not recorded.
        code, device: commit and kind of device, as the run told them.
        machine: name of the processor of the last start.
        rank: RankMe of the finished network's training features.
        processor: processor seconds of all starts but killed ones, evaluation included; None if they were not recorded.
        views: augmented views of each image.
        readouts: kNN by level and kind, such as `backbone, whitened`, where the variant is read out.
    """

    knn: float
    linear: dict[str, float] = field(default_factory=dict)
    consistency: dict[int, float] = field(default_factory=dict)
    baselines: dict[str, float] = field(default_factory=dict)
    features: Optional[float] = None
    seconds: Optional[float] = None
    code: str = "unknown"
    device: str = "unknown"
    machine: str = "unknown"
    rank: Optional[float] = None
    processor: Optional[float] = None
    views: int = 0
    readouts: dict[str, float] = field(default_factory=dict)

    def measure(self, what: str) -> Optional[float]:
        """The number that a `Measure` names, None if the run has none."""
        if what in ("knn", "features", "rank", "processor", "views"):
            return getattr(self, what)
        if what == "linear":
            stages = [stage for stage in self.linear if stage != "fc"]
            return self.linear[stages[-1]] if stages else None
        if what == "least consistency":
            return min(self.consistency.values(), default=None)
        if what.startswith("consistency "):
            return self.consistency.get(int(what.split()[1]))
        return self.readouts.get(what, self.baselines.get(what))


class Run:
    """A variant with a seed.

    Args:
        scale, variant, seed: which.
        call: what is the same for all runs.
    """

    def __init__(self, scale: Scale, variant: Variant, seed: int, call: Call):
        self.variant, self.seed = variant, seed
        self.name = f"{variant.name}-s{seed}"
        self._call, self._recipe = call, [*scale.arguments(variant), "--seed", str(seed)]
        self.options: Options = collect(self._recipe).options
        self.folder = call.sess_dir / scale.name / self.name

    @property
    def epochs(self) -> int:
        return (self.options.max_round - self.options.first_round) * self.options.max_epoch

    @property
    def state(self) -> str:
        """MISSING, BEGUN, FINISHED, or NO_DATA: missing, and its data set was not found.

        Raises:
            UserError: the session there is of another recipe.
        """
        session = SessionFolder(self.folder)
        if not session.config.is_file():
            return MISSING if self._has_data() else NO_DATA
        self._check_recipe(session)
        try:
            final = read_final(session.final, self.options.max_round - 1, self.options.max_epoch)
        except ValueError as error:
            raise UserError(str(error)) from None
        is_read = not self.variant.is_read_out or (self.folder / READOUTS).is_file()
        return FINISHED if final is not None and is_read else BEGUN

    def command(self) -> list[str]:
        """The arguments of main.py that make the run, or resume it."""
        session = ["--sess-dir", str(self.folder.parent)]
        data = self._data_arguments()
        if self._has_checkpoint():
            return ["--resume", str(self.folder), *session, *data, "--brief", *self._call.extra]
        return [*self._recipe, *_SESSION, *session, "--session", self.name, *data, *self._call.extra]

    def read_out(self) -> None:
        """Evaluate the finished network's features, and store the accuracies in the session."""
        from benchmarks.readout import Images, of_session

        k, arguments = self.options.knn_k, [*self._recipe, *self._data_arguments()]
        levels = of_session(Images.of(arguments, (k,), self.options.sigma), str(self.folder))
        found = {
            f"{level}, {kind}": of_k[str(k)] / 100 for level, kinds in levels.items() for kind, of_k in kinds.items()
        }
        replace_text(self.folder / READOUTS, json.dumps(found) + "\n")

    def prepare(self) -> None:
        """Remove the session of a run that ended before its first checkpoint.

        Raises:
            UserError: another process uses the session.
        """
        if self.folder.exists():
            lock = SessionLock(self.folder)
            lock.acquire()
            lock.release()
            if not self._has_checkpoint():
                shutil.rmtree(self.folder)

    def tidy(self) -> None:
        """Remove all checkpoints of the finished run but the last."""
        from lib.checkpoint.manager import checkpoints_of  # loads PyTorch

        for path in checkpoints_of(self.folder)[1:]:
            path.unlink()

    def epochs_done(self) -> int:
        """Epochs in its metrics."""
        return len(read_lines(self.folder / "metrics.jsonl"))

    def seconds(self) -> float:
        """Seconds of training in its metrics."""
        return sum(line.get("seconds") or 0.0 for line in read_lines(self.folder / "metrics.jsonl"))

    def result(self) -> Result:
        """The results of the finished run.

        Raises:
            ValueError: a file of its session is damaged.
        """
        session = SessionFolder(self.folder)
        final = read_final(session.final, self.options.max_round - 1, self.options.max_epoch)
        lines, starts = read_lines(session.metrics), read_lines(session.starts)
        prefix, suffix = "linear_", "_top1"
        last = lines[-1] if lines else {}
        linear = {name[len(prefix) : -len(suffix)]: last[name] for name in last if _is_between(name, prefix, suffix)}
        consistency = {line["round"]: line["consistency"] for line in lines if line.get("consistency") is not None}
        start = starts[-1] if starts else {}
        processor, readouts = read_lines(self.folder / PROCESSOR), self.folder / READOUTS
        return Result(
            final["top1"],
            linear,
            consistency,
            final.get("baselines", {}),
            final.get("features", {}).get("top1"),
            sum(line.get("seconds") or 0.0 for line in lines),
            start.get("code", "unknown"),
            start.get("device", "unknown"),
            processor[-1].get("machine", "unknown") if processor else "unknown",
            next((last[name] for name in last if name.startswith("rankme_")), None),
            sum(line["seconds"] for line in processor) if processor else None,
            self.epochs,
            json.loads(readouts.read_text(encoding="utf-8")) if readouts.is_file() else {},
        )

    def _has_checkpoint(self) -> bool:
        return any((self.folder / "checkpoint").glob("*.ckpt"))

    def _data_arguments(self) -> list[str]:
        return [] if self._data_root() is None else ["--data-root", str(self._data_root())]

    def _data_root(self) -> Optional[Path]:
        """--data-root, or the folder in it that is named after the data set."""
        if self._call.data_root is None:
            return None
        root = Path(self._call.data_root).expanduser()
        return root / self.options.dataset if (root / self.options.dataset).is_dir() else root

    def _has_data(self) -> bool:
        name = self.options.dataset
        if name in _WITHOUT_FILES or "--download" in self._call.extra:
            return True
        folder = self._data_root() or Path("data", name)
        return folder.is_dir() or (self._call.data_root is None and PACKAGED.get(name, folder).is_dir())

    def _check_recipe(self, session: SessionFolder) -> None:
        kept = collect(["--cfgs", str(session.config)]).options
        for name in sorted(_RECIPE):
            then, now = getattr(kept, name), getattr(self.options, name)
            if then != now:
                raise UserError(
                    f"session {self.folder} was run with {name} {then}, and {self.variant.name} has {now} now; move it "
                    "away, or choose another --sess-dir"
                )


def _is_between(name: str, prefix: str, suffix: str) -> bool:
    return name.startswith(prefix) and name.endswith(suffix)


class Maker:
    """Makes runs one after the other, each in a process forked from one that has loaded PyTorch.

    SIGINT, SIGTERM and SIGHUP to this process are passed on to the run, which saves and ends; `stopped` is then the
    signal. A context manager.
    """

    def __init__(self) -> None:
        self.stopped: Optional[int] = None
        self._waiting: Optional[int] = None
        self._heard = -math.inf
        # the server has loaded PyTorch and started no threads, which a fork would not copy
        methods = multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self._context.set_forkserver_preload(["main", "lib.commands.train"])
        self._process: Optional[Any] = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Maker":
        if self._context.get_start_method() == "forkserver":
            # who stops the command may send the signal to all of its process group
            resource_tracker.ensure_running()  # whose start ends with these signals unblocked
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            forkserver.ensure_running()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def make(self, run: Run, watch: Callable[[], None]) -> str:
        """Make or resume a run, to its end. Returns an empty string, or the last line of its error.

        Args:
            watch: called once a second.
        """
        try:
            run.prepare()
        except UserError as error:
            return str(error)
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        handle, output = tempfile.mkstemp(suffix=".txt", dir=run.folder.parent)
        os.close(handle)
        try:
            self._process = self._context.Process(target=_train, args=(run, output))
            self._process.start()
            self._pass_on()
            while self._process.is_alive():
                self._process.join(1.0)
                watch()
            if self._process.exitcode == 0:
                run.tidy()
                return ""
            lines = Path(output).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return f"status {self._process.exitcode}: {lines[-1] if lines else 'nothing was said'}"
        finally:
            self._process = None
            Path(output).unlink()

    def _receive(self, number: int, frame: object) -> None:
        if time.monotonic() - self._heard < _SAME:
            return
        self._heard = time.monotonic()
        self.stopped = self._waiting = number
        self._pass_on()

    def _pass_on(self) -> None:
        """Send a received signal to the run; without one, keep it until the next run starts."""
        if self._waiting is None or self._process is None or self._process.pid is None:
            return
        number, self._waiting = self._waiting, None
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(self._process.pid, number)


def _train(run: Run, output: str) -> None:
    """In the run's own process: run `python3 main.py ARGUMENTS`, then evaluate the finished network."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    os.setsid()  # a terminal's Ctrl-C reaches the run once, by way of the process that waits for it
    with open(output, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import main

    arguments = run.command()
    sys.argv = ["main.py", *arguments]
    status = main.main(arguments)
    if run.folder.is_dir():
        append_line(run.folder / PROCESSOR, json.dumps({"seconds": time.process_time(), "machine": processor_name()}))
    if status == 0 and run.variant.is_read_out:
        run.read_out()
    sys.exit(status)


def config_as_json(options: Options) -> dict[str, Any]:
    """The recipe of a variant, as plain values."""
    kept = options.as_dict()
    return json.loads(json.dumps({name: kept[name] for name in sorted(_RECIPE - {"seed"})}))
